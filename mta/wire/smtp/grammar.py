"""The grammar of commands: paths, mailboxes, parameters, names, xtext.

Law: what this module lets through holds no octet below 32 and none above 126, so that nothing of
it can break a line, a log or a later command; where SMTPUTF8 was said, addresses besides hold what
utf8.py lets through. Refusals are `Refused` with the reply to give.

RFC 5321 4.1.2 (grammar), 4.1.3 (address literals), 4.5.3.1 (limits), 4.1.1.11 (parameters),
RFC 1870 (SIZE), RFC 6152 (BODY), RFC 1845 section 2 (TRANSID), RFC 3461 section 4 (xtext; its
parameters are in notification.py), RFC 6531 3.2 to 3.4 (SMTPUTF8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address

from mta.errors import RemoteProtocolError
from mta.model import NULL_ADDRESS, Address, Reply
from mta.wire.smtp.utf8 import AS_LETTERS, a_labels, check_text

LOCAL_PART_LIMIT = 64
DOMAIN_LIMIT = 255
LABEL_LIMIT = 63

Parameters = dict[bytes, bytes | None]
"""Keys in upper case. The value is None when the parameter was given without one."""
Checks = Mapping[bytes, Callable[[bytes | None], bytes | None]]
"""What an extension brings: keyword -> what checks and normalises its value, or raises Refused."""


class Refused(RemoteProtocolError):
    """The peer's command is against the grammar; `reply` is what it is told."""

    def __init__(self, code: int, enhanced: str, text: bytes) -> None:
        super().__init__(f"{code} {enhanced} {text.decode('ascii', 'replace')}")
        self.reply = Reply(code, enhanced, (text,))


def refusal(reply: Reply) -> Refused:
    """The same with a reply that is known beforehand."""
    return Refused(reply.code, reply.enhanced, reply.lines[0])


_ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
# Underscores are no letters of a host name, but names with them exist and receive mail.
_DOMAIN = re.compile(_LABEL + rb"(?:\." + _LABEL + rb")*\.?")
_DOT_ATOM = re.compile(_ATEXT + rb"(?:\." + _ATEXT + rb")*")
_QUOTED = re.compile(rb'"(?:[ !#-\[\]-~]|\\[ -~])*"')
_USUAL_PATH = re.compile(
    rb"<("
    + rb"("
    + _ATEXT
    + rb"(?:\."
    + _ATEXT
    + rb")*)@([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?))>(?: |$)"
)
_SOURCE_ROUTE = re.compile(rb"@[^@:<>\s]+(?:,@[^@:<>\s]+)*:")
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_VALUE = re.compile(rb"[!-<>-~]+")
_VALUE_UTF8 = re.compile(rb"[!-<>-~\x80-\xff]+")
_HELO_NAME = re.compile(rb"[A-Za-z0-9_.:\[\]+*/=~#%$&'?^`{|}!@-]+")
# An atom holds no blank, no control and none of MIME's tspecials (RFC 2045 5.1); dots divide atoms.
_TRANSID_TOKEN = rb"[!#-'*+\-0-9A-Z^-~]+(?:\.[!#-'*+\-0-9A-Z^-~]+)*"
_TRANSID = re.compile(rb"<" + _TRANSID_TOKEN + rb"@" + _TRANSID_TOKEN + rb">")
_HYPHEN = 45
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")


# --- domains and mailboxes --------------------------------------------------------------------


def normalise_domain(domain: bytes) -> bytes:
    """Lower case, A-labels, without a trailing dot; a literal in its shortest form.

    @raise ValueError: neither a domain nor an address literal.
    """
    if domain.startswith(b"["):
        return _literal(domain)
    if len(domain) > DOMAIN_LIMIT + domain.endswith(b"."):
        raise ValueError("the domain is longer than 255 octets")
    if not _DOMAIN.fullmatch(domain):
        raise ValueError("the domain is malformed")
    lower = domain.lower().rstrip(b".")
    if len(lower) > LABEL_LIMIT and any(len(label) > LABEL_LIMIT for label in lower.split(b".")):
        raise ValueError("the domain has a label of more than 63 octets")
    return lower


def _literal(domain: bytes) -> bytes:
    if not domain.endswith(b"]"):
        raise ValueError("the address literal lacks its closing bracket")
    inner = domain[1:-1].decode("ascii", "replace")
    try:
        if inner[:5].lower() == "ipv6:":
            if "%" in inner:
                raise ValueError
            return f"[ipv6:{IPv6Address(inner[5:])}]".encode()
        return f"[{IPv4Address(inner)}]".encode()
    except ValueError:
        raise ValueError("the address literal is malformed") from None


