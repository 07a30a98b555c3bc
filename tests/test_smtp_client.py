"""The initiator's machine: its table, and one outcome for each recipient whatever the peer does."""

from base64 import b64encode

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import LocalProtocolError
from mta.model import NULL_ADDRESS, Address, OutcomeKind, Reply
from mta.wire.sasl_client import Credentials
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_auth import Authentication
from mta.wire.smtp.client_states import (
    TABLE,
    Class,
    Committed,
    Ended,
    Event,
    NotSent,
    Opened,
    Phase,
    Prepared,
    Refused,
    Secrecy,
    StartTls,
    State,
    Timeouts,
    Wait,
    Withdrawn,
)
from mta.wire.smtp.events import Chunk, Data, End, Helo, Mail, Rcpt
from mta.wire.smtp.server import Responder
from mta.wire.smtp.states import Role

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)
ALICE = Address(b"alice@example.com", b"example.com")
BOB = Address(b"bob@example.org", b"example.org")
CAROL = Address(b"carol@example.org", b"example.org")
HELLO = b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 1000\r\n"
SAID = {
    Class.POSITIVE: b"250 2.0.0 Ok\r\n",
    Class.INTERMEDIATE: b"354 Go on\r\n",
    Class.TRANSIENT: b"450 4.2.1 Later\r\n",
    Class.PERMANENT: b"550 5.1.1 No\r\n",
    Class.CLOSING: b"421 4.3.2 Bye\r\n",
}

CREDENTIALS = Credentials("user", "pencil", b"rOprNGfwEb")
AUTHENTICATION = {
    State.AUTH: Authentication(CREDENTIALS, ("LOGIN",), plaintext=True),
    State.DERIVING: Authentication(CREDENTIALS, ("SCRAM-SHA-256",), plaintext=True),
}


def initiator(state: State = State.OPEN, hello: bytes = HELLO, role: Role = Role.SMTP) -> Initiator:
    """A machine that was led into `state`, with nothing left to say."""
    securing = state in {State.STARTTLS, State.HANDSHAKE}
    secrecy = Secrecy.IF_OFFERED if securing else Secrecy.NEVER
    authentication = AUTHENTICATION.get(state)
    machine = Initiator(
        b"bridgehead.example.org", role, secrecy=secrecy, authentication=authentication
    )
    if state is State.GREETING:
        return machine
    machine.receive(b"220 mx ESMTP\r\n")
    if securing:
        machine.receive(b"250-mx\r\n250 STARTTLS\r\n")
        if state is State.HANDSHAKE:
            machine.receive(b"220 Go\r\n")
        machine.take_output()
        assert machine.state is state
        return machine
    if authentication is not None:
        machine.receive(b"250-mx\r\n250 AUTH LOGIN SCRAM-SHA-256\r\n")
        if state is State.DERIVING:
            machine.receive(b"334 %b\r\n" % b64encode(b"r=rOprNGfwEbx,s=c2FsdA==,i=4096"))
    elif state is State.HELO:
        machine.receive(b"502 What\r\n")
    elif state is not State.HELLO:
        machine.receive(hello)
    if state is State.QUITTING:
        machine.quit()
    machine.take_output()
    assert machine.state is state
    return machine


def prepared(*recipients: Address, role: Role = Role.SMTP) -> Initiator:
    """A machine with message "1" behind 354."""
    machine = initiator(role=role)
    machine.prepare("1", ALICE, list(enumerate(recipients)), 100, False)
    machine.receive(b"250 Ok\r\n" * (1 + len(recipients)) + b"354 Go on\r\n")
    machine.take_output()
    return machine


