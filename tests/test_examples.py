"""The example plugins keep their contracts and do what their README says."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from types import ModuleType
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.errors import ConfigurationError, GrantLost
from mta.interfaces import IClusterResource, IPluginFactory
from mta.model import Address, AddressSpace, Connector, Envelope, Recipient, Route
from mta.plugins.find import create, find
from mta.spool.disk import Disk
from mta.testing.policy_suite import IPolicyTests
from mta.testing.routing_suite import CONNECTORS, IRoutingTests, mailbox
from mta.testing.surroundings import MemorySurroundings

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples" / "plugins"


def module(distribution: str) -> ModuleType:
    """An example's plugin module, imported by its file: nothing has to be installed."""
    (path,) = (EXAMPLES / distribution / "mta" / "plugins").glob("*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class ShapeTests(SynchronousTestCase):
    def test_shape(self) -> None:
        """Each is a whole distribution: one module under 60 lines, no __init__.py, a README."""
        names = sorted(entry.name for entry in EXAMPLES.iterdir() if entry.is_dir())
        self.assertEqual(["by-sender", "flag-file", "sender-limit"], names)
        for name in names:
            (path,) = (EXAMPLES / name).rglob("*.py")
            self.assertLess(len(path.read_text().splitlines()), 60, name)
            self.assertTrue((EXAMPLES / name / "README.md").exists())
            self.assertTrue((EXAMPLES / name / "pyproject.toml").exists())
            factories = [v for v in vars(module(name)).values() if IPluginFactory.providedBy(v)]
            (factory,) = factories
            self.assertEqual(name, factory.name)
            self.assertTrue(verifyObject(IPluginFactory, factory))


class SenderLimitTests(IPolicyTests, SynchronousTestCase):
    def build(self, surroundings: MemorySurroundings, **keys: Any) -> Any:
        loaded = module("sender-limit")
        settings = loaded.SenderLimitSettings(**keys)
        return create(loaded.sender_limit, settings, surroundings)  # type: ignore[arg-type]

    def ask(self, policy: Any, sender: str) -> int | None:
        reply = policy.on("rcpt", mock.Mock(sender=Address(sender.encode())))
        return None if reply is None else reply.code

    def test_limit(self) -> None:
        """Over the limit a sender is asked to come again later; others and reports are not."""
        surroundings = MemorySurroundings()
        policy = self.build(surroundings, recipients=2, window=60)
        answers = [self.ask(policy, "News@example.com") for _ in range(3)]
        self.assertEqual([None, None, 452], answers)
        self.assertEqual(452, self.ask(policy, "news@example.com"))
        self.assertIsNone(self.ask(policy, "boss@example.com"))
        self.assertEqual([None] * 3, [self.ask(policy, "") for _ in range(3)])
        surroundings.advance(59.9)
        self.assertEqual(452, self.ask(policy, "news@example.com"))
        surroundings.advance(0.1)
        self.assertIsNone(self.ask(policy, "news@example.com"))


class BySenderTests(IRoutingTests, SynchronousTestCase):
    def routing(self, connectors: tuple[Connector, ...], own: str = "hub") -> Any:
        loaded = module("by-sender")
        settings = loaded.BySenderSettings(
            senders=["News@Example.com", "bulk.example"], connector=own
        )
        builder = create(loaded.by_sender, settings, MemorySurroundings())  # type: ignore[arg-type]
        return builder.build(connectors)

    def envelope(self, sender: str) -> Envelope:
        return Envelope(mailbox(sender), (Recipient(mailbox("bob@example.com")),))

    def test_chosen_sender(self) -> None:
        """Mail of a chosen sender, or of a chosen domain, goes over the connector that was named."""
        connectors = (
            Connector("usual", "discard", (AddressSpace(b"*", 10),)),
            Connector("slow", "discard", (AddressSpace(b"*", 50),)),
        )
        routing = self.routing(connectors, "slow")
        bob = mailbox("bob@example.com")
        for sender, connector in (
            ("news@example.com", "slow"),
            ("any@bulk.example", "slow"),
            ("boss@example.com", "usual"),
        ):
            route = routing.route(bob, self.envelope(sender))
            assert isinstance(route, Route)
            self.assertEqual(connector, route.connector)
        self.assertEqual("usual", routing.route(bob, None).connector)
        route = routing.route(bob, self.envelope("news@example.com"))
        self.assertEqual(["usual"], [other.connector for other in route.alternatives])

    def test_connector_cannot(self) -> None:
        """What the named connector does not take goes as it always does."""
        routing = self.routing(CONNECTORS)
        route = routing.route(mailbox("bob@x.example"), self.envelope("news@example.com"))
        self.assertEqual("internet", route.connector)

    def test_no_such_connector(self) -> None:
        """A connector that there is not is refused by name at the start."""
        error = self.assertRaises(ConfigurationError, self.routing, CONNECTORS, "nowhere")
        self.assertIn("nowhere", str(error))


class FlagFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        """`interface` needs a kernel; `standalone` answers in its place which addresses there are."""
        self.file = os.path.abspath(self.mktemp())
        state = os.path.abspath(self.mktemp())
        os.mkdir(state)
        self.surroundings = MemorySurroundings(node="a", disk=Disk(), state_directory=state)
        loaded = module("flag-file")
        standalone = find(IClusterResource, "standalone")
        with mock.patch.object(loaded, "find", lambda interface, name: standalone):
            settings = loaded.FlagSettings(file=self.file)
            self.resource = create(loaded.flag_file, settings, self.surroundings)  # type: ignore[arg-type]
        self.listener = mock.Mock()
        self.resource.subscribe(self.listener)

    def owner(self, name: str) -> None:
        with open(self.file, "w") as file:
            file.write(f"{name}\n")

    def test_waits(self) -> None:
        """While the file is missing or names another node there is no grant; then there is."""
        acquired = self.resource.acquire()
        self.surroundings.advance(5)
        self.assertNoResult(acquired)
        self.owner("b")
        self.surroundings.advance(1)
        self.assertNoResult(acquired)
        self.owner("a")
        self.surroundings.advance(1)
        grant = self.successResultOf(acquired)
        self.assertEqual("bridgehead.example.org", grant.network_name)
        self.assertEqual(grant, self.successResultOf(self.resource.confirm(grant)))
        self.successResultOf(self.resource.release(grant, "the test is over"))

    def test_lost(self) -> None:
        """When the file names another node the owner hears it, once, and is refused."""
        self.owner("a")
        grant = self.successResultOf(self.resource.acquire())
        self.surroundings.advance(1)
        self.listener.lost.assert_not_called()
        self.owner("b")
        self.surroundings.advance(1)
        self.surroundings.advance(1)
        self.listener.lost.assert_called_once()
        self.failureResultOf(self.resource.confirm(grant), GrantLost)

    def test_unreadable(self) -> None:
        """A file that went away, or that is no text, is nobody's."""
        self.owner("a")
        self.successResultOf(self.resource.acquire())
        self.surroundings.advance(1)
        os.unlink(self.file)
        self.surroundings.advance(1)
        self.listener.lost.assert_called_once()
        with open(self.file, "wb") as file:
            file.write(b"\xff\xfe")
        waiting = self.resource.acquire()
        self.surroundings.advance(1)
        self.assertNoResult(waiting)
        waiting.cancel()
        self.failureResultOf(waiting)
