"""A whole bridgehead in memory: configuration, spool, intake, dispatch, SMTP on both sides.

    lab = Lab()
    lab.send(to=["you@example.com"])
    lab.hub.messages[0].recipients == (b"you@example.com",)
    lab.advance(300)

Law: everything between the two memory networks' ends is the product's own code, built from a
configuration as `service` builds it. Only time, network, disk and threads are the lab's. Nothing
moves but by `send`, `settle` and `advance`; time stands still in the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mta.association.tls import Tls
from mta.config.load import load
from mta.config.schema import Config
from mta.interfaces import IPluginFactory, IPolicy, ISpool, ISurroundings, ITenure
from mta.model import Claim, Envelope, Fencing, Grant, MessageState, QueueEntry, QueueFilter
from mta.plugins.find import Catalogue
from mta.settings import Settings
from mta.telemetry import Telemetry
from mta.tenant import Bridgehead
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.executors import StepExecutor
from mta.testing.network import MemoryNetwork, MemoryPeer
from mta.testing.sink import Sink
from mta.testing.surroundings import MemorySurroundings, MemoryTenure

T = TypeVar("T")

NETWORK_NAME = "vs1.example.org"
VIRTUAL_ADDRESS = "192.0.2.10"
FRIEND = "192.0.2.77"
"""A client in relay-from."""
STRANGER = "198.51.100.7"
HUB = "203.0.113.20"
"""Where the sink `lab.hub` listens, the only bridgehead of the connector `hub`."""
MESSAGE = b"From: <me@example.net>\r\nMessage-ID: <1@example.net>\r\nSubject: x\r\n\r\nHello.\r\n"

CONFIGURATION = f"""
virtual-server: {{network-name: {NETWORK_NAME}, addresses: [{VIRTUAL_ADDRESS}]}}
postmaster: postmaster@example.com
cluster: {{resource: standalone}}
listeners:
  - {{kind: smtp, port: 25, relay-from: [192.0.2.0/24]}}
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["{HUB}:25"]
    address-spaces:
      - {{domain: example.com, accept: anyone}}
      - {{domain: "*.example.net"}}
      - {{domain: example.net}}
"""
SPOOLS = {
    "memory": "spool: {store: memory}\n",
    "log": (
        "spool: {store: log, directory: /spool, sharing: same-kernel, initialise: true,"
        " segment-size: 1MiB, first-segment-size: 256KiB}\n"
    ),
}


@implementer(IPluginFactory)
class _Given:
    """A factory of a policy that the test has in its hand."""

    provides = IPolicy
    version = 1
    purposes: frozenset[str] = frozenset()
    schema = Settings

    def __init__(self, name: str, policy: Any) -> None:
        self.name = name
        self._policy = policy

    def create(self, configuration: Any, surroundings: ISurroundings) -> Any:
        return self._policy


class LabTenure(MemoryTenure):
    """A tenure that asks the spool, as the real one does."""

    def __init__(self, config: Config, spool: ISpool, epoch: int) -> None:
        server = config.virtual_server
        super().__init__(server.network_name, server.addresses, epoch)
        self._spool = spool

    def check(self) -> None:
        super().check()
        self._spool.check()


class LabNode:
    """One node: its own process as far as anything is shared. `events` is its telemetry.

    While `is_frozen` its disk and threads stand still, as those of a stopped process do.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.executor = StepExecutor()
        self.is_frozen = False
        self.surroundings = MemorySurroundings(
            clock=lab.clock,
            network=lab.network,
            telemetry=Telemetry(),
            disk=lab.disk,
            executor=self.executor,
            node=name,
            virtual_server=lab.config.virtual_server,
        )
        self.surroundings.tls = Tls(
            lab.config.tls,
            lab.config.virtual_server.network_name,
            lab.clock,
            self.surroundings.telemetry,
        )
        self.events = self.surroundings.events
        self.spool: ISpool = self._create(lab.config.spool)
        self.tenant = Bridgehead(lab.config, self.spool, self.surroundings, self._create)
        self.tenure: LabTenure | None = None

    def _create(self, block: Any) -> Any:
        return block.factory.create(block.settings, self.surroundings)

    def take_over(self) -> None:
        """All that lies between a grant and ONLINE, without a cluster to grant it."""
        lab, spool = self.lab, self.spool
        epochs = lab.wait(spool.inspect())
        server = lab.config.virtual_server
        grant = Grant(0, server.network_name, server.addresses, Fencing.EXTERNAL)
        claim = Claim(self.name, f"boot-{self.name}", 0.0, "lab", lab.config.digest, grant)
        lab.wait(spool.publish(claim, max((e.epoch for e in epochs), default=0)))
        found = lab.wait(spool.recover())
        self.tenant.recovery = lambda: found
        lab.wait(spool.seal())
        self.tenure = LabTenure(lab.config, spool, spool.epoch)
        lab.wait(self.tenant.start(self.tenure))

    def revoke(self, reason: str = "the address went") -> None:
        """The tenure ends; the epoch is still this node's (`restore` brings it back)."""
        assert self.tenure is not None
        self.tenure.revoke()
        self.tenant.suspend(reason)

    def restore(self) -> None:
        """The address came back, under the same epoch."""
        self.tenure = LabTenure(self.lab.config, self.spool, self.spool.epoch)
        self.lab.wait(self.tenant.start(self.tenure))

    def die(self) -> None:
        """kill -9: sockets close, threads and timers of this node move no more."""
        self.executor.stop()
        self.executor.calls.clear()
        self.executor.ready.clear()
        if self.tenure is not None:
            self.tenure.revoke()
        self.tenant.stop("died")
        self.spool.abandon()

    def kinds(self, kind: type[T]) -> list[T]:
        """The telemetry events of one kind, in order."""
        return [event for event in self.events if type(event) is kind]


