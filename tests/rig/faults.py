"""What a campaign does to a pair, for every cluster class; each fault is done and mended by one function.

Law: a fault is drawn from a generator that its number alone has seeded, so that number, class and
seed name it for ever. Whoever does it leaves the pair well: one owner, one standby, nothing cut,
stopped or full. What came of it is for the judge to say (campaign.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tests.rig.ground import VIRTUAL, VIRTUAL6, expect, wait_until
from tests.rig.judge import Judge
from tests.rig.node import in_order
from tests.rig.pair import Pair
from tests.rig.traffic import Traffic

WELL_SECONDS = 40.0
"""A node starts within a second or two; a busy machine takes its time."""
ANSWER_SECONDS = 0.3
"""A node that answers does so in milliseconds; one that is stopped never."""
DEAF = "chain in { type filter hook input priority -5; iifname eth0 drop; }"
MUTE = "chain out { type filter hook output priority -5; oifname eth0 drop; }"


class Done(NamedTuple):
    """What a fault came to, besides the sums."""

    detail: str = ""
    greets: float | None = None
    """Seconds from the cause (an address given, or for a cluster manager the fault) to 220 by the
    new owner; None when the owner stayed.
    """


class Fault(NamedTuple):
    kind: str
    weight: int
    do: Callable[[Random], Done]


@dataclass
class World:
    """A pair under load, and who judges it."""

    pair: Pair
    traffic: Traffic
    judge: Judge
    disk: str
    """The file system that holds the spool."""


class Cluster:
    """A cluster class: who decides who owns. Subclasses add what only they can do to a pair."""

    name = ""
    processes: tuple[str, ...] = ()
    """What the names of its long-living processes begin with."""
    is_steady = False
    """Nothing dies and nothing else changes: memory and descriptors have to be flat."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.world: World

    def online(self, **configure: object) -> None:
        """Both nodes run, one owns."""
        raise NotImplementedError

    def faults(self) -> tuple[Fault, ...]:
        raise NotImplementedError

    def mend(self) -> None:
        """Whatever the cluster manager has to be helped with after a fault."""

    # --- what every class shares

    def sweep(self, name: str) -> None:
        """No virtual address is left on a node, whoever has removed some already."""
        for family, address in (("-4", f"{VIRTUAL}/32"), ("-6", f"{VIRTUAL6}/128")):
            self.pair.inside(
                name, ["ip", family, "addr", "del", address, "dev", "eth0"], check=False
            )

    def owner(self) -> str:
        """The one node that owns now, under the newest epoch; "" for none or two."""
        newest = self.pair.epoch
        states = {name: self.pair[name].asked(ANSWER_SECONDS) for name in self.pair.nodes}
        owners = [name for name, said in states.items() if said.get("state") == "online"]
        # A former owner says so for up to 250 ms after it was superseded.
        if len(owners) == 1 and states[owners[0]]["epoch"] == newest:
            return owners[0]
        return ""

    def wait_well(self) -> None:
        """One owner and one standby, both answering."""
        pair = self.pair

        def states() -> list[str]:
            return sorted(pair[name].state() for name in pair.nodes)

        seen: list[str] = []

        def well() -> bool:
            seen[:] = states()
            return seen == ["online", "standby"]

        try:
            wait_until(well, WELL_SECONDS, "", step=0.05)
        except AssertionError:
            why = {name: pair[name].asked().get("why", "no answer") for name in pair.nodes}
            expect(False, f"the pair does not become well again: {seen}, {why}")
        pair.owner = self.owner()

    def greets(self, name: str, since: float) -> float:
        """Until `name` greets at the address, and every peer of the former owner is free."""
        self.pair.wait_owner(name, 30)
        greeted = time.monotonic()
        self.world.judge.peers_are_released(greeted)
        return greeted - since

    def standby_killed(self, rng: Random) -> Done:
        """Nobody notices."""
        self.pair.kill(self.pair.other(self.pair.owner))
        time.sleep(rng.uniform(0.2, 1.0))
        self.world.judge.epochs_stay()
        return Done()

    def standby_stopped(self, rng: Random) -> Done:
        seconds = rng.choice([0.1, 1.0, 2.0])
        process = self.pair.freeze(self.pair.other(self.pair.owner))
        time.sleep(seconds)
        self.pair.thaw(process)
        self.world.judge.epochs_stay()
        return Done(f"{seconds:g} s")

    def blinked(self, rng: Random) -> Done:
        """The owner is stopped for a moment, and nobody took its place: it goes on."""
        seconds = rng.choice([0.1, 0.1, 0.3])
        process = self.pair.freeze(self.pair.owner)
        time.sleep(seconds)
        self.pair.thaw(process)
        self.world.traffic.wait_promised(10)
        return Done(f"{seconds:g} s")

    def disk_full(self, rng: Random) -> Done:
        """To the last block for a time; nobody loses the ownership by it."""
        seconds = rng.uniform(0.3, 1.5)
        with self.filled():
            time.sleep(seconds)
        self.world.judge.epochs_stay()
        return Done(f"{seconds:.1f} s")

    @contextlib.contextmanager
    def filled(self):  # type: ignore[no-untyped-def]
        """The spool's disk has no free block."""
        path = os.path.join(self.world.disk, "filler")
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            at, step = 0, 1 << 24
            while step >= 4096:
                try:
                    os.posix_fallocate(fd, at, step)
                    at += step
                except OSError:
                    step //= 2
            yield
        finally:
            os.close(fd)
            os.unlink(path)


