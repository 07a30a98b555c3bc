"""Base64 and quoted-printable, piece by piece (RFC 2045 section 6).

Law: what decodes is what was fed, octet by octet; lines have at most 76 octets and are all ASCII,
no CR or LF stands alone; and what comes out does not depend on how it was fed. What is between two
lines is said before the second, so that the last one has no line end of its own.
"""

from __future__ import annotations

import binascii

_BASE64_LINE = 57
"""Octets that fill a line of 76."""
_TEXT_LINE = 4096
"""Octets of a line of text that are kept; a longer one is cut by a soft line break."""


class Base64:
    """For octets that are no text."""

    __slots__ = ("_held", "_is_begun")
    name = b"base64"

    def __init__(self) -> None:
        self._held = b""
        self._is_begun = False

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece if self._held else piece
        whole = len(data) // _BASE64_LINE * _BASE64_LINE
        self._held = data[whole:]
        return self._lines(data[:whole]) if whole else b""

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return self._lines(held) if held else b""

    def _lines(self, data: bytes) -> bytes:
        text = binascii.b2a_base64(data, newline=False)
        lines = [text[at : at + 76] for at in range(0, len(text), 76)]
        if self._is_begun:
            lines.insert(0, b"")
        self._is_begun = True
        return b"\r\n".join(lines)


class QuotedPrintable:
    """For text of any character set: CRLF stays a line end, anything else is itself or =XX."""

    __slots__ = ("_held",)
    name = b"quoted-printable"

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece if self._held else piece
        said: list[bytes] = []
        at, length = 0, len(data)
        while True:
            end = data.find(b"\r\n", at, at + _TEXT_LINE + 1)
            if end >= 0:
                said.append(_quoted(data[at:end]) + b"\r\n")
                at = end + 2
            elif length - at > _TEXT_LINE:
                said.append(_quoted(data[at : at + _TEXT_LINE]) + b"=\r\n")
                at += _TEXT_LINE
            else:
                break
        self._held = data[at:]
        return b"".join(said)

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return _quoted(held)


def _quoted(line: bytes) -> bytes:
    """One line without its end: blanks at its end, CR and LF are among what is quoted."""
    return binascii.b2a_qp(line, quotetabs=False, istext=False).replace(b"=\n", b"=\r\n")
