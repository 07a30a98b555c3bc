"""The queue keeps to the times that senders gave (RFC 2852)."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from mta.errors import TransientFailure, Unfit
from mta.interfaces import IDeliversBy, ISender
from mta.model import (
    AddressSpace,
    Bridgehead,
    MessageState,
    Notify,
    Outcome,
    OutcomeKind,
    Recipient,
    RecipientState,
    Requires,
)
from mta.transfer.settings import QueueSettings
from tests.test_reports import reports
from tests.transfer_bench import HUB, LATER, OK, Bench, address

R, N, T = Requires.IN_TIME, Requires.NOTHING, Requires.TRACE


def timed(bench, seconds, requires=R, recipient="bob@example.com", **changes):
    """What a message has that is to be delivered in `seconds`."""
    return {"deliver_by": bench.clock.wall() + seconds, "requires": requires, **changes}


def dead(**settings):
    """A bench whose destination cannot be reached."""
    bench = Bench(settings=QueueSettings(jitter=0.0, **settings))
    bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
    return bench


def pass_time(bench, seconds):
    """Second by second: whoever waits for something in between has his turn."""
    for _ in range(int(seconds)):
        bench.clock.advance(1.0)


def revive(bench):
    bench.kind.unreachable = set()


def told(bench):
    """(kind, content) of every report so far."""
    return [
        (r.kind, r.content)
        for results, _ in bench.spool.batches
        for result in results
        for r in result.reports
    ]


def keep_time(bench):
    """The far end offers DELIVERBY; answers the clocks that its senders were given."""
    clocks = []

    def opened(sender):
        sender.delivers_by = True
        sender.keep_time = clocks.append
        directlyProvides(sender, ISender, IDeliversBy)
        return succeed(sender)

    bench.kind.on_open = opened
    return clocks


class ReturnedTests(SynchronousTestCase):
    def test_at_its_time(self):
        """R to a server that does not answer: tried at once and shortly before the end, and
        returned at the end with 5.4.7 and what the last try brought."""
        bench = dead(destination_retry=7.0)
        name = bench.offer(**timed(bench, 60.0))
        began, tried = bench.clock.wall(), []
        while bench.clock.wall() < began + 59.9:
            before = len(bench.kind.opened)
            bench.clock.advance(0.1)
            if len(bench.kind.opened) > before:
                tried.append(round(bench.clock.wall() - began))
        self.assertEqual(tried[-1], 45)
        self.assertEqual(told(bench), [])
        bench.clock.advance(0.2)
        [(kind, content)] = told(bench)
        self.assertEqual(kind, "failed")
        for words in (b"Status: 5.4.7\r\n", b"Deliver-By-Date: ", b"connection refused"):
            self.assertIn(words, content)
        self.assertNotIn(name, bench.spool.messages)
        self.assertEqual(bench.transferred(name)[-1].status, "expired")

    def test_never_after(self):
        """R that nobody could look at in time (it was held) is returned, not tried."""
        bench = Bench(start=False)
        state = MessageState((RecipientState(reply="450 4.2.0 greylisted"),))
        name = bench.queue(state=state, **timed(bench, 60.0))
        bench.clock.advance(61.0)
        bench.dispatch.start()
        [(kind, content)] = told(bench)
        self.assertEqual(
            (kind, bench.kind.opened[:1], bench.kind.delivered[:1]), ("failed", [], [])
        )
        self.assertIn(b"Status: 5.4.7\r\n", content)
        self.assertIn(b"450 4.2.0 greylisted", content)
        self.assertEqual(bench.transferred(name)[0].status, "expired")

    def test_last_try_comes_through(self):
        """A destination that rests is asked all the same for what can wait no longer, and if it is
        back all its mail goes."""
        bench = dead(destination_retry=3600.0)
        other = bench.offer()
        bench.clock.advance(1.0)
        name = bench.offer(**timed(bench, 60.0))
        pass_time(bench, 40)
        revive(bench)
        self.assertEqual(bench.kind.delivered, [])
        pass_time(bench, 6)
        self.assertEqual(bench.kind.delivered[0], name)
        pass_time(bench, 400)
        self.assertIn(other, bench.kind.delivered)
        self.assertEqual(told(bench), [])

    def test_nobody_keeps_to_it(self):
        """R to servers without DELIVERBY comes back at once, in plain words."""
        bench = Bench()
        bench.kind.on_prepare = lambda *_: fail(
            Unfit("hub", "does not offer DELIVERBY", code=554, enhanced="5.4.7")
        )
        name = bench.offer(**timed(bench, 600.0))
        [(kind, content)] = told(bench)
        self.assertEqual((kind, bench.transferred(name)[0].status), ("failed", "bounced"))
        self.assertIn(b"Status: 5.4.7\r\n", content)
        self.assertIn(b"does not offer DELIVERBY", content)

    def test_no_time_by_a_suspect_clock(self):
        """What a server would not take for want of time waits while the clock is not believed."""
        bench = Bench(settings=QueueSettings(jitter=0.0))
        bench.dispatch.rules.may_expire = False
        bench.kind.on_prepare = lambda *_: fail(
            Unfit("hub", "0 seconds are left", code=554, enhanced="5.4.7")
        )
        name = bench.offer(**timed(bench, 3600.0))
        self.assertEqual(told(bench), [])
        self.assertEqual(bench.transferred(name)[0].reply, "451 4.4.7 hub: 0 seconds are left")
        bench.dispatch.rules.may_expire = True
        pass_time(bench, 301)
        self.assertEqual(told(bench)[0][0], "failed")

    def test_some_of_them(self):
        """Who was delivered in time is not in the report, and hears nothing."""
        bench = Bench(settings=QueueSettings(jitter=0.0))
        bench.kind.on_commit = lambda s, q, e, recipients: succeed(
            tuple(
                Outcome(i, OutcomeKind.DEFERRED if i == 1 else OutcomeKind.DELIVERED, LATER)
                for i in recipients
            )
        )
        bench.offer("a@example.com", "b@example.com", **timed(bench, 30.0))
        pass_time(bench, 31)
        (content,) = [content for kind, content in told(bench) if kind == "failed"]
        self.assertIn(b"<b@example.com>", content)
        self.assertNotIn(b"<a@example.com>", content)

    def test_suspect_clock(self):
        """While the clock is not believed it is tried on, and returned once the clock is."""
        bench = dead(destination_retry=5.0)
        bench.dispatch.rules.may_expire = False
        bench.offer(**timed(bench, 20.0))
        pass_time(bench, 100)
        self.assertEqual(told(bench), [])
        bench.dispatch.rules.may_expire = True
        pass_time(bench, 1300)
        self.assertEqual([kind for kind, _ in told(bench)], ["failed"])


class PromptTests(SynchronousTestCase):
    """At its time, whatever it waits for."""

    def test_behind_many(self):
        """A thousand messages wait for a dead destination that rests for an hour: those with a
        time come back at it, each at its own, and nobody else is touched."""
        bench = dead(destination_retry=3600.0)
        for _ in range(1000):
            bench.offer()
        pass_time(bench, 2)
        began = bench.clock.wall()
        names = {bench.offer(**timed(bench, 100.0 + 10 * n)): 100 + 10 * n for n in range(30)}
        back = {}
        for _ in range(450):
            bench.clock.advance(1.0)
            for name in names.keys() - back.keys() - bench.spool.messages.keys():
                back[name] = bench.clock.wall() - began
        self.assertEqual(back.keys(), names.keys())
        for name, seconds in names.items():
            self.assertTrue(seconds <= back[name] <= seconds + 1.0, (seconds, back[name]))
        self.assertEqual([kind for kind, _ in told(bench)], ["failed"] * 30)
        self.assertEqual(len(bench.spool.messages) - 30, 1000)

    def test_in_a_slow_lane(self):
        """R in line for a server that is slow comes back at its time and is not sent; N stands in
        line again, and its sender is told; who is before them goes on."""
        bench = Bench(connectors=(replace(HUB, concurrency=1),), can_overlap=False)
        replies = []
        bench.kind.on_commit = lambda s, name, *a: (
            replies.append((name, Deferred())) or replies[-1][1]
        )
        first = bench.offer()
        returned = bench.offer(**timed(bench, 30.0))
        late = bench.offer(**timed(bench, 30.0, N))
        bench.clock.advance(29.9)
        self.assertEqual(told(bench), [])
        bench.clock.advance(0.2)
        self.assertEqual(sorted(kind for kind, _ in told(bench)), ["delayed", "failed"])
        self.assertNotIn(returned, bench.spool.messages)
        for _ in range(6):
            pass_time(bench, 1)
            for _, done in replies:
                if not done.called:
                    done.callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
        sent = [name for name, _ in replies]
        self.assertEqual((sent[0], sent.count(late), sent.count(returned)), (first, 1, 0))
        self.assertEqual(bench.dispatch.snapshot()["active"], 0)
        self.assertEqual(bench.dispatch.snapshot()["queued"], 0)

    def test_while_a_server_is_looked_for(self):
        """A server that answers nothing, not even with a refusal: R does not wait for it, and what
        comes behind goes when the server is there after all."""
        for answers in (True, False):
            bench = Bench(connectors=(replace(HUB, concurrency=1),))
            opening = []
            bench.kind.on_open = lambda sender, opening=opening: (
                opening.append((sender, Deferred())) or opening[-1][1]
            )
            name = bench.offer(**timed(bench, 10.0))
            other = bench.offer()
            pass_time(bench, 11)
            self.assertEqual([kind for kind, _ in told(bench)], ["failed"])
            self.assertNotIn(name, bench.spool.messages)
            sender, opened = opening[0]
            bench.kind.on_open = succeed
            if answers:
                opened.callback(sender)
            else:
                opened.errback(TransientFailure("hub", "timed out"))
            pass_time(bench, 700)
            self.assertIn(other, bench.kind.delivered)
            self.assertNotIn(name, bench.kind.delivered)
            self.assertEqual(len(told(bench)), 1)
            self.assertEqual(bench.dispatch.snapshot()["active"], 0)

    def test_one_way_of_two(self):
        """A message goes two ways. On one no server answers until its time is over: those come
        back, once, and are not sent; those on the other, whose server knew of them, are delivered.
        """
        away = replace(HUB, name="away", address_spaces=(AddressSpace(b"away.example", 1),))
        away = replace(away, bridgeheads=(Bridgehead("192.0.2.30"),))
        for answers in (True, False):
            bench = Bench(connectors=(HUB, away), settings=QueueSettings(jitter=0.0))
            opening, replies = [], []

            def on_open(sender, opening=opening):
                if sender.hop.connector == "hub":
                    return succeed(sender)
                opening.append((sender, Deferred()))
                return opening[-1][1]

            bench.kind.on_open = on_open
            bench.kind.on_commit = lambda s, q, e, to, replies=replies: (
                replies.append((q, to, Deferred())) or replies[-1][2]
            )
            name = bench.offer("a@example.com", "b@away.example", **timed(bench, 10.0))
            pass_time(bench, 11)
            [(kind, content)] = told(bench)
            self.assertEqual(kind, "failed")
            self.assertIn(b"<b@away.example>", content)
            self.assertNotIn(b"<a@example.com>", content)
            sender, opened = opening[0]
            if answers:
                opened.callback(sender)
            else:
                opened.errback(TransientFailure("away", "timed out"))
            pass_time(bench, 1)
            [(to, committed)] = [(to, done) for q, to, done in replies if q == name]
            committed.callback((Outcome(0, OutcomeKind.DELIVERED, OK),))
            pass_time(bench, 60)
            self.assertEqual((to, len(told(bench))), ((0,), 1))
            self.assertEqual([q for q, _, _ in replies].count(name), 1)
            self.assertNotIn(name, bench.spool.messages)
            self.assertNotIn(name, bench.dispatch.ledger.active)

    def test_not_taken_from_a_server(self):
        """What a server was told of in time has its outcome, though that comes late: delivered is
        delivered, deferred comes back then."""
        for kind, expected in ((OutcomeKind.DELIVERED, []), (OutcomeKind.DEFERRED, ["failed"])):
            bench = Bench()
            replies = []
            bench.kind.on_commit = lambda *a, replies=replies: (
                replies.append(Deferred()) or replies[0]
            )
            bench.offer(**timed(bench, 10.0))
            pass_time(bench, 20)
            self.assertEqual(told(bench), [])
            replies[0].callback((Outcome(0, kind, LATER),))
            pass_time(bench, 1)
            self.assertEqual([kind for kind, _ in told(bench)], expected)

    def test_after_a_server_failed(self):
        """A server fails in the midst of the envelope and the next does not answer: it still comes
        back at its time."""
        bench = Bench()
        bench.kind.on_prepare = lambda *_: fail(TransientFailure("hub", "went away"))
        opened = []

        def on_open(sender):
            opened.append(sender)
            return succeed(sender) if len(opened) == 1 else Deferred()

        bench.kind.on_open = on_open
        bench.offer(**timed(bench, 10.0))
        pass_time(bench, 11)
        self.assertEqual([kind for kind, _ in told(bench)], ["failed"])

    def test_full_lane(self):
        """A lane that is full takes no more of them either, and nobody asks the spool all the time;
        at their time they come back."""
        bench = Bench(
            connectors=(replace(HUB, concurrency=1),), settings=QueueSettings(active_limit=400)
        )
        bench.kind.on_commit = lambda *a: Deferred()
        for _ in range(120):
            bench.offer()
        names = [bench.offer(**timed(bench, 30.0)) for _ in range(20)]
        asked = []
        due = bench.spool.due
        bench.spool.due = lambda *a: asked.append(a) or due(*a)
        pass_time(bench, 29)
        self.assertEqual(told(bench), [])
        self.assertLess(len(asked), 29 * 4)
        pass_time(bench, 3)
        self.assertEqual([kind for kind, _ in told(bench)], ["failed"] * 20)
        self.assertFalse(set(names) & bench.spool.messages.keys())

    def test_memory(self):
        """Of messages with a time that went long before it nothing stays in memory."""
        bench = Bench()
        for _ in range(2000):
            bench.offer(**timed(bench, 86400.0))
        pass_time(bench, 10)
        self.assertEqual(len(bench.kind.delivered), 2000)
        self.assertLess(len(bench.dispatch._patience._watched), 200)

    def test_end_of_the_tenure(self):
        """The tenure ends while reports are written, or the queue drains: all is given back, and
        the next dispatch returns what is due once."""
        for is_drained in (True, False):
            bench = dead(destination_retry=3600.0)
            bench.offer()
            pass_time(bench, 1)
            bench.offer(**timed(bench, 30.0))
            pass_time(bench, 5)
            if is_drained:
                self.successResultOf(bench.dispatch.drain(bench.clock.monotonic() + 30))
            bench.dispatch.stop("over")
            pass_time(bench, 60)
            self.assertEqual(told(bench), [])
            self.assertEqual(bench.spool.taken, set())
            bench.another().start()
            pass_time(bench, 2)
            self.assertEqual([kind for kind, _ in told(bench)], ["failed"])


class ToldTests(SynchronousTestCase):
    def test_late(self):
        """N: at its time its sender is told, once, until when it is tried; then it is delivered."""
        bench = dead(destination_retry=7.0)
        name = bench.offer(**timed(bench, 60.0, N))
        pass_time(bench, 59)
        self.assertEqual(told(bench), [])
        bench.clock.advance(1.0)
        [(kind, content)] = told(bench)
        self.assertEqual(kind, "delayed")
        for words in (b"Status: 4.4.7\r\n", b"Action: delayed\r\n", b"Will-Retry-Until: "):
            self.assertIn(words, content)
        pass_time(bench, 1000)
        self.assertEqual(len(told(bench)), 1)
        revive(bench)
        pass_time(bench, 4000)
        self.assertIn(name, bench.kind.delivered)
        self.assertEqual([kind for kind, _ in told(bench)], ["delayed", "untimed"])

    def test_deaf(self):
        """A sender who hears of no delays hears of none, and its mail waits as any other."""
        for sender, notify in (("alice@example.org", Notify.FAILURE), ("", Notify.UNSET)):
            bench = dead(destination_retry=7.0)
            recipient = Recipient(address("bob@example.com"), notify)
            bench.offer(recipient, sender=sender, **timed(bench, 60.0, N))
            pass_time(bench, 2000)
            self.assertEqual(told(bench), [])
            self.assertLess(len(bench.kind.opened), 40)

    def test_handed_on(self):
        """Of a server without DELIVERBY the sender of N hears, and that it reports nothing; T
        hears of every server; who gave no time hears nothing."""
        for requires, keeps, expected in (
            (N, False, b"They do not keep to the time"),
            (N, True, None),
            (T, True, b"You asked to be told"),
            (R | T, True, b"You asked to be told"),
            (R, True, None),
        ):
            bench = Bench()
            clocks = keep_time(bench) if keeps else []
            bench.offer(**timed(bench, 600.0, requires))
            found = reports(bench)
            self.assertEqual(len(found), expected is not None, (requires, keeps))
            if expected is not None:
                self.assertIn(expected, found[0][2])
                self.assertIn(b"Action: relayed\r\n", found[0][2])
            self.assertEqual(clocks[:1], [bench.clock][: len(clocks)])
        bench = Bench(connectors=(HUB,))
        bench.offer()
        self.assertEqual(reports(bench), [])
