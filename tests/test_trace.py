"""The Received field and the header block: whatever a peer sends, however it is cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import (
    PeerInfo,
)
from mta.transfer.header_block import (
    HeaderScan,
    has_field,
    message_id,
    needs_separator,
    received_count,
)
from mta.transfer.trace import DateCache, address_literal, received_field, received_from


class TraceTests(SynchronousTestCase):
    PEER = PeerInfo("smtp/in/1", "2001:db8::1%eth0", 1, "192.0.2.10", 25, "smtp")

    def test_literals(self) -> None:
        """Addresses stand as RFC 5321 literals."""
        self.assertEqual(address_literal("192.0.2.1"), b"[192.0.2.1]")
        self.assertEqual(address_literal("2001:db8::1%eth0"), b"[IPv6:2001:db8::1]")

    def test_dates(self) -> None:
        """Dates are RFC 5322's, in UTC, and the same text within a second."""
        dates = DateCache()
        self.assertEqual(dates.at(0.0), b"Thu, 1 Jan 1970 00:00:00 +0000")
        self.assertIs(dates.at(1_709_164_800.2), dates.at(1_709_164_800.9))
        self.assertEqual(dates.at(1_709_164_800.2), b"Thu, 29 Feb 2024 00:00:00 +0000")

    def test_tls_and_empty_helo(self) -> None:
        """The TLS state stands in the field; a client without a name goes by its address."""
        peer = PeerInfo("a", "192.0.2.1", 1, "192.0.2.10", 25, "smtp", tls="TLSv1.3 with cipher X")
        text = received_field(
            received_from(peer, b"", "ESMTPS", "vs1.example.org", True), "Q1", b"", b"DATE"
        )
        self.assertEqual(
            text,
            b"Received: from [192.0.2.1] ([192.0.2.1])\r\n\t(using TLSv1.3 with cipher X)\r\n"
            b"\tby vs1.example.org with ESMTPS\r\n\tid Q1; DATE\r\n",
        )

    @given(helo=st.binary(max_size=600), recipient=st.binary(max_size=80), tls=st.text(max_size=40))
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_nothing_breaks_out(self, helo: bytes, recipient: bytes, tls: str) -> None:
        """Whatever a peer calls itself, our Received is one field without forged lines."""
        peer = PeerInfo("a", "192.0.2.1", 1, "192.0.2.10", 25, "smtp", tls=tls)
        text = received_field(
            received_from(peer, helo, "ESMTP", "vs1.example.org", True), "Q1", recipient, b"DATE"
        )
        lines = text.split(b"\r\n")
        self.assertEqual(lines[-1], b"")
        self.assertTrue(lines[0].startswith(b"Received: from "))
        for line in lines[1:-1]:
            self.assertEqual(line[:1], b"\t")
        bare = text.replace(b"\r\n\t", b"")[:-2]
        self.assertTrue(all(0x20 <= octet < 0x7F for octet in bare), bare)
        self.assertTrue(all(len(line) <= 998 for line in lines))
        self.assertEqual(text.count(b"\r\n\tby vs1.example.org with ESMTP"), 1)


class HeaderScanTests(SynchronousTestCase):
    PIECES = st.lists(
        st.sampled_from(
            (
                b"\r\n",
                b"\r\n\r\n",
                b"\r",
                b"\n",
                b"Received: x",
                b"a: b",
                b"Message-ID: <1@x>",
                b"..",
            )
        ),
        max_size=12,
    )

    @given(
        pieces=PIECES,
        cuts=st.lists(st.integers(0, 100), max_size=8),
        limit=st.sampled_from((8, 20, 1000)),
    )
    @settings(max_examples=400, deadline=None, derandomize=True)
    def test_cutting_changes_nothing(
        self, pieces: list[bytes], cuts: list[int], limit: int
    ) -> None:
        """However the network cuts a message, its header is the same."""
        content = b"".join(pieces)
        whole, cut = HeaderScan(limit), HeaderScan(limit)
        body_at = whole.feed(content)
        if not whole.complete:
            body_at = len(content)
        whole.finish()

        at = 0
        body = b""
        for end in [*sorted(min(c, len(content)) for c in cuts), len(content)]:
            chunk, at = content[at:end], end
            body += chunk if cut.complete else chunk[cut.feed(chunk) :]
        cut.finish()

        self.assertEqual((cut.block, body), (whole.block, content[body_at:]))
        self.assertIn(len(whole.block) + len(body), {len(content) - 2, len(content)})

    def test_blocks(self) -> None:
        """The block is the header's lines; a message may have none."""
        for content, block in (
            (b"a: b\r\n\r\nbody", b"a: b\r\n"),
            (b"\r\nbody\r\n\r\n", b""),
            (b"a: b\r\n", b"a: b\r\n"),
            (b"", b""),
        ):
            scan = HeaderScan(1000)
            scan.feed(content)
            scan.finish()
            self.assertEqual((scan.block, scan.complete), (block, True))

    def test_message_ids(self) -> None:
        """The Message-ID for the log is found in any case, folded, and bounded."""
        for block, found in (
            (b"Message-Id: <1@x>\r\n", b"<1@x>"),
            (b"a: b\r\nMESSAGE-ID:<2@x>\r\nc: d\r\n", b"<2@x>"),
            (b"a: b\r\nMessage-ID:\r\n <3@x>\r\n", b"<3@x>"),
            (b"a: b\r\nMessage-ID:\r\n", b""),
            (b"Message-ID: ", b""),
            (b"X-Message-ID: <4@x>\r\n", b""),
            (b"Message-ID: " + b"x" * 999 + b"\r\n", b"x" * 250),
        ):
            self.assertEqual(message_id(block, block.lower()), found, block)

    def test_counts(self) -> None:
        """Only fields of that name count."""
        lowered = b"received: 1\r\nx-received: no\r\nreceived: 2\r\n"
        self.assertEqual(received_count(lowered), 2)
        self.assertTrue(has_field(lowered, b"received:"))
        self.assertFalse(has_field(lowered, b"eceived:"))

    def test_separator(self) -> None:
        """A first line that is no field is body."""
        self.assertTrue(needs_separator(b"Dear all,\r\n"))
        self.assertTrue(needs_separator(b": x\r\n"))
        self.assertFalse(needs_separator(b"Subject : obsolete but a field\r\n"))
        self.assertFalse(needs_separator(b""))