class TableTests(SynchronousTestCase):
    def test_states_by_classes_of_reply(self) -> None:
        """Every class of reply in every state does what the table says; what the table is silent
        on ends the association.
        """
        for state in State:
            if state is State.ENDED:
                continue
            for klass, text in SAID.items():
                machine = initiator(state)
                if state is State.OPEN:
                    machine.prepare("1", ALICE, [(0, BOB)], 10, False)
                if (state, klass) == (State.AUTH, Class.INTERMEDIATE):
                    text = b"334 VXNlcm5hbWU6\r\n"
                events = machine.receive(text)
                row = TABLE.get((state, klass))
                if row is None or (state, klass) == (State.OPEN, Class.INTERMEDIATE):
                    self.assertIsInstance(events[-1], Ended, (state, klass))
                    self.assertIs(machine.state, State.ENDED)
                else:
                    self.assertIs(machine.state, row.after, (state, klass))

    def test_tls_first(self) -> None:
        """STARTTLS where it is offered; then EHLO anew, and what was announced before is void."""
        machine = initiator(State.STARTTLS)
        self.assertIn(b"STARTTLS", machine.extensions)
        self.assertEqual(machine.receive(b"220 2.0.0 Go\r\n"), [StartTls()])
        self.assertEqual(machine.timeout, (Wait.HANDSHAKE, 300.0))
        machine.secured()
        self.assertEqual(machine.take_output(), b"EHLO bridgehead.example.org\r\n")
        self.assertEqual((machine.extensions, machine.is_secure), ({}, True))
        self.assertEqual(machine.receive(b"250-mx\r\n250 STARTTLS\r\n"), [Opened()])
        self.assertEqual(machine.take_output(), b"")

    def test_hard_detail_04_response_injection(self) -> None:
        """Hard detail 4: what stands behind the 220 to STARTTLS is never taken for a reply under
        TLS: the association ends, whether it came with the 220 or in two pieces.
        """
        for injected in (b"250-mx\r\n250 AUTH PLAIN\r\n", b"2", b"\r\n"):
            machine = initiator(State.STARTTLS)
            (ended,) = machine.receive(b"220 Go\r\n" + injected)
            self.assertIsInstance(ended, Ended)
            self.assertIn("spoke behind", ended.reason)

    def test_no_tls(self) -> None:
        """Refused or not offered: plainly where TLS is a wish, not at all where it is a must; and
        that is for now only, for the message is not at fault.
        """
        hello, refusal = b"250-mx\r\n250 STARTTLS\r\n", b"454 4.7.0 No TLS today\r\n"
        for secrecy, said, opens in (
            (Secrecy.IF_OFFERED, [HELLO], True),
            (Secrecy.IF_OFFERED, [hello, refusal], True),
            (Secrecy.ALWAYS, [HELLO], False),
            (Secrecy.ALWAYS, [hello, refusal], False),
            (Secrecy.ALWAYS, [b"502 What\r\n", b"250 mx\r\n"], False),
        ):
            machine = Initiator(b"me.example", secrecy=secrecy)
            machine.receive(b"220 mx ESMTP\r\n")
            for octets in said:
                events = machine.receive(octets)
            if opens:
                self.assertEqual(events, [Opened()])
                continue
            refused, ended = events
            self.assertEqual((refused.reply.code, refused.reply.enhanced), (450, "4.7.4"))
            self.assertIsInstance(ended, Ended)

    def test_a_refused_association_says_so(self) -> None:
        """Hard detail 14: a 554 greeting is a refusal of this server and no verdict on mail."""
        for text in (b"554 5.7.1 No\r\n", b"450 4.3.2 Later\r\n", b"421 4.3.2 Bye\r\n"):
            refused, ended = initiator(State.GREETING).receive(text)
            self.assertIsInstance(refused, Refused)
            self.assertEqual(ended, Ended(refused.reply.text, True))

    def test_helo_announces_nothing(self) -> None:
        """Behind HELO no extension is used, even where its reply has lines that look like some."""
        machine = initiator(State.HELO)
        self.assertEqual(machine.receive(HELLO), [Opened()])
        self.assertEqual((machine.extensions, machine.pipelines), ({}, False))
        self.assertEqual(machine.prepare("1", ALICE, [(0, BOB)], 5000, False), [])
        self.assertEqual(machine.take_output(), b"MAIL FROM:<alice@example.com>\r\n")

    def test_octets_behind_the_end(self) -> None:
        """A peer that talks on behind the end of the association fills no buffer."""
        machine = initiator(State.QUITTING)
        machine.receive(b"221 Bye\r\n")
        for _ in range(100):
            machine.receive(b"250-x\r\n" * 1000)
        self.assertTrue(machine._reader.is_clean)

    def test_after_the_end(self) -> None:
        """What ended is not spoken to: prepare says so, octets are not looked at."""
        machine = initiator()
        machine.connection_lost()
        self.assertEqual(machine.receive(b"250 Ok\r\n"), [])
        (event,) = machine.prepare("1", ALICE, [(0, BOB)], 10, False)
        self.assertIsInstance(event, NotSent)
        self.assertEqual(machine.take_output(), b"")
        self.assertEqual(machine.connection_lost(), [])
        self.assertEqual(machine.quit(), [])

    def test_misuse(self) -> None:
        """An adapter that sends content before 354 or a second dot is told so at once."""
        self.assertRaises(LocalProtocolError, initiator().content, b"x\r\n")
        self.assertRaises(LocalProtocolError, initiator().finish)
        machine = prepared(BOB)
        machine.finish()
        self.assertRaises(LocalProtocolError, machine.finish)
        self.assertRaises(LocalProtocolError, machine.content, b"x\r\n")
        machine.prepare("2", ALICE, [(0, BOB)], 10, False)
        self.assertRaises(LocalProtocolError, machine.prepare, "3", ALICE, [(0, BOB)], 10, False)

    def test_no_command_can_be_smuggled(self) -> None:
        """An address with a line end never reaches the wire, wherever it came from."""
        evil = Address(b"a@x.org>\r\nRSET\r\nMAIL FROM:<b@x.org", b"x.org")
        machine = initiator()
        self.assertRaises(LocalProtocolError, machine.prepare, "1", evil, [(0, BOB)], 10, False)
        self.assertEqual(machine.take_output(), b"")


