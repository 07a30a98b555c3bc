"""The audit net: every IPv4 and IPv6 bind and connect that did not pass the doors is recorded.

Law (house.md law 1, second net): an exception raised in an audit hook reaches product code as an
ordinary failure and can be swallowed; so a breach is written down and the test, or whoever reads
the file, fails later. A hook cannot be taken out again: `Audit.stop()` makes it deaf.

A process of the rig: `MTA_AUDIT_SOCKETS=/path` and `install_from(os.environ)` early in the start.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

ENVIRONMENT = "MTA_AUDIT_SOCKETS"
EVENTS = ("socket.connect", "socket.bind")
FAMILIES = (socket.AF_INET, socket.AF_INET6)
DOORS = (
    os.path.join("mta", "association", "endpoints.py"),
    os.path.join("mta", "association", "transport.py"),
)
"""Source files whose code, somewhere on the stack, makes a call one of the doors'."""
DOOR_CLASSES = "mta.association.transport"
"""Module of the classes whose methods, inherited ones too, are the doors'."""


class Audit(list[str]):
    """The record: one line a breach, `event address: file:line < file:line`. Empty is good."""

    def __init__(self, path: str | None, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self._path = path
        self._allowed = allowed
        self._is_deaf = False

    def stop(self) -> None:
        """Record nothing more."""
        self._is_deaf = True

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """sys.addaudithook's: called for every audit event of the interpreter, so cheap first."""
        if event not in EVENTS or self._is_deaf:
            return
        sock, address = arguments
        if getattr(sock, "family", None) not in FAMILIES:
            return
        frame = sys._getframe(1)
        if self._is_allowed(frame):
            return
        line = f"{event} {address!r}: {_stack(frame)}"
        self.append(line)
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as record:
                record.write(f"{os.getpid()} {line}\n")

    def _is_allowed(self, frame: FrameType | None) -> bool:
        while frame is not None:
            name = frame.f_code.co_filename
            if name.endswith(self._allowed):
                return True
            # Twisted connects in a later turn of the loop, in its own code: the object tells.
            owner = frame.f_locals.get("self")
            if owner is not None and type(owner).__module__ == DOOR_CLASSES:
                return True
            frame = frame.f_back
        return False


def _stack(frame: FrameType | None) -> str:
    """The innermost eight callers, file:line."""
    places: list[str] = []
    while frame is not None and len(places) < 8:
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(places)


def install(path: str | None = None, *, allowed: tuple[str, ...] = DOORS) -> Audit:
    """Begin to record; breaches are also appended to the file `path` when given."""
    audit = Audit(path, allowed)
    sys.addaudithook(audit.hook)
    return audit


def install_from(environment: Mapping[str, str]) -> Audit | None:
    """As `MTA_AUDIT_SOCKETS` says; None when it says nothing."""
    path = environment.get(ENVIRONMENT)
    return install(path) if path else None
