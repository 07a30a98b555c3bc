"""Debian's opendkim as the filter: what it says of a message stands in it, and nothing passes without it."""

from __future__ import annotations

import os
import time

import dkim
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.rig.ground import UNPACKED, VIRTUAL, Process, expect, peer_environment, wait_until
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Client, Ledger, Sink, swaks

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
"""What every spam filter takes for spam (https://spamassassin.apache.org/gtube/)."""
DOMAIN, SELECTOR = "example.net", "rig"


def scenario_opendkim_signs(rig: Rig) -> None:
    """opendkim signs what we relay, and finds its own signature good when the message comes again."""
    filtered = OpenDkim(rig)
    sink = Sink(rig).start()
    filtered.start()
    rig.online(extra=filtered.policy)
    client = Client(rig)
    client.hello()
    for number in range(3):
        answer = client.send(f"signed-{number}", size=200_000 if number == 1 else 2000)
        expect(answer.startswith(b"250"), f"we say {answer!r}")
    client.close()
    dotted = rig.directory + "/dotted"
    with open(dotted, "w", encoding="ascii") as file:
        file.write(
            f"From: <dots@{DOMAIN}>\nTo: <b@example.com>\nSubject: dots\n\n.one\n..two\n.\n\n\n"
        )
    said = swaks(
        rig,
        "--server",
        VIRTUAL,
        "--to",
        "b@example.com",
        "--from",
        f"dots@{DOMAIN}",
        "--data",
        f"@{dotted}",
    )
    expect("250 2.0.0" in said, f"swaks heard {said[-600:]!r}")
    sink.wait(4)
    for message in sink.messages():
        signature = message.header("DKIM-Signature")
        expect(f"d={DOMAIN}" in signature, f"no signature in {message.text[:600]!r}")
        expect(filtered.verifies(message.text), f"nobody can verify {message.text[:900]!r}")
    # The same message comes to a filter that verifies: its word stands on top, and no other's below.
    verifier = OpenDkim(rig, name="verifier", mode="v", key=filtered)
    verifier.start()
    rig.configure(extra=verifier.policy)
    rig.process().send_signal(1)
    rig.wait_log("policies and queue reloaded")
    again = max(sink.messages(), key=lambda m: m.header("Subject") == "signed-0")
    path = rig.directory + "/again"
    with open(path, "w", encoding="ascii", newline="") as file:
        file.write(f"Authentication-Results: {NETWORK_NAME}; dkim=pass header.d=forged.example\n")
        file.write(_without_top(again.text))
    swaks(
        rig,
        "--server",
        VIRTUAL,
        "--to",
        "b@example.com",
        "--from",
        f"x@{DOMAIN}",
        "--data",
        f"@{path}",
    )
    sink.wait(5)
    said = [m.header("Authentication-Results") for m in sink.messages()]
    expect(any("dkim=pass" in one for one in said), f"opendkim says {said!r}")
    forged = [m for m in sink.messages() if "forged.example" in m.text]
    expect(not forged, "a forged Authentication-Results was left in")
    expect("mta/milter[" not in rig.log(), "the log complains about the filter")


def scenario_opendkim_killed(rig: Rig) -> None:
    """opendkim is killed under load and comes back: mail waits with its clients, nothing is lost or
    passes unsigned, and the log has two lines of it.
    """
    filtered = OpenDkim(rig)
    sink = Sink(rig).start()
    filtered.start()
    rig.online(extra=filtered.policy)
    ledger = Ledger(rig, sessions=4).start()
    wait_until(lambda: len(ledger.promised) > 40, 30, "hardly any message was taken")
    filtered.kill()
    wait_until(
        lambda: sum(ledger.refused.values()) > 20, 30, "mail is not refused without the filter"
    )
    during = len(ledger.promised)
    time.sleep(2)
    taken = len(ledger.promised) - during
    expect(not taken, f"{taken} messages were taken without the filter")
    filtered.start()
    begun = time.monotonic()
    wait_until(lambda: len(ledger.promised) > during + 40, 30, "mail does not flow again")
    rig.note(f"40 messages were taken {time.monotonic() - begun:.2f} s after opendkim was back")
    ledger.stop()
    arrived = ledger.settle(sink, 30)
    doubled = [name for name, count in arrived.items() if count > 1]
    expect(not doubled, f"{len(doubled)} messages came twice: {doubled[:3]}")
    foreign = {text for text in ledger.refused if not text.startswith("451 4.7.1")}
    expect(not foreign, f"clients heard {sorted(foreign)[:3]}")
    unsigned = [m for m in sink.messages() if not m.header("DKIM-Signature")]
    expect(not unsigned, f"{len(unsigned)} messages passed unsigned")
    lines = [line for line in rig.log().splitlines() if "/milter[" in line]
    expect(len(lines) == 2, f"the log has {len(lines)} lines of one outage: {lines[:4]}")
    expect("mail is answered 451" in lines[0] and "answers again" in lines[1], f"it says {lines}")
    rig.note(
        f"{len(ledger.promised)} messages promised and arrived, {sum(ledger.refused.values())} refused with 451"
    )


