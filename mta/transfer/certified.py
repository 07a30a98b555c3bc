"""A reception at a listener that asks its clients for certificates.

Law: a client that is refused for its certificate hears so as the answer to its next EHLO, or in
place of the greeting, and gets no further.
"""

from __future__ import annotations

from dataclasses import replace

from zope.interface import implementer

from mta.interfaces import ICertifies, ITenure
from mta.model import ClientCertificate, PeerInfo, Reply
from mta.policy.certificates import CertificateRule
from mta.transfer.desk import Desk
from mta.transfer.reception import Answer, Associate, Reception


@implementer(ICertifies)
class CertifiedReception(Reception):
    """Made by Intake."""

    __slots__ = ("_rule", "_unwanted")

    def __init__(
        self,
        desk: Desk,
        tenure: ITenure,
        peer: PeerInfo,
        associate: Associate,
        rule: CertificateRule,
    ) -> None:
        super().__init__(desk, tenure, peer, associate)
        self._rule = rule
        self._unwanted: Reply | None = None

    def certified(self, certificate: ClientCertificate | None) -> str:
        """See ICertifies."""
        association = self._association
        judged = self._rule.judge(certificate)
        self._unwanted = self._rule.refusal(judged)
        if judged is None:
            return "Anonymous"
        association.peer = replace(association.peer, certificate=judged)
        if judged.is_listed:
            association.admit()
        elif judged.fault:
            text = f"certificate verification failed for {association.peer.label}"
            self._desk.telemetry.notice("info", "smtpd", f"{text}: {judged.fault}")
        self._stamp.forget()
        return judged.trust

    def connected(self) -> Answer:
        if self._unwanted is not None:  # TLS came before the greeting
            return self._refused(self._unwanted, "CONNECT")
        return super().connected()

    def presented(self, peer: PeerInfo, helo: bytes, protocol: str, user: str) -> Answer:
        """What a proxy has shown is its own: whom it names may not relay by it."""
        if self._unwanted is not None:
            return self._refused(self._unwanted, "CONNECT")
        return super().presented(peer, helo, protocol, user)

    def helo(self, name: bytes, protocol: str) -> Answer:
        if self._unwanted is not None:
            self._association.helo = name
            return self._refused(self._unwanted, "EHLO")
        return super().helo(name, protocol)
