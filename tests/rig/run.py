"""Runs the rig's scenarios: `make rig`, or `make rig SCENARIOS="crash disk"` for some of them.

A scenario is a function `scenario_NAME(rig: Rig)`, or `(pair: Pair)` for two nodes, or `(cluster:
Cluster)` for two under Pacemaker, in a file `scenario_*.py`; its docstring is what it promises, its
parameter's type the ground it gets. One line each: `PASS name (seconds)`, or `FAIL name: reason` with
the ends of the logs.
Needs root for namespaces; re-executes itself inside namespaces of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast, get_type_hints

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.rig.ground import PEERS, RIG, Broken  # noqa: E402
from tests.rig.node import Rig  # noqa: E402
from tests.rig.pacemaker import Cluster  # noqa: E402
from tests.rig.pair import Pair  # noqa: E402

INSIDE = "MTA_RIG_INSIDE"
NEEDED = {
    "ip": "iproute2",
    "ss": "iproute2",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "nft": "nftables",
    "swaks": "swaks",
    "mkfs.ext4": "e2fsprogs",
    "corosync": "corosync",
    "pacemakerd": "pacemaker",
    "crm_resource": "pacemaker-cli-utils",
    "ocf-tester": "resource-agents",
    "xmllint": "libxml2-utils",
    "modprobe": "kmod",
    "fuser": "psmisc",
    "dpkg": "dpkg",
    "apt-get": "apt",
}


def missing() -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted(
        {package for tool, package in NEEDED.items() if not shutil.which(tool, path=path)}
    )


def enter() -> int:
    """Check what is needed, fetch the peers, and run again inside namespaces."""
    if os.geteuid() != 0:
        print("FAIL rig: needs root for network namespaces; run: sudo make rig", flush=True)
        return 77
    lacking = missing()
    if lacking:
        line = f"apt-get install --no-install-recommends {' '.join(lacking)}"
        services = sorted({"corosync", "pacemaker"} & set(lacking))
        if services:
            line += f" (and, unless this machine is in a cluster, systemctl disable --now {' '.join(services)})"
        print(f"FAIL rig: programs are missing; run: {line}", flush=True)
        return 69
    fetch = subprocess.run(["sh", os.path.join(ROOT, "tests/rig/peers.sh"), PEERS], check=False)
    if fetch.returncode:
        print("FAIL rig: the peers could not be fetched, see above", flush=True)
        return 69
    inside = {**os.environ, INSIDE: "1", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    unshare = ["unshare", "-n", "-m", "-i", "-p", "-f", "--mount-proc", "--kill-child"]
    argv = [*unshare, "--propagation", "private", sys.executable, *sys.argv]
    os.execvpe("unshare", argv, inside)


def prepare() -> None:
    """What every ground needs of the namespaces that `enter` has made."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.makedirs("/run/netns")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


Scenario = Callable[[Any], None]


def scenarios(words: list[str]) -> Iterator[tuple[str, Scenario]]:
    """All of them in the order of files and of lines, or those whose name holds one of `words`."""
    here = os.path.dirname(os.path.abspath(__file__))
    for file in sorted(os.listdir(here)):
        if not (file.startswith("scenario_") and file.endswith(".py")):
            continue
        module = importlib.import_module(f"tests.rig.{file[:-3]}")
        theme = file[len("scenario_") : -3]
        for name, found in list(vars(module).items()):
            if name.startswith("scenario_") and callable(found):
                full = f"{theme}.{name[len('scenario_') :]}"
                if not words or any(word in full for word in words):
                    yield full, found


def ground_of(scenario: Scenario) -> type[Rig] | type[Pair] | type[Cluster]:
    """The type of its one parameter."""
    hints = get_type_hints(scenario)
    hints.pop("return", None)
    (found,) = hints.values()
    assert found in (Rig, Pair, Cluster), f"{scenario}: no such ground"
    return cast("type[Rig] | type[Pair] | type[Cluster]", found)


def play(name: str, scenario: Scenario, keep: bool) -> bool:
    begun = time.monotonic()
    directory = os.path.join(RIG, "run", name)
    reason = ""
    rig = ground_of(scenario)(directory)
    try:
        rig.build()
        scenario(rig)
        rig.at_the_end()
    except Broken as broken:
        reason = str(broken)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stdout)
    finally:
        try:
            rig.clear()
        except Exception as error:
            reason = reason or f"not cleared away: {error}"
    seconds = time.monotonic() - begun
    for line in rig.notes:
        print(f"     {line}", flush=True)
    if reason:
        for process in rig.processes:
            tail = process.log().splitlines()[-25 if process.name.startswith("mta") else -4 :]
            print(f"     --- {process.name}, status {process.popen.returncode}")
            print("\n".join(f"     {line[:400]}" for line in tail))
        print(f"FAIL {name}: {' '.join(reason.split())} ({seconds:.1f} s)", flush=True)
    else:
        print(f"PASS {name} ({seconds:.1f} s)", flush=True)
    if not keep and not reason:
        shutil.rmtree(directory, ignore_errors=True)
    return not reason


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only scenarios whose name holds one of these")
    parser.add_argument("--keep", action="store_true", help="keep the files below .rig/run")
    parser.add_argument("--list", action="store_true", help="name the scenarios and their promises")
    arguments = parser.parse_args()
    if arguments.list:
        for name, scenario in scenarios(arguments.words):
            print(f"{name:32} {(scenario.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if INSIDE not in os.environ:
        return enter()
    prepare()
    begun = time.monotonic()
    results = [
        play(name, scenario, arguments.keep) for name, scenario in scenarios(arguments.words)
    ]
    if not results:
        print("FAIL rig: no scenario of that name", flush=True)
    print(f"rig: {sum(results)} of {len(results)} in {time.monotonic() - begun:.0f} s", flush=True)
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
