"""Dialogues nobody would hold: mutated transcripts and made-up peers against the machines of wire.

Law: whatever is said, in whatever pieces, no exception leaves a machine, its state is one of its
table, it holds no more octets than its limits allow, each reply is well-formed and in its place,
each recipient has exactly one outcome, and no message is told delivered that the other side did
not take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mta.errors import RemoteProtocolError
from mta.model import Outcome, OutcomeKind, Reply
from mta.testing.fuzz.agent import CREDENTIALS, Agent
from mta.testing.fuzz.dialogues import LONGEST, Corpus, Lines, mutated
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Broken, Target
from mta.wire.sasl_client import EXCHANGES
from mta.wire.smtp import events
from mta.wire.smtp.client_auth import Authentication
from mta.wire.smtp.content import END_OF_DATA, Stuffer
from mta.wire.smtp.deliver_by import DeliverBy
from mta.wire.smtp.limits import COMMAND_LIMIT, Limits
from mta.wire.smtp.priority import PriorityTerms
from mta.wire.smtp.reply import ReplyReader
from mta.wire.smtp.server import Privileges, Responder
from mta.wire.smtp.server_auth import NO_AUTH, RESPONSE_LIMIT, AuthTerms
from mta.wire.smtp.server_chunks import ChunkingResponder
from mta.wire.smtp.states import Role, State

REPLY_OCTETS = 1100
"""No reply of a responder is longer, whatever it was told."""


# --- the responder ----------------------------------------------------------------------------

_REFUSALS = (
    Reply(450, "4.2.1", (b"Later",)),
    Reply(452, "4.5.3", (b"Too many",)),
    Reply(550, "5.1.1", (b"No",)),
    Reply(554, "5.7.1", (b"No\x2e",)),
)
_KNOWN = Reply(355, "", (b"of the whole",))
"""The answer to a named transaction that is complete; the offset is put in."""
_CHALLENGE = Reply(334, "", (b"UGFzc3dvcmQ6",))
_TERMS = AuthTerms(("PLAIN", "LOGIN"), in_clear=True)
_CLOSING = Reply(421, "4.3.2", (b"Bye",))


@dataclass(slots=True)
class _Told:
    """What a responder's dialogue came to."""

    output: bytes = b""
    happened: list[str] = field(default_factory=list)
    messages: Lines = field(default_factory=list)
    opaque: Lines = field(default_factory=list)
    """Those that came by BDAT."""
    repeated: Lines = field(default_factory=list)
    """Names of transactions that came again."""


