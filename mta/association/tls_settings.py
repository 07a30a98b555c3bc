"""The `tls:` block: our certificates, and whom we trust; and what one destination may demand.

Law: values only; `association/tls.py` reads the files that they name.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mta.association.tls_terms import TlsTerms, Version, Word
from mta.settings import DomainPattern, Settings, misplaced, parse_domain_pattern, parse_ip


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
    minimum: Version = Field(
        default="1.2", description="The oldest version that is spoken, in both directions."
    )
    trust: Path | None = Field(
        default=None,
        description="Certificates of the authorities (PEM) that `tls: verify` trusts; by default"
        " the system's.",
    )
    client_trust: Path | None = Field(
        default=None,
        description="Certificates of the authorities (PEM) that a client's may be from, where a"
        " listener asks; by default those in `trust`, if that is given, and never the system's, who"
        " certify everybody.",
    )

    @property
    def client_authorities(self) -> str | None:
        return self.client_trust or self.trust


class TlsExceptionSettings(Settings):
    """A destination for which a connector has something else than its own `tls`."""

    domain: DomainPattern = Field(
        description="example.com: that one; *.example.com: every name below it and not itself."
    )
    tls: Word = Field(description="As at the connector, whose own word does not count here.")
    names: tuple[str, ...] = Field(
        default=(),
        description="With verify: whom the certificate may be for, in place of the server's name:"
        " host names, *.example.com for every name below it, addresses. With `delivery: mx` this is"
        " what no false answer of DNS can change.",
    )
    minimum: Version | None = Field(
        default=None,
        description="With require or verify: the oldest version, in place of `tls.minimum`.",
    )

    @field_validator("domain")
    @classmethod
    def _somebody(cls, value: str) -> str:
        if value == "*":
            raise ValueError("*: everybody is no exception: give the connector this `tls`")
        return value

    @field_validator("names")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_name(index, each) for index, each in enumerate(value))

    @model_validator(mode="after")
    def _met(self) -> TlsExceptionSettings:
        if self.names and self.tls != "verify":
            words = f"nobody's name is looked at with `tls: {self.tls}`: say `tls: verify`"
            raise misplaced(("names",), self.names, words)
        if self.minimum is not None and self.tls not in {"require", "verify"}:
            words = (
                f"with `tls: {self.tls}` a server that is older would get mail plainly: say `tls:"
                " require` (or verify)"
            )
            raise misplaced(("minimum",), self.minimum, words)
        return self

    def terms(self) -> TlsTerms:
        why = f"tls-exceptions {self.domain}"
        return TlsTerms(self.tls, self.names, self.minimum or "", why)


def _name(index: int, value: str) -> str:
    try:
        return str(parse_ip(value))
    except ValueError:
        pass
    words = f"{value}: a name below any other; say whose: *.example.com"
    try:
        found = parse_domain_pattern(value)
        if found != "*":
            return found
    except ValueError as fault:
        words = str(fault)
        if value.startswith("."):
            words += f"; every name below it is *{value}"
    raise misplaced((index,), value, words)
