"""TCP between machines that share an address, and peers that know nothing of it.

Law: the kernels go on while a process is stopped: they accept, deliver and reset. What a peer sends
to the virtual address reaches the machine that its neighbour entry names; a machine that has the
address but not the association answers with a reset. What a machine sends leaves while it has the
address, whoever else has it too. Octets that cannot pass wait, and pass when they can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet import address as twisted_address
from twisted.internet import error
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import MTAError, TenureRevoked
from mta.interfaces import IRevocable, ITenure
from mta.model import PeerInfo
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.doors import Listening
    from tests.simulation.node import Node, Process

USER_TIMEOUT = 60.0
KEEPALIVE = 30.0
TRY_AGAIN = 0.25
SYN_SECONDS = 10.0
"""A client gives up connecting after so long."""
FIN = None


def _address(host: str, port: int) -> Any:
    return twisted_address.IPv4Address("TCP", host, port)


@implementer(ITCPTransport, IPushProducer, IConsumer, IRevocable)
class End:
    """One end of an association. `owner` is the process that has it, None for a peer's."""

    def __init__(self, network: Network, host: str, port: int, owner: Process | None) -> None:
        self.network = network
        self.world = network.world
        self.host, self.port = host, port
        self.owner = owner
        self.number = 0
        self.protocol: Any = None
        self.tenure: ITenure | None = None
        self.far: End = self
        self.connected = True
        self.disconnecting = False
        self.is_gone = False
        """Nothing of it is left, not even in a kernel."""
        self.producer: Any = None
        self._out: deque[bytes | None] = deque()
        self._in: deque[bytes | None] = deque()
        self._is_carrying = False
        self._is_reading = False
        self._is_paused = False
        self._held_since: float | None = None

    def establish(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)
        self._read_soon()
        if self.owner is not None:
            self.world.later(KEEPALIVE, self._keep_alive)

    # --- what protocols call

    def write(self, data: bytes) -> None:
        if self.connected and not self.disconnecting and data:
            if self.owner is not None:
                self.network.on_write(self, bytes(data))
            self._send(bytes(data))

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if self.producer is None:
                self.world.soon(self._close, owner=self.owner)

    def _close(self) -> None:
        """Orderly: what was written, and a FIN, leave by the kernel's doing."""
        if self.connected:
            self._send(FIN)
            self._lost(error.ConnectionDone())

    def abortConnection(self) -> None:
        """The descriptor closes at once; the protocol hears of it in a later turn."""
        if not self.connected:
            return
        self._end()
        self._out.clear()
        self.is_gone = True
        self.world.soon(self._tell, error.ConnectionAborted(), owner=self.owner)
        self._reset_far()

    revoke = abortConnection

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        if self.disconnecting and self.connected:
            self.world.soon(self._close, owner=self.owner)

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._read_soon()

    def stopProducing(self) -> None:
        self.loseConnection()

    def getHost(self) -> Any:
        return _address(self.host, self.port)

    def getPeer(self) -> Any:
        return _address(self.far.host, self.far.port)

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def loseWriteConnection(self) -> None:
        self._send(FIN)

    # --- octets on their way

    def _send(self, octets: bytes | None) -> None:
        self._out.append(octets)
        self._carry_after(self.world.chance.uniform(0.0001, 0.002))

    def _carry_after(self, seconds: float) -> None:
        if not self._is_carrying:
            self._is_carrying = True
            self.world.later(seconds, self._carry)

    def _carry(self) -> None:
        self._is_carrying = False
        if not self._out or self.is_gone:
            return
        path = self.network.path(self)
        if path == "closed":
            if self._held_since is None:
                self._held_since = self.world.now
            if self.world.now - self._held_since >= USER_TIMEOUT:
                self.lose(error.TimeoutError())
            else:
                self._carry_after(TRY_AGAIN)
            return
        self._held_since = None
        far = self.far
        if path == "reset" or far.is_gone or not (far.connected or far.protocol is None):
            self.lose(error.ConnectionLost())
            return
        far._in.extend(self._out)
        self._out.clear()
        far._read_soon()
        if self.owner is not None:
            self.network.acknowledged(self)

    def _read_soon(self) -> None:
        if self._in and not self._is_reading and self.connected and self.protocol is not None:
            self._is_reading = True
            self.world.soon(self._read, owner=self.owner)

    def _read(self) -> None:
        self._is_reading = False
        if self._is_paused or not self.connected:
            return
        pieces: list[bytes] = []
        is_over = False
        while self._in:
            piece = self._in.popleft()
            if piece is None:
                is_over = True
                break
            pieces.append(piece)
        if pieces:
            self.protocol.dataReceived(b"".join(pieces))
        if is_over and self.connected:
            half = IHalfCloseableProtocol(self.protocol, None)
            if half is not None:
                half.readConnectionLost()
            else:
                self._lost(error.ConnectionDone())

    def _keep_alive(self) -> None:
        if not self.connected or self.is_gone:
            return
        far = self.far
        if self.network.path(self) == "open" and (far.is_gone or not far.connected):
            self.lose(error.ConnectionLost())
        self.world.later(KEEPALIVE, self._keep_alive)

    # --- ending

    def lose(self, reason: Exception) -> None:
        """The kernel says so: a reset came, or nothing for too long."""
        if self.is_gone:
            return
        self.is_gone = True
        self._out.clear()
        if self.connected:
            self.world.soon(self._lost, reason, owner=self.owner)

    def _lost(self, reason: Exception) -> None:
        if self.connected:
            self._end()
            self._tell(reason)

    def _end(self) -> None:
        self.connected = False
        self.network.ended(self)
        if self.tenure is not None:
            self.tenure.disown(self)

    def _tell(self, reason: Exception) -> None:
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:
            self.protocol.connectionLost(Failure(reason))

    def _reset_far(self) -> None:
        if self.network.path(self) == "open":
            self.world.later(
                self.world.chance.uniform(0.0001, 0.002),
                self.far.lose,
                error.ConnectionLost(),
            )

    def vanish(self) -> None:
        """The process is gone. Its kernel resets what was not closed in order; without power
        nothing is said at all.
        """
        if self.connected:
            self.connected = False
            self.network.ended(self)
            self._out.clear()
            self._reset_far()
            self.is_gone = True


