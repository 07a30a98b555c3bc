"""The sample configuration is generated from the schemas: current, whole, and without a mistake."""

from __future__ import annotations

import io
import os
import pathlib
import re
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.config.__main__ import main
from mta.config.generate import _scalar, default_text, duration_text, generate, size_text
from mta.config.load import load
from mta.config.schema import HELP, SINGLE_BLOCKS, Selection
from mta.config.validate import keys_of
from mta.config.walker import read_tree
from mta.plugins.builtin import BuiltIn
from mta.plugins.find import Catalogue
from mta.settings import parse_duration, parse_size
from tests.config_plugins import FACTORIES, find

ROOT = pathlib.Path(__file__).parent.parent


def generated() -> str:
    """The sample for the built-in plugins alone, whatever else is installed."""
    catalogue = Catalogue()
    return generate(lambda i: [f for f in catalogue.available(i) if isinstance(f, BuiltIn)])


class SampleTests(SynchronousTestCase):
    def test_current(self) -> None:
        """etc/mta.yaml is what the schemas say today (`python -m mta.config --generate`)."""
        self.assertEqual(
            (ROOT / "etc" / "mta.yaml").read_text().split("\n"), generated().split("\n")
        )

    def test_loads(self) -> None:
        """etc/mta.yaml is a configuration without a mistake."""
        config = load((ROOT / "etc" / "mta.yaml").read_text(), "etc/mta.yaml", Catalogue().find)
        self.assertEqual(["hub", "internet"], [block.name for block in config.connectors])

    def test_whole(self) -> None:
        """Every key of every block and of every built-in plugin stands in it."""
        text = generated()
        for block in HELP:
            self.assertRegex(text, rf"(?m)^#?{block}:")
        schemas = [*SINGLE_BLOCKS.values()]
        for selection in Selection:
            factories = Catalogue().available(selection.contract)
            schemas += [f.schema for f in factories if isinstance(f, BuiltIn)]
        for schema in schemas:
            for key in keys_of(schema):
                self.assertRegex(text, rf"(?m)^\s*#?{key}:", f"{schema.__name__}: {key}")

    def test_third_parties(self) -> None:
        """Keys of plugins that somebody installed stand in it too, and it still loads."""
        text = generate(lambda i: [f for f in FACTORIES if f.provides is i])
        self.assertIn("  #- policy: picky\n", text)
        self.assertIn("#share: 0.5", text)
        load(text, "x", find)

    def test_defaults_are_defaults(self) -> None:
        """A key whose # is taken away means what it meant behind it."""
        text = generated()
        bare = re.sub(r"(?m)^(\s*)#([a-z-]+:.*\S)$", r"\1\2", text)
        before = load(text, "x", Catalogue().find)
        for name, schema in SINGLE_BLOCKS.items():
            if name == "virtual-server":
                continue
            block = bare[bare.index(f"\n{name}:" if f"\n{name}:" in bare else f"\n#{name}:") + 1 :]
            block = re.split(r"\n\n", block)[0].removeprefix("#")
            block = re.sub(r"(?m)^\s*#?[a-z-]+:$", "", block.partition("\n")[2])
            self.assertRegex(block, r"(?m)^  [a-z-]+: \S", name)
            field = name.replace("-", "_")
            with_keys = text + f"\n{name}:\n{block}\n"
            self.assertEqual(
                getattr(before, field), getattr(load(with_keys, "x", Catalogue().find), field)
            )
            self.assertIsInstance(getattr(before, field), schema)

    def test_width(self) -> None:
        """It is read on terminals: no line is over 100 columns."""
        self.assertEqual([], [line for line in generated().split("\n") if len(line) > 100])


