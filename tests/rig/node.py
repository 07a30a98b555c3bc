"""The MTA under test in the node's namespace: its configuration, its process, what it says of itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import textwrap
from typing import Any

from tests.rig.ground import (
    PEER,
    ROOT,
    VENV_BIN,
    VIRTUAL,
    VIRTUAL6,
    Broken,
    Ground,
    Process,
    expect,
    wait_until,
)

NETWORK_NAME = "bridgehead.example.org"


class Mta:
    """One MTA in the namespace of a node. Attributes below are changed before `start_mta`."""

    def __init__(self, ground: Ground, namespace: str, directory: str, name: str) -> None:
        self.ground = ground
        self.namespace = namespace
        self.name = name
        self.home = directory
        self.mta: Process | None = None
        self.configuration = os.path.join(directory, "mta.yaml")
        self.control = os.path.join(directory, "control.sock")
        self.submit = os.path.join(directory, "submit.sock")
        self.spool = os.path.join(ground.directory, "spool")
        self.audit = os.path.join(directory, "audit")
        self.log_prefix = "mta" if namespace == "node" else f"mta-{namespace}-"
        self.starts = 0
        self.wrapper: tuple[str, ...] = ()
        """What twistd is started by, such as setpriv with its options."""

    def configure(
        self,
        *,
        name: str = NETWORK_NAME,
        addresses: str = f'[{VIRTUAL}, "{VIRTUAL6}"]',
        connectors: str = "",
        listener: str = "",
        listeners: str = "",
        queue: str = "",
        resource: str = "interface",
        cluster: str = "",
        extra: str = "",
        spool: str | None = None,
        store: str = "",
        sharing: str = "none",
    ) -> None:
        """Write mta.yaml. Blocks are YAML text, indented here: `listener` more keys of the one on
        port 25, `listeners` more of them.
        """
        if spool is not None:
            self.spool = spool
        hub = f"""
            - name: hub
              kind: smtp
              bridgeheads: ["{PEER}:25"]
              concurrency: 20
              address-spaces: [{{domain: "*", cost: 10}}]
        """

        def block(text: str, depth: int) -> str:
            return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * depth)

        text = f"""\
virtual-server:
  network-name: {name}
  addresses: {addresses}
