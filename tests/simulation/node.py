"""A machine, and one life after another of the MTA's process on it.

Law: what runs in a process is the product, built as `service` builds it from a configuration: the
ownership driver, the log spool, the tenant with intake, dispatch and SMTP. The machine is the
simulation's: power, kernel addresses, wall clock, and the supervisor that starts a process again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from mta.association.tls import Tls
from mta.cluster.driver import ClaimFacts, Ownership
from mta.cluster.ownership import State
from mta.cluster.settings import ClusterSettings
from mta.config.load import load
from mta.config.schema import Config
from mta.interfaces import ISpool, ISurroundings
from mta.plugins.find import Catalogue
from mta.resolver.memory import MemoryResolver
from mta.telemetry import Notice, Telemetry, Transition
from mta.tenant import Bridgehead
from mta.testing.disk import ForgetfulDisk
from tests.simulation.doors import NodeDoors
from tests.simulation.threads import ProcessClock, ProcessDisk, Threads
from tests.simulation.world import Event, World

if TYPE_CHECKING:
    from tests.simulation.network import Network

NETWORK_NAME = "vs1.example.org"
VIRTUAL_ADDRESS = "192.0.2.10"
HUBS = ("203.0.113.20", "203.0.113.21")
SPOOL = "/spool"
CONFIGURATION = f"""
virtual-server: {{network-name: {NETWORK_NAME}, addresses: [{VIRTUAL_ADDRESS}]}}
postmaster: postmaster@example.com
cluster: {{resource: standalone}}
listeners:
  - {{kind: smtp, port: 25, relay-from: [192.0.2.0/24]}}
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["{HUBS[0]}:25", "{HUBS[1]}:25"]
    address-spaces:
      - {{domain: example.com, accept: anyone}}
      - {{domain: example.net}}
    timeouts: {{greeting: 20s, envelope: 20s, data: 20s, final-dot: 30s}}
queue: {{backoff: [3s, 6s, 12s], destination-retry: 2s, idle: 2s, messages-per-association: 20}}
spool:
  store: log
  directory: {SPOOL}
  sharing: same-kernel
  initialise: true
  reserve: 256KiB
  segment-size: 64KiB
  first-segment-size: 64KiB
  spares: 1
  big-message: 8KiB
"""


@cache
def configuration() -> Config:
    """The same for every node of every world."""
    catalogue = Catalogue()
    return load(CONFIGURATION, "simulation.yaml", catalogue.find)


@implementer(ISurroundings)
class _Here:
    """ISurroundings of one process."""

    def __init__(self, process: Process, doors: Any) -> None:
        self.clock = process.clock
        self.doors = doors
        self.telemetry = process.telemetry
        self.disk = process.disk
        self.executor = process.threads
        self.resolver = MemoryResolver(process.world.chance.shuffle)
        self.node = process.node.name
        self.state_directory = "/state"
        config = configuration()
        self.virtual_server = config.virtual_server
        name = config.virtual_server.network_name
        self.tls = Tls(config.tls, name, process.clock, process.telemetry)


class Process:
    """From its start until it ends by itself or is killed."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.world: World = node.world
        self.name = f"{node.name}{number}"
        self.is_dead = False
        self.is_stopped = False
        self.reactor_is_held = 0
        self.kept: list[Event] = []
        self.telemetry = Telemetry()
        self.telemetry.attach(self._on_event)
        self.clock = ProcessClock(self)
        self.threads = Threads(self)
        self.disk = ProcessDisk(self, node.disk)
        self.doors = NodeDoors(node.network, self)
        self.here = _Here(self, self.doors)
        config = configuration()
        self.spool = ISpool(self._create(config.spool))
        self.tenant = Bridgehead(config, self.spool, self.here, self._create)  # type: ignore[arg-type]
        self.resource = node.authority.resource(self)
        self.resource.prepare(config.virtual_server)
        self.ownership = Ownership(
            self.resource,
            self.spool,
            self.tenant,
            self.doors,
            self.clock,
            self.telemetry,
            config.virtual_server,
            ClaimFacts(node.name, node.boot, self.world.now, "0", config.digest),
            ClusterSettings(),
            jitter=self.world.chance.random,
        )
        self.ownership.on_fatal(self._fatal)
        self.tenant.recovery = lambda: self.ownership.recovery
        self.associations = 0

    def _create(self, block: Any) -> Any:
        return block.factory.create(block.settings, self.here)

    def _fatal(self, code: int, reason: str) -> None:
        self.world.note(f"{self.name} ends with {code}: {reason}")
        self.node.ended(self, self.world.chance.uniform(0.2, 2.0))

    def _on_event(self, event: Any) -> None:
        if self.is_dead:
            return
        if type(event) is Transition and event.machine == "ownership":
            said = f"{event.before} -{event.input}-> {event.after}: {event.reason}"
            self.world.note(f"{self.name} {said}")
        elif type(event) is Notice and event.level in {"error", "critical"}:
            self.world.note(f"{self.name} {event.level}: {event.text.splitlines()[0]}")
            self.node.heard_notice(self, event)

    # --- being stopped

    @property
    def is_held(self) -> bool:
        return self.is_stopped or self.reactor_is_held > 0

    def keep(self, event: Event) -> None:
        self.kept.append(event)

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> None:
        """What waited happens now: timers in their order, what came by the network among them."""
        if self.is_held or self.is_dead:
            return
        kept, self.kept = self.kept, []
        behind = 0.0
        for event in kept:
            behind += self.world.chance.random() * 0.0004
            self.world.again(event, behind)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.is_stopped and not self.is_dead:
            self.is_stopped = False
            self.world.note(f"{self.name} goes on")
            self.go_on()

    def die(self, *, power: bool = False) -> None:
        """kill -9, or the machine's power: no code of it runs any more."""
        if self.is_dead:
            return
        self.node.before_death(self)
        self.is_dead = True
        self.kept.clear()
        self.disk.die()
        self.node.network.died(self, power=power)

    @property
    def state(self) -> State:
        return self.ownership.state


