"""SASL in the client's role: what proves to a server who we are, by PLAIN, LOGIN or SCRAM-SHA-256.

Law: pure; the nonce comes in, and the key is derived elsewhere, for it costs time. A server has
proved itself (`is_proven`) only where the mechanism lets it, and by its signature. Whatever it says
ends in an answer or in a RemoteProtocolError; the password stands in no error and no `repr`.

RFC 4616 (PLAIN), RFC 5802 and RFC 7677 (SCRAM-SHA-256, without channel binding), RFC 4013
(SASLprep), draft-murchison-sasl-login (LOGIN, which never became an RFC).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mta.errors import RemoteProtocolError
from mta.wire import strict64
from mta.wire.saslprep import prepare

SCRAM_SHA_256 = "SCRAM-SHA-256"
PLAIN = "PLAIN"
LOGIN = "LOGIN"

FEWEST_ROUNDS = 4096
"""RFC 7677 section 4."""
MOST_ROUNDS = 1_000_000
"""About half a second of a processor. A server that asks for 2^31 rounds asks for an hour of it."""
_LONGEST_NONCE = 1024
"""Characters of both nonces; real ones have 50."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to a server. @raise ValueError: a name or password that is empty, holds NUL
    (RFC 4616 section 2), or has no UTF-8.
    """

    user: str
    password: str = field(repr=False)
    nonce: bytes = field(repr=False)
    """Printable ASCII without a comma, at least 18 octets by chance, for one exchange only."""

    def __post_init__(self) -> None:
        for what, text in (("name", self.user), ("password", self.password)):
            if not text or any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"a {what} is not empty, holds no NUL, and is UTF-8")


class Salt(NamedTuple):
    """What the server wants the password to be derived with."""

    salt: bytes
    rounds: int


def derive(password: bytes, salt: bytes, rounds: int) -> bytes:
    """RFC 5802's SaltedPassword (PBKDF2). Up to half a second of a processor: for a thread."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, rounds)


def decode(text: bytes) -> bytes:
    """base64 as RFC 4954 section 4 has it. @raise RemoteProtocolError."""
    octets = strict64.decode(text)
    if octets is None:
        raise RemoteProtocolError("the peer's challenge is not base64")
    return octets


class Exchange:
    """One mechanism's conversation: `begin`, then `answer` for each challenge."""

    name = ""
    is_proven = True
    """The server may say that we are in. Where it must prove itself first: False until it has."""
    password = b""
    """The form of it that is derived with a Salt."""

    def __init__(self, credentials: Credentials) -> None:
        self._user = credentials.user.encode()
        self._secret = credentials.password.encode()

    def begin(self) -> bytes | None:
        """The initial response; None where the server speaks first."""
        return None

    def answer(self, challenge: bytes) -> bytes | Salt:
        """The response; or a Salt: derive `password`, and hand the key to `derived` for a response.

        @raise RemoteProtocolError: the challenge is none of this mechanism, or one too many.
        """
        raise RemoteProtocolError(f"the peer goes on asking behind {self.name}")

    def derived(self, key: bytes) -> bytes:
        """The response that a Salt was asked for."""
        raise RemoteProtocolError("nothing was to be derived")

    def betrays(self, text: bytes) -> bool:
        """Whether a server's words repeat the password, as it is or in base64."""
        encoded = b64encode(self._secret).rstrip(b"=")
        return self._secret in text or encoded in text


class Plain(Exchange):
    """RFC 4616, without an authorization identity."""

    name = PLAIN

    def begin(self) -> bytes:
        return b"\0%b\0%b" % (self._user, self._secret)

    def betrays(self, text: bytes) -> bool:
        whole = b64encode(self.begin()).rstrip(b"=")
        return whole in text or super().betrays(text)


class Login(Exchange):
    """Name and password, each as the answer to a prompt. What the prompts say differs: unread."""

    name = LOGIN

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self._left = [self._secret, self._user]

    def answer(self, challenge: bytes) -> bytes | Salt:
        return self._left.pop() if self._left else super().answer(challenge)


