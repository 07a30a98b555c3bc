"""SASL in the client's role: the RFC's own conversations, and servers that say anything at all."""

from __future__ import annotations

from base64 import b64encode

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import RemoteProtocolError
from mta.wire.sasl_client import (
    EXCHANGES,
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    Credentials,
    Exchange,
    Login,
    Plain,
    Salt,
    Scram,
    decode,
    derive,
    strongest,
)

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
NONCE = b"rOprNGfwEbeRWgbNEkqO"
SALT = b"W22ZaJ0SNY7soEsUEjb6gQ=="
FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=" + SALT + b",i=4096"
FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
PENCIL = Credentials("user", "pencil", NONCE)
KEY = derive(b"pencil", decode(SALT), FEWEST_ROUNDS)
CHALLENGES = st.lists(
    st.binary(max_size=60)
    | st.sampled_from([FIRST, FINAL, b"", b"e=other-error", b"v=", b"m=x," + FIRST])
    | st.builds(lambda salt, rounds: b"r=%bx,s=%b,i=%b" % (NONCE, salt, rounds),
                st.binary(max_size=8).map(b64encode) | st.binary(max_size=4),
                st.sampled_from([b"4096", b"4095", b"1000000", b"2147483648", b"-1", b"", b"0x"])),
    max_size=5,
)  # fmt: skip


def scram(credentials: Credentials = PENCIL) -> Scram:
    """The RFC's exchange, which has begun."""
    exchange = Scram(credentials)
    exchange.begin()
    return exchange


