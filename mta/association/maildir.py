"""Delivers into Maildir directories: a local store as an association kind.

Law: the commit point is link(2) from tmp/ into new/, under a name made of queue id and recipient
alone. A name that is there already means delivered already, so a message in doubt is not doubled
(spool.md section 6). File and new/ are synced before the outcome is told. Every file call runs on
the executor, none on the reactor thread.

What is written is the message as mail readers on this machine expect it: dots unstuffed, line ends
LF, `Return-Path` and `Delivered-To` in front (RFC 5321 4.4). Contents in BINARYMIME stay as
they are.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator
from twisted.internet.defer import CancelledError, Deferred, succeed
from zope.interface import implementer

from mta.errors import MTAError, TransientFailure
from mta.interfaces import IAssociationKind, IContent, IDisk, ISender, ISurroundings, ITenure
from mta.model import (
    SERIAL_BITS,
    BodyType,
    ContentForm,
    Envelope,
    NextHop,
    Outcome,
    OutcomeKind,
    Reply,
)
from mta.settings import Settings

_PIECE = 256 * 1024
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-_=.")
_LONGEST_NAME = 200
_KNOWN_DIRECTORIES = 10_000
_QUEUE_ID_DIGITS = 14

_FULL = Reply(452, "4.2.2", (b"mailbox or its file system is full",))


class MaildirSettings(Settings):
    """Keys of a connector with `kind: maildir`."""

    directory: str = Field(
        description="Absolute path of the Maildir; created (0700) when missing. {user} and {domain}"
        " stand for the recipient's parts in lower case, with everything but letters, digits and"
        " + - _ = . written as %XX."
    )

    @field_validator("directory")
    @classmethod
    def _usable(cls, value: str) -> str:
        try:
            shown = value.format(user="u", domain="d")
        except (KeyError, IndexError, ValueError):
            raise ValueError(
                f"{value!r}: only {{user}} and {{domain}} may stand in braces"
            ) from None
        if not shown.startswith("/"):
            raise ValueError(f"{value!r} is not an absolute path")
        if ".." in shown.split("/"):
            raise ValueError(f"{value!r} climbs out of its directory")
        return value.rstrip("/") or "/"


def mailbox_part(raw: bytes) -> str:
    """A local part or a domain as one harmless path component; different ones stay different."""
    text = raw.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")
    safe = "".join(
        c if c in _PLAIN and not (c == "." and at == 0) else f"%{ord(c):02X}"
        for at, c in enumerate(text.decode("latin-1"))
    )
    if len(safe) > _LONGEST_NAME:
        safe = safe[:_LONGEST_NAME] + "%" + hashlib.sha256(raw.lower()).hexdigest()[:32]
    return safe or "%"


class LocalForm:
    """Wire form to local form, piece by piece: dots unstuffed, CRLF to LF.

    Keeps at most the two octets of a line end between pieces.
    """

    __slots__ = ("_at_start", "_kept", "_stuffed", "_text")

    def __init__(self, *, stuffed: bool, text: bool) -> None:
        self._stuffed = stuffed
        self._text = text
        self._kept = b""
        self._at_start = True

    @classmethod
    def of(cls, envelope: Envelope) -> LocalForm:
        stuffed = envelope.content_form is ContentForm.DOT_STUFFED
        return cls(stuffed=stuffed, text=envelope.body_type is not BodyType.BINARY_MIME)

    def feed(self, piece: bytes) -> bytes:
        if not self._text and not self._stuffed:
            return piece
        if self._at_start and piece:
            self._at_start = False
            if self._stuffed and piece.startswith(b"."):
                piece = piece[1:]
        data = self._kept + piece if self._kept else piece
        keep = 2 if data.endswith(b"\r\n") else 1 if data.endswith(b"\r") else 0
        if keep:
            self._kept, data = data[-keep:], data[:-keep]
        else:
            self._kept = b""
        return self._turned(data)

    def end(self) -> bytes:
        """What was held back. Nothing may be fed afterwards."""
        kept, self._kept = self._kept, b""
        return self._turned(kept)

    def _turned(self, data: bytes) -> bytes:
        if self._stuffed:
            data = data.replace(b"\r\n.", b"\r\n")
        return data.replace(b"\r\n", b"\n") if self._text else data


class _Mailbox:
    """One recipient's delivery: its paths and what stands before the content."""

    __slots__ = ("directory", "final", "is_new", "recipient", "temporary", "top")

    def __init__(
        self, recipient: int, directory: str, name: str, temporary: str, *, top: bytes, is_new: bool
    ) -> None:
        self.recipient = recipient
        self.directory = directory
        self.final = name
        self.temporary = f"{directory}/tmp/{temporary}"  # noqa: S108  # a Maildir has its own tmp/
        self.top = top
        self.is_new = is_new
        """It cannot have been delivered before: cur/ need not be searched."""


