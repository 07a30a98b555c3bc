"""What is told of TLS with the servers of a domain, for reports (RFC 8460).

Law: one attempt is told once, with the address that the server saw; only of mail that goes by MX,
whose domain is the one that the report is for. Where TLS is not wanted, or was not tried because it
failed within the hour, there is nothing to tell.
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from mta.association.dane import Demanded
from mta.association.smtp_out import SmtpSender
from mta.errors import Failure, MTAError
from mta.interfaces import ITenure
from mta.model import NextHop, StsPolicy, Tlsa
from mta.telemetry import Telemetry, TlsAttempt
from mta.wire.dane import Demand
from mta.wire.smtp.client_outcomes import NO_TLS
from mta.wire.smtp.client_states import Secrecy

NO_POLICY = "no-policy-found"
NOT_OFFERED = "starttls-not-supported"
DNSSEC = "dnssec-invalid"
NO_USABLE_RECORD = "tlsa-invalid"


class Attempt:
    """With one server."""

    def __init__(self, telemetry: Telemetry, tenure: ITenure, hop: NextHop) -> None:
        self._telemetry = telemetry
        self._tenure = tenure
        self._hop = hop
        self._demand = Demand.WISH
        self._would: tuple[str, str] | None = None
        self._policy: tuple[str, tuple[str, ...], tuple[str, ...]] = (NO_POLICY, (), ())

    def demanded(self, wanted: Demanded) -> None:
        """What the domain's signed records ask for, if there are any."""
        self._demand = wanted.demand
        if wanted.demand is not Demand.WISH:
            self._policy = ("tlsa", tuple(map(_shown, wanted.records)), (wanted.name,))

    def no_records(self, why: str) -> None:
        """They could not be looked up."""
        self._policy = ("tlsa", (), (self._hop.name,))
        self.ended(DNSSEC, why)

    def held_to(self, policy: StsPolicy) -> None:
        """The domain's policy (MTA-STS)."""
        exchangers = tuple(f"mx: {name}" for name in policy.mx)
        mode, age = f"mode: {policy.mode.value}", f"max_age: {policy.max_age}"
        self._policy = ("sts", ("version: STSv1", mode, *exchangers, age), policy.mx)

    def would_fail(self, result: str, why: str) -> None:
        """By a policy in testing; it goes on all the same."""
        self._would = (result, why)

    def opened(self, sender: SmtpSender, secrecy: Secrecy) -> None:
        """The association is open, under TLS or not."""
        if not sender.is_secure:
            if secrecy is not Secrecy.NEVER:
                self.ended(NOT_OFFERED)
        elif self._would is not None:
            self.ended(*self._would)
        elif self._demand is Demand.MUST:
            self.ended(NO_USABLE_RECORD, "none of the TLSA records can be used")
        else:
            self.ended()

    def failed(self, sender: SmtpSender, failure: Failure) -> None:
        """It came to nothing, be it for another reason than TLS."""
        if sender.tls_result:
            self.ended(sender.tls_result, sender.tls_fault)
        elif failure.enhanced == NO_TLS.enhanced and not sender.is_secure:
            self.ended(NOT_OFFERED, failure.why)

    def ended(self, result: str = "", why: str = "") -> None:
        """`result` as RFC 8460 4.3 names it; "" for a success."""
        hop = self._hop
        policy, strings, hosts = self._policy
        self._telemetry.event(
            TlsAttempt(
                domain=hop.domain,
                policy=policy,
                policy_strings=strings,
                policy_hosts=hosts,
                mx=hop.name,
                receiving=hop.host,
                sending=self._source(),
                result=result,
                reason=why,
            )
        )

    def _source(self) -> str:
        """Our address as this server sees it."""
        family = AF_INET6 if ip_address(self._hop.host).version == 6 else AF_INET
        try:
            return str(self._tenure.address_for(family).external)
        except MTAError:  # the tenure has no address of this family, and there was no attempt
            return ""


def _shown(record: Tlsa) -> str:
    """As it stands in a zone."""
    return f"{record.usage} {record.selector} {record.matching} {record.data.hex().upper()}"
