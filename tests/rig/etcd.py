"""Debian's etcd-server beside a pair: one member or three, in a namespace of their own.

Law: the rig never writes to the MTA's key but where a scenario says so; who owns is between the
MTAs and etcd. What happens to a member happens from outside: signals, links, packets dropped.

    etcd = Etcd(pair, members=3)
    etcd.online("a")          # etcd runs, both MTAs run with `resource: etcd`, node a greets
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
from typing import Any

from tests.rig.ground import UNPACKED, Broken, Process, run, wait_until
from tests.rig.node import NETWORK_NAME
from tests.rig.pair import Pair

SPACE = "etcd"
PORT = 2379
TTL_SECONDS = 5
ELECTION_MS = 500
"""Half of etcd's default, so that a TTL has room for an election that has to be held twice."""
KEY = f"/mta/{NETWORK_NAME}/owner"
DROPPED = """
table inet cut {
  chain out { type filter hook output priority -1; tcp dport 2379 drop; }
  chain in { type filter hook input priority -1; tcp sport 2379 drop; }
}
"""


class Etcd:
    """One cluster of `members`; their numbers count from 0."""

    def __init__(self, pair: Pair, members: int = 1) -> None:
        self._pair = pair
        self.hosts = [f"10.9.0.{11 + number}" for number in range(members)]
        self.members: list[Process] = []
        self._starts = 0
        self._build()

    def _build(self) -> None:
        pair = self._pair
        run(["ip", "netns", "add", SPACE])
        pair.spaces.append(SPACE)
        link = ["ip", "link", "add", f"v{SPACE}", "type", "veth"]
        run([*link, "peer", "name", "eth0", "netns", SPACE])
        run(["ip", "link", "set", f"v{SPACE}", "master", "br0", "up"])
        pair.ip(SPACE, "link", "set", "lo", "up")
        pair.ip(SPACE, "link", "set", "eth0", "up")
        for host in self.hosts:
            pair.ip(SPACE, "addr", "add", f"{host}/24", "dev", "eth0")

    # --- the members

    @property
    def endpoints(self) -> list[str]:
        return [f"http://{host}:{PORT}" for host in self.hosts]

    def start(self) -> None:
        """All of them; returns when there is a leader."""
        self.members = [self._start(number) for number in range(len(self.hosts))]
        self.wait_leader()

    def _start(self, number: int) -> Process:
        host = self.hosts[number]
        self._starts += 1
        cluster = ",".join(f"m{n}=http://{at}:2380" for n, at in enumerate(self.hosts))
        argv = [
            os.path.join(UNPACKED, "usr/bin/etcd"), "--name", f"m{number}",
            "--data-dir", os.path.join(self._pair.directory, f"etcd-{number}"),
            "--listen-client-urls", f"http://{host}:{PORT}",
            "--advertise-client-urls", f"http://{host}:{PORT}",
            "--listen-peer-urls", f"http://{host}:2380",
            "--initial-advertise-peer-urls", f"http://{host}:2380",
            "--initial-cluster", cluster, "--initial-cluster-token", "rig",
            "--heartbeat-interval", str(ELECTION_MS // 10), "--election-timeout", str(ELECTION_MS),
            "--logger", "zap", "--log-level", "warn",
        ]  # fmt: skip
        return self._pair.start(f"etcd-{number}-{self._starts}", SPACE, argv)

    def kill(self, number: int) -> None:
        """kill -9."""
        self.members[number].kill()

    def freeze(self, number: int) -> None:
        self.members[number].send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        self.members[number].send_signal(signal.SIGCONT)

    def restart(self, number: int) -> None:
        """With the data that it has."""
        self.members[number] = self._start(number)

    def leader(self) -> int | None:
        """None while there is none that answers."""
        for number in range(len(self.hosts)):
            with contextlib.suppress(Broken):
                said = self.ask("/v3/maintenance/status", {}, number)
                if said.get("leader", "0") == said["header"]["member_id"]:
                    return number
        return None

    def wait_leader(self) -> int:
        wait_until(lambda: self.leader() is not None, 20, "etcd has no leader", step=0.1)
        found = self.leader()
        assert found is not None
        return found

    def is_well(self, number: int) -> bool:
        """It answers, and knows a leader."""
        with contextlib.suppress(Broken):
            return self.ask("/v3/maintenance/status", {}, number).get("leader", "0") != "0"
        return False

    # --- what it holds

    def ask(self, path: str, said: dict[str, Any], number: int | None = None) -> dict[str, Any]:
        """The gateway's answer, of one member or of the first that answers. @raise Broken."""
        why = ""
        for host in self.hosts if number is None else [self.hosts[number]]:
            try:
                made = http.client.HTTPConnection(host, PORT, timeout=2)
                made.sock = self._pair.connect(SPACE, host, PORT, 2)
                with contextlib.closing(made):
                    made.request("POST", path, json.dumps(said))
                    answer = made.getresponse()
                    found: dict[str, Any] = json.loads(answer.read())
                if answer.status == 200:
                    return found
                why = f"{answer.status} {found}"
            except (OSError, ValueError, http.client.HTTPException) as fault:
                why = repr(fault)
        raise Broken(f"etcd does not answer {path}: {why}")

    def holder(self) -> str:
        """The node that the key names; "" while nobody holds it."""
        found = self._key()
        return str(json.loads(base64.b64decode(found["value"]))["node"]) if found else ""

    def token(self) -> int:
        """create_revision of the key; 0 while nobody holds it."""
        return int(self._key().get("create_revision", 0))

    def revoke(self) -> None:
        """The owner's lease is revoked, as by etcdctl."""
        self.ask("/v3/lease/revoke", {"ID": self._key()["lease"]})

    def _key(self) -> dict[str, Any]:
        said = self.ask("/v3/kv/range", {"key": base64.b64encode(KEY.encode()).decode()})
        kvs: list[dict[str, Any]] = said.get("kvs", [])
        return kvs[0] if kvs else {}

    # --- the network

    def cut(self, node: str) -> None:
        """Every packet between a node and etcd is dropped; all else goes on."""
        self._pair.inside(node, ["nft", "-f", "-"], text=DROPPED)

    def join(self, node: str) -> None:
        self._pair.inside(node, ["nft", "delete", "table", "inet", "cut"])

    # --- the pair under it

    def configure(self, cluster: str = "", **configure: Any) -> None:
        """Both MTAs with `resource: etcd`, on one spool; the watchdog moves the addresses."""
        lines = [
            f"endpoints: {json.dumps(self.endpoints)}",
            *(f"ttl: {TTL_SECONDS}s", "plumb: true", "interface: eth0"),
            cluster or "grace: 2s",
        ]
        self._pair.configure(resource="etcd", cluster="\n".join(lines), **configure)

    def online(self, owner: str = "a", **configure: Any) -> None:
        """The usual beginning: etcd and both MTAs run, and `owner` greets."""
        pair = self._pair
        self.start()
        self.configure(**configure)
        pair[owner].supervise()
        pair[owner].wait_online()
        pair.owner = owner
        other = pair[pair.other(owner)]
        other.supervise()
        other.wait_answering()

    def watchdog(self, node: str) -> int:
        """The pid of the watchdog of the MTA that runs on a node. @raise Broken: there is none."""
        mta = str(self._pair.process(node).pid)
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().decode("ascii", "replace").split("\0")
                if any(word.endswith("/watchdog.py") for word in words) and mta in words:
                    return int(name)
        raise Broken(f"the MTA of node {node} has no watchdog")
