"""An association from connect() or accept() until its protocol has a transport.

Law: what is under way is adopted by the tenure before anything is sent, and judged (epoch, own
address) before a protocol exists. What goes wrong gets a name that says what to do.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from mta.association.holders import blame
from mta.association.transport import AssociationClient, AssociationConnector, AssociationServer
from mta.errors import (
    AddressAway,
    MTAError,
    StartRefused,
    TenureRevoked,
    TransientFailure,
    WrongSourceAddress,
)
from mta.interfaces import ITenure
from mta.model import PeerInfo, VirtualAddress
from mta.telemetry import Gauge, Telemetry

UNREACHABLE = {
    errno.ECONNREFUSED: "connection refused",
    errno.ETIMEDOUT: "connection timed out",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTUNREACH: "no route to host",
    errno.EADDRNOTAVAIL: "our virtual address is not here, or all its ports are in use",
}


def errno_of(fault: error.CannotListenError) -> int:
    return getattr(fault.socketError, "errno", None) or 0


def reason_of(fault: error.CannotListenError) -> str:
    return getattr(fault.socketError, "strerror", None) or str(fault.socketError)


def cannot_listen(
    fault: error.CannotListenError, address: VirtualAddress, port: int, name: str
) -> AddressAway | StartRefused:
    """The refusal that says what an operator can do about it."""
    at = f"[{address.bind}]:{port}" if address.bind.version == 6 else f"{address.bind}:{port}"
    what = f"{name} cannot listen on {at}"
    number = errno_of(fault)
    if number == errno.EADDRINUSE:
        return StartRefused(
            what,
            f"the port is taken by {blame(address.bind, port)}",
            "stop that, or give another `port:` (with `make run`: make run PORT=2626)",
        )
    if number in {errno.EACCES, errno.EPERM}:
        return StartRefused(
            what,
            f"ports under 1024 need the capability CAP_NET_BIND_SERVICE, and uid {os.geteuid()} "
            "has it not",
            "use the systemd unit (AmbientCapabilities=CAP_NET_BIND_SERVICE); "
            "or `sysctl net.ipv4.ip_unprivileged_port_start=25`; or a port from 1024 up",
            os.EX_NOPERM,
        )
    if number == errno.EADDRNOTAVAIL:
        return AddressAway(
            what,
            f"{address.bind} is not on an interface of this node",
            "see virtual-server.addresses and `ip address`",
        )
    return StartRefused(what, reason_of(fault))


class Judge:
    """Verifies sockets, counts associations, numbers them: one for both directions of the door."""

    def __init__(self, reactor: Any, telemetry: Telemetry) -> None:
        self.reactor = reactor
        self._telemetry = telemetry
        self._numbers: dict[str, int] = {}
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._wrong_source = {
            direction: telemetry.counter(
                "mta_association_wrong_source_total",
                "Sockets aborted because they did not bear an address of the virtual server.",
                direction=direction,
            )
            for direction in ("in", "out")
        }

    def verify(self, tenure: ITenure, sock: socket.socket, family: int, direction: str) -> str:
        """The socket's own address, which is one of the tenure's. @raise WrongSourceAddress."""
        bound = sock.getsockname()[0]
        for address in tenure.addresses:
            text = str(address.bind)
            if text == bound and (address.bind.version == 6) == (family == socket.AF_INET6):
                return text
        self._wrong_source[direction].inc()
        ours = ", ".join(str(address.bind) for address in tenure.addresses)
        wrong = WrongSourceAddress(
            f"an association would have borne {bound}",
            f"{tenure.network_name} has {ours}",
            "look for policy routing, NAT or a translating proxy on this node; it was aborted",
        )
        self._telemetry.notice("error", "association", str(wrong))
        raise wrong

    def associations(self, kind: str, direction: str) -> Gauge:
        """The gauge of open associations; asked for once a listener, once an opening."""
        found = self._gauges.get((kind, direction))
        if found is None:
            found = self._gauges[kind, direction] = self._telemetry.gauge(
                "mta_associations", "Open associations.", kind=kind, direction=direction
            )
        return found

    def next_association(self, name: str) -> str:
        """`smtp/in/17`: unique in this process."""
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        return f"{name}/in/{number}"

    def open_associations(self) -> dict[str, int]:
        return {f"{k}/{d}": int(gauge.value) for (k, d), gauge in sorted(self._gauges.items())}

    def wrong_sources(self) -> dict[str, int]:
        return {direction: int(c.value) for direction, c in self._wrong_source.items()}


# --- an association that is being opened --------------------------------------------------------


class Opening(ClientFactory):
    """From connect() to the Deferred that fires; Twisted's factory, connector's judge."""

    noisy = False

    def __init__(self, judge: Judge, tenure: ITenure, protocol: IProtocol, far: str) -> None:
        self._judge = judge
        self._tenure = tenure
        self._protocol_given = protocol
        self._far = far
        self._transport: AssociationClient | None = None
        self._gauge: Gauge | None = None
        self.connector: AssociationConnector | None = None
        self._done: Deferred[IProtocol] | None = Deferred(self._cancelled)

    def begin(self) -> Deferred[IProtocol]:
        """Adopt what is under way, so that revoking reaches a SYN too."""
        assert self._done is not None
        done = self._done
        made = self.connector.transport if self.connector is not None else None
        if made is None:
            return done  # failed already
        transport = cast(AssociationClient, made)
        self._transport = transport
        transport.on_closed = self._closed
        try:
            self._tenure.adopt(transport)
        except MTAError:
            transport.close_now()
        return done

    def _cancelled(self, _done: Deferred[IProtocol]) -> None:
        self._done = None
        if self._transport is not None:
            self._transport.close_now()

    def admit(self, client: AssociationClient) -> None:
        """Connected; nothing sent. @raise WrongSourceAddress, Fenced, TenureRevoked."""
        self._tenure.admit()
        self._judge.verify(self._tenure, client.socket, client.addressFamily, "out")

    def buildProtocol(self, addr: object) -> Any:
        kind = getattr(self._protocol_given, "association_kind", "smtp")
        self._gauge = self._judge.associations(kind, "out")
        self._gauge.inc()
        return self._protocol_given

    def established(self) -> None:
        """The protocol has its transport: whoever awaits may go on."""
        done, self._done = self._done, None
        if done is not None:
            done.callback(self._protocol_given)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        done = self._done
        if done is None:
            return
        self._done = None
        fault = self._named(reason)
        if reason.check(error.ConnectionAborted):
            # Revoked: whoever revokes closes descriptors, and nobody else runs meanwhile.
            self._judge.reactor.callLater(0, _fail, done, fault)
        else:
            done.errback(fault)

    def _named(self, reason: Failure) -> Exception:
        value = reason.value
        if isinstance(value, MTAError):
            return value
        if not self._tenure.is_live:
            return TenureRevoked(f"the tenure of epoch {self._tenure.epoch} has ended")
        what = f"connect to {self._far} failed"
        number = getattr(value, "osError", None)
        why = (
            "connection timed out"
            if isinstance(value, error.TimeoutError)
            else UNREACHABLE.get(number or 0) or str(value)
        )
        return TransientFailure(what, why, enhanced="4.4.1")

    def _closed(self, transport: Any) -> None:
        self._tenure.disown(transport)
        self._transport = self.connector = None  # a circle would be found late
        gauge, self._gauge = self._gauge, None
        if gauge is not None:
            gauge.inc(-1)


def _fail(done: Deferred[IProtocol], fault: Exception) -> None:
    """Unless whoever waited has given up since the turn in which it failed."""
    if not done.called:
        done.errback(fault)


# --- a listening port ---------------------------------------------------------------------------


class Accepting:
    """Judges what one AssociationPort accepts."""

    def __init__(
        self,
        judge: Judge,
        tenure: ITenure,
        address: VirtualAddress,
        port: int,
        *,
        build: Callable[[PeerInfo], IProtocol | None],
        name: str,
    ) -> None:
        self._judge = judge
        self._tenure = tenure
        self._family = socket.AF_INET6 if address.bind.version == 6 else socket.AF_INET
        self._port = port
        self._build = build
        self._name = name
        self._gauge = judge.associations(name, "in")

    def admit(self, sock: socket.socket, peer: tuple[Any, ...]) -> IProtocol | None:
        try:
            self._tenure.admit()
            local = self._judge.verify(self._tenure, sock, self._family, "in")
        except MTAError:
            return None  # verify has counted and named it; a fenced tenure is ended by its owner
        return self._build(
            PeerInfo(
                association=self._judge.next_association(self._name),
                host=peer[0],
                port=peer[1],
                local_host=local,
                local_port=self._port,
                listener=self._name,
            )
        )

    def accepted(self, server: AssociationServer, protocol: IProtocol) -> None:
        self._tenure.adopt(server)
        self._gauge.inc()
        server.on_closed = self._closed

    def _closed(self, server: Any) -> None:
        self._tenure.disown(server)
        self._gauge.inc(-1)
