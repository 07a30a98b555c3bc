"""Reading the predecessor: its newest whole checkpoint, then its log to the last whole batch.

Law: publish, then read. No log older than the predecessor's is ever read, and nothing behind what
was scanned; every file relied upon is synced before it is relied upon, for it may be another's
unsynced page. A damaged record of one message is set aside and reported; only a predecessor whose
checkpoints are all bad stops a takeover. Nothing here writes. Blocking; runs on a worker thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from mta.errors import Corrupt
from mta.model import CLOCK_AHEAD_SECONDS, CLOCK_BEHIND_SECONDS, Doubt, FourTuple
from mta.spool import checkpoint
from mta.spool.checkpoint import Checkpoint
from mta.spool.directory import PARTS, Directory
from mta.spool.files import Files
from mta.spool.ledger import Ledger, Replay
from mta.spool.records import NEXT, decode_continues
from mta.spool.segment import (
    HEADER_OCTETS,
    Batch,
    Segment,
    batches,
    bodies_are_whole,
    path_of,
    predecessor_of,
    read_header,
)


@dataclass(slots=True)
class Recovered:
    """What the new owner starts from."""

    ledger: Ledger
    predecessor: int
    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Worth a line, no damage: a tail that was torn by a crash."""
    sweep: list[str] = field(default_factory=list)
    """Names of older epochs that nothing refers to."""
    open_associations: list[FourTuple] = field(default_factory=list)
    batches: int = 0


@dataclass(slots=True)
class _Link:
    """A segment of the predecessor's chain and where it ends by its successor's word."""

    segment: Segment
    fd: int
    limit: int
    is_last: bool


def recover(directory: Directory, epoch: int, *, sync: bool = True) -> Recovered:
    """The state at the beginning of `epoch`. With `sync` off (offline check) nothing is touched.
    @raise Corrupt: every checkpoint of the predecessor is bad. @raise OSError.
    """
    found = _predecessor(directory, epoch)
    if found is None:
        made = Recovered(Ledger(), 0)
    else:
        start, notes = found
        made = Recovered(start.ledger, start.epoch, notes=notes)
        _follow(directory, made, sync)
        made.open_associations = [a.ends for a in made.ledger.associations.values()]
        made.ledger.conclude(made.predecessor)
        if sync:
            _sync_relied_upon(directory, made)
    made.sweep = unreferenced(directory, made.ledger, epoch)
    made.ledger.position.number = made.ledger.position.offset = 0
    return made


def salvage(directory: Directory) -> Recovered:
    """All that any segment still says, for a spool whose checkpoints are lost: an explicit act of a
    person, never of a takeover. Writes nothing; every segment is read from its beginning.

    It brings back too much, never too little: a message whose DONE lay in a segment that was freed
    since lives again, and so does one that a superseded owner wrote and never acknowledged. So each
    is in doubt, and is sent last.
    """
    disk = directory.disk
    made = Recovered(Ledger(), 0)
    replay = Replay(made.ledger, salvages=True)
    for epoch, number in sorted(_segment_names(directory)):
        fd = disk.open(path_of(directory, epoch, number), os.O_RDONLY)
        try:
            _face_the_medium(disk, fd)
            segment = read_header(disk, fd, epoch, number)
            if segment is None:
                made.notes.append(f"seg/{epoch}.{number}: a spare, or its header is damaged")
                continue
            made.predecessor = max(made.predecessor, epoch)
            _read_link(directory, made, replay, _Link(segment, fd, segment.size, True))
        finally:
            disk.close(fd)
    ledger = made.ledger
    ledger.conclude(made.predecessor)
    for slot in ledger.index.live_slots():
        name = ledger.index.queue_id(slot)
        ledger.doubts.add(Doubt("outbound", name, "salvage", "", (), made.predecessor))
    _sync_relied_upon(directory, made)
    unused = [ref for ref, segment in ledger.segments.items() if not segment.live_records]
    for ref in unused:
        del ledger.segments[ref]
    ledger.position.number = ledger.position.offset = 0
    return made


