"""The models of the spool's and the cluster's law, in spin: the right one holds, each wrong one fails.

Law: a check that cannot fail proves nothing, so every row of tests/model/README.md has variants that
break its rule on purpose, and such a variant passes here exactly when spin finds the violation. A
search that was cut short by its depth, its memory or its time is a failure in both cases. Prints PASS
and FAIL lines for `make check`.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

MODELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
LIMIT_SECONDS = 60.0
"""For one variant: translation, compilation and search together."""
LIMIT_MIB = 2048
DEPTH = 200_000
"""Steps on one path that the search can hold; a model that needs more fails by name."""
MISSING = "spin, gcc or the C library's headers are missing: run: apt-get install --no-install-recommends spin gcc libc6-dev"


class Variant(NamedTuple):
    model: str
    """The file in tests/model/ without its ending."""
    wrong: str | None = None
    """The macro that breaks the rule."""
    promise: str | None = None
    """The LTL formula to check; None: the assertions."""

    @property
    def name(self) -> str:
        parts = (self.model, self.wrong or "right", self.promise)
        return "model-" + "-".join(part for part in parts if part).lower().replace("_", "-")


VARIANTS = (
    Variant("accept"),
    Variant("accept", "CHECK_WRITE_ACK"),
    Variant("accept", "NO_REREAD"),
    Variant("accept", "READ_PUBLISH"),
    Variant("seal"),
    Variant("seal", "ACT_FIRST"),
    Variant("seal", "READ_ALL"),
    Variant("destroy"),
    Variant("destroy", "BEFORE_REREAD"),
    Variant("destroy", "BEFORE_RECORD"),
    Variant("publish"),
    Variant("publish", "NEXT_FREE"),
    Variant("publish", "CONFIRM_FIRST"),
    Variant("mark"),
    Variant("mark", "CURRENT_FILE"),
    Variant("claim", None, "no_ping_pong"),
    Variant("claim", None, "somebody_owns"),
    Variant("claim", None, "no_return"),
    Variant("claim", "WHEN_HERE", "no_ping_pong"),
    Variant("claim", "LEFT_AND_RETURNED", "somebody_owns"),
    Variant("claim", "FORGETS", "no_return"),
    Variant("intent"),
    Variant("intent", "ON_EVERY_ACCEPT"),
    Variant("intent", "DOT_FIRST"),
)


class Failed(Exception):
    """Its text says why a variant did not show what it has to."""


def _limit_memory() -> None:
    limit = LIMIT_MIB << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(arguments: list[str], directory: str, until: float) -> str:
    """What the program said; Failed when it ended badly or `until` (monotonic) came."""
    tool = os.path.basename(arguments[0])
    try:
        done = subprocess.run(
            arguments,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(0.1, until - time.monotonic()),
            preexec_fn=_limit_memory,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{tool} did not end within {LIMIT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or ["it said nothing"]
        raise Failed(f"{tool} ended with status {done.returncode}: {lines[-1][:160]}")
    return done.stdout


def search(variant: Variant, directory: str, until: float) -> str:
    """pan's report on all states of the variant."""
    source = os.path.join(MODELS, f"{variant.model}.pml")
    macros = [f"-D{variant.wrong}"] if variant.wrong else []
    run(["spin", *macros, "-a", source], directory, until)
    # Assertions need no cycles; under weak fairness the models are small enough without reduction.
    kind = ["-DNOREDUCE"] if variant.promise else ["-DSAFETY"]
    run(
        ["gcc", "-O1", "-w", f"-DMEMLIM={LIMIT_MIB}", *kind, "-o", "pan", "pan.c"], directory, until
    )
    how = ["-a", "-f", "-N", variant.promise] if variant.promise else []
    return run([os.path.join(directory, "pan"), f"-m{DEPTH}", *how], directory, until)


def judge(variant: Variant, report: str) -> int:
    """The number of states; Failed when the report is not what the variant has to show."""
    errors = re.search(r"errors: (\d+)", report)
    states = re.search(r"^\s*(\d+) states, stored", report, re.MULTILINE)
    if errors is None or states is None:
        raise Failed("spin's report has neither errors nor states")
    said = re.search(r"^pan:\d+: (.*?)(?: \(at depth .*)?$", report, re.MULTILINE)
    found = said.group(1) if said else ""
    if not variant.wrong:
        if errors.group(1) != "0":
            raise Failed(f"the rule does not hold: {found or 'see spin'}")
        if "max search depth too small" in report or "Search not completed" in report:
            raise Failed(f"not all states were searched: depth {DEPTH}, {LIMIT_MIB} MiB")
        if not variant.promise and re.search(
            r"^\s*\([1-9]\d* of \d+ states\)", report, re.MULTILINE
        ):
            raise Failed("some steps of the model are never taken: it shows less than it says")
    elif errors.group(1) == "0":
        raise Failed("spin found nothing wrong, but the rule is broken here on purpose")
    elif not found.startswith(("assertion violated", "acceptance cycle")):
        raise Failed(f"it fails, but not by breaking a promise: {found or 'see spin'}")
    return int(states.group(1))


def check(variant: Variant) -> str:
    """One line, PASS or FAIL."""
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="model-") as directory:
            states = judge(variant, search(variant, directory, begun + LIMIT_SECONDS))
    except Failed as failed:
        return f"FAIL {variant.name}: {failed}"
    shown = "violated, as it must be" if variant.wrong else "holds"
    return f"PASS {variant.name} ({time.monotonic() - begun:.1f} s, {states} states, {shown})"


def can_compile() -> bool:
    """Are spin, gcc and the C library's headers here?"""
    if shutil.which("spin") is None or shutil.which("gcc") is None:
        return False
    tried = subprocess.run(
        ["gcc", "-E", "-x", "c", "-"],
        input="#include <stdio.h>\n#include <stdlib.h>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


def main() -> int:
    if not can_compile():
        print(f"FAIL model: {MISSING}")
        return 1
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as workers:
        lines = []
        for line in workers.map(check, VARIANTS):
            print(line, flush=True)
            lines.append(line)
    return 0 if all(line.startswith("PASS") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
