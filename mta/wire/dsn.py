"""Delivery status notifications: facts about recipients become a multipart/report.

Law: pure; the same facts give the same octets. The answer is SMTP wire form (CRLF, dots stuffed,
without the final dot line), 7-bit, no line above 998 octets, whatever peers and senders wrote. One
field may hold UTF-8: the To of a report to an internationalized address. Parts that need UTF-8 are
encoded, so that such a report asks no more of its way than its recipient does.

RFC 3462 (multipart/report, text/rfc822-headers), RFC 3464 (message/delivery-status), RFC 3461 6
(which action is which), RFC 6533 (message/global-...), RFC 2852 5 (Deliver-By-Date), RFC 3834
(Auto-Submitted), RFC 5321 4.5.2 (transparency).
"""

from __future__ import annotations

import enum
import zlib
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate

from mta.wire.mime.encodings import QuotedPrintable
from mta.wire.smtp.content import unstuffed
from mta.wire.smtp.grammar import decode_xtext, encode_xtext
from mta.wire.smtp.utf8 import decode_utf8_address, encode_utf8_address, is_utf8_type
from mta.wire.text import neutralise, neutralise_ascii

_FOLD = 76
"""Octets of a line of ours; RFC 5322 2.1.1 wishes 78."""
_LINE_LIMIT = 990
_ORIGINAL_LIMIT = 64 * 1024
"""Octets of the original's header block that are returned."""
FULL_LIMIT = 1024 * 1024
"""Octets of a message that is returned whole to a sender who asked for it (RET=FULL)."""


