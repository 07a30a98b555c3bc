"""The frozen values that every room shares: addresses, envelopes, routes, grants.

Law: values only. Nothing here does I/O, keeps state or knows a protocol's grammar. Wire text is
`bytes`; `str` is for names that people gave (connectors, nodes, network names) and for queue ids.
Long because the values refer to each other and are read together.

Both worlds, SMTP and X.400, live in these types from the first day: addresses, address spaces and
contents carry their kind, and an envelope says what it is (message, report or probe).
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import TypeVar, dataclass_transform

IPAddress = IPv4Address | IPv6Address
T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots, equal and hashed by its fields. mypy refuses assignment to a
    field; a running program does not, for then every field of every value would be set by
    `object.__setattr__`: 1.0 us for a value of eight fields, not 0.17, and 4 % of what a relayed
    message costs. Copies come from `dataclasses.replace`.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


# --- addresses ------------------------------------------------------------------------------


class AddressKind(enum.Enum):
    """The world an address belongs to."""

    SMTP = "smtp"
    X400 = "x400"


@value
class Address:
    """One originator or recipient address.

    For SMTP `text` is the mailbox without angle brackets and without a source route, as it came
    (the local part keeps its case); b"" is the null reverse-path. `domain` is in lower case,
    A-label form, without a trailing dot; an address literal keeps its brackets. For X.400 `text`
    is the encoded O/R address and `domain` is empty.
    """

    text: bytes
    domain: bytes = b""
    kind: AddressKind = AddressKind.SMTP

    @property
    def local(self) -> bytes:
        """The local part as written, quotes included."""
        return self.text.rpartition(b"@")[0] if b"@" in self.text else self.text

    @property
    def is_null(self) -> bool:
        return not self.text

    def __str__(self) -> str:
        return self.text.decode("utf-8", "backslashreplace")


NULL_ADDRESS = Address(b"")

# --- replies --------------------------------------------------------------------------------


@value
class Reply:
    """A reply to a command (RFC 5321 4.2). `enhanced` is "x.y.z" (RFC 3463) or "" for none.

    `lines` never hold CR or LF; whoever builds a Reply from foreign text neutralises it first.
    """

    code: int
    enhanced: str
    lines: tuple[bytes, ...] = (b"",)

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 400

    @property
    def is_transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    @property
    def text(self) -> str:
        """One line for people and logs: code, enhanced code, lines joined by blanks."""
        lines = self.lines
        words = (lines[0] if len(lines) == 1 else b" ".join(lines)).decode(
            "utf-8", "backslashreplace"
        )
        if self.enhanced and words:
            return f"{self.code} {self.enhanced} {words}"
        return " ".join(part for part in (str(self.code), self.enhanced, words) if part)


# --- recipients, envelopes, message state -----------------------------------------------------


class Notify(enum.IntFlag):
    """RFC 3461 NOTIFY. UNSET means the sender did not say: failure (and delay) are reported."""

    UNSET = 0
    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8

    __and__ = int.__and__  # type: ignore[assignment]  # a fact is asked for: 30 ns for 600


@value
class Recipient:
    """One envelope recipient. `original` is RFC 3461 ORCPT as it travels ("rfc822;xtext"), b"" if
    there is none: not given, and the address is the one that the message came for.
    """

    address: Address
    notify: Notify = Notify.UNSET
    original: bytes = b""


class EnvelopeKind(enum.Enum):
    MESSAGE = "message"
    REPORT = "report"
    PROBE = "probe"


class BodyType(enum.Enum):
    SEVEN_BIT = "7BIT"
    EIGHT_BIT_MIME = "8BITMIME"
    BINARY_MIME = "BINARYMIME"


class ContentForm(enum.Enum):
    """How the content lies in the spool.

    DOT_STUFFED: SMTP wire form as it crossed DATA, ends in CRLF, without the final dot line.
    OPAQUE: octets as they are (BDAT, X.400 P2/P22).
    """

    DOT_STUFFED = "dot-stuffed"
    OPAQUE = "opaque"


PRIORITIES = range(-9, 10)
"""RFC 6710: the higher the sooner; 0 is that of whoever did not ask."""


class Grade(enum.Enum):
    """X.400's grades of delivery."""

    URGENT = "urgent"
    NORMAL = "normal"
    NON_URGENT = "non-urgent"


