"""What the commands print: tables, trees and JSON, safe for a terminal.

Law: whatever a peer once wrote reaches the terminal without a control byte, ESC or line end of its
own (house.md law 9); JSON escapes everything beyond ASCII.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

_encode = json.JSONEncoder(separators=(",", ":")).encode


class CommandFailed(Exception):
    """The command ends with `exit_code` (sysexits.h) and says why on standard error."""

    def __init__(self, exit_code: int, what: str) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def neutral(value: object) -> str:
    r"""`value` as one printable line; what is not printable becomes `\xNN` or `\uNNNN`."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def say(text: str, out: TextIO | None = None) -> None:
    print(text, file=out or sys.stdout)


def fail(program: str, error: CommandFailed) -> int:
    """Print the reason and answer the exit code."""
    print(f"{program}: {neutral(error)}", file=sys.stderr)
    return error.exit_code


def as_json(value: Any) -> None:
    """One value, one line."""
    say(_encode(value))


def shown(value: Any) -> str:
    """A cell: words for what people read, never Python's own."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value) or "-"
    if isinstance(value, Mapping):
        return " ".join(f"{neutral(key)}={shown(part)}" for key, part in value.items()) or "-"
    return neutral(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns under a heading; the last column is not padded."""
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(line.rstrip())


def tree(facts: Mapping[str, Any], indent: str = "") -> None:
    """Nested facts as `key: value` lines; a list of alike facts as a table."""
    width = max((len(neutral(key)) for key in facts), default=0) + 1
    for key, value in facts.items():
        name = f"{indent}{_words(key)}:"
        if isinstance(value, Mapping) and value:
            say(name)
            tree(value, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) and v for v in value):
            say(name)
            columns = list(dict.fromkeys(key for row in value for key in row))
            table(
                [indent + "  " + _words(columns[0])] + [_words(name) for name in columns[1:]],
                (
                    [f"{indent}  {shown(row.get(columns[0]))}"]
                    + [row.get(name) for name in columns[1:]]
                    for row in value
                ),
            )
        else:
            say(f"{name:<{width + len(indent) + 1}}{shown(value)}")


def _words(key: object) -> str:
    return neutral(key).replace("_", " ")


def moment(seconds: Any) -> str:
    """`2026-11-23 08:00:00` in local time."""
    if not isinstance(seconds, int | float):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
