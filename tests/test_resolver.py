"""DNS as mail needs it, over memory sockets and virtual time."""

from __future__ import annotations

import random

import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import PermanentFailure, TransientFailure
from mta.model import Bridgehead, Proven, Tlsa, TlsaRecords
from mta.resolver.cache import Cache
from mta.resolver.dns import DnsResolver, name_servers
from mta.resolver.memory import MemoryResolver
from mta.resolver.packets import Status, answer, checked_name, question
from mta.resolver.settings import ResolverSettings
from mta.testing.resolver_suite import (
    RECORD,
    SIGNED,
    SIGNED_ZONE,
    ZONE,
    ISecureResolverTests,
    ITextResolverTests,
)
from mta.testing.surroundings import MemorySurroundings

SERVER = "192.0.2.53"
VALIDATOR = "127.0.0.1"


def quoted(text):
    """A TXT record in strings of 255 octets, as a zone file has it."""
    pieces = [text[at : at + 255] for at in range(0, max(len(text), 1), 255)]
    return " ".join('"' + "".join(f"\\{octet:03d}" for octet in p) + '"' for p in pieces)


def reply(packet, zone, *, truncate=False, signed=frozenset()):
    """What an honest recursive server with this zone answers, which validates the names `signed`."""
    query = dns.message.from_wire(packet)
    asked = query.question[0]
    name = asked.name.to_text(omit_final_dot=True).lower()
    rdtype = dns.rdatatype.to_text(asked.rdtype)
    response = dns.message.make_response(query, recursion_available=True)
    if truncate:
        response.flags |= dns.flags.TC
        return response.to_wire()
    is_secure = name in signed
    for _ in range(10):
        alias = zone.get((name, "CNAME"))
        if alias is None:
            break
        response.answer.append(dns.rrset.from_text(name + ".", 300, "IN", "CNAME", alias + "."))
        if rdtype == "CNAME":
            break
        name = alias
        is_secure = is_secure and name in signed
    if is_secure and query.flags & dns.flags.AD:
        response.flags |= dns.flags.AD
    if rdtype == "CNAME" and response.answer:
        return response.to_wire()
    records = zone.get((name, rdtype))
    if isinstance(records, Exception):
        response.set_rcode(dns.rcode.SERVFAIL)
    elif records is not None:
        texts = [
            f"{r.usage} {r.selector} {r.matching} {r.data.hex()}"
            if isinstance(r, Tlsa)
            else f"{r[0]} {r[1]}{'' if r[1] == '.' else '.'}"
            if isinstance(r, tuple)
            else quoted(r)
            if isinstance(r, bytes)
            else r
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
        self.signed = frozenset()
        self.forge = None
        self._answered = 0
        self.resolver = DnsResolver(
            ResolverSettings(**({"servers": (SERVER,)} | changes)),
            self.around.doors,
            self.around.clock,
            self.around.telemetry,
            system_configuration=lambda: "nameserver 127.0.0.9\n",
        )
        server = self

        class Tcp(Protocol):
            def dataReceived(self, data):
                wire = reply(data[2:], server.zone, signed=server.signed)
                framed = len(wire).to_bytes(2, "big") + wire
                self.transport.write(framed[:3])
                self.transport.write(framed[3:])

        for host in (SERVER, VALIDATOR):
            self.around.network.serve_service(f"tcp:{host}:53", Factory.forProtocol(Tcp))

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
                        said = reply(packet, self.zone, truncate=self.truncate, signed=self.signed)
                        socket.receive(said, where)
            self.around.advance(0)

    def result(self, case, asked):
        self.serve()
        return case.successResultOf(asked)


class DnsResolverSuite(ISecureResolverTests, ITextResolverTests, SynchronousTestCase):
    def resolver(self, zone):
        self.server = NameServer()
        self.server.zone.update(zone)
        return self.server.resolver

    def secure_resolver(self, zone, signed):
        self.server = validating()
        self.server.zone.update(zone)
        self.server.signed = signed
        return self.server.resolver

    def settle(self):
        self.server.serve()


class MemoryResolverSuite(ISecureResolverTests, ITextResolverTests, SynchronousTestCase):
    def secure_resolver(self, zone, signed):
        found = self.resolver(zone)
        found.sign(*signed)
        return found

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
            elif rdtype == "CNAME":
                found.add_alias(name, records)
            elif rdtype == "TLSA":
                label, _, base = name.partition("._tcp.")
                found.add_tlsa(base, int(label[1:]), *records)
            elif rdtype == "TXT":
                found.add_texts(name, *records)
            else:
                hosts.setdefault(name, []).extend(records)
        for name, addresses in hosts.items():
            found.add_host(name, *addresses)
        return found


def validating(**changes):
    """A name server on loopback that the configuration names as one that validates."""
    return NameServer(**({"servers": (VALIDATOR,), "dnssec": True} | changes))


class DnssecTests(SynchronousTestCase):
    def server(self, **changes):
        server = validating(**changes)
        server.zone.update(SIGNED_ZONE)
        server.signed = SIGNED
        return server

    def test_asked(self):
        """Where validation counts the question says so: AD, and DO for servers that want it."""
        for server, expected in ((self.server(), True), (NameServer(), False)):
            server.result(self, server.resolver.mail_hosts(b"example.com"))
            for _, packet in server.questions:
                query = dns.message.from_wire(packet)
                self.assertEqual(bool(query.flags & dns.flags.AD), expected)
                self.assertEqual(bool(query.ednsflags & dns.flags.DO), expected)

    def test_not_believed_unless_named(self):
        """What a server says of its validation counts for nothing without `dnssec: true`, were it
        on loopback.
        """
        for servers in ((VALIDATOR,), (SERVER,)):
            server = self.server(servers=servers, dnssec=False)
            server.forge = self.lies
            self.assertFalse(server.resolver.validates)
            hosts = server.result(self, server.resolver.mail_hosts(b"signed.example"))
            self.assertEqual([host.proven for host in hosts], [None, None])
            answer = server.result(self, server.resolver.tlsa("mx.signed.example", 25))
            self.assertEqual(answer, TlsaRecords((RECORD,), False))

    def lies(self, socket, packet, where):
        """All is validated, says the answer."""
        said = bytearray(reply(packet, SIGNED_ZONE, signed=SIGNED))
        said[3] |= 0x20
        socket.receive(bytes(said), where)

    def test_forged_word(self):
        """An answer with AD from another address or port is passed over."""
        server = self.server()

        def forge(socket, packet, where):
            for source in ((SERVER, 53), (where[0], 5353), ("::1", 53)):
                self.lies(socket, packet, source)

        server.forge = forge
        server.signed = frozenset()
        hosts = server.result(self, server.resolver.mail_hosts(b"signed.example"))
        self.assertEqual([host.proven for host in hosts], [None, None])

    def test_by_tcp(self):
        """An answer that had to come over TCP is as validated as another."""
        server = self.server()
        server.truncate = True
        (first, _) = server.result(self, server.resolver.mail_hosts(b"signed.example"))
        self.assertEqual(first.proven, Proven(("mx.signed.example",), ("signed.example",)))

    def test_kept(self):
        """What was validated stays so as long as it is kept."""
        server = self.server()
        for _ in range(2):
            answer = server.result(self, server.resolver.tlsa("mx.signed.example", 25))
            self.assertTrue(answer.is_secure)
        self.assertEqual(len(server.questions), 1)

    def test_alias_without_answer(self):
        """Where an alias leads out of what is signed, and nobody says whether it itself is, its host
        is not used: else whoever keeps that answer away would have taken DANE away.
        """
        server = self.server()
        server.forge = self.fails
        asked = server.resolver.mail_hosts(b"hired.example")
        server.serve()
        self.failureResultOf(asked, TransientFailure)

    def fails(self, socket, packet, where):
        """Whoever asks for an alias itself gets no answer."""
        query = dns.message.from_wire(packet)
        if query.question[0].rdtype == dns.rdatatype.CNAME:
            response = dns.message.make_response(query)
            response.set_rcode(dns.rcode.SERVFAIL)
            socket.receive(response.to_wire(), where)

    def test_alias_told_apart(self):
        """Where the server tells of an alias and of its target in two answers, both must have been
        validated.
        """
        for is_signed, bases in ((True, "mx.signed.example"), (False, None)):
            server = self.server()

            def forge(socket, packet, where, is_signed=is_signed):
                query = dns.message.from_wire(packet)
                if not query.question[0].name.to_text().startswith("www."):
                    return
                response = dns.message.make_response(query)
                if is_signed:
                    response.flags |= dns.flags.AD
                texts = ("www.aliased.example.", 300, "IN", "CNAME", "mx.signed.example.")
                response.answer.append(dns.rrset.from_text(*texts))
                socket.receive(response.to_wire(), where)

            server.forge = forge
            (host,) = server.result(self, server.resolver.mail_hosts(b"aliased.example"))
            self.assertEqual(host.proven and host.proven.bases[0], bases)

    def test_name_too_long(self):
        """A host whose TLSA records DNS could not hold has none."""
        server = self.server()
        base = ".".join(["x" * 60] * 4) + ".abcdef"
        answer = server.result(self, server.resolver.tlsa(base, 25))
        self.assertEqual(answer, TlsaRecords((), False))
        self.assertEqual(server.questions, [])

    def test_refused(self):
        """`dnssec: true` is for named servers on loopback: others are refused, and why."""
        for servers, words in (
            ((), "name the validating name servers"),
            (("127.0.0.1", "192.0.2.53"), "192.0.2.53 is not on loopback"),
            (("2001:db8::53",), "2001:db8::53 is not on loopback"),
        ):
            wrong = self.assertRaises(ValueError, ResolverSettings, servers=servers, dnssec=True)
            self.assertIn(words, str(wrong))
            self.assertIn("127.0.0.1", str(wrong))
        for servers in (("127.0.0.1:5353", "127.8.0.1"), ("::1", "[::1]:5353")):
            self.assertTrue(ResolverSettings(servers=servers, dnssec=True).dnssec)


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
        for rdtype in ("MX", "TLSA", "CNAME", "A"):
            answer(rubbish, self.NAME, rdtype, 7, dnssec=True)
            self.assertIsNone(answer(rubbish, self.NAME, rdtype, 65536, dnssec=True))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.binary(max_size=80))
    def test_any_tlsa(self, octets):
        """Whatever octets a TLSA record holds: it is what they say, and the others beside it stand.
        One too short for its fields is one that nobody can use.
        """
        name = checked_name("_25._tcp.example.com")
        query = dns.message.from_wire(question(name, "TLSA", 7, dnssec=True))
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AD
        good = bytes((RECORD.usage, RECORD.selector, RECORD.matching)) + RECORD.data
        rrset = dns.rrset.RRset(name, dns.rdataclass.IN, dns.rdatatype.TLSA)
        rrset.ttl = 60
        for each in (good, octets):
            generic = dns.rdata.GenericRdata(dns.rdataclass.IN, dns.rdatatype.TLSA, each)
            rrset.items[generic] = None
        response.answer.append(rrset)
        found = answer(response.to_wire(), name, "TLSA", 7, dnssec=True)
        expected = Tlsa(255, 255, 255, b"") if len(octets) < 3 else Tlsa(*octets[:3], octets[3:])
        self.assertEqual(set(found.records), {expected, RECORD})
        self.assertTrue(found.is_secure)

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
