"""TLS on both sides, by OpenSSL itself over memory transports: who we are, and who the others are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from mta.association.tls import LOOK_SECONDS, Tls, handshake_fault
from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.association.tls_wish import MOST, PLAINLY_SECONDS, Plainly
from mta.config.errors import ConfigErrors
from mta.errors import PermanentFailure, StartRefused
from mta.model import NextHop, TlsManner
from mta.resolver.memory import MemoryResolver
from mta.telemetry import Notice, Secured, Telemetry
from mta.testing.certificates import Authority, Pair
from mta.testing.clock import VirtualClock
from mta.testing.lab import FRIEND, HUB, Lab
from mta.testing.network import MemoryNetwork
from mta.testing.sink import Sink

NAME = "vs1.example.org"
BACK = "back.example.com"
BEHIND = "203.0.113.30"
MX = "mx.provider.example"
FRIENDS = "relay-from: [192.0.2.0/24]"


class Client(Protocol):
    """A TLS client of the memory network that keeps what it hears."""

    def __init__(self, creator: Any) -> None:
        self.creator = creator
        self.heard = b""
        self.lost: Any = None

    def connectionMade(self) -> None:
        self.transport.startTLS(self.creator)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason


class TlsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.directory = os.path.abspath(self.directory)
        self.authority = Authority()
        self.trust = self.authority.write(self.directory)
        self.clock = VirtualClock(datetime.now(UTC).timestamp())
        self.telemetry = Telemetry()
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)

    def issue(self, *names: str, **keys: Any) -> Pair:
        return self.authority.issue(self.directory, *names, **keys)

    def tls(self, *pairs: Pair, **keys: Any) -> Tls:
        chosen = tuple(CertificateSettings(chain=p.chain, key_file=p.key) for p in pairs)
        settings = TlsSettings(certificates=chosen, **keys)
        return Tls(settings, NAME, self.clock, self.telemetry)

    def shake(self, server: Tls, client: Tls, name: str, verify: bool = True) -> Any:
        """Both ends of a handshake; the client's connection, or why it failed."""
        network = MemoryNetwork(self.clock)
        far: list[Any] = []

        class Server(Protocol):
            def connectionMade(self) -> None:
                far.append(self)
                self.transport.startTLS(server.accepting())  # type: ignore[union-attr]
                self.transport.write(b"hello")  # type: ignore[union-attr]

        network.serve("192.0.2.1", 25, Server)
        near = Client(client.opening(name, verify))
        network.connect_ends("192.0.2.2", "192.0.2.1", 25, near)
        for _ in range(20):
            self.clock.advance(0)
        if near.heard != b"hello":
            raise AssertionError(handshake_fault(near.lost.value if near.lost else None))
        return near.transport.getHandle()  # type: ignore[union-attr]

    def shown(self, handle: Any) -> set[str]:
        from cryptography import x509

        certificate = handle.get_peer_certificate().to_cryptography()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(names.value.get_values_for_type(x509.DNSName))

    def in_front(self, domains: Iterable[str], *keys: str) -> tuple[Lab, MemoryResolver]:
        """A bridgehead with one connector of these keys, and the resolver that it asks: the mail
        exchanger of the domains is MX, at the hub's place.
        """
        front = Lab(
            "a",
            hub="203.0.113.40",
            more="\n".join(
                (
                    f"tls: {{trust: {self.trust}}}",
                    "resolver: {servers: [127.0.0.1], dnssec: true}",
                    "connectors:",
                    "  - name: out",
                    "    kind: smtp",
                    *(f"    {key}" for key in keys if key),
                    '    address-spaces: [{domain: "*", accept: anyone}]',
                    "",
                )
            ),
        )
        resolver = front.owner.surroundings.resolver
        assert isinstance(resolver, MemoryResolver)
        for domain in domains:
            resolver.add_mail(domain, [(10, MX)])
        resolver.add_host(MX, HUB)
        return front, resolver

    def behind(
        self, front: Lab, pair: Pair, tls: str = "offer", listener: str = FRIENDS, name: str = BACK
    ) -> Lab:
        """A bridgehead at the place of the first one's hub, with that certificate. `listener` are
        the further keys of its listener.
        """
        return Lab(
            "x",
            beside=front,
            hub=BEHIND,
            more=f"""
virtual-server: {{network-name: {name}, addresses: [{HUB}]}}
tls:
  trust: {self.trust}
  certificates: [{{chain: {pair.chain}, key-file: {pair.key}}}]
listeners:
  - {{kind: smtp, port: 25, tls: {tls}, {listener}}}
connectors:
  - name: mailboxes
    kind: smtp
    bridgeheads: ["{BEHIND}:25"]
    address-spaces: [{{domain: "*"}}]
""",
        )

    def incapable(self, front: Lab) -> Sink:
        """In the place of the bridgehead behind: it offers TLS, and takes a handshake for a line."""
        sink = front.hub
        sink.extensions = (b"PIPELINING", b"STARTTLS")
        sink.answer("STARTTLS", b"220 2.0.0 Ready, in a way")

        def build() -> Any:
            conversation: Any = sink.build()
            hear = conversation.dataReceived

            def heard(data: bytes) -> None:
                if data.startswith(b"\x16"):
                    conversation.transport.write(b"500 5.5.2 What?\r\n")
                else:
                    hear(data)

            conversation.dataReceived = heard
            return conversation

        front.network.listening.pop((HUB, 25))
        front.network.serve(HUB, 25, build)
        return sink


