"""The queue's moving part: what is offered goes out, what fails comes back, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Fenced, TenureRevoked, TransientFailure, Unavailable
from mta.model import (
    AddressSpace,
    Bridgehead,
    Connector,
    Doubt,
    InDoubt,
    MailHost,
    Outcome,
    OutcomeKind,
    RecipientStatus,
    Reply,
    fresh_state,
)
from mta.telemetry import Removed, Transferred
from mta.transfer.settings import QueueSettings
from tests.transfer_bench import HUB, LATER, OK, Bench


def outcomes(kind, reply, recipients):
    return succeed(tuple(Outcome(i, kind, reply) for i in recipients))


class HotPathTests(SynchronousTestCase):
    def test_relayed_at_once(self):
        """A message just accepted goes out at once, from memory, and leaves the queue."""
        bench = Bench()
        name = bench.offer()
        self.assertEqual(bench.kind.delivered, [name])
        self.assertEqual(bench.spool.messages, {})
        self.assertIn(Removed(name), bench.events)
        [event] = bench.transferred()
        self.assertEqual((event.status, event.enhanced, event.connector), ("sent", "2.0.0", "hub"))
        self.assertEqual(event.relay, "192.0.2.20[192.0.2.20]:25")
        self.assertEqual(event.vip, "192.0.2.10")
        self.assertEqual(bench.dispatch.snapshot()["active"], 0)
        counter = bench.telemetry.counter("mta_deliveries_total", connector="hub", result="sent")
        self.assertEqual(counter.value, 1)

    def test_association_reused(self):
        """The next message goes over the association that is open already."""
        bench = Bench()
        for _ in range(5):
            bench.offer()
        self.assertEqual(len(bench.kind.senders), 1)
        self.assertEqual(len(bench.kind.delivered), 5)

    def test_idle_association_is_closed(self):
        """An association without work is closed in order, and not before its time."""
        bench = Bench()
        bench.offer()
        bench.clock.advance(4.9)
        self.assertTrue(bench.kind.senders[0].is_open)
        for _ in range(4):
            bench.clock.advance(1.0)
        self.assertFalse(bench.kind.senders[0].is_open)
        self.assertEqual(bench.dispatch.snapshot()["associations"], 0)
        self.assertEqual(bench.dispatch.snapshot()["destinations"], [])

    def test_a_closed_idle_association_costs_nothing(self):
        """The peer closed an idle association: the next message opens another."""
        bench = Bench()
        bench.offer()
        bench.kind.senders[0].is_open = False
        name = bench.offer()
        self.assertEqual(len(bench.kind.senders), 2)
        self.assertIn(name, bench.kind.delivered)

    def test_concurrency_is_kept(self):
        """A connector never has more associations than its concurrency."""
        bench = Bench()
        replies = []
        bench.kind.on_commit = lambda *a: replies.append((Deferred(), a)) or replies[-1][0]
        for _ in range(10):
            bench.offer()
        self.assertEqual(len(bench.kind.senders), 2)
        while replies:
            done, (_, name, _, recipients) = replies.pop()
            bench.kind.delivered.append(name)
            done.callback(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))
        self.assertEqual(len(bench.kind.delivered), 10)
        self.assertEqual(len(bench.kind.senders), 2)

    def test_messages_per_association(self):
        """After its share of messages an association is closed and another opened."""
        bench = Bench(settings=QueueSettings(messages_per_association=2))
        for _ in range(5):
            bench.offer()
        self.assertEqual([s.carried for s in bench.kind.senders], [2, 2, 1])


class EndTests(SynchronousTestCase):
    def test_stopped_while_it_starts_agents(self):
        """An agent finds in its first step that the tenure is over, which stops the dispatch: no
        further agent is started, though messages wait.
        """
        bench = Bench(connectors=(replace(HUB, concurrency=1),))
        opening = Deferred()
        bench.kind.on_open = lambda sender: opening
        for _ in range(3):
            bench.offer()

        def revoked(sender):
            bench.dispatch.stop("superseded")
            return fail(TenureRevoked("the tenure is over"))

        bench.kind.on_open = revoked
        opening.errback(TenureRevoked("the tenure is over"))
        self.assertEqual(len(bench.kind.senders), 2)
        self.assertEqual(bench.dispatch.snapshot()["active"], 0)


class JournalTests(SynchronousTestCase):
    def test_intent_before_the_dot(self):
        """No final dot goes before the intent to send it is on disk."""
        bench = Bench()
        bench.spool.is_manual = True
        bench.offer()
        self.assertEqual(bench.kind.delivered, [])
        bench.spool.sync()
        self.assertEqual(len(bench.kind.delivered), 1)

    def test_result_before_the_next_dot(self):
        """The outcome of one message is durable before the next one's dot, in the same batch as
        the next one's intent."""
        bench = Bench(connectors=(replace(HUB, concurrency=1),))
        replies = []
        bench.kind.on_commit = lambda *a: replies.append((Deferred(), a)) or replies[-1][0]
        names = [bench.offer() for _ in range(3)]
        for _ in range(3):
            done, (_, _, _, recipients) = replies.pop()
            done.callback(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))
        self.assertEqual(
            [
                ([r.queue_id for r in results], [i.queue_id for i in intents])
                for results, intents in bench.spool.batches
            ],
            [([], names[:1]), (names[:1], names[1:2]), (names[1:2], names[2:]), (names[2:], [])],
        )

    def test_overlap(self):
        """The next message's envelope goes while the last one's reply is awaited, where it can."""
        for can_overlap, expected in ((True, 2), (False, 1)):
            bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=can_overlap)
            bench.kind.on_commit = lambda *a: Deferred()
            bench.spool.is_manual = True
            bench.offer()
            bench.offer()
            bench.spool.sync()
            prepared = [entry for entry in bench.kind.log if entry[0] == "prepare"]
            self.assertEqual(len(prepared), expected)

    def test_spool_unavailable_before_the_dot(self):
        """When the intent cannot be recorded nothing is sent, and the message stays."""
        bench = Bench()
        bench.spool.journal_faults = [Unavailable("disk", "busy")]
        name = bench.offer()
        self.assertEqual(bench.kind.delivered, [])
        self.assertIn(("withdraw", "smtp/out/1", name), bench.kind.log)
        self.assertIn(name, bench.spool.messages)
        self.assertNotIn(name, bench.spool.taken)
        self.assertTrue(bench.notices())
        bench.clock.advance(61)
        self.assertEqual(bench.kind.delivered, [name])

    def test_spool_unavailable_after_the_reply(self):
        """An outcome that cannot be recorded is tried again until it is: it is not sent twice."""
        bench = Bench()
        bench.spool.journal_faults = [None, Unavailable("disk"), Unavailable("disk")]
        name = bench.offer()
        self.assertIn(name, bench.spool.messages)
        bench.offer()
        self.assertEqual(bench.kind.delivered, [name])
        bench.clock.advance(1.0)
        bench.clock.advance(2.0)
        self.assertEqual(len(bench.kind.delivered), 2)
        self.assertEqual(bench.spool.messages, {})

    def test_fenced(self):
        """A newer owner exists: everything stops, nothing is sent."""
        bench = Bench()
        bench.spool.journal_faults = [Fenced("epoch 1 is superseded")]
        bench.offer()
        self.assertEqual(bench.kind.delivered, [])
        self.assertFalse(bench.dispatch.snapshot()["running"])
        bench.offer()
        self.assertEqual(len(bench.kind.opened), 1)

    def test_crash_sends_the_in_doubt_message_to_the_same_peer(self):
        """What may have been delivered is offered first to the server that may have it."""
        bench = Bench(start=False)
        name = bench.queue()
        bench.spool.doubts = (Doubt("outbound", name, "smtp/out/9", "192.0.2.21:25", (0,), 1),)
        bench.dispatch.start()
        self.assertEqual(bench.kind.opened, ["192.0.2.21:25"])
        self.assertEqual(bench.kind.delivered, [name])

    def test_in_doubt_hold(self):
        """`in-doubt: hold`: an operator decides; released, it is sent."""
        bench = Bench(connectors=(replace(HUB, in_doubt=InDoubt.HOLD),), start=False)
        name = bench.queue()
        bench.spool.doubts = (Doubt("outbound", name, "smtp/out/9", "192.0.2.21:25", (0,), 1),)
        bench.dispatch.start()
        self.assertEqual(bench.kind.opened, [])
        envelope, state = bench.spool.messages[name]
        self.assertTrue(state.held)
        bench.spool.messages[name] = (envelope, replace(state, held=False))
        bench.dispatch.retry_now([name])
        self.assertEqual(bench.kind.delivered, [name])


