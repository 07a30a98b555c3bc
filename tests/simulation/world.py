"""The simulated world's time, chance and trace: everything that happens is one event of one list.

Law: nothing happens but by an event, and nothing is drawn but from the seed, so that a seed is a
history. An event that belongs to a process waits while that process is stopped, and is dropped when
it is dead. A disk call can be held in the midst of an event: the world goes on below it, on the
stack, until the call may return.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, Protocol

WALL = 1_800_000_000.0
"""Wall time at the world's beginning."""
DEEPEST = 4
"""Held disk calls on one stack."""
MOST_STEPS = 200_000
"""Of one world: it goes round in circles."""


class Killed(BaseException):
    """Unwinds the stack of a process that was killed in a disk call; nobody catches it."""


class Violation(AssertionError):
    """An invariant does not hold. `name` is I1 to I7, or what else must never happen."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name
        self.what = what


class Owner(Protocol):
    """Whom an event belongs to."""

    name: str
    is_dead: bool

    @property
    def is_held(self) -> bool: ...

    def keep(self, event: Event) -> None:
        """It has to wait."""


class Event:
    """One thing that is going to happen."""

    __slots__ = ("arguments", "at", "call", "is_over", "number", "owner")

    def __init__(
        self, at: float, number: int, owner: Owner | None, call: Any, arguments: tuple[Any, ...]
    ) -> None:
        self.at = at
        self.number = number
        self.owner = owner
        self.call = call
        self.arguments = arguments
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class World:
    """Time in seconds from 1000 on; `chance` is the only source of anything random."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.trace: list[str] = []
        self.steps = 0
        self.depth = 0
        self.after_step: Callable[[], None] = lambda: None
        self.violation: Violation | None = None
        self._events: list[tuple[float, int, Event]] = []
        self._number = 0

    # --- what happens ---

    def later(
        self, seconds: float, call: Callable[..., Any], *arguments: Any, owner: Owner | None = None
    ) -> Event:
        self._number += 1
        event = Event(self.now + max(0.0, seconds), self._number, owner, call, arguments)
        heapq.heappush(self._events, (event.at, event.number, event))
        return event

    def again(self, event: Event, seconds: float) -> None:
        """A kept event, now that its owner goes on."""
        self._number += 1
        event.at, event.number = self.now + seconds, self._number
        heapq.heappush(self._events, (event.at, event.number, event))

    def soon(self, call: Callable[..., Any], *arguments: Any, owner: Owner | None = None) -> Event:
        """Within a couple of milliseconds: in which order, the seed says."""
        return self.later(self.chance.random() * 0.002, call, *arguments, owner=owner)

    def run(self, until: float, ends: Callable[[], bool] = lambda: False) -> None:
        """@raise Violation: also when it was found deep on the stack, by product code's leave."""
        events = self._events
        while events and events[0][0] <= until and not ends():
            event = heapq.heappop(events)[2]
            if event.is_over:
                continue
            self.now = max(self.now, event.at)
            owner = event.owner
            if owner is not None:
                if owner.is_dead:
                    continue
                if owner.is_held:
                    owner.keep(event)
                    continue
            event.is_over = True
            self.steps += 1
            if self.steps > MOST_STEPS:
                self.found(Violation("defect", f"no end after {self.steps} steps"))
            self._call(event, owner)
            if self.violation is None:
                try:
                    self.after_step()
                except Violation as found:
                    self.violation = found
            if self.violation is not None:
                raise self.violation
        if not ends():
            self.now = max(self.now, until)

    def _call(self, event: Event, owner: Owner | None) -> None:
        try:
            event.call(*event.arguments)
        except Killed:
            if owner is None or not owner.is_dead:
                raise
        except Violation as found:
            self.found(found)
        except Exception as fault:
            if owner is None:
                raise
            if not owner.is_dead:
                # A reactor would log it and go on; nothing of ours may raise into it.
                self.found(Violation("defect", f"{owner.name}: {event.call!r} raised {fault!r}"))

    def found(self, violation: Violation) -> None:
        """Kept, because product code between here and `run` may catch what is raised."""
        if self.violation is None:
            self.violation = violation

    def hold(self, until: float, ends: Callable[[], bool]) -> None:
        """The world goes on below a disk call that does not return yet."""
        self.depth += 1
        try:
            self.run(until, ends)
        finally:
            self.depth -= 1

    # --- what is told ---

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:11.6f} {text}")
