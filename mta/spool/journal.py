"""Journal entries: what is written together, and what becomes true when it is durable.

Law: an outcome and the reports that it makes are one entry, so that one exists if and only if the
other does. Nothing is applied before the committer says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mta.model import MessageState, Report, Result, fresh_state
from mta.spool.envelopes import encode_envelope, encode_state, first_pending_domain
from mta.spool.index import HELD as INDEX_HELD
from mta.spool.index import TAKEN
from mta.spool.records import (
    DEFER,
    DONE,
    HAS_STATE,
    HELD,
    HOLD,
    MSG,
    NOT_SENT,
    RESULT,
    UNKNOWN,
    Change,
    Message,
    Place,
    Record,
    encode_change,
    encode_done,
    encode_hold,
    encode_message,
)

if TYPE_CHECKING:
    from mta.spool.owned import OwnedLog


KEPT = 20_000
"""Messages in memory above which a report is not kept there: nobody has taken it yet."""


class Entry:
    """One journal entry: records, and beside each what becomes true when it is durable."""

    __slots__ = ("_owned", "_then", "records")

    def __init__(self, owned: OwnedLog) -> None:
        self._owned = owned
        self.records: list[Record] = []
        self._then: list[tuple[Callable[..., object], tuple[Any, ...], bool]] = []
        """(call, arguments, whether it wants the record's place)."""

    def add(self, record: Record, call: Callable[..., object], *arguments: Any) -> None:
        self.records.append(record)
        self._then.append((call, arguments, False))

    def add_placed(self, record: Record, call: Callable[..., object], *arguments: Any) -> None:
        self.records.append(record)
        self._then.append((call, arguments, True))

    def apply(self, ref: int, places: list[Place]) -> None:
        for (call, arguments, placed), place in zip(self._then, places, strict=True):
            if placed:
                call(ref, place, *arguments)
            else:
                call(*arguments)
        self._then.clear()  # they are methods of ours: a circle a message, found late

    def result(self, result: Result) -> None:
        owned, name = self._owned, result.queue_id
        flags = result.unknown * UNKNOWN | result.not_sent * NOT_SENT
        state = result.state
        if state is None and not flags:
            self.settle(name, 0, result.slot)
        else:
            self._change(result, flags, state)
        if result.reports:
            known = owned.ledger.index.find(name) >= 0
            for report in result.reports:
                if known and owned.ledger.index.find(report.queue_id) < 0:
                    self._report(report)

    def settle(self, name: str, flags: int, slot: str) -> None:
        self._mark_changing(name)
        self.add((DONE, name.encode(), encode_done(flags, slot), (), 0), self._done, name, slot)

    def hold(self, name: str, held: bool, due: float) -> None:
        self._mark_changing(name)
        record = (HOLD, name.encode(), encode_hold(held, due), (), 0)
        self.add(record, self._held, name, held, due)

    def _mark_changing(self, name: str) -> None:
        index = self._owned.ledger.index
        slot = index.find(name)
        if slot >= 0 and not index.flags[slot] & TAKEN:
            self._owned.changing.add(name)

    def _done(self, name: str, slot: str) -> None:
        owned = self._owned
        big = owned.ledger.done(name, slot)
        owned.drop(name)
        if owned.changing:
            owned.changing.discard(name)
        if big is not None:
            owned.remove_big(big)

    def _held(self, name: str, held: bool, due: float) -> None:
        self._owned.changing.discard(name)
        self._owned.ledger.held(name, held, due)

    def _change(self, result: Result, flags: int, state: MessageState | None) -> None:
        owned, name = self._owned, result.queue_id
        index = owned.ledger.index
        slot = index.find(name)
        domain, due, encoded = b"", 0.0, b""
        if state is not None and slot >= 0:
            self._mark_changing(name)
            active = owned.active.get(name)
            if active is not None:
                domain = first_pending_domain(active.envelope, state)
            else:
                domain = index.domains.names[index.domain[slot]]
            held = state.held or bool(index.flags[slot] & INDEX_HELD and result.slot)
            flags |= HAS_STATE | held * HELD
            due, encoded = state.due, encode_state(state)
        kind = RESULT if result.slot else DEFER
        change = Change(flags, due, result.slot, domain, encoded)
        record = (kind, name.encode(), encode_change(change), (), 0)
        self.add_placed(record, self._changed, name, change)

    def _changed(self, ref: int, place: Place, name: str, change: Change) -> None:
        owned = self._owned
        owned.ledger.changed(name, ref, place, change, owned.own.epoch)
        if change.flags & HAS_STATE:
            owned.changing.discard(name)
            owned.drop(name)

    def _report(self, report: Report) -> None:
        envelope = report.envelope
        state = fresh_state(envelope)
        message = Message(
            state.due,
            envelope.received_at,
            len(report.content),
            False,
            envelope.priority,
            first_pending_domain(envelope, state),
            "",
            0,
            None,
            encode_envelope(envelope),
            encode_state(state),
        )
        content = (report.content,)
        name = report.queue_id.encode()
        record = (MSG, name, encode_message(message), content, len(report.content))
        self.add_placed(record, self._reported, report, message, state)

    def _reported(
        self, ref: int, place: Place, report: Report, message: Message, state: MessageState
    ) -> None:
        owned = self._owned
        is_new = owned.ledger.message(report.queue_id, ref, place, message) >= 0
        if is_new and len(owned.active) < KEPT:  # beyond that they are read back when they are due
            content = (report.content,)
            owned.keep(report.queue_id, report.envelope, state, content, message.size_octets)
