"""Source and sink of the benchmarks that know TLS, times and refusals, in processes of their own.

Law: they measure and must not be what is measured. Each session of the source, and each connection
of the sink, is a forked process that blocks; what they spend is told (`cpu_seconds`). Every message
bears a number, and what becomes of it stands in memory that all of them share: a `Board`.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import stand
from mta.testing.certificates import Pair

LOST = 1
"""In place of a reply: the connection ended, or was silent for `PATIENCE_SECONDS`."""
PATIENCE_SECONDS = 120.0
PIECE = 65536
_TOKEN = struct.Struct("=I")
_NUMBER = b"X-Number: "


class Board:
    """What became of `count` messages. Times are CLOCK_MONOTONIC, 0.0 where it never was."""

    def __init__(self, count: int) -> None:
        self.count = count

        def column(kind: str) -> memoryview:
            size = struct.calcsize(kind)
            return memoryview(mmap.mmap(-1, max(1, count) * size)).cast(kind)[:count]

        self.due = column("d")
        """When its turn was; it waits from then on."""
        self.sent = column("d")
        """Before its content was written."""
        self.answered = column("d")
        self.arrived = column("d")
        """When the sink had its final dot."""
        self.code = column("H")
        """The reply that decided, LOST, or 0: none yet."""

    def accepted(self) -> int:
        return sum(1 for code in self.code if code == 250)

    def arrivals(self, first: int = 0, count: int | None = None) -> int:
        """How many of these are in the sink."""
        end = self.count if count is None else first + count
        return sum(1 for moment in self.arrived[first:end] if moment)

    def wait(self, first: int, count: int, seconds: float = 60.0) -> int:
        """Until these are in the sink, or for so long; answers how many are."""
        ends = time.monotonic() + seconds
        while (there := self.arrivals(first, count)) < count and time.monotonic() < ends:
            time.sleep(0.01)
        return there

    def codes(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for code in self.code:
            found[code] = found.get(code, 0) + 1
        return found

    def waits(self, begin: memoryview, end: memoryview) -> list[float]:
        """Seconds between two columns, of those accepted, in order of size."""
        return sorted(
            end[number] - begin[number]
            for number in range(self.count)
            if self.code[number] == 250 and end[number] and begin[number]
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; nan of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- processes


def _fork(run: Callable[[], None]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run()
        os._exit(0)
    except BaseException as fault:
        os.write(2, f"benchmarks.mail: {type(fault).__name__}: {fault}\n".encode())
        os._exit(1)


class Lines:
    """One end of a dialogue: lines and content from a socket that blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""

    def line(self) -> bytes:
        """@raise EOFError."""
        while True:
            line, end, rest = self.rest.partition(b"\r\n")
            if end:
                self.rest = rest
                return line
            self._more()

    def reply(self) -> int:
        while True:
            line = self.line()
            if line[3:4] != b"-":
                return int(line[:3])

    def ask(self, command: bytes) -> int:
        self.sock.sendall(command)
        return self.reply()

    def content(self) -> bytes:
        """Reads up to the final dot; answers its beginning, which holds the header."""
        kept = self.rest
        tail = b"\r\n" + kept
        while (at := tail.find(b"\r\n.\r\n")) < 0:
            self.rest = b""
            self._more()
            if len(kept) < 4096:
                kept += self.rest
            tail = tail[-4:] + self.rest
        self.rest = tail[at + 5 :]
        return kept

    def _more(self) -> None:
        octets = self.sock.recv(PIECE)
        if not octets:
            raise EOFError
        self.rest += octets


# --- the sink


@dataclass(frozen=True)
class Manners:
    """How a sink behaves. `pause_seconds`: before the reply to each final dot."""

    pause_seconds: float = 0.0
    workers: int = 64


class Sink:
    """Takes all mail for a board, with STARTTLS where it has a certificate."""

    def __init__(
        self,
        board: Board,
        pair: Pair | None = None,
        manners: Manners = Manners(),
    ) -> None:
        self._board, self._manners = board, manners
        self._context: ssl.SSLContext | None = None
        if pair is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pair.chain, pair.key)
        self._listening = socket.create_server((stand.HOST, 0), backlog=1024)
        self.port = int(self._listening.getsockname()[1])
        self._pids = [_fork(self._serve) for _ in range(manners.workers)]

    def cpu_seconds(self) -> float:
        """To the nanosecond: each worker's share is less than a tick of the clock."""
        total = 0
        for pid in self._pids:
            with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
        return total / 1e9

    def stop(self) -> None:
        self._listening.close()
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)

    def _serve(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError, EOFError):
                self._converse(sock)
            sock.close()

    def _converse(self, sock: socket.socket) -> None:
        context = self._context
        offers = b"250-sink\r\n250-8BITMIME\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
        if context is None:
            offers = offers.replace(b"250-STARTTLS\r\n", b"")
        peer = Lines(sock)
        sock.sendall(b"220 sink.example.net ESMTP\r\n")
        while True:
            verb = peer.line()[:4].upper()
            if verb == b"DATA":
                peer.sock.sendall(b"354 go on\r\n")
                self._arrived(peer.content())
                peer.sock.sendall(b"250 taken\r\n")
            elif verb == b"STAR" and context is not None:
                peer.sock.sendall(b"220 go on\r\n")
                peer = Lines(context.wrap_socket(peer.sock, server_side=True))
                offers = offers.replace(b"250-STARTTLS\r\n", b"")
            elif verb == b"EHLO":
                peer.sock.sendall(offers)
            elif verb == b"QUIT":
                peer.sock.sendall(b"221 bye\r\n")
                peer.sock.close()
                return
            else:
                peer.sock.sendall(b"250 well\r\n")

    def _arrived(self, beginning: bytes) -> None:
        if self._manners.pause_seconds:
            time.sleep(self._manners.pause_seconds)
        _, found, rest = beginning.partition(_NUMBER)
        number = int(rest.split(b"\r\n", 1)[0]) if found else self._board.count
        if number < self._board.count:
            self._board.arrived[number] = time.monotonic()


