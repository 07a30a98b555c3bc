"""The committer: one thread that makes records durable in groups, in the order they were handed in.

Law: durable, then the epoch is re-read, then the reactor is told; never another order. There is no
timer: a group is what came in while the last sync ran. A segment whose sync failed is never written
again; its last good end stands in the CONTINUES record of the next one, in whose first batch the
same records are written. What cannot be made durable there either ends the tenure without a reply.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from mta.errors import Fenced, Full, MTAError, SpoolError, Unavailable
from mta.interfaces import IClock, IDisk, ILoop
from mta.spool.directory import Directory, as_spool_error
from mta.spool.epoch import OwnEpoch
from mta.spool.records import (
    CONTINUES,
    NEXT,
    Place,
    Record,
    batch_octets,
    encode_batch,
    encode_continues,
    encode_next,
    records_octets,
)
from mta.spool.segment import (
    HEADER_OCTETS,
    Segment,
    Spare,
    fill,
    header,
    new_tag,
    path_of,
)

GROUP_OCTETS = 8 << 20
"""A group's bound: 11 ms of sequential writing at the 740 MB/s measured for groups of 100 KiB."""
_LAZY_UNITS = 512
"""Records that may wait for company: with nobody sending mail they would else pile up."""
_NEXT_OCTETS = batch_octets(1, 64)
"""Room kept at the end of a segment for the batch that holds NEXT."""


class Unit:
    """Records that are durable together or not at all, and whom to tell."""

    __slots__ = ("apply", "carries_mail", "done", "octets", "places", "records", "source")

    def __init__(
        self,
        records: list[Record],
        apply: Callable[[int, list[Place]], object] | None,
        done: Deferred[Any] | None,
        carries_mail: bool = False,
        source: Callable[[], list[Record]] | None = None,
    ) -> None:
        self.records = records
        self.apply = apply
        """Called on the reactor thread with the segment's reference and the records' places."""
        self.done = done
        self.carries_mail = carries_mail
        """May not use the reserve."""
        self.source = source
        """Makes the records on the committer's thread: bodies that lie in a file."""
        self.octets = records_octets(records)
        self.places: list[Place] = []


