"""The log: Postfix's shapes, JSON, one line an event whatever a peer wrote, and no line in vain."""

from __future__ import annotations

import json
import os
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.lines import JSONLines, PostfixLines, _delay, rfc3339, syslog_stamp
from mta.admin.logs import FLUSH_SECONDS, RETRY_SECONDS, SLICE, LogObserver
from mta.admin.settings import LogSettings
from mta.admin.sinks import FileSink, SyslogSink, automatic_target, sink_for
from mta.admin.text import mailbox, neutral
from mta.telemetry import (
    Accepted,
    Command,
    Connected,
    Disconnected,
    Notice,
    Rejected,
    Removed,
    Reported,
    Telemetry,
    Transferred,
    Transition,
)
from mta.testing.clock import VirtualClock
from mta.testing.executors import InlineExecutor, StepExecutor

WALL = 1_795_420_800.25
QID = "00001000000017"


def transferred(**changed: object) -> Transferred:
    event = Transferred(
        queue_id=QID,
        recipient=b"user@example.com",
        original=b"",
        connector="hub",
        kind="smtp",
        relay="mx.example.com[192.0.2.20]:25",
        delay=1.234,
        delays=(0.004, 0.05, 0.18, 1.0),
        enhanced="2.0.0",
        status="sent",
        reply="250 2.0.0 Ok: queued as 4ABC",
        vip="192.0.2.10",
        source="192.0.2.10",
    )
    return event._replace(**changed)


ACCEPTED = Accepted(
    QID,
    "smtp/in/7",
    "192.0.2.1",
    b"client.example",
    "ESMTP",
    b"a@b.example",
    1234,
    2,
    b"<x@y>",
    "192.0.2.10",
)
REJECTED = Rejected(
    "smtp/in/7",
    "192.0.2.1",
    "RCPT",
    "554 5.7.1 <c@d.example>: Relay access denied",
    b"a@b.example",
    b"c@d.example",
    b"client",
    "ESMTP",
)


def postfix(event: object, epoch: int = 3) -> list[str]:
    """The lines without time and host."""
    lines = PostfixLines("mta", "node", 42).lines(WALL, epoch, event)
    return [line.split(" node ", 1)[1] for line in lines]


