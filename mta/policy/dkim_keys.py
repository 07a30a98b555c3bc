"""The keys that sign for our domains: read at start, and again when their files change.

Law: what cannot be used is refused by name at start; later the last good key stays in use, and it
is said so. A key that signs was proved by its own public half when it was read.

RFC 6376 3.3.1 (RSA-SHA256), RFC 8301 3.2 (no RSA key under 2048 bits here, 1024 is its least),
RFC 8463 (Ed25519-SHA256). `cryptography` does the work; it is brought in when first needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mta.errors import StartRefused
from mta.interfaces import IClock
from mta.settings import Boolean, SecretFileSetting, Settings, parse_secret_file
from mta.telemetry import Telemetry

LOOK_SECONDS = 10.0
"""How often, at most, the files are looked at; only when a message is to be signed."""
LEAST_RSA_BITS = 2048

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_PROOF = b"whoever signs must be who verifies"


def _parse_name(value: Any) -> str:
    text = str(value).lower()
    if not _NAME.fullmatch(text) or len(text) > 253:
        raise ValueError(f"{text!r} is not a name in DNS; beyond ASCII write its form xn--...")
    return text


Name = Annotated[str, BeforeValidator(_parse_name)]


class SigningSettings(Settings):
    """One key of one domain. Several of a domain all sign (RSA and Ed25519, RFC 8463 section 3)."""

    domain: Name = Field(description="That of the From field, and of the signature (d=).")
    selector: Name = Field(description="Its key in DNS is at SELECTOR._domainkey.DOMAIN (s=).")
    key_file: SecretFileSetting = Field(
        description="The private key: PEM, RSA from 2048 bits on or Ed25519, no passphrase."
    )
    subdomains: Boolean = Field(
        default=False, description="Sign for the names below the domain too, with this domain."
    )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """`algorithm` is a= of the field. `sign` takes what the field's rule says is signed.

    Measured: 0.35 ms with RSA 2048, 0.9 with 3072, 1.9 with 4096, 0.04 with Ed25519. The library
    keeps the interpreter to itself meanwhile, so that a thread would gain nothing.
    """

    algorithm: bytes
    sign: Callable[[bytes], bytes]


class Keyring:
    """The keys of all domains. @raise StartRefused: a file holds none that can be used."""

    def __init__(
        self, settings: Sequence[SigningSettings], clock: IClock, telemetry: Telemetry
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._entries = [_Entry(one) for one in settings]
        self._looked_at = clock.monotonic()
        for entry in self._entries:
            entry.read()

    def find(self, domain: bytes) -> tuple[SigningSettings, ...]:
        """Who signs for this domain of a From field (lower case): all keys of the nearest name."""
        name = domain.decode("ascii", "replace")
        found = [e.settings for e in self._entries if e.settings.domain == name]
        parent = name
        while not found and parent:
            parent = parent.partition(".")[2]
            found = [
                e.settings
                for e in self._entries
                if e.settings.subdomains and e.settings.domain == parent
            ]
        return tuple(found)

    def key(self, settings: SigningSettings) -> SigningKey:
        """As its file has it now."""
        self._look_again()
        return next(e.key for e in self._entries if e.settings is settings)

    def _look_again(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        for entry in self._entries:
            if not entry.has_changed():
                continue
            path = entry.settings.key_file.path
            try:
                entry.read()
            except StartRefused as fault:
                self._telemetry.notice("error", "dkim", f"{fault}; the former key stays in use")
            else:
                self._telemetry.notice("info", "dkim", f"the key {path} was read again")


class _Entry:
    """`key` is there once `read` came back."""

    key: SigningKey

    def __init__(self, settings: SigningSettings) -> None:
        self.settings = settings
        self._stamp: object = None

    def has_changed(self) -> bool:
        return self._facts() != self._stamp

    def read(self) -> None:
        """@raise StartRefused: and the former key stays."""
        # Before the file is opened: what changes while it is read is then looked at again.
        self._stamp = self._facts()
        self.key = read_key(self.settings.key_file.path)

    def _facts(self) -> object:
        try:
            stat = os.stat(self.settings.key_file.path)
        except OSError as fault:
            return fault.errno
        return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def read_key(path: str) -> SigningKey:
    """Blocking, under a millisecond. @raise StartRefused."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        pem = parse_secret_file(path).read()
    except ValueError as fault:
        raise StartRefused(
            "a DKIM key cannot be used",
            str(fault),
            "the user that the MTA runs as must be able to read it, and nobody else",
        ) from None
    except OSError as fault:
        raise StartRefused(
            f"the DKIM key {path} cannot be read",
            fault.strerror or str(fault),
            "the user that the MTA runs as must be able to read it",
        ) from None
    try:
        # Asking whether its primes are primes takes 40 ms (2048 bits) to 260 ms (4096), and every
        # message would wait for it; the proof below takes one.
        key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError) as fault:
        raise StartRefused(
            f"{path} holds no DKIM key",
            str(fault).partition("\n")[0],
            "it must be a private key in PEM without a passphrase: openssl genpkey makes one",
        ) from None
    except Exception as fault:  # a kind of key that the library does not know
        raise StartRefused(f"{path} holds no DKIM key", str(fault), "use RSA or Ed25519") from None
    if isinstance(key, RSAPrivateKey):
        return _rsa(path, key)
    if isinstance(key, Ed25519PrivateKey):
        sign = key.sign
        return SigningKey(b"ed25519-sha256", lambda signed: sign(sha256(signed).digest()))
    raise StartRefused(
        f"the DKIM key {path} is of another kind",
        f"{type(key).__name__.strip('_')} signs no mail",
        "use RSA or Ed25519 (RFC 8463)",
    )


def _rsa(path: str, key: Any) -> SigningKey:
    """@raise StartRefused."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    if key.key_size < LEAST_RSA_BITS:
        raise StartRefused(
            f"the DKIM key {path} is too small",
            f"RSA of {key.key_size} bits",
            f"make one of {LEAST_RSA_BITS}: receivers pass over smaller ones",
        )
    padding, hashing = PKCS1v15(), SHA256()
    try:
        key.public_key().verify(key.sign(_PROOF, padding, hashing), _PROOF, padding, hashing)
    except (InvalidSignature, ValueError) as fault:
        raise StartRefused(
            f"the DKIM key {path} is damaged",
            str(fault) or "its own public key refuses what it signs",
            "restore the file, or make a new key and publish it",
        ) from None
    return SigningKey(b"rsa-sha256", lambda signed: key.sign(signed, padding, hashing))
