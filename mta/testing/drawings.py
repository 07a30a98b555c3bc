"""The state machines of the wire, the schedule and a lease as Mermaid diagrams with their words.

Law: what is drawn is the table that runs, and the words are those that stand beside its states in
the source. `python -m mta.testing.drawings DIRECTORY` writes the files of docs/states; a test says
when they are stale. (The ownership machine draws itself.)
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from mta.cluster import lease
from mta.testing import ownership_picture
from mta.transfer.schedule import REACH_TABLE, Reach
from mta.wire.smtp import client_states, states

Arrow = tuple[str, str, str]
"""State before, input, state after."""


def draw_all() -> dict[str, str]:
    """File name under docs/states -> its text."""
    return {
        "smtp-responder.md": _responder(),
        "smtp-initiator.md": _initiator(),
        "reach.md": _reach(),
        "ownership.svg": ownership_picture.draw(),
        "lease.md": _lease(),
    }


def meanings(kind: type[enum.Enum]) -> dict[str, str]:
    """Member -> the string that stands below it in the source; members without one are absent."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for statement in body.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
        elif (
            name
            and isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        ):
            found[name] = " ".join(statement.value.value.split())
        else:
            name = ""
    return found


def _diagram(title: str, source: str, first: str, arrows: Iterable[Arrow]) -> list[str]:
    """Title and diagram. What leads from a state to itself is in the table below it only."""
    drawn: dict[tuple[str, str], list[str]] = {}
    for before, said, after in arrows:
        if before != after:
            drawn.setdefault((before, after), []).append(said)
    return [
        f"# {title}",
        "",
        f"Drawn from the table in `{source}` by `python -m mta.testing.drawings docs/states`; "
        "a test says when it is stale.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first}",
        *(f"    {a} --> {b}: {', '.join(said)}" for (a, b), said in drawn.items()),
        "```",
        "",
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [
        "|" + "|".join(f" {cell} " if cell != "---" else cell for cell in row) + "|"
        for row in lines
    ]


def _words(kind: type[enum.Enum]) -> list[str]:
    said = meanings(kind)
    return _table(("state", "meaning"), [(m.name, said.get(m.name, str(m.value))) for m in kind])


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _responder() -> str:
    table = states.TABLE
    arrows = [("GREETING", "220", "START"), ("GREETING", "refusal", "CLOSED")]
    arrows += [(state.name, verb.value, row.after.name) for (state, verb), row in table.items()]
    refusals: dict[str, list[str]] = {}
    for (state, verb), reply in states.OUT_OF_PLACE.items():
        refusals.setdefault(f"{state.name}|{reply.text}", []).append(verb.value)
    return _text(
        [
            *_diagram(
                "SMTP and LMTP: the responder", "mta/wire/smtp/states.py", "GREETING", arrows
            ),
            *_words(states.State),
            "",
            "A reply 421, the limit of errors or of commands and a time-out lead to CLOSED from"
            " every state.",
            "A command that a hook refuses leaves the state as it is; a refused message leads to"
            " IDLE.",
            "",
            *_table(
                ("state", "input", "next when accepted", "to do"),
                [
                    (state.name, verb.value, row.after.name, row.action)
                    for (state, verb), row in table.items()
                ],
            ),
            "",
            "Out of place (LMTP says 503 where the table has 554: RFC 2033 4.2):",
            "",
            *_table(
                ("state", "input", "reply"),
                [
                    (key.split("|")[0], ", ".join(verbs), key.split("|", 1)[1])
                    for key, verbs in refusals.items()
                ],
            ),
        ]
    )


_SAID_BY_US = (
    ("HELLO", "STARTTLS is said", "STARTTLS"),
    ("HANDSHAKE", "TLS is there", "HELLO"),
    ("HELLO", "AUTH is said", "AUTH"),
    ("AUTH", "a key is needed", "DERIVING"),
    ("DERIVING", "the key is there", "AUTH"),
    ("OPEN", "QUIT is said", "QUITTING"),
)
"""Arrows of an initiator that no reply makes by itself."""


def _initiator() -> str:
    table = client_states.TABLE
    arrows = [(state.name, klass.value, row.after.name) for (state, klass), row in table.items()]
    return _text(
        [
            *_diagram(
                "SMTP and LMTP: the initiator",
                "mta/wire/smtp/client_states.py",
                "GREETING",
                [*arrows, *_SAID_BY_US],
            ),
            *_words(client_states.State),
            "",
            "LMTP says LHLO, and ends where SMTP would say HELO.",
            "A reply that has no row, an end of the connection and a time-out lead to ENDED from"
            " every state.",
            "",
            *_table(
                ("state", "reply", "next", "to do"),
                [
                    (state.name, klass.value, row.after.name, row.action)
                    for (state, klass), row in table.items()
                ],
            ),
            "",
            "One transaction inside of OPEN:",
            "",
            *_words(client_states.Phase),
        ]
    )


def _reach() -> str:
    arrows = [(a.name, heard.value, b.name) for (a, heard), b in REACH_TABLE.items()]
    return _text(
        [
            *_diagram(
                "Whether a destination can be reached", "mta/transfer/schedule.py", "OPEN", arrows
            ),
            " ".join((Reach.__doc__ or "").split()),
            "",
            *_table(("state", "input", "next"), arrows),
        ]
    )


def _lease() -> str:
    table = lease.TABLE
    arrows = [(a.name, heard.name.lower(), b.name) for (a, heard), (b, _) in table.items()]
    return _text(
        [
            *_diagram("A lease", "mta/cluster/lease.py", "NONE", arrows),
            *_words(lease.State),
            "",
            *_table(
                ("input", "what happened"),
                [(heard.name.lower(), heard.value) for heard in lease.Input],
            ),
            "",
            *_table(
                ("state", "input", "next", "to do"),
                [
                    (before.name, heard.name.lower(), after.name, action.value)
                    for (before, heard), (after, action) in table.items()
                ],
            ),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mta.testing.drawings DIRECTORY")
    for file_name, text in draw_all().items():
        (Path(sys.argv[1]) / file_name).write_text(text, encoding="utf-8")
        print(f"{file_name}: written")
