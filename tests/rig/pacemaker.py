"""Two nodes under corosync and Pacemaker, as Debian ships them, and a switch for their power.

Law: Pacemaker is the cluster manager; the rig only cuts what it is told to cut. Each node has mount,
UTS, IPC and PID namespaces of its own. Taking its power is to lose its link and every process at
once; fencing is that and nothing less, and is acknowledged when no process is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from typing import Any

from tests.rig.ground import (
    OWN,
    ROOT,
    VENV_BIN,
    VIRTUAL,
    VIRTUAL6,
    Broken,
    Ground,
    Process,
    expect,
    run,
    wait_until,
)
from tests.rig.node import Mta, no_wrong_source
from tests.rig.pair import QUEUE, STORE

TOKEN_MS = 1000
"""corosync declares a node dead after so long without a token."""
CONFIG = "/run/mta.yaml"
"""Where each node finds its own."""
CONFIGURATION = os.path.join(ROOT, "etc", "ocf", "cluster.xml")
SPOOL_MIB = 160
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""fsfreeze(8), linux/fs.h."""
COROSYNC = f"""\
totem {{
    version: 2
    cluster_name: rig
    transport: udpu
    token: {TOKEN_MS}
    crypto_cipher: none
    crypto_hash: none
}}
nodelist {{
    node {{
        ring0_addr: {OWN["a"][0]}
        name: a
        nodeid: 1
    }}
    node {{
        ring0_addr: {OWN["b"][0]}
        name: b
        nodeid: 2
    }}
}}
quorum {{
    provider: corosync_votequorum
    two_node: 1
}}
logging {{
    to_stderr: yes
    to_syslog: no
}}
"""


