"""Who is due: a heap of due times for each domain, and the turn of the domains.

Law: bounded work for each message taken, whatever waits; fair over domains, so that ten thousand
messages for a slow domain never stand before one for a quick one; within a domain, strictly by
level, and within a level the oldest first (RFC 6710). Domains are interned while something is
queued for them. Entries may be stale (taken, held, moved): the columns decide when one is popped.

An entry is one int, half seconds of due time above the message's slot: 40 octets a message, and
order within half a second. Messages of another level than NORMAL have heaps of their own, made for
the first of them, gone with the last message of the domain.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush

from mta.spool.priorities import BEST_FIRST, NORMAL

TIMED = b" by"
"""Behind a domain: its messages that have a time (RFC 2852). No domain holds a blank."""
_BITS = 28
_MASK = (1 << _BITS) - 1


def domain_of(name: bytes) -> bytes:
    """The domain itself."""
    return name.removesuffix(TIMED)


class Domains:
    """Interned domain names with the number of messages queued for each. What has a time is apart,
    as of another domain: it is offered though mail for the domain be left alone.
    """

    __slots__ = ("counts", "free", "heaps", "names", "numbers", "ranked")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.numbers: dict[bytes, int] = {}
        self.counts = array("I")
        self.heaps: list[list[int]] = []
        """Of level NORMAL."""
        self.ranked: dict[int, dict[int, list[int]]] = {}
        """Of the other levels, best first, for each domain that has any."""
        self.free: list[int] = []

    def take(self, name: bytes) -> int:
        number = self.numbers.get(name)
        if number is None:
            if self.free:
                number = self.free.pop()
                self.names[number] = name
            else:
                number = len(self.names)
                self.names.append(name)
                self.counts.append(0)
                self.heaps.append([])
            self.numbers[name] = number
        self.counts[number] += 1
        return number

    def drop(self, number: int) -> None:
        self.counts[number] -= 1
        if not self.counts[number]:
            del self.numbers[self.names[number]]
            self.names[number] = b""
            self.heaps[number] = []
            self.ranked.pop(number, None)
            self.free.append(number)

    def of_level(self, number: int, level: int) -> list[int]:
        """The heap for it, made when there is none."""
        if level == NORMAL:
            return self.heaps[number]
        ranked = self.ranked.get(number, {})
        heap = ranked.get(level)
        if heap is None:
            heap = ranked[level] = []
            self.ranked[number] = {x: ranked[x] for x in BEST_FIRST if x in ranked}
        return heap

    def best_first(self, number: int) -> list[tuple[int, list[int]]]:
        """All heaps of a domain, with their levels."""
        ranked = self.ranked.get(number)
        if not ranked:
            return [(NORMAL, self.heaps[number])]
        found = {NORMAL: self.heaps[number], **ranked}
        return [(level, found[level]) for level in BEST_FIRST if level in found]

    def without(self, number: int, slots: Collection[int]) -> None:
        """Their entries at level NORMAL go."""
        kept = [entry for entry in self.heaps[number] if entry & _MASK not in slots]
        heapify(kept)
        self.heaps[number] = kept

    def by_domain(self) -> dict[bytes, int]:
        """Messages queued for each, for people."""
        found: dict[bytes, int] = {}
        for name, number in self.numbers.items():
            domain = domain_of(name)
            found[domain] = found.get(domain, 0) + self.counts[number]
        return found

    def dump_heaps(self) -> tuple[bytes, bytes]:
        """The length of each heap, and all of them behind one another; one heap a domain, whatever
        levels it has.
        """
        heaps = self.heaps
        if self.ranked:
            heaps = list(heaps)
            for number in self.ranked:
                heaps[number] = sorted(e for _, heap in self.best_first(number) for e in heap)
        lengths = array("I", map(len, heaps))
        return lengths.tobytes(), b"".join([array("Q", heap).tobytes() for heap in heaps])

    def load(
        self,
        names: list[bytes],
        counts: bytes | memoryview,
        lengths: bytes | memoryview,
        entries: bytes | memoryview,
    ) -> None:
        """Into a new object. @raise ValueError: the parts do not fit together."""
        sizes = array("I")
        sizes.frombytes(lengths)
        self.counts.frombytes(counts)
        if not len(names) == len(self.counts) == len(sizes) or sum(sizes) * 8 != len(entries):
            raise ValueError("domains, their counts and their heaps do not fit together")
        self.names = list(names)
        at = 0
        for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
            heap = array("Q")
            heap.frombytes(entries[at : at + 8 * size])
            self.heaps.append(heap.tolist())
            at += 8 * size
            if self.counts[number]:
                self.numbers[name] = number
            else:
                self.free.append(number)

    def forget_slots(self, first: int) -> None:
        """Stale entries of slots from `first` on go: these slots are no more."""
        for number, heap in enumerate(self.heaps):
            kept = [entry for entry in heap if entry & _MASK < first]
            if len(kept) < len(heap):
                heapify(kept)
                self.heaps[number] = kept


class DueTimes:
    """The order in which messages are offered. `due_of(slot, domain, level)` answers the message's
    due time, or None when that slot is not waiting there (taken, held, gone, another's by now).
    """

    __slots__ = ("_due_of", "_now", "_order", "_ready", "_waiting", "domains")

    def __init__(self, domains: Domains, due_of: Callable[[int, int, int], float | None]) -> None:
        self.domains = domains
        self._due_of = due_of
        self._order: list[int] = []
        """Heap of (tick of the domain's first entry, domain)."""
        self._ready: deque[int] = deque()
        """Domains with something due, in the order of their turns."""
        self._waiting = bytearray()
        """1 for each domain in `_ready`."""
        self._now = 0.0

    def push(self, domain: int, due: float, slot: int, level: int = NORMAL) -> None:
        domains = self.domains
        heap = domains.heaps[domain] if level == NORMAL else domains.of_level(domain, level)
        entry = _tick(due) << _BITS | slot
        heappush(heap, entry)
        count = self.domains.counts[domain]
        if len(heap) > 2 * count + 64:  # mostly stale: an operator's acts, many times over
            self._rebuild(domain, level, heap)
        if heap[0] == entry and not (domain < len(self._waiting) and self._waiting[domain]):
            heappush(self._order, entry >> _BITS << _BITS | domain)

    def loaded(self, domain: int) -> None:
        """Its heaps were set as a whole, or its turn is over."""
        heads = [heap[0] for _, heap in self.domains.best_first(domain) if heap]
        if heads:
            heappush(self._order, min(heads) >> _BITS << _BITS | domain)

    def take(self, now: float, limit: int, avoid: Collection[bytes]) -> list[int]:
        """Slots that are due, a turn for each domain, the best of it."""
        self._now = now
        self._wake(now)
        ready, names, waiting = self._ready, self.domains.names, self._waiting
        taken: list[int] = []
        passed: list[int] = []
        seen: set[int] = set()
        while ready and len(taken) < limit:
            domain = ready.popleft()
            if avoid and names[domain] in avoid:
                passed.append(domain)
                continue
            slot = self._pop(domain, now, seen)
            if slot < 0:
                waiting[domain] = 0
                self.loaded(domain)
                continue
            taken.append(slot)
            seen.add(slot)
            ready.append(domain)
        ready.extendleft(reversed(passed))
        return taken

    def next_due(self, avoid: Collection[bytes]) -> float | None:
        """The earliest due time outside `avoid`; a domain whose turn it is answers for all."""
        names = self.domains.names
        found: float | None = None
        for domain in self._ready:
            if names[domain] not in avoid and (due := self._first(domain)) is not None:
                if due <= self._now:
                    return due
                found = due if found is None else min(found, due)
        order, passed = self._order, []
        while order:
            domain = order[0] & _MASK
            stale = domain < len(self._waiting) and self._waiting[domain]
            if not stale and names[domain] in avoid:
                passed.append(heappop(order))
                continue
            due = None if stale else self._first(domain)
            if due is None:
                heappop(order)
                continue
            tick = _tick(due)
            if order[0] >> _BITS < tick:  # its first entry was stale: look again by its new place
                heappop(order)
                heappush(order, tick << _BITS | domain)
                continue
            found = due if found is None else min(found, due)
            break
        for entry in passed:
            heappush(order, entry)
        return found

    def _wake(self, now: float) -> None:
        order, tick = self._order, _tick(now)
        waiting = self._waiting
        if len(waiting) < len(self.domains.names):
            waiting.extend(bytes(len(self.domains.names) - len(waiting)))
        while order and order[0] >> _BITS <= tick:
            domain = heappop(order) & _MASK
            if not waiting[domain] and any(heap for _, heap in self.domains.best_first(domain)):
                waiting[domain] = 1
                self._ready.append(domain)

    def _first(self, domain: int) -> float | None:
        """The due time of the domain's first entry that is not stale."""
        found: float | None = None
        for level, heap in self.domains.best_first(domain):
            due = self._first_in(heap, domain, level)
            if due is not None and (found is None or due < found):
                found = due
        return found

    def _first_in(self, heap: list[int], domain: int, level: int) -> float | None:
        while heap:
            due = self._due_of(heap[0] & _MASK, domain, level)
            if due is not None and _tick(due) == heap[0] >> _BITS:
                return due
            heappop(heap)
        return None

    def _pop(self, domain: int, now: float, seen: set[int]) -> int:
        for level, heap in self.domains.best_first(domain):
            while (due := self._first_in(heap, domain, level)) is not None and due <= now:
                slot = heappop(heap) & _MASK
                if slot not in seen:
                    return slot
        return -1

    def _rebuild(self, domain: int, level: int, heap: list[int]) -> None:
        kept = set()
        for entry in heap:
            due = self._due_of(entry & _MASK, domain, level)
            if due is not None and _tick(due) == entry >> _BITS:
                kept.add(entry)
        entries = list(kept)
        heapify(entries)
        heap[:] = entries


def entry(due: float, slot: int) -> int:
    """As the heaps hold it."""
    return _tick(due) << _BITS | slot


def _tick(due: float) -> int:
    return int(due * 2) if due > 0 else 0
