"""The connectors smtp and lmtp: ISender over memory, with peers that behave and peers that do not."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.association.smtp_initiator import LmtpInitiator, SmtpInitiator
from mta.association.smtp_out import SmtpSender
from mta.association.smtp_settings import LmtpConnectorSettings, SmtpConnectorSettings
from mta.errors import Corrupt, PermanentFailure, TenureRevoked, TransientFailure
from mta.interfaces import IAssociationKind, IContent, IEnds, ISender
from mta.model import (
    Address,
    BodyType,
    ContentForm,
    Envelope,
    FourTuple,
    NextHop,
    OutcomeKind,
    Recipient,
    Requires,
)
from mta.testing.network import MemoryPeer
from mta.testing.surroundings import MemorySurroundings, MemoryTenure

HOST = "198.51.100.25"
HOP = NextHop("hub", "hub", HOST, 25, "mx.example.org")
ALICE = Address(b"alice@example.com", b"example.com")
BOB = Address(b"bob@example.org", b"example.org")
CAROL = Address(b"carol@example.org", b"example.org")
GOOD = b"250 Ok\r\n250 Ok\r\n354 Go\r\n"
MAIL = b"MAIL FROM:<alice@example.com> SIZE=3\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"


def envelope(*recipients: Address, **extra: object) -> Envelope:
    to = tuple(Recipient(address) for address in recipients or (BOB,))
    return Envelope(ALICE, to, **extra)


@implementer(IContent)
class Content:
    """Content in memory, or piece by piece; a piece may be an error or a Deferred."""

    def __init__(self, *pieces: object, resident: bool = True, size: int | None = None) -> None:
        octets = [piece for piece in pieces if isinstance(piece, bytes)]
        self.size_octets = sum(map(len, octets)) if size is None else size
        self.resident = tuple(octets) if resident else None
        self.pieces = list(pieces)
        self.reads = 0

    def read(self) -> Deferred:
        self.reads += 1
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Deferred):
            return piece
        done: Deferred = Deferred()
        (done.errback if isinstance(piece, Exception) else done.callback)(piece)
        return done

    def close(self) -> None:
        self.pieces.clear()


class SenderTestCase(SynchronousTestCase):
    """A connector, and a peer that says what the test tells it."""

    hello = b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n"

    def setUp(self) -> None:
        self.surroundings = MemorySurroundings()
        self.clock = self.surroundings.clock
        self.tenure = MemoryTenure()
        self.peers: list[MemoryPeer] = []
        self.surroundings.network.serve(HOST, 25, self.accept)
        self.kind = SmtpInitiator(SmtpConnectorSettings(), self.surroundings)

    def accept(self) -> MemoryPeer:
        peer = MemoryPeer()
        self.peers.append(peer)
        return peer

    @property
    def peer(self) -> MemoryPeer:
        return self.peers[-1]

    def move(self) -> None:
        for _ in range(4):
            self.clock.advance(0)

    def reply(self, data: bytes) -> bytes:
        """The peer says `data`; what it has heard since then."""
        self.peer.say(data)
        self.move()
        return self.peer.take()

    def opening(self) -> Deferred:
        opening = self.kind.open(self.tenure, HOP)
        self.move()
        return opening

    def open(self) -> SmtpSender:
        opening = self.opening()
        self.reply(b"220 mx ESMTP\r\n")
        self.reply(self.hello)
        return self.successResultOf(opening)

    def prepared(self, *recipients: Address, **extra: object) -> SmtpSender:
        sender = self.open()
        given = envelope(*recipients, **extra)
        preparing = sender.prepare("1", given, tuple(range(len(given.recipients))), 3)
        self.move()
        self.reply(b"250 Ok\r\n" * (1 + len(given.recipients)) + b"354 Go\r\n")
        self.assertEqual(self.successResultOf(preparing), ())
        return sender


class OpeningTests(SenderTestCase):
    def test_contracts(self) -> None:
        """Both kinds and their sender are what the house calls so."""
        for kind in (self.kind, LmtpInitiator(LmtpConnectorSettings(), self.surroundings)):
            verifyObject(IAssociationKind, kind)
        verifyObject(ISender, self.open())
        verifyObject(IEnds, self.open())

    def test_the_name_and_the_address(self) -> None:
        """EHLO says the network name, the association leaves from the virtual address."""
        opening = self.opening()
        self.assertEqual(self.reply(b"220 mx ESMTP\r\n"), b"EHLO bridgehead.example.org\r\n")
        self.reply(self.hello)
        sender = self.successResultOf(opening)
        self.assertEqual(sender.source, "192.0.2.10")
        there = self.peer.transport.getPeer()
        self.assertEqual(sender.ends, FourTuple("192.0.2.10", there.port, HOST, 25))
        self.assertEqual(sender.relay, "mx.example.org[198.51.100.25]:25")
        self.assertTrue(sender.is_open)
        self.assertTrue(sender.can_overlap)

    def test_slots_are_unique(self) -> None:
        """Slots are numbered through, over all connectors of a process."""
        first = self.open()
        self.kind = SmtpInitiator(SmtpConnectorSettings(), self.surroundings)
        self.assertEqual((first.slot, self.open().slot), ("smtp/out/1", "smtp/out/2"))

    def test_refused(self) -> None:
        """Hard detail 14: 5yz greetings are permanent for this server, 4yz and 421 are not."""
        for text, kind in (
            (b"554 5.7.1 No\r\n", PermanentFailure),
            (b"450 4.3.2 Later\r\n", TransientFailure),
            (b"421 4.3.2 Busy\r\n", TransientFailure),
            (b"SSH-2.0\r\n", TransientFailure),
        ):
            opening = self.opening()
            self.reply(text)
            failure = self.failureResultOf(opening, kind)
            self.assertIn(text.decode().strip(), str(failure.value))
            self.assertFalse(self.peer.is_open)

    def test_lost_in_the_greetings(self) -> None:
        """A peer that goes before its greeting is a transient failure."""
        opening = self.opening()
        self.peer.close()
        self.move()
        self.failureResultOf(opening, TransientFailure)

    def test_greeting_time(self) -> None:
        """5 minutes for the greeting, to the tenth of a second."""
        opening = self.opening()
        self.clock.advance(299.9)
        self.assertNoResult(opening)
        self.clock.advance(0.1)
        self.failureResultOf(opening, TransientFailure)
        self.move()
        self.assertFalse(self.peer.is_open)

    def test_connect_time(self) -> None:
        """30 seconds for the connection."""
        self.surroundings.network.unreachable.add(HOST)
        opening = self.opening()
        self.clock.advance(29.9)
        self.assertNoResult(opening)
        self.clock.advance(0.1)
        self.failureResultOf(opening, TransientFailure)

    def test_cancelled(self) -> None:
        """An opening that is cancelled leaves no connection behind."""
        opening = self.opening()
        opening.cancel()
        self.move()
        self.failureResultOf(opening, CancelledError, TransientFailure)
        self.assertFalse(self.peer.is_open)

    def test_revoked(self) -> None:
        """With the tenure every association ends, and what was opening fails."""
        opening = self.opening()
        self.tenure.revoke()
        self.move()
        self.failureResultOf(opening, TransientFailure)
        self.failureResultOf(self.opening(), TenureRevoked)


class TransferTests(SenderTestCase):
    def test_a_message(self) -> None:
        """Envelope, content, dot; the outcome is the reply's."""
        sender = self.open()
        preparing = sender.prepare("1", envelope(), (0,), 3)
        self.move()
        self.assertEqual(self.peer.take(), MAIL)
        self.reply(GOOD)
        self.assertEqual(self.successResultOf(preparing), ())
        committing = sender.commit(Content(b"x\r\n"))
        self.move()
        self.assertEqual(self.peer.take(), b"x\r\n.\r\n")
        self.reply(b"250 2.0.0 Queued\r\n")
        (outcome,) = self.successResultOf(committing)
        self.assertIs(outcome.kind, OutcomeKind.DELIVERED)
        self.assertEqual(outcome.reply.text, "250 2.0.0 Queued")
        closing = sender.close()
        self.assertFalse(sender.is_open)
        self.move()
        self.assertEqual(self.peer.take(), b"QUIT\r\n")
        self.reply(b"221 Bye\r\n")
        self.successResultOf(closing)
        self.assertEqual(self.peer.lost_because, "ConnectionDone")
        self.successResultOf(sender.close())

    def test_a_close_that_was_cancelled(self) -> None:
        """Whoever waits for the end of an association may give up waiting: it ends all the same."""
        sender = self.open()
        closing, other = sender.close(), sender.close()
        closing.cancel()
        self.failureResultOf(closing, CancelledError)
        self.move()
        self.successResultOf(other)
        self.assertFalse(sender.is_open)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_overlap_in_one_write(self) -> None:
        """Body n, its dot and the envelope of n+1 leave in one write; content n+1 waits for its word."""
        sender = self.prepared()
        transport = sender.transport
        writes: list[bytes] = []
        transport.write, write = lambda data: (writes.append(data), write(data)), transport.write
        committing = sender.commit(Content(b"x\r\n"))
        preparing = sender.prepare("2", envelope(), (0,), 3)
        self.move()
        self.assertEqual(writes, [b"x\r\n.\r\n" + MAIL])
        self.reply(b"250 Queued\r\n")
        self.successResultOf(committing)
        self.assertNoResult(preparing)
        self.reply(GOOD)
        self.successResultOf(preparing)
        self.assertEqual(len(writes), 1)

    def test_no_pipelining(self) -> None:
        """Without PIPELINING nothing overlaps on the wire, and the message goes at once."""
        self.hello = b"250 mx\r\n"
        sender = self.open()
        self.assertFalse(sender.can_overlap)
        preparing = sender.prepare("1", envelope(), (0,), 3)
        self.move()
        for said, reply in (
            (b"MAIL FROM:<alice@example.com>\r\n", b"250 Ok\r\n"),
            (b"RCPT TO:<bob@example.org>\r\n", b"250 Ok\r\n"),
            (b"DATA\r\n", b"354 Go\r\n"),
        ):
            self.assertEqual(self.peer.take(), said)
            self.peer.say(reply)
            self.move()
        self.successResultOf(preparing)
        sender.commit(Content(b"x\r\n")).addErrback(lambda _: None)
        self.assertEqual(bytes(sender.transport.sent[-6:]), b"x\r\n.\r\n")

    def test_hard_detail_13_partial_failure(self) -> None:
        """Of three recipients one fails, one waits, one is delivered."""
        sender = self.open()
        preparing = sender.prepare("1", envelope(BOB, CAROL, ALICE), (0, 1, 2), 3)
        self.move()
        self.reply(b"250 Ok\r\n550 5.1.1 No\r\n450 4.2.1 Later\r\n250 Ok\r\n354 Go\r\n")
        settled = self.successResultOf(preparing)
        self.assertEqual(
            [(o.recipient, o.kind) for o in settled],
            [(0, OutcomeKind.FAILED), (1, OutcomeKind.DEFERRED)],
        )
        committing = sender.commit(Content(b"x\r\n"))
        self.move()
        self.reply(b"250 Ok\r\n")
        (outcome,) = self.successResultOf(committing)
        self.assertEqual((outcome.recipient, outcome.kind), (2, OutcomeKind.DELIVERED))

    def test_eight_bit(self) -> None:
        """8-bit content for a server without 8BITMIME fails in words, and nothing is said to it."""
        self.hello = b"250 mx\r\n"
        sender = self.open()
        for given in (
            envelope(body_type=BodyType.EIGHT_BIT_MIME),
            envelope(requires=Requires.EIGHT_BIT),
        ):
            (outcome,) = self.successResultOf(sender.prepare("1", given, (0,), 3))
            self.assertEqual((outcome.kind, outcome.reply.enhanced), (OutcomeKind.FAILED, "5.6.3"))
        self.move()
        self.assertEqual(self.peer.take(), b"")

    def test_lost_before_the_dot(self) -> None:
        """Lost in the envelope: TransientFailure. Lost behind it: deferred, not sent."""
        sender = self.open()
        preparing = sender.prepare("1", envelope(), (0,), 3)
        self.move()
        self.peer.abort()
        self.move()
        self.failureResultOf(preparing, TransientFailure)
        sender = self.prepared()
        self.peer.abort()
        self.move()
        self.assertFalse(sender.is_open)
        (outcome,) = self.successResultOf(sender.commit(Content(b"x\r\n")))
        self.assertIs(outcome.kind, OutcomeKind.DEFERRED)
        self.failureResultOf(sender.prepare("2", envelope(), (0,), 3), TransientFailure)

    def test_hard_detail_12_lost_after_the_dot(self) -> None:
        """Lost or silent after the dot is UNKNOWN; 10 minutes, to the tenth of a second."""
        sender = self.prepared()
        committing = sender.commit(Content(b"x\r\n"))
        self.move()
        self.peer.abort()
        self.move()
        (outcome,) = self.successResultOf(committing)
        self.assertIs(outcome.kind, OutcomeKind.UNKNOWN)
        sender = self.prepared()
        committing = sender.commit(Content(b"x\r\n"))
        self.move()
        self.clock.advance(599.9)
        self.assertNoResult(committing)
        self.clock.advance(0.1)
        (outcome,) = self.successResultOf(committing)
        self.assertIs(outcome.kind, OutcomeKind.UNKNOWN)
        self.move()
        self.assertFalse(self.peer.is_open)

    def test_hard_detail_11_times(self) -> None:
        """Each reply has its own time, and a reply that drips in does not stretch it."""
        for said, seconds in ((b"", 300), (b"250 Ok\r\n", 300), (b"250 Ok\r\n250 Ok\r\n", 120)):
            sender = self.open()
            preparing = sender.prepare("1", envelope(), (0,), 3)
            self.move()
            self.clock.advance(50)
            if said:
                self.reply(said)
                self.clock.advance(seconds - 0.1)
            else:
                self.clock.advance(seconds - 50.1)
            self.reply(b"25")
            self.assertNoResult(preparing)
            self.clock.advance(0.1)
            failure = self.failureResultOf(preparing, TransientFailure)
            self.assertIn(f"timed out after {seconds} s", str(failure.value))

    def test_an_overlapped_envelope_does_not_stretch_the_dot(self) -> None:
        """The 10 minutes of message n run from its dot, whatever is prepared behind it."""
        sender = self.prepared()
        committing = sender.commit(Content(b"x\r\n"))
        self.clock.advance(0)
        self.clock.advance(300)
        sender.prepare("2", envelope(), (0,), 3).addErrback(lambda _: None)
        self.clock.advance(299.9)
        self.assertNoResult(committing)
        self.clock.advance(0.1)
        self.successResultOf(committing)

    def test_nothing_owed(self) -> None:
        """A peer that owes nothing has all the time in the world."""
        sender = self.prepared()
        self.clock.advance(86400)
        self.assertTrue(sender.is_open)

    def test_quit_unanswered(self) -> None:
        """Nothing hangs on the reply to QUIT: 5 seconds."""
        sender = self.open()
        closing = sender.close()
        self.clock.advance(4.9)
        self.assertNoResult(closing)
        self.clock.advance(0.1)
        self.move()
        self.successResultOf(closing)

    def test_close_cancelled(self) -> None:
        """Who waits for an end no longer (the process slept past its time) gets the end at once."""
        sender = self.open()
        closing, also = sender.close(), sender.close()
        closing.cancel()
        self.move()
        self.failureResultOf(closing, CancelledError)
        self.successResultOf(also)
        self.assertFalse(self.peer.is_open)

    def test_withdraw(self) -> None:
        """Withdrawn behind 354 the association ends; refused ones leave it in use."""
        sender = self.prepared()
        self.successResultOf(sender.withdraw())
        self.move()
        self.assertFalse(self.peer.is_open)
        self.assertEqual(self.peer.take(), b"")
        sender = self.open()
        self.successResultOf(sender.withdraw())
        preparing = sender.prepare("1", envelope(), (0,), 3)
        withdrawing = sender.withdraw()
        self.assertNoResult(withdrawing)
        self.move()
        self.reply(b"250 Ok\r\n550 No\r\n503 No\r\n")
        self.successResultOf(withdrawing)
        self.failureResultOf(preparing, TransientFailure)
        self.assertTrue(sender.is_open)

    def test_cancelled(self) -> None:
        """A cancelled prepare is withdrawn; a cancelled commit ends the association, in doubt."""
        sender = self.open()
        preparing = sender.prepare("1", envelope(), (0,), 3)
        preparing.cancel()
        self.failureResultOf(preparing, CancelledError)
        self.move()
        self.reply(b"550 No\r\n503 No\r\n503 No\r\n")
        self.assertTrue(sender.is_open)
        sender = self.prepared()
        committing = sender.commit(Content(b"x\r\n"))
        committing.cancel()
        (outcome,) = self.successResultOf(committing)
        self.assertIs(outcome.kind, OutcomeKind.UNKNOWN)
        self.move()
        self.assertFalse(self.peer.is_open)


