"""One association slot: opens an association, carries jobs over it one behind the other, ends.

Law: justify durably, re-read the epoch, then act (spool.md section 6). For every message: prepare;
INTENT durable, in one batch with the RESULT of the message before it; the commit point; RESULT.
No commit point comes before the RESULT of the last one on this slot is durable. After content was
let go nobody else is asked in the same attempt (RFC 5321 4.5.3.2.6, RFC 1047). Cancelling is safe
at every await: what is known by then is handed to the spool before the agent is gone, be it only
that nothing is known. If the spool takes no more, the next owner finds it in doubt. `prepare` of
the next message overlaps `commit` of the last one where the association can.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.python.failure import Failure as TwistedFailure

from mta.errors import (
    Failure,
    Fenced,
    PermanentFailure,
    SpoolError,
    TenureRevoked,
    TransientFailure,
    Unfit,
)
from mta.interfaces import IContent, IEnds, ILimits, ISender
from mta.model import Intent, Outcome, Result, Route
from mta.transfer.conversion import Fitting
from mta.transfer.floor import Floor
from mta.transfer.hops import Hop
from mta.transfer.naming import Naming
from mta.transfer.outcomes import completed, in_doubt, local_problem
from mta.transfer.schedule import Lane
from mta.transfer.tasks import sleep
from mta.transfer.via import Via
from mta.transfer.work import Job

FAIR_SHARE = 50
"""Messages after which an association makes way when other destinations wait for one."""

_DEFECT_PAUSE = 300.0
"""Seconds before a message is tried again in whose transfer our own code, or a plugin's, broke."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds between attempts to journal a RESULT while the spool is unavailable."""


