"""The spool's directory: its format marker, its names, and every reason to refuse it.

Law: a newer format is refused by name before anything is written. Nothing is removed here. What
can refuse is tried without a trace; only an empty directory that may be made a spool is written.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass

from mta.errors import Corrupt, Full, StartRefused, Unavailable
from mta.model import Sharing
from mta.spool.files import Files

FORMAT = 1
"""The version of everything that lies under the directory."""

PARTS = ("epoch", "seg", "big", "part", "ckpt")
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
OURS = "all below it must belong to the MTA's user, with mode 0700"
_VOLATILE = frozenset({"tmpfs", "ramfs", "9p", "fuse", "fuseblk"})
_NETWORK = frozenset({"nfs", "nfs4"})


@dataclass(frozen=True, slots=True)
class Marker:
    """What spool/format says."""

    version: int
    spool_id: str


class Directory:
    """Paths below one spool directory, and the checks on it. Blocking."""

    def __init__(self, disk: Files, path: str) -> None:
        self.disk = disk
        self.path = os.path.abspath(path)

    def join(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    # making it

    def initialise(self) -> Marker:
        """Make a spool here, in a directory that is missing, empty or half made.
        @raise StartRefused: something else lies here, or it cannot be written.
        """
        disk = self.disk
        try:
            self._make_directories(self.path)
            for part in PARTS:
                if not disk.exists(self.join(part)):
                    disk.mkdir(self.join(part))
            disk.sync_directory(self.path)  # the marker promises that the rest is there
            marker = Marker(FORMAT, secrets.token_hex(16))
            aside = self.join(f"format-{secrets.token_hex(8)}")
            write_whole(disk, aside, f"mta-spool {marker.version} {marker.spool_id}\n".encode())
            try:
                disk.link(aside, self.join("format"))
            except FileExistsError:
                return self.marker()
            finally:
                disk.unlink(aside)
            disk.sync_directory(self.path)
        except OSError as error:
            raise StartRefused(
                f"spool {self.path} cannot be made",
                error.strerror or str(error),
                "check the path, its owner and the free space",
                os.EX_CANTCREAT,
            ) from error
        return marker

    def _make_directories(self, path: str) -> None:
        if path in {"", "/"} or self.disk.exists(path):
            return
        parent = os.path.dirname(path)
        self._make_directories(parent)
        self.disk.mkdir(path, 0o700)
        self.disk.sync_directory(parent)

    # refusing it

    def marker(self) -> Marker:
        """@raise StartRefused: a newer format. @raise Corrupt: unreadable."""
        try:
            text = read_whole(self.disk, self.join("format"))
        except OSError as error:
            raise Unavailable(
                f"{self.join('format')} cannot be read", error.strerror or str(error)
            ) from error
        words = text.split()
        if len(words) != 3 or words[0] != b"mta-spool" or not words[1].isdigit():
            raise Corrupt(
                f"{self.join('format')} is no spool's format marker",
                f"it reads {text[:40]!r}",
                "`mta spool check` says what else lies there",
            )
        version = int(words[1])
        if version > FORMAT:
            raise StartRefused(
                f"spool {self.path} has format {version}",
                f"this program knows formats up to {FORMAT}",
                "run the version that wrote it, or a newer one",
                os.EX_CONFIG,
            )
        return Marker(version, words[2].decode("ascii", "replace"))

    def inspect(self, initialise: bool, *, make_missing: bool = True) -> Marker:
        """The marker of a spool that is there; makes one where that is allowed: `initialise` in an
        empty directory, `make_missing` with its directory.
        @raise StartRefused, Corrupt, Unavailable.
        """
        disk = self.disk
        try:
            if not disk.exists(self.path):
                if not make_missing:
                    raise StartRefused(
                        f"spool {self.path} is missing",
                        "is it mounted?",
                        f"`mta spool init {self.path}` makes a new one",
                        os.EX_CONFIG,
                    )
                return self.initialise()
            names = disk.listdir(self.path)
            if "format" in names:
                return self.marker()
            leftovers = [n for n in names if n not in PARTS and not n.startswith("format-")]
            if leftovers == ["lost+found"]:
                leftovers = []
            filled = [part for part in PARTS if part in names and disk.listdir(self.join(part))]
        except OSError as error:
            raise StartRefused(
                f"spool {self.path} cannot be read",
                error.strerror or str(error),
                "check its owner and mode, and whether it is mounted",
                os.EX_NOPERM if error.errno in FORBIDDEN else os.EX_IOERR,
            ) from error
        if leftovers or filled:
            raise StartRefused(
                f"{self.path} is no spool",
                f"it has no format marker, but holds {_some(sorted(leftovers or filled))}",
                "name another directory",
                os.EX_CONFIG,
            )
        if not initialise:
            raise StartRefused(
                f"spool {self.path} is empty",
                "is it mounted?",
                f"`mta spool init {self.path}` makes a new one",
                os.EX_CONFIG,
            )
        return self.initialise()

    def check_filesystem(self, sharing: Sharing, allowed: tuple[str, ...]) -> str:
        """@raise StartRefused: of a kind that keeps no promise, or not shared as was said."""
        kind = self.disk.filesystem(self.path)
        family = kind.partition(".")[0]
        if family in _VOLATILE and kind not in allowed and family not in allowed:
            raise StartRefused(
                f"spool {self.path} lies on {kind}",
                "what is synced there does not survive",
                f"move it, or set spool.allow-filesystem: [{kind}] if mail may be lost",
                os.EX_CONFIG,
            )
        if family in _NETWORK and sharing is not Sharing.NFS:
            raise StartRefused(
                f"spool {self.path} lies on {kind}",
                f"spool.sharing says {sharing.value}",
                "set spool.sharing: nfs, so that the epoch is re-opened at each check",
                os.EX_CONFIG,
            )
        return kind

    def probe(self, node: str) -> None:
        """A file written, synced and removed. @raise Unavailable, Full."""
        path = self.join("part", f"probe-{secrets.token_hex(8)}")
        try:
            try:
                write_whole(self.disk, path, f"{node}\n".encode())
            finally:
                try:
                    self.disk.unlink(path)
                except FileNotFoundError:
                    pass  # it was not made, or a running owner has swept it
        except OSError as error:
            what = f"spool {self.path} cannot be written"
            if error.errno in FORBIDDEN:
                raise StartRefused(
                    what,
                    error.strerror or str(error),
                    OURS,
                    os.EX_NOPERM,
                ) from error
            raise as_spool_error(error, what) from error


def _some(names: list[str], most: int = 3) -> str:
    """The first names, and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def as_spool_error(error: OSError, what: str) -> Full | Unavailable:
    """ENOSPC and EDQUOT become Full, everything else Unavailable, by path, and uid if forbidden."""
    why = error.strerror or str(error)
    if isinstance(error.filename, str):
        why = f"{error.filename}: {why}"
    if error.errno in FORBIDDEN:
        return Unavailable(what, f"{why}, for uid {os.geteuid()}", OURS)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Full(what, why, "free space on that file system")
    remedy = "look at the kernel's log" if error.errno == errno.EIO else ""
    return Unavailable(what, why, remedy)


def write_whole(disk: Files, path: str, octets: bytes) -> None:
    """A new file, complete and synced; its name is not. Nothing stays behind on an error."""
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for start in range(0, len(octets), 1 << 20):
            disk.pwritev(fd, [octets[start : start + (1 << 20)]], start)
        disk.fsync(fd)
    except OSError:
        try:
            disk.unlink(path)
        except OSError:
            pass  # the first error is the one to tell
        raise
    finally:
        disk.close(fd)


def read_whole(disk: Files, path: str) -> bytes:
    fd = disk.open(path, os.O_RDONLY)
    try:
        return disk.pread(fd, disk.size(fd), 0)
    finally:
        disk.close(fd)
