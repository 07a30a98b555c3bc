"""What every IResolver promises. Mix into a SynchronousTestCase and give it a `resolver` method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface.verify import verifyObject

from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IResolver

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
