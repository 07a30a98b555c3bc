"""Sockets of paper: the real doors and Twisted's real transports, without a kernel.

Law: only what transports call exists here; each call is kept in `calls` in its order, so that a
test can say what was set before the bind and how a socket was closed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any


class PaperSocket:
    """One socket. `inbox` is what recv gives, `sent` what send took."""

    def __init__(self, kernel: PaperKernel, family: int, kind: int) -> None:
        self.kernel = kernel
        self.family = family
        self.type = kind
        self.calls: list[tuple[Any, ...]] = []
        self.options: dict[tuple[int, int], Any] = {}
        self.inbox: list[bytes] = []
        self.sent = bytearray()
        self.is_closed = False
        self.bound: tuple[Any, ...] | None = None
        self.peer: tuple[Any, ...] | None = None
        self.waiting: list[PaperSocket] = []
        self.send_limit: int | None = None
        self.connect_result = errno.EINPROGRESS
        self._number = kernel.next_number()

    # what transports call
    def fileno(self) -> int:
        return -1 if self.is_closed else self._number

    def setblocking(self, flag: bool) -> None:
        self.calls.append(("setblocking", bool(flag)))

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self._open()
        self.calls.append(("setsockopt", level, name, value))
        self.options[level, name] = value

    def getsockopt(self, level: int, name: int) -> int:
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self.kernel.connect_error if self.connect_result else 0
        return int(self.options.get((level, name), 0))

    def bind(self, address: tuple[Any, ...]) -> None:
        self._open()
        self.calls.append(("bind", *address[:2]))
        fault = self.kernel.bind_errors.get(address[0])
        if fault:
            raise OSError(fault, os.strerror(fault))
        self.bound = address

    def listen(self, backlog: int) -> None:
        self.calls.append(("listen", backlog))

    def connect_ex(self, address: tuple[Any, ...]) -> int:
        self._open()
        self.calls.append(("connect", *address[:2]))
        self.peer = address
        return self.connect_result

    def getsockname(self) -> tuple[Any, ...]:
        self._open()
        given = self.kernel.source or (self.bound or ("0.0.0.0", 0))[0]
        port = (self.bound or ("", 0))[1] or 40_001
        return (given, port, 0, 0) if ":" in given else (given, port)

    def getpeername(self) -> tuple[Any, ...]:
        assert self.peer is not None
        return self.peer

    def accept(self) -> tuple[PaperSocket, tuple[Any, ...]]:
        self._open()
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "nobody waits")
        taken = self.waiting.pop(0)
        taken.options = dict(self.options)  # Linux: a child inherits its listener's options
        taken.bound = self.bound
        return taken, taken.getpeername()

    def recv(self, octets: int) -> bytes:
        self._open()
        if not self.inbox:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        data = self.inbox.pop(0)
        if len(data) > octets:
            self.inbox.insert(0, data[octets:])
        return data[:octets]

    def send(self, data: Any) -> int:
        self._open()
        if self.send_limit is not None:
            data = data[: self.send_limit]
            self.send_limit -= len(data)
        if not len(data):
            raise BlockingIOError(errno.EAGAIN, "full")
        self.sent += bytes(data)
        self.calls.append(("send", len(data)))
        return len(data)

    def shutdown(self, how: int) -> None:
        self._open()
        self.calls.append(("shutdown", how))

    def close(self) -> None:
        if not self.is_closed:
            self.calls.append(("close",))
            self.is_closed = True

    def _open(self) -> None:
        if self.is_closed:
            raise OSError(errno.EBADF, "Bad file descriptor")

    # what tests ask
    @property
    def closes_with_reset(self) -> bool:
        """SO_LINGER is (1, 0) now."""
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER), b"")
        return bool(linger == struct.pack("ii", 1, 0))

    def index(self, *call: Any) -> int:
        """Where the first call that begins so stands. @raise ValueError: it was not made."""
        for place, made in enumerate(self.calls):
            if made[: len(call)] == call:
                return place
        raise ValueError(f"{call} was not called: {self.calls}")


class PaperKernel:
    """Makes PaperSockets. `source` is what getsockname says whatever was bound; `bind_errors` maps
    an address to the errno of its bind; `connect_error` is what SO_ERROR says later.
    """

    def __init__(self) -> None:
        self.sockets: list[PaperSocket] = []
        self.source: str | None = None
        self.bind_errors: dict[str, int] = {}
        self.connect_error = 0
        self._last = 1000

    def next_number(self) -> int:
        self._last += 1
        return self._last

    def make(self, family: int, kind: int) -> Any:
        made = PaperSocket(self, family, kind)
        self.sockets.append(made)
        return made

    def arrive(self, listening: PaperSocket, host: str = "198.51.100.7", port: int = 4321) -> Any:
        """A far end connects to a listening socket."""
        taken = PaperSocket(self, listening.family, listening.type)
        taken.peer = (host, port, 0, 0) if ":" in host else (host, port)
        listening.waiting.append(taken)
        return taken
