"""The server's side of PLAIN, LOGIN and SCRAM-SHA-256: RFC vectors, refusals, any octets."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import LocalProtocolError, PermanentFailure
from mta.model import Challenge
from mta.testing.auth_suite import scram as scram_client
from mta.wire.sasl import LONGEST_OCTETS, Credentials, Login, Plain
from mta.wire.scram import (
    LEAST_ITERATIONS,
    Proven,
    Scram,
    Verifier,
    Wanted,
    feigned,
    parse_verifier,
    verifier_for,
)

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
PENCIL = verifier_for("pencil", SALT, 4096)
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
"""RFC 7677 section 3."""


class SaslTestCase(SynchronousTestCase):
    def refused(self, code: int, machine: Any, response: bytes) -> PermanentFailure:
        """The machine refuses this response with `code`, and is over."""
        failure = self.assertRaises(PermanentFailure, machine.respond, response)
        self.assertEqual(code, failure.code)
        self.assertEqual({535: "5.7.8", 501: "5.5.2"}[code], failure.enhanced)
        self.assertRaises(LocalProtocolError, machine.respond, response)
        return failure


class PlainTests(SaslTestCase):
    def test_credentials(self) -> None:
        """RFC 4616 section 4: with and without an authorization identity, at once or asked for."""
        for response in (b"\0tim\0tanstaaftanstaaf", b"tim\0tim\0tanstaaftanstaaf"):
            self.assertEqual(Credentials("tim", "tanstaaftanstaaf"), Plain().respond(response))
        machine = Plain()
        self.assertEqual(Challenge(b""), machine.respond(None))
        self.assertRaises(LocalProtocolError, machine.respond, None)
        self.assertEqual(Credentials("tim", "x"), machine.respond(b"\0tim\0x"))

    def test_another_name(self) -> None:
        """Who wants to act as somebody else is refused."""
        self.refused(535, Plain(), b"Ursel\0Kurt\0xipj3plmq")

    def test_no_response_of_plain(self) -> None:
        """Too few or too many NULs, nothing where a name or a password stands, no UTF-8."""
        for response in (
            *(b"", b"tim", b"\0tim", b"tim\0x", b"\0tim\0x\0", b"\0a\0b\0c", b"\0\0x", b"\0tim\0"),
            *(b"\0\xff\0x", b"\0tim\0\xc3", b"\0tim\0" + b"x" * (LONGEST_OCTETS + 1)),
            b"\0" + b"t" * (LONGEST_OCTETS + 1) + b"\0x",
        ):
            self.refused(501, Plain(), response)

    def test_names_that_nobody_has(self) -> None:
        """What SASLprep forbids is refused as a wrong password is."""
        for response in (
            "\0\u00ad\0x".encode(),
            b"\0ti\x07m\0x",
            b"\0tim\0\x7f",
            "\0t\u202em\0x".encode(),
            b"\0t\nm\0x",
        ):
            self.refused(535, Plain(), response)

    def test_prepared(self) -> None:
        """A name and its other spelling are the same name (RFC 4013)."""
        said = Plain().respond("\0I\u00adX\0\u2168\u00a0x".encode())
        self.assertEqual(Credentials("IX", "IX x"), said)

    def test_no_password_in_a_traceback(self) -> None:
        """What was told does not show when it is printed."""
        self.assertNotIn("hunter2", repr(Plain().respond(b"\0tim\0hunter2")))

    @LIGHT
    @given(st.one_of(st.binary(), st.lists(st.text(), min_size=3, max_size=3).map("\0".join).map(
        lambda text: text.encode("utf-8", "replace"))))  # fmt: skip
    def test_any_octets(self, response: bytes) -> None:
        """Any response gives credentials that are not empty, or a refusal."""
        try:
            said = Plain().respond(response)
        except PermanentFailure as failure:
            self.assertIn(failure.code, {501, 535})
        else:
            assert isinstance(said, Credentials)
            self.assertTrue(said.user and said.password)


class LoginTests(SaslTestCase):
    def test_credentials(self) -> None:
        """Asked for both, or the name at once."""
        machine = Login()
        self.assertEqual(Challenge(b"Username:"), machine.respond(None))
        self.assertEqual(Challenge(b"Password:"), machine.respond(b"tim"))
        self.assertEqual(Credentials("tim", "x y"), machine.respond(b"x y"))
        machine = Login()
        self.assertEqual(Challenge(b"Password:"), machine.respond(b"tim"))
        self.assertEqual(Credentials("tim", "x"), machine.respond(b"x"))

    def test_refused(self) -> None:
        """Nothing for a name or a password is no response; a NUL is in no name."""
        self.refused(501, Login(), b"")
        self.refused(501, Login(), b"x" * (LONGEST_OCTETS + 1))
        for code, user, password in (
            *((501, b"tim", b""), (501, b"\xff", b"x"), (535, b"t\0m", b"x"), (535, b"t", b"\0")),
            (501, b"t", b"x" * (LONGEST_OCTETS + 1)),
        ):
            machine = Login()
            machine.respond(user)
            self.refused(code, machine, password)

    @LIGHT
    @given(st.binary(), st.binary())
    def test_any_octets(self, user: bytes, password: bytes) -> None:
        """Any two responses give credentials that are not empty, or a refusal."""
        machine = Login()
        try:
            self.assertEqual(Challenge(b"Password:"), machine.respond(user))
            said = machine.respond(password)
        except PermanentFailure as failure:
            self.assertIn(failure.code, {501, 535})
        else:
            assert isinstance(said, Credentials)
            self.assertTrue(said.user and said.password)


class ScramTests(SaslTestCase):
    def challenged(self, first: bytes = FIRST, verifier: Verifier = PENCIL) -> Scram:
        machine = Scram()
        self.assertEqual(Wanted("user"), machine.respond(first))
        machine.challenge(verifier, NONCE)
        return machine

    def test_the_rfc(self) -> None:
        """RFC 7677 section 3, octet by octet."""
        machine = Scram()
        self.assertEqual(Challenge(b""), machine.respond(None))
        self.assertEqual(Wanted("user"), machine.respond(FIRST))
        self.assertEqual(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            machine.challenge(PENCIL, NONCE).octets,
        )
        self.assertEqual(
            Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), machine.respond(FINAL)
        )
        self.assertEqual(Proven("user"), machine.respond(b""))
        self.assertRaises(LocalProtocolError, machine.respond, b"")

    def test_the_end_is_empty(self) -> None:
        """Behind the server's proof a client has nothing to say."""
        machine = self.challenged()
        machine.respond(FINAL)
        self.refused(501, machine, b"x")

    def test_flags(self) -> None:
        """A client that could bind to a channel is taken; one that does is refused."""
        self.challenged(b"y,,n=user,r=abc")
        self.challenged(b"n,a=user,n=user,r=abc,ext=later")
        self.refused(535, Scram(), b"p=tls-exporter,,n=user,r=abc")

    def test_binding_is_repeated(self) -> None:
        """What the client says of the channel must be what it said at first."""
        machine = self.challenged(b"y,,n=user,r=rOprNGfwEbeRWgbNEkqO")
        self.refused(535, machine, FINAL)

    def test_no_client_first(self) -> None:
        """What has another form than RFC 5802 section 7 gives it is no response."""
        for first in (
            *(b"", b"n", b"n,,", b"n,,n=user", b"n,,n=user,r=", b"x,,n=user,r=a", b"n,,n=,r=a"),
            *(b"n,,m=must,n=user,r=a", b"n,,n=us=er,r=a", b"n,,n=u=2c,r=a", b"n,,n=\xff,r=a"),
            *(b"n,,n=user,r=a b", b"n,,n=user,r=" + b"x" * 257, b"n,b=x,n=user,r=a"),
        ):
            self.refused(501, Scram(), first)

    def test_no_client_final(self) -> None:
        """Nor is a last message without its parts."""
        for final in (b"", b"c=biws", FINAL[:-4], FINAL[:-1] + b"!", FINAL[2:], b"x" + FINAL):
            self.refused(501, self.challenged(), final)

    def test_wrong(self) -> None:
        """A wrong password, another nonce, and a user whom nobody knows."""
        self.refused(535, self.challenged(), FINAL[:-4] + b"AAA=")
        self.refused(535, self.challenged(), FINAL.replace(b"hvY", b"hvy"))
        nobodys = feigned("user", PENCIL, b"key")
        self.refused(535, self.challenged(verifier=nobodys), FINAL)

    def test_names(self) -> None:
        """Commas and equals signs in a name are unfolded; nobody acts as another."""
        self.assertEqual(Wanted("a,b=c"), Scram().respond(b"n,,n=a=2Cb=3Dc,r=x"))
        self.refused(535, Scram(), b"n,a=other,n=user,r=x")
        self.refused(535, Scram(), b"n,,n=us\0er,r=x")

    def test_our_own_client(self) -> None:
        """The client of the conformance suite and this server agree, on any name and password."""
        for user, password in (("a,b=c", "x"), ("änne", "pässword")):
            verifier = verifier_for(password, b"01234567", LEAST_ITERATIONS)
            client, machine = scram_client(user, password, at_once=True), Scram()
            self.assertEqual(Wanted(user), machine.respond(next(client)))
            challenge = machine.challenge(verifier, NONCE)
            last = machine.respond(client.send(challenge.octets))
            assert isinstance(last, Challenge)
            self.assertEqual(Proven(user), machine.respond(client.send(last.octets)))

    def test_out_of_turn(self) -> None:
        """A challenge without a question, and a question without an answer, are our defects."""
        self.assertRaises(LocalProtocolError, Scram().challenge, PENCIL, NONCE)
        machine = Scram()
        machine.respond(FIRST)
        self.assertRaises(LocalProtocolError, machine.respond, FINAL)
        machine = Scram()
        machine.respond(None)
        self.assertRaises(LocalProtocolError, machine.respond, None)

    @LIGHT
    @given(
        st.lists(
            st.one_of(
                st.binary(),
                st.sampled_from((FIRST, FINAL, b"")),
                st.tuples(st.sampled_from((FIRST, FINAL)), st.integers(0, 90), st.binary(max_size=2)).map(
                    lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] + 1 :]
                ),
            ),
            min_size=1,
            max_size=4,
        )
    )  # fmt: skip
    def test_any_octets(self, responses: list[bytes]) -> None:
        """Any octets at any step end in a defined result; only who has the password is let in."""
        machine = Scram()
        said: Any = None
        for response in responses:
            try:
                said = machine.respond(response)
            except PermanentFailure as failure:
                self.assertIn(failure.code, {501, 535})
                return
            if isinstance(said, Wanted):
                machine.challenge(PENCIL, NONCE)
            elif isinstance(said, Proven):
                self.assertEqual([FINAL, b""], responses[1:3])
                return


