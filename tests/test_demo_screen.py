"""The demo's picture and its plain lines: cut to the terminal, honest, and gone when it ends."""

from __future__ import annotations

import io
import os
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.rig import screen

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def now(**besides: Any) -> dict[str, Any]:
    node = {"fate": "", "has_address": True, "state": "online", "epoch": 7, "why": "online as x"}
    away = {**node, "has_address": False, "state": "standby", "why": "waiting for 192.0.2.1 " * 9}
    return {
        "what": "now", "seconds": 3.0, "epoch": 7, "nodes": {"a": node, "b": away}, "sent": 30,
        "arrived": 29, "waiting": 1, "doubled": 2, "unnamed": 0, "wrong_source": 0, **besides,
    }  # fmt: skip


def takeover(**besides: Any) -> dict[str, Any]:
    return {
        "what": "takeover", "seconds": 4.0, "fault": "killed (kill -9)", "old": "a", "new": "b",
        "epoch": 8, "greets_ms": 61, "still_ms": 92, "released_ms": 3, "doubled": 1, "unnamed": 0,
        **besides,
    }  # fmt: skip


class ScreenTests(SynchronousTestCase):
    def test_a_stopped_owner_owns_no_more(self) -> None:
        """What a stopped node last said of itself is older than the newest epoch."""
        node = now()["nodes"]["a"]
        nodes = {"a": node, "b": {**node, "epoch": 8}}
        words = screen.owner_words(now(epoch=8, nodes=nodes))
        self.assertEqual("node b owns, epoch 8", words)
        self.assertEqual("nobody owns, epoch 9", screen.owner_words(now(epoch=9, nodes=nodes)))

    def picture(self, *, colour: bool = True) -> tuple[Terminal, screen.Picture]:
        out = Terminal()
        return out, screen.Picture(out, colour=colour)

    def drawn(self, columns: int, lines: int, colour: bool = True) -> str:
        self.patch(screen.shutil, "get_terminal_size", lambda: os.terminal_size((columns, lines)))
        out, picture = self.picture(colour=colour)
        for event in (now(), takeover(), {"what": "say", "seconds": 4.0, "text": "kill -9 " * 40}):
            picture.show(event)
        out.seek(0)
        out.truncate()
        picture.tick()
        return out.getvalue()

    def test_fits(self) -> None:
        """No line is longer than the terminal, no frame higher, however small it was made."""
        for columns, lines in ((200, 50), (80, 24), (40, 10), (10, 3), (1, 1)):
            frame = _ESCAPE.sub("", self.drawn(columns, lines)).split("\r\n")
            self.assertLessEqual(max(map(len, frame)), columns)
            self.assertLessEqual(len(frame), lines)

    def test_everything_on_80_columns(self) -> None:
        """The owner, the epoch, every figure and the whole table show on 80 columns."""
        frame = _ESCAPE.sub("", self.drawn(80, 24))
        for words in (
            "node a  owner", "epoch 7", "sent 30", "delivered 29", "on the way 1", "lost 0",
            "doubled 2 (2 named)", "wrong source 0", "61 ms", "92 ms", "doubled\r\n",
        ):  # fmt: skip
            self.assertIn(words, frame)

    def test_no_colour(self) -> None:
        """With NO_COLOR the frame holds no colour, only moves of the cursor."""
        self.assertIn("\x1b[32m", self.drawn(80, 24))
        self.assertNotIn("m", "".join(_ESCAPE.findall(self.drawn(80, 24, colour=False))))

    def test_close(self) -> None:
        """The first screen and the cursor come back, once."""
        out, picture = self.picture()
        picture.close()
        picture.close()
        self.assertTrue(out.getvalue().endswith("\x1b[0m\x1b[?25h\x1b[?1049l"))
        self.assertEqual(out.getvalue().count("\x1b[?1049l"), 1)

    def test_what_suits(self) -> None:
        """A picture on a terminal; plain lines in a pipe and on a dumb terminal."""
        self.patch(os, "environ", {"TERM": "xterm"})
        self.assertIsInstance(screen.of(Terminal()), screen.Picture)
        self.assertIsInstance(screen.of(io.StringIO()), screen.Plain)
        self.patch(os, "environ", {"TERM": "dumb"})
        self.assertIsInstance(screen.of(Terminal()), screen.Plain)

    def test_plain_lines(self) -> None:
        """One line for what is done, for each takeover, and for the figures now and then."""
        out = io.StringIO()
        plain = screen.Plain(out)
        plain.show({"what": "say", "seconds": 1.0, "text": "node a owns"})
        plain.show(now(seconds=6.0))
        plain.show(now(seconds=6.1))
        plain.show(takeover(seconds=7.0))
        self.assertEqual(
            out.getvalue().splitlines(),
            [
                "  1.0 s  node a owns",
                "  6.0 s  node a owns, epoch 7; sent 30, delivered 29, on the way 1, doubled 2, "
                "wrong source 0",
                "  7.0 s  node b owns under epoch 8: 220 61 ms after the address, no 250 for 92 ms, "
                "1 doubled",
            ],
        )

    def test_last_line(self) -> None:
        """The last line says whether every double was named."""
        over = {"lost": 0, "wrong_source": 0, "doubled": 3, "unnamed": 0}
        self.assertEqual(screen.last_line(over), "lost 0, wrong source 0, doubled 3 (all named)")
        self.assertIn("(1 not named)", screen.last_line({**over, "unnamed": 1}))
        self.assertIn("NOT named", screen.row(takeover(unnamed=1)))
