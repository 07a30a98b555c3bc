"""Finds the header block of a message in the chunks as they come, and the few facts we need of it.

Law: one search for the empty line, then one pass over the block; the body is never looked at, and
nothing is split into lines. How the content is cut into chunks changes nothing. RFC 5322 2.1, 3.6.
"""

from __future__ import annotations

import re

_FIRST_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_ID_LIMIT = 250
"""Octets of a Message-ID that are kept for the log."""


class HeaderScan:
    """`block` is whole when `complete`: header lines with their CRLF, without the empty line.

    A message that has no empty line within `limit` octets is scanned no further: its block is what
    was looked at, and `is_cut` says so. `is_separated`: the empty line was there.
    """

    __slots__ = ("_buffer", "_limit", "block", "complete", "is_cut", "is_separated")

    def __init__(self, limit: int) -> None:
        self.block = b""
        self.complete = False
        self.is_cut = False
        self.is_separated = False
        self._limit = limit
        self._buffer: bytearray | None = None

    def feed(self, chunk: bytes) -> int:
        """Take the next chunk; call it only until `complete`.

        Answers where the body begins in this chunk; its length when the header goes on.
        """
        buffer = self._buffer
        if buffer is None:
            if chunk[:2] == b"\r\n":
                self.complete = self.is_separated = True
                return 2
            end = chunk.find(b"\r\n\r\n", 0, self._limit)
            if end >= 0:
                self.block = chunk[: end + 2]
                self.complete = self.is_separated = True
                return end + 4
            buffer = self._buffer = bytearray()
        before = len(buffer)
        buffer += chunk
        if before < 2 and buffer[:2] == b"\r\n":
            self.is_separated = True
            return self._whole(0, 2 - before)
        end = buffer.find(b"\r\n\r\n", max(0, before - 3), self._limit)
        if end >= 0:
            self.is_separated = True
            return self._whole(end + 2, end + 4 - before)
        if len(buffer) >= self._limit:
            self.is_cut = True
            return self._whole(self._limit, self._limit - before)
        return len(chunk)

    def finish(self) -> None:
        """The content has ended. Harmless when complete."""
        if not self.complete:
            self._whole(len(self._buffer or b""), 0)

    def _whole(self, octets: int, body_at: int) -> int:
        self.block = bytes(self._buffer or b"")[:octets]
        self._buffer = None
        self.complete = True
        return body_at


def received_count(lowered: bytes) -> int:
    """How many Received fields: the hops behind this message. `lowered`: the block in lower case
    (it is made once for all questions).
    """
    return lowered.count(b"\r\nreceived:") + lowered.startswith(b"received:")


def has_field(lowered: bytes, name: bytes) -> bool:
    """`name` in lower case with its colon."""
    return lowered.startswith(name) or lowered.find(b"\r\n" + name) >= 0


def message_id(block: bytes, lowered: bytes) -> bytes:
    """The Message-ID as it stands, for the log; b"" when there is none."""
    if lowered.startswith(b"message-id:"):
        at = 11
    else:
        at = lowered.find(b"\r\nmessage-id:")
        if at < 0:
            return b""
        at += 13
    end = block.find(b"\r\n", at)
    value = block[at : end if end >= 0 else None].strip()
    if not value and end >= 0 and block[end + 2 : end + 3] in (b" ", b"\t"):
        value = block[end + 2 : end + 3 + _ID_LIMIT].partition(b"\r\n")[0].strip()
    return value[:_ID_LIMIT]


def needs_separator(content_start: bytes) -> bool:
    """True when what we put before the content would run into its body: it has no header at all,
    its first line is no field and not empty either.
    """
    if not content_start or content_start[:2] == b"\r\n":
        return False
    return _FIRST_FIELD.match(content_start) is None
