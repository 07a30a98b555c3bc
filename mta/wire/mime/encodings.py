"""Base64 and quoted-printable, piece by piece (RFC 2045 section 6).

Law: what decodes is what was fed, octet by octet; lines have at most 76 octets and are all ASCII,
no CR or LF stands alone; and what comes out does not depend on how it was fed. What is between two
lines is said before the second, so that the last one has no line end of its own. No soft line break
makes a line that begins with two hyphens: it could be taken for a delimiter between parts.
"""

from __future__ import annotations

import binascii

_BASE64_LINE = 57
"""Octets that fill a line of 76."""
_QUOTED_LINE = 75
"""Octets of a line of 76 before the = of a soft line break."""
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

    __slots__ = ("_held", "_is_broken")
    name = b"quoted-printable"

    def __init__(self) -> None:
        self._held = b""
        self._is_broken = False
        """What comes is behind a soft line break."""

    def feed(self, piece: bytes) -> bytes:
        data = self._held + piece if self._held else piece
        said: list[bytes] = []
        at, length = 0, len(data)
        while True:
            end = data.find(b"\r\n", at, at + _TEXT_LINE + 1)
            if end >= 0:
                said.append(_quoted(data[at:end], self._is_broken) + b"\r\n")
                self._is_broken = False
                at = end + 2
            elif length - at > _TEXT_LINE:
                said.append(_quoted(data[at : at + _TEXT_LINE], self._is_broken) + b"=\r\n")
                self._is_broken = True
                at += _TEXT_LINE
            else:
                break
        self._held = data[at:]
        return b"".join(said)

    def finish(self) -> bytes:
        held, self._held = self._held, b""
        return _quoted(held, self._is_broken)


def _quoted(line: bytes, is_broken: bool) -> bytes:
    """One line without its end: blanks at its end, CR and LF are among what is quoted."""
    said = binascii.b2a_qp(line, quotetabs=False, istext=False)
    if (
        b"\n" in line  # before one of these, the library's lines have 77 octets
        or len(said) - said.rfind(b"\n") - 1 > _QUOTED_LINE  # a soft line break may follow
        or b"=\n--" in said
        or (is_broken and line.startswith(b"--"))
    ):
        return _quoted_by_octets(line, is_broken)
    return said.replace(b"=\n", b"=\r\n")


def _quoted_by_octets(line: bytes, is_broken: bool) -> bytes:
    said: list[bytes] = []
    width, last = 0, len(line) - 1
    for at, octet in enumerate(line):
        is_itself = 0x21 <= octet <= 0x7E and octet != 0x3D
        is_itself |= octet in b" \t" and at != last
        if width + (1 if is_itself else 3) > _QUOTED_LINE:
            said.append(b"=\r\n")
            width, is_broken = 0, True
        if octet == 0x2D and is_broken and not width:
            is_itself = False
        word = line[at : at + 1] if is_itself else b"=%02X" % octet
        said.append(word)
        width += len(word)
    return b"".join(said)
