"""The built-in policy `limits`: how much one client, user or recipient may have in how short a
time, and how many transactions a user or a recipient may have open at once.

Law: memory is bounded whatever comes (mta/policy/allowance.py). Nobody is refused for good: every
refusal is transient (RFC 5321 4.2.1), and waiting helps. Rates are an estimate, so that a hook
which runs twice does no harm but a little strictness; open transactions are exact: a place is given
back when its transaction or its association ends, however that comes about, and once.

RFC 5321 4.5.1: mail to a postmaster is not counted for its recipient. RFC 3463: 4.2.1 is about the
mailbox, 4.7.x about whoever sends.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from zope.interface import implementer

from mta.interfaces import IPolicy, ISurroundings, ITransaction
from mta.model import Address, Reply
from mta.policy.allowance import Allowances, Places
from mta.settings import Count, Duration, Network, Settings
from mta.wire.smtp.grammar import parse_mailbox

_CONNECTIONS, _MESSAGES, _RECIPIENTS = range(3)
_NOTE = "limits.client"
_CLAIM = "limits.claim"
_OPEN = "limits.open"
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

TOO_MANY = (
    Reply(421, "4.7.0", (b"Too many connections from your address, try again later",)),
    Reply(450, "4.7.1", (b"Too many messages from your address, try again later",)),
    Reply(450, "4.7.1", (b"Too many recipients from your address, try again later",)),
)
USER_MESSAGES = Reply(450, "4.7.1", (b"Too many messages under your name, try again later",))
USER_RECIPIENTS = Reply(450, "4.7.1", (b"Too many recipients under your name, try again later",))
USER_TRANSACTIONS = Reply(
    450, "4.7.1", (b"Too many transactions at once under your name, try again later",)
)
RECIPIENT_MESSAGES = Reply(
    450, "4.2.1", (b"Too many messages for this recipient, try again later",)
)
RECIPIENT_TRANSACTIONS = Reply(
    450, "4.2.1", (b"Too many messages at once for this recipient, try again later",)
)
_KINDS = {
    TOO_MANY[0]: "client-connections",
    TOO_MANY[1]: "client-messages",
    TOO_MANY[2]: "client-recipients",
    USER_MESSAGES: "user-messages",
    USER_RECIPIENTS: "user-recipients",
    USER_TRANSACTIONS: "user-transactions",
    RECIPIENT_MESSAGES: "recipient-messages",
    RECIPIENT_TRANSACTIONS: "recipient-transactions",
}


def recipient_key(address: Address) -> Hashable:
    """What counts as one recipient: neither case nor needless quotes make another of it."""
    local = address.local.decode("utf-8", "surrogateescape")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
    return address.kind, local.casefold(), address.domain


def parse_exempt_recipient(value: Any) -> Hashable:
    """@raise ValueError: that is no mail address."""
    if not isinstance(value, str):
        raise ValueError("expected a mail address")
    return recipient_key(parse_mailbox(value.encode(), utf8=True))


class UserLimits(Settings):
    """The `per-user:` of a `limits` policy."""

    messages: Count | None = Field(default=None, description="Messages of one user an interval.")
    recipients: Count | None = Field(
        default=None, description="Recipients of one user an interval."
    )
    transactions: Count | None = Field(
        default=None, description="Transactions (from MAIL on) of one user at once."
    )
    exempt: tuple[str, ...] = Field(default=(), description="Users without these limits.")


class RecipientLimits(Settings):
    """The `per-recipient:` of a `limits` policy."""

    messages: Count | None = Field(
        default=None, description="Messages to one address an interval, whoever sends them."
    )
    transactions: Count | None = Field(
        default=None, description="Transactions at once that name one address."
    )
    exempt: tuple[Annotated[Any, BeforeValidator(parse_exempt_recipient)], ...] = Field(
        default=(),
        description="Addresses without these limits. postmaster never has one, at any domain.",
    )


class RateSettings(Settings):
    """The keys of a `limits` policy. A client is an IPv4 address or an IPv6 network."""

    interval: Duration = Field(
        default=60.0, gt=0.0, description="The time in which the numbers below are counted."
    )
    connections: Count = Field(default=120, description="Associations of one client an interval.")
    messages: Count = Field(default=600, description="Messages of one client an interval.")
    recipients: Count = Field(default=6000, description="Recipients of one client an interval.")
    per_user: UserLimits = Field(
        default_factory=UserLimits,
        description="Limits of whoever has said who it is (AUTH), from wherever it comes.",
    )
    per_recipient: RecipientLimits = Field(
        default_factory=RecipientLimits,
        description="Limits of an address in RCPT, without regard to case. One that is over them"
        " is refused for now, and the other recipients of the message are not.",
    )
    ipv6_prefix: int = Field(
        default=64, ge=16, le=128, description="Addresses that share such a prefix are one client."
    )
    exempt: tuple[Network, ...] = Field(
        default=(), description="Networks without limits. Local users never have one here."
    )
    clients: Count = Field(
        default=20_000,
        description="Clients remembered at once, about 300 octets each; as many users, and as many"
        " recipients, where these have limits.",
    )


class _Claim:
    """What one transaction counts for: each key once, however often it is named."""

    __slots__ = ("has_user", "recipients", "user")

    def __init__(self) -> None:
        self.has_user = False
        self.user: Hashable = ""
        """"" for none."""
        self.recipients: set[Hashable] = set()


@implementer(IPolicy)
class RateLimits:
    """Each limit allows a burst of a whole interval's number, and refills evenly."""

    name = "limits"

    def __init__(self, settings: RateSettings, surroundings: ISurroundings) -> None:
        self._clock = surroundings.clock
        self._settings = settings
        user, recipient = settings.per_user, settings.per_recipient
        interval, capacity = settings.interval, settings.clients
        self._clients = Allowances(
            interval, (settings.connections, settings.messages, settings.recipients), capacity
        )
        self._users = Allowances(interval, (None, user.messages, user.recipients), capacity)
        self._addresses = Allowances(interval, (None, recipient.messages), capacity)
        self._of_users = Places(user.transactions)
        self._of_addresses = Places(recipient.transactions)
        self._exempt_users = frozenset(name.casefold() for name in user.exempt)
        self._exempt_addresses = frozenset(recipient.exempt)
        self._counts_users = any((user.messages, user.recipients, user.transactions))
        self._counts_addresses = any((recipient.messages, recipient.transactions))
        self._claims = self._counts_users or self._counts_addresses
        # A name of our own for each note: two policies `limits` do not read each other's.
        own = f".{id(self)}"
        self._note, self._claim_note, self._open_note = _NOTE + own, _CLAIM + own, _OPEN + own
        asked = {"connect", "mail", "rcpt"}
        self.hooks = frozenset(asked | {"queued", "abort", "disconnect"} if self._claims else asked)
        self._refused = {
            reply: surroundings.telemetry.counter(
                "mta_limits_refused_total", "What the policy limits refused for now.", kind=kind
            )
            for reply, kind in _KINDS.items()
        }

    @property
    def clients(self) -> int:
        """How many are remembered now."""
        return len(self._clients)

    @property
    def places(self) -> int:
        """How many users and recipients have a transaction open now, where these are limited."""
        return len(self._of_users) + len(self._of_addresses)

    def on(self, hook: str, transaction: ITransaction) -> Reply | None:
        if hook in {"queued", "abort"}:
            self._end(transaction)
            return None
        if hook == "disconnect":
            self._end_all(transaction)
            return None
        reply = self._judge(hook, transaction)
        if reply is not None:
            self._refused[reply].inc()
        return reply

    def _judge(self, hook: str, transaction: ITransaction) -> Reply | None:
        kind = {"connect": _CONNECTIONS, "mail": _MESSAGES}.get(hook, _RECIPIENTS)
        notes = transaction.association_notes
        if self._note not in notes:
            notes[self._note] = self._client(transaction)
        client = notes[self._note]
        if client is None:
            return None
        now = self._clock.monotonic()
        if not self._clients.spend(client, kind, now):
            return TOO_MANY[kind]
        if not self._claims or kind == _CONNECTIONS:
            return None
        claim = self._claim(transaction)
        if kind == _MESSAGES:
            return self._mail(claim, transaction.user, now)
        return self._rcpt(claim, transaction, now)

    def _mail(self, claim: _Claim, name: str, now: float) -> Reply | None:
        if claim.has_user or not self._counts_users or not name:
            return None
        user = name.casefold()
        if user in self._exempt_users:
            return None
        if not self._of_users.is_free(user):
            return USER_TRANSACTIONS
        if not self._users.spend(user, _MESSAGES, now):
            return USER_MESSAGES
        self._of_users.take(user)
        claim.user, claim.has_user = user, True
        return None

    def _rcpt(self, claim: _Claim, transaction: ITransaction, now: float) -> Reply | None:
        if claim.has_user and not self._users.spend(claim.user, _RECIPIENTS, now):
            return USER_RECIPIENTS
        recipient = transaction.recipient
        if recipient is None or not self._counts_addresses:
            return None
        key = recipient_key(recipient.address)
        if key in claim.recipients or key in self._exempt_addresses:
            return None
        if recipient.address.local.lower() == b"postmaster":
            return None
        if not self._of_addresses.is_free(key):
            return RECIPIENT_TRANSACTIONS
        if not self._addresses.spend(key, 1, now):
            return RECIPIENT_MESSAGES
        self._of_addresses.take(key)
        claim.recipients.add(key)
        return None

    # --- open transactions ---

    def _claim(self, transaction: ITransaction) -> _Claim:
        """That of this transaction. Its association knows it too: a commit that nobody can vouch
        for is told neither as queued nor as abort, but its association ends.
        """
        notes = transaction.notes
        claim: _Claim | None = notes.get(self._claim_note)
        if claim is None:
            claim = notes[self._claim_note] = _Claim()
            transaction.association_notes.setdefault(self._open_note, set()).add(claim)
        return claim

    def _end(self, transaction: ITransaction) -> None:
        claim = transaction.notes.pop(self._claim_note, None)
        open_claims = transaction.association_notes.get(self._open_note)
        if claim is not None and open_claims and claim in open_claims:
            open_claims.remove(claim)
            self._give_back(claim)

    def _end_all(self, transaction: ITransaction) -> None:
        for claim in transaction.association_notes.pop(self._open_note, ()):
            self._give_back(claim)

    def _give_back(self, claim: _Claim) -> None:
        if claim.has_user:
            self._of_users.give_back(claim.user)
        for key in claim.recipients:
            self._of_addresses.give_back(key)

    # --- the client ---

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
