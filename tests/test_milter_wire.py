"""The machine that talks to mail filters: what it says, what it takes, and what it refuses."""

from __future__ import annotations

import itertools
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import LocalProtocolError, RemoteProtocolError
from mta.model import Reply
from mta.wire.milter.answers import (
    AddField,
    AddRecipient,
    ChangeField,
    ChangeSender,
    Decision,
    DeleteRecipient,
    Quarantine,
    parse_reply,
)
from mta.wire.milter.dialogue import (
    ACTIONS,
    ANSWERS,
    MOST_CHANGED_OCTETS,
    MOST_CHANGES,
    PROGRESS,
    STEPS,
    BodyPiece,
    Dialogue,
    Question,
    Stage,
    Verdict,
    on_body,
    on_connect,
    on_data,
    on_end,
    on_header,
    on_helo,
    on_mail,
    on_rcpt,
    on_unknown,
)
from mta.wire.milter.header import split_header
from mta.wire.milter.packets import CHUNK_OCTETS, MOST_OCTETS, Step
from tests.memory_filter import CONTINUE, said

QUESTIONS: dict[Stage, Question] = {
    Stage.CONNECT: on_connect(b"[192.0.2.7]", "192.0.2.7", 4711, {b"j": b"mx.example.org"}),
    Stage.HELO: on_helo(b"client.example.net", {}),
    Stage.UNKNOWN: on_unknown(b"XFOO bar"),
    Stage.MAIL: on_mail(b"a@example.net", [b"SIZE=9"], {}),
    Stage.RCPT: on_rcpt(b"b@example.com", [], {b"{rcpt_addr}": b"b@example.com"}),
    Stage.DATA: on_data({b"i": b"Q1"}),
    Stage.HEADER: on_header(((b"Subject", b" x"),), {})[0],
    Stage.EOH: on_header((), {})[0],
    Stage.BODY: on_body(b"Hello\r\n")[0],
    Stage.END: on_end({}),
}


def agreed(actions: int = int(ACTIONS), steps: int = 0, version: int = 6, rest: bytes = b"") -> Any:
    """A dialogue behind its negotiation."""
    dialogue = Dialogue()
    dialogue.take_output()
    dialogue.receive(said(b"O", struct.pack(">3I", version, actions, steps) + rest))
    return dialogue


def letters(output: bytes) -> bytes:
    found = b""
    while output:
        (length,) = struct.unpack(">I", output[:4])
        found += output[4:5]
        output = output[4 + length :]
    return found


