"""What every authenticator must keep, ours and third parties'.

    class LedgerTests(IAuthenticatorTests, SynchronousTestCase):
        def build(self, surroundings):
            return Ledger(LedgerSettings(...), surroundings)   # USER has PASSWORD

The suite is the client's side of each mechanism: who has the password is let in under its own name,
nobody else is, and whatever a client says ends in a defined result that names no user.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Generator
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IAuthenticator, IAuthExchange
from mta.model import Authenticated, Challenge, PeerInfo
from mta.testing.surroundings import MemorySurroundings

__all__ = ["CLIENTS", "PASSWORD", "USER", "IAuthenticatorTests", "auth_peer", "converse"]

USER = "anna"
PASSWORD = "correct horse battery"
STRANGER = "nobody"
PATIENCE_SECONDS = 60.0
"""How far the suite moves time for a step: no client waits longer."""
MOST_STEPS = 8

Client = Generator[bytes | None, bytes, None]
"""Yields its responses, is sent the challenges. The first may be None."""


def auth_peer() -> PeerInfo:
    """A client under TLS, as most that authenticate are."""
    tls = "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"
    return PeerInfo("smtp/in/1", "198.51.100.7", 40000, "192.0.2.10", 587, "submission", tls=tls)


def plain(user: str, password: str, *, at_once: bool) -> Client:
    """RFC 4616."""
    if not at_once:
        yield None
    yield b"\0" + user.encode() + b"\0" + password.encode()


def login(user: str, password: str, *, at_once: bool) -> Client:
    if not at_once:
        yield None
    yield user.encode()
    yield password.encode()


def scram(user: str, password: str, *, at_once: bool) -> Client:
    """RFC 5802 section 3, written for the client's side alone. It checks the server too."""
    if not at_once:
        yield None
    bare = b"n=" + user.encode().replace(b"=", b"=3D").replace(b",", b"=2C") + b",r=fyko+d2lbbFgON"
    first = yield b"n,," + bare
    words = dict(word.split(b"=", 1) for word in first.split(b","))
    salt, iterations = base64.b64decode(words[b"s"]), int(words[b"i"])
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    final = b"c=biws,r=" + words[b"r"]
    signed = b",".join((bare, first, final))
    client_key = _mac(salted, b"Client Key")
    signature = _mac(hashlib.sha256(client_key).digest(), signed)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    last = yield final + b",p=" + base64.b64encode(proof)
    expected = b"v=" + base64.b64encode(_mac(_mac(salted, b"Server Key"), signed))
    assert last == expected, f"the server does not prove itself: {last!r}"
    yield b""


def _mac(key: bytes, octets: bytes) -> bytes:
    return hmac.new(key, octets, hashlib.sha256).digest()


CLIENTS: dict[str, Callable[..., Client]] = {
    "PLAIN": plain,
    "LOGIN": login,
    "SCRAM-SHA-256": scram,
}


def settled(surroundings: MemorySurroundings, answer: Deferred[Any]) -> Any:
    """What a step came to, waited for in virtual time: a value, or the exception."""
    results: list[Any] = []
    answer.addCallbacks(results.append, lambda failure: results.append(failure.value))
    waited = 0.0
    while not results and waited < PATIENCE_SECONDS:
        surroundings.advance(0.0)
        if not results:
            surroundings.advance(0.5)
            waited += 0.5
    if not results:
        raise AssertionError(f"no answer within {PATIENCE_SECONDS:g} s")
    return results[0]


def converse(surroundings: MemorySurroundings, exchange: IAuthExchange, client: Client) -> Any:
    """A whole conversation: Authenticated, or the exception that ended it."""
    response = next(client)
    for _ in range(MOST_STEPS):
        said = settled(surroundings, exchange.step(response))
        if not isinstance(said, Challenge):
            return said
        response = client.send(said.octets)
    raise AssertionError("the exchange does not end")


