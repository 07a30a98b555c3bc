"""What must hold when transfers of one message, tenures and plugins cross each other: no outcome is
forgotten, no report is dropped, nothing waits for ever in somebody's hands.
"""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import TransientFailure
from mta.model import (
    AddressSpace,
    Bridgehead,
    Connector,
    EnvelopeKind,
    InDoubt,
    Outcome,
    OutcomeKind,
    QueueAct,
    QueueFilter,
    RecipientStatus,
)
from mta.testing.lab import CONFIGURATION, Lab, LabTenure
from mta.testing.lab import HUB as HUB_HOST
from mta.testing.sink import SILENCE
from mta.transfer import standing
from tests.test_queue_life import House
from tests.transfer_bench import HUB, LATER, NEVER, OK, Bench

ORG = Connector(
    "org",
    "smtp",
    (AddressSpace(b"example.org"),),
    bridgeheads=(Bridgehead("192.0.2.30"),),
    concurrency=1,
)
COM = replace(HUB, name="com", address_spaces=(AddressSpace(b"example.com"),), concurrency=1)
NET = Connector(
    "net",
    "smtp",
    (AddressSpace(b"*"),),
    bridgeheads=(Bridgehead("192.0.2.40"),),
    concurrency=5,
)


class DividedMessageTests(SynchronousTestCase):
    """One message for several destinations, whose transfers end in any order."""

    def house(self):
        return House(self, (COM, ORG, NET))

    def test_a_report_is_not_lost_to_the_last_delivery(self):
        """One recipient is refused while another is delivered a moment later: the sender is told
        of the one that failed, although the message left the queue with the other.
        """
        house = self.house()
        replies, prepared = [], []
        house.kind.on_commit = lambda s, n, e, r: replies.append((Deferred(), r)) or replies[-1][0]

        def prepare(sender, name, envelope, recipients):
            if sender.hop.connector != "com":
                return succeed(())
            if len(envelope.recipients) == 2:
                return succeed((Outcome(0, OutcomeKind.FAILED, NEVER),))
            prepared.append(Deferred())  # the next one's envelope is on its way
            return prepared[-1]

        house.kind.on_prepare = prepare
        opening = []
        house.kind.on_open = lambda s: (
            opening.append((Deferred(), s)) or opening[-1][0]
            if s.hop.connector == "com"
            else succeed(s)
        )
        name = house.accept("bad@example.com", "good@example.org")
        house.accept("next@example.com")
        done, sender = opening[0]
        done.callback(sender)
        [(reply, recipients)] = replies
        reply.callback(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))
        prepared[0].callback(())
        house.clock.advance(0)
        queued = self.successResultOf(house.spool.scan(QueueFilter(), "", 9))
        reports = [e for e in queued if e.envelope.kind is EnvelopeKind.REPORT]
        self.assertEqual([e.queue_id[:14] for e in reports], [name])

    def test_a_late_record_takes_nothing_back(self):
        """Three destinations: what was delivered last is not delivered again because an earlier
        outcome was recorded later.
        """
        house = self.house()
        replies, prepared = {}, []

        def commit(sender, name, envelope, recipients):
            if sender.hop.connector == "org":
                replies["org"] = Deferred()
                return replies["org"]
            kind = OutcomeKind.DEFERRED if sender.hop.connector == "net" else OutcomeKind.DELIVERED
            if len(envelope.recipients) == 3:
                house.kind.delivered.append((sender.hop.connector, name))
            reply = LATER if kind is OutcomeKind.DEFERRED else OK
            return succeed(tuple(Outcome(i, kind, reply) for i in recipients))

        def prepare(sender, name, envelope, recipients):
            if sender.hop.connector == "com" and len(envelope.recipients) == 1:
                prepared.append(Deferred())
                return prepared[-1]
            return succeed(())

        house.kind.on_commit, house.kind.on_prepare = commit, prepare
        opening = []
        house.kind.on_open = lambda s: (
            opening.append((Deferred(), s)) or opening[-1][0]
            if s.hop.connector == "com"
            else succeed(s)
        )
        name = house.accept("a@example.com", "b@example.org", "c@example.net")
        house.accept("next@example.com")
        done, sender = opening[0]
        done.callback(sender)  # a delivered, its record waits for the next dot on that slot
        replies["org"].callback((Outcome(1, OutcomeKind.DELIVERED, OK),))
        prepared[0].callback(())
        house.clock.advance(0)
        state = house.entry(name).state
        self.assertEqual(
            [r.status for r in state.recipients],
            [RecipientStatus.DELIVERED, RecipientStatus.DELIVERED, RecipientStatus.PENDING],
        )


