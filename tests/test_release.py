"""FUTURERELEASE: messages that wait because their client asked for it (RFC 4865)."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Envelope, Notify, Recipient, RecipientState, fresh_state
from mta.transfer.settings import QueueSettings
from mta.transfer.settle import Rules
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.release import FutureRelease, parse_date
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_auth import AuthTerms
from tests.intake_ground import POSTMASTER, STRANGER, WALL, House, address, send

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
DAY = 86400
TERMS = FutureRelease(7 * DAY, int(WALL) + 7 * DAY)


def say(machine: Responder, *lines: bytes) -> bytes:
    """Every question is answered with the usual reply."""
    for line in lines:
        machine.receive(line + b"\r\n")
        while machine.next_event() is not None:
            if machine.is_awaiting:
                machine.answer(None)
    return machine.take_output()


class OfferTests(SynchronousTestCase):
    def responder(self, relays: bool) -> Responder:
        auth = AuthTerms(("PLAIN",), in_clear=True)
        machine = Responder(b"mx.example.org", relays=relays, offers=[TERMS], auth=auth)
        machine.greet()
        machine.take_output()
        return machine

    def test_friends(self) -> None:
        """Who may relay is offered it, with both limits."""
        said = say(self.responder(True), b"EHLO x")
        self.assertIn(b"250-FUTURERELEASE 604800 2027-01-22T08:00:00Z\r\n", said)

    def test_strangers(self) -> None:
        """Nobody else sees it, and the parameter is unknown to him; until he says who he is."""
        machine = self.responder(False)
        said = say(machine, b"EHLO x", b"MAIL FROM:<a@example.net> HOLDFOR=60")
        self.assertNotIn(b"FUTURERELEASE", said)
        self.assertIn(b"555 5.5.4", said)
        said = say(machine, b"AUTH PLAIN AGEAYg==", b"MAIL FROM:<a@example.net> HOLDFOR=60")
        self.assertIn(b"250 2.1.0", said)
        self.assertIn(b"FUTURERELEASE", say(machine, b"EHLO x"))

    def test_wrong(self) -> None:
        """A time that is none, or that cannot be kept, is refused at once."""
        machine = self.responder(True)
        say(machine, b"EHLO x")
        for parameters in (
            b"HOLDFOR",
            b"HOLDFOR=",
            b"HOLDFOR=-1",
            b"HOLDFOR=1d",
            b"HOLDFOR=604801",
            b"HOLDFOR=99999999999",
            b"HOLDUNTIL=tomorrow",
            b"HOLDUNTIL=2027-01-22T08:00:01Z",
            b"HOLDUNTIL=2027-01-22T08:00:00",
            b"HOLDFOR=1 HOLDUNTIL=2027-01-22T08:00:00Z",
        ):
            said = say(machine, b"MAIL FROM:<a@example.net> " + parameters)
            self.assertTrue(said.startswith(b"501 5.5.4"), (parameters, said))

    def test_dates(self) -> None:
        """RFC 3339's dates, with their zones; a space in place of the T, or no zone, is none."""
        for text, second in (
            (b"2027-01-15T08:00:00Z", WALL),
            (b"2027-01-15t09:00:00+01:00", WALL),
            (b"2027-01-15T08:00:00.5z", WALL),
            (b"2027-01-15 08:00:00Z", None),
            (b"2027-01-15T08:00:00", None),
            (b"2027-01-15", None),
            (b"", None),
            (b"\xff" * 20, None),
        ):
            self.assertEqual(parse_date(text), second, text)

    @LIGHT
    @given(st.binary(max_size=60))
    def test_any_octets(self, octets: bytes) -> None:
        """Whatever is said is a number of seconds within the terms, or refused by 501."""
        for check in TERMS.checks.values():
            try:
                value = check(octets)
            except Refused as refused:
                self.assertEqual(refused.reply.code, 501)
            else:
                self.assertTrue(value is not None and 0 <= int(value) <= TERMS.latest)

    @LIGHT
    @given(st.integers(0, 4_000_000_000))
    def test_every_second(self, second: int) -> None:
        """A date means its second."""
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.assertEqual(parse_date(text.encode()), second)


class WaitingTests(SynchronousTestCase):
    def test_due_then(self) -> None:
        """It is ours at once, and due when its client said; a moment that is over is now."""
        for parameters, due in (
            ({b"HOLDFOR": b"3600"}, WALL + 3600),
            ({b"HOLDUNTIL": b"%d" % (WALL + DAY)}, WALL + DAY),
            ({b"HOLDUNTIL": b"%d" % (WALL - DAY)}, WALL),
            ({b"HOLDFOR": b"0"}, WALL),
        ):
            house = House()
            reply = send(house.reception(), parameters=parameters)
            self.assertEqual(reply.code, 250)
            ((_, envelope, state),) = house.offered
            self.assertEqual((state.due, envelope.began_at), (due, due))

    def test_its_time_begins_then(self) -> None:
        """Lifetime and delay warnings count from the moment at which it may go."""
        rules = Rules(QueueSettings(lifetime=DAY, delay_warning=4 * 3600), POSTMASTER)
        envelope = Envelope(
            address("a@example.net"),
            (Recipient(address("b@example.com"), Notify.UNSET),),
            received_at=WALL,
            deferred_until=WALL + 3 * DAY,
        )
        self.assertEqual(fresh_state(envelope).recipients, (RecipientState(),))
        self.assertFalse(rules.is_expired(envelope, WALL + 3 * DAY + DAY - 1))
        self.assertTrue(rules.is_expired(envelope, WALL + 3 * DAY + DAY))

    def test_who_relays(self) -> None:
        """The listener asks the reception who may."""
        house = House()
        self.assertTrue(house.reception().admitted)
        self.assertFalse(house.reception(STRANGER).admitted)
