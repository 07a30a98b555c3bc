"""What is known of messages that may have been delivered already (spool.md section 6).

Law: the spool's in-doubt list is the truth; here lies only what the queue needs of it: which
recipients are in doubt, whom to ask first, which messages an operator was asked about already. A
resend waits while anything waits that is certain to be new, but not for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from twisted.internet.defer import CancelledError

from mta.errors import Fenced, SpoolError
from mta.interfaces import IDoubts, ISpool
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
        self._told: dict[tuple[str, str], set[tuple[str, int]]] = {}
        """(side, queue id) -> (slot, epoch)."""

    def tell(self, doubts: Iterable[Doubt]) -> None:
        """`doubts` is the whole list: what is not on it any more is forgotten here too."""
        former, self._told = self._told, {}
        new: dict[str, list[Doubt]] = {}
        for doubt in doubts:
            key, place = (doubt.side, doubt.queue_id), (doubt.slot, doubt.epoch)
            self._told.setdefault(key, set()).add(place)
            if place not in former.get(key, ()):
                new.setdefault(doubt.side, []).append(doubt)
        for side, mine in new.items():
            for doubt in mine[:MOST_TOLD]:
                self._say(doubt)
            if len(mine) > MOST_TOLD:
                self._telemetry.notice(
                    "warning",
                    "transfer",
                    f"in doubt: {len(mine) - MOST_TOLD} more {side}, see mta queue in-doubt",
                )

    def tell_of(self, queue_id: str, doubts: Iterable[Doubt]) -> None:
        """`doubts` are all of this message's, outbound."""
        former = self._told.pop(("outbound", queue_id), set())
        for doubt in doubts:
            place = (doubt.slot, doubt.epoch)
            self._told.setdefault(("outbound", queue_id), set()).add(place)
            if place not in former:
                self._say(doubt)

    def _say(self, doubt: Doubt) -> None:
        self._telemetry.event(
            Doubted(
                doubt.queue_id,
                doubt.side,
                doubt.slot,
                doubt.whom,
                doubt.epoch,
                doubt.recipients,
                doubt.via,
            )
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
        self._finder: IDoubts | None = IDoubts(spool, None)
        self._ledger = ledger
        self._telemetry = telemetry
        self._log = log
        self._may_hold = may_hold
        self._waiting_since: dict[str, float] = {}

    def learn(self) -> bool:
        """Read the list. Answers whether `learn_held` has something to find out."""
        found = self._spool.in_doubt()
        self._log.tell(found)
        by_message: dict[str, list[Doubt]] = {}
        for doubt in found:
            if doubt.side == "outbound":
                by_message.setdefault(doubt.queue_id, []).append(doubt)
        for settled in self._ledger.doubts.keys() - by_message.keys():
            self._forget(settled)
        self._ledger.doubts.update(by_message)
        return bool(by_message) and self._may_hold

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

    def recorded(self, queue_id: str) -> None:
        """A result is durable of a message that is in doubt, or is so by this result."""
        found = self._find(queue_id)
        self._log.tell_of(queue_id, found)
        if found:
            self._ledger.doubts[queue_id] = list(found)
        else:
            self._forget(queue_id)

    def _find(self, queue_id: str) -> Sequence[Doubt]:
        if self._finder is not None:
            return self._finder.doubts_of(queue_id)
        doubts = self._spool.in_doubt()
        return [d for d in doubts if d.queue_id == queue_id and d.side == "outbound"]

    def _forget(self, queue_id: str) -> None:
        self._ledger.doubts.pop(queue_id, None)
        self._ledger.held.discard(queue_id)
        self._waiting_since.pop(queue_id, None)

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
        doubts: Sequence[Doubt] = ()
        if queue_id in self._ledger.doubts:
            doubts = self._find(queue_id)  # another dispatch, before a reload, may know better
            if not doubts:
                self._forget(queue_id)
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
