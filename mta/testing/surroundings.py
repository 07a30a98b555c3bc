"""What a test hands to a room instead of a process: memory doors, virtual time, no kernel.

Law: nothing here opens a socket, a thread or a file, and nothing moves by itself: `advance(0)` lets
the memory network deliver, `advance(seconds)` lets time pass too.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocol, IReadDescriptor
from zope.interface import implementer

from mta.association.services import parse_endpoint
from mta.errors import Fenced, MTAError, StartRefused, TenureRevoked, TransientFailure
from mta.interfaces import (
    IDescriptorDoor,
    IDisk,
    IDoors,
    IExecutor,
    IResolver,
    IRevocable,
    IStsPolicies,
    IStsSurroundings,
    ITenure,
    ITextResolver,
    ITls,
)
from mta.model import PeerInfo, VirtualAddress, VirtualServer
from mta.telemetry import Notice, Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.network import (
    FIRST_EPHEMERAL_PORT,
    MemoryDatagrams,
    MemoryListening,
    MemoryNetwork,
    MemoryPeer,
    MemoryTransport,
    RevocablePort,
    adopt_end,
    endpoint_of,
)

__all__ = [
    "MemoryDoors",
    "MemoryNetwork",
    "MemoryPeer",
    "MemorySurroundings",
    "MemoryTenure",
    "MemoryTransport",
    "virtual_addresses",
]


def virtual_addresses(*texts: str) -> tuple[VirtualAddress, ...]:
    """LOCAL, required virtual addresses from their text."""
    return tuple(VirtualAddress(ip_address(text), ip_address(text)) for text in texts)


@implementer(ITenure)
class MemoryTenure:
    """A tenure that a test holds in its hand: `revoke()` ends it, `fence()` supersedes it."""

    def __init__(
        self,
        network_name: str = "bridgehead.example.org",
        addresses: Sequence[VirtualAddress | str] = ("192.0.2.10", "2001:db8::10"),
        epoch: int = 1,
    ) -> None:
        self.network_name = network_name
        self.addresses = tuple(
            a if isinstance(a, VirtualAddress) else virtual_addresses(a)[0] for a in addresses
        )
        self.epoch = epoch
        self.is_live = True
        self.adopted: list[IRevocable] = []
        self.checks = 0
        self.admits = True
        self._fault: MTAError | None = None

    def adopt(self, revocable: IRevocable) -> None:
        self._live()
        self.adopted.append(revocable)

    def disown(self, revocable: IRevocable) -> None:
        if revocable in self.adopted:
            self.adopted.remove(revocable)

    def check(self) -> None:
        self.checks += 1
        self._live()
        if self._fault is not None:
            raise self._fault

    def admit(self) -> None:
        self.check()
        if not self.admits:
            raise TransientFailure("nothing new begins", "the authority is silent")

    def address_for(self, family: int) -> VirtualAddress:
        self._live()
        version = 4 if family == socket.AF_INET else 6
        for address in self.addresses:
            if address.bind.version == version:
                return address
        raise TransientFailure(
            f"{self.network_name} has no IPv{version} address",
            enhanced="4.4.4",
        )

    def fence(self, fault: MTAError | None = None) -> None:
        """From now on `check` raises Fenced (or `fault`)."""
        self._fault = fault or Fenced(f"epoch {self.epoch} is superseded")

    def revoke(self) -> None:
        self.is_live = False
        adopted, self.adopted = self.adopted, []
        for revocable in adopted:
            revocable.revoke()

    def _live(self) -> None:
        if not self.is_live:
            raise TenureRevoked(f"the tenure of epoch {self.epoch} has ended")


@implementer(IDoors, IDescriptorDoor)
class MemoryDoors:
    """The two doors over a MemoryNetwork. They check the tenure as the real ones do."""

    def __init__(
        self, clock: VirtualClock, telemetry: Telemetry, network: MemoryNetwork | None = None
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self.network = network or MemoryNetwork(clock)
        self.datagrams: list[MemoryDatagrams] = []
        self.watched: list[IReadDescriptor] = []
        self.opened: list[tuple[str, str, int]] = []
        self._associations = 0

    def granted(self, name: str, purposes: Any) -> MemoryDoors:
        """Memory doors grant everything."""
        return self

    # associations
    def connect(
        self, tenure: ITenure, host: str, port: int, protocol: IProtocol, timeout: float
    ) -> Deferred[IProtocol]:
        try:
            tenure.check()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            source = str(tenure.address_for(family).bind)
        except MTAError:
            return fail()
        self.opened.append((source, host, port))
        done: Deferred[IProtocol] = Deferred()
        if host in self.network.unreachable:
            timer = self._clock.call_later(
                timeout,
                lambda: done.errback(
                    TransientFailure(
                        f"connection to {host}:{port} timed out",
                        f"no answer within {timeout:g} s",
                        enhanced="4.4.1",
                    )
                ),
            )
            cancelling: Deferred[IProtocol] = Deferred(lambda _d: timer.cancel())
            done.chainDeferred(cancelling)
            return cancelling
        waiting = self._clock.call_later(
            0, self._connect, tenure, source, host, port, protocol, done
        )
        answer: Deferred[IProtocol] = Deferred(lambda _d: waiting.cancel())
        done.chainDeferred(answer)
        return answer

    def _connect(
        self,
        tenure: ITenure,
        source: str,
        host: str,
        port: int,
        protocol: IProtocol,
        done: Deferred[IProtocol],
    ) -> None:
        if not tenure.is_live:
            done.errback(TenureRevoked(f"the tenure of epoch {tenure.epoch} has ended"))
            return
        near = self.network.connect_ends(source, host, port, protocol)
        if near is None:
            done.errback(
                TransientFailure(
                    f"connect to {host}:{port} failed", "connection refused", enhanced="4.4.1"
                )
            )
            return
        adopt_end(tenure, near)
        done.callback(protocol)

    def listen(
        self,
        tenure: ITenure,
        address: VirtualAddress,
        port: int,
        build: Callable[[PeerInfo], IProtocol | None],
        *,
        name: str,
        backlog: int = 128,
    ) -> IRevocable:
        tenure.check()
        host = str(address.bind)
        if (host, port) in self.network.listening:
            raise StartRefused(f"{host}:{port} is busy", "a memory listener has it")

        def accept(peer: Any) -> IProtocol | None:
            try:
                tenure.check()
            except MTAError:
                return None
            self._associations += 1
            return build(
                PeerInfo(
                    association=f"{name}/in/{self._associations}",
                    host=peer.host,
                    port=peer.port,
                    local_host=host,
                    local_port=port,
                    listener=name,
                )
            )

        listening = MemoryListening(self.network, (host, port), accept)
        listening.tenure = tenure
        revocable = RevocablePort(listening.close)
        tenure.adopt(revocable)
        self.network.listening[host, port] = listening
        return revocable

    # services
    def service_connect(
        self, purpose: str, endpoint: str, protocol: IProtocol
    ) -> Deferred[IProtocol]:
        factory = self.network.services.get(endpoint)
        if factory is None:
            return fail(
                TransientFailure(f"{purpose} service at {endpoint} is away", "connection refused")
            )
        accepted = factory.buildProtocol(None)
        kind, host, port = parse_endpoint(endpoint)
        here = there = endpoint
        if kind == "tcp":  # from this node to itself, as the kernel chooses the source
            here, there = endpoint_of(host, FIRST_EPHEMERAL_PORT), endpoint_of(host, port)
        near = MemoryTransport(self.network, here, there, is_client=True)
        far = MemoryTransport(self.network, there, here)
        near.far, far.far = far, near
        near.protocol, far.protocol = protocol, accepted
        protocol.makeConnection(near)
        accepted.makeConnection(far)
        return succeed(protocol)

    def service_listen(
        self, purpose: str, endpoint: str, factory: Any, mode: int = 0o600
    ) -> IRevocable:
        if endpoint in self.network.services:
            raise StartRefused(f"{endpoint} is busy", "a memory service has it")
        self.network.services[endpoint] = factory
        return RevocablePort(lambda: self.network.services.pop(endpoint, None))

    def service_datagram(self, purpose: str, protocol: Any, *, ipv6: bool = False) -> IRevocable:
        transport = MemoryDatagrams(protocol)
        self.datagrams.append(transport)
        protocol.makeConnection(transport)
        return RevocablePort(lambda: cast(None, transport.stopListening()))

    def try_bind(self, address: VirtualAddress) -> None:
        usable = self.network.usable
        if usable is not None and str(address.bind) not in usable:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    # descriptors
    def watch_descriptor(self, purpose: str, descriptor: IReadDescriptor) -> IRevocable:
        self.watched.append(descriptor)
        return RevocablePort(lambda: self.watched.remove(descriptor))


@implementer(IStsSurroundings)
class MemorySurroundings:
    """ISurroundings of memory. `advance(seconds)` moves time and, with 0, the network.

    Disk, executor and resolver are built when first asked for, so that a test which needs none of
    them pays for none. Hand others in, or assign them, before anybody asked.
    """

    def __init__(
        self,
        *,
        clock: VirtualClock | None = None,
        network: MemoryNetwork | None = None,
        telemetry: Telemetry | None = None,
        disk: IDisk | None = None,
        executor: IExecutor | None = None,
        resolver: IResolver | None = None,
        node: str = "a.example.org",
        state_directory: str = "/state",
        virtual_server: VirtualServer | None = None,
        tls: ITls | None = None,
    ) -> None:
        self._tls = tls
        self.clock = clock or (network.clock if network is not None else VirtualClock())
        self.telemetry = telemetry or Telemetry()
        self.network = network or MemoryNetwork(self.clock)
        self.doors = MemoryDoors(self.clock, self.telemetry, self.network)
        self.node = node
        self.state_directory = state_directory
        self.virtual_server = virtual_server or VirtualServer(
            "bridgehead.example.org", virtual_addresses("192.0.2.10", "2001:db8::10")
        )
        self._disk = disk
        self._executor = executor
        self._resolver = resolver
        self._sts: IStsPolicies | None = None
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)

    @property
    def tls(self) -> ITls:
        """Without a certificate of its own, unless one was handed in."""
        if self._tls is None:
            from mta.association.tls import Tls
            from mta.association.tls_settings import TlsSettings

            name = self.virtual_server.network_name
            self._tls = Tls(TlsSettings(), name, self.clock, self.telemetry)
        return self._tls

    @tls.setter
    def tls(self, tls: ITls) -> None:
        self._tls = tls

    @property
    def disk(self) -> IDisk:
        if self._disk is None:
            from mta.testing.disk import ForgetfulDisk

            self._disk = ForgetfulDisk()
        return self._disk

    @disk.setter
    def disk(self, disk: IDisk) -> None:
        self._disk = disk

    @property
    def executor(self) -> IExecutor:
        if self._executor is None:
            from mta.testing.executors import InlineExecutor

            self._executor = InlineExecutor()
        return self._executor

    @executor.setter
    def executor(self, executor: IExecutor) -> None:
        self._executor = executor

    @property
    def resolver(self) -> IResolver:
        if self._resolver is None:
            from mta.resolver.memory import MemoryResolver

            self._resolver = MemoryResolver()
        return self._resolver

    @resolver.setter
    def resolver(self, resolver: IResolver) -> None:
        self._resolver = resolver

    @property
    def sts(self) -> IStsPolicies:
        """They are asked for with these doors, this resolver, this TLS and this disk."""
        if self._sts is None:
            from mta.association.sts import StsPolicies
            from mta.association.sts_fetch import PolicyFetch
            from mta.association.sts_file import PolicyFile

            fetch = PolicyFetch(self.doors, self.resolver, self.tls, self.clock)
            file = PolicyFile(self.disk, self.executor, self.state_directory)
            texts = ITextResolver(self.resolver)
            self._sts = StsPolicies(fetch, texts, file, self.clock, self.telemetry)
        return self._sts

    def advance(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    def notices(self, level: str | None = None) -> list[str]:
        """The texts of the notices raised so far (of one level)."""
        return [e.text for e in self.events if isinstance(e, Notice) and level in {None, e.level}]
