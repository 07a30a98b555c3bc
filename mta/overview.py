"""How this node stands, as operators and their machines ask it: status, readiness, probes, gauges.

Law: it looks at every room and changes none. What is said is true at the moment it is said, or
bears its age. The names of status are stable: a new fact is a new name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from mta.admin.probe import Place, Probed, Prober, Subject
from mta.cluster.claimant import ClaimFacts
from mta.cluster.driver import Ownership
from mta.cluster.gauges import ClusterGauges
from mta.cluster.ownership import State
from mta.cluster.readiness import Findings, Questions, Readiness, Verdict
from mta.config.schema import Config
from mta.interfaces import (
    IAddressFacts,
    IClusterResource,
    IReadiness,
    ISingleNode,
    ISpool,
    ISurroundings,
)
from mta.proof import listener_ports, prove, room
from mta.tenant import Bridgehead

GREETING_KINDS = frozenset(("smtp", "lmtp"))
"""Listener kinds that begin with a reply of RFC 5321; what a plugin's says first is not ours to
know.
"""


class Overview:
    """One instance a process. `config` answers the configuration that is in force."""

    def __init__(  # noqa: PLR0917 - the composition root names its rooms in this order
        self,
        config: Callable[[], Config],
        resource: IClusterResource,
        spool: ISpool,
        ownership: Ownership,
        tenant: Bridgehead,
        surroundings: ISurroundings,
        facts: ClaimFacts,
        *,
        file: str | None,
        changed: Callable[[], object],
    ) -> None:
        """`changed` is called when readiness did."""
        self._config = config
        self._resource = resource
        self._spool = spool
        self._ownership = ownership
        self._tenant = tenant
        self._surroundings = surroundings
        self._facts = facts
        self._file = file
        self._is_single = ISingleNode.providedBy(resource)
        clock, telemetry = surroundings.clock, surroundings.telemetry
        self._clock = clock
        self.readiness = Readiness(
            Questions(
                standing=self._standing,
                inspect=spool.inspect,
                node=lambda: surroundings.executor.submit(self._look_at_node),
                resource=self._resource_lacks,
                last_try=self._last_try,
                ours=facts,
                changed=lambda _text: changed(),
            ),
            clock,
            telemetry,
        )
        self._prober = Prober(
            Subject(
                resource=resource.probe,
                absence=self._absence,
                places=self._places,
                inspect=spool.inspect,
                epoch=lambda: ownership.epoch,
                check=self._check_tenure,
                network_name=config().virtual_server.network_name,
            ),
            surroundings.doors,
            clock,
        )
        ClusterGauges(telemetry, ownership, resource, config().virtual_server)

    # --- readiness ------------------------------------------------------------------------------

    def _standing(self) -> Verdict | None:
        if self._ownership.tenure is not None:
            return Verdict.OWNER
        if self._is_single:
            return Verdict.SINGLE
        return None if self._ownership.state is State.STANDBY else Verdict.NOT_NOW

    def _look_at_node(self) -> tuple[Findings, tuple[int, int] | None]:
        """On a worker."""
        config = self._config()
        found = prove(config, self._file, is_single=self._is_single)
        settings = config.spool.settings
        directory = getattr(settings, "directory", None)
        if directory is None:
            return found, None
        free = self._surroundings.disk.free_octets
        return found, room(directory, getattr(settings, "reserve", 0), free)

    def _resource_lacks(self) -> str:
        resource = self._resource
        return resource.would_fail() if IReadiness.providedBy(resource) else ""

    def _last_try(self) -> str:
        """Of a bid that failed, while the next one waits; later it proves nothing any more."""
        cluster = self._ownership.snapshot()
        return str(cluster["last_failure"]) if cluster["next_try_seconds"] > 0 else ""

    # --- probes ---------------------------------------------------------------------------------

    def probe(self, level: int, standby: bool) -> Deferred[Probed]:
        """With `standby`, a node that is not the owner is asked whether it could be."""
        return self._prober.probe(level).addCallback(self._or_ready if standby else _as_it_is)

    def _or_ready(self, found: Probed) -> Probed:
        if found.health != "away":
            return found
        present = self.readiness.present
        text = f"takeover: {present.text}"
        if present.verdict is Verdict.READY:
            return Probed("ready", text, os.EX_OK)
        if present.verdict is Verdict.WOULD_FAIL:
            return Probed("failed", text, os.EX_UNAVAILABLE)
        return Probed("away", text, os.EX_TEMPFAIL)

    def _absence(self) -> tuple[int, str]:
        """Why a probe finds no virtual server here, with its code; (0, "") when it should."""
        state = self._ownership.state
        if state is State.ONLINE and self._ownership.tenure is not None:
            return os.EX_OK, ""
        # Suspended is an owner that does not serve; everything else is not the owner, or not yet.
        code = os.EX_UNAVAILABLE if state is State.SUSPENDED else os.EX_TEMPFAIL
        return code, self._ownership.explain()

    def _places(self) -> Sequence[Place]:
        tenure, config = self._ownership.tenure, self._config()
        greeting = [block for block in config.listeners if block.kind in GREETING_KINDS]
        addresses = () if tenure is None else tenure.addresses
        return [
            Place(str(address.bind), port, getattr(block.settings, "proxy_from", ()))
            for address in addresses
            for block in greeting
            for port in listener_ports([block])
        ]

    def _check_tenure(self) -> None:
        tenure = self._ownership.tenure
        if tenure is not None:
            tenure.check()

    # --- pages ----------------------------------------------------------------------------------

    def ready(self) -> tuple[bool, str]:
        """For /readyz: 200 only where mail is served, so that a load balancer may ask it."""
        return self._ownership.tenure is not None, self._two_lines()

    def standby_ready(self) -> tuple[bool, str]:
        """For /standbyz: 200 where mail is served or could be."""
        return self.readiness.is_ready, self._two_lines()

    def _two_lines(self) -> str:
        return f"{self._ownership.explain()}\ntakeover: {self.readiness.present.text}"

    def line(self) -> str:
        """For `systemctl status`."""
        text = self._ownership.explain()
        if self._standing() is None:
            text += f"; takeover: {self.readiness.present.text}"
        return text

    # --- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `mta status` and /status.json say of ownership; the service adds the process."""
        ownership = self._ownership
        cluster = ownership.snapshot()
        tenure = ownership.tenure
        seconds = cluster["seconds_in_state"]
        answer: dict[str, Any] = {
            "network_name": self._config().virtual_server.network_name,
            "role": "standby" if tenure is None else "owner",
            "state": cluster["state"],
            "since_at": self._clock.wall() - seconds,
            "seconds_in_state": seconds,
            "why": ownership.explain(),
            "epoch": ownership.epoch,
            "authority": {
                "resource": self._config().cluster.name,
                "text": cluster["authority"],
                "health": cluster["health"],
                "fencing": cluster["fencing"],
                "lease_seconds_left": cluster["lease_seconds_left"],
            },
            "addresses": self._addresses(),
            "takeover": self.readiness.snapshot(),
            "last_takeover": cluster["last_takeover"],
        }
        if tenure is not None:
            doubts = self._spool.in_doubt()
            answer["in_doubt"] = {
                side: sum(doubt.side == side for doubt in doubts)
                for side in ("outbound", "inbound")
            }
            answer["listeners"] = self._tenant.listening
            answer["queue"] = self._spool.stats()
            answer["destinations"] = self._tenant.snapshot()
        answer["cluster"] = cluster
        return answer

    def _addresses(self) -> list[dict[str, Any]]:
        if not IAddressFacts.providedBy(self._resource):
            return [
                {"address": str(a), "required": a.required}
                for a in self._config().virtual_server.addresses
            ]
        return [
            {
                "address": fact.address,
                "required": fact.required,
                "usable": fact.usable,
                "link": fact.link,
                "up": fact.is_up,
                "carrier": fact.has_carrier,
                "flags": list(fact.flags),
                "why_not": fact.why_not,
            }
            for fact in self._resource.address_facts()
        ]


def _as_it_is(found: Probed) -> Probed:
    return found
