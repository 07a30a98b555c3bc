"""etcd's v3 JSON gateway by Twisted's own HTTP client, through the service door.

Law: every request has a time of its own, every answer a size. One endpoint after another is tried,
the one that answered last first; where it does no harm to ask twice, one that is silent does not
hold up the next. When each request was sent is told with its answer: a lease counts from there.
Nothing is guessed from a failure: who asks hears of it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IConsumer, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from mta.cluster.etcd_json import NoSuchLease, cluster_of, refusal
from mta.errors import MTAError, RemoteProtocolError, TransientFailure
from mta.interfaces import IClock, IDoors, ITimer

T = TypeVar("T")

HASTE = 0.25
"""Of an attempt's time: how long one endpoint may be silent before the next is asked as well."""
LARGEST_ANSWER = 64 * 1024
"""Octets; the answers awaited have a few hundred."""
LARGEST_RATE = 256 * 1024
"""Octets of a connection in one second, headers and all."""
IDLE_SECONDS = 60
"""How long a connection that nothing is asked over stays open."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What was answered, and when it had been asked (CLOCK_BOOTTIME)."""

    value: T
    sent: float


class Gateway:
    """One etcd cluster. `endpoints` are "http://ADDRESS:PORT"."""

    def __init__(
        self, clock: IClock, doors: IDoors, endpoints: Sequence[str], attempt_seconds: float
    ) -> None:
        self._clock = clock
        self._endpoints = list(endpoints)
        self._attempt_seconds = attempt_seconds
        self._connections: set[_Connection] = set()
        self._faults: dict[str, str] = {}
        """By endpoint: why it did not answer when it was last asked."""
        reactor: Any = _Timing(clock)
        self._cluster = ""
        """The id of the cluster whose members these are, from the first answer on."""
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = 4
        self._pool.cachedConnectionTimeout = IDLE_SECONDS
        self._agent = Agent.usingEndpointFactory(
            reactor, _Through(doors, clock, self._connections), self._pool
        )

    @property
    def present(self) -> str:
        """The endpoint that answered last, or is asked first."""
        return self._endpoints[0]

    async def ask(
        self, path: str, body: bytes, parse: Callable[[bytes], T], *, may_repeat: bool = False
    ) -> Answer[T]:
        """`may_repeat`: to be asked twice does no harm, so the first answer of any endpoint counts.

        @raise TransientFailure: no endpoint gave an answer that could be used; each is named.
        An answer that refuses (NoSuchLease) is an answer: nobody else is asked.
        """
        strangers: list[str] = []

        async def attempt(endpoint: str) -> Answer[T]:
            sent = self._clock.monotonic()
            try:
                status, octets = await self._post(endpoint, path, body)
                if status != 200:
                    raise refusal(status, octets)
                cluster = cluster_of(octets)
                if self._cluster and cluster and cluster != self._cluster:
                    strangers.append(endpoint)
                    raise self._stranger(endpoint, cluster)
                value = parse(octets)
            except NoSuchLease:
                raise
            except (TransientFailure, RemoteProtocolError) as fault:
                self._faults[endpoint] = f"{fault.what}: {fault.why}".rstrip(": ")
                raise
            self._faults.pop(endpoint, None)
            self._prefer(endpoint)
            self._cluster = cluster
            return Answer(value, sent)

        pause = HASTE * self._attempt_seconds if may_repeat else None
        race = _Race(self._clock, [partial(attempt, each) for each in self._endpoints], pause)
        try:
            return await race.won
        except NoSuchLease:
            raise
        except (TransientFailure, RemoteProtocolError):
            if len(strangers) == len(self._endpoints):
                self._cluster = ""  # they were set up anew, all of them
            raise TransientFailure("etcd does not answer", self.trouble, "is it running?") from None

    def _stranger(self, endpoint: str, cluster: str) -> RemoteProtocolError:
        """Two clusters are two authorities, and each would name an owner."""
        return RemoteProtocolError(
            f"{endpoint} is of another etcd cluster",
            f"its cluster id is {cluster}, that of the others {self._cluster}",
            "endpoints are members of one cluster",
        )

    @property
    def trouble(self) -> str:
        """Which endpoints did not answer when they were last asked, and why; "" for none."""
        return "; ".join(f"{endpoint}: {why}" for endpoint, why in sorted(self._faults.items()))

    async def watch(self, body: bytes, heard: Callable[[bytes], None]) -> None:
        """POST /v3/watch to the endpoint that answered last; `heard` takes each line until the
        stream ends. @raise TransientFailure: it ended; MTAError as `heard` raises.
        """
        endpoint, until = self.present, self._attempt_ends()
        response = await self._request(endpoint, "/v3/watch", body, until)
        if response.code != 200:
            octets = await self._body(response, until)
            raise refusal(response.code, octets)
        ended: Deferred[None] = Deferred()
        lines = _Lines(heard, ended)
        await _guarded(ended, lines.end, lambda: response.deliverBody(lines))

    def close(self) -> None:
        """Everything that is open, at once."""
        self._pool.closeCachedConnections()
        for connection in tuple(self._connections):
            connection.abort()

    # --- one request

    def _prefer(self, endpoint: str) -> None:
        self._endpoints.remove(endpoint)
        self._endpoints.insert(0, endpoint)

    async def _post(self, endpoint: str, path: str, body: bytes) -> tuple[int, bytes]:
        until = self._attempt_ends()
        response = await self._request(endpoint, path, body, until)
        return response.code, await self._body(response, until)

    def _attempt_ends(self) -> float:
        """Monotonic time at which an attempt that begins now is over, head and body together."""
        return self._clock.monotonic() + self._attempt_seconds

    async def _request(self, endpoint: str, path: str, body: bytes, until: float) -> IResponse:
        headers = Headers({b"Content-Type": [b"application/json"]})
        asked: Deferred[IResponse] = self._agent.request(
            b"POST", f"{endpoint}{path}".encode("ascii"), headers, _Octets(body)
        )
        return await self._within(until, _guarded(asked, asked.cancel, lambda: None))

    async def _body(self, response: IResponse, until: float) -> bytes:
        whole: Deferred[bytes] = Deferred()
        gathering = _Gathering(whole)
        return await self._within(
            until, _guarded(whole, gathering.end, lambda: response.deliverBody(gathering))
        )

    async def _within(self, until: float, outer: Deferred[T]) -> T:
        """Await what `_guarded` answered, until then. @raise TransientFailure."""
        expired = []

        def expire() -> None:
            expired.append(True)
            outer.cancel()

        timer = self._clock.call_later(max(0.0, until - self._clock.monotonic()), expire)
        try:
            return await outer
        except CancelledError:
            if expired:
                raise TransientFailure(
                    "etcd is silent", f"no answer within {self._attempt_seconds:g} s"
                ) from None
            raise
        except MTAError:
            raise
        except Exception as fault:
            raise TransientFailure("etcd cannot be asked", _reason(fault)) from fault
        finally:
            timer.cancel()


