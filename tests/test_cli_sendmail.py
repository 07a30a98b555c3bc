"""sendmail and the client behind it: what a program wrote arrives as it was, or the code says why."""

from __future__ import annotations

import io
import os
import re
import socket
from contextlib import redirect_stderr, redirect_stdout

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cli import message, sendmail, smtp
from mta.cli.addresses import mailboxes
from mta.cli.client import Place
from mta.cli.message import Message, encoded, lines_ended, stuffed
from mta.cli.output import CommandFailed

HELLO = b"220 vs.example.org ESMTP\r\n250-vs.example.org\r\n250-SIZE 1000000\r\n250-8BITMIME\r\n250-DSN\r\n250 PIPELINING\r\n"
QUEUED = b"250 2.0.0 Ok: queued as 0001ABC\r\n221 2.0.0 Bye\r\n"
ONE = HELLO + b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go\r\n" + QUEUED


class Dialogue:
    """A server whose replies lie ready; `said` is what the client sent."""

    def __init__(self, replies: bytes) -> None:
        self.near, self.far = socket.socketpair()
        self.far.sendall(replies)
        self.far.shutdown(socket.SHUT_WR)

    def said(self) -> bytes:
        self.near.close()
        self.far.settimeout(1)
        octets = b""
        try:
            while piece := self.far.recv(65536):
                octets += piece
        except ConnectionResetError:
            pass  # the client left without reading all replies
        self.far.close()
        return octets


