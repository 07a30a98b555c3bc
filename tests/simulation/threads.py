"""A process's clock, threads and disk: they move by events of the world, and stop with the process.

Law: a disk call belongs to the machine that makes it, and returns only to a process that is alive.
Before each call whatever was laid in its way happens: the process is stopped, slowed down, killed,
or hears an error. Threads of one process run in any order, as those of a pool do.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.interfaces import IClock, IDisk, IExecutor, ILoop, ITimer
from mta.testing.disk import ForgetfulDisk, Step
from tests.simulation.world import WALL, Event, Killed

if TYPE_CHECKING:
    from tests.simulation.node import Process


@implementer(ITimer)
class _Timer:
    def __init__(self, event: Event) -> None:
        self._event = event

    def cancel(self) -> None:
        self._event.cancel()


@implementer(IClock)
class ProcessClock:
    """Monotonic time is the world's: it counts while the process is stopped. Wall time is the
    machine's, which can be set.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        process = self._process
        return _Timer(process.world.later(seconds, call, *arguments, owner=process))

    def monotonic(self) -> float:
        return self._process.world.now

    def wall(self) -> float:
        return WALL + self._process.world.now + self._process.node.wall_offset


@implementer(ILoop)
class _Loop:
    def __init__(self, threads: Threads, step: Step, name: str) -> None:
        self._threads = threads
        self._step = step
        self.name = name
        self._is_woken = False
        self._is_due = False
        self._is_stopped = False

    def wake(self) -> None:
        self._is_woken = True
        if not self._is_due and not self._is_stopped:
            self._is_due = True
            self._threads.soon(self._once)

    def stop(self) -> None:
        self._is_stopped = True

    def _once(self) -> None:
        if self._is_stopped:
            return
        self._is_woken = False
        deliver = self._threads.on_a_thread(self._step)
        self._is_due = False
        if deliver is not None:
            self._threads.hand_over(deliver)
            self._is_woken = True
        if self._is_woken:
            self.wake()


@implementer(IExecutor)
class Threads:
    """IExecutor of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ready: deque[Callable[[], None]] = deque()
        self.on_stack = 0
        """Calls of threads that are on the stack now."""

    def submit(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred(lambda _: None)
        self.soon(self._work, call, arguments, deferred)
        return deferred

    def loop(self, step: Step, name: str) -> ILoop:
        return _Loop(self, step, name)

    def stop(self) -> None:
        """Processes end otherwise here."""

    def soon(self, call: Callable[..., None], *arguments: Any) -> None:
        self._process.world.soon(call, *arguments, owner=self._process)

    def on_a_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.on_stack += 1
        try:
            return call(*arguments)
        finally:
            self.on_stack -= 1

    def _work(self, call: Any, arguments: tuple[object, ...], deferred: Deferred[Any]) -> None:
        try:
            result = self.on_a_thread(call, *arguments)
        except Exception:
            result = Failure()

        def deliver() -> None:
            if not deferred.called:
                deferred.callback(result)

        self.hand_over(deliver)

    def hand_over(self, deliver: Callable[[], None]) -> None:
        """To the reactor's side, in order (callFromThread)."""
        self._ready.append(deliver)
        self.soon(self._deliver)

    def _deliver(self) -> None:
        self._ready.popleft()()


Trap = Callable[["ProcessDisk", str, str], None]
"""(disk, kind, path): what lies in a call's way."""


@implementer(IDisk)
class ProcessDisk:
    """The common disk as one process sees it. `traps` are told before each call, and after a look at
    the epoch; `heard` is told of each change when it has been made.
    """

    def __init__(self, process: Process, disk: ForgetfulDisk) -> None:
        self.process = process
        self._disk = disk
        self._paths: dict[int, str] = {}
        self.traps: list[Trap] = []
        self.heard: Callable[[Process, str, str], None] = lambda _p, _k, _s: None

    def _enter(self, kind: str, path: str) -> ForgetfulDisk:
        process = self.process
        if process.is_dead:
            raise Killed
        for trap in tuple(self.traps):
            trap(self, kind, path)
        if process.is_dead:
            raise Killed
        self._disk.writer = process.node.name
        return self._disk

    def hold(self, until: Callable[[], bool], seconds: float) -> None:
        """The present call does not return before; others go on meanwhile."""
        process = self.process
        world = process.world
        is_reactor = not process.threads.on_stack
        process.reactor_is_held += is_reactor
        try:
            world.hold(world.now + seconds, lambda: process.is_dead or until())
        finally:
            process.reactor_is_held -= is_reactor
            process.go_on()

    def fail(self, kind: str, number: int) -> None:
        """The present call ends with this errno, and does what a real disk does then."""
        self._disk.writer = self.process.node.name
        if kind in {"sync", "write", "directory", "link", "unlink", "open"}:
            self._disk.fail(kind, 1, number)

    def die(self) -> None:
        for fd in self._paths:
            self._disk.close(fd)
        self._paths.clear()

    # --- IDisk

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        disk = self._enter("open" if flags & os.O_CREAT else "look", path)
        fd = disk.open(path, flags, mode)
        self._paths[fd] = path
        if flags & os.O_CREAT:
            self.heard(self.process, "open", path)
        return fd

    def close(self, fd: int) -> None:
        if self.process.is_dead:
            return
        if self._paths.pop(fd, None) is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(fd))
        self._disk.close(fd)

    def pread(self, fd: int, octets: int, offset: int) -> bytes:
        path = self._path(fd)
        if octets > 1:
            return self._enter("read", path).pread(fd, octets, offset)
        mark = self._enter("check", path).pread(fd, octets, offset)
        self._enter("checked", path)  # much can happen between the look and the act
        return mark

    def pwritev(self, fd: int, pieces: Sequence[bytes], offset: int) -> None:
        path = self._path(fd)
        self._enter("write", path).pwritev(fd, pieces, offset)
        self.heard(self.process, "write", path)

    def fdatasync(self, fd: int) -> None:
        self._enter("sync", self._path(fd)).fdatasync(fd)

    fsync = fdatasync

    def drop_cache(self, fd: int) -> None:
        self._enter("drop", self._path(fd)).drop_cache(fd)

    def sync_directory(self, path: str) -> None:
        self._enter("directory", path).sync_directory(path)
        self.heard(self.process, "directory", path)

    def link(self, source: str, target: str) -> None:
        self._enter("link", target).link(source, target)
        self.heard(self.process, "link", target)

    def unlink(self, path: str) -> None:
        self._enter("unlink", path).unlink(path)
        self.heard(self.process, "unlink", path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._enter("mkdir", path).mkdir(path, mode)

    def listdir(self, path: str) -> list[str]:
        return self._enter("list", path).listdir(path)

    def exists(self, path: str) -> bool:
        return self._enter("look", path).exists(path)

    def size(self, fd: int) -> int:
        return self._enter("look", self._path(fd)).size(fd)

    def truncate(self, fd: int, octets: int) -> None:
        path = self._path(fd)
        self._enter("truncate", path).truncate(fd, octets)
        self.heard(self.process, "write", path)

    def free_octets(self, path: str) -> int:
        return self._enter("look", path).free_octets(path)

    def filesystem(self, path: str) -> str:
        return self._disk.filesystem(path)

    def _path(self, fd: int) -> str:
        if self.process.is_dead:
            raise Killed
        try:
            return self._paths[fd]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(fd)) from None
