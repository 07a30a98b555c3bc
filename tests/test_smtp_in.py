"""The listener and its adapter: hooks in order, deadlines, limits, back-pressure, drain."""

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.association.smtp_in import BUFFER_OCTETS
from mta.association.smtp_listener import SmtpListener, build_submission_responder
from mta.association.smtp_settings import ListenerLimits, ListenerTimeouts, SmtpListenerSettings
from mta.errors import (
    ClusterNotInitialised,
    Fenced,
    Full,
    PermanentFailure,
    StartRefused,
    TransientFailure,
    Unavailable,
    Unknown,
)
from mta.interfaces import IDrains, IListenerKind, IReception, IReceptionHost
from mta.model import Address, PeerInfo, Reply
from mta.telemetry import Notice, Rejected
from mta.testing.network import MemoryPeer
from mta.testing.surroundings import MemorySurroundings, MemoryTenure

VIP = "192.0.2.10"
ENVELOPE = b"EHLO x\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\n"
OK = Reply(250, "2.0.0", (b"Ok: queued as 1",))


@implementer(IReception)
class ScriptedReception:
    """A reception that keeps what it hears and answers what a test put into `answers`."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answers: dict[str, list] = {}
        self.content = b""
        self.messages: list[bytes] = []

    def _next(self, name: str, usual: object = None) -> object:
        queue = self.answers.get(name)
        answer = queue.pop(0) if queue else usual
        if isinstance(answer, Exception):
            raise answer
        return answer

    def connected(self):
        self.heard.append("connected")
        return self._next("connected")

    def helo(self, name: bytes, protocol: str):
        self.heard.append(f"helo {name.decode()} {protocol}")
        return self._next("helo")

    def mail(self, sender: Address, parameters):
        self.heard.append(f"mail {sender}")
        return self._next("mail")

    def rcpt(self, recipient: Address, parameters):
        self.heard.append(f"rcpt {recipient}")
        return self._next("rcpt")

    def data(self):
        self.heard.append("data")
        self.content = b""
        return self._next("data")

    def chunk(self, chunk: bytes):
        self.content += chunk
        return self._next("chunk")

    def end(self, fault: Reply | None):
        self.heard.append("end" if fault is None else f"fault {fault.code}")
        self.messages.append(self.content)
        answer = self._next("end", fault or OK)
        return answer if isinstance(answer, Deferred) else succeed(answer)

    def acknowledged(self) -> None:
        self.heard.append("acknowledged")

    def reset(self) -> None:
        self.heard.append("reset")

    def closed(self, stage: str, commands: str) -> None:
        self.heard.append(f"closed {stage or 'in order'}: {commands}")


@implementer(IReceptionHost)
class ScriptedHost:
    def __init__(self) -> None:
        self.receptions: list[ScriptedReception] = []
        self.answers: dict[str, list] = {}
        self.fault: Exception | None = None
        self.peers: list[PeerInfo] = []

    def reception(self, tenure, peer: PeerInfo) -> ScriptedReception:
        if self.fault is not None:
            raise self.fault
        self.peers.append(peer)
        reception = ScriptedReception()
        reception.answers = self.answers
        self.receptions.append(reception)
        return reception


class ResponderTestCase(SynchronousTestCase):
    """A listener on memory doors; `dial` is a client at a terminal."""

    lmtp = False

    def setUp(self) -> None:
        self.surroundings = MemorySurroundings()
        self.clock = self.surroundings.clock
        self.tenure = MemoryTenure()
        self.host = ScriptedHost()

    def listen(self, **settings: object) -> SmtpListener:
        listener = SmtpListener(SmtpListenerSettings(**settings), self.surroundings, self.lmtp)
        self.ports = listener.listen(self.tenure, self.host)
        return listener

    def dial(self, source: str = "198.51.100.7", port: int = 25) -> MemoryPeer:
        peer = self.surroundings.network.dial(VIP, port, source)
        self.clock.advance(0)
        return peer

    def say(self, peer: MemoryPeer, data: bytes) -> bytes:
        """What is answered to `data` when the network has come to rest."""
        peer.say(data)
        for _ in range(5):
            self.clock.advance(0)
        return peer.take()

    def deferred(self, name: str) -> Deferred:
        answer: Deferred = Deferred()
        self.host.answers.setdefault(name, []).append(answer)
        return answer

    @property
    def heard(self) -> list[str]:
        return self.host.receptions[-1].heard


class ListenerTests(ResponderTestCase):
    def test_contracts(self) -> None:
        """The listener is what the house calls one."""
        listener = self.listen()
        verifyObject(IListenerKind, listener)
        verifyObject(IDrains, listener)

    def test_every_address(self) -> None:
        """It listens on every virtual address, and greets with the network name."""
        self.listen(port=2525, banner="hello")
        self.assertEqual(len(self.ports), 2)
        for address in (VIP, "2001:db8::10"):
            peer = self.surroundings.network.dial(address, 2525)
            self.clock.advance(0)
            self.assertEqual(peer.take(), b"220 bridgehead.example.org ESMTP hello\r\n")

    def test_all_or_nothing(self) -> None:
        """When one address cannot be listened on, none is left open."""
        self.surroundings.doors.listen(
            self.tenure, self.tenure.addresses[1], 25, lambda _: None, name="other"
        )
        self.assertRaises(StartRefused, self.listen)
        self.assertFalse(self.dial().is_open)

    def test_names(self) -> None:
        """The reception learns the listener's name, which its relay-from goes by."""
        self.listen(name="public")
        self.dial()
        (peer,) = self.host.peers
        self.assertEqual((peer.listener, peer.association), ("public", "smtp/in/1"))
        self.assertEqual(SmtpListener(SmtpListenerSettings(), self.surroundings).name, "smtp:25")

    def test_too_many_connections(self) -> None:
        """A connection over the limit is told 421 and closed; the log has one line a flood."""
        listener = self.listen(limits={"connections": "2"})
        first, second = self.dial(), self.dial()
        for _ in range(3):
            turned_away = self.dial()
            self.assertTrue(turned_away.take().startswith(b"421 4.7.0 "))
            self.assertFalse(turned_away.is_open)
        notices = [e for e in self.surroundings.events if isinstance(e, Notice)]
        self.assertEqual(len(notices), 1)
        self.assertTrue(first.is_open)
        second.close()
        self.clock.advance(0)
        self.assertEqual(listener.open_associations, 1)
        self.assertTrue(self.dial().take().startswith(b"220 "))

    def test_too_many_from_one_client(self) -> None:
        """One client cannot take all connections."""
        self.listen(limits={"connections-per-client": "1"})
        self.dial()
        self.assertTrue(self.dial().take().startswith(b"421 4.7.0 Too many connections from"))
        self.assertTrue(self.dial("198.51.100.8").take().startswith(b"220 "))

    def test_not_in_service(self) -> None:
        """While nobody can receive, a peer is told to come again."""
        self.listen()
        self.host.fault = ClusterNotInitialised("not yet")
        self.assertTrue(self.dial().take().startswith(b"421 4.3.2 "))

    def test_settings(self) -> None:
        """The block of a listener reads as the grammar of the configuration says."""
        settings = SmtpListenerSettings.model_validate(
            {
                "port": "2525",
                "relay-from": ["192.0.2.0/24", "2001:db8::/32"],
                "bare-newline": "normalise",
                "limits": {"size": "10MiB", "connections-per-client": "5"},
                "timeouts": {"command": "1m"},
            }
        )
        self.assertEqual(settings.of_machine().size_octets, 10 * 2**20)
        self.assertTrue(settings.of_machine().normalise_newlines)
        self.assertEqual(settings.timeouts.command, 60.0)
        self.assertEqual(len(settings.relay_from or ()), 2)
        for wrong in ({"banner": "a\r\nb"}, {"bare-newline": "keep"}, {"ports": "1"}):
            self.assertRaises(ValueError, SmtpListenerSettings.model_validate, wrong)

    def test_submission(self) -> None:
        """This node's own programs get the same responder, without the listener's limits."""
        peer = PeerInfo("submit/in/1", "127.0.0.1", 0, "127.0.0.1", 0, "submit", uid=1000)
        built = build_submission_responder(self.tenure, self.host, peer, self.surroundings)
        self.surroundings.network.serve(VIP, 99, lambda: built)
        client = self.dial(port=99)
        self.assertIn(b"250-SIZE\r\n", self.say(client, b"EHLO x\r\n"))


