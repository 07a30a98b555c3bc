"""TLS by destination: which terms hold, who decides, and what becomes of the mail."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.association.tls import is_below
from mta.association.tls_terms import TlsTerms, choose
from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.errors import PermanentFailure
from mta.model import Address, Bridgehead, Route, Tlsa, TlsManner
from mta.plugins.find import Catalogue
from mta.resolver.memory import MemoryResolver
from mta.settings import parse_domain_pattern
from mta.telemetry import Notice, Secured
from mta.testing.lab import HUB, Lab
from mta.transfer.hops import domains
from tests.test_tls import BACK, NAME, TlsTestCase

LABEL = st.sampled_from(["a", "b", "example", "com", "xn--bcher-kva", "*"])
DOMAIN = st.lists(LABEL.filter(lambda label: label != "*"), min_size=1, max_size=5).map(".".join)
PATTERN = st.builds(lambda below, domain: f"*.{domain}" if below else domain, st.booleans(), DOMAIN)
ALL = settings(max_examples=400, deadline=None, derandomize=True)


class ChoiceTests(SynchronousTestCase):
    def test_most_specific(self) -> None:
        """The domain itself, then the longest of what it is below; else the connector's own word."""
        exceptions = {
            pattern: TlsTerms("verify", why=pattern)
            for pattern in ("example.com", "*.example.com", "*.a.example.com", "b.a.example.com")
        }
        for domain, expected in (
            ("example.com", "example.com"),
            ("x.example.com", "*.example.com"),
            ("a.example.com", "*.example.com"),
            ("x.a.example.com", "*.a.example.com"),
            ("y.x.a.example.com", "*.a.example.com"),
            ("b.a.example.com", "b.a.example.com"),
            ("c.b.a.example.com", "*.a.example.com"),
            ("anexample.com", "tls"),
            ("com", "tls"),
            ("", "tls"),
            ("[192.0.2.1]", "tls"),
        ):
            found = choose("opportunistic", exceptions, domain)
            self.assertEqual(found.why, expected, domain)
            self.assertEqual(found.is_exception, expected != "tls")
            self.assertEqual(found.word, "verify" if found.is_exception else "opportunistic")

    @ALL
    @given(st.sets(PATTERN, max_size=8), DOMAIN)
    def test_any(self, patterns: set[str], domain: str) -> None:
        """Of all patterns that cover a domain the longest decides, an exact one before all."""
        exceptions = {pattern: TlsTerms("require", why=pattern) for pattern in patterns}
        covering = [p for p in patterns if p == domain or (p[0] == "*" and domain.endswith(p[1:]))]
        expected = max(covering, key=lambda p: (p == domain, len(p)), default="tls")
        self.assertEqual(choose("none", exceptions, domain).why, expected)

    def test_in_words(self) -> None:
        """What an operator reads of them."""
        terms = TlsTerms("verify", ("*.example.com", "192.0.2.1"), "1.3")
        self.assertEqual(str(terms), "verify for *.example.com or 192.0.2.1, TLS 1.3 at least")
        self.assertEqual(str(TlsTerms("none")), "none")

    def test_by_what(self) -> None:
        """With MX delivery the domain of the mail decides, otherwise the bridgehead's name."""
        bridgeheads = tuple(Bridgehead(h) for h in ("hub.example", "192.0.2.1", "hub.example"))
        self.assertEqual(domains(Route("c", "c", bridgeheads, 10, "")), ("hub.example", ""))
        route = Route("c", "c/example.com", (), 10, "", mx_domain=b"example.com")
        self.assertEqual(domains(route), ("example.com",))
        self.assertEqual(domains(Route("c", "c", (), 10, "")), ())


