"""What outcomes make of a message: pure, exhaustive."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.trial.unittest import SynchronousTestCase

from mta.model import (
    Address,
    Envelope,
    EnvelopeKind,
    Notify,
    Outcome,
    OutcomeKind,
    Recipient,
    RecipientStatus,
    Reply,
    Requires,
    fresh_state,
)
from mta.transfer.settings import QueueSettings
from mta.transfer.settle import GONE, Rules, at_once

BOSS = Address(b"postmaster@example.org", b"example.org")
REPLY = {
    OutcomeKind.DELIVERED: Reply(250, "2.0.0", (b"ok",)),
    OutcomeKind.DEFERRED: Reply(451, "4.3.0", (b"later",)),
    OutcomeKind.FAILED: Reply(550, "5.1.1", (b"nobody",)),
    OutcomeKind.UNKNOWN: Reply(451, "4.4.2", (b"lost",)),
}


def message(*notifies, sender=b"alice@example.org", received=1000.0, kind=EnvelopeKind.MESSAGE):
    return Envelope(
        Address(sender),
        tuple(Recipient(Address(b"r%d@x" % i, b"x"), n) for i, n in enumerate(notifies)),
        received_at=received,
        kind=kind,
    )


def settle(envelope, *kinds, now=1000.0, state=None, rules=None, attempts=1, **more):
    rules = rules or Rules(QueueSettings(), BOSS)
    outcomes = [Outcome(i, k, REPLY[k]) for i, k in enumerate(kinds) if k is not None]
    settled = rules.settle(
        envelope,
        state or fresh_state(envelope),
        outcomes,
        now=now,
        spread=0.0,
        attempts=attempts,
        remote="mx[192.0.2.1]:25",
        **more,
    )
    assert at_once(envelope, outcomes) in {None, settled}, (envelope, outcomes)
    return settled


class SettleTests(SynchronousTestCase):
    def test_usual(self):
        """Delivered to its only recipient: it is gone, whatever clock and chance say."""
        only = message(Notify.UNSET)
        self.assertEqual(settle(only, OutcomeKind.DELIVERED), GONE)
        for kind in OutcomeKind:
            outcomes = [Outcome(0, kind, REPLY[kind])]
            is_gone = at_once(only, outcomes) is GONE
            self.assertEqual(is_gone, kind is OutcomeKind.DELIVERED, kind)

    def test_every_combination(self):
        """For every outcome, NOTIFY, sender and age: the state and the report are what RFC 3461
        and the law of reports say."""
        for kind, notify, is_null, is_late in itertools.product(
            OutcomeKind,
            (Notify.UNSET, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE, Notify.DELAY),
            (False, True),
            (False, True),
        ):
            envelope = message(notify, sender=b"" if is_null else b"a@b")
            now = 1000.0 + (6 * 86400.0 if is_late else 0.0)
            found = settle(envelope, kind, now=now)
            case = (kind, notify, is_null, is_late)
            has_failed = kind is OutcomeKind.FAILED or (
                is_late and kind in (OutcomeKind.DEFERRED, OutcomeKind.UNKNOWN)
            )
            self.assertEqual(found.state is None, has_failed or kind is OutcomeKind.DELIVERED, case)
            if kind is OutcomeKind.DELIVERED:
                expected = ["relayed"] if notify is Notify.SUCCESS and not is_null else []
            elif has_failed and notify in (Notify.UNSET, Notify.FAILURE):
                expected = ["double-bounce" if is_null else "failed"]
            else:
                expected = []
            self.assertEqual([r.kind for r in found.reports], expected, case)

    def test_last_resort(self):
        """The message to the postmaster itself: nobody is told, it is dropped."""
        envelope = replace(
            message(Notify.UNSET, sender=b"", kind=EnvelopeKind.REPORT),
            recipients=(Recipient(Address(b"Postmaster@Example.org", b"example.org")),),
        )
        found = settle(envelope, OutcomeKind.FAILED)
        self.assertEqual((found.state, found.reports, found.dropped), (None, (), (0,)))

    def test_partial(self):
        """One DSN names all that failed; the deferred stay; nobody else is touched."""
        envelope = message(*[Notify.UNSET] * 5)
        found = settle(
            envelope,
            OutcomeKind.DELIVERED,
            OutcomeKind.FAILED,
            OutcomeKind.DEFERRED,
            OutcomeKind.FAILED,
            None,
        )
        self.assertEqual([r.recipients for r in found.reports], [(1, 3)])
        self.assertEqual(found.state.pending, (2, 4))
        self.assertEqual(found.state.recipients[4].reply, "")
        self.assertEqual(found.statuses, ("sent", "bounced", "deferred", "bounced"))

    def test_pauses(self):
        """5, 10, 20, 40 minutes, then every hour; the last attempt at the moment of expiry."""
        rules, envelope = Rules(QueueSettings(jitter=0.0), BOSS), message(Notify.UNSET)
        pauses = [rules.next_due(envelope, n, 1000.0, 0.0) - 1000.0 for n in range(8)]
        self.assertEqual(pauses, [300, 300, 600, 1200, 2400, 3600, 3600, 3600])
        end = rules.expires(envelope)
        self.assertEqual(rules.next_due(envelope, 9, end - 10.0, 0.0), end)

    def test_lifetimes(self):
        """Messages live five days, reports one, counted from when they were to be sent; a latest
        delivery time ends them earlier."""
        rules = Rules(QueueSettings(), BOSS)
        day = 86400.0
        self.assertEqual(rules.expires(message(Notify.UNSET)), 1000.0 + 5 * day)
        self.assertEqual(rules.expires(message(Notify.UNSET, sender=b"")), 1000.0 + day)
        later = replace(message(Notify.UNSET), deferred_until=1000.0 + day)
        self.assertEqual(rules.expires(later), 1000.0 + 6 * day)
        timed = replace(later, deliver_by=2000.0)
        self.assertEqual(rules.expires(timed), 1000.0 + 6 * day)
        self.assertEqual(rules.expires(replace(timed, requires=Requires.IN_TIME)), 2000.0)

    def test_delay_warning_once(self):
        """The delay notice comes once, after its time, for those who may hear it."""
        rules = Rules(QueueSettings(delay_warning=3600.0), BOSS)
        envelope = message(Notify.UNSET, Notify.DELAY, Notify.FAILURE, Notify.NEVER)
        late = [OutcomeKind.DEFERRED] * 4
        early = settle(envelope, *late, rules=rules, now=4599.0)
        self.assertEqual(early.reports, ())
        found = settle(envelope, *late, rules=rules, now=4600.0)
        self.assertEqual([(r.kind, r.recipients) for r in found.reports], [("delayed", (0, 1))])
        again = settle(envelope, *late, rules=rules, now=9000.0, state=found.state)
        self.assertEqual(again.reports, ())

    def test_in_doubt_hold(self):
        """`in-doubt: hold` holds a message in doubt, also when it is too old."""
        for now in (1000.0, 1000.0 + 9 * 86400.0):
            found = settle(message(Notify.UNSET), OutcomeKind.UNKNOWN, now=now, hold_unknown=True)
            self.assertTrue(found.state.held)
            self.assertEqual(found.reports, ())

    KINDS = st.lists(
        st.one_of(st.none(), st.sampled_from(list(OutcomeKind))), min_size=1, max_size=6
    )
    NOTIFIES = st.sampled_from([Notify.UNSET, Notify.NEVER, Notify.FAILURE | Notify.DELAY])

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(KINDS, st.data(), st.booleans(), st.floats(0, 7 * 86400), st.floats(-1, 1))
    def test_laws(self, kinds, data, is_null, age, spread):
        """For any outcomes: final states stay final, every failure is told, excused or dropped,
        nobody hears of a delivered or an untouched recipient, and the next attempt lies ahead."""
        envelope = message(
            *(data.draw(self.NOTIFIES) for _ in kinds), sender=b"" if is_null else b"a@b"
        )
        rules = Rules(QueueSettings(), BOSS)
        outcomes = [Outcome(i, k, REPLY[k]) for i, k in enumerate(kinds) if k is not None]
        state = fresh_state(envelope)
        now = 1000.0 + age
        found = rules.settle(
            envelope, state, outcomes, now=now, spread=spread, attempts=1, remote="x"
        )
        failed = {
            o.recipient
            for o, s in zip(outcomes, found.statuses, strict=True)
            if s in ("bounced", "expired")
        }
        told = {i for r in found.reports if r.kind != "delayed" for i in r.recipients}
        excused = {i for i in failed if envelope.recipients[i].notify is Notify.NEVER}
        self.assertEqual(told | set(found.dropped), failed - excused)
        if found.state is None:
            self.assertNotIn(None, kinds)
            return
        self.assertGreater(found.state.due, now)
        self.assertEqual(len(found.state.recipients), len(kinds))
        for index, kind in enumerate(kinds):
            status = found.state.recipients[index].status
            if kind is None:
                self.assertEqual(found.state.recipients[index], state.recipients[index])
            elif kind is OutcomeKind.DELIVERED:
                self.assertEqual(status, RecipientStatus.DELIVERED)
            else:
                self.assertEqual(status is RecipientStatus.FAILED, index in failed)


class SettingsTests(SynchronousTestCase):
    def test_refusals(self):
        """Settings that would hammer a peer or never warn are refused."""
        for wrong in (
            {"backoff": []},
            {"backoff": ["0s"]},
            {"lifetime": "0s"},
            {"delay-warning": "6d"},
            {"jitter": 0.9},
            {"active-limit": 0},
        ):
            self.assertRaises(ValidationError, QueueSettings.model_validate, wrong)
