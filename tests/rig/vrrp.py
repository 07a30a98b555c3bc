"""Debian's keepalived on both nodes of a pair, as the files in etc/keepalived configure it.

Law: those very files; replaced are only addresses, the directories (both nodes share one /run here)
and what differs between two nodes (router_id, priority); the probe, which costs time, is left out
where it is not the matter. What systemd would do by the MTA's drop-in
is done by its own lines, at the moments when systemd does it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from typing import Any

from tests.rig.ground import (
    ROOT,
    UNPACKED,
    VENV_BIN,
    VIRTUAL,
    VIRTUAL6,
    Process,
    expect,
    peer_environment,
)
from tests.rig.pair import Pair, Supervised

SHIPPED = os.path.join(ROOT, "etc", "keepalived")
PRIORITIES = {"a": 150, "b": 100}
HERE = "/run/mta-keepalived"
"""Where the shipped files and the defaults meet; a directory of each node's own in the rig."""
CLUSTER = f"""\
instance: MAIL
fifo: {HERE}/fifo
pidfile: {HERE}/keepalived.pid
state-file: {HERE}/role
grace: 2s
takeover-after: 3s
"""
LOOK_SECONDS = 0.005
"""systemd hears of a process's end at once (SIGCHLD)."""


class Vrrp:
    """keepalived of the pair's nodes. `online` is the usual beginning; `start` is what systemd's unit
    does, and nothing starts it again. The shipped files have keepalived watch the MTA twice:
    `is_tracked` by its end, `is_probed` by `mta probe` every 2 s.
    """

    def __init__(self, pair: Pair, *, is_tracked: bool = True, is_probed: bool = False) -> None:
        self._pair = pair
        self._running: dict[str, Process] = {}
        self._starts = 0
        self._is_tracked, self._is_probed = is_tracked, is_probed
        for name in pair.nodes:
            shutil.rmtree(self.directory(name), ignore_errors=True)  # of an earlier scenario
            os.makedirs(self.directory(name))
            self.write(name)
            if is_tracked:
                Unit(self, pair[name], name).start()

    def directory(self, name: str) -> str:
        return f"/run/{name}.keepalived"  # the runner's own /run: root's, all the way

    def text(self, name: str, file: str) -> str:
        """A shipped file, with this node's directory."""
        with open(os.path.join(SHIPPED, file), encoding="utf-8") as opened:
            return opened.read().replace(f"{HERE}/", f"{self.directory(name)}/")

    def write(self, name: str, priority: int = 0) -> None:
        """keepalived.conf and its scripts."""
        there = self.directory(name)
        script = os.path.join(there, "mta-notify.sh")
        shutil.copy(os.path.join(SHIPPED, "notify.sh"), script)
        os.chown(script, 0, 0)
        os.chmod(script, 0o755)
        # keepalived runs as root only what root alone can write, all the way up.
        command = os.path.join(there, "mta")
        with open(command, "w", encoding="utf-8") as file:
            socket = self._pair[name].control
            file.write(f'#!/bin/sh\nexec {VENV_BIN}/mta --socket {socket} "$@"\n')
        os.chmod(command, 0o755)
        text = self.text(name, "keepalived.conf")
        probe = "track_script {\n        mta_serves\n    }"
        expect(probe in text, "etc/keepalived/keepalived.conf lacks the track_script")
        if not self._is_probed:
            text = text.replace(probe, "")
        for old, new in (
            ("router_id node-a", f"router_id node-{name}"),
            ("priority 150", f"priority {priority or PRIORITIES[name]}"),
            ("192.0.2.10/32", f"{VIRTUAL}/32"),
            ("2001:db8::10/128", f"{VIRTUAL6}/128"),
            ("/etc/keepalived/", f"{there}/"),
            ("/opt/mta/bin/mta ", f"{command} "),
        ):
            expect(old in text, f"etc/keepalived/keepalived.conf lacks {old}")
            text = text.replace(old, new)
        with open(os.path.join(there, "keepalived.conf"), "w", encoding="utf-8") as file:
            file.write(text)

    def make_files(self, name: str) -> None:
        """What etc/keepalived/tmpfiles.conf says, but for owners: all is root's here."""
        for line in self.text(name, "tmpfiles.conf").splitlines():
            kind, path, mode, *rest = [*line.split(maxsplit=6), *("",) * 3]
            if kind == "p" and not os.path.exists(path):
                os.mkfifo(path, int(mode, 8))
            elif kind == "f":
                # Without tracking it says for ever that the MTA is there.
                with open(path, "w", encoding="ascii") as file:
                    file.write(rest[3] if self._is_tracked else "0")

    def start(self, name: str) -> Process:
        """As systemd does: when a former one has ended, for that takes the pid file away."""
        there = self.directory(name)
        if name in self._running:
            self._running[name].popen.wait(10)
        for left in ("keepalived.pid", "vrrp.pid"):
            if os.path.exists(os.path.join(there, left)):
                os.unlink(os.path.join(there, left))
        self._starts += 1
        argv = [
            os.path.join(UNPACKED, "usr/sbin/keepalived"), "-n", "-l", "-D", "-P",
            "-f", os.path.join(there, "keepalived.conf"),
            "-p", os.path.join(there, "keepalived.pid"), "-r", os.path.join(there, "vrrp.pid"),
        ]  # fmt: skip
        started = self._pair.start(
            f"keepalived-{name}-{self._starts}", name, argv, env=peer_environment()
        )
        self._running[name] = started
        return started

    # --- its processes

    def parent(self, name: str) -> Process:
        return self._running[name]

    def children(self, name: str) -> list[int]:
        pid = self.parent(name).pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]

    def signal_all(self, name: str, number: int) -> None:
        """The parent first, so that it respawns nothing."""
        self.parent(name).send_signal(number)
        for child in self.children(name):
            os.kill(child, number)

    def kill_all(self, name: str) -> None:
        """kill -9, as the out-of-memory killer or an operator would: the addresses stay."""
        children = self.children(name)
        self.parent(name).send_signal(signal.SIGSTOP)
        for child in children:
            os.kill(child, signal.SIGKILL)
        self.parent(name).kill()

    def terminate(self, name: str) -> None:
        """systemctl stop keepalived; returns when it has begun."""
        self.parent(name).send_signal(signal.SIGTERM)

    def change_priority(self, name: str, priority: int) -> None:
        """keepalived.conf is edited, and systemctl reload keepalived."""
        self.write(name, priority)
        self.parent(name).send_signal(signal.SIGHUP)

    # --- the pair under it

    def configure(self, **configure: Any) -> None:
        """Both MTAs with `resource: keepalived`, on one spool."""
        pair = self._pair
        pair.configure(resource="keepalived", cluster=CLUSTER, **configure)
        for name, mta in pair.mtas.items():
            with open(mta.configuration, encoding="utf-8") as file:
                text = file.read()
            with open(mta.configuration, "w", encoding="utf-8") as file:
                file.write(text.replace(f"{HERE}/", f"{self.directory(name)}/"))

    def online(self, owner: str = "a", **configure: Any) -> None:
        """The usual beginning: keepalived and MTA on both, `owner` owns and greets."""
        pair = self._pair
        self.configure(**configure)
        for name in (owner, pair.other(owner)):
            self.make_files(name)
            pair[name].supervise()
            self.start(name)
            pair[name].wait_answering()
            if name == owner:
                pair[owner].wait_online()
        pair.owner = owner

    def holders(self) -> list[str]:
        return [name for name in self._pair.nodes if self._pair.has_address(name)]


