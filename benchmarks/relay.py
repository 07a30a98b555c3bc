"""Relay rates beside Postfix, in one interleaved run: `make bench`, or `make bench BENCH="-r 5"`.

smtp-source -> MTA -> smtp-sink on a private loopback, each MTA fresh in every round, the rounds
interleaved, medians printed with their ratio to Postfix. Both make each message durable before its
250. accepted/s counts until the source saw its last 250, relayed/s until the last message is in the
sink; CPU is the whole process tree's; memory the peak sum of proportional set sizes. Flushes of the
disk are counted under strace in a run of their own, if strace is there. It asserts nothing: a rate
on a busy machine is no test. Latencies are in curves.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand

LOADS = {
    # name: octets, sessions, connection reuse, messages
    "4k s20 reuse": (4096, 20, True, 4000),
    "4k s1 reuse": (4096, 1, True, 500),
    "4k s20 new": (4096, 20, False, 2000),
    "4k s100 reuse": (4096, 100, True, 4000),
}
FIGURES = (
    ("accepted/s", 9),
    ("relayed/s", 9),
    ("CPU s/1000", 8),
    ("peak MiB", 8),
    ("flushes", 7),
)
Results = dict[tuple[str, str, str], list[float]]
Starter = Callable[[str, int, int], stand.Tree]


def measure(
    results: Results, name: str, tree: stand.Tree, port: int, sink: stand.Sink, scale: float
) -> None:
    for load, (octets, sessions, reuse, messages) in LOADS.items():
        count = max(20, int(messages * scale))
        before, cpu = sink.count(), tree.cpu_seconds()
        tree.reset_peak()
        begun = time.perf_counter()
        accepted = stand.source(port, count, sessions, octets, reuse)
        whole = sink.wait(before + count, 60)
        relayed = time.perf_counter() - begun
        time.sleep(0.3)  # one more sample of the memory
        if not whole:
            print(f"  {name}: {load}: only {sink.count() - before} of {count} arrived", flush=True)
        for figure, value in (
            ("accepted/s", count / accepted),
            ("relayed/s", (sink.count() - before) / relayed),
            ("CPU s/1000", (tree.cpu_seconds() - cpu) / count * 1000),
            ("peak MiB", tree.peak_mib),
        ):
            results.setdefault((name, load, figure), []).append(value)


@contextmanager
def fresh(
    name: str, start: Starter, directory: str
) -> Iterator[tuple[stand.Tree, int, stand.Sink]]:
    """One MTA with an empty queue that has relayed its first messages, its port, and its sink."""
    where = os.path.join(directory, name)
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    sink, port = stand.Sink(where), stand.free_port()
    tree = start(where, port, sink.port)
    try:
        tree.wait_greeting(port, name)
        stand.source(port, 50, 5, 4096, True)
        sink.wait(50, 30)
        yield tree, port, sink
    finally:
        tree.stop()
        sink.stop()
        shutil.rmtree(where, ignore_errors=True)


def play(results: Results, name: str, start: Starter, directory: str, scale: float) -> None:
    """One round of one MTA."""
    with fresh(name, start, directory) as (tree, port, sink):
        measure(results, name, tree, port, sink, scale)


def flushes(results: Results, name: str, start: Starter, directory: str) -> None:
    """How often each MTA waits for the disk, for one message. strace slows both."""
    with fresh(name, start, directory) as (tree, port, sink):
        for load, (octets, sessions, reuse, messages) in LOADS.items():
            count, before = max(20, messages // 8), sink.count()
            traced = stand.Flushes(tree, os.path.join(directory, name))
            stand.source(port, count, sessions, octets, reuse)
            sink.wait(before + count, 60)
            results[name, load, "flushes"] = [traced.stop() / count]


def ceiling(results: Results, directory: str, scale: float) -> None:
    """What source and sink reach without an MTA between them."""
    os.makedirs(os.path.join(directory, "none"), exist_ok=True)
    sink = stand.Sink(os.path.join(directory, "none"))
    for load, (octets, sessions, reuse, messages) in LOADS.items():
        count = max(20, int(messages * scale))
        seconds = stand.source(sink.port, count, sessions, octets, reuse)
        results.setdefault(("(no MTA)", load, "relayed/s"), []).append(count / seconds)
    sink.stop()


def table(results: Results, names: list[str], rounds: int) -> None:
    print(
        f"\nmedians of {rounds} interleaved rounds; x is the ratio to {names[0]}; (lowest..highest)"
    )
    print(
        f"{'load':15}{'MTA':10}"
        + "".join(f"{figure:>{width + 3}}{'x':>7}" for figure, width in FIGURES)
    )
    for load in LOADS:
        for name in (*names, "(no MTA)"):
            cells = ""
            for figure, width in FIGURES:
                values = results.get((name, load, figure))
                base = results.get((names[0], load, figure))
                if not values:
                    cells += " " * (width + 10)
                    continue
                value = statistics.median(values)
                ratio = (
                    f"{value / statistics.median(base):.2f}" if base and name in names[1:] else ""
                )
                text = f"{value:.0f}" if value >= 100 else f"{value:.2f}"
                cells += f"{text:>{width + 3}}{ratio:>7}"
            spread = results.get((name, load, "relayed/s"), [])
            print(f"{load:15}{name:10}{cells}   ({min(spread):.0f}..{max(spread):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the numbers of messages"
    )
    parser.add_argument(
        "--loads", default="", help="only loads whose name holds one of these, by commas"
    )
    parser.add_argument("--only", default="", help="postfix or ours")
    arguments = parser.parse_args()
    stand.enter()
    for load in list(LOADS):
        if arguments.loads and not any(word in load for word in arguments.loads.split(",")):
            del LOADS[load]
    directory = os.path.join(stand.RIG, "bench")
    starters: dict[str, Starter] = {"postfix": stand.start_postfix, "ours": stand.start_ours}
    names = [name for name in starters if arguments.only in ("", name)]
    results: Results = {}
    stand.say_load("begin")
    ceiling(results, directory, arguments.scale)
    for number in range(arguments.rounds):
        for name in names:
            begun = time.perf_counter()
            play(results, name, starters[name], directory, arguments.scale)
            print(f"round {number + 1}: {name}: {time.perf_counter() - begun:.0f} s", flush=True)
    for name in names if shutil.which("strace") else ():
        flushes(results, name, starters[name], directory)
    table(results, names, arguments.rounds)
    stand.say_load("end")


if __name__ == "__main__":
    main()
