"""Finds the daemon's sockets and speaks JSON lines to the control socket (mta/admin/control.py).

Law: says which socket it used and what to do when nobody answers there; never waits for ever.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mta.cli.output import CommandFailed, neutral

CONTROL = "/run/mta/control.sock"
SUBMIT = "/run/mta/submit.sock"
HERE = "var/run"
"""Where `make run` keeps its sockets, below the working directory."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0
"""A deep probe may take its time; a page of a long list never takes so long."""
MOST_IDS = 2000
"""Queue ids in one request: they fit into the 64 KiB that the daemon takes as one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """A socket's path, and why it is that one."""

    path: str
    because: str


def find(
    socket_name: str,
    *,
    given: str | None = None,
    config: str | None = None,
    environ: Mapping[str, str],
) -> Place:
    """The socket to use; `socket_name` is "control" or "submit".

    In this order: `given` (--socket, always the control socket's path), --config FILE, $MTA_SOCKET,
    the default path, and last the one of a `make run` in the working directory, if it is ours.
    """
    if given:
        return Place(_sibling(given, socket_name), "--socket")
    if config:
        return Place(_from_config(config, socket_name), f"--config {config}")
    if environ.get("MTA_SOCKET"):
        return Place(_sibling(environ["MTA_SOCKET"], socket_name), "$MTA_SOCKET")
    default = CONTROL if socket_name == "control" else SUBMIT
    if not os.path.exists(default):
        here = os.path.abspath(os.path.join(HERE, f"{socket_name}.sock"))
        if _is_ours(here):
            return Place(here, "the working directory")
    return Place(default, "the default path")


def _sibling(control: str, socket_name: str) -> str:
    """submit.sock lies beside control.sock unless a configuration says otherwise."""
    if socket_name == "control":
        return control
    folder, name = os.path.split(control)
    return os.path.join(folder, name.replace("control", "submit")) if "control" in name else control


def _is_ours(path: str) -> bool:
    """Somebody else's socket in a directory where we happen to stand is not to be trusted."""
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


_ADMIN = re.compile(r"^(?:admin|\"admin\"|'admin')[ \t]*:[ \t]*(.*)$", re.MULTILINE)


def _from_config(file: str, socket_name: str) -> str:
    """`admin: socket` or `admin: submit-socket` of a configuration, by looking at its text: the
    whole schema would cost half a second. Its default when the file does not say.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(os.EX_NOINPUT, f"{file}: {error}") from None
    key = "socket" if socket_name == "control" else "submit-socket"
    default = CONTROL if socket_name == "control" else SUBMIT
    found = _ADMIN.search(text)
    if found is None:
        return default
    block = found[1]
    if block.startswith("{"):
        block = text[found.start(1) :].partition("}")[0]
    else:
        block = ""
        for line in text[found.end() :].splitlines():
            if line.strip() and not line.startswith((" ", "\t", "#")):
                break
            block += line + "\n"
    block = re.sub(r"(^|\s)#.*", r"\1", block)
    value = re.search(rf"(?:^|[\s{{,])[\"']?{key}[\"']?:\s+(\"[^\"]*\"|'[^']*'|[^,}}\s]+)", block)
    return value[1].strip("\"'") if value else default


def connect_unix(place: Place) -> socket.socket:
    """@raise CommandFailed: 77 not permitted, 69 nobody is there."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(CONNECT_SECONDS)
    try:
        connected.connect(place.path)
    except OSError as error:
        connected.close()
        where = f"{place.path} (from {place.because})"
        if isinstance(error, PermissionError):
            raise CommandFailed(
                os.EX_NOPERM,
                f"{where}: permission denied; become root, the MTA's user or a member of its group",
            ) from None
        why = error.strerror or str(error)
        raise CommandFailed(
            os.EX_UNAVAILABLE,
            f"no MTA answers at {where}: {why}; is it running? "
            "Name its socket by --socket PATH, --config FILE or MTA_SOCKET",
        ) from None
    return connected


class Daemon:
    """One connection to the control socket; commands are asked one after the other."""

    def __init__(self, connected: socket.socket, where: str) -> None:
        self._where = where
        connected.settimeout(ANSWER_SECONDS)
        self._socket = connected
        self._file = connected.makefile("rb")
        self.done: dict[str, Any] = {}

    @classmethod
    def at(cls, place: Place) -> Daemon:
        return cls(connect_unix(place), place.path)

    def items(self, command: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Ask; yield each item; afterwards `done` is the summary.

        @raise CommandFailed: the daemon's reason, with its exit code; or it went away.
        """
        given = {key: value for key, value in arguments.items() if value not in (None, "", [])}
        request = json.dumps({"command": command, "arguments": given}).encode() + b"\n"
        self.done = {}
        try:
            self._socket.sendall(request)
            while True:
                line = self._file.readline()
                if not line.endswith(b"\n"):
                    raise CommandFailed(os.EX_TEMPFAIL, f"{self._where}: the MTA hung up")
                answer = json.loads(line)
                if "item" in answer:
                    yield answer["item"]
                elif "done" in answer:
                    self.done = answer["done"]
                    return
                else:
                    raise _refusal(answer["error"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                error = OSError("the MTA hung up")
            raise CommandFailed(os.EX_PROTOCOL, f"{self._where}: {error}") from None

    def ask(self, command: str, **arguments: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """All items and the summary of a command whose answer is short."""
        items = list(self.items(command, **arguments))
        return items, self.done

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _refusal(error: Mapping[str, Any]) -> CommandFailed:
    text = str(error["what"])
    if error.get("why"):
        text += f": {error['why']}"
    if error.get("remedy"):
        text += f" ({error['remedy']})"
    exit_code = error.get("exit_code")
    known = isinstance(exit_code, int) and 0 < exit_code < 126
    return CommandFailed(int(exit_code or 1) if known else os.EX_SOFTWARE, neutral(text))