class HardDetail13RecipientTests(SynchronousTestCase):
    """Hard detail 13: several recipients, several fates."""

    def test_only_deferred_recipients_are_retried(self):
        """Of several recipients only those that were deferred are tried again."""
        bench = Bench()
        bench.kind.on_prepare = lambda s, n, e, r: succeed(
            (Outcome(1, OutcomeKind.DEFERRED, LATER),) if 1 in r else ()
        )
        name = bench.offer("a@example.com", "b@example.com", "c@example.com")
        state = bench.spool.messages[name][1]
        self.assertEqual(
            [r.status for r in state.recipients],
            [RecipientStatus.DELIVERED, RecipientStatus.PENDING, RecipientStatus.DELIVERED],
        )
        seen = []
        bench.kind.on_prepare = lambda s, n, e, r: seen.append(r) or succeed(())
        bench.clock.advance(301.0)
        self.assertEqual(seen, [(1,)])
        self.assertEqual(bench.spool.messages, {})

    def test_too_many_recipients(self):
        """452 too many recipients: the rest goes in the next transaction at once."""
        bench = Bench()
        bench.kind.on_prepare = lambda s, n, e, r: succeed(
            tuple(Outcome(i, OutcomeKind.DEFERRED, LATER, next_transfer=True) for i in r[2:])
        )
        bench.offer(*(f"u{i}@example.com" for i in range(5)))
        self.assertEqual(bench.spool.messages, {})
        self.assertEqual([e.status for e in bench.transferred()], ["sent"] * 5)
        self.assertEqual(len(bench.kind.senders), 1)


