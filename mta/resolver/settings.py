"""The `resolver:` block: which name servers are asked, and how long."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from mta.model import Bridgehead
from mta.settings import Boolean, Count, Duration, Settings, parse_ip, parse_port


def parse_name_server(value: Any) -> Bridgehead:
    """ "192.0.2.53", "127.0.0.1:5353", "[2001:db8::53]:53", "2001:db8::53"; port 53 unless said."""
    if isinstance(value, Bridgehead):
        return value
    text = str(value).strip()
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, tail = text[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError(f"{text!r}: expected [address]:port")
        port = tail.removeprefix(":") if tail else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    return Bridgehead(str(parse_ip(host)), parse_port(port))


class ResolverSettings(Settings):
    """Name servers and patience."""

    servers: tuple[Annotated[Any, BeforeValidator(parse_name_server)], ...] = Field(
        default=(),
        description="IP addresses of name servers, with :PORT if it is not 53; those of"
        " /etc/resolv.conf unless given. Answers are believed as these servers give them.",
    )
    dnssec: Boolean = Field(
        default=False,
        description="The servers validate (DNSSEC), and their word on it is believed: what"
        " `tls: dane` needs. They are named in `servers`, and are on loopback (unbound, say): on"
        " the way from elsewhere anybody could say that an answer was validated.",
    )
    timeout: Duration = Field(
        default=3.0, gt=0.0, description="How long one name server may take for one answer."
    )
    attempts: Count = Field(
        default=2, description="How often each name server is asked before a look-up has failed."
    )

    @field_validator("dnssec")
    @classmethod
    def _only_on_loopback(cls, dnssec: bool, values: ValidationInfo) -> bool:
        """RFC 4035 4.9.3: the AD bit is worth what the path to the server is."""
        if not dnssec or "servers" not in values.data:
            return dnssec
        servers = values.data["servers"]
        if not servers:
            raise ValueError(
                "name the validating name servers in `servers`: those of /etc/resolv.conf are not"
                " believed; run one on this node (unbound, say) and give 127.0.0.1"
            )
        for server in servers:
            if not is_loopback(server):
                raise ValueError(
                    f"{server.host} is not on loopback: on the way anybody could say that its"
                    " answers were validated; run a validating name server on this node (unbound,"
                    " say) and give 127.0.0.1"
                )
        return dnssec


def is_loopback(server: Bridgehead) -> bool:
    return ip_address(server.host).is_loopback
