"""Certificates of clients: shown by us to servers that ask, and asked for by our listeners."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mta.association.tls import LOOK_SECONDS, Tls, _Judgement
from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.errors import StartRefused
from mta.model import ClientCertificate, PeerInfo, TlsManner
from mta.plugins.find import Catalogue
from mta.policy.certificates import NONE, UNTRUSTED, CertificateRule
from mta.policy.transaction import Association
from mta.telemetry import Notice, Rejected, Secured
from mta.testing.certificates import Authority, Pair
from mta.testing.lab import FRIEND, HUB, STRANGER, Lab
from mta.testing.network import MemoryNetwork
from mta.transfer.trace import received_from
from tests.test_tls import BACK, FRIENDS, NAME, Client, TlsTestCase

MESSAGE = b"Subject: x\r\n\r\nx\r\n"


def fingerprint(pair: Pair) -> str:
    with open(pair.chain, "rb") as file:
        return x509.load_pem_x509_certificate(file.read()).fingerprint(SHA256()).hex()


class CertificateTestCase(TlsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.foreign = Authority("Another")
        self.elsewhere = os.path.abspath(self.mktemp())
        os.mkdir(self.elsewhere)

    def client_pair(self, kind: str) -> Pair:
        """A certificate that is trusted, expired, young or foreign."""
        now = datetime.now(UTC)
        if kind == "foreign":
            return self.foreign.issue(self.elsewhere, "client.example", file="foreign")
        ends = now - timedelta(days=1) if kind == "expired" else None
        return self.issue("client.example", file=kind, ends=ends)


class AskingTests(CertificateTestCase):
    def meet(
        self, server: Tls, manner: TlsManner | None = None, *, asks: bool = True, version: int = 0,
        session: Any = None, client: Tls | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """A handshake with a server that asks, or does not: its handle, and the client's."""
        network = MemoryNetwork(self.clock)
        far: list[Any] = []

        class Server(Protocol):
            def connectionMade(self) -> None:
                far.append(self)
                self.transport.startTLS(server.asking() if asks else server.accepting())  # type: ignore[union-attr]
                self.transport.write(b"hello")  # type: ignore[union-attr]

        network.serve("192.0.2.1", 25, Server)
        client = client or self.tls()
        manner = manner or TlsManner(False)
        if version and session is None and manner not in client._openers:
            client._opener(manner).set_max_proto_version(version)
        opening = client.opening_in(NAME, manner)

        @implementer(IOpenSSLClientConnectionCreator)
        class Opening:
            def clientConnectionForTLS(self, protocol: object) -> Any:
                connection = opening.clientConnectionForTLS(protocol)
                if session is not None:
                    connection.set_session(session)
                return connection

        near = Client(Opening())
        network.connect_ends("192.0.2.2", "192.0.2.1", 25, near)
        for _ in range(20):
            self.clock.advance(0)
        self.assertEqual(near.heard, b"hello", near.lost)
        return far[0].transport.getHandle(), near.transport.getHandle()  # type: ignore[union-attr]

    def test_what_was_shown(self) -> None:
        """Nothing, or the certificate with its names and what is wrong with it; the handshake takes
        all of them, under either version of TLS.
        """
        server = self.tls(self.issue(NAME), client_trust=self.trust)
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            handle, _ = self.meet(server, version=version)
            self.assertIsNone(server.shown(handle))
            for kind, fault in (
                ("trusted", ""),
                ("expired", "it has expired"),
                ("foreign", "its authority is not one of ours"),
            ):
                pair = self.client_pair(kind)
                manner = TlsManner(False, "", (pair.chain, pair.key))
                handle, _ = self.meet(server, manner, version=version)
                issuer = "Another" if kind == "foreign" else "Test Authority"
                self.assertEqual(
                    server.shown(handle),
                    ClientCertificate(fingerprint(pair), "client.example", issuer, fault),
                )

    def test_whose_authorities(self) -> None:
        """`trust` counts where there is no `client-trust`; with neither nobody is trusted, and the
        system's authorities never are.
        """
        pair = self.client_pair("trusted")
        manner = TlsManner(False, "", (pair.chain, pair.key))
        for keys, is_trusted in (
            ({"trust": self.trust}, True),
            ({"trust": self.trust, "client_trust": self.foreign.write(self.elsewhere)}, False),
            ({}, False),
        ):
            server = self.tls(self.issue(NAME), **keys)
            handle, _ = self.meet(server, manner)
            shown = server.shown(handle)
            assert shown is not None
            self.assertEqual(not shown.fault, is_trusted, keys)
        for wrong in ("/nowhere", self.issue(NAME).key):
            server = self.tls(self.issue(NAME), client_trust=wrong)
            refused = self.assertRaises(StartRefused, server.asking)
            self.assertIn(f"tls.client-trust {wrong} cannot be used", str(refused))

    def test_sni(self) -> None:
        """Under the certificate of a further name clients are asked and judged in the same way."""
        server = self.tls(
            self.issue("mail.other.example"), self.issue(NAME), client_trust=self.trust
        )
        server._network_name = "mail.other.example"
        server._identities = server._load()  # so that NAME is the one that SNI chooses
        pair = self.client_pair("expired")
        handle, near = self.meet(server, TlsManner(False, "", (pair.chain, pair.key)))
        self.assertIn(NAME, self.shown(near))
        shown = server.shown(handle)
        assert shown is not None
        self.assertEqual(shown.fault, "it has expired")

    def test_nothing_is_resumed(self) -> None:
        """A session that began unasked, or with another certificate, is no way past the question:
        where we ask none is resumed, and what was not judged is not trusted.
        """
        server = self.tls(self.issue(NAME), client_trust=self.trust)
        pair, client = self.client_pair("trusted"), self.tls()
        manner = TlsManner(False, "", (pair.chain, pair.key))

        def meet(asks: bool, session: Any = None) -> tuple[Any, Any]:
            keys: dict[str, Any] = {"client": client, "session": session, "asks": asks}
            return self.meet(server, manner, version=SSL.TLS1_2_VERSION, **keys)

        _, near = meet(False)
        unasked, session = near.master_key(), near.get_session()
        _, near = meet(False, session)
        self.assertEqual(near.master_key(), unasked, "where nobody asks it is resumed")
        handle, near = meet(True, session)
        self.assertNotEqual(near.master_key(), unasked)
        shown = server.shown(handle)
        assert shown is not None
        self.assertEqual(shown.fault, "")
        asked, session = near.master_key(), near.get_session()
        for asks in (True, False):
            handle, near = meet(asks, session)
            self.assertNotIn(near.master_key(), (unasked, asked))
            self.assertEqual(handle.get_peer_certificate() is None, not asks)
        self.assertEqual(_Judgement().fault, "it was not judged")

    def test_renewed(self) -> None:
        """A certificate that is shown to servers is read again when it changes; one that is broken
        is named in the log, and the former stays.
        """
        server = self.tls(self.issue(NAME), client_trust=self.trust)
        pair = self.issue("client.example", file="mine")
        client = self.tls()
        manner = TlsManner(False, "", (pair.chain, pair.key))
        first = client._opener(manner)
        self.issue("client.example", file="mine")
        self.assertIs(client._opener(manner), first)
        self.clock.advance(LOOK_SECONDS)
        second = client._opener(manner)
        self.assertIsNot(second, first)
        with open(pair.key, "w", encoding="ascii") as file:
            file.write("torn")
        for _ in range(2):
            self.clock.advance(LOOK_SECONDS)
            self.assertIs(client._opener(manner), second)
        (notice,) = [e for e in self.events if type(e) is Notice and e.level == "error"]
        self.assertIn("servers are shown the former certificate", notice.text)
        self.assertIsNone(server.shown(self.meet(server)[0]))

    def test_own(self) -> None:
        """`own` is the virtual server's: what its clients meet, in every kind, is what servers do."""
        tls = self.tls(self.issue(NAME), self.issue("other.example"))
        manner = TlsManner(False, "", "own")
        far = self.tls(self.issue(NAME), client_trust=self.trust)
        self.assertEqual(tls._shown_in(manner), tuple(tls._identities[0].pairs))
        self.assertIsNot(tls._opener(manner), tls._opener(TlsManner(False)))
        handle, _ = self.meet(far, manner, client=tls)
        shown = far.shown(handle)
        assert shown is not None
        self.assertEqual((shown.subject, shown.fault), (NAME, ""))
        refused = self.assertRaises(StartRefused, self.tls().opening_in, NAME, manner)
        self.assertIn("tls.certificates", str(refused))