def scenario_opendkim_idle(rig: Rig) -> None:
    """No connection to the filter outlives its client, nor the tenure."""
    filtered = OpenDkim(rig)
    Sink(rig).start()
    filtered.start()
    rig.online(extra=filtered.policy)
    clients = [Client(rig) for _ in range(5)]
    for client in clients:
        client.hello()
    wait_until(
        lambda: filtered.connections() == 5,
        5,
        f"{filtered.connections()} connections for 5 clients",
    )
    for client in clients[:3]:
        client.say(b"QUIT")
    for client in clients[:3]:
        client.close()
    wait_until(lambda: filtered.connections() == 2, 5, "a connection outlived its client")
    clients[3].say(b"MAIL FROM:<a@example.net>")
    rig.remove_virtual()
    wait_until(lambda: filtered.connections() == 0, 15, "a connection outlived the tenure")


def scenario_rspamd_judges(rig: Rig) -> None:
    """rspamd takes what is clean, refuses what it knows for spam, and tags what it doubts, whatever tag was
    forged.
    """
    sink = Sink(rig).start()
    socket = rspamd(rig)
    rig.online(extra=f"policies: [{{policy: milter, socket: 'unix:{socket}'}}]")
    client = Client(rig)
    client.hello()
    answer = client.send("clean", size=300_000)
    expect(answer.startswith(b"250"), f"a clean message hears {answer!r}")
    sink.wait(1)
    said = swaks(rig, "--server", VIRTUAL, "--to", "b@example.com", "--body", GTUBE, check=False)
    expect("554 5.7.1" in said, f"spam hears {said[-500:]!r}")
    tagged = GTUBE.replace("XJS", "YJS")
    said = swaks(
        rig, "--server", VIRTUAL, "--to", "b@example.com", "--body", tagged, "--h-X-Spam", "No"
    )
    expect("250 2.0.0" in said, f"doubtful mail hears {said[-500:]!r}")
    sink.wait(2)
    fields = [m.text.count("\nX-Spam: ") for m in sink.messages() if tagged in m.text]
    expect(fields == [1], f"X-Spam stands {fields} times in what rspamd tagged")
    [found] = [m for m in sink.messages() if tagged in m.text]
    expect(found.header("X-Spam") == "Yes", f"rspamd's tag is {found.header('X-Spam')!r}")
    lines = [line for line in rig.log().splitlines() if "mta/milter[" in line]
    expect(not lines, f"the log says {lines}")


def rspamd(rig: Rig) -> str:
    """rspamd's proxy from where it was unpacked, with its scanner in it and no rules; its socket."""
    share = os.path.join(UNPACKED, "usr/share/rspamd")
    home = os.path.join(rig.directory, "rspamd")
    os.makedirs(home)
    socket = os.path.join(home, "milter.sock")
    settings = os.path.join(home, "rspamd.conf")
    with open(settings, "w", encoding="ascii") as file:
        file.write(
            f'options {{ filters = ""; pidfile = "{home}/pid"; tempdir = "{home}"; hs_cache_dir = "{home}";'
            f' url_tld = "{share}/effective_tld_names.dat"; enable_test_patterns = true;'
            ' dns { nameserver = ["127.0.0.1:53:1"]; timeout = 0.1s; retransmits = 1; } }\n'
            'logging { type = "console"; level = "info"; }\n'
            "actions { reject = 15; add_header = 6; }\n"
            f'worker "rspamd_proxy" {{ bind_socket = "{socket} mode=0666"; milter = yes; count = 1;'
            ' timeout = 20s; upstream "local" { self_scan = yes; default = yes; } }\n'
        )
    variables = {
        **dict.fromkeys(("DBDIR", "RUNDIR", "CONFDIR"), home),
        "SHAREDIR": share, "LUALIBDIR": f"{share}/lualib", "RULESDIR": f"{share}/rules", "PLUGINSDIR": f"{share}/plugins",
    }  # fmt: skip
    environment = peer_environment()
    environment["LD_LIBRARY_PATH"] += ":" + os.path.join(UNPACKED, "usr/lib/rspamd")
    environment["LUA_PATH"] = f"{share}/lualib/?.lua;{share}/lualib/?/init.lua"
    program = os.path.join(UNPACKED, "usr/bin/rspamd")
    argv = [program, "-f", "-i", "-c", settings, *(f"--var={k}={v}" for k, v in variables.items())]
    process = rig.start("rspamd", "node", argv, env=environment)

    def listens() -> bool:
        expect(process.is_running, f"rspamd ended: {process.log()[-400:]}")
        return os.path.exists(socket)

    wait_until(listens, 30, "rspamd does not listen")
    return socket


