"""Ends of jobs that no association brought: unroutable, unreachable, expired, held.

Law: they are journalled like every other outcome, with their reports in the same batch. What
cannot be recorded now stays in the spool and is decided anew later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred

from mta.errors import Failure, Fenced, SpoolError, Unfit
from mta.interfaces import IClock, ISpool
from mta.model import Outcome, OutcomeKind, Reply, Result, Route, Unroutable
from mta.telemetry import Telemetry
from mta.transfer.ledger import Ledger
from mta.transfer.outcomes import reply_of
from mta.transfer.schedule import Lane
from mta.transfer.via import Via
from mta.transfer.work import Job, Message

_NOWHERE = Route("", "", (), 0, "")


class Desk(Protocol):
    """What ending a job needs of the dispatch."""

    spool: ISpool
    clock: IClock
    telemetry: Telemetry
    ledger: Ledger

    @property
    def finish(
        self,
    ) -> Callable[[Job, Sequence[Outcome], Via, float], Result | Deferred[Result]]: ...

    @property
    def durable(self) -> Callable[[Sequence[Result]], None]: ...

    @property
    def unreadable(self) -> Callable[[str, SpoolError], None]: ...


class Endings:
    """Ends jobs by the dispatch's own word."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def unroutable(
        self, message: Message, indexes: tuple[int, ...], unroutable: Unroutable
    ) -> None:
        """No connector takes these recipients."""
        kind = OutcomeKind.FAILED if unroutable.code >= 500 else OutcomeKind.DEFERRED
        reply = Reply(unroutable.code, unroutable.enhanced, (plain(unroutable.why),))
        job = _nowhere(message, indexes)
        await self._conclude(job, _all(job, kind, reply), Via("none", "error"))

    async def nobody(self, message: Message) -> None:
        """Every recipient is settled; the record of the message's end was lost with a crash."""
        await self._conclude(_nowhere(message, ()), (), Via("none", "error"))

    async def over(self, message: Message) -> None:
        """The time that its sender gave is over: it goes back, not to be tried again (RFC 2852)."""
        await self.overtaken(_nowhere(message, message.state.pending))

    async def overtaken(self, job: Job) -> None:
        """It was, while the job waited; or its sender is to hear that it is late."""
        known = job.message.state.recipients
        last = next((known[i].reply for i in job.recipients if known[i].reply), "")
        last = last or job.lane.last_reply
        text = "not delivered in the time that its sender gave" + (last and f"; last: {last}")
        reply = Reply(451, "4.4.7", (plain(text),))
        via = Via(job.lane.connector or "none", "error")
        await self._conclude(job, _all(job, OutcomeKind.DEFERRED, reply), via)

    async def unfit(self, job: Job, lane: Lane[Job], failure: Failure) -> None:
        """Nobody who was reached can take it as it is. Where somebody was not, he is waited for; so
        is a clock that can be believed, by what may be refused because too little time is left.
        """
        is_timed = job.message.envelope.deliver_by is not None
        is_final = isinstance(failure, Unfit) and (
            not is_timed or self._desk.ledger.rules.may_expire
        )
        kind = OutcomeKind.FAILED if is_final else OutcomeKind.DEFERRED
        reply = reply_of(failure, transient=kind is OutcomeKind.DEFERRED)
        await self.told(job, lane, kind, reply)

    async def told(
        self, job: Job, lane: Lane[Job], kind: OutcomeKind, reply: Reply, by: str = "error"
    ) -> None:
        """All of the job ends with what is known of its destination. The log names whoever learned
        it: the kind that tried, or Postfix's `error` where nobody did. What ended already, because
        its time was over while a server was looked for, has ended.
        """
        if job.is_settled:
            return
        await self._conclude(job, _all(job, kind, reply), Via(lane.connector, by))

    async def _conclude(self, job: Job, outcomes: Sequence[Outcome], via: Via) -> None:
        desk, message = self._desk, job.message
        finished = desk.finish(job, outcomes, via, desk.clock.monotonic())
        result = await finished if isinstance(finished, Deferred) else finished
        try:
            await desk.spool.journal((result,), ())
        except (Fenced, CancelledError):
            raise
        except SpoolError as problem:
            if not message.jobs:
                desk.ledger.active.pop(message.queue_id, None)
            desk.unreadable(message.queue_id, problem)
        else:
            desk.durable((result,))

    async def hold(self, message: Message) -> None:
        """`in-doubt: hold`: an operator decides whether it is sent once more."""
        desk = self._desk
        message.jobs -= 1
        message.is_journalled = True
        message.state = replace(message.state, held=True)
        desk.telemetry.notice(
            "warning",
            "transfer",
            "held: it may have been delivered already (in-doubt: hold); release it to send again",
            message.queue_id,
        )
        # Without a slot it says nothing of a transfer: the doubt stays as it was found.
        result = Result(message.queue_id, "", message.state)
        try:
            await desk.spool.journal((result,), ())
        except (Fenced, CancelledError):
            raise
        except SpoolError as problem:
            desk.unreadable(message.queue_id, problem)
        desk.durable((result,))


def plain(text: str) -> bytes:
    """Words of ours and of others as a line that harms no terminal."""
    return "".join(c if c.isprintable() else "?" for c in text).encode("ascii", "backslashreplace")


def _nowhere(message: Message, indexes: tuple[int, ...]) -> Job:
    return Job(message, indexes, _NOWHERE, Lane("", "", 1), grade=0)


def _all(job: Job, kind: OutcomeKind, reply: Reply) -> tuple[Outcome, ...]:
    return tuple(Outcome(index, kind, reply) for index in job.recipients)
