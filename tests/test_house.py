"""The house stands: who imports whom, who may open a socket, and how its files look.

Reads the sources with `ast`, imports nothing of them. A breach is printed as `file:line: fact`.
The rules are tables; each of them is shown to be able to fail.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

COMMON = {"model", "errors", "telemetry", "settings"}
IMPLEMENTATIONS = {
    *("association", "auth", "cluster", "spool", "resolver", "routing", "policy", "transfer"),
}
REST = IMPLEMENTATIONS | {"interfaces", "wire", "config", "admin", "plugins"}
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "errors": {"model"},
    "telemetry": set(),
    "settings": {"model", "errors"},
    "interfaces": COMMON,
    "wire": {"model", "errors"},
    "association": COMMON | {"interfaces", "wire"},
    "auth": COMMON | {"interfaces", "wire"},
    "cluster": COMMON | {"interfaces"},
    "spool": COMMON | {"interfaces"},
    "resolver": COMMON | {"interfaces"},
    "routing": COMMON | {"interfaces"},
    "policy": COMMON | {"interfaces", "wire"},
    "transfer": COMMON | {"interfaces", "wire.dsn", "wire.mime", "policy"},
    "config": COMMON
    | {
        *("interfaces", "plugins", "admin.settings", "association.tls_settings"),
        *("resolver.settings", "transfer.settings"),
    },
    "admin": COMMON | {"interfaces"},
    "cli": set(),
    "plugins": COMMON | {"interfaces"},
    "testing": COMMON | REST | {"tenant"},
    "process": COMMON | {"interfaces"},
    "tenant": COMMON | REST,
    "proof": COMMON
    | {"interfaces", "association.holders", "cluster", "config", "plugins", "process"},
    "overview": COMMON | {"interfaces", "admin", "cluster", "config", "proof", "tenant"},
    "service": COMMON | REST | {"process", "tenant", "proof", "overview"},
    "tap": COMMON | {"config", "plugins", "process", "service"},
}
"""A room, and the rooms that it may import besides itself. `wire.dsn` is that one module,
`wire.mime` that one package."""

LAZILY = {"plugins": IMPLEMENTATIONS}
"""What a room may import besides, inside a function only."""

OUTSIDE: dict[str, set[str]] = {
    "model": set(),
    "errors": set(),
    "telemetry": set(),
    "wire": {"idna"},
    "cli": set(),
}
"""Rooms that import, besides themselves and the above, nothing but the standard library, and these."""

DOORS = {
    *("listenTCP", "listenSSL", "listenUDP", "listenUNIX", "listenUNIXDatagram", "listenWith"),
    *("connectTCP", "connectSSL", "connectUNIX", "connectUNIXDatagram", "listenMulticast"),
    *("adoptStreamPort", "adoptStreamConnection", "adoptDatagramPort"),
    *("TCP4ClientEndpoint", "TCP6ClientEndpoint", "TCP4ServerEndpoint", "TCP6ServerEndpoint"),
    *("UNIXClientEndpoint", "UNIXServerEndpoint", "SSL4ClientEndpoint", "SSL4ServerEndpoint"),
    *("HostnameEndpoint", "AdoptedStreamServerEndpoint", "StandardIOEndpoint"),
    *("serverFromString", "clientFromString", "create_connection", "create_server", "fromfd"),
    *("start_http_server", "start_wsgi_server"),
}
"""Names that open a socket: only the doors may speak them (house.md law 1)."""
SOCKET_MODULES = {"asyncio", "ftplib", "http.client", "smtplib", "socketserver", "urllib.request"}
DOOR_FILES = {
    "mta/association/endpoints.py",
    "mta/association/transport.py",
    "mta/cluster/netlink.py",
    "mta/cluster/watchdog.py",
    "mta/admin/unixgram.py",
    "mta/testing/real_network.py",  # strangers to the MTA: a load and a catcher of mail
}
LONGEST = 600
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
LONG_BECAUSE = "Long because"


class Breach(NamedTuple):
    path: str
    line: int
    fact: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.fact}"


class Import(NamedTuple):
    module: str
    line: int
    is_lazy: bool


def room_of(module: str) -> str:
    """`mta.wire.smtp.reply` is of the room `wire`; `mta` itself is of none."""
    return module.split(".")[1] if module.startswith("mta.") else ""


def module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a source, relative ones resolved, with its place."""

    def walk(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, is_lazy)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    parts = parts[: len(parts) - child.level + is_package]
                    base = ".".join([*parts, base] if base else parts)
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, is_lazy)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, is_lazy or inner)

    yield from walk(tree, False)


