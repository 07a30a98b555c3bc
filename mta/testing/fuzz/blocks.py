"""Holds many cases: in blocks, each a process of its own, on all processors.

Law: a block passes when no case of it failed, it came to its end in time, and its process stayed
small. What a process was at when it had to be ended is told by its number. `make check` and
`make fuzz` are both this.

    python -m mta.testing.fuzz.blocks --count 10000000 --seed 2
    python -m mta.testing.fuzz.blocks --count 1000000 --target proxy
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mta.testing.fuzz.catalogue import SMTP_IN_CHECK, TARGETS, Entry

LIMIT_SECONDS = 300.0
"""A block takes 12 to 25 s, on a busy machine twice that."""
LARGEST_MIB = 200
"""Resident; 70 are usual."""
BLOCKS_IN_CHECK = 10
"""Of SMTP: what `make check` holds of any other target is one block."""
TELL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Block:
    """Cases `first` to `first + count - 1` of one target."""

    entry: Entry
    seed: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Held:
    """What came of a block; `fault` is "" when it passed."""

    block: Block
    seconds: float
    resident_mib: float
    fault: str = ""

    @property
    def facts(self) -> str:
        count = f"{self.block.count} cases of {self.block.entry.name}"
        return f"{count}, {self.seconds:.1f} s, {self.resident_mib:.0f} MiB"


def hold(
    block: Block,
    limit_seconds: float = LIMIT_SECONDS,
    largest_mib: int = LARGEST_MIB,
    tests: Path = Path("tests"),
) -> Held:
    """In a process of its own, which is awaited. `tests` is where the samples lie."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as mark:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "mta.testing.fuzz", "--target", block.entry.name),
                *("--seed", str(block.seed), "--first", str(block.first)),
                *("--count", str(block.count), "--mark", str(mark.fileno())),
                *("--tests", str(tests)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[mark.fileno()],
        )
        timer = threading.Timer(limit_seconds, child.kill)
        timer.start()
        child.wait()
        timer.cancel()
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
        marks = os.pread(mark.fileno(), 16, 0)
    at, largest_kib = (int.from_bytes(marks[i : i + 8], "little") for i in (0, 8))
    seconds, resident = time.monotonic() - begun, largest_kib / 1024
    fault = ""
    if child.returncode or f"{block.count} cases of {block.entry.name}, 0 failed" not in said:
        fault = f"status {child.returncode} after {seconds:.0f} s"
        if child.returncode < 0:
            name = f"--target {block.entry.name} --seed {block.seed} --first {at} --count 1"
            fault += f" ({signal.Signals(-child.returncode).name}), at {name}"
        fault = f"{said}\n{fault}"
    elif resident > largest_mib:
        fault = f"{resident:.0f} MiB resident, and {largest_mib} may be"
    return Held(block, seconds, resident, fault)


def blocks_of(count: int, seed: int, name: str = "") -> Iterator[Block]:
    """`count` cases in all, over all targets: half of them SMTP's, the rest by how quick they are;
    or all of the one that is named. Each target's blocks take about as long as SMTP's.
    """
    others = [entry for entry in TARGETS if entry.name != "smtp"]
    together = sum(entry.in_check for entry in others)
    for entry in TARGETS:
        if name:
            share = count if entry.name == name else 0
        elif entry.name == "smtp":
            share = count - sum(count // 2 * other.in_check // together for other in others)
        else:
            share = count // 2 * entry.in_check // together
        size = _block_size(entry)
        for first in range(0, share, size):
            yield Block(entry, seed, first, min(size, share - first))


def _block_size(entry: Entry) -> int:
    """About 15 s of a processor."""
    return SMTP_IN_CHECK // BLOCKS_IN_CHECK if entry.name == "smtp" else 8 * entry.in_check


def check_blocks(seed: int = 1) -> list[tuple[str, Block]]:
    """What `make check` holds, by the names of its lines."""
    size = SMTP_IN_CHECK // BLOCKS_IN_CHECK
    smtp, *others = TARGETS
    named = [(f"fuzz-{n + 1}", Block(smtp, seed, n * size, size)) for n in range(BLOCKS_IN_CHECK)]
    return named + [(f"fuzz-{e.name}", Block(e, seed, 0, e.in_check)) for e in others]


def hold_all(blocks: Sequence[Block], told: Callable[[Held], object]) -> list[Held]:
    """On all processors; `told` of each as it ends."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def ended(future: Future[Held]) -> None:
            told(future.result())

        futures = [pool.submit(hold, block) for block in blocks]
        for future in futures:
            future.add_done_callback(ended)
        return [future.result() for future in futures]


class _Progress:
    """Tells now and then how far a run is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._done = 0
        self._largest = 0.0

    def __call__(self, held: Held) -> None:
        with self._lock:
            self._done += held.block.count
            self._largest = max(self._largest, held.resident_mib)
            if held.fault:
                print(f"FAIL {held.facts}: {held.fault}", flush=True)
            now = time.monotonic()
            if now - self._told >= TELL_SECONDS:
                self._told = now
                print(self.text, flush=True)

    @property
    def text(self) -> str:
        seconds = time.monotonic() - self._begun
        rate = self._done / max(seconds, 0.001)
        return (
            f"{self._done} of {self._total} cases in {seconds:.0f} s, {rate:.0f} a second, "
            f"the largest process had {self._largest:.0f} MiB"
        )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mta.testing.fuzz.blocks", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=["", *(e.name for e in TARGETS)], default="")
    given = parser.parse_args(arguments)
    progress = _Progress(given.count)
    blocks = list(blocks_of(given.count, given.seed, given.target))
    failed = sum(bool(held.fault) for held in hold_all(blocks, progress))
    print(f"{progress.text}: {failed} of {len(blocks)} blocks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
