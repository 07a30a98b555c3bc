"""Records and batches: how facts lie in a segment of the log.

Law: a body cannot forge a record, for every crc is seeded with the segment's random tag; a batch
counts only when it is whole. Format version 1, little-endian:

    batch   header (tag, sequence, octets, records, crc), records, END record, zeros to 4 KiB
    record  crc, kind, id length, payload length, body length, body crc, epoch, id, payload, body
    END     wall time, crc over the records' crcs, the length of each record

A record's crc covers everything but the body, which has its own: replay reads no bodies. Batches
start at multiples of 4 KiB, so that a reader finds the next one behind damage, and no write ever
touches a page that holds acknowledged data.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from mta.model import FourTuple, Intent, Remembered, value
from mta.spool.priorities import LEVEL_OF, LEVELS

ALIGNMENT = 4096
_ZEROS = bytes(ALIGNMENT)


class Kind(enum.IntEnum):
    """The record kinds of format version 1."""

    MSG = 1
    INTENT = 2
    RESULT = 3
    DEFER = 4
    DONE = 5
    COPY = 6
    HOLD = 7
    TRANSACTION = 8
    ASSOCIATION = 9
    CONTINUES = 10
    NEXT = 11
    END = 12


MSG, INTENT, RESULT, DEFER, DONE = 1, 2, 3, 4, 5
COPY, HOLD, TRANSACTION, ASSOCIATION, CONTINUES, NEXT, END = 6, 7, 8, 9, 10, 11, 12
KINDS = frozenset(range(1, 13))

Record = tuple[int, bytes, bytes, tuple[bytes, ...], int]
"""kind, id, payload, body in pieces, octets of the body. A plain tuple: one a message is made."""

_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<BBHIIIQ")
_BATCH = struct.Struct("<QIIII")
_TAG = struct.Struct("<Q")
_END = struct.Struct("<dI")
RECORD_HEAD = _CRC.size + _HEAD.size
BATCH_HEAD = _BATCH.size


class Place(NamedTuple):
    """Where a record lies in its segment."""

    offset: int
    length: int
    crc: int


_new_tuple = tuple.__new__
"""What a named tuple's own `__new__` calls: without it a Place takes 1.9 in place of 3.1 thousand
instructions, and a message has three."""


class RecordView(NamedTuple):
    """A record as read back: everything but its body."""

    kind: int
    queue_id: str
    payload: bytes
    epoch: int
    place: Place
    body_offset: int
    body_octets: int
    body_crc: int


def seed(tag: int) -> int:
    """What every crc in the segment that bears `tag` starts from."""
    return crc32(_TAG.pack(tag))


def aligned(octets: int) -> int:
    return -(-octets // ALIGNMENT) * ALIGNMENT


def records_octets(records: Iterable[Record]) -> int:
    """Their length in the segment."""
    octets = 0
    for _, name, payload, _, body_octets in records:
        octets += RECORD_HEAD + len(name) + len(payload) + body_octets
    return octets


def batch_octets(records: int, octets: int) -> int:
    """A batch of so many records of together so many octets, padding included."""
    return aligned(BATCH_HEAD + octets + RECORD_HEAD + _END.size + _CRC.size * records)


def end_octets(records: int) -> int:
    return RECORD_HEAD + _END.size + _CRC.size * records


def encode_batch(
    records: Iterable[Record], tag: int, epoch: int, sequence: int, offset: int, *, wall: float
) -> tuple[list[bytes], list[Place], int]:
    """The pieces to write at `offset`, where each record then lies, and the octets in all."""
    start = seed(tag)
    pieces: list[bytes] = [b""]
    places: list[Place] = []
    crcs: list[int] = []
    lengths: list[int] = []
    at = offset + BATCH_HEAD
    for kind, name, payload, body, body_octets in records:
        body_crc = 0
        for piece in body:
            body_crc = crc32(piece, body_crc)
        rest = (
            _HEAD.pack(kind, len(name), 0, len(payload), body_octets, body_crc, epoch)
            + name
            + payload
        )
        crc = crc32(rest, start)
        pieces.append(_CRC.pack(crc))
        pieces.append(rest)
        pieces += body
        length = _CRC.size + len(rest) + body_octets
        places.append(_new_tuple(Place, (at, length, crc)))
        crcs.append(crc)
        lengths.append(length)
        at += length
    count = len(places)
    numbers = f"<{count}I"
    payload = _END.pack(wall, crc32(struct.pack(numbers, *crcs), start)) + struct.pack(
        numbers, *lengths
    )
    rest = _HEAD.pack(END, 0, 0, len(payload), 0, 0, epoch) + payload
    pieces.append(_CRC.pack(crc32(rest, start)) + rest)
    at += _CRC.size + len(rest)
    octets = at - offset
    head = _BATCH.pack(tag, sequence, octets, count, 0)[:-4]
    pieces[0] = head + _CRC.pack(crc32(head, start))
    padding = -octets % ALIGNMENT
    if padding:
        pieces.append(_ZEROS[:padding])
    return pieces, places, octets + padding


def parse_batch_head(octets: bytes, tag: int) -> tuple[int, int, int] | None:
    """(sequence, octets, records) when `octets` begin a batch that bears `tag`, else None."""
    if len(octets) < BATCH_HEAD:
        return None
    found, sequence, length, count, crc = _BATCH.unpack_from(octets)
    if found != tag or crc32(octets[: BATCH_HEAD - 4], seed(tag)) != crc:
        return None
    if length < BATCH_HEAD + end_octets(count):
        return None
    return sequence, length, count


def parse_end(octets: bytes, tag: int, count: int) -> tuple[float, int, tuple[int, ...]] | None:
    """(wall time, crc of the batch, length of each record), or None when it is not whole."""
    view = parse_record(octets, tag, 0)
    if view is None or view.kind != END or len(view.payload) != _END.size + 4 * count:
        return None
    wall, crc = _END.unpack_from(view.payload)
    return wall, crc, struct.unpack_from(f"<{count}I", view.payload, _END.size)


def batch_crc(places: Sequence[Place], tag: int) -> int:
    crcs = struct.pack(f"<{len(places)}I", *[place.crc for place in places])
    return crc32(crcs, seed(tag))


def head_lengths(octets: bytes) -> tuple[int, int]:
    """(octets of head, id and payload; octets of the body) as an unverified head claims."""
    _, name, _, payload, body, _, _ = _HEAD.unpack_from(octets, _CRC.size)
    return RECORD_HEAD + name + payload, body


def parse_record(octets: bytes, tag: int, offset: int) -> RecordView | None:
    """The record that begins `octets` (its body need not be there), or None when damaged."""
    if len(octets) < RECORD_HEAD:
        return None
    (crc,) = _CRC.unpack_from(octets)
    kind, name, _, payload, body, body_crc, epoch = _HEAD.unpack_from(octets, _CRC.size)
    end = RECORD_HEAD + name + payload
    if len(octets) < end or crc32(octets[_CRC.size : end], seed(tag)) != crc or kind not in KINDS:
        return None
    split = RECORD_HEAD + name
    return RecordView(
        kind,
        octets[RECORD_HEAD:split].decode("ascii", "replace"),
        octets[split:end],
        epoch,
        Place(offset, end + body, crc),
        offset + end,
        body,
        body_crc,
    )


# --- payloads -----------------------------------------------------------------------------------

_MESSAGE = struct.Struct("<ddQBHHIQQII")
_STATE = struct.Struct("<BdHH")
_DONE = struct.Struct("<BH")
_HOLD = struct.Struct("<Bd")
_INTENT = struct.Struct("<HHHI")
_NUMBER = struct.Struct("<I")
_TRANSACTION = struct.Struct("<HHHQd")
_ASSOCIATION = struct.Struct("<BHHIHI")
_CONTINUES = struct.Struct("<QQQQ")

UNKNOWN, NOT_SENT, HAS_STATE, HELD = 1, 2, 4, 8
_MESSAGE_HELD, _MESSAGE_BIG = 1, 2


@value
class Big:
    """A content that lies in a file of its own, big/EPOCH.NUMBER."""

    epoch: int
    number: int
    octets: int
    crc: int

    @property
    def name(self) -> str:
        return f"{self.epoch}.{self.number}"


class Message(NamedTuple):
    """A MSG payload. Its first part is what the index needs; `envelope` and `state` stay encoded.

    `prepend_octets` of the body are the prepend block.
    """

    due: float
    received_at: float
    size_octets: int
    held: bool
    priority: int
    domain: bytes
    association: str
    prepend_octets: int
    big: Big | None
    envelope: bytes
    state: bytes


def encode_message(message: Message) -> bytes:
    due, received_at, size, held, priority, domain, association, prepend, big, envelope, state = (
        message
    )
    slot = association.encode("utf-8", "backslashreplace")
    head = _MESSAGE.pack(
        due,
        received_at,
        size,
        held * _MESSAGE_HELD | (big is not None) * _MESSAGE_BIG | LEVEL_OF[priority] << 4,
        len(domain),
        len(slot),
        prepend,
        big.epoch if big is not None else 0,
        big.number if big is not None else 0,
        big.crc if big is not None else 0,
        len(envelope),
    )
    return b"".join((head, domain, slot, envelope, state))


def decode_message(payload: bytes) -> Message:
    """@raise ValueError: damaged."""
    if len(payload) < _MESSAGE.size:
        raise ValueError("a message record ends early")
    (
        due,
        received_at,
        size_octets,
        flags,
        domain,
        slot,
        prepend_octets,
        epoch,
        number,
        crc,
        envelope,
    ) = _MESSAGE.unpack_from(payload)
    at = _MESSAGE.size
    behind = at + domain + slot
    if behind + envelope > len(payload):
        raise ValueError("a message record ends early")
    big = None
    if flags & _MESSAGE_BIG:
        big = Big(epoch, number, size_octets - prepend_octets, crc)
    return Message(
        due,
        received_at,
        size_octets,
        bool(flags & _MESSAGE_HELD),
        LEVELS[flags >> 4],
        payload[at : at + domain],
        payload[at + domain : behind].decode("utf-8", "replace"),
        prepend_octets,
        big,
        payload[behind : behind + envelope],
        payload[behind + envelope :],
    )


class Change(NamedTuple):
    """A RESULT or DEFER payload; `state` is encoded, b"" when it did not change."""

    flags: int
    due: float
    slot: str
    domain: bytes
    state: bytes


def encode_change(change: Change) -> bytes:
    flags, due, slot, domain, state = change
    name = slot.encode()
    return b"".join((_STATE.pack(flags, due, len(name), len(domain)), name, domain, state))


def decode_change(payload: bytes) -> Change:
    """@raise ValueError, struct.error: damaged."""
    flags, due, slot, domain = _STATE.unpack_from(payload)
    at = _STATE.size
    if at + slot + domain > len(payload):
        raise ValueError("a state record ends early")
    return Change(
        flags,
        due,
        payload[at : at + slot].decode("utf-8", "replace"),
        payload[at + slot : at + slot + domain],
        payload[at + slot + domain :],
    )


def encode_done(flags: int, slot: str) -> bytes:
    name = slot.encode()
    return _DONE.pack(flags, len(name)) + name


def decode_done(payload: bytes) -> tuple[int, str]:
    flags, length = _DONE.unpack_from(payload)
    return flags, payload[_DONE.size : _DONE.size + length].decode("utf-8", "replace")


def encode_hold(held: bool, due: float) -> bytes:
    return _HOLD.pack(held, due)


def decode_hold(payload: bytes) -> tuple[bool, float]:
    held, due = _HOLD.unpack_from(payload)
    return bool(held), due


def encode_intent(intent: Intent) -> bytes:
    slot, peer = intent.slot.encode(), intent.peer.encode("utf-8", "backslashreplace")
    transaction = intent.transaction.encode("utf-8", "backslashreplace")
    recipients = intent.recipients
    head = _INTENT.pack(len(slot), len(peer), len(transaction), len(recipients))
    numbers = b"".join(map(_NUMBER.pack, recipients))
    return b"".join((head, slot, peer, transaction, numbers))


def decode_intent(queue_id: str, payload: bytes) -> Intent:
    """@raise ValueError, struct.error: damaged."""
    slot, peer, transaction, count = _INTENT.unpack_from(payload)
    at = _INTENT.size
    texts = []
    for length in (slot, peer, transaction):
        texts.append(payload[at : at + length].decode("utf-8", "replace"))
        at += length
    if at + 4 * count > len(payload):
        raise ValueError("an intent ends early")
    recipients = struct.unpack_from(f"<{count}I", payload, at)
    return Intent(queue_id, texts[0], recipients, texts[1], texts[2])


def encode_transaction(remembered: Remembered, association: str) -> bytes:
    """The queue id is the record's."""
    texts = [
        text.encode("utf-8", "backslashreplace")
        for text in (remembered.client, remembered.transaction, association)
    ]
    head = _TRANSACTION.pack(*map(len, texts), remembered.octets, remembered.expires)
    return b"".join((head, *texts))


