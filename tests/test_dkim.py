"""The policy `dkim`: what it signs another program verifies, and what it leaves alone."""

from __future__ import annotations

import base64
import functools
import os
from typing import Any

import dkim as verifier
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import StartRefused
from mta.policy.dkim import Dkim, DkimSettings
from mta.policy.dkim_keys import LOOK_SECONDS, read_key
from mta.telemetry import Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.policy_suite import IPolicyTests
from mta.testing.surroundings import MemorySurroundings
from mta.wire.smtp.content import Stuffer, unstuffed
from tests.intake_ground import STRANGER, House, Recorder, begin

PAST = 1_700_000_000.0
"""The verifier looks at the real clock: a signature from the future is none."""
HEADER = b"From: A <a@example.org>\r\nTo: b@example.com\r\nSubject: one\r\n two\r\n"
BODY = b"Hello  there \r\n.a line with a dot\r\n\r\n\r\n"


@functools.cache
def rsa_key(bits: int = 2048) -> Any:
    return rsa.generate_private_key(65537, bits)


@functools.cache
def ed25519_key(number: int = 0) -> Any:
    return ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[no-any-return]


def record(key: Any) -> bytes:
    """Its TXT record, as docs/operating.md makes it with openssl."""
    form = PublicFormat.SubjectPublicKeyInfo
    der = key.public_key().public_bytes(Encoding.DER, form)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"v=DKIM1; k=ed25519; p=" + base64.b64encode(der[-32:])
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)


def wire(content: bytes) -> bytes:
    stuffer = Stuffer()
    return stuffer.take(content) + stuffer.finish()


class Ground:
    """A policy with keys in files, and a DNS in a dictionary."""

    def __init__(self, case: SynchronousTestCase, keys: dict[str, Any] | None = None) -> None:
        self.case = case
        self.keys = {"s1": rsa_key(), "s2": ed25519_key()} if keys is None else keys
        self.files = {selector: case.mktemp() for selector in self.keys}
        for selector in self.keys:
            self.write(selector, pem(self.keys[selector]))
        self.events: list[Any] = []
        self.telemetry = Telemetry()
        self.telemetry.attach(self.events.append)
        self.surroundings = MemorySurroundings(clock=VirtualClock(PAST), telemetry=self.telemetry)

    def write(self, selector: str, text: bytes, mode: int = 0o600) -> None:
        with open(self.files[selector], "wb") as file:
            file.write(text)
        os.chmod(self.files[selector], mode)

    def settings(self, **more: Any) -> DkimSettings:
        domains = [
            {
                "domain": "example.org",
                "selector": selector,
                "key-file": os.path.abspath(path),
                **more,
            }
            for selector, path in self.files.items()
        ]
        return DkimSettings.model_validate({"domains": domains})

    def policy(self, **more: Any) -> Dkim:
        return Dkim(self.settings(**more), self.surroundings)

    def notices(self) -> list[str]:
        return [f"{e.level}: {e.text}" for e in self.events if e.room == "dkim"]

    def pass_through(
        self,
        content: bytes,
        *policies: Any,
        chunked: bool = False,
        cuts: list[int] | None = None,
        client: dict[str, Any] | None = None,
        parameters: dict[bytes, bytes | None] | None = None,
        **keys: Any,
    ) -> bytes:
        """What is stored of `content`, dots unstuffed."""
        house = House(policies, **keys)
        reception = house.reception(**(client or {}))
        self.case.assertEqual({None}, set(begin(reception, parameters=parameters)))
        self.case.assertIsNone(reception.bdat() if chunked else reception.data())
        data, at = content if chunked else wire(content), 0
        for cut in cuts or []:
            if data[at : at + cut]:
                reception.chunk(data[at : at + cut])
            at += cut
        if data[at:]:
            reception.chunk(data[at:])
        self.case.assertEqual(250, self.case.successResultOf(reception.end(None)).code)
        stored = house.spool.stagings[0].stored
        before = stored[: len(stored) - len(data)]
        return before + (data if chunked else unstuffed(data))

    def verified(self, message: bytes) -> list[bool]:
        """What dkimpy says of each signature, the topmost first."""
        names = {
            b"%b._domainkey.example.org." % selector.encode(): record(key)
            for selector, key in self.keys.items()
        }

        def look_up(name: bytes, timeout: int = 5) -> bytes | None:
            return names.get(name)

        def verify(index: int) -> bool:
            try:
                return bool(verifier.DKIM(message).verify(idx=index, dnsfunc=look_up))
            except verifier.ValidationError:  # a body of another hash
                return False

        signatures = message.partition(b"\r\n\r\n")[0].count(b"\r\nDKIM-Signature:")
        return [verify(index) for index in range(signatures)]


