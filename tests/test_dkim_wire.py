"""DKIM as octets: RFC 8463's own examples, and that cutting a body anywhere changes nothing."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.wire.dkim import (
    BodyHash,
    draft,
    names_to_sign,
    parse_fields,
    relaxed,
    signed_header,
)
from mta.wire.mime.author import author_domain
from mta.wire.smtp.content import Stuffer

MANY = settings(max_examples=300, deadline=None, derandomize=True)
CUTS = st.lists(st.integers(0, 30), max_size=8)
SOME = [b"\r", b"\n", b"\r\n", b"\r\n.", b".", b" ", b"\t", b"  ", b" \r\n", b"a", b"\0", b"\xff"]
ODD = st.lists(st.sampled_from(SOME), max_size=30).map(b"".join)
"""Octets that matter here, in every order."""
LINES = st.lists(
    st.sampled_from([b"", b" ", b"\t", b".", b"..x", b"a  b\t c", b"a ", b" a", "ü".encode()]),
    max_size=12,
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
"""Text as it passes SMTP."""

# RFC 8463 appendix A.1 to A.3, the page's indent taken away.
ED25519_SECRET = b"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
RSA_SECRET = b"""-----BEGIN RSA PRIVATE KEY-----
MIICXQIBAAKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi
Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqM
KrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB
AoGAH0cxOhFZDgzXWhDhnAJDw5s4roOXN4OhjiXa8W7Y3rhX3FJqmJSPuC8N9vQm
6SVbaLAE4SG5mLMueHlh4KXffEpuLEiNp9Ss3O4YfLiQpbRqE7Tm5SxKjvvQoZZe
zHorimOaChRL2it47iuWxzxSiRMv4c+j70GiWdxXnxe4UoECQQDzJB/0U58W7RZy
6enGVj2kWF732CoWFZWzi1FicudrBFoy63QwcowpoCazKtvZGMNlPWnC7x/6o8Gc
uSe0ga2xAkEA8C7PipPm1/1fTRQvj1o/dDmZp243044ZNyxjg+/OPN0oWCbXIGxy
WvmZbXriOWoSALJTjExEgraHEgnXssuk7QJBALl5ICsYMu6hMxO73gnfNayNgPxd
WFV6Z7ULnKyV7HSVYF0hgYOHjeYe9gaMtiJYoo0zGN+L3AAtNP9huqkWlzECQE1a
licIeVlo1e+qJ6Mgqr0Q7Aa7falZ448ccbSFYEPD6oFxiOl9Y9se9iYHZKKfIcst
o7DUw1/hz2Ck4N5JrgUCQQCyKveNvjzkkd8HjYs0SwM0fPjK16//5qDZ2UiDGnOe
uEzxBDAr518Z8VFbR41in3W4Y3yCDgQlLlcETrS+zYcL
-----END RSA PRIVATE KEY-----
"""
HEADER = b"""From: Joe SixPack <joe@football.example.com>\r
To: Suzie Q <suzie@shopping.example.net>\r
Subject: Is dinner ready?\r
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r
Message-ID: <20030712040037.46341.5F8J@football.example.com>\r
"""
BODY = b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
BODY_HASH = b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
NAMES = (b"from", b"to", b"subject", b"date", b"message-id", b"from", b"subject", b"date")
ED25519_FIELD = b""" v=1; a=ed25519-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r
 subject : date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b="""
ED25519_SIGNATURE = (
    b"/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="
)
RSA_FIELD = b""" v=1; a=rsa-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r
 date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b="""
RSA_SIGNATURE = (
    b"F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3"
    b"DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz"
    b"dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8="
)


def body_hash(body: bytes, cuts: list[int] | None = None, *, is_stuffed: bool = False) -> bytes:
    hashing, at = BodyHash(is_stuffed), 0
    for cut in cuts or []:
        hashing.take(body[at : at + cut])
        at += cut
    hashing.take(body[at:])
    return hashing.finish()


def written_out(body: bytes) -> bytes:
    """The relaxed form of a whole body as RFC 6376 3.4.4 has it, step by step."""
    body = re.sub(rb"[ \t]+(?=\r\n|\Z)", b"", body)
    body = re.sub(rb"[ \t]+", b" ", body)
    body = re.sub(rb"(\r\n)+\Z", b"", body)
    return body + b"\r\n" if body else b""


def signed(header: bytes, field: bytes) -> bytes:
    """What a verifier would hash of `header` and its DKIM-Signature."""
    return signed_header(parse_fields(header), NAMES) + relaxed(b"DKIM-Signature", field)[:-2]


class ExampleTests(SynchronousTestCase):
    """RFC 8463 appendix A: both algorithms make exactly the signatures that are printed there."""

    def test_body(self) -> None:
        """The hash of the example's body."""
        self.assertEqual(BODY_HASH, b64encode(body_hash(BODY)))

    def test_ed25519(self) -> None:
        """The key signs the hash of header and field, not these themselves (RFC 8463 3)."""
        key = Ed25519PrivateKey.from_private_bytes(b64decode(ED25519_SECRET))
        digest = sha256(signed(HEADER, ED25519_FIELD)).digest()
        self.assertEqual(ED25519_SIGNATURE, b64encode(key.sign(digest)))

    def test_rsa(self) -> None:
        """PKCS #1 v1.5 over the header and the field (RFC 6376 3.3.1)."""
        key = load_pem_private_key(RSA_SECRET, None)
        made = key.sign(signed(HEADER, RSA_FIELD), PKCS1v15(), SHA256())  # type: ignore[union-attr,call-arg,arg-type]
        self.assertEqual(RSA_SIGNATURE, b64encode(made))