class _Host:
    """Drives a responder; the n-th question has the n-th answer of `answers`."""

    def __init__(
        self,
        role: Role,
        limits: Limits,
        answers: Sequence[Reply | None],
        *,
        checkpoint: bool = False,
        chunking: bool = False,
        auth: bool = False,
        xclient: bool = False,
        unknown: bool = False,
    ) -> None:
        checkpoint &= role is Role.SMTP
        kind = ChunkingResponder if chunking else Responder
        terms = _TERMS if auth else NO_AUTH
        self.machine = kind(
            b"mx.example.org",
            role,
            limits,
            checkpoint=checkpoint,
            auth=terms,
            relays=not auth,
            offers=[DeliverBy(10), PriorityTerms()],
            xclient=xclient,
            tells_unknown=unknown,
        )
        self._privileges = Privileges(checkpoint, True, xclient)
        self._is_known = False
        """Somebody was authenticated."""
        self._is_opaque = False
        self._known = b""
        """The name of the present transaction, if it is complete already."""
        self.told = _Told()
        self._answers = answers
        self._asked = 0
        self._content: Lines = []
        self._owed: tuple[events.Event, Reply | None] | None = None
        self._has_quit = False
        self._output: Lines = []

    def pump(self, late: Callable[[], bool] = lambda: False) -> None:
        """Answer all questions, but those that `late` says will be answered next time."""
        machine = self.machine
        if self._owed is not None:
            owed, self._owed = self._owed, None
            self._answer(*owed)
        while (event := machine.next_event()) is not None:
            if self._has_quit:
                raise Broken(f"{event} behind the end")
            if isinstance(event, events.Chunk):
                self._content.append(event.data)
            elif isinstance(event, events.Quit):
                self._has_quit = True
                self.told.happened.append("quit")
            elif isinstance(event, events.Reset | events.Rejected):
                self.told.happened.append(type(event).__name__)
            else:
                reply = self._answers[self._asked % len(self._answers)]
                self._asked += 1
                if late():
                    self._owed = event, reply
                    break
                self._answer(event, reply)
        output = machine.take_output()
        if output:
            self._output.append(output)
        self._inspect()

    def _answer(self, event: events.Event, reply: Reply | None) -> None:
        machine = self.machine
        happened = type(event).__name__
        if isinstance(event, events.Mail):
            self._known = b""
        elif isinstance(event, events.Auth | events.AuthResponse):
            happened = repr(event)
            if reply is _KNOWN or (reply is None and event == events.Auth("LOGIN", None)):
                reply = _CHALLENGE
            if reply is None and event != events.AuthResponse(None):
                self._is_known = True
        elif isinstance(event, events.Xclient | events.UnknownCommand):
            happened = repr(event)
        if reply is _KNOWN:
            name = event.parameters.get(b"TRANSID") if isinstance(event, events.Mail) else None
            reply = None
            if name and isinstance(event, events.Mail):
                self._known = name
                size = event.parameters.get(b"SIZE") or b"0"
                reply = Reply(355, "", (size + b" is the transaction offset",))
        if isinstance(event, events.Data):
            self._content.clear()
            self._is_opaque = event.is_chunked
        elif isinstance(event, events.End):
            content = b"".join(self._content)
            self._content.clear()
            if event.fault is None:
                happened = f"End {content!r}"
                if event.size_octets != len(content):
                    raise Broken(f"{len(content)} octets are told as {event.size_octets}")
                if self._known and content:
                    reply = _REFUSALS[3]
                if reply is None and self._known:
                    self.told.repeated.append(self._known)
                elif reply is None:
                    kept = self.told.opaque if self._is_opaque else self.told.messages
                    kept.append(content)
            else:
                happened = "End with a fault"
                reply = None
        self.told.happened.append(happened)
        if isinstance(event, events.End) and machine.role is Role.LMTP and reply is not None:
            each: list[Reply | None] = [reply] * machine.recipients_accepted
            machine.answer_each(each)
        else:
            machine.answer(reply)
        if isinstance(event, events.Xclient) and machine.state is State.GREETING:
            self._is_known = bool(event.said.login)
            machine.welcome(self._privileges)
            machine.greet()

    def _inspect(self) -> None:
        machine = self.machine
        if machine.is_authenticated and not self._is_known:
            raise Broken("a client is known that nobody knows")
        if not isinstance(machine.state, State):
            raise Broken(f"the state is {machine.state!r}")
        if machine.state is State.CLOSED and machine.next_event() is None and not self._has_quit:
            raise Broken("closed without saying so")
        most = RESPONSE_LIMIT if machine.state is State.SASL else COMMAND_LIMIT
        if not machine.is_awaiting and machine.buffered_octets > most:
            raise Broken(f"{machine.buffered_octets} octets wait for nothing")

    def end(self) -> _Told:
        for _ in range(3):
            self.pump()
        self.told.output = b"".join(self._output)
        return self.told


def against_responder(rng: Random, corpus: Corpus) -> None:
    """A client's dialogue, twice: in one piece with hooks at once, in pieces with late ones. Both
    must come to the same.
    """
    data = mutated(rng, corpus.clients)
    role = rng.choice((Role.SMTP, Role.SMTP, Role.LMTP))
    limits = Limits(
        size_octets=rng.choice((0, 100, 10_000)),
        recipients=rng.choice((1, 3, 1000)),
        errors=rng.choice((3, 20)),
        commands=rng.choice((0, 0, 10)),
        line_octets=rng.choice((0, 998)),
        normalise_newlines=rng.random() < 0.5,
    )
    answers = [
        rng.choice((*_REFUSALS, _KNOWN)) if rng.random() < 0.2 else None
        for _ in range(rng.randint(1, 12))
    ]
    named = rng.random() < 0.5
    if rng.random() < 0.1:
        answers.append(_CLOSING)
    chunking, auth, xclient, unknown = (rng.random() < chance for chance in (0.6, 0.5, 0.5, 0.5))
    at_once, in_pieces = (
        _Host(
            role,
            limits,
            answers,
            checkpoint=named,
            chunking=chunking,
            auth=auth,
            xclient=xclient,
            unknown=unknown,
        )
        for _ in range(2)
    )
    for host in (at_once, in_pieces):
        host.machine.greet()
        host.pump()
    at_once.machine.receive(data)
    at_once.pump()
    for piece in pieces_of(rng, data):
        in_pieces.machine.receive(piece)
        in_pieces.pump(lambda: rng.random() < 0.2)
    one, other = at_once.end(), in_pieces.end()
    _inspect_dialogue(one, data, limits)
    if (_told_faults(one.output), one.happened) != (_told_faults(other.output), other.happened):
        raise Broken(f"pieces change the dialogue:\n{_compared(one, other)}")