class Unit:
    """What etc/keepalived/mta.service.conf has systemd do when a node's MTA is ready, and when it ended
    by whatever. Ready is here that it answers on its control socket as owner or standby.
    """

    def __init__(self, vrrp: Vrrp, mta: Supervised, name: str) -> None:
        text = vrrp.text(name, "mta.service.conf")
        self._ready = _commands(text, "ExecStartPost=+")
        self._ended = _commands(text, "ExecStopPost=+")
        self._mta = mta
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _watch(self) -> None:
        known: Process | None = None
        while not self._mta.is_over:
            process = self._mta.mta
            if known is not None and not known.is_running:
                _run(self._ended)
                known = None
            elif self._is_news(process, known) and self._mta.state() in ("standby", "online"):
                _run(self._ready)
                known = process
            time.sleep(LOOK_SECONDS)

    @staticmethod
    def _is_news(process: Process | None, known: Process | None) -> bool:
        return process is not None and process is not known and process.is_running


def _commands(unit: str, key: str) -> list[list[str]]:
    found = [shlex.split(line[len(key) :]) for line in unit.splitlines() if line.startswith(key)]
    expect(found, f"etc/keepalived/mta.service.conf has no {key}")
    return found


def _run(commands: list[list[str]]) -> None:
    for argv in commands:
        subprocess.run(argv, check=True)
