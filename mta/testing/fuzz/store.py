"""What lies on disk: records, envelopes, epochs, checkpoints, and whole spools that were damaged.

A disk is no peer, but what it gives back may be anything: each law here is that damage is named.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self
from zlib import crc32

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mta.errors import MTAError
from mta.model import Intent, MessageState, QueueAct, Result, fresh_state
from mta.spool import checkpoint, offline, records
from mta.spool.directory import Directory
from mta.spool.envelopes import (
    decode_envelope,
    decode_state,
    encode_envelope,
    encode_state,
    origin_of,
)
from mta.spool.epoch import decode_epoch
from mta.spool.recovery import recover
from mta.spool.segment import HEADER_OCTETS, Segment, batches, bodies_are_whole, header, read_header
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.fuzz.octets import changed
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.testing.fuzz.trees import other_values
from mta.testing.spool_lab import DIRECTORY, LogLab
from mta.testing.spool_suite import NOW, claim, deferred_state, envelope

_ZEROS = (bytes(4), b"\xff" * 4, bytes(64), b"\1\0\0\0", b"\0\0\0\x80")
_TAG = 0x0123456789ABCDEF


class Envelopes(Target):
    """Any octets are an envelope, a message's state, or a ValueError; what they are is written as
    something that reads the same, in memory that does not depend on the numbers in them.
    """

    name = "envelopes"
    spices = _ZEROS

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng)
        origin_of(octets)
        found = either(lambda: decode_envelope(octets), ValueError)
        if not isinstance(found, BaseException):
            again = decode_envelope(encode_envelope(found))
            same(origin_of(octets)[0], found.ordinal, "its ordinal")
            _same_fields(again, found)
        state = either(lambda: decode_state(octets), ValueError)
        if isinstance(state, MessageState):
            other = decode_state(encode_state(state))
            same(other.recipients, state.recipients, "recipients read as others")
            _same_fields(replace(other, recipients=()), replace(state, recipients=()))


def _same_fields(one: object, other: object) -> None:
    """NaN is no number's equal, and has a name."""
    if one != other:
        same(repr(one), repr(other), "what was encoded reads as another")


_DECODERS: tuple[Callable[[bytes], object], ...] = (
    records.decode_message,
    records.decode_change,
    records.decode_done,
    records.decode_hold,
    lambda octets: records.decode_intent("Q", octets),
    lambda octets: records.decode_transaction("Q", octets),
    records.decode_association,
    records.decode_continues,
)


class Records(Target):
    """Of a damaged segment only what was written is read: a record whose octets changed is named as
    damaged or left out with its batch, reading comes to an end, and a payload that is none is a
    ValueError or struct.error.
    """

    name = "records"
    spices = (*_ZEROS, bytes(4096))

    def __init__(self, seeds: Any = ()) -> None:
        super().__init__(seeds)
        self._segment = Segment(1, 1, 1, _TAG, 64 * 1024)
        written: list[bytes] = [header(self._segment)]
        at = HEADER_OCTETS
        self._written: dict[tuple[int, str, bytes], bytes] = {}
        for sequence in range(1, 5):
            batch = [self._record(sequence, n) for n in range(sequence)]
            pieces, _, octets = records.encode_batch(batch, _TAG, 1, sequence, at, wall=NOW)
            written += pieces
            at += octets
        self._whole = b"".join(written)

    def _record(self, sequence: int, number: int) -> records.Record:
        name, payload = b"Q%d%d" % (sequence, number), b"payload%d" % number * number
        body = (b"body of %d\r\n" % number) * 50 * number
        self._written[records.MSG, name.decode(), payload] = body
        return records.MSG, name, payload, (body,), len(body)

    def hold(self, rng: Random, number: int) -> None:
        payload = self.octets(rng)
        for decode in _DECODERS:
            either(partial(decode, payload), ValueError, struct.error)
        octets = self._whole
        for _ in range(rng.choice((0, 1, 1, 3))):
            octets = changed(rng, octets, self.spices)
        disk: Any = ForgetfulDisk()
        fd = disk.open("/segment", os.O_RDWR | os.O_CREAT)
        disk.pwritev(fd, [octets], 0)
        segment = read_header(disk, fd, 1, 1)
        ensure(segment is not None or octets[:64] != self._whole[:64], "a whole header is refused")
        last = 0
        for batch in batches(disk, fd, self._segment, HEADER_OCTETS, len(octets)):
            ensure(batch.sequence > last and batch.end > batch.offset, "reading goes back")
            last = batch.sequence
            is_whole = batch.is_whole and bodies_are_whole(disk, fd, batch)
            for view in batch.records:
                if view.kind == records.END:
                    continue
                key = view.kind, view.queue_id, view.payload
                ensure(key in self._written, f"a record that nobody wrote: {key!r}")
                if is_whole:
                    read = disk.pread(fd, view.body_octets, view.body_offset)
                    same(read, self._written[key], "a body that nobody wrote")


