"""What a sender asks of reports: the parameters NOTIFY, ORCPT, RET and ENVID, both ways.

Law: what passes here is printable ASCII in the form in which it travels (xtext stays xtext), so
that an envelope can hand it on octet by octet. A wish that was not said is not said on.

RFC 3461 4.1 (NOTIFY), 4.2 (ORCPT), 4.3 (RET), 4.4 (ENVID), 5.2.1 (what is handed on).
"""

from __future__ import annotations

import re

from mta.model import Envelope, Notify, Recipient
from mta.wire.smtp.grammar import Checks, Refused, decode_xtext
from mta.wire.smtp.utf8 import decode_utf8_address, encode_utf8_address, is_utf8_type

ENVID_LIMIT = 100
"""Characters of an ENVID in its wire form (RFC 3461 4.4)."""
ORCPT_LIMIT = 500
"""Characters of an ORCPT in its wire form (RFC 3461 4.2)."""

_WORDS = {f.name.encode(): f for f in Notify if f.name}
_ADDRESS_TYPE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_VISIBLE = bytes(range(0x20, 0x7F))


def notify_of(value: bytes | None) -> Notify:
    """What a NOTIFY says. @raise ValueError: it is none."""
    found = Notify.UNSET
    for word in (value or b"").upper().split(b","):
        flag = _WORDS.get(word)
        if flag is None:
            raise ValueError("an unknown word")
        found |= flag
    if found & Notify.NEVER and found is not Notify.NEVER:
        raise ValueError("NEVER beside another word")
    return found


def check_notify(value: bytes | None) -> bytes | None:
    """RFC 3461 4.1: NEVER alone, or any of the others."""
    try:
        return b",".join(word for word, flag in _WORDS.items() if flag & notify_of(value))
    except ValueError:
        text = b"NOTIFY is NEVER, or some of SUCCESS,FAILURE,DELAY"
        raise Refused(501, "5.5.4", text) from None


def check_orcpt(value: bytes | None) -> bytes | None:
    """RFC 3461 4.2: `address-type;xtext`, of printable characters. An address of type utf-8 may
    come raw behind SMTPUTF8; it is kept in the form that every peer takes (RFC 6533 3).
    """
    kind, semicolon, address = (value or b"").partition(b";")
    if is_utf8_type(kind):
        try:
            value = b"utf-8;" + encode_utf8_address(decode_utf8_address(address))
        except ValueError as error:
            raise Refused(501, "5.5.4", b"ORCPT: " + str(error).encode()) from None
    elif not semicolon or not address or not _ADDRESS_TYPE.fullmatch(kind) or _hides(address):
        raise Refused(501, "5.5.4", b"ORCPT takes an address type, a semicolon and xtext")
    if value is not None and len(value) > ORCPT_LIMIT:
        raise Refused(501, "5.5.4", b"ORCPT has more than 500 characters")
    return value


def check_ret(value: bytes | None) -> bytes | None:
    """RFC 3461 4.3: FULL or HDRS."""
    upper = value.upper() if value is not None else None
    if upper not in (b"FULL", b"HDRS"):
        raise Refused(501, "5.5.4", b"RET is FULL or HDRS")
    return upper


def check_envid(value: bytes | None) -> bytes | None:
    """RFC 3461 4.4: xtext of printable characters."""
    if not value or _hides(value):
        raise Refused(501, "5.5.4", b"ENVID takes xtext")
    if len(value) > ENVID_LIMIT:
        raise Refused(501, "5.5.4", b"ENVID has more than 100 characters")
    return value


def _hides(xtext: bytes) -> bool:
    """It is no xtext, or something in it could not stand in a report (RFC 3461 4.2, 4.4)."""
    try:
        return bool(decode_xtext(xtext).translate(None, _VISIBLE))
    except ValueError:
        return True


NOTIFICATION_MAIL: Checks = {b"RET": check_ret, b"ENVID": check_envid}
NOTIFICATION_RCPT: Checks = {b"NOTIFY": check_notify, b"ORCPT": check_orcpt}


# --- to a peer that offers DSN ------------------------------------------------------------------


def asks(envelope: Envelope) -> bool:
    """Its sender said something of reports."""
    if envelope.envelope_id or envelope.ret_full is not None:
        return True
    for recipient in envelope.recipients:  # noqa: SIM110 - any() costs a generator a message
        if recipient.notify or recipient.original:
            return True
    return False


def mail_words(envelope: Envelope) -> bytes:
    """What goes behind MAIL FROM:<...>, with a blank before each."""
    words = b""
    if envelope.ret_full is not None:
        words = b" RET=FULL" if envelope.ret_full else b" RET=HDRS"
    if envelope.envelope_id:
        words += b" ENVID=" + envelope.envelope_id
    return words


def rcpt_words(recipient: Recipient, tells_delay: bool = False) -> bytes:
    """What goes behind RCPT TO:<...>, with a blank before each. With `tells_delay` the sender is to
    hear of a delay unless he wants to hear nothing (RFC 2852 4.1.4.2 over RFC 3461 5.2.1 c).
    """
    words, notify = b"", recipient.notify
    if tells_delay and not notify & Notify.NEVER:
        notify = (notify or Notify.FAILURE) | Notify.DELAY
    if notify:
        flags = [word for word, flag in _WORDS.items() if flag & notify]
        words = b" NOTIFY=" + b",".join(flags)
    if recipient.original:
        words += b" ORCPT=" + recipient.original
    return words