class OutcomeTests(SynchronousTestCase):
    def test_deferred_and_retried(self):
        """A transient refusal is tried again after the first pause, then the second."""
        bench = Bench()
        bench.kind.on_commit = lambda s, n, e, r: outcomes(OutcomeKind.DEFERRED, LATER, r)
        name = bench.offer()
        [event] = bench.transferred()
        self.assertEqual(event.status, "deferred")
        self.assertAlmostEqual(event.retry_in_seconds, 300.0)
        bench.clock.advance(299.9)
        self.assertEqual(len(bench.transferred()), 1)
        bench.clock.advance(0.2)
        self.assertEqual(len(bench.transferred()), 2)
        self.assertEqual(bench.spool.messages[name][1].attempts, 2)
        del bench.kind.on_commit
        bench.clock.advance(590.0)
        self.assertEqual(bench.kind.delivered, [])
        bench.clock.advance(20.0)
        self.assertEqual(bench.kind.delivered, [name])

    def test_unknown(self):
        """The dot went, the reply did not come: no other server is asked in this attempt, and the
        same one is asked first the next time."""
        bench = Bench()
        lost = Reply(451, "4.4.2", (b"connection lost",))

        def lose(sender, name, envelope, recipients):
            sender.is_open = False
            return outcomes(OutcomeKind.UNKNOWN, lost, recipients)

        bench.kind.on_commit = lose
        name = bench.offer()
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25"])
        self.assertTrue(bench.spool.batches[-1][0][0].unknown)
        del bench.kind.on_commit
        bench.clock.advance(301.0)
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25"] * 2)
        self.assertEqual(bench.kind.delivered, [name])

    def test_association_kind_that_forgets_a_recipient(self):
        """A kind that does not answer for a recipient leaves it in doubt, not lost."""
        bench = Bench()
        bench.kind.on_commit = lambda s, n, e, r: succeed((Outcome(0, OutcomeKind.DELIVERED, OK),))
        name = bench.offer("a@example.com", "b@example.com")
        self.assertEqual(bench.spool.messages[name][1].pending, (1,))
        self.assertTrue(bench.spool.batches[-1][0][0].unknown)

    def test_broken_kind(self):
        """A plugin that raises after the dot leaves the message in doubt, and is named."""
        bench = Bench()
        bench.kind.on_commit = lambda *a: fail(ZeroDivisionError("boom"))
        name = bench.offer()
        self.assertIn(name, bench.spool.messages)
        self.assertIn("boom", bench.notices()[0].text)

    def test_lost_between_messages(self):
        """An association that dies before content was let go costs its message nothing."""
        bench = Bench()
        bench.offer()
        first = bench.kind.senders[0]

        def die(sender, name, envelope, recipients):
            if sender is first:
                sender.is_open = False
                return fail(TransientFailure("connection lost"))
            return succeed(())

        bench.kind.on_prepare = die
        name = bench.offer()
        self.assertIn(name, bench.kind.delivered)
        self.assertEqual(len(bench.transferred(name)), 1)


