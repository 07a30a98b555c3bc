"""Associations that we open, lived at random: whoever waits hears once, and nothing is left."""

from random import Random

from twisted.internet.defer import CancelledError, Deferred

from mta.association.smtp_out import SmtpSender
from mta.errors import Corrupt, PermanentFailure, TenureRevoked, TransientFailure
from mta.model import OutcomeKind
from tests.test_smtp_out import BOB, CAROL, Content, SenderTestCase, envelope

ENDS = (TransientFailure, PermanentFailure, CancelledError, TenureRevoked)
REPLIES = (
    b"250 Ok\r\n",
    b"250 Ok\r\n250 Ok\r\n",
    b"250 Ok\r\n250 Ok\r\n354 Go\r\n",
    b"354 Go\r\n",
    b"550 5.1.1 No\r\n",
    b"450 Later\r\n",
    b"421 Bye\r\n",
    b"25",
    b"0 Ok\r\n",
    b"what\r\n",
)


class RandomLifeTests(SenderTestCase):
    def live(self, rng: Random) -> None:
        self.setUp()
        if rng.random() < 0.3:
            self.hello = b"250 mx\r\n"
        waited: list[Deferred] = []
        heard: list[list[object]] = []
        contents: list[Deferred] = []
        told: list[Deferred] = []

        def wait(what: str, done: Deferred) -> None:
            answers: list[object] = []
            done.addBoth(lambda answer: answers.append((what, answer)))
            waited.append(done)
            heard.append(answers)

        if rng.random() < 0.1:
            wait("open", self.opening())
            sender = None
        else:
            sender = self.open()
        asked, is_given_up = 0, False
        preparing = committing = None
        left: list[list[int]] = []
        for _ in range(rng.randrange(5, 50)):
            match rng.randrange(14):
                case 0 | 1 | 2:
                    is_usable = sender is not None and sender.is_open and not is_given_up
                    is_free = committing is None or committing.called
                    if is_usable and preparing is None and (is_free or sender.can_overlap):
                        asked += 1
                        preparing = self._prepare(sender, str(asked))
                        wait("prepare", preparing)
                case 3 | 4 | 5 | 6 | 7:
                    self.reply(rng.choice(REPLIES))
                case 8 | 9:
                    is_free = committing is None or committing.called
                    if preparing is not None and preparing.called and is_free:
                        (_, settled), preparing = heard[waited.index(preparing)][0], None
                        if isinstance(settled, tuple) and len(settled) < 2:
                            done = {outcome.recipient for outcome in settled}
                            left.append([i for i in (0, 1) if i not in done])
                            committing = sender.commit(self._content(rng, contents))
                            wait(f"commit {len(left) - 1}", committing)
                case 10:
                    if preparing is not None and not preparing.called and rng.random() < 0.3:
                        preparing.cancel()
                        is_given_up = True  # as agents do: it is closed and not used again
                case 11:
                    if contents:
                        piece = contents.pop(rng.randrange(len(contents)))
                        told.append(piece)
                        if not piece.called:
                            faulty = rng.random() < 0.3
                            piece.errback(Corrupt("x")) if faulty else piece.callback(b"x\r\n")
                case 12:
                    self.clock.advance(rng.choice((0, 1, 200, 601)))
                case 13:
                    chance = rng.random()
                    if chance < 0.1:
                        self.tenure.revoke()
                    elif chance < 0.2:
                        self.peer.abort()
                    elif chance < 0.3:
                        self.peer.close()
                    elif chance < 0.4 and sender is not None and sender.transport is not None:
                        sender.transport.hold = not sender.transport.hold
                    elif chance < 0.5 and sender is not None:
                        wait("close", sender.close())
                        is_given_up = True
            self.move()
        if self.peers:
            self.peer.abort()
        for piece in (*contents, *told):
            piece.addErrback(lambda _: None)
        self.move()
        self.clock.advance(0)
        for answers in heard:
            self.assertEqual(len(answers), 1, heard)
            what, answer = answers[0]
            if what.startswith("commit"):
                expected = left[int(what.split()[1])]
                self.assertEqual([outcome.recipient for outcome in answer], expected)
                for outcome in answer:
                    self.assertIsInstance(outcome.kind, OutcomeKind)
            elif what in ("open", "prepare") and not isinstance(answer, tuple | SmtpSender):
                self.assertTrue(answer.check(*ENDS), answer)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])
        self.assertEqual(self.tenure.adopted, [])

    def _prepare(self, sender: SmtpSender, tag: str) -> Deferred:
        return sender.prepare(tag, envelope(BOB, CAROL), (0, 1), 6)

    def _content(self, rng: Random, contents: list[Deferred]) -> Content:
        if rng.random() < 0.5:
            return Content(b"abc\r\n.")
        late: Deferred = Deferred()
        contents.append(late)
        return Content(b"a\r\n", late, resident=False, size=6)

    def test_400_lives(self) -> None:
        """Whatever peer, disk, clock and operator do: every wait ends once, every recipient of a
        commit has one outcome in order, no timer and no adopted transport is left.
        """
        for number in range(400):
            try:
                self.live(Random(number))
            except BaseException as fault:
                raise AssertionError(f"life {number}: {fault!r}") from fault
