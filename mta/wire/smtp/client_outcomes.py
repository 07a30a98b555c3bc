"""What became of a recipient, as an initiator can know it: by a reply, or by an end without one.

Law: a recipient whose dot may have left and whose reply did not come is UNKNOWN; one whose dot did
not leave was not sent. RFC 5321 4.5.3.1.10 (too many recipients), RFC 1047, RFC 3463 X.4.2.
"""

from __future__ import annotations

from mta.model import Outcome, OutcomeKind, Reply
from mta.wire.smtp.client_states import Event, NotSent, Phase, Prepared, Transaction, Withdrawn

NO_TLS = Reply(450, "4.7.4", (b"TLS is required, and the next server does not offer it",))
"""For now: a server without TLS today is no verdict on the message."""


def recipient_outcome(index: int, reply: Reply, transaction: Transaction) -> Outcome:
    """RFC 5321 4.5.3.1.10: 452, and 552 from old servers, may mean that the list is too long:
    then the rest goes into the next transaction. A first recipient cannot be too many.
    """
    is_too_many = reply.code in (452, 552) and reply.enhanced in ("", "4.5.3", "5.5.3")
    if is_too_many:
        return Outcome(index, OutcomeKind.DEFERRED, reply, bool(transaction.accepted))
    return Outcome(index, outcome_kind(reply), reply)


def left_over(transaction: Transaction, reason: str) -> tuple[Outcome, ...]:
    answered = transaction.outcomes[len(transaction.outcomes) - transaction.replied :]
    left = transaction.accepted[transaction.replied :]
    if transaction.phase is Phase.SENDING:
        kind, reply = OutcomeKind.DEFERRED, gone(f"{reason}; the message was not sent")
    else:
        kind, reply = OutcomeKind.UNKNOWN, gone(f"{reason}; the final dot was sent")
    return (*answered, *[Outcome(i, kind, reply) for i in left])


def unprepared(transaction: Transaction, reply: Reply) -> Event:
    if transaction.is_withdrawn:
        return Withdrawn(transaction.tag)
    if transaction.phase is Phase.PREPARED:
        # `Prepared` was said, the content was not begun: nothing is said twice.
        return NotSent(transaction.tag, reply)
    if transaction.mail_reply is not None and transaction.mail_reply.is_permanent:
        said = transaction.mail_reply
        failed = [Outcome(i, OutcomeKind.FAILED, said) for i in transaction.everyone]
        return Prepared(transaction.tag, tuple(failed))
    refused = [o for o in transaction.outcomes if o.kind is OutcomeKind.FAILED]
    if not refused:
        return NotSent(transaction.tag, reply)
    # What was refused for good is known; only the others may be tried elsewhere.
    known = {outcome.recipient for outcome in refused}
    rest = [i for i in transaction.everyone if i not in known]
    deferred = [Outcome(i, OutcomeKind.DEFERRED, reply) for i in rest]
    return Prepared(transaction.tag, (*refused, *deferred))


def outcome_kind(reply: Reply) -> OutcomeKind:
    if reply.code < 300:
        return OutcomeKind.DELIVERED
    return OutcomeKind.DEFERRED if reply.code < 500 else OutcomeKind.FAILED


def gone(reason: str) -> Reply:
    """Our own words for an end that the peer did not put into a reply (RFC 3463 X.4.2)."""
    return Reply(451, "4.4.2", (reason.encode(),))