def grade_of(priority: int) -> Grade:
    """4, 0 and -4 are X.400's (RFC 6710, profile MIXER); between them it is as with military
    messages: Flash (4) and above are urgent, Routine (-2) and below are not.
    """
    if priority >= 4:
        return Grade.URGENT
    return Grade.NORMAL if priority > -2 else Grade.NON_URGENT


class Requires(enum.IntFlag):
    """What a message asks of its way. Without the properties of the transport it must not travel;
    IN_TIME: nor beyond those who keep to its `deliver_by`, nor after it. TRACE forbids nothing.
    """

    NOTHING = 0
    TLS = 1
    EIGHT_BIT = 2
    UTF8 = 4
    IN_TIME = 8
    """RFC 2852, BY=...;R: it is returned when its time is over."""
    TRACE = 16
    """RFC 2852, BY=...;...T: its sender hears of each server that it is handed on to."""

    __and__ = int.__and__  # type: ignore[assignment]  # a fact is asked for: 30 ns for 600


@value
class Envelope:
    """All that travels beside the content. Never changes after it was accepted.

    Times are wall-clock seconds since 1970. `association` names the association it came by
    (`smtp/in/17`), `ordinal` counts the messages of that association from 1 (in-doubt list).
    `envelope_id` is ENVID as it travels (xtext); `ret_full` is RET, None when it was not said;
    `priority` one of PRIORITIES. `deliver_by` is when its time is over (RFC 2852): it is returned
    then if it `requires` IN_TIME, else its sender is told that it is late.
    """

    sender: Address
    recipients: tuple[Recipient, ...]
    kind: EnvelopeKind = EnvelopeKind.MESSAGE
    body_type: BodyType = BodyType.SEVEN_BIT
    content_form: ContentForm = ContentForm.DOT_STUFFED
    envelope_id: bytes = b""
    ret_full: bool | None = None
    priority: int = 0
    requires: Requires = Requires.NOTHING
    received_at: float = 0.0
    deferred_until: float | None = None
    deliver_by: float | None = None
    trace_hops: int = 0
    association: str = ""
    ordinal: int = 0
    client: str = ""
    message_id: bytes = b""

    @property
    def began_at(self) -> float:
        """When its time in the queue began: at once, or when its client let it go (RFC 4865)."""
        return max(self.received_at, self.deferred_until or 0.0)


class RecipientStatus(enum.IntEnum):
    """Pending may become any of the others; the others are final."""

    PENDING = 0
    DELIVERED = 1
    FAILED = 2


@value
class RecipientState:
    """What became of one recipient so far; `reply` is the last remote (or local) reply text."""

    status: RecipientStatus = RecipientStatus.PENDING
    reply: str = ""
    enhanced: str = ""
    remote: str = ""


UNTOUCHED = RecipientState()
"""Nothing has become of that recipient yet."""


@value
class MessageState:
    """The newest state of a queued message; `recipients` is parallel to the envelope's.

    `due` is wall-clock seconds; `held` messages are never due. `delay_warned` is set in the batch
    that commits the delay notice, so that it is sent once.
    """

    recipients: tuple[RecipientState, ...]
    attempts: int = 0
    due: float = 0.0
    held: bool = False
    delay_warned: bool = False
    last_attempt: float = 0.0

    @property
    def pending(self) -> tuple[int, ...]:
        """Indexes of the recipients that still need an attempt."""
        return tuple(
            i for i, r in enumerate(self.recipients) if r.status is RecipientStatus.PENDING
        )


def fresh_state(envelope: Envelope) -> MessageState:
    """The state of a message that was just accepted: all pending, due at once (or when asked)."""
    return MessageState(
        recipients=(UNTOUCHED,) * len(envelope.recipients),
        due=envelope.deferred_until or envelope.received_at,
    )


# --- queue ids --------------------------------------------------------------------------------

SERIAL_BITS = 40
"""Messages an epoch can make: 2**40, 34 years at 1000 a second."""


def queue_id(epoch: int, serial: int) -> str:
    """The queue id of the `serial`-th message of `epoch`: upper-case hexadecimal.

    Unique for ever over nodes and epochs, because an epoch has one owner. Postfix's short ids
    have the same alphabet, so that log parsers take it.
    """
    return f"{epoch << SERIAL_BITS | serial:014X}"