@implementer(IAssociationKind)
class MaildirKind:
    """`kind: maildir`."""

    name = "maildir"
    commit_point = "link(2)"
    may_send = True
    may_receive = False

    def __init__(self, settings: MaildirSettings, surroundings: ISurroundings) -> None:
        self.directory = settings.directory
        self.disk: IDisk = surroundings.disk
        self.executor = surroundings.executor
        self.host = surroundings.virtual_server.network_name
        self.known: set[str] = set()
        """Directories that were seen or made by this process."""
        self.uncertain: set[tuple[str, int]] = set()
        """(queue id, recipient) of deliveries of this epoch that ended without an answer."""
        # Slots are unique in the epoch, also when a reload makes this kind anew.
        self._number = surroundings.telemetry.counter(
            "mta_associations_opened_total", "Associations that we opened.", kind=self.name
        )
        self._files = 0

    def open(self, tenure: ITenure, hop: NextHop) -> Deferred[ISender]:
        self._number.inc()
        return succeed(
            MaildirSender(self, tenure, hop, f"maildir/{hop.connector}/{int(self._number.value)}")
        )

    def next_file(self) -> int:
        self._files += 1
        return self._files


@implementer(ISender)
class MaildirSender:
    """A delivery slot: to the journal it is an association like any other."""

    can_overlap = False

    def __init__(self, kind: MaildirKind, tenure: ITenure, hop: NextHop, slot: str) -> None:
        self.slot = slot
        self.source = ""
        self.relay = hop.connector
        self._kind = kind
        self._tenure = tenure
        self._is_closed = False
        self._prepared: tuple[str, Envelope, tuple[int, ...]] | None = None

    @property
    def is_open(self) -> bool:
        return not self._is_closed and self._tenure.is_live

    def prepare(
        self, queue_id: str, envelope: Envelope, recipients: tuple[int, ...], size_octets: int
    ) -> Deferred[tuple[Outcome, ...]]:
        self._prepared = (queue_id, envelope, recipients)
        return succeed(())

    def commit(self, content: IContent) -> Deferred[tuple[Outcome, ...]]:
        return Deferred.fromCoroutine(self._commit(content))

    def withdraw(self) -> Deferred[None]:
        self._prepared = None
        return succeed(None)

    def close(self) -> Deferred[None]:
        self._is_closed = True
        return succeed(None)

    async def _commit(self, content: IContent) -> tuple[Outcome, ...]:
        assert self._prepared is not None, "commit without prepare"
        queue_id, envelope, recipients = self._prepared
        self._prepared = None
        kind = self._kind
        mailboxes = [self._mailbox(queue_id, envelope, index) for index in recipients]
        form = LocalForm.of(envelope)
        uncertain = {(queue_id, index) for index in recipients}
        kind.uncertain |= uncertain
        writer = _Writer(kind, mailboxes)
        resident = content.resident
        try:
            if resident is not None:
                outcomes = await kind.executor.submit(writer.all_at_once, resident, form)
            else:
                outcomes = await self._stream(content, writer, form)
        except CancelledError:
            kind.executor.submit(writer.abandon).addErrback(_known_already)
            raise
        for outcome in outcomes:
            if outcome.kind is OutcomeKind.DELIVERED:
                kind.uncertain.discard((queue_id, outcome.recipient))
        return tuple(outcomes)

    async def _stream(self, content: IContent, writer: _Writer, form: LocalForm) -> list[Outcome]:
        submit = self._kind.executor.submit
        try:
            await submit(writer.begin)
            while piece := await content.read():
                await submit(writer.write, form.feed(piece))
            await submit(writer.write, form.end())
        except OSError as problem:
            await submit(writer.abandon)
            return [_deferred(m, problem) for m in writer.mailboxes]
        except CancelledError:
            raise
        except Exception as problem:
            await submit(writer.abandon)
            raise TransientFailure(
                f"the content of {writer.mailboxes[0].final} cannot be read", str(problem)
            ) from problem
        try:
            self._tenure.check()  # minutes may have passed since INTENT; link(2) is the act
        except MTAError:
            await submit(writer.abandon)
            raise
        outcomes: list[Outcome] = await submit(writer.place)
        return outcomes

    def _mailbox(self, queue_id: str, envelope: Envelope, index: int) -> _Mailbox:
        """@raise nothing: every address makes a path."""
        kind, address = self._kind, envelope.recipients[index].address
        local = address.local
        if len(local) > 1 and local.startswith(b'"') and local.endswith(b'"'):
            local = local[1:-1].replace(b"\\", b"")
        directory = kind.directory.format(
            user=mailbox_part(local), domain=mailbox_part(address.domain)
        )
        digest = hashlib.sha256(address.text).hexdigest()[:16]
        host = mailbox_part(kind.host.encode())
        epoch = self._tenure.epoch
        return _Mailbox(
            index,
            directory,
            f"{queue_id}.R{digest}.{host}",
            f"{queue_id}.E{epoch}N{kind.next_file()}.{host}",
            top=b"Return-Path: <%s>\nDelivered-To: %s\n"
            % (_one_line(envelope.sender.text), _one_line(address.text)),
            is_new=_epoch_of(queue_id) == epoch and (queue_id, index) not in kind.uncertain,
        )


