"""Upkeep: checkpoints, spares, freeing, compaction, the reserve. Nobody waits for any of it.

Law: what makes bytes dead is durable, then the epoch is re-read, only then are they destroyed. A
segment goes only when nothing live lies in it and the two newest checkpoints are durable past it.
Only own segments are recycled. Only own names, or names that an own checkpoint lists, are unlinked.
One piece of upkeep at a time, each blocking step on the executor.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from mta.interfaces import ITimer
from mta.spool import checkpoint, epoch
from mta.spool.compaction import compact
from mta.spool.segment import Segment, fill, path_of, recycle

if TYPE_CHECKING:
    from mta.spool.owned import OwnedLog

_RESERVE_FILE = 32 << 20
"""At most so much of the reserve is a file: room that a takeover can make even when other
programs have filled the disk."""
_FILL = bytes(1 << 20)
_LOOK_SECONDS = 1.0
_REPLAY_RECORDS = 4096
"""What a takeover may have to replay: 7 us a record, so 30 ms (measured)."""
_REPLAY_SHARE = 16
"""Of a long queue one record for so many messages: its checkpoint is large, and read fast."""
_CHECKPOINT_SECONDS = 1.0
"""Checkpoints for the sake of replay are not closer together."""


class Upkeep:
    """Behind one OwnedLog, from its seal to its end."""

    def __init__(self, owned: OwnedLog, sweep: list[str]) -> None:
        self._owned = owned
        self._sweep = sweep
        self._running = False
        self._again = False
        self._checkpoints: list[tuple[int, int]] = []
        """(number, segment of its position) of the two newest durable ones."""
        self._next_checkpoint = 0
        self._checkpoint_took(0)
        self._checkpoint_due = False
        self.current: Segment | None = None
        self.written = 0
        """Octets of log since the last checkpoint."""
        self._records = 0
        """Records since the last checkpoint was begun."""
        self._checkpoint_at = -_CHECKPOINT_SECONDS
        self._replay: ITimer | None = None
        self._is_long = False
        self.free_octets = 1 << 62
        self.reserve_file_octets = 0
        self._reserve_lost = False
        self._has_slot = False
        self._looking = False

    # room

    def _checkpoint_took(self, octets: int) -> None:
        """Room for two checkpoints, a segment, and a takeover's first one: grows with the queue."""
        self._checkpoint_octets = octets
        settings = self._owned.settings
        needed = 3 * octets + settings.segment_size + settings.first_segment_size
        self.reserve_octets = max(settings.reserve, needed)

    def takes(self, octets: int) -> bool:
        """May mail have so much of the disk, as it was when last measured."""
        return self.free_octets + self.reserve_file_octets - octets >= self.reserve_octets

    def look_again(self) -> None:
        """Mail was refused for want of room: measure, and free what can be freed, once a second
        until there is some. Without mail no segment fills, so nothing else would ever look.
        """
        if not self._looking:
            self._looking = True
            self._look()

    def _look(self) -> None:
        if self._owned.ended is not None or self.takes(0):
            self._looking = False
            return
        self.kick()
        self._owned.clock.call_later(_LOOK_SECONDS, self._look)

    def has_room(self, size: int) -> bool:
        """On the committer's thread: may mail have a new segment of that size."""
        free = self._owned.directory.disk.free_octets(self._owned.directory.path)
        return free + self.reserve_file_octets - size >= self.reserve_octets

    def free_reserve(self) -> None:
        """On any worker: give the reserve file's room to outcomes and checkpoints."""
        self.reserve_file_octets = 0
        self._reserve_lost = True
        directory = self._owned.directory
        try:
            directory.disk.unlink(directory.join("reserve"))
        except OSError:
            pass  # it was not there, or the disk is beyond help: the next write says so

    def measure(self) -> None:
        """On a worker."""
        directory = self._owned.directory
        self.free_octets = directory.disk.free_octets(directory.path)

    def measured(self) -> None:
        """Once a second, on the owning thread: when a full disk has room again, what was kept for
        that day is put back at once. The next owner may need it before a segment has filled.
        """
        settings = self._owned.settings
        free, has_reserve = self.free_octets, bool(self.reserve_file_octets or not settings.reserve)
        lacks_reserve = not has_reserve and free >= 2 * settings.reserve
        if lacks_reserve or (not self._has_slot and free >= epoch.SLOT_OCTETS):
            self.kick()

    # the seal and after

    def seal_pieces(self) -> list[bytes]:
        """ckpt/E.0, encoded on the owning thread."""
        owned = self._owned
        self._next_checkpoint = 1
        return checkpoint.encode(owned.ledger, owned.own.epoch, 0, owned.clock.wall(), self._sweep)

    def sealed(self, octets: int) -> None:
        self._checkpoint_took(octets)
        self._checkpoints = [(0, 0)]

    def start(self) -> None:
        """After the seal: sweep, fill the reserve, fill spares."""
        self.kick()

    def segment_opened(self, new: Segment, before: Segment | None) -> None:
        self.current = new
        if before is not None:
            self._checkpoint_due = True

    def committed(self, octets: int, records: int) -> None:
        """So much more log. Whoever takes over replays what no checkpoint speaks for: when that
        grows long, a checkpoint is due, however small the log is.
        """
        self.written += octets
        self._records += records
        if self._records < _REPLAY_RECORDS or self._replay is not None:
            return
        owned = self._owned
        if self._records >= len(owned.ledger.index) // _REPLAY_SHARE:
            wait = self._checkpoint_at + _CHECKPOINT_SECONDS - owned.clock.monotonic()
            self._replay = owned.clock.call_later(max(0.0, wait), self._replay_is_long)

    def _replay_is_long(self) -> None:
        self._is_long = True
        self.kick()

    def kick(self) -> None:
        if self._running:
            self._again = True
        elif self._owned.ended is None:
            self._running = True
            Deferred.fromCoroutine(self._run()).addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        self._running = False
        if self._owned.ended is None:
            self._owned.telemetry.notice(
                "warning", "spool", f"upkeep: {failure.getErrorMessage()}; tried again later"
            )

    async def _run(self) -> None:
        self._again = True
        while self._again and self._owned.ended is None:
            self._again = False
            await self._work(self.measure)
            # A checkpoint is large when the queue is: not more often than the log grows by it.
            due = self._checkpoint_due and self.written >= self._checkpoint_octets
            if due or self._is_long:
                await self.checkpoint()
            await self._free()
            await self._fill_spares()
            if self._sweep:
                await self._second_checkpoint()
                names, self._sweep = self._sweep, []
                await self._work(self._sweep_names, names)
            await self._make_reserve()
            if self._owned.ended is None:
                await compact(self._owned, self._closed_segments())
        self._running = False

    async def _second_checkpoint(self) -> None:
        """The predecessor's checkpoints are about to go: from then on a damaged one of ours needs
        another of ours to stand in for it. Where there is no room the sweep comes first.
        """
        if len(self._checkpoints) < 2:
            try:
                await self.checkpoint()
            except OSError as error:
                self._owned.telemetry.notice(
                    "warning", "spool", f"one checkpoint only, for a while: {error}"
                )

    async def _work(self, call: Any, *arguments: object) -> Any:
        return await self._owned.executor.submit(call, *arguments)

    # checkpoints

    async def checkpoint(self) -> None:
        """Write the next one; the two newest stay. @raise OSError: it does not exist."""
        owned = self._owned
        owned.ledger.transactions.forget_expired(owned.clock.wall())
        was_due, written = self._checkpoint_due, self.written
        self._checkpoint_due = self._is_long = False
        self.written = self._records = 0
        self._checkpoint_at = owned.clock.monotonic()
        if self._replay is not None:
            self._replay.cancel()
            self._replay = None
        number = self._next_checkpoint
        self._next_checkpoint += 1
        position = owned.ledger.position.number
        pieces = checkpoint.encode(
            owned.ledger, owned.own.epoch, number, owned.clock.wall(), self._sweep
        )
        try:
            octets = await self._work(self._write_checkpoint, number, pieces)
        except OSError:
            # Wanted as much as before: no segment is freed without it.
            self._checkpoint_due |= was_due
            self.written += written
            raise
        self._checkpoint_took(octets)
        self._checkpoints.append((number, position))
        # The seal's own name goes like any other: a later checkpoint proves that it was there.
        while len(self._checkpoints) > 2:
            old, _ = self._checkpoints.pop(0)
            await self._work(self._sweep_names, [f"ckpt/{owned.own.epoch}.{old}"])

    def _write_checkpoint(self, number: int, pieces: list[bytes]) -> int:
        owned = self._owned
        try:
            return checkpoint.write(owned.directory, owned.own.epoch, number, pieces)
        except FileExistsError:
            raise
        except OSError:
            if self._reserve_lost:
                raise
            self.free_reserve()
            return checkpoint.write(owned.directory, owned.own.epoch, number, pieces)

    # segments

    async def _fill_spares(self) -> None:
        owned = self._owned
        size = owned.settings.segment_size
        while owned.ended is None and owned.committer.spares < owned.settings.spares:
            if not await self._work(self.has_room, size):
                return
            number = owned.committer.take_number()
            spare = await self._work(fill, owned.directory, owned.own.epoch, number, size)
            if owned.ended is not None:
                owned.directory.disk.close(spare.fd)
                return
            owned.committer.add_spare(spare)

    def _closed_segments(self) -> list[Segment]:
        """Those that both checkpoints are past."""
        owned = self._owned
        past = min((segment for _, segment in self._checkpoints), default=0)
        return [
            segment
            for segment in owned.ledger.segments.values()
            if segment is not self.current
            and (segment.epoch != owned.own.epoch or segment.number < past)
        ]

    async def _free(self) -> None:
        owned = self._owned
        for segment in self._closed_segments():
            if segment.live_records or segment.pins or owned.ended is not None:
                continue
            # A taken message's content may still be asked for; nothing live means none is.
            del owned.ledger.segments[segment.ref]
            owned.reader.forget(segment)
            spares = owned.committer.spares
            reusable = (
                segment.epoch == owned.own.epoch
                and segment.size == owned.settings.segment_size
                and spares < owned.settings.spares
            )
            number = owned.committer.take_number() if reusable else 0
            spare = await self._work(self._destroy, segment, number)
            if spare is not None and owned.ended is None:
                owned.committer.add_spare(spare)

    def _destroy(self, segment: Segment, number: int) -> Any:
        """On a worker: the law of section 1, then unlink or reuse."""
        owned = self._owned
        if not owned.own.is_current():
            return None
        if number:
            return recycle(owned.directory, segment, number)
        owned.directory.disk.unlink(path_of(owned.directory, segment.epoch, segment.number))
        return None

    # names left over

    def _sweep_names(self, names: list[str]) -> None:
        owned = self._owned
        disk = owned.directory.disk
        for name in names:
            if not owned.own.is_current():
                return
            try:
                disk.unlink(owned.directory.join(name))
            except FileNotFoundError:
                pass
        for old in epoch.epochs(owned.directory)[: -epoch.KEPT]:
            if old < owned.own.epoch and owned.own.is_current():
                disk.unlink(epoch.path_of(owned.directory, old))

    # the reserve

    async def _make_reserve(self) -> None:
        if not self.reserve_file_octets:
            self.reserve_file_octets = await self._work(self._fill_reserve)
            self._reserve_lost = not self.reserve_file_octets
            await self._work(self.measure)
        if not self._has_slot:
            self._has_slot = await self._work(self._make_slot)

    def _make_slot(self) -> bool:
        """On a worker: room for the next owner's claim on a disk without a free block."""
        try:
            epoch.make_slot(self._owned.directory, self._owned.own.epoch)
        except OSError:
            return False
        return True

    def _fill_reserve(self) -> int:
        """On a worker: its octets, 0 when there is no room for it now."""
        owned = self._owned
        disk, path = owned.directory.disk, owned.directory.join("reserve")
        size = min(_RESERVE_FILE, owned.settings.reserve // 4)
        if disk.exists(path):
            fd = disk.open(path, os.O_RDWR)
            have = disk.size(fd)
        elif disk.free_octets(owned.directory.path) < 2 * owned.settings.reserve:
            return 0
        else:
            fd = disk.open(path, os.O_RDWR | os.O_CREAT)
            have = 0
        try:
            while have < size:
                octets = min(len(_FILL), size - have)
                disk.pwritev(fd, [_FILL[:octets]], have)
                have += octets
            disk.fdatasync(fd)
            disk.sync_directory(owned.directory.path)
        except OSError:
            disk.unlink(path)
            return 0
        finally:
            disk.close(fd)
        return have