class StreamTests(SenderTestCase):
    PIECE = b"y" * 70 + b"\r\n"

    def test_piece_by_piece(self) -> None:
        """Content that does not lie in memory is read as the transport takes it, and no faster."""
        sender = self.prepared()
        content = Content(*[self.PIECE * 1000] * 10, resident=False)
        sender.transport.hold = True
        committing = sender.commit(content)
        self.assertEqual(content.reads, 1)
        preparing = sender.prepare("2", envelope(), (0,), 3)
        sender.transport.hold = False
        for _ in range(20):
            self.move()
        self.assertEqual(self.peer.take(), self.PIECE * 10_000 + b".\r\n" + MAIL)
        self.reply(b"250 Ok\r\n" + GOOD)
        self.assertIs(self.successResultOf(committing)[0].kind, OutcomeKind.DELIVERED)
        self.successResultOf(preparing)

    def test_many_pieces(self) -> None:
        """Thousands of pieces at hand do not pile up calls."""
        sender = self.prepared()
        committing = sender.commit(Content(*[b"z\r\n"] * 5000, resident=False))
        self.move()
        self.assertEqual(len(self.peer.take()), 15_003)
        self.reply(b"250 Ok\r\n")
        self.successResultOf(committing)

    def test_unreadable(self) -> None:
        """Content that cannot be read to its end never gets a dot: deferred, and the end."""
        waiting: Deferred = Deferred()
        for pieces, size in (
            ((b"x\r\n", Corrupt("bad crc")), 3),
            ((b"x\r\n",), 4),
            ((b"x\r\n", waiting), 9),
        ):
            sender = self.prepared()
            committing = sender.commit(Content(*pieces, resident=False, size=size))
            self.move()
            if not committing.called:
                self.peer.abort()
                self.move()
                waiting.addErrback(lambda _: None)
            (outcome,) = self.successResultOf(committing)
            self.assertIs(outcome.kind, OutcomeKind.DEFERRED)
            self.assertIn("not sent", outcome.reply.text)
            self.move()
            self.assertFalse(self.peer.is_open)
            self.assertNotIn(b".\r\n", self.peer.take())

    def test_hard_detail_24_superseded_before_the_dot(self) -> None:
        """A content that streams for minutes gets its dot only if the epoch is still ours then:
        the loser stops before the dot.
        """
        for end in ("fence", "revoke"):
            self.setUp()
            sender = self.prepared()
            last: Deferred = Deferred()
            committing = sender.commit(Content(b"x\r\n", last, resident=False, size=6))
            self.move()
            getattr(self.tenure, end)()
            last.callback(b"y\r\n")
            self.move()
            (outcome,) = self.successResultOf(committing)
            self.assertIs(outcome.kind, OutcomeKind.DEFERRED)
            self.assertIn("not sent", outcome.reply.text)
            self.assertNotIn(b"\r\n.\r\n", self.peer.take())
            self.move()
            self.assertFalse(self.peer.is_open)

    def test_block_time(self) -> None:
        """A peer that stops reading has 3 minutes; each time it takes something they begin anew."""
        sender = self.prepared()
        sender.transport.hold = True
        committing = sender.commit(Content(*[self.PIECE] * 3, resident=False))
        self.clock.advance(170)
        sender.transport.producer.resumeProducing()
        self.clock.advance(179.9)
        self.assertNoResult(committing)
        self.clock.advance(0.1)
        (outcome,) = self.successResultOf(committing)
        self.assertIs(outcome.kind, OutcomeKind.DEFERRED)
        self.assertIn("timed out after 180 s", outcome.reply.text)

    def test_forms_do_not_mix(self) -> None:
        """The form of a content that is under way is not that of the message prepared behind it."""
        sender = self.prepared(content_form=ContentForm.OPAQUE)
        waiting: Deferred = Deferred()
        committing = sender.commit(Content(waiting, resident=False, size=4))
        preparing = sender.prepare("2", envelope(), (0,), 3)
        waiting.callback(b".a\r\n")
        self.move()
        self.assertEqual(self.peer.take(), b"..a\r\n.\r\n" + MAIL)
        self.reply(b"250 Ok\r\n" + GOOD)
        self.successResultOf(committing)
        self.successResultOf(preparing)

    def test_opaque(self) -> None:
        """Opaque content is stuffed on the way."""
        sender = self.prepared(content_form=ContentForm.OPAQUE)
        sender.commit(Content(b".a\n", b".b")).addErrback(lambda _: None)
        self.move()
        self.assertEqual(self.peer.take(), b"..a\r\n..b\r\n.\r\n")


