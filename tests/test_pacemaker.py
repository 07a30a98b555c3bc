"""Pacemaker's start is the grant, its fencing the fence; without either nothing is pretended."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.cluster.admission import refuse_unfenced
from mta.cluster.claims import Verdict, judge
from mta.cluster.pacemaker import FENCING, INSTANCE, PacemakerResource, PacemakerSettings
from mta.errors import ConfigurationError, StartRefused
from mta.interfaces import ISupervised
from mta.model import AddressInstance, EpochRecord, Fencing, Grant, Guarantees, Sharing
from mta.testing.cluster_suite import IClusterResourceTests
from mta.testing.kernel import PaperNetlink
from mta.testing.surroundings import MemorySurroundings

SHIPPED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "etc", "ocf")
BY_AGENT = {INSTANCE: "mta", FENCING: "external"}
UNFENCED = {INSTANCE: "mta", FENCING: "stonith-enabled is false"}


def after(former: tuple[AddressInstance, ...]) -> EpochRecord:
    """Node b's epoch, which remembers what the older ones were claimed with."""
    return EpochRecord(7, "b", "boot-b", False, False, 3, former_instances=former)


class UnderPacemaker(IClusterResourceTests):
    """What both kinds of cluster have in common."""

    environment = BY_AGENT

    def make_resource(self, surroundings: MemorySurroundings) -> PacemakerResource:
        self.kernel = PaperNetlink(surroundings.doors)
        self.kernel.link(2, "eth0")
        return self.started_with(self.environment, surroundings)

    def started_with(
        self, environment: dict[str, str], surroundings: MemorySurroundings
    ) -> PacemakerResource:
        return PacemakerResource(
            PacemakerSettings(),
            surroundings,
            environment=environment,
            open_socket=self.kernel.open,
            boot_id=lambda: "boot-a",
        )

    def begin(self) -> None:
        super().begin()
        self.kernel.deliver()

    def settle(self) -> None:
        self.kernel.deliver()
        self.here.advance()

    def become_owner(self) -> None:
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        self.kernel.deliver()

    def cease_to_be_owner(self) -> None:
        self.kernel.remove("192.0.2.10")
        self.kernel.deliver()

    def claim_beside_a_living_owner(self) -> Verdict:
        """The right to claim with addresses that we had before node b, which lives, took over."""
        grant: Grant = self.owned()  # type: ignore[no-untyped-call]
        return judge(grant.instances, (after(self.heard.of("addresses")[-1]),), "a", 0.0, 10.0)


class FencedTests(UnderPacemaker, SynchronousTestCase):
    def test_the_start_is_the_right_to_claim(self) -> None:
        """Where Pacemaker fences, the node that it starts us on claims without waiting."""
        verdict = self.claim_beside_a_living_owner()
        self.assertEqual((True, "the authority's grant"), (verdict.may, verdict.why))

    def test_fencing(self) -> None:
        """A cluster whose fencing the agent has seen is a fence from outside."""
        self.assertIs(Fencing.EXTERNAL, self.resource.fencing)
        self.begin()
        self.assertEqual([], self.here.notices("warning"))
        self.assertIn("fencing: external; Pacemaker's mta", self.resource.explain())

    def test_supervised(self) -> None:
        """A process that lost its tenure ends, for Pacemaker to see it and to decide."""
        verifyObject(ISupervised, self.resource)

    def test_by_hand(self) -> None:
        """Started by hand it is refused, with what to do instead."""
        resource = self.started_with({FENCING: "external"}, self.here)
        self.assertIs(Fencing.NONE, resource.fencing)
        with self.assertRaises(StartRefused) as caught:
            resource.prepare(self.server)
        self.assertEqual(os.EX_UNAVAILABLE, caught.exception.exit_code)
        self.assertIn("Pacemaker did not start this process", caught.exception.what)
        self.assertIn("target-role", caught.exception.remedy)
        self.assertEqual("not started by Pacemaker's agent", resource.explain())

    def test_the_environment_is_the_process(self) -> None:
        """What is asked is this process's own environment."""
        self.assertNotIn(INSTANCE, os.environ)
        resource = PacemakerResource(PacemakerSettings(), self.here)
        self.assertRaises(StartRefused, resource.prepare, self.server)

    def test_failover_mount(self) -> None:
        """A file system that one node at a time mounts is right where the other is fenced first."""
        self.admit(self.resource)

    def test_failover_mount_is_refused(self) -> None:
        """Without fencing, or unknown, it is refused before anything runs, and the reason named."""
        for environment, words in (
            (UNFENCED, "fencing: none, for stonith-enabled is false"),
            ({INSTANCE: "mta"}, "the agent did not say whether the cluster fences"),
            ({INSTANCE: "mta", FENCING: "EXTERNAL"}, "fencing: none, for EXTERNAL"),
            ({}, "not started by Pacemaker's agent"),
        ):
            with self.assertRaises(ConfigurationError) as caught:
                self.admit(self.started_with(environment, self.here))
            self.assertIn("nobody fences", caught.exception.what)
            self.assertIn(words, caught.exception.why)
            self.assertIn("stonith-enabled=true", caught.exception.remedy)

    def admit(self, resource: PacemakerResource) -> None:
        class Spool:
            guarantees = Guarantees("fsync", shared=True, fenced_in_store=True)

        class Block:
            directory = "/spool"
            sharing = Sharing.FAILOVER_MOUNT

        refuse_unfenced(resource, Spool(), Block())  # type: ignore[arg-type]