class DefaultTests(SynchronousTestCase):
    def test_loads(self) -> None:
        """The configuration of a first run has no mistake, wherever it is run."""
        for directory in ("/home/me/mta/var", "/a b/c: d#e", '/quo"te', "/", "/ünï/çode", "/{x}"):
            config = load(default_text(directory, 2626), "x", Catalogue().find)
            self.assertTrue(config.admin.socket.startswith(directory.rstrip("/") + "/run/"))
            self.assertEqual(2626, config.listeners[0].settings.port)  # type: ignore[attr-defined]
            self.assertEqual("standalone", config.cluster.name)
            self.assertEqual("127.0.0.1", str(config.virtual_server.addresses[0]))

    def test_relay(self) -> None:
        """A first run is no open relay: nobody may send through it but this machine."""
        config = load(default_text("/tmp/x", 2525), "x", Catalogue().find)
        for block in config.connectors:
            for space in block.connector.address_spaces:
                self.assertFalse(space.accept_anyone)

    def test_network_name(self) -> None:
        """Its network name is valid, whatever this machine calls itself."""
        for host, name in (
            ("host.example.org", "host.example.org"),
            ("host", "host.localdomain"),
            ("", "mta.localdomain"),
            ("localhost", "mta.localdomain"),
            ("localhost.localdomain", "mta.localdomain"),
            ("My_Host", "my-host.localdomain"),
            ("0f3a", "0f3a.localdomain"),
            ("\x1b[31m", "31m.localdomain"),
        ):
            config = load(default_text("/tmp/x", 2525, host), "x", Catalogue().find)
            self.assertEqual(name, config.virtual_server.network_name)


class CommandTests(SynchronousTestCase):
    """`python -m mta.config`, called in this process."""

    def called(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with mock.patch("sys.stdout", out), mock.patch("sys.stderr", err):
            status = main(list(arguments))
        return status, out.getvalue(), err.getvalue()

    def test_good(self) -> None:
        """A good file: exit 0, nothing on standard error."""
        status, out, err = self.called(str(ROOT / "etc" / "mta.yaml"))
        self.assertEqual((0, ""), (status, err))
        self.assertIn("no mistake", out)

    def test_bad(self) -> None:
        """A bad file: exit 78, each mistake on a line of standard error, nothing on output."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write((ROOT / "etc" / "mta.yaml").read_text().replace("store: log", "stoer: log"))
        status, out, err = self.called(path)
        self.assertEqual((os.EX_CONFIG, ""), (status, out))
        self.assertRegex(err, r"^.+:\d+:3: spool\.stoer: unknown, did you mean store\?\n$")

    def test_generate(self) -> None:
        """--generate and --default write what they promise."""
        self.assertIn("\n#queue:\n", self.called("--generate")[1])
        status, out, _err = self.called("--default", "--directory", "/tmp/x", "--port", "2600")
        self.assertEqual(0, status)
        self.assertIn("port: 2600", out)
        self.assertEqual([], read_tree(out, "x").mistakes)


class ValueTests(SynchronousTestCase):
    @given(st.integers(0, 10**9))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_durations(self, milliseconds: int) -> None:
        """A duration that was written reads back as itself."""
        seconds = milliseconds / 1000 if milliseconds < 10**6 else float(milliseconds)
        self.assertAlmostEqual(seconds, parse_duration(duration_text(seconds)), delta=seconds / 1e4)

    @given(st.integers(0, 2**50))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_sizes(self, octets: int) -> None:
        """So does a size."""
        self.assertEqual(octets, parse_size(size_text(octets)))

    @given(st.text(max_size=20))
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_text(self, text: Any) -> None:
        """So does any text."""
        tree = read_tree(f"a: {_scalar(text)}\n", "x")
        self.assertEqual([], tree.mistakes)
        self.assertEqual(text, tree.root["a"])

    def test_examples(self) -> None:
        """Durations and sizes are written in the unit that a person would choose."""
        shown = [duration_text(s) for s in (0, 0.5, 30, 300, 3600, 86400, 90, 5400)]
        self.assertEqual(["0s", "500ms", "30s", "5m", "1h", "1d", "90s", "90m"], shown)
        self.assertEqual(
            ["0", "998", "64KiB", "25MiB"], [size_text(n) for n in (0, 998, 65536, 25 << 20)]
        )
