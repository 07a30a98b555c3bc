"""What every IResolver promises. Mix into a SynchronousTestCase and give it a `resolver` method.

For one that is an ISecureResolver too `ISecureResolverTests` wants a `secure_resolver` besides;
`ITextResolverTests` is for one that is an ITextResolver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface.verify import verifyObject

from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IResolver, ISecureResolver, ITextResolver
from mta.model import Proven, Tlsa, TlsaRecords

ZONE: dict[tuple[str, str], Any] = {
    ("example.com", "MX"): [(20, "mx2.example.com"), (10, "mx1.example.com")],
    ("mx1.example.com", "A"): ["198.51.100.1"],
    ("mx1.example.com", "AAAA"): ["2001:db8::1"],
    ("mx2.example.com", "A"): ["198.51.100.2"],
    ("implicit.example", "A"): ["198.51.100.9"],
    ("nomail.example", "MX"): [(0, ".")],
    ("equal.example", "MX"): [(10, f"m{i}.equal.example") for i in range(4)],
    ("m0.equal.example", "A"): ["198.51.100.20"],
    ("m1.equal.example", "A"): ["198.51.100.21"],
    ("m2.equal.example", "A"): ["198.51.100.22"],
    ("m3.equal.example", "A"): ["198.51.100.23"],
    ("half.example", "MX"): [(10, "gone.example"), (20, "mx2.example.com")],
    ("hollow.example", "MX"): [(10, "gone.example")],
    ("broken.example", "MX"): TransientFailure("broken.example", "SERVFAIL", enhanced="4.4.3"),
    ("broken.example", "A"): TransientFailure("broken.example", "SERVFAIL", enhanced="4.4.3"),
    ("broken.example", "AAAA"): TransientFailure("broken.example", "SERVFAIL", enhanced="4.4.3"),
}
"""What the resolver under test is to know: records by name and type; nothing else exists.

