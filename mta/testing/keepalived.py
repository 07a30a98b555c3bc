"""A keepalived of paper: a FIFO with a writer, a pid file, processes in a /proc of paper.

Law: it behaves as the real one was seen to (2.2.7): its VRRP child holds the FIFO open for reading
and writing, so that what it said waits there for a reader; it says its role on a change only; a
FIFO without a writer reads as ended, for ever.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from mta.cluster.processes import Stat
from mta.cluster.vrrp import Life, Notification, Record, Role

CAPACITY = 65536


class PaperKeepalived:
    """Hand `open_fifo` and `read` to a Keepalived resource. `deliver()` lets it read."""

    def __init__(
        self,
        doors: Any,
        *,
        instance: str = "MAIL",
        fifo: str = "/run/mta-keepalived/fifo",
        pidfile: str = "/run/keepalived.pid",
        state_file: str = "/run/mta-keepalived/role",
        boot_id: str = "00000000-0000-4000-8000-00000000000a",
    ) -> None:
        self._doors = doors
        self.instance = instance
        self.fifo, self.pidfile, self.state_file = fifo, pidfile, state_file
        self.boot_id = boot_id
        self.files: dict[str, bytes] = {}
        self.refuses: OSError | None = None
        self.stats: dict[int, Stat] = {}
        self.opens = 0
        self._buffer = bytearray()
        self._has_writer = False
        self._readers: list[PaperFifo] = []
        self._next_pid = 100
        self._next_start = 5000

    # the machine, as the resource reads it
    def read(self, path: str) -> bytes:
        parts = path.split("/")
        if path.startswith("/proc/") and parts[-1] == "stat" and int(parts[2]) in self.stats:
            stat = self.stats[int(parts[2])]
            zeros = " 0" * 17
            text = f"{stat.life.pid} (a) b) {stat.state} {stat.parent}{zeros} {stat.life.start} 0\n"
            return text.encode()
        if path.startswith("/proc/") and parts[-1] == "children" and int(parts[2]) in self.stats:
            mine = [str(pid) for pid, stat in self.stats.items() if stat.parent == int(parts[2])]
            return " ".join(mine).encode()
        if path in self.files:
            return self.files[path]
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def open_fifo(self, path: str) -> PaperFifo:
        self.opens += 1
        if self.refuses is not None:
            raise self.refuses
        made = PaperFifo(self)
        self._readers.append(made)
        return made

    def deliver(self) -> None:
        """As the reactor would: whatever is readable is read, a hang-up is told."""
        for reader in list(self._doors.watched):
            reader.doRead()

    # the program
    def start(self, *words: str) -> None:
        """It runs, with one VRRP child, and says these words."""
        parent = self._born(1)
        self.files[self.pidfile] = f"{parent}\n".encode()
        self.start_child(*words)

    def start_child(self, *words: str) -> None:
        self._born(self.pid)
        self._has_writer = True
        for word in words:
            self.say(word)

    def _born(self, parent: int) -> int:
        self._next_pid += 1
        self._next_start += 7
        self.stats[self._next_pid] = Stat(Life(self._next_pid, self._next_start), "S", parent)
        return self._next_pid

    @property
    def pid(self) -> int:
        return int(self.files[self.pidfile])

    @property
    def children(self) -> list[int]:
        return [pid for pid, stat in self.stats.items() if stat.parent == self.pid]

    def say(self, word: str, *, name: str = "", kind: str = "INSTANCE") -> None:
        self.write(f'{kind} "{name or self.instance}" {word} 150\n'.encode())

    def write(self, octets: bytes) -> None:
        """What does not fit is dropped, as keepalived does."""
        if len(self._buffer) + len(octets) <= CAPACITY:
            self._buffer += octets

    def note(self, word: str, at: float) -> None:
        """What the notify script writes down."""
        lives = [self.stats[pid].life for pid in (self.pid, self.children[0])]
        said = Notification(self.instance, Role(word), 150)
        record = Record(said, at, self.boot_id, lives[0], frozenset(lives[1:]))
        self.files[self.state_file] = record.octets()

    def signal(self, pid: int, state: str) -> None:
        """T: stopped; S: it goes on."""
        stat = self.stats[pid]
        self.stats[pid] = Stat(stat.life, state, stat.parent)

    def kill(self, pid: int) -> None:
        """kill -9. With its VRRP child goes what nobody read, unless a reader has the FIFO open."""
        was_child = pid in self.children
        del self.stats[pid]
        if was_child:
            self._has_writer = False
            if not self._readers:
                self._buffer.clear()

    def kill_all(self) -> None:
        for pid in (*self.children, self.pid):
            self.kill(pid)


class PaperFifo:
    """One reader's end."""

    capacity = CAPACITY

    def __init__(self, keepalived: PaperKeepalived) -> None:
        self._keepalived = keepalived

    def fileno(self) -> int:
        return 78

    def read(self) -> bytes | None:
        buffer = self._keepalived._buffer
        octets = bytes(buffer[:4096])
        del buffer[:4096]
        return octets if octets or not self._keepalived._has_writer else None

    def close(self) -> None:
        self._keepalived._readers.remove(self)
        if not self._keepalived._has_writer and not self._keepalived._readers:
            self._keepalived._buffer.clear()
