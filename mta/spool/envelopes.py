"""Envelopes and message states as octets: the payloads that a MSG and a state record carry.

Law: format version 1, little-endian, lengths before bytes; what was encoded decodes to an equal
value or raises ValueError, whatever octets come in. No pickle: what lies on disk is data only.
The hot path (one sender, one recipient, a fresh state) costs about 4 us each way.
"""

from __future__ import annotations

import math
import struct
from typing import TypeVar

from mta.model import (
    UNTOUCHED,
    Address,
    AddressKind,
    BodyType,
    ContentForm,
    Envelope,
    EnvelopeKind,
    MessageState,
    Notify,
    Recipient,
    RecipientState,
    RecipientStatus,
    Requires,
)
from mta.spool.due import TIMED
from mta.spool.priorities import OCTETS, PRIORITIES

# The place in the tuple is what lies on disk: append, never reorder.
_ADDRESS_KINDS = (AddressKind.SMTP, AddressKind.X400)
_KINDS = (EnvelopeKind.MESSAGE, EnvelopeKind.REPORT, EnvelopeKind.PROBE)
_BODIES = (BodyType.SEVEN_BIT, BodyType.EIGHT_BIT_MIME, BodyType.BINARY_MIME)
_FORMS = (ContentForm.DOT_STUFFED, ContentForm.OPAQUE)
_RET = (None, False, True)
_STATUSES = (RecipientStatus.PENDING, RecipientStatus.DELIVERED, RecipientStatus.FAILED)

_ENVELOPE = struct.Struct("<BBBBBBBIIdddIIIIIII")
_ORIGIN, _ORIGIN_AT = struct.Struct("<IdddIIIII"), struct.calcsize("<BBBBBBBI")
_RECIPIENT = struct.Struct("<BBIII")
_STATE = struct.Struct("<BIddI")
_RECIPIENT_STATE = struct.Struct("<BIII")

_HELD, _WARNED, _FRESH = 1, 2, 4
_NONE = math.nan
T = TypeVar("T")


def encode_envelope(envelope: Envelope) -> bytes:
    """@raise struct.error: a length or a number beyond 32 bits. @raise KeyError: no priority."""
    sender = envelope.sender
    association = envelope.association.encode("utf-8", "backslashreplace")
    client = envelope.client.encode("utf-8", "backslashreplace")
    deferred_until, deliver_by = envelope.deferred_until, envelope.deliver_by
    recipients = envelope.recipients
    parts = [
        _ENVELOPE.pack(
            _KINDS.index(envelope.kind),
            _BODIES.index(envelope.body_type),
            _FORMS.index(envelope.content_form),
            OCTETS[envelope.priority],
            envelope.requires,
            _RET.index(envelope.ret_full),
            _ADDRESS_KINDS.index(sender.kind),
            envelope.trace_hops,
            envelope.ordinal,
            envelope.received_at,
            _NONE if deferred_until is None else deferred_until,
            _NONE if deliver_by is None else deliver_by,
            len(sender.text),
            len(sender.domain),
            len(envelope.envelope_id),
            len(association),
            len(client),
            len(envelope.message_id),
            len(recipients),
        ),
        sender.text,
        sender.domain,
        envelope.envelope_id,
        association,
        client,
        envelope.message_id,
    ]
    for recipient in recipients:
        address = recipient.address
        parts += (
            _RECIPIENT.pack(
                _ADDRESS_KINDS.index(address.kind),
                recipient.notify,
                len(address.text),
                len(address.domain),
                len(recipient.original),
            ),
            address.text,
            address.domain,
            recipient.original,
        )
    return b"".join(parts)


def origin_of(octets: bytes) -> tuple[int, bytes]:
    """`ordinal` and `client` of an encoded envelope; 0 and b"" when there is none."""
    if len(octets) < _ENVELOPE.size:
        return 0, b""
    ordinal, _, _, _, text, domain, name, slot, client = _ORIGIN.unpack_from(octets, _ORIGIN_AT)
    at = _ENVELOPE.size + text + domain + name + slot
    return ordinal, octets[at : at + client]


