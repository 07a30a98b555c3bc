"""Standalone: this node is the only one. The grant is given at once.

Law: it refuses to start beside another MTA on the same spool, and names it. The addresses are
ordinary ones of this machine, loopback too when listed; the node's own name is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.cluster.claims import check_identity
from mta.cluster.lock import OwnerLock, take_lock
from mta.cluster.settings import ClusterSettings
from mta.errors import GrantLost, MTAError
from mta.interfaces import (
    IClusterResource,
    IResourceListener,
    ISingleNode,
    ISpoolLocker,
    ISurroundings,
)
from mta.model import Fencing, Grant, Health, HealthLevel, VirtualServer


class StandaloneSettings(ClusterSettings):
    """`resource: standalone`: one node, no failover."""


@implementer(IClusterResource, ISingleNode, ISpoolLocker)
class Standalone:
    """See IClusterResource. The lock lies in the spool's directory, or the state directory."""

    fencing = Fencing.NONE

    def __init__(
        self,
        settings: StandaloneSettings,
        surroundings: ISurroundings,
        *,
        lock: Callable[[int], bool] = take_lock,
    ) -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._take = lock
        self._directory = surroundings.state_directory
        self._lock: OwnerLock | None = None
        self._server = surroundings.virtual_server
        self._grant: Grant | None = None
        self._granted = 0

    def lock_in(self, directory: str) -> None:
        self._directory = directory

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._surroundings.node, own_name_is_right=True)
        self._locked().refuse_beside_another()
        self._server = server

    def start(self) -> None:
        """There is nobody to watch."""

    def subscribe(self, listener: IResourceListener) -> None:
        """Nothing will ever be said."""

    def acquire(self) -> Deferred[Grant]:
        self._granted += 1
        self._grant = Grant(
            token=self._granted,
            network_name=self._server.network_name,
            addresses=self._server.addresses,
            fencing=Fencing.NONE,
        )
        return succeed(self._grant)

    def _locked(self) -> OwnerLock:
        if self._lock is None:
            self._lock = OwnerLock(self._surroundings.disk, self._directory, self._take)
        return self._lock

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        if grant != self._grant:
            return fail(GrantLost("the grant is not held", "it was given back"))
        # Only now: the spool was inspected, so that a missing directory has its own, better name.
        try:
            self._locked().take(f"pid {os.getpid()} on {self._surroundings.node}")
        except MTAError:
            return fail()
        return succeed(grant)

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        if grant == self._grant and self._lock is not None:
            self._grant = None
            self._lock.give_back()
        return succeed(None)

    def probe(self, level: int) -> Deferred[Health]:
        """0: granted; from 1 on: every required address is really bound once more."""
        if level > 0:
            for address in self._server.addresses:
                try:
                    self._surroundings.doors.try_bind(address)
                except OSError as fault:
                    state = HealthLevel.FAILED if address.required else HealthLevel.DEGRADED
                    return succeed(Health(state, f"{address}: {fault.strerror}"))
        return succeed(Health(HealthLevel.OK, self.explain()))

    def stop(self) -> Deferred[None]:
        if self._lock is not None:
            self._lock.give_back()
        return succeed(None)

    def explain(self) -> str:
        return "standalone: owned by this node" if self._grant else "standalone: not asked yet"
