"""The transports of associations: what a socket carries before its first byte, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import inspect
import os
import select
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import _newtls, abstract, base, epollreactor, error, main, tcp
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols import tls
from twisted.trial.unittest import SynchronousTestCase

from mta.association.tls import _Accepting
from mta.association.transport import (
    IP_BIND_ADDRESS_NO_PORT,
    TCP_USER_TIMEOUT,
    AssociationServer,
    SocketOptions,
    Turns,
    abort_now,
    do_poll,
    hand_over,
    hasten,
    send_now,
)
from mta.model import FourTuple
from mta.testing.certificates import Authority
from mta.testing.sockets import PaperKernel, PaperSocket


class Quiet(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: list[type] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason=connectionDone) -> None:
        self.lost.append(reason.type)


class TwistedAsWeKnowIt(SynchronousTestCase):
    """When one of these fails, mta/association/transport.py must be read again."""

    def test_signatures(self) -> None:
        """Twisted's internals take the arguments that we give them."""
        known = {
            tcp.Connection.__init__: ["self", "skt", "protocol", "reactor"],
            tcp.Client.__init__: ["self", "host", "port", "bindAddress", "connector", "reactor"],
            tcp.Connector.__init__: [
                "self",
                "host",
                "port",
                "factory",
                "timeout",
                "bindAddress",
                "reactor",
            ],
            tcp.Connector._makeTransport: ["self"],
            tcp.Port.__init__: ["self", "port", "factory", "backlog", "interface", "reactor"],
            tcp.Port.createInternetSocket: ["self"],
            tcp.Port.connectionLost: ["self", "reason"],
            tcp.Server.__init__: [
                "self",
                "sock",
                "protocol",
                "client",
                "server",
                "sessionno",
                "reactor",
            ],
            tcp.Client.createInternetSocket: ["self"],
            tcp.Client._connectDone: ["self"],
            tcp.Client.failIfNotConnected: ["self", "err"],
            tcp.Client.connectionLost: ["self", "reason"],
            tcp.Connection._closeSocket: ["self", "orderly"],
            tcp.Connection.connectionLost: ["self", "reason"],
            tcp.Connection.writeSomeData: ["self", "data"],
            tcp._accept: ["logger", "accepts", "listener", "reservedFD"],
            base.BaseConnector.stopConnecting: ["self"],
        }
        for function, parameters in known.items():
            self.assertEqual(list(inspect.signature(function).parameters), parameters, function)

    def test_attributes(self) -> None:
        """The attributes that direct send and abort read mean what they meant."""
        made = abstract.FileDescriptor(MemoryReactorClock())
        self.assertEqual(
            (
                made.dataBuffer,
                made._tempDataLen,
                made._tempDataBuffer,
                made.connected,
                made.disconnected,
                made.disconnecting,
            ),
            (b"", 0, [], 0, 0, 0),
        )
        self.assertIs(tcp.Connection.TLS, False)
        self.assertIs(tcp.Connection._aborting, False)
        self.assertTrue(tcp.Connection._shouldShutdown)
        self.assertTrue(hasattr(tcp, "_reservedFD"))
        source = inspect.getsource(abstract.FileDescriptor.doWrite)
        self.assertIn("self.writeSomeData(", source)
        self.assertIn("_tempDataBuffer", inspect.getsource(abstract.FileDescriptor.write))
        self.assertIn("self.createInternetSocket()", inspect.getsource(tcp.Client.__init__))
        self.assertIn("self._closeSocket(", inspect.getsource(tcp.Connection.connectionLost))
        self.assertIn("self._makeTransport()", inspect.getsource(base.BaseConnector.connect))
        self.assertIn("self._connectDone()", inspect.getsource(tcp.Client.doConnect))
        self.assertIn("self.numberAccepts", inspect.getsource(tcp.Port.startListening))

    def test_turning(self) -> None:
        """The epoll reactor's loop is the one that ours stands for."""
        epoll, source = epollreactor.EPollReactor, inspect.getsource
        self.assertIn("self.doIteration(", source(base.ReactorBase.mainLoop))
        self.assertIs(epoll.doIteration, epoll.doPoll)
        for word in ("self._poller.poll(timeout, len(self._selectables))", "self._selectables[fd]",
                     "log.callWithLogger(selectable, _drdw, selectable, fd, event)"):  # fmt: skip
            self.assertIn(word, source(epoll.doPoll))
        from_thread = source(base.ReactorBase.callFromThread)
        self.assertLess(from_thread.index("self.threadCallQueue.append("),
                        from_thread.index("self.wakeUp()"))  # fmt: skip
        self.assertIn(
            "self._disconnectSelectable(selectable, why, inRead)", source(epoll._doReadOrWrite)
        )
        self.assertIn("self.socket.recv(self.bufferSize)", source(tcp.Connection.doRead))
        self.assertIn("self.protocol.dataReceived(data)", source(tcp.Connection._dataReceived))

    def test_tls_layer(self) -> None:
        """What we tell the layer above at the end, and take back, is what it looks at and gave."""
        self.assertIs(tls.TLSMemoryBIOProtocol._handshakeDone, False)
        self.assertIs(tls.TLSMemoryBIOProtocol._lostTLSConnection, False)
        source = inspect.getsource(tls.TLSMemoryBIOProtocol.connectionLost)
        self.assertIn("if not self._lostTLSConnection:", source)
        source = inspect.getsource(_newtls.startTLS)
        for name in ("getHandle", "getPeerCertificate"):
            self.assertIn(f"transport.{name} = tlsProtocol.{name}", source)

    def test_kernel_constants(self) -> None:
        """A real socket takes every option that we set."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.addCleanup(made.close)
        SocketOptions().apply(made, connecting=True)
        self.assertEqual(made.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT), 60_000)
        self.assertEqual(made.getsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), 1)
        self.assertEqual(
            made.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8), b"\1\0\0\0\0\0\0\0"
        )
        v6 = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        self.addCleanup(v6.close)
        SocketOptions().apply(v6, connecting=True)
        self.assertEqual(v6.getsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), 1)


class PaperReactor:
    """What `do_poll` asks of the epoll reactor; `ready` is the next answer of its poller."""

    def __init__(self, *selectables: object) -> None:
        self._selectables = dict(enumerate(selectables))
        self._poller = self
        self.threadCallQueue: list[object] = []
        self.woken = 0
        self.while_asleep: Callable[[], object] | None = None
        self.ready: list[tuple[int, int]] | OSError = []
        self.asked: list[tuple[float, int]] = []
        self.ended: list[tuple[object, object, bool]] = []
        self.long_way: list[tuple[object, int]] = []

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self.asked.append((timeout, most))
        if self.while_asleep is not None:
            self.while_asleep()
        if isinstance(self.ready, OSError):
            raise self.ready
        return self.ready

    def wakeUp(self) -> None:
        self.woken += 1

    def _disconnectSelectable(self, selectable: object, why: object, in_read: bool) -> None:
        self.ended.append((selectable, why, in_read))

    def _doReadOrWrite(self, selectable: object, fd: int, event: int) -> None:
        self.long_way.append((selectable, event))


class Turning(SynchronousTestCase):
    """A turn of the reactor's loop as associations have it."""

    def setUp(self) -> None:
        self.socket: PaperSocket = PaperKernel().make(socket.AF_INET, socket.SOCK_STREAM)
        self.protocol = Quiet()
        self.server = AssociationServer(
            self.socket, self.protocol, ("192.0.2.1", 1), None, 1, MemoryReactorClock()
        )
        self.other = abstract.FileDescriptor(MemoryReactorClock())
        self.reactor = PaperReactor(self.server, self.other)
        self.turns = Turns(self.reactor)

    def turn(self, *ready: tuple[int, int]) -> None:
        self.reactor.ready = list(ready)
        do_poll(self.reactor, self.turns, None)

    def test_what_is_read(self) -> None:
        """Octets reach the protocol; the end of them ends the reading side."""
        self.socket.inbox = [b"one", b"two", b""]
        self.turn((0, select.EPOLLIN))
        self.turn((0, select.EPOLLIN))
        self.assertEqual((self.protocol.received, self.reactor.ended), (b"onetwo", []))
        self.turn((0, select.EPOLLIN))
        self.assertEqual(self.reactor.ended, [(self.server, main.CONNECTION_DONE, True)])
        self.assertEqual(self.reactor.asked, [(-1, 2)] * 3)

    def test_nothing_there_after_all(self) -> None:
        """A wake-up for nothing is nothing; a reset ends the association."""
        self.turn((0, select.EPOLLIN))
        self.assertEqual(self.reactor.ended, [])
        self.socket.is_closed = True  # recv fails for good
        self.turn((0, select.EPOLLIN))
        self.assertEqual(self.reactor.ended, [(self.server, main.CONNECTION_LOST, True)])

    def test_a_protocol_that_breaks(self) -> None:
        """A defect ends its own association, and is logged; the others are served."""
        fault = RuntimeError("defect")

        def broken(data: bytes) -> None:
            raise fault

        self.protocol.dataReceived = broken
        self.socket.inbox = [b"one"]
        self.turn((0, select.EPOLLIN), (1, select.EPOLLIN))
        self.assertEqual(self.reactor.ended, [(self.server, fault, True)])
        self.assertEqual(self.reactor.long_way, [(self.other, select.EPOLLIN)])
        self.assertEqual([f.value for f in self.flushLoggedErrors(RuntimeError)], [fault])

    def test_the_long_way(self) -> None:
        """Writing, hanging up and other descriptors are Twisted's; one that has gone is nobody's."""
        both = select.EPOLLIN | select.EPOLLHUP
        self.turn((0, select.EPOLLOUT), (0, both), (1, select.EPOLLIN), (7, select.EPOLLIN))
        self.assertEqual(
            self.reactor.long_way,
            [(self.server, select.EPOLLOUT), (self.server, both), (self.other, select.EPOLLIN)],
        )

    def test_interrupted(self) -> None:
        """A signal is no fault; whatever else the poller says is."""
        self.reactor.ready = InterruptedError(errno.EINTR, "")
        do_poll(self.reactor, self.turns, 1.5)
        self.assertEqual(self.reactor.asked, [(1.5, 2)])
        self.reactor.ready = OSError(errno.EBADF, "")
        with self.assertRaises(OSError):
            do_poll(self.reactor, self.turns, 1.5)

    def test_woken_when_asleep(self) -> None:
        """A thread wakes a reactor that sleeps, or has not begun, and no other."""
        self.turns.wake()
        self.assertEqual(self.reactor.woken, 1)
        self.reactor.while_asleep = self.turns.wake
        self.turn()
        self.assertEqual(self.reactor.woken, 2)
        self.reactor.while_asleep = None
        self.turns.wake()  # in the turn: it looks into the queue before it sleeps
        self.assertEqual(self.reactor.woken, 2)
        self.reactor.threadCallQueue.append("a result")
        self.turn()
        self.assertEqual(self.reactor.asked, [(-1, 2), (0.0, 2)])

    def test_handed_over_while_awake(self) -> None:
        """With the true reactor: what a thread hands over in the middle of a turn is taken in the
        next one, though nobody wrote to the pipe and nothing else is due."""
        reactor: Any = epollreactor.EPollReactor()
        self.addCleanup(reactor._poller.close)
        for descriptor in (reactor.waker.i, reactor.waker.o):
            self.addCleanup(os.close, descriptor)
        reactor._poller = self.reactor
        hasten(reactor)
        taken: list[str] = []
        reactor.doIteration(None)  # nothing is due: until somebody wakes it
        thread = threading.Thread(target=reactor.callFromThread, args=(taken.append, "it"))
        thread.start()
        thread.join()
        self.assertRaises(BlockingIOError, os.read, reactor.waker.i, 1)
        reactor.doIteration(None)
        reactor.runUntilCurrent()
        self.assertEqual(
            ([timeout for timeout, _ in self.reactor.asked], taken), ([-1, 0.0], ["it"])
        )

    def test_other_reactors(self) -> None:
        """They keep their own loop."""
        reactor = MemoryReactorClock()
        hasten(reactor)
        self.assertFalse(hasattr(reactor, "doIteration"))


