"""The client's side of Dovecot's authentication protocol: one exchange on one connection.

Law: any octets end in an answer or a RemoteProtocolError, and memory is bounded by one line. What
is said of the client cannot be mistaken for more words of ours: values are escaped, and what the
client gave comes last, in base64. A line that means nothing to us is passed over.

How to drive it: send `take_output()`, hand what comes to `receive`; after a Challenge, `respond`.

Dovecot's "Authentication Protocol", version 1 of the client's half. SASL: RFC 4422.
"""

from __future__ import annotations

import base64
import enum
import re
from dataclasses import dataclass

from mta.errors import LocalProtocolError, PermanentFailure, RemoteProtocolError, TransientFailure
from mta.model import Authenticated, Challenge
from mta.wire import strict64
from mta.wire.sasl import malformed, refused
from mta.wire.text import printable

LONGEST_LINE = 16_384
"""Octets, in both directions, as Dovecot has it since 2.2."""
MOST_HANDSHAKE = 64
"""Lines before DONE; Dovecot has about a dozen mechanisms."""
MOST_CLIENT_ID = 2**31 - 1
_ID = b"1"
"""Of our only request on this connection."""

Answer = Challenge | Authenticated | PermanentFailure | TransientFailure


@dataclass(frozen=True, slots=True)
class Request:
    """What Dovecot is told of the client. Addresses as text, "" for one that nobody knows;
    `is_secured`: there is TLS.
    """

    mechanism: str
    is_secured: bool
    local_host: str
    local_port: int
    remote_host: str
    remote_port: int
    service: str = "smtp"


class _State(enum.Enum):
    GREETING = "greeting"
    HANDSHAKE = "handshake"
    ASKED = "asked"
    CHALLENGED = "challenged"
    OVER = "over"


class DovecotAuth:
    """`client_id` is 1 to MOST_CLIENT_ID and of no other connection to that Dovecot, which ends a
    connection whose CPID is taken. `initial` is the client's initial response, None without one.

    @raise PermanentFailure: 501, the initial response does not fit into a line.
    """

    def __init__(self, client_id: int, request: Request, initial: bytes | None) -> None:
        self._request = _auth_line(request, initial)
        self._mechanism = request.mechanism.encode("ascii")
        self._output = bytearray(b"VERSION\t1\t1\nCPID\t%d\n" % client_id)
        self._input = bytearray()
        self._state = _State.GREETING
        self._mechanisms: set[bytes] = set()
        self._lines = 0

    @property
    def is_over(self) -> bool:
        return self._state is _State.OVER

    def take_output(self) -> bytes:
        """What is to be sent since the last call."""
        octets = bytes(self._output)
        self._output.clear()
        return octets

    def receive(self, octets: bytes) -> Answer | None:
        """The answer when it is there, None while more is awaited. What comes behind an end is
        passed over. @raise RemoteProtocolError: that is not Dovecot's protocol; it is over.
        """
        if self.is_over:
            return None
        self._input += octets
        answer: Answer | None = None
        try:
            while not self.is_over and (end := self._input.find(b"\n")) >= 0:
                if end > LONGEST_LINE:
                    raise RemoteProtocolError("Dovecot's line is too long", f"{end} octets")
                line = bytes(self._input[:end])
                del self._input[: end + 1]
                found = self._line(line.split(b"\t"))
                if found is not None and answer is not None:
                    raise RemoteProtocolError("Dovecot answers twice", printable(line[:80]))
                answer = found or answer
            if len(self._input) > LONGEST_LINE and not self.is_over:
                raise RemoteProtocolError("Dovecot's line is too long", f"over {LONGEST_LINE}")
        except RemoteProtocolError:
            self._state = _State.OVER
            raise
        return answer

    def respond(self, response: bytes) -> None:
        """The client's response to the last Challenge. @raise PermanentFailure: 501, too long."""
        if self._state is not _State.CHALLENGED:
            raise LocalProtocolError("Dovecot has asked for no response")
        line = b"CONT\t%b\t%b\n" % (_ID, base64.b64encode(response))
        if len(line) > LONGEST_LINE:
            self._state = _State.OVER
            raise malformed("the response is too long for Dovecot")
        self._output += line
        self._state = _State.ASKED

    def cancel(self) -> None:
        """Nobody waits any more. Dovecot hears of it, or its log would have an error for each."""
        if self._state in {_State.ASKED, _State.CHALLENGED}:
            self._output += b"CANCEL\t%b\n" % _ID
        self._state = _State.OVER

    # --- lines ---

    def _line(self, words: list[bytes]) -> Answer | None:
        if self._state is _State.GREETING:
            if words[0] != b"VERSION" or words[1:2] != [b"1"]:
                raise RemoteProtocolError(
                    "that is not Dovecot's authentication protocol, version 1",
                    f"it began with {printable(b' '.join(words)[:80])!r}",
                )
            self._state = _State.HANDSHAKE
            return None
        if self._state is _State.HANDSHAKE:
            return self._handshake(words)
        if words[0] not in {b"OK", b"FAIL", b"CONT"}:
            return None
        if words[1:2] != [_ID] or self._state is not _State.ASKED:
            raise RemoteProtocolError("Dovecot answers what was not asked", printable(words[0]))
        if words[0] == b"CONT":
            return self._challenge(words[2] if len(words) > 2 else b"")
        self._state = _State.OVER
        found = [unescape(word) for word in words[2:]]
        return _failure(found) if words[0] == b"FAIL" else _success(found)

    def _handshake(self, words: list[bytes]) -> Answer | None:
        """SPID, CUID and COOKIE are for programs that ask Dovecot's master; we do not."""
        self._lines += 1
        if self._lines > MOST_HANDSHAKE:
            raise RemoteProtocolError("Dovecot's handshake has no end", f"{self._lines} lines")
        if words[0] == b"MECH" and len(words) > 1:
            self._mechanisms.add(words[1].upper())
        elif words[0] == b"DONE":
            if self._mechanism not in self._mechanisms:
                self._state = _State.OVER
                listed = printable(b" ".join(sorted(self._mechanisms)))
                return not_now(
                    f"Dovecot has no {self._mechanism.decode()}",
                    f"it has {listed or 'none'}",
                    "add it to Dovecot's auth_mechanisms, or take it from auth.mechanisms",
                )
            self._output += self._request
            self._state = _State.ASKED
        return None

    def _challenge(self, text: bytes) -> Challenge:
        octets = strict64.decode(text)
        if octets is None:
            raise RemoteProtocolError("Dovecot's challenge is not base64")
        self._state = _State.CHALLENGED
        return Challenge(octets)


