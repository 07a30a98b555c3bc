"""A configuration is one frozen value or every mistake in it, each on a line with its place.

Long because every mistake is tried on one example, which stands here.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.config.errors import ConfigErrors, Mistake, clean
from mta.config.load import load, load_file
from mta.config.schema import Config
from mta.model import Address, AddressSpace, Bridgehead, InDoubt
from mta.settings import SecretFile
from tests.config_plugins import SAMPLE, find


def lines(text: str) -> list[str]:
    """The mistakes of `text`, one string each; [] when it loads."""
    try:
        load(text, "mta.yaml", find)
    except ConfigErrors as errors:
        return str(errors).split("\n")
    return []


def changed(old: str, new: str) -> str:
    """The sample with one thing in it changed."""
    assert SAMPLE.count(old) == 1, f"{old!r} stands {SAMPLE.count(old)} times in the sample"
    return SAMPLE.replace(old, new)


CONNECTORS = SAMPLE.index("connectors:")
TAIL = SAMPLE.index("routing:")


def with_connectors(text: str) -> str:
    return SAMPLE[:CONNECTORS] + "connectors:\n" + text + SAMPLE[TAIL:]


class SampleTests(SynchronousTestCase):
    def config(self) -> Config:
        return load(SAMPLE, "mta.yaml", find)

    def test_grammar(self) -> None:
        """The grammar as the specification shows it loads, and means what it says."""
        config = self.config()

        self.assertEqual("bridgehead.example.org", config.virtual_server.network_name)
        self.assertEqual(
            [ip_address("192.0.2.10"), ip_address("2001:db8::10")],
            [address.bind for address in config.virtual_server.addresses],
        )
        self.assertEqual(Address(b"postmaster@example.org", b"example.org"), config.postmaster)
        self.assertEqual("interface", config.cluster.name)
        self.assertEqual(10.0, config.cluster.settings.grace)  # type: ignore[attr-defined]
        self.assertEqual("mta.yaml:5", config.cluster.where)
        self.assertEqual("log", config.spool.name)
        (listener,) = config.listeners
        self.assertEqual(("smtp:25", "smtp"), (listener.name, listener.kind))
        self.assertEqual(
            (ip_network("192.0.2.0/24"),),
            listener.settings.relay_from,  # type: ignore[attr-defined]
        )
        (hub,) = config.connectors
        self.assertEqual("hub", hub.connector.name)
        self.assertEqual(
            (Bridgehead("192.0.2.20", 25), Bridgehead("2001:db8::20", 25, 20)),
            hub.connector.bridgeheads,
        )
        self.assertEqual(
            (AddressSpace(b"*.example.com", 10, True), AddressSpace(b"*", 50, False)),
            hub.connector.address_spaces,
        )
        self.assertIs(InDoubt.RESEND, hub.connector.in_doubt)
        self.assertEqual("least-cost", config.routing.name)
        self.assertEqual((300.0, 600.0, 1200.0, 2400.0, 3600.0), config.queue.backoff)
        self.assertEqual("postfix", config.log.format)
        self.assertEqual("127.0.0.1:8025", config.admin.http)
        self.assertEqual((), config.policies)

    def test_digest(self) -> None:
        """Two nodes see by the digest whether they read the same text."""
        self.assertEqual(self.config().digest, self.config().digest)
        self.assertNotEqual(self.config().digest, load(SAMPLE + "\n", "mta.yaml", find).digest)

    def test_shared_digest(self) -> None:
        """Comments, the order of blocks, and what is each node's own (node, log, admin) make no
        difference between two nodes; everything else does.
        """
        ours = self.config().shared_digest
        same = (
            f"# a remark\n{SAMPLE}",
            f"{SAMPLE}node: {{name: other.example.org}}\n",
            changed("format: postfix", "format: json"),
            changed("8025", "8026"),
            SAMPLE[TAIL:] + SAMPLE[:TAIL],
        )
        for text in same:
            self.assertEqual(ours, load(text, "mta.yaml", find).shared_digest, text)
        for text in (changed("lifetime: 5d", "lifetime: 3d"), changed("cost: 50", "cost: 51")):
            self.assertNotEqual(ours, load(text, "mta.yaml", find).shared_digest, text)

    def test_defaults(self) -> None:
        """Blocks that may be left out have their defaults; a block with no keys is one of them."""
        text = SAMPLE[:TAIL] + "admin:\n"
        config = load(text, "mta.yaml", find)
        self.assertEqual("least-cost", config.routing.name)
        self.assertEqual("/run/mta/control.sock", config.admin.socket)
        self.assertIsNone(config.admin.http)
        self.assertEqual(432_000.0, config.queue.lifetime)

    def test_scalars_stay_text(self) -> None:
        """What YAML 1.1 would turn into something else stays what was written."""
        text = with_connectors(
            "  - {name: no, kind: discard, address-spaces: [{domain: '*'}]}\n"
            "  - {name: '0x10', kind: discard, address-spaces: [{domain: no}]}\n"
            "  - {name: 8:25, kind: discard, address-spaces: [{domain: 1.10}]}\n"
        )
        config = load(text, "mta.yaml", find)
        self.assertEqual(["no", "0x10", "8:25"], [c.name for c in config.connectors])
        self.assertEqual(b"1.10", config.connectors[2].connector.address_spaces[0].pattern)

    def test_international_names(self) -> None:
        """Domains may be written as people read them; inside they are A-labels in lower case."""
        text = with_connectors(
            "  - name: hub\n    kind: discard\n    address-spaces:\n"
            "      - {domain: Bücher.Example}\n      - {domain: '*.BÜCHER.example.'}\n"
            "      - {address: Jo@bücher.example}\n      - {domain: '*'}\n"
        )
        spaces = load(text, "mta.yaml", find).connectors[0].connector.address_spaces
        self.assertEqual(
            [
                b"xn--bcher-kva.example",
                b"*.xn--bcher-kva.example",
                b"Jo@xn--bcher-kva.example",
                b"*",
            ],
            [space.pattern for space in spaces],
        )

    def test_far_ends(self) -> None:
        """Bridgeheads, MX, a socket's path or nothing at all: as the kind asks for."""
        text = with_connectors(
            "  - {name: a, kind: smtp, delivery: mx, address-spaces: [{domain: a.example}]}\n"
            "  - {name: b, kind: lmtp, path: /run/lmtp, address-spaces: [{domain: b.example}]}\n"
            "  - {name: c, kind: pigeon, address-spaces: [{domain: '*'}]}\n"
        )
        a, b, c = load(text, "mta.yaml", find).connectors
        self.assertTrue(a.connector.by_mx)
        self.assertEqual("/run/lmtp", b.settings.path)  # type: ignore[attr-defined]
        self.assertEqual(((), False), (c.connector.bridgeheads, c.connector.by_mx))

    def test_addresses(self) -> None:
        """Behind address translation a virtual address has two sides; one may be optional."""
        text = changed(
            'addresses: [192.0.2.10, "2001:db8::10"]',
            "addresses:\n"
            "    - {external: 203.0.113.7, bind: 10.0.0.5}\n"
            '    - {address: "2001:db8::10", required: false}',
        )
        first, second = load(text, "mta.yaml", find).virtual_server.addresses
        self.assertEqual("203.0.113.7 (bound as 10.0.0.5)", str(first))
        self.assertFalse(second.required)


