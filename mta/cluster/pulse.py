"""The owner's pulse: re-reads the epoch, beats in the spool, and notices a disk that hangs.

Law (spool.md section 3): an owner checks every 250 ms when nothing else does, and bumps its
heartbeat once a second. The heartbeat decides only when a standby may claim, never safety.
"""

from __future__ import annotations

from collections.abc import Callable

from mta.errors import MTAError
from mta.interfaces import IClock, ISpool, ITimer

CHECK_SECONDS = 0.25
BEATS = 4
"""Checks to one heartbeat."""


class Pulse:
    """`lost(why)` is called once when the epoch is superseded or unreadable, or the disk stuck."""

    def __init__(
        self, spool: ISpool, clock: IClock, stall_seconds: float, lost: Callable[[str], None]
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._stall_seconds = stall_seconds
        self._lost = lost
        self._timer: ITimer | None = None
        self._count = 0
        self._is_easing = False

    def start(self) -> None:
        """From the publishing on; beats at once."""
        self.stop()
        self._count = 0
        self._is_easing = False
        self._once()

    def ease(self) -> None:
        """The epoch is being given up: only a disk that hangs matters from now on."""
        self._is_easing = True

    def stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _once(self) -> None:
        self._timer = None
        stuck = self._spool.stuck_seconds()
        if stuck > self._stall_seconds:
            self._lost(f"the spool's disk has not answered for {stuck:.1f} s")
            return
        if not self._is_easing:
            try:
                self._spool.check()
            except MTAError as fault:
                self._lost(str(fault))
                return
            if self._count % BEATS == 0:
                self._spool.heartbeat()
            self._count += 1
        self._timer = self._clock.call_later(CHECK_SECONDS, self._once)
