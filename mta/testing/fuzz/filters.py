"""What mail filters say: single answers, and whole dialogues with filters that keep no rule."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mta.errors import RemoteProtocolError
from mta.model import Reply
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.wire.milter import dialogue
from mta.wire.milter.answers import (
    NEEDS,
    AddField,
    Change,
    ChangeField,
    Decision,
    Quarantine,
    parse_change,
    parse_reply,
)
from mta.wire.milter.dialogue import MOST_CHANGES, Dialogue, Event, Question, Verdict
from mta.wire.milter.packets import MOST_OCTETS, PacketReader, numbers, packet

_LINE_OCTETS = 480
_REPLY_LINES = 32


class Answers(Target):
    """Any payload is a reply or a change as the letter has it, or breaks the protocol by name. A
    reply has its class, few short lines, and no octet beyond printable ASCII; a field has a name.
    """

    name = "milter-answers"
    spices = (
        *(
            b"\0",
            b"\r\n",
            b"\n",
            b"550 ",
            b"550-",
            b"451-4.7.1 ",
            b"5.7.1 ",
            b"%%",
            b"%",
            b"<",
            b">",
        ),
        *(b"X-Spam", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x1b[2J", b"a" * 500, b"\xc3\xa9"),
    )

    def hold(self, rng: Random, number: int) -> None:
        payload = self.octets(rng)
        reply = either(lambda: parse_reply(payload), RemoteProtocolError)
        if isinstance(reply, Reply):
            _ensure_reply(reply)
        letter = rng.choice((*NEEDS, payload[:1]))
        change = either(lambda: parse_change(letter, payload), RemoteProtocolError)
        if not isinstance(change, BaseException):
            _ensure_change(change)


def _ensure_reply(reply: Reply) -> None:
    ensure(reply.code // 100 in (4, 5), f"a refusal has the code {reply.code}")
    ensure(reply.enhanced[:1] in ("", str(reply.code)[0]), "its two codes are of two classes")
    ensure(0 < len(reply.lines) <= _REPLY_LINES, f"{len(reply.lines)} lines of a reply")
    for line in reply.lines:
        ensure(len(line) <= _LINE_OCTETS, f"a line of {len(line)} octets")
        ensure(all(0x20 <= octet < 0x7F for octet in line), f"a line is {line!r}")


def _ensure_change(change: Change) -> None:
    if isinstance(change, AddField | ChangeField):
        ensure(change.name and b":" not in change.name, "a field without a name")
        ensure(all(0x20 < octet < 0x7F for octet in change.name), f"its name is {change.name!r}")
        ensure(b"\0" not in change.value, "a field holds NUL")
    elif isinstance(change, Quarantine):
        ensure(change.reason.isprintable(), "a reason cannot be printed")
    else:
        ensure(b"\0" not in change.address, "an address holds NUL")


_LETTERS = [bytes((octet,)) for octet in b"cccccartydfsp4hhim+-eqb2OLz"]
_OPENING = packet(b"O", numbers(6, 0x1FF, 0))


class Milter(Target):
    """Whatever a filter answers, each question ends in a verdict, waits, or the connection breaks
    by name; how answers are cut changes nothing. Verdicts are of the kinds that were negotiated,
    and no filter gets more changes, or more memory, than the limits are.
    """

    name = "milter"
    spices = (
        *(packet(letter) for letter in _LETTERS),
        *(_OPENING, packet(b"y", b"550 5.7.1 No\0"), packet(b"h", b"X-A\0b\0"), b"\0\0\0\1", b"\0"),
        *(numbers(1 << 30), packet(b"m", b"\0\0\0\1Subject\0x\0"), packet(b"q", b"why\0")),
    )

    def hold(self, rng: Random, number: int) -> None:
        rounds = [(questions, self._said(rng, at)) for at, questions in enumerate(_rounds(rng))]
        cuts = rng.getrandbits(64)
        whole = _Held([(questions, [said]) for questions, said in rounds])
        chance = Random(cuts)  # no secrets here
        cut = _Held([(questions, pieces_of(chance, said)) for questions, said in rounds])
        same(whole.broken, cut.broken, "pieces change whether the protocol is broken")
        if not whole.broken:
            same(whole.events, cut.events, "pieces change the verdicts")
            same(whole.output, cut.output, "pieces change what is asked")

    def _said(self, rng: Random, at: int) -> bytes:
        if at == 0 and rng.random() < 0.9:
            return packet(b"O", numbers(rng.randint(2, 6), rng.getrandbits(9), _steps(rng)))
        if rng.random() < 0.4:
            return self.octets(rng, 4096)
        said = b""
        while rng.random() < 0.3:
            said += packet(rng.choice(_LETTERS), self.octets(rng, 200)[5:])
        return said + packet(rng.choice(_LETTERS[:12]), b"451 4.7.1 Later\0")


def _steps(rng: Random) -> int:
    return rng.choice((0, 0, rng.getrandbits(21), rng.getrandbits(21) & rng.getrandbits(21)))


def _rounds(rng: Random) -> list[tuple[Question, ...]]:
    """The negotiation, then messages as an MTA asks about them."""
    header = ((b"From", b" a@x.org"), (b"Subject", b" hello"))
    rounds: list[tuple[Question, ...]] = [
        (dialogue.on_connect(b"client", "192.0.2.1", 25, {b"j": b"mx"}),),
        (dialogue.on_helo(b"client", {}),),
        (dialogue.on_unknown(b"XFOO bar"),),
    ]
    for _ in range(rng.randint(1, 2)):
        rounds += [
            (dialogue.on_mail(b"a@x.org", [b"SIZE=5"], {b"i": b"Q1"}),),
            *([(dialogue.on_rcpt(b"b@x.org", [], {}),)] * rng.randint(0, 2)),
            *([(dialogue.on_unknown(b"XFOO bar"),)] * rng.randint(0, 1)),
            (dialogue.on_data({}), *dialogue.on_header(header, {})),
            *([dialogue.on_body(b"text\r\n" * 50)] * rng.randint(0, 2)),
            (dialogue.on_end({}),),
        ]
    return rounds


class _Held:
    """One dialogue to its end."""

    def __init__(self, rounds: list[tuple[tuple[Question, ...], list[bytes]]]) -> None:
        self.machine = Dialogue()
        self.events: list[object] = []
        self.output = b""
        self.broken = False
        try:
            for questions, pieces in rounds:
                self._round(questions, pieces)
        except RemoteProtocolError:
            self.broken = True

    def _round(self, questions: tuple[Question, ...], pieces: list[bytes]) -> None:
        machine = self.machine
        if not machine.is_waiting or not (machine.is_agreed or machine._questions):
            verdict = machine.ask(questions)
            if verdict is not None:
                self._heard([verdict])
        for piece in pieces:
            self._heard(machine.receive(piece))
            ensure(len(machine._changes) <= MOST_CHANGES, "more changes than may be")
            ensure(len(machine._reader._octets) <= MOST_OCTETS + 4, "more than a packet is kept")
        self.output += machine.take_output()
        _ensure_packets(self.output)

    def _heard(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(event)
            if not isinstance(event, Verdict):
                continue
            if event.decision is Decision.REPLY:
                assert event.reply is not None, "a refusal without a reply"
                _ensure_reply(event.reply)
            else:
                decided = (Decision.CONTINUE, Decision.ACCEPT, Decision.DISCARD)
                ensure(event.decision in decided, f"{event.decision} is no verdict")
                ensure(event.reply is None, "a reply, and nothing is refused")
            for change in event.changes:
                _ensure_change(change)


def _ensure_packets(output: bytes) -> None:
    reader = PacketReader()
    reader.receive(output)
    while reader.next_packet() is not None:
        pass
    ensure(reader.is_clean, "what is said is no sequence of packets")