class Epoch(Target):
    """An epoch file, however damaged, is an epoch; what it says of its owner is said as damaged
    where it is. Nothing is raised.
    """

    name = "epoch"
    spices = (
        *(b"S", b"R", b"A", b"-", b"\n", b"\0" * 8, b"null", b"[]", b"{}", b"1e999", b"-Infinity"),
        *(b"9" * 400, b'"', b"\\ud800", b"[" * 2000, b"NaN", b"Infinity"),
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng)
        if rng.random() < 0.8:
            octets = octets[:16] + b"".join(_sealed(rng, line) for line in octets[16:].splitlines())
        found = decode_epoch(7, octets)
        same(found.epoch, 7, "its number")
        same((found.superseded, found.released), (octets[:1] == b"S", octets[1:2] == b"R"), "marks")
        ensure(found.node or not found.is_damaged, "a damaged epoch is nobody's")


def _sealed(rng: Random, line: bytes) -> bytes:
    """A line of facts with the crc that it would have."""
    text = line.rpartition(b" ")[0] or line
    if rng.random() < 0.5:
        text = other_values(rng, text)
    return text + b" %08x\n" % crc32(text)


class CheckpointFile(Target):
    """A checkpoint is whole, or is a ValueError that names why: also where its crc is right."""

    name = "checkpoint"
    spices = (
        *_ZEROS,
        *(b"null", b"[]", b"{}", b"-1", b"1e999", b"9" * 400, b'"x"', b"[" * 2000, b":", b" "),
    )

    def __init__(self, seeds: Any = ()) -> None:
        super().__init__(seeds or _checkpoints())
        disk: Any = ForgetfulDisk()
        self._disk = disk
        self._directory = Directory(disk, "/spool")
        for path in ("/spool", "/spool/ckpt"):
            self._disk.mkdir(path)

    @classmethod
    def at(cls, tests: Path) -> Self:
        """Its samples are made by a spool: they hold columns in this machine's order of octets."""
        return cls()

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng)
        if rng.random() < 0.5:
            octets = _other_facts(rng, rng.choice(self.seeds))
        if rng.random() < 0.9:
            octets = _with_crc(octets)
        path = checkpoint.path_of(self._directory, 1, 1)
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT)
        self._disk.truncate(fd, 0)
        self._disk.pwritev(fd, [octets], 0)
        self._disk.close(fd)
        found = either(lambda: checkpoint.read(self._directory, 1, 1), ValueError)
        if isinstance(found, checkpoint.Checkpoint):
            ensure(len(found.ledger.index) >= 0, "a ledger without messages")


_CHECKPOINT_HEAD = checkpoint._HEADER  # of the format that is damaged here


def _other_facts(rng: Random, octets: bytes) -> bytes:
    """With other values in its first section, which is JSON behind its length."""
    at = _CHECKPOINT_HEAD.size
    (size,) = checkpoint._SECTION.unpack_from(octets, at)
    at += checkpoint._SECTION.size
    facts = other_values(rng, octets[at : at + size])
    head = octets[: _CHECKPOINT_HEAD.size]
    return head + checkpoint._SECTION.pack(len(facts)) + facts + octets[at + size :]


def _with_crc(octets: bytes) -> bytes:
    if len(octets) < _CHECKPOINT_HEAD.size:
        return octets
    fields = _CHECKPOINT_HEAD.unpack_from(octets)[:3]
    body = octets[_CHECKPOINT_HEAD.size :]
    return _CHECKPOINT_HEAD.pack(*fields, len(body), crc32(body)) + body