class TimeoutTests(SynchronousTestCase):
    """Hard detail 11: RFC 5321 4.5.3.2."""

    def test_hard_detail_11_each_wait_has_its_own_time(self) -> None:
        """5 minutes for greeting, MAIL and RCPT, 2 for DATA, 3 for a block, 10 for the final dot."""
        machine = Initiator(b"x")
        seen = [machine.timeout]
        machine.receive(b"220 x\r\n")
        seen.append(machine.timeout)
        machine.receive(b"250 x\r\n")
        self.assertIsNone(machine.timeout)
        machine.prepare("1", ALICE, [(0, BOB)], 10, False)
        for text in (b"250 Ok\r\n", b"250 Ok\r\n", b"354 Go\r\n"):
            seen.append(machine.timeout)
            machine.receive(text)
        self.assertIsNone(machine.timeout)
        machine.content(b"x\r\n")
        seen.append(machine.timeout)
        machine.finish()
        seen.append(machine.timeout)
        self.assertEqual(
            seen,
            [
                (Wait.GREETING, 300.0),
                (Wait.HELLO, 300.0),
                (Wait.MAIL, 300.0),
                (Wait.RCPT, 300.0),
                (Wait.DATA, 120.0),
                (Wait.CONTENT, 180.0),
                (Wait.DOT, 600.0),
            ],
        )

    def test_every_wait_has_a_time(self) -> None:
        """No wait is without end."""
        self.assertEqual(set(Timeouts().by_wait()), set(Wait))

    def test_expiry_before_the_dot(self) -> None:
        """Time that runs out before the dot means not sent; after it, in doubt."""
        machine = prepared(BOB)
        machine.content(b"x\r\n")
        committed, _ = machine.expire()
        self.assertIs(committed.outcomes[0].kind, OutcomeKind.DEFERRED)
        machine = prepared(BOB)
        machine.finish()
        committed, _ = machine.expire()
        self.assertIs(committed.outcomes[0].kind, OutcomeKind.UNKNOWN)
        self.assertEqual(machine.expire(), [])


