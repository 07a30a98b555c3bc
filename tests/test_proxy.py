"""Behind a load balancer: the header of the PROXY protocol, and who is the client from there on."""

from __future__ import annotations

import os
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.association.proxy import FLOOD_SECONDS
from mta.association.smtp_settings import SmtpListenerSettings
from mta.association.tls import Tls
from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.model import FourTuple, PeerInfo
from mta.telemetry import Accepted, Connected, Notice, Secured
from mta.testing.certificates import Authority
from mta.testing.network import MemoryPeer
from mta.wire.proxy import (
    BLOCK_OCTETS,
    ITSELF,
    LINE_OCTETS,
    MOST_OCTETS,
    End,
    Header,
    HeaderReader,
    Refusal,
    crc32c,
)
from tests.intake_ground import FRIEND, House, begin, send
from tests.test_smtp_in import VIP, ResponderTestCase

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BALANCER = "203.0.113.5"
CLIENT = "198.51.100.77"
ONE = b"PROXY TCP4 198.51.100.77 203.0.113.1 40001 25\r\n"


def binary(
    block: bytes, *, command: int = 0x21, family: int = 0x11, length: int | None = None
) -> bytes:
    length = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", length) + block


def addresses(source: str, destination: str, *ports: int) -> bytes:
    packed = ip_address(source).packed + ip_address(destination).packed
    return packed + struct.pack("!HH", *ports or (40001, 25))


def value(kind: int, octets: bytes) -> bytes:
    return struct.pack("!BH", kind, len(octets)) + octets


def checked(block: bytes, **keys: Any) -> bytes:
    """With its CRC32C behind everything else."""
    whole = binary(block + value(3, bytes(4)), **keys)
    return whole[:-4] + crc32c(whole).to_bytes(4, "big")


FOUR = addresses(CLIENT, "203.0.113.1")
SIX = addresses("2001:db8::77", "2001:db8::1")
NAMED = Header(End(IPv4Address(CLIENT), 40001), End(IPv4Address("203.0.113.1"), 25))
NAMED6 = Header(End(IPv6Address("2001:db8::77"), 40001), End(IPv6Address("2001:db8::1"), 25))


def read(octets: bytes) -> Header | Refusal | None:
    return HeaderReader().receive(octets)


