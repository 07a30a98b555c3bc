"""Text -> one frozen Config, or every mistake in it at once.

Law: nothing is started from a configuration with a mistake, and nothing is guessed: unknown
plugins, doubled names and what does not fit together are found in the same pass as a misspelt key.
What was wrong already causes no second line: a rule over several values is asked only when those
are right.

Blocks, keys and defaults: mta.config.schema. Places: mta.config.walker. Words: mta.config.validate.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from zope.interface import Interface

from mta.config import rules
from mta.config.errors import ConfigErrors, Mistake
from mta.config.names import mailbox
from mta.config.schema import (
    HELP,
    NODES_OWN,
    REQUIRED,
    SINGLE_BLOCKS,
    Config,
    ConnectorBlock,
    ConnectorSettings,
    ListenerBlock,
    PluginBlock,
    Selection,
    VirtualServerSettings,
)
from mta.config.validate import as_block, keys_of, unknown_key, validate
from mta.config.walker import Path, Tree, read_tree
from mta.errors import MTAError
from mta.interfaces import IPluginFactory
from mta.model import Address, VirtualServer
from mta.plugins.find import nearest
from mta.settings import Settings

Find = Callable[[type[Interface], str], IPluginFactory]
"""`mta.plugins.find.Catalogue().find`, or a test's own."""
T = TypeVar("T")


def load(text: str, filename: str, find: Find) -> Config:
    """The configuration that `text` is. `filename` is only for messages.

    @raise ConfigErrors: everything that is wrong with it (exit code 78).
    """
    return _Loading(text, filename, find).config()