class Lab:
    """Nodes over one disk and one network. The first of `nodes` owns the virtual server.

    `more` is further configuration (blocks at the top level, which may replace ours); `spool` is
    "memory" or "log" (on a disk that forgets what was not synced; needed for a second node).
    `policies` are objects that stand in the configuration under names of the lab's own; `capacity`
    is the disk's, in octets.

    Another lab may stand `beside` it in the same network and time, each with nodes and a disk of
    its own: its `more` gives it a virtual server, and `hub` is where its own sink listens.
    """

    def __init__(
        self,
        nodes: str = "a",
        *,
        spool: str = "memory",
        more: str = "",
        policies: Sequence[Any] = (),
        capacity: int = 1 << 34,
        beside: Lab | None = None,
        hub: str = HUB,
    ) -> None:
        self.clock: VirtualClock = VirtualClock() if beside is None else beside.clock
        self.network: MemoryNetwork = (
            MemoryNetwork(self.clock) if beside is None else beside.network
        )
        self._neighbours: list[Lab] = [] if beside is None else beside._neighbours
        self._neighbours.append(self)
        self.disk: ForgetfulDisk = ForgetfulDisk(capacity)
        self._catalogue = Catalogue()
        self._given = {f"lab-{i}": _Given(f"lab-{i}", p) for i, p in enumerate(policies)}
        chosen = "".join(f"  - {{policy: {name}}}\n" for name in self._given)
        blocks = _blocks(CONFIGURATION + SPOOLS[spool]) | _blocks(more)
        if chosen:
            blocks["policies"] = f"policies:\n{chosen}"
        self.config: Config = load("".join(blocks.values()), "lab.yaml", self._find)
        self.hub = Sink()
        self.network.serve(hub, 25, self.hub.build)
        self.nodes: dict[str, LabNode] = {}
        self.nodes |= {name: LabNode(self, name) for name in nodes}
        self.owner: LabNode = self.nodes[nodes[0]]
        self.owner.take_over()
        self.settle()

    def _find(self, interface: type[Interface], name: str) -> IPluginFactory:
        if interface is IPolicy and name in self._given:
            return self._given[name]
        return self._catalogue.find(interface, name)

    # --- time ---

    def settle(self) -> None:
        """Let network, disk and threads do all that they can do now."""
        for _ in range(100_000):
            moved = False
            for node in [n for lab in self._neighbours for n in lab.nodes.values()]:
                while not node.is_frozen and (node.executor.deliver() or node.executor.work()):
                    moved = True
            now = self.clock.reactor.seconds()
            if any(call.getTime() <= now for call in self.clock.reactor.getDelayedCalls()):
                self.clock.advance(0)
                moved = True
            if not moved:
                return
        raise AssertionError("the lab does not come to rest: something goes round in circles")

    def advance(self, seconds: float) -> None:
        """Let time pass, every timer at its own moment, and settle."""
        end = self.clock.reactor.seconds() + seconds
        self.settle()
        while True:
            times = [call.getTime() for call in self.clock.reactor.getDelayedCalls()]
            following = min((t for t in times if t <= end), default=None)
            now = self.clock.reactor.seconds()
            if following is None:
                self.clock.advance(end - now)
                self.settle()
                return
            self.clock.advance(max(0.0, following - now))
            self.settle()

    def wait(self, answer: Any) -> Any:
        """What a Deferred fires with, once everything has settled."""
        if not isinstance(answer, Deferred):
            return answer
        results: list[Any] = []
        answer.addBoth(results.append)
        self.settle()
        if not results:
            raise AssertionError("no answer although everything has settled")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    # --- cluster ---

    def fail(self, name: str, to: str, *, power_cut: bool = False) -> None:
        """Node `name` dies, with the disk's unsynced writes when `power_cut`; `to` takes over."""
        self.nodes[name].die()
        if power_cut:
            self.disk.power_cut()
        self.owner = self.nodes[to]
        self.owner.take_over()
        self.settle()

    @property
    def tenure(self) -> ITenure:
        assert self.owner.tenure is not None
        return self.owner.tenure

    # --- mail ---

    def client(self, source: str = FRIEND, port: int = 25) -> LabClient:
        """A foreign client, greeted and introduced."""
        return LabClient(self, source, port)

    def send(
        self,
        to: Sequence[str] = ("you@example.com",),
        *,
        sender: str = "me@example.net",
        content: bytes = MESSAGE,
        source: str = FRIEND,
    ) -> bytes:
        """One message by a client of its own; the last reply (of RCPT when all were refused)."""
        client = self.client(source)
        reply = client.send(to, sender=sender, content=content)
        client.say(b"QUIT")
        return reply

    def queue(self) -> list[QueueEntry]:
        """What lies in the owner's spool."""
        entries: list[QueueEntry] = self.wait(self.owner.spool.scan(QueueFilter(), "", 1000))
        return entries

    def load(self, queue_id: str) -> tuple[Envelope, MessageState]:
        envelope, state = self.wait(self.owner.spool.load(queue_id))
        return envelope, state

    def content(self, queue_id: str) -> bytes:
        """A queued content as it would be sent."""
        content = self.wait(self.owner.spool.content(queue_id))
        octets = b""
        while piece := self.wait(content.read()):
            octets += piece
        content.close()
        return octets


