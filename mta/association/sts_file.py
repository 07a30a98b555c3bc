"""The file in this node's state directory that policies of MTA-STS are kept in.

Law: at every moment, also when the power goes, a whole file lies under one of its two names. What
cannot be read is set aside under a third, and said so; it is never taken for a part of the truth.
"""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred

from mta.interfaces import IDisk, IExecutor

NAME = "mta-sts"
LARGEST_OCTETS = 64 * 2**20
"""More than a full book comes to."""


class PolicyFile:
    """Everything here runs on a thread of the executor."""

    def __init__(self, disk: IDisk, executor: IExecutor, directory: str) -> None:
        self._disk = disk
        self._executor = executor
        self._directory = directory
        self.path = f"{directory}/{NAME}"

    def load(self) -> Deferred[bytes | None]:
        """None: there is none. @raise OSError."""
        return self._executor.submit(self._load)

    def save(self, octets: bytes) -> Deferred[None]:
        """@raise OSError."""
        return self._executor.submit(self._save, octets)

    def set_aside(self) -> Deferred[str]:
        """Its new name. @raise OSError."""
        return self._executor.submit(self._set_aside)

    @property
    def _new(self) -> str:
        return f"{self.path}.new"

    def _load(self) -> bytes | None:
        for path in (self.path, self._new):
            # Only between the two steps of _moved is the one under the second name alone.
            if self._disk.exists(path):
                return self._read(path)
        return None

    def _read(self, path: str) -> bytes:
        disk = self._disk
        descriptor = disk.open(path, os.O_RDONLY)
        try:
            size = disk.size(descriptor)
            if size > LARGEST_OCTETS:
                return b""
            found = bytearray()
            while len(found) < size:
                piece = disk.pread(descriptor, size - len(found), len(found))
                if not piece:
                    break
                found += piece
            return bytes(found)
        finally:
            disk.close(descriptor)

    def _save(self, octets: bytes) -> None:
        disk = self._disk
        if not disk.exists(self._directory):
            disk.mkdir(self._directory)
            disk.sync_directory(os.path.dirname(self._directory))
        if disk.exists(self._new):
            if not disk.exists(self.path):  # a crash between the two steps of _moved
                self._moved(self._new, self.path)
            else:
                disk.unlink(self._new)
        descriptor = disk.open(self._new, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            disk.pwritev(descriptor, [octets], 0)
            disk.fdatasync(descriptor)
        finally:
            disk.close(descriptor)
        # Its name has to last before the former one goes: a crash between leaves one of them.
        disk.sync_directory(self._directory)
        self._moved(self._new, self.path)

    def _moved(self, source: str, target: str) -> None:
        disk = self._disk
        if disk.exists(target):
            disk.unlink(target)
        disk.link(source, target)
        disk.sync_directory(self._directory)
        disk.unlink(source)

    def _set_aside(self) -> str:
        target = f"{self.path}.damaged"
        for path in (self.path, self._new):
            if self._disk.exists(path):
                self._moved(path, target)
        return target
