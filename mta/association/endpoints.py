"""The two doors: every association and every service socket of this process passes one of them.

Law (house.md law 1 and 3): an association is opened or accepted under a Tenure, from one of its
addresses, and that is verified with getsockname() before an octet can be sent; a family that the
tenure lacks is a failure with a name, never the kernel's choice. What carries no mail passes the
service door, under a purpose that was granted and is counted.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Collection, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet import error, unix
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IReadDescriptor
from zope.interface import implementer

from mta.association import packets
from mta.association.opening import Accepting, Judge, Opening, cannot_listen, errno_of, reason_of
from mta.association.services import (
    PURPOSES,
    ServiceCount,
    ServiceOpening,
    ServicePort,
    Watching,
    counted_as,
    parse_endpoint,
)
from mta.association.transport import (
    AssociationConnector,
    AssociationPort,
    ServiceConnector,
    SocketMaker,
    SocketOptions,
)
from mta.errors import (
    MTAError,
    PluginError,
    StartRefused,
    TransientFailure,
)
from mta.interfaces import (
    IClock,
    IDescriptorDoor,
    IDoors,
    IPacketDoor,
    IRevocable,
    ISegments,
    ITenure,
)
from mta.model import PeerInfo, VirtualAddress
from mta.telemetry import Telemetry

SERVICE_CONNECT_SECONDS = 10.0
"""Services are near; who does not answer in 10 s is away."""


@implementer(IDoors, IDescriptorDoor, IPacketDoor)
class Doors:
    """Both doors of one process. `granted(name, purposes)` gives a plugin a view of them."""

    def __init__(
        self,
        reactor: Any,
        clock: IClock,
        telemetry: Telemetry,
        *,
        options: SocketOptions | None = None,
        make_socket: SocketMaker = socket.socket,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._telemetry = telemetry
        self._options = options or SocketOptions()
        self._make_socket = make_socket
        self._judge = Judge(reactor, telemetry)
        self._services: dict[tuple[str, str], ServiceCount] = {}

    # --- associations: outwards ---

    def connect(
        self, tenure: ITenure, host: str, port: int, protocol: IProtocol, timeout: float
    ) -> Deferred[IProtocol]:
        """See IDoors. `host` is an IP address; a name is refused, for names are the resolver's."""
        try:
            family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        except ValueError:
            return fail(
                TransientFailure(
                    f"{host!r} is not an IP address", "associations are opened to addresses only"
                )
            )
        try:
            tenure.admit()
            source = str(tenure.address_for(family).bind)
        except MTAError:
            return fail()
        opening = Opening(self._judge, tenure, protocol, f"{host}:{port}")
        connector = AssociationConnector(
            host,
            port,
            opening,
            timeout=timeout,
            bind_address=(source, 0),
            reactor=self._reactor,
            options=self._options,
            make_socket=self._make_socket,
            admit=opening.admit,
            established=opening.established,
        )
        opening.connector = connector
        connector.connect()
        return opening.begin()

    # --- associations: inwards ---

    def listen(
        self,
        tenure: ITenure,
        address: VirtualAddress,
        port: int,
        build: Callable[[PeerInfo], IProtocol | None],
        *,
        name: str,
        backlog: int = 1024,
    ) -> IRevocable:
        """See IDoors. Each accepted socket is verified and the epoch re-read before `build`."""
        tenure.check()
        accepting = Accepting(self._judge, tenure, address, port, build=build, name=name)
        listening = AssociationPort(
            port,
            backlog,
            str(address.bind),
            self._reactor,
            options=self._options,
            make_socket=self._make_socket,
            admit=accepting.admit,
            accepted=accepting.accepted,
            complain=lambda text: self._telemetry.notice("warning", "association", text),
        )
        try:
            listening.startListening()
        except error.CannotListenError as fault:
            raise cannot_listen(fault, address, port, name) from fault
        try:
            tenure.adopt(listening)
        except MTAError:
            listening.revoke()
            raise
        return listening

    def try_bind(self, address: VirtualAddress) -> None:
        """See IDoors. A plain bind, as a listener would do it: no freebind."""
        bind = address.bind
        family = socket.AF_INET6 if bind.version == 6 else socket.AF_INET
        probe = self._make_socket(family, socket.SOCK_STREAM)
        try:
            probe.bind((str(bind), 0))
        finally:
            probe.close()

    # --- services ---

    def service_connect(
        self, purpose: str, endpoint: str, protocol: IProtocol
    ) -> Deferred[IProtocol]:
        """See IDoors. @raise TransientFailure: it is away. @raise MTAError: a wrong endpoint."""
        count = self._service(purpose, endpoint)
        kind, host, port = parse_endpoint(endpoint)
        opening = ServiceOpening(protocol, purpose, endpoint, count)
        connector: Any
        if kind == "unix":
            connector = unix.Connector(host, opening, SERVICE_CONNECT_SECONDS, self._reactor, 0)
        else:
            connector = ServiceConnector(
                host, port, opening, SERVICE_CONNECT_SECONDS, None, self._reactor
            )
        opening.connector = connector
        connector.connect()
        return opening.done

    def service_listen(
        self, purpose: str, endpoint: str, factory: Any, mode: int = 0o600
    ) -> IRevocable:
        """See IDoors. @raise StartRefused: busy, too long a path, not permitted."""
        count = self._service(purpose, endpoint)
        kind, host, port = parse_endpoint(endpoint)
        try:
            if kind == "unix":
                self._clear_left_over(host)
                listening = self._reactor.listenUNIX(host, factory, backlog=128, mode=mode)
            else:
                listening = self._reactor.listenTCP(port, factory, backlog=128, interface=host)
        except error.CannotListenError as fault:
            if kind == "unix":
                raise StartRefused(
                    f"cannot listen on {endpoint}",
                    reason_of(fault),
                    "see that its directory exists and this user may write there",
                    os.EX_NOPERM if errno_of(fault) == errno.EACCES else os.EX_UNAVAILABLE,
                ) from fault
            at = ip_address(host)
            raise cannot_listen(fault, VirtualAddress(at, at), port, purpose) from fault
        count.opened()
        return ServicePort(listening, count.closed)

    def _clear_left_over(self, path: str) -> None:
        """Remove a socket file that nobody listens on; everything else stays and refuses."""
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise StartRefused(
                    f"cannot listen on {path}",
                    "there is something that is not a socket",
                    "choose another path",
                )
        except FileNotFoundError:
            return
        except OSError as fault:
            raise StartRefused(
                f"cannot listen on {path}", fault.strerror or "", "choose another path"
            ) from fault
        if _answers(path):
            raise StartRefused(
                f"cannot listen on {path}",
                "another process listens there",
                "is this MTA running already? choose another path, or stop it",
            )
        os.unlink(path)

    def service_datagram(self, purpose: str, protocol: Any, *, ipv6: bool = False) -> IRevocable:
        """See IDoors. The kernel chooses a random port, and the address: no mail goes here."""
        count = self._service(purpose, "udp6" if ipv6 else "udp")
        try:
            port = self._reactor.listenUDP(0, protocol, interface="::" if ipv6 else "")
        except error.CannotListenError as fault:
            raise TransientFailure(
                f"no {'IPv6' if ipv6 else 'IPv4'} datagram socket for {purpose}", reason_of(fault)
            ) from fault
        count.opened()
        return ServicePort(port, count.closed)

    def watch_descriptor(self, purpose: str, descriptor: IReadDescriptor) -> IRevocable:
        """See IDescriptorDoor."""
        count = self._service(purpose, descriptor.logPrefix())
        self._reactor.addReader(descriptor)
        count.opened()
        return Watching(self._reactor, descriptor, count.closed)

    def send_frames(
        self, purpose: str, ifindex: int, build: Callable[[bytes], Sequence[bytes]]
    ) -> str:
        """See IPacketDoor."""
        count = self._service(purpose, "packet")
        count.opened()
        try:
            packets.send_frames(self._make_socket, ifindex, build)
        except OSError as fault:
            return packets.why_not(fault)
        finally:
            count.closed()
        return ""

    def open_segments(self, purpose: str) -> ISegments:
        """See IPacketDoor."""
        count = self._service(purpose, "packet")
        count.opened()
        return packets.Segments(self._make_socket, count.closed)

    def _service(self, purpose: str, endpoint: str) -> ServiceCount:
        if purpose not in PURPOSES:
            raise PluginError(
                f"there is no service purpose {purpose!r}",
                f"there are {', '.join(sorted(PURPOSES))}",
            )
        endpoint = counted_as(purpose, endpoint)
        count = self._services.get((purpose, endpoint))
        if count is None:
            count = self._services[purpose, endpoint] = ServiceCount(
                self._telemetry.counter(
                    "mta_service_sockets_total", "Sockets that carry no mail.", purpose=purpose
                ),
                self._telemetry.gauge(
                    "mta_service_sockets", "Open sockets that carry no mail.", purpose=purpose
                ),
            )
        return count

    # --- grants, status ---

    def granted(self, name: str, purposes: Collection[str]) -> IDoors:
        """These doors for the plugin `name`, with these service purposes and no others."""
        for purpose in purposes:
            if purpose not in PURPOSES:
                raise PluginError(
                    f"plugin {name} asks for the service purpose {purpose!r}",
                    f"there are {', '.join(sorted(PURPOSES))}",
                )
        return _GrantedDoors(self, name, frozenset(purposes))

    def snapshot(self) -> dict[str, Any]:
        """For `mta status`: associations by kind, service sockets by purpose and endpoint."""
        return {
            "associations": self._judge.open_associations(),
            "services": [
                {"purpose": purpose, "endpoint": endpoint, "open": c.open, "opened": c.total}
                for (purpose, endpoint), c in sorted(self._services.items())
            ],
            "wrong_source": self._judge.wrong_sources(),
        }