class Scram(Exchange):
    """RFC 5802 with SHA-256. @raise ValueError: SASLprep does not allow name or password."""

    name = SCRAM_SHA_256

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(credentials)
        self.is_proven = False
        self.password = prepare(credentials.password).encode()
        user = prepare(credentials.user, is_query=True)
        if not self.password or not user:
            raise ValueError("nothing is left of it that can be seen")
        self._nonce = credentials.nonce
        name = user.replace("=", "=3D").replace(",", "=2C").encode()
        self._first = b"n=%b,r=%b" % (name, self._nonce)
        self._said = b""
        """The AuthMessage: what both have said and sign."""
        self._unproven = b""
        """client-final-message-without-proof."""
        self._signature = b""
        """What the server has to say; b"": it is not its turn."""
        self._is_begun = False

    def begin(self) -> bytes:
        return b"n,," + self._first

    def answer(self, challenge: bytes) -> bytes | Salt:
        if not self._is_begun:
            self._is_begun = True
            return self._server_first(challenge)
        if not self._signature:
            return super().answer(challenge)
        self._server_final(challenge)
        return b""

    def _server_first(self, message: bytes) -> Salt:
        nonce, salt, rounds = _attributes(message, b"r", b"s", b"i")
        ours = self._nonce
        if not nonce.startswith(ours) or not len(ours) < len(nonce) <= _LONGEST_NONCE:
            raise RemoteProtocolError("the peer's nonce does not go on from ours")
        if not all(0x21 <= octet <= 0x7E for octet in nonce):
            raise RemoteProtocolError("the peer's nonce is not printable")
        if not rounds.isdigit() or rounds.startswith(b"0") or len(rounds) > 10:
            raise RemoteProtocolError("the peer's number of rounds is none")
        count = int(rounds)
        if not FEWEST_ROUNDS <= count <= MOST_ROUNDS:
            why = f"{FEWEST_ROUNDS} to {MOST_ROUNDS} are done"
            raise RemoteProtocolError(f"the peer asks for {count} rounds of SCRAM", why)
        octets = decode(salt)
        if not octets:
            raise RemoteProtocolError("the peer's salt is empty")
        self._unproven = b"c=biws,r=" + nonce  # biws: "n,,"
        self._said = b",".join((self._first, message, self._unproven))
        return Salt(octets, count)

    def derived(self, key: bytes) -> bytes:
        if not self._said or self._signature:
            return super().derived(key)
        client_key = _mac(key, b"Client Key")
        stored_key = hashlib.sha256(client_key).digest()
        signature = _mac(stored_key, self._said)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._signature = _mac(_mac(key, b"Server Key"), self._said)
        return self._unproven + b",p=" + b64encode(proof)

    def _server_final(self, message: bytes) -> None:
        expected, self._signature = self._signature, b""
        if message.startswith(b"e="):
            return  # it knows us not; its reply will say so, and `is_proven` stays False
        (given,) = _attributes(message, b"v")
        if not hmac.compare_digest(decode(given), expected):
            text = "the peer does not prove that it knows the password"
            raise RemoteProtocolError(text, "it may be another than it says")
        self.is_proven = True


EXCHANGES: dict[str, type[Exchange]] = {kind.name: kind for kind in (Scram, Plain, Login)}
"""By name, the strongest first."""


def strongest(offered: Iterable[str], allowed: Iterable[str]) -> type[Exchange] | None:
    """The best mechanism that is in both; None: there is none. Names in upper case."""
    both = set(offered).intersection(allowed)
    return next((kind for name, kind in EXCHANGES.items() if name in both), None)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _attributes(message: bytes, *names: bytes) -> list[bytes]:
    """The values of the first attributes, in this order; extensions behind them are ignored.

    @raise RemoteProtocolError: another stands there, `m=` too (RFC 5802 5.1: unsupported).
    """
    parts = message.split(b",")
    if len(parts) < len(names) or not all(
        part.startswith(name + b"=") for name, part in zip(names, parts, strict=False)
    ):
        raise RemoteProtocolError("the peer's challenge is none of SCRAM")
    return [part[2:] for part in parts[: len(names)]]
