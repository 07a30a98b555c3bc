"""The peers: smtp-sink, smtp-source, swaks and nsd as Debian ships them, and a client with a ledger.

The ledger client is ours because the others do not say which message was answered 250: it keeps the
identity of every message that the MTA promised to deliver. The crooked server is ours because no
honest program talks like that.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.rig.ground import (
    PEER,
    UNPACKED,
    VIRTUAL,
    Broken,
    Ground,
    Process,
    expect,
    peer_environment,
    wait_until,
)

SINK_NAME = "sink.example.net"


class Arrived(NamedTuple):
    """A message that smtp-sink took whole."""

    client: str
    helo: str
    sender: str
    recipients: tuple[str, ...]
    text: str

    def header(self, name: str) -> str:
        found = re.search(
            rf"^{name}:[ \t]*(.*(?:\n[ \t].*)*)", self.text, re.MULTILINE | re.IGNORECASE
        )
        return found[1] if found else ""


class Sink:
    """smtp-sink in the peer's namespace; keeps every message that it answered 250."""

    def __init__(
        self, ground: Ground, host: str = PEER, port: int = 25, name: str = "sink"
    ) -> None:
        self._ground = ground
        self.host, self.port, self.name = host, port, name
        self.directory = os.path.join(ground.directory, f"{name}.mail")
        os.makedirs(self.directory)
        os.chmod(self.directory, 0o777)
        self.process: Process | None = None

    def start(self, *options: str) -> Sink:
        """Options as of smtp-sink(1): -f and -r refuse commands, -q hangs up, -w waits."""
        where = f"[{self.host}]" if ":" in self.host else self.host
        argv = [
            os.path.join(UNPACKED, "usr/sbin/smtp-sink"), "-v", "-u", "nobody", "-R", self.directory,
            "-d", "m.", "-h", SINK_NAME, "-m", "500", *options, f"{where}:{self.port}", "500",
        ]  # fmt: skip
        self.process = self._ground.start(self.name, "peer", argv, env=peer_environment())
        wait_until(
            lambda: any(f":{self.port} " in line for line in self._ground.sockets("peer", "state", "listening")),
            5, f"{self.name} does not listen",
        )  # fmt: skip
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()

    def count(self) -> int:
        return len(self._complete())

    def _complete(self) -> list[str]:
        """The files of whole messages: those that smtp-sink still holds open are not."""
        names = sorted(os.listdir(self.directory))
        open_now = set()
        if self.process is not None and self.process.is_running:
            folder = f"/proc/{self.process.pid}/fd"
            for number in os.listdir(folder):
                try:
                    open_now.add(os.path.basename(os.readlink(f"{folder}/{number}")))
                except FileNotFoundError:
                    pass  # closed while we looked
        return [
            name
            for name in names
            if name not in open_now and os.path.exists(os.path.join(self.directory, name))
        ]

    def messages(self) -> list[Arrived]:
        found = []
        for name in self._complete():
            path = os.path.join(self.directory, name)
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            top = re.findall(
                r"^X-(Client-Addr|Helo-Args|Mail-Args|Rcpt-Args): (.*)$", text, re.MULTILINE
            )
            of: dict[str, list[str]] = {}
            for key, value in top:
                of.setdefault(key, []).append(value)
            if not of:
                continue  # a transaction that ended before its content
            found.append(
                Arrived(
                    of["Client-Addr"][0], of["Helo-Args"][0], of["Mail-Args"][0].split()[0],
                    tuple(line.split()[0] for line in of.get("Rcpt-Args", [])), text,
                )
            )  # fmt: skip
        return found

    def clients(self) -> set[str]:
        """The source address of every connection that it accepted, mail or not."""
        log = self.process.log() if self.process else ""
        return set(re.findall(r"connect \(AF_INET6? ([0-9a-f.:]+)\)", log))

    def wait(self, count: int, seconds: float = 30) -> None:
        wait_until(
            lambda: self.count() >= count, seconds,
            f"{self.name} has fewer than the {count} messages awaited",
        )  # fmt: skip