class FailoverTests(SynchronousTestCase):
    def test_next_bridgehead(self):
        """When the first bridgehead does not answer the next one is asked in the same attempt."""
        bench = Bench()
        bench.kind.unreachable = {"192.0.2.20"}
        name = bench.offer()
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25", "192.0.2.21:25"])
        self.assertEqual(bench.kind.delivered, [name])

    def test_a_silent_bridgehead_is_asked_last_for_a_while(self):
        """A bridgehead that failed a moment ago does not slow down the next association."""
        bench = Bench(settings=QueueSettings(messages_per_association=1))
        bench.kind.unreachable = {"192.0.2.20"}
        bench.offer()
        bench.offer()
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25", "192.0.2.21:25", "192.0.2.21:25"])

    def test_who_tried_in_vain(self):
        """A server that cannot be reached: the line is one of the kind that tried, as Postfix's is,
        and exporters count it; only what nobody tried is told by `error`.
        """
        bench = Bench()
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        bench.offer()
        [told] = [e for e in bench.events if isinstance(e, Transferred)]
        self.assertEqual((told.kind, told.status), ("smtp", "deferred"))

    def test_refused_at_mail(self):
        """A server that drops us before the dot: the next one is asked with the same message."""
        bench = Bench()

        def drop(sender, name, envelope, recipients):
            if sender.hop.host == "192.0.2.20":
                sender.is_open = False
                return fail(TransientFailure("421 shutting down", code=421, enhanced="4.3.2"))
            return succeed(())

        bench.kind.on_prepare = drop
        name = bench.offer()
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25", "192.0.2.21:25"])
        self.assertEqual(bench.kind.delivered, [name])

    def test_next_connector(self):
        """When no bridgehead of a connector answers, the next connector takes the message."""
        backup = Connector(
            "spare",
            "smtp",
            (AddressSpace(b"*", 20),),
            bridgeheads=(Bridgehead("192.0.2.30", 2525),),
        )
        bench = Bench(connectors=(HUB, backup))
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        bench.offer()
        self.assertEqual(bench.kind.opened, ["192.0.2.20:25", "192.0.2.21:25", "192.0.2.30:2525"])
        self.assertEqual(bench.transferred()[0].connector, "spare")

    def test_dead_destination_is_not_hammered(self):
        """A destination that does not answer is tried with one message; the others wait."""
        bench = Bench(start=False)
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        names = [bench.queue() for _ in range(50)]
        bench.dispatch.start()
        self.assertLessEqual(len(bench.kind.opened), 4)
        attempted = {e.queue_id for e in bench.transferred()}
        self.assertLessEqual(len(attempted), 2)
        self.assertEqual(bench.spool.taken, set())
        before = len(bench.kind.opened)
        bench.clock.advance(20.0)
        self.assertEqual(len(bench.kind.opened), before)
        for _ in range(30):
            bench.clock.advance(1.0)
        probes = len(bench.kind.opened) - before
        self.assertTrue(2 <= probes <= 4, probes)
        bench.kind.unreachable = set()
        for _ in range(90):
            bench.clock.advance(5.0)
        self.assertEqual(sorted(bench.kind.delivered), sorted(names))

    def test_connector_down_is_told_to_routing(self):
        """After repeated failures routing prefers an equal connector that is up, and tries the
        other one again later."""
        other = Connector(
            "zone",
            "smtp",
            (AddressSpace(b"*", 10),),
            bridgeheads=(Bridgehead("192.0.2.30"),),
        )
        bench = Bench(connectors=(HUB, other))
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21", "192.0.2.30"}
        bench.offer()
        for _ in range(200):
            bench.clock.advance(5.0)
            if bench.dispatch.snapshot()["down"]:
                break
        self.assertEqual(bench.dispatch.snapshot()["down"], ["hub"])
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        bench.offer()
        self.assertEqual(bench.transferred()[-1].connector, "zone")
        self.assertNotEqual(bench.kind.opened[-2], "192.0.2.21:25")
        bench.kind.unreachable = set()
        for _ in range(700):
            bench.clock.advance(5.0)
        self.assertEqual(bench.dispatch.snapshot()["down"], [])
        bench.offer()
        self.assertEqual(bench.transferred()[-1].connector, "hub")


