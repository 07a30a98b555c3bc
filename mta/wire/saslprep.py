"""Names and passwords brought into the one form in which they are compared: SASLprep.

Law: two spellings that look the same become the same octets; what nobody can type, see or tell
apart is refused, never dropped in silence. The text itself is in no error.

RFC 4013 (the profile), RFC 3454 (stringprep, Unicode 3.2), RFC 5802 2.2 and 5.1 (who is which).
"""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
"""RFC 4013 2.3."""


def prepare(text: str, *, is_query: bool = False) -> str:
    """`text` in its SASLprep form, which may be empty.

    A password is a stored string (RFC 5802 2.2): characters that Unicode 3.2 does not have are
    refused. A name that is looked up `is_query` (RFC 5802 5.1): they pass as they are.

    @raise ValueError: it holds a character that is not allowed; the words do not repeat it.
    """
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for character in prepared:
        if any(holds(character) for holds in _PROHIBITED):
            raise ValueError("a character that cannot be typed or seen is not allowed")
        if not is_query and stringprep.in_table_a1(character):
            raise ValueError("a character that Unicode 3.2 does not have is not allowed")
    _check_direction(prepared)
    return prepared


def _check_direction(prepared: str) -> None:
    """RFC 3454 section 6. @raise ValueError."""
    if not any(stringprep.in_table_d1(character) for character in prepared):
        return
    if any(stringprep.in_table_d2(character) for character in prepared):
        raise ValueError("characters of both directions of writing are not allowed together")
    if not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])):
        raise ValueError("a text from right to left begins and ends with such a character")
