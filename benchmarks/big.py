"""Big messages beside Postfix, several at once, in one interleaved run: `make bench-big`.

source -> MTA -> sink (benchmarks/mail.py) on a private loopback, each MTA fresh in every round.
MiB/s counts the content once, from the first octet of the first message to the last final dot at
the sink, `in` to the last 250. Memory is the sum of proportional set sizes: at rest after as many
small messages, at the peak under big ones, and their difference for each message under way. Prints
a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import mail, stand

MIB = 1_048_576
FIGURES = ("MiB/s in", "MiB/s", "CPU s/GiB", "at rest MiB", "peak MiB", "MiB each", "source+sink")
Results = dict[tuple[str, str], list[float]]


def ours(where: str, port: int, next_hop: int) -> stand.Tree:
    extra = stand.Extra(listener=", limits: {size: 0}")
    return stand.start_ours(where, port, next_hop, extra=extra)


def postfix(where: str, port: int, next_hop: int) -> stand.Tree:
    return stand.start_postfix(
        where, port, next_hop, message_size_limit="0", mailbox_size_limit="0", queue_minfree="0"
    )


def play(
    results: Results,
    name: str,
    start: Callable[[str, int, int], stand.Tree],
    directory: str,
    count: int,
    load: mail.Load,
) -> None:
    where = os.path.join(directory, name)
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    board = mail.Board(count + load.sessions)
    sink, port = mail.Sink(board), stand.free_port()
    tree = start(where, port, sink.port)
    try:
        tree.wait_greeting(port, name)
        # As many small ones, so that what a connection costs by itself is there before.
        mail.send(board, range(count, board.count), port, mail.Load(1000, load.sessions))
        board.wait(count, load.sessions)
        time.sleep(1.0)
        rest = tree.memory_mib()
        tree.reset_peak()
        cpu, sink_cpu = tree.cpu_seconds(), sink.cpu_seconds()
        begun = time.monotonic()
        spent = mail.send(board, range(count), port, load)
        arrived = board.wait(0, count, 120)
        if arrived < count:
            print(f"  {name}: {arrived} of {count} arrived; replies {board.codes()}", flush=True)
        whole = load.octets * count / MIB
        for figure, value in (
            ("MiB/s in", whole / spent.seconds),
            ("MiB/s", load.octets * arrived / MIB / (max(board.arrived[:count]) - begun)),
            ("CPU s/GiB", (tree.cpu_seconds() - cpu) / whole * 1024),
            ("at rest MiB", rest),
            ("peak MiB", tree.peak_mib),
            ("MiB each", (tree.peak_mib - rest) / load.sessions),
            ("source+sink", (spent.cpu_seconds + sink.cpu_seconds() - sink_cpu) / whole * 1024),
        ):
            results.setdefault((name, figure), []).append(value)
    finally:
        tree.stop()
        sink.stop()
        shutil.rmtree(where, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-m", "--messages", type=int, default=8)
    parser.add_argument("-s", "--sessions", type=int, default=4)
    parser.add_argument("-l", "--length", type=int, default=100, help="MiB of a message")
    parser.add_argument("--only", default="", help="postfix or ours")
    arguments = parser.parse_args()
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "big")
    starters = {"postfix": postfix, "ours": ours}
    names = [name for name in starters if arguments.only in ("", name)]
    load = mail.Load(octets=arguments.length * MIB, sessions=arguments.sessions)
    results: Results = {}
    stand.say_load("begin")
    for number in range(arguments.rounds):
        for name in names:
            begun = time.monotonic()
            play(results, name, starters[name], directory, arguments.messages, load)
            print(f"round {number + 1}: {name}: {time.monotonic() - begun:.0f} s", flush=True)
    print(
        f"\n{arguments.messages} messages of {arguments.length} MiB, {arguments.sessions} at once; "
        f"medians of {arguments.rounds} interleaved rounds (lowest..highest)"
    )
    for figure in FIGURES:
        cells = ""
        for name in names:
            values = results[name, figure]
            span = f"({min(values):.1f}..{max(values):.1f})"
            cells += f"{name:>12}{statistics.median(values):9.2f} {span:16}"
        print(f"{figure:12}{cells}")
    stand.say_load("end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
