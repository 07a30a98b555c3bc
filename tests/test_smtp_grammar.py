"""The grammar of commands: what is let through is harmless, what is not is named."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import NULL_ADDRESS, Address
from mta.wire.smtp.grammar import (
    Refused,
    decode_xtext,
    encode_xtext,
    normalise_domain,
    parse_helo,
    parse_mail,
    parse_mailbox,
    parse_path,
    parse_rcpt,
)
from mta.wire.text import neutralise, neutralise_ascii, printable

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
CONTROL = bytes(range(0x20)) + b"\x7f"


class HardDetail21AddressTests(SynchronousTestCase):
    """Hard detail 21: address forms."""

    def path(self, text: bytes, is_reverse: bool = False) -> Address:
        return parse_path(text, is_reverse=is_reverse)[0]

    def refusal(self, text: bytes, is_reverse: bool = False) -> str:
        error = self.assertRaises(Refused, parse_path, text, is_reverse=is_reverse)
        return error.reply.text

    def test_case(self) -> None:
        """The local part keeps its case, the domain for comparing is in lower case."""
        address = self.path(b"<John.Doe@Example.ORG>")
        self.assertEqual(address, Address(b"John.Doe@Example.ORG", b"example.org"))
        self.assertEqual(address.local, b"John.Doe")

    def test_null_reverse_path(self) -> None:
        """Only a sender may be empty."""
        self.assertIs(self.path(b"<>", is_reverse=True), NULL_ADDRESS)
        self.assertIn("501 5.1.3", self.refusal(b"<>"))

    def test_bare_postmaster(self) -> None:
        """<postmaster> needs no domain as a recipient, in any case of letters; nobody else may."""
        self.assertEqual(self.path(b"<PostMaster>"), Address(b"PostMaster"))
        self.assertIn("501 5.1.7", self.refusal(b"<postmaster>", is_reverse=True))
        self.assertIn("lacks its domain", self.refusal(b"<root>"))

    def test_quoted_local_part(self) -> None:
        """Blanks, brackets, @ and escaped quotes may stand in a quoted local part, which is kept."""
        for text in (
            b'"a b"@x.org',
            b'"a@b"@x.org',
            b'"a>b"@x.org',
            b'"a\\"b\\\\"@x.org',
            b'""@x.org',
        ):
            self.assertEqual(self.path(b"<" + text + b">").text, text)
        self.assertIn("501", self.refusal(b'<"a"b@x.org>'))
        self.assertIn("501", self.refusal(b'<"a\\"@x.org>'))

    def test_source_route(self) -> None:
        """A source route is stripped."""
        self.assertEqual(self.path(b"<@a.org,@b.org:u@c.org>").text, b"u@c.org")
        self.assertEqual(self.path(b"<@a.org:u@c.org>").domain, b"c.org")
        self.assertIn("source route", self.refusal(b"<@a.org,u@c.org>"))

    def test_a_source_route_to_nobody(self) -> None:
        """A route without a mailbox is refused: it is not the null sender."""
        with self.assertRaises(Refused):
            parse_path(b"<@a.org:>", is_reverse=True)

    def test_literals(self) -> None:
        """Address literals of both families are normalised and keep their brackets."""
        self.assertEqual(self.path(b"<u@[192.0.2.1]>").domain, b"[192.0.2.1]")
        address = self.path(b"<u@[ipv6:2001:DB8::0:1]>")
        self.assertEqual(address.domain, b"[ipv6:2001:db8::1]")
        self.assertEqual(address.text, b"u@[ipv6:2001:DB8::0:1]")
        for wrong in (
            b"[192.0.2]",
            b"[IPv6:1::2::3]",
            b"[2001:db8::1]",
            b"[192.0.2.1",
            b"[x:y]",
            b"[]",
        ):
            self.assertIn("501", self.refusal(b"<u@" + wrong + b">"))

    def test_limits(self) -> None:
        """64 octets of local part, 63 of a label and 255 of a domain are the most."""
        label = b"x" * 63
        longest = b".".join([label, label, label, b"y" * 61, b"z"])
        self.assertEqual(len(longest), 255)
        self.assertEqual(self.path(b"<" + b"l" * 64 + b"@" + longest + b">").domain, longest)
        self.assertIn("64 octets", self.refusal(b"<" + b"l" * 65 + b"@x.org>"))
        self.assertIn("63 octets", self.refusal(b"<l@" + b"x" * 64 + b".org>"))
        self.assertIn("255 octets", self.refusal(b"<l@" + longest + b"z>"))

    def test_trailing_dot(self) -> None:
        """A trailing dot of the domain goes; two do not make a domain."""
        self.assertEqual(self.path(b"<u@x.org.>"), Address(b"u@x.org", b"x.org"))
        self.assertIn("501", self.refusal(b"<u@x.org..>"))

    def test_utf8(self) -> None:
        """An internationalized address is refused by name where SMTPUTF8 was not said."""
        self.assertIn("553 5.6.7", self.refusal("<jörg@example.org>".encode()))
        self.assertIn("553 5.6.7", self.refusal("<j@exämple.org>".encode()))

    def test_log_forging(self) -> None:
        """No octet of an address can forge a line of the log."""
        for octet in CONTROL:
            for text in (b'<"a%cb"@x.org>', b"<a%cb@x.org>", b"<a@x%cy.org>"):
                self.assertIn("501", self.refusal(text.replace(b"%c", bytes((octet,)))))

    @LIGHT
    @given(st.binary(max_size=80))
    def test_any_octets(self, octets: bytes) -> None:
        """Whatever stands in a path, it is an address without a control octet, or Refused."""
        for text in (
            octets,
            b"<" + octets + b">",
            b"<a@" + octets + b">",
            b'<"' + octets + b'"@x>',
        ):
            try:
                address, _ = parse_path(text, is_reverse=False)
            except Refused as refused:
                self.assertGreaterEqual(refused.reply.code, 500)
                self.assertNotIn(b"\n", refused.reply.lines[0])
                continue
            self.assertFalse(set(address.text) & set(CONTROL))
            self.assertTrue(address.text.isascii())

    @LIGHT
    @given(st.from_regex(rb"[A-Za-z0-9._+-]{1,20}@[A-Za-z0-9.-]{1,30}", fullmatch=True))
    def test_both_ways_agree(self, text: bytes) -> None:
        """The short way for usual addresses answers what the whole grammar does."""
        try:
            expected: Address | None = parse_mailbox(text)
        except ValueError:
            expected = None
        try:
            found: Address | None = parse_path(b"<" + text + b">", is_reverse=False)[0]
        except Refused:
            found = None
        self.assertEqual(found, expected)


class HardDetail22ParameterTests(SynchronousTestCase):
    """Hard detail 22: parameters of MAIL and RCPT."""

    def test_known(self) -> None:
        """SIZE and BODY are taken in any case of letters."""
        address, parameters = parse_mail(b"FROM:<a@x.org> size=10 Body=8bitmime")
        self.assertEqual(address.text, b"a@x.org")
        self.assertEqual(parameters, {b"SIZE": b"10", b"BODY": b"8BITMIME"})

    def test_refused(self) -> None:
        """Unknown parameters are 555; doubled or malformed ones 501."""
        for text, code in (
            (b"X=1", 555),
            (b"SIZE=1 SIZE=1", 501),
            (b"SIZE=-1", 501),
            (b"SIZE=1=2", 501),
            (b"BODY=9BIT", 501),
            (b"S\xc3\xa4=1", 501),
        ):
            error = self.assertRaises(Refused, parse_mail, b"FROM:<a@x.org> " + text)
            self.assertEqual(error.reply.code, code, text)
        self.assertEqual(
            self.assertRaises(Refused, parse_rcpt, b"TO:<a@x.org> ORCPT=rfc822;x").reply.code, 555
        )

    def test_syntax(self) -> None:
        """Without FROM: or TO: the syntax is told; a blank behind the colon is forgiven."""
        self.assertIn("MAIL FROM", str(self.assertRaises(Refused, parse_mail, b"<a@x.org>")))
        self.assertIn("RCPT TO", str(self.assertRaises(Refused, parse_rcpt, b"FROM:<a@x.org>")))
        self.assertEqual(parse_mail(b"FROM: <a@x.org>")[0].text, b"a@x.org")

    @LIGHT
    @given(st.binary(max_size=60))
    def test_any_octets(self, octets: bytes) -> None:
        """Whatever stands behind an address, it is parameters that are offered, or Refused."""
        try:
            _, parameters = parse_mail(b"FROM:<a@x.org>" + octets)
        except Refused:
            return
        self.assertLessEqual(set(parameters), {b"SIZE", b"BODY"})


class NameTests(SynchronousTestCase):
    def test_helo_names(self) -> None:
        """Names of real clients are taken: literals, underscores, names without a dot."""
        for name in (b"x", b"my_pc", b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"a.b.example"):
            self.assertEqual(parse_helo(b" " + name + b" "), name)

    def test_helo_refused(self) -> None:
        """Nothing, two words, markup and 8 bits are no name."""
        for name in (b"", b"  ", b"a b", b"<script>", b"a(b)", b"\xc3\xa4", b"x" * 256, b'a"b'):
            self.assertRaises(Refused, parse_helo, name)

    def test_domains(self) -> None:
        """Domains compare in lower case and without a trailing dot."""
        self.assertEqual(normalise_domain(b"EXAMPLE.org."), b"example.org")
        for wrong in (b"", b".", b"a..b", b"-a.b", b"a-.b", b"a b"):
            self.assertRaises(ValueError, normalise_domain, wrong)

    @LIGHT
    @given(st.binary(max_size=100))
    def test_xtext(self, octets: bytes) -> None:
        """xtext carries every octet there and back, in printable ASCII."""
        encoded = encode_xtext(octets)
        self.assertEqual(decode_xtext(encoded), octets)
        self.assertFalse(set(encoded) - set(range(0x21, 0x7F)))

    def test_xtext_refused(self) -> None:
        """Broken xtext is refused."""
        for wrong in (b"+", b"+4", b"+4g", b"a b", b"a=b", b"+4a"):
            self.assertRaises(ValueError, decode_xtext, wrong)


class NeutralTests(SynchronousTestCase):
    def test_kept(self) -> None:
        """Printable text stays as it is, UTF-8 too."""
        for text in ("550 5.1.1 no", "kein Empfänger", "нет"):
            self.assertEqual(printable(text.encode()), text)

    def test_replaced(self) -> None:
        """Escapes, C1 controls, directional characters and broken UTF-8 do not pass."""
        for raw in (b"\x1b[2J", b"a\r\nb", b"\xc2\x9b2J", "a\u202eb".encode(), b"\xff", b"\0"):
            clean = neutralise(raw)
            self.assertIn(b"?", clean)
            self.assertTrue(clean.decode().isprintable())

    @LIGHT
    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_any_octets(self, raw: bytes, limit: int) -> None:
        """Whatever comes, it is printable text of bounded length; the other is ASCII besides."""
        clean = neutralise(raw, limit)
        self.assertTrue(clean.decode().isprintable())
        self.assertLessEqual(len(clean), limit)
        self.assertFalse(set(neutralise_ascii(raw, limit)) - set(range(0x20, 0x7F)))
