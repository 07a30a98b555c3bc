"""In which form content that came as it is lies in the store, and what it is sent on as.

Law: it is stored as it came. RFC 3030 3 (BINARYMIME), RFC 5321 4.5.2 (wire form).
"""

from __future__ import annotations

from mta.model import BodyType, ContentForm
from mta.wire.mime.texts import TextScan


def as_it_is(text: TextScan, declared: BodyType) -> tuple[BodyType, ContentForm]:
    """What came by BDAT. Text without a dot at the start of a line is its own wire form; what is no
    text travels as BINARYMIME, whatever it was declared to be.
    """
    text.finish()
    if not text.is_text or declared is BodyType.BINARY_MIME:
        return BodyType.BINARY_MIME, ContentForm.OPAQUE
    return declared, ContentForm.DOT_STUFFED if text.is_wire_form else ContentForm.OPAQUE