class Dialogue:
    """A client machine and a server machine back to back, with pieces of any size between."""

    def __init__(self, role: Role, cut: int, refuse: frozenset[bytes] = frozenset()) -> None:
        self.server = Responder(b"mx.example.org", role)
        self.client = Initiator(b"bridgehead.example.org", role)
        self.cut = cut
        self.refuse = refuse
        self.taken: list[tuple[bytes, list[bytes], bytes]] = []
        self.events: list = []
        self.server.greet()
        self.run()

    def run(self) -> list:
        """Carry octets until both are silent; the client's events since the last time."""
        while True:
            to_client, to_server = self.server.take_output(), self.client.take_output()
            if not to_client and not to_server:
                events, self.events = self.events, []
                return events
            for at in range(0, len(to_client), self.cut):
                self.events += self.client.receive(to_client[at : at + self.cut])
            for at in range(0, len(to_server), self.cut):
                self.serve(to_server[at : at + self.cut])

    def serve(self, data: bytes) -> None:
        server = self.server
        server.receive(data)
        while (event := server.next_event()) is not None:
            match event:
                case Mail(sender):
                    self.present = (sender.text, [], [])
                case Rcpt(recipient) if recipient.text in self.refuse:
                    server.answer(Reply(550, "5.1.1", (b"No",)))
                    continue
                case Rcpt(recipient):
                    self.present[1].append(recipient.text)
                case Chunk(data):
                    self.present[2].append(data)
                    continue
                case End():
                    sender, recipients, chunks = self.present
                    self.taken.append((sender, recipients, b"".join(chunks)))
            if isinstance(event, Helo | Mail | Rcpt | Data | End):
                server.answer(None)


LINES = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"x" * 90, b"hello"]), max_size=6)


OK, GO_ON = SAID[Class.POSITIVE], SAID[Class.INTERMEDIATE]


def hear(machine: Initiator, data: bytes, size: int) -> list[Event]:
    """What the machine makes of `data` in pieces of `size` octets."""
    return [e for at in range(0, len(data), size) for e in machine.receive(data[at : at + size])]


