"""Waiting for a time, or until woken.

Law: one waits on a nap at a time. Who is cancelled leaves no timer behind, and waking nobody is
harmless.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mta.interfaces import IClock


class Nap:
    def __init__(self, clock: IClock) -> None:
        self._clock = clock
        self._sleeping: Deferred[None] | None = None

    async def sleep(self, seconds: float) -> None:
        """For so long, or until `wake`."""
        sleeping: Deferred[None] = Deferred()
        timer = self._clock.call_later(seconds, self.wake)
        self._sleeping = sleeping
        try:
            await sleeping
        finally:
            timer.cancel()
            if self._sleeping is sleeping:
                self._sleeping = None

    def wake(self) -> None:
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None:
            sleeping.callback(None)