def decode_envelope(octets: bytes) -> Envelope:
    """@raise ValueError: these octets are no envelope."""
    if len(octets) < _ENVELOPE.size:
        raise ValueError("an envelope ends before its head does")
    (
        kind,
        body,
        form,
        priority,
        requires,
        ret_full,
        sender_kind,
        trace_hops,
        ordinal,
        received_at,
        deferred_until,
        deliver_by,
        *lengths,
        count,
    ) = _ENVELOPE.unpack_from(octets)
    at = _ENVELOPE.size
    fields = []
    for length in lengths:
        fields.append(_slice(octets, at, length))
        at += length
    recipients = []
    for _ in range(count):
        if at + _RECIPIENT.size > len(octets):
            raise ValueError("an envelope ends before its recipients do")
        of, notify, text, domain, original = _RECIPIENT.unpack_from(octets, at)
        at += _RECIPIENT.size
        address = Address(
            _slice(octets, at, text),
            _slice(octets, at + text, domain),
            _pick(_ADDRESS_KINDS, of),
        )
        at += text + domain
        recipients.append(Recipient(address, Notify(notify), _slice(octets, at, original)))
        at += original
    if at != len(octets):
        raise ValueError("octets lie behind the end of an envelope")
    return Envelope(
        sender=Address(fields[0], fields[1], _pick(_ADDRESS_KINDS, sender_kind)),
        recipients=tuple(recipients),
        kind=_pick(_KINDS, kind),
        body_type=_pick(_BODIES, body),
        content_form=_pick(_FORMS, form),
        envelope_id=fields[2],
        ret_full=_pick(_RET, ret_full),
        priority=_pick(PRIORITIES, priority),
        requires=Requires(requires),
        received_at=received_at,
        deferred_until=None if math.isnan(deferred_until) else deferred_until,
        deliver_by=None if math.isnan(deliver_by) else deliver_by,
        trace_hops=trace_hops,
        association=fields[3].decode("utf-8", "backslashreplace"),
        ordinal=ordinal,
        client=fields[4].decode("utf-8", "backslashreplace"),
        message_id=fields[5],
    )


def encode_state(state: MessageState) -> bytes:
    """A state whose recipients are all untouched costs 25 octets, however many they are."""
    recipients = state.recipients
    fresh = recipients.count(UNTOUCHED) == len(recipients)
    head = _STATE.pack(
        state.held * _HELD | state.delay_warned * _WARNED | fresh * _FRESH,
        state.attempts,
        state.due,
        state.last_attempt,
        len(recipients),
    )
    if fresh:
        return head
    parts = [head]
    for recipient in recipients:
        reply = recipient.reply.encode("utf-8", "backslashreplace")
        enhanced = recipient.enhanced.encode("utf-8", "backslashreplace")
        remote = recipient.remote.encode("utf-8", "backslashreplace")
        parts += (
            _RECIPIENT_STATE.pack(recipient.status, len(reply), len(enhanced), len(remote)),
            reply,
            enhanced,
            remote,
        )
    return b"".join(parts)


def decode_state(octets: bytes) -> MessageState:
    """@raise ValueError: these octets are no state."""
    if len(octets) < _STATE.size:
        raise ValueError("a state ends before its head does")
    flags, attempts, due, last_attempt, count = _STATE.unpack_from(octets)
    at = _STATE.size
    recipients: tuple[RecipientState, ...]
    if flags & _FRESH:
        # A damaged count must not become a giant tuple: an envelope has 2**20 recipients at most.
        if count > 1 << 20:
            raise ValueError(f"a state for {count} recipients")
        recipients = (UNTOUCHED,) * count
    else:
        found = []
        for _ in range(count):
            if at + _RECIPIENT_STATE.size > len(octets):
                raise ValueError("a state ends before its recipients do")
            status, reply, enhanced, remote = _RECIPIENT_STATE.unpack_from(octets, at)
            at += _RECIPIENT_STATE.size
            texts = []
            for length in (reply, enhanced, remote):
                texts.append(_slice(octets, at, length).decode("utf-8", "backslashreplace"))
                at += length
            found.append(RecipientState(_pick(_STATUSES, status), *texts))
        recipients = tuple(found)
    if at != len(octets):
        raise ValueError("octets lie behind the end of a state")
    return MessageState(
        recipients=recipients,
        attempts=attempts,
        due=due,
        held=bool(flags & _HELD),
        delay_warned=bool(flags & _WARNED),
        last_attempt=last_attempt,
    )


def first_pending_domain(envelope: Envelope, state: MessageState) -> bytes:
    """By which the message is grouped in the queue; b"" when nothing is pending. What has a time
    (RFC 2852) is a group of its own: it is looked at then, though its destination be left alone.
    """
    for recipient, one in zip(envelope.recipients, state.recipients, strict=False):
        if one.status is RecipientStatus.PENDING:
            domain = recipient.address.domain
            return domain if envelope.deliver_by is None else domain + TIMED
    return b""


def _slice(octets: bytes, at: int, length: int) -> bytes:
    if at + length > len(octets):
        raise ValueError("a length points behind the end")
    return octets[at : at + length]


def _pick(choices: tuple[T, ...], number: int) -> T:
    if number >= len(choices):
        raise ValueError(f"{number} is not one of {len(choices)} choices")
    return choices[number]
