"""Content on its way out by BDAT: pieces become chunks, and the last one says so.

Law: nothing says LAST before `finish`, so no message is whole before its commit point. Octets leave
as they came. RFC 3030.
"""

from __future__ import annotations

CHUNK_OCTETS = 65536
"""A chunk has at least as many, but for the last: each costs the peer a reply."""


class ChunkWriter:
    """Of one message. Holds a chunk back: only what follows shows whether it is the last."""

    __slots__ = ("_held", "_octets")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._octets = 0

    def take(self, piece: bytes) -> list[bytes]:
        """A whole chunk to send now, which has a reply of its own; empty: not yet."""
        said: list[bytes] = []
        if self._octets >= CHUNK_OCTETS:
            said = self._chunk(b"BDAT %d\r\n")
        self._held.append(piece)
        self._octets += len(piece)
        return said

    def finish(self) -> list[bytes]:
        """The last chunk, be it empty."""
        return self._chunk(b"BDAT %d LAST\r\n")

    def _chunk(self, command: bytes) -> list[bytes]:
        said = [command % self._octets, *self._held]
        self._held = []
        self._octets = 0
        return said
