"""What is in work: a message taken from the spool, and its jobs, one for each destination.

Law: plain records of this process, never on disk; dispatch makes them, the ledger ends them.
"""

from __future__ import annotations

from mta.model import Doubt, Envelope, MessageState, Route
from mta.transfer.schedule import Lane


class Message:
    """A message that was taken: the spool hands it to nobody else until it comes back."""

    __slots__ = (
        "attempts",
        "envelope",
        "is_divided",
        "is_gone",
        "is_journalled",
        "is_retaken",
        "jobs",
        "postponed",
        "queue_id",
        "state",
        "taken_at",
        "waited",
    )

    def __init__(
        self, queue_id: str, envelope: Envelope, state: MessageState, now: float, wall: float
    ) -> None:
        self.queue_id = queue_id
        self.envelope = envelope
        self.state = state
        self.attempts = state.attempts + 1
        self.taken_at = now
        self.waited = max(0.0, wall - envelope.began_at)
        """Seconds between its acceptance and now: Postfix's first delay."""
        self.jobs = 0
        """How many of its jobs are not concluded."""
        self.is_divided = False
        """It has more than one job: the record of each is handed to the spool the moment it ends,
        so that no later one is overtaken by an earlier one."""
        self.is_gone = False
        """An operator held or deleted it: its jobs are not begun any more."""
        self.is_journalled = False
        """A job of this round has ended, and its record says when the message is due again."""
        self.is_retaken = False
        """And it did: it must be given back once more."""
        self.postponed: float | None = None
        """Wall time for jobs that were not attempted."""


class Job:
    """One message's recipients for one destination: what one transfer carries."""

    __slots__ = (
        "doubt",
        "grade",
        "is_begun",
        "is_intended",
        "is_settled",
        "lane",
        "message",
        "recipients",
        "route",
    )

    def __init__(
        self,
        message: Message,
        recipients: tuple[int, ...],
        route: Route,
        lane: Lane[Job],
        *,
        grade: int,
        doubt: Doubt | None = None,
    ) -> None:
        self.message = message
        self.recipients = recipients
        self.route = route
        self.lane = lane
        self.grade = grade
        self.doubt = doubt
        """They may have it already: the peer that it was let go to is asked first."""
        self.is_begun = False
        """A server has been told of it: it is its agent's until it has an outcome."""
        self.is_intended = False
        """Its INTENT on the association that has it is durable, with the message itself."""
        self.is_settled = False
        """Its end is known, though it may stand in a lane or an agent's hand: nobody begins it."""

    def rest(self, recipients: tuple[int, ...]) -> Job:
        """A job of the same message, for those of its recipients that its transfer left over."""
        self.message.jobs += 1
        self.message.is_divided = True
        return Job(
            self.message, recipients, self.route, self.lane, grade=self.grade, doubt=self.doubt
        )

    @property
    def prefer(self) -> str:
        """The peer (`host:port`) to ask first; "" for none."""
        return self.doubt.peer if self.doubt is not None else ""
