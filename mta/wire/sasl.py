"""The server's side of PLAIN and LOGIN, and what every mechanism here makes of names and refusals.

Law: any octets at any step end in a Challenge, a Credentials or a PermanentFailure, and a machine
that ended says nothing more. Nothing is looked up here: who is asked for is handed out, and whoever
drives the machine knows whether it is true. Refusals name no user and quote no octet.

RFC 4422 (SASL), RFC 4616 (PLAIN), RFC 4954 section 4 (replies). LOGIN has no RFC that holds: two
questions, answered in turn. SCRAM: scram.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mta.errors import LocalProtocolError, PermanentFailure
from mta.model import Challenge
from mta.wire.saslprep import prepare

LONGEST_OCTETS = 1024
"""Of a name or a password as it comes. RFC 4616 section 2 asks for 255 at least."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who the client says it is, and the password that it gave; both prepared, neither empty."""

    user: str
    password: str = field(repr=False)


class Plain:
    """PLAIN: one response, `authzid NUL authcid NUL passwd`."""

    def __init__(self) -> None:
        self._is_asked = False
        self._is_over = False

    def respond(self, response: bytes | None) -> Challenge | Credentials:
        """The client's next response; None only at first. @raise PermanentFailure: 535 or 501."""
        if self._is_over or (response is None and self._is_asked):
            raise out_of_turn("PLAIN")
        if response is None:
            self._is_asked = True
            return Challenge(b"")
        self._is_over = True
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise malformed("PLAIN has two NULs in its response")
        acts_as, user, password = parts
        credentials = credentials_of(user, password)
        if acts_as and prepared(acts_as, "authorization identity") != credentials.user:
            raise refused("nobody acts in another's name here")
        return credentials


class Login:
    """LOGIN: a name, then a password. An initial response is the name."""

    def __init__(self) -> None:
        self._is_asked = False
        self._user: bytes | None = None
        self._is_over = False

    def respond(self, response: bytes | None) -> Challenge | Credentials:
        """As that of Plain."""
        if self._is_over or (response is None and self._is_asked):
            raise out_of_turn("LOGIN")
        self._is_asked = True
        if response is None:
            return Challenge(b"Username:")
        if self._user is None:
            if not response or len(response) > LONGEST_OCTETS:
                self._is_over = True
                raise malformed("a name is empty or too long")
            self._user = response
            return Challenge(b"Password:")
        self._is_over = True
        return credentials_of(self._user, response)


def credentials_of(user: bytes, password: bytes) -> Credentials:
    """Both prepared. @raise PermanentFailure: 501 for what can be none, 535 for what never was."""
    return Credentials(prepared(user, "name"), prepared(password, "password"))


def prepared(octets: bytes, what: str) -> str:
    """`octets` of a client as text that can be compared. @raise PermanentFailure: 501: empty, too
    long, or not UTF-8; 535: SASLprep forbids it, so that no user has it (RFC 4616 section 2).
    """
    if not octets or len(octets) > LONGEST_OCTETS:
        raise malformed(f"a {what} is empty or too long")
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise malformed(f"a {what} is not UTF-8") from None
    try:
        result = prepare(text, is_query=True)
    except ValueError as error:
        raise refused(f"a {what}: {error}") from None
    if not result:
        raise refused(f"nothing is left of a {what}")
    return result


# --- refusals -----------------------------------------------------------------------------------


def refused(why: str) -> PermanentFailure:
    """Not this client, not so. `why` is for operators; the peer hears only the code."""
    return PermanentFailure("authentication refused", why, code=535, enhanced="5.7.8")


def wrong() -> PermanentFailure:
    """A wrong password, or nobody of that name: in the same words."""
    return refused("no such user, or not this password")


def malformed(why: str) -> PermanentFailure:
    """That is no response of this mechanism."""
    return PermanentFailure("no response of this mechanism", why, code=501, enhanced="5.5.2")


def out_of_turn(mechanism: str) -> LocalProtocolError:
    """Whoever drives the machine asks it after its end, or begins twice."""
    return LocalProtocolError(f"the {mechanism} exchange is not at that step")