class Action(enum.Enum):
    """RFC 3464 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """What is reported of one recipient.

    `final` is the mailbox; `original` is ORCPT as it came (`rfc822;xtext`); `status` is "5.1.1";
    `remote_mta` a host name or an IP address, "" when none was reached; `diagnostic` the reply as
    one line ("550 5.1.1 no such user"), or our own words with `is_local`. Times are wall-clock.
    """

    final: bytes
    action: Action
    status: str
    original: bytes = b""
    remote_mta: str = ""
    diagnostic: str = ""
    is_local: bool = False
    last_attempt: float | None = None
    retry_until: float | None = None


_SUBJECTS = {
    Action.FAILED: "Undelivered mail returned to sender",
    Action.DELAYED: "Delayed mail (still being tried)",
    Action.DELIVERED: "Mail was delivered",
    Action.RELAYED: "Mail was relayed",
    Action.EXPANDED: "Mail was sent on to a list",
}
_OPENINGS = {
    Action.FAILED: (
        "Your message could not be delivered to the recipients below and will not be tried",
        "again for them. Recipients who are not named here are not concerned.",
    ),
    Action.DELAYED: (
        "Your message could not be delivered to the recipients below so far. This is a",
        "warning only: it stays in the queue and is tried again. You need not send it again.",
    ),
    Action.DELIVERED: ("Your message was delivered to the recipients below.",),
    Action.RELAYED: (
        "Your message was handed to the servers below, which do not send further reports.",
    ),
    Action.EXPANDED: ("Your message was sent on to the members of the lists below.",),
}


def build_report(
    *,
    reporting_mta: str,
    report_id: str,
    to: bytes,
    recipients: Sequence[RecipientStatus],
    date: float,
    arrival: float,
    postmaster: bytes = b"",
    envelope_id: bytes = b"",
    original: bytes = b"",
    is_stuffed: bool = True,
    is_full: bool = False,
    sender: bytes | None = None,
    is_utf8: bool = False,
    deliver_by: float | None = None,
    remark: str | None = None,
) -> bytes:
    """The report as content in SMTP wire form.

    `reporting_mta` is the network name (also of From and Message-ID), `report_id` the report's own
    queue id. `to` is who gets it, in the To field. `date` and `arrival` (of the original) are wall
    seconds. `original` is the original's header block, in wire form if it `is_stuffed`, with
    `is_full` the whole message (returned whole only if it is 7-bit and under 1 MiB; else its
    headers). `sender` is the original's, when the report goes to somebody else (a postmaster's
    copy, a double bounce).
    `deliver_by` is the time that the original's sender gave (RFC 2852); `remark`, on what was
    relayed, stands in place of the usual one, which is that nobody will report any more.
    The kind of the report is the action of the first recipient. `is_utf8`: the original travelled
    with SMTPUTF8 for the sake of its header, which is returned as it is.
    """
    if is_stuffed:
        original = unstuffed(original)
    kind = recipients[0].action
    name = reporting_mta.encode()
    boundary = _boundary(report_id, original)
    is_global = _is_global(original, is_utf8, [to, sender or b"", *_addresses(recipients)])
    clean = neutralise if is_global else neutralise_ascii
    is_plain = original.isascii() or (is_utf8 and _is_utf8(original.partition(b"\r\n\r\n")[0]))
    returns_all = is_full and is_plain and b"\0" not in original and len(original) <= FULL_LIMIT
    lines = [
        b"Date: " + _date(date),
        b"From: Mail Delivery System <MAILER-DAEMON@%b>" % name,
        b"To: <%b>" % clean(to, 320),
        b"Subject: " + _SUBJECTS[kind].encode(),
        b"Message-ID: <%b@%b>" % (report_id.encode(), name),
        b"Auto-Submitted: " + (b"auto-generated" if kind is Action.DELAYED else b"auto-replied"),
        b"MIME-Version: 1.0",
        b"Content-Type: multipart/report; report-type=delivery-status;",
        b'\tboundary="%b"' % boundary,
        b"",
        b"This is a MIME message that reports the status of a delivery.",
        b"",
        b"--" + boundary,
        b"Content-Description: Notification",
        *_part(
            _words(
                kind,
                reporting_mta,
                recipients,
                postmaster,
                sender,
                clean=clean,
                deliver_by=deliver_by,
                remark=remark,
            ),
            b"text/plain; charset=us-ascii",
            b"text/plain; charset=utf-8",
        ),
        b"",
        b"--" + boundary,
        b"Content-Description: Delivery report",
    ]
    fields = _message_fields(name, envelope_id, arrival, deliver_by)
    for recipient in recipients:
        fields += [b"", *_recipient_fields(recipient, clean)]
    lines += _part(fields, b"message/delivery-status", b"message/global-delivery-status")
    lines.append(b"")
    if original:
        lines += [b"--" + boundary, b"Content-Description: The message itself"]
        if returns_all and original.isascii():
            lines += [b"Content-Type: message/rfc822", b"", *_lines(original, FULL_LIMIT, clean)]
        elif returns_all:
            lines += [b"Content-Type: message/global", b"Content-Transfer-Encoding: base64", b""]
            lines += [
                b2a_base64(original[i : i + 57], newline=False) for i in range(0, len(original), 57)
            ]
        else:
            head = _lines(original.partition(b"\r\n\r\n")[0], _ORIGINAL_LIMIT, clean)
            lines += _part(head, b"text/rfc822-headers", b"message/global-headers")
        lines.append(b"")
    lines += [b"--%b--" % boundary, b""]
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


def original_recipient(address: bytes) -> bytes:
    """The ORCPT of an address that a message came for, and that we replaced (RFC 3461 5.2.7)."""
    if not address.isascii():
        encoded = encode_utf8_address(address)
        try:
            if decode_utf8_address(encoded) == address:
                return b"utf-8;" + encoded
        except ValueError:
            pass  # no address that a peer could have said
    return b"rfc822;" + encode_xtext(address)


def decoded_original(original: bytes) -> bytes:
    """An ORCPT for people: `type;address`."""
    kind, semicolon, address = original.partition(b";")
    if is_utf8_type(kind):
        try:
            return kind + b";" + decode_utf8_address(address)
        except ValueError:
            return original
    return kind + b";" + _decoded(address) if semicolon else b"rfc822;" + kind


# --- the parts --------------------------------------------------------------------------------


def _words(
    kind: Action,
    reporting_mta: str,
    recipients: Sequence[RecipientStatus],
    postmaster: bytes,
    sender: bytes | None,
    *,
    clean: Clean,
    deliver_by: float | None = None,
    remark: str | None = None,
) -> list[bytes]:
    """The part for people."""
    words = [f"This is the mail system at host {reporting_mta}.".encode(), b""]
    if sender is not None:
        shown = clean(sender, 320)
        words += [b"The message was sent by <%b>." % shown, b""]
    if remark is None:
        words += [line.encode() for line in _OPENINGS[kind]]
    else:
        words += [b"Your message was handed to the servers below.", remark.encode()]
    if deliver_by is not None:
        words.append(b"It was to be delivered by " + _date(deliver_by))
    if postmaster:
        words.append(b"For help, write to <%b>." % neutralise_ascii(postmaster, 320))
    for recipient in recipients:
        words += [b"", b"<%b>" % clean(recipient.final, 320)]
        if recipient.diagnostic:
            said = "" if recipient.is_local or not recipient.remote_mta else "host "
            said += f"{recipient.remote_mta} said: " if said else ""
            words += _folded(b"    ", (said + recipient.diagnostic).encode(), b"    ", clean)
        if recipient.retry_until is not None:
            words.append(b"    It is tried until " + _date(recipient.retry_until))
    return words


def _message_fields(
    name: bytes, envelope_id: bytes, arrival: float, deliver_by: float | None
) -> list[bytes]:
    """RFC 3464 2.2, RFC 2852 5."""
    fields = []
    if envelope_id:
        fields += _folded(b"Original-Envelope-Id: ", _decoded(envelope_id))
    fields.append(b"Reporting-MTA: dns; " + name)
    fields.append(b"Arrival-Date: " + _date(arrival))
    if deliver_by is not None:
        fields.append(b"Deliver-By-Date: " + _date(deliver_by))
    return fields


def _recipient_fields(recipient: RecipientStatus, clean: Clean) -> list[bytes]:
    """RFC 3464 2.3, RFC 6533 3."""
    fields = []
    if recipient.original:
        original = decoded_original(recipient.original)
        fields += _folded(b"Original-Recipient: ", original, clean=clean)
    kind = b"rfc822; " if recipient.final.isascii() or clean is neutralise_ascii else b"utf-8; "
    fields += _folded(b"Final-Recipient: ", kind + recipient.final, clean=clean)
    fields.append(b"Action: " + recipient.action.value.encode())
    fields += _folded(b"Status: ", (recipient.status or _status(recipient.action)).encode())
    if recipient.remote_mta:
        host = recipient.remote_mta.encode()
        is_address = b":" in host or host.replace(b".", b"").isdigit()
        fields += _folded(b"Remote-MTA: dns; ", b"[%b]" % host if is_address else host)
    if recipient.diagnostic:
        kind_of_code = b"x-local" if recipient.is_local else b"smtp"
        said = recipient.diagnostic.encode()
        fields += _folded(b"Diagnostic-Code: %b; " % kind_of_code, said, clean=clean)
    if recipient.last_attempt is not None:
        fields.append(b"Last-Attempt-Date: " + _date(recipient.last_attempt))
    if recipient.retry_until is not None and recipient.action is Action.DELAYED:
        fields.append(b"Will-Retry-Until: " + _date(recipient.retry_until))
    return fields


def _status(action: Action) -> str:
    return {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(action, "2.0.0")


# --- octets -----------------------------------------------------------------------------------


Clean = Callable[[bytes, int], bytes]
"""Makes foreign text harmless: `neutralise`, or `neutralise_ascii` where no UTF-8 may stand."""


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _addresses(recipients: Sequence[RecipientStatus]) -> list[bytes]:
    found = []
    for recipient in recipients:
        found += [recipient.final, decoded_original(recipient.original)]
    return found


def _is_global(original: bytes, is_utf8: bool, addresses: Sequence[bytes]) -> bool:
    """The report speaks UTF-8 where it must: RFC 6533 leaves all others as they were."""
    if is_utf8 and not original.isascii():
        return True
    return any(not address.isascii() and _is_utf8(address) for address in addresses)


def _part(lines: Sequence[bytes], content_type: bytes, in_utf8: bytes) -> list[bytes]:
    """The head of a part and its lines, encoded and of the other type if they hold UTF-8."""
    body = b"\r\n".join(lines)
    if body.isascii():
        return [b"Content-Type: " + content_type, b"", *lines]
    encoder = QuotedPrintable()
    encoded = (encoder.feed(body) + encoder.finish()).split(b"\r\n")
    head = [b"Content-Type: " + in_utf8, b"Content-Transfer-Encoding: quoted-printable", b""]
    return head + encoded


def _folded(
    head: bytes, foreign: bytes, indent: bytes = b" ", clean: Clean = neutralise_ascii
) -> list[bytes]:
    """`head` and harmless text, folded at blanks; a word that is too long is cut into pieces."""
    lines, line = [], head
    for word in clean(foreign, 4096).split():
        piece = word
        while len(piece) > (at := _LINE_LIMIT - len(line)):
            while piece[at] & 0xC0 == 0x80:  # not inside of a character
                at -= 1
            lines.append(line + piece[:at])
            piece, line = piece[at:], indent
        if len(line) + len(piece) > _FOLD and line.strip() and line != head:
            lines.append(line.rstrip())
            line = indent
        line += piece + b" "
    lines.append(line.rstrip())
    return [line for line in lines if line.strip()]


def _decoded(xtext: bytes) -> bytes:
    try:
        return decode_xtext(xtext)
    except ValueError:
        return xtext


def _date(seconds: float) -> bytes:
    return formatdate(seconds).replace("-0000", "+0000").encode()


def _lines(text: bytes, limit: int, clean: Clean) -> list[bytes]:
    """The original's lines, harmless: no control octets but tabs, none over-long."""
    lines = []
    for line in text[:limit].removesuffix(b"\r\n").split(b"\r\n"):
        whole = b"\t".join(clean(part, _LINE_LIMIT) for part in line.split(b"\t"))
        lines.append(whole if len(whole) <= _LINE_LIMIT else clean(whole[:_LINE_LIMIT], 998))
    return lines


def _boundary(report_id: str, text: bytes) -> bytes:
    """No line of the original can be taken for it; a function of the facts only."""
    salt = zlib.crc32(text)
    while True:
        boundary = b"%b.%08X/report" % (report_id.encode(), salt)
        if boundary not in text:
            return boundary
        salt = zlib.crc32(boundary, salt)
