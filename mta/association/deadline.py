"""A deadline that moves with every command, at the price of an assignment.

Law: it expires at the last deadline that was set, not before and not after. A timer of the reactor
is made only when there is none that fires early enough; one that fires too early looks at the
deadline and waits for the rest (measured: re-arming a timer for each reply costs 6 us a message).
"""

from __future__ import annotations

from collections.abc import Callable

from mta.interfaces import IClock, ITimer

_GRAIN = 1e-6
"""Seconds: sums of floating point times differ by less than this."""


def _never() -> None:
    """Of a deadline that was cancelled."""


class Deadline:
    """Calls `expired` once when the time set last is over."""

    __slots__ = ("_at", "_clock", "_expired", "_fires_at", "_timer")

    def __init__(self, clock: IClock, expired: Callable[[], object]) -> None:
        self._clock = clock
        self._expired = expired
        self._at: float | None = None
        self._fires_at = 0.0
        self._timer: ITimer | None = None

    @property
    def is_set(self) -> bool:
        return self._at is not None

    def set(self, seconds: float, now: float | None = None) -> None:
        """From now, `seconds`. Replaces what was set before. `now`: who has just read the clock."""
        at = self._at = (self._clock.monotonic() if now is None else now) + seconds
        if self._timer is not None:
            if self._fires_at <= at:
                return
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._clock.call_later(seconds, self._fired)

    def clear(self) -> None:
        """Nothing is waited for; the timer may lie there until it finds that out."""
        self._at = None

    def cancel(self) -> None:
        """Nothing will ever be waited for again.

        Whose method was to be called is let go: together they would be a circle, which is found
        long after its association ended (`tap` has circles looked for seldom).
        """
        self._at = None
        self._expired = _never
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _fired(self) -> None:
        self._timer = None
        at = self._at
        if at is None:
            return
        left = at - self._clock.monotonic()
        if left > _GRAIN:
            self._fires_at = at
            self._timer = self._clock.call_later(left, self._fired)
            return
        self._at = None
        self._expired()
