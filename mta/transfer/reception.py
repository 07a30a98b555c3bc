"""One inbound association as the inner house sees it: envelope, content, end.

Law: a step that nobody objects to costs no Deferred; only `end` has one. The relay rule comes
before every policy. Every refusal is said in the log with the peer, the stage and the reply.
RFC 5321 3.3, 4.4, 4.5.3.1, 6.3; RFC 6409 8; RFC 1845 (named transactions); RFC 3030.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from zope.interface import implementer

from mta.errors import Full, LocalProtocolError, MTAError, TenureRevoked, Unavailable
from mta.interfaces import (
    IAuthenticatingReception,
    IChunkedReception,
    IPresentedReception,
    IReception,
    ISecured,
    IStaging,
    ITenure,
    IUnknownCommands,
)
from mta.model import (
    Address,
    AddressKind,
    ContentForm,
    MessageState,
    PeerInfo,
    Recipient,
    Remembered,
    Reply,
    fresh_state,
)
from mta.policy.new_body import NO_BOUNDS, NewBody
from mta.policy.revision import Revision
from mta.policy.stream import Stream, both
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Connected, Disconnected
from mta.transfer.acceptance import Acceptance, discarded, queued
from mta.transfer.desk import Desk, store_reply
from mta.transfer.entry import Entry
from mta.transfer.enveloping import envelope_of
from mta.transfer.header_block import HeaderScan, message_id, received_count
from mta.transfer.identity import CHALLENGE, Identity
from mta.transfer.later_legs import LaterLegs
from mta.transfer.priorities import PriorityIntake
from mta.transfer.refusals import BARE_SENDER, COMPLETE, LOOP, OVERTAKEN
from mta.transfer.repeats import key_of
from mta.transfer.stamp import Stamp
from mta.transfer.wishes import candidate, read_time
from mta.wire.dsn import original_recipient
from mta.wire.mime.texts import TextScan

Answer = Reply | None | Deferred[Reply | None]
Associate = Callable[[PeerInfo], Association]
"""Who that client is to us."""


@implementer(ISecured, IUnknownCommands)
@implementer(IReception, IAuthenticatingReception, IChunkedReception, IPresentedReception)
class Reception:
    """Made by Intake. What it raises (Fenced, TenureRevoked), and what the Deferred of `end` fails
    with (also Unknown), must abort the association without a reply.
    """

    __slots__ = (
        "__weakref__",
        "_associate",
        "_association",
        "_desk",
        "_entry",
        "_has_eight_bits",
        "_identity",
        "_introduction",
        "_is_closed",
        "_is_unacknowledged",
        "_is_unread",
        "_ordinal",
        "_priorities",
        "_repeat",
        "_scan",
        "_staging",
        "_stamp",
        "_stream",
        "_tenure",
        "_text",
        "_transaction",
        "_waiting",
    )

    def __init__(self, desk: Desk, tenure: ITenure, peer: PeerInfo, associate: Associate) -> None:
        self._desk = desk
        self._tenure = tenure
        self._associate = associate
        self._meet(peer)
        self._entry = Entry(desk, tenure, peer)
        self._identity: Identity | None = None
        self._ordinal = 0
        self._transaction: Transaction | None = None
        self._staging: IStaging | None = None
        self._scan: HeaderScan | None = None
        self._stream: Stream | None = None
        self._text: TextScan | None = None
        """Of content that comes as it is."""
        self._waiting: Deferred[Any] | None = None
        self._is_unacknowledged = False
        self._is_unread = False
        """Nothing has shown yet that the client read the reply to its last message."""
        self._has_eight_bits = False
        self._is_closed = False
        self._repeat: Remembered | None = None
        """The transaction that came again, and became ours before."""

    # --- the association ---

    def _meet(self, peer: PeerInfo) -> None:
        desk, association = self._desk, self._associate(peer)
        self._association = association
        self._introduction = Transaction(association) if desk.introduces else None
        self._stamp = Stamp(desk, association, self._tenure.network_name)
        self._priorities = PriorityIntake(association)

    def connected(self) -> Answer:
        # An owner re-reads its epoch at each association that it accepts.
        self._tenure.check()
        association = self._association
        peer = association.peer
        if peer.uid is None:
            self._entry.write()
        proxy = "" if peer.via is None else peer.via.peer
        self._desk.telemetry.event(
            Connected(peer.association, association.client, peer.port, association.vip, proxy)
        )
        if self._introduction is None:
            return None
        return self._answer(self._desk.chain.ask("connect", self._introduction), "CONNECT")

    def secured(self, session: str) -> None:
        """ISecured."""
        association = self._association
        association.peer = replace(association.peer, tls=session)
        association.helo = b""
        association.forget()
        self._stamp.forget()

    def presented(self, peer: PeerInfo, helo: bytes, protocol: str, user: str) -> Answer:
        """IPresentedReception. The journal has the socket, which stays, and its unread reply."""
        self._tenure.check()
        desk, former = self._desk, self._introduction
        self.reset()
        identity, self._identity = self._identity, None
        if identity is not None:
            identity.abandon()
        if former is not None:
            desk.chain.tell("disconnect", former)
        self._meet(peer)
        association = self._association
        if user:
            association.identify(user, "XCLIENT")
        association.helo, association.protocol = helo, protocol
        if self._introduction is None:
            return None
        hooks = ("connect", *(("auth",) if user else ()), *(("helo",) if helo else ()))
        answer = desk.chain.ask_all(hooks, self._introduction)
        return self._answer(answer, "CONNECT")

    @property
    def admitted(self) -> bool:
        """IAuthenticatingReception."""
        return self._association.admitted

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """IAuthenticatingReception."""
        authenticator = self._desk.authenticator
        return () if authenticator is None else authenticator.mechanisms

    def auth(self, mechanism: str, initial: bytes | None) -> Answer:
        identity = self._identity
        if identity is None:
            authenticator = self._desk.authenticator
            if authenticator is None:
                raise LocalProtocolError("AUTH was not offered")
            introduction = self._introduction or Transaction(self._association)
            identity = Identity(self._desk, self._association, introduction, authenticator)
            self._identity = identity
        self._stamp.forget()
        return self._answer(identity.begin(mechanism, initial), "AUTH")

    def auth_response(self, response: bytes | None) -> Answer:
        if self._identity is None:
            raise LocalProtocolError("a response without AUTH")
        return self._answer(self._identity.respond(response), "AUTH")

    def helo(self, name: bytes, protocol: str) -> Answer:
        association = self._association
        association.helo = name
        association.protocol = protocol
        self._stamp.forget()
        if self._introduction is None:
            return None
        return self._answer(self._desk.chain.ask("helo", self._introduction), "HELO")

    @property
    def wants_unknown(self) -> bool:
        """IUnknownCommands."""
        return self._desk.hears_unknown

    def unknown(self, line: bytes) -> Answer:
        present = self._transaction or self._introduction
        assert present is not None, "nobody wants to hear of it"
        self._association.line = line
        return self._answer(self._desk.chain.ask("unknown", present), "UNKNOWN")

    def closed(self, stage: str, commands: str) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        desk, association = self._desk, self._association
        name = association.peer.association
        self.reset()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        if self._identity is not None:
            self._identity.abandon()
        self._entry.end(stage)
        desk.telemetry.event(Disconnected(name, association.client, commands, stage))
        if self._introduction is not None:
            desk.chain.tell("disconnect", self._introduction)

    # --- the envelope ---

    def mail(self, sender: Address, parameters: dict[bytes, bytes | None]) -> Answer:
        if parameters and b"TRANSID" in parameters:
            return self._mail_named(sender, parameters)
        return self._mail(sender, parameters)

    def _mail_named(self, sender: Address, parameters: dict[bytes, bytes | None]) -> Answer:
        """Completed before: 355, and nothing of it is asked again (RFC 1845 section 4)."""
        desk, key = self._desk, key_of(self._association.helo, parameters)
        known = desk.spool.recall(*key)
        if known is None:
            waiting = desk.repeats.claim(key, self)
            if waiting is None:
                return self._mail(sender, parameters)
            self._waiting = waiting
            return waiting.addCallback(self._mail_again, sender, parameters)
        # What is told is durable; the epoch is re-read once more before it is.
        self._tenure.check()
        self._transaction = Transaction(self._association, sender, parameters)
        self._repeat = known
        return Reply(355, "", (b"%d is the transaction offset" % known.octets,))

    def _mail_again(
        self, _: None, sender: Address, parameters: dict[bytes, bytes | None]
    ) -> Reply | None | Deferred[Reply | None]:
        self._waiting = None
        return self._mail_named(sender, parameters)

    def _mail(self, sender: Address, parameters: dict[bytes, bytes | None]) -> Answer:
        desk = self._desk
        transaction = self._transaction = Transaction(self._association, sender, parameters)
        if sender.text and not sender.domain and sender.kind is AddressKind.SMTP:
            return self._refused(BARE_SENDER, "MAIL")
        if parameters and b"BY" in parameters:
            over = read_time(parameters, desk.clock.wall())
            if isinstance(over, Reply):
                return self._refused(over, "MAIL")
            transaction.deliver_by = over
        association = self._association
        if association.submission is not None:
            rule, user = association.submission, association.user
            refused = rule.decide(user, association.admitted, sender)
            if refused is not None:
                return self._refused(refused, "MAIL")
        if desk.room is not None:
            size = parameters.get(b"SIZE") if parameters else None
            try:
                desk.room.check_room(int(size[:20]) if size and size.isdigit() else 0)
            except (Full, Unavailable) as error:
                return self._refused(store_reply(error), "MAIL")
        answer = desk.chain.ask("mail", transaction)
        said = None if answer is None else self._answer(answer, "MAIL")
        return self._priorities.noted(said, transaction) if parameters else said

    def rcpt(self, recipient: Address, parameters: dict[bytes, bytes | None]) -> Answer:
        desk, transaction = self._desk, self._present()
        decided = desk.relay.decide(recipient, self._association.admitted)
        if isinstance(decided, Reply):
            refused = candidate(recipient, recipient, parameters)
            return self._refused_recipient(decided, refused, recipient)
        chosen = transaction.recipient = candidate(recipient, decided, parameters)
        answer = desk.chain.ask("rcpt", transaction)
        if answer is None and transaction.recipient is chosen:
            transaction.keep(chosen)
            return None
        if isinstance(answer, Deferred):
            self._waiting = answer
            return answer.addCallback(self._rcpt_answered, recipient, chosen)
        return self._rcpt_answered(answer, recipient, chosen)

    def _rcpt_answered(self, reply: Reply | None, recipient: Address, chosen: Recipient) -> Answer:
        self._waiting = None
        transaction = self._present()
        final = transaction.recipient or chosen
        if reply is None and final is not chosen:
            # A policy sends it elsewhere: the operator's word, but it still needs a route.
            decided = self._desk.relay.decide(final.address, True)
            if isinstance(decided, Reply):
                reply = decided
            elif final.address != recipient and not final.original:
                final = replace(final, original=original_recipient(recipient.text))
        transaction.recipient = None
        if reply is not None:
            return self._refused_recipient(reply, chosen, recipient)
        transaction.keep(final)
        return None

    def _refused_recipient(self, reply: Reply, refused: Recipient, named: Address) -> Answer:
        """Whoever wants to hear of it does, before the client does."""
        desk, transaction = self._desk, self._present()
        self._refused(reply, "RCPT", named)
        if not desk.tells_refusals:
            return reply
        transaction.recipient, transaction.refusal = refused, reply
        answer = desk.chain.ask("refused", transaction)
        if isinstance(answer, Deferred):
            self._waiting = answer
            return answer.addCallback(self._refusal_told, reply)
        return self._refusal_told(None, reply)

    def _refusal_told(self, _: Reply | None, reply: Reply) -> Reply:
        self._waiting = None
        transaction = self._present()
        transaction.recipient = transaction.refusal = None
        return reply

    def reset(self) -> None:
        self._drop_content()
        transaction, self._transaction = self._transaction, None
        repeat, self._repeat = self._repeat, None
        if transaction is None or repeat is not None:
            return
        if transaction.parameters and b"TRANSID" in transaction.parameters:
            key = key_of(self._association.helo, transaction.parameters)
            self._desk.repeats.give_up(key, self)
        self._desk.chain.tell("abort", transaction)

    def _drop_content(self) -> None:
        """A commit under way goes on: it is out of reach."""
        staging, self._staging = self._staging, None
        stream, self._stream = self._stream, None
        transaction, self._scan = self._transaction, None
        if stream is not None:
            stream.cancel()
        if transaction is not None and transaction.revision is not None:
            transaction.revision.abort()
        if staging is not None:
            staging.abort()

    # --- the content ---

    def data(self) -> Answer:
        self._text = None
        return self._begin_content()

    def bdat(self) -> Answer:
        self._text = TextScan()
        return self._begin_content()

    def _begin_content(self) -> Answer:
        desk, transaction = self._desk, self._present()
        if self._repeat is not None:
            return None
        peer = self._association.peer
        try:
            staging = desk.spool.stage(peer.association)
        except (Full, Unavailable) as error:
            return self._refused(store_reply(error), "DATA")
        self._staging = staging
        self._has_eight_bits = False
        self._scan = HeaderScan(desk.settings.header_limit)
        transaction.queue_id = staging.queue_id
        if self._text is not None:
            transaction.content_form = ContentForm.OPAQUE
        self._priorities.begin(transaction, desk.edits)
        if desk.edits:
            bounds = desk.bounds.get(peer.listener, NO_BOUNDS)
            transaction.revision = Revision(transaction, staging, bounds, self._exchange)
        if desk.streams:
            self._stream = Stream(desk.chain, transaction)
        answer = desk.chain.ask("data", transaction)
        return None if answer is None else self._answer(answer, "DATA")

    def chunk(self, chunk: bytes) -> Deferred[None] | None:
        if self._repeat is not None:
            self._present().size_octets += len(chunk)
            return None
        staging, scan, stream, transaction = self._content()
        if stream is not None and stream.refusal is not None:
            return None  # refused already; the peer is heard to the end all the same
        if self._text is not None:
            self._text.feed(chunk)  # and nothing was read to get here: BDAT waits for no reply
        elif self._is_unread and transaction.size_octets:
            # A later piece of content: its client has read the 354 before it, and so the reply to
            # the last message. A command would prove nothing: MAIL, RSET and QUIT may follow a
            # final dot in one group (RFC 2920 3.1). A message in one piece says it by itself.
            self._is_unread = False
            self._entry.write()
        is_header = self._priorities.holds_back and not scan.complete
        pause = None if is_header else staging.write(chunk)
        transaction.size_octets += len(chunk)
        self._has_eight_bits = self._has_eight_bits or not chunk.isascii()
        body_at = 0
        if not scan.complete:
            body_at = scan.feed(chunk)
            if is_header and scan.complete:
                pause = self._priorities.complete(staging, scan, transaction, chunk, body_at)
            if stream is not None and scan.complete:
                transaction.headers, transaction.header_is_whole = scan.block, not scan.is_cut
                pause = both(pause, stream.feed("headers", b""))
        if stream is not None and body_at < len(chunk):
            pause = both(pause, stream.feed("body", chunk[body_at:]))
        return pause

    def end(self, fault: Reply | None) -> Deferred[Reply]:
        if self._is_unacknowledged:
            # One unread reply an association at most: the in-doubt list relies on it.
            raise LocalProtocolError(
                "a second message ended before the reply to the first was handed over",
                "the adapter must call acknowledged() first",
            )
        if not self._tenure.is_live:
            return fail(TenureRevoked("end of data", "the tenure ended while it was received"))
        if self._repeat is not None:
            return self._end_again(self._repeat, fault)
        staging, scan, stream, transaction = self._content()
        was_complete = scan.complete
        scan.finish()
        if not was_complete and self._priorities.holds_back:
            self._priorities.complete(staging, scan, transaction, b"", 0)
        if stream is None or fault is not None:
            return self._judge(fault)
        if not was_complete:
            transaction.headers = scan.block
            stream.feed("headers", b"")
        waiting = stream.idle()
        if waiting is None:
            return self._judge(stream.refusal)
        return waiting.addCallback(self._streamed, stream)

    def _end_again(self, known: Remembered, fault: Reply | None) -> Deferred[Reply]:
        """The dot of a transaction that was completed before."""
        desk, transaction = self._desk, self._present()
        if fault is not None or transaction.size_octets:
            return succeed(self._refused_message(fault or COMPLETE))
        try:
            self._tenure.check()
        except MTAError:
            return fail()
        self._transaction = self._repeat = None
        desk.repeated.inc()
        text = f"taken before as {known.queue_id}: {known.transaction} of {known.client}"
        desk.telemetry.notice("info", "intake", text, known.queue_id)
        return succeed(queued(known.queue_id))

    def _streamed(self, _: None, stream: Stream) -> Deferred[Reply]:
        if self._stream is not stream:
            raise CancelledError  # closed meanwhile
        return self._judge(stream.refusal)

    def _judge(self, reply: Reply | None) -> Deferred[Reply]:
        """All of the content is here; `reply` refuses it already, or the last questions come."""
        if reply is not None:
            return succeed(self._refused_message(reply))
        _, scan, _, transaction = self._content()
        lowered = scan.block.lower()
        hops = received_count(lowered)
        if hops > self._desk.settings.hop_limit:
            return succeed(self._refused_message(LOOP))
        transaction.headers, transaction.header_is_whole = scan.block, not scan.is_cut
        transaction.completed = self._stamp.completion(transaction, lowered)
        chain = self._desk.chain
        answer = chain.ask("end", transaction)
        if isinstance(answer, Reply):
            return succeed(self._refused_message(answer))
        if chain.behind is not None:
            legs = LaterLegs(transaction, scan, self._desk.telemetry)
            answer = Deferred.fromCoroutine(legs.ask(answer, chain.behind))
        if answer is None:
            return self._accept(lowered, hops)
        self._waiting = answer
        return answer.addCallback(self._end_answered, lowered, hops)

    def _exchange(self, body: NewBody) -> None:
        """A policy has put another body in the place of the one that came."""
        self._staging, self._text = body.staging, body.text
        self._has_eight_bits = body.has_eight_bits
        self._content()[1].is_separated = True

    def _end_answered(
        self, reply: Reply | None, lowered: bytes, hops: int
    ) -> Reply | Deferred[Reply]:
        self._waiting = None
        if reply is not None:
            return self._refused_message(reply)
        return self._accept(lowered, hops)

    def _accept(self, lowered: bytes, hops: int) -> Deferred[Reply]:
        staging, scan, _, transaction = self._content()
        if transaction.discarded:
            self.reset()
            return succeed(discarded(self._desk, transaction))
        desk, wall = self._desk, self._desk.clock.wall()
        self._ordinal += 1
        envelope = envelope_of(
            transaction,
            self._text,
            self._has_eight_bits,
            wall,
            hops,
            self._ordinal,
            message_id(scan.block, lowered),
        )
        state = fresh_state(envelope)
        if transaction.held:
            state = MessageState(state.recipients, due=state.due, held=True)
        prepend = self._stamp.before(transaction, transaction.headers, wall)
        if transaction.header_can_change:  # then it is not with the staged body
            prepend += transaction.headers + (b"\r\n" if scan.is_separated else b"")
        parameters = transaction.parameters
        is_named = parameters and b"TRANSID" in parameters
        key = key_of(self._association.helo, parameters) if is_named else None
        if key is not None:
            if not desk.repeats.may_commit(key, self):
                return succeed(self._refused_message(OVERTAKEN))
            staging.remember(*key, wall + desk.settings.transaction_lifetime)
        if transaction.revision is not None:
            transaction.revision.abort()
        # From here on the message is out of reach of reset() and closed().
        self._transaction = self._staging = self._scan = self._stream = None
        self._is_unacknowledged = True
        self._is_unread = self._entry.is_written
        acceptance = Acceptance(desk, self._tenure, transaction, envelope, state)
        answered = acceptance.commit(staging, prepend)
        if key is not None:
            answered.addBoth(desk.repeats.settled, key)
        return answered

    def acknowledged(self) -> None:
        self._is_unacknowledged = False

    # --- refusals ---

    def _present(self) -> Transaction:
        if self._transaction is None:
            raise LocalProtocolError("a step of a transaction that has no MAIL")
        return self._transaction

    def _content(self) -> tuple[IStaging, HeaderScan, Stream | None, Transaction]:
        if self._staging is None or self._scan is None or self._transaction is None:
            raise LocalProtocolError("content without DATA")
        return self._staging, self._scan, self._stream, self._transaction

    def _answer(self, answer: Answer, stage: str) -> Answer:
        """A policy's answer to a command that needs nothing done when it agrees."""
        if isinstance(answer, Deferred):
            self._waiting = answer
            return answer.addCallback(self._answered, stage)
        return self._answered(answer, stage)

    def _answered(self, reply: Reply | None, stage: str) -> Reply | None:
        self._waiting = None
        if reply is None or reply.code == CHALLENGE:
            return reply
        return self._refused(reply, stage)

    def _refused(
        self, reply: Reply | None, stage: str, recipient: Address | None = None
    ) -> Reply | None:
        """Say it in the log, and forget what the command had begun."""
        if reply is not None:
            named = b"" if recipient is None else recipient.text
            self._desk.refused(reply, stage, self._association, self._transaction, named)
            if stage == "MAIL":
                self.reset()
            elif stage == "DATA":
                self._drop_content()
        return reply

    def _refused_message(self, reply: Reply) -> Reply:
        self._desk.refused(reply, "END-OF-MESSAGE", self._association, self._transaction)
        self.reset()
        return reply
