"""Packets of the mail filter protocol: four octets of length, a letter, what belongs to it.

Law: whatever a filter sends, reading ends in packets of at most MOST_OCTETS or in a
RemoteProtocolError; how it was cut into pieces changes nothing.

The protocol has no RFC: it is what libmilter speaks (Sendmail 8.14 and later, mfdef.h). Numbers are
unsigned, of four octets, the highest first; strings end in NUL.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final

from mta.errors import RemoteProtocolError

VERSION: Final = 6
OLDEST_VERSION: Final = 2

CHUNK_OCTETS: Final = 65_535
"""Of a body, in one packet: more has to be negotiated."""
MOST_OCTETS: Final = 262_144
"""Of a packet from a filter. The largest that libmilter sends is a piece of a body, 65536."""


class Command(enum.Enum):
    """What an MTA says."""

    NEGOTIATE = b"O"
    MACROS = b"D"
    CONNECT = b"C"
    HELO = b"H"
    MAIL = b"M"
    RCPT = b"R"
    DATA = b"T"
    HEADER = b"L"
    EOH = b"N"
    BODY = b"B"
    END = b"E"
    ABORT = b"A"
    QUIT = b"Q"
    UNKNOWN = b"U"


class Action(enum.IntFlag):
    """What a filter may do to a message (SMFIF_*)."""

    ADD_HEADER = 0x01
    REPLACE_BODY = 0x02
    ADD_RECIPIENT = 0x04
    DELETE_RECIPIENT = 0x08
    CHANGE_HEADER = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENT_PARAMETERS = 0x80
    NAME_MACROS = 0x100


class Step(enum.IntFlag):
    """What a filter may do without (NO_*), will not answer (MUTE_*), or wants (SMFIP_*)."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADER = 0x20
    NO_EOH = 0x40
    MUTE_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REFUSED_RCPT = 0x800
    MUTE_CONNECT = 0x1000
    MUTE_HELO = 0x2000
    MUTE_MAIL = 0x4000
    MUTE_RCPT = 0x8000
    MUTE_DATA = 0x10000
    MUTE_UNKNOWN = 0x20000
    MUTE_EOH = 0x40000
    MUTE_BODY = 0x80000
    LEADING_SPACE = 0x100000


def packet(letter: bytes, payload: bytes = b"") -> bytes:
    return b"%b%b%b" % (struct.pack(">I", len(payload) + 1), letter, payload)


def strings(texts: Iterable[bytes]) -> bytes:
    """Each with its NUL. A NUL inside one would end it early: it goes."""
    return b"".join(text.replace(b"\0", b"") + b"\0" for text in texts)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


class PacketReader:
    """Octets in, packets out."""

    __slots__ = ("_octets",)

    def __init__(self) -> None:
        self._octets = bytearray()

    def receive(self, data: bytes) -> None:
        self._octets += data

    def next_packet(self) -> tuple[bytes, bytes] | None:
        """The next packet's letter and payload; None when more octets are needed.

        @raise RemoteProtocolError: the length is none; nothing behind it can be read either.
        """
        octets = self._octets
        if len(octets) < 4:
            return None
        (length,) = struct.unpack_from(">I", octets)
        if not 1 <= length <= MOST_OCTETS:
            raise RemoteProtocolError(
                "the filter broke its protocol", f"it announces a packet of {length} octets"
            )
        if len(octets) < 4 + length:
            return None
        letter, payload = bytes(octets[4:5]), bytes(octets[5 : 4 + length])
        del octets[: 4 + length]
        return letter, payload

    @property
    def is_clean(self) -> bool:
        """Nothing is left over."""
        return not self._octets
