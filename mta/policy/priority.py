"""How urgent a client may say that its messages are.

Law: only who may relay is listened to; whoever asks for more than he may gets what he may, and is
told so. Asking for less is everybody's.

RFC 6710 4.1 (authorisation), RFC 6758 3.1 (whose header field counts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mta.wire.fields import without_field

FIELD: Final = b"mt-priority"
"""In lower case."""
_VALUE = re.compile(rb"(?:[ \t\r\n]|\([^()]*\))*(-?[1-9]|0)(?:[ \t\r\n]|\([^()]*\))*")
"""With comments around it (CFWS), as far as they are not nested."""


@dataclass(frozen=True, slots=True)
class PriorityRule:
    """Of one listener."""

    limit: int = 9
    """For clients that relay-from admits, and programs of this node."""
    user_limit: int = 9
    """For clients that have said who they are."""

    def decide(self, asked: int, admitted: bool, user: str) -> int:
        """`user`: who the client is, "" for a client that relay-from admits."""
        if not admitted:
            return 0
        return min(asked, self.user_limit if user else self.limit)


def take_field(block: bytes) -> tuple[bytes, int | None]:
    """The header `block` without the field, and what it said; None if that is no priority, or if
    there is more than one.
    """
    rest, values = without_field(block, FIELD)
    if len(values) != 1:
        return rest, None
    said = _VALUE.fullmatch(values[0])
    return rest, None if said is None else int(said[1])