class MechanismTests(SynchronousTestCase):
    def test_scram_of_the_rfc(self) -> None:
        """RFC 7677 section 3, octet by octet; in before the server has proved itself is not in."""
        exchange = Scram(PENCIL)
        self.assertEqual(exchange.begin(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
        self.assertEqual(exchange.answer(FIRST), Salt(decode(SALT), 4096))
        self.assertEqual(
            exchange.derived(KEY),
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        )
        self.assertFalse(exchange.is_proven)
        self.assertEqual(exchange.answer(FINAL), b"")
        self.assertTrue(exchange.is_proven)
        self.assertRaises(RemoteProtocolError, exchange.answer, b"")

    def test_plain_of_the_rfc(self) -> None:
        """RFC 4616 section 4, without another identity to act for; nothing is asked behind it."""
        plain = Plain(Credentials("tim", "tanstaaftanstaaf", NONCE))
        self.assertEqual(plain.begin(), b"\0tim\0tanstaaftanstaaf")
        self.assertRaises(RemoteProtocolError, plain.answer, b"")

    def test_login(self) -> None:
        """The name, then the password, whatever the prompts say; a third prompt has no answer."""
        login = Login(PENCIL)
        self.assertIsNone(login.begin())
        self.assertEqual(login.answer(b"Username:"), b"user")
        self.assertEqual(login.answer(b""), b"pencil")
        self.assertRaises(RemoteProtocolError, login.answer, b"Password:")

    def test_a_server_that_is_another(self) -> None:
        """A signature that does not fit, or is none, ends it; an error leaves the server unproven."""
        for final in (b"v=" + SALT, b"v=", b"v=!", b"x=1", b"", b"v=" + FINAL[2:-4]):
            exchange = scram()
            exchange.answer(FIRST)
            exchange.derived(KEY)
            self.assertRaises(RemoteProtocolError, exchange.answer, final)
            self.assertFalse(exchange.is_proven)
        exchange = scram()
        exchange.answer(FIRST)
        exchange.derived(KEY)
        self.assertEqual(exchange.answer(b"e=invalid-proof"), b"")
        self.assertFalse(exchange.is_proven)
        self.assertRaises(RemoteProtocolError, exchange.answer, FINAL)

    def test_signature_before_its_turn(self) -> None:
        """A server that signs without having heard us has proved nothing."""
        exchange = scram()
        self.assertRaises(RemoteProtocolError, exchange.answer, FINAL)
        exchange = scram()
        exchange.answer(FIRST)
        self.assertRaises(RemoteProtocolError, exchange.answer, FINAL)
        self.assertFalse(exchange.is_proven)

    def test_rounds(self) -> None:
        """4096 to 1 000 000 rounds are done: fewer protect nothing, more are an attack."""
        for rounds in (FEWEST_ROUNDS, MOST_ROUNDS):
            salt = scram().answer(FIRST.replace(b"4096", b"%d" % rounds))
            self.assertEqual(salt, Salt(decode(SALT), rounds))
        for rounds in (b"4095", b"1000001", b"2147483648", b"04096", b"-4096", b"", b"9" * 5000):
            message = FIRST.replace(b"4096", rounds)
            self.assertRaises(RemoteProtocolError, scram().answer, message)

    def test_nonce(self) -> None:
        """The server's nonce goes on from ours, adds something, and is printable."""
        for nonce in (NONCE, b"other" + NONCE, NONCE[:-1], b"", NONCE + b" ", NONCE + b"x" * 2000):
            message = b"r=" + nonce + b",s=" + SALT + b",i=4096"
            self.assertRaises(RemoteProtocolError, scram().answer, message)

    def test_extensions(self) -> None:
        """A mandatory extension is refused (RFC 5802 5.1); optional ones are passed over."""
        self.assertRaises(RemoteProtocolError, scram().answer, b"m=1," + FIRST)
        self.assertEqual(scram().answer(FIRST + b",x=1"), Salt(decode(SALT), 4096))

    def test_prepared(self) -> None:
        """Name and password go into SCRAM in their SASLprep form, a comma and = in the name quoted;
        what has no such form is refused there, and nowhere else.
        """
        exchange = Scram(Credentials("a=b,\u00aa", "I\u00adX", NONCE))
        self.assertEqual(exchange.begin(), b"n,,n=a=3Db=2Ca,r=" + NONCE)
        self.assertEqual(exchange.password, b"IX")
        for wrong in (("user", "\U0001f600"), ("user", "\u00ad"), ("\t", "pencil")):
            self.assertRaises(ValueError, Scram, Credentials(*wrong, NONCE))
            self.assertIn(wrong[1].encode(), Plain(Credentials(*wrong, NONCE)).begin())

    def test_impossible_credentials(self) -> None:
        """An empty name or password, NUL, and what has no UTF-8 make no credentials."""
        for user, password in (("", "x"), ("x", ""), ("x", "a\0b"), ("a\0", "x"), ("x", "\udc80")):
            error = self.assertRaises(ValueError, Credentials, user, password, NONCE)
            self.assertTrue(str(error).isascii())

    def test_strongest(self) -> None:
        """The best of those that both have, whatever their order."""
        self.assertIs(strongest(["LOGIN", "PLAIN", "SCRAM-SHA-256"], EXCHANGES), Scram)
        self.assertIs(strongest(["LOGIN", "PLAIN", "XOAUTH2"], EXCHANGES), Plain)
        self.assertIs(strongest(["PLAIN", "LOGIN"], ["LOGIN"]), Login)
        self.assertIsNone(strongest(["CRAM-MD5"], EXCHANGES))

    def test_silence_about_the_password(self) -> None:
        """It is in no `repr`, and a server's words that repeat it are known for that."""
        self.assertNotIn("pencil", repr(PENCIL))
        for kind in EXCHANGES.values():
            exchange = kind(PENCIL)
            for text in (b"no pencil here", b"no " + b64encode(b"pencil")):
                self.assertTrue(exchange.betrays(text), kind)
            self.assertFalse(exchange.betrays(b"authentication failed"))
        self.assertTrue(Plain(PENCIL).betrays(b"? " + b64encode(b"\0user\0pencil")))


class WhateverComesTests(SynchronousTestCase):
    @LIGHT
    @given(st.sampled_from(sorted(EXCHANGES)), CHALLENGES)
    def test_any_server(self, name: str, challenges: list[bytes]) -> None:
        """Any octets of a server end in a response, a bounded salt, or a refusal without the
        password; only its signature proves it.
        """
        exchange: Exchange = EXCHANGES[name](PENCIL)
        exchange.begin()
        for challenge in challenges:
            try:
                said = exchange.answer(challenge)
                if isinstance(said, Salt):
                    self.assertTrue(FEWEST_ROUNDS <= said.rounds <= MOST_ROUNDS and said.salt)
                    said = exchange.derived(derive(b"pencil", said.salt, 1))
                self.assertNotIn(b"\0", said)
            except RemoteProtocolError as error:
                self.assertNotIn("pencil", str(error))
                break
        self.assertEqual(exchange.is_proven, name != "SCRAM-SHA-256")

    @LIGHT
    @given(st.binary(max_size=40))
    def test_base64(self, text: bytes) -> None:
        """base64 is read as it is written, and nothing else is."""
        self.assertEqual(decode(b64encode(text)), text)
        try:
            self.assertEqual(b64encode(decode(text)).rstrip(b"=")[:-1], text.rstrip(b"=")[:-1])
        except RemoteProtocolError:
            pass