class Network:
    """Machines, peers, and what lies between."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[str, Node] = {}
        self.neighbour = ""
        """The machine that peers send to, for the virtual address."""
        self.cuts: set[tuple[str, str]] = set()
        """(machine, "in" or "out"): nothing passes between it and the peers in that direction."""
        self.servers: dict[tuple[str, int], Callable[[End], Any]] = {}
        self.ends: dict[End, None] = {}
        """Open ends of the nodes that a tenure has adopted."""
        self._all: dict[End, None] = {}
        self.on_write: Callable[[End, bytes], None] = lambda _end, _data: None
        self._port = 40_000
        self._ends = 0

    # --- where packets go

    def changed(self) -> None:
        """An address came or went; whoever moved it says so to the peers, mostly."""
        holders = [n for n in self.nodes.values() if n.has_any]
        if len(holders) == 1 and self.world.chance.random() < 0.8:
            self.neighbour = holders[0].name

    def answering(self) -> Node | None:
        """The machine that a peer's packet to the virtual address reaches."""
        named = self.nodes.get(self.neighbour)
        if named is None or not named.has_any:
            holders = [n for n in self.nodes.values() if n.has_any]
            if not holders:
                return None
            named = holders[0]
            self.neighbour = named.name
        return None if (named.name, "in") in self.cuts else named

    def path(self, near: End) -> str:
        """open, closed (nothing passes, nothing is said), or reset."""
        if near.owner is not None:
            node = near.owner.node
            passes = node.has(near.host) and (node.name, "out") not in self.cuts
            return "open" if passes else "closed"
        far = near.far
        assert far.owner is not None
        node, answering = far.owner.node, self.answering()
        if answering is None:
            return "closed"
        if answering is not node or (far.is_gone or far.owner.is_dead):
            return "closed" if (answering.name, "out") in self.cuts else "reset"
        return "open"

    def acknowledged(self, near: End) -> None:
        """A peer's kernel got octets from `near`; its acknowledgement may reach another machine."""
        assert near.owner is not None
        answering = self.answering()
        if answering is None or answering is near.owner.node:
            return
        if (answering.name, "out") not in self.cuts:
            self.world.soon(near.far.lose, error.ConnectionLost())

    # --- associations

    def _join(self, near: End, far: End) -> None:
        near.far, far.far = far, near
        for end in (near, far):
            self._ends += 1
            end.number = self._ends
        self._all[near if near.owner is not None else far] = None

    def ended(self, end: End) -> None:
        self.ends.pop(end, None)
        self._all.pop(end, None)

    def adopt(self, end: End, tenure: ITenure) -> None:
        tenure.adopt(end)
        end.tenure = tenure
        self.ends[end] = None

    def died(self, process: Process, *, power: bool) -> None:
        process.doors.listening.clear()
        for end in [e for e in self._all if e.owner is process]:
            if power:
                end.is_gone = True
                end.connected = False
                self.ended(end)
            else:
                end.vanish()

    def dial(
        self, source: str, host: str, port: int, protocol: Any, failed: Callable[[str], None]
    ) -> None:
        """A peer connects; `failed(why)` when nobody lets it in."""
        self.world.soon(self._syn, source, host, port, protocol, failed)

    def _syn(self, source: str, host: str, port: int, protocol: Any, failed: Any) -> None:
        node = self.answering()
        if node is None or (node.name, "out") in self.cuts or not node.has(host):
            self.world.later(SYN_SECONDS, failed, "timed out")
            return
        process = node.process
        listening = process.doors.listening.get((host, port)) if process is not None else None
        if process is None or listening is None:
            self.world.soon(failed, "refused")
            return
        self._port += 1
        near, far = End(self, source, self._port, None), End(self, host, port, process)
        self._join(near, far)
        near.establish(protocol)
        self.world.soon(self._accept, far, listening, owner=process)

    def _accept(self, end: End, listening: Listening) -> None:
        process = end.owner
        assert process is not None
        tenure = listening.tenure
        try:
            if process.doors.listening.get((end.host, end.port)) is not listening:
                raise TenureRevoked("the port is closed")
            tenure.admit()
        except MTAError:
            end.abortConnection()
            return
        process.associations += 1
        peer = PeerInfo(
            association=f"{listening.name}/in/{process.associations}",
            host=end.far.host,
            port=end.far.port,
            local_host=end.host,
            local_port=end.port,
            listener=listening.name,
        )
        protocol = listening.build(peer)
        if protocol is None:
            end.abortConnection()
            return
        self.adopt(end, tenure)
        end.establish(protocol)
