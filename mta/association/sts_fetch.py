"""A policy of MTA-STS from its host: one GET over the service door.

Law: what comes from anywhere but a host whose certificate is for its name is no policy. Nothing is
followed elsewhere, nothing is kept open, and neither size nor time is left to the far end. It bears
no mail, so it leaves from the node and not from the virtual server.

RFC 8461 3.3 (HTTPS), 4.2 (SNI). Twisted's own HTTP/1.1 does the work; it is brought in when needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.association.tls import handshake_fault
from mta.errors import MTAError, PermanentFailure, TransientFailure
from mta.interfaces import IClock, IDoors, IResolver, ITls
from mta.model import IPAddress, StsPolicy
from mta.wire.sts import LARGEST_OCTETS, is_plain_text, parse_policy, policy_host

FETCH_SECONDS = 60.0
"""For all of it (RFC 8461 3.3 suggests a minute)."""
PATH = "/.well-known/mta-sts.txt"
PORT = 443
_MOST_ADDRESSES = 4
_MOST_OCTETS = 2 * LARGEST_OCTETS
"""Of an answer, with its head and what frames its body."""
_OK = 200

UNREACHED = "sts-policy-fetch-error"
INVALID = "sts-policy-invalid"
UNTRUSTED = "sts-webpki-invalid"


class Unfetched(NamedTuple):
    """`result` is that of RFC 8460 4.3.2.2; `why` is in our own words."""

    result: str
    why: str


class PolicyFetch:
    """Gets policies."""

    def __init__(self, doors: IDoors, resolver: IResolver, tls: ITls, clock: IClock) -> None:
        self._doors = doors
        self._resolver = resolver
        self._tls = tls
        self._clock = clock

    async def policy(self, domain: str) -> StsPolicy | Unfetched:
        """What the host of the policies of this domain has. Never fails, but can be cancelled."""
        getting = Deferred.fromCoroutine(self._policy(policy_host(domain)))
        late: list[bool] = []

        def too_late() -> None:
            late.append(True)
            getting.cancel()

        timer = self._clock.call_later(FETCH_SECONDS, too_late)
        try:
            return await getting
        except CancelledError:
            if not late:
                raise
            return Unfetched(UNREACHED, f"it took more than {FETCH_SECONDS:g} s")
        finally:
            timer.cancel()

    async def _policy(self, host: str) -> StsPolicy | Unfetched:
        try:
            addresses = await self._resolver.addresses(host)
        except (TransientFailure, PermanentFailure) as fault:
            return Unfetched(UNREACHED, str(fault))
        found: StsPolicy | Unfetched | None = None
        for address in [each for each in addresses if _is_elsewhere(each)][:_MOST_ADDRESSES]:
            connection = _Connection(self._tls, host)
            try:
                await self._doors.service_connect(
                    "policy-fetch", f"tcp:{_bracketed(address)}:{PORT}", connection
                )
                await connection.secured()
                return await _asked(connection, host)
            except MTAError as fault:
                found = Unfetched(connection.fault or UNREACHED, f"{address}: {fault}")
            finally:
                connection.cut()
        return found or Unfetched(UNREACHED, f"{host} has no address in the network")


async def _asked(connection: _Connection, host: str) -> StsPolicy | Unfetched:
    from twisted.web.client import Agent, PartialDownloadError, readBody
    from twisted.web.http_headers import Headers

    agent = Agent.usingEndpointFactory(cast(Any, None), connection)
    fields = Headers({"User-Agent": ["mta"], "Accept": ["text/plain"]})
    try:
        response = await agent.request(b"GET", f"https://{host}{PATH}".encode("ascii"), fields)
        if response.code != _OK:
            return Unfetched(UNREACHED, f"{host} answers {response.code}")
        kinds = response.headers.getRawHeaders(b"content-type", [])
        if len(kinds) != 1 or not is_plain_text(kinds[0].decode("latin-1")):
            return Unfetched(INVALID, f"what {host} has there is not text/plain")
        try:
            octets = await readBody(response)
        except PartialDownloadError as fault:
            # Its length is where the connection ends: only TLS can say that this was the end.
            if not connection.is_closed:
                raise
            octets = fault.response or b""
    except CancelledError:
        raise
    except Exception as fault:  # Twisted's HTTP raises many kinds for damaged answers
        if connection.is_flooded:
            return Unfetched(INVALID, f"{host} sends more than {_MOST_OCTETS} octets")
        reasons = [r.value for r in getattr(fault, "reasons", ())] or [fault]
        if any(isinstance(reason, CancelledError) for reason in reasons):
            raise CancelledError from None
        kind = type(reasons[0]).__name__
        return Unfetched(UNREACHED, f"{host} does not answer in HTTP ({kind})")
    try:
        return parse_policy(octets)
    except ValueError as fault:
        return Unfetched(INVALID, f"the policy is damaged: {fault}")


@implementer(IHandshakeListener)
class _Connection(Protocol):
    """TLS with a host that has proved who it is; then what an HTTP client stands on."""

    def __init__(self, tls: ITls, host: str) -> None:
        self._tls = tls
        self._host = host
        self._secured: Deferred[None] | None = Deferred()
        self._client: Any = None
        self._octets = 0
        self._is_lost = False
        self.is_closed = False
        """By the far end, in TLS's own words (RFC 9112 9.8)."""
        self.is_flooded = False
        self.fault = ""
        """RFC 8460's word for why it came to nothing."""

    def secured(self) -> Deferred[None]:
        """@raise PermanentFailure, TransientFailure: it is another, or not trusted."""
        assert self._secured is not None
        return self._secured

    def cut(self) -> None:
        """It is wanted no more. Once is enough, twice does no harm."""
        self._secured = None
        if self.transport is not None and not self._is_lost:
            cast(Any, self.transport).abortConnection()

    def endpointForURI(self, uri: object) -> _Connection:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        """What Twisted's agent calls an endpoint: this connection, and no other."""
        if self._is_lost:
            return fail(ConnectionLost())
        self._client = client = factory.buildProtocol(None)
        client.makeConnection(self.transport)
        made: Deferred[Any] = Deferred()
        made.callback(client)
        return made

    # -- Protocol

    def connectionMade(self) -> None:
        cast(Any, self.transport).startTLS(self._tls.opening(self._host, True))

    def handshakeCompleted(self) -> None:
        """IHandshakeListener. Who it is comes before anything is asked of it."""
        try:
            self._tls.check_name(cast(Any, self.transport).getHandle(), self._host)
        except PermanentFailure as fault:
            self._not_secured(fault, UNTRUSTED)
        else:
            secured = self._secured
            if secured is not None and not secured.called:
                secured.callback(None)

    def _not_secured(self, fault: MTAError, result: str) -> None:
        secured, self.fault = self._secured, result
        if secured is not None and not secured.called:
            secured.errback(fault)

    def dataReceived(self, data: bytes) -> None:
        self._octets += len(data)
        if self._octets > _MOST_OCTETS:
            self.is_flooded = True
            self.cut()
        elif self._client is not None:
            self._client.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        self.is_closed = reason.check(ConnectionDone) is not None
        if self._client is not None:
            self._client.connectionLost(reason)
        else:
            why = handshake_fault(reason.value)
            result = UNTRUSTED if "certificate" in why else UNREACHED
            self._not_secured(TransientFailure("TLS handshake failed", why), result)


def _is_elsewhere(address: IPAddress) -> bool:
    """A stranger's name must not lead to this node itself."""
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def _bracketed(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
