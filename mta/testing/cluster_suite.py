"""What every cluster resource promises: one suite for ours and for third parties'.

A test case mixes `IClusterResourceTests` in, builds the resource in `make_resource`, and says in
`become_owner` and `cease_to_be_owner` how its authority is moved. Runs in virtual time.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.errors import ConfigurationError, GrantLost, MTAError
from mta.interfaces import (
    IClusterResource,
    IResourceListener,
    ISingleNode,
    IStaleAddresses,
)
from mta.model import AddressInstance, Fencing, Grant, Health, HealthLevel, VirtualServer
from mta.testing.surroundings import MemorySurroundings, virtual_addresses


@implementer(IResourceListener)
class Heard:
    """A listener that keeps what it heard, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def addressesChanged(self, instances: tuple[AddressInstance, ...]) -> None:
        self.events.append(("addresses", instances))

    def losing(self, deadline: float) -> None:
        self.events.append(("losing", deadline))

    def lost(self, reason: str) -> None:
        self.events.append(("lost", reason))

    def health(self, health: Health) -> None:
        self.events.append(("health", health))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]


class IClusterResourceTests:
    """Mixed into a `SynchronousTestCase`."""

    def make_resource(self, surroundings: MemorySurroundings) -> Any:
        """The resource, not started, whose authority says that it is not the owner (where that can
        be: a single node always is).
        """
        raise AssertionError("make_resource says how the resource is built")

    def become_owner(self) -> None:
        """The authority decides for us. Nothing to do for a single node."""

    def cease_to_be_owner(self) -> None:
        """The authority decides against us, or the address goes."""

    # --- plumbing

    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.server = VirtualServer(
            "bridgehead.example.org", virtual_addresses("192.0.2.10", "2001:db8::10")
        )
        self.here.virtual_server = self.server
        self.resource = self.make_resource(self.here)
        self.heard = Heard()

    def begin(self) -> None:
        self.resource.prepare(self.server)
        self.resource.subscribe(self.heard)
        self.resource.start()
        self.here.advance()

    def owned(self: Any) -> Grant:
        self.begin()
        self.become_owner()
        self.here.advance()
        waiting = self.resource.acquire()
        self.here.advance()
        grant: Grant = self.successResultOf(waiting)
        return grant

    @property
    def is_single(self) -> bool:
        return bool(ISingleNode.providedBy(self.resource))

    # --- promises

    def test_contract(self: Any) -> None:
        """It is what the contract says, and says what it fences."""
        verifyObject(IClusterResource, self.resource)
        self.assertIsInstance(self.resource.fencing, Fencing)

    def test_prepare_refuses_nonsense(self: Any) -> None:
        """A name that is none, localhost, an address that is no single one: refused at once."""
        good = self.server.addresses
        for server in (
            VirtualServer("bridgehead", good),
            VirtualServer("localhost", good),
            VirtualServer("", good),
            VirtualServer("bridgehead.example.org", virtual_addresses("0.0.0.0")),
            VirtualServer("bridgehead.example.org", virtual_addresses("192.0.2.10", "::")),
        ):
            with self.assertRaises(ConfigurationError) as caught:
                self.resource.prepare(server)
            self.assertTrue(caught.exception.why and caught.exception.remedy)

    def test_node_name(self: Any) -> None:
        """The node's own name is the virtual server's only where there is no other node."""
        server = VirtualServer(self.here.node, self.server.addresses)
        if self.is_single:
            self.resource.prepare(server)
        else:
            self.assertRaises(ConfigurationError, self.resource.prepare, server)

    def test_prepare_leaves_no_trace(self: Any) -> None:
        """Preparing opens nothing and promises nothing."""
        self.resource.prepare(self.server)
        self.assertEqual(self.here.doors.watched, [])
        self.assertEqual(self.here.network.listening, {})

    def test_grant(self: Any) -> None:
        """A grant names the server, all its addresses, and the fencing of the resource."""
        grant = self.owned()
        self.assertEqual(grant.network_name, self.server.network_name)
        self.assertEqual(grant.addresses, self.server.addresses)
        self.assertIs(grant.fencing, self.resource.fencing)
        self.assertTrue(self.resource.explain())

    def test_waits(self: Any) -> None:
        """Before the authority has decided nobody gets a grant; waiting can be given up."""
        if self.is_single:
            return
        self.begin()
        waiting = self.resource.acquire()
        self.here.advance(3600)
        self.assertNoResult(waiting)
        self.assertTrue(self.resource.explain())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        waiting = self.resource.acquire()
        self.become_owner()
        self.here.advance()
        self.successResultOf(waiting)

    def test_confirm(self: Any) -> None:
        """A grant that is still good is confirmed by asking again."""
        grant = self.owned()
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.assertEqual(self.successResultOf(confirmed).addresses, grant.addresses)

    def test_confirm_when_gone(self: Any) -> None:
        """A grant that is gone is not confirmed."""
        grant = self.owned()
        if self.is_single:
            self.successResultOf(self.resource.release(grant, "test"))
        else:
            self.cease_to_be_owner()
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.failureResultOf(confirmed, GrantLost)

    def settle(self) -> None:
        """Let an answer that needs the authority arrive."""
        self.here.advance()

    def test_loss_is_told(self: Any) -> None:
        """When ownership, or a required address, goes, the listener hears of it."""
        if self.is_single:
            return
        self.owned()
        before = len(self.heard.events)
        self.cease_to_be_owner()
        self.here.advance()
        told = self.heard.events[before:]
        required = {address.bind for address in self.server.addresses if address.required}
        gone = [
            value
            for kind, value in told
            if kind == "addresses" and not required <= {i.address for i in value}
        ]
        self.assertTrue(gone or any(kind in {"lost", "losing"} for kind, _ in told), told)

    def test_release_twice(self: Any) -> None:
        """Giving back is idempotent, also for a grant that is long gone."""
        grant = self.owned()
        for _ in range(2):
            released = self.resource.release(grant, "test")
            self.settle()
            self.assertIsNone(self.successResultOf(released))

    def test_again(self: Any) -> None:
        """After giving back it can be granted anew, with a token that is not older."""
        first = self.owned()
        released = self.resource.release(first, "test")
        self.settle()
        self.successResultOf(released)
        self.cease_to_be_owner()
        self.here.advance()
        self.become_owner()
        self.here.advance()
        waiting = self.resource.acquire()
        self.here.advance()
        self.assertGreaterEqual(self.successResultOf(waiting).token, first.token)

    def test_probe(self: Any) -> None:
        """Each level of probing answers; level 0 at once."""
        self.owned()
        self.assertIs(self.successResultOf(self.resource.probe(0)).level, HealthLevel.OK)
        for level in (1, 2):
            answer = self.resource.probe(level)
            self.settle()
            self.assertIs(self.successResultOf(answer).level, HealthLevel.OK)

    def test_probe_finds_what_cannot_be_bound(self: Any) -> None:
        """A deeper probe really binds: an address that cannot be is not called alive."""
        self.owned()
        self.here.network.usable = {"2001:db8::10"}
        answer = self.resource.probe(1)
        self.settle()
        health = self.successResultOf(answer)
        self.assertIs(health.level, HealthLevel.FAILED)
        self.assertIn("192.0.2.10", health.text)

    def test_left_over(self: Any) -> None:
        """Who can tell of addresses that are left over names none before it began and none while it
        owns; afterwards only configured ones.
        """
        can_tell = IStaleAddresses.providedBy(self.resource)
        if not can_tell:
            return
        verifyObject(IStaleAddresses, self.resource)
        self.assertEqual(self.resource.stale_addresses(), ())
        grant = self.owned()
        self.assertEqual(self.resource.stale_addresses(), ())
        self.resource.release(grant, "test")
        self.settle()
        self.cease_to_be_owner()
        waiting = self.resource.acquire()
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        self.settle()
        configured = {address.bind for address in self.server.addresses}
        self.assertLessEqual(set(self.resource.stale_addresses()), configured)
        waiting.cancel()

    def test_silent_after_stop(self: Any) -> None:
        """After stop nothing is watched and nobody is called."""
        self.owned()
        stopped = self.resource.stop()
        self.settle()
        self.assertIsNone(self.successResultOf(stopped))
        before = list(self.heard.events)
        self.cease_to_be_owner()
        self.here.advance(60)
        self.assertEqual(self.heard.events, before)
        self.assertEqual(self.here.doors.watched, [])
        self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])

    def test_errors_are_named(self: Any) -> None:
        """What it raises is an MTAError, which says what, why and what to do."""
        with self.assertRaises(MTAError) as caught:
            self.resource.prepare(VirtualServer("x", self.server.addresses))
        self.assertIn("fully qualified", str(caught.exception))
