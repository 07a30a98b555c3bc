"""A new owner makes itself known: what the packets say, and when they go."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mta.association import packets as sending
from mta.cluster.herald import ANNOUNCE_SECONDS, ANSWER_SECONDS, Herald
from mta.cluster.packets import announcement, answering, checksum, reset, tickle
from mta.interfaces import IDoors, IPacketDoor, ISegments
from mta.model import AddressInstance, FourTuple, Segment
from mta.testing.surroundings import MemorySurroundings, virtual_addresses

HARDWARE = bytes.fromhex("02005e102233")
V4, V6 = IPv4Address("192.0.2.10"), IPv6Address("2001:db8::10")
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


class Frames(SynchronousTestCase):
    def test_arp(self) -> None:
        """For IPv4 a request and a reply, broadcast, with the address as sender and as target."""
        request, reply = announcement(V4, HARDWARE)
        for frame, operation in ((request, 1), (reply, 2)):
            self.assertEqual(frame[:14], b"\xff" * 6 + HARDWARE + b"\x08\x06")
            fields = struct.unpack("!HHBBH6s4s6s4s", frame[14:])
            self.assertEqual(fields[:5], (1, 0x0800, 6, 4, operation))
            self.assertEqual((fields[5], fields[6], fields[8]), (HARDWARE, V4.packed, V4.packed))

    def test_neighbour_advertisement(self) -> None:
        """For IPv6 one to all nodes, overriding what they believed; its checksum is right."""
        (frame,) = announcement(V6, HARDWARE)
        self.assertEqual(frame[:14], bytes.fromhex("333300000001") + HARDWARE + b"\x86\xdd")
        version, length, following, hops = struct.unpack("!IHBB", frame[14:22])
        self.assertEqual((version >> 28, following, hops), (6, 58, 255))
        source, target, said = frame[22:38], frame[38:54], frame[54:]
        self.assertEqual((source, len(said)), (V6.packed, length))
        self.assertEqual(target, ip_address("ff02::1").packed)
        self.assertEqual((said[0], said[4] & 0xE0, said[8:24]), (136, 0x20, V6.packed))
        self.assertEqual(said[24:], b"\x02\x01" + HARDWARE)
        pseudo = source + target + struct.pack("!IHBB", length, 0, 0, 58)
        self.assertEqual(checksum(pseudo + said), 0)

    @given(st.data(), st.sampled_from((4, 6)), st.integers(1, 65535), st.integers(1, 65535))
    def test_tickle(self, data: st.DataObject, version: int, ours: int, theirs: int) -> None:
        """A bare ACK from our end of the association, with the right checksum, in both families."""
        kind = st.ip_addresses(v=version)
        source, target = data.draw(kind), data.draw(kind)
        made = tickle(FourTuple(str(source), ours, str(target), theirs))
        self.assertEqual((made.source, made.target), (str(source), str(target)))
        fields = struct.unpack("!HHIIBBHHH", made.octets)
        self.assertEqual(fields[:2] + fields[4:6], (ours, theirs, 0x50, 0x10))
        if version == 4:
            pseudo = source.packed + target.packed + struct.pack("!BBH", 0, 6, 20)
        else:
            pseudo = source.packed + target.packed + struct.pack("!IHBB", 20, 0, 0, 6)
        self.assertEqual(checksum(pseudo + made.octets), 0)

    @given(st.sampled_from((V4, V6)), st.integers(0, 2**32 - 1), st.binary(max_size=60))
    def test_reset(self, ours: IPv4Address | IPv6Address, expected: int, more: bytes) -> None:
        """An answer to a tickle is reset from our end, with just the number that the peer expects."""
        peer = "203.0.113.5" if ours.version == 4 else "2001:db8::5"
        ends = FourTuple(str(ours), 25, peer, 4711)
        answer = answer_of(ends, expected, more)
        self.assertEqual(answering(answer), ends)
        (made,) = reset(answer)
        self.assertEqual((made.source, made.target), (str(ours), peer))
        fields = struct.unpack("!HHIIBBHHH", made.octets)
        self.assertEqual(fields[:6], (25, 4711, expected, 0, 0x50, 0x04))
        layout = "!BBH" if ours.version == 4 else "!IHBB"
        tail = (0, 6, 20) if ours.version == 4 else (20, 0, 0, 6)
        pseudo = ours.packed + ip_address(peer).packed + struct.pack(layout, *tail)
        self.assertEqual(checksum(pseudo + made.octets), 0)

    @given(st.binary(max_size=120))
    def test_anything_may_arrive(self, octets: bytes) -> None:
        """What is no acknowledgement (rubbish, a reset, a new association's SYN) gets no reset."""
        made = reset(Segment("203.0.113.5", str(V4), octets))
        is_answer = len(octets) >= 20 and octets[13] & 0x16 == 0x10
        self.assertEqual(len(made), int(is_answer))

    @given(st.binary(max_size=99))
    def test_checksum(self, octets: bytes) -> None:
        """With its own checksum behind it, anything sums up to nothing (RFC 1071)."""
        octets += bytes(len(octets) % 2)
        self.assertEqual(checksum(octets + struct.pack("!H", checksum(octets))), 0)


def answer_of(ends: FourTuple, expected: int, more: bytes = b"", flags: int = 0x10) -> Segment:
    ports = ends.peer_port, ends.local_port
    said = struct.pack("!HHIIBBHHH", *ports, 77, expected, 0x50, flags, 128, 0, 0)
    return Segment(ends.peer_host, ends.local_host, said + more)


@implementer(IDoors, IPacketDoor, ISegments)
class Door:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.segments: list[Segment] = []
        self.arrived: list[Segment] = []
        self.open = 0
        self.why = ""

    def send_frames(self, purpose, ifindex, build):
        if not self.why:
            self.frames += [(ifindex, frame) for frame in build(HARDWARE)]
        return self.why

    def open_segments(self, purpose):
        self.open += 1
        return self

    def send(self, segments):
        if self.why:
            return 0, self.why
        self.segments += segments
        return len(segments), ""

    def receive(self):
        arrived, self.arrived = self.arrived, []
        return arrived

    def close(self):
        self.open -= 1


class Tenure:
    addresses = virtual_addresses("192.0.2.10", "2001:db8::10")

    def __init__(self, open_now: list[FourTuple]) -> None:
        self._open_now = open_now

    def open_ends(self) -> list[FourTuple]:
        return self._open_now


class WhenTheyGo(SynchronousTestCase):
    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.door = Door()
        self.herald = self.make(self.door)
        self.open_now: list[FourTuple] = []

    def make(self, door: object, is_wanted: bool = True) -> Herald:
        return Herald(door, self.here.clock, self.here.telemetry, is_wanted=is_wanted)

    def online(self, left_open: tuple[FourTuple, ...] = (), herald: Herald | None = None) -> None:
        instances = (AddressInstance("boot", 3, V4, 7), AddressInstance("boot", 4, V6, 8))
        (herald or self.herald).online(Tenure(self.open_now), instances, left_open)

    def test_at_once_and_again(self) -> None:
        """Each address at once on its own interface, twice more in a second, then every 5 s."""
        self.online()
        self.assertEqual([i for i, _ in self.door.frames], [3, 3, 4])
        self.here.clock.advance(1.0)
        self.assertEqual(len(self.door.frames), 9)
        self.here.clock.advance(ANNOUNCE_SECONDS - 1.1)
        self.assertEqual(len(self.door.frames), 9)
        for seconds in (0.1, 5.0, 5.0):
            self.here.clock.advance(seconds)
        self.assertEqual(len(self.door.frames), 18)

    def test_offline(self) -> None:
        """When the tenure ends nothing more is said: another may be the owner already."""
        self.online((FourTuple(str(V4), 25, "203.0.113.5", 4711),))
        said = len(self.door.frames), len(self.door.segments)
        self.herald.offline()
        self.here.clock.advance(60)
        self.assertEqual((len(self.door.frames), len(self.door.segments)), said)
        self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])

    def test_waiting_peers(self) -> None:
        """Peers of the former owner's associations are tickled three times, from our end."""
        ours = FourTuple(str(V4), 25, "203.0.113.5", 4711)
        foreign = FourTuple("192.0.2.99", 25, "203.0.113.5", 4711)
        portless = FourTuple(str(V4), 0, "203.0.113.5", 25)
        self.online((ours, foreign, portless))
        self.here.clock.advance(0.3)
        self.here.clock.advance(0.7)
        self.assertEqual(self.door.segments, [tickle(ours)] * 3)

    def test_a_port_that_was_here_before(self) -> None:
        """Our kernel may be in TIME_WAIT for a peer's port and only acknowledges: the owner resets who
        answers, once, and asks the others again.
        """
        heard, silent = (FourTuple(str(V4), 25, "203.0.113.5", port) for port in (4711, 4712))
        answer = answer_of(heard, 99)
        self.online((heard, silent))
        self.door.arrived = [Segment("203.0.113.9", str(V4), b"rubbish"), answer, answer]
        self.here.clock.advance(ANSWER_SECONDS)
        self.assertEqual(self.door.segments, [tickle(heard), tickle(silent), *reset(answer)])
        self.here.clock.advance(0.3 - ANSWER_SECONDS)
        self.door.arrived = [answer]
        self.here.clock.advance(ANSWER_SECONDS)
        self.assertEqual(self.door.segments[3:], [tickle(silent)])
        for _ in range(10):
            self.here.clock.advance(0.1)
        self.assertEqual((self.door.segments[4:], self.door.open), ([tickle(silent)], 0))

    def test_a_port_that_is_in_use_again(self) -> None:
        """A peer that has begun anew from the same port is left alone, whatever it sends: when its
        SYN came first, and when the association is open by now.
        """
        began, is_open = (FourTuple(str(V4), 25, "203.0.113.5", port) for port in (4711, 4712))
        self.online((began, is_open))
        self.door.arrived = [answer_of(began, 0, flags=0x02), answer_of(began, 5)]
        self.door.arrived += [answer_of(is_open, 7)]
        self.open_now.append(is_open)
        for _ in range(20):
            self.here.clock.advance(0.1)
        self.assertEqual(self.door.segments, [tickle(began), tickle(is_open)])

    def test_not_after_the_tenure(self) -> None:
        """An answer that comes when the tenure has ended is not read: another owns the address."""
        ours = FourTuple(str(V4), 25, "203.0.113.5", 4711)
        self.online((ours,))
        self.door.arrived = [answer_of(ours, 99)]
        self.herald.offline()
        self.here.clock.advance(5.0)
        self.assertEqual((self.door.segments, self.door.open), ([tickle(ours)], 0))

    def test_a_reactor_that_was_held_up(self) -> None:
        """A look that comes later than the next burst leaves the looking to that one."""
        ours = FourTuple(str(V4), 25, "203.0.113.5", 4711)
        self.online((ours,))
        self.here.clock.advance(0.9)
        self.here.clock.advance(0.15)
        self.assertEqual(self.door.open, 1)
        self.here.clock.advance(5.0)
        self.assertEqual((self.door.segments, self.door.open), ([tickle(ours)] * 3, 0))

    def test_our_own_peers(self) -> None:
        """After a flap the peers that our own tenure's end cut off are tickled, and only once."""
        ours = FourTuple(str(V4), 25, "203.0.113.5", 4711)
        self.online()
        self.herald.offline()
        self.herald.cut_off = (ours,)
        self.online()
        self.here.clock.advance(0.3)
        self.here.clock.advance(0.7)
        self.assertEqual(self.door.segments, [tickle(ours)] * 3)
        self.online()
        self.here.clock.advance(1.0)
        self.assertEqual(len(self.door.segments), 3)

    def test_without_the_capability(self) -> None:
        """Without CAP_NET_RAW it is said once, not every 5 s, and nothing else suffers."""
        self.door.why = "CAP_NET_RAW is missing"
        self.online((FourTuple(str(V4), 25, "203.0.113.5", 4711),))
        for _ in range(5):
            self.here.clock.advance(5)
        notices = [e.text for e in self.here.events if getattr(e, "room", "") == "cluster"]
        self.assertEqual(notices, ["192.0.2.10 is not announced: CAP_NET_RAW is missing"])
        self.assertEqual(self.herald.explain(), "not sent: CAP_NET_RAW is missing")

    def test_not_wanted(self) -> None:
        """`announce: false`, and doors without packets, send nothing."""
        for herald in (self.make(self.door, is_wanted=False), self.make(self.here.doors)):
            self.online((), herald)
            self.here.clock.advance(10)
        self.assertEqual(self.door.frames, [])
        self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])


