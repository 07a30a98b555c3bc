"""Whose message it is by its From field: the domain of the one address in it.

Law: what could be read in two ways is nobody's. Comments and quoted strings are passed over as the
grammar has them, so that an address inside one is none; groups, lists of addresses and routes are
refused with the reason. Time is linear in what came.

RFC 5322 3.2.2 (comments), 3.2.4 (quoted strings), 3.4 (addresses), 3.6.2 (From); RFC 6532 3.2.
"""

from __future__ import annotations

import re

from mta.wire.smtp.utf8 import a_labels

_QUOTED = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PLAIN = re.compile(rb'[^"(]+')
_IN_COMMENT = re.compile(rb"[^()\\]*")
_STOOD_QUOTED = b"q"
"""Stands for a quoted string: part of a name or of a local part, whatever it says."""
_SPECIALS = frozenset(b",;:")
_WORD = re.compile(rb"[^\x00-\x20\x7f()<>,;:\"\[\]\\@]+")
"""A local part or a domain; an address literal is no domain of anybody's."""
_UNREADABLE = "its From field names no address that can be read"


def author_domain(value: bytes) -> bytes:
    """The domain in lower case and A-labels. `value` is that of a From field, folded or not.

    @raise ValueError: it does not name exactly one address.
    """
    outside, opened, rest = _bare(value.replace(b"\r\n", b"")).partition(b"<")
    inside, closed, behind = rest.partition(b">")
    if not _SPECIALS.isdisjoint(outside) or not _SPECIALS.isdisjoint(behind):
        raise ValueError("its From field names several addresses, or a group")
    if opened and (not closed or behind.strip() or b"@" in outside):
        raise ValueError(_UNREADABLE)
    local, _, domain = (inside if opened else outside).strip(b" \t").rpartition(b"@")
    if not _WORD.fullmatch(local) or not _WORD.fullmatch(domain):
        raise ValueError(_UNREADABLE)
    return domain.lower() if domain.isascii() else a_labels(domain)


def _bare(value: bytes) -> bytes:
    """Without comments, quoted strings replaced. @raise ValueError: one does not end."""
    at, found = 0, []
    while at < len(value):
        if value[at] == 0x22:
            quoted = _QUOTED.match(value, at)
            if quoted is None:
                raise ValueError("its From field has a quoted string without an end")
            found.append(_STOOD_QUOTED)
            at = quoted.end()
        elif value[at] == 0x28:
            found.append(b" ")
            at = _past_comment(value, at)
        else:
            plain = _PLAIN.match(value, at)
            assert plain is not None  # the two others are not in front
            found.append(plain[0])
            at = plain.end()
    return b"".join(found)


def _past_comment(value: bytes, at: int) -> int:
    """Comments nest, and a backslash takes the meaning of what follows it."""
    depth = 0
    while at < len(value):
        octet = value[at]
        depth += (octet == 0x28) - (octet == 0x29)
        at += 2 if octet == 0x5C else 1
        if not depth:
            return at
        within = _IN_COMMENT.match(value, at)
        at = within.end() if within is not None else at
    raise ValueError("its From field has a comment without an end")
