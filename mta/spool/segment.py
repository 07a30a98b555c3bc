"""Segments: files of the log, filled with zeros ahead, each with a random tag in its header.

Law: a name is made once (O_EXCL or link) and belongs to one epoch; a segment after a failed sync
is never written or synced again; readers go by batch records, never by the file's size.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from zlib import crc32

from mta.spool.directory import Directory
from mta.spool.files import Files
from mta.spool.records import (
    ALIGNMENT,
    BATCH_HEAD,
    CONTINUES,
    Place,
    RecordView,
    aligned,
    batch_crc,
    decode_continues,
    end_octets,
    head_lengths,
    parse_batch_head,
    parse_end,
    parse_record,
)

_HEADER = struct.Struct("<8sIIQQQQ")
_MAGIC = b"MTA\x00SEG\x00"
_FORMAT = 1
HEADER_OCTETS = ALIGNMENT
_FILL = bytes(1 << 20)
_DESCRIPTORS = 128
"""Segments open for reading: 8 GiB of log, and far from the usual limit of 1024 descriptors."""
_WINDOW = 32 << 10
"""Octets a reader takes at a time: with 4 KiB messages the whole log in one pass, with large ones
only their heads."""


@dataclass(slots=True)
class Segment:
    """One segment as its owner and every reader of the present epoch know it."""

    epoch: int
    number: int
    generation: int
    tag: int
    size: int
    ref: int = 0
    """The ledger's short name for it."""
    live_records: int = 0
    live_octets: int = 0
    pins: int = 0
    """Contents being read from it: it is not recycled meanwhile."""

    @property
    def name(self) -> str:
        return f"{self.epoch}.{self.number}"


@dataclass(slots=True)
class Spare:
    """A file that is filled and synced, name and all, and waits to become a segment."""

    fd: int
    epoch: int
    number: int
    generation: int
    size: int


def path_of(directory: Directory, epoch: int, number: int) -> str:
    return directory.join("seg", f"{epoch}.{number}")


def fill(directory: Directory, epoch: int, number: int, size: int) -> Spare:
    """Make a new file full of zeros, durable with its name. @raise OSError: nothing is left."""
    disk = directory.disk
    path = path_of(directory, epoch, number)
    fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        for at in range(0, size, len(_FILL)):
            disk.pwritev(fd, [_FILL[: min(len(_FILL), size - at)]], at)
        disk.fsync(fd)
        disk.sync_directory(directory.join("seg"))
    except OSError:
        disk.close(fd)
        try:
            disk.unlink(path)
        except OSError:
            pass  # the first error is the one to tell; a later owner sweeps the name
        raise
    return Spare(fd, epoch, number, 1, size)


def recycle(directory: Directory, old: Segment, number: int) -> Spare:
    """Give a dead segment of the own epoch a new name; its next header makes all of it stale."""
    disk = directory.disk
    source = path_of(directory, old.epoch, old.number)
    target = path_of(directory, old.epoch, number)
    disk.link(source, target)
    disk.unlink(source)
    disk.sync_directory(directory.join("seg"))
    return Spare(disk.open(target, os.O_RDWR), old.epoch, number, old.generation + 1, old.size)


def header(segment: Segment) -> bytes:
    """The first page of the file."""
    head = _HEADER.pack(
        _MAGIC, _FORMAT, 0, segment.epoch, segment.number, segment.generation, segment.tag
    )
    head += struct.pack("<I", crc32(head))
    return head + bytes(HEADER_OCTETS - len(head))


def new_tag() -> int:
    return secrets.randbits(64) | 1  # never zero: zeros are what a fresh file is full of


def read_header(disk: Files, fd: int, epoch: int, number: int) -> Segment | None:
    """What lies under that name, or None: a spare, another generation, or damaged."""
    octets = disk.pread(fd, _HEADER.size + 4, 0)
    if len(octets) < _HEADER.size + 4:
        return None
    magic, version, _, of, found, generation, tag = _HEADER.unpack_from(octets)
    (crc,) = struct.unpack_from("<I", octets, _HEADER.size)
    if magic != _MAGIC or version != _FORMAT or crc != crc32(octets[: _HEADER.size]):
        return None
    if (of, found) != (epoch, number):
        return None
    return Segment(epoch, number, generation, tag, disk.size(fd))


@dataclass(slots=True)
class Batch:
    """A batch as read back. `damaged` lists (offset, id if known) of records that are not whole."""

    offset: int
    end: int
    sequence: int
    wall: float = 0.0
    records: list[RecordView] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    has_end: bool = False
    crc_matches: bool = False

    @property
    def is_whole(self) -> bool:
        """Bodies apart, which only the last batch of a log needs to prove."""
        return self.has_end and self.crc_matches and not self.damaged