def load_file(path: str, find: Find) -> Config:
    """`load` for a file. @raise ConfigErrors: also when it cannot be read as UTF-8."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        text = f"cannot be read by uid {os.geteuid()}: {error.strerror or error}"
        raise ConfigErrors([Mistake(path, 1, 1, "", text)]) from None
    except UnicodeDecodeError as error:
        raise ConfigErrors(
            [
                Mistake(
                    path,
                    1,
                    1,
                    "",
                    f"not UTF-8: octet {error.start} is {error.object[error.start]:#x}",
                )
            ]
        ) from None
    return load(text, path, find)


class _Loading:
    """One run over one text."""

    def __init__(self, text: str, filename: str, find: Find) -> None:
        self._text = text
        self._find = find
        self._tree: Tree = read_tree(text, filename)
        self._listener_names: dict[int, str] = {}
        self._listener_ports: dict[int, str] = {}

    def config(self) -> Config:
        tree = self._tree
        if tree.mistakes and not tree.root:
            raise ConfigErrors(tree.mistakes)
        self._top_level_keys()
        single = {name: self._single(name, schema) for name, schema in SINGLE_BLOCKS.items()}
        postmaster = self._postmaster()
        blocks = {
            s: self._plugin_block(s, (s.block,)) for s in (Selection.CLUSTER, Selection.ROUTING)
        }
        spool = self._plugin_block(Selection.SPOOL, ("spool",))
        listeners = self._list(Selection.LISTENER, self._listener)
        before = len(tree.mistakes)
        connectors = self._list(Selection.CONNECTOR, self._connector)
        connectors_are_right = len(tree.mistakes) == before and "connectors" in tree.root
        before = len(tree.mistakes)
        policies = self._list(Selection.POLICY, self._policy)
        if len(tree.mistakes) == before:
            rules.signers_last(tree, policies)
            rules.answers_in_time(tree, single["intake"], policies)
        auth = None
        if Selection.AUTH.block in tree.root:
            auth = self._plugin_block(Selection.AUTH, (Selection.AUTH.block,))
        rules.distinct_listeners(tree, self._listener_names, self._listener_ports)
        rules.distinct_connectors(tree)
        rules.certificate_there(tree, single["tls"], listeners)
        rules.clients_known(tree, single["tls"], listeners)
        rules.somebody_to_ask(tree, listeners)
        if connectors_are_right:  # else their positions are not those of the file
            rules.validation_there(tree, single["resolver"], connectors)
            rules.own_certificate_there(tree, single["tls"], connectors)
            rules.exceptions_meet_somebody(tree, connectors)
            rules.policies_of_somebody(tree, connectors)
        rules.sharing_said(tree, blocks[Selection.CLUSTER], spool)
        if postmaster is not None and connectors_are_right:
            rules.postmaster_routable(tree, postmaster, connectors)
        if tree.mistakes:
            raise ConfigErrors(tree.mistakes)
        server = cast(VirtualServerSettings, single["virtual-server"])
        return Config(
            virtual_server=VirtualServer(server.network_name, server.addresses),
            postmaster=_there(postmaster),
            cluster=_there(blocks[Selection.CLUSTER]),
            spool=_there(spool),
            listeners=tuple(listeners),
            connectors=tuple(connectors),
            routing=_there(blocks[Selection.ROUTING]),
            policies=tuple(policies),
            auth=auth,
            filename=tree.filename,
            digest=hashlib.sha256(self._text.encode("utf-8", "surrogatepass")).hexdigest(),
            shared_digest=_shared_digest(tree.root),
            **{
                name.replace("-", "_"): cast(Any, single[name])
                for name in SINGLE_BLOCKS
                if name != "virtual-server"
            },
        )

    # -- single blocks

    def _top_level_keys(self) -> None:
        root = self._tree.root
        meant = set()
        for key in root:
            if key not in HELP:
                self._tree.report((key,), unknown_key(key, HELP), self._tree.keys[(key,)])
                meant.add(nearest(key, HELP))
        for key, what in HELP.items():
            if key in REQUIRED and key not in root and key not in meant:
                self._tree.report((key,), f"missing: {what}")

    def _single(self, name: str, schema: type[Settings]) -> Settings | None:
        if name not in self._tree.root and name in REQUIRED:
            return None
        return validate(schema, self._tree.root.get(name, {}), (name,), self._tree)

    def _postmaster(self) -> Address | None:
        value = self._tree.root.get("postmaster")
        if value is None:
            return None
        if not isinstance(value, str):
            self._tree.report(("postmaster",), "expected one mail address")
            return None
        try:
            return mailbox(value)
        except ValueError as error:
            self._tree.report(("postmaster",), str(error))
            return None

    # -- plugin blocks

    def _list(self, selection: Selection, read: Callable[[Path], T | None]) -> list[T]:
        path: Path = (selection.block,)
        value = self._tree.root.get(selection.block, [])
        if not isinstance(value, list):
            self._tree.report(path, "expected a list: each entry begins with a dash")
            return []
        if not value and selection is Selection.CONNECTOR and path in self._tree.values:
            self._tree.report(path, "at least one connector is needed: mail must go somewhere")
        blocks = (read((*path, index)) for index in range(len(value)))
        return [block for block in blocks if block is not None]

    def _selected(self, selection: Selection, path: Path) -> tuple[str, Path, str] | None:
        """The plugin's name, where it stands, and the key that was written for the selector."""
        block = as_block(self._tree.at(path)) if path in self._tree.values else {}
        if not isinstance(block, dict):
            self._tree.report(path, f"expected a block of keys with {selection.key}")
            return None
        key = selection.key
        if key not in block:
            near = [k for k in block if nearest(k, [key])]
            if selection.default and near:
                known = keys_of(self._find(selection.contract, selection.default).schema)
                near = [k for k in near if k not in known]
            meant = near[0] if near else ""
            if meant:
                here = (*path, meant)
                self._tree.report(here, unknown_key(meant, [key]), self._tree.keys[here])
                key = meant
            elif selection.default:
                return selection.default, path, ""
            else:
                self._tree.report((*path, key), "missing", self._tree.mark(path))
                return None
        name = block[key]
        if not isinstance(name, str):
            self._tree.report((*path, key), "expected the name of a plugin")
            return None
        return name, (*path, key), key

    def _factory(self, selection: Selection, name: str, path: Path) -> IPluginFactory | None:
        try:
            return self._find(selection.contract, name)
        except MTAError as error:
            self._tree.report(path, str(error))
            return None

    def _plugin_block(self, selection: Selection, path: Path) -> PluginBlock | None:
        """A block whose keys are all the plugin's, but for the one that chooses it."""
        if path[0] not in self._tree.root and path[0] in REQUIRED:
            return None
        selected = self._selected(selection, path)
        if selected is None:
            return None
        name, where, key = selected
        factory = self._factory(selection, name, where)
        if factory is None:
            return None
        block = as_block(self._tree.at(path)) if path in self._tree.values else {}
        rest = {k: v for k, v in block.items() if k != key}
        settings = self._settings(factory, rest, path, (selection.key,))
        if settings is None:
            return None
        return PluginBlock(name, factory, settings, self._where(path))

    def _settings(
        self, factory: IPluginFactory, rest: dict[str, Any], path: Path, also_known: tuple[str, ...]
    ) -> Settings | None:
        schema: type[Settings] = factory.schema
        return validate(
            schema, rest, path, self._tree, also_known=also_known, chosen_by=factory.name
        )

    def _listener(self, path: Path) -> ListenerBlock | None:
        selected = self._selected(Selection.LISTENER, path)
        if selected is None:
            return None
        kind, where, key = selected
        factory = self._factory(Selection.LISTENER, kind, where)
        if factory is None:
            return None
        rest = {k: v for k, v in as_block(self._tree.at(path)).items() if k != key}
        known = keys_of(factory.schema)
        port = str(rest.get("port", _default(known, "port")))
        name = str(rest.get("name") or f"{kind}:{port}")
        index = cast(int, path[-1])
        self._listener_names[index], self._listener_ports[index] = name, port
        if "name" in known:
            rest["name"] = name
        else:
            rest.pop("name", None)
        settings = self._settings(factory, rest, path, (Selection.LISTENER.key, "name"))
        if settings is None:
            return None
        return ListenerBlock(name, factory, settings, self._where(path), kind)

    def _connector(self, path: Path) -> ConnectorBlock | None:
        selected = self._selected(Selection.CONNECTOR, path)
        if selected is None:
            return None
        kind, where, key = selected
        tree = self._tree
        block = as_block(tree.at(path))
        factory = self._factory(Selection.CONNECTOR, kind, where)
        own = keys_of(factory.schema) if factory is not None else {}
        common = keys_of(ConnectorSettings)
        shared = {k: v for k, v in block.items() if k in common and k not in own} | {"kind": kind}
        before = len(tree.mistakes)
        settings = None
        if factory is not None:
            rest = {k: v for k, v in block.items() if k not in shared and k != key}
            settings = self._settings(factory, rest, path, tuple(common))
        near_misses = {nearest(k, common) for k in block if k not in common and k not in own}
        shared |= {k: _MEANT[k] for k in near_misses & _MEANT.keys() if k not in shared}
        basics = validate(ConnectorSettings, shared, path, tree, also_known=own)
        if basics is None or settings is None or factory is None or len(tree.mistakes) > before:
            return None
        connector = basics.connector()
        fault = rules.far_end_fault(kind, factory, block)
        if fault:
            tree.report(path, fault)
            return None
        return ConnectorBlock(connector.name, factory, settings, self._where(path), connector)

    def _policy(self, path: Path) -> PluginBlock | None:
        return self._plugin_block(Selection.POLICY, path)

    def _where(self, path: Path) -> str:
        return f"{self._tree.filename}:{self._tree.mark(path).line}"


def _shared_digest(root: dict[str, Any]) -> str:
    shared = {key: value for key, value in root.items() if key not in NODES_OWN}
    text = json.dumps(shared, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


_MEANT: dict[str, Any] = {"name": "x", "address-spaces": [{"domain": "*"}]}
"""Stand-ins for required keys that were misspelt: the misspelling is the one mistake."""


def _default(known: dict[str, Any], key: str) -> Any:
    return known[key].get_default() if key in known else ""


def _there(value: T | None) -> T:
    """What is never missing when no mistake was found."""
    assert value is not None
    return value
