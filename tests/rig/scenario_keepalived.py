"""Two nodes whose addresses Debian's keepalived moves: what its deaths, halts and silences do.

keepalived fences nobody and can name two masters; that nothing is lost, doubled beyond the law or
sent from a node's address is the spool's epochs' and the claim rules' doing.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time

from tests.rig.ground import expect, wait_until
from tests.rig.judge import Judge
from tests.rig.pair import Pair
from tests.rig.scenario_failover import ended
from tests.rig.traffic import Traffic
from tests.rig.vrrp import Vrrp

KILLS = 9
NODE_DEATHS = 2
OUTAGE_SECONDS = 0.6
DETECTED_SECONDS = 1.5
"""Of a node's death, which is noticed by silence; on a busy machine."""
BOTH_SECONDS = 5
"""Longer than takeover-after of the rig and its random delay: who would claim a leftover address has done so by then."""


def scenario_owner_killed(pair: Pair) -> None:
    """kill -9 of the owning MTA, nine times in turn: the other greets within 0.6 s (median)."""
    _, traffic, judge = under_load(pair)
    outages = Outages(pair, traffic)
    for _ in range(KILLS):
        owner = outages.begin()
        pair.kill(owner)
        outages.end(pair.other(owner))
    outages.tell("MTA killed", OUTAGE_SECONDS)
    ended(pair, traffic, judge)


def scenario_node_dies(pair: Pair) -> None:
    """A whole node dies at once and says nothing: the other greets within 1.5 s (median)."""
    vrrp, traffic, judge = under_load(pair)
    outages = Outages(pair, traffic)
    for _ in range(NODE_DEATHS):
        owner = outages.begin()
        pair[owner].hold()
        pair.part(owner)  # nothing of a dead node answers, and nothing announces its end
        vrrp.kill_all(owner)
        pair.kill(owner)
        outages.end(pair.other(owner))
        pair.take(owner)  # it boots
        pair.join(owner)
        vrrp.start(owner)
        pair[owner].supervise()
    outages.tell("node dead", DETECTED_SECONDS)
    ended(pair, traffic, judge)


def scenario_keepalived_dies(pair: Pair) -> None:
    """keepalived's child, parent or all is killed, or stopped: leftover addresses own nothing."""
    vrrp, traffic, judge = under_load(pair)
    (child,) = vrrp.children("a")
    os.kill(child, signal.SIGKILL)
    taken_over(pair, "b", "VRRP child killed")
    shows(pair, "a", "keepalived says BACKUP")  # its parent started another
    traffic.wait_promised(50)
    vrrp.parent("b").kill()  # its child ends by itself, in order
    taken_over(pair, "a", "parent killed")
    vrrp.start("b")
    shows(pair, "b", "keepalived says BACKUP")
    vrrp.kill_all("a")
    taken_over(pair, "b", "all of keepalived killed")
    epoch = pair.epoch
    for _ in range(BOTH_SECONDS):
        time.sleep(1.0)
        expect(vrrp.holders() == ["a", "b"], f"the addresses are on {vrrp.holders()}")
        expect(pair.epoch == epoch, f"epoch {epoch} became {pair.epoch}: ping-pong")
        expect(pair["b"].owns() and not pair["a"].owns(), "node b does not own alone")
    shows(pair, "a", "left over on this node")
    vrrp.start("a")
    wait_until(lambda: vrrp.holders() == ["b"], 5, "a new keepalived left the old addresses")
    shows(pair, "a", "keepalived says BACKUP")
    expect(pair.epoch == epoch, "the return of keepalived took the ownership away")
    vrrp.terminate("b")
    taken_over(pair, "a", "keepalived stopped in order")
    vrrp.start("b")
    shows(pair, "b", "keepalived says BACKUP")
    vrrp.signal_all("a", signal.SIGSTOP)
    taken_over(pair, "b", "all of keepalived stopped by a signal")
    shows(pair, "a", "keepalived is stopped")
    expect(vrrp.holders() == ["a", "b"], f"the addresses are on {vrrp.holders()}")
    traffic.wait_promised(50)
    vrrp.signal_all("a", signal.SIGCONT)
    wait_until(lambda: len(vrrp.holders()) == 1, 5, "both nodes keep the addresses")
    (holder,) = vrrp.holders()
    taken_over(pair, holder, "continued")
    ended(pair, traffic, judge)


