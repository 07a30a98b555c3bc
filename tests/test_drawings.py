"""docs/states: the drawings of the state machines are those of the tables that run."""

from __future__ import annotations

import enum
import os

from twisted.trial.unittest import SynchronousTestCase

from mta.cluster import lease, ownership
from mta.testing import ownership_picture
from mta.testing.drawings import draw_all, meanings
from mta.wire.smtp import client_states, states

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs", "states")


class DrawingTests(SynchronousTestCase):
    def test_current(self) -> None:
        """Each file is what its table says now (python -m mta.testing.drawings docs/states)."""
        drawn = draw_all()
        for name, text in drawn.items():
            with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
                self.assertEqual(file.read(), text, name)
        self.assertEqual(set(os.listdir(FOLDER)), {*drawn, "ownership.md"})

    def test_the_picture_has_every_arrow(self) -> None:
        """What the ownership machine's table says is in its picture: no more, and no less."""
        shown: dict[tuple[str, str], str] = {}
        for (box, after), said in ownership_picture.collected().items():
            frame = ownership_picture.FRAMES.get(box.removeprefix("frame "))
            names = [s.name for s in frame[0]] if box.startswith("frame ") and frame else [box]
            shown |= {(name, words): after for name in names for words in said}
        table = {
            (before.name, heard.name.lower().replace("_", " ")): after.name
            for (before, heard), (after, _) in ownership.TABLE.items()
            if before is not after
        }
        self.assertEqual(shown, table)
        self.assertEqual(set(ownership_picture.PLACES), set(ownership.State))

    def test_every_state_has_its_words(self) -> None:
        """No state of the wire, nor of a lease, stands without a sentence that says what it is."""
        for kind in (states.State, client_states.State, client_states.Phase, lease.State):
            self.assertEqual(set(meanings(kind)), {member.name for member in kind})

    def test_words_belong_to_their_member(self) -> None:
        """A member without words takes none from its neighbours."""

        class Kind(enum.Enum):
            ONE = 1
            TWO = 2
            """The
            second."""
            THREE = 3

        self.assertEqual(meanings(Kind), {"TWO": "The second."})
