"""DANE for SMTP: what TLSA records demand, who meets it, and what becomes of the mail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha512
from itertools import product
from typing import Any
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.association.dane import Dane, Proof
from mta.association.smtp_initiator import SmtpInitiator
from mta.association.smtp_settings import SmtpConnectorSettings
from mta.association.tls import Tls
from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.config.errors import ConfigErrors
from mta.errors import PermanentFailure, StartRefused, TransientFailure, Unfit
from mta.model import (
    Address,
    Connector,
    Envelope,
    NextHop,
    Proven,
    Recipient,
    Requires,
    Route,
    Tlsa,
    TlsaRecords,
)
from mta.resolver.memory import MemoryResolver
from mta.telemetry import Secured, Telemetry
from mta.testing.certificates import Authority, Pair
from mta.testing.lab import HUB, Lab
from mta.testing.surroundings import MemorySurroundings
from mta.transfer.hops import HopFinder
from mta.wire.dane import (
    CERTIFICATE,
    DANE_EE,
    DANE_TA,
    FULL,
    KEY,
    SHA256,
    SHA512,
    Demand,
    Shown,
    demanded,
    is_usable,
    matches,
)
from tests.test_tls import TlsTestCase

BACK = "mx.example.com"
OCTET = st.integers(0, 255)
TLSA = st.builds(
    Tlsa,
    st.one_of(st.integers(0, 4), OCTET),
    st.one_of(st.integers(0, 2), OCTET),
    st.one_of(st.integers(0, 3), OCTET),
    st.one_of(st.binary(max_size=80), st.binary(min_size=32, max_size=32)),
)
ALL = settings(max_examples=400, deadline=None, derandomize=True)


def record(usage: int, selector: int, matching: int, shown: Shown) -> Tlsa:
    """What the owner of a certificate puts into his zone."""
    octets = shown.certificate if selector == CERTIFICATE else shown.key
    if matching == SHA256:
        octets = sha256(octets).digest()
    elif matching == SHA512:
        octets = sha512(octets).digest()
    return Tlsa(usage, selector, matching, octets)


def shown(pair: Pair, which: int = 0) -> Shown:
    """The certificate number `which` of a chain."""
    with open(pair.chain, "rb") as file:
        found = x509.load_pem_x509_certificates(file.read())[which]
    return Shown(
        found.public_bytes(Encoding.DER),
        found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


class RecordTests(SynchronousTestCase):
    THIS = Shown(b"a certificate", b"its key")

    @ALL
    @given(st.lists(TLSA, max_size=6), st.booleans(), st.binary(max_size=40), st.binary())
    def test_any_records(
        self, records: list[Tlsa], is_secure: bool, certificate: bytes, key: bytes
    ) -> None:
        """Any records end in a demand: a wish exactly where none were validated, a proof exactly
        where one can be used, and a proof always has a record that it can match.
        """
        demand, usable = demanded(TlsaRecords(tuple(records), is_secure))
        self.assertEqual(demand is Demand.WISH, not is_secure or not records)
        self.assertEqual(demand is Demand.PROOF, is_secure and any(map(is_usable, records)))
        self.assertEqual(bool(usable), demand is Demand.PROOF)
        for each in records:
            if matches(each, Shown(certificate, key)):
                self.assertTrue(is_usable(each))

    @ALL
    @given(TLSA, st.binary(min_size=1, max_size=60), st.binary(min_size=1, max_size=60))
    def test_only_its_own(self, other: Tlsa, certificate: bytes, key: bytes) -> None:
        """A record is for the octets that it was made of, and for no others."""
        this = Shown(certificate, key)
        for usage, selector, matching in product((2, 3), (0, 1), (0, 1, 2)):
            made = record(usage, selector, matching, this)
            self.assertTrue(matches(made, this))
            changed = Shown(b"x" + certificate, b"x" + key)
            self.assertFalse(matches(made, changed))
        if matches(other, this):
            self.assertEqual(other, record(other.usage, other.selector, other.matching, this))

    def test_what_cannot_be_used(self) -> None:
        """The usages of PKIX, unknown fields, and digests of another length (RFC 7672 3.1.3)."""
        digest = bytes(32)
        for wrong in (
            Tlsa(0, 1, SHA256, digest),
            Tlsa(1, 1, SHA256, digest),
            Tlsa(255, 1, SHA256, digest),
            Tlsa(3, 2, SHA256, digest),
            Tlsa(3, 1, 3, digest),
            Tlsa(3, 1, SHA256, digest[1:]),
            Tlsa(3, 1, SHA512, digest),
            Tlsa(3, 1, FULL, b""),
        ):
            self.assertFalse(is_usable(wrong), wrong)
            answer = TlsaRecords((wrong,), True)
            self.assertEqual(demanded(answer), (Demand.MUST, ()))
            good = record(3, 1, SHA256, self.THIS)
            answer = TlsaRecords((wrong, good), True)
            self.assertEqual(demanded(answer), (Demand.PROOF, (good,)))

    def test_strongest_digest(self) -> None:
        """With SHA-512 beside it SHA-256 counts for nothing, for the same usage and selector."""
        weak, strong = (record(3, 1, kind, self.THIS) for kind in (SHA256, SHA512))
        whole, other = record(3, 1, FULL, self.THIS), record(2, 1, SHA256, self.THIS)
        answer = TlsaRecords((weak, strong, whole, other), True)
        self.assertEqual(demanded(answer), (Demand.PROOF, (strong, whole, other)))


def strange(pair: Pair) -> bytes:
    """The certificate with a key of a kind that nobody has."""
    with open(pair.chain, "rb") as file:
        certificate = x509.load_pem_x509_certificate(file.read())
    octets = certificate.public_bytes(Encoding.DER)
    kind = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
    return octets.replace(kind, kind[:-1] + b"\x31")


class ProofTests(TlsTestCase):
    """A real handshake, after which the records decide."""

    def proves(
        self, pair: Pair, *records: Tlsa, names: tuple[str, ...] = (BACK, "example.com")
    ) -> str:
        """Why the server with this certificate proves nothing; "" when it does."""
        chosen = (CertificateSettings(chain=pair.chain, key_file=pair.key),)
        server = Tls(TlsSettings(certificates=chosen), self.named, self.clock, self.telemetry)
        client = self.tls()
        handle = self.shake(server, client, BACK, verify=False)
        try:
            Proof(records, names, client, self.clock).check(handle)
        except PermanentFailure as fault:
            return str(fault)
        return ""

    named = BACK
    """What the server's own process takes for its network name."""

    def test_end_entity(self) -> None:
        """The certificate or the key that the record is for, in each form; not another's."""
        pair, other = self.issue(BACK), self.issue(BACK, file="other")
        for selector, matching in product((CERTIFICATE, KEY), (FULL, SHA256, SHA512)):
            good = record(DANE_EE, selector, matching, shown(pair))
            bad = record(DANE_EE, selector, matching, shown(other))
            self.assertEqual(self.proves(pair, good), "")
            self.assertEqual(self.proves(pair, bad, good), "")
            self.assertIn("no TLSA record is for the certificate", self.proves(pair, bad))

    def test_end_entity_has_no_name_and_no_end(self) -> None:
        """Of such a certificate neither name nor dates matter (RFC 7672 3.1.1)."""
        self.named = "other.example"
        ended = datetime.now(UTC) - timedelta(days=9)
        pair = self.issue("other.example", ends=ended)
        self.assertEqual(self.proves(pair, record(DANE_EE, KEY, SHA256, shown(pair))), "")

    def test_key_that_is_kept(self) -> None:
        """A record for the authority as an end entity is no proof: it is not the server's own."""
        pair = self.issue(BACK)
        self.assertNotEqual(self.proves(pair, record(DANE_EE, KEY, SHA256, shown(pair, 1))), "")

    def test_authority(self) -> None:
        """What an authority in a record has signed, in each form; not what another has."""
        pair = self.issue(BACK)
        stranger = Authority("Another").issue(self.directory, BACK, file="stranger")
        for selector, matching in product((CERTIFICATE, KEY), (FULL, SHA256, SHA512)):
            good = record(DANE_TA, selector, matching, shown(pair, 1))
            self.assertEqual(self.proves(pair, good), "")
            self.assertNotEqual(self.proves(stranger, good), "")

    def test_authority_that_is_only_shown(self) -> None:
        """To show the right authority's certificate beside one that it did not sign helps nobody."""
        pair = self.issue(BACK)
        stranger = Authority("Test Authority").issue(self.directory, BACK, file="stranger")
        with open(pair.chain, encoding="ascii") as file:
            second = file.read().split("-----BEGIN")[2]
        with open(stranger.chain, encoding="ascii") as file:
            first = file.read().split("-----BEGIN")[1]
        with open(stranger.chain, "w", encoding="ascii") as file:
            file.write(f"-----BEGIN{first}-----BEGIN{second}")
        good = record(DANE_TA, KEY, SHA256, shown(pair, 1))
        self.assertIn("chain is not good", self.proves(stranger, good))

    def test_a_certificate_that_cannot_be_read(self) -> None:
        """A server may show what OpenSSL passes on and nobody here can read: beside a proof it does
        no harm, and in its place it is none, by name.
        """
        pair = self.issue(BACK)
        client = self.tls()
        chosen = (CertificateSettings(chain=pair.chain, key_file=pair.key),)
        server = Tls(TlsSettings(certificates=chosen), BACK, self.clock, self.telemetry)
        handle = self.shake(server, client, BACK, verify=False)
        chain = handle.get_peer_cert_chain()
        odd = crypto.load_certificate(crypto.FILETYPE_ASN1, strange(pair))

        def check(of: Pair, *certificates: Any) -> None:
            with patch.object(type(handle), "get_peer_cert_chain", lambda _: list(certificates)):
                good = record(DANE_TA, KEY, SHA256, shown(of, 1))
                Proof((good,), (BACK,), client, self.clock).check(handle)

        check(pair, chain[0], odd, chain[1])
        other = Authority("Another").issue(self.directory, BACK, file="other")
        for of, certificates in ((other, (chain[0], odd)), (pair, (odd, chain[1]))):
            self.assertRaises(PermanentFailure, check, of, *certificates)

    def test_authority_that_is_not_shown(self) -> None:
        """It need not be shown where the whole certificate stands in the record (RFC 7671 5.2.1)."""
        pair = self.issue(BACK)
        authority = shown(pair, 1)
        with open(pair.chain, encoding="ascii") as file:
            first = file.read().split("-----BEGIN")[1]
        with open(pair.chain, "w", encoding="ascii") as file:
            file.write(f"-----BEGIN{first}")
        self.assertEqual(self.proves(pair, record(DANE_TA, CERTIFICATE, FULL, authority)), "")
        self.assertNotEqual(self.proves(pair, record(DANE_TA, KEY, SHA256, authority)), "")
        self.assertNotEqual(self.proves(pair, Tlsa(DANE_TA, CERTIFICATE, FULL, b"rubbish")), "")

    def test_end_entity_is_no_authority(self) -> None:
        """A record with the usage of authorities is not met by the server's own certificate."""
        pair = self.issue(BACK)
        self.assertNotEqual(self.proves(pair, record(DANE_TA, KEY, SHA256, shown(pair))), "")

    def test_names_under_an_authority(self) -> None:
        """There the name matters: the host's, or the domain's that the mail is for (3.2.2)."""
        for name, holds in ((BACK, True), ("example.com", True), ("other.example", False)):
            self.named = name
            pair = self.issue(name)
            why = self.proves(pair, record(DANE_TA, KEY, SHA256, shown(pair, 1)))
            self.assertEqual(why == "", holds, why)
        self.assertIn(f"the certificate is not for {BACK}", why)

    def test_dates_under_an_authority(self) -> None:
        """There a certificate that has ended is none, by the clock of this process."""
        ends = datetime.now(UTC) + timedelta(days=9)
        pair = self.issue(BACK, ends=ends)
        good = record(DANE_TA, KEY, SHA256, shown(pair, 1))
        self.assertEqual(self.proves(pair, good), "")
        self.clock.advance(10 * 86400)
        self.assertIn("expired", self.proves(pair, good))


