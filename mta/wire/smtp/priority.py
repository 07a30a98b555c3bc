"""How urgent: MT-PRIORITY, by which a client says it.

Law: what is no priority is refused when it is said (501). A value is one of 19 spellings: no plus,
no leading zero.

RFC 6710.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mta.model import PRIORITIES
from mta.wire.smtp.grammar import Checks, Refused

KEYWORD: Final = b"MT-PRIORITY"
_VALUES: Final = frozenset(b"%d" % priority for priority in PRIORITIES)


@dataclass(frozen=True, slots=True)
class PriorityTerms:
    """What clients are offered; `profile` names the assignment policy, b"" for none."""

    profile: bytes = b""

    @property
    def word(self) -> bytes:
        """EHLO's line."""
        return b"%b %b" % (KEYWORD, self.profile) if self.profile else KEYWORD

    @property
    def checks(self) -> Checks:
        """MAIL's parameter."""
        return {KEYWORD: check_priority}


def check_priority(value: bytes | None) -> bytes:
    """@raise Refused: no priority."""
    if value not in _VALUES:
        raise Refused(501, "5.5.4", b"MT-PRIORITY takes a number from -9 to 9")
    assert value is not None
    return value
