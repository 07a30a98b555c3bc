"""Mail under way in both directions: clients that want a reply, and sinks that keep what they got.

Law: written from RFC 5321 without a line of the product's, so that the ledger is an outsider's. A
client that got no reply sends the message again; a sink counts what it took, also when its reply
goes astray. A message is known by its own number, which stands in its Message-ID and recipients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.simulation.network import End, Network
from tests.simulation.node import HUBS, NETWORK_NAME, VIRTUAL_ADDRESS
from tests.simulation.world import Event, World

if TYPE_CHECKING:
    from tests.simulation.watch import Watch

REPLY_SECONDS = 40.0
"""A client waits for a reply so long (less than RFC 5321 asks, to see more in less time)."""
QUEUED = re.compile(rb"^250 2\.0\.0 Ok: queued as ([0-9A-F]{14})")
_ID = re.compile(rb"^Message-ID: <m(\d+)@", re.MULTILINE | re.IGNORECASE)
_REPORTED = re.compile(rb"^Final-Recipient: rfc822; [a-z]+(\d+)-", re.MULTILINE)
_RECEIVED = re.compile(rb"\r\n\tid ([0-9A-F]{14})")
_FINAL = re.compile(rb"^Final-Recipient: rfc822; ([^\r\n]+)", re.MULTILINE)


@dataclass
class Message:
    """What a client wants to get rid of, and all that became of it."""

    number: int
    recipients: tuple[bytes, ...]
    padding: int
    tries: int = 0
    queue_ids: list[str] = field(default_factory=list)
    """Of each 250 that was given for it, read or not."""
    read: set[str] = field(default_factory=set)
    """Those of them whose 250 the client has read."""
    delivered: dict[bytes, list[str]] = field(default_factory=dict)
    """Recipient -> the queue ids under which sinks took it."""
    reported: set[bytes] = field(default_factory=set)

    @property
    def is_settled(self) -> bool:
        return all(r in self.delivered or r in self.reported for r in self.recipients)

    @property
    def sender(self) -> bytes:
        return b"s%d@example.net" % self.number

    def content(self) -> bytes:
        head = b"From: <%b>\r\nMessage-ID: <m%d@client.example.net>\r\nSubject: x\r\n\r\n" % (
            self.sender,
            self.number,
        )
        return head + b"0123456789abcdef0123456789abcdef0123456789abcdef\r\n" * self.padding


class Client(Protocol):
    """One connection: sends what its sender has, and says what came of it."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._buffer = b""
        self._expect: list[str] = ["greeting"]
        self._timer: Event | None = None
        self.is_over = False
        self.message: Message | None = None
        """What was sent last."""
        self.is_ready = False
        """It said EHLO and waits for nothing."""

    def connectionMade(self) -> None:
        self._arm()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._disarm()
            self._sender.lost()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._disarm()
        self._timer = self._sender.world.later(REPLY_SECONDS, self._expired)

    def _expired(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
        self._finish()

    def _say(self, *lines: bytes, expect: list[str]) -> None:
        transport: Any = self.transport
        self._expect += expect
        self._arm()
        transport.write(b"".join(line + b"\r\n" for line in lines))

    def dataReceived(self, data: bytes) -> None:
        if self.is_over:
            return
        self._buffer += data
        while not self.is_over:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return
            self._buffer = rest
            if line[3:4] == b"-":
                continue
            if not self._expect:  # 421 by itself
                self._quit()
                return
            self._reply(self._expect.pop(0), line)

    def _reply(self, to: str, line: bytes) -> None:
        good = line[:1] in {b"2", b"3"}
        if to == "greeting":
            if good:
                self._say(b"EHLO client.example.net", expect=["ehlo"])
            else:
                self._quit()
        elif to == "ehlo":
            self.next() if good else self._quit()
        elif to == "data":
            if line[:3] == b"354":
                message = self._sender.message
                assert message is not None
                transport: Any = self.transport
                self._expect.append("dot")
                self._arm()
                transport.write(message.content() + b".\r\n")
            else:
                self._quit()
        elif to == "dot":
            found = QUEUED.match(line)
            if found:
                self._sender.accepted(found[1].decode())
                if not self.is_over:
                    self.next()
            else:
                self._quit()

    def next(self) -> None:
        """Another message over this association, if there is one now."""
        self._disarm()
        message = self._sender.message
        self.is_ready = message is None
        if message is None:
            return
        self.message = message
        message.tries += 1
        lines = [b"MAIL FROM:<%b>" % message.sender]
        lines += [b"RCPT TO:<%b>" % recipient for recipient in message.recipients]
        expect = ["mail", *("rcpt" for _ in message.recipients), "data"]
        self._say(*lines, b"DATA", expect=expect)

    def _quit(self) -> None:
        transport: Any = self.transport
        transport.write(b"QUIT\r\n")
        transport.loseConnection()
        self._finish()

    def close(self) -> None:
        if not self.is_over:
            self._quit()


class Sender:
    """One client program: one message at a time, over one association at a time."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.world = load.world
        self.number = number
        self.message: Message | None = None
        self._client: Client | None = None

    def begin(self) -> None:
        self._wait(0.0, 1.0)

    def _wait(self, least: float, most: float) -> None:
        self.world.later(self.world.chance.uniform(least, most), self._go)

    def _go(self) -> None:
        if self.message is None:
            self.message = self.load.make()
        if self.message is None:
            if self._client is not None:
                self._client.close()
            return
        client = self._client
        if client is None:
            self._client = client = Client(self)
            source = f"192.0.2.{100 + self.number}"
            self.load.network.dial(source, VIRTUAL_ADDRESS, 25, client, self._failed)
        elif client.is_ready:
            client.next()

    def accepted(self, queue_id: str) -> None:
        message, self.message = self.message, None
        assert message is not None
        self.load.watch.read_ack(message, queue_id)
        if self.world.chance.random() < 0.3 and self._client is not None:
            self._client.close()
        self._pace()

    def _pace(self) -> None:
        if self.world.chance.random() < 0.5:  # a burst: the next one in the same turn
            self.message = self.load.make()
            if self.message is not None and self._client is None:
                self._wait(0.0, 0.1)
            return
        self._wait(0.05, 3.0)

    def lost(self) -> None:
        self._client = None
        if self.message is not None:
            self._wait(0.2, 2.0)

    def _failed(self, why: str) -> None:
        self._client = None
        self._wait(0.3, 2.0)


class Hub(Protocol):
    """A sink's end of one association."""

    def __init__(self, sinks: Sinks, end: End) -> None:
        self._sinks = sinks
        self._world = sinks.world
        self.end = end
        self._buffer = b""
        self._in_content = False
        self._helo = b""
        self._sender = b""
        self._recipients: list[bytes] = []

    def connectionMade(self) -> None:
        self._say(b"220 hub.example.com ESMTP")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._buffer = b""

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if self._in_content:
                content, dot, rest = (b"\r\n" + self._buffer).partition(b"\r\n.\r\n")
                if not dot:
                    return
                self._buffer, self._in_content = rest, False
                self._take(content[2:] + b"\r\n")
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return
            self._buffer = rest
            self._command(line)

    def _command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        path = argument.partition(b"<")[2].rpartition(b">")[0]
        match verb.upper():
            case b"EHLO":
                self._helo = argument
                self._say(b"250-hub.example.com\r\n250-PIPELINING\r\n250 8BITMIME")
            case b"HELO":
                self._helo = argument
                self._say(b"250 hub.example.com")
            case b"MAIL":
                self._sender, self._recipients = path, []
                self._say(b"250 2.1.0 Ok")
            case b"RCPT":
                if path.startswith(b"bad"):
                    self._say(b"550 5.1.1 No such user")
                elif self._sinks.is_busy():
                    self._say(b"451 4.3.0 Later")
                else:
                    self._recipients.append(path)
                    self._say(b"250 2.1.5 Ok")
            case b"DATA":
                self._in_content = bool(self._recipients)
                self._say(b"354 Go on" if self._recipients else b"554 5.5.1 No recipients")
            case b"RSET" | b"NOOP":
                self._recipients = []
                self._say(b"250 2.0.0 Ok")
            case b"QUIT":
                self._say(b"221 2.0.0 Bye")
                self._close()
            case _:
                self._say(b"500 5.5.2 What?")

    def _take(self, content: bytes) -> None:
        recipients, self._recipients = tuple(self._recipients), []
        sinks = self._sinks
        if sinks.is_busy():
            self._say(b"451 4.3.0 Later")
            return
        sinks.take(self.end, self._helo, self._sender, recipients, content)
        if sinks.loses_reply():
            self._close(abort=True)
        else:
            self._say(b"250 2.0.0 Ok", delay=sinks.delay())

    def _say(self, line: bytes, delay: float = 0.0) -> None:
        if delay:
            self._world.later(delay, self._write, line)
        else:
            self._write(line)

    def _write(self, line: bytes) -> None:
        transport: Any = self.transport
        transport.write(line + b"\r\n")

    def _close(self, abort: bool = False) -> None:
        transport: Any = self.transport
        if abort:
            transport.abortConnection()
        else:
            transport.loseConnection()


class Sinks:
    """Both hubs, and how they behave just now (shares of 1)."""

    def __init__(self, world: World, watch: Watch) -> None:
        self.world = world
        self._watch = watch
        self.busy = 0.0
        self.lossy = 0.0
        self.slow = 0.0

    def calm(self) -> None:
        self.busy = self.lossy = self.slow = 0.0

    def is_busy(self) -> bool:
        return self.world.chance.random() < self.busy

    def loses_reply(self) -> bool:
        return self.world.chance.random() < self.lossy

    def delay(self) -> float:
        return self.world.chance.uniform(0.1, 4.0) if self.world.chance.random() < self.slow else 0

    def take(
        self, end: End, helo: bytes, sender: bytes, recipients: tuple[bytes, ...], content: bytes
    ) -> None:
        near = end.far
        found = _RECEIVED.search(content[:2000])
        queue_id = found[1].decode() if found and sender else ""
        watch = self._watch
        if near.host != VIRTUAL_ADDRESS or helo != NETWORK_NAME.encode():
            watch.violated("I6", f"a peer saw {near.host} and EHLO {helo!r}")
        number = _ID.search(content)
        if number is None and not sender:
            # A report whose maker was cut off has no time to read the header that it returns.
            number = _REPORTED.search(content)
        if number is None:
            watch.violated("defect", f"a content without our Message-ID: {content[:200]!r}")
            return
        final = frozenset(_FINAL.findall(content)) if not sender else None
        watch.taken(near, int(number[1]), queue_id, recipients, final)


class Load:
    """All mail of one world. `limit` messages, then no more are made."""

    def __init__(self, world: World, network: Network, watch: Watch, senders: int) -> None:
        self.world = world
        self.network = network
        self.watch = watch
        self.messages: dict[int, Message] = {}
        self.is_over = False
        self.sinks = Sinks(world, watch)
        for host in HUBS:
            network.servers[host, 25] = lambda end: Hub(self.sinks, end)
        self.senders = [Sender(self, n) for n in range(senders)]

    def begin(self) -> None:
        for sender in self.senders:
            sender.begin()

    def make(self) -> Message | None:
        if self.is_over:
            return None
        chance = self.world.chance
        number = len(self.messages) + 1
        kinds = [b"r", b"r", b"r", b"bad"]
        many = 2 if chance.random() < 0.2 else 1
        recipients = tuple(
            b"%b%d-%d@example.com" % (chance.choice(kinds), number, n) for n in range(many)
        )
        padding = chance.choice((1, 1, 20, 240, 240))  # 240: 12 KiB, a file of its own
        message = self.messages[number] = Message(number, recipients, padding)
        return message

    @staticmethod
    def number_of(end: End) -> int:
        """The message that the client at this end is sending."""
        message = end.protocol.message
        return 0 if message is None else int(message.number)

    @property
    def is_idle(self) -> bool:
        return all(sender.message is None for sender in self.senders)