class NegotiationTests(SynchronousTestCase):
    def test_offer(self) -> None:
        """We offer version 6, and of the actions those that are carried out, no other."""
        offer = Dialogue().take_output()
        self.assertEqual(offer, said(b"O", struct.pack(">3I", 6, 0x1FF, 0x1FFFFF)))
        self.assertEqual((int(ACTIONS), int(STEPS)), (0x1FF, 0x1FFFFF))

    def test_questions_wait_for_it(self) -> None:
        """What is asked before the filter has agreed is said when it has."""
        dialogue = Dialogue()
        dialogue.take_output()
        self.assertIsNone(dialogue.ask([QUESTIONS[Stage.HELO]]))
        self.assertEqual(dialogue.take_output(), b"")
        self.assertEqual(dialogue.receive(said(b"O", struct.pack(">3I", 6, 0, 0))), [])
        self.assertEqual(dialogue.take_output(), said(b"H", b"client.example.net\0"))

    def test_steps_that_were_not_offered(self) -> None:
        """A filter that wants another protocol than we speak is refused, and what it wants is named."""
        with self.assertRaises(RemoteProtocolError) as caught:
            agreed(steps=0x10000000)
        self.assertIn("step 0x10000000", str(caught.exception))

    def test_actions_that_were_not_offered(self) -> None:
        """A filter that names every action it knows (rspamd) is granted what was offered; the rest is
        named, and refused when it comes.
        """
        self.assertEqual(agreed(actions=0x81FF).beyond, "action 0x8000")
        self.assertEqual(agreed().beyond, "")
        dialogue = agreed(actions=0x7F)
        dialogue.ask([QUESTIONS[Stage.END]])
        with self.assertRaises(RemoteProtocolError) as caught:
            dialogue.receive(said(b"2", b"<a@b>\0"))
        self.assertIn("did not negotiate: ADD_RECIPIENT_PARAMETERS", str(caught.exception))

    def test_versions(self) -> None:
        """Versions 2 to 6 are spoken; one without DATA, or unknown commands, hears none."""
        for version in (1, 7):
            self.assertRaises(RemoteProtocolError, agreed, version=version)
        for version, stage in ((3, Stage.DATA), (2, Stage.UNKNOWN)):
            dialogue = agreed(version=version)
            verdict = Verdict(Decision.CONTINUE, stage)
            self.assertEqual(dialogue.ask([QUESTIONS[stage]]), verdict)
            self.assertEqual(dialogue.take_output(), b"")
        dialogue = agreed(version=3)
        self.assertIsNone(dialogue.ask([QUESTIONS[Stage.UNKNOWN]]))
        self.assertEqual(dialogue.take_output(), said(b"U", b"XFOO bar\0"))

    def test_unwanted_steps(self) -> None:
        """What a filter does not want to hear is not said; what it will not answer, not awaited."""
        all_quiet = int(Step(0x7F) | Step.NO_DATA | Step.NO_UNKNOWN)
        dialogue = agreed(steps=all_quiet)
        for stage, question in QUESTIONS.items():
            if stage is not Stage.END:
                verdict = dialogue.ask([question])
                self.assertEqual(verdict, Verdict(Decision.CONTINUE, stage))
        self.assertEqual(dialogue.take_output(), b"")
        self.assertFalse(dialogue.wants_body)
        mute = Step.MUTE_CONNECT | Step.MUTE_HELO | Step.MUTE_MAIL | Step.MUTE_RCPT
        mute |= Step.MUTE_DATA | Step.MUTE_HEADER | Step.MUTE_EOH | Step.MUTE_BODY
        mute |= Step.MUTE_UNKNOWN
        dialogue = agreed(steps=int(mute))
        self.assertIsNone(dialogue.ask(QUESTIONS.values()))
        self.assertEqual(letters(dialogue.take_output()), b"DCHUMDRDTLNBE")
        self.assertEqual(dialogue.receive(CONTINUE), [Verdict(Decision.CONTINUE, Stage.END)])

    def test_named_macros(self) -> None:
        """A filter that names its macros gets these and no others, at the stages it named."""
        symbols = struct.pack(">I", 3) + b"{rcpt_addr} {x}\0" + struct.pack(">I", 0) + b"\0"
        dialogue = agreed(rest=symbols)
        for stage, macros in ((Stage.CONNECT, b""), (Stage.RCPT, b"D"), (Stage.DATA, b"D")):
            dialogue.ask([QUESTIONS[stage]])
            self.assertEqual(letters(dialogue.take_output()), macros + stage.value.value)
            dialogue.receive(CONTINUE)
        for broken in (symbols[:-1], symbols[:3], struct.pack(">I", 99) + b"i\0"):
            self.assertRaises(RemoteProtocolError, agreed, rest=broken)
        self.assertRaises(RemoteProtocolError, agreed, actions=0, rest=symbols)

    def test_no_negotiation(self) -> None:
        """Something that is no filter is told from one at its first words."""
        for octets in (said(b"c"), said(b"O", b"short"), b"220 mx.example.org ESMTP\r\n"):
            self.assertRaises(RemoteProtocolError, Dialogue().receive, octets)


