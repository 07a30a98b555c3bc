"""Really signed zones, and who validates them: ldns signs, nsd serves, unbound asks, as Debian has
them; and between unbound and the MTA, where a scenario wants it, somebody who forges.

The zones lie in the peer's namespace. unbound runs on the node, on loopback, and trusts the keys of
those zones that were signed; above them there is nothing, so what was not signed is not validated.
"""

from __future__ import annotations

import glob
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping

from tests.rig.ground import (
    PEER,
    UNPACKED,
    Ground,
    expect,
    peer_environment,
    wait_until,
)

VALIDATOR = "127.0.0.1"
HEAD = "$ORIGIN {0}.\n$TTL 60\n@ SOA ns.{0}. root.{0}. 1 60 60 60 60\n@ NS ns.{0}.\nns A {1}\n"


class Zones:
    """nsd in the peer's namespace with `signed` and `plain` zones: name to records, as text.

    `spoil` is done to a signed zone's text after it was signed.
    """

    def __init__(
        self,
        ground: Ground,
        signed: Mapping[str, str],
        plain: Mapping[str, str],
        spoil: Callable[[str, str], str] = lambda name, text: text,
    ) -> None:
        self._ground = ground
        self._directory = os.path.join(ground.directory, "zones")
        os.makedirs(self._directory)
        self.anchors: list[str] = []
        """Files that hold the keys to be trusted."""
        zones = ""
        for name, records in (*signed.items(), *plain.items()):
            path = os.path.join(self._directory, name)
            with open(path, "w", encoding="ascii") as file:
                file.write(HEAD.format(name, PEER) + records)
            if name in signed:
                path = self._sign(name, path)
                with open(path, encoding="ascii") as file:
                    text = file.read()
                changed = spoil(name, text)
                with open(path, "w", encoding="ascii") as file:
                    file.write(changed)
            zones += f'zone:\n name: "{name}"\n zonefile: "{path}"\n'
        self.names = (*signed, *plain)
        self._serve(zones)

    def _sign(self, name: str, path: str) -> str:
        """The path of the signed zone; the key is in `anchors` from here on."""
        tools = os.path.join(UNPACKED, "usr/bin")
        # ldns-keygen writes into its working directory and prints the name.
        script = (
            f'cd "{self._directory}" && exec "{tools}/ldns-keygen" -k -a ECDSAP256SHA256 {name}'
        )
        made = self._ground.inside("peer", ["sh", "-c", script], env=peer_environment())
        key = os.path.join(self._directory, made.stdout.strip())
        argv = [os.path.join(tools, "ldns-signzone"), "-f", f"{path}.signed", path, key]
        self._ground.inside("peer", argv, env=peer_environment())
        self.anchors += glob.glob(f"{key}.key")
        return f"{path}.signed"

    def _serve(self, zones: str) -> None:
        where = self._directory
        configuration = os.path.join(where, "nsd.conf")
        with open(configuration, "w", encoding="ascii") as file:
            file.write(
                f'server:\n ip-address: {PEER}\n username: ""\n chroot: ""\n zonesdir: "{where}"\n'
                f' database: ""\n pidfile: ""\n zonelistfile: "{where}/list"\n'
                f' xfrdfile: "{where}/xfrd"\n xfrdir: "{where}"\n server-count: 1\n'
                f"remote-control:\n control-enable: no\n{zones}"
            )
        argv = [os.path.join(UNPACKED, "usr/sbin/nsd"), "-d", "-c", configuration]
        process = self._ground.start("nsd", "peer", argv, env=peer_environment())
        wait_until(
            lambda: process.is_running and self._ground.listens("peer", PEER, 53),
            5,
            "nsd does not listen",
        )


class Validator:
    """unbound on the loopback of a namespace, which asks `zones` and trusts their keys."""

    def __init__(
        self, ground: Ground, zones: Zones, port: int = 53, namespace: str = "node"
    ) -> None:
        where = os.path.join(ground.directory, f"unbound-{namespace}")
        os.makedirs(where)
        anchors = "".join(f' trust-anchor-file: "{path}"\n' for path in zones.anchors)
        stubs = "".join(
            f'stub-zone:\n name: "{name}"\n stub-addr: {PEER}\n' for name in zones.names
        )
        configuration = os.path.join(where, "unbound.conf")
        with open(configuration, "w", encoding="ascii") as file:
            file.write(
                f"server:\n interface: {VALIDATOR}@{port}\n do-daemonize: no\n use-syslog: no\n"
                f' chroot: ""\n username: ""\n directory: "{where}"\n pidfile: ""\n'
                ' module-config: "validator iterator"\n val-log-level: 2\n num-threads: 1\n'
                f"{anchors}{stubs}remote-control:\n control-enable: no\n"
            )
        argv = [os.path.join(UNPACKED, "usr/sbin/unbound"), "-d", "-c", configuration]
        self.process = ground.start(f"unbound-{namespace}", namespace, argv, env=peer_environment())
        wait_until(
            lambda: self.process.is_running and ground.listens(namespace, VALIDATOR, port),
            10,
            "unbound does not listen",
        )


class Forger:
    """Sits at port 53 of the node's loopback in front of the validator. Before it passes on what
    that says, an answer of its own making comes from another address of loopback, and one from the
    right address with a wrong port.
    """

    def __init__(self, ground: Ground, port: int, forge: Callable[[bytes], bytes]) -> None:
        """`forge` makes the answer of a question."""
        self._port = port
        self._forge = forge
        self.forged = 0
        self._front = self._bound(ground, VALIDATOR, 53)
        self._others = (self._bound(ground, "127.0.0.2", 53), self._bound(ground, VALIDATOR, 5454))
        self._behind = self._bound(ground, VALIDATOR, 0)
        self._behind.settimeout(5)
        threading.Thread(target=self._serve, daemon=True).start()

    def _bound(self, ground: Ground, host: str, port: int) -> socket.socket:
        made = ground.raw_socket("node", socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
        return made

    def _serve(self) -> None:
        while True:
            try:
                question, client = self._front.recvfrom(4096)
                if not question:
                    return  # the scenario has ended
                for other in self._others:
                    other.sendto(self._forge(question), client)
                    self.forged += 1
                self._behind.sendto(question, (VALIDATOR, self._port))
                self._front.sendto(self._behind.recv(65536), client)
            except OSError:
                if self._front.fileno() < 0:
                    return


def spoiled(text: str, base: str) -> str:
    """The signed zone with another octet in the TLSA record of `base`: its signature is wrong."""
    changed, count = re.subn(
        rf"(?m)^(_25\._tcp\.{re.escape(base)}\.\s+\d+\s+IN\s+TLSA\s+\d \d \d )(..)",
        lambda found: found[1] + ("00" if found[2] != "00" else "01"),
        text,
    )
    expect(count == 1, f"the zone has {count} TLSA records of {base}")
    return changed
