"""A spool without a running MTA: `python -m mta.spool.offline check|init|recover DIR`.

Law: `check` writes nothing, marks nothing, syncs nothing; it reads what a takeover would read, and
then every body too. `recover` acts only where a takeover cannot, and as a takeover would: it
publishes an epoch, seals it, and releases it. Imports nothing of Twisted. What it prints is
neutralised: names on disk are foreign text. Exit codes: 0 sound, 65 damaged (EX_DATAERR), 66 no
spool (EX_NOINPUT), 74 unreadable, 75 an owner is alive, 78 another format.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from zlib import crc32

from mta.errors import Corrupt, MTAError
from mta.model import Claim, Fencing, Grant, VirtualAddress, former_instances
from mta.spool import checkpoint
from mta.spool.directory import PARTS, Directory
from mta.spool.epoch import mark, publish, read_epochs
from mta.spool.files import Files
from mta.spool.reading import Wanted, read_message
from mta.spool.recovery import Recovered, recover, salvage
from mta.spool.segment import Reader

_BEYOND = 1 << 62
"""No epoch is as high: everything there is older."""
_PIECE = 1 << 20
_SHOWN = 100
"""Damaged places that are named one by one."""
_LIVING_SECONDS = 3.0
"""An owner's heart beats once a second."""
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None, say: Say | None = None) -> int:
    """@return a sysexits code."""
    say = say if say is not None else _print
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2 or given[0] not in {"check", "init", "recover"}:
        say("usage: mta spool check DIR | mta spool init DIR | mta spool recover DIR")
        return os.EX_USAGE
    return run(given[0], Directory(Files(), given[1]), say)


def run(
    action: str, directory: Directory, say: Say, wait: Callable[[float], None] = time.sleep
) -> int:
    try:
        if action == "recover":
            return _recover(directory, say, wait)
        if action == "init":
            return _init(directory, say)
        return _check(directory, say)
    except MTAError as error:
        say(_harmless(str(error)))
        return error.exit_code
    except OSError as error:
        say(_harmless(f"{error.filename or directory.path}: {error.strerror or error}"))
        return os.EX_IOERR


def _init(directory: Directory, say: Say) -> int:
    marker = directory.inspect(initialise=True)
    say(f"{_harmless(directory.path)} is spool {_harmless(marker.spool_id)}")
    return os.EX_OK


def _recover(directory: Directory, say: Say, wait: Callable[[float], None]) -> int:
    """Both checkpoints of the last owner are lost: make one of all that the segments say."""
    if not directory.disk.exists(directory.join("format")):
        say(f"{_harmless(directory.path)} has no format marker: it is no spool")
        return os.EX_NOINPUT
    directory.marker()
    try:
        recover(directory, _BEYOND, sync=False)
    except Corrupt as error:
        say(_harmless(error.what))
    else:
        say("nothing to recover: the next owner can take this spool over as it is")
        return os.EX_OK
    before = read_epochs(directory)
    if before and not before[-1].released:
        wait(_LIVING_SECONDS)
        again = read_epochs(directory)
        if again[-1].epoch != before[-1].epoch or again[-1].heartbeat != before[-1].heartbeat:
            say(
                f"refused: node {_harmless(again[-1].node)} holds epoch {again[-1].epoch} and is "
                "alive; stop it first"
            )
            return os.EX_TEMPFAIL
    # As a takeover: publish, then read, then seal. Whoever was stopped, not dead, is superseded.
    loopback = ip_address("127.0.0.1")
    grant = Grant(0, "recover", (VirtualAddress(loopback, loopback),), Fencing.NONE)
    claim = Claim("mta spool recover", "", time.time(), "", "", grant, former_instances(before))
    epoch = publish(directory, claim, before[-1].epoch if before else 0)
    found = salvage(directory)
    pieces = checkpoint.encode(found.ledger, epoch, 0, time.time(), [])
    checkpoint.write(directory, epoch, 0, pieces)
    mark(directory, epoch, 1, b"R")
    _describe(found, say, doubts=False)
    for text in (*found.notes, *found.set_aside):
        say(f"note: {_harmless(text)}")
    say(
        f"recovered as epoch {epoch}: {len(found.ledger.index)} messages, every one of which may "
        "have been delivered before; each is on the in-doubt list and is sent last. To look at "
        "them first, set `in-doubt: hold` at the connectors before the next start"
    )
    return os.EX_OK


