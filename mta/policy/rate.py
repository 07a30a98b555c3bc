"""The built-in policy `limits`: how much one client may send in how short a time.

Law: memory is bounded whatever comes: the clients seen longest ago are forgotten first, and start
afresh. Nobody is refused for good: every refusal is transient (RFC 5321 4.2.1), and waiting helps.
Counting is an estimate, so that a hook which runs twice does no harm but a little strictness.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_address

from pydantic import Field
from zope.interface import implementer

from mta.interfaces import IPolicy, ISurroundings, ITransaction
from mta.model import Reply
from mta.settings import Count, Duration, Network, Settings

_CONNECTIONS, _MESSAGES, _RECIPIENTS = range(3)
_NOTE = "limits.client"

TOO_MANY = (
    Reply(421, "4.7.0", (b"Too many connections from your address, try again later",)),
    Reply(450, "4.7.1", (b"Too many messages from your address, try again later",)),
    Reply(450, "4.7.1", (b"Too many recipients from your address, try again later",)),
)


class RateSettings(Settings):
    """The keys of a `limits` policy. A client is an IPv4 address or an IPv6 network."""

    interval: Duration = Field(
        default=60.0, gt=0.0, description="The time in which the numbers below are counted."
    )
    connections: Count = Field(default=120, description="Associations of one client an interval.")
    messages: Count = Field(default=600, description="Messages of one client an interval.")
    recipients: Count = Field(default=6000, description="Recipients of one client an interval.")
    ipv6_prefix: int = Field(
        default=64, ge=16, le=128, description="Addresses that share such a prefix are one client."
    )
    exempt: tuple[Network, ...] = Field(
        default=(), description="Networks without limits. Local users never have one here."
    )
    clients: Count = Field(
        default=20_000, description="Clients remembered at once, about 300 octets each."
    )


@implementer(IPolicy)
class RateLimits:
    """Each limit allows a burst of a whole interval's number, and refills evenly."""

    name = "limits"
    hooks = frozenset({"connect", "mail", "rcpt"})

    def __init__(self, settings: RateSettings, surroundings: ISurroundings) -> None:
        self._clock = surroundings.clock
        self._settings = settings
        self._interval = settings.interval
        self._spacing = tuple(
            settings.interval / number
            for number in (settings.connections, settings.messages, settings.recipients)
        )
        # For each client and kind, the time at which its allowance will be full again.
        self._full_at: OrderedDict[object, list[float]] = OrderedDict()

    @property
    def clients(self) -> int:
        """How many are remembered now."""
        return len(self._full_at)

    def on(self, hook: str, transaction: ITransaction) -> Reply | None:
        kind = {"connect": _CONNECTIONS, "mail": _MESSAGES}.get(hook, _RECIPIENTS)
        notes = transaction.association_notes
        if _NOTE not in notes:
            notes[_NOTE] = self._client(transaction)
        client = notes[_NOTE]
        if client is None or self._spend(client, kind):
            return None
        return TOO_MANY[kind]

    def _client(self, transaction: ITransaction) -> object:
        """Whom it counts for; None: nobody."""
        if transaction.peer.uid is not None:
            return None
        try:
            address = ip_address(transaction.peer.host)
        except ValueError:
            return transaction.peer.host
        if address.version == 6:
            address = address.ipv4_mapped or address
        if any(address.version == n.version and address in n for n in self._settings.exempt):
            return None
        if address.version == 6:
            return int(address) >> (128 - self._settings.ipv6_prefix), 6
        return int(address)

    def _spend(self, client: object, kind: int) -> bool:
        """Take one from the client's allowance; False: it is used up, and none was taken."""
        now = self._clock.monotonic()
        times = self._full_at.get(client)
        if times is None:
            if len(self._full_at) >= self._settings.clients:
                self._full_at.popitem(last=False)
            times = self._full_at[client] = [0.0, 0.0, 0.0]
        else:
            self._full_at.move_to_end(client)
        full_at = max(times[kind], now) + self._spacing[kind]
        # A millionth of an interval for the rounding of many small sums.
        if full_at - now > self._interval * 1.000001:
            return False
        times[kind] = full_at
        return True
