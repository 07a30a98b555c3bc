"""The deadline that moves: exact, and cheap in timers."""

import gc
import weakref

from twisted.trial.unittest import SynchronousTestCase

from mta.association.deadline import Deadline
from mta.testing.clock import VirtualClock


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.expired: list[float] = []
        self.deadline = Deadline(self.clock, lambda: self.expired.append(self.clock.monotonic()))

    def test_exact(self) -> None:
        """It expires at its time, once."""
        self.deadline.set(300)
        self.clock.advance(299.9)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.expired), 1)
        self.clock.advance(1000)
        self.assertEqual(len(self.expired), 1)

    def test_moved_later(self) -> None:
        """What is set anew counts from then, without a new timer for each command."""
        for _ in range(100):
            self.deadline.set(300)
            self.assertEqual(len(self.clock.reactor.getDelayedCalls()), 1)
            self.clock.advance(10)
        self.clock.advance(289.9)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.expired), 1)

    def test_moved_earlier(self) -> None:
        """A shorter time behind a longer one is kept too."""
        self.deadline.set(600)
        self.deadline.set(120)
        self.clock.advance(119.9)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.expired), 1)

    def test_cleared(self) -> None:
        """Cleared it never expires, and can be set again; cancelled it leaves no timer."""
        self.deadline.set(10)
        self.deadline.clear()
        self.assertFalse(self.deadline.is_set)
        self.clock.advance(5)
        self.deadline.set(10)
        self.clock.advance(9.9)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.expired), 1)
        self.deadline.set(10)
        self.deadline.cancel()
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_lets_go(self) -> None:
        """Once it is cancelled it holds nothing of whoever had it."""

        class Owner:
            def __init__(self, clock: VirtualClock) -> None:
                self.deadline = Deadline(clock, self.expired)

            def expired(self) -> None: ...

        owner = Owner(self.clock)
        owner.deadline.set(10)
        owner.deadline.cancel()
        gone = weakref.ref(owner)
        gc.disable()
        self.addCleanup(gc.enable)
        del owner
        self.assertIsNone(gone())
