"""The in-doubt list as operators see it: who, where, since when, and what will be done.

Law: plain values, foreign text neutralised. What will be done is said of the message as it lies in
the queue now; of one that has left it only its id is known.
"""

from __future__ import annotations

from typing import Any

from mta.admin.text import neutral
from mta.model import Doubt, QueueEntry


def doubt_facts(doubt: Doubt, entry: QueueEntry | None) -> dict[str, Any]:
    """`entry` is its message, None when that is not queued any more."""
    recipients: list[str] = []
    if entry is not None:
        everyone = entry.envelope.recipients
        chosen = [i for i in doubt.recipients if i < len(everyone)] or range(len(everyone))
        recipients = [neutral(everyone[index].address.text) for index in chosen]
    return {
        "side": doubt.side,
        "queue_id": doubt.queue_id,
        "slot": neutral(doubt.slot, 300),
        "peer": neutral(doubt.whom, 300),
        "via": neutral(doubt.via, 300),
        "epoch": doubt.epoch,
        "recipients": recipients,
        "recipient_indexes": list(doubt.recipients),
        "transaction": neutral(doubt.transaction, 100),
        "ordinal": doubt.ordinal,
        "then": _then(doubt, entry),
    }


def _then(doubt: Doubt, entry: QueueEntry | None) -> str:
    if doubt.side == "inbound":
        return "its client may send it again"
    if entry is not None and entry.state.held:
        return "held until it is released"
    return f"resend last, to {neutral(doubt.peer, 300)} first" if doubt.peer else "resend last"
