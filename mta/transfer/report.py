"""Turns "this sender must be told" into a report message with its own queue id.

Law: the same facts give the same queue id (model.derived_queue_id), so that a batch which is
written twice makes one report. Of the original only its header block is read and returned, unless
its sender said RET=FULL; a content that cannot be read does not keep the sender from being told.

RFC 3462, RFC 3464; RFC 3461 4.3 (RET); RFC 5321 4.5.5 (reports have the null reverse-path).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred

from mta.errors import Corrupt, Unavailable
from mta.interfaces import IClock, IContent, ISpool
from mta.model import (
    NULL_ADDRESS,
    Address,
    BodyType,
    ContentForm,
    Envelope,
    EnvelopeKind,
    Outcome,
    OutcomeKind,
    Recipient,
    Reply,
    Report,
    Requires,
    derived_queue_id,
)
from mta.transfer.settle import ReportDue
from mta.transfer.work import Message
from mta.wire.dsn import FULL_LIMIT, Action, RecipientStatus, build_report

_ACTIONS = {
    "failed": Action.FAILED,
    "double-bounce": Action.FAILED,
    "delayed": Action.DELAYED,
    "relayed": Action.RELAYED,
    "untimed": Action.RELAYED,
    "traced": Action.RELAYED,
    "delivered": Action.DELIVERED,
}
_EXPIRED = "4.4.7"
"""RFC 3463: delivery time expired. The last reply stands beside it as the diagnostic."""
_TIME_IS_OVER = "5.4.7"
"""The same, where its sender gave the time and wants it back (RFC 2852 4.1.2): for good."""
_NOT_REACHED = Outcome(0, OutcomeKind.DEFERRED, Reply(451, "4.4.7", (b"not delivered yet",)))
_REMARKS = {
    "untimed": "They do not keep to the time that you set for it, and report nothing on it.",
    "traced": "You asked to be told of each server on its way.",
}
_HEADER_LIMIT = 256 * 1024
"""Octets of the original that are searched for the end of its header block."""


async def header_block(content: IContent) -> bytes:
    """The header block with its line ends, without the empty line; b"" when there is none."""
    found = b""
    try:
        while len(found) < _HEADER_LIMIT:
            piece = await content.read()
            if not piece:
                break
            found += piece
            if b"\r\n\r\n" in found:
                break
    finally:
        content.close()
    head, empty, _ = found.partition(b"\r\n\r\n")
    if empty:
        return head + b"\r\n"
    return found[: found.rfind(b"\r\n") + 2] if b"\r\n" in found else b""


async def whole(content: IContent) -> bytes:
    """All of a content that is known to be small."""
    pieces = []
    try:
        while piece := await content.read():
            pieces.append(piece)
    finally:
        content.close()
    return b"".join(pieces)


class Original(NamedTuple):
    """What of the original goes into its reports, as it is stored."""

    octets: bytes
    is_whole: bool
    is_stuffed: bool


NO_ORIGINAL = Original(b"", is_whole=False, is_stuffed=False)


class Reporter:
    """Makes the reports of one tenure."""

    def __init__(
        self,
        spool: ISpool,
        clock: IClock,
        network_name: str,
        postmaster: Address,
        expires: Callable[[Envelope], float],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._network_name = network_name
        self._postmaster = postmaster
        self._expires = expires

    def make(
        self,
        message: Message,
        due: Sequence[ReportDue],
        outcomes: Sequence[Outcome],
        *,
        relay: str,
        original: Original,
    ) -> tuple[Report, ...]:
        """One report for each of `due`, all about `message`, whose `original` is returned."""
        return tuple(
            self._report(message, each, outcomes, relay=relay, original=original) for each in due
        )

    async def original(self, message: Message, due: Sequence[ReportDue]) -> Original:
        """What of the queued message these reports need; nothing when it cannot be read."""
        envelope = message.envelope
        # RFC 8689 5: what was to travel under TLS alone is quoted by its header.
        is_wanted = (
            envelope.ret_full is True
            and not envelope.requires & Requires.TLS
            and any(each.kind == "failed" for each in due)
        )
        try:
            opened = self._spool.content(message.queue_id)
            content = await opened if isinstance(opened, Deferred) else opened
            is_whole = is_wanted and content.size_octets <= FULL_LIMIT
            octets = await (whole(content) if is_whole else header_block(content))
        except (Corrupt, Unavailable, KeyError):
            return NO_ORIGINAL
        return Original(octets, is_whole, envelope.content_form is ContentForm.DOT_STUFFED)

    def _report(
        self,
        message: Message,
        due: ReportDue,
        outcomes: Sequence[Outcome],
        *,
        relay: str,
        original: Original,
    ) -> Report:
        envelope = message.envelope
        now = self._clock.wall()
        queue_id = derived_queue_id(message.queue_id, due.kind, due.recipients)
        said = {outcome.recipient: outcome for outcome in outcomes}
        action = _ACTIONS[due.kind]
        # A report whose recipient can be named in ASCII goes to every server.
        needs_tls = envelope.requires & Requires.TLS
        to = due.to.text
        if not to.isascii() and due.to.local.isascii():
            to = due.to.local + b"@" + due.to.domain
        content = build_report(
            reporting_mta=self._network_name,
            report_id=queue_id,
            to=to,
            recipients=[
                self._status(envelope, index, said.get(index, _NOT_REACHED), action, relay)
                for index in due.recipients
            ],
            remark=_REMARKS.get(due.kind),
            deliver_by=envelope.deliver_by,
            date=now,
            arrival=envelope.received_at,
            postmaster=self._postmaster.text,
            envelope_id=envelope.envelope_id,
            original=original.octets,
            is_stuffed=original.is_stuffed,
            # RFC 3461 4.3: RET is of failures only; a postmaster did not ask for the content.
            is_full=original.is_whole and due.kind == "failed",
            sender=envelope.sender.text if due.kind == "double-bounce" else None,
            is_utf8=Requires.UTF8 in envelope.requires,
        )
        of_report = Envelope(
            sender=NULL_ADDRESS,
            recipients=(Recipient(due.to),),
            kind=EnvelopeKind.REPORT,
            body_type=BodyType.SEVEN_BIT,
            requires=(Requires.NOTHING if to.isascii() else Requires.UTF8) | needs_tls,
            priority=envelope.priority,
            received_at=now,
            message_id=f"<{queue_id}@{self._network_name}>".encode(),
        )
        return Report(queue_id, of_report, content, due.kind)

    def _status(
        self, original: Envelope, index: int, outcome: Outcome, action: Action, relay: str
    ) -> RecipientStatus:
        recipient = original.recipients[index]
        has_expired = action is Action.FAILED and outcome.kind is not OutcomeKind.FAILED
        status = _EXPIRED if has_expired else outcome.reply.enhanced
        if original.deliver_by is not None and outcome.kind is not OutcomeKind.FAILED:
            if has_expired and self._clock.wall() >= original.deliver_by:
                status = _TIME_IS_OVER
            elif action is Action.DELAYED:
                status = _EXPIRED
        if not status:
            status = {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(action, "2.0.0")
        is_local = relay == "none"
        return RecipientStatus(
            final=recipient.address.text,
            action=action,
            status=status,
            original=recipient.original,
            remote_mta="" if is_local else relay.partition("[")[0],
            diagnostic=outcome.reply.text,
            is_local=is_local,
            last_attempt=self._clock.wall(),
            retry_until=self._expires(original) if action is Action.DELAYED else None,
        )