def _auth_line(request: Request, initial: bytes | None) -> bytes:
    # nologin: nobody asks Dovecot's master for this user afterwards; it need not keep the request.
    words = [b"AUTH", _ID, escape(request.mechanism.encode("ascii"))]
    words += [_pair("service", request.service), b"nologin"]
    words += [b"secured"] if request.is_secured else []
    words += [_pair("lip", request.local_host), _pair("lport", str(request.local_port))]
    if request.remote_host:
        words += [_pair("rip", request.remote_host), _pair("rport", str(request.remote_port))]
    if initial is not None:
        words.append(b"resp=" + base64.b64encode(initial))  # must be the last
    line = b"\t".join(words) + b"\n"
    if len(line) > LONGEST_LINE:
        raise malformed("the initial response is too long for Dovecot")
    return line


def _pair(name: str, value: str) -> bytes:
    return name.encode("ascii") + b"=" + escape(value.encode())


def _success(words: list[bytes]) -> Authenticated:
    users = [word[len(b"user=") :] for word in words if word.startswith(b"user=")]
    try:
        (user,) = (octets.decode() for octets in users)
    except ValueError:
        raise RemoteProtocolError("Dovecot does not say who was let in") from None
    if not user or not user.isprintable():
        raise RemoteProtocolError("Dovecot let in who has no name that can be printed")
    return Authenticated(user)


def _failure(words: list[bytes]) -> PermanentFailure | TransientFailure:
    if b"temp" in words or b"code=temp_fail" in words:
        return not_now("Dovecot cannot check a user now", "it says so itself", "see Dovecot's log")
    return refused("Dovecot refused it")


def not_now(what: str, why: str, remedy: str = "") -> TransientFailure:
    """It cannot be checked now: RFC 4954 section 6."""
    return TransientFailure(what, why, remedy, code=454, enhanced="4.7.0")


# --- escaping -----------------------------------------------------------------------------------

_LETTERS = {b"\0": b"0", b"\x01": b"1", b"\t": b"t", b"\r": b"r", b"\n": b"n"}
"""As Dovecot's sources have it; its documentation says l for a line feed."""
_MEANT = {letter: octet for octet, letter in _LETTERS.items()}
_SPECIAL = re.compile(rb"[\0\x01\t\r\n]")
_ESCAPE = re.compile(rb"\x01(.?)", re.DOTALL)


def escape(value: bytes) -> bytes:
    """No NUL, TAB, CR, LF is left: each, and \\001, becomes \\001 and a letter."""
    return _SPECIAL.sub(lambda found: b"\x01" + _LETTERS[found[0]], value)


def unescape(value: bytes) -> bytes:
    """What `escape` made; \\001 before anything else stands for that."""
    return _ESCAPE.sub(lambda found: _MEANT.get(found[1], found[1]), value)
