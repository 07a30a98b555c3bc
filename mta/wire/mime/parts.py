"""A message and its parts, found while it goes by.

Law: all that was fed is handed on, once and in its order; how it is cut changes nothing. What is
kept is a header, or what may be a delimiter. A delimiter is a whole line (RFC 2046 5.1.1) behind
CRLF; a part that is not closed ends with the one around it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mta.wire.mime.header import Malformed, PartHeader, parse_header

HEADER_LIMIT = 256 * 1024
"""Octets of one part's header."""
DEPTH_LIMIT = 100
PARTS_LIMIT = 10_000
_LINE = 512
"""Octets in which a delimiter must end: the longest boundary, and blanks behind it."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A multipart that was begun."""

    boundary: bytes
    content_type: str


class PartReader:
    """Override what is told of: `on_header`, `on_body`, `on_leaf_end`, `on_between`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._in_header = True
        self._at_line_start = True
        self._is_leaf = False
        self._open: list[_Open] = []
        self._parts = 0
        self._depth = 0
        self._starts_message = True

    # -- what is told

    def on_header(
        self, header: PartHeader, content_type: str, *, is_leaf: bool, starts_message: bool
    ) -> None:
        """A part begins. `content_type` is what it is; `starts_message`: it is a message's own."""

    def on_empty_line(self) -> None:
        """The header is over."""

    def on_body(self, octets: bytes) -> None:
        """Of a leaf."""

    def on_leaf_end(self, is_last: bool) -> None:
        """`is_last`: the message is over as well."""

    def on_between(self, octets: bytes) -> None:
        """Delimiters, and what stands outside of parts."""

    @property
    def is_signed(self) -> bool:
        """What comes is part of something signed: not an octet of it may change."""
        return any(level.content_type == "multipart/signed" for level in self._open)

    @property
    def is_in_multipart(self) -> bool:
        return bool(self._open)

    # -- in

    def feed(self, piece: bytes) -> None:
        """@raise Malformed: it cannot be said what the parts are."""
        self._buffer = self._buffer + piece if self._buffer else piece
        self._go_on(is_final=False)

    def finish(self) -> None:
        self._go_on(is_final=True)
        if self._in_header:
            self._header(self._buffer, has_body=False)
            self._buffer = b""
        if self._is_leaf:
            self._is_leaf = False
            self.on_leaf_end(True)

    def _go_on(self, is_final: bool) -> None:
        while self._find_header() if self._in_header else self._find_delimiter(is_final):
            pass

    # -- headers

    def _find_header(self) -> bool:
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            end, body_at = 0, 2
        else:
            end = buffer.find(b"\r\n\r\n", 0, HEADER_LIMIT) + 2
            body_at = end + 2
            if end < 2:
                if len(buffer) > HEADER_LIMIT:
                    raise Malformed("a header of more than 256 KiB")
                return False
        self._buffer = buffer[body_at:]
        self._header(buffer[:end], has_body=True)
        return True

    def _header(self, block: bytes, *, has_body: bool) -> None:
        self._parts += 1
        if self._parts > PARTS_LIMIT:
            raise Malformed("more than 10 000 parts")
        if block and not block.endswith(b"\r\n"):
            raise Malformed("a header that does not end")
        if block.startswith(b"--") or b"\r\n--" in block:
            raise Malformed("a delimiter within a header")
        header = parse_header(block)
        content_type = header.content_type or self._default_type()
        starts_message, self._starts_message = self._starts_message, False
        is_message = content_type == "message/rfc822" and header.is_identity
        is_multipart = bool(header.boundary) and header.is_identity
        is_leaf = not (is_message or is_multipart)
        self.on_header(header, content_type, is_leaf=is_leaf, starts_message=starts_message)
        if not has_body:
            return
        self.on_empty_line()
        if is_message:
            self._deeper()
            self._starts_message = True
            return  # another header follows at once
        self._in_header = False
        self._at_line_start = True
        self._is_leaf = is_leaf
        if is_multipart:
            self._deeper()
            if any(_look_alike(header.boundary, level.boundary) for level in self._open):
                raise Malformed("a multipart with the boundary of one around it")
            self._open.append(_Open(header.boundary, content_type))

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise Malformed("parts in parts, more than 100 deep")

    def _default_type(self) -> str:
        """RFC 2046 5.2.1 and 5.1.5."""
        is_digest = bool(self._open) and self._open[-1].content_type == "multipart/digest"
        return "message/rfc822" if is_digest and not self._starts_message else "text/plain"

    # -- bodies

    def _find_delimiter(self, is_final: bool) -> bool:
        buffer = self._buffer
        if not self._open:
            self._buffer = b""
            self._pass(buffer)
            return False
        at = 0
        while True:
            if (
                at == 0
                and self._at_line_start
                and (buffer[:2] == b"--" or b"--".startswith(buffer))
            ):
                start, line_at = 0, 0
            else:
                start = buffer.find(b"\r\n--", at)
                line_at = start + 2
            if start < 0:
                keep = 0 if is_final else _beginning(buffer)
                self._buffer = buffer[len(buffer) - keep :]
                self._pass(buffer[: len(buffer) - keep])
                return False
            end = buffer.find(b"\r\n", line_at, line_at + _LINE)
            if end < 0 and len(buffer) - line_at < _LINE:
                if not is_final:
                    self._buffer = buffer[start:]
                    if start:
                        self._pass(buffer[:start])
                    return False
                end = len(buffer)
            line = buffer[line_at : max(end, line_at)].rstrip(b" \t")
            level = self._level(line)
            if level >= 0:
                self._pass(buffer[:start])
                self._buffer = buffer[end + 2 :]
                self._delimit(level, line, buffer[start : end + 2])
                return True
            at = line_at + 2

    def _level(self, line: bytes) -> int:
        """Which open multipart this line delimits; -1: none."""
        for level in range(len(self._open) - 1, -1, -1):
            boundary = self._open[level].boundary
            if line[2:] == boundary or line[2:] == boundary + b"--":
                return level
        return -1

    def _delimit(self, level: int, line: bytes, octets: bytes) -> None:
        if self._is_leaf:
            self._is_leaf = False
            self.on_leaf_end(False)
        is_closing = line[2:] != self._open[level].boundary
        del self._open[level + (0 if is_closing else 1) :]
        self._depth = len(self._open)
        self.on_between(octets)
        self._in_header = not is_closing
        self._at_line_start = True
        self._starts_message = False

    def _pass(self, octets: bytes) -> None:
        if not octets:
            return
        self._at_line_start = False
        if self._is_leaf:
            self.on_body(octets)
        else:
            self.on_between(octets)


def _look_alike(one: bytes, other: bytes) -> bool:
    """Some line delimits both: readers differ in whose it is (RFC 2046 5.1.2 forbids it)."""
    return one == other or one == other + b"--" or one + b"--" == other


def _beginning(buffer: bytes) -> int:
    """How many octets at the end may be the beginning of a delimiter."""
    for keep in (3, 2, 1):
        if buffer.endswith(b"\r\n--"[:keep]):
            return keep
    return 0
