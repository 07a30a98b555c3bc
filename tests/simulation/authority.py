"""Who says which node owns: addresses that something moves about, or a lease that runs out.

Law: an authority is not believed by the invariants. It may grant to two, be silent, forget, and take
back without a word; what the nodes do then is what is watched. `Addresses` drives the product's own
`interface` resource over a kernel of paper. `Leases` is a resource of the simulation with ILease and
IPlumber; its deadlines count from the moment a request was sent (spool.md section 9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.cluster.addresses import VirtualAddresses
from mta.cluster.claims import check_identity
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.errors import ClusterNotInitialised, GrantLost
from mta.interfaces import IClusterResource, ILease, IPlumber, IResourceListener
from mta.model import Fencing, Grant, Health, HealthLevel, VirtualServer
from tests.simulation.node import VIRTUAL_ADDRESS, Node, Process
from tests.simulation.world import World

TTL = 5.0
ACCEPT, ABORT, RENEW = 0.7, 0.8, 0.3
ASK_AGAIN = 0.5
WATCHDOG = 0.02
"""Until a watchdog has removed the addresses of a process that died."""


class Addresses:
    """Something outside moves the address, and can be wrong about it."""

    has_leases = False

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world = world
        self.nodes = nodes
        self.chosen = nodes[0]
        self.is_calm = False

    def begin(self) -> None:
        self.chosen.add_address(VIRTUAL_ADDRESS)

    def resource(self, process: Process) -> InterfaceResource:
        return InterfaceResource(
            InterfaceSettings(),
            process.here,  # type: ignore[arg-type]
            open_socket=process.doors.kernel.open,  # type: ignore[arg-type]
            boot_id=lambda: process.node.boot,
        )

    # --- what moves it

    def move(self, node: Node, *, leave: bool = False) -> None:
        """To `node`; the former holder keeps it too when `leave`."""
        former, self.chosen = self.chosen, node
        if not leave:
            for other in self.nodes:
                if other is not node:
                    other.remove_address(VIRTUAL_ADDRESS)
        node.add_address(VIRTUAL_ADDRESS)
        self.world.note(f"address: {former.name} to {node.name}{', on both' if leave else ''}")

    def another(self, than: Node) -> Node:
        """A machine that is up, if there is one."""
        others = [n for n in self.nodes if n is not than and n.is_up]
        return self.world.chance.choice(others) if others else than

    def process_ended(self, node: Node, process: Process) -> None:
        """Who moves the address looks after the process, mostly."""
        if node is self.chosen and not self.is_calm and self.world.chance.random() < 0.6:
            self.world.later(self.world.chance.uniform(0.3, 3.0), self._fail_over, node)

    def _fail_over(self, node: Node) -> None:
        if self.chosen is node and not self.is_calm:
            self.move(self.another(node))

    def machine_crashed(self, node: Node) -> None:
        if node is self.chosen:
            self.world.later(self.world.chance.uniform(0.3, 2.0), self._fail_over, node)

    def machine_booted(self, node: Node) -> None:
        if node is self.chosen:
            node.add_address(VIRTUAL_ADDRESS)

    def heal(self) -> None:
        self.is_calm = True
        for node in self.nodes:
            if node is not self.chosen:
                node.remove_address(VIRTUAL_ADDRESS)
        self.chosen.add_address(VIRTUAL_ADDRESS)


class Leases:
    """One key with a lease. `watchdog`: a process that dies or oversleeps loses its address."""

    has_leases = True

    def __init__(self, world: World, nodes: list[Node]) -> None:
        self.world = world
        self.nodes = nodes
        self.holder: Process | None = None
        self.expires = 0.0
        self.token = 0
        self.is_silent = False
        self.cuts: set[tuple[str, str]] = set()
        self.favourite: Node | None = None
        """The next one to be granted, for a moment."""
        self.has_watchdog = world.chance.random() < 0.6

    def begin(self) -> None: ...

    def resource(self, process: Process) -> Lease:
        process.node.remove_address(VIRTUAL_ADDRESS)  # every start removes leftovers
        return Lease(process, self)

    # --- the service

    def ask(self, process: Process, what: str, token: int, answer: Callable[[Any], None]) -> None:
        """A request leaves; its answer comes, unless something is cut or the service is silent."""
        if (process.node.name, "out") in self.cuts:
            return
        delay = self.world.chance.uniform(0.001, 0.01)
        self.world.later(delay, self._serve, process, what, token, answer)

    def _serve(self, process: Process, what: str, token: int, answer: Any) -> None:
        if self.is_silent:
            return
        now = self.world.now
        if self.holder is not None and self.expires <= now:
            self.world.note(f"authority: the lease of {self.holder.name} is over")
            self.holder = None
        result: Any = None
        is_mine = self.holder is process and token == self.token
        if what == "acquire":
            wanted = self.favourite in {None, process.node}
            if self.holder is None and wanted:
                self.token += 1
                self.holder, self.expires, self.favourite = process, now + TTL, None
                self.world.note(f"authority: {process.name} owns by token {self.token}")
                result = self.token
        elif what == "renew":
            if is_mine:
                self.expires = now + TTL
            result = is_mine
        elif is_mine:
            self.world.note(f"authority: {process.name} gives token {token} back")
            self.holder, result = None, True
        if process.node.is_up and (process.node.name, "in") not in self.cuts:
            delay = self.world.chance.uniform(0.001, 0.01)
            self.world.later(delay, answer, result, owner=process)

    def forget(self, favourite: Node | None = None) -> None:
        """It expires early: the holder goes on believing until it asks."""
        if self.holder is not None:
            self.world.note(f"authority: forgets {self.holder.name}")
        self.holder, self.favourite = None, favourite
        self.world.later(2.0, self._anybody)

    def _anybody(self) -> None:
        self.favourite = None

    def revoke(self) -> None:
        holder, self.holder = self.holder, None
        if holder is not None and not holder.is_dead:
            self.world.note(f"authority: revokes {holder.name}")
            if (holder.node.name, "in") not in self.cuts:
                self.world.soon(holder.resource.revoked, owner=holder)

    # --- machines

    def process_ended(self, node: Node, process: Process) -> None:
        if self.has_watchdog:
            self.world.later(WATCHDOG, self._clean, node)

    def _clean(self, node: Node) -> None:
        if node.process is None:
            node.remove_address(VIRTUAL_ADDRESS)

    def overslept(self, process: Process) -> None:
        """The watchdog's own timer, which runs while the process is stopped."""
        if not self.has_watchdog or process.is_dead:
            return
        left = process.resource.seconds_left()
        if left > 0.0:
            process.resource.watch(left)
        elif process.resource.token and process.is_held:
            self.world.note(f"watchdog: kills {process.name}")
            process.node.ended(process, self.world.chance.uniform(0.5, 3.0))

    def machine_crashed(self, node: Node) -> None: ...

    def machine_booted(self, node: Node) -> None: ...

    def heal(self) -> None:
        self.is_silent = False
        self.cuts.clear()
        self.favourite = None
        for node in self.nodes:
            if node.process is None:
                node.remove_address(VIRTUAL_ADDRESS)


