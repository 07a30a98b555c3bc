"""Instructions a relayed message: `python benchmarks/instructions.py`.

The clock of a busy machine says nothing under ten percent, and counts of Python calls weigh all
calls alike. Valgrind counts the processor's instructions: two runs of one tree agree within a
percent, whoever else is busy. The kernel's are not in it, nor what waiting costs; and as valgrind
runs one thread at a time, slowly, groups of commits differ from true ones. So it judges changes of
our own code, and nothing else. A short run is taken from a long one, so that starting does not
count. Prints figures, asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import stand

SHORT = 200


def counted(directory: str, messages: int, sessions: int) -> int:
    """Instructions of a whole life of the process that relays so many messages."""
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    sink, port = stand.Sink(directory), stand.free_port()
    wrapper = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    tree = stand.start_ours(directory, port, sink.port, wrapper=wrapper)
    try:
        tree.wait(lambda: stand.greets(port), 300, "the MTA does not start")
        stand.source(port, messages, sessions, 4096, True, 900)
        if not sink.wait(messages, 60):
            raise RuntimeError("not everything arrived")
    finally:
        tree.stop(signal.SIGINT)
        sink.stop()
    with open(tree.log_path, encoding="utf-8", errors="replace") as file:
        found = re.findall(r"I +refs: +([\d,]+)", file.read())
    return int(found[-1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--messages", type=int, default=1000)
    parser.add_argument("-s", "--sessions", type=int, default=20)
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("instructions: run: apt-get install --no-install-recommends valgrind")
    stand.enter()
    directory = os.path.join(stand.RIG, "bench", "instructions")
    low = counted(directory, SHORT, arguments.sessions)
    high = counted(directory, SHORT + arguments.messages, arguments.sessions)
    print(f"{(high - low) / arguments.messages / 1000:.1f} thousand instructions a message")
    print(f"{low / 1e6:.0f} million to start, relay {SHORT} and end")
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
