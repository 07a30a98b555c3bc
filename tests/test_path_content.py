"""What contents become on their whole way: as they are where that is possible, converted elsewhere."""

from __future__ import annotations

import email
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.model import BodyType, ContentForm
from mta.telemetry import Accepted, Transferred
from mta.testing.lab import Lab

STEADY = "queue: {jitter: 0, lifetime: 5d, bounce-lifetime: 1d, backoff: [5m, 10m]}\n"
PLAIN = (b"PIPELINING", b"SIZE 52428800", b"ENHANCEDSTATUSCODES")
EIGHT = (*PLAIN, b"8BITMIME")
CHUNKING = (*EIGHT, b"CHUNKING")
BINARY = (*CHUNKING, b"BINARYMIME")
HEAD = (
    b"MIME-Version: 1.0\r\nContent-Type: application/x\r\nContent-Transfer-Encoding: binary\r\n\r\n"
)
OCTETS = b".\r\n.\n\0\r\xff\r\n.\r\nQUIT\r\n"
TEXT = b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n.\r\n"


class ContentPath:
    """Over both stores."""

    spool = "memory"

    def lab(self: Any, *extensions: bytes) -> Lab:
        lab = Lab(spool=self.spool, more=STEADY)
        lab.hub.extensions = extensions
        return lab

    def bdat(self: Any, lab: Lab, content: bytes, body: bytes = b"BINARYMIME") -> bytes:
        """One message by BDAT, all in one piece; the last reply."""
        client = lab.client()
        said = b"MAIL FROM:<me@example.net> BODY=%b\r\nRCPT TO:<you@example.com>\r\n" % body
        said += b"BDAT %d LAST\r\n%b" % (len(content), content)
        return client.pour(said).splitlines()[-1]

    def eight_bit(self: Any, lab: Lab, content: bytes) -> bytes:
        """One message by DATA, declared 8BITMIME."""
        client = lab.client()
        client.pour(b"MAIL FROM:<me@example.net> BODY=8BITMIME\r\n")
        client.pour(b"RCPT TO:<you@example.com>\r\nDATA\r\n")
        stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
        return client.pour(stuffed + b".\r\n").rstrip()

    def arrived(self: Any, lab: Lab) -> tuple[bytes, bytes]:
        """MAIL's parameters, and the content without our Received."""
        (sunk,) = lab.hub.messages
        mail = [line for line in lab.hub.commands if line.startswith(b"MAIL")][-1]
        words = b" ".join(w for w in mail.split()[2:] if not w.startswith(b"SIZE"))
        self.assertEqual([e.status for e in lab.owner.kinds(Transferred)][-1:], ["sent"])
        self.assertEqual(lab.queue(), [])
        _, _, rest = sunk.content.partition(b"+0000\r\n")
        return words, rest

    # hard detail 6

    def test_hard_detail_06_octets_pass_as_they_are(self: Any) -> None:
        """From BDAT to BDAT no octet changes: no dot, no newline, no NUL."""
        lab = self.lab(*BINARY)
        self.assertIn(b"queued as", self.bdat(lab, HEAD + OCTETS))
        self.assertEqual(self.arrived(lab), (b"BODY=BINARYMIME", HEAD + OCTETS))
        self.assertNotIn(b"DATA", lab.hub.commands)

    def test_large_octets(self: Any) -> None:
        """A long content passes piece by piece."""
        octets = HEAD + random.Random(1).randbytes(700_000)  # no secrets here
        lab = self.lab(*BINARY)
        self.assertIn(b"queued as", self.bdat(lab, octets))
        self.assertEqual(self.arrived(lab), (b"BODY=BINARYMIME", octets))
        if self.spool == "log":  # the other one holds it in one piece
            self.assertGreater(len([c for c in lab.hub.commands if c.startswith(b"BDAT")]), 2)

    def test_text_by_bdat_is_text(self: Any) -> None:
        """Clean text that came by BDAT is like any other, and goes by DATA."""
        lab = self.lab(*BINARY)
        self.bdat(lab, TEXT.replace(b"\r\n.\r\n", b"\r\n"), b"8BITMIME")
        expected = (b"BODY=8BITMIME", TEXT.replace(b"\r\n.\r\n", b"\r\n"))
        self.assertEqual(self.arrived(lab), expected)
        self.assertIn(b"DATA", lab.hub.commands)

    def test_text_with_dots_by_bdat(self: Any) -> None:
        """Text with dots at the start of lines arrives with them: by BDAT, or stuffed by DATA."""
        for offered in (EIGHT, CHUNKING):
            lab = self.lab(*offered)
            self.bdat(lab, TEXT, b"8BITMIME")
            self.assertEqual(self.arrived(lab), (b"BODY=8BITMIME", TEXT))

    def test_a_pipelined_second_message_waits_for_its_turn(self: Any) -> None:
        """Messages that came in one piece are taken one after the other; each has its 250 before
        the end of the next is asked for (spool.md section 6).
        """
        lab = self.lab(*BINARY)
        client = lab.client()
        envelope = b"MAIL FROM:<me@example.net>\r\nRCPT TO:<you@example.com>\r\n"
        one = envelope + b"BDAT 14\r\nSubject: %d\r\n\r\nBDAT 3 LAST\r\nx\r\n"
        said = client.pour(b"".join(one % n for n in range(5))).splitlines()
        self.assertEqual([line[:3] for line in said], [b"250"] * 20)
        self.assertEqual(len([line for line in said if b"queued as" in line]), 5)
        self.assertEqual(len(lab.owner.kinds(Accepted)), 5)
        self.assertEqual(len(lab.hub.messages), 5)

    # hard detail 7

    def test_hard_detail_07_binary_becomes_base64(self: Any) -> None:
        """A next hop without BINARYMIME gets what decodes to the same octets."""
        for offered in (PLAIN, EIGHT, CHUNKING):
            lab = self.lab(*offered)
            self.bdat(lab, HEAD + OCTETS)
            words, content = self.arrived(lab)
            message = email.message_from_bytes(content)
            self.assertEqual(message["Content-Transfer-Encoding"], "base64")
            self.assertEqual(message.get_payload(decode=True), OCTETS)
            self.assertEqual(words, b"" if offered is PLAIN else b"BODY=8BITMIME")

    def test_hard_detail_07_eight_bits_become_quoted_printable(self: Any) -> None:
        """A next hop without 8BITMIME gets ASCII; one that has it gets the message untouched."""
        lab = self.lab(*PLAIN)
        self.eight_bit(lab, TEXT)
        words, content = self.arrived(lab)
        self.assertEqual(words, b"")
        self.assertTrue(content.isascii())
        decoded = email.message_from_bytes(content).get_payload(decode=True)
        self.assertEqual(decoded, TEXT.partition(b"\r\n\r\n")[2])
        lab = self.lab(*EIGHT)
        self.eight_bit(lab, TEXT)
        self.assertEqual(self.arrived(lab), (b"BODY=8BITMIME", TEXT))

    def test_large_conversion(self: Any) -> None:
        """A long content is converted piece by piece, and announced with its new size."""
        octets = random.Random(2).randbytes(700_000)  # no secrets here
        lab = self.lab(*EIGHT)
        self.bdat(lab, HEAD + octets)
        _, content = self.arrived(lab)
        self.assertEqual(email.message_from_bytes(content).get_payload(decode=True), octets)
        (mail,) = [line for line in lab.hub.commands if line.startswith(b"MAIL")]
        self.assertIn(b"SIZE=%d " % len(lab.hub.messages[0].content), mail)

    def test_hard_detail_07_what_cannot_be_converted_bounces(self: Any) -> None:
        """5.6.3: a header with 8 bits, and something signed."""
        for content in (
            b"Subject: Gr\xfc\xdfe\r\n\r\nx\r\n",
            b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n"
            b"--b\r\n\r\n\xff\r\n--b--\r\n",
        ):
            lab = self.lab(*PLAIN)
            self.eight_bit(lab, content)
            (report,) = lab.hub.messages
            self.assertIn(b"Status: 5.6.3", report.content)
            self.assertEqual(lab.queue(), [])

    def test_several_over_one_association(self: Any) -> None:
        """Converted and plain messages take turns on one association."""
        lab = self.lab(*PLAIN)
        client = lab.client()
        envelope = b"MAIL FROM:<me@example.net> BODY=8BITMIME\r\nRCPT TO:<you@example.com>\r\n"
        for n in range(6):
            body = b"\xff" if n % 2 else b"x"
            text = b"Subject: %d\r\n\r\n%b\r\n" % (n, body)
            client.pour(envelope + b"BDAT %d LAST\r\n%b" % (len(text), text))
        lab.settle()
        bodies = [m.content.rpartition(b"\r\n\r\n")[2] for m in lab.hub.messages]
        self.assertEqual(sorted(bodies), [b"=FF\r\n"] * 3 + [b"x\r\n"] * 3)


