"""Addresses beyond ASCII: what of UTF-8 may pass, A-labels of domains, ORCPT of type utf-8.

Law: what passes is well-formed UTF-8 without control characters, line and paragraph ends, blanks
and marks that turn the direction of writing: no log, no report and no later command is broken by
it. For routing a domain is always its A-labels. Characters are never changed, only encoded.

RFC 6531 3.3 (addresses), RFC 5890 and 5891 (A-labels; capital and wide letters are mapped as UTS 46
says), RFC 6533 3 (utf-8 addresses in ORCPT and reports).
"""

from __future__ import annotations

import re
import unicodedata

AS_LETTERS = bytes(range(0x80)) + b"a" * 0x80
"""Translates the octets of UTF-8 into letters, for grammars that look at ASCII only."""

_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp", "Zs"))
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")


def check_text(octets: bytes) -> str:
    """As text. @raise ValueError: it is no UTF-8, or holds what nobody can see."""
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the address is not well-formed UTF-8") from None
    for character in text:
        if character > "\x7f" and (
            character in _TURNING
            or unicodedata.category(character) in _UNSEEN
            or ord(character) & 0xFFFE == 0xFFFE
        ):
            raise ValueError("the address holds a character that cannot be seen")
    return text


def a_labels(domain: bytes) -> bytes:
    """A domain with U-labels as A-labels in lower case. @raise ValueError."""
    import idna  # 20 ms and 1 MiB that many nodes never need

    try:
        return idna.encode(domain.decode("utf-8"), uts46=True)
    except (idna.IDNAError, UnicodeError):
        raise ValueError("the domain is not a valid internationalized one") from None


# --- addresses of type utf-8 (RFC 6533 3) -------------------------------------------------------


def is_utf8_type(address_type: bytes) -> bool:
    return address_type.lower() == b"utf-8"


def decode_utf8_address(encoded: bytes) -> bytes:
    r"""Any of its three forms: raw, with `\x{...}` for some characters, or for all beyond ASCII.

    @raise ValueError.
    """
    text = check_text(encoded)
    if "\\" in text:
        plain = _EMBEDDED.sub(_character, text)
        if "\\" in _EMBEDDED.sub("", text):
            raise ValueError("a backslash begins \\x{...}")
        text = plain
    octets = text.encode()
    check_text(octets)
    if not text or any(octet < 0x20 or octet == 0x7F for octet in octets):
        raise ValueError("the address holds a character that cannot be seen")
    return octets


def _character(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        raise ValueError("no such character")
    return chr(number)


def encode_utf8_address(octets: bytes) -> bytes:
    r"""The form that every peer takes: printable ASCII, all else as `\x{...}`."""
    return b"".join(
        character.encode()
        if "!" <= character <= "~" and character not in "+=\\"
        else b"\\x{%X}" % ord(character)
        for character in octets.decode("utf-8", "replace")
    )
