"""The watchdog as the MTA sees it: started, heard, told the deadline, asked to plumb.

Law (cluster.md section 4): no watchdog, no tenure. Who was not heard for a second, or whose pipe
has closed, is none: that is said (`lost`), what is left of it is killed, and another is started,
which removes what was left over before it is ready. The deadline lies in memory that both share, so
that it holds without another word being said.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.cluster import watchdog
from mta.cluster.watchdog import MEMORY_OCTETS, SILENT_SECONDS, write_deadline
from mta.errors import ClusterNotInitialised, StartRefused
from mta.interfaces import IClock, IDescriptorDoor, IDoors, IRevocable, ITimer
from mta.model import VirtualAddress

START_SECONDS = 5.0
"""From its start to its first word: 36 ms were measured, a busy machine may take longer."""
LONGEST_REPORT = 65536


class Spawned(Protocol):
    """A watchdog that was started. Ends with `close`."""

    def fileno(self) -> int: ...

    def read(self) -> bytes:
        """What it reported; b"" at the end. @raise BlockingIOError: nothing."""

    def write(self, octets: bytes) -> None:
        """A command. @raise OSError: it is gone."""

    def deadline(self, deadline_ns: int) -> None: ...

    def kill(self, pid: int) -> None:
        """It hangs (its pipe is open): end it, whatever it does. `pid` is 0 before it was ready.
        Never raises.
        """

    def close(self) -> None: ...


Spawn = Callable[[str, Sequence[VirtualAddress]], Spawned]
"""By interface ("" when nothing is plumbed) and addresses. @raise OSError."""


class SpawnedWatchdog:
    """The real one, in an interpreter and a session of its own. See Spawned."""

    def __init__(self, interface: str, addresses: Sequence[VirtualAddress]) -> None:
        commands, self._commands = os.pipe()
        self._reports, reports = os.pipe()
        shared = os.memfd_create("mta-deadline", os.MFD_CLOEXEC)
        process = os.pidfd_open(os.getpid())
        theirs = (commands, reports, shared, process)
        try:
            os.ftruncate(shared, MEMORY_OCTETS)
            self._memory = mmap.mmap(shared, MEMORY_OCTETS)
            self._number = 0
            self.deadline(0)
            os.set_blocking(self._commands, False)
            os.set_blocking(self._reports, False)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", watchdog.__file__),
                    *map(str, theirs),
                    str(os.getpid()),
                    interface or "-",
                    *(("" if a.required else "?") + str(a.bind) for a in addresses),
                ],
                pass_fds=theirs,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            os.close(self._commands)
            os.close(self._reports)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def fileno(self) -> int:
        return self._reports

    def read(self) -> bytes:
        self._process.poll()  # the one that we started has left: it is not kept as a zombie
        return os.read(self._reports, LONGEST_REPORT)

    def write(self, octets: bytes) -> None:
        os.write(self._commands, octets)

    def deadline(self, deadline_ns: int) -> None:
        self._number += 1
        write_deadline(self._memory, self._number, deadline_ns)

    def kill(self, pid: int) -> None:
        """An open pipe has somebody at its other end, so that `pid` cannot be another's by now."""
        try:
            if pid:
                os.kill(pid, signal.SIGKILL)
            elif self._process.poll() is None:
                self._process.kill()
        except OSError:
            pass  # it has just ended

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._reports)
        self._memory.close()
        self._process.poll()


@implementer(IReadDescriptor)
class _Ears:
    """The reports' end of the pipe in the reactor."""

    def __init__(self, spawned: Spawned, heard: Callable[[], None]) -> None:
        self._spawned = spawned
        self.doRead = heard

    def fileno(self) -> int:
        return self._spawned.fileno()

    def logPrefix(self) -> str:
        return "watchdog"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor's way of saying that the descriptor is broken: reading finds it out."""


