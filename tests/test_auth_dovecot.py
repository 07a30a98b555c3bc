"""The kind `dovecot`: what Dovecot is told, what its answers mean, and when it does not answer."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mta.auth.dovecot import Dovecot, DovecotSettings
from mta.errors import (
    LocalProtocolError,
    PermanentFailure,
    RemoteProtocolError,
    TransientFailure,
)
from mta.model import UNKNOWN_HOST, Authenticated, Challenge, PeerInfo
from mta.testing.auth_suite import (
    PASSWORD,
    USER,
    IAuthenticatorTests,
    auth_peer,
    settled,
)
from mta.testing.dovecot import MemoryDovecot
from mta.testing.surroundings import MemorySurroundings
from mta.wire.dovecot_auth import (
    LONGEST_LINE,
    MOST_HANDSHAKE,
    DovecotAuth,
    Request,
    escape,
    unescape,
)

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
SOCKET = "/run/dovecot/auth-client"
ENDPOINT = f"unix:{SOCKET}"
REQUEST = Request("PLAIN", True, "192.0.2.10", 587, "2001:db8::7", 40000)
HANDSHAKE = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t2\nCOOKIE\tx\nDONE\n"


def plain(user: str = USER, password: str = PASSWORD) -> bytes:
    return f"\0{user}\0{password}".encode()


class DovecotSuiteTests(IAuthenticatorTests, SynchronousTestCase):
    """The suite, with every mechanism that the Dovecot of memory has."""

    def build(self, surroundings: MemorySurroundings) -> Dovecot:
        self.dovecot = MemoryDovecot({USER: PASSWORD})
        surroundings.network.services[ENDPOINT] = self.dovecot
        names = ("SCRAM-SHA-256", "PLAIN", "LOGIN")
        return Dovecot(DovecotSettings(mechanisms=names), surroundings)

    def tearDown(self) -> None:
        """Dovecot understood every word, and no connection is left."""
        self.assertEqual([], self.dovecot.broken)
        self.assertEqual(0, self.dovecot.open)


class DovecotTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.surroundings = MemorySurroundings()
        self.dovecot = MemoryDovecot({USER: PASSWORD})
        self.surroundings.network.services[ENDPOINT] = self.dovecot

    def client(self, **keys: Any) -> Dovecot:
        return Dovecot(DovecotSettings(**keys), self.surroundings)

    def transient(self, step: Any, *words: str) -> None:
        """It came to a 454, whose text for operators has these words."""
        fault = settled(self.surroundings, step)
        self.assertIsInstance(fault, TransientFailure)
        self.assertEqual((454, "4.7.0"), (fault.code, fault.enhanced))
        for word in words:
            self.assertIn(word, str(fault))
        self.surroundings.advance(0)
        self.assertEqual(0, self.dovecot.open)

    def test_what_dovecot_is_told(self) -> None:
        """Who asks, from where to where, and whether there is TLS."""
        peers = (
            auth_peer(),
            PeerInfo("smtp/in/2", "2001:db8::7", 40001, "2001:db8::10", 25, "smtp"),
            PeerInfo("smtp/in/3", UNKNOWN_HOST, 0, "2001:db8::10", 25, "smtp"),
        )
        for peer in peers:
            settled(self.surroundings, self.client().begin("PLAIN", peer).step(plain()))
        under_tls, without, unknown = self.dovecot.asked
        self.assertEqual(
            b"AUTH 1 PLAIN service=smtp nologin secured lip=192.0.2.10 lport=587"
            b" rip=198.51.100.7 rport=40000 resp=AGFubmEAY29ycmVjdCBob3JzZSBiYXR0ZXJ5",
            b" ".join(under_tls),
        )
        self.assertNotIn(b"secured", without)
        self.assertIn(b"rip=2001:db8::7", without)
        self.assertFalse(any(word.startswith((b"rip=", b"rport=")) for word in unknown))

    def test_client_ids(self) -> None:
        """Connections at the same time have different CPIDs, or Dovecot would end them."""
        exchanges = [self.client().begin("LOGIN", auth_peer()) for _ in range(50)]
        for exchange in exchanges:
            self.assertIsInstance(settled(self.surroundings, exchange.step(None)), Challenge)
        self.assertEqual(50, len(self.dovecot.client_ids))
        self.assertEqual([], self.dovecot.broken)
        for exchange in exchanges:
            exchange.abandon()
        self.surroundings.advance(0)
        self.assertEqual(0, self.dovecot.open)

    def test_the_name_is_dovecots(self) -> None:
        """Who it is is what Dovecot says: it may have completed the name."""
        self.dovecot.say = lambda line: line.replace(b"user=anna", b"user=anna@example.org")
        said = settled(self.surroundings, self.client().begin("PLAIN", auth_peer()).step(plain()))
        self.assertEqual(Authenticated("anna@example.org"), said)

    def test_a_mechanism_of_dovecots(self) -> None:
        """What a mechanism says is not our business: one that we do not know passes through."""
        self.dovecot.mechanisms.append("X-TOKEN")
        exchange = self.client(mechanisms=("X-TOKEN",)).begin("X-TOKEN", auth_peer())
        step = exchange.step(b"\1a token\1")
        self.assertEqual(Authenticated("a token"), settled(self.surroundings, step))
        self.assertEqual(b"X-TOKEN", self.dovecot.asked[0][2])

    def test_away(self) -> None:
        """Without a Dovecot nobody is refused for good."""
        del self.surroundings.network.services[ENDPOINT]
        step = self.client().begin("PLAIN", auth_peer()).step(plain())
        self.transient(step, "Dovecot is away", "connection refused", "is it running")

    def test_ill(self) -> None:
        """A failure that Dovecot calls temporary is one."""
        self.dovecot.is_ill = True
        self.transient(self.client().begin("PLAIN", auth_peer()).step(plain()), "Dovecot's log")

    def test_each_sign_of_illness(self) -> None:
        """temp of old ones, code=temp_fail of new ones."""
        for words in (b"temp", b"code=temp_fail", b"user=x\ttemp"):
            self.dovecot.say = lambda line, words=words: b"FAIL\t1\t" + words  # type: ignore[misc]
            self.transient(self.client().begin("PLAIN", auth_peer()).step(plain()))
        for words in (b"", b"code=authz_fail", b"user_disabled", b"reason=temp"):
            self.dovecot.say = lambda line, words=words: b"FAIL\t1\t" + words  # type: ignore[misc]
            step = self.client().begin("PLAIN", auth_peer()).step(plain())
            self.assertIsInstance(settled(self.surroundings, step), PermanentFailure)

    def test_silent(self) -> None:
        """A Dovecot that says nothing is waited for so long and no longer."""
        for silence in ("greeting", "answer"):
            if silence == "greeting":
                self.dovecot.greeting = b"VERSION\t1\t2\n"
            else:
                self.dovecot.greeting = None
                self.dovecot.say = lambda line: None
            step = self.client(timeout="7s").begin("PLAIN", auth_peer()).step(plain())
            self.surroundings.advance(0)
            self.surroundings.advance(6.999)
            self.assertNoResult(step)
            self.surroundings.advance(0.001)
            self.transient(step, "no answer within 7 s")

    def test_the_client_may_think(self) -> None:
        """The time runs while we wait for Dovecot, not while the client types."""
        exchange = self.client(timeout="7s").begin("LOGIN", auth_peer())
        for response in (None, USER.encode()):
            self.assertIsInstance(settled(self.surroundings, exchange.step(response)), Challenge)
            self.surroundings.advance(60)
        said = settled(self.surroundings, exchange.step(PASSWORD.encode()))
        self.assertEqual(Authenticated(USER), said)

    def test_gone_meanwhile(self) -> None:
        """A Dovecot that ends between two steps is said so at the next, without waiting."""
        exchange = self.client().begin("LOGIN", auth_peer())
        self.dovecot.say = lambda line: line + b"\nOK\t1\tuser=anna"
        self.transient(exchange.step(None), "answers what was not asked")
        self.dovecot.say = lambda line: line
        exchange = self.client().begin("LOGIN", auth_peer())
        self.assertIsInstance(settled(self.surroundings, exchange.step(None)), Challenge)
        exchange._connection.transport.far.loseConnection()  # type: ignore[attr-defined]
        self.surroundings.advance(0)
        step = exchange.step(b"anna")
        self.assertIsInstance(self.failureResultOf(step).value, TransientFailure)

    def test_let_in_unasked(self) -> None:
        """An OK that comes while the client is to answer lets nobody in."""
        exchange = self.client().begin("LOGIN", auth_peer())
        self.assertIsInstance(settled(self.surroundings, exchange.step(None)), Challenge)
        exchange._connection.transport.far.write(b"OK\t1\tuser=anna\n")  # type: ignore[attr-defined]
        self.surroundings.advance(0)
        self.transient(exchange.step(b"anna"))

    def test_not_dovecot(self) -> None:
        """Who speaks otherwise is named by how he began."""
        self.dovecot.greeting = b"220 mail\x1b ESMTP\r\n"
        step = self.client().begin("PLAIN", auth_peer()).step(plain())
        self.transient(step, "is not Dovecot's authentication protocol", "'220 mail? ESMTP?'")

    def test_ended(self) -> None:
        """A Dovecot that hangs up is no refusal."""
        exchange = self.client().begin("PLAIN", auth_peer())
        self.dovecot.say = lambda line: None
        step = exchange.step(plain())
        self.surroundings.advance(0)
        exchange._connection.transport.far.loseConnection()  # type: ignore[attr-defined]
        self.transient(step, "ended the connection")

    def test_not_its_mechanism(self) -> None:
        """What we offer and Dovecot lacks is an operator's matter, and names it."""
        self.dovecot.mechanisms = ["PLAIN"]
        step = self.client().begin("LOGIN", auth_peer()).step(None)
        self.transient(step, "Dovecot has no LOGIN", "it has PLAIN", "auth_mechanisms")

    def test_too_long(self) -> None:
        """What does not fit into Dovecot's line is no response, and nothing of it is sent."""
        for responses in ((b"x" * 20_000,), (None, b"x" * 20_000)):
            exchange = self.client().begin("LOGIN", auth_peer())
            for response in responses:
                said = settled(self.surroundings, exchange.step(response))
            self.assertIsInstance(said, PermanentFailure)
            self.assertEqual(501, said.code)
        self.surroundings.advance(0)
        self.assertEqual(0, self.dovecot.open)

    def test_cancelled(self) -> None:
        """Who gives up while Dovecot thinks leaves no connection behind."""
        self.dovecot.say = lambda line: None
        for end in ("cancel", "abandon"):
            exchange = self.client().begin("PLAIN", auth_peer())
            step = exchange.step(plain())
            self.surroundings.advance(0)
            self.assertEqual(1, self.dovecot.open)
            step.cancel() if end == "cancel" else exchange.abandon()
            self.failureResultOf(step, CancelledError)
            self.surroundings.advance(0)
            self.assertEqual(0, self.dovecot.open)
            self.assertEqual([], self.dovecot.broken)  # it was told: its log stays quiet
        self.assertEqual([], self.surroundings.clock.reactor.getDelayedCalls())

    def test_not_offered(self) -> None:
        self.assertRaises(LocalProtocolError, self.client().begin, "CRAM-MD5", auth_peer())

    def test_settings(self) -> None:
        """A path that is none and a mechanism that is none are refused; names have no case."""
        self.assertEqual(("PLAIN",), DovecotSettings(mechanisms=("plain",)).mechanisms)
        for keys in (
            {"socket": "run/auth"},
            {"socket": "/" + "x" * 107},
            {"mechanisms": ()},
            {"mechanisms": ("PLAIN", "plain")},
            {"mechanisms": ("PL AIN",)},
            {"timeout": "0s"},
        ):
            with self.assertRaises(ValidationError):
                DovecotSettings.model_validate(keys)


