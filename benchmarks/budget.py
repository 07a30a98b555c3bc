"""Where one relayed message's time goes, function by function: `python benchmarks/budget.py`.

Relays under cProfile and prints microseconds and calls for each message. The profiler makes every
call dearer (about threefold for short functions), so compare lines with each other and call counts
between versions; for true seconds see the CPU column of relay.py. Prints a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand


def place(path: str) -> str:
    """A source file's name without what every line would repeat."""
    for cut in (stand.ROOT + "/", "site-packages/", "python3.11/"):
        path = path.split(cut)[-1]
    return path


class Line(NamedTuple):
    """A function's share of one message."""

    own_us: float
    calls: float
    whole_us: float
    path: str
    line: int
    name: str


def profile(
    start: Callable[[str, int, int, Sequence[str]], stand.Tree],
    directory: str,
    count: int,
    sessions: int,
) -> list[Line]:
    """The functions that ran for messages, the dearest first. `start` gets directory, port, the
    next hop's port, and what twistd is told besides.
    """
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    stats = os.path.join(directory, "stats")
    sink, port = stand.Sink(directory), stand.free_port()
    profiled = ("--profile", stats, "--profiler", "cProfile", "--savestats")
    tree = start(directory, port, sink.port, profiled)
    try:
        tree.wait_greeting(port, "the MTA")
        stand.source(port, count, sessions, 4096, True)
        sink.wait(count, 60)
    finally:
        tree.stop()
        sink.stop()
    rows = []
    for (path, line, name), figures in pstats.Stats(stats).stats.items():  # type: ignore[attr-defined]
        calls, own, whole = figures[1], figures[2], figures[3]
        if calls >= count / 5:  # what happens for messages, not what happened at the start
            rows.append(
                Line(own / count * 1e6, calls / count, whole / count * 1e6, path, line, name)
            )
    shutil.rmtree(directory, ignore_errors=True)
    return sorted(rows, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=5000)
    parser.add_argument("-s", "--sessions", type=int, default=20)
    parser.add_argument("-n", "--lines", type=int, default=50, help="of the table")
    arguments = parser.parse_args()
    stand.enter()
    rows = profile(
        lambda where, port, hop, twistd: stand.start_ours(where, port, hop, twistd=twistd),
        os.path.join(stand.RIG, "bench", "budget"),
        arguments.messages,
        arguments.sessions,
    )
    print(
        f"{sum(row.own_us for row in rows):.0f} us, "
        f"{sum(row.calls for row in rows):.0f} calls a message"
    )
    print(f"{'own us':>9}{'calls':>8}{'with callees':>14}")
    for row in rows[: arguments.lines]:
        print(
            f"{row.own_us:9.1f}{row.calls:8.2f}{row.whole_us:14.1f}  "
            f"{place(row.path)}:{row.line} {row.name}"
        )


if __name__ == "__main__":
    main()
