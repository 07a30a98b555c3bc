"""A message being received into the log spool.

Law: memory per association stays under 512 KiB whatever a peer sends: what exceeds 256 KiB streams
to part/E.n, and the caller is asked to pause while writes lag behind. A content over `big-message`
keeps that file under the name big/E.n, durable with its name before its MSG batch is written; a
smaller one is copied into the log by the committer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import Full, SpoolError, Unavailable
from mta.interfaces import IRevisable, IStaging
from mta.model import Envelope, Intent, MessageState, Remembered
from mta.spool.committer import Unit
from mta.spool.content import PIECE
from mta.spool.directory import as_spool_error
from mta.spool.envelopes import encode_envelope, encode_state, first_pending_domain
from mta.spool.records import (
    INTENT,
    MSG,
    TRANSACTION,
    Big,
    Message,
    Place,
    Record,
    encode_intent,
    encode_message,
    encode_transaction,
)

if TYPE_CHECKING:
    from mta.spool.owned import OwnedLog


T = TypeVar("T")


@implementer(IStaging, IRevisable)
class LogStaging:
    """Chunks in memory first; a file when they are many."""

    __slots__ = (
        "_association",
        "_buffered",
        "_chunks",
        "_envelope",
        "_error",
        "_finished",
        "_intent",
        "_message",
        "_owned",
        "_part",
        "_pieces",
        "_remembered",
        "_state",
        "queue_id",
        "size_octets",
    )

    def __init__(self, owned: OwnedLog, queue_id: str, association: str) -> None:
        self.queue_id = queue_id
        self.size_octets = 0
        self._owned = owned
        self._association = association
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._part: Part | None = None
        self._error: SpoolError | None = None
        self._finished = False
        self._remembered: Remembered | None = None

    def write(self, chunk: bytes) -> Deferred[None] | None:
        if self._error is not None or self._finished:
            return None
        self.size_octets += len(chunk)
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered < self._owned.stream_above:
            return None
        part = self._part
        if part is None:
            part = self._part = self._owned.new_part()
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        return part.append(chunks)

    def commit(
        self, envelope: Envelope, state: MessageState, prepend: bytes, intent: Intent | None
    ) -> Deferred[None]:
        self._finished = True
        if self._error is not None:
            return fail(self._error)
        self._envelope, self._state, self._intent = envelope, state, intent
        if self._part is not None:
            return self._commit_part(prepend)
        chunks = self._chunks
        pieces = (prepend, *chunks) if prepend else tuple(chunks)
        octets = self.size_octets + len(prepend)
        done: Deferred[None] = Deferred()
        self._pieces: tuple[bytes, ...] | None = pieces
        record = self._record(prepend, pieces, octets, None)
        return self._submit([record], done)

    def remember(self, client: str, transaction: str, expires: float) -> None:
        octets = self.size_octets
        self._remembered = Remembered(client, transaction, self.queue_id, octets, expires)

    def abort(self) -> None:
        if not self._finished:
            self._finished = True
            self._chunks = []
            if self._part is not None:
                self._part.discard()

    def another(self) -> LogStaging:
        """A part file of its own, where it needs one: its number is new, the queue id is not."""
        return LogStaging(self._owned, self.queue_id, self._association)

    def read(self, offset: int) -> Deferred[bytes]:
        part, octets = self._part, self.size_octets - offset
        if octets <= 0 or self._finished:
            return succeed(b"")
        if part is None:
            return succeed(b"".join(self._chunks)[offset:])  # under 256 KiB
        if self._chunks:
            part.append(self._chunks)
            self._chunks, self._buffered = [], 0
        return part.read(min(octets, PIECE), offset)

    def _record(
        self, prepend: bytes, pieces: tuple[bytes, ...], octets: int, big: Big | None
    ) -> Record:
        envelope, state = self._envelope, self._state
        encoded, domain = encode_envelope(envelope), first_pending_domain(envelope, state)
        self._message = Message(
            state.due,
            envelope.received_at,
            octets,
            state.held,
            envelope.priority,
            domain,
            self._association,
            len(prepend),
            big,
            encoded,
            encode_state(state),
        )
        in_log = octets if big is None else len(prepend)
        return (MSG, self.queue_id.encode(), encode_message(self._message), pieces, in_log)

    def _submit(self, records: list[Record], done: Deferred[None]) -> Deferred[None]:
        if self._intent is not None or self._remembered is not None:
            self._add_riders(records)
        try:
            self._owned.committer.submit(Unit(records, self._applied, done, True))
        except SpoolError as error:
            return fail(error)
        return done

    def _add_riders(self, records: list[Record]) -> None:
        """What else the batch says of this message."""
        name, intent, remembered = self.queue_id.encode(), self._intent, self._remembered
        if intent is not None:
            records.append((INTENT, name, encode_intent(intent), (), 0))
        if remembered is not None:
            payload = encode_transaction(remembered, self._association)
            records.append((TRANSACTION, name, payload, (), 0))

    def _applied(self, ref: int, places: list[Place]) -> None:
        """On the reactor, durable and the epoch re-read: from here on it is queued, and taken."""
        owned = self._owned
        owned.ledger.message(self.queue_id, ref, places[0], self._message, True)
        owned.keep(
            self.queue_id, self._envelope, self._state, self._pieces, self._message.size_octets
        )
        if self._intent is not None:
            owned.ledger.intended(self._intent)
        if self._remembered is not None:
            owned.ledger.transactions.add(self._remembered, self._association)
        self._chunks = []

    # what streamed to a file

    def _commit_part(self, prepend: bytes) -> Deferred[None]:
        part = self._part
        assert part is not None, "called for a message that streams"
        if self._chunks:
            part.append(self._chunks)
            self._chunks = []
        octets = self.size_octets
        self._pieces = None
        owned = self._owned
        done: Deferred[None] = Deferred()
        owned.waiting[done] = None

        def answer(result: object) -> None:
            owned.waiting.pop(done, None)
            if not done.called:  # the tenure may have ended meanwhile
                done.callback(result)  # type: ignore[arg-type]  # a Failure goes to the errbacks

        def written(error: SpoolError | None) -> None:
            if error is not None:
                part.discard()
                answer(Failure(error))
            elif octets <= owned.settings.big_message:
                self._copy_into_log(part, prepend, octets).addBoth(answer)
            else:
                owned.executor.submit(part.promote).addCallbacks(promoted, failed)

        def promoted(_: object) -> None:
            big = Big(owned.own.epoch, part.number, octets, part.crc)
            pieces = (prepend,) if prepend else ()
            record = self._record(prepend, pieces, octets + len(prepend), big)
            self._submit([record], Deferred()).addErrback(lost, big).addBoth(answer)

        def lost(failure: Failure, big: Big) -> Failure:
            # Refused means never written; after any other end the record may name the file.
            if failure.check(Full, Unavailable):
                owned.remove_big(big)
            return failure

        def failed(failure: Failure) -> None:
            part.discard()
            if isinstance(failure.value, OSError):
                answer(Failure(as_spool_error(failure.value, "a big message cannot be kept")))
            else:
                answer(failure)

        part.whenever_written(written)
        return done

    def _copy_into_log(self, part: Part, prepend: bytes, octets: int) -> Deferred[None]:
        def source() -> list[Record]:
            body = part.read_whole(octets)
            pieces = (prepend, body) if prepend else (body,)
            records = [self._record(prepend, pieces, octets + len(prepend), None)]
            self._add_riders(records)
            return records

        def discard(result: T) -> T:
            part.discard()
            return result

        done: Deferred[None] = Deferred()
        unit = Unit([], self._applied, done, True, source)
        unit.octets = octets
        try:
            self._owned.committer.submit(unit)
        except SpoolError as error:
            done = fail(error)
        return done.addBoth(discard)


class Part:
    """part/E.n: written in order by one worker call at a time."""

    def __init__(self, owned: OwnedLog, number: int) -> None:
        self._owned = owned
        self.number = number
        self.crc = 0
        self._name = f"{owned.own.epoch}.{number}"
        self._path = owned.directory.join("part", self._name)
        self._fd = -1
        self._offset = 0
        self._waiting: list[bytes] = []
        self._writing = False
        self._paused: Deferred[None] | None = None
        self._error: SpoolError | None = None
        self._then: Callable[[SpoolError | None], None] | None = None
        self._discarded = False

    def append(self, chunks: list[bytes]) -> Deferred[None] | None:
        """Write them behind what came before; a Deferred while an earlier write is under way."""
        if self._error is not None:
            return None
        self._waiting += chunks
        if not self._writing:
            self._start()
            return None
        if self._paused is None:
            self._paused = Deferred()
        return self._paused

    def whenever_written(self, then: Callable[[SpoolError | None], None]) -> None:
        """`then(error or None)` once nothing is under way."""
        self._then = then
        if not self._writing:
            self._settle()

    def read(self, octets: int, offset: int) -> Deferred[bytes]:
        """Once all of them are written. It counts as a write under way: nobody closes the file."""
        answer: Deferred[bytes] = Deferred()

        def written(error: SpoolError | None) -> None:
            if error is None and self._discarded:
                error = Unavailable(f"part/{self._name} is gone", "its message came to nothing")
            if error is not None:
                if not answer.called:
                    answer.errback(error)
                return
            self._writing = True
            pread = self._owned.directory.disk.pread
            self._owned.executor.submit(pread, self._fd, octets, offset).addBoth(ended)

        def ended(result: bytes | Failure) -> None:
            self._written(None)
            if answer.called:
                return  # nobody waits any more
            if isinstance(result, Failure):
                error = result.value if isinstance(result.value, OSError) else OSError(0, "")
                answer.errback(as_spool_error(error, f"part/{self._name} cannot be read"))
            elif len(result) < octets:
                answer.errback(Unavailable(f"part/{self._name} ends early"))
            else:
                answer.callback(result)

        self.whenever_written(written)
        return answer

    def discard(self) -> None:
        """Remove it; at once or when the write or read under way has ended."""
        self._discarded = True
        if not self._writing:
            self._owned.background(self._remove)

    def promote(self) -> None:
        """On a worker: the file and its new name durable, the old name gone."""
        disk, directory = self._owned.directory.disk, self._owned.directory
        disk.fdatasync(self._fd)
        disk.link(self._path, directory.join("big", self._name))
        disk.sync_directory(directory.join("big"))
        disk.unlink(self._path)
        self._close()

    def read_whole(self, octets: int) -> bytes:
        return self._owned.directory.disk.pread(self._fd, octets, 0)

    def _start(self) -> None:
        chunks, self._waiting = self._waiting, []
        self._writing = True
        self._owned.executor.submit(self._write, chunks).addCallbacks(self._written, self._failed)

    def _write(self, chunks: list[bytes]) -> None:
        """On a worker, one at a time: nobody else touches these fields meanwhile."""
        disk = self._owned.directory.disk
        if self._fd < 0:
            self._fd = disk.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if not self._owned.upkeep.has_room(sum(map(len, chunks))):
            raise OSError(errno.ENOSPC, "only the reserve is left", self._path)
        disk.pwritev(self._fd, chunks, self._offset)
        for chunk in chunks:
            self.crc = crc32(chunk, self.crc)
            self._offset += len(chunk)

    def _written(self, _: object) -> None:
        self._writing = False
        if self._discarded:
            self._waiting = []
            self._owned.background(self._remove)
        elif self._waiting:
            self._start()
            if sum(map(len, self._waiting)) > PIECE:
                return
        self._resume()
        if not self._writing:
            self._settle()

    def _failed(self, failure: Failure) -> None:
        self._writing = False
        error = failure.value
        if not isinstance(error, OSError):
            error = OSError(0, str(error))
        self._error = as_spool_error(error, f"part/{self._name} cannot be written")
        self._waiting = []
        if self._discarded:
            self._owned.background(self._remove)
        self._resume()
        self._settle()

    def _resume(self) -> None:
        if self._paused is not None:
            paused, self._paused = self._paused, None
            paused.callback(None)

    def _settle(self) -> None:
        if self._then is not None:
            then, self._then = self._then, None
            then(self._error)

    def _remove(self) -> None:
        if self._fd >= 0:
            self._close()
            try:
                self._owned.directory.disk.unlink(self._path)
            except FileNotFoundError:
                pass  # promoted

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._owned.directory.disk.close(fd)
