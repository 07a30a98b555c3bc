"""Behind a load balancer: the header that names the client is read before a responder exists.

Law: only who is in `proxy-from` is believed, and from there a header must come first, in time. Who
sends none is reset without a word and named in the log, once a flood; of what it said nothing gets
there. From the header on the client is who it names: for limits, relaying, the journal's reader and
the log. The socket's own ends stay known (`PeerInfo.via`), for a new owner resets sockets.

haproxy's proxy-protocol.txt (2.x), section 2; the machine is wire/proxy.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mta.association.deadline import Deadline
from mta.association.transport import abort_now, hand_over
from mta.interfaces import IClock
from mta.model import PeerInfo
from mta.settings import is_within
from mta.telemetry import Telemetry
from mta.wire.proxy import Header, HeaderReader, Refusal

FLOOD_SECONDS = 60.0
"""One line of the log for all refusals of a listener in this time: a probe that sends no header
comes every two seconds, for ever."""

Build = Callable[[PeerInfo], IProtocol]


class Balancers:
    """Those that one listener believes, and what waits for their headers."""

    def __init__(
        self,
        networks: Sequence[IPv4Network | IPv6Network],
        seconds: float,
        listener: str,
        clock: IClock,
        telemetry: Telemetry,
    ) -> None:
        self._networks = tuple(networks)
        self._seconds = seconds
        self._listener = listener
        self._clock = clock
        self._telemetry = telemetry
        self._waiting: dict[HeaderAwaited, None] = {}
        self._quiet_until = 0.0
        self._unsaid = 0
        self._refused = telemetry.counter(
            "mta_proxy_headers_refused_total",
            "Connections of load balancers that were reset for want of a right header.",
            listener=listener,
        )

    def include(self, peer: PeerInfo) -> bool:
        return bool(self._networks) and is_within(peer.host, self._networks)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def introduce(self, peer: PeerInfo, build: Build) -> IProtocol:
        """Reads the header; then `build` is asked for the protocol, with the client in the place of
        the balancer.
        """
        made = HeaderAwaited(peer, build, self)
        self._waiting[made] = None
        return made

    def dismiss(self, build: Callable[[], IProtocol]) -> None:
        """Whoever still waits gets this protocol instead: the listener ends."""
        for waiting in tuple(self._waiting):
            waiting.pass_to(build())

    # --- told by those that wait

    def deadline(self, expired: Callable[[], None]) -> Deadline:
        made = Deadline(self._clock, expired)
        made.set(self._seconds)
        return made

    def ended(self, waiting: HeaderAwaited) -> None:
        self._waiting.pop(waiting, None)

    def overdue(self, peer: PeerInfo) -> None:
        self._say(peer, f"sent no whole PROXY header within {self._seconds:g} s")

    def refused(self, peer: PeerInfo, refusal: Refusal) -> None:
        self._say(peer, refusal.value)

    def _say(self, peer: PeerInfo, why: str) -> None:
        self._refused.inc()
        now = self._clock.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        self._quiet_until, self._unsaid = now + FLOOD_SECONDS, 0
        self._telemetry.notice(
            "warning",
            "association",
            f"{self._listener}: {peer.host} is in proxy-from, but {why}; it was reset{more}: let it"
            " send one (send-proxy, also for its checks), or take it out of proxy-from",
        )

    def dropped(self, fault: Exception) -> None:
        text = f"{self._listener}: a connection was dropped behind its PROXY header: {fault}"
        self._telemetry.notice("error", "association", text)


class HeaderAwaited(Protocol):
    """A balancer's connection until its client has a name."""

    transport: Any

    def __init__(self, peer: PeerInfo, build: Build, balancers: Balancers) -> None:
        self._peer = peer
        self._build = build
        self._balancers = balancers
        self._reader = HeaderReader()
        self._deadline: Deadline | None = None
        self._is_done = False

    def connectionMade(self) -> None:
        self._deadline = self._balancers.deadline(self._expired)

    def dataReceived(self, data: bytes) -> None:
        if self._is_done:
            return
        found = self._reader.receive(data)
        if isinstance(found, Header):
            self._introduced(found)
        elif found is not None:
            self._over()
            self._balancers.refused(self._peer, found)
            abort_now(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over()  # also who came only to see that the port is open

    def pass_to(self, protocol: IProtocol) -> None:
        """It has the connection from now on, with what came behind the header."""
        self._over()
        hand_over(self.transport, protocol, self._reader.rest)

    def _introduced(self, header: Header) -> None:
        self._over()
        try:
            self.pass_to(self._build(client_of(self._peer, header)))
        except Exception as fault:  # as a port does with what it has accepted
            self._balancers.dropped(fault)
            abort_now(self.transport)

    def _expired(self) -> None:
        self._over()
        self._balancers.overdue(self._peer)
        abort_now(self.transport)

    def _over(self) -> None:
        self._is_done = True
        self._balancers.ended(self)
        if self._deadline is not None:
            self._deadline.cancel()


def client_of(balancer: PeerInfo, header: Header) -> PeerInfo:
    """The client that the header names; the balancer itself where it names none."""
    if header.source is None:
        return balancer
    host, port = header.source.host, header.source.port
    # One client is one address for limits, whichever clothes it wears.
    plain = getattr(host, "ipv4_mapped", None) or host
    return replace(balancer, host=str(plain), port=port, via=balancer.ends)
