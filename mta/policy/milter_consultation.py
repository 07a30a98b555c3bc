"""What one association asks a filter, and what the filter's verdicts make of its messages.

Law: a message is asked about until it is settled (taken, refused, dropped, or the filter failed),
and never after. Whatever connection is made is heard of what it has to know: who connected, and how
he called himself. A piece of a body that does not fill a packet costs no question and no Deferred.

Sendmail's mail filter protocol, version 6; RFC 3461 4 (what recipients' parameters say).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import CancelledError, Deferred

from mta.errors import Failure, MTAError, RemoteProtocolError, TransientFailure
from mta.interfaces import (
    IClock,
    ICommandLine,
    IEditableBody,
    INewBody,
    IStoredForm,
    ISurroundings,
    ITransaction,
)
from mta.model import ContentForm, Recipient, Reply
from mta.policy.deadline import Deadline
from mta.policy.milter_changes import Changes
from mta.policy.milter_connection import FilterConnection
from mta.policy.milter_outage import Outage
from mta.policy.milter_words import Words, parameters_of_mail, parameters_of_rcpt
from mta.wire.milter.answers import Decision
from mta.wire.milter.dialogue import (
    Question,
    Stage,
    Verdict,
    on_body,
    on_connect,
    on_data,
    on_end,
    on_header,
    on_helo,
    on_mail,
    on_rcpt,
    on_unknown,
)
from mta.wire.milter.header import split_header
from mta.wire.milter.packets import CHUNK_OCTETS, Step
from mta.wire.smtp.content import Unstuffer, unstuffed

if TYPE_CHECKING:
    from mta.policy.milter import MilterSettings

_INTRODUCTION: Final = frozenset({"connect", "helo"})
Answer = Reply | None | Deferred[Reply | None]


class Consultation:
    """Of one association. `leave` ends it."""

    def __init__(
        self, settings: MilterSettings, surroundings: ISurroundings, outage: Outage
    ) -> None:
        self._settings = settings
        self._clock: IClock = surroundings.clock
        self._doors = surroundings.doors
        self._outage = outage
        self._words = Words(surroundings.virtual_server.network_name)
        self._connection: FilterConnection | None = None
        self._is_introduced = False
        self._helo: bytes | None = None
        """What this connection was told; None: nothing."""
        self._is_waived = False
        """The filter wants nothing of this association."""
        self._refusal: Reply | None = None
        """It wants nothing from this client."""
        self._is_settled = True
        self._settled: Reply | None = None
        self._body = bytearray()
        self._unstuffer: Unstuffer | None = None
        self._present: ITransaction | None = None
        """In the end hook: whose body may be replaced."""
        self._new_body: INewBody | None = None
        self._asked_about: Recipient | None = None
        """The last recipient that the filter heard of."""
        self._deadline = Deadline(self._clock)

    def ask(self, hook: str, transaction: ITransaction) -> Answer:
        """One of the hooks that may refuse."""
        if self._is_waived:
            return None
        if hook == "mail":
            self._begin()
        elif hook == "unknown":
            if not self._hears_unknown:
                return None
        elif hook not in _INTRODUCTION and self._is_settled:
            return None if hook == "refused" else self._settled
        elif hook == "refused" and not self._wants_refused(transaction):
            return None
        if self._refusal is not None:
            return self._refusal
        if hook == "body":
            self._take(transaction.chunk)
            if len(self._body) < CHUNK_OCTETS:
                return None
        return Deferred.fromCoroutine(self._consult(hook, transaction))

    def abort(self) -> None:
        """The message came to nothing."""
        self._is_settled, self._settled = True, None
        self._body.clear()
        if self._connection is not None:
            self._connection.abort()

    def leave(self) -> None:
        """The association has ended."""
        self._is_waived = True
        self._body.clear()
        self._deadline.end()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()

    # --- asking

    def _wants_refused(self, transaction: ITransaction) -> bool:
        """Of those that were not taken it hears if it wants to, and once."""
        connection = self._connection
        if connection is None or transaction.recipient is self._asked_about:
            return False
        return bool(connection.dialogue.steps & Step.REFUSED_RCPT)

    @property
    def _hears_unknown(self) -> bool:
        """No connection is made for that: whatever comes of it, such a command is refused."""
        connection = self._connection
        return connection is not None and connection.is_open and connection.dialogue.hears_unknown

    def _begin(self) -> None:
        self._is_settled, self._settled = False, None
        self._body.clear()
        self._unstuffer = None

    async def _consult(self, hook: str, transaction: ITransaction) -> Reply | None:
        self._present = transaction if hook == "end" else None
        try:
            verdict = await self._verdict(hook, transaction)
            if verdict.stage is Stage.END and verdict.decision is not Decision.REPLY:
                self._change(verdict, transaction)
        except CancelledError:
            self._drop()
            raise
        except (Failure, RemoteProtocolError) as error:
            self._drop()
            return self._failed(hook, error, transaction)
        finally:
            self._present = None
            self._forget_body()
        return self._judge(verdict, transaction)

    def _replace(self, piece: bytes) -> Deferred[None] | None:
        """@raise RemoteProtocolError, PermanentFailure."""
        if self._new_body is None:
            assert self._present is not None, "asked for in the end hook alone"
            editable = IEditableBody(self._present)
            if not editable.body_can_change:
                why = "the client named the transaction (RFC 1845), or its header is too long"
                raise RemoteProtocolError("the filter replaces a body that must stay", why)
            self._new_body = editable.replace_body()
        return self._new_body.write(piece)

    def _forget_body(self) -> None:
        body, self._new_body = self._new_body, None
        if body is not None:
            body.abandon()

    async def _verdict(self, hook: str, transaction: ITransaction) -> Verdict:
        timeouts = self._settings.timeouts
        connection = self._connection
        if connection is not None and not connection.is_open:
            self._drop()
            connection = None
        if connection is None:
            if hook not in _INTRODUCTION and hook != "mail":
                raise TransientFailure("it closed its connection in the middle of a message")
            connection = await self._open()
        seconds = timeouts.end if hook == "end" else timeouts.command
        answer = connection.ask(self._questions(hook, connection, transaction))
        verdict = await self._deadline.bound(answer, seconds)
        self._outage.warn(connection.dialogue.beyond)
        return verdict

    async def _open(self) -> FilterConnection:
        connection = FilterConnection(self._clock, self._deadline.extend, self._replace)
        opening = self._doors.service_connect("filter", self._settings.socket, connection)
        self._connection = connection
        await self._deadline.bound(opening, self._settings.timeouts.connect)
        if self._connection is not connection:
            connection.drop()
            raise CancelledError  # the association ended meanwhile
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._is_introduced, self._helo = False, None
        if connection is not None:
            connection.drop()

    def _questions(
        self, hook: str, connection: FilterConnection, transaction: ITransaction
    ) -> list[Question]:
        """What `hook` is about, and what the filter has to know before."""
        words = self._words.of(transaction)
        asked: list[Question] = []
        if not self._is_introduced:
            self._is_introduced = True
            name, host, port = words.client
            asked.append(on_connect(name, host, port, words.connect))
        if hook == "helo" or (hook == "mail" and transaction.helo not in (b"", self._helo)):
            self._helo = transaction.helo
            asked.append(on_helo(transaction.helo, words.helo))
        if hook == "mail":
            parameters = parameters_of_mail(transaction.parameters)
            asked.append(on_mail(transaction.sender.text, parameters, words.mail))
        elif hook in ("rcpt", "refused"):
            recipient = self._asked_about = transaction.recipient
            assert recipient is not None, "these hooks have one"
            parameters = parameters_of_rcpt(recipient)
            asked.append(on_rcpt(recipient.address.text, parameters, words.rcpt))
        elif hook == "unknown":
            asked.append(on_unknown(ICommandLine(transaction).line))
        elif hook == "data":
            asked.append(on_data(words.content))
        elif hook == "headers":
            asked += self._header(connection, transaction, words.content)
        elif hook == "body":
            asked += self._pieces(connection, whole=False)
        elif hook == "end":
            if self._unstuffer is not None:
                self._body += self._unstuffer.finish()
            asked += [*self._pieces(connection, whole=True), on_end(words.content)]
        return asked

    # --- the content

    def _header(
        self, connection: FilterConnection, transaction: ITransaction, macros: dict[bytes, bytes]
    ) -> tuple[Question, ...]:
        """What of it is no header is body to the filter, as it is to whoever reads the message."""
        form, block = IStoredForm(transaction), transaction.headers
        if form.content_form is ContentForm.DOT_STUFFED:
            self._unstuffer = Unstuffer()
            # One that was cut goes on in the middle of a line.
            block = unstuffed(block) if form.header_is_whole else self._unstuffer.take(block)
        leading_space = bool(connection.dialogue.steps & Step.LEADING_SPACE)
        fields, rest = split_header(block, leading_space)
        if rest:
            self._body += rest + b"\r\n" if form.header_is_whole else rest
        return on_header(fields, macros)

    def _take(self, chunk: bytes) -> None:
        connection = self._connection
        if connection is None or connection.dialogue.wants_body:
            self._body += chunk if self._unstuffer is None else self._unstuffer.take(chunk)

    def _pieces(self, connection: FilterConnection, *, whole: bool) -> tuple[Question, ...]:
        """Full packets of it; all of it with `whole`."""
        if not connection.dialogue.wants_body:
            self._body.clear()
        octets = len(self._body)
        if not whole:
            octets -= octets % CHUNK_OCTETS
        piece = bytes(self._body[:octets])
        del self._body[:octets]
        return on_body(piece)

    # --- what comes of it

    def _failed(self, hook: str, error: MTAError, transaction: ITransaction) -> Reply | None:
        self._outage.failed(str(error), transaction.queue_id)
        if hook in _INTRODUCTION or (hook == "unknown" and self._is_settled):
            return None  # its messages will ask again, and be answered then
        return self._settle(self._outage.reply)

    def _settle(self, reply: Reply | None) -> Reply | None:
        self._is_settled, self._settled = True, reply
        self._body.clear()
        return reply

    def _judge(self, verdict: Verdict, transaction: ITransaction) -> Reply | None:
        stage, decision = verdict.stage, verdict.decision
        if stage is Stage.END or decision is not Decision.CONTINUE:
            self._outage.worked()
        if decision is Decision.CONTINUE:
            return self._settle(None) if stage is Stage.END else None
        if decision is Decision.DISCARD:
            transaction.discard(f"filter {self._settings.socket} said so")
            return self._settle(None)
        if decision is Decision.ACCEPT:
            if stage in (Stage.CONNECT, Stage.HELO):
                self.leave()
            return self._settle(None)
        if stage in (Stage.RCPT, Stage.UNKNOWN):
            return verdict.reply  # about this recipient, or this command, alone
        if stage is Stage.CONNECT:
            self._refusal = verdict.reply
        elif stage is Stage.HELO:
            self._helo = None  # and whoever goes on under that name is asked about again
        return self._settle(verdict.reply)

    def _change(self, verdict: Verdict, transaction: ITransaction) -> None:
        """All of it or nothing. @raise RemoteProtocolError, PermanentFailure."""
        changes = Changes(verdict.changes, transaction, f"filter {self._settings.socket}")
        connection = self._connection
        spaced = connection is not None and bool(connection.dialogue.steps & Step.LEADING_SPACE)
        changes.make(None if verdict.decision is Decision.DISCARD else self._new_body, spaced)
