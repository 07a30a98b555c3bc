"""The MTA's end of one connection to a filter: what is said, what may be answered, what it means.

Law: one command waits for its answer at a time, and an answer that has no place in `ANSWERS` ends
the connection. What a filter asks for without having negotiated it is refused by name. A message
that was begun is ended by the filter's last word about it, or by ABORT before the next.

Sendmail's mfapi.h and mfdef.h, version 6; versions from 2 on are spoken to in their own words.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mta.errors import LocalProtocolError, RemoteProtocolError
from mta.model import Reply
from mta.wire.milter.answers import (
    CLOSING,
    NEEDS,
    NOT_NOW,
    REJECTED,
    Change,
    Decision,
    parse_change,
    parse_reply,
)
from mta.wire.milter.header import Fields
from mta.wire.milter.packets import (
    CHUNK_OCTETS,
    OLDEST_VERSION,
    VERSION,
    Action,
    Command,
    PacketReader,
    Step,
    numbers,
    packet,
    strings,
)
from mta.wire.text import printable

ACTIONS: Final = (
    Action.ADD_HEADER
    | Action.ADD_RECIPIENT
    | Action.DELETE_RECIPIENT
    | Action.CHANGE_HEADER
    | Action.QUARANTINE
    | Action.CHANGE_SENDER
    | Action.NAME_MACROS
    | Action.REPLACE_BODY
    | Action.ADD_RECIPIENT_PARAMETERS
)
"""What is offered."""
STEPS: Final = Step(0x1FFFFF)
"""What is offered."""

MOST_CHANGES: Final = 1000
MOST_CHANGED_OCTETS: Final = 1_048_576
"""What one filter may ask for at one message's end."""

Macros = Mapping[bytes, bytes]
"""Names as they travel: `j`, `{client_addr}`."""


class Stage(enum.Enum):
    """What a filter is asked about."""

    NEGOTIATION = Command.NEGOTIATE
    CONNECT = Command.CONNECT
    HELO = Command.HELO
    MAIL = Command.MAIL
    RCPT = Command.RCPT
    DATA = Command.DATA
    HEADER = Command.HEADER
    EOH = Command.EOH
    BODY = Command.BODY
    END = Command.END
    UNKNOWN = Command.UNKNOWN

    __hash__ = object.__hash__


_ALWAYS = frozenset(Decision) - {Decision.DISCARD, Decision.SKIP}
_OF_A_MESSAGE = _ALWAYS | {Decision.DISCARD}
ANSWERS: Final = {
    Stage.CONNECT: _ALWAYS,
    Stage.HELO: _ALWAYS,
    Stage.MAIL: _OF_A_MESSAGE,
    Stage.RCPT: _OF_A_MESSAGE | {Decision.SKIP},
    Stage.DATA: _OF_A_MESSAGE,
    Stage.HEADER: _OF_A_MESSAGE | {Decision.SKIP},
    Stage.EOH: _OF_A_MESSAGE,
    Stage.BODY: _OF_A_MESSAGE | {Decision.SKIP},
    Stage.END: _OF_A_MESSAGE,
    Stage.UNKNOWN: _OF_A_MESSAGE,
}
"""What may be answered where. (Changes, besides, at the end alone.)"""

_UNWANTED: Final = {
    Stage.CONNECT: Step.NO_CONNECT,
    Stage.HELO: Step.NO_HELO,
    Stage.MAIL: Step.NO_MAIL,
    Stage.RCPT: Step.NO_RCPT,
    Stage.DATA: Step.NO_DATA,
    Stage.HEADER: Step.NO_HEADER,
    Stage.EOH: Step.NO_EOH,
    Stage.BODY: Step.NO_BODY,
    Stage.UNKNOWN: Step.NO_UNKNOWN,
}
_MUTE: Final = {
    Stage.CONNECT: Step.MUTE_CONNECT,
    Stage.HELO: Step.MUTE_HELO,
    Stage.MAIL: Step.MUTE_MAIL,
    Stage.RCPT: Step.MUTE_RCPT,
    Stage.DATA: Step.MUTE_DATA,
    Stage.HEADER: Step.MUTE_HEADER,
    Stage.EOH: Step.MUTE_EOH,
    Stage.BODY: Step.MUTE_BODY,
    Stage.UNKNOWN: Step.MUTE_UNKNOWN,
}
_SINCE: Final = {Stage.UNKNOWN: 3, Stage.DATA: 4}
"""The version that brought a stage, where it is none of the first."""
_NAMED: Final = {
    0: Stage.CONNECT,
    1: Stage.HELO,
    2: Stage.MAIL,
    3: Stage.RCPT,
    4: Stage.DATA,
    5: Stage.END,
    6: Stage.EOH,
}
"""By what number a filter that names its macros means which stage."""
_OF_THE_CONNECTION: Final = {
    Decision.REJECT: Reply(554, REJECTED.enhanced, (b"No mail is taken from you",)),
    Decision.TRY_LATER: Reply(421, NOT_NOW.enhanced, NOT_NOW.lines),
}
"""In place of the greeting (RFC 5321 3.1, 3.8)."""
_REPLIES: Final = {
    Decision.REJECT: REJECTED,
    Decision.TRY_LATER: NOT_NOW,
    Decision.SHUT_DOWN: CLOSING,
}


