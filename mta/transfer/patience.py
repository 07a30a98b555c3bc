"""How long work waits whose destination rests, and what waits no longer wherever it stands.

Law: a destination that rests is left alone, but not by what goes now or never; nothing waits past
the moment at which its sender must hear of it. What a server has been told of is its agent's until
it has an outcome; what it has not ends in time, be it in a lane or while a server is looked for.
Memory: an entry for each job in work that has a time, stale ones at most as many again.

RFC 2852 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from mta.interfaces import IClock
from mta.model import Envelope
from mta.transfer.endings import Endings
from mta.transfer.ledger import Ledger
from mta.transfer.schedule import Lane, Schedule
from mta.transfer.tasks import Tasks
from mta.transfer.work import Job

_FULL_SECONDS = 1.0
_FEW = 64
"""Stale entries that nobody minds."""


class Patience:
    """For one dispatch. `wake_at` is told when (wall) `look` must be asked again."""

    def __init__(  # noqa: PLR0917 - one argument a collaborator
        self,
        schedule: Schedule[Job],
        ledger: Ledger,
        clock: IClock,
        tasks: Tasks,
        endings: Endings,
        wake_at: Callable[[float], None],
    ) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._rules = ledger.rules
        self._clock = clock
        self._tasks = tasks
        self._endings = endings
        self._wake_at = wake_at
        self._watched: list[tuple[float, int, Job]] = []
        """A heap of the times that senders gave."""
        self._number = 0

    # --- destinations that rest

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

    # --- the times of what is in work

    def pause(self, job: Job) -> float:
        """How long it waits in the spool when its lane is full. What has a time is offered again
        whatever its lane, and must not be at once.
        """
        return 0.0 if job.message.envelope.deliver_by is None else _FULL_SECONDS

    def watch(self, job: Job) -> None:
        """Look at it again at the time that its sender gave, if that is ahead."""
        over = job.message.envelope.deliver_by
        if over is None or over <= self._clock.wall():
            return
        watched = self._watched
        self._number += 1
        heappush(watched, (over, self._number, job))
        if len(watched) > 2 * len(self._ledger.active) + _FEW:
            watched[:] = [entry for entry in watched if not entry[2].is_settled]
            heapify(watched)
        self._wake_at(over)

    def look(self, wall: float) -> float | None:
        """End what is overtaken at `wall`; answers the next time to look."""
        watched = self._watched
        while watched and watched[0][0] <= wall:
            _, _, job = heappop(watched)
            self.is_overtaken(job)
        return watched[0][0] if watched else None

    def is_overtaken(self, job: Job) -> bool:
        """Its time is over and no server was told of it: then it ends here."""
        message, rules = job.message, self._rules
        if job.is_begun or job.is_settled or message.is_gone:
            return job.is_settled
        envelope, wall = message.envelope, self._clock.wall()
        if rules.is_late(envelope, message.state, wall):
            # Its sender hears of it, and it stands in line again, behind those who are there.
            message.postponed, message.is_retaken = wall, True
        elif not rules.is_over(envelope, wall):
            return False
        job.is_settled = True
        self._tasks.start(self._endings.overtaken(job))
        return True
