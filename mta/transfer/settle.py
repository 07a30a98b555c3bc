"""What a transfer's outcomes make of a message: its new state, its reports, or its end.

Law: pure. Time and chance come in as numbers; what comes out is journalled by others in one batch
with its reports, so that an outcome and the report about it are never apart. A report about a
report does not exist: the postmaster is told once, and after that the message is dropped.

RFC 3461 5.2 (NOTIFY), 4.1; RFC 3464; RFC 5321 4.5.4.1 and 6.1 (null reverse-path).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
)
from mta.transfer.settings import QueueSettings


@dataclass(frozen=True, slots=True)
class ReportDue:
    """A report that must be in the batch of the outcome. `kind` is also part of its queue id.

    failed: these recipients will not get it; delayed: not yet; relayed, delivered: they asked to
    be told (RFC 3461 5.2.2); double-bounce: a report could not be delivered, the postmaster is
    told instead.
    """

    kind: str
    recipients: tuple[int, ...]
    to: Address


@dataclass(frozen=True, slots=True)
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
"""The usual case: one recipient, delivered, nobody asked to be told."""


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
        return end if envelope.deliver_by is None else min(end, envelope.deliver_by)

    def is_expired(self, envelope: Envelope, now: float) -> bool:
        return self.may_expire and now >= self.expires(envelope)

    def next_due(self, envelope: Envelope, attempts: int, now: float, spread: float) -> float:
        """When to try again after `attempts` attempts. `spread` is -1.0 to 1.0, by chance.

        The last attempt falls on the moment of expiry, not a pause after it.
        """
        pauses = self._settings.backoff
        pause = pauses[min(max(attempts, 1), len(pauses)) - 1]
        due = now + pause * (1.0 + self._settings.jitter * spread)
        end = self.expires(envelope)
        return min(due, end) if now < end else due

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
        hold_unknown: bool = False,
    ) -> Settlement:
        """Apply the outcomes of one transfer (never `next_transfer` ones) to `state`.

        `attempts` is the number of attempts including this one; `remote` who gave the outcomes;
        `success` the kind of report for those who asked to be told of it, "" when the far end tells
        them; `hold_unknown` the connector's `in-doubt: hold`.
        """
        if len(outcomes) == 1 and len(envelope.recipients) == 1:
            only = outcomes[0]
            if only.kind is OutcomeKind.DELIVERED and not (
                envelope.recipients[0].notify & Notify.SUCCESS
            ):
                return GONE
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
            envelope, state, sent=sent, failed=failed, waiting=waiting, now=now, success=success
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
        patience = self._settings.delay_warning
        if patience and not warned and now - envelope.began_at >= patience:
            late = tuple(i for i in waiting if not asked[i] or asked[i] & Notify.DELAY)
            if late and envelope.kind is EnvelopeKind.MESSAGE:
                reports.append(ReportDue("delayed", late, envelope.sender))
                warned = True
        return tuple(reports), dropped, warned

    def _is_last_resort(self, envelope: Envelope) -> bool:
        """It already is the message to the postmaster: there is nobody else to tell."""
        return envelope.kind is EnvelopeKind.REPORT and all(
            r.address.text.lower() == self._postmaster.text.lower() for r in envelope.recipients
        )
