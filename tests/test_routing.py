"""Least-cost routing: the best address space wins, and everybody can see why."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import (
    Address,
    AddressKind,
    AddressSpace,
    Bridgehead,
    Connector,
    Route,
    Unroutable,
)
from mta.routing.least_cost import LeastCost, LeastCostSettings
from mta.testing.routing_suite import IRoutingTests, mailbox


def build(*connectors):
    return LeastCost(LeastCostSettings(), None).build(connectors)


def path(name, *spaces, **more):
    return Connector(
        name,
        "smtp",
        tuple(s if isinstance(s, AddressSpace) else AddressSpace(*s) for s in spaces),
        bridgeheads=(Bridgehead("192.0.2.1"),),
        **more,
    )


class LeastCostSuite(IRoutingTests, SynchronousTestCase):
    def routing(self, connectors):
        return build(*connectors)


class LeastCostTests(SynchronousTestCase):
    def chosen(self, routing, text):
        route = routing.route(mailbox(text), None)
        return route.connector if isinstance(route, Route) else None

    def test_most_specific_wins(self):
        """user@domain, then the domain, then the longest *.domain, then *; cost comes after."""
        routing = build(
            path("all", (b"*", 1)),
            path("wide", (b"*.example.com", 1)),
            path("narrow", (b"*.sub.example.com", 90)),
            path("exact", (b"a.sub.example.com", 95)),
            path("person", (b"Bob@a.sub.example.com", 99)),
        )
        for text, expected in (
            ("bob@a.sub.example.com", "person"),
            ("BOB@a.sub.example.com", "person"),
            ("eve@a.sub.example.com", "exact"),
            ("eve@b.sub.example.com", "narrow"),
            ("eve@x.y.sub.example.com", "narrow"),
            ("eve@sub.example.com", "wide"),
            ("eve@example.com", "all"),
            ("eve@notexample.com", "all"),
            ("eve@[192.0.2.1]", "all"),
        ):
            self.assertEqual(self.chosen(routing, text), expected, text)

    def test_star_domain_is_not_itself(self):
        """*.example.com takes every name below it and not itself."""
        routing = build(path("below", (b"*.example.com",)))
        self.assertEqual(self.chosen(routing, "x@a.example.com"), "below")
        self.assertIsNone(self.chosen(routing, "x@example.com"))
        self.assertIsNone(self.chosen(routing, "x@bexample.com"))

    def test_cost_then_up_then_name(self):
        """Equal patterns: the lowest cost, then what is up, then the first by name."""
        routing = build(path("c", (b"*", 10)), path("b", (b"*", 10)), path("a", (b"*", 20)))
        self.assertEqual(self.chosen(routing, "x@y.z"), "b")
        routing.connector_down("b")
        self.assertEqual(self.chosen(routing, "x@y.z"), "c")
        routing.connector_down("c")
        self.assertEqual(self.chosen(routing, "x@y.z"), "b")
        routing.connector_up("c")
        self.assertEqual(self.chosen(routing, "x@y.z"), "c")

    def test_alternatives(self):
        """Failover goes to connectors with the same pattern in order, never to a wider one."""
        routing = build(
            path("first", (b"example.com", 10)),
            path("third", (b"example.com", 30)),
            path("second", (b"example.com", 20)),
            path("internet", (b"*", 1)),
        )
        route = routing.route(mailbox("x@example.com"), None)
        self.assertEqual([r.connector for r in route.alternatives], ["second", "third"])

    def test_every_candidate_has_its_verdict(self):
        """`mta route explain` shows every connector and why it lost."""
        routing = build(
            path("hub", (b"example.com", 10)),
            path("spare", (b"example.com", 20)),
            path("twin", (b"example.com", 10)),
            path("internet", (b"*", 1)),
            path("other", (b"example.net", 1)),
        )
        route = routing.explain(mailbox("x@example.com"))
        verdicts = {c.connector: c.verdict for c in route.candidates}
        self.assertIn("chosen", verdicts["hub"])
        self.assertIn("cost 20 is higher than 10", verdicts["spare"])
        self.assertIn("comes first by name", verdicts["twin"])
        self.assertIn("less specific", verdicts["internet"])
        self.assertIn("no address space", verdicts["other"])
        routing.connector_down("hub")
        route = routing.explain(mailbox("x@example.com"))
        self.assertEqual(route.connector, "twin")
        self.assertIn("down", {c.connector: c.verdict for c in route.candidates}["hub"])

    def test_unroutable_says_why(self):
        """An address that nobody takes: 550 5.1.2 with the reason, and what was looked at."""
        found = build(path("hub", (b"example.com",))).route(mailbox("x@nowhere.test"), None)
        self.assertIsInstance(found, Unroutable)
        self.assertEqual((found.code, found.enhanced), (550, "5.1.2"))
        self.assertEqual([c.connector for c in found.candidates], ["hub"])

    def test_reason_names_nobody_else(self):
        """What is remembered for a domain does not show the address that was asked about first."""
        routing = build(path("hub", (b"example.com",)))
        routing.route(mailbox("first@nowhere.test"), None)
        self.assertNotIn("first", routing.explain(mailbox("second@nowhere.test")).why)

    def test_worlds_are_apart(self):
        """An address space of X.400 never takes an SMTP address."""
        space = AddressSpace(b"*", 1, kind=AddressKind.X400)
        routing = build(path("x", space), path("smtp", (b"*", 50)))
        self.assertEqual(self.chosen(routing, "a@b.c"), "smtp")
        found = routing.route(Address(b"/C=DE/", kind=AddressKind.X400), None)
        self.assertEqual(found.connector, "x")

    def test_cache_is_bounded(self):
        """A flood of domains does not fill the memory."""
        routing = build(path("all", (b"*",)))
        for number in range(20_100):
            routing.route(Address(b"x", b"%d.test" % number), None)
        self.assertLess(len(routing._cache), 20_001)

    def test_who_may_send_is_remembered_by_domain(self):
        """Asked again it is the same, other domains and users apart; and memory is bounded."""
        routing = build(
            Connector("hub", "smtp", (AddressSpace(b"example.com", accept_anyone=True),)),
            Connector("boss", "smtp", (AddressSpace(b"boss@example.net"),)),
            Connector("all", "smtp", (AddressSpace(b"example.net", accept_anyone=True),)),
        )
        for _ in range(2):
            self.assertTrue(routing.accepts_anyone(mailbox("bob@example.com")))
            self.assertFalse(routing.accepts_anyone(mailbox("bob@example.org")))
            self.assertFalse(routing.accepts_anyone(mailbox("boss@example.net")))
            self.assertTrue(routing.accepts_anyone(mailbox("bob@example.net")))
        for number in range(20_010):
            routing.accepts_anyone(mailbox(f"bob@{number}.example.com"))
        self.assertLess(len(routing._takes_anyone), 20_001)

    DOMAINS = st.sampled_from(["a.test", "b.a.test", "c.b.a.test", "test", "x.y", "y"])
    PATTERNS = st.sampled_from(
        ["*", "a.test", "*.test", "*.a.test", "u@a.test", "v@b.a.test", "*.b.a.test", "x.y", "*.y"]
    )
    SPACES = st.lists(st.tuples(PATTERNS, st.integers(1, 3)), min_size=1, max_size=3)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        st.lists(SPACES, max_size=5),
        st.sets(st.integers(0, 4)),
        DOMAINS,
        st.sampled_from(["u", "v", "w"]),
    )
    def test_against_the_rule(self, paths, down, domain, local):
        """For any address spaces the answer is what the rule says, in one line of Python."""

        def rank(pattern):
            if "@" in pattern:
                return (0, 0) if pattern == f"{local}@{domain}" else None
            if pattern == "*":
                return (3, 0)
            if pattern.startswith("*."):
                return (2, -len(pattern)) if domain.endswith(pattern[1:]) else None
            return (1, 0) if pattern == domain else None

        connectors = [
            path(f"c{i}", *((p.encode(), cost) for p, cost in spaces))
            for i, spaces in enumerate(paths)
        ]
        expected = min(
            (
                (rank(p), cost, i in down, f"c{i}")
                for i, spaces in enumerate(paths)
                for p, cost in spaces
                if rank(p) is not None
            ),
            default=(None, None, None, None),
        )
        for order in itertools.islice(itertools.permutations(connectors), 3):
            routing = build(*order)
            for i in down:
                routing.connector_down(f"c{i}")
            self.assertEqual(self.chosen(routing, f"{local}@{domain}"), expected[3])
