"""An open association that is kept for one message while that is being committed.

Law: an INTENT rides on the message's own accept batch only where an association is open, idle and
kept for it (spool.md section 6); the epoch is re-read once more before the dot. A reservation that
is given back writes RESULT(not sent). Whoever reserves uses it or gives it back, whatever becomes
of the commit. A batch less lies so between a message and its transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mta.interfaces import IAssociationKind, IClock
from mta.model import Connector, Envelope, InDoubt, Intent, MessageState, Result
from mta.transfer.agent import Agent
from mta.transfer.division import Division
from mta.transfer.floor import Floor
from mta.transfer.schedule import Reach, Schedule, grade_of
from mta.transfer.standing import Standing
from mta.transfer.work import Job, Message


class Reservation:
    """An agent that waits for one job, and that job."""

    __slots__ = ("_reservations", "agent", "intent", "job")

    def __init__(self, reservations: Reservations, agent: Agent, job: Job, intent: Intent) -> None:
        self._reservations = reservations
        self.agent = agent
        self.job = job
        self.intent = intent
        """To be committed with the message."""

    def is_of(self, reservations: Reservations) -> bool:
        """Another dispatch may have come in between."""
        return self._reservations is reservations

    def give_back(self) -> None:
        """It is not used: the message goes another way, or nowhere."""
        self._reservations.give_back(self)


class Queue(Protocol):
    """Where messages go that become ours."""

    def reserve(self, queue_id: str, envelope: Envelope, state: MessageState) -> Reservation | None:
        """Before its commit. None: no association is idle that could take it."""

    def offer(
        self,
        queue_id: str,
        envelope: Envelope,
        state: MessageState,
        reservation: Reservation | None,
    ) -> None:
        """It is durable, and taken; its INTENT too if there is a reservation."""


class Reservations:
    """Those of one dispatch."""

    def __init__(
        self,
        floor: Floor,
        schedule: Schedule[Job],
        division: Division,
        standing: Standing,
        *,
        connectors: Mapping[str, tuple[Connector, IAssociationKind]],
        active_limit: int,
    ) -> None:
        self._floor = floor
        self._clock: IClock = floor.clock
        self._active = floor.ledger.active
        self._schedule = schedule
        self._division = division
        self._standing = standing
        self._connectors = connectors
        self._active_limit = active_limit

    def reserve(self, queue_id: str, envelope: Envelope, state: MessageState) -> Reservation | None:
        """Only where nothing waits for the destination, and for the whole message."""
        wall = self._clock.wall()
        if (
            state.held
            or state.due > wall
            or envelope.deliver_by is not None
            or self._floor.is_closing
            or len(self._active) >= self._active_limit
        ):
            return None
        message = Message(queue_id, envelope, state, self._clock.monotonic(), wall)
        parts, lost = self._division.divide(message)
        if len(parts) != 1 or lost:
            return None
        route, recipients, doubt = parts[0]
        lane = self._schedule.lanes.get(route.destination)
        if lane is None or not lane.idle or lane.queued or lane.reach is not Reach.OPEN:
            return None
        # Where doubt holds mail back, an INTENT that is never let go would hold it for nothing.
        if doubt is not None or self._connectors[route.connector][0].in_doubt is InDoubt.HOLD:
            return None
        agent = lane.idle[-1]
        assert isinstance(agent, Agent)
        intent = agent.intent(queue_id, recipients)
        if intent is None:
            return None
        self._floor.unrest(agent)
        message.jobs = 1
        job = Job(message, recipients, route, lane, grade=grade_of(envelope.priority))
        job.is_intended = True
        return Reservation(self, agent, job, intent)

    def use(self, reservation: Reservation) -> bool:
        """The message and its INTENT are durable. False: given back, it has to go another way."""
        agent, message = reservation.agent, reservation.job.message
        is_at_hand = reservation.is_of(self) and not self._floor.is_closing and agent.is_waiting
        if not is_at_hand or len(self._active) >= self._active_limit:
            reservation.give_back()
            return False
        message.taken_at = self._clock.monotonic()
        message.waited = max(0.0, self._clock.wall() - message.envelope.began_at)
        self._active[message.queue_id] = message
        domain = message.envelope.recipients[reservation.job.recipients[0]].address.domain
        self._standing.saw(agent.lane, domain)
        agent.wake(reservation.job)
        return True

    def give_back(self, reservation: Reservation) -> None:
        """The agent may rest again, or has other work."""
        floor, agent, intent = self._floor, reservation.agent, reservation.intent
        results = (Result(intent.queue_id, intent.slot, None, not_sent=True),)
        floor.recorded(floor.spool.journal(results, ()), results)
        job = floor.take(agent.lane) if agent.is_waiting else None
        if job is not None or not agent.is_waiting:
            agent.wake(job)
        else:
            floor.rest(agent)
