"""Ownership as numbers for monitoring: the state, the lease, the addresses.

Law: read when a page is rendered, from what is known already; nothing is asked of the kernel or the
authority for it. A number that does not exist (no lease, no facts of addresses) is left out.
"""

from __future__ import annotations

from mta.cluster.driver import Ownership
from mta.cluster.ownership import State
from mta.interfaces import IAddressFacts, IClusterResource
from mta.model import VirtualServer
from mta.telemetry import Telemetry


class ClusterGauges:
    """Registers them, once a process."""

    def __init__(
        self,
        telemetry: Telemetry,
        ownership: Ownership,
        resource: IClusterResource,
        server: VirtualServer,
    ) -> None:
        self._ownership = ownership
        telemetry.gauge("mta_cluster_role", "1: owner, 0: standby.").read = lambda: float(
            ownership.tenure is not None
        )
        for state in State:
            telemetry.gauge(
                "mta_cluster_state",
                "1 for the state that ownership is in.",
                state=state.name.lower(),
            ).read = lambda state=state: float(ownership.state is state)
        telemetry.gauge(
            "mta_cluster_state_seconds", "How long ownership has been in its state."
        ).read = lambda: float(ownership.snapshot()["seconds_in_state"])
        telemetry.gauge(
            "mta_lease_seconds_left", "Until everything is aborted unless the lease is renewed."
        ).read = self._lease
        if not IAddressFacts.providedBy(resource):
            return
        for address in map(str, server.addresses):
            telemetry.gauge(
                "mta_address_usable", "1: this node has the virtual address.", address=address
            ).read = lambda address=address: float(
                any(f.usable for f in resource.address_facts() if f.address == address)
            )

    def _lease(self) -> float:
        left = self._ownership.snapshot()["lease_seconds_left"]
        if left is None:
            raise LookupError("no lease is held")  # the gauge is left out of the page
        return float(left)