class MxTests(SynchronousTestCase):
    MX = Connector("internet", "smtp", (AddressSpace(b"*"),), by_mx=True, concurrency=2)

    def hosts(self, *entries):
        from ipaddress import ip_address

        return [MailHost(name, pref, (ip_address(ip),)) for name, pref, ip in entries]

    def test_in_order(self):
        """Mail exchangers are asked in order of preference, all of them before it is deferred."""
        bench = Bench(connectors=(self.MX,))
        bench.resolver.mx[b"example.com"] = self.hosts(
            ("mx1.example.com", 10, "198.51.100.1"), ("mx2.example.com", 20, "198.51.100.2")
        )
        bench.kind.unreachable = {"198.51.100.1"}
        bench.offer()
        self.assertEqual(bench.kind.opened, ["198.51.100.1:25", "198.51.100.2:25"])
        self.assertEqual(bench.transferred()[0].relay, "mx2.example.com[198.51.100.2]:25")

    def test_we_are_one_of_them(self):
        """Our own virtual address among the mail exchangers: only preferred ones are asked."""
        bench = Bench(connectors=(self.MX,), ourselves=frozenset({("192.0.2.10", 25)}))
        bench.resolver.mx[b"example.com"] = self.hosts(
            ("mx1", 10, "198.51.100.1"), ("us", 20, "192.0.2.10"), ("mx3", 20, "198.51.100.3")
        )
        bench.kind.unreachable = {"198.51.100.1"}
        bench.offer()
        self.assertEqual(bench.kind.opened, ["198.51.100.1:25"])
        self.assertEqual(bench.transferred()[0].status, "deferred")

    def test_no_answer(self):
        """A resolver without an answer defers."""
        bench = Bench(connectors=(self.MX,))
        bench.offer()
        [event] = bench.transferred()
        self.assertEqual((event.status, event.enhanced), ("deferred", "4.4.3"))

    def test_address_literal(self):
        """user@[192.0.2.99] goes to that address."""
        bench = Bench(connectors=(self.MX,))
        bench.offer("bob@[192.0.2.99]")
        self.assertEqual(bench.kind.opened, ["192.0.2.99:25"])


