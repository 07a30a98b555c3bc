"""The Received field that this MTA puts before every message (RFC 5321 4.4).

Law: whatever the peer said stands here neutralised. The field has no line ends but its own folds,
and a peer cannot forge a second clause of it.
"""

from __future__ import annotations

import time

from mta.model import ClientCertificate, PeerInfo

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = tuple(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())

HELO_LIMIT = 255
"""Octets of a peer's name that are kept: a domain has no more (RFC 5321 4.5.3.1.2)."""

_NAME = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_:[]")
_CLAUSE = _NAME | frozenset(b" /,=+@")
_TO_NAME = bytes(i if i in _NAME else ord("?") for i in range(256))
_TO_CLAUSE = bytes(i if i in _CLAUSE else ord("?") for i in range(256))
_GRAPHIC = bytes(range(0x21, 0x7F))


class DateCache:
    """RFC 5322 dates in UTC, made once a second. Names of days and months follow no locale."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def at(self, wall: float) -> bytes:
        """`wall`: seconds since 1970."""
        second = int(wall)
        if second != self._second:
            t = time.gmtime(second)
            self._text = b"%b, %d %b %d %02d:%02d:%02d +0000" % (
                _DAYS[t.tm_wday],
                t.tm_mday,
                _MONTHS[t.tm_mon - 1],
                t.tm_year,
                t.tm_hour,
                t.tm_min,
                t.tm_sec,
            )
            self._second = second
        return self._text


def address_literal(host: str) -> bytes:
    """RFC 5321 4.1.3, with brackets; a scope ("%eth0") is left out."""
    host = host.partition("%")[0]
    return (b"[IPv6:%b]" if ":" in host else b"[%b]") % host.encode("ascii", "replace").translate(
        _TO_NAME
    )


def utf8_protocol(protocol: str) -> str:
    """The `with` keyword of a message that came with SMTPUTF8: ESMTPS is UTF8SMTPS, LMTP UTF8LMTP
    (RFC 6531 4.3).
    """
    return "UTF8" + protocol.removeprefix("E")


def received_from(
    peer: PeerInfo, helo: bytes, protocol: str, network_name: str, show_client: bool
) -> bytes:
    """The part that all messages of an association share, up to and with "id ".

    `show_client` false leaves out the peer's name and address (RFC 5321 7.6 allows it for
    submission).
    """
    by = b"by %b" % network_name.encode("ascii", "replace").translate(_TO_NAME)
    if peer.uid is not None:
        return b"Received: %b (from uid %d)\r\n\tid " % (by, peer.uid)
    using = b""
    if peer.tls:
        using = b"\r\n\t(using %b)" % peer.tls.encode("ascii", "replace").translate(_TO_CLAUSE)
    if peer.certificate is not None:
        using += _certified(peer.certificate)
    keyword = protocol.encode("ascii", "replace").translate(_TO_NAME)
    if not show_client:
        return b"Received: %b%b with %b\r\n\tid " % (by, using, keyword)
    literal = address_literal(peer.host)
    name = helo[:HELO_LIMIT].translate(_TO_NAME) or literal
    host = b"%b %b" % (peer.name.encode("ascii", "replace").translate(_TO_NAME), literal)
    return b"Received: from %b (%b)%b\r\n\t%b with %b\r\n\tid " % (
        name,
        host.lstrip(),
        using,
        by,
        keyword,
    )


def _certified(certificate: ClientCertificate) -> bytes:
    """In Postfix's words."""
    subject, issuer = (
        name.encode("ascii", "replace").translate(_TO_CLAUSE)
        for name in (certificate.subject, certificate.issuer)
    )
    verdict = b"not verified" if certificate.trust == "Untrusted" else b"verified OK"
    return b'\r\n\t(Client CN "%b", Issuer "%b" (%b))' % (subject, issuer, verdict)


def received_field(
    shared: bytes, queue_id: str, recipient: bytes, date: bytes, priority: int = 0
) -> bytes:
    """The whole field. `recipient` is b"" unless the message has exactly one: a field that named
    several would tell each of the others, blind copies included (RFC 5321 7.2). `priority` is a
    clause of RFC 6710, where there is any.
    """
    clause = b" PRIORITY %d" % priority if priority else b""
    if recipient and not recipient.translate(None, _GRAPHIC):
        return b"%b%b\r\n\tfor <%b>%b; %b\r\n" % (
            shared,
            queue_id.encode(),
            recipient,
            clause,
            date,
        )
    return b"%b%b%b; %b\r\n" % (shared, queue_id.encode(), clause, date)
