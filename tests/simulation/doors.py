"""What a process has of the network: both doors, its listeners, and its kernel's news.

Law: the doors judge as the real ones do: the tenure admits, then the address is bound, and only then
something leaves. What the kernel tells comes in a later turn, and not while the process is stopped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from mta.errors import MTAError, StartRefused, TenureRevoked, TransientFailure
from mta.interfaces import IDescriptorDoor, IDoors, IPacketDoor, IRevocable, ISegments, ITenure
from mta.testing.kernel import PERMANENT, PaperNetlink
from tests.simulation.network import End, Network

if TYPE_CHECKING:
    from tests.simulation.node import Process


@implementer(IDoors, IDescriptorDoor, IPacketDoor)
class NodeDoors:
    """Both doors of one process. They judge as the real ones do: admit, then own address."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.listening: dict[tuple[str, int], Listening] = {}
        self.watched: list[Any] = []
        self.kernel = Netlink(self)

    def granted(self, name: str, purposes: Any) -> NodeDoors:
        return self

    def connect(
        self, tenure: ITenure, host: str, port: int, protocol: Any, timeout: float
    ) -> Deferred[Any]:
        try:
            tenure.admit()
            source = str(tenure.address_for(2).bind)
            opening = _Opening(self.network, tenure, host, port, protocol)
            return opening.begin(self.process, source, timeout)
        except MTAError:
            return fail()

    def listen(
        self, tenure: ITenure, address: Any, port: int, build: Any, *, name: str, backlog: int = 1
    ) -> IRevocable:
        tenure.check()
        host = str(address.bind)
        if (host, port) in self.listening:
            raise StartRefused(f"{host}:{port} is busy", "another listener of this process has it")
        self.process.node.bind(host)
        listening = Listening(tenure, build, name)
        opened = _Port(self, (host, port), listening)
        tenure.adopt(opened)
        self.listening[host, port] = listening
        return opened

    def try_bind(self, address: Any) -> None:
        self.process.node.bind(str(address.bind))

    def watch_descriptor(self, purpose: str, descriptor: Any) -> IRevocable:
        self.watched.append(descriptor)
        return _Watching(self.watched, descriptor)

    def service_connect(self, purpose: str, endpoint: str, protocol: Any) -> Deferred[Any]:
        return fail(TransientFailure(f"{endpoint} is away", "nothing of the kind is simulated"))

    def service_listen(self, purpose: str, endpoint: str, factory: Any, mode: int = 0) -> Any:
        raise StartRefused(f"{endpoint} is busy", "nothing of the kind is simulated")

    def service_datagram(self, purpose: str, protocol: Any, *, ipv6: bool = False) -> Any:
        raise StartRefused("no datagrams", "nothing of the kind is simulated")

    def send_frames(
        self, purpose: str, ifindex: int, build: Callable[[bytes], Sequence[bytes]]
    ) -> str:
        """A gratuitous ARP: peers send to this machine from now on, if it arrives."""
        build(b"\x02\x00\x00\x00\x00\x01")
        node = self.process.node
        if node.has_any and (node.name, "out") not in self.network.cuts:
            self.network.neighbour = node.name
        return ""

    def open_segments(self, purpose: str) -> ISegments:
        return _Segments(self)


@implementer(ISegments)
class _Segments:
    def __init__(self, doors: NodeDoors) -> None:
        self.network, self.process = doors.network, doors.process

    def send(self, segments: Sequence[Any]) -> tuple[int, str]:
        """Tickles: the peer's kernel answers, and ours resets what it does not know."""
        network, node = self.network, self.process.node
        if (node.name, "out") in network.cuts or network.answering() is not node:
            return len(segments), ""
        for segment in segments:
            _port, target = struct.unpack_from("!HH", segment.octets)
            for end in [*network._all]:
                stuck = end.far
                if (stuck.host, stuck.port) == (segment.target, target) and end.owner is not (
                    self.process
                ):
                    network.world.soon(stuck.lose, error.ConnectionLost())
        return len(segments), ""

    def receive(self) -> Sequence[Any]:
        return ()

    def close(self) -> None:
        pass


class Listening:
    def __init__(self, tenure: ITenure, build: Any, name: str) -> None:
        self.tenure = tenure
        self.build = build
        self.name = name


