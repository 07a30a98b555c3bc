"""The virtual addresses on this node's interfaces, whoever put them there.

Law (house.md law 4): an address is not ownership. This resource says only which addresses are
usable here and grants when every required one is; who may claim with them is decided by their
instances and the epochs in the spool (claims.py). It fences nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.cluster.claims import check_identity
from mta.cluster.netlink import AddressWatcher, open_socket
from mta.cluster.settings import ClusterSettings
from mta.errors import GrantLost, StartRefused
from mta.interfaces import IClusterResource, IResourceListener, ISurroundings
from mta.model import (
    AddressInstance,
    Fencing,
    Grant,
    Health,
    HealthLevel,
    VirtualAddress,
    VirtualServer,
)

REOPEN_SECONDS = 1.0
"""After the netlink socket broke."""


class InterfaceSettings(ClusterSettings):
    """`resource: interface`: owner is who has the virtual addresses on its interfaces."""


def read_boot_id() -> str:
    """The kernel's name for this boot. @raise OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@implementer(IClusterResource)
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
        self._settings = settings
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._open_socket = open_socket
        self._read_boot_id = boot_id
        self._boot_id = ""
        self._server = surroundings.virtual_server
        self._listener: IResourceListener | None = None
        self._watcher: AddressWatcher | None = None
        self._waiters: list[Deferred[Grant]] = []
        self._told: tuple[AddressInstance, ...] | None = None
        self._granted = 0
        self._is_stopped = False

    # --- life -----------------------------------------------------------------------------------

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._surroundings.node, own_name_is_right=False)
        self._server = server

    def start(self) -> None:
        try:
            self._boot_id = self._read_boot_id()
            self._watch()
        except OSError as fault:
            raise StartRefused(
                "the interfaces' addresses cannot be watched",
                f"netlink: {fault.strerror}",
                "this resource needs Linux with AF_NETLINK allowed (RestrictAddressFamilies=)",
            ) from fault

    def _watch(self) -> None:
        watcher = AddressWatcher(
            self._surroundings.doors,
            self._clock,
            self._changed,
            self._broken,
            open_socket=self._open_socket,
        )
        watcher.start()
        self._watcher = watcher

    def _broken(self, why: str) -> None:
        """Blind: what cannot be seen cannot be relied upon."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        self._told = None
        if self._listener is not None:
            self._listener.health(Health(HealthLevel.FAILED, why))
            self._listener.lost(why)
        self._clock.call_later(REOPEN_SECONDS, self._reopen)

    def _reopen(self) -> None:
        if self._is_stopped:
            return
        try:
            self._watch()
        except OSError as fault:
            self._broken(f"netlink: {fault.strerror}")

    def subscribe(self, listener: IResourceListener) -> None:
        self._listener = listener

    def stop(self) -> Deferred[None]:
        self._is_stopped = True
        self._listener = None
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        return succeed(None)

    # --- the grant ------------------------------------------------------------------------------

    def acquire(self) -> Deferred[Grant]:
        if self._why_not():
            waiter: Deferred[Grant] = Deferred(self._waiters_forget)
            self._waiters.append(waiter)
            return waiter
        return succeed(self._grant())

    def _waiters_forget(self, waiter: Deferred[Grant]) -> None:
        self._waiters.remove(waiter)

    def _grant(self) -> Grant:
        self._granted += 1
        return Grant(
            token=self._granted,
            network_name=self._server.network_name,
            addresses=self._server.addresses,
            fencing=Fencing.NONE,
            instances=self._instances(),
        )

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        """Everything is asked of the kernel once more."""
        return Deferred.fromCoroutine(self._confirm(grant))

    async def _confirm(self, grant: Grant) -> Grant:
        if self._watcher is None:
            raise GrantLost("the interfaces' addresses cannot be seen", "netlink is broken")
        await self._watcher.refresh()
        why = self._why_not()
        if why:
            raise GrantLost("a required virtual address has left this node", why)
        required = {a.bind for a in self._server.addresses if a.required}
        before = {i for i in grant.instances if i.address in required}
        if before - set(self._instances()):
            raise GrantLost("a required virtual address was made anew meanwhile", self.explain())
        return grant

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        """The address is not ours to remove: whoever put it there takes it away."""
        return succeed(None)

    # --- what the kernel says ---------------------------------------------------------------------

    def _instances(self) -> tuple[AddressInstance, ...]:
        if self._watcher is None:
            return ()
        found = []
        for address in self._server.addresses:
            news = self._watcher.table.usable(address.bind)
            if news is not None:
                found.append(
                    AddressInstance(self._boot_id, news.ifindex, news.address, news.cstamp)
                )
        return tuple(found)

    def _why_not(self) -> str:
        """Why there can be no grant: the first required address and what is wrong with it."""
        if self._watcher is None or not self._watcher.table.is_complete:
            return "the interfaces' addresses are not known yet"
        for address in self._server.addresses:
            if address.required:
                why = self._explain(address)
                if why:
                    return f"{address}: {why}"
        return ""

    def _explain(self, address: VirtualAddress) -> str:
        assert self._watcher is not None
        return self._watcher.table.explain(address.bind)

    def _changed(self) -> None:
        """After each single change of the kernel's tables; tells only what concerns us."""
        if self._watcher is None or not self._watcher.table.is_complete:
            return
        instances = self._instances()
        if instances == self._told:
            return
        self._told = instances
        if self._listener is not None:
            self._listener.addressesChanged(instances)
        if self._waiters and not self._why_not():
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(self._grant())

    def probe(self, level: int) -> Deferred[Health]:
        """0: what netlink last said; 1 and up: asked anew, and every address really bound."""
        if level <= 0:
            return succeed(self._health())
        if self._watcher is None:
            return fail(GrantLost("the interfaces' addresses cannot be seen", "netlink is broken"))
        return self._watcher.refresh().addCallback(lambda _none: self._bound_health())

    def _health(self) -> Health:
        why = self._why_not()
        return Health(HealthLevel.FAILED if why else HealthLevel.OK, why or self.explain())

    def _bound_health(self) -> Health:
        for address in self._server.addresses:
            try:
                self._surroundings.doors.try_bind(address)
            except OSError as fault:
                level = HealthLevel.FAILED if address.required else HealthLevel.DEGRADED
                return Health(level, f"{address}: {fault.strerror}")
        return self._health()

    def explain(self) -> str:
        why = self._why_not()
        if why:
            return f"waiting for {why}"
        return f"{', '.join(str(i.address) for i in self._instances())} on this node"
