"""The kernel's addresses and links, as they change: a raw rtnetlink socket in the reactor.

Law: parsing is pure and takes any octets. Every change is told by itself and in its order, so that
an address which goes and comes back in one breath is seen to have gone. When the kernel says that
it dropped messages (ENOBUFS), and every 10 s, everything is asked for anew and compared.

RFC 3549; rtnetlink(7), netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from mta.errors import ClusterNotInitialised
from mta.interfaces import IClock, IDescriptorDoor, IDoors, IRevocable, ITimer
from mta.model import IPAddress

NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
GROUPS = 0x1 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR."""
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFA_F_DADFAILED, IFA_F_OPTIMISTIC, IFA_F_TENTATIVE = 0x08, 0x04, 0x40
ADDRESS_FLAGS = (
    (0x01, "secondary"),
    (0x02, "nodad"),
    (0x04, "optimistic"),
    (0x08, "dadfailed"),
    (0x20, "deprecated"),
    (0x40, "tentative"),
    (0x80, "permanent"),
    (0x200, "noprefixroute"),
)
"""IFA_F_* (linux/if_addr.h) that tell an operator something, as ip-address(8) names them."""
IFLA_IFNAME = 3
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 6, 8

RECEIVE_BUFFER = 1 << 20
"""Octets: 256 changes fit the kernel's default (measured); this is two thousand and more."""
READ_OCTETS = 1 << 16
RESYNC_SECONDS = 10.0
ASK_AGAIN_SECONDS = 0.1
"""After a dump that the kernel could not finish."""

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_CACHEINFO = struct.Struct("=IIII")


@dataclass(frozen=True, slots=True)
class LinkNews:
    """A link as it is now, or (`gone`) that it is no more."""

    ifindex: int
    name: str
    is_up: bool
    has_carrier: bool
    gone: bool = False


@dataclass(frozen=True, slots=True)
class AddressNews:
    """An address on a link as it is now, or that it is no more. `cstamp`: 1/100 s of uptime."""

    ifindex: int
    address: IPAddress
    flags: int
    cstamp: int
    gone: bool = False

    @property
    def is_usable(self) -> bool:
        """Duplicate address detection is over and found nothing. An optimistic one may be used."""
        if self.flags & IFA_F_DADFAILED:
            return False
        return not self.flags & IFA_F_TENTATIVE or bool(self.flags & IFA_F_OPTIMISTIC)


@dataclass(frozen=True, slots=True)
class DumpEnded:
    """The answer to the dump with this sequence number is complete (`error`: it failed)."""

    sequence: int
    error: int = 0


News = LinkNews | AddressNews | DumpEnded


def parse(octets: bytes) -> Iterator[tuple[int, int, News]]:
    """(port, sequence number, news) of each message that concerns us; what is cut off or strange
    ends or is passed over, and never raises. The port is that of the socket whose request it
    answers: another's when an event came of another's doing.
    """
    at = 0
    while at + _HEADER.size <= len(octets):
        length, kind, flags, sequence, port = _HEADER.unpack_from(octets, at)
        if length < _HEADER.size or at + length > len(octets):
            return
        body = octets[at + _HEADER.size : at + length]
        news = _message(kind, sequence, body)
        if flags & NLM_F_DUMP_INTR and not (isinstance(news, DumpEnded) and news.error):
            # The tables changed under the dump: it proves nothing, least of all an absence.
            news = DumpEnded(sequence, errno.EINTR)
        if news is not None:
            yield port, sequence, news
        at += (length + 3) & ~3


def _message(kind: int, sequence: int, body: bytes) -> News | None:
    if kind in {RTM_NEWADDR, RTM_DELADDR}:
        return _address(body, kind == RTM_DELADDR)
    if kind in {RTM_NEWLINK, RTM_DELLINK}:
        return _link(body, kind == RTM_DELLINK)
    if kind == NLMSG_DONE:
        return DumpEnded(sequence)
    if kind == NLMSG_ERROR:
        error = int.from_bytes(body[:4], "little", signed=True) if len(body) >= 4 else 0
        return DumpEnded(sequence, -error)
    return None


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _link(body: bytes, gone: bool) -> LinkNews | None:
    if len(body) < _LINK.size:
        return None
    _family, _type, ifindex, flags, _change = _LINK.unpack_from(body)
    name = ""
    for kind, value in _attributes(body, _LINK.size):
        if kind == IFLA_IFNAME:
            name = value.rstrip(b"\0").decode("ascii", "backslashreplace")
    return LinkNews(ifindex, name, bool(flags & IFF_UP), bool(flags & IFF_LOWER_UP), gone)


