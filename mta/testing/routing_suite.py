"""What every IRouting promises, whatever its policy. Mix into a SynchronousTestCase."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface.verify import verifyObject

from mta.interfaces import IRouting
from mta.model import Address, AddressSpace, Bridgehead, Connector, Route, Unroutable

CONNECTORS = (
    Connector(
        "hub",
        "smtp",
        (
            AddressSpace(b"example.com", 10, accept_anyone=True),
            AddressSpace(b"*.example.com", 10),
        ),
        bridgeheads=(Bridgehead("192.0.2.20", 25, 20), Bridgehead("192.0.2.21", 25, 10)),
    ),
    Connector("internet", "smtp", (AddressSpace(b"*.example", 50),), by_mx=True),
    Connector("local", "maildir", (AddressSpace(b"boss@example.com", 1),)),
)


def mailbox(text: str) -> Address:
    return Address(text.encode(), text.partition("@")[2].lower().encode())


class IRoutingTests:
    """Implement `routing(connectors)`."""

    routing: Callable[[tuple[Connector, ...]], IRouting]

    def test_interface(self) -> None:
        """A routing has every method of the contract."""
        verifyObject(IRouting, self.routing(CONNECTORS))

    def test_route_names_a_connector(self) -> None:
        """A route names a connector that exists, a destination, and the reason in words."""
        routing = self.routing(CONNECTORS)
        for text in ("bob@example.com", "bob@a.example.com", "bob@x.example"):
            route = routing.route(mailbox(text), None)
            assert isinstance(route, Route), text
            assert route.connector in {c.name for c in CONNECTORS}, text
            assert route.destination.startswith(route.connector), text
            assert route.why, text
            assert route.candidates, text

    def test_deterministic(self) -> None:
        """Two nodes with the same connectors choose the same, in whatever order they were told."""
        one, other = self.routing(CONNECTORS), self.routing(tuple(reversed(CONNECTORS)))
        for text in ("bob@example.com", "boss@example.com", "bob@x.example", "bob@nowhere.test"):
            assert one.route(mailbox(text), None) == other.route(mailbox(text), None), text

    def test_unroutable(self) -> None:
        """What no connector takes is refused with a code and the reason, never guessed."""
        route = self.routing(CONNECTORS).route(mailbox("bob@nowhere.test"), None)
        assert isinstance(route, Unroutable)
        assert route.code >= 400
        assert route.why

    def test_bridgeheads_by_preference(self) -> None:
        """Bridgeheads are in the order of trying."""
        route = self.routing(CONNECTORS).route(mailbox("bob@example.com"), None)
        assert isinstance(route, Route)
        assert [b.host for b in route.bridgeheads] == ["192.0.2.21", "192.0.2.20"]

    def test_mx_destination(self) -> None:
        """With MX delivery each domain is a destination of its own."""
        route = self.routing(CONNECTORS).route(mailbox("bob@x.example"), None)
        assert isinstance(route, Route)
        assert route.mx_domain == b"x.example"
        assert route.destination == "internet/x.example"

    def test_up_and_down(self) -> None:
        """A connector that goes down and comes up leaves routing as it was."""
        routing = self.routing(CONNECTORS)
        before = routing.route(mailbox("bob@example.com"), None)
        routing.connector_down("hub")
        routing.connector_up("hub")
        assert routing.route(mailbox("bob@example.com"), None) == before

    def test_accepts_anyone(self) -> None:
        """Who may relay follows `accept: anyone` of the most specific address space alone."""
        routing = self.routing(CONNECTORS)
        assert routing.accepts_anyone(mailbox("bob@example.com"))
        assert not routing.accepts_anyone(mailbox("bob@a.example.com"))
        assert not routing.accepts_anyone(mailbox("boss@example.com"))
        assert not routing.accepts_anyone(mailbox("bob@nowhere.test"))
