"""The types that configuration blocks are made of. Every plugin's schema derives from `Settings`.

A block's schema is a pydantic model: its fields are the keys (`max_size` is written `max-size`),
its defaults the defaults, its descriptions the help that goes into etc/mta.yaml and `mta plugins`.
The configuration hands every scalar over as the text that was written; the types here turn text
into values and say what was expected where it cannot be one.

    class DelaySettings(Settings):
        delay: Duration = Field(default=5.0, description="How long to wait before the greeting.")
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from mta.model import Bridgehead, IPAddress, VirtualAddress

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_OCTETS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
LONGEST_SECONDS = 100 * 365.25 * 86400.0
LARGEST_OCTETS = 2.0**63 - 2.0**50
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_duration(value: Any) -> float:
    """ "30s", "5m", "4d" and sums such as "1h30m"; seconds as a number when it comes from code."""
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    seconds, at = 0.0, 0
    while at < len(text):
        match = _QUANTITY.match(text, at)
        if match is None or match[2] not in _SECONDS:
            raise ValueError(f"{text!r} is not a duration: write 500ms, 30s, 5m, 2h or 4d")
        seconds += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    if not text:
        raise ValueError("a duration is missing: write 500ms, 30s, 5m, 2h or 4d")
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return seconds


def parse_size(value: Any) -> int:
    """ "25MiB", "4KiB", "1GB", or octets as a bare number."""
    if isinstance(value, int):
        return value
    text = str(value).strip()
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _OCTETS:
        raise ValueError(f"{text!r} is not a size: write 512, 64KiB, 25MiB or 1GiB")
    octets = float(match[1]) * _OCTETS[match[2]]
    if octets > LARGEST_OCTETS:
        raise ValueError(f"{text!r} is larger than any disk")
    return int(octets)


def parse_bool(value: Any) -> bool:
    """true or false, and nothing else: what YAML 1.1 makes of `no` has cost others enough."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):  # a list or block can be no member of a set
        return bool(value == "true")
    raise ValueError(f"{value!r} is neither true nor false")


def parse_network(value: Any) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(str(value))
    except ValueError as error:
        why = ": it has host bits set" if "host bits" in str(error) else ""
        raise ValueError(f"{value!r} is not a network such as 192.0.2.0/24{why}") from None


def parse_ip(value: Any) -> IPAddress:
    try:
        return ip_address(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address") from None


def parse_virtual_address(value: Any) -> VirtualAddress:
    """An address; `{address: ..., required: false}`; or `{external: ..., bind: ...}` behind NAT."""
    if isinstance(value, VirtualAddress):
        return value
    if not isinstance(value, dict):
        address = parse_ip(value)
        return VirtualAddress(external=address, bind=address)
    known = {"address", "external", "bind", "required"}
    for key in value:
        if key not in known:
            raise ValueError(
                f"{key}: unknown; an address has address, or external and bind; required"
            )
    required = parse_bool(value.get("required", "true"))
    if "address" in value:
        if "external" in value or "bind" in value:
            raise ValueError("give either address, or external and bind")
        address = parse_ip(value["address"])
        return VirtualAddress(external=address, bind=address, required=required)
    if "external" not in value or "bind" not in value:
        raise ValueError("give either address, or both external and bind")
    external, bind = parse_ip(value["external"]), parse_ip(value["bind"])
    if external.version != bind.version:
        raise ValueError(f"external {external} and bind {bind} are of different families")
    return VirtualAddress(external=external, bind=bind, required=required)


def parse_port(value: Any) -> int:
    try:
        port = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a port") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a port: 1 to 65535")
    return port