class UnfencedTests(UnderPacemaker, SynchronousTestCase):
    environment = UNFENCED

    def test_addresses_decide(self) -> None:
        """Where nobody fences, an address is not ownership: a living owner is left alone."""
        verdict = self.claim_beside_a_living_owner()
        self.assertFalse(verdict.may)
        self.assertIn("node b holds epoch 7 and is alive", verdict.why)

    def test_said(self) -> None:
        """It says at the start, and in status, that nobody fences and why."""
        self.begin()
        (said,) = self.here.notices("warning")
        self.assertIn("fencing: none, for stonith-enabled is false", said)
        self.assertIn("fencing: none, for stonith-enabled is false", self.resource.explain())

    def test_a_new_address_is_a_claim(self) -> None:
        """An address that Pacemaker has just added is new to every epoch: nobody waits."""
        grant = self.owned()  # type: ignore[no-untyped-call]
        former = tuple(replace(i, cstamp=i.cstamp - 1) for i in grant.instances)
        self.assertTrue(judge(grant.instances, (after(former),), "a", 0.0, 10.0).may)


class ShippedTests(SynchronousTestCase):
    """The agent and the cluster that are shipped agree with each other and with this program."""

    def setUp(self) -> None:
        with open(os.path.join(SHIPPED, "mta"), encoding="ascii") as file:
            self.agent = file.read()
        metadata = self.agent[self.agent.index("<resource-agent") : self.agent.index("\nEND\n")]
        self.metadata = ET.fromstring(metadata)
        self.cluster = ET.parse(os.path.join(SHIPPED, "cluster.xml")).getroot()
        found = self.cluster.find("resources/group/primitive[@type='mta']")
        assert found is not None
        self.mta = found
        self.given = {
            pair.get("name"): pair.get("value", "")
            for pair in found.iterfind("instance_attributes/nvpair")
        }

    def seconds(self, operation: str) -> int:
        (op,) = self.mta.iterfind(f"operations/op[@name='{operation}']")
        return int(op.get("timeout", "").removesuffix("s"))

    def constant(self, name: str) -> int:
        (value,) = re.findall(rf"^{name}=(\d+)$", self.agent, re.MULTILINE)
        return int(value)

    def test_the_order_of_the_group(self) -> None:
        """The MTA starts after its spool and its addresses are there, and stops before they go."""
        group = self.cluster.findall("resources/group/primitive")
        self.assertEqual(
            ["Filesystem", "IPaddr2", "IPaddr2", "mta"],
            [primitive.get("type") for primitive in group],
        )

    def test_parameters(self) -> None:
        """What the cluster gives the agent is what the agent knows, by the same names."""
        known = {parameter.get("name") for parameter in self.metadata.iter("parameter")}
        self.assertLessEqual(set(self.given), known)
        for name in known:
            self.assertIn(f': "${{OCF_RESKEY_{name}=', self.agent)

    def test_operations(self) -> None:
        """Each operation has the time that the agent asks for, each depth of monitor its own."""
        asked = {}
        for action in self.metadata.iter("action"):
            asked[action.get("name"), action.get("depth", "0")] = action.get("timeout")
        given = {}
        for op in self.mta.iterfind("operations/op"):
            level = op.find("instance_attributes/nvpair[@name='OCF_CHECK_LEVEL']")
            depth = "0" if level is None else level.get("value")
            given[op.get("name"), depth] = op.get("timeout")
        self.assertEqual({"start", "stop", "monitor"}, {name for name, _ in given})
        self.assertEqual({"0", "10", "20"}, {depth for _, depth in given})
        self.assertEqual({key: asked[key] for key in given}, given)

    def test_a_stop_may_drain(self) -> None:
        """The default drain ends before the agent kills, and the kill before Pacemaker gives up."""
        drain = int(self.given["drain_timeout"])
        self.assertGreater(drain, PacemakerSettings().drain)
        needed = drain + self.constant("KILL_SECONDS") + self.constant("RESERVE_SECONDS")
        self.assertLess(needed, self.seconds("stop"))

    def test_it_fences(self) -> None:
        """The cluster fences, and no node is asked to switch itself off."""
        (stonith,) = self.cluster.iterfind(".//nvpair[@name='stonith-enabled']")
        self.assertEqual("true", stonith.get("value"))
        for device in self.cluster.iterfind("resources/primitive[@class='stonith']"):
            (hosts,) = device.iterfind("instance_attributes/nvpair[@name='pcmk_host_list']")
            (place,) = self.cluster.iterfind(f"constraints/rsc_location[@rsc='{device.get('id')}']")
            self.assertEqual(
                (hosts.get("value"), "-INFINITY"), (place.get("node"), place.get("score"))
            )
