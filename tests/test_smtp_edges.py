"""The listener at its edges: half-closed peers, drain under pipelining, content nobody wants."""

from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from zope.interface.verify import verifyObject

from mta.association.smtp_in import LINGER_SECONDS
from mta.errors import Fenced, Full, TransientFailure
from mta.model import Reply
from tests.test_smtp_in import ENVELOPE, OK, ResponderTestCase

MESSAGE = ENVELOPE + b"hello\r\n.\r\n"


class HalfClosedTests(ResponderTestCase):
    """A peer that says all it has to say, closes its direction, and still reads the answers."""

    def test_contract(self) -> None:
        """The reactor sees that the end of one direction is not the end of the association."""
        listener = self.listen()
        peer = self.dial()
        (responder,) = listener._open
        verifyObject(IHalfCloseableProtocol, responder)
        self.assertTrue(peer.is_open)

    def test_behind_the_dot(self) -> None:
        """The 250 of a message whose commit takes its time reaches a peer that only listens: it
        would send the message again otherwise.
        """
        self.listen()
        commit = self.deferred("end")
        peer = self.dial()
        self.say(peer, MESSAGE)
        peer.half_close()
        self.clock.advance(0)
        self.assertTrue(peer.is_open)
        commit.callback(OK)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(peer.take().endswith(b"250 2.0.0 Ok: queued as 1\r\n"))
        self.assertFalse(peer.is_open)
        self.assertEqual(self.heard[-2], "acknowledged")
        self.assertTrue(self.heard[-1].startswith("closed END-OF-MESSAGE: "), self.heard)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_behind_quit(self) -> None:
        """A whole dialogue with QUIT in one piece, then the end: every reply comes, 221 last."""
        self.listen()
        commit = self.deferred("end")
        peer = self.dial()
        peer.say(MESSAGE + b"QUIT\r\n")
        peer.half_close()
        for _ in range(3):
            self.clock.advance(0)
        commit.callback(OK)
        for _ in range(3):
            self.clock.advance(0)
        said = peer.take()
        self.assertIn(b"250 2.0.0 Ok: queued as 1\r\n221 2.0.0 ", said)
        self.assertFalse(peer.is_open)
        self.assertTrue(self.heard[-1].startswith("closed in order"), self.heard)

    def test_in_the_middle(self) -> None:
        """In each state where more would have to come, the end of it ends the association."""
        steps = ENVELOPE.split(b"\r\n")[:-1]
        for many in range(len(steps) + 1):
            self.setUp()
            self.listen()
            peer = self.dial()
            self.say(peer, b"".join(step + b"\r\n" for step in steps[:many]))
            peer.half_close()
            self.clock.advance(0)
            self.clock.advance(0)
            self.assertFalse(peer.is_open, steps[:many])
            stage = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA")[many]
            self.assertTrue(self.heard[-1].startswith(f"closed {stage}: "), self.heard)
            self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_before_the_greeting(self) -> None:
        """Who closes before a slow greeting still gets it, and nothing waits behind it."""
        self.listen()
        greeting = self.deferred("connected")
        peer = self.dial()
        peer.half_close()
        self.clock.advance(0)
        greeting.callback(None)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(peer.take().startswith(b"220 "))
        self.assertFalse(peer.is_open)

    def test_deaf_and_choked(self) -> None:
        """A peer that closed its direction and does not read either is reset in the end."""
        self.listen()
        peer = self.dial()
        self.say(peer, b"EHLO x\r\n")
        transport = peer.transport.far
        transport.hold = True
        self.say(peer, b"NOOP\r\n")
        peer.half_close()
        self.clock.advance(0)
        self.assertTrue(peer.is_open)
        self.clock.advance(300.0)
        self.clock.advance(0)
        self.assertFalse(peer.is_open)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_behind_a_reset(self) -> None:
        """A reset at each place of the dialogue leaves no timer and tells the reception once."""
        for many in range(0, len(MESSAGE), 7):
            self.setUp()
            self.listen()
            commit = self.deferred("end")
            peer = self.dial()
            self.say(peer, MESSAGE[:many])
            peer.abort()
            self.clock.advance(0)
            if not commit.called:
                commit.callback(OK)
            self.clock.advance(0)
            closed = [heard for heard in self.heard if heard.startswith("closed")]
            self.assertEqual(len(closed), 1, MESSAGE[:many])
            self.assertNotIn("acknowledged", self.heard)
            self.assertEqual(self.clock.reactor.getDelayedCalls(), [])


