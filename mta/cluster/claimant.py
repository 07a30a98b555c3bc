"""What a bid for ownership awaits: the grant, the right to claim, the epoch, and giving them back.

Law (spool.md section 3): everything that can refuse is tried before the epoch is published; the
highest epoch is read before the authority is asked once more; nothing is published twice under one
grant. This module talks to the authority and the spool and decides no state (driver.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from twisted.internet.defer import Deferred

from mta.cluster.claims import Sightings, check_identity, judge
from mta.cluster.settings import ClusterSettings
from mta.cluster.steps import Steps
from mta.errors import AddressAway, ClusterNotInitialised, MTAError
from mta.interfaces import (
    IClock,
    IClusterResource,
    IDoors,
    IEpochFile,
    ILease,
    IPlumber,
    ISingleNode,
    ISpool,
    ISuspension,
    IUsedInstances,
)
from mta.model import (
    AddressInstance,
    Claim,
    EpochRecord,
    FourTuple,
    Grant,
    Recovery,
    VirtualAddress,
    VirtualServer,
    former_instances,
    newest_instances,
)
from mta.telemetry import Telemetry

LOOK_AGAIN_SECONDS = 1.0
"""While another node holds the epoch: how often its heartbeat is looked at."""
AUTHORITY_SECONDS = 10.0
"""A round trip to the authority that takes longer has failed."""


RELEASE_SECONDS = 30.0
"""Last commit, checkpoint of a queue of any size, mark R. A disk that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """What this process writes into the epoch files that it publishes."""

    node: str
    boot_id: str
    process_started: float
    version: str
    configuration_digest: str

    def claim(self, grant: Grant, records: Sequence[EpochRecord]) -> Claim:
        return Claim(
            self.node,
            self.boot_id,
            self.process_started,
            self.version,
            self.configuration_digest,
            grant,
            former_instances(records),
        )