def _may(room: str, imported: Import) -> bool:
    target = room_of(imported.module)
    allowed = MAY_IMPORT[room] | (LAZILY.get(room, set()) if imported.is_lazy else set())
    if target in ("", room) or target in allowed:
        return True
    tail = imported.module.removeprefix("mta.")
    return any("." in name and f"{tail}.".startswith(f"{name}.") for name in allowed)


def breaches(path: str, source: str) -> list[Breach]:
    """All that is wrong with one file of mta/; `path` is relative to the repository."""
    found: list[Breach] = []
    tree = ast.parse(source)
    module, is_package = module_of(path), path.endswith("__init__.py")
    room = room_of(module)

    def breach(line: int, fact: str) -> None:
        found.append(Breach(path, line, fact))

    if room and room not in MAY_IMPORT:
        breach(1, f"{room} is no room of the house")
        return found
    for imported in imports(tree, module, is_package):
        top = imported.module.partition(".")[0]
        if top == "mta" and room and not _may(room, imported):
            breach(imported.line, f"{room} may not import {imported.module}")
        if room in OUTSIDE and top not in {"mta", *OUTSIDE[room], *sys.stdlib_module_names}:
            breach(imported.line, f"{room} may import the standard library only, not {top}")
        if imported.module == "twisted.internet.reactor" and room != "tap":
            breach(imported.line, "only tap may touch the global reactor")
        if imported.module.startswith("twisted.mail"):
            breach(imported.line, "twisted.mail.smtp is not built upon")
        if imported.module.endswith(".inlineCallbacks"):
            breach(imported.line, "coroutines, not inlineCallbacks")
        is_door = path in DOOR_FILES or room == "cli"
        if not is_door and any(
            imported.module == name or imported.module.startswith(name + ".")
            for name in (*SOCKET_MODULES, "socket.socket")
        ):
            breach(imported.line, f"{imported.module} opens sockets past the doors")
    if path not in DOOR_FILES and room != "cli":
        for node in ast.walk(tree):
            name = _opens_socket(node)
            if name:
                breach(getattr(node, "lineno", 0), f"{name} opens a socket past the doors")
    if is_package and room != "plugins":
        for statement in tree.body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant
            )
            if not is_docstring:
                breach(statement.lineno, "an __init__ holds a docstring and nothing else")
    lines = source.splitlines()
    if len(lines) > LONGEST and not any(LONG_BECAUSE in line for line in lines[:15]):
        breach(len(lines), f"over {LONGEST} lines and its first lines do not say why")
    for number, line in enumerate(lines, 1):
        unfinished = UNFINISHED.search(line)
        if unfinished:
            breach(number, f"{unfinished[1]}: unfinished work belongs in an issue")
    return found


def _opens_socket(node: ast.AST) -> str:
    if isinstance(node, ast.Name) and node.id in DOORS:
        return node.id
    if isinstance(node, ast.Attribute) and node.attr in DOORS:
        return node.attr
    if isinstance(node, ast.alias) and node.name in DOORS:
        return node.name
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        of = node.func.value
        if node.func.attr == "socket" and isinstance(of, ast.Name) and of.id == "socket":
            return "socket.socket"
    return ""


