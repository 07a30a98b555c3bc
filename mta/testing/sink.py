"""A foreign SMTP server of the memory network, which does with each command what a test says.

Law: it speaks as RFC 5321 says unless told otherwise, and keeps everything it was told. It shares
no code with our own machines, so that the two check each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

DROP = b"(drop the connection)"
SILENCE = b"(say nothing)"

Answer = bytes | Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Sunk:
    """A message that a sink took: dots unstuffed, line ends as they came."""

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes
    source: str
    helo: bytes


class Sink:
    """`answer("RCPT", b"550 5.1.1 No such user")` changes what is said from now on, until `mend`.

    A stage is GREETING, a verb, or "." for the content's end (also that of a last chunk, where
    CHUNKING is among the extensions); an answer may be a function of the
    command's argument (the content for "."); DROP closes, SILENCE waits. What a negative answer is
    given to is not taken.
    """

    def __init__(
        self,
        name: bytes = b"hub.example.com",
        extensions: tuple[bytes, ...] = (
            b"PIPELINING",
            b"SIZE 52428800",
            b"8BITMIME",
            b"ENHANCEDSTATUSCODES",
        ),
    ) -> None:
        self.name = name
        self.extensions = extensions
        self.messages: list[Sunk] = []
        self.sources: list[str] = []
        self.ports: list[int] = []
        """Those that the connections of `sources` came from."""
        self.commands: list[bytes] = []
        self.open = 0
        self._answers: dict[str, tuple[Answer, float]] = {}

    def answer(self, stage: str, answer: Answer, times: float = float("inf")) -> None:
        """Say this at `stage`, for the next `times` times."""
        self._answers[stage] = (answer, times)

    def mend(self) -> None:
        """From now on as RFC 5321 says."""
        self._answers.clear()

    def build(self) -> IProtocol:
        """For MemoryNetwork.serve."""
        return _Conversation(self)

    # --- what it keeps; a catcher for hours keeps something else (catcher.py)

    def came(self, source: str, port: int) -> None:
        self.sources.append(source)
        self.ports.append(port)

    def told(self, line: bytes) -> None:
        self.commands.append(line)

    def took(self, sunk: Sunk) -> None:
        """The content is whole and the reply is given, whether or not it can arrive."""
        self.messages.append(sunk)

    def decide(self, stage: str, argument: bytes, usual: bytes) -> bytes:
        answer, times = self._answers.get(stage, (usual, 0.0))
        if times > 1:
            self._answers[stage] = (answer, times - 1)
        else:
            self._answers.pop(stage, None)
        return answer(argument) if callable(answer) else answer


class _Conversation(Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._helo = b""
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._in_content = False
        self._chunk: tuple[int, bool] | None = None
        """Octets to come, and whether they are the last."""
        self._chunks = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        peer = transport.getPeer()
        self._source = str(peer.host)
        self._sink.came(self._source, peer.port)
        self._sink.open += 1
        self._say("GREETING", b"", b"220 " + self._sink.name + b" ESMTP")

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._sink.open -= 1

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if self._in_content:
                content, dot, rest = (b"\r\n" + self._buffer).partition(b"\r\n.\r\n")
                if not dot:
                    return
                self._buffer, self._in_content = rest, False
                self._take(content[2:] + b"\r\n" if len(content) > 2 else b"")
                continue
            if self._chunk is not None:
                octets, is_last = self._chunk
                if len(self._buffer) < octets:
                    return
                self._chunks += self._buffer[:octets]
                self._buffer, self._chunk = self._buffer[octets:], None
                if is_last:
                    self._taken(self._chunks)
                else:
                    self._say("BDAT", b"", b"250 2.0.0 Go on")
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return
            self._buffer = rest
            self._command(line)

    def _command(self, line: bytes) -> None:
        self._sink.told(line)
        verb, _, argument = line.partition(b" ")
        name = verb.upper().decode("ascii", "replace")
        if name in {"EHLO", "LHLO", "HELO"}:
            self._helo = argument
            lines = [self._sink.name, *(self._sink.extensions if name != "HELO" else ())]
            usual = b"\r\n".join(b"250-" + text for text in lines[:-1])
            usual += (b"\r\n" if usual else b"") + b"250 " + lines[-1]
            self._say(name, argument, usual)
        elif name == "MAIL":
            if self._say(name, argument, b"250 2.1.0 Ok"):
                self._sender, self._recipients, self._chunks = _path(argument), [], b""
        elif name == "RCPT":
            if self._say(name, argument, b"250 2.1.5 Ok"):
                self._recipients.append(_path(argument))
        elif name == "DATA":
            usual = b"354 Go on" if self._recipients else b"554 5.5.1 No valid recipients"
            self._in_content = self._say(name, argument, usual)
        elif name == "BDAT" and b"CHUNKING" in self._sink.extensions:
            words = argument.split()
            self._chunk = int(words[0]), words[-1] == b"LAST"
        elif name == "RSET":
            self._sender, self._recipients = None, []
            self._say(name, argument, b"250 2.0.0 Ok")
        elif name == "NOOP":
            self._say(name, argument, b"250 2.0.0 Ok")
        elif name == "QUIT":
            self._say(name, argument, b"221 2.0.0 Bye")
            self._close()
        else:
            self._say(name, argument, b"500 5.5.2 What?")

    def _take(self, stuffed: bytes) -> None:
        self._taken((b"\r\n" + stuffed).replace(b"\r\n..", b"\r\n.")[2:])

    def _taken(self, content: bytes) -> None:
        sender, recipients = self._sender or b"", tuple(self._recipients)
        self._sender, self._recipients = None, []
        if self._say(".", content, b"250 2.0.0 Ok: taken as %d" % len(self._sink.messages)):
            sunk = Sunk(sender, recipients, content, self._source, self._helo)
            self._sink.took(sunk)

    def _say(self, stage: str, argument: bytes, usual: bytes) -> bool:
        """Answers whether it was positive."""
        reply = self._sink.decide(stage, argument, usual)
        if reply == DROP:
            self._close()
        elif reply != SILENCE:
            transport: Any = self.transport
            transport.write(reply + b"\r\n")
        return reply[:1] in {b"2", b"3"}

    def _close(self) -> None:
        transport: Any = self.transport
        transport.loseConnection()


def _path(argument: bytes) -> bytes:
    """What stands between the angle brackets of FROM:<...> or TO:<...>."""
    return argument.partition(b"<")[2].rpartition(b">")[0]
