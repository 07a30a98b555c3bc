"""An INTENT that rides on its message's accept batch: when it may, and what answers it if it must."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Corrupt, Fenced, TransientFailure, Unfit
from mta.model import (
    AddressSpace,
    InDoubt,
    Outcome,
    OutcomeKind,
    Reply,
    fresh_state,
)
from mta.telemetry import Removed
from tests.transfer_bench import HUB, Bench

ONE = replace(HUB, concurrency=1)
SLOT = "smtp/out/1"


class Riding(SynchronousTestCase):
    """One association is open and idle: it has carried a message."""

    def setUp(self):
        self.bench = bench = Bench(connectors=(ONE,))
        self.first = bench.offer()
        bench.spool.batches.clear()
        bench.spool.log.clear()

    def reserve(self, *recipients, **changes):
        """A message about to be committed, and what was kept for it."""
        bench = self.bench
        envelope = bench.envelope(*(recipients or ("bob@example.com",)), **changes)
        name = bench.spool.put(envelope, taken=True)
        state = fresh_state(envelope)
        return name, envelope, state, bench.dispatch.reserve(name, envelope, state)

    def offer(self, name, envelope, state, reservation, *, dispatch=None):
        (dispatch or self.bench.dispatch).offer(name, envelope, state, reservation)

    def not_sent(self):
        """(queue id, slot) of each RESULT that says so."""
        results = [r for results, _ in self.bench.spool.batches for r in results]
        return [(r.queue_id, r.slot) for r in results if r.not_sent]

    def intents(self):
        """(queue id, slot) of what was journalled apart from an accept."""
        intents = [i for _, intents in self.bench.spool.batches for i in intents]
        return [(i.queue_id, i.slot) for i in intents]


class RideTests(Riding):
    def test_it_rides(self):
        """No batch lies between the message's own and its dot; RESULT comes behind it."""
        name, *rest, reservation = self.reserve()
        intent = reservation.intent
        self.assertEqual((intent.queue_id, intent.slot), (name, SLOT))
        self.assertEqual((intent.recipients, intent.peer), ((0,), "192.0.2.20:25"))
        self.offer(name, *rest, reservation)
        self.assertEqual(self.bench.kind.delivered, [self.first, name])
        self.assertEqual(self.bench.spool.log, [("commit", name), ("result", name)])
        [([result], intents)] = self.bench.spool.batches
        self.assertEqual((result.slot, result.not_sent, intents), (SLOT, False, ()))
        self.assertEqual(self.bench.dispatch.snapshot()["active"], 0)

    def test_one_after_the_other(self):
        """The association is idle again behind each of them."""
        for _ in range(5):
            self.offer(*self.reserve())
        self.assertEqual(len(self.bench.kind.senders), 1)
        self.assertEqual(len(self.bench.kind.delivered), 6)
        self.assertEqual(self.intents(), [])

    def test_kept_for_one(self):
        """A second message does not get it, and nobody closes it for having been idle."""
        first = self.reserve()
        second = self.reserve()
        self.assertIsNone(second[-1])
        self.bench.clock.advance(60)
        self.assertTrue(self.bench.kind.senders[0].is_open)
        self.offer(*second)
        self.assertEqual(self.bench.kind.delivered, [self.first])
        self.offer(*first)
        self.assertEqual(self.bench.kind.delivered, [self.first, first[0], second[0]])

    def test_the_result_before_it_comes_first(self):
        """No dot goes before the RESULT of the message before it is durable."""
        bench = self.bench
        bench.spool.is_manual = True
        second = bench.offer()
        bench.spool.sync()
        self.assertEqual(bench.kind.delivered, [self.first, second])
        third, *rest, reservation = self.reserve()
        self.assertIsNotNone(reservation)
        self.offer(third, *rest, reservation)
        self.assertNotIn(third, bench.kind.delivered)
        bench.spool.sync()
        self.assertEqual(bench.kind.delivered, [self.first, second, third])

    def test_who_has_to_go_the_long_way(self):
        """What waits for others, may have to be held, or goes to more than one destination."""
        bench = self.bench
        late = bench.clock.wall() + 60
        self.assertIsNone(self.reserve(deliver_by=object())[-1])
        envelope = bench.envelope("bob@example.com")
        for changes in ({"held": True}, {"due": late}):
            state = replace(fresh_state(envelope), **changes)
            self.assertIsNone(bench.dispatch.reserve("00010000000FF1", envelope, state))
        self.assertIsNotNone(
            bench.dispatch.reserve("00010000000FF1", envelope, fresh_state(envelope))
        )

    def test_two_destinations(self):
        other = replace(
            HUB, name="other", address_spaces=(AddressSpace(b"other.example", 1),), concurrency=1
        )
        bench = Bench(connectors=(ONE, other))
        bench.offer("bob@example.com")
        bench.offer("bob@other.example")
        envelope = bench.envelope("bob@example.com", "eve@other.example")
        self.assertIsNone(bench.dispatch.reserve("00010000000FF1", envelope, fresh_state(envelope)))

    def test_a_connector_that_holds_what_is_in_doubt(self):
        """An INTENT that is never let go would hold mail for nothing."""
        bench = Bench(connectors=(replace(ONE, in_doubt=InDoubt.HOLD),))
        bench.offer()
        envelope = bench.envelope("bob@example.com")
        state = fresh_state(envelope)
        self.assertIsNone(bench.dispatch.reserve("00010000000FF1", envelope, state))

    def test_no_idle_association(self):
        bench = Bench()
        envelope = bench.envelope("bob@example.com")
        state = fresh_state(envelope)
        self.assertIsNone(bench.dispatch.reserve("00010000000FF1", envelope, state))


