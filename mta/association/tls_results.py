"""What did not work under TLS, in RFC 8460's words (4.3) and in OpenSSL's numbers."""

from __future__ import annotations

EXPIRED = "certificate-expired"
MISMATCH = "certificate-host-mismatch"
UNTRUSTED = "certificate-not-trusted"
OTHER = "validation-failure"

FAULTS = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself",
    19: "its authority is not one of ours",
    20: "its authority is not one of ours",
    21: "its authority is not one of ours",
    26: "it is not for this purpose",
}
"""X509_V_ERR_...; the rest by number."""


def words_of(number: int) -> str:
    return FAULTS.get(number, f"fault {number} of X.509")


def result_of(number: int) -> str:
    """0: it was not the certificate."""
    if number == 10:
        return EXPIRED
    return UNTRUSTED if number else OTHER
