"""A private Dovecot, run from where the peers were unpacked: users, and a socket for those who ask.

Law: nothing of the machine's own Dovecot is touched, if there is one. Dovecot looks for its parts at
fixed places below /usr, so the unpacked files are laid over /usr in a mount namespace of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tests.rig.ground import UNPACKED, Ground, Process, wait_until

_CONFIGURATION = """\
base_dir = {run}
state_dir = {run}
log_path = {log}
protocols =
ssl = no
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = daemon
auth_mechanisms = {mechanisms}
disable_plaintext_auth = no
passdb {{
  driver = passwd-file
  args = {users}
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}}
service auth {{
  unix_listener auth-client {{
    mode = 0666
  }}
}}
"""
_OVER_USR = 'mount -t overlay overlay -o ro,lowerdir="$0/usr":/usr /usr && exec "$@"'


class Dovecot:
    """Authenticates and serves no mail. `users` are names and passwords; `socket` is where to ask."""

    def __init__(
        self,
        ground: Ground,
        users: dict[str, str],
        mechanisms: Sequence[str] = ("plain", "login", "scram-sha-256"),
        namespace: str = "node",
    ) -> None:
        self._ground = ground
        self._namespace = namespace
        self.directory = os.path.join(ground.directory, "dovecot")
        run = os.path.join(self.directory, "run")
        self.socket = os.path.join(run, "auth-client")
        self.log_path = os.path.join(self.directory, "dovecot.log")
        os.makedirs(run)
        paths = [os.path.join(self.directory, name) for name in ("users", "dovecot.conf")]
        self._configuration = paths[1]
        texts = (
            "".join(f"{user}:{{PLAIN}}{password}\n" for user, password in users.items()),
            _CONFIGURATION.format(
                run=run, log=self.log_path, mechanisms=" ".join(mechanisms), users=paths[0]
            ),
        )
        for path, text in zip(paths, texts, strict=True):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        self.process: Process | None = None

    def start(self) -> Dovecot:
        if os.path.exists(self.socket):
            os.unlink(self.socket)  # a Dovecot that was stopped leaves it behind
        argv = ["unshare", "-m", "sh", "-c", _OVER_USR, UNPACKED]
        argv += ["/usr/sbin/dovecot", "-F", "-c", self._configuration]
        self.process = self._ground.start("dovecot", self._namespace, argv)
        wait_until(lambda: os.path.exists(self.socket), 10, "Dovecot has no socket")
        return self

    def stop(self) -> None:
        """Its socket stays, and refuses connections."""
        assert self.process is not None
        self.process.stop()

    def log(self) -> str:
        if not os.path.exists(self.log_path):
            return ""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()
