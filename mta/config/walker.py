"""YAML text -> a plain tree of dict, list and str, with the place of every key and value.

Law: a scalar stays the text that was written (YAML 1.1 would make `no` a boolean and `8:25` a
number); nothing is built from tags; what YAML allows but a reader would stumble over (duplicate
keys, aliases, tags, several documents) is a mistake with its place.

Nothing here knows what the keys mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from mta.config.errors import Mistake

Path = tuple[str | int, ...]
"""Keys and list positions from the top: ("connectors", 0, "name")."""

DEEPEST = 32
"""Levels of nesting; the grammar needs six. Deeper text would exhaust the interpreter's stack."""
LONGEST = 4 * 2**20
"""Octets of a configuration, about; a site with 10 000 connectors needs half of it."""

_STANDARD_TAG = "tag:yaml.org,2002:"
_BARE_IPV6 = re.compile(
    r"""(?<![\w"':.])(?=[0-9A-Fa-f:]*::|(?:[0-9A-Fa-f]{1,4}:){3})[0-9A-Fa-f:]+"""
)
IPV6_HINT = 'quote IPv6 addresses: "2001:db8::10"'


@dataclass(frozen=True, slots=True)
class Mark:
    """Where something starts; both count from 1."""

    line: int
    column: int


TOP = Mark(1, 1)


@dataclass(slots=True)
class Tree:
    """What was written, and where. `root` is {} when the text could not be read as a mapping."""

    filename: str
    root: dict[str, Any] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def at(self, path: Path) -> Any:
        """The value at `path`. @raise KeyError, IndexError: nothing is there."""
        value: Any = self.root
        for part in path:
            value = value[part]
        return value

    def mark(self, path: Path) -> Mark:
        """Where the value at `path` is to be looked for.

        A block is where its key is, and so is a list that begins in a line below; other values
        are where they stand. What is not there is at the nearest thing above it.
        """
        while path and path not in self.values:
            path = path[:-1]
        if not path:
            return TOP
        key, value = self.keys.get(path), self.values[path]
        if key is not None and (key.line < value.line or isinstance(self.at(path), dict)):
            return key
        return value

    def report(self, path: Path, message: str, mark: Mark | None = None) -> None:
        where = mark if mark is not None else self.mark(path)
        self.mistakes.append(
            Mistake(self.filename, where.line, where.column, path_text(path), message)
        )


def path_text(path: Path) -> str:
    """("connectors", 0, "name") -> connectors[0].name"""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def read_tree(text: str, filename: str) -> Tree:
    """The tree of `text`; its `mistakes` say what could not be taken. Never raises."""
    tree = Tree(filename)
    if len(text) > LONGEST:
        tree.report((), f"longer than {LONGEST} characters: this is no configuration")
        return tree
    loader: _Composer | None = None
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
    except MarkedYAMLError as error:
        tree.mistakes.append(_syntax_mistake(error, text, filename))
        return tree
    except ReaderError as error:
        before = text[: error.position]
        mark = Mark(before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        tree.report((), f"a character that no text file holds: {error.character!r}", mark)
        return tree
    except (ValueError, OverflowError) as error:
        # PyYAML turns escapes such as "\UFFFFFFFF" into chr() unchecked.
        where = loader.get_mark() if loader else None
        tree.report(
            (), f"not YAML: {error}", Mark(where.line + 1, where.column + 1) if where else TOP
        )
        return tree
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        return tree
    root = _plain(node, (), tree)
    if isinstance(root, dict):
        tree.root = root
    elif not tree.mistakes:
        tree.report((), "expected a block of keys (virtual-server:, cluster: ...)", _mark(node))
    return tree


class _Composer(yaml.SafeLoader):
    """Composes nodes only: no aliases, no deeper than anybody writes."""

    def __init__(self, text: str) -> None:
        self._depth = 0
        super().__init__(text)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            problem = f"an alias (*{event.anchor}): write out what is meant"
            raise MarkedYAMLError(problem=problem, problem_mark=cast(Any, event.start_mark))
        if self._depth >= DEEPEST:
            problem = f"nested more than {DEEPEST} levels deep"
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _plain(node: Node, path: Path, tree: Tree) -> Any:
    tree.values[path] = _mark(node)
    if not str(node.tag).startswith(_STANDARD_TAG):
        tree.report(path, f"the tag {node.tag} means nothing here", _mark(node))
    if isinstance(node, ScalarNode):
        return str(node.value)
    if isinstance(node, SequenceNode):
        return [_plain(child, (*path, index), tree) for index, child in enumerate(node.value)]
    assert isinstance(node, MappingNode)
    plain: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            tree.report(path, "a key must be one word, not a list or block", _mark(key_node))
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key in plain:
            first = tree.keys[here]
            tree.report(here, f"given twice, first in line {first.line}", _mark(key_node))
            continue
        tree.keys[here] = _mark(key_node)
        plain[key] = None
        plain[key] = _plain(value_node, here, tree)
    return plain


def _mark(node: Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _syntax_mistake(error: MarkedYAMLError, text: str, filename: str) -> Mistake:
    where = error.problem_mark or error.context_mark
    line, column = (where.line + 1, where.column + 1) if where else (1, 1)
    message = " ".join(str(error.problem or error.context or "not YAML").split())
    if error.context and error.problem:
        message = f"{' '.join(str(error.context).split())}: {message}"
    lines = text.splitlines()
    near = lines[max(0, line - 2) : line]
    if any(has_bare_ipv6(each) for each in near):
        message += f" ({IPV6_HINT})"
    return Mistake(filename, line, column, "", message)


def has_bare_ipv6(line: str) -> bool:
    """Something in the line looks like an IPv6 address outside quotes."""
    return any(":" in match[0] for match in _BARE_IPV6.finditer(line))
