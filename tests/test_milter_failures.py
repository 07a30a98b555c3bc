"""The policy `milter`: filters that are away, silent or wrong, and the end of what was connected."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.policy.milter import Milter, MilterSettings
from mta.policy.milter_connection import QUIT_SECONDS
from mta.policy.milter_outage import REPLIES
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Notice
from mta.testing.lab import Lab
from mta.testing.policy_suite import sample_peers
from mta.testing.surroundings import MemorySurroundings
from tests.intake_ground import MESSAGE, House, address
from tests.memory_filter import CONTINUE, MemoryFilter, said
from tests.milter_ground import LATER, SOCKET, Ground, codes


def behind(ground: Ground, memory: MemoryFilter) -> None:
    """A second filter stands behind the ground's."""
    where = "tcp:127.0.0.1:8891"
    ground.surroundings.network.serve_service(where, memory)
    second = Milter(MilterSettings(socket=where), ground.surroundings)
    ground.house = House((ground.policy, second))


class FailureTests(SynchronousTestCase):
    def test_tempfail_by_default(self) -> None:
        """Wherever a filter dies, the message waits with its sender; the next one asks anew."""
        for letter in "MRTLNBE":
            ground = Ground(MemoryFilter(**{letter: [None]}))
            ground.connect()
            self.assertEqual(ground.send()[-1], LATER, letter)
            self.assertEqual(ground.house.offered, [])
            ground.reception.reset()
            ground.clock.advance(0)
            self.assertEqual(ground.send()[-1].code, 250, letter)
            self.assertEqual(len(ground.filter.ends), 2)
            self.assertEqual(ground.end.letters(), b"CHMRTLLNBE")
            [began, over] = ground.lines()
            self.assertIn("until it answers, mail is answered 451", began)
            self.assertIn("answers again", over)

    def test_away(self) -> None:
        """A filter that is not there costs messages a 451, not clients their greeting; one line."""
        ground = Ground()
        ground.surroundings.network.services.clear()
        for _ in range(3):
            self.assertEqual(ground.connect(), (None, None))
            self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertEqual(len(ground.lines()), 1)
        self.assertIn(SOCKET, ground.lines()[0])
        counter = ground.surroundings.telemetry.counter(
            "mta_filter_failures_total", "", filter=SOCKET
        )
        self.assertEqual(counter.value, 9)
        ground.surroundings.network.serve_service(SOCKET, ground.filter)
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(len(ground.lines()), 2)

    def test_on_failure(self) -> None:
        """The operator may let mail pass unfiltered, or refuse it."""
        for choice, code in (("accept", 250), ("reject", 550), ("tempfail", 451)):
            for letter in "MRTLNBE":
                ground = Ground(MemoryFilter(**{letter: None}), **{"on-failure": choice})
                ground.connect()
                self.assertEqual(ground.send()[-1].code, code, (choice, letter))

    def test_the_rest_of_a_failed_message(self) -> None:
        """A recipient that was taken before the filter died does not carry the message through."""
        ground = Ground(MemoryFilter(R=[CONTINUE, None]))
        ground.connect()
        self.assertEqual(
            codes(ground.envelope("b@example.com", "c@example.com")), [None, None, 451]
        )
        self.assertEqual(ground.content(), LATER)

    def test_between_commands(self) -> None:
        """A filter that goes between two commands of one message is missed at the next."""
        ground = Ground()
        ground.connect()
        ground.envelope()
        transport: Any = ground.end.transport
        transport.abortConnection()
        ground.clock.advance(0)
        self.assertEqual(ground.content(), LATER)

    def test_between_messages(self) -> None:
        """One that closes between messages (a restart, an idle time-out) costs nothing."""
        ground = Ground()
        ground.connect()
        ground.send()
        transport: Any = ground.end.transport
        transport.loseConnection()
        ground.clock.advance(0)
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual((len(ground.filter.ends), ground.lines()), (2, []))

    def test_silence(self) -> None:
        """A silent filter is given its time and not a second more, and its connection is cut."""
        for letter, seconds in (("M", 30.0), ("E", 50.0)):
            ground = Ground(MemoryFilter(**{letter: b""}))
            ground.connect()
            if letter == "E":
                answer = ground.to_the_end()
            else:
                answer = ground.reception.mail(address("a@example.net"), {})
            for _ in range(20):
                ground.clock.advance(0)
            ground.clock.advance(seconds - 0.001)
            self.assertNoResult(answer)
            self.assertEqual(ground.wait(answer, 0.001), LATER)
            ground.clock.advance(0)
            self.assertEqual(ground.filter.open_ends, 0)
            self.assertIn(f"{seconds:g} s have passed", ground.lines()[0])

    def test_a_door_that_does_not_open(self) -> None:
        """A connection that does not come about is given up in time."""
        ground = Ground()
        opening: list[Deferred[Any]] = []

        def service_connect(purpose: str, endpoint: str, protocol: Any) -> Deferred[Any]:
            self.assertEqual((purpose, endpoint), ("filter", SOCKET))
            opening.append(Deferred())
            return opening[-1]

        self.patch(ground.surroundings.doors, "service_connect", service_connect)
        policy = Milter(MilterSettings(socket=SOCKET, on_failure="reject"), ground.surroundings)
        ground.house = House((policy,))
        ground.reception = ground.house.intake.reception(ground.house.tenure, sample_peers()[0])
        self.assertIsNone(ground.wait(ground.reception.connected(), 10.0))
        answer = ground.reception.mail(address("a@example.net"), {})
        ground.clock.advance(9.999)
        self.assertNoResult(answer)
        self.assertEqual(ground.wait(answer, 0.001).code, 550)
        self.assertEqual(len(opening), 2)

    def test_more_time(self) -> None:
        """A filter that says that it works on gets its time anew."""
        ground = Ground(MemoryFilter(E=b""))
        ground.connect()
        ground.envelope()
        ground.wait(ground.reception.data())
        ground.wait(ground.reception.chunk(MESSAGE))
        answer = ground.reception.end(None)
        for _ in range(20):
            ground.clock.advance(0)
        ground.clock.advance(49)
        transport: Any = ground.end.transport
        transport.write(said(b"p"))
        ground.clock.advance(0)
        ground.clock.advance(49)
        self.assertNoResult(answer)
        transport.write(CONTINUE)
        self.assertEqual(ground.wait(answer).code, 250)
        self.assertEqual(ground.lines(), [])

    def test_nonsense(self) -> None:
        """Something that is no filter is told by name, neutralised, and never asked twice a message."""
        ground = Ground()
        ground.filter.negotiation = b"220 mx\x1b.example.org ESMTP\r\n"
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertIn("the filter broke its protocol", ground.lines()[0])
        ground.filter.negotiation = said(b"O", struct.pack(">3I", 6, 0, 0x10000000))
        self.assertEqual(codes(ground.envelope())[0], 451)

    def test_more_than_we_grant(self) -> None:
        """A filter that speaks of changes which it is not granted serves, and one line warns of it."""
        ground = Ground()
        ground.filter.negotiation = said(b"O", struct.pack(">3I", 6, 0x81FF, 0))
        for _ in range(2):
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
        [line] = ground.lines()
        self.assertIn("may want action 0x8000, which is not granted", line)

    def test_needs_more_than_we_grant(self) -> None:
        """A filter that ends the negotiation, as libmilter does when it needs more, is explained."""
        ground = Ground()
        ground.filter.negotiation = b""
        ground.filter.is_hanging_up = True
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 451)
        self.assertIn("perhaps it needs more than that", ground.lines()[0])


