"""The benchmarks' stand: a private loopback, process trees with CPU and memory, source and sink.

Its law: nothing is installed and nothing of the machine is changed. The driver runs itself again in
namespaces of its own; Postfix and its tools run from where tests/rig/peers.sh unpacked them, with
user names that exist only in there.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.rig import postfix  # noqa: E402
from tests.rig.ground import PEERS, RIG, UNPACKED, VENV_BIN, peer_environment  # noqa: E402

HOST = "127.0.0.1"
NETWORK_NAME = "bench.example.org"
INSIDE = "MTA_BENCH_INSIDE"
TICKS = os.sysconf("SC_CLK_TCK")


def enter() -> None:
    """Return inside namespaces of our own, with loopback up; or end with the reason."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        postfix.add_users(os.path.join(RIG, "bench"))
        return
    if os.geteuid() != 0:
        sys.exit("bench: needs root for namespaces; run: sudo make bench")
    if not shutil.which("unshare") or not shutil.which("ip"):
        sys.exit("bench: run: apt-get install --no-install-recommends iproute2 util-linux")
    if subprocess.run(
        ["sh", os.path.join(ROOT, "tests/rig/peers.sh"), PEERS], check=False
    ).returncode:
        sys.exit("bench: the peers could not be fetched, see above")
    unshare = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
    argv = [*unshare, "--propagation", "private", sys.executable, *sys.argv]
    os.execvpe("unshare", argv, {**os.environ, INSIDE: "1"})


def free_port() -> int:
    with socket.socket() as made:
        made.bind((HOST, 0))
        return int(made.getsockname()[1])


def greets(port: int, host: str = HOST) -> bool:
    try:
        with socket.create_connection((host, port), 1) as made:
            made.settimeout(5)
            if made.recv(500).startswith(b"220"):
                made.sendall(b"QUIT\r\n")
                made.recv(100)
                return True
    except OSError:
        pass
    return False


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the living, and of those whom they have buried."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                total += sum(int(word) for word in file.read().rsplit(")", 1)[1].split()[11:15])
        except OSError:
            pass
    return total / TICKS


class _Yard:
    __slots__ = ("inches",)

    def __init__(self, inches: int) -> None:
        self.inches = inches

    def more(self, inches: int) -> int:
        return self.inches + inches


def pace() -> float:
    """Milliseconds for 100 000 objects, calls and look-ups, the least of five: what this
    interpreter, which is the MTA's too, does on this host at this time. CPython 3.11 as Debian
    builds it took 12, one built from its source without --enable-optimizations 21.
    """
    least = float("inf")
    for _ in range(5):
        began, seen = time.perf_counter(), {}
        for number in range(100_000):
            seen[number & 255] = _Yard(number).more(3)
        least = min(least, time.perf_counter() - began)
    return least * 1000.0


def say_load(when: str) -> str:
    """How busy the machine is beside us, printed and answered: no figure means much without it."""
    one, five, fifteen = os.getloadavg()
    version = ".".join(map(str, sys.version_info[:3]))
    said = (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} processors, "
        f"load average {one:.1f} {five:.1f} {fifteen:.1f}, Python {version} at {pace():.0f} ms"
    )
    print(f"{when}: {said}", flush=True)
    return said