class Shapes(SynchronousTestCase):
    """What parsers of Postfix's log key on."""

    def test_head(self) -> None:
        """A line on a file has syslog's time, the host, NAME/daemon[pid]."""
        line = PostfixLines("mta", "node", 42).lines(WALL, 1, Removed(QID))[0]
        self.assertRegex(
            line,
            r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d node mta/qmgr\[42\]: " + QID + ": removed$",
        )

    def test_syslog_head(self) -> None:
        """To /dev/log a line has facility mail and its severity, and no host."""
        shape = PostfixLines("mta", "node", 42, syslog=True)
        self.assertRegex(
            shape.lines(WALL, 1, Removed(QID))[0], r"^<22>\w{3} .{11} mta/qmgr\[42\]: "
        )
        self.assertRegex(
            shape.lines(WALL, 1, Notice("error", "spool", "x"))[0],
            r"^<19>.* mta/spool\[42\]: error: x$",
        )

    def test_priority(self) -> None:
        """A message that has one says so behind its client, and only such a message."""
        plain, urgent = postfix(ACCEPTED)[0], postfix(ACCEPTED._replace(priority=-3))[0]
        self.assertEqual(urgent, plain + ", priority=-3")
        local = postfix(ACCEPTED._replace(client="uid=7", priority=9))[0]
        self.assertTrue(local.endswith("uid=7 from=<a@b.example>, priority=9"), local)

    def test_connect_and_disconnect(self) -> None:
        """connect from, lost connection after, disconnect from, as smtpd says them."""
        self.assertEqual(
            [
                "mta/smtpd[42]: connect from unknown[192.0.2.1] vip=192.0.2.10 epoch=3 assoc=smtp/in/7"
            ],
            postfix(Connected("smtp/in/7", "192.0.2.1", 4711, "192.0.2.10")),
        )
        (behind,) = postfix(Connected("smtp/in/7", "192.0.2.1", 4711, "192.0.2.10", "10.0.0.5:99"))
        self.assertTrue(behind.endswith(" assoc=smtp/in/7 proxy=10.0.0.5:99"), behind)
        self.assertEqual(
            ["mta/smtpd[42]: disconnect from unknown[192.0.2.1] ehlo=1 quit=1 commands=2"],
            postfix(Disconnected("smtp/in/7", "192.0.2.1", "ehlo=1 quit=1 commands=2")),
        )
        self.assertEqual(
            [
                "mta/smtpd[42]: lost connection after DATA from unknown[2001:db8::1]",
                "mta/smtpd[42]: disconnect from unknown[2001:db8::1]",
            ],
            postfix(Disconnected("smtp/in/7", "2001:db8::1", "", "DATA")),
        )

    def test_accepted(self) -> None:
        """A message that came in is three lines: client, message-id, and active in the queue."""
        self.assertEqual(
            [
                f"mta/smtpd[42]: {QID}: client=unknown[192.0.2.1], vip=192.0.2.10, epoch=3, assoc=smtp/in/7, proto=ESMTP, helo=<client.example>",
                f"mta/cleanup[42]: {QID}: message-id=<x@y>",
                f"mta/qmgr[42]: {QID}: from=<a@b.example>, size=1234, nrcpt=2 (queue active)",
            ],
            postfix(ACCEPTED),
        )

    def test_submitted_locally(self) -> None:
        """A local program's message names its uid, as pickup does."""
        lines = postfix(ACCEPTED._replace(client="uid=1000"))
        self.assertEqual(f"mta/pickup[42]: {QID}: uid=1000 from=<a@b.example>", lines[0])
        self.assertEqual([], postfix(Connected("submit/in/1", "uid=1000", 0, "192.0.2.10")))
        self.assertEqual(
            ["mta/submit[42]: disconnect from uid=1000 quit=1 commands=1"],
            postfix(Disconnected("submit/in/1", "uid=1000", "quit=1 commands=1")),
        )

    def test_transferred(self) -> None:
        """to, relay, delay, delays, dsn, status (text); ours stand behind the text."""
        self.assertEqual(
            [
                f"mta/smtp[42]: {QID}: to=<user@example.com>, relay=mx.example.com[192.0.2.20]:25, delay=1.2, delays=0/0.05/0.18/1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4ABC) connector=hub vip=192.0.2.10 source=192.0.2.10 epoch=3"
            ],
            postfix(transferred()),
        )

    def test_deferred_with_original(self) -> None:
        """orig_to only where it differs; a deferral says when it is tried again."""
        [line] = postfix(
            transferred(
                original=b"rfc822;old@example.com",
                status="deferred",
                relay="",
                retry_in_seconds=300.0,
            )
        )
        self.assertIn("to=<user@example.com>, orig_to=<old@example.com>, relay=none, ", line)
        self.assertTrue(line.endswith(" epoch=3 retry_in=300"), line)
        [same] = postfix(transferred(original=b"rfc822;user@example.com"))
        self.assertNotIn("orig_to", same)

    def test_exporters_find_their_fields(self) -> None:
        """The regular expressions that exporters use for smtp lines match, with the right parts."""
        [line] = postfix(transferred(status="bounced", enhanced="5.1.1"))
        found = re.search(
            r"\bto=<([^>]*)>,.* relay=(\S+), delay=([\d.]+), delays=([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+), dsn=(\d\.\d+\.\d+), status=(\w+) \((.*)\)",
            line,
        )
        assert found is not None
        self.assertEqual(("user@example.com", "5.1.1", "bounced"), (found[1], found[8], found[9]))

    def test_rejected(self) -> None:
        """NOQUEUE: reject lines carry the reply, from, to, proto and helo (fail2ban)."""
        self.assertEqual(
            [
                "mta/smtpd[42]: NOQUEUE: reject: RCPT from unknown[192.0.2.1]: 554 5.7.1 <c@d.example>: Relay access denied; from=<a@b.example> to=<c@d.example> proto=ESMTP helo=<client> epoch=3 assoc=smtp/in/7"
            ],
            postfix(REJECTED),
        )
        [early] = postfix(REJECTED._replace(stage="CONNECT", recipient=b"", helo=b""))
        self.assertNotIn("from=<", early)
        [late] = postfix(REJECTED._replace(stage="END-OF-MESSAGE", queue_id=QID))
        self.assertIn(f" {QID}: reject: END-OF-MESSAGE from", late)

    def test_reported(self) -> None:
        """bounce says which report tells of which message, and qmgr what it says of every one."""
        queued = "mta/qmgr[42]: R1: from=<>, size=900, nrcpt=1 (queue active)"
        self.assertEqual(
            [f"mta/bounce[42]: {QID}: sender non-delivery notification: R1", queued],
            postfix(Reported(QID, "R1", "failed", 900, 1)),
        )
        self.assertEqual(
            [f"mta/bounce[42]: {QID}: sender delay notification: R1", queued],
            postfix(Reported(QID, "R1", "delayed", 900, 1)),
        )
        self.assertEqual(
            [f"mta/bounce[42]: {QID}: postmaster notification: R1", queued],
            postfix(Reported(QID, "R1", "postmaster notification", 900, 1)),
        )

    def test_house_events(self) -> None:
        """Transitions, operators' commands and notices are one line each."""
        self.assertEqual(
            ["mta/cluster[42]: ownership: standby -> acquiring on address: it came epoch=3"],
            postfix(Transition("ownership", "standby", "address", "acquiring", "it came")),
        )
        self.assertEqual(
            ['mta/control[42]: command from uid=0 gid=0 pid=9: queue-hold ids=["A"]'],
            postfix(Command(0, 0, 9, "queue-hold", 'ids=["A"]')),
        )
        self.assertEqual(
            ["mta/spool[42]: warning: Q1: disk is slow"],
            postfix(Notice("warning", "spool", "disk is slow", "Q1")),
        )
        self.assertEqual(
            ["mta/tap[42]: fatal: no address"], postfix(Notice("critical", "tap", "no address"))
        )
        self.assertEqual([], postfix(Notice("debug", "tap", "x")))

    def test_a_plugins_event(self) -> None:
        """An event that only a plugin knows is written, not dropped."""
        self.assertEqual(["mta/event[42]: int: text=7"], postfix(7))

    def test_delays(self) -> None:
        """Two significant digits, as Postfix prints them; clocks that went back show 0."""
        for seconds, text in [
            (-1, "0"),
            (0.004, "0"),
            (0.0149, "0.01"),
            (0.996, "1"),
            (1.0, "1"),
            (1.25, "1.2"),
            (9.96, "10"),
            (345.6, "346"),
        ]:
            self.assertEqual(text, _delay(seconds), seconds)

    def test_times(self) -> None:
        """RFC 3339 in UTC with milliseconds; syslog's day is padded with a blank."""
        self.assertEqual("2026-11-23T08:00:00.250Z", rfc3339(1_795_420_800.25))
        self.assertRegex(syslog_stamp(1_793_600_000), r"^Nov  [12] ")