TEN = """\
virtual-server:
  netwrok-name: bridgehead.example.org
  addresses: [192.0.2.300, "2001:db8::10"]
postmaster: postmaster@example.org
cluster:
  resource: interfaec
spool:
  directory: /var/spool/mta
  sharing: nfs
  sharing: none
listeners:
  - kind: smtp
    port: 70000
    relay-from: [192.0.2.1/24]
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["192.0.2.20:25"]
    delivery: mx
    address-spaces: [{domain: "*", cost: 50}]
  - name: local
    kind: maildir
    address-spaces: [{domain: example.com, cost: 101}]
admin: {http: "0.0.0.0:8025"}
"""


class MistakeTests(SynchronousTestCase):
    maxDiff = None

    def one(self, text: str, place: str, *words: str) -> None:
        """Exactly one mistake, at that place, with those words in it."""
        found = lines(text)
        self.assertEqual(1, len(found), "\n".join(found))
        self.assertTrue(found[0].startswith(f"mta.yaml:{place}: "), found[0])
        for word in words:
            self.assertIn(word, found[0])

    def test_ten_mistakes(self) -> None:
        """Ten mistakes are ten lines in one run, each where it was made."""
        found = lines(TEN)
        self.assertEqual(
            [
                "mta.yaml:2:3: virtual-server.netwrok-name",
                "mta.yaml:3:15: virtual-server.addresses[0]",
                "mta.yaml:6:13: cluster.resource",
                "mta.yaml:10:3: spool.sharing",
                "mta.yaml:13:11: listeners[0].port",
                "mta.yaml:14:18: listeners[0].relay-from[0]",
                "mta.yaml:16:5: connectors[0]",
                "mta.yaml:21:5: connectors[1].directory",
                "mta.yaml:23:50: connectors[1].address-spaces[0].cost",
                "mta.yaml:24:15: admin.http",
            ],
            [": ".join(line.split(": ")[:2]) for line in found],
        )
        self.assertTrue(found[0].endswith("unknown, did you mean network-name?"), found[0])

    def test_exit_code(self) -> None:
        """A configuration with a mistake ends a program with EX_CONFIG."""
        error = self.assertRaises(ConfigErrors, load, TEN, "mta.yaml", find)
        self.assertEqual(78, error.exit_code)

    def test_nothing_there(self) -> None:
        """An empty file lacks six things, and says which."""
        found = lines("# nothing yet\n")
        self.assertEqual(6, len(found))
        for line in found:
            self.assertTrue(line.startswith("mta.yaml:1:1: "), line)
            self.assertIn("missing", line)

    def test_top_level(self) -> None:
        """Unknown and missing blocks, and a near miss of a required one once."""
        self.one(changed("postmaster: ", "postmastr: "), "4:1", "did you mean postmaster?")
        self.one(changed("postmaster: postmaster@example.org\n", ""), "1:1", "postmaster: missing")
        self.one(SAMPLE + "flux: {capacitor: 1}\n", "30:1", "flux: unknown; keys here: admin")
        self.one("- a\n- b\n", "1:1", "expected a block of keys")
        self.one("hello\n", "1:1", "expected a block of keys")

    def test_missing_key(self) -> None:
        """A missing key is reported at its parent's line."""
        self.one(
            changed(
                "  network-name: bridgehead.example.org      # EHLO, Received by, Reporting-MTA, TLS name\n",
                "",
            ),
            "1:1",
            "virtual-server.network-name: missing",
        )
        self.one(changed("  directory: /var/spool/mta\n", ""), "8:1", "spool.directory: missing")
        self.one(
            changed("  - name: hub\n    kind", "  - kind"), "18:5", "connectors[0].name: missing"
        )
        self.one(changed("  resource: interface\n", ""), "5:1", "cluster.resource: missing")

    def test_unknown_key(self) -> None:
        """An unknown key is named, with the nearest one of its own block, plugins' included."""
        self.one(changed("  grace: 10s", "  grase: 10s"), "7:3", "did you mean grace?")
        self.one(changed("{connections: 1000}", "{conections: 1}"), "16:14", "mean connections?")
        self.one(changed("    concurrency: 20", "    concurency: 20"), "21:5", "mean concurrency?")
        self.one(changed("  - name: hub", "  - nmae: hub"), "18:5", "did you mean name?")
        self.one(changed("  store: log", "  stoer: log"), "9:3", "did you mean store?")
        self.one(changed("resource: interface", "resorce: interface"), "6:3", "mean resource?")
        self.one(changed("network-name:", "network_name:"), "2:3", "did you mean network-name?")
        self.one(
            changed("  grace: 10s", "  zzz: 10s"), "7:3", "unknown; keys here: grace, resource"
        )
        self.one(
            changed('{domain: "*", cost: 50}', '{domain: "*", csot: 50}'), "25:23", "mean cost?"
        )

    def test_duplicate_key(self) -> None:
        """A key given twice is refused where it is given again, naming the first."""
        self.one(changed("  grace: 10s", "  grace: 10s\n  grace: 20s"), "8:3", "twice", "line 7")

    def test_syntax(self) -> None:
        """What is no YAML is said in the same format."""
        self.one("a: [1, 2\nb: 3\n", "2:2")
        self.one("a: 'open\n", "2:1")
        self.one("a:\n\tb: 1\n", "2:1")
        self.one("a: 1\n---\nb: 2\n", "2:1", "document")
        self.one('a: "\\UFFFFFFFF"\n', "1:7", "not YAML")
        self.one("a: \x07\n", "1:4", "a character that no text file holds")
        self.one("a: [" * 50 + "\n", "1:65", "levels deep")
        self.one("x" * (4 * 2**20 + 1), "1:1", "this is no configuration")

    def test_ipv6_hint(self) -> None:
        """An IPv6 address without quotes brings the hint to quote it, however YAML reads it."""
        old = '"2001:db8::10"]'
        self.one(changed(old, "::1]"), "3:27", "quote IPv6 addresses")
        self.one(changed(old, "2001:db8::]"), "3:27", "quote IPv6 addresses")
        self.one(changed(old, "{address: ::1}]"), "3:37", "quote IPv6 addresses")

    def test_yaml_beyond_us(self) -> None:
        """Aliases, tags and odd keys are refused, not interpreted."""
        self.one("a: &x 1\nb: *x\n", "2:4", "alias")
        self.one(changed("grace: 10s", "grace: !secret 10s"), "7:10", "!secret")
        self.one(SAMPLE + "? [a, b]\n: c\n", "30:3", "a key must be one word")

    def test_values(self) -> None:
        """Values that cannot be are told with what was expected."""
        self.one(changed("grace: 10s", "grace: 10"), "7:10", "is not a duration")
        self.one(changed("grace: 10s", "grace: [1s]"), "7:10", "not a duration")
        self.one(changed("{connections: 1000}", "{connections: many}"), "16:27", "whole number")
        self.one(changed("{connections: 1000}", "{connections: 0}"), "16:27", "at least 1")
        self.one(changed("{connections: 1000}", "1000"), "16:13", "expected a block of keys")
        self.one(changed("[192.0.2.0/24]", "192.0.2.0/24"), "15:17", "expected a list")
        self.one(changed("in-doubt: resend", "in-doubt: resent"), "22:15", "did you mean resend?")
        self.one(changed("accept: anyone", "accept: everyone"), "24:53", "none of anyone")
        self.one(changed("cost: 50", "cost: 0"), "25:29", "at least 1")
        self.one(changed("format: postfix", "format: xml"), "28:15", "postfix, json")
        self.one(changed("syslog-name: mta", "syslog-name: 'a b'"), "28:37", "the form")

    def test_shapes(self) -> None:
        """A list where a block belongs, and the other way round, is one mistake."""
        self.one(SAMPLE[:TAIL] + "queue: [a]\n", "26:8", "expected a block of keys")
        self.one(SAMPLE[:TAIL] + "routing: least-cost\n", "26:10", "with policy")
        self.one(SAMPLE[:TAIL] + "policies: {policy: x}\n", "26:1", "expected a list")
        self.one(SAMPLE[:CONNECTORS] + "connectors: []\n", "17:13", "at least one connector")
        self.one(SAMPLE[:CONNECTORS] + "connectors: [hub]\n", "17:14", "a block of keys with kind")
        self.one(
            changed("postmaster: postmaster@example.org", "postmaster: [a]"), "4:13", "mail address"
        )
        self.one(
            changed("resource: interface", "resource: [interface]"), "6:13", "name of a plugin"
        )

    def test_network_name(self) -> None:
        """The network name is a fully qualified name that other machines can resolve."""
        for name, words in (
            ("localhost", "every machine's own name"),
            ("localhost.localdomain", "every machine's own name"),
            ("mail.localhost", "every machine's own name"),
            ("bridgehead", "not fully qualified"),
            ("192.0.2.10", "not a host name"),
            ("-a.example.org", "not a domain"),
            ("a..example.org", "not a domain"),
            ("a b.example.org", "not a domain"),
            (f"{'a' * 64}.example.org", "not a domain"),
            ("x." * 130 + "org", "not a domain"),
            ("under_score.example.org", "not a host name"),
            ("''", "missing"),
        ):
            text = changed("network-name: bridgehead.example.org", f"network-name: {name}")
            self.one(text, "2:17", words)

    def test_virtual_addresses(self) -> None:
        """A virtual address is one that a server can own, listed once."""
        old = 'addresses: [192.0.2.10, "2001:db8::10"]'
        for new, words in (
            ("addresses: []", "at least 1"),
            ("addresses: [0.0.0.0]", "0.0.0.0 is no address"),
            ('addresses: ["::"]', ":: is no address"),
            ("addresses: [224.0.0.1]", "224.0.0.1 is no address"),
            ("addresses: [192.0.2.10, 192.0.2.10]", "listed twice"),
        ):
            self.one(changed(old, new), "3:14", words)
        self.one(changed(old, "addresses: [{adress: 192.0.2.1}]"), "3:15", "adress: unknown")
        self.one(changed(old, "addresses: [{external: 192.0.2.1}]"), "3:15", "both")

    def test_address_spaces(self) -> None:
        """An address space is one pattern, of one of the four forms, once in a connector."""
        old = '{domain: "*", cost: 50}'
        self.one(changed(old, "{cost: 50}"), "25:9", "either domain or address")
        self.one(changed(old, "{domain: a.example, address: a@b.example}"), "25:9", "either domain")
        self.one(changed(old, "{domain: '*x.example'}"), "25:18", "a star stands alone")
        self.one(changed(old, "{domain: a@b.example}"), "25:18", "write it as address:")
        self.one(changed(old, "{address: b.example}"), "25:19", "not a mail address")
        self.one(changed(old, "{domain: 'a b'}"), "25:18", "not a domain")
        self.one(changed(old, '{domain: "*.Example.com"}'), "23:5", "listed twice")

    def test_far_end(self) -> None:
        """A connector says where its far end is exactly once, in a way that its kind has."""
        smtp = "  - {{name: a, kind: smtp{}, address-spaces: [{{domain: '*'}}]}}\n"
        self.one(with_connectors(smtp.format("")), "18:5", "give bridgeheads or delivery: mx")
        self.one(
            with_connectors(smtp.format(", delivery: mx, bridgeheads: [a]")), "18:5", "not both"
        )
        self.one(
            with_connectors(
                "  - {name: a, kind: discard, delivery: mx, address-spaces: [{domain: '*'}]}\n"
            ),
            "18:5",
            "has no far end",
        )
        self.one(
            with_connectors(
                "  - {name: a, kind: lmtp, delivery: mx, address-spaces: [{domain: '*'}]}\n"
            ),
            "18:5",
            "takes bridgeheads or path",
        )
        self.one(
            with_connectors(
                "  - {name: a, kind: pigeon, delivery: mx, bridgeheads: [b], address-spaces: [{domain: '*'}]}\n"
            ),
            "18:5",
            "either bridgeheads or delivery",
        )
        self.one(changed('"192.0.2.20:25"', '"192.0.2.20:99999"'), "20:19", "not a port")

    def test_doubles(self) -> None:
        """Connector names and listener ports and names are unique; the first one is named."""
        again = "  - {name: hub, kind: discard, address-spaces: [{domain: b.example}]}\n"
        text = SAMPLE[:TAIL] + again + SAMPLE[TAIL:]
        self.one(text, "26:12", "hub: a connector of this name stands in line 18 already")
        listener = "  - {kind: lmtp, port: 25}\n"
        text = SAMPLE[:CONNECTORS] + listener + SAMPLE[CONNECTORS:]
        self.one(text, "17:24", "25: a listener on this port stands in line 14 already")
        text = SAMPLE[:CONNECTORS] + "  - {kind: smtp}\n" + SAMPLE[CONNECTORS:]
        self.one(text, "17:5", "listeners[1].port: 25")
        text = (
            SAMPLE[:CONNECTORS]
            + "  - {kind: smtp, name: 'smtp:25', port: 26}\n"
            + SAMPLE[CONNECTORS:]
        )
        self.one(text, "17:24", "a listener of this name")

    def test_plugins(self) -> None:
        """An unknown plugin is refused with those that are there; a plugin's block is checked too."""
        self.one(changed("policy: least-cost", "policy: most-fun"), "26:19", "there are least-cost")
        self.one(changed("kind: smtp\n    bridge", "kind: smpt\n    bridge"), "19:11", "smpt")
        picky = "policies:\n  - {policy: picky, %s}\n"
        self.one(SAMPLE + picky % "number: 10", "31:29", "at most 9")
        self.one(SAMPLE + picky % "share: x", "31:28", "not a number")
        self.one(SAMPLE + picky % "enabled: no", "31:30", "neither true nor false")
        self.one(SAMPLE + picky % "enabled: false, number: 6", "31:5", "makes no sense")
        self.one(SAMPLE + picky % "either: {connections: 0}", "31:43", "at least 1")
        self.one(SAMPLE + picky % "either: x", "31:29")
        self.one(SAMPLE + "policies:\n  - {word: a}\n", "31:5", "policies[0].policy: missing")

    def test_auth(self) -> None:
        """Who authenticates is chosen once, by `kind`; without the block nobody does."""
        self.assertIsNone(load(SAMPLE, "mta.yaml", find).auth)
        block = load(SAMPLE + "auth: {kind: ledger, number: 3}\n", "mta.yaml", find).auth
        assert block is not None
        self.assertEqual(("ledger", 3), (block.name, block.settings.number))  # type: ignore[attr-defined]
        self.assertEqual("mta.yaml:30", block.where)
        self.one(SAMPLE + "auth: {kind: leger}\n", "30:14", "there are ledger")
        self.one(SAMPLE + "auth: {kind: ledger, number: 10}\n", "30:30", "at most 9")
        self.one(SAMPLE + "auth: {number: 3}\n", "30:1", "auth.kind: missing")
        self.one(SAMPLE + "auth:\n", "30:6", "auth.kind: missing")
        self.one(SAMPLE + "auth: [{kind: ledger}]\n", "30:7", "expected a block")
        twice = "auth: {kind: ledger}\n"
        self.one(SAMPLE + twice * 2, "31:1", "auth")

    def test_broken_schema(self) -> None:
        """A plugin whose schema raises is named; the check goes on."""
        text = SAMPLE.replace("cost: 50", "cost: 0") + "policies:\n  - {policy: stumbling}\n"
        found = lines(text)
        self.assertEqual(2, len(found))
        self.assertIn("the schema of stumbling failed: KeyError", found[1])

    def test_sharing(self) -> None:
        """Under a cluster resource somebody says how the spool reaches the other node."""
        text = changed("  sharing: cluster-fs\n", "")
        self.one(text, "8:1", "spool.sharing: missing", "under resource interface", "cluster-fs")
        self.assertEqual([], lines(text.replace("resource: interface", "resource: standalone")))
        self.assertEqual(
            [], lines(text.replace("store: log\n  directory: /var/spool/mta", "store: memory"))
        )
        self.one(changed("  sharing:", "  shairng:"), "11:3", "did you mean sharing?")

    def test_somebody_to_ask(self) -> None:
        """Where clients say who they are there is somebody who knows, and TLS for their passwords."""
        asks = SAMPLE + "auth: {kind: ledger}\n"
        for text, more, place, words in (
            (SAMPLE, "auth: tls", "auth", "nobody knows who may bear which name"),
            (asks, "auth: tls, tls: none", "tls", "under TLS only"),
            (asks, "auth: clear, tls: none", "", ""),
            (asks, "auth: tls", "", ""),
            (SAMPLE, "auth: none", "", ""),
        ):
            listener = f"listeners:\n  - {{kind: smtp, port: 26, {more}}}\n"
            found = lines(re.sub(r"listeners:\n(  .*\n)+", listener, text))
            self.assertEqual(len(found), bool(place), (more, found))
            for line in found:
                self.assertIn(f"listeners[0].{place}: ", line)
                self.assertIn(words, line)

    def test_signers_stand_last(self) -> None:
        """A policy that signs stands behind all that change content, and each in a wrong place is one
        mistake, which says whom to put it behind.
        """

        def policies(*names: str) -> str:
            return SAMPLE + "policies:\n" + "".join(f"  - policy: {name}\n" for name in names)

        for names in (
            ("seal",),
            ("patient", "seal"),
            ("picky", "patient", "picky", "seal", "picky"),
        ):
            self.assertEqual([], lines(policies(*names)))
        said = ("seal: patient in line 34 stands behind it", "put it behind that one")
        self.one(policies("seal", "picky", "patient"), "31:13", *["policies[0].policy:"])
        self.one(policies("picky", "seal", "picky", "patient"), "32:13", *said)
        self.one(policies("seal", "patient", "patient"), "31:13", "patient in line 33")
        self.assertEqual(2, len(lines(policies("seal", "patient", "seal", "patient"))))

    def test_policies_answer_in_time(self) -> None:
        """A policy that may wait longer than its clients do is one mistake, where it was made: at its
        own key, or at intake.policy-timeout where that was written later, or alone.
        """
        waits = "policies:\n  - {{policy: picky}}\n  - {{policy: patient, delay: {}}}\n"
        plain = "policies:\n  - policy: patient\n"
        self.assertEqual([], lines(SAMPLE + waits.format("59s")))
        words = ("patient may take 60 s for one answer", "after 60 s", "policy-timeout more")
        self.one(SAMPLE + waits.format("60s"), "32:30", "policies[1].delay: ", *words)
        self.assertEqual(
            [], lines(SAMPLE + waits.format("60s") + "intake: {policy-timeout: 61s}\n")
        )
        shorter = "intake: {policy-timeout: 20s}\n"
        said = ("intake.policy-timeout: 20 s", "lets patient take", "give more")
        self.one(SAMPLE + plain + shorter, "32:26", *said, "policies[0].delay")
        self.one(SAMPLE + shorter + plain, "30:26", *said)
        self.one(SAMPLE + waits.format("30s") + shorter, "33:26", *said)
        self.one(SAMPLE + shorter + waits.format("30s"), "33:30", "may take 30 s", "after 20 s")
        self.one(SAMPLE + plain + "  - policy: patient\n" + shorter, "33:26", *said)
        two = "  - {policy: patient, delay: 70s}\n"
        self.assertEqual(2, len(lines(SAMPLE + "policies:\n" + two * 2)))

    def test_postmaster(self) -> None:
        """The postmaster's own mail goes somewhere."""
        text = changed('\n      - {domain: "*", cost: 50}', "")
        self.one(text, "4:13", "no connector's address spaces take postmaster@example.org")
        self.one(changed(": postmaster@example.org", ": Postmaster"), "4:13", "not a mail address")

    def test_unroutable_postmaster_needs_right_connectors(self) -> None:
        """While a connector is wrong, nothing is said about where the postmaster's mail goes."""
        self.one(changed('{domain: "*", cost: 50}', '{domain: "**", cost: 50}'), "25:18", "a star")


