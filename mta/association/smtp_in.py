"""The association kinds `smtp` and `lmtp` in the responder's role: the adapter of one association.

Law: the machine in wire/smtp/server.py decides what is said; here octets are fed and written, hooks
are asked one at a time, deadlines are kept. A 250 for content is written only with the answer of
`IReception.end`; `acknowledged` follows the write and comes before the next `end`. Fenced or
revoked: the association is reset without a reply.

RFC 5321 4.5.3.2.7 (5 minutes for a command), 4.5.3.2.5 (a block of data), RFC 2920.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer

from mta.association.deadline import Deadline
from mta.association.smtp_settings import ListenerTimeouts
from mta.association.tls import handshake_fault
from mta.association.transport import abort_now, send_now
from mta.association.xclient import client_of, tell
from mta.errors import Failure, Fenced, Full, MTAError, SpoolError, TenureRevoked, Unknown
from mta.interfaces import (
    IAuthenticatingReception,
    ICertifies,
    IChunkedReception,
    IClock,
    IPresentedReception,
    IReception,
    ISecured,
    ITls,
    ITlsAsking,
    IUnknownCommands,
)
from mta.model import PeerInfo, Reply
from mta.telemetry import Rejected as RejectedEvent
from mta.telemetry import Secured, Telemetry
from mta.wire.smtp.events import (
    Auth,
    AuthResponse,
    Chunk,
    Data,
    End,
    Helo,
    Mail,
    Quit,
    Rcpt,
    Rejected,
    Reset,
    StartTls,
    UnknownCommand,
    Xclient,
)
from mta.wire.smtp.server import Privileges, Responder
from mta.wire.smtp.states import Security, State

BUFFER_OCTETS = 65536
"""Unread octets above which a peer must wait: one read of the reactor's."""
LINGER_SECONDS = 30.0
"""How long a peer may take to read our last words."""

_AT_REST = frozenset((State.START, State.IDLE))
_IN_CONTENT = frozenset((State.CONTENT, State.CHUNK))
_LOCAL_ERROR = Reply(451, "4.3.0", (b"Local error, try again later",))
_FULL = Reply(452, "4.3.1", (b"No room for mail now, try again later",))
_TIMEOUT = Reply(421, "4.4.2", (b"Timeout, closing the connection",))
_SHUTTING_DOWN = Reply(421, "4.3.2", (b"Shutting down, try again",))


PrivilegesOf = Callable[[IReception], Privileges]
Answer = Reply | None | Deferred[Reply | None]

# --- the adapter ------------------------------------------------------------------------------


