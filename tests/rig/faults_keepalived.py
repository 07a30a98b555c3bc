"""Faults upon a pair whose addresses Debian's keepalived moves: its own deaths, halts and silences too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from random import Random

from tests.rig.faults import DEAF, MUTE, Done, Fault, Managed
from tests.rig.ground import expect, wait_until
from tests.rig.pair import Pair
from tests.rig.vrrp import Vrrp

STEADY_SECONDS = 10.0
"""keepalived settles who is master within its intervals of 0.1 s; a busy machine takes its time."""


def has_ended(pid: int) -> bool:
    """An orphan is ours to reap: the campaign is the first process of its namespace."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not os.path.exists(f"/proc/{pid}")


class Keepalived(Managed):
    """A node that was killed is tracked; one that was stopped alone is not, and goes on."""

    name = "keepalived"
    processes = ("keepalived-",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.vrrp = Vrrp(pair)

    def online(self, **configure: object) -> None:
        self.vrrp.online(**configure)

    def faults(self) -> tuple[Fault, ...]:
        return (
            Fault("kill -9 of the owner", 12, self.killed),
            Fault("kill -9 of the standby", 2, self.standby_killed),
            Fault("kill -9 of the node", 8, self.node_killed),
            Fault("kill -9 of keepalived", 8, self.keepalived_killed),
            Fault("kill -9 of the VRRP child", 6, self.child_killed),
            Fault("kill -9 of keepalived's parent", 5, self.parent_killed),
            Fault("keepalived stopped in order", 4, self.keepalived_ended),
            Fault("SIGSTOP of keepalived", 6, self.keepalived_halted),
            Fault("SIGSTOP 0.1 s to 0.3 s", 4, self.blinked),
            Fault("SIGSTOP of the MTA, 1 s to 4 s", 4, self.stopped_alone),
            Fault("SIGSTOP of the node, taken over", 8, self.node_halted),
            Fault("SIGSTOP of the node, 60 s", 1, self.node_halted_long),
            Fault("SIGSTOP of the standby", 2, self.standby_stopped),
            Fault("switch port down", 6, self.unplugged),
            Fault("eth0 down", 4, self.interface_down),
            Fault("partition", 7, self.parted),
            Fault("one-way partition", 4, self.one_way_parted),
            Fault("address on both nodes", 4, self.on_both),
            Fault("double failover", 5, self.double),
            Fault("disk full", 3, self.disk_full),
            Fault("kill -9 on a full disk", 4, self.killed_full),
            Fault("orderly hand-over", 3, self.handed_over),
        )

    def mend(self) -> None:
        """systemd starts keepalived again, which clears what its predecessor left."""
        for name in self.pair.nodes:
            if not self.vrrp.parent(name).is_running:
                self.vrrp.start(name)

    def wait_well(self) -> None:
        """Besides: one master, which is the owner, and the addresses there alone."""
        seen: list[str] = []

        def settled() -> bool:
            seen[:] = self.vrrp.holders()
            return len(seen) == 1 and self.owner() == seen[0]

        super().wait_well()
        wait_until(settled, STEADY_SECONDS, f"addresses stay on {seen}", step=0.1)
        super().wait_well()

    # --- what only keepalived knows

    def keepalived_killed(self, rng: Random) -> Done:
        """Parent and child: the addresses stay where they were."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.vrrp.kill_all(old)
        done = self.taken_over(begun, epoch)
        time.sleep(rng.uniform(0, 0.5))
        self.vrrp.start(old)
        return done

    def child_killed(self, rng: Random) -> Done:
        """Its parent starts another."""
        begun, epoch = time.monotonic(), self.pair.epoch
        for child in self.vrrp.children(self.pair.owner):
            os.kill(child, signal.SIGKILL)
        return self.taken_over(begun, epoch)

    def parent_killed(self, rng: Random) -> Done:
        """Its child ends by itself, in order."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        children = self.vrrp.children(old)
        self.vrrp.parent(old).kill()
        done = self.taken_over(begun, epoch)
        wait_until(
            lambda: all(map(has_ended, children)),
            5,
            "keepalived's child outlives its parent",
        )
        self.vrrp.start(old)
        return done

    def keepalived_ended(self, rng: Random) -> Done:
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.vrrp.terminate(old)
        done = self.taken_over(begun, epoch)
        wait_until(lambda: not self.vrrp.parent(old).is_running, 5, "keepalived did not stop")
        self.vrrp.start(old)
        return done

    def keepalived_halted(self, rng: Random) -> Done:
        """It goes on as if it were still the master, until it hears the other."""
        seconds = rng.choice([1.0, 2.0])
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.vrrp.signal_all(old, signal.SIGSTOP)
        done = self.taken_over(begun, epoch)
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        self.vrrp.signal_all(old, signal.SIGCONT)
        return done._replace(detail=f"{seconds:g} s")

    def stopped_alone(self, rng: Random) -> Done:
        """keepalived asks the MTA whether it serves: for long, and the other takes over."""
        seconds = rng.choice([1.0, 2.0, 4.0])
        process = self.pair.freeze(self.pair.owner)
        time.sleep(seconds)
        self.pair.thaw(process)
        self.world.traffic.wait_promised(10)
        return Done(f"{seconds:g} s")

    # --- whole nodes

    def node_killed(self, rng: Random) -> Done:
        """Nothing of it answers, and nothing announces its end; then it boots."""
        pair, old = self.pair, self.pair.owner
        begun, epoch = time.monotonic(), pair.epoch
        pair.part(old)
        pair.kill(old)
        self.vrrp.kill_all(old)
        done = self.taken_over(begun, epoch)
        self.sweep(old)
        pair.join(old)
        self.vrrp.start(old)
        return done

    def node_halted(self, rng: Random) -> Done:
        return self._node_halted(rng, rng.choice([1.0, 2.0, 4.0]))

    def node_halted_long(self, rng: Random) -> Done:
        return self._node_halted(rng, 60.0)

    def _node_halted(self, rng: Random, seconds: float) -> Done:
        """As a paused virtual machine: MTA and keepalived together, and in any order back."""
        pair, old = self.pair, self.pair.owner
        begun, epoch = time.monotonic(), pair.epoch
        process = pair.freeze(old)
        self.vrrp.signal_all(old, signal.SIGSTOP)
        done = self.taken_over(begun, epoch)
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        first = rng.random() < 0.5
        if first:
            pair.thaw(process)
        self.vrrp.signal_all(old, signal.SIGCONT)
        if not first:
            pair.thaw(process)
        return done._replace(detail=f"{seconds:g} s")

    # --- the network

    def unplugged(self, rng: Random) -> Done:
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.pair.unplug(old)
        done = self.taken_over(begun, epoch)
        time.sleep(rng.uniform(0, 0.5))
        self.pair.plug(old)
        return done

    def interface_down(self, rng: Random) -> Done:
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.pair.ip(old, "link", "set", "eth0", "down")
        done = self.taken_over(begun, epoch)
        time.sleep(rng.uniform(0, 0.5))
        self.pair.interface_up(old)
        return done

    def parted(self, rng: Random) -> Done:
        """Two masters, each with the addresses; then they hear each other."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.pair.part(old)
        done = self.taken_over(begun, epoch)
        time.sleep(rng.uniform(0, 0.5))
        self.pair.join(old)
        return done

    def one_way_parted(self, rng: Random) -> Done:
        """The owner is heard and hears nothing, and nobody moves; or it is not heard."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        rule, what = rng.choice([(DEAF, "deaf"), (MUTE, "mute")])
        done = Done()
        with self.pair.one_way(old, rule):
            if what == "mute":
                done = self.taken_over(begun, epoch)
            time.sleep(rng.uniform(0.5, 1.0))
        return done._replace(detail=what)

    def on_both(self, rng: Random) -> Done:
        """By hand, on the standby: its role is BACKUP, and an address alone owns nothing."""
        other = self.pair.other(self.pair.owner)
        self.pair.add_virtual(node=other)
        time.sleep(rng.uniform(0.5, 1.5))
        self.world.judge.epochs_stay()
        self.sweep(other)  # keepalived or the MTA may have done so
        expect(self.pair[self.pair.owner].owns(), "an address by hand ended the ownership")
        return Done()
