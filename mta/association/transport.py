"""TCP transports of associations: socket options before the bind, direct send, abort at once.

Law: this module alone reaches into Twisted's internals; `tests/test_transport.py` fails when one of
those it relies upon changes. Every socket made here carries SO_LINGER(1, 0) from its first byte, so
that a process which dies in whatever way leaves a reset behind and not the kernel delivering what
is no longer ours; only an orderly close clears it.

No freebind: bound to an address that is not here, a socket must fail and not speak later.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from twisted.internet import epollreactor, error, main, tcp
from twisted.internet.interfaces import IProtocol
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.interfaces import IAssociationEnds, IRevocable
from mta.model import FourTuple

IP_BIND_ADDRESS_NO_PORT = 24
"""Not in the socket module. Lets the kernel choose the port at connect(), so that the ephemeral
ports count per far end and not per virtual address (measured: 16 connections without, 40 with)."""

TCP_USER_TIMEOUT = 18
TCP_NOTSENT_LOWAT = 25

ABORTIVE = struct.pack("ii", 1, 0)
ORDERLY = struct.pack("ii", 0, 0)

_READABLE = select.EPOLLIN

SocketMaker = Callable[[int, int], socket.socket]
"""socket.socket, or a test's."""


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What every association's socket is set to. Seconds, except where said.

    A peer that vanished is noticed after `user_timeout` when octets are under way, and after
    `keepalive_idle + keepalive_count * keepalive_interval` when none are (measured: without them,
    never). `unsent_octets` bounds what the kernel holds beyond the peer's window.
    """

    user_timeout: float = 60.0
    keepalive_idle: int = 30
    keepalive_interval: int = 10
    keepalive_count: int = 3
    unsent_octets: int = 128 * 1024

    def apply(self, sock: socket.socket, *, connecting: bool) -> None:
        """Set them; on a listening socket they are inherited by what it accepts (Linux)."""
        put = sock.setsockopt
        put(socket.SOL_SOCKET, socket.SO_LINGER, ABORTIVE)
        if connecting:
            put(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        put(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        put(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(self.user_timeout * 1000))
        put(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, self.unsent_octets)
        put(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        put(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive_idle)
        put(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.keepalive_interval)
        put(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.keepalive_count)


# --- what protocols call ----------------------------------------------------------------------


def send_now(transport: Any, data: bytes) -> None:
    """Write `data` by a system call now when nothing waits before it; the rest through the reactor.

    Twisted's write() costs two epoll_ctl and a pass of the loop for each reply (measured: a quarter
    of the relay's throughput). Any other transport (TLS, memory) gets an ordinary write.
    """
    if (
        isinstance(transport, _AssociationTransport)
        and transport.connected
        and not transport.TLS
        and not transport._tempDataLen
        and not transport.dataBuffer
        and not transport.disconnecting
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0  # the reactor meets it again, and ends the association in its own turn
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)


def abort_now(transport: Any) -> None:
    """Close the descriptor with a reset before returning; connectionLost follows in a later turn.

    abortConnection only schedules: until then octets would still leave. Under TLS the transport
    below it is closed.
    """
    below = transport
    while below is not None:
        close = getattr(below, "close_now", None)
        if close is not None:
            close()
            return
        below = getattr(below, "transport", None)
    transport.abortConnection()


def hand_over(transport: Any, protocol: IProtocol, data: bytes) -> None:
    """Another protocol has this transport from now on; `data` was read before its time. Under TLS,
    which it may begin at once, the layer gets them.
    """
    transport.protocol = protocol
    protocol.makeConnection(transport)
    if data and transport.connected:
        transport.protocol.dataReceived(data)


def _nothing() -> None:
    """doRead and doWrite of a descriptor that is closed."""


class _AssociationTransport(tcp.Connection):
    """What both ends' transports have in common."""

    on_closed: Callable[[Any], None] | None = None
    """Called once with the transport when its descriptor was closed, before connectionLost."""

    _is_closed_now = False

    def doRead(self) -> Any:
        """tcp.Connection's, in one call in place of two."""
        try:
            data = self.socket.recv(self.bufferSize)
        except OSError as fault:
            return None if fault.errno == errno.EWOULDBLOCK else main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def close_now(self) -> None:
        """Close the descriptor, abortively, now. Harmless when it is closed."""
        if self._is_closed_now or not hasattr(self, "socket") or self.disconnected:
            return
        self._is_closed_now = True
        self.stopReading()
        self.stopWriting()
        self.connected = 0
        self.disconnected = 1
        self._aborting = True
        self.doRead = self.doWrite = _nothing  # type: ignore[method-assign]
        tcp.Connection._closeSocket(self, False)
        self.fileno = _closed_fileno
        self._tell_closed()
        reason = Failure(error.ConnectionAborted())
        self.reactor.callLater(0, self.connectionLost, reason)  # type: ignore[attr-defined]

    def revoke(self) -> None:
        """IRevocable."""
        self.close_now()

    def ends(self) -> FourTuple | None:
        """IAssociationEnds."""
        try:
            local, peer = self.socket.getsockname(), self.socket.getpeername()
        except (AttributeError, OSError):  # closed, or not connected yet
            return None
        return FourTuple(local[0], local[1], peer[0], peer[1])

    def stopReading(self) -> None:
        # Once closed there is nothing left to remove; the epoll reactor would search all its
        # descriptors for one whose number is gone.
        if self.fileno is not _closed_fileno:
            tcp.Connection.stopReading(self)

    def stopWriting(self) -> None:
        if self.fileno is not _closed_fileno:
            tcp.Connection.stopWriting(self)

    def startReading(self) -> None:
        if not self._is_closed_now:
            tcp.Connection.startReading(self)

    def startWriting(self) -> None:
        if not self._is_closed_now:
            tcp.Connection.startWriting(self)

    def connectionLost(self, reason: Failure) -> None:
        has_layer = self._end_layer()
        tcp.Connection.connectionLost(self, reason)
        if has_layer:
            self._drop_layer()

    def _end_layer(self) -> bool:
        """Whether TLS is spoken. If so and nothing has failed, the layer is told that no more
        comes: it would read on into an error whose traceback holds all of this in a circle. What
        had come it has handed out, and SMTP itself says where something ends.
        """
        if not self.TLS:
            return False
        layer: Any = getattr(self, "protocol", None)
        if layer is not None and layer._handshakeDone:
            layer._lostTLSConnection = True
        return True

    def _drop_layer(self) -> None:
        """What startTLS put into us are methods of the layer, which holds us."""
        for name in ("getHandle", "getPeerCertificate"):
            self.__dict__.pop(name, None)

    def _closeSocket(self, orderly: bool) -> None:
        if self._is_closed_now:
            return
        if orderly:
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ORDERLY)
            except OSError:
                pass  # the peer was quicker
        tcp.Connection._closeSocket(self, orderly)
        self._tell_closed()

    def _tell_closed(self) -> None:
        told, self.on_closed = self.on_closed, None
        if told is not None:
            told(self)


