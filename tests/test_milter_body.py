"""A filter puts another body in the place of the one that came, and whoever stands behind sees it."""

from __future__ import annotations

import itertools
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import classImplementsOnly

from mta.errors import Unavailable
from mta.interfaces import IRevisable, IStaging
from mta.model import BodyType, ContentForm, Reply
from mta.policy.milter import Milter, MilterSettings
from mta.policy.new_body import Bounds
from mta.telemetry import Accepted, Notice
from tests.intake_ground import MESSAGE, House, Recorder, address
from tests.memory_filter import CONTINUE, MemoryFilter, said
from tests.milter_ground import LATER, Ground, codes
from tests.scripted_spool import ScriptedStaging
from tests.test_dkim import Ground as DkimGround

HEADER = b"From: <a@example.net>\r\nMessage-ID: <1@example.net>\r\n"


def replaced(*pieces: bytes, end: bytes = CONTINUE) -> MemoryFilter:
    """A filter that sends these as the new body."""
    return MemoryFilter(E=b"".join(said(b"b", piece) for piece in pieces) + end)


def body(stored: bytes) -> bytes:
    return stored.partition(b"\r\n\r\n")[2]


def behind(ground: Ground, *others: Any, **keys: Any) -> None:
    """`others` stand behind the ground's filter."""
    ground.house = House((ground.policy, *others), **keys)


def second_filter(ground: Ground, memory: MemoryFilter) -> Milter:
    ground.surroundings.network.serve_service("tcp:127.0.0.1:8891", memory)
    return Milter(MilterSettings(socket="inet:127.0.0.1:8891"), ground.surroundings)


