"""Turns telemetry events into log lines: Postfix's shape, or JSON.

Law: one event gives a known number of lines whatever a peer wrote into it, and fields of ours stand
where the parsers of Postfix's lines have stopped reading (behind the status text).

The shapes follow Postfix's smtpd, cleanup, qmgr, smtp and bounce daemons, because pflogsumm,
fail2ban and the exporters key on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Protocol

from mta.admin.text import LINE_LIMIT, mailbox, neutral
from mta.telemetry import (
    Accepted,
    Command,
    Connected,
    Disconnected,
    Doubted,
    Notice,
    Rejected,
    Removed,
    Reported,
    Secured,
    TlsAttempt,
    Transferred,
    Transition,
)

DEBUG, INFO, WARNING, ERROR, CRITICAL = 7, 6, 4, 3, 2
"""syslog severities (RFC 5424 6.2.1)."""
SEVERITIES = {
    "debug": DEBUG,
    "info": INFO,
    "warning": WARNING,
    "error": ERROR,
    "critical": CRITICAL,
}
FACILITY_MAIL = 2 << 3
"""RFC 5424 6.2.1: mail system."""
HELO_LIMIT = 255
LINES_LIMIT = 4 * LINE_LIMIT
"""Characters of a whole line whose fields from our side were not what they should be."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MARKS = {WARNING: "warning: ", ERROR: "error: ", CRITICAL: "fatal: "}
_REPORTS = {
    "failed": "sender non-delivery notification",
    "delayed": "sender delay notification",
    "delivered": "sender delivery status notification",
    "relayed": "sender delivery status notification",
    "untimed": "sender delivery status notification",
    "traced": "sender delivery status notification",
    "double-bounce": "postmaster non-delivery notification",
}


class Formatter(Protocol):
    """What a LogObserver asks of a shape."""

    def lines(self, wall: float, epoch: int, event: Any) -> list[str]:
        """The lines of one event, without line ends."""
        ...