class BodyTests(SynchronousTestCase):
    """The body's hash is that of its relaxed form, however it comes."""

    def test_forms(self) -> None:
        """RFC 6376 3.4.5's example, and bodies of nothing but empty lines."""
        for body, form in (
            (b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),
            (b"", b""),
            (b"\r\n\r\n", b""),
            (b" \t\r\n \r\n", b""),
            (b"x", b"x\r\n"),
            (b"\r\n\r\nx\r\n", b"\r\n\r\nx\r\n"),
        ):
            self.assertEqual(sha256(form).digest(), body_hash(body), body)

    @MANY
    @given(LINES, CUTS)
    def test_written_out(self, body: bytes, cuts: list[int]) -> None:
        """Cut anywhere, it is the hash of what the RFC's steps make of the whole."""
        self.assertEqual(sha256(written_out(body)).digest(), body_hash(body, cuts))

    @MANY
    @given(ODD, CUTS)
    def test_cuts(self, body: bytes, cuts: list[int]) -> None:
        """Of any octets whatever, cutting changes no hash."""
        self.assertEqual(body_hash(body), body_hash(body, cuts))

    @MANY
    @given(LINES, CUTS)
    def test_stuffed(self, body: bytes, cuts: list[int]) -> None:
        """The dots of SMTP are no part of it."""
        stuffer = Stuffer()
        wire = stuffer.take(body) + stuffer.finish()
        self.assertEqual(body_hash(body), body_hash(wire, cuts, is_stuffed=True))

    def test_a_million_empty_lines(self) -> None:
        """They are counted, not kept, and are all there when something follows them."""
        hashing = BodyHash(False)
        for _ in range(100):
            hashing.take(b"\r\n" * 10_000)
        hashing.take(b"end")
        self.assertEqual(
            sha256(b"\r\n" * 1_000_000 + b"end\r\n").digest(),
            hashing.finish(),
        )