class DialogueTests(ResponderTestCase):
    def test_a_message(self) -> None:
        """A message is handed in piece by piece, and its 250 is the hook's."""
        self.listen()
        peer = self.dial()
        self.assertTrue(self.say(peer, ENVELOPE).endswith(b"\r\n"))
        self.assertEqual(
            self.say(peer, b"Subject: x\r\n\r\n..\r\n.\r\n"), b"250 2.0.0 Ok: queued as 1\r\n"
        )
        self.assertIn(b"221 ", self.say(peer, b"QUIT\r\n"))
        self.assertFalse(peer.is_open)
        self.assertEqual(self.host.receptions[0].messages, [b"Subject: x\r\n\r\n..\r\n"])
        self.assertEqual(
            self.heard,
            [
                "connected",
                "helo x ESMTP",
                "mail a@x.org",
                "rcpt b@y.org",
                "data",
                "end",
                "acknowledged",
                "closed in order: ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5",
            ],
        )

    def test_hard_detail_5_late_hooks(self) -> None:
        """Replies keep their order however late a hook answers; the reply to what came in one piece
        leaves in one piece.
        """
        self.listen()
        peer = self.dial()
        peer.take()
        late = self.deferred("mail")
        self.assertEqual(
            self.say(peer, ENVELOPE),
            b"250-bridgehead.example.org\r\n250-PIPELINING\r\n250-SIZE 26214400\r\n"
            b"250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-LIMITS RCPTMAX=1000\r\n"
            b"250 ENHANCEDSTATUSCODES\r\n",
        )
        late.callback(None)
        self.clock.advance(0)
        self.assertEqual(peer.take().count(b"\r\n"), 3)

    def test_250_only_when_durable(self) -> None:
        """No octet of a 250 leaves before the commit has fired; then the reply is acknowledged."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        commit = self.deferred("end")
        self.assertEqual(self.say(peer, b"x\r\n.\r\n"), b"")
        self.assertNotIn("acknowledged", self.heard)
        commit.callback(OK)
        self.assertIn("acknowledged", self.heard)
        self.clock.advance(0)
        self.assertEqual(peer.take(), b"250 2.0.0 Ok: queued as 1\r\n")

    def test_acknowledged_before_the_next_end(self) -> None:
        """Of two messages that came in one piece the first is answered before the second ends; the
        250 and the replies to the next envelope share a write.
        """
        self.listen()
        peer = self.dial()
        commit = self.deferred("end")
        again = b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@y.org>\r\nDATA\r\n"
        self.say(peer, ENVELOPE + b"1\r\n.\r\n" + again)
        commit.callback(OK)
        self.clock.advance(0)
        self.assertEqual(peer.take().count(b"\r\n"), 4)
        peer.say(b"2\r\n.\r\n" + again + b"3\r\n.\r\n")
        self.clock.advance(0)
        heard = [h for h in self.heard if h in {"end", "acknowledged"}]
        self.assertEqual(heard, ["end", "acknowledged"] * 3)

    def test_refusals_are_told(self) -> None:
        """What the machine refuses by itself stands in the log with peer, stage and reply."""
        self.listen()
        peer = self.dial()
        self.say(peer, b"EHLO x\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<>\r\n")
        (rejected,) = [e for e in self.surroundings.events if isinstance(e, Rejected)]
        self.assertEqual(rejected.client, "198.51.100.7")
        self.assertEqual(
            (rejected.stage, rejected.sender, rejected.helo), ("RCPT", b"a@x.org", b"x")
        )
        self.assertIn("501 5.1.3", rejected.reply)

    def test_greeting_hook(self) -> None:
        """A peer that the hook refuses is told why, and closed; a late hook delays the greeting."""
        self.listen()
        self.host.answers["connected"] = [Reply(554, "5.7.1", (b"No",))]
        peer = self.dial()
        self.assertEqual(peer.take(), b"554 5.7.1 No\r\n")
        self.assertFalse(peer.is_open)
        late = self.deferred("connected")
        peer = self.dial()
        self.assertEqual(self.say(peer, b"EHLO x\r\n"), b"")
        late.callback(None)
        self.clock.advance(0)
        self.assertTrue(peer.take().startswith(b"220 bridgehead.example.org ESMTP\r\n250-"))

    def test_hooks_that_fail(self) -> None:
        """A hook that raises, at once or later, costs the peer one 4yz or 5yz and no more; a
        surprise is told to the operator.
        """
        self.listen()
        for fault, code in (
            (TransientFailure("x", code=450, enhanced="4.2.0"), b"450 4.2.0 "),
            (PermanentFailure("x", code=550, enhanced="5.7.1"), b"550 5.7.1 "),
            (Full("x"), b"452 4.3.1 "),
            (Unavailable("x"), b"451 4.3.0 "),
            (RuntimeError("secret"), b"451 4.3.0 "),
        ):
            peer = self.dial()
            self.say(peer, b"EHLO x\r\n")
            self.host.answers["mail"] = [fault]
            answer = self.say(peer, b"MAIL FROM:<a@x.org>\r\n")
            self.assertTrue(answer.startswith(code), answer)
            self.assertNotIn(b"secret", answer)
            late = self.deferred("mail")
            self.say(peer, b"MAIL FROM:<a@x.org>\r\n")
            late.errback(fault)
            self.clock.advance(0)
            self.assertTrue(peer.take().startswith(code))
            self.assertTrue(peer.is_open)
        notices = [e for e in self.surroundings.events if isinstance(e, Notice)]
        self.assertTrue(any("secret" in notice.text for notice in notices))

    def test_a_greeting_hook_that_fails(self) -> None:
        """A hook that fails before the greeting sends the peer away, in words of its kind."""
        self.listen()
        for fault, code in (
            (Unavailable("x"), b"421 4.3.0 "),
            (PermanentFailure("x", code=554, enhanced="5.7.1"), b"554 5.7.1 "),
        ):
            self.host.answers["connected"] = [fault]
            peer = self.dial()
            self.assertTrue(peer.take().startswith(code))
            self.assertFalse(peer.is_open)
        self.host.answers["connected"] = [Fenced("x")]
        peer = self.dial()
        self.assertEqual((peer.take(), peer.is_open), (b"", False))

    def test_fenced(self) -> None:
        """Fenced, revoked or unknown: the association is reset without a reply."""
        self.listen()
        for fault in (Fenced("x"), Unknown("x")):
            peer = self.dial()
            self.say(peer, ENVELOPE)
            commit = self.deferred("end")
            self.say(peer, b"x\r\n.\r\n")
            commit.errback(fault)
            self.clock.advance(0)
            self.assertEqual(peer.take(), b"")
            self.assertFalse(peer.is_open)
            self.assertEqual(peer.lost_because, "ConnectionLost")

    def test_revoked(self) -> None:
        """When the tenure ends every association ends with it, and hooks that wait are cancelled."""
        self.listen()
        peer = self.dial()
        late = self.deferred("mail")
        self.say(peer, ENVELOPE)
        self.tenure.revoke()
        self.clock.advance(0)
        self.assertFalse(peer.is_open)
        self.assertTrue(late.called)
        self.assertTrue(self.heard[-1].startswith("closed MAIL"))

    def test_lost(self) -> None:
        """A lost peer is told with the stage; a commit under way goes on."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        commit = self.deferred("end")
        self.say(peer, b"x\r\n.\r\n")
        peer.abort()
        self.clock.advance(0)
        self.assertFalse(commit.called)
        self.assertTrue(self.heard[-1].startswith("closed END-OF-MESSAGE"))
        commit.callback(OK)
        self.assertNotIn("acknowledged", self.heard)

    def test_fault(self) -> None:
        """Content with a fault is swallowed, refused, and the association goes on."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        self.assertTrue(self.say(peer, b"a\nb\r\n.\r\n").startswith(b"550 5.5.2 "))
        self.assertIn("fault 550", self.heard)
        self.assertEqual(self.say(peer, b"NOOP\r\n"), b"250 2.0.0 Ok\r\n")


class LmtpDialogueTests(ResponderTestCase):
    lmtp = True

    def test_lmtp(self) -> None:
        """An LMTP listener greets so and answers each recipient."""
        self.listen(port=24)
        peer = self.surroundings.network.dial(VIP, 24)
        self.clock.advance(0)
        self.assertIn(b" LMTP", peer.take())
        self.say(
            peer,
            b"LHLO x\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<1@y.org>\r\nRCPT TO:<2@y.org>\r\nDATA\r\n",
        )
        self.assertEqual(self.say(peer, b"x\r\n.\r\n"), b"250 2.0.0 Ok: queued as 1\r\n" * 2)
        self.assertEqual(self.host.peers[0].protocol, "LMTP")


class DeadlineTests(ResponderTestCase):
    """Hard detail 11, inwards: exact to the tenth of a second."""

    def expires(self, peer: MemoryPeer, seconds: float) -> bytes:
        """Nothing happens until just before; then the last words, and the end."""
        self.clock.advance(seconds - 0.1)
        self.clock.advance(0)
        self.assertEqual(peer.take(), b"")
        self.assertTrue(peer.is_open)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertFalse(peer.is_open)
        return peer.take()

    def test_command(self) -> None:
        """A peer that is silent for 5 minutes is told 421; octets of an unfinished command do not
        help it.
        """
        self.listen()
        peer = self.dial()
        peer.take()
        self.clock.advance(150)
        peer.say(b"NOO")
        self.clock.advance(0)
        self.assertEqual(self.expires(peer, 150), b"421 4.4.2 Timeout, closing the connection\r\n")
        self.assertTrue(self.heard[-1].startswith("closed in order"))

    def test_each_command_begins_anew(self) -> None:
        """A peer that says something every 299 seconds is heard as long as it likes."""
        self.listen()
        peer = self.dial()
        peer.take()
        for _ in range(5):
            self.clock.advance(299)
            self.assertEqual(self.say(peer, b"NOOP\r\n"), b"250 2.0.0 Ok\r\n")
        self.expires(peer, 300)

    def test_block(self) -> None:
        """3 minutes without content end a transaction; each piece begins anew."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        self.clock.advance(179)
        self.say(peer, b"some content")
        self.assertTrue(self.expires(peer, 180).startswith(b"421 4.4.2"))

    def test_slow_loris(self) -> None:
        """An octet now and then holds a connection for an hour at most."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        for _ in range(35):
            self.clock.advance(100)
            self.say(peer, b"x\r\n")
        self.assertTrue(self.expires(peer, 100).startswith(b"421 4.4.2"))

    def test_our_own_time_is_not_the_peers(self) -> None:
        """While a hook takes its time, the peer's does not run."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        commit = self.deferred("end")
        self.say(peer, b"x\r\n.\r\n")
        self.clock.advance(3000)
        self.assertTrue(peer.is_open)
        commit.callback(OK)
        self.clock.advance(0)
        self.assertEqual(peer.take(), b"250 2.0.0 Ok: queued as 1\r\n")
        self.expires(peer, 300)

    def test_last_words_unread(self) -> None:
        """A peer that does not read is reset, be it that it was told goodbye or not."""
        self.listen(timeouts=ListenerTimeouts(command=10.0))
        peer = self.dial()
        far = peer.transport.far
        far.hold = True
        self.say(peer, b"QUIT\r\n")
        self.clock.advance(29.9)
        self.assertTrue(peer.is_open)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertFalse(peer.is_open)


