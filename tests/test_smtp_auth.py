"""AUTH in the responder's machine: nothing within an exchange is a command, and nobody guesses on."""

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import LocalProtocolError
from mta.model import Reply
from mta.wire.smtp.events import Auth, AuthResponse, Event, Quit
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_auth import (
    FAILURES,
    RESPONSE_LIMIT,
    AuthTerms,
    check_auth,
)
from mta.wire.smtp.states import Security, State
from mta.wire.strict64 import decode

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)
GO_ON = Reply(334, "", (b"UGFzczo=",))
NO = Reply(535, "5.7.8", (b"Authentication failed",))
LATER = Reply(454, "4.7.0", (b"Later",))


def responder(security: Security = Security.PRESENT, in_clear: bool = False) -> Responder:
    """Behind EHLO, with nothing left to say."""
    terms = AuthTerms(("PLAIN", "LOGIN"), in_clear)
    machine = Responder(b"mx.example.org", security=security, auth=terms)
    machine.greet()
    ask(machine, b"EHLO x\r\n")
    machine.answer(None)
    machine.take_output()
    return machine


def ask(machine: Responder, data: bytes) -> Event | None:
    machine.receive(data)
    return machine.next_event()


def within(machine: Responder) -> None:
    """Lead it to a 334."""
    ask(machine, b"AUTH LOGIN\r\n")
    machine.answer(GO_ON)
    machine.take_output()


class ExchangeTests(SynchronousTestCase):
    def test_success(self) -> None:
        """Authenticated is said once, counted, and the protocol's name tells of it (RFC 3848)."""
        machine = responder()
        self.assertEqual(ask(machine, b"AUTH PLAIN AGEAYg==\r\n"), Auth("PLAIN", b"\0a\0b"))
        self.assertFalse(machine.is_authenticated)
        machine.answer(None)
        self.assertEqual(machine.take_output(), b"235 2.7.0 Authentication successful\r\n")
        self.assertTrue(machine.is_authenticated)
        self.assertEqual((machine.protocol, machine.state), ("ESMTPSA", State.IDLE))
        self.assertIn("auth=1", machine.commands)

    def test_challenges(self) -> None:
        """Each 334 waits for one line; a challenge is sent whole, whatever its length."""
        machine = responder()
        within(machine)
        long = b64encode(b"x" * 3000)
        self.assertEqual(ask(machine, b"Ym9i\r\n"), AuthResponse(b"bob"))
        machine.answer(Reply(334, "", (long,)))
        self.assertEqual(machine.take_output(), b"334 " + long + b"\r\n")
        self.assertIs(machine.state, State.SASL)
        self.assertEqual(ask(machine, b"\r\n"), AuthResponse(b""))
        machine.answer(None)
        self.assertIs(machine.state, State.IDLE)
        self.assertIn("auth=1 commands=2", machine.commands)

    def test_no_response_cannot_be_accepted(self) -> None:
        """What is no response is refused, even if a reception were content with it."""
        for line, code in ((b"*", b"501"), (b"b=b", b"501"), (b"Ym9i\nx", b"500")):
            machine = responder()
            within(machine)
            self.assertEqual(ask(machine, line + b"\r\n"), AuthResponse(None))
            machine.answer(None)
            self.assertEqual(machine.take_output()[:3], code)
            self.assertFalse(machine.is_authenticated)
            self.assertIs(machine.state, State.IDLE)

    def test_refusals(self) -> None:
        """The last of too many refusals ends the association; what is our trouble does not count."""
        machine = responder()
        for _ in range(FAILURES + 1):
            ask(machine, b"AUTH PLAIN AGEAYg==\r\n")
            machine.answer(LATER)
        for _ in range(FAILURES):
            self.assertIsNot(machine.state, State.CLOSED)
            ask(machine, b"AUTH PLAIN AGEAYg==\r\n")
            machine.answer(NO)
        self.assertEqual(machine.next_event(), Quit(False))
        said = machine.take_output().splitlines()
        self.assertEqual([line[:3] for line in said[-FAILURES:]], [b"535", b"535", b"421"])

    def test_tls_forgets(self) -> None:
        """Behind STARTTLS the client is nobody again."""
        machine = responder(Security.OFFERED, in_clear=True)
        ask(machine, b"AUTH PLAIN AGEAYg==\r\n")
        machine.answer(None)
        self.assertTrue(machine.is_authenticated)
        ask(machine, b"STARTTLS\r\n")
        machine.answer(None)
        machine.secured()
        self.assertFalse(machine.is_authenticated)

    def test_misuse(self) -> None:
        """An answer without a question is a defect of ours, and said so."""
        machine = responder()
        self.assertRaises(LocalProtocolError, machine.answer, GO_ON)


