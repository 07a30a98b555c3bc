"""keepalived: the role of a VRRP instance from its notify FIFO, the addresses from netlink.

Law (house.md law 4): neither alone is ownership, nor both: VRRP fences nobody and can name two
masters. A grant needs both here, and the claim rules (claims.py) decide with its instances. The
role ends at once when keepalived says another, dies, or is stopped; a leftover address owns
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mta.cluster.addresses import VirtualAddresses, read_boot_id
from mta.cluster.claims import check_identity
from mta.cluster.fifo import Fifo, FifoReader
from mta.cluster.netlink import open_socket
from mta.cluster.processes import find_family, read_small
from mta.cluster.role import SpokenRole
from mta.cluster.settings import ClusterSettings
from mta.cluster.vrrp import Notifications, Record, Role, parse_record
from mta.errors import GrantLost, StartRefused
from mta.interfaces import (
    IAddressFacts,
    IClusterResource,
    IReadiness,
    IResourceListener,
    IStaleAddresses,
    ISurroundings,
    ITimer,
)
from mta.model import (
    AddressFact,
    AddressInstance,
    Fencing,
    Grant,
    Health,
    HealthLevel,
    IPAddress,
    VirtualServer,
)

LOOK_SECONDS = 1.0
"""How often keepalived's processes and the notify script's record are looked at: a few small reads
in memory. What dies is heard at once by the FIFO; this finds what is stopped, or read by others.
"""
RECORD = "keepalived.role"
"""In the state directory: the last word of the FIFO, for a restart of this process."""
RECORD_OCTETS = 1024
"""Written in one piece of one size, so that no octet of an older record is left behind."""


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path")
    return path


def _instance_name(name: str) -> str:
    if not (name.isascii() and name.isprintable() and 0 < len(name) < 256) or set(name) & set(' "'):
        raise ValueError(f"{name!r} is not the name of a vrrp_instance")
    return name


AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class KeepalivedSettings(ClusterSettings):
    """`resource: keepalived`: owner is whom keepalived makes MASTER, with the addresses here."""

    instance: Annotated[str, AfterValidator(_instance_name)] = Field(
        description="The vrrp_instance in keepalived.conf that moves the virtual addresses."
    )
    fifo: AbsolutePath = Field(
        default="/run/mta-keepalived/fifo",
        description="keepalived's vrrp_notify_fifo: the role is read from it. One reader only.",
    )
    pidfile: AbsolutePath = Field(
        default="/run/keepalived.pid",
        description="keepalived's own pid file (the parent's, not that of its VRRP child).",
    )
    state_file: AbsolutePath = Field(
        default="/run/mta-keepalived/role",
        description="What the shipped notify script writes. Read where the FIFO, which speaks only "
        "on a change, has said nothing yet.",
    )


@implementer(IClusterResource, IAddressFacts, IReadiness, IStaleAddresses)
class Keepalived:
    """See IClusterResource."""

    fencing = Fencing.NONE

    def __init__(
        self,
        settings: KeepalivedSettings,
        surroundings: ISurroundings,
        *,
        open_socket: Callable[[], Any] = open_socket,
        boot_id: Callable[[], str] = read_boot_id,
        open_fifo: Callable[[str], Any] = Fifo,
        read: Callable[[str], bytes] = read_small,
    ) -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._read = read
        self._boot_id = boot_id
        self._addresses = VirtualAddresses(
            surroundings, self._changed, self._blind, open_socket=open_socket, boot_id=boot_id
        )
        self._reader = FifoReader(
            settings.fifo,
            surroundings.doors,
            surroundings.clock,
            self._heard,
            self._silent,
            open_fifo=open_fifo,
        )
        self._notifications = Notifications()
        self._role = SpokenRole(settings.instance)
        self._listener: IResourceListener | None = None
        self._waiters: list[Deferred[Grant]] = []
        self._timer: ITimer | None = None
        self._granted = 0
        self._void_up_to = 0
        """Grants up to this number were made before the role was last lost."""
        self._is_master = False
        self._kept: Record | None = None
        self._is_writing = False
        self._cannot_keep = ""
        self._script_fault = ""
        self._told = ""

    # --- life -----------------------------------------------------------------------------------

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._surroundings.node, own_name_is_right=False)
        self._addresses.server = server

    def start(self) -> None:
        self._addresses.start()
        try:
            self._role.boot_id = self._boot_id()
        except OSError as fault:
            raise StartRefused(
                "this boot of the machine has no name", fault.strerror or "", "see /proc"
            ) from fault
        self._reader.start()
        self._look_and_go_on()

    def subscribe(self, listener: IResourceListener) -> None:
        self._listener = listener

    def stop(self) -> Deferred[None]:
        self._listener = None
        self._reader.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._addresses.stop()
        return succeed(None)

    # --- the grant ------------------------------------------------------------------------------

    def acquire(self) -> Deferred[Grant]:
        if self._why_not():
            waiter: Deferred[Grant] = Deferred(self._waiters.remove)
            self._waiters.append(waiter)
            return waiter
        return succeed(self._grant())

    def _why_not(self) -> str:
        return self._role.why_not or self._addresses.why_not()

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
        """The FIFO is read to its end, keepalived looked at, and the kernel asked once more."""
        return Deferred.fromCoroutine(self._confirm(grant))

    async def _confirm(self, grant: Grant) -> Grant:
        await self._addresses.confirm(grant)
        self._reader.doRead()
        self._look()
        if self._role.why_not:
            raise GrantLost("keepalived does not make this node the owner", self._role.why_not)
        if grant.token <= self._void_up_to:
            raise GrantLost("the grant is void", "keepalived took the role away since, and gave it")
        return grant

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        """The role is not ours to give up: keepalived follows its own checks and its own end."""
        return succeed(None)

    # --- what keepalived says ---------------------------------------------------------------------

    def _heard(self, octets: bytes, is_first: bool, was_full: bool) -> None:
        """The FIFO, which has a writer, was read to its end."""
        words = self._notifications.receive(octets)
        now = self._clock.monotonic()
        lost = self._role.heard(words, self._family(), now)
        if was_full:
            self._role.overflowed()
        if lost is not None:
            self._lose(f"keepalived said {lost.role.value} for {lost.name}")
        self._look(remembered=is_first and not was_full)

    def _silent(self, why: str) -> None:
        self._notifications.forget_rest()
        self._role.silent(why)
        self._judge()

    def _family(self) -> Any:
        return find_family(self._settings.pidfile, self._read)

    def _look_and_go_on(self) -> None:
        self._timer = self._clock.call_later(LOOK_SECONDS, self._look_and_go_on)
        self._look()

    def _look(self, *, remembered: bool = False) -> None:
        """At keepalived's processes and at what was written down; then judge."""
        records = [self._told_by_script()]
        if remembered:
            records.append(self._remembered())
        known = [record for record in records if record is not None]
        self._role.looked(self._family(), known, self._clock.monotonic())
        self._judge()

    def _judge(self) -> None:
        """Tell what follows from the role as it is now."""
        why = self._role.why_not
        if why and self._is_master:
            self._lose(why)
        self._is_master = not why
        if self._listener is not None:
            health = self._authority()
            if health.text != self._told:
                self._told = health.text
                self._listener.health(health)
        self._keep()
        self._fire()

    def _lose(self, why: str) -> None:
        self._is_master = False
        self._void_up_to = self._granted
        if self._listener is not None:
            self._listener.lost(why)

    def _fire(self) -> None:
        if self._waiters and not self._why_not():
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(self._grant())

    # --- what was written down --------------------------------------------------------------------

    def _told_by_script(self) -> Record | None:
        path = self._settings.state_file
        try:
            record = parse_record(self._read(path))
        except FileNotFoundError:
            self._script_fault = ""  # where there is no notify script there is none
            return None
        except OSError as fault:
            self._script_fault = f"{path}: {fault.strerror}"
            return None
        self._script_fault = "" if record is not None else f"{path} is not the notify script's"
        return record

    def _remembered(self) -> Record | None:
        disk = self._surroundings.disk
        try:
            descriptor = disk.open(self._path, os.O_RDONLY)
            try:
                return parse_record(disk.pread(descriptor, RECORD_OCTETS, 0))
            finally:
                disk.close(descriptor)
        except OSError:
            return None

    @property
    def _path(self) -> str:
        return f"{self._surroundings.state_directory}/{RECORD}"

    def _keep(self) -> None:
        """Write the newest word down, one write after the other."""
        record = self._role.record
        if record is None or record == self._kept or self._is_writing:
            return
        self._kept = record
        self._is_writing = True
        writing = self._surroundings.executor.submit(self._write, record.octets())
        writing.addBoth(self._written)

    def _write(self, octets: bytes) -> None:
        """On a worker thread. It serves restarts within this boot: nothing is synced."""
        disk = self._surroundings.disk
        if not disk.exists(self._surroundings.state_directory):
            disk.mkdir(self._surroundings.state_directory)
        descriptor = disk.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            disk.pwritev(descriptor, [octets.ljust(RECORD_OCTETS, b"\n")], 0)
        finally:
            disk.close(descriptor)

    def _written(self, outcome: Any) -> None:
        self._is_writing = False
        fault = getattr(outcome, "value", None)
        self._cannot_keep = "" if fault is None else f"{self._path}: {fault}"
        if self._listener is not None:
            self._keep()

    # --- what the kernel says ---------------------------------------------------------------------

    def _changed(self, instances: tuple[AddressInstance, ...]) -> None:
        if self._listener is not None:
            self._listener.addressesChanged(instances)
        self._fire()

    def _blind(self, why: str) -> None:
        self._void_up_to = self._granted
        if self._listener is not None:
            self._listener.health(Health(HealthLevel.FAILED, why))
            self._listener.lost(why)

    # --- what is shown ----------------------------------------------------------------------------

    def probe(self, level: int) -> Deferred[Health]:
        """0: what was heard last; 1 and up: all asked anew, and every address really bound."""
        if level <= 0:
            return succeed(self._health())
        self._look()
        return self._addresses.refresh().addCallback(lambda _none: self._bound_health())

    def _health(self) -> Health:
        if self._role.why_not:
            return Health(HealthLevel.FAILED, self.explain())
        found = self._addresses.health()
        return found if found.level is not HealthLevel.OK else self._authority()

    def _bound_health(self) -> Health:
        bound = self._addresses.bound_health()
        return bound if bound.level is not HealthLevel.OK else self._health()

    def _authority(self) -> Health:
        """Is keepalived as it should be? To be BACKUP is."""
        if self._role.fault:
            return Health(HealthLevel.FAILED, f"{self._role.fault}{self._odd()}")
        role, odd = self._role.role, self._odd()
        is_well = role in {Role.MASTER, Role.BACKUP} and not odd
        word = f"keepalived says {role.value} for {self._settings.instance}"
        return Health(HealthLevel.OK if is_well else HealthLevel.DEGRADED, word + odd)

    def _odd(self) -> str:
        """What somebody should look at, each with its name."""
        found = [self._role.complaint] if self._role.complaint else []
        heard = self._notifications
        if heard.rubbish:
            found.append(
                f"{heard.rubbish} lines of the FIFO are not keepalived's, the last "
                f'"{heard.last_rubbish}"'
            )
        others = sorted(heard.others - {self._settings.instance})
        if others and self._settings.instance not in heard.others:
            found.append(
                f"the FIFO speaks of {', '.join(others[:4])}, not of {self._settings.instance}"
            )
        if self._script_fault:
            found.append(self._script_fault)
        if self._cannot_keep:
            found.append(f"the role cannot be kept for a restart: {self._cannot_keep}")
        return "".join(f"; {text}" for text in found)

    def stale_addresses(self) -> tuple[IPAddress, ...]:
        if not self._role.is_gone:
            return ()
        return tuple(instance.address for instance in self._addresses.instances())

    def address_facts(self) -> tuple[AddressFact, ...]:
        return self._addresses.facts()

    def would_fail(self) -> str:
        """A role that is not known is a lack, and none that is: keepalived may ask this very
        answer (vrrp_script) whether to say FAULT, and must hear when that is over.
        """
        return self._role.fault or self._addresses.would_fail()

    def explain(self) -> str:
        stale = ", ".join(map(str, self.stale_addresses()))
        left = f"; left over on this node: {stale} (start keepalived, which removes it)"
        why = self._role.why_not
        if why:
            return f"waiting: {why}{self._odd()}{left if stale else ''}"
        return f"{self._authority().text}; {self._addresses.explain()}"