class GivenBackTests(Riding):
    def test_not_durable(self):
        """The commit failed: RESULT(not sent), and the association is idle again."""
        name, *_, reservation = self.reserve()
        reservation.give_back()
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual([e for e in self.bench.events if e == Removed(name)], [])
        second = self.reserve()
        self.offer(*second)
        self.assertEqual(self.bench.kind.delivered, [self.first, second[0]])
        self.assertEqual(len(self.bench.kind.senders), 1)

    def test_others_waited_meanwhile(self):
        """It goes on with what was queued while it was kept."""
        *_, reservation = self.reserve()
        waiting = self.bench.offer()
        reservation.give_back()
        self.assertEqual(self.bench.kind.delivered, [self.first, waiting])

    def test_the_peer_has_gone(self):
        """The message goes over another association, with an INTENT of its own."""
        name, *rest, reservation = self.reserve()
        self.bench.kind.senders[0].is_open = False
        self.offer(name, *rest, reservation)
        self.assertEqual(self.bench.kind.delivered, [self.first, name])
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual(self.intents(), [(name, "smtp/out/2")])

    def test_the_peer_goes_before_the_dot(self):
        """Refused before content was let go: answered here, and the next server is asked."""
        bench = self.bench
        gone = TransientFailure("the server closed the association", enhanced="4.4.2")

        def prepare(sender, *_):
            if sender.slot == SLOT:
                sender.is_open = False
                return fail(gone)
            return succeed(())

        bench.kind.on_prepare = prepare
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        self.assertEqual(bench.kind.delivered, [self.first, name])
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual(self.intents(), [(name, "smtp/out/2")])
        order = [what for what, *_ in bench.spool.log]
        self.assertEqual(order, ["result", "intent", "commit", "result"])

    def test_unfit(self):
        """The server cannot take it: the next one of the same attempt can."""
        self.bench.kind.on_prepare = lambda sender, *_: (
            fail(Unfit("no SMTPUTF8 here")) if sender.slot == SLOT else succeed(())
        )
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        self.assertEqual(self.bench.kind.delivered, [self.first, name])
        self.assertEqual(self.not_sent(), [(name, SLOT)])

    def test_unreadable(self):
        """Its content cannot be read: it waits, and is not in doubt."""
        name, *rest, reservation = self.reserve()
        self.bench.spool.content = lambda name: fail(Corrupt("seg/1 offset 2: the crc is wrong"))
        self.offer(name, *rest, reservation)
        self.bench.clock.advance(10)
        self.assertEqual(self.bench.kind.delivered, [self.first])
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertIn(name, self.bench.spool.messages)

    def test_deleted(self):
        """An operator deletes it in the moment in which it would be sent."""
        name, *rest, reservation = self.reserve()
        del self.bench.spool.texts[name]
        self.offer(name, *rest, reservation)
        self.assertEqual(self.bench.kind.delivered, [self.first])
        self.bench.clock.advance(10)
        self.assertEqual(self.not_sent(), [(name, SLOT)])

    def test_all_refused(self):
        """Nobody is left for the dot: the outcome answers the INTENT."""
        refused = Outcome(0, OutcomeKind.FAILED, Reply(550, "5.1.1", (b"nobody",)))
        self.bench.kind.on_prepare = lambda *a: succeed((refused,))
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        [(results, intents)] = self.bench.spool.batches
        self.assertEqual([(r.queue_id, r.slot, r.not_sent) for r in results], [(name, SLOT, False)])
        self.assertEqual(intents, ())

    def test_some_go_later(self):
        """Those that the server takes no more of have an INTENT of their own."""
        later = Outcome(
            1, OutcomeKind.DEFERRED, Reply(452, "4.5.3", (b"many",)), next_transfer=True
        )
        asked = []

        def prepare(sender, queue_id, envelope, recipients):
            asked.append(recipients)
            return succeed((later,) if len(recipients) == 2 else ())

        self.bench.kind.on_prepare = prepare
        name, *rest, reservation = self.reserve("bob@example.com", "eve@example.com")
        self.assertEqual(reservation.intent.recipients, (0, 1))
        self.offer(name, *rest, reservation)
        self.assertEqual(asked, [(0, 1), (1,)])
        self.assertEqual(self.intents(), [(name, SLOT)])
        self.assertNotIn(name, self.bench.spool.messages)

    def test_another_dispatch(self):
        """The configuration was read anew while it was committed."""
        name, *rest, reservation = self.reserve()
        second = self.bench.another()
        second.start()
        drained = self.bench.dispatch.drain(self.bench.clock.monotonic() + 30)
        self.assertNoResult(drained)
        self.offer(name, *rest, reservation, dispatch=second)
        self.assertEqual(self.bench.kind.delivered, [self.first, name])
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.successResultOf(drained)
        self.assertFalse(self.bench.kind.senders[0].is_open)


