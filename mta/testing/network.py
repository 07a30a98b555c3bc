"""A network of memory: listeners, associations and datagrams without a kernel.

Law: octets written on one end arrive at the other when the clock is advanced (`clock.advance(0)`
is enough), so that a test decides when the network moves. Order is kept; an abort overtakes what
was not delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet import _newtls, error
from twisted.internet import address as twisted_address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.interfaces import IRevocable, ITenure
from mta.testing.clock import VirtualClock

FIRST_EPHEMERAL_PORT = 40_000
"""Where a MemoryNetwork begins to number the ports of connecting ends."""


def endpoint_of(host: str, port: int) -> Any:
    """What getHost and getPeer answer for an IP address and a port."""
    kind = twisted_address.IPv6Address if ":" in host else twisted_address.IPv4Address
    return kind("TCP", host, port)


@implementer(ITCPTransport, IPushProducer, IConsumer)
class MemoryTransport:
    """One end of a memory association, with the parts of a TCP transport that protocols use.

    `sent` keeps all octets written here. `hold = True` stops the delivery of what is written, as
    a full network would, and counts as back-pressure to a registered producer.
    """

    disconnecting = False
    TLS = False

    def __init__(
        self, network: MemoryNetwork, host: Any, peer: Any, *, is_client: bool = False
    ) -> None:
        self._is_client = is_client
        self.getHandle: Callable[[], Any]
        self._network = network
        self._host = host
        self._peer_address = peer
        self.protocol: IProtocol | None = None
        self.far: MemoryTransport | None = None
        self.connected = True
        self.aborted = False
        self.sent = bytearray()
        self.on_closed: Callable[[], None] | None = None
        self._outbox: list[bytes] = []
        self._scheduled = False
        self._paused = False
        self._hold = False
        self._is_write_closed = False
        self._is_end_read = False
        self._ended: Failure | None = None
        self.producer: Any = None
        self._streaming = False

    # TLS: Twisted's own, over these octets and in this time
    def startTLS(self, creator: Any, normal: bool = True) -> None:
        producer, streaming = self.producer, self._streaming
        if producer is not None:
            self.unregister_plainly()
        is_client = self._is_client if normal else not self._is_client
        factory = TLSMemoryBIOFactory(
            creator, is_client, cast(Any, None), clock=cast(Any, self._network.clock.reactor)
        )
        layer: Any = factory.protocol(factory, self.protocol, False)
        self.protocol = layer
        self.getHandle = layer.getHandle
        self.TLS = True
        bypass: Any = _newtls._BypassTLS
        layer.makeConnection(bypass(_Plain, self))
        if producer is not None:
            self.registerProducer(producer, streaming)

    # writing
    def write(self, data: bytes) -> None:
        if self.TLS:
            if self.connected:
                cast(Any, self.protocol).write(data)
        else:
            self.write_plainly(data)

    def write_plainly(self, data: bytes) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError("data must be bytes")
        if not self.connected or self.disconnecting or self._is_write_closed or not data:
            return
        octets = bytes(data)
        self.sent += octets
        self._outbox.append(octets)
        if self._hold and self.producer is not None and self._streaming:
            self.producer.pauseProducing()
        self._schedule()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    @property
    def hold(self) -> bool:
        return self._hold

    @hold.setter
    def hold(self, value: bool) -> None:
        self._hold = value
        if not value:
            self._schedule()
            if self.producer is not None:
                self.producer.resumeProducing()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._network.clock.call_later(0, self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        far = self.far
        if far is None or self._hold or self.aborted:
            return
        if far._paused:
            return
        octets, self._outbox = b"".join(self._outbox), []
        if octets and far.connected and far.protocol is not None:
            self._network.octets += len(octets)
            far.protocol.dataReceived(octets)
        if self.producer is not None and not self._streaming and self.connected:
            self.producer.resumeProducing()
        if self._outbox:
            self._schedule()
        elif self._is_write_closed and not self._is_end_read:
            self._is_end_read = True
            half = IHalfCloseableProtocol(far.protocol, None)
            if half is not None and far.connected:
                half.readConnectionLost()
            elif far.connected:
                far._finish(Failure(error.ConnectionDone()))
                self._finish(Failure(error.ConnectionLost("connection reset by peer")))
        elif self.disconnecting and (self.producer is None or self._streaming):
            self._finish(Failure(error.ConnectionDone()))
            far._peer_ended(Failure(error.ConnectionDone()))

    def _peer_ended(self, reason: Failure) -> None:
        """The far end is gone; what we had still to send falls to the ground."""
        if reason.check(error.ConnectionDone) and self._paused:
            self._ended = reason
            return
        self._finish(reason)

    def _finish(self, reason: Failure) -> None:
        if not self.connected:
            return
        self.connected = False
        self._outbox.clear()
        if self.on_closed is not None:
            self.on_closed()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:
            self.protocol.connectionLost(reason)

    # ending
    def loseConnection(self) -> None:
        if self.TLS and self.connected and not self.disconnecting:
            cast(Any, self.protocol).loseConnection()
        else:
            self.lose_plainly()

    def lose_plainly(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._schedule()

    def abortConnection(self) -> None:
        """At once for this end's descriptor; both protocols hear of it when the clock moves."""
        if not self.connected or self.aborted:
            return
        self.aborted = True
        self.disconnecting = True
        self._outbox.clear()
        if self.on_closed is not None:
            self.on_closed()
        self._network.clock.call_later(0, self._finish, Failure(error.ConnectionAborted()))
        if self.far is not None:
            lost = Failure(error.ConnectionLost("connection reset by peer"))
            self._network.clock.call_later(0, self.far._finish, lost)

    def loseWriteConnection(self) -> None:
        """Half-close: the far end reads what was written and then its end, and may still write."""
        if self.connected and not self.disconnecting:
            self._is_write_closed = True
            self._schedule()

    # reading
    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self.far is not None:
            self.far._schedule()
        if self._ended is not None:
            self._network.clock.call_later(0, self._finish, self._ended)

    def stopProducing(self) -> None:
        self.loseConnection()

    @property
    def is_paused(self) -> bool:
        return self._paused

    # being a consumer
    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.TLS:
            cast(Any, self.protocol).registerProducer(producer, streaming)
        else:
            self.register_plainly(producer, streaming)

    def register_plainly(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("a producer is registered already")
        self.producer, self._streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        if self.TLS:
            cast(Any, self.protocol).unregisterProducer()
        else:
            self.unregister_plainly()

    def unregister_plainly(self) -> None:
        self.producer = None
        if self.disconnecting:
            self._schedule()

    # facts
    def getHost(self) -> Any:
        return self._host

    def getPeer(self) -> Any:
        return self._peer_address

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass


class _Plain:
    """What the TLS layer writes to: the same transport, past itself."""

    @staticmethod
    def write(transport: MemoryTransport, data: bytes) -> None:
        transport.write_plainly(data)

    @staticmethod
    def writeSequence(transport: MemoryTransport, pieces: Any) -> None:
        transport.write_plainly(b"".join(pieces))

    @staticmethod
    def loseConnection(transport: MemoryTransport) -> None:
        transport.lose_plainly()

    @staticmethod
    def registerProducer(transport: MemoryTransport, producer: Any, streaming: bool) -> None:
        transport.register_plainly(producer, streaming)

    @staticmethod
    def unregisterProducer(transport: MemoryTransport) -> None:
        transport.unregister_plainly()


class MemoryPeer(Protocol):
    """A far end for tests: keeps what came, says what it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_open = False
        self.lost_because: str = ""

    def connectionMade(self) -> None:
        self.is_open = True

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_open = False
        self.lost_because = type(reason.value).__name__

    def say(self, data: bytes) -> None:
        cast(MemoryTransport, self.transport).write(data)

    def take(self) -> bytes:
        """What came since the last `take`."""
        octets = bytes(self.received)
        self.received.clear()
        return octets

    def close(self) -> None:
        cast(MemoryTransport, self.transport).loseConnection()

    def half_close(self) -> None:
        """shutdown(SHUT_WR): nothing more is said, what is answered is still read."""
        cast(MemoryTransport, self.transport).loseWriteConnection()

    def abort(self) -> None:
        cast(MemoryTransport, self.transport).abortConnection()


class MemoryListening:
    """A listening port of the memory network."""

    def __init__(self, network: MemoryNetwork, key: tuple[str, int], build: Any) -> None:
        self._network = network
        self.key = key
        self.build = build
        self.tenure: ITenure | None = None

    def close(self) -> None:
        if self._network.listening.get(self.key) is self:
            del self._network.listening[self.key]


@implementer(IRevocable)
class RevocablePort:
    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def revoke(self) -> None:
        self._close()


@implementer(IRevocable)
class _RevocableEnd:
    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def revoke(self) -> None:
        self._transport.abortConnection()


class MemoryNetwork:
    """All memory ends of one test. Hosts are IP addresses as text.

    `usable` limits which addresses `try_bind` and `listen` accept (None: every one).
    `unreachable` holds hosts that never answer; others without a listener refuse.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.listening: dict[tuple[str, int], MemoryListening] = {}
        self.services: dict[str, Any] = {}
        self.usable: set[str] | None = None
        self.unreachable: set[str] = set()
        self.octets = 0
        self._next_port = FIRST_EPHEMERAL_PORT

    def serve(self, host: str, port: int, build: Callable[[], IProtocol]) -> None:
        """A foreign server: `build()` gives a protocol for each connection (an MX, a sink)."""
        self.listening[host, port] = MemoryListening(self, (host, port), lambda _peer: build())

    def serve_service(self, endpoint: str, factory: Any) -> None:
        """A foreign service (a filter, an authority) behind `service_connect`."""
        self.services[endpoint] = factory

    def dial(self, host: str, port: int, source: str = "198.51.100.7") -> MemoryPeer:
        """A foreign client connects; `is_open` is False at once when nobody listens."""
        peer = MemoryPeer()
        self.connect_ends(source, host, port, peer)
        self.clock.advance(0)
        return peer

    def connect_ends(
        self, source: str, host: str, port: int, protocol: IProtocol
    ) -> MemoryTransport | None:
        """Join `protocol` to whoever listens; None when nobody does or it is not wanted."""
        listening = self.listening.get((host, port))
        if listening is None:
            return None
        self._next_port += 1
        near_address = endpoint_of(source, self._next_port)
        far_address = endpoint_of(host, port)
        accepted = listening.build(near_address)
        if accepted is None:
            return None
        near = MemoryTransport(self, near_address, far_address, is_client=True)
        far = MemoryTransport(self, far_address, near_address)
        near.far, far.far = far, near
        near.protocol, far.protocol = protocol, accepted
        if listening.tenure is not None:
            adopt_end(listening.tenure, far)
        protocol.makeConnection(near)
        accepted.makeConnection(far)
        return near


def adopt_end(tenure: ITenure, transport: MemoryTransport) -> None:
    revocable = _RevocableEnd(transport)
    tenure.adopt(revocable)
    transport.on_closed = lambda: tenure.disown(revocable)


class MemoryDatagrams:
    """The transport of a memory UDP socket: `sent` is a list of (octets, address)."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.sent: list[tuple[bytes, Any]] = []
        self.is_open = True

    def write(self, datagram: bytes, addr: Any = None) -> None:
        self.sent.append((datagram, addr))

    def receive(self, datagram: bytes, addr: Any) -> None:
        self.protocol.datagramReceived(datagram, addr)

    def stopListening(self) -> Deferred[None]:
        self.is_open = False
        self.protocol.transport = None
        return succeed(None)

    def getHost(self) -> Any:
        return twisted_address.IPv4Address("UDP", "127.0.0.1", 50_000)
