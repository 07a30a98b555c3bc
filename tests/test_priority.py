"""How urgent a message is: who may say so, how far it is kept, and what servers without an ear for it
are told (RFC 6710, RFC 6758).
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.model import PRIORITIES, Grade, Reply, grade_of
from mta.policy.priority import PriorityRule, take_field
from mta.telemetry import Transferred
from mta.testing.lab import Lab
from mta.wire.fields import without_field
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.priority import PriorityTerms, check_priority
from mta.wire.smtp.server import Responder
from tests.intake_ground import FRIEND, MESSAGE, STRANGER, House, Recorder, address, begin, send
from tests.test_release import TERMS, say

ANY = PriorityRule()
LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
VALUES = {b"%d" % priority for priority in PRIORITIES}
HEAD = b"From: <a@example.net>\r\n%bMessage-ID: <1@example.net>\r\n\r\nHello.\r\n"
STEADY = "queue: {jitter: 0, lifetime: 5d, bounce-lifetime: 1d, backoff: [5m, 10m]}\n"
PLAIN = (b"PIPELINING", b"SIZE 52428800", b"ENHANCEDSTATUSCODES")


class ValueTests(SynchronousTestCase):
    @LIGHT
    @given(st.binary(max_size=6) | st.integers(-12, 12).map(lambda n: b"%d" % n) | st.none())
    def test_parameter(self, value: bytes | None) -> None:
        """19 spellings are taken as they are; all others are refused by 501."""
        if value in VALUES:
            self.assertEqual(check_priority(value), value)
        else:
            self.assertEqual(self.assertRaises(Refused, check_priority, value).reply.code, 501)

    def test_word(self) -> None:
        """EHLO names the assignment policy, if there is one."""
        self.assertEqual(PriorityTerms().word, b"MT-PRIORITY")
        self.assertEqual(PriorityTerms(b"NSEP").word, b"MT-PRIORITY NSEP")

    def test_grades(self) -> None:
        """X.400's three are -4, 0 and 4; the military's six fall among them as they do there."""
        military = {-4: "non-urgent", -2: "non-urgent", 0: "normal", 2: "normal", 4: "urgent"}
        self.assertEqual({p: grade_of(p).value for p in military}, military)
        self.assertEqual([grade_of(p) for p in (-9, 9)], [Grade.NON_URGENT, Grade.URGENT])

    @LIGHT
    @given(
        st.lists(
            st.sampled_from(
                (
                    b"MT-Priority: 3\r\n",
                    b"mt-priority:\r\n (folded)\r\n -4\r\n",
                    b"MT-Priority : 01\r\n",
                    b"X-MT-Priority: 5\r\n",
                    b"Subject: MT-Priority: 9\r\n",
                    b"To: b\r\n\tMT-Priority: 9\r\n",
                )
            ),
            max_size=5,
        ),
        st.binary(max_size=40),
    )
    def test_field(self, fields: list[bytes], tail: bytes) -> None:
        """The field goes, all others stay octet for octet; it counts when it is one and whole."""
        ours = [f for f in fields if f.lower().startswith(b"mt-priority")]
        rest, said = take_field(b"".join(fields))
        self.assertEqual(rest, b"".join(f for f in fields if f not in ours))
        expected = None
        if len(ours) == 1:
            expected = {b"3": 3, b"4": -4}.get(ours[0].strip()[-1:])
        self.assertEqual(said, expected)
        again, values = without_field(b"From: x\r\nno field\r\n" + tail, b"mt-priority")
        self.assertEqual((again, values), (b"From: x\r\nno field\r\n" + tail, []))

    @LIGHT
    @given(st.binary(max_size=60))
    def test_any_field(self, octets: bytes) -> None:
        """Whatever stands in it is a priority or nothing."""
        value = octets.replace(b"\r", b"").replace(b"\n", b"")
        _, said = take_field(b"MT-Priority:%b\r\n" % value)
        self.assertTrue(said is None or said in PRIORITIES)

    def test_comments(self) -> None:
        for value, said in (
            (b" (flash) 4 (really)", 4),
            (b"0", 0),
            (b" -0", None),
            (b" 4 5", None),
        ):
            self.assertEqual(take_field(b"MT-Priority:%b\r\n" % value), (b"", said))


class IntakeTests(SynchronousTestCase):
    def house(self, rule: PriorityRule | None = ANY, **keys: Any) -> House:
        house = House(**keys)
        if rule is not None:
            house.intake.priorities = {"smtp": rule}
        return house

    def taken(self, house: House, **keys: Any) -> tuple[int, bytes]:
        """The message's priority, and all of its content in the store."""
        (_, envelope, _) = house.offered[-1]
        return envelope.priority, house.spool.stagings[-1].stored

    def test_said(self) -> None:
        """What MAIL says is the envelope's, and stands in the Received field; 0 does not."""
        for priority in PRIORITIES:
            house = self.house()
            reply = send(house.reception(), parameters={b"MT-PRIORITY": b"%d" % priority})
            self.assertEqual(reply.code, 250)
            kept, content = self.taken(house)
            self.assertEqual(kept, priority)
            clause = b"for <b@example.com> PRIORITY %d; " % priority
            self.assertEqual(clause in content, priority != 0)

    def test_more_than_allowed(self) -> None:
        """Who asks for more than he may is told what he got, in the reply to MAIL (X.3.6)."""
        house = self.house(PriorityRule(limit=2, user_limit=-1))
        reception = house.reception()
        (told, answer) = begin(reception, parameters={b"MT-PRIORITY": b"9"})
        self.assertEqual((told.code, told.enhanced, told.lines[0][:2]), (250, "2.3.6", b"2 "))
        self.assertIsNone(answer)
        reception.data()
        reception.chunk(MESSAGE)
        self.assertEqual(self.successResultOf(reception.end(None)).code, 250)
        self.assertEqual(house.offered[0][1].priority, 2)
        self.assertIsNone(begin(house.reception(), parameters={b"MT-PRIORITY": b"2"})[0])
        reception._association.identify("alice", "PLAIN")
        told = begin(reception, parameters={b"MT-PRIORITY": b"2"})[0]
        self.assertEqual(told.lines[0][:3], b"-1 ")

    def test_a_policy_has_the_last_word(self) -> None:
        """A refusal of MAIL is not hidden by the news of another priority; nor when it comes late."""
        refused = Reply(450, "4.7.1", (b"Later",))
        late: Deferred[Reply | None] = Deferred()
        for answer in (refused, lambda _: late):
            house = self.house(PriorityRule(limit=0), policies=(Recorder(mail=answer),))
            sender = address("a@example.net")
            told = house.reception().mail(sender, {b"MT-PRIORITY": b"9"})
            if isinstance(told, Deferred):
                late.callback(refused)
                told = self.successResultOf(told)
            self.assertEqual(told, refused)

    def test_field(self) -> None:
        """Where MAIL says nothing the field does, up to what its client may; it is taken out."""
        for said, parameters, priority in (
            (b"MT-Priority: 3\r\n", {}, 3),
            (b"MT-Priority: 9\r\n", {}, 6),
            (b"MT-Priority: 9\r\n", {b"MT-PRIORITY": b"-2"}, -2),
            (b"MT-Priority: 9\r\n", {b"MT-PRIORITY": b"0"}, 0),
            (b"MT-Priority: high\r\n", {}, 0),
            (b"MT-Priority: 3\r\nmt-priority: 4\r\n", {}, 0),
            (b"Priority: urgent\r\nImportance: high\r\n", {}, 0),
        ):
            house = self.house(PriorityRule(limit=6))
            send(house.reception(), HEAD % said, parameters=dict(parameters))
            kept, content = self.taken(house)
            self.assertEqual(kept, priority, said)
            rest = HEAD % (b"" if b"riority: u" not in said else said)
            self.assertTrue(content.endswith(rest), content)
            self.assertNotIn(b"mt-priority", content.lower())

    def test_strangers(self) -> None:
        """Who may not relay is not listened to, and what his header says goes no further."""
        house = self.house()
        send(house.reception(STRANGER), HEAD % b"MT-Priority: 9\r\n")
        kept, content = self.taken(house)
        self.assertEqual(kept, 0)
        self.assertTrue(content.endswith(HEAD % b""))

    def test_programs_of_this_node(self) -> None:
        """They need no parameter: the field is enough."""
        house = self.house()
        send(house.reception("", uid=1000), HEAD % b"MT-Priority: -6\r\n")
        kept, content = self.taken(house)
        self.assertEqual(kept, -6)
        self.assertIn(b"PRIORITY -6; ", content)

    def test_switched_off(self) -> None:
        """A listener that takes none leaves the field to whoever comes behind us."""
        house = self.house(None)
        send(house.reception(), HEAD % b"MT-Priority: 9\r\n")
        kept, content = self.taken(house)
        self.assertEqual(kept, 0)
        self.assertTrue(content.endswith(HEAD % b"MT-Priority: 9\r\n"))

    @LIGHT
    @given(
        st.sampled_from(
            (
                HEAD % b"",
                HEAD % b"MT-Priority: 3\r\n",
                b"MT-Priority: 3\r\n",
                b"MT-Priority: 3\r\n\r\n",
                b"\r\nMT-Priority: 3\r\n",
                b"No header\r\nMT-Priority: 3\r\n\r\nx\r\n",
                b"X: " + b"x" * 5000 + b"\r\nMT-Priority: 3\r\n\r\nx\r\n",
                b"",
            )
        ),
        st.lists(st.integers(1, 30) | st.integers(1, 3000), max_size=12),
    )
    def test_pieces(self, content: bytes, cuts: list[int]) -> None:
        """How the content is cut into pieces changes nothing, and only a header has the field."""
        found = []
        for pieces in ([content], _cut(content, cuts)):
            house = self.house(header_limit=4096)
            reception = house.reception()
            begin(reception)
            reception.data()
            for piece in pieces:
                reception.chunk(piece)
            self.assertEqual(self.successResultOf(reception.end(None)).code, 250)
            kept, text = self.taken(house)
            found.append((kept, text.partition(b"+0000\r\n")[2]))
        self.assertEqual(found[0], found[1])
        kept, text = found[0]
        is_field = content.startswith((b"From", b"MT-")) and b"MT-P" in content
        self.assertEqual(kept, 3 if is_field else 0)
        rest = content.replace(b"MT-Priority: 3\r\n", b"") if is_field else content
        self.assertEqual(text.lstrip(b"\r\n"), rest.lstrip(b"\r\n"))

    def test_named_transactions_stay_as_they_come(self) -> None:
        """Their octets are counted, and their client says MT-PRIORITY."""
        house = self.house()
        parameters: dict[bytes, bytes | None] = {b"TRANSID": b"<1@x>", b"MT-PRIORITY": b"5"}
        send(house.reception(FRIEND), HEAD % b"MT-Priority: 3\r\n", parameters=parameters)
        kept, content = self.taken(house)
        self.assertEqual(kept, 5)
        self.assertTrue(content.endswith(HEAD % b"MT-Priority: 3\r\n"))


