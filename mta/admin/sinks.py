"""Where log lines go: a file descriptor, a file that can be reopened, /dev/log.

Law: `write` blocks, so it runs on a worker thread; it raises OSError when a line was not written,
and the observer counts that. Each target is opened by the first write, after any fork.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mta.admin.unixgram import UnixDatagram

SYSLOG = "/dev/log"
PACEMAKER = "MTA_PACEMAKER_INSTANCE"
"""Set by etc/ocf/mta, which keeps standard error for what is said when a start is refused."""
DATAGRAM_OCTETS = 8192
"""rsyslog's default for one message; longer ones are cut by it anyway."""


class Sink(Protocol):
    """A target of lines."""

    wants_syslog: bool
    """Lines begin with a priority and lack the host."""

    def write(self, lines: Sequence[str]) -> None:
        """Write each line. @raise OSError."""
        ...

    def reopen(self) -> None:
        """Take what lies behind the same name now, with the next write."""
        ...

    def close(self) -> None: ...


class DescriptorSink:
    """Standard output or error of the process."""

    wants_syslog = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, lines: Sequence[str]) -> None:
        write_all(self._descriptor, _joined(lines))

    def reopen(self) -> None:
        """There is nothing to reopen."""

    def close(self) -> None:
        """It is not ours to close."""


class FileSink:
    """A file that grows; whoever rotates it renames it and sends SIGUSR1."""

    wants_syslog = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._stale = False

    def write(self, lines: Sequence[str]) -> None:
        if self._stale:
            self.close()
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o640)
        write_all(self._descriptor, _joined(lines))

    def reopen(self) -> None:
        self._stale = True

    def close(self) -> None:
        self._stale = False
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class SyslogSink:
    """One datagram a line to /dev/log (RFC 3164 as the C library writes it)."""

    wants_syslog = True

    def __init__(
        self, path: str = SYSLOG, open_socket: Callable[[str], UnixDatagram] | None = None
    ) -> None:
        make = open_socket or (lambda where: UnixDatagram(where, may_wait=True))
        self._socket = make(path)

    def write(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._socket.send(line.encode("utf-8", "backslashreplace")[:DATAGRAM_OCTETS])

    def reopen(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


def sink_for(target: str, environment: Mapping[str, str]) -> Sink:
    """The sink that `log: {to: ...}` names; `auto` is decided by how the process was started."""
    if target == "auto":
        target = automatic_target(environment)
    if target == "stderr":
        return DescriptorSink(2)
    if target == "stdout":
        return DescriptorSink(1)
    if target == "syslog":
        return SyslogSink()
    return FileSink(target)


def automatic_target(environment: Mapping[str, str]) -> str:
    """syslog when standard error is the journal's (its own fields are lost on a plain stream) or
    leads nowhere (a daemon) or into the small file of Pacemaker's agent, and /dev/log is there;
    else stderr.
    """
    try:
        error = os.fstat(2)
    except OSError:
        return "syslog"
    leads_nowhere = stat.S_ISCHR(error.st_mode) and error.st_rdev == os.makedev(1, 3)
    is_journal = environment.get("JOURNAL_STREAM") == f"{error.st_dev}:{error.st_ino}"
    is_kept_small = is_journal or PACEMAKER in environment
    if leads_nowhere or (is_kept_small and os.path.exists(SYSLOG)):
        return "syslog"
    return "stderr"


def deaf_syslog(target: str, *, is_daemon: bool, path: str = SYSLOG) -> str:
    """A warning for whoever starts the MTA, while there is a terminal to show it; "" when all is
    well. Not a refusal: syslog may come later, and mail does not depend on it.
    """
    if os.path.exists(path) or not (target == "syslog" or (target == "auto" and is_daemon)):
        return ""
    return (
        f"the log goes to syslog, but {path} is missing: lines are lost until it is there "
        "(name a file in log.to, or run twistd -n)"
    )


def write_all(descriptor: int, octets: bytes) -> None:
    """os.write until all is written."""
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


def _joined(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace") if lines else b""
