"""The log spool keeps every promise of a store, and its own beyond them.

Long because owners, segments, damage and full disks share one laboratory and its words.
"""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Corrupt, Fenced, Full, StartRefused, Unavailable
from mta.model import (
    Doubt,
    Fencing,
    Guarantees,
    Intent,
    QueueAct,
    QueueFilter,
    Result,
    Sharing,
    fresh_state,
)
from mta.spool import checkpoint, envelopes, segment
from mta.spool.directory import Directory
from mta.spool.epoch import OwnEpoch, _take_slot, read_epochs, slots
from mta.spool.ledger import Ledger
from mta.spool.priorities import PRIORITIES
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.spool_lab import DIRECTORY, LogLab
from mta.testing.spool_suite import (
    ENDS,
    NOW,
    IAssociationsTests,
    ISpoolTests,
    claim,
    deferred_state,
    envelope,
)


class LogSpoolContractTests(LogLab, IAssociationsTests, ISpoolTests, SynchronousTestCase):
    """Segments of 64 KiB, so that every test crosses several."""


class OwnerTests(LogLab, SynchronousTestCase):
    """Two owners, threads that stall, and what lies on disk."""

    result = ISpoolTests.result
    refused = ISpoolTests.refused
    own = ISpoolTests.own
    accept = ISpoolTests.accept
    read = ISpoolTests.read
    queued = ISpoolTests.queued
    due = ISpoolTests.due

    def setUp(self) -> None:
        self.clock = VirtualClock(NOW)

    def seg(self) -> list[str]:
        return [p for p in self.disk.paths() if "/seg/" in p]

    def texts(self) -> str:
        return "\n".join(notice.text for notice in self.notices)

    # a superseded owner

    def test_stalled_before_the_write(self) -> None:
        """An owner that stalls before its write and wakes after a takeover acknowledges nothing."""
        self.stepping = True
        self.spool = old = self.own("a")
        sleeper = self.executors[-1]
        message = envelope()
        staging = old.stage("smtp/in/1")
        committing = staging.commit(message, fresh_state(message), b"R: x\r\n", None)
        self.executors = []
        taker = self.own("b")
        sleeper.run()
        self.failureResultOf(committing, Fenced)
        self.spool = taker
        assert self.queued() == []
        third = self.own("c")
        self.spool = third
        assert self.queued() == []

    def test_stalled_between_sync_and_check(self) -> None:
        """Written before the takeover's scan, checked after it: no reply, and the taker has it."""
        self.stepping = True
        self.spool = old = self.own("a")
        sleeper = self.executors[-1]
        first = self.accept()
        message = envelope()
        staging = old.stage("smtp/in/1")
        committing = staging.commit(message, fresh_state(message), b"R: x\r\n", None)
        self.executors = []
        takers: list[Any] = []
        own, is_current = old._own, OwnEpoch.is_current

        def stall(one: OwnEpoch) -> bool:
            if one is own and not takers:
                takers.append(self.own("b"))
            return is_current(one)

        with mock_attribute(OwnEpoch, "is_current", stall):
            sleeper.work_loop()
        sleeper.run()
        self.failureResultOf(committing, Fenced)
        self.spool = takers[0]
        assert self.queued() == [first, staging.queue_id]

    def test_reply_that_waits_for_the_reactor(self) -> None:
        """Durable and checked, but abandoned before the reactor heard of it: no reply."""
        self.stepping = True
        self.spool = self.own("a")
        message = envelope()
        committing = self.spool.stage("smtp/in/1").commit(
            message, fresh_state(message), b"R: x\r\n", None
        )
        executor = self.executors[-1]
        executor.work_loop()
        self.spool.abandon()
        self.failureResultOf(committing, Fenced)
        executor.run()

    def test_abandoned_between_two_replies(self) -> None:
        """The first of a group finds the epoch superseded: the second gets no reply, and no bug."""
        self.stepping = True
        self.spool = self.own("a")
        message = envelope()
        first, second = (
            self.spool.stage(f"smtp/in/{n}").commit(
                message, fresh_state(message), b"R: x\r\n", None
            )
            for n in (1, 2)
        )
        first.addCallback(lambda _durable: self.spool.abandon())
        self.executors[-1].run()
        self.successResultOf(first)
        self.failureResultOf(second, Fenced)

    def test_old_owner_destroys_nothing(self) -> None:
        """A superseded owner that goes on working unlinks no segment and no big file."""
        self.settings = {"big_message": 8 << 10}
        self.spool = old = self.own("a")
        names = [self.accept(None, b"x" * 5000) for _ in range(30)]
        big = self.accept(None, b"B" * 20_000)
        self.stepping = True
        taker = self.own("b")
        files = [p for p in self.disk.paths() if "/1." in p and "/ckpt/" not in p]
        log = old._log
        for one in list(log.ledger.segments.values()):
            assert log.upkeep._destroy(one, 0) is None
        log._unlink_big(log.ledger.bigs[log.ledger.index.find(big)])
        log.upkeep._sweep_names(["seg/1.1"])
        assert set(files) <= set(self.disk.paths())
        self.spool = taker
        assert self.queued() == [*names, big]

    def test_late_checkpoint_of_an_old_owner(self) -> None:
        """A checkpoint that a superseded owner finishes late is never read by anyone."""
        self.spool = old = self.own("a")
        name = self.accept()
        pieces = checkpoint.encode(Ledger(), 1, 99, NOW, [])
        taker = self.own("b")
        checkpoint.write(old._directory, 1, 99, pieces)
        self.spool = taker
        assert self.queued() == [name]
        self.spool = self.own("c")
        assert self.queued() == [name]

    def test_epoch_without_seal_never_acted(self) -> None:
        """A node that died between publish and seal is passed over by the next one."""
        self.spool = self.own("a")
        name = self.accept()
        dead = self.make_spool("b")
        self.result(dead.publish(claim("b"), 1))
        self.result(dead.recover())
        self.spool = self.own("c")
        assert self.recovery.predecessor == 1
        assert self.queued() == [name]

    def test_link_refuses_a_taken_number(self) -> None:
        """Two nodes that read the same highest epoch: one publishes, the other is Fenced."""
        self.own("a")
        second = self.make_spool("b")
        taken = Directory(self.disk, DIRECTORY)
        real = self.disk.listdir
        self.disk.listdir = lambda path: [n for n in real(path) if n != "1"]
        try:
            self.failureResultOf(second.publish(claim("b"), 0), Fenced)
        finally:
            del self.disk.listdir
        assert sorted(taken.disk.listdir(taken.join("epoch"))) == ["1", "slot-1"]

    def test_abandon_with_a_stuck_thread(self) -> None:
        """A hanging disk call is seen in seconds; abandon answers everyone at once all the same."""
        self.stepping = True
        self.spool = self.own("a")
        message = envelope()
        committing = self.spool.stage("smtp/in/1").commit(message, fresh_state(message), b"", None)
        committer = self.spool._log.committer
        committer.busy_since = self.clock.monotonic()
        self.clock.advance(6)
        assert self.spool.stuck_seconds() == 6.0
        self.spool.abandon()
        self.failureResultOf(committing, Fenced)
        assert self.spool.stuck_seconds() == 6.0
        self.failureResultOf(self.spool.publish(claim("a"), 1), Unavailable)

    # groups

    def test_one_sync_for_a_group(self) -> None:
        """What came in while the last sync ran goes into the next one, in one sync."""
        self.stepping = True
        self.spool = self.own("a")
        self.accept()
        before = self.disk.counts["sync"]
        message = envelope()
        commits = [
            self.spool.stage("smtp/in/1").commit(message, fresh_state(message), b"", None)
            for _ in range(20)
        ]
        self.executors[-1].work_loop()
        assert self.disk.counts["sync"] == before + 1
        self.executors[-1].run()
        for commit in commits:
            self.successResultOf(commit)

    def test_associations_are_not_synced_by_themselves(self) -> None:
        """Opening and closing an association costs no sync."""
        self.spool = self.own("a")
        before = self.disk.counts["sync"]
        for n in range(100):
            self.spool.open_association(f"smtp/in/{n}", ENDS, True)
            self.spool.close_association(f"smtp/in/{n}")
        assert self.disk.counts["sync"] == before

    def test_back_pressure(self) -> None:
        """A peer that sends faster than the disk writes is asked to pause; memory stays bounded."""
        self.stepping = True
        self.spool = self.own("a")
        staging = self.spool.stage("smtp/in/1")
        paused = None
        written = 0
        while paused is None:
            paused = staging.write(b"x" * 65536)
            written += 65536
        assert written <= 512 << 10
        self.assertNoResult(paused)
        self.pump()
        self.successResultOf(paused)
        staging.abort()
        self.pump()
        assert not [p for p in self.disk.paths() if "/part/" in p]

    def test_no_circle_of_a_message(self) -> None:
        """What was written is freed in that moment: nobody has to look for circles of it. The least
        of three counts, for what other tests left may come free at any time.
        """
        self.spool = self.own("a")
        gc.disable()
        self.addCleanup(gc.enable)

        def left_by(messages: int) -> int:
            gc.collect()
            for _ in range(messages):
                self.result(self.spool.journal([Result(self.accept(), "out/1", None)], []))
            return gc.collect()

        self.assertLess(min(left_by(20) - left_by(0) for _ in range(3)), 20)

    def test_resident_is_bounded(self) -> None:
        """Contents stay in memory within their budget; the others are read back, unchanged."""
        self.settings = {"resident": 40_000}
        self.spool = self.own("a")
        names = [self.accept(None, b"%d" % (n % 10) * 8000) for n in range(20)]
        log = self.spool._log
        assert 0 < log._resident_octets <= 40_000
        for n, name in enumerate(names):
            assert self.read(name) == b"Received: by us\r\n" + b"%d" % (n % 10) * 8000

    # disk errors

    def test_failed_sync_closes_the_segment(self) -> None:
        """After a failed sync nothing is ever written to that segment again; the mail is safe."""
        self.spool = self.own("a")
        first = self.accept()
        before = self.seg()
        current = self.spool._log.committer._segment.number
        self.disk.fail("sync", 1)
        second = self.accept()
        assert self.spool._log.committer._segment.number != current
        touched: list[str] = []
        self.disk.on_step = lambda kind, path: touched.append(path)
        third = self.accept()
        assert not [p for p in touched if p.endswith(f"/seg/1.{current}")]
        self.disk.on_step = None
        self.disk.power_cut("none")
        self.spool = self.own("b")
        assert self.queued() == [first, second, third]
        assert before

    def test_unwritable_log_ends_the_tenure(self) -> None:
        """What cannot be made durable in the next segment either: no reply, and it is said."""
        self.spool = self.own("a")
        heard: list[Any] = []
        self.spool.on_fatal = heard.append
        self.disk.fail("sync", 1, times=100)
        message = envelope()
        committing = self.spool.stage("smtp/in/1").commit(message, fresh_state(message), b"", None)
        self.failureResultOf(committing, Fenced)
        assert len(heard) == 1 and "durable" in str(heard[0])
        self.assertRaises(Fenced, self.spool.check)
        self.assertRaises(Fenced, self.spool.stage, "smtp/in/1")

    def test_full_above_the_reserve(self) -> None:
        """New mail is answered Full before the reserve is touched; outcomes are still recorded."""
        self.spool = self.own("a")
        names = [self.accept() for _ in range(5)]
        used = self.disk.capacity - self.disk.free_octets("/")
        self.disk.capacity = used + 100_000
        self.spool.heartbeat()
        self.assertRaises(Full, self.spool.stage, "smtp/in/1")
        for name in names:
            for _ in range(20):
                state = deferred_state(envelope(), NOW + 60)
                self.result(self.spool.journal([Result(name, "out/1", state)], []))
            self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert self.queued() == []
        self.spool = self.own("b")
        assert self.queued() == []

    def test_big_message_leaves_the_reserve(self) -> None:
        """A big message that would eat into the reserve is refused as Full, and leaves no file."""
        self.spool = self.own("a")
        used = self.disk.capacity - self.disk.free_octets("/")
        self.disk.capacity = used + (1 << 20)
        staging = self.spool.stage("smtp/in/1")
        for _ in range(40):
            staging.write(b"x" * 65536)
        message = envelope()
        committing = staging.commit(message, fresh_state(message), b"", None)
        self.failureResultOf(committing, Full)
        assert not [p for p in self.disk.paths() if "/part/" in p or "/big/" in p]
        self.accept()

    def test_takeover_on_a_full_disk(self) -> None:
        """Killed on a full disk: the next owner takes over in the room that the reserve gives."""
        self.spool = self.own("a")
        names = [self.accept() for _ in range(5)]
        assert any(p.endswith("/reserve") for p in self.disk.paths())
        # Room for the epoch file and no more: the reserve may go only after publishing.
        self.disk.capacity = self.disk.capacity - self.disk.free_octets("/") + 4096
        self.disk.power_cut("none")
        self.disk.capacity -= self.disk.free_octets("/") - 4096
        self.spool = self.own("b")
        assert self.queued() == names
        self.result(self.spool.journal([Result(names[0], "out/1", None)], []))
        assert self.queued() == names[1:]

    def test_takeover_on_a_disk_without_a_block(self) -> None:
        """Killed with not one block left: a slot made ahead takes the claim, twice in a row."""
        self.spool = self.own("a")
        names = [self.accept() for _ in range(5)]
        for node in "bc":
            assert [p for p in self.disk.paths() if "/epoch/slot-" in p]
            assert any(p.endswith("/reserve") for p in self.disk.paths())
            self.disk.power_cut("none")
            self.disk.capacity -= self.disk.free_octets("/")
            assert self.disk.free_octets("/") == 0
            self.spool = self.own(node)
            assert self.queued() == names
            record = read_epochs(self.spool._directory)[-1]
            assert (record.node, record.epoch) == (node, self.spool.epoch)
            self.disk.capacity += 64 << 20  # somebody made room
            self.spool.heartbeat()  # what is kept for it is made anew within a second
        self.result(self.spool.journal([Result(names[0], "out/1", None)], []))
        assert self.queued() == names[1:]

    def test_two_takers_of_one_slot(self) -> None:
        """Of two that reach for the last slot one has it; the other finds no room, by name."""
        self.spool = self.own("a")
        directory = self.spool._directory
        (slot,) = slots(directory)
        self.disk.link(directory.join("epoch", slot), directory.join("epoch", "new-other"))
        self.disk.unlink(directory.join("epoch", slot))
        assert not _take_slot(directory, directory.join("epoch", "new-ours"))
        assert not self.disk.exists(directory.join("epoch", "new-ours"))

    # damage

    def test_bit_flip_in_a_content(self) -> None:
        """One damaged message is held and reported by file and offset; the others are sent."""
        self.spool = self.own("a")
        names = [self.accept(None, b"%d" % n * 3000) for n in range(3)]
        offset = self.disk.octets(self.seg()[0]).index(b"1" * 3000)
        self.disk.flip(self.seg()[0], offset + 100)
        self.spool = self.own("b")
        assert self.recovery.messages == 3
        error = self.refused(Corrupt, self.spool.load, names[1])
        assert "seg/1.1 offset" in str(error)
        assert self.due() == [names[0], names[2]]
        assert self.read(names[2]) == b"Received: by us\r\n" + b"2" * 3000
        assert names[1] in [notice.queue_id for notice in self.notices]

    def test_a_priority_that_this_build_does_not_know(self) -> None:
        """After a way back to an older build its message is named and held, and the others go; the
        newer build has it again, whole.
        """
        self.spool = self.own("a")
        names = [self.accept(envelope(priority=p)) for p in (4, 7, -4)]
        self.spool = self.own("b")
        with patch.object(envelopes, "PRIORITIES", PRIORITIES[:3]):  # those of the older build
            error = self.refused(Corrupt, self.spool.load, names[1])
            assert "5 is not one of 3 choices" in str(error)
            assert self.due() == [names[0], names[2]]
            self.result(self.spool.release("the newer build takes over again"))
        self.spool = self.own("c")
        assert self.spool.stats().messages == 3
        assert self.result(self.spool.act([names[1]], QueueAct.RELEASE, NOW)) == [names[1]]
        assert self.result(self.spool.load(names[1]))[0].priority == 7
        assert names[1] in self.due()

    def test_bit_flip_in_a_record(self) -> None:
        """A damaged record is set aside at the takeover and named; the others survive."""
        self.spool = self.own("a")
        names = [self.accept(None, b"%d" % n * 3000) for n in range(3)]
        offset = self.disk.octets(self.seg()[0]).index(names[1].encode())
        self.disk.flip(self.seg()[0], offset)
        self.spool = self.own("b")
        assert len(self.recovery.set_aside) == 1 and "seg/1.1 offset" in self.recovery.set_aside[0]
        assert self.queued() == [names[0], names[2]]

    def test_bit_flip_in_a_big_file(self) -> None:
        """A damaged big message never gets its last piece, and is held."""
        self.spool = self.own("a")
        name = self.accept(None, *[b"x" * 65536] * 40)
        path = next(p for p in self.disk.paths() if "/big/" in p)
        self.disk.flip(path, 2_000_000)
        self.refused(Corrupt, self.read, name)
        assert self.spool.stats().held == 1

    def test_garbage_behind_the_end(self) -> None:
        """Whatever lies behind the last whole batch is not read."""
        self.spool = self.own("a")
        names = [self.accept() for _ in range(3)]
        end = self.spool._log.committer._offset
        self.disk.overwrite(self.seg()[0], end, bytes(range(256)) * 40)
        self.spool = self.own("b")
        assert self.queued() == names
        assert self.recovery.set_aside == ()

    def test_damaged_newest_checkpoint(self) -> None:
        """The older of the two newest checkpoints stands in for a damaged newer one."""
        self.spool = self.own("a")
        names = [self.accept(None, b"x" * 5000) for _ in range(40)]
        for name in names[:35]:
            self.result(self.spool.journal([Result(name, "out/1", None)], []))
        newest = max((p for p in self.disk.paths() if "/ckpt/1." in p), key=number_of)
        self.disk.flip(newest, 200)
        self.spool = self.own("b")
        assert self.queued() == names[35:]
        assert "cannot be used" in self.texts()

    def test_damage_soon_after_a_takeover(self) -> None:
        """A new owner has two checkpoints before the predecessor's go, so either may be damaged."""
        self.spool = self.own("a")
        names = [self.accept() for _ in range(3)]
        self.spool = self.own("b")
        names.append(self.accept())
        ours = [p for p in self.disk.paths() if "/ckpt/2." in p]
        assert len(ours) == 2 and not [p for p in self.disk.paths() if "/ckpt/1." in p]
        self.disk.flip(max(ours, key=number_of), 100)
        self.spool = self.own("a")
        assert self.queued() == names

    def test_both_checkpoints_damaged(self) -> None:
        """Without a whole checkpoint the takeover refuses and names them."""
        self.spool = self.own("a")
        self.accept()
        for path in self.disk.paths():
            if "/ckpt/1." in path:
                self.disk.flip(path, 100)
        taker = self.make_spool("b")
        self.result(taker.publish(claim("b"), 1))
        error = self.refused(Corrupt, taker.recover)
        assert "ckpt/1.0" in str(error)

    def test_lost_segment_is_named(self) -> None:
        """A segment that vanished is named, and what its neighbours hold is kept."""
        self.spool = self.own("a")
        for _ in range(30):
            self.accept(None, b"x" * 5000)
        gone = self.seg()[0]
        self.disk.unlink(gone)
        self.spool = self.own("b")
        assert any(gone.rpartition("/")[2] in text for text in self.recovery.set_aside)

    # clocks

    def test_clock_suspect(self) -> None:
        """A clock outside [last stamp - 5 min, last stamp + 24 h] is called suspect."""
        for jump, suspect in ((-299, ""), (-301, "behind"), (86_000, ""), (87_000, "ahead")):
            del_disk(self)
            self.clock = VirtualClock(NOW)
            self.spool = self.own("a")
            self.accept()
            self.clock.jump_wall(jump)
            self.own("b")
            found = self.recovery.clock_suspect
            assert suspect in found and bool(found) == bool(suspect), (jump, found)

    # space

    def test_segments_are_freed_and_reused(self) -> None:
        """A thousand messages that come and go leave a handful of segments, old names unlinked."""
        self.spool = self.own("a")
        for _ in range(250):
            names = [self.accept(None, b"x" * 3000) for _ in range(4)]
            for name in names:
                self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert len(self.seg()) <= 8, self.seg()
        assert self.spool._log.upkeep._next_checkpoint > 20
        assert len([p for p in self.disk.paths() if "/ckpt/" in p]) == 2

    def test_compaction(self) -> None:
        """One old message does not pin its segment: it is copied forward and stays readable."""
        self.spool = self.own("a")
        kept = self.accept(None, b"K" * 3000)
        state = deferred_state(envelope(), NOW + 300)
        self.result(self.spool.journal([Result(kept, "out/1", state)], []))
        for _ in range(60):
            name = self.accept(None, b"x" * 5000)
            self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert not any(p.endswith("/seg/1.1") for p in self.disk.paths())
        assert self.read(kept) == b"Received: by us\r\n" + b"K" * 3000
        self.spool = self.own("b")
        assert self.result(self.spool.load(kept))[1] == state
        assert self.read(kept) == b"Received: by us\r\n" + b"K" * 3000

    def test_compaction_of_a_doubt(self) -> None:
        """A message whose reply was lost is copied forward too: it stays in doubt as it was, with
        slot, peer and transaction, and no second entry of nowhere comes with the copy.
        """
        self.spool = self.own("a")
        kept = self.accept(None, b"K" * 3000)
        intent = Intent(kept, "out/9", (0,), "hub:25", "<1@x>")
        self.result(self.spool.journal([], [intent]))
        state = deferred_state(envelope(), NOW + 300)
        self.result(self.spool.journal([Result(kept, "out/9", state, (), unknown=True)], []))
        for _ in range(60):
            name = self.accept(None, b"x" * 5000)
            self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert not any(p.endswith("/seg/1.1") for p in self.disk.paths())
        for node in ("b", "a"):
            self.spool = self.own(node)
            (doubt,) = (d for d in self.spool.in_doubt() if d.side == "outbound")
            assert doubt == Doubt("outbound", kept, "out/9", "hub:25", (0,), 1, transaction="<1@x>")
            assert self.result(self.spool.load(kept))[1] == state

    def test_big_file_goes_with_its_message(self) -> None:
        """A settled big message leaves no file."""
        self.spool = self.own("a")
        name = self.accept(None, *[b"x" * 65536] * 40)
        assert [p for p in self.disk.paths() if "/big/" in p]
        self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert not [p for p in self.disk.paths() if "/big/" in p or "/part/" in p]

    def test_leftovers_are_swept(self) -> None:
        """Spares, parts and checkpoints of a dead owner are removed by the next one."""
        self.stepping = True
        self.spool = self.own("a")
        for _ in range(8):  # enough to be worth leaving where they are
            self.accept(None, b"x" * 3000)
        staging = self.spool.stage("smtp/in/1")
        for _ in range(8):
            staging.write(b"x" * 65536)
        self.pump()
        assert [p for p in self.disk.paths() if "/part/1." in p]
        self.disk.power_cut("all")
        self.executors = []
        self.spool = self.own("b")
        self.pump()
        assert not [p for p in self.disk.paths() if "/part/" in p or "/ckpt/1." in p]
        assert [p for p in self.seg() if "/1." in p] == [f"{DIRECTORY}/seg/1.1"]

    def test_sixteen_epoch_files_stay(self) -> None:
        """Of many epochs the newest sixteen are kept."""
        for n in range(20):
            self.result(self.own("ab"[n % 2]).release("next"))
        names = [p.rpartition("/")[2] for p in self.disk.paths() if "/epoch/" in p]
        epochs = sorted(int(name) for name in names if name.isdecimal())
        assert epochs == list(range(5, 21))

    def test_no_descriptor_is_leaked(self) -> None:
        """After a release every descriptor has been given back."""
        for n in range(3):
            self.spool = self.own("a")
            names = [self.accept(None, b"x" * 3000) for _ in range(30)]
            self.read(self.accept(None, *[b"x" * 65536] * 40))
            self.result(self.spool.journal([Result(names[0], "out/1", None)], []))
            self.result(self.spool.scan(QueueFilter(), "", 100))
            self.result(self.spool.release("stop"))
            assert self.disk.descriptors == 0, n

    def test_descriptors_are_bounded(self) -> None:
        """A queue over many segments is read through a bounded number of descriptors."""
        self.patch(segment, "_DESCRIPTORS", 3)
        self.spool = self.own("a")
        names = [self.accept(None, b"%d" % (n % 10) * 20_000) for n in range(40)]
        self.spool = self.own("b")
        for n, name in enumerate(names):
            self.result(self.spool.load(name))
            assert self.read(name).endswith(b"%d" % (n % 10) * 20_000)
            assert len(self.spool._log.reader.descriptors) <= 4
        assert len(self.seg()) > 10

    def test_release_after_abandon(self) -> None:
        """A tenure that was lost is marked released afterwards, so that nobody waits for it."""
        self.spool = self.own("a")
        self.spool.abandon()
        assert not self.result(self.spool.inspect())[-1].released
        self.result(self.spool.release("lost"))
        assert self.result(self.spool.inspect())[-1].released
        self.assertRaises(Fenced, self.spool.stage, "smtp/in/1")

    # refusals

    def inspect(self, **settings: Any) -> Any:
        return self.make_spool("a", **settings).inspect()

    def refusal(self, **settings: Any) -> str:
        return str(self.failureResultOf(self.inspect(**settings), StartRefused).value)

    def test_missing_directory_is_made(self) -> None:
        """A directory that is missing is created, whatever the resource."""
        self.successResultOf(self.inspect(initialise=False))
        assert f"{DIRECTORY}/format" in self.disk.paths()

    def test_empty_directory(self) -> None:
        """An empty directory is most likely an unmounted one; standalone may make a spool in it."""
        self.disk = ForgetfulDisk()
        self.disk.mkdir(DIRECTORY)
        text = self.refusal(initialise=False)
        assert "empty: is it mounted?" in text and f"mta spool init {DIRECTORY}" in text
        assert self.disk.listdir(DIRECTORY) == []
        self.successResultOf(self.inspect(initialise=True))

    def test_other_directory(self) -> None:
        """A directory that holds something else is never written to."""
        self.disk = ForgetfulDisk()
        self.disk.mkdir(DIRECTORY)
        self.disk.close(self.disk.open(f"{DIRECTORY}/thesis.tex", 0o102))
        assert "thesis.tex" in self.refusal()
        assert self.disk.listdir(DIRECTORY) == ["thesis.tex"]

    def test_newer_format(self) -> None:
        """A spool of a newer format is refused by its number, before anything is published."""
        self.own("a")
        self.disk.overwrite(f"{DIRECTORY}/format", 0, b"mta-spool 2 ")
        assert "format 2" in self.refusal()

    def test_newer_segment(self) -> None:
        """So is a newer segment."""
        self.spool = self.own("a")
        self.accept()
        self.disk.overwrite(f"{DIRECTORY}/seg/1.3", 0, b"MTA\x00SEG\x00\x02\x00\x00\x00")
        assert "seg/1.3 has format 2" in self.refusal()

    def test_file_systems(self) -> None:
        """What forgets is refused by name, unless it is allowed by name; NFS must be said."""
        for kind in ("tmpfs", "ramfs", "9p", "fuse.sshfs"):
            self.disk = ForgetfulDisk(filesystem=kind)
            assert kind in self.refusal()
            self.successResultOf(self.inspect(allow_filesystem=(kind,)))
        self.disk = ForgetfulDisk(filesystem="nfs4")
        assert "nfs4" in self.refusal()
        self.successResultOf(self.inspect(sharing=Sharing.NFS))

    def test_empty_epoch_file(self) -> None:
        """An epoch file that reads empty ends its owner, counts as taken, and loses no mail: the
        next epoch is above it.
        """
        old = self.own("a")
        self.spool = old
        self.accept()
        path = f"{DIRECTORY}/epoch/1"
        fd = self.disk.open(path, os.O_RDWR)
        self.disk.truncate(fd, 0)
        self.disk.close(fd)
        text = str(self.assertRaises(Fenced, old.check))
        self.assertIn(f"{path} is damaged or empty: its mark reads b''", text)
        old.abandon()
        (found,) = self.result(self.make_spool("b").inspect())
        self.assertEqual((1, "unreadable", True), (found.epoch, found.node, found.is_damaged))
        self.spool = self.own("b")
        self.assertEqual(2, self.spool.epoch)
        self.assertEqual(1, self.spool.stats().messages)

    def test_epoch_file_of_another_user(self) -> None:
        """A claim could not mark it: refused before anything is published, by its path and our uid."""
        self.own("a")
        self.disk.forbid(f"{DIRECTORY}/epoch/1")
        text = str(self.failureResultOf(self.inspect(), Unavailable).value)
        self.assertIn(f"{DIRECTORY}/epoch/1: ", text)
        self.assertIn(f"for uid {os.geteuid()}", text)

    def test_nfs_reopens(self) -> None:
        """On NFS the epoch file is opened anew at each check."""
        self.settings = {"sharing": Sharing.NFS}
        self.disk = ForgetfulDisk(filesystem="nfs4")
        self.spool = old = self.own("a")
        self.accept()
        old.check()
        self.disk.unlink(f"{DIRECTORY}/epoch/1")
        self.assertRaises(Fenced, old.check)

    def test_failover_mount_needs_fencing(self) -> None:
        """A local file system that moves is published on only behind external fencing."""
        spool = self.make_spool("a", sharing=Sharing.FAILOVER_MOUNT)
        self.result(spool.inspect())
        self.failureResultOf(spool.publish(claim("a"), 0), StartRefused)
        self.result(spool.publish(claim("a", Fencing.EXTERNAL), 0))

    def test_unwritable(self) -> None:
        """A probe that cannot be written refuses by name and leaves no trace."""
        self.own("a")
        before = self.disk.paths()
        self.disk.fail("write", 1, errno.EROFS)
        error = self.failureResultOf(self.inspect(), Unavailable).value
        assert "Read-only" in str(error)
        assert self.disk.paths() == before

    def test_not_ours_to_write(self) -> None:
        """A spool of another user ends the start with 77 and says whose it must be."""
        self.own("a")
        self.disk.fail("write", 1, errno.EACCES)
        error = self.failureResultOf(self.inspect(), StartRefused).value
        assert error.exit_code == os.EX_NOPERM
        assert "must belong to the MTA's user" in str(error)

    def test_removed_while_it_runs(self) -> None:
        """Once the directory is gone nothing more is acknowledged, although every descriptor works:
        the next heartbeat finds out."""
        self.spool = spool = self.own("a")
        self.accept()
        spool.heartbeat()
        spool.check()
        self.disk.unlink(f"{DIRECTORY}/epoch/1")
        spool.heartbeat()
        self.assertRaises(Fenced, spool.check)
        spool.heartbeat()
        assert self.texts().count("epoch/1 is gone: the spool was removed, unmounted") == 1
        self.assertRaises(Fenced, spool.check_room, 1)

    def test_a_crowded_place(self) -> None:
        """A directory that is no spool is named by a few of its files, not by thousands."""
        spool = self.make_spool("a")
        self.disk.mkdir(DIRECTORY)
        for number in range(1000):
            self.disk.mkdir(f"{DIRECTORY}/x{number:03}")
        text = str(self.failureResultOf(spool.inspect(), StartRefused).value)
        assert "holds x000, x001, x002 and 997 more (" in text

    def test_shared_and_missing(self) -> None:
        """A shared spool whose directory is missing is a mount that is missing: nothing is made."""
        spool = self.make_spool("a", sharing=Sharing.CLUSTER_FS, initialise=False)
        before = self.disk.paths()
        error = self.failureResultOf(spool.inspect(), StartRefused).value
        assert error.exit_code == os.EX_CONFIG
        assert "is missing: is it mounted?" in str(error)
        assert self.disk.paths() == before
        self.result(self.make_spool("a", initialise=False).inspect())

    def test_guarantees(self) -> None:
        """It says what it promises."""
        assert self.make_spool("a").guarantees == Guarantees("fsync", False, True)
        assert self.make_spool("a", sharing=Sharing.CLUSTER_FS).guarantees.shared


def number_of(path: str) -> int:
    return int(path.rpartition(".")[2])


def del_disk(lab: LogLab) -> None:
    if hasattr(lab, "disk"):
        del lab.disk


@contextmanager
def mock_attribute(owner: type, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` within the block: a thread that stalls at exactly that call."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
