"""What the re-read of the epoch costs: `python benchmarks/epoch_check.py`.

Before anything is acknowledged the owner reads the first octet of its epoch file (docs/spool.md
section 3): once for each group of commits, so at most once for each message accepted and once for
each one sent. Times that one call, through an open descriptor and, as network file systems need it,
through a fresh one, against a turn of the same loop that does nothing. Asserts nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Address

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from mta.model import Claim, Fencing, Grant, VirtualAddress
from mta.spool.directory import Directory
from mta.spool.disk import Disk
from mta.spool.epoch import OwnEpoch, publish

CALLS = 20_000
ROUNDS = 15


def nothing() -> bool:
    return True


def microseconds(call: Callable[[], bool]) -> float:
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begun) / CALLS * 1e6


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mta-epoch-") as where:
        directory = Directory(Disk(), os.path.join(where, "spool"))
        directory.initialise()
        address = VirtualAddress("ours", IPv4Address("127.0.0.1"))
        grant = Grant(0, "mail.example", (address,), Fencing.NONE)
        claim = Claim("a", "boot", 0.0, "0", "", grant)
        epoch = publish(directory, claim, 0)
        held, reopened = OwnEpoch(directory, epoch, False), OwnEpoch(directory, epoch, True)
        held.open()
        calls = {"loop": nothing, "open file": held.is_current, "reopened": reopened.is_current}
        assert all(call() for call in calls.values()), "the epoch is ours, and the check says no"
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                times[name].append(microseconds(call))
        held.close()
    loop = statistics.median(times.pop("loop"))
    for name, values in times.items():
        middle, least = statistics.median(values) - loop, min(values) - loop
        print(f"epoch check, {name:9}  median {middle:5.2f} us  least {least:5.2f} us")
    print(
        "At full load a message shares its checks with others of its group (docs/performance.md)."
    )


if __name__ == "__main__":
    main()