class MachineTests(SynchronousTestCase):
    def asked(self, initial: bytes | None = b"\0a\0b") -> DovecotAuth:
        machine = DovecotAuth(77, REQUEST, initial)
        self.assertEqual(b"VERSION\t1\t1\nCPID\t77\n", machine.take_output())
        self.assertIsNone(machine.receive(HANDSHAKE))
        self.assertTrue(machine.take_output().startswith(b"AUTH\t1\tPLAIN\tservice=smtp\t"))
        return machine

    def broken(self, machine: DovecotAuth, octets: bytes) -> None:
        """It is not the protocol, and nothing counts behind it."""
        self.assertRaises(RemoteProtocolError, machine.receive, octets)
        self.assertIsNone(machine.receive(b"OK\t1\tuser=anna\n"))
        self.assertRaises(LocalProtocolError, machine.respond, b"x")

    def test_octet_by_octet(self) -> None:
        """It does not matter how the octets are cut."""
        machine = DovecotAuth(77, REQUEST, None)
        answers = [machine.receive(bytes((o,))) for o in HANDSHAKE + b"CONT\t1\t\n"]
        self.assertEqual([Challenge(b"")], [a for a in answers if a is not None])
        self.assertNotIn(b"resp=", machine.take_output())
        machine.respond(b"\0a\0b")
        self.assertEqual(b"CONT\t1\tAGEAYg==\n", machine.take_output())
        self.assertEqual(Authenticated("a"), machine.receive(b"OK\t1\tuser=a\n"))

    def test_cancelled(self) -> None:
        """Dovecot is told when it was asked, and only then; nothing counts afterwards."""
        machine = self.asked()
        machine.cancel()
        self.assertEqual(b"CANCEL\t1\n", machine.take_output())
        self.assertIsNone(machine.receive(b"OK\t1\tuser=a\n"))
        machine.cancel()
        self.assertEqual(b"", machine.take_output())
        machine = DovecotAuth(1, REQUEST, b"x")
        machine.take_output()
        machine.cancel()
        self.assertEqual(b"", machine.take_output())

    def test_empty_initial_response(self) -> None:
        """An initial response that is empty is one (RFC 4954 section 4)."""
        machine = DovecotAuth(77, REQUEST, b"")
        machine.receive(HANDSHAKE)
        self.assertTrue(machine.take_output().endswith(b"\tresp=\n"))

    def test_unknown_lines(self) -> None:
        """What means nothing to us is passed over, before DONE and after it."""
        machine = DovecotAuth(1, REQUEST, b"x")
        self.assertIsNone(machine.receive(HANDSHAKE.replace(b"DONE", b"NEWS\tx\n\nMECH\nDONE")))
        self.assertIsNone(machine.receive(b"\nNEWS\nOKAY\t1\nSPID\t3\n"))
        self.assertEqual(Authenticated("a"), machine.receive(b"OK\t1\tnews\tuser=a\tx=y\n"))

    def test_another_version(self) -> None:
        """Minor versions do not matter, another major one ends it; so does what is no greeting."""
        for greeting in (
            b"VERSION\t2\t0\n",
            b"VERSION\n",
            b"OK\t1\tuser=a\n",
            b"\n",
            b"VERSION 1\n",
        ):
            self.broken(DovecotAuth(1, REQUEST, b"x"), greeting)
        machine = DovecotAuth(1, REQUEST, b"x")
        self.assertIsNone(machine.receive(b"VERSION\t1\t99\n"))

    def test_nobody_is_let_in_before_the_question(self) -> None:
        """An OK before our AUTH line is none."""
        machine = DovecotAuth(1, REQUEST, b"x")
        self.assertIsNone(machine.receive(b"VERSION\t1\t1\nOK\t1\tuser=a\n"))
        self.assertFalse(machine.is_over)

    def test_crooked_answers(self) -> None:
        """Another's id, no name, no base64, two answers: nobody is let in by these."""
        for answer in (
            *(b"OK\t2\tuser=a\n", b"OK\n", b"OK\t1\n", b"OK\t1\tuser=\n", b"OK\t1\tuser=\xff\n"),
            *(b"OK\t1\tuser=a\tuser=b\n", b"OK\t1\tuser=a\x01tb\n", b"CONT\t1\t!\n", b"FAIL\t2\n"),
            *(b"CONT\t1\t\nCONT\t1\t\n", b"CONT\t1\t\nOK\t1\tuser=a\n", b"OK\t1\tuser=\x1b[2J\n"),
        ):
            self.broken(self.asked(), answer)

    def test_bounded(self) -> None:
        """A line without an end, and a handshake without one."""
        self.broken(self.asked(), b"x" * (LONGEST_LINE + 1))
        self.broken(self.asked(), b"x" * (LONGEST_LINE + 1) + b"\n")
        self.broken(
            DovecotAuth(1, REQUEST, b"x"), b"VERSION\t1\t1\n" + b"x\n" * (MOST_HANDSHAKE + 1)
        )
        self.assertIsNone(self.asked().receive(b"x" * LONGEST_LINE))

    def test_values_are_escaped(self) -> None:
        """No value can become another word or another line."""
        crooked = Request("PLAIN", False, "a\tresp=x\nOK", 1, "\0\x01\r", 2)
        machine = DovecotAuth(1, crooked, b"\t\n")
        machine.receive(HANDSHAKE)
        line = machine.take_output().removeprefix(b"VERSION\t1\t1\nCPID\t1\n")
        self.assertEqual(
            b"AUTH\t1\tPLAIN\tservice=smtp\tnologin\tlip=a\x01tresp=x\x01nOK\tlport=1"
            b"\trip=\x010\x011\x01r\trport=2\tresp=CQo=\n",
            line,
        )

    @LIGHT
    @given(st.one_of(st.binary(), st.text("\0\x01\t\r\n01trnx").map(str.encode)))
    def test_escaping(self, value: bytes) -> None:
        """Whatever is escaped has none of Dovecot's separators, and comes back as it was."""
        self.assertFalse(set(escape(value)) & set(b"\0\t\r\n"))
        self.assertEqual(value, unescape(escape(value)))
        unescape(value)

    @LIGHT
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(
                    (HANDSHAKE, b"VERSION\t1\t1\n", b"DONE\n", b"MECH\tPLAIN\n", b"\n", b"OK\t1\t",
                     b"CONT\t1\tYQ==\n", b"FAIL\t1\ttemp\n", b"FAIL\t1\n", b"user=anna\n", b"\t1\t")
                ),
            ),
            max_size=8,
        )
    )  # fmt: skip
    def test_any_octets(self, pieces: list[bytes]) -> None:
        """Any octets end in an answer or a named fault; an OK counts only when it was asked for."""
        machine = DovecotAuth(1, REQUEST, b"x")
        heard = b""
        try:
            for piece in pieces:
                heard += piece
                answer = machine.receive(piece)
                if isinstance(answer, Challenge):
                    machine.respond(b"x")
                elif isinstance(answer, Authenticated):
                    self.assertIn(b"DONE\n", heard)
                    self.assertIn(b"OK\t1\t", heard)
        except RemoteProtocolError:
            self.assertTrue(machine.is_over)
