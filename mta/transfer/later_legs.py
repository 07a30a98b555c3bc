"""The content once more, for the policies that stand behind one which changes content.

Law: they hear what is to be stored, in the order of the list, each leg when the one before has
ended; what they hear comes from the store piece by piece. Whoever has no such policies never gets
here.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mta.errors import Full, Unavailable
from mta.interfaces import IRevisable
from mta.model import Reply
from mta.policy.chain import FAULT, Leg
from mta.policy.transaction import Transaction
from mta.telemetry import Telemetry
from mta.transfer.desk import store_reply
from mta.transfer.header_block import HeaderScan, needs_separator


class LaterLegs:
    """Of one content, whose header `scan` has found."""

    def __init__(self, transaction: Transaction, scan: HeaderScan, telemetry: Telemetry) -> None:
        self._transaction = transaction
        self._telemetry = telemetry
        header = len(scan.block) + (2 if scan.is_separated else 0)
        self._stored_header = 0 if transaction.header_can_change else header

    async def ask(self, first: Deferred[Reply | None] | None, leg: Leg | None) -> Reply | None:
        """`first` is what the leg before `leg` answers; then all of them, until one refuses."""
        transaction = self._transaction
        reply = None if first is None else await first
        while reply is None and leg is not None:
            if transaction.is_spared or transaction.discarded:
                return None
            reply = await self._ask(leg)
            leg = leg.behind
        return reply

    async def _ask(self, leg: Leg) -> Reply | None:
        transaction = self._transaction
        self._settle_header()
        reply = await _answer(leg, "headers", transaction)
        if reply is None and leg.wants("body"):
            reply = await self._ask_about_body(leg)
        return reply or await _answer(leg, "end", transaction)

    async def _ask_about_body(self, leg: Leg) -> Reply | None:
        transaction = self._transaction
        revisable = None if transaction.revision is None else transaction.revision.revisable
        if revisable is None:
            text = "the store cannot read back what is not committed yet (IRevisable)"
            self._telemetry.notice("error", "policy", text, transaction.queue_id)
            return FAULT
        try:
            return await self._read(leg, revisable)
        except (Full, Unavailable) as error:
            return store_reply(error)

    async def _read(self, leg: Leg, revisable: IRevisable) -> Reply | None:
        transaction, offset = self._transaction, self._stored_header
        while True:
            piece = await revisable.read(offset)
            if not piece:
                return None
            offset += len(piece)
            transaction.chunk = piece
            reply = await _answer(leg, "body", transaction)
            if reply is not None:
                return reply

    def _settle_header(self) -> None:
        """What stands before the header becomes part of it, where there is one to be part of."""
        transaction = self._transaction
        if transaction.header_can_change and not needs_separator(transaction.headers):
            transaction.headers = transaction.stands_before + transaction.headers
            transaction.added = transaction.completed = b""


async def _answer(leg: Leg, hook: str, transaction: Transaction) -> Reply | None:
    answer = leg.ask(hook, transaction)
    return await answer if isinstance(answer, Deferred) else answer
