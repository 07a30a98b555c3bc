"""Certificates for tests and trials: an authority of one's own, and what it signs.

    authority = Authority()
    pair = authority.issue(directory, "bridgehead.example.org")
    pair.chain, pair.key        paths of PEM files
    authority.write(directory)  the path of what a client has to trust

Law: keys are made here and now, on the P-256 curve (0.1 ms each), and are worth nothing elsewhere.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


class Pair(NamedTuple):
    """Paths of a certificate and its key."""

    chain: str
    key: str


class Authority:
    """Signs for whatever name is asked."""

    def __init__(self, name: str = "Test Authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        builder = _begun(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())

    def write(self, directory: str) -> str:
        return _written(directory, "authority.pem", _pem(self.certificate))

    def issue(
        self,
        directory: str,
        *names: str,
        file: str = "",
        kind: str = "ec",
        ends: datetime | None = None,
    ) -> Pair:
        """For these host names and IP addresses. `kind` is that of the key: ec or rsa."""
        key: Any = ec.generate_private_key(ec.SECP256R1())
        if kind == "rsa":
            key = rsa.generate_private_key(65537, 2048)
        builder = _begun(
            _named(names[0] if names else "nobody"), self._name, key.public_key(), ends
        )
        if names:
            general = [_general(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = file or (names[0].replace("*", "_") if names else "nobody")
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Pair(
            _written(directory, f"{stem}.pem", _pem(certificate) + _pem(self.certificate)),
            _written(directory, f"{stem}.key", secret, 0o600),
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: Any, ends: datetime | None = None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    ends = ends or now + timedelta(days=36500)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - timedelta(days=2))
        .not_valid_after(ends)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _written(directory: str, name: str, octets: bytes, mode: int = 0o644) -> str:
    """Beside, then renamed: who reads meanwhile reads one or the other."""
    path = os.path.join(directory, name)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(octets)
    os.rename(f"{path}.new", path)
    return path