class BackToBackTests(SynchronousTestCase):
    @LIGHT
    @given(st.lists(LINES, min_size=1, max_size=4), st.integers(1, 60), st.sampled_from(list(Role)))
    def test_what_is_sent_arrives(self, bodies: list[list[bytes]], cut: int, role: Role) -> None:
        """Messages sent one behind the other, overlapped, arrive as they were, for whom they were,
        however TCP cuts them, over SMTP and LMTP.
        """
        dialogue = Dialogue(role, cut, frozenset((CAROL.text,)))
        client = dialogue.client
        self.assertIs(client.state, State.OPEN)
        wires = [
            b"".join(b"." * line.startswith(b".") + line + b"\r\n" for line in b) for b in bodies
        ]
        client.prepare("0", ALICE, [(0, BOB), (1, CAROL), (2, ALICE)], 100, False)
        for number, wire in enumerate(wires):
            *_, event = dialogue.run()
            self.assertEqual(type(event), Prepared)
            self.assertEqual([o.recipient for o in event.outcomes], [1])
            for at in range(0, len(wire), 7):
                client.content(wire[at : at + 7])
            client.finish()
            if number + 1 < len(wires):
                client.prepare("n", ALICE, [(0, BOB), (1, CAROL), (2, ALICE)], 100, False)
        events = dialogue.run()
        self.assertEqual({o.kind for o in events[-1].outcomes}, {OutcomeKind.DELIVERED})
        expected = [(ALICE.text, [BOB.text, ALICE.text], wire) for wire in wires]
        self.assertEqual(dialogue.taken, expected)
        client.quit()
        self.assertEqual([type(e) for e in dialogue.run()], [Ended])

    @LIGHT
    @given(st.binary(max_size=100), st.integers(1, 30), st.integers(1, 30))
    def test_opaque_content_arrives(self, text: bytes, piece: int, cut: int) -> None:
        """Hard details 1 and 2 outwards: opaque octets are normalised, stuffed, and one message."""
        text = text.replace(b"\0", b"")
        dialogue = Dialogue(Role.SMTP, cut)
        client = dialogue.client
        client.prepare("1", ALICE, [(0, BOB)], 100, False)
        dialogue.run()
        for at in range(0, len(text), piece):
            client.content(text[at : at + piece], opaque=True)
        client.finish()
        (event,) = dialogue.run()
        self.assertIs(event.outcomes[0].kind, OutcomeKind.DELIVERED)
        self.assertEqual(len(dialogue.taken), 1)

    def test_one_round_trip_a_message(self) -> None:
        """With PIPELINING body, dot and the next envelope are one piece."""
        machine = prepared(BOB)
        machine.content(b"x\r\n")
        machine.finish()
        machine.prepare("2", NULL_ADDRESS, [(0, BOB)], 10, True)
        self.assertEqual(
            machine.take_output(),
            b"x\r\n.\r\nMAIL FROM:<> SIZE=10 BODY=8BITMIME\r\n"
            b"RCPT TO:<bob@example.org>\r\nDATA\r\n",
        )

    def test_nothing_of_the_next_before_the_dot(self) -> None:
        """The next envelope waits while content is under way."""
        machine = prepared(BOB)
        machine.content(b"x\r\n")
        machine.prepare("2", ALICE, [(0, BOB)], 10, False)
        self.assertEqual(machine.take_output(), b"x\r\n")
        machine.finish()
        self.assertTrue(machine.take_output().startswith(b".\r\nMAIL FROM:"))

    def test_the_dot_stands_alone(self) -> None:
        """A content that lacks its last CRLF cannot hide the final dot."""
        machine = prepared(BOB)
        machine.content(b"x")
        machine.finish()
        self.assertEqual(machine.take_output(), b"x\r\n.\r\n")

    @LIGHT
    @given(
        st.lists(
            st.sampled_from((OK, GO_ON, b"550 5.1.1 No\r\n", b"452 4.5.3 Full\r\n")), max_size=5
        ),
        st.booleans(),
    )
    @example([OK, OK, OK, GO_ON], False)
    @example([OK, OK, OK, GO_ON], True)
    @example([OK, OK, b"550 5.1.1 No\r\n", GO_ON], False)
    @example([OK, OK, OK, GO_ON, OK], False)
    def test_known_replies(self, said: list[bytes], is_withdrawn: bool) -> None:
        """A peer that says the same in one piece each time is understood as if each octet came
        alone, whether that is what it should say or not.
        """
        heard = []
        for size in (1, 1000):
            machine, events = initiator(), []
            for tag in "ABCD":
                if not machine.is_idle:
                    break
                events += machine.prepare(tag, ALICE, [(0, BOB), (1, CAROL)], 5, False)
                if is_withdrawn and tag == "D":
                    events += machine.withdraw()
                events += hear(machine, b"".join(said), size)
                is_prepared = any(type(e) is Prepared and e.tag == tag for e in events)
                if is_prepared and machine.is_preparing:
                    machine.content(b"x\r\n")
                    machine.finish()
                    events += hear(machine, OK, size)
            heard.append((events, machine.take_output(), machine.replies_read, machine.state))
        self.assertEqual(*heard)


