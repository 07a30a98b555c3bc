"""What senders ask of reports (RFC 3461): taken, kept, handed on, and obeyed."""

from __future__ import annotations

import email
import email.policy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from mta.interfaces import INotifies
from mta.model import (
    Address,
    Envelope,
    Notify,
    Outcome,
    OutcomeKind,
    Recipient,
    Report,
    Requires,
    fresh_state,
)
from mta.telemetry import Reported, Transferred
from mta.testing.lab import Lab
from mta.wire.dsn import FULL_LIMIT, decoded_original, original_recipient
from mta.wire.smtp.grammar import Refused, encode_xtext, parse_mail, parse_parameters
from mta.wire.smtp.notification import (
    NOTIFICATION_MAIL,
    NOTIFICATION_RCPT,
    asks,
    mail_words,
    notify_of,
    rcpt_words,
)
from tests.transfer_bench import NEVER, Bench, address

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
PRINTABLE = bytes(range(0x20, 0x7F))
NOTIFIES = st.sampled_from(
    [Notify.UNSET, Notify.NEVER]
    + [Notify(n) for n in range(2, 16) if not n & Notify.NEVER]
)  # fmt: skip
XTEXT = st.text("".join(map(chr, PRINTABLE)), min_size=1, max_size=33).map(
    lambda text: encode_xtext(text.encode())
)


class HardDetail22NotificationTests(SynchronousTestCase):
    """Hard detail 22: NOTIFY, ORCPT, RET and ENVID."""

    @LIGHT
    @given(NOTIFIES, st.none() | XTEXT, st.none() | XTEXT, st.none() | st.booleans())
    def test_there_and_back(
        self, notify: Notify, original: bytes | None, envid: bytes | None, ret: bool | None
    ) -> None:
        """What we say to a peer is what a peer of our own kind reads."""
        recipient = Recipient(
            Address(b"b@x.org", b"x.org"), notify, b"rfc822;" + original if original else b""
        )
        envelope = Envelope(Address(b""), (recipient,), envelope_id=envid or b"", ret_full=ret)
        of_mail = parse_parameters(mail_words(envelope), NOTIFICATION_MAIL)
        of_rcpt = parse_parameters(rcpt_words(recipient), NOTIFICATION_RCPT)
        self.assertEqual(of_mail.get(b"ENVID"), envid)
        self.assertEqual(of_mail.get(b"RET"), {None: None, True: b"FULL", False: b"HDRS"}[ret])
        self.assertEqual(of_rcpt.get(b"ORCPT", b""), recipient.original)
        said = of_rcpt.get(b"NOTIFY")
        self.assertEqual(notify_of(said) if said else Notify.UNSET, notify)
        self.assertEqual(bool(of_mail or of_rcpt), asks(envelope))

    @LIGHT
    @given(
        st.sampled_from([b"NOTIFY", b"ORCPT", b"RET", b"ENVID"]),
        st.binary(max_size=520)
        | st.sampled_from([b"", b"rfc822;", b"rfc822;x", b"NEVER", b"FULL"]).flatmap(
            lambda head: st.binary(max_size=20).map(lambda tail: head + tail)
        ),
    )
    def test_whatever_comes(self, key: bytes, value: bytes) -> None:
        """Any octets are taken or refused with 501 or 555; what is taken is printable, within its
        limit, and holds nothing in xtext that could break a report.
        """
        for checks in (NOTIFICATION_MAIL, NOTIFICATION_RCPT):
            try:
                taken = parse_parameters(key + b"=" + value, checks)
            except Refused as refused:
                self.assertIn(refused.reply.code, (501, 555))
                continue
            for found in taken.values():
                assert found is not None
                self.assertFalse(found.translate(None, PRINTABLE[1:]))
                self.assertLessEqual(len(found), 500 if key == b"ORCPT" else 100)
                if key == b"ORCPT":
                    self.assertFalse(decoded_original(found).translate(None, PRINTABLE))

    @LIGHT
    @given(st.permutations([b"SUCCESS", b"FAILURE", b"DELAY"]), st.booleans())
    def test_never_alone(self, words: list[bytes], lower: bool) -> None:
        """The words come in any order and case; NEVER beside any of them is refused."""
        text = b",".join(words)
        text = text.lower() if lower else text
        said = Notify.SUCCESS | Notify.FAILURE | Notify.DELAY
        self.assertEqual(notify_of(text), said)
        for wrong in (b"NEVER," + text, text + b",NEVER", text + b",", b",", b"", None):
            self.assertRaises(ValueError, notify_of, wrong)

    def test_limits(self) -> None:
        """An ENVID has 100 characters at most, an ORCPT 500, in their wire form."""
        for key, longest, checks in (
            (b"ENVID=", b"x" * 100, NOTIFICATION_MAIL),
            (b"ORCPT=", b"rfc822;" + b"x" * 493, NOTIFICATION_RCPT),
        ):
            parse_parameters(key + longest, checks)
            self.assertRaises(Refused, parse_parameters, key + longest + b"x", checks)

    def test_only_where_they_belong(self) -> None:
        """Without the extension none of them is known."""
        refused = self.assertRaises(Refused, parse_mail, b"FROM:<a@x.org> RET=FULL")
        self.assertEqual(refused.reply.code, 555)

    @LIGHT
    @given(st.binary(min_size=1, max_size=60))
    def test_original_of_ours(self, text: bytes) -> None:
        """An ORCPT that we make of an address that was replaced is xtext, whatever it holds."""
        made = original_recipient(text)
        self.assertFalse(made.translate(None, PRINTABLE[1:]))
        self.assertEqual(decoded_original(made).partition(b";")[2], text)


