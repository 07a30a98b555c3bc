"""submit.sock: every user may hand over mail, within limits of his own, and nothing on standby."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.admin.peer import Credentials
from mta.admin.settings import AdminSettings
from mta.admin.submit import SubmissionHost, SubmitServer
from mta.interfaces import IReception, IReceptionHost
from mta.model import Address, PeerInfo, Reply
from mta.telemetry import Notice, Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.surroundings import MemoryTenure

ALICE = Credentials(11, 1000, 1000)
BOB = Credentials(12, 1001, 1001)


class Greeter(Protocol):
    """Stands where the SMTP responder stands."""

    def __init__(self) -> None:
        self.octets = b""
        self.lost = False

    def connectionMade(self) -> None:
        self.transport.write(b"220 here\r\n")

    def dataReceived(self, data: bytes) -> None:
        self.octets += data

    def connectionLost(self, reason: Any = connectionDone) -> None:
        self.lost = True


class Connecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.telemetry = Telemetry()
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)
        self.peers: list[PeerInfo] = []
        self.greeters: list[Greeter] = []
        self.standby = False
        self.server = SubmitServer(
            AdminSettings(submit_connections=2),
            self.build,
            lambda: [("192.0.2.10", 25), ("2001:db8::10", 2525)],
            self.telemetry,
            network_name="bridgehead.example.org",
            who=lambda transport: transport.who,
        )

    def build(self, peer: PeerInfo) -> Greeter | None:
        if self.standby:
            return None
        self.peers.append(peer)
        self.greeters.append(Greeter())
        return self.greeters[-1]

    def connect(self, who: Credentials) -> tuple[Any, StringTransport]:
        transport = StringTransport()
        transport.who = who
        protocol = self.server.buildProtocol(None)
        protocol.makeConnection(transport)
        return protocol, transport

    def test_the_uid_is_known(self) -> None:
        """The responder is told the uid that the kernel vouches for, and it stands in the log."""
        protocol, transport = self.connect(ALICE)
        self.assertEqual(b"220 here\r\n", transport.value())
        self.assertEqual(
            (1000, "submit", "submit/in/1"),
            (self.peers[0].uid, self.peers[0].listener, self.peers[0].association),
        )
        [notice] = [e for e in self.events if isinstance(e, Notice)]
        self.assertEqual("connect from uid=1000 gid=1000 pid=11 as submit/in/1", notice.text)
        protocol.dataReceived(b"EHLO x\r\n")
        protocol.connectionLost()
        self.assertEqual((b"EHLO x\r\n", True), (self.greeters[0].octets, self.greeters[0].lost))

    def test_a_user_has_so_many_connections(self) -> None:
        """One user cannot keep the others out; who ends a connection may open another."""
        first, _ = self.connect(ALICE)
        self.connect(ALICE)
        _, refused = self.connect(ALICE)
        self.assertEqual(
            b"421 4.7.0 bridgehead.example.org uid 1000 has 2 connections already\r\n",
            refused.value(),
        )
        self.assertTrue(refused.disconnecting)
        self.assertEqual(1, self.telemetry.counter("mta_submissions_refused_total").value)
        _, other = self.connect(BOB)
        self.assertEqual(b"220 here\r\n", other.value())
        first.connectionLost()
        _, again = self.connect(ALICE)
        self.assertEqual(b"220 here\r\n", again.value())

    def test_standby(self) -> None:
        """A standby node takes nothing and says where the virtual server is."""
        self.standby = True
        protocol, transport = self.connect(ALICE)
        self.assertEqual(
            b"421-4.3.2 bridgehead.example.org is not on this node\r\n"
            b"421-4.3.2 relay-to=192.0.2.10:25\r\n"
            b"421 4.3.2 relay-to=[2001:db8::10]:2525\r\n",
            transport.value(),
        )
        protocol.dataReceived(b"EHLO x\r\n")
        protocol.connectionLost()
        self.assertEqual({}, self.server.connections)


@implementer(IReception)
class Reception:
    """Takes everything and remembers it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def connected(self) -> None: ...
    def helo(self, name: bytes, protocol: str) -> None: ...
    def rcpt(self, recipient: Address, parameters: Any) -> None: ...
    def acknowledged(self) -> None: ...
    def reset(self) -> None: ...
    def closed(self, stage: str, commands: str) -> None: ...

    def mail(self, sender: Address, parameters: Any) -> None:
        self.calls.append("mail")

    def data(self) -> None:
        self.calls.append("data")

    def chunk(self, chunk: bytes) -> None:
        self.calls.append(len(chunk))

    def end(self, fault: Reply | None) -> Deferred[Reply]:
        self.calls.append(fault)
        return succeed(fault or Reply(250, "2.0.0"))


