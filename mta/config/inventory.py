"""What `mta plugins` shows: every plugin installed here, with its keys, and every broken one.

`python -m mta.config.inventory [NAME]` prints one JSON object a line; the `mta` command runs it as
a child, because looking at plugins means importing them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from mta.config.generate import written_default
from mta.config.validate import keys_of, models_in
from mta.plugins.find import inventory


def plugin_facts(name: str = "") -> list[dict[str, Any]]:
    """The plugins of that name, or all. `reason` is there for broken ones only; `keys` only when
    one was asked for by name.
    """
    found = inventory()
    facts: list[dict[str, Any]] = []
    for plugin in found.plugins:
        if name in {"", plugin.name, plugin.module}:
            fact = {
                "kind": plugin.kind,
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "module": plugin.module,
            }
            facts.append(fact | ({"keys": _keys(plugin.factory.schema)} if name else {}))
    for broken in found.broken:
        if name in {"", broken.name, broken.module}:
            facts.append(
                {
                    "kind": "broken",
                    "name": broken.name,
                    "distribution": broken.distribution,
                    "version": broken.version,
                    "module": broken.module,
                    "reason": broken.reason,
                }
            )
    return facts


def _keys(schema: Any, above: str = "") -> list[dict[str, str]]:
    """Each key of a plugin's block, those of blocks in it behind them (`limits.size`)."""
    facts: list[dict[str, str]] = []
    for key, field in keys_of(schema).items():
        facts.append(
            {
                "key": above + key,
                "default": written_default(field),
                "help": field.description or "",
            }
        )
        for inner in models_in(field.annotation):
            facts += _keys(inner, f"{above}{key}.")
    return facts


def main(arguments: list[str]) -> int:
    """The exit code: 64 when no plugin has the name."""
    facts = plugin_facts(arguments[0] if arguments else "")
    for fact in facts:
        sys.stdout.write(json.dumps(fact) + "\n")
    if arguments and not facts:
        sys.stderr.write(f"mta: no plugin is named {arguments[0]!r}: see mta plugins\n")
        return os.EX_USAGE
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