def _checkpoints() -> list[bytes]:
    disk = _Day().disk
    ours = [path for path in disk.paths() if "/ckpt/" in path]
    return [disk.octets(path).replace(b"\0" * 4096, b"\0" * 64) for path in ours] + [
        disk.octets(path) for path in ours
    ]


# --- whole spools -------------------------------------------------------------------------------


class _Day(LogLab):
    """A spool on which two owners worked: messages that wait, left, are held and in doubt."""

    spool: Any

    def __init__(self) -> None:
        self.clock = VirtualClock(NOW)
        self._own("a")
        names = [self._accept(b"%d" % n * 2000 * n) for n in range(8)]
        self._value(self.spool.journal([], [Intent(names[0], "out/1", (0,), "hub:25")]))
        self._value(self.spool.journal([Result(names[0], "out/1", None)], []))
        state = deferred_state(envelope(), NOW + 300)
        self._value(self.spool.journal([Result(names[1], "out/1", state)], []))
        self._value(self.spool.journal([], [Intent(names[2], "out/1", (0,), "hub:25")]))
        self._value(self.spool.act([names[3]], QueueAct.HOLD, NOW))
        self._own("b")
        self._accept(b"x" * 30_000)
        self._value(self.spool.release("done"))

    def _value(self, given: Any) -> Any:
        if not isinstance(given, Deferred):
            return given
        found: list[Any] = []
        given.addBoth(found.append)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]

    def _own(self, node: str) -> None:
        self.spool = self.make_spool(node)
        known = self._value(self.spool.inspect())
        self._value(self.spool.publish(claim(node), known[-1].epoch if known else 0))
        self._value(self.spool.recover())
        self._value(self.spool.seal())

    def _accept(self, body: bytes) -> str:
        staging = self.spool.stage("smtp/in/1")
        message = envelope()
        self._value(staging.write(b"Subject: x\r\n\r\n" + body + b"\r\n"))
        self._value(staging.commit(message, fresh_state(message), b"R: x\r\n", None))
        return str(staging.queue_id)


_CODES = {os.EX_OK, os.EX_DATAERR, os.EX_NOINPUT, os.EX_IOERR, os.EX_TEMPFAIL, os.EX_CONFIG}


class Spool(Target):
    """A spool whose files were damaged, cut or lost is checked, taken over and recovered, or
    refused by name; what is said of it can be printed, and a descriptor is not left open.
    """

    name = "spool"
    spices = (*_ZEROS, b"mta-spool 1 x\n", bytes(4096))

    def __init__(self, seeds: Any = ()) -> None:
        super().__init__(seeds)
        self._disk = _Day().disk

    @classmethod
    def at(cls, tests: Path) -> Self:
        """Its sample is made by a spool."""
        return cls()

    def hold(self, rng: Random, number: int) -> None:
        disk: Any = self._disk.snapshot()
        for _ in range(rng.choice((1, 1, 2, 6))):
            self._damage(rng, disk)
        directory = Directory(disk, DIRECTORY)
        said: list[str] = []
        code = offline.run("check", directory, said.append)
        ensure(code in _CODES, f"check ended with {code}")
        is_sound = code == os.EX_OK
        ensure(not is_sound or not any("damaged:" in line for line in said), "damaged, and sound")
        taken = either(lambda: recover(directory, 1 << 40), MTAError, OSError)
        ensure(not is_sound or not isinstance(taken, BaseException), f"sound, and {taken!r}")
        code = offline.run("recover", directory, said.append, lambda seconds: None)
        ensure(code in _CODES, f"recover ended with {code}")
        ensure(all(line.isprintable() for line in said), "what is said cannot be printed")
        same(disk.descriptors, 0, "descriptors that are left open")

    def _damage(self, rng: Random, disk: ForgetfulDisk) -> None:
        path = rng.choice(disk.paths())
        octets = disk.octets(path)
        if rng.random() < 0.1:
            disk.unlink(path)
            return
        used = octets.rstrip(b"\0")
        whole = changed(rng, used, self.spices)
        if rng.random() < 0.7:
            whole = whole.ljust(len(octets), b"\0")
        fd = disk.open(path, os.O_RDWR)
        disk.truncate(fd, 0)
        disk.pwritev(fd, [whole], 0)
        disk.close(fd)
