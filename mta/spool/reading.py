"""Reading one message back from its records.

Law: what is handed out matched its crcs. Blocking, on a worker thread; reads immutable places only
(the segments are pinned by the caller).
"""

from __future__ import annotations

import struct
from dataclasses import replace

from mta.errors import Corrupt
from mta.model import Envelope, MessageState, value
from mta.spool.envelopes import decode_envelope, decode_state
from mta.spool.records import Big, Place, RecordView, decode_change, decode_message
from mta.spool.segment import Reader, Segment


@value
class Wanted:
    """Where a message lies, as the index knew it when it was asked for."""

    queue_id: str
    segment: Segment
    place: Place
    state_segment: Segment | None
    state_place: Place
    big: Big | None
    due: float
    held: bool


@value
class Found:
    """`pieces` is None when the content is too large, or was not asked for."""

    envelope: Envelope
    state: MessageState
    pieces: tuple[bytes, ...] | None
    octets: int
    before: bytes
    """The part of a big message that lies in the log."""
    body_offset: int
    body_octets: int
    body_crc: int


def read_message(reader: Reader, wanted: Wanted, *, with_body: bool, most: int = 0) -> Found:
    """@raise Corrupt: not what was written. @raise OSError."""
    place, segment = wanted.place, wanted.segment
    where = f"seg/{segment.name} offset {place.offset}"
    body = b""
    view: RecordView | None
    if (with_body and place.length <= most) or wanted.big is not None:
        both = reader.read(segment, place)
        if both is None:
            raise Corrupt(f"{where}: the record's crc does not match")
        view, body = both
    else:
        view = reader.read_head(segment, place)
        if view is None:
            raise Corrupt(f"{where}: the record's crc does not match")
    if view.queue_id != wanted.queue_id:
        raise Corrupt(f"{where}: it is the record of {view.queue_id}")
    try:
        message = decode_message(view.payload)
        envelope = decode_envelope(message.envelope)
        encoded = message.state
        if wanted.state_segment is not None:
            encoded = _read_state(reader, wanted)
        state = decode_state(encoded)
    except (ValueError, struct.error) as error:
        raise Corrupt(f"{where}: {error}") from error
    # The columns are the later word: give-backs and operators' acts write no state record.
    state = replace(state, due=wanted.due, held=wanted.held)
    whole = wanted.big is None and with_body and place.length <= most
    return Found(
        envelope,
        state,
        (body,) if whole else None,
        message.size_octets,
        body if wanted.big is not None else b"",
        view.body_offset,
        view.body_octets,
        view.body_crc,
    )


def _read_state(reader: Reader, wanted: Wanted) -> bytes:
    segment, place = wanted.state_segment, wanted.state_place
    assert segment is not None, "asked for only when there is one"
    view = reader.read_head(segment, place)
    if view is None or view.queue_id != wanted.queue_id:
        raise Corrupt(f"seg/{segment.name} offset {place.offset}: the state's crc does not match")
    return decode_change(view.payload).state
