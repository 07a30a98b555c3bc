"""The states of an initiator, what it waits for, its one table, and what it tells its adapter.

Law: a reply whose class has no row in `TABLE` is no answer to what we said, and ends the
association. RFC 5321 4.2.1 (what the first digit says), 4.3.2, 4.5.3.2 (time-outs).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mta.model import Outcome, OutcomeKind, Reply
from mta.wire.smtp.client_chunks import ChunkWriter

# --- what is waited for -----------------------------------------------------------------------


class Wait(enum.Enum):
    """The replies that may be owed to us, in the words of a time-out."""

    GREETING = "greeting"
    HELLO = "reply to EHLO"
    STARTTLS = "reply to STARTTLS"
    HANDSHAKE = "TLS to be negotiated"
    """No reply: the engine below says when."""
    AUTH = "reply to AUTH"
    DERIVING = "a key to be derived"
    """No reply: that is our own work."""
    MAIL = "reply to MAIL"
    RCPT = "reply to RCPT"
    DATA = "reply to DATA"
    CONTENT = "the peer to take the content"
    """No reply: the peer must read on while we write."""
    CHUNK = "reply to BDAT"
    DOT = "reply to the final dot"
    LONE_DOT = "reply to the dot that ended an unwanted DATA"
    RSET = "reply to RSET"
    QUIT = "reply to QUIT"

    __hash__ = object.__hash__


ENVELOPE = frozenset((Wait.MAIL, Wait.RCPT, Wait.DATA))
OFFSET = 355
"""RFC 1845's reply to MAIL."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; the defaults are RFC 5321 4.5.3.2's."""

    greeting: float = 300.0
    hello: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    dot: float = 600.0
    reset: float = 300.0
    quit: float = 5.0

    def by_wait(self) -> dict[Wait, float]:
        """Every wait has an end."""
        return {
            Wait.GREETING: self.greeting,
            Wait.HELLO: self.hello,
            Wait.STARTTLS: self.hello,
            Wait.HANDSHAKE: self.hello,
            Wait.AUTH: self.hello,
            Wait.DERIVING: self.hello,
            Wait.MAIL: self.mail,
            Wait.RCPT: self.rcpt,
            Wait.DATA: self.data,
            Wait.CONTENT: self.block,
            Wait.CHUNK: self.block,
            Wait.DOT: self.dot,
            Wait.LONE_DOT: self.dot,
            Wait.RSET: self.reset,
            Wait.QUIT: self.quit,
        }


class State(enum.Enum):
    """Where an association stands. GREETING -> HELLO (-> HELO) -> OPEN -> QUITTING -> ENDED; with
    TLS, HELLO -> STARTTLS -> HANDSHAKE -> HELLO between; with credentials, AUTH (<-> DERIVING)
    before OPEN. ENDED from everywhere.
    """

    GREETING = "greeting"
    """The peer speaks first."""
    HELLO = "hello"
    """EHLO (LHLO) was said."""
    HELO = "helo"
    """EHLO was not understood; HELO was said."""
    STARTTLS = "starttls"
    """STARTTLS was said."""
    HANDSHAKE = "handshake"
    """TLS is being negotiated; then EHLO is said anew, and what was announced before is void."""
    AUTH = "auth"
    """AUTH was said, or a response to a challenge."""
    DERIVING = "deriving"
    """The key of SCRAM is being derived from the password; then it goes on."""
    OPEN = "open"
    """Transactions may come, one after the other, or one overlapping the next."""
    QUITTING = "quitting"
    """QUIT was said."""
    ENDED = "ended"
    """Nothing is said or heard any more."""

    __hash__ = object.__hash__


AUTHENTICATING = frozenset((State.AUTH, State.DERIVING))


class Secrecy(enum.Enum):
    """What TLS is to an association that we open."""

    NEVER = "never"
    IF_OFFERED = "if offered"
    ALWAYS = "always"
    """Without it nothing is sent."""


class Class(enum.Enum):
    """What the first digit of a reply says; 421 is a class of its own."""

    POSITIVE = "2yz"
    INTERMEDIATE = "3yz"
    TRANSIENT = "4yz"
    PERMANENT = "5yz"
    CLOSING = "421"

    __hash__ = object.__hash__


CLASSES = {
    2: Class.POSITIVE,
    3: Class.INTERMEDIATE,
    4: Class.TRANSIENT,
    5: Class.PERMANENT,
}
"""First digit -> class."""


class Row(NamedTuple):
    after: State
    action: str


TABLE: dict[tuple[State, Class], Row] = {
    (State.GREETING, Class.POSITIVE): Row(State.HELLO, "say EHLO"),
    (State.GREETING, Class.TRANSIENT): Row(State.ENDED, "refused"),
    (State.GREETING, Class.PERMANENT): Row(State.ENDED, "refused"),
    (State.GREETING, Class.CLOSING): Row(State.ENDED, "refused"),
    (State.HELLO, Class.POSITIVE): Row(State.OPEN, "opened"),
    (State.HELLO, Class.TRANSIENT): Row(State.ENDED, "refused"),
    (State.HELLO, Class.PERMANENT): Row(State.HELO, "say HELO"),
    (State.HELLO, Class.CLOSING): Row(State.ENDED, "refused"),
    # Whether a refusal ends it is the policy's word: `Secrecy`.
    (State.STARTTLS, Class.POSITIVE): Row(State.HANDSHAKE, "start TLS"),
    (State.STARTTLS, Class.TRANSIENT): Row(State.OPEN, "no TLS"),
    (State.STARTTLS, Class.PERMANENT): Row(State.OPEN, "no TLS"),
    (State.STARTTLS, Class.CLOSING): Row(State.ENDED, "refused"),
    # A HELO reply announces nothing, whatever its lines look like (RFC 5321 4.1.1.1).
    (State.HELO, Class.POSITIVE): Row(State.OPEN, "opened plainly"),
    (State.HELO, Class.TRANSIENT): Row(State.ENDED, "refused"),
    (State.HELO, Class.PERMANENT): Row(State.ENDED, "refused"),
    (State.HELO, Class.CLOSING): Row(State.ENDED, "refused"),
    (State.AUTH, Class.POSITIVE): Row(State.OPEN, "authenticated"),
    (State.AUTH, Class.INTERMEDIATE): Row(State.AUTH, "challenge"),
    (State.AUTH, Class.TRANSIENT): Row(State.ENDED, "no AUTH now"),
    (State.AUTH, Class.PERMANENT): Row(State.ENDED, "not authenticated"),
    (State.AUTH, Class.CLOSING): Row(State.ENDED, "no AUTH now"),
    # It is our turn: only an end may come.
    (State.DERIVING, Class.CLOSING): Row(State.ENDED, "no AUTH now"),
    (State.OPEN, Class.POSITIVE): Row(State.OPEN, "transaction"),
    (State.OPEN, Class.INTERMEDIATE): Row(State.OPEN, "transaction"),
    (State.OPEN, Class.TRANSIENT): Row(State.OPEN, "transaction"),
    (State.OPEN, Class.PERMANENT): Row(State.OPEN, "transaction"),
    (State.OPEN, Class.CLOSING): Row(State.ENDED, "closing"),
    (State.QUITTING, Class.POSITIVE): Row(State.ENDED, "ended"),
    (State.QUITTING, Class.INTERMEDIATE): Row(State.ENDED, "ended"),
    (State.QUITTING, Class.TRANSIENT): Row(State.ENDED, "ended"),
    (State.QUITTING, Class.PERMANENT): Row(State.ENDED, "ended"),
    (State.QUITTING, Class.CLOSING): Row(State.ENDED, "ended"),
}
"""(state, class of the reply) -> (state after it, what is done). What is absent is no answer to
what we asked: the association ends as it does after a reply that cannot be read."""


class Phase(enum.Enum):
    """Where one transaction stands. PREPARING -> PREPARED -> SENDING -> IN_DOUBT -> SETTLED;
    SETTLED from everywhere.
    """

    PREPARING = "preparing"
    """MAIL, RCPT and DATA are said or about to be."""
    PREPARED = "prepared"
    """354 is here: content may go."""
    SENDING = "sending"
    """Content goes; the dot has not left."""
    IN_DOUBT = "in doubt"
    """The dot left, its reply is not here."""
    SETTLED = "settled"
    """Every recipient has its outcome."""

    __hash__ = object.__hash__


class Transaction:
    """One message on its way over this association."""

    __slots__ = (
        "accepted",
        "chunks",
        "commands",
        "everyone",
        "is_data_said",
        "is_known",
        "is_resend",
        "is_withdrawn",
        "mail_reply",
        "outcomes",
        "phase",
        "recipients",
        "replied",
        "size_octets",
        "tag",
    )

    def __init__(
        self, tag: str, recipients: Sequence[int], commands: list[bytes], size_octets: int
    ) -> None:
        self.tag = tag
        self.everyone = recipients
        self.recipients = recipients
        """Of `everyone`, whom this transaction offers."""
        self.commands = commands
        """The first is MAIL, the last DATA, unless there are `chunks`."""
        self.chunks: ChunkWriter | None = None
        self.size_octets = size_octets
        self.phase = Phase.PREPARING
        self.mail_reply: Reply | None = None
        self.accepted: list[int] = []
        self.outcomes: list[Outcome] = []
        self.replied = 0
        """Replies to the dot so far (LMTP: one each)."""
        self.is_data_said = False
        self.is_withdrawn = False
        self.is_resend = False
        """The peer may have it already: MAIL is said alone, and asks (RFC 1845)."""
        self.is_known = False
        """It has: nothing but the final dot may follow the 354."""

    def keep(self, most: int, reply: Reply) -> None:
        """Offer the first `most` recipients, of whom none was said yet. The others are settled:
        they go in the next transaction.
        """
        later = self.recipients[most:]
        self.recipients = self.recipients[:most]
        del self.commands[1 + most : 1 + most + len(later)]
        self.outcomes += [Outcome(i, OutcomeKind.DEFERRED, reply, True) for i in later]


# --- events -----------------------------------------------------------------------------------


class Opened(NamedTuple):
    """The greetings are over: transfers may begin."""


class StartTls(NamedTuple):
    """The peer is ready: negotiate, then call `secured`; or report the connection lost."""


class DeriveKey(NamedTuple):
    """Call `derived` with sasl_client.derive of it; that takes up to half a second."""

    password: bytes
    salt: bytes
    rounds: int

    def __repr__(self) -> str:
        return f"DeriveKey(salt={self.salt!r}, rounds={self.rounds})"


class NotAuthenticated(NamedTuple):
    """Our credentials do not open this peer, which an operator should know; Refused follows."""

    reply: Reply


class Refused(NamedTuple):
    """The peer does not want us now (4yz) or at all (5yz); the association is over."""

    reply: Reply


class Prepared(NamedTuple):
    """Outcomes of the recipients that are settled; if some are left, content comes next."""

    tag: str
    outcomes: tuple[Outcome, ...]


class Unfit(NamedTuple):
    """This peer lacks what the message needs, another may have it. Nothing was said of it; the
    association goes on.
    """

    tag: str
    reply: Reply


class NotSent(NamedTuple):
    """The association ended before anything of this message was settled or sent."""

    tag: str
    reply: Reply


class Committed(NamedTuple):
    """Outcomes of the recipients that were left."""

    tag: str
    outcomes: tuple[Outcome, ...]


class Withdrawn(NamedTuple):
    """What was prepared under `tag` will not be sent."""

    tag: str


class Ended(NamedTuple):
    """The association is over: close the connection, abortively unless it is `polite`."""

    reason: str
    polite: bool = False


Event = (
    Opened
    | StartTls
    | DeriveKey
    | NotAuthenticated
    | Refused
    | Prepared
    | Unfit
    | NotSent
    | Committed
    | Withdrawn
    | Ended
)


class Dialogue:
    """What the parts of an Initiator (client.py) share."""

    state: State
    _output: list[bytes]
    _owed: deque[tuple[Wait, int]]
    """What the peer has to reply to, in this order, and the recipient that it is about."""

    def _end(self, reason: str, polite: bool = False) -> list[Event]:
        self.state = State.ENDED
        self._owed.clear()
        return [Ended(reason, polite)]
