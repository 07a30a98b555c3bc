"""Replies as octets: whatever a peer sends is read as replies of bounded size, or refused."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import RemoteProtocolError
from mta.model import Reply
from mta.wire.smtp.reply import LINE_LIMIT, ReplyReader, make_reply, render

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)


class ReplyTests(SynchronousTestCase):
    def read(self, data: bytes) -> list[Reply]:
        reader = ReplyReader()
        reader.receive(data)
        replies = []
        while (reply := reader.next_reply()) is not None:
            replies.append(reply)
        return replies

    def test_enhanced_codes(self) -> None:
        """An enhanced code is taken when it fits the reply, on every line or on the first."""
        (reply,) = self.read(b"550-5.1.1 No\r\n550 5.1.1 such user\r\n")
        self.assertEqual(reply, Reply(550, "5.1.1", (b"No", b"such user")))
        self.assertEqual(self.read(b"250 5.1.1 odd\r\n")[0].enhanced, "")
        for text in (b"250 1.2.3.4 is you\r\n", b"250 25.1.1 a class has one digit\r\n"):
            self.assertEqual(self.read(text)[0].enhanced, "")
        self.assertEqual(self.read(b"250 2.1.0\r\n"), [Reply(250, "2.1.0", (b"",))])

    def test_forms(self) -> None:
        """A code alone, a code with a blank and bare LF are replies."""
        for text in (b"250\r\n", b"250 \r\n", b"250\n"):
            self.assertEqual(self.read(text), [Reply(250, "", (b"",))])

    def test_clean(self) -> None:
        """Whoever must know whether something is left over can ask."""
        reader = ReplyReader()
        self.assertTrue(reader.is_clean)
        reader.receive(b"220 go\r\n250 injected\r\n")
        reader.next_reply()
        self.assertFalse(reader.is_clean)

    def test_recall(self) -> None:
        """Octets that came before are known as a whole, unless something stands before them."""
        together = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go on\r\n"
        reader = ReplyReader()
        for _ in range(2):  # its lines are known after the first
            self.assertIsNone(reader.recall(together))
            reader.receive(together)
            first = [reader.next_reply() for _ in range(4)]
        self.assertEqual(reader.recall(together), (tuple(first[:3]), True))
        self.assertIsNone(reader.recall(together[:-1]))
        for before in (b"25", b"250-more\r\n"):
            reader.receive(before)
            self.assertIsNone(reader.next_reply())
            self.assertIsNone(reader.recall(together))
            reader.receive(b"0 x\r\n" if before == b"25" else b"250 x\r\n")
            self.assertIsNotNone(reader.next_reply())
            self.assertEqual(reader.recall(together), (tuple(first[:3]), True))

    def test_invites(self) -> None:
        """Only 2yz with a 3yz behind them is what a transaction hears that is wholly accepted."""
        for data, invites in (
            (b"250 a\r\n354 b\r\n", True),
            (b"250 a\r\n250 b\r\n", False),
            (b"250 a\r\n550 b\r\n354 c\r\n", False),
            (b"354 a\r\n354 b\r\n", False),
        ):
            reader = ReplyReader()
            for _ in range(2):
                reader.receive(data)
                while reader.next_reply() is not None:
                    pass
            self.assertIs(reader.recall(data).invites, invites, data)

    def test_recalled_in_bounds(self) -> None:
        """What is kept of a peer's replies has a bound, whatever it says."""
        reader = ReplyReader()
        lines = [b"250 %d\r\n" % number for number in range(20)]
        pairs = [one + other for one in lines for other in lines]
        for _ in range(2):
            for pair in [*pairs, lines[0] * 500]:
                reader.receive(pair)
                while reader.next_reply() is not None:
                    pass
        self.assertLess(sum(reader.recall(pair) is not None for pair in pairs), 40)
        self.assertIsNone(reader.recall(lines[0] * 500))

    @LIGHT
    @given(
        st.lists(
            st.lists(st.sampled_from((b"250 a\r\n", b"250-a\r\n", b"354 b\n", b"4", b"50 c\r\n")))
        )
    )
    def test_recalled_is_read(self, pieces: list[list[bytes]]) -> None:
        """Whoever asks what is known first hears the same as one who reads everything."""
        found = []
        for recalls in (False, True):
            reader, replies = ReplyReader(), list[Reply | None]()
            try:
                for piece in [*pieces, *pieces, *pieces]:
                    data = b"".join(piece)
                    known = reader.recall(data) if recalls else None
                    if known is not None:
                        replies += known.replies
                        continue
                    reader.receive(data)
                    while (reply := reader.next_reply()) is not None:
                        replies.append(reply)
            except RemoteProtocolError:
                replies.append(None)
            found.append(replies)
        self.assertEqual(*found)

    @LIGHT
    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_any_octets(self, octets: bytes, cut: int) -> None:
        """Whatever a peer sends, it is printable replies or RemoteProtocolError, however cut."""
        found = []
        for size in (cut, 10**6):
            reader, replies = ReplyReader(), []
            try:
                for at in range(0, len(octets), size):
                    reader.receive(octets[at : at + size])
                    while (reply := reader.next_reply()) is not None:
                        replies.append(reply)
                        self.assertTrue(reply.text.isprintable())
            except RemoteProtocolError:
                replies.append(None)
            found.append(replies)
        self.assertEqual(*found)

    def test_endless_line(self) -> None:
        """A line without an end is given up in bounded memory."""
        reader = ReplyReader()
        reader.receive(b"250 ")
        with self.assertRaises(RemoteProtocolError):
            for _ in range(LINE_LIMIT):
                reader.receive(b"xx")
                reader.next_reply()

    @LIGHT
    @given(
        st.sampled_from((250, 354, 451, 550)),
        st.lists(st.text(max_size=30), min_size=1, max_size=4),
    )
    def test_there_and_back(self, code: int, texts: list[str]) -> None:
        """What we render is read as it was."""
        lines = tuple(make_reply(code, "", text).lines[0] for text in texts)
        reply = Reply(code, f"{code // 100}.1.1" if code != 354 else "", lines)
        self.assertEqual(self.read(render(reply)), [reply])
