"""Names as a configuration gives them: domains to A-labels, mailboxes, address space patterns.

RFC 1123 2.1 (host names), RFC 5890 (A-labels), RFC 5321 4.1.2 (mailbox; here only the dot-string
form, which is what an operator writes).
"""

from __future__ import annotations

import re

from mta.model import Address

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_DOT_STRING = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LOCALHOST = {"localhost", "localdomain"}


def domain(text: str) -> str:
    """The domain in lower case as A-labels, without a trailing dot. @raise ValueError."""
    name = text.strip().removesuffix(".")
    if not name:
        raise ValueError("a domain is missing")
    if not name.isascii():
        import idna  # 20 ms that most configurations save

        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise ValueError(f"{text!r} is not a domain: {error}") from None
    name = name.lower()
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{text!r} is not a domain")
    return name


def network_name(text: str) -> str:
    """A fully qualified host name that other machines can resolve. @raise ValueError."""
    name = domain(text)
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
    name = domain(host).encode()
    return Address(local.encode() + b"@" + name, name)


def domain_pattern(text: str) -> bytes:
    """example.com, *.example.com or *. @raise ValueError."""
    if text == "*":
        return b"*"
    if text.startswith("*."):
        return b"*." + domain(text[2:]).encode()
    if "@" in text:
        raise ValueError(f"{text!r} is a mail address: write it as address:, not domain:")
    if "*" in text:
        raise ValueError(f"{text!r}: a star stands alone or before the first dot: *.example.com")
    return domain(text).encode()


def covers(pattern: bytes, address: Address) -> bool:
    """Whether an address space's pattern takes an address."""
    if pattern == b"*":
        return True
    if pattern.startswith(b"*."):
        return address.domain.endswith(pattern[1:])
    if b"@" in pattern:
        return pattern.lower() == address.text.lower()
    return pattern == address.domain