class Agent:
    """The life of one slot. `run` is the coroutine that dispatch starts and owns."""

    __slots__ = (
        "_failure",
        "_floor",
        "_hop",
        "_job",
        "_limits",
        "_naming",
        "_opening_seconds",
        "_recording",
        "_refused",
        "_stages",
        "_unfit",
        "_untried",
        "_waiting",
        "idle_since",
        "lane",
        "sender",
    )

    def __init__(self, floor: Floor, lane: Lane[Job]) -> None:
        self._floor = floor
        self.lane = lane
        self.sender: ISender | None = None
        self.idle_since = 0.0
        self._waiting: Deferred[Job | None] | None = None
        self._recording: Deferred[None] | None = None
        self._untried: list[Hop] = []
        self._stages: list[Route] = []
        self._failure: Failure | None = None
        self._refused: PermanentFailure | None = None
        self._unfit: Unfit | None = None
        """A server that let us in in this attempt could not take the message."""
        self._hop: Hop | None = None
        self._job: Job | None = None
        """In hand, and not concluded: what a defect must not swallow."""
        self._opening_seconds = 0.0
        self._naming: Naming | None = None

    @property
    def is_waiting(self) -> bool:
        """It has an open association and no work."""
        return self._waiting is not None and self.sender is not None and self.sender.is_open

    def intent(self, queue_id: str, recipients: tuple[int, ...]) -> Intent | None:
        """What would be journalled if this idle association carried them; None: not yet known."""
        naming = self._naming
        return naming.foretold(queue_id, recipients) if naming and self.is_waiting else None

    def wake(self, job: Job | None) -> None:
        """Work for an idle agent; None: close the association."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(job)
        elif job is not None:
            self._floor.requeue(job)

    async def run(self) -> None:
        try:
            await self._run()
        except (CancelledError, Fenced, TenureRevoked):
            raise  # dispatch stops, and gives back whatever is in work
        except Exception:
            job, self._job = self._job, None
            if job is not None:
                self._floor.postpone(job, _DEFECT_PAUSE)
            raise

    async def _run(self) -> None:
        floor, lane = self._floor, self.lane
        job = floor.take(lane)
        floor.began(lane)
        fresh_attempt = True
        while job is not None:
            if floor.is_closing:
                floor.postpone(job, 0.0)
                return
            self._job = job
            if fresh_attempt:
                self._stages, self._untried = [job.route, *job.route.alternatives], []
                self._failure = self._refused = self._unfit = None
            sender = await self._reach(job)
            self._job = None
            if sender is None and self._unfit is not None:
                await floor.unfit(job, lane, self._failure or self._unfit)
                return
            if sender is None:
                failure = self._failure or TransientFailure(f"{lane.key} cannot be reached")
                if self._refused is not None and self._refused is failure:
                    await floor.refuse(job, lane, self._refused)
                else:
                    await floor.unreachable(job, lane, failure)
                return
            assert self._hop is not None
            hop, self.sender = self._hop, sender
            # A new owner resets what its predecessor left open (spool.md section 4): so the ends
            # are journalled. A slot without a socket is known by its INTENTs alone.
            ends = IEnds(sender).ends if IEnds.providedBy(sender) else None
            if ends is not None:
                floor.spool.open_association(sender.slot, ends, False)
            tenure = floor.tenure
            naming = Naming(sender, hop.peer, tenure.epoch, tenure.network_name, floor.named)
            self._naming = naming
            try:
                job, fresh_attempt = await self._serve(job, sender, hop, naming)
            finally:
                self.sender = self._naming = None
                # A reset at the tenure's end may never reach the peer: it stays in the journal.
                if ends is not None and floor.tenure.is_live:
                    floor.spool.close_association(sender.slot)
                if sender.is_open and not naming.end():  # cut off in the midst of it
                    _close_quietly(sender)
            if job is None and not floor.must_yield():
                job, fresh_attempt = floor.take(lane), True

    # --- opening ---

    async def _reach(self, job: Job) -> ISender | None:
        """The first server that lets us in, going on where the attempt stands. None: nobody."""
        floor = self._floor
        job.is_begun = False
        while True:
            while not self._untried:
                if not self._stages:
                    return None
                try:
                    found = await floor.finder.find(self._stages.pop(0))
                except PermanentFailure as failure:
                    if self._failure is None:
                        self._failure = self._refused = failure
                except TransientFailure as failure:
                    self._failure = failure
                else:
                    self._untried = floor.health.order(found, floor.clock.monotonic(), job.prefer)
            hop = self._untried.pop(0)
            began = floor.clock.monotonic()
            try:
                sender = await hop.kind.open(floor.tenure, hop.hop)
            except (CancelledError, Fenced, TenureRevoked):
                raise
            except (TransientFailure, PermanentFailure) as failure:
                self._failed(hop, failure)
            except Exception as problem:
                # WrongSourceAddress, or a kind that broke: the operator hears, the mail waits.
                floor.telemetry.notice(
                    "error",
                    "transfer",
                    f"connector {hop.hop.connector!r} to {hop.hop.relay}: {problem}",
                )
                self._failed(hop, local_problem(hop))
            else:
                floor.health.answered(hop.peer)
                floor.reached(self.lane)
                self._hop = hop
                self._opening_seconds = floor.clock.monotonic() - began
                return sender

    def _failed(self, hop: Hop, failure: Failure) -> None:
        self._failure = failure
        self._floor.health.failed(hop.peer, self._floor.clock.monotonic())

    # --- carrying ---

    async def _serve(
        self, job: Job | None, sender: ISender, hop: Hop, naming: Naming
    ) -> tuple[Job | None, bool]:
        """Carry jobs until there are none or the association ends.

        Answers a job that was not attempted (or None), and whether its attempt begins anew; if
        not, the next server of the same attempt is asked.
        """
        floor = self._floor
        spool, clock = floor.spool, floor.clock
        via = floor.via(hop, sender, self._opening_seconds)
        fitting = Fitting(spool, sender, floor.telemetry)
        self._limits: ILimits | None = ILimits(sender, None)
        slot = sender.slot
        results: list[Result] = []
        preparing: Deferred[tuple[Outcome, ...]] | None = None
        content: IContent | None = None
        began_at = 0.0
        carried = 0
        # What would have to be said of `job` if this were cut off now: nothing yet; an INTENT is
        # out; content was let go; its outcomes are known and not recorded.
        left: tuple[int, ...] = ()
        is_let_go = False
        outcomes: Sequence[Outcome] = ()
        following: Job | None = None
        try:
            while job is not None:
                if job.message.envelope.deliver_by is not None and floor.is_overtaken(job):
                    job = self._more(carried)
                    continue
                message, recipients = job.message, job.recipients
                if job.is_intended:
                    left = recipients
                try:
                    if preparing is None:
                        began_at = clock.monotonic()
                        opened = spool.content(message.queue_id)
                        content = await opened if isinstance(opened, Deferred) else opened
                        if fitting.must_change(message.envelope):
                            content = await fitting.fit(message, content)
                        preparing = naming.prepare(job, content)
                    settled = await preparing
                    preparing = None
                except (CancelledError, Fenced, TenureRevoked):
                    raise
                except Unfit as problem:
                    preparing = None
                    self._unfit = problem
                    left = self._untell(job, slot, results)
                    await self._flush(results)
                    await sender.close()
                    return job, carried > 0
                except SpoolError as problem:
                    preparing = None
                    left = self._untell(job, slot, results)
                    self._unreadable(job, problem)
                    job = self._more(carried)
                    continue
                except KeyError:  # an operator deleted it while it waited here
                    preparing = None
                    left = self._untell(job, slot, results)
                    message.is_gone = True
                    floor.postpone(job, 0.0)
                    job = self._more(carried)
                    continue
                except Exception as problem:
                    preparing = None
                    left = self._untell(job, slot, results)
                    await self._flush(results)
                    if not isinstance(problem, TransientFailure):
                        floor.telemetry.notice(
                            "error", "transfer", f"{via.kind} to {via.relay}: {problem}"
                        )
                        problem = local_problem(hop)
                    if not carried:
                        self._failed(hop, problem)
                    return job, carried > 0
                assert content is not None
                outcomes = settled
                if len(settled) < len(recipients):
                    if self._recording is not None:
                        await self._recorded()
                    left = recipients
                    if settled:
                        done = {outcome.recipient for outcome in settled}
                        left = tuple(i for i in recipients if i not in done)
                    handed: list[Result] = []
                    try:
                        if job.is_intended:  # it is durable; the RESULTs before it are as well
                            spool.check()
                        else:
                            handed, results = results, []
                            intent = naming.intent(message.queue_id, left)
                            await spool.journal(handed, (intent,))
                    except (Fenced, CancelledError):
                        raise
                    except SpoolError as problem:
                        # Nothing was let go: take it back, keep the results, try all of it later.
                        results = [*handed, *results]
                        left = self._untell(job, slot, results)
                        self._unreadable(job, problem)
                        job = None
                        await self._flush(results)
                        await sender.withdraw()
                        break
                    if handed:
                        floor.durable(handed)
                    is_let_go = True
                    try:
                        committing = sender.commit(content)
                    except Exception:
                        committing = fail()
                    next_content: IContent | None = None
                    next_began = 0.0
                    if sender.can_overlap:
                        following = self._more(carried + 1)
                        if following is not None:
                            ready = self._resident(following, fitting)
                            if ready is not None:
                                next_content, next_began = ready, clock.monotonic()
                                preparing = self._prepare(naming, following, ready)
                    try:
                        brought = await committing
                    except (CancelledError, Fenced, TenureRevoked):
                        raise
                    except Exception as problem:
                        floor.telemetry.notice(
                            "error", "transfer", f"{via.kind} to {via.relay}: {problem}"
                        )
                        brought = in_doubt(left, "the association kind failed after it sent")
                    content.close()
                    if len(brought) != len(left):
                        brought = completed(brought, left)
                    outcomes = (*settled, *brought) if settled else brought
                    left = ()
                    content, next_content = next_content, None
                else:
                    is_let_go, left = True, ()  # all of it is settled, without content
                    content.close()
                    content = None
                    next_began = 0.0
                carried += 1
                job, outcomes = self._divide(job, outcomes, following is None)
                finished = floor.finish(job, outcomes, via, began_at)
                results.append(await finished if isinstance(finished, Deferred) else finished)
                is_let_go = False
                if message.is_divided:
                    self._record_now(results)
                    results = []
                began_at = next_began
                job, following = following or self._more(carried), None
                if job is None:
                    if self._recording is not None:
                        await self._recorded()
                    self._record_now(results)
                    results = []
                    if sender.is_open and not self._has_served(carried):
                        job = await self._rest()
                if job is not None and preparing is None and not sender.is_open:
                    self._untell(job, slot, results)
                    await self._flush(results)
                    return job, True
            await self._flush(results)
            await sender.close()
            return job, True
        except BaseException:
            if is_let_go and left:
                outcomes = (*outcomes, *in_doubt(left, "cut off before the reply came"))
            elif left and job is not None:
                results.append(Result(job.message.queue_id, slot, None, not_sent=True))
            if is_let_go and job is not None:
                job = self._last_outcome(job, outcomes, results, via=via, began_at=began_at)
            if results:
                floor.recorded(spool.journal(results, ()), results)
            if following is not None:
                floor.postpone(following, 0.0)
            self._job = job
            raise
        finally:
            if content is not None:
                content.close()
            if preparing is not None:
                preparing.addErrback(_swallow)
                preparing.cancel()
            if self._recording is not None:
                recording, self._recording = self._recording, None
                recording.addErrback(_swallow)
                recording.cancel()

    def _last_outcome(
        self,
        job: Job,
        outcomes: Sequence[Outcome],
        results: list[Result],
        *,
        via: Via,
        began_at: float,
    ) -> Job | None:
        """Cut off: what is known of the job is recorded all the same. Answers it if it is not."""
        try:
            results.append(self._floor.finish_now(job, outcomes, via, began_at))
        except Exception as problem:
            self._floor.telemetry.notice(
                "critical", "transfer", f"defect: {problem!r}", job.message.queue_id
            )
            return job
        return None

    @staticmethod
    def _untell(job: Job, slot: str, results: list[Result]) -> tuple[int, ...]:
        """`job` was not let go here: an INTENT that is durable already is answered. Nobody is left
        in doubt by it.
        """
        if job.is_intended:
            job.is_intended = False
            results.append(Result(job.message.queue_id, slot, None, not_sent=True))
        return ()

    @staticmethod
    def _prepare(naming: Naming, job: Job, content: IContent) -> Deferred[tuple[Outcome, ...]]:
        """Ahead of its turn: what it raises is heard in its turn."""
        try:
            return naming.prepare(job, content)
        except Exception:
            return fail()

    def _resident(self, job: Job, fitting: Fitting) -> IContent | None:
        """The content for an overlapping prepare, if it is at hand without waiting."""
        if fitting.must_change(job.message.envelope):
            return None
        try:
            opened = self._floor.spool.content(job.message.queue_id)
        except (SpoolError, KeyError):
            return None  # asked again in its turn, where the problem is told
        if isinstance(opened, Deferred):
            opened.addCallbacks(lambda content: content.close(), _swallow)
            return None
        return opened

    def _more(self, carried: int) -> Job | None:
        """The next job at hand, unless this association has carried its share."""
        floor = self._floor
        if self._has_served(carried) or (carried >= FAIR_SHARE and floor.must_yield()):
            return None
        return floor.take(self.lane)

    def _has_served(self, carried: int) -> bool:
        """This association is to carry no further message."""
        is_spent = self._limits is not None and self._limits.is_spent
        return is_spent or carried >= self._floor.messages_per_association

    async def _rest(self) -> Job | None:
        """Idle: wait for work. None: nobody needs this association any longer."""
        waiting: Deferred[Job | None] = Deferred()
        self._waiting = waiting
        self._floor.rest(self)
        try:
            return await waiting
        finally:
            self._waiting = None
            self._floor.unrest(self)

    def _divide(
        self, job: Job, outcomes: Sequence[Outcome], is_next: bool
    ) -> tuple[Job, Sequence[Outcome]]:
        """Recipients for the next transaction (452, RCPTMAX) become a job of their own, the first
        in line. If the peer took nobody at all they are deferred like others.
        """
        for outcome in outcomes:
            if outcome.next_transfer:
                break
        else:
            return job, outcomes
        now = [outcome for outcome in outcomes if not outcome.next_transfer]
        if not now:
            return job, outcomes
        later = tuple(outcome.recipient for outcome in outcomes if outcome.next_transfer)
        self._floor.requeue(job.rest(later), is_next=is_next)
        return job, now

    # --- recording ---

    async def _flush(self, results: list[Result]) -> None:
        """What is not recorded yet becomes durable now."""
        if results:
            taken = list(results)
            results.clear()
            self._record_now(taken)
        if self._recording is not None:
            await self._recorded()

    async def _recorded(self) -> None:
        """All that was handed to the spool is durable."""
        recording, self._recording = self._recording, None
        if recording is not None:
            await recording

    def _record_now(self, results: list[Result]) -> None:
        """Hand RESULTs to the spool in this moment; they are durable before the next dot."""
        floor, former = self._floor, self._recording
        journalling = floor.spool.journal(results, ())
        if former is not None:
            self._recording = Deferred.fromCoroutine(self._record(results, journalling, former))
        else:  # for every message: callbacks cost half of what a coroutine does
            self._recording = journalling.addCallbacks(
                self._durable, self._not_recorded, (results,), errbackArgs=(results,)
            )

    def _durable(self, _: None, results: list[Result]) -> None:
        self._floor.durable(results)

    def _not_recorded(
        self, failure: TwistedFailure, results: list[Result]
    ) -> TwistedFailure | Deferred[None]:
        if failure.check(SpoolError) is None or failure.check(Fenced) is not None:
            return failure
        return Deferred.fromCoroutine(self._record(results, fail(failure), None))

    async def _record(
        self, results: list[Result], journalling: Deferred[None], former: Deferred[None] | None
    ) -> None:
        """RESULTs without an INTENT. A transfer that happened is recorded however long it takes:
        the slot has no next commit point before. @raise Fenced.
        """
        floor = self._floor
        pause = _FIRST_PAUSE
        if former is not None:
            try:
                await former
            except BaseException:
                floor.recorded(journalling, results)
                raise
        while True:
            try:
                await journalling
            except (Fenced, CancelledError):
                raise
            except SpoolError as problem:
                text = f"an outcome cannot be recorded, trying again in {pause:g} s: {problem}"
                floor.telemetry.notice("error", "transfer", text, results[0].queue_id)
                try:
                    await sleep(floor.clock, pause)
                except CancelledError:
                    floor.recorded(floor.spool.journal(results, ()), results)
                    raise
                pause = min(pause * 2.0, _LONGEST_PAUSE)
                journalling = floor.spool.journal(results, ())
            else:
                floor.durable(results)
                return

    def _unreadable(self, job: Job, problem: SpoolError) -> None:
        self._floor.telemetry.notice("error", "transfer", str(problem), job.message.queue_id)
        self._floor.postpone(job, 60.0)


def _close_quietly(sender: ISender) -> None:
    """Nobody waits for its end; should it have none, the tenure's closes the transport."""
    maybeDeferred(sender.close).addErrback(_swallow)


def _swallow(_failure: object) -> None:
    """An end that somebody else already knows of."""