class RuleTests(SynchronousTestCase):
    def test_table(self) -> None:
        """What each certificate is worth where one is asked for, and where it is required."""
        good = ClientCertificate("aa", "c", "i", "")
        bad = ClientCertificate("bb", "c", "i", "it has expired")
        listed = frozenset(("cc",))
        known = ClientCertificate("cc", "c", "i", "it has expired")
        for certificate, trust, refusal in (
            (None, None, NONE),
            (good, "Trusted", None),
            (bad, "Untrusted", UNTRUSTED),
            (known, "Verified", None),
        ):
            for is_required in (False, True):
                rule = CertificateRule(is_required, listed)
                judged = rule.judge(certificate)
                self.assertEqual(judged and judged.trust, trust)
                self.assertEqual(rule.refusal(judged), refusal if is_required else None)

    def test_outlasts_a_login(self) -> None:
        """Who may relay by its certificate still may when it is logged out, as before it logged in."""
        peer = PeerInfo("smtp/in/1", "192.0.2.1", 9, "192.0.2.10", 25, "l")
        association = Association(peer, admitted=False)
        association.admit()
        association.identify("alice", "PLAIN")
        association.forget()
        self.assertTrue(association.admitted)

    def test_received(self) -> None:
        """Received says whose it was; what stands in a certificate cannot end the clause."""
        certificate = ClientCertificate("aa", 'x" (verified OK))\r\nX: y', "Ä\0", "no")
        peer = PeerInfo("smtp/in/1", "192.0.2.1", 9, "192.0.2.10", 25, "l", tls="TLSv1.3")
        text = received_from(replace(peer, certificate=certificate), b"h", "ESMTPS", "vs", True)
        self.assertIn(
            b'\r\n\t(Client CN "x? ?verified OK????X: y", Issuer "??" (not verified))\r\n', text
        )
        listed = replace(certificate, subject="c.example", is_listed=True)
        text = received_from(replace(peer, certificate=listed), b"h", "ESMTPS", "vs", False)
        self.assertIn(b'(Client CN "c.example", Issuer "??" (verified OK))', text)


