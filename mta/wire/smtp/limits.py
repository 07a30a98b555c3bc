"""What a responder lets a peer use.

Law: with them whatever a peer sends takes a bounded memory. RFC 5321 4.5.3.1, RFC 9422 (LIMITS).
"""

from __future__ import annotations

from dataclasses import dataclass

COMMAND_LIMIT = 2048
"""Octets of a command line with CRLF. RFC 5321 4.5.3.1.4 says 512, and each extension adds to it:
with all registered ones (AUTH, ORCPT, RRVS ...) a MAIL or RCPT may legally have about 1700."""

_MOST_SAID = 999_999
"""RFC 9422 4.2: RCPTMAX has at most six digits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may use; the reasons of the defaults stand in SmtpListenerSettings."""

    size_octets: int = 25 * 2**20
    recipients: int = 1000
    errors: int = 20
    commands: int = 0
    """Commands of one association before 421; 0 means no limit."""
    line_octets: int = 998
    normalise_newlines: bool = False
    vrfy: bool = True
    """VRFY is answered, though it tells nothing."""
    refuse_early: bool = False
    """A client that talks before the greeting is refused by it."""

    @property
    def words(self) -> tuple[bytes, ...]:
        """EHLO's line of what clients can heed: none where RFC 9422 has no number for it."""
        most = self.recipients
        return (b"LIMITS RCPTMAX=%d" % most,) if 0 < most <= _MOST_SAID else ()