class CutOffTests(SynchronousTestCase):
    """The tenure ends under a transfer, and the epoch stays ours: an address went for a moment, a
    reload's time to drain was over."""

    def test_what_the_peer_took_is_recorded(self):
        """A message was accepted by the peer, and the address goes before the next one's dot: the
        first is not sent again when it is back.
        """
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        first = bench.offer()
        bench.kind.senders[0].is_open = True
        bench.kind.on_prepare = lambda *a: Deferred()
        bench.spool.is_manual = True
        second, third = Deferred(), []
        bench.kind.on_prepare = lambda *a: succeed(())
        bench.kind.on_commit = lambda *a: second
        name = bench.offer()
        bench.spool.sync()  # its INTENT: the dot goes
        bench.kind.on_prepare = lambda *a: third.append(Deferred()) or third[-1]
        waiting = bench.offer()
        second.callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        self.assertEqual(len(third), 1)
        bench.dispatch.stop("the address went")
        bench.spool.sync()
        self.assertEqual(list(bench.spool.messages), [waiting])
        self.assertNotIn(first, bench.spool.messages)
        self.assertNotIn(name, bench.spool.messages)
        self.assertEqual(bench.spool.taken, set())

    def test_what_nobody_knows_is_in_doubt(self):
        """The dot went and the reply had not come when all was cut off: the message is in doubt,
        and waits its pause; with `in-doubt: hold` an operator decides.
        """
        for policy in (InDoubt.RESEND, InDoubt.HOLD):
            house = House(self, (replace(HUB, in_doubt=policy),))
            house.kind.on_commit = lambda *a: Deferred()
            name = house.accept("bob@example.com")
            house.dispatch.stop("the time to drain is over")
            self.assertEqual([d.queue_id for d in house.spool.in_doubt()], [name])
            self.assertEqual(house.store.intents, {})
            entry = house.entry(name)
            self.assertFalse(entry.active)
            self.assertEqual(entry.state.held, policy is InDoubt.HOLD)
            self.assertGreater(entry.state.due, house.clock.wall())

    def test_an_intent_without_a_dot_leaves_no_doubt(self):
        """INTENT was on its way to the disk when all was cut off: nothing was sent, nothing is in
        doubt, and the message is due at once.
        """
        bench = Bench()
        bench.spool.is_manual = True
        name = bench.offer()
        bench.dispatch.stop("the address went")
        bench.spool.sync()
        [(_, intents), (results, _)] = bench.spool.batches
        self.assertEqual([i.queue_id for i in intents], [name])
        self.assertEqual([(r.queue_id, r.not_sent) for r in results], [(name, True)])
        self.assertEqual(bench.spool.taken, set())
        self.assertEqual(bench.spool.doubts, ())

    def test_a_message_whose_record_is_under_way_is_nobody_elses(self):
        """Its outcome is on its way to the disk: no dispatch takes it before that is there."""
        bench = Bench()
        bench.spool.is_manual = True
        name = bench.offer()
        bench.spool.sync()
        self.assertEqual(bench.kind.delivered, [name])
        bench.dispatch.stop("the address went")
        bench.another().start()
        bench.spool.sync()
        bench.clock.advance(100.0)
        self.assertEqual(bench.kind.delivered, [name])
        self.assertEqual(bench.spool.messages, {})

    def test_the_association_is_closed(self):
        """Cut off between two messages, the association does not stay open with no owner."""
        bench = Bench()
        bench.kind.on_prepare = lambda *a: Deferred()
        bench.offer()
        bench.dispatch.drain(bench.clock.monotonic() + 30.0)
        bench.clock.advance(30.0)
        self.assertEqual([s.is_open for s in bench.kind.senders], [False])

    def test_a_drain_opens_nothing(self):
        """The peer hangs up while we drain: its message waits for whoever comes next."""
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        prepared = []
        bench.kind.on_prepare = lambda *a: prepared.append(Deferred()) or prepared[-1]
        name = bench.offer()
        done = bench.dispatch.drain(bench.clock.monotonic() + 30.0)
        bench.kind.senders[0].is_open = False
        prepared[0].errback(TransientFailure("421 good bye"))
        self.successResultOf(done)
        self.assertEqual(len(bench.kind.opened), 1)
        self.assertIn(name, bench.spool.messages)
        self.assertEqual(bench.spool.taken, set())


