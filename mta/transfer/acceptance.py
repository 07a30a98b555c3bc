"""One message between its last octet and its reply: committed, answered, offered, in this order.

Law: this module alone says 250, and only after `IStaging.commit` fired: durable, epoch re-read
(RFC 5321 6.1, RFC 1047). After a lost epoch nothing is answered and nothing offered. A commit whose
result is unknown is looked for by its queue id before anything is said.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mta.errors import Fenced, SpoolError, TenureRevoked, Unknown
from mta.interfaces import IStaging, ITenure
from mta.model import Envelope, MessageState, Reply
from mta.policy.transaction import Transaction
from mta.telemetry import Accepted
from mta.transfer.desk import UNAVAILABLE, Desk, store_reply
from mta.transfer.reservation import Reservation


class Acceptance:
    """Nobody can call it back: when the commit succeeds the message is ours, even if its client
    has gone. `answered` fires with the reply; it fails when the association must be aborted.
    """

    __slots__ = (
        "_desk",
        "_envelope",
        "_reservation",
        "_state",
        "_tenure",
        "_transaction",
        "answered",
    )

    def __init__(
        self,
        desk: Desk,
        tenure: ITenure,
        transaction: Transaction,
        envelope: Envelope,
        state: MessageState,
    ) -> None:
        self.answered: Deferred[Reply] = Deferred()
        self._desk = desk
        self._tenure = tenure
        self._transaction = transaction
        self._envelope = envelope
        self._state = state
        self._reservation: Reservation | None = None

    def commit(self, staging: IStaging, prepend: bytes) -> Deferred[Reply]:
        """Begin; `prepend` goes before the staged content."""
        envelope, state = self._envelope, self._state
        reservation = self._desk.queue.reserve(staging.queue_id, envelope, state)
        intent = None if reservation is None else reservation.intent
        self._reservation = reservation
        try:
            durable = staging.commit(envelope, state, prepend, intent)
        except SpoolError:
            self._not_durable(Failure())
        else:
            durable.addCallbacks(self._durable, self._not_durable)
        return self.answered

    def _durable(self, _: object) -> None:
        desk, transaction, envelope = self._desk, self._transaction, self._envelope
        queue_id = transaction.queue_id
        if not self._tenure.is_live:
            # No reply: the association is gone, its client will come again. What was written is
            # found by whoever owns the spool next; should that be us, it must be due again.
            self._unreserve()
            self._give_back()
            self.answered.errback(
                TenureRevoked(f"{queue_id} became durable after its tenure had ended")
            )
            return
        association = transaction.association
        desk.accepted.inc()
        desk.accepted_octets.inc(transaction.size_octets)
        desk.telemetry.event(
            Accepted(
                queue_id,
                envelope.association,
                association.client,
                association.helo,
                association.protocol,
                envelope.sender.text,
                transaction.size_octets,
                len(envelope.recipients),
                envelope.message_id,
                association.vip,
                association.mechanism,
                association.user,
                envelope.priority,
            )
        )
        # Durable, epoch re-read: now 250, and the message moves on behind it.
        self.answered.callback(queued(queue_id))
        if self._state.held:
            desk.telemetry.notice("info", "intake", f"held by policy: {transaction.held}", queue_id)
            self._give_back()
        else:
            desk.queue.offer(queue_id, envelope, self._state, self._reservation)
        desk.chain.tell("queued", transaction)

    def _not_durable(self, failure: Failure) -> None:
        self._unreserve()
        error = failure.value
        reply = store_reply(error)
        if reply is not None:
            self._refuse(reply)
        elif isinstance(error, Unknown):
            probe = Deferred.fromCoroutine(self._probe())
            probe.addCallbacks(self._probed, self._lost_sight)
        else:
            self._lost_sight(failure)

    def _lost_sight(self, failure: Failure) -> None:
        """Nobody can say whether it is ours: no reply, and should it be, it is due."""
        error, queue_id = failure.value, self._transaction.queue_id
        if isinstance(error, Fenced | TenureRevoked):
            self.answered.errback(failure)
            return
        self._give_back()
        unknown = Unknown(
            "a message's commit has no known result, its association is reset",
            str(error) or type(error).__name__,
            f"if {queue_id} is queued it will be sent; its client may send it again",
        )
        self._desk.telemetry.notice("critical", "intake", str(unknown), queue_id)
        self.answered.errback(unknown)

    async def _probe(self) -> bool:
        """After Unknown: is it queued? What cannot be found out either is raised."""
        spool = self._desk.spool
        try:
            found = spool.load(self._transaction.queue_id)
            if isinstance(found, Deferred):
                await found
        except KeyError:
            return False
        spool.check()
        return True

    def _probed(self, is_queued: bool) -> None:
        if is_queued:
            self._durable(None)
        else:
            self._refuse(UNAVAILABLE)

    def _refuse(self, reply: Reply) -> None:
        transaction = self._transaction
        self._desk.refused(reply, "END-OF-MESSAGE", transaction.association, transaction)
        self.answered.callback(reply)
        self._desk.chain.tell("abort", transaction)

    def _unreserve(self) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.give_back()

    def _give_back(self) -> None:
        try:
            self._desk.spool.give_back(self._transaction.queue_id, None)
        except (SpoolError, KeyError):
            pass  # not ours any more, or never was


def queued(queue_id: str) -> Reply:
    """Postfix's words, which log readers know."""
    return Reply(250, "2.0.0", (b"Ok: queued as " + queue_id.encode(),))


def discarded(desk: Desk, transaction: Transaction) -> Reply:
    """Say in the log that a policy dropped it. Its client hears what others hear."""
    text = f"discarded by policy: {transaction.discarded}"
    desk.telemetry.notice("info", "intake", text, transaction.queue_id)
    return queued(transaction.queue_id)
