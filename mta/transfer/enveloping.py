"""The envelope of a message that is about to be committed.

Law: nothing is decided here: what policies and the wire left is put together.
"""

from __future__ import annotations

from mta.model import ContentForm, Envelope
from mta.policy.transaction import Transaction
from mta.transfer.content_form import as_it_is
from mta.transfer.wishes import NO_WISHES, read_wishes
from mta.wire.mime.texts import TextScan


def envelope_of(  # noqa: PLR0917 - a fact each
    transaction: Transaction,
    text: TextScan | None,
    has_eight_bits: bool,
    wall: float,
    hops: int,
    ordinal: int,
    message_id: bytes,
) -> Envelope:
    """`text` has looked at content that lies as it is; `ordinal` is the association's count."""
    association, parameters = transaction.association, transaction.parameters
    wishes = NO_WISHES
    if parameters:
        wishes = read_wishes(
            parameters,
            wall,
            eight_bits=has_eight_bits or not transaction.header_is_ascii,
            plain_header=transaction.header_is_ascii,
        )
    body_type, form = wishes.body_type, ContentForm.DOT_STUFFED
    if text is not None:
        body_type, form = as_it_is(text, body_type)
    return Envelope(
        sender=transaction.sender,
        recipients=tuple(transaction.kept),
        requires=wishes.requires,
        body_type=body_type,
        content_form=form,
        envelope_id=wishes.envelope_id,
        ret_full=wishes.ret_full,
        deferred_until=wishes.deferred_until,
        deliver_by=transaction.deliver_by,
        received_at=wall,
        trace_hops=hops,
        priority=transaction.priority,
        association=association.peer.association,
        ordinal=ordinal,
        client=association.client,
        message_id=message_id,
    )