class MemoryContentPathTests(ContentPath, SynchronousTestCase):
    """Over the store in memory."""


class LogContentPathTests(ContentPath, SynchronousTestCase):
    """Over the log on disk."""

    spool = "log"


class StoredFormTests(SynchronousTestCase):
    """What came by BDAT lies in the spool as it came, under the name of what it is."""

    def test_forms(self) -> None:
        """Text that is its own wire form is that; other text is opaque; all else is binary."""
        lab = Lab(more=STEADY)
        lab.hub.answer("MAIL", b"450 4.2.1 Later")
        for content, body, expected in (
            (b"A: b\r\n\r\nx\r\n", b"8BITMIME", (BodyType.SEVEN_BIT, ContentForm.DOT_STUFFED)),
            (b"A: b\r\n\r\n\xff\r\n", b"8BITMIME", (BodyType.EIGHT_BIT_MIME, ContentForm.DOT_STUFFED)),
            (b"A: b\r\n\r\n.\r\n", b"7BIT", (BodyType.SEVEN_BIT, ContentForm.OPAQUE)),
            (b"A: b\r\n\r\nx", b"7BIT", (BodyType.SEVEN_BIT, ContentForm.OPAQUE)),
            (b"A: b\r\n\r\nx\n", b"7BIT", (BodyType.BINARY_MIME, ContentForm.OPAQUE)),
            (b"A: b\r\n\r\n" + b"x" * 999, b"7BIT", (BodyType.BINARY_MIME, ContentForm.OPAQUE)),
            (b"A: b\r\n\r\nx\r\n", b"BINARYMIME", (BodyType.BINARY_MIME, ContentForm.OPAQUE)),
        ):  # fmt: skip
            client = lab.client()
            client.pour(b"MAIL FROM:<me@example.net> BODY=%b\r\n" % body)
            client.pour(b"RCPT TO:<you@example.com>\r\n")
            client.pour(b"BDAT %d LAST\r\n%b" % (len(content), content))
            envelope = lab.queue()[-1].envelope
            self.assertEqual((envelope.body_type, envelope.content_form), expected, content)
