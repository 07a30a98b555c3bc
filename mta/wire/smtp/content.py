"""Content on its way through DATA: where it ends, whether it is clean, how dots are stuffed.

Law: content ends at CRLF.CRLF and nowhere else, and what leaves this module can never hold another
CRLF.CRLF. Content is looked at with `find` and `replace` over whole pieces, never line by line.

RFC 5321 4.1.1.4 (end of data), 4.5.2 (transparency), 4.5.3.1.6 (1000 octets a line), 2.3.8 (bare
CR and LF), RFC 2045 2.7 and 2.8 (NUL).
"""

from __future__ import annotations

import enum
import re

END_OF_DATA = b"\r\n.\r\n"
_BARE = re.compile(rb"(?:(?<=\r\n)\.)?(?:(?<!\r)\n|\r(?!\n))\.?")
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
# As numbers: `b"\0" in piece` first raises a TypeError, which it then drops (CPython 3.11), and
# takes 2000 instructions more.
_NUL, _LF, _CR, _DOT = 0, 10, 13, 46


class Fault(enum.Enum):
    """Why a content cannot be taken, whatever its envelope says."""

    BARE_NEWLINE = "bare CR or LF"
    NUL = "NUL octet"
    LINE_TOO_LONG = "line too long"
    TOO_BIG = "message too big"


class ContentReader:
    """Takes the octets behind DATA, answers clean pieces of content and finds its end.

    `take` answers pieces in SMTP wire form; no piece ends inside CRLF or before a dot that may
    belong to the end, so each can be judged by itself. After the first fault pieces are swallowed:
    memory stays bounded and the end is still found.
    """

    __slots__ = (
        "_after_bare",
        "_at_start",
        "_held",
        "_line_limit",
        "_line_octets",
        "_normalise",
        "_size_limit",
        "fault",
        "size_octets",
    )

    def __init__(self, size_limit: int, line_limit: int, normalise: bool) -> None:
        """`line_limit` is octets without CRLF; 0 means none, for both limits."""
        self._size_limit = size_limit
        self._line_limit = line_limit
        self._normalise = normalise
        self.begin()

    def begin(self) -> None:
        """The next content starts with the next octet."""
        self._held = b""
        self._at_start = True
        self._after_bare = False
        self._line_octets = 0
        self.size_octets = 0
        self.fault: Fault | None = None

    def take(self, data: bytes) -> tuple[bytes, int]:
        """A piece of content (perhaps empty) and how many octets of `data` belong to this content,
        its end included; -1 when all of them do and the end is still to come.
        """
        held = len(self._held)
        if held:
            data = self._held + data
            self._held = b""
        if self._at_start:
            # A dot line may stand first: the CRLF before it was that of the command.
            if data.startswith(b".\r\n"):
                return b"", 3 - held
            if len(data) < 3 and b".\r\n".startswith(data):
                self._held = data
                return b"", -1
        end = data.find(END_OF_DATA)
        if end >= 0:
            return self._judge(data[: end + 2]), end + 5 - held
        keep = _unfinished(data)
        if keep:
            self._held = data[-keep:]
            data = data[:-keep]
        return self._judge(data) if data else b"", -1

    def _judge(self, piece: bytes) -> bytes:
        is_first, self._at_start = self._at_start, False
        if self.fault is not None:
            return b""
        if _has_bare_newline(piece):
            if not self._normalise:
                self.fault = Fault.BARE_NEWLINE
                return b""
            piece = self._mend(piece, is_first)
        elif self._after_bare:
            piece = self._mend(piece, is_first)
        if _NUL in piece:
            self.fault = Fault.NUL
            return b""
        self.size_octets += len(piece)
        if self._size_limit and self.size_octets > self._size_limit:
            self.fault = Fault.TOO_BIG
            return b""
        if self._line_limit and self._has_long_line(piece):
            self.fault = Fault.LINE_TOO_LONG
            return b""
        return piece

    def _mend(self, piece: bytes, is_first: bool) -> bytes:
        """Every bare CR or LF becomes CRLF, in wire form.

        A dot behind a bare newline was a letter of the text: it is stuffed. A lone dot before one
        was a stuffed dot on an empty line: it goes. Either would otherwise make a new CRLF.CRLF.
        """
        opening = b"\r\n" if is_first else b""
        ends_bare = piece.endswith((b"\n", b"\r")) and not piece.endswith(b"\r\n")
        mended = _BARE.sub(
            lambda bare: b"\r\n.." if bare[0].endswith(b".") else b"\r\n", opening + piece
        )
        if self._after_bare and piece.startswith(b"."):
            mended = b"." + mended
        self._after_bare = ends_bare
        return mended[len(opening) :]

    def _has_long_line(self, piece: bytes) -> bool:
        """Hop from the last newline within reach to the next: about one look per `line_limit`."""
        reach = self._line_limit + 2
        length = len(piece)
        start = -self._line_octets
        if not self._line_octets and piece[0] == _DOT:
            start = 1  # a stuffed dot does not count (RFC 5321 4.5.3.1.6)
        while length - start >= reach:
            newline = piece.rfind(b"\n", start if start > 0 else 0, start + reach)
            if newline < 0:
                return True
            start = newline + 1
            if start < length and piece[start] == _DOT:
                start += 1
        newline = piece.rfind(b"\n", max(start, 0))
        if newline >= 0:
            start = newline + 1
            if start < length and piece[start] == _DOT:
                start += 1
        self._line_octets = length - start
        return False


