"""A disk that forgets what was not synced.

`ForgetfulDisk` keeps, for each file, what was synced and every write since; for each directory,
which names were synced and every change since. `power_cut` throws away what a real machine may
throw away: all of it, none of it, any part of it, or the tail of the last write at any byte.
File data and directory entries are forgotten separately: an fsync of a file does not make its name
durable. `snapshot` copies the whole disk in microseconds (pages are shared), so that a crash test
runs its script once and cuts the power at every step of it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from zope.interface import implementer

from mta.interfaces import IDisk

PAGE = 4096
_ZERO = bytes(PAGE)
Step = Callable[[], Callable[[], None] | None]
Write = tuple[int, bytes | None, str]
"""(offset, octets written, by whom), or (new size, None, by whom) for a truncation."""


class _File:
    """One inode: pages as they read now, pages as they were synced, and the writes in between."""

    __slots__ = ("dirty", "durable", "durable_size", "pages", "size")

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0
        self.durable: dict[int, bytes] = {}
        self.durable_size = 0
        self.dirty: list[Write] = []

    def copy(self) -> _File:
        twin = _File()
        twin.pages, twin.size = dict(self.pages), self.size
        twin.durable, twin.durable_size = dict(self.durable), self.durable_size
        twin.dirty = list(self.dirty)
        return twin

    def write(self, offset: int, octets: bytes) -> None:
        end = offset + len(octets)
        at, cursor = offset, 0
        while at < end:
            number, inside = divmod(at, PAGE)
            room = min(PAGE - inside, end - at)
            piece = octets[cursor : cursor + room]
            if room == PAGE:
                page = _ZERO if piece == _ZERO else piece
            else:
                old = self.pages.get(number, _ZERO)
                page = old[:inside] + piece + old[inside + room :]
            self.pages[number] = page
            at += room
            cursor += room
        self.size = max(self.size, end)

    def read(self, octets: int, offset: int) -> bytes:
        end = min(self.size, offset + octets)
        if offset >= end:
            return b""
        first, last = offset // PAGE, (end - 1) // PAGE
        whole = b"".join([self.pages.get(n, _ZERO) for n in range(first, last + 1)])
        return whole[offset - first * PAGE : end - first * PAGE]

    def cut(self, size: int) -> None:
        if size < self.size:
            keep = -(-size // PAGE)
            self.pages = {n: page for n, page in self.pages.items() if n < keep}
            if size % PAGE and keep - 1 in self.pages:
                page = self.pages[keep - 1]
                self.pages[keep - 1] = page[: size % PAGE] + bytes(PAGE - size % PAGE)
        self.size = size

    def sync(self) -> None:
        if self.dirty:
            self.durable, self.durable_size = dict(self.pages), self.size
            self.dirty = []

    def lose(self, writes: list[Write], cached: list[Write] | None = None) -> None:
        """Fall back to what was synced, and let `writes` have reached the platter. `cached` are
        still in a page cache that lives on.
        """
        self.pages, self.size = dict(self.durable), self.durable_size
        self._apply(writes)
        self.durable, self.durable_size, self.dirty = dict(self.pages), self.size, []
        if cached:
            self._apply(cached)
            self.dirty = cached

    def _apply(self, writes: list[Write]) -> None:
        for offset, octets, _ in writes:
            if octets is None:
                self.cut(offset)
            else:
                self.write(offset, octets)


class _Directory:
    __slots__ = ("dirty", "durable", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, _File | _Directory] = {}
        self.durable: dict[str, _File | _Directory] = {}
        self.dirty: list[Change] = []

    def put(self, name: str, node: _File | _Directory | None, writer: str = "") -> None:
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.dirty.append((name, node, writer))

    def lose(self, changes: list[Change], cached: list[Change] | None = None) -> None:
        entries = _applied(self.durable, changes)
        self.durable, self.dirty = dict(entries), cached or []
        self.entries = _applied(entries, self.dirty)


Change = tuple[str, "_File | _Directory | None", str]
"""(name, what it names now, by whom); None for a name that was removed."""


def _applied(
    durable: dict[str, _File | _Directory], changes: list[Change]
) -> dict[str, _File | _Directory]:
    entries = dict(durable)
    for name, node, _ in changes:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
    return entries


class PowerCut(BaseException):
    """Raised by a hook to end a script at a step; nothing in the house catches it."""


@implementer(IDisk)
class ForgetfulDisk:
    """An in-memory file system with a memory for what was synced.

    `capacity` bounds the pages that files may hold (ENOSPC beyond). `on_step(kind, path)` is called
    *before* every call that changes something or syncs. `fail(kind, nth, error)` makes the nth
    such call from now raise. Kinds: open, write, sync, directory, link, unlink, mkdir, truncate,
    read, any. `writer` is who makes the calls now, for a disk that several machines share: the
    power of one of them can be cut by itself.
    """

    def __init__(self, capacity: int = 1 << 34, filesystem: str = "ext4") -> None:
        self._root = _Directory()
        self._open: dict[int, tuple[_File, str]] = {}
        self._next_fd = 1000
        self._faults: list[list[Any]] = []
        self._forbidden: set[str] = set()
        self.capacity = capacity
        self.kind = filesystem
        self.on_step: Callable[[str, str], None] | None = None
        self.writer = ""
        self.steps = 0
        self.counts: dict[str, int] = {}
        self.mkdir("/spool-root")
        self.sync_directory("/")

    # what tests do

    def fail(self, kind: str, nth: int = 1, error: int = errno.EIO, times: int = 1) -> None:
        """Let the `nth` call of `kind` from now on (and the `times - 1` after it) fail."""
        self._faults.append([kind, nth, error, times])

    def forbid(self, path: str) -> None:
        """The file belongs to another user: opening it is refused."""
        self._forbidden.add(path)

    def heal(self) -> None:
        self._faults.clear()
        self._forbidden.clear()

    def snapshot(self) -> ForgetfulDisk:
        """A copy of the disk with nothing open, synced and unsynced alike."""
        twin = ForgetfulDisk(self.capacity, self.kind)
        seen: dict[int, _File | _Directory] = {}
        twin._root = _copy_directory(self._root, seen)
        return twin

    def power_cut(self, keep: str = "none", seed: int = 0, of: str | None = None) -> None:
        """Lose what was not synced. `keep`: none, all, random (each page and each name by itself),
        torn (everything but the tail of each file's last write, cut at any byte). `of`: only what
        this writer had not synced; the others' machines go on, and descriptors stay open.
        """
        chance = random.Random(seed)
        for directory in _directories(self._root):
            changes = [c for c in directory.dirty if of in {None, c[2]}]
            others = [c for c in directory.dirty if of not in {None, c[2]}]
            if keep == "none":
                changes = []
            elif keep == "random":
                changes = [change for change in changes if chance.random() < 0.5]
            directory.lose(changes, others)
        # Files without a name are lost anyway; a file with two names is the same object.
        for file in _files(self._root):
            writes = [w for w in file.dirty if of in {None, w[2]}]
            others_writes = [w for w in file.dirty if of not in {None, w[2]}]
            file.lose(_survivors(writes, keep, chance), others_writes)
        if of is None:
            self._open.clear()

    def paths(self) -> list[str]:
        """Every file's path, sorted."""
        return sorted(_walk(self._root, ""))

    def octets(self, path: str) -> bytes:
        """A file's content as it reads now."""
        file = self._file(path)
        return file.read(file.size, 0)

    def overwrite(self, path: str, offset: int, octets: bytes) -> None:
        """Damage a file behind everybody's back, durably."""
        file = self._file(path)
        file.write(offset, octets)
        file.durable, file.durable_size, file.dirty = dict(file.pages), file.size, []

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        file = self._file(path)
        self.overwrite(path, offset, bytes([file.read(1, offset)[0] ^ 1 << bit]))

    @property
    def used(self) -> int:
        """Octets of all files: what `capacity` bounds."""
        return self._used()

    @property
    def descriptors(self) -> int:
        """How many are open: a leak shows here."""
        return len(self._open)

    # IDisk

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        if path in self._forbidden:
            raise _error(errno.EACCES, path)
        directory, name = self._parent(path)
        node = directory.entries.get(name)
        if flags & os.O_CREAT:
            if node is not None and flags & os.O_EXCL:
                raise _error(errno.EEXIST, path)
            if node is None:
                self._step("open", path)
                node = _File()
                directory.put(name, node, self.writer)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        if flags & os.O_TRUNC:
            node.cut(0)
            node.dirty.append((0, None, self.writer))
        self._next_fd += 1
        self._open[self._next_fd] = (node, path)
        return self._next_fd

    def close(self, fd: int) -> None:
        if self._open.pop(fd, None) is None:
            raise _error(errno.EBADF, str(fd))

    def pread(self, fd: int, octets: int, offset: int) -> bytes:
        file, path = self._described(fd)
        self._fault("read", path)
        return file.read(octets, offset)

    def pwritev(self, fd: int, pieces: Sequence[bytes], offset: int) -> None:
        file, path = self._described(fd)
        self._step("write", path)
        octets = b"".join(pieces)
        growth = offset + len(octets) - file.size
        if growth > 0 and self._used() + growth > self.capacity:
            raise _error(errno.ENOSPC, path)
        file.write(offset, octets)
        file.dirty.append((offset, octets, self.writer))

    def fdatasync(self, fd: int) -> None:
        file, path = self._described(fd)
        try:
            self._step("sync", path)
        except OSError:
            # As Linux does: the pages are clean afterwards and a second sync says "done", while
            # what reached the platter is anybody's guess; here: nothing.
            file.dirty = [write for write in file.dirty if write[2] != self.writer]
            raise
        file.sync()

    fsync = fdatasync

    def drop_cache(self, fd: int) -> None:
        file, _ = self._described(fd)
        file.lose([], list(file.dirty))

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        self._step("directory", path)
        directory.durable, directory.dirty = dict(directory.entries), []

    def link(self, source: str, target: str) -> None:
        node = self._file(source)
        directory, name = self._parent(target)
        if name in directory.entries:
            raise _error(errno.EEXIST, target)
        self._step("link", target)
        directory.put(name, node, self.writer)

    def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        if not isinstance(directory.entries.get(name), _File):
            raise _error(errno.ENOENT, path)
        self._step("unlink", path)
        directory.put(name, None, self.writer)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        directory, name = self._parent(path)
        if name in directory.entries:
            raise _error(errno.EEXIST, path)
        self._step("mkdir", path)
        directory.put(name, _Directory(), self.writer)

    def listdir(self, path: str) -> list[str]:
        return list(self._directory(path).entries)

    def exists(self, path: str) -> bool:
        try:
            directory, name = self._parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return not name or name in directory.entries

    def size(self, fd: int) -> int:
        return self._described(fd)[0].size

    def truncate(self, fd: int, octets: int) -> None:
        file, path = self._described(fd)
        self._step("truncate", path)
        file.cut(octets)
        file.dirty.append((octets, None, self.writer))

    def free_octets(self, path: str) -> int:
        return max(0, self.capacity - self._used())

    def filesystem(self, path: str) -> str:
        return self.kind

    # inside

    def _step(self, kind: str, path: str) -> None:
        self.steps += 1
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.on_step is not None:
            self.on_step(kind, path)
        self._fault(kind, path)

    def _fault(self, kind: str, path: str) -> None:
        for fault in self._faults:
            if fault[0] == kind or (fault[0] == "any" and kind != "read"):
                fault[1] -= 1
                if fault[1] <= 0 and fault[3] > 0:
                    fault[3] -= 1
                    raise _error(fault[2], path)

    def _used(self) -> int:
        return sum(file.size for file in _files(self._root))

    def _described(self, fd: int) -> tuple[_File, str]:
        try:
            return self._open[fd]
        except KeyError:
            raise _error(errno.EBADF, str(fd)) from None

    def _parent(self, path: str) -> tuple[_Directory, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        return self._directory(head or "/"), name

    def _directory(self, path: str) -> _Directory:
        node: _File | _Directory = self._root
        for part in path.split("/"):
            if not part:
                continue
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            if part not in node.entries:
                raise _error(errno.ENOENT, path)
            node = node.entries[part]
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        return node

    def _file(self, path: str) -> _File:
        directory, name = self._parent(path)
        node = directory.entries.get(name)
        if not isinstance(node, _File):
            raise _error(errno.ENOENT, path)
        return node


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _directories(directory: _Directory) -> list[_Directory]:
    """Every directory that is or was reachable, parents first."""
    found = [directory]
    nodes = [*directory.entries.values(), *directory.durable.values()]
    nodes += [node for _, node, _ in directory.dirty if node is not None]
    seen: set[int] = set()
    for node in nodes:
        if isinstance(node, _Directory) and id(node) not in seen:
            seen.add(id(node))
            found += _directories(node)
    return found


def _files(directory: _Directory) -> list[_File]:
    found: dict[int, _File] = {}
    for node in directory.entries.values():
        for file in _files(node) if isinstance(node, _Directory) else [node]:
            found[id(file)] = file
    return list(found.values())


def _walk(directory: _Directory, prefix: str) -> list[str]:
    found = []
    for name, node in directory.entries.items():
        path = f"{prefix}/{name}"
        found += _walk(node, path) if isinstance(node, _Directory) else [path]
    return found


def _copy_directory(directory: _Directory, seen: dict[int, _File | _Directory]) -> _Directory:
    def copy(node: _File | _Directory) -> _File | _Directory:
        if id(node) not in seen:
            seen[id(node)] = node.copy() if isinstance(node, _File) else _copy_directory(node, seen)
        return seen[id(node)]

    twin = _Directory()
    twin.entries = {name: copy(node) for name, node in directory.entries.items()}
    twin.durable = {name: copy(node) for name, node in directory.durable.items()}
    twin.dirty = [(name, node and copy(node), who) for name, node, who in directory.dirty]
    return twin


def _survivors(dirty: list[Write], keep: str, chance: random.Random) -> list[Write]:
    if keep == "none" or not dirty:
        return []
    if keep == "all":
        return dirty
    if keep == "torn":
        offset, octets, writer = dirty[-1]
        if octets is None:
            return dirty[:-1]
        return [*dirty[:-1], (offset, octets[: chance.randrange(len(octets) + 1)], writer)]
    kept: list[Write] = []
    for offset, octets, writer in dirty:
        if octets is None:
            if chance.random() < 0.5:
                kept.append((offset, None, writer))
            continue
        at = 0
        while at < len(octets):  # page by page, as the kernel writes back
            room = min(PAGE - (offset + at) % PAGE, len(octets) - at)
            if chance.random() < 0.5:
                kept.append((offset + at, octets[at : at + room], writer))
            at += room
    return kept
