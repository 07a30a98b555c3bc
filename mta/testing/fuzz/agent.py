"""An initiator driven as an agent would, for dialogues nobody would hold (smtp.py).

Law: it keeps the books on every recipient: each has exactly one outcome, none is delivered or in
doubt before its dot, and nothing is said or heard behind the end. What breaks that is `Broken`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mta.model import Address, Outcome, OutcomeKind
from mta.testing.fuzz.dialogues import Lines, wishes
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Broken
from mta.wire.sasl_client import FEWEST_ROUNDS, MOST_ROUNDS, Credentials, derive
from mta.wire.smtp import client_states as told
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_auth import Authentication
from mta.wire.smtp.states import Role

_SENDER = Address(b"alice@example.com", b"example.com")
_RECIPIENTS = tuple(
    Address(b"%c@example.org" % letter, b"example.org") for letter in b"bcdefghijklmnop"
)
_ABROAD = Address("é@bücher.example".encode(), b"xn--bcher-kva.example")
"""It needs SMTPUTF8."""
CREDENTIALS = Credentials("user", "pencil", b"rOprNGfwEbeRWgbNEkqO")
"""Those of the transcripts."""


class Agent:
    """Drives an initiator as an agent would, and keeps the books on every recipient."""

    def __init__(
        self,
        rng: Random,
        role: Role,
        contents: Sequence[bytes],
        authentication: Authentication | None = None,
    ) -> None:
        self.machine = Initiator(b"bridgehead.example.org", role, authentication=authentication)
        self.contents = contents
        self.outcomes: dict[str, dict[int, Outcome]] = {}
        self.over: set[str] = set()
        """Tags that were not sent or withdrawn: nothing of them may be told delivered."""
        self.dotted: set[str] = set()
        self.chunked: set[str] = set()
        """Tags of what goes by BDAT."""
        self.ended: told.Ended | None = None
        self._rng = rng
        self._asked: dict[str, tuple[int, ...]] = {}
        self._ready: list[str] = []
        self._sending: tuple[str, Lines] | None = None
        self._next = 0
        self._key = b""

    def hear(self, data: bytes) -> None:
        machine = self.machine
        self._note(machine.receive(data))
        held = len(machine._reader._buffer) - machine._reader._at
        if self.ended is None and held > machine._reader.line_limit + 1:  # and its CR
            raise Broken(f"{held} octets of a reply are kept")

    def act(self) -> None:
        """Do one of the things that may be done now."""
        machine, rng = self.machine, self._rng
        if self.ended is not None:
            return
        if self._key:
            machine.derived(self._key)
            self._key = b""
        elif self._sending is not None:
            self._send_on()
        elif self._ready:
            if rng.random() < 0.05:
                self._note(machine.withdraw())
            else:
                tag = self._ready.pop(0)
                content = self.contents[int(tag) % len(self.contents)]
                known = machine.is_content_known
                self._sending = tag, [] if known else pieces_of(rng, content)
        may_prepare = machine.is_idle or machine.pipelines
        if (
            self.ended is None
            and machine.state is told.State.OPEN
            and not machine.is_preparing
            and self._sending is None
            and may_prepare
        ):
            if self._next < len(self.contents):
                self._prepare()
            elif machine.is_idle and rng.random() < 0.5:
                self._note(machine.quit())
        elif machine.is_preparing and not self._ready and rng.random() < 0.02:
            self._note(machine.withdraw())

    def _prepare(self) -> None:
        tag = str(self._next)
        self._next += 1
        many = self._rng.choice((1, 1, 2, 5))
        self._asked[tag] = tuple(range(many))
        self.outcomes[tag] = {}
        content = self.contents[int(tag)]
        size, eight = len(content), not content.isascii()
        to = list(enumerate(_RECIPIENTS[:many]))
        if self._rng.random() < 0.1:
            to[-1] = (many - 1, _ABROAD)
        named = self.machine.checkpoints and self._rng.random() < 0.7
        chunked = self.machine.chunks and self._rng.random() < 0.6
        if chunked:
            self.chunked.add(tag)
        self._note(
            self.machine.prepare(
                tag,
                _SENDER,
                to,
                size,
                eight,
                transid=b"<%b@x>" % tag.encode() if named else b"",
                is_resend=named and self._rng.random() < 0.7,
                envelope=wishes(self._rng, _SENDER, [address for _, address in to]),
                binary=chunked and self._rng.random() < 0.5,
                chunked=chunked,
                seconds_left=self._rng.choice((-1e12, -1.0, 0.0, 5.5, 600.0, 1e12)),
            )
        )

    def _send_on(self) -> None:
        assert self._sending is not None
        tag, pieces = self._sending
        if pieces:
            self.machine.content(pieces.pop(0), opaque=True)
            return
        self._sending = None
        self.dotted.add(tag)
        self.machine.finish()

    def _note(self, happened: Sequence[told.Event]) -> None:
        for event in happened:
            if self.ended is not None:
                raise Broken(f"{event} behind the end")
            match event:
                case told.Prepared(tag, outcomes):
                    self._settle(tag, outcomes)
                    if len(self.outcomes[tag]) < len(self._asked[tag]):
                        self._ready.append(tag)
                case told.Committed(tag, outcomes):
                    self._settle(tag, outcomes)
                    if self._sending is not None and self._sending[0] == tag:
                        self._sending = None
                    if len(self.outcomes[tag]) != len(self._asked[tag]):
                        raise Broken(f"{tag} is committed and some have no outcome")
                case told.NotSent(tag) | told.Withdrawn(tag) | told.Unfit(tag):
                    if tag in self.over or tag in self.dotted:
                        raise Broken(f"{event} of what was sent or told before")
                    self.over.add(tag)
                    if tag in self._ready:
                        self._ready.remove(tag)
                    if self._sending is not None and self._sending[0] == tag:
                        self._sending = None
                case told.DeriveKey(password, salt, rounds):
                    if not FEWEST_ROUNDS <= rounds <= MOST_ROUNDS:
                        raise Broken(f"{rounds} rounds would be done")
                    # Fewer rounds than were asked for: the proof is wrong, and sooner there.
                    self._key = derive(password, salt, FEWEST_ROUNDS)
                case told.Ended():
                    self.ended = event

    def _settle(self, tag: str, outcomes: Sequence[Outcome]) -> None:
        if tag in self.over:
            raise Broken(f"{tag} has outcomes and was not sent")
        known = self.outcomes[tag]
        for outcome in outcomes:
            if outcome.recipient in known or outcome.recipient not in self._asked[tag]:
                raise Broken(f"recipient {outcome.recipient} of {tag} has a second outcome")
            known[outcome.recipient] = outcome
            is_late = outcome.kind in (OutcomeKind.DELIVERED, OutcomeKind.UNKNOWN)
            if is_late and tag not in self.dotted:
                raise Broken(f"{tag} is {outcome.kind.value} before its dot")

    def take(self) -> bytes:
        """What is to be sent now; and whether somebody waits for something without an end."""
        machine = self.machine
        output = machine.take_output()
        if self.ended is None:
            is_begun = self._sending is not None and not machine.is_preparing
            ours = machine.is_idle or bool(self._ready) or (bool(self._sending) and not is_begun)
            if machine.timeout is None and not ours:
                raise Broken("the peer is waited for without a time")
        return output

    def lose(self, expire: bool) -> None:
        """The end, if it has not come yet: every recipient has its outcome then."""
        machine = self.machine
        if expire and self.ended is None:
            self._note(machine.expire())
        if self.ended is None:
            self._note(machine.connection_lost())
        if machine.state is not told.State.ENDED or machine.timeout is not None:
            raise Broken("the end is none")
        machine.take_output()
        self._note(machine.receive(b"250 Ok\r\n"))
        if machine.take_output():
            raise Broken("something is said behind the end")
        for tag, asked in self._asked.items():
            left = set(asked) - set(self.outcomes[tag])
            if bool(left) is not (tag in self.over):
                raise Broken(f"{tag}: {sorted(left)} have no outcome")