class Foreign(SynchronousTestCase):
    """Nothing that a peer writes leaves its line or reaches a terminal as a control."""

    @given(
        st.binary(max_size=300), st.text(max_size=200), st.sampled_from([PostfixLines, JSONLines])
    )
    @settings(max_examples=120, deadline=None, derandomize=True)
    def test_any_octets_stay_in_their_line(self, octets: bytes, text: str, shape: type) -> None:
        """Any bytes in sender, recipient, helo, message-id or reply: one printable line an event."""
        made = shape("mta", "node", 1)
        for event, count in [
            (ACCEPTED._replace(sender=octets, helo=octets, message_id=octets), 3),
            (transferred(recipient=octets, original=octets + b"x", reply=text, relay=text), 1),
            (
                REJECTED._replace(
                    sender=octets, recipient=octets, helo=octets, reply=text, stage=text
                ),
                1,
            ),
            (Notice("error", "spool", text), 1),
            (Command(1, 1, 1, text, text), 1),
            (Transition(text, text, text, text, text), 1),
            (Connected("a", "x" + text, 1, text), 1),
        ]:
            lines = made.lines(WALL, 1, event)
            self.assertEqual(1 if shape is JSONLines else count, len(lines))
            for line in lines:
                self.assertTrue(line.isprintable(), repr(line))
                if shape is JSONLines:
                    self.assertEqual(type(event).__name__.lower(), json.loads(line)["event"])

    def test_a_forged_line_stays_inside(self) -> None:
        """An address that holds a line end and a whole forged line stays where it is."""
        forged = b"a\r\nNov 23 08:00:00 node mta/qmgr[1]: 4ABC: removed"
        [line] = postfix(transferred(recipient=forged))
        self.assertIn(r"to=<a\x0d\x0aNov 23", line)

    def test_a_forged_field_ends_nothing(self) -> None:
        """An address cannot close its angle bracket and go on with status=sent."""
        [line] = postfix(transferred(recipient=b'"x>, status=sent ("@e.example', status="bounced"))
        found = re.search(r"to=<([^>]*)>, relay=.* status=(\w+) \(", line)
        assert found is not None
        self.assertEqual("bounced", found[2])

    def test_invisible_characters_show(self) -> None:
        """Bidirectional overrides and line separators are escaped, plain UTF-8 is kept."""
        self.assertEqual(r"a\u202eb\u2028c", neutral("a\u202eb\u2028c"))
        self.assertEqual("jürgen@例え.jp", mailbox("jürgen@例え.jp".encode()))
        self.assertEqual(r"\x1b[2J\xff", neutral(b"\x1b[2J\xff"))

    def test_long_texts_are_cut(self) -> None:
        """A reply of a megabyte is a line of a few kilobytes."""
        [line] = postfix(transferred(reply="x" * 1_000_000))
        self.assertLess(len(line), 2000)
        self.assertIn("x... ", line.replace("...)", "... "))
        [encoded] = JSONLines("mta", "n", 1).lines(WALL, 1, transferred(reply="\x1b" * 1_000_000))
        self.assertLess(len(encoded), 40_000)