class Tree:
    """A started command with all its descendants: their CPU seconds and proportional memory."""

    def __init__(
        self, argv: list[str], log_path: str, env: dict[str, str] | None = None, cwd: str = ROOT
    ) -> None:
        with open(log_path, "ab") as log:
            self.popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        self.log_path = log_path
        self.peak_mib = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def pids(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                        parent = int(file.read().rsplit(")", 1)[1].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(name))
        found, todo = [], [self.popen.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pids())

    def memory_mib(self) -> float:
        """Sum of the proportional set sizes: shared pages are counted once."""
        total = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                    total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
            except (OSError, StopIteration):
                pass
        return total / 1024

    def reset_peak(self) -> None:
        self.peak_mib = self.memory_mib()

    def _sample(self) -> None:
        while not self._over.wait(0.2):
            self.peak_mib = max(self.peak_mib, self.memory_mib())

    def wait_greeting(self, port: int, name: str, seconds: float = 30) -> float:
        """Seconds until it says 220. @raise RuntimeError."""
        return self.wait(lambda: greets(port), seconds, f"{name} does not start")

    def wait(self, ready: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds until `ready`. @raise RuntimeError: it ended or it took too long."""
        begun = time.perf_counter()
        while not ready():
            if self.popen.poll() is not None or time.perf_counter() - begun > seconds:
                with open(self.log_path, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"{what}: {file.read()[-600:]}")
            time.sleep(0.002)
        return time.perf_counter() - begun

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        self._over.set()
        family = self.pids()
        if self.popen.poll() is None:
            os.kill(self.popen.pid, with_signal)
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pid in family[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


FLUSHES = ("fsync", "fdatasync", "msync", "sync", "syncfs")
"""Every call that waits for the disk; neither MTA opens its files with O_SYNC or writes so."""


class Flushes:
    """strace upon a tree: which calls that flush it makes. Everything is slower meanwhile."""

    def __init__(self, tree: Tree, directory: str) -> None:
        self._path = os.path.join(directory, "strace")
        pids = [word for pid in tree.pids() for word in ("-p", str(pid))]
        argv = ["strace", "-f", "-qq", "-o", self._path, "-e", f"trace={','.join(FLUSHES)}", *pids]
        self._popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        time.sleep(1.0)  # until it has hold of all

    def stop(self) -> int:
        """How many there were."""
        self._popen.send_signal(signal.SIGTERM)  # lets them go, and writes what it holds
        self._popen.wait(30)
        with open(self._path, encoding="ascii", errors="replace") as file:
            return sum(line.split(maxsplit=1)[1].startswith(_BEGUN) for line in file)


_BEGUN = tuple(f"{name}(" for name in FLUSHES)
"""How a call's line begins; where another thread came between, its end is a line of its own."""


class Sink:
    """smtp-sink with its running count of messages."""

    def __init__(
        self,
        directory: str,
        listen: tuple[str, int] = (HOST, 0),
        options: Sequence[str] = (),
        name: str = "sink",
    ) -> None:
        """`listen`: port 0 is one that is free."""
        host, port = listen
        self.port = port or free_port()
        self._count_path = os.path.join(directory, f"{name}.count")
        argv = [
            os.path.join(UNPACKED, "usr/sbin/smtp-sink"), "-c", "-u", "nobody", "-m", "1000",
            *options, f"{host}:{self.port}", "1000",
        ]  # fmt: skip
        self._tree = Tree(argv, self._count_path, peer_environment())
        self._tree.wait(lambda: greets(self.port, host), 10, "smtp-sink does not start")

    def count(self) -> int:
        with open(self._count_path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 300))
            at = (tail := file.read()).rfind(b"mesg=")
        digits = tail[at + 5 :].split() if at >= 0 else []
        return int(digits[0]) if digits else 0

    def wait(self, count: int, seconds: float) -> bool:
        ends = time.perf_counter() + seconds
        while self.count() < count:
            if time.perf_counter() > ends:
                return False
            time.sleep(0.003)
        return True

    def stop(self) -> None:
        self._tree.stop(signal.SIGKILL)


def source(
    port: int,
    count: int,
    sessions: int,
    length: int,
    reuse: bool,
    seconds: float = 300,
    recipient: str = "user@example.com",
) -> float:
    """smtp-source; answers the seconds until its last 250. @raise RuntimeError: it failed."""
    argv = [
        os.path.join(UNPACKED, "usr/sbin/smtp-source"), "-s", str(sessions), "-l", str(length),
        "-m", str(count), "-M", "source.example.net", "-f", "sender@example.net",
        "-t", recipient, *(["-d"] if reuse else []), f"{HOST}:{port}",
    ]  # fmt: skip
    begun = time.perf_counter()
    done = subprocess.run(
        argv, capture_output=True, timeout=seconds, check=False, env=peer_environment()
    )
    if done.returncode:
        raise RuntimeError(f"smtp-source: {done.stderr.decode(errors='replace')[-200:]}")
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Extra:
    """What a configuration of ours has beyond the least."""

    listener: str = ""
    """Keys, each after a comma: `, tls: none`."""
    connector: str = ""
    """One key: `tls: none`."""
    listeners: str = ""
    """Further ones: entries of the list."""
    connectors: str = ""
    """In place of the one to `next_hop`: entries of the list."""
    blocks: str = ""


def start_ours(
    directory: str,
    port: int,
    next_hop: int,
    queue: str = "lifetime: 1h",
    twistd: Sequence[str] = (),
    extra: Extra = Extra(),
    root: str = ROOT,
    wrapper: Sequence[str] = (),
) -> Tree:
    """This MTA: standalone on loopback, the log spool, routing, log lines and retry state on.
    `root`: the checkout whose program it is; the virtual environment is that of this one. `wrapper`
    is what Python is started by.
    """
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, "mta.yaml")
    connectors = (
        extra.connectors
        or f"""\
  - name: sink
    kind: smtp
    bridgeheads: ["{HOST}:{next_hop}"]
    concurrency: 20
    address-spaces: [{{domain: "*", cost: 10}}]
    {extra.connector}
"""
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"""\
virtual-server:
  network-name: {NETWORK_NAME}
  addresses: [{HOST}]
postmaster: postmaster@example.org
node: {{name: bench, state-directory: {directory}/state}}
cluster: {{resource: standalone}}
spool: {{store: log, directory: {directory}/spool}}
listeners:
  - {{kind: smtp, port: {port}, relay-from: [127.0.0.0/8]{extra.listener}}}
{extra.listeners}connectors:
{connectors}\
queue: {{{queue}}}
admin: {{socket: {directory}/control.sock, submit-socket: {directory}/submit.sock}}
{extra.blocks}"""
        )
    program = [os.path.join(VENV_BIN, name) for name in ("python", "twistd")]
    argv = [*wrapper, *program, "-n", "--pidfile=", *twistd, "mta", "--config", path]
    # Before what the environment's editable install would bring.
    env = {**os.environ, "PYTHONPATH": root}
    return Tree(argv, os.path.join(directory, "mta.log"), env, root)


def start_postfix(directory: str, port: int, next_hop: int, **settings: str) -> Tree:
    """A private Postfix as Debian ships it: durable, no content filters, no name lookups."""
    whole = {
        "myhostname": NETWORK_NAME,
        "inet_interfaces": HOST,
        "inet_protocols": "ipv4",
        "mynetworks": "127.0.0.0/8",
        "relayhost": f"[{HOST}]:{next_hop}",
        "smtpd_tls_security_level": "none",
        "smtp_tls_security_level": "none",
        "smtpd_client_connection_count_limit": "0",
        "smtpd_client_connection_rate_limit": "0",
        "smtp_connection_cache_destinations": HOST,
        "in_flow_delay": "0",
        "default_process_limit": "120",
        **settings,
    }
    argv = postfix.lay_out(directory, f"{HOST}:{port}", **whole)
    return Tree(argv, os.path.join(directory, "postfix.log"), peer_environment())
