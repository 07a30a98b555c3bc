"""DNS packets: a question to octets, octets to an answer that fits the question, or to nothing.

Law: pure. Whatever octets arrive, the answer is an Answer or None (not an answer to this question);
nothing else is ever raised. dnspython does the wire format; what an answer means is decided here.

RFC 1035 4.1, RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 9471.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from mta.errors import PermanentFailure

PAYLOAD = 1232
"""Octets of a UDP answer that cross every path unfragmented (DNS flag day 2020)."""


class Status(enum.Enum):
    FOUND = "found"
    NO_DATA = "no data"
    NO_NAME = "no such name"
    FAILED = "failed"
    TRUNCATED = "truncated"
    NO_EDNS = "no edns"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says. `records` are IP addresses as text, or (preference, target) pairs.

    `more` is the name to ask next when a CNAME led out of what this server told.
    """

    status: Status
    records: tuple[str | tuple[int, str], ...] = ()
    ttl: float = 0.0
    more: str = ""
    detail: str = ""


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


def question(name: dns.name.Name, rdtype: str, number: int, *, edns: bool = True) -> bytes:
    """A recursive query with id `number` (0 to 65535)."""
    query = dns.message.make_query(
        name, rdtype, use_edns=0 if edns else False, payload=PAYLOAD, id=number
    )
    return query.to_wire()


def answer(packet: bytes, name: dns.name.Name, rdtype: str, number: int) -> Answer | None:
    """What `packet` says to that question. None: it does not belong to it, or is damaged."""
    try:
        return _read(packet, name, rdtype, number)
    except Exception:  # dnspython raises many kinds for damaged packets; none may pass
        return None


def _read(packet: bytes, name: dns.name.Name, rdtype: str, number: int) -> Answer | None:
    if len(packet) < 12 or packet[:2] != number.to_bytes(2, "big"):
        return None
    message = dns.message.from_wire(packet, ignore_trailing=True, raise_on_truncation=False)
    if not message.flags & dns.flags.QR or message.opcode() != 0:
        return None
    code = message.rcode()
    wanted = dns.rdatatype.from_text(rdtype)
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
        records: list[str | tuple[int, str]] = []
        for record in chain.answer:
            if rdtype == "MX":
                records.append((record.preference, _shown(record.exchange)))
            else:
                records.append(str(record.address))
        return Answer(Status.FOUND, tuple(records), float(chain.minimum_ttl))
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


def _shown(name: dns.name.Name) -> str:
    """Lower case, no final dot; "." for the root."""
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else "."