@implementer(IReceptionHost)
class Host:
    def __init__(self) -> None:
        self.made: list[Reception] = []

    def reception(self, tenure: Any, peer: PeerInfo) -> Reception:
        self.made.append(Reception())
        return self.made[-1]


def peer(uid: int | None) -> PeerInfo:
    return PeerInfo("submit/in/1", "127.0.0.1", 0, "127.0.0.1", 0, "submit", uid=uid)


class Limits(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.inner = Host()
        self.host = SubmissionHost(
            self.inner, AdminSettings(submit_size="1KiB", submit_rate=3), self.clock
        )

    def reception(self, uid: int | None = 1000) -> Any:
        return self.host.reception(MemoryTenure(), peer(uid))

    def test_contracts(self) -> None:
        """It is what it wraps."""
        verifyObject(IReceptionHost, self.host)
        verifyObject(IReception, self.reception())
        self.assertIsInstance(self.reception(None), Reception)

    def test_rate(self) -> None:
        """A user who sends too fast is told to come later; a minute refills; others go on."""
        alice = self.reception()
        self.assertEqual([None] * 3, [alice.mail(Address(b"a@b"), {}) for _ in range(3)])
        self.assertEqual(
            (450, "4.7.1"),
            (alice.mail(Address(b"a@b"), {}).code, alice.mail(Address(b"a@b"), {}).enhanced),
        )
        self.assertEqual(450, self.reception().mail(Address(b"a@b"), {}).code)
        self.assertIsNone(self.reception(1001).mail(Address(b"a@b"), {}))
        self.clock.advance(19.9)
        self.assertEqual(450, alice.mail(Address(b"a@b"), {}).code)
        self.clock.advance(0.2)
        self.assertIsNone(alice.mail(Address(b"a@b"), {}))

    def test_declared_size(self) -> None:
        """A message that is declared too big is refused before it is sent."""
        reception = self.reception()
        self.assertEqual(552, reception.mail(Address(b"a@b"), {b"SIZE": b"1025"}).code)
        self.assertEqual(552, reception.mail(Address(b"a@b"), {b"SIZE": b"9" * 40}).code)
        self.assertIsNone(reception.mail(Address(b"a@b"), {b"SIZE": b"1024"}))

    def test_real_size(self) -> None:
        """A message that is too big is not stored to the end, and refused; the next one is not."""
        reception = self.reception()
        for _ in range(2):
            reception.mail(Address(b"a@b"), {})
            reception.data()
            for _ in range(3):
                reception.chunk(b"x" * 512)
            self.assertEqual(552, self.successResultOf(reception.end(None)).code)
        reception.mail(Address(b"a@b"), {})
        reception.data()
        reception.chunk(b"x" * 1024)
        self.assertEqual(250, self.successResultOf(reception.end(None)).code)
        self.assertEqual(
            [512, 512], [c for c in self.inner.made[0].calls if isinstance(c, int)][:2]
        )

    def test_another_fault_is_kept(self) -> None:
        """What the machine found wrong with the content is said, not the size."""
        reception = self.reception()
        reception.mail(Address(b"a@b"), {})
        reception.data()
        reception.chunk(b"x" * 2000)
        fault = Reply(554, "5.6.0", (b"bare LF",))
        self.assertIs(fault, self.successResultOf(reception.end(fault)))

    def test_many_users(self) -> None:
        """The list of users that once sent does not grow for ever."""
        for uid in range(5000):
            self.clock.advance(1)
            self.reception(uid).mail(Address(b"a@b"), {})
        self.assertLess(len(self.host._allowances), 1200)