def derived_queue_id(origin: str, kind: str, recipients: tuple[int, ...]) -> str:
    """The id of a report about `recipients` (indexes) of `origin`; the same facts, the same id.

    So a report whose batch is written twice is one report. `kind` is "failed", "delayed", ...
    """
    facts = f"{origin}/{kind}/{','.join(map(str, recipients))}".encode()
    return f"{origin[:16]}{zlib.crc32(facts):08X}"


# --- routing ----------------------------------------------------------------------------------


@value
class AddressSpace:
    """A pattern that a connector advertises, and at what cost (1 to 100, lower wins).

    `pattern` is one of `user@example.com` (b"@" inside), `example.com`, `*.example.com`, `*`;
    domains as A-labels in lower case. `accept_anyone`: every client may send to it.
    """

    pattern: bytes
    cost: int = 10
    accept_anyone: bool = False
    kind: AddressKind = AddressKind.SMTP


@value
class Bridgehead:
    """A server that ends a connector. `host` is an IP address or a name; lower preference first."""

    host: str
    port: int = 25
    preference: int = 10

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class InDoubt(enum.Enum):
    RESEND = "resend"
    HOLD = "hold"


@value
class Connector:
    """A configured path to a site. `kind` names the association kind that speaks over it.

    Exactly one of: `bridgeheads` not empty, `by_mx`, or neither (kinds that have no far end
    address, such as maildir and discard). `concurrency` counts associations a destination.
    """

    name: str
    kind: str
    address_spaces: tuple[AddressSpace, ...]
    bridgeheads: tuple[Bridgehead, ...] = ()
    by_mx: bool = False
    concurrency: int = 20
    in_doubt: InDoubt = InDoubt.RESEND
    port: int = 25


@value
class Candidate:
    """One connector that was looked at for an address: why it won, or why it lost."""

    connector: str
    pattern: bytes
    cost: int
    is_up: bool
    verdict: str


@value
class Route:
    """Where a recipient goes. `destination` is the key by which the scheduler groups work.

    `destination` is the connector's name for bridgeheads, or `name/domain` with MX delivery.
    `bridgeheads` are in the order of trying; empty with MX delivery (`mx_domain` is then set).
    `alternatives` are the routes to take when every bridgehead of this one is unreachable.
    """

    connector: str
    destination: str
    bridgeheads: tuple[Bridgehead, ...]
    cost: int
    why: str
    mx_domain: bytes = b""
    candidates: tuple[Candidate, ...] = ()
    alternatives: tuple[Route, ...] = ()


@value
class Unroutable:
    """No connector takes the address. `enhanced` is what the peer is told (5.1.2, 4.4.4 ...)."""

    why: str
    code: int = 550
    enhanced: str = "5.1.2"
    candidates: tuple[Candidate, ...] = ()


@value
class Proven:
    """What DNSSEC has proved of a host: how mail came to it, and its addresses (RFC 7672 2.2).

    `bases` are the names below which its TLSA records are looked up, the first that has any counts
    (RFC 7672 2.2.3: what its name is an alias of, then the name). `domains` are the names that mail
    was for: a certificate from an authority of its own may bear them too (3.2.2).
    """

    bases: tuple[str, ...]
    domains: tuple[str, ...]


class StsMode(enum.Enum):
    """What a domain wants of those who cannot meet its policy (RFC 8461 5)."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@value
class StsPolicy:
    """A policy of MTA-STS (RFC 8461 3.2). `mx`: host names in lower case, `*.` for one label."""

    mode: StsMode
    mx: tuple[str, ...]
    max_age: int
    """Seconds for which it holds, from when it was fetched."""


@value
class TlsManner:
    """How an initiator begins a handshake. With `verify` a chain that leads to no trusted authority
    ends it. `minimum` is the oldest version, "1.2" or "1.3"; "" is what the process speaks.
    `certificate` is what a server that asks is shown: "" nothing, "own" what the virtual server
    shows its clients, otherwise the files of the chain and of the key.
    """

    verify: bool
    minimum: str = ""
    certificate: str | tuple[str, str] = ""


@value
class NextHop:
    """One server to try for one transfer: what an association kind opens an association to.

    `host` is always an IP address for kinds that connect; `name` is the name it was found by (TLS,
    logs). Kinds without a far end (maildir, discard) get the connector's name and port 0. `proven`
    is None unless the resolver vouches for the whole way from the route to this address. `domain`
    is what the terms of the association go by: with MX delivery the domain of the mail (A-labels),
    otherwise the bridgehead's name, "" where that is an address.
    """

    connector: str
    destination: str
    host: str
    port: int
    name: str = ""
    proven: Proven | None = None
    domain: str = ""

    @property
    def relay(self) -> str:
        """Postfix's `relay=` field: name[address]:port, or the connector's name."""
        return f"{self.name or self.host}[{self.host}]:{self.port}" if self.port else self.host


class OutcomeKind(enum.Enum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The final dot went, the reply did not come (RFC 1047): in doubt."""


