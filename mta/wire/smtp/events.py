"""What a responder tells its adapter.

Law: an event of the first group wants exactly one `answer` before the next event comes; the others
want none.
"""

from __future__ import annotations

from typing import NamedTuple

from mta.model import Address, Reply
from mta.wire.smtp.grammar import Parameters
from mta.wire.smtp.xclient import Attributes

# These want `answer(reply or None)`:


class Helo(NamedTuple):
    """HELO, EHLO or LHLO. `protocol` is SMTP, ESMTP or LMTP."""

    name: bytes
    protocol: str


class Mail(NamedTuple):
    sender: Address
    parameters: Parameters


class Rcpt(NamedTuple):
    recipient: Address
    parameters: Parameters


class Auth(NamedTuple):
    """AUTH, with the initial response if there was one. 334 as answer: the challenge, in base64;
    None: 235, authenticated.
    """

    mechanism: str
    initial: bytes | None


class AuthResponse(NamedTuple):
    """What came upon a 334, answered as Auth is. None: the client gave up, or what it sent is no
    response; it is refused whatever is answered.
    """

    response: bytes | None


class StartTls(NamedTuple):
    """STARTTLS, and nothing behind it. None as answer: 220; then `secured` when TLS is there."""


class Xclient(NamedTuple):
    """XCLIENT. None as answer: nothing is said, all begins anew with that client, and `welcome` and
    `greet` come next. `protocol` is that of the client, until it says another.
    """

    said: Attributes
    protocol: str


class UnknownCommand(NamedTuple):
    """A line that is no command we know, without its CRLF: printable ASCII, TAB and blanks. None as
    answer: 500. Whatever is answered, it counts as an error.
    """

    line: bytes


class Data(NamedTuple):
    """DATA with at least one accepted recipient; None as answer: 354. `is_chunked`: it was the
    first BDAT, and what comes are octets as they are.
    """

    is_chunked: bool = False


class End(NamedTuple):
    """The content is complete. With a `fault` the answer must be negative: it is that reply."""

    fault: Reply | None
    size_octets: int


# These do not:


class Chunk(NamedTuple):
    """A piece of content: in wire form, or behind BDAT as it is."""

    data: bytes


class Reset(NamedTuple):
    """The transaction is void: RSET, or a new EHLO in the middle of it."""


class Rejected(NamedTuple):
    """The machine itself refused something; for the log."""

    stage: str
    reply: Reply
    sender: bytes
    recipient: bytes


class Quit(NamedTuple):
    """The association is over: close it when the output is sent. `polite`: the peer said QUIT."""

    polite: bool


Event = (
    Helo | StartTls | Auth | AuthResponse | Xclient | Mail | Rcpt | UnknownCommand | Data | End
    | Chunk | Reset | Rejected | Quit
)  # fmt: skip
