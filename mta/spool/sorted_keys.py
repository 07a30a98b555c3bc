"""Sorted 64-bit keys with a 32-bit value each, in blocks: 12 octets an entry and a little slack.

Law: every operation is bounded by the size of one block; nothing is ever rebuilt as a whole, for
a pause of the reactor is a pause of every association. Keys mostly come in ascending order
(serial numbers) and mostly leave from the front.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

_BLOCK = 512
"""Entries a block: a removal moves at most 6 KiB."""


class SortedKeys:
    """A map from unsigned 64-bit keys to unsigned 32-bit values, in the keys' order."""

    __slots__ = ("_count", "_keys", "_last", "_values")

    def __init__(self) -> None:
        self._last: list[int] = []
        """The largest key of each block."""
        self._keys: list[array[int]] = []
        self._values: list[array[int]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def dump(self) -> tuple[bytes, bytes]:
        """Keys and values in order: what `load` takes."""
        return b"".join(self._keys), b"".join(self._values)

    @classmethod
    def load(cls, keys: bytes | memoryview, values: bytes | memoryview) -> SortedKeys:
        """@raise ValueError: not as many values as keys."""
        made = cls()
        all_keys, all_values = array("Q"), array("I")
        all_keys.frombytes(keys)
        all_values.frombytes(values)
        if len(all_keys) != len(all_values):
            raise ValueError(f"{len(all_keys)} keys with {len(all_values)} values")
        for start in range(0, len(all_keys), _BLOCK):
            made._keys.append(all_keys[start : start + _BLOCK])
            made._values.append(all_values[start : start + _BLOCK])
            made._last.append(made._keys[-1][-1])
        made._count = len(all_keys)
        return made

    def add(self, key: int, value: int) -> None:
        """`key` must not be there yet."""
        last = self._last
        self._count += 1
        if not last or key > last[-1]:
            if not last or len(self._keys[-1]) >= _BLOCK:
                self._keys.append(array("Q", (key,)))
                self._values.append(array("I", (value,)))
                last.append(key)
                return
            self._keys[-1].append(key)
            self._values[-1].append(value)
            last[-1] = key
            return
        block = bisect_left(last, key)
        keys = self._keys[block]
        at = bisect_left(keys, key)
        keys.insert(at, key)
        self._values[block].insert(at, value)
        if len(keys) > 2 * _BLOCK:
            self._keys.insert(block + 1, keys[_BLOCK:])
            self._values.insert(block + 1, self._values[block][_BLOCK:])
            del keys[_BLOCK:], self._values[block][_BLOCK:]
            last[block] = keys[-1]
            last.insert(block + 1, self._keys[block + 1][-1])

    def find(self, key: int) -> int:
        """The value, or -1."""
        last = self._last
        block = bisect_left(last, key)
        if block == len(last):
            return -1
        keys = self._keys[block]
        at = bisect_left(keys, key)
        return self._values[block][at] if keys[at] == key else -1

    def remove(self, key: int) -> int:
        """Answers its value. @raise KeyError"""
        last = self._last
        block = bisect_left(last, key)
        if block == len(last):
            raise KeyError(key)
        keys = self._keys[block]
        at = bisect_left(keys, key)
        if keys[at] != key:
            raise KeyError(key)
        del keys[at]
        value = self._values[block].pop(at)
        self._count -= 1
        if not keys:
            del self._keys[block], self._values[block], last[block]
        else:
            last[block] = keys[-1]
            if len(keys) < _BLOCK // 4 and block + 1 < len(self._keys):
                self._merge(block)
        return value

    def after(self, key: int) -> Iterator[tuple[int, int]]:
        """(key, value) of those behind `key`, ascending. Nothing may change meanwhile."""
        first = bisect_right(self._last, key)
        for block in range(first, len(self._last)):
            keys, values = self._keys[block], self._values[block]
            start = bisect_right(keys, key) if block == first else 0
            for at in range(start, len(keys)):
                yield keys[at], values[at]

    def first(self) -> int:
        """The value of the smallest key, or -1."""
        return self._values[0][0] if self._values else -1

    def _merge(self, block: int) -> None:
        """With the one behind it: long-lived stragglers would else keep a block each."""
        behind = block + 1
        if len(self._keys[block]) + len(self._keys[behind]) < _BLOCK:
            self._keys[block] += self._keys.pop(behind)
            self._values[block] += self._values.pop(behind)
            del self._last[block]
