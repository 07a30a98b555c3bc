"""Conversion for servers that lack 8BITMIME or BINARYMIME: what decodes is what was sent."""

import email
import email.policy
from email.message import Message

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import BodyType
from mta.wire.mime.convert import Converter, Survey, Unconvertible
from mta.wire.mime.encodings import Base64, QuotedPrintable
from mta.wire.mime.texts import TextScan
from mta.wire.smtp.content import Stuffer

MANY = settings(max_examples=400, deadline=None, derandomize=True)
SEVEN, EIGHT = BodyType.SEVEN_BIT, BodyType.EIGHT_BIT_MIME
CUTS = st.lists(st.integers(0, 60), max_size=8)
SOME = [b"\r", b"\n", b"\r\n", b"\r\n.", b".", b"=", b" ", b"\t", b"a", b"\0", b"\xff", b"--"]
SOME += [b"\r\n--", b"x" * 80, "ü".encode(), b"y" * 997, b"From "]
ODD = st.lists(st.sampled_from(SOME), max_size=30).map(b"".join)
"""Octets that matter here, in every order."""
TEXT = b"Gr\xfc\xdfe\r\n.\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at, found = 0, []
    for cut in cuts:
        found.append(data[at : at + cut])
        at += cut
    return [*found, data[at:]]


def wire(data: bytes) -> bytes:
    stuffer = Stuffer()
    return stuffer.take(data) + stuffer.finish()


def unstuffed(data: bytes) -> bytes:
    return (b"\r\n" + data).replace(b"\r\n.", b"\r\n")[2:]


def convert(
    content: bytes, takes: BodyType = SEVEN, cuts: list[int] | None = None, *, is_stuffed: bool = False
) -> bytes:  # fmt: skip
    """The converted content, dots unstuffed."""
    if is_stuffed:
        content = wire(content)
    survey = Survey(takes, is_stuffed=is_stuffed)
    for piece in pieces(content, cuts or []):
        survey.take(piece)
    converter = Converter(survey.plan())
    said = b"".join(converter.take(piece) for piece in pieces(content, (cuts or [])[::-1]))
    said += converter.end()
    assert b"\r\n.\r\n" not in b"\r\n" + said
    return unstuffed(said)


def leaves(content: bytes) -> list[tuple[str, bytes]]:
    """Each leaf's type and its decoded octets, as Python's own parser finds them."""
    found = []

    def walk(message: Message) -> None:
        if message.is_multipart():
            for part in message.get_payload():
                walk(part)
        else:
            found.append((message.get_content_type(), message.get_payload(decode=True)))

    walk(email.message_from_bytes(content, policy=email.policy.compat32))
    return found


def check_form(case: SynchronousTestCase, content: bytes, takes: BodyType) -> None:
    scan = TextScan()
    scan.feed(content)
    scan.finish()
    case.assertTrue(scan.is_text and scan.is_whole, content)
    if takes is SEVEN:
        case.assertTrue(content.isascii(), content)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    return draw(st.one_of(ODD, st.binary(max_size=300)))


@st.composite
def parts(draw: st.DrawFn, depth: int = 0) -> tuple[bytes, list[bytes]]:
    """A part, header and body, and the octets of its leaves."""
    kinds = ["text", "octets", "bare"] + (["multipart", "message"] if depth < 3 else [])
    kind = draw(st.sampled_from(kinds))
    label = draw(st.sampled_from([b"", b"Content-Transfer-Encoding: binary\r\n"]))
    if kind == "multipart":
        boundary = b"=_%d_%d" % (depth, draw(st.integers(0, 99)))
        inner = [draw(parts(depth + 1)) for _ in range(draw(st.integers(1, 3)))]
        body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part, _ in inner)
        head = b'Content-Type: multipart/mixed;\r\n\tboundary="%b"\r\n' % boundary
        preamble = draw(st.sampled_from([b"", b"For old readers\r\n"]))
        text = head + label + b"\r\n" + preamble + body + b"--" + boundary + b"--"
        return text, [leaf for _, found in inner for leaf in found]
    if kind == "message":
        part, found = draw(parts(depth + 1))
        return b"Content-Type: message/rfc822\r\n" + label + b"\r\nSubject: x\r\n" + part, found
    body = draw(bodies())
    head = {
        "text": b"Content-Type: text/plain; charset=utf-8\r\n",
        "octets": b"Content-Type: application/octet-stream\r\n",
        "bare": b"",
    }[kind]
    return head + label + b"\r\n" + body, [body]


