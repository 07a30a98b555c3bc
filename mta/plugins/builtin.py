"""The plugins that come with the MTA, one small named factory each.

Law: importing this module imports no implementation. A factory names its class and its settings
by dotted name ("mta.spool.log:LogSpool") and loads them when they are asked for; what it builds
gets its settings and its ISurroundings and nothing else, as a third party's would.
"""

from __future__ import annotations

import importlib
from typing import Any

from zope.interface import Interface, implementer

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


def _named(dotted: str) -> Any:
    """ "package.module:Name" -> the object."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


@implementer(IPluginFactory)
class BuiltIn:
    """A factory by dotted names. `constants` are fixed keyword arguments of the class."""

    version = 1

    def __init__(
        self,
        name: str,
        provides: type[Interface],
        implementation: str,
        schema: str,
        *,
        purposes: frozenset[str] = frozenset(),
        **constants: bool,
    ) -> None:
        self.name = name
        self.provides = provides
        self.purposes = purposes
        self._implementation = implementation
        self._schema = schema
        self._constants = constants

    @property
    def schema(self) -> type[Any]:
        """The settings' class, imported now."""
        return _named(self._schema)  # type: ignore[no-any-return]

    def create(self, configuration: Any, surroundings: ISurroundings) -> Any:
        return _named(self._implementation)(configuration, surroundings, **self._constants)


@implementer(IConnectorFactory)
class BuiltInConnector(BuiltIn):
    """A factory of an association kind, which knows how its far end is named."""

    def __init__(
        self,
        name: str,
        implementation: str,
        schema: str,
        far_end_keys: tuple[str, ...],
        *,
        purposes: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(name, IAssociationKind, implementation, schema, purposes=purposes)
        self.far_end_keys = far_end_keys


standalone = BuiltIn(
    "standalone",
    IClusterResource,
    "mta.cluster.standalone:Standalone",
    "mta.cluster.standalone:StandaloneSettings",
)
interface = BuiltIn(
    "interface",
    IClusterResource,
    "mta.cluster.interface:InterfaceResource",
    "mta.cluster.interface:InterfaceSettings",
    purposes=frozenset({"authority"}),
)
keepalived = BuiltIn(
    "keepalived",
    IClusterResource,
    "mta.cluster.keepalived:Keepalived",
    "mta.cluster.keepalived:KeepalivedSettings",
    purposes=frozenset({"authority"}),
)
pacemaker = BuiltIn(
    "pacemaker",
    IClusterResource,
    "mta.cluster.pacemaker:PacemakerResource",
    "mta.cluster.pacemaker:PacemakerSettings",
    purposes=frozenset({"authority"}),
)
etcd = BuiltIn(
    "etcd",
    IClusterResource,
    "mta.cluster.etcd:EtcdResource",
    "mta.cluster.etcd_settings:EtcdSettings",
    purposes=frozenset({"authority"}),
)
log = BuiltIn("log", ISpool, "mta.spool.log:LogSpool", "mta.spool.settings:LogSpoolSettings")
memory = BuiltIn(
    "memory", ISpool, "mta.spool.memory:MemorySpool", "mta.spool.settings:MemorySpoolSettings"
)
smtp_listener = BuiltIn(
    "smtp",
    IListenerKind,
    "mta.association.smtp_listener:SmtpListener",
    "mta.association.smtp_listener:SmtpListenerSettings",
)
submission_listener = BuiltIn(
    "submission",
    IListenerKind,
    "mta.association.smtp_listener:SmtpListener",
    "mta.association.smtp_listener:SubmissionListenerSettings",
)
lmtp_listener = BuiltIn(
    "lmtp",
    IListenerKind,
    "mta.association.smtp_listener:SmtpListener",
    "mta.association.smtp_listener:LmtpListenerSettings",
    lmtp=True,
)
smtp_connector = BuiltInConnector(
    "smtp",
    "mta.association.smtp_initiator:SmtpInitiator",
    "mta.association.smtp_initiator:SmtpConnectorSettings",
    far_end_keys=("bridgeheads", "delivery"),
)
lmtp_connector = BuiltInConnector(
    "lmtp",
    "mta.association.smtp_initiator:LmtpInitiator",
    "mta.association.smtp_initiator:LmtpConnectorSettings",
    far_end_keys=("bridgeheads", "path"),
    purposes=frozenset(("store",)),  # a UNIX socket is no association with an address
)
maildir = BuiltInConnector(
    "maildir",
    "mta.association.maildir:MaildirKind",
    "mta.association.maildir:MaildirSettings",
    far_end_keys=(),
)
discard = BuiltInConnector(
    "discard",
    "mta.association.discard:DiscardKind",
    "mta.association.discard:DiscardSettings",
    far_end_keys=(),
)
least_cost = BuiltIn(
    "least-cost",
    IRoutingBuilder,
    "mta.routing.least_cost:LeastCost",
    "mta.routing.least_cost:LeastCostSettings",
)
milter = BuiltIn(
    "milter",
    IContentEditor,
    "mta.policy.milter:Milter",
    "mta.policy.milter:MilterSettings",
    purposes=frozenset({"filter"}),
)
dkim = BuiltIn(
    "dkim",
    ISigner,
    "mta.policy.dkim:Dkim",
    "mta.policy.dkim:DkimSettings",
)
limits = BuiltIn(
    "limits",
    IPolicy,
    "mta.policy.rate:RateLimits",
    "mta.policy.rate:RateSettings",
)
greet_delay = BuiltIn(
    "greet-delay",
    IPolicy,
    "mta.policy.greeting:GreetDelay",
    "mta.policy.greeting:GreetDelaySettings",
)
passwords = BuiltIn(
    "passwords",
    IAuthenticator,
    "mta.auth.passwords:Passwords",
    "mta.auth.passwords:PasswordsSettings",
)
dovecot = BuiltIn(
    "dovecot",
    IAuthenticator,
    "mta.auth.dovecot:Dovecot",
    "mta.auth.dovecot:DovecotSettings",
    purposes=frozenset({"auth"}),
)