class Programs(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(sendmail, "who", lambda environ: ("alice", "Alice A."))
        self.patch(smtp, "_own_name", lambda: "node")

    def run_sendmail(
        self, replies: bytes, text: bytes, *words: str
    ) -> tuple[int, list[bytes], str]:
        """Exit code, the lines that the MTA saw, standard error."""
        dialogue = Dialogue(replies)
        self.patch(sendmail, "connect_unix", lambda place: dialogue.near)
        with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
            code = sendmail.main(list(words), {}, io.BytesIO(text))
        return code, dialogue.said().split(b"\r\n"), err.getvalue()

    def envelope(self, lines: list[bytes]) -> tuple[bytes, list[bytes]]:
        mail = next(line for line in lines if line.startswith(b"MAIL"))
        return mail, [line for line in lines if line.startswith(b"RCPT")]

    def content(self, lines: list[bytes]) -> list[bytes]:
        return lines[lines.index(b"DATA") + 1 : lines.index(b".")]

    def test_the_usual_call(self) -> None:
        """sendmail -t -i: recipients from the header, Bcc gone, what is missing added."""
        text = (
            b"To: Bob <bob@example.com>\nBcc: secret@example.com\nSubject: hi\n\nline\n.\n..dots\n"
        )
        code, lines, err = self.run_sendmail(
            ONE.replace(b"250 2.1.5 Ok\r\n", b"250 2.1.5 Ok\r\n" * 2), text, "-t", "-i"
        )
        self.assertEqual((0, ""), (code, err))
        mail, recipients = self.envelope(lines)
        self.assertTrue(mail.startswith(b"MAIL FROM:<alice@vs.example.org> SIZE="), mail)
        self.assertEqual(
            [b"RCPT TO:<bob@example.com>", b"RCPT TO:<secret@example.com>"], recipients
        )
        content = self.content(lines)
        self.assertEqual(
            [
                b"To: Bob <bob@example.com>",
                b"Subject: hi",
                b'From: "Alice A." <alice@vs.example.org>',
            ],
            content[:3],
        )
        self.assertRegex(content[3], rb"^Date: \w{3}, \d+ \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}$")
        self.assertRegex(content[4], rb"^Message-ID: <[0-9a-f.]+@vs\.example\.org>$")
        self.assertEqual([b"", b"line", b"..", b"...dots"], content[5:])
        self.assertNotIn(b"secret", b"\n".join(content))
        self.assertEqual(b"QUIT", lines[-2])

    def test_a_lone_dot_ends(self) -> None:
        """Without -i a line of one dot ends the message; with -i or -oi it does not."""
        text = b"Subject: x\n\none\n.\ntwo\n"
        self.assertEqual(
            [b"one"], self.content(self.run_sendmail(ONE, text, "b@example.com")[1])[-1:]
        )
        for option in ("-i", "-oi"):
            content = self.content(self.run_sendmail(ONE, text, option, "b@example.com")[1])
            self.assertEqual([b"one", b"..", b"two"], content[-3:])

    def test_sender(self) -> None:
        """-f and -r name the sender, in one word or two; <> and an empty word are the null sender."""
        for words, sender in (
            (["-f", "x@y.example"], b"x@y.example"),
            (["-fx@y.example"], b"x@y.example"),
            (["-r", "Me <x@y.example>"], b"x@y.example"),
            (["-f", "<>"], b""),
            (["-f", ""], b""),
            (["-f", "root"], b"root@vs.example.org"),
        ):
            _, lines, _ = self.run_sendmail(ONE, b"Subject: x\n\n", *words, "b@example.com")
            self.assertTrue(
                self.envelope(lines)[0].startswith(b"MAIL FROM:<" + sender + b"> "), words
            )
        _, lines, _ = self.run_sendmail(ONE, b"Subject: x\n\n", "-f", "<>", "b@example.com")
        self.assertIn(b"From: MAILER-DAEMON@vs.example.org", lines)

    def test_names(self) -> None:
        """-F is quoted or encoded, so that no name can end its field."""
        _, lines, _ = self.run_sendmail(ONE, b"\n", "-F", 'A "B" <x>\r\nBcc: y', "b@example.com")
        self.assertIn(b'From: "A \\"B\\" <x>\\\\x0d\\\\x0aBcc: y" <alice@vs.example.org>', lines)
        _, lines, _ = self.run_sendmail(ONE, b"\n", "-F", "Jürgen", "b@example.com")
        self.assertIn(b"From: =?utf-8?b?SsO8cmdlbg==?= <alice@vs.example.org>", lines)

    def test_delivery_options(self) -> None:
        """-N, -R and -V become DSN parameters when the MTA offers them."""
        _, lines, _ = self.run_sendmail(
            ONE, b"\n", "-N", "success,failure", "-R", "hdrs", "-V", "a+b c", "b@example.com"
        )
        mail, recipients = self.envelope(lines)
        self.assertTrue(mail.endswith(b" RET=HDRS ENVID=a+2Bb+20c"), mail)
        self.assertEqual([b"RCPT TO:<b@example.com> NOTIFY=SUCCESS,FAILURE"], recipients)
        for words in (["-N", "sometimes"], ["-N", "never,success"], ["-R", "some"]):
            self.assertEqual(64, self.run_sendmail(ONE, b"\n", *words, "b@example.com")[0], words)
        without = ONE.replace(b"250-DSN\r\n", b"")
        mail, _ = self.envelope(self.run_sendmail(without, b"\n", "-R", "full", "b@example.com")[1])
        self.assertNotIn(b"RET", mail)

    def test_eight_bit(self) -> None:
        """An 8-bit body is declared."""
        mail, _ = self.envelope(
            self.run_sendmail(ONE, "Subject: x\n\nü\n".encode(), "b@example.com")[1]
        )
        self.assertTrue(mail.endswith(b" BODY=8BITMIME"))

    def test_resent(self) -> None:
        """A resent message goes to the Resent- recipients and to no others."""
        text = b"Resent-To: new@example.com\nResent-Bcc: hid@example.com\nTo: old@example.com\n\n"
        _, lines, _ = self.run_sendmail(
            ONE.replace(b"250 2.1.5 Ok\r\n", b"250 2.1.5 Ok\r\n" * 2), text, "-t"
        )
        self.assertEqual(
            [b"RCPT TO:<new@example.com>", b"RCPT TO:<hid@example.com>"], self.envelope(lines)[1]
        )
        self.assertNotIn(b"Resent-Bcc: hid@example.com", lines)

    def test_refusals(self) -> None:
        """Each refusal ends with the code that sysexits.h has for it."""
        for replies, code in (
            (b"", 75),
            (b"220 x\r\n", 75),
            (b"554 5.7.0 go away\r\n", 77),
            (b"nonsense\r\n", 76),
            (HELLO + b"451 4.3.0 later\r\n", 75),
            (HELLO + b"552 5.3.4 too big\r\n", 65),
            (HELLO + b"250 Ok\r\n550 5.1.1 no such user\r\n221 Bye\r\n", 67),
            (HELLO + b"250 Ok\r\n550 5.1.2 no such domain\r\n221 Bye\r\n", 68),
            (HELLO + b"250 Ok\r\n451 4.3.0 later\r\n", 75),
            (HELLO + b"250 Ok\r\n250 Ok\r\n354 go\r\n554 5.6.0 no\r\n", 65),
            (HELLO + b"250 Ok\r\n250 Ok\r\n354 go\r\n", 75),
            (HELLO + b"250 Ok\r\n250 Ok\r\n354 go\r\n452 4.3.1 full\r\n", 75),
            (HELLO + b"250 Ok\r\n250 Ok\r\n354 go\r\n250 Ok\r\n", 0),
        ):
            got, _, err = self.run_sendmail(replies, b"Subject: x\n\nbody\n", "b@example.com")
            self.assertEqual(code, got, replies)
            self.assertEqual(bool(code), err.startswith("sendmail: "), err)
            self.assertEqual(min(len(err), 1), err.count("\n"), err)

    def test_some_refused(self) -> None:
        """One recipient refused for good is told; the others get the message."""
        replies = HELLO + b"250 Ok\r\n550 5.1.1 <a@x>: unknown\x1b\r\n250 Ok\r\n354 go\r\n" + QUEUED
        code, lines, err = self.run_sendmail(replies, b"Subject: x\n\n", "a@x", "b@x")
        self.assertEqual(
            (67, "sendmail: <a@x> was refused: 550 5.1.1 <a@x>: unknown\\x1b\n"), (code, err)
        )
        self.assertIn(b".", lines)

    def test_later_for_one_is_later_for_all(self) -> None:
        """Refused for now: nothing is sent, so that trying again sends no doubles."""
        replies = HELLO + b"250 Ok\r\n250 Ok\r\n452 4.3.1 full\r\n"
        code, lines, err = self.run_sendmail(replies, b"Subject: x\n\n", "a@x", "b@x")
        self.assertEqual((75, False), (code, b"DATA" in lines))
        self.assertIn("nothing was sent", err)

    def test_away(self) -> None:
        """The daemon is away: 75, so that programs try again."""
        with redirect_stderr(io.StringIO()) as err:
            code = sendmail.main(
                ["b@example.com"], {"MTA_SOCKET": "/nowhere/control.sock"}, io.BytesIO(b"\n")
            )
        self.assertEqual(75, code)
        self.assertIn("/nowhere/submit.sock", err.getvalue())

    def test_wrong_calls(self) -> None:
        """No recipients, no addresses in the header, wrong words: 64 and 65, and nothing is asked."""
        for words, text, code in (
            ([], b"\n", 64),
            (["-t"], b"Subject: x\n\n", 65),
            (["-t"], b"To: a b c\n\n", 65),
            (["-t"], b"To: <x@y\n\n", 65),
            (["a b"], b"\n", 64),
            (["-Z"], b"\n", 64),
            (["-bv", "x@y"], b"\n", 64),
            (["x@y\n", "-f", "a@b\r\nRCPT TO:<z@z>"], b"\n", 64),
        ):
            got, lines, err = self.run_sendmail(HELLO, text, *words)
            self.assertEqual((code, [b""]), (got, lines), words)
            self.assertTrue(err.startswith("sendmail: "), err)

    def test_ignored(self) -> None:
        """Old options that mean nothing here are taken; aliases and queue runs are no-ops."""
        call = sendmail.parse(
            [
                "-oem",
                "-odb",
                "-U",
                "-v",
                "-n",
                "-m",
                "-G",
                "-B",
                "8BITMIME",
                "-h",
                "5",
                "-O",
                "X=y",
                "-q30m",
                "-i",
                "x@y",
            ]
        )
        self.assertEqual(([b"x@y"], False), (call.recipients, call.dot_ends))
        for words in (["-bi"], ["-bd"], ["-q"], ["-I"[:0] + "-q15m"]):
            self.assertEqual(0, sendmail.main(words, {}, io.BytesIO()), words)
        self.assertEqual([b"-q@x"], sendmail.parse(["--", "-q@x"]).recipients)

    def test_standby(self) -> None:
        """On a standby node the message goes by SMTP to the virtual address, the next one if need be."""
        there = Dialogue(ONE)
        dialled: list[tuple[str, int]] = []

        def dial(host: str, port: int) -> socket.socket:
            dialled.append((host, port))
            if host == "192.0.2.10":
                raise ConnectionRefusedError(111, "Connection refused")
            return there.near

        self.patch(smtp, "dial_tcp", dial)
        standby = b"421-4.3.2 vs is not on this node\r\n421-4.3.2 relay-to=192.0.2.10:25\r\n421 4.3.2 relay-to=[2001:db8::10]:2525\r\n"
        code, lines, _ = self.run_sendmail(standby, b"Subject: x\n\nbody\n", "b@example.com")
        self.assertEqual((0, [b""]), (code, lines))
        self.assertEqual([("192.0.2.10", 25), ("2001:db8::10", 2525)], dialled)
        self.assertIn(b"body", there.said().split(b"\r\n"))

    def test_standby_everywhere(self) -> None:
        """When the virtual server does not answer either: 75, and which address was tried."""

        def dial(host: str, port: int) -> socket.socket:
            raise TimeoutError(110, "Connection timed out")

        self.patch(smtp, "dial_tcp", dial)
        code, _, err = self.run_sendmail(
            b"421 4.3.2 relay-to=192.0.2.10:25\r\n", b"\n", "b@example.com"
        )
        self.assertEqual(
            (75, "sendmail: this node is standby, and 192.0.2.10:25: Connection timed out\n"),
            (code, err),
        )

    def test_dialogue_on_standard_input(self) -> None:
        """sendmail -bs passes a dialogue on, with the replies after the input has ended."""
        near, far = socket.socketpair()
        read, write = os.pipe()
        back, out = os.pipe()
        os.write(write, b"EHLO x\r\nQUIT\r\n")
        os.close(write)
        far.sendall(b"220 x\r\n250 x\r\n221 Bye\r\n")
        far.shutdown(socket.SHUT_WR)
        smtp.pump(near, read, out)
        self.assertEqual(b"220 x\r\n250 x\r\n221 Bye\r\n", os.read(back, 100))
        near.close()
        for descriptor in (read, back, out):
            os.close(descriptor)
        far.close()


class Headers(SynchronousTestCase):
    def message(self, text: bytes) -> Message:
        return message.read(io.BytesIO(text), dot_ends=False)

    def wire(self, text: bytes) -> bytes:
        return b"".join(self.message(text).wire(b"a@b", "", "vs"))

    def test_where_the_header_ends(self) -> None:
        """At an empty line, or before the first line that is no field: then it is body."""
        self.assertTrue(self.wire(b"Hello\nthere\n").endswith(b"\r\n\r\nHello\r\nthere\r\n"))
        self.assertTrue(
            self.wire(b"To: x@y\nno field here\n").endswith(b"\r\n\r\nno field here\r\n")
        )
        self.assertTrue(self.wire(b"To: x@y\r\n\r\nbody").startswith(b"To: x@y\r\nFrom: a@b\r\n"))
        self.assertTrue(self.wire(b"").endswith(b">\r\n\r\n"))
        self.assertEqual(1, self.wire(b"To: x@y").count(b"\r\n\r\n"))

    def test_an_mbox_line(self) -> None:
        """The From line of an mbox is dropped, as sendmail does."""
        self.assertTrue(
            self.wire(b"From alice Mon Nov 23\nTo: x@y\n\nFrom here\n").startswith(b"To: x@y\r\n")
        )
        self.assertTrue(self.wire(b"To: x@y\n\nFrom here\n").endswith(b"\r\n\r\nFrom here\r\n"))

    def test_no_field_is_smuggled(self) -> None:
        """A lone CR in a header does not become a line of its own."""
        wire = self.wire(b"Subject: x\rBcc: evil@example.com\nTo: x@y\n\n")
        self.assertTrue(wire.startswith(b"Subject: x Bcc: evil@example.com\r\n"))

    def test_folded(self) -> None:
        """Addresses on folded lines count, and a folded Bcc goes as a whole."""
        made = self.message(b"To: a@x,\n b@x\nBcc: c@x,\n\td@x\nSubject: s\n\n")
        self.assertEqual([b"a@x", b"b@x", b"c@x", b"d@x"], made.recipients())
        self.assertNotIn(b"d@x", b"".join(made.wire(b"", "", "vs")))

    def test_big(self) -> None:
        """A message over a megabyte waits in a file and arrives whole."""
        body = b"x" * 70 + b"\n"
        text = b"Subject: big\n\n" + body * 30_000
        wire = self.wire(text)
        self.assertEqual(30_000, wire.count(b"x" * 70 + b"\r\n"))

    def test_what_is_there_is_not_added(self) -> None:
        """A message with From, Date and Message-ID is passed on octet by octet."""
        text = b"From: a@b\r\nDate: today\r\nMessage-ID: <x>\r\n\r\nbody\r\n"
        self.assertEqual(text, self.wire(text))

    @given(
        st.lists(
            st.sampled_from(
                [b"a", b".", b"\n", b"\r", b"\r\n", b"\n.", b"\x00", b"\xff", b"..", b" "]
            ),
            max_size=40,
        ),
        st.integers(1, 5),
    )
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_any_body(self, parts: list[bytes], size: int) -> None:
        """Any body becomes CRLF lines without a lone CR or LF or an undoubled dot, cut anywhere."""
        body = b"".join(parts)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        wire = b"".join(stuffed(lines_ended(iter(pieces))))
        rest = wire.replace(b"\r\n", b"")
        self.assertNotIn(b"\r", rest)
        self.assertNotIn(b"\n", rest)
        lines = wire.split(b"\r\n")
        self.assertEqual(b"", lines.pop())
        for line in lines:
            self.assertTrue(not line.startswith(b".") or line.startswith(b".."), wire)
        want = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if want[-1] == b"":
            want.pop()
        self.assertEqual(want, [line[1:] if line.startswith(b".") else line for line in lines])

    def test_encoded_words(self) -> None:
        """Long subjects beyond ASCII are several encoded words of at most 75 characters."""
        self.assertEqual(b"plain", encoded("plain"))
        made = encoded("ü" * 60)
        self.assertTrue(all(len(line.strip()) <= 75 for line in made.split(b"\n")), made)
        from email.header import decode_header, make_header

        self.assertEqual("ü" * 60, str(make_header(decode_header(made.decode().replace("\n", "")))))


ATOM = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_+", min_size=1, max_size=8)
ADDRESS = st.builds(lambda local, domain: f"{local}@{domain}.example", ATOM, ATOM)
PHRASE = st.one_of(
    ATOM,
    st.builds(
        lambda t: '"' + t.replace("\\", "").replace('"', "") + '"',
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10),
    ),
)
MAILBOX = st.one_of(
    ADDRESS,
    st.builds(lambda p, a: f"{p} <{a}>", PHRASE, ADDRESS),
    st.builds(lambda a: f"{a} (comment, with <x@y> \\) in it)", ADDRESS),
    st.builds(lambda a: f"<{a}>", ADDRESS),
)


