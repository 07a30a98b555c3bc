"""Many senders' output at the end of one turn of the reactor.

Law: one timer for all of them, and none while nobody waits.
"""

from __future__ import annotations

from typing import Protocol

from mta.interfaces import IClock


class Flushed(Protocol):
    """Who has said something that may wait for what else is said in this turn."""

    def flush(self) -> None: ...


class Flusher:
    """Lets many senders write at the end of a reactor turn, by one timer for all of them."""

    def __init__(self, clock: IClock) -> None:
        self._clock = clock
        self._waiting: list[Flushed] = []

    def soon(self, sender: Flushed) -> None:
        self._waiting.append(sender)
        if len(self._waiting) == 1:
            self._clock.call_later(0, self._flush)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sender in waiting:
            sender.flush()
