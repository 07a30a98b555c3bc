"""Which connectors are down, and which domains are better left in the spool for now.

Law: routing hears of a connector only after repeated failures of its own bridgeheads (one dead
domain with MX delivery says nothing about the others), and hears that it may be chosen again as
soon as its pause is over: the next message is the probe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mta.interfaces import IRouting
from mta.telemetry import Telemetry
from mta.transfer.schedule import Lane
from mta.transfer.work import Job

_DOWN_AFTER = 2
"""Failures in a row after which routing hears that a connector is down."""


MOST_DOMAINS = 10_000
"""Remembered for a lane: 1 MB."""


class Standing:
    """What was learnt about connectors and domains in this tenure."""

    def __init__(self, routing: IRouting, telemetry: Telemetry, by_mx: Collection[str]) -> None:
        self._routing = routing
        self._telemetry = telemetry
        self._by_mx = frozenset(by_mx)
        self._down: dict[str, Lane[Job]] = {}
        self._domains: dict[str, set[bytes]] = {}

    @property
    def down(self) -> list[str]:
        return sorted(self._down)

    def failed(self, lane: Lane[Job], reply: str) -> None:
        name = lane.connector
        if name in self._by_mx or lane.failures < _DOWN_AFTER or name in self._down:
            return
        self._down[name] = lane
        self._routing.connector_down(name)
        self._telemetry.notice("warning", "transfer", f"connector {name!r} is down: {reply}")

    def reached(self, lane: Lane[Job]) -> None:
        if self._down.pop(lane.connector, None) is not None:
            self._routing.connector_up(lane.connector)
            self._telemetry.notice("info", "transfer", f"connector {lane.connector!r} is up again")

    def lift(self, now: float) -> None:
        """Connectors whose pause is over may be chosen again."""
        for name, lane in list(self._down.items()):
            if now >= lane.retry_at:
                del self._down[name]
                self._routing.connector_up(name)

    # domains

    def saw(self, lane: Lane[Job], domain: bytes) -> None:
        """A message for `domain` goes by this lane. Of very many the earlier are forgotten: mail
        for them is then taken while the lane rests, and put back.
        """
        seen = self._domains.get(lane.key)
        if seen is None:
            self._domains[lane.key] = {domain}
        elif domain not in seen:
            if len(seen) >= MOST_DOMAINS:
                seen.clear()
            seen.add(domain)

    def forget(self, lane: Lane[Job]) -> None:
        self._domains.pop(lane.key, None)

    def domains(self, lanes: Iterable[Lane[Job]]) -> set[bytes]:
        """All domains that were seen on these lanes."""
        found: set[bytes] = set()
        for lane in lanes:
            found |= self._domains.get(lane.key, set())
        return found
