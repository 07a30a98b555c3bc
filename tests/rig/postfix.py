"""A private Postfix, run from where the peers were unpacked: a queue and a configuration of its own.

Law: nothing of the machine's own Postfix is touched, if there is one: the names that it insists on
are laid over /etc/passwd and /etc/group of this mount namespace alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess

from mta.testing.certificates import Pair
from tests.rig.ground import (
    PEER,
    UNPACKED,
    Ground,
    Process,
    expect,
    peer_environment,
    wait_until,
)

USERS = {"postfix": 64001, "postdrop": 64002, "Debian-exim": 64003}
"""Names that Postfix and Exim insist on, and numbers that no file outside bears. All at once: what was
laid over the files goes with its scenario, and nothing can be laid over that.
"""
_PRIVATE = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("private", "saved", "trace"),
)
_SERVICES = (
    ("pickup", "n", "60", "1", "pickup"),
    ("cleanup", "n", "-", "0", "cleanup"),
    ("qmgr", "n", "300", "1", "qmgr"),
    ("tlsmgr", "-", "1000?", "1", "tlsmgr"),
    ("rewrite", "-", "-", "-", "trivial-rewrite"),
    ("bounce", "-", "-", "0", "bounce"),
    ("defer", "-", "-", "0", "bounce"),
    ("trace", "-", "-", "0", "bounce"),
    ("verify", "-", "-", "1", "verify"),
    ("flush", "n", "1000?", "0", "flush"),
    ("proxymap", "-", "-", "-", "proxymap"),
    ("smtp", "-", "-", "-", "smtp"),
    ("relay", "-", "-", "-", "smtp"),
    ("showq", "n", "-", "-", "showq"),
    ("error", "-", "-", "-", "error"),
    ("retry", "-", "-", "-", "error"),
    ("discard", "-", "-", "-", "discard"),
    ("anvil", "-", "-", "1", "anvil"),
    ("scache", "-", "-", "1", "scache"),
    ("tlsproxy", "-", "-", "0", "tlsproxy"),
)
"""name, private, wakeup, process limit, program: Debian's master.cf without chroot and filters."""


