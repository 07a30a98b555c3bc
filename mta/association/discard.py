"""Takes every message and forgets it: a sink for tests and for address spaces nobody wants.

Law: an association kind like any other; its commit point is the moment it is asked. The content
is read to its end, so that a damaged one is noticed here as elsewhere.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mta.interfaces import IAssociationKind, IContent, ISender, ISurroundings, ITenure
from mta.model import Envelope, NextHop, Outcome, OutcomeKind, Reply
from mta.settings import Settings

_DISCARDED = Reply(250, "2.0.0", (b"discarded",))


class DiscardSettings(Settings):
    """Keys of a connector with `kind: discard`: none."""


@implementer(IAssociationKind)
class DiscardKind:
    """`kind: discard`."""

    name = "discard"
    commit_point = "at once"
    may_send = True
    may_receive = False

    def __init__(self, settings: DiscardSettings, surroundings: ISurroundings) -> None:
        # Slots are unique in the epoch, also when a reload makes this kind anew.
        self._number = surroundings.telemetry.counter(
            "mta_associations_opened_total", "Associations that we opened.", kind=self.name
        )

    def open(self, tenure: ITenure, hop: NextHop) -> Deferred[ISender]:
        self._number.inc()
        return succeed(
            DiscardSender(tenure, hop, f"discard/{hop.connector}/{int(self._number.value)}")
        )


@implementer(ISender)
class DiscardSender:
    """A slot that says yes."""

    can_overlap = False

    def __init__(self, tenure: ITenure, hop: NextHop, slot: str) -> None:
        self.slot = slot
        self.source = ""
        self.relay = hop.connector
        self._tenure = tenure
        self._is_closed = False
        self._recipients: tuple[int, ...] = ()

    @property
    def is_open(self) -> bool:
        return not self._is_closed and self._tenure.is_live

    def prepare(
        self, queue_id: str, envelope: Envelope, recipients: tuple[int, ...], size_octets: int
    ) -> Deferred[tuple[Outcome, ...]]:
        self._recipients = recipients
        return succeed(())

    def commit(self, content: IContent) -> Deferred[tuple[Outcome, ...]]:
        outcomes = tuple(
            Outcome(index, OutcomeKind.DELIVERED, _DISCARDED) for index in self._recipients
        )
        self._recipients = ()
        if content.resident is not None:
            return succeed(outcomes)
        return Deferred.fromCoroutine(self._read(content, outcomes))

    async def _read(self, content: IContent, outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        while await content.read():
            pass
        return outcomes

    def withdraw(self) -> Deferred[None]:
        self._recipients = ()
        return succeed(None)

    def close(self) -> Deferred[None]:
        self._is_closed = True
        return succeed(None)
