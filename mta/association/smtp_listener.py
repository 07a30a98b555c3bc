"""The association kinds `smtp` and `lmtp` in the responder's role: the listener.

Law: it opens its port on every address of the tenure, counts who is connected, and turns away what
is beyond a limit by one reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer

from mta.association.deadline import Deadline
from mta.association.proxy import Balancers
from mta.association.smtp_in import LINGER_SECONDS, PrivilegesOf, SmtpResponder
from mta.association.smtp_settings import (
    ListenerLimits,
    LmtpListenerSettings,
    SmtpListenerSettings,
    SubmissionListenerSettings,
)
from mta.association.transport import abort_now, send_now
from mta.errors import MTAError, StartRefused
from mta.interfaces import (
    IAuthenticatingReception,
    ICertifies,
    IChunkedReception,
    IClock,
    IDrains,
    IListenerKind,
    IPresentedReception,
    IReception,
    IReceptionHost,
    IRevocable,
    ISurroundings,
    ITenure,
    ITlsAsking,
    IUnknownCommands,
)
from mta.model import PeerInfo, Reply
from mta.settings import is_within
from mta.wire.smtp.deliver_by import DeliverBy
from mta.wire.smtp.offers import Offer
from mta.wire.smtp.priority import PriorityTerms
from mta.wire.smtp.release import FutureRelease
from mta.wire.smtp.reply import render
from mta.wire.smtp.server import Privileges, Responder
from mta.wire.smtp.server_auth import NO_AUTH, AuthTerms
from mta.wire.smtp.server_chunks import ChunkingResponder
from mta.wire.smtp.states import Role, Security

__all__ = [
    "LmtpListenerSettings",
    "SmtpListener",
    "SmtpListenerSettings",
    "TurnedAway",
    "build_submission_responder",
]

_NOT_NOW = Reply(421, "4.3.2", (b"Not in service now, try again later",))
_TOO_MANY = Reply(421, "4.7.0", (b"Too many connections, try again later",))
_TOO_MANY_OF_YOURS = Reply(421, "4.7.0", (b"Too many connections from your address",))
_SECURITY = {
    "none": Security.NONE,
    "offer": Security.OFFERED,
    "require": Security.REQUIRED,
    "implicit": Security.PRESENT,
}


class TurnedAway(Protocol):
    """Says one reply and closes: a connection beyond a limit."""

    transport: Any

    def __init__(self, reply: Reply, clock: IClock) -> None:
        self._reply = reply
        self._deadline = Deadline(clock, self._expired)

    def connectionMade(self) -> None:
        send_now(self.transport, render(self._reply))
        self.transport.loseConnection()
        self._deadline.set(LINGER_SECONDS)

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        self._deadline.cancel()

    def _expired(self) -> None:
        abort_now(self.transport)


@implementer(IListenerKind, IDrains)
class SmtpListener:
    """A `listeners:` block: opens its port on every address and counts who is connected."""

    def __init__(
        self, settings: LmtpListenerSettings, surroundings: ISurroundings, lmtp: bool = False
    ) -> None:
        is_submission = isinstance(settings, SubmissionListenerSettings)
        self.kind = "lmtp" if lmtp else "submission" if is_submission else "smtp"
        self.settings = settings
        self.name = settings.name or f"{self.kind}:{settings.port}"
        self._role = Role.LMTP if lmtp else Role.SMTP
        self._surroundings = surroundings
        self._limits = settings.of_machine()
        self._banner = settings.banner.encode()
        self._checkpoint_from = (
            settings.checkpoint_from if isinstance(settings, SmtpListenerSettings) else ()
        )
        self._auth = (
            settings.auth
            if isinstance(settings, SmtpListenerSettings | SubmissionListenerSettings)
            else "none"
        )
        self._balancers = Balancers(
            settings.proxy_from,
            settings.timeouts.proxy,
            self.name,
            surroundings.clock,
            surroundings.telemetry,
        )
        self._tls = surroundings.tls
        self._security = self._secure(settings.tls)
        self._asks: ITlsAsking | None = None
        if settings.client_certificates != "none":
            self._asks = ITlsAsking(surroundings.tls)
            self._asks.asking()  # authorities that cannot be read are refused now
        self._open: dict[SmtpResponder, None] = {}
        self._clients: dict[str, int] = {}
        self._drained: list[Deferred[None]] = []
        self._is_full = False
        self._turned_away = surroundings.telemetry.counter(
            "mta_connections_refused_total",
            "Connections answered with 421 for a limit.",
            listener=self.name,
        )

    def _secure(self, wanted: str) -> Security:
        """@raise StartRefused: TLS is a must here, and there is no certificate for it."""
        if self._tls.has_certificate:
            return _SECURITY[wanted]
        asks = self.settings.client_certificates
        if wanted in {"require", "implicit"} or asks != "none":
            raise StartRefused(
                f"listener {self.name} cannot do `tls: {wanted}`, `client-certificates: {asks}`",
                "no certificate is configured",
                "give one for the network name in tls.certificates",
            )
        return Security.NONE

    def listen(self, tenure: ITenure, host: IReceptionHost) -> Sequence[IRevocable]:
        def build(peer: PeerInfo) -> IProtocol:
            return self.build(tenure, host, peer)

        ports: list[IRevocable] = []
        try:
            for address in tenure.addresses:
                ports.append(
                    self._surroundings.doors.listen(
                        tenure,
                        address,
                        self.settings.port,
                        build,
                        name=self.kind,
                        backlog=self.settings.limits.backlog,
                    )
                )
        except MTAError:
            for port in ports:
                port.revoke()
            raise
        return ports

    def build(self, tenure: ITenure, host: IReceptionHost, peer: PeerInfo) -> IProtocol:
        """The protocol of one accepted connection."""
        if not self._balancers.include(peer):
            return self._answer(tenure, host, peer)
        if self._is_at_limit:  # before a balancer's word is waited for
            return self._turn_away(peer, True)
        return self._balancers.introduce(peer, lambda client: self._answer(tenure, host, client))

    @property
    def _is_at_limit(self) -> bool:
        return len(self._open) + self._balancers.waiting >= self.settings.limits.connections

    def _answer(self, tenure: ITenure, host: IReceptionHost, peer: PeerInfo) -> IProtocol:
        """To a client, whoever named it."""
        limits, clock = self.settings.limits, self._surroundings.clock
        mine = self._clients.get(peer.host, 0)
        if self._is_at_limit or mine >= limits.connections_per_client:
            return self._turn_away(peer, self._is_at_limit)
        peer = replace(peer, listener=self.name, protocol=self._role.value)
        try:
            reception = host.reception(tenure, peer)
        except MTAError as error:
            self._surroundings.telemetry.notice("warning", "association", f"{self.name}: {error}")
            return TurnedAway(_NOT_NOW, clock)
        if self._asks is not None and not ICertifies.providedBy(reception):
            text = f"{self.name}: nobody judges the certificates that clients are asked for"
            self._surroundings.telemetry.notice("error", "association", text)
            return TurnedAway(_NOT_NOW, clock)
        is_chunking = self.settings.chunking and IChunkedReception.providedBy(reception)
        privileges = self._privileges(peer, reception)
        machine = ChunkingResponder if is_chunking else Responder
        known = IAuthenticatingReception(reception, None)
        responder = SmtpResponder(
            machine(
                tenure.network_name.encode(),
                self._role,
                self._limits,
                self._banner,
                checkpoint=privileges.checkpoint,
                security=self._security,
                auth=self._terms(known),
                relays=privileges.relays,
                offers=self._offers() if known is not None else (),
                requiretls=self.settings.requiretls,
                xclient=privileges.xclient,
                tells_unknown=_tells_unknown(reception),
            ),
            reception,
            peer,
            self.settings.timeouts,
            tls=self._tls,
            asks=self._asks,
            clock=clock,
            telemetry=self._surroundings.telemetry,
            on_lost=self._ended,
            readmit=self._readmit,
        )
        responder.association_kind = self.kind
        self._open[responder] = None
        self._clients[peer.host] = mine + 1
        return responder

    def _privileges(self, client: PeerInfo, reception: IReception) -> Privileges:
        known, upstreams = IAuthenticatingReception(reception, None), self.settings.xclient_from
        return Privileges(
            bool(self._checkpoint_from) and is_within(client.host, self._checkpoint_from),
            known is not None and known.admitted,
            bool(upstreams)
            and is_within(client.host, upstreams)
            and IPresentedReception.providedBy(reception),
        )

    def _readmit(self, responder: SmtpResponder, client: PeerInfo) -> Reply | PrivilegesOf:
        """It will speak for `client`, who is counted from now on; or there are too many of his."""
        former = responder.peer.host
        if client.host != former:
            if self._clients.get(client.host, 0) >= self.settings.limits.connections_per_client:
                self._say_full(client, False)
                return _TOO_MANY_OF_YOURS
            self._discount(former)
            self._clients[client.host] = self._clients.get(client.host, 0) + 1
        return lambda reception: self._privileges(client, reception)

    def _offers(self) -> list[Offer]:
        """To clients that may relay."""
        offers: list[Offer] = []
        seconds = int(self.settings.future_release)
        if seconds:
            latest = int(self._surroundings.clock.wall()) + seconds
            offers.append(FutureRelease(seconds, latest))
        if self.settings.deliver_by:
            offers.append(DeliverBy(int(self.settings.deliver_by_least)))
        priorities = self.settings.mt_priority.of_machine()
        if priorities is not None:
            offers.append(priorities)
        return offers

    def _terms(self, known: IAuthenticatingReception | None) -> AuthTerms:
        if self._auth == "none" or known is None:
            return NO_AUTH
        return AuthTerms(known.mechanisms, in_clear=self._auth == "clear")

    @property
    def open_associations(self) -> int:
        return len(self._open)

    def drain(self) -> Deferred[None]:
        self._balancers.dismiss(lambda: TurnedAway(_NOT_NOW, self._surroundings.clock))
        if not self._open:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._drained.append(done)
        for responder in tuple(self._open):
            responder.drain()
        return done

    def _turn_away(self, peer: PeerInfo, full: bool) -> TurnedAway:
        self._say_full(peer, full)
        return TurnedAway(_TOO_MANY if full else _TOO_MANY_OF_YOURS, self._surroundings.clock)

    def _say_full(self, peer: PeerInfo, full: bool) -> None:
        self._turned_away.inc()
        if not self._is_full:  # one line a flood
            self._is_full = True
            limits = self.settings.limits
            which = (
                f"{limits.connections} connections"
                if full
                else f"{limits.connections_per_client} connections from {peer.host}"
            )
            self._surroundings.telemetry.notice(
                "warning", "association", f"{self.name}: {which} are open, more are told 421"
            )

    def _discount(self, host: str) -> None:
        left = self._clients.get(host, 1) - 1
        if left:
            self._clients[host] = left
        else:
            self._clients.pop(host, None)

    def _ended(self, responder: SmtpResponder) -> None:
        if responder not in self._open:
            return
        del self._open[responder]
        self._discount(responder.peer.host)
        if len(self._open) < self.settings.limits.connections // 2:
            self._is_full = False
        if not self._open:
            drained, self._drained = self._drained, []
            for done in drained:
                done.callback(None)


def build_submission_responder(
    tenure: ITenure,
    host: IReceptionHost,
    peer: PeerInfo,
    surroundings: ISurroundings,
    settings: SmtpListenerSettings | None = None,
) -> IProtocol:
    """The responder for this node's own programs (submit.sock). `host` sets the size limit."""
    settings = settings or SmtpListenerSettings(limits=ListenerLimits(size=0, line=0), tls="none")
    reception = host.reception(tenure, peer)
    return SmtpResponder(
        Responder(
            tenure.network_name.encode(),
            Role.SMTP,
            settings.of_machine(),
            relays=True,
            offers=[PriorityTerms()],
            tells_unknown=_tells_unknown(reception),
        ),
        reception,
        peer,
        settings.timeouts,
        clock=surroundings.clock,
        telemetry=surroundings.telemetry,
    )


def _tells_unknown(reception: IReception) -> bool:
    hears = IUnknownCommands(reception, None)
    return hears is not None and hears.wants_unknown