class _Writer:
    """The file calls of one transfer, on a worker thread, one call after the other."""

    def __init__(self, kind: MaildirKind, mailboxes: Sequence[_Mailbox]) -> None:
        self._kind = kind
        self._disk = kind.disk
        self.mailboxes = mailboxes
        self._fd = -1
        self._written = 0
        self._open_path = ""

    def all_at_once(self, pieces: Sequence[bytes], form: LocalForm) -> list[Outcome]:
        """The whole of a small message in one hand-over."""
        body = [form.feed(piece) for piece in pieces]
        body.append(form.end())
        return [self._one(mailbox, body) for mailbox in self.mailboxes]

    def _one(self, mailbox: _Mailbox, body: Sequence[bytes]) -> Outcome:
        try:
            self._make(mailbox.directory)
            if self._is_there(mailbox):
                return self._placed_already(mailbox)
            self._create(mailbox)
            self._disk.pwritev(self._fd, [mailbox.top, *body], 0)
            return self._place(mailbox)
        except OSError as problem:
            self.abandon()
            return _deferred(mailbox, problem)

    # a large message: the first mailbox receives the stream, the others copy from it

    def begin(self) -> None:
        first = self.mailboxes[0]
        self._make(first.directory)
        self._create(first, os.O_RDWR)
        self.write(first.top)

    def write(self, octets: bytes) -> None:
        if octets:
            self._disk.pwritev(self._fd, [octets], self._written)
            self._written += len(octets)

    def place(self) -> list[Outcome]:
        """Copies first, while the stream's file is open; then the first mailbox itself."""
        first, *others = self.mailboxes
        source, source_path = self._fd, self._open_path
        size, top = self._written, len(first.top)
        outcomes = []
        for mailbox in others:
            self._fd = -1
            try:
                self._make(mailbox.directory)
                if self._is_there(mailbox):
                    outcomes.append(self._placed_already(mailbox))
                    continue
                self._create(mailbox)
                self._disk.pwritev(self._fd, [mailbox.top], 0)
                at, into = top, len(mailbox.top)
                while at < size:
                    piece = self._disk.pread(source, min(_PIECE, size - at), at)
                    self._disk.pwritev(self._fd, [piece], into)
                    at, into = at + len(piece), into + len(piece)
                outcomes.append(self._place(mailbox))
            except OSError as problem:
                self.abandon()
                outcomes.append(_deferred(mailbox, problem))
        self._fd, self._open_path = source, source_path
        try:
            if self._is_there(first):
                self.abandon()
                outcomes.append(self._placed_already(first))
            else:
                outcomes.append(self._place(first))
        except OSError as problem:
            self.abandon()
            outcomes.append(_deferred(first, problem))
        return outcomes

    def abandon(self) -> None:
        """Close and remove what is open. Never raises."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            self._disk.close(fd)
            self._disk.unlink(self._open_path)
        except OSError:
            pass  # a file left in tmp/ is no message; mail readers sweep it after 36 hours

    # steps

    def _make(self, directory: str) -> None:
        """The Maildir and its three directories, parents included, durable before they are used."""
        if directory in self._kind.known and self._disk.exists(f"{directory}/new"):
            return
        missing = []
        at = directory
        while at not in ("", "/") and not self._disk.exists(at):
            missing.append(at)
            at = os.path.dirname(at)
        for path in (
            *reversed(missing),
            *(f"{directory}/{name}" for name in ("tmp", "new", "cur")),
        ):
            try:
                self._disk.mkdir(path, 0o700)
            except FileExistsError:
                continue
            self._disk.sync_directory(os.path.dirname(path) or "/")
        if len(self._kind.known) >= _KNOWN_DIRECTORIES:
            self._kind.known.clear()
        self._kind.known.add(directory)

    def _is_there(self, mailbox: _Mailbox) -> bool:
        if mailbox.is_new:
            return False
        if self._disk.exists(f"{mailbox.directory}/new/{mailbox.final}"):
            return True
        flagged = mailbox.final + ":"
        return any(
            name == mailbox.final or name.startswith(flagged)
            for name in self._disk.listdir(f"{mailbox.directory}/cur")
        )

    def _placed_already(self, mailbox: _Mailbox) -> Outcome:
        # Whoever placed it may have been cut off before the name was durable.
        self._disk.sync_directory(f"{mailbox.directory}/new")
        # Where it lies: for the log and `mta send`. A reader moves it to cur/ sooner or later.
        path = f"{mailbox.directory}/new/{mailbox.final}".encode("utf-8", "backslashreplace")
        reply = Reply(250, "2.0.0", (b"delivered to " + _one_line(path),))
        return Outcome(mailbox.recipient, OutcomeKind.DELIVERED, reply)

    def _create(self, mailbox: _Mailbox, mode: int = os.O_WRONLY) -> None:
        self._fd = self._disk.open(mailbox.temporary, mode | os.O_CREAT | os.O_EXCL, 0o600)
        self._open_path = mailbox.temporary

    def _place(self, mailbox: _Mailbox) -> Outcome:
        self._disk.fsync(self._fd)
        try:
            self._disk.link(self._open_path, f"{mailbox.directory}/new/{mailbox.final}")
        except FileExistsError:
            pass  # delivered by an earlier attempt: the same message, the same recipient
        self.abandon()
        return self._placed_already(mailbox)


def _deferred(mailbox: _Mailbox, problem: OSError) -> Outcome:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        reply = _FULL
    else:
        text = problem.strerror or errno.errorcode.get(problem.errno or 0, "error")
        where = f"maildir {mailbox.directory}: {text}"
        reply = Reply(451, "4.3.0", (where.encode("ascii", "backslashreplace"),))
    return Outcome(mailbox.recipient, OutcomeKind.DEFERRED, reply)


def _one_line(raw: bytes) -> bytes:
    return raw.translate(None, b"\r\n\0")


def _epoch_of(queue_id: str) -> int | None:
    """The epoch that made it; None for a report's derived id, which does not say."""
    if len(queue_id) != _QUEUE_ID_DIGITS:
        return None
    try:
        return int(queue_id, 16) >> SERIAL_BITS
    except ValueError:
        return None


def _known_already(_failure: Any) -> None:
    """The transfer was cancelled; its file in tmp/ is swept by mail readers."""
