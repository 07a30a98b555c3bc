"""What the log says: the index, and everything else that a record can have changed.

Law: there is one way to apply a record, whether it was just made durable or is being replayed.
Applying is idempotent by id, and free of order as far as DONE goes: what is dead stays dead.
Belongs to one thread at a time: the recovering worker first, then the reactor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mta.model import FourTuple, Intent
from mta.spool.doubts import DoubtList, OpenAssociation
from mta.spool.envelopes import decode_state, origin_of
from mta.spool.index import BIG, TAKEN, Index
from mta.spool.records import (
    ASSOCIATION,
    COPY,
    DEFER,
    DONE,
    HAS_STATE,
    HELD,
    HOLD,
    INTENT,
    MSG,
    RESULT,
    TRANSACTION,
    UNKNOWN,
    Big,
    Change,
    Message,
    Place,
    RecordView,
    decode_association,
    decode_change,
    decode_done,
    decode_hold,
    decode_intent,
    decode_message,
    decode_transaction,
)
from mta.spool.segment import Segment
from mta.spool.transactions import Transactions


@dataclass(slots=True)
class Position:
    """Up to where the log is accounted for: in this segment of the epoch, before this offset.
    Number 0: the log has not begun.
    """

    number: int = 0
    offset: int = 0


class Ledger:
    """The present state of the spool under one epoch."""

    def __init__(self) -> None:
        self.index = Index()
        self.segments: dict[int, Segment] = {}
        self.bigs: dict[int, Big] = {}
        """Slot -> the file that holds the content."""
        self.intents: dict[str, Intent] = {}
        """Association slot -> its unresolved INTENT, of the running epoch."""
        self.doubts = DoubtList()
        self.associations: dict[str, OpenAssociation] = {}
        self.transactions = Transactions()
        self.position = Position()
        self.wall = 0.0
        """The newest wall time seen in a batch."""
        self._next_ref = 1

    # segments

    def add_segment(self, segment: Segment) -> int:
        segment.ref = self._next_ref
        self._next_ref += 1
        self.segments[segment.ref] = segment
        return segment.ref

    def restore_segment(self, segment: Segment) -> None:
        """One that a checkpoint names; keeps its reference."""
        self.segments[segment.ref] = segment
        self._next_ref = max(self._next_ref, segment.ref + 1)

    def _count(self, ref: int, length: int, by: int) -> None:
        segment = self.segments.get(ref)
        if segment is not None:
            segment.live_records += by
            segment.live_octets += by * length

    # one record

    def message(
        self, queue_id: str, ref: int, place: Place, message: Message, taken: bool = False
    ) -> int:
        """MSG: answers its slot, or -1 when it was there already."""
        due, received, size, held, priority, domain, association, _, big, envelope, _ = message
        slot = self.index.insert(
            queue_id,
            ref,
            place,
            due=due,
            received=received,
            size=size,
            domain=domain,
            priority=priority,
            held=held,
            taken=taken,
            big=big is not None,
        )
        if slot < 0:
            return slot
        if big is not None:
            self.bigs[slot] = big
        self._count(ref, place.length, 1)
        if association:
            opened = self.associations.get(association)
            if opened is not None:
                opened.last = queue_id
                opened.ordinal, opened.client = origin_of(envelope)
                if opened.left_in:
                    self.doubts.unread(association, opened, opened.left_in)
        return slot

    def copied(self, queue_id: str, ref: int, place: Place) -> None:
        """COPY: the message lies here now, if it lives."""
        index = self.index
        slot = index.find(queue_id)
        if slot < 0:
            return
        self._count(index.message_segment[slot], index.message_length[slot], -1)
        index.set_message_place(slot, ref, place)
        self._count(ref, place.length, 1)

    def state_copied(self, queue_id: str, ref: int, place: Place) -> None:
        """The newest state record lies here now, if the message lives; nothing else changed."""
        index = self.index
        slot = index.find(queue_id)
        if slot >= 0 and index.state_segment[slot]:
            self._count(index.state_segment[slot], index.state_length[slot], -1)
            index.set_state_place(slot, ref, place)
            self._count(ref, place.length, 1)

    def done(self, queue_id: str, slot_name: str) -> Big | None:
        """DONE: answers the big file that nobody needs any more."""
        self._resolve(slot_name, queue_id)
        index = self.index
        slot = index.find(queue_id)
        if slot < 0:
            return None
        self._count(index.message_segment[slot], index.message_length[slot], -1)
        if index.state_segment[slot]:
            self._count(index.state_segment[slot], index.state_length[slot], -1)
        big = self.bigs.pop(slot, None) if index.flags[slot] & BIG else None
        index.remove(slot)
        self.doubts.gone(queue_id)
        return big

    def changed(self, queue_id: str, ref: int, place: Place, change: Change, epoch: int) -> None:
        """RESULT or DEFER."""
        flags, due, slot_name, domain, _ = change
        intent = self._resolve(slot_name, queue_id)
        index = self.index
        slot = index.find(queue_id)
        if slot < 0:
            return
        if flags & UNKNOWN:
            self.doubts.unanswered(queue_id, slot_name, intent, epoch)
        if flags & HAS_STATE:
            if queue_id in self.doubts:
                self.doubts.pending(queue_id, decode_state(change.state).pending)
            if index.state_segment[slot]:
                self._count(index.state_segment[slot], index.state_length[slot], -1)
            index.set_state_place(slot, ref, place)
            self._count(ref, place.length, 1)
            index.schedule(slot, due, held=bool(flags & HELD), domain=domain)

    def held(self, queue_id: str, held: bool, due: float) -> None:
        """HOLD: an operator's word, which overrides the state's own due time and hold."""
        slot = self.index.find(queue_id)
        if slot >= 0:
            taken = bool(self.index.flags[slot] & TAKEN)
            self.index.schedule(slot, due, held=held, taken=taken)

    def intended(self, intent: Intent) -> None:
        self.intents[intent.slot] = intent

    def associated(self, slot: str, ends: FourTuple | None, inbound: bool) -> None:
        if ends is None:
            self.associations.pop(slot, None)
        else:
            self.associations[slot] = OpenAssociation(ends, inbound)

    def _resolve(self, slot_name: str, queue_id: str) -> Intent | None:
        """The INTENT of that slot is answered."""
        if not slot_name:
            return None
        intent = self.intents.get(slot_name)
        if intent is None or intent.queue_id != queue_id:
            return None
        return self.intents.pop(slot_name)

    # the end of an association, and of an epoch

    def left(self, slot: str, epoch: int) -> None:
        """We reset that association; whether its client read the last reply nobody knows."""
        opened = self.associations.get(slot)
        if opened is not None:
            opened.left_in = epoch
            self.doubts.unread(slot, opened, epoch)

    def conclude(self, epoch: int) -> None:
        """The epoch whose log this was has ended: what was open then is in doubt now."""
        for slot, intent in self.intents.items():
            if self.index.find(intent.queue_id) >= 0:
                self.doubts.unanswered(intent.queue_id, slot, intent, epoch)
        for slot, opened in self.associations.items():
            self.doubts.unread(slot, opened, epoch)
        self.doubts.trim(epoch)
        self.intents.clear()
        self.associations.clear()
        self.transactions.conclude()


@dataclass(slots=True)
class Replay:
    """Applies the records of one log, in any order of DONE and MSG."""

    ledger: Ledger
    dead: set[str] = field(default_factory=set)
    bigs_dead: list[Big] = field(default_factory=list)
    salvages: bool = False
    """No checkpoint knows the message that a COPY is of, and its MSG may be freed since."""
    early: dict[str, tuple[int, Place, Change, int]] = field(default_factory=dict)
    """Salvaging: where the newest state lies of a message whose COPY is still to come."""

    def apply(self, view: RecordView, ref: int) -> None:
        """@raise ValueError, struct.error: the payload is not what its kind promises."""
        ledger, kind, queue_id = self.ledger, view.kind, view.queue_id
        if kind == MSG:
            message = decode_message(view.payload)
            if queue_id not in self.dead:
                ledger.message(queue_id, ref, view.place, message)
        elif kind == DONE:
            _, slot = decode_done(view.payload)
            self.dead.add(queue_id)
            self.early.pop(queue_id, None)
            big = ledger.done(queue_id, slot)
            if big is not None:
                self.bigs_dead.append(big)
        elif kind in {RESULT, DEFER}:
            change = decode_change(view.payload)
            ledger.changed(queue_id, ref, view.place, change, view.epoch)
            if self.salvages and change.flags & HAS_STATE and ledger.index.find(queue_id) < 0:
                self._keep_early(queue_id, ref, view, change)
        elif kind == INTENT:
            ledger.intended(decode_intent(queue_id, view.payload))
        elif kind == COPY:
            if self.salvages and queue_id not in self.dead:
                self._salvage(queue_id, ref, view)
            ledger.copied(queue_id, ref, view.place)
        elif kind == HOLD:
            held, due = decode_hold(view.payload)
            ledger.held(queue_id, held, due)
        elif kind == ASSOCIATION:
            ledger.associated(*decode_association(view.payload))
        elif kind == TRANSACTION:
            ledger.transactions.add(*decode_transaction(queue_id, view.payload))

    # salvaging

    def _keep_early(self, queue_id: str, ref: int, view: RecordView, change: Change) -> None:
        if queue_id not in self.dead:
            # What a transfer brought is told already: said again it would be another doubt.
            flags = change.flags & ~UNKNOWN
            domain, state = bytes(change.domain), bytes(change.state)
            kept = change._replace(flags=flags, slot="", domain=domain, state=state)
            self.early[queue_id] = (ref, view.place, kept, view.epoch)

    def _salvage(self, queue_id: str, ref: int, view: RecordView) -> None:
        """A COPY has the due time and hold of its own moment; the state stands where it was, mostly
        before it. The association of the MSG is another's by now.
        """
        message = decode_message(view.payload)._replace(association="")
        ledger = self.ledger
        ledger.message(queue_id, ref, view.place, message)
        early = self.early.pop(queue_id, None)
        if early is not None:
            state_ref, place, change, epoch = early
            ledger.changed(queue_id, state_ref, place, change, epoch)
        ledger.held(queue_id, message.held, message.due)
