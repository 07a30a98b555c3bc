"""How the demo looks: a live picture on a terminal, plain lines anywhere else.

Law: it is told events (demo_play.py) and shows them; it decides nothing. The picture lives on the
terminal's second screen, is drawn whole each time and cut to the terminal's size of that moment, so
that a resize costs one frame; `close` gives the first screen and the cursor back whatever happened.
NO_COLOR and a terminal without UTF-8 are honoured.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from typing import Any, TextIO

EXPECTED_SECONDS = 60
PLAIN_SECONDS = 5.0
"""Between two lines of figures where nothing is drawn."""
RATES = 60
"""Bars of the picture, each of BAR_SECONDS."""
BAR_SECONDS = 0.5

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"

Span = tuple[str, str]
"""Text and its style ("" for none)."""


class Plain:
    """One line for each thing that happened."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = 0.0

    def show(self, event: dict[str, Any]) -> None:
        at, what = event["seconds"], event["what"]
        if what == "say":
            self._line(at, event["text"])
        elif what == "takeover":
            self._line(at, f"{takeover_words(event)}")
        elif what == "now" and at - self._last >= PLAIN_SECONDS and event["sent"]:
            self._last = at
            self._line(at, f"{owner_words(event)}; {figure_words(event)}")

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, at: float, text: str) -> None:
        self._out.write(f"{at:5.1f} s  {text}\n")
        self._out.flush()


