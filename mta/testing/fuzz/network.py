"""What comes from the network beside SMTP: PROXY headers, and answers of name servers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random

import dns.name

from mta.model import Tlsa as Record
from mta.model import TlsaRecords
from mta.resolver.packets import Status, answer, checked_name, question
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Target, ensure, same
from mta.wire.dane import Demand, Shown, anchors_told, demanded, is_end_entity, is_usable, matches
from mta.wire.proxy import ITSELF, MOST_OCTETS, End, Header, HeaderReader, Refusal, crc32c


class Proxy(Target):
    """Any octets are a header, refused by name, or wait for more, and no more than a header is
    held. Cutting changes nothing. What stands behind a header is passed on octet by octet.
    """

    name = "proxy"
    spices = (
        *(b"PROXY ", b"TCP4", b"TCP6", b"UNKNOWN", b"\r\n", b" ", b"::1", b"%eth0", b"65536"),
        *(b"0", b"\r", b"\n", b"\r\n\r\n\0\r\nQUIT\n", b"\x21\x11\0\x0c", b"\x03\0\x04"),
    )

    def hold(self, rng: Random, number: int) -> None:
        data = self.octets(rng)
        if rng.random() < 0.3:
            data = _checksummed(data)
        one = self._read([data])
        same(one, self._read(pieces_of(rng, data)), "pieces change the header")
        found, rest = one
        if isinstance(found, Header):
            ensure(data.endswith(rest) or not rest, "what follows the header is not the client's")
            ensure(len(data) - len(rest) <= MOST_OCTETS, "a header is longer than it may be")
            if found is not ITSELF:
                assert found.source is not None and found.destination is not None
                for end in (found.source, found.destination):
                    _ensure_end(end)
                kinds = {type(found.source.host), type(found.destination.host)}
                ensure(len(kinds) == 1, "the ends are of two families")

    def _read(self, pieces: list[bytes]) -> tuple[Header | Refusal | None, bytes]:
        reader = HeaderReader()
        found: Header | Refusal | None = None
        for at, piece in enumerate(pieces):
            found = reader.receive(piece)
            if found is not None:
                rest = reader.rest + b"".join(pieces[at + 1 :])
                return found, b"" if isinstance(found, Refusal) else rest
        held = sum(map(len, pieces))
        ensure(held <= MOST_OCTETS, f"{held} octets are no header, and more is waited for")
        return None, b""


def _ensure_end(end: End) -> None:
    ensure(isinstance(end.host, IPv4Address | IPv6Address), "an end has no address")
    ensure(0 <= end.port <= 0xFFFF, "an end has no port")
    ensure(getattr(end.host, "scope_id", None) is None, "an end has a scope")


def _checksummed(data: bytes) -> bytes:
    """With a right CRC32C where there is one: a chance change would only ever break it."""
    at = data.find(b"\x03\0\x04", 16)
    if at < 0 or len(data) < at + 7:
        return data
    length = 16 + int.from_bytes(data[14:16], "big")
    zeroed = data[: at + 3] + bytes(4) + data[at + 7 :]
    return data[: at + 3] + crc32c(zeroed[:length]).to_bytes(4, "big") + data[at + 7 :]


# --- DNS ----------------------------------------------------------------------------------------

_NAMES = ("example.org", "mx.example.org", "_25._tcp.mx.example.org", "xn--bcher-kva.example")
_TYPES = ("MX", "A", "AAAA", "CNAME", "TLSA")
_NUMBER = 0x1234


class Dns(Target):
    """Any packet is an answer to the question or none at all; nothing is raised. What is told is
    printable, preferences are numbers, addresses are addresses, and only what bears AD is secure.
    """

    name = "dns"
    spices = (
        *(b"\xc0\x0c", b"\xc0\x00", b"\xc0\xff", b"\xff\xff", b"\0\0\x29\x10\0\0\0\0\0\0\0"),
        *(b"\0\x01\0\x01", b"\0\x34\0\x01", b"\0\x05\0\x01", b"\x07example\x03org\0", b"?" * 300),
    )

    def hold(self, rng: Random, number: int) -> None:
        packet = self.octets(rng)
        name = checked_name(rng.choice(_NAMES))
        rdtype = rng.choice(_TYPES)
        if rng.random() < 0.9 and len(packet) > 12:  # with a question that fits
            asked = question(name, rdtype, _NUMBER, edns=False)
            packet = (
                asked[:2] + packet[2:4] + b"\0\x01" + packet[6:12] + asked[12:] + _behind(packet)
            )
        is_asked = rng.random() < 0.5
        found = answer(packet, name, rdtype, _NUMBER, dnssec=is_asked)
        if found is None:
            return
        ensure(isinstance(found.status, Status), "an answer without a status")
        ensure(found.ttl >= 0, "an answer lives less than no time")
        ensure(not found.is_secure or (is_asked and packet[3] & 0x20), "secure without AD")
        for text in (found.more, found.canonical, found.detail):
            _ensure_shown(text)
        ensure(not found.records or found.status is Status.FOUND, "records, and nothing was found")
        for record in found.records:
            self._record(record, rdtype)

    def _record(self, record: object, rdtype: str) -> None:
        match rdtype, record:
            case "MX", (int() as preference, str() as target):
                ensure(0 <= preference <= 0xFFFF, "a preference is none")
                _ensure_shown(target)
            case "A", str() as text:
                IPv4Address(text)
            case "AAAA", str() as text:
                IPv6Address(text)
            case "CNAME", str() as text:
                _ensure_shown(text)
            case "TLSA", Record():
                pass
            case _:
                ensure(False, f"a record of {rdtype} is {record!r}")


def _behind(packet: bytes) -> bytes:
    """What stands behind the question of a sample, as far as that can be found."""
    try:
        at = 12 + dns.name.from_wire(packet, 12)[1] + 4
    except Exception:  # the sample is damaged there, as it is to be
        at = 12
    return packet[at:]


def _ensure_shown(text: str) -> None:
    ensure(text.isascii() and (text.isprintable() or not text), f"a name is {text!r}")
    ensure(len(text) <= 1100, "a name is longer than DNS has them")


class Tlsa(Target):
    """Any octets in records come to a demand. Records that are not secure demand nothing, secure
    ones that cannot be used forbid to go without TLS, and what a proof is to match can be matched.
    """

    name = "tlsa"
    spices = (b"\3\1\1", b"\2\0\0", b"\0" * 32, b"\xff" * 64, b"\0\0\0", b"\2\1\2")

    def hold(self, rng: Random, number: int) -> None:
        records = []
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            octets = self.octets(rng, 400).ljust(3, b"\0")
            records.append(Record(octets[0] & 3, octets[1] & 3, octets[2] & 3, octets[3:]))
        told = TlsaRecords(tuple(records), rng.random() < 0.8)
        demand, usable = demanded(told)
        ensure((demand is Demand.PROOF) == bool(usable), "a proof is demanded without records")
        if not told.is_secure or not records:
            ensure(demand is Demand.WISH, "what is not validated demands something")
        else:
            ensure(demand is not Demand.WISH, "validated records demand nothing")
        ensure(all(map(is_usable, usable)), "a proof is to match what cannot be matched")
        shown = Shown(self.octets(rng, 300), self.octets(rng, 100))
        for record in records:
            matches(record, shown)
        is_end_entity(usable, shown)
        ensure(all(anchors_told(usable)), "an authority without a certificate")
