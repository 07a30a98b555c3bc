"""Keeps answers as long as they say, and no more of them than it may.

Law: pure but for the clock it was given; the oldest go when there are too many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_LONGEST = 3_600.0
"""Seconds: mail may outlive a mistake in a zone by an hour, not by the week its TTL says."""


class Cache(Generic[K, V]):
    """A dictionary that forgets."""

    def __init__(self, now: Callable[[], float], most: int = 10_000) -> None:
        self._now = now
        self._most = most
        self._kept: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] <= self._now():
            del self._kept[key]
            return None
        return found[1]

    def put(self, key: K, value: V, seconds: float) -> None:
        """Keep it; not at all when `seconds` is 0."""
        if seconds <= 0.0:
            return
        self._kept.pop(key, None)
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (self._now() + min(seconds, _LONGEST), value)

    def __len__(self) -> int:
        return len(self._kept)
