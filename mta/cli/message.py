"""A message as a program wrote it to sendmail's standard input, made fit for SMTP.

Law: the body is passed on octet by octet but for its line ends (LF becomes CRLF, RFC 5321 2.3.8)
and doubled dots (4.5.2). Of the header, Bcc goes, and Date, Message-ID and From are added where
they are missing (RFC 6409 8), nothing else. Over 1 MiB a message waits in a temporary file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import IO

from mta.cli.addresses import mailboxes
from mta.cli.output import CommandFailed

IN_MEMORY = 1 << 20
HEADER_OCTETS = 1 << 20
"""Header blocks beyond this are nobody's; what follows is body."""
CHUNK = 64 * 1024

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DROPPED = frozenset((b"bcc", b"resent-bcc", b"return-path", b"content-length"))
"""What must not travel: secret recipients, and what only a final delivery or an mbox may add."""


class Message:
    """Header fields (each with its folded lines, LF ends) and where the body begins."""

    def __init__(self, content: IO[bytes]) -> None:
        """`content` is seekable and holds the whole message."""
        self._content = content
        self.fields: list[tuple[bytes, bytes]] = []
        """(name in lower case, whole field ending in LF), in order."""
        self._body_at = 0
        self._separator = b""
        self._read_header()
        self.is_seven_bit, self.size_octets = self._measured()

    def recipients(self) -> list[bytes]:
        """Whom To, Cc and Bcc name; the Resent- fields where there are any (RFC 5322 3.6.6).

        @raise CommandFailed: 65, a field holds something that is no address.
        """
        resent = any(name.startswith(b"resent-") for name, _ in self.fields)
        wanted = (b"to", b"cc", b"bcc")
        if resent:
            wanted = (b"resent-to", b"resent-cc", b"resent-bcc")
        found: dict[bytes, None] = {}
        for name, field in self.fields:
            if name in wanted:
                try:
                    found.update(dict.fromkeys(mailboxes(field.partition(b":")[2])))
                except ValueError as error:
                    what = f"{name.decode('ascii').title()}: {error}"
                    raise CommandFailed(os.EX_DATAERR, what) from None
        return list(found)

    def wire(self, sender: bytes, full_name: str, network_name: str) -> Iterator[bytes]:
        """Everything between 354 and the final dot line, dots doubled, ending in CRLF."""
        head = b"".join(field for name, field in self.fields if name not in _DROPPED)
        head += self._missing(sender, full_name, network_name)
        return stuffed(lines_ended(self._pieces(head)))

    def _missing(self, sender: bytes, full_name: str, network_name: str) -> bytes:
        have = {name for name, _ in self.fields}
        made = b""
        if b"from" not in have:
            address = sender or b"MAILER-DAEMON@" + network_name.encode()
            made += b"From: " + _phrase(full_name) + address + (b">\n" if full_name else b"\n")
        if b"date" not in have:
            made += b"Date: " + date(time.time()).encode() + b"\n"
        if b"message-id" not in have:
            unique = f"{time.time_ns():x}.{os.getpid()}.{os.urandom(6).hex()}"
            made += f"Message-ID: <{unique}@{network_name}>\n".encode()
        return made

    def _pieces(self, head: bytes) -> Iterator[bytes]:
        yield head + self._separator
        self._content.seek(self._body_at)
        while piece := self._content.read(CHUNK):
            yield piece

    def _read_header(self) -> None:
        """Collect the fields. The header ends at an empty line, or before the first line that can
        be no header: then an empty line is put there, for what follows is body.
        """
        self._content.seek(0)
        at, field = 0, b""
        self._separator = b"\n"
        while True:
            line = self._content.readline(CHUNK)
            # A lone CR would end a line on the wire and so begin a field that nobody wrote.
            ended = line.rstrip(b"\r\n").replace(b"\r", b" ") + b"\n"
            if at == 0 and line.startswith((b"From ", b">From ")):
                at += len(line)  # the envelope line of an mbox
                continue
            is_folded = bool(field) and line[:1] in {b" ", b"\t"}
            start = None if is_folded else _FIELD.match(line)
            if not is_folded:
                self._keep(field)
                field = b""
            if not line or at > HEADER_OCTETS or not (is_folded or start):
                break
            field += ended
            at += len(line)
        if line.rstrip(b"\r\n") == b"" and line:
            at += len(line)
        self._body_at = at

    def _keep(self, field: bytes) -> None:
        start = _FIELD.match(field)
        if start is not None:
            self.fields.append((start[1].lower(), field))

    def _measured(self) -> tuple[bool, int]:
        """Whether all octets are ASCII, and about how long the wire form is (RFC 1870)."""
        self._content.seek(0)
        is_seven_bit, octets = True, 512
        while piece := self._content.read(CHUNK):
            is_seven_bit = is_seven_bit and piece.isascii()
            octets += len(piece) + piece.count(b"\n")
        return is_seven_bit, octets


