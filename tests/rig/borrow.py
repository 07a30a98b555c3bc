"""Another process's sockets, to be asked for their options: pidfd_getfd(2) duplicates them."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator

_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


def borrowed(pid: int) -> Iterator[socket.socket]:
    """Each socket of the process as one of ours; the caller closes it. Its end there is its end."""
    process = os.pidfd_open(pid)
    try:
        for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                continue
            fd = _libc.syscall(_PIDFD_GETFD, process, number, 0)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            yield socket.socket(fileno=fd)
    finally:
        os.close(process)
