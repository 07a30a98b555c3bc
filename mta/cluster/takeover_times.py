"""How long the last takeover took, phase by phase: for status, metrics and campaigns.

Law: it hears and never acts. Only a takeover counts, from the authority's grant to a listening
tenure under a new epoch; a resume under the same epoch, or a bid that failed, leaves the figures of
the last takeover as they were. Times are CLOCK_BOOTTIME's; the moment is wall clock, for people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mta.cluster.ownership import State
from mta.interfaces import IClock
from mta.telemetry import Telemetry

PHASES = {
    State.CLAIMED: "granted",
    State.FENCED_OTHERS: "fenced",
    State.PUBLISHED: "published",
    State.RECOVERED: "recovered",
    State.SEALED: "sealed",
    State.ONLINE: "online",
}
"""A phase bears the name of what it ends with: "granted" goes from the authority's grant to the
right to claim with it, "published" from the fence to the durable epoch, and so on.
"""


@dataclass(frozen=True, slots=True)
class Takeover:
    """One that succeeded."""

    epoch: int
    ended_at: float
    seconds: float
    phases: dict[str, float]


class TakeoverTimes:
    """`hear(state)` at each change of state. `last` is None before the first takeover."""

    def __init__(
        self,
        clock: IClock,
        telemetry: Telemetry,
        *,
        granted_at: Callable[[], float],
        epoch: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._granted_at = granted_at
        self._epoch = epoch
        self._phases: dict[str, float] | None = None
        """Of the bid under way; None when what goes on is no takeover."""
        self._until = 0.0
        self.last: Takeover | None = None
        self._total = telemetry.histogram(
            "mta_takeover_seconds", "From the authority's grant to a listening tenure."
        )
        for phase in PHASES.values():
            gauge = telemetry.gauge(
                "mta_takeover_phase_seconds", "Of this process's last takeover.", phase=phase
            )
            gauge.read = lambda phase=phase: self._of_last(phase)

    def _of_last(self, phase: str) -> float:
        return 0.0 if self.last is None else self.last.phases[phase]

    def hear(self, state: State) -> None:
        phase = PHASES.get(state)
        if phase is None:
            self._phases = None
            return
        if state is State.CLAIMED:
            self._phases, self._until = {}, self._granted_at()
        if self._phases is None:
            return  # SEALED and ONLINE after a suspension
        now = self._clock.monotonic()
        self._phases[phase] = now - self._until
        self._until = now
        if state is State.ONLINE:
            phases, self._phases = self._phases, None
            seconds = sum(phases.values())
            self.last = Takeover(self._epoch(), self._clock.wall(), seconds, phases)
            self._total.observe(seconds)

    def snapshot(self) -> dict[str, Any] | None:
        """For `mta status`."""
        if self.last is None:
            return None
        return {
            "epoch": self.last.epoch,
            "ended_at": self.last.ended_at,
            "seconds": round(self.last.seconds, 4),
            "phases": {name: round(value, 4) for name, value in self.last.phases.items()},
        }
