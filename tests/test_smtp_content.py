"""Content behind DATA: one end, clean lines, right at every edge between pieces."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.wire.smtp.content import ContentReader, Fault, Stuffer

LIGHT = settings(max_examples=300, deadline=None, derandomize=True)
ODD = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b".\r\n"])).map(
    b"".join
)
"""Octets that matter here, in every order."""
CUTS = st.lists(st.integers(0, 40), max_size=6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at, found = 0, []
    for cut in cuts:
        found.append(data[at : at + cut])
        at += cut
    found.append(data[at:])
    return [piece for piece in found if piece]


def read(data: list[bytes], normalise: bool = False, size: int = 0, line: int = 0):
    """(content, fault, what followed the end or None)."""
    reader = ContentReader(size, line, normalise)
    content = b""
    for index, piece in enumerate(data):
        clean, used = reader.take(piece)
        content += clean
        if used >= 0:
            return content, reader.fault, piece[used:] + b"".join(data[index + 1 :])
    return content, reader.fault, None


def unstuffed(wire: bytes) -> bytes:
    """RFC 5321 4.5.2, line by line: the slow and plain way."""
    lines = wire.split(b"\r\n")
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


def stuffed(text: bytes) -> bytes:
    lines = text.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


class EndOfDataTests(SynchronousTestCase):
    """Hard details 1 and 2."""

    def test_hard_detail_1_dots_at_octet_0_and_at_chunk_edges(self) -> None:
        """A dot at the first octet or at an edge between pieces is never lost or doubled."""
        for body in (b"..\r\n", b"...\r\n", b"..x\r\n", b"x\r\n..\r\ny\r\n", b"\r\n..x\r\n", b""):
            wire = body + b".\r\nNEXT"
            for at in range(len(wire) + 1):
                for then in range(at, len(wire) + 1):
                    cut = [p for p in (wire[:at], wire[at:then], wire[then:]) if p]
                    self.assertEqual(read(cut), (body, None, b"NEXT"), (body, at, then))

    def test_hard_detail_2_end_of_data_only_on_crlf_dot_crlf(self) -> None:
        """None of the nine other forms ends the content, however it is cut."""
        forms = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r"]
        forms += [b"\r\n\0.\r\n", b"\r\n.\0\r\n"]
        for form in forms:
            wire = b"a" + form + b"RSET\r\n"
            for at in range(len(wire)):
                for normalise in (False, True):
                    _, fault, rest = read([wire[:at], wire[at:]][not at :], normalise)
                    self.assertIsNone(rest, (form, at))
                    if not normalise:
                        self.assertIn(fault, (Fault.BARE_NEWLINE, Fault.NUL))

    @LIGHT
    @given(ODD, CUTS)
    def test_the_end_is_where_it_is(self, data: bytes, cuts: list[int]) -> None:
        """The end is the first CRLF.CRLF, that of the command included, wherever pieces end."""
        found = (b"\r\n" + data).find(b"\r\n.\r\n")
        _, _, rest = read(pieces(data, cuts))
        self.assertEqual(rest, None if found < 0 else data[found + 3 :])

    @LIGHT
    @given(ODD, CUTS)
    def test_clean_content_is_untouched(self, data: bytes, cuts: list[int]) -> None:
        """Content with nothing but CRLF is stored octet by octet; any other is refused."""
        content, fault, rest = read([*pieces(data, cuts), b"\r\n.\r\n"])
        full = data + b"\r\n.\r\n"
        wire = full[: (b"\r\n" + full).find(b"\r\n.\r\n")]
        is_bare = re.search(rb"(?<!\r)\n|\r(?!\n)", wire) is not None
        self.assertIsNotNone(rest)
        self.assertEqual(fault is Fault.BARE_NEWLINE, is_bare)
        if not is_bare:
            self.assertEqual(content, wire)

    @LIGHT
    @given(ODD, CUTS)
    def test_normalised(self, data: bytes, cuts: list[int]) -> None:
        """Normalising means what unstuffing, mending each newline and stuffing again would mean,
        at every edge; and never makes an end of data.
        """
        full = data + b"\r\n.\r\n"
        wire = full[: (b"\r\n" + full).find(b"\r\n.\r\n")]
        content, fault, rest = read(pieces(full, cuts), normalise=True)
        self.assertIsNone(fault)
        self.assertIsNotNone(rest)
        self.assertNotIn(b"\r\n.\r\n", b"\r\n" + content)
        self.assertIsNone(re.search(rb"(?<!\r)\n|\r(?!\n)", content))
        expected = re.sub(rb"(?<!\r)\n|\r(?!\n)", b"\r\n", unstuffed(wire))
        self.assertEqual(unstuffed(content), expected)


class LimitTests(SynchronousTestCase):
    """Hard detail 3, inside of content."""

    def test_longest_line(self) -> None:
        """998 octets are a line, 999 are not; a stuffed dot does not count; cuts do not matter."""
        for line, is_long in (
            (b"x" * 998, False),
            (b"x" * 999, True),
            (b"." + b"." * 998, False),
            (b"." + b"." * 999, True),
        ):
            wire = b"first\r\n" + line + b"\r\nlast\r\n.\r\n"
            for at in (1, 6, 7, 8, 9, 500, 1003, 1004, 1005, 1006, 1007, 1008, 1010):
                _, fault, rest = read([wire[:at], wire[at:]], line=998)
                self.assertEqual(
                    (fault is Fault.LINE_TOO_LONG, rest), (is_long, b""), (line[:3], at)
                )

    @LIGHT
    @given(st.lists(st.integers(0, 30), max_size=20), CUTS)
    def test_long_lines_anywhere(self, lengths: list[int], cuts: list[int]) -> None:
        """A line over the limit is found wherever it stands, and none else is."""
        wire = b"".join(b"x" * n + b"\r\n" for n in lengths) + b".\r\n"
        _, fault, _ = read(pieces(wire, cuts), line=20)
        self.assertEqual(fault is Fault.LINE_TOO_LONG, any(n > 20 for n in lengths))

    def test_no_newline_at_all(self) -> None:
        """A flood without a newline is swallowed in bounded memory, and its end is found."""
        reader = ContentReader(10_000, 998, False)
        for _ in range(1000):
            self.assertEqual(reader.take(b"x" * 65536), (b"", -1))
        self.assertIs(reader.fault, Fault.TOO_BIG)
        self.assertEqual(reader.take(b"\r\n.\r\nRSET\r\n"), (b"", 5))

    def test_size(self) -> None:
        """The size limit is exact."""
        self.assertIsNone(read([b"0123456789\r\n.\r\n"], size=12)[1])
        self.assertIs(read([b"01234567890\r\n.\r\n"], size=12)[1], Fault.TOO_BIG)


class StufferTests(SynchronousTestCase):
    @LIGHT
    @given(ODD, CUTS)
    def test_at_every_edge(self, data: bytes, cuts: list[int]) -> None:
        """Opaque text reaches the sink as it was, but for newlines, whatever its pieces are."""
        stuffer = Stuffer()
        wire = b"".join(stuffer.take(piece) for piece in pieces(data, cuts)) + stuffer.finish()
        mended = re.sub(rb"(?<!\r)\n|\r(?!\n)", b"\r\n", data)
        if mended and not mended.endswith(b"\r\n"):
            mended += b"\r\n"
        self.assertEqual(wire, stuffed(mended))
        self.assertNotIn(b"\r\n.\r\n", b"\r\n" + wire)