class _Race(Generic[T]):
    """Attempts in their order, the next when the one before has failed, or has been silent for
    `pause` seconds (None: however long it takes). `won` has the first answer, or the last failure.
    """

    def __init__(
        self,
        clock: IClock,
        attempts: Sequence[Callable[[], Coroutine[Deferred[Any], Any, T]]],
        pause: float | None,
    ) -> None:
        self._clock = clock
        self._ahead = list(attempts)
        self._pause = pause
        self._open: list[Deferred[T]] = []
        self._timer: ITimer | None = None
        self.won: Deferred[T] = Deferred(lambda _won: self._end())
        self._next()

    def _next(self) -> None:
        self._rest()
        attempt = Deferred.fromCoroutine(self._ahead.pop(0)())
        self._open.append(attempt)
        if self._pause is not None and self._ahead:
            self._timer = self._clock.call_later(self._pause, self._next)
        attempt.addCallbacks(
            self._answered, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        )

    def _answered(self, value: T, attempt: Deferred[T]) -> None:
        self._open.remove(attempt)
        self._end()
        self.won.callback(value)

    def _failed(self, failure: Failure, attempt: Deferred[T]) -> None:
        if attempt not in self._open:
            return  # one that was ended
        self._open.remove(attempt)
        if not failure.check(TransientFailure, RemoteProtocolError) or failure.check(NoSuchLease):
            self._end()
            self.won.errback(failure)
        elif self._ahead:
            self._next()
        elif not self._open:
            self.won.errback(failure)

    def _end(self) -> None:
        self._rest()
        ended, self._open, self._ahead = self._open, [], []
        for attempt in ended:
            attempt.cancel()

    def _rest(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _guarded(
    waiting: Deferred[T], end: Callable[[], object], begin: Callable[[], object]
) -> Deferred[T]:
    """As `waiting`, but cancelling it is always a CancelledError, whatever Twisted's HTTP client
    makes of an aborted request: who is cancelled must not ask the next endpoint.
    """
    is_cancelled = []

    def cancelled(_outer: object) -> None:
        is_cancelled.append(True)
        end()

    outer: Deferred[T] = Deferred(cancelled)

    def done(result: Any) -> None:
        if not is_cancelled:
            outer.callback(result)

    def failed(failure: Failure) -> None:
        if not is_cancelled:
            outer.errback(failure)

    begin()
    waiting.addCallbacks(done, failed)
    return outer


def _reason(fault: BaseException | None) -> str:
    """Twisted wraps failures in lists of failures; the innermost says something."""
    reasons = getattr(fault, "reasons", None)
    if reasons:
        return _reason(reasons[0].value)
    return str(fault) or type(fault).__name__  # some of Twisted's say nothing


# --- what Twisted's client wants --------------------------------------------------------------


class _Timing:
    """IReactorTime, as far as the pool of connections asks for it."""

    def __init__(self, clock: IClock) -> None:
        self._clock = clock

    def callLater(self, delay: float, call: Callable[..., object], *arguments: Any) -> ITimer:
        return self._clock.call_later(delay, call, *arguments)

    def seconds(self) -> float:
        return self._clock.monotonic()


@implementer(IAgentEndpointFactory)
class _Through:
    """Connections go through the service door, under the purpose `authority`."""

    def __init__(self, doors: IDoors, clock: IClock, connections: set[_Connection]) -> None:
        self._doors = doors
        self._clock = clock
        self._connections = connections

    def endpointForURI(self, uri: Any) -> Any:
        host = uri.host.decode("ascii")
        where = f"tcp:[{host}]:{uri.port}" if ":" in host else f"tcp:{host}:{uri.port}"
        return _Door(self._doors, self._clock, self._connections, where)


@implementer(IStreamClientEndpoint)
class _Door:
    def __init__(
        self, doors: IDoors, clock: IClock, connections: set[_Connection], where: str
    ) -> None:
        self._doors = doors
        self._clock = clock
        self._connections = connections
        self._where = where

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        connection = _Connection(protocol, self._clock, self._connections)
        opened = self._doors.service_connect("authority", self._where, connection)
        return opened.addCallback(lambda _connection: protocol)


class _Connection(Protocol):
    """Stands between the transport and Twisted's HTTP protocol, and counts what comes."""

    def __init__(self, inner: IProtocol, clock: IClock, connections: set[_Connection]) -> None:
        self._inner = inner
        self._clock = clock
        self._connections = connections
        self._since = 0.0
        self._octets = 0

    def connectionMade(self) -> None:
        self._connections.add(self)
        assert self.transport is not None
        self._inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        now = self._clock.monotonic()
        if now - self._since >= 1.0:
            self._since, self._octets = now, 0
        self._octets += len(data)
        if self._octets > LARGEST_RATE:
            self.abort()
            return
        self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connections.discard(self)
        self._inner.connectionLost(reason)

    def abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


@implementer(IBodyProducer)
class _Octets:
    """A request's body that is at hand."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.length = len(octets)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._octets)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All was written."""

    def resumeProducing(self) -> None:
        """All was written."""

    def stopProducing(self) -> None:
        """All was written."""


class _Gathering(Protocol):
    """An answer's body, whole and of a bounded size."""

    def __init__(self, whole: Deferred[bytes]) -> None:
        self._whole: Deferred[bytes] | None = whole
        self._octets = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._octets += data
        if len(self._octets) > LARGEST_ANSWER:
            self._fire(
                RemoteProtocolError("etcd's answer is too large", f"{LARGEST_ANSWER} octets")
            )
            self.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._fire(bytes(self._octets) if reason.check(ResponseDone) else reason)

    def _fire(self, result: Any) -> None:
        whole, self._whole = self._whole, None
        if whole is None:
            return
        if isinstance(result, bytes):
            whole.callback(result)
        else:
            whole.errback(result)

    def end(self) -> None:
        self._whole = None
        if self.transport is not None:
            self.transport.loseConnection()


class _Lines(Protocol):
    """A watch's stream, line by line, until it ends."""

    def __init__(self, heard: Callable[[bytes], None], ended: Deferred[None]) -> None:
        self._heard = heard
        self._ended: Deferred[None] | None = ended
        self._unread = b""

    def dataReceived(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            if line and self._ended is not None:
                maybeDeferred(self._heard, line).addErrback(self._fail)
        if len(self._unread) > LARGEST_ANSWER:
            self._fail(Failure(RemoteProtocolError("a line of etcd's watch is too long")))

    def _fail(self, failure: Failure) -> None:
        ended = self._ended
        self.end()
        if ended is not None:
            ended.errback(failure)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.errback(TransientFailure("etcd's watch ended", _reason(reason.value)))

    def end(self) -> None:
        self._ended = None
        if self.transport is not None:
            self.transport.loseConnection()