def _address(body: bytes, gone: bool) -> AddressNews | None:
    if len(body) < _ADDRESS.size:
        return None
    family, _prefix, flags, _scope, ifindex = _ADDRESS.unpack_from(body)
    octets = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family)
    found: dict[int, bytes] = dict(_attributes(body, _ADDRESS.size))
    # IFA_ADDRESS is the peer's on a point-to-point link; IFA_LOCAL is ours when it is there.
    raw = found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b""))
    if octets is None or len(raw) != octets:
        return None
    if len(found.get(IFA_FLAGS, b"")) >= 4:
        flags = int.from_bytes(found[IFA_FLAGS][:4], "little")  # 32 bits of which `flags` has 8
    cache = found.get(IFA_CACHEINFO, b"")
    cstamp = _CACHEINFO.unpack_from(cache)[2] if len(cache) >= _CACHEINFO.size else 0
    address: IPAddress = IPv4Address(raw) if octets == 4 else IPv6Address(raw)
    return AddressNews(ifindex, address, flags, cstamp, gone)


def dump_request(kind: int, sequence: int) -> bytes:
    """Ask for everything: RTM_GETLINK or RTM_GETADDR, all families."""
    body = bytes(_LINK.size if kind == RTM_GETLINK else _ADDRESS.size)
    flags = NLM_F_REQUEST | NLM_F_DUMP
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


class KernelAddresses:
    """Links and addresses as told so far. Pure: `take` news, ask `usable`.

    A dump is collected aside and compared when it is complete, so that what was missed is found:
    `take` answers the news that it amounts to, one after the other.
    """

    def __init__(self) -> None:
        self._links: dict[int, LinkNews] = {}
        self._addresses: dict[tuple[int, IPAddress], AddressNews] = {}
        self._dumping: dict[int, list[News]] = {}
        self.is_complete = False
        """Both first dumps have come; before, that something is missing means nothing."""
        self._dumped: set[int] = set()

    def expect(self, sequence: int) -> None:
        """A dump with this number was asked for; an older one that did not end is forgotten."""
        self._dumping = {s: n for s, n in self._dumping.items() if s % 2 != sequence % 2}
        self._dumping[sequence] = []

    def take(self, sequence: int, news: News) -> bool:
        """True when something changed."""
        collected = self._dumping.get(sequence) if sequence else None
        if isinstance(news, DumpEnded):
            if collected is None:
                return False
            del self._dumping[sequence]
            return not news.error and self._compare(sequence, collected)
        if collected is not None:
            collected.append(news)
            return False
        # A change while a dump is under way also holds against what the dump still brings.
        for pending in self._dumping.values():
            pending.append(news)
        return self._apply(news)

    def _apply(self, news: News) -> bool:
        if isinstance(news, LinkNews):
            before = self._links.get(news.ifindex)
            if news.gone:
                self._links.pop(news.ifindex, None)
                return before is not None
            self._links[news.ifindex] = news
            return before != news
        assert isinstance(news, AddressNews)
        key = news.ifindex, news.address
        known = self._addresses.get(key)
        if news.gone:
            self._addresses.pop(key, None)
            return known is not None
        self._addresses[key] = news
        return known != news

    def _compare(self, sequence: int, collected: list[News]) -> bool:
        fresh = KernelAddresses()
        for news in collected:
            fresh._apply(news)
        changed = False
        if sequence % 2:  # odd: links, even: addresses
            changed, self._links = self._links != fresh._links, fresh._links
        else:
            changed, self._addresses = self._addresses != fresh._addresses, fresh._addresses
        self._dumped.add(sequence % 2)
        first = not self.is_complete and len(self._dumped) == 2
        self.is_complete = self.is_complete or first
        return changed or first

    def usable(self, address: IPAddress) -> AddressNews | None:
        """The instance that can be bound and reached: DAD over, link up, carrier there."""
        for (ifindex, known), news in self._addresses.items():
            if known == address and not self.why_not(ifindex, news):
                return news
        return None

    def why_not(self, ifindex: int, news: AddressNews) -> str:
        """Why this instance cannot be used; "" when it can."""
        link = self._links.get(ifindex)
        if news.flags & IFA_F_DADFAILED:
            return "another machine has it (duplicate address detection failed)"
        if not news.is_usable:
            return "duplicate address detection is still running"
        if link is None:
            return f"its interface {ifindex} is not known"
        if not link.is_up:
            return f"{link.name} is down"
        if not link.has_carrier:
            return f"{link.name} has no carrier"
        return ""

    def explain(self, address: IPAddress) -> str:
        """Why `address` is not usable, in words; "" when it is."""
        reasons = [
            self.why_not(ifindex, news)
            for (ifindex, known), news in self._addresses.items()
            if known == address
        ]
        if not reasons:
            return "not on any interface of this node"
        return "" if "" in reasons else reasons[0]

    def places(self, address: IPAddress) -> list[tuple[LinkNews | None, AddressNews]]:
        """Every interface that has `address`, usable or not."""
        return [
            (self._links.get(ifindex), news)
            for (ifindex, known), news in self._addresses.items()
            if known == address
        ]