class NewBodyTests(SynchronousTestCase):
    def test_replaced(self) -> None:
        """What a filter sends is the body of what is stored, header and fields before it; nothing of
        the first body is left.
        """
        ground = Ground(replaced(b"New", b".\r\n.dot\r\n", b".", b"\r\n"))
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        first, second = ground.house.spool.stagings
        self.assertTrue(first.is_aborted and first.committed is None)
        self.assertEqual(second.queue_id, first.queue_id)
        self.assertTrue(second.stored.startswith(b"Received: "))
        self.assertTrue(second.stored.endswith(HEADER + b"\r\nNew.\r\n..dot\r\n..\r\n"))
        self.assertEqual(ground.house.offered[0][0], first.queue_id)
        [accepted] = ground.house.kinds(Accepted)
        self.assertEqual(accepted.size_octets, len(HEADER + b"\r\nNew.\r\n..dot\r\n..\r\n"))

    def test_with_other_changes(self) -> None:
        """Fields may be changed and added in the same breath, before and behind the body."""
        change = said(b"m", struct.pack(">I", 1) + b"From\0<c@example.net>\0")
        ground = Ground(
            MemoryFilter(E=said(b"h", b"X-Y\0z\0") + said(b"b", b"new\r\n") + change + CONTINUE)
        )
        ground.connect()
        ground.send()
        expected = b"X-Y: z\r\nFrom: <c@example.net>\r\nMessage-ID: <1@example.net>\r\n\r\nnew\r\n"
        self.assertTrue(ground.stored.endswith(b"\r\n" + expected), ground.stored)

    def test_lines(self) -> None:
        """Whatever ends a line for the filter's program, CRLF ends it in the store."""
        for sent, kept in (
            (b"a\nb\n", b"a\r\nb\r\n"),
            (b"a\r\n\r\n\n", b"a\r\n\r\n\r\n"),
            (b"a\rb", b"a\r\nb\r\n"),
            (b"\n.\n", b"\r\n..\r\n"),
            (b"", b""),
            (b"a\r", b"a\r\n"),
        ):
            for cut in range(len(sent) + 1):
                ground = Ground(replaced(sent[:cut], sent[cut:]))
                ground.connect()
                self.assertEqual(ground.send()[-1].code, 250)
                self.assertEqual(body(ground.stored), kept, sent)

    def test_what_is_header(self) -> None:
        """The header that stays is what the filter heard as such, however the message was shaped."""
        for content, header in (
            (b"A: b\r\nno field\r\nC: d\r\n\r\nold\r\n", b"A: b\r\n"),
            (b"\r\nold\r\n", b""),
            (b"old\r\n", b""),
            (b"old\r\n\r\nolder\r\n", b""),
            (b"A: b\r\n", b"A: b\r\n"),
            (b"A: b\r\n\r\n", b"A: b\r\n"),
        ):
            for chunked in (False, True):
                ground = Ground(replaced(b"new\r\n"))
                ground.connect()
                self.assertEqual(ground.send(content, chunked=chunked)[-1].code, 250)
                self.assertTrue(ground.stored.endswith(b"\r\n" + header + b"\r\nnew\r\n"))
                self.assertNotIn(b"old", ground.stored)

    def test_eight_bits(self) -> None:
        """What a next hop must be able to take is told of the new body, not of the old one."""
        for sent, new, expected in (
            (b"\xc3\xbc\r\n", b"u\r\n", BodyType.SEVEN_BIT),
            (b"u\r\n", b"\xc3\xbc\r\n", BodyType.EIGHT_BIT_MIME),
        ):
            ground = Ground(replaced(new))
            ground.connect()
            self.assertEqual(codes(ground.envelope(body=b"8BITMIME")), [None, None])
            self.assertEqual(ground.content(HEADER + b"\r\n" + sent).code, 250)
            self.assertIs(ground.house.offered[0][1].body_type, expected)

    def test_chunks(self) -> None:
        """Of a message that came by BDAT the new body is looked at anew: text stays text, and what
        was BINARYMIME stays as the filter sent it, octet for octet.
        """
        for declared, new, kept, form, kind in (
            (b"8BITMIME", b"a\nb", b"a\r\nb\r\n", ContentForm.DOT_STUFFED, BodyType.SEVEN_BIT),
            (b"8BITMIME", b".a\n", b".a\r\n", ContentForm.OPAQUE, BodyType.SEVEN_BIT),
            (b"8BITMIME", b"a\0b", b"a\0b\r\n", ContentForm.OPAQUE, BodyType.BINARY_MIME),
            (b"BINARYMIME", b"a\nb", b"a\nb", ContentForm.OPAQUE, BodyType.BINARY_MIME),
        ):
            ground = Ground(replaced(new))
            ground.connect()
            ground.envelope(body=declared)
            self.assertEqual(ground.content(HEADER + b"\r\nold\0\n", chunked=True).code, 250)
            envelope = ground.house.offered[0][1]
            self.assertEqual(body(ground.stored), kept)
            self.assertEqual((envelope.content_form, envelope.body_type), (form, kind))

    def test_streamed(self) -> None:
        """A large body goes to the store while it comes; while the store lags behind, the filter is
        not read.
        """
        ground = Ground(MemoryFilter(E=b""))
        ground.connect()
        answer = ground.to_the_end()
        pause: Deferred[None] = Deferred()
        ground.house.spool.pause = pause
        line, transport = b"x" * 70 + b"\r\n", ground.end.transport
        assert transport is not None
        transport.write(said(b"b", line))
        ground.clock.advance(0)
        staging = ground.house.spool.stagings[-1]
        self.assertEqual(staging.content, line[:-2])  # its CRLF might begin the end of data
        for _ in range(20):
            transport.write(said(b"b", line * 900))
        transport.write(CONTINUE)
        for _ in range(30):
            ground.clock.advance(0)
        self.assertEqual(staging.content, line[:-2])
        self.assertNoResult(answer)
        ground.house.spool.pause = None
        pause.callback(None)
        self.assertEqual(ground.wait(answer).code, 250)
        self.assertEqual(len(staging.content), len(line) * 18_001)

    @given(
        text=st.text(alphabet="a.\r\n", max_size=40).map(str.encode),
        cuts=st.lists(st.integers(0, 40), max_size=4),
    )
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_any_cuts(self, text: bytes, cuts: list[int]) -> None:
        """How the filter cuts its body changes nothing, and none ends a message early."""
        places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
        pieces = [text[a:b] for a, b in itertools.pairwise(places)] or [b""]
        whole, cut = Ground(replaced(text)), Ground(replaced(*pieces))
        for ground in (whole, cut):
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(body(whole.stored), body(cut.stored))
        self.assertNotIn(b"\r\n.\r\n", b"\r\n" + body(cut.stored))
        self.assertTrue((b"\r\n" + body(cut.stored)).endswith(b"\r\n"))


