"""The `cluster:` block under `resource: etcd`."""

from __future__ import annotations

import enum
import re
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mta.cluster.settings import ClusterSettings
from mta.settings import Boolean, Duration

DEFAULT_PORT = 2379
LEAST_TTL, LARGEST_TTL = 2.0, 60.0
"""etcd's own floor; and a failover that takes longer than a minute is none."""


class OnSuperseded(enum.Enum):
    REMOVE = "remove"
    REPORT = "report"


def parse_endpoint(value: Any) -> str:
    """ "http://10.9.0.3:2379", with the port; an IP address, since names may be what is down."""
    text = str(value).strip()
    what = f"{text!r} is not an endpoint such as http://10.9.0.3:2379"
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError(what) from None
    if parts.scheme == "https":
        raise ValueError(
            f"{text!r}: https is not spoken to etcd; use http in a network of the nodes' own, or "
            "a TLS proxy on this node"
        )
    if parts.scheme != "http" or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(what)
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{text!r}: etcd is asked without a user's name and password")
    host = {"localhost": "127.0.0.1"}.get(parts.hostname or "", parts.hostname or "")
    try:
        address = ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is not an IP address") from None
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _ttl(seconds: float) -> float:
    if seconds != round(seconds) or not LEAST_TTL <= seconds <= LARGEST_TTL:
        raise ValueError(
            f"{seconds:g} s is no TTL for a lease: whole seconds, {LEAST_TTL:g} to {LARGEST_TTL:g}"
        )
    return seconds


def _prefix(text: str) -> str:
    if text and (not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", text) or len(text) > 200):
        raise ValueError(f"{text!r} is no prefix such as /mta/bridgehead")
    return text


def _interface(text: str) -> str:
    if text and not re.fullmatch(r"[^\s/:?]{1,15}", text):
        raise ValueError(f"{text!r} is no name of an interface")
    return text


def _on_superseded(value: Any) -> Any:
    if isinstance(value, OnSuperseded):
        return value
    try:
        return OnSuperseded(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is neither remove nor report") from None


class EtcdSettings(ClusterSettings):
    """`resource: etcd`: owner is who holds a key in etcd by a lease."""

    endpoints: Annotated[
        list[Annotated[str, BeforeValidator(parse_endpoint)]], Field(min_length=1, max_length=16)
    ] = Field(
        description='etcd\'s members, tried in turn: ["http://10.9.0.3:2379", ...]. All of one '
        "cluster.",
    )
    ttl: Annotated[Duration, AfterValidator(_ttl)] = Field(
        default=5.0,
        description="The lease's time to live: an owner that etcd does not hear is given up at "
        "0.8 of it, and another takes over after it.",
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="",
        description="Where the key lies: PREFIX/owner. The same on every node. Default: /mta/ and "
        "the network name.",
    )
    plumb: Boolean = Field(
        default=False,
        description="true: the watchdog adds the virtual addresses to `interface` and removes them "
        "(CAP_NET_ADMIN). false: something else moves them, and the lease is asked for where they "
        "are.",
    )
    interface: Annotated[str, AfterValidator(_interface)] = Field(
        default="", description="Where addresses are added and removed: eth0."
    )
    on_superseded: Annotated[OnSuperseded, BeforeValidator(_on_superseded)] = Field(
        default=OnSuperseded.REMOVE,
        description="remove: virtual addresses on `interface` are removed while another node holds "
        "the key. report: they are only shown. With plumb: true.",
    )

    @property
    def removes_superseded(self) -> bool:
        return self.plumb and self.on_superseded is OnSuperseded.REMOVE

    @model_validator(mode="after")
    def _goes_together(self) -> EtcdSettings:
        if self.plumb and not self.interface:
            raise ValueError("plumb: true needs interface, the one that gets the addresses")
        for key, given in (
            ("interface", self.interface),
            ("on-superseded", "on_superseded" in self.model_fields_set),
        ):
            if given and not self.plumb:
                raise ValueError(f"{key} is of no use without plumb: true")
        if len(set(self.endpoints)) != len(self.endpoints):
            raise ValueError("an endpoint stands twice")
        return self