class NameTests(TlsTestCase):
    def test_below(self) -> None:
        """`*.example.com` takes every name below it, a wildcard among them, and not itself."""
        for shown, expected in (
            ("mx.example.com", True),
            ("a.b.example.com", True),
            ("*.example.com", True),
            ("example.com", False),
            (".example.com", False),
            ("anexample.com", False),
            ("other.example\0.example.com", False),
            ("other.example/.example.com", False),
            ("mx.example.com.other.example", False),
            ("", False),
        ):
            self.assertEqual(is_below("*.example.com", shown), expected, shown)

    @ALL
    @given(PATTERN.filter(lambda p: p[0] == "*"), st.lists(LABEL, max_size=5).map(".".join))
    def test_any_name(self, pattern: str, shown: str) -> None:
        """A name is below exactly where it ends so and something stands before."""
        expected = shown.endswith(pattern[1:]) and len(shown) >= len(pattern)
        self.assertEqual(is_below(pattern, shown), expected)

    def test_one_of_several(self) -> None:
        """One of the names is enough, by the rules of each; the fault names them all."""
        tls = self.tls(self.issue(NAME, "*.wide.example", "192.0.2.1"), trust=self.trust)
        handle = self.shake(tls, tls, NAME)
        for good in ((NAME,), ("other.example", "a.wide.example"), ("*.example.org",),
                     ("*.wide.example",), ("2001:db8::1", "192.0.2.1")):  # fmt: skip
            tls.check_names(handle, good)
        for wrong in (("other.example",), ("wide.example", f"*.{NAME}"), ("a.b.wide.example",)):
            fault = self.assertRaises(PermanentFailure, tls.check_names, handle, wrong)
            self.assertIn(f"is not for {' or '.join(wrong)}", str(fault))

    def test_no_names(self) -> None:
        """A certificate that bears none is for nobody."""
        server = self.tls(self.issue(NAME), trust=self.trust)
        bare = self.issue(file="bare")
        server._identities[0].context.use_certificate_chain_file(bare.chain)
        server._identities[0].context.use_privatekey_file(bare.key)
        handle = self.shake(server, self.tls(trust=self.trust), NAME)
        fault = self.assertRaises(
            PermanentFailure, server.check_names, handle, (NAME, "*.example.org")
        )
        self.assertIn("is not for", str(fault))

    def test_oldest_version(self) -> None:
        """`minimum` is the exception's alone: others of the same process may be older."""
        from OpenSSL import SSL

        server, client = self.tls(self.issue(NAME)), self.tls(trust=self.trust)
        server._identities[0].context.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.shake(server, client, NAME)
        client.opening = lambda name, verify: client.opening_in(name, TlsManner(verify, "1.3"))  # type: ignore[method-assign]
        fault = self.assertRaises(AssertionError, self.shake, server, client, NAME)
        self.assertRegex(str(fault), "version|alert")