class Managed(Cluster):
    """Who owns is decided by a cluster manager, and by the claim rules; the rig only waits."""

    def taken_over(self, since: float, epoch: int, seconds: float = 30) -> Done:
        """Until there is an epoch above `epoch`, one owner, and its 220."""
        wait_until(lambda: self.pair.epoch > epoch, seconds, "nobody takes over", step=0.005)
        wait_until(self.owner, seconds, "nobody owns after it", step=0.01)
        return Done(greets=self.greets(self.owner() or self.pair.nodes[0], since))

    def killed(self, rng: Random) -> Done:
        time.sleep(rng.uniform(0, 0.3))
        begun, epoch = time.monotonic(), self.pair.epoch
        self.pair.kill(self.pair.owner)
        return self.taken_over(begun, epoch)

    def killed_full(self, rng: Random) -> Done:
        """Somebody takes over on the full disk."""
        with self.filled():
            time.sleep(rng.uniform(0.2, 0.8))
            begun, epoch = time.monotonic(), self.pair.epoch
            self.pair.kill(self.pair.owner)
            wait_until(
                lambda: self.pair.epoch > epoch, 20, "nothing was published on the full disk"
            )
        return self.taken_over(begun, epoch)

    def double(self, rng: Random) -> Done:
        """The new owner is lost as soon as it has published, whichever node it is: one that was
        killed may be back before the other has its lease.
        """
        begun, epoch = time.monotonic(), self.pair.epoch
        self.pair.kill(self.pair.owner)
        wait_until(lambda: self.pair.epoch > epoch, 30, "nobody takes over", step=0.002)
        time.sleep(rng.choice([0.0, 0.0, 0.05, 0.3]))
        second = self.pair.epoch
        new = self.pair.publisher(second)
        if self.pair.process(new).is_running:
            self.pair.kill(new)
        return self.taken_over(begun, second)

    def handed_over(self, rng: Random) -> Done:
        """SIGTERM: nothing is doubled."""
        mta = self.pair[self.pair.owner]
        begun, epoch = time.monotonic(), self.pair.epoch
        mta.hold()
        status = mta.process().stop(20)
        expect(in_order(status), f"SIGTERM ended the owner with status {status}")
        done = self.taken_over(begun, epoch)
        verdict = self.world.judge.check()
        doubles = verdict.outbound_doubles + verdict.inbound_doubles
        expect(not doubles, f"an orderly hand-over doubled {doubles} messages")
        mta.supervise()
        return done