class BoundsTests(SynchronousTestCase):
    def test_active_limit(self):
        """More messages than may be in work wait in the spool, and all of them go in the end."""
        bench = Bench(settings=QueueSettings(active_limit=3), start=False)
        names = [bench.queue() for _ in range(20)]
        replies = []
        bench.kind.on_commit = lambda *a: replies.append((Deferred(), a)) or replies[-1][0]
        bench.dispatch.start()
        most = 0
        for _ in range(200):
            most = max(most, bench.dispatch.snapshot()["active"])
            if replies:
                done, (_, name, _, recipients) = replies.pop()
                bench.kind.delivered.append(name)
                done.callback(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))
            bench.clock.advance(0.1)
        self.assertLessEqual(most, 3)
        self.assertEqual(sorted(bench.kind.delivered), sorted(names))

    def test_a_full_destination_makes_room_for_what_is_urgent(self):
        """Behind a slow destination urgent mail goes next, though the lane was full when it came;
        what gave way waits in the spool and goes too.
        """
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        replies = []
        bench.kind.on_commit = lambda *a: replies.append((Deferred(), a)) or replies[-1][0]
        limit = bench.dispatch._lane_limit
        low = [bench.offer(priority=-4) for _ in range(limit + 1)]  # one is being sent
        urgent, normal = bench.offer(priority=9), bench.offer()
        worst = bench.offer(priority=-9)
        self.assertEqual(bench.dispatch.snapshot()["destinations"][0]["queued"], limit)
        order = []
        for _ in range(len(low) + 3):
            [(done, (_, name, _, recipients))] = replies
            replies.clear()
            order.append(name)
            done.callback(tuple(Outcome(i, OutcomeKind.DELIVERED, OK) for i in recipients))
            bench.clock.advance(0.1)
        self.assertEqual(order[:3], [low[0], urgent, normal])
        self.assertEqual(sorted(order), sorted([*low, urgent, normal, worst]))
        self.assertGreater(order.index(worst), limit)

    def test_held_and_deferred_until(self):
        """A held message is not sent; a message for later is sent when its time has come."""
        bench = Bench()
        envelope = bench.envelope("bob@example.com")
        held = replace(fresh_state(envelope), held=True)
        name = bench.spool.put(envelope, taken=True, state=held)
        bench.dispatch.offer(name, envelope, held)
        later = bench.offer(deferred_until=bench.clock.wall() + 100.0)
        self.assertEqual(bench.kind.delivered, [])
        bench.clock.advance(101.0)
        self.assertEqual(bench.kind.delivered, [later])

    def test_operator_forgets(self):
        """A message that was deleted or held while it waited is not sent."""
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        replies = []
        bench.kind.on_commit = lambda *a: replies.append(Deferred()) or replies[-1]
        bench.offer()
        second = bench.offer()
        bench.dispatch.forget([second])
        replies[0].callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        self.assertEqual(len(replies), 1)
        self.assertEqual(bench.dispatch.snapshot()["active"], 0)

    def test_drain(self):
        """Draining finishes what is being sent, begins nothing, and leaves the rest in the spool."""
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        replies = []
        bench.kind.on_commit = lambda *a: replies.append(Deferred()) or replies[-1]
        bench.offer()
        second = bench.offer()
        done = bench.dispatch.drain(bench.clock.monotonic() + 30)
        self.assertNoResult(done)
        replies[0].callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        self.successResultOf(done)
        self.assertEqual(len(replies), 1)
        self.assertEqual(list(bench.spool.messages), [second])
        self.assertEqual(bench.spool.taken, set())
        self.assertFalse(bench.kind.senders[0].is_open)

    def test_drain_deadline(self):
        """At the deadline what is still open is cut off, and its message stays."""
        bench = Bench()
        bench.kind.on_commit = lambda *a: Deferred()
        name = bench.offer()
        done = bench.dispatch.drain(bench.clock.monotonic() + 30)
        bench.clock.advance(30)
        self.successResultOf(done)
        self.assertIn(name, bench.spool.messages)

    def test_cancelled_at_every_await(self):
        """Whenever the tenure ends, nothing is lost, nothing hangs and nothing complains."""
        stuck = Deferred
        for stage in ("open", "prepare", "journal", "commit", "idle", "close"):
            bench = Bench()
            if stage == "open":
                bench.kind.on_open = lambda s: stuck()
            if stage == "prepare":
                bench.kind.on_prepare = lambda *a: stuck()
            if stage == "commit":
                bench.kind.on_commit = lambda *a: stuck()
            if stage == "journal":
                bench.spool.is_manual = True
            bench.offer()
            bench.offer()
            bench.offer()
            bench.dispatch.stop("the address went")
            self.assertEqual(bench.dispatch.snapshot()["active"], 0, stage)
            self.assertEqual(bench.spool.taken, set(), stage)
            self.assertEqual([n for n in bench.notices() if n.level == "critical"], [], stage)
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_no_timer_left(self):
        """After a stop nothing is scheduled any more."""
        bench = Bench()
        bench.offer()
        bench.dispatch.stop("test")
        self.assertEqual(bench.clock.reactor.getDelayedCalls(), [])
