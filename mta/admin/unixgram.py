"""Datagrams to a UNIX socket of this machine: systemd's notify socket and /dev/log.

Law: mail never crosses it and it leaves no machine; that is why it may stand beside the doors.
Nothing is read from it, and nobody waits for it unless `send` was told to.
"""

from __future__ import annotations

import socket


class UnixDatagram:
    """A socket that sends to `path` (`@name` for an abstract one). Opened by the first `send`."""

    def __init__(self, path: str, *, may_wait: bool = False) -> None:
        """`may_wait`: for worker threads; else a full receiver is an error at once."""
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._may_wait = may_wait
        self._socket: socket.socket | None = None

    def send(self, octets: bytes) -> None:
        """One datagram. A receiver that was restarted is found again. @raise OSError."""
        try:
            self._open().send(octets)
        except (ConnectionError, FileNotFoundError):
            self.close()
            self._open().send(octets)

    def _open(self) -> socket.socket:
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                made.setblocking(self._may_wait)
                made.connect(self._address)
            except OSError:
                made.close()
                raise
            self._socket = made
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
