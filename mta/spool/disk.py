"""The product's disk and threads: `Disk` over the kernel, `ThreadExecutor` over a few threads.

Law: whatever blocks runs on a thread of this executor, and every result comes back on the reactor
thread by `callFromThread`. Nothing else in the house starts a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.interfaces import IDisk, IExecutor, ILoop
from mta.spool.files import Files

JOIN_SECONDS = 5.0
"""How long `stop` waits for a thread: as long as the committer may be stuck before it is LOST."""


@implementer(IDisk)
class Disk(Files):
    """Every file call, straight to the kernel."""


class _Reactor(Protocol):
    def callFromThread(  # noqa: N802  # Twisted's name
        self, call: Callable[..., object], *arguments: object
    ) -> object: ...

    def callLater(  # noqa: N802  # Twisted's name
        self, delay: float, call: Callable[..., object], *arguments: object
    ) -> object: ...


ThreadMaker = Callable[..., threading.Thread]
"""threading.Thread, or what a test has in its place."""


class _Job:
    """One call under way: its result waits for whoever still wants it."""

    __slots__ = ("arguments", "call", "deferred", "forgotten")

    def __init__(self, call: Callable[..., Any], arguments: tuple[object, ...]) -> None:
        self.call = call
        self.arguments = arguments
        self.forgotten = False
        self.deferred: Deferred[Any] = Deferred(self._forget)

    def _forget(self, _: Deferred[Any]) -> None:
        self.forgotten = True

    def run(self) -> Callable[[], None]:
        """On the thread; answers what to run on the reactor thread."""
        try:
            result = self.call(*self.arguments)
        except BaseException:  # the worker outlives whatever it was handed
            result = Failure()
        return lambda: self._deliver(result)

    def _deliver(self, result: Any) -> None:
        if not self.forgotten:
            self.deferred.callback(result)  # a Failure goes to the errbacks


def _raise(error: BaseException) -> None:
    raise error


@implementer(ILoop)
class _Loop:
    """A thread that sleeps on a lock used as a binary semaphore."""

    def __init__(
        self,
        reactor: _Reactor,
        step: Callable[[], Callable[[], None] | None],
        name: str,
        ended: Callable[[_Loop], object],
        make_thread: ThreadMaker,
    ) -> None:
        self._reactor = reactor
        self._step = step
        self._ended = ended
        self._signal = threading.Lock()
        self._signal.acquire()
        self._stopping = False
        self._home = threading.get_ident()
        self._is_due = False
        self._thread = make_thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """On the reactor's thread: at the end of its turn, so that one step takes the work of all
        the associations that were ready in that turn (20 of them: 0.4 flushes a message, not 0.9).
        """
        if threading.get_ident() != self._home:
            self._wake_now()
        elif not self._is_due:
            self._is_due = True
            self._reactor.callLater(0, self._wake_now)

    def _wake_now(self) -> None:
        self._is_due = False
        if self._signal.locked():
            try:
                self._signal.release()
            except RuntimeError:
                pass  # another thread woke it in between

    def stop(self) -> None:
        self._stopping = True
        self._wake_now()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended(self)  # on this thread: it discards from a set, one step to all others

    def _work(self) -> None:
        while True:
            self._signal.acquire()
            if self._stopping:
                return
            try:
                while (deliver := self._step()) is not None:
                    self._reactor.callFromThread(deliver)
                    if self._stopping:
                        return
            except BaseException as error:  # said on the reactor thread, where errors are logged
                self._reactor.callFromThread(_raise, error)


@implementer(IExecutor)
class ThreadExecutor:
    """A pool of `threads` workers (started when first needed) and dedicated loop threads.

    A loop is known until its thread has ended, and no longer: its step holds a whole tenure of the
    spool, ledger and all (kept, 500 takeovers with an empty queue cost 27 MiB).
    """

    def __init__(
        self, reactor: Any, threads: int = 4, *, make_thread: ThreadMaker = threading.Thread
    ) -> None:
        self._reactor: _Reactor = reactor
        self._threads = threads
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._loops: set[_Loop] = set()
        self._make_thread = make_thread
        self._idle = 0
        self._stopped = False
        self._lock = threading.Lock()

    def submit(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        job = _Job(call, arguments)
        if self._stopped:
            job.deferred.errback(RuntimeError("the executor has stopped"))
            return job.deferred
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._workers) < self._threads:
                worker = self._make_thread(
                    target=self._work, name=f"disk-{len(self._workers)}", daemon=True
                )
                self._workers.append(worker)
                worker.start()
        self._queue.put(job)
        return job.deferred

    def loop(self, step: Callable[[], Callable[[], None] | None], name: str) -> ILoop:
        loop = _Loop(self._reactor, step, name, self._loops.discard, self._make_thread)
        self._loops.add(loop)
        return loop

    def stop(self) -> None:
        self._stopped = True
        for loop in tuple(self._loops):
            loop.stop()
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join(JOIN_SECONDS)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            self._reactor.callFromThread(job.run())
            del job  # while it waits for the next one it must not keep what the last one held
            with self._lock:
                self._idle += 1