class BackPressureTests(ResponderTestCase):
    def test_a_pause_that_content_asks_for(self) -> None:
        """While the spool is busy the peer is not read, and memory stays bounded."""
        self.listen()
        peer = self.dial()
        self.say(peer, ENVELOPE)
        pause = self.deferred("chunk")
        self.say(peer, b"x" * 70 + b"\r\n")
        self.say(peer, (b"y" * 70 + b"\r\n") * 1000)
        self.assertTrue(peer.transport.far.is_paused)
        held = len(self.host.receptions[0].content)
        self.say(peer, (b"z" * 70 + b"\r\n") * 1000)
        self.assertEqual(len(self.host.receptions[0].content), held)
        pause.callback(None)
        for _ in range(5):
            self.clock.advance(0)
        self.assertFalse(peer.transport.far.is_paused)
        self.assertEqual(len(self.host.receptions[0].content), 72 * 2001 - 2)
        self.say(peer, b".\r\n")
        self.assertEqual(len(self.host.receptions[0].messages[0]), 72 * 2001)

    def test_commands_behind_a_slow_hook(self) -> None:
        """A peer that pipelines on and on waits when one read of it is unread."""
        self.listen()
        peer = self.dial()
        late = self.deferred("mail")
        self.say(peer, b"EHLO x\r\nMAIL FROM:<a@x.org>\r\n")
        self.say(peer, b"NOOP\r\n" * (BUFFER_OCTETS // 6 + 2))
        self.assertTrue(peer.transport.far.is_paused)
        late.callback(None)
        self.clock.advance(0)
        self.assertFalse(peer.transport.far.is_paused)

    def test_a_peer_that_does_not_read(self) -> None:
        """Replies that nobody reads stop the commands, and end after 5 minutes."""
        self.listen()
        peer = self.dial()
        peer.transport.far.hold = True
        self.say(peer, b"EHLO x\r\n")
        self.say(peer, b"MAIL FROM:<a@x.org>\r\n")
        self.assertNotIn("mail a@x.org", self.heard)
        peer.transport.far.hold = False
        for _ in range(3):
            self.clock.advance(0)
        self.assertIn("mail a@x.org", self.heard)
        peer.transport.far.hold = True
        self.say(peer, b"NOOP\r\n")
        self.clock.advance(300)
        self.clock.advance(0)
        self.assertFalse(peer.is_open)
        self.assertEqual(peer.lost_because, "ConnectionLost")


class DrainTests(ResponderTestCase):
    def test_drain(self) -> None:
        """Who rests is sent away with 421 at once, who is in a transaction when it is over."""
        listener = self.listen(limits=ListenerLimits())
        self.assertIsNone(self.successResultOf(listener.drain()))
        resting, busy = self.dial(), self.dial()
        resting.take()
        self.say(busy, ENVELOPE)
        drained = listener.drain()
        self.clock.advance(0)
        self.assertEqual(resting.take(), b"421 4.3.2 Shutting down, try again\r\n")
        self.assertFalse(resting.is_open)
        self.assertTrue(busy.is_open)
        self.assertNoResult(drained)
        self.assertEqual(
            self.say(busy, b"x\r\n.\r\n"),
            b"250 2.0.0 Ok: queued as 1\r\n421 4.3.2 Shutting down, try again\r\n",
        )
        self.assertIsNone(self.successResultOf(drained))
