"""What only clients that may relay are offered: an extension is a word of EHLO, and parameters.

Law: a contract of the responder's, no more. Whoever is not offered it gets 555 for its parameters.
"""

from __future__ import annotations

from typing import Protocol

from mta.wire.smtp.grammar import Checks


class Offer(Protocol):
    """FutureRelease, DeliverBy and PriorityTerms are."""

    @property
    def word(self) -> bytes:
        """EHLO's line."""

    @property
    def checks(self) -> Checks:
        """MAIL's parameters."""
