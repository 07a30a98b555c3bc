"""The wall time that the queue may rely upon, when the machine's clock may not be.

Law (spool.md section 9): a clock that disagrees with the log's last batch, or that jumps while we
look, by more than the bounds of mta.model keeps no mail waiting and expires none. Until it agrees,
or an operator says that it is right, wall time here goes on by elapsed time from when it was right.
"""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from mta.interfaces import IClock, ITimer
from mta.model import CLOCK_AHEAD_SECONDS, CLOCK_BEHIND_SECONDS


@implementer(IClock)
class TrustedClock:
    """`clock`, until `suspect` is said; and again after `accept`, or once it agrees.

    `on_trust()` is called when trust returns, `on_doubt(why)` when the clock has jumped.
    """

    def __init__(
        self,
        clock: IClock,
        on_trust: Callable[[], object],
        on_doubt: Callable[[str], object],
    ) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        self._on_trust = on_trust
        self._on_doubt = on_doubt
        self._stamp = clock.wall()
        self._since = clock.monotonic()
        """A pair of times that belonged together: the last look, or when suspicion began."""
        self.suspicion = ""
        """Why the clock is not believed, in words; "" when it is."""

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        return self._clock.call_later(seconds, call, *arguments)

    def wall(self) -> float:
        if self.suspicion:
            return self._elapsed()
        wall, now = self._clock.wall(), self._clock.monotonic()
        expected = self._stamp + now - self._since
        if not expected - CLOCK_BEHIND_SECONDS <= wall <= expected + CLOCK_AHEAD_SECONDS:
            side = "back" if wall < expected else "ahead"
            self.suspect(
                f"the clock jumped {abs(wall - expected):.0f} s {side}; nothing expires until it "
                "agrees",
                expected,
            )
            self._on_doubt(self.suspicion)
            return expected
        self._stamp, self._since = wall, now
        return wall

    def suspect(self, why: str, stamp: float) -> None:
        """Do not believe the clock: go on from wall time `stamp`, which was now."""
        self.suspicion = why
        self._stamp, self._since = stamp, self._clock.monotonic()

    def accept(self) -> bool:
        """An operator vouches for the clock. False: it was believed already."""
        if not self.suspicion:
            return False
        self.suspicion = ""
        self._stamp, self._since = self._clock.wall(), self._clock.monotonic()
        self._on_trust()
        return True

    def _elapsed(self) -> float:
        expected = self._stamp + self._clock.monotonic() - self._since
        if expected - CLOCK_BEHIND_SECONDS <= self._clock.wall() <= expected + CLOCK_AHEAD_SECONDS:
            self.accept()
            return self._clock.wall()
        return expected
