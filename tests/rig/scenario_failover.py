"""Two nodes, one spool: whatever happens to the owner, what was answered 250 is delivered.

Every scenario runs under load in both directions, and ends with the same sum (judge.py): lost 0,
wrong source 0, and no more doubles than associations stood open when an owner was lost.
"""

from __future__ import annotations

import os
import signal
import socket
import time

from tests.rig.ground import PEER, PEER6, VIRTUAL, VIRTUAL6, Broken, expect, wait_until
from tests.rig.judge import RELEASE_SECONDS, Judge
from tests.rig.node import in_order
from tests.rig.pair import Pair
from tests.rig.traffic import Traffic

PORT = 40025
"""Of a client that takes no other."""
BEAT_SECONDS = 1.0
"""The owner's heartbeat: by the second one it has said who is connected."""
GRACE = "grace: 2s\ntakeover-after: 3s"


def scenario_owner_killed(pair: Pair) -> None:
    """The owner is killed by kill -9 and the address moves: the other goes on with its queue."""
    traffic, judge = under_load(pair)
    pair.kill("a")
    moved(pair, judge, "b")
    ended(pair, traffic, judge)


def scenario_owner_stopped(pair: Pair) -> None:
    """A stopped owner that goes on long after its address moved harms nobody and sends nothing."""
    traffic, judge = under_load(pair)
    old = pair.freeze("a")
    moved(pair, judge, "b")
    traffic.wait_promised(100)
    pair.thaw(old)
    wait_until(lambda: pair["a"].state() == "standby", 10, "a superseded owner is no standby")
    expect("is superseded" in pair["a"].log(), "the old owner does not say that it was superseded")
    ended(pair, traffic, judge)


def scenario_address_on_both(pair: Pair) -> None:
    """With the address on both nodes for 15 s the owner stays the owner: no ping-pong."""
    traffic, judge = under_load(pair)
    pair.add_virtual(node="b")
    time.sleep(2.0)  # b has bid by then: a new instance of the address is a right to claim
    settled = pair.epoch
    owner = "b" if pair["b"].owns() else "a"
    for _ in range(13):
        time.sleep(1.0)
        expect(pair.epoch == settled, f"epoch {settled} became {pair.epoch}: ping-pong")
    expect(pair[owner].owns(), f"node {owner} no longer owns")
    pair.take(pair.other(owner))
    pair.owner = owner
    pair.note(f"15 s on both nodes: node {owner} owned under epoch {settled} all the time")
    ended(pair, traffic, judge)


def scenario_owner_cut_off(pair: Pair) -> None:
    """The owner's switch port goes down while it keeps its address: the other serves, it does not."""
    traffic, judge = under_load(pair)
    pair.unplug("a")
    pair.give("b")
    greeted(pair, judge, "b")
    traffic.wait_promised(50)
    expect(not pair["a"].owns(), "a node without carrier owns")
    pair.take("a")
    pair.plug("a")
    time.sleep(0.5)
    expect(pair["b"].owns(), "the return of a node's link took the ownership away")
    ended(pair, traffic, judge)


def scenario_partition(pair: Pair) -> None:
    """A node that left the switch with carrier and address is superseded by its epoch alone."""
    traffic, judge = under_load(pair)
    pair.part("a")
    pair.give("b")
    greeted(pair, judge, "b")
    wait_until(lambda: not pair["a"].owns(), 3, "the node that was cut off still owns")
    pair.take("a")
    pair.join("a")
    ended(pair, traffic, judge)


def scenario_double_failover(pair: Pair) -> None:
    """Two owners are lost within a second: the first comes back as a new process and serves."""
    traffic, judge = under_load(pair)
    pair.kill("a")
    pair.move("b")
    wait_until(lambda: pair.epoch == 2, 5, "node b published nothing", step=0.002)
    pair.kill("b")
    pair.move("a")
    greeted(pair, judge, "a")
    ended(pair, traffic, judge)


