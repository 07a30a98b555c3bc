"""What monitoring and status read of ownership: phases of a takeover, the lease, the addresses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from mta.admin.metrics import Exposition
from mta.cluster.gauges import ClusterGauges
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.netlink import flag_names
from mta.cluster.ownership import State
from mta.cluster.takeover_times import PHASES
from mta.errors import Unavailable
from mta.interfaces import IAddressFacts, ILease
from mta.model import AddressFact, VirtualServer
from mta.testing.kernel import PERMANENT, PaperNetlink
from mta.testing.surroundings import MemorySurroundings, virtual_addresses
from tests.test_driver import V4, V6, DriverCase, instance


class TakeoverTimesTests(DriverCase):
    def take_over(self, seconds: dict[str, float]) -> dict[str, Any]:
        """Each step takes so long; answers the snapshot afterwards."""
        self.held.hold = set(seconds)
        self.ownership.start()
        for step, wait in seconds.items():
            self.here.advance(wait)
            self.held.go(step)
        self.held.hold = set()
        self.assert_state(State.ONLINE)
        return self.ownership.snapshot()["last_takeover"]

    def test_phases(self) -> None:
        """Each phase has its own time, from the authority's grant to listening; waiting for the
        grant is no part of it.
        """
        self.assertIsNone(self.ownership.snapshot()["last_takeover"])
        before = self.here.clock.wall()
        found = self.take_over(
            {
                **{"acquire": 60.0, "inspect": 0.25, "confirm": 0.5, "publish": 0.125},
                **{"recover": 2.0, "seal": 1.0, "start": 0.0625},
            }
        )
        phases = {
            **{"granted": 0.25, "fenced": 0.0, "published": 0.625},
            **{"recovered": 2.0, "sealed": 1.0, "online": 0.0625},
        }
        self.assertEqual(phases, found["phases"])
        self.assertEqual((1, sum(phases.values())), (found["epoch"], found["seconds"]))
        self.assertEqual(before + 60.0 + found["seconds"], found["ended_at"])
        gauges = self.here.telemetry.gauges
        for phase, seconds in phases.items():
            gauge = gauges["mta_takeover_phase_seconds", (("phase", phase),)]
            self.assertEqual(seconds, gauge.current())
        total = self.here.telemetry.histograms["mta_takeover_seconds", ()]
        self.assertEqual((1, found["seconds"]), (total.number, total.total))

    def test_resume_is_no_takeover(self) -> None:
        """An address that came back under the same epoch leaves the last takeover's times alone."""
        self.here_now(instance(V4), instance(V6))
        first = self.take_over({"publish": 1.0})
        self.here.advance(3600.0)
        self.here_now(instance(V6))
        self.assert_state(State.SUSPENDED)
        self.here_now(instance(V4), instance(V6))
        self.assert_state(State.ONLINE)
        self.assertEqual(first, self.ownership.snapshot()["last_takeover"])
        self.assertEqual(1, self.here.telemetry.histograms["mta_takeover_seconds", ()].number)

    def test_failed_bid(self) -> None:
        """A bid that failed is no takeover; the next one is timed from its own grant."""
        self.held.fail = {"recover": Unavailable("the disk is away")}
        self.ownership.start()
        self.assertIsNone(self.ownership.snapshot()["last_takeover"])
        self.held.fail.clear()
        self.here.advance(1.0)
        self.assert_state(State.ONLINE)
        found = self.ownership.snapshot()["last_takeover"]
        self.assertEqual((2, 0.0), (found["epoch"], found["seconds"]))

    def test_every_phase_has_a_name(self) -> None:
        """The phases are the states of the way up, in their order."""
        self.ownership.start()
        found = self.ownership.snapshot()["last_takeover"]
        self.assertEqual(list(PHASES.values()), list(found["phases"]))