class ConformanceTests(IPolicyTests, SynchronousTestCase):
    def build(self, surroundings: MemorySurroundings) -> Any:
        return Dkim(Ground(self, {"s2": ed25519_key()}).settings(), surroundings)


class SigningTests(SynchronousTestCase):
    """What is stored verifies, by a program that is not ours."""

    def setUp(self) -> None:
        self.ground = Ground(self)

    def test_both_keys(self) -> None:
        """A message of an admitted client bears a signature by each key of its domain."""
        policy = self.ground.policy()
        stored = self.ground.pass_through(HEADER + b"\r\n" + BODY, policy)
        self.assertEqual([True, True], self.ground.verified(stored))
        self.assertIn(b"a=rsa-sha256;", stored)
        self.assertIn(b"a=ed25519-sha256;", stored)
        self.assertIn(b"t=1700000000;", stored)
        self.assertEqual([], self.ground.notices())
        self.assertEqual(1, self.ground.telemetry.counter("mta_dkim_signed_total").value)

    def test_changed(self) -> None:
        """Whoever changes the text, a field, or puts a second one before it breaks both."""
        stored = self.ground.pass_through(HEADER + b"\r\n" + BODY, self.ground.policy())
        for changed in (
            stored.replace(b"Hello", b"Hallo"),
            stored.replace(b"Subject: one", b"Subject: two"),
            b"From: other@example.org\r\n" + stored,
            b"Subject: another\r\n" + stored,
        ):
            self.assertEqual([False, False], self.ground.verified(changed))
        # What a next hop does, and what a list adds that had nothing there, breaks neither.
        passed = b"Received: from us\r\nX-Any: x\r\nReply-To: list@example.net\r\n" + stored
        self.assertEqual([True, True], self.ground.verified(passed))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.sampled_from(
                [
                    *(b"To: b@example.com", b"to:  c@example.com\t", b"Cc: x,\r\n\ty", b"X-A: b"),
                    *(b"Subject: =?x?=", b"Subject:", b"List-Id: a\r\n  b", b".dot: x"),
                    "X: ü".encode(),
                ]
            ),
            max_size=6,
        ),
        st.lists(
            st.sampled_from([b"", b" ", b".", b"..", b"a  b", b"a\t ", "ü".encode(), b"From x"]),
            max_size=10,
        ),
        st.lists(st.integers(0, 40), max_size=6),
        st.booleans(),
    )
    def test_any_message(
        self, fields: list[bytes], lines: list[bytes], cuts: list[int], chunked: bool
    ) -> None:
        """Random headers and bodies, in pieces cut anywhere, by DATA and by BDAT."""
        header = b"".join(f + b"\r\n" for f in [*fields, b"From: a@example.org"])
        body = b"".join(line + b"\r\n" for line in lines)
        stored = self.ground.pass_through(
            header + b"\r\n" + body, self.ground.policy(), chunked=chunked, cuts=cuts
        )
        self.assertEqual([True, True], self.ground.verified(stored))

    def test_chunks(self) -> None:
        """By BDAT no dot is stuffed, and a last line without CRLF is signed as if it had one."""
        stored = self.ground.pass_through(
            HEADER + b"\r\n..\r\n.x", self.ground.policy(), chunked=True
        )
        self.assertTrue(stored.endswith(b"\r\n..\r\n.x"))
        self.assertEqual([True, True], self.ground.verified(stored))
        self.assertEqual([True, True], self.ground.verified(stored + b"\r\n"))

    def test_no_body(self) -> None:
        """A header alone, with and without the empty line."""
        for content in (HEADER, HEADER + b"\r\n"):
            stored = self.ground.pass_through(content, self.ground.policy())
            self.assertEqual([True, True], self.ground.verified(stored))

    def test_completed(self) -> None:
        """Date and Message-ID that we put before a local program's message are signed too."""
        stored = self.ground.pass_through(
            HEADER + b"\r\n" + BODY, self.ground.policy(), client={"host": "", "uid": 1000}
        )
        self.assertEqual([True, True], self.ground.verified(stored))
        for old, new in ((b"Date: ", b"Date:  x"), (b"Message-ID: <", b"Message-ID: <x")):
            self.assertEqual(1, stored.count(b"\r\n" + old))
            changed = stored.replace(b"\r\n" + old, b"\r\n" + new)
            self.assertEqual([False, False], self.ground.verified(changed))

    def test_added_before(self) -> None:
        """A field that a policy before this one added is part of what is signed."""

        def add(transaction: Any) -> None:
            transaction.add_header(b"Subject", b"added")

        policy = self.ground.policy()
        stored = self.ground.pass_through(HEADER + b"\r\n", Recorder(headers=add), policy)
        self.assertEqual([True, True], self.ground.verified(stored))
        changed = stored.replace(b"Subject: added", b"Subject: other")
        self.assertEqual([False, False], self.ground.verified(changed))

    def test_subdomains(self) -> None:
        """Names below the domain are signed with it only where that was asked for."""
        content = HEADER.replace(b"@example.org", b"@Mail.Example.ORG") + b"\r\n" + BODY
        plain = self.ground.pass_through(content, self.ground.policy())
        self.assertNotIn(b"DKIM-Signature", plain)
        stored = self.ground.pass_through(content, self.ground.policy(subdomains="true"))
        self.assertEqual([True, True], self.ground.verified(stored))
        self.assertIn(b"d=example.org;", stored)
        other = content.replace(b"@Mail.Example.ORG", b"@notexample.org")
        passed = self.ground.pass_through(other, self.ground.policy(subdomains="true"))
        self.assertNotIn(b"DKIM-Signature", passed)

    def test_nearest_name(self) -> None:
        """Keys of the name itself go before those of one above it."""
        first = self.ground.settings(subdomains="true").domains[0]
        domains = [first, first.model_copy(update={"domain": "sub.example.org"})]
        policy = Dkim(DkimSettings(domains=tuple(domains)), self.ground.surroundings)
        for author, domain in (
            (b"@sub.example.org", b"d=sub.example.org;"),
            (b"@a.sub.example.org", b"d=sub.example.org;"),
            (b"@other.example.org", b"d=example.org;"),
        ):
            content = HEADER.replace(b"@example.org", author) + b"\r\n"
            stored = self.ground.pass_through(content, policy)
            self.assertEqual(1, stored.count(b"DKIM-Signature"))
            self.assertIn(domain, stored)