class Committer:
    """Owned by one epoch. `submit` and `stop` are called on the reactor thread."""

    def __init__(
        self,
        directory: Directory,
        own: OwnEpoch,
        clock: IClock,
        *,
        segment_size: int,
        first_size: int,
        on_segment: Callable[[Segment, Segment | None], int],
        on_group: Callable[[int, int, int, int, float], None],
        on_fatal: Callable[[SpoolError], None],
        free_reserve: Callable[[], None],
        has_room: Callable[[int], bool],
    ) -> None:
        self._directory = directory
        self._disk: IDisk = directory.disk  # type: ignore[assignment]  # Files has its shape
        self._own = own
        self._clock = clock
        self._segment_size = segment_size
        self._first_size = first_size
        self._on_segment = on_segment
        self._on_group = on_group
        self._on_fatal = on_fatal
        self._free_reserve = free_reserve
        self._has_room = has_room
        self._inbox: deque[Unit] = deque()
        self._lazy: deque[Unit] = deque()
        self._outstanding: dict[Unit, None] = {}
        self._spares: deque[Spare] = deque()
        self._numbers = itertools.count(1)
        self._loop: ILoop | None = None
        self._dead: SpoolError | None = None
        self._ended: SpoolError | None = None
        """Why no more is accepted, as the reactor's side knows it."""
        self._segment: Segment | None = None
        self._fd = -1
        self._offset = 0
        self._sequence = 0
        self.busy_since: float | None = None
        """Monotonic time at which the present disk call began."""
        self.groups = 0

    # the reactor's side

    def start(self, loop: ILoop) -> None:
        self._loop = loop

    def submit(self, unit: Unit) -> None:
        """Make it durable soon. @raise Fenced: the tenure has ended."""
        if self._ended is not None:
            raise self._ended
        self._inbox.append(unit)
        if unit.done is not None:
            self._outstanding[unit] = None
        assert self._loop is not None, "sealed before anything is accepted"
        self._loop.wake()

    def ride(self, unit: Unit) -> None:
        """Make it durable with whatever comes next."""
        if self._ended is None:
            self._lazy.append(unit)
            if len(self._lazy) > _LAZY_UNITS:
                self.submit(Unit([], None, None))

    def nothing_waits_long(self) -> None:
        """What only rides goes alone, when nothing comes that it could ride on."""
        if self._lazy and self._ended is None and self.is_idle:
            self.submit(Unit([], None, None))

    def flush(self, done: Deferred[Any]) -> None:
        """Fires when everything handed in so far is durable, what only rides included."""
        self.submit(Unit([], None, done))

    def end(self, reason: SpoolError) -> None:
        """Accept no more; every open unit fails now, whatever its thread is doing."""
        if self._ended is None:
            self._ended = self._dead = reason
            waiting, self._outstanding = self._outstanding, {}
            for unit in waiting:
                if unit.done is not None and not unit.done.called:
                    unit.done.errback(reason)

    @property
    def is_idle(self) -> bool:
        return self.busy_since is None and not self._inbox

    def take_number(self) -> int:
        return next(self._numbers)

    def add_spare(self, spare: Spare) -> None:
        self._spares.append(spare)

    @property
    def spares(self) -> int:
        return len(self._spares)

    def close(self) -> None:
        """After the loop has ended."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        while self._spares:
            self._disk.close(self._spares.popleft().fd)

    # the committer's thread

    def step(self) -> Callable[[], None] | None:
        """One group: write, sync, re-read the epoch. Answers what the reactor is to be told."""
        if not self._inbox:
            return None
        units = self._collect()
        if self._dead is not None:
            dead = self._dead
            return lambda: self._refuse(units, dead)
        # Distinct from "idle" as soon as a disk call may hang: the driver watches this figure.
        self.busy_since = self._clock.monotonic()
        try:
            return self._commit(units)
        except BaseException as error:  # a defect here must not leave anyone waiting for ever
            reason = error if isinstance(error, SpoolError) else _defect(error)
            self._dead = reason
            return lambda: self._die(units, reason)
        finally:
            self.busy_since = None

    def _collect(self) -> list[Unit]:
        units: list[Unit] = []
        octets = 0
        lazy, inbox = self._lazy, self._inbox
        while lazy:
            unit = lazy.popleft()
            octets += unit.octets
            units.append(unit)
        while inbox and octets < GROUP_OCTETS:
            unit = inbox.popleft()
            octets += unit.octets
            units.append(unit)
        return units

    def _commit(self, units: list[Unit]) -> Callable[[], None]:
        started = self._clock.monotonic()
        failed: list[tuple[Unit, SpoolError]] = []
        units = self._read_sources(units, failed)
        opened: list[tuple[Segment, Segment | None]] = []
        records, octets = _joined(units)
        if records:
            units = self._write(units, records, octets, failed, opened)
        # Durable; now re-read, then act (spool.md section 1).
        if not self._own.is_current():
            reason = self._own.superseded()
            self._dead = reason
            everyone = units + [unit for unit, _ in failed]
            return lambda: self._die(everyone, reason)
        end, segment = self._offset, self._segment
        self.groups += 1
        seconds = self._clock.monotonic() - started
        return lambda: self._deliver(
            units, failed, opened, segment=segment, end=end, seconds=seconds
        )

    def _read_sources(self, units: list[Unit], failed: list[tuple[Unit, SpoolError]]) -> list[Unit]:
        kept = []
        for unit in units:
            if unit.source is not None:
                try:
                    unit.records = unit.source()
                except OSError as error:
                    failed.append((unit, as_spool_error(error, "a message cannot be read back")))
                    continue
                unit.source = None
                unit.octets = records_octets(unit.records)
            kept.append(unit)
        return kept

    def _write(
        self,
        units: list[Unit],
        records: list[Record],
        octets: int,
        failed: list[tuple[Unit, SpoolError]],
        opened: list[tuple[Segment, Segment | None]],
    ) -> list[Unit]:
        """Put the units' records into one synced batch; answers the units that are in it."""
        need = batch_octets(len(records), octets)
        segment = self._segment
        if segment is not None and self._offset + need + _NEXT_OCTETS <= segment.size:
            try:
                self._write_batch(units, records, 0)
                return units
            except OSError:
                # This segment is closed for ever: its dirty pages may be gone, and a second sync
                # would say "done". Whatever of the batch reached the disk lies behind the good
                # end that CONTINUES states, so no reader ever takes it.
                return self._write_into_next(units, records, need, failed, opened, good=False)
        return self._write_into_next(units, records, need, failed, opened, good=True)

    def _write_into_next(
        self,
        units: list[Unit],
        records: list[Record],
        need: int,
        failed: list[tuple[Unit, SpoolError]],
        opened: list[tuple[Segment, Segment | None]],
        *,
        good: bool,
    ) -> list[Unit]:
        before, fd, good_end = self._segment, self._fd, self._offset
        room = HEADER_OCTETS + need + 2 * _NEXT_OCTETS
        try:
            spare = self._next_file(room, any(unit.carries_mail for unit in units))
        except OSError as error:
            if good:
                # Nothing was written, so mail may be refused at once; outcomes go on without it.
                reason = as_spool_error(error, "no new log segment")
                failed += [(unit, reason) for unit in units if unit.carries_mail]
                units = [unit for unit in units if not unit.carries_mail]
                records, octets = _joined(units)
                if not records:
                    return units
                need = batch_octets(len(records), octets)
            # Else the records may have reached the disk: no reply before CONTINUES is durable.
            spare = self._small_file(HEADER_OCTETS + need + 2 * _NEXT_OCTETS)
        segment = Segment(self._own.epoch, spare.number, spare.generation, new_tag(), spare.size)
        if before is not None and good:
            self._write_next(before, fd, good_end, segment)
        if fd >= 0:
            self._disk.close(fd)
        if before is None:
            record = encode_continues(0, 0, 0, 0)
        else:
            record = encode_continues(before.epoch, before.number, before.generation, good_end)
        self._segment, self._fd = segment, spare.fd
        self._offset, self._sequence = HEADER_OCTETS, 0
        opened.append((segment, before))
        try:
            self._write_batch(units, [(CONTINUES, b"", record, (), 0), *records], 1)
        except OSError as error:
            raise _cannot(error) from error
        return units

    def _write_batch(self, units: list[Unit], records: list[Record], first: int) -> None:
        """The units' records stand behind `first` others. @raise OSError: nothing of it may be
        relied upon.
        """
        segment = self._segment
        assert segment is not None, "a segment was opened before"
        self._sequence += 1
        pieces, places, octets = encode_batch(
            records,
            segment.tag,
            self._own.epoch,
            self._sequence,
            self._offset,
            wall=self._clock.wall(),
        )
        offset = self._offset
        if first:
            pieces.insert(0, header(segment))
            offset = 0
        disk = self._disk
        disk.pwritev(self._fd, pieces, offset)
        disk.fdatasync(self._fd)
        self._offset += octets
        at = first
        for unit in units:
            until = at + len(unit.records)
            unit.places = places[at:until]
            at = until

    def _write_next(self, before: Segment, fd: int, offset: int, after: Segment) -> None:
        record: Record = (NEXT, b"", encode_next(after.epoch, after.number), (), 0)
        pieces, _, _ = encode_batch(
            [record],
            before.tag,
            self._own.epoch,
            self._sequence + 1,
            offset,
            wall=self._clock.wall(),
        )
        try:
            self._disk.pwritev(fd, pieces, offset)
            self._disk.fdatasync(fd)
        except OSError:
            pass  # the successor's CONTINUES says the same, with the last good end

    def _next_file(self, room: int, carries_mail: bool) -> Spare:
        current = self._segment.number if self._segment is not None else 0
        while self._spares:
            spare = self._spares.popleft()
            # Numbers ascend along the chain: one that was filled too slowly came too late.
            if spare.size >= room and spare.number > current:
                return spare
            self._disk.close(spare.fd)
            self._disk.unlink(path_of(self._directory, spare.epoch, spare.number))
        size = max(self._segment_size if self._segment else self._first_size, room)
        if carries_mail and not self._has_room(size):
            size = max(min(self._segment_size, self._first_size), room)
            if not self._has_room(size):
                raise OSError(errno.ENOSPC, "only the reserve is left")
        return fill(self._directory, self._own.epoch, self.take_number(), size)

    def _small_file(self, room: int) -> Spare:
        """For outcomes, which may use the reserve."""
        self._free_reserve()
        size = max(min(self._first_size, self._segment_size), room)
        try:
            return fill(self._directory, self._own.epoch, self.take_number(), size)
        except OSError as error:
            raise _cannot(error) from error

    # back on the reactor's side

    def _deliver(
        self,
        units: list[Unit],
        failed: list[tuple[Unit, SpoolError]],
        opened: list[tuple[Segment, Segment | None]],
        *,
        segment: Segment | None,
        end: int,
        seconds: float,
    ) -> None:
        if self._ended is not None:
            return  # everyone was told when the tenure ended
        try:
            ref = segment.ref if segment is not None else 0
            for new, before in opened:
                ref = self._on_segment(new, before)
            # First every fact, then the news: whoever is told may ask about any of them.
            records = octets = 0
            for unit in units:
                records += len(unit.places)
                octets += unit.octets
                if unit.apply is not None:
                    unit.apply(ref, unit.places)
            self._on_group(end, len(units), records, octets, seconds)
        except Exception as defect:  # half applied: memory no longer says what the log says
            self._die(units, _defect(defect))
            return
        # Whoever is told may find the epoch superseded: then `end` has told all the others.
        for unit in units:
            done = unit.done
            if done is not None and not done.called:
                self._outstanding.pop(unit, None)
                done.callback(None)
        for unit, error in failed:
            if unit.done is not None and not unit.done.called:
                self._outstanding.pop(unit, None)
                unit.done.errback(error)

    def _refuse(self, units: list[Unit], reason: MTAError) -> None:
        for unit in units:
            if unit.done is not None and not unit.done.called:
                self._outstanding.pop(unit, None)
                unit.done.errback(reason)

    def _die(self, units: list[Unit], reason: SpoolError) -> None:
        if self._ended is None:
            self.end(reason)
            self._on_fatal(reason)
        self._refuse(units, reason)


def _joined(units: list[Unit]) -> tuple[list[Record], int]:
    """All their records, and the octets of these."""
    records: list[Record] = []
    octets = 0
    for unit in units:
        records += unit.records
        octets += unit.octets
    return records, octets


def _cannot(error: OSError) -> Fenced:
    """No reply may be given: whether it is durable is not known, and cannot be found out."""
    return Fenced(
        "the log cannot be made durable",
        error.strerror or str(error),
        "this node gives the spool up; look at the kernel's log and at the file system",
    )


def _defect(error: BaseException) -> Fenced:
    return Fenced("the committer failed", f"{type(error).__name__}: {error}", "report this defect")


def full(what: str) -> Full:
    return Full(what, "only the reserve is left", "free space, or let the queue drain")


def unavailable(what: str, why: str = "") -> Unavailable:
    return Unavailable(what, why, "")
