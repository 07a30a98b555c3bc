"""The first run, as README tells it, from a copy of the sources in which nothing was installed.

`make run` makes its own environment and starts; the command that it prints delivers a message into
a file; a second `make run` starts within 3 s without a network; a busy port names who holds it and
how to take another. Prints PASS and FAIL lines for `make check`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COPY = os.path.join(ROOT, ".rig", "first-run")
INSTALL_LIMIT_SECONDS = 300
AGAIN_LIMIT_SECONDS = 3.0


class Failed(Exception):
    pass


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as made:
            made.settimeout(3)
            return made.recv(200).startswith(b"220")
    except OSError:
        return False


def copy_sources() -> None:
    """What git would hand out, with changes not yet committed, and no .venv."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = os.path.join(ROOT, name)
        if name and os.path.isfile(source):
            os.makedirs(os.path.dirname(os.path.join(COPY, name)), exist_ok=True)
            shutil.copy2(source, os.path.join(COPY, name))


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **more}


class Run:
    """`make run` in the copy, with all that it prints."""

    def __init__(self, port: int, *variables: str, **env: str) -> None:
        self.log = os.path.join(COPY, f"run-{port}-{time.monotonic_ns()}.log")
        self.begun = time.monotonic()
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(
                ["make", "--no-print-directory", "run", f"PORT={port}", *variables],
                cwd=COPY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(**env),
                start_new_session=True,
            )

    def said(self) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait(self, holds: Callable[[], object], seconds: float, what: str) -> float:
        while not holds():
            if self.popen.poll() is not None:
                raise Failed(f"make run ended with {self.popen.returncode}: {self.said()[-600:]}")
            if time.monotonic() - self.begun > seconds:
                raise Failed(f"{what} within {seconds:g} s: {self.said()[-600:]}")
            time.sleep(0.02)
        return time.monotonic() - self.begun

    def stop(self) -> None:
        """Ctrl-C, as a person ends it: to the whole foreground group that we started."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGINT)
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait(5)
                raise Failed("Ctrl-C did not end it within 20 s") from None


def relays(port: int) -> str:
    run = Run(port)
    try:
        installed = run.wait(lambda: " send " in run.said(), INSTALL_LIMIT_SECONDS, "not online")
        printed = next(line.strip() for line in run.said().splitlines() if " send " in line)
        done = subprocess.run(
            ["sh", "-c", printed],
            cwd=COPY,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
        if done.returncode:
            raise Failed(f"{printed!r} ended with {done.returncode}: {done.stderr or done.stdout}")
        for path in re.findall(r"\S*/new/\S+", done.stdout):
            with open(os.path.join(COPY, path.strip("'\".,;:()")), encoding="utf-8") as file:
                if "It works." in file.read():
                    return f"online {installed:.1f} s after a bare checkout"
        raise Failed(f"the message was not found where it is said to lie: {done.stdout!r}")
    finally:
        run.stop()


def again(port: int) -> str:
    bad = "http://127.0.0.1:9"
    run = Run(port, PIP_NO_INDEX="1", http_proxy=bad, https_proxy=bad)
    try:
        seconds = run.wait(lambda: greets(port), 30, "no 220")
        if seconds > AGAIN_LIMIT_SECONDS:
            raise Failed(f"the second start took {seconds:.1f} s")
        return f"{seconds:.1f} s"
    finally:
        run.stop()


def busy_port(port: int) -> str:
    first = Run(port)
    try:
        first.wait(lambda: greets(port), 30, "no 220")
        second = Run(port, "DIRECTORY=var2")
        try:
            second.popen.wait(20)
        except subprocess.TimeoutExpired:
            second.stop()
            raise Failed(f"it did not refuse: {second.said()[-400:]}") from None
        said = second.said()
        if second.popen.returncode == 0:
            raise Failed("it ended with status 0")
        for words in (str(port), "PORT="):
            if words not in said:
                raise Failed(f"it does not say {words!r}: {said[-400:]!r}")
        if not re.search(r"twistd|python|pid \d+|process \d+", said):
            raise Failed(f"it does not say who holds the port: {said[-400:]!r}")
        if "Traceback" in said:
            raise Failed(f"it prints a traceback: {said[-400:]!r}")
        return "named"
    finally:
        first.stop()


def main() -> int:
    copy_sources()
    failed = 0
    port = free_port()
    for name, check in (("relays", relays), ("again", again), ("busy-port", busy_port)):
        try:
            print(f"PASS first-run.{name} ({check(port)})", flush=True)
        except Failed as reason:
            failed += 1
            print(f"FAIL first-run.{name}: {' '.join(str(reason).split())}", flush=True)
    if not failed:
        shutil.rmtree(COPY, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