class LmtpTests(SenderTestCase):
    hello = b"250-x\r\n250 PIPELINING\r\n"

    def setUp(self) -> None:
        super().setUp()
        self.kind = LmtpInitiator(LmtpConnectorSettings(), self.surroundings)

    def test_hard_detail_13_lmtp(self) -> None:
        """LHLO, and one reply for each recipient; what was not answered is in doubt."""
        opening = self.opening()
        self.assertEqual(self.reply(b"220 x\r\n"), b"LHLO bridgehead.example.org\r\n")
        self.reply(self.hello)
        sender = self.successResultOf(opening)
        self.assertEqual(sender.slot, "lmtp/out/1")
        preparing = sender.prepare("1", envelope(BOB, CAROL, ALICE), (0, 1, 2), 3)
        self.move()
        self.reply(b"250 Ok\r\n" * 4 + b"354 Go\r\n")
        self.successResultOf(preparing)
        committing = sender.commit(Content(b"x\r\n"))
        self.move()
        self.reply(b"250 Ok\r\n550 5.2.1 Off\r\n")
        self.assertNoResult(committing)
        self.peer.close()
        self.move()
        self.assertEqual(
            [o.kind for o in self.successResultOf(committing)],
            [OutcomeKind.DELIVERED, OutcomeKind.FAILED, OutcomeKind.UNKNOWN],
        )


