"""What the kernel, etcd, keepalived and other nodes say: local or trusted, and maybe ill."""

from __future__ import annotations

import struct
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from random import Random

from mta.association.holders import parse_proc_net
from mta.cluster import etcd_json, netlink, packets, processes, vrrp, watchdog
from mta.errors import RemoteProtocolError, TransientFailure
from mta.model import FourTuple, Segment
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.testing.fuzz.trees import other_values


class Netlink(Target):
    """Any octets of the kernel are news, each whole and in its order, or passed over; nothing is
    raised, and a table that hears them can still say why an address cannot be used.
    """

    name = "netlink"
    spices = (
        *(struct.pack("=HH", 8, 2), struct.pack("=HH", 20, 1), b"lo\0\0", b"\x14\0\0\0", bytes(16)),
        *(struct.pack("=IHHII", 20, 3, 2, 5, 9), struct.pack("=IHHIIi", 36, 2, 0, 5, 9, -16)),
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng, 8192)
        table = netlink.KernelAddresses()
        table.expect(4)
        table.expect(5)
        told = 0
        for _, sequence, news in netlink.parse(octets):
            told += 1
            if isinstance(news, netlink.AddressNews):
                ensure(isinstance(news.address, IPv4Address | IPv6Address), "no address")
                netlink.flag_names(news.flags)
            table.take(sequence if rng.random() < 0.5 else 0, news)
            if isinstance(news, netlink.AddressNews):
                is_usable = table.usable(news.address) is not None
                same(is_usable, table.explain(news.address) == "", "usable, and why not")
                table.places(news.address)
        ensure(told <= len(octets) // 16, "news of nothing")
        found = watchdog.acknowledgement(octets, 5)
        ensure(found is None or isinstance(found, int), "no errno")


class Etcd(Target):
    """Any answer of the gateway means what etcd's own would, or is refused by name: it has not
    the shape, or etcd says an error. What is repeated of it is short and can be printed.
    """

    name = "etcd"
    spices = (
        *(b"null", b"true", b"[]", b"{}", b"0", b"-1", b'"-1"', b'"9223372036854775808"', b"1e999"),
        *(
            b'"\\ud800"',
            '"é"'.encode(),
            b'"x"',
            b"\xff",
            b"[" * 900,
            b"{",
            b"}",
            b",",
            b'"TTL":"0"',
        ),
        *(b'"error":', b'"error":{"message":"x"}', b'"canceled":true,', b"9" * 5000),
        *(b'"header":{"cluster_id":"1","revision":"2"},', b'"' + b"9" * 30 + b'"'),
        *(b'"x":%b%b,' % (b"[" * n, b"]" * n) for n in (300, 480, 900, 960, 970, 980, 990)),
    )

    def hold(self, rng: Random, number: int) -> None:
        answer = self.octets(rng)
        if rng.random() < 0.5:
            answer = other_values(rng, rng.choice(self.seeds))
        parsers = (
            etcd_json.parse_grant,
            lambda octets: etcd_json.parse_keepalive(octets, 1),
            etcd_json.parse_revoke,
            etcd_json.parse_range,
            etcd_json.parse_claim,
            etcd_json.parse_watch,
        )
        for parse in parsers:
            found = either(partial(parse, answer), TransientFailure, RemoteProtocolError)
            if isinstance(found, BaseException):
                _ensure_shown(str(found))
            elif isinstance(found, etcd_json.WatchNews):
                _ensure_shown(found.has_ended)
            elif isinstance(found, tuple) and isinstance(found[0], etcd_json.Holding):
                ensure(found[0].token >= 1, "a key without a token")
                _ensure_shown(found[0].node)
                _ensure_shown(found[0].who)
        refused = etcd_json.refusal(rng.choice((400, 503)), answer)
        _ensure_shown(str(refused))
        etcd_json.cluster_of(answer)


def _ensure_shown(text: str) -> None:
    ensure(len(text) <= 1000, f"{len(text)} characters are repeated")
    ensure(text.isprintable(), f"what is said cannot be printed: {text!r}")


class Keepalived(Target):
    """Lines of keepalived's FIFO, records and process tables are what they are, or rubbish that is
    counted and shown short; how they are cut changes nothing, and a line of them is kept.
    """

    name = "keepalived"
    spices = (
        *(
            b"\n",
            b'"',
            b" ",
            b"MASTER",
            b"BACKUP",
            b"INSTANCE",
            b"GROUP",
            b" at ",
            b" boot ",
            b" by ",
        ),
        *(b"9" * 400, b":", b"\xff", b"\x1b[2J", b"x" * 600, b")", b"(", b"MASTER_RX_LOWER_PRI"),
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng)
        same(_heard([octets]), _heard(pieces_of(rng, octets)), "pieces change what was said")
        found = vrrp.parse_record(octets)
        if found is not None:
            same(vrrp.parse_record(found.octets()), _rounded(found), "a record reads as another")
        processes.parse_stat(octets[: processes.MOST_OCTETS])
        list(parse_proc_net(octets.decode("ascii", "replace").splitlines()))
        watchdog.read_deadline(octets[:64].ljust(64, b"\0"))


def _rounded(record: vrrp.Record) -> vrrp.Record | None:
    """It is written with three places; what cannot be written so reads as nothing."""
    return vrrp.parse_record(record.octets())


def _heard(pieces: list[bytes]) -> object:
    notifications = vrrp.Notifications()
    found = []
    for piece in pieces:
        found += notifications.receive(piece)
        ensure(len(notifications._rest) <= vrrp.LONGEST_LINE, "more than a line is kept")
    notifications.forget_rest()
    ensure(notifications.last_rubbish.isprintable(), "rubbish that cannot be shown")
    ensure(len(notifications.others) <= 32, "names without an end are kept")
    return found, notifications.rubbish


class Segments(Target):
    """A TCP segment of a peer whose association is gone is answered by one reset at most, to its
    own ends, and only where it is an acknowledgement.
    """

    name = "segments"
    spices = (b"\0\x19", b"\x10", b"\x12", b"\x04", bytes(20), b"\xff" * 4)

    def hold(self, rng: Random, number: int) -> None:
        ends = rng.choice((("192.0.2.10", "192.0.2.99"), ("2001:db8::10", "2001:db8::99")))
        segment = Segment(ends[1], ends[0], self.octets(rng, 200))
        whose = packets.answering(segment)
        answers = packets.reset(segment)
        ensure(len(answers) <= 1, "more than one reset")
        if whose is None:
            ensure(not answers, "what is cut short is answered")
        else:
            same((whose.local_host, whose.peer_host), ends, "whose it is")
        for answer in answers:
            assert isinstance(whose, FourTuple)
            same((answer.source, answer.target), ends, "a reset to somebody else")
            same(
                struct.unpack_from("!HH", answer.octets),
                (whose.local_port, whose.peer_port),
                "ports",
            )
