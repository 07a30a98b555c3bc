"""Messages that are not in memory, a takeover's or deferred ones: in which order they go out."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Corrupt
from tests.transfer_bench import HUB, Bench


class LoadingTests(SynchronousTestCase):
    def setUp(self):
        self.bench = Bench(connectors=(replace(HUB, concurrency=1),))
        self.reads = {}
        self.load = self.bench.spool.load
        self.bench.spool.load = lambda name: self.reads.setdefault(name, Deferred())
        self.order = [self.bench.queue() for _ in range(4)]
        self.bench.dispatch.pump()

    def found(self, *names):
        for name in names:
            self.reads.pop(name).callback(self.load(name))

    def test_read_in_any_order(self):
        """They go out in the order in which the spool gave them, whichever is read first."""
        self.assertEqual(list(self.reads), self.order)
        self.found(*reversed(self.order[1:]))
        self.assertEqual(self.bench.kind.delivered, [])
        self.found(self.order[0])
        self.assertEqual(self.bench.kind.delivered, self.order)

    def test_one_cannot_be_read(self):
        """Those behind it go out all the same; it is told of, and tried again later."""
        self.found(*self.order[1:])
        self.reads.pop(self.order[0]).errback(Corrupt("seg/1 offset 2: the crc does not match"))
        self.assertEqual(self.bench.kind.delivered, self.order[1:])
        self.assertEqual(list(self.bench.spool.messages), self.order[:1])
        self.assertEqual(self.bench.spool.taken, set())

    def test_stopped_meanwhile(self):
        """What was read and waited for others, and what was not, is in the spool again."""
        self.found(*self.order[2:])
        self.bench.dispatch.stop("superseded")
        self.assertEqual(self.bench.kind.delivered, [])
        self.assertEqual(self.bench.spool.taken, set())
        self.assertEqual(len(self.bench.spool.messages), 4)
