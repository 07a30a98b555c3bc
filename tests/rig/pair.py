"""Two nodes, `a` and `b`, one spool, one virtual server: the ground of everything about failover.

Law: the rig is the cluster manager. It alone moves the address, and it starts an MTA that ended
again as systemd would (Restart=always, RestartSec=1), unless a scenario says no. What a scenario
does to a node it does from outside: signals, links, addresses, the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.rig.ground import (
    OWN,
    VIRTUAL,
    Ground,
    Process,
    expect,
    run,
    wait_until,
)
from tests.rig.node import Mta, no_wrong_source

RESTART_SECONDS = 1.0
"""RestartSec= of etc/mta.service."""
LOOK_SECONDS = 0.02
QUEUE = "lifetime: 1h\nbackoff: [1s]\ndestination-retry: 1s"
"""What is in doubt, or was refused for a time, goes again before a scenario loses its patience."""
STORE = "reserve: 32MiB\nsegment-size: 8MiB"
"""Small enough for the small disks of the rig."""


class Supervised(Mta):
    """An MTA that is started again when it ends, as by Restart=always. `held` says no for a time."""

    def __init__(self, ground: Ground, namespace: str) -> None:
        directory = os.path.join(ground.directory, namespace)
        os.makedirs(directory)
        super().__init__(ground, namespace, directory, f"node-{namespace}")
        # /run is the runner's own; a path below a deep checkout may be too long for a socket.
        self.control = f"/run/{namespace}.control"
        self.submit = f"/run/{namespace}.submit"
        self.is_held = True
        self.ends: list[int] = []
        """The status of each end, in their order."""
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def supervise(self) -> None:
        """Start it, and from now on whenever it ends."""
        if self.mta is None or not self.mta.is_running:
            self.start_mta(wait=False)
        self.is_held = False

    def hold(self) -> None:
        """An end from now on is an end."""
        self.is_held = True
        with self._lock:
            pass  # a start that was under way is done

    @property
    def is_over(self) -> bool:
        """Nobody starts it again: the scenario is at its end."""
        return self._is_over.is_set()

    def over(self) -> None:
        self._is_over.set()
        self._thread.join(10)

    def _watch(self) -> None:
        counted = 0
        while not self._is_over.wait(LOOK_SECONDS):
            mta = self.mta
            if mta is None or mta.is_running or self.is_held:
                continue
            if counted != self.starts:
                counted = self.starts
                self.ends.append(mta.popen.returncode)
            if self._is_over.wait(RESTART_SECONDS):
                return
            with self._lock:
                if not self.is_held and not mta.is_running and self.mta is mta:
                    self.start_mta(wait=False)

    # --- what it says of itself

    def wait_answering(self, seconds: float = 20) -> None:
        """It may have to be started again first."""
        wait_until(
            lambda: self.asked(),
            seconds,
            f"{self.name} does not answer on its control socket",
            step=0.1,
        )

    def asked(self, seconds: float = 5) -> dict[str, Any]:
        """`mta status`, without a process for it; {} when it does not answer in time."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
                connected.settimeout(seconds)
                connected.connect(self.control)
                connected.sendall(b'{"command": "status"}\n')
                said = connected.makefile("rb").readline()
            found = json.loads(said)["done"]
        except (OSError, ValueError, KeyError):
            return {}
        assert isinstance(found, dict)
        return found

    def state(self) -> str:
        """The ownership state as `mta status` has it; "" when it does not answer."""
        return str(self.asked().get("state", ""))

    def owns(self) -> bool:
        return self.state() == "online"