class Claimant:
    """Holds what a bid has reached so far: `grant`, `records`, `epoch` (0 before it is published).

    `waits_for` says why a claim is not made yet, "" when nothing stands against it.
    """

    def __init__(
        self,
        resource: IClusterResource,
        spool: ISpool,
        doors: IDoors,
        *,
        clock: IClock,
        telemetry: Telemetry,
        facts: ClaimFacts,
        settings: ClusterSettings,
        steps: Steps,
        jitter: Callable[[], float],
    ) -> None:
        self._resource = resource
        self._spool = spool
        self._doors = doors
        self._clock = clock
        self._telemetry = telemetry
        self._facts = facts
        self._settings = settings
        self._steps = steps
        self._jitter = jitter
        self._sightings = Sightings()
        self._epoch_gauge = telemetry.gauge(
            "mta_cluster_epoch", "The published epoch, 0 on standby."
        )
        self._lease: ILease | None = resource if ILease.providedBy(resource) else None
        self._plumbs = IPlumber.providedBy(resource)
        self.is_single = ISingleNode.providedBy(resource)
        self.grant: Grant | None = None
        self._another_lives = False
        self._left_open: tuple[FourTuple, ...] = ()
        self._used: tuple[AddressInstance, ...] = ()
        """By our epoch: claimed with, or served with since."""
        self._away_since: float | None = None
        self.recovery: Recovery | None = None
        self.granted_at = 0.0
        self.records: tuple[EpochRecord, ...] = ()
        self.epoch = 0
        self.waits_for = ""

    @property
    def is_alone(self) -> bool:
        """No other node's heart beats: nobody is kept from the queue by our trying again."""
        return self.is_single or not self._another_lives

    # --- the way up -----------------------------------------------------------------------------

    async def ask(self) -> str:
        """Wait for the grant, and for the right to claim with it. As long as it takes."""
        while True:
            self.grant = await self._resource.acquire()
            self.granted_at = self._clock.monotonic()
            self.records = await self._spool.inspect()
            newest = self.records[-1] if self.records else None
            quiet = 0.0
            if newest is not None:
                quiet = self._sightings.quiet_seconds(newest, self._clock.monotonic())
            self._another_lives = (
                newest is not None
                and newest.node != self._facts.node
                and not newest.released
                and quiet < self._settings.takeover_after
            )
            verdict = judge(
                self.grant.instances,
                self.records,
                self._facts.node,
                quiet,
                self._settings.takeover_after,
            )
            if verdict.may:
                if verdict.contested:
                    # Two standbys that see the same silence must not publish in one moment.
                    await self._steps.sleep(self._jitter())
                self.waits_for = ""
                return verdict.why
            self.waits_for = verdict.why
            await self._steps.sleep(LOOK_AGAIN_SECONDS)

    async def publish(self) -> str:
        """Try all that can refuse, confirm the grant, publish. @raise MTAError: which and why."""
        generation = self._steps.generation
        grant = self.held()
        check_identity(
            VirtualServer(grant.network_name, grant.addresses),
            self._facts.node,
            own_name_is_right=self.is_single,
        )
        if not self._plumbs:
            self.bind(grant, None)
        highest = self.records[-1].epoch if self.records else 0
        # Asked after `highest` was read: an older grant cannot pass.
        self.grant = grant = await self._steps.bounded(
            self._resource.confirm(grant), AUTHORITY_SECONDS, "confirming the grant"
        )
        if generation != self._steps.generation:
            raise ClusterNotInitialised(
                "this bid for ownership has ended", "it was lost, or we stop"
            )
        self.epoch = await self._spool.publish(self._facts.claim(grant, self.records), highest)
        self._used = grant.instances
        self._away_since = None
        self._epoch_gauge.set(self.epoch)
        return f"epoch {self.epoch} above {highest}"

    async def recover(self) -> str:
        self.recovery = found = await self._spool.recover()
        self._left_open = found.open_associations
        for name in found.set_aside:
            self._telemetry.notice("error", "spool", f"set aside: {name}")
        if found.clock_suspect:
            self._telemetry.notice("warning", "spool", f"clock-suspect: {found.clock_suspect}")
        return f"{found.messages} messages, {found.in_doubt} in doubt, {found.seconds:.2f} s"

    async def seal(self) -> str:
        await self._spool.seal()
        return "checkpoint durable"

    def away(self, is_away: bool) -> None:
        """The other nodes see whether anything is open under our epoch."""
        if not is_away:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = self._clock.monotonic()
        if ISuspension.providedBy(self._spool):
            self._spool.suspended(is_away)

    def may_come_back(self, fault: Exception) -> bool:
        """The addresses came, and one was gone again before it was listened at: the news of that
        are on their way, and the epoch is kept for it as long as for any that went.
        """
        since = self._away_since
        if self.is_single or not isinstance(fault, AddressAway):
            return False
        return since is None or self._clock.monotonic() < since + self._settings.grace

    def serve_with(self, instances: Collection[AddressInstance]) -> None:
        """Under our epoch, from now on. An address that went and came back is another instance, and
        one that is not known as used would take the ownership back from whoever takes it.
        """
        used = newest_instances((*sorted(instances, key=str), *self._used))
        # A grant without instances is the right to claim by itself: nobody compares any.
        if not self._used or set(used) == set(self._used):
            return
        self._used = used
        if IUsedInstances.providedBy(self._spool):
            self._spool.used(used)
            self._spool.heartbeat()  # a takeover may come within the second

    def left_open(self) -> tuple[FourTuple, ...]:
        """What the former owner had open; answered once a takeover, and none when it was us."""
        found, self._left_open = self._left_open, ()
        return found

    def plumb(self, plumber: IPlumber) -> Deferred[None]:
        """Have the addresses added, for as long as our epoch's file says that it is the newest.
        @raise ClusterNotInitialised: the grant is gone.
        """
        grant, spool = self.held(), self._spool
        path = spool.epoch_file() if IEpochFile.providedBy(spool) else ""
        return plumber.plumb(grant, self.epoch, path)

    def held(self) -> Grant:
        """The grant, within its time. @raise ClusterNotInitialised."""
        if self.grant is None:
            raise ClusterNotInitialised("the grant is gone")
        valid_until = self.grant.valid_until
        if self._lease is not None:  # it may have been renewed since
            is_over = self._lease.seconds_left() <= 0.0
        else:
            is_over = valid_until is not None and valid_until <= self._clock.monotonic()
        if is_over:
            raise ClusterNotInitialised("the grant has expired", "taking over took too long")
        return self.grant

    def bind(
        self, grant: Grant, usable: Collection[IPv4Address | IPv6Address] | None
    ) -> tuple[VirtualAddress, ...]:
        """Really bind each address; answer those that can be. `usable`: what the resource lists,
        None when it lists nothing. @raise ClusterNotInitialised: a required one cannot be bound.
        """
        bound = []
        for address in grant.addresses:
            if not address.required and usable is not None and address.bind not in usable:
                continue
            try:
                self._doors.try_bind(address)
            except OSError as fault:
                if not address.required:
                    continue
                kind = AddressAway if fault.errno == errno.EADDRNOTAVAIL else ClusterNotInitialised
                raise kind(
                    f"virtual address {address} cannot be bound",
                    fault.strerror or str(fault),
                    "see `ip address` on this node and virtual-server.addresses",
                ) from fault
            bound.append(address)
        return tuple(bound)

    # --- the way down ---------------------------------------------------------------------------

    async def release_epoch(self, reason: str) -> None:
        """Mark it released, if one was published. A failure, or a disk that never answers, is said;
        the others' takeover-after does the rest.
        """
        if self.epoch or self._spool.epoch:
            releasing = self._spool.release(reason)
            try:
                await self._steps.bounded(releasing, RELEASE_SECONDS, "the spool's release")
            except MTAError as fault:
                self._spool.abandon()
                self._telemetry.notice("error", "spool", f"releasing epoch {self.epoch}: {fault}")
        self.epoch = 0
        self._epoch_gauge.set(0)

    async def return_grant(self, reason: str) -> None:
        grant, self.grant = self.grant, None
        if grant is None:
            return
        try:
            await self._steps.bounded(
                self._resource.release(grant, reason), AUTHORITY_SECONDS, "releasing the grant"
            )
        except MTAError as fault:
            self._telemetry.notice("warning", "cluster", f"release: {fault}")