class HardDetail16CertificateTests(CertificateTestCase):
    """A bridgehead in front that shows a certificate, and one behind it that asks."""

    def labs(
        self, listener: str, pair: Pair | None = None, *, tls: str = "require", more: str = ""
    ) -> tuple[Lab, Lab]:
        shown = f"certificate: {{chain: {pair.chain}, key-file: {pair.key}}}" if pair else ""
        one = Lab(
            "a",
            hub="203.0.113.40",
            more=f"""
tls: {{trust: {self.trust}}}
connectors:
  - name: hub
    kind: smtp
    tls: require
    bridgeheads: ["{HUB}:25"]
    address-spaces: [{{domain: example.com, accept: anyone}}]
    {shown}
{more}""",
        )
        return one, self.behind(one, self.issue(BACK, file="back"), tls, listener)

    def send(self, labs: tuple[Lab, Lab]) -> str:
        """ "sent", or why it waits or came back."""
        front, behind = labs
        front.send()
        if behind.hub.messages:
            return "sent"
        replies = [e.reply for e in behind.owner.kinds(Rejected)]
        entries = front.queue()
        return replies[0] if replies else str(entries[0].state.recipients[0].reply)

    def trusts(self, lab: Lab) -> list[tuple[str, str]]:
        return [(e.trust, e.fingerprint) for e in lab.owner.kinds(Secured) if e.direction == "in"]

    def test_asked(self) -> None:
        """Where a certificate is asked for any will do: the log says what it is worth, and Received
        whose it is.
        """
        for kind, trust, words in (
            ("", "Anonymous", None),
            ("trusted", "Trusted", b'(Client CN "client.example", Issuer "Test Authority" (verified OK))'),
            ("expired", "Untrusted", b'(Client CN "client.example", Issuer "Test Authority" (not verified))'),
            ("foreign", "Untrusted", b'(Client CN "client.example", Issuer "Another" (not verified))'),
        ):  # fmt: skip
            pair = self.client_pair(kind) if kind else None
            front, behind = self.labs(f"client-certificates: ask, {FRIENDS}", pair)
            self.assertEqual(self.send((front, behind)), "sent", kind)
            self.assertEqual(self.trusts(behind), [(trust, fingerprint(pair) if pair else "")])
            content = behind.hub.messages[0].content
            self.assertEqual(b"(Client CN" in content, words is not None)
            self.assertIn(words or b"(using TLSv1.3", content)
            told = [e.text for e in behind.owner.kinds(Notice) if "verification failed" in e.text]
            self.assertEqual(len(told), trust == "Untrusted")

    def test_not_asked(self) -> None:
        """Where nobody asks nobody sees it."""
        front, behind = self.labs(FRIENDS, self.client_pair("trusted"))
        self.assertEqual(self.send((front, behind)), "sent")
        self.assertEqual(self.trusts(behind), [("Anonymous", "")])
        self.assertNotIn(b"(Client CN", behind.hub.messages[0].content)

    def test_relays(self) -> None:
        """Who may relay is said by fingerprint alone, whatever is wrong with the certificate; that
        an authority vouches for a client lets nobody relay.
        """
        for kind in ("trusted", "expired", "foreign"):
            pair = self.client_pair(kind)
            for listed in (True, False):
                names = [fingerprint(pair).upper() if listed else "ab" * 32]
                listener = f"client-certificates: ask, relay-from: [], relay-certificates: {names}"
                labs = self.labs(listener, pair)
                said = self.send(labs)
                if listed:
                    self.assertEqual(said, "sent")
                    self.assertEqual(self.trusts(labs[1]), [("Verified", fingerprint(pair))])
                else:
                    self.assertEqual(said, "554 5.7.1 <you@example.com>: Relay access denied", kind)

    def test_required(self) -> None:
        """Where it is required whoever has none that will do is told 421 4.7.1 at EHLO, and his mail
        waits with him.
        """
        listed = [fingerprint(self.client_pair("foreign"))]
        for kind, words in (
            ("", "421 4.7.1 No client certificate was shown"),
            ("expired", "421 4.7.1 The client certificate is not trusted"),
            ("trusted", "sent"),
        ):
            pair = self.client_pair(kind) if kind else None
            labs = self.labs(f"client-certificates: require, {FRIENDS}", pair)
            self.assertEqual(self.send(labs), words)
            if words != "sent":
                (entry,) = labs[0].queue()
                self.assertIn(words[4:], str(entry.state.recipients[0].reply))
                self.assertEqual(labs[1].owner.tenant._listeners["smtp:25"].open_associations, 0)  # type: ignore[attr-defined]
        for named in (listed, ["ab" * 32]):
            pair = self.foreign.issue(self.elsewhere, "client.example", file="another")
            names = [fingerprint(pair)] if named is listed else named
            listener = f"client-certificates: require, relay-certificates: {names}, {FRIENDS}"
            said = self.send(self.labs(listener, pair))
            self.assertEqual(said == "sent", named is listed, said)

    def test_required_before_the_greeting(self) -> None:
        """With implicit TLS the refusal stands in the place of the greeting."""
        _, behind = self.labs(f"client-certificates: require, {FRIENDS}", tls="implicit")
        for pair, words in ((None, b"421 4.7.1 "), (self.client_pair("trusted"), b"220 ")):
            shown = (pair.chain, pair.key) if pair else ""
            client = Client(self.tls().opening_in(BACK, TlsManner(False, "", shown)))
            behind.network.connect_ends(FRIEND, HUB, 25, client)
            behind.settle()
            self.assertTrue(client.heard.startswith(words), client.heard)
        self.assertIsNotNone(client.transport)

    def test_a_stranger_that_is_known(self) -> None:
        """A listed certificate counts like an address in relay-from, before and behind AUTH: what
        only those that relay are offered is offered under TLS, and not before it.
        """
        pair = self.client_pair("foreign")
        names = [fingerprint(pair)]
        listener = f"client-certificates: ask, relay-from: [], relay-certificates: {names}"
        _, behind = self.labs(listener, tls="offer")
        plain = behind.network.dial(HUB, 25, STRANGER)
        behind.settle()
        plain.say(b"EHLO me\r\n")
        behind.settle()
        self.assertNotIn(b"FUTURERELEASE", plain.take())
        for shown in (pair, None):
            heard = self.talk(behind, shown, b"EHLO me")
            self.assertEqual(b"FUTURERELEASE" in heard, shown is not None)

    def talk(self, behind: Lab, pair: Pair | None, *lines: bytes) -> bytes:
        """What a stranger hears who says these lines under TLS; of the last."""
        shown = (pair.chain, pair.key) if pair else ""
        client = Client(self.tls().opening_in(BACK, TlsManner(False, "", shown)))
        client.connectionMade = lambda: None  # type: ignore[method-assign]
        behind.network.connect_ends(STRANGER, HUB, 25, client)
        behind.settle()
        transport: Any = client.transport
        for line in (b"EHLO me", b"STARTTLS", b"", *lines):
            client.heard = b""
            if line:
                transport.write(line + b"\r\n")
            else:
                transport.startTLS(client.creator)
            behind.settle()
        return client.heard

    def test_a_proxy(self) -> None:
        """What a proxy shows is its own: whom it names by XCLIENT may not relay by it; and one that
        is refused for it can name nobody.
        """
        pair = self.client_pair("foreign")
        keys = f"relay-from: [], xclient-from: [{STRANGER}], relay-certificates: "
        mail = (b"EHLO me", b"MAIL FROM:<a@example.net>", b"RCPT TO:<b@example.com>")
        for wanted in ("ask", "require"):
            listener = f"client-certificates: {wanted}, {keys}[{fingerprint(pair)}]"
            _, behind = self.labs(listener)
            self.assertTrue(self.talk(behind, pair, *mail).startswith(b"250 "))
            other = (b"EHLO me", b"XCLIENT ADDR=198.51.100.99", *mail)
            self.assertIn(b"Relay access denied", self.talk(behind, pair, *other))
        said = self.talk(behind, None, b"XCLIENT ADDR=198.51.100.99")
        self.assertRegex(said, b"^(421 4.7.1|503)")

    def test_a_reload(self) -> None:
        """Who may relay by his certificate is taken over by a reload."""
        pair = self.client_pair("trusted")
        listener = "client-certificates: ask, relay-from: [], relay-certificates: "
        front, behind = self.labs(f"{listener}['{'ab' * 32}']", pair)
        self.assertIn("Relay access denied", self.send((front, behind)))
        from mta.service import _merged

        (block,) = behind.config.listeners
        wanted = block.settings.model_copy(update={"relay_certificates": (fingerprint(pair),)})
        fresh = replace(behind.config, listeners=(replace(block, settings=wanted),))
        behind.owner.tenant.reconfigure(_merged(behind.config, fresh))
        front.advance(600)  # the association that was judged before is over
        front.send()
        self.assertEqual(len(behind.hub.messages), 1)

    def test_nobody_to_judge(self) -> None:
        """A reception that cannot judge certificates gets no client where they are asked for."""
        from mta.association.smtp_listener import TurnedAway

        _, behind = self.labs(f"client-certificates: ask, {FRIENDS}")
        listener: Any = behind.owner.tenant._listeners["smtp:25"]

        class Host:
            def reception(self, tenure: object, peer: object) -> object:
                return object()

        peer = PeerInfo("smtp/in/9", "192.0.2.1", 9, HUB, 25, "smtp:25")
        built = listener.build(behind.tenure, Host(), peer)
        self.assertIsInstance(built, TurnedAway)
        self.assertIn("nobody judges", behind.owner.kinds(Notice)[-1].text)

    def test_cut_off_behind_the_handshake(self) -> None:
        """A server that ends a TLS 1.3 handshake for want of a certificate says so when it is over
        for us: the mail waits, and what it said is known.
        """
        front, behind = self.labs(FRIENDS)
        (identity,) = behind.owner.surroundings.tls._identities  # type: ignore[attr-defined]
        must = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        identity.context.set_verify(must, lambda *_: True)
        front.send()
        reply = str(front.queue()[0].state.recipients[0].reply)
        self.assertIn("4.4.2", reply)
        self.assertRegex(reply, "TLS: .*certificate required")


