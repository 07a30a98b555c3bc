"""Addresses and headers beyond ASCII (RFC 6531): taken, routed, sent on or returned, and reported."""

from __future__ import annotations

import base64
import email
import email.policy
import quopri
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Address, Requires
from mta.telemetry import Accepted, Transferred
from mta.testing.lab import HUB, Lab
from mta.testing.sink import Sink
from mta.wire.dsn import decoded_original
from mta.wire.smtp.client_envelope import in_ascii, needs_utf8
from mta.wire.smtp.grammar import Refused, parse_mail, parse_mailbox, parse_rcpt
from mta.wire.smtp.notification import NOTIFICATION_RCPT
from mta.wire.smtp.utf8 import a_labels, check_text, decode_utf8_address, encode_utf8_address

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
TEXT = st.text(min_size=1, max_size=20)
SEEN = TEXT.filter(lambda text: _is_seen(text))
SECOND = "203.0.113.21"
USER = "用户@example.com".encode()
ABROAD = "josé@bücher.example".encode()
UTF8 = (b"PIPELINING", b"8BITMIME", b"SMTPUTF8")
BODY = "Subject: é\r\n\r\nbody\r\n".encode()


def _is_seen(text: str) -> bool:
    try:
        check_text(text.encode())
    except (ValueError, UnicodeEncodeError):
        return False
    return text.isprintable()