class _Window:
    """Reads ahead a little, so that a small record costs no system call."""

    def __init__(self, disk: Files, fd: int) -> None:
        self._disk = disk
        self._fd = fd
        self._start = 0
        self._octets = b""

    def get(self, offset: int, octets: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + octets > len(self._octets):
            self._octets = self._disk.pread(self._fd, max(octets, _WINDOW), offset)
            self._start, at = offset, 0
        return self._octets[at : at + octets]


def batches(disk: Files, fd: int, segment: Segment, start: int, limit: int) -> Iterator[Batch]:
    """Every batch from `start` that ends at or before `limit`, damaged ones included.

    Behind damage it goes on at the next multiple of 4 KiB where a batch begins that bears the tag
    and a higher sequence number.
    """
    window = _Window(disk, fd)
    tag = segment.tag
    at, last = start, 0
    while at + BATCH_HEAD <= limit:
        head = parse_batch_head(window.get(at, BATCH_HEAD), tag)
        if head is None or head[0] <= last or at + head[1] > limit:
            at += ALIGNMENT
            continue
        sequence, octets, count = head
        last = sequence
        yield _read_batch(window, tag, at, sequence=sequence, octets=octets, count=count)
        at += aligned(octets)


def _read_batch(
    window: _Window, tag: int, offset: int, *, sequence: int, octets: int, count: int
) -> Batch:
    batch = Batch(offset, offset + aligned(octets), sequence)
    tail = end_octets(count)
    end_at = offset + octets - tail
    at = offset + BATCH_HEAD
    # The END record is looked at only after the records, so that reading goes forward; its table
    # of lengths is needed only when a record is damaged.
    lengths: tuple[int, ...] = ()
    for index in range(count):
        view = _read_record(window, tag, at, end_at)
        if view is not None:
            batch.records.append(view)
            at += view.place.length
            continue
        batch.damaged.append(at)
        if not lengths:
            found = parse_end(window.get(end_at, tail), tag, count)
            if found is None:
                break  # without the table the rest of the batch cannot be told apart
            lengths = found[2]
        at += lengths[index]
    end = parse_end(window.get(end_at, tail), tag, count)
    if end is not None:
        batch.has_end = True
        batch.wall = end[0]
        batch.crc_matches = end[1] == batch_crc([view.place for view in batch.records], tag)
    return batch


def _read_record(window: _Window, tag: int, at: int, limit: int) -> RecordView | None:
    head = window.get(at, 28)
    if len(head) < 28:
        return None
    octets, body = head_lengths(head)
    if at + octets + body > limit:
        return None
    return parse_record(window.get(at, octets), tag, at)


def bodies_are_whole(disk: Files, fd: int, batch: Batch) -> bool:
    """What the crcs of the heads cannot say: did the bodies of this batch reach the disk too."""
    return all(
        crc32(disk.pread(fd, view.body_octets, view.body_offset)) == view.body_crc
        for view in batch.records
        if view.body_octets
    )


def predecessor_of(disk: Files, fd: int, segment: Segment) -> tuple[int, int, int, int] | None:
    """What the segment's first record says (CONTINUES), or None: its first batch is not there."""
    for batch in batches(disk, fd, segment, HEADER_OCTETS, segment.size):
        if batch.offset != HEADER_OCTETS:
            return None
        for view in batch.records:
            if view.kind == CONTINUES:
                return decode_continues(view.payload)
        return None
    return None


@dataclass(slots=True)
class Reader:
    """Descriptors for reading back what lies in segments, by the segment's name."""

    directory: Directory
    descriptors: dict[tuple[int, int], int] = field(default_factory=dict)

    def descriptor(self, segment: Segment) -> int:
        key = (segment.epoch, segment.number)
        fd = self.descriptors.get(key)
        if fd is None:
            path = path_of(self.directory, *key)
            opened = self.directory.disk.open(path, os.O_RDONLY)
            fd = self.descriptors.setdefault(key, opened)
            if fd != opened:  # another worker was quicker
                self.directory.disk.close(opened)
        return fd

    def read(self, segment: Segment, place: Place) -> tuple[RecordView, bytes] | None:
        """The record and its body, or None: not what was written there."""
        octets = self.directory.disk.pread(self.descriptor(segment), place.length, place.offset)
        view = parse_record(octets, segment.tag, place.offset)
        if view is None or view.place != place:
            return None
        body = octets[view.body_offset - place.offset :]
        if crc32(body) != view.body_crc:
            return None
        return view, body

    def read_head(self, segment: Segment, place: Place) -> RecordView | None:
        """The record without its body."""
        fd = self.descriptor(segment)
        octets = self.directory.disk.pread(fd, min(place.length, 4096), place.offset)
        if len(octets) < 28:
            return None
        length, _ = head_lengths(octets)
        if length > len(octets):
            octets = self.directory.disk.pread(fd, min(length, place.length), place.offset)
        view = parse_record(octets, segment.tag, place.offset)
        return view if view is not None and view.place == place else None

    def bound(self, segments: Iterable[Segment]) -> None:
        """On the reactor thread, before the next read is handed out: a queue of any size is read
        through a bounded number of descriptors.
        """
        if len(self.descriptors) > _DESCRIPTORS:
            for segment in segments:
                if not segment.pins:
                    self.forget(segment)

    def forget(self, segment: Segment) -> None:
        fd = self.descriptors.pop((segment.epoch, segment.number), None)
        if fd is not None:
            self.directory.disk.close(fd)

    def close(self) -> None:
        while self.descriptors:
            self.directory.disk.close(self.descriptors.popitem()[1])
