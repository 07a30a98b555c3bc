"""Two hundred thousand conversations that nobody would hold, against the machines of the wire.

Law: a block passes when no exception escaped in it, it came to its end in time, and its process stayed
small; `make fuzz N=10000000` holds as many as one likes. What fails is named by seed and number. Prints
PASS and FAIL lines for `make check`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEED = 1
BLOCKS, IN_ONE = 10, 20_000
LIMIT_SECONDS = 300
"""A block takes 12 to 25 s."""
LARGEST_MIB = 200
"""Resident; 70 are usual."""


def held(block: int) -> bool:
    """Hold the conversations of one block in a process of its own."""
    begun = time.monotonic()
    argv = [
        *(sys.executable, "-m", "mta.testing.fuzz", "--seed", str(SEED)),
        *("--first", str(block * IN_ONE), "--count", str(IN_ONE)),
    ]
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        timer = threading.Timer(LIMIT_SECONDS, child.kill)
        timer.start()
        _, status, used = os.wait4(child.pid, 0)
        timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
    seconds, resident = time.monotonic() - begun, used.ru_maxrss / 1024
    name = f"fuzz-{block + 1}"
    if child.returncode or f"{IN_ONE} conversations, 0 failed" not in said:
        print(f"{said}\nFAIL {name}: status {child.returncode} after {seconds:.0f} s", flush=True)
    elif resident > LARGEST_MIB:
        print(f"FAIL {name}: {resident:.0f} MiB resident", flush=True)
    else:
        print(
            f"PASS {name} ({IN_ONE} conversations, {seconds:.1f} s, {resident:.0f} MiB)", flush=True
        )
        return True
    return False


def main() -> int:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return 0 if all(list(pool.map(held, range(BLOCKS)))) else 1


if __name__ == "__main__":
    sys.exit(main())