class BrokenPluginTests(SynchronousTestCase):
    """A plugin raises where it must not: it is named, and the mail waits."""

    def test_commit_raises(self):
        """Not a failed Deferred, an exception, when asked to send: the message is in doubt."""
        bench = Bench()

        def broken(*a):
            raise ZeroDivisionError("boom")

        bench.kind.on_commit = broken
        name = bench.offer()
        self.assertIn("boom", bench.notices()[0].text)
        self.assertTrue(bench.spool.batches[-1][0][0].unknown)
        self.assertNotIn(name, bench.spool.taken)
        self.assertEqual(bench.dispatch.snapshot()["active"], 0)

    def test_prepare_raises_ahead(self):
        """The next message's envelope breaks while the reply to the last is awaited: the last one
        is recorded as delivered, the next one waits.
        """
        bench = Bench(connectors=(replace(HUB, concurrency=1, bridgeheads=HUB.bridgeheads[:1]),))
        replies = []
        bench.kind.on_commit = lambda *a: replies.append(Deferred()) or replies[-1]
        first = bench.offer()
        second = bench.offer()
        third = bench.offer()

        def broken(sender, name, *a):
            if name == third:
                raise ZeroDivisionError("boom")
            return succeed(())

        bench.kind.on_prepare = broken
        replies[0].callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        replies[1].callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        self.assertEqual(list(bench.spool.messages), [third])
        self.assertEqual(bench.spool.taken, set())
        self.assertNotIn(first, bench.spool.messages)
        self.assertNotIn(second, bench.spool.messages)

    def test_routing_raises(self):
        """A routing plugin that breaks returns no mail and loses none: it is asked again later."""
        bench = Bench(connectors=(HUB,))

        def broken(*a):
            raise ZeroDivisionError("boom")

        route, bench.routing.route = bench.routing.route, broken
        name = bench.offer()
        queued = bench.queue("eve@example.com", "bob@example.org")
        bench.dispatch.pump()
        self.assertTrue(all("boom" in n.text for n in bench.notices()))
        self.assertEqual(sorted(bench.spool.messages), [name, queued])
        self.assertEqual(bench.spool.taken, set())
        bench.routing.route = route
        bench.clock.advance(400.0)
        self.assertEqual(sorted(bench.kind.delivered), [name, queued])

    def test_resolver_raises(self):
        """A resolver plugin that breaks: the message is not in somebody's hands for ever."""
        bench = Bench(connectors=(replace(HUB, bridgeheads=(Bridgehead("hub.example.com"),)),))

        def broken(name):
            raise ZeroDivisionError("boom")

        bench.resolver.addresses = broken
        name = bench.offer()
        self.assertIn("boom", bench.notices()[0].text)
        self.assertNotIn(name, bench.spool.taken)
        del bench.resolver.addresses
        bench.resolver.names["hub.example.com"] = ("192.0.2.20",)
        bench.clock.advance(301.0)
        self.assertEqual(bench.kind.delivered, [name])


class HeldInDoubtTests(SynchronousTestCase):
    def test_released_once(self):
        """Held as in doubt, then the node changes: an operator releases it once, and it goes, to
        the server first that may have it.
        """
        house = House(self, (replace(HUB, in_doubt=InDoubt.HOLD),))
        house.kind.on_commit = lambda *a: Deferred()
        name = house.accept("bob@example.com")
        house.spool.abandon()
        house.dispatch.stop("killed")
        house.takeover()
        self.assertTrue(house.entry(name).state.held)
        house.spool.abandon()
        house.dispatch.stop("killed")
        house.takeover()
        [doubt] = house.spool.in_doubt()
        self.assertEqual((doubt.queue_id, doubt.peer), (name, "192.0.2.20:25"))
        self.successResultOf(house.spool.act([name], QueueAct.RELEASE, house.clock.wall()))
        house.dispatch.retry_now([name])
        self.assertEqual(house.kind.delivered, [name])


