"""Who may claim ownership when all that speaks for it is an address on an interface. Pure.

Law (cluster.md section 4): an epoch uses what it was claimed with, and what its owner has served
with since. A node claims with an address instance (i) that no epoch has used, or
(ii) that the newest epoch used when the node itself is its owner, or (iii) that was used and
superseded, when the newest epoch is released, or its heartbeat has not moved for `takeover-after`
by our own clock. Waiting until the address has left and returned leaves nobody owning for ever;
claiming whenever it is here lets two nodes take it from each other without end. When the newest
epoch file is damaged every instance counts as used: nothing is guessed from the older ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mta.errors import ConfigurationError
from mta.model import AddressInstance, EpochRecord, VirtualServer

SILENT_SECONDS = 3.0
"""A heart that beats each second, and is looked at each second, is called silent after this."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`may`: claim now (with a random delay when `contested`). Else `why` says who holds it."""

    may: bool
    why: str
    contested: bool = False


class Sightings:
    """When each epoch's heartbeat was first seen at its present count, by our monotonic clock.

    Other nodes' clocks are never read: only that a counter moved between two of our own looks.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def quiet_seconds(self, record: EpochRecord, now: float) -> float:
        """How long `record`'s heartbeat has stood still while we looked; 0 at first sight."""
        heartbeat, since = self._seen.get(record.epoch, (record.heartbeat, now))
        if heartbeat != record.heartbeat:
            since = now
        self._seen = {record.epoch: (record.heartbeat, since)}
        return now - since


def judge(
    instances: Sequence[AddressInstance],
    records: Sequence[EpochRecord],
    node: str,
    quiet_seconds: float,
    takeover_after: float,
) -> Verdict:
    """May `node` claim with these address instances, given the epochs known (oldest first)?

    An empty `instances` is an authority of another kind: its grant is the right to claim.
    """
    if not instances:
        return Verdict(True, "the authority's grant")
    if not records:
        return Verdict(True, "no epoch was ever published")
    newest = records[-1]
    spent = {i for record in records for i in (*record.instances, *record.former_instances)}
    contested = None
    for instance in instances:
        used = newest.is_damaged or instance in spent
        if used and not (newest.node == node and instance in newest.instances):
            contested = instance
            break
    if contested is None:
        return Verdict(True, f"{', '.join(str(i.address) for i in instances)} came to this node")
    if newest.is_damaged:
        return _of_the_damaged(newest, quiet_seconds, takeover_after)
    if newest.released:
        return Verdict(True, f"epoch {newest.epoch} of {newest.node} is released", True)
    if quiet_seconds >= takeover_after:
        return Verdict(
            True,
            f"{newest.node}, which holds epoch {newest.epoch}, has been silent for "
            f"{quiet_seconds:.0f} s",
            True,
        )
    life = (
        "is alive"
        if quiet_seconds < SILENT_SECONDS
        else f"has been silent for {quiet_seconds:.0f} of {takeover_after:g} s"
    )
    return Verdict(
        False,
        f"address {contested.address} is present, but node {newest.node} holds epoch "
        f"{newest.epoch} and {life}",
    )


def _of_the_damaged(newest: EpochRecord, quiet: float, takeover_after: float) -> Verdict:
    """Only its marks and its counter are believed."""
    what = f"the file of epoch {newest.epoch} is damaged or empty, so nobody knows who holds it"
    if newest.released:
        return Verdict(True, f"{what}; it is released", True)
    if quiet >= takeover_after:
        return Verdict(True, f"{what}; it has been silent for {quiet:.0f} s", True)
    return Verdict(False, f"{what}: waiting until it is silent for {takeover_after:g} s")


_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def check_identity(server: VirtualServer, node: str, *, own_name_is_right: bool) -> None:
    """The network name and the addresses as law 2 wants them. @raise ConfigurationError."""
    name = server.network_name.rstrip(".")
    labels = name.split(".")
    what = f"network-name {server.network_name!r} cannot be the virtual server's name"
    if (
        len(labels) < 2
        or len(name) > 253
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise ConfigurationError(
            what,
            "it is not a fully qualified domain name",
            "write one such as bridgehead.example.org; peers see it in EHLO and Received",
        )
    if labels[0].lower() == "localhost" or name.lower() == "localhost.localdomain":
        raise ConfigurationError(what, "localhost is every machine's name", "write the server's")
    if not own_name_is_right and name.lower() == node.rstrip(".").lower():
        raise ConfigurationError(
            what,
            f"it is this node's own name ({node})",
            "the virtual server needs a name that moves with it; on a single node say "
            "`resource: standalone`",
        )
    for address in server.addresses:
        for ip in (address.bind, address.external):
            if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
                raise ConfigurationError(
                    f"{ip} cannot be an address of the virtual server",
                    "it names no single interface",
                    "give the virtual address itself in virtual-server.addresses",
                )
    if not any(address.required for address in server.addresses):
        raise ConfigurationError(
            "no address of the virtual server is required",
            "it would be online without any address",
            "leave out `required: false` for at least one of virtual-server.addresses",
        )