def _has_bare_newline(piece: bytes) -> bool:
    """With every CRLF blanked, in one pass, a CR or LF that is left is bare: a third of the
    instructions that three counts took (28 for 85 thousand in 4 KiB, 2026-11).
    """
    blanked = piece.replace(b"\r\n", b"  ")
    return _LF in blanked or _CR in blanked


def _unfinished(data: bytes) -> int:
    """How many octets at the end may be the beginning of the end of data."""
    if not data.endswith((b"\r", b"\n", b".")):
        return 0
    for keep in (4, 3, 2, 1):
        if data[-keep:] == END_OF_DATA[:keep]:
            return keep
    return 0


class LineEnds:
    """Text of whatever program: CRLF, CR and LF each end a line, and CRLF does when it leaves.

    Right at every edge between pieces; `finish` completes the last line.
    """

    __slots__ = ("_at_line_start", "_held_cr")

    def __init__(self) -> None:
        self._at_line_start = True
        self._held_cr = False

    def take(self, piece: bytes) -> bytes:
        """`piece` in lines, except a CR at its end, which waits for what follows."""
        if self._held_cr:
            piece = b"\r" + piece
        self._held_cr = piece.endswith(b"\r")
        if self._held_cr:
            piece = piece[:-1]
        if not piece:
            return b""
        if _has_bare_newline(piece):
            piece = _BARE_NEWLINE.sub(b"\r\n", piece)
        self._at_line_start = piece.endswith(b"\n")
        return piece

    def finish(self) -> bytes:
        """What is missing to end in CRLF."""
        if self._held_cr or not self._at_line_start:
            return b"\r\n"
        return b""


class Stuffer(LineEnds):
    """Turns opaque text into SMTP wire form: in lines, and a dot at a line's start is doubled."""

    __slots__ = ()

    def take(self, piece: bytes) -> bytes:
        """The wire form of `piece`, except a CR at its end, which waits for what follows."""
        begins_line = self._at_line_start
        lines = super().take(piece)
        stuffed = lines.replace(b"\r\n.", b"\r\n..")
        return b"." + stuffed if begins_line and lines.startswith(b".") else stuffed


class Unstuffer:
    """SMTP wire form to the content itself; right at every edge between pieces."""

    __slots__ = ("_held", "_is_first")

    def __init__(self) -> None:
        self._held = b""
        self._is_first = True

    def take(self, piece: bytes) -> bytes:
        if self._is_first and piece:
            self._is_first = False
            piece = piece.removeprefix(b".")
        data = self._held + piece
        keep = 2 if data.endswith(b"\r\n") else 1 if data.endswith(b"\r") else 0
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep].replace(b"\r\n.", b"\r\n")

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return held


def unstuffed(wire: bytes) -> bytes:
    """A whole content at once."""
    unstuffer = Unstuffer()
    return unstuffer.take(wire) + unstuffer.finish()
