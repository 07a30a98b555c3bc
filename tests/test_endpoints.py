"""The two doors: no association without a tenure, none from another address."""

from __future__ import annotations

import errno
import gc
import os
import socket
import tempfile
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.association.endpoints import Doors
from mta.association.holders import blame, parse_proc_net
from mta.association.services import parse_endpoint
from mta.association.transport import IP_BIND_ADDRESS_NO_PORT
from mta.errors import (
    AddressAway,
    Fenced,
    PluginError,
    StartRefused,
    TenureRevoked,
    TransientFailure,
    WrongSourceAddress,
)
from mta.interfaces import IDescriptorDoor, IDoors, IRevocable
from mta.model import PeerInfo
from mta.telemetry import Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.sockets import PaperKernel
from mta.testing.surroundings import MemoryTenure, virtual_addresses


class Quiet(Protocol):
    association_kind = "smtp"

    def __init__(self, says: bytes = b"") -> None:
        self.says = says
        self.is_lost = False

    def connectionMade(self) -> None:
        if self.says:
            self.transport.write(self.says)

    def connectionLost(self, reason=connectionDone) -> None:
        self.is_lost = True


class DoorsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.kernel = PaperKernel()
        self.reactor = MemoryReactorClock()
        self.telemetry = Telemetry()
        self.doors = Doors(
            self.reactor, VirtualClock(), self.telemetry, make_socket=self.kernel.make
        )
        self.tenure = MemoryTenure()

    def wrong_sources(self) -> dict[str, int]:
        return self.doors.snapshot()["wrong_source"]