class VersionOneTests(SynchronousTestCase):
    def test_named(self) -> None:
        """A line names the client and where it connected to, in both families."""
        self.assertEqual(read(ONE), NAMED)
        self.assertEqual(read(b"PROXY TCP6 2001:db8::77 2001:DB8::1 40001 25\r\n"), NAMED6)
        found = read(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n")
        self.assertEqual(found, Header(End(IPv6Address("::ffff:c000:201"), 0), End(IPv6Address("::1"), 65535)))  # fmt: skip

    def test_unknown(self) -> None:
        """UNKNOWN is the connection itself, whatever stands behind it."""
        self.assertEqual(read(b"PROXY UNKNOWN\r\n"), ITSELF)
        self.assertEqual(read(b"PROXY UNKNOWN ffff:: ::1 99999 x\r\n"), ITSELF)

    def test_longest(self) -> None:
        """107 octets are a line; with the 107th still no end it is none."""
        line = b"PROXY UNKNOWN ".ljust(LINE_OCTETS - 2, b"x")
        self.assertEqual(read(line + b"\r\n"), ITSELF)
        self.assertIsNone(read(line + b"x"))
        self.assertIs(read(line + b"xx"), Refusal.LONG_LINE)
        self.assertIs(read(line + b"x\r\n"), Refusal.LONG_LINE)

    def test_strict(self) -> None:
        """What is nearly a header is none: nobody is taken for a client by guessing."""
        for wrong in (
            b"PROXY\r\n",
            b"PROXYTCP4 198.51.100.77 203.0.113.1 40001 25\r\n",
            b"proxy TCP4 198.51.100.77 203.0.113.1 40001 25\r\n",
            b" PROXY TCP4 198.51.100.77 203.0.113.1 40001 25\r\n",
            b"EHLO client.example.org\r\n",
            b"\r\nPROXY UNKNOWN\r\n",
            b"\x16\x03\x01\x02",
        ):
            self.assertIs(read(wrong), Refusal.ABSENT, wrong)
        for wrong in (
            b"PROXY \r\n",
            b"PROXY UNKNOWN\n",
            b"PROXY UNKNOWN\r\r\n",
            b"PROXY UNKNOWNX\r\n",
            b"PROXY  TCP4 198.51.100.77 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 40001 25 \r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 40001\r\n",
            b"PROXY TCP5 198.51.100.77 203.0.113.1 40001 25\r\n",
            b"PROXY TCP6 198.51.100.77 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 2001:db8::77 2001:db8::1 40001 25\r\n",
            b"PROXY TCP6 fe80::1%eth0 2001:db8::1 40001 25\r\n",
            b"PROXY TCP4 198.51.100.077 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 198.51.100.77/32 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 198.51.100 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 localhost 203.0.113.1 40001 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 040001 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 65536 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 -1 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 +1 25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1  25\r\n",
            b"PROXY TCP4 198.51.100.77 203.0.113.1 \xb2 25\r\n",
            b"PROXY TCP4 \xd9\xa1.2.3.4 203.0.113.1 1 25\r\n",
        ):
            self.assertIs(read(wrong), Refusal.MALFORMED, wrong)


class VersionTwoTests(SynchronousTestCase):
    def test_named(self) -> None:
        """TCP over IPv4 and IPv6, with and without further values."""
        self.assertEqual(read(binary(FOUR)), NAMED)
        self.assertEqual(read(binary(SIX, family=0x21)), NAMED6)
        self.assertEqual(read(binary(FOUR + value(2, b"mx.example") + value(4, b""))), NAMED)

    def test_itself(self) -> None:
        """LOCAL, UNSPEC and a UNIX socket name nobody: the connection stands for itself."""
        for octets in (
            binary(b"", command=0x20, family=0),
            binary(FOUR, command=0x20),
            binary(b"\xff" * 9, command=0x20, family=0xFF),
            binary(b"", family=0),
            binary(b"whatever", family=0),
            binary(b"/run/a".ljust(108, b"\0") * 2, family=0x31),
        ):
            self.assertEqual(read(octets), ITSELF, octets)

    def test_refused(self) -> None:
        """Everything else has a name."""
        for octets, refusal in (
            (binary(FOUR, command=0x11), Refusal.VERSION),
            (binary(FOUR, command=0x22), Refusal.COMMAND),
            (binary(FOUR, family=0x12), Refusal.FAMILY),
            (binary(FOUR, family=0x10), Refusal.FAMILY),
            (binary(FOUR, family=0x01), Refusal.FAMILY),
            (binary(FOUR, family=0x32), Refusal.FAMILY),
            (binary(FOUR, family=0x41), Refusal.FAMILY),
            (binary(FOUR[:11]), Refusal.SHORT_BLOCK),
            (binary(FOUR, family=0x21), Refusal.SHORT_BLOCK),
            (binary(b"/run/a", family=0x31), Refusal.SHORT_BLOCK),
            (binary(FOUR + b"\4\0"), Refusal.VALUES),
            (binary(FOUR + b"\4\0\2x"), Refusal.VALUES),
            (binary(b"", length=BLOCK_OCTETS + 1), Refusal.LONG_BLOCK),
            (binary(b"", command=0x20, length=BLOCK_OCTETS + 1), Refusal.LONG_BLOCK),
            (SIGNATURE[:11] + b"\r", Refusal.ABSENT),
        ):
            self.assertIs(read(octets), refusal, octets)

    def test_longest(self) -> None:
        """4096 octets behind the first 16 are read, and not one less will do."""
        whole = binary(FOUR + value(4, bytes(BLOCK_OCTETS - len(FOUR) - 3)))
        self.assertEqual(len(whole), MOST_OCTETS)
        self.assertIsNone(read(whole[:-1]))
        self.assertEqual(read(whole), NAMED)

    def test_checksum(self) -> None:
        """CRC32C is right or the header is refused; one octet changed anywhere shows."""
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)  # the check value of the algorithm
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)  # RFC 3720 appendix B.4
        good = checked(FOUR + value(2, b"mx.example"))
        self.assertEqual(read(good), NAMED)
        for place in (*range(16, 28), len(good) - 1):
            wrong = bytearray(good)
            wrong[place] ^= 1
            self.assertIs(read(bytes(wrong)), Refusal.CHECKSUM, place)
        self.assertIs(read(binary(FOUR + value(3, b"123"))), Refusal.CHECKSUM)
        twice = checked(FOUR + value(3, bytes(4)))
        self.assertIs(read(twice), Refusal.CHECKSUM)