@dataclass(frozen=True, slots=True)
class Question:
    """One command to the filter, with the macros that go before it."""

    stage: Stage
    payload: bytes = b""
    macros: Macros = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the questions came to: `stage` is that of the last one which was answered.

    `decision` is CONTINUE, ACCEPT, DISCARD, or REPLY with the `reply` to give. `changes` only
    where the message is to be taken.
    """

    decision: Decision
    stage: Stage
    reply: Reply | None = None
    changes: tuple[Change, ...] = ()


class Progress:
    """The filter asks for more time."""


PROGRESS: Final = Progress()


@dataclass(frozen=True, slots=True)
class BodyPiece:
    """The next piece of the body that is to take the place of the one that was heard. It counts
    only if the verdict that follows takes the message.
    """

    octets: bytes


Event = Verdict | Progress | BodyPiece


# --- questions --------------------------------------------------------------------------------


def on_connect(name: bytes, host: str, port: int, macros: Macros) -> Question:
    """`host` is an IP address as text; "" when there is none to be known."""
    if not host:
        return Question(Stage.CONNECT, strings((name,)) + b"U", macros)
    family = b"6" if ":" in host else b"4"
    where = family + struct.pack(">H", port) + strings((host.encode(),))
    return Question(Stage.CONNECT, strings((name,)) + where, macros)


def on_helo(name: bytes, macros: Macros) -> Question:
    return Question(Stage.HELO, strings((name,)), macros)


def on_mail(sender: bytes, parameters: Iterable[bytes], macros: Macros) -> Question:
    """`sender` without brackets; `parameters` as `KEY=value`."""
    return Question(Stage.MAIL, strings((b"<%b>" % sender, *parameters)), macros)


def on_rcpt(recipient: bytes, parameters: Iterable[bytes], macros: Macros) -> Question:
    return Question(Stage.RCPT, strings((b"<%b>" % recipient, *parameters)), macros)


def on_data(macros: Macros) -> Question:
    return Question(Stage.DATA, macros=macros)


def on_header(fields: Fields, macros: Macros) -> tuple[Question, ...]:
    """Every field, then the header's end."""
    each = (Question(Stage.HEADER, strings(field)) for field in fields)
    return (*each, Question(Stage.EOH, macros=macros))


def on_body(octets: bytes) -> tuple[Question, ...]:
    """Content as it is, in as many pieces as it takes."""
    cuts = range(0, len(octets), CHUNK_OCTETS)
    return tuple(Question(Stage.BODY, octets[at : at + CHUNK_OCTETS]) for at in cuts)


def on_end(macros: Macros) -> Question:
    return Question(Stage.END, macros=macros)


def on_unknown(line: bytes) -> Question:
    """A command line that nobody knows, without CRLF. It has no macros: libmilter keeps none."""
    return Question(Stage.UNKNOWN, strings((line,)))


# --- the machine ------------------------------------------------------------------------------


