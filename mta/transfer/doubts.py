"""What is known of messages that may have been delivered already (spool.md section 6).

Law: the spool's in-doubt list is the truth; here lies only what the queue needs of it: whom to ask
first, and which messages an operator was asked about once already.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from mta.errors import Fenced, SpoolError
from mta.interfaces import ISpool
from mta.model import QueueFilter
from mta.telemetry import Telemetry
from mta.transfer.ledger import Ledger


class Doubts:
    """Fills the ledger's `doubts` and `held`. `may_hold`: some connector says `in-doubt: hold`."""

    def __init__(
        self, spool: ISpool, ledger: Ledger, telemetry: Telemetry, *, may_hold: bool
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._telemetry = telemetry
        self._may_hold = may_hold

    def learn(self) -> bool:
        """Read the list. Answers whether `learn_held` has something to find out."""
        doubts = self._ledger.doubts
        for doubt in self._spool.in_doubt():
            if doubt.side == "outbound":
                doubts[doubt.queue_id] = doubt.peer or doubts.get(doubt.queue_id, "")
        return bool(doubts) and self._may_hold

    async def learn_held(self) -> None:
        """Those that are held already: an operator who releases one of them wants it sent."""
        chosen = QueueFilter(queue_ids=tuple(self._ledger.doubts), held=True)
        try:
            found = await self._spool.scan(chosen, "", len(chosen.queue_ids))
        except (Fenced, CancelledError):
            raise
        except SpoolError as problem:
            self._telemetry.notice("warning", "transfer", f"in-doubt list: {problem}")
        else:
            self._ledger.held.update(entry.queue_id for entry in found)

    def peer_of(self, queue_id: str) -> str:
        """The peer that may have it; "" when another dispatch (before a reload) learnt better."""
        peer = self._ledger.doubts.get(queue_id, "")
        if peer and not any(d.queue_id == queue_id for d in self._spool.in_doubt()):
            del self._ledger.doubts[queue_id]
            return ""
        return peer