def parse_mailbox(text: bytes, *, utf8: bool = False) -> Address:
    """A mailbox without angle brackets: local part, `@`, domain or address literal.

    The local part keeps its case and its quotes; a trailing dot of the domain goes.
    @raise ValueError: with the reason in words.
    """
    if not text:
        raise ValueError("the address is empty")
    shape = text
    if not text.isascii():
        if not utf8:
            raise ValueError("the address is not ASCII")
        check_text(text)
        shape = text.translate(AS_LETTERS)
    if text.startswith(b'"'):
        quoted = _QUOTED.match(shape)
        if quoted is None:
            raise ValueError("the quoted local part is malformed")
        end = quoted.end()
    else:
        end = text.find(b"@")
        if end < 0:
            raise ValueError("the address lacks its domain")
        if not _DOT_ATOM.fullmatch(shape, 0, end):
            raise ValueError("the local part is malformed")
    if text[end : end + 1] != b"@":
        raise ValueError("the address lacks its domain")
    if end > LOCAL_PART_LIMIT:
        raise ValueError("the local part is longer than 64 octets")
    domain = text[end + 1 :]
    if domain.endswith(b"."):
        text = text[:-1]
    return Address(text, normalise_domain(domain if domain.isascii() else a_labels(domain)))


def parse_path(argument: bytes, *, is_reverse: bool, utf8: bool = False) -> tuple[Address, bytes]:
    """Split `<path> parameters` into the address and the text behind it.

    The reverse-path may be null; the forward-path may be a bare postmaster. A source route is
    stripped (RFC 5321 appendix C). `utf8`: it may hold UTF-8. @raise Refused.
    """
    usual = _USUAL_PATH.match(argument)
    if usual is not None:
        text, local, domain = usual.groups()
        # `find`: `in` takes 2000 instructions more for bytes (CPython 3.11; see content.py).
        if (
            len(local) <= LOCAL_PART_LIMIT
            and len(domain) <= LABEL_LIMIT
            and domain.find(b"..") < 0
            and (_HYPHEN not in domain or (domain.find(b".-") < 0 and domain.find(b"-.") < 0))
        ):
            return Address(text, domain.lower()), argument[usual.end() :]
    return _parse_any_path(argument, is_reverse, utf8)


def _parse_any_path(argument: bytes, is_reverse: bool, utf8: bool) -> tuple[Address, bytes]:
    enhanced = "5.1.7" if is_reverse else "5.1.3"
    if not argument.startswith(b"<"):
        raise Refused(501, enhanced, b"Put the address into angle brackets: <user@example.com>")
    end = _closing_bracket(argument)
    if end < 0:
        raise Refused(501, enhanced, b"The address lacks its closing angle bracket")
    text, rest = argument[1:end], argument[end + 1 :]
    if rest and not rest.startswith(b" "):
        raise Refused(501, "5.5.4", b"A blank must separate the address and its parameters")
    if not utf8 and not text.isascii():
        raise _without_smtputf8()
    if text.startswith(b"@"):
        route = _SOURCE_ROUTE.match(text)
        if route is None:
            raise Refused(501, enhanced, b"The source route is malformed")
        text = text[route.end() :]
        if not text:
            raise Refused(501, enhanced, b"The source route leads to no mailbox")
    if not text:
        if is_reverse:
            return NULL_ADDRESS, rest
        raise Refused(501, enhanced, b"A recipient cannot be empty")
    if not is_reverse and text.lower() == b"postmaster":
        return Address(text), rest
    try:
        return parse_mailbox(text, utf8=utf8), rest
    except ValueError as error:
        reason = str(error).encode()
        raise Refused(501, enhanced, reason[:1].upper() + reason[1:]) from None


def _without_smtputf8() -> Refused:
    return Refused(553, "5.6.7", b"An address with UTF-8 needs the parameter SMTPUTF8 of MAIL")


def _closing_bracket(argument: bytes) -> int:
    """The index of the `>` that ends the path: one inside a quoted local part does not."""
    if argument.find(b'"') < 0:
        return argument.find(b">")
    is_quoted, at = False, 1
    while at < len(argument):
        octet = argument[at]
        if octet == 0x5C and is_quoted:
            at += 1
        elif octet == 0x22:
            is_quoted = not is_quoted
        elif octet == 0x3E and not is_quoted:
            return at
        at += 1
    return -1


# --- parameters -------------------------------------------------------------------------------


def check_size(value: bytes | None) -> bytes | None:
    """RFC 1870: 1 to 20 digits."""
    if value is None or not value.isdigit() or len(value) > 20:
        raise Refused(501, "5.5.4", b"SIZE takes a number of octets")
    return value


def check_body(value: bytes | None) -> bytes | None:
    """RFC 6152: 7BIT or 8BITMIME."""
    upper = value.upper() if value is not None else None
    if upper not in (b"7BIT", b"8BITMIME"):
        raise Refused(501, "5.5.4", b"BODY is 7BIT or 8BITMIME")
    return upper