class VerifierTests(SynchronousTestCase):
    def test_written_and_read(self) -> None:
        """RFC 5803's form is read as it is written, and shows nothing when it is printed."""
        text = str(PENCIL)
        self.assertTrue(text.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"))
        self.assertEqual(PENCIL, parse_verifier(text))
        self.assertNotIn(repr(PENCIL.stored_key), repr(PENCIL))

    def test_refused(self) -> None:
        """Damaged ones are refused with why."""
        text = str(PENCIL)
        server_key = text.rpartition(":")[2]
        for old, new, why in (
            *(("SCRAM", "SCREAM", "expected"), (":" + server_key, "", "expected")),
            *(("4096", "4095", "iterations"), ("4096", "99999999", "iterations")),
            *(("W22Z", "W2!Z", "base64"), ("W22Z", "W22Z" * 20, "a salt has")),
            (server_key, "W22Z", "octets each"),
        ):
            self.assertIn(old, text)
            error = self.assertRaises(ValueError, parse_verifier, text.replace(old, new))
            self.assertIn(why, str(error))

    def test_feigned(self) -> None:
        """Nobody's is the same each time, another for another name, and looks like one."""
        one = feigned("x", PENCIL, b"key")
        self.assertEqual(one, feigned("x", PENCIL, b"key"))
        self.assertNotEqual(one.salt, feigned("y", PENCIL, b"key").salt)
        self.assertNotEqual(one.salt, feigned("x", PENCIL, b"other").salt)
        self.assertEqual((len(SALT), 4096), (len(one.salt), one.iterations))
        self.assertEqual(one, parse_verifier(str(one)))

    @LIGHT
    @given(st.one_of(st.text(), st.text("SCRAM-H256$:=ab4096+/", max_size=80).map("SCRAM-SHA-256$".__add__)))  # fmt: skip
    def test_any_text(self, text: str) -> None:
        """Any text is a verifier within its bounds, or a ValueError."""
        try:
            verifier = parse_verifier(text)
        except ValueError:
            return
        self.assertEqual(verifier, parse_verifier(str(verifier)))
