"""Could this standby take over? Every cause that is looked for, when it is looked, what is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta import proof
from mta.association.holders import listener_at
from mta.association.smtp_settings import AuthSettings, SmtpConnectorSettings
from mta.cluster.claimant import ClaimFacts
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.readiness import (
    FIRST_SECONDS,
    PATIENCE_SECONDS,
    PROOF_SECONDS,
    Findings,
    Questions,
    Readiness,
    Seen,
    Verdict,
    describe,
    judge,
)
from mta.config.load import load_file
from mta.errors import StartRefused, Unavailable
from mta.interfaces import IReadiness
from mta.model import EpochRecord
from mta.plugins.find import Catalogue
from mta.testing.kernel import PERMANENT, PaperNetlink
from mta.testing.surroundings import MemorySurroundings

OURS = ClaimFacts("b", "boot-b", 1.0, "1.2", "d" * 64)
OWNER = EpochRecord(7, "a", "boot-a", False, False, 1, version="1.2", configuration_digest="d" * 64)


class TheVerdict(SynchronousTestCase):
    """The pure part."""

    def test_ready(self) -> None:
        """A node that lacks nothing is ready, and knows whose the queue is."""
        found = judge(Seen(records=(replace(OWNER, epoch=6, node="b"), OWNER)), OURS)
        self.assertEqual((Verdict.READY, "ready", ()), (found.verdict, found.text, found.warnings))
        self.assertEqual("node a holds epoch 7", found.owner_text)

    def test_never_owned(self) -> None:
        """A spool without any epoch, or whose newest is our own, has no other owner."""
        for records in ((), (replace(OWNER, node="b"),)):
            found = judge(Seen(records=records), OURS)
            self.assertEqual(
                (Verdict.READY, None, ""), (found.verdict, found.owner, found.owner_text)
            )

    def test_each_cause(self) -> None:
        """Port, secret, spool, cluster resource and a bid that failed: each alone is a failure."""
        for seen, text in (
            (Seen(node=Findings(("port 25 cannot be bound",))), "port 25 cannot be bound"),
            (Seen(spool="spool /s is empty"), "spool /s is empty"),
            (Seen(resource="the FIFO is missing"), "the FIFO is missing"),
            (Seen(last_try="bind: busy"), "the last try failed: bind: busy"),
        ):
            found = judge(seen, OURS)
            self.assertIs(Verdict.WOULD_FAIL, found.verdict)
            self.assertEqual(f"would fail because {text}", found.text)

    def test_several_causes(self) -> None:
        """All causes are named, in the order in which a takeover would meet them."""
        found = judge(Seen(node=Findings(("one",)), resource="two", spool="three"), OURS)
        self.assertEqual("would fail because one; two; three", found.text)

    def test_warnings(self) -> None:
        """What a takeover would survive is a warning: another version or configuration than the
        owner's, too little room, a file that a restart would refuse.
        """
        other = replace(OWNER, version="1.3", configuration_digest="e" * 64)
        found = judge(
            Seen(records=(other,), room=(10, 11), node=Findings((), ("the file is broken",))), OURS
        )
        self.assertIs(Verdict.READY, found.verdict)
        self.assertEqual(
            (
                "the file is broken",
                "no mail would be accepted: the spool's file system has less free than the "
                "reserve of 11 octets",
                "a runs version 1.3, this node 1.2",
                "the configuration of a is another: eeeeeeeeeeee there, dddddddddddd here",
            ),
            found.warnings,
        )
        self.assertTrue(found.text.startswith("ready (but the file is broken; no mail would"))

    def test_room(self) -> None:
        """Exactly the reserve is enough."""
        self.assertEqual((), judge(Seen(room=(11, 11)), OURS).warnings)

    def test_older_epoch_files(self) -> None:
        """An epoch file that tells neither version nor configuration differs in nothing."""
        old = replace(OWNER, version="", configuration_digest="")
        self.assertEqual((), judge(Seen(records=(old,)), OURS).warnings)

    def test_released(self) -> None:
        """Whoever has released its epoch is nobody to differ from."""
        other = replace(OWNER, version="1.3", released=True)
        found = judge(Seen(records=(other,)), OURS)
        self.assertEqual(((), "node a has released epoch 7"), (found.warnings, found.owner_text))

    def test_owner(self) -> None:
        """A suspended owner and a silent one are said to be so."""
        suspended = replace(OWNER, suspended=True)
        self.assertEqual("node a holds epoch 7 and is suspended", describe(suspended, 0))
        self.assertEqual(
            "node a holds epoch 7, without a heartbeat for 30 s", describe(OWNER, 30.2)
        )


class Standby:
    """A node and whoever it asks."""

    def __init__(self) -> None:
        self.world = MemorySurroundings()
        self.standing: Verdict | None = None
        self.records: tuple[EpochRecord, ...] = (OWNER,)
        self.inspect: Callable[[], Deferred[Any]] = lambda: succeed(self.records)
        self.node: Callable[[], Deferred[Any]] = lambda: succeed((Findings(), None))
        self.lacks = ""
        self.last_try = ""
        self.looks = 0
        self.changes: list[str] = []
        self.readiness = Readiness(
            Questions(
                standing=lambda: self.standing,
                inspect=self._inspect,
                node=lambda: self.node(),
                resource=lambda: self.lacks,
                last_try=lambda: self.last_try,
                ours=OURS,
                changed=self.changes.append,
            ),
            self.world.clock,
            self.world.telemetry,
        )

    def _inspect(self) -> Deferred[Any]:
        self.looks += 1
        return self.inspect()

    @property
    def text(self) -> str:
        return self.readiness.present.text

    def gauge(self, name: str) -> float:
        return self.world.telemetry.gauges[name, ()].current()

    def first_look(self) -> None:
        self.readiness.start()
        self.world.advance(FIRST_SECONDS)


class TheLooks(SynchronousTestCase):
    """When it is looked, and what becomes of it."""

    def test_every_thirty_seconds(self) -> None:
        """Not at once, for a takeover may begin then; 2 s after the start, then every 30 s."""
        node = Standby()
        node.readiness.start()
        node.world.advance(FIRST_SECONDS - 0.01)
        self.assertEqual((0, "not known yet"), (node.looks, node.text))
        self.assertEqual(0.0, node.gauge("mta_takeover_ready"))
        node.world.advance(0.01)
        self.assertEqual((1, "ready"), (node.looks, node.text))
        self.assertEqual(1.0, node.gauge("mta_takeover_ready"))
        node.world.advance(PROOF_SECONDS - 0.01)
        self.assertEqual(1, node.looks)
        node.world.advance(0.01)
        self.assertEqual(2, node.looks)
        self.assertEqual(0.0, node.readiness.snapshot()["checked_seconds_ago"])

    def test_each_change_is_said_once(self) -> None:
        """A line in the log when the verdict changes, none while it stays."""
        node = Standby()
        node.first_look()
        node.world.advance(PROOF_SECONDS)
        self.assertEqual(["takeover: ready"], node.world.notices("info"))
        node.lacks = "the FIFO is missing"
        node.world.advance(PROOF_SECONDS)
        node.world.advance(PROOF_SECONDS)
        text = "would fail because the FIFO is missing"
        self.assertEqual([f"takeover: {text}"], node.world.notices("warning"))
        node.lacks = ""
        node.world.advance(PROOF_SECONDS)
        self.assertEqual(["ready", text, "ready"], node.changes)

    def test_owner(self) -> None:
        """An owner has nothing to prove: nothing is looked at, and it counts as ready."""
        node = Standby()
        node.standing = Verdict.OWNER
        node.first_look()
        node.world.advance(PROOF_SECONDS)
        self.assertEqual((0, "owner", True), (node.looks, node.text, node.readiness.is_ready))
        node.standing = Verdict.NOT_NOW
        self.assertEqual(("not standing by", False), (node.text, node.readiness.is_ready))

    def test_became_owner_meanwhile(self) -> None:
        """What was seen before a takeover is not shown after it."""
        node = Standby()
        waiting: Deferred[Any] = Deferred()
        node.inspect = lambda: waiting
        node.first_look()
        node.standing = Verdict.OWNER
        waiting.callback((OWNER,))
        node.standing = None
        self.assertEqual("not known yet", node.text)

    def test_spool_refuses(self) -> None:
        """What the spool says when it refuses is the reason."""
        node = Standby()
        node.inspect = lambda: fail(StartRefused("spool /s is missing", "is it mounted?"))
        node.first_look()
        self.assertEqual("would fail because spool /s is missing: is it mounted?", node.text)
        self.assertEqual(0.0, node.gauge("mta_takeover_ready"))

    def test_spool_hangs(self) -> None:
        """A disk that hangs is given up after 10 s and never asked a second time while it hangs;
        when it answers at last, the next look is a new one.
        """
        node = Standby()
        waiting: Deferred[Any] = Deferred()
        node.inspect = lambda: waiting
        node.first_look()
        node.world.advance(PATIENCE_SECONDS - 0.01)
        self.assertEqual("not known yet", node.text)
        node.world.advance(0.01)
        self.assertEqual("would fail because the spool has not answered for 10 s", node.text)
        node.world.advance(2 * PROOF_SECONDS)
        self.assertEqual(1, node.looks)
        self.assertIn("the spool has not answered an earlier question yet", node.text)
        waiting.callback((OWNER,))
        node.inspect = lambda: succeed((OWNER,))
        node.world.advance(PROOF_SECONDS)
        self.assertEqual((2, "ready"), (node.looks, node.text))

    def test_worker_fails(self) -> None:
        """A look at the node that cannot be made is a failure by name; a defect is logged."""
        node = Standby()
        node.node = lambda: fail(Unavailable("no worker"))
        node.first_look()
        self.assertEqual("would fail because no worker", node.text)
        node.node = lambda: fail(ZeroDivisionError("1/0"))
        node.world.advance(PROOF_SECONDS)
        self.assertEqual(["readiness: ZeroDivisionError: 1/0"], node.world.notices("error"))
        node.node = lambda: succeed((Findings(), None))
        node.world.advance(PROOF_SECONDS)
        self.assertEqual("ready", node.text)

    def test_silence(self) -> None:
        """The owner's heartbeat is compared between two looks, by this node's clock."""
        node = Standby()
        node.first_look()
        node.world.advance(PROOF_SECONDS)
        owner = node.readiness.snapshot()["owner"]
        self.assertEqual("node a holds epoch 7, without a heartbeat for 30 s", owner["text"])
        node.records = (replace(OWNER, heartbeat=2, suspended=True),)
        node.world.advance(PROOF_SECONDS)
        owner = node.readiness.snapshot()["owner"]
        self.assertEqual("node a holds epoch 7 and is suspended", owner["text"])
        self.assertTrue(owner["suspended"])

    def test_warnings_are_counted(self) -> None:
        """Warnings do not make it unready; monitoring sees how many there are."""
        node = Standby()
        node.records = (replace(OWNER, version="1.3"),)
        node.first_look()
        found = node.readiness.snapshot()
        self.assertEqual(
            ("ready", [], 1), (found["verdict"], found["because"], len(found["warnings"]))
        )
        self.assertEqual(1.0, node.gauge("mta_takeover_warnings"))
        self.assertEqual(1.0, node.gauge("mta_takeover_ready"))

    def test_stop(self) -> None:
        """When the process ends nothing is looked at any more, whatever still hangs."""
        node = Standby()
        waiting: Deferred[Any] = Deferred()
        node.inspect = lambda: waiting
        node.first_look()
        node.readiness.stop()
        waiting.callback((OWNER,))
        node.world.advance(2 * PROOF_SECONDS)
        self.assertEqual((1, "not known yet"), (node.looks, node.text))
        self.assertEqual(0, len(node.world.notices("error")))


CONFIGURATION = """
virtual-server: {network-name: bridgehead.example.org, addresses: [192.0.2.10, "2001:db8::10"]}
node: {name: b.example.org}
cluster: {resource: interface}
postmaster: postmaster@example.org
spool: {directory: /nowhere, sharing: cluster-fs}
listeners: [{kind: smtp, port: 25}]
connectors: [{name: all, kind: smtp, bridgeheads: ["192.0.2.1"], address-spaces: [{domain: "*"}]}]
"""


class TheNode(SynchronousTestCase):
    """What is proved of the process and its node."""

    def setUp(self) -> None:
        self.file = self.mktemp()
        self.write(CONFIGURATION)
        self.config = load_file(self.file, Catalogue().find)
        self.patch(proof, "refuse_privileged_ports", lambda ports, uid: None)
        self.holders: dict[tuple[str, int], str] = {}
        self.patch(
            proof, "listener_at", lambda address, port: self.holders.get((str(address), port), "")
        )

    def write(self, text: str) -> None:
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(text)

    def prove(self, file: str | None = "") -> Findings:
        return proof.prove(self.config, self.file if file == "" else file, is_single=False)

    def test_well(self) -> None:
        """With the file it was started from, and nothing in its way, there is nothing to say."""
        self.assertEqual(Findings(), self.prove())

    def test_ports(self) -> None:
        """A port that this process may not bind is a failure, with what to do."""

        def refuse(ports: Any, uid: int | None) -> None:
            self.assertEqual(([25], None), (list(ports), uid))
            raise StartRefused("port 25 cannot be bound by uid 500")

        self.patch(proof, "refuse_privileged_ports", refuse)
        self.assertEqual(("port 25 cannot be bound by uid 500",), self.prove().failures)

    def test_port_taken(self) -> None:
        """Another program that listens where we would have to is named before the takeover."""
        self.holders["2001:db8::10", 25] = "pid 812 (master) on ::, uid 0"
        self.assertEqual(
            ("port 25 of 2001:db8::10 is taken by pid 812 (master) on ::, uid 0",),
            self.prove().failures,
        )

    def test_broken_file(self) -> None:
        """A configuration that was spoilt since the start does not fail the takeover, but the next
        start: a warning with the place.
        """
        self.write(CONFIGURATION.replace("port: 25", "prot: 25"))
        found = self.prove()
        self.assertEqual((), found.failures)
        [warning] = found.warnings
        self.assertTrue(warning.startswith(f"a restart would be refused: {self.file}:7:"), warning)
        os.unlink(self.file)
        self.assertIn("cannot be read by uid", self.prove().warnings[0])

    def test_many_mistakes(self) -> None:
        """Of many mistakes three are named, and how many more there are."""
        self.write("one: 1\ntwo: 2\nthree: 3\nfour: 4\n")
        [warning] = self.prove().warnings
        self.assertRegex(warning, r" and \d+ more$")

    def test_changed_file(self) -> None:
        """A file that was changed and not read again is named."""
        self.write(CONFIGURATION + "# changed\n")
        text = f"{self.file} was changed and not read again: reload or restart this MTA"
        self.assertEqual((text,), self.prove().warnings)

    def test_own_name(self) -> None:
        """A node that was given the virtual server's name would refuse its next start."""
        self.write(CONFIGURATION.replace("node: {name: b.example.org}\n", ""))
        self.patch(socket, "gethostname", lambda: "bridgehead.example.org")
        self.assertIn("it is this node's own name", self.prove().warnings[-1])

    def test_plugin_gone(self) -> None:
        """A plugin that the file names and that is not installed any more is a warning."""
        self.write(CONFIGURATION.replace("resource: interface", "resource: lighthouse"))
        self.assertIn("lighthouse", self.prove().warnings[0])

    def test_without_a_file(self) -> None:
        """The embedded default configuration has no file that could break."""
        self.assertEqual(Findings(), self.prove(None))

    def test_secrets(self) -> None:
        """A secret that this user cannot read any more is a failure, with whose it is."""
        secret = proof.SecretFile("/nowhere/password")
        block = SimpleNamespace(name="etcd", settings=SimpleNamespace(password_file=secret))
        self.config = replace(self.config, cluster=block)
        [failure] = self.prove(None).failures
        self.assertTrue(failure.startswith("/nowhere/password cannot be read by uid"), failure)
        self.assertTrue(failure.endswith("No such file or directory (needed by etcd)"), failure)

    def test_secrets_within_blocks(self) -> None:
        """The same for a secret of a block within the block: `auth` of a connector."""
        auth = AuthSettings.model_construct(password_file=proof.SecretFile("/nowhere/password"))
        settings = SmtpConnectorSettings.model_construct(auth=auth)
        self.config = replace(
            self.config, connectors=(SimpleNamespace(name="hub", settings=settings),)
        )
        [failure] = self.prove(None).failures
        self.assertTrue(failure.endswith("(needed by hub)"), failure)

    def test_room(self) -> None:
        """Free room is asked of the spool's file system; where that fails, nothing is said."""
        self.assertEqual((5, 7), proof.room("/spool", 7, lambda path: 5))

        def broken(path: str) -> int:
            raise OSError(5, "Input/output error")

        self.assertIsNone(proof.room("/spool", 7, broken))


