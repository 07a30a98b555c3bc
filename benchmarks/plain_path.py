"""What features cost the plain path: `python benchmarks/plain_path.py [--against DIRECTORY]`.

4 KiB, 20 sessions with reuse, smtp-source -> MTA -> smtp-sink, our MTA alone and in some of its
configurations: `least` with everything off that can be off; `default`; `offered`, where STARTTLS,
AUTH, REQUIRETLS and a submission listener stand ready and nobody uses them; `limits`, behind that
policy; `milter`, behind an opendkim that has no key for this mail. With --against also `base`: the
default configuration by another checkout's program (`git worktree add DIRECTORY COMMIT`).

Calls are Python's for one message, under a profiler, and barely depend on the machine. CPU is the
MTA's without one; the rounds are interleaved, x is the median of the ratios to `least` within one
round. Prints a table, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import budget, stand
from mta.testing.certificates import Authority

DEFAULT = "default"
BASE = "base"
LEAST = stand.Extra(
    listener=", tls: none, requiretls: false, future-release: 0s, chunking: false",
    connector="tls: none",
)
LIMITS = stand.Extra(
    blocks="policies: [{policy: limits, connections: 1000000, messages: 1000000,"
    " recipients: 1000000}]\n"
)


def offered(directory: str) -> stand.Extra:
    pair = Authority().issue(directory, stand.NETWORK_NAME)
    passwords = os.path.join(directory, "passwords")
    made = subprocess.run(
        [os.path.join(stand.VENV_BIN, "mta"), "password", "--user", "alice", "--scram"],
        input="correct horse",
        capture_output=True,
        text=True,
        check=True,
    )
    with open(os.open(passwords, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(made.stdout)
    return stand.Extra(
        listener=", auth: tls, checkpoint-from: [192.0.2.0/24]",
        listeners=f"  - {{kind: submission, port: {stand.free_port()}}}\n",
        blocks=f"""\
auth: {{kind: passwords, password-file: {passwords}}}
tls: {{certificates: [{{chain: {pair.chain}, key-file: {pair.key}}}]}}
""",
    )


def opendkim(directory: str) -> tuple[stand.Extra, stand.Tree]:
    """A real filter that looks at every message and leaves it as it is."""
    path, where = os.path.join(directory, "opendkim.sock"), os.path.join(directory, "opendkim.conf")
    with open(where, "w", encoding="ascii") as file:
        file.write(
            f"Socket local:{path}\nMode s\nDomain nobody.example\nSelector s\n"
            f"KeyFile {directory}/{stand.NETWORK_NAME}.key\nBackground no\nSyslog no\n"
            "InternalHosts csl:127.0.0.0/8\nRequireSafeKeys no\n"
        )
    argv = [os.path.join(stand.UNPACKED, "usr/sbin/opendkim"), "-f", "-x", where]
    tree = stand.Tree(argv, os.path.join(directory, "opendkim.log"), stand.peer_environment())
    tree.wait(lambda: os.path.exists(path), 10, "opendkim does not start")
    return stand.Extra(blocks=f"policies: [{{policy: milter, socket: 'unix:{path}'}}]\n"), tree


Starter = Callable[[str, int, int, Sequence[str]], stand.Tree]


def starter(extra: stand.Extra, root: str) -> Starter:
    return lambda where, port, hop, twistd: stand.start_ours(
        where, port, hop, twistd=twistd, extra=extra, root=root
    )


def spend(start: Starter, name: str, directory: str, count: int, sessions: int) -> float:
    """CPU microseconds a message, of a fresh MTA that has warmed up."""
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    sink, port = stand.Sink(directory), stand.free_port()
    tree = start(directory, port, sink.port, ())
    try:
        tree.wait_greeting(port, name)
        stand.source(port, 300, sessions, 4096, True)
        sink.wait(300, 30)
        time.sleep(0.5)  # spare segments are filled
        cpu = tree.cpu_seconds()
        stand.source(port, count, sessions, 4096, True)
        if not sink.wait(300 + count, 60):
            print(f"  {name}: only {sink.count() - 300} of {count} arrived", flush=True)
        return (tree.cpu_seconds() - cpu) / count * 1e6
    finally:
        tree.stop()
        sink.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-m", "--messages", type=int, default=3000)
    parser.add_argument("-s", "--sessions", type=int, default=20)
    parser.add_argument("--only", default="", help="some of the configurations, by commas")
    parser.add_argument("--against", default="", help="directory of another checkout")
    arguments = parser.parse_args()
    against = os.path.abspath(arguments.against) if arguments.against else ""
    if against and not os.path.exists(os.path.join(against, "mta", "tap.py")):
        parser.error(f"--against {against}: holds no checkout of this program")
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "plain")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    extras = {"least": LEAST, DEFAULT: stand.Extra(), "offered": offered(directory)}
    extras["limits"] = LIMITS
    extras["milter"], filtered = opendkim(directory)
    starters = {name: starter(extra, stand.ROOT) for name, extra in extras.items()}
    if against:
        starters[BASE] = starter(stand.Extra(), against)
    names = [
        name
        for name in starters
        if not arguments.only or name in (*arguments.only.split(","), "least")
    ]
    where = os.path.join(directory, "mta")
    stand.say_load("begin")
    calls = {}
    for name in names:
        rows = budget.profile(starters[name], where, arguments.messages, arguments.sessions)
        calls[name] = sum(row.calls for row in rows)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            spent[name].append(
                spend(starters[name], name, where, arguments.messages, arguments.sessions)
            )
        said = ", ".join(f"{name} {spent[name][-1]:.0f}" for name in names)
        print(f"round {number + 1}: CPU us a message: {said}", flush=True)
    filtered.stop()
    print(f"\n{arguments.rounds} interleaved rounds of {arguments.messages} messages")
    print(f"{'':10}{'calls':>8}{'x':>7}{'CPU us':>9}{'x':>7}   (lowest..highest)")
    for name in names:
        values = spent[name]
        ratio = statistics.median(
            mine / least for mine, least in zip(values, spent["least"], strict=True)
        )
        print(
            f"{name:10}{calls[name]:8.0f}{calls[name] / calls['least']:7.2f}"
            f"{statistics.median(values):9.0f}{ratio:7.2f}   ({min(values):.0f}..{max(values):.0f})"
        )
    if against:
        print(f"{BASE} is {against}")
    stand.say_load("end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