class HardDetail07DowngradeTests(SynchronousTestCase):
    """Hard detail 7: a next hop without BINARYMIME, or without 8BITMIME."""

    @MANY
    @given(parts(), CUTS, st.sampled_from([SEVEN, EIGHT]))
    def test_decoded_parts_are_equal(
        self, drawn: tuple[bytes, list[bytes]], cuts: list[int], takes: BodyType
    ) -> None:
        """Every leaf decodes to what it was; all is text, and ASCII for a server without 8BITMIME."""
        part, expected = drawn
        content = b"Received: by us\r\nMIME-Version: 1.0\r\n" + part
        said = convert(content, takes, cuts)
        check_form(self, said, takes)
        found = [octets for _, octets in leaves(said)]
        if content.endswith(expected[-1]) and len(found) == 1 and found[0] != expected[0]:
            # What was text without a last line end has one now: there is no mail without.
            expected = [expected[0] + b"\r\n"]
        self.assertEqual(found, expected, said)
        self.assertEqual(said, convert(content, takes), "how it is cut changes nothing")

    @MANY
    @given(bodies(), CUTS, st.sampled_from([Base64, QuotedPrintable]))
    def test_encodings(self, body: bytes, cuts: list[int], kind: type) -> None:
        """Lines of at most 76 octets, all ASCII, no CR or LF alone; decoded it is what it was."""
        encoder = kind()
        said = b"".join(encoder.feed(piece) for piece in pieces(body, cuts)) + encoder.finish()
        whole = kind()
        self.assertEqual(said, whole.feed(body) + whole.finish())
        self.assertTrue(said.isascii())
        for line in said.split(b"\r\n"):
            self.assertLessEqual(len(line), 76)
            self.assertNotIn(b"\r", line)
            self.assertNotIn(b"\n", line)
            self.assertEqual(line, line.rstrip(b" \t"))
        message = email.message_from_bytes(
            b"Content-Transfer-Encoding: " + kind.name + b"\r\n\r\n" + said
        )
        self.assertEqual(message.get_payload(decode=True), body)

    @MANY
    @given(ODD, CUTS)
    def test_what_text_is(self, data: bytes, cuts: list[int]) -> None:
        """A scan in pieces finds what a look at each line finds."""
        scan = TextScan()
        for piece in pieces(data, cuts):
            scan.feed(piece)
        scan.finish()
        lines = data.split(b"\r\n")
        bad = any(b"\r" in x or b"\n" in x or b"\0" in x or len(x) > 998 for x in lines)
        self.assertEqual(scan.is_text, not bad)
        self.assertEqual(scan.is_ascii, data.isascii())
        if scan.is_text:
            self.assertEqual(scan.is_whole, data.endswith(b"\r\n") or not data)
            self.assertEqual(scan.is_wire_form, wire(data) == data)

    def test_no_delimiter_by_a_soft_line_break(self) -> None:
        """Text that holds a delimiter in the midst of a line stays one part, wherever the line is
        broken, and so it does behind the 4096 octets of a line that are kept.
        """
        head = b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n"
        for before in (*range(1, 60), 4095, 4096, 4097):
            body = b"\xff" * before + b"--c\r\n\xfe"
            content = head + body + b"\r\n--c--\r\n"
            self.assertEqual([octets for _, octets in leaves(convert(content))], [body], before)

    def test_short_lines_before_a_bare_newline(self) -> None:
        """Octets that are no line ends are quoted within 76 octets, and so is what a soft line
        break follows.
        """
        for body in (b"-\n" * 90, b"a" * 76, b"x\n" + b"=" * 300, b"y" * 75 + b"\n" + b" " * 99):
            content = b"Content-Type: text/plain\r\n\r\n" + body + b"\xff"
            said = convert(content)
            self.assertLessEqual(max(map(len, said.split(b"\r\n"))), 76)
            self.assertEqual(leaves(said)[0][1], body + b"\xff")

    def test_content_type_without_an_end_of_parameters(self) -> None:
        """A Content-Type that would take minutes, or that the standard library trips over, is no
        Content-Type.
        """
        for value in (b'"' + b";" * 250_000, b"c; boundary*=b; boundary*0=b"):
            head = b"Content-Type: multipart/mixed; boundary=" + value + b"\r\n\r\n"
            self.assertRaises(Unconvertible, convert, head + b"\xff")

    def test_what_may_stay_stays(self) -> None:
        """Only the part that needs it changes; every other octet is where it was."""
        head = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
        clean = b"Content-Type: text/plain\r\nX-Odd:  spaced \r\n\r\n.dot =\r\n--bx\r\n"
        tail = b"\r\n--b-- \t\r\nepilogue\r\n"
        content = head + clean + b"\r\n--b\r\nContent-Type: image/png\r\n\r\n\0\r\n\xff" + tail
        image = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAA0K/w=="
        for takes in (SEVEN, EIGHT):
            said = convert(content, takes)
            self.assertEqual(said, head + clean + b"\r\n--b\r\n" + image + tail)

    def test_text_without_mime(self) -> None:
        """A message from before MIME says from now on what it is (RFC 1428)."""
        said = convert(b"Subject: x\r\n\r\n" + TEXT, is_stuffed=True)
        expected = (
            b"Subject: x\r\nContent-Transfer-Encoding: quoted-printable\r\n"
            b"Content-Type: text/plain; charset=unknown-8bit\r\nMIME-Version: 1.0\r\n\r\n"
            b"Gr=FC=DFe\r\n=2E\r\n"
        )
        self.assertEqual(said, expected)

    def test_labels(self) -> None:
        """What passes as it is, and is called 8bit or binary, gets the name of what passes."""
        content = (
            b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n"
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
            b"--b\r\nContent-Transfer-Encoding: 8bit\r\n\r\nascii\r\n"
            b"--b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: BINARY\r\n\r\n\xff\r\n--b--\r\n"
        )
        eight = content.replace(b"binary", b"8bit").replace(b"BINARY", b"8bit")
        self.assertEqual(convert(content, EIGHT), eight)
        seven = content.replace(b"binary", b"7bit").replace(b"8bit", b"7bit")
        seven = seven.replace(b"BINARY", b"quoted-printable").replace(b"\xff", b"=FF")
        self.assertEqual(convert(content), seven)

    def test_digest(self) -> None:
        """A part of a digest is a message unless it says otherwise (RFC 2046 5.1.5)."""
        content = (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/digest; boundary=b\r\n\r\n"
            b"--b\r\n\r\nSubject: inner\r\n\r\n\xff\r\n--b--\r\n"
        )
        said = convert(content)
        self.assertIn(
            b"\r\n\r\nSubject: inner\r\nContent-Transfer-Encoding: quoted-printable", said
        )
        self.assertIn(b"MIME-Version: 1.0\r\n\r\n=FF\r\n--b--\r\n", said)

    def test_a_binary_body_keeps_its_end(self) -> None:
        """A binary body alone that does not end in a line end does not get one."""
        head = b"MIME-Version: 1.0\r\nContent-Type: %b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        for kind in (b"application/x", b"text/x"):
            said = convert(head % kind + b"abc")
            self.assertEqual(leaves(said), [(kind.decode(), b"abc")])

    def test_unconvertible(self) -> None:
        """What cannot be converted without harm is refused, with the reason."""
        mixed = b"MIME-Version: 1.0\r\nContent-Type: multipart/%b; boundary=b\r\n%b\r\n--b\r\n%b\r\n--b--\r\n"
        inner = b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n\r\n\xff\r\n--%b--"
        for content, reason in (
            (b"Subject: Gr\xfc\xdfe\r\n\r\nx\r\n", "8-bit"),
            (b"Subject: " + b"x" * 1000 + b"\r\n\r\n\xff\r\n", "over-long"),
            (b"Subject: x\nTo: y\r\n\r\n\xff\r\n", "no field"),
            (b"no header\r\n\r\n\xff\r\n", "no field"),
            (b"Subject: x", "does not end"),
            (mixed % (b"signed", b"", b"\r\n\xff"), "signed"),
            (mixed % (b"signed", b"", b"Content-Type: message/rfc822\r\n\r\nA: b\r\n\r\n\xff"), "signed"),
            (mixed % (b"mixed", b"", b"Content-Type: message/partial\r\n\r\n\xff"), "may not"),
            (mixed % (b"mixed", b"Content-Transfer-Encoding: base64\r\n", b"\r\n\xff"), "base64"),
            (mixed % (b"mixed", b"", b"Content-Transfer-Encoding: base64\r\n\r\n\xff"), "base64"),
            (mixed % (b"mixed", b"", b"Content-Transfer-Encoding: x y\r\n\r\n\xff"), "is none"),
            (mixed % (b"mixed", b"\r\npre\xffamble", b"\r\nx"), "outside"),
            (mixed % (b"mixed", b"", b"\r\nx") + b"epi\xfflogue\r\n", "outside"),
            (mixed % (b"mixed", b"", b"Content-Type: multipart/mixed\r\n\r\n\xff"), "boundary"),
            (mixed % (b"mixed", b"", inner % (b"b", b"b", b"b")), "one around it"),
            (mixed % (b"mixed", b"", inner % (b"b--", b"b--", b"b--")), "one around it"),
            (mixed.replace(b"; b", b";\xa0b") % (b"mixed", b"", b"\r\n\xff"), "boundary"),
            (mixed % (b"mixed", b"", b"Content-Type: text\r\n\r\n\xff"), "is none"),
            (mixed % (b"mixed", b"", b"Content-Type: a/b\r\nContent-Type: a/c\r\n\r\n\xff"), "two"),
            (mixed % (b"mixed", b"", b"A: b\r\n--b\r\n\r\n\xff"), "within a header"),
            (b"A: b\r\n" * 60_000 + b"\r\n\xff\r\n", "256 KiB"),
            (mixed % (b"mixed", b"", b"\r\n--b\r\n" * 11_000), "10 000"),
            (b"Content-Type: message/rfc822\r\n\r\n" * 200 + b"\r\n\xff", "100 deep"),
        ):  # fmt: skip
            refused = self.assertRaises(Unconvertible, convert, content)
            self.assertIn(reason, str(refused))

    def test_what_is_signed_and_clean_passes(self) -> None:
        """Beside something signed that needs nothing the rest is converted."""
        signed = (
            b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n"
            b"Content-Transfer-Encoding: 8bit\r\n\r\nclean\r\n--s\r\n\r\nsignature\r\n--s--\r\n"
        )
        content = (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
            + signed
            + b"\r\n--b\r\n\r\n\xff\r\n--b--\r\n"
        )
        said = convert(content)
        self.assertIn(signed, said)
        self.assertIn(b"\r\n\r\n=FF\r\n--b--\r\n", said)

    def test_a_message_that_may_be_encoded(self) -> None:
        """message/global is encoded whole: its headers are UTF-8 (RFC 6532 3.7)."""
        inner = "Subject: Grüße\r\n\r\nGrüße\r\n".encode()
        said = convert(b"MIME-Version: 1.0\r\nContent-Type: message/global\r\n\r\n" + inner)
        self.assertEqual(leaves(said.replace(b"message/global", b"application/x"))[0][1], inner)

    @MANY
    @given(st.lists(st.sampled_from([
        b"Content-Type:", b" multipart/mixed", b"; boundary=", b"b", b'"', b"\\", b"\r\n", b" ", b"(", b")",
        b"--b", b"--b--", b"\r\n\r\n", b"Content-Transfer-Encoding: ", b"base64", b"8bit", b"\xff", b"\0", b"A: b",
        b"boundary*0*=utf-8''b", b"boundary*=utf-8''%FF", b"message/rfc822", b"text/plain", b"\n", b"\r",
    ]), max_size=40).map(b"".join), CUTS, st.sampled_from([SEVEN, EIGHT]))  # fmt: skip
    def test_rubbish(self, content: bytes, cuts: list[int], takes: BodyType) -> None:
        """Whatever it is, it is converted into text or refused with a reason."""
        try:
            said = convert(content, takes, cuts)
        except Unconvertible as why:
            self.assertTrue(str(why))
        else:
            check_form(self, said, takes)