class LabClient:
    """A foreign client: says lines, answers what came back."""

    def __init__(self, lab: Lab, source: str, port: int = 25) -> None:
        self.lab = lab
        self.peer: MemoryPeer = lab.network.dial(VIRTUAL_ADDRESS, port, source)
        lab.settle()
        self.greeting = self.peer.take()
        if self.greeting.startswith(b"220"):
            self.say(b"EHLO client.example.net")

    @property
    def is_open(self) -> bool:
        return self.peer.is_open

    def say(self, *lines: bytes) -> bytes:
        """Say lines in one write; everything that came back, once all has settled."""
        self.peer.say(b"".join(line + b"\r\n" for line in lines))
        self.lab.settle()
        return self.peer.take()

    def pour(self, octets: bytes) -> bytes:
        """Say octets as they are."""
        self.peer.say(octets)
        self.lab.settle()
        return self.peer.take()

    def begin(self, to: Sequence[str], sender: str = "me@example.net") -> list[bytes]:
        """MAIL, RCPTs and DATA, pipelined; the replies' lines."""
        replies = self.say(
            b"MAIL FROM:<%b>" % sender.encode(),
            *(b"RCPT TO:<%b>" % recipient.encode() for recipient in to),
            b"DATA",
        )
        return replies.splitlines()

    def send(
        self,
        to: Sequence[str] = ("you@example.com",),
        *,
        sender: str = "me@example.net",
        content: bytes = MESSAGE,
    ) -> bytes:
        """One whole message; the last reply."""
        replies = self.begin(to, sender)
        if not replies or not replies[-1].startswith(b"354"):
            refused = [r for r in replies if r[:1] in {b"4", b"5"}]
            return refused[0] if refused else b""
        stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
        return self.pour(stuffed + b".\r\n").rstrip(b"\r\n")


def _blocks(text: str) -> dict[str, str]:
    """Top-level blocks of a configuration by their key."""
    blocks: dict[str, str] = {}
    key = ""
    for line in text.splitlines(keepends=True):
        if line[:1] not in {" ", "\n", "#", ""}:
            key = line.partition(":")[0]
            blocks[key] = ""
        if key:
            blocks[key] += line
    return blocks


__all__ = ["Lab", "LabClient", "LabNode", "LabTenure"]
