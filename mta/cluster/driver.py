"""The ownership driver: does what the machine (ownership.py) says, step by step, and mints tenures.

Law (house.md law 2): a tenure exists only while the authority's grant is held, our epoch is
published above all others, the name is right, every required address was really bound, and older
epochs are recovered. Losing any of it closes every socket before anything else is done. A step
that fails is named and ends in STANDBY with a back-off; no step waits for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.cluster.claimant import AUTHORITY_SECONDS, Claimant, ClaimFacts
from mta.cluster.herald import Herald
from mta.cluster.ownership import Action, Input, OwnershipMachine, State
from mta.cluster.powers import Powers
from mta.cluster.pulse import Pulse
from mta.cluster.settings import ClusterSettings
from mta.cluster.steps import Steps
from mta.cluster.takeover_times import TakeoverTimes
from mta.cluster.tenure import Tenure, mint
from mta.errors import ConfigurationError, MTAError, StartRefused
from mta.interfaces import (
    IClock,
    IClusterResource,
    IDoors,
    IResourceListener,
    ISpool,
    ITenant,
    ITimer,
)
from mta.model import AddressInstance, Health, Recovery, VirtualAddress, VirtualServer
from mta.telemetry import Telemetry, Transition

__all__ = ["ClaimFacts", "Ownership"]

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 300.0
LONGEST_BACK_OFF_ALONE = 5.0
"""When no other node has an epoch, nobody is kept from the queue by our trying again."""
DRAIN_SLACK = 0.5
"""What a tenant may be late with its own drain deadline."""
THREAD_SECONDS = 0.1
"""How often a thread of a lost tenure, in its last disk call, is looked after."""
DRAINING = "draining"
EXIT_LOST = 75
"""EX_TEMPFAIL: this process cannot go on, the next one can."""


@implementer(IResourceListener)
class Ownership:
    """One node's ownership of one virtual server. `start()`, then it runs by itself.

    `on_fatal(call)`: `call(exit_code, reason)` when this process must end (superseded, disk stuck,
    a single node's start refused); sockets are closed and the spool abandoned by then.
    """

    def __init__(  # noqa: PLR0917 - the composition root names its rooms in this order
        self,
        resource: IClusterResource,
        spool: ISpool,
        tenant: ITenant,
        doors: IDoors,
        clock: IClock,
        telemetry: Telemetry,
        server: VirtualServer,
        claim_facts: ClaimFacts,
        settings: ClusterSettings,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._resource = resource
        self._spool = spool
        self._tenant = tenant
        self._clock = clock
        self._telemetry = telemetry
        self._server = server
        self._settings = settings
        self._machine = OwnershipMachine()
        dropped = telemetry.counter(
            "mta_ownership_late_events_total", "Events for an older bid or step, dropped."
        )
        self._dropped = dropped
        self._steps = Steps(clock, self._complain, dropped.inc)
        self._claimant = Claimant(
            resource,
            spool,
            doors,
            clock=clock,
            telemetry=telemetry,
            facts=claim_facts,
            settings=settings,
            steps=self._steps,
            jitter=jitter,
        )
        self._powers = Powers(resource, spool, self._claimant, self._steps, self._complain)
        self._herald = Herald(doors, clock, telemetry, is_wanted=settings.announce)
        self._pulse = Pulse(spool, clock, settings.spool_stall, self._lose_for_good)
        self._timers: dict[str, ITimer] = {}
        self._instances: tuple[AddressInstance, ...] | None = None
        self._served: frozenset[AddressInstance] = frozenset()
        self._tenure: Tenure | None = None
        self._tenant_runs = False
        self._failures = 0
        self._next_try = 0.0
        self._reason = "not started"
        self._failed_because = ""
        self._since = clock.monotonic()
        self._leave_by: float | None = None
        self._health: Health | None = None
        self._stopping = False
        self._stop_waiters: list[Deferred[None]] = []
        self._is_over = False
        self._refused_for_good: tuple[int, str] | None = None
        self._on_fatal: Callable[[int, str], object] | None = None
        self._times = TakeoverTimes(
            clock,
            telemetry,
            granted_at=lambda: self._claimant.granted_at,
            epoch=lambda: self._claimant.epoch,
        )
        telemetry.gauge(
            "mta_stale_address", "1 while our addresses are here but this node is not their owner."
        ).read = lambda: float(self.state is State.STANDBY and self._powers.are_stale)
        if hasattr(spool, "on_fatal"):  # a store that can tell by itself when it is at its end
            spool.on_fatal = self._spool_failed

    # --- what others see ------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def tenure(self) -> Tenure | None:
        """The tenure while there is one that lives."""
        return self._tenure if self._tenure is not None and self._tenure.is_live else None

    @property
    def epoch(self) -> int:
        """The epoch that this node published and has not given up; 0 otherwise."""
        return self._claimant.epoch

    @property
    def recovery(self) -> Recovery | None:
        """What was found when this node last took over."""
        return self._claimant.recovery

    def on_fatal(self, call: Callable[[int, str], object]) -> None:
        self._on_fatal = call

    def explain(self) -> str:
        """One line: where this node stands, and why."""
        state = self.state
        if state is State.ONLINE and self._tenure is not None:
            shown = ", ".join(str(a) for a in self._tenure.addresses)
            name = self._tenure.network_name
            return f"online as {name} at {shown}, epoch {self._claimant.epoch}"
        if state is State.STANDBY:
            wait = self._next_try - self._clock.monotonic()
            if wait > 0 and self._failed_because:
                return f"standby: {self._failed_because}; next try in {wait:.0f} s"
            return f"standby: {self._claimant.waits_for or self._resource.explain()}"
        if state is State.SUSPENDED:
            left = max(0.0, self._since + self._settings.grace - self._clock.monotonic())
            return f"suspended: {self._reason}; epoch {self.epoch} is kept for {left:.0f} s more"
        return f"{state.name.lower().replace('_', ' ')}: {self._reason}"

    def snapshot(self) -> dict[str, Any]:
        """For `mta status`."""
        now = self._clock.monotonic()
        step, step_seconds = self._steps.present
        left = self._powers.seconds_left if self._claimant.grant is not None else None
        return {
            "state": self.state.name.lower(),
            "meaning": self.state.value,
            "reason": self._reason,
            "seconds_in_state": round(now - self._since, 3),
            "epoch": self._claimant.epoch,
            "bid": self._machine.bid,
            "fencing": self._resource.fencing.value,
            "authority": self._resource.explain(),
            "announcements": self._herald.explain(),
            "health": self._health.text if self._health is not None else "",
            "lease_seconds_left": None if left is None else max(0.0, round(left, 3)),
            "last_takeover": self._times.snapshot(),
            "failures": self._failures,
            "last_failure": self._failed_because,
            "next_try_seconds": max(0.0, round(self._next_try - now, 3)),
            "step": step,
            "step_seconds": round(step_seconds, 3),
            "open": self._tenure.adopted_count if self._tenure is not None else 0,
        }

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch the authority and go online when it lets us. Once, in the running process."""
        self._resource.subscribe(self)
        try:
            self._resource.start()
        except MTAError as fault:
            self._fatal(fault.exit_code, str(fault))
            return
        self._feed(Input.START, "the process started")

    def stop(self, reason: str) -> Deferred[None]:
        """Drain, release, end. Fires when all of it is done; never fails."""
        waiter: Deferred[None] = Deferred()
        self._stop_waiters.append(waiter)
        if self.state is State.DOWN or self._is_over:
            self._stopped()
        elif not self._stopping:
            self._stopping = True
            self._feed(Input.STOP, reason)
        return waiter

    # --- IResourceListener ----------------------------------------------------------------------

    def addressesChanged(self, instances: tuple[AddressInstance, ...]) -> None:
        self._instances = instances
        if self.state is State.DOWN:
            return
        self._steps.wake()
        if self._tenure is not None:
            try:
                self._tenure.check()  # an address that moved may mean that the epoch did
            except MTAError:
                return  # the tenure's end is under way
        if self._powers.is_plumbing:
            return  # they come one by one; looked at when all are there
        missing = self._missing()
        if missing:
            self._feed(Input.ADDRESS_LOST, f"{', '.join(map(str, missing))} is not usable here")
            return
        if self._tenure is not None and self.state in {State.ONLINE, State.SEALED}:
            changed = self._changed()
            if changed:
                # Sockets of a former instance of an address hang without an error, and what they
                # had sent leaves late (measured): all begin anew, under the same epoch.
                self._feed(Input.ADDRESS_LOST, f"{changed} came, went or was made anew")
        self._feed(Input.ADDRESS_BACK, "all required addresses are usable")

    def losing(self, deadline: float) -> None:
        self._leave_by = deadline
        self._feed(Input.LOSING, "the authority asks us to leave")

    def lost(self, reason: str) -> None:
        self._feed(Input.LOST, reason)

    def health(self, health: Health) -> None:
        if self._health is None or self._health.level is not health.level:
            text = f"authority {health.level.value}: {health.text}"
            self._telemetry.notice("info", "cluster", text)
        self._health = health

    def _missing(self) -> list[VirtualAddress]:
        """Required addresses that the resource does not list; none when it never lists any."""
        if self._instances is None:
            return []
        usable = {instance.address for instance in self._instances}
        return [a for a in self._server.addresses if a.required and a.bind not in usable]

    def _ours(self) -> frozenset[AddressInstance]:
        ours = {address.bind for address in self._server.addresses}
        return frozenset(i for i in self._instances or () if i.address in ours)

    def _changed(self) -> str:
        return ", ".join(sorted({str(i.address) for i in self._ours() ^ self._served}))

    # --- the machine ----------------------------------------------------------------------------

    def _feed(self, heard: Input, reason: str, bid: int | None = None) -> None:
        before = self._machine.state
        action = self._machine.receive(heard, bid)
        if action is None:
            self._dropped.inc()
            return
        after = self._machine.state
        if action is Action.NOTHING:
            return
        self._reason = reason
        if before is not after:
            self._since = self._clock.monotonic()
            self._times.hear(after)
        self._telemetry.event(Transition("ownership", before.name, heard.name, after.name, reason))
        self._actions[action](self, reason)

    def _begin(self, name: str, step: Coroutine[Any, Any, str], success: Input) -> None:
        """Run one step; its outcome is fed unless another has begun, or another bid."""
        bid = self._machine.bid

        def failed(name: str, fault: Exception) -> None:
            if self.state is State.SEALED and self._claimant.may_come_back(fault):
                self._feed(Input.ADDRESS_LOST, str(fault), bid)
            else:
                self._feed(Input.REFUSED, self._named(name, fault), bid)

        self._steps.run(name, step, lambda reason: self._feed(success, reason, bid), failed)

    def _named(self, step: str, fault: Exception) -> str:
        """The reason of a failed step, said once, and what it means for this process."""
        self._failures += 1
        text = str(fault) if isinstance(fault, MTAError) else f"{step} failed: {fault!r}"
        if self._claimant.is_single and isinstance(fault, StartRefused | ConfigurationError):
            self._refused_for_good = (fault.exit_code, text)
        if text != self._failed_because:
            self._failed_because = text
            self._telemetry.notice("error", "cluster", f"{step}: {text}")
        return text

    # --- actions: the way up --------------------------------------------------------------------

    def _rest(self, reason: str) -> None:
        self._pulse.stop()
        if self._stopping:
            self._feed(Input.STOP, reason)
            return
        if self._refused_for_good is not None:
            self._fatal(*self._refused_for_good)
            return
        bid = self._machine.next_bid()
        wait = 0.0
        if self._failures:
            alone = self._claimant.is_alone
            wait = min(
                LONGEST_BACK_OFF_ALONE if alone else LONGEST_BACK_OFF,
                FIRST_BACK_OFF * 2 ** min(self._failures - 1, 20),
            )
        self._next_try = self._clock.monotonic() + wait
        if wait:
            self._timer("rest", wait, self._ask, bid)
        else:
            self._ask(bid)

    def _ask(self, bid: int) -> None:
        if bid == self._machine.bid and self.state is State.STANDBY:
            self._begin("waiting for ownership", self._claimant.ask(), Input.GRANTED)

    def _fence(self, reason: str) -> None:
        # An authority that fences does so before it grants: the grant is the acknowledgement.
        fencing = f"fencing: {self._resource.fencing.value}"
        self._feed(Input.FENCED, fencing, self._machine.bid)

    def _publish(self, reason: str) -> None:
        self._begin("publishing", self._claimant.publish(), Input.PUBLISHED)

    def _recover(self, reason: str) -> None:
        self._pulse.start()
        if self.state is State.PUBLISHED:  # the first check may have found it superseded
            self._begin("recovering", self._claimant.recover(), Input.RECOVERED)

    def _seal(self, reason: str) -> None:
        self._begin("sealing", self._claimant.seal(), Input.SEALED)

    def _start_tenant(self, reason: str) -> None:
        self._cancel_timer("grace")
        missing = [] if self._powers.plumbs else self._missing()
        if missing:
            gone = f"{', '.join(map(str, missing))} went meanwhile"
            self._feed(Input.ADDRESS_LOST, gone, self._machine.bid)
            return
        self._begin("starting", self._mint_and_start(), Input.STARTED)

    async def _mint_and_start(self) -> str:
        """Law 2, all of it true at once; then listen."""
        grant = self._claimant.held()
        await self._powers.plumb()
        usable = None if self._instances is None else {i.address for i in self._instances}
        addresses = self._claimant.bind(grant, usable)
        self._powers.check()
        self._served = self._ours()
        self._claimant.serve_with(self._served)
        self._tenure = tenure = mint(
            epoch=self._claimant.epoch,
            network_name=grant.network_name,
            addresses=addresses,
            check=self._powers.check,
            admit=self._powers.admit,
            fenced=self._fenced,
            complain=self._complain,
        )
        self._tenant_runs = True
        await self._tenant.start(tenure)
        return f"at {', '.join(map(str, addresses))}"

    def _announce(self, reason: str) -> None:
        self._failures = 0
        self._next_try = 0.0
        self._failed_because = ""
        self._claimant.away(False)
        assert self._tenure is not None
        self._herald.online(self._tenure, self._served, self._claimant.left_open())
        self._telemetry.notice("info", "cluster", self.explain())

    # --- actions: the way down --------------------------------------------------------------------

    def _suspend(self, reason: str) -> None:
        self._end_tenure()
        self._steps.drop()
        if self._tenant_runs:
            self._tenant_runs = False
            self._tell("suspend", self._tenant.suspend, reason)
        self._powers.plumb_again()
        self._claimant.away(True)
        bid, grace = self._machine.bid, self._settings.grace
        self._timer("grace", grace, self._feed, Input.GRACE_OVER, f"{reason} for {grace:g} s", bid)
        self._telemetry.notice("warning", "cluster", self.explain())

    def _drain(self, reason: str) -> None:
        now = self._clock.monotonic()
        deadline = now + self._settings.drain
        if self._leave_by is not None:
            deadline = max(now, min(deadline, self._leave_by))
        over = deadline - now + DRAIN_SLACK
        self._timer(
            "drain", over, self._feed, Input.DRAINED, "the drain time is over", self._machine.bid
        )

        async def drain() -> str:
            try:
                await self._tenant.drain(deadline)
            except Exception as fault:
                self._complain(f"the tenant raised in drain: {fault!r}")
            return "all associations ended"

        self._begin(DRAINING, drain(), Input.DRAINED)

    def _release(self, reason: str) -> None:
        self._cancel_timer("grace")
        self._cancel_timer("drain")
        if self._steps.present[0] == DRAINING:
            self._steps.drop()
        # Abort the rest while the address is ours: peers see a reset now, not a timeout later.
        self._end_tenure()
        self._stop_tenant(reason)
        self._pulse.ease()
        self._leave_by = None
        self._powers.unplumb()
        self._begin("releasing", self._give_back(reason), Input.RELEASED)

    async def _give_back(self, reason: str) -> str:
        """Wait for what still runs (a publish cannot be taken back half-way), mark, give back."""
        await self._steps.settled(self._settings.drain)
        # Abort, unplumb, last commit, mark R; then the grant, with which the next owner begins.
        await self._powers.unplumbed()
        await self._claimant.release_epoch(reason)
        await self._claimant.return_grant(reason)
        return reason

    def _withdraw(self, reason: str) -> None:
        """A bid has failed before anything was promised: give the grant back, and rest."""
        self._machine.next_bid()

        def failed(name: str, fault: Exception) -> None:
            self._complain(f"{name}: {fault!r}")
            self._rest(reason)

        self._steps.run("withdrawing", self._give_back(reason), self._rest, failed)

    def _end(self, reason: str) -> None:
        """LOST: sockets first, then the spool, then everybody else; all before we return."""
        for name in tuple(self._timers):
            self._cancel_timer(name)
        self._pulse.ease()
        self._end_tenure()
        self._powers.unplumb()
        self._spool.abandon()
        self._steps.drop()
        self._stop_tenant(reason)
        self._failures += 1
        if self._is_over:
            self._fatal(EXIT_LOST, reason)
            return
        self._telemetry.notice("error", "cluster", f"ownership lost: {reason}")
        self._begin("ending", self._wind_down(reason), Input.ENDED)

    async def _wind_down(self, reason: str) -> str:
        """Until every thread of that tenure has finished; then this process may stand by again."""
        await self._claimant.release_epoch(reason)
        while self._spool.stuck_seconds() > 0:  # the pulse goes on watching for how long
            await self._steps.sleep(THREAD_SECONDS)
        self._claimant.grant = None  # gone already: there is nothing to give back
        return reason

    def _shut(self, reason: str) -> None:
        self._cancel_timer("rest")
        self._steps.drop()

        async def shut() -> None:
            await self._claimant.return_grant(reason)
            await self._steps.bounded(self._resource.stop(), AUTHORITY_SECONDS, "stopping")

        def failed(name: str, fault: Exception) -> None:
            self._complain(f"{name}: {fault!r}")
            self._stopped()

        self._steps.run("stopping", shut(), lambda _none: self._stopped(), failed)

    _actions = {
        Action.REST: _rest,
        Action.FENCE: _fence,
        Action.PUBLISH: _publish,
        Action.RECOVER: _recover,
        Action.SEAL: _seal,
        Action.START: _start_tenant,
        Action.ANNOUNCE: _announce,
        Action.SUSPEND: _suspend,
        Action.DRAIN: _drain,
        Action.RELEASE: _release,
        Action.WITHDRAW: _withdraw,
        Action.END: _end,
        Action.SHUT: _shut,
    }

    # --- losing it for good -----------------------------------------------------------------------

    def _fenced(self, why: str) -> None:
        """Whoever used the tenure found it superseded. Its sockets and the spool close now; the
        rest comes in a turn of its own, for the caller stands in the midst of his work.
        """
        self._end_tenure()
        self._spool.abandon()
        self._lose_soon(why)

    def _spool_failed(self, reason: Exception) -> None:
        """The store says that it cannot justify another reply. As above: sockets now."""
        self._end_tenure()
        self._lose_soon(str(reason))

    def _lose_soon(self, reason: str) -> None:
        """The first reason is told: a pulse that is due already would find what we gave up."""
        self._pulse.ease()
        if "lost" not in self._timers:
            self._timer("lost", 0.0, self._lose_for_good, reason)

    def _lose_for_good(self, reason: str) -> None:
        """Superseded or stuck: this process cannot become owner again."""
        if self._is_over:
            return
        self._is_over = True
        if self.state is State.LOST:
            self._fatal(EXIT_LOST, reason)  # the threads of a lost tenure do not end
        else:
            self._feed(Input.LOST, reason)

    def _fatal(self, exit_code: int, reason: str) -> None:
        self._is_over = True
        self._pulse.stop()
        self._reason = reason
        self._complain(reason)
        try:
            self._resource.stop().addErrback(lambda _failure: None)
        except Exception as fault:
            self._complain(f"the cluster resource raised in stop: {fault!r}")
        self._stopped()
        if self._on_fatal is not None:
            self._on_fatal(exit_code, reason)

    # --- small parts ------------------------------------------------------------------------------

    def _end_tenure(self) -> None:
        tenure, self._tenure = self._tenure, None
        self._herald.offline()
        if tenure is not None:
            self._herald.cut_off += tenure.revoke()  # it may not have been online at all

    def _stop_tenant(self, reason: str) -> None:
        if self._tenant_runs:
            self._tenant_runs = False
            self._tell("stop", self._tenant.stop, reason)

    def _tell(self, what: str, call: Callable[[str], None], reason: str) -> None:
        try:
            call(reason)
        except Exception as fault:
            self._complain(f"the tenant raised in {what}: {fault!r}")

    def _complain(self, text: str) -> None:
        self._telemetry.notice("critical", "cluster", text)

    def _timer(self, name: str, seconds: float, call: Callable[..., object], *args: object) -> None:
        self._cancel_timer(name)
        self._timers[name] = self._clock.call_later(seconds, call, *args)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _stopped(self) -> None:
        waiters, self._stop_waiters = self._stop_waiters, []
        for waiter in waiters:
            waiter.callback(None)
