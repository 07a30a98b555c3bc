"""A header block as filters hear it: field by field.

Law: fields come in their order, each whole, until a line that is no field; what follows is, to
everybody who reads the message by RFC 5322, its body. Nothing is left out.

RFC 5322 2.2 (fields), 2.2.3 (folding).
"""

from __future__ import annotations

import re

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n\0]*\r\n(?:[ \t][^\r\n\0]*\r\n)*)")

Fields = tuple[tuple[bytes, bytes], ...]


def split_header(block: bytes, leading_space: bool) -> tuple[Fields, bytes]:
    """`block` has each line with its CRLF, dots unstuffed, without the empty line behind it.

    Answers names with values, whose lines are divided by LF as filters expect it, and what is no
    header any more. `leading_space`: values begin right behind the colon; else a blank there goes.
    """
    at, fields = 0, []
    while at < len(block):
        found = _FIELD.match(block, at)
        if found is None:
            break
        value = found[2][:-2].replace(b"\r\n", b"\n")
        fields.append((found[1], value if leading_space else value.removeprefix(b" ")))
        at = found.end()
    return tuple(fields), block[at:]
