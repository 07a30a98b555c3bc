"""What the certificates of clients are good for, at one listener.

Law: whoever may relay by a certificate has shown one that is listed, octet by octet; that some
authority vouches for a client lets it in where one is required, and never lets it relay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mta.model import ClientCertificate, Reply

NONE: Final = Reply(421, "4.7.1", (b"No client certificate was shown",))
UNTRUSTED: Final = Reply(421, "4.7.1", (b"The client certificate is not trusted",))


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """`listed` are fingerprints, as ClientCertificate has them."""

    is_required: bool = False
    listed: frozenset[str] = frozenset()

    def judge(self, certificate: ClientCertificate | None) -> ClientCertificate | None:
        """The same, and whether it is listed."""
        if certificate is None or certificate.fingerprint not in self.listed:
            return certificate
        return replace(certificate, is_listed=True)

    def refusal(self, certificate: ClientCertificate | None) -> Reply | None:
        """Of one that was judged. Transient: a certificate that has expired overnight is no reason
        to return mail.
        """
        if not self.is_required:
            return None
        if certificate is None:
            return NONE
        return UNTRUSTED if certificate.trust == "Untrusted" else None