class ClusterNode(Mta):
    """One node: its namespaces while it has power, and the MTA that Pacemaker runs there."""

    def __init__(self, ground: Cluster, namespace: str) -> None:
        directory = os.path.join(ground.directory, namespace)
        os.makedirs(directory)
        super().__init__(ground, namespace, directory, f"node-{namespace}")
        self._power: Process | None = None
        self._boots = 0
        self.log_file = os.path.join(directory, "mta.log")
        self.control = "/run/mta/control.sock"  # each node has a /run of its own

    @property
    def has_power(self) -> bool:
        return self._first_process() != 0

    @property
    def first_process(self) -> int:
        """The pid, as the rig sees it, of the first process of the node's own PID namespace."""
        found = self._first_process()
        if not found:
            raise Broken(f"{self.name} has no power")
        return found

    def _first_process(self) -> int:
        if self._power is None or not self._power.is_running:
            return 0
        try:
            with open(f"/proc/{self._power.pid}/task/{self._power.pid}/children") as file:
                pids = file.read().split()
        except OSError:
            return 0  # it ended meanwhile
        return int(pids[0]) if pids else 0

    def boot(self) -> None:
        self._boots += 1
        ground = self.ground
        run(["ip", "link", "set", f"v{self.namespace}", "up"])
        script = os.path.join(ROOT, "tests", "rig", "pacemaker_node.sh")
        self._power = ground.start(
            f"node-{self.namespace}-{self._boots}",
            self.namespace,
            [
                "unshare", "-m", "-u", "-i", "-p", "-f", "--mount-proc", "--kill-child",
                "--propagation", "private",
                "sh", script, self.namespace, ground.directory, ROOT,
            ],
            env=self.environment(),
        )  # fmt: skip

    def kill_all(self) -> None:
        """With the first process of the namespace every other one is killed."""
        first = self._first_process()
        if first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)

    def take_power(self) -> None:
        """Link and processes, at once; returns when none is left. Harmless without power."""
        run(["ip", "link", "set", f"v{self.namespace}", "down"])
        self.kill_all()
        if self._power is not None:
            self._power.popen.wait(30)
        self.ground.ip(self.namespace, "addr", "flush", "dev", "eth0", "to", f"{VIRTUAL}/32")
        self.ground.ip(
            self.namespace, "-6", "addr", "flush", "dev", "eth0", "to", f"{VIRTUAL6}/128"
        )

    def do(
        self, *argv: str, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end on the node, in all its namespaces."""
        enter = ["nsenter", f"--target={self.first_process}", "--mount", "--uts", "--ipc", "--pid"]
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        return self.ground.inside(
            self.namespace, [*enter, "--", "env", *variables, *argv], check=check
        )

    def agent(self, action: str, level: int = 0) -> subprocess.CompletedProcess[str]:
        """The agent as Pacemaker calls it."""
        ground = self.ground
        assert isinstance(ground, Cluster)
        return self.do(
            "/usr/lib/ocf/resource.d/mta/mta", action, check=False,
            env={
                "OCF_ROOT": "/usr/lib/ocf", "OCF_RESOURCE_INSTANCE": "mta",
                "OCF_CHECK_LEVEL": str(level),
                **{f"OCF_RESKEY_{key}": value for key, value in ground.parameters.items()},
            },
        )  # fmt: skip

    def command(self, *arguments: str, check: bool = True) -> Any:
        return self.do(f"{VENV_BIN}/mta", "--socket", self.control, *arguments, check=check)

    def mta_pid(self) -> int:
        """As the rig sees it."""
        ours = os.readlink(f"/proc/{self.first_process}/ns/pid")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    is_marked = b"MTA_PACEMAKER_INSTANCE=mta\0" in file.read()
                if is_marked and os.readlink(f"/proc/{pid}/ns/pid") == ours:
                    return int(pid)
            except OSError:
                continue  # it ended meanwhile
        raise Broken(f"no MTA runs on {self.name}")

    def kill_corosync(self) -> None:
        """kill -9: Pacemaker ends with it, and the resources run on."""
        self.do("sh", "-c", "kill -KILL $(cat /run/rig-corosync.pid)")

    def log(self) -> str:
        if not os.path.exists(self.log_file):
            return ""
        with open(self.log_file, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()


class Cluster(Ground):
    """Nodes `a` and `b` under Pacemaker, and the peer; nothing has power yet."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory, ("a", "b"))
        self.cluster_nodes = {name: ClusterNode(self, name) for name in self.nodes}
        self.mount = os.path.join(directory, "spool")
        self.spool = os.path.join(self.mount, "queue")
        self.device = ""
        self.parameters = {
            "config": CONFIG, "bindir": VENV_BIN, "user": "", "drain_timeout": "4",
        }  # fmt: skip
        self.fencings: list[tuple[float, str]] = []
        """When each node was fenced, and which."""
        self.parted: set[str] = set()
        """The nodes that are off the switch."""
        self._fence_path = os.path.join(directory, "fence.sock")
        self._listener: socket.socket | None = None
        self._frozen = -1
        self._epochs: list[int] = []

    def __getitem__(self, name: str) -> ClusterNode:
        return self.cluster_nodes[name]

    def other(self, name: str) -> str:
        return self.nodes[1 - self.nodes.index(name)]

    # --- the beginning

    def configure(self, **configure: Any) -> None:
        """The same for both, but for what is each node's own (Mta.configure)."""
        for node in self.cluster_nodes.values():
            node.configure(
                **{
                    "resource": "pacemaker", "sharing": "failover-mount", "spool": self.spool,
                    "store": STORE, "queue": QUEUE, "cluster": "drain: 2s", "extra": f"log: {{to: {node.log_file}}}",
                    **configure,
                }
            )  # fmt: skip

    def online(self) -> float:
        """Disk, configuration, both nodes, the group on node a: until it greets. How long the boot."""
        self._make_disk()
        self.configure()
        self._listen()
        with open(os.path.join(self.directory, "corosync.conf"), "w", encoding="ascii") as file:
            file.write(COROSYNC)
        fence = os.path.join(self.directory, "fence_rig")
        shutil.copy(os.path.join(ROOT, "tests", "rig", "fence_rig.py"), fence)
        self.write_cib(os.path.join(self.directory, "cib.xml"))
        begun = time.monotonic()
        for node in self.cluster_nodes.values():
            node.boot()
        wait_until(lambda: self.greets_from("a"), 45, "the group does not come up on node a", 0.1)
        return time.monotonic() - begun

    def _make_disk(self) -> None:
        """A disk that both nodes can reach, and that one at a time mounts."""
        image = os.path.join(self.directory, "spool.img")
        with open(image, "wb") as file:
            file.truncate(SPOOL_MIB << 20)
        run(["mkfs.ext4", "-q", "-m", "0", image])
        self.device = run(["losetup", "--find", "--show", image]).stdout.strip()
        os.makedirs(self.mount)
        run(["mount", self.device, self.mount])
        run([f"{VENV_BIN}/mta", "spool", "init", self.spool])
        run(["umount", self.mount])

    def write_cib(self, path: str) -> None:
        """The shipped configuration with the rig's values, as Pacemaker finds it at its start."""
        configuration = ET.parse(CONFIGURATION).getroot()
        values = {
            "mail-spool-device": self.device, "mail-spool-directory": self.mount,
            "mail-address-ip": VIRTUAL, "mail-address6-ip": VIRTUAL6,
            "mta-config": self.parameters["config"], "mta-bindir": self.parameters["bindir"],
            "mta-user": self.parameters["user"], "mta-drain": self.parameters["drain_timeout"],
        }  # fmt: skip
        for pair in configuration.iter("nvpair"):
            pair.set("value", values.pop(pair.get("id", ""), pair.get("value", "")))
        expect(not values, f"etc/ocf/cluster.xml lacks {sorted(values)}")
        quicker = {
            "mail-address-monitor": "1s", "mail-address6-monitor": "1s", "mta-monitor-0": "1s",
            "mta-monitor-10": "3s", "mta-monitor-20": "7s",
        }  # fmt: skip
        for op in configuration.iter("op"):
            op.set("interval", quicker.get(op.get("id", ""), op.get("interval", "")))
            if op.get("id") == "mta-stop":
                op.set("timeout", "12s")
        for primitive in configuration.iter("primitive"):
            if primitive.get("class") == "stonith":
                primitive.set("type", "fence_rig")
                for pair in primitive.iter("nvpair"):
                    if pair.get("name") == "ip":
                        pair.set("name", "socket")
                        pair.set("value", self._fence_path)
        properties = configuration.find("crm_config/cluster_property_set")
        assert properties is not None
        # A node stays off until the rig boots it; who is alone at the start does not wait for long.
        for name, value in {
            "stonith-action": "off", "dc-deadtime": "1s", "priority-fencing-delay": "2s",
        }.items():  # fmt: skip
            for pair in properties.findall("nvpair"):
                if pair.get("name") == name:
                    properties.remove(pair)
            ET.SubElement(properties, "nvpair", id=name, name=name, value=value)
        cib = ET.Element(
            "cib", {"validate-with": "pacemaker-3.9", "epoch": "1", "num_updates": "0",
                    "admin_epoch": "1", "crm_feature_set": "3.0.0"},
        )  # fmt: skip
        cib.append(configuration)
        ET.SubElement(cib, "status")
        ET.ElementTree(cib).write(path)

    # --- fencing

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self._fence_path)
        self._listener.listen(10)
        threading.Thread(target=self._serve_fencing, args=(self._listener,), daemon=True).start()

    def _serve_fencing(self, listener: socket.socket) -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:
                return
            with asking:
                words = asking.makefile().readline().split()
                try:
                    answer = self._fenced(*words)
                    asking.sendall(f"{answer}\n".encode())
                except (OSError, Broken, TypeError, subprocess.TimeoutExpired) as error:
                    self.note(f"fencing {words} failed: {error}")

    def _fenced(self, action: str, port: str, asking: str) -> str:
        """The fence device stands on the switch: who is cut off from that does not reach it."""
        if asking in self.parted:
            return f"node {asking} does not reach the fence device"
        if action in {"monitor", "status"}:
            return "ok"
        if action != "off" or port not in self.cluster_nodes:
            return f"cannot {action} {port}"
        # Without power no thread waits for a disk: what is frozen for the scenario goes on and dies.
        node = self[port]
        run(["ip", "link", "set", f"v{port}", "down"])
        node.kill_all()
        self.thaw()
        node.take_power()
        self.fencings.append((time.monotonic(), port))
        return "ok"

    def part(self, name: str) -> None:
        """A node leaves the switch, and keeps its carrier."""
        self.parted.add(name)
        run(["ip", "link", "set", f"v{name}", "nomaster"])

    def join(self, name: str) -> None:
        run(["ip", "link", "set", f"v{name}", "master", "br0"])
        self.parted.discard(name)

    def freeze_spool(self, name: str) -> None:
        """Every write to the disk of the node waits, its process killed or not, until `thaw`."""
        self._frozen = os.open(f"/proc/{self[name].first_process}/root{self.mount}", os.O_RDONLY)
        fcntl.ioctl(self._frozen, FIFREEZE, 0)

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, -1
        if frozen >= 0:
            fcntl.ioctl(frozen, FITHAW, 0)
            os.close(frozen)

    # --- what is seen

    def greets_from(self, name: str) -> bool:
        node = self[name]
        if not node.greeting(VIRTUAL, connect_seconds=0.05).startswith(b"220"):
            return False
        at = f"{VIRTUAL}:25"
        return any(at in line for line in self.sockets(name, "state", "listening"))

    def wait_owner(self, name: str, seconds: float = 30) -> float:
        begun = time.monotonic()
        wait_until(lambda: self.greets_from(name), seconds, f"node {name} does not greet", 0.01)
        return time.monotonic() - begun

    def history(self, name: str, node: str) -> list[dict[str, str]]:
        """The operations of a resource on a node, as the cluster remembers them."""
        text = self.cluster("cibadmin", "--query", "--scope", "status")
        found = []
        for state in ET.fromstring(text).iter("node_state"):
            if state.get("uname") == node:
                for resource in state.iter("lrm_resource"):
                    if resource.get("id") == name:
                        found += [dict(op.attrib) for op in resource.iter("lrm_rsc_op")]
        return found

    def logs(self) -> list[str]:
        """The paths of what the MTAs wrote, one for each node."""
        paths = [node.log_file for node in self.cluster_nodes.values()]
        return [path for path in paths if os.path.exists(path)]

    def cluster(self, *argv: str) -> str:
        """A command of Pacemaker's, on a node that has power."""
        said = self.any_node().do(*argv).stdout
        assert isinstance(said, str)
        return said

    def any_node(self) -> ClusterNode:
        for node in self.cluster_nodes.values():
            if node.has_power:
                return node
        raise Broken("no node has power")

    def wait_joined(self, name: str, seconds: float = 60) -> float:
        """Until the cluster has the node as a member with all its operations known."""
        begun = time.monotonic()

        def joined() -> bool:
            said = self[self.other(name)].do(
                "crm_mon", "--one-shot", "--output-as=xml", check=False
            )
            if said.returncode:
                return False
            node = ET.fromstring(said.stdout).find(f"nodes/node[@name='{name}']")
            return (
                node is not None and node.get("online") == "true" and node.get("pending") == "false"
            )

        wait_until(joined, seconds, f"node {name} does not join", 0.3)
        return time.monotonic() - begun

    # --- the epochs

    def epochs(self) -> list[int]:
        """The epochs whose files lie in the spool, where it is mounted now; else as last seen."""
        for node in self.cluster_nodes.values():
            try:
                names = os.listdir(f"/proc/{node.first_process}/root{self.spool}/epoch")
            except (OSError, Broken):
                continue
            self._epochs = sorted(int(name) for name in names if name.isdigit()) or self._epochs
        return self._epochs

    @property
    def epoch(self) -> int:
        return (self.epochs() or [0])[-1]

    # --- the end

    def at_the_end(self) -> None:
        no_wrong_source(self)
        for node in self.cluster_nodes.values():
            node.check_order()

    def clear(self) -> None:
        try:
            if self._listener is not None:
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
            self.thaw()
            for node in self.cluster_nodes.values():
                node.take_power()
        finally:
            super().clear()
            if self.device:
                run(["losetup", "--detach", self.device], check=False)
