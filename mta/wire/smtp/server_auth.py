"""A responder's AUTH: what is asked of the client, and when. Who it is others decide.

Law: a name and a password are taken under TLS only, unless `in_clear` says otherwise, and what was
said before TLS does not count behind it. A line within an exchange is a response and never a
command. Nobody guesses for ever: after `FAILURES` refusals the association ends.

RFC 4954 (AUTH; 4: the order, 5: AUTH= of MAIL, 6: the replies), RFC 3848 (ESMTPA, ESMTPSA).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass

from mta.model import Reply
from mta.wire.smtp import server_replies as said
from mta.wire.smtp.events import Auth, AuthResponse, Event
from mta.wire.smtp.grammar import Refused, decode_xtext, refusal
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.server_dialogue import Dialogue
from mta.wire.smtp.states import TABLE, Role, Security, State, Verb
from mta.wire.strict64 import decode

RESPONSE_LIMIT = 12288
"""Octets of a line of a response with its CRLF (RFC 4954 4)."""
FAILURES = 3
"""Refused exchanges of one association; a person mistypes a password once or twice."""
CHALLENGE = 334
"""RFC 4954's reply that goes on: its text is the challenge in base64."""
_MECHANISM = re.compile(rb"[A-Z0-9_-]{1,20}")
_MAY_SECURE = frozenset((Security.OFFERED, Security.REQUIRED))


@dataclass(frozen=True, slots=True)
class AuthTerms:
    """How a listener takes AUTH. Without `mechanisms` it is not there."""

    mechanisms: tuple[str, ...] = ()
    """SASL names as EHLO offers them."""
    in_clear: bool = False
    """Also without TLS."""


NO_AUTH = AuthTerms()


class Authentication(Dialogue):
    """The part of a `Responder` that knows whether its client has said who it is."""

    security: Security
    protocol: str

    def __init__(self, role: Role, limits: Limits, greeting: bytes, terms: AuthTerms) -> None:
        super().__init__(role, limits, greeting)
        self.is_authenticated = False
        self._terms = terms
        self._auth_failures = 0
        self._response_fault: Reply | None = None
        """The present response is none: whatever is answered, it is refused with this."""

    @property
    def _may_authenticate(self) -> bool:
        terms = self._terms
        return bool(terms.mechanisms) and (terms.in_clear or self.security is Security.PRESENT)

    @property
    def _auth_words(self) -> tuple[bytes, ...]:
        """EHLO's line."""
        if not self._may_authenticate:
            return ()
        return (b"AUTH " + " ".join(self._terms.mechanisms).encode("ascii"),)

    @abstractmethod
    def _identified(self) -> None:
        """More may be offered now."""

    # -- what is said

    def _do_auth(self, verb: Verb, argument: bytes) -> Event | None:
        if not self._terms.mechanisms:
            raise refusal(said.NOT_OFFERED)
        if not self._may_authenticate:
            raise refusal(said.STARTTLS_FIRST if self.security in _MAY_SECURE else said.TLS_FIRST)
        if self.protocol == "SMTP":
            raise refusal(said.EHLO_FIRST)
        if self.is_authenticated:
            raise refusal(said.KNOWN_ALREADY)
        name, _, initial = argument.strip().partition(b" ")
        mechanism = name.upper()
        if not _MECHANISM.fullmatch(mechanism):
            raise Refused(501, "5.5.4", b"Syntax: AUTH mechanism [initial response]")
        if mechanism.decode("ascii") not in self._terms.mechanisms:
            raise refusal(said.NO_MECHANISM)
        response = None
        if initial:
            response = b"" if initial == b"=" else decode(initial)
            if response is None:
                raise refusal(said.NO_BASE64)
        return Auth(mechanism.decode("ascii"), response)

    def _response_event(self) -> Event | None:
        """One line: a response in base64, or "*" of who gives up."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", at)
        if end < 0 and len(buffer) - at < RESPONSE_LIMIT:
            return None
        self._awaiting = Verb.RESPONSE
        if end < 0:
            self._discarding = True
            return self._no_response(said.RESPONSE_TOO_LONG)
        self._at = end + 1
        is_crlf = end > at and buffer[end - 1] == 13
        is_too_long = end - at >= RESPONSE_LIMIT
        if is_too_long or not is_crlf:
            # Too long is found without its newline as well: it is said first, whatever the pieces.
            self._discarding = not is_crlf
            return self._no_response(said.RESPONSE_TOO_LONG if is_too_long else said.NOT_CRLF)
        line = buffer[at : end - 1]
        if line == b"*":
            return self._no_response(said.GIVEN_UP)
        response = decode(line)
        return self._no_response(said.NO_BASE64) if response is None else AuthResponse(response)

    def _no_response(self, fault: Reply) -> AuthResponse:
        self._response_fault = fault
        return AuthResponse(None)

    # -- what is answered

    def _answer_auth(self, reply: Reply | None) -> None:
        """To Auth and AuthResponse."""
        self._awaiting = None
        fault, self._response_fault = self._response_fault, None
        if fault is not None:
            reply = fault
        if reply is not None and reply.code == CHALLENGE:
            self.state = TABLE[self.state, Verb.CHALLENGE].after
            # As it is: `render` cuts texts, and a challenge may have its thousands of octets.
            self._output.append(b"334 %b\r\n" % reply.lines[0])
            return
        self.state = State.IDLE
        if reply is None or reply.is_positive:
            self.is_authenticated = True
            self.protocol += "A"
            self._identified()
            self._count_and_say(Verb.AUTH, said.USUAL[Verb.AUTH])
            return
        self._auth_failures += reply.is_permanent
        if self._auth_failures >= FAILURES:
            reply = said.TOO_MANY_FAILURES
        self._say_no(reply, reply.is_permanent)


def check_auth(value: bytes | None) -> bytes | None:
    """AUTH= of MAIL (RFC 4954 5): xtext or <>. It is taken, and believed of nobody."""
    if value != b"<>":
        try:
            decode_xtext(value or b"+")
        except ValueError:
            raise Refused(501, "5.5.4", b"AUTH takes a mailbox in xtext, or <>") from None
    return value
