"""Submission: who may hand mail in, under which sender, and what is completed on the way."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.association.smtp_listener import SmtpListener
from mta.association.smtp_settings import SmtpListenerSettings, SubmissionListenerSettings
from mta.errors import LocalProtocolError, PermanentFailure, StartRefused, TransientFailure
from mta.interfaces import IAuthenticatingReception, IAuthenticator, IAuthExchange
from mta.model import NULL_ADDRESS, Authenticated, Challenge, PeerInfo, Reply
from mta.policy.submission import WHO, SubmissionRule, is_own
from mta.telemetry import Accepted, Notice, Rejected
from mta.testing.surroundings import MemorySurroundings
from mta.transfer.identity import FAILURE_SECONDS
from tests.intake_ground import MESSAGE, STRANGER, House, Recorder, address, begin, send

REFUSED = PermanentFailure("no", code=535, enhanced="5.7.8")


@implementer(IAuthExchange)
class Exchange:
    def __init__(self, host: Authenticator) -> None:
        self.host = host
        self.is_abandoned = False

    def step(self, response: bytes | None) -> Deferred[Challenge | Authenticated]:
        self.host.heard.append(response)
        answer = self.host.answers.pop(0)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def abandon(self) -> None:
        self.is_abandoned = True


@implementer(IAuthenticator)
class Authenticator:
    """Answers what a test put down."""

    mechanisms = ("PLAIN", "LOGIN")

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.heard: list[bytes | None] = []
        self.exchanges: list[Exchange] = []

    def begin(self, mechanism: str, peer: PeerInfo) -> Exchange:
        self.exchanges.append(Exchange(self))
        return self.exchanges[-1]


def house(*answers: Any, rule: SubmissionRule | None = None, policies: Any = ()) -> House:
    """Whose clients can say who they are; with a `rule` they hand mail in."""
    found = House(policies, authenticator=Authenticator(*answers))
    if rule is not None:
        found.intake.submission = {"smtp": rule}
    return found


class IdentityTests(SynchronousTestCase):
    def test_contracts(self) -> None:
        verifyObject(IAuthenticatingReception, house().reception())
        verifyObject(IAuthenticator, Authenticator())
        verifyObject(IAuthExchange, Exchange(Authenticator()))

    def test_who_is_known_may_relay(self) -> None:
        """A stranger who says who he is sends to wherever there is a route; log and Received name
        how, and the log who.
        """
        here = house(Authenticated("bob"))
        reception = here.reception(STRANGER)
        self.assertEqual(begin(reception, "b@x.example.net")[1].code, 554)
        reception.reset()
        self.assertIsNone(self.successResultOf(reception.auth("PLAIN", b"\0bob\0pw")))
        self.assertEqual(send(reception, MESSAGE, "b@x.example.net").code, 250)
        (accepted,) = here.kinds(Accepted)
        self.assertEqual(
            (accepted.protocol, accepted.sasl_method, accepted.sasl_username),
            ("ESMTPA", "PLAIN", "bob"),
        )
        self.assertIn(b"with ESMTPA\r\n", here.spool.stagings[-1].stored)
        self.assertNotIn(b"bob", here.spool.stagings[-1].stored)

    def test_challenges(self) -> None:
        """A challenge goes out in base64 and is no refusal; the next response answers it."""
        here = house(Challenge(b"Password:"), Authenticated("bob"))
        reception = here.reception(STRANGER)
        asked = self.successResultOf(reception.auth("LOGIN", None))
        self.assertEqual((asked.code, b64decode(asked.lines[0])), (334, b"Password:"))
        self.assertIsNone(self.successResultOf(reception.auth_response(b"pw")))
        self.assertEqual(here.intake._desk.authenticator.heard, [None, b"pw"])
        self.assertEqual(here.kinds(Rejected), [])

    def test_refusals_come_late(self) -> None:
        """Whoever guesses waits; the reply tells nothing, and the log neither name nor password, in
        the words that tools which ban hosts read.
        """
        here = house(REFUSED)
        reception = here.reception(STRANGER)
        answered = reception.auth("PLAIN", b"\0bob\0secret")
        here.clock.advance(FAILURE_SECONDS - 0.1)
        self.assertNoResult(answered)
        here.clock.advance(0.1)
        self.assertEqual(
            self.successResultOf(answered), Reply(535, "5.7.8", (b"Authentication failed",))
        )
        (notice,) = here.kinds(Notice)
        self.assertEqual(notice.text, f"unknown[{STRANGER}]: SASL PLAIN authentication failed")
        self.assertNotIn("secret", str(here.events))
        self.assertEqual(begin(reception, "b@x.example.net")[1].code, 554)

    def test_malformed(self) -> None:
        """What is no response of the mechanism is told so, as late."""
        here = house(PermanentFailure("no", code=501, enhanced="5.5.2"))
        answered = here.reception(STRANGER).auth("PLAIN", b"rubbish")
        here.clock.advance(FAILURE_SECONDS)
        self.assertEqual(self.successResultOf(answered).code, 501)

    def test_away(self) -> None:
        """Where nobody can be asked, the client comes again, at once, and the log says why."""
        here = house(TransientFailure("dovecot is away", "no such file"))
        answered = here.reception(STRANGER).auth("PLAIN", b"")
        self.assertEqual(
            self.successResultOf(answered),
            Reply(454, "4.7.0", (b"Temporary authentication failure",)),
        )
        (notice,) = here.kinds(Notice)
        self.assertIn("cannot be checked: dovecot is away", notice.text)

    def test_given_up(self) -> None:
        """Giving up, beginning anew, and going away each abandon the exchange."""
        here = house(Challenge(b""), Challenge(b""), Deferred())
        reception = here.reception(STRANGER)
        exchanges = here.intake._desk.authenticator.exchanges
        reception.auth("LOGIN", None)
        self.assertFalse(reception.auth_response(None).is_positive)
        reception.auth("LOGIN", None)
        waiting = reception.auth("LOGIN", None)
        reception.closed("AUTH", "")
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual([e.is_abandoned for e in exchanges], [True, True, True])

    def test_gone_while_a_refusal_waits(self) -> None:
        """A client that hangs up leaves no timer behind."""
        here = house(REFUSED)
        reception = here.reception(STRANGER)
        waiting = reception.auth("PLAIN", b"")
        reception.closed("AUTH", "")
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(here.clock.reactor.getDelayedCalls(), [])

    def test_tls_forgets(self) -> None:
        """What was said before TLS counts no more."""
        here = house(Authenticated("bob"))
        reception = here.reception(STRANGER)
        reception.auth("PLAIN", b"")
        reception.secured("TLSv1.3")
        reception.helo(b"x", "ESMTPS")
        self.assertEqual(begin(reception, "b@x.example.net")[1].code, 554)

    def test_policies_hear_of_it(self) -> None:
        """A policy may not want a user: then he is nobody."""
        no = Reply(535, "5.7.8", (b"Not you",))
        policy = Recorder(auth=lambda t: no if t.user == "bob" else None)
        here = house(Authenticated("bob"), Authenticated("eve"), policies=(policy,))
        reception = here.reception(STRANGER)
        self.assertEqual(self.successResultOf(reception.auth("PLAIN", b"")), no)
        self.assertEqual(begin(reception, "b@x.example.net")[1].code, 554)
        reception.reset()
        self.assertIsNone(self.successResultOf(reception.auth("PLAIN", b"")))
        self.assertIsNone(begin(reception, "b@x.example.net")[1])

    def test_nobody_to_ask(self) -> None:
        """Without a block `auth` nothing is offered."""
        reception = House().reception()
        self.assertEqual(reception.mechanisms, ())
        self.assertRaises(LocalProtocolError, reception.auth, "PLAIN", b"")


class SubmissionTests(SynchronousTestCase):
    def test_who_first(self) -> None:
        """Nobody hands mail in who has not said who he is, not even to our own domains."""
        here = house(Authenticated("bob"), rule=SubmissionRule())
        reception = here.reception(STRANGER)
        self.assertEqual(reception.mail(address("a@example.net"), {}), WHO)
        (rejected,) = here.kinds(Rejected)
        self.assertEqual(rejected.stage, "MAIL")
        self.assertIsNone(self.successResultOf(reception.auth("PLAIN", b"")))
        self.assertEqual(send(reception).code, 250)

    def test_relay_from(self) -> None:
        """Clients in relay-from need not."""
        here = house(rule=SubmissionRule(own_senders=True))
        self.assertEqual(send(here.reception()).code, 250)

    def test_own_senders(self) -> None:
        """With `senders: login` a user writes under his own address, and reports have none."""
        here = house(Authenticated("a@example.net"), rule=SubmissionRule(own_senders=True))
        reception = here.reception(STRANGER)
        reception.auth("PLAIN", b"")
        self.assertIsNone(reception.mail(address("A@Example.net"), {}))
        reception.reset()
        self.assertIsNone(reception.mail(NULL_ADDRESS, {}))
        reception.reset()
        refused = reception.mail(address("boss@example.net"), {})
        self.assertEqual((refused.code, refused.enhanced), (553, "5.7.1"))

    def test_logins(self) -> None:
        """A login with a domain is one address; without, it is that name at any domain."""
        for user, sender, expected in (
            ("bob@example.net", "bob@example.net", True),
            ("bob@example.net", "BOB@EXAMPLE.NET", True),
            ("bob@example.net", "bob@example.org", False),
            ("bob", "bob@example.org", True),
            ("bob", "bobby@example.org", False),
            ("b", "a@b", False),
        ):
            self.assertIs(is_own(user, address(sender)), expected, (user, sender))

    def test_completed(self) -> None:
        """Date and Message-ID are added where mail is handed in (RFC 6409 8), and only there."""
        for rule, expected in ((SubmissionRule(), True), (None, False)):
            here = house(rule=rule)
            send(here.reception(), b"Subject: x\r\n\r\nHello\r\n")
            stored = here.spool.stagings[-1].stored
            self.assertIs(b"\r\nMessage-ID: <" in stored, expected)
            self.assertIs(b"\r\nDate: " in stored, expected)


class ListenerTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """A submission listener takes passwords under TLS only, on 587, and knows no relay-from."""
        settings = SubmissionListenerSettings()
        self.assertEqual(
            (settings.port, settings.tls, settings.auth, settings.relay_from),
            (587, "require", "tls", ()),
        )
        self.assertEqual(SmtpListenerSettings().auth, "none")

    def test_needs_a_certificate(self) -> None:
        """Without one it cannot do what it promises, and says so at start."""
        refused = self.assertRaises(
            StartRefused, SmtpListener, SubmissionListenerSettings(), MemorySurroundings()
        )
        self.assertIn("submission:587", str(refused))