class HardDetail16DestinationTests(TlsTestCase):
    """A bridgehead that delivers by MX, and one behind it, each as its configuration makes it."""

    def labs(self, exceptions: str, *names: str, back: str = "offer", tls: str = "opportunistic",
             far: str = "delivery: mx") -> tuple[Lab, Lab]:  # fmt: skip
        """`names` are those of the certificate behind."""
        pair = self.issue(BACK, *names, file="back")
        domains = ("example.com", "a.example.com", "example.net")
        one, _ = self.in_front(domains, f"tls: {tls}", f"tls-exceptions: [{exceptions}]", far)
        return one, self.behind(one, pair, back)

    def send(self, labs: tuple[Lab, Lab], domain: str) -> str:
        """How a message to that domain went: its trust, "plain", or why it waits."""
        front, behind = labs
        had, before = len(behind.hub.messages), len(front.owner.kinds(Secured))
        waiting = {entry.queue_id for entry in front.queue()}
        front.send(to=[f"you@{domain}"])
        if len(behind.hub.messages) == had:
            (entry,) = [e for e in front.queue() if e.queue_id not in waiting]
            return str(entry.state.recipients[0].reply)
        secured = [e.trust for e in front.owner.kinds(Secured)[before:]]
        return secured[0] if secured else "plain"

    def test_each_its_own(self) -> None:
        """One connector, one server for all domains: each domain's mail goes on its own terms."""
        labs = self.labs(
            "{domain: example.com, tls: verify, names: ['*.example.com']},"
            " {domain: '*.example.com', tls: none}",
            "mail.example.com",
        )
        self.assertEqual(self.send(labs, "example.com"), "Verified")
        self.assertEqual(self.send(labs, "a.example.com"), "plain")
        self.assertEqual(self.send(labs, "example.net"), "Untrusted")

    def test_names_in_place_of_the_servers(self) -> None:
        """With names the one that DNS gave the server counts for nothing: who can forge an MX record
        would give his own. Without names it is the one that has to be shown.
        """
        labs = self.labs(
            "{domain: example.com, tls: verify, names: [mx.example.com]},"
            " {domain: a.example.com, tls: verify}",
            "mx.provider.example",
        )
        said = self.send(labs, "example.com")
        self.assertIn("4.7.5", said)
        self.assertIn("the certificate is not for mx.example.com", said)
        self.assertEqual(self.send(labs, "a.example.com"), "Verified")
        (notice,) = [e for e in labs[0].owner.kinds(Notice) if "tls: verify" in e.text]
        self.assertIn("verify for mx.example.com (tls-exceptions example.com): ", notice.text)

    def test_weaker(self) -> None:
        """An exception can also ask for less than the connector."""
        labs = self.labs("{domain: example.com, tls: opportunistic}", back="none", tls="verify")
        self.assertEqual(self.send(labs, "example.com"), "plain")
        self.assertIn("TLS is required", self.send(labs, "example.net"))

    def test_a_failed_wish_is_none_of_a_must(self) -> None:
        """That a server was found incapable for one domain spares nobody a must of another."""
        front, _ = self.labs("{domain: example.com, tls: require}", back="none")
        sink = self.incapable(front)
        front.send(to=["you@example.net"])
        self.assertEqual((len(sink.messages), sink.commands.count(b"STARTTLS")), (1, 1))
        front.send(to=["you@example.com"])
        self.assertEqual((len(sink.messages), sink.commands.count(b"STARTTLS")), (1, 2))
        self.assertIn("TLS handshake failed", front.queue()[0].state.recipients[0].reply)

    def test_dane(self) -> None:
        """`dane` for one domain alone: its records hold there, and nobody asks for them elsewhere."""
        labs = self.labs("{domain: example.com, tls: dane}")
        front, _ = labs
        resolver = front.owner.surroundings.resolver
        assert isinstance(resolver, MemoryResolver)
        resolver.add_tlsa("mx.provider.example", 25, Tlsa(3, 1, 1, bytes(32)))
        resolver.sign("example.com", "example.net", "mx.provider.example")
        resolver.sign("_25._tcp.mx.provider.example")
        self.assertIn("no TLSA record is for the certificate", self.send(labs, "example.com"))
        self.assertEqual(self.send(labs, "example.net"), "Untrusted")

    def test_bridgehead(self) -> None:
        """With bridgeheads the name of the one that is spoken with decides, whatever the mail is for;
        and an alternative bridgehead has its own.
        """
        labs = self.labs(
            "{domain: second.example, tls: verify}",
            "second.example",
            tls="none",
            far="bridgeheads: [{host: first.example, preference: 1}, second.example]",
        )
        resolver = labs[0].owner.surroundings.resolver
        assert isinstance(resolver, MemoryResolver)
        resolver.add_host("first.example", "203.0.113.99")
        resolver.add_host("second.example", HUB)
        self.assertEqual(self.send(labs, "example.net"), "Verified")

    def test_explained(self) -> None:
        """`mta route explain` gets the terms, with the key that decided, of each server once."""
        front, _ = self.labs("{domain: '*.example.com', tls: require, minimum: '1.3'}")
        tenant = front.owner.tenant
        for domain, words in (
            (b"a.example.com", "tls: require, TLS 1.3 at least (tls-exceptions *.example.com)"),
            (b"example.com", "tls: opportunistic (tls)"),
        ):
            route = tenant.routing.route(Address(b"you@" + domain, domain), None)
            assert isinstance(route, Route)
            self.assertEqual(tenant.terms(route), (words,))
        front, _ = self.labs("", far="bridgeheads: [192.0.2.1, 192.0.2.2]")
        route = front.owner.tenant.routing.route(Address(b"you@x.example", b"x.example"), None)
        assert isinstance(route, Route)
        self.assertEqual(front.owner.tenant.terms(route), ("tls: opportunistic (tls)",))


HEAD = """\
virtual-server: {network-name: vs1.example.org, addresses: [192.0.2.10]}
postmaster: p@example.org
cluster: {resource: standalone}
spool: {store: memory}
listeners: []
connectors:
  - name: out
    kind: smtp
    address-spaces: [{domain: "*"}]
"""