class NothingRemainsTests(SynchronousTestCase):
    def nothing(self, ground: Ground) -> None:
        """Neither body is in the store, and nobody was told of a message."""
        self.assertEqual((ground.house.offered, ground.house.spool.queued), ([], {}))
        self.assertEqual({s.is_aborted for s in ground.house.spool.stagings}, {True})

    def test_refused(self) -> None:
        """A filter that replaces the body and then refuses the message: nothing of either remains."""
        for end, code in ((b"t", 451), (b"r", 550), (b"4", 421), (b"d", 250)):
            ground = Ground(replaced(b"new\r\n" * 9, end=said(end)))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, code)
            self.nothing(ground)
            self.assertEqual(len(ground.house.spool.stagings), 2)

    def test_refused_behind(self) -> None:
        """The same where the filter took it, and a policy behind it did not."""
        ground = Ground(replaced(b"new\r\n"))
        behind(ground, Recorder(end=LATER))
        ground.connect()
        self.assertEqual(ground.send()[-1], LATER)
        self.nothing(ground)

    def test_filter_dies(self) -> None:
        """A filter that dies in the middle of its body: on-failure decides, about the body that came."""
        for choice, code in (("tempfail", 451), ("reject", 550), ("accept", 250)):
            for end in (b"", said(b"f"), said(b"z")):
                ground = Ground(replaced(b"half", end=end), **{"on-failure": choice})
                ground.patience_seconds = 50.0
                ground.connect()
                self.assertEqual(ground.send()[-1].code, code)
                first, *others = ground.house.spool.stagings
                self.assertTrue(all(s.is_aborted for s in others))
                if code == 250:
                    self.assertTrue(first.stored.endswith(MESSAGE))
                else:
                    self.nothing(ground)

    def test_client_goes(self) -> None:
        """A client that goes while the new body comes leaves nothing."""
        ground = Ground(replaced(b"half", end=b""))
        ground.connect()
        answer = ground.to_the_end().addErrback(lambda failure: None)
        self.assertEqual(len(ground.house.spool.stagings), 2)
        ground.reception.closed("END-OF-MESSAGE", "")
        ground.clock.advance(0)
        self.assertTrue(answer.called)
        self.nothing(ground)
        self.assertEqual(ground.filter.open_ends, 0)

    def test_what_no_client_may_send(self) -> None:
        """NUL, a line or a message over the listener's limits: the filter failed, and is named so."""
        for new, bounds, words in (
            (b"a\0b", Bounds(), "NUL octet"),
            (b"x" * 999, Bounds(0, 998), "line too long"),
            (b"x\r\n" * 500, Bounds(1000, 0), "message too big"),
        ):
            for choice, code in (("tempfail", 451), ("accept", 250)):
                ground = Ground(replaced(new[:300], new[300:]), **{"on-failure": choice})
                ground.house.intake.bounds = {"smtp": bounds}
                ground.connect()
                self.assertEqual(ground.send()[-1].code, code)
                self.assertIn(f"the new body cannot be taken: {words}", ground.lines()[0])
                self.assertTrue(ground.house.spool.stagings[1].is_aborted)
                if code == 250:
                    self.assertTrue(ground.house.spool.stagings[0].stored.endswith(MESSAGE))
                else:
                    self.nothing(ground)

    def test_within_the_limits(self) -> None:
        """What just fits is taken."""
        room = len(HEADER) + 2 + 1000
        for chunked in (False, True):
            ground = Ground(replaced(b"x" * 998 + b"\r\n"))
            ground.house.intake.bounds = {"smtp": Bounds(room, 998)}
            ground.connect()
            self.assertEqual(ground.send(chunked=chunked)[-1].code, 250)
            ground.house.intake.bounds = {"smtp": Bounds(room - 1, 998)}
            self.assertEqual(ground.send(chunked=chunked)[-1].code, 451)

    def test_what_must_stay(self) -> None:
        """A transaction with a name, and a header that was cut, keep their body: the filter failed."""
        ground = Ground(replaced(b"new\r\n"))
        ground.connect()
        ground.wait(ground.reception.mail(address("a@example.net"), {b"TRANSID": b"<1@x>"}))
        ground.wait(ground.reception.rcpt(address("b@example.com"), {}))
        self.assertEqual(ground.content(), LATER)
        ground.house = House((ground.policy,), header_limit=4096)
        ground.connect()
        self.assertEqual(ground.send(b"A: b\r\n" + b"X: y\r\n" * 900 + b"\r\nz\r\n")[-1], LATER)
        self.assertIn("the filter replaces a body that must stay", ground.lines()[0])

    def test_a_full_store(self) -> None:
        """A store that cannot hold the new body answers for it at the commit, as for any."""
        ground = Ground(replaced(b"new\r\n"))
        ground.house.spool.commits_at_once = False
        ground.connect()
        answer = ground.to_the_end()
        ground.house.spool.stagings[-1].broken(Unavailable("no room"))
        self.assertEqual(ground.wait(answer).code, 451)
        self.assertEqual(ground.house.offered, [])


