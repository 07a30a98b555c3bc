"""The `cluster:` block of the configuration, as far as every resource has it in common."""

from __future__ import annotations

from pydantic import Field

from mta.settings import Boolean, Count, Duration, Settings


class ClusterSettings(Settings):
    """The base of each cluster resource's own settings."""

    grace: Duration = Field(
        default=10.0,
        description="How long a virtual address may be away before ownership is given up. "
        "Meanwhile nothing listens and nothing is sent.",
    )
    drain: Duration = Field(
        default=10.0,
        description="How long open associations may go on when we stop; the rest is aborted.",
    )
    takeover_after: Duration = Field(
        default=10.0,
        description="An address that has served before is claimed again only when the owner's "
        "heartbeat in the spool has not moved for this long.",
    )
    announce: Boolean = Field(
        default=True,
        description="Say by gratuitous ARP and neighbour advertisements where the addresses are, "
        "and release peers that wait for a former owner. It needs CAP_NET_RAW, and is left out "
        "without it.",
    )
    tcp_timeout: Duration = Field(
        default=60.0,
        description="An association whose peer does not acknowledge what we sent for this long is "
        "given up; without it a peer that vanished is never noticed.",
    )
    tcp_keepalive: Duration = Field(
        default=30.0,
        description="An association on which nothing moves is probed after this long (whole "
        "seconds).",
    )
    tcp_keepalive_interval: Duration = Field(
        default=10.0, description="Between two such probes (whole seconds)."
    )
    tcp_keepalive_count: Count = Field(
        default=3, description="Unanswered probes after which the association is given up."
    )
    spool_stall: Duration = Field(
        default=5.0,
        description="A spool whose disk does not answer for this long ends the tenure.",
    )
