"""What this process and this node are: time, surroundings, and the facts that refuse a start.

Law: looked at once, before the fork, and said by name. Nothing here knows mail.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from zope.interface import implementer

from mta.errors import StartRefused
from mta.interfaces import (
    IClock,
    IDisk,
    IDoors,
    IExecutor,
    IPluginFactory,
    IResolver,
    IStsPolicies,
    IStsSurroundings,
    ITimer,
    ITls,
)
from mta.model import VirtualServer
from mta.telemetry import Telemetry

CAP_NET_BIND_SERVICE = 10
"""Its bit in CapEff (linux/capability.h)."""


boottime: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""CLOCK_BOOTTIME, seconds: never jumps, and counts while the machine sleeps."""


@implementer(ITimer)
class _Timer:
    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        try:
            self._call.cancel()
        except (AlreadyCalled, AlreadyCancelled):
            pass  # that is what was wanted


@implementer(IClock)
class ReactorClock:
    """The reactor's timers; `tap` has put the reactor itself on CLOCK_BOOTTIME."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        # Asked some twenty times for each message: no frame of ours around the system's.
        self.monotonic = boottime
        self.wall = time.time

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        return _Timer(self._reactor.callLater(max(0.0, seconds), call, *arguments))


@implementer(IStsSurroundings)
@dataclass(frozen=True)
class Surroundings:
    """See ISurroundings. `granted` is what a plugin's factory gets: doors for its purposes only."""

    clock: IClock
    doors: IDoors
    telemetry: Telemetry
    disk: IDisk
    executor: IExecutor
    resolver: IResolver
    node: str
    state_directory: str
    virtual_server: VirtualServer
    tls: ITls
    sts: IStsPolicies

    def granted(self, factory: IPluginFactory, doors: Any) -> Surroundings:
        return replace(self, doors=doors.granted(factory.name, factory.purposes))


def boot_id() -> str:
    """The kernel's name for this boot; "" where there is none (no Linux /proc)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


LEAST_RUN_SECONDS = 1.0
"""A process that lost its tenure sooner leaves the next try to its supervisor, which waits."""


def why_not_anew(
    *,
    is_daemon: bool,
    changes_uid: bool,
    is_supervised: bool,
    stuck_seconds: float,
    ran_seconds: float,
) -> str:
    """Why a process whose tenure is lost ends, instead of becoming a standby by itself; "" when
    nothing hinders it (cluster.md section 4).
    """
    if is_supervised:
        return "its cluster manager must see it end"
    if is_daemon:
        return "a daemon would fork again, beside its own pid file"
    if changes_uid:
        return "twistd's --uid can be given up only once"
    if stuck_seconds > 0.0:
        return "a thread is still in a disk call"
    if ran_seconds < LEAST_RUN_SECONDS:
        return "it has only just begun"
    return ""


def begin_anew() -> None:
    """Replace this process by the same program from its beginning, under the same pid. Nothing of
    it is left: every descriptor closes. Returns only when the kernel refuses.
    """
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    except OSError as fault:
        os.write(2, f"mta: cannot begin anew: {fault}\n".encode("utf-8", "backslashreplace"))


def collect_circles() -> None:
    """Give back what a tenure has left, in about 2 ms. Its log, ledger, dispatch and associations
    know each other, and with the thresholds of `tap.py` the collector looks at what is that old
    once in ten million objects. The columns of a long queue are few objects and many MiB, which it
    never counts.
    """
    gc.collect()


def refuse_privileged_ports(ports: Iterable[int], uid: int | None) -> None:
    """@raise StartRefused (77): a port that this process will not be allowed to bind at takeover.

    `uid` is what twistd will change to before it binds (None: nothing changes).
    """
    lowest = _first_unprivileged_port()
    low = sorted({port for port in ports if port < lowest})
    if not low:
        return
    will_be = os.geteuid() if uid is None else uid
    # Root too may be without it: in a container, or by systemd's CapabilityBoundingSet.
    if will_be == os.geteuid() and _has_capability(CAP_NET_BIND_SERVICE):
        return
    raise StartRefused(
        f"port {', '.join(map(str, low))} cannot be bound by uid {will_be}",
        f"ports under {lowest} need CAP_NET_BIND_SERVICE when the virtual server comes online",
        "give AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit; or "
        f"sysctl net.ipv4.ip_unprivileged_port_start={low[0]}; or listen on a higher port and "
        "redirect to it",
        exit_code=os.EX_NOPERM,
    )


def refuse_unwritable(
    path: str, what: str, remedy: str, *, uid: int | None, makes_directories: bool = False
) -> None:
    """@raise StartRefused (77 or 73): this user can neither write `path` nor make it.

    `makes_directories`: it is made anew, with the directories above it. Of another user, to whom
    twistd will change (`uid`), nothing is known here.
    """
    if uid not in {None, os.geteuid()}:
        return
    directory, fault = os.path.dirname(os.path.abspath(path)), 0
    if os.path.exists(path) and not makes_directories:
        if os.path.isdir(path):
            fault = errno.EISDIR
        elif not os.access(path, os.W_OK):
            fault = errno.EACCES
    else:
        while makes_directories and not os.path.lexists(directory):
            directory = os.path.dirname(directory)
        if os.path.lexists(directory) and not os.path.isdir(directory):
            fault = errno.ENOTDIR
        elif not os.path.exists(directory):
            fault = errno.ENOENT
        elif not os.access(directory, os.W_OK | os.X_OK):
            fault = errno.EACCES
    if fault:
        raise StartRefused(
            f"{what} {path} cannot be written by uid {os.geteuid()}",
            os.strerror(fault),
            remedy,
            exit_code=os.EX_NOPERM if fault == errno.EACCES else os.EX_CANTCREAT,
        )


def _first_unprivileged_port() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024


def _has_capability(bit: int) -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> bit & 1)
    except (OSError, ValueError):
        pass
    return False
