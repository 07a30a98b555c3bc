"""Later, please: HOLDFOR and HOLDUNTIL, by which a client asks that its message wait.

Law: a time that cannot be kept is refused when it is said (501), never shortened in silence. What
is handed on is one number: the second, since 1970 or from now, at which the message may go.

RFC 4865 (FUTURERELEASE), RFC 3339 5.6 (dates, by erratum 2040).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mta.wire.smtp.grammar import Checks, Refused

_DIGITS = 9
"""RFC 4865 4: an interval has at most nine."""
_DATE_OCTETS = 40


@dataclass(frozen=True, slots=True)
class FutureRelease:
    """How long messages may wait here: `seconds` from MAIL, until `latest` (since 1970)."""

    seconds: int
    latest: int

    @property
    def word(self) -> bytes:
        """EHLO's line."""
        until = datetime.fromtimestamp(self.latest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return b"FUTURERELEASE %d %b" % (self.seconds, until.encode())

    @property
    def checks(self) -> Checks:
        """MAIL's parameters. HOLDUNTIL's value becomes seconds since 1970."""
        return {b"HOLDFOR": self._hold_for, b"HOLDUNTIL": self._hold_until}

    def _hold_for(self, value: bytes | None) -> bytes:
        if not value or not value.isdigit() or len(value) > _DIGITS:
            raise Refused(501, "5.5.4", b"HOLDFOR takes seconds")
        if int(value) > self.seconds:
            raise Refused(501, "5.5.4", b"HOLDFOR is at most %d seconds" % self.seconds)
        return value

    def _hold_until(self, value: bytes | None) -> bytes:
        second = parse_date(value or b"")
        if second is None:
            raise Refused(501, "5.5.4", b"HOLDUNTIL takes a date and time with its zone (RFC 3339)")
        if second > self.latest:
            raise Refused(501, "5.5.4", b"HOLDUNTIL is too far in the future")
        return b"%d" % max(0, second)


def parse_date(text: bytes) -> int | None:
    """RFC 3339's date-time in seconds since 1970; None for what is none."""
    if len(text) > _DATE_OCTETS or text[10:11].upper() != b"T" or not text.isascii():
        return None
    try:
        found = datetime.fromisoformat(text.decode("ascii").upper())
        return None if found.tzinfo is None else int(found.timestamp())
    except (ValueError, OverflowError):
        return None