class CertificateTests(TlsTestCase):
    def test_handshake(self) -> None:
        """A client that verifies meets the network name, under TLS 1.3, in Postfix's words."""
        tls = self.tls(self.issue(NAME), trust=self.trust)
        handle = self.shake(tls, tls, NAME)
        tls.check_name(handle, NAME)
        self.assertRegex(tls.describe(handle), r"^TLSv1\.3 with cipher TLS_\w+ \((\d+)/\1 bits\)$")

    def test_sni(self) -> None:
        """Who asks for a further name gets its certificate, who asks for none or a strange one the
        network name's; a wildcard stands for one label.
        """
        ours, other = self.issue(NAME), self.issue("mail.other.example", "*.wide.example")
        tls = self.tls(other, ours, trust=self.trust)
        for asked, expected in (
            ("mail.other.example", "mail.other.example"),
            ("MAIL.other.example", "mail.other.example"),
            ("a.wide.example", "mail.other.example"),
            ("b.a.wide.example", NAME),
            ("strange.example", NAME),
            ("", NAME),
            ("192.0.2.1", NAME),
        ):
            self.assertIn(expected, self.shown(self.shake(tls, tls, asked)), asked)

    def test_two_kinds_of_key(self) -> None:
        """An RSA and an EC certificate for one name stand beside each other."""
        rsa = self.issue(NAME, file="rsa", kind="rsa")
        tls = self.tls(rsa, self.issue(NAME), trust=self.trust)
        kinds = set()
        for ciphers in (b"ECDHE-RSA-AES128-GCM-SHA256", b"ECDHE-ECDSA-AES128-GCM-SHA256"):
            client = self.tls(trust=self.trust)
            context = client._opener(TlsManner(True))
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            context.set_cipher_list(ciphers)
            handle = self.shake(tls, client, NAME)
            key = handle.get_peer_certificate().to_cryptography().public_key()
            kinds.add(type(key).__name__)
        self.assertEqual(len(kinds), 2, kinds)

    def test_refused_at_start(self) -> None:
        """What cannot be used is named: no such file, no certificate, another's key, another name."""
        good, other = self.issue(NAME), self.issue("other.example")
        rubbish = os.path.join(self.directory, "rubbish.pem")
        with open(rubbish, "w", encoding="ascii") as file:
            file.write("hello")
        for pair, words in (
            (Pair("/nowhere.pem", good.key), "/nowhere.pem cannot be read"),
            (Pair(rubbish, good.key), "rubbish.pem holds no certificate"),
            (Pair(good.chain, other.key), "cannot be used: "),
            (Pair(good.chain, rubbish), "cannot be used: "),
            (other, f"no certificate is for {NAME}: they are for other.example"),
            (self.issue(), "they are for no name at all"),
        ):
            refused = self.assertRaises(StartRefused, self.tls, pair)
            self.assertIn(words, str(refused))
        refused = self.assertRaises(StartRefused, self.tls, trust=rubbish)
        self.assertIn("tls.trust", str(refused))

    def test_read_again(self) -> None:
        """A certificate that was renewed is shown without a restart, soon; one that was broken is
        named in the log, and the former one stays.
        """
        pair = self.issue(NAME)
        tls = self.tls(pair, trust=self.trust)
        self.issue(NAME, "new.example.org", file=NAME)
        self.assertEqual(self.shown(self.shake(tls, tls, NAME)), {NAME})
        self.clock.advance(LOOK_SECONDS)
        self.assertEqual(self.shown(self.shake(tls, tls, NAME)), {NAME, "new.example.org"})
        with open(pair.key, "w", encoding="ascii") as file:
            file.write("torn")
        self.clock.advance(LOOK_SECONDS)
        for _ in range(3):
            self.assertEqual(self.shown(self.shake(tls, tls, NAME)), {NAME, "new.example.org"})
        errors = [e.text for e in self.events if type(e) is Notice and e.level == "error"]
        self.assertEqual(len(errors), 1)
        self.assertIn("the former certificate stays in use", errors[0])

    def test_the_end_is_told(self) -> None:
        """A certificate that has expired, or will soon, is named in the log."""
        now = datetime.now(UTC)
        for left, words in ((timedelta(days=-1), "has expired"), (timedelta(days=5), "ends in ")):
            self.events.clear()
            self.tls(self.issue(NAME, ends=now + left))
            (notice,) = [e for e in self.events if type(e) is Notice]
            self.assertIn(words, notice.text)


