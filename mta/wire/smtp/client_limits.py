"""What a server says that it takes at most: the words behind LIMITS in its reply to EHLO.

Law: pure. A limit that is malformed or unknown is as good as not said, never an error; of two that
have one name the smaller counts. RFC 9422 3 (syntax), 4.1 (MAILMAX), 4.2 (RCPTMAX). RCPTDOMAINMAX
(4.3) is not read: the server says no to whom it does not take, and they are tried again.
"""

from __future__ import annotations

from dataclasses import dataclass

from mta.model import Reply

_DIGITS = 6
"""RFC 9422 4.1, 4.2: a number has at most six, and does not begin with 0."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """0: the peer did not say. Both count commands, whether or not they are accepted."""

    transactions: int = 0
    """MAILs of one association."""
    recipients: int = 0
    """RCPTs of one transaction."""

    @property
    def next_time(self) -> Reply:
        """Our own words for a recipient that was not offered yet."""
        return Reply(452, "4.5.3", (b"RCPTMAX of the next server is %d" % self.recipients,))


def peer_limits(parameters: bytes) -> PeerLimits:
    """`parameters` is what stands behind the keyword; b"" where it was not announced."""
    if not parameters:
        return _NONE
    found: dict[bytes, int] = {}
    for word in parameters.split():
        name, _, value = word.partition(b"=")
        if value.isdigit() and len(value) <= _DIGITS and not value.startswith(b"0"):
            name, number = name.upper(), int(value)
            found[name] = min(number, found.get(name, number))
    return PeerLimits(found.get(b"MAILMAX", 0), found.get(b"RCPTMAX", 0))


_NONE = PeerLimits()
