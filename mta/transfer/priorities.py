"""The priority of a message that comes in: what its client asked for, in MAIL or in a header field.

Law: a field that tells of a priority is taken out of every header, whoever sent it, and counts only
where MAIL said nothing and its client may relay; so what lies in the store has none, and what goes
out has the one that we put there (`mta.transfer.conversion`).

RFC 6710 4.1, RFC 6758 3.1 and 3.3.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred

from mta.interfaces import IStaging
from mta.model import Reply
from mta.policy.priority import FIELD, take_field
from mta.policy.stream import both
from mta.policy.transaction import Association, Transaction
from mta.transfer.header_block import HeaderScan

_KEYWORD: Final = b"MT-PRIORITY"

Answer = Reply | None | Deferred[Reply | None]


class PriorityIntake:
    """Of one association; it keeps Transaction.priority."""

    __slots__ = ("_association", "_takes_field", "holds_back")

    def __init__(self, association: Association) -> None:
        self._association = association
        self._takes_field = False
        self.holds_back = False
        """The header is not staged as it comes: it may have to be another."""

    def noted(self, answer: Answer, transaction: Transaction) -> Answer:
        """`answer`, or what MAIL is told whose client asked for more than it may."""
        asked = transaction.parameters.get(_KEYWORD)
        if asked is None:
            return answer
        self._decide(transaction, int(asked))
        if transaction.priority == int(asked):
            return answer
        text = b"%d is the new priority of this message" % transaction.priority
        note = Reply(250, "2.3.6", (text,))
        if isinstance(answer, Deferred):
            return answer.addCallback(lambda reply: reply or note)
        return answer or note

    def begin(self, transaction: Transaction, edits: bool) -> None:
        """`edits`: some policy changes headers."""
        # A named transaction's octets are counted as they come: they stay as they are.
        is_named = b"TRANSID" in transaction.parameters
        transaction.header_can_change = edits and not is_named
        self._takes_field = self._association.priorities is not None and not is_named
        self.holds_back = self._takes_field or transaction.header_can_change

    def complete(
        self,
        staging: IStaging,
        scan: HeaderScan,
        transaction: Transaction,
        chunk: bytes,
        body_at: int,
    ) -> Deferred[None] | None:
        """The header is here, none of it staged; the body begins at `body_at` of `chunk`."""
        if self._takes_field and FIELD in scan.block.lower():
            scan.block, said = take_field(scan.block)
            transaction.header_can_change = True
            if said is not None and _KEYWORD not in transaction.parameters:
                self._decide(transaction, said)
        pause = None
        if not transaction.header_can_change:
            if transaction.size_octets == len(chunk):
                return staging.write(chunk)
            pause = staging.write(scan.block + (b"\r\n" if scan.is_separated else b""))
        if body_at < len(chunk):
            pause = both(pause, staging.write(chunk[body_at:]))
        return pause

    def _decide(self, transaction: Transaction, asked: int) -> None:
        association = self._association
        if association.priorities is not None:
            transaction.priority = association.priorities.decide(
                asked, association.admitted, association.user
            )