def parse_bridgehead(value: Any) -> Bridgehead:
    """ "192.0.2.20:25", "[2001:db8::20]:25", "hub.example.org", or {host, port, preference}."""
    if isinstance(value, Bridgehead):
        return value
    if isinstance(value, dict):
        for key in value:
            if key not in {"host", "port", "preference"}:
                raise ValueError(f"{key}: unknown; a bridgehead has host, port and preference")
        if not value.get("host"):
            raise ValueError("a bridgehead needs host")
        try:
            preference = int(value.get("preference", 10))
        except ValueError:
            raise ValueError(f"preference {value['preference']!r} is not a number") from None
        return Bridgehead(_host(str(value["host"])), parse_port(value.get("port", 25)), preference)
    text = str(value).strip()
    if text.startswith("["):
        host, bracket, tail = text[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError(f"{text!r}: expected [address]:port")
        return Bridgehead(_host(host), parse_port(tail[1:]) if tail else 25)
    if text.count(":") > 1:
        return Bridgehead(_host(text), 25)
    host, colon, port = text.partition(":")
    return Bridgehead(_host(host), parse_port(port) if colon else 25)


_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def _host(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        if _HOST_NAME.fullmatch(text) and not re.fullmatch(r"[\d.]+", text):
            return text.lower().rstrip(".")
        raise ValueError(f"{text!r} is neither an IP address nor a host name") from None


Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds."""
Size = Annotated[int, BeforeValidator(parse_size)]
"""Octets."""
Boolean = Annotated[bool, BeforeValidator(parse_bool)]
Port = Annotated[int, BeforeValidator(parse_port)]
Network = Annotated[Any, BeforeValidator(parse_network)]
"""IPv4Network or IPv6Network."""


def is_within(host: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether an IP address, given as text, lies in one of them. An IPv4 address in IPv6 clothes
    counts as itself; what is no address lies nowhere.
    """
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if address.version == 6:
        address = address.ipv4_mapped or address
    return any(address.version == n.version and address in n for n in networks)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def parse_domain(value: Any) -> str:
    """The domain in lower case as A-labels (RFC 5890), without a trailing dot."""
    text = str(value)
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


def parse_domain_pattern(value: Any) -> str:
    """example.com: that domain; *.example.com: every name below it and not itself; *: every one."""
    text = str(value)
    if text == "*":
        return text
    if text.startswith("*."):
        return "*." + parse_domain(text[2:])
    if "*" in text:
        raise ValueError(f"{text!r}: a star stands alone or before the first dot: *.example.com")
    return parse_domain(text)


DomainPattern = Annotated[str, BeforeValidator(parse_domain_pattern)]
"""As parse_domain_pattern has it."""


def parse_fingerprint(value: Any) -> str:
    """SHA-256, as openssl prints it (with or without colons): 64 hexadecimal digits, lower case."""
    text = str(value).strip().lower().replace(":", "")
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{str(value)!r} is no SHA-256 fingerprint: 32 octets in hexadecimal")
    return text


Fingerprint = Annotated[str, BeforeValidator(parse_fingerprint)]
"""As parse_fingerprint has it."""


def misplaced(place: tuple[str | int, ...], value: Any, words: str) -> ValidationError:
    """A mistake at `place` inside a block, for validators that look at more than one key: raise it,
    and the message names the line and column of that place. Keys as they are written.
    """
    fault = PydanticCustomError("value_error", "{words}", {"words": words})
    return ValidationError.from_exception_data("", [{"type": fault, "loc": place, "input": value}])


VirtualAddressSetting = Annotated[Any, BeforeValidator(parse_virtual_address)]
"""model.VirtualAddress."""
BridgeheadSetting = Annotated[Any, BeforeValidator(parse_bridgehead)]
"""model.Bridgehead."""
Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""


def parse_secret_file(value: Any) -> SecretFile:
    """The path of a file with a secret in it: absolute, there, and closed to others."""
    if isinstance(value, SecretFile):
        return value
    path = str(value)
    if not os.path.isabs(path):
        raise ValueError(f"{path!r} is not an absolute path")
    try:
        facts = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path!r}: {error.strerror}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path!r} is not a file")
    if facts.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ValueError(f"{path!r} can be read or written by others: chmod o-rw it")
    return SecretFile(path)


@dataclass(frozen=True, slots=True)
class SecretFile:
    """Where a secret lies. The secret itself is never in the configuration, nor in its `repr`."""

    path: str

    def read(self) -> bytes:
        """The secret without the newline at its end. Blocking. @raise OSError."""
        with open(self.path, "rb") as file:
            return file.read().rstrip(b"\r\n")


SecretFileSetting = Annotated[Any, BeforeValidator(parse_secret_file)]
"""SecretFile. The field's name ends in `_file`: secrets are given by no other keys."""


def _key(field_name: str) -> str:
    return field_name.replace("_", "-")


class Settings(BaseModel):
    """A configuration block: frozen, unknown keys refused, keys written with hyphens."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=_key, populate_by_name=True
    )


class WaitingSettings(Settings):
    """The block of a policy that waits for something before it answers."""

    def longest_waits(self) -> dict[tuple[str, ...], float]:
        """By the key that bounds it (its path in the block): how many seconds one answer may take.
        Each must be less than `intake.policy-timeout`; that is checked with the configuration.
        """
        return {}
