"""Counts what `.ci/run` ran: trial's summary, and the PASS and FAIL lines of checks and scenarios.

Its law: whatever did not run counts as failed. A skipped test, a part without a summary, a part
that ended badly without saying what failed: each is one failure with a name. Runs on the system's
Python, since the virtual environment may be what is broken.
"""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple

_RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)
_SUMMARY = re.compile(r"^(?:PASSED|FAILED)(?: \(([^)]*)\))?\s*$", re.MULTILINE)
_PASS = re.compile(r"^PASS \S", re.MULTILINE)
_FAIL = re.compile(r"^FAIL (\S[^\n]*)", re.MULTILINE)


class Tally(NamedTuple):
    passed: int
    failures: tuple[str, ...]
    """One line each."""


def count_trial(output: str, status: int) -> Tally:
    """Every test that trial ran; only its plain successes pass."""
    ran, summary = _RAN.findall(output), _SUMMARY.findall(output)
    if not ran or not summary:
        return Tally(0, ("test: trial printed no summary; it did not run to its end",))
    kinds = dict(re.findall(r"(\w+)=(\d+)", summary[-1]))
    passed = int(kinds.pop("successes", 0))
    not_passed = max(int(ran[-1]) - passed, sum(int(n) for n in kinds.values()))
    why = ", ".join(f"{kind}={number}" for kind, number in sorted(kinds.items())) or "not counted"
    failures = [f"test: {why}"] * not_passed
    failures += [f"test: {line}" for line in _FAIL.findall(output)]
    if int(ran[-1]) == 0:
        failures.append("test: no test ran")
    if status and not failures:
        failures.append(f"test: ended with status {status} though every test passed")
    return Tally(passed, tuple(failures))


def count_lines(part: str, output: str, status: int) -> Tally:
    """Every line `PASS name` and `FAIL name: reason`."""
    passed = len(_PASS.findall(output))
    failures = [f"{part}: {line}" for line in _FAIL.findall(output)]
    if not passed and not failures:
        failures.append(f"{part}: nothing ran (status {status})")
    elif status and not failures:
        failures.append(f"{part}: ended with status {status} without saying what failed")
    return Tally(passed, tuple(failures))


def main(logs: str) -> int:
    passed, failures = 0, []
    for part in ("install", "test", "check", "rig"):
        path = os.path.join(logs, part)
        if part == "install" and not os.path.exists(path):
            continue  # it writes only when something is missing
        output, status = "", 1
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                output = file.read()
        if os.path.exists(path + ".status"):
            with open(path + ".status", encoding="ascii") as file:
                status = int(file.read())
        tally = count_trial(output, status) if part == "test" else count_lines(part, output, status)
        passed += tally.passed
        failures += tally.failures
    for line in dict.fromkeys(failures):
        print(f"failed: {line}")
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
