"""Fresh environments for checks, made in a second and without a network.

A fresh environment is a venv that sees the dependencies of the environment that runs the check,
each by a link, but not the MTA of that environment: it has to be installed anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = ("mta", "twisted", "etc", "docs", "examples", "tests", "README.md", "pyproject.toml")
_OURS = ("mta", "_mta", "__editable__", "_virtualenv", "distutils-precedence")


class Failed(Exception):
    """A check failed, with its reason on one line."""


class Environment:
    """A venv at `path`. Pip in it asks no index and builds with what is there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        venv.EnvBuilder(with_pip=False, symlinks=True, clear=True).create(self.path)
        self.python = self.bin("python")
        farm = os.path.join(self.path, "dependencies")
        os.makedirs(farm)
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for name in os.listdir(place):
                if not name.startswith(_OURS) and not name.endswith(".pth"):
                    target = os.path.join(farm, name)
                    if not os.path.lexists(target):
                        os.symlink(os.path.join(place, name), target)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = os.path.join(self.path, "lib", version, "site-packages")
        with open(os.path.join(self.packages, "dependencies.pth"), "w") as file:
            file.write(f"{farm}\n")
        self._script("twistd", "from twisted.scripts.twistd import run; run()")
        self._script("pip", "import sys; from pip._internal.cli.main import main; sys.exit(main())")

    def bin(self, name: str) -> str:
        return os.path.join(self.path, "bin", name)

    def _script(self, name: str, text: str) -> None:
        with open(self.bin(name), "w") as file:
            file.write(f"#!{self.python}\n{text}\n")
        os.chmod(self.bin(name), 0o755)

    @property
    def variables(self) -> dict[str, str]:
        """The process environment in which this venv is the only one."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
            and not name.startswith(("PIP_", "MTA_"))
        }
        return {
            **inherited,
            "PATH": os.path.join(self.path, "bin") + os.pathsep + os.environ.get("PATH", ""),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: no isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *command: str, cwd: str | None = None, status: int | None = 0) -> str:
        """What `command` printed. @raise Failed: it ended with another status."""
        done = subprocess.run(
            command,
            cwd=cwd or self.path,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
        )
        if status is not None and done.returncode != status:
            name = os.path.basename(command[0])
            raise Failed(f"{name} {command[1:3]} ended with {done.returncode}: {last(done.stdout)}")
        return done.stdout

    def install(self, *what: str, cwd: str | None = None) -> None:
        self.run(self.bin("pip"), "install", "--quiet", "--no-deps", *what, cwd=cwd)


class Daemon:
    """A program in the foreground of its own session, stopped by its process id."""

    def __init__(self, environment: Environment, *command: str, cwd: str) -> None:
        self.log = os.path.join(cwd, f"output-{time.monotonic_ns()}")
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait_for(self, holds: Callable[[], object], what: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if self._process.poll() is not None:
                code = self._process.returncode
                raise Failed(f"the daemon ended with {code} before {what}: {last(self.said())}")
            if time.monotonic() > deadline:
                raise Failed(f"not {what} within {seconds:g} s: {last(self.said())}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def copy_sources(target: str) -> str:
    """The sources as a distribution is built from them."""
    for name in SOURCES:
        source = os.path.join(ROOT, name)
        if os.path.isdir(source):
            ignored = shutil.ignore_patterns("__pycache__", "dropin.cache", "_trial_temp*")
            shutil.copytree(source, os.path.join(target, name), ignore=ignored)
        elif os.path.exists(source):
            os.makedirs(target, exist_ok=True)
            shutil.copy2(source, target)
    return target


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def greets(port: int) -> bool:
    """Whether an SMTP server answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as made:
            made.settimeout(3)
            return made.recv(200).startswith(b"220")
    except OSError:
        return False


def last(text: str) -> str:
    """The last thing a program said, for a line of the report."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] if lines else "it said nothing"


def report(checks: list[tuple[str, Callable[[], None]]]) -> int:
    """Run each check: `PASS name (seconds)` or `FAIL name: reason`. The exit status."""
    failures = 0
    for name, check in checks:
        begun = time.monotonic()
        try:
            check()
        except (Failed, OSError, subprocess.SubprocessError) as error:
            failures += 1
            print(f"FAIL {name}: {' '.join(str(error).split())}", flush=True)
        else:
            print(f"PASS {name} ({time.monotonic() - begun:.1f} s)", flush=True)
    return 1 if failures else 0