def add_users(where: str) -> None:
    """These users and groups, laid over the two files in our mount namespace only; once."""
    os.makedirs(where, exist_ok=True)
    for name, line in (
        ("passwd", "{0}:x:{1}:{1}::/nonexistent:/usr/sbin/nologin\n"),
        ("group", "{0}:x:{1}:\n"),
    ):
        with open(f"/etc/{name}", encoding="utf-8") as file:
            text = file.read()
        lacking = [user for user in USERS if f"\n{user}:" not in text]
        if not lacking:
            continue
        text += "".join(line.format(user, USERS[user]) for user in lacking)
        path = os.path.join(where, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.run(["mount", "--bind", path, f"/etc/{name}"], check=True)


def lay_out(directory: str, listen: str, **settings: str) -> list[str]:
    """Queue, main.cf and master.cf below `directory`; answers the command that runs it. `settings`
    are of main.cf; `listen` is HOST:PORT.
    """
    conf, queue, data = (os.path.join(directory, name) for name in ("conf", "queue", "data"))
    user, group = USERS["postfix"], USERS["postdrop"]
    for path, mode, owner, owning in (
        (directory, 0o755, 0, 0),
        (conf, 0o755, 0, 0),
        (queue, 0o755, 0, 0),
        (data, 0o700, user, user),
        *((f"{queue}/{name}", 0o700, user, 0) for name in _PRIVATE),
        (f"{queue}/public", 0o710, user, group),
        (f"{queue}/maildrop", 0o730, user, group),
        (f"{queue}/pid", 0o755, 0, 0),
    ):
        os.makedirs(path, exist_ok=True)
        os.chown(path, owner, owning)
        os.chmod(path, mode)
    programs = os.path.join(UNPACKED, "usr/lib/postfix/sbin")
    whole = {
        "compatibility_level": "3.6",
        "queue_directory": queue,
        "data_directory": data,
        "daemon_directory": programs,
        "command_directory": os.path.join(UNPACKED, "usr/sbin"),
        "shlib_directory": os.path.join(UNPACKED, "usr/lib/postfix"),
        "meta_directory": os.path.join(UNPACKED, "etc/postfix"),
        "import_environment": "MAIL_CONFIG MAIL_LOGTAG TZ LANG=C LD_LIBRARY_PATH",
        "mydestination": "",
        "alias_maps": "",
        "local_recipient_maps": "",
        "smtpd_relay_restrictions": "permit_mynetworks, reject",
        "disable_dns_lookups": "yes",
        "smtp_host_lookup": "native",
        "smtpd_peername_lookup": "no",
        **settings,
    }
    with open(f"{conf}/main.cf", "w", encoding="ascii") as file:
        file.writelines(f"{key} = {value}\n" for key, value in whole.items())
    with open(f"{conf}/master.cf", "w", encoding="ascii") as file:
        file.write(f"{listen} inet n - n - - smtpd\n")
        file.writelines(
            f"{name} unix {private} - n {wakeup} {limit} {program}\n"
            for name, private, wakeup, limit, program in _SERVICES
        )
        file.write("postlog unix-dgram n - n - 1 postlogd\n")
    return [os.path.join(programs, "master"), "-d", "-c", conf]


class Postfix:
    """In the peer's namespace; its log is maillog_file's."""

    def __init__(self, ground: Ground, listen: str, **settings: str) -> None:
        self._ground = ground
        self._port = int(listen.rpartition(":")[2])
        self.directory = os.path.join(ground.directory, "postfix")
        add_users(self.directory)
        self.log_path = os.path.join(self.directory, "mail.log")
        self._argv = lay_out(
            self.directory,
            listen,
            maillog_file=self.log_path,
            maillog_file_prefixes=self.directory,
            **settings,
        )
        self.process: Process | None = None

    @classmethod
    def discarding(cls, ground: Ground, name: str, pair: Pair, **settings: str) -> Postfix:
        """It takes what comes to port 25, for anybody, and throws it away; with that certificate."""
        return cls(
            ground,
            f"{PEER}:25",
            myhostname=name,
            inet_interfaces=PEER,
            inet_protocols="ipv4",
            mynetworks="10.9.0.0/24",
            transport_maps="static:discard:",
            smtpd_tls_cert_file=pair.chain,
            smtpd_tls_key_file=pair.key,
            smtpd_tls_security_level="may",
            smtpd_tls_loglevel="1",
            **settings,
        )

    def start(self) -> Postfix:
        self.process = self._ground.start("postfix", "peer", self._argv, env=peer_environment())
        wait_until(
            lambda: any(
                f":{self._port} " in line
                for line in self._ground.sockets("peer", "state", "listening")
            ),
            10,
            "Postfix does not listen",
        )
        return self

    def log(self) -> str:
        if not os.path.exists(self.log_path):
            return ""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait_log(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """Until its log has a line like that."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.search(pattern, self.log())
            if match:
                found.append(match)
            return bool(match)

        wait_until(there, seconds, f"Postfix never logged {pattern!r}", step=0.1)
        return found[0]


class Kept:
    """A message in the queue of a `Keeper`, as postcat shows it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def records(self, name: str) -> list[str]:
        """What the envelope records of that name say, in their order."""
        return re.findall(rf"^{name}: (.*)$", self.text, re.MULTILINE)


class Keeper(Postfix):
    """Whatever it takes stays in its queue for good. It listens on port 25 with all that it offers,
    and on 2525 without DSN and SMTPUTF8.
    """

    def __init__(self, ground: Ground) -> None:
        super().__init__(
            ground,
            f"{PEER}:25",
            myhostname="postfix.example.net",
            inet_interfaces=PEER,
            inet_protocols="ipv4",
            mynetworks="10.9.0.0/24",
            smtpd_tls_security_level="none",
            defer_transports="smtp",
        )
        self._conf = self._argv[-1]
        with open(f"{self._conf}/master.cf", "a", encoding="ascii") as file:
            less = "-o smtpd_discard_ehlo_keywords=dsn,smtputf8"
            file.write(f"{PEER}:2525 inet n - n - - smtpd {less}\n")

    def _run(self, program: str, *arguments: str) -> str:
        argv = [os.path.join(UNPACKED, "usr/sbin", program), "-c", self._conf, *arguments]
        return self._ground.inside("peer", argv, env=peer_environment()).stdout

    def kept(self) -> list[Kept]:
        """Every message that it has looked at and laid aside: until then its file is in motion."""
        listed = map(json.loads, self._run("postqueue", "-j").splitlines())
        found = [one["queue_id"] for one in listed if one["queue_name"] == "deferred"]
        return [Kept(self._run("postcat", "-q", name)) for name in found]

    def wait(self, count: int, seconds: float = 15) -> list[Kept]:
        kept: list[Kept] = []

        def has_come() -> bool:
            kept[:] = self.kept()
            return len(kept) >= count

        wait_until(has_come, seconds, f"fewer than {count} messages came to Postfix")
        expect(len(kept) == count, f"{len(kept)} messages came to Postfix, not {count}")
        return kept
