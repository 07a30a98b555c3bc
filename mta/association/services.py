"""Service sockets: what carries no mail, its purposes, its endpoints, its counts.

Law: nothing here opens a socket; the door (endpoints.py) does, and hands what it opened over.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IReadDescriptor
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.association.transport import close_port
from mta.errors import StartRefused, TransientFailure
from mta.interfaces import IRevocable
from mta.telemetry import Counter, Gauge

PURPOSES = frozenset(
    {"authority", "resolver", "filter", "auth", "policy-fetch", "store", "admin", "probe"}
)
"""What the service door is for (house.md law 1)."""

LONGEST_UNIX_PATH = 107
"""Octets of a UNIX socket's path: sun_path holds 108 with its final NUL."""


def parse_endpoint(endpoint: str) -> tuple[str, str, int]:
    """`tcp:HOST:PORT` or `unix:PATH` as (kind, host or path, port). HOST is an IP address, in
    brackets for IPv6, or localhost. @raise StartRefused: it is neither, or the path is too long.
    """
    kind, _, rest = endpoint.partition(":")
    if kind == "unix" and rest:
        octets = len(os.fsencode(rest))
        if octets > LONGEST_UNIX_PATH:
            raise StartRefused(
                f"the path of the UNIX socket {rest} is too long",
                f"it has {octets} octets, the kernel takes {LONGEST_UNIX_PATH}",
                "choose a shorter directory",
                os.EX_CONFIG,
            )
        return "unix", rest, 0
    host, _, port = rest.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    try:
        return "tcp", str(ip_address(host)), int(port)
    except ValueError:
        raise StartRefused(
            f"{endpoint!r} is not an endpoint",
            "services are found without the resolver, which is one itself",
            "write tcp:192.0.2.1:80, tcp:[2001:db8::1]:80 or unix:/path",
            os.EX_CONFIG,
        ) from None


def counted_as(purpose: str, endpoint: str) -> str:
    """Services are few and counted by endpoint; hosts of policies are as many as others want."""
    return "tcp" if purpose == "policy-fetch" else endpoint


class ServiceCount:
    """How many sockets of one purpose and endpoint there were and are."""

    def __init__(self, counter: Counter, gauge: Gauge) -> None:
        self._counter = counter
        self._gauge = gauge
        self.total = 0
        self.open = 0

    def opened(self) -> None:
        self.total += 1
        self.open += 1
        self._counter.inc()
        self._gauge.inc()

    def closed(self) -> None:
        self.open -= 1
        self._gauge.inc(-1)


class ServiceOpening(ClientFactory):
    noisy = False

    def __init__(
        self, protocol: IProtocol, purpose: str, endpoint: str, count: ServiceCount
    ) -> None:
        self._protocol_given = protocol
        self._what = f"{purpose} service at {endpoint} is away"
        self._count = count
        self._waiting = True
        self.connector: Any = None
        self.done: Deferred[IProtocol] = Deferred(self._cancelled)

    def _cancelled(self, _done: Deferred[IProtocol]) -> None:
        self._waiting = False
        self.connector.disconnect()

    def buildProtocol(self, addr: object) -> Any:
        self._count.opened()
        self.connector.transport.reactor.callLater(0, self._connected)
        return self._protocol_given

    def _connected(self) -> None:
        if self._waiting:
            self._waiting = False
            self.done.callback(self._protocol_given)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        if self._waiting:
            self._waiting = False
            self.done.errback(TransientFailure(self._what, str(reason.value)))

    def clientConnectionLost(self, connector: object, reason: Failure) -> None:
        self._count.closed()


@implementer(IRevocable)
class ServicePort:
    """A listening or datagram port of Twisted's. Revoking closes a listening one at once."""

    def __init__(self, port: Any, closed: Callable[[], None]) -> None:
        self.port = port
        self._closed = closed
        self._is_open = True

    def getHost(self) -> Any:
        """Where it really listens (port 0 in tests of services)."""
        return self.port.getHost()

    def revoke(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._closed()
        if isinstance(self.port, tcp.Port):
            close_port(self.port)
        else:
            self.port.stopListening()


@implementer(IRevocable)
class Watching:
    def __init__(
        self, reactor: Any, descriptor: IReadDescriptor, closed: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._descriptor: IReadDescriptor | None = descriptor
        self._closed = closed

    def revoke(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._reactor.removeReader(descriptor)
            self._closed()
