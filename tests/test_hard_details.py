"""The details of mail that even good servers get wrong, each from one end of the house to the other.

Their smaller parts are tested where they are built; every detail has a test that bears its number.
"""

from __future__ import annotations

import os
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.errors import TransientFailure
from mta.telemetry import Accepted, Notice
from mta.testing.lab import FRIEND, HUB, MESSAGE, VIRTUAL_ADDRESS, Lab

TESTS = os.path.dirname(os.path.abspath(__file__))
NAMED = re.compile(r"(?:class HardDetail|def test_hard_detail_)0?(\d+)")
DETAILS = frozenset(range(1, 25))
OTHER = "203.0.113.21"
"""A second server of the far end."""


def internet(lab: Lab) -> Any:
    """The resolver of the lab's owner: no MX is known before it is told."""
    return lab.owner.surroundings.resolver


BY_MX = """
connectors:
  - name: internet
    kind: smtp
    delivery: mx
    address-spaces:
      - {domain: "*"}
      - {domain: example.com, accept: anyone}
"""
SPLIT = f"""
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["[2001:db8::20]:25", "{HUB}:25"]
    address-spaces: [{{domain: example.com}}]
"""


class EachHasItsTest(SynchronousTestCase):
    def test_by_number(self) -> None:
        """Every detail of the list has at least one test named after it."""
        found: set[int] = set()
        for name in os.listdir(TESTS):
            if name.startswith("test_") and name.endswith(".py"):
                with open(os.path.join(TESTS, name), encoding="utf-8") as file:
                    found |= {int(number) for number in NAMED.findall(file.read())}
        self.assertEqual(sorted(DETAILS - found), [])

    def test_a_missing_one_is_noticed(self) -> None:
        """Neither a remark nor a docstring counts as a test."""
        self.assertEqual(NAMED.findall("# hard detail 7\nclass HardDetail08X:\n"), ["8"])
        self.assertEqual(NAMED.findall("    def test_hard_detail_12_x(self):"), ["12"])


class HardDetail10LoopTests(SynchronousTestCase):
    """Hard detail 10: a loop ends, and its sender hears of it once."""

    def test_two_relays_that_send_to_each_other(self) -> None:
        """5.4.6 after a hundred hops, one report to the sender, nothing left in either queue."""
        front = Lab(
            hub="203.0.113.40",
            more=f"""
listeners: [{{kind: smtp, port: 25, relay-from: [192.0.2.0/24, {HUB}/32]}}]
connectors:
  - {{name: round, kind: smtp, bridgeheads: ["{HUB}:25"], address-spaces: [{{domain: example.com}}]}}
  - {{name: home, kind: smtp, bridgeheads: ["203.0.113.40:25"],
     address-spaces: [{{domain: example.net}}, {{domain: "*"}}]}}
""",
        )
        back = Lab(
            beside=front,
            hub="203.0.113.30",
            more=f"""
virtual-server: {{network-name: back.example.com, addresses: [{HUB}]}}
listeners: [{{kind: smtp, port: 25, relay-from: [192.0.2.0/24]}}]
connectors:
  - {{name: round, kind: smtp, bridgeheads: ["{VIRTUAL_ADDRESS}:25"],
     address-spaces: [{{domain: "*"}}]}}
postmaster: postmaster@example.net
""",
        )
        front.send(["you@example.com"])
        front.advance(7200)
        reports = [m for m in front.hub.messages if not m.sender]
        self.assertEqual(len(reports), 1)
        self.assertIn(b"5.4.6", reports[0].content)
        self.assertEqual((front.queue(), back.queue()), ([], []))

    def test_ourselves_among_the_exchangers(self) -> None:
        """Where we are an exchanger ourselves, known by the virtual address, only those preferred to
        us are asked; when there are none the mail comes back with 5.4.6.
        """
        lab = Lab(more=BY_MX)
        internet(lab).add_host("us.example", VIRTUAL_ADDRESS)
        internet(lab).add_host("hub.example", HUB)
        internet(lab).add_mail("example.com", [(10, "hub.example"), (20, "us.example")])
        internet(lab).add_mail("loop.example", [(10, "us.example"), (10, "hub.example")])
        internet(lab).add_mail("example.net", [(10, "hub.example")])
        lab.send(["you@example.com"])
        self.assertEqual(len(lab.hub.messages), 1)
        lab.send(["you@loop.example"])
        lab.advance(5)
        (report,) = [m for m in lab.hub.messages if not m.sender]
        self.assertIn(b"5.4.6", report.content)


