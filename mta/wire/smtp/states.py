"""The states of a responder, its inputs, and the one table of what follows what.

Law: a transition that is not in `TABLE` does not happen; the peer is told why in the words of
`OUT_OF_PLACE`. NOOP, RSET, QUIT and a new EHLO are never out of place after the greeting.

RFC 5321 4.1.4 (order of commands), 4.2.4 (503), RFC 2920 3.1 (DATA behind refused recipients),
RFC 2033 4.2 (the same in LMTP), RFC 3030 (BDAT), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 1845 (a
named transaction that was completed before), Postfix's XCLIENT_README.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from mta.model import Reply


class Role(enum.Enum):
    """Which of the two protocols a machine speaks."""

    SMTP = "SMTP"
    LMTP = "LMTP"


class Security(enum.Enum):
    """What TLS is to an association."""

    NONE = "none"
    """Not offered."""
    OFFERED = "offered"
    """A client may say STARTTLS."""
    REQUIRED = "required"
    """It must, before MAIL."""
    PRESENT = "present"
    """All that is said is under TLS."""


class State(enum.Enum):
    """Where an association stands. GREETING -> START -> IDLE -> MAIL -> RECIPIENTS -> CONTENT ->
    IDLE; with a named transaction that was completed before, IDLE -> KNOWN -> CONTENT. With BDAT
    RECIPIENTS -> CHUNK (-> CHUNKS -> CHUNK) -> IDLE, and FAILED behind a chunk that was refused.
    With AUTH, IDLE (-> SASL) -> IDLE. With XCLIENT, START or IDLE -> GREETING, and on as at first;
    or straight to IDLE, where it told the name that HELO would.
    CLOSED from everywhere, and nothing from CLOSED.
    """

    GREETING = "greeting"
    """Whether we want the peer is not known yet; nothing of it is read."""
    START = "start"
    """Greeted; the peer has not said who it is."""
    IDLE = "idle"
    """No transaction."""
    MAIL = "mail"
    """A sender, no recipient accepted yet."""
    RECIPIENTS = "recipients"
    """At least one recipient accepted."""
    KNOWN = "known"
    """MAIL was answered 355: the whole transaction is ours already, but for the final dot."""
    CONTENT = "content"
    """Behind 354."""
    CHUNK = "chunk"
    """Behind BDAT: so many octets are read, wanted or not."""
    CHUNKS = "chunks"
    """A chunk was taken, and it was not the last."""
    FAILED = "failed"
    """A chunk was refused: nothing but the end of this transaction can follow."""
    SASL = "sasl"
    """Behind 334: what comes is a response, whatever it reads like."""
    HANDSHAKE = "handshake"
    """TLS is being negotiated; what comes is no SMTP. Then START, and all is forgotten."""
    CLOSED = "closed"
    """Nothing is read any more."""

    __hash__ = object.__hash__  # Enum's own is a call of Python for every look into TABLE


class Verb(enum.Enum):
    """The inputs: commands by their name, and what is no command."""

    HELO = "HELO"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    LHLO = "LHLO"
    AUTH = "AUTH"
    XCLIENT = "XCLIENT"
    CHALLENGE = "AUTH-CHALLENGE"
    """The answer to AUTH, or to a response, that asks for one more."""
    RESPONSE = "AUTH-RESPONSE"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BDAT = "BDAT"
    CHUNK = "END-OF-CHUNK"
    END = "END-OF-MESSAGE"
    REPEAT = "MAIL-AGAIN"
    """MAIL of a named transaction that was completed before: its answer, 355, says so."""
    RSET = "RSET"
    NOOP = "NOOP"
    VRFY = "VRFY"
    EXPN = "EXPN"
    HELP = "HELP"
    QUIT = "QUIT"
    UNKNOWN = "UNKNOWN"
    """A line that is none of them, where somebody wants to hear of it. It leaves the state as it
    is, whatever it is answered."""

    __hash__ = object.__hash__


class Row(NamedTuple):
    """What a row of the table does with its command."""

    after: State
    action: str


TABLE: dict[tuple[State, Verb], Row] = {
    (State.START, Verb.HELO): Row(State.IDLE, "hello"),
    (State.START, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.START, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.IDLE, Verb.HELO): Row(State.IDLE, "hello"),
    (State.IDLE, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.IDLE, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.MAIL, Verb.HELO): Row(State.IDLE, "hello"),
    (State.MAIL, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.MAIL, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.RECIPIENTS, Verb.HELO): Row(State.IDLE, "hello"),
    (State.RECIPIENTS, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.RECIPIENTS, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.KNOWN, Verb.HELO): Row(State.IDLE, "hello"),
    (State.CHUNKS, Verb.HELO): Row(State.IDLE, "hello"),
    (State.FAILED, Verb.HELO): Row(State.IDLE, "hello"),
    (State.KNOWN, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.CHUNKS, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.FAILED, Verb.EHLO): Row(State.IDLE, "hello"),
    (State.KNOWN, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.CHUNKS, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.FAILED, Verb.LHLO): Row(State.IDLE, "hello"),
    (State.IDLE, Verb.STARTTLS): Row(State.HANDSHAKE, "starttls"),
    (State.START, Verb.XCLIENT): Row(State.GREETING, "xclient"),
    (State.IDLE, Verb.XCLIENT): Row(State.GREETING, "xclient"),
    (State.IDLE, Verb.AUTH): Row(State.IDLE, "auth"),
    (State.IDLE, Verb.CHALLENGE): Row(State.SASL, "auth"),
    (State.SASL, Verb.CHALLENGE): Row(State.SASL, "auth"),
    (State.SASL, Verb.RESPONSE): Row(State.IDLE, "auth"),
    (State.IDLE, Verb.MAIL): Row(State.MAIL, "mail"),
    (State.IDLE, Verb.REPEAT): Row(State.KNOWN, "mail"),
    (State.KNOWN, Verb.DATA): Row(State.CONTENT, "data"),
    (State.KNOWN, Verb.BDAT): Row(State.CHUNK, "bdat"),
    (State.MAIL, Verb.RCPT): Row(State.RECIPIENTS, "rcpt"),
    (State.RECIPIENTS, Verb.RCPT): Row(State.RECIPIENTS, "rcpt"),
    (State.RECIPIENTS, Verb.DATA): Row(State.CONTENT, "data"),
    (State.CONTENT, Verb.END): Row(State.IDLE, "end"),
    (State.RECIPIENTS, Verb.BDAT): Row(State.CHUNK, "bdat"),
    (State.CHUNKS, Verb.BDAT): Row(State.CHUNK, "bdat"),
    (State.CHUNK, Verb.CHUNK): Row(State.CHUNKS, "chunk"),
    (State.CHUNK, Verb.END): Row(State.IDLE, "end"),
    (State.START, Verb.RSET): Row(State.START, "rset"),
    (State.IDLE, Verb.RSET): Row(State.IDLE, "rset"),
    (State.MAIL, Verb.RSET): Row(State.IDLE, "rset"),
    (State.RECIPIENTS, Verb.RSET): Row(State.IDLE, "rset"),
    (State.KNOWN, Verb.RSET): Row(State.IDLE, "rset"),
    (State.CHUNKS, Verb.RSET): Row(State.IDLE, "rset"),
    (State.FAILED, Verb.RSET): Row(State.IDLE, "rset"),
    (State.START, Verb.NOOP): Row(State.START, "noop"),
    (State.IDLE, Verb.NOOP): Row(State.IDLE, "noop"),
    (State.MAIL, Verb.NOOP): Row(State.MAIL, "noop"),
    (State.RECIPIENTS, Verb.NOOP): Row(State.RECIPIENTS, "noop"),
    (State.KNOWN, Verb.NOOP): Row(State.KNOWN, "noop"),
    (State.CHUNKS, Verb.NOOP): Row(State.CHUNKS, "noop"),
    (State.FAILED, Verb.NOOP): Row(State.FAILED, "noop"),
    (State.START, Verb.VRFY): Row(State.START, "vrfy"),
    (State.IDLE, Verb.VRFY): Row(State.IDLE, "vrfy"),
    (State.MAIL, Verb.VRFY): Row(State.MAIL, "vrfy"),
    (State.RECIPIENTS, Verb.VRFY): Row(State.RECIPIENTS, "vrfy"),
    (State.KNOWN, Verb.VRFY): Row(State.KNOWN, "vrfy"),
    (State.CHUNKS, Verb.VRFY): Row(State.CHUNKS, "vrfy"),
    (State.FAILED, Verb.VRFY): Row(State.FAILED, "vrfy"),
    (State.START, Verb.EXPN): Row(State.START, "expn"),
    (State.IDLE, Verb.EXPN): Row(State.IDLE, "expn"),
    (State.MAIL, Verb.EXPN): Row(State.MAIL, "expn"),
    (State.RECIPIENTS, Verb.EXPN): Row(State.RECIPIENTS, "expn"),
    (State.KNOWN, Verb.EXPN): Row(State.KNOWN, "expn"),
    (State.CHUNKS, Verb.EXPN): Row(State.CHUNKS, "expn"),
    (State.FAILED, Verb.EXPN): Row(State.FAILED, "expn"),
    (State.START, Verb.HELP): Row(State.START, "help"),
    (State.IDLE, Verb.HELP): Row(State.IDLE, "help"),
    (State.MAIL, Verb.HELP): Row(State.MAIL, "help"),
    (State.RECIPIENTS, Verb.HELP): Row(State.RECIPIENTS, "help"),
    (State.KNOWN, Verb.HELP): Row(State.KNOWN, "help"),
    (State.CHUNKS, Verb.HELP): Row(State.CHUNKS, "help"),
    (State.FAILED, Verb.HELP): Row(State.FAILED, "help"),
    (State.START, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.IDLE, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.MAIL, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.RECIPIENTS, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.KNOWN, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.CHUNKS, Verb.QUIT): Row(State.CLOSED, "quit"),
    (State.FAILED, Verb.QUIT): Row(State.CLOSED, "quit"),
}
"""(state, verb) -> (state once it is accepted, what is done). A refusal leaves the state as it is.
What is absent here is out of place: `OUT_OF_PLACE` says with which words."""
_HELLO_FIRST = Reply(503, "5.5.1", (b"Say HELO or EHLO first",))
_NOT_NOW = Reply(503, "5.5.1", (b"Not within a transaction",))
_IN_CHUNKS = Reply(503, "5.5.1", (b"The content has begun, go on with BDAT or say RSET",))
_REFUSED = Reply(503, "5.5.1", (b"A chunk was refused, say RSET",))
_ENVELOPE = (Verb.MAIL, Verb.RCPT, Verb.DATA)
OUT_OF_PLACE: dict[tuple[State, Verb], Reply] = {
    **{(State.CHUNKS, verb): _IN_CHUNKS for verb in _ENVELOPE},
    **{(State.FAILED, verb): _REFUSED for verb in (*_ENVELOPE, Verb.BDAT)},
    **{
        (state, verb): _NOT_NOW
        for state in (State.MAIL, State.RECIPIENTS, State.KNOWN, State.CHUNKS, State.FAILED)
        for verb in (Verb.STARTTLS, Verb.AUTH, Verb.XCLIENT)
    },
    (State.START, Verb.BDAT): _HELLO_FIRST,
    (State.IDLE, Verb.BDAT): Reply(503, "5.5.1", (b"Say MAIL and RCPT first",)),
    (State.MAIL, Verb.BDAT): Reply(554, "5.5.1", (b"No valid recipients",)),
    (State.START, Verb.STARTTLS): _HELLO_FIRST,
    (State.START, Verb.AUTH): _HELLO_FIRST,
    (State.START, Verb.MAIL): _HELLO_FIRST,
    (State.START, Verb.RCPT): _HELLO_FIRST,
    (State.START, Verb.DATA): _HELLO_FIRST,
    (State.IDLE, Verb.RCPT): Reply(503, "5.5.1", (b"Say MAIL first",)),
    (State.IDLE, Verb.DATA): Reply(503, "5.5.1", (b"Say MAIL and RCPT first",)),
    (State.MAIL, Verb.MAIL): Reply(503, "5.5.1", (b"The sender was given already",)),
    (State.RECIPIENTS, Verb.MAIL): Reply(503, "5.5.1", (b"The sender was given already",)),
    (State.KNOWN, Verb.MAIL): Reply(503, "5.5.1", (b"The sender was given already",)),
    (State.KNOWN, Verb.RCPT): Reply(
        503, "5.5.1", (b"The recipients are known, say DATA and send nothing but the final dot",)
    ),
    # RFC 2920 3.1: a client that pipelined DATA behind refused recipients needs a refusal here.
    (State.MAIL, Verb.DATA): Reply(554, "5.5.1", (b"No valid recipients",)),
}
_LMTP_NOBODY = Reply(503, "5.5.1", (b"No valid recipients",))


def out_of_place(state: State, verb: Verb, role: Role) -> Reply:
    """What a command is told that has no row in `TABLE`. LMTP's DATA without a recipient differs
    from SMTP's (RFC 2033 4.2: it MUST be 503).
    """
    if role is Role.LMTP and state is State.MAIL and verb in {Verb.DATA, Verb.BDAT}:
        return _LMTP_NOBODY
    return OUT_OF_PLACE[state, verb]
