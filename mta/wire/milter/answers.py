"""What a filter answers: how it decides, and what it wants changed.

Law: an answer is well formed, or a RemoteProtocolError says what is wrong with it. No text of a
filter that peers or logs will see leaves this module with a control octet in it.

Sendmail's mfdef.h (SMFIR_*); RFC 5321 4.2 and RFC 3463 for replies.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import Final

from mta.errors import RemoteProtocolError
from mta.model import Reply
from mta.wire.fields import FIELD_NAME
from mta.wire.milter.packets import Action
from mta.wire.text import neutralise_ascii, printable


class Decision(enum.Enum):
    """How a filter decides about a command or a message."""

    CONTINUE = b"c"
    ACCEPT = b"a"
    REJECT = b"r"
    TRY_LATER = b"t"
    REPLY = b"y"
    DISCARD = b"d"
    SHUT_DOWN = b"4"
    SKIP = b"s"
    """Enough of these: no more header fields, say, or no more of the body."""
    PROGRESS = b"p"
    """None yet: the filter needs more time."""
    FAIL = b"f"
    """None at all: the filter gives up."""


@dataclass(frozen=True, slots=True)
class AddField:
    """`index` counts from the top of the header; None: wherever fields are added. `value` is as it
    will stand behind the colon, its lines divided by LF.
    """

    name: bytes
    value: bytes
    index: int | None = None


@dataclass(frozen=True, slots=True)
class ChangeField:
    """The field of that name and number, from 1 on, gets the value; b"": it goes."""

    name: bytes
    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """`address` without brackets; b"" is the null reverse-path. `parameters` as behind MAIL."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """`parameters` as behind RCPT."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    address: bytes


@dataclass(frozen=True, slots=True)
class Quarantine:
    """`reason` is neutralised."""

    reason: str


Change = AddField | ChangeField | ChangeSender | AddRecipient | DeleteRecipient | Quarantine

NEEDS: Final = {
    b"h": Action.ADD_HEADER,
    b"i": Action.ADD_HEADER,
    b"m": Action.CHANGE_HEADER,
    b"b": Action.REPLACE_BODY,
    b"+": Action.ADD_RECIPIENT,
    b"2": Action.ADD_RECIPIENT_PARAMETERS,
    b"-": Action.DELETE_RECIPIENT,
    b"e": Action.CHANGE_SENDER,
    b"q": Action.QUARANTINE,
}
"""The letters of changes, and what must have been negotiated for each."""

REJECTED: Final = Reply(550, "5.7.1", (b"Command rejected",))
NOT_NOW: Final = Reply(451, "4.7.1", (b"Service unavailable, try again later",))
CLOSING: Final = Reply(421, "4.7.0", (b"Closing the connection, try again later",))

_REPLY_LINES: Final = 32
"""As many as libmilter takes (smfi_setmlreply)."""
_LINE_OCTETS: Final = 480
"""Of text in one line of a reply: with its codes under RFC 5321's 512."""
_REPLY_LINE = re.compile(rb"([45][0-9][0-9])(?:[ -](.*))?", re.DOTALL)
_ENHANCED = re.compile(rb"([45]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ ]+|$)")
_LINE_END = re.compile(rb"\r?\n")


def parse_reply(payload: bytes) -> Reply:
    """`550 5.7.1 No\\0`, or several such lines divided by CRLF. @raise RemoteProtocolError."""
    text, nul, _ = payload.partition(b"\0")
    code, enhanced = b"", b""
    lines: list[bytes] = []
    for line in _LINE_END.split(text.rstrip(b"\r\n")):
        found = _REPLY_LINE.fullmatch(line)
        if not nul or found is None or (code and found[1] != code) or len(lines) == _REPLY_LINES:
            raise _broken("a reply that is none", text)
        code, words = found[1], found[2] or b""
        prefix = _ENHANCED.match(words)
        if prefix is not None:
            words = words[prefix.end() :]
            if prefix[1][:1] == code[:1]:
                enhanced = enhanced or prefix[1]
        # Filters double a % for Sendmail, which prints these words by a format.
        lines.append(neutralise_ascii(words.replace(b"%%", b"%"), _LINE_OCTETS))
    return Reply(int(code), enhanced.decode(), tuple(lines))


def parse_change(letter: bytes, payload: bytes) -> Change:
    """What one of the letters of NEEDS asks for. @raise RemoteProtocolError: it is malformed, or
    one of those that nobody can have negotiated.
    """
    if letter == b"h":
        name, value = _texts(payload, 2)
        return AddField(_field_name(name), value)
    if letter in (b"i", b"m"):
        if len(payload) < 4:
            raise _broken("a field without its place", payload)
        name, value = _texts(payload[4:], 2)
        (number,) = struct.unpack_from(">I", payload)
        if letter == b"m":
            return ChangeField(_field_name(name), number, value)
        return AddField(_field_name(name), value, number)
    if letter == b"+":
        return AddRecipient(_address(*_texts(payload, 1)))
    if letter == b"-":
        return DeleteRecipient(_address(*_texts(payload, 1)))
    if letter in (b"2", b"e"):
        address, *others = _texts(payload, 2 if payload.count(b"\0") > 1 else 1)
        kind = AddRecipient if letter == b"2" else ChangeSender
        return kind(_address(address), *others)
    if letter == b"q":
        return Quarantine(printable(_texts(payload, 1)[0]))
    raise _broken("a change that is not carried out", letter + payload)


def _texts(payload: bytes, count: int) -> list[bytes]:
    if payload.count(b"\0") != count or not payload.endswith(b"\0"):
        raise _broken(f"a change that has not {count} strings", payload)
    return payload.split(b"\0")[:-1]


def _field_name(name: bytes) -> bytes:
    if not FIELD_NAME.fullmatch(name):
        raise _broken("a header field without a name", name)
    return name


def _address(text: bytes) -> bytes:
    address = text.strip(b" ")
    if address.startswith(b"<") and address.endswith(b">"):
        address = address[1:-1]
    return address


def _broken(what: str, said: bytes) -> RemoteProtocolError:
    shown = printable(said[:80])
    return RemoteProtocolError("the filter broke its protocol", f"it sent {what}: {shown}")
