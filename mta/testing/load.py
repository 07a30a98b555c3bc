"""A load of mail: sessions that send numbered messages and keep what became of each.

    python -m mta.testing.load HOST:PORT --sessions 8 --rate 50

Law: it is a client as RFC 5321 4.5.4.1 wants one. What was answered 250 is never sent again; what
was refused for a time, and what was sent whole and never answered, is sent again with the same name
until it is answered 250. So at the end every name that was offered must have arrived, and a name
that arrives twice was unread once, or was doubled by the MTA.

What happens is told as events, one line of JSON each on the standard output, in the order in which
it happened; `t` is CLOCK_MONOTONIC.

| what | besides |
|---|---|
| greeted | `session`: an association that was answered 220 |
| offered | `id`: its content is about to go |
| promised | `id`, `reply`: 250 for the content |
| refused | `id`, `reply`: any other reply, at any stage; a 5xx is final |
| unread | `id`, `how`: the content went and no reply came |
| lost | `session`, `how`: the association ended without our will: reset, closed or silent |
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from typing import Protocol as Shape

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mta.testing.real_network import RealNetwork

CONNECT_SECONDS = 0.25
"""The kernel sends a lost SYN again after 1 s; asking anew finds a new owner sooner."""
SILENCE_SECONDS = 60.0
"""No reply for so long: the peer is stuck. RFC 5321 4.5.3.2 would wait minutes."""
AGAIN_SECONDS = 0.05
"""Between two attempts to connect."""
HELO = b"load.example.net"

Tell = Callable[..., None]
"""tell("promised", id="m7", reply="250 ...")."""


class Network(Shape):
    """What a load needs of the world."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> IDelayedCall: ...

    def dial(
        self,
        host: str,
        port: int,
        build: Callable[[], Any],
        failed: Callable[[], object],
        seconds: float,
    ) -> None: ...


class Names:
    """Which message comes next, and how many are still to be made. `limit` 0 is without end."""

    def __init__(self, prefix: str, limit: int = 0) -> None:
        self._prefix = prefix
        self._limit = limit
        self._made = 0
        self._again: deque[str] = deque()
        self.promised = 0
        self.final = 0
        """Refused for good."""
        self.is_ending = False

    def take(self) -> str:
        """The next to send: what must be sent again first; "" when there is none now."""
        if self._again:
            return self._again.popleft()
        if self.is_ending or (self._limit and self._made >= self._limit):
            return ""
        self._made += 1
        return f"{self._prefix}{self._made}"

    def give_back(self, name: str) -> None:
        self._again.append(name)

    @property
    def is_done(self) -> bool:
        """Nothing new is to be made, and the fate of all that was made is known."""
        is_last = self.is_ending or (self._limit > 0 and self._made >= self._limit)
        return is_last and self.promised + self.final == self._made