class BehindTests(SynchronousTestCase):
    def test_a_second_filter(self) -> None:
        """The second filter hears what the first made of the message: fields, body, in this order."""
        change = said(b"m", struct.pack(">I", 1) + b"From\0<c@example.net>\0")
        first = said(b"h", b"X-First\0one\0") + change + said(b"b", b".new\r\n") + CONTINUE
        for chunked in (False, True):
            ground = Ground(MemoryFilter(E=first))
            other = MemoryFilter(E=said(b"m", struct.pack(">I", 1) + b"X-First\0two\0") + CONTINUE)
            behind(ground, second_filter(ground, other))
            ground.connect()
            self.assertEqual(ground.send(chunked=chunked)[-1].code, 250)
            [end] = other.ends
            self.assertEqual(end.letters(), b"CHMRTLLLNBE")
            self.assertEqual(
                end.all(b"L"),
                [b"X-First\0one\0", b"From\0<c@example.net>\0", b"Message-ID\0<1@example.net>\0"],
            )
            self.assertEqual(b"".join(end.all(b"B")), b".new\r\n")
            self.assertIn(b"\r\nX-First: two\r\nFrom: <c@example.net>\r\n", ground.stored)
            self.assertEqual(ground.lines(), [])

    def test_three_bodies(self) -> None:
        """Each of several filters hears the body of the one before it; the last one's is stored."""
        ground = Ground(replaced(b"one\r\n" * 3000))
        other = replaced(b"two\r\n")
        seen: list[bytes] = []
        last = Recorder("headers", "body", "end", body=lambda t: seen.append(t.chunk))
        behind(ground, second_filter(ground, other), last)
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(b"".join(other.ends[0].all(b"B")), b"one\r\n" * 3000)
        self.assertEqual((b"".join(seen), body(ground.stored)), (b"two\r\n", b"two\r\n"))
        self.assertEqual(len([s for s in ground.house.spool.stagings if not s.is_aborted]), 1)

    def test_unchanged(self) -> None:
        """A filter that changes nothing leaves those behind it what came, octet for octet, in every
        shape, and a named transaction too.
        """
        for content in (
            MESSAGE, b"\r\nx\r\n", b"A: b\r\n", b"A: b\r\n\r\n", b"no header\r\n", b"no\r\n\r\nA: b\r\n",
            b"A: b\r\n..x: y\r\n\r\n..\r\n", b"A: b\r\n" + b"X: y\r\n" * 900 + b"\r\nz\r\n",
            b"A: b\r\n\r\n" + b"x\r\n" * 4000,
        ):  # fmt: skip
            for named in (False, True):
                for cut in range(0, min(len(content), 60), 7):
                    seen: list[bytes] = []
                    hearing = Recorder(
                        headers=lambda t, seen=seen: seen.append(t.headers),
                        body=lambda t, seen=seen: seen.append(t.chunk),
                    )
                    plain = Recorder("headers", "body")
                    ground = Ground()
                    ground.house = House((plain, ground.policy, hearing), header_limit=4096)
                    ground.connect()
                    sent = {b"TRANSID": b"<1@x>"} if named else {}
                    ground.wait(ground.reception.mail(address("a@example.net"), sent))
                    ground.wait(ground.reception.rcpt(address("b@example.com"), {}))
                    pieces = filter(None, (content[:cut], content[cut:]))
                    self.assertEqual(ground.content(*pieces).code, 250)
                    self.assertEqual(seen[0], plain.seen[0][0])
                    came = b"".join(chunk for _, chunk in plain.seen[1:])
                    self.assertEqual(b"".join(seen[1:]), came)

    def test_refusals_behind(self) -> None:
        """A policy behind a filter refuses as it would elsewhere, and those behind it are not asked."""
        for hook in ("headers", "body", "end"):
            ground, last = Ground(), Recorder("headers", "body", "end")
            stands = Recorder("headers", "body", "end", **{hook: LATER})
            behind(ground, stands, second_filter(ground, MemoryFilter()), last)
            ground.connect()
            self.assertEqual(ground.send()[-1], LATER)
            self.assertEqual(last.asked, [])
            self.assertEqual(stands.asked[-1], hook)

    def test_passed_over(self) -> None:
        """A positive reply at the end, a refusal or a discard of an earlier leg: nobody behind hears
        the content.
        """
        yes = Recorder(end=Reply(250, "2.0.0", (b"ok",)))
        for memory, before in (
            (MemoryFilter(), (yes,)),
            (MemoryFilter(E=said(b"r")), ()),
            (MemoryFilter(E=said(b"d")), ()),
        ):
            ground, last = Ground(memory), Recorder("headers", "body", "end")
            ground.house = House((*before, ground.policy, last))
            ground.connect()
            ground.send()
            self.assertEqual(last.asked, [])

    def test_signed(self) -> None:
        """A signature made behind a filter holds for the body and the fields that it left."""
        keys = DkimGround(self)
        change = said(b"m", struct.pack(">I", 1) + b"Subject\0other\0")
        memory = MemoryFilter(
            E=change + said(b"h", b"X-Y\0z\0") + said(b"b", b".new body\nx") + CONTINUE
        )
        ground = Ground(memory)
        behind(ground, keys.policy())
        ground.connect()
        content = b"From: a@example.org\r\nSubject: x\r\n\r\nold\r\n"
        self.assertEqual(ground.send(content)[-1].code, 250)
        stored = ground.stored.replace(b"\r\n..", b"\r\n.")
        self.assertTrue(stored.endswith(b"\r\nSubject: other\r\n\r\n.new body\r\nx\r\n"), stored)
        self.assertEqual(keys.verified(stored), [True, True])

    def test_a_store_that_breaks(self) -> None:
        """A store that cannot read back what it has: the message waits with its client."""
        ground = Ground()
        behind(ground, Recorder("body"))
        ground.house.spool.read_error = Unavailable("a bad disk")
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 451)
        self.assertEqual(ground.house.offered, [])

    def test_a_store_that_never_can(self) -> None:
        """A store without IRevisable keeps bodies as they came, and says what it lacks where somebody
        stands behind a filter.
        """

        class Plain(ScriptedStaging):
            another = read = None  # type: ignore[assignment]

        classImplementsOnly(Plain, IStaging)
        ground = Ground(replaced(b"new\r\n"))

        def stage(association: str) -> Any:
            ground.house.spool.stagings.append(Plain(ground.house.spool, 1))
            return ground.house.spool.stagings[-1]

        ground.house.spool.stage = stage  # type: ignore[method-assign]
        ground.connect()
        self.assertFalse(IRevisable.providedBy(stage("")))
        self.assertEqual(ground.send()[-1], LATER)
        ground.filter.answers.clear()
        behind(ground, Recorder("body"))
        ground.house.spool.stage = stage  # type: ignore[method-assign]
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 451)
        self.assertIn("IRevisable", ground.house.kinds(Notice)[0].text)
