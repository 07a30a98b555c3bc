"""Writes configuration files: the commented sample, and the one that `make run` starts on.

Law: nothing about a key is written here. Keys, order, help and defaults come from the schemas, so
that etc/mta.yaml cannot say what the check does not do; here are only example values for keys that
have no default. What is written loads without a mistake (a test says so).
"""

from __future__ import annotations

import enum
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from zope.interface import Interface

from mta.config.names import network_name
from mta.config.schema import (
    HELP,
    SINGLE_BLOCKS,
    AddressSpaceSettings,
    ConnectorSettings,
    Selection,
)
from mta.config.validate import keys_of, models_in
from mta.interfaces import IPluginFactory
from mta.settings import parse_duration, parse_size

Available = Callable[[type[Interface]], Sequence[IPluginFactory]]
"""`mta.plugins.find.Catalogue().available`."""

WIDTH = 100
_HEAD = """\
# mta.yaml: every key, its meaning and its default.
#
# Written by `python -m mta.config --generate` from the schemas of this MTA and of its plugins.
# A key behind a # stands there with its default; the others are examples to be changed.
# Check a file with `mta check-config FILE`: every mistake in one run, with line and column.
# Durations are written 500ms, 30s, 5m, 2h, 4d; sizes 512, 64KiB, 25MiB; IPv6 addresses in quotes.
# What is written stays text: `no` is no boolean here; booleans are true and false.
# Secrets stand in files of their own, named by keys that end in -file.
"""


@dataclass(frozen=True, slots=True)
class _Example:
    """What etc/mta.yaml shows in a plugin's block: the plugin, and values for some keys."""

    plugin: str
    values: Mapping[str, Any] = field(default_factory=dict)


_SINGLE_EXAMPLES: dict[str, dict[str, Any]] = {
    "virtual-server": {
        "network-name": "bridgehead.example.org",
        "addresses": ["192.0.2.10", "2001:db8::10"],
    },
}
_POSTMASTER = "postmaster@example.org"
_EXAMPLES: dict[Selection, tuple[_Example, ...]] = {
    Selection.CLUSTER: (_Example("interface"),),
    Selection.SPOOL: (_Example("log", {"directory": "/var/spool/mta", "sharing": "cluster-fs"}),),
    Selection.LISTENER: (_Example("smtp", {"port": 25, "relay-from": ["192.0.2.0/24"]}),),
    Selection.CONNECTOR: (
        _Example(
            "smtp",
            {
                "name": "hub",
                "bridgeheads": ["192.0.2.20:25", "192.0.2.21:25"],
                "address-spaces": [
                    {"domain": "example.com", "cost": 10, "accept": "anyone"},
                    {"domain": "*.example.com", "cost": 10, "accept": "anyone"},
                ],
            },
        ),
        _Example(
            "smtp",
            {"name": "internet", "delivery": "mx", "address-spaces": [{"domain": "*", "cost": 50}]},
        ),
    ),
    Selection.ROUTING: (_Example("least-cost"),),
    Selection.POLICY: (),
    Selection.AUTH: (),
}


def generate(available: Available) -> str:
    """etc/mta.yaml for the plugins that are there."""
    lines = _HEAD.splitlines()
    selections = {selection.block: selection for selection in Selection}
    for block, about in HELP.items():
        lines += ["", *_prose(about[0].upper() + about[1:] + ".", "")]
        if block == "postmaster":
            lines.append(f"postmaster: {_scalar(_POSTMASTER)}")
        elif block in selections:
            lines += _plugin_block(selections[block], available(selections[block].contract))
        else:
            examples = _SINGLE_EXAMPLES.get(block, {})
            mark = "" if examples else "#"
            lines.append(f"{mark}{block}:")
            lines += _keys(SINGLE_BLOCKS[block], "  ", examples)
    return "\n".join(lines) + "\n"


def default_text(directory: str, port: int = 2525, host: str = "") -> str:
    """The configuration of a first run: loopback, everything under `directory` (absolute).

    `host` is this machine's name; the virtual server gets it if it is fully qualified, as is right
    under `standalone`, and a name below it otherwise.
    """
    name = _own_name(host)
    below = directory.rstrip("/")
    mail = below.replace("{", "{{").replace("}", "}}") + "/mail"  # braces are a template there
    return f"""\
virtual-server:
  network-name: {name}
  addresses: [127.0.0.1]
postmaster: postmaster@{name}
node: {{state-directory: {_scalar(below + "/state")}}}
cluster: {{resource: standalone}}
spool: {{store: log, directory: {_scalar(below + "/spool")}}}
listeners:
  - {{kind: smtp, port: {port}}}
connectors:
  - name: local
    kind: maildir
    directory: {_scalar(mail)}
    address-spaces: [{{domain: "*"}}]
admin:
  socket: {_scalar(below + "/run/control.sock")}
  submit-socket: {_scalar(below + "/run/submit.sock")}
"""


def _own_name(host: str) -> str:
    label = re.sub(r"[^a-z0-9-]+", "-", host.partition(".")[0].lower()).strip("-")[:63]
    for name in (host, f"{label}.localdomain"):
        try:
            return network_name(name)
        except ValueError:
            continue
    return "mta.localdomain"


# --- blocks -------------------------------------------------------------------------------------


