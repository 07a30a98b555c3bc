"""DANE for SMTP: what the TLSA records of a server demand, and which certificates they are for.

Law: pure, and any octets in a record end in a defined result. Records that are not validated count
for nothing; validated ones that cannot be used still forbid to go without TLS. Nothing here makes a
demand weaker than its records do.

RFC 7672 2.2 (what follows from records), 3.1 (usages: only DANE-TA and DANE-EE can be used), RFC
6698 2.1 (fields of a record), RFC 7671 9 (of several digests the strongest alone counts).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from hashlib import sha256, sha512
from typing import NamedTuple

from mta.model import Tlsa, TlsaRecords

DANE_TA = 2
"""Usage: an authority of the server's own signed its certificate."""
DANE_EE = 3
"""Usage: it is the server's certificate or key. Names and dates do not matter (RFC 7672 3.1.1)."""
CERTIFICATE, KEY = 0, 1
"""Selectors: the whole certificate, or its SubjectPublicKeyInfo; DER."""
FULL, SHA256, SHA512 = 0, 1, 2
"""Matching types."""
_OCTETS = {SHA256: sha256().digest_size, SHA512: sha512().digest_size}


class Demand(enum.Enum):
    WISH = "wish"
    """No secure records: TLS where it is offered, and nobody is asked who he is."""
    MUST = "must"
    """Secure records, none that can be used: TLS, and nobody is asked who he is."""
    PROOF = "proof"
    """TLS, and a certificate that the records are for."""


class Shown(NamedTuple):
    """A certificate as a server shows it, and the SubjectPublicKeyInfo in it; both DER."""

    certificate: bytes
    key: bytes


def demanded(answer: TlsaRecords) -> tuple[Demand, tuple[Tlsa, ...]]:
    """What the answer demands, and the records that a proof is to match."""
    if not answer.is_secure or not answer.records:
        return Demand.WISH, ()
    usable = _strongest([record for record in answer.records if is_usable(record)])
    return (Demand.PROOF, usable) if usable else (Demand.MUST, ())


def is_usable(record: Tlsa) -> bool:
    """Can it match any certificate at all (RFC 7672 3.1.3, RFC 6698 2.1.4)?"""
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (CERTIFICATE, KEY):
        return False
    if record.matching == FULL:
        return bool(record.data)
    return len(record.data) == _OCTETS.get(record.matching)


def _strongest(records: list[Tlsa]) -> tuple[Tlsa, ...]:
    """RFC 7671 9: for a usage and selector, SHA-256 counts only where there is no SHA-512; the
    whole thing counts always.
    """
    better = {(r.usage, r.selector) for r in records if r.matching == SHA512}
    return tuple(r for r in records if r.matching != SHA256 or (r.usage, r.selector) not in better)


def matches(record: Tlsa, shown: Shown) -> bool:
    """The record is for this certificate or its key; of its usage nothing is asked."""
    if not is_usable(record):
        return False
    octets = shown.certificate if record.selector == CERTIFICATE else shown.key
    if record.matching == SHA256:
        return sha256(octets).digest() == record.data
    if record.matching == SHA512:
        return sha512(octets).digest() == record.data
    return octets == record.data


def is_end_entity(records: Iterable[Tlsa], first: Shown) -> bool:
    """One of the records is for the certificate that the server shows first, as its own."""
    return any(record.usage == DANE_EE and matches(record, first) for record in records)


def is_anchor(records: Iterable[Tlsa], further: Shown) -> bool:
    """One of the records is for this further certificate, as an authority."""
    return any(record.usage == DANE_TA and matches(record, further) for record in records)


def anchors_told(records: Iterable[Tlsa]) -> tuple[bytes, ...]:
    """Authorities whose certificate stands in a record itself, DER or what the zone took for it:
    the server need not show them (RFC 7671 5.2.1).
    """
    return tuple(
        record.data
        for record in records
        if (record.usage, record.selector, record.matching) == (DANE_TA, CERTIFICATE, FULL)
        and record.data
    )
