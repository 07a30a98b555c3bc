"""The policy `milter`: a filter's word reaches the client, and its silence is answered for."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Reply
from mta.policy.milter import Milter, MilterSettings
from mta.policy.milter_connection import QUIT_SECONDS
from mta.policy.milter_outage import REPLIES
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Notice, Rejected
from mta.testing.lab import Lab
from mta.testing.policy_suite import IPolicyTests, sample_peers
from mta.testing.surroundings import MemorySurroundings
from tests.intake_ground import MESSAGE, House, address
from tests.memory_filter import CONTINUE, FilterEnd, MemoryFilter, said

SOCKET = "unix:/run/filter.sock"
LATER = REPLIES["tempfail"]


class Ground:
    """An intake with one `milter` policy, and the filter that it asks."""

    def __init__(self, memory: MemoryFilter | None = None, **keys: Any) -> None:
        self.filter = MemoryFilter() if memory is None else memory
        self.surroundings = MemorySurroundings()
        self.surroundings.network.serve_service(SOCKET, self.filter)
        settings = MilterSettings.model_validate({"socket": SOCKET, **keys})
        self.policy = Milter(settings, self.surroundings)
        self.house = House((self.policy,))
        self.clock = self.surroundings.clock
        self.reception: Any = None

    def wait(self, answer: Any, seconds: float = 0.0) -> Any:
        """What it comes to, once the memory network has delivered."""
        if not isinstance(answer, Deferred):
            return answer
        results: list[Any] = []
        answer.addBoth(results.append)
        self.clock.advance(seconds)
        for _ in range(2000):
            if results:
                return results[0]
            self.clock.advance(0)
        raise AssertionError("no answer")

    def connect(self, **peer: Any) -> Any:
        """A client that has said HELO; what both came to."""
        house = self.house
        house.associations += 1
        whom = replace(sample_peers()[3], tls="", **peer)
        self.reception = house.intake.reception(house.tenure, whom)
        greeted = self.wait(self.reception.connected())
        return greeted, self.wait(self.reception.helo(b"client.example.net", "ESMTP"))

    def envelope(self, *recipients: str, **parameters: bytes | None) -> list[Any]:
        sent = {key.upper().encode(): value for key, value in parameters.items()}
        answers = [self.wait(self.reception.mail(address("a@example.net"), sent))]
        for recipient in () if answers[0] else recipients or ("b@example.com",):
            answers.append(self.wait(self.reception.rcpt(address(recipient), {})))
        return answers

    def content(self, *pieces: bytes, chunked: bool = False) -> Any:
        reception = self.reception
        refused = self.wait(reception.bdat() if chunked else reception.data())
        if refused is not None:
            return refused
        for piece in pieces or (MESSAGE,):
            self.wait(reception.chunk(piece))
        answer = self.wait(reception.end(None))
        if answer.code == 250:
            reception.acknowledged()
        return answer

    def send(self, *pieces: bytes, **keys: Any) -> list[Any]:
        """A whole message: its envelope's answers, and its own."""
        answers = self.envelope()
        return answers if any(answers) else [*answers, self.content(*pieces, **keys)]

    @property
    def end(self) -> FilterEnd:
        return self.filter.ends[-1]

    @property
    def stored(self) -> bytes:
        return self.house.spool.stagings[-1].stored

    def lines(self) -> list[str]:
        return self.surroundings.notices()


def codes(answers: Any) -> list[int | None]:
    return [a and a.code for a in answers]


