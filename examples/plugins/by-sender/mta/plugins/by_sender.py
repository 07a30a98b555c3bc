"""Mail of chosen senders goes over a connector of their own, all other mail at the least cost."""

from dataclasses import replace

from pydantic import Field
from zope.interface import implementer

from mta.errors import ConfigurationError
from mta.interfaces import IRouting, IRoutingBuilder
from mta.model import NULL_ADDRESS, Address, Envelope, Route, Unroutable
from mta.plugins.factory import PluginFactory, find
from mta.settings import Settings


class BySenderSettings(Settings):
    senders: tuple[str, ...] = Field(min_length=1, description="user@example.com or example.com.")
    connector: str = Field(description="Where their mail goes, if its address spaces take it.")


@implementer(IRoutingBuilder, IRouting)
class BySender:
    def __init__(self, settings, surroundings):
        self._settings = settings
        self._senders = {sender.lower().encode() for sender in settings.senders}
        least_cost = find(IRoutingBuilder, "least-cost")
        self._least_cost = least_cost.create(least_cost.schema(), surroundings)

    def build(self, connectors):
        own = tuple(c for c in connectors if c.name == self._settings.connector)
        if not own:
            raise ConfigurationError(f"by-sender: no connector {self._settings.connector!r}")
        self._own, self._usual = self._least_cost.build(own), self._least_cost.build(connectors)
        return self

    def route(self, recipient: Address, envelope: Envelope | None) -> Route | Unroutable:
        usual = self._usual.route(recipient, envelope)
        sender = envelope.sender if envelope else NULL_ADDRESS
        own = self._own.route(recipient, envelope)
        if not self._senders & {sender.text.lower(), sender.domain} or isinstance(own, Unroutable):
            return usual
        others = (usual, *usual.alternatives) if isinstance(usual, Route) else ()
        others = tuple(other for other in others if other.connector != own.connector)
        return replace(own, why=f"{sender} is one of the senders", alternatives=others)

    def accepts_anyone(self, recipient):
        return self._usual.accepts_anyone(recipient)

    def connector_up(self, name):
        self._own.connector_up(name), self._usual.connector_up(name)

    def connector_down(self, name):
        self._own.connector_down(name), self._usual.connector_down(name)


by_sender = PluginFactory("by-sender", IRoutingBuilder, BySenderSettings, BySender)
