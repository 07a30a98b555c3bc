"""Header fields as octets: how one that we write looks, and a block with some of them changed.

Law: what is written here cannot break out of its own lines, and what is not changed stays as it is,
octet for octet. RFC 5322 2.2 (fields), 2.2.3 (folding), RFC 5321 4.5.2 (dots).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mta.errors import LocalProtocolError

FIELD_NAME = re.compile(rb"(?!\.)[!-9;-~]+")
"""Of a field that we write: one that began with a dot would have to be stuffed."""
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_CONTROLS = bytes(i for i in range(32) if i != 9) + b"\x7f"
_VISIBLE = bytes.maketrans(_CONTROLS, b"?" * len(_CONTROLS))

FieldChange = tuple[bytes, int, bytes]
"""A field's name, the how manieth of that name from 1 on, and its new value; b"": it goes."""


def field_text(name: bytes, value: bytes) -> bytes:
    """The whole field with its CRLF. A value over several lines is folded, as it stands where its
    author did so; control octets become "?". @raise ValueError: no field name.
    """
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a header field's name (RFC 5322 2.2)")
    first, *others = [line for line in _LINE_END.split(value) if line.strip()] or [b""]
    lines = [first.strip(), *map(_folded, others)]
    return name + b": " + b"\r\n".join(line.translate(_VISIBLE) for line in lines) + b"\r\n"


def _folded(line: bytes) -> bytes:
    """A line that continues a field. Whoever folded it himself may have signed how he did."""
    return line.rstrip() if line[:1] in (b" ", b"\t") else b"\t" + line.strip()


def changed_fields(block: bytes, changes: Sequence[FieldChange]) -> tuple[bytes, bytes]:
    """`block` with all of `changes`, and the fields to be added, whose number there was none of.

    Numbers count the fields as they stood before, so one that goes moves no other (as Sendmail has
    it). @raise ValueError: no field name.
    """
    at, texts, names = 0, [], []
    while found := _FIELD.match(block, at):
        texts.append(found[0])
        names.append(found[1].lower())
        at = found.end()
    added = b""
    for name, number, value in changes:
        text = field_text(name, value) if value.strip() else b""
        same = [i for i, known in enumerate(names) if known == name.lower()]
        at_least_first = max(number, 1)
        if at_least_first <= len(same):
            texts[same[at_least_first - 1]] = text
        else:
            added += text
    return b"".join(texts) + block[at:], added


def fields_of(block: bytes) -> bytes:
    """What of it is header: all before the first line that is no field."""
    at = 0
    while found := _FIELD.match(block, at):
        at = found.end()
    return block[:at]


def without_field(block: bytes, name: bytes) -> tuple[bytes, list[bytes]]:
    """`block` without the fields of that `name` (in lower case), and their values as they stand."""
    at, kept, values = 0, [], []
    while found := _FIELD.match(block, at):
        if found[1].lower() == name:
            values.append(found[0].partition(b":")[2])
        else:
            kept.append(found[0])
        at = found.end()
    return b"".join(kept) + block[at:], values


def must_be_editable(can_change: bool) -> None:
    """@raise LocalProtocolError: it is in the store already."""
    if not can_change:
        raise LocalProtocolError(
            "this message's content cannot be changed any more",
            "it was stored as it came",
            "a policy that changes it provides IContentEditor, and asks header_can_change or"
            " body_can_change first",
        )
