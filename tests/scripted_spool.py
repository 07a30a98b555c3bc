"""A spool whose every answer a test decides: for what intake must do when a real one fails."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.interfaces import IContent, IRevisable, IRoom, ISpool, IStaging
from mta.model import (
    Claim,
    Doubt,
    DueWork,
    Envelope,
    EpochRecord,
    FourTuple,
    Guarantees,
    Intent,
    MessageState,
    QueueAct,
    QueueEntry,
    QueueFilter,
    Recovery,
    Remembered,
    Result,
    SpoolStats,
    queue_id,
)

PIECE = 4096
"""So little is read back at a time."""


@implementer(IStaging, IRevisable)
class ScriptedStaging:
    def __init__(self, spool: ScriptedSpool, serial: int) -> None:
        self.queue_id = queue_id(spool.epoch, serial)
        self.size_octets = 0
        self.spool = spool
        self.content = b""
        self.is_aborted = False
        self.committed: Deferred[None] | None = None
        self.envelope: Envelope | None = None
        self.state: MessageState | None = None
        self.prepend = b""
        self.intent: Intent | None = None
        self.remembered: tuple[str, str, float] | None = None

    def write(self, chunk: bytes) -> Deferred[None] | None:
        self.content += chunk
        self.size_octets += len(chunk)
        return self.spool.pause

    def commit(
        self, envelope: Envelope, state: MessageState, prepend: bytes, intent: Intent | None
    ) -> Deferred[None]:
        self.envelope, self.state, self.prepend = envelope, state, prepend
        self.intent = intent
        self.committed = Deferred()
        if self.spool.commits_at_once:
            self.durable()
        return self.committed

    def remember(self, client: str, transaction: str, expires: float) -> None:
        self.remembered = (client, transaction, expires)

    def abort(self) -> None:
        self.is_aborted = True

    def another(self) -> ScriptedStaging:
        made = ScriptedStaging(self.spool, 0)
        made.queue_id = self.queue_id
        self.spool.stagings.append(made)
        return made

    def read(self, offset: int) -> Deferred[bytes]:
        if self.spool.read_error is not None:
            return fail(self.spool.read_error)
        return succeed(self.content[offset : offset + PIECE])

    def durable(self) -> None:
        """The commit fires: from now on it is queued."""
        assert self.committed is not None and self.envelope is not None and self.state is not None
        self.spool.queued[self.queue_id] = (self.envelope, self.state)
        if self.remembered is not None:
            client, name, expires = self.remembered
            known = Remembered(client, name, self.queue_id, self.size_octets, expires)
            self.spool.remembered[client, name] = known
        self.committed.callback(None)

    def broken(self, error: Exception) -> None:
        """The commit fails."""
        assert self.committed is not None
        self.committed.errback(error)

    @property
    def stored(self) -> bytes:
        """What a next hop would be sent."""
        return self.prepend + self.content


@implementer(ISpool, IRoom)
class ScriptedSpool:
    """`journal_lines` is what was written beside the messages, in words."""

    guarantees = Guarantees(durable="process", shared=False, fenced_in_store=False)

    def __init__(self) -> None:
        self.epoch = 1
        self.stagings: list[ScriptedStaging] = []
        self.queued: dict[str, tuple[Envelope, MessageState]] = {}
        self.given_back: list[str] = []
        self.journal_lines: list[str] = []
        self.commits_at_once = True
        self.pause: Deferred[None] | None = None
        self.stage_error: Exception | None = None
        self.room_error: Exception | None = None
        self.check_error: Exception | None = None
        self.load_error: Exception | None = None
        self.read_error: Exception | None = None
        self.declared: list[int] = []
        self.remembered: dict[tuple[str, str], Remembered] = {}
        self.forgotten: list[str] = []

    def inspect(self) -> Deferred[tuple[EpochRecord, ...]]:
        return succeed(())

    def publish(self, claim: Claim, above: int) -> Deferred[int]:
        self.epoch = above + 1
        return succeed(self.epoch)

    def recover(self) -> Deferred[Recovery]:
        return succeed(Recovery(0, 0, 0))

    def seal(self) -> Deferred[None]:
        return succeed(None)

    def check(self) -> None:
        if self.check_error is not None:
            raise self.check_error

    def heartbeat(self) -> None:
        self.journal_lines.append("heartbeat")

    def release(self, reason: str) -> Deferred[None]:
        return succeed(None)

    def abandon(self) -> None:
        self.journal_lines.append("abandoned")

    def stuck_seconds(self) -> float:
        return 0.0

    def check_room(self, octets: int) -> None:
        self.declared.append(octets)
        if self.room_error is not None:
            raise self.room_error

    def stage(self, association: str) -> IStaging:
        if self.stage_error is not None:
            raise self.stage_error
        self.stagings.append(ScriptedStaging(self, len(self.stagings) + 1))
        return self.stagings[-1]

    def open_association(self, slot: str, ends: FourTuple, inbound: bool) -> None:
        self.journal_lines.append(
            f"open {slot} {ends.peer_host}:{ends.peer_port}"
            f" -> {ends.local_host}:{ends.local_port} inbound={inbound}"
        )

    def close_association(self, slot: str) -> None:
        self.journal_lines.append(f"close {slot}")

    def journal(self, results: Sequence[Result], intents: Sequence[Intent]) -> Deferred[None]:
        return succeed(None)

    def in_doubt(self) -> tuple[Doubt, ...]:
        return ()

    def load(self, queue_id: str) -> Any:
        if self.load_error is not None:
            return fail(self.load_error)
        return self.queued[queue_id]

    def content(self, queue_id: str) -> IContent | Deferred[IContent]:
        raise KeyError(queue_id)

    def due(self, now: float, limit: int, avoid: Collection[bytes]) -> list[DueWork]:
        return []

    def next_due(self, avoid: Collection[bytes]) -> float | None:
        return None

    def give_back(self, queue_id: str, due: float | None) -> None:
        self.given_back.append(queue_id)

    def recall(self, client: str, transaction: str) -> Remembered | None:
        return self.remembered.get((client, transaction))

    def forget_last(self, association: str) -> None:
        self.forgotten.append(association)

    def scan(self, chosen: QueueFilter, after: str, limit: int) -> Deferred[list[QueueEntry]]:
        return succeed([])

    def act(self, queue_ids: Sequence[str], act: QueueAct, now: float) -> Deferred[list[str]]:
        return succeed(list(queue_ids))

    def stats(self) -> SpoolStats:
        return SpoolStats(len(self.queued), 0, 0, None, 1 << 30, 0)
