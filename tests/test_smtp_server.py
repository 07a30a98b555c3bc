"""The responder's machine: its table, its order, its limits."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import LocalProtocolError
from mta.model import Reply
from mta.wire.smtp.events import (
    Auth,
    AuthResponse,
    Chunk,
    Data,
    End,
    Helo,
    Mail,
    Quit,
    Rcpt,
    Rejected,
    Reset,
    StartTls,
)
from mta.wire.smtp.limits import COMMAND_LIMIT, Limits
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_auth import AuthTerms
from mta.wire.smtp.server_chunks import ChunkingResponder
from mta.wire.smtp.states import OUT_OF_PLACE, TABLE, Role, Security, State, Verb

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)
TO_ANSWER = (Helo, StartTls, Auth, AuthResponse, Mail, Rcpt, Data, End)
SAID = {
    Verb.HELO: b"HELO x",
    Verb.EHLO: b"EHLO x",
    Verb.LHLO: b"LHLO x",
    Verb.MAIL: b"MAIL FROM:<a@example.com>",
    Verb.RCPT: b"RCPT TO:<b@example.org>",
    Verb.DATA: b"DATA",
    Verb.BDAT: b"BDAT 0",
    Verb.STARTTLS: b"STARTTLS",
    Verb.AUTH: b"AUTH PLAIN AGEAYg==",
    Verb.RSET: b"RSET",
    Verb.NOOP: b"NOOP",
    Verb.VRFY: b"VRFY b",
    Verb.EXPN: b"EXPN b",
    Verb.HELP: b"HELP",
    Verb.QUIT: b"QUIT",
}
WAY = {
    State.START: [],
    State.IDLE: [Verb.EHLO],
    State.MAIL: [Verb.EHLO, Verb.MAIL],
    State.RECIPIENTS: [Verb.EHLO, Verb.MAIL, Verb.RCPT],
    State.CONTENT: [Verb.EHLO, Verb.MAIL, Verb.RCPT, Verb.DATA],
    State.KNOWN: [Verb.EHLO, Verb.REPEAT],
    State.CHUNKS: [Verb.EHLO, Verb.MAIL, Verb.RCPT, Verb.BDAT],
    State.FAILED: [Verb.EHLO, Verb.MAIL, Verb.BDAT],
}
COMMANDED = (State.START, *(state for state in WAY if state not in (State.START, State.CONTENT)))
"""The states in which commands are heard."""
KNOWN = Reply(355, "", (b"120 is the transaction offset",))


def responder(state: State = State.START, role: Role = Role.SMTP, **limits: int) -> Responder:
    """A machine that was led into `state`, with nothing left to say."""
    machine = ChunkingResponder(
        b"mx.example.org",
        role,
        Limits(**limits),
        security=Security.OFFERED,
        auth=AuthTerms(("PLAIN", "LOGIN"), in_clear=True),
    )
    if state is State.GREETING:
        return machine
    machine.greet()
    for verb in WAY[state]:
        verb = Verb.LHLO if verb is Verb.EHLO and role is Role.LMTP else verb
        if verb is Verb.REPEAT:
            say(machine, SAID[Verb.MAIL] + b"\r\n", {Mail: KNOWN})
        else:
            say(machine, SAID[verb] + b"\r\n")
    machine.take_output()
    assert machine.state is state
    return machine


def say(machine: Responder, data: bytes, answers: dict[type, Reply] | None = None) -> list:
    """Feed octets, answer every question at once; the events."""
    machine.receive(data)
    events = []
    while (event := machine.next_event()) is not None:
        events.append(event)
        if isinstance(event, TO_ANSWER):
            machine.answer((answers or {}).get(type(event)))
    return events


class TableTests(SynchronousTestCase):
    def test_states_by_inputs(self) -> None:
        """Every command in every state does what the table says, and is refused in words where
        the table is silent.
        """
        for state in COMMANDED:
            for verb, text in SAID.items():
                role = Role.LMTP if verb is Verb.LHLO else Role.SMTP
                machine = responder(state, role)
                say(machine, text + b"\r\n")
                row = TABLE.get((state, verb))
                code = int(machine.take_output()[:3])
                if row is None:
                    self.assertEqual(code, OUT_OF_PLACE[state, verb].code)
                    begun = verb is Verb.BDAT and state is State.MAIL  # a chunk failed
                    self.assertIs(machine.state, State.FAILED if begun else state, (state, verb))
                elif verb is Verb.BDAT:  # an empty chunk has ended already
                    self.assertEqual((code, row.after), (250, State.CHUNK))
                    self.assertIs(machine.state, TABLE[State.CHUNK, Verb.CHUNK].after)
                elif verb is Verb.EXPN:
                    self.assertEqual((code, machine.state), (502, state))
                else:
                    self.assertLess(code, 400, (state, verb))
                    self.assertIs(machine.state, row.after, (state, verb))

    def test_states_that_hear_no_commands(self) -> None:
        """Before the greeting and after the end nothing is heard; behind 354 a command is text."""
        for verb, text in SAID.items():
            for state in (State.GREETING, State.CLOSED):
                machine = responder(State.START if state is State.CLOSED else state)
                if state is State.CLOSED:
                    say(machine, b"QUIT\r\n")
                    machine.take_output()
                self.assertEqual(say(machine, text + b"\r\n"), [], (state, verb))
                self.assertIs(machine.state, state)
                self.assertEqual(machine.take_output(), b"")
                self.assertEqual({key for key in TABLE if key[0] is state}, set())
            machine = responder(State.CONTENT)
            (chunk,) = say(machine, text + b"\r\nx")
            self.assertTrue(chunk.data.startswith(text))
            self.assertIs(machine.state, State.CONTENT)
        rows = {verb for state, verb in TABLE if state is State.CONTENT}
        self.assertEqual(rows, {Verb.END})

    def test_starttls(self) -> None:
        """Behind 220 nothing is SMTP until TLS is there; then all is forgotten, and STARTTLS is
        neither offered nor taken again.
        """
        machine = responder(State.IDLE)
        (event,) = say(machine, b"STARTTLS\r\n")
        self.assertEqual(event, StartTls())
        self.assertEqual(machine.take_output(), b"220 2.0.0 Ready to start TLS\r\n")
        self.assertIs(machine.state, State.HANDSHAKE)
        self.assertRaises(LocalProtocolError, machine.receive, b"\x16\x03\x01")
        machine.secured()
        self.assertEqual((machine.state, machine.helo), (State.START, b""))
        say(machine, b"MAIL FROM:<a@example.com>\r\n")
        self.assertTrue(machine.take_output().startswith(b"503"))
        say(machine, b"EHLO x\r\nSTARTTLS\r\n")
        said = machine.take_output()
        self.assertNotIn(b"STARTTLS", said)
        self.assertIn(b"502 5.5.1", said)
        self.assertEqual(machine.protocol, "ESMTPS")

    def test_hard_detail_04_command_injection(self) -> None:
        """Hard detail 4: commands that somebody put behind STARTTLS are never run, under TLS least
        of all: the association ends with 421.
        """
        for behind in (b"R", b"RSET\r\n", b"EHLO evil\r\nMAIL FROM:<a@example.com>\r\n"):
            machine = responder(State.IDLE)
            events = say(machine, b"STARTTLS\r\n" + behind)
            self.assertEqual([type(e) for e in events], [Rejected, Quit])
            self.assertTrue(machine.take_output().startswith(b"421 5.5.1"))
            self.assertIs(machine.state, State.CLOSED)

    def test_tls_is_a_must(self) -> None:
        """Where it is required MAIL waits for it: 530."""
        machine = Responder(b"mx.example.org", security=Security.REQUIRED)
        machine.greet()
        say(machine, b"EHLO x\r\nMAIL FROM:<a@example.com>\r\n")
        said = machine.take_output()
        self.assertIn(b"250-STARTTLS\r\n", said)
        self.assertIn(b"530 5.7.0 Say STARTTLS first", said)
        say(machine, b"STARTTLS\r\n")
        machine.secured()
        machine.take_output()
        say(machine, b"EHLO x\r\nMAIL FROM:<a@example.com>\r\n")
        self.assertIn(b"250 2.1.0 Ok", machine.take_output())

    def test_a_refusal_changes_nothing(self) -> None:
        """What a hook refuses leaves the state as it was."""
        no = Reply(550, "5.7.1", (b"No",))
        for state, verb, event in (
            (State.START, Verb.EHLO, Helo),
            (State.IDLE, Verb.MAIL, Mail),
            (State.MAIL, Verb.RCPT, Rcpt),
            (State.RECIPIENTS, Verb.RCPT, Rcpt),
            (State.RECIPIENTS, Verb.DATA, Data),
        ):
            machine = responder(state)
            say(machine, SAID[verb] + b"\r\n", {event: no})
            self.assertEqual(machine.take_output(), b"550 5.7.1 No\r\n")
            self.assertIs(machine.state, state)

    def test_nothing_is_read_before_the_greeting(self) -> None:
        """A peer that talks first waits for the greeting; a refused one is not heard at all."""
        machine = responder(State.GREETING)
        machine.receive(b"EHLO x\r\n")
        self.assertIsNone(machine.next_event())
        machine.greet(Reply(554, "5.7.1", (b"No",)))
        self.assertEqual(machine.next_event(), Quit(False))
        self.assertIsNone(machine.next_event())
        self.assertEqual(machine.take_output(), b"554 5.7.1 No\r\n")

    def test_vrfy(self) -> None:
        """It never tells who exists, and where it is not wanted it is no command."""
        for limits, code in ((Limits(), b"252"), (Limits(vrfy=False), b"502")):
            machine = Responder(b"mx.example.org", limits=limits)
            machine.greet()
            machine.take_output()
            say(machine, b"VRFY postmaster\r\n")
            self.assertEqual(machine.take_output()[:3], code)

    def test_early_talkers(self) -> None:
        """Where it is asked for, a peer that talks first hears a refusal in place of the greeting,
        and the log hears of it; one that waits is greeted.
        """
        for data, greeted in ((b"E", False), (b"", True)):
            machine = Responder(b"mx.example.org", limits=Limits(refuse_early=True))
            machine.receive(data)
            machine.greet()
            self.assertIs(machine.take_output().startswith(b"220"), greeted)
            rejected = machine.next_event()
            if greeted:
                self.assertIsNone(rejected)
            else:
                self.assertEqual((rejected.stage, rejected.reply.code), ("CONNECT", 554))
                self.assertEqual(machine.next_event(), Quit(False))

    def test_every_row_has_its_state_and_verb(self) -> None:
        """The table holds no state that cannot be reached and leaves none without a way out."""
        self.assertEqual({row.after for row in TABLE.values()}, set(State))
        for state in COMMANDED:
            for verb in SAID:
                self.assertTrue(((state, verb) in TABLE) is not ((state, verb) in OUT_OF_PLACE))


class OrderTests(SynchronousTestCase):
    """Hard detail 5: ordered replies with asynchronous hooks."""

    GROUP = (
        b"EHLO x\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nRCPT TO:<c@x.org>\r\nNOOP\r\n"
        b"DATA\r\nhello\r\n.\r\nMAIL FROM:<d@x.org>\r\nRSET\r\nVRFY x\r\nQUIT\r\n"
    )

    def test_hard_detail_5_one_question_at_a_time(self) -> None:
        """The next command is not handed out before the present one is answered."""
        machine = responder()
        machine.receive(self.GROUP)
        self.assertIsInstance(machine.next_event(), Helo)
        for _ in range(3):
            self.assertIsNone(machine.next_event())
        self.assertEqual(machine.take_output(), b"")
        machine.answer(None)
        self.assertIsInstance(machine.next_event(), Mail)

    @LIGHT
    @given(st.lists(st.integers(0, 3), min_size=30, max_size=30), st.integers(1, 90))
    def test_hard_detail_5_replies_in_order_whatever_the_delays(
        self, delays: list[int], octets: int
    ) -> None:
        """With every hook late by a random number of pieces the replies are those of a prompt one."""
        prompt = responder()
        say(prompt, self.GROUP)
        machine = responder()
        output, owed, delay = b"", False, iter(delays * 20)
        fed = [self.GROUP[i : i + octets] for i in range(0, len(self.GROUP), octets)]
        left = 0
        for piece in fed + [b""] * 100:
            machine.receive(piece)
            while True:
                if owed:
                    if left:
                        left -= 1
                        break
                    machine.answer(None)
                    owed = False
                event = machine.next_event()
                if event is None:
                    break
                if isinstance(event, TO_ANSWER):
                    owed, left = True, next(delay)
            output += machine.take_output()
        self.assertEqual(output, prompt.take_output())
        self.assertIs(machine.state, State.CLOSED)

    def test_one_write(self) -> None:
        """The replies of commands that came together leave together; the EHLO reply is one piece."""
        machine = responder()
        say(machine, b"EHLO x\r\n")
        self.assertRegex(machine.take_output(), rb"\A(250-[^\r]+\r\n)+250 [^\r]+\r\n\Z")
        say(machine, b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n")
        self.assertEqual(machine.take_output().count(b"\r\n"), 3)

    def test_misuse(self) -> None:
        """An adapter that answers what was not asked is told so at once."""
        machine = responder(State.IDLE)
        self.assertRaises(LocalProtocolError, machine.answer, None)
        self.assertRaises(LocalProtocolError, machine.greet)
        lmtp = responder(State.CONTENT, Role.LMTP)
        lmtp.receive(b".\r\n")
        self.assertIsInstance(lmtp.next_event(), End)
        self.assertRaises(LocalProtocolError, lmtp.answer_each, [None, None])

    def test_a_fault_cannot_be_accepted(self) -> None:
        """Content with a fault is refused even if the hook had nothing against it."""
        machine = responder(State.CONTENT)
        say(machine, b"a\nb\r\n.\r\n")
        self.assertTrue(machine.take_output().startswith(b"550 5.5.2 "))


class RubbishTests(SynchronousTestCase):
    """Hard detail 3: bare CR, NUL, 8 bits and over-long lines, in commands."""

    def test_hard_detail_3_no_desync_after_rubbish(self) -> None:
        """Whatever line comes, it gets one 500 and the next command is understood."""
        for line in (
            b"\0\0\0",
            b"NOOP\0",
            b"MAIL FROM:<a@x.org>\rRSET",
            b"NOOP\nQUIT",
            b"\n",
            b"\xff" * 100,
            b"x" * (COMMAND_LIMIT - 2),
            b"x" * (COMMAND_LIMIT * 50),
            b"x" * (COMMAND_LIMIT * 2) + b"\n" + b"y" * 10,
        ):
            for octets in (1, 7, 10**9):
                machine = responder(State.IDLE)
                wire = line + b"\r\nNOOP\r\n"
                for at in range(0, len(wire), octets):
                    say(machine, wire[at : at + octets])
                output = machine.take_output()
                self.assertEqual(output.count(b"\r\n"), 2, line[:20])
                self.assertTrue(output.startswith(b"500 5.5."), output)
                self.assertTrue(output.endswith(b"250 2.0.0 Ok\r\n"), output)
                self.assertIs(machine.state, State.IDLE)

    def test_longest_command(self) -> None:
        """A command of the longest legal length is heard."""
        machine = responder(State.IDLE)
        say(machine, b"NOOP " + b"x" * (COMMAND_LIMIT - 7) + b"\r\n")
        self.assertEqual(machine.take_output(), b"250 2.0.0 Ok\r\n")

    def test_bounded_memory(self) -> None:
        """A flood without a newline costs no memory: not in a command, not in content."""
        for state in (State.IDLE, State.CONTENT):
            machine = responder(state)
            for _ in range(200):
                say(machine, b"x" * 65536)
                self.assertLess(machine.buffered_octets, COMMAND_LIMIT)

    @LIGHT
    @given(st.binary(max_size=300))
    def test_any_octets(self, octets: bytes) -> None:
        """Random octets never raise, never bring a message, and get one reply a line at most."""
        machine = responder(State.IDLE, errors=1000)
        events = say(machine, octets + b"\r\n")
        self.assertFalse([e for e in events if isinstance(e, Mail | Data | End | Chunk)])
        lines = machine.take_output().split(b"\r\n")
        replies = [line for line in lines if line[3:4] == b" "]  # EHLO's has more lines
        self.assertLessEqual(len(replies), octets.count(b"\n") + 1)

    def test_browser(self) -> None:
        """A browser that a web page sends to port 25 is cut off at its first line."""
        machine = responder()
        events = say(machine, b"POST / HTTP/1.1\r\nMAIL FROM:<a@x.org>\r\n")
        self.assertEqual([type(e) for e in events], [Rejected, Quit])
        self.assertTrue(machine.take_output().startswith(b"421 "))


class LimitTests(SynchronousTestCase):
    def test_100000_recipients(self) -> None:
        """100 000 RCPTs cost 1 000 questions and one line in the log."""
        machine = responder(State.MAIL)
        events = say(machine, b"RCPT TO:<a@x.org>\r\n" * 100_000)
        self.assertEqual(sum(isinstance(e, Rcpt) for e in events), 1000)
        self.assertEqual(sum(isinstance(e, Rejected) for e in events), 1)
        self.assertEqual(machine.take_output().count(b"452 4.5.3 "), 99_000)
        self.assertIs(machine.state, State.RECIPIENTS)

    def test_guessing(self) -> None:
        """Guessing recipients ends with 421; some bad ones in a good list do not."""
        no = {Rcpt: Reply(550, "5.1.1", (b"No",))}
        machine = responder(State.MAIL)
        say(machine, b"RCPT TO:<a@x.org>\r\n" * 25, no)
        self.assertIs(machine.state, State.CLOSED)
        self.assertEqual(machine.take_output().count(b"\r\n"), 20)
        machine = responder(State.RECIPIENTS)
        say(machine, b"RCPT TO:<a@x.org>\r\n" * 25, no)
        self.assertIs(machine.state, State.RECIPIENTS)

    def test_hard_detail_22_size_is_refused_before_data(self) -> None:
        """SIZE over the limit is 552 before DATA, and nobody is asked."""
        machine = responder(State.IDLE, size_octets=100)
        events = say(machine, b"MAIL FROM:<a@x.org> SIZE=101\r\n")
        self.assertEqual([type(e) for e in events], [Rejected])
        self.assertTrue(machine.take_output().startswith(b"552 5.3.4 "))

    def test_commands(self) -> None:
        """A limit of commands, when set, ends the association with 421."""
        machine = responder(State.START, commands=3)
        say(machine, b"NOOP\r\n" * 5)
        self.assertEqual(machine.take_output().count(b"250 "), 3)
        self.assertIs(machine.state, State.CLOSED)

    def test_postfix_tail(self) -> None:
        """The end of an association is told in the words that log parsers know."""
        machine = responder()
        say(machine, b"EHLO x\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nRCPT TO:<>\r\nFOO\r\n")
        say(machine, b"DATA\r\n.\r\nQUIT\r\n")
        self.assertEqual(
            machine.commands, "ehlo=1 mail=1 rcpt=1/2 unknown=0/1 data=1 quit=1 commands=5/7"
        )

    def test_reset_events(self) -> None:
        """A transaction that becomes void is told: by RSET and by a new EHLO."""
        for text in (b"RSET\r\n", b"EHLO y\r\n", b"HELO y\r\n"):
            events = say(responder(State.RECIPIENTS), text)
            self.assertIsInstance(events[0], Reset)
            self.assertFalse(any(isinstance(e, Reset) for e in say(responder(State.IDLE), text)))


class ShutDownTests(SynchronousTestCase):
    REPLY = Reply(421, "4.3.2", (b"Bye",))

    def test_at_rest(self) -> None:
        """Out of turn 421 is said when no answer is owed."""
        machine = responder(State.MAIL)
        machine.shut_down(self.REPLY)
        self.assertEqual(machine.take_output(), b"421 4.3.2 Bye\r\n")
        self.assertEqual(machine.next_event(), Quit(False))

    def test_while_an_answer_is_owed(self) -> None:
        """A 421 is never said in place of an answer that may still become 250."""
        machine = responder(State.CONTENT)
        machine.receive(b".\r\n")
        self.assertIsInstance(machine.next_event(), End)
        self.assertTrue(machine.is_ending_message)
        machine.shut_down(self.REPLY)
        self.assertEqual(machine.take_output(), b"")
        machine.shut_down(self.REPLY)  # harmless


class LmtpTests(SynchronousTestCase):
    def test_data_without_recipients(self) -> None:
        """RFC 2033 4.2: DATA without an accepted recipient is 503 in LMTP, and 554 in SMTP."""
        for role, code in ((Role.LMTP, b"503 5.5.1 "), (Role.SMTP, b"554 5.5.1 ")):
            machine = responder(State.MAIL, role)
            say(machine, b"DATA\r\n")
            self.assertEqual(machine.take_output(), code + b"No valid recipients\r\n")
            self.assertIs(machine.state, State.MAIL)

    def test_each_recipient_has_its_reply(self) -> None:
        """Hard detail 13 inwards: LMTP answers each accepted recipient for itself."""
        machine = responder(State.MAIL, Role.LMTP)
        say(machine, b"RCPT TO:<1@x.org>\r\nRCPT TO:<2@x.org>\r\nDATA\r\n")
        machine.take_output()
        machine.receive(b"x\r\n.\r\n")
        self.assertEqual(machine.next_event(), Chunk(b"x\r\n"))
        self.assertEqual(machine.next_event(), End(None, 3))
        machine.answer_each([None, Reply(452, "4.2.2", (b"Full",))])
        self.assertEqual(machine.take_output(), b"250 2.0.0 Ok\r\n452 4.2.2 Full\r\n")
        self.assertIs(machine.state, State.IDLE)
