"""A long queue: how fast the MTA starts on it, what a queued message costs in memory, and in work.

Fills the real spool over SMTP while the next hop is dead, so that every message was tried and
deferred, then measures from exec to the first 220: after an orderly stop and after kill -9. Bytes
per message are the difference of proportional memory to the same process on an empty spool, five
seconds after the 220. `idle` is the CPU of ten seconds in which nothing is due; `through` that of a
message of 4 KiB that another next hop takes meanwhile, which is what scheduling costs beside a long
queue. Prints a table, asserts nothing; `-m 1000000` for the floor of the design.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand

QUEUE = "lifetime: 5d, backoff: [4h]"
IDLE_SECONDS = 10.0
THROUGH = 2000
LIVE = "user@live.example.net"


@dataclass
class Row:
    name: str
    seconds: float
    mib: float
    idle_ms: float
    """CPU a second."""
    through_ms: float
    """CPU a message."""


class Stand:
    """The MTA on one spool, the dead next hop, and a live one."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.port, dead = stand.free_port(), stand.free_port()
        self._sink = stand.Sink(directory)
        self._extra = stand.Extra(
            connectors=f"""\
  - name: dead
    kind: smtp
    bridgeheads: ["{stand.HOST}:{dead}"]
    address-spaces: [{{domain: "*", cost: 10}}]
  - name: live
    kind: smtp
    bridgeheads: ["{stand.HOST}:{self._sink.port}"]
    address-spaces: [{{domain: live.example.net, cost: 10}}]
"""
        )

    def start(self) -> tuple[stand.Tree, float]:
        """The MTA, and the seconds until its 220."""
        tree = stand.start_ours(self._directory, self.port, 9, QUEUE, extra=self._extra)
        return tree, tree.wait_greeting(self.port, "the MTA", 120)

    def look(self, name: str, tree: stand.Tree, seconds: float) -> Row:
        time.sleep(5.0)
        mib, cpu = tree.memory_mib(), tree.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        idle = tree.cpu_seconds() - cpu
        before, cpu = self._sink.count(), tree.cpu_seconds()
        stand.source(self.port, THROUGH, 20, 4096, True, recipient=LIVE)
        if not self._sink.wait(before + THROUGH, 60):
            print(f"  {name}: {self._sink.count() - before} of {THROUGH} went through", flush=True)
        through = tree.cpu_seconds() - cpu
        return Row(name, seconds, mib, idle / IDLE_SECONDS * 1000, through / THROUGH * 1000)

    def stop(self) -> None:
        self._sink.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=100_000)
    parser.add_argument("-l", "--length", type=int, default=1000, help="octets of a message")
    arguments = parser.parse_args()
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "queue")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    stand.say_load("begin")
    ground = Stand(directory)
    tree, _ = ground.start()
    tree.stop()
    tree, seconds = ground.start()
    rows = [ground.look("empty spool", tree, seconds)]
    begun = time.perf_counter()
    stand.source(ground.port, arguments.messages, 20, arguments.length, True, seconds=3600)
    filled = time.perf_counter() - begun
    rows.append(ground.look("just filled", tree, filled))
    tree.stop()
    for name, ending in (("after SIGTERM", signal.SIGKILL), ("after kill -9", signal.SIGTERM)):
        tree, seconds = ground.start()
        rows.append(ground.look(name, tree, seconds))
        tree.stop(ending)
    ground.stop()
    size = sum(
        os.stat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(os.path.join(directory, "spool"))
        for name in names
    )
    print(f"\n{arguments.messages} messages of {arguments.length} octets, each deferred once")
    print(
        f"{'':16}{'seconds':>10}{'MiB':>10}{'bytes/message':>15}{'idle ms/s':>11}{'through ms':>12}"
    )
    for row in rows:
        each = (row.mib - rows[0].mib) * 1_048_576 / arguments.messages
        print(
            f"{row.name:16}{row.seconds:10.2f}{row.mib:10.1f}{each:15.0f}"
            f"{row.idle_ms:11.1f}{row.through_ms:12.2f}"
        )
    each_octets = size / arguments.messages
    print(f"spool on disk: {size / 1_048_576:.0f} MiB ({each_octets:.0f} octets/message)")
    stand.say_load("end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
