"""Whether octets are text as SMTP carries it: lines of at most 998 octets, CRLF only, no NUL.

Law: what the answer is does not depend on how the octets are cut. They are looked at with `find`
and `count` over whole pieces, never line by line. RFC 2045 2.7 and 2.8, RFC 5321 4.5.3.1.6, 4.5.2.
"""

from __future__ import annotations

LINE_LIMIT = 998
"""Octets of a line without CRLF."""


class TextScan:
    """Feed it pieces, then `finish`; then it knows."""

    __slots__ = ("_held", "_line", "_starts_line", "has_dots", "is_ascii", "is_text", "is_whole")

    def __init__(self) -> None:
        self.is_text = True
        self.is_ascii = True
        self.has_dots = False
        """Some line begins with a dot."""
        self.is_whole = True
        """It ends in CRLF, or there is nothing."""
        self._held = False
        self._starts_line = True
        self._line = 0

    @property
    def is_wire_form(self) -> bool:
        """Text that is its own SMTP wire form: nothing to stuff, nothing to complete."""
        return self.is_text and self.is_whole and not self.has_dots

    def feed(self, piece: bytes) -> None:
        if self.is_ascii and not piece.isascii():
            self.is_ascii = False
        if not self.is_text:
            return
        if self._held:
            piece = b"\r" + piece
        self._held = piece.endswith(b"\r")
        if self._held:
            piece = piece[:-1]
        if not piece:
            return
        newlines = piece.count(b"\n")
        if (
            newlines != piece.count(b"\r")
            or newlines != piece.count(b"\r\n")
            or b"\0" in piece
            or self._has_long_line(piece)
        ):
            self.is_text = False
            return
        if (self._starts_line and piece.startswith(b".")) or b"\r\n." in piece:
            self.has_dots = True
        self._starts_line = self.is_whole = piece.endswith(b"\n")

    def finish(self) -> None:
        """Nothing more comes."""
        if self._held or self._line > LINE_LIMIT:
            self.is_text = False

    def _has_long_line(self, piece: bytes) -> bool:
        """Hop from the last newline within reach to the next: about one look per `LINE_LIMIT`."""
        reach, length, start = LINE_LIMIT + 2, len(piece), -self._line
        while length - start >= reach:
            newline = piece.rfind(b"\n", max(start, 0), start + reach)
            if newline < 0:
                return True
            start = newline + 1
        newline = piece.rfind(b"\n", max(start, 0))
        self._line = length - (newline + 1 if newline >= 0 else start)
        return False