def _told_faults(output: bytes) -> Lines:
    """Replies; which of several faults of a content is found first depends on the pieces."""
    return [
        b"fault" if line[:8] in (b"550 5.5.", b"550 5.6.", b"552 5.3.", b"554 5.6.") else line
        for line in output.split(b"\r\n")
    ]


def _compared(one: _Told, other: _Told) -> str:
    return f"{one.output!r}\n{other.output!r}\n{one.happened}\n{other.happened}"


def _inspect_dialogue(told_: _Told, data: bytes, limits: Limits) -> None:
    reader = ReplyReader()
    reader.receive(told_.output)
    replies = 0
    while reader.next_reply() is not None:
        replies += 1
    if not reader.is_clean or told_.output[-2:] not in (b"", b"\r\n"):
        raise Broken(f"the output is no sequence of replies: {told_.output[-200:]!r}")
    # One a line, the greeting, and one more for each further recipient in LMTP (a line each, too).
    most = 2 * data.count(b"\n") + len(data) // COMMAND_LIMIT + 2
    if replies > most:
        raise Broken(f"{replies} replies to at most {most} commands")
    if len(told_.output) > most * REPLY_OCTETS:
        raise Broken(f"{len(told_.output)} octets of output")
    for content in told_.messages:
        if (b"\r\n" + content).find(END_OF_DATA) >= 0 or not (b"\r\n" + content).endswith(b"\r\n"):
            raise Broken(f"an accepted content has an end inside or none: {content!r}")
        bare = content.replace(b"\r\n", b"")
        if b"\r" in bare or b"\n" in bare or b"\0" in bare:
            raise Broken(f"an accepted content has a bare newline or NUL: {content!r}")
    for content in (*told_.messages, *told_.opaque):
        if limits.size_octets and len(content) > limits.size_octets:
            raise Broken(f"{len(content)} octets were accepted")


# --- the initiator ----------------------------------------------------------------------------


def against_initiator(rng: Random, corpus: Corpus) -> None:
    """A server's dialogue, while the agent acts when it likes; then the connection goes."""
    role = rng.choice((Role.SMTP, Role.SMTP, Role.LMTP))
    authentication = None
    if rng.random() < 0.4:
        mechanisms = rng.choice((("SCRAM-SHA-256",), ("PLAIN",), ("LOGIN",), tuple(EXCHANGES)))
        authentication = Authentication(CREDENTIALS, mechanisms, plaintext=rng.random() < 0.9)
    contents = [b"hello\r\n", b"", b".\r\nx", b"8 bit \xff\r\n"]
    agent = Agent(rng, role, contents, authentication)
    said, is_auth_said = 0, False
    for piece in pieces_of(rng, mutated(rng, corpus.servers)):
        agent.hear(piece)
        for _ in range(rng.choice((0, 1, 1, 3))):
            agent.act()
        output = agent.take()
        said += len(output)
        if b"\n" in output.replace(b"\r\n", b""):
            raise Broken(f"a bare newline is sent: {output!r}")
        if authentication is not None:
            for line in output.split(b"\r\n"):  # a server may answer before it was asked
                is_auth_said |= line.startswith(b"AUTH ")
                if line.startswith(b"MAIL FROM:") and not is_auth_said:
                    raise Broken("mail is sent to a server that was not told who we are")
            if is_auth_said and not authentication.plaintext:
                raise Broken("credentials are sent without TLS")
    if said > LONGEST:
        raise Broken(f"{said} octets were said")
    agent.lose(rng.random() < 0.5)


# --- both -------------------------------------------------------------------------------------


_SOME, _MORE = (1, 10, 100, 0), (1, 30, 300, 0)
"""Octets that pass at a time; 0: all."""


