"""Who is told what about mail that did not arrive, and that nobody is told twice."""

from __future__ import annotations

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Corrupt, PermanentFailure, Unavailable
from mta.model import (
    AddressSpace,
    Connector,
    EnvelopeKind,
    Notify,
    Outcome,
    OutcomeKind,
    Recipient,
)
from mta.telemetry import Reported
from mta.transfer.settings import QueueSettings
from tests.transfer_bench import HUB, LATER, NEVER, POSTMASTER, Bench, address


def refuse(bench, *names):
    """The peer refuses these mailboxes for good at RCPT."""

    def prepare(sender, queue_id, envelope, recipients):
        return succeed(
            tuple(
                Outcome(i, OutcomeKind.FAILED, NEVER)
                for i in recipients
                if str(envelope.recipients[i].address).partition("@")[0] in names
            )
        )

    bench.kind.on_prepare = prepare


def reports(bench):
    """(queue id, envelope, content) of the reports in the spool or already sent."""
    return [
        (report.queue_id, report.envelope, report.content)
        for results, _ in bench.spool.batches
        for result in results
        for report in result.reports
    ]


class HardDetail09NullSenderTests(SynchronousTestCase):
    """Hard detail 9: never a report about a report."""

    def test_report_about_a_report(self):
        """A report that cannot be delivered goes to the postmaster once; if that fails too, it is
        dropped with one entry in the log, and nothing loops."""
        bench = Bench()
        refuse(bench, "bob", "alice", "postmaster")
        bench.offer("bob@example.com")
        for _ in range(10):
            bench.clock.advance(1.0)
        found = reports(bench)
        self.assertEqual(
            [str(e.recipients[0].address) for _, e, _ in found],
            ["alice@example.org", str(POSTMASTER)],
        )
        self.assertEqual(bench.spool.messages, {})
        dropped = [n for n in bench.notices() if n.text.startswith("dropped")]
        self.assertEqual(len(dropped), 1)

    def test_null_sender(self):
        """A message with the null sender is never returned; the postmaster is told."""
        bench = Bench()
        refuse(bench, "bob")
        bench.offer("bob@example.com", sender="")
        [(_, envelope, content)] = reports(bench)
        self.assertEqual(str(envelope.recipients[0].address), str(POSTMASTER))
        self.assertIn(b"was sent by <>", content)


