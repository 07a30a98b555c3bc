"""Which processes a running keepalived is: its own, and its children. As proc(5) tells it.

Law: a pid proves nothing, since it is used again; a pid with its start time names one life. What
cannot be read is not alive.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mta.cluster.vrrp import Life

_NOT_RUNNING = frozenset("TtZXx")
"""Stopped by a signal or a debugger, ended, dead (proc(5), stat field 3)."""
MOST_OCTETS = 4096


def read_small(path: str) -> bytes:
    """The beginning of a file in memory (/proc, /run). @raise OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read(MOST_OCTETS)


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat."""

    life: Life
    state: str
    parent: int


def parse_stat(octets: bytes) -> Stat | None:
    """proc(5): the name in parentheses may hold anything, parentheses and blanks too."""
    head, _, tail = octets.rpartition(b")")
    pid = head.partition(b" ")[0]
    fields = tail.split()
    if not pid.isdigit() or len(fields) < 20 or len(fields[0]) != 1:
        return None
    if not (fields[1].isdigit() and fields[19].isdigit()):
        return None
    return Stat(Life(int(pid), int(fields[19])), chr(fields[0][0]), int(fields[1]))


@dataclass(frozen=True, slots=True)
class Family:
    """A living keepalived and its children. `stopped` names those that a signal has stopped."""

    keepalived: Life
    children: frozenset[Life]
    stopped: tuple[int, ...] = ()


def find_family(pidfile: str, read: Callable[[str], bytes] = read_small) -> Family | str:
    """The keepalived whose pid the pidfile holds, or why there is none."""
    try:
        text = read(pidfile)
    except OSError as fault:
        return f"{pidfile}: {fault.strerror}"
    found = re.fullmatch(rb"\s*([1-9][0-9]{0,9})\s*", text)
    if found is None:
        return f"{pidfile} holds no process id"
    pid = int(found[1])
    parent = _stat(pid, read)
    if parent is None or parent.state in "ZXx":
        return f"{pidfile} names process {pid}, which does not live"
    try:
        pids = read(f"/proc/{pid}/task/{pid}/children").split()
    except OSError as fault:
        return f"the children of process {pid} cannot be seen: {fault.strerror}"
    stats = [_stat(int(child), read) for child in pids if child.isdigit()]
    children = [s for s in stats if s is not None and s.parent == pid and s.state not in "ZXx"]
    if not children:
        return f"process {pid} of {pidfile} has no child that speaks VRRP"
    stopped = tuple(s.life.pid for s in (parent, *children) if s.state in _NOT_RUNNING)
    return Family(parent.life, frozenset(s.life for s in children), stopped)


def _stat(pid: int, read: Callable[[str], bytes]) -> Stat | None:
    try:
        stat = parse_stat(read(f"/proc/{pid}/stat"))
    except OSError:
        return None
    return stat if stat is not None and stat.life.pid == pid else None
