"""What an agent, and who reserves one, needs of the dispatch.

Law: a contract without behaviour; dispatch keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred

from mta.errors import Failure, PermanentFailure
from mta.interfaces import IClock, ISender, ISpool, ITenure
from mta.model import Outcome, Result
from mta.telemetry import Counter, Telemetry
from mta.transfer.hops import Hop, HopFinder, HopHealth
from mta.transfer.ledger import Ledger
from mta.transfer.schedule import Lane
from mta.transfer.via import Via
from mta.transfer.work import Job

if TYPE_CHECKING:
    from mta.transfer.agent import Agent


class Floor(Protocol):
    """The dispatch that started it."""

    tenure: ITenure
    spool: ISpool
    clock: IClock
    telemetry: Telemetry
    ledger: Ledger
    finder: HopFinder
    health: HopHealth
    messages_per_association: int
    named: Counter

    @property
    def is_closing(self) -> bool:
        """Nothing new is begun."""

    def take(self, lane: Lane[Job]) -> Job | None:
        """The next job of this lane."""

    def requeue(self, job: Job, *, is_next: bool = False) -> None:
        """It was not attempted: first in its lane again. `is_next`: who says so takes it now."""

    def began(self, lane: Lane[Job]) -> None:
        """The agent has its first job, or there was none."""

    def must_yield(self) -> bool:
        """Other lanes wait for an association."""

    def rest(self, agent: Agent) -> None:
        """Keep it among the idle ones until `wake`."""

    def unrest(self, agent: Agent) -> None: ...

    def reached(self, lane: Lane[Job]) -> None: ...

    def via(self, hop: Hop, sender: ISender, connecting: float) -> Via: ...

    def durable(self, results: Sequence[Result]) -> None: ...

    def finish(
        self, job: Job, outcomes: Sequence[Outcome], via: Via, began_at: float
    ) -> Result | Deferred[Result]:
        """End the job: the Result to journal, its reports in it."""

    def finish_now(
        self, job: Job, outcomes: Sequence[Outcome], via: Via, began_at: float
    ) -> Result:
        """The same without waiting; its reports lack the original's header."""

    def recorded(self, journalling: Deferred[None], results: Sequence[Result]) -> None:
        """Own the end of this journalling; the agent does not wait for it."""

    async def unreachable(self, job: Job, lane: Lane[Job], failure: Failure) -> None:
        """No association could be opened for `job`."""

    async def unfit(self, job: Job, lane: Lane[Job], failure: Failure) -> None:
        """No server that was reached can take `job`."""

    async def refuse(self, job: Job, lane: Lane[Job], failure: PermanentFailure) -> None:
        """Nothing of this lane can ever be sent."""

    def postpone(self, job: Job, seconds: float) -> None:
        """Not attempted; later."""

    def is_overtaken(self, job: Job) -> bool:
        """Its sender's time is over, and so is it; no server was told of it."""
