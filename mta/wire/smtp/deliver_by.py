"""In time, please: BY, by which a sender says until when its message is of use, both ways.

Law: a time that cannot be kept is refused when it is said. What must come back when its time is
over (mode R) goes on only to servers that see to it, with what is left of the time, never more.

RFC 2852 2 (syntax; the least time that a server asks for), 4.1.4 (handing on).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import NamedTuple

from mta.model import Envelope, Reply, Requires
from mta.wire.smtp.grammar import Checks, Refused

MOST_SECONDS = 999_999_999
"""RFC 2852 2: a time has at most nine digits."""

_BY = re.compile(rb"([+-]?[0-9]{1,9});([NR])(T?)")
_LEAST = re.compile(rb"[0-9]{1,9}")

NO_DELIVERBY = Reply(
    554,
    "5.4.7",
    (b"the message must be delivered in time and the next server does not offer DELIVERBY",),
)


class By(NamedTuple):
    """`seconds` from MAIL; then it is returned, or its sender is told that it is late."""

    seconds: int
    returns: bool
    traces: bool
    """Its sender wants to hear of every server that it was handed on to."""


def parse_by(value: bytes | None) -> By:
    """@raise ValueError: it is none."""
    found = _BY.fullmatch((value or b"").upper())
    if found is None:
        raise ValueError("malformed")
    seconds, mode, trace = found.groups()
    return By(int(seconds), mode == b"R", bool(trace))


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """What a listener offers: mode R from `least` seconds on, 0 for any time."""

    least: int = 0

    @property
    def word(self) -> bytes:
        """EHLO's line."""
        return b"DELIVERBY %d" % self.least if self.least else b"DELIVERBY"

    @property
    def checks(self) -> Checks:
        """MAIL's parameter."""
        return {b"BY": self._by}

    def _by(self, value: bytes | None) -> bytes:
        try:
            by = parse_by(value)
        except ValueError:
            text = b"BY takes seconds, a semicolon, N or R, and T or nothing: BY=600;R"
            raise Refused(501, "5.5.4", text) from None
        if by.returns and by.seconds <= 0:
            raise Refused(501, "5.5.4", b"BY with R takes a time that is not over yet")
        if by.returns and by.seconds < self.least:
            text = b"BY with R is at least %d seconds here" % self.least
            raise Refused(555, "5.5.4", text)
        return _value(by.seconds, by.returns, by.traces)


def by_words(
    extensions: Mapping[bytes, bytes], envelope: Envelope, seconds: float, *, relays: bool
) -> bytes | Reply:
    """What goes behind MAIL FROM:<...>, with a blank before it; or why it must not go there.
    `seconds` are left of its time; what is not relayed has reached its end with this server.
    """
    offered = extensions.get(b"DELIVERBY")
    returns = Requires.IN_TIME in envelope.requires
    if offered is None:
        return NO_DELIVERBY if returns and relays else b""
    left = max(-MOST_SECONDS, min(MOST_SECONDS, floor(seconds)))
    if returns and left < max(1, least_of(offered)):
        if not relays:
            return b""
        text = b"%d seconds are left to deliver the message and the next server asks for %d"
        return Reply(554, "5.4.7", (text % (max(0, left), max(1, least_of(offered))),))
    return b" BY=" + _value(left, returns, Requires.TRACE in envelope.requires)


def least_of(parameters: bytes) -> int:
    """The least time of a server that said so behind DELIVERBY; 0 for what is no time."""
    first = parameters.partition(b",")[0].strip()
    return int(first) if _LEAST.fullmatch(first) else 0


def _value(seconds: int, returns: bool, traces: bool) -> bytes:
    return b"%d;%b%b" % (seconds, b"R" if returns else b"N", b"T" if traces else b"")
