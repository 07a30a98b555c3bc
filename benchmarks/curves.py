"""Throughput over sessions and latency over load, beside Postfix: `make bench-curves`.

4 KiB with reuse over a private loopback, each MTA fresh in every round, the rounds interleaved,
medians printed. Throughput: smtp-source -> MTA -> smtp-sink, as many as go. Latency: the source and
sink of benchmarks/mail.py at a steady rate, whether or not replies come, over 20 sessions; `accept`
is from the final dot to its 250, `relay` from the moment when the message was due until the sink
has its final dot. What was never accepted or never arrived is counted, not left out in silence. A
rate that an MTA cannot hold is its last. Writes an SVG and prints tables; asserts nothing.
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

from benchmarks import mail, plot, stand

SESSIONS = (1, 2, 5, 10, 20, 50, 100, 200)
RATES = (20, 50, 100, 200, 400, 800, 1600, 3200)
LATENCIES = ("accept p50", "accept p99", "relay p50", "relay p99")
HELD = 0.9
"""Of the rate; who relays less has not held it."""
Starter = Callable[[str, int, int], stand.Tree]
Results = dict[tuple[str, str, int], list[float]]


def throughput(
    results: Results, name: str, start: Starter, where: str, sessions: int, count: int
) -> None:
    sink, port = stand.Sink(where), stand.free_port()
    tree = start(where, port, sink.port)
    try:
        tree.wait_greeting(port, name)
        stand.source(port, 100, 5, 4096, True)
        sink.wait(100, 30)
        begun = time.perf_counter()
        stand.source(port, count, sessions, 4096, True)
        if not sink.wait(100 + count, 60):
            print(f"  {name}: {sessions} sessions: {sink.count() - 100} of {count}", flush=True)
        rate = (sink.count() - 100) / (time.perf_counter() - begun)
        results.setdefault((name, "relayed/s", sessions), []).append(rate)
    finally:
        tree.stop()
        sink.stop()


def latency(
    results: Results, name: str, start: Starter, where: str, seconds: float, rates: list[int]
) -> None:
    """All rates on one MTA, the lowest first; what it does not hold is taken from `rates`."""
    warm, place = 200, 0
    offered = [int(rate * seconds) for rate in rates]
    board = mail.Board(warm + sum(offered))
    sink, port = mail.Sink(board), stand.free_port()
    tree = start(where, port, sink.port)
    try:
        tree.wait_greeting(port, name)
        mail.send(board, range(warm), port, mail.Load(sessions=20))
        place = board.wait(0, warm)
        for rate, count in zip(list(rates), offered, strict=True):
            mail.send(board, range(place, place + count), port, mail.Load(sessions=20, rate=rate))
            arrived = board.wait(place, count, 30)
            numbers = range(place, place + count)
            place += count
            last = max(board.arrived[number] for number in numbers)
            held = arrived / max(seconds, last - board.due[numbers[0]]) / rate
            if arrived < count:
                print(f"  {name}: {rate}/s: only {arrived} of {count} arrived", flush=True)
            accept = sorted(
                board.answered[number] - board.sent[number]
                for number in numbers
                if board.code[number] == 250
            )
            relay = sorted(
                board.arrived[number] - board.due[number]
                for number in numbers
                if board.arrived[number]
            )
            for figure, values, share in (
                ("accept p50", accept, 0.5),
                ("accept p99", accept, 0.99),
                ("relay p50", relay, 0.5),
                ("relay p99", relay, 0.99),
            ):
                value = mail.quantile(values, share) * 1000
                results.setdefault((name, figure, rate), []).append(value)
            results.setdefault((name, "held", rate), []).append(held)
            if held < HELD:
                rates[:] = [one for one in rates if one <= rate]
                return
    finally:
        tree.stop()
        sink.stop()


def middle(results: Results, name: str, figure: str, at: int) -> float:
    values = results.get((name, figure, at))
    return statistics.median(values) if values else float("nan")


def tables(results: Results, names: list[str], rates: dict[str, list[int]]) -> None:
    print("\nthroughput, messages relayed a second")
    print(f"{'sessions':>10}" + "".join(f"{name:>10}" for name in names) + f"{'x':>7}")
    for sessions in SESSIONS:
        values = [middle(results, name, "relayed/s", sessions) for name in names]
        ratio = f"{values[-1] / values[0]:7.2f}" if len(values) > 1 else ""
        print(f"{sessions:10}" + "".join(f"{value:10.0f}" for value in values) + ratio)
    print("\nlatency in milliseconds; held: the share of the rate that was relayed in its time")
    heads = "".join(f"{figure:>12}" for figure in LATENCIES)
    print(f"{'rate/s':>10} {'MTA':9}{heads}{'held':>8}")
    for rate in RATES:
        for name in names:
            if rate in rates[name]:
                cells = [middle(results, name, figure, rate) for figure in LATENCIES]
                held = middle(results, name, "held", rate)
                text = "".join(f"{cell:12.1f}" for cell in cells)
                print(f"{rate:10} {name:9}{text}{held:8.2f}")


def picture(results: Results, names: list[str], caption: str) -> str:
    def points(name: str, figure: str, places: tuple[int, ...]) -> plot.Points:
        return [(at, middle(results, name, figure, at)) for at in places]

    return plot.draw(
        [
            plot.Chart(
                "Throughput over sessions",
                "sessions",
                "messages/s",
                {name: points(name, "relayed/s", SESSIONS) for name in names},
            ),
            plot.Chart(
                "Final dot to 250",
                "messages offered a second",
                "ms",
                {
                    f"{name} {figure[-3:]}": points(name, figure, RATES)
                    for name in names
                    for figure in LATENCIES[:2]
                },
            ),
            plot.Chart(
                "Due to relayed",
                "messages offered a second",
                "ms",
                {
                    f"{name} {figure[-3:]}": points(name, figure, RATES)
                    for name in names
                    for figure in LATENCIES[2:]
                },
            ),
        ],
        caption,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-m", "--messages", type=int, default=2000, help="with 20 sessions or more")
    parser.add_argument("-t", "--seconds", type=float, default=5.0, help="for each rate")
    parser.add_argument("--only", default="", help="postfix or ours")
    parser.add_argument("--svg", default=os.path.join(stand.RIG, "curves.svg"))
    arguments = parser.parse_args()
    stand.enter()
    starters: dict[str, Starter] = {"postfix": stand.start_postfix, "ours": stand.start_ours}
    names = [name for name in starters if arguments.only in ("", name)]
    rates = {name: list(RATES) for name in names}
    results: Results = {}
    begun = stand.say_load("begin")

    def fresh(name: str) -> str:
        where = os.path.join(stand.RIG, "bench", "curves", name)
        shutil.rmtree(where, ignore_errors=True)
        os.makedirs(where)
        return where

    for number in range(arguments.rounds):
        for sessions in SESSIONS:
            count = int(arguments.messages * min(1.0, 0.1 + 0.9 * sessions / 20))
            for name in names:
                throughput(results, name, starters[name], fresh(name), sessions, count)
        for name in names:
            latency(results, name, starters[name], fresh(name), arguments.seconds, rates[name])
        print(f"round {number + 1} is over", flush=True)
    tables(results, names, rates)
    with open(arguments.svg, "w", encoding="utf-8") as file:
        file.write(picture(results, names, f"4 KiB, medians of {arguments.rounds}; {begun}"))
    print(f"\n{arguments.svg}: written")
    stand.say_load("end")
    shutil.rmtree(os.path.join(stand.RIG, "bench", "curves"), ignore_errors=True)


if __name__ == "__main__":
    main()