def check_smtputf8(value: bytes | None) -> bytes | None:
    """RFC 6531 3.4: without a value."""
    if value is not None:
        raise Refused(501, "5.5.4", b"SMTPUTF8 takes no value")
    return None


def check_requiretls(value: bytes | None) -> bytes | None:
    """RFC 8689 2: without a value."""
    if value is not None:
        raise Refused(501, "5.5.4", b"REQUIRETLS takes no value")
    return None


TRANSID_LIMIT = 80
"""Octets of a transaction's name with its brackets (RFC 1845 section 2)."""


def check_transid(value: bytes | None) -> bytes | None:
    """RFC 1845: `<token@token>`. Case counts."""
    if value is None or len(value) > TRANSID_LIMIT or not _TRANSID.fullmatch(value):
        raise Refused(501, "5.5.4", b"TRANSID takes <name@domain>, of at most 80 characters")
    return value


MAIL_PARAMETERS: Checks = {
    b"SIZE": check_size,
    b"BODY": check_body,
    b"SMTPUTF8": check_smtputf8,
}
CHECKPOINT_PARAMETERS: Checks = {**MAIL_PARAMETERS, b"TRANSID": check_transid}
"""MAIL's where CHECKPOINT is offered."""
RCPT_PARAMETERS: Checks = {}


def parse_parameters(text: bytes, checks: Checks, *, utf8: bool = False) -> Parameters:
    """`KEY=value KEY ...` behind a path. @raise Refused: unknown (555), doubled or wrong (501)."""
    parameters: Parameters = {}
    form = _VALUE_UTF8 if utf8 else _VALUE
    for word in text.split():
        key, equals, value = word.partition(b"=")
        keyword = key.upper()
        if not _KEYWORD.fullmatch(key) or (equals and not form.fullmatch(value)):
            raise Refused(501, "5.5.4", b"A parameter is malformed")
        check = checks.get(keyword)
        if check is None:
            raise Refused(555, "5.5.4", b"The parameter " + keyword[:40] + b" is not offered")
        if keyword in parameters:
            raise Refused(501, "5.5.4", b"The parameter " + keyword[:40] + b" is doubled")
        parameters[keyword] = check(value if equals else None)
    return parameters


def parse_mail(argument: bytes, checks: Checks = MAIL_PARAMETERS) -> tuple[Address, Parameters]:
    """What follows `MAIL `: `FROM:<reverse-path> parameters`. @raise Refused."""
    if argument[:5].upper() != b"FROM:":
        raise Refused(501, "5.5.4", b"Syntax: MAIL FROM:<address>")
    path = argument[5:]
    if path.startswith(b" "):
        path = path.lstrip()  # against the grammar and very common
    address, rest = parse_path(path, is_reverse=True, utf8=True)
    parameters = parse_parameters(rest, checks) if rest else {}
    if not address.text.isascii() and b"SMTPUTF8" not in parameters:
        raise _without_smtputf8()
    return address, parameters


def parse_rcpt(
    argument: bytes, checks: Checks = RCPT_PARAMETERS, *, utf8: bool = False
) -> tuple[Address, Parameters]:
    """What follows `RCPT `: `TO:<forward-path> parameters`. `utf8`: MAIL had SMTPUTF8, so UTF-8
    may stand in both. @raise Refused.
    """
    if argument[:3].upper() != b"TO:":
        raise Refused(501, "5.5.4", b"Syntax: RCPT TO:<address>")
    path = argument[3:]
    if path.startswith(b" "):
        path = path.lstrip()
    address, rest = parse_path(path, is_reverse=False, utf8=utf8)
    return address, parse_parameters(rest, checks, utf8=utf8) if rest else {}


def parse_helo(argument: bytes) -> bytes:
    """The name behind HELO, EHLO or LHLO: any word that cannot be taken for something else.

    RFC 5321 4.1.4 forbids to refuse a name that is merely not in the DNS, and real clients send
    names with underscores or without a dot. @raise Refused.
    """
    name = argument.strip()
    if not name:
        raise Refused(501, "5.5.4", b"Say who you are: EHLO name.example.com")
    if len(name) > DOMAIN_LIMIT or not _HELO_NAME.fullmatch(name):
        raise Refused(501, "5.5.4", b"That is neither a domain nor an address literal")
    return name


# --- xtext ------------------------------------------------------------------------------------


def decode_xtext(text: bytes) -> bytes:
    """RFC 3461 section 4. @raise ValueError."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    head, *tail = text.split(b"+")
    return head + b"".join(bytes((int(part[:2], 16),)) + part[2:] for part in tail)


def encode_xtext(raw: bytes) -> bytes:
    """RFC 3461 section 4: anything but printable ASCII without `+` and `=` becomes +XX."""
    return b"".join(
        bytes((octet,)) if 0x21 <= octet <= 0x7E and octet not in b"+=" else b"+%02X" % octet
        for octet in raw
    )
