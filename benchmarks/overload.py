"""Twice what it can do: is waiting bounded by refusing, and memory at all? `make bench-overload`.

First the rate is measured that the MTA reaches with 25 clients, a new connection for each message.
`front`: then twice that rate is offered for a while by 200 clients, whether or not replies come, to
a listener that takes 50 connections. `behind`: the next hop waits before each reply to a final dot,
so that half of that rate goes through, and 0.8 of it is offered: the queue grows. Printed are what
was accepted and refused, by its reply, how long those that were accepted waited (since they were
due, and from the final dot to the 250), the peak of memory, the longest queue, and whether all that
was accepted has arrived in the end. Postfix has as many processes. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import mail, stand

CONNECTIONS = 50
CLIENTS = 200
ASSOCIATIONS = 20
"""Outbound, of both (Postfix's default_destination_concurrency_limit)."""


def ours(where: str, port: int, next_hop: int) -> stand.Tree:
    extra = stand.Extra(listener=f", limits: {{connections: {CONNECTIONS}}}")
    return stand.start_ours(where, port, next_hop, extra=extra)


def postfix(where: str, port: int, next_hop: int) -> stand.Tree:
    """Its limit of processes bounds connections; more of them wait in the kernel."""
    return stand.start_postfix(where, port, next_hop, default_process_limit=str(CONNECTIONS))


class Queue:
    """Accepted and not yet at the sink: the most of it, looked at ten times a second."""

    def __init__(self, board: mail.Board) -> None:
        self.longest = 0
        self._board = board
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Queue:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.longest = max(self.longest, self._board.accepted() - self._board.arrivals())


def capacity(name: str, start: Callable[[str, int, int], stand.Tree], where: str) -> float:
    """Messages a second from the first to the last in the sink."""
    count = 1000
    board = mail.Board(count)
    sink, port = mail.Sink(board), stand.free_port()
    tree = start(fresh(where), port, sink.port)
    try:
        tree.wait_greeting(port, name)
        begun = time.monotonic()
        # Fewer than are taken: one that has just left still counts for a moment.
        mail.send(board, range(count), port, mail.Load(sessions=CONNECTIONS // 2, reuse=False))
        arrived = board.wait(0, count)
        return arrived / (max(board.arrived) - begun)
    finally:
        tree.stop()
        sink.stop()


def overload(
    name: str,
    start: Callable[[str, int, int], stand.Tree],
    where: str,
    case: str,
    rate: float,
    seconds: float,
    manners: mail.Manners,
) -> None:
    count = int(rate * seconds)
    board = mail.Board(count)
    sink, port = mail.Sink(board, manners=manners), stand.free_port()
    tree = start(fresh(where), port, sink.port)
    try:
        tree.wait_greeting(port, name)
        time.sleep(1.0)
        rest = tree.memory_mib()
        tree.reset_peak()
        begun = time.monotonic()
        with Queue(board) as queue:
            mail.send(
                board, range(count), port, mail.Load(sessions=CLIENTS, reuse=False, rate=rate)
            )
            offered = time.monotonic() - begun
            accepted = board.accepted()
            ends = time.monotonic() + 120
            while board.arrivals() < accepted and time.monotonic() < ends:
                time.sleep(0.1)
        whole = time.monotonic() - begun
        due, dot = (board.waits(column, board.answered) for column in (board.due, board.sent))
        codes = {code: number for code, number in board.codes().items() if code != 250}
        refused = ", ".join(f"{number} {said(code)}" for code, number in sorted(codes.items()))
        lost = sum(1 for n in range(count) if board.code[n] == 250 and not board.arrived[n])
        print(
            f"{name:8} {case:7} {rate:6.0f}/s offered for {seconds:.0f} s, all answered after"
            f" {offered:.0f} s, relayed after {whole:.0f} s\n"
            f"{'':17}accepted {accepted} of {count}; refused: {refused or 'none'}\n"
            f"{'':17}due to 250: p50 {ms(due, 0.5)}, p99 {ms(due, 0.99)}; "
            f"final dot to 250: p50 {ms(dot, 0.5)}, p99 {ms(dot, 0.99)}\n"
            f"{'':17}memory {rest:.0f} MiB at rest, {tree.peak_mib:.0f} at the peak; longest queue "
            f"{queue.longest}; accepted and not arrived: {lost}",
            flush=True,
        )
    finally:
        tree.stop()
        sink.stop()
        shutil.rmtree(where, ignore_errors=True)


def said(code: int) -> str:
    return {mail.LOST: "lost", 0: "without any reply"}.get(code, str(code))


def ms(ordered: list[float], share: float) -> str:
    return f"{mail.quantile(ordered, share) * 1000:.0f} ms"


def fresh(where: str) -> str:
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-t", "--seconds", type=float, default=15.0)
    parser.add_argument("--factor", type=float, default=2.0, help="of what it can do")
    parser.add_argument("--only", default="", help="postfix or ours")
    arguments = parser.parse_args()
    stand.enter()
    starters = {"postfix": postfix, "ours": ours}
    stand.say_load("begin")
    for name, start in starters.items():
        if arguments.only not in ("", name):
            continue
        where = os.path.join(stand.RIG, "bench", "overload")
        able = capacity(name, start, where)
        print(f"{name:8} relays {able:.0f} messages a second, a connection each", flush=True)
        rate = able * arguments.factor
        overload(name, start, where, "front", rate, arguments.seconds, mail.Manners())
        # Each of the outbound associations waits so long that half of `able` goes through.
        pause = ASSOCIATIONS / (able / arguments.factor)
        slow = mail.Manners(pause_seconds=pause)
        overload(name, start, where, "behind", able * 0.8, arguments.seconds, slow)
    stand.say_load("end")


if __name__ == "__main__":
    main()
