"""Brings queued messages to the agents and their outcomes back: the queue's moving part.

Law: a message in work is in memory once and bounded in number; all others lie in the spool. A
destination that cannot be reached is probed with one message while its others wait in the spool;
they expire on time all the same, with what the destination's last attempt under this epoch said.
Nothing is tried, expired or reported unless the tenure of this epoch stands behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure as TwistedFailure

from mta.errors import Failure, Fenced, PermanentFailure, SpoolError, TenureRevoked
from mta.interfaces import (
    IAssociationKind,
    IClock,
    IResolver,
    IRouting,
    ISpool,
    ITenure,
    ITimer,
)
from mta.model import (
    Address,
    Connector,
    DueWork,
    Envelope,
    InDoubt,
    IPAddress,
    MessageState,
    OutcomeKind,
    Reply,
    Result,
)
from mta.telemetry import Telemetry
from mta.transfer.agent import Agent
from mta.transfer.division import Division, Part
from mta.transfer.doubts import DoubtLog, Doubts
from mta.transfer.endings import Endings, plain
from mta.transfer.finishing import Finishing
from mta.transfer.hops import HopFinder, HopHealth
from mta.transfer.ledger import Ledger
from mta.transfer.loading import Loading
from mta.transfer.outcomes import reply_of
from mta.transfer.patience import Patience
from mta.transfer.report import Reporter
from mta.transfer.reservation import Reservation, Reservations
from mta.transfer.schedule import LAST_GRADE, Lane, Reach, Schedule, grade_of
from mta.transfer.settings import QueueSettings
from mta.transfer.settle import Rules
from mta.transfer.standing import Standing
from mta.transfer.tasks import Alarm, Tasks
from mta.transfer.via import Vias
from mta.transfer.work import Job, Message

_BATCH = 200
"""Messages taken from the spool before other work gets its turn."""
_LONGEST_WAIT = 60.0
"""Seconds after which the spool is asked again whatever it said: the wall clock may jump."""
_DOUBT_PAUSE = 1.0
"""Seconds until a resend looks again whether new mail waits."""


class Dispatch:
    """The scheduler, its agents and their book-keeping, for one tenure."""

    def __init__(  # noqa: PLR0917 - one argument a collaborator
        self,
        tenure: ITenure,
        spool: ISpool,
        routing: IRouting,
        connectors: Mapping[str, tuple[Connector, IAssociationKind]],
        resolver: IResolver,
        clock: IClock,
        telemetry: Telemetry,
        settings: QueueSettings,
        postmaster: Address,
        is_ourselves: Callable[[IPAddress, int], bool],
        *,
        chance: Callable[[], float] = random.random,
        doubt_log: DoubtLog | None = None,
    ) -> None:
        self.tenure = ITenure(tenure)
        self.spool = ISpool(spool)
        self.clock = IClock(clock)
        self.telemetry = telemetry
        self.messages_per_association = settings.messages_per_association
        self.named = telemetry.counter(
            "mta_transactions_named_total", "Transactions sent under a new name (RFC 1845)."
        )
        self._routing = IRouting(routing)
        self._connectors = dict(connectors)
        self._settings = settings
        self.rules = Rules(settings, postmaster)
        self.ledger = Ledger(self.rules, clock, telemetry, chance)
        self.finder = HopFinder(self._connectors, resolver, is_ourselves)
        self.health = HopHealth()
        reporter = Reporter(
            self.spool, self.clock, tenure.network_name, postmaster, self.rules.expires
        )
        finishing = Finishing(self.ledger, reporter)
        self.finish, self.finish_now = finishing.finish, finishing.finish_now
        self._schedule: Schedule[Job] = Schedule(
            settings.associations, settings.destination_retry, max(settings.backoff)
        )
        self._endings = Endings(self)
        self.unfit = self._endings.unfit
        may_hold = any(c.in_doubt is InDoubt.HOLD for c, _ in self._connectors.values())
        log = doubt_log or DoubtLog(telemetry)
        self._doubts = Doubts(self.spool, self.ledger, telemetry, log, may_hold=may_hold)
        self._division = Division(self._routing, self.ledger, self._doubts, telemetry)
        self._lane_limit = max(100, settings.active_limit // 4)
        self._standing = Standing(
            self._routing, telemetry, [c.name for c, _ in self._connectors.values() if c.by_mx]
        )
        self._reservations = Reservations(
            self,
            self._schedule,
            self._division,
            self._standing,
            connectors=self._connectors,
            active_limit=settings.active_limit,
        )
        self._idle: dict[Agent, None] = {}
        self._tasks = Tasks(self._fault, self._idle_now)
        self._patience = Patience(
            self._schedule, self.ledger, self.clock, self._tasks, self._endings, self._wake_at
        )
        self.is_overtaken = self._patience.is_overtaken
        self._loading = Loading(self._tasks, self._begin, self._give_back, self.unreadable)
        self._is_running = self._is_draining = self._is_filling = False
        self._has_more = False
        """There may be due work in the spool that had no room here."""
        self._alarm = Alarm(self.clock, self.pump, _LONGEST_WAIT)
        self._idle_timer: ITimer | None = None
        self._drained: list[Deferred[None]] = []
        self.via = Vias(tenure, self._connectors, self.clock).of
        gauge, active, plan = telemetry.gauge, self.ledger.active, self._schedule
        gauge("mta_queue_active", "Messages in work.").read = lambda: float(len(active))
        gauge("mta_queue_waiting_jobs", "Jobs without association.").read = lambda: plan.queued
        gauge("mta_outbound_slots", "Outbound associations.").read = lambda: plan.associations

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the queue move. What is in doubt goes last, and to the same peer first."""
        self._is_running = True
        self.learn_doubts()
        self.pump()

    def learn_doubts(self) -> None:
        """The in-doubt list may have grown by what another dispatch left behind."""
        if self._doubts.learn():
            self._tasks.start(self._doubts.learn_held())

    def drain(self, deadline: float) -> Deferred[None]:
        """Begin nothing new; fires when all is closed: at `deadline` (monotonic) by cancelling."""
        self._is_draining = True
        self._alarm.cancel()
        for lane in list(self._schedule.lanes.values()):
            for job in self._schedule.empty(lane):
                self.postpone(job, 0.0)
        for agent in list(self._idle):
            self._wake(agent, None)
        if not self._tasks:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._drained.append(done)
        timer = self.clock.call_later(
            max(0.0, deadline - self.clock.monotonic()), self.stop, "the time to drain is over"
        )
        done.addBoth(lambda _: timer.cancel())
        return done

    def stop(self, reason: str) -> None:
        """The tenure has ended, or the drain's time is over: cancel everything. Never raises."""
        if not self._is_running:
            return
        self._is_running = False
        self._alarm.cancel()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._tasks.cancel()
        self._idle.clear()
        for message in list(self.ledger.active.values()):
            # If this epoch still stands (an address went for a moment) others may have it again;
            # where a record is under way, not before it says what became of the message.
            if message.is_retaken or not message.is_journalled:
                self._give_back(message.queue_id, None)
        if self.ledger.active:
            self.telemetry.notice(
                "info", "transfer", f"{len(self.ledger.active)} messages went back: {reason}"
            )
        self.ledger.active.clear()
        self._fire_drained()

    # --- work comes in ----------------------------------------------------------------------

    def reserve(self, queue_id: str, envelope: Envelope, state: MessageState) -> Reservation | None:
        """For a message about to be committed."""
        return self._reservations.reserve(queue_id, envelope, state) if self._idle else None

    def offer(
        self,
        queue_id: str,
        envelope: Envelope,
        state: MessageState,
        reservation: Reservation | None = None,
    ) -> None:
        """A message that was just committed, and is taken: send it from memory if possible."""
        if reservation is not None and self._reservations.use(reservation):
            return
        wall = self.clock.wall()
        if not self._is_running or self._is_draining or state.held or state.due > wall:
            self._give_back(queue_id, None)
            if not state.held:
                self._wake_at(state.due)
            return
        if len(self.ledger.active) >= self._settings.active_limit:
            self._has_more = True
            self._give_back(queue_id, None)
            return
        self._begin(queue_id, envelope, state)

    def pump(self) -> None:
        """Take due work from the spool as far as there is room, and set the timer for the rest."""
        if not self._is_running or self._is_draining:
            return
        now, wall = self.clock.monotonic(), self.clock.wall()
        over = self._patience.look(wall)
        self._standing.lift(now)
        avoid = self._avoided(now)
        room = self._settings.active_limit - len(self.ledger.active) - len(self._loading)
        taken: list[DueWork] = []
        if room > 0:
            try:
                taken = self.spool.due(wall, min(room, _BATCH), avoid)
            except SpoolError:
                return  # the epoch is lost: the tenure's end is on its way
            doubts, is_busy = self.ledger.doubts, bool(self._loading or self._schedule.queued)
            if doubts:
                is_busy = is_busy or any(work.queue_id not in doubts for work in taken)
            for work in taken:
                if doubts and self._doubts.must_wait(work.queue_id, now, is_busy):
                    # Resends go last: what is certain to be new passes before (spool.md section 6).
                    self._give_back(work.queue_id, wall + _DOUBT_PAUSE)
                    continue
                self._load(work.queue_id)
        self._has_more = room <= 0 or len(taken) >= min(room, _BATCH)
        self._fill()
        if taken and self._has_more:
            self._wake_in(0.0)  # let associations speak in between
            return
        due, probe = self.spool.next_due(avoid), self._schedule.next_probe(now)
        self._alarm.cancel()
        self._wake_in(_LONGEST_WAIT if due is None else max(0.05, due - wall))
        if probe is not None:
            self._wake_in(probe - now)
        if over is not None:
            self._wake_in(over - wall)

    def retry_now(self, queue_ids: Sequence[str] = ()) -> None:
        """An operator made these due: destinations that rest are tried at once."""
        now = self.clock.monotonic()
        for queue_id in queue_ids:
            message = self.ledger.active.get(queue_id)
            if message is not None:
                message.is_gone = False
        for lane in self._schedule.resting(now):
            self._schedule.lift(lane, now)
        self.pump()

    def forget(self, queue_ids: Sequence[str]) -> None:
        """An operator held or deleted these: none of their transfers begins any more."""
        for queue_id in queue_ids:
            message = self.ledger.active.get(queue_id)
            if message is not None:
                message.is_gone = True

    def _load(self, queue_id: str) -> None:
        active = self.ledger.active.get(queue_id)
        if active is not None:
            active.is_retaken = True
            return
        try:
            loaded = self.spool.load(queue_id)
        except KeyError:
            return
        except SpoolError as problem:
            self.unreadable(queue_id, problem)
            return
        if isinstance(loaded, Deferred):
            self._loading.expect(queue_id, loaded)
        else:
            self._begin(queue_id, *loaded)

    def unreadable(self, queue_id: str, problem: SpoolError) -> None:
        self.telemetry.notice("error", "transfer", str(problem), queue_id)
        self._give_back(queue_id, self.clock.wall() + 300.0)

    def _begin(self, queue_id: str, envelope: Envelope, state: MessageState) -> None:
        """Divide a message by destination and hand its jobs out."""
        if not self._is_running:
            self._give_back(queue_id, None)
            return
        wall = self.clock.wall()
        message = Message(queue_id, envelope, state, self.clock.monotonic(), wall)
        self.ledger.active[queue_id] = message
        if envelope.deliver_by is not None and self.rules.is_over(envelope, wall):
            message.jobs = 1
            self._tasks.start(self._endings.over(message))
            return
        parts, lost = self._division.divide(message)
        message.jobs = len(parts) + len(lost)
        message.is_divided = message.jobs > 1
        if not message.jobs:  # nobody is pending: the record of its end was lost with a crash
            message.jobs = 1
            self._tasks.start(self._endings.nobody(message))
            return
        for unroutable, indexes in lost.items():
            self._tasks.start(self._endings.unroutable(message, tuple(indexes), unroutable))
        for part in parts:
            self._enqueue(message, part)

    def _enqueue(self, message: Message, part: Part) -> None:
        route, indexes, doubt = part
        key = route.destination
        connector = self._connectors[route.connector][0]
        grade = grade_of(message.envelope.priority)
        if doubt is not None:
            if connector.in_doubt is InDoubt.HOLD and message.queue_id not in self.ledger.held:
                message.is_gone = True
                self.ledger.held.add(message.queue_id)
                self._tasks.start(self._endings.hold(message))
                return
            key, grade = f"{key} (in doubt at {doubt.peer or 'some server'})", LAST_GRADE
        schedule = self._schedule
        lane = schedule.lanes.get(key)
        if lane is None:
            lane = schedule.lane(
                key, connector.name, 1 if doubt is not None else connector.concurrency
            )
        self._standing.saw(lane, message.envelope.recipients[indexes[0]].address.domain)
        job = Job(message, indexes, route, lane, grade=grade, doubt=doubt)
        if lane.reach is not Reach.OPEN and self._patience.must_rest(lane, message.envelope):
            self._not_now(job)
            return
        if lane.queued >= self._lane_limit and message.jobs == 1:
            self._has_more = True
            lesser = schedule.pop_lesser(lane, grade) or job
            self.postpone(lesser, self._patience.pause(lesser))  # its turn comes in the spool too
            if lesser is job:
                return
        if doubt is not None and not lane.associations:
            is_busy = schedule.has_work(route.destination)
            if self._doubts.must_wait(message.queue_id, self.clock.monotonic(), is_busy):
                self.postpone(job, _DOUBT_PAUSE)
                return
        if message.envelope.deliver_by is not None:
            self._patience.watch(job)
        idle = lane.idle
        while idle:
            agent = idle.pop()
            assert isinstance(agent, Agent)
            if agent.is_waiting:
                agent.wake(job)
                return
            agent.wake(None)
        schedule.push(lane, job, grade)
        self._fill()

    # --- the floor on which agents work ------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        return self._is_draining or not self._is_running

    def take(self, lane: Lane[Job]) -> Job | None:
        while self._is_running and not self._is_draining:
            job = self._schedule.pop(lane)
            if job is None:
                return None
            if job.message.is_gone:
                self.postpone(job, 0.0)
                continue
            if job.message.envelope.deliver_by is not None and self.is_overtaken(job):
                continue
            return job
        return None

    def requeue(self, job: Job, *, is_next: bool = False) -> None:
        if self._is_draining:
            self.postpone(job, 0.0)
            return
        job.is_begun = False
        self._schedule.push_back(job.lane, job, job.grade)
        if not is_next:
            self._fill()

    def began(self, lane: Lane[Job]) -> None:
        self._schedule.began(lane)

    def must_yield(self) -> bool:
        return self._schedule.is_crowded

    def rest(self, agent: Agent) -> None:
        if self._is_draining or self._schedule.is_crowded:
            agent.wake(None)
            return
        agent.idle_since = self.clock.monotonic()
        agent.lane.idle.append(agent)
        self._idle[agent] = None
        if self._idle_timer is None:
            self._idle_timer = self.clock.call_later(self._settings.idle / 2, self._close_idle)

    def unrest(self, agent: Agent) -> None:
        if self._idle.pop(agent, False) is None and agent in agent.lane.idle:
            agent.lane.idle.remove(agent)

    def reached(self, lane: Lane[Job]) -> None:
        if lane.failures:
            self._schedule.reached(lane)
            self._standing.reached(lane)
            self._has_more = True
            self._wake_in(0.0)

    def recorded(self, journalling: Deferred[None], results: Sequence[Result]) -> None:
        """Last words of an agent that was cut off: nobody waits for them."""

        def failed(failure: TwistedFailure) -> None:
            if failure.check(Fenced, CancelledError) is None:
                for result in results:
                    self._give_back(result.queue_id, None)

        journalling.addCallbacks(lambda _: self.durable(results), failed)

    def durable(self, results: Sequence[Result]) -> None:
        """These results are on disk."""
        for queue_id, due, is_retaken in self.ledger.durable(results):
            if is_retaken:
                self._give_back(queue_id, due)
            self._wake_at(due)
        for result in results:
            if result.unknown or result.queue_id in self.ledger.doubts:
                self._doubts.recorded(result.queue_id)
            if result.reports:
                self._has_more = True
        if self._has_more and len(self.ledger.active) < self._settings.active_limit * 0.9:
            self._wake_in(0.0)

    async def unreachable(self, job: Job, lane: Lane[Job], failure: Failure) -> None:
        """`job` was tried in vain; the lane rests, and its other work goes back to the spool."""
        reply = reply_of(failure, transient=True)
        self._schedule.failed(lane, self.clock.monotonic(), reply.text, self.ledger.spread())
        self._standing.failed(lane, reply.text)
        for other in self._schedule.empty(lane):
            self._not_now(other)
        await self._endings.told(job, lane, OutcomeKind.DEFERRED, reply, self._kind(lane))

    async def refuse(self, job: Job, lane: Lane[Job], failure: PermanentFailure) -> None:
        """Its domain takes no mail or does not exist, or the mail would loop: all of it fails."""
        reply = reply_of(failure, transient=False)
        for refused in (job, *self._schedule.empty(lane)):
            await self._endings.told(refused, lane, OutcomeKind.FAILED, reply, self._kind(lane))

    def _kind(self, lane: Lane[Job]) -> str:
        return self._connectors[lane.connector][0].kind

    def postpone(self, job: Job, seconds: float) -> None:
        """Not attempted; its message goes back when its other jobs are done."""
        if job.is_settled:
            return
        job.is_settled, message = True, job.message
        message.jobs -= 1
        if seconds:
            due = self.clock.wall() + seconds
            message.postponed = due if message.postponed is None else min(message.postponed, due)
        if message.jobs:
            return
        self.ledger.active.pop(message.queue_id, None)
        if message.is_journalled and not message.is_retaken:
            return  # its last result said when it is due
        self._give_back(message.queue_id, message.postponed)
        if message.postponed is not None:
            self._wake_at(message.postponed)

    def _not_now(self, job: Job) -> None:
        """Its destination rests. Expired messages end here; the others wait in the spool."""
        seconds = self._patience.seconds(job)
        if seconds is not None:
            self.postpone(job, seconds)
            return
        reply = Reply(451, "4.4.1", (plain(job.lane.last_reply) or b"destination unreachable",))
        self._tasks.start(self._endings.told(job, job.lane, OutcomeKind.DEFERRED, reply))

    def _avoided(self, now: float) -> set[bytes]:
        """Domains whose lane rests or is full."""
        lanes = self._schedule.resting(now)
        if self._schedule.queued >= self._lane_limit:
            lanes += [x for x in self._schedule.lanes.values() if x.queued >= self._lane_limit]
        return self._standing.domains(lanes)

    # --- agents and tasks -------------------------------------------------------------------

    def _fill(self) -> None:
        """Start an agent for every lane whose turn it is."""
        if self._is_filling or self._is_draining or not self._is_running:
            return
        self._is_filling = True  # an agent that fails at once must not nest another round
        try:
            # The first that fails may have found the epoch superseded, and stopped us.
            while self._is_running and (lane := self._schedule.next_lane()) is not None:
                self._tasks.start(self._agent(Agent(self, lane)))
        finally:
            self._is_filling = False
        if self._idle and self._schedule.is_crowded:
            self._wake(next(iter(self._idle)), None)  # the one that was idle the longest

    async def _agent(self, agent: Agent) -> None:
        lane = agent.lane
        try:
            await agent.run()
        finally:
            self._schedule.ended(lane)
            self._schedule.forget_idle(lane)
            if lane.key not in self._schedule.lanes:
                self._standing.forget(lane)
            self._fill()

    def _wake(self, agent: Agent, job: Job | None) -> None:
        self._idle.pop(agent, None)
        if agent in agent.lane.idle:
            agent.lane.idle.remove(agent)
        agent.wake(job)

    def _close_idle(self) -> None:
        """Close what had no work for long enough. One timer for all: the hot path sets none."""
        self._idle_timer = None
        latest = self.clock.monotonic() - self._settings.idle
        for agent in list(self._idle):
            if agent.idle_since <= latest or not agent.is_waiting:
                self._wake(agent, None)
        if self._idle and self._idle_timer is None and self._is_running:
            self._idle_timer = self.clock.call_later(self._settings.idle / 2, self._close_idle)

    def _fault(self, failure: TwistedFailure) -> None:
        if failure.check(CancelledError) is not None:
            return
        if failure.check(Fenced, TenureRevoked) is not None:
            self.stop(str(failure.value))
            return
        self.telemetry.notice(
            "critical", "transfer", f"defect: {failure.getErrorMessage()}\n{failure.getTraceback()}"
        )

    def _idle_now(self) -> None:
        if self._is_draining:
            self._fire_drained()

    def _fire_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for done in waiting:
            done.callback(None)

    def _give_back(self, queue_id: str, due: float | None) -> None:
        with suppress(KeyError, SpoolError):  # deleted meanwhile, or no longer ours
            self.spool.give_back(queue_id, due)

    # --- time -------------------------------------------------------------------------------

    def _wake_at(self, due: float) -> None:
        """Wall time at which the spool has work."""
        self._wake_in(max(0.0, due - self.clock.wall()))

    def _wake_in(self, seconds: float) -> None:
        if self._is_running and not self._is_draining:
            self._alarm.within(seconds)

    # --- for people -------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """What `mta status` shows: numbers, and one entry a destination."""
        return {
            "running": self._is_running,
            "draining": self._is_draining,
            "active": len(self.ledger.active),
            "queued": self._schedule.queued,
            "associations": self._schedule.associations,
            "in_doubt": len(self.ledger.doubts),
            "down": self._standing.down,
            "destinations": self._schedule.snapshot(self.clock.monotonic()),
        }