def arrows(sources: dict[str, str]) -> dict[str, dict[str, str]]:
    """Room -> room -> where it is drawn first; lazy imports count."""
    drawn: dict[str, dict[str, str]] = {}
    for path, source in sources.items():
        module = module_of(path)
        room = room_of(module)
        for imported in imports(ast.parse(source), module, path.endswith("__init__.py")):
            target = room_of(imported.module)
            if room and target in MAY_IMPORT and target != room:
                drawn.setdefault(room, {}).setdefault(target, f"{path}:{imported.line}")
    return drawn


def circle(drawn: dict[str, dict[str, str]]) -> str:
    """A circle of rooms as `a -> b (file:line) -> a (file:line)`, or ""."""
    done: set[str] = set()

    def visit(room: str, trail: list[str]) -> list[str]:
        if room in trail:
            return [*trail[trail.index(room) :], room]
        if room in done:
            return []
        for target in sorted(drawn.get(room, {})):
            closed = visit(target, [*trail, room])
            if closed:
                return closed
        done.add(room)
        return []

    for room in sorted(drawn):
        closed = visit(room, [])
        if closed:
            steps = [f"{b} ({drawn[a][b]})" for a, b in pairwise(closed)]
            return " -> ".join([closed[0], *steps])
    return ""


def sources() -> dict[str, str]:
    """Every Python file of mta/ by its path in the repository."""
    found = {}
    for folder, folders, names in os.walk(os.path.join(ROOT, "mta")):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as file:
                    found[os.path.relpath(path, ROOT)] = file.read()
    return found


class HouseTests(SynchronousTestCase):
    """The real sources."""

    def test_every_file_keeps_the_laws(self) -> None:
        """Nobody imports what is not his, opens a socket past the doors, or leaves work undone."""
        found = [b for path, source in sorted(sources().items()) for b in breaches(path, source)]
        self.assertEqual([], [str(breach) for breach in found], "\n" + "\n".join(map(str, found)))

    def test_no_circles(self) -> None:
        """The rooms form no circle, not even by imports inside functions."""
        self.assertEqual("", circle(arrows(sources())))

    def test_every_file_was_read(self) -> None:
        """The walk sees every room, so that silence means something."""
        seen = {room_of(module_of(path)) for path in sources()} - {""}
        self.assertEqual(set(), set(MAY_IMPORT) - seen)

    def test_twisted_stays_a_namespace(self) -> None:
        """twisted/ and twisted/plugins/ have no __init__.py: it would hide the real Twisted."""
        for folder in ("twisted", "twisted/plugins"):
            self.assertFalse(os.path.exists(os.path.join(ROOT, folder, "__init__.py")), folder)