RECORD = Tlsa(3, 1, 1, bytes(32))
UNUSABLE = Tlsa(1, 1, 1, bytes(32))
BROKEN = TransientFailure("it", "SERVFAIL", enhanced="4.4.3")
DOMAIN, TLSA_NAME = "example.com", f"_25._tcp.{BACK}"


class DecisionTests(SynchronousTestCase):
    """Route to next hop to demand, over everything that DNS can say of each step."""

    def decide(self, mx: str, host: str, tlsa: str) -> str:
        resolver = MemoryResolver()
        say(resolver, mx, host, tlsa, RECORD)
        around = MemorySurroundings(resolver=resolver)
        kind: Any = None
        connector = Connector("out", "smtp", ())
        finder = HopFinder({"out": (connector, kind)}, resolver, lambda _a, _p: False)
        dane = Dane(around)

        async def walk() -> str:
            route = Route("out", f"out/{DOMAIN}", (), 10, "", mx_domain=DOMAIN.encode())
            try:
                (found,) = await finder.find(route)
                return (await dane.demanded(found.hop)).demand.value
            except TransientFailure as failure:
                return failure.enhanced

        return str(self.successResultOf(Deferred.fromCoroutine(walk())))

    def test_table(self) -> None:
        """Signed all the way, the records decide; a step that is bogus stops the mail; a step that
        is not signed leaves TLS a wish, whatever lies behind it.
        """
        steps = ("signed", "open", "bogus")
        records = ("signed", "open", "bogus", "none", "unusable")
        expected = {
            "signed": "proof",
            "open": "wish",
            "bogus": "4.7.0",
            "none": "wish",
            "unusable": "must",
        }
        for mx, host, tlsa in product(steps, steps, records):
            if "bogus" in (mx, host):
                right = "4.4.3"
            elif "open" in (mx, host):
                right = "wish"
            else:
                right = expected[tlsa]
            self.assertEqual(self.decide(mx, host, tlsa), right, (mx, host, tlsa))

    def test_alias(self) -> None:
        """The target of a signed alias is asked first; where it has no records, the alias itself."""
        for holder in ("target", "alias"):
            resolver = MemoryResolver()
            resolver.add_tlsa(f"{holder}.example", 25, RECORD)
            resolver.sign("_25._tcp.target.example", "_25._tcp.alias.example")
            dane = Dane(MemorySurroundings(resolver=resolver))
            asked = dane.demanded(hop("alias.example", "target.example", "alias.example"))
            found = self.successResultOf(Deferred.fromCoroutine(asked))
            self.assertEqual(found.demand, Demand.PROOF)
            self.assertEqual(found.name, f"{holder}.example")
            self.assertEqual(found.names, (f"{holder}.example", DOMAIN))

    def test_resolver_that_cannot_tell(self) -> None:
        """Where nobody validates, `tls: dane` is refused by name."""
        resolver = MemoryResolver()
        resolver.validates = False
        refused = self.assertRaises(StartRefused, Dane, MemorySurroundings(resolver=resolver))
        self.assertIn("dnssec: true", str(refused))


