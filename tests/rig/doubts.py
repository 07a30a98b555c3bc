"""What the nodes say while they run: the messages they name as in doubt, and what they never should.

Law: a double is named by the line of its own queue id and its own side. What our log names and was
not doubled is no fault: the list is what may be doubled.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.rig.pacemaker import Cluster
from tests.rig.pair import Pair
from tests.rig.traffic import Sums, Tail

_DOUBT = re.compile(rb"([0-9A-F]{14,}): in doubt: side=(inbound|outbound), slot=")
_TOO_MANY = re.compile(rb"in doubt: \d+ more (inbound|outbound)")
NEVER = (b"Traceback (most recent call last)", b"Unhandled error", b" mta/twisted[")


class Doubts:
    """Reads the logs of both nodes as they grow; `look` before asking."""

    def __init__(self, pair: Pair | Cluster) -> None:
        self._pair = pair
        self._tails: dict[str, Tail] = {}
        self.named: Counter[tuple[str, str]] = Counter()
        """By side and queue id."""
        self.complaints: list[str] = []
        """Lines that no log may hold."""

    def look(self) -> None:
        for path in self._pair.logs():
            tail = self._tails.setdefault(path, Tail(path))
            for line in tail.lines():
                if b"in doubt" in line:
                    found = _DOUBT.search(line)
                    if found:
                        self.named[found[2].decode(), found[1].decode()] += 1
                    elif _TOO_MANY.search(line):
                        self.complaints.append(_text(line))
                elif any(words in line for words in NEVER):
                    self.complaints.append(_text(line))

    def unnamed(self, sums: Sums) -> list[str]:
        """The doubles that no line named, in words."""
        lacking = []
        for side, doubles in (
            ("outbound", sums.outbound_doubles()),
            ("inbound", sums.inbound_doubles()),
        ):
            lacking += [
                f"{queue_id} ({side})" for queue_id in doubles if not self.named[side, queue_id]
            ]
        return lacking


def _text(line: bytes) -> str:
    return line[:600].decode("utf-8", "replace")