class JSONShape(SynchronousTestCase):
    def test_the_same_fields(self) -> None:
        """A JSON line has the time, where it was written, and every field of the event."""
        [line] = JSONLines("mta", "node", 42).lines(WALL, 3, transferred())
        fact = json.loads(line)
        self.assertEqual("2026-11-23T08:00:00.250Z", fact["time"])
        self.assertEqual(
            ("node", "mta", 42, 3, "transferred"),
            tuple(fact[k] for k in ("host", "name", "pid", "epoch", "event")),
        )
        self.assertEqual(
            ("user@example.com", [0.004, 0.05, 0.18, 1.0], None),
            (fact["recipient"], fact["delays"], fact["retry_in_seconds"]),
        )

    def test_no_field_twice(self) -> None:
        """An operator's pid does not hide the daemon's."""
        [line] = JSONLines("mta", "node", 42).lines(WALL, 3, Command(0, 0, 9, "status", ""))
        fact = json.loads(line, object_pairs_hook=list)
        self.assertEqual(len(fact), len(dict(fact)))
        self.assertEqual((42, 9), (dict(fact)["pid"], dict(fact)["event_pid"]))

    def test_level(self) -> None:
        """Notices under the level are not written; mail always is."""
        shape = JSONLines("mta", "node", 1, least=3)
        self.assertEqual([], shape.lines(WALL, 1, Notice("warning", "x", "y")))
        self.assertEqual(1, len(shape.lines(WALL, 1, Removed(QID))))


class MemorySink:
    wants_syslog = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.batches: list[int] = []
        self.writes = 0
        self.reopened = 0
        self.closed = False
        self.fault: OSError | None = None

    def write(self, lines: list[str]) -> None:
        self.writes += 1
        if self.fault is not None:
            raise self.fault
        self.lines += lines
        self.batches.append(len(lines))

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.closed = True