class ReportTests(SynchronousTestCase):
    def test_failed(self):
        """A refused recipient: the sender gets one report, in the batch of the outcome, that says
        who, why and by whom, with the original's headers."""
        bench = Bench()
        refuse(bench, "bob", "eve")
        name = bench.offer("bob@example.com", "carol@example.com", "eve@example.com")
        [(report_id, envelope, content)] = reports(bench)
        self.assertTrue(envelope.sender.is_null)
        self.assertEqual(envelope.kind, EnvelopeKind.REPORT)
        self.assertEqual([str(r.address) for r in envelope.recipients], ["alice@example.org"])
        for words in (
            b"Final-Recipient: rfc822; bob@example.com",
            b"Final-Recipient: rfc822; eve@example.com",
            b"Status: 5.1.1",
            b"550 5.1.1 no such user",
            b"Message-ID: <1@x>",
            b"Reporting-MTA: dns; bridgehead.example.org",
        ):
            self.assertIn(words, content)
        self.assertNotIn(b"carol", content)
        self.assertNotIn(b"body", content)
        (told,) = [event for event in bench.events if type(event) is Reported]
        self.assertEqual(told[:3], (name, report_id, "failed"))
        self.assertEqual((told.size_octets > 300, told.recipients), (True, 1))

    def test_report_is_sent(self):
        """The report itself goes out by the same queue."""
        bench = Bench()
        refuse(bench, "bob")
        bench.offer("bob@example.com")
        bench.clock.advance(0.1)
        self.assertEqual(len(bench.kind.delivered), 1)
        self.assertEqual(bench.spool.messages, {})

    def test_same_facts_same_id(self):
        """A batch that is written twice makes one report: its id follows from the facts."""
        ids = set()
        for _ in range(2):
            bench = Bench()
            refuse(bench, "bob")
            bench.offer("bob@example.com")
            ids.add(reports(bench)[0][0])
        self.assertEqual(len(ids), 1)

    def test_notify(self):
        """NOTIFY is obeyed: NEVER tells nobody, SUCCESS alone tells of no failure, SUCCESS tells
        that it was handed on."""
        for notify, status, told in (
            (Notify.NEVER, "failed", 0),
            (Notify.SUCCESS, "failed", 0),
            (Notify.FAILURE, "failed", 1),
            (Notify.UNSET, "sent", 0),
            (Notify.SUCCESS, "sent", 1),
        ):
            bench = Bench()
            if status == "failed":
                refuse(bench, "bob")
            bench.offer(Recipient(address("bob@example.com"), notify))
            self.assertEqual(len(reports(bench)), told, (notify, status))
            if status == "sent" and told:
                self.assertIn(b"Action: relayed", reports(bench)[0][2])

    def test_expired(self):
        """A message that was deferred for its whole life is returned when it ends, after a last
        attempt at that moment."""
        bench = Bench(settings=QueueSettings(lifetime=1000.0))
        bench.kind.on_commit = lambda s, n, e, r: succeed(
            tuple(Outcome(i, OutcomeKind.DEFERRED, LATER) for i in r)
        )
        name = bench.offer("bob@example.com")
        for _ in range(99):
            bench.clock.advance(10.0)
        self.assertEqual(reports(bench), [])
        bench.clock.advance(10.0)
        bench.clock.advance(0.1)
        self.assertEqual(bench.transferred(name)[-1].status, "expired")
        [(_, _, content)] = reports(bench)[:1]
        self.assertIn(b"Status: 4.4.7", content)
        self.assertIn(b"450 4.2.0 greylisted", content)

    def test_expired_while_the_destination_is_down(self):
        """Mail for a destination that never answers expires all the same, and is returned."""
        bench = Bench(settings=QueueSettings(lifetime=3600.0), start=False)
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        names = [bench.queue() for _ in range(30)]
        bench.dispatch.start()
        for _ in range(900):
            bench.clock.advance(10.0)
        told = {
            result.queue_id
            for results, _ in bench.spool.batches
            for result in results
            if result.state is None
        }
        self.assertEqual(told & set(names), set(names))

    def test_never_expired_without_an_attempt(self):
        """A message that is too old when a node takes over is tried before it is returned."""
        bench = Bench(start=False)
        old = bench.queue(received_at=bench.clock.wall() - 20 * 86400)
        bench.dispatch.start()
        self.assertEqual(bench.kind.delivered, [old])
        self.assertEqual(reports(bench), [])

    def test_suspect_clock(self):
        """While the wall clock is suspect nothing expires."""
        bench = Bench(start=False)
        bench.dispatch.rules.may_expire = False
        bench.kind.unreachable = {"192.0.2.20", "192.0.2.21"}
        old = bench.queue(received_at=bench.clock.wall() - 20 * 86400)
        bench.dispatch.start()
        self.assertIn(old, bench.spool.messages)
        self.assertEqual(reports(bench), [])

    def test_delay_warning(self):
        """A sender who is to be warned is warned once."""
        bench = Bench(settings=QueueSettings(delay_warning=3600.0))
        bench.kind.on_commit = lambda s, n, e, r: succeed(
            tuple(Outcome(i, OutcomeKind.DEFERRED, LATER) for i in r)
        )
        bench.offer("bob@example.com")
        for _ in range(1440):
            bench.clock.advance(10.0)
        [(_, envelope, content)] = reports(bench)
        self.assertIn(b"Action: delayed", content)
        self.assertIn(b"Will-Retry-Until:", content)
        self.assertEqual(str(envelope.recipients[0].address), "alice@example.org")

    def test_unroutable(self):
        """A recipient that no connector takes is returned at once, the others go on."""
        only = Connector("hub", "smtp", (AddressSpace(b"example.com"),), HUB.bridgeheads)
        bench = Bench(connectors=(only,))
        name = bench.offer("bob@example.com", "eve@elsewhere.example")
        self.assertEqual(sorted(e.status for e in bench.transferred(name)), ["bounced", "sent"])
        self.assertIn(b"eve@elsewhere.example", reports(bench)[0][2])

    def test_domain_takes_no_mail(self):
        """Null MX: everything queued for it is returned with 556 5.1.10."""
        mx = Connector("internet", "smtp", (AddressSpace(b"*"),), by_mx=True)
        bench = Bench(connectors=(mx,))
        bench.resolver.mx[b"example.com"] = PermanentFailure(
            "domain example.com takes no mail", code=556, enhanced="5.1.10"
        )
        bench.offer("bob@example.com")
        self.assertEqual(bench.transferred()[0].status, "bounced")
        self.assertEqual(bench.transferred()[0].reply[:10], "556 5.1.10")

    def test_mail_loop(self):
        """Mail whose best exchanger is ourselves is returned with 5.4.6."""
        from ipaddress import ip_address

        from mta.model import MailHost

        mx = Connector("internet", "smtp", (AddressSpace(b"*"),), by_mx=True)
        bench = Bench(connectors=(mx,), ourselves=frozenset({("192.0.2.10", 25)}))
        bench.resolver.mx[b"example.com"] = [MailHost("us", 10, (ip_address("192.0.2.10"),))]
        bench.offer("bob@example.com")
        self.assertEqual(bench.transferred()[0].enhanced, "5.4.6")

    def test_unreadable_original(self):
        """A content that cannot be read any more does not keep the sender from being told."""
        for problem in (Corrupt("seg/1.1"), Unavailable("disk")):
            bench = Bench()
            refuse(bench, "bob")
            honest, calls = bench.spool.content, []

            def content(name, problem=problem, honest=honest, calls=calls):
                calls.append(name)
                if len(calls) > 1:
                    raise problem
                return honest(name)

            bench.spool.content = content
            bench.offer("bob@example.com")
            self.assertEqual(len(reports(bench)), 1)

    def test_hostile_reply(self):
        """Terminal escapes in a resolver's or connector's words do not reach a report."""
        mx = Connector("internet", "smtp", (AddressSpace(b"*"),), by_mx=True)
        bench = Bench(connectors=(mx,))
        bench.resolver.mx[b"example.com"] = PermanentFailure("\x1b[2J\r\nSubject: forged")
        bench.offer("bob@example.com")
        content = reports(bench)[0][2]
        self.assertNotIn(b"\x1b", content)
        self.assertNotIn(b"\r\nSubject: forged", content)
