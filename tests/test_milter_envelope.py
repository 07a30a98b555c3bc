"""A filter changes what was said behind addresses, and hears of recipients that are not taken."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Notify, Reply
from mta.telemetry import Rejected
from mta.wire.milter.packets import Step
from tests.intake_ground import House, Recorder, address
from tests.memory_filter import CONTINUE, MemoryFilter, said
from tests.milter_ground import Ground, codes

NOT_HERE = Reply(550, "5.7.1", (b"Not this one",))


def refused_too(**answers: Any) -> MemoryFilter:
    """A filter that wants to hear of recipients which are not taken."""
    memory = MemoryFilter(**answers)
    memory.steps = int(Step.REFUSED_RCPT)
    return memory


class ParameterTests(SynchronousTestCase):
    def sent(self, changes: bytes, **parameters: bytes | None) -> Any:
        """The envelope of a message whose filter makes `changes`."""
        ground = Ground(MemoryFilter(E=changes + CONTINUE))
        ground.connect()
        ground.envelope(**parameters)
        self.assertEqual(ground.content().code, 250, ground.lines())
        return ground.house.offered[0][1]

    def test_added_recipients(self) -> None:
        """A recipient is added with NOTIFY and ORCPT as a client would give them."""
        envelope = self.sent(
            said(b"2", b"<c@example.com>\0NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x+2By@z\0")
            + said(b"2", b"<d@example.com>\0notify=never\0")
            + said(b"2", b"<e@example.com>\0")
            + said(b"2", b"<f@example.com>\0\0")
        )
        asked = [(r.address.text[:1], r.notify, r.original) for r in envelope.recipients]
        self.assertEqual(
            asked,
            [
                (b"b", Notify.UNSET, b""),
                (b"c", Notify.SUCCESS | Notify.FAILURE, b"rfc822;x+2By@z"),
                (b"d", Notify.NEVER, b""),
                (b"e", Notify.UNSET, b""),
                (b"f", Notify.UNSET, b""),
            ],
        )

    def test_changed_sender(self) -> None:
        """Another sender comes with its own RET and ENVID, and what is said of the content besides
        counts for nothing; without any, those of the client stay.
        """
        for said_of_it, ret_full, envelope_id in (
            (b"RET=HDRS ENVID=new", False, b"new"),
            (b"ENVID=new SIZE=1 BODY=8BITMIME", None, b"new"),
            (b"SIZE=1", None, b""),
            (b"", True, b"old"),
        ):
            changes = said(b"e", b"<c@example.net>\0" + said_of_it + b"\0")
            envelope = self.sent(changes, ret=b"FULL", envid=b"old")
            self.assertEqual(envelope.sender.text, b"c@example.net")
            self.assertEqual((envelope.ret_full, envelope.envelope_id), (ret_full, envelope_id))

    def test_wrong_parameters(self) -> None:
        """Parameters that no client could give: nothing is changed, and on-failure decides."""
        for change in (
            said(b"2", b"<c@example.com>\0NOTIFY=SOMETIMES\0"),
            said(b"2", b"<c@example.com>\0NOTIFY=NEVER,SUCCESS\0"),
            said(b"2", b"<c@example.com>\0ORCPT=x\r\ny\0"),
            said(b"2", b"<c@example.com>\0X=1\0"),
            said(b"e", b"<c@example.net>\0NOTIFY=NEVER\0"),
            said(b"e", b"<c@example.net>\0TRANSID=<a@b>\0"),
            said(b"e", b"<c@example.net>\0RET=NO\0"),
        ):
            changes = said(b"h", b"X-Y\0z\0") + change + CONTINUE
            ground = Ground(MemoryFilter(E=changes), **{"on-failure": "accept"})
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
            [recipient] = ground.house.offered[0][1].recipients
            self.assertEqual(recipient.address.text, b"b@example.com")
            self.assertNotIn(b"X-Y", ground.stored)
            self.assertIn("the filter gave parameters that are none", ground.lines()[0])


class RefusedRecipientTests(SynchronousTestCase):
    def test_by_the_relay_rule(self) -> None:
        """Who wants to hears of a recipient that we do not take, with our reason, before the client."""
        ground = Ground(refused_too())
        ground.connect()
        answers = ground.envelope("x@nowhere.example", "b@example.com")
        self.assertEqual(codes(answers), [None, 550, None])
        self.assertEqual(ground.end.all(b"R"), [b"<x@nowhere.example>\0", b"<b@example.com>\0"])
        self.assertEqual(ground.end.macros[b"R"][b"{rcpt_mailer}"], b"esmtp")
        ground.envelope("x@nowhere.example")
        macros = ground.end.macros[b"R"]
        self.assertEqual(macros[b"{rcpt_mailer}"], b"error")
        self.assertEqual(macros[b"{rcpt_host}"], answers[1].enhanced.encode())
        self.assertEqual(macros[b"{rcpt_addr}"], answers[1].lines[0])

    def test_by_a_policy(self) -> None:
        """The same where a policy before the filter refused; of one behind it the filter has heard
        already, and of its own refusals too.
        """
        before, behind = Recorder(rcpt=NOT_HERE), Recorder(rcpt=NOT_HERE)
        ground = Ground(refused_too())
        for policies, count in (((before, ground.policy), 1), ((ground.policy, behind), 1)):
            ground.house = House(policies)
            ground.connect()
            self.assertEqual(codes(ground.envelope()), [None, 550])
            self.assertEqual(len(ground.end.all(b"R")), count)
        ground = Ground(refused_too(R=said(b"r")))
        ground.connect()
        self.assertEqual(codes(ground.envelope()), [None, 550])
        self.assertEqual(len(ground.end.all(b"R")), 1)

    def test_who_does_not_want_to(self) -> None:
        """A filter that did not ask for them hears nothing of them."""
        ground = Ground()
        ground.connect()
        self.assertEqual(codes(ground.envelope("x@nowhere.example", "b@example.com"))[1], 550)
        self.assertEqual(ground.end.all(b"R"), [b"<b@example.com>\0"])

    def test_its_answer(self) -> None:
        """What the filter answers changes nothing for that recipient; its accepting or discarding the
        whole message counts, and a filter that dies over it is away for this message.
        """
        for answer, last, heard in (
            (said(b"r"), 250, b"MRRTLLNBE"),
            (said(b"t"), 250, b"MRRTLLNBE"),
            (said(b"y", b"450 4.0.0 x\0"), 250, b"MRRTLLNBE"),
            (said(b"a"), 250, b"MR"),
            (None, 451, b"MR"),
        ):
            ground = Ground(refused_too(R=[answer, CONTINUE]))
            ground.connect()
            refused = ground.envelope("x@nowhere.example", "b@example.com")[1]
            self.assertEqual((refused.code, refused.enhanced[:1]), (550, "5"))
            self.assertEqual(ground.content().code, last)
            self.assertEqual(ground.end.letters(), b"CH" + heard)
        ground = Ground(refused_too(R=[said(b"d"), CONTINUE]))
        ground.connect()
        ground.envelope("x@nowhere.example", "b@example.com")
        self.assertEqual((ground.content().code, ground.house.offered), (250, []))

    def test_one_refusal_in_the_log(self) -> None:
        """The log has the refusal once, and the recipient is gone from what policies see next."""
        seen: list[Any] = []

        def look(transaction: Any) -> None:
            seen.append((transaction.recipient, transaction.refusal))

        hearing = Recorder(refused=look, data=look)
        ground = Ground(refused_too())
        ground.house = House((hearing, ground.policy))
        ground.connect()
        refused = ground.envelope("x@nowhere.example", "b@example.com")[1]
        ground.content()
        self.assertEqual([r.stage for r in ground.house.kinds(Rejected)], ["RCPT"])
        self.assertEqual(seen[0][0].address, address("x@nowhere.example"))
        self.assertEqual([seen[0][1], *seen[1]], [refused, None, None])

    def test_closed_while_it_is_told(self) -> None:
        """A client that goes while a filter is told takes the question with it."""
        ground = Ground(refused_too(R=b""))
        ground.connect()
        ground.wait(ground.reception.mail(address("a@example.net"), {}))
        answer = ground.reception.rcpt(address("x@nowhere.example"), {})
        assert isinstance(answer, Deferred)
        answer.addErrback(lambda failure: None)
        ground.reception.closed("RCPT", "")
        ground.clock.advance(0)
        self.assertTrue(answer.called)
        self.assertEqual(ground.filter.open_ends, 0)
