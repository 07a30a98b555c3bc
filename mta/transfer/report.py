"""Turns "this sender must be told" into a report message with its own queue id.

Law: the same facts give the same queue id (model.derived_queue_id), so that a batch which is
written twice makes one report. Of the original only its header block is read and returned; a
content that cannot be read does not keep the sender from being told.

RFC 3462, RFC 3464; RFC 5321 4.5.5 (reports have the null reverse-path).
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from mta.errors import Corrupt, Unavailable
from mta.interfaces import IClock, IContent, ISpool
from mta.model import (
    NULL_ADDRESS,
    Address,
    BodyType,
    Envelope,
    EnvelopeKind,
    Outcome,
    Recipient,
    Report,
    derived_queue_id,
)
from mta.transfer.settle import ReportDue
from mta.transfer.work import Message

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


class Reporter:
    """Makes the reports of one tenure."""

    def __init__(
        self, spool: ISpool, clock: IClock, network_name: str, postmaster: Address
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._network_name = network_name
        self._postmaster = postmaster

    async def make(
        self,
        message: Message,
        due: Sequence[ReportDue],
        outcomes: Sequence[Outcome],
        relay: str,
    ) -> tuple[Report, ...]:
        """One report for each of `due`, all about `message`."""
        headers = await self._headers(message.queue_id)
        return tuple(self._report(message, each, outcomes, relay, headers) for each in due)

    async def _headers(self, queue_id: str) -> bytes:
        try:
            opened = self._spool.content(queue_id)
            content = await opened if isinstance(opened, Deferred) else opened
            return await header_block(content)
        except (Corrupt, Unavailable, KeyError):
            return b""