class HeaderTests(SynchronousTestCase):
    """Which fields are signed, and in what form."""

    def test_relaxed(self) -> None:
        """RFC 6376 3.4.5's example: the name in lower case, folding and spaces made one."""
        self.assertEqual(b"a:X\r\n", relaxed(b"A", b" X\r\n"))
        self.assertEqual(b"b:Y Z\r\n", relaxed(b"B", b" Y\t\r\n\tZ  \r\n"))

    def test_names(self) -> None:
        """What is there is signed; what may be there once is named once more; what is absent is
        left to whoever may have to add it; a list's own fields are not sealed."""
        fields = parse_fields(
            b"Received: x\r\nList-Id: l\r\nX-Other: y\r\nSubject: s\r\nFROM : a@example.org\r\n"
        )
        self.assertEqual(
            (b"From", b"From", b"Subject", b"Subject", b"List-Id"), names_to_sign(fields)
        )

    def test_bottom_up(self) -> None:
        """Of several fields of a name the lowest is taken first, and none twice (RFC 6376 5.4.2)."""
        fields = parse_fields(b"To: one\r\nCc: c\r\nto: two\r\n")
        self.assertEqual(
            b"to:two\r\nto:one\r\ncc:c\r\n", signed_header(fields, (b"To", b"To", b"Cc", b"To"))
        )

    def test_no_header(self) -> None:
        """A line that is no field, and a field without its CRLF, are refused."""
        for block in (
            b"From: a\r\nno field\r\n",
            b" folded\r\n",
            b"From: a",
            b"A: b\n",
            b": x\r\n",
        ):
            self.assertRaises(ValueError, parse_fields, block)

    @MANY
    @given(
        st.lists(st.sampled_from([b"From", b":", b" ", b"\r\n", b"\r\n ", b"\xff", b"x", b"\r"]))
    )
    def test_fields_are_the_block(self, pieces: list[bytes]) -> None:
        """What is taken for a header is put together again from its fields, octet for octet."""
        block = b"".join(pieces)
        try:
            fields = parse_fields(block)
        except ValueError:
            return
        again = b"".join(f.name + b":" + f.value for f in fields)
        self.assertEqual(
            re.sub(rb"(?m)^([!-9;-~]+)[ \t]*:", lambda m: m[1].lower() + b":", block), again
        )

    def test_field(self) -> None:
        """The field is folded under 78 columns, says what it must, and ends in the signature."""
        fields = parse_fields(HEADER + b"List-Unsubscribe-Post: x\r\n" * 9)
        unfinished = draft(
            algorithm=b"rsa-sha256",
            domain=b"example.org",
            selector=b"s1",
            moment=1_700_000_000,
            fields=fields,
            body_hash=body_hash(BODY),
        )
        lines = unfinished.finished(b"\xff" * 256).split(b"\r\n")
        self.assertEqual(b"v=1; a=rsa-sha256; c=relaxed/relaxed; t=1700000000;", lines[0])
        self.assertEqual(b"\td=example.org; s=s1;", lines[1])
        self.assertLessEqual(max(len(line) for line in lines), 78)
        self.assertEqual(
            b64encode(b"\xff" * 256), b"".join(lines).partition(b"b=\t")[2].replace(b"\t", b"")
        )
        named = re.search(rb"h=([^;]*);", b"".join(lines))
        assert named is not None
        self.assertEqual(names_to_sign(fields), tuple(n.strip() for n in named[1].split(b":")))
        self.assertTrue(unfinished.signed.endswith(b"bh=" + BODY_HASH + b"; b="))


class AuthorTests(SynchronousTestCase):
    """Whose domain a From field names."""

    def test_one(self) -> None:
        """Names, comments and quoted strings do not hide the address, nor make another of it."""
        for value, domain in (
            (b" a@Example.ORG\r\n", b"example.org"),
            (b" A B <a@example.org>\r\n", b"example.org"),
            (b' "b@example.net, <c@example.net>" <a@example.org>\r\n', b"example.org"),
            (b" a@example.org (b@example.net, (nested) \\) still)\r\n", b"example.org"),
            (b"\r\n =?utf-8?q?x=40y?=\r\n <a@example.org>\r\n", b"example.org"),
            (b' "odd@local"@example.org\r\n', b"example.org"),
            ("ü <ä@bücher.example>\r\n".encode(), b"xn--bcher-kva.example"),
        ):
            self.assertEqual(domain, author_domain(value), value)

    def test_none(self) -> None:
        """Whatever could be read in two ways, and what cannot be read."""
        for value in (
            *(b"", b" \r\n", b" a\r\n", b" a@\r\n", b" @b\r\n", b" <>\r\n", b" a@b@c\r\n"),
            *(b" a@b, c@d\r\n", b" a@b <c@d>\r\n", b" <a@b> <c@d>\r\n", b" <a@b> c\r\n"),
            *(b" group: a@b;\r\n", b" <@r:a@b>\r\n", b' "a@b\r\n', b" (a@b\r\n", b" <a@b\r\n"),
            *(b" a b@c\r\n", b" a@[192.0.2.1]\r\n", b" a@\xff\xfe\r\n", b" (\\\r\n"),
        ):
            self.assertRaises(ValueError, author_domain, value)

    @MANY
    @given(
        st.lists(
            st.sampled_from(
                [
                    b'"',
                    b"\\",
                    b"(",
                    b")",
                    b"<",
                    b">",
                    b"@",
                    b",",
                    b":",
                    b" ",
                    b"a",
                    b".",
                    b"\xc3\xbc",
                ]
            ),
            max_size=20,
        )
    )
    def test_anything(self, pieces: list[bytes]) -> None:
        """It is a name that can be looked up, or it is refused; nothing else happens."""
        try:
            domain = author_domain(b"".join(pieces))
        except ValueError:
            return
        self.assertRegex(domain, rb"\A[a-z0-9.-]+\Z")

    def test_long(self) -> None:
        """A hundred thousand of whatever opens something cost no more than their length."""
        for piece in (b"(", b'"', b"<", b"\\(", b"(\\", b'"\\'):
            self.assertRaises(ValueError, author_domain, piece * 100_000)
