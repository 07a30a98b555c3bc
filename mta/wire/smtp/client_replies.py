"""What the replies to MAIL, RCPT and DATA make of the transaction that an initiator prepares.

Law: every recipient whose outcome is known then is told with Prepared, once; content follows only
if some are left. RFC 2920 3.1 (DATA behind refused recipients), RFC 1845 section 4 (355), RFC 9422
4.2 (RCPTMAX).
"""

from __future__ import annotations

from mta.errors import RemoteProtocolError
from mta.model import Outcome, Reply
from mta.wire.smtp.client_envelope import without_name
from mta.wire.smtp.client_limits import PeerLimits
from mta.wire.smtp.client_outcomes import outcome_kind, recipient_outcome
from mta.wire.smtp.client_states import (
    ENVELOPE,
    OFFSET,
    Class,
    Dialogue,
    Event,
    Phase,
    Prepared,
    Transaction,
    Wait,
    Withdrawn,
)


class EnvelopeReplies(Dialogue):
    """That part of an Initiator (client.py)."""

    transid: bytes
    replies_read: int
    _limits: PeerLimits
    _needs_reset: bool
    _preparing: Transaction | None
    _said: int

    def _all_accepted(self, count: int, events: list[Event]) -> bool:
        """So many replies came together, each 2yz but the last, which is 3yz. If they are those to
        MAIL, every RCPT and DATA, all of it was accepted, and that is what `_envelope_reply` would
        find: nearly every transaction goes this way (2 % of a relayed message's time, 2026-11).
        """
        transaction, owed = self._preparing, self._owed
        if (
            transaction is None
            or transaction.is_withdrawn
            or not transaction.is_data_said
            or not len(owed) == count == len(transaction.recipients) + 2
            or owed[0][0] is not Wait.MAIL
        ):
            return False
        owed.clear()
        self.replies_read += count
        transaction.accepted = list(transaction.recipients)
        transaction.phase = Phase.PREPARED
        events.append(Prepared(transaction.tag, tuple(transaction.outcomes)))
        return True

    def _envelope_reply(
        self, wait: Wait, index: int, reply: Reply, klass: Class, events: list[Event]
    ) -> None:
        transaction = self._preparing
        assert transaction is not None  # whoever forgets a transaction forgets what it is owed
        if (klass is Class.INTERMEDIATE) and wait is not Wait.DATA:
            if wait is not Wait.MAIL or not transaction.is_resend or reply.code != OFFSET:
                text = "the peer answers an envelope command with 3yz"
                raise RemoteProtocolError(text, reply.text)
            self._resume(transaction, reply)
        elif wait is Wait.MAIL:
            if klass is not Class.POSITIVE:
                transaction.mail_reply = reply
                self._drop_unsaid(transaction)
            elif transaction.is_resend:  # it is new to the peer
                self._heed_limit(transaction)
        elif wait is Wait.RCPT:
            if transaction.mail_reply is None:
                if klass is Class.POSITIVE:
                    transaction.accepted.append(index)
                else:
                    transaction.outcomes.append(recipient_outcome(index, reply, transaction))
            elif klass is Class.POSITIVE:
                # A lone dot could now make an empty message for this recipient.
                raise RemoteProtocolError("the peer takes a recipient without a sender", reply.text)
            is_last = index == transaction.recipients[-1]
            if is_last and not transaction.accepted:
                self._drop_unsaid(transaction)
        elif klass is Class.POSITIVE:
            raise RemoteProtocolError("the peer answers DATA with 2yz", reply.text)
        elif klass is Class.INTERMEDIATE:
            self._data_accepted(transaction, events)
            return
        else:
            if transaction.accepted and transaction.mail_reply is None:
                kind = outcome_kind(reply)
                transaction.outcomes += [Outcome(i, kind, reply) for i in transaction.accepted]
            self._needs_reset = transaction.mail_reply is None
            events += self._settle_preparing()
            return
        if (
            not transaction.is_data_said
            and self._said >= len(transaction.commands)
            and not any(owed in ENVELOPE for owed, _ in self._owed)
        ):
            is_wanted = transaction.mail_reply is None and not transaction.is_withdrawn
            if transaction.chunks is not None and transaction.accepted and is_wanted:
                transaction.phase = Phase.PREPARED
                events.append(Prepared(transaction.tag, tuple(transaction.outcomes)))
                return
            self._needs_reset = transaction.mail_reply is None
            events += self._settle_preparing()

    def _resume(self, transaction: Transaction, reply: Reply) -> None:
        """355: the peer knows this transaction, and says how many octets of its content it has."""
        if transaction.is_withdrawn:
            return
        offset = reply.lines[0].partition(b" ")[0]
        if offset.isdigit() and int(offset[:20]) == transaction.size_octets:
            transaction.is_known = True
            transaction.accepted = list(transaction.recipients)
            del transaction.commands[1 : -1 if transaction.chunks is None else None]
            return
        # It has something else under that name, or a part. What it did not complete it has not
        # sent on, so a transaction without a name brings nothing twice, and never too little.
        transaction.commands[0] = without_name(transaction.commands[0])
        transaction.is_resend = False
        self._heed_limit(transaction)
        self.transid = b""
        self._said = 0
        self._needs_reset = True

    def _heed_limit(self, transaction: Transaction) -> None:
        """Nobody beyond the peer's RCPTMAX is offered (RFC 9422 4.2)."""
        if 0 < self._limits.recipients < len(transaction.recipients):
            transaction.keep(self._limits.recipients, self._limits.next_time)

    def _drop_unsaid(self, transaction: Transaction) -> None:
        """Commands that have become pointless are not said (without pipelining)."""
        del transaction.commands[self._said :]

    def _data_accepted(self, transaction: Transaction, events: list[Event]) -> None:
        if transaction.mail_reply is None and transaction.accepted:
            if transaction.is_withdrawn:
                self._preparing = None
                events.append(Withdrawn(transaction.tag))
                events += self._end("withdrawn behind 354")
                return
            transaction.phase = Phase.PREPARED
            events.append(Prepared(transaction.tag, tuple(transaction.outcomes)))
            return
        # RFC 2920 3.1: DATA was accepted although no recipient was: end it at once.
        self._output.append(b".\r\n")
        self._owed.append((Wait.LONE_DOT, 0))
        events += self._settle_preparing()

    def _settle_preparing(self) -> list[Event]:
        """No content will follow: every recipient has its outcome."""
        transaction, self._preparing = self._preparing, None
        assert transaction is not None
        transaction.phase = Phase.SETTLED
        if transaction.is_withdrawn:
            return [Withdrawn(transaction.tag)]
        reply = transaction.mail_reply
        if reply is not None:
            kind = outcome_kind(reply)
            transaction.outcomes = [Outcome(i, kind, reply) for i in transaction.everyone]
        return [Prepared(transaction.tag, tuple(transaction.outcomes))]
