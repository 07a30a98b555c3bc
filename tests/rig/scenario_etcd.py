"""Two nodes, Debian's etcd, no keepalived: a lease says who owns, the watchdog moves the addresses.

Nobody but the MTAs and their watchdogs adds, removes or announces an address here. Every scenario
runs under load in both directions and ends with the sum of judge.py: lost 0, wrong source 0.
"""

from __future__ import annotations

import os
import signal
import statistics
import time

from tests.rig.etcd import TTL_SECONDS, Etcd
from tests.rig.ground import VIRTUAL, VIRTUAL6, expect, wait_until
from tests.rig.judge import Judge
from tests.rig.pair import Pair
from tests.rig.scenario_failover import ended
from tests.rig.traffic import Traffic

DEATHS = 3
GIVEN_UP = 0.8 * TTL_SECONDS + 0.5
"""An owner that etcd does not hear has closed everything by then."""
TAKEN_OVER = TTL_SECONDS + 2.0
"""etcd ends a lease 0.2 to 0.5 s after its time; the rest is the takeover on a busy machine."""
AT_ONCE = 1.5


def scenario_owner_killed(pair: Pair) -> None:
    """kill -9 of the owner, three times in turn: the other node takes the lease, the addresses, the mail."""
    etcd, traffic, judge = under_load(pair)
    outages = []
    owner = "a"
    for _ in range(DEATHS):
        other = pair.other(owner)
        known = {host: neighbour(pair, host) for host in (VIRTUAL, VIRTUAL6)}
        token = etcd.token()
        pair[owner].hold()
        begun = time.monotonic()
        pair.kill(owner)
        bare(pair, owner, AT_ONCE)
        outages.append(taken_over(pair, judge, other, begun, "kill -9"))
        expect(etcd.token() > token, "the new owner's token is not above the former one's")
        for host, before in known.items():
            expect(pair["a"].greeting(host).startswith(b"220"), f"no 220 from {host}")
            expect(neighbour(pair, host) != before, f"{host} is still known at the dead node")
        pair[owner].supervise()
        pair[owner].wait_answering()
        owner = other
    shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(outages))
    pair.note(
        f"ttl {TTL_SECONDS} s, kill -9 -> 220: median {statistics.median(outages):.2f} s of {shown}"
    )
    ended(pair, traffic, judge)


def scenario_owner_stopped(pair: Pair) -> None:
    """A stopped owner is killed by its watchdog in time; stopped together with it, it harms nobody."""
    etcd, traffic, judge = under_load(pair)
    stopped = pair.process("a")
    begun = time.monotonic()
    pair.freeze("a")
    bare(pair, "a", TTL_SECONDS)
    expect(etcd.holder() == "node-a", "the addresses went after the lease, not before it")
    taken_over(pair, judge, "b", begun, "SIGSTOP of the owner")
    wait_until(lambda: not stopped.is_running, 2, "the watchdog did not kill the stopped owner")
    expect(stopped.popen.returncode == -signal.SIGKILL, f"it ended with {stopped.popen.returncode}")
    pair["a"].wait_answering()
    traffic.wait_promised(50)
    # As a paused machine: nobody is left to take the addresses away, the epoch alone protects.
    watchdog, begun = etcd.watchdog("b"), time.monotonic()
    os.kill(watchdog, signal.SIGSTOP)
    frozen = pair.freeze("b")
    taken_over(pair, judge, "a", begun, "SIGSTOP of owner and watchdog")
    expect(pair.has_address("b"), "who took the addresses of a stopped node away?")
    traffic.wait_promised(50)
    os.kill(watchdog, signal.SIGCONT)
    pair.thaw(frozen)
    bare(pair, "b", 3)
    wait_until(lambda: pair["b"].state() == "standby", 10, "the former owner is no standby")
    expect(pair["a"].owns(), "its return took the ownership away")
    ended(pair, traffic, judge)


