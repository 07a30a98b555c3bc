"""The association kinds `smtp` and `lmtp` in the initiator's role.

Law: the machine in wire/smtp/client.py decides; here octets are fed and written, deadlines are
kept, and its events become the Deferreds of ISender. The final dot leaves only inside `commit`; the
dot behind a content that took time only after another look at the epoch (house.md law 5).

Contents that do not lie in memory are read piece by piece as the transport takes them: at most one
piece is under way besides what the transport holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mta import errors
from mta.association.deadline import Deadline
from mta.association.flusher import Flusher
from mta.association.tls import alert_of, handshake_fault
from mta.association.tls_results import OTHER
from mta.association.tls_wish import TlsWish
from mta.association.transport import abort_now, send_now
from mta.errors import MTAError, PermanentFailure, TransientFailure
from mta.interfaces import (
    IBodyTypes,
    ICheckpoints,
    IClock,
    IContent,
    IDeliversBy,
    IEnds,
    IExecutor,
    ILimits,
    INotifies,
    IPriorities,
    IRevocable,
    ISender,
    ITenure,
)
from mta.model import (
    BodyType,
    ContentForm,
    Envelope,
    FourTuple,
    Outcome,
    OutcomeKind,
    Reply,
    Requires,
)
from mta.telemetry import Secured
from mta.wire.sasl_client import derive
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_envelope import takes_binary
from mta.wire.smtp.client_states import (
    Committed,
    DeriveKey,
    Ended,
    Event,
    NotAuthenticated,
    NotSent,
    Opened,
    Prepared,
    Refused,
    StartTls,
    State,
    Unfit,
    Wait,
    Withdrawn,
)

Outcomes = tuple[Outcome, ...]
_AT_ONCE = 65536
"""Octets of output under which a following envelope is waited for, to leave in the same write."""


@implementer(ISender, IEnds, IBodyTypes, ICheckpoints, ILimits, INotifies, IDeliversBy, IPriorities)
@implementer(IPushProducer, IRevocable, IHandshakeListener)
class SmtpSender(Protocol):
    """One association that we opened. Made by SmtpInitiator and LmtpInitiator."""

    def __init__(
        self,
        slot: str,
        kind: str,
        relay: str,
        machine: Initiator,
        *,
        tenure: ITenure,
        clock: IClock,
        flusher: Flusher,
        executor: IExecutor,
        checkpoint: bool = False,
        tunnel: bool = True,
        wish: TlsWish | None = None,
    ) -> None:
        self.auth_fault = ""
        """Why the peer did not let us in with our credentials; "" as long as it did not say so."""
        self._executor = executor
        self._deriving: Deferred[bytes] | None = None
        self.tls_fault = ""
        """Why TLS came to nothing; "" as long as it did not."""
        self.tls_result = ""
        """The same in RFC 8460's words."""
        self._opening: Any = None
        self._ends_with = "4.4.2"
        self._wish = wish
        self.slot = slot
        self.association_kind = kind
        self.relay = relay
        self.source = ""
        self.ends: FourTuple | None = None
        self._machine = machine
        self._clock = clock
        self._flusher = flusher
        self._checkpoint = checkpoint
        self._tunnel = tunnel
        self._deadline = Deadline(clock, self._expired)
        self._waited: Wait | None = None
        self._is_lost = False
        self._is_paused = False
        self._tenure = tenure
        self._is_adopted = False
        self._opened: Deferred[SmtpSender] | None = None
        self._prepared: Deferred[Outcomes] | None = None
        self._committed: Deferred[Outcomes] | None = None
        self._withdrawn: Deferred[None] | None = None
        self._closed: list[Deferred[None]] = []
        self._asked: tuple[int, ...] = ()
        self._left: tuple[int, ...] = ()
        self._gone = Reply(451, "4.4.2", (b"the association has ended; the message was not sent",))
        self._content: IContent | None = None
        self._is_opaque = False
        """Of what was prepared last; `_streams_opaque` is of the content under way."""
        self._streams_opaque = False
        self._octets = 0
        self._reading: Deferred[bytes] | None = None
        self._is_looping = False

    # -- ISender

    @property
    def is_open(self) -> bool:
        return self._machine.state is State.OPEN and not self._is_lost

    @property
    def can_overlap(self) -> bool:
        return self._machine.pipelines

    @property
    def is_secure(self) -> bool:
        return self._machine.is_secure

    @property
    def is_spent(self) -> bool:
        return self._machine.is_spent

    def opened(self, *, adopt: bool = False) -> Deferred[SmtpSender]:
        """Fires with this sender when the greetings are over. `adopt`: the door did not see to it
        that the tenure can revoke this association. @raise TransientFailure, PermanentFailure.
        """
        self._opened = Deferred(lambda _: self._abort("cancelled"))
        if adopt:
            try:
                self._tenure.adopt(self)
                self._is_adopted = True
            except MTAError:
                opened, self._opened = self._opened, None
                opened.errback()
                self._abort("the tenure has ended")
                return opened
        opened = self._opened
        if self._is_lost:
            self._give_up(self._gone)
        return opened

    def prepare(
        self,
        queue_id: str,
        envelope: Envelope,
        recipients: tuple[int, ...],
        size_octets: int,
        *,
        transaction: str = "",
        is_resend: bool = False,
    ) -> Deferred[Outcomes]:
        done = self._prepared = Deferred(self._prepare_cancelled)
        self._asked = recipients
        self._is_opaque = envelope.content_form is ContentForm.OPAQUE
        everyone = envelope.recipients
        body, deliver_by = envelope.body_type, envelope.deliver_by
        events = self._machine.prepare(
            queue_id,
            envelope.sender,
            [(index, everyone[index].address) for index in recipients],
            size_octets,
            body is not BodyType.SEVEN_BIT or bool(envelope.requires & Requires.EIGHT_BIT),
            transid=transaction.encode(),
            is_resend=is_resend,
            envelope=envelope,
            binary=body is BodyType.BINARY_MIME,
            chunked=self._is_opaque and self._machine.chunks,
            seconds_left=0.0 if deliver_by is None else deliver_by - self._clock.wall(),
        )
        self.flush()
        if events:
            self._handle(events)
        return done

    prepare_named = prepare
    """ICheckpoints'."""

    def commit(self, content: IContent) -> Deferred[Outcomes]:
        if not self.is_open:
            gone = self._gone
            return succeed(tuple(Outcome(i, OutcomeKind.DEFERRED, gone) for i in self._left))
        done = self._committed = Deferred(lambda _: self._abort("cancelled"))
        machine = self._machine
        if machine.transid and machine.is_content_known:
            machine.finish()
            self.flush()
            return done
        resident = content.resident
        self._streams_opaque = self._is_opaque
        if resident is None:
            machine.content(b"")
            self._content = content
            self._octets = 0
            self.flush()
            self._read_on()
            return done
        for piece in resident:
            machine.content(piece, opaque=self._is_opaque)
        machine.finish()
        if machine.pipelines and content.size_octets < _AT_ONCE:
            # The next envelope is likely to come in this very turn, and then leaves with it.
            self._flusher.soon(self)
        else:
            self.flush()
        return done

    def withdraw(self) -> Deferred[None]:
        done = self._withdrawn = Deferred()
        events = self._machine.withdraw()
        self.flush()
        self._handle(events)
        if self._withdrawn is not None and not self._machine.is_preparing:
            self._on_withdrawn(Withdrawn(""))  # there was nothing to withdraw
        return done

    def close(self) -> Deferred[None]:
        if self._is_lost:
            return succeed(None)
        done: Deferred[None] = Deferred(lambda _: self._abort("cancelled"))
        self._closed.append(done)
        if self._machine.state is not State.QUITTING:
            events = self._machine.quit()
            self.flush()
            self._handle(events)
        return done

    # -- INotifies, IPriorities

    @property
    def tunnels(self) -> bool:
        return self._tunnel and b"MT-PRIORITY" not in self._machine.extensions

    @property
    def notifies(self) -> bool:
        return self._machine.notifies

    # -- IDeliversBy

    @property
    def delivers_by(self) -> bool:
        return self._machine.delivers_by

    def keep_time(self, clock: IClock) -> None:
        self._clock = clock

    # -- IBodyTypes

    @property
    def takes(self) -> BodyType:
        offered = self._machine.extensions
        if takes_binary(offered):
            return BodyType.BINARY_MIME
        return BodyType.EIGHT_BIT_MIME if b"8BITMIME" in offered else BodyType.SEVEN_BIT

    # -- ICheckpoints

    @property
    def can_checkpoint(self) -> bool:
        return self._checkpoint and self._machine.checkpoints

    @property
    def transaction(self) -> str:
        return self._machine.transid.decode()

    def cut(self) -> None:
        self._abort("cut off")

    def revoke(self) -> None:
        """IRevocable: only where the door has not adopted the transport itself."""
        if not self._is_lost and self.transport is not None:
            abort_now(self.transport)

    # -- Protocol

    def connectionMade(self) -> None:
        transport: Any = self.transport
        here, there = transport.getHost(), transport.getPeer()
        self.source = getattr(here, "host", "")
        if self.source:  # a UNIX socket has none
            self.ends = FourTuple(self.source, here.port, there.host, there.port)
        transport.registerProducer(self, True)
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        machine = self._machine
        before = machine.replies_read
        events = machine.receive(data)
        if machine.replies_read != before:
            self._waited = None  # the clock of what is owed next begins now
        self.flush()
        if events:
            self._handle(events)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        self._deadline.cancel()
        if self._machine.state is State.HANDSHAKE:
            self._not_secured(handshake_fault(reason.value), self._opening.result)
        alert = alert_of(reason.value)
        why = (f"the connection was lost: TLS: {alert}",) if alert else ()
        self._handle(self._machine.connection_lost(*why))
        if self._is_adopted:
            self._tenure.disown(self)
        closed, self._closed = self._closed, []
        for done in closed:
            if not done.called:  # one that was cancelled has ended already
                done.callback(None)

    # -- IPushProducer: the transport's back-pressure

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        if self._content is not None:
            self._waited = None  # the peer took something
            self.flush()
            self._read_on()

    def stopProducing(self) -> None:
        """The transport is going; connectionLost follows."""

    # -- output and time

    def flush(self) -> None:
        """Send what the machine has said, and keep the deadline of what it waits for."""
        machine = self._machine
        data = machine.take_output()
        if data and not self._is_lost:
            send_now(self.transport, data)
        timeout = machine.timeout
        if timeout is None or self._is_lost:
            self._waited = None  # what was set may lie there: `expire` finds nothing owed
        elif timeout[0] is not self._waited:
            self._waited, seconds = timeout
            self._deadline.set(seconds)

    def _expired(self) -> None:
        if self._machine.state is State.HANDSHAKE:
            self._not_secured("it took too long", OTHER)
        else:
            self._handle(self._machine.expire())

    # -- TLS

    def _on_start_tls(self, event: StartTls) -> None:
        wish, transport = self._wish, self.transport
        assert wish is not None, "nobody asked for TLS"
        self._opening = wish.opening()
        cast(Any, transport).startTLS(self._opening)

    def handshakeCompleted(self) -> None:
        """IHandshakeListener. Who the peer is comes before anything is said to it."""
        wish = self._wish
        assert wish is not None
        handle = cast(Any, self.transport).getHandle()
        try:
            wish.check(handle)
        except MTAError as fault:
            self._not_secured(str(fault), getattr(fault, "result", OTHER), enhanced="4.7.5")
            return
        trust = "Verified" if wish.asks else "Untrusted"
        session = wish.tls.describe(handle)
        wish.telemetry.event(Secured(self.slot, "out", self.relay, trust, session))
        self._machine.secured(verified=wish.asks)
        self.flush()

    def _not_secured(self, why: str, result: str, enhanced: str = "4.4.2") -> None:
        self.tls_fault, self.tls_result = why, result
        self._ends_with = enhanced
        wish = self._wish
        if wish is not None:
            wish.telemetry.counter(
                "mta_tls_failures_total", "TLS handshakes that came to nothing.", direction="out"
            ).inc()
        self._handle(self._machine.connection_lost(f"TLS handshake failed: {why}"))

    # -- credentials

    def _on_derive_key(self, event: DeriveKey) -> None:
        self._deriving = deriving = self._executor.submit(derive, *event)
        deriving.addCallbacks(self._derived, self._underived)

    def _derived(self, key: bytes) -> None:
        self._deriving = None
        self._machine.derived(key)
        self.flush()

    def _underived(self, failure: Failure) -> None:
        self._deriving = None
        self._abort(f"no key could be derived: {failure.value}")

    def _on_not_authenticated(self, event: NotAuthenticated) -> None:
        self.auth_fault = event.reply.text

    # -- content

    def _read_on(self) -> None:
        """Read and write until the transport has enough, the content ends, or a read takes time."""
        if self._is_looping:
            return
        self._is_looping = True
        try:
            while self._content is not None and self._reading is None and not self._is_paused:
                self._reading = reading = self._content.read()
                reading.addCallbacks(self._piece, self._unreadable)
        finally:
            self._is_looping = False

    def _piece(self, piece: bytes) -> None:
        self._reading = None
        content = self._content
        if content is None:
            return
        if not piece:
            self._content = None
            if self._octets != content.size_octets:
                self._give_back(f"the content has {self._octets} of {content.size_octets} octets")
                return
            try:
                # The agent asked before the content began, and that may be minutes ago.
                self._tenure.check()
            except MTAError as fault:
                self._give_back(str(fault))
                return
            self._machine.finish()
        else:
            self._octets += len(piece)
            self._machine.content(piece, opaque=self._streams_opaque)
            self._waited = None
        self.flush()
        self._read_on()

    def _unreadable(self, failure: Failure) -> None:
        self._reading = None
        if self._content is not None:
            self._give_back(f"the content cannot be read: {failure.value}")

    def _give_back(self, why: str) -> None:
        """No dot may follow this content, so the peer has no message; the association ends."""
        self._content = None
        self._handle(self._machine.connection_lost(why))

    # -- events

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            _HANDLERS[type(event)](self, event)

    def _on_opened(self, event: Opened) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.callback(self)

    def _on_refused(self, event: Refused) -> None:
        self._give_up(event.reply)

    def _on_prepared(self, event: Prepared) -> None:
        done, self._prepared = self._prepared, None
        settled = {outcome.recipient for outcome in event.outcomes}
        asked = self._asked
        self._left = tuple(i for i in asked if i not in settled) if settled else asked
        if done is not None:
            done.callback(event.outcomes)

    def _on_unfit(self, event: Unfit) -> None:
        reply = event.reply
        done, self._prepared = self._prepared, None
        if done is not None:
            why = b" ".join(reply.lines).decode()
            done.errback(errors.Unfit(self.relay, why, code=reply.code, enhanced=reply.enhanced))

    def _on_not_sent(self, event: NotSent) -> None:
        self._gone = event.reply
        done, self._prepared = self._prepared, None
        if done is not None:
            done.errback(_failure(self.relay, event.reply))

    def _on_committed(self, event: Committed) -> None:
        self._content = None
        done, self._committed = self._committed, None
        if done is not None:
            done.callback(event.outcomes)

    def _on_withdrawn(self, event: Withdrawn) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.errback(TransientFailure(self.relay, "withdrawn before it was prepared"))
        done, self._withdrawn = self._withdrawn, None
        if done is not None:
            done.callback(None)

    def _on_ended(self, event: Ended) -> None:
        self._deadline.cancel()
        self._content = None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
        deriving, self._deriving = self._deriving, None
        if deriving is not None:
            deriving.cancel()
        self._give_up(Reply(451, self._ends_with, (event.reason.encode(),)))
        withdrawn, self._withdrawn = self._withdrawn, None
        if withdrawn is not None:
            withdrawn.callback(None)
        transport: Any = self.transport
        if transport is None or self._is_lost:
            return
        transport.unregisterProducer()
        if event.polite:
            transport.loseConnection()
        else:
            # Nothing more is to leave, be it half a content that a proxy would take for whole.
            abort_now(transport)

    def _give_up(self, reply: Reply) -> None:
        """The greetings did not come to their end."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.errback(_failure(self.relay, reply))

    def _prepare_cancelled(self, _: Deferred[Outcomes]) -> None:
        self._prepared = None
        events = self._machine.withdraw()
        self.flush()
        self._handle(events)

    def _abort(self, why: str) -> None:
        self._handle(self._machine.connection_lost(why))


_HANDLERS: dict[type[Any], Callable[[SmtpSender, Any], None]] = {
    Opened: SmtpSender._on_opened,
    StartTls: SmtpSender._on_start_tls,
    DeriveKey: SmtpSender._on_derive_key,
    NotAuthenticated: SmtpSender._on_not_authenticated,
    Refused: SmtpSender._on_refused,
    Prepared: SmtpSender._on_prepared,
    Unfit: SmtpSender._on_unfit,
    NotSent: SmtpSender._on_not_sent,
    Committed: SmtpSender._on_committed,
    Withdrawn: SmtpSender._on_withdrawn,
    Ended: SmtpSender._on_ended,
}


def _failure(relay: str, reply: Reply) -> TransientFailure | PermanentFailure:
    """What an agent hears of an end: `what` is whom we spoke with, `why` what was said."""
    kind = PermanentFailure if reply.is_permanent else TransientFailure
    is_theirs = reply.enhanced not in ("4.4.2", "4.7.5")
    why = reply.text if is_theirs else b" ".join(reply.lines).decode()
    enhanced = reply.enhanced or ("5.0.0" if reply.is_permanent else "4.0.0")
    return kind(relay, why, code=reply.code, enhanced=enhanced)
