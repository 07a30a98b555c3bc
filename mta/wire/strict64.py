"""Base64 as protocols have it: its alphabet alone, padded, in one line (RFC 4954 4, RFC 5802)."""

from __future__ import annotations

from base64 import b64decode


def decode(text: bytes | str) -> bytes | None:
    """None for whatever is none."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return None
