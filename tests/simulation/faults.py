"""What goes wrong, and when: all of it drawn from the seed.

Law: a fault is something that happens to machines, disks, wires, authorities or peers; none reaches
into the product. Each heals by itself or by `heal`. Many are laid in the way of a named step (a sync
of a segment, the look at the epoch, the link of a checkpoint), and count when a process gets there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mta.cluster.ownership import State
from tests.simulation.authority import Addresses, Leases
from tests.simulation.node import SPOOL, VIRTUAL_ADDRESS, Node, Process
from tests.simulation.threads import ProcessDisk
from tests.simulation.world import DEEPEST

if TYPE_CHECKING:
    from tests.simulation.run import Run

Steps = tuple[tuple[str, str], ...]
"""(kind of disk call, where)."""
EVERY_MOMENT: Steps = (
    ("write", "seg/"),
    ("sync", "seg/"),
    ("check", "epoch/"),
    ("checked", "epoch/"),
    ("unlink", "seg/"),
    ("unlink", "big/"),
)
"""Where an owner passes: accepting, sending, destroying."""
AT_TIMES: Steps = (
    ("write", "epoch/"),
    ("read", "seg/"),
    ("write", "ckpt/"),
    ("link", "ckpt/"),
    ("directory", "ckpt"),
    ("unlink", "ckpt/"),
    ("link", "seg/"),
    ("link", "big/"),
    ("sync", "big/"),
    ("sync", "part/"),
)
TAKING_OVER: Steps = (
    ("link", "epoch/"),
    ("directory", "epoch"),
    ("write", "epoch/"),
    ("sync", "epoch/"),
    ("read", "ckpt/"),
    ("read", "seg/"),
    ("sync", "seg/"),
    ("write", "ckpt/"),
    ("sync", "ckpt/"),
    ("link", "ckpt/"),
    ("directory", "ckpt"),
    ("check", "epoch/"),
    ("checked", "epoch/"),
)
"""Where a taker passes once."""
CAN_FAIL = frozenset({"write", "sync", "link", "directory"})
PAUSES = (0.1, 0.6, 1.2, 3.0, 5.5, 8.0, 14.0, 25.0)
"""Some are over before anybody notices, some when another has long taken over."""
LONGEST_STOP = 25.0
Harm = Callable[[ProcessDisk, str], None]
"""(whose, the kind of the call that it meets, "" when it meets none)."""


class Faults:
    """`begin` lets `many` happen, one after another; `log` has a line for each that did."""

    def __init__(self, run: Run, many: int) -> None:
        self.run = run
        self.world = run.world
        self.nodes = run.nodes
        self.many = many
        self.log: list[str] = []
        self.is_over = False
        self._capacity = run.disk.capacity
        everywhere: tuple[tuple[Callable[[], str], int], ...] = (
            (self._harm, 30),
            (self._power_all, 1),
            (self._full, 1),
            (self._cut_peers, 3),
            (self._wall, 1),
            (self._terminate, 1),
            (self._losing, 1),
            (self._sinks, 4),
            (self._move, 4),
            (self._double, 2),
        )
        leases: tuple[tuple[Callable[[], str], int], ...] = (
            (self._cut_authority, 4),
            (self._silence, 3),
            (self._revoke, 2),
        )
        addresses: tuple[tuple[Callable[[], str], int], ...] = (
            (self._flap, 4),
            (self._on_both, 3),
            (self._gone, 2),
            (self._deaf, 1),
        )
        chosen = everywhere + (leases if run.authority.has_leases else addresses)
        self._calls = [call for call, _ in chosen]
        self._weights = [weight for _, weight in chosen]

    def begin(self) -> None:
        self.world.later(2.0, self._one)

    def _one(self) -> None:
        if len(self.log) >= self.many:
            self.world.later(5.0, self._end)
            return
        said = self.world.chance.choices(self._calls, self._weights)[0]()
        if said:
            self._happened(said)
        self.world.later(min(12.0, self.world.chance.expovariate(1 / 3.0)), self._one)

    def _happened(self, said: str) -> None:
        self.log.append(said)
        self.world.note(f"fault {len(self.log)}: {said}")
        self.run.watch.look(durable=True)

    def _end(self) -> None:
        self.is_over = True

    def heal(self) -> None:
        """Everything works from now on."""
        self.is_over = True
        run = self.run
        run.disk.capacity = self._capacity
        run.disk.heal()
        run.network.cuts.clear()
        run.load.sinks.calm()
        for node in self.nodes:
            node.wall_offset = 0.0
            node.boot_up()
            process = node.process
            if process is not None:
                process.disk.traps.clear()
                process.thaw()
            else:
                node.start_later(0.5)
        run.authority.heal()

    # --- whom

    def _node(self) -> Node:
        """The owner, mostly."""
        chance = self.world.chance
        owners = [n for n in self.nodes if n.process is not None and n.process.spool.epoch]
        if owners and chance.random() < 0.75:
            return chance.choice(owners)
        return chance.choice(self.nodes)

    def _running(self) -> Process | None:
        process = self._node().process
        if process is not None:
            return process
        return next((n.process for n in self.nodes if n.process is not None), None)

    def _standby(self) -> Process | None:
        waiting = [
            n.process for n in self.nodes if n.process is not None and not n.process.spool.epoch
        ]
        return self.world.chance.choice(waiting) if waiting else None

    # --- what is done to a process and its machine

    def _harm(self) -> str:
        """To an owner now or at one of its steps, or to a taker in the midst of taking over."""
        chance = self.world.chance
        makers = (self._kill, self._power, self._stop, self._slow, self._error)
        maker = chance.choices(makers, (3, 3, 7, 3, 2))[0]
        what, harm = maker()
        steps = chance.choices(((), EVERY_MOMENT, AT_TIMES, TAKING_OVER), (3, 5, 3, 5))[0]
        is_taking = steps is TAKING_OVER
        if maker in {self._slow, self._error}:  # a call that is slow or fails has to be one
            steps = steps or EVERY_MOMENT
        if maker == self._error:
            steps = tuple(step for step in steps if step[0] in CAN_FAIL)
        process = self._standby() if is_taking else self._running()
        if process is None:
            return ""
        moves = not is_taking and chance.random() < 0.5
        if moves:
            what, harm = self._moving(what, harm)
        if not steps:
            harm(process.disk, "")
            return f"{what} ({process.name})"
        kind, where = chance.choice(steps)
        self._lay(process, kind, where, what, harm)
        if is_taking:
            self._move_to(process.node)
        return ""

    def _moving(self, what: str, harm: Harm) -> tuple[str, Harm]:
        """Another is made owner meanwhile."""

        def both(disk: ProcessDisk, kind: str) -> None:
            pause = self.world.chance.uniform(0.0, 1.0)
            self.world.later(pause, self._take_from, disk.process.node)
            harm(disk, kind)

        return f"{what}, and the ownership moves", both

    def _lay(self, process: Process, kind: str, where: str, what: str, harm: Harm) -> None:
        """Let it happen when the process gets there, if ever."""
        prefix, left = f"{SPOOL}/{where}", [self.world.chance.choice((1, 1, 1, 2, 5))]

        def trap(disk: ProcessDisk, called: str, path: str) -> None:
            if called != kind or not path.startswith(prefix) or self.is_over:
                return
            left[0] -= 1
            if left[0] > 0:
                return
            disk.traps.remove(trap)
            self._happened(f"{what} ({disk.process.name} at {kind} {path})")
            harm(disk, kind)

        process.disk.traps.append(trap)

    def _kill(self) -> tuple[str, Harm]:
        restart = self.world.chance.choice((0.1, 1.0, 3.0, 10.0))
        return "kill -9", lambda disk, _: disk.process.node.ended(disk.process, restart)

    def _power(self) -> tuple[str, Harm]:
        keep, reboot = self._keep(), self.world.chance.choice((1.0, 5.0, 20.0))
        said = f"the power fails, unsynced: {keep}"
        return said, lambda disk, _: disk.process.node.crash(keep, reboot)

    def _keep(self) -> str:
        return self.world.chance.choice(("none", "random", "torn", "all"))

    def _stop(self) -> tuple[str, Harm]:
        chance = self.world.chance
        seconds = chance.choice(PAUSES)
        outlived = chance.random() < 0.4

        def stop(disk: ProcessDisk, kind: str) -> None:
            process = disk.process
            if process.is_stopped or (kind and self.world.depth >= DEEPEST):
                return
            process.stop()
            if outlived:
                self._thaw_when_sealed(process, process.spool.epoch, self.world.now + LONGEST_STOP)
            else:
                self.world.later(seconds, process.thaw)
            if kind:
                longest = LONGEST_STOP if outlived else seconds
                disk.hold(lambda: not process.is_stopped, longest + 1.0)

        said = "until another has just taken over" if outlived else f"for {seconds:g} s"
        return f"SIGSTOP {said}", stop

    def _thaw_when_sealed(self, process: Process, under: int, latest: float) -> None:
        """It goes on in the first moments of the next owner, who has not done much yet."""
        if max(self.run.watch.sealed, default=0) > under or self.world.now >= latest:
            self.world.later(self.world.chance.uniform(0.0, 0.3), process.thaw)
        else:
            self.world.later(0.05, self._thaw_when_sealed, process, under, latest)

    def _slow(self) -> tuple[str, Harm]:
        seconds = self.world.chance.choice((0.3, 1.0, 4.0, 7.0))

        def slow(disk: ProcessDisk, _kind: str) -> None:
            # Only a thread can be slow by itself; what the reactor reads is in the page cache.
            if disk.process.threads.on_stack and self.world.depth < DEEPEST:
                disk.hold(lambda: False, seconds)

        return f"the call takes {seconds:g} s", slow

    def _error(self) -> tuple[str, Harm]:
        number = self.world.chance.choice((errno.EIO, errno.EIO, errno.ENOSPC))
        return errno.errorcode[number], lambda disk, kind: disk.fail(kind, number)

    def _power_all(self) -> str:
        keep = self._keep()
        for node in self.nodes:
            node.crash(keep, self.world.chance.choice((1.0, 3.0, 6.0)))
        return f"the power of all fails, unsynced: {keep}"

    def _full(self) -> str:
        disk, seconds = self.run.disk, self.world.chance.choice((2.0, 10.0))
        disk.capacity = disk.used + self.world.chance.choice((0, 70_000, 300_000))
        self.world.later(seconds, setattr, disk, "capacity", self._capacity)
        return f"the disk is full for {seconds:g} s"

    def _wall(self) -> str:
        node = self._node()
        seconds = self.world.chance.choice((-400.0, -60.0, -2.0, 2.0, 60.0, 400.0))
        node.wall_offset += seconds
        return f"the wall clock of {node.name} jumps by {seconds:g} s"

    def _terminate(self) -> str:
        process = self._running()
        if process is None:
            return ""

        def ended(_result: Any) -> None:
            if not process.is_dead:
                self.world.note(f"{process.name} has stopped")
                process.node.ended(process, 1.0)

        process.ownership.stop("SIGTERM").addCallback(ended)
        return f"SIGTERM {process.name}"

    def _losing(self) -> str:
        process = self._running()
        if process is None or process.state is State.DOWN:
            return ""
        process.ownership.losing(self.world.now + self.world.chance.choice((0.1, 5.0)))
        return f"{process.name} is asked to leave"

    # --- wires, authority, peers

    def _ways(self) -> tuple[str, ...]:
        return self.world.chance.choice((("in",), ("out",), ("in", "out"), ("in", "out")))

    def _cut(self, cuts: set[tuple[str, str]], what: str) -> str:
        node, ways = self._node(), self._ways()
        seconds = self.world.chance.choice((0.5, 3.0, 6.0, 20.0))
        cut = {(node.name, way) for way in ways}
        cuts |= cut
        self.world.later(seconds, cuts.difference_update, cut)
        return f"{node.name} is cut from {what} ({'+'.join(ways)}) for {seconds:g} s"

    def _cut_peers(self) -> str:
        return self._cut(self.run.network.cuts, "its peers")

    def _cut_authority(self) -> str:
        return self._cut(self._leases.cuts, "the authority")

    @property
    def _leases(self) -> Leases:
        authority = self.run.authority
        assert isinstance(authority, Leases)
        return authority

    @property
    def _addresses(self) -> Addresses:
        authority = self.run.authority
        assert isinstance(authority, Addresses)
        return authority

    def _silence(self) -> str:
        leases, seconds = self._leases, self.world.chance.choice((1.0, 4.5, 8.0))
        leases.is_silent = True

        def speak() -> None:
            leases.is_silent = False

        self.world.later(seconds, speak)
        return f"the authority is silent for {seconds:g} s"

    def _revoke(self) -> str:
        self._leases.revoke()
        return "the lease is revoked"

    def _move(self) -> str:
        authority = self.run.authority
        if isinstance(authority, Addresses):
            self._move_to(authority.another(authority.chosen))
        else:
            holder = authority.holder
            others = [n for n in self.nodes if holder is None or n is not holder.node]
            self._move_to(self.world.chance.choice(others))
        return "the ownership moves"

    def _move_to(self, node: Node) -> None:
        authority = self.run.authority
        if self.is_over:
            return
        if isinstance(authority, Addresses):
            authority.move(node, leave=self.world.chance.random() < 0.3)
        else:
            authority.forget(node)

    def _take_from(self, node: Node) -> None:
        self._move_to(self.world.chance.choice([n for n in self.nodes if n is not node]))

    def _double(self) -> str:
        self._move()
        self.world.later(self.world.chance.uniform(0.05, 0.9), self._move)
        return "the ownership moves twice within a second"

    def _flap(self) -> str:
        authority = self._addresses
        node, seconds = authority.chosen, self.world.chance.choice((0.0, 0.5, 3.0, 12.0))
        node.remove_address(VIRTUAL_ADDRESS)

        def back() -> None:
            if authority.chosen is node:
                node.add_address(VIRTUAL_ADDRESS)

        self.world.later(seconds, back)
        return f"the address leaves {node.name} for {seconds:g} s"

    def _on_both(self) -> str:
        authority = self._addresses
        authority.move(authority.another(authority.chosen), leave=True)
        seconds = self.world.chance.choice((2.0, 12.0, 25.0))

        def tidy() -> None:
            for node in self.nodes:
                if node is not authority.chosen:
                    node.remove_address(VIRTUAL_ADDRESS)

        self.world.later(seconds, tidy)
        return f"the address is on two nodes for {seconds:g} s"

    def _gone(self) -> str:
        authority = self._addresses
        for node in self.nodes:
            node.remove_address(VIRTUAL_ADDRESS)
        seconds = self.world.chance.choice((1.0, 11.0, 15.0))
        self.world.later(seconds, lambda: authority.chosen.add_address(VIRTUAL_ADDRESS))
        return f"the address is nowhere for {seconds:g} s"

    def _deaf(self) -> str:
        process = self._running()
        if process is None:
            return ""
        process.doors.kernel.overflow()
        return f"netlink news are dropped for {process.name}"

    def _sinks(self) -> str:
        sinks, chance = self.run.load.sinks, self.world.chance
        what = chance.choice(("lossy", "lossy", "busy", "slow"))
        share, seconds = chance.choice((0.2, 0.5, 1.0)), chance.choice((2.0, 6.0))
        setattr(sinks, what, share)
        self.world.later(seconds, setattr, sinks, what, 0.0)
        return f"the sinks are {what} ({share:g}) for {seconds:g} s"
