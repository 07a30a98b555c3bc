"""Names for the transactions of one association, where its far end tells them apart (RFC 1845).

Law: a name is made once, for one transaction, and is used again only for a resend of exactly that
INTENT: the same message, recipients and peer (spool.md section 6). Whatever the far end cannot, or
will not, tell apart goes without a name, and its INTENT says so.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mta.interfaces import ICheckpoints, IContent, ISender
from mta.model import Intent, Outcome
from mta.telemetry import Counter
from mta.transfer.conversion import envelope_for
from mta.transfer.work import Job

NAME_OCTETS = 80
"""RFC 1845 section 2: with the brackets."""


def new_name(queue_id: str, epoch: int, serial: int, network_name: str) -> str:
    """`<QUEUEID.EPOCH.SERIAL@network-name>`; `serial` counts all names of the epoch. Of a network
    name too long for it the last labels stand, for the name in EHLO belongs to it as well.
    """
    local = f"<{queue_id}.{epoch}.{serial}@"
    room = NAME_OCTETS - len(local) - 1
    domain = network_name
    while len(domain) > room:
        _, dot, domain = domain.partition(".")
        if not dot:
            domain = "x"
    return f"{local}{domain}>"


class Naming:
    """Prepares the transfers of one association, and says what their INTENTs are to say."""

    __slots__ = ("_checkpoints", "_epoch", "_named", "_network_name", "_peer", "_sender", "_slot")

    def __init__(
        self, sender: ISender, peer: str, epoch: int, network_name: str, named: Counter
    ) -> None:
        """`named` counts the names of all associations of this process, and so of the epoch."""
        found = ICheckpoints(sender, None)
        self._checkpoints = found if found is not None and found.can_checkpoint else None
        self._sender = sender
        self._slot = sender.slot
        self._peer = peer
        self._epoch = epoch
        self._network_name = network_name
        self._named = named

    def prepare(self, job: Job, content: IContent) -> Deferred[tuple[Outcome, ...]]:
        message, recipients, size_octets = job.message, job.recipients, content.size_octets
        job.is_begun = True
        envelope = envelope_for(content, message.envelope)
        checkpoints = self._checkpoints
        if checkpoints is None:
            return self._sender.prepare(message.queue_id, envelope, recipients, size_octets)
        name, doubt = "", job.doubt
        if doubt is not None and doubt.peer == self._peer and doubt.recipients == recipients:
            name = doubt.transaction
        is_resend = bool(name)
        if not is_resend:
            self._named.inc()
            serial = int(self._named.value)
            name = new_name(message.queue_id, self._epoch, serial, self._network_name)
        return checkpoints.prepare_named(
            message.queue_id,
            envelope,
            recipients,
            size_octets,
            transaction=name,
            is_resend=is_resend,
        )

    def intent(self, queue_id: str, recipients: tuple[int, ...]) -> Intent:
        """That of what was prepared last."""
        checkpoints = self._checkpoints
        transaction = "" if checkpoints is None else checkpoints.transaction
        return Intent(queue_id, self._slot, recipients, self._peer, transaction)

    def foretold(self, queue_id: str, recipients: tuple[int, ...]) -> Intent | None:
        """That of what is not prepared yet; None where a name has to be made first."""
        return None if self._checkpoints is not None else self.intent(queue_id, recipients)

    def end(self) -> bool:
        """Cut off in the midst of it: True when the association was ended here, without a QUIT."""
        if self._checkpoints is None:
            return False
        self._checkpoints.cut()
        return True
