"""The initiator of an SMTP or LMTP association: transfers in, octets out, outcomes out.

Law: before the final dot leaves, nothing was sent; once it may have left, a recipient whose reply
does not come is UNKNOWN and nothing else. No octet of a content goes out before `content`, no dot
before `finish`. Whatever a peer says, each recipient gets exactly one outcome.

With PIPELINING the envelope of message n+1 may be prepared while n waits for its reply: body n, its
dot and MAIL, RCPT, DATA of n+1 then leave together, one round trip a message (RFC 2920 3.1 lets
DATA end a group, and what follows a dot begins a new one). Behind a content that goes by BDAT the
envelope waits: after a refused chunk RSET must come first (RFC 3030 section 2).

RFC 5321 3.3, 4.5.3.2 (time-outs), 4.5.3.1.10 (too many recipients), RFC 2033 (LMTP), RFC 2920,
RFC 1870, RFC 6152, RFC 3030 (CHUNKING, BINARYMIME), RFC 3207 (STARTTLS), RFC 4954 (AUTH, in
client_auth.py), RFC 3461 (DSN), RFC 6531 (SMTPUTF8), RFC 1047 (why UNKNOWN exists), RFC 1845 (named
transactions, which end it), RFC 9422 (LIMITS), RFC 2852 (DELIVERBY).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mta.errors import LocalProtocolError, RemoteProtocolError
from mta.model import Address, Envelope, Outcome, OutcomeKind, Reply
from mta.wire.sasl_client import Exchange
from mta.wire.smtp.client_auth import Authentication, AuthReplies
from mta.wire.smtp.client_chunks import ChunkWriter
from mta.wire.smtp.client_envelope import commands, impossible, size_limit
from mta.wire.smtp.client_limits import PeerLimits, peer_limits
from mta.wire.smtp.client_outcomes import (
    NO_TLS,
    gone,
    left_over,
    outcome_kind,
    unprepared,
)
from mta.wire.smtp.client_replies import EnvelopeReplies
from mta.wire.smtp.client_states import (
    AUTHENTICATING,
    CLASSES,
    ENVELOPE,
    TABLE,
    Class,
    Committed,
    Event,
    NotSent,
    Opened,
    Phase,
    Prepared,
    Refused,
    Row,
    Secrecy,
    StartTls,
    State,
    Timeouts,
    Transaction,
    Unfit,
    Wait,
    Withdrawn,
)
from mta.wire.smtp.content import Stuffer
from mta.wire.smtp.reply import ReplyReader
from mta.wire.smtp.states import Role


class Initiator(EnvelopeReplies, AuthReplies):
    """One association's protocol, from the peer's greeting to the end.

    Every method that takes something answers the events it made; what is to be sent then lies in
    `take_output`. After `Ended` there is nothing more to send.
    """

    def __init__(
        self,
        name: bytes,
        role: Role = Role.SMTP,
        timeouts: Timeouts | None = None,
        secrecy: Secrecy = Secrecy.NEVER,
        authentication: Authentication | None = None,
    ) -> None:
        """`name` is what we say in EHLO: the virtual server's network name."""
        self.is_secure = False
        self._is_verified = False
        self._secrecy = secrecy
        self._authentication = authentication
        self._exchange: Exchange | None = None
        self._initial: bytes | None = None
        self.role = role
        self.state = State.GREETING
        self.extensions: dict[bytes, bytes] = {}
        """Keyword in upper case -> its parameters, as the peer announced them."""
        self.replies_read = 0
        """Whole replies so far: what restarts the clock of `timeout`."""
        self._name = name
        self._reader = ReplyReader()
        self._seconds = (timeouts or Timeouts()).by_wait()
        self._owed: deque[tuple[Wait, int]] = deque([(Wait.GREETING, 0)])
        self._output: list[bytes] = []
        self._preparing: Transaction | None = None
        self._sending: Transaction | None = None
        self._said = 0
        """How many of the preparing transaction's commands were said."""
        self._needs_reset = False
        self._stuffer: Stuffer | None = None
        self._tail = b"\r\n"
        """The last two octets of content: the dot needs a CRLF before it."""
        self.pipelines = False
        """The peer offered PIPELINING: a second message may be prepared behind the first."""
        self.is_spent = False
        """The peer's MAILMAX is reached: it takes no further transaction (RFC 9422 4.1)."""
        self._size_limit = 0
        self._limits = PeerLimits()
        self._mails = 0
        """MAILs said to a peer with MAILMAX, also those that were refused."""
        self.transid = b""
        """What names the transaction that was prepared last; b"" if it was begun anew without."""

    # -- facts

    @property
    def checkpoints(self) -> bool:
        """The peer tells named transactions apart (RFC 1845)."""
        return b"CHECKPOINT" in self.extensions and self.role is Role.SMTP

    @property
    def notifies(self) -> bool:
        """The peer hands on what senders ask of reports, and sees to it (RFC 3461)."""
        return b"DSN" in self.extensions

    @property
    def delivers_by(self) -> bool:
        """The peer keeps to the time that a sender gave (RFC 2852)."""
        return b"DELIVERBY" in self.extensions

    @property
    def is_content_known(self) -> bool:
        """The peer has the content of what is prepared: `finish` is next, without `content`."""
        return self._preparing is not None and self._preparing.is_known

    @property
    def chunks(self) -> bool:
        """Content may go by BDAT. Without PIPELINING each chunk would cost a round trip."""
        return self.pipelines and b"CHUNKING" in self.extensions

    @property
    def is_idle(self) -> bool:
        """Open, and no transaction is under way."""
        return self.state is State.OPEN and self._preparing is None and self._sending is None

    @property
    def is_preparing(self) -> bool:
        """A transaction is begun whose content is not."""
        return self._preparing is not None

    @property
    def timeout(self) -> tuple[Wait, float] | None:
        """What the peer owes us now, and how many seconds it has for it; None: nothing."""
        if self._owed:
            wait = self._owed[0][0]
            return wait, self._seconds[wait]
        if self._sending is not None and self._sending.phase is Phase.SENDING:
            return Wait.CONTENT, self._seconds[Wait.CONTENT]
        return None

    def take_output(self) -> bytes:
        """All that is to be sent now; b"" when there is nothing."""
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    # -- the transfer

    def prepare(
        self,
        tag: str,
        sender: Address,
        recipients: Sequence[tuple[int, Address]],
        size_octets: int,
        eight_bit: bool,
        *,
        transid: bytes = b"",
        is_resend: bool = False,
        envelope: Envelope | None = None,
        binary: bool = False,
        chunked: bool = False,
        seconds_left: float = 0.0,
    ) -> list[Event]:
        """Begin a transaction: MAIL, RCPT, and DATA unless its content is to go in `chunks`.
        Answers Prepared at once when nothing is left to ask, or Unfit; otherwise it comes from
        `receive`.

        May be called while the last message waits for its reply only if `pipelines`. `transid`, in
        its brackets, names it to a peer that `checkpoints`; with `is_resend` the peer may have
        completed the very same already, and is asked so: then `is_content_known` when Prepared.
        What `envelope` asks of reports is said to a peer that `notifies`. Whom its RCPTMAX leaves
        no room for is among the outcomes of Prepared, as one for the next transaction. When the
        association `is_spent`, NotSent is the answer. `seconds_left` are those of a message that
        has a time.
        """
        if self._preparing is not None:
            raise LocalProtocolError("a transaction is being prepared already")
        indexes = [index for index, _ in recipients]
        if self.state is not State.OPEN:
            return [NotSent(tag, gone("the association has ended"))]
        if self.is_spent:
            return [NotSent(tag, gone("the next server takes no more on this association"))]
        offered = self.extensions
        limit = self._size_limit
        if eight_bit or binary or 0 < limit < size_octets:
            refusal = impossible(
                offered, limit, size=size_octets, eight_bit=eight_bit, binary=binary
            )
            if refusal is not None:
                failed = tuple(Outcome(i, OutcomeKind.FAILED, refusal) for i in indexes)
                return [Prepared(tag, failed)]
        lines = commands(
            offered, sender, recipients, envelope, size_octets, eight_bit=eight_bit,
            transid=transid, binary=binary, chunked=chunked, verified=self._is_verified,
            seconds_left=seconds_left, relays=self.role is Role.SMTP,
        )  # fmt: skip
        if isinstance(lines, Reply):
            return [Unfit(tag, lines)]
        preparing = self._preparing = Transaction(tag, indexes, lines, size_octets)
        preparing.is_resend = is_resend
        if chunked:
            preparing.chunks = ChunkWriter()
        # What the peer may have already, it has with all its recipients.
        if not is_resend and self._limits.recipients:
            self._heed_limit(preparing)
        self.transid = transid
        self._said = 0
        self._say_more()
        return []

    def content(self, piece: bytes, *, opaque: bool = False) -> None:
        """A piece of the content: SMTP wire form, or `opaque` octets to be brought into it."""
        transaction = self._sending
        if transaction is None:
            transaction = self._begin_content()
        if transaction.phase is not Phase.SENDING:
            raise LocalProtocolError("content behind the final dot")
        if transaction.chunks is not None:
            chunk = transaction.chunks.take(piece)
            if chunk:
                self._output += chunk
                self._owed.append((Wait.CHUNK, 0))
            return
        if opaque:
            if self._stuffer is None:
                self._stuffer = Stuffer()
            piece = self._stuffer.take(piece)
        if piece:
            self._output.append(piece)
            self._tail = piece[-2:] if len(piece) > 1 else self._tail[-1:] + piece

    def _begin_content(self, is_empty: bool = False) -> Transaction:
        transaction = self._preparing
        if transaction is None or transaction.phase is not Phase.PREPARED:
            raise LocalProtocolError("content without 354")
        if transaction.is_known and not is_empty:
            raise LocalProtocolError("content that the peer has already")
        self._preparing = None
        self._sending = transaction
        transaction.phase = Phase.SENDING
        self._stuffer = None
        self._tail = b"\r\n"
        return transaction

    def finish(self) -> None:
        """The final dot, or the last chunk. From here on silence means UNKNOWN."""
        transaction = self._sending
        if transaction is None:
            transaction = self._begin_content(is_empty=True)
        if transaction.phase is not Phase.SENDING:
            raise LocalProtocolError("a second final dot")
        if transaction.chunks is not None:
            self._output += transaction.chunks.finish()
        elif self._stuffer is not None:
            self._output.append(self._stuffer.finish() + b".\r\n")
        else:
            self._output.append(b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n")
        transaction.phase = Phase.IN_DOUBT
        replies = len(transaction.accepted) if self.role is Role.LMTP else 1
        self._owed.extend([(Wait.DOT, 0)] * replies)
        if self._preparing is not None:
            self._say_more()

    def withdraw(self) -> list[Event]:
        """Do not send what was prepared. Withdrawn comes now or with the replies under way; Ended
        follows where the protocol has no other way back (behind a 354).
        """
        transaction = self._preparing
        if transaction is None:
            return []
        if transaction.phase is Phase.PREPARED and transaction.chunks is not None:
            self._preparing = None
            self._needs_reset = True
            return [Withdrawn(transaction.tag)]
        if transaction.phase is Phase.PREPARED:
            # Any octet or a dot would now be a message: only the end of the association is none.
            self._preparing = None
            return [Withdrawn(transaction.tag), *self._end("withdrawn behind 354")]
        transaction.is_withdrawn = True
        if self._said == 0:
            self._preparing = None
            return [Withdrawn(transaction.tag)]
        if not transaction.is_data_said:
            # Replies to what was said are still owed; DATA stays unsaid.
            del transaction.commands[self._said :]
            self._needs_reset = True
            if not self._owed:
                return self._settle_preparing()
        return []

    def quit(self) -> list[Event]:
        """Say QUIT if that is possible now; otherwise the association just ends."""
        if not self.is_idle or self._owed:
            return self._lost("closed by us") if self.state is not State.ENDED else []
        self.state = State.QUITTING
        self._output.append(b"QUIT\r\n")
        self._owed.append((Wait.QUIT, 0))
        return []

    # -- what comes from the peer

    def receive(self, data: bytes) -> list[Event]:
        """Octets of the peer."""
        events: list[Event] = []
        reader = self._reader
        try:
            known = reader.recall(data) if self.state is State.OPEN else None
            if known is not None:
                if known.invites and self._all_accepted(len(known.replies), events):
                    return events
                for reply in known.replies:
                    self._reply(reply, events)
                    if self.state is State.ENDED:
                        break
                return events
            if self.state is not State.ENDED:
                reader.receive(data)
            while self.state is not State.ENDED:
                following = reader.next_reply()
                if following is None:
                    break
                self._reply(following, events)
        except RemoteProtocolError as error:
            events += self._lost(str(error))
        return events

    def connection_lost(self, reason: str = "the connection was lost") -> list[Event]:
        """The connection has gone, at whatever octet."""
        return self._lost(reason) if self.state is not State.ENDED else []

    def expire(self) -> list[Event]:
        """The time of `timeout` is over."""
        timeout = self.timeout
        if timeout is None:
            return []
        wait, seconds = timeout
        return self._lost(f"timed out after {seconds:g} s while waiting for {wait.value}")

    def _reply(self, reply: Reply, events: list[Event]) -> None:
        self.replies_read += 1
        klass = Class.CLOSING if reply.code == 421 else CLASSES[reply.code // 100]
        row = TABLE.get((self.state, klass))
        if row is None:
            raise RemoteProtocolError("the peer's reply fits nothing we said", reply.text)
        if row.action != "transaction":
            self._dialogue_reply(row, reply, events)
        elif self._owed:
            wait, index = self._owed.popleft()
            if wait in ENVELOPE:
                self._envelope_reply(wait, index, reply, klass, events)
            elif wait is Wait.DOT:
                self._dot_reply(reply, klass, events)
            elif wait is Wait.CHUNK:
                if klass is not Class.POSITIVE:
                    self._refused_content(reply, klass, events)
            elif wait is Wait.RSET and klass is not Class.POSITIVE:
                raise RemoteProtocolError("the peer refuses RSET", reply.text)
            # LONE_DOT: nobody was to get anything; whatever it says is right.
            preparing = self._preparing
            if preparing is not None and self._said < len(preparing.commands):
                self._say_more()
        else:
            self._unasked(reply, klass, events)

    def _dialogue_reply(self, row: Row, reply: Reply, events: list[Event]) -> None:
        """To what is said before and after transactions."""
        before, self.state = self.state, row.after
        if row.action == "closing":
            self._closing(reply, events)
            return
        self._owed.popleft()
        if row.action == "refused":
            events += [Refused(reply), *self._end(reply.text, polite=True)]
        elif row.action == "opened":
            self._opened(reply, events)
        elif row.action in {"opened plainly", "no TLS"}:
            self._open_or_refuse(events)
        elif row.action == "start TLS":
            if not self._reader.is_clean:  # put there by others, to be taken for a reply under TLS
                raise RemoteProtocolError("the peer spoke behind its reply to STARTTLS", reply.text)
            self._owed.append((Wait.HANDSHAKE, 0))
            events.append(StartTls())
        elif before in AUTHENTICATING:
            self._auth_reply(row.action, reply, events)
        elif row.action == "ended":
            events += self._end(reply.text, polite=True)
        elif self.state is State.HELLO:
            self._say_hello(b"LHLO" if self.role is Role.LMTP else b"EHLO")
        elif self.role is Role.LMTP:  # there is no older greeting to fall back upon
            events += [Refused(reply), *self._end(reply.text, polite=True)]
        else:
            self._say_hello(b"HELO")

    def _say_hello(self, verb: bytes) -> None:
        self._output.append(b"%b %b\r\n" % (verb, self._name))
        self._owed.append((Wait.HELLO, 0))

    def _opened(self, reply: Reply, events: list[Event]) -> None:
        """EHLO is answered: TLS comes first, if it is wanted and is to be had."""
        self._learn(reply)
        is_wanted = self._secrecy is not Secrecy.NEVER and not self.is_secure
        if is_wanted and b"STARTTLS" in self.extensions:
            self.state = State.STARTTLS
            self._output.append(b"STARTTLS\r\n")
            self._owed.append((Wait.STARTTLS, 0))
        else:
            self._open_or_refuse(events)

    def _open_or_refuse(self, events: list[Event]) -> None:
        if not self.is_secure and self._secrecy is Secrecy.ALWAYS:
            events += [Refused(NO_TLS), *self._end(NO_TLS.text)]
        elif self._authentication is not None:
            self._authenticate(self._authentication, events)
        else:
            events.append(Opened())

    def secured(self, *, verified: bool = False) -> None:
        """TLS is there. EHLO is said anew (RFC 3207 section 4.2). `verified`: the peer's
        certificate was found to be its own, as messages with REQUIRETLS want it.
        """
        if self.state is not State.HANDSHAKE:
            raise LocalProtocolError("TLS that nobody negotiated")
        self.is_secure = True
        self._is_verified = verified
        self._owed.popleft()
        self.extensions = {}
        self.state = State.HELLO
        self._say_hello(b"LHLO" if self.role is Role.LMTP else b"EHLO")

    def _learn(self, reply: Reply) -> None:
        """Keep what the EHLO reply announces."""
        for line in reply.lines[1:]:
            keyword, _, parameters = line.strip().partition(b" ")
            self.extensions[keyword.upper()] = parameters.strip()
        self.pipelines = b"PIPELINING" in self.extensions
        self._size_limit = size_limit(self.extensions)
        self._limits = peer_limits(self.extensions.get(b"LIMITS", b""))

    # -- replies inside of transactions

    def _dot_reply(self, reply: Reply, klass: Class, events: list[Event]) -> None:
        transaction = self._sending
        assert transaction is not None
        if klass is Class.INTERMEDIATE:
            raise RemoteProtocolError("the peer answers the final dot with 3yz", reply.text)
        kind = outcome_kind(reply)
        if self.role is Role.LMTP:
            recipient = transaction.accepted[transaction.replied]
            transaction.outcomes.append(Outcome(recipient, kind, reply))
            transaction.replied += 1
            if transaction.replied < len(transaction.accepted):
                return
            outcomes = tuple(transaction.outcomes[-transaction.replied :])
        elif len(transaction.accepted) == 1:
            outcomes = (Outcome(transaction.accepted[0], kind, reply),)
        else:
            outcomes = tuple([Outcome(i, kind, reply) for i in transaction.accepted])
        self._sending = None
        if transaction.chunks is not None and kind is not OutcomeKind.DELIVERED:
            self._needs_reset = True
        transaction.phase = Phase.SETTLED
        events.append(Committed(transaction.tag, outcomes))

    def _unasked(self, reply: Reply, klass: Class, events: list[Event]) -> None:
        """A reply that nobody asked for. In the middle of content a refusal is an early answer."""
        if self._sending is None:
            raise RemoteProtocolError("the peer said something unasked", reply.text)
        self._refused_content(reply, klass, events)

    def _refused_content(self, reply: Reply, klass: Class, events: list[Event]) -> None:
        """In the middle of it, or one of its chunks: nothing that follows can make it whole."""
        transaction = self._sending
        if transaction is None or klass not in (Class.TRANSIENT, Class.PERMANENT):
            raise RemoteProtocolError("the peer said something unasked", reply.text)
        self._sending = None
        kind = outcome_kind(reply)
        outcomes = tuple(Outcome(i, kind, reply) for i in transaction.accepted)
        events.append(Committed(transaction.tag, outcomes))
        events += self._lost(f"refused within the content: {reply.text}")

    def _closing(self, reply: Reply, events: list[Event]) -> None:
        """421: it answers what is owed first, and nothing more will come."""
        transaction = self._sending
        if transaction is not None:
            wait = self._owed[0][0] if self._owed else None
            is_answer = wait is Wait.DOT
            is_open = transaction.phase is Phase.SENDING or wait is Wait.CHUNK
            if is_open or (is_answer and self.role is Role.SMTP):
                left = transaction.accepted
                deferred = tuple(Outcome(i, OutcomeKind.DEFERRED, reply) for i in left)
                events.append(Committed(transaction.tag, deferred))
                self._sending = None
            elif is_answer:
                recipient = transaction.accepted[transaction.replied]
                transaction.outcomes.append(Outcome(recipient, OutcomeKind.DEFERRED, reply))
                transaction.replied += 1
        events += self._lost(reply.text, reply)

    def _lost(self, reason: str, reply: Reply | None = None) -> list[Event]:
        """The association is over without our doing: settle what was under way."""
        events: list[Event] = []
        transaction, self._sending = self._sending, None
        if transaction is not None:
            events.append(Committed(transaction.tag, left_over(transaction, reason)))
        transaction, self._preparing = self._preparing, None
        if transaction is not None:
            events.append(unprepared(transaction, reply or gone(reason)))
        return events + self._end(reason)

    def _say_more(self) -> None:
        """Put out what may be said now of the transaction being prepared.

        Nothing of it goes between DATA and dot of the one before, nor before the reply to its last
        chunk: were that refused, RSET would be next. Without pipelining, one command at a time.
        """
        transaction = self._preparing
        if transaction is None or self.state is not State.OPEN:
            return
        sending = self._sending
        if sending is not None and (sending.phase is Phase.SENDING or sending.chunks is not None):
            return
        commands = transaction.commands
        if self._said == 0 and self._needs_reset:
            if not self.pipelines and self._owed:
                return
            self._needs_reset = False
            self._output.append(b"RSET\r\n")
            self._owed.append((Wait.RSET, 0))
        if self.pipelines and not transaction.is_resend:
            if self._said:
                return
            self._output += commands
            self._said = len(commands)
            if self._limits.transactions:
                self._count_mail()
            owed = self._owed
            owed.append((Wait.MAIL, 0))
            for index in transaction.recipients:
                owed.append((Wait.RCPT, index))
            if transaction.chunks is None:
                owed.append((Wait.DATA, 0))
                transaction.is_data_said = True
            return
        # One command at a time: the peer does not pipeline, or its reply to MAIL decides.
        if self._owed or self._said >= len(commands):
            return
        command = commands[self._said]
        self._said += 1
        self._output.append(command)
        if self._said == 1:
            if self._limits.transactions:
                self._count_mail()
            self._owed.append((Wait.MAIL, 0))
        elif self._said == len(commands) and transaction.chunks is None:
            transaction.is_data_said = True
            self._owed.append((Wait.DATA, 0))
        else:
            self._owed.append((Wait.RCPT, transaction.recipients[self._said - 2]))

    def _count_mail(self) -> None:
        self._mails += 1
        self.is_spent = self._mails >= self._limits.transactions