def _closed_fileno() -> int:
    return -1


# --- the reactor's loop -----------------------------------------------------------------------


def hasten(reactor: Any) -> None:
    """Let the epoll reactor read from associations without a log context around each event.

    Nothing of ours reads that context, and it was 8 % of the instructions of a relayed message
    (benchmarks/instructions.py, 2026-11). Other descriptors and other reactors go on as they did.
    And let threads wake it only when it sleeps: see Turns.
    """
    if isinstance(reactor, epollreactor.EPollReactor):
        turning: Any = reactor
        turns = Turns(reactor)
        turning.doIteration = partial(do_poll, reactor, turns)
        turning.wakeUp = turns.wake


class Turns:
    """Whether the reactor sleeps, or may be about to.

    A thread that hands over a result (`callFromThread`) puts it into the queue and then asks; the
    reactor says that it sleeps and then looks into the queue: one of them sees the other. An awake
    reactor takes the queue at the end of its turn, so the octet in its pipe would only cost both
    a system call and the interpreter's lock.
    """

    __slots__ = ("_wake", "is_asleep")

    def __init__(self, reactor: Any) -> None:
        self._wake: Callable[[], None] = reactor.wakeUp
        self.is_asleep = True
        """Also before the first turn."""

    def wake(self) -> None:
        """On any thread."""
        if self.is_asleep:
            self._wake()