class PipeliningDrainTests(ResponderTestCase):
    def test_a_client_that_is_never_at_rest(self) -> None:
        """A client that sends the next MAIL together with the dot is told 421 in its place: it
        cannot hold the drain up for as long as it has mail.
        """
        listener = self.listen()
        commit = self.deferred("end")
        peer = self.dial()
        self.say(peer, MESSAGE + ENVELOPE.split(b"\r\n", 1)[1])
        peer.take()
        drained = listener.drain()
        commit.callback(OK)
        for _ in range(3):
            self.clock.advance(0)
        self.successResultOf(drained)
        said = peer.take()
        self.assertTrue(said.startswith(b"250 2.0.0 Ok: queued as 1\r\n421 4.3.2 "), said)
        self.assertEqual(said.count(b"\r\n"), 2)
        self.assertEqual(self.heard.count("mail a@x.org"), 1)
        self.assertFalse(peer.is_open)

    def test_a_drain_while_choked(self) -> None:
        """A client that has not read its replies yet is given time to, and then its 421."""
        listener = self.listen()
        peer = self.dial()
        self.say(peer, b"EHLO x\r\n")
        peer.transport.far.hold = True
        self.say(peer, b"NOOP\r\n")
        listener.drain()
        self.clock.advance(LINGER_SECONDS - 1)
        self.assertTrue(peer.is_open)
        peer.transport.far.hold = False
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(peer.take().endswith(b"421 4.3.2 Shutting down, try again\r\n"))
        self.assertFalse(peer.is_open)


class UnwantedContentTests(ResponderTestCase):
    def test_a_big_message_over_a_slow_line(self) -> None:
        """Content over the limit is heard to its end however long that takes within the time of a
        transaction: the sender gets 552 and stops, not 421 and tries for days.
        """
        self.listen(limits={"size": "1000"})
        peer = self.dial()
        self.say(peer, ENVELOPE)
        for _ in range(10):
            self.say(peer, b"x" * 60 + b"\r\n" + b"y" * 900 + b"\r\n")
            self.clock.advance(100)
        self.assertTrue(peer.is_open)
        peer.take()
        self.assertTrue(self.say(peer, b".\r\n").startswith(b"552 5.3.4 "))

    def test_nobody_holds_it_for_ever(self) -> None:
        """Neither does unwanted content outlive the time of a transaction."""
        self.listen(limits={"size": "1000"}, timeouts={"transaction": "1000s"})
        peer = self.dial()
        self.say(peer, ENVELOPE)
        for _ in range(10):
            self.say(peer, b"y" * 900 + b"\r\n")
            self.clock.advance(100)
        self.clock.advance(0)
        self.assertTrue(peer.take().endswith(b"421 4.4.2 Timeout, closing the connection\r\n"))
        self.assertFalse(peer.is_open)


