"""What MAIL, RCPT and DATA of one transaction say to a peer, and what need not be asked at all.

Law: pure. Nothing is said that the peer does not offer; one command is one line. SMTPUTF8 is said
only where an address or the header needs it, so that plain mail reaches every peer.
RFC 5321 4.1.1.2 and 4.1.1.3, RFC 1870, RFC 6152, RFC 3030, RFC 3461 5.2.1, RFC 6531 3.2, RFC 8689
4.2, RFC 6710 4.2 (a priority is said wherever it is heard, 0 too: so it overrules a header field),
RFC 1845, RFC 2852 4.1.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mta.errors import LocalProtocolError
from mta.model import Address, Envelope, Reply, Requires
from mta.wire.smtp.deliver_by import by_words
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
    extensions: Extensions, limit: int, *, size: int, eight_bit: bool, binary: bool = False
) -> Reply | None:
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
    return None


NO_SMTPUTF8 = Reply(
    553, "5.6.7", (b"the message is internationalized and the next server has no SMTPUTF8",)
)


NO_REQUIRETLS = Reply(
    550, "5.7.30", (b"the message requires TLS, and the next server is not one that promises it",)
)


def needs_utf8(sender: Address, recipients: Numbered, envelope: Envelope | None) -> bool:
    """An address of this transaction, or the header of its message, is not ASCII."""
    if envelope is not None and envelope.requires and envelope.requires & Requires.UTF8:
        return True
    if not sender.text.isascii():
        return True
    for _, address in recipients:  # noqa: SIM110 - any() costs a generator for every message
        if not address.text.isascii():
            return True
    return False


def in_ascii(
    sender: Address, recipients: Numbered, envelope: Envelope | None
) -> tuple[Address, Numbered] | None:
    """The same transaction for a peer without SMTPUTF8, by A-labels; None: there is none."""
    if envelope is not None and envelope.requires & Requires.UTF8:
        return None
    try:
        return _ascii(sender), [(index, _ascii(address)) for index, address in recipients]
    except ValueError:
        return None


def _ascii(address: Address) -> Address:
    """@raise ValueError: its local part has no such form."""
    if address.text.isascii():
        return address
    if not address.local.isascii() or not address.domain:
        raise ValueError
    return Address(address.local + b"@" + address.domain, address.domain, address.kind)


def commands(
    extensions: Extensions, sender: Address, recipients: Numbered, envelope: Envelope | None,
    size: int, *, eight_bit: bool, transid: bytes = b"", binary: bool = False,
    chunked: bool = False, verified: bool = False, seconds_left: float = 0.0, relays: bool = True,
) -> list[bytes] | Reply:  # fmt: skip
    """MAIL, each RCPT, and DATA unless the content is to go `chunked`; or what the peer lacks that
    another may have. What `envelope` asks of reports is said where DSN is offered. `verified`: TLS
    is there, and the peer's certificate was found to be its own. `seconds_left` are those of a
    message that has a time; `relays`: the peer is not its last station.
    """
    needs_tls = envelope is not None and envelope.requires & Requires.TLS
    if needs_tls and not (verified and b"REQUIRETLS" in extensions):
        return NO_REQUIRETLS
    utf8 = needs_utf8(sender, recipients, envelope)
    if utf8 and b"SMTPUTF8" not in extensions:
        plain = in_ascii(sender, recipients, envelope)
        if plain is None:
            return NO_SMTPUTF8
        (sender, recipients), utf8 = plain, False
    words = b" SIZE=%d" % size if b"SIZE" in extensions else b""
    if binary:
        words += b" BODY=BINARYMIME"
    elif eight_bit:
        words += b" BODY=8BITMIME"
    if utf8:
        words += b" SMTPUTF8"
    if needs_tls:
        words += b" REQUIRETLS"
    tells_delay = False
    if envelope is not None and envelope.deliver_by is not None:
        by = by_words(extensions, envelope, seconds_left, relays=relays)
        if isinstance(by, Reply):
            return by
        words += by
        # The peer does not keep to the time: it is asked to tell of delays, as any does.
        tells_delay = not by and relays and seconds_left > 0.0
    if envelope is not None and b"MT-PRIORITY" in extensions:
        words += b" MT-PRIORITY=%d" % envelope.priority
    if envelope is not None and b"DSN" in extensions and (tells_delay or asks(envelope)):
        everyone = envelope.recipients
        words += mail_words(envelope)
        said = [
            b"RCPT TO:<%b>%b\r\n" % (address.text, rcpt_words(everyone[index], tells_delay))
            for index, address in recipients
        ]
    else:
        said = [b"RCPT TO:<%b>\r\n" % address.text for _, address in recipients]
    if transid:
        words += _TRANSID + transid
    lines = [b"MAIL FROM:<%b>%b\r\n" % (sender.text, words), *said]
    if not chunked:
        lines.append(b"DATA\r\n")
    if b"".join(lines).count(b"\n") != len(lines):
        raise LocalProtocolError("an address holds a line end")
    return lines


def without_name(mail: bytes) -> bytes:
    """The same MAIL of a transaction that has no name."""
    return mail[: mail.rindex(_TRANSID)] + b"\r\n"