def scenario_full_disk_and_kill(pair: Pair) -> None:
    """The owner is killed on a full disk: the other takes over on that full disk and makes room."""
    where = pair.small_disk("disk", 160)
    spool = os.path.join(where, "spool")
    pair.online(cluster=GRACE, spool=spool)
    traffic = Traffic(pair, size=200_000).start()  # with no catcher yet: the queue grows
    assert traffic.catcher is not None
    traffic.catcher.send_signal(signal.SIGSTOP)
    wait_until(
        lambda: any(reply.startswith("452") for reply in traffic.look().refused), 60,
        "the disk did not fill",
    )  # fmt: skip
    with open(os.path.join(where, "filler"), "wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError:
            pass  # full, to the last block
    judge = Judge(pair, traffic)
    pair.kill("a")
    pair.move("b")
    time.sleep(1.0)
    traffic.catcher.send_signal(signal.SIGCONT)
    os.unlink(os.path.join(where, "filler"))
    pair.note(f"full disk: 220 after {pair.wait_owner('b', 60):.1f} s with room for the catcher")
    ended(pair, traffic, judge)


def scenario_hand_over(pair: Pair) -> None:
    """SIGTERM to the owner, the address moved when it ended: nothing is doubled, nothing unread."""
    traffic, judge = under_load(pair)
    a = pair["a"]
    a.hold()
    status = a.process().stop(20)
    expect(in_order(status), f"SIGTERM ended the owner with status {status}")
    moved(pair, judge, "b")
    verdict = judge.check()
    expect(verdict.outbound_doubles == 0, f"{verdict.outbound_doubles} messages were sent twice")
    expect(verdict.inbound_doubles == 0, f"{verdict.inbound_doubles} messages were taken twice")
    a.supervise()
    ended(pair, traffic, judge)


def scenario_port_that_was_here_before(pair: Pair) -> None:
    """A peer is released at once also where the new owner's kernel is in TIME_WAIT for its port."""
    pair.online(cluster=GRACE)
    peers = (VIRTUAL, PEER), (VIRTUAL6, PEER6)
    for virtual, own in peers:
        first = dialled(pair, virtual, own)
        first.sendall(b"QUIT\r\n")
        while first.recv(1000):
            pass
        first.close()
    pair.move("b")
    pair.wait_owner("b")
    stuck = [dialled(pair, virtual, own) for virtual, own in peers]
    waiting = pair.sockets("a", "state", "time-wait", "dport", f"= :{PORT}")
    expect(len(waiting) == 2, f"node a is not in TIME_WAIT for both ports: {waiting}")
    time.sleep(2 * BEAT_SECONDS)  # nothing else is written, and both are in the log
    pair.part("b")
    pair.give("a")
    pair.wait_owner("a")
    begun = time.monotonic()
    for peer in stuck:
        peer.settimeout(RELEASE_SECONDS)
        try:
            said = peer.recv(1000)
        except ConnectionResetError:
            continue
        except TimeoutError:
            said = b"nothing"
        raise Broken(f"{peer.getsockname()[0]}, a peer of the former owner, heard {said!r}")
    pair.note(f"both peers released {time.monotonic() - begun:.2f} s after the 220 of node a")
    pair.take("b")
    pair.join("b")


def dialled(pair: Pair, virtual: str, own: str) -> socket.socket:
    """A greeted client that always takes the same port."""
    made = pair.raw_socket("peer", socket.AF_INET6 if ":" in own else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(5)
    made.bind((own, PORT))
    made.connect((virtual, 25))
    expect(made.recv(1000).startswith(b"220"), "no greeting")
    return made


def under_load(pair: Pair) -> tuple[Traffic, Judge]:
    """Node a owns, node b stands by, and a load has run for 100 messages."""
    traffic = Traffic(pair).catch()
    pair.online(cluster=GRACE)
    traffic.start().wait_promised(100)
    return traffic, Judge(pair, traffic)


def moved(pair: Pair, judge: Judge, to: str) -> None:
    pair.move(to)
    greeted(pair, judge, to)


def greeted(pair: Pair, judge: Judge, name: str) -> None:
    """The address is there: how soon does it greet, and how soon is every stuck peer free?"""
    taken = pair.wait_owner(name)
    late = judge.peers_are_released(time.monotonic())
    pair.note(
        f"address there -> 220 by {name}: {taken * 1000:.0f} ms; last peer free {late:.2f} s later"
    )


def ended(pair: Pair, traffic: Traffic, judge: Judge) -> None:
    verdict = judge.check()
    sums = traffic.finish()
    pair.note(
        f"{len(sums.promised)} promised, lost 0, wrong source 0, {verdict.outbound_doubles} sent "
        f"twice, {verdict.inbound_doubles} taken twice of {verdict.unread} unread, epoch {pair.epoch}"
    )
