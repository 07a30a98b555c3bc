"""Priorities as they lie on disk, and as the queue in memory keeps them.

Law: what X.400's three grades were written as before there were more values still is what they are
written as, and 0, which nearly every message has, is the octet that it always was. Places are
appended, never moved.

RFC 6710 (-9 to 9), and its section 5: six levels at least are told apart.
"""

from __future__ import annotations

from typing import Final

NORMAL: Final = 1
"""The place of priority 0, in both tuples."""

PRIORITIES: Final = (4, 0, -4, 9, 8, 7, 6, 5, 3, 2, 1, -1, -2, -3, -5, -6, -7, -8, -9)
"""By their octet in an envelope."""
OCTETS: Final = {priority: octet for octet, priority in enumerate(PRIORITIES)}

LEVELS: Final = PRIORITIES[:16]
"""By four bits: what a MSG's flags and the index have room for. The lowest four are one."""
LEVEL_OF: Final = {p: OCTETS[max(p, min(LEVELS))] for p in PRIORITIES}
BEST_FIRST: Final = tuple(sorted(range(len(LEVELS)), key=lambda level: -LEVELS[level]))
