"""What some cluster resources can do besides granting: a lease that runs out, addresses they plumb.

Law: a resource without them costs nothing and is asked nothing. A lease is compared at each act,
not only by a timer: a process that was stopped handles events before its timers. Addresses are
added after the epoch is published, and taken away before the grant is given back.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed

from mta.cluster.claimant import Claimant
from mta.cluster.steps import Steps
from mta.errors import Fenced, MTAError, TransientFailure
from mta.interfaces import IClusterResource, ILease, IPlumber, ISpool, IStaleAddresses

PLUMB_SECONDS = 5.0
"""Adding or removing an address takes milliseconds; the kernel, or the watchdog, hangs."""


class Powers:
    """The add-ons of one resource, as the ownership driver uses them."""

    def __init__(
        self,
        resource: IClusterResource,
        spool: ISpool,
        claimant: Claimant,
        steps: Steps,
        complain: Callable[[str], None],
    ) -> None:
        self._lease: ILease | None = resource if ILease.providedBy(resource) else None
        self._plumber: IPlumber | None = resource if IPlumber.providedBy(resource) else None
        self._mover: IStaleAddresses | None = (
            resource if IStaleAddresses.providedBy(resource) else None
        )
        self._spool = spool
        self._claimant = claimant
        self._steps = steps
        self._complain = complain
        self.is_plumbing = False
        self._going: Deferred[None] = succeed(None)
        """The addresses' removal, under way."""
        self.check: Callable[[], None] = spool.check if self._lease is None else self._check

    # --- the lease ------------------------------------------------------------------------------

    def _check(self) -> None:
        """`check`: both questions of law 4, before each act. @raise Fenced."""
        assert self._lease is not None
        if self._lease.seconds_left() <= 0.0:
            raise Fenced(
                f"the lease under epoch {self._claimant.epoch} is over",
                "it was not renewed in time, or this process was stopped meanwhile",
                "nothing is answered any more; this node stands by again",
            )
        self._spool.check()

    def admit(self) -> None:
        """@raise TransientFailure: nothing new may begin."""
        if self._lease is not None and not self._lease.may_accept():
            raise TransientFailure(
                "the authority has not renewed its grant in time",
                f"{max(0.0, self._lease.seconds_left()):.1f} s are left of it",
                "see `mta status` and the authority's own log",
            )

    @property
    def seconds_left(self) -> float | None:
        """Of the lease; None for an authority that has none."""
        return None if self._lease is None else self._lease.seconds_left()

    # --- the addresses --------------------------------------------------------------------------

    @property
    def are_stale(self) -> bool:
        """Asked on a standby: our addresses are here although this node is not the owner."""
        mover = self._mover
        return bool(self._claimant.waits_for or (mover is not None and mover.stale_addresses()))

    @property
    def plumbs(self) -> bool:
        """The addresses come by our own doing, so that before it they are missing."""
        return self._plumber is not None

    async def plumb(self) -> None:
        """Have them added. @raise ClusterNotInitialised: they could not be, or not in time."""
        if self._plumber is None:
            return
        self.is_plumbing = True
        try:
            await self._steps.bounded(
                self._claimant.plumb(self._plumber), PLUMB_SECONDS, "adding the addresses"
            )
        finally:
            self.is_plumbing = False

    def plumb_again(self) -> None:
        """Somebody took an address away: it is ours to bring back while the grace lasts."""
        if self._plumber is None or self._claimant.grant is None:
            return

        def failed(failure: object) -> None:
            self._complain(f"adding the addresses again: {failure}")

        plumbing = self._claimant.plumb(self._plumber)
        plumbing.addErrback(lambda failure: failed(failure.value))

    def unplumb(self) -> None:
        """Begin to take them away; `unplumbed` waits for it."""
        if self._plumber is not None:
            self._going = self._plumber.unplumb()

    async def unplumbed(self) -> None:
        going, self._going = self._going, succeed(None)
        try:
            await self._steps.bounded(going, PLUMB_SECONDS, "removing the addresses")
        except MTAError as fault:
            self._complain(str(fault))
