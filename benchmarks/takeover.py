"""From the last required address usable to the first 220, with a queue of any length.

Two real MTAs in namespaces share one spool (tests/rig/pair.py). The owner is killed by kill -9, the
addresses are put on the standby, and a peer connects again and again until it is greeted; nobody
but the MTA announces the address. Every queued message was tried and deferred before. Prints p50,
p99 and the longest, the phases of the last takeover as `mta status` has them, and memory and
descriptors of the first and the last owner; asserts nothing. Needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.rig import run as rig_run
from tests.rig.ground import RIG, VIRTUAL, VIRTUAL6, Process, wait_until
from tests.rig.pair import Pair
from tests.rig.peers import source

DEAD = """
- name: hub
  kind: smtp
  bridgeheads: ["10.9.0.3:2525"]
  address-spaces: [{domain: "*", cost: 10}]
"""


def greeted(pair: Pair) -> bool:
    try:
        # A SYN that goes to the former owner's hardware address is lost: try anew soon.
        with pair.connect("peer", VIRTUAL, 25, 0.01) as made:
            made.settimeout(2)
            return made.recv(100).startswith(b"220")
    except OSError:
        return False


def footprint(process: Process) -> str:
    descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))
    return f"{process.resident_mib():.0f} MiB, {descriptors} descriptors"


def take_over(pair: Pair, frm: str, to: str) -> float:
    """Seconds from the last address to the first 220; `frm` comes back as the standby after it."""
    pair.process(frm).kill()
    pair.take(frm)
    pair.ip(to, "addr", "add", f"{VIRTUAL}/32", "dev", "eth0")
    begun = time.perf_counter()
    pair.ip(to, "-6", "addr", "add", f"{VIRTUAL6}/128", "dev", "eth0", "nodad")
    while not greeted(pair):
        if time.perf_counter() - begun > 60:
            raise SystemExit(f"node {to} does not greet: {pair[to].status_text()}")
        time.sleep(0.0005)
    return time.perf_counter() - begun


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=10_000)
    parser.add_argument("-n", "--takeovers", type=int, default=100)
    parser.add_argument("-l", "--length", type=int, default=500, help="octets of a message")
    arguments = parser.parse_args()
    if rig_run.INSIDE not in os.environ:
        return rig_run.enter()
    rig_run.prepare()
    pair = Pair(os.path.join(RIG, "run", "takeover-bench"))
    try:
        pair.build()
        pair.online(connectors=DEAD, queue="lifetime: 5d\nbackoff: [4h]")
        source(pair, arguments.messages, sessions=20, length=arguments.length, timeout=3600)
        owner, standby = "a", "b"
        first = footprint(pair.process(owner))
        times: list[float] = []
        for _ in range(arguments.takeovers):
            pair[standby].wait_answering(60)
            wait_until(lambda node=standby: pair[node].state() == "standby", 60, "no standby")  # type: ignore[misc]
            times.append(take_over(pair, owner, standby))
            owner, standby = standby, owner
        status = pair[owner].status()
        queued = status["queue"]["messages"]
        print(f"\n{arguments.takeovers} takeovers, {queued} messages queued")
        for name, value in (
            ("p50", statistics.median(times)),
            ("p99", percentile(times, 0.99)),
            ("longest", max(times)),
        ):
            print(f"last address usable -> first 220, {name:8} {value * 1000:8.1f} ms")
        for phase, seconds in status["cluster"].get("last_takeover", {}).items():
            print(f"  of the last one, {phase:24} {seconds}")
        print(f"first owner {first}; last owner {footprint(pair.process(owner))}")
    finally:
        for mta in pair.mtas.values():
            mta.hold()
        pair.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
