"""Who may send to whom: the one rule that keeps this MTA from being an open relay.

Law: a client in relay-from, or a local user, may send to whatever has a route. Everyone else only
where the most specific address space says `accept: anyone`. The postmaster is always reached
(RFC 5321 4.5.1). No policy can widen this.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from mta.interfaces import IRouting
from mta.model import Address, PeerInfo, Reply, Unroutable, VirtualServer
from mta.settings import is_within

Network = IPv4Network | IPv6Network

_UNSEEMLY = bytes(i for i in range(256) if not 0x21 <= i <= 0x7E)
_SEEMLY = bytes.maketrans(_UNSEEMLY, b"?" * len(_UNSEEMLY))


def refusal(code: int, enhanced: str, recipient: Address, text: bytes) -> Reply:
    """A reply that names the recipient, in the shape that log readers know."""
    return Reply(code, enhanced, (b"<%b>: %b" % (recipient.text.translate(_SEEMLY), text),))


def is_admitted(peer: PeerInfo, networks: tuple[Network, ...]) -> bool:
    """Local users are; others when their address lies in one of the listener's `relay-from`."""
    return peer.uid is not None or is_within(peer.host, networks)


class RelayRule:
    """Decides on one recipient: the address to accept it for, or the reply that refuses it."""

    def __init__(self, routing: IRouting, postmaster: Address, server: VirtualServer) -> None:
        self._routing = routing
        self._postmaster = postmaster
        own = {b"", server.network_name.lower().rstrip(".").encode("ascii", "replace")}
        for address in server.addresses:
            for ip in (address.external, address.bind):
                own.add(f"[{'ipv6:' if ip.version == 6 else ''}{ip}]".encode())
        self._own_domains = frozenset(own)

    def decide(self, recipient: Address, admitted: bool) -> Address | Reply:
        """Another address than the one given means: it goes to the postmaster."""
        if recipient.domain in self._own_domains and recipient.local.lower() == b"postmaster":
            return self._postmaster
        if not admitted and not self._routing.accepts_anyone(recipient):
            return refusal(554, "5.7.1", recipient, b"Relay access denied")
        return self.unroutable(recipient) or recipient

    def unroutable(self, recipient: Address) -> Reply | None:
        """The reply for an address that no connector takes. Why stays with the operator
        (`mta route explain`): the peer is told nothing of our topology.
        """
        route = self._routing.route(recipient, None)
        if isinstance(route, Unroutable):
            text = b"No route" if route.code >= 500 else b"No route at present"
            return refusal(route.code, route.enhanced, recipient, text)
        return None
