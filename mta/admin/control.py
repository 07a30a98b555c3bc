"""control.sock: operators' commands as JSON lines, from peers whom the kernel vouches for.

Law: nobody but root, our own uid and members of the admin group is heard, whatever the file's mode
says; every command is logged before it is done. A peer that sends rubbish, too much, or nothing,
or does not read, costs bounded memory and ends alone.

    C: {"command": "queue-list", "arguments": {"domain": "example.com"}}
    S: {"item": {...}}            any number of times
    S: {"done": {...}}            or {"error": {"what", "why", "remedy", "exit_code"}}

Commands of one connection are done one after the other, in order.
"""

from __future__ import annotations

import grp
import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.admin.commands import Commands, UsageFault
from mta.admin.peer import Credentials, credentials
from mta.admin.text import neutral
from mta.errors import MTAError
from mta.interfaces import IClock, ITimer
from mta.telemetry import Command, Telemetry

LONGEST_COMMAND = 64 * 1024
"""Octets of one request line: about 3000 queue ids."""
MOST_CONNECTIONS = 50
IDLE_SECONDS = 60.0
"""A connection that asks nothing for so long is closed."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class ControlServer(Factory):
    """Builds the protocol of each connection. Open it with
    `doors.service_listen("admin", "unix:" + path, server, server.mode)`, then call `secure(path)`.
    """

    noisy = False

    def __init__(
        self,
        commands: Commands,
        telemetry: Telemetry,
        clock: IClock,
        *,
        group: str = "mta-admin",
        own_uid: int | None = None,
        who: Callable[[Any], Credentials] = credentials,
        group_id: Callable[[str], int | None] | None = None,
    ) -> None:
        self.commands = commands
        self.telemetry = telemetry
        self.clock = clock
        self.who = who
        self.connections: set[_Control] = set()
        self._own_uid = os.geteuid() if own_uid is None else own_uid
        self._gid = (group_id or _gid_of)(group)

    @property
    def mode(self) -> int:
        """0660 when the admin group exists, else 0600."""
        return 0o600 if self._gid is None else 0o660

    def secure(self, path: str) -> None:
        """Give the socket to the admin group; where that is not permitted, to its owner alone."""
        if self._gid is None:
            return
        try:
            os.chown(path, -1, self._gid)
        except OSError as error:
            os.chmod(path, 0o600)
            self.telemetry.notice(
                "warning",
                "control",
                f"{path} cannot be given to the admin group ({error}); only its owner and root "
                "may give commands: add the service's user to the group",
            )

    def admits(self, peer: Credentials) -> bool:
        if peer.uid in {0, self._own_uid}:
            return True
        return self._gid is not None and peer.is_member(self._gid)

    def buildProtocol(self, addr: Any) -> _Control:
        return _Control(self)

    def stop(self) -> None:
        """End every connection; commands that run are cancelled."""
        for connection in tuple(self.connections):
            connection.end(cancel=True)


@implementer(IPushProducer)
class _Control(LineOnlyReceiver):
    """One operator's connection."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_COMMAND
    transport: Any

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._peer = Credentials(0, 0, 0)
        self._lines: deque[bytes] = deque()
        self._running: Deferred[Any] | None = None
        self._full: Deferred[None] | None = None
        self._idle: ITimer | None = None
        self._is_open = False
        self._is_producer = False

    def connectionMade(self) -> None:
        server = self._server
        self._is_open = True
        if len(server.connections) >= MOST_CONNECTIONS:
            self._refuse("too many connections to the control socket", os.EX_TEMPFAIL)
            return
        try:
            self._peer = server.who(self.transport)
        except OSError as error:
            self._refuse(f"the kernel does not say who you are: {error}", os.EX_NOPERM)
            return
        if not server.admits(self._peer):
            server.telemetry.notice(
                "warning", "control", f"uid={self._peer.uid} pid={self._peer.pid} was refused"
            )
            self._refuse(
                f"uid {self._peer.uid} may not give commands", os.EX_NOPERM, "become root or mta"
            )
            return
        server.connections.add(self)
        self.transport.registerProducer(self, True)
        self._is_producer = True
        self._wait()

    def _refuse(self, what: str, exit_code: int, remedy: str = "") -> None:
        self._send({"error": _fault(MTAError(what, remedy=remedy), exit_code)})
        self.end()

    def _wait(self) -> None:
        self._idle = self._server.clock.call_later(IDLE_SECONDS, self.end)

    # requests
    def lineReceived(self, line: bytes) -> None:
        if not self._is_open:
            return
        self._lines.append(line)
        if self._running is None:
            self._next()
        else:
            self.transport.pauseProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(f"a command is longer than {LONGEST_COMMAND} octets", os.EX_USAGE)

    def _next(self) -> None:
        """Begin the next command. Commands that end at once are taken in a loop, not by recursion:
        a peer may send a thousand of them in one chunk.
        """
        while self._running is None and self._lines and self._is_open:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            running = Deferred.fromCoroutine(self._do(self._lines.popleft()))
            running.addErrback(self._defect)
            if not running.called:
                self._running = running
                running.addBoth(self._ended)
        if self._running is None and self._is_open and self._idle is None:
            self._wait()

    def _ended(self, _result: Any) -> None:
        self._running = None
        if self._is_open:
            self.transport.resumeProducing()
            self._next()

    async def _do(self, line: bytes) -> None:
        try:
            name, arguments = _parsed(line)
            self._server.telemetry.event(
                Command(
                    self._peer.uid,
                    self._peer.gid,
                    self._peer.pid,
                    name,
                    " ".join(f"{key}={_encode(value)}" for key, value in arguments.items()),
                )
            )
            answer = await self._server.commands.run(name, arguments, self._emit)
        except _Gone:
            return
        except MTAError as error:
            self._send({"error": _fault(error, error.exit_code)})
            return
        self._send({"done": answer})

    def _defect(self, failure: Failure) -> None:
        """Not an error that we raise on purpose: the peer gets its name, the log gets the rest."""
        if not self._is_open:
            return
        where = failure.getBriefTraceback()
        self._server.telemetry.notice("error", "control", f"a command failed: {where}")
        error = MTAError("the command failed inside the MTA", repr(failure.value), "see its log")
        self._send({"error": _fault(error, os.EX_SOFTWARE)})

    # answers
    def _emit(self, item: dict[str, Any]) -> Deferred[None] | None:
        if not self._is_open:
            raise _Gone
        self._send({"item": item})
        return self._full

    def _send(self, answer: dict[str, Any]) -> None:
        if self._is_open:
            self.transport.write(_encode(answer).encode("ascii") + b"\n")

    def pauseProducing(self) -> None:
        if self._full is None:
            self._full = Deferred()

    def resumeProducing(self) -> None:
        if self._full is not None:
            full, self._full = self._full, None
            full.callback(None)

    def stopProducing(self) -> None:
        """connectionLost follows."""

    def end(self, *, cancel: bool = False) -> None:
        """Close when all is written. What runs for this peer goes on to the end of its page,
        unless it is told to `cancel`.
        """
        if self._is_open:
            if self._is_producer:
                self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._closed()
        if cancel and self._running is not None:
            self._running.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed()

    def _closed(self) -> None:
        self._is_open = False
        self._lines.clear()
        self._server.connections.discard(self)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self.resumeProducing()


class _Gone(Exception):
    """Nobody reads the answer any more."""


def _parsed(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageFault("a command is one JSON object on one line", neutral(str(error))) from None
    if not isinstance(request, dict):
        raise UsageFault("a command is a JSON object")
    name, arguments = request.pop("command", None), request.pop("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict) or request:
        raise UsageFault("a command has command (text) and arguments (an object), and nothing else")
    return name, arguments


def _fault(error: MTAError, exit_code: int) -> dict[str, Any]:
    return {
        "what": neutral(error.what),
        "why": neutral(error.why),
        "remedy": neutral(error.remedy),
        "exit_code": exit_code,
    }


def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