def _answers(path: str) -> bool:
    """True when somebody accepts on the UNIX socket `path`; False when it is left over."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True  # a full backlog, or not ours to ask: somebody is there
    finally:
        probe.close()
    return True


@implementer(IDoors, IDescriptorDoor, IPacketDoor)
class _GrantedDoors:
    """The doors as one plugin sees them."""

    def __init__(self, doors: Doors, name: str, purposes: frozenset[str]) -> None:
        self._doors = doors
        self._name = name
        self._purposes = purposes
        self.connect = doors.connect
        self.listen = doors.listen
        self.try_bind = doors.try_bind

    def service_connect(
        self, purpose: str, endpoint: str, protocol: IProtocol
    ) -> Deferred[IProtocol]:
        self._may(purpose)
        return self._doors.service_connect(purpose, endpoint, protocol)

    def service_listen(
        self, purpose: str, endpoint: str, factory: Any, mode: int = 0o600
    ) -> IRevocable:
        self._may(purpose)
        return self._doors.service_listen(purpose, endpoint, factory, mode)

    def service_datagram(self, purpose: str, protocol: Any, *, ipv6: bool = False) -> IRevocable:
        self._may(purpose)
        return self._doors.service_datagram(purpose, protocol, ipv6=ipv6)

    def watch_descriptor(self, purpose: str, descriptor: IReadDescriptor) -> IRevocable:
        self._may(purpose)
        return self._doors.watch_descriptor(purpose, descriptor)

    def send_frames(
        self, purpose: str, ifindex: int, build: Callable[[bytes], Sequence[bytes]]
    ) -> str:
        self._may(purpose)
        return self._doors.send_frames(purpose, ifindex, build)

    def open_segments(self, purpose: str) -> ISegments:
        self._may(purpose)
        return self._doors.open_segments(purpose)

    def _may(self, purpose: str) -> None:
        if purpose not in self._purposes:
            raise PluginError(
                f"plugin {self._name} asked for a {purpose} socket",
                f"it was granted {', '.join(sorted(self._purposes)) or 'none'}",
                "its factory must name the purpose in `purposes`",
            )
