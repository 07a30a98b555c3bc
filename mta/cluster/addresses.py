"""The virtual server's addresses on this node's interfaces: what every address-based resource sees.

Law (house.md law 4): an address is not ownership. This says which addresses are usable here, and
which instance of each, and tells each change by itself; what follows from it is the resource's.
When the kernel cannot be asked, nothing is known: that is said, and the watch begins again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from mta.cluster.netlink import AddressWatcher, flag_names, open_socket
from mta.errors import GrantLost, StartRefused
from mta.interfaces import ISurroundings
from mta.model import (
    AddressFact,
    AddressInstance,
    Grant,
    Health,
    HealthLevel,
    VirtualServer,
)

REOPEN_SECONDS = 1.0
"""After the netlink socket broke."""


def read_boot_id() -> str:
    """The kernel's name for this boot. @raise OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class VirtualAddresses:
    """`changed(instances)` is called after each single change that concerns us, once the first
    picture is whole; `broken(why)` when nothing can be seen any more (it begins again by itself).
    """

    def __init__(
        self,
        surroundings: ISurroundings,
        changed: Callable[[tuple[AddressInstance, ...]], None],
        broken: Callable[[str], None],
        *,
        open_socket: Callable[[], Any] = open_socket,
        boot_id: Callable[[], str] = read_boot_id,
    ) -> None:
        self._surroundings = surroundings
        self._on_change = changed
        self._on_break = broken
        self._open_socket = open_socket
        self._read_boot_id = boot_id
        self._boot_id = ""
        self.server: VirtualServer = surroundings.virtual_server
        self._watcher: AddressWatcher | None = None
        self._told: tuple[AddressInstance, ...] | None = None
        self._is_stopped = False

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """@raise StartRefused: no netlink here."""
        try:
            self._boot_id = self._read_boot_id()
            self._watch()
        except OSError as fault:
            raise StartRefused(
                "the interfaces' addresses cannot be watched",
                f"netlink: {fault.strerror}",
                "this resource needs Linux with AF_NETLINK allowed (RestrictAddressFamilies=)",
            ) from fault

    def stop(self) -> None:
        self._is_stopped = True
        self._end_watch()

    def _watch(self) -> None:
        watcher = AddressWatcher(
            self._surroundings.doors,
            self._surroundings.clock,
            self._changed,
            self._broken,
            open_socket=self._open_socket,
        )
        watcher.start()
        self._watcher = watcher

    def _end_watch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()

    def _broken(self, why: str) -> None:
        """Blind: what cannot be seen cannot be relied upon."""
        self._end_watch()
        self._told = None
        self._on_break(why)
        self._surroundings.clock.call_later(REOPEN_SECONDS, self._reopen)

    def _reopen(self) -> None:
        if self._is_stopped:
            return
        try:
            self._watch()
        except OSError as fault:
            self._broken(f"netlink: {fault.strerror}")

    def _changed(self) -> None:
        """After each single change of the kernel's tables; tells only what concerns us."""
        if not self.is_known:
            return
        instances = self.instances()
        if instances != self._told:
            self._told = instances
            self._on_change(instances)

    # --- what the kernel says -------------------------------------------------------------------

    @property
    def is_known(self) -> bool:
        """The first picture is whole: before, that an address is missing means nothing."""
        return self._watcher is not None and self._watcher.table.is_complete

    def instances(self) -> tuple[AddressInstance, ...]:
        """The usable configured addresses, in the configuration's order."""
        if self._watcher is None:
            return ()
        found = []
        for address in self.server.addresses:
            news = self._watcher.table.usable(address.bind)
            if news is not None:
                found.append(
                    AddressInstance(self._boot_id, news.ifindex, news.address, news.cstamp)
                )
        return tuple(found)

    def why_not(self) -> str:
        """The first required address that is not usable here, and why; "" when all are."""
        if not self.is_known:
            return "the interfaces' addresses are not known yet"
        assert self._watcher is not None
        for address in self.server.addresses:
            if address.required:
                why = self._watcher.table.explain(address.bind)
                if why:
                    return f"{address}: {why}"
        return ""

    def explain(self) -> str:
        """One line for `mta status`."""
        why = self.why_not()
        if why:
            return f"waiting for {why}" if self.is_known else why
        return f"{', '.join(str(i.address) for i in self.instances())} on this node"

    def facts(self) -> tuple[AddressFact, ...]:
        """See IAddressFacts."""
        watcher, found = self._watcher, []
        for address in self.server.addresses:
            shown = str(address)
            if watcher is None or not watcher.table.is_complete:
                why = "the interfaces' addresses are not known yet"
                found.append(AddressFact(shown, address.required, False, why))
                continue
            table = watcher.table
            places = table.places(address.bind)
            if not places:
                why = table.explain(address.bind)
                found.append(AddressFact(shown, address.required, False, why))
            for link, news in places:
                why = table.why_not(news.ifindex, news)
                found.append(
                    AddressFact(
                        shown,
                        address.required,
                        not why,
                        why,
                        link.name if link is not None else f"if{news.ifindex}",
                        link is not None and link.is_up,
                        link is not None and link.has_carrier,
                        flag_names(news.flags),
                    )
                )
        return tuple(found)

    def would_fail(self) -> str:
        """See IReadiness. An address that is not here yet is no lack; one that is here and that
        another machine has too is.
        """
        if not self.is_known:
            return "the interfaces' addresses cannot be seen"
        for fact in self.facts():
            if "dadfailed" in fact.flags:
                return f"{fact.address} on {fact.link}: {fact.why_not}"
        return ""

    # --- asked anew -----------------------------------------------------------------------------

    def refresh(self) -> Deferred[None]:
        """Fires when all that the kernel knows was asked for after this call and has come.
        @raise GrantLost: it cannot be asked.
        """
        if self._watcher is None:
            return fail(GrantLost("the interfaces' addresses cannot be seen", "netlink is broken"))
        return self._watcher.refresh()

    async def confirm(self, grant: Grant) -> None:
        """Every required address of `grant` is still here, in the instance it was granted with.
        @raise GrantLost.
        """
        await self.refresh()
        why = self.why_not()
        if why:
            raise GrantLost("a required virtual address has left this node", why)
        required = {a.bind for a in self.server.addresses if a.required}
        before = {i for i in grant.instances if i.address in required}
        if before - set(self.instances()):
            raise GrantLost("a required virtual address was made anew meanwhile", self.explain())

    def health(self) -> Health:
        """By what netlink last said; no I/O."""
        why = self.why_not()
        return Health(HealthLevel.FAILED if why else HealthLevel.OK, why or self.explain())

    def bound_health(self) -> Health:
        """As `health`, each address really bound besides."""
        for address in self.server.addresses:
            try:
                self._surroundings.doors.try_bind(address)
            except OSError as fault:
                level = HealthLevel.FAILED if address.required else HealthLevel.DEGRADED
                return Health(level, f"{address}: {fault.strerror}")
        return self.health()
