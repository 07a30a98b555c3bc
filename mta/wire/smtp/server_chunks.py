"""The responder with CHUNKING and BINARYMIME: content in chunks of a known length.

Law: a chunk is read to its last octet whatever becomes of it, and no octet of one is taken for a
command or looked at: no dots, no newlines, no NUL. After a refused chunk a transaction takes no
other (503) until it is reset. The chunk that says LAST is the end of the transaction, also when it
is refused.

RFC 3030 (CHUNKING, BINARYMIME), RFC 2920 (BDATs may come in one piece), RFC 2033 4.3 (in LMTP the
last chunk has one reply for each accepted recipient, any other has one).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mta.model import Reply
from mta.wire.smtp.content import Fault
from mta.wire.smtp.events import Chunk, Data, End, Event, Reset
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.reply import render
from mta.wire.smtp.server import Responder
from mta.wire.smtp.states import TABLE, Role, State, Verb, out_of_place

_SIZE_DIGITS = 20
"""As SIZE has (RFC 1870)."""
_BODIES = frozenset((b"7BIT", b"8BITMIME", b"BINARYMIME"))
_NO_TRANSACTION = frozenset((State.START, State.IDLE))


class Length(NamedTuple):
    """What BDAT says of its chunk."""

    octets: int
    is_last: bool


def parse_bdat(argument: bytes) -> Length:
    """What follows `BDAT `. @raise Refused: where the next command begins is not known then."""
    words = argument.split()
    if len(words) in (1, 2) and words[0].isdigit() and len(words[0]) <= _SIZE_DIGITS:
        is_last = len(words) == 2
        if not is_last or words[1].upper() == b"LAST":
            return Length(int(words[0]), is_last)
    raise Refused(501, "5.5.4", b"Syntax: BDAT octets [LAST]; closing the connection")


def check_any_body(value: bytes | None) -> bytes | None:
    """RFC 6152 and RFC 3030: 7BIT, 8BITMIME or BINARYMIME."""
    upper = value.upper() if value is not None else None
    if upper not in _BODIES:
        raise Refused(501, "5.5.4", b"BODY is 7BIT, 8BITMIME or BINARYMIME")
    return upper


class ChunkingResponder(Responder):
    """Made for every listener whose reception takes opaque octets."""

    extensions = (b"CHUNKING", b"BINARYMIME")
    further_checks = {b"BODY": check_any_body}

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._left = 0
        """Octets of the present chunk that are to come."""
        self._is_last = False
        self._refusal: Reply | None = None
        """Of the present chunk: said when it was read."""
        self._resumes = State.IDLE
        """The state behind a refused chunk."""
        self._ends_transaction = False
        self._is_logged = False
        """It is the machine that refuses, and the log is to hear of it."""
        self._is_error = False

    @property
    def is_swallowing(self) -> bool:
        if self.state is not State.CHUNK:
            return super().is_swallowing
        return self._refusal is not None or self._content.fault is not None

    # -- BDAT

    def _do_bdat(self, verb: Verb, argument: bytes) -> Event | None:
        chunk = self._begin(argument)
        if chunk is None:
            return None
        if self.state is State.CHUNKS:
            self._open()
            return None
        return Data(is_chunked=True)

    def _out_of_place(self, verb: Verb, argument: bytes) -> None:
        if verb is not Verb.BDAT:
            super()._out_of_place(verb, argument)
            return
        if self._begin(argument) is not None:
            refusal = out_of_place(self.state, verb, self.role)
            is_first = self.state is not State.FAILED  # one line a transaction is enough
            self._swallow(refusal, is_logged=is_first, is_error=is_first)

    def _begin(self, argument: bytes) -> Length | None:
        try:
            chunk = parse_bdat(argument)
        except Refused as refused:
            # Whatever comes now may be a chunk: none of it can be read as commands.
            self._reject(Verb.BDAT.value, refused.reply)
            if self.state is not State.CLOSED:
                self._close(polite=False)
            return None
        self._left, self._is_last = chunk
        return chunk

    def _swallow(self, refusal: Reply, *, is_logged: bool, is_error: bool) -> None:
        """Read this chunk, and say so then (RFC 3030 section 2)."""
        self._refusal = refusal
        self._is_logged = is_logged
        self._is_error = is_error
        if self.state in _NO_TRANSACTION:
            self._resumes = self.state
        else:
            self._resumes = State.IDLE if self._is_last else State.FAILED
        self._ends_transaction = self._resumes is State.IDLE and self.state is not State.IDLE
        self.state = State.CHUNK

    def _open(self) -> None:
        content, limit = self._content, self._limits.size_octets
        if limit and content.size_octets + self._left > limit:
            content.fault = Fault.TOO_BIG
        self.state = State.CHUNK

    def _answer_chunk(self, verb: Verb, reply: Reply | None) -> None:
        """To Data, or to the End that a fault made of a chunk which was not the last."""
        self._awaiting = None
        if verb is Verb.BDAT:
            if reply is None or reply.is_positive:
                self._content.begin()
                self._open()
            elif reply.code == 421:
                self._refused(Verb.BDAT, reply)
            else:
                self._swallow(reply, is_logged=False, is_error=reply.is_permanent)
        else:
            self.state = State.FAILED
            refused = reply if reply is not None and not reply.is_positive else self._fault()
            assert refused is not None  # a chunk that is not the last ends a message by a fault
            self._say_no(refused, refused.is_permanent)

    # -- its octets

    def _chunk_event(self) -> Event | None:
        """None: the chunk is over and nobody is asked (the state says so), or more must come."""
        buffer, at = self._buffer, self._at
        take = min(self._left, len(buffer) - at)
        piece = b""
        if take:
            if self._refusal is None and self._content.fault is None:
                piece = buffer[at : at + take]
                self._content.size_octets += take
            self._left -= take
            self._at = at + take
        if self._at >= len(buffer):
            self._buffer = b""
            self._at = 0
        event = None if self._left else self._chunk_is_over()
        if piece and event is not None:
            self._queued.append(event)
            return Chunk(piece)
        return Chunk(piece) if piece else event

    def _chunk_is_over(self) -> Event | None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self.state = self._resumes
            if self._ends_transaction:
                self._queued.append(Reset())
            if self._is_logged:
                self._reject(Verb.BDAT.value, refusal)
            else:
                self._say_no(refusal, self._is_error)
            if self.role is Role.LMTP and self._is_last and self.state is not State.CLOSED:
                more = self.recipients_accepted - 1
                self._output += [render(refusal)] * more
            if self._ends_transaction:
                self._forget()
            return None
        if self._content.fault is None:
            self.counts[Verb.BDAT][0] += 1
            if not self._is_last:
                self.state = TABLE[State.CHUNK, Verb.CHUNK].after
                self._output.append(b"250 2.0.0 %d octets so far\r\n" % self._content.size_octets)
                return None
        self._awaiting = Verb.END if self._is_last else Verb.CHUNK
        self._after = TABLE[State.CHUNK, Verb.END].after
        self._last = Verb.END
        return End(self._fault(), self._content.size_octets)
