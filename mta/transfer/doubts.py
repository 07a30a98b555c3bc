"""What is known of messages that may have been delivered already (spool.md section 6).

Law: the spool's in-doubt list is the truth; here lies only what the queue needs of it: which
recipients are in doubt, whom to ask first, which messages an operator was asked about already. A
resend waits while anything waits that is certain to be new, but not for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from twisted.internet.defer import CancelledError

from mta.errors import Fenced, SpoolError
from mta.interfaces import ISpool
from mta.model import Doubt, QueueFilter
from mta.telemetry import Doubted, Telemetry
from mta.transfer.ledger import Ledger

MOST_TOLD = 1000
"""Lines of the log for one side at one takeover; the rest is counted in one more."""
PATIENCE = 60.0
"""Seconds that a resend waits for new mail to pass; under endless load it goes all the same."""


class DoubtLog:
    """Writes each doubt into the log once a process, so that the log alone tells what may be
    doubled, also when a resend has settled it long since.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._told: set[tuple[str, str, str, int]] = set()

    def tell(self, doubts: Sequence[Doubt]) -> None:
        """`doubts` is the whole list: what is not on it any more is forgotten here too."""
        former = self._told
        self._told = {(d.side, d.queue_id, d.slot, d.epoch) for d in doubts}
        new = self._told - former
        if not new:
            return
        for side in ("outbound", "inbound"):
            mine = [
                d for d in doubts if d.side == side and (side, d.queue_id, d.slot, d.epoch) in new
            ]
            for doubt in mine[:MOST_TOLD]:
                self._telemetry.event(
                    Doubted(
                        doubt.queue_id,
                        side,
                        doubt.slot,
                        doubt.peer,
                        doubt.epoch,
                        doubt.recipients,
                    )
                )
            if len(mine) > MOST_TOLD:
                self._telemetry.notice(
                    "warning",
                    "transfer",
                    f"in doubt: {len(mine) - MOST_TOLD} more {side}, see mta queue in-doubt",
                )


class Doubts:
    """Fills the ledger's `doubts` and `held`. `may_hold`: some connector says `in-doubt: hold`."""

    def __init__(
        self,
        spool: ISpool,
        ledger: Ledger,
        telemetry: Telemetry,
        log: DoubtLog,
        *,
        may_hold: bool,
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._telemetry = telemetry
        self._log = log
        self._may_hold = may_hold
        self._waiting_since: dict[str, float] = {}

    def learn(self) -> bool:
        """Read the list. Answers whether `learn_held` has something to find out."""
        self._read()
        return bool(self._ledger.doubts) and self._may_hold

    def _read(self) -> None:
        found = self._spool.in_doubt()
        self._log.tell(found)
        by_message: dict[str, list[Doubt]] = {}
        for doubt in found:
            if doubt.side == "outbound":
                by_message.setdefault(doubt.queue_id, []).append(doubt)
        ledger = self._ledger
        ledger.held -= ledger.doubts.keys() - by_message.keys()
        ledger.doubts = by_message
        for settled in self._waiting_since.keys() - by_message.keys():
            del self._waiting_since[settled]

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

    def recorded(self, queue_id: str, *, unknown: bool) -> None:
        """A result of that message is durable."""
        if unknown or queue_id in self._ledger.doubts:
            self._read()

    def must_wait(self, queue_id: str, now: float, is_busy: bool) -> bool:
        """Whether it is to be asked again a little later: what is new passes first."""
        if not is_busy or queue_id not in self._ledger.doubts:
            return False
        return now - self._waiting_since.setdefault(queue_id, now) < PATIENCE

    def divide(
        self, queue_id: str, indexes: Collection[int]
    ) -> list[tuple[tuple[int, ...], Doubt | None]]:
        """Recipients for one destination as transfers: each that is in doubt as it was sent, then
        the others.
        """
        doubts = self._ledger.doubts.get(queue_id)
        if doubts and not self._still(queue_id):
            doubts = None  # another dispatch, before a reload, learnt better
        if not doubts:
            return [(tuple(indexes), None)]
        left = list(indexes)
        parts: list[tuple[tuple[int, ...], Doubt | None]] = []
        for doubt in reversed(doubts):  # the newest knows best where it went
            part = tuple(i for i in left if not doubt.recipients or i in doubt.recipients)
            if part:
                parts.append((part, doubt))
                left = [i for i in left if i not in part]
        if left:
            parts.append((tuple(left), None))
        return parts

    def _still(self, queue_id: str) -> bool:
        if any(d.queue_id == queue_id and d.side == "outbound" for d in self._spool.in_doubt()):
            return True
        del self._ledger.doubts[queue_id]
        return False