@value
class Outcome:
    """What one transfer brought for one recipient (index into the envelope's recipients).

    `next_transfer`: a refusal that says nothing about the recipient (452 too many recipients):
    it goes into the next transaction at once and counts as no attempt.
    """

    recipient: int
    kind: OutcomeKind
    reply: Reply
    next_transfer: bool = False


# --- the cluster ------------------------------------------------------------------------------


class Scope(enum.Enum):
    LOCAL = "local"
    MAPPED = "mapped"


@value
class VirtualAddress:
    """An address of the virtual server: what peers see and what we bind (MAPPED: they differ)."""

    external: IPAddress
    bind: IPAddress
    required: bool = True

    @property
    def scope(self) -> Scope:
        return Scope.LOCAL if self.external == self.bind else Scope.MAPPED

    def __str__(self) -> str:
        if self.scope is Scope.LOCAL:
            return str(self.bind)
        return f"{self.external} (bound as {self.bind})"


@value
class AddressInstance:
    """One life of an address on an interface: unchanged by `ip addr replace`, new after del+add.

    `cstamp` is IFA_CACHEINFO's creation stamp in 1/100 s of uptime (measured, v4 and v6).
    """

    boot_id: str
    ifindex: int
    address: IPAddress
    cstamp: int


class Fencing(enum.Enum):
    """What keeps a stopped or cut-off former owner from writing."""

    NONE = "none"
    EXTERNAL = "external"
    STORAGE = "storage"
    SELF = "self"


@value
class Grant:
    """An authority's word that this node owns the virtual server.

    `token` is the authority's number, or 0; the spool never orders by it. `valid_until` is
    CLOCK_BOOTTIME seconds, or None for an authority that takes back by an event only.
    """

    token: int
    network_name: str
    addresses: tuple[VirtualAddress, ...]
    fencing: Fencing
    valid_until: float | None = None
    instances: tuple[AddressInstance, ...] = ()

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError("a grant without an address cannot exist")


@value
class VirtualServer:
    """What the configuration says the virtual server is."""

    network_name: str
    addresses: tuple[VirtualAddress, ...]


# --- the spool --------------------------------------------------------------------------------


class Sharing(enum.Enum):
    NONE = "none"
    SAME_KERNEL = "same-kernel"
    CLUSTER_FS = "cluster-fs"
    NFS = "nfs"
    FAILOVER_MOUNT = "failover-mount"


@value
class Guarantees:
    """What a store promises. A configuration that needs more is refused at start."""

    durable: str
    """"fsync", "quorum" or "process"."""
    shared: bool
    fenced_in_store: bool


@value
class Claim:
    """What a node writes into the epoch file when it publishes (spool.md section 3)."""

    node: str
    boot_id: str
    process_started: float
    version: str
    configuration_digest: str
    grant: Grant
    former_instances: tuple[AddressInstance, ...] = ()
    """What older epochs have used, newest first, also those whose files are gone."""


@value
class EpochRecord:
    """One epoch file as it reads now. `heartbeat` is a counter, not a time."""

    epoch: int
    node: str
    boot_id: str
    superseded: bool
    released: bool
    heartbeat: int
    instances: tuple[AddressInstance, ...] = ()
    """What it has used: claimed with, or served with since (cluster.md section 4)."""
    former_instances: tuple[AddressInstance, ...] = ()
    """See Claim."""
    process_started: float = 0.0
    version: str = ""
    configuration_digest: str = ""
    suspended: bool = False
    """Its owner says that a required address is away and nothing is open."""
    is_damaged: bool = False
    """Its claim cannot be read: who holds it, and by which instances, is not known."""


REMEMBERED = 64
"""Address instances that an epoch file carries on: two nodes with two addresses use four a boot."""


