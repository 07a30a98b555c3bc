"""Tells systemd how the process is: ready, standing by, draining, alive (sd_notify(3)).

Law: a missing or deaf systemd never disturbs the mail; nothing here raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from mta.admin.text import neutral
from mta.admin.unixgram import UnixDatagram
from mta.interfaces import IClock, ITimer


class Notifier:
    """READY=1, STATUS=, STOPPING=1 and WATCHDOG=1. Without NOTIFY_SOCKET each call is a no-op."""

    def __init__(
        self,
        environment: Mapping[str, str],
        clock: IClock,
        *,
        pid: int | None = None,
        open_socket: Callable[[str], UnixDatagram] = UnixDatagram,
    ) -> None:
        """`environment`: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID as systemd sets them."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._socket = open_socket(path) if path[:1] in {"/", "@"} else None
        self._clock = clock
        self._timer: ITimer | None = None
        self.watchdog_seconds = _watchdog(environment, os.getpid() if pid is None else pid)

    def ready(self, status: str) -> None:
        """The virtual server is ours, or standby was reached."""
        self._send(f"READY=1\nSTATUS={neutral(status)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={neutral(text)}")

    def stopping(self, text: str = "draining") -> None:
        self._send(f"STOPPING=1\nSTATUS={neutral(text)}")

    def start_watchdog(self, seconds: float = 0.0) -> None:
        """Every `seconds` (0: half of what systemd allows) say that the reactor still turns."""
        every = seconds or self.watchdog_seconds / 2
        if every > 0 and self._socket is not None:
            self._send("WATCHDOG=1")
            self._timer = self._clock.call_later(every, self.start_watchdog, seconds)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(text.encode())
        except OSError:
            pass  # systemd is busy or gone; its own timeouts are its word on that


def _watchdog(environment: Mapping[str, str], pid: int) -> float:
    """Seconds of WatchdogSec=, 0.0 when there is none or it is meant for another process."""
    if environment.get("WATCHDOG_PID") not in {None, str(pid)}:
        return 0.0
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