class RubbishTests(SynchronousTestCase):
    def test_too_long_and_badly_ended(self) -> None:
        """A response that is too long and ends without CR has one answer, in whatever pieces it
        comes; and what follows up to the next CRLF is no command.
        """
        data = b"A" * RESPONSE_LIMIT + b"\nQUIT\r\nNOOP\r\n"
        for size in (len(data), RESPONSE_LIMIT, 1):
            machine = responder()
            within(machine)
            for at in range(0, len(data), size):
                machine.receive(data[at : at + size])
                if machine.next_event() is not None:
                    machine.answer(None)
                    self.assertIsNone(machine.next_event())
            self.assertEqual(
                machine.take_output(),
                b"500 5.5.6 The response is too long\r\n250 2.0.0 Ok\r\n",
                f"pieces of {size}",
            )

    def test_bounded_memory(self) -> None:
        """A response without an end is given up at its limit, and no octet of it is kept."""
        machine = responder()
        within(machine)
        self.assertIsNone(ask(machine, b"A" * (RESPONSE_LIMIT - 1)))
        self.assertEqual(ask(machine, b"A"), AuthResponse(None))
        machine.answer(None)
        self.assertEqual(machine.take_output(), b"500 5.5.6 The response is too long\r\n")
        for _ in range(10):
            self.assertIsNone(ask(machine, b"A" * 10000))
            self.assertLessEqual(machine.buffered_octets, 1)
        self.assertIsNone(ask(machine, b"\r\nNOOP\r\n"))
        self.assertEqual(machine.take_output(), b"250 2.0.0 Ok\r\n")

    @LIGHT
    @given(st.binary(max_size=200), st.integers(1, 7))
    def test_any_octets(self, octets: bytes, size: int) -> None:
        """Within an exchange any octets, in any pieces, end in responses or in one refusal; what
        is handed out as a response is what the base64 says.
        """
        machine = responder()
        within(machine)
        data = octets + b"\r\n"
        first = None
        for at in range(0, len(data), size):
            first = ask(machine, data[at : at + size])
            if first is not None:
                break
        self.assertIsInstance(first, AuthResponse)
        line = data.partition(b"\n")[0]
        whole = line[:-1] if line.endswith(b"\r") else None
        expected = None if whole is None or whole == b"*" else decode(whole)
        self.assertEqual(first, AuthResponse(expected))

    def test_padding(self) -> None:
        """Base64 with more padding than it takes is none."""
        for octets in (b"user=", b"user==", b"user====", b"dXNlcg", b"dXNlcg=", b"===="):
            self.assertIsNone(decode(octets), octets)
        self.assertEqual(decode(b"dXNlcg=="), b"user")

    @LIGHT
    @given(st.binary(max_size=60))
    def test_base64(self, octets: bytes) -> None:
        """Base64 is read back as it was; what is none is never taken for some."""
        self.assertEqual(decode(b64encode(octets)), octets)
        read = decode(octets)
        if read is not None:
            self.assertEqual(b64encode(read).rstrip(b"="), octets.rstrip(b"="))

    @LIGHT
    @given(st.binary(max_size=60))
    def test_parameter(self, octets: bytes) -> None:
        """AUTH= of MAIL is taken as it is, or refused by 501."""
        try:
            self.assertEqual(check_auth(octets), octets)
        except Refused as refused:
            self.assertEqual(refused.reply.code, 501)