class HardDetail15GreylistTests(SynchronousTestCase):
    """Hard detail 15: a server that greylists sees us again soon, from the same address."""

    def test_again_from_the_same_address(self) -> None:
        """Within 5 to 30 minutes, also when another node owns by then: the triplet is the same."""
        for fails in (False, True):
            lab = Lab("ab", spool="log")
            lab.hub.answer("RCPT", b"450 4.2.0 Greylisted", times=1)
            lab.send()
            self.assertEqual(lab.hub.messages, [])
            if fails:
                lab.fail("a", to="b")
            lab.advance(240)
            self.assertEqual(lab.hub.messages, [])
            lab.advance(1500)
            self.assertEqual(len(lab.hub.messages), 1)
            self.assertEqual(set(lab.hub.sources), {VIRTUAL_ADDRESS})
            self.assertEqual(lab.hub.messages[0].helo, b"vs1.example.org")

    def test_no_stampede(self) -> None:
        """Messages that were deferred together do not come back together."""
        lab = Lab()
        lab.hub.answer(".", b"451 4.3.0 Later")
        for number in range(40):
            lab.send([f"you{number}@example.com"])
        dues = {round(entry.state.due, 3) for entry in lab.queue()}
        self.assertGreater(len(dues), 30)
        self.assertGreater(max(dues) - min(dues), 20.0)


class HardDetail17FamilyTests(SynchronousTestCase):
    """Hard detail 17: each family leaves from a virtual address of its own, or not at all."""

    def test_the_other_family_is_tried(self) -> None:
        """With an IPv4 address alone a far end that is also reached by IPv6 gets it by IPv4."""
        lab = Lab(more=SPLIT)
        lab.send()
        self.assertEqual(len(lab.hub.messages), 1)
        self.assertEqual(set(lab.hub.sources), {VIRTUAL_ADDRESS})

    def test_never_from_a_node(self) -> None:
        """A far end of the other family alone: the mail waits, and the reason names the family."""
        lab = Lab(more=SPLIT.replace(f', "{HUB}:25"', ""))
        lab.send()
        (entry,) = lab.queue()
        reply = entry.state.recipients[0].reply
        self.assertRegex(reply, "IPv6|family")

    def test_a_dead_family_costs_little(self) -> None:
        """A far end whose IPv6 address answers nobody is reached by IPv4 within the connect time."""
        lab = Lab(
            more=SPLIT
            + f'virtual-server: {{network-name: vs1.example.org, addresses: ["{VIRTUAL_ADDRESS}", "2001:db8::10"]}}\n'
        )
        lab.network.unreachable.add("2001:db8::20")
        lab.send()
        lab.advance(31)
        self.assertEqual(len(lab.hub.messages), 1)


class HardDetail18ExchangerTests(SynchronousTestCase):
    """Hard detail 18: which exchangers, in which order, and when none."""

    def lab(self) -> Lab:
        lab = Lab(more=BY_MX)
        zone = internet(lab)
        zone.add_host("hub.example", HUB)
        zone.add_host("other.example", OTHER)
        zone.add_mail("example.net", [(10, "hub.example")])
        return lab

    def test_preference(self) -> None:
        """The preferred one first; when it does not answer, the next, in the same attempt."""
        lab = self.lab()
        internet(lab).add_mail("example.com", [(20, "hub.example"), (10, "other.example")])
        lab.send()
        self.assertEqual(len(lab.hub.messages), 1)
        self.assertEqual(lab.queue(), [])

    def test_all_are_tried_before_it_waits(self) -> None:
        """Deferred only when none of them answers; with the mail kept."""
        lab = self.lab()
        internet(lab).add_host("third.example", "203.0.113.22")
        internet(lab).add_mail("example.com", [(10, "other.example"), (20, "third.example")])
        lab.send()
        (entry,) = lab.queue()
        self.assertIn("refused", entry.state.recipients[0].reply)

    def test_no_exchanger_but_an_address(self) -> None:
        """Without MX records the address of the domain itself (RFC 5321 5.1)."""
        lab = self.lab()
        internet(lab).add_host("example.com", HUB)
        lab.send()
        self.assertEqual(len(lab.hub.messages), 1)

    def test_null_exchanger(self) -> None:
        """A domain that takes no mail (RFC 7505): returned at once with 5.1.10."""
        lab = self.lab()
        internet(lab).add_null_mail("example.com")
        lab.send()
        lab.advance(5)
        (report,) = lab.hub.messages
        self.assertEqual(report.sender, b"")
        self.assertIn(b"5.1.10", report.content)
        self.assertEqual(lab.queue(), [])

    def test_no_answer_of_the_dns(self) -> None:
        """A name server that does not answer is no verdict: the mail waits."""
        lab = self.lab()
        internet(lab).break_name("example.com", TransientFailure("the DNS is silent"))
        lab.send()
        self.assertEqual(len(lab.queue()), 1)

    def test_no_such_domain(self) -> None:
        """A domain that does not exist comes back at once."""
        lab = self.lab()
        lab.send(["you@nowhere.example"])
        lab.advance(5)
        (report,) = lab.hub.messages
        self.assertIn(b"5.1.2", report.content)


