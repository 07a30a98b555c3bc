"""The policy `milter`: what a filter hears of a message, and what its word does to it."""

from __future__ import annotations

import os
import struct
from typing import Any

from pydantic import ValidationError
from twisted.trial.unittest import SynchronousTestCase

from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.model import Reply
from mta.plugins.find import Catalogue
from mta.policy.milter import Milter, MilterSettings
from mta.telemetry import Notice, Rejected
from mta.testing.policy_suite import IPolicyTests
from mta.testing.surroundings import MemorySurroundings
from tests.config_plugins import SAMPLE
from tests.intake_ground import MESSAGE, House, address
from tests.memory_filter import CONTINUE, EVERYTHING, MemoryFilter, said
from tests.milter_ground import LATER, SOCKET, Ground, codes


class MilterSuite(IPolicyTests, SynchronousTestCase):
    """With a filter that continues."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        surroundings.network.serve_service(SOCKET, MemoryFilter())
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class AwayFilterSuite(IPolicyTests, SynchronousTestCase):
    """With none."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class SilentFilterSuite(IPolicyTests, SynchronousTestCase):
    """With one that agrees and says nothing."""

    def build(self, surroundings: MemorySurroundings) -> Milter:
        memory = MemoryFilter(**dict.fromkeys("CHMRTLNBE", b""))
        surroundings.network.serve_service(SOCKET, memory)
        return Milter(MilterSettings(socket=SOCKET), surroundings)