def _check(directory: Directory, say: Say) -> int:
    disk = directory.disk
    if not disk.exists(directory.path):
        say(f"{_harmless(directory.path)} does not exist")
        return os.EX_NOINPUT
    if not disk.exists(directory.join("format")):
        say(f"{_harmless(directory.path)} has no format marker: it is no spool")
        return os.EX_NOINPUT
    marker = directory.marker()
    say(f"spool {_harmless(marker.spool_id)}, format {marker.version}")
    missing = [part for part in PARTS if not disk.exists(directory.join(part))]
    if missing:
        say(f"damaged: {', '.join(missing)} is missing")
        return os.EX_DATAERR
    for one in read_epochs(directory):
        marks = [
            word for word, on in (("superseded", one.superseded), ("released", one.released)) if on
        ]
        node = _harmless(one.node)
        role = " ".join(marks) or "owner"
        say(f"epoch {one.epoch}: node {node}, heartbeat {one.heartbeat}, {role}")
    damage = _checkpoints(directory, say)
    try:
        found = recover(directory, _BEYOND, sync=False)
    except Corrupt as error:
        say(f"damaged: {_harmless(str(error))}")
        return os.EX_DATAERR
    for note in found.notes:
        say(f"note: {_harmless(note)}")
    damage += found.set_aside
    damage += _messages(directory, found)
    _describe(found, say)
    for place in damage[:_SHOWN]:
        say(f"damaged: {_harmless(place)}")
    if len(damage) > _SHOWN:
        say(f"and {len(damage) - _SHOWN} more damaged places")
    say(f"{len(damage)} damaged" if damage else "sound")
    return os.EX_DATAERR if damage else os.EX_OK


def _checkpoints(directory: Directory, say: Say) -> list[str]:
    damage = []
    for epoch, numbers in sorted(checkpoint.known(directory).items()):
        for number in numbers:
            name = f"ckpt/{epoch}.{number}"
            try:
                found = checkpoint.read(directory, epoch, number)
            except (ValueError, OSError) as error:
                damage.append(f"{name}: {error}")
                continue
            say(f"{name}: {len(found.ledger.index)} messages")
    return damage


def _messages(directory: Directory, found: Recovered) -> list[str]:
    """Every message, body included."""
    ledger = found.ledger
    index = ledger.index
    reader = Reader(directory)
    damage = []
    try:
        for slot in index.live_slots():
            name = index.queue_id(slot)
            segment = ledger.segments.get(index.message_segment[slot])
            state_ref = index.state_segment[slot]
            if segment is None or (state_ref and state_ref not in ledger.segments):
                damage.append(f"message {name}: its segment is not known")
                continue
            wanted = Wanted(
                name,
                segment,
                index.message_place(slot),
                ledger.segments[state_ref] if state_ref else None,
                index.state_place(slot),
                ledger.bigs.get(slot),
                index.due[slot],
                False,
            )
            try:
                read_message(reader, wanted, with_body=True, most=1 << 31)
                if wanted.big is not None:
                    _read_big(directory, wanted)
            except (Corrupt, OSError) as error:
                damage.append(f"message {name}: {error}")
    finally:
        reader.close()
    return damage


def _read_big(directory: Directory, wanted: Wanted) -> None:
    """@raise Corrupt, OSError."""
    big, disk = wanted.big, directory.disk
    assert big is not None, "asked for big messages only"
    fd = disk.open(directory.join("big", big.name), os.O_RDONLY)
    try:
        crc, at = 0, 0
        while piece := disk.pread(fd, _PIECE, at):
            crc = crc32(piece, crc)
            at += len(piece)
    finally:
        disk.close(fd)
    if (at, crc) != (big.octets, big.crc):
        raise Corrupt(f"big/{big.name} offset 0: {at} of {big.octets} octets, or a wrong crc")


def _describe(found: Recovered, say: Say, *, doubts: bool = True) -> None:
    index, ledger = found.ledger.index, found.ledger
    say(
        f"{len(index)} messages, {index.octets} octets, {index.held} held, "
        f"{len(ledger.doubts)} in doubt, {len(ledger.bigs)} big"
    )
    for segment in sorted(ledger.segments.values(), key=lambda s: (s.epoch, s.number)):
        say(
            f"seg/{segment.name}: {segment.size} octets, {segment.live_records} live records "
            f"of {segment.live_octets} octets"
        )
    for doubt in ledger.doubts if doubts else ():
        say(
            f"in doubt: {doubt.side} {_harmless(doubt.queue_id)} at {_harmless(doubt.whom)} "
            f"since epoch {doubt.epoch}"
        )
    if found.sweep:
        say(f"{len(found.sweep)} files that nothing refers to; the next owner removes them")


def _harmless(text: str) -> str:
    """No control octet, no escape, no line end reaches the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _print(line: str) -> None:
    print(line)  # noqa: T201  # a command's output


if __name__ == "__main__":
    sys.exit(main())
