"""Checkpoints: the ledger as one file, whole or absent.

Law: written aside, synced, linked, directory synced; the crc says whether it is whole. The two
newest are kept. ckpt/E.0 is the seal: it speaks for everything before epoch E, and no log of an
older epoch is read again once it exists.

Layout: magic, format, octets and crc of everything behind; then sections (octets, crc-free): facts
as JSON, domain names, derived queue ids, and the index's columns, sorted keys and heaps as they lie
in memory: nothing is looped over per message, neither when it is written nor when it is read.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import sys
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

from mta.model import Doubt, FourTuple, Intent, Remembered
from mta.spool.directory import Directory, read_whole
from mta.spool.doubts import OpenAssociation
from mta.spool.index import COLUMNS, Index
from mta.spool.ledger import Ledger, Position
from mta.spool.records import Big
from mta.spool.segment import Segment

_HEADER = struct.Struct("<8sIIQI")
_MAGIC = b"MTA\x00CKP\x00"
_FORMAT = 2
_SECTION = struct.Struct("<Q")


@dataclass(slots=True)
class Checkpoint:
    """What a file says. `sweep` names (relative to the spool) what may be removed."""

    epoch: int
    number: int
    ledger: Ledger
    sweep: list[str] = field(default_factory=list)


def encode(ledger: Ledger, epoch: int, number: int, wall: float, sweep: list[str]) -> list[bytes]:
    """On the owning thread: copies memory, loops over nothing that grows with the queue but the
    rarities (big files, derived ids). The pieces are to be written behind one another.
    """
    index = ledger.index
    facts: dict[str, Any] = {
        "epoch": epoch,
        "number": number,
        "wall": wall,
        "position": [ledger.position.number, ledger.position.offset],
        "segments": [
            [
                s.ref,
                s.epoch,
                s.number,
                s.generation,
                f"{s.tag:x}",
                s.size,
                s.live_records,
                s.live_octets,
            ]
            for s in ledger.segments.values()
        ],
        "bigs": [[slot, b.epoch, b.number, b.octets, b.crc] for slot, b in ledger.bigs.items()],
        "intents": [
            [i.queue_id, i.slot, list(i.recipients), i.peer, i.transaction]
            for i in ledger.intents.values()
        ],
        "doubts": [
            [d.side, d.queue_id, d.slot, d.peer, d.recipients, d.epoch, d.transaction, d.ordinal]
            for d in ledger.doubts
        ],
        "associations": [
            [
                slot,
                a.ends.local_host,
                a.ends.local_port,
                a.ends.peer_host,
                a.ends.peer_port,
                a.inbound,
                a.last,
                a.ordinal,
            ]
            for slot, a in ledger.associations.items()
        ],
        # Beside their rows, which an older build reads whole: it passes over what it does not know.
        "doubt_clients": [[d.queue_id, d.slot, d.client] for d in ledger.doubts if d.client],
        "association_clients": {
            slot: a.client.decode("utf-8", "replace")
            for slot, a in ledger.associations.items()
            if a.client
        },
        "transactions": [
            [t.client, t.transaction, t.queue_id, t.octets, t.expires, association]
            for t, association in ledger.transactions
        ],
        "sweep": sweep,
        "byteorder": sys.byteorder,
        "columns": [[name, code] for name, code in COLUMNS],
    }
    names = index.domains.names
    lengths = struct.pack(f"<{len(names)}H", *map(len, names))
    derived = " ".join(f"{name}:{slot}" for name, slot in index.derived.items())
    sections = [
        json.dumps(facts).encode(),
        lengths,
        b"".join(names),
        derived.encode(),
        *index.dump(),
    ]
    return [piece for s in sections for piece in (_SECTION.pack(len(s)), s)]


def decode(octets: bytes | bytearray) -> Checkpoint:
    """@raise ValueError: not whole, or not of this format."""
    if len(octets) < _HEADER.size:
        raise ValueError("it ends before its header does")
    magic, version, _, length, crc = _HEADER.unpack_from(octets)
    if magic != _MAGIC or version != _FORMAT:
        raise ValueError(f"it is no checkpoint of format {_FORMAT}")
    body = memoryview(octets)[_HEADER.size :]
    if len(body) != length or crc32(body) != crc:
        raise ValueError("its crc does not match")
    sections: list[memoryview] = []
    at = 0
    while at < length:
        (size,) = _SECTION.unpack_from(body, at)
        at += _SECTION.size
        sections.append(body[at : at + size])  # no copy: the columns are most of a long queue
        at += size
    facts = json.loads(bytes(sections[0]))
    if facts["byteorder"] != sys.byteorder or facts["columns"] != [list(c) for c in COLUMNS]:
        raise ValueError("its columns are of another machine or version")
    lengths, text = sections[1], bytes(sections[2])
    names, start = [], 0
    for size in struct.unpack(f"<{len(lengths) // 2}H", lengths):
        names.append(text[start : start + size])
        start += size
    derived = {}
    for pair in bytes(sections[3]).decode().split():
        name, _, slot = pair.partition(":")
        derived[name] = int(slot)
    ledger = Ledger()
    ledger.index = Index.load(sections[4:], names, derived)
    ledger.position = Position(*facts["position"])
    ledger.wall = facts["wall"]
    for ref, epoch, number, generation, tag, size, *live in facts["segments"]:
        segment = Segment(epoch, number, generation, int(tag, 16), size, ref)
        segment.live_records, segment.live_octets = live
        ledger.restore_segment(segment)
    for slot, epoch, number, size, crc in facts["bigs"]:
        ledger.bigs[slot] = Big(epoch, number, size, crc)
    for queue_id, slot_name, recipients, peer, transaction in facts["intents"]:
        ledger.intended(Intent(queue_id, slot_name, tuple(recipients), peer, transaction))
    clients = {(q, name): client for q, name, client in facts.get("doubt_clients", ())}
    for side, queue_id, name, peer, recipients, *rest in facts["doubts"]:
        doubt = Doubt(side, queue_id, name, peer, tuple(recipients), *rest)
        ledger.doubts.add(replace(doubt, client=clients.get((queue_id, name), "")))
    of_slot = facts.get("association_clients", {})
    for name, *ends, inbound, last, ordinal in facts["associations"]:
        client = of_slot.get(name, "").encode("utf-8", "backslashreplace")
        opened = OpenAssociation(FourTuple(*ends), inbound, last, ordinal, client)
        ledger.associations[name] = opened
    for *fields, association in facts["transactions"]:
        ledger.transactions.add(Remembered(*fields), association)
    return Checkpoint(facts["epoch"], facts["number"], ledger, list(facts["sweep"]))


def path_of(directory: Directory, epoch: int, number: int) -> str:
    return directory.join("ckpt", f"{epoch}.{number}")


def write(directory: Directory, epoch: int, number: int, pieces: list[bytes]) -> int:
    """Make it durable under its name; answers its octets. @raise OSError: it does not exist."""
    disk = directory.disk
    crc = length = 0
    for piece in pieces:
        crc = crc32(piece, crc)
        length += len(piece)
    aside = directory.join("ckpt", f"new-{secrets.token_hex(8)}")
    fd = disk.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            head = _HEADER.pack(_MAGIC, _FORMAT, 0, length, crc)
            disk.pwritev(fd, [head, *pieces], 0)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.link(aside, path_of(directory, epoch, number))
        disk.sync_directory(directory.join("ckpt"))
    finally:
        try:
            disk.unlink(aside)
        except OSError:
            pass  # the name is random and own; a later owner sweeps it
    return _HEADER.size + length


def known(directory: Directory) -> dict[int, list[int]]:
    """The numbers of the checkpoints of each epoch, ascending."""
    found: dict[int, list[int]] = {}
    for name in directory.disk.listdir(directory.join("ckpt")):
        epoch, dot, number = name.partition(".")
        if dot and epoch.isdecimal() and number.isdecimal():
            found.setdefault(int(epoch), []).append(int(number))
    for numbers in found.values():
        numbers.sort()
    return found


def read(directory: Directory, epoch: int, number: int) -> Checkpoint:
    """@raise ValueError, OSError: not whole."""
    try:
        made = decode(read_whole(directory.disk, path_of(directory, epoch, number)))
    except (struct.error, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    if (made.epoch, made.number) != (epoch, number):
        raise ValueError("it is another checkpoint under this name")
    return made
