"""Two nodes, one spool, one address: real driver, real log, real interface resource, paper kernel."""

from __future__ import annotations

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.driver import ClaimFacts, Ownership
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.ownership import State
from mta.cluster.standalone import Standalone, StandaloneSettings
from mta.errors import StartRefused, TenureRevoked
from mta.model import Sharing, VirtualServer
from mta.spool.log import LogSpool, LogSpoolSettings
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.kernel import PaperNetlink
from mta.testing.network import MemoryNetwork
from mta.testing.surroundings import (
    MemoryPeer,
    MemorySurroundings,
    virtual_addresses,
)

SERVER = VirtualServer("bridgehead.example.org", virtual_addresses("192.0.2.10"))


class Greeter:
    """A tenant that listens and greets."""

    def __init__(self, here: MemorySurroundings) -> None:
        self.here = here
        self.told: list[str] = []

    def start(self, tenure):
        for address in tenure.addresses:
            self.here.doors.listen(tenure, address, 25, self.build, name="smtp", backlog=5)
        return succeed(None)

    def build(self, peer):
        greeter = MemoryPeer()
        greeter.connectionMade = lambda: greeter.say(f"220 {self.here.node}\r\n".encode())
        return greeter

    def suspend(self, reason) -> None:
        self.told.append("suspend")

    def drain(self, deadline):
        return succeed(None)

    def stop(self, reason) -> None:
        self.told.append("stop")


class Node:
    """One node of the cluster: its own kernel and network, a shared disk and clock."""

    def __init__(
        self, name: str, clock, disk, resource: str = "interface", directory: str = "/spool"
    ) -> None:
        self.here = MemorySurroundings(
            clock=clock, network=MemoryNetwork(clock), disk=disk, node=name
        )
        self.here.virtual_server = SERVER
        self.kernel = PaperNetlink(self.here.doors)
        self.kernel.link(2, "eth0")
        if resource == "interface":
            self.resource = InterfaceResource(
                InterfaceSettings(),
                self.here,
                open_socket=self.kernel.open,
                boot_id=lambda: f"boot-{name}",
            )
        else:
            self.resource = Standalone(
                StandaloneSettings(), self.here, lock=lambda _descriptor: True
            )
            self.resource.lock_in(directory)
        self.resource.prepare(SERVER)
        self.spool = LogSpool(
            LogSpoolSettings(
                directory=directory,
                sharing=Sharing.SAME_KERNEL,
                initialise=directory == "/spool",
                reserve=1 << 20,
                segment_size=64 << 10,
                first_segment_size=64 << 10,
            ),
            self.here,
        )
        self.tenant = Greeter(self.here)
        self.fatal: list[tuple[int, str]] = []
        self.ownership = Ownership(
            self.resource,
            self.spool,
            self.tenant,
            self.here.doors,
            clock,
            self.here.telemetry,
            SERVER,
            ClaimFacts(name, f"boot-{name}", 0.0, "0", "digest"),
            InterfaceSettings(),
            jitter=lambda: 0.0,
        )
        self.ownership.on_fatal(lambda code, reason: self.fatal.append((code, reason)))

    def start(self) -> None:
        self.ownership.start()
        self.settle()

    def settle(self) -> None:
        for _ in range(4):
            self.kernel.deliver()
            self.here.advance()

    def address(self, here: bool) -> None:
        if here:
            self.kernel.add("192.0.2.10")
        else:
            self.kernel.remove("192.0.2.10")
        self.settle()

    def greeting(self) -> bytes:
        peer = self.here.network.dial("192.0.2.10", 25)
        self.here.advance()
        return peer.take()

    @property
    def state(self) -> State:
        return self.ownership.state


