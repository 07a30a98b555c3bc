"""Policies of MTA-STS that were fetched, each until it expires, and the octets they are kept as.

Law: pure; time comes in as seconds since 1970, for policies outlive the process. A policy is given
up when it expires, or, when there are too many, the one that was not used for longest; nothing else
takes one away. Octets that are not whole are no book.

RFC 8461 3.2 (max_age), 5.1 (a policy holds from when it was fetched), 10.2 (refreshing).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256

from mta.model import StsMode, StsPolicy
from mta.wire.sts import LONGEST_AGE

MOST = 10_000
MOST_OCTETS = 16 * 2**20
"""Of names of servers and domains; a policy can name thousands."""
_OVERHEAD_OCTETS = 300
REFRESH_SECONDS = 86400.0
"""A policy that mail needs is fetched anew so often (RFC 8461 10.2), or after half of its life."""
AGAIN_SECONDS = 3600.0
"""When that failed."""
UNUSED_SECONDS = 30 * 86400.0
"""One that no mail needed for so long is left to expire."""
_HEAD = b"mta-sts 1 "


@dataclass(slots=True)
class Kept:
    """A policy, under the id that its record had. `tried`: when it was last tried to refresh it."""

    id: str
    policy: StsPolicy
    fetched: float
    used: float
    tried: float = 0.0

    def expires(self, now: float) -> float:
        """A clock that was wrong when it was fetched does not make it older than it can be."""
        return min(self.fetched, now) + self.policy.max_age

    def is_due(self, now: float) -> bool:
        """To be fetched anew."""
        if now - self.used > UNUSED_SECONDS:
            return False
        pause = min(REFRESH_SECONDS, self.policy.max_age / 2)
        fetched, tried = min(self.fetched, now), min(self.tried, now)
        return now - fetched >= pause and now - tried >= min(pause, AGAIN_SECONDS)

    @property
    def octets(self) -> int:
        return _OVERHEAD_OCTETS + sum(len(name) + 60 for name in self.policy.mx)


class Book:
    """By domain; those used last stand last."""

    def __init__(self, most: int = MOST, most_octets: int = MOST_OCTETS) -> None:
        self._most = most
        self._most_octets = most_octets
        self._kept: dict[str, Kept] = {}
        self._octets = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, domain: str, now: float) -> Kept | None:
        """What holds now."""
        found = self._kept.get(domain)
        if found is not None and found.expires(now) <= now:
            self._remove(domain)
            return None
        return found

    def use(self, domain: str, now: float) -> Kept | None:
        """The same, for mail."""
        found = self.get(domain, now)
        if found is not None:
            found.used = now
            self._kept[domain] = self._kept.pop(domain)
        return found

    def put(self, domain: str, kept: Kept) -> None:
        if domain in self._kept:
            self._remove(domain)
        self._kept[domain] = kept
        self._octets += kept.octets
        while len(self._kept) > self._most or self._octets > self._most_octets:
            self._remove(next(iter(self._kept)))

    def _remove(self, domain: str) -> None:
        self._octets -= self._kept.pop(domain).octets

    def due(self, now: float) -> list[str]:
        """Those to be fetched anew, those used last first; what has expired goes."""
        for domain in [d for d, kept in self._kept.items() if kept.expires(now) <= now]:
            self._remove(domain)
        return [d for d, kept in reversed(self._kept.items()) if kept.is_due(now)]

    # --- as octets ---

    def octets(self) -> bytes:
        entries = [
            [domain, k.id, k.policy.mode.value, k.policy.max_age, k.fetched, k.used, *k.policy.mx]
            for domain, k in self._kept.items()
        ]
        body = "".join(f"{json.dumps(entry)}\n" for entry in entries).encode("ascii")
        return _HEAD + sha256(body).hexdigest().encode("ascii") + b"\n" + body

    def read(self, octets: bytes) -> None:
        """Take over what `octets` gave. @raise ValueError: they are not whole, or another's."""
        head, _, body = octets.partition(b"\n")
        if head != _HEAD + sha256(body).hexdigest().encode("ascii"):
            raise ValueError("its check sum is not that of its content")
        try:
            entries = [_entry(json.loads(line)) for line in body.splitlines()]
        except (OverflowError, RecursionError):
            raise ValueError("a line of it is no policy") from None
        for domain, found in entries:
            self.put(domain, found)


def _entry(entry: object) -> tuple[str, Kept]:
    if not isinstance(entry, list) or len(entry) < 6:
        raise ValueError("a line of it is no policy")
    domain, name, mode, max_age, fetched, used, *exchangers = entry
    texts = (domain, name, *exchangers)
    numbers = (max_age, fetched, used)
    if not all(isinstance(t, str) for t in texts) or not all(
        isinstance(n, int | float) for n in numbers
    ):
        raise ValueError("a line of it is no policy")
    if not 0 <= max_age <= LONGEST_AGE or not math.isfinite(fetched + used):
        raise ValueError("a line of it is no policy")
    policy = StsPolicy(StsMode(mode), tuple(exchangers), int(max_age))
    return domain, Kept(name, policy, float(fetched), float(used))
