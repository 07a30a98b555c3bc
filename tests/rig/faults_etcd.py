"""Faults upon a pair that Debian's etcd and the watchdogs decide about: theirs, and the owner's."""

from __future__ import annotations

import os
import signal
import time
from random import Random

from tests.rig.etcd import TTL_SECONDS, Etcd
from tests.rig.faults import Done, Fault, Managed
from tests.rig.ground import wait_until
from tests.rig.pair import Pair

MEMBERS = 3


class Leased(Managed):
    """A lease of TTL_SECONDS says who owns; the watchdogs add and remove the addresses."""

    name = "etcd"
    processes = ("etcd-",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.etcd: Etcd

    def online(self, **configure: object) -> None:
        self.etcd = Etcd(self.pair, members=MEMBERS)
        self.etcd.online(**configure)

    def faults(self) -> tuple[Fault, ...]:
        return (
            Fault("kill -9 of the owner", 10, self.killed),
            Fault("kill -9 of the standby", 2, self.standby_killed),
            Fault("kill -9 of the watchdog", 6, self.watchdog_killed),
            Fault("kill -9 of the leader of etcd", 5, self.leader_killed),
            Fault("SIGSTOP of the leader of etcd", 4, self.leader_stopped),
            Fault("SIGSTOP 0.1 s to 0.3 s", 4, self.blinked),
            Fault("SIGSTOP to TTL - 1 s", 3, self.stopped_within),
            Fault("SIGSTOP over the TTL", 4, self.stopped_over),
            Fault("SIGSTOP of owner and watchdog", 4, self.node_halted),
            Fault("SIGSTOP of owner and watchdog, 60 s", 1, self.node_halted_long),
            Fault("SIGSTOP of the standby", 2, self.standby_stopped),
            Fault("cut off from etcd", 4, self.cut_off),
            Fault("switch port down", 4, self.unplugged),
            Fault("lease revoked", 4, self.revoked),
            Fault("address removed by hand", 4, self.address_removed),
            Fault("double failover", 3, self.double),
            Fault("disk full", 3, self.disk_full),
            Fault("kill -9 on a full disk", 3, self.killed_full),
            Fault("orderly hand-over", 4, self.handed_over),
        )

    def mend(self) -> None:
        for number, member in enumerate(self.etcd.members):
            if not member.is_running:
                self.etcd.restart(number)
        for number in range(MEMBERS):
            wait_until(
                lambda number=number: self.etcd.is_well(number),  # type: ignore[misc]
                20, f"member {number} of etcd does not come back", step=0.1,
            )  # fmt: skip

    # --- the watchdog and etcd

    def watchdog_killed(self, rng: Random) -> Done:
        """The owner gives up at once, and whoever bids first is the next."""
        begun, epoch = time.monotonic(), self.pair.epoch
        os.kill(self.etcd.watchdog(self.pair.owner), signal.SIGKILL)
        return self.taken_over(begun, epoch)

    def leader_killed(self, rng: Random) -> Done:
        """The owner goes on: another member leads within its time."""
        self.etcd.kill(self.etcd.wait_leader())
        time.sleep(rng.uniform(1.0, 2.0))
        self.world.judge.epochs_stay()
        return Done()

    def leader_stopped(self, rng: Random) -> Done:
        leader = self.etcd.wait_leader()
        self.etcd.freeze(leader)
        time.sleep(rng.uniform(1.0, 2.0))
        self.etcd.thaw(leader)
        self.world.judge.epochs_stay()
        return Done()

    def revoked(self, rng: Random) -> Done:
        """By hand, as with etcdctl."""
        begun, epoch = time.monotonic(), self.pair.epoch
        self.etcd.revoke()
        return self.taken_over(begun, epoch)

    def cut_off(self, rng: Random) -> Done:
        """The owner reaches everybody but etcd."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.etcd.cut(old)
        done = self.taken_over(begun, epoch)
        self.etcd.join(old)
        return done

    # --- processes

    def stopped_within(self, rng: Random) -> Done:
        """Its lease may be kept, or may not: both are right."""
        seconds = rng.choice([1.0, 2.0, TTL_SECONDS - 1.0])
        process = self.pair.freeze(self.pair.owner)
        time.sleep(seconds)
        self.pair.thaw(process)
        return Done(f"{seconds:g} s")

    def stopped_over(self, rng: Random) -> Done:
        """Its watchdog kills it before the lease is over."""
        begun, epoch = time.monotonic(), self.pair.epoch
        self.pair.freeze(self.pair.owner)
        return self.taken_over(begun, epoch)

    def node_halted(self, rng: Random) -> Done:
        return self._node_halted(rng, TTL_SECONDS + 1.0)

    def node_halted_long(self, rng: Random) -> Done:
        return self._node_halted(rng, 60.0)

    def _node_halted(self, rng: Random, seconds: float) -> Done:
        """As a paused virtual machine: nobody is left to remove the addresses."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        watchdog = self.etcd.watchdog(old)
        os.kill(watchdog, signal.SIGSTOP)
        process = self.pair.freeze(old)
        done = self.taken_over(begun, epoch)
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        if rng.random() < 0.5:
            self.pair.thaw(process)
            os.kill(watchdog, signal.SIGCONT)
        else:
            os.kill(watchdog, signal.SIGCONT)
            self.pair.thaw(process)
        return done._replace(detail=f"{seconds:g} s")

    # --- the network

    def unplugged(self, rng: Random) -> Done:
        """From everybody, etcd among them."""
        old, begun, epoch = self.pair.owner, time.monotonic(), self.pair.epoch
        self.pair.unplug(old)
        done = self.taken_over(begun, epoch)
        self.pair.plug(old)
        return done

    def address_removed(self, rng: Random) -> Done:
        """The watchdog brings it back, under the same epoch."""
        self.sweep(self.pair.owner)
        begun = time.monotonic()
        self.greets(self.pair.owner, begun)
        self.world.judge.epochs_stay()
        return Done(f"220 after {(time.monotonic() - begun) * 1000:.0f} ms")