class UnsignedTests(SynchronousTestCase):
    """What is not signed goes on as it came, and the log says why where that is a surprise."""

    def setUp(self) -> None:
        self.ground = Ground(self, {"s2": ed25519_key()})

    def unsigned(self, content: bytes, *expected: str, **keys: Any) -> None:
        stored = self.ground.pass_through(content, self.ground.policy(), **keys)
        self.assertNotIn(b"DKIM-Signature", stored)
        self.assertTrue(stored.endswith(content))
        self.assertEqual([f"info: not signed: {text}" for text in expected], self.ground.notices())
        self.ground.events.clear()

    def test_strangers(self) -> None:
        """Nobody who may not relay gets our signature, whatever his From says."""
        self.unsigned(HEADER + b"\r\n" + BODY, client={"host": STRANGER})

    def test_other_domains(self) -> None:
        """Mail of domains that are not listed passes without a word."""
        self.unsigned(HEADER.replace(b"example.org", b"example.net") + b"\r\n" + BODY)

    def test_authors(self) -> None:
        """No From field, two of them, or one that names several addresses."""
        self.unsigned(b"To: b@example.com\r\n\r\n" + BODY, "it has no From field")
        self.unsigned(HEADER + HEADER + b"\r\n" + BODY, "it has 2 From fields")
        self.unsigned(
            b"From: a@example.org, b@example.org\r\n\r\n" + BODY,
            "its From field names several addresses, or a group",
        )

    def test_header(self) -> None:
        """A header that is none, or too long to be looked at whole."""
        self.unsigned(HEADER + b"no field\r\n\r\n", "its header has a line that is no field")
        long = b"From: a@example.org\r\n" + b"X: x\r\n" * 1000 + b"\r\n" + BODY
        for cuts in ([], [4096], [10, 4090]):
            self.unsigned(
                long, "its header is longer than header-limit", cuts=cuts, header_limit=4096
            )

    def test_binary(self) -> None:
        """Content that has no lines: declared so, or found to be so at its end (RFC 6376 5.3)."""
        self.unsigned(
            HEADER + b"\r\n" + BODY,
            "it is BINARYMIME, and only lines can be signed",
            chunked=True,
            parameters={b"BODY": b"BINARYMIME"},
        )
        for body in (b"a\nb", b"\0", b"x" * 2000):
            self.unsigned(
                HEADER + b"\r\n" + body,
                "it is no text, and only lines can be signed",
                chunked=True,
            )