def _plugin_block(selection: Selection, factories: Sequence[IPluginFactory]) -> Iterator[str]:
    """The examples of a block, and the keys of the plugins that no example shows."""
    by_name = {factory.name: factory for factory in factories}
    examples = [e for e in _EXAMPLES[selection] if e.plugin in by_name]
    is_list = selection in {Selection.LISTENER, Selection.CONNECTOR, Selection.POLICY}
    common = ConnectorSettings if selection is Selection.CONNECTOR else None
    indent = "    " if is_list else "  "
    shown: set[tuple[str, str]] = set()
    yield f"{selection.block}:" if examples else f"#{selection.block}:"
    for number, example in enumerate(examples):
        schema = by_name[example.plugin].schema
        known = (keys_of(common) if common else {}) | keys_of(schema)
        shown |= {(key, item.description or "") for key, item in known.items()}
        chosen = f"{selection.key}: {example.plugin}"
        if number:
            yield ""
            yield from _brief(selection.key, example, is_list)
            continue
        if is_list:
            yield f"  - {chosen}"
        else:
            yield from _prose(f"A plugin: {' | '.join(sorted(by_name))}.", indent)
            yield f"{indent}{chosen}"
        skipped = {"kind"}
        if common:
            yield from _keys(common, indent, example.values, skip=skipped | set(keys_of(schema)))
        yield from _keys(schema, indent, example.values, skip=skipped)
    for name, factory in sorted(by_name.items()):
        if name in {e.plugin for e in examples}:
            continue
        known = keys_of(factory.schema)
        same = [key for key, item in known.items() if (key, item.description or "") in shown]
        yield ""
        yield f"  #{'- ' if is_list else ''}{selection.key}: {name}"
        if same or common:
            also = f"the same {', '.join(same)}"
            if common:
                also = ", ".join(["the keys of every connector", *same])
            more = ", and:" if set(known) - set(same) else "."
            yield from _prose(f"Takes {also}{more}", indent)
        elif not known:
            yield from _prose("Has no keys of its own.", indent)
        yield from _keys(factory.schema, indent, {}, skip=set(same), everything_off=True)


def _brief(selector: str, example: _Example, is_list: bool) -> Iterator[str]:
    """A further example, without repeating what every key means."""
    first, indent = ("  - ", "    ") if is_list else ("  ", "  ")
    yield f"{first}{selector}: {example.plugin}"
    for key, value in example.values.items():
        yield from _written(key, value, indent)


def _keys(
    schema: type[BaseModel],
    indent: str,
    values: Mapping[str, Any],
    *,
    skip: set[str] | frozenset[str] = frozenset(),
    everything_off: bool = False,
) -> Iterator[str]:
    """Every key of a block: its help, and its example or, behind a #, its default."""
    for key, item in keys_of(schema).items():
        if key in skip:
            continue
        yield from _prose(item.description or "", indent)
        if key in values:
            yield from _written(key, values[key], indent)
            inner = next(models_in(item.annotation), None)
            if inner is AddressSpaceSettings:
                for name, each in keys_of(inner).items():
                    yield from _prose(f"{name}: {each.description}", indent + "  ")
            continue
        default = item.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield f"{indent}#{key}:"
            yield from _keys(type(default), indent + "  ", {})
        elif default is None and (inner := next(models_in(item.annotation), None)) is not None:
            yield f"{indent}#{key}:"
            yield from _keys(inner, indent + "  ", {}, everything_off=True)
        elif item.is_required():
            yield f"{indent}#{key}: {'(must be given)' if everything_off else '...'}"
        elif default is None or default == "":
            yield f"{indent}#{key}:"
        else:
            yield f"{indent}#{key}: {_value(default, _unit(item.annotation, item.metadata))}"


def _written(key: str, value: Any, indent: str) -> Iterator[str]:
    line = f"{indent}{key}: {_value(value)}"
    if len(line) <= WIDTH and not (isinstance(value, list) and isinstance(value[0], dict)):
        yield line
        return
    yield f"{indent}{key}:"
    for each in value:
        yield f"{indent}  - {_value(each)}"


def _prose(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- values -------------------------------------------------------------------------------------


def written_default(item: FieldInfo) -> str:
    """A key's default as it would be written; "(required)", "(none)" or "(a block)" otherwise."""
    if item.is_required():
        return "(required)"
    default = item.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "(a block)"
    if default is None or default == "":
        return "(none)"
    return _value(default, _unit(item.annotation, item.metadata))


def _unit(annotation: Any, metadata: Sequence[Any]) -> str:
    """ "duration" or "size" when the field's text is one, else ""."""
    for item in metadata:
        if isinstance(item, BeforeValidator):
            if item.func is parse_duration:
                return "duration"
            if item.func is parse_size:
                return "size"
    for argument in get_args(annotation):
        found = _unit(argument, getattr(argument, "__metadata__", ()))
        if found:
            return found
    return ""


def _value(value: Any, unit: str = "") -> str:
    """A value as it is written in the file."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_value(v, unit)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_value(v, unit) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return _value(value.value)
    if isinstance(value, int | float) and unit == "duration":
        return duration_text(float(value))
    if isinstance(value, int) and unit == "size":
        return size_text(value)
    if isinstance(value, float):
        return f"{value:g}"
    return _scalar(str(value))


def duration_text(seconds: float) -> str:
    """300.0 -> "5m": in the largest unit that divides it."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def size_text(octets: int) -> str:
    """26214400 -> "25MiB": in the largest unit that divides it."""
    for unit, length in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if octets and octets % length == 0:
            return f"{octets // length}{unit}"
    return str(octets)


_PLAIN = re.compile(r"[A-Za-z0-9/_.][A-Za-z0-9/_.@-]*")


def _scalar(text: str) -> str:
    """Text that reads back as itself, quoted where it must be."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
    return f'"{escaped}"'