class Guard:
    """`ready()` is called whenever a watchdog has become ready; `lost(why)` when one that was ready
    is none any more; `complain(text)` with what an operator should know.
    """

    def __init__(
        self,
        clock: IClock,
        doors: IDoors,
        *,
        interface: str,
        ready: Callable[[], None],
        lost: Callable[[str], None],
        complain: Callable[[str], None],
        spawn: Spawn = SpawnedWatchdog,
    ) -> None:
        self._clock = clock
        self._doors = doors
        self._interface = interface
        self._ready = ready
        self._lost = lost
        self._complain = complain
        self._spawn = spawn
        self.addresses: Sequence[VirtualAddress] = ()
        self.is_ready = False
        self.why_not = "the watchdog is not started"
        self._spawned: Spawned | None = None
        self._watching: IRevocable | None = None
        self._pid = 0
        self._unread = b""
        self._heard_at = 0.0
        self._timer: ITimer | None = None
        self._number = 0
        self._plumbing: dict[int, Deferred[None]] = {}
        self._removing: dict[int, Deferred[None]] = {}
        self._stopping: Deferred[None] | None = None
        self._is_stopped = False

    # --- life

    def start(self) -> None:
        """@raise StartRefused: it cannot be started at all."""
        try:
            self._begin()
        except OSError as fault:
            raise StartRefused(
                "the watchdog cannot be started",
                f"{sys.executable} {watchdog.__file__}: {fault.strerror}",
                "a lease needs it: without a watchdog a stopped process would keep the addresses",
            ) from fault

    def _begin(self) -> None:
        self.why_not = "the watchdog is starting"
        self._spawned = spawned = self._spawn(self._interface, self.addresses)
        door = self._doors
        assert IDescriptorDoor.providedBy(door)
        self._watching = door.watch_descriptor("authority", _Ears(spawned, self._listen))
        self._listen_for(START_SECONDS)

    def stop(self) -> Deferred[None]:
        """It removes what it plumbed, and goes. What must be said to it is said when this returns;
        fires when it has gone. A process about to begin anew calls this and need not wait.
        """
        self._is_stopped = True
        if self._spawned is None:
            self._cancel_timer()
            return succeed(None)
        if self._stopping is None:
            self.set_deadline(0.0)
            self._stopping = Deferred()
            self._write("quit")
        waiter: Deferred[None] = Deferred()
        self._stopping.addCallback(lambda _none: waiter.callback(None))
        return waiter

    # --- what the MTA says

    def set_deadline(self, monotonic: float) -> None:
        """It kills us then; 0: no lease is held. Known to it when this returns."""
        if self._spawned is not None:
            self._spawned.deadline(int(monotonic * 1e9))

    def plumb(self, epoch_file: str) -> Deferred[None]:
        """@raise ClusterNotInitialised: the address, and what the kernel said; or no watchdog."""
        if not self.is_ready or "\n" in epoch_file:
            return fail(self._cannot(self.why_not or "the epoch file's name holds a newline"))
        return self._ask("plumb", epoch_file, self._plumbing)

    def unplumb(self) -> Deferred[None]:
        """Never fails: a new watchdog begins by removing what the former one left."""
        if not self._interface or (self._spawned is None and self._is_stopped):
            return succeed(None)
        if not self.is_ready:
            return self._asked(self._removing)
        return self._ask("unplumb", "", self._removing)

    def _ask(self, word: str, rest: str, asked: dict[int, Deferred[None]]) -> Deferred[None]:
        waiter = self._asked(asked)
        self._write(f"{word} {self._number} {rest}")
        return waiter

    def _asked(self, asked: dict[int, Deferred[None]]) -> Deferred[None]:
        self._number += 1
        number = self._number
        waiter: Deferred[None] = Deferred(lambda _waiter: self._forget(number))
        asked[number] = waiter
        return waiter

    def _forget(self, number: int) -> None:
        """Who asked has gone; the answer, when it comes, is for nobody."""
        self._plumbing.pop(number, None)
        self._removing.pop(number, None)

    def _write(self, command: str) -> None:
        assert self._spawned is not None
        try:
            self._spawned.write(command.encode("utf-8", "surrogateescape") + b"\n")
        except OSError:
            pass  # its end of the other pipe tells

    # --- what the watchdog says

    def _listen(self) -> None:
        spawned = self._spawned
        if spawned is None:
            return
        try:
            octets = spawned.read()
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._gone("it has ended", is_open=False)
            return
        self._listen_for(SILENT_SECONDS)
        *lines, self._unread = (self._unread + octets).split(b"\n")
        for line in lines:
            if self._spawned is spawned:
                self._hear(line.decode("utf-8", "backslashreplace"))
        if len(self._unread) > LONGEST_REPORT:
            self._gone("it talks nonsense")

    def _hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        number, _, text = rest.partition(" ")
        if word == "ready":
            locked, _, left = text.partition(" ")
            self._is_ready(int(number), locked == "1", left)
        elif word == "done":
            self._done(int(number), text)
        elif word == "failed":
            waiter = self._plumbing.pop(int(number), None)
            if waiter is not None:
                waiter.errback(self._cannot(text))

    def _is_ready(self, pid: int, is_locked: bool, left_over: str) -> None:
        self._pid = pid
        self.is_ready = True
        self.why_not = ""
        if not is_locked:
            self._complain("the watchdog's memory is not locked (LimitMEMLOCK, CAP_IPC_LOCK)")
        if left_over:
            self._complain(f"the watchdog could not remove what was left over: {left_over}")
        removing, self._removing = self._removing, {}
        for waiter in removing.values():
            waiter.callback(None)
        self._ready()

    def _done(self, number: int, text: str) -> None:
        if text:
            self._complain(f"the watchdog says: {text}")
        waiter = self._plumbing.pop(number, None) or self._removing.pop(number, None)
        if waiter is not None:
            waiter.callback(None)

    # --- its end

    def _listen_for(self, seconds: float) -> None:
        self._heard_at = self._clock.monotonic()
        self._cancel_timer()
        self._timer = self._clock.call_later(seconds, self._is_it_silent, seconds)

    def _is_it_silent(self, seconds: float) -> None:
        """We may have been kept from listening ourselves: what lies in the pipe counts first."""
        self._timer = None
        heard_at = self._heard_at
        self._listen()
        if self._spawned is not None and self._heard_at == heard_at:
            self._gone(f"it has been silent for {seconds:g} s")

    def _gone(self, why: str, *, is_open: bool = True) -> None:
        spawned, self._spawned = self._spawned, None
        was_ready, self.is_ready = self.is_ready, False
        assert spawned is not None
        self.why_not = gone = f"the watchdog is gone: {why}"
        self._cancel_timer()
        if self._watching is not None:
            self._watching.revoke()
            self._watching = None
        if is_open:
            spawned.kill(self._pid)  # should it wake, it would act on a lease long gone
        spawned.close()
        self._unread, self._pid = b"", 0
        stopping, self._stopping = self._stopping, None
        plumbing, self._plumbing = self._plumbing, {}
        for waiter in plumbing.values():
            waiter.errback(self._cannot(gone))
        if stopping is not None or self._is_stopped:
            removing, self._removing = self._removing, {}
            for waiter in (*removing.values(), *([stopping] if stopping else [])):
                waiter.callback(None)
            return
        # The next one begins before anybody is told: it removes what this one left behind.
        self._again(0.0 if was_ready else SILENT_SECONDS)
        if was_ready:
            self._lost(gone)

    def _again(self, seconds: float) -> None:
        if seconds:
            self._timer = self._clock.call_later(seconds, self._again, 0.0)
            return
        self._timer = None
        why = self.why_not
        try:
            self._begin()
        except OSError as fault:
            self.why_not = f"{why}; another cannot be started: {fault.strerror}"
            self._complain(self.why_not)
            self._again(SILENT_SECONDS)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    @staticmethod
    def _cannot(why: str) -> ClusterNotInitialised:
        return ClusterNotInitialised(
            "the virtual addresses cannot be added", why, "see cluster.interface and `ip address`"
        )
