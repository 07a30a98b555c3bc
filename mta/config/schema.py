"""The top-level blocks of the configuration file, and the frozen Config that they become.

Law: a key is declared once, with its type, default and help, in a Settings class: here for what
every plugin of a kind shares, in the plugin's own schema for the rest. etc/mta.yaml, the messages
about unknown keys and the check itself all read the same declaration.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mta.admin.settings import AdminSettings, LogSettings, TlsReportSettings
from mta.association.tls_settings import TlsSettings
from mta.config import names
from mta.interfaces import (
    IAssociationKind,
    IAuthenticator,
    IClusterResource,
    IListenerKind,
    IPluginFactory,
    IPolicy,
    IRoutingBuilder,
    ISpool,
)
from mta.model import Address, AddressSpace, Bridgehead, Connector, InDoubt, VirtualServer
from mta.resolver.settings import ResolverSettings
from mta.settings import (
    BridgeheadSetting,
    Count,
    Port,
    Settings,
    VirtualAddressSetting,
    parse_ip,
)
from mta.transfer.settings import IntakeSettings, QueueSettings

# --- values that only the configuration has -----------------------------------------------------


def _mailbox(value: Any) -> Address:
    return value if isinstance(value, Address) else names.mailbox(str(value))


def _server(value: Any) -> str:
    return str(parse_ip(value))


_IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
NetworkName = Annotated[str, AfterValidator(names.network_name)]
Mailbox = Annotated[Any, BeforeValidator(_mailbox)]
"""model.Address."""
Identifier = Annotated[str, Field(pattern=_IDENTIFIER)]
"""A name that people gave: it stands in logs, metrics and commands."""
Server = Annotated[str, BeforeValidator(_server)]


class VirtualServerSettings(Settings):
    """Who we are to every peer, whichever node is at work: all associations run from here."""

    network_name: NetworkName = Field(
        description="The EHLO name, Received by, Reporting-MTA and TLS name: fully qualified, and"
        " not a node's own name (except under `resource: standalone`)."
    )
    addresses: tuple[VirtualAddressSetting, ...] = Field(
        min_length=1,
        description="The virtual addresses: mail is received and sent on these and on no other."
        ' Written as "2001:db8::10", as {external: 203.0.113.7, bind: 10.0.0.5} behind address'
        ' translation, or as {address: "2001:db8::10", required: false}.',
    )

    @field_validator("addresses")
    @classmethod
    def _usable(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        seen = set()
        for address in value:
            for ip in {address.bind, address.external}:
                if ip.is_unspecified or ip.is_multicast:
                    raise ValueError(f"{ip} is no address that a virtual server can own")
            if address.bind in seen:
                raise ValueError(f"{address.bind} is listed twice")
            seen.add(address.bind)
        return value


class AddressSpaceSettings(Settings):
    """A pattern that a connector advertises, and at what cost."""

    domain: str | None = Field(
        default=None,
        description="example.com: that domain; *.example.com: every name below it and not itself;"
        " *: every domain.",
    )
    address: str | None = Field(default=None, description="One mailbox: user@example.com.")
    cost: int = Field(
        default=10, ge=1, le=100, description="1 to 100; of equally specific patterns the lowest."
    )
    accept: Literal["anyone"] | None = Field(
        default=None,
        description="anyone: every client may send to it. Without it, only clients in relay-from.",
    )

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str | None) -> str | None:
        return None if value is None else names.domain_pattern(value).decode()

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else str(names.mailbox(value))

    @model_validator(mode="after")
    def _one_pattern(self) -> AddressSpaceSettings:
        if (self.domain is None) == (self.address is None):
            raise ValueError("an address space has either domain or address")
        return self

    def space(self) -> AddressSpace:
        pattern = (self.domain or self.address or "").encode()
        return AddressSpace(pattern, self.cost, self.accept == "anyone")


class ConnectorSettings(Settings):
    """A path to a site: where its servers are, and which addresses go there."""

    name: Identifier = Field(description="As it stands in logs, metrics and commands; unique.")
    kind: str = Field(
        description="The association kind: smtp | lmtp | maildir | discard | a plugin's."
    )
    bridgeheads: tuple[BridgeheadSetting, ...] = Field(
        default=(),
        description="The far end's servers, lowest preference first (10 unless said):"
        ' "192.0.2.20:25", hub.example.org, {host: "2001:db8::20", port: 25, preference: 20}.',
    )
    delivery: Literal["mx"] | None = Field(
        default=None,
        description="mx: in place of bridgeheads, to the mail exchangers of each domain.",
    )
    port: Port = Field(default=25, description="The port with `delivery: mx`.")
    concurrency: Count = Field(
        default=20, description="Associations to one destination at the same time."
    )
    in_doubt: InDoubt = Field(
        default=InDoubt.RESEND,
        description="What becomes of a message whose acknowledgement was lost in a crash or a"
        " failover: resend (may double) | hold (waits for an operator).",
    )
    address_spaces: tuple[AddressSpaceSettings, ...] = Field(
        min_length=1, description="Which addresses this connector takes; the most specific wins."
    )

    @field_validator("address_spaces")
    @classmethod
    def _distinct(cls, value: tuple[AddressSpaceSettings, ...]) -> tuple[AddressSpaceSettings, ...]:
        seen = set()
        for settings in value:
            pattern = settings.space().pattern
            if pattern in seen:
                raise ValueError(f"the address space {pattern.decode()} is listed twice")
            seen.add(pattern)
        return value

    def connector(self) -> Connector:
        bridgeheads: tuple[Bridgehead, ...] = self.bridgeheads
        return Connector(
            name=self.name,
            kind=self.kind,
            address_spaces=tuple(settings.space() for settings in self.address_spaces),
            bridgeheads=bridgeheads,
            by_mx=self.delivery == "mx",
            concurrency=self.concurrency,
            in_doubt=self.in_doubt,
            port=self.port,
        )


class NodeSettings(Settings):
    """This machine, which is never what a peer sees."""

    name: Identifier | None = Field(
        default=None, description="How this node calls itself; the host's name unless given."
    )
    state_directory: str = Field(
        default="/var/lib/mta",
        min_length=1,
        description="What this node keeps for itself over restarts; never shared with another.",
    )


# --- plugin blocks ------------------------------------------------------------------------------


class Selection(enum.Enum):
    """The blocks in which a key chooses a plugin: block, that key, contract, default."""

    CLUSTER = ("cluster", "resource", IClusterResource, "")
    SPOOL = ("spool", "store", ISpool, "log")
    LISTENER = ("listeners", "kind", IListenerKind, "")
    CONNECTOR = ("connectors", "kind", IAssociationKind, "")
    ROUTING = ("routing", "policy", IRoutingBuilder, "least-cost")
    POLICY = ("policies", "policy", IPolicy, "")
    AUTH = ("auth", "kind", IAuthenticator, "")

    @property
    def block(self) -> str:
        return str(self.value[0])

    @property
    def key(self) -> str:
        return str(self.value[1])

    @property
    def contract(self) -> Any:
        return self.value[2]

    @property
    def default(self) -> str:
        return str(self.value[3])


@dataclass(frozen=True, slots=True)
class PluginBlock:
    """A plugin that was chosen, and its settings. `where` is file:line of the block."""

    name: str
    factory: IPluginFactory
    settings: Settings
    where: str


@dataclass(frozen=True, slots=True)
class ListenerBlock(PluginBlock):
    """One listener. `name` is its own, unique here; `kind` is the plugin's."""

    kind: str


