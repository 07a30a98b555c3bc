"""The words of SMTP: addresses, parameters, names, xtext, and what people are shown of them."""

from __future__ import annotations

from random import Random

from mta.model import Address
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.wire import text
from mta.wire.smtp import grammar, utf8
from mta.wire.smtp.deliver_by import DeliverBy
from mta.wire.smtp.grammar import Refused
from mta.wire.smtp.notification import NOTIFICATION_MAIL, NOTIFICATION_RCPT
from mta.wire.smtp.priority import PriorityTerms
from mta.wire.smtp.release import FutureRelease

_MAIL = {
    **grammar.CHECKPOINT_PARAMETERS,
    **NOTIFICATION_MAIL,
    **DeliverBy(10).checks,
    **FutureRelease(86_400, 1_800_086_400).checks,
    **PriorityTerms().checks,
    b"REQUIRETLS": grammar.check_requiretls,
}


class Grammar(Target):
    """Any argument of a command is an address with its parameters, or refused with a reply. What
    passes holds no octet that could break a line, reads again as itself, and has a domain in lower
    case and A-labels. What was encoded decodes to itself; what is shown can be printed.
    """

    name = "grammar"
    spices = (
        *(b"<", b">", b"@", b'"', b"\\", b" ", b".", b"[", b"]", b"IPv6:", b":", b",", b"=", b"+"),
        *(
            b"+41",
            b"SIZE=",
            b" SMTPUTF8",
            b" NOTIFY=NEVER",
            b" ORCPT=utf-8;",
            b" RET=FULL",
            b"\\x{e9}",
        ),
        *(
            b"\r",
            b"\n",
            b"\0",
            b"\xff",
            "é".encode(),
            "bücher".encode(),
            "。".encode(),
            "ß".encode(),
        ),
        *(b"\xe2\x80\xae", "\u200d".encode(), b"xn--", b"-", b"_", b"a" * 64, b"a." * 130, b"\x7f"),
    )

    def hold(self, rng: Random, number: int) -> None:
        argument = self.octets(rng, 4096)
        read = either(lambda: grammar.parse_mail(b"FROM:" + argument, _MAIL), Refused)
        self._command(read, is_reverse=True)
        is_utf8 = rng.random() < 0.5
        read = either(
            lambda: grammar.parse_rcpt(b"TO:" + argument, NOTIFICATION_RCPT, utf8=is_utf8), Refused
        )
        self._command(read, is_reverse=False)
        helo = either(lambda: grammar.parse_helo(argument), Refused)
        if isinstance(helo, bytes):
            ensure(all(0x20 < octet < 0x7F for octet in helo), f"a name is {helo!r}")
        self._encodings(argument)
        for clean, limit in (
            (text.neutralise(argument, 99), 99),
            (text.neutralise_ascii(argument), 1000),
        ):
            ensure(len(clean) <= limit, "what is shown is too long")
            ensure(clean.decode().isprintable(), f"what is shown cannot be printed: {clean!r}")
        ensure(text.neutralise_ascii(argument).isascii(), "what is shown in ASCII is none")

    def _command(self, read: object, *, is_reverse: bool) -> None:
        if isinstance(read, Refused):
            ensure(read.reply.code // 100 == 5, "a refusal that is none")
            for line in read.reply.lines:
                ensure(all(0x20 <= octet < 0x7F for octet in line), f"a reply is {line!r}")
            return
        assert isinstance(read, tuple), read
        address, parameters = read
        _ensure_address(address)
        if not address.is_null and address.domain:
            again, rest = grammar.parse_path(
                b"<%b>" % address.text, is_reverse=is_reverse, utf8=True
            )
            same((again, rest), (address, b""), "an address reads as another")
        for key, value in parameters.items():
            for octets in (key, value or b""):
                is_plain = all(0x20 < octet < 0x7F for octet in octets)
                ensure(is_plain, f"a parameter is {octets!r}")

    def _encodings(self, octets: bytes) -> None:
        same(grammar.decode_xtext(grammar.encode_xtext(octets)), octets, "xtext decodes as another")
        decoded = either(lambda: grammar.decode_xtext(octets), ValueError)
        if isinstance(decoded, bytes):
            same(grammar.decode_xtext(grammar.encode_xtext(decoded)), decoded, "xtext")
        address = either(lambda: utf8.decode_utf8_address(octets), ValueError)
        if isinstance(address, bytes):
            encoded = utf8.encode_utf8_address(address)
            ensure(encoded.isascii(), "an address for every peer is none")
            same(utf8.decode_utf8_address(encoded), address, "an address decodes as another")


def _ensure_address(address: Address) -> None:
    for octet in address.text:
        ensure(octet >= 0x20 and octet != 0x7F, f"an address is {address.text!r}")
    domain = address.domain
    ensure(domain.isascii() and domain == domain.lower(), f"a domain is {domain!r}")
    ensure(len(domain) <= grammar.DOMAIN_LIMIT, "a domain is too long")
    if domain:
        same(grammar.normalise_domain(domain), domain, "a domain has another normal form")