def source(
    ground: Ground, count: int, *options: str, sessions: int = 10, length: int = 2000,
    host: str = VIRTUAL, port: int = 25, timeout: float = 120, check: bool = True,
) -> int:  # fmt: skip
    """smtp-source in the peer's namespace: `count` messages, recipients numbered by -N."""
    where = f"[{host}]" if ":" in host else host
    argv = [
        os.path.join(UNPACKED, "usr/sbin/smtp-source"), "-s", str(sessions), "-m", str(count),
        "-l", str(length), "-N", "-M", "source.example.net", "-f", "sender@example.net",
        "-t", "user@example.com", *options, f"{where}:{port}",
    ]  # fmt: skip
    done = ground.inside("peer", argv, env=peer_environment(), timeout=timeout, check=check)
    return done.returncode


def swaks(ground: Ground, *options: str, namespace: str = "peer", check: bool = True) -> str:
    """swaks, one transaction; answers its transcript."""
    argv = ["swaks", "--helo", "swaks.example.net", "--timeout", "20", *options]
    return ground.inside(namespace, argv, check=check, timeout=60).stdout


class Client:
    """A blocking SMTP client on a socket of the peer's namespace."""

    def __init__(
        self,
        ground: Ground,
        host: str = VIRTUAL,
        port: int = 25,
        timeout: float = 20,
        source: str = "",
    ) -> None:
        self.socket = ground.connect("peer", host, port, timeout, source)
        self._rest = b""

    def reply(self) -> bytes:
        """One whole reply; b"" when the peer closed."""
        while True:
            lines = self._rest.split(b"\r\n")
            for index, line in enumerate(lines[:-1]):
                if line[3:4] != b"-":
                    whole = b"\r\n".join(lines[: index + 1])
                    self._rest = b"\r\n".join(lines[index + 1 :])
                    return whole
            more = self.socket.recv(65536)
            if not more:
                return b""
            self._rest += more

    def say(self, line: bytes) -> bytes:
        self.socket.sendall(line + b"\r\n")
        return self.reply()

    def hello(self) -> bytes:
        greeting = self.reply()
        if greeting.startswith(b"220"):
            self.say(b"EHLO client.example.net")
        return greeting

    def send(
        self,
        name: str,
        size: int = 2000,
        recipients: Sequence[str] = (),
        sender: str = "sender@example.net",
    ) -> bytes:
        """One message to `name@example.com`; answers the reply that decided it."""
        for line in (
            f"MAIL FROM:<{sender}>".encode(),
            *(f"RCPT TO:<{rcpt}>".encode() for rcpt in recipients or (f"{name}@example.com",)),
            b"DATA",
        ):
            answer = self.say(line)
            if answer[:1] not in b"23" or not answer:
                return answer
        head = (
            f"From: <sender@example.net>\r\nSubject: {name}\r\n"
            f"Message-ID: <{name}@client.example.net>\r\n\r\n"
        ).encode()
        filler = (b"y" * 70 + b"\r\n") * max(1, (size - len(head)) // 72)
        self.socket.sendall(head + filler + b".\r\n")
        return self.reply()

    def close(self) -> None:
        self.socket.close()


class Ledger:
    """Sessions that send until stopped, and the names of all that was answered 250.

    `offered` holds the names whose fate the client does not know: the answer never came.
    """

    def __init__(self, ground: Ground, sessions: int, prefix: str = "m", size: int = 2000) -> None:
        self._ground, self._prefix, self._size = ground, prefix, size
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.promised: set[str] = set()
        self.offered: set[str] = set()
        self.refused: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._session, args=(n,), daemon=True) for n in range(sessions)
        ]

    def start(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Ledger:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        return self

    def _session(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            client = None
            try:
                client = Client(self._ground)
                if not client.hello().startswith(b"220"):
                    raise OSError("not greeted")
                while not self._stop.is_set():
                    count += 1
                    name = f"{self._prefix}{number}-{count}"
                    with self._lock:
                        self.offered.add(name)
                    answer = client.send(name, self._size)
                    with self._lock:
                        if answer.startswith(b"250"):
                            self.promised.add(name)
                            self.offered.discard(name)
                        elif answer:
                            self.refused[answer[:40].decode("ascii", "replace")] += 1
                            self.offered.discard(name)
                    if not answer.startswith(b"250"):
                        break
            except OSError:
                pass
            finally:
                if client is not None:
                    client.close()
            self._stop.wait(0.05)

    def settle(self, sink: Sink, seconds: float) -> Counter[str]:
        """Wait until every promised message is in the sink; how often each arrived.

        @raise Broken: one was promised and never came.
        """
        ends = time.monotonic() + seconds
        while True:
            arrived = arrivals(sink)
            lost = self.promised - arrived.keys()
            if not lost:
                return arrived
            if time.monotonic() > ends:
                some = ", ".join(sorted(lost)[:5])
                raise Broken(
                    f"{len(lost)} of {len(self.promised)} promised messages never came: {some}"
                )
            time.sleep(0.2)


def arrivals(sink: Sink) -> Counter[str]:
    """How often each ledger name arrived."""
    return Counter(message.header("Subject").strip() for message in sink.messages())


def no_foreign_source(sink: Sink, allowed: set[str], helo: str) -> None:
    """Every connection that the sink saw came from one of `allowed`, every EHLO gave `helo`."""
    expect(
        sink.clients() <= allowed,
        f"{sink.name} saw connections from {sorted(sink.clients() - allowed)}",
    )
    names = {message.helo for message in sink.messages()}
    expect(names <= {helo}, f"{sink.name} was greeted by {sorted(names - {helo})}")


class CrookedServer:
    """Listens in the peer's namespace and treats every connection as `manners` says."""

    def __init__(
        self,
        ground: Ground,
        manners: Callable[[socket.socket], None],
        port: int = 25,
        host: str = PEER,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._ground = ground
        self._listener = ground.raw_socket("peer", family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(100)
        self._manners = manners
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._ground.keep(connection)
            connection.settimeout(30)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._manners(connection)
        except OSError:
            pass
        finally:
            connection.close()


class NameServer:
    """nsd with one zone, authoritative, in the peer's namespace."""

    def __init__(self, ground: Ground, zone: str, records: str, host: str = PEER) -> None:
        directory = os.path.join(ground.directory, "nsd")
        os.makedirs(directory)
        with open(os.path.join(directory, "zone"), "w", encoding="ascii") as file:
            file.write(
                f"$ORIGIN {zone}\n$TTL 60\n@ SOA ns.{zone} root.{zone} 1 60 60 60 60\n@ NS ns.{zone}\n"
            )
            file.write(records)
        configuration = os.path.join(directory, "nsd.conf")
        with open(configuration, "w", encoding="ascii") as file:
            file.write(
                f'server:\n ip-address: {host}\n username: ""\n chroot: ""\n zonesdir: "{directory}"\n'
                f' database: ""\n pidfile: ""\n zonelistfile: "{directory}/list"\n xfrdfile: "{directory}/xfrd"\n'
                f' xfrdir: "{directory}"\n server-count: 1\n hide-version: yes\n'
                "remote-control:\n control-enable: no\n"
                f'zone:\n name: "{zone}"\n zonefile: "zone"\n'
            )
        argv = [os.path.join(UNPACKED, "usr/sbin/nsd"), "-d", "-c", configuration]
        self.process = ground.start("nsd", "peer", argv, env=peer_environment())
        wait_until(
            lambda: self.process.is_running
            and any(":53 " in line for line in ground.sockets("peer", "state", "listening")),
            5, "the name server does not listen",
        )  # fmt: skip