class HardDetail19FullTests(SynchronousTestCase):
    """Hard detail 19: no room is 452, a broken disk 451 or silence, and never 5yz."""

    def test_full(self) -> None:
        """452 before the content, and again room, again mail."""
        lab = Lab(more="spool: {store: memory, capacity: 4KiB}\n")
        lab.hub.answer(".", b"451 4.3.0 Later")
        content = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" * 1000
        replies = {lab.send(content=content)[:9] for _ in range(4)}
        self.assertIn(b"452 4.3.1", replies)
        self.assertFalse([reply for reply in replies if reply[:1] == b"5"])

    def test_every_kind_of_fault(self) -> None:
        """Whatever the disk answers at whichever call, a client hears 250, 4yz or nothing; and what
        it heard 250 for is there after a takeover.
        """
        for kind in ("write", "sync", "any"):
            for times in (1, 2, 1000):
                lab = Lab("ab", spool="log")
                lab.hub.answer(".", b"451 4.3.0 Later")
                client = lab.client()
                client.begin(["you@example.com"])
                lab.disk.fail(kind, times=times)
                reply = client.pour(MESSAGE + b".\r\n")
                self.assertNotEqual(reply[:1], b"5", (kind, times))
                promised = len(lab.owner.kinds(Accepted))
                self.assertEqual(promised, int(reply[:3] == b"250"), (kind, times))
                lab.disk.heal()
                lab.fail("a", to="b", power_cut=True)
                self.assertGreaterEqual(len(lab.queue()) + len(lab.hub.messages), promised)


class HardDetail20DurabilityTests(SynchronousTestCase):
    """Hard detail 20: durable, then 250; never the other way round."""

    def test_no_reply_before_the_flush(self) -> None:
        """While the disk has not flushed there is no 250; a power cut then loses nothing promised."""
        lab = Lab("ab", spool="log")
        lab.hub.answer(".", b"451 4.3.0 Later")
        client = lab.client()
        client.begin(["you@example.com"])
        lab.owner.is_frozen = True
        self.assertEqual(client.pour(MESSAGE + b".\r\n"), b"")
        lab.owner.is_frozen = False
        lab.settle()
        self.assertTrue(client.peer.take().startswith(b"250"))
        lab.fail("a", to="b", power_cut=True)
        self.assertEqual(len(lab.queue()), 1)


class HardDetail23AddressMovesTests(SynchronousTestCase):
    """Hard detail 23: when the address goes every association of it ends, in both directions."""

    def test_both_directions(self) -> None:
        """An inbound one in the midst of its content, an outbound one behind its dot: both are
        closed before the tenure is over; nothing is promised, and what may have been sent is named.
        """
        lab = Lab("ab", spool="log")
        lab.hub.answer(".", b"(say nothing)")
        lab.send()
        self.assertEqual(lab.hub.open, 1)
        client = lab.client()
        client.begin(["other@example.com"])
        client.pour(b"Subject: half\r\n\r\n")
        lab.owner.revoke()
        lab.settle()
        self.assertFalse(client.is_open)
        self.assertEqual(lab.hub.open, 0)
        self.assertEqual(len(lab.owner.kinds(Accepted)), 1)
        lab.owner.restore()
        lab.settle()
        self.assertEqual([d.side for d in lab.owner.spool.in_doubt()].count("outbound"), 1)

    def test_nothing_before_it_is_back(self) -> None:
        """Without the address nobody is greeted and nothing is sent; no defect is told."""
        lab = Lab()
        lab.owner.revoke()
        lab.settle()
        self.assertFalse(lab.client(FRIEND).is_open)
        self.assertEqual(
            [e.text for e in lab.owner.kinds(Notice) if "defect" in e.text.lower()], []
        )