class LmtpPathTests(SenderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.kind = LmtpInitiator(LmtpConnectorSettings(path="/run/lmtp"), self.surroundings)
        self.surroundings.network.serve_service("unix:/run/lmtp", Factory.forProtocol(MemoryPeer))

    def test_unix_socket(self) -> None:
        """A UNIX socket has no source address, passes the service door, and dies with the tenure."""
        opening = self.kind.open(self.tenure, NextHop("box", "box", "box", 0))
        self.move()
        peer = self.tenure.adopted[0].transport.far.protocol
        peer.say(b"220 x LMTP\r\n")
        self.move()
        self.assertEqual(peer.take(), b"LHLO bridgehead.example.org\r\n")
        peer.say(b"250 x\r\n")
        self.move()
        sender = self.successResultOf(opening)
        self.assertEqual((sender.source, sender.relay), ("", "box[/run/lmtp]"))
        self.assertIsNone(sender.ends)
        self.tenure.revoke()
        self.move()
        self.assertFalse(sender.is_open)
        self.assertFalse(peer.is_open)

    def test_settings(self) -> None:
        """A path is absolute and fits into a socket's name."""
        for wrong in ("lmtp", "/" + "x" * 107):
            self.assertRaises(ValueError, LmtpConnectorSettings, path=wrong)
        settings = SmtpConnectorSettings.model_validate({"timeouts": {"final-dot": "20m"}})
        self.assertEqual(settings.timeouts.of_machine().dot, 1200.0)
