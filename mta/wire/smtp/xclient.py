"""XCLIENT: what an upstream says of its own client, in whose place it speaks from then on.

Law: a command is taken whole or refused whole: an address that is none, or an attribute said twice,
is refused. Who may say it is not decided here.

Postfix's XCLIENT_README; RFC 3461 section 4 (xtext), but what is none is taken as it stands: nginx
encodes nothing, and a login may have a plus sign (XCLIENT_README, note 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from mta.model import UNKNOWN_HOST
from mta.wire.smtp.grammar import DOMAIN_LIMIT, Refused, decode_xtext, normalise_domain

LOGIN_LIMIT: Final = 255
"""Octets of a user's name, as of all values (Postfix)."""
_UNAVAILABLE: Final = b"[UNAVAILABLE]"
_NAMELESS: Final = frozenset((_UNAVAILABLE, b"[TEMPUNAVAIL]"))
_PROTOCOLS: Final = {b"SMTP": "SMTP", b"ESMTP": "ESMTP"}
_OF_NAMES: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:[]+*/=~#%$&'?^`{|}!@-"
)
_TO_NAME: Final = bytes(octet if octet in _OF_NAMES else ord("?") for octet in range(256))


@dataclass(frozen=True, slots=True)
class Attributes:
    """What one command said; None and "": it did not."""

    name: str | None = None
    """"": a look-up found none."""
    host: str | None = None
    """An IP address, or UNKNOWN_HOST."""
    port: int | None = None
    """0: unknown."""
    protocol: str = ""
    """SMTP or ESMTP."""
    helo: bytes = b""
    """Whatever is no character of a name is `?`."""
    login: str = ""
    destination_host: str | None = None
    destination_port: int | None = None


def parse_xclient(argument: bytes) -> Attributes:
    """What follows `XCLIENT `. @raise Refused: 501."""
    found: dict[str, Any] = {}
    for word in argument.split():
        key, _, value = word.partition(b"=")
        keyword = key.upper()
        if not value:
            raise Refused(501, "5.5.4", b"Syntax: XCLIENT attribute=value ...")
        if keyword not in _ATTRIBUTES:
            raise Refused(501, "5.5.4", b"That attribute of XCLIENT is not known")
        field, read = _ATTRIBUTES[keyword]
        if field in found:
            raise Refused(501, "5.5.4", b"The attribute " + keyword + b" is doubled")
        try:
            found[field] = read(_decoded(value))
        except ValueError:
            raise Refused(501, "5.5.4", b"The value of " + keyword + b" is malformed") from None
    if not found:
        raise Refused(501, "5.5.4", b"Syntax: XCLIENT attribute=value ...")
    return Attributes(**found)


def _decoded(value: bytes) -> bytes:
    try:
        return decode_xtext(value)
    except ValueError:
        return value


# --- one value each; @raise ValueError ----------------------------------------------------------


def _name(value: bytes) -> str:
    if value.upper() in _NAMELESS:
        return ""
    name = normalise_domain(value).decode("ascii")
    if name.startswith("[") or name.rpartition(".")[2].isdigit():
        raise ValueError("an address is no name")
    return name


def _host(value: bytes) -> str:
    if value.upper() == _UNAVAILABLE:
        return UNKNOWN_HOST
    text = value.decode("ascii")
    if text[:5].upper() != "IPV6:":
        return str(IPv4Address(text))
    if "%" in text:
        raise ValueError("a scope means nothing on another machine")
    address = IPv6Address(text[5:])
    # One client is one address for limits, whichever clothes it wears.
    return str(address.ipv4_mapped or address)


def _port(value: bytes) -> int:
    if value.upper() == _UNAVAILABLE:
        return 0
    if not value.isdigit() or len(value) > 5 or int(value) > 0xFFFF:
        raise ValueError("no port")
    return int(value)


def _protocol(value: bytes) -> str:
    protocol = _PROTOCOLS.get(value.upper())
    if protocol is None:
        raise ValueError("neither SMTP nor ESMTP")
    return protocol


def _helo(value: bytes) -> bytes:
    if value.upper() == _UNAVAILABLE:
        return b""
    if len(value) > DOMAIN_LIMIT:
        raise ValueError("longer than a domain")
    return value.translate(_TO_NAME)


def _login(value: bytes) -> str:
    if value.upper() == _UNAVAILABLE:
        return ""
    name = value.decode("utf-8")
    if len(value) > LOGIN_LIMIT or not name.isprintable():
        raise ValueError("no name of a user")
    return name


_ATTRIBUTES: Final[dict[bytes, tuple[str, Callable[[bytes], Any]]]] = {
    b"NAME": ("name", _name),
    b"ADDR": ("host", _host),
    b"PORT": ("port", _port),
    b"PROTO": ("protocol", _protocol),
    b"HELO": ("helo", _helo),
    b"LOGIN": ("login", _login),
    b"DESTADDR": ("destination_host", _host),
    b"DESTPORT": ("destination_port", _port),
}
ANNOUNCEMENT: Final = b"XCLIENT " + b" ".join(_ATTRIBUTES)
"""EHLO's line."""