def newest_instances(newest_first: Iterable[AddressInstance]) -> tuple[AddressInstance, ...]:
    """Of one address on one interface of one boot the newest: an older one is gone for good."""
    newest: dict[tuple[str, int, IPAddress], AddressInstance] = {}
    for instance in newest_first:
        newest.setdefault((instance.boot_id, instance.ifindex, instance.address), instance)
    return tuple(newest.values())


def former_instances(records: Sequence[EpochRecord]) -> tuple[AddressInstance, ...]:
    """What all epochs so far have used, newest first, for the next epoch file to remember: the
    files themselves go after a while, and a stale address must not look new then.

    At most REMEMBERED; what is forgotten costs a claim without need, and no mail.
    """
    used = [(*record.instances, *record.former_instances) for record in reversed(records)]
    return newest_instances(chain.from_iterable(used))[:REMEMBERED]


CLOCK_BEHIND_SECONDS = 300.0
"""A clock further behind the log was set back: two nodes do not differ by so much."""
CLOCK_AHEAD_SECONDS = 86_400.0
"""A virtual server that nobody owned for longer is rare enough to ask an operator."""


@value
class Recovery:
    """What was found when older epochs were read."""

    predecessor: int
    messages: int
    in_doubt: int
    set_aside: tuple[str, ...] = ()
    clock_suspect: str = ""
    last_stamp: float = 0.0
    """Wall time of the last batch that was read; 0.0 when there is none."""
    seconds: float = 0.0
    open_associations: tuple[FourTuple, ...] = ()
    """What the predecessor had open when it ended: peers that may wait for a reset."""


@value
class DueWork:
    """A queued message that wants an attempt. `domain` is that of its first pending recipient;
    `priority` one of the levels that the store tells apart: six at least (RFC 6710 section 5).
    """

    queue_id: str
    domain: bytes
    priority: int
    due: float


@value
class Intent:
    """Journalled before a commit point (spool.md section 6). `slot` names one open association."""

    queue_id: str
    slot: str
    recipients: tuple[int, ...]
    peer: str
    transaction: str = ""


@value
class Report:
    """A report to commit in the same batch as the outcome that made it (RFC 3464 message).

    `kind` is for the log: failed, delayed, relayed, delivered, double-bounce.
    """

    queue_id: str
    envelope: Envelope
    content: bytes
    kind: str = "failed"


@value
class Result:
    """What a slot's transfer brought; durable before the next commit point on that slot.

    `state` is the message's new state; None means it is settled for every recipient and leaves.
    `unknown` keeps the message on the in-doubt list. `slot` is "" for a change without a transfer
    (expiry, an operator's act).
    """

    queue_id: str
    slot: str
    state: MessageState | None
    reports: tuple[Report, ...] = ()
    unknown: bool = False
    not_sent: bool = False


@value
class Doubt:
    """One entry of the in-doubt list (spool.md section 6).

    `transaction` is that of its INTENT (RFC 1845), outbound; `ordinal` counts the messages of the
    association from 1, inbound. `peer` is at the far end of its socket; `client` is who it came
    from where that is somebody else, behind a load balancer or a proxy, else "".
    """

    side: str
    """"outbound" or "inbound"."""
    queue_id: str
    slot: str
    peer: str
    recipients: tuple[int, ...]
    epoch: int
    transaction: str = ""
    ordinal: int = 0
    client: str = ""

    @property
    def whom(self) -> str:
        """Whom to ask: the client, and otherwise the peer."""
        return self.client or self.peer

    @property
    def via(self) -> str:
        """By whom it came from there; "" where nobody stands between."""
        return self.peer if self.client else ""


@value
class Remembered:
    """A transaction that its client gave a name to (RFC 1845), and that became ours as `queue_id`.

    `client` is the name in its EHLO, in lower case; `octets` is the content as it came, in wire
    form without the final dot; `expires` is wall time.
    """

    client: str
    transaction: str
    queue_id: str
    octets: int
    expires: float


@value
class FourTuple:
    """The two ends of an open association; IP addresses as text."""

    local_host: str
    local_port: int
    peer_host: str
    peer_port: int

    @property
    def peer(self) -> str:
        """As it stands on the in-doubt list and in the log."""
        return f"{self.peer_host}:{self.peer_port}"


@value
class Segment:
    """A TCP segment: whole, checksum and all, to be sent from one of this node's addresses; or one
    that arrived, of which only the header is needed.
    """

    source: str
    target: str
    octets: bytes