class PostfixLines:
    """`Nov 23 08:00:00 host NAME/smtp[pid]: QID: to=<...>, ...`.

    With `syslog` each line begins with the priority, and without the host, as /dev/log wants it.
    """

    def __init__(
        self, name: str, host: str, pid: int, *, least: int = INFO, syslog: bool = False
    ) -> None:
        self._name = name
        self._host = host
        self._pid = pid
        self._least = least
        self._syslog = syslog
        self._second = -1
        self._stamp = ""
        self._heads: dict[tuple[str, int], str] = {}
        self._shapes: dict[type, Callable[[int, Any], list[tuple[str, int, str]]]] = {
            Connected: self._connected,
            Disconnected: self._disconnected,
            Accepted: self._accepted,
            Rejected: self._rejected,
            Secured: self._secured,
            Transferred: self._transferred,
            Reported: self._reported,
            Doubted: self._doubted,
            Removed: self._removed,
            TlsAttempt: self._nothing,
            Transition: self._transition,
            Command: self._command,
            Notice: self._notice,
        }

    def lines(self, wall: float, epoch: int, event: Any) -> list[str]:
        second = int(wall)
        if second != self._second:
            self._second = second
            self._stamp = syslog_stamp(wall)
            self._heads.clear()
        shape = self._shapes.get(type(event), self._other)
        heads = self._heads
        made = []
        for program, severity, text in shape(epoch, event):
            head = heads.get((program, severity))
            if head is None:
                head = heads[program, severity] = self._head(program, severity)
            made.append(head + (text if text.isprintable() else neutral(text, LINES_LIMIT)))
        return made

    def _head(self, program: str, severity: int) -> str:
        tag = f"{self._name}/{program}[{self._pid}]: "
        if self._syslog:
            return f"<{FACILITY_MAIL | severity}>{self._stamp} {tag}"
        return f"{self._stamp} {self._host} {tag}"

    # one method an event; each answers (program, severity, text)
    def _connected(self, epoch: int, e: Connected) -> list[tuple[str, int, str]]:
        if e.peer_host.startswith("uid="):
            return []  # mta.admin.submit has said so, with the process id
        text = f"connect from {_client(e.peer_host)} vip={e.local_host} epoch={epoch}"
        proxy = f" proxy={e.proxy}" if e.proxy else ""
        return [("smtpd", INFO, f"{text} assoc={e.association}{proxy}")]

    def _disconnected(self, epoch: int, e: Disconnected) -> list[tuple[str, int, str]]:
        client = _client(e.peer_host)
        program = "submit" if e.peer_host.startswith("uid=") else "smtpd"
        end = (program, INFO, f"disconnect from {client} {neutral(e.commands)}".rstrip())
        if e.lost_after:
            lost = f"lost connection after {neutral(e.lost_after, 40)} from {client}"
            return [(program, INFO, lost), end]
        return [end]

    def _secured(self, epoch: int, e: Secured) -> list[tuple[str, int, str]]:
        program, way = ("smtpd", "from") if e.direction == "in" else ("smtp", "to")
        peer = _client(e.peer) if e.direction == "in" else neutral(e.peer, 300)
        text = f"{e.trust} TLS connection established {way} {peer}: {neutral(e.session)}"
        shown = f" fingerprint={_pairs(e.fingerprint)}" if e.fingerprint else ""
        return [(program, INFO, f"{text} assoc={e.association}{shown}")]

    def _accepted(self, epoch: int, e: Accepted) -> list[tuple[str, int, str]]:
        # As a tuple: a field by its name takes 150 instructions, and these are 14.
        (
            queue_id,
            association,
            client,
            helo,
            protocol,
            sent_by,
            size_octets,
            recipients,
            message_id,
            vip,
            sasl_method,
            sasl_username,
            priority,
        ) = e
        sender = mailbox(sent_by)
        if client.startswith("uid="):
            where, came = "pickup", f"{queue_id}: {neutral(client)} from=<{sender}>"
        else:
            where = "smtpd"
            came = (
                f"{queue_id}: client={_client(client)}, vip={vip}, epoch={epoch}"
                f", assoc={association}, proto={protocol}, helo=<{mailbox(helo, HELO_LIMIT)}>"
            )
            if sasl_method:
                came += f", sasl_method={sasl_method}, sasl_username={neutral(sasl_username)}"
        if priority:
            came += f", priority={priority}"
        return [
            (where, INFO, came),
            ("cleanup", INFO, f"{queue_id}: message-id={_message_id(message_id)}"),
            (
                "qmgr",
                INFO,
                f"{queue_id}: from=<{sender}>, size={size_octets}, "
                f"nrcpt={recipients} (queue active)",
            ),
        ]

    def _rejected(self, epoch: int, e: Rejected) -> list[tuple[str, int, str]]:
        stage = neutral(e.stage, 40)
        text = f"{e.queue_id or 'NOQUEUE'}: reject: {stage} from {_client(e.client)}: "
        text += f"{neutral(e.reply)};"
        if stage not in _BEFORE_MAIL:
            text += f" from=<{mailbox(e.sender)}>"
            if e.recipient:
                text += f" to=<{mailbox(e.recipient)}>"
        text += f" proto={neutral(e.protocol, 16)}"
        if e.helo:
            text += f" helo=<{mailbox(e.helo, HELO_LIMIT)}>"
        return [("smtpd", INFO, f"{text} epoch={epoch} assoc={e.association}")]

    def _transferred(self, epoch: int, e: Transferred) -> list[tuple[str, int, str]]:
        (
            queue_id,
            recipient,
            original,
            connector,
            kind,
            relay,
            delay,
            (before, in_queue, connecting, sending),
            enhanced,
            status,
            reply,
            vip,
            source,
            retry_in,
        ) = e  # see _accepted
        text = f"{queue_id}: to=<{mailbox(recipient)}>"
        if original:
            of, _, address = original.partition(b";")
            if of.lower() in {b"rfc822", b"utf-8"}:
                original = address
            if original != recipient:
                text += f", orig_to=<{mailbox(original)}>"
        text += (
            f", relay={neutral(relay, 300) or 'none'}, delay={_delay(delay)}, delays="
            f"{_delay(before)}/{_delay(in_queue)}/{_delay(connecting)}/{_delay(sending)}"
            f", dsn={neutral(enhanced, 16)}, status={status} ({neutral(reply)})"
            f" connector={connector} vip={vip} source={source} epoch={epoch}"
        )
        if retry_in is not None:
            text += f" retry_in={retry_in:.0f}"
        return [(kind, INFO, text)]

    def _reported(self, epoch: int, e: Reported) -> list[tuple[str, int, str]]:
        what = neutral(e.kind, 60)
        if not what.endswith("notification"):
            what = _REPORTS.get(what, f"sender {what} notification")
        size = f"size={e.size_octets}, nrcpt={e.recipients}"
        return [
            ("bounce", INFO, f"{e.queue_id}: {what}: {e.report_id}"),
            ("qmgr", INFO, f"{e.report_id}: from=<>, {size} (queue active)"),
        ]

    def _doubted(self, epoch: int, e: Doubted) -> list[tuple[str, int, str]]:
        text = f"{e.queue_id}: in doubt: side={e.side}, slot={neutral(e.slot, 300)}"
        text += f", peer={neutral(e.peer, 300)}, of_epoch={e.of_epoch}"
        recipients = "/".join(map(str, e.recipients)) or "-"
        via = f" via={neutral(e.via, 300)}" if e.via else ""
        return [("qmgr", INFO, f"{text}, recipients={recipients} epoch={epoch}{via}")]

    def _removed(self, epoch: int, e: Removed) -> list[tuple[str, int, str]]:
        return [("qmgr", INFO, f"{e.queue_id}: removed")]

    def _transition(self, epoch: int, e: Transition) -> list[tuple[str, int, str]]:
        text = f"{e.machine}: {e.before} -> {e.after} on {e.input}: {e.reason} epoch={epoch}"
        return [("cluster", INFO, neutral(text))]

    def _command(self, epoch: int, e: Command) -> list[tuple[str, int, str]]:
        text = f"command from uid={e.uid} gid={e.gid} pid={e.pid}: {neutral(e.command, 40)}"
        return [("control", INFO, f"{text} {neutral(e.arguments)}".rstrip())]

    def _notice(self, epoch: int, e: Notice) -> list[tuple[str, int, str]]:
        severity = SEVERITIES.get(e.level, WARNING)
        if severity > self._least:
            return []
        text = f"{e.queue_id}: " if e.queue_id else ""
        return [(e.room, severity, f"{_MARKS.get(severity, '')}{text}{neutral(e.text)}")]

    def _nothing(self, epoch: int, event: Any) -> list[tuple[str, int, str]]:
        """Another event of the same says it."""
        return []

    def _other(self, epoch: int, event: Any) -> list[tuple[str, int, str]]:
        """An event of a plugin: its name and its fields."""
        facts = " ".join(f"{key}={value}" for key, value in _fields(event).items())
        return [("event", INFO, neutral(f"{type(event).__name__}: {facts}"))]


