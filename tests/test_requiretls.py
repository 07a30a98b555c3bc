"""REQUIRETLS: a message that travels under TLS alone, or comes back (RFC 8689)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Envelope, Recipient, Reply, Requires
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_envelope import NO_REQUIRETLS, commands
from mta.wire.smtp.client_states import Secrecy, Unfit
from mta.wire.smtp.server import Responder
from mta.wire.smtp.states import Security
from tests.intake_ground import House, address, send

SENDER, YOU = address("a@example.net"), address("b@example.com")
OFFERED = {b"REQUIRETLS": b"", b"SMTPUTF8": b""}


def say(machine: Responder, *lines: bytes) -> bytes:
    """Every question is answered with the usual reply."""
    for line in lines:
        machine.receive(line + b"\r\n")
        while machine.next_event() is not None:
            if machine.is_awaiting:
                machine.answer(None)
    return machine.take_output()


class ResponderTests(SynchronousTestCase):
    def test_under_tls_alone(self) -> None:
        """It is offered and taken under TLS, where it is wanted, and nowhere else."""
        for security, wanted, offered in (
            (Security.PRESENT, True, True),
            (Security.OFFERED, True, False),
            (Security.NONE, True, False),
            (Security.PRESENT, False, False),
        ):
            machine = Responder(b"mx.example.org", security=security, requiretls=wanted)
            machine.greet()
            said = say(machine, b"EHLO x", b"MAIL FROM:<a@example.net> REQUIRETLS")
            self.assertIs(b"250-REQUIRETLS\r\n" in said, offered)
            self.assertIs(b"250 2.1.0" in said, offered)
            self.assertIs(b"555 5.5.4" in said, not offered)

    def test_behind_starttls(self) -> None:
        """STARTTLS brings it."""
        machine = Responder(b"mx.example.org", security=Security.OFFERED, requiretls=True)
        machine.greet()
        say(machine, b"EHLO x", b"STARTTLS")
        machine.secured()
        self.assertIn(b"REQUIRETLS", say(machine, b"EHLO x"))

    def test_no_value(self) -> None:
        machine = Responder(b"mx.example.org", security=Security.PRESENT, requiretls=True)
        machine.greet()
        said = say(machine, b"EHLO x", b"MAIL FROM:<a@example.net> REQUIRETLS=yes")
        self.assertIn(b"501 5.5.4", said)


class EnvelopeTests(SynchronousTestCase):
    def test_kept(self) -> None:
        """The queue knows it, beside what else the message needs."""
        house = House()
        send(house.reception(), parameters={b"REQUIRETLS": None})
        send(
            house.reception(),
            "Subject: é\r\n\r\nx\r\n".encode(),
            parameters={b"REQUIRETLS": None, b"SMTPUTF8": None},
        )
        one, other = (envelope.requires for _, envelope, _ in house.offered)
        self.assertEqual((one, other), (Requires.TLS, Requires.TLS | Requires.UTF8))


class InitiatorTests(SynchronousTestCase):
    def told(self, verified: bool, offered: bool, requires: Requires = Requires.TLS) -> object:
        envelope = Envelope(SENDER, (Recipient(YOU),), requires=requires)
        extensions = OFFERED if offered else {}
        return commands(
            extensions, SENDER, [(0, YOU)], envelope, 100, eight_bit=False, verified=verified
        )

    def test_said_on(self) -> None:
        """To a server that was verified and offers it, it is said on."""
        lines = self.told(verified=True, offered=True)
        assert isinstance(lines, list)
        self.assertEqual(lines[0], b"MAIL FROM:<a@example.net> REQUIRETLS\r\n")

    def test_nobody_else(self) -> None:
        """No other server gets the message, which may go to another and else comes back."""
        for verified, offered in ((False, True), (True, False), (False, False)):
            refused = self.told(verified, offered)
            assert isinstance(refused, Reply)
            self.assertEqual((refused.code, refused.enhanced), (550, "5.7.30"))

    def test_others(self) -> None:
        """A message that does not ask for it goes as ever, and nothing is said of it."""
        lines = self.told(verified=False, offered=True, requires=Requires.NOTHING)
        self.assertEqual(lines[0], b"MAIL FROM:<a@example.net>\r\n")  # type: ignore[index]


class AssociationTests(SynchronousTestCase):
    def prepared(self, verified: bool) -> tuple[list[object], bytes]:
        """What a message that requires TLS comes to behind STARTTLS."""
        machine = Initiator(b"bridgehead.example.org", secrecy=Secrecy.ALWAYS)
        machine.receive(b"220 x\r\n")
        machine.receive(b"250-x\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
        machine.receive(b"220 go\r\n")
        machine.secured(verified=verified)
        machine.receive(b"250-x\r\n250-PIPELINING\r\n250 REQUIRETLS\r\n")
        machine.take_output()
        envelope = Envelope(SENDER, (Recipient(YOU),), requires=Requires.TLS)
        events = machine.prepare("m", SENDER, [(0, YOU)], 100, False, envelope=envelope)
        return list(events), machine.take_output()

    def test_verified(self) -> None:
        """Behind a certificate that was verified it is said."""
        events, said = self.prepared(verified=True)
        self.assertEqual(events, [])
        self.assertTrue(said.startswith(b"MAIL FROM:<a@example.net> REQUIRETLS\r\n"), said)

    def test_not_verified(self) -> None:
        """TLS with whomever it may be is not enough."""
        (unfit,), said = self.prepared(verified=False)
        assert isinstance(unfit, Unfit)
        self.assertEqual((unfit.reply, said), (NO_REQUIRETLS, b""))
