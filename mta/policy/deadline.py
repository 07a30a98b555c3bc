"""Bounds one wait after the other; whoever is waited for may ask for the same time anew."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred

from mta.errors import TransientFailure
from mta.interfaces import IClock, ITimer

T = TypeVar("T")


class Deadline:
    """For one wait at a time."""

    def __init__(self, clock: IClock) -> None:
        self._clock = clock
        self._timer: ITimer | None = None
        self._waiting: Deferred[object] | None = None
        self._seconds = 0.0
        self._is_over = False

    async def bound(self, waiting: Deferred[T], seconds: float) -> T:
        """What it fires with. @raise TransientFailure: it took longer, and was cancelled."""
        if waiting.called:
            return await waiting
        self._waiting, self._seconds, self._is_over = waiting, seconds, False  # type: ignore[assignment]
        self._timer = self._clock.call_later(seconds, self._expire)
        try:
            return await waiting
        except CancelledError:
            if self._is_over:
                raise TransientFailure("it does not answer", f"{seconds:g} s have passed") from None
            raise
        finally:
            self.end()

    def extend(self) -> None:
        """The time begins anew. Harmless when nothing is waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._clock.call_later(self._seconds, self._expire)

    def end(self) -> None:
        """Nothing is waited for any more."""
        timer, self._timer = self._timer, None
        self._waiting = None
        if timer is not None:
            timer.cancel()

    def _expire(self) -> None:
        waiting, self._timer = self._waiting, None
        self._is_over = True
        if waiting is not None:
            waiting.cancel()