class ConfigurationTests(SynchronousTestCase):
    def one(self, entries: str, place: str, *words: str, more: str = "delivery: mx") -> None:
        """Exactly one mistake, at that line, column and path."""
        text = f"{HEAD}    {more}\n    tls-exceptions:\n{entries}"
        wrong = self.assertRaises(ConfigErrors, load, text, "mta.yaml", Catalogue().find)
        self.assertEqual(len(wrong.mistakes), 1, str(wrong))
        self.assertTrue(str(wrong).startswith(f"mta.yaml:{place}: "), str(wrong))
        for word in words:
            self.assertIn(word, str(wrong))

    def test_mistakes(self) -> None:
        """Each at its place, with what to say instead."""
        at = "connectors[0].tls-exceptions[0]"
        for entry, place, words in (
            ("tls: verify", f"12:9: {at}.domain", "missing"),
            ("domain: a.example", f"12:9: {at}.tls", "missing"),
            ("domain: a.example, tls: verfy", f"12:34: {at}.tls", "did you mean verify?"),
            ("domain: a.example, tls: verify, nams: [x.example]", f"12:42: {at}.nams", "names?"),
            ("domain: '*', tls: verify", f"12:18: {at}.domain", "give the connector this `tls`"),
            ("domain: 'a.*.example', tls: verify", f"12:18: {at}.domain", "before the first dot"),
            ("domain: a@b.example, tls: verify", f"12:18: {at}.domain", "is not a domain"),
            ("domain: a.example, tls: require, names: [x.example]", f"12:50: {at}.names",
             "nobody's name is looked at with `tls: require`"),
            ("domain: a.example, tls: verify, names: [x.example, .b.example]",
             f"12:61: {at}.names[1]", "every name below it is *.b.example"),
            ("domain: a.example, tls: verify, names: ['*']", f"12:50: {at}.names[0]", "say whose"),
            ("domain: a.example, tls: dane, minimum: '1.3'", f"12:49: {at}.minimum", "plainly"),
            ("domain: a.example, tls: verify, minimum: '1.1'", f"12:51: {at}.minimum", "1.2, 1.3"),
            ("domain: a.example, tls: dane", f"12:34: {at}.tls", "which answers were validated"),
        ):  # fmt: skip
            self.one(f"      - {{{entry}}}\n", place, words)

    def test_twice(self) -> None:
        """The same domain twice, however it is written; the later one is named."""
        self.one(
            "      - {domain: BÜCHER.example, tls: verify}\n"
            "      - {domain: xn--bcher-kva.example., tls: none}\n",
            "13:18: connectors[0].tls-exceptions[1].domain",
            "xn--bcher-kva.example: an exception for it stands above already",
        )

    def test_for_nobody(self) -> None:
        """With bridgeheads an exception for a name that none of them has would change nothing."""
        for more, place in (
            ("bridgeheads: [hub.example, 192.0.2.1]", "13"),
            ("bridgeheads: [192.0.2.1]", "12"),
        ):
            self.one(
                "      - {domain: '*.example', tls: verify}\n"[: 99 if place == "13" else 0]
                + "      - {domain: example.com, tls: verify}\n",
                f"{place}:18: connectors[0].tls-exceptions[{int(place) - 12}].domain",
                "no bridgehead of this connector has such a name",
                more=more,
            )

    def test_a_password(self) -> None:
        """No exception lets the password out in the clear, unless it was said that it may."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w", encoding="ascii") as file:
            file.write("secret\n")
        os.chmod(path, 0o600)
        auth = f"auth: {{user: me, password-file: {path}}}"
        for word in ("none", "opportunistic"):
            self.one(
                f"      - {{domain: a.example, tls: {word}}}\n",
                "14:34: connectors[0].tls-exceptions[0].tls",
                f"auth with `tls: {word}`: the password could go out without TLS",
                more=f"delivery: mx\n    tls: verify\n    {auth}",
            )

    def test_names_as_domains(self) -> None:
        """Domains and names are compared as A-labels in lower case."""
        text = (
            f"{HEAD}    delivery: mx\n    tls-exceptions:\n"
            "      - {domain: '*.BÜCHER.example', tls: verify, names: ['*.Bücher.example', A.example.,"
            " '2001:DB8::1']}\n"
        )
        (block,) = load(text, "mta.yaml", Catalogue().find).connectors
        (each,) = block.settings.tls_exceptions  # type: ignore[attr-defined]
        self.assertEqual(each.domain, parse_domain_pattern("*.bücher.example"))
        self.assertEqual(
            each.terms().names, ("*.xn--bcher-kva.example", "a.example", "2001:db8::1")
        )
