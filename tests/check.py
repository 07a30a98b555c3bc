"""`make check`: every static check, one line each: `PASS name (seconds)` or `FAIL name: reason`.

The tools' own output is shown only when a check fails. Checks that need more than a tool are
programs `tests/check_*.py`: they print their own PASS and FAIL lines and are relayed as they are.
The house test runs here too, but is counted where it belongs, in the trial suite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRATCH = os.path.join(ROOT, ".rig", "tmp")
"""For what the programs make: a /tmp in memory keeps nothing, and the spool refuses to lie there."""
PROGRAM_LIMIT_SECONDS = 600
"""The slowest take one to two minutes on a quiet machine."""

TOOLS = {
    "ruff": ["-m", "ruff", "check", "--quiet", "."],
    "ruff-format": ["-m", "ruff", "format", "--check", "."],
    "mypy": ["-m", "mypy"],
}


def _python(arguments: list[str], limit: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": SCRATCH},
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        said = expired.stdout or b""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        return 1, f"{text}\nstopped after {limit:.0f} s"
    return done.returncode, done.stdout


def run_tool(name: str, arguments: list[str]) -> bool:
    begun = time.monotonic()
    status, output = _python(arguments, PROGRAM_LIMIT_SECONDS)
    if status == 0:
        print(f"PASS {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        return True
    print(output.rstrip())
    lines = [line for line in output.strip().splitlines() if line.strip()]
    print(f"FAIL {name}: {lines[0][:160] if lines else f'status {status}'}", flush=True)
    return False


def run_program(path: str) -> bool:
    """Run a `tests/check_*.py`; silence and a bad status without a FAIL line are failures."""
    name = os.path.basename(path)[len("check_") : -len(".py")]
    status, output = _python([path], PROGRAM_LIMIT_SECONDS)
    print(output.rstrip(), flush=True)
    if re.search(r"^FAIL \S", output, re.MULTILINE):
        return False
    if status != 0 or not re.search(r"^PASS \S", output, re.MULTILINE):
        print(f"FAIL {name}: ended with status {status} and said nothing", flush=True)
        return False
    return True


def run_house() -> bool:
    status, output = _python(
        ["-m", "twisted.trial", "--temp-directory=.rig/trial", "tests.test_house"], 120
    )
    if status == 0:
        print("ok   house (counted by make test)", flush=True)
        return True
    print(output.rstrip())
    print("FAIL house: an arrow or a law of the house is broken, see above", flush=True)
    return False


def main() -> int:
    here = os.path.join(ROOT, "tests")
    os.makedirs(SCRATCH, exist_ok=True)
    results = [run_tool(name, arguments) for name, arguments in TOOLS.items()]
    results.append(run_house())
    for name in sorted(os.listdir(here)):
        if name.startswith("check_") and name.endswith(".py"):
            results.append(run_program(os.path.join(here, name)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
