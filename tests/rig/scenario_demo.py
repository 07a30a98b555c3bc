"""What a visitor runs first stays true: `make demo`, where its output is no terminal."""

from __future__ import annotations

import os
import re
import subprocess

from tests.rig.demo import LIMIT_SECONDS
from tests.rig.ground import ROOT, expect
from tests.rig.pair import Pair

LAST = re.compile(r"lost 0, wrong source 0, doubled \d+ \(all named\)")
TAKEOVERS = 5


def scenario_make_demo(pair: Pair) -> None:
    """`make demo` ends by itself with status 0, its table and its last line; nothing is drawn."""
    # A make above us may have given its own flags, and its jobserver, to everything below it.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "demo"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    tail = " | ".join([*lines[-8:], *done.stderr.splitlines()[-4:]])
    expect(done.returncode == 0, f"make demo ended with status {done.returncode}: {tail}")
    expect(LAST.fullmatch(lines[-1]), f"the last line is {lines[-1]!r}")
    expect("\x1b" not in done.stdout, "it drew on what is no terminal")
    owned = [line for line in lines if " owns under epoch " in line]
    expect(len(owned) == TAKEOVERS, f"{len(owned)} takeovers were shown")
    pair.note(lines[-2])
    pair.note(lines[-1])
