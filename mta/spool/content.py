"""Contents on their way out: from memory when they were just accepted, else piece by piece.

Law: at most one piece of 256 KiB in memory; what does not match its crc ends in Corrupt before the
last piece is handed out, so that no damaged message ever gets its final dot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import Corrupt
from mta.interfaces import IContent, IExecutor
from mta.spool.directory import as_spool_error
from mta.spool.files import Files

PIECE = 256 << 10

T = TypeVar("T")


@implementer(IContent)
class ResidentContent:
    """All of it lies in memory."""

    __slots__ = ("_at", "resident", "size_octets")

    def __init__(self, pieces: tuple[bytes, ...], size_octets: int) -> None:
        self.resident: tuple[bytes, ...] | None = pieces
        self.size_octets = size_octets
        self._at = 0

    def read(self) -> Deferred[bytes]:
        pieces = self.resident or ()
        while self._at < len(pieces):
            self._at += 1
            if pieces[self._at - 1]:
                return succeed(pieces[self._at - 1])
        return succeed(b"")

    def close(self) -> None:
        pass


@implementer(IContent)
class FileContent:
    """A stretch of a file, behind what was put before it."""

    resident: tuple[bytes, ...] | None = None

    def __init__(
        self,
        disk: Files,
        executor: IExecutor,
        fd: int,
        *,
        before: bytes,
        offset: int,
        octets: int,
        crc: int,
        running: int,
        name: str,
        on_close: Callable[[], None],
        on_corrupt: Callable[[str], Corrupt],
    ) -> None:
        """`running` is the crc of what came before the stretch, where both have one crc."""
        self.size_octets = len(before) + octets
        self._disk = disk
        self._executor = executor
        self._fd = fd
        self._before = before
        self._at = offset
        self._left = octets
        self._crc = crc
        self._running = running
        self._name = name
        self._on_close = on_close
        self._on_corrupt = on_corrupt
        self._closed = False
        self._reading = False

    def read(self) -> Deferred[bytes]:
        if self._before:
            piece, self._before = self._before, b""
            return succeed(piece)
        if not self._left or self._closed:
            return succeed(b"")
        octets = min(PIECE, self._left)
        self._reading = True
        answer: Deferred[bytes] = Deferred()
        reading = self._executor.submit(self._disk.pread, self._fd, octets, self._at)
        reading.addBoth(self._read_ended)
        reading.addCallbacks(self._got, self._failed, callbackArgs=(octets,))
        reading.addBoth(lambda result: None if answer.called else answer.callback(result))
        return answer

    def close(self) -> None:
        """A read under way still has the descriptor; it goes when that is over."""
        if not self._closed:
            self._closed = True
            if not self._reading:
                self._on_close()

    def _read_ended(self, result: T) -> T:
        self._reading = False
        if self._closed:
            self._on_close()
        return result

    def _got(self, piece: bytes, octets: int) -> bytes:
        if self._closed:
            return b""
        self._running = crc32(piece, self._running)
        self._at += len(piece)
        self._left -= len(piece)
        if len(piece) < octets:
            raise self._on_corrupt(f"{self._name} ends {self._left} octets early")
        if not self._left and self._running != self._crc:
            raise self._on_corrupt(f"{self._name}: the content's crc does not match")
        return piece

    def _failed(self, failure: Failure) -> Failure | bytes:
        if self._closed:
            return b""
        if isinstance(failure.value, OSError):
            return Failure(as_spool_error(failure.value, f"{self._name} cannot be read"))
        return failure
