"""The log spool: ISpool over a directory that two nodes may believe to own.

Law: spool.md. Publish, then read; justify durably, re-read the epoch, then act. This module is the
life of a tenure (inspect, publish, recover, seal, release, abandon); what happens under a sealed
epoch is `mta.spool.owned`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import Corrupt, Fenced, Full, MTAError, SpoolError, StartRefused, Unavailable
from mta.interfaces import (
    IAssociations,
    IContent,
    IDoubts,
    IEpochFile,
    IRoom,
    ISpool,
    IStaging,
    ISurroundings,
    ISuspension,
    IUsedInstances,
)
from mta.model import (
    AddressInstance,
    Claim,
    Doubt,
    DueWork,
    Envelope,
    EpochRecord,
    Fencing,
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
    Sharing,
    SpoolStats,
)
from mta.spool import checkpoint, epoch
from mta.spool.directory import Directory, as_spool_error
from mta.spool.epoch import OwnEpoch
from mta.spool.ledger import Ledger
from mta.spool.owned import OwnedLog
from mta.spool.recovery import Recovered, clock_suspect, recover
from mta.spool.scan import scan
from mta.spool.segment import read_header
from mta.spool.settings import LogSpoolSettings

__all__ = ["LogSpool", "LogSpoolSettings"]

T = TypeVar("T")


@implementer(ISpool, IAssociations, IDoubts, IRoom, IEpochFile, ISuspension, IUsedInstances)
class LogSpool:
    """One virtual server's spool, as one node sees it. Usable for one tenure after another.

    `on_fatal(reason)`, when set, hears once that the log cannot be made durable (or is
    superseded): the tenure is over, no reply may be given.
    """

    def __init__(self, settings: LogSpoolSettings, surroundings: ISurroundings) -> None:
        self.settings = settings
        self.epoch = 0
        self.on_fatal: Callable[[SpoolError], None] | None = None
        self.guarantees = Guarantees(
            durable="fsync", shared=settings.sharing is not Sharing.NONE, fenced_in_store=True
        )
        self._clock = surroundings.clock
        self._executor = surroundings.executor
        self._telemetry = surroundings.telemetry
        self._node = surroundings.node
        self._directory = Directory(surroundings.disk, settings.directory)  # type: ignore[arg-type]
        self._own: OwnEpoch | None = None
        self._recovered: Recovered | None = None
        self._log: OwnedLog | None = None
        self._previous: OwnedLog | None = None
        """The tenure before, until its threads have ended."""
        self._left: OwnEpoch | None = None
        """An epoch that was abandoned without its mark R."""
        self._beating = False

    # --- life of a tenure ---

    def inspect(self) -> Deferred[tuple[EpochRecord, ...]]:
        return self._blocking(self._inspect, f"spool {self._directory.path} cannot be read")

    def _inspect(self) -> tuple[EpochRecord, ...]:
        settings, directory = self.settings, self._directory
        private = settings.sharing is Sharing.NONE
        directory.inspect(settings.initialise, make_missing=private or settings.initialise)
        directory.check_filesystem(settings.sharing, settings.allow_filesystem)
        found = epoch.read_epochs(directory)
        self._check_segments()
        try:
            directory.probe(self._node)
        except Full:
            # Nothing is left for the probe; a takeover finds its room in what was kept for it.
            if not (directory.disk.exists(directory.join("reserve")) and epoch.slots(directory)):
                raise
        free = directory.disk.free_octets(directory.path)
        needed = 2 * settings.first_segment_size
        if free < needed and not directory.disk.exists(directory.join("reserve")):
            raise Full(
                f"spool {directory.path} has {free} octets left",
                f"a takeover needs {needed}",
                "free space on that file system",
            )
        return found

    def _check_segments(self) -> None:
        """The newest segment's header, so that a format of tomorrow refuses before publishing."""
        directory = self._directory
        names = [n for n in directory.disk.listdir(directory.join("seg")) if "." in n]
        if not names:
            return
        newest = max(names, key=lambda name: tuple(int(part) for part in name.split(".")))
        of, _, number = newest.partition(".")
        fd = directory.disk.open(directory.join("seg", newest), os.O_RDONLY)
        try:
            read_header(directory.disk, fd, int(of), int(number))
            head = directory.disk.pread(fd, 12, 0)
        finally:
            directory.disk.close(fd)
        version = int.from_bytes(head[8:12], "little")
        if head[:8] == b"MTA\x00SEG\x00" and version > 1:
            raise StartRefused(
                f"seg/{newest} has format {version}",
                "this program knows format 1",
                "run the version that wrote it, or a newer one",
                os.EX_CONFIG,
            )

    def publish(self, claim: Claim, above: int) -> Deferred[int]:
        if self.settings.sharing is Sharing.FAILOVER_MOUNT and (
            claim.grant.fencing is not Fencing.EXTERNAL
        ):
            return fail(
                StartRefused(
                    f"spool {self._directory.path} is shared by failover-mount",
                    f"the cluster resource fences by {claim.grant.fencing.value}: a former owner "
                    "that still has it mounted would destroy it",
                    "use a resource with external fencing, or a cluster file system",
                    os.EX_CONFIG,
                )
            )
        previous = self._previous
        if previous is not None:
            if not previous.committer.is_idle:
                return fail(
                    Unavailable("the spool's committer is still in a disk call of its last tenure")
                )
            previous.close()
            self._previous = None
        self._forget_tenure()
        publishing = self._blocking(
            lambda: epoch.publish(self._directory, claim, above),
            f"epoch {above + 1} cannot be published",
        )
        return publishing.addCallback(self._published)

    def _published(self, number: int) -> int:
        own = OwnEpoch(self._directory, number, self.settings.sharing is Sharing.NFS)
        try:
            own.open()
        except OSError as error:
            raise as_spool_error(error, f"epoch/{number} cannot be opened") from error
        self._own = own
        self._left = None
        self.epoch = number
        return number

    def recover(self) -> Deferred[Recovery]:
        own = self._own
        if own is None:
            return fail(Fenced("nothing is published", "recover comes after publish"))
        started = self._clock.monotonic()
        reading = self._blocking(
            lambda: recover(self._directory, own.epoch), "the predecessor cannot be read"
        )

        def read(found: Recovered) -> Recovery:
            self._recovered = found
            for note in found.notes:
                self._telemetry.notice("info", "spool", note)
            for damage in found.set_aside:
                self._telemetry.notice("error", "spool", damage)
            return Recovery(
                predecessor=found.predecessor,
                messages=len(found.ledger.index),
                in_doubt=len(found.ledger.doubts),
                set_aside=tuple(found.set_aside),
                clock_suspect=clock_suspect(found.ledger.wall, self._clock.wall()),
                last_stamp=found.ledger.wall,
                seconds=self._clock.monotonic() - started,
                open_associations=tuple(found.open_associations),
            )

        return reading.addCallback(read)

    def seal(self) -> Deferred[None]:
        own, found = self._own, self._recovered
        if own is None or found is None:
            return fail(Fenced("nothing was recovered", "seal comes after recover"))
        log = OwnedLog(
            self.settings,
            self._directory,
            own,
            found.ledger,
            clock=self._clock,
            executor=self._executor,
            telemetry=self._telemetry,
            sweep=found.sweep,
            on_fatal=self._fatal,
        )
        pieces = log.upkeep.seal_pieces()

        def write() -> int:
            try:
                octets = checkpoint.write(self._directory, own.epoch, 0, pieces)
            except FileExistsError:
                raise
            except OSError:
                # Published already: the reserve is there for exactly this.
                log.upkeep.free_reserve()
                octets = checkpoint.write(self._directory, own.epoch, 0, pieces)
            if not own.is_current():
                raise own.superseded()
            log.upkeep.measure()
            return octets

        def sealed(octets: int) -> None:
            if self._own is not own:
                raise own.superseded()  # abandoned meanwhile
            self._recovered = None
            log.upkeep.sealed(octets)
            self._log = log
            log.start()

        return self._blocking(write, f"ckpt/{own.epoch}.0 cannot be written").addCallback(sealed)

    def check(self) -> None:
        log = self._log
        if log is not None:
            log.check()
            return
        own = self._own
        if own is None:
            raise Fenced("no epoch is held")
        if not own.is_current():
            raise own.superseded()

    def epoch_file(self) -> str:
        return "" if self._own is None else epoch.path_of(self._directory, self._own.epoch)

    def suspended(self, is_away: bool) -> None:
        if self._own is not None:
            self._own.is_away = is_away

    def used(self, instances: Sequence[AddressInstance]) -> None:
        if self._own is not None:
            self._own.used = tuple(instances)

    def heartbeat(self) -> None:
        own, log = self._own, self._log
        if own is None or self._beating:
            return  # a disk that hangs gets no second call to hang in
        self._beating = True
        if log is not None:
            log.committer.nothing_waits_long()

        def beat() -> None:
            own.beat()
            if log is not None:
                log.upkeep.measure()

        def beaten(result: object) -> None:
            self._beating = False
            if log is None:
                return
            if not isinstance(result, Failure):
                log.upkeep.measured()
                return
            if isinstance(result.value, Fenced):
                log.lose(result.value)
            else:
                log.telemetry.notice("warning", "spool", f"heartbeat: {result.value}")

        self._executor.submit(beat).addBoth(beaten)

    def release(self, reason: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._release(reason))

    async def _release(self, reason: str) -> None:
        log, own = self._log, self._own or self._left
        if log is not None and log.ended is None:
            done: Deferred[None] = Deferred()
            try:
                log.committer.flush(done)
                await done
                await log.upkeep.checkpoint()
            except (OSError, MTAError) as error:
                # Leaving all the same: what was acknowledged is in the log.
                self._telemetry.notice("warning", "spool", f"release: {error}")
        if own is not None:
            fenced = Fenced(f"epoch {own.epoch} was released", reason)
            if log is not None:
                log.end(fenced)
            self._left = None
            try:
                await self._executor.submit(own.release)
            except OSError as error:
                self._telemetry.notice("warning", "spool", f"release: {error}")
        self._forget_tenure()
        if self._previous is not None and self._previous.committer.is_idle:
            self._previous.close()
            self._previous = None

    def abandon(self) -> None:
        own, log = self._own, self._log
        if log is not None and own is not None:
            log.end(Fenced(f"epoch {own.epoch} is lost"))
        self._forget_tenure()
        # Nothing is promised under it any more: a release that follows may mark it, so that a
        # standby need not wait for its heartbeat to be missed.
        self._left = own or self._left

    def _forget_tenure(self) -> None:
        log, own = self._log, self._own
        if log is not None:
            self._previous = log
        elif own is not None:
            own.close()
        self._log = self._own = self._recovered = None
        self.epoch = 0

    def _fatal(self, reason: SpoolError) -> None:
        if self.on_fatal is not None:
            self.on_fatal(reason)

    def stuck_seconds(self) -> float:
        log = self._log or self._previous
        since = log.committer.busy_since if log is not None else None
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    # --- under a sealed epoch ---

    def check_room(self, octets: int) -> None:
        (self._log or _not_sealed()).check_room(octets)

    def stage(self, association: str) -> IStaging:
        return (self._log or _not_sealed()).stage(association)

    def open_association(self, slot: str, ends: FourTuple, inbound: bool) -> None:
        if self._log is not None:
            self._log.open_association(slot, ends, inbound)

    def close_association(self, slot: str) -> None:
        if self._log is not None:
            self._log.close_association(slot)

    def leave_association(self, slot: str) -> None:
        if self._log is not None:
            self._log.leave_association(slot)

    def journal(self, results: Sequence[Result], intents: Sequence[Intent]) -> Deferred[None]:
        if self._log is None:
            return fail(Fenced("the spool is not owned", "no epoch is sealed"))
        return self._log.journal(results, intents)

    def in_doubt(self) -> tuple[Doubt, ...]:
        if self._log is None:
            ledger = self._recovered.ledger if self._recovered is not None else Ledger()
            return tuple(ledger.doubts)
        return self._log.in_doubt()

    def doubts_of(self, queue_id: str) -> tuple[Doubt, ...]:
        return () if self._log is None else self._log.ledger.doubts.of(queue_id)

    def load(
        self, queue_id: str
    ) -> tuple[Envelope, MessageState] | Deferred[tuple[Envelope, MessageState]]:
        return (self._log or _not_sealed()).load(queue_id)

    def content(self, queue_id: str) -> IContent | Deferred[IContent]:
        return (self._log or _not_sealed()).content(queue_id)

    def due(self, now: float, limit: int, avoid: Collection[bytes]) -> list[DueWork]:
        return (self._log or _not_sealed()).due(now, limit, avoid)

    def next_due(self, avoid: Collection[bytes]) -> float | None:
        if self._log is None:
            return None
        return self._log.ledger.index.due_times.next_due(avoid)

    def give_back(self, queue_id: str, due: float | None) -> None:
        if self._log is not None:
            self._log.give_back(queue_id, due)

    def recall(self, client: str, transaction: str) -> Remembered | None:
        return None if self._log is None else self._log.recall(client, transaction)

    def forget_last(self, association: str) -> None:
        if self._log is not None:
            self._log.ledger.transactions.forget_last(association)

    def scan(self, chosen: QueueFilter, after: str, limit: int) -> Deferred[list[QueueEntry]]:
        if self._log is None:
            return fail(Fenced("the spool is not owned", "no epoch is sealed"))
        return Deferred.fromCoroutine(scan(self._log, chosen, after, limit))

    def act(self, queue_ids: Sequence[str], act: QueueAct, now: float) -> Deferred[list[str]]:
        log = self._log
        if log is None:
            return fail(Fenced("the spool is not owned", "no epoch is sealed"))
        applied, entry = log.act(queue_ids, act, now)
        if not applied:
            return succeed([])
        return log.write(entry).addCallback(lambda _: applied)

    def stats(self) -> SpoolStats:
        log = self._log
        if log is None:
            return SpoolStats(0, 0, 0, None, 0, self.settings.reserve)
        index = log.ledger.index
        return SpoolStats(
            messages=len(index),
            held=index.held,
            octets=index.octets,
            oldest_received_at=index.oldest_received(),
            free_octets=log.upkeep.free_octets,
            reserve_octets=log.upkeep.reserve_octets,
            by_domain=index.domains.by_domain(),
        )

    # --- inside ---

    def _blocking(self, call: Callable[[], T], what: str) -> Deferred[T]:
        """On a worker; an OSError becomes one of the five ways in which a store fails."""

        def failed(failure: Failure) -> Failure:
            if isinstance(failure.value, OSError):
                return Failure(as_spool_error(failure.value, what))
            if isinstance(failure.value, ValueError):
                return Failure(Corrupt(what, str(failure.value)))
            return failure

        return self._executor.submit(call).addErrback(failed)


def _not_sealed() -> NoReturn:
    raise Fenced("the spool is not owned", "no epoch is sealed")