hosts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.integers(0, 0xFFFF)


@st.composite
def headers(draw: Any) -> tuple[bytes, Header]:
    """A right header in either version, and what it says."""
    family = draw(st.sampled_from([4, 6]))
    source, destination = draw(st.ip_addresses(v=family)), draw(st.ip_addresses(v=family))
    said = Header(End(source, draw(ports)), End(destination, draw(ports)))
    assert said.source is not None and said.destination is not None
    if draw(st.booleans()):
        text = f"PROXY TCP{family} {source} {destination} {said.source.port} {said.destination.port}\r\n"
        return text.encode(), said
    block = addresses(str(source), str(destination), said.source.port, said.destination.port)
    kinds = st.sampled_from([1, 2, 4, 5, 0x20, 0x30, 0xE0])
    for kind, octets in draw(st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=4)):
        block += value(kind, octets)
    make = checked if draw(st.booleans()) else binary
    return make(block, family=0x11 if family == 4 else 0x21), said


nearly = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=200).map(lambda octets: b"PROXY " + octets),
    st.text(alphabet="PROXYTCUNKW46 .:0123456789abf\r\n", max_size=150).map(str.encode),
    st.binary(max_size=300).map(lambda octets: SIGNATURE + octets),
    st.tuples(st.sampled_from([0x20, 0x21]), st.sampled_from([0, 0x11, 0x21, 0x31]), st.binary(max_size=300)).map(
        lambda t: binary(t[2], command=t[0], family=t[1])
    ),
    headers().map(lambda found: found[0]),
)  # fmt: skip


class AnyOctetsTests(SynchronousTestCase):
    @LIGHT
    @given(headers(), st.binary(max_size=100))
    def test_what_is_said_is_read(self, made: tuple[bytes, Header], rest: bytes) -> None:
        """Every right header is read as it was meant, and what follows is left as it came."""
        octets, said = made
        reader = HeaderReader()
        self.assertEqual(reader.receive(octets + rest), said)
        self.assertEqual(reader.rest, rest)

    @LIGHT
    @given(nearly, st.data())
    @example(ONE + b"EHLO x\r\n", None)
    def test_every_split(self, octets: bytes, data: Any) -> None:
        """However octets are cut, the answer is the same, it comes once, and nothing is lost."""
        whole = HeaderReader()
        expected = whole.receive(octets)
        cuts = [1] * len(octets)
        if data is not None:
            cuts = data.draw(st.lists(st.integers(1, 60), max_size=50))
        reader, at, found = HeaderReader(), 0, None
        for size in [*cuts, len(octets)]:
            piece, at = octets[at : at + size], min(at + size, len(octets))
            if piece:
                found = reader.receive(piece)
            if found is not None:
                break
        self.assertEqual(found, expected)
        if isinstance(found, Header):
            self.assertEqual(reader.rest + octets[at:], whole.rest)

    @LIGHT
    @given(nearly, st.binary(min_size=1, max_size=50))
    def test_it_ends(self, begins: bytes, goes_on: bytes) -> None:
        """Whatever comes, an octet at a time: within MOST_OCTETS it is a header or it is refused."""
        reader, count = HeaderReader(), 0
        for octet in begins + goes_on * MOST_OCTETS:
            count += 1
            if reader.receive(bytes([octet])) is not None:
                break
        self.assertLessEqual(count, MOST_OCTETS)


