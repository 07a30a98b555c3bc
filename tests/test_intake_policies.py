"""Policies inside intake: which hooks, what they change, what they may not."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.model import (
    Recipient,
    Reply,
)
from mta.telemetry import Notice, Rejected
from tests.intake_ground import (
    MESSAGE,
    STRANGER,
    House,
    Recorder,
    address,
    begin,
    send,
)


class PolicyInIntakeTests(SynchronousTestCase):
    def test_every_hook_in_order(self) -> None:
        """A policy that wants everything hears everything, once and in order."""
        hooks = (
            *("connect", "helo", "mail", "rcpt", "data", "headers", "body", "end"),
            *("queued", "abort", "disconnect", "unknown"),
        )
        policy = Recorder(*hooks)
        house = House((policy,))
        reception = house.reception()
        send(reception)
        reception.acknowledged()
        reception.unknown(b"XFOO")
        begin(reception)
        reception.unknown(b"XFOO")
        reception.closed("RCPT", "")
        self.assertEqual(
            policy.asked,
            [*hooks[:9], "unknown", "mail", "rcpt", "unknown", "abort", "disconnect"],
        )
        head, _, body = MESSAGE.partition(b"\r\n\r\n")
        self.assertEqual(policy.seen[5][0], head + b"\r\n")
        self.assertEqual(policy.seen[6][1], body)

    def test_refusals_by_stage(self) -> None:
        """Each command is refused where the policy said so, and logged with its stage."""
        no = Reply(550, "5.7.1", (b"No",))
        for hook, stage in (
            ("connect", "CONNECT"),
            ("helo", "HELO"),
            ("mail", "MAIL"),
            ("rcpt", "RCPT"),
            ("data", "DATA"),
            ("headers", "END-OF-MESSAGE"),
            ("body", "END-OF-MESSAGE"),
            ("end", "END-OF-MESSAGE"),
        ):
            house = House((Recorder(**{hook: no}),))
            reception = house.reception()
            answers: list[Any] = []
            if hook not in {"connect", "helo"}:
                answers += [reception.mail(address("a@example.net"), {})]
            if answers == [None]:
                answers += [reception.rcpt(address("b@example.com"), {})]
            if answers == [None, None]:
                answers += [reception.data()]
            if answers == [None, None, None]:
                reception.chunk(MESSAGE)
                answers += [self.successResultOf(reception.end(None))]
            self.assertEqual([e.stage for e in house.kinds(Rejected)], [stage])
            if answers:
                self.assertEqual(answers[-1], no)
            self.assertEqual(house.offered, [])
            self.assertTrue(all(s.is_aborted for s in house.spool.stagings), hook)

    def test_changes(self) -> None:
        """What policies change is what is stored: sender, recipients, header fields."""

        def change(transaction: Any) -> None:
            transaction.add_header(b"X-Seen", b"by us\r\nand\nothers")
            transaction.replace_sender(address("bounces@example.org"))
            transaction.set_recipients(
                [*transaction.recipients, Recipient(address("archive@example.com"))]
            )

        house = House((Recorder(end=change),))
        send(house.reception())
        envelope = house.offered[0][1]
        self.assertEqual(envelope.sender.text, b"bounces@example.org")
        self.assertEqual(
            [r.address.text for r in envelope.recipients],
            [b"b@example.com", b"archive@example.com"],
        )
        self.assertIn(
            b"+0000\r\nX-Seen: by us\r\n\tand\r\n\tothers\r\nFrom:",
            house.spool.stagings[0].stored,
        )

    def test_rewritten_recipient(self) -> None:
        """A recipient that a policy sends elsewhere keeps its original, and needs a route."""

        def elsewhere(transaction: Any) -> None:
            local = transaction.recipient.address.local
            transaction.replace_recipient(
                address("c@nowhere.test" if local == b"lost" else "c@sub.example.net")
            )

        house = House((Recorder(rcpt=elsewhere),))
        reception = house.reception(STRANGER)
        answers = begin(reception, "b@example.com", "lost@example.com")
        self.assertEqual([a and a.code for a in answers], [None, None, 550])
        reception.data()
        reception.chunk(MESSAGE)
        reception.end(None)
        self.assertEqual(
            house.offered[0][1].recipients,
            (Recipient(address("c@sub.example.net"), original=b"rfc822;b@example.com"),),
        )

    def test_original_recipient_of_two_rewrites(self) -> None:
        """A recipient rewritten twice is reported by the name that its sender used, in xtext; what
        the sender itself said of it stands above that.
        """

        def elsewhere(transaction: Any) -> None:
            transaction.replace_recipient(address("c@sub.example.net"))
            transaction.replace_recipient(address("d@sub.example.net"))

        house = House((Recorder(rcpt=elsewhere),))
        reception = house.reception()
        reception.mail(address("a@example.net"), {})
        reception.rcpt(address("b+x=y@example.com"), {})
        reception.data()
        reception.chunk(MESSAGE)
        reception.end(None)
        reception.acknowledged()
        reception.mail(address("a@example.net"), {})
        reception.rcpt(address("b@example.com"), {b"ORCPT": b"rfc822;old@example.com"})
        reception.data()
        reception.chunk(MESSAGE)
        reception.end(None)
        self.assertEqual(
            [offered[1].recipients[0].original for offered in house.offered],
            [b"rfc822;b+2Bx+3Dy@example.com", b"rfc822;old@example.com"],
        )

    def test_policy_cannot_open_the_relay(self) -> None:
        """No policy is even asked about a recipient that the relay rule refuses."""
        policy = Recorder(rcpt=Reply(250, "2.1.5", (b"Ok",)))
        house = House((policy,))
        self.assertEqual(begin(house.reception(STRANGER), "x@sub.example.net")[-1].code, 554)
        self.assertEqual(policy.asked, [])

    def test_hold(self) -> None:
        """A held message is accepted and queued, and nobody sends it."""
        house = House((Recorder(mail=lambda t: t.hold("looks odd")),))
        self.assertEqual(send(house.reception()).code, 250)
        queue_id = house.spool.stagings[0].queue_id
        self.assertTrue(house.spool.queued[queue_id][1].held)
        self.assertEqual((house.offered, house.spool.given_back), ([], [queue_id]))
        self.assertIn("looks odd", house.kinds(Notice)[0].text)

    def test_discard(self) -> None:
        """A discarded message is answered as accepted, dropped, and said to be so in the log."""
        house = House((Recorder(end=lambda t: t.discard("spam trap")),))
        reception = house.reception()
        self.assertEqual(send(reception).code, 250)
        self.assertTrue(house.spool.stagings[0].is_aborted)
        self.assertEqual((house.offered, house.spool.queued), ([], {}))
        self.assertIn("spam trap", house.kinds(Notice)[0].text)
        self.assertEqual(send(reception).code, 250)

    def test_waiting_policy(self) -> None:
        """A policy may take its time at every command."""
        waits: list[Deferred[Any]] = []

        def wait(_: Any) -> Deferred[Any]:
            waits.append(Deferred())
            return waits[-1]

        hooks = ("connect", "helo", "mail", "rcpt", "data", "headers", "body", "end")
        house = House((Recorder(**dict.fromkeys(hooks, wait)),))
        reception = house.reception()
        for step in (
            lambda: reception.mail(address("a@example.net"), {}),
            lambda: reception.rcpt(address("b@example.com"), {}),
            lambda: reception.data(),
        ):
            answer = step()
            self.assertNoResult(answer)
            while waits:
                waits.pop().callback(None)
            self.assertIsNone(self.successResultOf(answer))
        first, second = reception.chunk(MESSAGE), reception.chunk(b"more\r\n")
        answered = reception.end(None)
        for _ in range(3):  # headers, body, body
            self.assertNoResult(answered)
            waits.pop().callback(None)
        self.assertIsNone(self.successResultOf(first))
        self.assertIsNone(self.successResultOf(second))
        self.assertNoResult(answered)
        waits.pop().callback(None)
        self.assertEqual(self.successResultOf(answered).code, 250)

    def test_closed_while_a_policy_waits(self) -> None:
        """When the client leaves, what policies were doing for it is cancelled, at every hook."""
        for hook in ("mail", "rcpt", "data", "headers", "body", "end"):
            cancelled: list[Any] = []
            house = House((Recorder(**{hook: lambda _, c=cancelled: Deferred(c.append)}),))
            reception = house.reception()
            steps = [
                lambda r=reception: r.mail(address("a@example.net"), {}),
                lambda r=reception: r.rcpt(address("b@example.com"), {}),
                lambda r=reception: r.data(),
                lambda r=reception: r.chunk(MESSAGE),
                lambda r=reception: r.end(None),
            ]
            for step in steps:
                answer = step()
                if answer is not None and hook not in {"headers", "body"}:
                    break
            answer.addErrback(lambda f: f.trap(CancelledError))
            reception.closed("DATA", "")
            self.assertEqual(len(cancelled), 1, hook)
            self.assertEqual(house.offered, [], hook)
            self.assertEqual(house.spool.queued, {}, hook)
