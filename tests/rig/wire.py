"""A witness on each node's cable: every packet of mail that left a node from a wrong address.

Law: it stands outside the node, on the switch's side of its cable, and sees what the node sent
whether or not the switch carries it on. It asks no firewall and no program: a raw socket of the
rig's own, with a filter in the kernel that lets through only what may be wrong. Needs CAP_NET_RAW
in the rig's namespace, which also an unprivileged one has.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_TCP = 6
_SYN, _ACK = 0x02, 0x10
_MAIL_PORTS = {25, 2525}
_FRAME_OCTETS = 200
"""Enough for every header; what is behind it is cut off."""

# Instructions of the classic packet filter (linux/filter.h).
_LD_WORD, _LD_HALF, _LD_OCTET, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_PACKET_TYPE = 0xFFFFF000 + 4
"""SKF_AD_OFF + SKF_AD_PKTTYPE: where the filter reads whether a frame came or goes."""
_OUTGOING = 4
"""linux/if_packet.h: towards the node, since we stand at the other end of its cable."""


class Wrong(NamedTuple):
    """A packet for or from a mail port with a source that is no virtual address."""

    node: str
    source: str
    source_port: int
    destination: str
    destination_port: int

    def __str__(self) -> str:
        return (
            f"{self.source}:{self.source_port} -> {self.destination}:{self.destination_port}"
            f" from node {self.node}"
        )


class Wire:
    """Listens on the cables of `nodes` (interfaces v<node> of this namespace) from now on."""

    def __init__(self, nodes: tuple[str, ...], virtual: str, virtual6: str) -> None:
        self.wrong: list[Wrong] = []
        self._sockets: dict[str, socket.socket] = {}
        program = _program(virtual, virtual6)
        for node in nodes:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.setblocking(False)
            _attach(made, program)
            made.bind((f"v{node}", _ETH_P_ALL))
            self._sockets[node] = made

    def look(self) -> list[Wrong]:
        """All that was wrong up to now."""
        for node, made in self._sockets.items():
            # A cable that was pulled is told once as an error; what came before it is still there.
            while True:
                try:
                    frame = made.recv(_FRAME_OCTETS)
                except BlockingIOError:
                    break
                except OSError:
                    continue
                self._judge(node, frame)
        return self.wrong

    def _judge(self, node: str, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x00":
            source, destination = frame[26:30], frame[30:34]
            at = 14 + 4 * (frame[14] & 15)
        else:
            source, destination = frame[22:38], frame[38:54]
            at = 54
        source_port, destination_port = struct.unpack_from("!HH", frame, at)
        flags = frame[at + 13]
        # As the rig's packet filter counts: what goes to a mail port, and what accepts at one. The
        # kernel's own RST refuses, it accepts not.
        accepts = source_port in _MAIL_PORTS and flags & (_SYN | _ACK) == _SYN | _ACK
        if destination_port in _MAIL_PORTS or accepts:
            self.wrong.append(
                Wrong(
                    node,
                    str(ip_address(source)),
                    source_port,
                    str(ip_address(destination)),
                    destination_port,
                )
            )

    def reset(self) -> None:
        """Forget what was wrong on purpose."""
        self.look()
        self.wrong.clear()

    def close(self) -> None:
        for made in self._sockets.values():
            with contextlib.suppress(OSError):
                made.close()


def _program(virtual: str, virtual6: str) -> bytes:
    """Pass TCP that comes from the node with another source than the virtual addresses."""
    (v4,) = struct.unpack("!I", ip_address(virtual).packed)
    v6 = struct.unpack("!4I", ip_address(virtual6).packed)
    drop, take = 19, 20
    lines: list[tuple[int, int, int, int]] = [  # code, value, next line if equal, if not
        (_LD_WORD, _PACKET_TYPE, 1, 1),
        (_JUMP_EQUAL, _OUTGOING, drop, 2),
        (_LD_HALF, 12, 3, 3),  # 2: the Ethernet type
        (_JUMP_EQUAL, 0x0800, 4, 8),
        (_LD_OCTET, 23, 5, 5),  # 4: IPv4
        (_JUMP_EQUAL, _TCP, 6, drop),
        (_LD_WORD, 26, 7, 7),
        (_JUMP_EQUAL, v4, drop, take),
        (_JUMP_EQUAL, 0x86DD, 9, drop),  # 8: IPv6
        (_LD_OCTET, 20, 10, 10),
        (_JUMP_EQUAL, _TCP, 11, drop),
    ]
    for word in range(4):
        at = len(lines)
        lines.append((_LD_WORD, 22 + 4 * word, at + 1, at + 1))
        lines.append((_JUMP_EQUAL, v6[word], at + 2 if word < 3 else drop, take))
    assert len(lines) == drop
    lines += [(_RETURN, 0, 0, 0), (_RETURN, _FRAME_OCTETS, 0, 0)]
    packed = b""
    for number, (code, value, yes, no) in enumerate(lines):
        jumps = (yes - number - 1, no - number - 1) if code == _JUMP_EQUAL else (0, 0)
        packed += struct.pack("=HBBI", code, *jumps, value)
    return packed


def _attach(made: socket.socket, program: bytes) -> None:
    kept = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