class GaugeTests(DriverCase):
    """The page that a monitoring system reads."""

    def page(self) -> list[str]:
        exposition = Exposition(self.here.telemetry, "0", "a", process=False)
        return exposition.page().decode().splitlines()

    def test_states(self) -> None:
        """Exactly one state is 1, and for how long is said."""
        ClusterGauges(self.here.telemetry, self.ownership, self.authority, self.server)
        self.ownership.start()
        self.here.advance(12.0)
        ones = [
            line
            for line in self.page()
            if line.startswith("mta_cluster_state{") and line.endswith(" 1.0")
        ]
        self.assertEqual(['mta_cluster_state{state="online"} 1.0'], ones)
        self.assertIn("mta_cluster_state_seconds 12.0", self.page())

    def test_without_lease_and_facts(self) -> None:
        """What the cluster resource does not have is not shown as a number."""
        ClusterGauges(self.here.telemetry, self.ownership, self.authority, self.server)
        self.ownership.start()
        found = [
            line
            for line in self.page()
            if line.startswith(("mta_lease_seconds_left ", "mta_address_usable"))
        ]
        self.assertEqual([], found)
        self.assertIsNone(self.ownership.snapshot()["lease_seconds_left"])

    def test_lease(self) -> None:
        """The time left of a lease is shown while one is held, and never below 0."""
        alsoProvides(self.authority, ILease)
        left = 3.5
        self.authority.seconds_left = lambda: left
        self.authority.may_accept = lambda: True
        self.ownership = self.driver()
        ClusterGauges(self.here.telemetry, self.ownership, self.authority, self.server)
        self.held.hold = {"acquire"}
        self.ownership.start()
        self.assertEqual([], [x for x in self.page() if x.startswith("mta_lease_seconds_left ")])
        self.held.go("acquire")
        self.assertEqual(3.5, self.ownership.snapshot()["lease_seconds_left"])
        left = -1.0
        self.assertIn("mta_lease_seconds_left 0.0", self.page())

    def test_addresses(self) -> None:
        """Each virtual address is 1 while this node can use it."""
        here = AddressFact(str(V4), True, True, "", "eth0", True, True, ("permanent",))
        away = AddressFact(str(V6), True, False, "not on any interface of this node")
        facts = (replace(here, usable=False, why_not="eth1 is down", link="eth1"), here, away)
        alsoProvides(self.authority, IAddressFacts)
        self.authority.address_facts = lambda: facts
        ClusterGauges(self.here.telemetry, self.ownership, self.authority, self.server)
        found = [line for line in self.page() if line.startswith("mta_address_usable")]
        self.assertEqual(
            [
                'mta_address_usable{address="192.0.2.10"} 1.0',
                'mta_address_usable{address="2001:db8::10"} 0.0',
            ],
            found,
        )


class AddressFactsTests(SynchronousTestCase):
    """What a resource that watches the kernel shows of each address."""

    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.kernel = PaperNetlink(self.here.doors)
        addresses = virtual_addresses("192.0.2.10", "2001:db8::10")
        self.server = VirtualServer("bridgehead.example.org", addresses)
        self.resource = InterfaceResource(
            InterfaceSettings(),
            self.here,
            open_socket=self.kernel.open,
            boot_id=lambda: "boot",
        )
        self.resource.prepare(self.server)
        self.kernel.link(2, "eth0")

    def facts(self) -> list[AddressFact]:
        self.kernel.deliver()
        return list(self.resource.address_facts())

    def test_before_the_first_picture(self) -> None:
        """Before the kernel has answered, nothing is claimed of an address."""
        [v4, v6] = self.resource.address_facts()
        why = "the interfaces' addresses are not known yet"
        self.assertEqual(AddressFact("192.0.2.10", True, False, why), v4)
        self.assertEqual(("2001:db8::10", why, ()), (v6.address, v6.why_not, v6.flags))

    def test_flags(self) -> None:
        """Link, carrier and the kernel's own words: permanent, nodad, tentative, dadfailed."""
        self.kernel.add("192.0.2.10", 2, PERMANENT)
        self.kernel.add("2001:db8::10", 2, PERMANENT | 0x48)
        self.resource.start()
        [v4, v6] = self.facts()
        self.assertEqual(
            AddressFact("192.0.2.10", True, True, "", "eth0", True, True, ("permanent",)), v4
        )
        self.assertEqual(("dadfailed", "tentative", "permanent"), v6.flags)
        self.assertFalse(v6.usable)
        self.assertIn("another machine has it", v6.why_not)
        self.kernel.add("2001:db8::10", 2, PERMANENT | 0x02)
        [v4, v6] = self.facts()
        self.assertEqual((True, "", ("nodad", "permanent")), (v6.usable, v6.why_not, v6.flags))

    def test_link(self) -> None:
        """A link that is down, or without carrier, is seen at its address."""
        self.kernel.add("192.0.2.10", 2, PERMANENT)
        self.resource.start()
        self.kernel.deliver()
        self.kernel.link(2, "eth0", carrier=False)
        fact = self.facts()[0]
        self.assertEqual((True, False, False), (fact.is_up, fact.has_carrier, fact.usable))
        self.assertEqual("eth0 has no carrier", fact.why_not)
        self.kernel.link(2, "eth0", up=False)
        fact = self.facts()[0]
        self.assertEqual((False, "eth0 is down"), (fact.is_up, fact.why_not))

    def test_on_two_interfaces(self) -> None:
        """An address that is on two interfaces is shown on both; one that is nowhere, as such."""
        self.kernel.link(3, "eth1")
        self.kernel.add("192.0.2.10", 2, PERMANENT)
        self.kernel.add("192.0.2.10", 3, PERMANENT)
        self.resource.start()
        shown = [(fact.address, fact.link, fact.why_not) for fact in self.facts()]
        nowhere = "not on any interface of this node"
        self.assertEqual(
            [("192.0.2.10", "eth0", ""), ("192.0.2.10", "eth1", ""), ("2001:db8::10", "", nowhere)],
            shown,
        )

    def test_names_of_flags(self) -> None:
        """A flag that tells an operator nothing is left out."""
        self.assertEqual((), flag_names(0x10 | 0x100 | 0x800))
        self.assertEqual(("optimistic", "tentative"), flag_names(0x44))
