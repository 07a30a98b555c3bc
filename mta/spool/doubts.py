"""The in-doubt list: what may have happened without our knowing it (spool.md section 6).

Law: it is never too short. Outbound: an INTENT that nobody answered, until each of its recipients
is settled for good; a later refusal or deferral settles nothing, for the first copy may be there
all the same. Inbound: the last message of an association that ended before its client has shown
that it read the reply. Plain values; no disk, no clock. Looking up one message costs no scan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from mta.model import Doubt, FourTuple, Intent

MOST_FORMER = 1000
"""Inbound entries of takeovers before the last one that stay on the list: clients resend for days,
and two takeovers may lie a second apart."""
EPOCHS = 16
"""Entries of older epochs go, as the epoch files do."""


@dataclass(slots=True)
class OpenAssociation:
    """An association that has opened and not closed; `last` is what was last accepted on it, ""
    when its client has shown that it read the reply to that.
    """

    ends: FourTuple
    inbound: bool
    last: str = ""
    ordinal: int = 0
    client: bytes = b""
    """Who sent `last`, by its envelope."""
    left_in: int = 0
    """The epoch in which we reset it; a commit may still be under way."""


class DoubtList:
    """All doubts of one spool."""

    def __init__(self) -> None:
        self._outbound: dict[str, dict[str, Doubt]] = {}
        """Queue id -> slot -> doubt, in the order in which they came."""
        self._inbound: dict[tuple[str, str], Doubt] = {}

    def __len__(self) -> int:
        return sum(map(len, self._outbound.values())) + len(self._inbound)

    def __iter__(self) -> Iterator[Doubt]:
        for doubts in self._outbound.values():
            yield from doubts.values()
        yield from self._inbound.values()

    def __contains__(self, queue_id: str) -> bool:
        """Whether that message may have been sent."""
        return queue_id in self._outbound

    def of(self, queue_id: str) -> tuple[Doubt, ...]:
        """Where that message may have been sent, the newest last."""
        found = self._outbound.get(queue_id)
        return tuple(found.values()) if found is not None else ()

    def add(self, doubt: Doubt) -> None:
        if doubt.side == "inbound":
            self._inbound[doubt.queue_id, doubt.slot] = doubt
        else:
            self._outbound.setdefault(doubt.queue_id, {})[doubt.slot] = doubt

    def unanswered(self, queue_id: str, slot: str, intent: Intent | None, epoch: int) -> None:
        """It was let go on `slot`, and what came of it is not known. Without `intent` it is not
        known either to whom.
        """
        if intent is None:
            self.add(Doubt("outbound", queue_id, slot, "", (), epoch))
            return
        transaction = intent.transaction
        if transaction and queue_id in self._outbound:
            # A transaction that was tried again is one doubt: the receiver tells them apart.
            doubts = self._outbound[queue_id]
            for old in [s for s, d in doubts.items() if d.transaction == transaction]:
                del doubts[old]
        self.add(
            Doubt(
                "outbound",
                queue_id,
                slot,
                intent.peer,
                intent.recipients,
                epoch,
                transaction=transaction,
            )
        )

    def unread(self, slot: str, opened: OpenAssociation, epoch: int) -> None:
        """What was accepted last on an association that came from elsewhere, if nothing shows that
        its client has read so.
        """
        if not opened.inbound or not opened.last:
            return
        ends, client = opened.ends, opened.client.decode("utf-8", "replace")
        if client == ends.peer_host:
            client = ""
        self.add(
            Doubt(
                "inbound",
                opened.last,
                slot,
                ends.peer,
                (),
                epoch,
                ordinal=opened.ordinal,
                client=client,
            )
        )

    def pending(self, queue_id: str, pending: Collection[int]) -> None:
        """These recipients (indexes) of the message are left; the others are settled for good."""
        doubts = self._outbound.get(queue_id)
        if doubts is None:
            return
        for slot, doubt in list(doubts.items()):
            left = tuple(i for i in doubt.recipients if i in pending)
            if left == doubt.recipients:
                continue
            if left:
                # Another set of recipients is another transaction.
                doubts[slot] = replace(doubt, recipients=left, transaction="")
            else:
                del doubts[slot]
        if not doubts:
            del self._outbound[queue_id]

    def gone(self, queue_id: str) -> None:
        """The message has left the queue: nothing of it will be sent again."""
        self._outbound.pop(queue_id, None)

    def trim(self, epoch: int) -> None:
        """`epoch` has ended: what stays of the inbound side."""
        former = [d for d in self._inbound.values() if epoch - EPOCHS < d.epoch < epoch]
        former.sort(key=lambda doubt: doubt.epoch, reverse=True)
        last: Iterable[Doubt] = [d for d in self._inbound.values() if d.epoch >= epoch]
        self._inbound = {(d.queue_id, d.slot): d for d in (*last, *former[:MOST_FORMER])}
