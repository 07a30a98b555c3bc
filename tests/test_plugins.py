"""Plugins are found by contract and name; what is there, what is broken and why is told."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import sys
import types
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import Field
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

import mta.plugins
from mta.config.load import load
from mta.errors import ConfigurationError, PluginError
from mta.interfaces import (
    IAssociationKind,
    IAuthenticator,
    IClusterResource,
    IConnectorFactory,
    IListenerKind,
    IPluginFactory,
    IPolicy,
    IRoutingBuilder,
    ISpool,
    ISurroundings,
)
from mta.plugins.builtin import BuiltIn
from mta.plugins.factory import PluginFactory
from mta.plugins.find import Catalogue, create, kind_of
from mta.settings import Settings
from mta.testing.surroundings import MemorySurroundings

BUILT_IN = {
    IClusterResource: {"standalone", "interface", "keepalived", "pacemaker", "etcd"},
    ISpool: {"log", "memory"},
    IListenerKind: {"smtp", "lmtp", "submission"},
    IAssociationKind: {"smtp", "lmtp", "maildir", "discard"},
    IRoutingBuilder: {"least-cost"},
    IPolicy: {"limits", "greet-delay", "dkim", "milter"},
    IAuthenticator: {"passwords", "dovecot"},
}
GIVEN: dict[tuple[Any, str], dict[str, Any]] = {
    (IClusterResource, "etcd"): {"endpoints": ["http://10.9.0.3:2379"]},
    (IClusterResource, "keepalived"): {"instance": "MAIL"},
    (ISpool, "log"): {"directory": "/spool"},
    (IListenerKind, "submission"): {"tls": "offer"},
    (IAssociationKind, "maildir"): {"directory": "/mail"},
    (IPolicy, "milter"): {"socket": "unix:/run/opendkim/opendkim.sock"},
}
"""Values for keys that have no default, or one that needs a certificate."""


def built_in(catalogue: Catalogue, contract: Any) -> list[IPluginFactory]:
    return [f for f in catalogue.available(contract) if isinstance(f, BuiltIn)]


@implementer(ISurroundings)
class Narrow:
    """Exactly what ISurroundings names; asking for anything else is remembered."""

    def __init__(self, wide: Any) -> None:
        self._wide = wide
        self.beyond: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ISurroundings.names(all=True):
            return getattr(self._wide, name)
        self.beyond.append(name)
        raise AttributeError(name)


class BuiltInTests(SynchronousTestCase):
    """Our own plugins use the way that is open to everybody."""

    def setUp(self) -> None:
        self.catalogue = Catalogue()

    def test_all_found(self) -> None:
        """Every built-in plugin is found by its contract and name, and none is broken."""
        for contract, names in BUILT_IN.items():
            found = {factory.name for factory in built_in(self.catalogue, contract)}
            self.assertEqual(names, found, kind_of(contract))
            for name in names:
                factory = self.catalogue.find(contract, name)
                self.assertTrue(verifyObject(IPluginFactory, factory))
                self.assertTrue(issubclass(factory.schema, Settings))
        broken = [b for b in self.catalogue.inventory().broken if b.module == "mta.plugins.builtin"]
        self.assertEqual([], broken)

    def test_verified_products(self) -> None:
        """Each builds what its contract promises out of its settings and ISurroundings alone."""
        users = os.path.abspath(self.mktemp())
        os.close(os.open(users, os.O_CREAT | os.O_WRONLY, 0o600))
        key = {"domain": "example.org", "selector": "s1", "key-file": self.signing_key()}
        given = {
            **GIVEN,
            (IAuthenticator, "passwords"): {"password-file": users},
            (IPolicy, "dkim"): {"domains": [key]},
        }
        for contract in BUILT_IN:
            for factory in built_in(self.catalogue, contract):
                surroundings = Narrow(MemorySurroundings())
                settings = factory.schema.model_validate(given.get((contract, factory.name), {}))
                product = create(factory, settings, surroundings)  # type: ignore[arg-type]
                self.assertTrue(verifyObject(contract, product), factory.name)
                self.assertEqual([], surroundings.beyond, factory.name)

    def signing_key(self) -> str:
        """The path of a private key."""
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        path = pathlib.Path(self.mktemp()).resolve()
        path.touch(0o600)
        path.write_bytes(Ed25519PrivateKey.generate().private_bytes(*form))
        return str(path)

    def test_no_reactor(self) -> None:
        """No module of a built-in plugin imports the reactor, the service or twistd's entrance."""
        for contract in BUILT_IN:
            for factory in built_in(self.catalogue, contract):
                implementation = factory._implementation.partition(":")[0]  # type: ignore[attr-defined]
                source = importlib.import_module(implementation).__file__
                assert source is not None
                for node in ast.walk(ast.parse(pathlib.Path(source).read_text())):
                    names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                    if isinstance(node, ast.ImportFrom):
                        names = [f"{node.module}.{a.name}" for a in node.names]
                    for name in names:
                        self.assertNotIn(
                            name,
                            ("twisted.internet.reactor", "mta.service", "mta.tap"),
                            f"{source}: {name}",
                        )

    def test_far_ends(self) -> None:
        """Each connector kind says how its far end is named, in keys that there are."""
        for factory in built_in(self.catalogue, IAssociationKind):
            self.assertTrue(verifyObject(IConnectorFactory, factory))
            own = {f.alias for f in factory.schema.model_fields.values()}
            for key in factory.far_end_keys:  # type: ignore[attr-defined]
                self.assertIn(key, own | {"bridgeheads", "delivery"})

    def test_keys_are_explained(self) -> None:
        """Every key of every built-in plugin has its help."""
        for contract in BUILT_IN:
            for factory in built_in(self.catalogue, contract):
                for name, field in factory.schema.model_fields.items():
                    self.assertTrue(field.description, f"{factory.name}: {name}")

    def test_lazy(self) -> None:
        """Looking at the built-in factories imports none of their implementations."""
        tree = ast.parse(pathlib.Path(mta.plugins.__path__[0], "builtin.py").read_text())
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        self.assertEqual({"__future__", "typing", "zope.interface", "mta.interfaces"}, imported)


