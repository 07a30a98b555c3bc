"""The queue keeps to the times that senders gave (RFC 2852)."""

from __future__ import annotations

from twisted.internet.defer import fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from mta.errors import Unfit
from mta.interfaces import IDeliversBy, ISender
from mta.model import (
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
from tests.transfer_bench import HUB, LATER, Bench, address

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
