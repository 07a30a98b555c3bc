"""Fits contents to what the far end of one association takes: converted where it takes less, with
the field MT-Priority before it where it has no ear for priorities (RFC 6758 section 3.3).

Law: what is sent in another encoding than it came in is decided before anything of it is said to
the far end; what cannot be converted is offered as it is, and refused by the sender's machine
(5.6.3). The stored content never changes. However long it is, a piece of it is in memory at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mta.interfaces import IBodyTypes, IContent, IPriorities, ISender, ISpool
from mta.model import BodyType, ContentForm, Envelope, Requires
from mta.telemetry import Telemetry
from mta.transfer.work import Message
from mta.wire.mime.convert import Converter, Plan, Survey, Unconvertible

PIECE_OCTETS = 256 * 1024
"""What a content hands out at most (IContent.read), and up to which a converted one is kept."""
_RANKS = {BodyType.SEVEN_BIT: 0, BodyType.EIGHT_BIT_MIME: 1, BodyType.BINARY_MIME: 2}


class Fitting:
    """Of one association."""

    __slots__ = ("_rank", "_relay", "_spool", "_takes", "_telemetry", "_tunnels")

    def __init__(self, spool: ISpool, sender: ISender, telemetry: Telemetry) -> None:
        types = IBodyTypes(sender, None)
        self._takes = BodyType.BINARY_MIME if types is None else types.takes
        self._rank = _RANKS[self._takes]
        hearing = IPriorities(sender, None)
        self._tunnels = hearing is not None and hearing.tunnels
        self._spool = spool
        self._relay = sender.relay
        self._telemetry = telemetry

    def must_change(self, envelope: Envelope) -> bool:
        """The far end is not to have it as it is stored."""
        if envelope.priority and self._tunnels:
            return True
        return envelope.body_type is not BodyType.SEVEN_BIT and self._must_convert(envelope)

    def _must_convert(self, envelope: Envelope) -> bool:
        """The far end does not take it as it is, and it may be changed."""
        body = envelope.body_type
        if body is BodyType.SEVEN_BIT or _RANKS[body] <= self._rank:
            return False
        return not (envelope.requires & Requires.EIGHT_BIT and self._rank == 0)

    async def fit(self, message: Message, content: IContent) -> IContent:
        """What to send in the place of `content`, which is used up. @raise Corrupt, Unavailable,
        KeyError: as ISpool.content.
        """
        envelope = message.envelope
        if self._must_convert(envelope):
            content = await self._convert(message, content)
        if envelope.priority and self._tunnels:
            # No stored header has this field: `mta.transfer.priorities` takes it out.
            field = b"MT-Priority: %d\r\n" % envelope.priority
            content = Fronted(field, content, envelope_for(content, envelope))
        return content

    async def _convert(self, message: Message, content: IContent) -> IContent:
        envelope = message.envelope
        is_stuffed = envelope.content_form is ContentForm.DOT_STUFFED
        survey = Survey(self._takes, is_stuffed=is_stuffed)
        what = f"for {self._relay}, which takes {self._takes.value} at most"
        try:
            async for piece in _pieces(content):
                survey.take(piece)
            plan = survey.plan()
        except Unconvertible as why:
            text = f"cannot be converted {what}: {why}"
            self._telemetry.notice("warning", "transfer", text, message.queue_id)
            return content
        content.close()
        self._telemetry.notice("info", "transfer", f"converted {what}", message.queue_id)
        new = replace(envelope, body_type=self._takes, content_form=ContentForm.DOT_STUFFED)
        size, kept = 0, list[bytes]()
        source = await self._open(message.queue_id)
        try:
            async for piece in _converted(source, plan):
                size += len(piece)
                if size <= PIECE_OCTETS:
                    kept.append(piece)
        finally:
            source.close()
        if size <= PIECE_OCTETS:
            return Converted(new, size, tuple(kept), None, plan)
        return Converted(new, size, None, await self._open(message.queue_id), plan)

    async def _open(self, queue_id: str) -> IContent:
        opened = self._spool.content(queue_id)
        return await opened if isinstance(opened, Deferred) else opened


@implementer(IContent)
class Converted:
    """Another form of a stored content, in wire form; `envelope` is what it travels under."""

    def __init__(
        self,
        envelope: Envelope,
        size_octets: int,
        resident: tuple[bytes, ...] | None,
        source: IContent | None,
        plan: Plan,
    ) -> None:
        self.envelope = envelope
        self.size_octets = size_octets
        self.resident = resident
        self._source = source
        self._coming = _converted(source, plan) if source is not None else _all(resident or ())

    def read(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        return await anext(self._coming, b"")

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


@implementer(IContent)
class Fronted:
    """A content with a header field before it."""

    def __init__(self, front: bytes, content: IContent, envelope: Envelope) -> None:
        self.envelope = envelope
        self.size_octets = len(front) + content.size_octets
        resident = content.resident
        self.resident = None if resident is None else (front, *resident)
        self._front = front
        self._content = content

    def read(self) -> Deferred[bytes]:
        front, self._front = self._front, b""
        return succeed(front) if front else self._content.read()

    def close(self) -> None:
        self._content.close()


def envelope_for(content: IContent, envelope: Envelope) -> Envelope:
    """What `content` of a message with this envelope travels under."""
    return content.envelope if isinstance(content, _REFITTED) else envelope


_REFITTED = (Converted, Fronted)


async def _all(pieces: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _pieces(content: IContent) -> AsyncIterator[bytes]:
    if content.resident is not None:
        for piece in content.resident:
            yield piece
        return
    while piece := await content.read():
        yield piece


async def _converted(source: IContent, plan: Plan) -> AsyncIterator[bytes]:
    """In pieces that are neither empty nor too long."""
    converter = Converter(plan)
    async for piece in _pieces(source):
        said = converter.take(piece)
        for at in range(0, len(said), PIECE_OCTETS):
            yield said[at : at + PIECE_OCTETS]
    said = converter.end()
    for at in range(0, len(said), PIECE_OCTETS):
        yield said[at : at + PIECE_OCTETS]