class TwoNodes(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.disk = ForgetfulDisk()
        self.disk.mkdir("/spool")
        self.a, self.b = Node("a", self.clock, self.disk), Node("b", self.clock, self.disk)
        self.a.start()
        self.b.start()

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
            self.a.settle()
            self.b.settle()

    def again(self, node: Node) -> Node:
        """The next process of a node, whose addresses stayed where they were."""
        started = Node(node.here.node, self.clock, self.disk)
        started.kernel.links, started.kernel.addresses = node.kernel.links, node.kernel.addresses
        started.start()
        return started

    def test_standby_is_health(self) -> None:
        """Without the address nobody listens, nobody has an epoch, and nothing fails."""
        self.pass_time(30)
        self.assertEqual((self.a.state, self.b.state), (State.STANDBY, State.STANDBY))
        self.assertEqual(self.a.greeting(), b"")
        self.assertEqual(self.successResultOf(self.a.spool.inspect()), ())
        self.assertIn("192.0.2.10: not on any interface of this node", self.a.ownership.explain())

    def test_first_owner(self) -> None:
        """When the address arrives, its node greets, and the other stands by."""
        self.a.address(True)
        self.assertEqual(self.a.state, State.ONLINE)
        self.assertEqual(self.a.greeting(), b"220 a\r\n")
        self.assertEqual((self.b.state, self.b.greeting()), (State.STANDBY, b""))

    def test_moved(self) -> None:
        """The address moves: the new owner greets under a higher epoch, the old one aborts all."""
        self.a.address(True)
        peer = self.a.here.network.dial("192.0.2.10", 25)
        former = self.a.ownership.tenure
        self.a.address(False)
        self.assertFalse(peer.is_open)
        self.assertEqual(self.a.state, State.SUSPENDED)
        self.b.address(True)
        self.assertEqual(self.b.greeting(), b"220 b\r\n")
        self.assertEqual(self.b.ownership.tenure.epoch, 2)
        self.pass_time(0.5)
        self.assertEqual(self.a.fatal[0][0], 75)
        self.assertRaises(TenureRevoked, former.check)

    def test_on_both(self) -> None:
        """Both nodes hold the address (a dead keepalived): the newer owner's epoch ends the older
        within 250 ms, and the address that was left over does not win it back.
        """
        self.a.address(True)
        peer = self.a.here.network.dial("192.0.2.10", 25)
        self.b.address(True)
        self.assertEqual(self.b.greeting(), b"220 b\r\n")
        self.pass_time(0.25)
        self.assertFalse(peer.is_open)
        self.b_stays()

    def test_on_both_after_a_flap(self) -> None:
        """The owner's address went and came back under its epoch, and then lies on both nodes: what
        the former owner served with last is used like what it claimed with. One takeover, not two.
        """
        self.a.address(True)
        for _ in range(2):
            self.a.address(False)
            self.pass_time(1)
            self.a.address(True)
        self.b.address(True)
        self.assertEqual(self.b.greeting(), b"220 b\r\n")
        self.pass_time(0.25)
        self.b_stays()

    def b_stays(self) -> None:
        """Node a begins anew with the address on both nodes, and waits: no second takeover."""
        self.assertEqual(self.a.fatal[0][0], 75)
        again = self.again(self.a)
        for _ in range(30):
            self.pass_time(1)
            again.settle()
        self.assertEqual(again.state, State.STANDBY)
        self.assertIn("node b holds epoch 2 and is alive", again.ownership.explain())
        self.assertEqual(self.b.greeting(), b"220 b\r\n")

    def test_restarted_after_a_flap(self) -> None:
        """The owner that served with a new instance of its address restarts: it is owner at once."""
        self.a.address(True)
        self.a.address(False)
        self.a.address(True)
        self.a.ownership._pulse.stop()  # kill -9
        again = self.again(self.a)
        self.assertEqual(again.greeting(), b"220 a\r\n")
        self.assertEqual(again.ownership.tenure.epoch, 2)

    def test_accept_finds_it_first(self) -> None:
        """A superseded owner greets nobody, not even before its own next look."""
        self.a.address(True)
        self.b.address(True)
        self.assertEqual(self.a.greeting(), b"")
        self.assertEqual(self.a.fatal[0][0], 75)
        self.assertEqual(self.a.tenant.told, ["stop"])

    def test_dead_owner_left_over(self) -> None:
        """The owner b dies silently: a, whose address was left over, serves after takeover-after."""
        self.a.address(True)
        self.b.address(True)
        self.pass_time(1)
        again = self.again(self.a)
        self.b.ownership._pulse.stop()  # kill -9
        for _ in range(13):
            self.clock.advance(1)
            again.settle()
        self.assertEqual(again.greeting(), b"220 a\r\n")
        self.assertEqual(again.ownership.tenure.epoch, 3)

    def test_graceful(self) -> None:
        """A stop marks the epoch released; a restart on the same address is online at once."""
        self.a.address(True)
        stopped = self.a.ownership.stop("SIGTERM")
        self.a.settle()
        self.successResultOf(stopped)
        (record,) = self.successResultOf(self.b.spool.inspect())
        self.assertTrue(record.released)
        again = self.again(self.a)
        self.assertEqual(again.greeting(), b"220 a\r\n")

    def test_lost_sight_and_back(self) -> None:
        """When netlink breaks the node stands by, and is owner again in the same process."""
        self.a.address(True)
        self.a.kernel.break_down()
        self.a.settle()
        self.assertEqual(self.a.greeting(), b"")
        self.pass_time(3)
        self.assertEqual(self.a.greeting(), b"220 a\r\n")
        self.assertEqual(self.a.ownership.tenure.epoch, 2)
        self.assertEqual(self.a.fatal, [])

    def test_suspended_keeps_the_epoch(self) -> None:
        """An address that is away for less than `grace` costs the associations, not the epoch."""
        self.a.address(True)
        for _ in range(3):
            self.a.address(False)
            self.assertEqual(self.a.greeting(), b"")
            self.pass_time(5)
            self.a.address(True)
            self.assertEqual(self.a.greeting(), b"220 a\r\n")
        self.assertEqual(self.a.ownership.tenure.epoch, 1)

    def test_disk_fault_at_publish(self) -> None:
        """A disk that fails while we publish leaves a standby that tries again, and comes online."""
        self.disk.fail("sync")
        self.disk.fail("fsync")
        self.a.address(True)
        self.assertEqual(self.a.state, State.STANDBY)
        self.disk.heal()
        self.pass_time(10)
        self.assertEqual(self.a.greeting(), b"220 a\r\n")


class OneNode(SynchronousTestCase):
    def test_standalone(self) -> None:
        """A single node is online at once and leaves its lock's name in the spool."""
        disk = ForgetfulDisk()
        disk.mkdir("/spool")
        node = Node("a", VirtualClock(), disk, "standalone")
        node.start()
        self.assertEqual(node.greeting(), b"220 a\r\n")
        self.assertIn(b"on a", disk.octets("/spool/owner.lock"))
        stopped = node.ownership.stop("SIGTERM")
        node.settle()
        self.successResultOf(stopped)
        node = Node("a", VirtualClock(), disk, "standalone")
        node.start()
        self.assertEqual(node.ownership.tenure.epoch, 2)

    def test_empty_directory(self) -> None:
        """An empty directory that may be a missing mount ends the process with a name, no loop."""
        disk = ForgetfulDisk()
        disk.mkdir("/mount")
        node = Node("a", VirtualClock(), disk, "standalone", "/mount")
        node.start()
        self.assertEqual(node.greeting(), b"")
        self.assertEqual(node.fatal[0][0], 78)
        self.assertIn("spool /mount is empty: is it mounted?", node.fatal[0][1])

    def test_busy_port(self) -> None:
        """A busy port on a single node ends the process with its reason and exit code."""
        disk = ForgetfulDisk()
        disk.mkdir("/spool")
        node = Node("a", VirtualClock(), disk, "standalone")
        node.here.network.serve("192.0.2.10", 25, MemoryPeer)
        node.start()
        self.assertEqual(node.fatal[0][0], StartRefused("x").exit_code)
        self.assertIn("192.0.2.10:25 is busy", node.fatal[0][1])
        (record,) = self.successResultOf(node.spool.inspect())
        self.assertTrue(record.released)

    def test_killed(self) -> None:
        """After kill -9 the next process of a single node is online at once, and so is that of a
        cluster node whose address stayed: it waits for no heartbeat but its own.
        """
        for resource in ("standalone", "interface"):
            disk = ForgetfulDisk()
            disk.mkdir("/spool")
            clock = VirtualClock()
            for epoch in (1, 2, 3):
                node = Node("a", clock, disk, resource)
                node.start()
                node.address(True)
                self.assertEqual(node.ownership.tenure.epoch, epoch, resource)
                for call in clock.reactor.getDelayedCalls():
                    call.cancel()


class BusyPort(SynchronousTestCase):
    def test_at_a_takeover(self) -> None:
        """Another program has our port when the address arrives: it is named, nothing stays open,
        the epoch is given up and claimed anew until the port is free.
        """
        disk = ForgetfulDisk()
        disk.mkdir("/spool")
        clock = VirtualClock()
        node = Node("a", clock, disk)
        node.start()
        node.here.network.serve("192.0.2.10", 25, MemoryPeer)
        node.address(True)
        self.assertEqual((node.state, node.fatal), (State.STANDBY, []))
        self.assertIn("192.0.2.10:25 is busy", node.ownership.explain())
        self.assertIsNone(node.ownership.tenure)
        before = disk.descriptors
        for _ in range(40):
            clock.advance(0.25)
            node.settle()
        self.assertEqual(node.state, State.STANDBY)
        self.assertLessEqual(disk.descriptors, before)
        del node.here.network.listening["192.0.2.10", 25]
        for _ in range(40):
            clock.advance(0.25)
            node.settle()
        self.assertEqual(node.greeting(), b"220 a\r\n")
        *former, newest = self.successResultOf(node.spool.inspect())
        self.assertTrue(all(record.released for record in former))
        self.assertFalse(newest.released)