class DirectSendAndAbort(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        kernel = PaperKernel()
        self.socket: PaperSocket = kernel.make(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.bound = ("192.0.2.10", 25)
        self.socket.peer = ("198.51.100.7", 4321)
        SocketOptions().apply(self.socket, connecting=False)  # as inherited from the listener
        self.protocol = Quiet()
        self.transport = AssociationServer(
            self.socket, self.protocol, ("198.51.100.7", 4321), None, 1, self.reactor
        )
        self.protocol.makeConnection(self.transport)
        self.closed: list[object] = []
        self.transport.on_closed = self.closed.append

    def test_direct(self) -> None:
        """A reply leaves by one system call, without waking the reactor."""
        send_now(self.transport, b"250 ok\r\n")
        self.assertEqual(self.socket.sent, b"250 ok\r\n")
        self.assertEqual(self.reactor.writers, set())

    def test_ends(self) -> None:
        """It says between whom it is, until it is closed: a peer may have to be released."""
        self.assertEqual(self.transport.ends(), FourTuple("192.0.2.10", 25, "198.51.100.7", 4321))
        self.transport.revoke()
        self.assertIsNone(self.transport.ends())

    def test_rest_in_order(self) -> None:
        """What the kernel does not take now follows in order, and so does what comes behind it."""
        self.socket.send_limit = 4
        send_now(self.transport, b"250 ok\r\n")
        send_now(self.transport, b"221 bye\r\n")
        self.assertEqual(self.socket.sent, b"250 ")
        self.assertIn(self.transport, self.reactor.writers)
        self.socket.send_limit = None
        self.transport.doWrite()
        self.assertEqual(self.socket.sent, b"250 ok\r\n221 bye\r\n")
        self.assertEqual(self.reactor.writers, set())
        send_now(self.transport, b"again")
        self.assertTrue(self.socket.sent.endswith(b"again"))

    def test_more_than_a_call_takes(self) -> None:
        """A write over Twisted's limit of one call loses nothing."""
        data = bytes(range(256)) * 1024
        send_now(self.transport, data)
        while self.transport in self.reactor.writers:
            self.transport.doWrite()
        self.assertEqual(bytes(self.socket.sent), data)

    def test_write_error(self) -> None:
        """A peer that is gone is met again by the reactor, in its own turn."""
        self.socket.send_limit = 0

        def gone(data: object) -> int:
            raise ConnectionResetError(104, "reset")

        self.socket.send = gone
        send_now(self.transport, b"250 ok\r\n")
        self.assertEqual(self.protocol.lost, [])
        self.assertIn(self.transport, self.reactor.writers)
        self.assertIsInstance(self.transport.doWrite(), error.ConnectionLost)

    def test_other_transports(self) -> None:
        """A transport that is not ours gets an ordinary write, and an ordinary abort."""
        other = StringTransport()
        send_now(other, b"x")
        self.assertEqual(other.value(), b"x")
        abort_now(other)
        self.assertTrue(other.disconnected)

    def test_abort_now(self) -> None:
        """An abort closes the descriptor, with a reset, before it returns."""
        self.socket.send_limit = 1
        send_now(self.transport, b"never whole")
        abort_now(self.transport)
        self.assertTrue(self.socket.is_closed)
        self.assertTrue(self.socket.closes_with_reset)
        self.assertNotIn(("shutdown", 2), self.socket.calls)
        self.assertEqual(self.closed, [self.transport])
        self.assertEqual((self.reactor.readers, self.reactor.writers), (set(), set()))
        self.assertEqual(self.transport.fileno(), -1)

    def test_protocol_hears_later(self) -> None:
        """Whoever is in the midst of his work is not torn out of it: the loss comes next turn."""
        abort_now(self.transport)
        self.assertEqual(self.protocol.lost, [])
        self.transport.write(b"into nothing")
        send_now(self.transport, b"into nothing")
        self.transport.loseConnection()
        self.transport.abortConnection()
        self.transport.resumeProducing()
        self.assertEqual((self.reactor.readers, self.reactor.writers), (set(), set()))
        self.reactor.advance(0)
        self.assertEqual(self.protocol.lost, [error.ConnectionAborted])
        abort_now(self.transport)
        self.reactor.advance(0)
        self.assertEqual(len(self.protocol.lost), 1)

    def test_orderly_close(self) -> None:
        """An orderly close clears the linger: what was written arrives."""
        self.transport.write(b"221 bye\r\n")
        self.transport.loseConnection()
        self.transport.connectionLost(connectionDone) if self.transport.doWrite() else None
        self.assertEqual(self.socket.sent, b"221 bye\r\n")
        self.assertFalse(self.socket.closes_with_reset)
        self.assertLess(self.socket.index("shutdown"), self.socket.index("close"))
        self.assertEqual(self.closed, [self.transport])

    def test_leaves_no_circle_under_tls(self) -> None:
        """What has ended is freed in that moment, TLS and all, though its peer just went away."""
        directory = self.mktemp()
        os.mkdir(directory)
        pair = Authority().issue(directory, "bridgehead.example.org")
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_chain_file(pair.chain)
        context.use_privatekey_file(pair.key)
        peer = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        peer.set_connect_state()
        self.transport.startTLS(_Accepting(context))
        for _ in range(3):
            with contextlib.suppress(SSL.WantReadError):
                peer.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                self.socket.inbox.append(peer.bio_read(65536))
                self.transport.doRead()
            while self.transport in self.reactor.writers:
                self.transport.doWrite()
            if self.socket.sent:
                peer.bio_write(bytes(self.socket.sent))
                self.socket.sent.clear()
        peer.send(b"NOOP\r\n")
        self.socket.inbox.append(peer.bio_read(65536))
        self.transport.doRead()
        self.assertEqual(self.protocol.received, b"NOOP\r\n")
        self.transport.connectionLost(connectionDone)
        self.assertEqual(self.protocol.lost, [error.ConnectionDone])
        ended = [weakref.ref(it) for it in (self.transport, self.protocol)]
        gc.disable()
        self.addCleanup(gc.enable)
        self.closed.clear()
        del self.transport, self.protocol
        self.assertEqual([gone() for gone in ended], [None, None])

    def test_abort_connection(self) -> None:
        """Twisted's own abort still resets, and is told once."""
        self.transport.abortConnection()
        self.reactor.advance(0)
        self.assertTrue(self.socket.closes_with_reset)
        self.assertEqual(
            (self.closed, self.protocol.lost), ([self.transport], [error.ConnectionAborted])
        )

    def test_hand_over(self) -> None:
        """A second protocol has the transport: what was read too early, what comes, and its end."""
        second = Quiet()
        hand_over(self.transport, second, b"EHLO ")
        self.socket.inbox.append(b"x\r\n")
        self.transport.doRead()
        self.assertEqual((self.protocol.received, second.received), (b"", b"EHLO x\r\n"))
        second.transport.write(b"250 ok\r\n")
        self.transport.doWrite()
        self.assertEqual(self.socket.sent, b"250 ok\r\n")
        abort_now(second.transport)
        self.reactor.advance(0)
        self.assertEqual((self.protocol.lost, second.lost), ([], [error.ConnectionAborted]))

    def test_hand_over_to_one_that_hangs_up(self) -> None:
        """What was read too early is not forced upon a protocol that has closed at once."""

        class Brusque(Quiet):
            def connectionMade(self) -> None:
                abort_now(self.transport)

        second = Brusque()
        hand_over(self.transport, second, b"EHLO x\r\n")
        self.assertEqual((second.received, self.socket.is_closed), (b"", True))

    def test_abort_below_tls(self) -> None:
        """A protocol that sees a TLS layer aborts the descriptor below it."""

        class Layer:
            transport = self.transport

        abort_now(Layer())
        self.assertTrue(self.socket.is_closed)