def _cut(content: bytes, cuts: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(content[at : at + cut])
        at += cut
    return [piece for piece in (*pieces, content[at:]) if piece]


class PriorityPath:
    """Over both stores, on the whole way."""

    spool = "memory"

    def lab(self: Any, *extensions: bytes, more: str = "") -> Lab:
        lab = Lab(spool=self.spool, more=STEADY + more)
        lab.hub.extensions = (*PLAIN, *extensions)
        return lab

    def send(self: Any, lab: Lab, parameters: bytes, head: bytes = b"", size: int = 0) -> bytes:
        client = lab.client()
        client.pour(b"MAIL FROM:<me@example.net>%b\r\nRCPT TO:<you@example.com>\r\n" % parameters)
        client.pour(b"DATA\r\n")
        content = head + b"Subject: x\r\n\r\n" + b"x\r\n" * (size // 3) + b"y\r\n"
        return client.pour(content + b".\r\n").rstrip()

    def test_offered(self: Any) -> None:
        """A client in relay-from is offered it, with the profile that the operator names."""
        said = self.lab().client().pour(b"EHLO x\r\n")
        self.assertIn(b"250-MT-PRIORITY\r\n", said)

    def test_handed_on(self: Any) -> None:
        """Where it is offered the value goes with MAIL, whatever it is, and no field with it."""
        for value in (b"-9", b"-3", b"0", b"1", b"9"):
            lab = self.lab(b"MT-PRIORITY")
            self.assertIn(b"queued as", self.send(lab, b" MT-PRIORITY=" + value))
            [mail] = [line for line in lab.hub.commands if line.startswith(b"MAIL")]
            self.assertIn(b" MT-PRIORITY=" + value, mail)
            [sunk] = lab.hub.messages
            self.assertNotIn(b"MT-Priority:", sunk.content)

    def test_tunnelled(self: Any) -> None:
        """Where it is not, a header field says it, before all others; a message without a priority
        goes as ever.
        """
        for size in (0, 600_000):
            lab = self.lab()
            self.send(lab, b" MT-PRIORITY=-7", size=size)
            self.send(lab, b"", b"MT-Priority: 5\r\n", size=size)
            self.send(lab, b"", size=size)
            starts = [sunk.content[:17] for sunk in lab.hub.messages]
            self.assertEqual(
                starts, [b"MT-Priority: -7\r\n", b"MT-Priority: 5\r\nR", b"Received: from cl"]
            )
            for sunk in lab.hub.messages:
                self.assertLessEqual(sunk.content.count(b"MT-Priority"), 1)
                self.assertTrue(
                    sunk.content.endswith(b"Subject: x\r\n\r\n" + b"x\r\n" * (size // 3) + b"y\r\n")
                )
            self.assertEqual([e.status for e in lab.owner.kinds(Transferred)], ["sent"] * 3)

    def test_tunnelled_and_converted(self: Any) -> None:
        """Both at once: 8 bits for a server without 8BITMIME, and a priority."""
        lab = self.lab()
        client = lab.client()
        client.pour(b"MAIL FROM:<me@example.net> BODY=8BITMIME MT-PRIORITY=2\r\n")
        client.pour(b"RCPT TO:<you@example.com>\r\nDATA\r\n")
        client.pour(b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n.\r\n")
        [sunk] = lab.hub.messages
        self.assertTrue(sunk.content.startswith(b"MT-Priority: 2\r\n"))
        self.assertTrue(sunk.content.isascii())

    def test_report(self: Any) -> None:
        """A report travels with the priority of what it reports on."""
        lab = self.lab()
        lab.hub.answer("RCPT", b"550 5.1.1 No such user\r\n", 1)
        self.send(lab, b" MT-PRIORITY=6")
        lab.advance(1)
        [report] = lab.hub.messages
        self.assertTrue(report.content.startswith(b"MT-Priority: 6\r\nDate: "), report.content)


class MemoryPriorityPathTests(PriorityPath, SynchronousTestCase):
    """Over the store in memory."""


class LogPriorityPathTests(PriorityPath, SynchronousTestCase):
    """Over the log, on the forgetful disk."""

    spool = "log"


class OfferTests(SynchronousTestCase):
    def test_both_are_offered(self) -> None:
        """FUTURERELEASE and MT-PRIORITY go together, to the same clients."""
        offers = [TERMS, PriorityTerms()]
        machine = Responder(b"mx.example.org", relays=True, offers=offers)
        machine.greet()
        said = say(machine, b"EHLO x", b"MAIL FROM:<a@example.net> HOLDFOR=60 MT-PRIORITY=3")
        self.assertIn(b"250-FUTURERELEASE", said)
        self.assertIn(b"250-MT-PRIORITY\r\n", said)
        self.assertTrue(said.endswith(b"250 2.1.0 Ok\r\n"))
