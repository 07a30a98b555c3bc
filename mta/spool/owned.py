"""The log under one sealed epoch: accept, journal, load, offer.

Law: facts are applied to the ledger only when they are durable and the epoch was re-read; whoever
waits is told after that. Everything here runs on the reactor thread; blocking work goes to the
committer's thread or to the executor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from mta.errors import Corrupt, Fenced, Full, SpoolError
from mta.interfaces import IClock, IContent, IExecutor
from mta.model import (
    Doubt,
    DueWork,
    Envelope,
    FourTuple,
    Intent,
    MessageState,
    QueueAct,
    Remembered,
    Result,
    queue_id,
)
from mta.spool.committer import Committer, Unit
from mta.spool.content import FileContent, ResidentContent
from mta.spool.directory import Directory, as_spool_error
from mta.spool.due import domain_of
from mta.spool.epoch import OwnEpoch
from mta.spool.index import HELD as INDEX_HELD
from mta.spool.index import TAKEN
from mta.spool.journal import Entry
from mta.spool.ledger import Ledger
from mta.spool.reading import Found, Wanted, read_message
from mta.spool.records import (
    ASSOCIATION,
    INTENT,
    Big,
    encode_association,
    encode_intent,
)
from mta.spool.segment import Reader, Segment
from mta.spool.settings import LogSpoolSettings
from mta.spool.staging import LogStaging, Part
from mta.spool.upkeep import Upkeep
from mta.telemetry import Telemetry

if TYPE_CHECKING:
    from mta.interfaces import ILoop

RESIDENT_MESSAGE = 256 << 10
"""Larger ones are sent from the file."""


class _Active:
    """A message in somebody's hands: its values, and its content while there is room for it."""

    __slots__ = ("envelope", "octets", "pieces", "state")

    def __init__(
        self,
        envelope: Envelope,
        state: MessageState,
        pieces: tuple[bytes, ...] | None,
        octets: int,
    ) -> None:
        self.envelope = envelope
        self.state = state
        self.pieces = pieces
        self.octets = octets


