"""The memory spool: the same contract, as durable as its process. For tests and for trying out.

Law: it keeps the log spool's promises in the log spool's words (epochs, taken messages, in-doubt
list, idempotence); only the disk is missing. Two nodes of a test share one `MemoryStore`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.errors import Fenced, Full, SpoolError
from mta.interfaces import (
    IAssociations,
    IContent,
    IDoubts,
    IRevisable,
    IRoom,
    ISpool,
    IStaging,
    ISurroundings,
)
from mta.model import (
    Claim,
    Doubt,
    DueWork,
    Envelope,
    EpochRecord,
    FourTuple,
    Guarantees,
    Intent,
    MessageState,
    QueueAct,
    QueueEntry,
    QueueFilter,
    Recovery,
    Remembered,
    Report,
    Result,
    SpoolStats,
    fresh_state,
    queue_id,
)
from mta.spool.content import ResidentContent
from mta.spool.doubts import DoubtList, OpenAssociation
from mta.spool.due import domain_of
from mta.spool.envelopes import first_pending_domain
from mta.spool.index import HELD, NOWHERE, TAKEN, Index
from mta.spool.scan import candidates, matches
from mta.spool.settings import MemorySpoolSettings
from mta.spool.transactions import Transactions

__all__ = ["MemorySpool", "MemorySpoolSettings", "MemoryStore"]


@dataclass(slots=True)
class _Message:
    envelope: Envelope
    state: MessageState
    pieces: tuple[bytes, ...]
    octets: int


@dataclass(slots=True)
class _Epoch:
    claim: Claim
    superseded: bool = False
    released: bool = False
    heartbeat: int = 0


@dataclass(slots=True)
class MemoryStore:
    """What all nodes see."""

    epochs: dict[int, _Epoch] = field(default_factory=dict)
    messages: dict[str, _Message] = field(default_factory=dict)
    intents: dict[str, Intent] = field(default_factory=dict)
    doubts: DoubtList = field(default_factory=DoubtList)
    associations: dict[str, OpenAssociation] = field(default_factory=dict)
    transactions: Transactions = field(default_factory=Transactions)
    sealed: int = 0
    octets: int = 0


@implementer(ISpool, IAssociations, IDoubts, IRoom)
class MemorySpool:
    """One node's view of a store."""

    def __init__(
        self,
        settings: MemorySpoolSettings,
        surroundings: ISurroundings,
        store: MemoryStore | None = None,
    ) -> None:
        self.settings = settings
        self.epoch = 0
        self.guarantees = Guarantees(durable="process", shared=False, fenced_in_store=True)
        self.store = store if store is not None else MemoryStore()
        self._clock = surroundings.clock
        self._index = Index()
        self._is_sealed = False
        self._recovered = False
        self._serial = 0

    # life of a tenure

    def inspect(self) -> Deferred[tuple[EpochRecord, ...]]:
        return succeed(
            tuple(
                EpochRecord(
                    number,
                    one.claim.node,
                    one.claim.boot_id,
                    one.superseded,
                    one.released,
                    one.heartbeat,
                    one.claim.grant.instances,
                )
                for number, one in sorted(self.store.epochs.items())
            )
        )

    def publish(self, claim: Claim, above: int) -> Deferred[int]:
        epochs = self.store.epochs
        if max(epochs, default=0) != above:
            return fail(Fenced(f"epoch {above + 1} exists already", "another node was quicker"))
        for one in epochs.values():
            one.superseded = True
        epochs[above + 1] = _Epoch(claim)
        self._forget()
        self.epoch = above + 1
        return succeed(self.epoch)

    def recover(self) -> Deferred[Recovery]:
        if not self.epoch:
            return fail(Fenced("nothing is published", "recover comes after publish"))
        store = self.store
        predecessor = store.sealed
        for slot, intent in store.intents.items():
            if intent.queue_id in store.messages:
                store.doubts.unanswered(intent.queue_id, slot, intent, predecessor)
        left_open = tuple(opened.ends for opened in store.associations.values())
        for slot, opened in store.associations.items():
            store.doubts.unread(slot, opened, predecessor)
        store.doubts.trim(predecessor)
        store.intents, store.associations = {}, {}
        store.transactions.conclude()
        self._index = Index()
        for name, message in store.messages.items():
            self._enter(name, message, taken=False)
        self._recovered = True
        return succeed(
            Recovery(
                predecessor,
                len(store.messages),
                len(store.doubts),
                open_associations=left_open,
            )
        )

    def seal(self) -> Deferred[None]:
        if not self._recovered:
            return fail(Fenced("nothing was recovered", "seal comes after recover"))
        if not self._is_current():
            return fail(self._superseded())
        self.store.sealed = self.epoch
        self._is_sealed = True
        return succeed(None)

    def check(self) -> None:
        if not self._is_current():
            raise self._superseded()

    def _is_current(self) -> bool:
        own = self.store.epochs.get(self.epoch)
        return own is not None and not own.superseded

    def _superseded(self) -> Fenced:
        if not self.epoch:
            return Fenced("the spool is not owned", "no epoch is held")
        return Fenced(f"epoch {self.epoch} is superseded", "another node has published a newer one")

    def heartbeat(self) -> None:
        own = self.store.epochs.get(self.epoch)
        if own is not None:
            own.heartbeat += 1

    def release(self, reason: str) -> Deferred[None]:
        own = self.store.epochs.get(self.epoch)
        if own is not None:
            own.released = True
        self._forget()
        return succeed(None)

    def abandon(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.epoch, self._is_sealed, self._recovered, self._serial = 0, False, False, 0

    def stuck_seconds(self) -> float:
        return 0.0

    def refusal(self) -> SpoolError | None:
        """Why nothing may be acknowledged, if so."""
        if not self._is_sealed or not self._is_current():
            return self._superseded()
        return None

    # accept

    def check_room(self, octets: int) -> None:
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        if self.store.octets + octets > self.settings.capacity:
            raise Full("the memory spool is full", f"it takes {self.settings.capacity} octets")

    def stage(self, association: str) -> IStaging:
        self.check_room(1)
        self._serial += 1
        return MemoryStaging(self, queue_id(self.epoch, self._serial), association, self.epoch)

    def enter(self, name: str, message: _Message, association: str, intent: Intent | None) -> None:
        """Committed: it is queued, and taken."""
        self.store.messages[name] = message
        self.store.octets += message.octets
        self._enter(name, message, taken=True)
        opened = self.store.associations.get(association)
        if opened is not None:
            opened.last, opened.ordinal = name, message.envelope.ordinal
            opened.client = message.envelope.client.encode("utf-8", "backslashreplace")
            if opened.left_in:
                self.store.doubts.unread(association, opened, opened.left_in)
        if intent is not None:
            self.store.intents[intent.slot] = intent

    def _enter(self, name: str, message: _Message, *, taken: bool) -> None:
        envelope, state = message.envelope, message.state
        self._index.insert(
            name,
            0,
            NOWHERE,
            due=state.due,
            received=envelope.received_at,
            size=message.octets,
            domain=first_pending_domain(envelope, state),
            priority=envelope.priority,
            held=state.held,
            taken=taken,
        )

    def open_association(self, slot: str, ends: FourTuple, inbound: bool) -> None:
        if self._is_sealed:
            self.store.associations[slot] = OpenAssociation(ends, inbound)

    def close_association(self, slot: str) -> None:
        if self._is_sealed:
            self.store.associations.pop(slot, None)

    def leave_association(self, slot: str) -> None:
        opened = self.store.associations.get(slot)
        if self._is_sealed and opened is not None:
            opened.left_in = self.epoch
            self.store.doubts.unread(slot, opened, self.epoch)

    # send

    def journal(self, results: Sequence[Result], intents: Sequence[Intent]) -> Deferred[None]:
        refusal = self.refusal()
        if refusal is not None:
            return fail(refusal)
        for result in results:
            self._result(result)
        for intent in intents:
            self.store.intents[intent.slot] = intent
        return succeed(None)

    def _result(self, result: Result) -> None:
        store, name = self.store, result.queue_id
        known = name in store.messages
        intent = store.intents.get(result.slot)
        if intent is not None and intent.queue_id == name:
            del store.intents[result.slot]
        if known:
            for report in result.reports:
                self._report(report)
        if result.unknown and known:
            store.doubts.unanswered(name, result.slot, intent, self.epoch)
        if result.state is not None:
            if known:
                self._change(name, result.state, bool(result.slot))
        elif not result.unknown and not result.not_sent:
            self._remove(name)

    def _change(self, name: str, state: MessageState, by_transfer: bool) -> None:
        message = self.store.messages[name]
        slot = self._index.find(name)
        held = state.held or (by_transfer and bool(self._index.flags[slot] & HELD))
        message.state = replace(state, held=held)
        if name in self.store.doubts:
            self.store.doubts.pending(name, state.pending)
        domain = first_pending_domain(message.envelope, state)
        self._index.schedule(slot, state.due, held=held, domain=domain)

    def _report(self, report: Report) -> None:
        if report.queue_id in self.store.messages:
            return
        envelope, octets = report.envelope, len(report.content)
        message = _Message(envelope, fresh_state(envelope), (report.content,), octets)
        self.store.messages[report.queue_id] = message
        self.store.octets += octets
        self._enter(report.queue_id, message, taken=False)

    def _remove(self, name: str) -> None:
        message = self.store.messages.pop(name, None)
        if message is not None:
            self.store.octets -= message.octets
            self._index.remove(self._index.find(name))
            self.store.doubts.gone(name)

    def in_doubt(self) -> tuple[Doubt, ...]:
        return tuple(self.store.doubts)

    def doubts_of(self, queue_id: str) -> tuple[Doubt, ...]:
        return self.store.doubts.of(queue_id)

    def load(
        self, queue_id: str
    ) -> tuple[Envelope, MessageState] | Deferred[tuple[Envelope, MessageState]]:
        self._refuse_when_not_owned()
        message = self.store.messages[queue_id]
        return message.envelope, message.state

    def content(self, queue_id: str) -> IContent | Deferred[IContent]:
        self._refuse_when_not_owned()
        message = self.store.messages[queue_id]
        return ResidentContent(message.pieces, message.octets)

    def _refuse_when_not_owned(self) -> None:
        if not self._is_sealed:
            raise self._superseded()

    # due work

    def due(self, now: float, limit: int, avoid: Collection[bytes]) -> list[DueWork]:
        self._refuse_when_not_owned()
        index = self._index
        return [
            DueWork(
                index.queue_id(slot),
                domain_of(index.domains.names[index.domain[slot]]),
                index.priority(slot),
                index.due[slot],
            )
            for slot in index.take_due(now, limit, avoid)
        ]

    def next_due(self, avoid: Collection[bytes]) -> float | None:
        return self._index.due_times.next_due(avoid) if self._is_sealed else None

    def give_back(self, queue_id: str, due: float | None) -> None:
        slot = self._index.find(queue_id)
        if slot >= 0:
            held = bool(self._index.flags[slot] & HELD)
            self._schedule(slot, queue_id, self._index.due[slot] if due is None else due, held)

    def _schedule(
        self, slot: int, name: str, due: float, held: bool, *, taken: bool = False
    ) -> None:
        self._index.schedule(slot, due, held=held, taken=taken)
        message = self.store.messages[name]
        message.state = replace(message.state, due=due, held=held)

    # named transactions

    def recall(self, client: str, transaction: str) -> Remembered | None:
        found = self.store.transactions.find(client, transaction)
        if not self._is_sealed or found is None or found.expires <= self._clock.wall():
            return None
        return found

    def forget_last(self, association: str) -> None:
        if self._is_sealed:
            self.store.transactions.forget_last(association)

    # operators

    def scan(self, chosen: QueueFilter, after: str, limit: int) -> Deferred[list[QueueEntry]]:
        if not self._is_sealed:
            return fail(self._superseded())
        found: list[QueueEntry] = []
        while len(found) < limit and (names := candidates(self._index, chosen, after)):
            after = names[-1]
            for name in names:
                message = self.store.messages[name]
                flags = self._index.flags[self._index.find(name)]
                if chosen.held in {None, bool(flags & HELD)} and matches(chosen, message.envelope):
                    found.append(
                        QueueEntry(
                            name,
                            message.octets,
                            message.envelope,
                            message.state,
                            bool(flags & TAKEN),
                        )
                    )
        return succeed(found[:limit])

    def act(self, queue_ids: Sequence[str], act: QueueAct, now: float) -> Deferred[list[str]]:
        refusal = self.refusal()
        if refusal is not None:
            return fail(refusal)
        applied = []
        for name in queue_ids:
            slot = self._index.find(name)
            if slot < 0:
                continue
            flags = self._index.flags[slot]
            if act is QueueAct.DELETE:
                self._remove(name)
            elif act is QueueAct.HOLD:
                taken = bool(flags & TAKEN)
                self._schedule(slot, name, self._index.due[slot], True, taken=taken)
            elif act is QueueAct.RELEASE:
                if not flags & HELD:
                    continue
                self._schedule(slot, name, now, False, taken=bool(flags & TAKEN))
            else:
                if flags & (HELD | TAKEN):
                    continue
                self._schedule(slot, name, now, False)
            applied.append(name)
        return succeed(applied)

    def stats(self) -> SpoolStats:
        index = self._index
        return SpoolStats(
            messages=len(index),
            held=index.held,
            octets=index.octets,
            oldest_received_at=index.oldest_received(),
            free_octets=max(0, self.settings.capacity - self.store.octets),
            reserve_octets=0,
            by_domain=index.domains.by_domain(),
        )


PIECE = 256 << 10


@implementer(IStaging, IRevisable)
class MemoryStaging:
    """Chunks in a list."""

    def __init__(self, spool: MemorySpool, queue_id: str, association: str, epoch: int) -> None:
        self.queue_id = queue_id
        self.size_octets = 0
        self._spool = spool
        self._association = association
        self._epoch = epoch
        self._chunks: list[bytes] = []
        self._full: Full | None = None
        self._remembered: Remembered | None = None

    def write(self, chunk: bytes) -> Deferred[None] | None:
        self.size_octets += len(chunk)
        capacity = self._spool.settings.capacity
        if self._spool.store.octets + self.size_octets > capacity:
            self._full = Full("the memory spool is full", f"it takes {capacity} octets")
            self._chunks = []
        elif self._full is None:
            self._chunks.append(chunk)
        return None

    def commit(
        self, envelope: Envelope, state: MessageState, prepend: bytes, intent: Intent | None
    ) -> Deferred[None]:
        refusal = self._spool.refusal()
        if refusal is None and self._epoch != self._spool.epoch:
            refusal = Fenced(f"epoch {self._epoch} has ended")
        if refusal is None:
            refusal = self._full
        if refusal is not None:
            return fail(refusal)
        pieces = (prepend, *self._chunks) if prepend else tuple(self._chunks)
        octets = sum(map(len, pieces))
        message = _Message(envelope, state, pieces, octets)
        self._spool.enter(self.queue_id, message, self._association, intent)
        if self._remembered is not None:
            self._spool.store.transactions.add(self._remembered, self._association)
        return succeed(None)

    def remember(self, client: str, transaction: str, expires: float) -> None:
        octets = self.size_octets
        self._remembered = Remembered(client, transaction, self.queue_id, octets, expires)

    def abort(self) -> None:
        self._chunks = []

    def another(self) -> MemoryStaging:
        return MemoryStaging(self._spool, self.queue_id, self._association, self._epoch)

    def read(self, offset: int) -> Deferred[bytes]:
        if self._full is not None:
            return fail(self._full)
        for chunk in self._chunks:
            if offset < len(chunk):
                return succeed(chunk[offset : offset + PIECE])
            offset -= len(chunk)
        return succeed(b"")