def decode_transaction(queue_id: str, payload: bytes) -> tuple[Remembered, str]:
    """With its association. @raise ValueError, struct.error: damaged."""
    *lengths, octets, expires = _TRANSACTION.unpack_from(payload)
    at, texts = _TRANSACTION.size, []
    for length in lengths:
        texts.append(payload[at : at + length].decode("utf-8", "replace"))
        at += length
    if at > len(payload):
        raise ValueError("a transaction ends early")
    client, transaction, association = texts
    return Remembered(client, transaction, queue_id, octets, expires), association


def encode_association(slot: str, ends: FourTuple | None, inbound: bool) -> bytes:
    """`ends` is None when it closed."""
    name = slot.encode()
    if ends is None:
        return _ASSOCIATION.pack(0, len(name), 0, 0, 0, 0) + name
    local, peer = ends.local_host.encode(), ends.peer_host.encode()
    return (
        _ASSOCIATION.pack(
            1 | inbound << 1, len(name), len(local), ends.local_port, len(peer), ends.peer_port
        )
        + name
        + local
        + peer
    )


def decode_association(payload: bytes) -> tuple[str, FourTuple | None, bool]:
    flags, name, local, local_port, peer, peer_port = _ASSOCIATION.unpack_from(payload)
    at = _ASSOCIATION.size
    texts = []
    for length in (name, local, peer):
        texts.append(payload[at : at + length].decode("utf-8", "replace"))
        at += length
    if not flags & 1:
        return texts[0], None, False
    return texts[0], FourTuple(texts[1], local_port, texts[2], peer_port), bool(flags & 2)


def encode_continues(epoch: int, number: int, generation: int, good_end: int) -> bytes:
    """The segment before this one and where its last good batch ends; zeros for the first."""
    return _CONTINUES.pack(epoch, number, generation, good_end)


def decode_continues(payload: bytes) -> tuple[int, int, int, int]:
    epoch, number, generation, good_end = _CONTINUES.unpack_from(payload)
    return epoch, number, generation, good_end


def encode_next(epoch: int, number: int) -> bytes:
    return encode_continues(epoch, number, 0, 0)