class VerifyTests(TlsTestCase):
    def test_another_authority(self) -> None:
        """A chain that leads to nobody we trust ends the handshake; unasked it does not."""
        server = self.tls(self.issue(NAME))
        client = self.tls(trust=Authority("Another").write(self.mktemp_directory()))
        fault = self.assertRaises(AssertionError, self.shake, server, client, NAME)
        self.assertIn("certificate verify failed", str(fault))
        self.shake(server, client, NAME, verify=False)

    def mktemp_directory(self) -> str:
        path = self.mktemp()
        os.mkdir(path)
        return os.path.abspath(path)

    def test_another_name(self) -> None:
        """A good chain for another name or address is no proof, and the fault names both."""
        tls = self.tls(self.issue(NAME, "192.0.2.1"), trust=self.trust)
        handle = self.shake(tls, tls, NAME)
        for good in (NAME, NAME.upper(), "192.0.2.1"):
            tls.check_name(handle, good)
        for wrong in ("other.example", "a." + NAME, "192.0.2.2", "2001:db8::1"):
            fault = self.assertRaises(PermanentFailure, tls.check_name, handle, wrong)
            self.assertIn(wrong, str(fault))

    def test_oldest_version(self) -> None:
        """`minimum: 1.3` refuses 1.2."""
        server = self.tls(self.issue(NAME), minimum="1.3")
        client = self.tls(trust=self.trust)
        client._opener(TlsManner(True)).set_max_proto_version(SSL.TLS1_2_VERSION)
        fault = self.assertRaises(AssertionError, self.shake, server, client, NAME)
        self.assertRegex(str(fault), "version|alert")


class PlainlyTests(SynchronousTestCase):
    def test_an_hour(self) -> None:
        """A server whose handshake failed is spared it for an hour, and no other is."""
        plainly, hop = Plainly(), NextHop("hub", "x", "192.0.2.1", 25)
        plainly.remember(hop, 100.0)
        self.assertTrue(plainly.holds(hop, 100.0 + PLAINLY_SECONDS - 1))
        self.assertFalse(plainly.holds(hop, 100.0 + PLAINLY_SECONDS))
        self.assertFalse(plainly.holds(NextHop("hub", "x", "192.0.2.1", 26), 100.0))

    def test_bounded(self) -> None:
        """Of very many the oldest are forgotten."""
        plainly = Plainly()
        for port in range(MOST + 5):
            plainly.remember(NextHop("hub", "x", "192.0.2.1", port), 1.0)
        self.assertEqual(len(plainly._until), MOST)
        self.assertTrue(plainly.holds(NextHop("hub", "x", "192.0.2.1", MOST + 4), 1.0))


