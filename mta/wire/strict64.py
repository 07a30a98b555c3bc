"""Base64 as protocols have it: its alphabet alone, padded, in one line (RFC 4954 4, RFC 5802)."""

from __future__ import annotations

from base64 import b64decode


def decode(text: bytes | str) -> bytes | None:
    """None for whatever is none."""
    octets = text.encode("ascii", "replace") if isinstance(text, str) else text
    if len(octets) % 4 or octets.endswith(b"==="):
        return None  # the library takes b"user=" and b"user====" for b"user"
    try:
        return b64decode(octets, validate=True)
    except ValueError:
        return None