class KeptTests(SynchronousTestCase):
    """The whole way, from a client to a hub."""

    MAIL = b"MAIL FROM:<me@example.net> RET=FULL ENVID=QQ+2B1"
    RCPT = b"RCPT TO:<you@example.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Y+2Bou@example.org"

    def lab(self, *extensions: bytes, more: str = "") -> Lab:
        lab = Lab(more=more)
        lab.hub.extensions = (b"PIPELINING", *extensions)
        return lab

    def send(self, lab: Lab, *envelope: bytes) -> None:
        client = lab.client()
        said = client.say(*(envelope or (self.MAIL, self.RCPT)), b"DATA")
        self.assertIn(b"354", said)
        client.pour(b"Subject: hello\r\n\r\nthe body\r\n..\r\n.\r\n")
        lab.advance(1)

    def reports(self, lab: Lab) -> list[Any]:
        """What came back to the sender, read by a parser that is not ours."""
        return [
            email.message_from_bytes(sunk.content) for sunk in lab.hub.messages if not sunk.sender
        ]

    def test_handed_on(self) -> None:
        """A hub that offers DSN is told all of it, and we send no report of success."""
        lab = self.lab(b"DSN")
        self.send(lab)
        self.assertIn(b"MAIL FROM:<me@example.net> RET=FULL ENVID=QQ+2B1", lab.hub.commands)
        self.assertIn(self.RCPT, lab.hub.commands)
        self.assertEqual(self.reports(lab), [])

    def test_relayed(self) -> None:
        """Towards a hub that does not, the sender is told by us that it was relayed."""
        lab = self.lab()
        self.send(lab)
        self.assertIn(b"RCPT TO:<you@example.com>", lab.hub.commands)
        (report,) = self.reports(lab)
        _, status, headers = report.get_payload()
        of_message, of_you = status.get_payload()
        self.assertEqual(of_message["Original-Envelope-Id"], "QQ+1")
        self.assertEqual(of_you["Original-Recipient"], "rfc822;Y+ou@example.org")
        self.assertEqual((of_you["Action"], of_you["Status"][0]), ("relayed", "2"))
        # RFC 3461 4.3: nothing failed, so the headers suffice.
        self.assertEqual(headers.get_content_type(), "text/rfc822-headers")
        self.assertEqual([e.kind for e in lab.owner.kinds(Reported)], ["relayed"])
        (sent,) = [e for e in lab.owner.kinds(Transferred) if e.recipient == b"you@example.com"]
        self.assertEqual(sent.original, b"rfc822;Y+ou@example.org")

    def test_nobody_asked(self) -> None:
        """Who asks for nothing gets nothing, and a hub hears no word of it."""
        lab = self.lab(b"DSN")
        self.send(lab, b"MAIL FROM:<me@example.net>", b"RCPT TO:<you@example.com>")
        self.assertIn(b"RCPT TO:<you@example.com>", lab.hub.commands)
        self.assertEqual(len(lab.hub.messages), 1)

    def test_full(self) -> None:
        """RET=FULL: a failure brings the whole message back; RET=HDRS and no word its headers."""
        for ret, content_type in (
            (b" RET=FULL", "message/rfc822"),
            (b" RET=HDRS", "text/rfc822-headers"),
            (b"", "text/rfc822-headers"),
        ):
            lab = self.lab(b"DSN")
            lab.hub.answer("RCPT", b"550 5.1.1 no", times=1)
            self.send(lab, b"MAIL FROM:<me@example.net>" + ret, b"RCPT TO:<you@example.com>")
            (report,) = self.reports(lab)
            original = report.get_payload()[2]
            self.assertEqual(original.get_content_type(), content_type)
            has_body = b"the body\r\n.\r\n" in original.as_bytes(policy=email.policy.SMTP)
            self.assertEqual(has_body, ret == b" RET=FULL")

    def test_lmtp(self) -> None:
        """A store that takes a message by LMTP has delivered it, and its sender is told so; a store
        that offers DSN tells him itself.
        """
        for notifies, told in ((None, b"delivered"), (False, b"delivered"), (True, b"")):
            bench = Bench()
            bench.kind.name = "lmtp"
            if notifies is not None:
                bench.kind.on_open = lambda sender, it=notifies: succeed(_notifying(sender, it))
            bench.offer(Recipient(address("bob@example.com"), Notify.SUCCESS))
            content = b"".join(report.content for report in _reports(bench))
            self.assertEqual(content.partition(b"Action: ")[2].partition(b"\r\n")[0], told)