def hop(name: str, *bases: str) -> NextHop:
    return NextHop("out", DOMAIN, HUB, 25, name, Proven(bases, (DOMAIN,)))


def say(resolver: MemoryResolver, mx: str, host: str, tlsa: str, *records: Tlsa) -> None:
    """Each of the three is signed, open or bogus; TLSA may also be none, or unusable."""
    resolver.add_mail(DOMAIN, [(10, BACK)])
    resolver.add_host(BACK, HUB)
    if tlsa != "none":
        resolver.add_tlsa(BACK, 25, *((UNUSABLE,) if tlsa == "unusable" else records))
    for name, state in ((DOMAIN, mx), (BACK, host), (TLSA_NAME, tlsa)):
        if state == "bogus":
            resolver.break_name(name, BROKEN)
        elif state != "open":
            resolver.sign(name)


class HardDetail16DaneTests(TlsTestCase):
    """A bridgehead that delivers by MX, and one behind it, each as its configuration makes it."""

    def labs(self, back: str = "offer") -> tuple[Lab, Lab, Pair]:
        pair = self.issue(BACK, file="back")
        one = Lab(
            "a",
            hub="203.0.113.40",
            more="""
resolver: {servers: [127.0.0.1], dnssec: true}
connectors:
  - name: out
    kind: smtp
    tls: dane
    delivery: mx
    address-spaces: [{domain: example.com, accept: anyone}]
""",
        )
        return one, self.behind(one, pair, back, name=BACK), pair

    def resolver(self, lab: Lab) -> MemoryResolver:
        found = lab.owner.surroundings.resolver
        assert isinstance(found, MemoryResolver)
        return found

    def send(self, tlsa: str, *records: Tlsa, back: str = "offer", mx: str = "signed") -> str:
        """What became of a message: how it was secured, "plain", or why it waits."""
        front, behind, pair = self.labs(back)
        good = record(DANE_EE, KEY, SHA256, shown(pair))
        say(self.resolver(front), mx, "signed", tlsa, *(records or (good,)))
        front.send()
        if not behind.hub.messages:
            (entry,) = front.queue()
            return str(entry.state.recipients[0].reply)
        self.assertIn(b"with ESMTP", behind.hub.messages[0].content)
        secured = [e.trust for e in front.owner.kinds(Secured)]
        return secured[0] if secured else "plain"

    def test_proved(self) -> None:
        """A server that its signed records are for gets its mail, and the log says Verified."""
        self.assertEqual(self.send("signed"), "Verified")

    def test_another(self) -> None:
        """One that they are not for gets none, in no way; the mail waits with 4.7.5."""
        said = self.send("signed", RECORD)
        self.assertIn("4.7.5", said)
        self.assertIn("no TLSA record is for the certificate", said)

    def test_no_tls_where_it_is_a_must(self) -> None:
        """A server with signed records that offers no TLS is an attack or a slip: mail waits. So it
        does where none of the records can be used.
        """
        for tlsa in ("signed", "unusable"):
            said = self.send(tlsa, back="none")
            self.assertIn("4.7.4", said)

    def test_unusable(self) -> None:
        """Records that nobody can use ask for TLS, and for no proof."""
        self.assertEqual(self.send("unusable"), "Untrusted")

    def test_records_are_not_told(self) -> None:
        """Where the look-up of the records fails the mail waits with 4.7.0."""
        said = self.send("bogus")
        self.assertIn("4.7.0", said)
        self.assertIn("DANE", said)

    def test_a_wish(self) -> None:
        """Where a step is not signed, or there are no records: TLS where it is offered, with anybody;
        plainly where it is not.
        """
        for mx, tlsa in (("open", "signed"), ("signed", "open"), ("signed", "none")):
            self.assertEqual(self.send(tlsa, RECORD, mx=mx), "Untrusted")
            self.assertEqual(self.send(tlsa, RECORD, mx=mx, back="none"), "plain")

    def test_next_exchanger(self) -> None:
        """A host that fails is passed over, and the next exchanger that proves itself gets it."""
        front, behind, pair = self.labs()
        resolver = self.resolver(front)
        say(resolver, "signed", "signed", "signed", record(DANE_EE, KEY, SHA256, shown(pair)))
        resolver.add_mail(DOMAIN, [(5, "mx0.example.com"), (10, BACK)])
        resolver.add_host("mx0.example.com", HUB)
        resolver.add_tlsa("mx0.example.com", 25, RECORD)
        resolver.sign("mx0.example.com", "_25._tcp.mx0.example.com")
        front.send()
        self.assertEqual(len(behind.hub.messages), 1)
        self.assertEqual([e.trust for e in front.owner.kinds(Secured)], ["Verified"])

    def test_later(self) -> None:
        """Mail that waited goes when the zone is mended, with no hour without TLS in between."""
        front, behind, pair = self.labs()
        resolver = self.resolver(front)
        say(resolver, "signed", "signed", "signed", RECORD)
        front.send()
        self.assertEqual(behind.hub.messages, [])
        resolver.add_tlsa(BACK, 25, record(DANE_TA, CERTIFICATE, SHA512, shown(pair, 1)))
        front.advance(3600)
        self.assertEqual(len(behind.hub.messages), 1)
        self.assertEqual([e.trust for e in front.owner.kinds(Secured)], ["Verified"])

    def test_requiretls(self) -> None:
        """A message that requires TLS goes to a server that proved itself by its records, and not to
        one that shows them none can use (RFC 8689 4.2.1).
        """
        front, behind, pair = self.labs()
        kind = SmtpInitiator(SmtpConnectorSettings(tls="dane"), front.owner.surroundings)
        envelope = Envelope(
            Address(b"me@example.net"), (Recipient(Address(b"you@example.com")),),
            requires=Requires.TLS,
        )  # fmt: skip
        for records, goes in ((record(DANE_EE, KEY, SHA256, shown(pair)), True), (UNUSABLE, False)):
            say(self.resolver(front), "signed", "signed", "signed", records)
            assert front.owner.tenure is not None
            sender = front.wait(kind.open(front.owner.tenure, hop(BACK, BACK)))
            prepared = sender.prepare("m", envelope, (0,), 100)
            front.settle()
            if goes:
                self.assertEqual(self.successResultOf(prepared), ())
            else:
                self.assertEqual(self.failureResultOf(prepared, Unfit).value.enhanced, "5.7.30")
            sender.cut()
        self.assertEqual(behind.hub.messages, [])

    def test_counted(self) -> None:
        """A metric says how many servers had which kind of records."""
        front, _, _ = self.labs()
        say(self.resolver(front), "signed", "signed", "signed", RECORD)
        front.send()
        telemetry: Telemetry = front.owner.surroundings.telemetry
        counter = telemetry.counter("mta_dane_servers_total", "", records="usable")
        self.assertEqual(counter.value, 1)

    def test_configuration(self) -> None:
        """`tls: dane` without a validating resolver is refused, with its place and what to do."""
        for resolver, words in (
            ("", "nobody says which answers were validated"),
            ("resolver: {servers: [192.0.2.53], dnssec: true}", "192.0.2.53 is not on loopback"),
            ("resolver: {dnssec: true}", "name the validating name servers"),
        ):
            text = f"""
{resolver}
connectors:
  - {{name: out, kind: smtp, tls: dane, delivery: mx, address-spaces: [{{domain: "*"}}]}}
"""
            wrong = self.assertRaises(ConfigErrors, Lab, more=text)
            self.assertIn("lab.yaml:", str(wrong))
            self.assertIn(words, str(wrong))
