"""DNS as mail needs it, over memory sockets and virtual time."""

from __future__ import annotations

import random

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import PermanentFailure, TransientFailure
from mta.model import Bridgehead
from mta.resolver.cache import Cache
from mta.resolver.dns import DnsResolver, name_servers
from mta.resolver.memory import MemoryResolver
from mta.resolver.packets import Status, answer, checked_name, question
from mta.resolver.settings import ResolverSettings
from mta.testing.resolver_suite import ZONE, IResolverTests
from mta.testing.surroundings import MemorySurroundings

SERVER = "192.0.2.53"


def reply(packet, zone, *, truncate=False):
    """What an honest recursive server with this zone answers."""
    query = dns.message.from_wire(packet)
    asked = query.question[0]
    name = asked.name.to_text(omit_final_dot=True).lower()
    rdtype = dns.rdatatype.to_text(asked.rdtype)
    response = dns.message.make_response(query, recursion_available=True)
    if truncate:
        response.flags |= dns.flags.TC
        return response.to_wire()
    for _ in range(10):
        alias = zone.get((name, "CNAME"))
        if alias is None:
            break
        response.answer.append(dns.rrset.from_text(name + ".", 300, "IN", "CNAME", alias + "."))
        name = alias
    records = zone.get((name, rdtype))
    if isinstance(records, Exception):
        response.set_rcode(dns.rcode.SERVFAIL)
    elif records is not None:
        texts = [
            f"{r[0]} {r[1]}{'' if r[1] == '.' else '.'}" if isinstance(r, tuple) else r
            for r in records
        ]
        response.answer.append(dns.rrset.from_text(name + ".", 300, "IN", rdtype, *texts))
    else:
        if not any(known == name for known, _ in zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(
            dns.rrset.from_text("example.", 60, "IN", "SOA", "a. b. 1 2 3 4 30")
        )
    return response.to_wire()


class NameServer:
    """Answers what lies on the memory sockets, in the way a test wants."""

    def __init__(self, **changes):
        self.around = MemorySurroundings()
        self.zone = dict(ZONE)
        self.silent = set()
        self.questions = []
        self.truncate = False
        self.forge = None
        self._answered = 0
        self.resolver = DnsResolver(
            ResolverSettings(**({"servers": (SERVER,)} | changes)),
            self.around.doors,
            self.around.clock,
            self.around.telemetry,
            system_configuration=lambda: "nameserver 127.0.0.9\n",
        )
        zone = self.zone

        class Tcp(Protocol):
            def dataReceived(self, data):
                wire = reply(data[2:], zone)
                framed = len(wire).to_bytes(2, "big") + wire
                self.transport.write(framed[:3])
                self.transport.write(framed[3:])

        self.around.network.serve_service(f"tcp:{SERVER}:53", Factory.forProtocol(Tcp))

    def serve(self):
        """Answer until nothing new is asked."""
        moved = True
        while moved:
            moved = False
            while self._answered < len(self.around.doors.datagrams):
                socket = self.around.doors.datagrams[self._answered]
                self._answered += 1
                for packet, where in list(socket.sent):
                    moved = True
                    self.questions.append((where[0], packet))
                    if where[0] in self.silent:
                        continue
                    if self.forge is not None:
                        self.forge(socket, packet, where)
                    if socket.is_open:
                        socket.receive(reply(packet, self.zone, truncate=self.truncate), where)
            self.around.advance(0)

    def result(self, case, asked):
        self.serve()
        return case.successResultOf(asked)


class DnsResolverSuite(IResolverTests, SynchronousTestCase):
    def resolver(self, zone):
        self.server = NameServer()
        self.server.zone.update(zone)
        return self.server.resolver

    def settle(self):
        self.server.serve()


class MemoryResolverSuite(IResolverTests, SynchronousTestCase):
    def resolver(self, zone):
        found = MemoryResolver()
        hosts = {}
        for (name, rdtype), records in zone.items():
            if isinstance(records, Exception):
                found.break_name(name, records)
            elif rdtype == "MX" and records == [(0, ".")]:
                found.add_null_mail(name)
            elif rdtype == "MX":
                found.add_mail(name, records)
            else:
                hosts.setdefault(name, []).extend(records)
        for name, addresses in hosts.items():
            found.add_host(name, *addresses)
        return found


class DnsTests(SynchronousTestCase):
    def test_alias(self):
        """A mail exchanger that is an alias is followed."""
        server = NameServer()
        server.zone["alias.example", "MX"] = [(10, "www.alias.example")]
        server.zone["www.alias.example", "CNAME"] = "mx1.example.com"
        [host] = server.result(self, server.resolver.mail_hosts(b"alias.example"))
        self.assertEqual(len(host.addresses), 2)

    def test_alias_loop(self):
        """An alias that leads to itself ends, as a transient failure."""
        server = NameServer()
        server.zone["loop.example", "CNAME"] = "loop.example"
        asked = server.resolver.addresses("loop.example")
        for _ in range(20):
            server.serve()
            server.around.advance(3.0)
        self.failureResultOf(asked, TransientFailure, PermanentFailure)

    def test_exchanger_points_inside(self):
        """A stranger's MX cannot make us talk to ourselves: addresses as names, localhost and
        loopback addresses are refused."""
        server = NameServer()
        server.zone["bad1.example", "MX"] = [(10, "192.0.2.1"), (20, "localhost")]
        server.zone["bad2.example", "MX"] = [(10, "inside.example")]
        server.zone["inside.example", "A"] = ["127.0.0.1"]
        for domain in (b"bad1.example", b"bad2.example"):
            asked = server.resolver.mail_hosts(domain)
            server.serve()
            failure = self.failureResultOf(asked, PermanentFailure).value
            self.assertEqual(failure.enhanced, "5.4.4")

    def test_truncated(self):
        """An answer that was cut off is asked again over TCP."""
        server = NameServer()
        server.truncate = True
        found = server.result(self, server.resolver.addresses("mx2.example.com"))
        self.assertEqual([str(a) for a in found], ["198.51.100.2"])

    def test_silent_server(self):
        """A name server that is silent costs its timeout; the next one answers."""
        server = NameServer(servers=("192.0.2.54", SERVER), timeout=3.0)
        server.silent = {"192.0.2.54"}
        asked = server.resolver.addresses("mx2.example.com")
        server.serve()
        server.around.advance(2.9)
        server.serve()
        self.assertNoResult(asked)
        server.around.advance(0.1)
        self.assertTrue(server.result(self, asked))

    def test_all_silent(self):
        """When nobody answers the failure is transient, and no socket stays open."""
        server = NameServer()
        server.silent = {SERVER}
        asked = server.resolver.mail_hosts(b"example.com")
        server.serve()
        for _ in range(10):
            server.around.advance(3.0)
            server.serve()
        failure = self.failureResultOf(asked, TransientFailure).value
        self.assertEqual(failure.enhanced, "4.4.3")
        self.assertEqual([s for s in server.around.doors.datagrams if s.is_open], [])
        self.assertEqual(server.around.clock.reactor.getDelayedCalls(), [])

    def test_forged(self):
        """Answers from elsewhere, with another id, or to another question are passed over."""
        server = NameServer()

        def forge(socket, packet, where):
            bad = {("mx2.example.com", "A"): ["203.0.113.66"]}
            wrong_id = bytes([packet[0] ^ 1]) + packet[1:]
            socket.receive(reply(packet, bad), ("203.0.113.5", 53))
            socket.receive(reply(packet, bad), (where[0], 5353))
            socket.receive(reply(wrong_id, bad), where)
            socket.receive(packet, where)
            socket.receive(b"", where)
            socket.receive(b"\xff" * 40, where)

        server.forge = forge
        found = server.result(self, server.resolver.addresses("mx2.example.com"))
        self.assertEqual([str(a) for a in found], ["198.51.100.2"])

    def test_cache(self):
        """An answer is kept as long as its TTL says, also that there is none."""
        server = NameServer()
        server.result(self, server.resolver.addresses("mx2.example.com"))
        asked = len(server.questions)
        server.result(self, server.resolver.addresses("mx2.example.com"))
        self.assertEqual(len(server.questions), asked)
        server.around.advance(31.0)  # the missing AAAA is asked again, the A is still known
        server.result(self, server.resolver.addresses("mx2.example.com"))
        self.assertEqual(len(server.questions), asked + 1)
        server.around.advance(300.0)
        server.result(self, server.resolver.addresses("mx2.example.com"))
        self.assertEqual(len(server.questions), asked + 3)

    def test_one_question_for_many(self):
        """Who asks what is being asked already waits for the same answer."""
        server = NameServer()
        asked = [server.resolver.addresses("mx2.example.com") for _ in range(50)]
        asked[0].cancel()
        server.serve()
        self.assertEqual(len(server.questions), 2)
        self.failureResultOf(asked[0])
        for each in asked[1:]:
            self.assertTrue(self.successResultOf(each))

    def test_no_domain_name(self):
        """What DNS cannot hold is no domain: 5.1.2, without a question."""
        server = NameServer()
        for domain in (b"", b".", b"a..b", b"x" * 64 + b".example", b"a." * 200):
            asked = server.resolver.mail_hosts(domain)
            self.assertEqual(self.failureResultOf(asked, PermanentFailure).value.enhanced, "5.1.2")
        self.assertEqual(server.around.doors.datagrams, [])

    def test_resolv_conf(self):
        """The name servers are those of resolv.conf unless the configuration names others."""
        text = "# x\nsearch a b\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver junk\n"
        self.assertEqual(
            name_servers(text), (Bridgehead("192.0.2.1", 53), Bridgehead("fe80::1", 53))
        )
        self.assertEqual(name_servers(""), (Bridgehead("127.0.0.1", 53),))
        server = NameServer(servers=())
        server.resolver.addresses("mx2.example.com").addErrback(lambda _: None)
        self.assertEqual(server.around.doors.datagrams[0].sent[0][1], ("127.0.0.9", 53))

    def test_cache_is_bounded(self):
        """However many domains are asked, memory stays bounded."""
        cache = Cache(lambda: 0.0, most=10)
        for number in range(100):
            cache.put(number, number, 60.0)
        self.assertEqual(len(cache), 10)
        self.assertEqual(cache.get(99), 99)


class PacketTests(SynchronousTestCase):
    NAME = checked_name("example.com")

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.binary(max_size=600))
    def test_rubbish(self, rubbish):
        """Whatever octets arrive, nothing is raised and nothing is believed."""
        answer(rubbish, self.NAME, "MX", 7)
        self.assertIsNone(answer(rubbish, self.NAME, "MX", 65536))

    def test_damaged(self):
        """An honest answer with octets changed or cut is an answer or nothing, never a crash."""
        packet = reply(question(self.NAME, "MX", 7), ZONE)
        chance = random.Random(1)
        for _ in range(800):
            damaged = bytearray(packet)
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            cut = bytes(damaged[: chance.randint(0, len(damaged))])
            for octets in (bytes(damaged), cut):
                found = answer(octets, self.NAME, "MX", 7)
                self.assertTrue(found is None or isinstance(found.status, Status))
