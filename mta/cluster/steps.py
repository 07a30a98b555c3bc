"""One step after the other: runs the driver's coroutines, and drops what comes too late.

Law: at most one step is wanted at a time. A step that was let go or dropped may still end, but its
outcome reaches nobody; a step that fails always reaches somebody, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mta.cluster.nap import Nap
from mta.errors import ClusterNotInitialised
from mta.interfaces import IClock

T = TypeVar("T")


class _Step:
    __slots__ = ("began", "guard", "name", "task", "waiters", "wanted")

    def __init__(self, name: str, began: float) -> None:
        self.name = name
        self.began = began
        self.wanted = True
        self.guard: Coroutine[Any, Any, None] | None = None
        self.task: Deferred[None] | None = None
        self.waiters: list[Deferred[None]] = []


class Steps:
    """`complain(text)` hears of defects; `dropped()` of each outcome that came too late."""

    def __init__(
        self, clock: IClock, complain: Callable[[str], None], dropped: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._complain = complain
        self._dropped = dropped
        self._running: list[_Step] = []
        self.generation = 0
        """Counts the steps that were wanted. One that awaited compares it before it acts."""
        self._nap = Nap(clock)

    @property
    def present(self) -> tuple[str, float]:
        """The wanted step's name and for how many seconds it has run; ("", 0.0) for none."""
        for step in self._running:
            if step.wanted:
                return step.name, self._clock.monotonic() - step.began
        return "", 0.0

    def run(
        self,
        name: str,
        step: Coroutine[Any, Any, T],
        then: Callable[[T], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        """Begin `step`; the former one is let go. Exactly one of `then` and `failed` is called when
        it ends, unless it was let go or dropped before.
        """
        self.let_go()
        made = _Step(name, self._clock.monotonic())
        self._running.append(made)
        made.guard = guard = self._guard(made, step, then, failed)
        made.task = task = Deferred.fromCoroutine(guard)
        task.addErrback(self._defect, name)

    async def _guard(
        self,
        step: _Step,
        work: Coroutine[Any, Any, T],
        then: Callable[[T], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        fault: Exception | None = None
        result: T | None = None
        try:
            result = await work
        except Exception as raised:
            # A cancelling that was not ours is a failure like any other: nobody may wait for it.
            fault = raised
        self._running.remove(step)
        for waiter in step.waiters:
            waiter.callback(None)
        if not step.wanted:
            self._dropped()
        elif fault is not None:
            failed(step.name, fault)
        else:
            then(result)  # type: ignore[arg-type]  # no fault: it is a T

    def _defect(self, failure: Failure, name: str) -> None:
        if not failure.check(CancelledError):
            self._complain(f"{name}: {failure.getTraceback(detail='brief')}")

    def let_go(self) -> None:
        """Nobody wants the present step's outcome any more; it may end."""
        self.generation += 1
        for step in self._running:
            step.wanted = False

    def drop(self) -> None:
        """Cancel whatever runs. What a thread does cannot be cancelled, only forgotten."""
        self.let_go()
        for step in tuple(self._running):
            self._cancel(step)

    def _cancel(self, step: _Step) -> None:
        """A step that stands on the stack right now is cancelled when it waits again."""
        if step not in self._running:
            return
        if step.task is None or getattr(step.guard, "cr_running", False):
            self._clock.call_later(0.0, self._cancel, step)
        else:
            step.task.cancel()

    async def settled(self, seconds: float) -> None:
        """Wait until the steps that were let go have ended; cancel them after `seconds`."""
        for step in tuple(self._running):
            if step.wanted:
                continue
            waiter: Deferred[None] = Deferred()
            step.waiters.append(waiter)
            timer = self._clock.call_later(seconds, self._cancel, step)
            await waiter
            timer.cancel()

    async def bounded(self, waiting: Deferred[T], seconds: float, what: str) -> T:
        """Await, but not for ever. @raise ClusterNotInitialised: it took too long."""
        expired = []

        def expire() -> None:
            expired.append(True)
            waiting.cancel()

        timer = self._clock.call_later(seconds, expire)
        try:
            return await waiting
        except CancelledError:
            if expired:
                raise ClusterNotInitialised(
                    f"{what} took too long", f"no answer within {seconds:g} s"
                ) from None
            raise
        finally:
            timer.cancel()

    async def sleep(self, seconds: float) -> None:
        """Wait, or until `wake`."""
        await self._nap.sleep(seconds)

    def wake(self) -> None:
        self._nap.wake()
