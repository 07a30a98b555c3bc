"""A Dovecot of memory: the server's half of its authentication protocol, in octets.

Law: it is strict where Dovecot is: a handshake out of order, a CPID that is taken or a line that is
none ends the connection, and `broken` says why. It shares nothing with our client's half but the
SASL machines, which are the other side of what a client of the suite says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mta.errors import PermanentFailure
from mta.model import Challenge
from mta.wire import scram
from mta.wire.sasl import Credentials, Login, Plain

__all__ = ["MemoryDovecot"]

_KEY = b"a key of this Dovecot"


class MemoryDovecot(Factory):
    """Listens as `unix:PATH` in a MemoryNetwork's `services`. `users` are names and passwords.

    `asked` keeps the AUTH lines, split at their tabs. `say` may change a line before it is sent, or
    answer None to swallow it; `greeting` replaces the handshake.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.mechanisms = ["PLAIN", "LOGIN", "SCRAM-SHA-256"]
        self.client_ids: set[int] = set()
        self.asked: list[list[bytes]] = []
        self.broken: list[str] = []
        self.open = 0
        self._nonces = 0
        self.is_ill = False
        self.greeting: bytes | None = None
        self.say: Callable[[bytes], bytes | None] = lambda line: line

    def nonce(self) -> bytes:
        """Another each time, and the same in each run."""
        self._nonces += 1
        return b"nonce%015d" % self._nonces

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Client(self)


class _Token:
    """A mechanism of its own: a name between two \\1, and no password."""

    def respond(self, response: bytes | None) -> scram.Proven:
        return scram.Proven((response or b"").strip(b"\1").decode())


class _Client(Protocol):
    def __init__(self, dovecot: MemoryDovecot) -> None:
        self._dovecot = dovecot
        self._input = b""
        self._lines = 0
        self._client_id = 0
        self._machine: Any = None
        self._asks = False

    def connectionMade(self) -> None:
        self._dovecot.open += 1
        greeting = self._dovecot.greeting
        if greeting is None:
            mechanisms = "".join(f"MECH\t{name}\tplaintext\n" for name in self._dovecot.mechanisms)
            cookie = "COOKIE\t0123456789abcdef0123456789abcdef\n"
            text = f"VERSION\t1\t2\n{mechanisms}SPID\t4711\nCUID\t1\n{cookie}DONE\n"
            greeting = text.encode()
        self.transport.write(greeting)  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._expect(not self._asks, "disconnected with a pending request")
        self._dovecot.open -= 1
        self._dovecot.client_ids.discard(self._client_id)

    def dataReceived(self, data: bytes) -> None:
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._lines += 1
            words = line.split(b"\t")
            if self._lines == 1:
                self._expect(words[:2] == [b"VERSION", b"1"], f"no version: {line!r}")
            elif self._lines == 2:
                self._identify(words)
            elif words[0] == b"AUTH":
                self._begin(words)
            elif words[0] == b"CONT":
                self._expect(len(words) == 3, f"CONT has three words: {line!r}")
                self._expect(self._machine is not None, f"nothing to go on with: {line!r}")
                self._step(words[1], base64.b64decode(words[2], validate=True))
            elif words[0] == b"CANCEL":
                self._expect(len(words) == 2 and self._asks, f"nothing to cancel: {line!r}")
                self._asks = False
            else:
                self._expect(False, f"no command: {line!r}")

    def _expect(self, holds: bool, fact: str) -> None:
        if not holds:
            self._dovecot.broken.append(fact)
            self.transport.loseConnection()  # type: ignore[union-attr]

    def _identify(self, words: list[bytes]) -> None:
        self._expect(words[0] == b"CPID" and len(words) == 2, f"no CPID: {words!r}")
        number = int(words[1])
        self._expect(0 < number < 2**32, f"CPID {number} is no 32-bit number")
        self._expect(number not in self._dovecot.client_ids, f"CPID {number} is taken")
        self._dovecot.client_ids.add(number)
        self._client_id = number

    def _begin(self, words: list[bytes]) -> None:
        self._dovecot.asked.append(words)
        _, number, mechanism, *parameters = words
        self._expect(b"service=smtp" in parameters, f"no service: {words!r}")
        given = [word for word in parameters if word.startswith(b"resp=")]
        self._expect(given == [] or parameters[-1:] == given, f"resp= is the last: {words!r}")
        kinds: dict[bytes, Any] = {
            b"PLAIN": Plain,
            b"LOGIN": Login,
            b"SCRAM-SHA-256": scram.Scram,
            b"X-TOKEN": _Token,
        }
        self._machine = kinds[mechanism]()
        self._asks = True
        initial = base64.b64decode(given[0][5:], validate=True) if given else None
        self._step(number, initial)

    def _step(self, number: bytes, response: bytes | None) -> None:
        dovecot = self._dovecot
        if dovecot.is_ill:
            self._say(b"FAIL\t%b\ttemp\tcode=temp_fail" % number)
            return
        try:
            said = self._machine.respond(response)
            if isinstance(said, scram.Wanted):
                said = self._machine.challenge(self._verifier(said.user), dovecot.nonce())
        except PermanentFailure:
            self._say(b"FAIL\t%b\tcode=authz_fail" % number)
            return
        if isinstance(said, Challenge):
            self._say(b"CONT\t%b\t%b" % (number, base64.b64encode(said.octets)))
            return
        name = said.user.encode()
        if isinstance(said, Credentials) and dovecot.users.get(said.user) != said.password:
            self._say(b"FAIL\t%b\tuser=%b" % (number, name))
        else:
            self._say(b"OK\t%b\tuser=%b\tmaster_user=" % (number, name))

    def _verifier(self, user: str) -> scram.Verifier:
        password = self._dovecot.users.get(user)
        like = scram.verifier_for(password or "", b"saltsaltsalt", scram.LEAST_ITERATIONS)
        if password is None:
            return scram.feigned(user, like, _KEY)
        return like

    def _say(self, line: bytes) -> None:
        changed = self._dovecot.say(line)
        if changed is not None:
            self._asks = line.startswith(b"CONT")
            self.transport.write(changed + b"\n")  # type: ignore[union-attr]