class Node:
    """A machine. `start_process` and what a supervisor does; `crash` and `boot_up` for its power."""

    def __init__(self, world: World, name: str, disk: ForgetfulDisk, network: Network) -> None:
        self.world = world
        self.name = name
        self.disk = disk
        self.network = network
        self.authority: Any = None
        self.boots = 1
        self.is_up = True
        self.wall_offset = 0.0
        self.process: Process | None = None
        self.former: list[Process] = []
        self.addresses: dict[tuple[int, str], tuple[int, int]] = {}
        self._starts = 0
        self._start: Event | None = None
        self.on_process: Callable[[Process], None] = lambda _process: None
        self.before_death: Callable[[Process], None] = lambda _process: None
        self.heard_notice: Callable[[Process, Notice], None] = lambda _p, _n: None

    @property
    def boot(self) -> str:
        return f"boot-{self.name}-{self.boots}"

    # --- the process

    def start_process(self) -> None:
        self._start = None
        if not self.is_up or self.process is not None:
            return
        self._starts += 1
        self.process = process = Process(self, self._starts)
        self.on_process(process)
        self.world.note(f"{process.name} starts")
        self.world.soon(process.ownership.start, owner=process)

    def start_later(self, seconds: float) -> None:
        if self._start is None:
            self._start = self.world.later(seconds, self.start_process)

    def ended(self, process: Process, restart: float | None, *, power: bool = False) -> None:
        """The process is gone; the supervisor starts another after `restart` seconds."""
        if process.is_dead:
            return
        process.die(power=power)
        self.former.append(process)
        if self.process is process:
            self.process = None
        self.authority.process_ended(self, process)
        if restart is not None:
            self.start_later(restart)

    # --- the machine

    def crash(self, keep: str, reboot: float) -> None:
        """Its power is cut: what it had not synced is lost as `keep` says."""
        if not self.is_up:
            return
        self.is_up = False
        if self.process is not None:
            self.ended(self.process, None, power=True)
        if self._start is not None:
            self._start.cancel()
            self._start = None
        self.addresses.clear()
        self.disk.power_cut(keep, self.world.chance.randrange(1 << 30), of=self.name)
        self.authority.machine_crashed(self)
        self.world.later(reboot, self.boot_up)

    def boot_up(self) -> None:
        if self.is_up:
            return
        self.boots += 1
        self.is_up = True
        self.world.note(f"{self.name} boots")
        self.authority.machine_booted(self)
        self.start_later(self.world.chance.uniform(0.1, 1.0))

    def has(self, address: str) -> bool:
        return self.is_up and (2, address) in self.addresses

    @property
    def has_any(self) -> bool:
        return self.is_up and bool(self.addresses)

    def add_address(self, address: str) -> None:
        if not self.is_up or self.has(address):
            return
        kernel = self.process.doors.kernel if self.process is not None else None
        if kernel is not None:
            kernel.add(address)
        else:
            self.addresses[2, address] = (0x80, int(self.world.now * 100))
        self.world.note(f"{self.name} has {address}")
        self.network.changed()

    def remove_address(self, address: str) -> None:
        if not self.has(address):
            return
        kernel = self.process.doors.kernel if self.process is not None else None
        if kernel is not None:
            kernel.remove(address)
        else:
            del self.addresses[2, address]
        self.world.note(f"{self.name} has {address} no more")
        self.network.changed()

    def bind(self, address: str) -> None:
        if not self.has(address):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