class OwnedLog:
    """Built by recovery, usable once sealed, over when ended."""

    def __init__(
        self,
        settings: LogSpoolSettings,
        directory: Directory,
        own: OwnEpoch,
        ledger: Ledger,
        *,
        clock: IClock,
        executor: IExecutor,
        telemetry: Telemetry,
        sweep: list[str],
        on_fatal: Callable[[SpoolError], None],
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.own = own
        self.ledger = ledger
        self.clock = clock
        self.executor = executor
        self.telemetry = telemetry
        self.reader = Reader(directory)
        self.ended: SpoolError | None = None
        self.waiting: dict[Deferred[None], None] = {}
        """Commits that wait for something other than the committer."""
        self.stream_above = min(RESIDENT_MESSAGE, settings.big_message)
        self.active: dict[str, _Active] = {}
        self._resident_octets = 0
        self.changing: set[str] = set()
        """Messages that were not taken and have a record under way."""
        self._serial = 0
        self._part_number = 0
        self._loop: ILoop | None = None
        self._on_fatal = on_fatal
        self._opened = False
        self.upkeep = Upkeep(self, sweep)
        self.committer = Committer(
            directory,
            own,
            clock,
            segment_size=settings.segment_size,
            first_size=settings.first_segment_size,
            on_segment=self._segment_opened,
            on_group=self._group_committed,
            on_fatal=self._fatal,
            free_reserve=self.upkeep.free_reserve,
            has_room=self.upkeep.has_room,
        )
        self._commit_seconds = telemetry.histogram(
            "mta_spool_commit_seconds", "From the group's first write to the epoch's re-read."
        )
        self._commits = telemetry.counter("mta_spool_commits_total", "Groups made durable.")
        self._committed = telemetry.counter(
            "mta_spool_commit_units_total", "Commits and journal entries in those groups."
        )

    # life

    def start(self) -> None:
        """After the seal."""
        self._loop = self.executor.loop(self.committer.step, f"committer-{self.own.epoch}")
        self.committer.start(self._loop)
        self.upkeep.start()

    def end(self, reason: SpoolError) -> None:
        """Nothing is accepted or done any more; whoever waits fails now."""
        if self.ended is None:
            self.ended = reason
            self.committer.end(reason)
            waiting, self.waiting = self.waiting, {}
            for done in waiting:
                if not done.called:
                    done.errback(reason)
            self.active.clear()

    def close(self) -> None:
        """Give every descriptor back; the committer's thread has ended or is left to its fate."""
        if self._loop is not None:
            self._loop.stop()
        if self.committer.busy_since is None:
            self.committer.close()
        self.reader.close()
        self.own.close()

    def check(self) -> None:
        if self.ended is not None:
            raise self.ended
        if not self.own.is_current():
            raise self.own.superseded()

    def lose(self, reason: SpoolError) -> None:
        """As `end`, found out by ourselves; said once."""
        if self.ended is None:
            self._fatal(reason)

    def _fatal(self, reason: SpoolError) -> None:
        self.telemetry.notice("critical", "spool", str(reason))
        self.end(reason)
        self._on_fatal(reason)

    # accept

    def check_room(self, octets: int) -> None:
        """IRoom. Small messages find room in a segment that is there already."""
        if self.ended is not None:
            raise self.ended
        upkeep = self.upkeep
        if upkeep.takes(octets if octets > self.settings.big_message else 0):
            return
        upkeep.look_again()
        raise Full(
            f"spool {self.directory.path} is full",
            f"{upkeep.free_octets} octets are free, {upkeep.reserve_octets} are the reserve",
            "free space on that file system",
        )

    def stage(self, association: str) -> LogStaging:
        self.check_room(0)
        self._serial += 1
        return LogStaging(self, queue_id(self.own.epoch, self._serial), association)

    def new_part(self) -> Part:
        self._part_number += 1
        return Part(self, self._part_number)

    def keep(
        self,
        name: str,
        envelope: Envelope,
        state: MessageState,
        pieces: tuple[bytes, ...] | None,
        octets: int,
    ) -> None:
        """It will be wanted soon: the values stay; the content too, while it fits."""
        if pieces is not None and octets > RESIDENT_MESSAGE:
            pieces = None
        old = self.active.get(name)
        if old is not None and old.pieces is not None:
            self._resident_octets -= old.octets
        self.active[name] = _Active(envelope, state, pieces, octets)
        if pieces is not None:
            self._resident_octets += octets
            if self._resident_octets > self.settings.resident:
                self._evict()

    def _evict(self) -> None:
        """The oldest contents first: what was just accepted is wanted next."""
        for active in self.active.values():
            if active.pieces is not None:
                active.pieces = None
                self._resident_octets -= active.octets
                if self._resident_octets <= self.settings.resident * 3 // 4:
                    return

    def drop(self, name: str) -> None:
        active = self.active.pop(name, None)
        if active is not None and active.pieces is not None:
            self._resident_octets -= active.octets

    # journal

    def journal(self, results: Sequence[Result], intents: Sequence[Intent]) -> Deferred[None]:
        entry = Entry(self)
        for result in results:
            entry.result(result)
        for intent in intents:
            entry.add(
                (INTENT, intent.queue_id.encode(), encode_intent(intent), (), 0),
                self.ledger.intended,
                intent,
            )
        return self.write(entry)

    def write(self, entry: Entry) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        try:
            self.committer.submit(Unit(entry.records, entry.apply, done))
        except SpoolError as error:
            return fail(error)
        return done

    def entry(self) -> Entry:
        return Entry(self)

    def open_association(self, slot: str, ends: FourTuple, inbound: bool) -> None:
        record = (ASSOCIATION, b"", encode_association(slot, ends, inbound), (), 0)
        # In the ledger at once: a message accepted on it may be durable before this record's
        # turn, and being wrong here only makes the in-doubt list longer.
        self.ledger.associated(slot, ends, inbound)
        self.committer.ride(Unit([record], None, None))

    def close_association(self, slot: str) -> None:
        record = (ASSOCIATION, b"", encode_association(slot, None, False), (), 0)
        self.ledger.associated(slot, None, False)
        self.committer.ride(Unit([record], None, None))

    def leave_association(self, slot: str) -> None:
        """IAssociations. No record: for who replays, it is open still, which says the same."""
        self.ledger.left(slot, self.own.epoch)

    def recall(self, client: str, transaction: str) -> Remembered | None:
        found = self.ledger.transactions.find(client, transaction)
        return None if found is None or found.expires <= self.clock.wall() else found

    def in_doubt(self) -> tuple[Doubt, ...]:
        return tuple(self.ledger.doubts)

    # load

    def load(
        self, name: str
    ) -> tuple[Envelope, MessageState] | Deferred[tuple[Envelope, MessageState]]:
        active = self.active.get(name)
        if active is not None:
            return active.envelope, active.state
        wanted = self.wanted(name)
        reading = self._read(wanted)
        return reading.addCallback(lambda found: self._loaded(name, found))

    def _loaded(self, name: str, found: Found) -> tuple[Envelope, MessageState]:
        if self.ledger.index.find(name) >= 0:
            self.keep(name, found.envelope, found.state, found.pieces, found.octets)
        return found.envelope, found.state

    def content(self, name: str) -> IContent | Deferred[IContent]:
        active = self.active.get(name)
        if active is not None and active.pieces is not None:
            return ResidentContent(active.pieces, active.octets)
        wanted = self.wanted(name)
        if wanted.big is None and wanted.place.length <= RESIDENT_MESSAGE:
            return self._read(wanted).addCallback(self._resident, name)
        # Opened for nobody, when the caller has gone meanwhile: then it is closed again.
        opening = self._on_worker(wanted, self._open_content, lambda o: _unwanted(self, o, wanted))
        return opening.addCallback(self._from_file, wanted)

    def _resident(self, found: Found, name: str) -> IContent:
        if found.pieces is None:  # a size near the bound: read it again, piece by piece
            raise Corrupt(f"message {name} cannot be read", "its record changed its size")
        return ResidentContent(found.pieces, found.octets)

    def _open_content(self, wanted: Wanted) -> tuple[int, bytes, int, int, int, int]:
        """On a worker: (descriptor, prepend, offset, octets, crc, crc so far)."""
        found = read_message(self.reader, wanted, with_body=False)
        if wanted.big is not None:
            before = found.before
            path = self.directory.join("big", wanted.big.name)
            fd = self.directory.disk.open(path, 0)
            return fd, before, 0, wanted.big.octets, wanted.big.crc, 0
        fd = self.reader.descriptor(wanted.segment)
        return fd, b"", found.body_offset, found.body_octets, found.body_crc, 0

    def _from_file(self, opened: tuple[int, bytes, int, int, int, int], wanted: Wanted) -> IContent:
        fd, before, offset, octets, crc, running = opened
        segment = wanted.segment
        if wanted.big is None:
            segment.pins += 1

        def close() -> None:
            if wanted.big is None:
                segment.pins -= 1
            else:
                self.directory.disk.close(fd)

        return FileContent(
            self.directory.disk,
            self.executor,
            fd,
            before=before,
            offset=offset,
            octets=octets,
            crc=crc,
            running=running,
            name=f"big/{wanted.big.name}" if wanted.big else f"seg/{segment.name}",
            on_close=close,
            on_corrupt=lambda why: self.set_aside(wanted.queue_id, why),
        )

    def wanted(self, name: str) -> Wanted:
        """Where it lies now. @raise KeyError: not queued. @raise Fenced."""
        if self.ended is not None:
            raise self.ended
        index = self.ledger.index
        slot = index.find(name)
        if slot < 0:
            raise KeyError(name)
        segments = self.ledger.segments
        state = segments.get(index.state_segment[slot]) if index.state_segment[slot] else None
        return Wanted(
            name,
            segments[index.message_segment[slot]],
            index.message_place(slot),
            state,
            index.state_place(slot),
            self.ledger.bigs.get(slot),
            index.due[slot],
            bool(index.flags[slot] & INDEX_HELD),
        )

    def _read(self, wanted: Wanted) -> Deferred[Found]:
        return self._on_worker(
            wanted, lambda w: read_message(self.reader, w, with_body=True, most=RESIDENT_MESSAGE)
        )

    def _on_worker(
        self,
        wanted: Wanted,
        call: Callable[[Wanted], Any],
        unwanted: Callable[[Any], object] | None = None,
    ) -> Deferred[Any]:
        """Read with the segments pinned, so that nobody recycles them meanwhile: until the thread
        is through, even if the caller is cancelled before. `unwanted` gets the result then.
        """
        self.reader.bound(self.ledger.segments.values())
        pinned = [s for s in (wanted.segment, wanted.state_segment) if s is not None]
        for segment in pinned:
            segment.pins += 1

        def unpin(result: Any) -> Any:
            for segment in pinned:
                segment.pins -= 1
            return result

        def failed(failure: Failure) -> Failure:
            error = failure.value
            if isinstance(error, FileNotFoundError):
                return Failure(self.set_aside(wanted.queue_id, f"{error.filename} is missing"))
            if isinstance(error, OSError):
                return Failure(as_spool_error(error, f"message {wanted.queue_id} cannot be read"))
            if isinstance(error, Corrupt):
                return Failure(self.set_aside(wanted.queue_id, error.what))
            return failure

        answer: Deferred[Any] = Deferred()

        def hand_over(result: Any) -> None:
            if not answer.called:
                answer.callback(result)  # a Failure goes to the errbacks
            elif unwanted is not None and not isinstance(result, Failure):
                unwanted(result)

        self.executor.submit(call, wanted).addBoth(unpin).addErrback(failed).addBoth(hand_over)
        return answer

    def set_aside(self, name: str, why: str) -> Corrupt:
        """Hold it in memory and say so; its records stay as they are for whoever can mend them."""
        slot = self.ledger.index.find(name)
        if slot >= 0:
            self.drop(name)
            self.ledger.index.schedule(slot, self.ledger.index.due[slot], held=True)
        error = Corrupt(
            f"message {name} is damaged",
            why,
            f"it is held; `mta spool check {self.directory.path}` shows the place",
        )
        self.telemetry.notice("error", "spool", str(error), name)
        self.telemetry.counter("mta_spool_set_aside_total", "Messages held as damaged.").inc()
        return error

    # due

    def due(self, now: float, limit: int, avoid: Collection[bytes]) -> list[DueWork]:
        index = self.ledger.index
        names = index.domains.names
        return [
            DueWork(
                index.queue_id(slot),
                domain_of(names[index.domain[slot]]),
                index.priority(slot),
                index.due[slot],
            )
            for slot in index.take_due(now, limit, avoid)
        ]

    def give_back(self, name: str, due: float | None) -> None:
        index = self.ledger.index
        slot = index.find(name)
        if slot >= 0:
            held = bool(index.flags[slot] & INDEX_HELD)
            index.schedule(slot, index.due[slot] if due is None else due, held=held)
            self.drop(name)

    # operators

    def act(self, names: Sequence[str], act: QueueAct, now: float) -> tuple[list[str], Entry]:
        """The ids it applies to, and what to write."""
        index = self.ledger.index
        entry = self.entry()
        applied = []
        for name in names:
            slot = index.find(name)
            if slot < 0:
                continue
            flags = index.flags[slot]
            held = bool(flags & INDEX_HELD)
            if act is QueueAct.DELETE:
                entry.settle(name, 0, "")
            elif act is QueueAct.HOLD:
                entry.hold(name, True, index.due[slot])
            elif act is QueueAct.RELEASE:
                if not held:
                    continue
                entry.hold(name, False, now)
            else:
                if held or flags & TAKEN:
                    continue
                entry.hold(name, False, now)
            applied.append(name)
        return applied, entry

    # what goes on behind

    def is_changing(self, name: str) -> bool:
        return name in self.changing

    def remove_big(self, big: Big) -> None:
        """Dead, durably so; re-read the epoch, then destroy."""
        self.background(self._unlink_big, big)

    def _unlink_big(self, big: Big) -> None:
        if self.own.is_current():
            try:
                self.directory.disk.unlink(self.directory.join("big", big.name))
            except FileNotFoundError:
                pass

    def background(self, call: Callable[..., object], *arguments: object) -> None:
        """Something that nobody waits for; what goes wrong is said."""
        self.executor.submit(call, *arguments).addErrback(self._said)

    def _said(self, failure: Failure) -> None:
        if not failure.check(Fenced):
            self.telemetry.notice("warning", "spool", f"upkeep: {failure.getErrorMessage()}")

    def _segment_opened(self, new: Segment, before: Segment | None) -> int:
        ref = self.ledger.add_segment(new)
        self.upkeep.segment_opened(new, before)
        self._opened = True
        return ref

    def _group_committed(
        self, end: int, units: int, records: int, octets: int, seconds: float
    ) -> None:
        position = self.ledger.position
        current = self.upkeep.current
        if current is not None:
            position.number, position.offset = current.number, end
        self.ledger.wall = self.clock.wall()
        self._commits.inc()
        self._committed.inc(units)
        self._commit_seconds.observe(seconds)
        self.upkeep.committed(octets, records)
        if self._opened:
            self._opened = False
            self.upkeep.kick()


def _unwanted(
    owned: OwnedLog, opened: tuple[int, bytes, int, int, int, int], wanted: Wanted
) -> None:
    if wanted.big is not None:  # else it is the reader's descriptor, which others share
        owned.directory.disk.close(opened[0])
