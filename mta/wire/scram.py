"""The server's side of SCRAM-SHA-256, and the verifier that a server keeps in place of a password.

Law: any octets at any step end in a Challenge, a Wanted, a Proven or a PermanentFailure. A user
whom nobody knows is answered by a verifier of nobody (`feigned`) and fails where a wrong password
does. The server's nonce is handed in: this module draws nothing.

RFC 5802 (SCRAM), RFC 7677 (SHA-256), RFC 5803 (the verifier as text). There is no channel binding:
gs2 flags n and y are taken, p is refused (RFC 5802 section 6).
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from mta.model import Challenge
from mta.wire.sasl import malformed, out_of_turn, prepared, refused, wrong
from mta.wire.strict64 import decode

NAME = "SCRAM-SHA-256"
LEAST_ITERATIONS = 4096
"""RFC 7677 section 4."""
MOST_ITERATIONS = 10_000_000
"""Clients pay for them, a second and more; what is above is a slip of a hand."""
KEY_OCTETS = hashlib.sha256().digest_size
LONGEST_SALT = 64
"""Octets. Ours have 16."""
LONGEST_NONCE = 256
"""Octets of a client's; they have 18 to 32."""

_FIRST = re.compile(rb"([ny]|p=[A-Za-z0-9.-]+),(?:a=([^,]*))?,n=([^,]*),r=([\x21-\x2b\x2d-\x7e]+)(,.*)?", re.S)  # fmt: skip # noqa: E501
_FINAL = re.compile(rb"(c=([A-Za-z0-9+/=]+),r=([\x21-\x2b\x2d-\x7e]+)(?:,.*)?),p=([A-Za-z0-9+/=]+)", re.S)  # fmt: skip # noqa: E501
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,9}):([^$:]+)\$([^$:]+):([^$:]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Verifier:
    """What proves a password and does not contain it (RFC 5802 section 3)."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def __str__(self) -> str:
        """As RFC 5803 writes it: SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey."""
        salt, stored, server = map(_text, (self.salt, self.stored_key, self.server_key))
        return f"{NAME}${self.iterations}:{salt}${stored}:{server}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The machine wants this user's verifier: `Scram.challenge` is next."""

    user: str


@dataclass(frozen=True, slots=True)
class Proven:
    """The client has this user's password."""

    user: str


class _State(enum.Enum):
    BEGUN = "begun"
    ASKED = "asked"
    WANTING = "wanting"
    CHALLENGED = "challenged"
    PROVEN = "proven"
    OVER = "over"


class Scram:
    """One exchange. `respond` until Proven or a failure; after Wanted, `challenge`."""

    def __init__(self) -> None:
        self._state = _State.BEGUN
        self._user = ""
        self._gs2 = b""
        self._nonce = b""
        self._signed = b""
        self._verifier: Verifier | None = None

    def respond(self, response: bytes | None) -> Challenge | Wanted | Proven:
        """The client's next response; None only at first. @raise PermanentFailure: 535 or 501."""
        state, self._state = self._state, _State.OVER
        if response is None and state is _State.BEGUN:
            self._state = _State.ASKED
            return Challenge(b"")
        if response is None:
            raise out_of_turn(NAME)
        if state in {_State.BEGUN, _State.ASKED}:
            return self._first(response)
        if state is _State.CHALLENGED:
            return self._final(response)
        if state is _State.PROVEN:
            if response:
                raise malformed("the last response of SCRAM is empty")
            return Proven(self._user)
        raise out_of_turn(NAME)

    def challenge(self, verifier: Verifier, nonce: bytes) -> Challenge:
        """server-first-message. `nonce` is printable ASCII without commas, 18 octets or more of
        fresh chance in it; `verifier` is feigned when there is no such user.
        """
        if self._state is not _State.WANTING:
            raise out_of_turn(NAME)
        self._nonce += nonce
        self._verifier = verifier
        salt = base64.b64encode(verifier.salt)
        first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, verifier.iterations)
        self._signed += b"," + first
        self._state = _State.CHALLENGED
        return Challenge(first)

    def _first(self, message: bytes) -> Wanted:
        match = _FIRST.fullmatch(message)
        if match is None:
            raise malformed("that is no client-first-message")
        flag, acts_as, name, nonce, _ = match.groups()
        if flag[:1] == b"p":
            raise refused("the client binds to a channel, and this mechanism has none")
        if len(nonce) > LONGEST_NONCE:
            raise malformed("the client's nonce is too long")
        user = prepared(_name(name), "name")
        if acts_as and prepared(_name(acts_as), "authorization identity") != user:
            raise refused("nobody acts in another's name here")
        bare = match.start(3) - len(b"n=")
        self._gs2, self._signed = message[:bare], message[bare:]
        self._user, self._nonce = user, nonce
        self._state = _State.WANTING
        return Wanted(user)

    def _final(self, message: bytes) -> Challenge:
        match = _FINAL.fullmatch(message)
        if match is None:
            raise malformed("that is no client-final-message")
        without_proof, binding, nonce, proof = match.groups()
        given, wanted = decode(proof), self._verifier
        if given is None or len(given) != KEY_OCTETS:
            raise malformed("that is no proof")
        if decode(binding) != self._gs2 or nonce != self._nonce:
            raise refused("the client repeats another exchange's words")
        assert wanted is not None
        signed = self._signed + b"," + without_proof
        signature = _mac(wanted.stored_key, signed)
        client_key = bytes(a ^ b for a, b in zip(given, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), wanted.stored_key):
            raise wrong()
        self._state = _State.PROVEN
        return Challenge(b"v=" + base64.b64encode(_mac(wanted.server_key, signed)))