class RuleTests(SynchronousTestCase):
    """Each rule fails on an offending source and passes the nearest innocent one."""

    def assert_breach(self, path: str, source: str, line: int, words: str) -> None:
        found = breaches(path, source)
        self.assertEqual([line], [b.line for b in found], [str(b) for b in found])
        self.assertIn(words, found[0].fact)

    def assert_clean(self, path: str, source: str) -> None:
        self.assertEqual([], [str(b) for b in breaches(path, source)])

    def test_associations_and_spool_are_strangers(self) -> None:
        """association, spool and cluster never import each other, in any way of writing it."""
        self.assert_breach("mta/association/x.py", "\nimport mta.spool.log\n", 2, "may not")
        self.assert_breach("mta/spool/x.py", "from mta import cluster\n", 1, "may not")
        self.assert_breach("mta/cluster/x.py", "from ..spool import disk\n", 1, "may not")
        self.assert_breach("mta/spool/x.py", "def f():\n  import mta.association\n", 2, "may not")
        self.assert_clean("mta/spool/x.py", "from mta.interfaces import ISpool\nfrom . import y\n")

    def test_wire_knows_no_twisted(self) -> None:
        """The protocol machines import the standard library, model and errors."""
        self.assert_breach("mta/wire/smtp/x.py", "import twisted.python\n", 1, "standard library")
        self.assert_breach("mta/wire/x.py", "from mta.telemetry import Counter\n", 1, "may not")
        self.assert_clean("mta/wire/smtp/x.py", "import enum\nfrom mta.model import Reply\n")

    def test_cli_knows_nothing(self) -> None:
        """The commands import the standard library and themselves."""
        self.assert_breach("mta/cli/x.py", "from twisted import version\n", 1, "standard library")
        self.assert_breach("mta/cli/x.py", "import mta.model\n", 1, "may not")
        self.assert_clean("mta/cli/x.py", "import socket, smtplib\nfrom mta.cli import y\n")

    def test_transfer_writes_reports_and_speaks_no_smtp(self) -> None:
        """transfer imports wire.dsn and nothing else of wire."""
        self.assert_clean("mta/transfer/x.py", "from mta.wire.dsn import render\n")
        self.assert_clean("mta/transfer/x.py", "from mta.wire import dsn\n")
        self.assert_breach("mta/transfer/x.py", "from mta.wire.smtp import reply\n", 1, "may not")
        self.assert_breach("mta/transfer/x.py", "from mta.wire import dsn_more\n", 1, "may not")

    def test_plugins_import_implementations_lazily(self) -> None:
        """A dropin imports its implementation inside the factory, not at the top."""
        self.assert_clean("mta/plugins/x.py", "def f():\n  from mta.spool.log import LogSpool\n")
        self.assert_breach("mta/plugins/x.py", "from mta.spool.log import LogSpool\n", 1, "may not")

    def test_nobody_imports_the_service(self) -> None:
        """service and tap are above everybody."""
        self.assert_breach("mta/admin/x.py", "import mta.service\n", 1, "may not")
        self.assert_breach("mta/testing/x.py", "from mta import tap\n", 1, "may not")

    def test_the_reactor_is_taps(self) -> None:
        """Only tap imports the global reactor."""
        source = "from twisted.internet import reactor\n"
        self.assert_breach("mta/service.py", source, 1, "global reactor")
        self.assert_clean("mta/tap.py", source)

    def test_sockets_go_through_the_doors(self) -> None:
        """Every spelling of opening a socket is refused outside the doors."""
        for source in (
            "def f(reactor): reactor.listenTCP(25, g)\n",
            "def f(reactor): return reactor.connectTCP\n",
            "from twisted.internet.endpoints import HostnameEndpoint\n",
            "from twisted.internet import endpoints as e\ne.clientFromString\n".replace(
                "\n", ";", 1
            ),
            "import socket; s = socket.socket()\n",
            "from socket import socket\n",
            "import urllib.request\n",
            "from prometheus_client import start_http_server\n",
        ):
            self.assert_breach("mta/association/smtp_out.py", source, 1, "past the doors")
            self.assert_clean("mta/association/endpoints.py", source)

    def test_an_init_is_empty(self) -> None:
        """A package's __init__ holds its docstring only; mta/plugins extends its path."""
        self.assert_breach("mta/spool/__init__.py", '"""S."""\nx = 1\n', 2, "docstring")
        self.assert_clean("mta/plugins/__init__.py", '"""P."""\n__path__ = []\n')

    def test_a_long_file_says_why(self) -> None:
        """Over 600 lines needs a reason at the top."""
        body = "x = 1\n" * LONGEST
        self.assert_breach("mta/spool/x.py", '"""X."""\n' + body, LONGEST + 1, "first lines")
        self.assert_clean("mta/spool/x.py", '"""X. Long because it is one table."""\n' + body)

    def test_nothing_is_left_undone(self) -> None:
        """Unfinished work is no code."""
        self.assert_breach("mta/spool/x.py", "\n# TO" + "DO: later\n", 2, "unfinished")

    def test_an_unknown_room_is_refused(self) -> None:
        """A new room is drawn into the plan first."""
        self.assert_breach("mta/utils/x.py", "", 1, "no room")

    def test_circles_are_found(self) -> None:
        """A circle of rooms is printed with the lines that draw it."""
        drawn = arrows(
            {
                "mta/config/x.py": "import mta.plugins\n",
                "mta/plugins/y.py": "def f():\n  import mta.config.x\n",
            }
        )
        self.assertIn("config -> plugins (mta/config/x.py:1) -> config (mta/p", circle(drawn))