def _segment_names(directory: Directory) -> Iterator[tuple[int, int]]:
    for name in directory.disk.listdir(directory.join("seg")):
        of, _, number = name.partition(".")
        if of.isdecimal() and number.isdecimal():
            yield int(of), int(number)


def clock_suspect(last: float, now: float) -> str:
    """In words, when wall time cannot be trusted against the log's; "" when it can."""
    if not last or last - CLOCK_BEHIND_SECONDS <= now <= last + CLOCK_AHEAD_SECONDS:
        return ""
    side = "behind" if now < last else "ahead of"
    return (
        f"the clock is {abs(now - last):.0f} s {side} the last batch of the log; nothing expires "
        "until it agrees"
    )


def _predecessor(directory: Directory, epoch: int) -> tuple[Checkpoint, list[str]] | None:
    """The newest older epoch that has a checkpoint: only then had it acted."""
    for older, numbers in sorted(checkpoint.known(directory).items(), reverse=True):
        if older >= epoch:
            continue
        notes: list[str] = []
        for number in reversed(numbers):
            name = f"ckpt/{older}.{number}"
            try:
                return checkpoint.read(directory, older, number), notes
            except (ValueError, OSError) as error:
                notes.append(f"{name} cannot be used: {error}; an older one stands in")
        raise Corrupt(
            f"no checkpoint of epoch {older} in {directory.path} is whole",
            "; ".join(notes),
            f"`mta spool check {directory.path}` says what is left; `mta spool recover "
            f"{directory.path}` reads every segment, and says what may be sent twice",
        )
    return None


# --- following the log --------------------------------------------------------------------------


def _follow(directory: Directory, made: Recovered, sync: bool) -> None:
    replay = Replay(made.ledger)
    links = _chain(directory, made, sync)
    try:
        for link in links:
            _read_link(directory, made, replay, link)
    finally:
        for link in links:
            directory.disk.close(link.fd)


def _face_the_medium(disk: Files, fd: int) -> None:
    """What is read from here on lies on the medium: neither unsynced, nor lost to a sync that
    failed under a predecessor on this very node.
    """
    disk.fdatasync(fd)
    disk.drop_cache(fd)


def _chain(directory: Directory, made: Recovered, sync: bool) -> list[_Link]:
    """The predecessor's segments from its checkpoint's position on, in the order of CONTINUES."""
    disk, epoch = directory.disk, made.predecessor
    start = made.ledger.position.number
    found: dict[int, tuple[Segment, int]] = {}
    before: dict[int, tuple[int, int]] = {}
    """Previous segment's number -> (its successor's, its last good end)."""
    for name in disk.listdir(directory.join("seg")):
        of, _, text = name.partition(".")
        if of != str(epoch) or not text.isdecimal() or int(text) < start:
            continue
        number = int(text)
        fd = disk.open(path_of(directory, epoch, number), os.O_RDONLY)
        if sync:
            _face_the_medium(disk, fd)
        segment = read_header(disk, fd, epoch, number)
        if segment is None:
            disk.close(fd)  # a spare, or its header never became durable
            continue
        found[number] = (segment, fd)
        said = predecessor_of(disk, fd, segment)
        if said is not None and said[0] in {0, epoch} and said[1] >= start:
            before[said[1]] = (number, said[3])
    links: list[_Link] = []
    at = start
    if start and start in found:
        segment, fd = found.pop(start)
        links.append(_Link(segment, fd, segment.size, True))
    elif start:
        made.set_aside.append(_lost(epoch, start))
    while True:
        number, good_end = before.pop(at, (0, 0))
        if number not in found and links and found:
            number, good_end = _named_by_next(disk, links[-1]), links[-1].limit
        if number not in found and before:
            # Later segments exist: this one lost its first record, its header or all of it.
            missing = min(before)
            number, good_end = before.pop(missing)
            made.set_aside.append(_lost(epoch, missing))
        if number not in found:
            break
        if links:
            links[-1].limit = min(links[-1].limit, good_end)
            links[-1].is_last = False
        segment, fd = found.pop(number)
        links.append(_Link(segment, fd, segment.size, True))
        at = number
    for _, fd in found.values():
        disk.close(fd)
    return links


