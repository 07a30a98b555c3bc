"""Epoch files: the truth about who owns the spool.

Law: an epoch is published by link(2) to exactly the next number, after its file is complete and
synced; `S` (superseded) in octet 0 is set in every lower file before anything is read, and never
taken back; `R` (released) stands in octet 1. An own file that is missing or marked S means: a newer
owner exists. An unreadable epoch file counts as taken.

Layout: octet 0 mark, octet 1 mark, octet 2 "A" while the owner says that a required address is
away, octets 8-15 the heartbeat's counter, from octet 16 one line of JSON with the claim and its
crc; then a second one, once the epoch has used other address instances than it was claimed with. It
alone may be written anew: torn, it is as if it were not there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from zlib import crc32

from mta.errors import Fenced
from mta.model import AddressInstance, Claim, EpochRecord, newest_instances
from mta.spool.directory import FORBIDDEN, Directory, read_whole, write_whole

_COUNTER = struct.Struct("<Q")
_AWAY_AT = 2
_COUNTER_AT = 8
_PADDING = bytes(_COUNTER_AT - _AWAY_AT - 1)
_CLAIM_AT = 16
KEPT = 16
"""Epoch files that stay."""
_DAMAGED = (ValueError, KeyError, TypeError, OverflowError)
"""What a line that has its crc and is none of ours leads to."""
SLOT = "slot-"
SLOT_OCTETS = 16 * 1024
"""A claim has about 1 KiB, and 6 KiB with all the instances that it can remember."""


def epochs(directory: Directory) -> list[int]:
    """The numbers published, ascending."""
    names = directory.disk.listdir(directory.join("epoch"))
    return sorted(int(name) for name in names if name.isdecimal())


def path_of(directory: Directory, epoch: int) -> str:
    return directory.join("epoch", str(epoch))


def encode_claim(claim: Claim) -> bytes:
    grant = claim.grant
    return _encode_line(
        {
            "node": claim.node,
            "boot_id": claim.boot_id,
            "process_started": claim.process_started,
            "version": claim.version,
            "configuration_digest": claim.configuration_digest,
            "network_name": grant.network_name,
            "token": grant.token,
            "fencing": grant.fencing.value,
            "addresses": [str(address) for address in grant.addresses],
            "instances": _encode_instances(grant.instances),
            "former_instances": _encode_instances(claim.former_instances),
        }
    )


def _encode_line(facts: dict[str, Any]) -> bytes:
    text = json.dumps(facts).encode()
    return text + b" %08x\n" % crc32(text)


def _decode_line(line: bytes) -> dict[str, Any]:
    """@raise ValueError: it is not whole."""
    text, _, crc = line.rpartition(b" ")
    if int(crc, 16) != crc32(text):
        raise ValueError("crc")
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(facts, dict):
        raise ValueError("no facts")
    return facts


def _encode_instances(instances: Iterable[AddressInstance]) -> list[list[str | int]]:
    return [[i.boot_id, i.ifindex, str(i.address), i.cstamp] for i in instances]


def _decode_instances(found: Any) -> tuple[AddressInstance, ...]:
    """@raise ValueError, TypeError, OverflowError: it is no list of instances."""
    return tuple(
        AddressInstance(str(boot), int(index), ip_address(address), int(stamp))
        for boot, index, address, stamp in found
    )


def decode_epoch(epoch: int, octets: bytes) -> EpochRecord:
    """A damaged or empty file is an epoch all the same: of an unknown node, and alive."""
    heartbeat, is_damaged = 0, False
    if len(octets) >= _CLAIM_AT:
        (heartbeat,) = _COUNTER.unpack_from(octets, _COUNTER_AT)
    node, boot_id, version, digest = "", "", "", ""
    started = 0.0
    instances: tuple[AddressInstance, ...] = ()
    former: tuple[AddressInstance, ...] = ()
    line, _, rest = octets[_CLAIM_AT:].partition(b"\n")
    try:
        facts = _decode_line(line.rstrip(b"\0"))
        node, boot_id = str(facts["node"]), str(facts["boot_id"])
        instances = _decode_instances(facts["instances"])
        former = _decode_instances(facts.get("former_instances", ()))
        version, digest = str(facts["version"]), str(facts["configuration_digest"])
        started = float(facts["process_started"])
    except _DAMAGED:
        node, is_damaged = node or "unreadable", True
    with contextlib.suppress(*_DAMAGED):  # none, or torn; a slot has zeros
        since = _decode_instances(_decode_line(rest.partition(b"\n")[0])["instances"])
        instances = newest_instances((*since, *instances))
    return EpochRecord(
        epoch=epoch,
        node=node,
        boot_id=boot_id,
        superseded=octets[:1] == b"S",
        released=octets[1:2] == b"R",
        heartbeat=heartbeat,
        instances=instances,
        former_instances=former,
        process_started=started,
        version=version,
        configuration_digest=digest,
        suspended=octets[_AWAY_AT : _AWAY_AT + 1] == b"A",
        is_damaged=is_damaged,
    )


def read_epochs(directory: Directory) -> tuple[EpochRecord, ...]:
    """All epochs, oldest first. @raise OSError: the directory itself is unreadable, or a file in it
    is another user's: then a claim could not mark it either.
    """
    found = []
    for epoch in epochs(directory):
        try:
            octets = read_whole(directory.disk, path_of(directory, epoch))
        except OSError as error:
            if error.errno in FORBIDDEN:
                raise
            octets = b""
        found.append(decode_epoch(epoch, octets))
    return tuple(found)


def publish(directory: Directory, claim: Claim, above: int) -> int:
    """Publish `above + 1` and mark all lower ones.
    @raise Fenced: a newer epoch exists. @raise OSError: nothing may be done under it.
    """
    disk = directory.disk
    known = epochs(directory)
    highest = known[-1] if known else 0
    if highest != above:
        raise _taken(above + 1, directory)
    epoch = above + 1
    aside = directory.join("epoch", f"new-{secrets.token_hex(8)}")
    # Octets 0 and 1 are marks, 2 tells of suspension, 8 to 15 count.
    _write_aside(directory, aside, b"-" * 2 + bytes(_CLAIM_AT - 2) + encode_claim(claim))
    try:
        disk.link(aside, path_of(directory, epoch))
    except FileExistsError:
        raise _taken(epoch, directory) from None
    finally:
        try:
            disk.unlink(aside)
        except FileNotFoundError:
            pass  # an owner swept it: the link has failed, or was made before
    disk.sync_directory(directory.join("epoch"))
    # Publish, then read: from here on an old owner's next check fails, and only then do we look.
    for lower in reversed(known):
        mark(directory, lower, 0, b"S")
    return epoch


# --- room for one more epoch on a full disk -------------------------------------------------------


def _write_aside(directory: Directory, aside: str, octets: bytes) -> None:
    """The complete file, under a name that means nothing yet. When there is no room for it, in the
    room of a slot that an owner made ahead. @raise OSError.
    """
    try:
        write_whole(directory.disk, aside, octets)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        if len(octets) > SLOT_OCTETS or not _take_slot(directory, aside):
            raise
        disk = directory.disk
        fd = disk.open(aside, os.O_RDWR)
        try:
            disk.pwritev(fd, [octets.ljust(SLOT_OCTETS, b"\0")], 0)
            disk.fsync(fd)
        finally:
            disk.close(fd)


def _take_slot(directory: Directory, aside: str) -> bool:
    """Make a slot's file ours, as `aside`. Whose unlink of the slot's name succeeds has it alone:
    two takers may both have linked it.
    """
    disk = directory.disk
    for slot in slots(directory):
        path = directory.join("epoch", slot)
        try:
            disk.link(path, aside)
        except FileNotFoundError:
            continue
        try:
            disk.unlink(path)
        except FileNotFoundError:
            disk.unlink(aside)
            continue
        return True
    return False


def slots(directory: Directory) -> list[str]:
    """Names of files made ahead for a claim that finds no room."""
    names = directory.disk.listdir(directory.join("epoch"))
    return sorted(name for name in names if name.startswith(SLOT))


def make_slot(directory: Directory, epoch: int) -> None:
    """Under the owner's `epoch`: see that there is a slot. @raise OSError: no room for it now."""
    if slots(directory):
        return
    write_whole(directory.disk, directory.join("epoch", f"{SLOT}{epoch}"), bytes(SLOT_OCTETS))
    directory.disk.sync_directory(directory.join("epoch"))


