"""The packets with which a new owner makes itself known. Pure: addresses in, octets out.

Law: nothing here is sent that a peer could take for mail. An announcement says where an address is;
a tickle is an acknowledgement out of any window, whose answer is refused with a reset.

RFC 826, RFC 5227 (ARP announcement); RFC 4861 4.4, 7.2.6 (unsolicited neighbour advertisement);
RFC 9293 3.5.2, 3.10.7.4 (an unacceptable segment is answered by an acknowledgement).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from mta.model import FourTuple, IPAddress, Segment

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_ETHERNET = b"\x33\x33\x00\x00\x00\x01"
ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0806, 0x86DD
ARP_REQUEST, ARP_REPLY = 1, 2
_ARP = struct.Struct("!HHBBH6s4s6s4s")
ICMPV6, NEIGHBOUR_ADVERTISEMENT, OVERRIDE = 58, 136, 0x20000000
TARGET_LINK_LAYER_ADDRESS = 2
TCP, WINDOW = 6, 1024
SYN, RST, ACK = 0x02, 0x04, 0x10
_TCP = struct.Struct("!HHIIBBHHH")


def announcement(address: IPAddress, hardware: bytes) -> tuple[bytes, ...]:
    """Ethernet frames that say: `address` is at `hardware` from now on.

    For IPv4 as a request and as a reply, since some hosts and switches heed only one of them.
    """
    if isinstance(address, IPv4Address):
        return tuple(_arp(address, hardware, operation) for operation in (ARP_REQUEST, ARP_REPLY))
    return (_neighbour_advertisement(address, hardware),)


def _arp(address: IPv4Address, hardware: bytes, operation: int) -> bytes:
    head = _BROADCAST + hardware + struct.pack("!H", ETHERTYPE_ARP)
    target = bytes(6) if operation == ARP_REQUEST else _BROADCAST
    return head + _ARP.pack(
        1, 0x0800, 6, 4, operation, hardware, address.packed, target, address.packed
    )


def _neighbour_advertisement(address: IPv6Address, hardware: bytes) -> bytes:
    said = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, OVERRIDE) + address.packed
    said += struct.pack("!BB", TARGET_LINK_LAYER_ADDRESS, 1) + hardware
    checked = checksum(_pseudo_header(address, _ALL_NODES, ICMPV6, len(said)) + said)
    said = said[:2] + struct.pack("!H", checked) + said[4:]
    # Hop limit 255 proves to the receiver that it comes from this link (RFC 4861 7.1.2).
    head = struct.pack("!IHBB", 0x60000000, len(said), ICMPV6, 255)
    ethernet = _ALL_NODES_ETHERNET + hardware + struct.pack("!H", ETHERTYPE_IPV6)
    return ethernet + head + address.packed + _ALL_NODES.packed + said


def tickle(ends: FourTuple) -> Segment:
    """A bare acknowledgement over that association, from our end.

    The peer still has the association and its numbers do not fit, so it answers; our kernel knows
    no such socket and resets it (measured: ECONNRESET at once, instead of a time-out of minutes).
    """
    return _bare(ends, 0, ACK)


def answering(segment: Segment) -> FourTuple | None:
    """Whose a received segment is, seen from our end; None when it is cut short."""
    if len(segment.octets) < _TCP.size:
        return None
    theirs, ours, *_ = _TCP.unpack_from(segment.octets)
    return FourTuple(segment.target, ours, segment.source, theirs)


def reset(answer: Segment) -> tuple[Segment, ...]:
    """What ends the association of a peer that answered a tickle; nothing for what is no answer.

    The answer acknowledges what the peer expects next, and only a reset of just that number counts
    (RFC 5961 3.2). Our kernel sends one by itself, but not where it is in TIME_WAIT for these
    ports: there it acknowledges (measured), and the peer would wait for its own time-out.
    """
    ends = answering(answer)
    _, _, _, expected, _, flags, *_ = _TCP.unpack_from(answer.octets.ljust(_TCP.size, b"\0"))
    if ends is None or flags & (ACK | RST | SYN) != ACK:
        return ()
    return (_bare(ends, expected, RST),)


def _bare(ends: FourTuple, sequence: int, flag: int) -> Segment:
    """A segment without data from our end."""
    source, target = ip_address(ends.local_host), ip_address(ends.peer_host)
    ports = ends.local_port, ends.peer_port
    said = _TCP.pack(*ports, sequence, 0, 5 << 4, flag, WINDOW, 0, 0)
    checked = checksum(_pseudo_header(source, target, TCP, len(said)) + said)
    octets = said[:16] + struct.pack("!H", checked) + said[18:]
    return Segment(ends.local_host, ends.peer_host, octets)


def _pseudo_header(source: IPAddress, target: IPAddress, protocol: int, length: int) -> bytes:
    layout = "!BBH" if source.version == 4 else "!IHBB"
    tail = (0, protocol, length) if source.version == 4 else (length, 0, 0, protocol)
    return source.packed + target.packed + struct.pack(layout, *tail)


def checksum(octets: bytes) -> int:
    """RFC 1071."""
    if len(octets) % 2:
        octets += b"\0"
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