class FailingContentTests(ResponderTestCase):
    def test_a_pause_that_fails(self) -> None:
        """Content that cannot be kept is heard to its end and refused there, once, with the code of
        its failure, whether it failed at once, later, or behind the dot; the session goes on.
        """
        for late in (False, True):
            for dot_is_here in (False, True):
                self.setUp()
                self.listen()
                peer = self.dial()
                self.say(peer, ENVELOPE)
                peer.take()
                pause = self.deferred("chunk") if late else None
                if not late:
                    self.host.answers["chunk"] = [Full("no room")]
                peer.say(b"hello\r\n" + b".\r\nNOOP\r\n" * dot_is_here)
                self.clock.advance(0)
                if pause is not None:
                    pause.errback(Full("no room"))
                if not dot_is_here:
                    peer.say(b"more\r\n.\r\nNOOP\r\n")
                said = self.say(peer, b"")
                self.assertTrue(said.startswith(b"452 4.3.1 "), said)
                self.assertEqual(said.split(b"\r\n")[1:], [b"250 2.0.0 Ok", b""])
                self.assertIn("fault 452", self.heard)
                self.assertNotIn("end", self.heard)

    def test_fenced_in_content(self) -> None:
        """Superseded while content comes: a reset, no reply."""
        self.listen()
        self.host.answers["chunk"] = [Fenced("superseded")]
        peer = self.dial()
        self.say(peer, ENVELOPE)
        self.assertEqual(self.say(peer, b"hello\r\nworld"), b"")
        self.assertFalse(peer.is_open)


class RandomLifeTests(ResponderTestCase):
    """Peers, hooks, time and the operator in any order."""

    HOOKS = ("connected", "helo", "mail", "rcpt", "data", "chunk", "end")
    FAULTS = (Full("no room"), TransientFailure("later"), Fenced("superseded"), ValueError("bug"))

    def live(self, rng: Random) -> None:
        self.setUp()
        listener = self.listen(limits={"size": "2000"})
        late: list[tuple[str, Deferred]] = []
        for _ in range(rng.randrange(8)):
            name = rng.choice(self.HOOKS)
            late.append((name, self.deferred(name)))
        peer = self.dial()
        transport = peer.transport.far
        text = (MESSAGE + ENVELOPE + b"x" * 70 + b"\r\n" * 40 + b".\r\nQUIT\r\n") * 2
        taken = 0
        committed: list[object] = []
        (reception,) = self.host.receptions
        end = reception.end

        def noted_end(fault: Reply | None) -> Deferred:
            return end(fault).addCallback(lambda reply: committed.append(reply) or reply)

        reception.end = noted_end

        def fire(hook: str, answer: Deferred) -> None:
            if answer.called:
                return
            if rng.random() < 0.2:
                answer.errback(rng.choice(self.FAULTS))
                answer.addErrback(lambda _: None)
            else:
                answer.callback(OK if hook == "end" else None)

        for _ in range(rng.randrange(5, 60)):
            match rng.randrange(12):
                case 0 | 1 | 2 | 3 | 4:
                    many = rng.choice((1, 10, 50, 400))
                    peer.say(text[taken : taken + many])
                    taken += many
                case 5:
                    self.clock.advance(rng.choice((0, 1, 100, 301)))
                case 6 | 7:
                    if late:
                        fire(*late.pop(rng.randrange(len(late))))
                case 8:
                    transport.hold = not transport.hold
                case 9:
                    if rng.random() < 0.15:
                        peer.half_close()
                case 10:
                    if rng.random() < 0.1:
                        peer.abort()
                case 11:
                    if rng.random() < 0.1:
                        listener.drain()
            self.clock.advance(0)
        self.assertLessEqual(peer.take().count(b"queued as"), committed.count(OK))
        for hook, answer in late:
            fire(hook, answer)
        transport.hold = False
        self.clock.advance(0)
        peer.abort()
        for _ in range(5):
            self.clock.advance(0)
        self.assertEqual(listener.open_associations, 0)
        self.assertEqual(sum(heard.startswith("closed") for heard in reception.heard), 1)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])
        self.successResultOf(listener.drain())

    def test_400_lives(self) -> None:
        """Nothing is left behind an association, whatever happened in it: no timer, no count, no
        second end; and nobody reads a 250 before the commit was answered.
        """
        for number in range(400):
            try:
                self.live(Random(number))
            except BaseException as fault:
                raise AssertionError(f"life {number}: {fault!r}") from fault
