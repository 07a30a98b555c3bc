"""The kind `passwords`: a file says who there is, and what proves it.

Law: whether a user exists is not to be told apart by the reply, the steps or the time: a user whom
nobody knows costs an Argon2 check as the first of the file does, and gets a SCRAM challenge that is
the same each time. What is not known surely is refused as transient, never taken.

PLAIN and LOGIN: wire/sasl.py and argon2_checks.py. SCRAM-SHA-256: wire/scram.py. The file:
password_file.py; `mta password` writes its lines.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

from pydantic import Field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.auth.argon2_checks import Argon2Checks
from mta.auth.exchange import Exchange
from mta.auth.password_file import PasswordFile, User, Users, nobodys_argon2
from mta.errors import LocalProtocolError
from mta.interfaces import IAuthenticator, IAuthExchange, ISurroundings
from mta.model import Authenticated, Challenge, PeerInfo
from mta.settings import Duration, SecretFile, SecretFileSetting, Settings
from mta.wire import scram
from mta.wire.sasl import Credentials, Login, Plain, wrong

LOOK_SECONDS = 5.0
"""How often, at most, the file is looked at; only when an exchange begins."""
NONCE_OCTETS = 18
NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$" + "A" * 22 + "$" + "A" * 43
"""Of no password, as expensive as RFC 9106's second choice: for a file without users."""
MOST_NAMED = 10
"""Damaged lines that the log names each time; the rest is a number."""


class PasswordsSettings(Settings):
    """The keys of `auth: {kind: passwords}`."""

    password_file: SecretFileSetting = Field(
        description="One user a line, as `mta password --user NAME` prints it: the name, $argon2id$"
        "..., and behind --scram SCRAM-SHA-256$...; # begins a comment. Nobody else may read it. It"
        " is read again when it changes; every node needs the same."
    )
    remember: Duration = Field(
        default=300.0,
        ge=0.0,
        le=3600.0,
        description="So long a password that was right needs no second check (which takes 50 to"
        " 250 ms of a processor and 64 MiB); a changed line is checked at once. 0s: never.",
    )


@implementer(IAuthenticator)
class Passwords:
    """@raise StartRefused: the file cannot be read, or others can."""

    def __init__(self, settings: PasswordsSettings, surroundings: ISurroundings) -> None:
        self._clock = surroundings.clock
        self._executor = surroundings.executor
        self._telemetry = surroundings.telemetry
        self._checks = Argon2Checks(self._clock, self._executor, settings.remember)
        secret: SecretFile = settings.password_file
        self._path = secret.path
        self._file = PasswordFile(self._path)
        self._feigning_key = b""
        self._users = Users({})
        self._take(self._file.read())
        self._looked_at = self._clock.monotonic()
        self._is_looking = False

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """SCRAM only while somebody has a verifier: to others it would be a promise not kept."""
        scrams = (scram.NAME,) if self._users.first_verifier is not None else ()
        return (*scrams, "PLAIN", "LOGIN")

    def begin(self, mechanism: str, peer: PeerInfo) -> IAuthExchange:
        """See IAuthenticator."""
        if mechanism == "PLAIN":
            return _Told(self, Plain().respond)
        if mechanism == "LOGIN":
            return _Told(self, Login().respond)
        if mechanism == scram.NAME:
            return _Proving(self)
        raise LocalProtocolError(f"{mechanism} was not offered")

    # --- for the exchanges ---

    async def look_again(self) -> None:
        """When the file changed it is read, on a worker; whatever comes of it, some users are
        known: the new ones, or as ever those of the last file that could be read. Who begins while
        it is read is content with the former ones.
        """
        now = self._clock.monotonic()
        if self._is_looking or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._is_looking = True
        read: Deferred[None] = Deferred()
        # Who gives up forgets `read` only: what the worker found is taken all the same.
        self._executor.submit(self._file.look).addBoth(self._looked, read)
        await read

    def _looked(self, found: Users | None | Failure, read: Deferred[None]) -> None:
        self._is_looking = False
        if isinstance(found, Failure):
            text = f"{found.value}; the former users stay"
            self._telemetry.notice("error", "auth", text)
        elif found is not None:
            self._take(found)
            text = f"{self._path} was read again, users: {len(found.by_name)}"
            self._telemetry.notice("info", "auth", text)
        if not read.called:
            read.callback(None)

    def check(self, credentials: Credentials) -> Deferred[bool]:
        """Costs as much for a user who is not there."""
        user, first = self._users.by_name.get(credentials.user), self._users.first
        if user is not None:
            argon2 = user.argon2
        else:
            argon2 = nobodys_argon2(first.argon2) if first is not None else NOBODYS
        return self._checks.check(argon2, credentials.password)

    def verifier(self, name: str) -> scram.Verifier:
        """The user's, or one of nobody; the latter too for a user that has none."""
        user: User | None = self._users.by_name.get(name)
        if user is not None and user.verifier is not None:
            return user.verifier
        like = self._users.first_verifier
        if like is None:  # the last one went while this exchange was under way
            raise wrong()
        return scram.feigned(name, like, self._feigning_key)

    def _take(self, users: Users) -> None:
        self._users = users
        like = users.first_verifier
        # Of a secret that all nodes have, so that a failover changes no challenge.
        self._feigning_key = like.server_key if like is not None else b""
        for sentence in users.damaged[:MOST_NAMED]:
            self._telemetry.notice("warning", "auth", f"{self._path}: {sentence}")
        more = len(users.damaged) - MOST_NAMED
        if more > 0:
            text = f"{self._path}: {more} more lines are damaged"
            self._telemetry.notice("warning", "auth", text)


class _Told(Exchange):
    """PLAIN and LOGIN: the client tells its password."""

    def __init__(
        self, passwords: Passwords, respond: Callable[[bytes | None], Challenge | Credentials]
    ) -> None:
        super().__init__()
        self._passwords = passwords
        self._respond = respond

    async def _answer(self, response: bytes | None) -> Challenge | Authenticated:
        said = self._respond(response)
        if isinstance(said, Challenge):
            return said
        await self._passwords.look_again()
        if not await self._passwords.check(said):
            raise wrong()
        return Authenticated(said.user)


class _Proving(Exchange):
    """SCRAM: the client proves that it has the password."""

    def __init__(self, passwords: Passwords) -> None:
        super().__init__()
        self._passwords = passwords
        self._machine = scram.Scram()

    async def _answer(self, response: bytes | None) -> Challenge | Authenticated:
        said = self._machine.respond(response)
        if isinstance(said, scram.Wanted):
            await self._passwords.look_again()
            nonce = base64.b64encode(os.urandom(NONCE_OCTETS))
            return self._machine.challenge(self._passwords.verifier(said.user), nonce)
        if isinstance(said, scram.Proven):
            return Authenticated(said.user)
        return said
