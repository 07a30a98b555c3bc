"""Single packets that belong to no association: announcements of an address, and tickles.

Law: nothing of mail leaves here, and no mail is read: each socket lives for one burst, and of what
it receives only headers are looked at. Both need CAP_NET_RAW; without it the caller does without.

packet(7), raw(7), ip(7) IP_PKTINFO, RFC 3542 6.1 IPV6_PKTINFO.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from zope.interface import implementer

from mta.interfaces import ISegments
from mta.model import Segment

ARPHRD_ETHER = 1
SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("16sH14s8x")
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
"""Their numbers in linux/in.h and linux/in6.h."""
NO_PACKETS = 0
"""As a packet socket's protocol: it receives nothing."""

HEADERS, CONTROL = 120, 64
"""Octets that are read of a segment: both headers with all options; and of its control messages."""
MOST_RECEIVED = 2_000
"""Segments read at once, about 5 ms; the kernel's buffer of 208 KiB holds fewer (measured: 277)."""

SocketMaker = Callable[..., socket.socket]


def send_frames(
    make_socket: SocketMaker, ifindex: int, build: Callable[[bytes], Sequence[bytes]]
) -> None:
    """Send the Ethernet frames that `build` answers for the interface's hardware address.
    @raise OSError: EPERM without CAP_NET_RAW; EOPNOTSUPP for a link that is no Ethernet; ENODEV.
    """
    with make_socket(socket.AF_PACKET, socket.SOCK_RAW, NO_PACKETS) as made:
        made.setblocking(False)
        name = socket.if_indextoname(ifindex)
        wanted = _IFREQ.pack(name.encode(), 0, b"")
        _, kind, address = _IFREQ.unpack(fcntl.ioctl(made, SIOCGIFHWADDR, wanted))
        if kind != ARPHRD_ETHER:
            raise OSError(errno.EOPNOTSUPP, f"{name} is no Ethernet")
        for frame in build(address[:6]):
            made.sendto(frame, (name, NO_PACKETS))


@implementer(ISegments)
class Segments:
    """See ISegments. One raw socket for each family, opened when first needed."""

    def __init__(self, make_socket: SocketMaker, closed: Callable[[], None]) -> None:
        self._make_socket = make_socket
        self._closed: Callable[[], None] | None = closed
        self._opened: dict[int, socket.socket] = {}

    def send(self, segments: Sequence[Segment]) -> tuple[int, str]:
        """An address that cannot be reached is passed over; without CAP_NET_RAW none is tried."""
        sent = 0
        for segment in segments:
            source, target = ip_address(segment.source), ip_address(segment.target)
            if source.version == 4:
                family, level, kind = socket.AF_INET, socket.IPPROTO_IP, IP_PKTINFO
                control = struct.pack("=i4s4s", 0, source.packed, bytes(4))
            else:
                family, level, kind = socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_PKTINFO
                control = source.packed + struct.pack("=i", 0)
            try:
                self._raw(family).sendmsg(
                    [segment.octets], [(level, kind, control)], 0, (str(target), 0)
                )
            except OSError as fault:
                if fault.errno in {errno.EPERM, errno.EACCES}:
                    return sent, why_not(fault)
                continue
            sent += 1
        return sent, ""

    def receive(self) -> Sequence[Segment]:
        """At most MOST_RECEIVED, so that a busy listener's traffic cannot keep us here."""
        received: list[Segment] = []
        for family, opened in self._opened.items():
            for _ in range(MOST_RECEIVED):
                try:
                    octets, control, _, peer = opened.recvmsg(HEADERS, CONTROL)
                except OSError:
                    break
                if family == socket.AF_INET and octets:
                    octets = octets[(octets[0] & 0x0F) * 4 :]
                for _, _, said in control:
                    # ip(7): interface, local address, address in the header; RFC 3542 6.1.
                    ours = said[8:12] if family == socket.AF_INET else said[:16]
                    source, target = peer[0].partition("%")[0], str(ip_address(ours))
                    received.append(Segment(source, target, octets))
        return received

    def close(self) -> None:
        opened, self._opened = self._opened, {}
        for made in opened.values():
            made.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    def _raw(self, family: int) -> socket.socket:
        made = self._opened.get(family)
        if made is None:
            made = self._make_socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
            made.setblocking(False)
            if family == socket.AF_INET:
                made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            else:
                made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            self._opened[family] = made
        return made


def why_not(fault: OSError) -> str:
    """In words, why packets cannot be sent."""
    if fault.errno in {errno.EPERM, errno.EACCES}:
        return "CAP_NET_RAW is missing"
    return os.strerror(fault.errno or 0)
