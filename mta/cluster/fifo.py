"""Reads a FIFO that another program writes, and tells at once when that program has died.

Law: it is opened for reading only, so that the writer's end is a hang-up; what can be read is read
to its end before anybody is told; a FIFO without a writer is closed and looked at again by a timer,
because it would be readable for ever. One reader: each octet reaches only one of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from mta.interfaces import IClock, IDescriptorDoor, IDoors, IRevocable, ITimer

LOOK_AGAIN_SECONDS = 0.25
"""How often a FIFO that is missing, or that nobody writes, is looked at."""
READ_OCTETS = 65536
DRAIN_READS = 16
"""Reads of one drain; a writer that never stops is gone on with in the next turn."""


class Fifo:
    """The kernel's side. @raise OSError, with a `strerror` that says what is wrong."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a FIFO")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EBUSY, "another process of this MTA reads it") from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self.capacity = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes | None:
        """b"": nobody has it open for writing and nothing is left. None: nothing now."""
        try:
            return os.read(self._descriptor, READ_OCTETS)
        except BlockingIOError:
            return None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@implementer(IReadDescriptor)
class FifoReader:
    """`heard(octets, is_first, was_full)` after each drain, and after the first one of a writer
    even when there was nothing. `silent(why)` when there is no writer.
    """

    def __init__(
        self,
        path: str,
        doors: IDoors,
        clock: IClock,
        heard: Callable[[bytes, bool, bool], None],
        silent: Callable[[str], None],
        *,
        open_fifo: Callable[[str], Any] = Fifo,
    ) -> None:
        self.path = path
        self._doors = IDescriptorDoor(doors)
        self._clock = clock
        self._heard = heard
        self._silent = silent
        self._open_fifo = open_fifo
        self._fifo: Any = None
        self._watching: IRevocable | None = None
        self._timer: ITimer | None = None
        self._is_first = True
        self._is_stopped = False

    def start(self) -> None:
        self._open()

    def stop(self) -> None:
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._close()

    def _open(self) -> None:
        self._timer = None
        try:
            self._fifo = self._open_fifo(self.path)
        except OSError as fault:
            self._end(f"{self.path}: {fault.strerror}")
            return
        self._is_first = True
        self._watching = self._doors.watch_descriptor("authority", self)
        self.doRead()

    def _close(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.revoke()
        fifo, self._fifo = self._fifo, None
        if fifo is not None:
            fifo.close()

    def _end(self, why: str) -> None:
        self._close()
        self._timer = self._clock.call_later(LOOK_AGAIN_SECONDS, self._open)
        self._silent(why)

    # IReadDescriptor

    def fileno(self) -> int:
        return int(self._fifo.fileno()) if self._fifo is not None else -1

    def logPrefix(self) -> str:
        return "notify FIFO"

    def doRead(self) -> None:
        """Everything that is there, then one word about it."""
        if self._fifo is None:
            return
        pieces: list[bytes] = []
        has_ended = False
        why = f"nobody writes to {self.path}"
        for _ in range(DRAIN_READS):
            try:
                octets = self._fifo.read()
            except OSError as fault:
                has_ended, why = True, f"{self.path}: {fault.strerror}"
                break
            if not octets:
                has_ended = octets is not None
                break
            pieces.append(octets)
        if has_ended:
            # What a writer said before it died is of no more use: its death is the last word.
            self._end(why)
            return
        if pieces or self._is_first:
            whole = b"".join(pieces)
            # A pipe that is all but full may have lost what was written after it.
            was_full = len(whole) >= self._fifo.capacity // 16 * 15
            is_first, self._is_first = self._is_first, False
            self._heard(whole, is_first, was_full)

    def connectionLost(self, reason: Any) -> None:
        """The reactor saw the hang-up."""
        if self._watching is not None:
            self._end(f"nobody writes to {self.path}")
