"""What a standby says of itself, and what it would fail at, before anybody needs it."""

from __future__ import annotations

import os

from tests.rig.ground import VIRTUAL, Process, expect, wait_until
from tests.rig.pair import Pair, Supervised

PLAIN = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Still root, but for the right to pass over modes: as any user whose files these are."""
NO_PORT = ("setpriv", "--bounding-set=-net_bind_service")
STRANGER = 1234
"""The uid of nobody's files."""


def scenario_standby_would_fail(pair: Pair) -> None:
    """A standby names what a takeover would fail at, warns of what would differ, and takes over when it said ready."""
    b = pair["b"]
    b.wrapper = PLAIN
    pair.online()
    says(b, "takeover      ready", "owner         node node-a holds epoch 1")
    expect(asked(b) == 0, "a standby that is ready is not well for its cluster manager")
    # Another user's epoch file: published above it, a claim could not mark it.
    file = os.path.join(pair.spool, "epoch", str(pair.epoch))
    os.chown(file, STRANGER, STRANGER)
    restart(b)
    says(b, "would fail because", f"{file}: Permission denied, for uid 0")
    expect(asked(b) == os.EX_UNAVAILABLE, "the cluster manager is not told")
    os.chown(file, 0, 0)
    # A port that is taken on this node only, and a configuration that is not the owner's.
    holder = pair.raw_socket("b", 2)
    holder.setsockopt(1, 2, 1)
    holder.bind(("0.0.0.0", 25))
    holder.listen(5)
    with open(b.configuration, encoding="utf-8") as opened:
        right = opened.read()
    write(b, right.replace("concurrency: 20", "concurrency: 19"))
    restart(b)
    says(
        b,
        "would fail because",
        f"port 25 of {VIRTUAL} is taken by",
        "configuration of node-a is another",
    )
    holder.close()
    # A file that the next start would refuse: this process could still take over.
    write(b, right.replace("concurrency: 20", "concurency: 20"))
    b.process().send_signal(1)
    says(b, "takeover      ready", "a restart would be refused", "did you mean concurrency?")
    write(b, right)
    # Without the right to its port it does not even begin.
    b.hold()
    b.process().stop(20)
    b.wrapper = NO_PORT
    refused = b.start_mta(wait=False)
    wait_until(lambda: not refused.is_running, 10, "it runs without the right to port 25")
    expect(refused.popen.returncode == os.EX_NOPERM, f"status {refused.popen.returncode}")
    expect("CAP_NET_BIND_SERVICE" in refused.log(), refused.log()[-400:])
    # What was said to be ready is.
    b.wrapper = PLAIN
    b.supervise()
    says(b, "takeover      ready")
    pair.kill("a")
    pair.move("b")
    pair.wait_owner("b")
    says(b, "owner of bridgehead.example.org", "last takeover", "wrong source  0")


def restart(node: Supervised) -> Process:
    """As after SIGTERM: a standby that begins looks at once."""
    before = node.process()
    before.stop(20)
    wait_until(lambda: node.process() is not before, 10, f"{node.name} is not started again")
    node.wait_answering()
    return node.process()


def says(node: Supervised, *words: str) -> None:
    """Soon after a start, a reload or a change `mta status` says all of `words`."""
    said = ""

    def right() -> bool:
        nonlocal said
        said = node.command("status", check=False).stdout
        return all(word in said for word in words)

    try:
        wait_until(right, 10, "not said", step=0.2)
    finally:
        expect(right(), f"{node.name} never says {words}, but {said[:900]!r}")


def asked(node: Supervised) -> int:
    return int(node.command("probe", "--level", "0", "--standby", check=False).returncode)


def write(node: Supervised, text: str) -> None:
    with open(node.configuration, "w", encoding="utf-8") as file:
        file.write(text)
