"""MTA-STS: what becomes of mail where a policy is enforced, tested, none, or not to be had."""

from __future__ import annotations

import os
from typing import Any

from mta.association.sts import PAUSE_SECONDS
from mta.association.sts_terms import StsTerms
from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.errors import StartRefused
from mta.model import Address, Route, Tlsa
from mta.plugins.find import Catalogue
from mta.telemetry import Notice, Secured, TlsAttempt
from mta.testing.certificates import Authority
from mta.testing.lab import HUB, Lab
from mta.testing.surroundings import MemorySurroundings
from tests.test_sts import PolicyHost, answer
from tests.test_tls import BACK, MX, TlsTestCase
from tests.test_tls_terms import HEAD

POLICIES = "198.51.100.5"
SECOND = "203.0.113.41"


class HardDetail17PolicyTests(TlsTestCase):
    """A bridgehead that delivers by MX and asks for policies, and one behind it."""

    def labs(self, *names: str, tls: str = "opportunistic", more: str = "", back: str = "offer",
             mode: str = "enforce", mx: str = MX) -> Lab:  # fmt: skip
        """`names` are those of the certificate behind; `mode` and `mx` are the policy's."""
        domains = ("example.com", "example.net")
        keys = (f"tls: {tls}", "mta-sts: true", "delivery: mx", more)
        front, resolver = self.in_front(domains, *keys)
        self.resolver = resolver
        resolver.add_host("mta-sts.example.com", POLICIES)
        self.policies = PolicyHost(self, front.network, POLICIES, "mta-sts.example.com")
        self.publish("1", mode, mx)
        self.back = self.behind(front, self.issue(BACK, *names, file="back"), back)
        return front

    def publish(self, name: str, mode: str, *mx: str, max_age: int = 604800) -> None:
        exchangers = "".join(f"mx: {each}\n" for each in mx)
        text = f"version: STSv1\nmode: {mode}\n{exchangers}max_age: {max_age}\n"
        self.policies.says = answer(text.encode())
        self.resolver.add_texts("_mta-sts.example.com", b"v=STSv1; id=%s;" % name.encode())

    def send(self, front: Lab, domain: str = "example.com") -> str:
        """How a message to that domain went: its trust, "plain", or why it waits."""
        had, before = len(self.back.hub.messages), len(front.owner.kinds(Secured))
        waiting = {entry.queue_id for entry in front.queue()}
        front.send(to=[f"you@{domain}"])
        if len(self.back.hub.messages) == had:
            (entry,) = [e for e in front.queue() if e.queue_id not in waiting]
            return str(entry.state.recipients[0].reply)
        secured = [e.trust for e in front.owner.kinds(Secured)[before:]]
        return secured[0] if secured else "plain"

    def servers(self, front: Lab) -> dict[tuple[str, str], int]:
        counters = front.owner.surroundings.telemetry.counters
        return {
            (labels["mode"], labels["result"]): int(counter.value)
            for (name, sorted_labels), counter in counters.items()
            if name == "mta_sts_servers_total" and (labels := dict(sorted_labels))
        }

    def said(self, front: Lab) -> list[str]:
        found = [e.text for e in front.owner.kinds(Notice) if e.level == "warning"]
        return [text for text in found if "mta-sts" in text]

    # --- enforce ---

    def test_enforced(self) -> None:
        """A server that the policy names and that proves it gets the mail, under TLS that was
        verified; mail for domains without a policy goes as ever, and the policy is fetched once.
        """
        front = self.labs(MX)
        self.assertEqual(self.send(front), "Verified")
        self.assertEqual(self.send(front, "example.net"), "Untrusted")
        front.advance(700)  # the association has ended
        self.assertEqual(self.send(front), "Verified")
        self.assertEqual(len(self.policies.asked), 1)
        self.assertEqual(self.servers(front), {("enforce", "met"): 2})

    def test_wildcard(self) -> None:
        """A policy may name servers by one label less."""
        self.assertEqual(self.send(self.labs("*.provider.example", mx="*.provider.example")),
                         "Verified")  # fmt: skip

    def test_another_name(self) -> None:
        """A certificate for another name keeps the mail, with the reason, until it is mended."""
        front = self.labs("other.provider.example")
        said = self.send(front)
        self.assertTrue(said.startswith("451 4.7.5 "), said)
        self.assertIn(f"mta-sts: TLS handshake failed: the certificate is not for {MX}", said)
        self.assertEqual(self.servers(front), {("enforce", "failed"): 1})
        self.assertIn("(mta-sts of example.com)", self.said(front)[0])

    def test_nobody_knows_its_authority(self) -> None:
        """So does one from an authority that nobody here knows."""
        front = self.labs(MX)
        tls: Any = front.owner.surroundings.tls
        other, ours = self.tls(trust=self.another_authority()), tls.opening_in
        tls.opening_in = lambda name, manner: (
            other.opening_in(name, manner) if name == MX else ours(name, manner)
        )
        said = self.send(front)
        self.assertTrue(said.startswith("451 4.7.5 "), said)
        self.assertIn("mta-sts: TLS handshake failed: certificate verify failed", said)

    def another_authority(self) -> str:
        directory = os.path.join(self.directory, "another")
        os.mkdir(directory)
        return Authority("Another").write(directory)

    def test_no_tls(self) -> None:
        """A server without STARTTLS gets nothing, nor one that fails at the handshake, though the
        connector says opportunistic.
        """
        front = self.labs(MX, back="none")
        said = self.send(front)
        self.assertTrue(said.startswith("450 4.7.4 ") or said.startswith("451 4.7.4 "), said)
        self.assertIn("mta-sts: ", said)
        self.assertIn("TLS is required", said)
        self.assertEqual(self.send(front, "example.net"), "plain")
        sink = self.incapable(front)
        front.send(to=["you@example.com"])
        self.assertEqual(sink.messages, [])

    def test_a_server_that_is_not_named(self) -> None:
        """It is not even spoken with; the next exchanger, which is named, gets the mail."""
        front = self.labs(MX)
        self.resolver.add_mail("example.com", [(5, "evil.example"), (10, MX)])
        self.resolver.add_host("evil.example", SECOND)
        before = len(front.owner.surroundings.doors.opened)
        self.assertEqual(self.send(front), "Verified")
        opened = front.owner.surroundings.doors.opened[before:]
        self.assertEqual([host for _source, host, port in opened if port == 25], [HUB])
        self.resolver.add_mail("example.com", [(5, "evil.example")])
        front.advance(700)
        said = self.send(front)
        self.assertIn("4.7.0", said)
        self.assertIn("mta-sts: the policy of example.com does not name this server", said)

    def test_operators_minimum_and_word(self) -> None:
        """A connector that demands more keeps what it demands; `require` becomes verified."""
        front = self.labs("other.example", tls="require")
        self.assertIn("mta-sts: TLS handshake failed", self.send(front))
        self.assertEqual(self.send(front, "example.net"), "Untrusted")

    def test_reports(self) -> None:
        """Reports of TLS are told of the policy, and of what it stopped, or would have."""
        for names, mode, mx, result in (
            ((MX,), "enforce", MX, ""),
            (("other.example",), "enforce", MX, "certificate-host-mismatch"),
            ((MX,), "enforce", "mx.other.example", "validation-failure"),
            ((MX,), "testing", MX, ""),
            (("other.example",), "testing", MX, "certificate-host-mismatch"),
            ((MX,), "testing", "mx.other.example", "validation-failure"),
        ):
            front = self.labs(*names, mode=mode, mx=mx)
            self.send(front)
            (told,) = front.owner.kinds(TlsAttempt)
            self.assertEqual((told.policy, told.policy_hosts, told.result), ("sts", (mx,), result))
            self.assertEqual(
                told.policy_strings,
                ("version: STSv1", f"mode: {mode}", f"mx: {mx}", "max_age: 604800"),
            )

    # --- testing, none, nothing ---

    def test_testing(self) -> None:
        """In testing mail goes as without a policy; what would have kept it is counted and said."""
        for names, back, mx, why in (
            ((MX,), "offer", MX, ""),
            (("other.example",), "offer", MX, f"the certificate is not for {MX}"),
            ((MX,), "offer", "mx.other.example", "the policy of example.com does not name"),
            ((MX,), "none", MX, "there is no TLS with it"),
        ):
            front = self.labs(*names, back=back, mode="testing", mx=mx)
            self.assertEqual(self.send(front), "plain" if back == "none" else "Untrusted")
            self.assertEqual(self.servers(front), {("testing", "failed" if why else "met"): 1})
            said = self.said(front)
            self.assertEqual(len(said), bool(why))
            if why:
                self.assertIn(f"{MX}[{HUB}]:25: mta-sts (testing) of example.com: {why}", said[0])

    def test_testing_a_chain(self) -> None:
        """An authority that nobody knows is noted in testing, and the mail goes."""
        front = self.labs(MX, mode="testing")
        other = self.tls(trust=self.another_authority())
        tls: Any = front.owner.surroundings.tls
        tls.noted_in, tls.check_chain = other.noted_in, other.check_chain
        self.assertEqual(self.send(front), "Untrusted")
        self.assertIn("chain is not good: its authority is not one of ours", self.said(front)[0])

    def test_testing_a_handshake_that_fails(self) -> None:
        """In testing a server that fails at TLS gets its mail without, and it is said."""
        front = self.labs(MX, mode="testing")
        sink = self.incapable(front)
        front.send(to=["you@example.com"])
        self.assertEqual(len(sink.messages), 1)
        self.assertEqual(self.servers(front), {("testing", "failed"): 1})

    def test_none(self) -> None:
        """A policy that says `none` is none."""
        front = self.labs("other.example", mode="none", mx="x")
        self.assertEqual(self.send(front), "Untrusted")
        self.assertEqual(self.servers(front), {})

    def test_policy_that_cannot_be_had(self) -> None:
        """With nobody at the policy host mail goes as without a policy; once there was one, it holds
        though the host has gone.
        """
        front = self.labs("other.example")
        server = front.network.services.pop(f"tcp:{POLICIES}:443")
        self.assertEqual(self.send(front), "Untrusted")
        self.assertIn(
            "mta-sts: example.com: no policy (sts-policy-fetch-error): ", *self.said(front)
        )
        front.network.services[f"tcp:{POLICIES}:443"] = server
        front.advance(PAUSE_SECONDS)
        self.assertIn("mta-sts: TLS handshake failed", self.send(front))
        front.network.services.clear()
        self.resolver.add_texts("_mta-sts.example.com", b"v=STSv1; id=2")
        front.advance(7200)
        (entry,) = front.queue()
        self.assertGreater(entry.state.attempts, 2)
        self.assertIn("mta-sts: TLS handshake failed", str(entry.state.recipients[0].reply))

    def test_delivered_when_mended(self) -> None:
        """Mail that waits goes when the domain takes its policy back by a new id."""
        front = self.labs("other.example")
        self.assertIn("mta-sts: ", self.send(front))
        self.publish("2", "none", MX)
        front.advance(3600)
        self.assertEqual(len(self.back.hub.messages), 1)
        self.assertEqual(front.queue(), [])

    # --- beside others ---

    def test_dane_first(self) -> None:
        """Where TLSA records can be met they alone decide, and nobody asks for a policy."""
        front = self.labs(MX, tls="dane")
        self.resolver.add_tlsa(MX, 25, Tlsa(3, 1, 1, bytes(32)))
        self.resolver.sign("example.com", MX, f"_25._tcp.{MX}")
        said = self.send(front)
        self.assertIn("no TLSA record is for the certificate", said)
        self.assertNotIn("mta-sts", said)
        self.assertEqual(self.policies.asked, [])
        for records in ((Tlsa(0, 0, 9, b"?"),), ()):  # nobody can meet the first: TLS is a must
            front = self.labs(MX, tls="dane")
            self.resolver.add_tlsa(MX, 25, *records)
            self.resolver.sign("example.com", MX, f"_25._tcp.{MX}")
            self.assertEqual(self.send(front), "Verified")
            self.assertEqual(len(self.policies.asked), 1)

    def test_exception_first(self) -> None:
        """What an operator says of a domain holds, and nobody asks for its policy."""
        front = self.labs(
            "other.example", more="tls-exceptions: [{domain: example.com, tls: require}]"
        )
        self.assertEqual(self.send(front), "Untrusted")
        self.assertEqual(self.policies.asked, [])

    def test_literal(self) -> None:
        """An address in place of a domain has no policy."""
        front = self.labs(MX)
        asked = len(self.policies.asked)
        self.assertEqual(self.send(front, f"[{HUB}]"), "Untrusted")
        self.assertEqual(len(self.policies.asked), asked)

    def test_explained(self) -> None:
        """`mta route explain` says what is known of a domain's policy."""
        front = self.labs(MX)
        route = front.owner.tenant.routing.route(Address(b"you@example.com", b"example.com"), None)
        assert isinstance(route, Route)
        (said,) = front.owner.tenant.terms(route)
        self.assertEqual(said, "tls: opportunistic (tls); mta-sts: no policy is known")
        self.send(front)
        (said,) = front.owner.tenant.terms(route)
        self.assertIn(f"mta-sts: enforce for {MX}, until 20", said)
        front = self.labs(MX, more="tls-exceptions: [{domain: example.com, tls: require}]")
        (said,) = front.owner.tenant.terms(route)
        self.assertTrue(said.endswith("(tls-exceptions example.com); mta-sts: not asked for"), said)

    def test_reload(self) -> None:
        """A reload keeps what is known: policies belong to the process and not to a connector."""
        front = self.labs(MX)
        self.send(front)
        front.owner.tenant.reconfigure(front.config)
        self.assertEqual(self.send(front), "Verified")
        self.assertEqual(len(self.policies.asked), 1)