def read(stream: IO[bytes], *, dot_ends: bool) -> Message:
    """All of `stream`; with `dot_ends` a line of one dot ends it as well (no -i)."""
    from tempfile import SpooledTemporaryFile

    kept = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # lives as long as Message
    if not dot_ends:
        while piece := stream.read(CHUNK):
            kept.write(piece)
        return Message(kept)
    at_start = True
    while line := stream.readline(CHUNK):
        if at_start and line in {b".\n", b".\r\n", b"."}:
            break
        kept.write(line)
        at_start = line.endswith(b"\n")
    return Message(kept)


def lines_ended(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Every LF, CRLF and lone CR becomes CRLF; the last line gets an end. SMTP has no way to carry
    a lone CR or LF, and a server that sees one may take it for a smuggled message.
    """
    carried, last = False, b"\n"
    for piece in pieces:
        if carried:
            piece = b"\r" + piece  # noqa: PLW2901
        carried = piece.endswith(b"\r")
        if carried:
            piece = piece[:-1]  # noqa: PLW2901
        if piece:
            last = piece[-1:]
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901
                last = piece[-1:]
            yield piece.replace(b"\n", b"\r\n")
    if carried or last != b"\n":
        yield b"\r\n"


def stuffed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A dot at the start of a line becomes two (RFC 5321 4.5.2). Pieces have CRLF line ends."""
    at_start = True
    for piece in pieces:
        if piece:
            doubled = piece.replace(b"\n.", b"\n..")
            yield b"." + doubled if at_start and piece[:1] == b"." else doubled
            at_start = piece.endswith(b"\n")


def date(wall: float) -> str:
    """RFC 5322 3.3, in the local zone, in English whatever the locale."""
    t = time.localtime(wall)
    sign, offset = ("-", -t.tm_gmtoff) if t.tm_gmtoff < 0 else ("+", t.tm_gmtoff)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} {sign}{offset // 3600:02d}"
        f"{offset // 60 % 60:02d}"
    )


def encoded(text: str) -> bytes:
    """An unstructured header value: as it is in ASCII, else encoded words (RFC 2047 2), folded."""
    if text.isascii() and text.isprintable():
        return text.encode()
    from base64 import b64encode

    words, chunk = [], ""
    for character in text:
        if len((chunk + character).encode()) > _ENCODED_OCTETS:
            words.append(chunk)
            chunk = ""
        chunk += character
    return b"\n ".join(b"=?utf-8?b?" + b64encode(w.encode()) + b"?=" for w in [*words, chunk])


_ENCODED_OCTETS = 42
"""Octets of text that fill an encoded word of at most 75 characters (RFC 2047 2)."""


def _phrase(name: str) -> bytes:
    """A display name before `<`, b"" for none."""
    if not name:
        return b""
    if name.isascii() and name.isprintable():
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <'.encode()
    return encoded(name) + b" <"
