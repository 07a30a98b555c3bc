"""What MAIL, RCPT and DATA of one transaction say to a peer, and what need not be asked at all.

Law: pure. Nothing is said that the peer does not offer; one command is one line.
RFC 5321 4.1.1.2 and 4.1.1.3, RFC 1870, RFC 6152, RFC 3030, RFC 3461 5.2.1, RFC 1845.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mta.errors import LocalProtocolError
from mta.model import Address, Envelope, Reply
from mta.wire.smtp.notification import asks, mail_words, rcpt_words

_TRANSID = b" TRANSID="
"""Always the last word of its MAIL."""

_BINARY = (b"PIPELINING", b"CHUNKING", b"8BITMIME", b"BINARYMIME")

Extensions = Mapping[bytes, bytes]
"""Keyword in upper case -> its parameters, as the peer announced them."""
Numbered = Sequence[tuple[int, Address]]
"""Recipients with their indexes in the envelope."""


def size_limit(extensions: Extensions) -> int:
    """Octets that the peer takes; 0: it did not say."""
    size = extensions.get(b"SIZE", b"")
    return int(size) if size.isdigit() and len(size) <= 20 else 0


def takes_binary(extensions: Extensions) -> bool:
    """Every content can go as it is. Chunks without PIPELINING would cost a round trip each."""
    return all(word in extensions for word in _BINARY)


def impossible(
    extensions: Extensions, limit: int, sender: Address, recipients: Numbered, *, size: int,
    eight_bit: bool, binary: bool = False,
) -> Reply | None:  # fmt: skip
    """What this peer can never take is not asked for. `limit` is its `size_limit`."""
    if 0 < limit < size:
        text = b"message of %d octets is bigger than the %d the next server takes"
        return Reply(552, "5.3.4", (text % (size, limit),))
    if eight_bit and b"8BITMIME" not in extensions:
        text = b"the message has 8-bit content and the next server does not offer 8BITMIME"
        return Reply(554, "5.6.3", (text,))
    if binary and not takes_binary(extensions):
        text = b"the message has a binary body and the next server does not offer BINARYMIME"
        return Reply(554, "5.6.3", (text,))
    if not sender.text.isascii() or not all(a.text.isascii() for _, a in recipients):
        text = b"an address is internationalized and SMTPUTF8 is not offered"
        return Reply(553, "5.6.7", (text,))
    return None


def commands(
    extensions: Extensions, sender: Address, recipients: Numbered, *, size: int, eight_bit: bool,
    transid: bytes = b"", envelope: Envelope | None = None, binary: bool = False,
    chunked: bool = False,
) -> list[bytes]:  # fmt: skip
    """MAIL, each RCPT, and DATA unless the content is to go `chunked`. What `envelope` asks of
    reports is said where DSN is offered.
    """
    words = b" SIZE=%d" % size if b"SIZE" in extensions else b""
    if binary:
        words += b" BODY=BINARYMIME"
    elif eight_bit:
        words += b" BODY=8BITMIME"
    if envelope is not None and b"DSN" in extensions and asks(envelope):
        everyone = envelope.recipients
        words += mail_words(envelope)
        said = [b"RCPT TO:<%b>%b\r\n" % (a.text, rcpt_words(everyone[i])) for i, a in recipients]
    else:
        said = [b"RCPT TO:<%b>\r\n" % address.text for _, address in recipients]
    if transid:
        words += _TRANSID + transid
    lines = [b"MAIL FROM:<%b>%b\r\n" % (sender.text, words), *said]
    if not chunked:
        lines.append(b"DATA\r\n")
    if sum(line.count(b"\n") for line in lines) != len(lines):
        raise LocalProtocolError("an address holds a line end")
    return lines


def without_name(mail: bytes) -> bytes:
    """The same MAIL of a transaction that has no name."""
    return mail[: mail.rindex(_TRANSID)] + b"\r\n"