def do_poll(reactor: Any, turns: Turns, timeout: float | None) -> None:
    """EPollReactor.doPoll, with a shorter way for what associations read."""
    selectables = reactor._selectables
    turns.is_asleep = True
    if reactor.threadCallQueue:
        timeout = 0.0
    try:
        ready = reactor._poller.poll(-1 if timeout is None else timeout, len(selectables))
    except InterruptedError:
        return
    finally:
        turns.is_asleep = False
    for fd, event in ready:
        selectable = selectables.get(fd)
        if event == _READABLE and isinstance(selectable, _AssociationTransport):
            why: Any = None
            try:
                why = selectable.doRead()
            except BaseException as fault:
                log.err()
                why = fault
            if why:
                reactor._disconnectSelectable(selectable, why, True)
        elif selectable is not None:
            log.callWithLogger(selectable, reactor._doReadOrWrite, selectable, fd, event)


# --- opening ----------------------------------------------------------------------------------


@implementer(IRevocable, IAssociationEnds)
class AssociationClient(_AssociationTransport, tcp.Client):
    """The initiator's end: a tcp.Client whose socket is prepared before it is bound."""

    connector: AssociationConnector
    _is_refused = False
    _made: socket.socket | None = None

    def createInternetSocket(self) -> socket.socket:
        connector = self.connector
        made = connector.make_socket(self.addressFamily, self.socketType)
        made.setblocking(False)
        self._made = made
        connector.options.apply(made, connecting=True)
        return made

    def failIfNotConnected(self, err: Any) -> None:
        if self.connected or self.disconnected or not hasattr(self, "connector"):
            return
        if self._made is not None and not hasattr(self, "socket"):
            self._made.close()  # its bind failed, and Twisted forgets it open
            self._tell_closed()
        client: Any = tcp.Client
        client.failIfNotConnected(self, err)

    def _connectDone(self) -> None:
        # The socket is connected, no protocol exists: the one place where nothing can have been
        # sent yet. What `admit` raises is the reason that the caller hears.
        try:
            self.connector.admit(self)
        except Exception as fault:
            self._is_refused = True
            self.failIfNotConnected(fault)
            return
        tcp.Client._connectDone(self)
        self.connector.established()

    def _closeSocket(self, orderly: bool) -> None:
        _AssociationTransport._closeSocket(self, orderly and not self._is_refused)

    def close_now(self) -> None:
        if not self.connected and not self.disconnected and hasattr(self, "connector"):
            self._is_refused = True
            self.failIfNotConnected(error.ConnectionAborted())
            self._tell_closed()
        else:
            _AssociationTransport.close_now(self)

    def connectionLost(self, reason: Failure) -> None:
        if self._is_closed_now:
            # Twisted takes a client without `connected` for one that never was, and would tell
            # its protocol nothing.
            self.connected = 1
        connector = self.connector
        has_layer = self._end_layer()
        tcp.Client.connectionLost(self, reason)
        if has_layer:
            self._drop_layer()
        # They hold each other, and with them whatever the association had: a circle that would be
        # found late (`tap` has circles looked for seldom). Measured: 18 KiB each, benchmarks/
        # backlog.py, 2026-11.
        connector.transport = None
        del self.connector


class AssociationConnector(tcp.Connector):
    """Makes AssociationClients. `admit(client)` looks at the connected socket and may raise;
    `established()` hears that the protocol has its transport.
    """

    def __init__(
        self,
        host: str,
        port: int,
        factory: Any,
        *,
        timeout: float,
        bind_address: tuple[str, int],
        reactor: Any,
        options: SocketOptions,
        make_socket: SocketMaker,
        admit: Callable[[AssociationClient], None],
        established: Callable[[], None],
    ) -> None:
        tcp.Connector.__init__(self, host, port, factory, timeout, bind_address, reactor)
        self.options = options
        self.make_socket = make_socket
        self.admit = admit
        self.established = established

    def _makeTransport(self) -> AssociationClient:
        made: Any = AssociationClient  # Twisted's constructor has no annotations
        return cast(
            AssociationClient, made(self.host, self.port, self.bindAddress, self, self.reactor)
        )


