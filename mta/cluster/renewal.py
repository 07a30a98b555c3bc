"""One lease of etcd's, kept alive: asked for, renewed in time, and lost by name.

Law (spool.md section 9): lease.py says what is due when; here it is done. A renewal that fails is
sent again at once to the next endpoint, one that stays unanswered goes to the next as well, and
after a breath all begins anew, until 0.8 of the TTL went by. That the lease is gone is believed
only when etcd says so in an answer that is whole.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mta.cluster.etcd_json import (
    NoSuchLease,
    grant_request,
    lease_request,
    parse_grant,
    parse_keepalive,
    parse_revoke,
)
from mta.cluster.gateway import Gateway
from mta.cluster.lease import Action, Lease, State
from mta.errors import ClusterNotInitialised, MTAError
from mta.interfaces import IClock, ITimer

BREATH = 0.05
"""Of the TTL: between two rounds of renewals that failed."""


class Renewal:
    """`renewed()` is called after each answered renewal, `ended(why)` once when a lease that was
    held is over; by then `seconds_left` is 0.
    """

    def __init__(
        self,
        clock: IClock,
        gateway: Gateway,
        *,
        renewed: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._gateway = gateway
        self._renewed = renewed
        self._ended = ended
        self.lease = Lease()
        self.id = 0
        self.trouble = ""
        """Why the last round of renewals failed; "" when it was answered."""
        self._renewing: Deferred[None] | None = None
        self._due: ITimer | None = None
        self._moment: ITimer | None = None

    @property
    def is_held(self) -> bool:
        return self.lease.state in {State.HELD, State.NARROW}

    async def obtain(self, ttl_seconds: int) -> None:
        """@raise TransientFailure: none is granted. @raise ClusterNotInitialised: too late."""
        lease = self.lease
        lease.release()  # the former one, which is over
        lease.ask()
        try:
            answer = await self._gateway.ask(
                "/v3/lease/grant", grant_request(ttl_seconds), parse_grant
            )
        except BaseException:
            lease.refused()
            raise
        self.id, granted = answer.value
        self.trouble = ""
        if lease.granted(answer.sent, float(granted), self._clock.monotonic()) is Action.END:
            raise ClusterNotInitialised(
                "the lease was over before it was held", "etcd took too long to answer"
            )
        self._arm()

    def forget(self) -> int:
        """End renewing; answers the lease's number, for who revokes it."""
        self._stop()
        self.lease.release()
        number, self.id = self.id, 0
        return number

    async def revoke(self, number: int) -> None:
        """Harmless for a lease that is gone. @raise TransientFailure: it could not be said."""
        try:
            await self._gateway.ask(
                "/v3/lease/revoke", lease_request(number), parse_revoke, may_repeat=True
            )
        except NoSuchLease:
            pass

    def deny(self, why: str) -> None:
        """It is known from elsewhere that it is worth nothing any more."""
        if self.lease.denied() is Action.END:
            self._end(why)

    # --- in time

    def _arm(self) -> None:
        """Timers for what is due next. Only ever called while the lease is held."""
        self._cancel_timers()
        now = self._clock.monotonic()
        moment = self.lease.next_moment()
        if moment is not None:
            self._moment = self._clock.call_later(moment - now, self._pass_time)
        if self._renewing is None:
            due = self.lease.renewal_due() - now
            if self.trouble:
                due = max(due, BREATH * self.lease.ttl)
            self._due = self._clock.call_later(due, self._renew)

    def _pass_time(self) -> None:
        self._moment = None
        action = self.lease.pass_time(self._clock.monotonic())
        if action is Action.END:
            why = self._gateway.trouble or "no answer"
            self._end(f"etcd has not renewed the lease in time: {why}")
        elif self.is_held:
            moment = self.lease.next_moment()
            assert moment is not None
            wait = moment - self._clock.monotonic()
            self._moment = self._clock.call_later(wait, self._pass_time)

    def _renew(self) -> None:
        self._due = None
        self._renewing = renewing = Deferred.fromCoroutine(self._renew_once())
        renewing.addErrback(self._failed)
        if renewing.called:
            self._renewing = None

    async def _renew_once(self) -> None:
        number = self.id

        def parse(octets: bytes) -> int:
            return parse_keepalive(octets, number)

        answer = await self._gateway.ask(
            "/v3/lease/keepalive", lease_request(number), parse, may_repeat=True
        )
        self._renewing = None
        if answer.value == 0:
            self.deny("etcd no longer knows the lease: it ended, or was revoked")
            return
        self.trouble = ""
        now = self._clock.monotonic()
        if self.lease.renewed(answer.sent, float(answer.value), now) is Action.END:
            self._end("the answer to the renewal came too late")
        elif self.is_held:
            self._arm()
            self._renewed()

    def _failed(self, failure: Failure) -> None:
        self._renewing = None
        if failure.check(CancelledError):
            return
        if failure.check(NoSuchLease):
            self.deny("etcd no longer knows the lease")
            return
        fault = failure.value
        self.trouble = (fault.why or fault.what) if isinstance(fault, MTAError) else repr(fault)
        if self.is_held:
            self._arm()

    # --- its end

    def _end(self, why: str) -> None:
        self._stop()
        self._ended(why)

    def _stop(self) -> None:
        self._cancel_timers()
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()

    def _cancel_timers(self) -> None:
        for timer in (self._due, self._moment):
            if timer is not None:
                timer.cancel()
        self._due = self._moment = None