A failure instead of records: that question is not answered. MX "." is a null MX.
"""

RECORD = Tlsa(3, 1, 1, bytes(range(32)))
SIGNED_ZONE: dict[tuple[str, str], Any] = {
    ("signed.example", "MX"): [(10, "mx.signed.example"), (20, "mx.open.example")],
    ("mx.signed.example", "A"): ["198.51.100.31"],
    ("mx.open.example", "A"): ["198.51.100.32"],
    ("open.example", "MX"): [(10, "mx.signed.example")],
    ("aliased.example", "MX"): [(10, "www.aliased.example")],
    ("www.aliased.example", "CNAME"): "mx.signed.example",
    ("hired.example", "MX"): [(10, "mail.hired.example")],
    ("mail.hired.example", "CNAME"): "mx.open.example",
    ("lured.example", "MX"): [(10, "mail.open.example")],
    ("mail.open.example", "CNAME"): "mx.signed.example",
    ("host.signed.example", "A"): ["198.51.100.33"],
    ("_25._tcp.mx.signed.example", "TLSA"): [RECORD],
    ("_25._tcp.mx.open.example", "TLSA"): [RECORD],
    ("_25._tcp.host.signed.example", "TLSA"): TransientFailure(
        "_25._tcp.host.signed.example", "SERVFAIL", enhanced="4.4.3"
    ),
}
"""The same, of which answers about SIGNED are validated, also that there is none, and no others."""
SIGNED = frozenset(
    {
        *("signed.example", "mx.signed.example", "aliased.example", "www.aliased.example"),
        *("hired.example", "mail.hired.example", "lured.example", "host.signed.example"),
        *("_25._tcp.mx.signed.example", "_26._tcp.mx.signed.example"),
    }
)


class IResolverTests:
    """Implement `resolver(zone)`; `settle()` lets a resolver that waits get its answers."""

    resolver: Callable[[dict[tuple[str, str], Any]], IResolver]

    def settle(self) -> None:
        """Let every answer come."""

    def _result(self, asked: Any) -> Any:
        self.settle()
        return self.successResultOf(asked)  # type: ignore[attr-defined]

    def _failure(self, asked: Any, *kinds: type[Exception]) -> Any:
        self.settle()
        return self.failureResultOf(asked, *kinds).value  # type: ignore[attr-defined]

    def test_interface(self) -> None:
        """A resolver has every method of the contract."""
        verifyObject(IResolver, self.resolver(ZONE))

    def test_addresses(self) -> None:
        """A host's A and AAAA records are its addresses."""
        found = self._result(self.resolver(ZONE).addresses("mx1.example.com"))
        self.assertEqual(  # type: ignore[attr-defined]
            {str(a) for a in found}, {"198.51.100.1", "2001:db8::1"}
        )

    def test_case_and_final_dot(self) -> None:
        """Names are compared without case, with or without their final dot."""
        found = self._result(self.resolver(ZONE).addresses("MX2.Example.COM."))
        self.assertEqual([str(a) for a in found], ["198.51.100.2"])  # type: ignore[attr-defined]

    def test_no_such_host(self) -> None:
        """A host that does not exist is a permanent failure."""
        failure = self._failure(self.resolver(ZONE).addresses("gone.example"), PermanentFailure)
        self.assertEqual(failure.enhanced, "5.1.2")  # type: ignore[attr-defined]

    def test_mail_hosts_by_preference(self) -> None:
        """Mail exchangers come in order of preference, with their addresses."""
        hosts = self._result(self.resolver(ZONE).mail_hosts(b"example.com"))
        self.assertEqual(  # type: ignore[attr-defined]
            [(h.name, h.preference) for h in hosts],
            [("mx1.example.com", 10), ("mx2.example.com", 20)],
        )
        self.assertTrue(all(h.addresses for h in hosts))  # type: ignore[attr-defined]

    def test_equal_preference_is_shuffled(self) -> None:
        """Exchangers of equal preference share the load: each comes first at times."""
        firsts = set()
        for _ in range(60):
            hosts = self._result(self.resolver(ZONE).mail_hosts(b"equal.example"))
            firsts.add(hosts[0].name)
        self.assertEqual(len(firsts), 4)  # type: ignore[attr-defined]

    def test_implicit_mx(self) -> None:
        """A domain without MX takes mail at its own address."""
        hosts = self._result(self.resolver(ZONE).mail_hosts(b"implicit.example"))
        self.assertEqual(  # type: ignore[attr-defined]
            [(h.name, [str(a) for a in h.addresses]) for h in hosts],
            [("implicit.example", ["198.51.100.9"])],
        )

    def test_null_mx(self) -> None:
        """A domain that says it takes no mail: 556 5.1.10, at once and for good."""
        failure = self._failure(self.resolver(ZONE).mail_hosts(b"nomail.example"), PermanentFailure)
        self.assertEqual((failure.code, failure.enhanced), (556, "5.1.10"))  # type: ignore[attr-defined]

    def test_no_such_domain(self) -> None:
        """A domain that does not exist: 5.1.2."""
        failure = self._failure(self.resolver(ZONE).mail_hosts(b"gone.example"), PermanentFailure)
        self.assertEqual(failure.enhanced, "5.1.2")  # type: ignore[attr-defined]

    def test_no_answer(self) -> None:
        """Servers that fail are no reason to return mail: transient, 4.4.3."""
        failure = self._failure(self.resolver(ZONE).mail_hosts(b"broken.example"), TransientFailure)
        self.assertEqual(failure.enhanced, "4.4.3")  # type: ignore[attr-defined]

    def test_exchanger_without_address_is_left_out(self) -> None:
        """One exchanger that does not exist does not stop the others."""
        hosts = self._result(self.resolver(ZONE).mail_hosts(b"half.example"))
        self.assertEqual([h.name for h in hosts], ["mx2.example.com"])  # type: ignore[attr-defined]

    def test_only_exchangers_without_address(self) -> None:
        """When no exchanger has an address the mail cannot go: permanent."""
        self._failure(self.resolver(ZONE).mail_hosts(b"hollow.example"), PermanentFailure)


TEXT_ZONE: dict[tuple[str, str], Any] = {
    ("_sts.example.com", "TXT"): [b"v=1; id=2", b"", b"x" * 300, '\N{SNOWMAN}"\\;'.encode()],
    ("_sts.alias.example", "CNAME"): "_sts.example.com",
    ("broken.example", "TXT"): TransientFailure("broken.example", "SERVFAIL", enhanced="4.4.3"),
}


