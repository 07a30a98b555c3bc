"""Pacemaker's start is the grant, its fencing the fence; without either nothing is pretended."""

from __future__ import annotations

import os
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
        self.assertIn("Pacemaker's mta, fencing: external", self.resource.explain())

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