class Pair(Ground):
    """Nodes `a` and `b` and the peer. `owner` is where the rig put the addresses last."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory, ("a", "b"))
        self.mtas = {name: Supervised(self, name) for name in self.nodes}
        self.owner = ""
        self.spool = os.path.join(directory, "spool")

    def __getitem__(self, name: str) -> Supervised:
        return self.mtas[name]

    def other(self, name: str) -> str:
        return self.nodes[1 - self.nodes.index(name)]

    # --- the MTAs

    def configure(self, **configure: Any) -> None:
        """The same for both, but for what is each node's own (Mta.configure)."""
        configure = {"sharing": "same-kernel", "store": STORE, "queue": QUEUE, **configure}
        self.spool = configure.get("spool", self.spool)
        for mta in self.mtas.values():
            mta.configure(**{**configure, "spool": self.spool})
        self["a"].command("spool", "init", self.spool)

    def online(self, owner: str = "a", **configure: Any) -> None:
        """The usual beginning: both supervised, `owner` has the addresses and greets."""
        self.configure(**configure)
        self.give(owner)
        self[owner].supervise()
        self[owner].wait_online()
        self[self.other(owner)].supervise()
        self[self.other(owner)].wait_answering()

    def wait_owner(self, name: str, seconds: float = 20) -> float:
        """Until the virtual address greets and it is `name` that does; the seconds it took."""
        begun = time.monotonic()
        wait_until(
            lambda: self._greets_from(name), seconds, f"node {name} does not greet", step=0.005
        )
        return time.monotonic() - begun

    def _greets_from(self, name: str) -> bool:
        # A lost SYN is sent again after 1 s: asking anew shows sooner that somebody answers.
        if not self[name].greeting(VIRTUAL, connect_seconds=0.05).startswith(b"220"):
            return False
        at = f"{VIRTUAL}:25"
        return any(at in line for line in self.sockets(name, "state", "listening"))

    def process(self, name: str) -> Process:
        return self[name].process()

    def kill(self, name: str) -> None:
        """kill -9; the supervisor starts it again after RESTART_SECONDS."""
        self.process(name).kill()

    def freeze(self, name: str) -> Process:
        """SIGSTOP; answers the process, to be thawed by SIGCONT."""
        process = self.process(name)
        process.send_signal(signal.SIGSTOP)
        return process

    def thaw(self, process: Process) -> None:
        process.send_signal(signal.SIGCONT)

    def logs(self) -> list[str]:
        """The paths of what the MTAs wrote, one for each process."""
        return [p.log_path for p in list(self.processes) if p.name.startswith("mta-")]

    # --- the address

    def give(self, name: str, v6: bool = True) -> None:
        """Add the virtual addresses to a node; the MTA that becomes owner announces them."""
        self.add_virtual(v6=v6, node=name)
        self.owner = name

    def take(self, name: str, v6: bool = True) -> None:
        self.remove_virtual(v6=v6, node=name)

    def move(self, to: str) -> None:
        """From the other node to `to`."""
        self.take(self.other(to))
        self.give(to)

    def has_address(self, name: str) -> bool:
        return VIRTUAL in self.inside(name, ["ip", "-4", "addr", "show", "dev", "eth0"]).stdout

    # --- the network

    def unplug(self, name: str) -> None:
        """The switch port of a node goes down: its carrier is lost."""
        run(["ip", "link", "set", f"v{name}", "down"])

    def plug(self, name: str) -> None:
        run(["ip", "link", "set", f"v{name}", "up"])

    @contextlib.contextmanager
    def one_way(self, name: str, rule: str) -> Iterator[None]:
        """Every packet that an nft `rule` (a chain) matches is dropped at a node."""
        self.inside(name, ["nft", "-f", "-"], text=f"table inet oneway {{\n{rule}\n}}\n")
        try:
            yield
        finally:
            self.inside(name, ["nft", "delete", "table", "inet", "oneway"])

    def interface_up(self, name: str) -> None:
        """After `eth0` was set down: the kernel had removed the node's own IPv6 address."""
        self.ip(name, "link", "set", "eth0", "up")
        self.ip(name, "-6", "addr", "add", f"{OWN[name][1]}/64", "dev", "eth0", "nodad")

    def part(self, name: str) -> None:
        """A node leaves the switch, and keeps its carrier: a partition that nothing announces."""
        run(["ip", "link", "set", f"v{name}", "nomaster"])

    def join(self, name: str) -> None:
        run(["ip", "link", "set", f"v{name}", "master", "br0"])

    # --- the epochs

    def epochs(self) -> list[int]:
        """The epochs whose files lie in the spool, oldest first."""
        directory = os.path.join(self.spool, "epoch")
        if not os.path.isdir(directory):
            return []
        return sorted(int(name) for name in os.listdir(directory) if name.isdigit())

    def publisher(self, epoch: int) -> str:
        """The node whose name stands in that epoch's file."""
        with open(os.path.join(self.spool, "epoch", str(epoch)), "rb") as file:
            octets = file.read()
        return next(name for name in self.nodes if f'"node-{name}"'.encode() in octets)

    @property
    def epoch(self) -> int:
        return (self.epochs() or [0])[-1]

    # --- the end

    def at_the_end(self) -> None:
        """Both MTAs live or ended in order, broke no net, and no mail left from a node's address."""
        for mta in self.mtas.values():
            mta.hold()
        no_wrong_source(self)
        for mta in self.mtas.values():
            mta.check_order()
        for mta in self.mtas.values():
            if mta.mta is not None:
                mta.mta.send_signal(signal.SIGCONT)
            mta.end()
        epochs = self.epochs()
        expect(len(set(epochs)) == len(epochs), f"an epoch stands twice: {epochs}")

    def clear(self) -> None:
        for mta in self.mtas.values():
            mta.hold()
            mta.over()
        super().clear()
        shutil.rmtree(os.path.join(self.directory, "spool"), ignore_errors=True)
