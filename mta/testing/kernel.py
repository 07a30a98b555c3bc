"""A kernel's rtnetlink for tests: real netlink octets without a kernel.

Law: only what the kernel says (rtnetlink(7)) is said, in the kernel's own form: multicast events
carry the port of whoever changed something, answers to a dump the number of the request.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address
from typing import Any

from mta.cluster.netlink import (
    IFA_ADDRESS,
    IFA_CACHEINFO,
    IFA_FLAGS,
    IFA_LOCAL,
    IFF_LOWER_UP,
    IFF_UP,
    IFLA_IFNAME,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
)

PORT = 4242
"""The port of the watcher's socket; another's is OTHERS."""
OTHERS = 99
PERMANENT = 0x80
"""IFA_F_PERMANENT: every address that a person or a cluster manager adds."""


def message(
    kind: int, body: bytes, *, sequence: int = 0, port: int = OTHERS, flags: int = 0
) -> bytes:
    """One netlink message, padded to four octets."""
    head = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, port)
    return head + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link_body(ifindex: int, name: str, flags: int) -> bytes:
    return struct.pack("=BxHiII", 0, 1, ifindex, flags, 0xFFFFFFFF) + attribute(
        IFLA_IFNAME, name.encode() + b"\0"
    )


def address_body(ifindex: int, text: str, flags: int, cstamp: int) -> bytes:
    address = ip_address(text)
    family, prefix = (2, 32) if address.version == 4 else (10, 128)
    body = struct.pack("=BBBBI", family, prefix, flags & 0xFF, 0, ifindex)
    if address.version == 4:
        body += attribute(IFA_LOCAL, address.packed)
    body += attribute(IFA_ADDRESS, address.packed)
    body += attribute(IFA_FLAGS, struct.pack("=I", flags))
    return body + attribute(
        IFA_CACHEINFO, struct.pack("=IIII", 2**32 - 1, 2**32 - 1, cstamp, cstamp)
    )


class PaperNetlink:
    """A kernel with links and addresses, and the watcher's socket at once.

    Hand `open` to an AddressWatcher (or InterfaceResource) as `open_socket`; changes are told when
    `deliver()` is called, as the reactor would when the descriptor is readable. `deaf = True` loses
    events; `overflow()` makes the next read fail with ENOBUFS.
    """

    def __init__(self, doors: Any) -> None:
        self._doors = doors
        self.links: dict[int, tuple[str, int]] = {1: ("lo", IFF_UP | IFF_LOWER_UP)}
        self.addresses: dict[tuple[int, str], tuple[int, int]] = {}
        self.deaf = False
        self.refuses: OSError | None = None
        self.dump_fails = 0
        self.dumps = 0
        self._queue: list[bytes | OSError] = []
        self._uptime = 1000
        self.is_closed = False

    # the socket
    def open(self) -> PaperNetlink:
        if self.refuses is not None:
            raise self.refuses
        self.is_closed = False
        self._queue.clear()
        return self

    def fileno(self) -> int:
        return -1 if self.is_closed else 77

    def getsockname(self) -> tuple[int, int]:
        return PORT, 0

    def close(self) -> None:
        self.is_closed = True

    def send(self, request: bytes) -> int:
        _length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", request)
        if self.dump_fails:
            self.dump_fails -= 1
            refused = message(
                NLMSG_ERROR, struct.pack("=i", -errno.EBUSY), sequence=sequence, port=PORT
            )
            self._queue.append(refused)
            return len(request)
        self.dumps += 1
        parts = b""
        if kind == RTM_GETLINK:
            for ifindex, (name, flags) in self.links.items():
                body = link_body(ifindex, name, flags)
                parts += message(RTM_NEWLINK, body, sequence=sequence, port=PORT, flags=2)
        elif kind == RTM_GETADDR:
            for (ifindex, text), (flags, cstamp) in self.addresses.items():
                body = address_body(ifindex, text, flags, cstamp)
                parts += message(RTM_NEWADDR, body, sequence=sequence, port=PORT, flags=2)
        self._queue.append(parts)
        self._queue.append(message(NLMSG_DONE, bytes(4), sequence=sequence, port=PORT, flags=2))
        return len(request)

    def recv(self, octets: int) -> bytes:
        if not self._queue:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        said = self._queue.pop(0)
        if isinstance(said, OSError):
            raise said
        return said

    # what happens to the machine
    def deliver(self) -> None:
        """Let the watcher read all that was said."""
        for reader in list(self._doors.watched):
            reader.doRead()

    def overflow(self) -> None:
        """The socket's buffer was full: events are gone."""
        self._queue[:] = [OSError(errno.ENOBUFS, "No buffer space available")]

    def break_down(self) -> None:
        self._queue.append(OSError(errno.EIO, "Input/output error"))

    def link(self, ifindex: int, name: str = "", *, up: bool = True, carrier: bool = True) -> None:
        flags = (IFF_UP if up else 0) | (IFF_LOWER_UP if up and carrier else 0)
        name = name or self.links.get(ifindex, (f"eth{ifindex}", 0))[0]
        self.links[ifindex] = (name, flags)
        self._event(RTM_NEWLINK, link_body(ifindex, name, flags))

    def unlink(self, ifindex: int) -> None:
        name, flags = self.links.pop(ifindex)
        self._event(RTM_DELLINK, link_body(ifindex, name, flags))

    def add(self, text: str, ifindex: int = 2, flags: int = PERMANENT) -> None:
        """`ip address add`: a new instance, or new flags of a known one (`replace`)."""
        self._uptime += 1
        known = self.addresses.get((ifindex, text))
        cstamp = known[1] if known is not None else self._uptime
        self.addresses[ifindex, text] = (flags, cstamp)
        self._event(RTM_NEWADDR, address_body(ifindex, text, flags, cstamp))

    def remove(self, text: str, ifindex: int = 2) -> None:
        flags, cstamp = self.addresses.pop((ifindex, text))
        self._event(RTM_DELADDR, address_body(ifindex, text, flags, cstamp))

    def _event(self, kind: int, body: bytes) -> None:
        if not self.deaf:
            self._queue.append(message(kind, body, sequence=7))
