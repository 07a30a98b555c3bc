"""A responder's side of a dialogue: lines in, one question at a time, replies out in order.

Law: a command is looked at only when the one before it has its reply; whatever a peer sends, memory
is bounded and what is no command line is refused up to the next CRLF, so that nothing an upstream
let through can become a command. What the commands mean is told by server.py.

RFC 5321 2.3.8 (lines), 4.5.3.1 (limits), RFC 2920 (PIPELINING).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from mta.errors import LocalProtocolError
from mta.model import Reply
from mta.wire.smtp import server_replies as said
from mta.wire.smtp.counts import tail
from mta.wire.smtp.events import Event, Quit, Rejected
from mta.wire.smtp.limits import COMMAND_LIMIT, Limits
from mta.wire.smtp.reply import render
from mta.wire.smtp.states import Role, State, Verb
from mta.wire.text import neutralise

_APART = frozenset((
    State.CLOSED, State.GREETING, State.HANDSHAKE, State.CONTENT, State.CHUNK, State.SASL
))  # fmt: skip
"""What is heard then is no command, or nothing is."""
_DEAF = frozenset((State.CLOSED, State.HANDSHAKE))


class Dialogue(ABC):
    """One association's lines, from the greeting to the end; `Responder` gives them a meaning."""

    def __init__(self, role: Role, limits: Limits, greeting: bytes) -> None:
        self.role = role
        self.state = State.GREETING
        self.sender = b""
        self.recipients_accepted = 0
        self.counts: dict[Verb | None, list[int]] = {}
        """Verb (None: unknown) -> [accepted, said]: Postfix's tail of the disconnect line."""
        self._last: Verb | None = None
        self._limits = limits
        self._greeting = greeting
        self._greeted = State.START
        """Where the greeting leads: IDLE when it is known who the client is."""
        self._awaiting: Verb | None = None
        self._queued: list[Event] = []
        self._discarding = False
        self._errors = 0
        self._buffer = b""
        self._at = 0
        self._output: list[bytes] = []

    # -- in and out

    def receive(self, data: bytes) -> None:
        """Take octets. Nothing is looked at before `next_event`."""
        if self.state in _DEAF:
            if self.state is State.CLOSED:
                return
            raise LocalProtocolError("octets of a handshake are no SMTP")
        if self._at < len(self._buffer):
            self._buffer = self._buffer[self._at :] + data
        else:
            self._buffer = data
        self._at = 0

    @property
    def buffered_octets(self) -> int:
        """Octets received and not yet looked at: whoever feeds stops above his own bound."""
        return len(self._buffer) - self._at

    @property
    def is_awaiting(self) -> bool:
        """An event was handed out and not answered."""
        return self._awaiting is not None or self.state is State.GREETING

    @property
    def is_ending_message(self) -> bool:
        """The content is complete and its answer is owed: the message may be ours already."""
        return self._awaiting is Verb.END

    def take_output(self) -> bytes:
        """All that is to be sent now, in one piece; b"" when there is nothing."""
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    # -- words of our own

    def greet(self, refusal: Reply | None = None) -> None:
        """Open with 220, or turn the peer away with `refusal` (421, 554). Behind XCLIENT again."""
        if self.state is not State.GREETING:
            raise LocalProtocolError("the greeting was given already")
        if (refusal is None or refusal.is_positive) and self._speaks_early():
            refusal = said.EARLY
            self._queued.append(Rejected("CONNECT", refusal, b"", b""))
        if refusal is None or refusal.is_positive:
            self.state = self._greeted
            self._output.append(self._greeting)
        else:
            self._output.append(render(refusal))
            self._close(polite=False)

    def _speaks_early(self) -> bool:
        return self._limits.refuse_early and self.buffered_octets > 0

    def shut_down(self, reply: Reply) -> None:
        """Say `reply` (421) out of turn and end: time-out, drain, too many connections.

        While an answer is owed it is not ours to say; then nothing is said.
        """
        if self.state is State.CLOSED:
            return
        if not self.is_awaiting:
            self._output.append(render(reply))
        self._awaiting = None
        self._close(polite=False)

    def _say_no(self, reply: Reply, is_error: bool) -> None:
        if is_error and reply.code != 421:
            self._errors += 1
            if self._errors >= self._limits.errors:
                reply = said.TOO_MANY_ERRORS
        self._output.append(render(reply))
        if reply.code == 421:
            self._close(polite=False)

    def _close(self, polite: bool) -> None:
        self.state = State.CLOSED
        self._buffer = b""
        self._at = 0
        self._queued.append(Quit(polite))

    # -- events

    def next_event(self) -> Event | None:
        """The next event; None when the present one is not answered or more octets are needed."""
        while True:
            if self._queued:
                return self._queued.pop(0)
            if self._awaiting is not None:
                return None
            state = self.state
            if state in _APART:
                if state is State.CONTENT:
                    return self._content_event()
                if state is not State.CHUNK:
                    return self._response_event() if state is State.SASL else None
                event = self._chunk_event()
                if event is not None or self.state is State.CHUNK:
                    return event
                continue
            buffer, at = self._buffer, self._at
            if at == len(buffer):
                return None
            end = buffer.find(b"\n", at)
            if end < 0:
                if self._needs_more():
                    return None
                continue
            self._at = end + 1
            if self._discarding:
                self._discarding = buffer[end - 1 : end] != b"\r" or end == 0
                continue
            is_crlf = end > at and buffer[end - 1] == 13
            if end - at >= COMMAND_LIMIT:
                self._discarding = not is_crlf
                self._reject("UNKNOWN", said.TOO_LONG)
                continue
            if not is_crlf:
                # Refused whatever it says, and so is all up to the next CRLF: what an upstream
                # that does not know this let through can never become a command.
                self._discarding = True
                self._reject("UNKNOWN", said.NOT_CRLF)
                continue
            event = self._command(buffer[at : end - 1])
            if event is not None:
                return event

    def _needs_more(self) -> bool:
        """No newline in sight: False when the line was given up just now and answered."""
        waiting = len(self._buffer) - self._at
        if self._discarding:
            # Keep a CR, it may be half of the CRLF that ends the rubbish.
            self._buffer = self._buffer[-1:] if waiting else b""
            self._at = 0
            return True
        if waiting < COMMAND_LIMIT:
            return True
        self._discarding = True
        self._reject("UNKNOWN", said.TOO_LONG)
        return False

    def _reject(self, stage: str, reply: Reply, argument: bytes = b"") -> None:
        """Refuse by ourselves: the reply goes, the state stays, the log hears of it."""
        is_rcpt = stage == Verb.RCPT.value
        recipient = neutralise(argument, 320) if is_rcpt else b""
        self._queued.append(Rejected(stage, reply, self.sender, recipient))
        self._say_no(reply, reply.is_permanent and not (is_rcpt and self.recipients_accepted))

    @abstractmethod
    def _command(self, line: bytes) -> Event | None:
        """One command line without CRLF: an event to answer, or None when it is dealt with."""

    @abstractmethod
    def _content_event(self) -> Event | None:
        """In CONTENT: the next event, or None when more octets are needed."""

    @abstractmethod
    def _chunk_event(self) -> Event | None:
        """In CHUNK likewise; None too when the chunk is over, which the state then says."""

    @abstractmethod
    def _response_event(self) -> Event | None:
        """In SASL: the next response, or None when more octets are needed."""

    @abstractmethod
    def _accepted(self, verb: Verb) -> None:
        """The table's transition."""

    def _count_and_say(self, verb: Verb, wire: bytes) -> None:
        self.counts[verb][0] += 1
        self._output.append(wire)

    @property
    def stage(self) -> str:
        """The last command said, in upper case: where an association was lost."""
        return "CONNECT" if self._last is None else self._last.value

    @property
    def commands(self) -> str:
        """Postfix's tail of the disconnect line: `ehlo=1 mail=1 rcpt=0/1 commands=2/3`."""
        return tail(self.counts)
