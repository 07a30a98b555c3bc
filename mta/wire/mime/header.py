"""The header of one part: what it says of its body, and how another encoding is put into it.

Law: what is not understood is not changed: a header that could be read in two ways is malformed.
Octets other than those of the field that is replaced stay as they are. RFC 2045, RFC 2046 5.1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_TOKEN = re.compile(rb"[!#-'*+\-.0-9A-Z^-~]+")
_COMMENT = re.compile(rb"\([^()\\]*\)")
_BOUNDARY_LIMIT = 200
"""RFC 2046 says 70."""
_PARAMETERS_LIMIT = 50
"""Semicolons of a Content-Type; real ones have up to five. The standard library reads an unclosed
quoted string once more for each: 64 KiB of them took 14 s (measured)."""
_IDENTITY = frozenset((b"", b"7bit", b"8bit", b"binary"))


class Malformed(ValueError):
    """It cannot be said what this header means."""


@dataclass(frozen=True, slots=True)
class PartHeader:
    """`block` is the header with its line ends, without the empty line behind it."""

    block: bytes
    content_type: str = ""
    """In lower case; "" when none is given."""
    boundary: bytes = b""
    encoding: bytes = b""
    """In lower case; b"" when none is given."""
    has_version: bool = False
    encoding_at: tuple[int, int] = (-1, -1)

    @property
    def is_identity(self) -> bool:
        """The body stands as it is, whatever label it has."""
        return self.encoding in _IDENTITY

    def with_encoding(self, encoding: bytes) -> bytes:
        """The block with another Content-Transfer-Encoding."""
        field = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
        start, end = self.encoding_at
        if start < 0:
            return self.block + field
        return self.block[:start] + field + self.block[end:]


def parse_header(block: bytes) -> PartHeader:
    """@raise Malformed."""
    at, found = 0, dict[bytes, tuple[bytes, int, int]]()
    has_version = False
    while at < len(block):
        field = _FIELD.match(block, at)
        if field is None:
            raise Malformed("a header with a line that is no field")
        name, at = field[1].lower(), field.end()
        has_version |= name == b"mime-version"
        if name in (b"content-type", b"content-transfer-encoding"):
            if name in found:
                raise Malformed(f"two fields {name.decode()}")
            value = field[0].partition(b":")[2].replace(b"\r\n", b"").strip()
            found[name] = value, field.start(), field.end()
    encoding, start, end = found.get(b"content-transfer-encoding", (b"", -1, -1))
    if encoding:
        encoding = _COMMENT.sub(b"", encoding).strip().lower()
        if not _TOKEN.fullmatch(encoding):
            raise Malformed("a Content-Transfer-Encoding that is none")
    value = found.get(b"content-type", (b"", 0, 0))[0]
    content_type, boundary = _content_type(value) if value else ("", b"")
    return PartHeader(block, content_type, boundary, encoding, has_version, (start, end))


def _content_type(value: bytes) -> tuple[str, bytes]:
    if b"(" in value and b'"' not in value:
        value = _COMMENT.sub(b"", value)
    if value.count(b";") > _PARAMETERS_LIMIT:
        raise Malformed("a Content-Type with more than 50 parameters")
    message = Message()
    # As another reader of octets has it: latin-1 has blanks (0xA0, 0x85) that are none.
    message["Content-Type"] = value.decode("ascii", "surrogateescape")
    content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
    if not _TYPE.fullmatch(content_type):
        raise Malformed("a Content-Type that is none")
    if not content_type.startswith("multipart/"):
        return content_type, b""
    try:
        boundary = (message.get_boundary() or "").encode("ascii")
    except Exception:  # the standard library raises many kinds for damaged parameters
        boundary = b""
    if not 0 < len(boundary) <= _BOUNDARY_LIMIT:
        raise Malformed("a multipart without a boundary")
    return content_type, boundary