ANY_ANSWER = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        (CONTINUE, b"", None, said(b"a"), said(b"r"), said(b"d"), said(b"s"), said(b"f"))
    ),
    st.sampled_from((said(b"p") + CONTINUE, CONTINUE + CONTINUE, said(b"y", b"451 x\0"))),
    st.lists(
        st.builds(
            said, st.sampled_from([bytes([i]) for i in b"hi+-2eqmbbb"]), st.binary(max_size=20)
        ),
        max_size=3,
    ).map(lambda changes: b"".join(changes) + CONTINUE),
    st.builds(
        lambda body, change, end: said(b"b", body) + change + end,
        st.binary(max_size=30),
        st.sampled_from(
            (
                b"",
                said(b"2", b"<c@example.com>\0NOTIFY=NEVER\0"),
                said(b"2", b"<c@example.com>\0NOTIFY=\0"),
                said(b"e", b"<>\0RET=FULL\0"),
                said(b"m", struct.pack(">I", 1) + b"A\0\0"),
            )
        ),
        st.sampled_from((CONTINUE, said(b"a"), said(b"t"), said(b"d"), b"", said(b"z"))),
    ),
)
ANY_ANSWERS = st.dictionaries(st.sampled_from("CHUMRTLNBE"), ANY_ANSWER, max_size=4)


