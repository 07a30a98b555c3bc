"""The ownership machine: every state met by every input."""

from __future__ import annotations

import ast
import os
from collections import deque

from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.ownership import TABLE, Action, Input, OwnershipMachine, State, draw
from mta.errors import LocalProtocolError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UP = [
    State.CLAIMED,
    State.FENCED_OTHERS,
    State.PUBLISHED,
    State.RECOVERED,
    State.SEALED,
    State.ONLINE,
]


class EveryStateAndInput(SynchronousTestCase):
    def test_walk(self) -> None:
        """Each state takes exactly the inputs of the table; every other is refused by name."""
        for state in State:
            for heard in Input:
                machine = OwnershipMachine()
                machine.state = state
                if (state, heard) in TABLE:
                    after, action = TABLE[state, heard]
                    self.assertIs(machine.receive(heard), action)
                    self.assertIs(machine.state, after)
                else:
                    with self.assertRaises(LocalProtocolError) as caught:
                        machine.receive(heard)
                    self.assertIn(
                        f"{heard.name} is unknown in state {state.name}", str(caught.exception)
                    )
                    self.assertIs(machine.state, state)

    def test_events_of_others_never_refused(self) -> None:
        """What the kernel, the authority or the operator may say at any time is always understood."""
        for state in State:
            if state is State.DOWN:
                continue
            for heard in (
                Input.ADDRESS_LOST,
                Input.ADDRESS_BACK,
                Input.LOST,
                Input.LOSING,
                Input.STOP,
            ):
                self.assertIn((state, heard), TABLE)

    def test_lost_beats_everything(self) -> None:
        """Wherever something is held, losing it ends it at once."""
        for state in State:
            if state not in {State.DOWN, State.STANDBY, State.LOST}:
                self.assertEqual(TABLE[state, Input.LOST], (State.LOST, Action.END))

    def test_the_only_way_up(self) -> None:
        """ONLINE is reached only through all steps in their order."""
        for (before, _heard), (after, _action) in TABLE.items():
            if after in UP and before is not after:
                place = UP.index(after)
                allowed = {UP[place - 1]} if place else {State.STANDBY}
                if after is State.SEALED:
                    allowed.add(State.SUSPENDED)  # sealed already, under the same epoch
                self.assertIn(before, allowed)

    def test_everything_leads_to_rest(self) -> None:
        """From each state there is a way to STANDBY and to DOWN."""
        for start in State:
            seen, waiting = {start}, deque([start])
            while waiting:
                state = waiting.popleft()
                for (before, _heard), (after, _action) in TABLE.items():
                    if before is state and after not in seen:
                        seen.add(after)
                        waiting.append(after)
            self.assertLessEqual({State.STANDBY, State.DOWN}, seen)

    def test_older_bids(self) -> None:
        """What comes late for an older bid is dropped, whatever the state would make of it."""
        machine = OwnershipMachine()
        machine.receive(Input.START)
        first = machine.next_bid()
        second = machine.next_bid()
        self.assertIsNone(machine.receive(Input.GRANTED, first))
        self.assertIs(machine.state, State.STANDBY)
        self.assertIs(machine.receive(Input.GRANTED, second), Action.FENCE)

    def test_drawing_is_current(self) -> None:
        """docs/states/ownership.md is what the table says (python -m mta.cluster.ownership --draw)."""
        with open(os.path.join(ROOT, "docs", "states", "ownership.md"), encoding="utf-8") as drawn:
            self.assertEqual(drawn.read(), draw())

    def test_only_the_driver_mints(self) -> None:
        """Nobody but the ownership driver imports the mint."""
        importers = set()
        for directory, _folders, files in os.walk(os.path.join(ROOT, "mta")):
            for name in files:
                if not name.endswith(".py"):
                    continue
                path = os.path.join(directory, name)
                with open(path, encoding="utf-8") as source:
                    tree = ast.parse(source.read())
                for node in ast.walk(tree):
                    if isinstance(node, ast.ImportFrom) and node.module == "mta.cluster.tenure":
                        names = {alias.name for alias in node.names}
                        if names & {"mint", "_MINT", "*"}:
                            importers.add(os.path.relpath(path, ROOT))
        self.assertEqual(importers, {"mta/cluster/driver.py"})
