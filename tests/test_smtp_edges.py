"""The listener at its edges: half-closed peers, drain under pipelining, content nobody wants."""

from twisted.internet.interfaces import IHalfCloseableProtocol
from zope.interface.verify import verifyObject

from mta.association.smtp_in import LINGER_SECONDS
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