@dataclass(frozen=True, slots=True)
class ConnectorBlock(PluginBlock):
    """One connector: what every kind has in common, and the kind's own settings."""

    connector: Connector


SINGLE_BLOCKS: dict[str, type[Settings]] = {
    "virtual-server": VirtualServerSettings,
    "node": NodeSettings,
    "intake": IntakeSettings,
    "queue": QueueSettings,
    "resolver": ResolverSettings,
    "tls": TlsSettings,
    "tls-reports": TlsReportSettings,
    "log": LogSettings,
    "admin": AdminSettings,
}
"""Blocks that no plugin has a say in."""

NODES_OWN = frozenset(("node", "tls-reports", "log", "admin"))
"""Blocks that may differ from node to node of one virtual server."""

HELP: dict[str, str] = {
    "virtual-server": "the network name and the virtual addresses that move from node to node",
    "postmaster": "the mailbox that <postmaster>, postmaster@network-name and double bounces go to",
    "node": "this machine, which is never what a peer sees",
    "cluster": "who says that this node owns the virtual server",
    "spool": "where messages lie until they are delivered",
    "listeners": "where mail is accepted; [] for the local submission socket only",
    "connectors": "where mail goes",
    "routing": "how a connector is chosen",
    "policies": "checks and changes on the way in, in this order",
    "auth": "who may bear which name: how clients that authenticate are checked; without it nobody"
    " does",
    "intake": "what is asked of every message before it is accepted",
    "queue": "how long messages are tried, how often, and how many at once",
    "resolver": "where names are looked up",
    "tls": "certificates of the virtual server, and whom we trust",
    "tls-reports": "what came of TLS with the servers of each domain, kept for whoever reports it",
    "log": "where the log goes and what it looks like",
    "admin": "how operators and this machine's programs reach the daemon",
}
"""Every block, in the order of etc/mta.yaml, and what it is about."""

REQUIRED = frozenset(
    ("virtual-server", "postmaster", "cluster", "spool", "listeners", "connectors")
)
"""Blocks that have no default: a missing one is a refusal."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration in which every rule of this room holds. Values only."""

    virtual_server: VirtualServer
    postmaster: Address
    node: NodeSettings
    cluster: PluginBlock
    spool: PluginBlock
    listeners: tuple[ListenerBlock, ...]
    connectors: tuple[ConnectorBlock, ...]
    routing: PluginBlock
    policies: tuple[PluginBlock, ...]
    auth: PluginBlock | None
    """None: nobody authenticates."""
    intake: IntakeSettings
    queue: QueueSettings
    resolver: ResolverSettings
    tls: TlsSettings
    tls_reports: TlsReportSettings
    log: LogSettings
    admin: AdminSettings
    filename: str
    digest: str
    """SHA-256 of the text, hexadecimal: two nodes with the same digest read the same file."""
    shared_digest: str
    """SHA-256 of what was written, without comments and without the blocks in NODES_OWN: equal on
    two nodes that would serve the same way.
    """