class EndTests(Riding):
    def test_drained_meanwhile(self):
        """Nothing is begun: the message is in the spool, and not in doubt."""
        name, *rest, reservation = self.reserve()
        drained = self.bench.dispatch.drain(self.bench.clock.monotonic() + 30)
        self.offer(name, *rest, reservation)
        self.successResultOf(drained)
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual(self.bench.spool.taken, set())

    def test_stopped_meanwhile(self):
        name, *rest, reservation = self.reserve()
        self.bench.dispatch.stop("the address went")
        self.offer(name, *rest, reservation)
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual(self.bench.spool.taken, set())
        self.assertEqual(self.bench.dispatch.snapshot()["active"], 0)

    def test_stopped_before_the_dot(self):
        """A server had been told of it: it was not let go, and says so."""
        self.bench.kind.on_prepare = lambda *a: Deferred()
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        self.bench.dispatch.stop("the address went")
        self.assertEqual(self.not_sent(), [(name, SLOT)])
        self.assertEqual(self.bench.spool.taken, set())
        self.assertEqual([e for e in self.bench.events if e == Removed(name)], [])

    def test_stopped_behind_the_dot(self):
        """It was let go and nobody answered: that is in doubt."""
        self.bench.kind.on_commit = lambda *a: Deferred()
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        self.bench.dispatch.stop("the address went")
        self.assertEqual(self.not_sent(), [])
        [doubt] = self.bench.spool.doubts
        self.assertEqual((doubt.queue_id, doubt.slot), (name, SLOT))

    def test_stopped_while_a_refusal_is_reported(self):
        """Its outcome is known, and no doubt is added to it."""
        refused = Outcome(0, OutcomeKind.FAILED, Reply(550, "5.1.1", (b"nobody",)))
        self.bench.kind.on_prepare = lambda *a: succeed((refused,))
        self.bench.dispatch.finish = lambda *a: Deferred()  # the original's header is being read
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)
        self.bench.dispatch.stop("the address went")
        [(results, _)] = self.bench.spool.batches
        self.assertEqual(
            [(r.queue_id, r.unknown, r.not_sent) for r in results], [(name, False, False)]
        )
        self.assertEqual([e.status for e in self.bench.transferred(name)], ["bounced"])

    def test_superseded_before_the_dot(self):
        """A successor published while MAIL and RCPT were said: no dot goes."""
        preparing = Deferred()
        self.bench.kind.on_prepare = lambda *a: preparing
        name, *rest, reservation = self.reserve()
        self.offer(name, *rest, reservation)

        def superseded():
            raise Fenced("epoch 2 is published")

        self.bench.spool.check = superseded
        preparing.callback(())
        self.assertEqual(self.bench.kind.delivered, [self.first])
        self.assertEqual(self.bench.dispatch.snapshot()["running"], False)