class AnyFilterTests(SynchronousTestCase):
    @given(
        answers=ANY_ANSWERS,
        others=st.one_of(st.none(), ANY_ANSWERS),
        negotiation=st.one_of(st.none(), st.none(), st.binary(max_size=30)),
        steps=st.sampled_from((0, 0x80, 0x100, 0x200, 0x20200, 0x400, 0x800, 0xFF000, 0x100000)),
        on_failure=st.sampled_from(sorted(REPLIES)),
        chunked=st.booleans(),
    )
    @settings(max_examples=400, deadline=None, derandomize=True)
    def test_any_filter(
        self,
        answers: dict[str, Any],
        others: dict[str, Any] | None,
        negotiation: bytes | None,
        steps: int,
        on_failure: str,
        chunked: bool,
    ) -> None:
        """Whatever filters say or do not say, a client has an answer to each command in time, no
        policy fault is logged, nothing stays open behind it, and of all bodies that were begun one
        is in the store, or none.
        """
        ground = Ground(MemoryFilter(**answers), **{"on-failure": on_failure})
        ground.filter.negotiation, ground.filter.steps = negotiation, steps
        ground.patience_seconds = 50.0
        if others is not None:
            behind(ground, MemoryFilter(**others))
        replies = list(ground.connect())
        if not replies[0]:
            replies.append(ground.unknown(b"XFOO"))
            replies += ground.envelope("x@nowhere.example", "b@example.com")
            if replies[-1] is None:
                replies.append(ground.unknown(b"XFOO bar"))
                content = (b"A: b\r\n\r\n..x\r\n", b"y" * 70_000 + b"\r\n")
                replies.append(ground.content(*content, chunked=chunked))
        for reply in replies:
            self.assertTrue(reply is None or reply.code == 250 or 400 <= reply.code <= 599)
        ground.reception.closed("", "")
        for _ in range(3):
            ground.clock.advance(QUIT_SECONDS)
        self.assertEqual(ground.filter.open_ends, 0)
        stagings = ground.house.spool.stagings
        kept = [s for s in stagings if not s.is_aborted]
        self.assertEqual(
            [s.committed is not None for s in kept], [True] * len(ground.house.offered)
        )
        self.assertEqual([n for n in ground.house.kinds(Notice) if n.level == "error"], [])
        self.assertEqual(ground.clock.reactor.getDelayedCalls(), [])


class EndTests(SynchronousTestCase):
    def test_a_client_that_goes(self) -> None:
        """Whenever a client goes, waiting or not, its connection to the filter goes too, unlogged."""
        for letter in "CHMRTLNBE":
            ground = Ground(MemoryFilter(**{letter: b""}))
            house = ground.house
            reception = house.intake.reception(house.tenure, sample_peers()[0])
            steps = (
                lambda r=reception: r.connected(),
                lambda r=reception: r.helo(b"x", "ESMTP"),
                lambda r=reception: r.mail(address("a@example.net"), {}),
                lambda r=reception: r.rcpt(address("b@example.com"), {}),
                lambda r=reception: r.data(),
                lambda r=reception: r.chunk(MESSAGE),
                lambda r=reception: r.end(None),
            )
            for step in steps:
                answer = step()
                for _ in range(20):
                    ground.clock.advance(0)
                if isinstance(answer, Deferred):
                    answer.addErrback(lambda failure: None)
                    if not answer.called:
                        break
            reception.closed("DATA", "")
            ground.clock.advance(0)
            ground.clock.advance(QUIT_SECONDS)
            self.assertEqual((ground.filter.open_ends, ground.lines()), (0, []), letter)
            self.assertEqual(ground.clock.reactor.getDelayedCalls(), [], letter)

    def test_a_filter_that_does_not_hear_the_end(self) -> None:
        """A filter that reads no more is cut off; an association's end waits for nobody."""
        ground = Ground()
        ground.connect()
        connection = ground.reception._association.notes[ground.policy._note]._connection
        transport: Any = connection.transport
        transport.hold = True
        ground.reception.closed("", "")
        ground.clock.advance(QUIT_SECONDS - 0.001)
        self.assertEqual(ground.filter.open_ends, 1)
        ground.clock.advance(0.001)
        ground.clock.advance(0)
        self.assertEqual(ground.filter.open_ends, 0)

    def test_the_end_of_a_tenure(self) -> None:
        """When a tenure ends no connection to a filter is left; with the next one mail flows again."""
        memory = MemoryFilter()
        lab = Lab("ab", spool="log", more=f"policies: [{{policy: milter, socket: '{SOCKET}'}}]\n")
        lab.network.serve_service(SOCKET, memory)
        client = lab.client()
        client.say(b"MAIL FROM:<me@example.net>")
        self.assertEqual(memory.open_ends, 1)
        lab.fail("a", "b")
        lab.advance(QUIT_SECONDS)
        self.assertEqual(memory.open_ends, 0)
        self.assertTrue(lab.send().startswith(b"250"))
        lab.advance(QUIT_SECONDS)
        self.assertEqual((memory.open_ends, len(memory.ends)), (0, 2))

    def test_unasked_transactions(self) -> None:
        """An end of something that it never saw is no matter to it."""
        surroundings = MemorySurroundings()
        policy = Milter(MilterSettings(socket=SOCKET), surroundings)
        transaction = Transaction(Association(sample_peers()[0], admitted=False))
        for hook in ("abort", "disconnect"):
            self.assertIsNone(policy.on(hook, transaction))
