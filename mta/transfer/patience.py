"""How long work waits whose destination rests, and what does not wait so long.

Law: a destination that rests is left alone, but not by what goes now or never; nothing waits past
the moment at which its sender must hear of it. RFC 2852 4.1.
"""

from __future__ import annotations

from mta.interfaces import IClock
from mta.model import Envelope
from mta.transfer.ledger import Ledger
from mta.transfer.schedule import Lane, Schedule
from mta.transfer.work import Job


class Patience:
    """For one dispatch."""

    def __init__(self, schedule: Schedule[Job], ledger: Ledger, clock: IClock) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._rules = ledger.rules
        self._clock = clock

    def must_rest(self, lane: Lane[Job], envelope: Envelope) -> bool:
        """The lane rests, and the message can be tried again when that is over."""
        now = self._clock.monotonic()
        if not self._schedule.is_resting(lane, now):
            return False
        if envelope.deliver_by is not None and self._rules.is_last_try(
            envelope, self._clock.wall()
        ):
            self._schedule.lift(lane, now)
            return False
        return True

    def seconds(self, job: Job) -> float | None:
        """How long the job of a lane that rests waits in the spool. None: it is over now."""
        message, rules, wall = job.message, self._rules, self._clock.wall()
        envelope = message.envelope
        if not message.is_gone and (
            rules.is_expired(envelope, wall) or rules.is_late(envelope, message.state, wall)
        ):
            return None
        rest = max(1.0, job.lane.retry_at - self._clock.monotonic())
        rest *= 1.0 + 0.1 * abs(self._ledger.spread())
        moment = rules.next_moment(envelope, wall)
        return rest if moment is None else min(rest, moment - wall)
