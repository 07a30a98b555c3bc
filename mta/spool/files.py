"""File calls of the store, over `os`: the one place where the spool meets the kernel.

Law: no policy here. Every method is one call (or the loop that a short write asks for), blocks, and
raises OSError with the kernel's errno and nothing else. Imports nothing of Twisted, so that the
offline check starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_IOV_MAX = 1024
"""Pieces that one writev takes (Linux UIO_MAXIOV)."""


class Files:
    """What IDisk promises. `mta.spool.disk.Disk` is this class with the contract declared."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, octets: int, offset: int) -> bytes:
        got = os.pread(fd, octets, offset)
        if len(got) == octets or not got:
            return got
        # A signal or a 2 GiB bound may cut a read short before the end of the file.
        parts = [got]
        have = len(got)
        while have < octets:
            more = os.pread(fd, octets - have, offset + have)
            if not more:
                break
            parts.append(more)
            have += len(more)
        return b"".join(parts)

    def pwritev(self, fd: int, pieces: Sequence[bytes], offset: int) -> None:
        for start in range(0, len(pieces), _IOV_MAX):
            group = pieces[start : start + _IOV_MAX]
            total = sum(map(len, group))
            written = os.pwritev(fd, group, offset)
            if written != total:
                rest = memoryview(b"".join(group))
                while written < total:
                    written += os.pwrite(fd, rest[written:], offset + written)
            offset += total

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def drop_cache(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        # Not os.path.exists: it would turn EIO and EACCES into "no".
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, octets: int) -> None:
        os.ftruncate(fd, octets)

    def free_octets(self, path: str) -> int:
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize

    def filesystem(self, path: str) -> str:
        """Type of the mount with the longest matching mount point; the last one mounted wins."""
        real = os.path.realpath(path)
        found, kind = -1, "unknown"
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split(" ")
                # The kernel writes blanks and backslashes in octal: \040, \134.
                point = fields[1].encode("latin-1", "replace").decode("unicode_escape")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= found:
                    found, kind = len(point), fields[2]
        return kind
