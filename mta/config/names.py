"""Names as a configuration gives them: the network name, mailboxes, address space patterns.

RFC 1123 2.1 (host names), RFC 5321 4.1.2 (mailbox; here only the dot-string
form, which is what an operator writes).
"""

from __future__ import annotations

import re

from mta.model import Address
from mta.settings import parse_domain, parse_domain_pattern

_DOT_STRING = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LOCALHOST = {"localhost", "localdomain"}


def network_name(text: str) -> str:
    """A fully qualified host name that other machines can resolve. @raise ValueError."""
    name = parse_domain(text)
    labels = name.split(".")
    if labels[0] in _LOCALHOST or labels[-1] == "localhost":
        raise ValueError(f"{text!r} is every machine's own name, not the virtual server's")
    if len(labels) < 2:
        raise ValueError(f"{text!r} is not fully qualified: write host.domain, as it is in DNS")
    if labels[-1].isdigit() or "_" in name:
        raise ValueError(f"{text!r} is not a host name")
    return name


def mailbox(text: str) -> Address:
    """user@domain. @raise ValueError."""
    local, at, host = text.rpartition("@")
    if not at or len(local) > 64 or not _DOT_STRING.fullmatch(local):
        raise ValueError(f"{text!r} is not a mail address: write user@example.com")
    name = parse_domain(host).encode()
    return Address(local.encode() + b"@" + name, name)


def domain_pattern(text: str) -> bytes:
    """example.com, *.example.com or *, of an address space. @raise ValueError."""
    if "@" in text:
        raise ValueError(f"{text!r} is a mail address: write it as address:, not domain:")
    return parse_domain_pattern(text).encode()


def covers(pattern: bytes, address: Address) -> bool:
    """Whether an address space's pattern takes an address."""
    if pattern == b"*":
        return True
    if pattern.startswith(b"*."):
        return address.domain.endswith(pattern[1:])
    if b"@" in pattern:
        return pattern.lower() == address.text.lower()
    return pattern == address.domain
