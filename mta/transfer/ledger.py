"""Where a transfer's outcomes become a Result to journal, log events, counters and reports.

Law: this module alone ends a job. What it answers is journalled before the next commit point of
the slot; `durable` is called when it is on disk, and only then does the message leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mta.interfaces import IClock
from mta.model import Doubt, Outcome, OutcomeKind, Recipient, Report, Result
from mta.telemetry import Counter, Removed, Reported, Telemetry, Transferred
from mta.transfer.settle import Rules, Settlement, at_once
from mta.transfer.via import Via
from mta.transfer.work import Job, Message
from mta.wire.dsn import decoded_original


class Ledger:
    """Concludes jobs. Keeps the messages in work by queue id, and what is in doubt."""

    def __init__(
        self,
        rules: Rules,
        clock: IClock,
        telemetry: Telemetry,
        chance: Callable[[], float],
    ) -> None:
        self.rules = rules
        self.active: dict[str, Message] = {}
        self.doubts: dict[str, list[Doubt]] = {}
        """Queue id -> its doubts, as the spool's list has them."""
        self.held: set[str] = set()
        """Of these, the ones that were held once: an operator who releases one wants it sent."""
        self._clock = clock
        self._telemetry = telemetry
        self._chance = chance
        self._deliveries: dict[tuple[str, str], Counter] = {}

    def spread(self) -> float:
        """-1.0 to 1.0 by chance."""
        return self._chance() * 2.0 - 1.0

    def settle(self, job: Job, outcomes: Sequence[Outcome], via: Via) -> Settlement:
        """What these outcomes would make of the job's message as it stands now."""
        message = job.message
        usual = at_once(message.envelope, outcomes)
        if usual is not None:
            return usual
        return self.rules.settle(
            message.envelope,
            message.state,
            outcomes,
            now=self._clock.wall(),
            spread=self.spread(),
            attempts=message.attempts,
            remote=via.relay,
            success=via.success,
            handed_on=via.handed_on,
            hold_unknown=via.hold_unknown,
        )

    def conclude(
        self,
        job: Job,
        outcomes: Sequence[Outcome],
        via: Via,
        settled: Settlement,
        reports: tuple[Report, ...],
        *,
        began_at: float,
    ) -> Result:
        """End `job` with these outcomes: the Result to journal. `settled` is of this very moment.

        `began_at`: monotonic time at which the transfer over the open association began.
        """
        message = job.message
        message.jobs -= 1
        job.is_settled = True
        message.is_journalled = True
        state = settled.state
        retry_in = None
        unknown = False  # a message that leaves the queue is in doubt no longer
        if state is not None:
            if message.is_gone and not via.slot:
                # The spool keeps an operator's hold over a transfer's result, and over no other.
                state = replace(state, held=True)
            message.state = state
            retry_in = state.due - self._clock.wall()
            unknown = any(outcome.kind is OutcomeKind.UNKNOWN for outcome in outcomes)
            if unknown and via.hold_unknown:
                self.held.add(message.queue_id)
        self._tell(job, outcomes, settled.statuses, via=via, began_at=began_at, retry_in=retry_in)
        if settled.dropped:
            self._telemetry.notice(
                "warning",
                "transfer",
                "dropped: neither its recipient nor the postmaster can be reached",
                message.queue_id,
            )
        return Result(message.queue_id, via.slot, state, reports, unknown)

    def _tell(
        self,
        job: Job,
        outcomes: Sequence[Outcome],
        statuses: Sequence[str],
        *,
        via: Via,
        began_at: float,
        retry_in: float | None,
    ) -> None:
        message = job.message
        now = self._clock.monotonic()
        connecting, via.connecting = via.connecting, 0.0
        queued = began_at - connecting - message.taken_at
        sending = now - began_at
        delays = (message.waited, queued if queued > 0.0 else 0.0, connecting, sending)
        delay = message.waited + now - message.taken_at
        recipients = message.envelope.recipients
        event = self._telemetry.event
        for outcome, status in zip(outcomes, statuses, strict=True):
            recipient: Recipient = recipients[outcome.recipient]
            reply = outcome.reply
            event(
                Transferred(
                    message.queue_id,
                    recipient.address.text,
                    recipient.original and decoded_original(recipient.original),
                    via.connector,
                    via.kind,
                    via.relay,
                    delay,
                    delays,
                    reply.enhanced,
                    status,
                    reply.text,
                    via.vip,
                    via.source,
                    retry_in if status == "deferred" else None,
                )
            )
            counter = self._deliveries.get((via.connector, status))
            if counter is None:
                counter = self._deliveries[via.connector, status] = self._telemetry.counter(
                    "mta_deliveries_total",
                    "Recipients by connector and by what became of them.",
                    connector=via.connector,
                    result=status,
                )
            counter.inc()

    def durable(self, results: Sequence[Result]) -> list[tuple[str, float, bool]]:
        """The results are on disk. Answers (queue id, due, must be given back) of those messages
        that left the work at hand and wait in the spool now.
        """
        waiting: list[tuple[str, float, bool]] = []
        for result in results:
            if result.not_sent:
                continue  # it is where it was
            queue_id = result.queue_id
            for report in result.reports:
                size, many = len(report.content), len(report.envelope.recipients)
                self._telemetry.event(Reported(queue_id, report.queue_id, report.kind, size, many))
            message = self.active.get(queue_id)
            if result.state is None:
                self.active.pop(queue_id, None)
                self._telemetry.event(Removed(queue_id))
            elif message is not None and not message.jobs:
                del self.active[queue_id]
                due = result.state.due
                if message.postponed is not None:
                    due = min(due, message.postponed)
                waiting.append((queue_id, due, message.is_retaken))
        return waiting