postmaster: postmaster@example.org
node: {{name: {self.name}, state-directory: {self.home}/state}}
cluster:
  resource: {resource}
{block(cluster or "grace: 10s", 2)}
spool:
  store: log
  directory: {self.spool}
  sharing: {sharing}
{block(store, 2)}
listeners:
  - kind: smtp
    port: 25
    relay-from: [10.9.0.0/24, "fd09::/64"]
{block(listener, 4)}
{block(listeners, 2)}
connectors:
{block(connectors or hub, 2)}
queue:
{block(queue or "destination-retry: 1s", 2)}
admin:
  socket: {self.control}
  submit-socket: {self.submit}
{extra}
"""
        with open(self.configuration, "w", encoding="utf-8") as file:
            file.write(text)

    # --- the process

    def environment(self) -> dict[str, str]:
        """The audit net lies under every MTA of the rig (tests/rig/net)."""
        return {
            **os.environ,
            "MTA_AUDIT_SOCKETS": self.audit,
            "PYTHONPATH": os.path.join(ROOT, "tests", "rig", "net"),
            "PYTHONUNBUFFERED": "1",
        }

    def breaches(self) -> str:
        """What opened a socket past the doors, one line each."""
        if not os.path.exists(self.audit):
            return ""
        with open(self.audit, encoding="utf-8") as file:
            return file.read()

    def start_mta(self, wait: bool = True) -> Process:
        """Start twistd in the foreground; `wait` until its control socket answers."""
        self.starts += 1
        argv = [
            *self.wrapper, os.path.join(VENV_BIN, "twistd"), "-n", "--pidfile=", "mta", "--config", self.configuration,
        ]  # fmt: skip
        self.mta = self.ground.start(
            f"{self.log_prefix}{self.starts}",
            self.namespace,
            argv,
            env=self.environment(),
            cwd=ROOT,
        )
        if wait:
            self.wait_answering()
        return self.mta

    def wait_answering(self, seconds: float = 20) -> None:
        mta = self.process()

        def answers() -> bool:
            expect(mta.is_running, f"the MTA ended with status {mta.popen.returncode}")
            return self.command("status", check=False).returncode == 0

        wait_until(answers, seconds, "the MTA does not answer on its control socket", step=0.1)

    def process(self) -> Process:
        if self.mta is None:
            raise Broken("no MTA was started")
        return self.mta

    def command(self, *arguments: str, check: bool = True) -> Any:
        """`mta ...` in the node's namespace; `check` asks for status 0."""
        argv = [os.path.join(VENV_BIN, "mta"), "--socket", self.control, *arguments]
        return self.ground.inside(self.namespace, argv, check=check, timeout=30)

    def status(self) -> dict[str, Any]:
        found = json.loads(self.command("--json", "status").stdout)
        assert isinstance(found, dict)
        return found

    def status_text(self) -> str:
        said = self.command("status").stdout
        assert isinstance(said, str)
        return said

    def log(self) -> str:
        """What every process of this MTA has written, one after the other."""
        ours = (p for p in self.ground.processes if p.name.startswith(self.log_prefix))
        return "\n".join(process.log() for process in ours)

    def wait_log(self, words: str, seconds: float = 15) -> None:
        wait_until(lambda: words in self.log(), seconds, f"the log never said {words!r}")

    def wait_log_like(self, pattern: str, reason: str, seconds: float = 15) -> None:
        """Until the log has a line like that."""
        wait_until(lambda: re.search(pattern, self.log()) is not None, seconds, reason)

    def wait_online(self, seconds: float = 20, v6: bool = True) -> None:
        """Until both virtual addresses greet with 220."""
        hosts = [VIRTUAL, VIRTUAL6] if v6 else [VIRTUAL]
        for host in hosts:
            wait_until(
                lambda host=host: self._is_greeting(host),  # type: ignore[misc]
                seconds, f"no 220 from {host}",
            )  # fmt: skip

    def _is_greeting(self, host: str) -> bool:
        mta = self.process()
        expect(mta.is_running, f"the MTA ended with status {mta.popen.returncode}")
        return self.greeting(host).startswith(b"220")

    def greeting(
        self,
        host: str,
        port: int = 25,
        namespace: str = "peer",
        connect_seconds: float = 2,
        read_seconds: float = 2,
    ) -> bytes:
        """The first line that a connection gets; b"" when there is none."""
        try:
            with self.ground.connect(namespace, host, port, connect_seconds) as made:
                made.settimeout(read_seconds)
                return made.recv(1000)
        except OSError:
            return b""

    def restart(self, seconds: float = 20) -> Process:
        mta = self.start_mta(wait=False)
        self.wait_online(seconds)
        return mta

    # --- what holds in every scenario

    def check_order(self) -> None:
        """Whatever the scenario was: no net was broken, and nothing unforeseen was raised."""
        breaches = self.breaches()
        expect(not breaches, f"a socket was opened past the doors: {breaches[:400]}")
        log = self.log()
        for words in ("Traceback (most recent call last)", "Unhandled error", " mta/twisted["):
            expect(words not in log, f"the MTA's log holds {words!r}: {_around(log, words)}")

    def end(self) -> None:
        """SIGTERM ends it in order, if it lives."""
        if self.mta is not None and self.mta.is_running:
            status = self.mta.stop(30)
            expect(in_order(status), f"SIGTERM ended {self.name} with status {status}")


class Rig(Ground, Mta):
    """A ground with one MTA on it; both at once, since most scenarios need no more."""

    def __init__(self, directory: str) -> None:
        Ground.__init__(self, directory)
        Mta.__init__(self, self, "node", directory, "node-a")

    def online(self, **configure: Any) -> Process:
        """The usual beginning: configured, both addresses there, started, greeting."""
        self.configure(**configure)
        self.add_virtual()
        mta = self.start_mta(wait=False)
        self.wait_online()
        return mta

    def at_the_end(self) -> None:
        """The MTA lives or ended in order, and broke no net."""
        self.check_order()
        no_wrong_source(self)
        self.process()
        self.end()

    def clear(self) -> None:
        super().clear()
        shutil.rmtree(os.path.join(self.directory, "spool"), ignore_errors=True)


def no_wrong_source(ground: Ground) -> None:
    """The nft counters of every node stand at 0, and their cables saw none."""
    wrong = ground.wrong_packets()
    expect(not wrong, f"mail left from a wrong address: {', '.join(wrong[:4])}")


def in_order(status: int) -> bool:
    """twistd repeats the signal that ended it, after everything was done (systemd calls it clean)."""
    return status in (0, -signal.SIGTERM)


def _around(text: str, words: str) -> str:
    at = max(0, text.find(words))
    return " | ".join(text[at : at + 1500].splitlines()[-12:])
