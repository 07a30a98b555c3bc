"""Ends a job: its outcomes become one Result with every report that it makes.

Law: a job ends in the moment in which its record is complete, never before: whoever gets the Result
hands it to the spool at once if the message is divided, so that records stand in the log in the
order in which the jobs ended, and the one that lets the message leave is the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from mta.model import Outcome, Result
from mta.transfer.ledger import Ledger
from mta.transfer.report import NO_ORIGINAL, Original, Reporter
from mta.transfer.settle import ReportDue
from mta.transfer.via import Via
from mta.transfer.work import Job


class Finishing:
    """For one dispatch."""

    def __init__(self, ledger: Ledger, reporter: Reporter) -> None:
        self._ledger = ledger
        self._reporter = reporter

    def finish(
        self, job: Job, outcomes: Sequence[Outcome], via: Via, began_at: float
    ) -> Result | Deferred[Result]:
        """At once, unless somebody is to be told."""
        settled = self._ledger.settle(job, outcomes, via)
        if settled.reports:
            return Deferred.fromCoroutine(
                self._finish_later(job, outcomes, via, began_at, settled.reports)
            )
        return self._ledger.conclude(job, outcomes, via, settled, (), began_at=began_at)

    async def _finish_later(
        self,
        job: Job,
        outcomes: Sequence[Outcome],
        via: Via,
        began_at: float,
        due: Sequence[ReportDue],
    ) -> Result:
        """The job ends in the moment in which its record is complete, not before the report's
        original is read: nothing of another job can come between the end and the record.
        """
        original = await self._reporter.original(job.message, due)
        return self.finish_now(job, outcomes, via, began_at, original)

    def finish_now(
        self,
        job: Job,
        outcomes: Sequence[Outcome],
        via: Via,
        began_at: float,
        original: Original = NO_ORIGINAL,
    ) -> Result:
        """Without waiting for anything."""
        settled = self._ledger.settle(job, outcomes, via)
        reports = self._reporter.make(
            job.message, settled.reports, outcomes, relay=via.relay, original=original
        )
        return self._ledger.conclude(job, outcomes, via, settled, reports, began_at=began_at)