class OutcomeTests(SynchronousTestCase):
    def test_hard_detail_12_a_lost_connection_at_every_octet(self) -> None:
        """Dropped at any octet of the peer's replies, each recipient has exactly one outcome; it is
        UNKNOWN only after the dot.
        """
        greetings = b"220 x\r\n" + HELLO
        replies = greetings + b"250 Ok\r\n250 Ok\r\n550 5.1.1 No\r\n354 Go\r\n250 Ok\r\n"
        for at in range(len(replies) + 1):
            settled, is_dotted = self.dropped_behind(replies[:at])
            if at < len(greetings):
                self.assertEqual(settled, {})
            elif at == len(replies):
                self.assertEqual(settled[0], OutcomeKind.DELIVERED)
            else:
                expected = OutcomeKind.UNKNOWN if is_dotted else OutcomeKind.DEFERRED
                self.assertEqual((settled[0], set(settled)), (expected, {0, 1}), at)

    def dropped_behind(self, replies: bytes) -> tuple[dict[int, OutcomeKind], bool]:
        """The outcomes when the peer says `replies` and is gone, and whether the dot had left."""
        machine = Initiator(b"x")
        settled: dict[int, OutcomeKind] = {}
        is_dotted = False
        queue: list = []
        for octet in [*replies, None]:
            queue += (
                machine.connection_lost() if octet is None else machine.receive(bytes((octet,)))
            )
            while queue:
                event = queue.pop(0)
                if isinstance(event, Opened):
                    queue += machine.prepare("1", ALICE, [(0, BOB), (1, CAROL)], 10, False)
                elif isinstance(event, NotSent):
                    settled |= {0: OutcomeKind.DEFERRED, 1: OutcomeKind.DEFERRED}
                elif isinstance(event, Prepared | Committed):
                    for outcome in event.outcomes:
                        self.assertNotIn(outcome.recipient, settled)
                        settled[outcome.recipient] = outcome.kind
                    if isinstance(event, Prepared) and machine.state is State.OPEN:
                        machine.content(b"x\r\n")
                        machine.finish()
                        is_dotted = True
        self.assertIs(machine.state, State.ENDED)
        return settled, is_dotted

    def test_hard_detail_14_421_at_every_reply(self) -> None:
        """A 421 in place of any reply ends the association with one outcome for each recipient."""
        good = [b"250 Ok\r\n", b"250 Ok\r\n", b"250 Ok\r\n", b"354 Go\r\n", b"250 Ok\r\n"]
        for at in range(len(good)):
            machine = initiator()
            machine.prepare("1", ALICE, [(0, BOB), (1, CAROL)], 10, False)
            events: list = []
            for text in [*good[:at], b"421 4.3.2 Bye\r\n"]:
                events += machine.receive(text)
                if isinstance(events[-1:] and events[-1], Prepared):
                    machine.finish()
            self.assertIsInstance(events[-1], Ended)
            kinds = [type(e) for e in events]
            self.assertEqual(kinds.count(NotSent) + kinds.count(Committed), 1)
            if Committed in kinds:
                outcomes = events[kinds.index(Committed)].outcomes
                self.assertEqual([o.kind for o in outcomes], [OutcomeKind.DEFERRED] * 2)

    def test_hard_detail_13_lmtp_settles_each(self) -> None:
        """LMTP replies settle recipient by recipient; 421 answers one and leaves the rest in doubt."""
        machine = prepared(BOB, CAROL, ALICE, role=Role.LMTP)
        machine.finish()
        self.assertEqual(machine.receive(b"250 Ok\r\n"), [])
        committed, _ = machine.receive(b"421 4.3.2 Bye\r\n")
        self.assertEqual(
            [o.kind for o in committed.outcomes],
            [OutcomeKind.DELIVERED, OutcomeKind.DEFERRED, OutcomeKind.UNKNOWN],
        )

    def test_hard_detail_9_null_sender(self) -> None:
        """A report leaves with the null reverse-path."""
        machine = initiator()
        machine.prepare("1", NULL_ADDRESS, [(0, BOB)], 10, False)
        self.assertTrue(machine.take_output().startswith(b"MAIL FROM:<> SIZE=10\r\n"))

    def test_withdrawn_phases(self) -> None:
        """Withdrawing answers in every phase, and never lets a message go."""
        machine = initiator()
        self.assertEqual(machine.withdraw(), [])
        machine.prepare("1", ALICE, [(0, BOB)], 10, False)
        self.assertEqual(machine.withdraw(), [])
        events = machine.receive(b"250 Ok\r\n250 Ok\r\n354 Go\r\n")
        self.assertEqual([type(e) for e in events], [Withdrawn, Ended])
        self.assertNotIn(b".\r\n", machine.take_output())
        self.assertEqual([type(e) for e in prepared(BOB).withdraw()], [Withdrawn, Ended])

    def test_phases_are_told_apart(self) -> None:
        """A transaction's phases are five, in their order."""
        self.assertEqual(
            [phase.value for phase in Phase],
            ["preparing", "prepared", "sending", "in doubt", "settled"],
        )
