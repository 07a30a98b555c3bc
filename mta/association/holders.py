"""Who holds a TCP port: what an operator is told when ours is busy.

Law: it only reads /proc, as far as this user may; what it cannot see it says so, and never guesses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from mta.model import IPAddress

LISTEN = "0A"
"""The state column of /proc/net/tcp for a listening socket."""


@dataclass(frozen=True, slots=True)
class Listening:
    """One line of /proc/net/tcp or tcp6 whose socket listens."""

    address: IPAddress
    port: int
    uid: int
    inode: int


def parse_proc_net(lines: Iterable[str]) -> Iterator[Listening]:
    """The listening sockets of a /proc/net/tcp{,6} table; lines that are none are passed over.

    The address is hexadecimal in words of this machine's byte order, the port in network order.
    """
    for line in lines:
        fields = line.split()
        if len(fields) < 10 or fields[3] != LISTEN:
            continue
        try:
            words, port = fields[1].split(":")
            raw = b"".join(
                struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8)
            )
            address: IPAddress = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
            yield Listening(address, int(port, 16), int(fields[7]), int(fields[9]))
        except (ValueError, struct.error):
            continue


def blame(address: IPAddress, port: int, proc: str = "/proc") -> str:
    """Who listens where `address:port` would go: "pid 812 (master), uid 0", or what is unknown."""
    try:
        found = _listening(address, port, proc)
    except OSError as fault:
        return (
            "a process that cannot be named, because "
            f"{fault.filename} is not readable: {fault.strerror}"
        )
    if not found:
        return "a process that has not begun to listen, or has just ended"
    return _named(found[0], port, proc)


def listener_at(address: IPAddress, port: int, proc: str = "/proc") -> str:
    """Who would keep us from listening at `address:port`, whether the address is here or not; ""
    when nobody is seen. A listener on [::] that also takes IPv4 is not seen at an IPv4 address:
    the table does not tell it from one that does not.
    """
    try:
        found = _listening(address, port, proc)
    except OSError:
        return ""
    return _named(found[0], port, proc) if found else ""


def _listening(address: IPAddress, port: int, proc: str) -> list[Listening]:
    """@raise OSError: the table is not readable."""
    table = f"{proc}/net/tcp{'6' if address.version == 6 else ''}"
    with open(table, encoding="ascii") as lines:
        return [
            entry
            for entry in parse_proc_net(lines)
            if entry.port == port and (entry.address == address or entry.address.is_unspecified)
        ]


def _named(holder: Listening, port: int, proc: str) -> str:
    for pid, command in _owners(holder.inode, proc):
        return f"pid {pid} ({command}) on {holder.address}, uid {holder.uid}"
    return (
        f"a process of uid {holder.uid} on {holder.address}; "
        f"as root, `ss -tlnp sport = :{port}` names it"
    )


def _owners(inode: int, proc: str) -> Iterator[tuple[int, str]]:
    wanted = f"socket:[{inode}]"
    for pid in sorted((int(name) for name in os.listdir(proc) if name.isdigit()), reverse=True):
        try:
            descriptors = os.listdir(f"{proc}/{pid}/fd")
        except OSError:
            continue  # another user's, or gone
        for descriptor in descriptors:
            try:
                if os.readlink(f"{proc}/{pid}/fd/{descriptor}") == wanted:
                    yield pid, _command(pid, proc)
                    break
            except OSError:
                continue


def _command(pid: int, proc: str) -> str:
    """The command's name; what a process calls itself is foreign text."""
    try:
        with open(f"{proc}/{pid}/comm", "rb") as comm:
            name = comm.read(64).strip()
    except OSError:
        return "?"
    return "".join(chr(octet) if 32 <= octet < 127 else "?" for octet in name)
