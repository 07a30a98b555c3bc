"""AUTH as an initiator says it: after EHLO, under TLS, before the first MAIL.

Law: no octet of the credentials leaves without TLS, unless it was allowed for this very connector.
Who has credentials and is not let in sends nothing, and it is for now only: the message is not at
fault. What the peer says of it is never told where it repeats the password.

RFC 4954, with the mechanisms of wire/sasl_client.py. 12288 octets of a challenge: RFC 4954 section
4.3. The parameter AUTH of MAIL (section 5) is not said.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass

from mta.errors import LocalProtocolError, RemoteProtocolError
from mta.model import Reply
from mta.wire.sasl_client import EXCHANGES, Credentials, Exchange, Salt, decode, strongest
from mta.wire.smtp.client_states import (
    DeriveKey,
    Dialogue,
    Event,
    NotAuthenticated,
    Opened,
    Refused,
    State,
    Wait,
)
from mta.wire.smtp.reply import LINE_LIMIT, ReplyReader, make_reply

CHALLENGE_LIMIT = 12288
"""Octets of base64 in one challenge."""
_COMMAND_LIMIT = 512
"""Octets of a command; an initial response that makes it longer waits for an empty challenge."""
_CHALLENGE = 334

NO_AUTH = Reply(450, "4.7.0", (b"the next server offers no AUTH",))
NO_MECHANISM = Reply(450, "4.7.0", (b"the next server offers no mechanism that is allowed here",))
NO_TLS = Reply(450, "4.7.11", (b"credentials are not sent to the next server without TLS",))
UNPREPARED = Reply(450, "4.7.0", (b"SCRAM does not allow a character of name or password",))
UNPROVEN = Reply(450, "4.7.0", (b"the next server lets us in without proving itself",))


@dataclass(frozen=True, slots=True)
class Authentication:
    """What an association is to say of who we are."""

    credentials: Credentials
    mechanisms: Collection[str] = frozenset(EXCHANGES)
    """Those that are allowed; the strongest that the peer offers too is used."""
    plaintext: bool = False
    """Also without TLS."""


class AuthReplies(Dialogue):
    """That part of an Initiator (client.py)."""

    is_secure: bool
    extensions: dict[bytes, bytes]
    _authentication: Authentication | None
    _exchange: Exchange | None
    _initial: bytes | None
    """The initial response, while it waits for an empty challenge."""
    _reader: ReplyReader

    def derived(self, key: bytes) -> None:
        """The key that `DeriveKey` asked for. Does nothing when the association has ended."""
        if self.state is State.ENDED:
            return
        exchange = self._exchange
        if self.state is not State.DERIVING or exchange is None:
            raise LocalProtocolError("a key that nobody asked for")
        self._owed.popleft()
        self.state = State.AUTH
        self._respond(exchange.derived(key))

    def _authenticate(self, authentication: Authentication, events: list[Event]) -> None:
        """The greetings are over: say who we are."""
        if not self.is_secure and not authentication.plaintext:
            self._not_authenticated(NO_TLS, events)
            return
        if b"AUTH" not in self.extensions:
            self._not_authenticated(NO_AUTH, events)
            return
        offered = self.extensions[b"AUTH"].upper().decode("ascii", "replace").split()
        kind = strongest(offered, authentication.mechanisms)
        if kind is None:
            self._not_authenticated(NO_MECHANISM, events)
            return
        try:
            exchange = kind(authentication.credentials)
        except ValueError:
            self._not_authenticated(UNPREPARED, events)
            return
        self._exchange = exchange
        self.state = State.AUTH
        self._reader.line_limit = len(b"334 ") + CHALLENGE_LIMIT
        self._initial = exchange.begin()
        command = b"AUTH " + exchange.name.encode()
        if self._initial is not None:
            whole = command + b" " + b64encode(self._initial)
            if len(whole) + len(b"\r\n") <= _COMMAND_LIMIT:
                command, self._initial = whole, None
        self._say(command)

    def _respond(self, response: bytes) -> None:
        self._say(b64encode(response))

    def _say(self, line: bytes) -> None:
        self._output.append(line + b"\r\n")
        self._owed.append((Wait.AUTH, 0))

    def _auth_reply(self, action: str, reply: Reply, events: list[Event]) -> None:
        """What the peer says in the states AUTH and DERIVING; `action` is of their rows."""
        exchange = self._exchange
        assert exchange is not None
        if action == "challenge":
            try:
                self._challenge(exchange, reply, events)
            except RemoteProtocolError as fault:
                self._not_authenticated(make_reply(451, "4.7.0", str(fault)), events)
            return
        self._exchange = None
        self._reader.line_limit = LINE_LIMIT
        if action == "authenticated":
            if exchange.is_proven:
                events.append(Opened())
            else:
                self._not_authenticated(UNPROVEN, events)
            return
        if any(exchange.betrays(line) for line in reply.lines):
            reply = Reply(reply.code, reply.enhanced, (b"(words that repeat the password)",))
        if action == "not authenticated":
            # It is the operator who has to act, and the mail can wait for that.
            text = f"the next server refuses our credentials: {reply.text}"
            self._not_authenticated(make_reply(450, "4.7.8", text), events, polite=True)
        else:
            events += [Refused(reply), *self._end(reply.text, polite=True)]

    def _challenge(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        """@raise RemoteProtocolError: this mechanism has no answer to it."""
        if reply.code != _CHALLENGE or len(reply.lines) != 1:
            raise RemoteProtocolError("the peer's reply to AUTH is neither a challenge nor an end")
        challenge = decode(self._reader.last_text)
        initial, self._initial = self._initial, None
        if initial is not None:
            if challenge:
                raise RemoteProtocolError("the peer asks before the initial response")
            self._respond(initial)
            return
        answer = exchange.answer(challenge)
        if not isinstance(answer, Salt):
            self._respond(answer)
            return
        self.state = State.DERIVING
        self._owed.append((Wait.DERIVING, 0))
        events.append(DeriveKey(exchange.password, answer.salt, answer.rounds))

    def _not_authenticated(self, reply: Reply, events: list[Event], polite: bool = False) -> None:
        events += [NotAuthenticated(reply), Refused(reply), *self._end(reply.text, polite)]