def scenario_network(pair: Pair) -> None:
    """Carrier lost, a partition with two masters, a change of priority, an interface down."""
    vrrp, traffic, judge = under_load(pair)
    pair.unplug("a")
    taken_over(pair, "b", "switch port down")
    shows(pair, "a", "keepalived says FAULT")
    traffic.wait_promised(50)
    pair.plug("a")
    shows(pair, "a", "keepalived says BACKUP")
    pair.part("b")
    taken_over(pair, "a", "partition")
    expect(vrrp.holders() == ["a", "b"], f"the addresses are on {vrrp.holders()}")
    shows(pair, "b", "keepalived says MASTER")  # two masters; the epoch says who owns
    expect(pair["a"].owns() and not pair["b"].owns(), "node a does not own alone")
    traffic.wait_promised(50)
    pair.join("b")
    wait_until(lambda: len(vrrp.holders()) == 1, 5, "both nodes keep the addresses")
    (owner,) = vrrp.holders()
    taken_over(pair, owner, "partition healed")
    shows(pair, pair.other(owner), "keepalived says BACKUP")
    vrrp.change_priority(pair.other(owner), 200)
    vrrp.change_priority(owner, 50)
    time.sleep(1.0)
    expect(vrrp.holders() == [owner], "a priority took the addresses from a healthy owner")
    # A reload closes the FIFO for a moment; an owner that sees that claims anew.
    wait_until(pair[owner].owns, 5, "after a reload of keepalived nobody owns")
    traffic.wait_promised(50)
    pair.ip(owner, "link", "set", "eth0", "down")
    taken_over(pair, pair.other(owner), "eth0 down")
    pair.ip(owner, "link", "set", "eth0", "up")
    shows(pair, owner, "keepalived says BACKUP")
    ended(pair, traffic, judge)


def scenario_mta_halted(pair: Pair) -> None:
    """An MTA that runs and does not answer loses the addresses; what it wakes to is not its own."""
    _, traffic, judge = under_load(pair, is_probed=True)
    stopped, begun = pair.freeze("a"), time.monotonic()
    pair.wait_owner("b")
    pair.note(f"MTA stopped by a signal: 220 from node b after {time.monotonic() - begun:.1f} s")
    traffic.wait_promised(50)
    pair.thaw(stopped)
    shows(pair, "a", "keepalived says BACKUP")
    expect(pair["b"].owns() and not pair["a"].owns(), "node b does not own alone")
    ended(pair, traffic, judge)


