"""The ground of the rig: network namespaces joined by a bridge, and the processes in them.

Its law: everything lives in namespaces that the runner made for itself (network, mount, process,
IPC), so nothing is seen of the machine's own interfaces and nothing outlives the runner. Still
every process is stopped by its pid, and every namespace removed, when a scenario ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO

from tests.rig.wire import Wire

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RIG = os.path.join(ROOT, ".rig")
PEERS = os.path.join(RIG, "peers")
UNPACKED = os.path.join(PEERS, "root")
VENV_BIN = os.path.join(ROOT, ".venv", "bin")

NODE, OTHER, PEER = "10.9.0.1", "10.9.0.2", "10.9.0.3"
NODE6, OTHER6, PEER6 = "fd09::1", "fd09::2", "fd09::3"
VIRTUAL, VIRTUAL6 = "10.9.0.100", "fd09::100"
OWN = {
    "node": (NODE, NODE6),
    "a": (NODE, NODE6),
    "b": (OTHER, OTHER6),
    "peer": (PEER, PEER6),
}
"""The addresses that a namespace has for itself."""
MAIL_PORTS = "{ 25, 2525 }"

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Broken(AssertionError):
    """A scenario's promise did not hold; the text is the reason that is printed."""


def expect(holds: object, reason: str) -> None:
    if not holds:
        raise Broken(reason)


def wait_until(
    holds: Callable[[], object], seconds: float, reason: str, step: float = 0.02
) -> float:
    """Wait for a fact; answers the seconds it took. @raise Broken: it did not come."""
    begun = time.monotonic()
    while True:
        if holds():
            return time.monotonic() - begun
        if time.monotonic() - begun > seconds:
            raise Broken(f"{reason} (waited {seconds:g} s)")
        time.sleep(step)


