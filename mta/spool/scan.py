"""Looking through the queue for an operator.

Law: the reactor's thread looks at columns only, a few hundred slots at a time; envelopes are read
and compared on a worker. What arrives meanwhile may be missed, what leaves may still be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mta.errors import Corrupt, Fenced
from mta.model import Address, Envelope, QueueEntry, QueueFilter
from mta.spool.index import HELD, TAKEN, Index
from mta.spool.reading import Wanted, read_message
from mta.spool.segment import Reader

if TYPE_CHECKING:
    from mta.spool.owned import OwnedLog

_GROUP = 256


async def scan(owned: OwnedLog, chosen: QueueFilter, after: str, limit: int) -> list[QueueEntry]:
    """Up to `limit` entries behind `after`, in the order of queue ids."""
    found: list[QueueEntry] = []
    while len(found) < limit:
        names = candidates(owned.ledger.index, chosen, after)
        if not names:
            break
        after = names[-1]
        found += await _read_group(owned, chosen, names)
        if owned.ended is not None:
            raise Fenced("the tenure ended while the queue was looked through")
    return found[:limit]


def candidates(index: Index, chosen: QueueFilter, after: str) -> list[str]:
    """The next queue ids that the columns do not rule out; empty at the end."""
    if chosen.queue_ids:
        slots = {name: index.find(name) for name in chosen.queue_ids if name > after}
        return sorted(name for name, slot in slots.items() if slot >= 0)[:_GROUP]
    names = []
    for slot in islice(index.after(after), _GROUP * 16):
        names.append(index.queue_id(slot))
        if len(names) == _GROUP:
            break
    return names


async def _read_group(
    owned: OwnedLog, chosen: QueueFilter, names: Sequence[str]
) -> list[QueueEntry]:
    index = owned.ledger.index
    wanted: list[tuple[Wanted, bool, int]] = []
    segments = []
    for name in names:
        slot = index.find(name)
        if slot < 0 or chosen.held not in {None, bool(index.flags[slot] & HELD)}:
            continue
        one = owned.wanted(name)
        segments += [s for s in (one.segment, one.state_segment) if s is not None]
        wanted.append((one, bool(index.flags[slot] & TAKEN), index.size[slot]))
    owned.reader.bound(owned.ledger.segments.values())
    for segment in segments:
        segment.pins += 1
    try:
        read: Any = await owned.executor.submit(_read, owned.reader, chosen, wanted)
    finally:
        for segment in segments:
            segment.pins -= 1
    entries: list[QueueEntry] = read
    return entries


def _read(
    reader: Reader, chosen: QueueFilter, wanted: Sequence[tuple[Wanted, bool, int]]
) -> list[QueueEntry]:
    """On a worker. A damaged message is left out: whoever attempts it sets it aside."""
    found = []
    needle = literal(chosen)
    for one, active, octets in wanted:
        try:
            if needle and not mentions(reader, one, needle):
                continue
            message = read_message(reader, one, with_body=False)
        except (Corrupt, FileNotFoundError):
            continue
        if matches(chosen, message.envelope):
            found.append(QueueEntry(one.queue_id, octets, message.envelope, message.state, active))
    return found


def literal(chosen: QueueFilter) -> bytes:
    """Octets without which no envelope can match, in lower case; b"" when there are none."""
    texts = [chosen.sender, chosen.recipient, chosen.domain]
    # Case is folded octet by octet here, which says nothing about letters beyond ASCII.
    literals = [text.lstrip("*@.<>").lower().encode() for text in texts if text.isascii()]
    return max(literals, key=len, default=b"")


def mentions(reader: Reader, one: Wanted, needle: bytes) -> bool:
    """Whether the encoded envelope holds `needle`: a fifth of the cost of decoding it."""
    view = reader.read_head(one.segment, one.place)
    return view is None or needle in view.payload.lower()


def matches(chosen: QueueFilter, envelope: Envelope) -> bool:
    """Sender, recipient and domain: exact, or `*.x` for every name below x."""
    if chosen.sender and not _is(chosen.sender, envelope.sender):
        return False
    recipients = envelope.recipients
    if chosen.recipient and not any(_is(chosen.recipient, r.address) for r in recipients):
        return False
    if not chosen.domain:
        return True
    return any(_is_domain(chosen.domain, r.address.domain) for r in recipients)


def _is(pattern: str, address: Address) -> bool:
    if pattern == "<>":
        return address.is_null
    if pattern.startswith("*."):
        return _is_domain(pattern, address.domain)
    if pattern.startswith("*@"):
        return _is_domain(pattern[2:], address.domain)
    return str(address).casefold() == pattern.casefold()


def _is_domain(pattern: str, domain: bytes) -> bool:
    name = pattern.casefold().encode("utf-8", "backslashreplace")
    if name == b"*":
        return True
    if name.startswith(b"*."):
        return domain.endswith(name[1:])
    return domain == name
