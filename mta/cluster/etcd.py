"""etcd as the authority: a lease and a key that only its holder has, fenced by the watchdog.

Law (cluster.md section 4): owner is who created the key under a lease of his own; the number of
that creation is the token. Everything counts from when the last answered renewal was sent. Nothing
of an unreachable or crooked etcd is read as an answer. With `plumb` the watchdog adds the virtual
addresses when the epoch is published and takes them away before the lease is given back; without
it the lease is asked for only while they are here, by somebody else's doing.

What is asked: gateway.py; what the answers mean: etcd_json.py; when: lease.py and renewal.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from mta.cluster.addresses import VirtualAddresses, read_boot_id
from mta.cluster.claims import check_identity
from mta.cluster.etcd_json import (
    Holding,
    NoSuchLease,
    claim_request,
    parse_claim,
    parse_range,
    range_request,
)
from mta.cluster.etcd_settings import EtcdSettings
from mta.cluster.gateway import Gateway
from mta.cluster.guard import Guard, Spawn, SpawnedWatchdog
from mta.cluster.key_watch import KeyWatch
from mta.cluster.nap import Nap
from mta.cluster.netlink import open_socket
from mta.cluster.renewal import Renewal
from mta.cluster.watchdog import may_plumb
from mta.errors import ClusterNotInitialised, GrantLost, MTAError, StartRefused, TransientFailure
from mta.interfaces import (
    IClusterResource,
    ILease,
    IPlumber,
    IResourceListener,
    IStaleAddresses,
    ISurroundings,
    ITimer,
)
from mta.model import (
    AddressInstance,
    Fencing,
    Grant,
    Health,
    HealthLevel,
    IPAddress,
    VirtualServer,
)

ATTEMPT = 0.2
"""Of the TTL: one request to one endpoint. Between 0.3 and 0.8 there is room for two that hang."""
AGAIN = 0.05
"""In TTLs: the pause before a watch that etcd ended is begun anew."""
POLL = 0.3
"""Of the TTL: how often a standby asks who holds the key, should its watch be deaf."""
PLUMB_AGAIN_SECONDS = 0.5
"""Addresses that were added are usable within milliseconds."""
STALE_SECONDS = 1.0
"""Between two removals of addresses that somebody adds again and again."""


@implementer(IClusterResource, ILease, IStaleAddresses)
class EtcdResource:
    """See IClusterResource; IPlumber too when it plumbs."""

    fencing = Fencing.SELF

    def __init__(
        self,
        settings: EtcdSettings,
        surroundings: ISurroundings,
        *,
        open_socket: Callable[[], Any] = open_socket,
        boot_id: Callable[[], str] = read_boot_id,
        spawn: Spawn = SpawnedWatchdog,
        may_plumb: Callable[[], bool] = may_plumb,
    ) -> None:
        if settings.plumb:
            alsoProvides(self, IPlumber)
        self._settings = settings
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._may_plumb = may_plumb
        self._nap = Nap(self._clock)
        """Of the bid: until there is something new to look at."""
        self._key = b""
        self._addresses = VirtualAddresses(
            surroundings, self._changed, self._blind, open_socket=open_socket, boot_id=boot_id
        )
        self._gateway = Gateway(
            self._clock, surroundings.doors, settings.endpoints, ATTEMPT * settings.ttl
        )
        self._renewal = Renewal(
            self._clock, self._gateway, renewed=self._renewed, ended=self._ended
        )
        self._guard = Guard(
            self._clock,
            surroundings.doors,
            interface=settings.interface,
            ready=self._nap.wake,
            lost=self._unguarded,
            complain=self._complain,
            spawn=spawn,
        )
        self._listener: IResourceListener | None = None
        self._grant: Grant | None = None
        self._waiters: list[Deferred[Grant]] = []
        self._bid: Deferred[None] | None = None
        self._watch: KeyWatch | None = None
        self._seen_at = 0
        """The newest revision at which the key was seen to be ours."""
        self._tasks: set[Deferred[None]] = set()
        self._former: list[int] = []
        """Leases that are ours no more, and that etcd was not told of yet."""
        self._holder: Holding | None = None
        self._trouble = ""
        self._stale_timer: ITimer | None = None
        self._stale_next = 0.0
        self._plumbed: list[Deferred[bool]] = []
        """Who waits for the addresses to be usable: False when it took too long."""
        self._is_stopped = False

    # --- life -----------------------------------------------------------------------------------

    def prepare(self, server: VirtualServer) -> None:
        check_identity(server, self._surroundings.node, own_name_is_right=False)
        self._addresses.server = server
        self._guard.addresses = server.addresses
        self._key = f"{self._settings.prefix or '/mta/' + server.network_name}/owner".encode()
        self._refuse_unable()

    def _refuse_unable(self) -> None:
        if self._settings.plumb and not self._may_plumb():
            raise StartRefused(
                f"the addresses of {self._settings.interface} cannot be changed by this process",
                "it lacks CAP_NET_ADMIN, which the watchdog inherits",
                "give AmbientCapabilities=CAP_NET_ADMIN in the systemd unit; or run as root "
                "without --uid; or say `plumb: false` and let another move the addresses",
                exit_code=77,
            )

    def start(self) -> None:
        self._refuse_unable()  # now under the user that we run as
        self._addresses.start()
        self._guard.start()

    def subscribe(self, listener: IResourceListener) -> None:
        self._listener = listener

    def stop(self) -> Deferred[None]:
        self._is_stopped = True
        self._listener = None
        self._addresses.stop()
        for task in (self._bid, self._watch, *self._tasks):
            if task is not None:
                task.cancel()
        if self._stale_timer is not None:
            self._stale_timer.cancel()
        self._renewal.forget()
        gone = self._guard.stop()
        self._gateway.close()
        return gone

    # --- the grant ------------------------------------------------------------------------------

    def acquire(self) -> Deferred[Grant]:
        if self._grant is not None and self._renewal.is_held:
            return succeed(self._grant)
        waiter: Deferred[Grant] = Deferred(self._given_up)
        self._waiters.append(waiter)
        if self._bid is None:
            self._bid = bid = Deferred.fromCoroutine(self._bid_on())
            bid.addErrback(self._defect)
            if bid.called:
                self._bid = None
        return waiter

    def _given_up(self, waiter: Deferred[Grant]) -> None:
        self._waiters.remove(waiter)
        if not self._waiters and self._bid is not None:
            self._bid.cancel()

    async def _bid_on(self) -> None:
        """Until the key is ours, or nobody waits for it."""
        try:
            while self._waiters:
                try:
                    await self._bid_once()
                except MTAError as fault:
                    self._say_trouble(str(fault))
                    await self._nap.sleep(POLL * self._settings.ttl)
        finally:
            self._bid = None
            if self._grant is None:
                self._let_go()

    async def _bid_once(self) -> None:
        if not self._guard.is_ready:
            self._say_trouble(self._guard.why_not)
            await self._nap.sleep(POLL * self._settings.ttl)
            return
        if not self._settings.plumb and self._addresses.why_not():
            await self._nap.sleep(POLL * self._settings.ttl)  # sooner when an address comes
            return
        await self._revoke_former()
        holder, revision = (await self._ask_holder()).value
        self._hold_seen(holder)
        if holder is not None:
            await self._until_gone(holder, revision)
            return
        await self._claim()

    async def _claim(self) -> None:
        renewal = self._renewal
        await renewal.obtain(round(self._settings.ttl))
        number = renewal.id
        self._guard.set_deadline(renewal.lease.kill_at())
        request = claim_request(self._key, self._value(), number)
        try:
            claimed = (await self._gateway.ask("/v3/kv/txn", request, parse_claim)).value
        except TransientFailure:
            claimed = None  # it may have been done: the key says so
        if claimed is not None:
            token = claimed.token if claimed.is_ours else 0
        else:
            holder = (await self._ask_holder()).value[0]
            token = holder.token if holder is not None and holder.lease == number else 0
        if not token or not renewal.is_held or not self._waiters:
            self._let_go()
            return
        server = self._addresses.server
        self._grant = grant = Grant(
            token=token,
            network_name=server.network_name,
            addresses=server.addresses,
            fencing=self.fencing,
            valid_until=renewal.lease.is_over_at,
        )
        self._seen_at = token
        self._watch_own(grant)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(grant)

    def _value(self) -> bytes:
        """For people and for `explain` of the other nodes; nothing is decided by it but whose node
        it is, before stale addresses are removed.
        """
        return json.dumps({"node": self._surroundings.node}).encode()

    def _ask_holder(self) -> Deferred[Any]:
        """A linearizable read (the default): never `serializable`, which a member that is cut off
        from the others would answer from its own memory.
        """
        request = range_request(self._key)
        asked = self._gateway.ask("/v3/kv/range", request, parse_range, may_repeat=True)
        return Deferred.fromCoroutine(asked)

    async def _until_gone(self, holder: Holding, revision: int) -> None:
        """Wait for the key's deletion: by a watch, and by looking again should it be deaf."""

        ended: list[str] = []

        def over(why: str) -> None:
            ended.append(why)
            self._nap.wake()

        watch = self._watch_key(revision, self._nap.wake, over)
        try:
            if not ended:
                await self._nap.sleep(POLL * self._settings.ttl)
        finally:
            watch.cancel()
        if ended:
            # The key is read again, and watched from what that says: what was compacted is no
            # beginning. An etcd that ends every watch is not asked without a pause.
            await self._nap.sleep(AGAIN * self._settings.ttl)

    def _watch_key(
        self, after: int, gone: Callable[[], object], ended: Callable[[str], object]
    ) -> KeyWatch:
        return KeyWatch(
            self._gateway, self._key, after, gone=gone, ended=ended, complain=self._complain
        )

    def _let_go(self) -> None:
        """A lease that led to no grant, or is over: the watchdog hears first, then etcd."""
        number = self._renewal.forget()
        self._guard.set_deadline(0.0)
        if number:
            self._former.append(number)
        if self._former and not self._is_stopped:
            self._run(self._revoke_former())

    async def _revoke_former(self) -> None:
        """So that nobody, least of all we, has to wait until they end by themselves."""
        while self._former:
            number = self._former[-1]
            await self._renewal.revoke(number)
            if number in self._former:
                self._former.remove(number)

    def confirm(self, grant: Grant) -> Deferred[Grant]:
        """The key is read once more: it must be the one that we created, with our lease."""
        return Deferred.fromCoroutine(self._confirm(grant))

    async def _confirm(self, grant: Grant) -> Grant:
        if grant != self._grant or not self._renewal.is_held:
            raise GrantLost("the lease is not held", self.explain())
        if not self._settings.plumb:
            await self._addresses.confirm(grant)
        await self._verify(grant)
        if grant != self._grant or self.seconds_left() <= 0.0:
            raise GrantLost("the lease ended while etcd was asked", self.explain())
        return grant

    async def _verify(self, grant: Grant) -> None:
        """@raise GrantLost: the key is not ours. @raise TransientFailure: nothing is known."""
        holder, revision = (await self._ask_holder()).value
        if grant is not self._grant:
            raise GrantLost("the grant was given back meanwhile")
        self._seen_at = max(self._seen_at, revision)
        if holder is None or (holder.token, holder.lease) != (grant.token, self._renewal.id):
            why = f"{self._key.decode()} is {'gone' if holder is None else holder.who}"
            self._renewal.deny(why)
            raise GrantLost("etcd says that another owns the virtual server", why)

    def release(self, grant: Grant, reason: str) -> Deferred[None]:
        """Last of all: with it the next owner begins."""
        if grant != self._grant:
            return succeed(None)
        self._end_grant()
        number = self._renewal.forget()
        self._guard.set_deadline(0.0)
        self._former.append(number)
        return Deferred.fromCoroutine(self._revoke_former())

    def _end_grant(self) -> None:
        self._grant = None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    # --- holding it -----------------------------------------------------------------------------

    def _watch_own(self, grant: Grant) -> None:
        """A key that was deleted by hand is another's a moment later: the lease does not tell."""

        def gone() -> None:
            if grant is self._grant:
                self._run(self._look_after(grant))

        def ended(_why: str) -> None:
            if grant is self._grant:
                self._watch = None
                self._run(self._watch_again(grant))

        self._watch = self._watch_key(self._seen_at, gone, ended)

    async def _watch_again(self, grant: Grant) -> None:
        """At once the key is read; it is watched from there, not without a pause."""
        await self._look_after(grant)
        await Nap(self._clock).sleep(AGAIN * self._settings.ttl)
        if grant is self._grant:
            self._watch_own(grant)

    def _renewed(self) -> None:
        self._guard.set_deadline(self._renewal.lease.kill_at())
        self._trouble = ""
        self._say_health(HealthLevel.OK, self.explain())
        grant = self._grant
        if grant is not None:
            self._run(self._look_after(grant))

    async def _look_after(self, grant: Grant) -> None:
        try:
            await self._verify(grant)
        except MTAError:
            pass  # lost: `deny` has said so; not answered: the next renewal tells

    def _ended(self, why: str) -> None:
        """The lease is over. Sockets first (`lost` returns when they are closed), then the rest."""
        had_grant = self._grant is not None
        self._end_grant()
        self._say_trouble(why)
        if had_grant and self._listener is not None:
            self._listener.lost(why)
        # etcd is told when the next bid begins: all that ran under this lease has ended by then.
        number = self._renewal.forget()
        self._guard.set_deadline(0.0)
        if number:
            self._former.append(number)
        self._nap.wake()

    def _unguarded(self, why: str) -> None:
        """No watchdog: who would end us, if we were stopped?"""
        if self._renewal.is_held:
            self._renewal.deny(why)
        else:
            self._say_trouble(why)

    def seconds_left(self) -> float:
        return self._renewal.lease.seconds_left(self._clock.monotonic())

    def may_accept(self) -> bool:
        return self._renewal.lease.may_accept(self._clock.monotonic())

    # --- the addresses ----------------------------------------------------------------------------

    def plumb(self, grant: Grant, epoch: int, epoch_file: str) -> Deferred[None]:
        """See IPlumber. Fires when netlink shows them, not when the watchdog has added them."""
        if grant != self._grant:
            return fail(ClusterNotInitialised("the grant is gone", self.explain()))
        return Deferred.fromCoroutine(self._plumb(epoch_file))

    async def _plumb(self, epoch_file: str) -> None:
        await self._guard.plumb(epoch_file)
        while self._addresses.why_not():
            # Added, and not there yet; or taken away by somebody else while the others came.
            if not await self._become_usable():
                await self._guard.plumb(epoch_file)

    def _become_usable(self) -> Deferred[bool]:
        def ended(was_usable: Any) -> Any:
            timer.cancel()
            if waiter in self._plumbed:
                self._plumbed.remove(waiter)
            return was_usable

        waiter: Deferred[bool] = Deferred()
        self._plumbed.append(waiter)
        timer = self._clock.call_later(PLUMB_AGAIN_SECONDS, waiter.callback, False)
        return waiter.addBoth(ended)

    def unplumb(self) -> Deferred[None]:
        """See IPlumber."""
        return self._guard.unplumb()

    def _changed(self, instances: tuple[AddressInstance, ...]) -> None:
        if self._listener is not None:
            self._listener.addressesChanged(instances)
        if self._plumbed and not self._addresses.why_not():
            for waiter in tuple(self._plumbed):
                waiter.callback(True)
        if not self._settings.plumb:
            self._nap.wake()
        self._remove_stale()

    def _blind(self, why: str) -> None:
        """Netlink broke: what cannot be seen cannot be relied upon."""
        if self._renewal.is_held:
            self._renewal.deny(why)
        else:
            self._say_trouble(why)

    def _hold_seen(self, holder: Holding | None) -> None:
        self._holder = holder
        self._trouble = ""
        self._say_health(HealthLevel.OK, self.explain())
        self._remove_stale()

    def _remove_stale(self) -> None:
        """While another holds the key by a lease, the addresses have no business here."""
        if self._stale_timer is not None or not self._is_stale():
            return
        now = self._clock.monotonic()
        wait = max(0.0, self._stale_next - now)
        self._stale_next = now + wait + STALE_SECONDS
        self._stale_timer = self._clock.call_later(wait, self._remove_stale_now)

    def _remove_stale_now(self) -> None:
        self._stale_timer = None
        if self._is_stale() and self._holder is not None:
            self._complain(f"virtual addresses are here but {self._holder.who}: they are removed")
            self._run(_awaited(self._guard.unplumb()))

    def _is_stale(self) -> bool:
        """@return whether addresses are here that the watchdog is to remove."""
        holder = self._holder
        return (
            self._settings.removes_superseded
            and self._is_anothers()
            and holder is not None
            and holder.lease != 0
            and bool(self._addresses.instances())
        )

    def _is_anothers(self) -> bool:
        """By etcd's last answer the key is that of another node."""
        holder = self._holder
        return (
            not self._renewal.is_held
            and holder is not None
            and holder.node not in {"", self._surroundings.node}
            and self._addresses.is_known
        )

    def stale_addresses(self) -> tuple[IPAddress, ...]:
        """See IStaleAddresses. Nobody takes them away while the key is another node's and removing
        is not ours (`plumb: false`, `on-superseded: report`), or while we have no watchdog.
        """
        has_no_watchdog = self._settings.plumb and not self._guard.is_ready
        is_left = self._is_anothers() and not self._settings.removes_superseded
        if self._renewal.is_held or not (has_no_watchdog or is_left):
            return ()
        return tuple(instance.address for instance in self._addresses.instances())

    # --- what is said -----------------------------------------------------------------------------

    def explain(self) -> str:
        key = self._key.decode()
        if self._grant is not None:
            left = self.seconds_left()
            return f"{key} is ours (token {self._grant.token}), {left:.1f} s of its lease left"
        if self._trouble:
            return self._trouble
        if not self._guard.is_ready:
            return self._guard.why_not
        if not self._settings.plumb and self._addresses.why_not():
            return self._addresses.explain()
        if self._holder is not None:
            stale = ", ".join(map(str, self.stale_addresses()))
            who = f"{key} is {self._holder.who}"
            return f"{who}; left over on this node: {stale}" if stale else who
        return f"waiting for etcd at {self._gateway.present}"

    def probe(self, level: int) -> Deferred[Health]:
        """0: lease and watchdog; from 1 on: etcd is asked, and what we plumbed is really bound."""
        if level <= 0:
            return succeed(self._looks())
        return Deferred.fromCoroutine(self._probe())

    def _looks(self) -> Health:
        if not self._guard.is_ready:
            return Health(HealthLevel.FAILED, self._guard.why_not)
        if self._grant is not None and not self.may_accept():
            return Health(HealthLevel.DEGRADED, f"{self.explain()}: {self._renewal.trouble}")
        if self._grant is None and self._trouble:
            return Health(HealthLevel.FAILED, self._trouble)
        return Health(HealthLevel.OK, self.explain())

    async def _probe(self) -> Health:
        looks = self._looks()
        if looks.level is HealthLevel.FAILED:
            return looks
        try:
            await self._ask_holder()
            if self._grant is not None:
                await self._addresses.refresh()
        except MTAError as fault:
            return Health(HealthLevel.FAILED, str(fault))
        if self._grant is not None and (not self._settings.plumb or self._addresses.instances()):
            bound = self._addresses.bound_health()
            if bound.level is not HealthLevel.OK:
                return bound
        return looks

    def _say_trouble(self, text: str) -> None:
        self._trouble = text
        self._say_health(HealthLevel.FAILED, text)

    def _say_health(self, level: HealthLevel, text: str) -> None:
        if self._listener is not None:
            self._listener.health(Health(level, text))

    def _complain(self, text: str) -> None:
        self._surroundings.telemetry.notice("warning", "cluster", text)

    # --- small parts ------------------------------------------------------------------------------

    def _run(self, work: Any) -> None:
        """Something that nobody awaits; it is cancelled when we stop."""
        task: Deferred[None] = Deferred.fromCoroutine(work)
        self._tasks.add(task)

        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError, MTAError, NoSuchLease):
                self._defect(failure)

        task.addErrback(failed)
        task.addBoth(lambda _result: self._tasks.discard(task))

    def _defect(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._complain(f"etcd: {failure.getTraceback(detail='brief')}")


async def _awaited(waiting: Deferred[None]) -> None:
    await waiting