class Picture:
    """The live picture. `tick` draws it anew."""

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self._out = out
        self._colour = colour
        encoding = (out.encoding or "").lower().replace("-", "")
        self._fine = encoding == "utf8"
        self._now: dict[str, Any] = {}
        self._said: deque[tuple[float, str]] = deque(maxlen=50)
        self._takeovers: list[dict[str, Any]] = []
        self._rates: deque[int] = deque(maxlen=RATES)
        self._bar_at = 0.0
        self._bar_from = 0
        self._begun = time.monotonic()
        self._size = (0, 0)
        self._is_open = True
        out.write("\x1b[?1049h\x1b[?25l")

    def show(self, event: dict[str, Any]) -> None:
        what = event["what"]
        if what == "say":
            self._said.append((event["seconds"], event["text"]))
        elif what == "takeover":
            self._takeovers.append(event)
        elif what == "now":
            self._now = event
            if event["sent"] and event["seconds"] - self._bar_at >= BAR_SECONDS:
                if self._bar_at:
                    self._rates.append(event["sent"] - self._bar_from)
                self._bar_at, self._bar_from = event["seconds"], event["sent"]

    def tick(self) -> None:
        size = shutil.get_terminal_size()
        width, height = size.columns, size.lines
        begin = "\x1b[2J\x1b[H" if size != self._size else "\x1b[H"
        self._size = (width, height)
        lines = self._lines(width)[: max(1, height - 1)]
        drawn = [self._drawn(line, width) + "\x1b[K" for line in lines]
        self._out.write(begin + "\r\n".join(drawn) + "\x1b[J")
        self._out.flush()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._out.write("\x1b[0m\x1b[?25h\x1b[?1049l")
            self._out.flush()

    # --- the lines, most important first: what does not fit falls off below

    def _lines(self, width: int) -> list[list[Span]]:
        inner = max(20, min(width, 100) - 4)
        seconds = time.monotonic() - self._begun
        rule: list[Span] = [("  " + ("─" if self._fine else "-") * inner, DIM)]
        clock = f"{_clock(seconds)} of about {_clock(EXPECTED_SECONDS)}"
        title = "mta: two nodes, one spool, one address"
        lines: list[list[Span]] = [
            [
                ("  " + title, BOLD),
                (" " * max(2, inner - len(title) - len(clock)), ""),
                (clock, DIM),
            ],
            rule,
        ]
        for name in sorted(self._now.get("nodes", {})):
            lines.append(self._node(name, self._now["nodes"][name]))
        lines += [rule, *self._figures(is_narrow=width < 92), self._bars(inner), rule]
        lines += [[("  " + HEADING, DIM)]] if self._takeovers else []
        lines += [self._takeover(event) for event in self._takeovers]
        lines += [rule] if self._takeovers else []
        for age, (at, text) in enumerate(reversed(self._said)):
            lines.append([(f"  {at:5.1f} s  ", DIM), (text, BOLD if age == 0 else DIM)])
            if age == 5:
                break
        return lines

    def _node(self, name: str, node: dict[str, Any]) -> list[Span]:
        mark, bare = ("●", "○") if self._fine else ("*", "o")
        label, style, why = _node_words(node)
        is_owner = label == "owner"
        address: Span = ("address here  ", CYAN) if node["has_address"] else (" " * 14, "")
        return [
            (f"  {mark if is_owner else bare} ", style),
            (f"node {name}  ", BOLD if is_owner else ""),
            (f"{label:10}", style),
            address,
            (why, DIM),
        ]

    def _figures(self, is_narrow: bool) -> list[list[Span]]:
        now = self._now
        if not now:
            return [[("  starting", DIM)]]
        doubled, unnamed = now["doubled"], now["unnamed"]
        named = f" ({doubled - unnamed} named)" if doubled else ""
        wrong = now["wrong_source"]
        flow: list[Span] = [
            ("  sent ", DIM), (f"{now['sent']}", BOLD),
            ("   delivered ", DIM), (f"{now['arrived']}", BOLD),
            ("   on the way ", DIM), (f"{now['waiting']}", ""),
        ]  # fmt: skip
        sums: list[Span] = [
            ("  lost ", DIM), ("0", GREEN),
            ("   doubled ", DIM), (f"{doubled}{named}", YELLOW if doubled else GREEN),
            ("   wrong source ", DIM), (f"{wrong}", RED if wrong else GREEN),
        ]  # fmt: skip
        return [flow, sums] if is_narrow else [[*flow, (" ", ""), *sums]]

    def _bars(self, inner: int) -> list[Span]:
        """Mail answered 250 in each half second: where it dips, an owner was lost."""
        marks = " ▁▂▃▄▅▆▇█" if self._fine else " .:-=+*#@"
        shown = list(self._rates)[-max(1, inner - 22) :]
        top = max([1, *shown])
        bars = "".join(marks[(rate * (len(marks) - 1) + top - 1) // top] for rate in shown)
        return [("  mail answered 250  ", DIM), (bars, GREEN)]

    def _takeover(self, event: dict[str, Any]) -> list[Span]:
        return [(f"  {row(event)}", GREEN if not event["unnamed"] else RED)]

    def _drawn(self, line: list[Span], width: int) -> str:
        """Cut to the width, then styled: no escape sequence is ever cut."""
        drawn, room = "", width - 1
        for text, style in line:
            shown = text[: max(0, room)]
            room -= len(shown)
            drawn += f"\x1b[{style}m{shown}\x1b[0m" if shown and style and self._colour else shown
        return drawn if self._fine else drawn.encode("ascii", "replace").decode()


def of(out: TextIO) -> Plain | Picture:
    """What suits this output."""
    if not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Plain(out)
    return Picture(out, colour=not os.environ.get("NO_COLOR"))


# --- words ------------------------------------------------------------------------------------

HEADING = (
    f"{'the owner was':21}{'now owns':>9}{'epoch':>6}{'220 after':>11}"
    f"{'no 250 for':>11}{'peers free':>11}{'doubled':>8}"
)


def row(event: dict[str, Any]) -> str:
    """A takeover under HEADING."""
    return (
        f"{event['fault']:21}{'node ' + event['new']:>9}{event['epoch']:6}"
        f"{event['greets_ms']:8} ms{event['still_ms']:8} ms{event['released_ms']:8} ms"
        f"{event['doubled']:8}{' NOT named' if event['unnamed'] else ''}"
    )


def takeover_words(event: dict[str, Any]) -> str:
    return (
        f"node {event['new']} owns under epoch {event['epoch']}: 220 {event['greets_ms']} ms after "
        f"the address, no 250 for {event['still_ms']} ms, {event['doubled']} doubled"
    )


def owner_words(event: dict[str, Any]) -> str:
    """A stopped node still shows what it believed: who has the newest epoch owns."""
    owners = [
        name
        for name, node in sorted(event["nodes"].items())
        if node["state"] == "online" and node["epoch"] == event["epoch"]
    ]
    who = f"node {owners[0]} owns" if owners else "nobody owns"
    return f"{who}, epoch {event['epoch']}"


def figure_words(event: dict[str, Any]) -> str:
    return (
        f"sent {event['sent']}, delivered {event['arrived']}, on the way {event['waiting']}, "
        f"doubled {event['doubled']}, wrong source {event['wrong_source']}"
    )


def last_line(event: dict[str, Any]) -> str:
    unnamed = event["unnamed"]
    named = f"{unnamed} not named" if unnamed else "all named"
    return (
        f"lost {event['lost']}, wrong source {event['wrong_source']}, "
        f"doubled {event['doubled']} ({named})"
    )


def _node_words(node: dict[str, Any]) -> tuple[str, str, str]:
    """Label, style, and why."""
    fate, state = node["fate"], node["state"]
    if fate in {"killed", "ended"} and not state:
        return fate, RED, ""
    if fate == "stopped":
        return fate, RED, "believes to be the owner; cannot act"
    if fate == "cut off":
        return fate, RED, node["why"]
    if state == "online":
        return "owner", GREEN, f"epoch {node['epoch']}"
    return (state or "starting"), "" if state == "standby" else YELLOW, node["why"]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
