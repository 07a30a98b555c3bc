"""The operators' commands, whatever they come by: control socket, HTTP, a console.

Law: a command answers with plain values (dict, list, str, numbers), in bounded memory: long answers
are emitted item by item, in pages, and the reactor turns between two pages. What changes the queue
is durable before it is answered.
"""

from __future__ import annotations

import enum
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from twisted.internet.defer import Deferred

from mta.admin.doubts import doubt_facts
from mta.admin.lines import rfc3339
from mta.admin.probe import LEVELS, Probed
from mta.admin.text import neutral
from mta.admin.tls_reports import TlsReports, is_day
from mta.errors import MTAError
from mta.interfaces import IClock, IContent, IRouting, ISpool
from mta.model import (
    Address,
    Candidate,
    QueueAct,
    QueueEntry,
    QueueFilter,
    RecipientStatus,
    Route,
    Unroutable,
    grade_of,
)
from mta.telemetry import Accepted, Event, Notice, Removed, Telemetry, Transferred

PAGE = 200
"""Messages looked at or acted upon between two turns of the reactor: about 3 ms."""
RECENT = 4096
"""Events kept for `trace`: the last second or two of a busy bridgehead."""
LONGEST_WAIT_SECONDS = 60

Emit = Callable[[dict[str, Any]], Deferred[None] | None]
"""Takes one item of an answer; a Deferred asks to wait until the reader has caught up."""


class UsageFault(MTAError):
    """The command or its arguments make no sense."""

    exit_code = os.EX_USAGE


class NotQueued(MTAError):
    """No message of that id is queued here."""

    exit_code = os.EX_NOINPUT


@dataclass(frozen=True, slots=True)
class Facts:
    """What the commands need of the house. `spool` and `routing` raise ClusterNotInitialised on a
    standby node, and say who owns the queue.
    """

    status: Callable[[], dict[str, Any]]
    spool: Callable[[], ISpool]
    routing: Callable[[], IRouting]
    terms: Callable[[Route], Sequence[str]]
    """On which terms its connector speaks with the servers of a route, and who says so; each once.
    """
    parse_address: Callable[[bytes], Address]
    """@raise ValueError, MTAError: not an address."""
    retry_now: Callable[[Sequence[str]], object]
    pump: Callable[[], object]
    forget: Callable[[Sequence[str]], object]
    """These were held or deleted: no transfer of them begins any more."""
    probe: Callable[[int, bool], Deferred[Probed]]
    """A level of mta.admin.probe.LEVELS, and whether a standby that could take over is well too."""
    accept_clock: Callable[[], bool]
    """The operator vouches for a suspect clock; False when it was not suspect."""
    tls_reports: TlsReports | None = None
    """None: none are kept."""