class Session(Protocol):
    """One association after the other is one `Load` session; this is one of them."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._buffer = b""
        self._stage: Callable[[bytes], None] = self._greeted
        self._name = ""
        self._is_unread = False
        self._is_ours = False
        self._silence: IDelayedCall | None = None

    # --- the transport

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        self._wait()

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return
            self._buffer = rest
            if line[3:4] != b"-":
                self._hush()
                self._stage(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._hush()
        how = "closed" if reason.check(ConnectionDone) else "reset"
        if reason.check(ConnectionAborted):
            how = "silent"
        if not self._is_ours:
            self._load.tell("lost", session=self._number, how=how)
        name, self._name = self._name, ""
        if name:
            if self._is_unread:
                self._load.tell("unread", id=name, how=how)
            self._load.names.give_back(name)
        self._load.ended(self._number)

    # --- the dialogue

    def _say(self, data: bytes, stage: Callable[[bytes], None]) -> None:
        transport: Any = self.transport
        self._stage = stage
        transport.write(data)
        self._wait()

    def _greeted(self, line: bytes) -> None:
        if not line.startswith(b"220"):
            return self._leave()
        self._load.tell("greeted", session=self._number)
        self._say(b"EHLO %b\r\n" % HELO, self._helloed)

    def _helloed(self, line: bytes) -> None:
        if not line.startswith(b"250"):
            return self._leave()
        self._idle()

    def _idle(self) -> None:
        """The next message, now or when one is due."""
        self._stage = self._unasked
        self._load.want(self)

    def begin(self, name: str) -> None:
        """Called by the load when it is this session's turn."""
        self._name = name
        self._say(
            b"MAIL FROM:<%b>\r\n" % self._load.sender,
            lambda line: self._next(line, b"250", self._mailed),
        )

    def _mailed(self) -> None:
        command = b"RCPT TO:<%b@%b>\r\n" % (self._name.encode(), self._load.domain)
        self._say(command, lambda line: self._next(line, b"250", self._named))

    def _named(self) -> None:
        self._say(b"DATA\r\n", lambda line: self._next(line, b"354", self._content))

    def _content(self) -> None:
        self._load.tell("offered", id=self._name)
        self._is_unread = True
        self._say(self._load.content(self._name), self._answered)

    def _answered(self, line: bytes) -> None:
        self._is_unread = False
        if line.startswith(b"250"):
            name, self._name = self._name, ""
            self._load.names.promised += 1
            self._load.tell("promised", id=name, reply=_text(line))
            self._idle()
        else:
            self._refused(line)

    def _next(self, line: bytes, code: bytes, go: Callable[[], None]) -> None:
        if line.startswith(code):
            go()
        else:
            self._refused(line)

    def _refused(self, line: bytes) -> None:
        name, self._name = self._name, ""
        self._load.tell("refused", id=name, reply=_text(line))
        if line.startswith(b"5"):
            self._load.names.final += 1
        else:
            self._load.names.give_back(name)
        self._leave()

    def _unasked(self, line: bytes) -> None:
        self._leave()  # 421, most likely

    def quit(self) -> None:
        self._is_ours = True
        transport: Any = self.transport
        self._stage = self._unasked
        transport.write(b"QUIT\r\n")
        transport.loseConnection()

    def _leave(self) -> None:
        self._is_ours = True
        transport: Any = self.transport
        transport.loseConnection()

    # --- silence

    def _wait(self) -> None:
        self._hush()
        self._silence = self._load.network.call_later(SILENCE_SECONDS, self._silent)

    def _hush(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None and silence.active():
            silence.cancel()

    def _silent(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class Load:
    """`sessions` associations at a time to `host`, `rate` messages a second (0: as many as go).

    `done` is called once when every message that was begun has its fate.
    """

    def __init__(
        self,
        network: Network,
        host: str,
        port: int,
        tell: Tell,
        *,
        sessions: int = 8,
        rate: float = 0.0,
        limit: int = 0,
        size_octets: int = 2000,
        prefix: str = "m",
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self.network = network
        self.tell = tell
        self.names = Names(prefix, limit)
        self.sender = b"sender@example.net"
        self.domain = b"example.com"
        self._host, self._port = host, port
        self._sessions = sessions
        self._interval = 1.0 / rate if rate else 0.0
        self._filler = (b"y" * 70 + b"\r\n") * max(1, (size_octets - 120) // 72)
        self._idle: deque[Session] = deque()
        self._is_ticking = False
        self._done = done
        self._is_done = False

    def start(self) -> None:
        for number in range(self._sessions):
            self._dial(number)

    def end(self) -> None:
        """Nothing new from now on; what has no fate yet is seen to its end."""
        self.names.is_ending = True
        self._settle()

    def content(self, name: str) -> bytes:
        head = b"Subject: %b\r\nMessage-ID: <%b@load.example.net>\r\n\r\n"
        encoded = name.encode()
        return head % (encoded, encoded) + self._filler + b".\r\n"

    # --- what sessions call

    def want(self, session: Session) -> None:
        """This session can send."""
        self._idle.append(session)
        if not self._interval:
            self._serve()
        elif not self._is_ticking:
            self._is_ticking = True
            self.network.call_later(self._interval, self._tick)
        self._settle()

    def ended(self, number: int) -> None:
        self._idle = deque(s for s in self._idle if s._number != number)
        if not self._is_done:
            self.network.call_later(AGAIN_SECONDS, lambda: self._dial(number))

    # --- the pace

    def _tick(self) -> None:
        """One message a tick; ticks go on while a session waits."""
        self._is_ticking = False
        self._serve()
        if self._idle and not self._is_done:
            self._is_ticking = True
            self.network.call_later(self._interval, self._tick)

    def _serve(self) -> None:
        if self._idle:
            name = self.names.take()
            if name:
                self._idle.popleft().begin(name)

    def _dial(self, number: int) -> None:
        if not self._is_done:
            self.network.dial(
                self._host,
                self._port,
                lambda: Session(self, number),
                lambda: self.ended(number),
                CONNECT_SECONDS,
            )

    def _settle(self) -> None:
        if not self._is_done and self.names.is_done:
            self._is_done = True
            for session in self._idle:
                session.quit()
            self._done()


def _text(line: bytes) -> str:
    return line[:200].decode("ascii", "replace")


def telling(write: Callable[[str], object]) -> Tell:
    """Events as lines of JSON."""

    def tell(what: str, **besides: object) -> None:
        write(json.dumps({"t": round(time.monotonic(), 4), "what": what, **besides}) + "\n")

    return tell


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second; 0: all that go")
    parser.add_argument("--count", type=int, default=0, help="end after so many; 0: at SIGTERM")
    parser.add_argument("--size", type=int, default=2000, help="octets of a message")
    parser.add_argument("--prefix", default="m", help="what the names of messages begin with")
    given = parser.parse_args()
    host, _, port = given.target.rpartition(":")
    out = os.fdopen(sys.stdout.fileno(), "w", buffering=1, encoding="ascii", closefd=False)
    network = RealNetwork()
    load = Load(
        network,
        host.strip("[]"),
        int(port),
        telling(out.write),
        sessions=given.sessions,
        rate=given.rate,
        limit=given.count,
        size_octets=given.size,
        prefix=given.prefix,
        done=lambda: network.call_later(0.1, network.stop),
    )
    load.start()
    network.run(load.end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