def run(
    argv: Sequence[str], timeout: float = 60, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        raise Broken(
            f"{' '.join(argv)[:200]}: status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    return done


def peer_environment() -> dict[str, str]:
    """The peers run from where they were unpacked, with the libraries unpacked beside them."""
    libraries = [
        os.path.join(UNPACKED, "usr/lib/postfix"),
        os.path.join(UNPACKED, "usr/lib"),
        *(
            os.path.join(UNPACKED, lib, f"{os.uname().machine}-linux-gnu")
            for lib in ("usr/lib", "lib")
        ),
    ]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}


def elsewhere() -> list[str]:
    """The processes in other network namespaces than ours."""
    ours, found = os.readlink("/proc/self/ns/net"), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/net") != ours:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().decode("utf-8", "replace").replace("\0", " ")
                found.append(f"{name} {words[:120]}")
        except OSError:
            continue  # it ended meanwhile
    return found


class Process:
    """One started program, its log, and its end."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log_path: str) -> None:
        self.name = name
        self.popen = popen
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()

    def send_signal(self, number: int) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def stop(self, seconds: float = 15, with_signal: int = signal.SIGTERM) -> int:
        """End it and answer its status; SIGKILL when it does not end by itself."""
        self.send_signal(signal.SIGCONT)
        self.send_signal(with_signal)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.popen.wait(10)
            raise Broken(
                f"{self.name} did not end within {seconds:g} s of signal {with_signal}"
            ) from None

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.popen.wait(10)

    def resident_mib(self) -> float:
        """The resident size now; the peak is counted anew from here."""
        with open(f"/proc/{self.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # proc(5): resets the peak resident set size
        return self._status_mib("VmRSS")

    def peak_mib(self) -> float:
        """The largest resident size since `resident_mib` was asked."""
        return self._status_mib("VmHWM")

    def _status_mib(self, key: str) -> float:
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) / 1024
        raise Broken(f"the kernel does not say {key} of {self.name}")


class Ground:
    """Namespaces of `nodes` and of `peer` on one bridge; each carries only its own addresses.

    Where a node is not named, the first is meant.
    """

    def __init__(self, directory: str, nodes: tuple[str, ...] = ("node",)) -> None:
        self.directory = directory
        self.nodes = nodes
        self.notes: list[str] = []
        self.processes: list[Process] = []
        self._mounts: list[str] = []
        self.spaces: list[str] = []
        self._sockets: list[weakref.ref[socket.socket]] = []
        self.wire: Wire | None = None
        self._has_counters = False
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        os.chmod(directory, 0o755)

    def note(self, text: str) -> None:
        """A measured figure, printed under the scenario's line."""
        self.notes.append(text)

    # --- network

    def build(self, counters: bool = True) -> None:
        """`counters` wants nft; without it the witness on the cables stands alone."""
        run(["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0"])
        run(["ip", "link", "set", "br0", "up"])
        for name in (*self.nodes, "peer"):
            v4, v6 = OWN[name]
            run(["ip", "netns", "add", name])
            self.spaces.append(name)
            run(
                [
                    "ip",
                    "link",
                    "add",
                    f"v{name}",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    name,
                ]
            )
            run(["ip", "link", "set", f"v{name}", "master", "br0", "up"])
            self.ip(name, "link", "set", "lo", "up")
            self.ip(name, "link", "set", "eth0", "up")
            self.ip(name, "addr", "add", f"{v4}/24", "dev", "eth0")
            self.ip(name, "-6", "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
        self.wire = Wire(self.nodes, VIRTUAL, VIRTUAL6)
        self._has_counters = counters
        for name in self.nodes if counters else ():
            self.inside(name, ["nft", "-f", "-"], text=NFT_RULES)

    def wrong_packets(self) -> list[str]:
        """What two witnesses saw of mail with a wrong source: the cables' and nft's."""
        assert self.wire is not None, "nothing was built"
        found = [str(wrong) for wrong in self.wire.look()]
        counted = self.counted("wrong") if self._has_counters else 0
        return found + ([f"{counted} packets, nft says"] if counted else [])

    def ip(self, name: str, *arguments: str) -> None:
        family = [arguments[0]] if arguments[0] in ("-4", "-6") else []
        run(["ip", *family, "-n", name, *arguments[len(family) :]])

    def add_virtual(
        self, v4: bool = True, v6: bool = True, dad: bool = False, node: str = ""
    ) -> None:
        node = node or self.nodes[0]
        if v4:
            self.ip(node, "addr", "add", f"{VIRTUAL}/32", "dev", "eth0")
        if v6:
            flags = [] if dad else ["nodad"]
            self.ip(node, "-6", "addr", "add", f"{VIRTUAL6}/128", "dev", "eth0", *flags)

    def remove_virtual(self, v4: bool = True, v6: bool = True, node: str = "") -> None:
        node = node or self.nodes[0]
        if v4:
            self.ip(node, "addr", "del", f"{VIRTUAL}/32", "dev", "eth0")
        if v6:
            self.ip(node, "-6", "addr", "del", f"{VIRTUAL6}/128", "dev", "eth0")

    def counted(self, name: str, node: str = "") -> int:
        """Packets that the nft counter `name` (wrong or right) has seen, on all nodes or on one."""
        found = 0
        for each in [node] if node else self.nodes:
            words = self.inside(
                each, ["nft", "list", "counter", "inet", "rig", name]
            ).stdout.split()
            found += int(words[words.index("packets") + 1])
        return found

    def reset_counters(self) -> None:
        assert self.wire is not None, "nothing was built"
        self.wire.reset()
        for name in self.nodes:
            self.inside(name, ["nft", "reset", "counters"])

    def sockets(self, name: str, *filter: str) -> list[str]:
        """`ss -Htan` in a namespace: one line a TCP socket."""
        return self.inside(name, ["ss", "-Htan", *filter]).stdout.splitlines()

    def connect(
        self, name: str, host: str, port: int, timeout: float = 10, source: str = ""
    ) -> socket.socket:
        """A connected TCP socket that belongs to the namespace; bound to `source` if given."""
        made = self.raw_socket(name, socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.settimeout(timeout)
        try:
            if source:
                made.bind((source, 0))
            made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return made

    def raw_socket(
        self, name: str, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket made while this thread stands in the namespace; it stays there."""
        with (
            open(f"/run/netns/{name}", "rb") as there,
            open("/proc/thread-self/ns/net", "rb") as here,
        ):
            if _libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                return self.keep(socket.socket(family, kind, protocol))
            finally:
                if _libc.setns(here.fileno(), _CLONE_NEWNET):
                    os.abort()  # this thread would act in the wrong namespace from here on

    def keep(self, made: socket.socket) -> socket.socket:
        """It is closed at the end: an open socket would hold its whole namespace."""
        self._sockets.append(weakref.ref(made))
        return made

    def listens(self, name: str, host: str, port: int) -> bool:
        """Does somebody accept there?"""
        try:
            self.connect(name, host, port, 1).close()
        except OSError:
            return False
        return True

    # --- processes

    def start(
        self,
        name: str,
        namespace: str,
        argv: Sequence[str],
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        log_path = os.path.join(self.directory, f"{name}.log")
        log: IO[bytes]
        with open(log_path, "ab") as log:
            popen = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=cwd or self.directory,
                start_new_session=True,
            )
        process = Process(name, popen, log_path)
        self.processes.append(process)
        return process

    def inside(
        self,
        namespace: str,
        argv: Sequence[str],
        env: dict[str, str] | None = None,
        text: str | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end in a namespace."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv],
            input=text or "",
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=timeout,
            check=False,
            cwd=self.directory,
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-300:]
            raise Broken(f"{' '.join(argv)[:160]}: status {done.returncode}: {said}")
        return done

    # --- disks

    def small_disk(self, name: str, mib: int) -> str:
        """A file system of its own, `mib` large, mounted from an image on the real disk."""
        image = os.path.join(self.directory, f"{name}.img")
        with open(image, "wb") as file:
            file.truncate(mib * 1024 * 1024)
        run(["mkfs.ext4", "-q", "-m", "0", image])
        where = os.path.join(self.directory, name)
        os.makedirs(where)
        run(["mount", "-o", "loop", image, where])
        self._mounts.append(where)
        return where

    # --- the end

    def clear(self) -> None:
        """Stop every process by its pid, then unmount, then remove the namespaces."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + 5
        for process in self.processes:
            try:
                process.popen.wait(max(0.05, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for reference in self._sockets:
            made = reference()
            if made is None:
                continue
            try:
                made.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept or recv
            except OSError:
                pass  # it was never connected, or is closed already
            made.close()
        if self.wire is not None:
            self.wire.close()
        for where in self._mounts:
            run(["umount", where], check=False)
        for name in self.spaces:
            # What nobody owns any more and nobody acknowledges would hold the namespace for minutes.
            self.inside(name, ["ss", "--kill", "--tcp", "--all"], check=False)
            run(["ip", "netns", "delete", name], check=False)
        run(["ip", "link", "delete", "br0"], check=False)
        try:
            wait_until(
                lambda: (
                    not run(
                        ["ip", "-br", "link", "show", "type", "veth"], check=False
                    ).stdout.strip()
                ),
                10,
                "the namespaces' links did not go away",
            )
        except Broken as broken:
            raise Broken(f"{broken}; still there: {', '.join(elsewhere()) or 'nobody'}") from None


NFT_RULES = f"""
table inet rig {{
  counter wrong {{ }}
  counter right {{ }}
  chain out {{
    type filter hook output priority 0;
    ip saddr != {VIRTUAL} tcp dport {MAIL_PORTS} counter name wrong
    ip6 saddr != {VIRTUAL6} tcp dport {MAIL_PORTS} counter name wrong
    ip saddr != {VIRTUAL} tcp sport {MAIL_PORTS} tcp flags & (syn | ack) == (syn | ack) counter name wrong
    ip6 saddr != {VIRTUAL6} tcp sport {MAIL_PORTS} tcp flags & (syn | ack) == (syn | ack) counter name wrong
    ip saddr {VIRTUAL} tcp dport {MAIL_PORTS} counter name right
    ip6 saddr {VIRTUAL6} tcp dport {MAIL_PORTS} counter name right
    ip saddr {VIRTUAL} tcp sport {MAIL_PORTS} counter name right
    ip6 saddr {VIRTUAL6} tcp sport {MAIL_PORTS} counter name right
  }}
}}
"""
"""`wrong` counts what leaves the node for or from a mail port with any other source than the virtual
addresses: every outbound packet, and every acceptance (the kernel's RST refuses, it accepts not).
"""
