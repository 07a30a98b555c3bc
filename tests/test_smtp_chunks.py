"""BDAT towards us: every octet of a chunk is read, none is taken for something else (RFC 3030)."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Reply
from mta.wire.smtp.events import Chunk, Data, End, Mail, Quit, Rcpt, Rejected
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.server_chunks import ChunkingResponder, parse_bdat
from mta.wire.smtp.states import Role, State
from tests.test_smtp_server import say

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"QUIT\r\n", b"\r\n.\r\n", b"BDAT 5\r\n", b"\n.\n", b"RSET\r\nMAIL", b"\0"]
        ),
    ),
    max_size=6,
)
LATER = Reply(451, "4.3.0", (b"Later",))


def responder(role: Role = Role.SMTP, **limits: int) -> ChunkingResponder:
    machine = ChunkingResponder(b"mx.example.org", role, Limits(**limits))
    machine.greet()
    say(machine, b"LHLO x\r\n" if role is Role.LMTP else b"EHLO x\r\n")
    machine.take_output()
    return machine


def codes(machine: ChunkingResponder) -> list[int]:
    return [int(line[:3]) for line in machine.take_output().split(b"\r\n")[:-1]]


def bdat(chunks: list[bytes]) -> bytes:
    said = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks)
    return said + b"BDAT 0 LAST\r\n"


class HardDetail06BdatTests(SynchronousTestCase):
    """Hard detail 6."""

    @LIGHT
    @given(CHUNKS, st.lists(st.integers(1, 30), max_size=30), st.sampled_from(Role))
    def test_octets_arrive_as_they_are(
        self, chunks: list[bytes], cuts: list[int], role: Role
    ) -> None:
        """Whatever octets, however the wire cuts them: the content is what was sent."""
        machine = responder(role)
        data, content, at = ENVELOPE + bdat(chunks), b"", 0
        ends = 0
        for cut in [*cuts, len(data)]:
            for event in say(machine, data[at : at + cut]):
                if isinstance(event, Chunk):
                    content += event.data
                ends += isinstance(event, End)
            at += cut
        self.assertEqual((content, ends), (b"".join(chunks), 1))
        self.assertEqual(codes(machine), [250] * (3 + len(chunks)))
        self.assertIs(machine.state, State.IDLE)

    @LIGHT
    @given(
        CHUNKS,
        st.lists(st.integers(1, 30), max_size=30),
        st.sampled_from(["none", "mail", "rcpt", "data", "size"]),
    )
    def test_errors_swallow_the_octets(
        self, chunks: list[bytes], cuts: list[int], where: str
    ) -> None:
        """Whatever is refused, and whenever: no octet of a chunk becomes a command, and the next
        command is heard.
        """
        answers: dict[type, Reply] = {
            "mail": {Mail: LATER}, "rcpt": {Rcpt: LATER}, "data": {Data: LATER}
        }.get(where, {})  # fmt: skip
        machine = responder(size_octets=3 if where == "size" else 0)
        data = (ENVELOPE if where != "none" else b"") + bdat(chunks) + b"NOOP\r\n"
        events, at = [], 0
        for cut in [*cuts, len(data)]:
            events += say(machine, data[at : at + cut], answers)
            at += cut
        said = codes(machine)
        envelope = 2 if where != "none" else 0
        self.assertEqual(len(said), envelope + len(chunks) + 2)
        self.assertEqual(said[-1], 250, "NOOP")
        refused = [code for code in said[envelope:-1] if code != 250]
        if where != "size" or len(b"".join(chunks)) > 3:
            self.assertTrue(refused)
            self.assertNotEqual(said[-2], 250, "the last chunk makes no message")
            after = said[said.index(refused[0], envelope) + 1 : -1]
            self.assertEqual(set(after) - {503}, set(), "behind a failed chunk all are told 503")
        if where != "size":
            self.assertFalse([e for e in events if isinstance(e, Chunk | End)])
        self.assertFalse([e for e in events if isinstance(e, Quit)])

    def test_a_refused_chunk_is_answered_behind_its_octets(self) -> None:
        """Nothing is said before the last octet was read (RFC 3030 section 2)."""
        machine = responder()
        say(machine, b"MAIL FROM:<a@example.com>\r\nBDAT 10\r\n012345678")
        self.assertEqual(codes(machine), [250])
        self.assertTrue(machine.is_swallowing)
        events = say(machine, b"9")
        self.assertEqual(codes(machine), [554])
        self.assertEqual([type(e) for e in events], [Rejected])
        self.assertFalse(machine.is_swallowing)
        self.assertIs(machine.state, State.FAILED)

    def test_a_failed_transaction_fails_once(self) -> None:
        """Many chunks behind a refused one are no errors of their own: no 421, one line in the log."""
        machine = responder(errors=3)
        say(machine, ENVELOPE, {Rcpt: LATER})
        events = say(machine, b"BDAT 1\r\nx" * 50 + b"RSET\r\n")
        self.assertEqual(codes(machine), [250, 451, 554] + [503] * 49 + [250])
        self.assertEqual(len([e for e in events if isinstance(e, Rejected)]), 1)

    def test_421_from_a_hook_closes_at_once(self) -> None:
        """The octets of the chunk are not waited for."""
        machine = responder()
        say(machine, ENVELOPE)
        (_, event) = say(machine, b"BDAT 10\r\n", {Data: Reply(421, "4.3.2", (b"Bye",))})
        self.assertIsInstance(event, Quit)
        self.assertEqual(codes(machine), [250, 250, 421])

    def test_data_and_bdat_do_not_mix(self) -> None:
        """DATA behind BDAT, BDAT behind DATA, BINARYMIME with DATA: 503."""
        machine = responder()
        say(machine, ENVELOPE + b"BDAT 1\r\nxDATA\r\n")
        self.assertEqual(codes(machine), [250, 250, 250, 503])
        self.assertIs(machine.state, State.CHUNKS)
        machine = responder()
        say(machine, ENVELOPE + b"DATA\r\nx\r\n.\r\nBDAT 1 LAST\r\nx")
        self.assertEqual(codes(machine), [250, 250, 354, 250, 503])
        machine = responder()
        say(machine, ENVELOPE.replace(b".com>", b".com> BODY=BINARYMIME") + b"DATA\r\n")
        self.assertEqual(codes(machine), [250, 250, 503])
        self.assertIs(machine.state, State.RECIPIENTS)

    def test_memory_is_bounded(self) -> None:
        """A chunk of whatever length is handed on or thrown away as it comes."""
        for refused in (False, True):
            machine = responder(size_octets=0)
            say(machine, ENVELOPE, {Rcpt: LATER} if refused else None)
            say(machine, b"BDAT 99999999999999999999 LAST\r\n")
            for _ in range(20):
                say(machine, b"x" * 65536)
                self.assertEqual(machine.buffered_octets, 0)
        self.assertEqual(codes(machine), [250, 451])

    def test_how_long(self) -> None:
        """What says how long a chunk is, and what does not."""
        self.assertEqual(parse_bdat(b"0"), (0, False))
        self.assertEqual(parse_bdat(b" 00012  last "), (12, True))
        for text in (b"", b"LAST", b"-1", b"1 2", b"1 LAST x", b"0x1", b"1" * 21, b"1.0", b"+1"):
            self.assertRaises(Refused, parse_bdat, text)
            machine = responder()
            say(machine, ENVELOPE + b"BDAT " + text + b"\r\nMAIL FROM:<evil@example.com>\r\n")
            self.assertEqual(codes(machine), [250, 250, 501])
            self.assertIs(machine.state, State.CLOSED)

    def test_lmtp(self) -> None:
        """The last chunk has a reply for each accepted recipient; a refused one that is not the last
        has one, and the last one behind it again one for each.
        """
        two = ENVELOPE + b"RCPT TO:<c@example.org>\r\n"
        machine = responder(Role.LMTP, size_octets=5)
        say(machine, two + b"BDAT 1\r\nxBDAT 1 LAST\r\ny")
        self.assertEqual(codes(machine), [250] * 3 + [250] + [250, 250])
        say(machine, two + b"BDAT 1\r\nxBDAT 9\r\n012345678BDAT 1 LAST\r\nyRSET\r\n")
        self.assertEqual(codes(machine), [250] * 3 + [250, 552, 503, 503, 250])
        say(machine, two + b"BDAT 9 LAST\r\n012345678")
        self.assertEqual(codes(machine), [250] * 3 + [552, 552])
        for asked in (Data, End):
            machine = responder(Role.LMTP)
            say(machine, two + b"BDAT 1 LAST\r\nx", {asked: LATER})
            self.assertEqual(codes(machine), [250] * 3 + [451, 451])
            say(machine, ENVELOPE + b"BDAT 1 LAST\r\nx")
            self.assertEqual(codes(machine), [250] * 3)
