"""What TLS costs, beside Postfix, in one interleaved run: `make bench-tls`, or `BENCH="-r 5"`.

source -> MTA -> sink on a private loopback; source and sink are those of benchmarks/mail.py, the
same for both MTAs, each MTA fresh in every round. Certificates are EC P-256, the source speaks TLS
1.3 alone and resumes no session. `handshakes` is STARTTLS and QUIT, a new connection each. `tls`
is TLS inbound, `both` inbound and outbound; Postfix may keep outbound TLS connections
(smtp_tls_connection_reuse, which Debian leaves off: it is faster so). CPU is that of the MTA's
whole process tree for a handshake or message; that of source and sink stands beside it, and their
rate without an MTA. It asserts nothing: a rate on a busy machine is no test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import mail, stand
from mta.testing.certificates import Authority, Pair


@dataclass(frozen=True)
class Case:
    load: mail.Load
    count: int
    outbound: bool = False


CASES = {
    "handshakes": Case(mail.Load(octets=0, sessions=8, reuse=False, tls=True), 2000),
    "4k new plain": Case(mail.Load(reuse=False), 1500),
    "4k new tls": Case(mail.Load(reuse=False, tls=True), 1000),
    "4k new both": Case(mail.Load(reuse=False, tls=True), 1000, outbound=True),
    "4k reuse plain": Case(mail.Load(), 3000),
    "4k reuse tls": Case(mail.Load(tls=True), 3000),
    "4k reuse both": Case(mail.Load(tls=True), 3000, outbound=True),
}
FIGURES = ("rate/s", "CPU ms", "peak MiB", "source ms", "sink ms")
Results = dict[tuple[str, str, str], list[float]]
Starter = Callable[[str, int, int, Pair, bool], stand.Tree]


def ours(where: str, port: int, next_hop: int, pair: Pair, outbound: bool) -> stand.Tree:
    extra = stand.Extra(
        connector=f"tls: {'require' if outbound else 'none'}",
        blocks=f"tls: {{certificates: [{{chain: {pair.chain}, key-file: {pair.key}}}]}}\n",
    )
    return stand.start_ours(where, port, next_hop, extra=extra)


def postfix(where: str, port: int, next_hop: int, pair: Pair, outbound: bool) -> stand.Tree:
    return stand.start_postfix(
        where,
        port,
        next_hop,
        smtpd_tls_security_level="may",
        smtpd_tls_chain_files=f"{pair.key}, {pair.chain}",
        smtp_tls_security_level="encrypt" if outbound else "none",
        smtp_tls_connection_reuse="yes",
    )


def run(
    results: Results,
    name: str,
    case_name: str,
    scale: float,
    port: int,
    tree: stand.Tree | None,
    board: mail.Board,
    sink: mail.Sink,
) -> None:
    """One case; its figures go to `results`."""
    load, count = CASES[case_name].load, max(20, int(CASES[case_name].count * scale))
    sink_cpu, cpu = sink.cpu_seconds(), tree.cpu_seconds() if tree else 0.0
    if tree:
        tree.reset_peak()
    begun = time.monotonic()
    spent = mail.send(board, range(count), port, load)
    if load.octets:
        done = board.wait(0, count)
        seconds = max(board.arrived) - begun
    else:
        done, seconds = board.accepted(), spent.seconds
    if done < count:
        print(f"  {name}: {case_name}: {done} of {count}; replies {board.codes()}", flush=True)
    figures = {
        "rate/s": done / seconds if done else 0.0,
        "source ms": spent.cpu_seconds / count * 1000,
    }
    if load.octets:
        figures["sink ms"] = (sink.cpu_seconds() - sink_cpu) / count * 1000
    if tree:
        time.sleep(0.3)  # one more sample of the memory
        figures["CPU ms"] = (tree.cpu_seconds() - cpu) / count * 1000
        figures["peak MiB"] = tree.peak_mib
    for figure, value in figures.items():
        results.setdefault((name, case_name, figure), []).append(value)


def play(
    results: Results, name: str, start: Starter | None, directory: str, pair: Pair, scale: float
) -> None:
    """One round of one MTA, or of none: each case on a fresh one."""
    for case_name, case in CASES.items():
        where = os.path.join(directory, name)
        shutil.rmtree(where, ignore_errors=True)
        os.makedirs(where)
        warm = 40
        board = mail.Board(max(warm, int(case.count * scale), 20))
        sink, tree = mail.Sink(board, pair), None
        port = sink.port
        try:
            if start is not None:
                port = stand.free_port()
                tree = start(where, port, sink.port, pair, case.outbound)
                tree.wait_greeting(port, name)
                first = mail.Board(warm)
                mail.send(first, range(warm), port, case.load)
                if first.accepted() < warm:
                    print(f"  {name}: {case_name}: warming up: replies {first.codes()}", flush=True)
                if case.load.octets:  # their numbers are the first of `board`
                    board.wait(0, warm)
                    for number in range(warm):
                        board.arrived[number] = 0.0
            run(results, name, case_name, scale, port, tree, board, sink)
        finally:
            if tree is not None:
                tree.stop()
            sink.stop()
            shutil.rmtree(where, ignore_errors=True)


def table(results: Results, names: list[str], rounds: int) -> None:
    print(
        f"\nmedians of {rounds} interleaved rounds; x is the ratio to {names[0]}; (lowest..highest)"
    )
    print(f"{'load':16}{'MTA':9}" + "".join(f"{figure:>11}{'x':>6}" for figure in FIGURES))
    for case_name in CASES:
        for name in (*names, "(no MTA)"):
            cells = ""
            for figure in FIGURES:
                values = results.get((name, case_name, figure))
                base = results.get((names[0], case_name, figure))
                if not values:
                    cells += " " * 17
                    continue
                value, ratio = statistics.median(values), ""
                if base and name in names[1:] and statistics.median(base):
                    ratio = f"{value / statistics.median(base):.2f}"
                cells += f"{value:11.0f}" if value >= 100 else f"{value:11.2f}"
                cells += f"{ratio:>6}"
            spread = results.get((name, case_name, "rate/s"), [0.0])
            print(f"{case_name:16}{name:9}{cells}   ({min(spread):.0f}..{max(spread):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers")
    parser.add_argument("--loads", default="", help="only loads that hold one of these, by commas")
    parser.add_argument("--only", default="", help="postfix or ours")
    arguments = parser.parse_args()
    stand.enter()
    for case_name in list(CASES):
        if arguments.loads and not any(word in case_name for word in arguments.loads.split(",")):
            del CASES[case_name]
    directory = os.path.join(stand.RIG, "bench", "tls")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    pair = Authority().issue(directory, stand.NETWORK_NAME, stand.HOST)
    starters: dict[str, Starter | None] = {"postfix": postfix, "ours": ours}
    names = [name for name in starters if arguments.only in ("", name)]
    results: Results = {}
    stand.say_load("begin")
    for number in range(arguments.rounds):
        for name in (*names, "(no MTA)"):
            begun = time.monotonic()
            play(results, name, starters.get(name), directory, pair, arguments.scale)
            print(f"round {number + 1}: {name}: {time.monotonic() - begun:.0f} s", flush=True)
    table(results, names, arguments.rounds)
    stand.say_load("end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
