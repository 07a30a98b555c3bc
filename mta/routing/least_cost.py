"""Least-cost routing: an address goes to the connector whose address space fits it best.

Law: pure and deterministic. The most specific pattern wins, then the lowest cost, then connectors
that are up before those that are down, then the order of names; the same on every node that was
told the same. The hot path is one dictionary hit; what was found is forgotten when a connector
goes up or down. Less specific patterns never stand in for a more specific one: mail meant for a
hub does not leak to the internet because the hub is down.
"""

from __future__ import annotations

from zope.interface import implementer

from mta.interfaces import IRouting, IRoutingBuilder, ISurroundings
from mta.model import Address, AddressKind, Candidate, Connector, Envelope, Route, Unroutable
from mta.routing.spaces import Match, SpaceTable
from mta.settings import Settings

_REMEMBERED = 20_000
"""Domains remembered before the cache starts anew: about 20 MB at the most."""


class LeastCostSettings(Settings):
    """The `routing:` block of `policy: least-cost`: it needs no further keys."""


@implementer(IRoutingBuilder)
class LeastCost:
    """What the plugin `least-cost` creates."""

    def __init__(self, settings: LeastCostSettings, surroundings: ISurroundings | None) -> None:
        self._settings = settings

    def build(self, connectors: tuple[Connector, ...]) -> LeastCostRouting:
        return LeastCostRouting(connectors)


def _shown(pattern: bytes) -> str:
    return pattern.decode("utf-8", "backslashreplace")


@implementer(IRouting)
class LeastCostRouting:
    """The connectors' address spaces, and which connectors are down."""

    def __init__(self, connectors: tuple[Connector, ...]) -> None:
        self._connectors = tuple(sorted(connectors, key=lambda c: c.name))
        self._tables = {kind: SpaceTable(self._connectors, kind) for kind in AddressKind}
        self._users = self._tables[AddressKind.SMTP].domains_with_users
        self._down: set[str] = set()
        self._cache: dict[object, Route | Unroutable] = {}
        self._takes_anyone: dict[bytes, bool] = {}
        """Of domains for which the local part does not matter; no connector's state changes it."""

    def route(self, recipient: Address, envelope: Envelope | None) -> Route | Unroutable:
        """The best connector with all that was looked at, or why there is none."""
        if recipient.kind is AddressKind.SMTP:
            key: object = recipient.domain
            if key in self._users:
                key = recipient.text.lower()
        else:
            key = (recipient.kind, recipient.text)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _REMEMBERED:
                self._cache.clear()
            found = self._cache[key] = self._decide(recipient)
        return found

    def explain(self, recipient: Address) -> Route | Unroutable:
        """What `route` answers; its candidates and its `why` are the explanation."""
        return self.route(recipient, None)

    def accepts_anyone(self, recipient: Address) -> bool:
        """Among the most specific address spaces for it, the one of the chosen connector says so.

        Whether a connector is down does not matter: who may relay must not depend on the weather.
        """
        if recipient.kind is not AddressKind.SMTP or recipient.domain in self._users:
            return self._accepts(recipient)
        known = self._takes_anyone
        found = known.get(recipient.domain)
        if found is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            found = known[recipient.domain] = self._accepts(recipient)
        return found

    def _accepts(self, recipient: Address) -> bool:
        matches = self._tables[recipient.kind].matches(recipient)
        if not matches:
            return False
        best = min(
            (m for m in matches if m.rank == 0), key=lambda m: (m.space.cost, m.connector.name)
        )
        return best.space.accept_anyone

    def connector_up(self, name: str) -> None:
        if name in self._down:
            self._down.discard(name)
            self._cache.clear()

    def connector_down(self, name: str) -> None:
        if name not in self._down:
            self._down.add(name)
            self._cache.clear()

    def _order(self, match: Match) -> tuple[int, int, bool, str]:
        connector = match.connector
        return (match.rank, match.space.cost, connector.name in self._down, connector.name)

    def _decide(self, recipient: Address) -> Route | Unroutable:
        best_of: dict[str, Match] = {}
        for match in sorted(self._tables[recipient.kind].matches(recipient), key=self._order):
            best_of.setdefault(match.connector.name, match)
        ordered = list(best_of.values())
        strangers = tuple(
            Candidate(c.name, b"", 0, c.name not in self._down, "no address space of it matches")
            for c in self._connectors
            if c.name not in best_of
        )
        if not ordered:
            return Unroutable(
                why="no connector has an address space that matches", candidates=strangers
            )
        winner = ordered[0]
        candidates = tuple(
            Candidate(
                m.connector.name,
                m.space.pattern,
                m.space.cost,
                m.connector.name not in self._down,
                self._verdict(m, winner, len(ordered)),
            )
            for m in ordered
        )
        rivals = [m for m in ordered[1:] if m.rank == 0]
        return self._path(
            winner,
            recipient,
            why=candidates[0].verdict,
            candidates=candidates + strangers,
            alternatives=tuple(
                self._path(m, recipient, why=f"stands in for {winner.connector.name!r}")
                for m in rivals
            ),
        )

    def _verdict(self, match: Match, winner: Match, number: int) -> str:
        pattern, cost = _shown(match.space.pattern), match.space.cost
        name = winner.connector.name
        if match is winner:
            why = f"chosen: {pattern} is the most specific match"
            why += f" at cost {cost}" if number > 1 else f", the only one, at cost {cost}"
            return why + ("; it is down" if name in self._down else "")
        if match.rank != winner.rank:
            return f"{pattern} is less specific than {_shown(winner.space.pattern)} of {name!r}"
        if cost != winner.space.cost:
            return f"cost {cost} is higher than {winner.space.cost} of {name!r}; stands in for it"
        if match.connector.name in self._down and name not in self._down:
            return f"down, and {name!r} is up at the same cost"
        return f"same cost as {name!r}, which comes first by name; stands in for it"

    def _path(
        self,
        match: Match,
        recipient: Address,
        why: str,
        candidates: tuple[Candidate, ...] = (),
        alternatives: tuple[Route, ...] = (),
    ) -> Route:
        connector = match.connector
        destination, mx_domain = connector.name, b""
        if connector.by_mx:
            mx_domain = recipient.domain
            destination = f"{connector.name}/{mx_domain.decode('utf-8', 'backslashreplace')}"
        return Route(
            connector=connector.name,
            destination=destination,
            bridgeheads=tuple(
                sorted(connector.bridgeheads, key=lambda b: (b.preference, b.host, b.port))
            ),
            cost=match.space.cost,
            why=why,
            mx_domain=mx_domain,
            candidates=candidates,
            alternatives=alternatives,
        )