class MilterSuite(IPolicyTests, SynchronousTestCase):
    """With a filter that continues."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        surroundings.network.serve_service(SOCKET, MemoryFilter())
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class AwayFilterSuite(IPolicyTests, SynchronousTestCase):
    """With none."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class SilentFilterSuite(IPolicyTests, SynchronousTestCase):
    """With one that agrees and says nothing."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        memory = MemoryFilter(**dict.fromkeys("CHMRTLNBE", b""))
        surroundings.network.serve_service(SOCKET, memory)
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class DialogueTests(SynchronousTestCase):
    def test_a_message(self) -> None:
        """A filter hears a message from the client's address to its last octet, and is let go."""
        ground = Ground()
        self.assertEqual(ground.connect(), (None, None))
        self.assertEqual(ground.send()[-1].code, 250)
        heard = ground.end.heard
        self.assertEqual(
            heard,
            [
                (b"C", b"[192.0.2.77]\x004\x9c\x40192.0.2.77\0"),
                (b"H", b"client.example.net\0"),
                (b"M", b"<a@example.net>\0"),
                (b"R", b"<b@example.com>\0"),
                (b"T", b""),
                (b"L", b"From\0<a@example.net>\0"),
                (b"L", b"Message-ID\0<1@example.net>\0"),
                (b"N", b""),
                (b"B", b"Hello.\r\n"),
                (b"E", b""),
            ],
        )
        ground.reception.closed("", "")
        ground.clock.advance(0)
        self.assertEqual(ground.end.letters()[-1:], b"Q")
        ground.clock.advance(0)
        self.assertEqual((ground.filter.open_ends, len(ground.filter.ends)), (0, 1))
        self.assertEqual(ground.lines(), [])

    def test_macros(self) -> None:
        """It is told who connected, under which TLS, who he has proved to be, and the queue's name."""
        ground = Ground()
        ground.connect()
        association = ground.reception._association
        ground.reception.secured("TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)")
        ground.wait(ground.reception.helo(b"client.example.net", "ESMTPS"))
        association.identify("alice", "PLAIN")
        ground.send()
        macros = ground.end.macros
        self.assertEqual(macros[b"C"][b"j"], b"bridgehead.example.org")
        self.assertEqual(macros[b"C"][b"{client_addr}"], b"192.0.2.77")
        self.assertEqual(macros[b"C"][b"{client_port}"], b"40000")
        self.assertEqual(macros[b"C"][b"{daemon_name}"], b"smtp")
        self.assertEqual(macros[b"H"][b"{tls_version}"], b"TLSv1.3")
        self.assertEqual(macros[b"H"][b"{cipher}"], b"TLS_AES_256_GCM_SHA384")
        self.assertEqual(macros[b"M"][b"{auth_type}"], b"PLAIN")
        self.assertEqual(macros[b"M"][b"{auth_authen}"], b"alice")
        self.assertEqual(macros[b"M"][b"{mail_addr}"], b"a@example.net")
        self.assertEqual(macros[b"R"][b"{rcpt_addr}"], b"b@example.com")
        queue_id = ground.house.spool.stagings[-1].queue_id.encode()
        self.assertEqual([macros[at][b"i"] for at in (b"T", b"N", b"E")], [queue_id] * 3)

    def test_parameters(self) -> None:
        """What was said behind an address goes along with it."""
        ground = Ground()
        ground.connect()
        ground.wait(
            ground.reception.mail(address("a@example.net"), {b"SIZE": b"9", b"SMTPUTF8": None})
        )
        sent: dict[bytes, bytes | None] = {b"NOTIFY": b"FAILURE,SUCCESS", b"ORCPT": b"rfc822;x@y"}
        ground.wait(ground.reception.rcpt(address("b@example.com"), sent))
        self.assertEqual(ground.end.all(b"M"), [b"<a@example.net>\0SIZE=9\0SMTPUTF8\0"])
        self.assertEqual(
            ground.end.all(b"R"), [b"<b@example.com>\0NOTIFY=SUCCESS,FAILURE\0ORCPT=rfc822;x@y\0"]
        )

    def test_local_programs(self) -> None:
        """A program of this node is localhost to a filter, as it is with Postfix."""
        ground = Ground()
        ground.connect(host="", port=0, uid=1000)
        self.assertEqual(ground.end.all(b"C"), [b"localhost\x004\0\x00127.0.0.1\0"])

    def test_content_is_unstuffed(self) -> None:
        """Dots that SMTP doubled are single for a filter, wherever pieces are cut; by BDAT nothing
        was doubled.
        """
        head, body = b"A: b\r\n\r\n", b"..one\r\nx\r\n..\r\n...two\r\n"
        for cut in range(1, len(body)):
            ground = Ground()
            ground.connect()
            ground.send(head + body[:cut], body[cut:])
            self.assertEqual(b"".join(ground.end.all(b"B")), b".one\r\nx\r\n.\r\n..two\r\n")
            self.assertTrue(ground.stored.endswith(body))
        ground = Ground()
        ground.connect()
        ground.send(head + body, chunked=True)
        self.assertEqual(b"".join(ground.end.all(b"B")), body)

    def test_no_header(self) -> None:
        """What is no header is body to the filter, as it is to whoever receives the message."""
        for content, fields, body in (
            (b"Hello\r\n\r\n..more\r\n", [], b"Hello\r\n\r\n.more\r\n"),
            (b"A: b\r\nHello\r\n\r\nmore\r\n", [b"A\0b\0"], b"Hello\r\n\r\nmore\r\n"),
            (b"\r\nHello\r\n", [], b"Hello\r\n"),
            (b"A: b\r\n c\r\n", [b"A\0b\n c\0"], b""),
        ):
            ground = Ground()
            ground.connect()
            ground.send(content)
            self.assertEqual(ground.end.all(b"L"), fields)
            self.assertEqual(b"".join(ground.end.all(b"B")), body)

    def test_a_cut_header(self) -> None:
        """Of a header beyond header-limit the rest is body; nothing is hidden from the filter."""
        ground = Ground()
        ground.house = House((ground.policy,), header_limit=4096)
        ground.connect()
        content = b"A: b\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 200 + b"\r\n..Hello\r\n"
        ground.send(content)
        seen = b"".join(
            p.replace(b"\0", b": ", 1).replace(b"\0", b"\r\n") for p in ground.end.all(b"L")
        )
        seen += b"".join(ground.end.all(b"B"))
        self.assertEqual(seen, content.replace(b"..Hello", b".Hello"))

    def test_a_large_body(self) -> None:
        """A large body goes in full packets while it comes, and no more than one is held."""
        ground = Ground()
        ground.connect()
        line = b"x" * 998 + b"\r\n"
        ground.send(b"A: b\r\n\r\n", *[line * 30] * 20)
        sizes = [len(p) for p in ground.end.all(b"B")]
        self.assertEqual(sum(sizes), 600_000)
        self.assertEqual(set(sizes[:-1]), {65_535})

    def test_leading_space(self) -> None:
        """A filter that wants fields exactly as they stand gets them so, and its own are not touched."""
        ground = Ground(MemoryFilter(E=said(b"h", b"X-Y\0 v;\n\t  b=1\0") + CONTINUE))
        ground.filter.steps = 0x100000
        ground.connect()
        ground.send(b"A:b\r\nC:  d\r\n\r\n")
        self.assertEqual(ground.end.all(b"L"), [b"A\0b\0", b"C\0  d\0"])
        self.assertIn(b"\r\nX-Y: v;\r\n\t  b=1\r\nA:b\r\n", ground.stored)

    def test_an_unwanted_body(self) -> None:
        """A filter without interest in bodies is not sent any."""
        ground = Ground()
        ground.filter.steps = 0x10
        ground.connect()
        ground.send(b"A: b\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 200)
        self.assertEqual(ground.end.letters(), b"CHMRTLNE")

    def test_a_slow_filter_without_answers(self) -> None:
        """A filter that answers no piece of a body is still waited for: nothing heaps up."""
        ground = Ground()
        ground.filter.steps, ground.filter.mute = 0x80000, b"B"
        ground.connect()
        ground.envelope()
        ground.wait(ground.reception.data())
        ground.wait(ground.reception.chunk(b"A: b\r\n\r\n"))
        transport: Any = ground.reception._association.notes[
            ground.policy._note
        ]._connection.transport
        transport.hold = True
        pause = ground.reception.chunk(b"x" * 998 + b"\r\n")
        while pause is None:
            pause = ground.reception.chunk(b"x" * 998 + b"\r\n")
        self.assertNoResult(pause)
        transport.hold = False
        self.assertIsNone(ground.wait(pause))
        self.assertEqual(ground.wait(ground.reception.end(None)).code, 250)

    def test_several_messages(self) -> None:
        """One connection serves an association; a message that came to nothing ends with ABORT."""
        ground = Ground()
        ground.connect()
        ground.send()
        ground.envelope()
        ground.reception.reset()
        ground.send()
        self.assertEqual(len(ground.filter.ends), 1)
        self.assertEqual(ground.end.letters(), b"CHMRTLLNBE" + b"MRA" + b"MRTLLNBE")

    def test_two_filters(self) -> None:
        """Two filters in the list have a connection each, and the first's no is final."""
        ground = Ground()
        other = MemoryFilter(M=said(b"r"))
        ground.surroundings.network.serve_service("tcp:127.0.0.1:8891", other)
        second = Milter(MilterSettings(socket="inet:127.0.0.1:8891"), ground.surroundings)
        ground.house = House((second, ground.policy))
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 550)
        self.assertEqual(other.ends[0].letters(), b"CHMA")
        self.assertEqual(ground.end.letters(), b"CH")


