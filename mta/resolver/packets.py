"""DNS packets: a question to octets, octets to an answer that fits the question, or to nothing.

Law: pure. Whatever octets arrive, the answer is an Answer or None (not an answer to this question);
nothing else is ever raised. dnspython does the wire format; what an answer means is decided here.

RFC 1035 4.1, RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 9471, RFC 4035 3.2.3 (AD).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, replace
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from mta.errors import PermanentFailure
from mta.model import Tlsa

PAYLOAD = 1232
"""Octets of a UDP answer that cross every path unfragmented (DNS flag day 2020)."""
SIGNED_PAYLOAD = 4096
"""Of one with signatures, which comes from loopback and crosses nothing."""


_HEADER_OCTETS = 12
_TLSA = dns.rdatatype.TLSA
_AS_IT_IS = dns.rdatatype.from_text("TYPE65399")
"""A type of private use (RFC 6895 3.1), whose records dnspython takes as they are."""
_AD = 0x20
"""Of a header's fourth octet (RFC 4035 3.2.3)."""


Record = str | tuple[int, str] | Tlsa | bytes


class Status(enum.Enum):
    FOUND = "found"
    NO_DATA = "no data"
    NO_NAME = "no such name"
    FAILED = "failed"
    TRUNCATED = "truncated"
    NO_EDNS = "no edns"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says. `records` are IP addresses and names as text, (preference, target) pairs,
    TLSA records, or octets of TXT records.

    `more` is the name to ask next when a CNAME led out of what this server told; `canonical` where
    the CNAMEs of a FOUND ended. `is_secure`: the server says that it validated all of this.
    """

    status: Status
    records: tuple[Record, ...] = ()
    ttl: float = 0.0
    more: str = ""
    detail: str = ""
    canonical: str = ""
    is_secure: bool = False


def checked_name(name: str | bytes) -> dns.name.Name:
    """A host or domain name. @raise PermanentFailure: DNS cannot hold it."""
    raw = name if isinstance(name, bytes) else name.encode("ascii", "backslashreplace")
    labels = raw.rstrip(b".").split(b".") if raw.rstrip(b".") else []
    try:
        if not labels:
            raise ValueError("empty")
        return dns.name.Name([*labels, b""])
    except Exception:
        shown = raw[:80].decode("ascii", "backslashreplace")
        raise PermanentFailure(
            f"{shown} is not a domain name", code=550, enhanced="5.1.2"
        ) from None


def question(
    name: dns.name.Name, rdtype: str, number: int, *, edns: bool = True, dnssec: bool = False
) -> bytes:
    """A recursive query with id `number` (0 to 65535). `dnssec`: say whether it was validated (AD,
    RFC 6840 5.7), and DO for servers that say so only then (RFC 3225).
    """
    flags = dns.flags.RD | (dns.flags.AD if dnssec else 0)
    query = dns.message.make_query(
        name,
        rdtype,
        use_edns=0 if edns else False,
        payload=SIGNED_PAYLOAD if dnssec else PAYLOAD,
        want_dnssec=dnssec and edns,
        id=number,
        flags=flags,
    )
    return query.to_wire()


def answer(
    packet: bytes, name: dns.name.Name, rdtype: str, number: int, *, dnssec: bool = False
) -> Answer | None:
    """What `packet` says to that question. None: it does not belong to it, or is damaged. Only with
    `dnssec` its word that it was validated (AD) is believed.
    """
    try:
        found = _read(packet, name, rdtype, number)
    except Exception:  # dnspython raises many kinds for damaged packets; none may pass
        return None
    if found is not None and dnssec and packet[3] & _AD:
        return replace(found, is_secure=True)
    return found


def _read(packet: bytes, name: dns.name.Name, rdtype: str, number: int) -> Answer | None:
    if len(packet) < _HEADER_OCTETS or packet[:2] != number.to_bytes(2, "big"):
        return None
    wanted = dns.rdatatype.from_text(rdtype)
    if wanted == _TLSA:
        packet, wanted = _unread(packet), _AS_IT_IS
    message = dns.message.from_wire(packet, ignore_trailing=True, raise_on_truncation=False)
    if not message.flags & dns.flags.QR or message.opcode() != 0:
        return None
    code = message.rcode()
    if code in (dns.rcode.FORMERR, dns.rcode.NOTIMP) and not message.question:
        return Answer(Status.NO_EDNS, detail=dns.rcode.to_text(code))
    if len(message.question) != 1:
        return None
    asked = message.question[0]
    if (asked.name, asked.rdtype, asked.rdclass) != (name, wanted, dns.rdataclass.IN):
        return None
    if message.flags & dns.flags.TC:
        return Answer(Status.TRUNCATED)
    if code in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
        return Answer(Status.NO_EDNS, detail=dns.rcode.to_text(code))
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer(Status.FAILED, detail=dns.rcode.to_text(code))
    assert isinstance(message, dns.message.QueryMessage)
    chain = message.resolve_chaining()
    if chain.answer is not None:
        return Answer(
            Status.FOUND,
            tuple(_record(record, rdtype) for record in chain.answer),
            float(chain.minimum_ttl),
            canonical=_shown(chain.canonical_name),
        )
    # RFC 2308 5: without a SOA a negative answer is not kept.
    ttl = 0.0
    has_soa = False
    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            has_soa = True
            ttl = float(min(rrset.ttl, rrset[0].minimum))
    if code == dns.rcode.NXDOMAIN:
        return Answer(Status.NO_NAME, ttl=ttl)
    if chain.canonical_name != name and not has_soa:
        return Answer(Status.NO_DATA, more=_shown(chain.canonical_name))
    return Answer(Status.NO_DATA, ttl=ttl)


def _unread(packet: bytes) -> bytes:
    """The packet with another type in place of TLSA. dnspython refuses all of an answer for one
    record that makes no sense, but that one alone is unusable (RFC 7672 2.2).
    """
    patched = bytearray(packet)
    questions, *records = struct.unpack_from("!HHHH", packet, 4)
    at = _HEADER_OCTETS
    for number in range(questions + sum(records)):
        at += dns.name.from_wire(packet, at)[1]
        (kind,) = struct.unpack_from("!H", packet, at)
        if kind == _TLSA:
            struct.pack_into("!H", patched, at, _AS_IT_IS)
        at += 4
        if number >= questions:
            (size,) = struct.unpack_from("!H", packet, at + 4)
            at += 6 + size
    return bytes(patched)


def _record(record: Any, rdtype: str) -> Record:
    if rdtype == "MX":
        return record.preference, _shown(record.exchange)
    if rdtype == "TLSA":
        octets = record.data
        # Too short to have its fields: 255 is a usage that nobody can use, and that is what it is.
        if len(octets) < 3:
            return Tlsa(255, 255, 255, b"")
        return Tlsa(octets[0], octets[1], octets[2], octets[3:])
    if rdtype == "CNAME":
        return _shown(record.target)
    if rdtype == "TXT":
        return b"".join(record.strings)
    return str(record.address)


def _shown(name: dns.name.Name) -> str:
    """Lower case, no final dot; "." for the root."""
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else "."
