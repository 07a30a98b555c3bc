"""A backlog to many destinations, some of them dead and some slow: `make bench-queue`.

Messages for as many destinations are queued while nothing can be reached. Then the MTA starts with
`delivery: mx`, a real name server (nsd) knows them all, and `mta queue retry --all` lets them go.
A tenth of the destinations is dead (their host lets no connection in and says nothing), a tenth
slow (their host waits before each reply to DATA); all others are healthy, and share one host.

That is done twice, `healthy` with the mail for healthy destinations alone, `mixed` with all of it:
the ratio of the times in which the healthy ones were served says whether the others stood in their
way. Prints a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import mail, stand

HEALTHY, SLOW, DEAD = "10.77.1.1", "10.77.1.2", "10.77.1.3"
"""Not on 127/8, where names may not lead; all on the loopback of this namespace."""
QUEUE = "lifetime: 5d, backoff: [4h]"
SLOW_SECONDS = 1
FILLING = 20


def kind_of(number: int) -> str:
    """Of a destination."""
    return {0: DEAD, 1: SLOW}.get(number % 10, HEALTHY)


class Names:
    """nsd with one zone."""

    def __init__(self, directory: str, destinations: int) -> None:
        self.port = stand.free_port()
        zone = ["$ORIGIN example.com.", "$TTL 600", "@ SOA ns root 1 60 60 60 60", "@ NS ns"]
        zone.append(f"ns A {stand.HOST}")
        for number in range(destinations):
            zone += [f"d{number} MX 10 mx{number}", f"mx{number} A {kind_of(number)}"]
        with open(os.path.join(directory, "zone"), "w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in zone)
        conf = os.path.join(directory, "nsd.conf")
        with open(conf, "w", encoding="ascii") as file:
            file.write(
                f'server:\n ip-address: {stand.HOST}\n port: {self.port}\n username: ""\n'
                f' chroot: ""\n zonesdir: "{directory}"\n database: ""\n pidfile: ""\n'
                f' zonelistfile: "{directory}/list"\n xfrdfile: "{directory}/xfrd"\n'
                f' xfrdir: "{directory}"\n server-count: 1\n'
                "remote-control:\n control-enable: no\n"
                f'zone:\n name: "example.com"\n zonefile: "{directory}/zone"\n'
            )
        argv = [os.path.join(stand.UNPACKED, "usr/sbin/nsd"), "-d", "-c", conf]
        log_path = os.path.join(directory, "nsd.log")
        self._tree = stand.Tree(argv, log_path, stand.peer_environment())
        self._tree.wait(self._listens, 10, "nsd does not start")

    def _listens(self) -> bool:
        with socket.socket() as made:
            return made.connect_ex((stand.HOST, self.port)) == 0

    def stop(self) -> None:
        self._tree.stop()


class Silence:
    """A port where nobody is ever let in: its queue is full, so that the kernel drops each SYN."""

    def __init__(self, host: str, port: int) -> None:
        self._listening = socket.socket()
        self._listening.bind((host, port))
        self._listening.listen(0)
        self._filling = []
        for _ in range(8):
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex((host, port))
            self._filling.append(made)

    def close(self) -> None:
        for made in (*self._filling, self._listening):
            made.close()


@dataclass
class Outcome:
    messages: int
    seconds: float
    """Until the healthy ones were served."""
    slow_seconds: float
    cpu_ms: float
    """For each message that was delivered."""
    start_mib: float
    peak_mib: float
    delivered: int
    halfway: float
    """Seconds until half of the healthy ones were served."""


def fill(directory: str, messages: list[int], destinations: int) -> None:
    """Message number n goes to destination n % destinations; nobody can be reached."""
    port, dead = stand.free_port(), stand.free_port()
    tree = stand.start_ours(directory, port, dead, QUEUE)
    try:
        tree.wait_greeting(port, "the MTA")
        board = mail.Board(max(messages) + 1)
        load = mail.Load(1000, FILLING, destinations=destinations)
        spent = mail.send(board, messages, port, load)
        if board.accepted() < len(messages):
            raise SystemExit(f"only {board.accepted()} of {len(messages)} were accepted")
        print(f"  filled in {spent.seconds:.0f} s", flush=True)
    finally:
        tree.stop()


def deliver(directory: str, messages: list[int], destinations: int, limit: float) -> Outcome:
    wanted = dict.fromkeys((HEALTHY, SLOW, DEAD), 0)
    for number in messages:
        wanted[kind_of(number % destinations)] += 1
    names, port, mx = Names(directory, destinations), stand.free_port(), stand.free_port()
    healthy = stand.Sink(directory, (HEALTHY, mx), ("-m", "4000"), "healthy")
    slow = stand.Sink(directory, (SLOW, mx), ("-m", "4000", "-w", str(SLOW_SECONDS)), "slow")
    silence = Silence(DEAD, mx)
    extra = stand.Extra(
        connectors=f"  - {{name: all, kind: smtp, delivery: mx, port: {mx}, tls: none,"
        ' address-spaces: [{domain: "*", cost: 10}]}\n',
        blocks=f'resolver: {{servers: ["{stand.HOST}:{names.port}"]}}\n',
    )
    tree = stand.start_ours(directory, port, 9, QUEUE, extra=extra)
    try:
        tree.wait_greeting(port, "the MTA", 120)
        time.sleep(2.0)
        rest, cpu = tree.memory_mib(), tree.cpu_seconds()
        tree.reset_peak()
        begun = time.monotonic()
        # It answers when it has come to the last message; mail flows long before.
        retry = subprocess.Popen(
            [
                *(os.path.join(stand.VENV_BIN, "mta"), "--socket", f"{directory}/control.sock"),
                *("queue", "retry", "--all"),
            ],
            stdout=subprocess.DEVNULL,
        )
        halfway = seconds = slow_seconds = 0.0
        while (now := time.monotonic() - begun) < limit:
            served = healthy.count()
            if not halfway and served >= wanted[HEALTHY] / 2:
                halfway = now
            if not seconds and served >= wanted[HEALTHY]:
                seconds = now
            if not slow_seconds and slow.count() >= max(1, wanted[SLOW]):
                slow_seconds = now
            if seconds and (slow_seconds or not wanted[SLOW]):
                break
            time.sleep(0.02)
        if retry.wait(60):
            print("  mta queue retry failed", flush=True)
        delivered = healthy.count() + slow.count()
        return Outcome(
            len(messages),
            seconds,
            slow_seconds,
            (tree.cpu_seconds() - cpu) / max(1, delivered) * 1000,
            rest,
            tree.peak_mib,
            delivered,
            halfway,
        )
    finally:
        tree.stop()
        for sink in (healthy, slow):
            sink.stop()
        silence.close()
        names.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=100_000)
    parser.add_argument("-d", "--destinations", type=int, default=1000)
    parser.add_argument("-t", "--limit", type=float, default=600, help="seconds to wait, at most")
    arguments = parser.parse_args()
    stand.enter()
    for address in (HEALTHY, SLOW, DEAD):
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    directory = os.path.join(stand.RIG, "bench", "backlog")
    everything = list(range(arguments.messages))
    alone = [n for n in everything if kind_of(n % arguments.destinations) == HEALTHY]
    outcomes = {}
    stand.say_load("begin")
    for case, messages in (("healthy", alone), ("mixed", everything)):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        fill(directory, messages, arguments.destinations)
        outcomes[case] = deliver(directory, messages, arguments.destinations, arguments.limit)
        print(f"  {case}: over", flush=True)
    print(
        f"\n{arguments.messages} messages of 1000 octets to {arguments.destinations} destinations, "
        f"a tenth of them dead, a tenth slow ({SLOW_SECONDS} s a message)"
    )
    print(
        f"{'':9}{'queued':>8}{'delivered':>11}{'half s':>8}{'all s':>8}{'each/s':>8}{'slow s':>8}"
        f"{'CPU ms':>8}{'MiB at rest':>13}{'peak':>7}"
    )
    for case, outcome in outcomes.items():
        rate = len(alone) / outcome.seconds if outcome.seconds else 0.0
        print(
            f"{case:9}{outcome.messages:8}{outcome.delivered:11}{outcome.halfway:8.1f}"
            f"{outcome.seconds:8.1f}{rate:8.0f}{outcome.slow_seconds:8.1f}{outcome.cpu_ms:8.2f}"
            f"{outcome.start_mib:13.0f}{outcome.peak_mib:7.0f}"
        )
    print("half, all, each: of the healthy destinations alone; slow: of the slow; 0.0: never")
    one, other = outcomes["healthy"].seconds, outcomes["mixed"].seconds
    if one and other:
        print(f"beside dead and slow ones the healthy took {other / one:.2f} times as long")
    stand.say_load("end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