def _notifying(sender: Any, notifies: bool) -> Any:
    alsoProvides(sender, INotifies)
    sender.notifies = notifies
    return sender


def _reports(bench: Any) -> list[Report]:
    return [r for results, _ in bench.spool.batches for x in results for r in x.reports]


class FullReturnTests(SynchronousTestCase):
    """Hard detail 9 and RFC 3461 4.3: what of the original is returned, and to whom."""

    def failing(self, text: bytes, **envelope: Any) -> bytes:
        """The report about a message that is refused for good."""
        bench = Bench()
        bench.kind.on_prepare = lambda s, n, e, r: succeed(
            tuple(Outcome(i, OutcomeKind.FAILED, NEVER) for i in r)
        )
        offered = bench.envelope("bob@example.com", **envelope)
        name = bench.spool.put(offered, text, taken=True)
        bench.dispatch.offer(name, offered, fresh_state(offered))
        self.report = _reports(bench)[0]
        return self.report.content

    def test_large(self) -> None:
        """A message over 1 MiB is not read whole for the sake of a report."""
        small = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n"
        large = small + (b"y" * 70 + b"\r\n") * (FULL_LIMIT // 72)
        self.assertIn(b"x" * 70, self.failing(small, ret_full=True))
        self.assertNotIn(b"x" * 70, self.failing(large, ret_full=True))

    def test_under_tls_alone(self) -> None:
        """What was to travel under TLS alone is quoted by its header, and so does its report."""
        text = b"Subject: x\r\n\r\nsecret\r\n"
        for requires, whole in ((Requires.TLS, False), (Requires.NOTHING, True)):
            found = self.failing(text, ret_full=True, requires=requires)
            self.assertIs(b"secret" in found, whole)
            self.assertEqual(self.report.envelope.requires, requires)

    def test_postmaster(self) -> None:
        """A postmaster who is told of a lost report did not ask for its content."""
        text = b"Subject: x\r\n\r\nsecret\r\n"
        self.assertNotIn(b"secret", self.failing(text, ret_full=True, sender=""))