GOOD = """
from mta.interfaces import IPolicy
from mta.plugins.factory import PluginFactory
from mta.settings import Settings

class Word(Settings):
    word: str = "x"

{name} = PluginFactory("{title}", IPolicy, Word, lambda settings, surroundings: settings)
"""


class FindTests(SynchronousTestCase):
    """A package of plugins made for the purpose, in two directories as two distributions have it."""

    def setUp(self) -> None:
        self.first, self.second = (os.path.abspath(self.mktemp()) for _ in range(2))
        for directory in (self.first, self.second):
            os.makedirs(directory)
        self.package = types.ModuleType("plugins_on_trial")
        self.package.__path__ = [self.first, self.second]
        sys.modules["plugins_on_trial"] = self.package
        self.addCleanup(self.forget)

    def forget(self) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "plugins_on_trial"]:
            del sys.modules[name]

    def write(self, directory: str, name: str, text: str) -> None:
        with open(os.path.join(directory, f"{name}.py"), "w") as file:
            file.write(text)
        importlib.invalidate_caches()

    def good(self, directory: str, name: str, title: str) -> None:
        self.write(directory, name, GOOD.format(name=name, title=title))

    def catalogue(self) -> Catalogue:
        return Catalogue(self.package)

    def test_found(self) -> None:
        """A module in any directory of the package is found, and no cache file is written."""
        self.good(self.first, "delay", "delay")
        self.good(self.second, "colour", "colour")
        factory = self.catalogue().find(IPolicy, "colour")
        self.assertEqual("colour", factory.name)
        names = [f.name for f in self.catalogue().available(IPolicy)]
        self.assertEqual(["colour", "delay"], names)
        files = {name for d in (self.first, self.second) for name in os.listdir(d)}
        self.assertEqual({"delay.py", "colour.py"}, files - {"__pycache__"})

    def test_not_found(self) -> None:
        """A miss lists what is there and what failed to import, with the reason."""
        self.good(self.first, "delay", "delay")
        self.write(self.first, "torn", "import no_such_module\n")
        self.write(self.first, "quits", "raise SystemExit('I leave')\n")
        self.write(self.first, "typo", "def broken(:\n")
        error = self.assertRaises(PluginError, self.catalogue().find, IPolicy, "dealy")
        text = str(error)
        self.assertIn("no Policy plugin is named 'dealy': there are delay", text)
        self.assertIn("plugins_on_trial.torn (ModuleNotFoundError: No module named", text)
        self.assertIn("plugins_on_trial.quits (SystemExit: I leave", text)
        self.assertIn("plugins_on_trial.typo (SyntaxError", text)
        self.assertIn("did you mean delay?", text)
        self.assertEqual(1, len(text.splitlines()))
        error = self.assertRaises(PluginError, self.catalogue().find, ISpool, "delay")
        self.assertIn("there are none", str(error))

    def test_broken_beside_good(self) -> None:
        """A plugin that cannot be imported takes nothing away from the others."""
        self.write(self.first, "torn", "1 / 0\n")
        self.good(self.second, "colour", "colour")
        self.assertEqual("colour", self.catalogue().find(IPolicy, "colour").name)
        (broken,) = self.catalogue().inventory().broken
        self.assertEqual("plugins_on_trial.torn", broken.module)
        self.assertEqual("ZeroDivisionError: division by zero, at torn.py line 1", broken.reason)

    def test_doubled(self) -> None:
        """A name that two plugins claim is refused, whichever comes first."""
        self.good(self.first, "one", "delay")
        self.good(self.second, "two", "delay")
        error = self.assertRaises(PluginError, self.catalogue().find, IPolicy, "delay")
        self.assertIn("two Policy plugins are named 'delay'", str(error))
        self.assertIn("plugins_on_trial.one", str(error))
        self.assertIn("plugins_on_trial.two", str(error))
        self.assertEqual((), self.catalogue().available(IPolicy))
        (broken,) = self.catalogue().inventory().broken
        self.assertIn("the name is taken by plugins_on_trial.one too", broken.reason)

    def test_shadowed(self) -> None:
        """A module that lies behind another one of its name is told, not hidden."""
        self.good(self.first, "delay", "delay")
        self.good(self.second, "delay", "other")
        (broken,) = self.catalogue().inventory().broken
        self.assertIn("never imported", broken.reason)
        self.assertIn(self.second, broken.reason)

    def test_one_offer_twice(self) -> None:
        """A factory that another module imports is still one factory."""
        self.good(self.first, "delay", "delay")
        self.write(self.second, "uses", "from plugins_on_trial.delay import delay\n")
        self.assertEqual("delay", self.catalogue().find(IPolicy, "delay").name)
        self.assertEqual((), self.catalogue().inventory().broken)

    def faulty(self, change: str) -> str:
        self.write(self.first, "delay", GOOD.format(name="delay", title="delay") + change + "\n")
        (broken,) = self.catalogue().inventory().broken
        self.assertEqual(0, len(self.catalogue().available(IPolicy)))
        self.assertRaises(PluginError, self.catalogue().find, IPolicy, "delay")
        return broken.reason

    def test_no_name(self) -> None:
        """A name that could not stand in a configuration is refused."""
        self.assertIn("its name 'De Lay'", self.faulty("delay.name = 'De Lay'"))

    def test_no_contract(self) -> None:
        """What provides none of the contracts is refused."""
        self.assertIn("not one of the contracts", self.faulty("delay.provides = str"))

    def test_version(self) -> None:
        """A plugin for another version of its contract is refused by both numbers."""
        reason = self.faulty("delay.version = 2")
        self.assertIn("version 2 of IPolicy", reason)
        self.assertIn("speaks version 1", reason)

    def test_schema(self) -> None:
        """A schema of another make, or one that cannot be imported, is refused."""
        self.assertIn("derived from mta.settings.Settings", self.faulty("delay.schema = dict"))

    def test_purposes(self) -> None:
        """A purpose that no door knows is refused."""
        reason = self.faulty("delay.purposes = frozenset({'fun'})")
        self.assertIn("unknown purposes: fun", reason)

    def test_incomplete(self) -> None:
        """An offer that lacks a member of IPluginFactory is refused, naming it."""
        self.assertIn("purposes", self.faulty("del delay.purposes"))

    def test_cluster_schema(self) -> None:
        """A cluster resource's block has the keys that the ownership machine reads."""
        text = GOOD.replace("IPolicy", "IClusterResource").format(name="delay", title="delay")
        self.write(self.first, "delay", text)
        error = self.assertRaises(PluginError, self.catalogue().find, IClusterResource, "delay")
        self.assertIn("mta.cluster.settings.ClusterSettings", str(error))

    def test_unpackaged(self) -> None:
        """A module that no distribution brought is shown as that."""
        self.good(self.first, "delay", "delay")
        (plugin,) = self.catalogue().inventory().plugins
        self.assertEqual(
            ("Policy", "delay", "unpackaged", ""),
            (plugin.kind, plugin.name, plugin.distribution, plugin.version),
        )