class PaperSocket:
    """A raw socket of paper: keeps what would be sent, and gives what was put in."""

    def __init__(self, *kind: int) -> None:
        self.kind = kind
        self.sent: list[tuple] = []
        self.arrived: list[tuple] = []
        self.is_closed = False
        self.fault: OSError | None = None

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, level: int, name: int, value: int) -> None:
        pass

    def sendmsg(self, pieces, control, flags, target) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((b"".join(pieces), control[0][2], target[0]))

    def recvmsg(self, size: int, control_size: int) -> tuple:
        if not self.arrived:
            raise BlockingIOError
        octets, control, peer = self.arrived.pop(0)
        return octets[:size], [(0, 0, control)], 0, (peer, 0)

    def close(self) -> None:
        self.is_closed = True


class TheSockets(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: list[PaperSocket] = []
        self.fault: OSError | None = None
        self.closed: list[bool] = []
        self.socket = sending.Segments(self.make, lambda: self.closed.append(True))

    def make(self, *kind: int) -> PaperSocket:
        made = PaperSocket(*kind)
        made.fault = self.fault
        self.made.append(made)
        return made

    def send(self) -> tuple[int, str]:
        segments = [
            Segment("192.0.2.10", "203.0.113.5", b"one"),
            Segment("2001:db8::10", "2001:db8::5", b"two"),
            Segment("192.0.2.10", "203.0.113.6", b"three"),
        ]
        return self.socket.send(segments)

    def test_one_socket_a_family(self) -> None:
        """Segments leave from the address that they name, through one socket a family."""
        self.assertEqual(self.send(), (3, ""))
        self.assertEqual([m.kind[0] for m in self.made], [socket.AF_INET, socket.AF_INET6])
        self.assertEqual([octets for octets, _, _ in self.made[0].sent], [b"one", b"three"])
        self.assertIn(V4.packed, self.made[0].sent[0][1])
        self.assertIn(V6.packed, self.made[1].sent[0][1])

    def test_closed_once(self) -> None:
        """Closing gives both sockets back, is counted once, and does no harm twice."""
        self.send()
        self.socket.close()
        self.socket.close()
        self.assertTrue(all(made.is_closed for made in self.made))
        self.assertEqual((self.closed, self.socket.receive()), ([True], []))

    def test_what_comes_back(self) -> None:
        """Of both families: whence, to which address, and the segment without the IP header."""
        self.send()
        four, six = self.made
        header = b"\x46" + bytes(23)
        four.arrived = [(header + b"segment", bytes(8) + V4.packed, "203.0.113.5")]
        six.arrived = [(b"segment", V6.packed + bytes(4), "2001:db8::5%eth0")]
        self.assertEqual(
            self.socket.receive(),
            [
                Segment("203.0.113.5", "192.0.2.10", b"segment"),
                Segment("2001:db8::5", "2001:db8::10", b"segment"),
            ],
        )
        four.arrived = [(header, bytes(8) + V4.packed, "203.0.113.5")] * 3000
        self.assertEqual(len(self.socket.receive()), sending.MOST_RECEIVED)

    def test_unreachable_peers(self) -> None:
        """A peer that cannot be reached keeps nobody else from being released."""
        self.fault = OSError(errno.ENETUNREACH, "away")
        self.assertEqual(self.send(), (0, ""))

    def test_not_permitted(self) -> None:
        """Without CAP_NET_RAW it says so at once."""
        self.fault = PermissionError(errno.EPERM, "no")
        self.assertEqual(self.send(), (0, "CAP_NET_RAW is missing"))