class TheKernelsTable(SynchronousTestCase):
    """/proc/net/tcp, as a standby reads it."""

    def test_listener_at(self) -> None:
        """A listener on all addresses is in the way, also while the virtual address is away; one on
        another address, or at another port, is not.
        """
        proc = self.mktemp()
        os.makedirs(os.path.join(proc, "net"))
        lines = (
            "  sl  local_address rem_address   st\n"
            "   0: 00000000:0019 00000000:0000 0A 0:0 00:0 0 0 0 41 1\n"
            "   1: 0100007F:001A 00000000:0000 0A 0:0 00:0 0 0 0 42 1\n"
        )
        with open(os.path.join(proc, "net", "tcp"), "w", encoding="ascii") as file:
            file.write(lines)
        vip = ip_address("192.0.2.10")
        self.assertIn("on 0.0.0.0", listener_at(vip, 25, proc))
        self.assertEqual("", listener_at(vip, 26, proc))
        self.assertEqual("", listener_at(vip, 27, proc))
        self.assertEqual("", listener_at(ip_address("2001:db8::10"), 25, proc))


class TheInterfaceResource(SynchronousTestCase):
    """`interface` knows whether it sees the kernel's addresses, and whether one is a duplicate."""

    def test_would_fail(self) -> None:
        """An address that is away is no lack; blindness and a duplicate are."""
        world = MemorySurroundings()
        kernel = PaperNetlink(world.doors)
        kernel.link(2, "eth0")
        resource = InterfaceResource(
            InterfaceSettings(), world, open_socket=kernel.open, boot_id=lambda: "boot"
        )
        resource.prepare(world.virtual_server)
        self.assertTrue(IReadiness.providedBy(resource))
        blind = "the interfaces' addresses cannot be seen"
        self.assertEqual(blind, resource.would_fail())
        resource.start()
        kernel.deliver()
        self.assertEqual("", resource.would_fail())
        [v6] = [str(a) for a in world.virtual_server.addresses if a.bind.version == 6]
        kernel.add(v6, 2, PERMANENT | 0x08)
        kernel.deliver()
        self.assertEqual(
            f"{v6} on eth0: another machine has it (duplicate address detection failed)",
            resource.would_fail(),
        )
        kernel.remove(v6)
        kernel.deliver()
        self.assertEqual("", resource.would_fail())
        kernel.break_down()
        kernel.deliver()
        self.assertEqual(blind, resource.would_fail())