def scenario_watchdog_killed(pair: Pair) -> None:
    """Without its watchdog the owner gives up at once; the watchdog outlives a kill of the MTA's group."""
    etcd, traffic, judge = under_load(pair)
    expect(not zombies(pair.process("a").pid), "the MTA keeps a zombie of its watchdog's start")
    epoch, begun = pair.epoch, time.monotonic()
    os.kill(etcd.watchdog("a"), signal.SIGKILL)
    bare(pair, "a", AT_ONCE)
    wait_until(lambda: pair.epoch > epoch, TAKEN_OVER, "nobody published after it", step=0.005)
    wait_until(lambda: owner_of(pair), TAKEN_OVER, "nobody owns after it")
    owner = owner_of(pair)
    taken_over(pair, judge, owner, begun, "kill -9 of the watchdog")
    traffic.wait_promised(50)
    # Everything in the MTA's process group dies; the watchdog is in a session of its own.
    watchdog, other = etcd.watchdog(owner), pair.other(owner)
    expect(os.getsid(watchdog) != os.getsid(pair.process(owner).pid), "they share a session")
    pair[owner].hold()
    begun = time.monotonic()
    os.killpg(os.getpgid(pair.process(owner).pid), signal.SIGKILL)
    bare(pair, owner, AT_ONCE)
    taken_over(pair, judge, other, begun, "kill -9 of the process group")
    wait_until(lambda: has_ended(watchdog), 5, "the watchdog lives on alone")
    pair[owner].supervise()
    ended(pair, traffic, judge)


def scenario_cut_off(pair: Pair) -> None:
    """An owner that etcd does not hear gives up before its lease ends; nothing but etcd is cut off."""
    etcd, traffic, judge = under_load(pair)
    begun = time.monotonic()
    etcd.cut("a")
    bare(pair, "a", GIVEN_UP)
    given_up = time.monotonic() - begun
    expect(etcd.holder() == "node-a", "another could have begun before the owner had ended")
    expect(pair["a"].process().is_running, "the owner was killed, and need not have been")
    taken_over(pair, judge, "b", begun, f"cut off (gave up after {given_up:.2f} s)")
    shows(pair, "a", "etcd does not answer")
    etcd.join("a")
    shows(pair, "a", "is held by node-b")
    expect(pair["b"].owns(), "the return of a node took the ownership away")
    ended(pair, traffic, judge)


def scenario_all_down(pair: Pair) -> None:
    """All of etcd is down: the owner stops by its deadline, nobody owns; etcd returns, and so does service."""
    etcd, traffic, judge = under_load(pair)
    begun = time.monotonic()
    etcd.kill(0)
    bare(pair, "a", GIVEN_UP)
    epoch = pair.epoch
    pair.note(f"all of etcd down: the owner ended after {time.monotonic() - begun:.2f} s")
    shows(pair, "a", "etcd does not answer")
    shows(pair, "b", "etcd does not answer")
    expect(not owner_of(pair) and pair.epoch == epoch, "somebody owns without etcd")
    begun = time.monotonic()
    etcd.restart(0)
    wait_until(lambda: owner_of(pair), 2 * TTL_SECONDS + 5, "nobody owns after etcd returned")
    taken_over(pair, judge, owner_of(pair), begun, "etcd returned")
    ended(pair, traffic, judge)


def scenario_members_die(pair: Pair) -> None:
    """Three members: the leader is killed, then the new one stopped: the owner goes on as if nothing were.

    The stopped one is not let go on: before 3.4.29 and 3.5.11, and Debian 12 has 3.4.23, a leader that
    comes back late revokes leases that its successor renewed (etcd-io/etcd#15247).
    """
    etcd, traffic, judge = under_load(pair, members=3)
    epoch = pair.epoch
    first = etcd.wait_leader()
    etcd.kill(first)
    traffic.wait_promised(50)
    time.sleep(TTL_SECONDS)
    second = etcd.wait_leader()
    etcd.restart(first)
    wait_until(lambda: etcd.is_well(first), 10, "the member that died does not come back")
    etcd.freeze(second)
    traffic.wait_promised(50)
    time.sleep(TTL_SECONDS)
    etcd.kill(second)
    etcd.restart(second)
    wait_until(lambda: etcd.is_well(second), 10, "the member that was stopped does not come back")
    expect(pair["a"].owns() and pair.epoch == epoch, "the death of a leader ended the ownership")
    judge.epochs_stay()
    pair.note("leader killed, next leader stopped: the same owner, the same epoch")
    ended(pair, traffic, judge)


