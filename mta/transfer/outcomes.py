"""Outcomes and replies that no peer gave: said in its place by whoever had to do with it.

Law: values only. What is said to a sender holds facts, never our remedies and no control octets.
"""

from __future__ import annotations

from collections.abc import Sequence

from mta.errors import Failure, TransientFailure
from mta.model import Outcome, OutcomeKind, Reply
from mta.transfer.hops import Hop


def reply_of(failure: Failure, *, transient: bool) -> Reply:
    """What a failure says to a sender: its code and its facts, never the remedy (that is ours)."""
    code, enhanced = failure.code, failure.enhanced
    if transient and code >= 500:
        code, enhanced = 451, "4" + enhanced[1:]
    text = f"{failure.what}: {failure.why}" if failure.why else failure.what
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return Reply(code, enhanced, (clean.encode("ascii", "backslashreplace"),))


def local_problem(hop: Hop) -> TransientFailure:
    """What a sender is told of a fault on our side."""
    return TransientFailure(
        f"{hop.hop.connector} cannot deliver now", "local problem", enhanced="4.3.0"
    )


def in_doubt(recipients: Sequence[int], text: str) -> tuple[Outcome, ...]:
    """The reply did not come: whether they have it nobody knows."""
    reply = Reply(451, "4.4.2", (text.encode(),))
    return tuple(Outcome(index, OutcomeKind.UNKNOWN, reply) for index in recipients)


def completed(brought: Sequence[Outcome], left: Sequence[int]) -> tuple[Outcome, ...]:
    """A kind must answer for every recipient; those it forgot are in doubt."""
    answered = {outcome.recipient: outcome for outcome in brought}
    forgotten = in_doubt([i for i in left if i not in answered], "no outcome was told")
    return tuple(answered[i] for i in left if i in answered) + forgotten