class KeyTests(SynchronousTestCase):
    """A key that cannot be used is refused by name, with what to do."""

    def refused(self, ground: Ground) -> str:
        return str(self.assertRaises(StartRefused, ground.policy))

    def test_start(self) -> None:
        """Too small, none at all, with a passphrase, of another kind, damaged."""
        ground = Ground(self, {"s1": rsa_key()})
        locked = rsa_key().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        numbers = rsa_key().private_numbers()
        damaged = rsa.RSAPrivateNumbers(
            numbers.p, numbers.q, numbers.d + 2, numbers.dmp1 + 2, numbers.dmq1 + 2,
            numbers.iqmp, numbers.public_numbers,
        ).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip
        for text, words in (
            (pem(rsa_key(1024)), ("too small", "RSA of 1024 bits", "2048")),
            (b"", ("holds no DKIM key", "openssl genpkey")),
            (b"v=DKIM1; p=x\n", ("holds no DKIM key", "openssl genpkey")),
            (locked, ("holds no DKIM key", "passphrase")),
            (pem(dsa.generate_private_key(1024)), ("of another kind", "RSA or Ed25519")),
            (pem(damaged), ("is damaged", "restore the file")),
        ):
            ground.write("s1", text)
            said = self.refused(ground)
            for word in (*words, os.path.abspath(ground.files["s1"])):
                self.assertIn(word, said)
            self.assertNotIn("secret", said)

    def test_file(self) -> None:
        """Missing, or open to others: the configuration says so with its place."""
        ground = Ground(self, {"s1": rsa_key()})
        path = os.path.abspath(ground.files["s1"])
        os.chmod(path, 0o604)
        fault = str(self.assertRaises(ValidationError, ground.settings))
        self.assertIn("can be read or written by others", fault)
        self.assertIn("can be read", str(self.assertRaises(StartRefused, read_key, path)))
        os.remove(path)
        self.assertIn("No such file", str(self.assertRaises(ValidationError, ground.settings)))
        self.assertIn("No such file", str(self.assertRaises(StartRefused, read_key, path)))

    def test_settings(self) -> None:
        """One selector twice, no domain, a name that is none: each is refused with its words."""
        ground = Ground(self, {"s1": rsa_key()})
        one = {
            "domain": "Example.ORG",
            "selector": "s1",
            "key-file": os.path.abspath(ground.files["s1"]),
        }
        self.assertEqual(
            "example.org", DkimSettings.model_validate({"domains": [one]}).domains[0].domain
        )
        for domains, words in (
            ([one, one], "s1._domainkey.example.org is given twice"),
            ([], "at least 1 item"),
            ([one | {"domain": "bücher.example"}], "xn--"),
            ([one | {"selector": "a;b"}], "is not a name in DNS"),
        ):
            fault = self.assertRaises(
                ValidationError, DkimSettings.model_validate, {"domains": domains}
            )
            self.assertIn(words, str(fault))

    def test_read_again(self) -> None:
        """A key that was exchanged signs ten seconds later at most; nobody has to reload."""
        ground = Ground(self, {"s2": ed25519_key()})
        policy = ground.policy()
        ground.keys["s2"] = ed25519_key(1)
        ground.write("s2", pem(ground.keys["s2"]))
        ground.surroundings.advance(LOOK_SECONDS - 0.001)
        stored = ground.pass_through(HEADER + b"\r\n", policy)
        self.assertEqual([False], ground.verified(stored))
        ground.surroundings.advance(0.001)
        stored = ground.pass_through(HEADER + b"\r\n", policy)
        self.assertEqual([True], ground.verified(stored))
        path = os.path.abspath(ground.files["s2"])
        self.assertEqual([f"info: the key {path} was read again"], ground.notices())

    def test_no_longer_usable(self) -> None:
        """A file that is spoilt later is named once, and the former key goes on signing."""
        ground = Ground(self, {"s2": ed25519_key()})
        policy = ground.policy()
        ground.write("s2", b"nothing\n")
        for _ in range(3):
            ground.surroundings.advance(LOOK_SECONDS)
            stored = ground.pass_through(HEADER + b"\r\n", policy)
            self.assertEqual([True], ground.verified(stored))
        (said,) = ground.notices()
        self.assertIn("error: ", said)
        self.assertIn("the former key stays in use", said)
        os.remove(ground.files["s2"])
        ground.surroundings.advance(LOOK_SECONDS)
        stored = ground.pass_through(HEADER + b"\r\n", policy)
        self.assertEqual([True], ground.verified(stored))
        self.assertIn("No such file", ground.notices()[-1])
