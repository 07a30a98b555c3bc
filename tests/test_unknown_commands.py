"""Commands that nobody knows: who hears of them, what may be said to them, and what they cost."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.association.smtp_listener import SmtpListener, build_submission_responder
from mta.association.smtp_settings import SmtpListenerSettings
from mta.interfaces import ICommandLine, IUnknownCommands
from mta.model import PeerInfo, Reply
from mta.policy.chain import FAULT
from mta.telemetry import Rejected
from mta.testing.network import MemoryPeer
from mta.testing.surroundings import MemorySurroundings, MemoryTenure
from mta.wire.milter.packets import Step
from mta.wire.smtp.events import Helo, Mail, Quit, UnknownCommand
from mta.wire.smtp.events import Rejected as RejectedByItself
from mta.wire.smtp.limits import COMMAND_LIMIT
from mta.wire.smtp.server import Responder
from mta.wire.smtp.states import State
from tests.intake_ground import STRANGER, House, Recorder, address, begin
from tests.memory_filter import CONTINUE, MemoryFilter, said
from tests.milter_ground import LATER, Ground

UNKNOWN = b"500 5.5.1 Command not recognised\r\n"
OWN = Reply(502, "5.5.1", (b"Not here",))
VIP = "192.0.2.10"


def responder(**keys: Any) -> Responder:
    machine = Responder(b"mx.example.org", **keys)
    machine.greet()
    machine.take_output()
    return machine


class MachineTests(SynchronousTestCase):
    def test_untold(self) -> None:
        """Where nobody wants to hear of it the machine answers at once, and nothing is waited for."""
        machine = responder()
        machine.receive(b"XFOO\r\n")
        [event] = iter(machine.next_event, None)
        self.assertIsInstance(event, RejectedByItself)
        self.assertEqual(machine.take_output(), UNKNOWN)

    def test_in_order(self) -> None:
        """It waits for the answer before it, what stands behind it waits for its own, and the
        replies come in the order of the commands.
        """
        machine = responder(tells_unknown=True)
        machine.receive(b"EHLO x\r\nMAIL FROM:<a@x.org>\r\nXFOO bar\r\nRSET\r\nXEND\r\n")
        self.assertIsInstance(machine.next_event(), Helo)
        machine.answer(None)
        self.assertIsInstance(machine.next_event(), Mail)
        machine.take_output()
        self.assertIsNone(machine.next_event())
        machine.answer(None)
        self.assertEqual(machine.next_event(), UnknownCommand(b"XFOO bar"))
        self.assertTrue(machine.is_awaiting)
        self.assertIsNone(machine.next_event())
        self.assertEqual(machine.take_output(), b"250 2.1.0 Ok\r\n")
        machine.answer(OWN)
        self.assertIs(machine.state, State.MAIL)
        events = list(iter(machine.next_event, None))
        self.assertEqual(events[-1], UnknownCommand(b"XEND"))
        machine.answer(None)
        self.assertEqual(machine.take_output(), b"502 5.5.1 Not here\r\n250 2.0.0 Ok\r\n" + UNKNOWN)
        self.assertIsInstance(machine.next_event(), RejectedByItself)
        self.assertEqual(machine.commands, "ehlo=1 mail=1 unknown=0/2 rset=1 commands=3/5")

    def test_what_is_no_command_line(self) -> None:
        """Lines too long, with other octets than printable ones, without CR, and browsers are
        refused without asking.
        """
        for line in (
            b"X" * COMMAND_LIMIT + b"\r\n",
            b"X\0\r\n",
            b"X\xff\r\n",
            b"X\x1b[2J\r\n",
            b"XFOO\n",
            b"POST / HTTP/1.1\r\n",
        ):
            machine = responder(tells_unknown=True)
            machine.receive(line)
            events = list(iter(machine.next_event, None))
            self.assertNotIn(UnknownCommand, [type(event) for event in events], line)
            self.assertIn(machine.take_output()[:3], (b"500", b"421"))

    def test_errors_are_counted(self) -> None:
        """Whatever is answered, the twentieth ends the association: nobody lives on kind words."""
        for reply in (None, OWN, Reply(250, "2.0.0", (b"Ok",)), Reply(451, "4.7.1", (b"Later",))):
            machine = responder(tells_unknown=True)
            machine.receive(b"XFOO\r\n" * 40)
            asked = 0
            for event in iter(machine.next_event, None):
                if isinstance(event, UnknownCommand):
                    asked += 1
                    machine.answer(reply)
            self.assertEqual((asked, event), (20, Quit(False)))
            self.assertTrue(machine.take_output().endswith(b"\r\n421 4.7.0 Too many errors\r\n"))


class HookTests(SynchronousTestCase):
    def test_nobody_wants_it(self) -> None:
        """Without a policy that names the hook nobody is asked, and no transaction is made for it."""
        house = House((Recorder("mail", "end"),))
        reception = house.reception()
        verifyObject(IUnknownCommands, reception)
        self.assertFalse(reception.wants_unknown)
        self.assertFalse(house.intake._desk.introduces)

    def test_what_it_hears(self) -> None:
        """The line, with the association before MAIL and with the transaction behind it."""
        heard: list[Any] = []

        def hear(transaction: Any) -> None:
            verifyObject(ICommandLine, transaction)
            heard.append((transaction.line, transaction.sender.text, len(transaction.recipients)))

        house = House((Recorder(unknown=hear),))
        reception = house.reception()
        self.assertTrue(reception.wants_unknown)
        self.assertIsNone(reception.unknown(b"XFOO"))
        begin(reception)
        self.assertIsNone(reception.unknown(b"XFOO bar"))
        self.assertEqual(heard, [(b"XFOO", b"", 0), (b"XFOO bar", b"a@example.net", 1)])

    def test_answers(self) -> None:
        """A refusal is said and logged; a positive answer leaves the usual words; a policy that
        raises costs the command 451. The transaction goes on.
        """

        def fail(transaction: Any) -> None:
            raise ValueError("no")

        for answer, expected in (
            (OWN, OWN),
            (None, None),
            (Reply(250, "2.0.0", (b"Ok",)), None),
            (fail, FAULT),
        ):
            house = House((Recorder(unknown=answer),))
            reception = house.reception()
            begin(reception)
            self.assertEqual(reception.unknown(b"XFOO"), expected)
            logged = [(e.stage, e.reply) for e in house.kinds(Rejected)]
            self.assertEqual(logged, [] if expected is None else [("UNKNOWN", expected.text)])
            self.assertIsNone(reception.data())

    def test_a_client_that_goes(self) -> None:
        """A policy that is still asked when the client goes is cancelled."""
        waits: Deferred[Any] = Deferred()
        reception = House((Recorder(unknown=waits),)).reception()
        answer = reception.unknown(b"XFOO")
        answer.addErrback(lambda _: None)
        reception.closed("HELO", "")
        self.assertTrue(waits.called)


class WireTests(SynchronousTestCase):
    """A listener on memory doors in front of a real intake."""

    def dial(self, *policies: Any) -> MemoryPeer:
        self.surroundings = MemorySurroundings()
        self.house = House(policies)
        listener = SmtpListener(SmtpListenerSettings(), self.surroundings)
        listener.listen(MemoryTenure(), self.house.intake)
        peer = self.surroundings.network.dial(VIP, 25, STRANGER)
        self.say(peer, b"EHLO x\r\n")
        return peer

    def say(self, peer: MemoryPeer, data: bytes) -> bytes:
        peer.say(data)
        for _ in range(5):
            self.surroundings.clock.advance(0)
        return peer.take()

    def test_untold(self) -> None:
        """Without such a policy the reply is what it always was, and the log has its line."""
        peer = self.dial(Recorder("mail"))
        self.assertEqual(self.say(peer, b"XFOO\r\n"), UNKNOWN)
        [logged] = [e for e in self.surroundings.events if isinstance(e, Rejected)]
        self.assertEqual((logged.stage, logged.reply), ("UNKNOWN", UNKNOWN.decode().strip()))

    def test_late_answers(self) -> None:
        """A policy that waits holds back the replies behind it; none overtakes."""
        waits: Deferred[Any] = Deferred()
        peer = self.dial(Recorder(unknown=waits))
        self.assertEqual(self.say(peer, b"NOOP\r\nXFOO\r\nNOOP\r\n"), b"250 2.0.0 Ok\r\n")
        waits.callback(OWN)
        self.assertEqual(self.say(peer, b""), b"502 5.5.1 Not here\r\n250 2.0.0 Ok\r\n")

    def test_the_end(self) -> None:
        """421 ends the association."""
        peer = self.dial(Recorder(unknown=Reply(421, "4.7.0", (b"Enough",))))
        self.assertEqual(self.say(peer, b"XFOO\r\nNOOP\r\n"), b"421 4.7.0 Enough\r\n")
        self.assertFalse(peer.is_open)

    def test_programs_of_this_node(self) -> None:
        """What programs hand in over the socket is heard the same way."""
        surroundings, house = MemorySurroundings(), House((Recorder(unknown=OWN),))
        peer = PeerInfo("submit/1", "", 0, "", 0, "submit", uid=0)
        protocol: Any = build_submission_responder(MemoryTenure(), house.intake, peer, surroundings)
        machine = protocol._machine
        machine.greet()
        machine.receive(b"XFOO\r\n")
        self.assertEqual(machine.next_event(), UnknownCommand(b"XFOO"))


class FilterTests(SynchronousTestCase):
    def test_a_line(self) -> None:
        """The filter hears the whole line, with no macros; when it has nothing to say, 500 stays."""
        ground = Ground()
        ground.connect()
        self.assertIsNone(ground.unknown(b"XFOO bar"))
        self.assertEqual(ground.end.all(b"U"), [b"XFOO bar\0"])
        ground.envelope()
        self.assertIsNone(ground.unknown(b"XFOO"))
        self.assertEqual(ground.content().code, 250)
        self.assertEqual(ground.end.letters(), b"CHUMRUTLLNBE")
        self.assertNotIn(b"U", ground.end.macros)
        self.assertIsNone(ground.unknown(b"XFOO"))
        self.assertEqual(ground.lines(), [])

    def test_words(self) -> None:
        """Its reply takes the place of ours; the message that is open goes on, but behind accept
        without the filter. Discard means nothing.
        """
        own = said(b"y", b"502 5.5.1 Not here\0")
        for answer, code, heard in (
            (own, 502, b"TLLNBE"),
            (said(b"r"), 550, b"TLLNBE"),
            (said(b"t"), 451, b"TLLNBE"),
            (said(b"4"), 421, b"TLLNBE"),
            (said(b"p") + CONTINUE, None, b"TLLNBE"),
            (said(b"d"), None, b"TLLNBE"),
            (said(b"a"), None, b""),
        ):
            ground = Ground(MemoryFilter(U=answer))
            ground.connect()
            for _ in range(2):
                reply = ground.unknown(b"XFOO")
                self.assertEqual(reply and reply.code, code)
            ground.envelope()
            ground.unknown(b"XFOO")
            self.assertEqual(ground.content().code, 250)
            self.assertEqual(ground.end.letters(), b"CHUUMRU" + heard)
            self.assertEqual(len(ground.house.offered), 1)
            self.assertEqual(ground.lines(), [])

    def test_unwanted(self) -> None:
        """Who does not want them hears none; who does not answer is not waited for."""
        ground = Ground()
        ground.filter.steps = int(Step.NO_UNKNOWN)
        ground.connect()
        self.assertIsNone(ground.unknown(b"XFOO"))
        self.assertEqual(ground.end.letters(), b"CH")
        ground = Ground()
        ground.filter.steps, ground.filter.mute = int(Step.MUTE_UNKNOWN), b"U"
        ground.connect()
        self.assertIsNone(ground.unknown(b"XFOO"))
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(ground.end.letters(), b"CHUMRTLLNBE")

    def test_without_data(self) -> None:
        """A filter on libmilter that does not hear DATA would forget the message by it: it hears of
        such commands between messages only.
        """
        ground = Ground(MemoryFilter(U=said(b"r")))
        ground.filter.steps = int(Step.NO_DATA)
        ground.connect()
        ground.envelope()
        self.assertIsNone(ground.unknown(b"XFOO"))
        self.assertEqual(ground.content().code, 250)
        self.assertEqual(ground.unknown(b"XFOO").code, 550)
        self.assertEqual(ground.end.letters(), b"CHMRLLNBEU")

    def test_failures(self) -> None:
        """A filter that dies of it costs nothing between messages; the message that is open is what
        on-failure says, and so is the command.
        """
        for choice, code in (("tempfail", 451), ("reject", 550), ("accept", None)):
            ground = Ground(MemoryFilter(U=[None, CONTINUE, None]), **{"on-failure": choice})
            ground.connect()
            self.assertIsNone(ground.unknown(b"XFOO"))
            self.assertIsNone(ground.unknown(b"XFOO"), "a connection was made for it")
            self.assertEqual(len(ground.filter.ends), 1)
            ground.envelope()
            self.assertIsNone(ground.unknown(b"XFOO"))
            reply = ground.unknown(b"XFOO")
            self.assertEqual(reply and reply.code, code)
            self.assertEqual(ground.content().code, code or 250)
            self.assertIsNone(ground.unknown(b"XFOO"), "a message that has failed is asked about")
            self.assertEqual(len(ground.filter.ends), 2)

    def test_silence(self) -> None:
        """A filter that does not answer has the time of a command, and no more."""
        ground = Ground(MemoryFilter(U=b""))
        ground.connect()
        ground.wait(ground.reception.mail(address("a@example.net"), {}))
        answer = ground.reception.unknown(b"XFOO")
        for _ in range(20):
            ground.clock.advance(0)
        ground.clock.advance(29.9)
        self.assertNoResult(answer)
        self.assertEqual(ground.wait(answer, 0.1), LATER)