# --- accepting --------------------------------------------------------------------------------


@implementer(IRevocable, IAssociationEnds)
class AssociationServer(_AssociationTransport, tcp.Server):
    """The responder's end. Its options came with the listening socket."""


class _LaterLog:
    """Keeps what Twisted says about running out of descriptors until one is free again."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, **values: object) -> None:
        self.lines.append(text.format(**values))


@implementer(IRevocable)
class AssociationPort(tcp.Port):
    """A listening port on one address which judges each socket before a protocol exists.

    `admit(socket, peer_address)` answers a protocol, or None to reset the connection; `accepted`
    hears of the transport before the protocol does. `complain(text)` gets what went wrong.
    """

    transport = AssociationServer

    def __init__(
        self,
        port: int,
        backlog: int,
        interface: str,
        reactor: Any,
        *,
        options: SocketOptions,
        make_socket: SocketMaker,
        admit: Callable[[socket.socket, tuple[Any, ...]], IProtocol | None],
        accepted: Callable[[AssociationServer, IProtocol], None],
        complain: Callable[[str], None],
    ) -> None:
        tcp.Port.__init__(self, port, cast(Any, _PortName()), backlog, interface, reactor)
        self._options = options
        self._make_socket = make_socket
        self._admit = admit
        self._accepted = accepted
        self._complain = complain

    def createInternetSocket(self) -> socket.socket:
        made = self._make_socket(self.addressFamily, self.socketType)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.addressFamily == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._options.apply(made, connecting=False)
        return made

    def doRead(self) -> None:
        log = _LaterLog()
        accepted = 0
        accepts = range(self.numberAccepts)
        try:
            for sock, peer in tcp._accept(log, accepts, self.socket, tcp._reservedFD):
                accepted += 1
                self._take(sock, peer)
                if not self.connected:
                    break  # revoked by what this one brought to light
        except OSError as fault:
            if fault.errno != errno.EBADF:
                self._complain(f"accept failed: {fault}")
        self.numberAccepts = (
            self.numberAccepts + 20 if accepted == len(accepts) else max(1, accepted)
        )
        for line in log.lines:
            self._complain(line)

    def _take(self, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        try:
            protocol = self._admit(sock, peer)
            if protocol is None:
                sock.close()  # with the inherited linger: a reset
                return
            self.sessionno += 1
            server = AssociationServer(sock, protocol, peer, self, self.sessionno, self.reactor)
        except Exception as fault:
            sock.close()
            self._complain(f"an accepted connection was dropped: {fault}")
            return
        try:
            self._accepted(server, protocol)
            protocol.makeConnection(server)
        except Exception as fault:
            server.close_now()
            self._complain(f"an accepted connection was dropped: {fault}")

    def revoke(self) -> None:
        """IRevocable: stop listening now."""
        close_port(self)


def close_port(port: Any) -> None:
    """Stop listening now; Twisted's own stopListening closes in a later turn of the loop."""
    if not port.connected:
        return
    port.disconnecting = True
    port.stopReading()
    reason = Failure(main.CONNECTION_DONE)
    try:
        port.connectionLost(reason)
    except OSError:
        # A UNIX port removes its file first, and somebody else may have done that.
        if port.connected:
            tcp.Port.connectionLost(port, reason)


class _PortName:
    """Stands where Twisted's port wants a factory; nothing is ever built by it."""

    noisy = False

    def doStart(self) -> None:
        """Nothing to start."""

    def doStop(self) -> None:
        """Nothing to stop."""

    def logPrefix(self) -> str:
        return "association"


# --- services ---------------------------------------------------------------------------------


class ServiceClient(tcp.Client):
    """A TCP connection that carries no mail. A class of its own: the audit net knows it by it."""


class ServiceConnector(tcp.Connector):
    """Makes ServiceClients."""

    def _makeTransport(self) -> ServiceClient:
        made: Any = ServiceClient
        return cast(ServiceClient, made(self.host, self.port, self.bindAddress, self, self.reactor))