class BehindABalancerCase(ResponderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.listener = self.listen(proxy_from=[f"{BALANCER}/32", "2001:db8:5::/64"])

    def dial(self, source: str = BALANCER, port: int = 25) -> MemoryPeer:
        return super().dial(source, port)

    def refusals(self) -> list[str]:
        return [e.text for e in self.surroundings.events if isinstance(e, Notice)]

    def counted(self) -> float:
        counter = self.surroundings.telemetry.counter
        return counter("mta_proxy_headers_refused_total", listener="smtp:25").value


class ListenerTests(BehindABalancerCase):
    def test_client(self) -> None:
        """Behind either version the reception hears of the client; the socket's ends stay known."""
        for header, client in ((ONE, CLIENT), (binary(SIX, family=0x21), "2001:db8::77")):
            peer = self.dial()
            self.assertEqual((peer.take(), len(self.host.peers)), (b"", 0))
            self.assertTrue(self.say(peer, header).startswith(b"220 "))
            met = self.host.peers.pop()
            self.assertEqual((met.host, met.port), (client, 40001))
            self.assertEqual((met.local_host, met.local_port, met.listener), (VIP, 25, "smtp:25"))
            there = peer.transport.getHost()  # type: ignore[union-attr]
            self.assertEqual(met.ends, FourTuple(VIP, 25, BALANCER, there.port))
        self.assertEqual((self.listener.open_associations, self.refusals()), (2, []))

    def test_octet_by_octet(self) -> None:
        """A header that trickles, and the client's words in one piece with its end, lose nothing."""
        peer = self.dial()
        for octet in ONE[:-1]:
            self.assertEqual(self.say(peer, bytes([octet])), b"")
        said = self.say(peer, b"\nEHLO x\r\nNOOP\r\n")
        self.assertTrue(said.startswith(b"220 ") and said.endswith(b"250 2.0.0 Ok\r\n"), said)

    def test_early_talker(self) -> None:
        """A header is not early talk, and what a client says behind it before its greeting is."""
        self.listen(port=26, proxy_from=[f"{BALANCER}/32"], early_talkers="refuse")
        for rest, expected in ((b"", b"220 "), (b"EHLO x\r\n", b"554 ")):
            greeting, peer = self.deferred("connected"), self.dial(port=26)
            self.assertEqual(self.say(peer, ONE + rest), b"")
            greeting.callback(None)
            self.assertTrue(self.say(peer, b"").startswith(expected), expected)

    def test_itself(self) -> None:
        """A balancer that asks how we are is served as the client that it is."""
        for header in (b"PROXY UNKNOWN\r\n", binary(b"", command=0x20, family=0)):
            self.assertTrue(self.say(self.dial(), header).startswith(b"220 "))
            met = self.host.peers.pop()
            self.assertEqual((met.host, met.via), (BALANCER, None))
            self.assertEqual(met.ends.peer_host, BALANCER)

    def test_mapped(self) -> None:
        """An IPv4 client that a balancer names in IPv6 clothes is that IPv4 client."""
        block = addresses(f"::ffff:{CLIENT}", "::ffff:203.0.113.1")
        self.say(self.dial(), binary(block, family=0x21))
        self.assertEqual(self.host.peers[0].host, CLIENT)

    def test_nobody_else(self) -> None:
        """From anywhere else a header is a command that nobody knows: loopback cannot be claimed."""
        peer = self.dial("198.51.100.7")
        self.assertTrue(peer.take().startswith(b"220 "))
        said = self.say(peer, b"PROXY TCP4 127.0.0.1 127.0.0.1 40001 25\r\n")
        self.assertTrue(said.startswith(b"500 "), said)
        self.assertEqual((self.host.peers[0].host, self.host.peers[0].via), ("198.51.100.7", None))
        self.assertEqual(self.counted(), 0)

    def test_no_balancers(self) -> None:
        """Without `proxy-from` everybody is greeted at once."""
        self.assertEqual(SmtpListenerSettings().proxy_from, ())
        self.listen(port=2525)
        self.assertTrue(self.dial(port=2525).take().startswith(b"220 "))

    def test_no_header(self) -> None:
        """A balancer that sends none is reset without a word; nothing it said is in the log."""
        peer = self.dial()
        self.assertEqual(self.say(peer, b"EHLO evil\x1b[2J\r\n" + ONE), b"")
        self.assertEqual((peer.is_open, peer.lost_because), (False, "ConnectionLost"))
        (text,) = self.refusals()
        self.assertIn(f"smtp:25: {BALANCER} is in proxy-from, but did not begin with", text)
        self.assertNotIn("evil", text)
        self.assertEqual((self.host.peers, self.counted()), ([], 1))

    def test_one_line_a_flood(self) -> None:
        """Of a flood the log has a line a minute, with the number of those that it left out."""
        for _ in range(5):
            self.say(self.dial(), b"GET / HTTP/1.0\r\n")
        self.assertEqual((len(self.refusals()), self.counted()), (1, 5))
        self.clock.advance(FLOOD_SECONDS - 0.1)
        self.say(self.dial(), binary(FOUR, family=0x99))
        self.assertEqual(len(self.refusals()), 1)
        self.clock.advance(0.1)
        self.say(self.dial(), b"PROXY TCP9 a b c d\r\n")
        self.assertIn("malformed version 1 header; it was reset (5 more", self.refusals()[1])

    def test_time(self) -> None:
        """The header has five seconds as a whole; octets now and then win no more."""
        peer = self.dial()
        self.clock.advance(4.0)
        self.say(peer, ONE[:10])
        self.clock.advance(0.99)
        self.assertTrue(peer.is_open)
        self.clock.advance(0.01)
        self.clock.advance(0)
        self.assertEqual((peer.take(), peer.is_open), (b"", False))
        self.assertIn("no whole PROXY header within 5 s", self.refusals()[0])

    def test_after_the_header(self) -> None:
        """The time for the header ends with it."""
        peer = self.dial()
        self.say(peer, ONE)
        self.clock.advance(60.0)
        self.assertTrue(peer.is_open)

    def test_look_at_the_port(self) -> None:
        """Who connects and goes again, as a check of the port does, is not worth a line."""
        peer = self.dial()
        peer.close()
        self.clock.advance(10)
        self.assertEqual((self.refusals(), self.counted()), ([], 0))

    def test_revoked(self) -> None:
        """What still waits for its header ends with the tenure, and no responder is made."""
        peer = self.dial()
        self.tenure.revoke()
        self.clock.advance(0)
        self.assertFalse(peer.is_open)
        self.assertEqual((self.host.peers, self.refusals()), ([], []))

    def test_drain(self) -> None:
        """A listener that ends tells those without a header to come again, and waits for none."""
        peer = self.dial()
        self.say(peer, ONE[:10])
        self.assertTrue(self.listener.drain().called)
        for _ in range(3):
            self.clock.advance(0)
        self.assertTrue(peer.take().startswith(b"421 4.3.2 "))
        self.assertFalse(peer.is_open)

    def test_broken_host(self) -> None:
        """A fault while the responder is made is named, and resets that connection alone."""
        self.host.fault = RuntimeError("broken")
        peer = self.dial()
        self.say(peer, ONE)
        self.assertFalse(peer.is_open)
        self.assertIn("dropped behind its PROXY header: broken", self.refusals()[0])
        self.host.fault = None
        self.assertTrue(self.say(self.dial(), ONE).startswith(b"220 "))

    def test_settings(self) -> None:
        """Everybody is no load balancer: a configuration that would let anybody be 127.0.0.1 is
        refused.
        """
        read = SmtpListenerSettings.model_validate
        got = read({"proxy-from": ["192.0.2.5/32"], "timeouts": {"proxy": "2s"}})
        self.assertEqual((len(got.proxy_from), got.timeouts.proxy), (1, 2.0))
        for wrong in ("0.0.0.0/0", "::/0"):
            error = self.assertRaises(ValueError, read, {"proxy-from": [wrong]})
            self.assertIn("is everybody", str(error))


class LimitTests(BehindABalancerCase):
    def setUp(self) -> None:
        ResponderTestCase.setUp(self)
        self.listener = self.listen(
            proxy_from=[f"{BALANCER}/32"], limits={"connections": 4, "connections-per-client": 2}
        )

    def line(self, client: str) -> bytes:
        return b"PROXY TCP4 %b 203.0.113.1 40001 25\r\n" % client.encode()

    def test_per_client(self) -> None:
        """The client is counted, not the balancer: one can take its share, the next one comes in."""
        peers = [self.dial() for _ in range(3)]
        answers = [self.say(peer, self.line(CLIENT))[:3] for peer in peers]
        self.assertEqual(answers, [b"220", b"220", b"421"])
        self.assertTrue(self.say(self.dial(), self.line("198.51.100.78")).startswith(b"220 "))
        peers[0].close()
        self.clock.advance(0)
        self.assertTrue(self.say(self.dial(), self.line(CLIENT)).startswith(b"220 "))

    def test_those_that_wait_count(self) -> None:
        """Connections without a header are bounded as all others are; each is counted once."""
        peers = [self.dial() for _ in range(4)]
        self.assertTrue(self.dial().take().startswith(b"421 4.7.0 "))
        for number, peer in enumerate(peers):
            said = self.say(peer, self.line(f"198.51.100.{number}"))
            self.assertTrue(said.startswith(b"220 "), said)
        self.assertTrue(self.dial("198.51.100.7").take().startswith(b"421 "))


class ReceptionTests(SynchronousTestCase):
    """What the inner house makes of a client that a balancer has named."""

    def setUp(self) -> None:
        self.house = House()
        self.socket = FourTuple("192.0.2.10", 25, BALANCER, 50001)

    def reception(self, host: str) -> Any:
        peer = PeerInfo("smtp/in/1", host, 40001, "192.0.2.10", 25, "smtp", via=self.socket)
        made = self.house.intake.reception(self.house.tenure, peer)
        made.connected()
        made.helo(b"client.example.net", "ESMTP")
        return made

    def test_journal(self) -> None:
        """The journal has the socket's ends: a new owner resets the balancer's connection, and no
        stranger's.
        """
        self.reception(CLIENT)
        opened = f"open smtp/in/1 {BALANCER}:50001 -> 192.0.2.10:25 inbound=True"
        self.assertEqual(self.house.spool.journal_lines, [opened])

    def test_relay(self) -> None:
        """Who may relay is judged by the client: neither does the balancer lend its rights, nor
        does it take them away.
        """
        stranger = self.reception(CLIENT)
        self.assertEqual(begin(stranger, "b@secret.example.com")[1].code, 554)
        friend = self.reception(FRIEND)
        self.assertEqual(begin(friend, "b@secret.example.com"), [None, None])

    def test_log_and_received(self) -> None:
        """Log and Received name the client, the log besides the balancer's end of the socket."""
        send(self.reception(CLIENT))
        (connected,) = self.house.kinds(Connected)
        self.assertEqual((connected.peer_host, connected.proxy), (CLIENT, f"{BALANCER}:50001"))
        (accepted,) = self.house.kinds(Accepted)
        self.assertEqual(accepted.client, CLIENT)


class ImplicitTlsTests(ResponderTestCase):
    def test_header_first(self) -> None:
        """Where TLS comes before the greeting the header comes before TLS, also in one piece."""
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        authority = Authority()
        trust, name = authority.write(directory), self.tenure.network_name
        pair = authority.issue(directory, name)
        tls = Tls(
            TlsSettings(
                certificates=(CertificateSettings(chain=pair.chain, key_file=pair.key),), trust=trust
            ),
            name, self.clock, self.surroundings.telemetry,
        )  # fmt: skip
        self.surroundings.tls = tls
        self.listen(port=465, tls="implicit", proxy_from=[f"{BALANCER}/32"])
        peer = self.dial(BALANCER, 465)
        transport: Any = peer.transport
        # What the TLS client says first leaves in one piece with the header.
        transport.write(ONE)
        transport.startTLS(tls.opening(name, True))
        for _ in range(20):
            self.clock.advance(0)
        self.assertTrue(peer.take().startswith(b"220 "), peer.lost_because)
        (secured,) = [e for e in self.surroundings.events if isinstance(e, Secured)]
        self.assertEqual((secured.peer, secured.direction), (CLIENT, "in"))
