"""What a peer says, made harmless for logs, terminals and reports.

Law: no control octet, no ESC, no CR or LF, no broken UTF-8 and no invisible character passes.
Whoever keeps foreign text keeps what these functions answer, never the raw octets.
"""

from __future__ import annotations

_PRINTABLE = bytes(range(0x20, 0x7F))


def neutralise(raw: bytes, limit: int = 1000) -> bytes:
    """Printable text of at most `limit` octets: everything else becomes `?`.

    Well-formed UTF-8 stays if every character can be printed (this leaves out C1 controls and the
    characters that turn the direction of writing); a tab becomes a blank.
    """
    if not raw.translate(None, _PRINTABLE):
        return raw if len(raw) <= limit else raw[:limit]
    text = raw[:limit].replace(b"\t", b" ").decode("utf-8", "replace")
    clean = "".join(
        c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "?" for c in text
    )
    return clean.encode()[:limit].decode("utf-8", "ignore").encode()


def neutralise_ascii(raw: bytes, limit: int = 1000) -> bytes:
    """Like `neutralise`, for places that carry 7 bits only: no octet above 126 is left."""
    if not raw.translate(None, _PRINTABLE):
        return raw if len(raw) <= limit else raw[:limit]
    text = neutralise(raw, limit).decode("utf-8")
    return text.encode("ascii", "replace")


def printable(raw: bytes) -> str:
    """`neutralise` for names that are `str` from here on (log fields, error texts)."""
    return neutralise(raw).decode("utf-8")