@implementer(IRevocable)
class _Port:
    def __init__(self, doors: NodeDoors, key: tuple[str, int], listening: Listening) -> None:
        self._doors, self._key, self._listening = doors, key, listening

    def revoke(self) -> None:
        if self._doors.listening.get(self._key) is self._listening:
            del self._doors.listening[self._key]


class _Opening:
    """An association that a node opens, from its SYN on."""

    def __init__(
        self, network: Network, tenure: ITenure, host: str, port: int, protocol: Any
    ) -> None:
        self.network, self.tenure = network, tenure
        self.host, self.port = host, port
        self.protocol = protocol
        self.end: End | None = None
        self.done: Deferred[Any] = Deferred(lambda _d: self.revoke())
        self.is_over = False

    def begin(self, process: Process, source: str, timeout: float) -> Deferred[Any]:
        self.tenure.adopt(self)  # type: ignore[arg-type]  # has the shape of IRevocable
        world = self.network.world
        world.soon(self._syn, process, source)
        world.later(timeout, self._fail, "connection timed out", owner=process)
        return self.done

    def _syn(self, process: Process, source: str) -> None:
        network, node = self.network, process.node
        if self.is_over or process.is_dead:
            return
        passes = node.has(source) and (node.name, "out") not in network.cuts
        if not passes or network.answering() is not node:
            network.world.later(1.0, self._syn, process, source)
            return
        serve = network.servers.get((self.host, self.port))
        if serve is None:
            network.world.soon(self._fail, "connection refused", owner=process)
            return
        network._port += 1
        near, far = (
            End(network, source, network._port, process),
            End(network, self.host, self.port, None),
        )
        network._join(near, far)
        self.end = near
        far.establish(serve(far))
        network.world.soon(self._established, owner=process)

    def _established(self) -> None:
        end, tenure = self.end, self.tenure
        assert end is not None
        if self.is_over:
            return
        try:
            tenure.admit()
        except MTAError as fault:
            end.abortConnection()
            self._end()
            self.done.errback(fault)
            return
        self._end()
        self.network.adopt(end, tenure)
        end.establish(self.protocol)
        self.done.callback(self.protocol)

    def _end(self) -> None:
        self.is_over = True
        self.tenure.disown(self)  # type: ignore[arg-type]

    def _fail(self, why: str) -> None:
        if self.is_over:
            return
        self._end()
        fault: Exception = TransientFailure(
            f"connect to {self.host}:{self.port} failed", why, enhanced="4.4.1"
        )
        if not self.tenure.is_live:
            fault = TenureRevoked("the tenure has ended")
        if self.end is not None:
            self.end.abortConnection()
        self.done.errback(fault)

    def revoke(self) -> None:
        if not self.is_over:
            self._end()
            if self.end is not None:
                self.end.abortConnection()
            world = self.network.world
            world.soon(self._revoked)

    def _revoked(self) -> None:
        if not self.done.called:
            self.done.errback(TenureRevoked("the tenure has ended"))


@implementer(IRevocable)
class _Watching:
    def __init__(self, watched: list[Any], descriptor: Any) -> None:
        self._watched, self._descriptor = watched, descriptor

    def revoke(self) -> None:
        if self._descriptor in self._watched:
            self._watched.remove(self._descriptor)


class Netlink(PaperNetlink):
    """The machine's kernel as this process hears it: in a later turn, and not while stopped."""

    def __init__(self, doors: NodeDoors) -> None:
        super().__init__(doors)
        node = doors.process.node
        self.links[2] = ("eth0", 0x10001)
        self.addresses = node.addresses
        self._world, self._process = node.world, doors.process

    def send(self, request: bytes) -> int:
        sent = super().send(request)
        self._deliver_soon()
        return sent

    def _deliver_soon(self) -> None:
        self._world.soon(self.deliver, owner=self._process)

    def add(self, text: str, ifindex: int = 2, flags: int = PERMANENT) -> None:
        self._uptime = int(self._world.now * 100)
        super().add(text, ifindex, flags)
        self._deliver_soon()

    def remove(self, text: str, ifindex: int = 2) -> None:
        super().remove(text, ifindex)
        self._deliver_soon()

    def overflow(self) -> None:
        super().overflow()
        self._deliver_soon()
