"""The association kinds `smtp` and `lmtp` in the initiator's role: how one is opened.

Law: an association has a slot of its own, unique in the epoch, and TLS on the terms that its
connector has for the destination (association/tls_terms.py): where it is a must nothing is sent
without; where it is a wish, a server that fails at it is asked anew without. Under `tls: dane` each
server's own records say which of the two it is, and with `mta-sts` the policy of the destination
does (association/sts_terms.py). With credentials, whoever does not let us in gets
no mail, and a warning names it.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.association.dane import Dane, Demanded, Proof
from mta.association.flusher import Flusher
from mta.association.secret import UnusableSecret, identify
from mta.association.smtp_out import SmtpSender
from mta.association.smtp_settings import (
    LmtpConnectorSettings,
    SmtpConnectorSettings,
    WireConnectorSettings,
)
from mta.association.sts_terms import StsTerms, Trial
from mta.association.tls_attempts import Attempt
from mta.association.tls_terms import TlsTerms, choose
from mta.association.tls_wish import Plainly, TlsWish
from mta.errors import TransientFailure
from mta.interfaces import (
    IAssociationKind,
    IExplains,
    ISender,
    ISurroundings,
    ITenure,
    ITlsManners,
)
from mta.model import NextHop, TlsManner
from mta.wire.dane import Demand
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_auth import Authentication
from mta.wire.smtp.client_states import Secrecy
from mta.wire.smtp.states import Role

__all__ = ["LmtpConnectorSettings", "LmtpInitiator", "SmtpConnectorSettings", "SmtpInitiator"]

_SECRECY = {
    "none": Secrecy.NEVER,
    "opportunistic": Secrecy.IF_OFFERED,
    "require": Secrecy.ALWAYS,
    "verify": Secrecy.ALWAYS,
}
_UNUSABLE = "our credentials for it cannot be used now"
"""What senders may read in a report; the log says more."""
_DANE_SECRECY = {
    Demand.WISH: Secrecy.IF_OFFERED,
    Demand.MUST: Secrecy.ALWAYS,
    Demand.PROOF: Secrecy.ALWAYS,
}


@implementer(IAssociationKind, IExplains)
class SmtpInitiator:
    """Opens SMTP associations."""

    name = "smtp"
    commit_point = "final dot"
    may_send = True
    may_receive = False
    role = Role.SMTP

    def __init__(self, settings: WireConnectorSettings, surroundings: ISurroundings) -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._checkpoint = isinstance(settings, SmtpConnectorSettings) and settings.checkpoint
        self._auth = settings.auth if isinstance(settings, SmtpConnectorSettings) else None
        self._plainly = Plainly()
        self._exceptions = {each.domain: each.terms() for each in settings.tls_exceptions}
        words = {settings.tls, *(terms.word for terms in self._exceptions.values())}
        self._dane = Dane(surroundings) if "dane" in words else None
        by_policy = isinstance(settings, SmtpConnectorSettings) and settings.mta_sts
        self._sts = StsTerms(surroundings) if by_policy else None
        self._certificate = settings.shown()
        if self._certificate:  # one that cannot be used is refused now
            ITlsManners(surroundings.tls).opening_in("", TlsManner(False, "", self._certificate))
        self._clock = surroundings.clock
        self._doors = surroundings.doors
        self._flusher = Flusher(surroundings.clock)
        # Every connector has its kind's object, but slots are unique in the epoch: the counter that
        # all of them share numbers them.
        self._number = surroundings.telemetry.counter(
            "mta_associations_opened_total", "Associations that we opened.", kind=self.name
        )

    def open(self, tenure: ITenure, hop: NextHop) -> Deferred[ISender]:
        return Deferred.fromCoroutine(self._open(tenure, hop))

    def explain(self, domain: str) -> str:
        """See IExplains."""
        terms = choose(self._settings.tls, self._exceptions, domain)
        said = f"tls: {terms} ({terms.why})"
        return said if self._sts is None else f"{said}; {self._sts.explain(domain, terms)}"

    def _sender(
        self,
        tenure: ITenure,
        relay: str,
        secrecy: Secrecy = Secrecy.NEVER,
        wish: TlsWish | None = None,
        authentication: Authentication | None = None,
    ) -> SmtpSender:
        self._number.inc()
        slot = f"{self.name}/out/{int(self._number.value)}"
        timeouts = self._settings.timeouts.of_machine()
        machine = Initiator(
            tenure.network_name.encode(), self.role, timeouts, secrecy, authentication
        )
        return SmtpSender(
            slot,
            self.name,
            relay,
            machine,
            tenure=tenure,
            clock=self._clock,
            flusher=self._flusher,
            executor=self._surroundings.executor,
            checkpoint=self._checkpoint,
            tunnel=self._settings.priority_field,
            wish=wish,
        )

    def _wish(self, terms: TlsTerms, wanted: Demanded, trial: Trial | None) -> TlsWish:
        tls, proof = ITlsManners(self._surroundings.tls), None
        if wanted.demand is Demand.PROOF:
            proof = Proof(wanted.records, wanted.names, tls, self._clock)
        telemetry = self._surroundings.telemetry
        return TlsWish(tls, wanted.name, terms, telemetry, proof, self._certificate, trial)

    async def _open(self, tenure: ITenure, hop: NextHop) -> ISender:
        """Where TLS is only a wish, a server that cannot do it is asked anew without, and for an
        hour no more.
        """
        authentication = None
        if self._auth is not None:
            try:
                authentication = await identify(self._auth, self._surroundings.executor)
            except UnusableSecret as fault:
                self._warn(f"connector {hop.connector!r} to {hop.relay}: {fault}")
                raise TransientFailure(hop.relay, _UNUSABLE, enhanced="4.3.5") from None
        attempt = self._attempt(tenure, hop)
        terms, secrecy, wanted = await self._terms(hop, attempt)
        trial = None
        if self._sts is not None and wanted.demand is not Demand.PROOF:
            terms, trial = await self._sts.applied(hop, terms, attempt)
            if trial is not None and trial.is_enforced:
                secrecy = Secrecy.ALWAYS
        if secrecy is Secrecy.IF_OFFERED and self._plainly.holds(hop, self._clock.monotonic()):
            secrecy = Secrecy.NEVER
        while True:
            wish = None if secrecy is Secrecy.NEVER else self._wish(terms, wanted, trial)
            sender = self._sender(tenure, hop.relay, secrecy, wish, authentication)
            timeout = self._settings.timeouts.connect
            await self._doors.connect(tenure, hop.host, hop.port, sender, timeout)
            try:
                opened = await sender.opened()
            except TransientFailure as failure:
                if attempt is not None:
                    attempt.failed(sender, failure)
                if sender.auth_fault:
                    who = f"connector {hop.connector!r} to {hop.relay}"
                    self._warn(f"{who}: not authenticated: {sender.auth_fault}")
                if not sender.tls_fault or secrecy is not Secrecy.IF_OFFERED:
                    if sender.tls_fault and terms.is_exception:
                        self._warn(f"{hop.relay}: tls: {terms} ({terms.why}): {sender.tls_fault}")
                    if trial is not None:
                        raise trial.failure(failure, sender.tls_fault) from None
                    raise
            else:
                if trial is not None:
                    trial.ended()
                if attempt is not None:
                    attempt.opened(sender, secrecy)
                return opened
            self._plainly.remember(hop, self._clock.monotonic())
            self._warn(f"{hop.relay}: without TLS: {sender.tls_fault}")
            secrecy = Secrecy.NEVER

    async def _terms(
        self, hop: NextHop, attempt: Attempt | None
    ) -> tuple[TlsTerms, Secrecy, Demanded]:
        """By what was configured and what DNSSEC proves. @raise TransientFailure: nobody knows."""
        terms = choose(self._settings.tls, self._exceptions, hop.domain)
        if terms.word == "dane":
            assert self._dane is not None, "some terms say dane"
            try:
                wanted = await self._dane.demanded(hop)
            except TransientFailure as failure:
                if attempt is not None:
                    attempt.no_records(failure.why)
                raise
            secrecy = _DANE_SECRECY[wanted.demand]
        else:
            wanted = Demanded(Demand.WISH, hop.name or hop.host)
            secrecy = _SECRECY[terms.word]
        if attempt is not None:
            attempt.demanded(wanted)
        return terms, secrecy, wanted

    def _attempt(self, tenure: ITenure, hop: NextHop) -> Attempt | None:
        """Mail that goes by MX is for a domain to which it can be reported."""
        if hop.destination == hop.connector:
            return None
        return Attempt(self._surroundings.telemetry, tenure, hop)

    def _warn(self, text: str) -> None:
        self._surroundings.telemetry.notice("warning", "association", text)


class LmtpInitiator(SmtpInitiator):
    """Opens LMTP associations: over TCP to a bridgehead, or to a UNIX socket of this node."""

    name = "lmtp"
    role = Role.LMTP

    def __init__(self, settings: LmtpConnectorSettings, surroundings: ISurroundings) -> None:
        super().__init__(settings, surroundings)
        self._path = settings.path

    def open(self, tenure: ITenure, hop: NextHop) -> Deferred[ISender]:
        if self._path is None:
            return super().open(tenure, hop)
        sender = self._sender(tenure, f"{hop.host}[{self._path}]")
        return Deferred.fromCoroutine(self._open_path(tenure, self._path, sender))

    async def _open_path(self, tenure: ITenure, path: str, sender: SmtpSender) -> ISender:
        # A UNIX socket has no address that could be wrong, but it must not outlive the tenure.
        tenure.check()
        await self._doors.service_connect("store", f"unix:{path}", sender)
        return await sender.opened(adopt=True)
