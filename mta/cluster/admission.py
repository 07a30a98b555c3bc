"""Whether a cluster resource and a store go together: said at start, before anything runs.

Law: a spool that several nodes can write needs somebody who keeps a former owner from writing, the
authority or the store. Without either the start is refused.
"""

from __future__ import annotations

from typing import Any

from mta.errors import ConfigurationError
from mta.interfaces import IClusterResource, ISpool, ISpoolLocker
from mta.model import Fencing, Sharing


def refuse_unfenced(resource: IClusterResource, spool: ISpool, spool_settings: Any) -> None:
    """@raise ConfigurationError: a shared spool that nobody fences, or a sharing that the store
    cannot do. `spool_settings` is the `spool:` block; `sharing` and `directory` are read if given.

    A resource that keeps other processes out by a lock is told the directory.
    """
    sharing = getattr(spool_settings, "sharing", None) or Sharing.NONE
    if not isinstance(sharing, Sharing):
        sharing = Sharing(sharing)
    directory = getattr(spool_settings, "directory", None)
    if directory is not None and ISpoolLocker.providedBy(resource):
        resource.lock_in(str(directory))
    if sharing is Sharing.NONE:
        return
    if sharing is Sharing.FAILOVER_MOUNT and resource.fencing is not Fencing.EXTERNAL:
        raise ConfigurationError(
            "spool.sharing is failover-mount, but nobody fences the other node",
            f"{resource.explain()}; a file system mounted by two nodes at once is destroyed, and "
            "epochs cannot help it",
            "use `resource: pacemaker` with stonith-enabled=true, which mounts after fencing, or "
            "say how the directory is really shared: cluster-fs, nfs, none",
        )
    if not spool.guarantees.shared:
        raise ConfigurationError(
            f"spool.sharing is {sharing.value}, but the store cannot be shared",
            "its content exists in one process only",
            "use `store: log`, or `sharing: none`",
        )
    if resource.fencing is Fencing.NONE and not spool.guarantees.fenced_in_store:
        raise ConfigurationError(
            f"a spool shared by {sharing.value} would have no fence",
            "neither the cluster resource nor the store can keep a former owner from writing",
            "use a cluster resource with fencing (pacemaker with STONITH, etcd with the watchdog), "
            "or a sharing under which the store fences by epochs (cluster-fs, same-kernel)",
        )
