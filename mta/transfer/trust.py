"""The wall time that the queue may rely upon, when the machine's clock may not be.

Law (spool.md section 9): a clock that disagrees with the log's last batch by more than the bounds
of mta.model keeps no mail waiting and expires none. Until it agrees, or an operator says that it is
right, wall time here goes on from that batch by elapsed time.
"""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from mta.interfaces import IClock, ITimer
from mta.model import CLOCK_AHEAD_SECONDS, CLOCK_BEHIND_SECONDS


@implementer(IClock)
class TrustedClock:
    """`clock`, until `suspect` is said; and again after `accept`, or once it agrees.

    `on_trust()` is called when trust returns.
    """

    def __init__(self, clock: IClock, on_trust: Callable[[], object]) -> None:
        self._clock = clock
        self._on_trust = on_trust
        self._stamp = 0.0
        self._since = 0.0
        self.suspicion = ""
        """Why the clock is not believed, in words; "" when it is."""

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        return self._clock.call_later(seconds, call, *arguments)

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def wall(self) -> float:
        return self._elapsed() if self.suspicion else self._clock.wall()

    def suspect(self, why: str, stamp: float) -> None:
        """Do not believe the clock: go on from wall time `stamp`, which was now."""
        self.suspicion = why
        self._stamp, self._since = stamp, self._clock.monotonic()

    def accept(self) -> bool:
        """An operator vouches for the clock. False: it was believed already."""
        if not self.suspicion:
            return False
        self.suspicion = ""
        self._on_trust()
        return True

    def _elapsed(self) -> float:
        expected = self._stamp + self._clock.monotonic() - self._since
        if expected - CLOCK_BEHIND_SECONDS <= self._clock.wall() <= expected + CLOCK_AHEAD_SECONDS:
            self.accept()
            return self._clock.wall()
        return expected
