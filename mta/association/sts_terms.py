"""What a policy of MTA-STS makes of the terms of one association.

Law: terms only become stronger by it. DANE that can be proved, and what an operator says of a
domain (`tls-exceptions`), stand before it: then nobody is asked for a policy. A policy in testing
changes nothing of what is sent; what it would have stopped is counted and said.

RFC 8461 2 (DANE first), 4.1 (the server's name), 4.2 (its certificate), 5 (enforce, testing).
"""

from __future__ import annotations

from typing import Any, Protocol

from mta.association.sts import in_force
from mta.association.tls_results import OTHER
from mta.association.tls_terms import TlsTerms
from mta.errors import PermanentFailure, StartRefused, TransientFailure
from mta.interfaces import IStsSurroundings, ISurroundings, ITlsNoted
from mta.model import NextHop, StsMode, StsPolicy
from mta.telemetry import Telemetry
from mta.wire.smtp.client_outcomes import NO_TLS
from mta.wire.sts import names


class Told(Protocol):
    """What reports are told of an attempt (association/tls_attempts.py)."""

    def held_to(self, policy: StsPolicy) -> None: ...

    def would_fail(self, result: str, why: str) -> None: ...

    def ended(self, result: str = "", why: str = "") -> None: ...


class StsTerms:
    """Belongs to a connector with `mta-sts: true`. @raise StartRefused: nobody knows policies."""

    def __init__(self, surroundings: ISurroundings) -> None:
        known = IStsSurroundings(surroundings, None)
        if known is None:
            raise StartRefused(
                "mta-sts: true needs somebody who gets policies",
                "these surroundings have nobody",
                "say `mta-sts: false`",
            )
        self._policies = known.sts
        self._telemetry: Telemetry = surroundings.telemetry

    async def applied(
        self, hop: NextHop, terms: TlsTerms, attempt: Told | None
    ) -> tuple[TlsTerms, Trial | None]:
        """@raise TransientFailure: its policy does not name this server."""
        if not _has_policies(hop.domain, terms):
            return terms, None
        policy = in_force(await self._policies.policy(hop.domain))
        if policy is None:
            return terms, None
        if attempt is not None:
            attempt.held_to(policy)
        trial = Trial(self._telemetry, hop, policy, attempt)
        if not trial.is_enforced:
            return terms, trial
        if not names(policy, hop.name):
            trial.failed(why := f"the policy of {hop.domain} does not name this server")
            if attempt is not None:
                attempt.ended(OTHER, why)
            raise TransientFailure(hop.relay, f"mta-sts: {why}", enhanced="4.7.0")
        why = f"mta-sts of {hop.domain}"
        return TlsTerms("verify", (), terms.minimum, why), trial

    def explain(self, domain: str, terms: TlsTerms) -> str:
        """For `mta route explain`."""
        if not _has_policies(domain, terms):
            return "mta-sts: not asked for"
        return f"mta-sts: {self._policies.known(domain)}"


def _has_policies(domain: str, terms: TlsTerms) -> bool:
    return bool(domain) and domain[0] != "[" and not terms.is_exception


class Trial:
    """How one server does by a policy."""

    def __init__(
        self, telemetry: Telemetry, hop: NextHop, policy: StsPolicy, attempt: Told | None
    ) -> None:
        self._telemetry = telemetry
        self._hop = hop
        self._policy = policy
        self._attempt = attempt
        self.is_enforced = policy.mode is StsMode.ENFORCE
        self._is_judged = False

    def judge(self, tls: ITlsNoted, handle: Any) -> None:
        """After a handshake that the terms did not end."""
        if not names(self._policy, self._hop.name):
            self.failed(f"the policy of {self._hop.domain} does not name this server")
            return
        try:
            tls.check_chain(handle)
            tls.check_name(handle, self._hop.name)
        except PermanentFailure as fault:
            self.failed(str(fault), getattr(fault, "result", OTHER))
        else:
            self._judged("met")

    def ended(self) -> None:
        """The association is open, be it without TLS."""
        if not self._is_judged:
            self.failed("there is no TLS with it")

    def failure(self, failure: TransientFailure, tls_fault: str) -> TransientFailure:
        """What the mail waits for: where the policy is enforced and that is why, it says so."""
        if not self.is_enforced or not (tls_fault or failure.enhanced == NO_TLS.enhanced):
            return failure
        self.failed(failure.why)
        enhanced = failure.enhanced if failure.enhanced.startswith("4.7.") else "4.7.5"
        return TransientFailure(failure.what, f"mta-sts: {failure.why}", enhanced=enhanced)

    def failed(self, why: str, result: str = OTHER) -> None:
        """`result` as RFC 8460 4.3 has it."""
        self._judged("failed")
        if not self.is_enforced:
            if self._attempt is not None:
                self._attempt.would_fail(result, why)
            text = f"{self._hop.relay}: mta-sts (testing) of {self._hop.domain}: {why}"
            self._telemetry.notice("warning", "association", text)

    def _judged(self, result: str) -> None:
        self._is_judged = True
        self._telemetry.counter(
            "mta_sts_servers_total",
            "Servers held to an MTA-STS policy, by its mode, and whether they met it.",
            mode=self._policy.mode.value,
            result=result,
        ).inc()