@implementer(IClusterResource, ILease, IPlumber)
class Lease:
    """One process's side of it."""

    fencing = Fencing.SELF

    def __init__(self, process: Process, authority: Leases) -> None:
        self._process = process
        self._authority = authority
        self._clock = process.clock
        self._listener: IResourceListener | None = None
        self._server = process.here.virtual_server
        self.token = 0
        self._sent_at = 0.0
        """When the last renewal that was answered had been sent."""
        self._waiter: Deferred[Grant] | None = None
        self._addresses = VirtualAddresses(
            process.here,  # type: ignore[arg-type]
            self._changed,
            self._broken,
            open_socket=process.doors.kernel.open,  # type: ignore[arg-type]
            boot_id=lambda: process.node.boot,
        )
        self._plumbing: list[Deferred[None]] = []
        self._is_stopped = False

    # --- life

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._process.node.name, own_name_is_right=False)

    def start(self) -> None:
        self._addresses.start()

    def subscribe(self, listener: IResourceListener) -> None:
        self._listener = listener

    def stop(self) -> Deferred[None]:
        self._is_stopped = True
        self._listener = None
        self._addresses.stop()
        return succeed(None)

    def explain(self) -> str:
        return f"token {self.token}, {self.seconds_left():.1f} s left" if self.token else "waiting"

    def probe(self, level: int) -> Deferred[Health]:
        return succeed(Health(HealthLevel.OK, self.explain()))

    # --- the grant

    def acquire(self) -> Deferred[Grant]:
        if self.token and self.seconds_left() > 0.0:
            return succeed(self._grant())
        self._waiter = waiter = Deferred(self._cancelled)
        self._ask()
        return waiter

    def _cancelled(self, _waiter: object) -> None:
        self._waiter = None

    def _ask(self) -> None:
        if self._waiter is None or self._is_stopped:
            return
        sent = self._clock.monotonic()

        def answered(token: int | None) -> None:
            if token is None:
                return
            waiter, self._waiter = self._waiter, None
            if waiter is None:
                self._authority.ask(self._process, "revoke", token, lambda _none: None)
                return
            self.token, self._sent_at = token, sent
            self.watch(TTL * ABORT)
            self._clock.call_later(TTL * RENEW, self._renew, token)
            waiter.callback(self._grant())

        self._authority.ask(self._process, "acquire", 0, answered)
        pause = ASK_AGAIN * self._process.world.chance.uniform(0.8, 1.2)
        self._clock.call_later(pause, self._ask)

    def _grant(self) -> Grant:
        server = self._server
        until = self._sent_at + TTL * ABORT
        return Grant(
            self.token, server.network_name, server.addresses, self.fencing, valid_until=until
        )

    def watch(self, seconds: float) -> None:
        """The deadline, twice: by our own timer, and by the watchdog's."""
        world, process = self._process.world, self._process
        world.later(seconds + WATCHDOG, self._authority.overslept, process)
        self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        if self.token and self.seconds_left() <= 0.0:
            self._lost("the lease was not renewed in time")

    def _renew(self, token: int) -> None:
        if token != self.token or self._is_stopped:
            return
        sent = self._clock.monotonic()

        def answered(is_held: bool) -> None:
            if token != self.token:
                return
            if not is_held:
                self._lost("the lease is gone")
            elif sent > self._sent_at:
                self._sent_at = sent
                self.watch(TTL * ABORT - (self._clock.monotonic() - sent))

        self._authority.ask(self._process, "renew", token, answered)
        is_late = self._clock.monotonic() - self._sent_at > TTL * RENEW * 1.2
        self._clock.call_later(TTL * (0.1 if is_late else RENEW), self._renew, token)

    def revoked(self) -> None:
        if self.token:
            self._lost("the lease was revoked")

    def _lost(self, why: str) -> None:
        self.token = 0
        if self._listener is not None:
            self._listener.lost(why)

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        if not self.token or grant.token != self.token:
            return fail(GrantLost("the lease is gone"))
        done: Deferred[Grant] = Deferred(lambda _d: None)
        sent, token = self._clock.monotonic(), self.token

        def answered(is_held: bool) -> None:
            if done.called:
                return
            if not is_held or token != self.token:
                done.errback(GrantLost("the lease is gone"))
                return
            self._sent_at = max(self._sent_at, sent)
            self.watch(TTL * ABORT - (self._clock.monotonic() - sent))
            done.callback(self._grant())

        self._authority.ask(self._process, "renew", token, answered)
        return done

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        if grant.token != self.token or not self.token:
            return succeed(None)
        done: Deferred[None] = Deferred(lambda _d: None)
        token, self.token = self.token, 0

        def answered(_result: object) -> None:
            if not done.called:
                done.callback(None)

        self._authority.ask(self._process, "revoke", token, answered)
        return done

    # --- ILease

    def seconds_left(self) -> float:
        if not self.token:
            return 0.0
        return self._sent_at + TTL * ABORT - self._clock.monotonic()

    def may_accept(self) -> bool:
        return self.seconds_left() > TTL * (ABORT - ACCEPT)

    # --- IPlumber

    def plumb(self, grant: Grant, epoch: int, epoch_file: str) -> Deferred[None]:
        if not self.token or grant.token != self.token:
            return fail(ClusterNotInitialised("the lease is gone"))
        node = self._process.node
        if not self._addresses.why_not():
            return succeed(None)
        done: Deferred[None] = Deferred(self._plumbing.remove)
        self._plumbing.append(done)
        node.add_address(VIRTUAL_ADDRESS)
        return done

    def unplumb(self) -> Deferred[None]:
        self._process.node.remove_address(VIRTUAL_ADDRESS)
        return succeed(None)

    def _changed(self, instances: Any) -> None:
        if self._listener is not None:
            self._listener.addressesChanged(instances)
        if not self._addresses.why_not():
            plumbing, self._plumbing = self._plumbing, []
            for done in plumbing:
                done.callback(None)

    def _broken(self, why: str) -> None:
        if self._listener is not None:
            self._listener.lost(why)
