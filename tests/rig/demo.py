"""`make demo`: two nodes lose their owner four ways under load, and the terminal shows what comes of it.

Needs no root and nothing beyond Linux's util-linux and iproute2: load and catcher are our own.
Law: this process only starts the play in namespaces of its own and shows what it tells. It holds
the play's life: whatever ends it, Ctrl-C too, ends every process of the play with it, and gives the
terminal back. It ends by itself within LIMIT_SECONDS. Status 0 only when every promise held.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.rig import screen  # noqa: E402
from tests.rig.demo_play import DIRECTORY  # noqa: E402

LIMIT_SECONDS = 120.0
END_SECONDS = 5.0
"""What the kernel may take to end what a play has started."""
FRAME_SECONDS = 0.1
NEEDED = {"unshare": "util-linux", "nsenter": "util-linux", "mount": "util-linux",
          "ip": "iproute2", "ss": "iproute2"}  # fmt: skip
ENTER = ["-n", "-m", "-i", "-p", "-f", "--mount-proc", "--kill-child", "--propagation", "private"]
TRIAL = "ip link add t0 type bridge && mount -t tmpfs t /run && mkdir /run/netns && ip netns add t"
EX_UNAVAILABLE, EX_NOPERM = 69, 77


class Interrupted(Exception):
    """Ctrl-C, a hang-up or a SIGTERM."""


def path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def namespaces() -> list[str]:
    """The command that makes them, as this user may; [] with the reasons said."""
    environment = {**os.environ, "PATH": path()}
    reasons = []
    own: list[tuple[str, list[str]]] = [("as root", [])] if os.geteuid() == 0 else []
    for what, user in (*own, ("unprivileged", ["-U", "-r"])):
        argv = ["unshare", *user, *ENTER]
        done = subprocess.run(
            [*argv, "sh", "-c", TRIAL], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if not done.returncode:
            return argv
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        reasons.append(f"namespaces {what}: {said}")
    print(
        "demo: this machine lets nobody make the network namespaces that two nodes need",
        file=sys.stderr,
    )
    for reason in reasons:
        print(f"demo:   {reason}", file=sys.stderr)
    if os.geteuid() == 0:
        print("demo: try it outside of this container, or on another machine", file=sys.stderr)
    else:
        print("demo: as root it may work: sudo make demo", file=sys.stderr)
    return []


def lacking() -> str:
    """What has to be installed first; "" for nothing."""
    packages = {package for tool, package in NEEDED.items() if not shutil.which(tool, path=path())}
    return " ".join(sorted(packages))


class Run:
    """One play, from its start to its last event."""

    def __init__(self, argv: list[str]) -> None:
        self._log = open(os.path.join(os.path.dirname(DIRECTORY), "demo.log"), "wb")  # noqa: SIM115
        self._play = subprocess.Popen(
            [*argv, sys.executable, "-m", "tests.rig.demo_play"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT,
            env={**os.environ, "PATH": path()},
            start_new_session=True,  # a Ctrl-C reaches us alone
        )  # fmt: skip

    def events(self, seconds: float) -> Iterator[dict[str, Any] | None]:
        """What is told, and None at each frame, until it is over or so many seconds are."""
        assert self._play.stdout is not None
        ends = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._play.stdout, selectors.EVENT_READ)
            rest, frame = b"", 0.0
            while time.monotonic() < ends:
                if selector.select(FRAME_SECONDS):
                    data = os.read(self._play.stdout.fileno(), 65536)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        yield json.loads(line)
                if time.monotonic() - frame >= FRAME_SECONDS:
                    frame = time.monotonic()
                    yield None

    def end(self) -> None:
        """Its end of file; and if it cannot read that, the kernel's word."""
        assert self._play.stdin is not None and self._play.stdout is not None
        self._play.stdin.close()
        try:
            self._play.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._play.kill()  # --kill-child: its namespace dies with it
            self._play.wait(END_SECONDS)
        self._play.stdout.close()
        self._log.close()

    def clear(self) -> None:
        """Nothing of it was worth keeping."""
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        os.unlink(self._log.name)

    def said(self) -> str:
        """What it wrote besides: of a fault of its own."""
        with open(self._log.name, encoding="utf-8", errors="replace") as file:
            return file.read().strip()


def show(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draw it to its end; answers the takeovers and the sum ({} when none was told)."""
    takeovers: list[dict[str, Any]] = []
    over: dict[str, Any] = {}
    picture = screen.of(sys.stdout)
    try:
        for event in run.events(LIMIT_SECONDS - END_SECONDS):
            if event is None:
                picture.tick()
                continue
            picture.show(event)
            if event["what"] == "takeover":
                takeovers.append(event)
            elif event["what"] == "over":
                over = event
    finally:
        picture.close()
    return takeovers, over


def conclude(takeovers: list[dict[str, Any]], over: dict[str, Any], run: Run) -> int:
    """The closing table, and the last line."""
    print()
    print(screen.HEADING)
    for event in takeovers:
        print(screen.row(event))
    print()
    if not over:
        print(f"demo: the play did not come to its end within {LIMIT_SECONDS:g} s; see {DIRECTORY}")
        print(run.said())
        return 1
    print(f"sent {over['sent']}, delivered {over['arrived']}, {len(takeovers)} takeovers, "
          f"epoch {over['epoch']}, {over['seconds']:.0f} s")  # fmt: skip
    if over["reason"]:
        print(f"demo: FAILED: {over['reason']}; the logs lie below {DIRECTORY}")
        if run.said():
            print(run.said())
    print(screen.last_line(over))
    held = not (over["reason"] or over["lost"] or over["wrong_source"] or over["unnamed"])
    return 0 if held else 1


def interrupt(number: int, _frame: object) -> None:
    raise Interrupted(signal.Signals(number).name)


def main() -> int:
    if not sys.platform.startswith("linux"):
        print("demo: needs Linux, whose namespaces are its two nodes", file=sys.stderr)
        return EX_UNAVAILABLE
    if lacking():
        print(f"demo: programs are missing; install: {lacking()}", file=sys.stderr)
        return EX_UNAVAILABLE
    argv = namespaces()
    if not argv:
        return EX_NOPERM
    try:
        os.makedirs(os.path.dirname(DIRECTORY), exist_ok=True)
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        os.makedirs(DIRECTORY)
    except OSError as fault:
        print(f"demo: needs to write below this checkout: {fault}", file=sys.stderr)
        return EX_NOPERM
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the play would go on unseen
    run = Run(argv)
    try:
        takeovers, over = show(run)
    except Interrupted as interrupted:
        run.end()
        run.clear()
        print(f"demo: ended by {interrupted}; nothing is left running")
        return 130
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.end()
    status = conclude(takeovers, over, run)
    if not status:
        run.clear()
    return status


if __name__ == "__main__":
    sys.exit(main())