def between_both(rng: Random, corpus: Corpus) -> None:
    """Our initiator and our responder over a network that cuts pieces and breaks at any octet. What
    is delivered arrived as it was sent; what arrived is delivered or in doubt.
    """
    role = rng.choice((Role.SMTP, Role.SMTP, Role.LMTP))
    contents = [_content(rng, corpus) for _ in range(rng.randint(1, 4))]
    answers = [
        rng.choice((*_REFUSALS, _KNOWN, _KNOWN)) if rng.random() < 0.15 else None
        for _ in range(rng.randint(1, 9))
    ]
    limits = Limits(line_octets=0, errors=1000)
    chunking = rng.random() < 0.6
    host = _Host(role, limits, answers, checkpoint=rng.random() < 0.5, chunking=chunking)
    agent = Agent(rng, role, contents)
    host.machine.greet(rng.choice(_REFUSALS) if rng.random() < 0.05 else None)
    breaks_at = rng.randrange(4000) if rng.random() < 0.4 else -1
    to_agent = to_host = b""
    passed = idle = 0
    is_new = True
    while agent.ended is None and idle < 200 and (breaks_at < 0 or passed < breaks_at):
        if is_new or host._owed is not None:
            host.pump(lambda: rng.random() < 0.1)
        to_agent += b"".join(host._output)
        host._output.clear()
        many = _SOME[int(4 * rng.random())] or len(to_agent)
        piece, to_agent = to_agent[:many], to_agent[many:]
        if piece:
            agent.hear(piece)
        agent.act()
        to_host += agent.take()
        many = _MORE[int(4 * rng.random())] or len(to_host)
        sent, to_host = to_host[:many], to_host[many:]
        is_new = bool(sent)
        if sent:
            host.machine.receive(sent)
        passed += len(piece) + len(sent)
        # A chunk is held back until it is whole.
        idle = 0 if piece or sent or agent._sending is not None else idle + 1
    if breaks_at < 0 and idle >= 200:
        raise Broken("both wait for the other")
    if breaks_at < 0 and role is Role.SMTP and any(_in_doubt(agent)):
        raise Broken("in doubt without a break")
    agent.lose(False)
    host.end()
    arrived = [_wire(content) for content in contents]
    if any(message not in arrived for message in host.told.messages):
        raise Broken("something arrived that was not sent")
    if any(message not in contents for message in host.told.opaque):
        raise Broken("something arrived by BDAT that was not sent so")
    for tag, outcomes in agent.outcomes.items():
        kinds = {outcome.kind for outcome in outcomes.values()}
        if tag in agent.chunked:
            is_there = contents[int(tag)] in host.told.opaque
        else:
            is_there = arrived[int(tag)] in host.told.messages
        is_there |= b"<%b@x>" % tag.encode() in host.told.repeated
        if OutcomeKind.DELIVERED in kinds and not is_there:
            raise Broken(f"{tag} is told delivered and did not arrive")


def _in_doubt(agent: Agent) -> list[Outcome]:
    return [
        outcome
        for outcomes in agent.outcomes.values()
        for outcome in outcomes.values()
        if outcome.kind is OutcomeKind.UNKNOWN
    ]


def _content(rng: Random, corpus: Corpus) -> bytes:
    """Opaque octets without NUL, with all that could be taken for protocol."""
    data = mutated(rng, corpus.clients)[: rng.choice((0, 1, 5, 300, 20_000))]
    return data.replace(b"\0", b"0")


def _wire(content: bytes) -> bytes:
    stuffer = Stuffer()
    return stuffer.take(content) + stuffer.finish()


# --- the target -------------------------------------------------------------------------------

GAMES = (against_responder, against_initiator, between_both)


class Smtp(Target):
    """This module's law, in three games that take turns."""

    name = "smtp"

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(())
        self.corpus = corpus
        if not corpus.clients or not corpus.servers:
            raise ValueError("there are no transcripts of clients and servers")

    @classmethod
    def at(cls, tests: Path) -> Smtp:
        return cls(Corpus.read([tests / "transcripts", tests / "fuzz"]))

    def hold(self, rng: Random, number: int) -> None:
        try:
            GAMES[number % len(GAMES)](rng, self.corpus)
        except RemoteProtocolError as fault:
            raise Broken(f"our own reply cannot be read: {fault}") from fault