class ITextResolverTests(IResolverTests):
    """For a resolver that is an ITextResolver too."""

    def test_text_interface(self) -> None:
        """It has every method of the add-on."""
        verifyObject(ITextResolver, self.resolver(TEXT_ZONE))

    def test_texts(self) -> None:
        """Each record whole, however many strings it was cut into; aliases are followed."""
        expected = sorted(TEXT_ZONE["_sts.example.com", "TXT"])
        for name in ("_sts.example.com", "_STS.example.com.", "_sts.alias.example"):
            found = self._result(self.resolver(TEXT_ZONE).texts(name))  # type: ignore[attr-defined]
            self.assertEqual(sorted(found), expected)  # type: ignore[attr-defined]

    def test_no_texts(self) -> None:
        """A name that does not exist, has other records, or cannot be one, says nothing."""
        for name in ("gone.example", "mx1.example.com", "a" * 64 + ".example", ""):
            found = self._result(self.resolver(ZONE).texts(name))  # type: ignore[attr-defined]
            self.assertEqual(found, (), name)  # type: ignore[attr-defined]

    def test_texts_without_answer(self) -> None:
        """A look-up that fails is never taken for "there are none"."""
        asked = self.resolver(TEXT_ZONE).texts("broken.example")  # type: ignore[attr-defined]
        self._failure(asked, TransientFailure)


class ISecureResolverTests(IResolverTests):
    """Implement `secure_resolver(zone, signed)` as well, where answers about `signed` names, and no
    others, count as validated.
    """

    secure_resolver: Callable[[dict[tuple[str, str], Any], frozenset[str]], Any]

    def _signed(self) -> Any:
        return self.secure_resolver(SIGNED_ZONE, SIGNED)

    def _proven(self, domain: bytes) -> dict[str, Proven | None]:
        hosts = self._result(self._signed().mail_hosts(domain))
        return {host.name: host.proven for host in hosts}

    def test_secure_interface(self) -> None:
        """It has every method of the add-on, and says that somebody validates."""
        verifyObject(ISecureResolver, self._signed())
        self.assertTrue(self._signed().validates)  # type: ignore[attr-defined]

    def test_proven_where_all_is_signed(self) -> None:
        """A host is proven where MX and addresses were validated, each host for itself."""
        self.assertEqual(  # type: ignore[attr-defined]
            self._proven(b"Signed.example"),
            {
                "mx.signed.example": Proven(("mx.signed.example",), ("signed.example",)),
                "mx.open.example": None,
            },
        )

    def test_not_proven_behind_an_open_mx(self) -> None:
        """Whoever can forge the MX chooses the host: nothing is proven then."""
        self.assertEqual(  # type: ignore[attr-defined]
            self._proven(b"open.example"), {"mx.signed.example": None}
        )

    def test_aliases(self) -> None:
        """Of a signed alias the target's records count first, then the alias's own; where only the
        alias is signed, its own alone; where it is not, none (RFC 7672 2.2.2).
        """
        for domain, host, bases in (
            (
                b"aliased.example",
                "www.aliased.example",
                ("mx.signed.example", "www.aliased.example"),
            ),
            (b"hired.example", "mail.hired.example", ("mail.hired.example",)),
        ):
            expected = {host: Proven(bases, (domain.decode(),))}
            self.assertEqual(self._proven(domain), expected)  # type: ignore[attr-defined]
        self.assertEqual(  # type: ignore[attr-defined]
            self._proven(b"lured.example"), {"mail.open.example": None}
        )

    def test_host_without_mx(self) -> None:
        """A host that is its own mail exchanger, or a bridgehead, is proven by its addresses."""
        resolver = self._signed()
        proven = Proven(("host.signed.example",), ("host.signed.example",))
        host = self._result(resolver.mail_host("host.signed.example"))
        self.assertEqual(host.proven, proven)  # type: ignore[attr-defined]
        self.assertEqual([str(a) for a in host.addresses], ["198.51.100.33"])  # type: ignore[attr-defined]
        (host,) = self._result(resolver.mail_hosts(b"host.signed.example"))
        self.assertEqual(host.proven, proven)  # type: ignore[attr-defined]
        host = self._result(resolver.mail_host("mx.open.example"))
        self.assertIsNone(host.proven)  # type: ignore[attr-defined]

    def test_tlsa(self) -> None:
        """TLSA records come with whether they were validated; that there are none does too."""
        resolver = self._signed()
        for base, port, expected in (
            ("MX.signed.example.", 25, TlsaRecords((RECORD,), True)),
            ("mx.signed.example", 26, TlsaRecords((), True)),
            ("mx.open.example", 25, TlsaRecords((RECORD,), False)),
            ("mx.open.example", 26, TlsaRecords((), False)),
        ):
            found = self._result(resolver.tlsa(base, port))
            self.assertEqual(found, expected, (base, port))  # type: ignore[attr-defined]

    def test_tlsa_without_answer(self) -> None:
        """A look-up that fails, as a bogus one does, is never taken for "there are none"."""
        asked = self._signed().tlsa("host.signed.example", 25)
        self._failure(asked, TransientFailure)