HEAD = """\
virtual-server: {network-name: vs1.example.org, addresses: [192.0.2.10]}
postmaster: p@example.org
cluster: {resource: standalone}
spool: {store: memory}
"""
OUT = 'connectors: [{name: o, kind: smtp, delivery: mx, address-spaces: [{domain: "*"}]%s}]\n'
TLS = "tls: {certificates: [{chain: /c, key-file: /k}]%s}\n"


class ConfigurationTests(SynchronousTestCase):
    def one(self, text: str, place: str, words: str) -> None:
        wrong = self.assertRaises(ConfigErrors, load, HEAD + text, "mta.yaml", Catalogue().find)
        self.assertEqual(len(wrong.mistakes), 1, str(wrong))
        self.assertTrue(str(wrong).startswith(f"mta.yaml:{place}: "), str(wrong))
        self.assertIn(words, str(wrong))

    def listener(self, keys: str) -> str:
        return f"listeners: [{{kind: smtp, {keys}}}]\n{OUT % ''}"

    def test_listeners(self) -> None:
        """Each mistake at its place, with what to say instead."""
        at = "listeners[0]"
        for keys, tls, place, words in (
            ("relay-certificates: [AB]", "", f"5:47: {at}.relay-certificates[0]", "no SHA-256"),
            (f"relay-certificates: ['{'ab' * 32}']", "", f"5:46: {at}.relay-certificates",
             "say `client-certificates: ask`"),
            ("client-certificates: ask, tls: none", "", f"5:47: {at}.client-certificates",
             "say `tls: require`"),
            ("client-certificates: require", ", trust: /t", f"5:47: {at}.client-certificates",
             "say `tls: require`"),
            ("tls: require, client-certificates: require", "", f"5:61: {at}.client-certificates",
             "nobody's certificate would do"),
            ("client-certificates: maybe", "", f"5:47: {at}.client-certificates", "none of none"),
        ):  # fmt: skip
            self.one(self.listener(keys) + TLS % tls, place, words)
        self.one(
            self.listener("client-certificates: ask"),
            f"5:47: {at}.client-certificates",
            "without a certificate of our own there is no TLS",
        )
        for good in (
            "tls: require, client-certificates: require",
            "tls: implicit, client-certificates: require",
            "client-certificates: ask",
        ):
            text = self.listener(good) + TLS % ", client-trust: /t"
            load(HEAD + text, "mta.yaml", Catalogue().find)

    def test_connectors(self) -> None:
        """`own` needs something of our own; what nobody can see is a mistake."""
        rest = "listeners: []\n"
        self.one(
            rest + OUT % ", certificate: own", "6:96: connectors[0].certificate", "there is none"
        )
        self.one(
            rest + OUT % ", tls: none, certificate: own",
            "6:107: connectors[0].certificate",
            "nobody sees it with `tls: none`",
        )
        self.one(rest + OUT % ", certificate: mine", "6:96: connectors[0].certificate", "'mine'")
        self.one(
            rest + OUT % ", certificate: {chain: /c}", "6:83: connectors[0].certificate.key-file",
            "missing",
        )  # fmt: skip
        text = rest + OUT % ", tls: none, tls-exceptions: [{domain: x.example, tls: verify}],"
        load(
            HEAD + text.replace("],}", "], certificate: own}") + TLS % "",
            "mta.yaml",
            Catalogue().find,
        )