def verifier_for(password: str, salt: bytes, iterations: int) -> Verifier:
    """Of a prepared password. Takes about a microsecond an iteration. RFC 5802 section 3."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    return Verifier(iterations, salt, stored, _mac(salted, b"Server Key"))


def feigned(user: str, like: Verifier, key: bytes) -> Verifier:
    """Nobody's verifier: the same for a name each time, and by its looks one of `like`'s kind. No
    password leads to it. `key` is known to nobody else.
    """
    name = user.encode("utf-8", "surrogatepass")
    salt = hashlib.shake_256(_mac(key, b"salt " + name)).digest(len(like.salt))
    stored, server = _mac(key, b"stored " + name), _mac(key, b"server " + name)
    return Verifier(like.iterations, salt, stored, server)


def parse_verifier(text: str) -> Verifier:
    """What `str(verifier)` wrote. @raise ValueError: it is none, and why."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("expected SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")
    iterations = int(match[1])
    if not LEAST_ITERATIONS <= iterations <= MOST_ITERATIONS:
        raise ValueError(f"{iterations} iterations are not {LEAST_ITERATIONS} to {MOST_ITERATIONS}")
    salt, stored, server = (decode(part.encode()) for part in match.groups()[1:])
    if salt is None or stored is None or server is None:
        raise ValueError("salt and keys are written in base64")
    if not 1 <= len(salt) <= LONGEST_SALT:
        raise ValueError(f"a salt has 1 to {LONGEST_SALT} octets")
    if len(stored) != KEY_OCTETS or len(server) != KEY_OCTETS:
        raise ValueError(f"StoredKey and ServerKey have {KEY_OCTETS} octets each")
    return Verifier(iterations, salt, stored, server)


def _name(raw: bytes) -> bytes:
    """RFC 5802 section 5.1: =2C is a comma, =3D an equals sign, and no other = is there."""
    if raw.count(b"=") != raw.count(b"=2C") + raw.count(b"=3D"):
        raise malformed("a name of SCRAM has an = that stands for nothing")
    return raw.replace(b"=2C", b",").replace(b"=3D", b"=")


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _mac(key: bytes, octets: bytes) -> bytes:
    return hmac.new(key, octets, hashlib.sha256).digest()