class Interface(Cluster):
    """The rig is the cluster manager: it moves the address as soon as something has happened."""

    name = "interface"

    def online(self, **configure: object) -> None:
        self.pair.online(cluster="grace: 2s\ntakeover-after: 3s", **configure)

    def faults(self) -> tuple[Fault, ...]:
        return (
            Fault("kill -9 of the owner", 12, self.killed),
            Fault("kill -9, restarted in place", 3, self.killed_in_place),
            Fault("kill -9 of the standby", 2, self.standby_killed),
            Fault("SIGSTOP 0.1 s to 0.3 s", 4, self.blinked),
            Fault("SIGSTOP 1 s to 4 s, taken over", 12, self.stopped),
            Fault("SIGSTOP 60 s, taken over", 1, self.stopped_long),
            Fault("SIGSTOP of the standby", 2, self.standby_stopped),
            Fault("switch port down", 7, self.unplugged),
            Fault("eth0 down", 5, self.interface_down),
            Fault("partition", 8, self.parted),
            Fault("one-way partition", 6, self.one_way_parted),
            Fault("address flap", 7, self.flapped),
            Fault("address away over the grace", 3, self.went),
            Fault("address moved", 6, self.moved),
            Fault("address on both nodes", 6, self.on_both),
            Fault("double failover", 6, self.double),
            Fault("disk full", 3, self.disk_full),
            Fault("kill -9 on a full disk", 4, self.killed_full),
            Fault("orderly hand-over", 4, self.handed_over),
        )

    # --- the parts

    def _ends(self) -> tuple[str, str]:
        return self.pair.owner, self.pair.other(self.pair.owner)

    def _move(self, old: str, new: str) -> Done:
        self.pair.move(new)
        return Done(greets=self.greets(new, time.monotonic()))

    # --- the faults

    def killed(self, rng: Random) -> Done:
        old, new = self._ends()
        time.sleep(rng.uniform(0, 0.3))
        self.pair.kill(old)
        return self._move(old, new)

    def killed_in_place(self, rng: Random) -> Done:
        begun = time.monotonic()
        self.pair.kill(self.pair.owner)
        self.greets(self.pair.owner, begun)
        return Done(f"220 after {time.monotonic() - begun:.1f} s")

    def stopped(self, rng: Random) -> Done:
        seconds = rng.choice([1.0, 2.0, 4.0])
        old, new = self._ends()
        time.sleep(rng.uniform(0, 0.3))
        return self._stopped(old, new, seconds)

    def stopped_long(self, rng: Random) -> Done:
        return self._stopped(*self._ends(), 60.0)

    def _stopped(self, old: str, new: str, seconds: float) -> Done:
        """The old owner goes on long after the takeover."""
        begun = time.monotonic()
        process = self.pair.freeze(old)
        done = self._move(old, new)
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        self.pair.thaw(process)
        return done._replace(detail=f"{seconds:g} s")

    def unplugged(self, rng: Random) -> Done:
        old, new = self._ends()
        self.pair.unplug(old)
        self.pair.give(new)
        done = Done(greets=self.greets(new, time.monotonic()))
        time.sleep(rng.uniform(0, 0.5))
        self.pair.take(old)
        self.pair.plug(old)
        return done

    def interface_down(self, rng: Random) -> Done:
        old, new = self._ends()
        self.pair.ip(old, "link", "set", "eth0", "down")
        self.pair.give(new)
        done = Done(greets=self.greets(new, time.monotonic()))
        time.sleep(rng.uniform(0, 0.5))
        self.pair.take(old, v6=False)  # the kernel has removed every IPv6 address
        self.pair.interface_up(old)
        return done

    def parted(self, rng: Random) -> Done:
        old, new = self._ends()
        self.pair.part(old)
        self.pair.give(new)
        done = Done(greets=self.greets(new, time.monotonic()))
        time.sleep(rng.uniform(0, 0.5))
        self.pair.take(old)
        self.pair.join(old)
        return done

    def one_way_parted(self, rng: Random) -> Done:
        """The owner hears and cannot speak, or the other way round."""
        old, new = self._ends()
        rule, what = rng.choice([(DEAF, "deaf"), (MUTE, "mute")])
        with self.pair.one_way(old, rule):
            self.pair.give(new)
            done = Done(what, self.greets(new, time.monotonic()))
            time.sleep(rng.uniform(0, 0.5))
            self.pair.take(old)
        return done

    def flapped(self, rng: Random) -> Done:
        """Away for less than the grace: the same epoch goes on."""
        seconds = rng.uniform(0.02, 1.3)
        owner = self.pair.owner
        self.pair.take(owner)
        time.sleep(seconds)
        self.pair.give(owner)
        since = time.monotonic()
        took = self.greets(owner, since)
        self.world.judge.epochs_stay()
        return Done(f"away for {seconds:.2f} s, 220 after {took * 1000:.0f} ms")

    def went(self, rng: Random) -> Done:
        """Away for longer than the grace: the epoch is given up, and the other takes over."""
        old, new = self._ends()
        self.pair.take(old)
        wait_until(lambda: self.pair[old].state() == "standby", 8, "the grace does not end")
        self.pair.give(new)
        return Done(greets=self.greets(new, time.monotonic()))

    def moved(self, rng: Random) -> Done:
        """With nothing else: the former owner has not even ended."""
        return self._move(*self._ends())

    def on_both(self, rng: Random) -> Done:
        """Whoever has it anew takes over once; it does not go to and fro, however it came here."""
        old, new = self._ends()
        before = self.pair.epoch
        self.pair.add_virtual(node=new)
        time.sleep(rng.uniform(1.0, 2.0))
        wait_until(self.owner, 10, "not one of the two nodes with the address owns")
        settled, owner = self.pair.epoch, self.owner()
        time.sleep(1.0)
        expect(self.pair.epoch == settled, f"epoch {settled} became {self.pair.epoch}: ping-pong")
        took = settled - before
        expect(took <= 1, f"{took} takeovers by one address more: a used one was claimed with")
        self.pair.take(self.pair.other(owner))
        self.pair.owner = owner
        return Done(f"node {'stays' if owner == old else 'changes'}")

    def double(self, rng: Random) -> Done:
        """Two owners are lost within a second."""
        old, new = self._ends()
        epoch = self.pair.epoch
        self.pair.kill(old)
        self.pair.move(new)
        wait_until(lambda: self.pair.epoch > epoch, 10, "nothing was published", step=0.002)
        time.sleep(rng.choice([0.0, 0.0, 0.05, 0.3]))
        begun = time.monotonic()
        self.pair.kill(new)
        self.pair.move(old)
        self.greets(old, begun)
        return Done(f"220 after {time.monotonic() - begun:.1f} s")

    def killed_full(self, rng: Random) -> Done:
        """The other takes over on the full disk."""
        old, new = self._ends()
        with self.filled():
            time.sleep(rng.uniform(0.2, 0.8))
            epoch = self.pair.epoch
            self.pair.kill(old)
            self.pair.move(new)
            since = time.monotonic()
            wait_until(
                lambda: self.pair.epoch > epoch, 15, "nothing was published on the full disk"
            )
            time.sleep(rng.uniform(0.0, 0.5))
        return Done(greets=self.greets(new, since))

    def handed_over(self, rng: Random) -> Done:
        old, new = self._ends()
        mta = self.pair[old]
        mta.hold()
        status = mta.process().stop(20)
        expect(in_order(status), f"SIGTERM ended the owner with status {status}")
        done = self._move(old, new)
        verdict = self.world.judge.check()
        doubles = verdict.outbound_doubles + verdict.inbound_doubles
        expect(not doubles, f"an orderly hand-over doubled {doubles} messages")
        mta.supervise()
        return done


class Endurance(Interface):
    """The address goes from node to node and nothing dies: what grows shows itself."""

    name = "endurance"
    is_steady = True

    def online(self, **configure: object) -> None:
        self.pair.online(cluster="grace: 100ms\ntakeover-after: 3s", **configure)

    def faults(self) -> tuple[Fault, ...]:
        return (Fault("address handed on, nothing dies", 1, self.went),)