def scenario_hands(pair: Pair) -> None:
    """An orderly stop, a revoked lease, addresses added or removed by hand: none needs the TTL."""
    etcd = Etcd(pair)
    traffic = Traffic(pair).catch()
    etcd.online()
    a, epoch, begun = pair["a"], pair.epoch, time.monotonic()
    pair.ip("a", "addr", "del", f"{VIRTUAL}/32", "dev", "eth0")
    wait_until(lambda: pair.has_address("a"), 3, "an address that was removed does not come back")
    pair.wait_owner("a")
    pair.note(f"an address removed by hand: 220 again after {time.monotonic() - begun:.2f} s")
    expect(pair.epoch == epoch, "that needed another epoch")
    traffic.start().wait_promised(100)
    pair.add_virtual(node="b", v6=False)
    bare(pair, "b", 2)
    expect(pair["a"].owns(), "a stale address took the ownership away")
    wait_until(lambda: "they are removed" in pair["b"].log(), 2, "its removal is not said")
    judge = Judge(pair, traffic)
    a.hold()
    begun = time.monotonic()
    a.process().stop(20)
    expect(not pair.has_address("a"), "an orderly stop leaves the addresses")
    outage = taken_over(pair, judge, "b", begun, "SIGTERM")
    expect(outage < TTL_SECONDS - 1, "a hand-over waited for the lease's end")
    verdict = judge.check()
    expect(verdict.outbound_doubles == 0, f"{verdict.outbound_doubles} messages were sent twice")
    expect(verdict.inbound_doubles == 0, f"{verdict.inbound_doubles} messages were taken twice")
    a.supervise()
    a.wait_answering()
    judge.begin()
    epoch, begun = pair.epoch, time.monotonic()
    etcd.revoke()
    wait_until(lambda: pair.epoch > epoch, 5, "nobody published after the lease was revoked")
    wait_until(lambda: owner_of(pair), 5, "nobody owns after the lease was revoked")
    taken_over(pair, judge, owner_of(pair), begun, "lease revoked by hand")
    ended(pair, traffic, judge)


# --- the parts


def under_load(pair: Pair, members: int = 1) -> tuple[Etcd, Traffic, Judge]:
    """etcd and both MTAs run, node a owns, and a load has run for 100 messages."""
    etcd = Etcd(pair, members)
    traffic = Traffic(pair).catch()
    etcd.online()
    traffic.start().wait_promised(100)
    return etcd, traffic, Judge(pair, traffic)


def taken_over(pair: Pair, judge: Judge, by: str, begun: float, after: str) -> float:
    """`by` greets within TAKEN_OVER of `begun`, every stuck peer is free; answers the outage."""
    pair.wait_owner(by, max(0.0, begun + TAKEN_OVER + 5 - time.monotonic()))
    outage = time.monotonic() - begun
    late = judge.peers_are_released(time.monotonic())
    pair.note(
        f"{after}: 220 from node {by} after {outage:.2f} s; last peer free {late:.2f} s later"
    )
    expect(outage < TAKEN_OVER, f"{after}: the takeover needed {outage:.2f} s")
    pair.owner = by
    return outage


def bare(pair: Pair, name: str, seconds: float) -> None:
    """The node has none of the virtual addresses any more."""

    def gone() -> bool:
        shown = pair.inside(name, ["ip", "addr", "show", "dev", "eth0"]).stdout
        return f"{VIRTUAL}/" not in shown and f"{VIRTUAL6}/" not in shown

    wait_until(gone, seconds, f"node {name} keeps a virtual address")


def has_ended(pid: int) -> bool:
    """It runs no more; who should take note of its end, in the rig nobody, makes no difference."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


def zombies(pid: int) -> list[int]:
    """Children of that process that have ended and were not reaped."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split() if has_ended(int(child))]


def owner_of(pair: Pair) -> str:
    """The node that says it is online; "" for none."""
    return next((name for name in pair.nodes if pair[name].owns()), "")


def neighbour(pair: Pair, host: str) -> str:
    """The hardware address that the peer knows for `host`."""
    words = pair.inside("peer", ["ip", "neigh", "show", host]).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def shows(pair: Pair, name: str, words: str) -> None:
    """`mta status` of a node says so of its authority."""
    seen = [""]

    def found() -> bool:
        if pair[name].command("status", check=False).returncode == 0:
            seen.append(str(pair[name].status()["cluster"]["authority"]))
        return words in seen[-1]

    try:
        wait_until(found, 8, "", step=0.1)
    except AssertionError:
        expect(False, f"node {name} never shows {words!r}, at last {seen[-1]!r}")