class Addresses(SynchronousTestCase):
    @given(st.lists(MAILBOX, min_size=1, max_size=5), st.sampled_from([", ", ",\n ", " ,\t"]))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_lists(self, boxes: list[str], comma: str) -> None:
        """Any well-formed list gives its addresses: not its comments, not its quoted names."""
        text = comma.join(boxes)
        expected = re.findall(r"[a-z0-9_+-]+@[a-z0-9_+-]+\.example", text)
        self.assertEqual(expected, [a.decode() for a in mailboxes(text.encode())])

    @given(st.lists(MAILBOX, max_size=3), st.lists(MAILBOX, max_size=2))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_groups(self, inside: list[str], after: list[str]) -> None:
        """The members of a group count, its name does not; a group may be empty."""
        text = ", ".join([f"My friends: {', '.join(inside)};", *after])
        found = [a.decode() for a in mailboxes(text.encode())]
        alone = [a.decode() for box in [*inside, *after] for a in mailboxes(box.encode())]
        self.assertEqual(alone, found)

    @given(st.binary(max_size=60))
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_any_octets(self, octets: bytes) -> None:
        """Rubbish is an error or addresses that cannot break a command line; never a traceback."""
        try:
            found = mailboxes(octets)
        except ValueError:
            return
        for address in found:
            self.assertTrue(address and all(o >= 0x20 and o != 0x7F for o in address), address)

    def test_odd_but_right(self) -> None:
        """Quoted local parts, blanks around dots, routes, literals, comments within."""
        for text, want in (
            (b'"john doe"@x.example', [b'"john doe"@x.example']),
            (b'"a,b" <"c d"@x>', [b'"c d"@x']),
            (b'"a\\"<b>"@x', [b'"a\\"<b>"@x']),
            (b"john . doe @ x . example", [b"john.doe@x.example"]),
            (b"<@a,@b:u@c>", [b"u@c"]),
            (b"u@[IPv6:2001:db8::1], v@x", [b"u@[IPv6:2001:db8::1]", b"v@x"]),
            (b"u(c (nested))@x", [b"u@x"]),
            (b"undisclosed-recipients:;", []),
            (b"", []),
            (b"root, ", [b"root"]),
        ):
            self.assertEqual(want, mailboxes(text), text)

    def test_wrong(self) -> None:
        """What could be read in two ways is an error."""
        for text in (
            b"a b@x",
            b"<a@x> <b@x>",
            b"<a@x> b@x",
            b"<a@x",
            b'"a',
            b"(a",
            b"<>",
            b"a@",
            b"@x",
            b"a@x\x00",
            b"x" * 400,
            b"<a@x>:b@y",
            b"a@b@",
            b"a\\",
            b"u@[1",
        ):
            self.assertRaises(ValueError, mailboxes, text)


class Places(SynchronousTestCase):
    def test_a_path_too_long(self) -> None:
        """A socket path that the kernel cannot take is an error with its name, not a traceback."""
        failed = self.assertRaises(
            CommandFailed, sendmail._connect, Place("/" + "x" * 200, "--socket")
        )
        self.assertEqual(75, failed.exit_code)