def scenario_mta_restarts(pair: Pair) -> None:
    """The MTA restarts while keepalived stays MASTER and says nothing: the node comes online."""
    _, traffic, judge = under_load(pair, is_tracked=False)
    record = os.path.join(pair["a"].home, "state", "keepalived.role")
    for how, number in (("kill -9", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        epoch, begun = pair.epoch, time.monotonic()
        pair.process("a").send_signal(number)
        wait_until(lambda was=epoch: pair.epoch > was, 10, "it published nothing")  # type: ignore[misc]
        pair.wait_owner("a")
        pair.note(f"{how}: 220 from the same node after {time.monotonic() - begun:.2f} s")
        traffic.wait_promised(50)
        if os.path.exists(record):
            os.unlink(record)  # the second time the notify script's decides
    ended(pair, traffic, judge)


def scenario_fifo(pair: Pair) -> None:
    """A FIFO that is missing, no FIFO, full of rubbish or made anew is named, and makes no owner."""
    vrrp = Vrrp(pair, is_tracked=False)
    vrrp.configure()
    vrrp.make_files("a")
    path = os.path.join(vrrp.directory("a"), "fifo")
    os.unlink(path)
    traffic = Traffic(pair).catch()
    pair["a"].supervise()
    pair["a"].wait_answering()
    shows(pair, "a", "fifo: No such file or directory")
    with open(path, "wb"):
        pass
    shows(pair, "a", "it is not a FIFO")
    os.unlink(path)
    vrrp.start("a")  # makes it
    pair["a"].wait_online()
    traffic.start().wait_promised(50)
    judge = Judge(pair, traffic)
    # Rubbish while it is read is passed over; a FIFO that was full when it was opened decides
    # nothing: the notify script's record does.
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, b'INSTANCE "OTHER" BACKUP 1\nINSTANCE MAIL BACKUP\n\xff\xfe\n')
    shows(pair, "a", "lines of the FIFO are not keepalived's")
    expect(pair["a"].owns(), "rubbish ended the ownership")
    pair["a"].hold()
    pair.kill("a")
    script = os.path.join(vrrp.directory("a"), "role")
    os.rename(script, script + ".away")
    fill(writer)
    os.close(writer)
    pair["a"].supervise()
    pair["a"].wait_answering()
    shows(pair, "a", "the FIFO was full")
    expect(not pair["a"].owns(), "a FIFO full of rubbish made an owner")
    os.rename(script + ".away", script)
    wait_until(pair["a"].owns, 10, "the notify script's record made no owner")
    ended(pair, traffic, judge)


# --- the parts


class Outages:
    """What a client saw of one loss after another: a fresh one, and those of the load."""

    def __init__(self, pair: Pair, traffic: Traffic) -> None:
        self._pair = pair
        self._traffic = traffic
        self._greeted: list[float] = []
        self._promised: list[float] = []

    def begin(self) -> str:
        """The owner; returns when the other is ready. What follows at once is the loss."""
        pair = self._pair
        wait_until(
            lambda: sorted(pair[name].state() for name in pair.nodes) == ["online", "standby"],
            20, "there is no owner with a standby",
        )  # fmt: skip
        owner = next(name for name in pair.nodes if pair[name].owns())
        shows(pair, pair.other(owner), "keepalived says BACKUP")
        self._traffic.wait_promised(20)
        self._begun = time.monotonic()
        return owner

    def end(self, by: str) -> None:
        self._pair.wait_owner(by)
        greeted = time.monotonic()
        self._greeted.append(greeted - self._begun)
        self._traffic.wait_promised(20)
        times = sorted(self._traffic.look().promised.values())
        # The longest silence around it: from the last 250 before to the first one after.
        around = [at for at in times if self._begun - 1 < at]
        self._promised.append(max(b - a for a, b in itertools.pairwise(around)))

    def tell(self, what: str, limit: float) -> None:
        """@raise Broken: the median is longer than an outage may be."""
        for seen, figures in (("220", self._greeted), ("silence of the load", self._promised)):
            shown = ", ".join(f"{figure * 1000:.0f}" for figure in sorted(figures))
            median = statistics.median(figures) * 1000
            self._pair.note(f"advert_int 0.1, {what} -> {seen}: median {median:.0f} ms of {shown}")
        median = statistics.median(self._greeted)
        expect(median <= limit, f"the median outage was {median:.2f} s")


def under_load(pair: Pair, **how: bool) -> tuple[Vrrp, Traffic, Judge]:
    """keepalived and an MTA on both nodes, node a owns, and a load has run for 100 messages."""
    vrrp = Vrrp(pair, **how)
    traffic = Traffic(pair).catch()
    vrrp.online()
    shows(pair, "b", "keepalived says BACKUP")
    traffic.start().wait_promised(100)
    return vrrp, traffic, Judge(pair, traffic)


def taken_over(pair: Pair, by: str, after: str) -> None:
    taken = pair.wait_owner(by)
    pair.note(f"{after}: 220 from node {by} after {taken * 1000:.0f} ms")
    wait_until(lambda: pair[by].owns(), 5, f"node {by} does not own")
    wait_until(lambda: not pair[pair.other(by)].owns(), 5, "the former owner owns too")


def shows(pair: Pair, name: str, words: str) -> None:
    """What the resource says of keepalived on a node."""
    seen = [""]

    def found() -> bool:
        seen.append(str(pair[name].asked().get("cluster", {}).get("authority", "")))
        return words in seen[-1]

    try:
        wait_until(found, 8, "", step=0.02)
    except AssertionError:
        expect(False, f"node {name} never shows {words!r}, at last {seen[-1]!r}")


def fill(writer: int) -> None:
    try:
        while True:
            os.write(writer, b"rubbish\n")
    except BlockingIOError:
        pass