@value
class QueueEntry:
    """One queued message for an operator's eyes."""

    queue_id: str
    size_octets: int
    envelope: Envelope
    state: MessageState
    active: bool


@value
class QueueFilter:
    """Which messages an operator means; empty fields do not restrict; exact or `*.x` patterns."""

    queue_ids: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    held: bool | None = None


class QueueAct(enum.Enum):
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    DELETE = "delete"


@value
class SpoolStats:
    messages: int
    held: int
    octets: int
    oldest_received_at: float | None
    free_octets: int
    reserve_octets: int
    by_domain: Mapping[bytes, int] = field(default_factory=dict)


# --- inbound ----------------------------------------------------------------------------------


UNKNOWN_HOST = "unknown"
"""The address of a client that has none which could be told (XCLIENT), in Postfix's word."""


@value
class ClientCertificate:
    """What a client showed under TLS, and has the key of. `fingerprint` is SHA-256 of its DER form,
    in hexadecimal; `subject` and `issuer` are common names, foreign text. `fault` says why no
    authority that we trust vouches for it, "" when one does; `is_listed`: its fingerprint is among
    those that the listener knows.
    """

    fingerprint: str
    subject: str
    issuer: str
    fault: str
    is_listed: bool = False

    @property
    def trust(self) -> str:
        """In Postfix's words."""
        return "Verified" if self.is_listed else "Untrusted" if self.fault else "Trusted"


@value
class PeerInfo:
    """Who is at the far end of an inbound association, and where it arrived."""

    association: str
    host: str
    port: int
    local_host: str
    local_port: int
    listener: str
    protocol: str = "SMTP"
    """RFC 3848 `with` keyword so far: SMTP, ESMTP, ESMTPS, LMTP ..."""
    tls: str = ""
    uid: int | None = None
    """Set for local submission by the UNIX socket."""
    via: FourTuple | None = None
    """The socket's ends where a load balancer, or XCLIENT, has named `host` and `port`: those of a
    client who is not at the far end of any socket of ours. None: they are the socket's.
    """
    certificate: ClientCertificate | None = None
    name: str = ""
    """The host's, as XCLIENT has said; "" for all others, for nobody looks it up."""

    @property
    def client(self) -> str:
        """As it stands in the log and in envelopes: "192.0.2.1", "name[192.0.2.1]", "uid=1000"."""
        if self.uid is not None:
            return f"uid={self.uid}"
        return self.label if self.name else self.host

    @property
    def label(self) -> str:
        """Postfix's `name[address]`."""
        return f"{self.name or 'unknown'}[{self.host}]"

    @property
    def ends(self) -> FourTuple:
        """The socket's, for whoever means the connection and not the client."""
        return self.via or FourTuple(self.local_host, self.local_port, self.host, self.port)


@value
class Challenge:
    """What a server says next in a SASL exchange, before any base64 (RFC 4422 3)."""

    octets: bytes


@value
class Authenticated:
    """A SASL exchange succeeded: the client is this user."""

    user: str


class HealthLevel(enum.Enum):
    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@value
class Health:
    level: HealthLevel
    text: str


@value
class AddressFact:
    """One virtual address on one interface of this node, as the kernel shows it; on none: `link`
    is "" and there are no flags.
    """

    address: str
    required: bool
    usable: bool
    why_not: str
    """Why it is not usable, "" when it is."""
    link: str = ""
    is_up: bool = False
    has_carrier: bool = False
    flags: tuple[str, ...] = ()
    """As ip-address(8) names them: tentative, dadfailed, optimistic, nodad, permanent ..."""


# --- resolving --------------------------------------------------------------------------------


@value
class MailHost:
    """One MX target with the addresses it resolved to; `proven` as in NextHop."""

    name: str
    preference: int
    addresses: tuple[IPAddress, ...]
    proven: Proven | None = None


@value
class Tlsa:
    """One TLSA record as it stands in the zone, whether it makes sense or not (RFC 6698 2.1).

    `usage`, `selector` and `matching` are octets (0 to 255); `data` is what a certificate or key is
    compared with.
    """

    usage: int
    selector: int
    matching: int
    data: bytes


@value
class TlsaRecords:
    """The TLSA records of a service, () when it has none. Those that were not validated count for
    nothing (RFC 7672 2.1.1).
    """

    records: tuple[Tlsa, ...]
    is_secure: bool