class JSONLines:
    """One object a line: time (RFC 3339, UTC), host, name, pid, epoch, event and its fields.

    Everything beyond ASCII is written as an escape, so no octet of a peer reaches a terminal. The
    objects are flat and of known types, so they are put together here: a general encoder takes
    three times as long.
    """

    def __init__(
        self, name: str, host: str, pid: int, *, least: int = INFO, syslog: bool = False
    ) -> None:
        self._common = f'"host":{_quoted(host)},"name":{_quoted(name)},"pid":{pid}'
        self._least = least
        self._head = f"{name}[{pid}]: " if syslog else ""
        self._names: dict[type, tuple[str, ...]] = {}

    def lines(self, wall: float, epoch: int, event: Any) -> list[str]:
        severity = INFO
        kind = type(event)
        if kind is TlsAttempt:
            return []
        if kind is Notice:
            severity = SEVERITIES.get(event.level, WARNING)
            if severity > self._least:
                return []
        names = self._names.get(kind)
        if names is None:
            names = self._names[kind] = self._names_of(kind)
        values = event if len(names) > 1 and isinstance(event, tuple) else (repr(event),)
        parts = [
            f'{{"time":"{rfc3339(wall)}",{self._common},"epoch":{epoch},{names[0]}',
            *(f"{name}{_written(value)}" for name, value in zip(names[1:], values, strict=False)),
        ]
        text = ",".join(parts) + "}"
        if self._head:
            return [f"<{FACILITY_MAIL | severity}>{syslog_stamp(wall)} {self._head}{text}"]
        return [text]

    @staticmethod
    def _names_of(kind: type) -> tuple[str, ...]:
        """`"event":"accepted"`, then `"field":` for each field of the event; a field that every
        line has already (an operator's pid) gets a name of its own.
        """
        fields = getattr(kind, "_fields", ("text",))
        head = f'"event":{_quoted(kind.__name__.lower())}'
        names = (f"event_{name}" if name in _COMMON else name for name in fields)
        return (head, *(f"{_quoted(name)}:" for name in names))


