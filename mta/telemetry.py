"""Events and counters that every room may raise. Prints nothing and imports nothing of ours.

Law: raising an event or bumping a counter costs well under 2 us and never fails; what is done with
it (a log line, a metric page) is decided by observers that `service` attaches.

An event is a small NamedTuple; observers dispatch on its type. A counter is asked for once, at
construction, and then bumped: `self._accepted = telemetry.counter("mta_messages_accepted_total")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

Labels = tuple[tuple[str, str], ...]
T = TypeVar("T")


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by


class Gauge:
    """A number that is set; or, with `read`, asked for when somebody looks."""

    __slots__ = ("read", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        self.value = value

    def inc(self, by: float = 1.0) -> None:
        self.value += by

    def current(self) -> float:
        return self.read() if self.read is not None else self.value


class Histogram:
    """Counts of observations at or under each bound, their sum and their number."""

    __slots__ = ("bounds", "counts", "number", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * len(bounds)
        self.total = 0.0
        self.number = 0

    def observe(self, value: float) -> None:
        self.total += value
        self.number += 1
        for index, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[index] += 1
                return


SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Histogram bounds in seconds: 0.5 ms is under the fastest flush measured, 10 s over any alarm."""


# --- events: one line of the log each ---------------------------------------------------------


class Connected(NamedTuple):
    """An inbound association was accepted. Postfix: `connect from name[address]`."""

    association: str
    peer_host: str
    peer_port: int
    local_host: str
    proxy: str = ""
    """The load balancer's end of the socket, "192.0.2.5:4711"; "" without one."""


class Disconnected(NamedTuple):
    """An inbound association ended. `commands` is Postfix's tail (`ehlo=1 mail=1 commands=2`)."""

    association: str
    peer_host: str
    commands: str
    lost_after: str = ""
    """The stage in which it was lost ("DATA", "RCPT"), "" for an orderly end."""


class Secured(NamedTuple):
    """TLS was established. `trust` is of a server Untrusted (not asked who it is) or Verified; of a
    client Anonymous (no certificate), Untrusted, Trusted (by an authority) or Verified (by its
    fingerprint). Postfix: `Untrusted TLS connection established to host[address]:25: TLSv1.3 with
    ...`.
    """

    association: str
    direction: str
    """in or out"""
    peer: str
    trust: str
    session: str
    fingerprint: str = ""
    """Of a client's certificate: SHA-256, in hexadecimal."""


class Accepted(NamedTuple):
    """A message became ours: durable, epoch re-read, reply about to go."""

    queue_id: str
    association: str
    client: str
    helo: bytes
    protocol: str
    sender: bytes
    size_octets: int
    recipients: int
    message_id: bytes
    vip: str
    sasl_method: str = ""
    sasl_username: str = ""
    """Both "" for a client that has not said who it is."""
    priority: int = 0


class Rejected(NamedTuple):
    """A command was refused. Postfix: `NOQUEUE: reject: RCPT from ...: 554 5.7.1 <...>: ...`."""

    association: str
    client: str
    stage: str
    reply: str
    sender: bytes
    recipient: bytes
    helo: bytes
    protocol: str
    queue_id: str = ""


class Transferred(NamedTuple):
    """One recipient's outcome of one transfer. Postfix: `to=<>, relay=, delay=, delays=, dsn=`."""

    queue_id: str
    recipient: bytes
    original: bytes
    connector: str
    kind: str
    """The association kind: smtp, lmtp, maildir, discard; or "error" when nothing was tried."""
    relay: str
    delay: float
    delays: tuple[float, float, float, float]
    """Seconds before the queue manager, in it, connecting, transmitting."""
    enhanced: str
    status: str
    """sent | deferred | bounced | expired | undeliverable."""
    reply: str
    vip: str
    source: str
    retry_in_seconds: float | None = None


class Reported(NamedTuple):
    """A report was queued. Postfix: `QID: sender non-delivery notification: QID2`, and of QID2 what
    it says of every message: `from=<>, size=, nrcpt= (queue active)`.
    """

    queue_id: str
    report_id: str
    kind: str
    size_octets: int
    recipients: int


class Doubted(NamedTuple):
    """A message may be doubled: sent without a known outcome, or accepted and perhaps not read.
    Said once a process and doubt, when it becomes known.
    """

    queue_id: str
    side: str
    """"outbound" or "inbound"."""
    slot: str
    peer: str
    of_epoch: int
    """Under which it became doubtful."""
    recipients: tuple[int, ...]
    via: str = ""
    """The load balancer or proxy by which it came from `peer`."""


class Removed(NamedTuple):
    """A message left the queue for good."""

    queue_id: str


class TlsAttempt(NamedTuple):
    """What came of TLS with one server of a domain that mail was for, for reports (RFC 8460 4.3).
    `result` is "" for a success; `receiving` and `sending` are the addresses of both ends.
    """

    domain: str
    policy: str
    """tlsa, sts or no-policy-found"""
    policy_strings: tuple[str, ...]
    policy_hosts: tuple[str, ...]
    mx: str
    receiving: str
    sending: str
    result: str
    reason: str


class Transition(NamedTuple):
    """A machine changed its state; `reason` is for people."""

    machine: str
    before: str
    input: str
    after: str
    reason: str


class Command(NamedTuple):
    """An operator's command came over the control socket."""

    uid: int
    gid: int
    pid: int
    command: str
    arguments: str


class Notice(NamedTuple):
    """Anything else worth a line. `level` is debug, info, warning, error or critical."""

    level: str
    room: str
    text: str
    queue_id: str = ""


Event = (
    Connected
    | Disconnected
    | Accepted
    | Rejected
    | Secured
    | Transferred
    | Reported
    | Doubted
    | Removed
    | TlsAttempt
    | Transition
    | Command
    | Notice
)
Observer = Callable[[Event], None]


class Telemetry:
    """The registry that a process (or a test) makes once and hands to every room."""

    def __init__(self) -> None:
        self._observers: tuple[Observer, ...] = ()
        self.counters: dict[tuple[str, Labels], Counter] = {}
        self.gauges: dict[tuple[str, Labels], Gauge] = {}
        self.histograms: dict[tuple[str, Labels], Histogram] = {}
        self.help: dict[str, str] = {}

    def event(self, event: Event) -> None:
        """Hand `event` to every observer, in the order in which they were attached."""
        for observer in self._observers:
            observer(event)

    def notice(self, level: str, room: str, text: str, queue_id: str = "") -> None:
        self.event(Notice(level, room, text, queue_id))

    def attach(self, observer: Observer) -> None:
        self._observers = (*self._observers, observer)

    def detach(self, observer: Observer) -> None:
        self._observers = tuple(o for o in self._observers if o != observer)

    def counter(self, name: str, help: str = "", **labels: str) -> Counter:
        """The counter of that name and labels; the same one for the same question."""
        return self._keep(self.counters, name, help, labels, Counter)

    def gauge(self, name: str, help: str = "", **labels: str) -> Gauge:
        return self._keep(self.gauges, name, help, labels, Gauge)

    def histogram(
        self, name: str, help: str = "", bounds: tuple[float, ...] = SECONDS, **labels: str
    ) -> Histogram:
        return self._keep(self.histograms, name, help, labels, lambda: Histogram(bounds))

    def _keep(
        self,
        store: dict[tuple[str, Labels], T],
        name: str,
        help: str,
        labels: dict[str, str],
        make: Callable[[], T],
    ) -> T:
        if help:
            self.help.setdefault(name, help)
        key = (name, tuple(sorted(labels.items())))
        found = store.get(key)
        if found is None:
            found = store[key] = make()
        return found
