"""The queue in memory: one slot a message, in columns of plain numbers.

Law: no object is kept for a queued message; a column entry is 1 to 8 octets, a slot is reused when
its message has left. Everything about a message that is not here is read from its record. The
columns are what a checkpoint holds, octet by octet.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from heapq import heappush
from itertools import compress

from mta.spool.due import Domains, DueTimes, entry
from mta.spool.priorities import LEVEL_OF, LEVELS, NORMAL
from mta.spool.records import Place
from mta.spool.sorted_keys import SortedKeys

LIVE, TAKEN, HELD, BIG = 1, 2, 4, 8
_LEVEL_SHIFT = 4
NOWHERE = Place(0, 0, 0)
_SERIAL_DIGITS = 16
"""Queue ids up to this long are a number; longer ones are derived (model.derived_queue_id)."""

COLUMNS = (
    ("key", "Q"),
    ("message_segment", "I"),
    ("message_offset", "I"),
    ("message_length", "I"),
    ("message_crc", "I"),
    ("state_segment", "I"),
    ("state_offset", "I"),
    ("state_length", "I"),
    ("state_crc", "I"),
    ("due", "d"),
    ("received", "I"),
    ("size", "Q"),
    ("domain", "I"),
    ("flags", "B"),
)

_SUMS = struct.Struct("<QQ")
_IS_TAKEN = bytes(bool(flags & TAKEN) for flags in range(256))
_NOT_TAKEN = bytes(flags & ~TAKEN for flags in range(256))
_IS_FREE = bytes(not flags for flags in range(256))
_IS_RANKED = bytes(flags >> _LEVEL_SHIFT != NORMAL and flags & LIVE for flags in range(256))


class Index:
    """Slots by queue id, their columns, and who is due."""

    def __init__(self) -> None:
        self.key = array("Q")
        self.message_segment = array("I")
        """Reference of the segment that holds the MSG or COPY; the ledger knows the name."""
        self.message_offset = array("I")
        self.message_length = array("I")
        self.message_crc = array("I")
        self.state_segment = array("I")
        """0: the state is still the one in the MSG record."""
        self.state_offset = array("I")
        self.state_length = array("I")
        self.state_crc = array("I")
        self.due = array("d")
        self.received = array("I")
        self.size = array("Q")
        self.domain = array("I")
        self.flags = array("B")
        self.derived: dict[str, int] = {}
        """Slots of derived queue ids, which do not fit into 64 bits."""
        self.derived_names: dict[int, str] = {}
        self.serials = SortedKeys()
        self.domains = Domains()
        self.due_times = DueTimes(self.domains, self._due_of)
        self.held = 0
        self.octets = 0
        self._free: list[int] = []
        self._columns = tuple(getattr(self, name) for name, _ in COLUMNS)

    def __len__(self) -> int:
        return len(self.serials) + len(self.derived)

    # one message

    def find(self, queue_id: str) -> int:
        """Its slot, or -1."""
        if len(queue_id) <= _SERIAL_DIGITS:
            try:
                return self.serials.find(int(queue_id, 16))
            except (ValueError, OverflowError):
                return -1
        return self.derived.get(queue_id, -1)

    def queue_id(self, slot: int) -> str:
        name = self.derived_names.get(slot) if self.derived_names else None
        return f"{self.key[slot]:014X}" if name is None else name

    def insert(
        self,
        queue_id: str,
        segment: int,
        place: Place,
        *,
        due: float,
        received: float,
        size: int,
        domain: bytes,
        priority: int = 0,
        held: bool = False,
        taken: bool = False,
        big: bool = False,
    ) -> int:
        """Answers its slot, or -1 when it was there already."""
        derived = len(queue_id) > _SERIAL_DIGITS
        if derived:
            key = 0
            if queue_id in self.derived:
                return -1
        else:
            key = int(queue_id, 16)
            if self.serials.find(key) >= 0:
                return -1
        number = self.domains.take(domain)
        level = LEVEL_OF[priority]
        flags = LIVE | taken * TAKEN | held * HELD | big * BIG | level << _LEVEL_SHIFT
        stamp = int(received) if 0 < received < 1 << 32 else 0
        if self._free:
            slot = self._free.pop()
            self.key[slot] = key
            self.message_segment[slot] = segment
            self.message_offset[slot], self.message_length[slot], self.message_crc[slot] = place
            self.state_segment[slot] = 0
            self.due[slot] = due
            self.received[slot] = stamp
            self.size[slot] = size
            self.domain[slot] = number
            self.flags[slot] = flags
        else:
            slot = len(self.key)
            row = (key, segment, *place, 0, 0, 0, 0, due, stamp, size, number, flags)
            for column, value in zip(self._columns, row, strict=True):
                column.append(value)
        if derived:
            self.derived[queue_id] = slot
            self.derived_names[slot] = queue_id
        else:
            self.serials.add(key, slot)
        self.octets += size
        if held:
            self.held += 1
        elif not taken:
            self.due_times.push(number, due, slot, level)
        return slot

    def remove(self, slot: int) -> None:
        flags = self.flags[slot]
        name = self.derived_names.pop(slot, None) if self.derived_names else None
        if name is None:
            self.serials.remove(self.key[slot])
        else:
            del self.derived[name]
        self.flags[slot] = 0
        self.octets -= self.size[slot]
        if flags & HELD:
            self.held -= 1
        self.domains.drop(self.domain[slot])
        self._free.append(slot)

    def priority(self, slot: int) -> int:
        return LEVELS[self.flags[slot] >> _LEVEL_SHIFT]

    def set_state_place(self, slot: int, segment: int, place: Place) -> None:
        self.state_segment[slot] = segment
        self.state_offset[slot], self.state_length[slot], self.state_crc[slot] = place

    def state_place(self, slot: int) -> Place:
        return Place(self.state_offset[slot], self.state_length[slot], self.state_crc[slot])

    def set_message_place(self, slot: int, segment: int, place: Place) -> None:
        self.message_segment[slot] = segment
        self.message_offset[slot], self.message_length[slot], self.message_crc[slot] = place

    def message_place(self, slot: int) -> Place:
        return Place(self.message_offset[slot], self.message_length[slot], self.message_crc[slot])

    # due

    def schedule(
        self,
        slot: int,
        due: float,
        *,
        held: bool,
        domain: bytes | None = None,
        taken: bool = False,
    ) -> None:
        """Set when the message is due; it is no longer taken, unless `taken` says so."""
        flags = self.flags[slot]
        self.held += held - bool(flags & HELD)
        flags &= ~(TAKEN | HELD)
        self.flags[slot] = flags | held * HELD | taken * TAKEN
        self.due[slot] = due
        number = self.domain[slot]
        if domain is not None and domain != self.domains.names[number]:
            # The new name is taken before the old is dropped: they may be the last users.
            fresh = self.domains.take(domain)
            self.domains.drop(number)
            self.domain[slot] = number = fresh
        if not held and not taken:
            self.due_times.push(number, due, slot, flags >> _LEVEL_SHIFT)

    def take_due(self, now: float, limit: int, avoid: Collection[bytes]) -> list[int]:
        slots = self.due_times.take(now, limit, avoid)
        for slot in slots:
            self.flags[slot] |= TAKEN
        return slots

    def _due_of(self, slot: int, domain: int, level: int) -> float | None:
        flags = self.flags[slot]
        if flags & (LIVE | TAKEN | HELD) != LIVE or flags >> _LEVEL_SHIFT != level:
            return None
        if self.domain[slot] != domain:
            return None
        return self.due[slot]

    # all

    def live_slots(self) -> Iterator[int]:
        return (slot for slot, flags in enumerate(self.flags) if flags)

    def after(self, queue_id: str) -> Iterator[int]:
        """Slots in the order of queue ids, behind `queue_id`; derived ids follow their origin.
        Nothing may change while it runs.
        """
        names = sorted(self.derived)
        at = bisect_right(names, queue_id)
        start = queue_id[:14] if len(queue_id) > _SERIAL_DIGITS else queue_id
        key = int(start, 16) if start else 0
        for serial, slot in self.serials.after(key):
            name = f"{serial:014X}"
            while at < len(names) and names[at] < name:
                yield self.derived[names[at]]
                at += 1
            yield slot
        for name in names[at:]:
            yield self.derived[name]

    def oldest_received(self) -> float | None:
        """Of the message with the lowest queue id: ids ascend with time."""
        slot = self.serials.first()
        if slot < 0:
            slot = next(iter(self.derived.values()), -1)
        return float(self.received[slot]) if slot >= 0 else None

    # checkpoints

    def dump(self) -> list[bytes]:
        """The columns as octets, in the order of COLUMNS, then what would take a loop over all
        messages to make again from them: a copy of memory, no loop over messages here either.
        """
        return [
            *(column.tobytes() for column in self._columns),
            _SUMS.pack(self.held, self.octets),
            self.domains.counts.tobytes(),
            *self.serials.dump(),
            *self.domains.dump_heaps(),
        ]

    @classmethod
    def load(
        cls, sections: Sequence[bytes | memoryview], names: list[bytes], derived: dict[str, int]
    ) -> Index:
        """What `dump` gave. Whoever had taken a message is gone: it waits again.

        @raise ValueError: the sections do not fit together.
        """
        made = cls()
        columns, rest = sections[: len(COLUMNS)], sections[len(COLUMNS) :]
        for column, octets in zip(made._columns, columns, strict=True):
            column.frombytes(octets)
        rows = len(made.key)
        if any(len(column) != rows for column in made._columns):
            raise ValueError("columns of different length")
        sums, counts, keys, slots, lengths, entries = rest
        made.derived = derived
        made.derived_names = {slot: name for name, slot in derived.items()}
        made.held, made.octets = _SUMS.unpack(sums)
        made.serials = SortedKeys.load(keys, slots)
        made.domains.load(names, counts, lengths, entries)
        made._put_back_taken()
        made._rank()
        made._shrink()
        if not len(made) == sum(made.domains.counts) == len(made.key) - len(made._free):
            raise ValueError("its columns, keys and domains speak of different messages")
        for number in range(len(names)):
            made.due_times.loaded(number)
        return made

    def _put_back_taken(self) -> None:
        flags = self.flags.tobytes()
        for slot in compress(range(len(flags)), flags.translate(_IS_TAKEN)):
            if not flags[slot] & HELD:
                heappush(self.domains.heaps[self.domain[slot]], entry(self.due[slot], slot))
        self.flags = array("B", flags.translate(_NOT_TAKEN))
        self._columns = tuple(getattr(self, name) for name, _ in COLUMNS)

    def _rank(self) -> None:
        """The heaps of a checkpoint have all of a domain in one; those of another level than most
        get theirs.
        """
        flags = self.flags.tobytes()
        ranked: dict[int, set[int]] = {}
        for slot in compress(range(len(flags)), flags.translate(_IS_RANKED)):
            ranked.setdefault(self.domain[slot], set()).add(slot)
        for number, slots in ranked.items():
            self.domains.without(number, slots)
            for slot in slots:
                if not self.flags[slot] & HELD:
                    level = self.flags[slot] >> _LEVEL_SHIFT
                    self.due_times.push(number, self.due[slot], slot, level)

    def _shrink(self) -> None:
        """A queue that was long once costs no more than it holds: free rows at the end go, when
        they are the greater part. Heaps may still speak of them.
        """
        flags = self.flags.tobytes()
        rows = len(flags.rstrip(b"\0"))
        if rows <= len(flags) // 2:
            for column in self._columns:
                del column[rows:]
            self.domains.forget_slots(rows)
        flags = self.flags.tobytes()
        self._free = list(compress(range(len(flags)), flags.translate(_IS_FREE)))
