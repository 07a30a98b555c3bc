"""The whole story of two nodes, as `mta status`, the pages and `mta probe` tell it at each moment.

Real ownership, spool, tenant and kernel table of two nodes in one laboratory; the address goes from
one to the other as a cluster manager would move it.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta import proof
from mta.admin.commands import plain
from mta.admin.probe import Probed
from mta.cli import status as cli
from mta.cluster.driver import ClaimFacts, Ownership
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.ownership import State
from mta.cluster.readiness import FIRST_SECONDS, PROOF_SECONDS
from mta.cluster.settings import ClusterSettings
from mta.overview import Overview
from mta.testing.kernel import PaperNetlink
from mta.testing.lab import Lab, LabNode

ADDRESS = "192.0.2.10"


class Node(LabNode):
    """A node of the laboratory whose ownership is the real driver's."""

    def __init__(self, lab: Lab, name: str, version: str = "lab") -> None:
        super().__init__(lab, name)
        lab.nodes[name] = self
        here = self.surroundings
        self.kernel = PaperNetlink(here.doors)
        self.kernel.link(2, "eth0")
        resource = InterfaceResource(
            InterfaceSettings(), here, open_socket=self.kernel.open, boot_id=lambda: f"boot-{name}"
        )
        resource.prepare(lab.config.virtual_server)
        config = replace(lab.config, cluster=replace(lab.config.cluster, name="interface"))
        facts = ClaimFacts(name, f"boot-{name}", 0.0, version, lab.config.digest)
        self.ownership = Ownership(
            resource,
            self.spool,
            self.tenant,
            here.doors,
            here.clock,
            here.telemetry,
            lab.config.virtual_server,
            facts,
            ClusterSettings(),
            jitter=lambda: 0.0,
        )
        self.ownership.on_fatal(lambda _code, _reason: None)
        self.changes = 0
        self.overview = Overview(
            lambda: config,
            resource,
            self.spool,
            self.ownership,
            self.tenant,
            here,
            facts,
            file=None,
            changed=self._changed,
        )
        self.ownership.start()
        self.overview.readiness.start()
        self.kernel.deliver()
        lab.settle()

    def _changed(self) -> None:
        self.changes += 1

    def gets(self, address: str = ADDRESS) -> None:
        self.kernel.add(address)
        self.listen()

    def listen(self) -> None:
        """The news, then the answers to what is asked for on their account."""
        for _ in range(5):
            self.kernel.deliver()
            self.lab.settle()

    def loses(self, address: str = ADDRESS) -> None:
        self.kernel.remove(address)
        self.kernel.deliver()
        self.lab.settle()

    def status(self) -> dict[str, Any]:
        """As it comes over the control socket."""
        process = {"wrong_source": {"in": 0, "out": 0}}
        found = json.loads(json.dumps(plain({**self.overview.status(), **process})))
        assert isinstance(found, dict)
        return found

    def shown(self) -> list[str]:
        """What `mta status` prints."""
        out = io.StringIO()
        with redirect_stdout(out):
            cli.show(self.status())
        return out.getvalue().splitlines()

    def probe(self, level: int, *, standby: bool = False) -> tuple[str, int]:
        found: list[Probed] = []
        self.overview.probe(level, standby).addCallback(found.append)
        self.listen()
        [answer] = found
        return answer.health, answer.exit_code


