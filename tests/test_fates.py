"""Each recipient and each sender has its fate: null senders, and transactions that half succeed."""

from __future__ import annotations

import email
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.telemetry import Notice, Reported, Transferred
from mta.testing.lab import Lab, LabClient
from mta.testing.sink import Sunk

STEADY = "queue: {jitter: 0, backoff: [5m, 10m]}\n"
PIPELINED = (b"PIPELINING", b"SIZE 1000000", b"8BITMIME")


class Whole(SynchronousTestCase):
    """A lab whose hub refuses whom a test says."""

    def lab(self, *extensions: bytes, **refused: bytes) -> Lab:
        """`refused`: local part -> the reply to RCPT of it."""
        lab = Lab(more=STEADY)
        lab.hub.extensions = extensions or PIPELINED
        self.refused = refused
        lab.hub.answer("RCPT", self.answer)
        return lab

    def answer(self, argument: bytes) -> bytes:
        local = argument.partition(b"<")[2].partition(b"@")[0].decode()
        return self.refused.get(local, b"250 2.1.5 Ok")

    def send(self, lab: Lab, mail: bytes, *rcpt: bytes) -> LabClient:
        client = lab.client()
        self.assertIn(
            b"354", client.say(b"MAIL FROM:" + mail, *(b"RCPT TO:" + r for r in rcpt), b"DATA")
        )
        client.pour(b"Subject: x\r\n\r\nx\r\n.\r\n")
        lab.advance(1)
        return client

    def mail(self, lab: Lab) -> list[Sunk]:
        return [sunk for sunk in lab.hub.messages if sunk.sender]

    def reports(self, lab: Lab) -> list[tuple[tuple[bytes, ...], Any]]:
        return [
            (sunk.recipients, email.message_from_bytes(sunk.content))
            for sunk in lab.hub.messages
            if not sunk.sender
        ]


class HardDetail09NullSenderTests(Whole):
    """Hard detail 9: nobody answers a report, whatever was asked of it."""

    def test_null_sender_with_notify(self) -> None:
        """A message without a sender that asks to be told of everything: of success nobody hears, of
        a failure the postmaster does, once.
        """
        lab = self.lab(gone=b"550 5.1.1 no")
        asked = b"@example.com> NOTIFY=SUCCESS,FAILURE,DELAY"
        self.send(lab, b"<> RET=FULL ENVID=1", b"<you" + asked, b"<gone" + asked)
        lab.advance(3600)
        self.assertEqual([e.kind for e in lab.owner.kinds(Reported)], ["double-bounce"])
        about_you, (to, _) = sorted(self.reports(lab), key=lambda r: r[0] != (b"you@example.com",))
        self.assertEqual((about_you[0], to), ((b"you@example.com",), (b"postmaster@example.com",)))
        self.assertEqual(lab.queue(), [])

    def test_report_that_nobody_takes(self) -> None:
        """Sender and postmaster refuse: two reports, one line that it was dropped, and no more."""
        lab = self.lab(gone=b"550 5.1.1 no", me=b"550 5.1.1 no", postmaster=b"550 5.1.1 no")
        self.send(lab, b"<me@example.net>", b"<gone@example.com> NOTIFY=FAILURE")
        lab.advance(86_400)
        self.assertEqual([e.kind for e in lab.owner.kinds(Reported)], ["failed", "double-bounce"])
        dropped = [n for n in lab.owner.kinds(Notice) if n.text.startswith("dropped")]
        self.assertEqual((len(dropped), lab.queue(), lab.hub.messages), (1, [], []))

    def test_never(self) -> None:
        """NOTIFY=NEVER: a failure is told to nobody, not to the postmaster either."""
        lab = self.lab(gone=b"550 5.1.1 no")
        for sender in (b"<me@example.net>", b"<>"):
            self.send(lab, sender, b"<gone@example.com> NOTIFY=NEVER")
        self.assertEqual((lab.owner.kinds(Reported), lab.hub.messages, lab.queue()), ([], [], []))

    def test_reports_ask_for_nothing(self) -> None:
        """A report says no RET, ENVID, NOTIFY or ORCPT of its own (RFC 3461 6.1)."""
        lab = self.lab(*PIPELINED, b"DSN", gone=b"550 5.1.1 no")
        self.send(lab, b"<me@example.net> RET=FULL ENVID=1", b"<gone@example.com> NOTIFY=FAILURE")
        at = max(i for i, line in enumerate(lab.hub.commands) if line.startswith(b"MAIL FROM:<>"))
        said = b" ".join(lab.hub.commands[at : at + 2])
        self.assertIn(b"RCPT TO:<me@example.net>", said)
        for word in (b"RET", b"ENVID", b"NOTIFY", b"ORCPT"):
            self.assertNotIn(word, said)


