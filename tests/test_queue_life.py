"""The queue over the real spools: a message's whole life, takeovers in between."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.association.maildir import MaildirKind, MaildirSettings
from mta.model import (
    AddressSpace,
    Claim,
    Connector,
    Fencing,
    Grant,
    Outcome,
    OutcomeKind,
    QueueAct,
    QueueFilter,
    fresh_state,
)
from mta.routing.least_cost import LeastCostRouting
from mta.spool.memory import MemorySpool, MemorySpoolSettings
from mta.testing.kind_suite import WIRE, envelope_to
from mta.testing.surroundings import MemorySurroundings, MemoryTenure, virtual_addresses
from mta.transfer.dispatch import Dispatch
from mta.transfer.settings import QueueSettings
from tests.transfer_bench import HUB, LATER, OK, POSTMASTER, FixedResolver, ScriptedKind

CLAIM = Claim(
    "a",
    "boot",
    0.0,
    "0",
    "x",
    Grant(1, "bridgehead.example.org", virtual_addresses("192.0.2.10"), Fencing.EXTERNAL),
)


class House:
    """One node after the other over one memory store."""

    def __init__(self, case, connectors=(HUB,)):
        self.case = case
        self.around = MemorySurroundings()
        self.around.disk.mkdir("/mail")
        self.clock = self.around.clock
        self.connectors = connectors
        self.store = None
        self.takeover()

    def takeover(self):
        spool = MemorySpool(MemorySpoolSettings(), self.around, self.store)
        self.store = spool.store
        above = max(self.store.epochs, default=0)
        for step in (lambda: spool.publish(CLAIM, above), spool.recover, spool.seal):
            self.case.successResultOf(step())
        self.spool = spool
        self.kind = ScriptedKind(self)
        maildir = MaildirKind(MaildirSettings(directory="/mail/{user}"), self.around)
        self.log = []
        self.dispatch = Dispatch(
            MemoryTenure(epoch=spool.epoch),
            spool,
            LeastCostRouting(self.connectors),
            {c.name: (c, maildir if c.kind == "maildir" else self.kind) for c in self.connectors},
            FixedResolver(),
            self.clock,
            self.around.telemetry,
            QueueSettings(),
            POSTMASTER,
            lambda ip, port: False,
            chance=lambda: 0.5,
        )
        self.dispatch.start()

    def accept(self, *recipients, **changes):
        envelope = replace(envelope_to(*recipients), received_at=self.clock.wall(), **changes)
        staging = self.spool.stage("smtp/in/1")
        staging.write(WIRE)
        state = fresh_state(envelope)
        self.case.successResultOf(staging.commit(envelope, state, b"Received: us\r\n", None))
        self.dispatch.offer(staging.queue_id, envelope, state)
        return staging.queue_id

    def entry(self, name):
        [found] = self.case.successResultOf(self.spool.scan(QueueFilter(queue_ids=(name,)), "", 9))
        return found


class LifeTests(SynchronousTestCase):
    def test_whole_life(self):
        """Accepted, refused for now, retried, delivered, gone; nothing is left anywhere."""
        house = House(self)
        house.kind.on_commit = lambda s, n, e, r: succeed(
            tuple(Outcome(i, OutcomeKind.DEFERRED, LATER) for i in r)
        )
        name = house.accept("bob@example.com", "carol@example.com")
        self.assertFalse(house.entry(name).active)
        del house.kind.on_commit
        house.clock.advance(301.0)
        self.assertEqual(house.kind.delivered, [name])
        self.assertEqual(house.spool.stats().messages, 0)
        self.assertEqual(house.spool.in_doubt(), ())
        self.assertEqual(house.store.intents, {})

    def test_split_over_two_connectors(self):
        """A message for two destinations: the one that works is not repeated for the other."""
        local = Connector("local", "maildir", (AddressSpace(b"example.org"),))
        house = House(self, (HUB, local))
        house.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        name = house.accept("bob@example.com", "anna@example.org")
        self.assertEqual(house.spool.stats().messages, 1)
        house.kind.unreachable = set()
        for _ in range(40):
            house.clock.advance(30.0)
        self.assertEqual(house.spool.stats().messages, 0)
        self.assertEqual(house.kind.delivered, [name])
        boxes = [p for p in house.around.disk.paths() if p.startswith("/mail/anna/new/")]
        self.assertEqual(len(boxes), 1)

    def test_takeover_in_the_middle_of_a_transfer(self):
        """The owner dies between the dot and the reply: the new owner sends it again, to the same
        server first, and once."""
        house = House(self)
        house.kind.on_commit = lambda *a: Deferred()
        name = house.accept("bob@example.com")
        house.spool.abandon()
        house.dispatch.stop("killed")
        house.takeover()
        self.assertEqual(house.kind.opened, ["192.0.2.20:25"])
        self.assertEqual(house.kind.delivered, [name])
        self.assertEqual(house.spool.in_doubt(), ())
        self.assertEqual(house.spool.stats().messages, 0)

    def test_superseded(self):
        """A newer owner exists: the old one sends nothing more and stops."""
        house = House(self)
        old, old_kind = house.dispatch, house.kind
        house.takeover()
        envelope = replace(envelope_to("bob@example.com"), received_at=house.clock.wall())
        old.offer("00010000000099", envelope, fresh_state(envelope))
        self.assertEqual(old_kind.delivered, [])

    def test_operators(self):
        """Hold keeps it, release lets it go, retry does not wait, delete removes it."""
        house = House(self)
        house.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        name = house.accept("bob@example.com")
        gone = house.accept("eve@example.com")
        act = lambda what, *ids: self.successResultOf(  # noqa: E731
            house.spool.act(ids, what, house.clock.wall())
        )
        act(QueueAct.HOLD, name)
        house.dispatch.forget([name])
        act(QueueAct.DELETE, gone)
        house.dispatch.forget([gone])
        house.kind.unreachable = set()
        for _ in range(30):
            house.clock.advance(60.0)
        self.assertEqual(house.kind.delivered, [])
        act(QueueAct.RELEASE, name)
        house.dispatch.retry_now([name])
        self.assertEqual(house.kind.delivered, [name])
        self.assertEqual(house.spool.stats().messages, 0)

    def test_hold_during_a_transfer(self):
        """Held while it is being sent and deferred by the peer: it stays held."""
        house = House(self)
        replies = []
        house.kind.on_commit = lambda *a: replies.append(Deferred()) or replies[-1]
        name = house.accept("bob@example.com")
        self.successResultOf(house.spool.act([name], QueueAct.HOLD, house.clock.wall()))
        house.dispatch.forget([name])
        replies[0].callback((Outcome(0, OutcomeKind.DEFERRED, LATER),))
        self.assertTrue(house.entry(name).state.held)
        house.clock.advance(1000.0)
        self.assertEqual(len(replies), 1)

    def test_retry_of_a_resting_destination(self):
        """`mta queue retry` tries at once, although the destination rests."""
        house = House(self)
        house.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        name = house.accept("bob@example.com")
        house.kind.unreachable = set()
        self.successResultOf(house.spool.act([name], QueueAct.RETRY, house.clock.wall()))
        house.dispatch.retry_now([name])
        self.assertEqual(house.kind.delivered, [name])

    def test_reload(self):
        """A reload changes the dispatch under a message that is being sent: it is sent once."""
        house = House(self)
        replies = []
        house.kind.on_commit = lambda *a: replies.append(Deferred()) or replies[-1]
        house.accept("bob@example.com")
        former = house.dispatch
        done = former.drain(house.clock.monotonic() + 30)
        second = Dispatch(
            MemoryTenure(),
            house.spool,
            LeastCostRouting((HUB,)),
            {"hub": (HUB, house.kind)},
            FixedResolver(),
            house.clock,
            house.around.telemetry,
            QueueSettings(),
            POSTMASTER,
            lambda ip, port: False,
        )
        second.start()
        replies[0].callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        self.successResultOf(done)
        second.pump()
        house.clock.advance(100.0)
        self.assertEqual(len(replies), 1)
        self.assertEqual(house.spool.stats().messages, 0)