class HardDetail21Utf8Tests(SynchronousTestCase):
    """Hard detail 21: address forms, beyond ASCII."""

    @LIGHT
    @given(st.binary(max_size=40) | TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")))
    def test_whatever_comes(self, text: bytes) -> None:
        """A mailbox is taken as it came or refused with a reason; what is taken is well-formed UTF-8
        that breaks no line, and is routed by A-labels.
        """
        for whole in (text, text + b"@example.org", b"a@" + text, b'"' + text + b'"@example.org'):
            try:
                address = parse_mailbox(whole, utf8=True)
            except ValueError as error:
                self.assertTrue(str(error).isascii())
                continue
            self.assertIn(address.text, (whole, whole[:-1]))
            shown = address.text.decode("utf-8")
            self.assertFalse([c for c in shown if c < " " or c == "\x7f" or "\x80" <= c < "\xa1"])
            self.assertTrue(address.domain.isascii())
            self.assertEqual(address.domain, address.domain.lower())
            if whole.isascii():
                self.assertEqual(parse_mailbox(whole), address)

    @LIGHT
    @given(st.binary(max_size=30), st.sampled_from([b"", b" SMTPUTF8", b" SMTPUTF8=1"]))
    def test_only_behind_the_parameter(self, local: bytes, parameter: bytes) -> None:
        """No octet above 126 passes that was not announced by SMTPUTF8."""
        argument = b"<" + local + b"@example.org>"
        try:
            sender, given_ = parse_mail(b"FROM:" + argument + parameter)
        except Refused as refused:
            self.assertIn(refused.reply.code, (501, 553, 555))
        else:
            self.assertTrue(sender.text.isascii() or given_ == {b"SMTPUTF8": None})
        try:
            recipient, _ = parse_rcpt(b"TO:" + argument)
        except Refused as refused:
            self.assertIn(refused.reply.code, (501, 553, 555))
        else:
            self.assertTrue(recipient.text.isascii())

    def test_a_labels(self) -> None:
        """U-labels of any case and width are routed by the same lower-case A-labels; sharp s is a
        letter of its own (IDNA2008).
        """
        for text, expected in (
            ("bücher.example", b"xn--bcher-kva.example"),
            ("BÜCHER.Example", b"xn--bcher-kva.example"),
            ("例え。jp", b"xn--r8jz45g.jp"),
            ("faß.example", b"xn--fa-hia.example"),
        ):
            self.assertEqual(a_labels(text.encode()), expected, text)
        for wrong in ("☃.example", "é..example", "\u200d.example", "é" * 64 + ".example"):
            self.assertRaises(ValueError, a_labels, wrong.encode())
        self.assertEqual(
            parse_mailbox("a@bücher.example.".encode(), utf8=True).domain, b"xn--bcher-kva.example"
        )

    @LIGHT
    @given(SEEN)
    def test_utf8_type(self, text: str) -> None:
        """An address of type utf-8 is the same in each of its forms (RFC 6533 3)."""
        octets = text.encode()
        encoded = encode_utf8_address(octets)
        self.assertTrue(encoded.isascii())
        self.assertEqual(decode_utf8_address(encoded), octets)
        if "\\" not in text:
            self.assertEqual(decode_utf8_address(octets), octets)
        self.assertEqual(decoded_original(b"utf-8;" + encoded), b"utf-8;" + octets)

    @LIGHT
    @given(st.binary(max_size=40) | st.text("\\x{}0EFé+= ", max_size=20).map(str.encode))
    def test_utf8_type_from_strangers(self, encoded: bytes) -> None:
        """Whatever stands behind utf-8; is refused, or kept in printable ASCII for every peer."""
        argument = b"TO:<b@example.org> ORCPT=utf-8;" + encoded
        try:
            _, parameters = parse_rcpt(argument, NOTIFICATION_RCPT, utf8=True)
        except Refused as refused:
            self.assertIn(refused.reply.code, (501, 555))
            return
        kept = parameters[b"ORCPT"]
        assert kept is not None
        self.assertFalse(kept.translate(None, bytes(range(0x21, 0x7F))))
        self.assertLessEqual(len(kept), 500)

    @LIGHT
    @given(st.lists(st.sampled_from([b"a@x.org", "a@é.org".encode(), "é@x.org".encode()])))
    def test_in_ascii(self, texts: list[bytes]) -> None:
        """What a peer without SMTPUTF8 is told is ASCII, and only a local part beyond it keeps a
        transaction from being told so.
        """
        given_ = [parse_mailbox(text, utf8=True) for text in texts]
        sender, recipients = Address(b""), list(enumerate(given_))
        found = in_ascii(sender, recipients, None)
        self.assertEqual(found is None, "é@x.org".encode() in texts)
        self.assertEqual(needs_utf8(sender, recipients, None), not b"".join(texts).isascii())
        if found is not None:
            self.assertFalse(needs_utf8(*found, None))
            self.assertEqual([a.domain for _, a in found[1]], [a.domain for a in given_])


class Way(SynchronousTestCase):
    """The whole way, from a client to one hub or the other."""

    def lab(self, *extensions: bytes, second: tuple[bytes, ...] | None = None) -> Lab:
        more = f"""
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["{HUB}:25"{f", {{host: {SECOND}, preference: 20}}" if second is not None else ""}]
    address-spaces: [{{domain: "*"}}]
"""
        lab = Lab(more=more)
        lab.hub.extensions = extensions
        self.second = Sink(b"second.example.com", second or ())
        lab.network.serve(SECOND, 25, self.second.build)
        return lab

    def send(
        self, lab: Lab, *rcpt: bytes, sender: bytes = b"me@example.net", content: bytes = BODY
    ) -> None:
        client = lab.client()
        said = client.say(
            b"MAIL FROM:<" + sender + b"> SMTPUTF8 BODY=8BITMIME",
            *(b"RCPT TO:<" + one + b">" for one in rcpt),
            b"DATA",
        )
        self.assertIn(b"354", said)
        self.assertIn(b"250 2.0.0", client.pour(content + b".\r\n"))
        lab.advance(1)

    def statuses(self, lab: Lab) -> list[tuple[str, str]]:
        return sorted(
            (e.status, e.enhanced)
            for e in lab.owner.kinds(Transferred)
            if e.recipient != b"me@example.net"
        )


class HardDetail08Utf8Tests(Way):
    """Hard detail 8: SMTPUTF8 is asked for where it is needed and nowhere else; a next hop without
    it is passed over, and the message is returned with 5.6.7 when none has it.
    """

    def test_handed_on(self) -> None:
        """Address, header and body arrive octet by octet, and what they came with is named."""
        lab = self.lab(*UTF8)
        self.send(lab, USER, ABROAD, sender=ABROAD)
        self.assertIn(b"MAIL FROM:<" + ABROAD + b"> BODY=8BITMIME SMTPUTF8", lab.hub.commands)
        (sunk,) = lab.hub.messages
        self.assertEqual((sunk.sender, sunk.recipients), (ABROAD, (USER, ABROAD)))
        received, _, rest = sunk.content.partition(b"Subject:")
        self.assertEqual(b"Subject:" + rest, BODY)
        self.assertIn(b"with UTF8SMTP\r\n", received)
        self.assertTrue(received.isascii())

    def test_not_needed(self) -> None:
        """A client that says SMTPUTF8 for plain mail closes no way: no later peer is asked for it.
        8 bits in the body are not in the header.
        """
        lab = self.lab(b"PIPELINING", b"8BITMIME")
        self.send(lab, b"you@example.com", content="Subject: x\r\n\r\né\r\n".encode())
        self.assertEqual(len(lab.hub.messages), 1)
        self.assertEqual(self.statuses(lab), [("sent", "2.0.0")])

    def test_domain_alone(self) -> None:
        """A domain beyond ASCII with a plain local part goes to any peer, by its A-labels."""
        lab = self.lab(b"8BITMIME")
        self.send(
            lab,
            "you@bücher.example".encode(),
            sender="me@例え.jp".encode(),
            content=b"Subject: x\r\n\r\n",
        )
        (sunk,) = lab.hub.messages
        self.assertEqual(sunk.sender, b"me@xn--r8jz45g.jp")
        self.assertEqual(sunk.recipients, (b"you@xn--bcher-kva.example",))

    def test_next_server(self) -> None:
        """The first server lacks SMTPUTF8, the second offers it: it gets the message, at once."""
        for why in ({"sender": ABROAD}, {"content": BODY}):
            lab = self.lab(b"8BITMIME", second=UTF8)
            self.send(lab, b"you@example.com", **({"content": b"Subject: x\r\n\r\n"} | why))
            self.assertEqual((lab.hub.messages, len(self.second.messages)), ([], 1), why)
            self.assertEqual(lab.hub.commands[-1], b"QUIT")
            self.assertFalse([c for c in lab.hub.commands if c.startswith(b"MAIL")])

    def test_returned(self) -> None:
        """No server offers it: 5.6.7 at once, one report, and the lane serves other mail on."""
        lab = self.lab(b"8BITMIME", second=(b"8BITMIME",))
        self.send(lab, USER)
        self.assertEqual(self.statuses(lab), [("bounced", "5.6.7")])
        self.assertEqual(
            len([m for m in lab.hub.messages + self.second.messages if not m.sender]), 1
        )
        lab.send()
        self.assertEqual(self.statuses(lab)[-1], ("sent", "2.0.0"))
        self.assertEqual(lab.queue(), [])

    def test_waited_for(self) -> None:
        """A server that might offer it does not answer: the message waits for it."""
        lab = self.lab(b"8BITMIME", second=UTF8)
        self.second.answer("GREETING", b"421 4.3.2 later", times=1)
        self.send(lab, USER)
        self.assertEqual([s for s, _ in self.statuses(lab)], ["deferred"])
        lab.advance(1200)
        self.assertEqual(len(self.second.messages), 1)
        self.assertEqual([s for s, _ in self.statuses(lab)], ["deferred", "sent"])

    def test_recipients_apart(self) -> None:
        """One recipient needs SMTPUTF8, another does not: the other gets the message all the same,
        and only the one is returned.
        """
        lab = self.lab(b"8BITMIME")
        self.send(lab, USER, b"you@example.com", content=b"Subject: x\r\n\r\n")
        self.assertEqual(self.statuses(lab), [("bounced", "5.6.7"), ("sent", "2.0.0")])

    def test_behind_another(self) -> None:
        """Many messages in one association, one of which the far end cannot take: the others are
        sent, each once, and each of them is told for itself.
        """
        lab = self.lab(b"PIPELINING", b"8BITMIME")
        client = lab.client()
        for number in range(9):
            path = USER if number == 4 else b"u%d@example.com" % number
            client.say(b"MAIL FROM:<me@example.net> SMTPUTF8", b"RCPT TO:<" + path + b">", b"DATA")
            client.pour(b"Subject: x\r\n\r\n.\r\n")
        lab.advance(5)
        sunk = sorted(m.recipients[0] for m in lab.hub.messages if m.sender)
        self.assertEqual(sunk, [b"u%d@example.com" % n for n in range(9) if n != 4])
        self.assertEqual([s for s, _ in self.statuses(lab)], ["bounced"] + ["sent"] * 8)

    def test_kept(self) -> None:
        """What a message needs is in its envelope, and outlives the node that took it."""
        lab = Lab("ab", spool="log")
        lab.hub.extensions = UTF8
        lab.hub.answer("MAIL", b"451 4.3.0 later")
        self.send(lab, b"you@example.com")
        (name,) = [e.queue_id for e in lab.owner.kinds(Accepted)]
        lab.fail("a", to="b")
        self.assertEqual(lab.load(name)[0].requires, Requires.UTF8)


class HardDetail08ReportTests(Way):
    """Reports about such messages (RFC 6533), read back by a parser that is not ours."""

    def report(self, lab: Lab) -> tuple[Any, bytes]:
        (sunk,) = [m for m in lab.hub.messages if not m.sender]
        self.assertEqual(sunk.content.count(b"\n"), sunk.content.count(b"\r\n"))
        self.assertLessEqual(max(map(len, sunk.content.split(b"\r\n"))), 998)
        return email.message_from_bytes(sunk.content, policy=email.policy.SMTP), sunk.content

    def refused(
        self, sender: bytes = b"me@example.net", content: bytes = BODY, ret: bytes = b""
    ) -> tuple[Any, bytes]:
        lab = self.lab(*UTF8)
        lab.hub.answer("RCPT", "550 5.1.1 no such usér".encode(), times=1)
        client = lab.client()
        client.say(
            b"MAIL FROM:<" + sender + b"> SMTPUTF8 BODY=8BITMIME" + ret,
            b"RCPT TO:<" + USER + "> ORCPT=utf-8;älter@bücher.example".encode(),
            b"DATA",
        )
        client.pour(content + b".\r\n")
        lab.advance(1)
        self.commands = lab.hub.commands
        return self.report(lab)

    def test_parts(self) -> None:
        """The parts that need UTF-8 are of the types of RFC 6533, and encoded: the report itself
        goes to every sender whose address is plain, through every server.
        """
        report, octets = self.refused()
        self.assertTrue(octets.isascii())
        words, status, headers = report.get_payload()
        self.assertEqual(words.get_content_charset(), "utf-8")
        self.assertIn("<用户@example.com>", words.get_content())
        self.assertEqual(status.get_content_type(), "message/global-delivery-status")
        fields = self.text(status)
        self.assertIn("Original-Recipient: utf-8;älter@bücher.example\r\n", fields)
        self.assertIn("Final-Recipient: utf-8; 用户@example.com\r\n", fields)
        self.assertIn("no such usér", fields)
        self.assertEqual(headers.get_content_type(), "message/global-headers")
        self.assertIn("Subject: é\r\n", self.text(headers))
        self.assertNotIn("body", self.text(headers))

    def octets(self, part: Any) -> bytes:
        """What a part holds, whatever the parser makes of its type."""
        payload = part.get_payload()
        raw = payload[0].as_bytes() if isinstance(payload, list) else payload.encode()
        if part["Content-Transfer-Encoding"] == "base64":
            return base64.b64decode(raw)
        return quopri.decodestring(raw)

    def text(self, part: Any) -> str:
        return self.octets(part).decode()

    def test_whole(self) -> None:
        """RET=FULL returns it whole, as message/global, octet by octet behind our Received."""
        content = "Subject: é\r\n\r\n".encode() + b"b\xf6dy\r\n.\r\n"
        report, octets = self.refused(
            content=content.replace(b"\r\n.", b"\r\n.."), ret=b" RET=FULL"
        )
        self.assertTrue(octets.isascii())
        whole = report.get_payload()[2]
        self.assertEqual(whole.get_content_type(), "message/global")
        self.assertEqual(
            self.octets(whole).partition(b"Subject")[2], content.partition(b"Subject")[2]
        )

    def test_to_an_address_beyond_ascii(self) -> None:
        """The report of a sender beyond ASCII names him in UTF-8, and is sent with SMTPUTF8."""
        _, octets = self.refused(sender=ABROAD)
        head, _, rest = octets.partition(b"\r\n\r\n")
        self.assertIn(b"To: <" + ABROAD + b">", head)
        self.assertTrue(rest.isascii())
        self.assertIn(b"MAIL FROM:<> SMTPUTF8", self.commands)

    def test_to_a_domain_beyond_ascii(self) -> None:
        """A sender whose domain alone is beyond ASCII is named by its A-labels, for any server."""
        _, octets = self.refused(sender="me@bücher.example".encode())
        self.assertIn(b"To: <me@xn--bcher-kva.example>", octets)
        self.assertTrue(octets.isascii())

    def test_plain_stays_plain(self) -> None:
        """About plain mail nothing changes, whatever octets its header holds."""
        lab = self.lab(b"8BITMIME")
        lab.hub.answer("RCPT", b"550 5.1.1 no", times=1)
        client = lab.client()
        client.say(
            b"MAIL FROM:<me@example.net> BODY=8BITMIME", b"RCPT TO:<you@example.com>", b"DATA"
        )
        client.pour(BODY + b".\r\n")
        lab.advance(1)
        report, octets = self.report(lab)
        self.assertTrue(octets.isascii())
        self.assertEqual(
            [part.get_content_type() for part in report.get_payload()],
            ["text/plain", "message/delivery-status", "text/rfc822-headers"],
        )
