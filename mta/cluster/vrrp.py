"""What keepalived says about a VRRP instance, as octets of its notify FIFO or of a record. Pure.

Law: a role is what a well-formed line says of our own instance by name, and nothing else is one.
A word that is not known is UNKNOWN, which owns nothing; rubbish changes nothing and is counted.

The FIFO's lines (keepalived.conf(5), notify_fifo) are `INSTANCE "MAIL" MASTER 150` and
`GROUP "MAIL" MASTER 150`. A record is such a line with when it was said, in which boot, and by
which processes: ` at 1126.14 boot UUID by 66:112574 67:112575` (keepalived first, then its
children, each as pid:start). The shipped notify script writes it, and we do.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

LONGEST_LINE = 512
"""keepalived's own lines are shorter than PIPE_BUF and hold one name; the rest is rubbish."""
SHOWN = 60
"""Octets of rubbish that are shown."""


class Role(enum.Enum):
    """A VRRP instance's state."""

    MASTER = "MASTER"
    BACKUP = "BACKUP"
    FAULT = "FAULT"
    STOP = "STOP"
    DELETED = "DELETED"
    UNKNOWN = "unknown"


_WORDS = {
    b"MASTER": Role.MASTER,
    b"BACKUP": Role.BACKUP,
    b"FAULT": Role.FAULT,
    b"STOP": Role.STOP,
    b"DELETED": Role.DELETED,
    # With notify_priority_changes, and on a lower priority's advert: the role stays.
    b"MASTER_PRIORITY": Role.MASTER,
    b"MASTER_RX_LOWER_PRI": Role.MASTER,
    b"BACKUP_PRIORITY": Role.BACKUP,
}
_LINE = re.compile(rb'(INSTANCE|GROUP) "([\x21\x23-\x7e]{1,255})" ([A-Z_]{1,32}) ([0-9]{1,3})')
_RECORD = re.compile(
    rb"(.+) at ([0-9]{1,12}\.[0-9]{1,9}) boot ([0-9a-f-]{36})"
    rb" by ([0-9]{1,10}:[0-9]{1,20}(?: [0-9]{1,10}:[0-9]{1,20}){0,15})"
)


@dataclass(frozen=True, slots=True)
class Notification:
    """One line. `is_group`: it speaks of a sync group, whose members have lines of their own."""

    name: str
    role: Role
    priority: int
    is_group: bool = False


def parse(line: bytes) -> Notification | None:
    """A line without its LF; None for rubbish."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    kind, name, word, priority = found.groups()
    role = _WORDS.get(word, Role.UNKNOWN)
    return Notification(name.decode("ascii"), role, int(priority), kind == b"GROUP")


class Notifications:
    """Cuts what is read from the FIFO into notifications; remembers what it could not read."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_overlong = False
        self.rubbish = 0
        self.last_rubbish = ""
        self.others: set[str] = set()
        """Names of instances and groups that were spoken of; the caller takes out its own."""

    def receive(self, octets: bytes) -> list[Notification]:
        """Any octets, cut anywhere."""
        *lines, self._rest = (self._rest + octets).split(b"\n")
        found = []
        for line in lines:
            notification = None if self._is_overlong else parse(line)
            self._is_overlong = False
            if notification is None:
                self._spoilt(line)
            else:
                found.append(notification)
                if len(self.others) < 32:
                    self.others.add(notification.name)
        if len(self._rest) > LONGEST_LINE:
            self._rest = self._rest[:SHOWN]
            self._is_overlong = True
        return found

    def forget_rest(self) -> None:
        """The writer has gone: a line that it began will not end."""
        if self._rest:
            self._spoilt(self._rest)
        self._rest, self._is_overlong = b"", False

    def _spoilt(self, line: bytes) -> None:
        self.rubbish += 1
        shown = line[:SHOWN]
        self.last_rubbish = "".join(chr(o) if 32 <= o < 127 else "?" for o in shown)


@dataclass(frozen=True, slots=True)
class Life:
    """One process's life: a pid that is used again has another start (proc(5) stat, field 22)."""

    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.start}"


@dataclass(frozen=True, slots=True)
class Record:
    """A role that was said at `at` (CLOCK_BOOTTIME) in that boot, by keepalived and children."""

    notification: Notification
    at: float
    boot_id: str
    keepalived: Life
    children: frozenset[Life]

    def octets(self) -> bytes:
        """One line, ended by LF."""
        said = self.notification
        children = "".join(f" {life}" for life in sorted(self.children, key=lambda one: one.pid))
        kind = "GROUP" if said.is_group else "INSTANCE"
        return (
            f'{kind} "{said.name}" {said.role.value} {said.priority}'
            f" at {self.at:.3f} boot {self.boot_id} by {self.keepalived}{children}\n"
        ).encode("ascii")


def parse_record(octets: bytes) -> Record | None:
    """The first line of a record's file, whatever stands behind it; None for anything else."""
    line, ended, _ = octets.partition(b"\n")
    found = _RECORD.fullmatch(line) if ended else None
    notification = parse(found[1]) if found is not None else None
    if found is None or notification is None:
        return None
    first, *rest = (Life(*map(int, pair.split(b":"))) for pair in found[4].split())
    return Record(notification, float(found[2]), found[3].decode("ascii"), first, frozenset(rest))