def _written(value: Any) -> str:
    """A value as JSON."""
    kind = type(value)
    if kind is str:
        return _quoted(value[:_JSON_LIMIT])
    if kind is bytes:
        return _quoted(value[:_JSON_LIMIT].decode("utf-8", "backslashreplace"))
    if kind is int:
        return str(value)
    if kind is float:
        return f"{value:.6g}" if math.isfinite(value) else "null"
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is tuple:
        return f"[{','.join(map(_written, value))}]"
    return _quoted(repr(value)[:_JSON_LIMIT])


_COMMON = frozenset(("time", "host", "name", "pid", "epoch", "event"))
_JSON_LIMIT = 4 * LINE_LIMIT
"""Characters of one field."""


def syslog_stamp(wall: float) -> str:
    """`Nov  3 08:00:00` in local time, in English whatever the locale (RFC 3164 4.1.2)."""
    t = time.localtime(wall)
    month = _MONTHS[t.tm_mon - 1]
    return f"{month} {t.tm_mday:2d} {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d}"


def rfc3339(wall: float) -> str:
    """`2026-11-23T08:00:00.123Z`."""
    seconds, milliseconds = divmod(int(wall * 1000), 1000)
    return f"{_utc(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)
def _utc(seconds: int) -> str:
    t = time.gmtime(seconds)
    return (
        f"{t.tm_year:04d}-{t.tm_mon:02d}-{t.tm_mday:02d}T"
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d}"
    )


_BEFORE_MAIL = frozenset(("CONNECT", "HELO", "EHLO", "LHLO", "STARTTLS", "AUTH", "XCLIENT"))


def _pairs(fingerprint: str) -> str:
    """As openssl and Postfix print it: AB:CD:..."""
    return bytes.fromhex(fingerprint).hex(":").upper()


@lru_cache(maxsize=256)
def _client(client: str) -> str:
    """`unknown[192.0.2.1]`: Postfix's name[address] for a peer whose name was not looked up."""
    text = neutral(client, 300)
    return text if "[" in text or text.startswith("uid=") else f"unknown[{text}]"


def _message_id(message_id: bytes) -> str:
    inner = mailbox(message_id.strip().removeprefix(b"<").removesuffix(b">"))
    return f"<{inner}>"


_HUNDREDTHS = tuple(f"{n / 100:.2f}".rstrip("0").rstrip(".") for n in range(101))
"""A line has up to five of them, and formatting one took 2.8 thousand instructions."""


def _delay(seconds: float) -> str:
    """Two significant digits, at least hundredths: 0.05, 1.2, 34, 86400, as Postfix logs them."""
    if seconds < 0.995:
        return _HUNDREDTHS[int(seconds * 100.0 + 0.5)] if seconds >= 0.005 else "0"
    if seconds >= 9.95:
        return f"{seconds:.0f}"
    return f"{seconds:.1f}".rstrip("0").rstrip(".")


def _fields(event: Any) -> dict[str, Any]:
    try:
        return dict(event._asdict())
    except AttributeError:
        return {"text": repr(event)}
