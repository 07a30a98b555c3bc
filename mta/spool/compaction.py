"""Compaction: the few live records of an old segment move to the head of the log.

Law: a COPY is handed to the committer only while its message is neither taken nor changing, so that
in the log it always stands before that message's DONE. The old segment is not touched here: it is
freed when nothing live is left in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from mta.spool.committer import Unit
from mta.spool.index import HELD as INDEX_HELD
from mta.spool.index import LIVE, TAKEN
from mta.spool.records import (
    COPY,
    DEFER,
    HAS_STATE,
    HELD,
    Place,
    Record,
    RecordView,
    decode_change,
    decode_message,
    encode_change,
    encode_message,
)
from mta.spool.segment import Reader, Segment

if TYPE_CHECKING:
    from mta.spool.owned import OwnedLog

_LIVE_SHARE = 0.25
"""A segment with less of its octets alive is worth copying."""
_GROUP = 64
"""Messages read and handed to the committer at a time."""
_SCAN = 50_000
"""Slots looked at in one go: about 3 ms of the reactor's time."""


async def compact(owned: OwnedLog, closed: Sequence[Segment]) -> None:
    """Copy what lives in the emptiest of `closed`, if any is empty enough."""
    candidates = [
        segment
        for segment in closed
        if segment.live_records and segment.live_octets < _LIVE_SHARE * segment.size
    ]
    if not candidates:
        return
    segment = min(candidates, key=lambda one: one.live_octets / one.size)
    index = owned.ledger.index
    for start in range(0, len(index.flags), _SCAN):
        found = [
            slot
            for slot in range(start, min(start + _SCAN, len(index.flags)))
            if index.flags[slot] & (LIVE | TAKEN) == LIVE
            and segment.ref in {index.message_segment[slot], index.state_segment[slot]}
        ]
        for at in range(0, len(found), _GROUP):
            if owned.ended is not None:
                return
            await _copy(owned, segment, found[at : at + _GROUP])


async def _copy(owned: OwnedLog, segment: Segment, slots: list[int]) -> None:
    index = owned.ledger.index
    messages: list[tuple[str, Place]] = []
    states: list[tuple[str, Place]] = []
    for slot in slots:
        if not index.flags[slot]:
            continue
        if index.message_segment[slot] == segment.ref:
            messages.append((index.queue_id(slot), index.message_place(slot)))
        if index.state_segment[slot] == segment.ref:
            states.append((index.queue_id(slot), index.state_place(slot)))
    segment.pins += 1
    try:
        read: Any = await owned.executor.submit(_read, owned.reader, segment, messages, states)
    finally:
        segment.pins -= 1
    if owned.ended is not None:
        return
    for name, place, record, view in read:
        slot = index.find(name)
        if slot < 0 or index.flags[slot] & TAKEN or owned.is_changing(name):
            continue  # it moves on by itself, or next time
        if record is None:
            owned.set_aside(name, f"seg/{segment.name} offset {place.offset}: damaged")
            continue
        if record[0] == COPY:
            if index.message_segment[slot] != segment.ref or index.message_place(slot) != place:
                continue
            unit = Unit([_message_again(owned, slot, record)], _moved(owned, name), None)
        else:
            if index.state_segment[slot] != segment.ref or index.state_place(slot) != place:
                continue
            unit = Unit([_state_again(owned, slot, name, view)], _state_moved(owned, name), None)
        owned.committer.submit(unit)
    # The next group only when this one is durable: compaction never crowds out mail.
    await _durable(owned)


async def _durable(owned: OwnedLog) -> None:
    done: Deferred[None] = Deferred()
    owned.committer.flush(done)
    await done


def _read(
    reader: Reader,
    segment: Segment,
    messages: list[tuple[str, Place]],
    states: list[tuple[str, Place]],
) -> list[tuple[str, Place, Record | None, RecordView | None]]:
    """On a worker."""
    found: list[tuple[str, Place, Record | None, RecordView | None]] = []
    for name, place in messages:
        both = reader.read(segment, place)
        if both is None or both[0].queue_id != name:
            found.append((name, place, None, None))
        else:
            view, body = both
            pieces = (body,) if body else ()
            record = (COPY, name.encode(), view.payload, pieces, len(body))
            found.append((name, place, record, view))
    for name, place in states:
        head = reader.read_head(segment, place)
        if head is None or head.queue_id != name:
            found.append((name, place, None, None))
        else:
            found.append((name, place, (DEFER, name.encode(), b"", (), 0), head))
    return found


def _message_again(owned: OwnedLog, slot: int, record: Record) -> Record:
    """The same message, with the due time and hold of now: what a HOLD said may go with its
    segment, and who salvages has no checkpoint that remembers it.
    """
    index = owned.ledger.index
    kind, name, payload, body, octets = record
    held = bool(index.flags[slot] & INDEX_HELD)
    message = decode_message(payload)._replace(held=held, due=index.due[slot])
    return (kind, name, encode_message(message), body, octets)


def _state_again(owned: OwnedLog, slot: int, name: str, view: RecordView | None) -> Record:
    """The same state, with the due time and hold of now: both may have changed by HOLD. What a
    transfer brought stands in the ledger since; said again without its slot it would be a doubt
    about nobody knows what.
    """
    assert view is not None, "a damaged one was set aside"
    index = owned.ledger.index
    change = decode_change(view.payload)
    held = bool(index.flags[slot] & INDEX_HELD)
    flags = HAS_STATE | held * HELD
    payload = encode_change(change._replace(flags=flags, due=index.due[slot], slot=""))
    return (DEFER, name.encode(), payload, (), 0)


def _moved(owned: OwnedLog, name: str) -> Any:
    def moved(ref: int, places: list[Place]) -> None:
        owned.ledger.copied(name, ref, places[0])

    return moved


def _state_moved(owned: OwnedLog, name: str) -> Any:
    def moved(ref: int, places: list[Place]) -> None:
        owned.ledger.state_copied(name, ref, places[0])

    return moved
