"""The simulation is deterministic, and its watch can say no: each invariant violated is noticed.

Two seeds are played here, and worlds without faults; `make check` plays two hundred seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.bugs import BUGS, Bug, NotThere, put_in
from tests.simulation.node import SPOOL, Process
from tests.simulation.run import Run, drawn_from, simulate
from tests.simulation.world import Violation


class Everything(set[str]):
    def __contains__(self, _one: object) -> bool:
        return True


class ReplayTests(SynchronousTestCase):
    def test_a_seed_is_a_history(self) -> None:
        """The same seed gives the same trace, line by line, and another seed another one."""
        first, again, other = simulate(7), simulate(7), simulate(8)
        self.assertEqual("", first.violation)
        self.assertEqual(first.trace, again.trace)
        self.assertNotEqual(first.trace, other.trace)
        self.assertGreaterEqual(len(first.faults), 20)
        self.assertGreater(first.figures["takeovers"], 1)


class WatchTests(SynchronousTestCase):
    """A world without faults in which something is done that must not be."""

    @contextmanager
    def world(self) -> Iterator[tuple[Run, Process]]:
        with drawn_from(3):
            run = Run(3, faults=0, authority="addresses")
            run.begin()
            run.world.run(run.world.now + 10.0)
            [name] = run.online()
            [owner] = [p for p in run.watch.processes if p.name == name]
            self.assertGreater(len(run.watch.acks), 3)
            yield run, owner
            for process in run.watch.processes:
                process.is_dead = True

    def violated(self, name: str, do: Callable[[Run, Process], object]) -> None:
        with self.world() as (run, owner):
            with self.assertRaises(Violation) as caught:
                do(run, owner)
                run.world.run(run.world.now + 20.0)
            self.assertEqual(name, caught.exception.name, str(caught.exception))

    def test_nothing_done(self) -> None:
        """Nothing is found where nothing is wrong."""
        with self.world() as (run, _):
            run.world.run(run.world.now + 20.0)
            run.watch.look(durable=True)
            self.assertIsNone(run.world.violation)

    def test_acknowledged_and_gone(self) -> None:
        """I1: a segment that vanishes with messages that were answered 250."""

        def vanish(run: Run, owner: Process) -> None:
            run.load.sinks.busy = 1.0
            run.world.run(run.world.now + 5.0)
            for path in run.disk.paths():
                if path.startswith(f"{SPOOL}/seg/"):
                    run.disk.unlink(path)
            run.disk.sync_directory(f"{SPOOL}/seg")
            run.watch.look()

        self.violated("I1", vanish)

    def test_acknowledged_and_not_covered(self) -> None:
        """I2: a 250 under an epoch whose taker has sealed without that message."""
        self.violated("I2", lambda run, _: run.watch.sealed.update({99: frozenset()}))

    def test_acting_before_the_seal(self) -> None:
        """I2: a 250 while the own first checkpoint is not there."""
        self.violated("I2", lambda run, _: run.watch._has_checkpoint.clear())

    def test_an_epoch_twice(self) -> None:
        """I3: the same epoch is published again."""
        path = f"{SPOOL}/epoch/1"
        self.violated("I3", lambda run, owner: run.watch.disk_changed(owner, "link", path))

    def test_two_writers(self) -> None:
        """I3: somebody else writes into the owner's segment."""

        def write(run: Run, owner: Process) -> None:
            [other, *_] = [p for p in run.watch.processes if p is not owner]
            run.watch.disk_changed(other, "write", f"{SPOOL}/seg/1.1")

        self.violated("I3", write)

    def test_a_superseded_owner_sends_on(self) -> None:
        """I4: more than one message over an association whose epoch is superseded."""

        def supersede(run: Run, owner: Process) -> None:
            run.watch.is_superseded = lambda number: True  # type: ignore[method-assign]

        self.violated("I4", supersede)

    def test_sent_after_its_end(self) -> None:
        """I5: a message is sent whose end is in the log."""

        def finish(run: Run, owner: Process) -> None:
            run.watch.finished = Everything()

        self.violated("I5", finish)

    def test_a_wrong_source(self) -> None:
        """I6: an association at an address that its tenure does not have."""

        def move(run: Run, owner: Process) -> None:
            run.load.sinks.slow = 1.0
            run.world.run(run.world.now + 3.0)
            next(iter(run.watch._ends)).host = "198.51.100.9"

        self.violated("I6", move)

    def test_nobody_online(self) -> None:
        """I7: all is healed, and no node serves."""
        self.violated("I7", lambda run, _: run.watch.conclude([]))

    def test_something_is_left(self) -> None:
        """I7: all is healed, and a message has neither arrived nor been reported."""

        def forget(run: Run, owner: Process) -> None:
            next(iter(run.load.messages.values())).delivered.clear()
            run.watch.conclude(run.online())

        self.violated("I7", forget)


class BugTests(SynchronousTestCase):
    def test_a_bug_that_cannot_be_put_in(self) -> None:
        """Where the line has changed, the bug is an error and not one that was not found."""
        bug = BUGS["skip-a-re-read"]
        changed = Bug(bug.what, bug.place, bug.name, "a line that is not there", bug.wrong)
        gone = Bug(bug.what, bug.place, "_vanished", bug.right, bug.wrong)
        for one in (changed, gone):
            with self.assertRaises(NotThere), put_in(one):
                pass

    def test_it_goes_again(self) -> None:
        """Afterwards the product is as it was."""
        for bug in BUGS.values():
            before = getattr(bug.place, bug.name)
            with put_in(bug):
                self.assertIsNot(before, getattr(bug.place, bug.name))
            self.assertIs(before, getattr(bug.place, bug.name))
