"""What the log spool keeps when callers go away, disks fail for a while, and defects happen."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Fenced
from mta.model import Intent, Report, Result, fresh_state
from mta.spool import journal
from mta.testing.clock import VirtualClock
from mta.testing.spool_lab import LogLab
from mta.testing.spool_suite import NOW, ISpoolTests, envelope


class SpoolCase(LogLab, SynchronousTestCase):
    """One owner over the forgetful disk; `stepping` puts its threads under the test's control."""

    result = ISpoolTests.result
    own = ISpoolTests.own
    accept = ISpoolTests.accept
    read = ISpoolTests.read
    queued = ISpoolTests.queued

    def setUp(self) -> None:
        self.clock = VirtualClock(NOW)

    def texts(self) -> str:
        return "\n".join(notice.text for notice in self.notices)


class CallerGoneTests(SpoolCase):
    """Whoever asked for a message is cancelled while a thread still reads it."""

    settings = {"big_message": 300 << 10, "segment_size": 1 << 20}
    stepping = True

    def test_opening_a_big_message(self) -> None:
        """A content that nobody wants any more when it was opened is closed again."""
        self.spool = self.own("a")
        name = self.accept(None, *[b"x" * 4094 + b"\r\n"] * 100)
        self.read(name)  # the segment's own descriptor stays open for readers
        before = self.disk.descriptors
        opening = self.spool.content(name)
        opening.cancel()
        self.failureResultOf(opening, CancelledError)
        self.pump()
        self.assertEqual(self.disk.descriptors, before)
        self.assertEqual(len(self.read(name)), 409_600 + len(b"Received: by us\r\n"))

    def test_segments_stay_pinned(self) -> None:
        """A segment is not given away while a thread reads in it, whoever still waits."""
        self.spool = self.own("a")
        name = self.accept(envelope(), b"x" * 1000 + b"\r\n")
        self.pump()
        log = self.spool._log
        log.active.clear()
        loading = self.spool.load(name)
        [pinned] = [s for s in log.ledger.segments.values() if s.pins]
        loading.cancel()
        self.failureResultOf(loading, CancelledError)
        self.assertEqual(pinned.pins, 1)
        self.pump()
        self.assertEqual(pinned.pins, 0)

    def test_closed_during_a_read(self) -> None:
        """An association dies while a piece of its big message is being read: the descriptor stays
        until the read is over, then goes; the message is none the worse.
        """
        self.spool = self.own("a")
        name = self.accept(None, *[b"x" * 4094 + b"\r\n"] * 100)
        self.read(name)  # the segment's own descriptor stays open for readers
        before = self.disk.descriptors
        content = self.result(self.spool.content(name))
        self.assertEqual(self.result(content.read()), b"Received: by us\r\n")
        reading = content.read()
        content.close()
        self.assertEqual(self.disk.descriptors, before + 1)
        self.pump()
        self.assertEqual(self.successResultOf(reading), b"")
        self.assertEqual(self.disk.descriptors, before)
        self.assertNotIn("damaged", self.texts())


class UpkeepTests(SpoolCase):
    def test_a_failed_checkpoint_is_tried_again(self) -> None:
        """A checkpoint that the disk refused is written as soon as it can be: else no segment is
        ever freed while mail is refused for want of room.
        """
        self.spool = self.own("a")
        upkeep = self.spool._log.upkeep
        known = lambda: [p for p in self.disk.paths() if "/ckpt/1." in p]  # noqa: E731
        before = known()
        upkeep._checkpoint_due, upkeep.written = True, 1 << 30
        self.disk.fail("write", 1, errno.ENOSPC, times=2)
        upkeep.kick()
        self.disk.heal()
        self.assertEqual(known(), before)
        self.assertIn("tried again later", self.texts())
        upkeep.kick()
        self.assertEqual(len(known()), len(before) + 1)

    def test_what_must_be_replayed_is_bounded(self) -> None:
        """Small records that fill no segment get a checkpoint before they are thousands, and not
        more often than once a second.
        """
        self.settings = {"segment_size": 8 << 20, "first_segment_size": 8 << 20}
        self.spool = self.own("a")
        log = self.spool._log
        upkeep = log.upkeep
        numbers = lambda: [p for p in self.disk.paths() if "/ckpt/1." in p]  # noqa: E731
        before = numbers()
        name = self.accept()
        for _ in range(60):
            entry = [Intent(name, f"smtp/out/{n}", (0,), "192.0.2.1:25") for n in range(100)]
            self.result(self.spool.journal([], entry))
        self.clock.advance(1.0)
        once = numbers()
        self.assertNotEqual(once, before)
        self.assertLess(upkeep._records, 4096)
        for _ in range(60):
            entry = [Intent(name, f"smtp/out/{n}", (0,), "192.0.2.1:25") for n in range(100)]
            self.result(self.spool.journal([], entry))
        self.assertEqual(numbers(), once)
        self.clock.advance(1.0)
        self.assertNotEqual(numbers(), once)

    def test_a_defect_leaves_nobody_waiting(self) -> None:
        """Facts that cannot be applied end the tenure: each of the waiting is told, none hangs."""
        self.stepping = True
        self.spool = self.own("a")
        fatal: list[Any] = []
        self.spool.on_fatal = fatal.append
        log = self.spool._log
        commits = []
        for _ in range(2):
            staging = self.spool.stage("smtp/in/1")
            staging.write(b"Subject: x\r\n\r\nx\r\n")
            message = envelope()
            commits.append(staging.commit(message, fresh_state(message), b"", None))

        def broken(*_: Any) -> None:
            raise ValueError("boom")

        log.ledger.message = broken
        self.pump()
        for committing in commits:
            self.failureResultOf(committing, Fenced)
        self.assertEqual(len(fatal), 1)
        self.failureResultOf(self.spool.journal((Result("x", "", None),), ()), Fenced)
        self.flushLoggedErrors()


class MemoryTests(SpoolCase):
    def test_reports_wait_on_disk(self) -> None:
        """Very many reports at once are not kept in memory until somebody takes them."""
        self.spool = self.own("a")
        self.patch(journal, "KEPT", 3)
        for number in range(6):
            name = self.accept()
            message = envelope()
            report = Report(f"{name}{number:08X}", message, b"Subject: failed\r\n\r\nx\r\n")
            self.result(self.spool.journal((Result(name, "", None, (report,)),), ()))
        self.assertLessEqual(len(self.spool._log.active), 3)
        for name in self.queued():
            self.assertEqual(self.read(name), b"Subject: failed\r\n\r\nx\r\n")
