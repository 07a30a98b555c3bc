"""`mta probe`: what each level has really seen before it says that the virtual server is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.probe import GREETING_SECONDS, SPOOL_SECONDS, Place, Probed, Prober, Subject
from mta.errors import Fenced, Unavailable
from mta.model import EpochRecord, Health, HealthLevel
from mta.testing.surroundings import MemorySurroundings

NAME = "bridgehead.example.org"
V4, V6 = Place("192.0.2.10", 25), Place("2001:db8::10", 25)


class Server(Protocol):
    """Says `greeting` to whoever connects, and keeps what it hears."""

    greeting = b""
    closes = False
    heard = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        for octet in self.greeting:
            self.transport.write(bytes([octet]))
        if self.closes:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data


class Node:
    """An owner with two addresses that greet as they should, until a test breaks something."""

    def __init__(self) -> None:
        self.world = MemorySurroundings()
        self.levels: list[int] = []
        self.health: Deferred[Health] = succeed(Health(HealthLevel.OK, "both addresses here"))
        self.absence: tuple[int, str] = (0, "")
        self.places = [V4, V6]
        self.epochs = [6, 7]
        self.inspect: Callable[[], Deferred[tuple[EpochRecord, ...]]] = self.records
        self.check: Callable[[], None] = lambda: None
        self.servers: dict[Place, Server] = {}
        for place in self.places:
            self.serve(place, f"220 {NAME} ESMTP ready\r\n".encode())
        self.prober = Prober(
            Subject(
                resource=self.resource,
                absence=lambda: self.absence,
                places=lambda: self.places,
                inspect=lambda: self.inspect(),
                epoch=lambda: 7,
                check=lambda: self.check(),
                network_name=NAME,
            ),
            self.world.doors,
            self.world.clock,
        )

    def serve(self, place: Place, greeting: bytes, *, closes: bool = False) -> None:
        server = self.servers[place] = Server()
        server.greeting, server.closes = greeting, closes
        self.world.doors.network.services[place.endpoint] = Factory.forProtocol(lambda: server)

    def resource(self, level: int) -> Deferred[Health]:
        self.levels.append(level)
        return self.health

    def records(self) -> Deferred[tuple[EpochRecord, ...]]:
        return succeed(tuple(EpochRecord(e, "a", "boot", False, False, 1) for e in self.epochs))

    def probe(self, level: int) -> Probed:
        asked = self.prober.probe(level)
        found: list[Probed] = []
        asked.addCallback(found.append)
        for _ in range(50):
            self.world.advance(0)
        [answer] = found
        return answer


class Levels(SynchronousTestCase):
    def test_shallow(self) -> None:
        """Levels 0 and 1 ask the cluster resource and open nothing."""
        node = Node()
        for level in (0, 1):
            self.assertEqual(Probed("ok", "both addresses here", 0), node.probe(level))
        self.assertEqual([0, 1], node.levels)
        self.assertEqual([b"", b""], [server.heard for server in node.servers.values()])

    def test_greeting(self) -> None:
        """Level 10 connects to every listener at every virtual address, reads the greeting and
        leaves politely.
        """
        node = Node()
        found = node.probe(10)
        text = "192.0.2.10 port 25 greets; 2001:db8::10 port 25 greets"
        self.assertEqual(Probed("ok", text, 0), found)
        self.assertEqual([1], node.levels)
        self.assertEqual([b"QUIT\r\n"] * 2, [s.heard for s in node.servers.values()])

    def test_behind_a_balancer(self) -> None:
        """Where this node is itself in `proxy-from`, a probe says first that it stands for itself;
        where only others are, it says nothing.
        """
        node = Node()
        near, far = ip_network("192.0.2.0/24"), ip_network("203.0.113.0/24")
        node.places = [replace(V4, balancers=(far, near)), replace(V6, balancers=(far,))]
        self.assertEqual("ok", node.probe(10).health)
        heard = [server.heard for server in node.servers.values()]
        self.assertEqual([b"PROXY UNKNOWN\r\nQUIT\r\n", b"QUIT\r\n"], heard)

    def test_deep(self) -> None:
        """Levels 20 and 2 are one: the greeting, a file in the spool, and the newest epoch ours."""
        for level in (2, 20):
            node = Node()
            found = node.probe(level)
            self.assertEqual(("ok", 0, [2]), (found.health, found.exit_code, node.levels))
            self.assertIn("greets; the spool takes a file, epoch 7 is its newest", found.text)

    def test_long_greeting(self) -> None:
        """A greeting of several lines counts by its last one."""
        node = Node()
        node.serve(V4, b"220-welcome\r\n220 " + NAME.upper().encode() + b" here\r\n")
        self.assertEqual("ok", node.probe(10).health)


class NotTheOwner(SynchronousTestCase):
    def test_standby(self) -> None:
        """A standby node is away (75), at every level, with its reason, and nothing is tried."""
        for level in (0, 1, 2, 10, 20):
            node = Node()
            node.absence = (75, "standby: waiting for 192.0.2.10")
            expected = Probed("away", "standby: waiting for 192.0.2.10", 75)
            self.assertEqual(expected, node.probe(level))
            self.assertEqual([], node.levels)

    def test_suspended(self) -> None:
        """An owner whose address went has failed (69): it should serve and does not."""
        node = Node()
        node.absence = (69, "suspended: an address went")
        self.assertEqual(Probed("failed", "suspended: an address went", 69), node.probe(1))

    def test_lost_meanwhile(self) -> None:
        """When ownership ends under the probe, that is the answer, not what it broke."""
        node = Node()
        node.health = Deferred()
        asked = node.prober.probe(1)
        node.absence = (75, "lost: superseded")
        node.health.callback(Health(HealthLevel.FAILED, "cannot bind"))
        self.assertEqual(Probed("away", "lost: superseded", 75), self.successResultOf(asked))


class Failing(SynchronousTestCase):
    def failed(self, node: Node, level: int, text: str) -> None:
        found = node.probe(level)
        self.assertEqual(("failed", 69), (found.health, found.exit_code))
        self.assertIn(text, found.text)

    def test_resource(self) -> None:
        """What the cluster resource finds broken is not asked further."""
        node = Node()
        node.health = succeed(Health(HealthLevel.FAILED, "the lease is over"))
        self.failed(node, 20, "the lease is over")
        self.assertEqual(b"", node.servers[V4].heard)

    def test_resource_is_silent(self) -> None:
        """A resource that does not answer is given up after 10 s, not before."""
        node = Node()
        node.health = Deferred()
        asked = node.prober.probe(1)
        node.world.advance(SPOOL_SECONDS - 0.01)
        self.assertNoResult(asked)
        node.world.advance(0.01)
        text = "the cluster resource did not answer in 10 s"
        self.assertEqual(Probed("failed", text, 69), self.successResultOf(asked))

    def test_nobody_accepts(self) -> None:
        """A port on which nobody listens is named."""
        node = Node()
        del node.world.doors.network.services[V6.endpoint]
        self.failed(node, 10, "tcp:[2001:db8::10]:25 is away")

    def test_silence(self) -> None:
        """A listener that accepts and says nothing is given up after 5 s, and left."""
        node = Node()
        node.serve(V4, b"220-")
        asked = node.prober.probe(10)
        for _ in range(5):
            node.world.advance(0)
        node.world.advance(GREETING_SECONDS - 0.01)
        self.assertNoResult(asked)
        node.world.advance(0.01)
        found = self.successResultOf(asked)
        text = "192.0.2.10 port 25 does not greet: nothing came within 5 s"
        self.assertEqual(Probed("failed", text, 69), found)
        for _ in range(5):
            node.world.advance(0)
        assert node.servers[V4].transport is not None
        self.assertFalse(node.servers[V4].transport.connected)

    def test_closed(self) -> None:
        """A listener that closes before it greets has failed."""
        node = Node()
        node.serve(V4, b"", closes=True)
        self.failed(node, 10, "the connection was closed before the greeting")

    def test_endless(self) -> None:
        """A greeting without an end is not read for ever."""
        node = Node()
        node.serve(V4, b"220-more\r\n" * 1000)
        self.failed(node, 10, "the greeting does not end")

    def test_another_server(self) -> None:
        """Somebody else's greeting at our address is not ours."""
        node = Node()
        node.serve(V4, b"220 other.example.org ESMTP\x1b\r\n")
        self.failed(node, 10, "is answered by other.example.org: our network name is")

    def test_refusal(self) -> None:
        """A listener that refuses everybody for good has failed; one that is busy has not, for a
        flood of clients would follow the address to the other node.
        """
        node = Node()
        node.serve(V4, b"554 5.7.1 no\r\n")
        self.failed(node, 10, "192.0.2.10 port 25 refuses: 554 5.7.1 no")
        node.serve(V4, b"421 4.7.0 too many connections\r\n")
        found = node.probe(10)
        self.assertEqual(("degraded", 0), (found.health, found.exit_code))
        self.assertIn("is busy: 421 4.7.0 too many connections", found.text)

    def test_spool(self) -> None:
        """A spool that cannot be written, does not answer, or has a newer epoch fails level 20."""
        node = Node()
        node.inspect = lambda: fail(Unavailable("spool /spool cannot be written", "EIO"))
        self.failed(node, 20, "spool /spool cannot be written: EIO")
        node.inspect = node.records
        node.epochs = [7, 8]
        self.failed(node, 20, "the spool's newest epoch is 8: this node holds epoch 7")
        node.epochs = []
        self.failed(node, 20, "the spool's newest epoch is 0")
        node.inspect = Deferred
        asked = node.prober.probe(20)
        for _ in range(20):
            node.world.advance(0)
        node.world.advance(SPOOL_SECONDS)
        self.assertIn("the spool does not answer", self.successResultOf(asked).text)

    def test_superseded(self) -> None:
        """The epoch is read again through the tenure: what it finds ends the tenure too."""
        node = Node()

        def check() -> None:
            raise Fenced("epoch 7 is superseded")

        node.check = check
        self.failed(node, 20, "epoch 7 is superseded")