class SuspendedTests(SynchronousTestCase):
    """The address goes and comes back under the same epoch, over the log on the forgetful disk."""

    def lab(self, policy="resend", **keys):
        more = CONFIGURATION[CONFIGURATION.index("connectors:") :].replace(
            "    kind: smtp", f"    in-doubt: {policy}\n    kind: smtp"
        )
        return Lab(spool="log", more=more, **keys)

    def test_in_the_middle_of_a_transfer(self):
        """The dot went, then the address: what may be there already is sent once more, after its
        pause; or not without an operator, where the connector says so.
        """
        for policy in ("resend", "hold"):
            lab = self.lab(policy)
            lab.hub.answer(".", SILENCE, times=1)
            lab.send()
            lab.owner.revoke()
            lab.owner.restore()
            lab.settle()
            (entry,) = lab.queue()
            self.assertEqual(entry.state.held, policy == "hold")
            self.assertFalse(entry.active)
            (doubt,) = (d for d in lab.owner.spool.in_doubt() if d.side == "outbound")
            self.assertEqual((doubt.queue_id, doubt.peer), (entry.queue_id, f"{HUB_HOST}:25"))
            lab.advance(400)
            self.assertEqual(len(lab.hub.messages), 1 if policy == "resend" else 0)
            if policy == "hold":
                spool = lab.owner.spool
                lab.wait(spool.act([entry.queue_id], QueueAct.RELEASE, lab.clock.wall()))
                lab.owner.tenant.retry_now([entry.queue_id])
                lab.settle()
            self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_twice_while_a_message_is_read(self):
        """The address goes again while a message that waits is being read from the disk: it is in
        nobody's hands then, and goes out when the address is back.
        """
        lab = self.lab()
        node = lab.owner
        lab.hub.answer("RCPT", SILENCE, times=1)
        lab.send()
        node.revoke()
        node.tenure = LabTenure(lab.config, node.spool, node.spool.epoch)
        starting = node.tenant.start(node.tenure)
        while not starting.called:
            self.assertTrue(node.executor.deliver() or node.executor.work())
        self.assertTrue(node.executor.calls)  # the read is under way
        node.revoke()
        node.restore()
        lab.advance(60)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_an_outcome_on_its_way_to_the_disk(self):
        """The peer took it; the record was not durable yet when the address flapped: it is not sent
        again.
        """
        lab = self.lab()
        node = lab.owner

        def taken(_content):
            node.is_frozen = True  # its disk stands still from the peer's reply on
            return b"250 2.0.0 Ok"

        lab.hub.answer(".", taken)
        lab.send()
        self.assertEqual(len(lab.hub.messages), 1)
        node.revoke()
        node.tenure = LabTenure(lab.config, node.spool, node.spool.epoch)
        starting = node.tenant.start(node.tenure)
        lab.settle()
        self.assertNoResult(starting)
        node.is_frozen = False
        lab.settle()
        self.successResultOf(starting)
        lab.advance(4000)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_held_message_over_everything(self):
        """A held message stays held over a suspension, a takeover with a power cut, and a reload."""
        lab = self.lab(nodes="ab")
        lab.hub.answer(".", b"451 4.3.0 Later")
        lab.send()
        (entry,) = lab.queue()
        lab.wait(lab.owner.spool.act([entry.queue_id], QueueAct.HOLD, lab.clock.wall()))
        lab.hub.mend()
        lab.owner.revoke()
        lab.owner.restore()
        lab.fail("a", to="b", power_cut=True)
        lab.owner.tenant.reconfigure(lab.config)
        lab.advance(86_400)
        (entry,) = lab.queue()
        self.assertTrue(entry.state.held)
        self.assertEqual(lab.hub.messages, [])


class ReloadTests(SynchronousTestCase):
    def test_time_over(self):
        """A peer is slow with its last reply when the configuration is reloaded: after the time for
        that the transfer is cut off, the message in doubt, and sent once more, later.
        """
        lab = Lab(spool="log")
        lab.hub.answer(".", SILENCE, times=1)
        lab.send()
        lab.owner.tenant.reconfigure(lab.config)
        lab.advance(31)
        (entry,) = lab.queue()
        self.assertGreater(entry.state.due, lab.clock.wall() + 100)
        dispatch = lab.owner.tenant._dispatch
        self.assertEqual(dispatch.snapshot()["in_doubt"], 1)
        lab.advance(400)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))
        self.assertEqual(dispatch.snapshot()["in_doubt"], 0)

    def test_connector_gone(self):
        """Mail waits for a connector that a reload takes away: it goes by the one that is left."""
        spare = (
            "  - name: spare\n    kind: smtp\n    bridgeheads: ['203.0.113.99:25']\n"
            "    address-spaces: [{domain: example.com, cost: 1}]\n"
        )
        whole = CONFIGURATION[CONFIGURATION.index("connectors:") :]
        lab = Lab(spool="log", more=whole.replace("connectors:\n", "connectors:\n" + spare))
        listening = lab.network.listening.pop((HUB_HOST, 25))
        lab.send()
        self.assertEqual(len(lab.queue()), 1)
        lab.network.listening[HUB_HOST, 25] = listening
        lab.owner.tenant.reconfigure(Lab().config)
        lab.advance(400)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))


class MemoryTests(SynchronousTestCase):
    def test_domains_of_a_busy_connector(self):
        """A connector that carries mail for ever more domains does not remember all of them."""
        bench = Bench()
        self.patch(standing, "MOST_DOMAINS", 5)
        for number in range(50):
            bench.offer(f"bob@d{number}.example.com")
        [seen] = bench.dispatch._standing._domains.values()
        self.assertLessEqual(len(seen), 5)
        self.assertEqual(len(bench.kind.delivered), 50)