class Outwards(DoorsCase):
    def open(self, host: str = "198.51.100.20", protocol: Quiet | None = None):
        self.protocol = protocol or Quiet()
        done = self.doors.connect(self.tenure, host, 25, self.protocol, 30)
        self.reactor.advance(0)
        return done

    def connected(self) -> None:
        sock = self.kernel.sockets[-1]
        sock.connect_result = 0
        (transport,) = self.reactor.writers
        transport.doWrite()

    def test_contract(self) -> None:
        """The doors are what the contract says."""
        verifyObject(IDoors, self.doors)
        verifyObject(IDescriptorDoor, self.doors)
        verifyObject(IDoors, self.doors.granted("x", {"admin"}))
        verifyObject(IDescriptorDoor, self.doors.granted("x", {"admin"}))

    def test_bound_to_the_virtual_address(self) -> None:
        """Every association starts from the virtual address of the far end's family, prepared first."""
        for host, source in (("198.51.100.20", "192.0.2.10"), ("2001:db8::20", "2001:db8::10")):
            done = self.open(host)
            sock = self.kernel.sockets[-1]
            bind = sock.index("bind", source, 0)
            self.assertLess(sock.index("setsockopt", socket.SOL_SOCKET, socket.SO_LINGER), bind)
            self.assertLess(
                sock.index("setsockopt", socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), bind
            )
            self.assertLess(bind, sock.index("connect", host, 25))
            self.assertNoResult(done)
            self.connected()
            self.assertIs(self.successResultOf(done), self.protocol)
            self.assertEqual(self.protocol.transport.getHost().host, source)
        self.assertEqual(self.doors.snapshot()["associations"], {"smtp/out": 2})

    def test_wrong_source(self) -> None:
        """A socket that bears the node's address is reset before a byte leaves, counted and named."""
        done = self.open(protocol=Quiet(b"EHLO"))
        self.kernel.source = "192.0.2.1"
        self.connected()
        fault = self.failureResultOf(done, WrongSourceAddress).value
        self.assertIn("192.0.2.1", str(fault))
        sock = self.kernel.sockets[-1]
        self.assertEqual(
            (bytes(sock.sent), sock.is_closed, sock.closes_with_reset), (b"", True, True)
        )
        self.assertIsNone(self.protocol.transport)
        self.assertEqual(self.wrong_sources(), {"in": 0, "out": 1})
        self.assertEqual(self.tenure.adopted, [])

    def test_missing_family(self) -> None:
        """A family without a virtual address is refused with its name; no socket is made."""
        self.tenure = MemoryTenure(addresses=virtual_addresses("192.0.2.10"))
        self.assertIn(
            "IPv6", str(self.failureResultOf(self.open("2001:db8::20"), TransientFailure).value)
        )
        self.assertEqual(self.kernel.sockets, [])

    def test_address_gone(self) -> None:
        """When the virtual address cannot be bound the connect fails; no other address is taken."""
        self.kernel.bind_errors["192.0.2.10"] = errno.EADDRNOTAVAIL
        fault = self.failureResultOf(self.open(), TransientFailure).value
        self.assertIn("virtual address is not here", str(fault))
        with self.assertRaises(ValueError):
            self.kernel.sockets[-1].index("connect")
        self.assertEqual(self.tenure.adopted, [])
        self.assertTrue(self.kernel.sockets[-1].is_closed)

    def test_refused_and_timeout(self) -> None:
        """A far end that refuses, or says nothing in time, is a transient failure with a reason."""
        done = self.open()
        self.kernel.connect_error = errno.ECONNREFUSED
        (transport,) = self.reactor.writers
        transport.doWrite()
        self.assertIn("connection refused", str(self.failureResultOf(done, TransientFailure).value))
        self.kernel.connect_error = 0
        done = self.open()
        self.reactor.advance(29.9)
        self.assertNoResult(done)
        self.reactor.advance(0.1)
        self.assertIn("timed out", str(self.failureResultOf(done, TransientFailure).value))
        self.assertTrue(all(s.is_closed for s in self.kernel.sockets))
        self.assertEqual(self.tenure.adopted, [])

    def test_names_are_not_addresses(self) -> None:
        """A host name is refused: names are resolved before, by the resolver."""
        self.failureResultOf(self.open("mx.example.org"), TransientFailure)
        self.assertEqual(self.kernel.sockets, [])

    def test_epoch_read_before_and_after(self) -> None:
        """The epoch is read again when the far end has answered; a superseded owner sends nothing."""
        done = self.open(protocol=Quiet(b"EHLO"))
        self.assertEqual(self.tenure.checks, 1)
        self.tenure.fence()
        self.connected()
        self.failureResultOf(done, Fenced)
        self.assertEqual(bytes(self.kernel.sockets[-1].sent), b"")
        self.assertTrue(self.kernel.sockets[-1].closes_with_reset)
        self.failureResultOf(self.open(), Fenced)
        self.assertEqual(len(self.kernel.sockets), 1)

    def test_revoked_while_connecting(self) -> None:
        """Revoking reaches a connect that is under way: closed at once, heard of in a later turn."""
        done = self.open()
        self.assertEqual(len(self.tenure.adopted), 1)
        self.tenure.revoke()
        self.assertTrue(self.kernel.sockets[-1].is_closed)
        self.assertNoResult(done)
        self.reactor.advance(0)
        self.failureResultOf(done, TenureRevoked)
        self.reactor.advance(60)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_revoked_and_cancelled(self) -> None:
        """Whoever is about to hear that the tenure ended may give up in the same turn."""
        done = self.open()
        self.tenure.revoke()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.reactor.advance(0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_revoked_while_open(self) -> None:
        """Revoking closes an open association with a reset before it returns."""
        done = self.open()
        self.connected()
        self.successResultOf(done)
        self.tenure.revoke()
        sock = self.kernel.sockets[-1]
        self.assertTrue(sock.is_closed and sock.closes_with_reset)
        self.assertFalse(self.protocol.is_lost)
        self.reactor.advance(0)
        self.assertTrue(self.protocol.is_lost)
        self.assertEqual(self.doors.snapshot()["associations"], {"smtp/out": 0})
        self.failureResultOf(self.open(), TenureRevoked)

    def test_cancel(self) -> None:
        """Whoever no longer wants an association cancels it, and its socket is closed."""
        done = self.open()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(self.kernel.sockets[-1].is_closed)
        self.assertEqual(self.tenure.adopted, [])
        self.reactor.advance(60)

    def test_disowned(self) -> None:
        """An association that has ended is no longer the tenure's."""
        done = self.open()
        self.connected()
        self.successResultOf(done)
        self.assertEqual(len(self.tenure.adopted), 1)
        self.protocol.transport.loseConnection()
        (transport,) = self.reactor.writers
        transport.connectionLost(connectionDone)
        self.assertEqual(self.tenure.adopted, [])
        self.assertEqual(self.doors.snapshot()["associations"], {"smtp/out": 0})

    def test_leaves_no_circle(self) -> None:
        """What has ended is freed in that moment: nobody has to look for it."""
        done = self.open()
        self.connected()
        self.successResultOf(done)
        self.protocol.transport.loseConnection()
        (transport,) = self.reactor.writers
        self.reactor.removeAll()
        transport.connectionLost(connectionDone)
        ended = [weakref.ref(it) for it in (transport, self.protocol)]
        gc.disable()
        self.addCleanup(gc.enable)
        del transport, self.protocol, done
        self.assertEqual([gone() for gone in ended], [None, None])


class Inwards(DoorsCase):
    def setUp(self) -> None:
        super().setUp()
        self.built: list[tuple[PeerInfo, Quiet | None]] = []
        self.wanted = True

    def build(self, peer: PeerInfo) -> Quiet | None:
        self.built.append((peer, Quiet(b"220 hello\r\n") if self.wanted else None))
        return self.built[-1][1]

    def listen(self, which: int = 0):
        port = self.doors.listen(
            self.tenure, self.tenure.addresses[which], 25, self.build, name="smtp", backlog=9
        )
        self.listening = self.kernel.sockets[-1]
        return port

    def arrive(self, host: str = "198.51.100.7"):
        taken = self.kernel.arrive(self.listening, host)
        (port,) = [r for r in self.reactor.readers if r.socket is self.listening]
        port.doRead()
        return taken

    def test_accept(self) -> None:
        """A peer is greeted on the virtual address; its options came with the listening socket."""
        self.listen()
        self.assertEqual(self.listening.bound, ("192.0.2.10", 25))
        self.assertLess(
            self.listening.index("setsockopt", socket.SOL_SOCKET, socket.SO_LINGER),
            self.listening.index("bind"),
        )
        taken = self.arrive()
        peer, protocol = self.built[0]
        self.assertEqual(
            (
                peer.association,
                peer.host,
                peer.port,
                peer.local_host,
                peer.local_port,
                peer.listener,
            ),
            ("smtp/in/1", "198.51.100.7", 4321, "192.0.2.10", 25, "smtp"),
        )
        protocol.transport.doWrite()
        self.assertEqual(taken.sent, b"220 hello\r\n")
        self.assertEqual(len(self.tenure.adopted), 2)

    def test_accept_v6(self) -> None:
        """An IPv6 listener takes IPv6 only."""
        self.listen(1)
        self.assertEqual(self.listening.options[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY], 1)
        self.arrive("2001:db8::7")
        self.assertEqual(self.built[0][0].host, "2001:db8::7")
        self.assertEqual(self.built[0][1].transport.getPeer().host, "2001:db8::7")

    def test_wrong_address(self) -> None:
        """A connection that arrived on another address is reset before a protocol exists."""
        self.listen()
        self.kernel.source = "192.0.2.1"
        taken = self.arrive()
        self.assertEqual((self.built, taken.is_closed, taken.closes_with_reset), ([], True, True))
        self.assertEqual(self.wrong_sources(), {"in": 1, "out": 0})

    def test_superseded(self) -> None:
        """A superseded owner accepts nothing: no greeting, a reset."""
        self.listen()
        self.tenure.fence()
        taken = self.arrive()
        self.assertEqual((self.built, taken.closes_with_reset, taken.is_closed), ([], True, True))

    def test_unwanted(self) -> None:
        """A connection that the builder does not want is reset; the next one is served."""
        self.listen()
        self.wanted = False
        self.assertTrue(self.arrive().is_closed)
        self.wanted = True
        self.assertFalse(self.arrive().is_closed)

    def test_builder_breaks(self) -> None:
        """A fault in one connection's protocol is named, and the others are still accepted."""
        self.listen()

        def broken(peer: PeerInfo) -> Quiet:
            raise RuntimeError("broken")

        good, self.build = self.build, broken
        port = next(iter(self.reactor.readers))
        port._admit.__self__._build = broken
        events: list[object] = []
        self.telemetry.attach(events.append)
        self.assertTrue(self.arrive().is_closed)
        self.assertIn("broken", events[0].text)
        port._admit.__self__._build = good
        self.assertFalse(self.arrive().is_closed)

    def test_revoked(self) -> None:
        """Revoking closes the port and every association before it returns."""
        self.listen()
        taken = self.arrive()
        self.tenure.revoke()
        self.assertTrue(self.listening.is_closed and taken.is_closed and taken.closes_with_reset)
        self.assertEqual(self.reactor.readers, set())
        self.reactor.advance(0)
        self.assertEqual(self.doors.snapshot()["associations"], {"smtp/in": 0})
        with self.assertRaises(TenureRevoked):
            self.listen()

    def test_revoked_in_the_midst_of_accepting(self) -> None:
        """What the first of two waiting connections brings to light stops the second."""
        self.listen()

        def ends(peer: PeerInfo) -> None:
            self.tenure.revoke()

        port = next(iter(self.reactor.readers))
        port._admit.__self__._build = ends
        first, second = self.kernel.arrive(self.listening), self.kernel.arrive(self.listening)
        port.doRead()
        self.assertTrue(first.is_closed)
        self.assertEqual(self.listening.waiting, [second])
        self.assertTrue(self.listening.is_closed)

    def refused(
        self, number: int, kind: type[AddressAway | StartRefused] = StartRefused
    ) -> AddressAway | StartRefused:
        self.kernel.bind_errors["192.0.2.10"] = number
        with self.assertRaises(kind) as caught:
            self.listen()
        self.assertEqual(self.tenure.adopted, [])
        self.assertTrue(self.kernel.sockets[-1].is_closed)
        return caught.exception

    def test_busy(self) -> None:
        """A busy port says who has it as far as can be seen, and how to choose another."""
        fault = self.refused(errno.EADDRINUSE)
        self.assertIn("smtp cannot listen on 192.0.2.10:25", fault.what)
        self.assertIn("taken by", fault.why)
        self.assertIn("port:", fault.remedy)
        self.assertEqual(fault.exit_code, os.EX_UNAVAILABLE)

    def test_not_permitted(self) -> None:
        """A port under 1024 without the capability names three remedies."""
        fault = self.refused(errno.EACCES)
        for remedy in ("AmbientCapabilities", "ip_unprivileged_port_start", "from 1024"):
            self.assertIn(remedy, fault.remedy)
        self.assertEqual(fault.exit_code, os.EX_NOPERM)

    def test_absent(self) -> None:
        """An address that is not here is named."""
        self.assertIn("not on an interface", self.refused(errno.EADDRNOTAVAIL, AddressAway).why)

    def test_try_bind(self) -> None:
        """A real bind is tried and closed; its error is the kernel's."""
        self.doors.try_bind(self.tenure.addresses[0])
        self.assertTrue(self.kernel.sockets[-1].is_closed)
        self.kernel.bind_errors["2001:db8::10"] = errno.EADDRNOTAVAIL
        with self.assertRaises(OSError):
            self.doors.try_bind(self.tenure.addresses[1])
        self.assertTrue(self.kernel.sockets[-1].is_closed)


class Services(DoorsCase):
    def test_purposes(self) -> None:
        """A plugin uses only the purposes that it was granted; each use is counted and shown."""
        doors = self.doors.granted("delay", {"resolver"})
        with self.assertRaises(PluginError) as caught:
            doors.service_connect("authority", "tcp:192.0.2.1:2379", Quiet())
        self.assertIn("granted resolver", str(caught.exception))
        with self.assertRaises(PluginError):
            self.doors.granted("delay", {"mail"})
        with self.assertRaises(PluginError):
            self.doors.service_listen("mail", "tcp:127.0.0.1:1", Factory())
        for spoken in (
            lambda: doors.service_listen("admin", "tcp:127.0.0.1:1", Factory()),
            lambda: doors.service_datagram("admin", Quiet()),
            lambda: doors.watch_descriptor("admin", None),
        ):
            self.assertRaises(PluginError, spoken)
        self.assertEqual(self.doors.snapshot()["services"], [])

    def test_hosts_of_policies_are_counted_together(self) -> None:
        """As many hosts as others publish policies at are one line of `mta status`, not thousands."""
        for number in range(3):
            endpoint = f"tcp:198.51.100.{number}:443"
            asked = self.doors.service_connect("policy-fetch", endpoint, Quiet())
            asked.addErrback(lambda _: None)
        (shown,) = self.doors.snapshot()["services"]
        self.assertEqual((shown["purpose"], shown["endpoint"]), ("policy-fetch", "tcp"))

    def test_listen_and_revoke(self) -> None:
        """A service listener is counted while it is open."""
        port = self.doors.service_listen("admin", "tcp:[::1]:8025", Factory())
        verifyObject(IRevocable, port)
        self.assertEqual(self.reactor.tcpServers[0][0::3], (8025, "::1"))
        (shown,) = self.doors.snapshot()["services"]
        self.assertEqual(
            (shown["purpose"], shown["endpoint"], shown["open"]), ("admin", "tcp:[::1]:8025", 1)
        )
        port.revoke()
        port.revoke()
        self.assertEqual(self.doors.snapshot()["services"][0]["open"], 0)

    def test_unix_path(self) -> None:
        """A UNIX path that the kernel would cut is refused by name, with its length."""
        with self.assertRaises(StartRefused) as caught:
            self.doors.service_listen("admin", "unix:/" + "x" * 107, Factory())
        self.assertIn("108 octets", caught.exception.why)
        self.assertEqual(parse_endpoint("unix:/" + "x" * 106)[0], "unix")

    def test_left_over_socket_file(self) -> None:
        """A socket file that nobody listens on is replaced; a living one, or a file, is refused."""
        directory = tempfile.mkdtemp()
        path = os.path.join(directory, "control.sock")
        self.addCleanup(os.rmdir, directory)
        living = socket.socket(socket.AF_UNIX)
        living.bind(path)
        living.listen(1)
        with self.assertRaises(StartRefused) as caught:
            self.doors.service_listen("admin", f"unix:{path}", Factory(), 0o660)
        self.assertIn("another process listens", caught.exception.why)
        living.close()
        self.doors.service_listen("admin", f"unix:{path}", Factory(), 0o660)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(self.reactor.unixServers[0][3], 0o660)
        with open(path, "w") as kept:
            kept.write("precious")
        self.addCleanup(os.unlink, path)
        with self.assertRaises(StartRefused) as caught:
            self.doors.service_listen("admin", f"unix:{path}", Factory())
        self.assertIn("not a socket", caught.exception.why)

    def test_watch(self) -> None:
        """A descriptor is watched until that is revoked."""

        class Descriptor:
            def logPrefix(self) -> str:
                return "netlink"

        watched = Descriptor()
        watching = self.doors.watch_descriptor("authority", watched)
        self.assertEqual(self.reactor.readers, {watched})
        watching.revoke()
        watching.revoke()
        self.assertEqual(self.reactor.readers, set())

    def test_endpoints(self) -> None:
        """An endpoint is an IP address and port, or a path; anything else is refused by name."""
        self.assertEqual(parse_endpoint("tcp:localhost:80"), ("tcp", "127.0.0.1", 80))
        self.assertEqual(parse_endpoint("tcp:[2001:db8::1]:80"), ("tcp", "2001:db8::1", 80))
        self.assertEqual(parse_endpoint("tcp:2001:db8::1:80"), ("tcp", "2001:db8::1", 80))
        for wrong in ("tcp:etcd.example.org:2379", "tcp:192.0.2.1", "", "unix:", "tcp:192.0.2.1:x"):
            self.assertRaises(StartRefused, parse_endpoint, wrong)


PROC_NET = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0A00000A:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0A00000A:0019 0100000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1
   2: 00000000:0A4B 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0 100 0 0 10 0
"""


class WhoHoldsThePort(SynchronousTestCase):
    def setUp(self) -> None:
        self.proc = tempfile.mkdtemp()
        self.addCleanup(lambda: __import__("shutil").rmtree(self.proc))
        os.makedirs(f"{self.proc}/net")
        os.makedirs(f"{self.proc}/812/fd")
        with open(f"{self.proc}/net/tcp", "w") as table:
            table.write(PROC_NET)
        with open(f"{self.proc}/812/comm", "w") as comm:
            comm.write("mas\x1bter\n")
        os.symlink("socket:[4711]", f"{self.proc}/812/fd/7")

    def test_named(self) -> None:
        """The holder is named by pid and command; escapes in its name do not reach a terminal."""
        self.assertEqual(
            blame(virtual_addresses("10.0.0.10")[0].bind, 25, self.proc),
            "pid 812 (mas?ter) on 10.0.0.10, uid 0",
        )

    def test_as_far_as_seen(self) -> None:
        """Another user's process is said to be that, with what would name it."""
        text = blame(virtual_addresses("10.0.0.10")[0].bind, 0x0A4B, self.proc)
        self.assertIn("uid 1000 on 0.0.0.0", text)
        self.assertIn("ss -tlnp", text)
        self.assertIn("just ended", blame(virtual_addresses("10.0.0.10")[0].bind, 26, self.proc))
        self.assertIn(
            "not readable", blame(virtual_addresses("2001:db8::1")[0].bind, 25, self.proc)
        )

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.text(max_size=200) | st.just(PROC_NET.splitlines()[1]), max_size=6))
    def test_any_table(self, lines: list[str]) -> None:
        """Rubbish in /proc/net/tcp is passed over."""
        for entry in parse_proc_net(lines):
            self.assertGreaterEqual(entry.port, 0)