class HardDetail13PartialFailureTests(Whole):
    """Hard detail 13: of several recipients each has the fate that was said of it."""

    def test_mixed_replies(self) -> None:
        """250, 450 and 550 in one transaction: those accepted get it now, those deferred later and
        alone, and one report names all that failed.
        """
        lab = self.lab(late=b"450 4.2.1 later", bad=b"550 5.1.1 no", worse=b"553 5.1.3 never")
        self.send(
            lab,
            b"<me@example.net>",
            *(b"<%b@example.com>" % w for w in (b"you", b"bad", b"late", b"two", b"worse")),
        )
        self.assertEqual(
            [m.recipients for m in self.mail(lab)], [(b"you@example.com", b"two@example.com")]
        )
        ((_, report),) = self.reports(lab)
        finals = [part["Final-Recipient"] for part in report.get_payload()[1].get_payload()[1:]]
        self.assertEqual(finals, ["rfc822; bad@example.com", "rfc822; worse@example.com"])
        said = len(lab.hub.commands)
        del self.refused["late"]
        lab.advance(301)
        self.assertEqual(self.mail(lab)[1:][0].recipients, (b"late@example.com",))
        again = [line for line in lab.hub.commands[said:] if line.startswith(b"RCPT")]
        self.assertEqual((again, lab.queue()), ([b"RCPT TO:<late@example.com>"], []))

    def test_too_many(self) -> None:
        """452 4.5.3: the rest goes in the next transaction of the same connection, at once, and none
        of them is deferred.
        """
        lab = self.lab()
        taken: list[bytes] = []

        def two(argument: bytes) -> bytes:
            if len(taken) == 2:
                return b"452 4.5.3 Too many recipients"
            taken.append(argument)
            return b"250 2.1.5 Ok"

        lab.hub.answer("RCPT", two)
        lab.hub.answer("MAIL", lambda _: taken.clear() or b"250 2.1.0 Ok")
        self.send(lab, b"<me@example.net>", *(b"<u%d@example.com>" % n for n in range(5)))
        self.assertEqual([len(m.recipients) for m in self.mail(lab)], [2, 2, 1])
        self.assertEqual(len(lab.hub.sources), 1)
        self.assertEqual({e.status for e in lab.owner.kinds(Transferred)}, {"sent"})

    def test_nobody_and_354(self) -> None:
        """All recipients are refused and the pipelined DATA is accepted all the same: a lone dot ends
        it, nobody gets an empty message, and the association serves the next one.
        """
        lab = self.lab(bad=b"550 5.1.1 no")
        lab.hub.answer("DATA", b"354 go", times=1)
        self.send(lab, b"<me@example.net> RET=HDRS", b"<bad@example.com> NOTIFY=NEVER")
        self.send(lab, b"<me@example.net>", b"<you@example.com>")
        self.assertEqual([m.recipients for m in lab.hub.messages], [(), (b"you@example.com",)])
        self.assertEqual(len(lab.hub.sources), 1)

    def test_wishes_of_each(self) -> None:
        """One transaction, each recipient with its own wish: success of one, failure of another and
        silence about the third.
        """
        lab = self.lab(bad=b"550 5.1.1 no", hush=b"550 5.1.1 no")
        self.send(
            lab,
            b"<me@example.net>",
            b"<you@example.com> NOTIFY=SUCCESS",
            b"<two@example.com>",
            b"<bad@example.com> NOTIFY=FAILURE",
            b"<hush@example.com> NOTIFY=NEVER",
        )
        told = sorted(
            (part["Action"], part["Final-Recipient"])
            for _, report in self.reports(lab)
            for part in report.get_payload()[1].get_payload()[1:]
        )
        self.assertEqual(
            told, [("failed", "rfc822; bad@example.com"), ("relayed", "rfc822; you@example.com")]
        )