# --- the source


@dataclass(frozen=True)
class Load:
    """`rate` messages a second, whether or not they are answered; 0: as many as go. `octets` 0: no
    message at all, the connection is opened, made TLS and ended.
    """

    octets: int = 4096
    sessions: int = 20
    reuse: bool = True
    tls: bool = False
    rate: float = 0.0
    destinations: int = 1


class Spent(NamedTuple):
    seconds: float
    cpu_seconds: float


def send(board: Board, numbers: Sequence[int], port: int, load: Load) -> Spent:
    """These messages of the board, in their order, until each has its reply."""
    reading, writing = os.pipe()

    def session() -> None:
        os.close(writing)
        _Session(board, port, load, reading).run()

    pids = [_fork(session) for _ in range(load.sessions)]
    os.close(reading)
    begun = time.monotonic()
    try:
        for place, number in enumerate(numbers):
            if load.rate:
                due = begun + place / load.rate
                time.sleep(max(0.0, due - time.monotonic()))
                board.due[number] = due
            os.write(writing, _TOKEN.pack(number))
    finally:
        os.close(writing)
        cpu, failed = 0.0, 0
        for pid in pids:
            _, status, usage = os.wait4(pid, 0)
            cpu += usage.ru_utime + usage.ru_stime
            failed += status != 0
    if failed:
        raise RuntimeError(f"{failed} sessions of the source ended by an error, see above")
    return Spent(time.monotonic() - begun, cpu)


class _Session:
    """Sends what it is told from the pipe: numbers, until that is closed."""

    def __init__(self, board: Board, port: int, load: Load, reading: int) -> None:
        self._board, self._port, self._load, self._reading = board, port, load, reading
        self._peer: Lines | None = None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        line = b"y" * 70 + b"\r\n"
        self._filler = line * (PIECE // len(line))

    def run(self) -> None:
        while token := os.read(self._reading, _TOKEN.size):
            (number,) = _TOKEN.unpack(token)
            begun = time.monotonic()
            if not self._board.due[number]:
                self._board.due[number] = begun
            try:
                code = self._opened() or self._message(number)
            except (OSError, EOFError, ValueError):
                code = LOST
            self._board.answered[number] = time.monotonic()
            self._board.code[number] = code
            if code in (421, LOST):
                self._drop()
            elif not self._load.reuse:
                self._leave()
        self._leave()

    def _opened(self) -> int:
        """0, or the reply that refused us."""
        if self._peer is not None:
            return 0
        sock = socket.create_connection((stand.HOST, self._port), PATIENCE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = self._peer = Lines(sock)
        code = peer.reply()
        if code != 220:
            self._drop()
            return code
        code = peer.ask(b"EHLO source.example.net\r\n")
        if self._load.tls:
            if (code := peer.ask(b"STARTTLS\r\n")) != 220:
                return code
            peer = self._peer = Lines(self._context.wrap_socket(sock))
            code = 250
            if self._load.octets:
                code = peer.ask(b"EHLO source.example.net\r\n")
        return 0 if code == 250 else code

    def _message(self, number: int) -> int:
        peer = self._peer
        assert peer is not None, "it was opened"
        if not self._load.octets:
            return 250
        domain = b"example.com"
        if self._load.destinations > 1:
            domain = b"d%d.example.com" % (number % self._load.destinations)
        code = peer.ask(b"MAIL FROM:<sender@example.net>\r\n")
        if code == 250:
            code = peer.ask(b"RCPT TO:<user@%b>\r\n" % domain)
        if code == 250:
            code = peer.ask(b"DATA\r\n")
        if code != 354:
            if code != 421:
                peer.ask(b"RSET\r\n")
            return code
        head = b"Subject: benchmark\r\n%b%d\r\nMessage-ID: <%d@source.example.net>\r\n\r\n"
        octets = head % (_NUMBER, number, number)
        left = self._load.octets - len(octets)
        self._board.sent[number] = time.monotonic()
        while left > len(self._filler):
            peer.sock.sendall(octets + self._filler)
            octets = b""
            left -= len(self._filler)
        lines = max(1, left // 72) * 72
        peer.sock.sendall(octets + self._filler[:lines] + b".\r\n")
        return peer.reply()

    def _leave(self) -> None:
        if self._peer is not None:
            with suppress(OSError, EOFError, ValueError):
                self._peer.ask(b"QUIT\r\n")
        self._drop()

    def _drop(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.sock.close()