class DialogueTests(SynchronousTestCase):
    def test_a_whole_message(self) -> None:
        """Every stage goes out in libmilter's form, macros before it, one answer at a time."""
        dialogue = agreed()
        expected = (
            (b"C", b"[192.0.2.7]\x004\x12\x67192.0.2.7\0"),
            (b"H", b"client.example.net\0"),
            (b"U", b"XFOO bar\0"),
            (b"M", b"<a@example.net>\0SIZE=9\0"),
            (b"R", b"<b@example.com>\0"),
            (b"T", b""),
            (b"L", b"Subject\0 x\0"),
            (b"N", b""),
            (b"B", b"Hello\r\n"),
            (b"E", b""),
        )
        self.assertIsNone(dialogue.ask(QUESTIONS.values()))
        macros = {
            b"C": said(b"D", b"Cj\0mx.example.org\0"),
            b"R": said(b"D", b"R{rcpt_addr}\0b@example.com\0"),
            b"T": said(b"D", b"Ti\0Q1\0"),
        }
        for letter, payload in expected:
            self.assertTrue(dialogue.is_waiting)
            output = dialogue.take_output()
            self.assertEqual(output, macros.get(letter, b"") + said(letter, payload))
            events = dialogue.receive(CONTINUE)
            last = [Verdict(Decision.CONTINUE, Stage.END)] if letter == b"E" else []
            self.assertEqual(events, last)
        dialogue.abort()
        self.assertEqual(dialogue.take_output(), b"")
        dialogue.quit()
        self.assertEqual(dialogue.take_output(), said(b"Q"))

    def test_clients(self) -> None:
        """IPv6 clients and those without an address are described as libmilter reads them."""
        found = on_connect(b"x", "2001:db8::1", 25, {}).payload
        self.assertEqual(found, b"x\x006\0\x192001:db8::1\0")
        self.assertEqual(on_connect(b"unknown", "", 0, {}).payload, b"unknown\0U")

    def test_table(self) -> None:
        """Each answer at each stage comes to a verdict, goes on, or ends the connection."""
        for stage, question in QUESTIONS.items():
            for decision in Decision:
                dialogue = agreed(steps=int(Step.SKIP))
                dialogue.ask([question])
                payload = b"550 5.7.1 No\0" if decision is Decision.REPLY else b""
                answer = said(decision.value, payload)
                if decision not in ANSWERS[stage] or decision is Decision.FAIL:
                    self.assertRaises(RemoteProtocolError, dialogue.receive, answer)
                    continue
                [event] = dialogue.receive(answer)
                if decision is Decision.PROGRESS:
                    self.assertIs(event, PROGRESS)
                    self.assertTrue(dialogue.is_waiting)
                    continue
                self.assertEqual(event.stage, stage)
                self.assertFalse(dialogue.is_waiting)
                if stage is Stage.UNKNOWN and decision is Decision.DISCARD:
                    self.assertIs(event.decision, Decision.CONTINUE)
                code = {
                    Decision.REJECT: 554 if stage is Stage.CONNECT else 550,
                    Decision.TRY_LATER: 421 if stage is Stage.CONNECT else 451,
                    Decision.REPLY: 550,
                    Decision.SHUT_DOWN: 421,
                }.get(decision)
                self.assertEqual(event.reply and event.reply.code, code)

    def test_the_first_objection(self) -> None:
        """Behind an answer that decides nothing more is asked; the next message begins with ABORT."""
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.MAIL], QUESTIONS[Stage.RCPT]])
        dialogue.take_output()
        [verdict] = dialogue.receive(said(b"r"))
        self.assertEqual((verdict.stage, verdict.reply.code), (Stage.MAIL, 550))
        self.assertEqual(dialogue.take_output(), b"")
        dialogue.ask([QUESTIONS[Stage.MAIL]])
        self.assertEqual(letters(dialogue.take_output()), b"AM")

    def test_unknown_commands(self) -> None:
        """They are told where libmilter finds its way back: between messages, and before DATA to a
        filter that hears DATA. A step that the filter does not want, or before it has agreed: never.
        """
        self.assertFalse(Dialogue().hears_unknown)
        self.assertFalse(agreed(steps=int(Step.NO_UNKNOWN)).hears_unknown)
        for steps, version, within in ((0, 6, True), (int(Step.NO_DATA), 6, False), (0, 3, False)):
            dialogue = agreed(steps=steps, version=version)
            for stage, heard in (
                *((Stage.HELO, True), (Stage.MAIL, within), (Stage.RCPT, within)),
                *((Stage.DATA, False), (Stage.EOH, False), (Stage.END, True)),
                *((Stage.MAIL, within), (Stage.DATA, False), (Stage.MAIL, within)),
            ):
                if dialogue.ask([QUESTIONS[stage]]) is None:
                    dialogue.receive(CONTINUE)
                self.assertIs(dialogue.hears_unknown, heard, (steps, version, stage))
            dialogue.abort()
            self.assertTrue(dialogue.hears_unknown)

    def test_skip(self) -> None:
        """A filter that has seen enough of a body is spared the rest, until the next message."""
        dialogue = agreed(steps=int(Step.SKIP))
        dialogue.ask([QUESTIONS[Stage.MAIL]])
        dialogue.receive(CONTINUE)
        dialogue.ask([*on_body(b"x" * 3 * CHUNK_OCTETS), QUESTIONS[Stage.END]])
        dialogue.take_output()
        dialogue.receive(said(b"s"))
        self.assertFalse(dialogue.wants_body)
        self.assertEqual(letters(dialogue.take_output()), b"E")
        dialogue.receive(CONTINUE)
        dialogue.ask([QUESTIONS[Stage.MAIL]])
        self.assertTrue(dialogue.wants_body)
        dialogue = agreed()
        dialogue.ask(on_body(b"x"))
        self.assertRaises(RemoteProtocolError, dialogue.receive, said(b"s"))

    def test_skip_of_other_steps(self) -> None:
        """Whatever comes more than once may be skipped, as with Postfix; nothing else may."""
        for stage in Stage:
            if stage is Stage.NEGOTIATION:
                continue
            dialogue = agreed(steps=int(Step.SKIP))
            dialogue.ask([QUESTIONS[Stage.MAIL]])
            dialogue.receive(CONTINUE)
            dialogue.ask([QUESTIONS[stage], QUESTIONS[stage], QUESTIONS[Stage.EOH]])
            dialogue.take_output()
            if stage in (Stage.RCPT, Stage.HEADER, Stage.BODY):
                dialogue.receive(said(b"s"))
                self.assertEqual(letters(dialogue.take_output()), b"N")
            else:
                self.assertRaises(RemoteProtocolError, dialogue.receive, said(b"s"))

    def test_a_new_body(self) -> None:
        """A new body is handed on piece by piece, and nothing of it is kept here."""
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.END]])
        for _ in range(100):
            piece = b"x" * CHUNK_OCTETS
            self.assertEqual(dialogue.receive(said(b"b", piece)), [BodyPiece(piece)])
        self.assertEqual(dialogue.receive(said(b"b")), [BodyPiece(b"")])
        verdict = Verdict(Decision.CONTINUE, Stage.END)
        self.assertEqual(dialogue.receive(CONTINUE), [verdict])
        dialogue.ask([QUESTIONS[Stage.BODY]])
        self.assertRaises(RemoteProtocolError, dialogue.receive, said(b"b", b"too early"))

    def test_pieces_of_a_body(self) -> None:
        """A body goes in pieces of at most 65535 octets, and whole."""
        questions = on_body(b"a" * (2 * CHUNK_OCTETS + 1))
        self.assertEqual([len(q.payload) for q in questions], [CHUNK_OCTETS, CHUNK_OCTETS, 1])
        self.assertEqual(on_body(b""), ())

    def test_changes(self) -> None:
        """What a filter wants changed comes with its word at the end, in its order."""
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.END]])
        events = dialogue.receive(
            said(b"h", b"X-Spam\0 no\0")
            + said(b"i", struct.pack(">I", 1) + b"DKIM-Signature\0 v=1;\n\tb=x\0")
            + said(b"m", struct.pack(">I", 2) + b"Subject\0\0")
            + said(b"e", b"<bounce@example.org>\0")
            + said(b"+", b"<c@example.com>\0")
            + said(b"2", b"<d@example.com>\0")
            + said(b"2", b"<e@example.com>\0NOTIFY=NEVER\0")
            + said(b"e", b"<>\0RET=FULL ENVID=x\0")
            + said(b"-", b"b@example.com\0")
            + said(b"p")
            + said(b"q", b"looks\x1b odd\0")
            + said(b"a")
        )
        changes = (
            AddField(b"X-Spam", b" no"),
            AddField(b"DKIM-Signature", b" v=1;\n\tb=x", 1),
            ChangeField(b"Subject", 2, b""),
            ChangeSender(b"bounce@example.org"),
            AddRecipient(b"c@example.com"),
            AddRecipient(b"d@example.com"),
            AddRecipient(b"e@example.com", b"NOTIFY=NEVER"),
            ChangeSender(b"", b"RET=FULL ENVID=x"),
            DeleteRecipient(b"b@example.com"),
            Quarantine("looks? odd"),
        )
        self.assertEqual(events, [PROGRESS, Verdict(Decision.ACCEPT, Stage.END, None, changes)])

    def test_changes_of_a_refused_message(self) -> None:
        """A message that is refused is changed no more."""
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.END]])
        [verdict] = dialogue.receive(said(b"h", b"X-Spam\0 yes\0") + said(b"r"))
        self.assertEqual(verdict.changes, ())

    def test_changes_that_were_not_negotiated(self) -> None:
        """What a filter asks for without having negotiated it is refused by its name."""
        for letter, name in (
            (b"h", "ADD_HEADER"),
            (b"i", "ADD_HEADER"),
            (b"m", "CHANGE_HEADER"),
            (b"b", "REPLACE_BODY"),
            (b"+", "ADD_RECIPIENT"),
            (b"2", "ADD_RECIPIENT_PARAMETERS"),
            (b"-", "DELETE_RECIPIENT"),
            (b"e", "CHANGE_SENDER"),
            (b"q", "QUARANTINE"),
        ):
            dialogue = agreed(actions=0)
            dialogue.ask([QUESTIONS[Stage.END]])
            with self.assertRaises(RemoteProtocolError) as caught:
                dialogue.receive(said(letter, b"x\0y\0"))
            self.assertIn(f"did not negotiate: {name}", str(caught.exception))

    def test_wrong_changes(self) -> None:
        """A malformed change, one too early, or too many of them, end the connection."""
        wrong = (
            said(b"h", b"Bad Name\0x\0"), said(b"h", b"\0x\0"), said(b"h", b"X\0x"),
            said(b"i", b"\0\0"), said(b"h", b".X\0x\0"), said(b"m", b"\0\0\0\1X\0"), said(b"+", b"a\0b\0"), said(b"e", b"<a@b.c>\0a\0b\0"), said(b"2", b"<a@b.c>"),
            said(b"h", b"X\0x\0") * (MOST_CHANGES + 1),
            said(b"h", b"X\0" + b"x" * 200_000 + b"\0") * (MOST_CHANGED_OCTETS // 200_000 + 1),
        )  # fmt: skip
        for octets in wrong:
            dialogue = agreed()
            dialogue.ask([QUESTIONS[Stage.END]])
            self.assertRaises(RemoteProtocolError, dialogue.receive, octets)
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.MAIL]])
        self.assertRaises(RemoteProtocolError, dialogue.receive, said(b"h", b"X\0x\0"))

    def test_unasked_words(self) -> None:
        """What nobody asked for, or no answer at all, ends the connection."""
        for octets in (CONTINUE, b"\0", said(b"h", b"X\0x\0")):
            self.assertRaises(RemoteProtocolError, agreed().receive, octets)
        for octets in (said(b"z"), said(b"O"), struct.pack(">I", MOST_OCTETS + 1), b"\0\0\0\0"):
            dialogue = agreed()
            dialogue.ask([QUESTIONS[Stage.MAIL]])
            self.assertRaises(RemoteProtocolError, dialogue.receive, octets)

    def test_two_questions_at_once(self) -> None:
        """Our own mistake is named as ours."""
        dialogue = agreed()
        dialogue.ask([QUESTIONS[Stage.MAIL]])
        self.assertRaises(LocalProtocolError, dialogue.ask, [QUESTIONS[Stage.RCPT]])

    @given(
        stage=st.sampled_from(list(QUESTIONS)),
        octets=st.one_of(
            st.binary(max_size=200),
            st.lists(
                st.builds(
                    said,
                    st.sampled_from([bytes([i]) for i in b"acdfrtys4p+-hibemq2lOz"]),
                    st.one_of(
                        st.binary(max_size=20),
                        st.sampled_from(
                            (b"X-A\0b\0", b"a@b.c\0", b"451 later\0", b"\0\0\0\1X\0y\0")
                        ),
                    ),
                ),
                max_size=8,
            ).map(b"".join),
        ),
        cuts=st.lists(st.integers(0, 200), max_size=6),
        is_agreed=st.booleans(),
    )
    @settings(max_examples=600, deadline=None, derandomize=True)
    def test_any_octets(
        self, stage: Stage, octets: bytes, cuts: list[int], is_agreed: bool
    ) -> None:
        """Whatever a filter sends, in whatever pieces, comes to the same: verdicts, or a refusal by
        name; what is held is never more than one packet.
        """

        def run(pieces: list[bytes]) -> tuple[list[Any], str]:
            dialogue = agreed() if is_agreed else Dialogue()
            dialogue.ask([QUESTIONS[stage]])
            events: list[Any] = []
            for piece in pieces:
                try:
                    events += dialogue.receive(piece)
                except RemoteProtocolError as error:
                    return events, str(error)
                assert len(dialogue._reader._octets) <= 4 + MOST_OCTETS
            return events, ""

        edges = sorted({0, len(octets), *(c for c in cuts if c < len(octets))})
        pieces = [octets[a:b] for a, b in itertools.pairwise(edges)]
        one_by_one = run([bytes((o,)) for o in octets])
        cut = run(pieces)
        # A wrong packet behind a verdict may come in the same piece: then both are a refusal.
        self.assertEqual(cut[0], one_by_one[0][: len(cut[0])] if one_by_one[1] else one_by_one[0])
        self.assertEqual(bool(cut[1]), bool(one_by_one[1]))
        for event in one_by_one[0]:
            if isinstance(event, Verdict) and event.reply is not None:
                self.assertTrue(400 <= event.reply.code <= 599)
                for line in event.reply.lines:
                    self.assertFalse(set(line) - set(range(32, 127)))


