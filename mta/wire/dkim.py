"""DKIM as octets: what of a message is signed, its canonical form, and the field that says so.

Law: pure, and how a body is cut into pieces changes nothing. Only fields that are there are signed,
each from the bottom up. A field that a message has once at most is named once more than it stands
there, so that nobody can put a second one above it; one that is absent is not named, for whoever
passes the message on may have to add it. Keys are not known here.

RFC 6376 3.4.2 and 3.4.4 (relaxed), 3.5 (the field), 3.7 (hashes), 5.4 (which fields), 5.4.2
(several of a name); RFC 8463 3 (Ed25519: whoever signs hashes `Draft.signed` first); RFC 8058 4
(List-Unsubscribe is signed).
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256

from mta.wire.smtp.content import Unstuffer

SIGNED = (
    *(b"From", b"To", b"Cc", b"Subject", b"Date", b"Message-ID", b"Reply-To", b"In-Reply-To"),
    *(b"References", b"MIME-Version", b"Content-Type", b"Content-Transfer-Encoding"),
)
"""Fields that a message has once (RFC 5322 3.6, RFC 2045)."""
SIGNED_AS_FOUND = (
    *(b"List-Id", b"List-Help", b"List-Unsubscribe", b"List-Unsubscribe-Post"),
    *(b"List-Subscribe", b"List-Post", b"List-Owner", b"List-Archive"),
)
"""Of a list, which may come behind us and add its own: not sealed against a second one."""
LINE_OCTETS = 72
"""What the field's lines keep to where they can be folded (RFC 5322 2.1.1: 78)."""

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)")
_SPACE = re.compile(rb"[ \t]+")
_PAIRS = re.compile(rb"(?:\n\r)*")
_LINE_ENDS = b"\r\n" * 16_384


@dataclass(frozen=True, slots=True)
class Field:
    """`name` in lower case; `value` as it stands, with its folding and the CRLF at its end."""

    name: bytes
    value: bytes


def parse_fields(block: bytes) -> tuple[Field, ...]:
    """`block` is a header, each line with its CRLF, dots unstuffed. @raise ValueError."""
    at, found = 0, []
    while at < len(block):
        field = _FIELD.match(block, at)
        if field is None:
            raise ValueError("its header has a line that is no field")
        found.append(Field(field[1].lower(), field[2]))
        at = field.end()
    return tuple(found)


def relaxed(name: bytes, value: bytes) -> bytes:
    """One field in relaxed form, with its CRLF (RFC 6376 3.4.2)."""
    unfolded = _SPACE.sub(b" ", value.replace(b"\r\n", b"")).strip(b" ")
    return b"%b:%b\r\n" % (name.lower(), unfolded)


def names_to_sign(fields: tuple[Field, ...]) -> tuple[bytes, ...]:
    """What h= names, in its order."""
    counts: dict[bytes, int] = {}
    for field in fields:
        counts[field.name] = counts.get(field.name, 0) + 1
    names: list[bytes] = []
    for name in SIGNED:
        if count := counts.get(name.lower(), 0):
            names += [name] * (count + 1)
    for name in SIGNED_AS_FOUND:
        names += [name] * counts.get(name.lower(), 0)
    return tuple(names)


def signed_header(fields: tuple[Field, ...], names: tuple[bytes, ...]) -> bytes:
    """The fields that h= names, relaxed: of several the lowest first (RFC 6376 5.4.2)."""
    left: dict[bytes, list[bytes]] = {}
    for field in fields:
        left.setdefault(field.name, []).append(field.value)
    found = []
    for name in names:
        values = left.get(name.lower())
        if values:
            found.append(relaxed(name, values.pop()))
    return b"".join(found)