class DialogueTests(SynchronousTestCase):
    def test_a_message(self) -> None:
        """A filter hears a message from the client's address to its last octet, and is let go."""
        ground = Ground()
        self.assertEqual(ground.connect(), (None, None))
        self.assertEqual(ground.send()[-1].code, 250)
        heard = ground.end.heard
        self.assertEqual(
            heard,
            [
                (b"C", b"[192.0.2.77]\x004\x9c\x40192.0.2.77\0"),
                (b"H", b"client.example.net\0"),
                (b"M", b"<a@example.net>\0"),
                (b"R", b"<b@example.com>\0"),
                (b"T", b""),
                (b"L", b"From\0<a@example.net>\0"),
                (b"L", b"Message-ID\0<1@example.net>\0"),
                (b"N", b""),
                (b"B", b"Hello.\r\n"),
                (b"E", b""),
            ],
        )
        ground.reception.closed("", "")
        ground.clock.advance(0)
        self.assertEqual(ground.end.letters()[-1:], b"Q")
        ground.clock.advance(0)
        self.assertEqual((ground.filter.open_ends, len(ground.filter.ends)), (0, 1))
        self.assertEqual(ground.lines(), [])

    def test_macros(self) -> None:
        """It is told who connected, under which TLS, who he has proved to be, and the queue's name."""
        ground = Ground()
        ground.connect()
        association = ground.reception._association
        ground.reception.secured("TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)")
        ground.wait(ground.reception.helo(b"client.example.net", "ESMTPS"))
        association.identify("alice", "PLAIN")
        ground.send()
        macros = ground.end.macros
        self.assertEqual(macros[b"C"][b"j"], b"bridgehead.example.org")
        self.assertEqual(macros[b"C"][b"{client_addr}"], b"192.0.2.77")
        self.assertEqual(macros[b"C"][b"{client_port}"], b"40000")
        self.assertEqual(macros[b"C"][b"{daemon_name}"], b"smtp")
        self.assertEqual(macros[b"H"][b"{tls_version}"], b"TLSv1.3")
        self.assertEqual(macros[b"H"][b"{cipher}"], b"TLS_AES_256_GCM_SHA384")
        self.assertEqual(macros[b"M"][b"{auth_type}"], b"PLAIN")
        self.assertEqual(macros[b"M"][b"{auth_authen}"], b"alice")
        self.assertEqual(macros[b"M"][b"{mail_addr}"], b"a@example.net")
        self.assertEqual(macros[b"R"][b"{rcpt_addr}"], b"b@example.com")
        queue_id = ground.house.spool.stagings[-1].queue_id.encode()
        self.assertEqual([macros[at][b"i"] for at in (b"T", b"N", b"E")], [queue_id] * 3)

    def test_parameters(self) -> None:
        """What was said behind an address goes along with it."""
        ground = Ground()
        ground.connect()
        ground.wait(
            ground.reception.mail(address("a@example.net"), {b"SIZE": b"9", b"SMTPUTF8": None})
        )
        sent: dict[bytes, bytes | None] = {b"NOTIFY": b"FAILURE,SUCCESS", b"ORCPT": b"rfc822;x@y"}
        ground.wait(ground.reception.rcpt(address("b@example.com"), sent))
        self.assertEqual(ground.end.all(b"M"), [b"<a@example.net>\0SIZE=9\0SMTPUTF8\0"])
        self.assertEqual(
            ground.end.all(b"R"), [b"<b@example.com>\0NOTIFY=SUCCESS,FAILURE\0ORCPT=rfc822;x@y\0"]
        )

    def test_local_programs(self) -> None:
        """A program of this node is localhost to a filter, as it is with Postfix."""
        ground = Ground()
        ground.connect(host="", port=0, uid=1000)
        self.assertEqual(ground.end.all(b"C"), [b"localhost\x004\0\x00127.0.0.1\0"])

    def test_content_is_unstuffed(self) -> None:
        """Dots that SMTP doubled are single for a filter, wherever pieces are cut; by BDAT nothing
        was doubled.
        """
        head, body = b"A: b\r\n\r\n", b"..one\r\nx\r\n..\r\n...two\r\n"
        for cut in range(1, len(body)):
            ground = Ground()
            ground.connect()
            ground.send(head + body[:cut], body[cut:])
            self.assertEqual(b"".join(ground.end.all(b"B")), b".one\r\nx\r\n.\r\n..two\r\n")
            self.assertTrue(ground.stored.endswith(body))
        ground = Ground()
        ground.connect()
        ground.send(head + body, chunked=True)
        self.assertEqual(b"".join(ground.end.all(b"B")), body)

    def test_no_header(self) -> None:
        """What is no header is body to the filter, as it is to whoever receives the message."""
        for content, fields, body in (
            (b"Hello\r\n\r\n..more\r\n", [], b"Hello\r\n\r\n.more\r\n"),
            (b"A: b\r\nHello\r\n\r\nmore\r\n", [b"A\0b\0"], b"Hello\r\n\r\nmore\r\n"),
            (b"\r\nHello\r\n", [], b"Hello\r\n"),
            (b"A: b\r\n c\r\n", [b"A\0b\n c\0"], b""),
        ):
            ground = Ground()
            ground.connect()
            ground.send(content)
            self.assertEqual(ground.end.all(b"L"), fields)
            self.assertEqual(b"".join(ground.end.all(b"B")), body)

    def test_a_cut_header(self) -> None:
        """Of a header beyond header-limit the rest is body; nothing is hidden from the filter."""
        ground = Ground()
        ground.house = House((ground.policy,), header_limit=4096)
        ground.connect()
        content = b"A: b\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 200 + b"\r\n..Hello\r\n"
        ground.send(content)
        seen = b"".join(
            p.replace(b"\0", b": ", 1).replace(b"\0", b"\r\n") for p in ground.end.all(b"L")
        )
        seen += b"".join(ground.end.all(b"B"))
        self.assertEqual(seen, content.replace(b"..Hello", b".Hello"))

    def test_a_large_body(self) -> None:
        """A large body goes in full packets while it comes, and no more than one is held."""
        ground = Ground()
        ground.connect()
        line = b"x" * 998 + b"\r\n"
        ground.send(b"A: b\r\n\r\n", *[line * 30] * 20)
        sizes = [len(p) for p in ground.end.all(b"B")]
        self.assertEqual(sum(sizes), 600_000)
        self.assertEqual(set(sizes[:-1]), {65_535})

    def test_leading_space(self) -> None:
        """A filter that wants fields exactly as they stand gets them so, and its own are not touched."""
        ground = Ground(MemoryFilter(E=said(b"h", b"X-Y\0 v;\n\t  b=1\0") + CONTINUE))
        ground.filter.steps = 0x100000
        ground.connect()
        ground.send(b"A:b\r\nC:  d\r\n\r\n")
        self.assertEqual(ground.end.all(b"L"), [b"A\0b\0", b"C\0  d\0"])
        self.assertIn(b"\r\nX-Y: v;\r\n\t  b=1\r\nA:b\r\n", ground.stored)

    def test_an_unwanted_body(self) -> None:
        """A filter without interest in bodies is not sent any."""
        ground = Ground()
        ground.filter.steps = 0x10
        ground.connect()
        ground.send(b"A: b\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 200)
        self.assertEqual(ground.end.letters(), b"CHMRTLNE")

    def test_a_slow_filter_without_answers(self) -> None:
        """A filter that answers no piece of a body is still waited for: nothing heaps up."""
        ground = Ground()
        ground.filter.steps, ground.filter.mute = 0x80000, b"B"
        ground.connect()
        ground.envelope()
        ground.wait(ground.reception.data())
        ground.wait(ground.reception.chunk(b"A: b\r\n\r\n"))
        transport: Any = ground.reception._association.notes[
            ground.policy._note
        ]._connection.transport
        transport.hold = True
        pause = ground.reception.chunk(b"x" * 998 + b"\r\n")
        while pause is None:
            pause = ground.reception.chunk(b"x" * 998 + b"\r\n")
        self.assertNoResult(pause)
        transport.hold = False
        self.assertIsNone(ground.wait(pause))
        self.assertEqual(ground.wait(ground.reception.end(None)).code, 250)

    def test_several_messages(self) -> None:
        """One connection serves an association; a message that came to nothing ends with ABORT."""
        ground = Ground()
        ground.connect()
        ground.send()
        ground.envelope()
        ground.reception.reset()
        ground.send()
        self.assertEqual(len(ground.filter.ends), 1)
        self.assertEqual(ground.end.letters(), b"CHMRTLLNBE" + b"MRA" + b"MRTLLNBE")

    def test_two_filters(self) -> None:
        """Two filters in the list have a connection each, and the first's no is final."""
        ground = Ground()
        other = MemoryFilter(M=said(b"r"))
        ground.surroundings.network.serve_service("tcp:127.0.0.1:8891", other)
        second = Milter(MilterSettings(socket="inet:127.0.0.1:8891"), ground.surroundings)
        ground.house = House((second, ground.policy))
        ground.connect()
        self.assertEqual(codes(ground.envelope())[0], 550)
        self.assertEqual(other.ends[0].letters(), b"CHMA")
        self.assertEqual(ground.end.letters(), b"CH")


class VerdictTests(SynchronousTestCase):
    def refused(self, letter: str, answer: bytes) -> tuple[Any, list[Rejected], Ground]:
        """The last answer of a client whose filter answers `letter` so."""
        ground = Ground(MemoryFilter(**{letter: answer}))
        greeted = ground.connect()
        answers = list(greeted)
        if not any(answers):
            answers = ground.envelope()
        if not any(answers):
            answers = [ground.content()]
        return answers, ground.house.kinds(Rejected), ground

    def test_refusals(self) -> None:
        """At every stage the client hears the filter's own reply, and nothing is queued."""
        own = said(b"y", b"550-5.7.9 Not this\r\n550 5.7.9 one\0")
        reply = Reply(550, "5.7.9", (b"Not this", b"one"))
        for letter, stage in (
            *(("C", "CONNECT"), ("H", "HELO"), ("M", "MAIL"), ("R", "RCPT"), ("T", "DATA")),
            *(("L", "END-OF-MESSAGE"), ("N", "END-OF-MESSAGE"), ("B", "END-OF-MESSAGE")),
            ("E", "END-OF-MESSAGE"),
        ):
            answers, rejected, ground = self.refused(letter, own)
            self.assertIn(reply, answers, letter)
            self.assertEqual(rejected[0].stage, stage)
            self.assertEqual(ground.house.offered, [])
            self.assertTrue(all(s.is_aborted for s in ground.house.spool.stagings))

    def test_short_refusals(self) -> None:
        """Reject and tempfail have words of ours; shutdown ends the association."""
        for letter in "HMRTLNBE":
            for answer, code in ((b"r", 550), (b"t", 451), (b"4", 421)):
                answers, _, _ = self.refused(letter, said(answer))
                self.assertIn(code, codes(answers), letter)
        for answer, code in ((b"r", 554), (b"t", 421), (b"4", 421)):
            self.assertIn(code, codes(self.refused("C", said(answer))[0]))

    def test_one_recipient(self) -> None:
        """A refused recipient is left out; the message goes to the others."""
        ground = Ground(MemoryFilter(R=[said(b"r"), CONTINUE]))
        ground.connect()
        self.assertEqual(
            codes(ground.envelope("b@example.com", "c@example.com")), [None, 550, None]
        )
        self.assertEqual(ground.content().code, 250)
        [recipient] = ground.house.offered[0][1].recipients
        self.assertEqual(recipient.address.text, b"c@example.com")

    def test_accept(self) -> None:
        """A filter that accepts a message early hears no more of it, and all of the next."""
        for letter, heard in (("M", b"M"), ("R", b"MR"), ("T", b"MRT"), ("L", b"MRTL")):
            ground = Ground(MemoryFilter(**{letter: [said(b"a"), CONTINUE]}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
            self.assertEqual(ground.end.letters(), b"CH" + heard)
            ground.filter.answers.clear()
            self.assertEqual(ground.send()[-1].code, 250)
            self.assertEqual(ground.end.letters(), b"CH" + heard + b"A" + b"MRTLLNBE")

    def test_accepted_associations(self) -> None:
        """A filter that wants nothing of a client is let go at once, and not asked again."""
        for letter, heard in (("C", b"CQ"), ("H", b"CHQ")):
            ground = Ground(MemoryFilter(**{letter: said(b"a")}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250)
            ground.clock.advance(0)
            self.assertEqual((ground.end.letters(), ground.filter.open_ends), (heard, 0))

    def test_discard(self) -> None:
        """A discarded message is answered as taken, and is nowhere; the log has the filter's name."""
        for letter in "MRTLNBE":
            ground = Ground(MemoryFilter(**{letter: [said(b"d")]}))
            ground.connect()
            self.assertEqual(ground.send()[-1].code, 250, letter)
            self.assertEqual((ground.house.offered, ground.house.spool.queued), ([], {}))
            self.assertIn(SOCKET, ground.house.kinds(Notice)[0].text)

    def test_changes(self) -> None:
        """What a filter changes at the end is what is stored: fields, sender, recipients."""
        changes = (
            said(b"h", b"X-Last\0last\0")
            + said(b"i", struct.pack(">I", 0) + b"X-First\0one\n\ttwo\0")
            + said(b"e", b"<bounce@Example.ORG>\0")
            + said(b"+", b"<c@example.com>\0")
            + said(b"+", b"<b@example.com>\0")
            + said(b"-", b"<d@EXAMPLE.com>\0")
        )
        ground = Ground(MemoryFilter(E=changes + CONTINUE))
        ground.connect()
        ground.envelope("b@example.com", "d@example.com")
        self.assertEqual(ground.content().code, 250)
        envelope = ground.house.offered[0][1]
        self.assertEqual(envelope.sender.text, b"bounce@Example.ORG")
        self.assertEqual(
            [r.address.text for r in envelope.recipients], [b"b@example.com", b"c@example.com"]
        )
        self.assertIn(b"\r\nX-First: one\r\n\ttwo\r\nX-Last: last\r\nFrom:", ground.stored)

    def test_changed_fields(self) -> None:
        """Fields that are there may be changed and removed; what is not there to change is added."""

        def change(name: bytes, number: int, value: bytes) -> bytes:
            return said(b"m", struct.pack(">I", number) + name + b"\0" + value + b"\0")

        changes = (
            change(b"authentication-results", 1, b"")
            + change(b"Authentication-Results", 2, b"")
            + change(b"Subject", 1, b"***SPAM*** x\n\ty")
            + change(b"X-Spam", 1, b"Yes")
            + change(b"X-None", 1, b"")
        )
        content = (
            b"A: b\r\nAuthentication-Results: forged;\r\n\tpass\r\nSubject: x\r\n y\r\n"
            b"AUTHENTICATION-RESULTS : too\r\nZ: z\r\n\r\n..body\r\n"
        )
        expected = b"X-Spam: Yes\r\nA: b\r\nSubject: ***SPAM*** x\r\n\ty\r\nZ: z\r\n\r\n..body\r\n"
        for chunked in (False, True):
            for cut in (0, 5, 40, len(content) - 10, len(content) - 8, len(content) - 3):
                ground = Ground(MemoryFilter(E=changes + CONTINUE))
                ground.connect()
                answers = ground.send(
                    *filter(None, (content[:cut], content[cut:])), chunked=chunked
                )
                self.assertEqual(answers[-1].code, 250)
                self.assertTrue(ground.stored.endswith(b"\r\n" + expected), ground.stored)
                self.assertNotIn(b"forged", ground.stored)

    def test_unchanged_content(self) -> None:
        """With a filter that changes nothing what is stored is what came, however it is shaped."""
        for content in (
            MESSAGE, b"\r\nx\r\n", b"A: b\r\n", b"A: b\r\n\r\n", b"no header\r\n", b"no\r\n\r\nA: b\r\n",
            b"A: b\r\n..x: y\r\n\r\n..\r\n", b"A: b\r\n" + b"X: y\r\n" * 900 + b"\r\nz\r\n",
        ):  # fmt: skip
            plain = Ground()
            plain.house = House((), header_limit=4096)
            plain.connect()
            plain.send(content)
            for cut in range(0, len(content), 1 + len(content) // 60):
                ground = Ground()
                ground.house = House((ground.policy,), header_limit=4096)
                ground.connect()
                ground.send(*filter(None, (content[:cut], content[cut:])))
                self.assertEqual(ground.stored, plain.stored)

    def test_a_named_transaction(self) -> None:
        """A transaction that its client named keeps its octets: it is asked by them whether it is whole."""
        change = said(b"m", struct.pack(">I", 1) + b"From\0x@y.z\0")
        ground = Ground(MemoryFilter(E=[CONTINUE, change + CONTINUE]))
        ground.connect()
        for code in (250, 451):
            ground.wait(
                ground.reception.mail(address("a@example.net"), {b"TRANSID": b"<%d@x>" % code})
            )
            ground.wait(ground.reception.rcpt(address("b@example.com"), {}))
            self.assertEqual(ground.content().code, code)
        self.assertTrue(ground.house.spool.stagings[0].content.endswith(MESSAGE))
        self.assertIn("a header that must stay", ground.lines()[0])

    def test_null_sender(self) -> None:
        """The sender may become the null reverse-path."""
        ground = Ground(MemoryFilter(E=said(b"e", b"<>\0") + CONTINUE))
        ground.connect()
        ground.send()
        self.assertTrue(ground.house.offered[0][1].sender.is_null)

    def test_quarantine(self) -> None:
        """Quarantine is hold: accepted, queued, and sent when an operator says so."""
        ground = Ground(MemoryFilter(E=said(b"q", b"virus\x1b?\0") + CONTINUE))
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        [queued] = ground.house.spool.queued.values()
        self.assertTrue(queued[1].held)
        self.assertIn("virus??", ground.house.kinds(Notice)[0].text)

    def test_no_recipient_left(self) -> None:
        """A message without any recipient left is dropped, as Sendmail does it."""
        ground = Ground(MemoryFilter(E=said(b"-", b"<b@example.com>\0") + CONTINUE))
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertEqual(ground.house.offered, [])

    def test_all_or_nothing(self) -> None:
        """One change that cannot be made: none is made, and on-failure decides."""
        changes = said(b"h", b"X-Y\0z\0") + said(b"+", b"<no address>\0")
        ground = Ground(MemoryFilter(E=changes + CONTINUE), **{"on-failure": "accept"})
        ground.connect()
        self.assertEqual(ground.send()[-1].code, 250)
        self.assertNotIn(b"X-Y", ground.stored)
        self.assertIn("an address that is none", ground.lines()[0])

    def test_unnegotiated_change(self) -> None:
        """A filter that changes what it did not negotiate is refused by name."""
        memory = MemoryFilter(E=said(b"b", b"new body") + CONTINUE)
        memory.actions = EVERYTHING & ~2
        ground = Ground(memory)
        ground.connect()
        self.assertEqual(ground.send()[-1], LATER)
        self.assertIn("did not negotiate: REPLACE_BODY", ground.lines()[0])


class SettingsTests(SynchronousTestCase):
    def test_sockets(self) -> None:
        """A filter's place is written as for Postfix, by address."""
        for text, endpoint in (
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("inet:127.0.0.1:8891", "tcp:127.0.0.1:8891"),
            ("inet:localhost:8891", "tcp:127.0.0.1:8891"),
            ("inet:[2001:db8::1]:8891", "tcp:[2001:db8::1]:8891"),
        ):
            self.assertEqual(MilterSettings(socket=text).socket, endpoint)

    def test_no_sockets(self) -> None:
        """What is none is said with what to write."""
        for text in (
            "",
            "/run/x",
            "unix:x",
            "unix:/" + "x" * 107,
            "inet:8891",
            "inet:a.b:1",
            "inet:127.0.0.1:0",
        ):
            with self.assertRaises(ValidationError) as caught:
                MilterSettings(socket=text)
            self.assertIn("write unix:/run/opendkim/opendkim.sock", str(caught.exception))

    def mistakes(self, *policies: str, more: str = "") -> list[str]:
        """What the configuration says of such `policies`."""
        blocks = "".join(f"  - {{{policy}}}\n" for policy in policies)
        try:
            load(f"{SAMPLE}policies:\n{blocks}{more}", "mta.yaml", Catalogue().find)
        except ConfigErrors as errors:
            return [str(mistake) for mistake in errors.mistakes]
        return []

    def test_times(self) -> None:
        """A filter that may take longer than a client waits for it is refused at the key's place; as it
        comes it fits.
        """
        milter = f"policy: milter, socket: '{SOCKET}'"
        self.assertEqual(self.mistakes(milter), [])
        self.assertEqual(self.mistakes(milter, more="intake: {policy-timeout: 51s}\n"), [])
        [line] = self.mistakes(f"{milter}, timeouts: {{end: 2m}}")
        self.assertIn("policies[0].timeouts.end: milter may take 120 s for one answer", line)
        [line] = self.mistakes(f"{milter}, timeouts: {{command: 50s}}")
        self.assertIn("policies[0].timeouts.command: milter may take 60 s", line)
        [line] = self.mistakes(milter, more="intake: {policy-timeout: 30s}\n")
        self.assertIn("intake.policy-timeout: 30 s: policies[0].timeouts.command lets", line)

    def test_before_what_signs(self) -> None:
        """The policy `dkim` stands behind every filter, or the configuration is refused."""
        path = os.path.abspath(self.mktemp())
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write("a key\n")
        domains = f"domains: [{{domain: example.org, selector: s1, key-file: {path}}}]"
        dkim, milter = f"policy: dkim, {domains}", f"policy: milter, socket: '{SOCKET}'"
        self.assertEqual(self.mistakes(milter, milter, dkim), [])
        [line] = self.mistakes(milter, dkim, milter)
        self.assertIn("policies[1].policy: dkim: milter in line 33 stands behind it", line)

    def test_defaults(self) -> None:
        """Unless told otherwise, what is not filtered waits."""
        self.assertEqual(MilterSettings(socket=SOCKET).on_failure, "tempfail")