class ReplyTests(SynchronousTestCase):
    def test_replies(self) -> None:
        """A filter's own reply is taken with its codes and lines; Sendmail's %% is one %."""
        for octets, reply in (
            (b"550 5.7.1 No\0", Reply(550, "5.7.1", (b"No",))),
            (b"451 later, 50%% sure\0", Reply(451, "", (b"later, 50% sure",))),
            (b"554 4.7.1 odd\0", Reply(554, "", (b"odd",))),
            (b"550-5.7.1 one\r\n550 5.7.1 two\0", Reply(550, "5.7.1", (b"one", b"two"))),
            (b"421\0", Reply(421, "", (b"",))),
            (b"550 5.7.1 \x1b[2J\xff\0", Reply(550, "5.7.1", (b"?[2J?",))),
        ):
            self.assertEqual(parse_reply(octets), reply)

    def test_no_replies(self) -> None:
        """One that accepts, has two codes, or no end, is none."""
        for octets in (
            b"250 ok\0",
            b"550 a\r\n551 b\0",
            b"550 x",
            b"",
            b"\0",
            b"no\0",
            b"5500 x\0",
        ):
            self.assertRaises(RemoteProtocolError, parse_reply, octets)


class HeaderTests(SynchronousTestCase):
    def test_fields(self) -> None:
        """Fields keep their names' case and their folding; lines are divided by LF."""
        block = b"From: a@b.c\r\nSubject :  two\r\n\tlines\r\nX-Empty:\r\n"
        self.assertEqual(
            split_header(block, False),
            (((b"From", b"a@b.c"), (b"Subject", b" two\n\tlines"), (b"X-Empty", b"")), b""),
        )
        self.assertEqual(split_header(block, True)[0][0], (b"From", b" a@b.c"))

    def test_what_is_no_header(self) -> None:
        """From the first line on that is no field, all is body."""
        self.assertEqual(split_header(b"Hello\r\nA: b\r\n", True), ((), b"Hello\r\nA: b\r\n"))
        self.assertEqual(
            split_header(b"A: b\r\nno\r\nC: d\r\n", True), (((b"A", b" b"),), b"no\r\nC: d\r\n")
        )

    @given(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from((b"A: b\r\n", b" c\r\n", b"\r\n", b"x\0:y\r\n", b".\r\n")), max_size=8
        ),
    )
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_nothing_is_left_out(self, octets: bytes, lines: list[bytes]) -> None:
        """Fields and rest together are the block; no field has a NUL, which would end it early."""
        block = b"".join(lines) + octets
        fields, rest = split_header(block, True)
        whole = b"".join(
            name + b":" + value.replace(b"\n", b"\r\n") + b"\r\n" for name, value in fields
        )
        self.assertEqual(whole + rest, block)
        self.assertNotIn(b"\0", whole)