def flag_names(flags: int) -> tuple[str, ...]:
    return tuple(name for bit, name in ADDRESS_FLAGS if flags & bit)


# --- the socket -------------------------------------------------------------------------------


def open_socket() -> socket.socket:
    """A non-blocking rtnetlink socket that hears of links and addresses. @raise OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        made.bind((0, GROUPS))
    except BaseException:
        made.close()
        raise
    return made


@implementer(IReadDescriptor)
class AddressWatcher:
    """Feeds a KernelAddresses from a socket. `changed()` is called after each single change;
    `broken(why)` once, when the socket is of no more use.
    """

    def __init__(
        self,
        doors: IDoors,
        clock: IClock,
        changed: Callable[[], None],
        broken: Callable[[str], None],
        *,
        open_socket: Callable[[], Any] = open_socket,
    ) -> None:
        self.table = KernelAddresses()
        self.resyncs = 0
        self._doors = IDescriptorDoor(doors)
        self._clock = clock
        self._changed = changed
        self._broken = broken
        self._open = open_socket
        self._socket: Any = None
        self._watching: IRevocable | None = None
        self._timer: ITimer | None = None
        self._sequence = 0
        self._port = 0
        self._waiters: list[Deferred[None]] = []

    def start(self) -> None:
        """@raise OSError: no netlink here."""
        self._socket = self._open()
        self._port = self._socket.getsockname()[0]
        self._watching = self._doors.watch_descriptor("authority", self)
        self._ask()

    def stop(self) -> None:
        watching, self._watching = self._watching, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if watching is not None:
            watching.revoke()
            self._socket.close()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.errback(ClusterNotInitialised("the kernel's addresses are no longer watched"))

    def refresh(self) -> Deferred[None]:
        """Fires when a dump that was asked for after this call is complete. @raise MTAError."""
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiters.append(waiter)
        self._ask()
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiters.remove(waiter)

    def _ask(self, after: float | None = None) -> None:
        """Links first, addresses after: the kernel answers one dump of a socket at a time."""
        if self._timer is not None:
            self._timer.cancel()
        if after is not None:
            self._timer = self._clock.call_later(after, self._ask)
            return
        self._timer = self._clock.call_later(RESYNC_SECONDS, self._ask)
        self._sequence = (self._sequence + 2) & 0x7FFFFFFE | 1
        self._request(RTM_GETLINK, self._sequence)

    def _request(self, kind: int, sequence: int) -> None:
        self.table.expect(sequence)
        try:
            self._socket.send(dump_request(kind, sequence))
        except OSError:
            self._ask(ASK_AGAIN_SECONDS)

    # IReadDescriptor

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def logPrefix(self) -> str:
        return "netlink"

    def doRead(self) -> None:
        while self._watching is not None:
            try:
                octets = self._socket.recv(READ_OCTETS)
            except BlockingIOError:
                return
            except OSError as fault:
                if fault.errno == errno.ENOBUFS:
                    # Messages were dropped: only a new look tells what is.
                    self.resyncs += 1
                    self._ask()
                    continue
                self._broken(f"netlink: {os.strerror(fault.errno or 0)}")
                return
            self._take(octets)

    def _take(self, octets: bytes) -> None:
        for port, sequence, news in parse(octets):
            own = port == self._port and sequence in {self._sequence, self._sequence + 1}
            if self.table.take(sequence if own else 0, news):
                self._changed()
            if self._watching is None:
                return
            if own and isinstance(news, DumpEnded):
                self._dump_ended(news)

    def _dump_ended(self, dump: DumpEnded) -> None:
        if dump.error:
            self._ask(ASK_AGAIN_SECONDS)
        elif dump.sequence % 2:
            self._request(RTM_GETADDR, dump.sequence + 1)
        else:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def connectionLost(self, reason: Any) -> None:
        """The reactor found the descriptor dead."""
        if self._watching is not None:
            self._broken(f"netlink: {reason}")