class Ground(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(proof, "refuse_privileged_ports", lambda ports, uid: None)
        self.patch(proof, "listener_at", lambda address, port: "")
        self.lab = Lab("z", spool="log")
        self.lab.nodes.pop("z").die()
        self.a, self.b = Node(self.lab, "a"), Node(self.lab, "b")

    def online(self) -> None:
        self.a.gets()
        self.assertIs(self.a.ownership.state, State.ONLINE)


class Told(Ground):
    def test_standby(self) -> None:
        """A standby says why it is one, and that it could take over once it has proved so."""
        facts = self.b.status()
        self.assertEqual(("standby", "standby", 0), (facts["role"], facts["state"], facts["epoch"]))
        self.assertEqual("not known yet", facts["takeover"]["verdict"])
        self.assertEqual(("away", 75), self.b.probe(1, standby=True))
        self.lab.advance(FIRST_SECONDS)
        facts = self.b.status()
        self.assertEqual(
            ("ready", []), (facts["takeover"]["verdict"], facts["takeover"]["because"])
        )
        why = f"standby: waiting for {ADDRESS}: not on any interface of this node"
        self.assertEqual(why, facts["why"])
        [address] = facts["addresses"]
        self.assertEqual((False, "", []), (address["usable"], address["link"], address["flags"]))
        self.assertEqual((False, f"{why}\ntakeover: ready"), self.b.overview.ready())
        self.assertEqual((True, f"{why}\ntakeover: ready"), self.b.overview.standby_ready())
        self.assertEqual(f"{why}; takeover: ready", self.b.overview.line())
        self.assertEqual(1, self.b.changes)

    def test_owner(self) -> None:
        """The owner shows its epoch, its address with the kernel's flags, how long the takeover
        took, and that nothing is in doubt.
        """
        self.online()
        self.lab.advance(90.0)
        facts = self.a.status()
        self.assertEqual(("owner", "online", 2), (facts["role"], facts["state"], facts["epoch"]))
        self.assertEqual(90.0, facts["seconds_in_state"])
        self.assertEqual(self.lab.clock.wall() - 90.0, facts["since_at"])
        self.assertEqual(
            [
                {
                    **{"address": ADDRESS, "required": True, "usable": True, "why_not": ""},
                    **{"link": "eth0", "up": True, "carrier": True, "flags": ["permanent"]},
                }
            ],
            facts["addresses"],
        )
        self.assertEqual({"outbound": 0, "inbound": 0}, facts["in_doubt"])
        self.assertEqual(2, facts["last_takeover"]["epoch"])
        self.assertIsNone(facts["authority"]["lease_seconds_left"])
        self.assertTrue(self.a.overview.ready()[0])
        self.assertTrue(self.a.overview.standby_ready()[0])

    def test_the_standby_sees_the_owner(self) -> None:
        """A standby names the node that holds the epoch, and what is different there."""
        c = Node(self.lab, "c", version="lab2")
        self.online()
        self.lab.advance(PROOF_SECONDS + FIRST_SECONDS)
        owner = self.b.status()["takeover"]["owner"]
        self.assertEqual(("a", 2, False), (owner["node"], owner["epoch"], owner["suspended"]))
        found = c.status()["takeover"]
        self.assertEqual(["a runs version lab, this node lab2"], found["warnings"])
        self.assertIn("but a runs version lab, this node lab2", "\n".join(c.shown()))

    def test_suspended(self) -> None:
        """An owner whose address went says so; the standby sees an epoch that is suspended."""
        self.online()
        self.a.loses()
        facts = self.a.status()
        self.assertEqual(
            ("standby", "suspended", 2), (facts["role"], facts["state"], facts["epoch"])
        )
        self.assertEqual("not standing by", facts["takeover"]["verdict"])
        self.assertEqual(("failed", 69), self.a.probe(0))
        self.assertEqual(("failed", 69), self.a.probe(0, standby=True))
        self.assertFalse(self.a.overview.standby_ready()[0])
        self.lab.advance(2.0)  # the mark goes with a heartbeat
        self.b.overview.readiness.look()
        self.lab.settle()
        text = self.b.status()["takeover"]["owner"]["text"]
        self.assertEqual("node a holds epoch 2 and is suspended", text)

    def test_a_bid_that_failed(self) -> None:
        """A takeover that was tried and failed is the best proof: its reason is told until one
        succeeds.
        """
        self.online()
        self.b.gets()  # both nodes of the laboratory are one machine: the port is taken
        self.b.overview.readiness.look()
        self.lab.settle()
        found = self.b.status()
        [reason] = found["takeover"]["because"]
        self.assertEqual(
            f"the last try failed: {ADDRESS}:25 is busy: a memory listener has it", reason
        )
        self.b.loses()
        self.lab.advance(PROOF_SECONDS)
        because = self.b.status()["takeover"]["because"]
        self.assertEqual([], because)  # by now it waits for the address, not for another try
        self.b.gets()
        found = self.b.status()
        self.assertEqual(("owner", "owner"), (found["role"], found["takeover"]["verdict"]))
        self.assertEqual("", found["cluster"]["last_failure"])

    def test_probe(self) -> None:
        """Probes of an owner see its greeting and its spool; with --standby a standby is well too."""
        self.online()
        self.lab.advance(FIRST_SECONDS)
        network = self.lab.network
        self.assertEqual(("ok", 0), self.a.probe(1))
        self.assertEqual(("failed", 69), self.a.probe(10))  # the service door has nobody there

        endpoint = f"tcp:{ADDRESS}:25"
        listening = network.listening[ADDRESS, 25]

        class Factory:
            def buildProtocol(self, _address: object) -> Any:
                return listening.build(_Peer())

        network.services[endpoint] = Factory()
        self.assertEqual(("ok", 0), self.a.probe(10))
        self.assertEqual(("ok", 0), self.a.probe(20))
        self.assertEqual(("away", 75), self.b.probe(20))
        self.assertEqual(("ready", 0), self.b.probe(20, standby=True))

    def test_would_fail(self) -> None:
        """A standby that could not take over says why everywhere: status, pages, probe, log."""
        taken = "pid 812 (master) on 0.0.0.0, uid 0"
        self.patch(proof, "listener_at", lambda address, port: taken)
        self.lab.advance(FIRST_SECONDS)
        text = f"would fail because port 25 of {ADDRESS} is taken by {taken}"
        self.assertEqual(text, self.b.status()["takeover"]["text"])
        self.assertIn(f"takeover: {text}", self.b.surroundings.notices("warning"))
        self.assertFalse(self.b.overview.standby_ready()[0])
        self.assertEqual(("failed", 69), self.b.probe(0, standby=True))
        shown = self.b.shown()
        at = shown.index("takeover      would fail because")
        self.assertEqual(f"              - port 25 of {ADDRESS} is taken by {taken}", shown[at + 1])

    def test_nothing_is_disturbed(self) -> None:
        """A standby that proves its readiness leaves the owner and its spool as they were."""
        self.online()
        before = sorted(self.lab.disk.listdir("/spool/epoch"))
        self.lab.advance(10 * PROOF_SECONDS)
        self.assertIs(self.a.ownership.state, State.ONLINE)
        self.assertEqual(before, sorted(self.lab.disk.listdir("/spool/epoch")))
        left = [n for n in self.lab.disk.listdir("/spool/part") if n.startswith("probe-")]
        self.assertEqual([], left)


class _Peer:
    host, port = ADDRESS, 40_000


class ForPeople(Ground):
    """What `mta status` prints."""

    def test_first_lines(self) -> None:
        """The first two lines say who owns the virtual server, since when, and why not."""
        self.online()
        self.lab.advance(200.0)
        name = self.lab.config.virtual_server.network_name
        shown = self.a.shown()
        self.assertRegex(shown[0], rf"^owner of {name} since [-0-9: ]+ \(3 min 20 s\), epoch 2$")
        self.assertEqual(f"  online as {name} at {ADDRESS}, epoch 2", shown[1])
        self.assertIn("in doubt      0 outbound, 0 inbound", shown)
        self.assertIn("wrong source  0", shown)
        self.assertIn(f"addresses     {ADDRESS}  usable  (eth0 up, carrier; permanent)", shown)
        [at] = [i for i, line in enumerate(shown) if line.startswith("last takeover ")]
        phases = "granted 0.000, fenced 0.000, published 0.000, recovered 0.000"
        self.assertIn(phases, shown[at + 1])
        shown = self.b.shown()
        self.assertRegex(shown[0], rf"^standby of {name} since [-0-9: ]+ \(3 min 20 s\)$")
        self.assertIn("takeover      ready", shown)
        self.assertIn("owner         node a holds epoch 2", shown)
        at = shown.index("authority     interface, fencing: none")
        self.assertTrue(shown[at + 1].startswith("addresses"), "what it waits for is said once")
        self.a.loses()
        self.assertRegex(self.a.shown()[0], r"^suspended owner of .*epoch 2$")

    def test_durations(self) -> None:
        """Times are told in their two largest units."""
        for seconds, text in (
            (0.4, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (3600, "1 h"),
            (7500, "2 h 5 min"),
            (86_400 * 4 + 3700, "4 d 1 h"),
        ):
            self.assertEqual(text, cli.duration(seconds))
