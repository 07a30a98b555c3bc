"""The `tls:` block: our certificates, and whom we trust.

Law: values only; `association/tls.py` reads the files that they name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mta.settings import Settings


def _path(value: Any) -> str:
    text = str(value)
    if not text.startswith("/"):
        raise ValueError(f"{text}: give the whole path, from / on")
    return text


Path = Annotated[str, BeforeValidator(_path)]


class CertificateSettings(Settings):
    """A certificate and its key, in PEM."""

    chain: Path = Field(description="The certificate, then those between it and its root.")
    key_file: Path = Field(description="Its private key, without a passphrase.")


class TlsSettings(Settings):
    """The `tls:` block."""

    certificates: tuple[CertificateSettings, ...] = Field(
        default=(),
        description="One must be for the network name; further ones are shown to clients that ask"
        " for their names (SNI), or hold another kind of key for the same names. The files are read"
        " again when they change.",
    )
    minimum: Literal["1.2", "1.3"] = Field(
        default="1.2", description="The oldest version that is spoken, in both directions."
    )
    trust: Path | None = Field(
        default=None,
        description="Certificates of the authorities (PEM) that `tls: verify` trusts; by default"
        " the system's.",
    )
