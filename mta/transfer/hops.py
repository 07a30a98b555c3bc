"""Which servers a route leads to, in the order of trying.

Law: never ourselves (a virtual address and a port on which we accept): with MX delivery every host
that is not preferred to us is left out, and when none is left the message loops (5.4.6). A server
that did not answer a moment ago is tried after those that did; it is never left out.

RFC 5321 5.1 (MX order, relay that is an MX itself), 4.1.3 (address literals).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import groupby

from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IAssociationKind, IResolver, ISecureResolver
from mta.model import Bridgehead, Connector, IPAddress, MailHost, NextHop, Route, value

_FIRST_REST = 30.0
_LONGEST_REST = 600.0
_REMEMBERED = 10_000
"""Servers remembered as failing before the oldest are forgotten."""


@value
class Hop:
    """One server to try, and the association kind that speaks to it."""

    kind: IAssociationKind
    hop: NextHop

    @property
    def peer(self) -> str:
        """What INTENT and the in-doubt list call it."""
        return f"{self.hop.host}:{self.hop.port}"


class HopHealth:
    """Which servers failed lately. Pure: time comes in as monotonic seconds."""

    def __init__(self) -> None:
        self._resting: dict[str, tuple[int, float]] = {}

    def failed(self, peer: str, now: float) -> None:
        failures = self._resting.pop(peer, (0, 0.0))[0] + 1
        pause = min(_FIRST_REST * 2.0 ** min(failures - 1, 10), _LONGEST_REST)
        while len(self._resting) >= _REMEMBERED:
            self._resting.pop(next(iter(self._resting)))
        self._resting[peer] = (failures, now + pause)

    def answered(self, peer: str) -> None:
        if self._resting:
            self._resting.pop(peer, None)

    def order(self, hops: Iterable[Hop], now: float, prefer: str = "") -> list[Hop]:
        """The same hops: `prefer` first, those that rest last, otherwise as they came."""

        def rank(hop: Hop) -> int:
            if prefer and hop.peer == prefer:
                return 0
            return 2 if self._resting.get(hop.peer, (0, 0.0))[1] > now else 1

        return sorted(hops, key=rank)


class HopFinder:
    """Turns routes into servers by asking the resolver."""

    def __init__(
        self,
        connectors: Mapping[str, tuple[Connector, IAssociationKind]],
        resolver: IResolver,
        is_ourselves: Callable[[IPAddress, int], bool],
    ) -> None:
        self._connectors = connectors
        self._resolver = resolver
        self._is_ourselves = is_ourselves
        self._turn = 0

    async def find(self, route: Route) -> list[Hop]:
        """The servers of this route alone, without its alternatives.

        @raise PermanentFailure: no such domain, null MX, or all that is left is ourselves.
        @raise TransientFailure: the resolver has no answer.
        """
        connector, kind = self._connectors[route.connector]
        if route.mx_domain:
            return await self._by_mx(route, connector, kind)
        if not route.bridgeheads:
            hop = NextHop(connector.name, route.destination, connector.name, 0)
            return [Hop(kind, hop)]
        found: list[Hop] = []
        failure: TransientFailure | PermanentFailure | None = None
        us = False
        for bridgehead in self._rotated(route):
            try:
                host = await self._host(bridgehead.host)
            except (TransientFailure, PermanentFailure) as problem:
                failure = problem
                continue
            name = _name(bridgehead)
            for address in host.addresses:
                if self._is_ourselves(address, bridgehead.port):
                    us = True
                    continue
                found.append(
                    Hop(
                        kind,
                        NextHop(
                            connector.name,
                            route.destination,
                            str(address),
                            bridgehead.port,
                            name,
                            host.proven,
                            name,
                        ),
                    )
                )
        if found:
            return found
        if us:
            # A slip in our own configuration must not return everybody's mail: transient.
            raise TransientFailure(
                f"connector {connector.name!r} leads back to ourselves",
                "its bridgeheads are addresses and ports on which we accept mail",
                "correct the connector's bridgeheads",
                enhanced="4.4.6",
            )
        if isinstance(failure, PermanentFailure):
            failure = TransientFailure(
                failure.what,
                failure.why,
                f"correct the bridgeheads of connector {connector.name!r}",
                enhanced="4.4.4",
            )
        assert failure is not None  # no bridgehead, no address and no failure cannot be
        raise failure

    def _rotated(self, route: Route) -> list[Bridgehead]:
        """By preference; among equals each association begins with another one."""
        self._turn += 1
        ordered: list[Bridgehead] = []
        for _, equals in groupby(route.bridgeheads, key=lambda b: b.preference):
            same = list(equals)
            start = self._turn % len(same)
            ordered += same[start:] + same[:start]
        return ordered

    async def _host(self, host: str) -> MailHost:
        literal = _literal(host)
        if literal is not None:
            return MailHost(host, 0, (literal,))
        secure = ISecureResolver(self._resolver, None)
        if secure is not None:
            return await secure.mail_host(host)
        return MailHost(host, 0, await self._resolver.addresses(host))

    async def _by_mx(self, route: Route, connector: Connector, kind: IAssociationKind) -> list[Hop]:
        domain = route.mx_domain
        if domain.startswith(b"["):
            hosts: tuple[MailHost, ...] = (_literal_host(domain),)
        else:
            hosts = await self._resolver.mail_hosts(domain)
        port = connector.port
        shown = domain.decode("utf-8", "backslashreplace")
        ours = min(
            (
                host.preference
                for host in hosts
                if any(self._is_ourselves(address, port) for address in host.addresses)
            ),
            default=None,
        )
        found = [
            Hop(
                kind,
                NextHop(
                    connector.name,
                    route.destination,
                    str(address),
                    port,
                    host.name,
                    host.proven,
                    shown,
                ),
            )
            for host in hosts
            if ours is None or host.preference < ours
            for address in host.addresses
        ]
        if found:
            return found
        if ours is not None:
            raise PermanentFailure(
                f"mail for {shown} loops back to myself",
                "no mail exchanger is preferred to this one",
                code=554,
                enhanced="5.4.6",
            )
        raise TransientFailure(f"no mail exchanger of {shown} has an address", enhanced="4.4.4")


def domains(route: Route) -> tuple[str, ...]:
    """What `NextHop.domain` is for the servers that `route` leads to, each once."""
    if route.mx_domain:
        return (route.mx_domain.decode("utf-8", "backslashreplace"),)
    return tuple(dict.fromkeys(_name(bridgehead) for bridgehead in route.bridgeheads))


def _name(bridgehead: Bridgehead) -> str:
    return "" if _literal(bridgehead.host) else bridgehead.host


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _literal_host(domain: bytes) -> MailHost:
    """[192.0.2.1] or [IPv6:2001:db8::1]. @raise PermanentFailure: neither."""
    text = domain.decode("ascii", "replace").strip("[]")
    try:
        is_six = text[:5].lower() == "ipv6:"
        address: IPAddress = IPv6Address(text[5:]) if is_six else IPv4Address(text)
    except ValueError:
        raise PermanentFailure(
            f"{text} is not an address literal", code=550, enhanced="5.1.2"
        ) from None
    return MailHost(text, 0, (address,))
