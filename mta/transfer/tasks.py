"""Coroutines with an owner, and a timer of which the earliest wish wins.

Law: whatever is started here is cancelled by `cancel`, and what it raises is heard. Nothing is
fired and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mta.interfaces import IClock, ITimer


class Tasks:
    """The coroutines of one owner."""

    def __init__(self, on_fault: Callable[[Failure], None], on_idle: Callable[[], None]) -> None:
        self._running: dict[Deferred[None], None] = {}
        """In the order of their start, in which they are cancelled: a history can be repeated."""
        self._on_fault = on_fault
        self._on_idle = on_idle
        """Called whenever the last one ended."""

    def __len__(self) -> int:
        return len(self._running)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task: Deferred[None] = Deferred.fromCoroutine(coroutine)
        if not task.called:
            self._running[task] = None
        task.addBoth(self._ended, task)

    def cancel(self) -> None:
        for task in list(self._running):
            task.cancel()

    def _ended(self, result: object, task: Deferred[None]) -> None:
        self._running.pop(task, None)
        if isinstance(result, Failure):
            self._on_fault(result)
        if not self._running:
            self._on_idle()


class Alarm:
    """Calls once at the earliest of the times that were asked for, `longest` at most."""

    def __init__(self, clock: IClock, call: Callable[[], None], longest: float) -> None:
        self._clock = clock
        self._call = call
        self._longest = longest
        self._timer: ITimer | None = None
        self._at = float("inf")

    def within(self, seconds: float) -> None:
        """In `seconds`, or earlier if that was said before."""
        wait = min(max(0.0, seconds), self._longest)
        at = self._clock.monotonic() + wait
        if at < self._at:
            self.cancel()
            self._at = at
            self._timer = self._clock.call_later(wait, self._ring)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at = None, float("inf")

    def _ring(self) -> None:
        self._timer, self._at = None, float("inf")
        self._call()


async def sleep(clock: IClock, seconds: float) -> None:
    """Cancelled at any time."""
    done: Deferred[None] = Deferred()
    timer = clock.call_later(seconds, done.callback, None)
    try:
        await done
    finally:
        timer.cancel()
