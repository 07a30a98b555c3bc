"""Plugins for tests of the configuration: small schemas under the names that the grammar shows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from zope.interface import Interface, implementer

from mta.errors import PluginError
from mta.interfaces import (
    IAssociationKind,
    IAuthenticator,
    IClusterResource,
    IConnectorFactory,
    IContentEditor,
    IListenerKind,
    IPluginFactory,
    IPolicy,
    IRoutingBuilder,
    ISigner,
    ISpool,
    ISurroundings,
)
from mta.settings import (
    Boolean,
    Count,
    Duration,
    Network,
    Port,
    SecretFileSetting,
    Settings,
    Size,
    WaitingSettings,
)


class ClusterSettings(Settings):
    grace: Duration = Field(default=10.0, description="How long an address may be away.")


class LogStoreSettings(Settings):
    directory: str = Field(description="Where it lies.")
    sharing: Literal["none", "same-kernel", "cluster-fs", "nfs", "failover-mount"] = Field(
        default="none", description="How it reaches the other node."
    )
    segment_size: Size = Field(default=64 * 2**20, description="Octets of a segment.")


class Limits(Settings):
    connections: Count = Field(default=1000, description="Open at the same time.")


class ListenerSettings(Settings):
    name: str = Field(default="", description="Its name in logs.")
    port: Port = Field(default=25, description="On every virtual address.")
    relay_from: tuple[Network, ...] = Field(default=(), description="Who may relay.")
    tls: Literal["none", "offer"] = Field(default="offer", description="Under TLS.")
    auth: Literal["none", "tls", "clear"] = Field(default="none", description="Who it is.")
    limits: Limits = Field(default=Limits(), description="Bounds.")


class SmtpSettings(Settings):
    connect_timeout: Duration = Field(default=30.0, description="To open an association.")


class LmtpSettings(Settings):
    path: str | None = Field(default=None, description="A UNIX socket.")


class DirectorySettings(Settings):
    directory: str = Field(description="Where the Maildirs lie.")


class Nothing(Settings):
    pass


class PickySettings(Settings):
    """Everything that a third party may write."""

    number: int = Field(default=1, ge=1, le=9, description="A number.")
    share: float = Field(default=0.5, description="A share.")
    enabled: Boolean = Field(default=True, description="At all.")
    either: int | Limits | None = Field(default=None, description="Two ways to write it.")
    key_file: SecretFileSetting | None = Field(default=None, description="A secret.")

    @model_validator(mode="after")
    def _fits(self) -> PickySettings:
        if not self.enabled and self.number > 5:
            raise ValueError("number above 5 makes no sense when it is not enabled")
        return self


class PatientSettings(WaitingSettings):
    delay: Duration = Field(default=20.0, description="How long it waits.")

    def longest_waits(self) -> dict[tuple[str, ...], float]:
        return {("delay",): self.delay}


class BrokenSettings(Settings):
    word: str = Field(default="", description="A word.")

    @model_validator(mode="before")
    @classmethod
    def _stumbles(cls, value: Any) -> Any:
        return value["no such key"]


@implementer(IPluginFactory)
class Factory:
    version = 1
    purposes: frozenset[str] = frozenset()

    def __init__(self, name: str, provides: type[Interface], schema: type[Settings]) -> None:
        self.name, self.provides, self.schema = name, provides, schema

    def create(self, configuration: Any, surroundings: ISurroundings) -> Any:
        return configuration


@implementer(IConnectorFactory)
class ConnectorFactory(Factory):
    def __init__(self, name: str, schema: type[Settings], far_end_keys: tuple[str, ...]) -> None:
        super().__init__(name, IAssociationKind, schema)
        self.far_end_keys = far_end_keys


FACTORIES: tuple[Any, ...] = (
    Factory("standalone", IClusterResource, ClusterSettings),
    Factory("interface", IClusterResource, ClusterSettings),
    Factory("log", ISpool, LogStoreSettings),
    Factory("memory", ISpool, Nothing),
    Factory("smtp", IListenerKind, ListenerSettings),
    Factory("lmtp", IListenerKind, ListenerSettings),
    ConnectorFactory("smtp", SmtpSettings, ("bridgeheads", "delivery")),
    ConnectorFactory("lmtp", LmtpSettings, ("bridgeheads", "path")),
    ConnectorFactory("maildir", DirectorySettings, ()),
    ConnectorFactory("discard", Nothing, ()),
    Factory("pigeon", IAssociationKind, Nothing),
    Factory("least-cost", IRoutingBuilder, Nothing),
    Factory("picky", IPolicy, PickySettings),
    Factory("ledger", IAuthenticator, PickySettings),
    Factory("stumbling", IPolicy, BrokenSettings),
    Factory("patient", IContentEditor, PatientSettings),
    Factory("seal", ISigner, Nothing),
)


def find(interface: type[Interface], name: str) -> Any:
    for factory in FACTORIES:
        if factory.provides.isOrExtends(interface) and factory.name == name:
            return factory
    names = sorted(f.name for f in FACTORIES if f.provides.isOrExtends(interface))
    raise PluginError(f"no plugin is named {name!r}", f"there are {', '.join(names)}")


SAMPLE = """\
virtual-server:
  network-name: bridgehead.example.org      # EHLO, Received by, Reporting-MTA, TLS name
  addresses: [192.0.2.10, "2001:db8::10"]
postmaster: postmaster@example.org
cluster:
  resource: interface
  grace: 10s
spool:
  store: log
  directory: /var/spool/mta
  sharing: cluster-fs
listeners:
  - kind: smtp
    port: 25
    relay-from: [192.0.2.0/24]
    limits: {connections: 1000}
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["192.0.2.20:25", {host: "2001:db8::20", port: 25, preference: 20}]
    concurrency: 20
    in-doubt: resend
    address-spaces:
      - {domain: "*.example.com", cost: 10, accept: anyone}
      - {domain: "*", cost: 50}
routing: {policy: least-cost}
queue: {lifetime: 5d, bounce-lifetime: 1d, backoff: [5m, 10m, 20m, 40m, 1h]}
log: {format: postfix, syslog-name: mta}
admin: {socket: /run/mta/control.sock, submit-socket: /run/mta/submit.sock, http: "127.0.0.1:8025"}
"""
"""The grammar as the specification shows it."""
