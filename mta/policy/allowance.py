"""What one client, user or recipient may still have of something: in a time, and at once.

Law: memory is bounded whatever comes. Of allowances those asked for longest ago are forgotten
first, and start afresh; of places only those that are taken are known, so there are never more than
open transactions have named.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

_ROUNDING = 1.000001
"""A millionth of an interval for the rounding of many small sums."""


class Allowances:
    """So many an interval for each key, of one or more kinds: a burst of all of them at once, and
    an even refill. A number None is no limit. Times are monotonic seconds.
    """

    def __init__(self, interval: float, numbers: Sequence[int | None], capacity: int) -> None:
        self._longest = interval * _ROUNDING
        self._spacing = tuple(interval / n if n is not None else 0.0 for n in numbers)
        self._capacity = capacity
        # For each key and kind, the time at which its allowance will be full again.
        self._full_at: OrderedDict[Hashable, list[float]] = OrderedDict()

    def __len__(self) -> int:
        """How many keys are remembered now."""
        return len(self._full_at)

    def spend(self, key: Hashable, kind: int, now: float) -> bool:
        """Take one from the allowance; False: it is used up, and none was taken."""
        spacing = self._spacing[kind]
        if not spacing:
            return True
        times = self._full_at.get(key)
        if times is None:
            if len(self._full_at) >= self._capacity:
                self._full_at.popitem(last=False)
            times = self._full_at[key] = [0.0] * len(self._spacing)
        else:
            self._full_at.move_to_end(key)
        full_at = max(times[kind], now) + spacing
        if full_at - now > self._longest:
            return False
        times[kind] = full_at
        return True


class Places:
    """So many at once for each key; None: as many as come, and nothing is counted."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._taken: dict[Hashable, int] = {}

    def __len__(self) -> int:
        """How many keys have a place taken now."""
        return len(self._taken)

    def is_free(self, key: Hashable) -> bool:
        """One more may take a place."""
        return self._number is None or self._taken.get(key, 0) < self._number

    def take(self, key: Hashable) -> None:
        """Each `take` is followed by one `give_back`."""
        if self._number is not None:
            self._taken[key] = self._taken.get(key, 0) + 1

    def give_back(self, key: Hashable) -> None:
        """@raise KeyError: no place of that key is taken."""
        if self._number is None:
            return
        left = self._taken[key] - 1
        if left:
            self._taken[key] = left
        else:
            del self._taken[key]
