"""TLS towards a server: what is wanted of one association, and who is spared the attempt.

Law: only where TLS is a wish and no must is a failed handshake remembered; it is forgotten within
the hour, for a downgrade that somebody in the middle forced must not outlive him by much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mta.association.dane import Proof
from mta.association.sts_terms import Trial
from mta.association.tls_terms import TlsTerms
from mta.interfaces import ITlsManners, ITlsNoted
from mta.model import NextHop, TlsManner
from mta.telemetry import Telemetry

PLAINLY_SECONDS = 3600.0
MOST = 10_000
"""Servers remembered; of more the oldest are forgotten."""


class TlsWish(NamedTuple):
    """`name` is the server's, for SNI and, under `verify`, for its certificate, unless the terms
    have names; where there is a `proof` (DANE) that alone decides. A `trial` (MTA-STS) looks at
    what the server shows and decides nothing.
    """

    tls: ITlsManners
    name: str
    terms: TlsTerms
    telemetry: Telemetry
    proof: Proof | None = None
    certificate: str | tuple[str, str] = ""
    """See TlsManner."""
    trial: Trial | None = None

    @property
    def asks(self) -> bool:
        """The server has to prove who it is."""
        return self.terms.word == "verify" or self.proof is not None

    def opening(self) -> Any:
        """What Twisted's startTLS wants."""
        terms = self.terms
        manner = TlsManner(terms.word == "verify", terms.minimum, self.certificate)
        if self.trial is not None and not manner.verify:
            return ITlsNoted(self.tls).noted_in(self.name, manner)
        return self.tls.opening_in(self.name, manner)

    def check(self, handle: Any) -> None:
        """After the handshake. @raise PermanentFailure: the server is not who it has to be."""
        if self.proof is not None:
            self.proof.check(handle)
        elif self.terms.names:
            self.tls.check_names(handle, self.terms.names)
        elif self.terms.word == "verify":
            self.tls.check_name(handle, self.name)
        if self.trial is not None:
            self.trial.judge(ITlsNoted(self.tls), handle)


class Plainly:
    """Servers whose handshake failed of late. Pure: time comes in as monotonic seconds."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}

    def remember(self, hop: NextHop, now: float) -> None:
        self._until.pop((hop.host, hop.port), None)
        while len(self._until) >= MOST:
            self._until.pop(next(iter(self._until)))
        self._until[hop.host, hop.port] = now + PLAINLY_SECONDS

    def holds(self, hop: NextHop, now: float) -> bool:
        return self._until.get((hop.host, hop.port), 0.0) > now
