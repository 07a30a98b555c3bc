"""A spool and an association kind under a test's control, for the tests of the queue's moving part.

The spool answers as the contract says, at once or when the test lets it; the kind follows a script.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.errors import TransientFailure
from mta.interfaces import IAssociationKind, IContent, IResolver, ISender, ISpool
from mta.model import (
    Address,
    AddressSpace,
    Bridgehead,
    Connector,
    Doubt,
    DueWork,
    Envelope,
    Guarantees,
    NextHop,
    Outcome,
    OutcomeKind,
    Recipient,
    Reply,
    SpoolStats,
    fresh_state,
    queue_id,
)
from mta.routing.least_cost import LeastCostRouting
from mta.spool.envelopes import first_pending_domain
from mta.telemetry import Telemetry, Transferred
from mta.testing.clock import VirtualClock
from mta.testing.surroundings import MemoryTenure
from mta.transfer.dispatch import Dispatch
from mta.transfer.settings import QueueSettings

OK = Reply(250, "2.0.0", (b"ok",))
LATER = Reply(450, "4.2.0", (b"greylisted",))
NEVER = Reply(550, "5.1.1", (b"no such user",))
TEXT = b"Received: x\r\nSubject: test\r\nMessage-ID: <1@x>\r\n\r\nbody\r\n"
POSTMASTER = Address(b"postmaster@bridgehead.example.org", b"bridgehead.example.org")


def address(text: str) -> Address:
    return Address(text.encode(), text.partition("@")[2].encode())


@implementer(IContent)
class Resident:
    def __init__(self, octets: bytes) -> None:
        self.size_octets = len(octets)
        self.resident = (octets,)
        self._left = [octets]
        self.closed = 0

    def read(self):
        return succeed(self._left.pop() if self._left else b"")

    def close(self):
        self.closed += 1


@implementer(ISpool)
class PlainSpool:
    """Keeps everything in dictionaries. `journal_faults` are raised one by one; with `is_manual`
    journals wait for `sync()`."""

    guarantees = Guarantees("process", False, False)
    epoch = 1

    def __init__(self):
        self.messages = {}
        self.texts = {}
        self.taken = set()
        self.dues = {}
        self.batches = []
        self.log = []
        self.journal_faults = []
        self.is_manual = False
        self.waiting = []
        self.doubts = ()
        self.serial = 0

    def put(self, envelope, text=TEXT, taken=False, state=None):
        self.serial += 1
        name = queue_id(1, self.serial)
        state = state or fresh_state(envelope)
        self.messages[name] = (envelope, state)
        self.texts[name] = text
        self.dues[name] = state.due
        if taken:
            self.taken.add(name)
        return name

    # life
    def inspect(self):
        return succeed(())

    def publish(self, claim, above):
        return succeed(above + 1)

    def recover(self):
        raise AssertionError

    def seal(self):
        return succeed(None)

    def check(self): ...
    def heartbeat(self): ...
    def release(self, reason):
        return succeed(None)

    def abandon(self): ...
    def stuck_seconds(self):
        return 0.0

    def stage(self, association):
        raise AssertionError

    def open_association(self, slot, ends, inbound):
        self.log.append(("open", slot))

    def close_association(self, slot):
        self.log.append(("close", slot))

    # send
    def journal(self, results, intents):
        results, intents = tuple(results), tuple(intents)
        if self.journal_faults:
            fault = self.journal_faults.pop(0)
            if fault is not None:
                return fail(fault)
        done = Deferred()
        if self.is_manual:
            self.waiting.append((done, results, intents))
        else:
            self._apply(results, intents)
            done.callback(None)
        return done

    def sync(self):
        waiting, self.waiting = self.waiting, []
        for done, results, intents in waiting:
            self._apply(results, intents)
            done.callback(None)

    def _apply(self, results, intents):
        self.batches.append((results, intents))
        for result in results:
            self.log.append(("result", result.queue_id))
            for report in result.reports:
                if report.queue_id not in self.messages:
                    self.messages[report.queue_id] = (report.envelope, fresh_state(report.envelope))
                    self.texts[report.queue_id] = report.content
                    self.dues[report.queue_id] = report.envelope.received_at
            if result.queue_id not in self.messages:
                continue
            if result.unknown:
                doubt = Doubt("outbound", result.queue_id, result.slot, "", (), 1)
                self.doubts = (*self.doubts, doubt)
            if result.state is None and (result.unknown or result.not_sent):
                continue
            self.taken.discard(result.queue_id)
            if result.state is None:
                del self.messages[result.queue_id], self.texts[result.queue_id]
                del self.dues[result.queue_id]
            else:
                envelope, _ = self.messages[result.queue_id]
                self.messages[result.queue_id] = (envelope, result.state)
                self.dues[result.queue_id] = result.state.due
        for intent in intents:
            self.log.append(("intent", intent.queue_id))

    def in_doubt(self):
        return self.doubts

    def load(self, name):
        return self.messages[name]

    def content(self, name):
        return Resident(self.texts[name])

    def due(self, now, limit, avoid):
        found = []
        for name, due in sorted(self.dues.items(), key=lambda item: item[1]):
            domain = self._domain(name)
            if self._waits(name, avoid) and due <= now and len(found) < limit:
                self.taken.add(name)
                found.append(DueWork(name, domain, int(self.messages[name][0].priority), due))
        return found

    def _domain(self, name):
        envelope, state = self.messages[name]
        return first_pending_domain(envelope, state)

    def _waits(self, name, avoid):
        held = self.messages[name][1].held
        return name not in self.taken and not held and self._domain(name) not in avoid

    def next_due(self, avoid):
        return min((d for n, d in self.dues.items() if self._waits(n, avoid)), default=None)

    def give_back(self, name, due):
        self.taken.discard(name)
        self.log.append(("back", name))
        if due is not None and name in self.dues:
            self.dues[name] = due

    def recall(self, client, transaction):
        return None

    def forget_last(self, association):
        pass

    def scan(self, chosen, after, limit):
        return succeed([])

    def act(self, names, act, now):
        return succeed(list(names))

    def stats(self):
        return SpoolStats(len(self.messages), 0, 0, None, 0, 0)


@implementer(ISender)
class ScriptedSender:
    def __init__(self, kind, hop, number):
        self.kind = kind
        self.hop = hop
        self.slot = f"smtp/out/{number}"
        self.source = "192.0.2.10"
        self.relay = hop.relay
        self.is_open = True
        self.can_overlap = kind.can_overlap
        self.recipients = ()
        self.queue_id = ""
        self.carried = 0

    def prepare(self, queue_id, envelope, recipients, size_octets):
        self.kind.log.append(("prepare", self.slot, queue_id))
        answer = self.kind.on_prepare(self, queue_id, envelope, recipients)
        self.pending = (queue_id, envelope, recipients)
        return answer

    def commit(self, content):
        queue_id, envelope, recipients = self.pending
        self.kind.log.append(("commit", self.slot, queue_id))
        self.kind.spool.log.append(("commit", queue_id))
        self.carried += 1
        return self.kind.on_commit(self, queue_id, envelope, recipients)

    def withdraw(self):
        self.kind.log.append(("withdraw", self.slot, self.pending[0]))
        return succeed(None)

    def close(self):
        self.is_open = False
        self.kind.log.append(("quit", self.slot, ""))
        return succeed(None)


@implementer(IAssociationKind)
class ScriptedKind:
    """`on_open`, `on_prepare` and `on_commit` may be replaced by a test."""

    name = "smtp"
    commit_point = "final dot"
    may_send = True
    may_receive = False

    def __init__(self, spool, can_overlap=True):
        self.spool = spool
        self.can_overlap = can_overlap
        self.log = []
        self.opened = []
        self.senders = []
        self.unreachable = set()
        self.delivered = []

    def open(self, tenure, hop: NextHop):
        self.opened.append(f"{hop.host}:{hop.port}")
        if hop.host in self.unreachable:
            return fail(
                TransientFailure(f"connect to {hop.host}", "connection refused", enhanced="4.4.1")
            )
        sender = ScriptedSender(self, hop, len(self.senders) + 1)
        self.senders.append(sender)
        return self.on_open(sender)

    def on_open(self, sender):
        return succeed(sender)

    def on_prepare(self, sender, queue_id, envelope, recipients):
        return succeed(())

    def on_commit(self, sender, queue_id, envelope, recipients):
        self.delivered.append(queue_id)
        return succeed(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))


@implementer(IResolver)
class FixedResolver:
    def __init__(self):
        self.names = {}
        self.mx = {}

    def addresses(self, name):
        found = self.names.get(name)
        if found is None:
            return fail(TransientFailure(f"no answer for {name}", enhanced="4.4.3"))
        return succeed(tuple(ip_address(a) for a in found))

    def mail_hosts(self, domain):
        found = self.mx.get(domain)
        if found is None:
            return fail(TransientFailure(f"no answer for {domain!r}", enhanced="4.4.3"))
        if isinstance(found, Exception):
            return fail(found)
        return succeed(tuple(found))


HUB = Connector(
    "hub",
    "smtp",
    (AddressSpace(b"*", 10),),
    bridgeheads=(Bridgehead("192.0.2.20", 25, 10), Bridgehead("192.0.2.21", 25, 20)),
    concurrency=2,
)


@dataclass
class Bench:
    """A dispatch with everything around it under control."""

    connectors: tuple[Connector, ...] = (HUB,)
    settings: QueueSettings = field(default_factory=QueueSettings)
    can_overlap: bool = True
    ourselves: frozenset = frozenset()
    start: bool = True

    def __post_init__(self):
        self.clock = VirtualClock()
        self.telemetry = Telemetry()
        self.events = []
        self.telemetry.attach(self.events.append)
        self.spool = PlainSpool()
        self.kind = ScriptedKind(self.spool, self.can_overlap)
        self.resolver = FixedResolver()
        self.tenure = MemoryTenure()
        self.routing = LeastCostRouting(self.connectors)
        self.dispatch = self.another()
        if self.start:
            self.dispatch.start()

    def another(self):
        return Dispatch(
            self.tenure,
            self.spool,
            self.routing,
            {c.name: (c, self.kind) for c in self.connectors},
            self.resolver,
            self.clock,
            self.telemetry,
            self.settings,
            POSTMASTER,
            lambda ip, port: (str(ip), port) in self.ourselves,
            chance=lambda: 0.5,
        )

    def envelope(self, *recipients, sender="alice@example.org", **changes):
        return replace(
            Envelope(
                address(sender) if sender else Address(b""),
                tuple(r if isinstance(r, Recipient) else Recipient(address(r)) for r in recipients),
                received_at=self.clock.wall(),
            ),
            **changes,
        )

    def offer(self, *recipients, **changes):
        envelope = self.envelope(*(recipients or ("bob@example.com",)), **changes)
        name = self.spool.put(envelope, taken=True)
        self.dispatch.offer(name, envelope, fresh_state(envelope))
        return name

    def queue(self, *recipients, state=None, **changes):
        envelope = self.envelope(*(recipients or ("bob@example.com",)), **changes)
        return self.spool.put(envelope, state=state)

    def transferred(self, name=None):
        return [
            e
            for e in self.events
            if isinstance(e, Transferred) and (name is None or e.queue_id == name)
        ]

    def notices(self):
        return [e for e in self.events if type(e).__name__ == "Notice"]