class Observing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.telemetry = Telemetry()
        self.sink = MemorySink()
        self.log = self.build(InlineExecutor())

    def build(self, executor: object, **changed: object) -> LogObserver:
        log = LogObserver(
            LogSettings(**changed),
            self.clock,
            executor,
            self.telemetry,
            host="node",
            environment={},
            make_sink=lambda target, environment: self.sink,
        )
        self.telemetry.attach(log)
        return log

    def said(self) -> list[str]:
        return [line.split("]: ", 1)[1] for line in self.sink.lines]

    def test_batches(self) -> None:
        """Events of a tenth of a second are written at once, in their order, with their times."""
        self.log.start()
        self.telemetry.event(Removed("A"))
        self.telemetry.event(Removed("B"))
        self.clock.advance(FLUSH_SECONDS - 0.01)
        self.assertEqual(0, self.sink.writes)
        self.clock.advance(0.01)
        self.assertEqual((1, ["A: removed", "B: removed"]), (self.sink.writes, self.said()))
        self.telemetry.event(Removed("C"))
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(["A: removed", "B: removed", "C: removed"], self.said())

    def test_nothing_before_the_fork(self) -> None:
        """What happens before the process has forked waits, and comes first."""
        self.telemetry.event(Removed("A"))
        self.clock.advance(10)
        self.assertEqual(0, self.sink.writes)
        self.log.start()
        self.assertEqual(["A: removed"], self.said())

    def test_epoch_is_that_of_the_event(self) -> None:
        """A line is marked with the epoch in which it was raised, not in which it was written."""
        self.log.start()
        self.log.epoch = 4
        self.telemetry.event(transferred())
        self.log.epoch = 5
        self.clock.advance(FLUSH_SECONDS)
        self.assertIn("epoch=4", self.sink.lines[0])

    def test_slices(self) -> None:
        """A thousand events do not hold the reactor: they are formatted in slices."""
        self.log.start()
        for number in range(2 * SLICE + 1):
            self.telemetry.event(Removed(str(number)))
        self.clock.advance(FLUSH_SECONDS)
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual([SLICE, SLICE, 1], self.sink.batches)
        self.assertEqual([f"{n}: removed" for n in range(2 * SLICE + 1)], self.said())

    def test_a_slow_log_loses_lines_and_says_so(self) -> None:
        """When the log cannot keep up memory stays bounded; the loss is counted and written."""
        executor = StepExecutor()
        log = self.build(executor, buffer=10)
        self.telemetry.detach(self.log)
        log.start()
        for number in range(25):
            self.telemetry.event(Removed(str(number)))
        self.assertEqual(15, self.telemetry.counter("mta_log_dropped_total").value)
        self.clock.advance(FLUSH_SECONDS)
        executor.run()
        self.assertEqual(10 + 1, len(self.sink.lines))
        self.assertIn(
            "warning: 15 log events were lost: more than 10 were waiting", self.sink.lines[-1]
        )

    def test_one_write_at_a_time(self) -> None:
        """While a write hangs no second one begins; what came meanwhile follows it."""
        executor = StepExecutor()
        log = self.build(executor)
        self.telemetry.detach(self.log)
        log.start()
        self.telemetry.event(Removed("A"))
        self.clock.advance(FLUSH_SECONDS)
        self.telemetry.event(Removed("B"))
        self.clock.advance(10)
        executor.run()
        self.assertEqual(["A: removed"], self.said())
        self.clock.advance(FLUSH_SECONDS)
        executor.run()
        self.assertEqual(["A: removed", "B: removed"], self.said())

    def test_a_failing_log_recovers(self) -> None:
        """A full disk loses lines, not mail; when there is room again the loss stands in the log."""
        self.log.start()
        self.sink.fault = OSError(28, "No space left on device")
        self.telemetry.event(Removed("A"))
        self.telemetry.event(Removed("B"))
        self.clock.advance(FLUSH_SECONDS)
        self.assertIn("No space left", self.log.trouble)
        self.assertEqual(2, self.telemetry.counter("mta_log_dropped_total").value)
        self.sink.fault = None
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual(1, len(self.sink.lines))
        self.assertIn("2 log events were lost: writing to auto failed", self.sink.lines[0])
        self.assertEqual("", self.log.trouble)
        self.telemetry.event(Removed("C"))
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual("C: removed", self.said()[-1])

    def test_a_broken_event_ends_nothing(self) -> None:
        """An event with a wrong field costs its own line only."""
        self.log.start()
        self.telemetry.event(transferred(delays=None))
        self.telemetry.event(Removed("B"))
        self.clock.advance(FLUSH_SECONDS)
        self.assertIn("error: Transferred cannot be written", self.sink.lines[0])
        self.assertEqual("B: removed", self.said()[1])

    def test_the_end(self) -> None:
        """What was raised last is written before the process ends, and the target closed."""
        self.log.start()
        for number in range(SLICE + 5):
            self.telemetry.event(Removed(str(number)))
        self.log.stop()
        self.assertEqual(SLICE + 5, len(self.sink.lines))
        self.assertTrue(self.sink.closed)

    def test_reopen(self) -> None:
        """SIGUSR1: the next write goes to the new file."""
        self.log.start()
        self.log.reopen()
        self.assertEqual(0, self.sink.reopened)
        self.telemetry.event(Removed("A"))
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(1, self.sink.reopened)


