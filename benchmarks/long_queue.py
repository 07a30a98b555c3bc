"""A long queue: how fast the MTA starts on it, and what a queued message costs in memory.

Fills the real spool over SMTP while the next hop is dead, so that every message was tried and
deferred, then measures from exec to the first 220: after an orderly stop and after kill -9. Bytes
per message are the difference of proportional memory to the same process on an empty spool, five
seconds after the 220. Prints a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand

QUEUE = "lifetime: 5d, backoff: [4h]"


def start(directory: str, port: int, dead: int) -> tuple[stand.Tree, float]:
    tree = stand.start_ours(directory, port, dead, QUEUE)
    seconds = tree.wait_greeting(port, "the MTA", 120)
    return tree, seconds


def settled_mib(tree: stand.Tree) -> float:
    time.sleep(5.0)
    return tree.memory_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=100_000)
    parser.add_argument("-l", "--length", type=int, default=1000, help="octets of a message")
    arguments = parser.parse_args()
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "queue")
    shutil.rmtree(directory, ignore_errors=True)
    port, dead = stand.free_port(), stand.free_port()
    tree, empty_seconds = start(directory, port, dead)
    tree.stop()
    tree, _ = start(directory, port, dead)
    empty = settled_mib(tree)
    begun = time.perf_counter()
    stand.source(port, arguments.messages, 20, arguments.length, True, seconds=1800)
    filled = time.perf_counter() - begun
    working = settled_mib(tree)
    tree.stop()
    rows = [("empty spool", empty_seconds, empty, 0.0)]
    rows.append(
        ("just filled", filled, working, (working - empty) * 1_048_576 / arguments.messages)
    )
    for name, ending in (("after SIGTERM", signal.SIGTERM), ("after kill -9", signal.SIGKILL)):
        tree, seconds = start(directory, port, dead)
        mib = settled_mib(tree)
        rows.append((name, seconds, mib, (mib - empty) * 1_048_576 / arguments.messages))
        tree.stop(signal.SIGKILL if ending == signal.SIGTERM else signal.SIGTERM)
    size = sum(
        os.stat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(os.path.join(directory, "spool"))
        for name in names
    )
    print(f"\n{arguments.messages} messages of {arguments.length} octets, each deferred once")
    print(f"{'':16}{'seconds':>10}{'MiB':>10}{'bytes/message':>15}")
    for name, seconds, mib, each in rows:
        print(f"{name:16}{seconds:10.2f}{mib:10.1f}{each:15.0f}")
    each_octets = size / arguments.messages
    print(f"spool on disk: {size / 1_048_576:.0f} MiB ({each_octets:.0f} octets/message)")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
