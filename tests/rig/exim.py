"""A private Exim, run from where the peers were unpacked: it takes mail, and keeps it in its queue.

Law: as with Postfix, nothing of the machine's own is touched; its user lies over /etc/passwd of this
mount namespace alone.
"""

from __future__ import annotations

import os
import re

from tests.rig.ground import (
    PEER,
    PEERS,
    UNPACKED,
    Broken,
    Ground,
    Process,
    peer_environment,
    wait_until,
)
from tests.rig.postfix import USERS, add_users

_CONFIGURATION = """\
primary_hostname = exim.example.net
exim_path = {program}
spool_directory = {directory}/spool
log_file_path = {directory}/%slog
log_selector = +received_recipients +smtp_connection +incoming_port
keep_environment =
local_interfaces = {host}
daemon_smtp_ports = 25
disable_ipv6 = true
host_lookup =
tls_advertise_hosts =
queue_only = true
{settings}
acl_smtp_rcpt = take
acl_smtp_data = take
begin acl
take:
  accept
"""


class Exim:
    """In the peer's namespace, on port 25; `settings` are of its main configuration."""

    def __init__(self, ground: Ground, **settings: str) -> None:
        self._ground = ground
        self.directory = os.path.join(ground.directory, "exim")
        os.makedirs(f"{self.directory}/spool")
        add_users(self.directory)
        owner = USERS["Debian-exim"]
        for path in (self.directory, f"{self.directory}/spool"):
            os.chown(path, owner, owner)
        self._program = os.path.join(UNPACKED, "usr/sbin/exim4")
        if not os.path.exists(self._program):
            with open(os.path.join(PEERS, "exim.missing"), encoding="utf-8") as file:
                raise Broken(f"Exim 4.98 or newer could not be fetched: {file.read()[-300:]}")
        text = _CONFIGURATION.format(
            program=self._program,
            directory=self.directory,
            host=PEER,
            settings="\n".join(f"{key} = {value}" for key, value in settings.items()),
        )
        self._conf = f"{self.directory}/exim.conf"
        with open(self._conf, "w", encoding="ascii") as file:
            file.write(text)
        self.process: Process | None = None

    def start(self) -> Exim:
        argv = [self._program, "-C", self._conf, "-bdf"]
        self.process = self._ground.start("exim", "peer", argv, env=peer_environment())
        wait_until(
            lambda: any(":25 " in line for line in self._ground.sockets("peer", "state", "listening")),
            10, "Exim does not listen",
        )  # fmt: skip
        return self

    def log(self) -> str:
        path = f"{self.directory}/mainlog"
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def taken(self, client: str) -> list[tuple[int, tuple[str, ...]]]:
        """The port of the connection and the recipients of each message that came from there."""
        found = re.findall(
            rf" <= .* \[{re.escape(client)}\]:(\d+) .* for (.*)$", self.log(), re.MULTILINE
        )
        return [(int(port), tuple(recipients.split())) for port, recipients in found]