class Targets(SynchronousTestCase):
    def test_a_file_is_rotated(self) -> None:
        """After a rename the old name is made anew with the next line; nothing is lost."""
        path = self.mktemp()
        sink = FileSink(path)
        sink.write(["one"])
        os.rename(path, path + ".1")
        sink.write(["two"])
        sink.reopen()
        sink.write(["three"])
        sink.close()
        with open(path + ".1") as old, open(path) as new:
            self.assertEqual(("one\ntwo\n", "three\n"), (old.read(), new.read()))
        self.assertEqual(0o640, os.stat(path).st_mode & 0o777 | 0o040)

    def test_a_link_is_not_followed(self) -> None:
        """A symbolic link at the log's name is refused: somebody else chose that target."""
        path = self.mktemp()
        os.symlink("elsewhere", path)
        self.assertRaises(OSError, FileSink(path).write, ["x"])

    def test_syslog_sends_a_datagram_a_line(self) -> None:
        """Each line is a datagram of its own, cut where syslog daemons cut."""
        sent: list[bytes] = []

        class Socket:
            def __init__(self, path: str) -> None:
                self.path = path

            def send(self, octets: bytes) -> None:
                sent.append(octets)

        SyslogSink(open_socket=Socket).write(["<22>one", "<22>" + "é" * 9000])
        self.assertEqual(b"<22>one", sent[0])
        self.assertEqual(8192, len(sent[1]))

    def test_named_targets(self) -> None:
        """stderr, stdout, syslog and a path give their sinks."""
        names = [type(sink_for(t, {})).__name__ for t in ("stderr", "stdout", "syslog", "/x")]
        self.assertEqual(["DescriptorSink", "DescriptorSink", "SyslogSink", "FileSink"], names)
        self.assertIn(automatic_target({}), {"stderr", "syslog"})

    def test_the_journal_gets_syslog(self) -> None:
        """Run by systemd with its stream as stderr, lines go to /dev/log where it exists."""
        error = os.fstat(2)
        chosen = automatic_target({"JOURNAL_STREAM": f"{error.st_dev}:{error.st_ino}"})
        self.assertEqual("syslog" if os.path.exists("/dev/log") else automatic_target({}), chosen)

    def test_under_pacemaker(self) -> None:
        """Started by Pacemaker's agent, lines go to /dev/log where it exists."""
        chosen = automatic_target({"MTA_PACEMAKER_INSTANCE": "mta"})
        self.assertEqual("syslog" if os.path.exists("/dev/log") else automatic_target({}), chosen)

    def test_a_wrong_target_is_refused(self) -> None:
        """A misspelt target is an error of the configuration, not a file of that name."""
        self.assertRaises(ValueError, LogSettings, to="syslogg")