def mark(directory: Directory, epoch: int, at: int, sign: bytes) -> None:
    """One way: never written back. An epoch file that is gone needs no mark."""
    disk = directory.disk
    try:
        fd = disk.open(path_of(directory, epoch), os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if disk.pread(fd, 1, at) != sign:
            disk.pwritev(fd, [sign], at)
        # Also when it was there already: another's mark may not have been synced.
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _taken(epoch: int, directory: Directory) -> Fenced:
    return Fenced(
        f"epoch {epoch} of {directory.path} exists already",
        "another node acted on a newer grant",
        "this node goes back to standby",
    )


@dataclass(slots=True)
class OwnEpoch:
    """The owner's hold on its own epoch file: the check, the heartbeat, the release."""

    directory: Directory
    epoch: int
    reopens: bool
    """NFS: only an open asks the server again."""
    fd: int = -1
    counter: int = 0
    is_away: bool = False
    """A required address is away: the next heartbeat says so."""
    used: tuple[AddressInstance, ...] = ()
    """By this epoch, when it is more than it was claimed with: the next heartbeat says so."""
    _written: tuple[AddressInstance, ...] = ()

    def open(self) -> None:
        self.fd = self.directory.disk.open(path_of(self.directory, self.epoch), os.O_RDWR)

    def is_current(self) -> bool:
        """False: superseded, or not to be known (then nothing may be acknowledged either)."""
        try:
            return self._mark() == b"-"
        except OSError:
            return False

    def _mark(self) -> bytes:
        """Octet 0 as it reads now. @raise OSError."""
        disk = self.directory.disk
        if not self.reopens:
            return disk.pread(self.fd, 1, 0)
        fd = disk.open(path_of(self.directory, self.epoch), os.O_RDONLY)
        try:
            return disk.pread(fd, 1, 0)
        finally:
            disk.close(fd)

    def beat(self) -> None:
        """@raise Fenced: the file has lost its name; what is written now would vanish with us."""
        path = path_of(self.directory, self.epoch)
        if not self.directory.disk.exists(path):
            raise Fenced(
                f"{path} is gone",
                "the spool was removed, unmounted or replaced while this process used it",
                "bring the same spool back: what it held is not in a new one",
            )
        self.counter += 1
        news = [b"A" if self.is_away else b"-", _PADDING, _COUNTER.pack(self.counter)]
        self.directory.disk.pwritev(self.fd, news, _AWAY_AT)
        used = self.used
        if used != self._written:
            try:
                self._write_used(used)
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                return  # the next heartbeat tries again
            self._written = used

    def _write_used(self, used: tuple[AddressInstance, ...]) -> None:
        """Behind the claim. Not synced: no boot that loses it has these instances again."""
        disk = self.directory.disk
        octets = read_whole(disk, path_of(self.directory, self.epoch))
        at = octets.find(b"\n", _CLAIM_AT) + 1
        if at:  # else the claim is damaged, and nobody believes its instances
            disk.pwritev(self.fd, [_encode_line({"instances": _encode_instances(used)})], at)

    def release(self) -> None:
        mark(self.directory, self.epoch, 1, b"R")

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.directory.disk.close(fd)

    def superseded(self) -> Fenced:
        """Why `is_current` said no, as far as the file tells."""
        what = f"epoch {self.epoch} of {self.directory.path} is superseded"
        why = "another node has published a newer one"
        path = path_of(self.directory, self.epoch)
        if self.fd >= 0:
            try:
                mark = self._mark()
                if mark not in {b"S", b"-"}:
                    what, why = f"{path} is damaged or empty", f"its mark reads {mark!r}"
            except OSError as error:
                what, why = f"{path} cannot be read", error.strerror or str(error)
        return Fenced(what, why, "this node stops at once")
