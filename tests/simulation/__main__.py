"""Plays seeds: see run.py."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from twisted.logger import globalLogBeginner

from tests.simulation.run import Outcome, simulate


def replay(seed: int) -> str:
    return f"make simulate SEED={seed}"


def line(outcome: Outcome) -> str:
    """PASS or FAIL, and what happened."""
    if outcome.violation:
        return f"FAIL simulation.seed-{outcome.seed}: {outcome.violation}; {replay(outcome.seed)}"
    figures = ", ".join(f"{n} {what}" for what, n in sorted(outcome.figures.items()))
    return (
        f"PASS simulation.seed-{outcome.seed} ({len(outcome.faults)} faults, "
        f"{outcome.seconds:.0f} s, {outcome.steps} steps: {figures})"
    )


def be_quiet() -> None:
    """What coroutines of killed processes say at their end is nobody's business."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


def one(seed: int) -> Outcome:
    outcome = simulate(seed)
    outcome.trace = []  # it stays in the process that made it
    return outcome


def play(first: int, count: int, workers: int = 0) -> Iterator[Outcome]:
    """Seeds on all cores, in order."""
    seeds = range(first, first + count)
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, initializer=be_quiet) as pool:
        yield from pool.map(one, seeds, chunksize=4)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        be_quiet()
        outcome = simulate(given.seed)
        print("\n".join(outcome.trace))
        print(line(outcome))
        return 1 if outcome.violation else 0
    begun, failed = time.monotonic(), 0
    total: dict[str, int] = {}
    for outcome in play(given.first, given.count):
        failed += bool(outcome.violation)
        for what, n in outcome.figures.items():
            total[what] = total.get(what, 0) + n
        if outcome.violation or given.count <= 500:
            print(line(outcome), flush=True)
    figures = ", ".join(f"{n} {what}" for what, n in sorted(total.items()))
    print(f"{given.count} seeds, {failed} failed, {time.monotonic() - begun:.0f} s: {figures}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