class SecretTests(SynchronousTestCase):
    def mistakes(self, path: str) -> list[str]:
        return lines(SAMPLE + f"policies:\n  - {{policy: picky, key-file: {path}}}\n")

    def test_closed_file(self) -> None:
        """A secret stands in a file that others cannot read, and only its path in the settings."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write("hunter2\n")
        os.chmod(path, 0o640)
        text = SAMPLE + f"policies:\n  - {{policy: picky, key-file: {path}}}\n"
        settings = load(text, "mta.yaml", find).policies[0].settings
        self.assertEqual(SecretFile(path), settings.key_file)  # type: ignore[attr-defined]
        self.assertEqual(b"hunter2", SecretFile(path).read())
        self.assertNotIn("hunter2", repr(settings))

    def test_open_file(self) -> None:
        """A secret that others can read is refused by name."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write("hunter2\n")
        os.chmod(path, 0o644)
        (line,) = self.mistakes(path)
        self.assertIn("can be read or written by others", line)
        self.assertIn("policies[0].key-file", line)
        self.assertNotIn("hunter2", line)

    def test_no_file(self) -> None:
        """A secret's file that is missing, relative or no file is refused."""
        self.assertIn("No such file", self.mistakes("/nonexistent/key")[0])
        self.assertIn("absolute", self.mistakes("key")[0])
        self.assertIn("not a file", self.mistakes("/")[0])