class VerdictTests(SynchronousTestCase):
    def refused(self, letter: str, answer: bytes) -> tuple[Any, list[Rejected], Ground]:
        """The last answer of a client whose filter answers `letter` so."""
        ground = Ground(MemoryFilter(**{letter: answer}))
        greeted = ground.connect()
        answers = list(greeted)
        if not any(answers):
            answers = ground.envelope()
        if not any(answers):
            answers = [ground.content()]
        return answers, ground.house.kinds(Rejected), ground

    def test_refusals(self) -> None:
        """At every stage the client hears the filter's own reply, and nothing is queued."""
        own = said(b"y", b"550-5.7.9 Not this\r\n550 5.7.9 one\0")
        reply = Reply(550, "5.7.9", (b"Not this", b"one"))
        for letter, stage in (
            *(("C", "CONNECT"), ("H", "HELO"), ("M", "MAIL"), ("R", "RCPT"), ("T", "DATA")),
            *(("L", "END-OF-MESSAGE"), ("N", "END-OF-MESSAGE"), ("B", "END-OF-MESSAGE")),
            ("E", "END-OF-MESSAGE"),
        ):
            answers, rejected, ground = self.refused(letter, own)
            self.assertIn(reply, answers, letter)
            self.assertEqual(rejected[0].stage, stage)
            self.assertEqual(ground.house.offered, [])
            self.assertTrue(all(s.is_aborted for s in ground.house.spool.stagings))

    def test_short_refusals(self) -> None:
        """Reject and tempfail have words of ours; shutdown ends the association."""
        for letter in "HMRTLNBE":
            for answer, code in ((b"r", 550), (b"t", 451), (b"4", 421)):
                answers, _, _ = self.refused(letter, said(answer))
                self.assertIn(code, codes(answers), letter)
        for answer, code in ((b"r", 554), (b"t", 421), (b"4", 421)):
            self.assertIn(code, codes(self.refused("C", said(answer))[0]))

    def test_one_recipient(self) -> None:
        """A refused recipient is left out; the message goes to the others."""
        ground = Ground(MemoryFilter(R=[said(b"r"), CONTINUE]))
        ground.connect()
        self.assertEqual(
            codes(ground.envelope("b@example.com", "c@example.com")), [None, 550, None]
        )
        self.assertEqual(ground.content().code, 250)
        [recipient] = ground.house.offered[0][1].recipients
        self.assertEqual(recipient.address.text, b"c@example.com")

    def test_accept(self) -> None:
        """A filter that accepts a message early hears no more of it, and all of the next."""
        for letter, heard in (("M", b"M"), ("R", b"MR"), ("T", b"MRT"), ("L", b"MRTL")):
            ground = Ground(MemoryFilter(**{letter: [said(b"a"), CONTINUE]}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
            self.assertEqual(ground.end.letters(), b"CH" + heard)
            ground.filter.answers.clear()
            self.assertEqual(ground.send()[-1].code, 250)
            self.assertEqual(ground.end.letters(), b"CH" + heard + b"A" + b"MRTLLNBE")

    def test_accepted_associations(self) -> None:
        """A filter that wants nothing of a client is let go at once, and not asked again."""
        for letter, heard in (("C", b"CQ"), ("H", b"CHQ")):
            ground = Ground(MemoryFilter(**{letter: said(b"a")}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
            ground.clock.advance(0)
            self.assertEqual((ground.end.letters(), ground.filter.open_ends), (heard, 0))

    def test_discard(self) -> None:
        """A discarded message is answered as taken, and is nowhere; the log has the filter's name."""
        for letter in "MRTLNBE":
            ground = Ground(MemoryFilter(**{letter: [said(b"d")]}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250, letter)
            self.assertEqual((ground.house.offered, ground.house.spool.queued), ([], {}))
            self.assertIn(SOCKET, ground.house.kinds(Notice)[0].text)

    def test_changes(self) -> None:
        """What a filter changes at the end is what is stored: fields, sender, recipients."""
        changes = (
            said(b"h", b"X-Last\0last\0")
            + said(b"i", struct.pack(">I", 0) + b"X-First\0one\n\ttwo\0")
            + said(b"e", b"<bounce@Example.ORG>\0")
            + said(b"+", b"<c@example.com>\0")
            + said(b"+", b"<b@example.com>\0")
            + said(b"-", b"<d@EXAMPLE.com>\0")
        )
        ground = Ground(MemoryFilter(E=changes + CONTINUE))
        ground.connect()
        ground.envelope("b@example.com", "d@example.com")
        self.assertEqual(ground.content().code, 250)
        envelope = ground.house.offered[0][1]
        self.assertEqual(envelope.sender.text, b"bounce@Example.ORG")
        self.assertEqual(
            [r.address.text for r in envelope.recipients], [b"b@example.com", b"c@example.com"]
        )
        self.assertIn(b"\r\nX-First: one\r\n\ttwo\r\nX-Last: last\r\nFrom:", ground.stored)

    def test_null_sender(self) -> None:
        """The sender may become the null reverse-path."""
        ground = Ground(MemoryFilter(E=said(b"e", b"<>\0") + CONTINUE))
        ground.connect()
        ground.send()
        self.assertTrue(ground.house.offered[0][1].sender.is_null)

    def test_quarantine(self) -> None:
        """Quarantine is hold: accepted, queued, and sent when an operator says so."""
        ground = Ground(MemoryFilter(E=said(b"q", b"virus\x1b?\0") + CONTINUE))
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        [queued] = ground.house.spool.queued.values()
        self.assertTrue(queued[1].held)
        self.assertIn("virus??", ground.house.kinds(Notice)[0].text)

    def test_no_recipient_left(self) -> None:
        """A message without any recipient left is dropped, as Sendmail does it."""
        ground = Ground(MemoryFilter(E=said(b"-", b"<b@example.com>\0") + CONTINUE))
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(ground.house.offered, [])

    def test_all_or_nothing(self) -> None:
        """One change that cannot be made: none is made, and on-failure decides."""
        changes = said(b"h", b"X-Y\0z\0") + said(b"+", b"<no address>\0")
        ground = Ground(MemoryFilter(E=changes + CONTINUE), **{"on-failure": "accept"})
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertNotIn(b"X-Y", ground.stored)
        self.assertIn("an address that is none", ground.lines()[0])

    def test_unnegotiated_change(self) -> None:
        """A filter that changes what it did not negotiate is refused by name."""
        memory = MemoryFilter(E=said(b"b", b"new body") + CONTINUE)
        ground = Ground(memory)
        ground.connect()
        self.assertEqual(ground.send()[-1], LATER)
        self.assertIn("did not negotiate: REPLACE_BODY", ground.lines()[0])


class FailureTests(SynchronousTestCase):
    def test_tempfail_by_default(self) -> None:
        """Wherever a filter dies, the message waits with its sender; the next one asks anew."""
        for letter in "MRTLNBE":
            ground = Ground(MemoryFilter(**{letter: [None]}))
            ground.connect()
            self.assertEqual(ground.send()[-1], LATER, letter)
            self.assertEqual(ground.house.offered, [])
            ground.reception.reset()
            ground.clock.advance(0)
            self.assertEqual(ground.send()[-1].code, 250, letter)
            self.assertEqual(len(ground.filter.ends), 2)
            self.assertEqual(ground.end.letters(), b"CHMRTLLNBE")
            [began, over] = ground.lines()
            self.assertIn("until it answers, mail is answered 451", began)
            self.assertIn("answers again", over)

    def test_away(self) -> None:
        """A filter that is not there costs messages a 451, not clients their greeting; one line."""
        ground = Ground()
        ground.surroundings.network.services.clear()
        for _ in range(3):
            self.assertEqual(ground.connect(), (None, None))
            self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertEqual(len(ground.lines()), 1)
        self.assertIn(SOCKET, ground.lines()[0])
        counter = ground.surroundings.telemetry.counter(
            "mta_filter_failures_total", "", filter=SOCKET
        )
        self.assertEqual(counter.value, 9)
        ground.surroundings.network.serve_service(SOCKET, ground.filter)
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(len(ground.lines()), 2)

    def test_on_failure(self) -> None:
        """The operator may let mail pass unfiltered, or refuse it."""
        for choice, code in (("accept", 250), ("reject", 550), ("tempfail", 451)):
            for letter in "MRTLNBE":
                ground = Ground(MemoryFilter(**{letter: None}), **{"on-failure": choice})
                ground.connect()
                self.assertEqual(ground.send()[-1].code, code, (choice, letter))

    def test_the_rest_of_a_failed_message(self) -> None:
        """A recipient that was taken before the filter died does not carry the message through."""
        ground = Ground(MemoryFilter(R=[CONTINUE, None]))
        ground.connect()
        self.assertEqual(
            codes(ground.envelope("b@example.com", "c@example.com")), [None, None, 451]
        )
        self.assertEqual(ground.content(), LATER)

    def test_between_commands(self) -> None:
        """A filter that goes between two commands of one message is missed at the next."""
        ground = Ground()
        ground.connect()
        ground.envelope()
        transport: Any = ground.end.transport
        transport.abortConnection()
        ground.clock.advance(0)
        self.assertEqual(ground.content(), LATER)

    def test_between_messages(self) -> None:
        """One that closes between messages (a restart, an idle time-out) costs nothing."""
        ground = Ground()
        ground.connect()
        ground.send()
        transport: Any = ground.end.transport
        transport.loseConnection()
        ground.clock.advance(0)
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual((len(ground.filter.ends), ground.lines()), (2, []))

    def test_silence(self) -> None:
        """A silent filter is given its time and not a second more, and its connection is cut."""
        for letter, seconds in (("M", 30.0), ("E", 50.0)):
            ground = Ground(MemoryFilter(**{letter: b""}))
            ground.connect()
            if letter == "E":
                ground.envelope()
                ground.wait(ground.reception.data())
                ground.wait(ground.reception.chunk(MESSAGE))
                answer = ground.reception.end(None)
            else:
                answer = ground.reception.mail(address("a@example.net"), {})
            for _ in range(20):
                ground.clock.advance(0)
            ground.clock.advance(seconds - 0.001)
            self.assertNoResult(answer)
            self.assertEqual(ground.wait(answer, 0.001), LATER)
            ground.clock.advance(0)
            self.assertEqual(ground.filter.open_ends, 0)
            self.assertIn(f"{seconds:g} s have passed", ground.lines()[0])

    def test_a_door_that_does_not_open(self) -> None:
        """A connection that does not come about is given up in time."""
        ground = Ground()
        opening: list[Deferred[Any]] = []

        def service_connect(purpose: str, endpoint: str, protocol: Any) -> Deferred[Any]:
            self.assertEqual((purpose, endpoint), ("filter", SOCKET))
            opening.append(Deferred())
            return opening[-1]

        self.patch(ground.surroundings.doors, "service_connect", service_connect)
        policy = Milter(MilterSettings(socket=SOCKET, on_failure="reject"), ground.surroundings)
        ground.house = House((policy,))
        ground.reception = ground.house.intake.reception(ground.house.tenure, sample_peers()[0])
        self.assertIsNone(ground.wait(ground.reception.connected(), 10.0))
        answer = ground.reception.mail(address("a@example.net"), {})
        ground.clock.advance(9.999)
        self.assertNoResult(answer)
        self.assertEqual(ground.wait(answer, 0.001).code, 550)
        self.assertEqual(len(opening), 2)

    def test_more_time(self) -> None:
        """A filter that says that it works on gets its time anew."""
        ground = Ground(MemoryFilter(E=b""))
        ground.connect()
        ground.envelope()
        ground.wait(ground.reception.data())
        ground.wait(ground.reception.chunk(MESSAGE))
        answer = ground.reception.end(None)
        for _ in range(20):
            ground.clock.advance(0)
        ground.clock.advance(49)
        transport: Any = ground.end.transport
        transport.write(said(b"p"))
        ground.clock.advance(0)
        ground.clock.advance(49)
        self.assertNoResult(answer)
        transport.write(CONTINUE)
        self.assertEqual(ground.wait(answer).code, 250)
        self.assertEqual(ground.lines(), [])

    def test_nonsense(self) -> None:
        """Something that is no filter is told by name, neutralised, and never asked twice a message."""
        ground = Ground()
        ground.filter.negotiation = b"220 mx\x1b.example.org ESMTP\r\n"
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertIn("the filter broke its protocol", ground.lines()[0])
        ground.filter.negotiation = said(b"O", struct.pack(">3I", 6, 0x10, 0))
        self.assertEqual(codes(ground.envelope())[0], 451)

    def test_needs_more_than_we_offer(self) -> None:
        """A filter that insists on changing fields is refused, and the log says what it wants."""
        ground = Ground()
        ground.filter.negotiation = said(b"O", struct.pack(">3I", 6, 0x11, 0))
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertIn("wants what was not offered: CHANGE_HEADER", ground.lines()[0])


class EndTests(SynchronousTestCase):
    def test_a_client_that_goes(self) -> None:
        """Whenever a client goes, waiting or not, its connection to the filter goes too, unlogged."""
        for letter in "CHMRTLNBE":
            ground = Ground(MemoryFilter(**{letter: b""}))
            house = ground.house
            reception = house.intake.reception(house.tenure, sample_peers()[0])
            steps = (
                lambda r=reception: r.connected(),
                lambda r=reception: r.helo(b"x", "ESMTP"),
                lambda r=reception: r.mail(address("a@example.net"), {}),
                lambda r=reception: r.rcpt(address("b@example.com"), {}),
                lambda r=reception: r.data(),
                lambda r=reception: r.chunk(MESSAGE),
                lambda r=reception: r.end(None),
            )
            for step in steps:
                answer = step()
                for _ in range(20):
                    ground.clock.advance(0)
                if isinstance(answer, Deferred):
                    answer.addErrback(lambda failure: None)
                    if not answer.called:
                        break
            reception.closed("DATA", "")
            ground.clock.advance(0)
            ground.clock.advance(QUIT_SECONDS)
            self.assertEqual((ground.filter.open_ends, ground.lines()), (0, []), letter)
            self.assertEqual(ground.clock.reactor.getDelayedCalls(), [], letter)

    def test_a_filter_that_does_not_hear_the_end(self) -> None:
        """A filter that reads no more is cut off; an association's end waits for nobody."""
        ground = Ground()
        ground.connect()
        connection = ground.reception._association.notes[ground.policy._note]._connection
        transport: Any = connection.transport
        transport.hold = True
        ground.reception.closed("", "")
        ground.clock.advance(QUIT_SECONDS - 0.001)
        self.assertEqual(ground.filter.open_ends, 1)
        ground.clock.advance(0.001)
        ground.clock.advance(0)
        self.assertEqual(ground.filter.open_ends, 0)

    def test_the_end_of_a_tenure(self) -> None:
        """When a tenure ends no connection to a filter is left; with the next one mail flows again."""
        memory = MemoryFilter()
        lab = Lab("ab", spool="log", more=f"policies: [{{policy: milter, socket: '{SOCKET}'}}]\n")
        lab.network.serve_service(SOCKET, memory)
        client = lab.client()
        client.say(b"MAIL FROM:<me@example.net>")
        self.assertEqual(memory.open_ends, 1)
        lab.fail("a", "b")
        lab.advance(QUIT_SECONDS)
        self.assertEqual(memory.open_ends, 0)
        self.assertTrue(lab.send().startswith(b"250"))
        lab.advance(QUIT_SECONDS)
        self.assertEqual((memory.open_ends, len(memory.ends)), (0, 2))

    def test_unasked_transactions(self) -> None:
        """An end of something that it never saw is no matter to it."""
        surroundings = MemorySurroundings()
        policy = Milter(MilterSettings(socket=SOCKET), surroundings)
        transaction = Transaction(Association(sample_peers()[0], admitted=False))
        for hook in ("abort", "disconnect"):
            self.assertIsNone(policy.on(hook, transaction))


class SettingsTests(SynchronousTestCase):
    def test_sockets(self) -> None:
        """A filter's place is written as for Postfix, by address."""
        for text, endpoint in (
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("inet:127.0.0.1:8891", "tcp:127.0.0.1:8891"),
            ("inet:localhost:8891", "tcp:127.0.0.1:8891"),
            ("inet:[2001:db8::1]:8891", "tcp:[2001:db8::1]:8891"),
        ):
            self.assertEqual(MilterSettings(socket=text).socket, endpoint)

    def test_no_sockets(self) -> None:
        """What is none is said with what to write."""
        for text in (
            "",
            "/run/x",
            "unix:x",
            "unix:/" + "x" * 107,
            "inet:8891",
            "inet:a.b:1",
            "inet:127.0.0.1:0",
        ):
            with self.assertRaises(ValidationError) as caught:
                MilterSettings(socket=text)
            self.assertIn("write unix:/run/opendkim/opendkim.sock", str(caught.exception))

    def test_defaults(self) -> None:
        """Unless told otherwise, what is not filtered waits."""
        self.assertEqual(MilterSettings(socket=SOCKET).on_failure, "tempfail")
