"""Takes the mailboxes out of an address list as To, Cc and Bcc fields have it.

Law: an address that is not understood is an error, never a guess: mail to a guessed address is
worse than no mail. Phrases, comments, groups and source routes are dropped (RFC 5322 3.4, 4.4).
"""

from __future__ import annotations

import enum

ADDRESS_OCTETS = 320
"""64 of the local part, @, 255 of the domain (RFC 5321 4.5.3.1)."""


class _In(enum.Enum):
    TEXT = "text"
    QUOTED = "a quoted string"
    COMMENT = "a comment"
    ANGLE = "angle brackets"
    ANGLE_QUOTED = "a quoted string in angle brackets"
    LITERAL = "an address literal"


_BLANK = b" \t\r\n"


class _Word:
    """Octets of a candidate; blanks are allowed around `.` and `@` only (obs-local-part)."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.is_phrase = False
        self._gap = False

    def blank(self) -> None:
        self._gap = bool(self.octets)

    def add(self, octet: int) -> None:
        if self._gap and octet not in b".@" and self.octets[-1] not in b".@":
            self.is_phrase = True
        self._gap = False
        self.octets.append(octet)


def mailboxes(value: bytes) -> list[bytes]:
    """The addresses of `value`, without angle brackets, in order.

    @raise ValueError: something in it is no address; the text says what.
    """
    found: list[bytes] = []
    state, depth, back = _In.TEXT, 0, _In.TEXT
    word, angle = _Word(), _Word()
    has_angle = escaped = False

    def finish() -> None:
        nonlocal word, angle, has_angle
        chosen = angle if has_angle else word
        text = bytes(chosen.octets)
        if has_angle and text.startswith(b"@"):
            text = text.partition(b":")[2]
        if text or has_angle:
            found.append(_checked(text, chosen.is_phrase))
        word, angle, has_angle = _Word(), _Word(), False

    for octet in value:
        target = angle if state in {_In.ANGLE, _In.ANGLE_QUOTED} or back is _In.ANGLE else word
        if escaped:
            escaped = False
            if state is not _In.COMMENT:
                target.add(octet)
        elif octet == 0x5C and state in {_In.QUOTED, _In.ANGLE_QUOTED, _In.COMMENT}:
            escaped = True
            if state is not _In.COMMENT:
                target.add(octet)
        elif state is _In.COMMENT:
            depth += (octet == 0x28) - (octet == 0x29)
            if depth == 0:
                state, back = back, _In.TEXT
                (angle if state is _In.ANGLE else word).blank()
        elif state in {_In.QUOTED, _In.ANGLE_QUOTED}:
            target.add(octet)
            if octet == 0x22:
                state = _In.ANGLE if state is _In.ANGLE_QUOTED else _In.TEXT
        elif state is _In.LITERAL:
            target.add(octet)
            if octet == 0x5D:
                state, back = back, _In.TEXT
        elif octet == 0x5C:
            raise ValueError("a backslash outside a quoted string")
        elif octet == 0x28:
            state, back, depth = _In.COMMENT, state, 1
        elif octet in _BLANK:
            target.blank()
        elif octet == 0x22:
            target.add(octet)
            state = _In.ANGLE_QUOTED if state is _In.ANGLE else _In.QUOTED
        elif octet == 0x5B:
            target.add(octet)
            state, back = _In.LITERAL, state
        elif state is _In.ANGLE:
            if octet == 0x3E:
                state = _In.TEXT
            else:
                angle.add(octet)
        elif octet == 0x3C:
            if has_angle:
                raise ValueError("two addresses in angle brackets without a comma between them")
            state, has_angle = _In.ANGLE, True
        elif octet in b",;":
            finish()
        elif octet == 0x3A:
            if has_angle:
                raise ValueError("a colon after an address")
            word = _Word()  # a group's name
        elif has_angle:
            raise ValueError("text behind an address in angle brackets")
        else:
            word.add(octet)
    if state is not _In.TEXT or escaped:
        raise ValueError(f"{state.value} has no end")
    finish()
    return found


def _checked(text: bytes, is_phrase: bool) -> bytes:
    shown = text.decode("utf-8", "backslashreplace")
    if not text:
        raise ValueError("an address is empty")
    if is_phrase:
        raise ValueError(f"{shown!r} is no address: its parts are separated by blanks")
    if len(text) > ADDRESS_OCTETS:
        raise ValueError(f"{shown[:40]!r}... is longer than {ADDRESS_OCTETS} octets")
    if any(octet < 0x20 or octet == 0x7F for octet in text):
        raise ValueError(f"{shown!r} holds a control character")
    local, at, domain = text.rpartition(b"@")
    if at and (not local or not domain or domain[-1:] == b"." or local[-1:] == b"@"):
        raise ValueError(f"{shown!r} is no address")
    if not local.startswith(b'"') and (b"<" in text or b">" in text):
        raise ValueError(f"{shown!r} is no address")
    return text