class FileTests(SynchronousTestCase):
    def test_unreadable(self) -> None:
        """A file that is not there or not text is one mistake in the same format."""
        error = self.assertRaises(ConfigErrors, load_file, "/nonexistent/mta.yaml", find)
        self.assertEqual(
            f"/nonexistent/mta.yaml:1:1: cannot be read by uid {os.geteuid()}: "
            "No such file or directory",
            str(error),
        )
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"a: \xff\n")
        error = self.assertRaises(ConfigErrors, load_file, path, find)
        self.assertEqual(f"{path}:1:1: not UTF-8: octet 3 is 0xff", str(error))

    def test_loads(self) -> None:
        """A good file loads, and its name stands in the Config."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(SAMPLE)
        self.assertEqual(path, load_file(path, find).filename)

    def test_foreign_text(self) -> None:
        """What a file holds cannot act on the terminal that shows its mistakes."""
        (line,) = lines(changed("postmaster@example.org", '"\\e]0;owned\\a\\n@x"'))
        self.assertTrue(line.isprintable())
        self.assertIn("\\x1b", line)
        self.assertLess(len(str(Mistake("f", 1, 1, "p", "x" * 10_000))), 500)
        self.assertEqual("a\\nb\\u2028", clean("a\nb\u2028"))


WORDS = st.sampled_from(
    [
        *("kind", "name", "domain", "smtp", "a.example", "resource", "policy", "25", "5m"),
        *("virtual-server", "connectors", "listeners", "spool", "*", "", "no", "::1", "[", "{"),
    ]
)
TREES = st.recursive(
    WORDS | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


class PropertyTests(SynchronousTestCase):
    def answers(self, text: str) -> None:
        """A Config, or mistakes of one printable line each whose places lie in the text."""
        try:
            load(text, "x", find)
        except ConfigErrors as errors:
            self.assertTrue(errors.mistakes)
            shown = str(errors).split("\n")
            self.assertEqual(len(errors.mistakes), len(shown))
            last = text.count("\n") + text.count("\r") + text.count("\x85") + 2
            last += text.count("\u2028") + text.count("\u2029")
            for mistake, line in zip(errors.mistakes, shown, strict=True):
                self.assertTrue(line.isprintable(), repr(line))
                self.assertTrue(1 <= mistake.line <= last, line)
                self.assertGreaterEqual(mistake.column, 1)
            self.assertEqual(len(set(shown)), len(shown), "said twice")

    @given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=60))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_any_text(self, text: str) -> None:
        """Whatever the file holds, the answer is a Config or mistakes: nothing else is raised."""
        self.answers(text)

    @given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`,?# \n\t\\~<=\u2028", max_size=40))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_any_yaml(self, text: str) -> None:
        """The same for text that is full of what YAML gives a meaning."""
        self.answers(text)

    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    "virtual-server",
                    "cluster",
                    "spool",
                    "listeners",
                    "connectors",
                    "queue",
                    "postmaster",
                    "policies",
                    "routing",
                ]
            ),
            TREES,
            max_size=4,
        )
    )
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_any_tree(self, tree: Any) -> None:
        """The same for every shape of tree under the right keys."""
        import json

        self.answers(json.dumps(tree))

    @given(
        st.integers(0, len(SAMPLE) - 1),
        st.integers(0, 12),
        st.sampled_from(["", " ", "\n", ":", "- ", "[", "]", "{", "'", '"', "x", "::", "#", "\t"]),
    )
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_damaged_sample(self, at: int, length: int, put: str) -> None:
        """A good file with a few characters lost or put in has mistakes with places, or loads."""
        self.answers(SAMPLE[:at] + put + SAMPLE[at + length :])
