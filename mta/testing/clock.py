"""Virtual time: an IClock that moves only when a test says so."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from zope.interface import implementer

from mta.interfaces import IClock, ITimer


@implementer(ITimer)
class _Timer:
    def __init__(self, call: object) -> None:
        self._call = call

    def cancel(self) -> None:
        if self._call.active():  # type: ignore[attr-defined]  # IDelayedCall of task.Clock
            self._call.cancel()  # type: ignore[attr-defined]


@implementer(IClock)
class VirtualClock:
    """`advance(seconds)` moves monotonic and wall time together; `jump_wall` moves only the wall's.

    `reactor` is the `task.Clock` below, for code of Twisted that wants an IReactorTime.
    """

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self.reactor = Clock()
        self._wall_offset = wall

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        return _Timer(self.reactor.callLater(max(0.0, seconds), call, *arguments))

    def monotonic(self) -> float:
        return self.reactor.seconds()

    def wall(self) -> float:
        return self.reactor.seconds() + self._wall_offset

    def advance(self, seconds: float) -> None:
        self.reactor.advance(seconds)

    def sleep(self, seconds: float) -> None:
        """The process is stopped for so long: what fell due meanwhile waits for `advance`."""
        self.reactor.rightNow += seconds

    def jump_wall(self, seconds: float) -> None:
        self._wall_offset += seconds