class Word(Settings):
    word: str = Field(default="x", description="A word.")


class CreateTests(SynchronousTestCase):
    def built(self, build: Any) -> Any:
        factory = PluginFactory("trial", IPolicy, Word, build)
        return create(factory, Word(), MemorySurroundings())

    def test_product_verified(self) -> None:
        """What does not keep the contract is refused by the plugin's name."""
        error = self.assertRaises(PluginError, self.built, lambda settings, surroundings: "no")
        self.assertIn("Policy plugin 'trial' built something else", str(error))

    def test_plugin_raises(self) -> None:
        """A plugin's exception bears the plugin's name and its place."""
        error = self.assertRaises(PluginError, self.built, lambda settings, surroundings: 1 / 0)
        self.assertIn("Policy plugin 'trial' failed: ZeroDivisionError", str(error))
        self.assertIn("test_plugins.py line", str(error))

    def test_plugin_refuses(self) -> None:
        """What a plugin refuses on purpose keeps its own words."""

        def refuse(settings: Any, surroundings: Any) -> Any:
            raise ConfigurationError("no, thank you")

        self.assertEqual(
            "no, thank you", str(self.assertRaises(ConfigurationError, self.built, refuse))
        )


class SampleTests(SynchronousTestCase):
    def test_grammar_with_real_plugins(self) -> None:
        """The grammar of the specification loads with the built-in plugins."""
        from tests.config_plugins import SAMPLE

        config = load(SAMPLE, "mta.yaml", Catalogue().find)
        self.assertEqual("smtp:25", config.listeners[0].name)
        self.assertEqual("smtp:25", config.listeners[0].settings.name)  # type: ignore[attr-defined]