class ConfigurationTests(TlsTestCase):
    def one(self, more: str, place: str, words: str) -> None:
        """Exactly one mistake, at that line, column and path."""
        text = f"{HEAD}    {more}\n"
        wrong = self.assertRaises(ConfigErrors, load, text, "mta.yaml", Catalogue().find)
        self.assertEqual(len(wrong.mistakes), 1, str(wrong))
        self.assertTrue(str(wrong).startswith(f"mta.yaml:{place}: connectors[0].mta-sts: "), wrong)
        self.assertIn(words, str(wrong))

    def test_mistakes(self) -> None:
        """It needs mail exchangers, and TLS."""
        self.one("delivery: mx\n    mta-sts: yes", "11:14", "neither true nor false")
        self.one("delivery: mx\n    tls: none\n    mta-sts: true", "12:14", "can meet no policy")
        self.one("bridgeheads: [a.example]\n    mta-sts: true", "11:14", "of bridgeheads nobody")

    def test_off(self) -> None:
        """Nobody is asked for policies unless it is said."""
        text = f"{HEAD}    delivery: mx\n"
        (block,) = load(text, "mta.yaml", Catalogue().find).connectors
        self.assertFalse(block.settings.mta_sts)  # type: ignore[attr-defined]

    def test_nobody_to_ask(self) -> None:
        """Surroundings that know no policies refuse it by name."""

        class Bare:
            telemetry = MemorySurroundings().telemetry

        self.assertRaises(StartRefused, StsTerms, Bare())