class Commands:
    """One instance a process. `names` is what can be asked; `run` does it."""

    def __init__(self, facts: Facts, clock: IClock, telemetry: Telemetry) -> None:
        self._facts = facts
        self._clock = clock
        self._telemetry = telemetry
        self._recent: deque[Event] = deque(maxlen=RECENT)
        telemetry.attach(self._recent.append)
        self._table: dict[str, Callable[[_Arguments, Emit], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "queue-list": self._list,
            "queue-show": self._show,
            "queue-hold": self._hold,
            "queue-release": self._release,
            "queue-retry": self._retry,
            "queue-delete": self._delete,
            "queue-in-doubt": self._in_doubt,
            "route-explain": self._route,
            "probe": self._probe,
            "cluster-accept-clock": self._accept_clock,
            "trace": self._trace,
            "tls-report": self._tls_report,
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._table)

    def status(self) -> dict[str, Any]:
        """What /status.json and `mta status` show."""
        return plain(self._facts.status())  # type: ignore[no-any-return]

    async def run(self, name: str, arguments: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
        """Do `name`; items go to `emit`, the summary is answered.

        @raise UsageFault: unknown command or argument. @raise MTAError: whatever it met.
        """
        command = self._table.get(name)
        if command is None:
            raise UsageFault(
                f"unknown command {neutral(name, 60)!r}", remedy=f"one of {', '.join(self._table)}"
            )
        given = _Arguments(name, arguments)
        answer = await command(given, emit)
        return answer

    # --- reading ------------------------------------------------------------------------------

    async def _status(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        given.end()
        return self.status()

    async def _list(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        chosen = given.filter()
        limit = given.whole("limit", 0)
        given.end()
        count = octets = 0
        async for page in self._pages(chosen):
            for entry in page:
                count += 1
                octets += entry.size_octets
                await _told(emit(entry_facts(entry)))
                if count == limit:
                    return {"messages": count, "octets": octets, "limited": True}
        return {"messages": count, "octets": octets}

    async def _show(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        queue_id = given.text("id")
        headers = given.flag("headers")
        given.end()
        if not queue_id:
            raise UsageFault("queue-show needs the id of a message")
        spool = self._facts.spool()
        found = await spool.scan(QueueFilter(queue_ids=(queue_id,)), "", 1)
        if not found:
            raise NotQueued(f"{neutral(queue_id, 60)} is not queued", remedy="see mta queue list")
        facts = entry_facts(found[0], full=True)
        facts["in_doubt"] = [
            doubt_facts(doubt, found[0]) for doubt in spool.in_doubt() if doubt.queue_id == queue_id
        ]
        if headers:
            facts["headers"] = await self._headers(spool, queue_id)
        return facts

    async def _headers(self, spool: ISpool, queue_id: str) -> list[str]:
        """The header lines, as far as the first piece of the content reaches (256 KiB)."""
        content = await _answer(spool.content(queue_id))
        opened: IContent = content
        try:
            piece = b"".join(opened.resident) if opened.resident else await opened.read()
        finally:
            opened.close()
        head, _, _ = piece[: 256 * 1024].partition(b"\r\n\r\n")
        return [neutral(line.replace(b"\t", b" ")) for line in head.split(b"\r\n")]

    async def _in_doubt(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        given.end()
        spool = self._facts.spool()
        doubts = spool.in_doubt()
        for start in range(0, len(doubts), PAGE):
            page = doubts[start : start + PAGE]
            ids = tuple(dict.fromkeys(doubt.queue_id for doubt in page))
            found = await spool.scan(QueueFilter(queue_ids=ids), "", len(ids))
            entries = {entry.queue_id: entry for entry in found}
            for doubt in page:
                await _told(emit(doubt_facts(doubt, entries.get(doubt.queue_id))))
            await self._breathe()
        return {"in_doubt": len(doubts)}

    async def _route(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        text = given.text("address")
        given.end()
        try:
            address = self._facts.parse_address(text.encode("utf-8", "surrogateescape"))
        except (ValueError, MTAError) as error:
            raise UsageFault(f"{neutral(text, 320)!r} is no address", str(error)) from None
        found = self._facts.routing().route(address, None)
        for candidate in found.candidates:
            await _told(emit(_candidate(candidate)))
        if isinstance(found, Unroutable):
            reply = f"{found.code} {found.enhanced}"
            return {"address": str(address), "routable": False, "why": found.why, "reply": reply}
        return {
            "address": str(address),
            "routable": True,
            "connector": found.connector,
            "destination": found.destination,
            "bridgeheads": [str(b) for b in found.bridgeheads],
            "mx_domain": found.mx_domain.decode("ascii", "backslashreplace"),
            "cost": found.cost,
            "why": found.why,
            "terms": list(self._facts.terms(found)),
            "alternatives": [route.connector for route in found.alternatives],
        }

    async def _probe(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        level = given.whole("level", 0)
        standby = given.flag("standby")
        given.end()
        if level not in LEVELS:
            remedy = f"one of {', '.join(map(str, LEVELS))}"
            raise UsageFault(f"probe level {level} does not exist", remedy=remedy)
        found = await self._facts.probe(level, standby)
        return {"level": level, **plain(found)}

    async def _accept_clock(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        given.end()
        self._facts.spool()
        return {"changed": self._facts.accept_clock()}

    async def _tls_report(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        """The reports of a day (today's unless given), of one domain or all, as they are kept."""
        domain, day = given.text("domain"), given.text("day")
        given.end()
        reports = self._facts.tls_reports
        if reports is None:
            remedy = "name a directory in tls-reports, and start the MTA anew"
            raise UsageFault("no reports of TLS are kept here", remedy=remedy)
        day = day or reports.today()
        if not is_day(day):
            raise UsageFault(f"{neutral(day, 40)!r} is no day", remedy="write 2026-11-24")
        await reports.flush()
        try:
            domains = [domain] if domain else await reports.domains(day)
            number = 0
            for start in range(0, len(domains), PAGE):
                found = await reports.read(day, domains[start : start + PAGE])
                number += len(found)
                for document in found:
                    await _told(emit(document))
        except OSError as error:
            raise MTAError("the reports cannot be read", str(error)) from None
        return {"day": day, "reports": number}

    async def _trace(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        """What lately happened to one message; with `wait` not before something did to each of its
        recipients, or so many seconds are over. `mta send` asks this.
        """
        queue_id = given.text("id")
        wait = given.whole("wait", 0)
        given.end()
        if not queue_id:
            raise UsageFault("trace needs the id of a message")
        found = [e for e in self._recent if getattr(e, "queue_id", None) == queue_id]
        if wait and not _is_through(found):
            found = await self._more(found, queue_id, min(wait, LONGEST_WAIT_SECONDS))
        for event in found:
            await _told(emit({"event": type(event).__name__.lower(), **plain(event)}))
        return {"id": neutral(queue_id, 60), "through": _is_through(found)}

    def _more(self, found: list[Event], queue_id: str, seconds: float) -> Deferred[list[Event]]:
        """Fires with `found` and what was raised for the message until it was through."""
        arrived: Deferred[list[Event]] = Deferred()

        def watch(event: Event) -> None:
            if getattr(event, "queue_id", None) == queue_id:
                found.append(event)
                if _is_through(found) and not arrived.called:
                    arrived.callback(found)

        def over() -> None:
            if not arrived.called:
                arrived.callback(found)

        def settled(result: Any) -> Any:
            self._telemetry.detach(watch)
            timer.cancel()
            return result

        self._telemetry.attach(watch)
        timer = self._clock.call_later(seconds, over)
        return arrived.addBoth(settled)

    # --- acting -------------------------------------------------------------------------------

    async def _hold(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        return await self._act(QueueAct.HOLD, given, emit)

    async def _release(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        return await self._act(QueueAct.RELEASE, given, emit)

    async def _retry(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        return await self._act(QueueAct.RETRY, given, emit)

    async def _delete(self, given: _Arguments, emit: Emit) -> dict[str, Any]:
        return await self._act(QueueAct.DELETE, given, emit)

    async def _act(self, act: QueueAct, given: _Arguments, emit: Emit) -> dict[str, Any]:
        chosen, everything = given.filter(), given.flag("all")
        given.end()
        if chosen == QueueFilter() and not everything:
            raise UsageFault(
                f"queue {act.value} was not told which messages",
                remedy="name ids, --sender, --recipient, --domain, or say --all",
            )
        wanted = dict.fromkeys(chosen.queue_ids)
        applied = 0
        async for page in self._pages(chosen):
            ids = [entry.queue_id for entry in page]
            for queue_id in ids:
                wanted.pop(queue_id, None)
            done = await self._facts.spool().act(ids, act, self._clock.wall())
            applied += len(done)
            self._tell_the_house(act, done)
            for queue_id in done:
                await _told(emit({"id": queue_id, "act": act.value}))
        return {"act": act.value, "messages": applied, "not_queued": list(wanted)}

    def _tell_the_house(self, act: QueueAct, done: Sequence[str]) -> None:
        if act in {QueueAct.HOLD, QueueAct.DELETE}:
            self._facts.forget(done)
        if act is QueueAct.DELETE:
            for queue_id in done:
                self._telemetry.event(Notice("info", "queue", "deleted by an operator", queue_id))
                self._telemetry.event(Removed(queue_id))
        elif act is QueueAct.RETRY:
            self._facts.retry_now(done)
        elif act is QueueAct.RELEASE:
            self._facts.pump()

    async def _pages(self, chosen: QueueFilter) -> Any:
        """The entries that `chosen` means, a page at a time, with a turn of the reactor between."""
        after = ""
        while True:
            page: list[QueueEntry] = await self._facts.spool().scan(chosen, after, PAGE)
            if not page:
                return
            after = page[-1].queue_id
            yield page
            await self._breathe()

    def _breathe(self) -> Deferred[None]:
        """Fires with the next turn of the reactor."""
        turn: Deferred[None] = Deferred(lambda _d: timer.cancel())
        timer = self._clock.call_later(0.0, turn.callback, None)
        return turn


class _Arguments:
    """What came with a command: foreign JSON, so each value is looked at before it is used."""

    def __init__(self, command: str, given: Mapping[str, Any]) -> None:
        self._command = command
        self._given = dict(given)

    def text(self, key: str) -> str:
        value = self._given.pop(key, "")
        if not isinstance(value, str):
            raise UsageFault(f"{self._command}: {key} must be text")
        return value

    def flag(self, key: str) -> bool:
        value = self._given.pop(key, False)
        if not isinstance(value, bool):
            raise UsageFault(f"{self._command}: {key} must be true or false")
        return value

    def whole(self, key: str, default: int) -> int:
        value = self._given.pop(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageFault(f"{self._command}: {key} must be a whole number from 0")
        return value

    def filter(self) -> QueueFilter:
        ids = self._given.pop("ids", [])
        if not isinstance(ids, list) or not all(isinstance(i, str) and i for i in ids):
            raise UsageFault(f"{self._command}: ids must be a list of queue ids")
        held = self._given.pop("held", None)
        if held is not None and not isinstance(held, bool):
            raise UsageFault(f"{self._command}: held must be true or false")
        return QueueFilter(
            queue_ids=tuple(dict.fromkeys(ids)),
            sender=self.text("sender"),
            recipient=self.text("recipient"),
            domain=self.text("domain"),
            held=held,
        )

    def end(self) -> None:
        """Everything was understood. @raise UsageFault: something was not."""
        for key in self._given:
            raise UsageFault(f"{self._command} knows no argument {neutral(str(key), 60)!r}")


def _is_through(events: Sequence[Event]) -> bool:
    """The message left the queue, or each of its recipients was tried."""
    tried = sum(isinstance(event, Transferred) for event in events)
    recipients = next((e.recipients for e in events if isinstance(e, Accepted)), 1)
    return tried >= recipients or any(isinstance(event, Removed) for event in events)


async def _told(waiting: Deferred[None] | None) -> None:
    if waiting is not None:
        await waiting


async def _answer(given: Any) -> Any:
    """An answer that is at hand, or awaited."""
    return await given if isinstance(given, Deferred) else given


def queue_name(entry: QueueEntry) -> str:
    """Postfix's queue names: hold, active, deferred, incoming."""
    if entry.state.held:
        return "hold"
    if entry.active:
        return "active"
    return "deferred" if entry.state.attempts else "incoming"


def entry_facts(entry: QueueEntry, *, full: bool = False) -> dict[str, Any]:
    """One queued message as `postqueue -j` names its fields, and ours behind them.

    Only recipients that still wait are listed, unless `full`.
    """
    recipients: list[dict[str, Any]] = []
    for recipient, known in zip(entry.envelope.recipients, entry.state.recipients, strict=True):
        if full or known.status is RecipientStatus.PENDING:
            fact: dict[str, Any] = {"address": neutral(recipient.address.text)}
            if known.reply:
                fact["delay_reason"] = neutral(known.reply)
            if full:
                fact["status"] = known.status.name.lower()
                fact["enhanced"] = neutral(known.enhanced, 16)
                fact["remote"] = neutral(known.remote, 300)
                fact["original"] = neutral(recipient.original)
                fact["notify"] = plain(recipient.notify)
            recipients.append(fact)
    envelope, state = entry.envelope, entry.state
    facts: dict[str, Any] = {
        "queue_name": queue_name(entry),
        "queue_id": entry.queue_id,
        "arrival_time": int(envelope.received_at),
        "message_size": entry.size_octets,
        "forced_expire": False,
        "sender": neutral(envelope.sender.text),
        "recipients": recipients,
        "attempts": state.attempts,
        "next_attempt": None if state.held else state.due,
        "priority": envelope.priority,
        "grade": grade_of(envelope.priority).value,
        "kind": envelope.kind.value,
    }
    if full:
        facts |= {
            "arrived": rfc3339(envelope.received_at),
            "due": "held" if state.held else rfc3339(state.due),
            "last_attempt": rfc3339(state.last_attempt) if state.last_attempt else "",
            "client": neutral(envelope.client, 300),
            "association": neutral(envelope.association, 100),
            "message_id": neutral(envelope.message_id),
            "envelope_id": neutral(envelope.envelope_id),
            "body_type": envelope.body_type.value,
            "requires": plain(envelope.requires),
            "deliver_by": rfc3339(envelope.deliver_by) if envelope.deliver_by is not None else "",
            "delay_warned": state.delay_warned,
        }
    return facts


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "connector": candidate.connector,
        "pattern": candidate.pattern.decode("utf-8", "backslashreplace"),
        "cost": candidate.cost,
        "up": candidate.is_up,
        "verdict": candidate.verdict,
    }


def plain(value: Any) -> Any:
    """Any value of the model as JSON can say it, foreign text neutralised.

    Keys too: `SpoolStats.by_domain` has domains of peers as keys.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Flag):
        return value.name or "none"
    if isinstance(value, enum.Enum):
        return value.name.lower() if isinstance(value.value, int) else value.value
    if isinstance(value, bytes | str):
        return neutral(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        return {key: plain(part) for key, part in value._asdict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(part) for key, part in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(part) for part in value]
    return neutral(str(value))
