"""One seed: a world is built, loaded, hurt, healed and judged.

    python -m tests.simulation --seed 7 --trace        one history, with all its lines
    python -m tests.simulation --first 1 --count 200   many of them, on all cores

Law: `simulate` draws from nothing but the seed, so that its trace is the same each time, in every
process and under every hash seed. Whatever is global and random is replaced while it runs.
"""

from __future__ import annotations

import gc
import random
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from twisted.logger import globalLogPublisher

from mta.cluster.ownership import State
from mta.testing.disk import ForgetfulDisk
from tests.simulation.authority import Addresses, Leases
from tests.simulation.faults import Faults
from tests.simulation.load import Load
from tests.simulation.network import Network
from tests.simulation.node import SPOOL, Node, Process
from tests.simulation.watch import Watch
from tests.simulation.world import Killed, Violation, World

FEWEST_FAULTS, MOST_FAULTS = 20, 26
LOOK_SECONDS = 4.0
HEALED_SECONDS = 900.0
"""The longest back-off is 300 s, and a queue has its own."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    violation: str = ""
    """"I1: what", or "" when all held."""
    trace: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Virtual ones."""
    steps: int = 0

    @property
    def name(self) -> str:
        return self.violation.partition(":")[0]


class Run:
    """All parts of one world. Further scenarios may be built from one: without `faults` nothing
    happens but what the caller does.
    """

    def __init__(self, seed: int, *, faults: int | None = None, authority: str = "") -> None:
        self.world = world = World(seed)
        chance = world.chance
        self.disk = ForgetfulDisk()
        self.disk.mkdir(SPOOL)
        self.disk.sync_directory("/")
        self.network = Network(world)
        names = "ab" if chance.random() < 0.6 else "abc"
        self.nodes = [Node(world, name, self.disk, self.network) for name in names]
        self.network.nodes = {node.name: node for node in self.nodes}
        kind = authority or chance.choice(("addresses", "leases"))
        build: Any = Addresses if kind == "addresses" else Leases
        self.authority: Addresses | Leases = build(world, self.nodes)
        self.watch = Watch(world, self.disk)
        self.watch.attach(self.network)
        self.load = Load(world, self.network, self.watch, chance.randint(2, 4))
        self.watch.load = self.load
        for node in self.nodes:
            node.authority = self.authority
            node.on_process = self._began
            node.before_death = self.watch.died
        many = chance.randint(FEWEST_FAULTS, MOST_FAULTS) if faults is None else faults
        self.faults = Faults(self, many)
        world.after_step = self.watch.after_step
        world.note(f"seed {seed}: nodes {names}, {kind}, {many} faults")

    def _began(self, process: Process) -> None:
        process.disk.heard = self.watch.disk_changed
        self.watch.processes.append(process)

    def begin(self) -> None:
        self.authority.begin()
        for node in self.nodes:
            node.start_later(self.world.chance.uniform(0.0, 0.5))
        self.load.begin()
        self.world.later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self.watch.look(durable=True)
        self.world.later(LOOK_SECONDS, self._look)

    def online(self) -> list[str]:
        """Names of the processes that are online."""
        found = []
        for node in self.nodes:
            process = node.process
            if process is not None and process.state is State.ONLINE:
                found.append(process.name)
        return found

    def is_done(self) -> bool:
        """All that was begun has come to its end."""
        return (
            self.load.is_idle
            and len(self.online()) == 1
            and all(m.is_settled for m in self.load.messages.values() if m.queue_ids)
        )

    def play(self) -> None:
        """@raise Violation."""
        world = self.world
        self.begin()
        self.faults.begin()
        world.run(world.now + 3600.0, lambda: self.faults.is_over)
        world.note("all faults are healed")
        self.faults.heal()
        self.load.is_over = True
        world.run(world.now + 1.0)  # the news of it arrive
        world.run(world.now + HEALED_SECONDS, self.is_done)
        world.run(world.now + 2.0)
        self.watch.conclude(self.online())
        if world.violation is not None:
            raise world.violation


@contextmanager
def drawn_from(seed: int) -> Iterator[list[str]]:
    """While it lasts all that is global and random follows the seed. Answers the failures that
    nobody handled.
    """
    chance = random.Random(f"global {seed}")
    state = random.getstate()
    saved = {name: getattr(secrets, name) for name in ("token_hex", "token_bytes", "randbits")}
    unheard: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is not None and not failure.check(Killed, GeneratorExit):
            unheard.append(failure.getErrorMessage())

    random.seed(chance.random())
    secrets.token_hex = lambda n=32: chance.randbytes(n).hex()
    secrets.token_bytes = lambda n=32: chance.randbytes(n)
    secrets.randbits = chance.getrandbits
    globalLogPublisher.addObserver(hear)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _args: None  # coroutines of dead processes, when they are cleared
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield unheard
    finally:
        if was_collecting:
            gc.enable()
        sys.unraisablehook = hook
        globalLogPublisher.removeObserver(hear)
        for name, function in saved.items():
            setattr(secrets, name, function)
        random.setstate(state)


def simulate(seed: int, prepare: Callable[[Run], None] | None = None) -> Outcome:
    """One seed from its beginning to its end."""
    outcome = Outcome(seed)
    with drawn_from(seed) as unheard:
        run = Run(seed)
        if prepare is not None:
            prepare(run)
        try:
            run.play()
        except Violation as found:
            outcome.violation = str(found)
            run.world.note(f"VIOLATION {found}")
        world = run.world
        if unheard and not outcome.violation:
            outcome.violation = f"defect: nobody handled {unheard[0]}"
        world.note(f"the disk is {disk_digest(run.disk):08x} after {world.steps} steps")
        outcome.trace = world.trace
        outcome.faults = run.faults.log
        outcome.figures = run.watch.figures
        outcome.seconds = world.now - 1000.0
        outcome.steps = world.steps
        for process in run.watch.processes:
            process.is_dead = True  # nothing that is cleared away now may move anything
        del run, world, process
    gc.collect()
    return outcome


def disk_digest(disk: ForgetfulDisk) -> int:
    """All names and octets as they read now."""
    digest = 0
    for path in disk.paths():
        digest = crc32(disk.octets(path), crc32(path.encode(), digest))
    return digest
