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
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand


def place(path: str) -> str:
    """A source file's name without what every line would repeat."""
    for cut in (stand.ROOT + "/", "site-packages/", "python3.11/"):
        path = path.split(cut)[-1]
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=5000)
    parser.add_argument("-s", "--sessions", type=int, default=20)
    parser.add_argument("-n", "--lines", type=int, default=50, help="of the table")
    arguments = parser.parse_args()
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "budget")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    stats, count = os.path.join(directory, "stats"), arguments.messages
    sink, port = stand.Sink(directory), stand.free_port()
    profiled = ("--profile", stats, "--profiler", "cProfile", "--savestats")
    tree = stand.start_ours(directory, port, sink.port, twistd=profiled)
    tree.wait(lambda: stand.greets(port), 30, "the MTA does not start")
    stand.source(port, count, arguments.sessions, 4096, True)
    sink.wait(count, 60)
    tree.stop(signal.SIGINT)
    sink.stop()
    rows = []
    for (path, line, name), figures in pstats.Stats(stats).stats.items():  # type: ignore[attr-defined]
        calls, own, whole = figures[1], figures[2], figures[3]
        if calls >= count / 5:  # what happens for messages, not what happened at the start
            rows.append((own / count * 1e6, calls / count, whole / count * 1e6, path, line, name))
    rows.sort(reverse=True)
    print(
        f"{sum(row[0] for row in rows):.0f} us, {sum(row[1] for row in rows):.0f} calls a message"
    )
    print(f"{'own us':>9}{'calls':>8}{'with callees':>14}")
    for own, calls, whole, path, line, name in rows[: arguments.lines]:
        print(f"{own:9.1f}{calls:8.2f}{whole:14.1f}  {place(path)}:{line} {name}")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