class OpenDkim:
    """opendkim from where it was unpacked, on a UNIX socket, with a key that needs no name server."""

    def __init__(
        self, rig: Rig, name: str = "opendkim", mode: str = "s", key: OpenDkim | None = None
    ) -> None:
        self._rig = rig
        self._name, self._mode = name, mode
        self._starts = 0
        self.process: Process | None = None
        self.socket = os.path.join(rig.directory, f"{name}.sock")
        self._private = rig.directory + "/key.pem" if key is None else key._private
        self._public = rig.directory + "/keys" if key is None else key._public
        if key is None:
            made = rsa.generate_private_key(65537, 2048)
            with open(os.open(self._private, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
                file.write(
                    made.private_bytes(
                        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
                    )
                )
            public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            self._record = "v=DKIM1; k=rsa; p=" + "".join(public.decode().splitlines()[1:-1])
            with open(self._public, "w", encoding="ascii") as file:
                file.write(f"{SELECTOR}._domainkey.{DOMAIN} {self._record}\n")
        else:
            self._record = key._record
        self._settings = os.path.join(rig.directory, f"{name}.conf")
        with open(self._settings, "w", encoding="ascii") as file:
            file.write(
                f"Socket local:{self.socket}\nAuthservID {NETWORK_NAME}\nMode {mode}\nDomain {DOMAIN}\nSelector {SELECTOR}\n"
                f"KeyFile {self._private}\nBackground no\nSyslog no\n"
                f"InternalHosts csl:10.9.0.0/24,fd09::/64\nRequireSafeKeys no\nTestPublicKeys {self._public}\n"
                "Canonicalization simple/simple\n" + ("AlwaysAddARHeader yes\nInternalHosts csl:192.0.2.1\n" if mode == "v" else "")
            )  # fmt: skip

    @property
    def policy(self) -> str:
        return f"policies: [{{policy: milter, socket: 'unix:{self.socket}'}}]"

    def start(self) -> None:
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self._starts += 1
        argv = [os.path.join(UNPACKED, "usr/sbin/opendkim"), "-f", "-x", self._settings]
        process = self._rig.start(
            f"{self._name}{self._starts}", "node", argv, env=peer_environment()
        )
        self.process = process

        def listens() -> bool:
            expect(process.is_running, f"opendkim ended: {process.log()[-400:]}")
            return os.path.exists(self.socket)

        wait_until(listens, 10, "opendkim does not listen")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def connections(self) -> int:
        """Established ones, as the kernel counts them."""
        lines = self._rig.inside("node", ["ss", "-Hxn", "state", "established"]).stdout.splitlines()
        return sum(self.socket in line for line in lines)

    def verifies(self, text: str) -> bool:
        """By another program than the one that signed."""
        octets = _without_top(text).replace("\r\n", "\n").replace("\n", "\r\n").encode()
        record = self._record.encode()
        return bool(dkim.verify(octets, dnsfunc=lambda name, timeout=5: record))


def _without_top(text: str) -> str:
    """The message as smtp-sink got it, without what that put before it."""
    lines = text.splitlines(keepends=True)
    at = next(
        i
        for i, line in enumerate(lines)
        if line.startswith("Received: from") and "by bridgehead" in "".join(lines[i : i + 3])
    )
    return "".join(lines[at:])
