"""What all receptions of an intake share: collaborators, counters, and how a refusal is said.

Law: no state of any one association or message lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mta.errors import Full, Unavailable
from mta.interfaces import (
    IAssociations,
    IAuthenticator,
    IClock,
    IContentEditor,
    IPolicy,
    IRoom,
    IRouting,
    ISpool,
)
from mta.model import Address, Reply, VirtualServer
from mta.policy.chain import Chain
from mta.policy.new_body import Bounds
from mta.policy.relay import RelayRule
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Rejected, Telemetry
from mta.transfer.repeats import Repeats
from mta.transfer.reservation import Queue
from mta.transfer.settings import IntakeSettings
from mta.transfer.trace import DateCache

FULL: Final = Reply(452, "4.3.1", (b"Insufficient system storage, try again later",))
UNAVAILABLE: Final = Reply(451, "4.3.0", (b"Mail storage is not available, try again later",))


class Desk:
    """Made by Intake, read by Reception and Acceptance."""

    def __init__(  # noqa: PLR0917 - the collaborators are Intake's own, in its order
        self,
        spool: ISpool,
        routing: IRouting,
        policies: Sequence[IPolicy],
        queue: Queue,
        clock: IClock,
        telemetry: Telemetry,
        settings: IntakeSettings,
        postmaster: Address,
        server: VirtualServer,
        repeats: Repeats,
        authenticator: IAuthenticator | None,
    ) -> None:
        self.repeats = repeats
        self.authenticator = authenticator
        self.spool: ISpool = ISpool(spool)
        self.room: IRoom | None = IRoom(spool, None)
        self.associations: IAssociations | None = IAssociations(spool, None)
        self.queue = queue
        self.clock: IClock = IClock(clock)
        self.telemetry = telemetry
        self.settings = settings
        self.relay = RelayRule(IRouting(routing), postmaster, server)
        self.chain = Chain(policies, clock, telemetry, settings.policy_timeout)
        self.streams = self.chain.wants("headers", "body")
        self.edits = any(IContentEditor.providedBy(policy) for policy in policies)
        self.tells_refusals = self.chain.wants("refused")
        self.hears_unknown = self.chain.wants("unknown")
        self.introduces = self.hears_unknown or self.chain.wants(
            "connect", "helo", "auth", "disconnect"
        )
        self.bounds: Mapping[str, Bounds] = {}
        self.dates = DateCache()
        self.external = {str(a.bind): str(a.external) for a in server.addresses}
        self.accepted = telemetry.counter(
            "mta_messages_accepted_total", "Messages that became ours: durable and answered."
        )
        self.accepted_octets = telemetry.counter(
            "mta_octets_accepted_total", "Content of the messages that became ours, octets."
        )
        self.repeated = telemetry.counter(
            "mta_transactions_repeated_total",
            "Named transactions that came again and were not taken twice (RFC 1845).",
        )
        self.rejected = telemetry.counter(
            "mta_rejects_total", "Commands and messages that were refused."
        )

    def refused(
        self,
        reply: Reply,
        stage: str,
        association: Association,
        transaction: Transaction | None,
        recipient: bytes = b"",
    ) -> Reply:
        """Say in the log that `reply` is given. `stage` is the command, or END-OF-MESSAGE."""
        self.rejected.inc()
        self.telemetry.event(
            Rejected(
                association.peer.association,
                association.client,
                stage,
                reply.text,
                b"" if transaction is None else transaction.sender.text,
                recipient,
                association.helo,
                association.protocol,
                "" if transaction is None else transaction.queue_id,
            )
        )
        return reply


def store_reply(error: BaseException | None) -> Reply | None:
    """The reply to a store's failure; None: there is none, the association must be aborted."""
    if isinstance(error, Full):
        return FULL
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    return None