def _lost(epoch: int, number: int) -> str:
    return f"seg/{epoch}.{number} is missing or has lost its header: its records are not known"


def _named_by_next(disk: Files, link: _Link) -> int:
    """What the last record says that comes behind, or 0."""
    named = 0
    for batch in batches(disk, link.fd, link.segment, HEADER_OCTETS, link.limit):
        for view in batch.records:
            if view.kind == NEXT:
                named = decode_continues(view.payload)[1]
    return named


def _read_link(directory: Directory, made: Recovered, replay: Replay, link: _Link) -> None:
    ledger, disk = made.ledger, directory.disk
    segment = link.segment
    for ref, listed in ledger.segments.items():
        if (listed.epoch, listed.number) == (segment.epoch, segment.number):
            segment.ref = ref
            listed.tag, listed.generation, listed.size = (
                segment.tag,
                segment.generation,
                segment.size,
            )
            break
    else:
        ledger.add_segment(segment)
    position = ledger.position
    start = HEADER_OCTETS
    if position.number == segment.number:
        start = max(start, position.offset)
    held: Batch | None = None
    for batch in batches(disk, link.fd, segment, start, link.limit):
        if held is not None:
            _apply(made, replay, segment, held)
        held = batch
    if held is None:
        return
    # Every batch but the last is proven: the next was written only after its sync. The last one
    # of a segment that has a successor is proven by CONTINUES.
    if link.is_last and not (held.is_whole and bodies_are_whole(disk, link.fd, held)):
        made.notes.append(
            f"seg/{segment.name}: the last batch, at offset {held.offset}, is not whole and was "
            "never acknowledged, or was damaged since: left out"
        )
        return
    _apply(made, replay, segment, held)


def _apply(made: Recovered, replay: Replay, segment: Segment, batch: Batch) -> None:
    made.batches += 1
    ledger = made.ledger
    ledger.wall = max(ledger.wall, batch.wall)
    where = f"seg/{segment.name}"
    made.set_aside += [f"{where} offset {at}: a record is damaged" for at in batch.damaged]
    for view in batch.records:
        if view.kind == NEXT:
            continue
        try:
            replay.apply(view, segment.ref)
        except (ValueError, struct.error) as error:
            made.set_aside.append(
                f"{where} offset {view.place.offset}: message {view.queue_id}: {error}"
            )


def _sync_relied_upon(directory: Directory, made: Recovered) -> None:
    """We may have read another node's unsynced pages; from now on they are ours to rely upon."""
    disk = directory.disk
    paths = [path_of(directory, s.epoch, s.number) for s in _used(made.ledger)]
    paths += [directory.join("big", big.name) for big in made.ledger.bigs.values()]
    for path in paths:
        try:
            fd = disk.open(path, os.O_RDONLY)
        except FileNotFoundError:
            made.set_aside.append(f"{path} is missing: what lay there is lost")
            continue
        try:
            disk.fdatasync(fd)
        finally:
            disk.close(fd)
    for part in PARTS:
        disk.sync_directory(directory.join(part))


def _used(ledger: Ledger) -> Iterator[Segment]:
    return (segment for segment in ledger.segments.values() if segment.live_records)


# --- what is left over --------------------------------------------------------------------------


def unreferenced(directory: Directory, ledger: Ledger, epoch: int) -> list[str]:
    """Names made by older epochs that the ledger does not refer to: the new owner's checkpoint
    lists them, and only then may it unlink them.
    """
    disk = directory.disk
    for ref in [r for r, segment in ledger.segments.items() if not segment.live_records]:
        del ledger.segments[ref]
    kept = {f"seg/{segment.name}" for segment in ledger.segments.values()}
    kept |= {f"big/{big.name}" for big in ledger.bigs.values()}
    found = []
    for part in ("seg", "big", "part", "ckpt", "epoch"):
        for name in sorted(disk.listdir(directory.join(part))):
            of, dot, number = name.partition(".")
            path = f"{part}/{name}"
            if dot and of.isdecimal() and number.isdecimal():
                if int(of) < epoch and path not in kept:
                    found.append(path)
            elif name.startswith(("new-", "probe-")):
                found.append(path)  # aside files bear random names; no running owner needs them
    return found