class HardDetail16TlsTests(TlsTestCase):
    """A bridgehead in front, one behind it, each as its configuration makes it."""

    def labs(
        self, front: str = "opportunistic", back: str = "offer", *names: str, trust: str = ""
    ) -> tuple[Lab, Lab]:
        pair = self.issue(*(names or (BACK, HUB)), file="back")
        if BACK not in (names or (BACK,)):
            pair = self.issue(BACK, *names, file="back")
        one = Lab(
            "a",
            hub="203.0.113.40",
            more=f"""
tls: {{trust: {trust or self.trust}}}
connectors:
  - name: hub
    kind: smtp
    tls: {front}
    bridgeheads: ["{HUB}:25"]
    address-spaces: [{{domain: example.com, accept: anyone}}]
""",
        )
        return one, self.behind(one, pair, back)

    def secured(self, lab: Lab) -> list[tuple[str, str]]:
        return [(e.direction, e.trust) for e in lab.owner.kinds(Secured)]

    def test_opportunistic(self) -> None:
        """STARTTLS where it is offered: both logs say so, and Received says which."""
        front, back = self.labs()
        for _ in range(3):
            front.send()
        self.assertEqual(len(back.hub.messages), 3)
        self.assertEqual(self.secured(front), [("out", "Untrusted")])
        self.assertEqual(self.secured(back), [("in", "Anonymous")])
        content = back.hub.messages[0].content
        self.assertIn(b"with ESMTPS", content)
        self.assertRegex(content, rb"\(using TLSv1\.3 with cipher ")

    def test_not_offered(self) -> None:
        """Plainly where it is not offered, or not wanted."""
        for front_mode, back_mode in (("opportunistic", "none"), ("none", "offer")):
            front, back = self.labs(front_mode, back_mode)
            front.send()
            self.assertEqual(len(back.hub.messages), 1)
            self.assertEqual(self.secured(front), [])

    def test_required(self) -> None:
        """Where it is a must and not to be had the mail waits, and the log says why."""
        front, back = self.labs("require", "none")
        front.send()
        self.assertEqual(back.hub.messages, [])
        (entry,) = front.queue()
        self.assertIn("TLS is required", entry.state.recipients[0].reply)
        front, back = self.labs("require", "require")
        front.send()
        self.assertEqual(len(back.hub.messages), 1)

    def test_verified(self) -> None:
        """An address literal is verified as one; who is not for it gets nothing."""
        front, back = self.labs("verify")
        front.send()
        self.assertEqual(len(back.hub.messages), 1)
        self.assertEqual(self.secured(front), [("out", "Verified")])
        front, back = self.labs("verify", "offer", BACK)
        front.send()
        self.assertEqual(back.hub.messages, [])
        (entry,) = front.queue()
        self.assertIn("the certificate is not for", entry.state.recipients[0].reply)

    def test_untrusted(self) -> None:
        """With `verify` an unknown authority ends it; with a mere wish nobody is asked."""
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        trust = Authority("Another").write(directory)
        front, back = self.labs("verify", trust=trust)
        front.send()
        self.assertEqual(back.hub.messages, [])
        self.assertIn("TLS handshake failed", front.queue()[0].state.recipients[0].reply)
        front, back = self.labs("opportunistic", trust=trust)
        front.send()
        self.assertEqual(len(back.hub.messages), 1)

    def test_handshake_fails(self) -> None:
        """A server that offers TLS and cannot do it gets its mail without, at once, where TLS is a
        wish; the attempt is not made again within the hour, and then it is.
        """
        front, _ = self.labs("opportunistic", "none")
        sink = self.incapable(front)
        front.send()
        self.assertEqual(len(sink.messages), 1)
        self.assertEqual(sink.commands.count(b"STARTTLS"), 1)
        front.advance(60)
        front.send()
        self.assertEqual(sink.commands.count(b"STARTTLS"), 1)
        front.advance(PLAINLY_SECONDS)
        front.send()
        self.assertEqual((len(sink.messages), sink.commands.count(b"STARTTLS")), (3, 2))

    def test_handshake_fails_where_it_is_a_must(self) -> None:
        """The same where TLS is a must: nothing is sent."""
        front, _ = self.labs("require", "none")
        sink = self.incapable(front)
        front.send()
        self.assertEqual(sink.messages, [])
        self.assertIn("TLS", front.queue()[0].state.recipients[0].reply)

    def test_implicit(self) -> None:
        """TLS before the greeting; who speaks plainly is cut off, and nothing is said to him."""
        _, back = self.labs("none", "implicit")
        client = Client(self.tls(trust=self.trust).opening(BACK, True))
        back.network.connect_ends(FRIEND, HUB, 25, client)
        back.settle()
        self.assertTrue(client.heard.startswith(b"220 " + BACK.encode()), client.lost)
        client.transport.write(b"EHLO me\r\n")  # type: ignore[union-attr]
        back.settle()
        self.assertNotIn(b"STARTTLS", client.heard)
        plain = back.network.dial(HUB, 25, FRIEND)
        plain.say(b"EHLO me\r\nMAIL FROM:<a@example.com>\r\n")
        back.settle()
        self.assertNotIn(b"220", plain.take())
        self.assertFalse(plain.is_open)

    def test_handshake_that_never_comes(self) -> None:
        """A client that says STARTTLS and nothing more is cut off in time."""
        _, back = self.labs()
        peer = back.network.dial(HUB, 25, FRIEND)
        back.settle()
        peer.say(b"EHLO me\r\n")
        back.settle()
        peer.take()
        peer.say(b"STARTTLS\r\n")
        back.settle()
        self.assertEqual(peer.take(), b"220 2.0.0 Ready to start TLS\r\n")
        back.advance(59)
        self.assertTrue(peer.is_open)
        back.advance(2)
        self.assertFalse(peer.is_open)

    def test_revoked_in_a_handshake(self) -> None:
        """When the address goes in the midst of a handshake the association ends with it."""
        _, back = self.labs()
        peer = back.network.dial(HUB, 25, FRIEND)
        back.settle()
        peer.say(b"EHLO me\r\n")
        back.settle()
        peer.say(b"STARTTLS\r\n")
        back.settle()
        back.owner.revoke()
        back.settle()
        self.assertFalse(peer.is_open)

    def test_no_certificate(self) -> None:
        """A listener for which TLS is a must is refused without a certificate."""
        listeners = "listeners:\n  - {kind: smtp, port: 465, tls: implicit}\n"
        wrong = self.assertRaises(ConfigErrors, Lab, more=listeners)
        self.assertIn("lab.yaml:", str(wrong))
        self.assertIn("tls.certificates", str(wrong))
