"""The product's threads, with threads that run when somebody waits for them."""

from __future__ import annotations

import gc
import weakref

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mta.spool.disk import ThreadExecutor


class Waited:
    """A thread that gets the processor only in `join`; one that hangs never gets it."""

    hangs = False

    def __init__(self, target, name: str, daemon: bool) -> None:
        self.target = target
        self.waits = 0

    def start(self) -> None:
        pass

    def join(self, _seconds: float) -> None:
        self.waits += 1
        if not self.hangs:
            self.target()


class Tenure:
    """What a committer's step belongs to."""

    def step(self) -> None:
        return None


class LoopsOfTenures(SynchronousTestCase):
    def setUp(self) -> None:
        self.threads: list[Waited] = []
        self.reactor = Clock()
        self.executor = ThreadExecutor(self.reactor, make_thread=self.make)

    def make(self, **facts) -> Waited:
        self.threads.append(Waited(**facts))
        return self.threads[-1]

    def test_nothing_stays_of_a_tenure(self) -> None:
        """A process that owns again and again keeps nothing of the tenures that have ended: with
        each loop it would keep a whole ledger, and the columns of a long queue.
        """
        left = []
        for epoch in range(1, 4):
            tenure = Tenure()
            left.append(weakref.ref(tenure))
            loop = self.executor.loop(tenure.step, f"committer-{epoch}")
            del tenure
            loop.wake()
            loop.stop()
            del loop
        self.reactor.advance(0)
        self.threads.clear()
        gc.collect()
        self.assertEqual([tenure() for tenure in left], [None, None, None])

    def test_one_that_runs_is_stopped_with_the_process(self) -> None:
        """The end of the process waits for the loop of the tenure that lives, and for no other."""
        self.executor.loop(Tenure().step, "committer-1").stop()
        self.executor.loop(Tenure().step, "committer-2")
        self.executor.stop()
        self.assertEqual([thread.waits for thread in self.threads], [1, 1])

    def test_one_that_hangs_is_not_forgotten(self) -> None:
        """A thread in a disk call that does not return is waited for again; once it ends it is
        forgotten like the others.
        """
        tenure = Tenure()
        left = weakref.ref(tenure)
        loop = self.executor.loop(tenure.step, "committer-1")
        (thread,) = self.threads
        thread.hangs = True
        loop.stop()
        self.executor.stop()
        self.assertEqual(thread.waits, 2)
        thread.target()  # the disk has answered
        self.threads.clear()
        del tenure, loop, thread
        gc.collect()
        self.assertIsNone(left())
