"""Makes foreign text fit for a line that a person or a parser reads.

Law: what comes out of here holds no control byte, no ESC, no line end, no invisible formatting
character (bidirectional overrides, U+2028) and no more than its limit (house.md law 9).
"""

from __future__ import annotations

LINE_LIMIT = 1000
"""Characters of one foreign text in one line; Postfix cuts at about the same length."""


def neutral(value: bytes | str, limit: int = LINE_LIMIT) -> str:
    r"""`value` as one line: what is not printable becomes `\xNN` or `\uNNNN`."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if text.isprintable() and len(text) <= limit:
        return text
    return _neutralise(text, limit)


def mailbox(value: bytes | str, limit: int = LINE_LIMIT) -> str:
    r"""An address between `<` and `>`: angle brackets inside it would end the field early for
    whoever parses the line, so they become `\x3c` and `\x3e`.
    """
    text = neutral(value, limit)
    if "<" in text or ">" in text:
        return text.replace("<", r"\x3c").replace(">", r"\x3e")
    return text


def _neutralise(text: str, limit: int) -> str:
    cut = text[:limit]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else _escaped(c) for c in cut)
    return cut + "..." if len(text) > limit else cut


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
