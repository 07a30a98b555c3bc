"""`mta spool check` and `mta spool init`: a spool that nobody need own is read and judged."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Corrupt
from mta.model import (
    Intent,
    MessageState,
    QueueAct,
    RecipientState,
    RecipientStatus,
    Result,
)
from mta.spool import offline
from mta.spool.directory import Directory
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.spool_lab import DIRECTORY, LogLab
from mta.testing.spool_suite import NOW, ISpoolTests, claim, envelope, fresh_state


class OfflineTests(LogLab, SynchronousTestCase):
    """`mta spool check` reads and judges without a trace."""

    result = ISpoolTests.result
    own = ISpoolTests.own
    accept = ISpoolTests.accept
    read = ISpoolTests.read

    def pump(self) -> None:
        """Everything is inline."""

    def setUp(self) -> None:
        self.clock = VirtualClock(NOW)
        self.settings = {"big_message": 16 << 10}
        self.spool = self.own("a\x1b[31m")
        self.names = [self.accept(None, b"%d" % n * 3000) for n in range(3)]
        self.big = self.accept(None, b"B" * 30_000)
        self.result(self.spool.journal([], [Intent(self.names[0], "out/1", (0,), "hub\n:25")]))

    def check(self, action: str = "check") -> tuple[int, str]:
        lines: list[str] = []
        before = {path: self.disk.octets(path) for path in self.disk.paths()}
        steps = self.disk.steps
        code = offline.run(action, Directory(self.disk, DIRECTORY), lines.append)
        if action == "check":
            assert self.disk.steps == steps
            assert {path: self.disk.octets(path) for path in self.disk.paths()} == before
        text = "\n".join(lines)
        assert "\x1b" not in text
        return code, text

    def test_sound(self) -> None:
        """A sound spool: counts, epochs, segments, doubts, exit code 0, and nothing touched."""
        code, text = self.check()
        assert code == 0, text
        for words in ("4 messages", "1 in doubt", "1 big", "epoch 1: node a", "seg/1.1", "sound"):
            assert words in text, text

    def test_damaged_content(self) -> None:
        """A damaged body is found without anyone asking for it: id, file and offset."""
        path = f"{DIRECTORY}/seg/1.1"
        self.disk.flip(path, self.disk.octets(path).index(b"1" * 3000) + 5)
        code, text = self.check()
        assert code == 65
        assert self.names[1] in text and "seg/1.1 offset" in text and "1 damaged" in text

    def test_damaged_big(self) -> None:
        """So is a damaged big file."""
        self.disk.flip(f"{DIRECTORY}/big/1.1", 12_345)
        code, text = self.check()
        assert code == 65 and "big/1.1" in text and self.big in text

    def test_damaged_checkpoint(self) -> None:
        """A spool whose only checkpoint is damaged is judged so."""
        self.disk.flip(f"{DIRECTORY}/ckpt/1.0", 80)
        code, text = self.check()
        assert code == 65 and "ckpt/1.0" in text

    def damage_checkpoints(self) -> None:
        for path in self.disk.paths():
            if "/ckpt/" in path:
                self.disk.flip(path, 80)

    def recover(self, meanwhile: Callable[[float], None] = lambda seconds: None) -> tuple[int, str]:
        lines: list[str] = []
        code = offline.run("recover", Directory(self.disk, DIRECTORY), lines.append, meanwhile)
        return code, "\n".join(lines)

    def test_recover(self) -> None:
        """With every checkpoint lost, `recover` finds all messages in the segments; the next owner
        has them, their contents too, and all of them in doubt.
        """
        self.result(self.spool.release("stopped"))
        self.damage_checkpoints()
        self.spool = self.make_spool("b")
        above = self.result(self.spool.inspect())[-1].epoch
        self.result(self.spool.publish(claim("b"), above))
        with self.assertRaises(Corrupt) as caught:
            self.result(self.spool.recover())
        self.assertIn("mta spool recover", str(caught.exception))
        self.result(self.spool.release("cannot"))
        code, text = self.recover()
        self.assertEqual(code, 0, text)
        self.assertIn("4 messages", text)
        self.spool = self.own("b")
        wanted = [*self.names, self.big]
        self.assertEqual(sorted(d.queue_id for d in self.spool.in_doubt()), self.doubted(wanted))
        for n, name in enumerate(self.names):
            self.assertIn(b"%d" % n * 3000, self.read(name))
        self.assertIn(b"B" * 30_000, self.read(self.big))
        self.assertEqual(self.check()[0], 0)

    def doubted(self, names: list[str]) -> list[str]:
        """Each once for the scan, and the first once more for its INTENT."""
        return sorted([*names, names[0]])

    def test_recover_what_was_copied(self) -> None:
        """A message that compaction moved, and whose first place is freed, is found where it is."""
        self.spool = self.own("b")
        for _ in range(60):
            name = self.accept(None, b"x" * 5000)
            self.result(self.spool.journal([Result(name, "out/2", None)], []))
        self.assertFalse([p for p in self.disk.paths() if "/seg/1." in p], "nothing moved")
        self.result(self.spool.release("stopped"))
        self.damage_checkpoints()
        code, text = self.recover()
        self.assertEqual(code, 0, text)
        self.spool = self.own("a")
        found = {d.queue_id for d in self.spool.in_doubt()}
        self.assertTrue(found.issuperset([*self.names, self.big]), found)
        for n, name in enumerate(self.names):
            self.assertIn(b"%d" % n * 3000, self.read(name))

    def fill(self) -> None:
        """So much lives in epoch 1's segment that compaction leaves it alone, until `move_the_first`."""
        self.fillers = [self.accept(None, b"f" * 12_000) for _ in range(2)]

    def move_the_first(self) -> None:
        """Compaction copies what is left of epoch 1, while what was written just before stays where
        it is: over a quarter of its segment is alive.
        """
        self.assertIn(f"{DIRECTORY}/seg/1.1", self.disk.paths())
        self.result(self.spool.journal([Result(name, "out/3", None) for name in self.fillers], []))
        for _ in range(2):
            self.accept(None, b"k" * 15_000)
        self.use_up()
        paths = self.disk.paths()
        self.assertFalse([path for path in paths if "/seg/1." in path], "nothing moved")
        self.assertIn(f"{DIRECTORY}/seg/2.1", paths)

    def use_up(self) -> None:
        """Several segments are written, in which nothing stays alive."""
        for _ in range(60):
            name = self.accept(None, b"x" * 5000)
            self.result(self.spool.journal([Result(name, "out/2", None)], []))

    def recovered_by(self, node: str) -> None:
        self.result(self.spool.release("stopped"))
        self.damage_checkpoints()
        code, text = self.recover()
        self.assertEqual(code, 0, text)
        self.spool = self.own(node)

    def test_recover_recipients_done_before_a_copy(self) -> None:
        """A recipient that was settled before compaction moved the message stays settled."""
        self.fill()
        several = envelope("one@example.com", "two@example.com")
        name = self.accept(several, b"S" * 3000)
        self.spool = self.own("b")
        fresh = fresh_state(several)
        done = RecipientState(RecipientStatus.DELIVERED)
        partly = MessageState((done, fresh.recipients[1]), attempts=1, due=NOW + 60)
        self.result(self.spool.journal([Result(name, "out/2", partly)], []))
        self.move_the_first()
        self.recovered_by("a")
        found = self.result(self.spool.load(name))[1]
        self.assertEqual((found.pending, found.attempts), ((1,), 1))
        self.assertEqual(found.due, NOW + 60)

    def test_recover_holds_set_before_a_copy(self) -> None:
        """A message that was held when compaction moved it is held still; one that was released
        before goes on.
        """
        self.fill()
        kept, freed, late = self.names
        self.spool = self.own("b")
        self.result(self.spool.act([kept, freed], QueueAct.HOLD, NOW))
        self.result(self.spool.act([freed], QueueAct.RELEASE, NOW + 7))
        self.move_the_first()
        self.result(self.spool.act([late], QueueAct.HOLD, NOW))
        self.recovered_by("a")
        states = [self.result(self.spool.load(name))[1] for name in self.names]
        self.assertEqual([state.held for state in states], [True, False, True])
        self.assertEqual(states[1].due, NOW + 7)

    def test_recover_a_hold_whose_segment_is_gone(self) -> None:
        """The operator's word went with its segment; the copy that compaction made since has it."""
        self.fill()
        kept = self.names[0]
        self.spool = self.own("b")
        self.result(self.spool.act([kept], QueueAct.HOLD, NOW))
        self.use_up()
        self.assertNotIn(f"{DIRECTORY}/seg/2.1", self.disk.paths())
        self.assertIn(f"{DIRECTORY}/seg/1.1", self.disk.paths())
        self.result(self.spool.journal([Result(name, "out/3", None) for name in self.fillers], []))
        self.use_up()
        self.assertNotIn(f"{DIRECTORY}/seg/1.1", self.disk.paths())
        self.recovered_by("a")
        self.assertTrue(self.result(self.spool.load(kept))[1].held)

    def test_recover_what_was_done(self) -> None:
        """A message whose end is still in the log stays dead."""
        self.result(self.spool.journal([Result(self.names[1], "out/2", None)], []))
        self.result(self.spool.release("stopped"))
        self.damage_checkpoints()
        self.assertEqual(self.recover()[0], 0)
        self.spool = self.own("b")
        self.assertNotIn(self.names[1], {d.queue_id for d in self.spool.in_doubt()})

    def test_nothing_to_recover(self) -> None:
        """A spool that a takeover can read is left alone."""
        before = {path: self.disk.octets(path) for path in self.disk.paths()}
        code, text = self.recover()
        self.assertEqual((code, {p: self.disk.octets(p) for p in self.disk.paths()}), (0, before))
        self.assertIn("nothing to recover", text)

    def test_recover_beside_an_owner(self) -> None:
        """While an owner's heart beats it is refused, by the node's name."""
        self.damage_checkpoints()
        code, text = self.recover(lambda seconds: self.spool.heartbeat())
        self.assertEqual(code, 75)
        self.assertIn("node a", text)
        self.assertIn("alive", text)

    def test_no_spool(self) -> None:
        """What is no spool is said to be none."""
        self.disk.unlink(f"{DIRECTORY}/format")
        assert self.check()[0] == 66
        self.disk = ForgetfulDisk()
        assert self.check()[0] == 66

    def test_init(self) -> None:
        """`init` makes a spool in an empty or missing directory, once."""
        self.disk = ForgetfulDisk()
        code, first = self.check("init")
        assert code == 0
        assert self.check("init") == (0, first)
        assert self.check()[0] == 0

    def test_usage(self) -> None:
        """Anything else is a usage error."""
        lines: list[str] = []
        assert offline.main(["mend", "/x"], lines.append) == 64
        assert lines[0].startswith("usage:")
