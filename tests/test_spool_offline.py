"""`mta spool check` and `mta spool init`: a spool that nobody need own is read and judged."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Intent
from mta.spool import offline
from mta.spool.directory import Directory
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.spool_lab import DIRECTORY, LogLab
from mta.testing.spool_suite import NOW, ISpoolTests


class OfflineTests(LogLab, SynchronousTestCase):
    """`mta spool check` reads and judges without a trace."""

    result = ISpoolTests.result
    own = ISpoolTests.own
    accept = ISpoolTests.accept

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
