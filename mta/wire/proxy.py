"""What a load balancer says before the first octet of a client: a header of the PROXY protocol.

Law: a header is whole and right, or refused by name. How it was cut into pieces changes nothing. Of
what is not yet a header at most MOST_OCTETS are held. Who may send one is not decided here.

haproxy's proxy-protocol.txt (2.x): section 2.1 (version 1, a line), 2.2 (version 2, binary), 2.2.3
(its checksum).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mta.model import IPAddress

LINE_OCTETS: Final = 107
"""Of a version 1 header with its CRLF, at most."""
BLOCK_OCTETS: Final = 4096
"""Of a version 2 header behind its first 16, at most: addresses take up to 216."""
MOST_OCTETS: Final = 16 + BLOCK_OCTETS

_LINE: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESS_OCTETS: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
_CRC32C: Final = 0x03


class Refusal(enum.Enum):
    """Why it is no header; the value goes on from "the balancer ..."."""

    ABSENT = "did not begin with a PROXY header"
    LONG_LINE = f"sent a version 1 header of over {LINE_OCTETS} octets"
    MALFORMED = "sent a malformed version 1 header"
    VERSION = "sent a binary header of another version than 2"
    COMMAND = "sent a version 2 header that is neither LOCAL nor PROXY"
    FAMILY = "sent a version 2 header for something else than TCP or a UNIX stream"
    LONG_BLOCK = f"sent a version 2 header of over {BLOCK_OCTETS} octets"
    SHORT_BLOCK = "sent a version 2 header too short for its addresses"
    VALUES = "sent a version 2 header whose values (TLV) overrun it"
    CHECKSUM = "sent a version 2 header whose CRC32C is wrong"


@dataclass(frozen=True, slots=True)
class End:
    """One end of the client's own connection."""

    host: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Header:
    """`source` is the client, `destination` where it connected to. Both are None when the
    connection stands for itself (LOCAL, UNKNOWN): the balancer asks how we are, or does not say.
    """

    source: End | None = None
    destination: End | None = None


ITSELF: Final = Header()


class HeaderReader:
    """Octets in, until one of them decides. Not to be fed after it has answered."""

    def __init__(self) -> None:
        self._octets = bytearray()
        self._length = 0

    def receive(self, data: bytes) -> Header | Refusal | None:
        """None: more is needed."""
        self._octets += data
        found = _parse(self._octets)
        if isinstance(found, tuple):
            self._length = found[1]
            return found[0]
        return found

    @property
    def rest(self) -> bytes:
        """What came behind the header: the client's."""
        return bytes(self._octets[self._length :])


_Found = tuple[Header, int] | Refusal | None
"""A header with its length."""


def _parse(octets: bytearray) -> _Found:
    if octets[:6] == _LINE[: len(octets)]:
        return _version_1(octets) if len(octets) > len(_LINE) else None
    if octets[:12] == _SIGNATURE[: len(octets)]:
        return _version_2(octets) if len(octets) > len(_SIGNATURE) else None
    return Refusal.ABSENT


# --- version 1: a line --------------------------------------------------------------------------


def _version_1(octets: bytearray) -> _Found:
    end = octets.find(b"\n", 0, LINE_OCTETS)
    if end < 0:
        return Refusal.LONG_LINE if len(octets) >= LINE_OCTETS else None
    line = bytes(octets[: end + 1])
    if line.find(b"\r") != end - 1:
        return Refusal.MALFORMED
    words = line[len(_LINE) : -2].split(b" ")
    if words[0] == b"UNKNOWN":
        return ITSELF, len(line)  # what follows must be ignored (2.1)
    kinds: dict[bytes, type[IPAddress]] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
    kind = kinds.get(words[0])
    if kind is None or len(words) != 5:
        return Refusal.MALFORMED
    try:
        source = End(_address(kind, words[1]), _port(words[3]))
        destination = End(_address(kind, words[2]), _port(words[4]))
    except ValueError:
        return Refusal.MALFORMED
    return Header(source, destination), len(line)


def _address(kind: type[IPAddress], word: bytes) -> IPAddress:
    """@raise ValueError."""
    if b"%" in word:
        raise ValueError("a scope means nothing on another machine")
    return kind(word.decode("ascii"))


def _port(word: bytes) -> int:
    """@raise ValueError."""
    if not word.isdigit() or len(word) > 5 or (word[:1] == b"0" and word != b"0"):
        raise ValueError("no port")
    port = int(word)
    if port > 0xFFFF:
        raise ValueError("no port")
    return port


# --- version 2: binary --------------------------------------------------------------------------


def _version_2(octets: bytearray) -> _Found:
    command = octets[12]
    if command >> 4 != 2:
        return Refusal.VERSION
    if command not in (_LOCAL, _PROXY):
        return Refusal.COMMAND
    if len(octets) < 16:
        return None
    family, length = struct.unpack_from("!BH", octets, 13)
    if length > BLOCK_OCTETS:
        return Refusal.LONG_BLOCK
    whole = 16 + length
    if command == _LOCAL:  # its family and its block are ignored (2.2)
        return (ITSELF, whole) if len(octets) >= whole else None
    addresses = _ADDRESS_OCTETS.get(family)
    if addresses is None:
        return Refusal.FAMILY
    if length < addresses:
        return Refusal.SHORT_BLOCK
    if len(octets) < whole:
        return None
    if family == _UNSPECIFIED:
        return ITSELF, whole
    header = bytes(octets[:whole])
    fault = _check_values(header, 16 + addresses)
    if fault is not None:
        return fault
    if family == _UNIX:
        return ITSELF, whole
    return _named(header, IPv4Address if family == _TCP4 else IPv6Address), whole


def _named(header: bytes, kind: type[IPAddress]) -> Header:
    size = 4 if kind is IPv4Address else 16
    hosts = [kind(header[at : at + size]) for at in (16, 16 + size)]
    ports = struct.unpack_from("!HH", header, 16 + 2 * size)
    return Header(End(hosts[0], ports[0]), End(hosts[1], ports[1]))


def _check_values(header: bytes, at: int) -> Refusal | None:
    """Type, length, value from `at` on: they must fit, and the checksum, if there, be right."""
    is_checked = False
    while at < len(header):
        if len(header) - at < 3:
            return Refusal.VALUES
        kind, length = struct.unpack_from("!BH", header, at)
        at += 3
        if length > len(header) - at:
            return Refusal.VALUES
        if kind == _CRC32C:
            if is_checked or length != 4:  # a second one would be work that a peer gives us
                return Refusal.CHECKSUM
            is_checked = True
            said = int.from_bytes(header[at : at + 4], "big")
            if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != said:
                return Refusal.CHECKSUM
        at += length
    return None


def crc32c(octets: bytes) -> int:
    """Castagnoli's (RFC 3720 appendix B.4), which the standard library has not."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = _TABLE[(crc ^ octet) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    made = []
    for octet in range(256):
        crc = octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        made.append(crc)
    return tuple(made)


_TABLE: Final = _table()
