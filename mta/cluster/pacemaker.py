"""Pacemaker: its start of this process is the grant, its fencing (STONITH) the fence.

Law (cluster.md section 4): only the agent `etc/ocf/mta` starts this process, on one node at a time,
and stops it before another begins; a node that cannot be heard is fenced before its resources move.
Where the agent has seen that this holds, the grant is the right to claim. Where it has not, nobody
fences, and the addresses' instances and the epochs decide, as they do for `interface`.

The addresses are IPaddr2's; netlink says when they are here (interface.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.cluster.addresses import read_boot_id
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.netlink import open_socket
from mta.cluster.settings import ClusterSettings
from mta.errors import StartRefused
from mta.interfaces import IClusterResource, IResourceListener, ISupervised, ISurroundings
from mta.model import Fencing, Grant, Health, VirtualServer

INSTANCE = "MTA_PACEMAKER_INSTANCE"
"""Set by the agent alone: the name of the resource in the cluster."""
FENCING = "MTA_PACEMAKER_FENCING"
"""Set by the agent: "external", or in words why the cluster does not fence."""


class PacemakerSettings(ClusterSettings):
    """`resource: pacemaker`: started and stopped by the agent ocf:mta:mta, and by nobody else."""


@implementer(IClusterResource, ISupervised)
class PacemakerResource:
    """See IClusterResource. Everything about addresses is asked of an InterfaceResource."""

    def __init__(
        self,
        settings: PacemakerSettings,
        surroundings: ISurroundings,
        *,
        environment: Mapping[str, str] | None = None,
        open_socket: Callable[[], Any] = open_socket,
        boot_id: Callable[[], str] = read_boot_id,
    ) -> None:
        environment = os.environ if environment is None else environment
        self._instance = environment.get(INSTANCE, "")
        said = environment.get(FENCING, "") or "the agent did not say whether the cluster fences"
        is_fenced = bool(self._instance) and said == Fencing.EXTERNAL.value
        self.fencing = Fencing.EXTERNAL if is_fenced else Fencing.NONE
        self._why_unfenced = "" if is_fenced else said
        self._telemetry = surroundings.telemetry
        self._addresses = InterfaceResource(
            InterfaceSettings(), surroundings, open_socket=open_socket, boot_id=boot_id
        )

    # --- life -----------------------------------------------------------------------------------

    def prepare(self, server: VirtualServer) -> None:
        self._addresses.prepare(server)
        if not self._instance:
            raise StartRefused(
                "cluster.resource is pacemaker, but Pacemaker did not start this process",
                f"its agent sets {INSTANCE}; a process that was started by hand would stand "
                "beside the one that the cluster starts",
                "start it by the cluster: `crm_resource --resource NAME --meta --set-parameter "
                "target-role --parameter-value Started` (or `pcs resource enable NAME`), and keep "
                "mta.service disabled; without a cluster use `resource: standalone`",
            )
        if self._why_unfenced:
            self._telemetry.notice(
                "warning",
                "cluster",
                f"fencing: none, for {self._why_unfenced}; the epochs in the spool alone keep a "
                "former owner from doing harm",
            )

    def start(self) -> None:
        self._addresses.start()

    def subscribe(self, listener: IResourceListener) -> None:
        self._addresses.subscribe(listener)

    def stop(self) -> Deferred[None]:
        return self._addresses.stop()

    # --- the grant ------------------------------------------------------------------------------

    def acquire(self) -> Deferred[Grant]:
        """We were started, so we own it; what is waited for is IPaddr2's addresses."""
        return self._addresses.acquire().addCallback(self._granted)

    def _granted(self, grant: Grant) -> Grant:
        if self.fencing is Fencing.NONE:
            return grant
        return replace(grant, fencing=self.fencing, instances=())

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        """Pacemaker would have stopped us; the addresses are asked of the kernel once more."""
        return self._addresses.confirm(grant)

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        """The end of the process is what the agent waits for, and what Pacemaker is told."""
        return self._addresses.release(grant, reason)

    # --- what is seen ---------------------------------------------------------------------------

    def probe(self, level: int) -> Deferred[Health]:
        return self._addresses.probe(level)

    def explain(self) -> str:
        if not self._instance:
            return "not started by Pacemaker's agent"
        fenced = f"none, for {self._why_unfenced}" if self._why_unfenced else self.fencing.value
        # First what matters: crm_mon shows 128 characters of a refusal's reason.
        return f"fencing: {fenced}; Pacemaker's {self._instance}; {self._addresses.explain()}"