@implementer(IPushProducer, IHalfCloseableProtocol, IHandshakeListener)
class SmtpResponder(Protocol):
    """One accepted association."""

    transport: Any
    association_kind = "smtp"

    def __init__(
        self,
        machine: Responder,
        reception: IReception,
        peer: PeerInfo,
        timeouts: ListenerTimeouts,
        *,
        clock: IClock,
        telemetry: Telemetry,
        on_lost: Callable[[SmtpResponder], None] | None = None,
        tls: ITls | None = None,
        asks: ITlsAsking | None = None,
        readmit: Callable[[SmtpResponder, PeerInfo], Reply | PrivilegesOf] | None = None,
    ) -> None:
        """With `asks` clients are asked for a certificate, which the reception judges. `readmit` is
        asked when the peer comes to speak for another, where that is offered.
        """
        self.peer = peer
        self._readmit = readmit
        self._tls = tls
        self._asks = asks
        self._is_securing = False
        self._machine = machine
        self._reception = reception
        self._timeouts = timeouts
        self._clock = clock
        self._telemetry = telemetry
        self._on_lost = on_lost
        self._deadline = Deadline(clock, self._expired)
        self._transaction_ends = clock.monotonic() + timeouts.transaction
        self._waiting: Deferred[Any] | None = None
        """A hook's answer, or the end of a pause that a chunk asked for."""
        self._is_pumping = False
        self._is_choked = False
        self._is_reading_paused = False
        self._is_unacknowledged = False
        self._is_ending = False
        self._is_lost = False
        self._is_draining = False
        self._content_fault: Reply | None = None
        """What went wrong with the content on our side, to be said at its end."""
        self._is_deaf = False
        """The peer will say nothing more; it may still listen."""

    # -- Protocol

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        if self._machine.security is Security.PRESENT:
            self._begin_tls()
            return
        self._ask_connected()
        self._pump()

    def dataReceived(self, data: bytes) -> None:
        if self._is_ending:
            return
        machine = self._machine
        machine.receive(data)
        if self._waiting is None:
            self._pump()
        if machine.buffered_octets > BUFFER_OCTETS and not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pauseProducing()

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        if self._is_lost:
            return
        machine, stage = self._machine, ""
        if self._is_securing:
            self._not_secured(reason)
        if not self._is_ending:
            stage = machine.stage
        self._is_lost = self._is_ending = True
        self._deadline.cancel()
        waiting, self._waiting = self._waiting, None
        # What was committed stays ours, whoever has gone; the rest is told by `closed`.
        if waiting is not None and not machine.is_ending_message:
            waiting.cancel()
        self._reception.closed(stage, machine.commands)
        if self._on_lost is not None:
            self._on_lost(self)

    # -- TLS

    def _begin_tls(self) -> None:
        assert self._tls is not None, "the listener offers TLS with what it needs for it"
        self._is_securing = True
        self._deadline.set(self._timeouts.handshake)
        asks = self._asks
        self.transport.startTLS(self._tls.accepting() if asks is None else asks.asking())

    def handshakeCompleted(self) -> None:
        """IHandshakeListener. What was said before is forgotten, by both sides."""
        assert self._tls is not None
        self._is_securing = False
        handle, reception = self.transport.getHandle(), self._reception
        session = self._tls.describe(handle)
        peer = self.peer = replace(self.peer, tls=session)
        secured = ISecured(reception, None)
        if secured is not None:
            secured.secured(session)
        trust, fingerprint = "Anonymous", ""
        if self._asks is not None:
            certificate = self._asks.shown(handle)
            trust = ICertifies(reception).certified(certificate)
            fingerprint = "" if certificate is None else certificate.fingerprint
        self._telemetry.event(
            Secured(peer.association, "in", peer.client, trust, session, fingerprint)
        )
        is_greeting = self._machine.state is State.GREETING
        known = IAuthenticatingReception(reception, None)
        self._machine.secured(relays=known is not None and known.admitted)
        if is_greeting:
            self._ask_connected()
        self._pump()

    def _not_secured(self, reason: TwistedFailure) -> None:
        self._telemetry.counter(
            "mta_tls_failures_total", "TLS handshakes that came to nothing.", direction="in"
        ).inc()
        why = handshake_fault(reason.value)
        text = f"TLS handshake with {self.peer.host} failed: {why}"
        self._telemetry.notice("info", "association", f"{self.peer.association}: {text}")

    # -- IHalfCloseableProtocol: what the peer has said is answered, and the 250 reaches it

    def readConnectionLost(self) -> None:
        self._is_deaf = True
        self._pump()

    def writeConnectionLost(self) -> None:
        """We close both directions or none."""

    # -- IPushProducer: the peer does not read what we say

    def pauseProducing(self) -> None:
        self._is_choked = True

    def resumeProducing(self) -> None:
        self._is_choked = False
        self._pump()

    def stopProducing(self) -> None:
        """The transport is going; connectionLost follows."""

    # -- the listener's words

    def drain(self) -> None:
        """End as soon as no transaction is open."""
        self._is_draining = True
        self._pump()

    def abort(self) -> None:
        """Reset the connection, now and without a word."""
        if not self._is_lost:
            self._is_ending = True
            abort_now(self.transport)

    # -- the loop

    def _pump(self) -> None:
        """Hand out events until an answer is owed, the peer must read first, or none is left."""
        if self._is_pumping or self._is_securing:
            return
        self._is_pumping = True
        machine = self._machine
        is_moved = False
        try:
            while self._waiting is None and not self._is_choked and not self._is_ending:
                event = machine.next_event()
                if event is None:
                    break
                is_moved = True
                kind = type(event)
                try:
                    ask = _ASKED.get(kind)
                    if ask is None:
                        _TOLD[kind](self, event)
                        continue
                    answer = ask(self, event)
                    if isinstance(answer, Deferred):
                        self._waiting = answer
                        answer.addCallbacks(self._answered, self._failed)
                    else:
                        machine.answer(answer)
                except Exception as error:
                    self._failed_with(error)
        finally:
            self._is_pumping = False
        if self._is_lost or self._is_securing:
            return
        if self._is_draining and machine.state in _AT_REST and not machine.is_awaiting:
            machine.shut_down(_SHUTTING_DOWN)
            self._is_draining = False
            self._pump()
            return
        if self._flush():
            is_moved = True
        if self._is_ending:
            return
        if self._waiting is not None or machine.is_awaiting:
            self._deadline.clear()
        elif self._is_deaf and not self._is_choked:
            self._hang_up()
            return
        elif is_moved or not self._deadline.is_set or machine.is_swallowing:
            self._arm()
        if self._is_reading_paused and machine.buffered_octets <= BUFFER_OCTETS:
            self._is_reading_paused = False
            self.transport.resumeProducing()

    def _hang_up(self) -> None:
        """Everything that the peer said before it closed its direction is answered."""
        if not self.transport.disconnecting:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._deadline.set(LINGER_SECONDS)

    def _arm(self) -> None:
        timeouts, state, now = self._timeouts, self._machine.state, self._clock.monotonic()
        seconds = timeouts.block if state in _IN_CONTENT else timeouts.command
        if state not in _AT_REST:
            left = self._transaction_ends - now
            if state is State.CLOSED:
                seconds = LINGER_SECONDS
            elif left < seconds:
                seconds = max(left, 0.0)
        self._deadline.set(seconds, now)

    def _expired(self) -> None:
        if self._is_ending or self._is_securing:
            self.abort()
            return
        if self._is_choked or self._is_deaf:
            self.abort()  # it would not read our reason either
            return
        self._machine.shut_down(_TIMEOUT)
        self._pump()

    def _flush(self) -> bool:
        """Send what was said; True when there was something."""
        data = self._machine.take_output()
        if data:
            send_now(self.transport, data)
        if self._is_unacknowledged:
            self._is_unacknowledged = False
            self._reception.acknowledged()
        return bool(data)

    # -- hooks

    def _answered(self, reply: Reply | None) -> None:
        self._waiting = None
        if not self._is_ending:
            self._machine.answer(reply)
            self._pump()

    def _ended_message(self, reply: Reply) -> None:
        self._waiting = None
        if not self._is_ending:
            self._machine.answer(reply)
            self._is_unacknowledged = True
            self._pump()

    def _failed(self, failure: TwistedFailure) -> None:
        self._waiting = None
        self._failed_with(failure.value)
        self._pump()

    def _failed_with(self, error: BaseException | None) -> None:
        """A hook raised: the peer gets a reply that says nothing of our insides, or a reset."""
        reply = self._reply_to(error)
        if reply is None:
            return
        machine = self._machine
        if machine.state is State.GREETING:
            machine.greet(reply if reply.is_permanent else Reply(421, reply.enhanced, reply.lines))
        elif machine.is_awaiting:
            machine.answer(reply)
        else:
            self.abort()

    def _reply_to(self, error: BaseException | None) -> Reply | None:
        """What the peer is told of an error; None: nothing, it was reset or has gone."""
        if self._is_ending or isinstance(error, CancelledError):
            return None
        if isinstance(error, Fenced | TenureRevoked | Unknown):
            self.abort()
            return None
        if isinstance(error, Failure):
            return Reply(error.code, error.enhanced, (b"Refused",))
        if isinstance(error, Full):
            return _FULL
        self._notice(error)
        return _LOCAL_ERROR

    def _notice(self, error: BaseException | None) -> None:
        what = str(error) if isinstance(error, MTAError) else f"{type(error).__name__}: {error}"
        level = "warning" if isinstance(error, SpoolError) else "error"
        text = f"{self.peer.association}: {what} after {self._machine.stage}"
        self._telemetry.notice(level, "association", text)

    def _ask_connected(self) -> None:
        try:
            self._greet(self._reception.connected())
        except Exception as error:
            self._failed_with(error)

    def _greet(self, answer: Answer) -> None:
        if isinstance(answer, Deferred):
            self._waiting = answer
            answer.addCallbacks(self._connected, self._failed)
        else:
            self._machine.greet(answer)

    def _connected(self, refusal: Reply | None) -> None:
        self._waiting = None
        if not self._is_ending:
            self._machine.greet(refusal)
            self._pump()

    def _on_helo(self, event: Helo) -> Answer:
        return self._reception.helo(event.name, event.protocol)

    def _on_starttls(self, event: StartTls) -> None:
        self._machine.answer(None)
        self._flush()
        self._begin_tls()

    def _on_auth(self, event: Auth) -> Answer:
        return IAuthenticatingReception(self._reception).auth(event.mechanism, event.initial)

    def _on_auth_response(self, event: AuthResponse) -> Answer:
        return IAuthenticatingReception(self._reception).auth_response(event.response)

    def _on_xclient(self, event: Xclient) -> None:
        assert self._readmit is not None, "the listener offers XCLIENT with what it needs for it"
        machine, reception, upstream, said = self._machine, self._reception, self.peer, event.said
        client = client_of(upstream, said)
        privileges = self._readmit(self, client)
        if isinstance(privileges, Reply):
            machine.answer(privileges)
            return
        self.peer = client
        tell(self._telemetry, upstream, client, said)
        machine.answer(None)
        presented = IPresentedReception(reception).presented
        answer = presented(client, said.helo, event.protocol, said.login)
        machine.welcome(privileges(reception))
        self._greet(answer)

    def _on_mail(self, event: Mail) -> Answer:
        if self._is_draining:  # a client that pipelines is never at rest
            return _SHUTTING_DOWN
        self._transaction_ends = self._clock.monotonic() + self._timeouts.transaction
        return self._reception.mail(event.sender, event.parameters)

    def _on_rcpt(self, event: Rcpt) -> Answer:
        return self._reception.rcpt(event.recipient, event.parameters)

    def _on_unknown(self, event: UnknownCommand) -> Answer:
        return IUnknownCommands(self._reception).unknown(event.line)

    def _on_data(self, event: Data) -> Answer:
        reception = self._reception
        return IChunkedReception(reception).bdat() if event.is_chunked else reception.data()

    def _on_chunk(self, event: Chunk) -> None:
        if self._content_fault is not None:
            return
        try:
            pause = self._reception.chunk(event.data)
        except Exception as error:
            self._content_fault = self._reply_to(error)
            return
        if pause is not None:
            self._waiting = pause
            pause.addCallbacks(self._go_on, self._pause_failed)

    def _pause_failed(self, failure: TwistedFailure) -> None:
        """Nothing may be said before the content ends; its end may be on its way already."""
        self._waiting = None
        self._content_fault = self._reply_to(failure.value)
        self._pump()

    def _go_on(self, _: object) -> None:
        self._waiting = None
        self._pump()

    def _on_end(self, event: End) -> None:
        if self._is_unacknowledged:
            self._flush()  # one unread reply an association at most
        fault, self._content_fault = event.fault or self._content_fault, None
        answer = self._reception.end(fault)
        self._waiting = answer
        answer.addCallbacks(self._ended_message, self._failed)

    def _on_reset(self, event: Reset) -> None:
        self._reception.reset()

    def _on_rejected(self, event: Rejected) -> None:
        machine, peer = self._machine, self.peer
        self._telemetry.event(
            RejectedEvent(
                association=peer.association,
                client=peer.client,
                stage=event.stage,
                reply=event.reply.text,
                sender=event.sender,
                recipient=event.recipient,
                helo=machine.helo,
                protocol=machine.protocol,
            )
        )

    def _on_quit(self, event: Quit) -> None:
        self._flush()
        self._is_ending = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._deadline.set(LINGER_SECONDS)


_ASKED: dict[type[Any], Callable[[SmtpResponder, Any], Answer]] = {
    Helo: SmtpResponder._on_helo,
    Auth: SmtpResponder._on_auth,
    AuthResponse: SmtpResponder._on_auth_response,
    Mail: SmtpResponder._on_mail,
    Rcpt: SmtpResponder._on_rcpt,
    UnknownCommand: SmtpResponder._on_unknown,
    Data: SmtpResponder._on_data,
}
"""What the reception answers is the machine's answer."""
_TOLD: dict[type[Any], Callable[[SmtpResponder, Any], None]] = {
    StartTls: SmtpResponder._on_starttls,
    Xclient: SmtpResponder._on_xclient,
    Chunk: SmtpResponder._on_chunk,
    End: SmtpResponder._on_end,
    Reset: SmtpResponder._on_reset,
    Rejected: SmtpResponder._on_rejected,
    Quit: SmtpResponder._on_quit,
}