class Dialogue:
    """Begins with the negotiation, which the first questions wait for.

    `steps` is what the filter chose, and `version`; `beyond` names the changes that it speaks of
    and has not been granted. None has a meaning before `is_agreed`.
    """

    def __init__(self) -> None:
        self.is_agreed = False
        self.version = VERSION
        self.steps = Step(0)
        self.beyond = ""
        self._actions = Action(0)
        self._named: dict[Stage, frozenset[bytes]] = {}
        self._reader = PacketReader()
        self._questions: deque[Question] = deque()
        self._asked: Stage | None = Stage.NEGOTIATION
        self._last = Stage.NEGOTIATION
        self._is_open = False
        self._is_content = False
        """DATA was said of the message that is open."""
        self._sated: set[Stage] = set()
        self._changes: list[Change] = []
        self._changed_octets = 0
        offer = numbers(VERSION, ACTIONS, STEPS)
        self._output = [packet(Command.NEGOTIATE.value, offer)]

    def take_output(self) -> bytes:
        output, self._output = self._output, []
        return b"".join(output)

    @property
    def is_waiting(self) -> bool:
        """An answer is owed to us."""
        return self._asked is not None

    @property
    def wants_body(self) -> bool:
        """More of this message's body would be heard."""
        return not (Stage.BODY in self._sated or self.steps & Step.NO_BODY)

    @property
    def hears_unknown(self) -> bool:
        """It would be told of a command that nobody knows. Of a message that is open not behind
        DATA, and only where DATA is told: from such a command libmilter finds its way back to
        recipients and DATA, but to no header; then it forgets the message and never answers.
        """
        if not self.is_agreed or self._is_unwanted(Stage.UNKNOWN):
            return False
        return not (self._is_open and (self._is_content or self._is_unwanted(Stage.DATA)))

    def ask(self, questions: Iterable[Question]) -> Verdict | None:
        """Ask them one after the other, until one of them is decided. None: answers are awaited.

        @raise LocalProtocolError: others still are.
        """
        if self._questions or (self._asked is not None and self.is_agreed):
            raise LocalProtocolError("a filter is asked before it has answered")
        self._questions.extend(questions)
        return self._advance() if self.is_agreed else None

    def abort(self) -> None:
        """The message came to nothing. Harmless when there is none."""
        if self._is_open:
            self._is_open = False
            self._output.append(packet(Command.ABORT.value))

    def quit(self) -> None:
        """Nothing may be asked any more."""
        self._output.append(packet(Command.QUIT.value))

    def receive(self, data: bytes) -> list[Event]:
        """What a piece of the filter's octets comes to.

        @raise RemoteProtocolError: the connection cannot go on.
        """
        self._reader.receive(data)
        events: list[Event] = []
        while True:
            found = self._reader.next_packet()
            if found is None:
                if self._asked is None and not self._reader.is_clean:
                    raise self._broken("something that nobody asked for")
                return events
            event = self._heard(*found)
            if event is not None:
                events.append(event)

    # --- inside

    def _heard(self, letter: bytes, payload: bytes) -> Event | None:
        stage = self._asked
        if stage is None:
            raise self._broken(f"{printable(letter)}, which nobody asked for")
        if stage is Stage.NEGOTIATION:
            self._agree(letter, payload)
            return self._advance() if self._questions else None
        if letter in NEEDS:
            return self._change(stage, letter, payload)
        try:
            decision = Decision(letter)
        except ValueError:
            raise self._broken(f"{printable(letter)}, which is no answer") from None
        if decision not in ANSWERS[stage]:
            raise self._broken(f"{decision.name} in answer to {stage.name}")
        if decision is Decision.PROGRESS:
            return PROGRESS
        return self._decided(decision, stage, payload)

    def _decided(self, decision: Decision, stage: Stage, payload: bytes) -> Verdict | None:
        self._asked = None
        if decision is Decision.FAIL:
            raise RemoteProtocolError("the filter gave up", f"in answer to {stage.name}")
        if decision is Decision.SKIP:
            if not self.steps & Step.SKIP:
                raise self._broken("SKIP, which was not negotiated")
            self._sated.add(stage)
            decision = Decision.CONTINUE
        if stage is Stage.END:
            self._is_open = False
        if decision is Decision.DISCARD and stage is Stage.UNKNOWN:
            decision = Decision.CONTINUE  # there is nothing that could be dropped
        if decision is Decision.CONTINUE and stage is not Stage.END:
            return self._advance()
        self._questions.clear()
        changes, self._changes = tuple(self._changes), []
        self._changed_octets = 0
        if decision in (Decision.CONTINUE, Decision.ACCEPT):
            return Verdict(decision, stage, None, changes)
        if decision is Decision.DISCARD:
            return Verdict(decision, stage)
        reply = parse_reply(payload) if decision is Decision.REPLY else _REPLIES[decision]
        if stage is Stage.CONNECT:
            reply = _OF_THE_CONNECTION.get(decision, reply)
        return Verdict(Decision.REPLY, stage, reply)

    def _advance(self) -> Verdict | None:
        """Ask on. What the filter does not want is not said, what it mutes is not waited for."""
        while self._questions:
            question = self._questions.popleft()
            stage = self._last = question.stage
            if stage is Stage.MAIL:
                self.abort()
                self._is_open, self._is_content = True, False
                self._sated.clear()
            elif stage is Stage.DATA:
                self._is_content = True
            if self._is_unwanted(stage):
                continue
            macros = self._chosen(question)
            if macros:
                self._output.append(packet(Command.MACROS.value, stage.value.value + macros))
            self._output.append(packet(stage.value.value, question.payload))
            if not self.steps & _MUTE.get(stage, Step(0)):
                self._asked = stage
                return None
        return Verdict(Decision.CONTINUE, self._last)

    def _is_unwanted(self, stage: Stage) -> bool:
        if stage in self._sated:
            return True
        if self.version < _SINCE.get(stage, OLDEST_VERSION):
            return True
        return bool(self.steps & _UNWANTED.get(stage, Step(0)))

    def _chosen(self, question: Question) -> bytes:
        named = self._named.get(question.stage)
        pairs = (p for p in question.macros.items() if named is None or p[0].strip(b"{}") in named)
        return b"".join(strings(pair) for pair in pairs)

    def _agree(self, letter: bytes, payload: bytes) -> None:
        """The filter's answer to our offer."""
        if letter != Command.NEGOTIATE.value or len(payload) < 12:
            raise self._broken(f"{printable(letter)} in answer to the negotiation")
        version, actions, steps = struct.unpack_from(">3I", payload)
        if not OLDEST_VERSION <= version <= VERSION:
            why = f"it speaks version {version}, we {OLDEST_VERSION} to {VERSION}"
            raise RemoteProtocolError("no common version with the filter", why)
        beyond = _named_bits(Step, steps & ~int(STEPS))
        if beyond:
            raise RemoteProtocolError("the filter wants what was not offered", beyond)
        # libmilter ends the connection if it needs more; rspamd names all that it knows, whatever
        # it is offered. What is beyond the offer is not granted, and refused when it comes.
        self.beyond = _named_bits(Action, actions & ~int(ACTIONS))
        self.version, self.steps = version, Step(steps)
        self._actions = Action(actions & int(ACTIONS))
        self._name_macros(payload[12:])
        self._asked = None
        self.is_agreed = True

    def _name_macros(self, text: bytes) -> None:
        """Behind the negotiation: a stage's number, the names of its macros; as often as it is."""
        while text:
            number, end = text[:4], text.find(b"\0", 4)
            stage = _NAMED.get(struct.unpack(">I", number)[0]) if len(number) == 4 else None
            if stage is None or end < 0 or not self._actions & Action.NAME_MACROS:
                raise self._broken("macros that it did not negotiate to name")
            self._named[stage] = frozenset(n.strip(b"{}") for n in text[4:end].split())
            text = text[end + 1 :]

    def _change(self, stage: Stage, letter: bytes, payload: bytes) -> BodyPiece | None:
        needed = NEEDS[letter]
        if not self._actions & needed:
            raise RemoteProtocolError(
                "the filter asks for what it did not negotiate", f"{needed.name}"
            )
        if stage is not Stage.END:
            raise self._broken(f"{needed.name} in answer to {stage.name}")
        if needed is Action.REPLACE_BODY:
            return BodyPiece(payload)
        self._changes.append(parse_change(letter, payload))
        self._changed_octets += len(payload)
        if len(self._changes) > MOST_CHANGES or self._changed_octets > MOST_CHANGED_OCTETS:
            raise self._broken(f"more than {MOST_CHANGES} changes, or too long ones")
        return None

    def _broken(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError("the filter broke its protocol", f"it sent {what}")


def _named_bits(kind: type[Action] | type[Step], bits: int) -> str:
    known = [flag.name for flag in kind if flag.value & bits and flag.name]
    rest = bits & ~sum(flag.value for flag in kind)
    return ", ".join([*known, *([f"{kind.__name__.lower()} {rest:#x}"] if rest else [])])
