"""The virtual addresses on this node's interfaces, whoever put them there.

Law (house.md law 4): an address is not ownership. This resource says only which addresses are
usable here and grants when every required one is; who may claim with them is decided by their
instances and the epochs in the spool (claims.py). It fences nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mta.cluster.addresses import VirtualAddresses, read_boot_id
from mta.cluster.claims import check_identity
from mta.cluster.netlink import open_socket
from mta.cluster.settings import ClusterSettings
from mta.interfaces import (
    IAddressFacts,
    IClusterResource,
    IReadiness,
    IResourceListener,
    ISurroundings,
)
from mta.model import (
    AddressFact,
    AddressInstance,
    Fencing,
    Grant,
    Health,
    HealthLevel,
    VirtualServer,
)


class InterfaceSettings(ClusterSettings):
    """`resource: interface`: owner is who has the virtual addresses on its interfaces."""


@implementer(IClusterResource, IAddressFacts, IReadiness)
class InterfaceResource:
    """See IClusterResource."""

    fencing = Fencing.NONE

    def __init__(
        self,
        settings: InterfaceSettings,
        surroundings: ISurroundings,
        *,
        open_socket: Callable[[], Any] = open_socket,
        boot_id: Callable[[], str] = read_boot_id,
    ) -> None:
        self._surroundings = surroundings
        self._addresses = VirtualAddresses(
            surroundings, self._changed, self._broken, open_socket=open_socket, boot_id=boot_id
        )
        self._listener: IResourceListener | None = None
        self._waiters: list[Deferred[Grant]] = []
        self._granted = 0

    # --- life -----------------------------------------------------------------------------------

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._surroundings.node, own_name_is_right=False)
        self._addresses.server = server

    def start(self) -> None:
        self._addresses.start()

    def subscribe(self, listener: IResourceListener) -> None:
        self._listener = listener

    def stop(self) -> Deferred[None]:
        self._listener = None
        self._addresses.stop()
        return succeed(None)

    # --- the grant ------------------------------------------------------------------------------

    def acquire(self) -> Deferred[Grant]:
        if self._addresses.why_not():
            waiter: Deferred[Grant] = Deferred(self._waiters.remove)
            self._waiters.append(waiter)
            return waiter
        return succeed(self._grant())

    def _grant(self) -> Grant:
        self._granted += 1
        server = self._addresses.server
        return Grant(
            token=self._granted,
            network_name=server.network_name,
            addresses=server.addresses,
            fencing=Fencing.NONE,
            instances=self._addresses.instances(),
        )

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        """Everything is asked of the kernel once more."""
        return Deferred.fromCoroutine(self._confirm(grant))

    async def _confirm(self, grant: Grant) -> Grant:
        await self._addresses.confirm(grant)
        return grant

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        """The address is not ours to remove: whoever put it there takes it away."""
        return succeed(None)

    # --- what the kernel says ---------------------------------------------------------------------

    def _changed(self, instances: tuple[AddressInstance, ...]) -> None:
        if self._listener is not None:
            self._listener.addressesChanged(instances)
        if self._waiters and not self._addresses.why_not():
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(self._grant())

    def _broken(self, why: str) -> None:
        if self._listener is not None:
            self._listener.health(Health(HealthLevel.FAILED, why))
            self._listener.lost(why)

    def probe(self, level: int) -> Deferred[Health]:
        """0: what netlink last said; 1 and up: asked anew, and every address really bound."""
        if level <= 0:
            return succeed(self._addresses.health())
        refreshed = self._addresses.refresh()
        return refreshed.addCallback(lambda _none: self._addresses.bound_health())

    def explain(self) -> str:
        return self._addresses.explain()

    def address_facts(self) -> tuple[AddressFact, ...]:
        return self._addresses.facts()

    def would_fail(self) -> str:
        return self._addresses.would_fail()
