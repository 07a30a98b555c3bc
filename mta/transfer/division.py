"""Divides a message into what one transfer each can carry: by destination, and by doubt.

Law: every pending recipient is in exactly one part. Recipients that are in doubt travel as they
were sent before, never together with others. A routing plugin that breaks keeps mail waiting; it
neither loses nor returns any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mta.interfaces import IRouting
from mta.model import Doubt, RecipientStatus, Route, Unroutable
from mta.telemetry import Telemetry
from mta.transfer.doubts import Doubts
from mta.transfer.ledger import Ledger
from mta.transfer.work import Message


class Part(NamedTuple):
    """Recipients (indexes) for one transfer."""

    route: Route
    recipients: tuple[int, ...]
    doubt: Doubt | None


_NOBODY: Mapping[Unroutable, list[int]] = {}


class Division:
    """For one dispatch."""

    def __init__(
        self, routing: IRouting, ledger: Ledger, doubts: Doubts, telemetry: Telemetry
    ) -> None:
        self._routing = IRouting(routing)
        self._ledger = ledger
        self._doubts = doubts
        self._telemetry = telemetry

    def divide(self, message: Message) -> tuple[list[Part], Mapping[Unroutable, list[int]]]:
        """The parts, and the recipients that no connector takes."""
        state = message.state
        if len(state.recipients) == 1 and state.recipients[0].status is RecipientStatus.PENDING:
            found = self._route(message, 0)
            if isinstance(found, Unroutable):
                return [], {found: [0]}
            if not self._ledger.doubts:
                return [Part(found, (0,), None)], _NOBODY
            return self._parts(message, found, [0]), _NOBODY
        groups: dict[tuple[str, bool], tuple[Route, list[int]]] = {}
        lost: dict[Unroutable, list[int]] = {}
        recipients = message.envelope.recipients
        for index in state.pending:
            found = self._route(message, index)
            if isinstance(found, Unroutable):
                lost.setdefault(found, []).append(index)
            else:
                # Who needs SMTPUTF8 travels apart: a server without it can take the others.
                address = recipients[index].address
                is_apart = not address.text.isascii() and not address.local.isascii()
                key = (found.destination, is_apart)
                groups.setdefault(key, (found, []))[1].append(index)
        return [
            part
            for route, indexes in groups.values()
            for part in self._parts(message, route, indexes)
        ], lost

    def _parts(self, message: Message, route: Route, indexes: list[int]) -> list[Part]:
        if message.queue_id not in self._ledger.doubts:
            return [Part(route, tuple(indexes), None)]
        divided = self._doubts.divide(message.queue_id, indexes)
        return [Part(route, recipients, doubt) for recipients, doubt in divided]

    def _route(self, message: Message, index: int) -> Route | Unroutable:
        envelope = message.envelope
        try:
            return self._routing.route(envelope.recipients[index].address, envelope)
        except Exception as problem:
            self._telemetry.notice(
                "critical", "transfer", f"routing failed: {problem!r}", message.queue_id
            )
            return Unroutable("the routing of this address failed here", 451, "4.3.5")
