"""Delivery status notifications: read back by a parser that is not ours."""

import email
import quopri
import re
from dataclasses import replace
from email.message import Message

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.wire.dsn import Action, RecipientStatus, build_report

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)
FAILED = RecipientStatus(
    b"bob@example.org",
    Action.FAILED,
    "5.1.1",
    b"rfc822;b+2Bob@example.org",
    "mx.example.org",
    "550 5.1.1 No such user",
    last_attempt=1_800_000_000.0,
)
HEADERS = b"Received: by x\r\nSubject: hello\r\nMessage-ID: <1@x>\r\n"


def report(*recipients: RecipientStatus, **extra: object) -> bytes:
    facts: dict = {
        "reporting_mta": "bridgehead.example.org",
        "report_id": "00000000000001ABCD",
        "to": b"alice@example.com",
        "recipients": recipients or (FAILED,),
        "date": 1_800_000_100.0,
        "arrival": 1_800_000_000.0,
        "original": HEADERS,
    }
    return build_report(**facts | extra)


def unstuffed(wire: bytes) -> bytes:
    return wire.removeprefix(b".").replace(b"\r\n.", b"\r\n")


class ReportTests(SynchronousTestCase):
    def parts(self, wire: bytes) -> tuple[Message, list[Message]]:
        message = email.message_from_bytes(unstuffed(wire))
        self.assertEqual(message.get_content_type(), "multipart/report")
        self.assertEqual(message.get_param("report-type"), "delivery-status")
        for part in message.walk():
            self.assertEqual(part.defects, [])
        return message, message.get_payload()

    def test_failed(self) -> None:
        """A sender reads who was not reached and why; a program reads the same."""
        message, (words, status, headers) = self.parts(
            report(postmaster=b"postmaster@example.org", envelope_id=b"QQ+2B1")
        )
        self.assertEqual(
            message["From"], "Mail Delivery System <MAILER-DAEMON@bridgehead.example.org>"
        )
        self.assertEqual(message["To"], "<alice@example.com>")
        self.assertEqual(message["Auto-Submitted"], "auto-replied")
        self.assertEqual(message["Message-ID"], "<00000000000001ABCD@bridgehead.example.org>")
        self.assertIn("could not be delivered", words.get_payload())
        self.assertIn("host mx.example.org said: 550 5.1.1 No such user", words.get_payload())
        self.assertIn("postmaster@example.org", words.get_payload())
        of_message, of_bob = status.get_payload()
        self.assertEqual(of_message["Reporting-MTA"], "dns; bridgehead.example.org")
        self.assertEqual(of_message["Original-Envelope-Id"], "QQ+1")
        self.assertEqual(of_message["Arrival-Date"], "Fri, 15 Jan 2027 08:00:00 +0000")
        self.assertEqual(
            dict(of_bob.items()),
            {
                "Original-Recipient": "rfc822;b+ob@example.org",
                "Final-Recipient": "rfc822; bob@example.org",
                "Action": "failed",
                "Status": "5.1.1",
                "Remote-MTA": "dns; mx.example.org",
                "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
                "Last-Attempt-Date": "Fri, 15 Jan 2027 08:00:00 +0000",
            },
        )
        self.assertEqual(headers.get_content_type(), "text/rfc822-headers")
        self.assertEqual(headers.get_payload(), HEADERS.decode())

    def test_kinds(self) -> None:
        """Each kind of report has its subject and its words; a delay says how long it is tried."""
        seen = set()
        for action in Action:
            recipient = RecipientStatus(
                b"bob@example.org",
                action,
                "",
                retry_until=1_800_400_000.0,
                is_local=True,
                diagnostic="queued too long",
            )
            message, (words, status, _) = self.parts(report(recipient))
            seen.add(message["Subject"])
            fields = status.get_payload()[1]
            self.assertEqual(fields["Action"], action.value)
            self.assertEqual(fields["Diagnostic-Code"], "x-local; queued too long")
            self.assertEqual("Will-Retry-Until" in fields, action is Action.DELAYED)
            self.assertEqual(
                fields["Status"][0], {"failed": "5", "delayed": "4"}.get(action.value, "2")
            )
            self.assertIn("queued too long", words.get_payload())
        self.assertEqual(len(seen), len(Action))

    def test_several_recipients(self) -> None:
        """One report names all its recipients."""
        others = [RecipientStatus(b"%d@x.org" % n, Action.FAILED, "5.0.0") for n in range(50)]
        _, (words, status, _) = self.parts(report(*others))
        self.assertEqual(len(status.get_payload()), 51)
        self.assertEqual(words.get_payload().count("@x.org>"), 50)

    def test_double_bounce(self) -> None:
        """A report that goes to the postmaster names the original's sender."""
        _, (words, *_) = self.parts(report(sender=b"gone@example.net"))
        self.assertIn("The message was sent by <gone@example.net>.", words.get_payload())

    def test_the_message_itself(self) -> None:
        """A whole original is returned if it may travel in 7 bits, else its headers."""
        whole = HEADERS + b"\r\n..dot\r\nbody\r\n"
        _, (*_, original) = self.parts(report(original=whole, is_full=True))
        self.assertEqual(original.get_content_type(), "message/rfc822")
        self.assertEqual(original.get_payload()[0].get_payload(), ".dot\r\nbody\r\n")
        plain = HEADERS + b"\r\n.dot\r\nbody\r\n"
        same = report(original=plain, is_stuffed=False, is_full=True)
        self.assertEqual(same, report(original=whole, is_full=True))
        eight_bit = whole.replace(b"body", b"b\xc3\xb6dy")
        _, (*_, original) = self.parts(report(original=eight_bit, is_full=True))
        self.assertEqual(original.get_content_type(), "text/rfc822-headers")
        self.assertNotIn("dot", original.get_payload())
        self.assertEqual(len(self.parts(report(original=b""))[1]), 2)

    def test_the_same_facts(self) -> None:
        """The same facts give the same octets: a batch written twice makes one report."""
        self.assertEqual(report(), report())

    def test_boundary(self) -> None:
        """A header block that holds the boundary does not end the report."""
        boundary = email.message_from_bytes(report()).get_boundary()
        assert boundary is not None
        original = b"Subject: x\r\n--" + boundary.encode() + b"--\r\n" + HEADERS
        _, parts = self.parts(report(original=original))
        self.assertEqual(len(parts), 3)

    def test_addresses(self) -> None:
        """An MTA without a name is named by its address."""
        for host, shown in (
            ("192.0.2.1", "dns; [192.0.2.1]"),
            ("2001:db8::1", "dns; [2001:db8::1]"),
        ):
            recipient = RecipientStatus(b"b@x.org", Action.FAILED, "5.0.0", remote_mta=host)
            _, (_, status, _) = self.parts(report(recipient))
            self.assertEqual(status.get_payload()[1]["Remote-MTA"], shown)

    def test_long_word_behind_others(self) -> None:
        """No line of a report is over 998 octets, wherever in a reply its longest word stands: a
        server that keeps to RFC 5321 4.5.3.1.6 would not take the report.
        """
        for before in range(1, 70, 4):
            said = "550 5.1.1 " + "w" * before + " " + "x" * 1500 + " behind"
            wire = report(replace(FAILED, diagnostic=said, remote_mta="mx.example.com"))
            self.assertLessEqual(max(map(len, wire.split(b"\r\n"))), 998)
            self.assertIn(b"behind", wire)

    def test_no_delimiter_by_a_soft_line_break(self) -> None:
        """A reply whose words would be a delimiter behind a soft line break ends no part."""
        plain = report(FAILED, to="é@example.com".encode())
        boundary = re.findall(rb'boundary="([^"]+)"', plain)[0]
        for before in range(60):
            said = "é" * before + "--" + boundary.decode()
            utf8 = replace(FAILED, final="é@example.com".encode(), diagnostic=said)
            message = email.message_from_bytes(unstuffed(report(utf8)))
            self.assertEqual(len(message.get_payload()), 3, before)

    @LIGHT
    @given(st.binary(max_size=3000), st.binary(max_size=1500), st.binary(max_size=200))
    def test_untrusted_text(self, headers: bytes, said: bytes, address: bytes) -> None:
        """Whatever peers and senders wrote, a report is 7-bit, of short lines, without control
        octets, and nothing of it ends its content or adds a field.
        """
        recipient = RecipientStatus(
            address,
            Action.FAILED,
            "5.0.0",
            address,
            "mx\r\nX-Forged: yes",
            said.decode("latin-1"),
        )
        for is_full in (False, True):
            wire = report(recipient, original=headers, is_full=is_full, envelope_id=address)
            self.assertFalse(set(wire) - set(range(0x20, 0x7F)) - set(b"\r\n\t"))
            self.assertTrue(wire.endswith(b"\r\n"))
            self.assertNotIn(b"\r\n.\r\n", b"\r\n" + wire)
            self.assertEqual(wire.count(b"\n"), wire.count(b"\r\n"))
            self.assertEqual(wire.count(b"\r"), wire.count(b"\r\n"))
            self.assertLessEqual(max(map(len, wire.split(b"\r\n"))), 998)
            status = email.message_from_bytes(unstuffed(wire)).get_payload()[1]
            fields = status.get_payload()
            if status.get_content_type() == "message/global-delivery-status":
                blocks = quopri.decodestring(fields[0].as_bytes()).decode().split("\r\n\r\n")
                fields = [email.message_from_string(block) for block in blocks]
            self.assertEqual(len(fields), 2)
            self.assertNotIn("X-Forged", fields[1])
