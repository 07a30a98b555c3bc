"""The kind `dovecot`: Dovecot says who there is, over its auth-client socket.

Law: a connection serves one exchange and goes with it. What is not an answer of Dovecot's (it is
away, silent, or talks nonsense) is transient, with its reason: nobody is let in by it, or refused
for good. What the client says is passed on as it is: Dovecot knows the mechanisms.

The protocol: wire/dovecot_auth.py. The service door opens the socket, under the purpose `auth`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.auth.exchange import Exchange
from mta.errors import LocalProtocolError, MTAError, RemoteProtocolError
from mta.interfaces import IAuthenticator, IAuthExchange, IClock, IDoors, ISurroundings
from mta.model import UNKNOWN_HOST, Authenticated, Challenge, PeerInfo
from mta.settings import Duration, Settings
from mta.wire.dovecot_auth import MOST_CLIENT_ID, Answer, DovecotAuth, Request, not_now

LONGEST_UNIX_PATH = 107
"""Octets: sun_path holds 108 with its final NUL."""
_MECHANISM = re.compile(r"[A-Z0-9_-]{1,20}")


def _socket(path: str) -> str:
    if not os.path.isabs(path):
        raise ValueError(f"{path!r} is not an absolute path")
    octets = len(os.fsencode(path))
    if octets > LONGEST_UNIX_PATH:
        raise ValueError(f"it has {octets} octets; a socket's path has {LONGEST_UNIX_PATH} at most")
    return path


def _mechanisms(names: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(name.upper() for name in names)
    for name in found:
        if not _MECHANISM.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a SASL mechanism, such as PLAIN")
    if len(set(found)) < len(found):
        raise ValueError("a mechanism is listed twice")
    return found


class DovecotSettings(Settings):
    """The keys of `auth: {kind: dovecot}`."""

    socket: Annotated[str, AfterValidator(_socket)] = Field(
        default="/run/dovecot/auth-client",
        description="Dovecot's socket for clients (`unix_listener auth-client` of its `service"
        " auth`); the user that the MTA runs as must be able to connect.",
    )
    mechanisms: Annotated[tuple[str, ...], AfterValidator(_mechanisms)] = Field(
        default=("PLAIN", "LOGIN"),
        min_length=1,
        description="What clients are offered, the strongest first; each must be among Dovecot's"
        " auth_mechanisms.",
    )
    timeout: Duration = Field(
        default=30.0,
        gt=0.0,
        le=300.0,
        description="So long an answer is waited for. Dovecot delays refusals by 2 s, and whatever"
        " an address asks that was refused often by up to 15 s more.",
    )


@implementer(IAuthenticator)
class Dovecot:
    def __init__(self, settings: DovecotSettings, surroundings: ISurroundings) -> None:
        self.mechanisms = settings.mechanisms
        self._endpoint = f"unix:{settings.socket}"
        self._timeout = settings.timeout
        self._clock = surroundings.clock
        self._doors = surroundings.doors

    def begin(self, mechanism: str, peer: PeerInfo) -> IAuthExchange:
        """See IAuthenticator."""
        if mechanism not in self.mechanisms:
            raise LocalProtocolError(f"{mechanism} was not offered")
        request = Request(
            mechanism,
            is_secured=bool(peer.tls),
            local_host=peer.local_host,
            local_port=peer.local_port,
            remote_host="" if peer.host == UNKNOWN_HOST else peer.host,
            remote_port=peer.port,
        )
        return _Asking(self._doors, self._clock, self._endpoint, self._timeout, request)


class _Asking(Exchange):
    def __init__(
        self, doors: IDoors, clock: IClock, endpoint: str, timeout: float, request: Request
    ) -> None:
        super().__init__()
        self._doors = doors
        self._clock = clock
        self._endpoint = endpoint
        self._timeout = timeout
        self._request = request
        self._machine: DovecotAuth | None = None
        self._connection: _Connection | None = None
        self._opening: Deferred[IProtocol] | None = None
        self._awaited: Deferred[Challenge | Authenticated] | None = None

    async def _answer(self, response: bytes | None) -> Challenge | Authenticated:
        if self._connection is not None and not self._connection.is_open:
            raise not_now(f"Dovecot at {self._endpoint} ended the connection", "see its log")
        awaited = self._awaited = Deferred()
        timer = self._clock.call_later(self._timeout, self._late)
        try:
            if self._machine is None:
                self._open(response)
            elif response is None:
                raise LocalProtocolError("a SASL exchange begins once")
            else:
                self._machine.respond(response)
                self._send()
            return await awaited
        finally:
            timer.cancel()
            self._awaited = None

    def _open(self, initial: bytes | None) -> None:
        # Dovecot ends a connection whose CPID another one has: a process's own number would not do.
        client_id = 1 + secrets.randbelow(MOST_CLIENT_ID)
        self._machine = DovecotAuth(client_id, self._request, initial)
        self._connection = _Connection(self._send, self._heard, self._lost)
        self._opening = self._doors.service_connect("auth", self._endpoint, self._connection)
        self._opening.addErrback(self._not_opened)

    def _send(self) -> None:
        if self._machine is not None and self._connection is not None:
            self._connection.send(self._machine.take_output())

    # --- what comes ---

    def _heard(self, octets: bytes) -> None:
        if self._machine is None:
            return
        try:
            answer: Answer | None = self._machine.receive(octets)
        except RemoteProtocolError as fault:
            self._connection_over()
            self._fail(
                not_now(fault.what, fault.why, f"is {self._endpoint} an auth-client socket?")
            )
            return
        self._send()
        if isinstance(answer, MTAError):
            self._fail(answer)
        elif answer is not None:
            awaited, self._awaited = self._awaited, None
            if awaited is not None:
                awaited.callback(answer)

    def _lost(self) -> None:
        self._fail(not_now(f"Dovecot at {self._endpoint} ended the connection", "see its log"))

    def _late(self) -> None:
        why = f"no answer within {self._timeout:g} s"
        self._fail(not_now(f"Dovecot at {self._endpoint} is silent", why))

    def _not_opened(self, failure: Failure) -> None:
        """Ours alone: nobody else waits for the door."""
        why = str(failure.value)
        self._fail(not_now("Dovecot is away", why, "is it running, and may we use its socket?"))

    def _fail(self, fault: MTAError) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.errback(fault)

    def _end(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._machine is not None:
            self._machine.cancel()
            self._send()
        self._connection_over()

    def _connection_over(self) -> None:
        if self._connection is not None:
            self._connection.end()


class _Connection(Protocol):
    """Octets from the door to the exchange and back."""

    def __init__(
        self,
        made: Callable[[], None],
        heard: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._made = made
        self._heard = heard
        self._lost = lost
        self.is_open = False

    def send(self, octets: bytes) -> None:
        if self.is_open and octets:
            self._transport().write(octets)

    def end(self) -> None:
        """Once our last words are written; what Dovecot says behind it is nobody's."""
        if self.is_open:
            self.is_open = False
            self._transport().loseConnection()

    def connectionMade(self) -> None:
        self.is_open = True
        self._made()

    def dataReceived(self, data: bytes) -> None:
        if self.is_open:
            self._heard(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.is_open:
            self.is_open = False
            self._lost()

    def _transport(self) -> Any:
        return self.transport
