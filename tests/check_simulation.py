"""Two hundred histories of the virtual server, each from a seed; and each known bug is found in them.

Law: a seed that passes has held every invariant after every step. A simulation that finds nothing
proves nothing, so four known bugs are put into the product, one at a time, and each must be found
within the same seeds. One seed is played under two hash seeds, and the traces must be equal. Prints
PASS and FAIL lines for `make check`; tests/simulation/README.md says how to replay one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tests.simulation.__main__ import be_quiet, line, play
from tests.simulation.bugs import BUGS, put_in
from tests.simulation.run import Outcome, simulate

SEEDS = 200
REPLAYED = 11
AT_ONCE = 10
"""Seeds of one look for a bug."""


def with_bug(name: str, seed: int) -> Outcome:
    with put_in(BUGS[name]):
        outcome = simulate(seed)
    outcome.trace = []
    return outcome


def found(pool: ProcessPoolExecutor, name: str) -> Iterator[Outcome]:
    """The first outcome that says what is wrong, if any of the seeds does."""
    for first in range(1, SEEDS + 1, AT_ONCE):
        seeds = range(first, min(first + AT_ONCE, SEEDS + 1))
        for outcome in pool.map(with_bug, [name] * len(seeds), seeds):
            if outcome.violation:
                yield outcome
                return


def look_for_bugs() -> bool:
    is_good = True
    with ProcessPoolExecutor(os.cpu_count() or 1, initializer=be_quiet) as pool:
        for name, bug in BUGS.items():
            begun = time.monotonic()
            for outcome in found(pool, name):
                seconds = time.monotonic() - begun
                what = outcome.violation.splitlines()[0][:100]
                print(
                    f"PASS simulation.finds-{name} (seed {outcome.seed}, {seconds:.0f} s: {what})"
                )
                break
            else:
                is_good = False
                print(
                    f"FAIL simulation.finds-{name}: {SEEDS} seeds, and nobody noticed: {bug.what}"
                )
    return is_good


def trace(hash_seed: str) -> bytes:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(REPLAYED)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False
    )
    return done.stdout


def replay() -> bool:
    one, other = trace("1"), trace("2")
    if one == other and one.count(b"\n") > 100:
        lines = one.count(b"\n")
        print(f"PASS simulation.replay (seed {REPLAYED}, {lines} lines, twice the same)")
        return True
    print(f"FAIL simulation.replay: seed {REPLAYED} has another trace under another PYTHONHASHSEED")
    return False


def main() -> int:
    is_good = True
    for outcome in play(1, SEEDS):
        print(line(outcome), flush=True)
        is_good &= not outcome.violation
    return 0 if all((is_good, look_for_bugs(), replay())) else 1


if __name__ == "__main__":
    sys.exit(main())
