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
from mta.cluster.herald import ANNOUNCE_SECONDS, Herald
from mta.cluster.packets import announcement, checksum, tickle
from mta.interfaces import IDoors, IPacketDoor
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

    @given(st.binary(max_size=99))
    def test_checksum(self, octets: bytes) -> None:
        """With its own checksum behind it, anything sums up to nothing (RFC 1071)."""
        octets += bytes(len(octets) % 2)
        self.assertEqual(checksum(octets + struct.pack("!H", checksum(octets))), 0)


@implementer(IDoors, IPacketDoor)
class Door:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.segments: list[Segment] = []
        self.why = ""

    def send_frames(self, purpose, ifindex, build):
        if not self.why:
            self.frames += [(ifindex, frame) for frame in build(HARDWARE)]
        return self.why

    def send_segments(self, purpose, segments):
        if self.why:
            return 0, self.why
        self.segments += segments
        return len(segments), ""


class WhenTheyGo(SynchronousTestCase):
    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.door = Door()
        self.herald = self.make(self.door)

    def make(self, door: object, is_wanted: bool = True) -> Herald:
        return Herald(door, self.here.clock, self.here.telemetry, is_wanted=is_wanted)

    def online(self, left_open: tuple[FourTuple, ...] = (), herald: Herald | None = None) -> None:
        instances = (AddressInstance("boot", 3, V4, 7), AddressInstance("boot", 4, V6, 8))
        (herald or self.herald).online(
            virtual_addresses("192.0.2.10", "2001:db8::10"), instances, left_open
        )

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
        """A peer whose port our kernel still keeps in TIME_WAIT is tickled once more when that is
        over; not when the tenure has ended meanwhile.
        """
        ours = FourTuple(str(V4), 25, "203.0.113.5", 4711)
        for stays in (True, False):
            self.door.segments.clear()
            self.online((ours,))
            for seconds in (0.3, 0.7, 4.0, 5.0, 54.9):
                self.here.clock.advance(seconds)
            self.assertEqual(self.door.segments, [tickle(ours)] * 3)
            if not stays:
                self.herald.offline()
                self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])
            self.here.clock.advance(0.1)
            self.assertEqual(len(self.door.segments), 4 if stays else 3)

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
    """A raw socket of paper: keeps what would be sent."""

    def __init__(self, *kind: int) -> None:
        self.kind = kind
        self.sent: list[tuple] = []
        self.is_closed = False
        self.fault: OSError | None = None

    def setblocking(self, flag: bool) -> None:
        pass

    def sendmsg(self, pieces, control, flags, target) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((b"".join(pieces), control[0][2], target[0]))

    def close(self) -> None:
        self.is_closed = True


class TheSockets(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: list[PaperSocket] = []
        self.fault: OSError | None = None

    def make(self, *kind: int) -> PaperSocket:
        made = PaperSocket(*kind)
        made.fault = self.fault
        self.made.append(made)
        return made

    def send(self) -> int:
        segments = [
            Segment("192.0.2.10", "203.0.113.5", b"one"),
            Segment("2001:db8::10", "2001:db8::5", b"two"),
            Segment("192.0.2.10", "203.0.113.6", b"three"),
        ]
        return sending.send_segments(self.make, segments)

    def test_one_socket_a_family(self) -> None:
        """Segments leave from the address that they name, through one socket a family, closed."""
        self.assertEqual(self.send(), 3)
        self.assertEqual([m.kind[0] for m in self.made], [socket.AF_INET, socket.AF_INET6])
        self.assertEqual([octets for octets, _, _ in self.made[0].sent], [b"one", b"three"])
        self.assertIn(V4.packed, self.made[0].sent[0][1])
        self.assertIn(V6.packed, self.made[1].sent[0][1])
        self.assertTrue(all(made.is_closed for made in self.made))

    def test_unreachable_peers(self) -> None:
        """A peer that cannot be reached keeps nobody else from being released."""
        self.fault = OSError(errno.ENETUNREACH, "away")
        self.assertEqual(self.send(), 0)
        self.assertTrue(all(made.is_closed for made in self.made))

    def test_not_permitted(self) -> None:
        """Without CAP_NET_RAW it says so at once."""
        self.fault = PermissionError(errno.EPERM, "no")
        with self.assertRaises(PermissionError) as caught:
            self.send()
        self.assertEqual(sending.why_not(caught.exception), "CAP_NET_RAW is missing")
        self.assertTrue(all(made.is_closed for made in self.made))