class BodyHash:
    """SHA-256 of a body in relaxed form (RFC 6376 3.4.4). Feed it pieces, then `finish`.

    `is_stuffed`: the pieces are SMTP wire form. Empty lines are counted, not kept, until something
    follows them: memory is bounded whatever comes.
    """

    __slots__ = ("_empty_lines", "_hash", "_is_empty", "_tail", "_unstuffer")

    def __init__(self, is_stuffed: bool) -> None:
        self._hash = sha256()
        self._unstuffer = Unstuffer() if is_stuffed else None
        self._tail = b""
        """A space, a CR, or both, whose meaning the next octet decides."""
        self._empty_lines = 0
        """Line ends behind the last octet that was hashed."""
        self._is_empty = True

    def take(self, piece: bytes) -> None:
        self._take(piece if self._unstuffer is None else self._unstuffer.take(piece))

    def finish(self) -> bytes:
        """The 32 octets. An empty body is hashed as nothing, every other one ends in a CRLF."""
        if self._unstuffer is not None:
            self._take(self._unstuffer.finish())
        if self._tail.endswith(b"\r"):
            self._update(self._tail)
        if not self._is_empty:
            self._hash.update(b"\r\n")
        return self._hash.digest()

    def _take(self, piece: bytes) -> None:
        if not piece:
            return
        data = (self._tail + piece).replace(b"\t", b" ")
        while b"  " in data:  # each turn halves the runs: many times faster than an expression
            data = data.replace(b"  ", b" ")
        end = len(data) - data.endswith(b"\r")
        end -= data.endswith(b" ", 0, end)
        self._tail = data[end:]
        data = data[:end].replace(b" \r\n", b"\r\n")
        # The line ends at its end, looked at from behind: one look however many there are.
        bare = len(data.rstrip(b"\r\n"))
        pairs = _PAIRS.match(data[bare:][::-1])
        count = 0 if pairs is None else pairs.end() // 2
        if len(data) > 2 * count:
            self._update(data[: len(data) - 2 * count])
        self._empty_lines += count

    def _update(self, data: bytes) -> None:
        while self._empty_lines:
            octets = min(2 * self._empty_lines, len(_LINE_ENDS))
            self._hash.update(_LINE_ENDS[:octets])
            self._empty_lines -= octets // 2
        self._hash.update(data)
        self._is_empty = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A DKIM-Signature that lacks only its signature. `signed` is what the key signs."""

    signed: bytes
    value: bytes
    """The field's value up to b=, folded."""

    def finished(self, signature: bytes) -> bytes:
        """The field's value, lines joined by CRLF and a tab, without a CRLF at its end."""
        text = b64encode(signature)
        pieces = [text[i : i + LINE_OCTETS] for i in range(0, len(text), LINE_OCTETS)]
        return b"\r\n\t".join([self.value, *pieces])


def draft(
    *,
    algorithm: bytes,
    domain: bytes,
    selector: bytes,
    moment: int,
    fields: tuple[Field, ...],
    body_hash: bytes,
) -> Draft:
    """`algorithm` is a=, `domain` d= and `selector` s= in A-labels, `moment` t= (seconds, 1970)."""
    names = names_to_sign(fields)
    lines = [
        b"v=1; a=%b; c=relaxed/relaxed; t=%d;" % (algorithm, moment),
        b"d=%b; s=%b;" % (domain, selector),
        *_folded(names),
        b"bh=%b;" % b64encode(body_hash),
        b"b=",
    ]
    value = b"\r\n\t".join(lines)
    # The field itself comes last, with an empty b= and without its CRLF (RFC 6376 3.7).
    own = relaxed(b"DKIM-Signature", value).removesuffix(b"\r\n")
    return Draft(signed_header(fields, names) + own, value)


def _folded(names: tuple[bytes, ...]) -> list[bytes]:
    """h=, folded behind its colons."""
    lines, line = [], b"h="
    for name in names:
        if len(line) + len(name) >= LINE_OCTETS:
            lines.append(line)
            line = b""
        line += name + b":"
    return [*lines, line[:-1] + b";"]
