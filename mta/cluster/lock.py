"""A lock that keeps a second MTA out of a spool on one machine, and names who holds it.

Law: a hint, never a fence. It is an open-file-description lock: other descriptors of this process
that are closed do not lose it (POSIX locks would), and the kernel drops it when the process dies.
Cluster resources never use one for ownership: a stopped holder would block the takeover.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from mta.errors import StartRefused
from mta.interfaces import IDisk

F_OFD_SETLK = 37
"""fcntl(2), Linux: not in the fcntl module."""
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock: type, whence, start, length, pid."""
NAME = "owner.lock"


def take_lock(descriptor: int) -> bool:
    """Take the whole file for writing, without waiting. False: another holds it."""
    try:
        fcntl.fcntl(descriptor, F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as fault:
        if fault.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


class OwnerLock:
    """`take()` it once; it is held until `give_back` or the process ends."""

    def __init__(
        self, disk: IDisk, directory: str, lock: Callable[[int], bool] = take_lock
    ) -> None:
        self._disk = disk
        self._lock = lock
        self.path = f"{directory}/{NAME}"
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def take(self, who: str) -> None:
        """Take it and write `who` into it. Harmless when held.

        @raise StartRefused: another holds it, named as it wrote itself; or no file can be made.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor = self._disk.open(self.path, os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as fault:
            raise StartRefused(
                f"the lock {self.path} cannot be opened",
                fault.strerror or str(fault),
                "the directory must exist and belong to the MTA's user",
                os.EX_CANTCREAT,
            ) from fault
        try:
            if not self._lock(descriptor):
                raise self._refusal(descriptor)
            text = f"{who}\n".encode()
            self._disk.truncate(descriptor, 0)
            self._disk.pwritev(descriptor, [text], 0)
        except BaseException:
            self._disk.close(descriptor)
            raise
        self._descriptor = descriptor

    def refuse_beside_another(self) -> None:
        """Look, without a trace, whether somebody holds it now. @raise StartRefused: named."""
        try:
            descriptor = self._disk.open(self.path, os.O_RDWR)
        except OSError:
            return  # not made yet, or a fault that `take` will name
        try:
            if self._descriptor is None and not self._lock(descriptor):
                raise self._refusal(descriptor)
        finally:
            self._disk.close(descriptor)

    def _refusal(self, descriptor: int) -> StartRefused:
        return StartRefused(
            f"another MTA owns {self.path}",
            self._named(descriptor),
            "stop it, or give this one another spool and state directory "
            "(with `make run`: make run PORT=2626 DIRECTORY=other)",
        )

    def _named(self, descriptor: int) -> str:
        """What the holder wrote, as printable text."""
        written = self._disk.pread(descriptor, 200, 0).split(b"\n")[0]
        shown = "".join(chr(octet) if 32 <= octet < 127 else "?" for octet in written)
        return shown or "it has not written its name yet"

    def give_back(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._disk.close(descriptor)
