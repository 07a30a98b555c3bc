"""The `spool:` block of the configuration, for each store."""

from __future__ import annotations

from pydantic import Field

from mta.model import Sharing
from mta.settings import Boolean, Count, Settings, Size


class LogSpoolSettings(Settings):
    """The segment log: durable by fdatasync, fenced by epochs."""

    directory: str = Field(
        description="Where the spool lies; under `sharing: none` made (0700) when it is missing."
    )
    sharing: Sharing = Field(
        default=Sharing.NONE,
        description="How other nodes reach the directory: none, same-kernel, cluster-fs, nfs or "
        "failover-mount. Must be said under every cluster resource but standalone.",
    )
    allow_filesystem: tuple[str, ...] = Field(
        default=(),
        description="Types of file systems to use although they are refused by name: tmpfs, "
        "ramfs, 9p and fuse keep no promise about what was synced.",
    )
    initialise: Boolean = Field(
        default=False,
        description="Make a spool in an empty directory, or in a missing one that is shared. "
        "Refused otherwise: most likely a mount is missing. `mta spool init DIR` does it once.",
    )
    reserve: Size = Field(
        default=128 << 20,
        description="Space kept for takeover, outcomes and compaction; new mail is answered 452 "
        "before free space falls under it. Grows with the queue.",
    )
    segment_size: Size = Field(
        default=64 << 20, ge=64 << 10, le=1 << 31, description="Octets of a log segment."
    )
    first_segment_size: Size = Field(
        default=4 << 20,
        ge=64 << 10,
        le=1 << 31,
        description="Octets of an epoch's first segment: small, for it is filled in a takeover.",
    )
    spares: Count = Field(default=2, description="Segments that are filled ahead.")
    resident: Size = Field(
        default=32 << 20,
        description="Memory for the contents of messages that were just accepted, so that they "
        "are sent without reading them back.",
    )
    big_message: Size = Field(
        default=1 << 20,
        ge=4 << 10,
        description="A larger content gets a file of its own instead of a place in the log.",
    )


class MemorySpoolSettings(Settings):
    """The store for tests: as durable as its process."""

    capacity: Size = Field(default=1 << 30, description="Octets of content it takes.")
