"""What a transfer's outcomes make of a message: its new state, its reports, or its end.

Law: pure. Time and chance come in as numbers; what comes out is journalled by others in one batch
with its reports, so that an outcome and the report about it are never apart. A report about a
report does not exist: the postmaster is told once, and after that the message is dropped.

RFC 3461 5.2 (NOTIFY), 4.1; RFC 3464; RFC 5321 4.5.4.1 and 6.1 (null reverse-path); RFC 2852 4
(a message that has a time).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace

from mta.model import (
    Address,
    Envelope,
    EnvelopeKind,
    MessageState,
    Notify,
    Outcome,
    OutcomeKind,
    RecipientState,
    RecipientStatus,
    Requires,
    value,
)
from mta.transfer.settings import QueueSettings

_LAST_TRY_SECONDS = 15.0
"""Before its time is over a message that would be returned is tried once more: long enough for most
servers to take it. Of a short time the last quarter."""


class HandedOn(enum.Enum):
    """Whom a transfer gave a message to."""

    NO = "its mailbox: its way ends there"
    IN_TIME = "a server that keeps to the time that a sender gave"
    UNTIMED = "a server that knows of no such time"


@value
class ReportDue:
    """A report that must be in the batch of the outcome. `kind` is also part of its queue id.

    failed: these recipients will not get it; delayed: not yet; relayed, delivered: they asked to
    be told (RFC 3461 5.2.2); untimed, traced: handed on to a server that does not keep to its time,
    or that does, and its sender asked (RFC 2852 4.1.4); double-bounce: a report could not be
    delivered, the postmaster is told instead.
    """

    kind: str
    recipients: tuple[int, ...]
    to: Address


@value
class Settlement:
    """The verdict. `state` None: the message leaves the queue.

    `statuses` is parallel to the outcomes: sent, deferred, bounced, expired. `dropped` names
    failed recipients about whom nobody may be told any more.
    """

    state: MessageState | None
    statuses: tuple[str, ...]
    reports: tuple[ReportDue, ...] = ()
    dropped: tuple[int, ...] = ()


GONE = Settlement(None, ("sent",))


def at_once(envelope: Envelope, outcomes: Sequence[Outcome]) -> Settlement | None:
    """What `Rules.settle` says in the usual case, without a look at clock and chance: one
    recipient, delivered, nobody asked to be told. None: it is another case.
    """
    recipients = envelope.recipients
    if (
        len(outcomes) == 1
        and len(recipients) == 1
        and outcomes[0].kind is OutcomeKind.DELIVERED
        and not recipients[0].notify & Notify.SUCCESS
        and envelope.deliver_by is None
    ):
        return GONE
    return None


class Rules:
    """The queue's settings as settling needs them. One for the life of a dispatch."""

    def __init__(self, settings: QueueSettings, postmaster: Address) -> None:
        self._settings = settings
        self._postmaster = postmaster
        self.may_expire = True
        """False while the wall clock is suspect (spool.md section 9): nothing expires."""

    def expires(self, envelope: Envelope) -> float:
        """Wall time from which a deferral is final."""
        lifetime = (
            self._settings.bounce_lifetime if envelope.sender.is_null else self._settings.lifetime
        )
        end = envelope.began_at + lifetime
        over = envelope.deliver_by
        if over is None or not envelope.requires & Requires.IN_TIME:
            return end
        return min(end, over)

    def is_over(self, envelope: Envelope, now: float) -> bool:
        """Its sender's time is: it must not be tried any more, but go back."""
        over = envelope.deliver_by
        return (
            over is not None
            and now >= over
            and self.may_expire
            and bool(envelope.requires & Requires.IN_TIME)
        )

    def is_expired(self, envelope: Envelope, now: float) -> bool:
        return self.may_expire and now >= self.expires(envelope)

    def next_due(self, envelope: Envelope, attempts: int, now: float, spread: float) -> float:
        """When to try again after `attempts` attempts. `spread` is -1.0 to 1.0, by chance.

        The last attempt falls on the moment of expiry, not a pause after it; that of a message
        which its sender wants in time or not at all, shortly before.
        """
        pauses = self._settings.backoff
        pause = pauses[min(max(attempts, 1), len(pauses)) - 1]
        due = now + pause * (1.0 + self._settings.jitter * spread)
        end = self.expires(envelope)
        if envelope.deliver_by is not None:
            for moment in self._moments(envelope, envelope.deliver_by):
                if now < moment:
                    return min(due, moment, end if now < end else moment)
        return min(due, end) if now < end else due

    def next_moment(self, envelope: Envelope, now: float) -> float | None:
        """When the next thing is due, whatever keeps it waiting, that its sender's time asks for:
        the last try, its return, or the word that it is late. None: nothing.
        """
        if envelope.deliver_by is not None:
            for moment in self._moments(envelope, envelope.deliver_by):
                if now < moment:
                    return moment
        return None

    @staticmethod
    def _moments(envelope: Envelope, over: float) -> tuple[float, ...]:
        if not envelope.requires & Requires.IN_TIME:
            return (over,)
        return over - min(_LAST_TRY_SECONDS, (over - envelope.began_at) / 4.0), over

    def is_last_try(self, envelope: Envelope, now: float) -> bool:
        """It goes now or never: whoever rests is asked all the same."""
        over = envelope.deliver_by
        if over is None or now >= over or not envelope.requires & Requires.IN_TIME:
            return False
        return now >= self._moments(envelope, over)[0]

    def is_late(self, envelope: Envelope, state: MessageState, now: float) -> bool:
        """Its sender wants to hear that it was not delivered in time, and was not told yet."""
        over = envelope.deliver_by
        return (
            over is not None
            and now >= over
            and not state.delay_warned
            and not envelope.sender.is_null
            and not envelope.requires & Requires.IN_TIME
        )

    def settle(
        self,
        envelope: Envelope,
        state: MessageState,
        outcomes: Sequence[Outcome],
        *,
        now: float,
        spread: float,
        attempts: int,
        remote: str,
        success: str = "relayed",
        handed_on: HandedOn = HandedOn.NO,
        hold_unknown: bool = False,
    ) -> Settlement:
        """Apply the outcomes of one transfer (never `next_transfer` ones) to `state`.

        `attempts` is the number of attempts including this one; `remote` who gave the outcomes;
        `success` the kind of report for those who asked to be told of it, "" when the far end tells
        them; `handed_on` to whom; `hold_unknown` the connector's `in-doubt: hold`.
        """
        recipients = list(state.recipients)
        statuses: list[str] = []
        sent: list[int] = []
        failed: list[int] = []
        waiting: list[int] = []
        held = state.held
        is_late = self.is_expired(envelope, now)
        for outcome in outcomes:
            index = outcome.recipient
            reply = outcome.reply
            if outcome.kind is OutcomeKind.DELIVERED:
                sent.append(index)
                statuses.append("sent")
                status = RecipientStatus.DELIVERED
            elif outcome.kind is OutcomeKind.FAILED:
                failed.append(index)
                statuses.append("bounced")
                status = RecipientStatus.FAILED
            elif outcome.kind is OutcomeKind.UNKNOWN and hold_unknown:
                held = True
                waiting.append(index)
                statuses.append("deferred")
                status = RecipientStatus.PENDING
            elif is_late:
                failed.append(index)
                statuses.append("expired")
                status = RecipientStatus.FAILED
            else:
                waiting.append(index)
                statuses.append("deferred")
                status = RecipientStatus.PENDING
            recipients[index] = RecipientState(status, reply.text, reply.enhanced, remote)
        reports, dropped, warned = self._reports(
            envelope,
            state,
            sent=sent,
            failed=failed,
            waiting=waiting,
            now=now,
            success=success,
            on_the_way=_on_the_way(envelope, handed_on),
        )
        if all(r.status is not RecipientStatus.PENDING for r in recipients):
            return Settlement(None, tuple(statuses), reports, dropped)
        return Settlement(
            replace(
                state,
                recipients=tuple(recipients),
                attempts=attempts,
                due=self.next_due(envelope, attempts, now, spread),
                held=held,
                delay_warned=warned,
                last_attempt=now,
            ),
            tuple(statuses),
            reports,
            dropped,
        )

    def _reports(
        self,
        envelope: Envelope,
        state: MessageState,
        *,
        sent: list[int],
        failed: list[int],
        waiting: list[int],
        now: float,
        success: str,
        on_the_way: str,
    ) -> tuple[tuple[ReportDue, ...], tuple[int, ...], bool]:
        """The reports due, the failed recipients that nobody hears of, and `delay_warned`."""
        reports: list[ReportDue] = []
        dropped: tuple[int, ...] = ()
        warned = state.delay_warned
        asked = {i: envelope.recipients[i].notify for i in (*sent, *failed, *waiting)}
        told = tuple(i for i in failed if not asked[i] or asked[i] & Notify.FAILURE)
        if envelope.sender.is_null:
            if told and self._is_last_resort(envelope):
                dropped = told
            elif told:
                reports.append(ReportDue("double-bounce", told, self._postmaster))
            return tuple(reports), dropped, warned
        if told:
            reports.append(ReportDue("failed", told, envelope.sender))
        wanted = tuple(i for i in sent if asked[i] & Notify.SUCCESS)
        if wanted and success:
            reports.append(ReportDue(success, wanted, envelope.sender))
        if on_the_way:
            heard = wanted if success else ()
            others = tuple(i for i in sent if not asked[i] & Notify.NEVER and i not in heard)
            if others:
                reports.append(ReportDue(on_the_way, others, envelope.sender))
        if waiting and not warned and self._is_delayed(envelope, now):
            if envelope.deliver_by is not None:
                # The time is the whole message's: one word for all who wait, by whatever way.
                over = {*sent, *failed}
                waiting = [i for i in state.pending if i not in over]
                warned = True
            late = tuple(
                i
                for i in waiting
                if not (notify := envelope.recipients[i].notify) or notify & Notify.DELAY
            )
            if late and envelope.kind is EnvelopeKind.MESSAGE:
                reports.append(ReportDue("delayed", late, envelope.sender))
                warned = True
        return tuple(reports), dropped, warned

    def _is_delayed(self, envelope: Envelope, now: float) -> bool:
        """Its sender is to be told: at the time that he gave, or at the operator's."""
        if envelope.deliver_by is not None and not envelope.requires & Requires.IN_TIME:
            return now >= envelope.deliver_by
        patience = self._settings.delay_warning
        return bool(patience) and now - envelope.began_at >= patience

    def _is_last_resort(self, envelope: Envelope) -> bool:
        """It already is the message to the postmaster: there is nobody else to tell."""
        return envelope.kind is EnvelopeKind.REPORT and all(
            r.address.text.lower() == self._postmaster.text.lower() for r in envelope.recipients
        )


def _on_the_way(envelope: Envelope, handed_on: HandedOn) -> str:
    """The report for everybody who may hear of it that the message was handed on; "": none."""
    if envelope.deliver_by is None or handed_on is HandedOn.NO:
        return ""
    if handed_on is HandedOn.UNTIMED and not envelope.requires & Requires.IN_TIME:
        return "untimed"
    return "traced" if envelope.requires & Requires.TRACE else ""
