"""Holds cases of one target in this process, one after the other.

Law: every case is tried, until ten have failed; each has a time, and what takes longer has failed.
What failed is told by seed, target and number, by which it can be held again alone:

    python -m mta.testing.fuzz --target proxy --count 100000 --seed 7
    python -m mta.testing.fuzz --target proxy --first 4711 --count 1 --seed 7     (this one only)
"""

from __future__ import annotations

import argparse
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import NoReturn

from mta.testing.fuzz.catalogue import TARGETS
from mta.testing.fuzz.target import Broken, Target

CASE_SECONDS = 10.0
"""The slowest take a tenth of one."""
MOST_FAILURES = 10


def hold(target: Target, seed: int, number: int) -> None:
    """One case. @raise: whatever is wrong with it."""
    word = f"{seed}:{number}" if target.name == "smtp" else f"{seed}:{target.name}:{number}"
    target.hold(Random(word), number)  # no secrets here


def run(target: Target, seed: int, first: int, count: int, mark: int = -1) -> list[tuple[int, str]]:
    """Hold `count` cases; answer the numbers of those that failed, with the reason. The number of
    the present one stands at the beginning of the file `mark`.
    """
    failed: list[tuple[int, str]] = []
    for number in range(first, first + count):
        if mark >= 0:
            os.pwrite(mark, number.to_bytes(8, "little"), 0)
        try:
            with _limited(CASE_SECONDS):
                hold(target, seed, number)
        except Exception:
            failed.append((number, traceback.format_exc(limit=-6)))
        if len(failed) >= MOST_FAILURES:
            break
    return failed


def _largest_kib() -> int:
    """Resident, at most so far. (getrusage counts what was there before exec: the parent.)"""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_slow(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Broken(f"it takes more than {CASE_SECONDS:.0f} s")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m mta.testing.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[entry.name for entry in TARGETS], default="smtp")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="where the samples lie")
    parser.add_argument("--mark", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    chosen = next(entry for entry in TARGETS if entry.name == given.target)
    target = chosen.kind().at(given.tests)
    signal.signal(signal.SIGALRM, _too_slow)
    failed = run(target, given.seed, given.first, given.count, given.mark)
    if given.mark >= 0:
        os.pwrite(given.mark, _largest_kib().to_bytes(8, "little"), 8)
    for number, why in failed:
        print(f"--target {target.name} --seed {given.seed} --first {number} --count 1\n{why}")
    print(f"{given.count} cases of {target.name}, {len(failed)} failed")
    return 1 if failed else 0
