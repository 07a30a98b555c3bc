"""What the memory surroundings promise to the tests of every room."""

from __future__ import annotations

from twisted.internet import error
from twisted.internet.protocol import Protocol, connectionDone
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.errors import Fenced, StartRefused, TenureRevoked, TransientFailure
from mta.interfaces import IDescriptorDoor, IDoors, ISurroundings, ITenure
from mta.model import PeerInfo
from mta.testing.surroundings import (
    MemoryPeer,
    MemorySurroundings,
    MemoryTenure,
    virtual_addresses,
)


class Echo(Protocol):
    def __init__(self, peer: PeerInfo) -> None:
        self.peer = peer
        self.reasons: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def connectionLost(self, reason=connectionDone) -> None:
        self.reasons.append(reason.type)


class MemoryAssociations(SynchronousTestCase):
    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.tenure = MemoryTenure()
        self.echoes: list[Echo] = []

    def listen(self) -> None:
        def build(peer: PeerInfo) -> Echo:
            self.echoes.append(Echo(peer))
            return self.echoes[-1]

        self.here.doors.listen(
            self.tenure, self.tenure.addresses[0], 25, build, name="smtp", backlog=5
        )

    def test_contracts(self) -> None:
        """They are what the contracts say."""
        verifyObject(IDoors, self.here.doors)
        verifyObject(IDescriptorDoor, self.here.doors)
        verifyObject(ITenure, self.tenure)
        self.assertTrue(ISurroundings.providedBy(self.here))

    def test_inbound(self) -> None:
        """A foreign client reaches a listener, and octets go both ways when time moves."""
        self.listen()
        peer = self.here.network.dial("192.0.2.10", 25)
        peer.say(b"hello ")
        peer.say(b"there")
        self.assertEqual(peer.take(), b"")
        self.here.advance()
        self.assertEqual(peer.take(), b"hello there")
        self.assertEqual(self.echoes[0].peer.host, "198.51.100.7")

    def test_outbound_source(self) -> None:
        """An association starts from the virtual address of the far end's family."""
        served: list[MemoryPeer] = []
        self.here.network.serve(
            "2001:db8::20", 25, lambda: served.append(MemoryPeer()) or served[-1]
        )
        mine = MemoryPeer()
        waiting = self.here.doors.connect(self.tenure, "2001:db8::20", 25, mine, 30)
        self.here.advance()
        self.assertIs(self.successResultOf(waiting), mine)
        self.assertEqual(served[0].transport.getPeer().host, "2001:db8::10")

    def test_refused_and_silent(self) -> None:
        """Nobody listens: refused at once. An unreachable host: the time limit says so."""
        refused = self.here.doors.connect(self.tenure, "192.0.2.99", 25, MemoryPeer(), 30)
        self.here.advance()
        self.failureResultOf(refused, TransientFailure)
        self.here.network.unreachable.add("192.0.2.98")
        silent = self.here.doors.connect(self.tenure, "192.0.2.98", 25, MemoryPeer(), 30)
        self.here.advance(29.9)
        self.assertNoResult(silent)
        self.here.advance(0.1)
        self.failureResultOf(silent, TransientFailure)

    def test_revoked(self) -> None:
        """A revoked tenure closes its listeners and its associations, and opens none."""
        self.listen()
        peer = self.here.network.dial("192.0.2.10", 25)
        self.tenure.revoke()
        self.here.advance()
        self.assertFalse(peer.is_open)
        self.assertEqual(self.echoes[0].reasons, [error.ConnectionAborted])
        self.assertFalse(self.here.network.dial("192.0.2.10", 25).is_open)
        self.failureResultOf(
            self.here.doors.connect(self.tenure, "192.0.2.20", 25, MemoryPeer(), 30), TenureRevoked
        )

    def test_fenced(self) -> None:
        """A superseded tenure accepts and opens nothing."""
        self.listen()
        self.tenure.fence()
        self.assertFalse(self.here.network.dial("192.0.2.10", 25).is_open)
        self.failureResultOf(
            self.here.doors.connect(self.tenure, "192.0.2.20", 25, MemoryPeer(), 30), Fenced
        )

    def test_close_flushes_and_abort_does_not(self) -> None:
        """loseConnection delivers what was written; an abort drops it."""
        self.listen()
        peer = self.here.network.dial("192.0.2.10", 25)
        self.echoes[0].transport.write(b"bye")
        self.echoes[0].transport.loseConnection()
        self.here.advance()
        self.assertEqual(
            (peer.take(), peer.is_open, peer.lost_because), (b"bye", False, "ConnectionDone")
        )
        peer = self.here.network.dial("192.0.2.10", 25)
        self.echoes[1].transport.write(b"lost")
        self.echoes[1].transport.abortConnection()
        self.here.advance()
        self.assertEqual((peer.take(), peer.lost_because), (b"", "ConnectionLost"))
        self.assertEqual(self.tenure.adopted[1:], [])

    def test_pause(self) -> None:
        """A paused end receives nothing until it resumes."""
        self.listen()
        peer = self.here.network.dial("192.0.2.10", 25)
        self.echoes[0].transport.pauseProducing()
        peer.say(b"one")
        self.here.advance()
        self.assertEqual(peer.take(), b"")
        self.echoes[0].transport.resumeProducing()
        self.here.advance()
        self.assertEqual(peer.take(), b"one")

    def test_busy_and_bind(self) -> None:
        """A busy port is refused; an address that is not here cannot be bound."""
        self.listen()
        with self.assertRaises(StartRefused):
            self.listen()
        self.here.network.usable = {"192.0.2.10"}
        self.here.doors.try_bind(self.tenure.addresses[0])
        with self.assertRaises(OSError):
            self.here.doors.try_bind(self.tenure.addresses[1])

    def test_missing_family(self) -> None:
        """A far end of a family that the tenure lacks is a transient failure with a name."""
        tenure = MemoryTenure(addresses=virtual_addresses("192.0.2.10"))
        failure = self.failureResultOf(
            self.here.doors.connect(tenure, "2001:db8::1", 25, MemoryPeer(), 1), TransientFailure
        )
        self.assertIn("no IPv6 address", str(failure.value))
