"""Single packets that belong to no association: announcements of an address, and tickles.

Law: nothing of mail leaves here, and nothing is read: each socket lives for one burst. Both need
CAP_NET_RAW; without it OSError says so and the caller does without.

packet(7), raw(7), ip(7) IP_PKTINFO, RFC 3542 6.1 IPV6_PKTINFO.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from mta.model import Segment

ARPHRD_ETHER = 1
SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("16sH14s8x")
IP_PKTINFO, IPV6_PKTINFO = 8, 50
"""Their numbers in linux/in.h and linux/in6.h."""
NO_PACKETS = 0
"""As a packet socket's protocol: it receives nothing."""

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


def send_segments(make_socket: SocketMaker, segments: Iterable[Segment]) -> int:
    """Send each TCP segment from an address of this node; answers how many went.
    @raise OSError: EPERM without CAP_NET_RAW. An address that cannot be reached is passed over.
    """
    sent = 0
    opened: dict[int, socket.socket] = {}
    try:
        for segment in segments:
            source, target = ip_address(segment.source), ip_address(segment.target)
            if source.version == 4:
                family, level, kind = socket.AF_INET, socket.IPPROTO_IP, IP_PKTINFO
                control = struct.pack("=i4s4s", 0, source.packed, bytes(4))
            else:
                family, level, kind = socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_PKTINFO
                control = source.packed + struct.pack("=i", 0)
            if family not in opened:
                opened[family] = make_socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
                opened[family].setblocking(False)
            try:
                opened[family].sendmsg(
                    [segment.octets], [(level, kind, control)], 0, (str(target), 0)
                )
            except OSError as fault:
                if fault.errno in {errno.EPERM, errno.EACCES}:
                    raise
                continue
            sent += 1
    finally:
        for made in opened.values():
            made.close()
    return sent


def why_not(fault: OSError) -> str:
    """In words, why packets cannot be sent."""
    if fault.errno in {errno.EPERM, errno.EACCES}:
        return "CAP_NET_RAW is missing"
    return os.strerror(fault.errno or 0)
