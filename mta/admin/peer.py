"""Who is at the other end of a UNIX socket, by the kernel's word (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

_UCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59
"""Linux 4.13; Python's socket module does not name it."""
_MOST_GROUPS = 256
"""The most that fit: Python's getsockopt refuses a buffer of over 1024 octets."""


class Credentials(NamedTuple):
    """A process as it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def is_member(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


def credentials(transport: Any) -> Credentials:
    """Those of whoever connected `transport`, a UNIX server transport. @raise OSError."""
    connected: socket.socket = transport.socket
    pid, uid, gid = _UCRED.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    try:
        packed = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        packed = b""  # an older kernel, or more groups: the primary one has to do
    count = len(packed) // 4
    return Credentials(pid, uid, gid, frozenset(struct.unpack(f"={count}I", packed[: 4 * count])))