class IAuthenticatorTests:
    """Mix into a SynchronousTestCase and define `build`."""

    def build(self, surroundings: MemorySurroundings) -> Any:
        """A new authenticator, as its factory's `create` makes it. USER has PASSWORD there, and
        there is no STRANGER.
        """
        raise AssertionError("a suite needs build(surroundings)")

    @property
    def _case(self) -> SynchronousTestCase:
        return cast(SynchronousTestCase, self)

    def _built(self) -> tuple[Any, MemorySurroundings]:
        surroundings = MemorySurroundings()
        authenticator = self.build(surroundings)
        surroundings.advance(0.0)
        return authenticator, surroundings

    def _try(self, mechanism: str, user: str, password: str, *, at_once: bool = True) -> Any:
        authenticator, surroundings = self._built()
        exchange = authenticator.begin(mechanism, auth_peer())
        client = CLIENTS[mechanism](user, password, at_once=at_once)
        said = converse(surroundings, exchange, client)
        for text in surroundings.notices():
            self._case.assertNotIn(password, text)
        self._clean(surroundings)
        return said

    def _clean(self, surroundings: MemorySurroundings) -> None:
        """Nothing of an exchange is left behind its end."""
        surroundings.advance(0.0)
        calls = surroundings.clock.reactor.getDelayedCalls()
        self._case.assertEqual([], [call for call in calls if call.active()])

    def test_auth_contract(self) -> None:
        """It provides IAuthenticator, what it begins IAuthExchange; mechanisms are SASL names."""
        authenticator, _ = self._built()
        verifyObject(IAuthenticator, authenticator)
        mechanisms = authenticator.mechanisms
        self._case.assertIsInstance(mechanisms, tuple)
        self._case.assertTrue(mechanisms)
        self._case.assertEqual(len(set(mechanisms)), len(mechanisms))
        for mechanism in mechanisms:
            self._case.assertRegex(mechanism, r"\A[A-Z0-9_-]{1,20}\Z")
            self._case.assertIn(mechanism, CLIENTS, "the suite has no client for it")
            exchange = authenticator.begin(mechanism, auth_peer())
            verifyObject(IAuthExchange, exchange)
            exchange.abandon()

    def test_auth_lets_in(self) -> None:
        """Who has the password is that user, with an initial response and without one."""
        for mechanism in self._built()[0].mechanisms:
            for at_once in (True, False):
                said = self._try(mechanism, USER, PASSWORD, at_once=at_once)
                self._case.assertEqual(Authenticated(USER), said, mechanism)

    def test_auth_refuses(self) -> None:
        """A wrong password and a user who is not there get the same words, 535 5.7.8."""
        for mechanism in self._built()[0].mechanisms:
            refusals = [
                self._try(mechanism, user, password)
                for user, password in ((USER, "wrong"), (STRANGER, "wrong"), (STRANGER, PASSWORD))
            ]
            for refusal in refusals:
                self._case.assertIsInstance(refusal, PermanentFailure)
                self._case.assertEqual((535, "5.7.8"), (refusal.code, refusal.enhanced))
            self._case.assertEqual(1, len(set(map(str, refusals))), mechanism)
            self._case.assertNotIn(USER, str(refusals[0]))

    def test_auth_challenges_alike(self) -> None:
        """Nobody is told by the first challenge whether a user is there: each has as many steps, of
        the same length, and the same question gets the same salt again.
        """
        authenticator, surroundings = self._built()
        if "SCRAM-SHA-256" not in authenticator.mechanisms:
            return
        said: dict[str, list[bytes]] = {}
        for user in (USER, STRANGER) * 2:
            exchange = authenticator.begin("SCRAM-SHA-256", auth_peer())
            first = settled(surroundings, exchange.step(b"n,,n=" + user.encode() + b",r=abc"))
            said.setdefault(user, []).append(first.octets)
            exchange.abandon()
        shapes = {
            (len(first), first.rpartition(b",")[2]) for firsts in said.values() for first in firsts
        }
        self._case.assertEqual(1, len(shapes))
        for firsts in said.values():
            self._case.assertEqual(1, len({first.split(b",")[1] for first in firsts}))
            self._case.assertEqual(2, len({first.split(b",")[0] for first in firsts}))
        self._clean(surroundings)

    def test_auth_another_name(self) -> None:
        """Nobody acts under another's name, not even with a right password (RFC 4616 section 2)."""
        authenticator, surroundings = self._built()
        if "PLAIN" not in authenticator.mechanisms:
            return
        response = b"\0".join((STRANGER.encode(), USER.encode(), PASSWORD.encode()))
        exchange = authenticator.begin("PLAIN", auth_peer())
        said = settled(surroundings, exchange.step(response))
        self._case.assertIsInstance(said, PermanentFailure)

    def test_auth_side_by_side(self) -> None:
        """Two exchanges at the same time know nothing of each other."""
        authenticator, surroundings = self._built()
        for mechanism in authenticator.mechanisms:
            pairs = []
            for password in (PASSWORD, "wrong"):
                client = CLIENTS[mechanism](USER, password, at_once=True)
                pairs.append((authenticator.begin(mechanism, auth_peer()), client, next(client)))
            ended: list[Any] = []
            for _ in range(MOST_STEPS):
                steps = [(e, c, e.step(r)) for e, c, r in pairs]
                pairs = []
                for exchange, client, step in steps:
                    said = settled(surroundings, step)
                    if isinstance(said, Challenge):
                        pairs.append((exchange, client, client.send(said.octets)))
                    else:
                        ended.append(said)
            self._case.assertEqual([], pairs)
            self._case.assertEqual(1, ended.count(Authenticated(USER)), ended)
            self._case.assertEqual(1, sum(isinstance(e, PermanentFailure) for e in ended), ended)

    def test_auth_abandoned(self) -> None:
        """An exchange can be given up before, between and behind its steps; nothing is left."""
        authenticator, surroundings = self._built()
        for mechanism in authenticator.mechanisms:
            unused = authenticator.begin(mechanism, auth_peer())
            unused.abandon()
            begun = authenticator.begin(mechanism, auth_peer())
            self._case.assertIsInstance(settled(surroundings, begun.step(None)), Challenge)
            begun.abandon()
            begun.abandon()
            ended = authenticator.begin(mechanism, auth_peer())
            converse(surroundings, ended, CLIENTS[mechanism](USER, PASSWORD, at_once=True))
            ended.abandon()
            for exchange in (unused, begun, ended):
                said = settled(surroundings, exchange.step(b"more"))
                self._case.assertIsInstance(said, Exception)
            self._clean(surroundings)

    def test_auth_cancelled(self) -> None:
        """Cancelling a step that is under way ends the exchange, and nothing is left."""
        authenticator, surroundings = self._built()
        for mechanism in authenticator.mechanisms:
            client = CLIENTS[mechanism](USER, PASSWORD, at_once=True)
            exchange = authenticator.begin(mechanism, auth_peer())
            step = exchange.step(next(client))
            results: list[Any] = []
            step.addBoth(results.append)
            if not results:
                step.cancel()
                self._case.assertEqual(1, len(results))
                self._case.assertTrue(results[0].check(CancelledError), results)
            exchange.abandon()
            self._clean(surroundings)

    def test_auth_any_octets(self) -> None:
        """Whatever a client says, each step ends: in a challenge, or 535, 501 or 454."""

        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(st.integers(0, 2), st.lists(_RESPONSES, min_size=1, max_size=4))
        def each_step_ends(number: int, responses: list[bytes]) -> None:
            authenticator, surroundings = self._built()
            mechanism = authenticator.mechanisms[number % len(authenticator.mechanisms)]
            exchange = authenticator.begin(mechanism, auth_peer())
            for response in responses:
                said = settled(surroundings, exchange.step(response))
                if not isinstance(said, Challenge):
                    self._case.assertIsInstance(said, PermanentFailure | TransientFailure)
                    self._case.assertIn((said.code, said.enhanced), _REFUSALS)
                    break
            exchange.abandon()
            self._clean(surroundings)

        each_step_ends()


_REFUSALS = {(535, "5.7.8"), (501, "5.5.2"), (454, "4.7.0")}
_RESPONSES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        (
            *(b"", b"\0\0", b"\0anna\0", b"\0\0x", b"anna", b"a\t\n\0b", b"\xff" * 20_000),
            *(b"n,,n=anna,r=x", b"n,,n=\0,r=x", b"p=tls-unique,,n=anna,r=x", b"c=biws,r=x"),
        )
    ),
)
