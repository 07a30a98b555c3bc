"""DELIVERBY: messages that are of use until a time only (RFC 2852)."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.commands import entry_facts
from mta.model import (
    Envelope,
    Notify,
    Outcome,
    OutcomeKind,
    QueueEntry,
    Recipient,
    Reply,
    Requires,
    fresh_state,
)
from mta.spool.envelopes import decode_envelope, encode_envelope
from mta.transfer.settings import QueueSettings
from mta.transfer.settle import GONE, HandedOn, Rules
from mta.transfer.wishes import TOO_LATE
from mta.wire.dsn import Action, RecipientStatus, build_report
from mta.wire.smtp.client_envelope import commands
from mta.wire.smtp.deliver_by import MOST_SECONDS, DeliverBy, by_words, least_of, parse_by
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_auth import AuthTerms
from tests.intake_ground import POSTMASTER, WALL, House, address, send
from tests.test_release import say

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
DAY = 86400
MODES = st.sampled_from(
    [
        Requires.NOTHING,
        Requires.IN_TIME,
        Requires.TRACE,
        Requires.IN_TIME | Requires.TRACE,
    ]
)


def message(
    *notifies: Notify, requires: Requires = Requires.IN_TIME, by: float = 600.0, **more: object
) -> Envelope:
    """Accepted at WALL, to be delivered `by` seconds later."""
    return replace(
        Envelope(
            address("a@example.net"),
            tuple(
                Recipient(address(f"r{i}@example.com"), n)
                for i, n in enumerate(notifies or (Notify.UNSET,))
            ),
            requires=requires,
            received_at=WALL,
            deliver_by=WALL + by,
        ),
        **more,
    )


class OfferTests(SynchronousTestCase):
    def responder(self, relays: bool, least: int = 0) -> Responder:
        auth = AuthTerms(("PLAIN",), in_clear=True)
        machine = Responder(b"x", relays=relays, offers=[DeliverBy(least)], auth=auth)
        machine.greet()
        machine.take_output()
        return machine

    def test_friends(self) -> None:
        """Who may relay is offered it, with the least time if there is one."""
        self.assertIn(b"250-DELIVERBY\r\n", say(self.responder(True), b"EHLO x"))
        self.assertIn(b"250-DELIVERBY 10\r\n", say(self.responder(True, 10), b"EHLO x"))

    def test_strangers(self) -> None:
        """Nobody else is, until he says who he is."""
        machine = self.responder(False)
        said = say(machine, b"EHLO x", b"MAIL FROM:<a@example.net> BY=60;R")
        self.assertNotIn(b"DELIVERBY", said)
        self.assertIn(b"555 5.5.4", said)
        said = say(machine, b"AUTH PLAIN AGEAYg==", b"MAIL FROM:<a@example.net> BY=60;R")
        self.assertIn(b"250 2.1.0", said)

    @LIGHT
    @given(
        st.binary(max_size=20)
        | st.from_regex(rb"[+-]?[0-9]{0,10};?[NRTnrt]{0,3}", fullmatch=True)
        | st.none(),
        st.integers(0, 1000),
    )
    def test_any_octets(self, octets: bytes | None, least: int) -> None:
        """Whatever is said is a time that can be kept, in one form, or refused at once."""
        check = DeliverBy(least).checks[b"BY"]
        try:
            value = check(octets)
        except Refused as refused:
            self.assertIn(refused.reply.code, (501, 555))
            return
        by = parse_by(value)
        self.assertEqual((check(value), by), (value, parse_by(octets)))
        self.assertTrue(abs(by.seconds) <= MOST_SECONDS)
        self.assertTrue(not by.returns or by.seconds >= max(1, least))


class InitiatorTests(SynchronousTestCase):
    @LIGHT
    @given(
        MODES,
        st.floats(-1e12, 1e12),
        st.sampled_from([None, b"", b"10", b"10,x", b"x"]),
        st.booleans(),
    )
    def test_handed_on(
        self, requires: Requires, seconds: float, offered: bytes | None, relays: bool
    ) -> None:
        """What is said on is what is left at most, and a server of our kind would take it; what
        must be in time goes to nobody who would not see to it."""
        extensions = {} if offered is None else {b"DELIVERBY": offered}
        envelope = message(requires=requires)
        words = by_words(extensions, envelope, seconds, relays=relays)
        if isinstance(words, Reply):
            self.assertEqual((words.code, words.enhanced), (554, "5.4.7"))
            self.assertTrue(relays and requires & Requires.IN_TIME)
            return
        if not words:
            self.assertTrue(offered is None or not relays)
            self.assertFalse(relays and requires & Requires.IN_TIME)
            return
        assert offered is not None
        self.assertTrue(words.startswith(b" BY="))
        by = parse_by(DeliverBy(least_of(offered)).checks[b"BY"](words[4:]))
        self.assertTrue(by.seconds <= max(seconds, -MOST_SECONDS))
        self.assertEqual(by.returns, bool(requires & Requires.IN_TIME))
        self.assertEqual(by.traces, bool(requires & Requires.TRACE))

    @LIGHT
    @given(st.binary(max_size=30))
    def test_least_time(self, parameters: bytes) -> None:
        """Whatever a server says behind DELIVERBY is a time or none."""
        self.assertTrue(0 <= least_of(parameters) <= MOST_SECONDS)


class WatchedTests(SynchronousTestCase):
    """RFC 2852 4.1.4.2: a server that knows no time is asked to tell of delays."""

    def said(self, *notifies: Notify, seconds: float = 60.0, offered: str = "DSN", **more: object):
        envelope = message(*notifies, requires=Requires.NOTHING)
        numbered = list(enumerate(r.address for r in envelope.recipients))
        lines = commands(
            dict.fromkeys(offered.encode().split(), b""),
            envelope.sender,
            numbered,
            envelope,
            100,
            eight_bit=False,
            seconds_left=seconds,
            **more,
        )
        assert isinstance(lines, list)
        return [line.strip().partition(b"> ")[2].decode() for line in lines[1:-1]]

    def test_asked_to_tell(self) -> None:
        """Besides what the sender wants to hear; who wants to hear nothing is left alone."""
        self.assertEqual(
            self.said(Notify.UNSET, Notify.SUCCESS, Notify.NEVER, Notify.FAILURE | Notify.DELAY),
            [
                "NOTIFY=FAILURE,DELAY",
                "NOTIFY=SUCCESS,DELAY",
                "NOTIFY=NEVER",
                "NOTIFY=FAILURE,DELAY",
            ],
        )

    def test_left_as_it_is(self) -> None:
        """A server that keeps to the time, a time that is over, a last station, no DSN."""
        self.assertEqual(self.said(Notify.SUCCESS, offered="DSN DELIVERBY"), ["NOTIFY=SUCCESS"])
        self.assertEqual(self.said(Notify.SUCCESS, seconds=0.0), ["NOTIFY=SUCCESS"])
        self.assertEqual(self.said(Notify.SUCCESS, relays=False), ["NOTIFY=SUCCESS"])
        self.assertEqual(self.said(Notify.SUCCESS, offered="SIZE"), [""])
        self.assertEqual(self.said(Notify.UNSET, seconds=-1.0), [""])


class AcceptedTests(SynchronousTestCase):
    def test_from_mail_on(self) -> None:
        """The time is counted from MAIL, however long the content takes."""
        for value, requires in (
            (b"600;R", Requires.IN_TIME),
            (b"600;N", Requires.NOTHING),
            (b"-60;NT", Requires.TRACE),
            (b"600;RT", Requires.IN_TIME | Requires.TRACE),
        ):
            house = House()
            reception = house.reception()
            reception.helo(b"client.example.net", "ESMTP")
            reception.mail(address("a@example.net"), {b"BY": value})
            reception.rcpt(address("b@example.com"), {})
            house.clock.advance(300.0)
            reception.data()
            reception.chunk(b"Subject: x\r\n\r\nx\r\n")
            house.clock.advance(300.0)
            self.successResultOf(reception.end(None))
            ((_, envelope, _),) = house.offered
            self.assertEqual(envelope.deliver_by, WALL + int(value.partition(b";")[0]))
            self.assertEqual(envelope.requires, requires)

    def test_others(self) -> None:
        """Who says nothing has no time, also behind somebody who had."""
        house = House()
        reception = house.reception()
        send(reception, parameters={b"BY": b"600;R"})
        reception.acknowledged()
        send(reception)
        self.assertEqual([e.deliver_by for _, e, _ in house.offered], [WALL + 600, None])

    def test_held(self) -> None:
        """What is to wait until it would have to be returned is refused; N may wait (RFC 4865)."""
        for parameters, refused in (
            ({b"BY": b"600;R", b"HOLDFOR": b"600"}, True),
            ({b"BY": b"600;R", b"HOLDUNTIL": b"%d" % (WALL + 601)}, True),
            ({b"BY": b"600;R", b"HOLDFOR": b"599"}, False),
            ({b"BY": b"600;N", b"HOLDFOR": b"6000"}, False),
        ):
            reception = House().reception()
            reception.helo(b"client.example.net", "ESMTP")
            answer = reception.mail(address("a@example.net"), parameters)
            self.assertEqual(answer, TOO_LATE if refused else None, parameters)

    def test_kept(self) -> None:
        """The queue keeps the time and its kind; other messages lie there as they always did."""
        for requires in (Requires.NOTHING, Requires.IN_TIME, Requires.TRACE, Requires(31)):
            envelope = message(requires=requires)
            self.assertEqual(decode_envelope(encode_envelope(envelope)), envelope)
        plain = encode_envelope(message(requires=Requires.TLS, deliver_by=None))
        self.assertEqual(plain[4], 1)


class RulesTests(SynchronousTestCase):
    def rules(self, **keys: object) -> Rules:
        return Rules(QueueSettings(jitter=0.0, **keys), POSTMASTER)

    def settle(
        self,
        envelope: Envelope,
        kind: OutcomeKind,
        after: float = 0.0,
        rules: Rules | None = None,
        **more: object,
    ) -> object:
        code = {OutcomeKind.DELIVERED: 250, OutcomeKind.FAILED: 550}.get(kind, 450)
        outcomes = [
            Outcome(i, kind, Reply(code, f"{code // 100}.0.0", (b"x",)))
            for i in range(len(envelope.recipients))
        ]
        state = more.pop("state", None) or fresh_state(envelope)
        return (rules or self.rules()).settle(
            envelope,
            state,
            outcomes,
            now=WALL + after,
            spread=0.0,
            attempts=1,
            remote="x",
            **more,
        )

    def test_returned(self) -> None:
        """R: deferred in time it waits; deferred when the time is over it comes back, once."""
        found = self.settle(message(), OutcomeKind.DEFERRED, 599.9)
        self.assertEqual((found.statuses, found.reports), (("deferred",), ()))
        found = self.settle(message(), OutcomeKind.DEFERRED, 600.0)
        self.assertEqual((found.state, found.statuses), (None, ("expired",)))
        self.assertEqual([r.kind for r in found.reports], ["failed"])

    def test_told(self) -> None:
        """N: its sender is told once that it is late, and it is tried on."""
        rules, envelope = self.rules(), message(requires=Requires.NOTHING)
        self.assertEqual(self.settle(envelope, OutcomeKind.DEFERRED, 599.9).reports, ())
        found = self.settle(envelope, OutcomeKind.DEFERRED, 600.0)
        self.assertEqual([r.kind for r in found.reports], ["delayed"])
        again = self.settle(envelope, OutcomeKind.DEFERRED, 900.0, state=found.state)
        self.assertEqual(again.reports, ())
        self.assertEqual(rules.expires(envelope), WALL + 5 * DAY)
        self.assertFalse(rules.is_over(envelope, WALL + 600))

    def test_his_time_counts(self) -> None:
        """Who gave a time is told then, not when the operator would tell."""
        rules = self.rules(delay_warning=60.0)
        envelope = message(requires=Requires.NOTHING)
        found = self.settle(envelope, OutcomeKind.DEFERRED, 300.0, rules)
        self.assertEqual(found.reports, ())
        found = self.settle(envelope, OutcomeKind.DEFERRED, 600.0, rules)
        self.assertEqual([r.kind for r in found.reports], ["delayed"])

    def test_one_word_for_all(self) -> None:
        """The late message has one report, about everybody who waits by whatever way, of those who
        may hear of a delay; nobody who may: it counts as told."""
        envelope = message(
            Notify.UNSET, Notify.DELAY, Notify.FAILURE, Notify.NEVER, requires=Requires.NOTHING
        )
        rules, state = self.rules(), fresh_state(envelope)
        only = [Outcome(0, OutcomeKind.DEFERRED, Reply(450, "4.2.0"))]
        found = rules.settle(
            envelope, state, only, now=WALL + 600, spread=0.0, attempts=1, remote="x"
        )
        self.assertEqual([(r.kind, r.recipients) for r in found.reports], [("delayed", (0, 1))])
        deaf = message(Notify.FAILURE, requires=Requires.NOTHING)
        self.assertTrue(rules.is_late(deaf, fresh_state(deaf), WALL + 600))
        found = self.settle(deaf, OutcomeKind.DEFERRED, 600.0)
        self.assertEqual(found.reports, ())
        self.assertFalse(rules.is_late(deaf, found.state, WALL + 600))

    def test_over_before_it_came(self) -> None:
        """N may come late: its sender is told when it could not be delivered at once."""
        envelope = message(requires=Requires.NOTHING, by=-5.0)
        found = self.settle(envelope, OutcomeKind.DEFERRED)
        self.assertEqual([r.kind for r in found.reports], ["delayed"])
        self.assertGreater(found.state.due, WALL)

    def test_handed_on(self) -> None:
        """Who is told that it was handed on: T always, N by a server that knows of no times
        (RFC 2852 4.1.4); never who said NEVER, nor a null sender, nor of its last station."""
        usual = (Notify.UNSET, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE)
        for requires, notify, handed_on, is_null in itertools.product(
            (Requires.NOTHING, Requires.IN_TIME, Requires.TRACE, Requires(24)),
            usual,
            HandedOn,
            (False, True),
        ):
            for success in ("relayed", ""):
                envelope = message(notify, requires=requires)
                if is_null:
                    envelope = replace(envelope, sender=address(""))
                found = self.settle(
                    envelope, OutcomeKind.DELIVERED, success=success, handed_on=handed_on
                )
                wanted = []
                if notify is Notify.SUCCESS and success:
                    wanted = [success]
                elif notify is Notify.NEVER or handed_on is HandedOn.NO:
                    wanted = []
                elif handed_on is HandedOn.UNTIMED and not requires & Requires.IN_TIME:
                    wanted = ["untimed"]
                elif requires & Requires.TRACE:
                    wanted = ["traced"]
                self.assertEqual(
                    [r.kind for r in found.reports],
                    [] if is_null else wanted,
                    (requires, notify, handed_on, success),
                )
                self.assertIsNone(found.state)

    def test_no_time(self) -> None:
        """A message without a time is gone with its delivery, whoever took it."""
        for handed_on in HandedOn:
            envelope = message(deliver_by=None, requires=Requires.NOTHING)
            found = self.settle(envelope, OutcomeKind.DELIVERED, handed_on=handed_on)
            self.assertEqual(found, GONE)

    def test_excused(self) -> None:
        """R with NOTIFY=NEVER goes without a word; of a null sender the postmaster hears."""
        found = self.settle(message(Notify.NEVER), OutcomeKind.DEFERRED, 600.0)
        self.assertEqual((found.state, found.reports), (None, ()))
        found = self.settle(replace(message(), sender=address("")), OutcomeKind.DEFERRED, 600.0)
        self.assertEqual([r.kind for r in found.reports], ["double-bounce"])
        late = replace(message(requires=Requires.NOTHING), sender=address(""))
        found = self.settle(late, OutcomeKind.DEFERRED, 600.0)
        self.assertEqual(found.reports, ())
        self.assertFalse(self.rules().is_late(late, found.state, WALL + 700))

    def test_last_try(self) -> None:
        """R: the last try is 15 seconds before the end, of a short time in its last quarter; then
        the end itself. No pause skips either."""
        for by, last in ((600.0, 585.0), (8.0, 6.0)):
            rules, envelope = self.rules(), message(by=by)
            due = rules.next_due(envelope, 1, WALL, 0.0)
            self.assertEqual(due, min(WALL + 300.0, WALL + last))
            self.assertEqual(rules.next_due(envelope, 5, WALL + 1, 0.0), WALL + last)
            self.assertEqual(rules.next_due(envelope, 5, WALL + last, 0.0), WALL + by)
            self.assertFalse(rules.is_last_try(envelope, WALL + last - 0.1))
            self.assertTrue(rules.is_last_try(envelope, WALL + last))
            self.assertFalse(rules.is_last_try(envelope, WALL + by))

    @LIGHT
    @given(
        MODES,
        st.floats(-1000, 10 * DAY),
        st.floats(0, 10 * DAY),
        st.integers(0, 50),
        st.floats(-1, 1),
    )
    def test_no_moment_is_skipped(
        self, requires: Requires, by: float, after: float, attempts: int, spread: float
    ) -> None:
        """Whatever the pauses: the next attempt lies ahead, and not behind what the time asks for
        next, nor behind the lifetime."""
        rules, now = Rules(QueueSettings(), POSTMASTER), WALL + after
        envelope = message(requires=requires, by=by)
        due, moment = (
            rules.next_due(envelope, attempts, now, spread),
            rules.next_moment(envelope, now),
        )
        self.assertGreater(due, now)
        if moment is not None:
            self.assertTrue(now < moment and due <= moment)
        end = rules.expires(envelope)
        self.assertTrue(now >= end or due <= end)

    def test_suspect_clock(self) -> None:
        """While the clock is not believed nothing is over."""
        rules = self.rules()
        rules.may_expire = False
        self.assertFalse(rules.is_over(message(), WALL + 6000))


class WordsTests(SynchronousTestCase):
    def report(self, action: Action, **keys: object) -> bytes:
        return build_report(
            reporting_mta="mx.example.org",
            report_id="1",
            to=b"a@example.net",
            recipients=[RecipientStatus(b"b@example.com", action, "5.4.7")],
            date=WALL,
            arrival=WALL,
            deliver_by=WALL + 600,
            **keys,
        )

    def test_date(self) -> None:
        """A report says until when the message was to be delivered, for people and programs."""
        content = self.report(Action.FAILED)
        self.assertIn(b"\r\nIt was to be delivered by Fri, 15 Jan 2027 08:10:00 +0000\r\n", content)
        self.assertIn(b"\r\nDeliver-By-Date: Fri, 15 Jan 2027 08:10:00 +0000\r\n", content)

    def test_relayed(self) -> None:
        """What was handed on to somebody who reports on it is not said to be the last word."""
        content = self.report(Action.RELAYED, remark="You asked.")
        self.assertNotIn(b"do not send further reports", content)
        self.assertIn(b"handed to the servers below.\r\nYou asked.\r\n", content)


class ShownTests(SynchronousTestCase):
    def test_operator_sees_it(self) -> None:
        """`mta queue show` says until when, and what then."""
        for envelope, date, words in (
            (message(), "2027-01-15T08:10:00Z", "IN_TIME"),
            (message(requires=Requires(24)), "2027-01-15T08:10:00Z", "IN_TIME|TRACE"),
            (message(requires=Requires.NOTHING, deliver_by=None), "", "NOTHING"),
        ):
            entry = QueueEntry("1", 100, envelope, fresh_state(envelope), False)
            facts = entry_facts(entry, full=True)
            self.assertTrue(facts["deliver_by"].startswith(date[:19]), facts["deliver_by"])
            self.assertEqual(bool(facts["deliver_by"]), bool(date))
            self.assertEqual(facts["requires"], words)
