"""`twistd mta`: options in, a service out. The only module that touches the global reactor.

Everything that can be refused without waiting is refused here, before twistd forks: one line on
standard error for each fact, and the sysexits code that fits (measured: a failure after the fork
either prints a traceback or hangs the daemon's parent).
"""

from __future__ import annotations

import atexit
import ctypes
import enum
import gc
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from twisted.application.service import IService
from twisted.python import usage

from mta.errors import MTAError

DEFAULT_PORT = 2525
DEFAULT_DIRECTORY = "var"
_M_MMAP_THRESHOLD = -3
"""Its number in malloc.h."""
_MMAP_THRESHOLD_OCTETS = 256 * 1024
"""Over everything that is allocated for each message, a piece of content included."""


class Options(usage.Options):
    """What follows `twistd mta`."""

    synopsis = "[--config FILE | --port PORT --directory DIR]"
    longdesc = (
        "Runs the message transfer agent. Without --config it runs on an embedded default "
        "configuration: SMTP on 127.0.0.1, the spool and a Maildir below --directory."
    )
    optParameters = [
        ["config", "c", None, "The configuration file."],
        ["port", "p", None, "SMTP port of the embedded default configuration."],
        ["directory", "d", None, "Where the embedded default configuration keeps its files."],
    ]

    def postOptions(self) -> None:
        if self["config"] and (self["port"] or self["directory"]):
            raise usage.UsageError("--port and --directory belong to the default configuration")


def makeService(options: Options) -> IService:
    """Build the service, or end the process with a sysexits code and the reason on one line."""
    port = _port(options["port"])
    from twisted.internet import reactor

    from mta.config.errors import ConfigErrors
    from mta.config.generate import default_text
    from mta.config.load import load, load_file
    from mta.plugins.find import Catalogue
    from mta.process import boottime, refuse_unwritable
    from mta.service import MTAService

    # callLater follows time.time (measured); it has to follow a clock that never jumps and that
    # counts while the machine sleeps (spool.md section 9).
    reactor.seconds = boottime  # type: ignore[method-assign]

    path = options["config"]
    twistd: Mapping[str, Any] = options.parent or {}
    uid = twistd.get("uid")
    catalogue = Catalogue()
    try:
        if path:
            config = load_file(path, catalogue.find)
        else:
            directory = os.path.abspath(options["directory"] or DEFAULT_DIRECTORY)
            text = default_text(directory, port, socket.gethostname())
            config = load(text, "embedded default", catalogue.find)
        made = MTAService(
            config,
            catalogue,
            reactor,
            configuration_file=path,
            uid=uid,
            is_daemon=not twistd.get("nodaemon", True),
        )
        if twistd.get("pidfile"):
            remedy = "give twistd another --pidfile=FILE, or --pidfile= for none"
            refuse_unwritable(twistd["pidfile"], "the pid file", remedy, uid=uid)
    except ConfigErrors as errors:
        _refuse(str(errors), os.EX_CONFIG)
    except MTAError as error:
        _refuse(f"mta: {error}", error.exit_code)
    _tune_memory()
    tune_enums()
    atexit.register(made.last_words)
    return cast(IService, made)


def _port(given: str | None) -> int:
    if given is None:
        return DEFAULT_PORT
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:6]) <= 65535):
        _refuse(f"mta: --port {given!r} is not a port: 1 to 65535", os.EX_USAGE)
    return int(given)


def _tune_memory() -> None:
    """For a process that lives for months and relays thousands of messages a second.

    What was built stays, and a relayed message leaves hardly a circle behind: with CPython's own
    thresholds (700, 10, 10) looking for circles cost 10 to 20 % of the relay rate at 20 sessions
    (benchmarks/relay.py, 2026-11). Circles are still collected, only later.

    glibc raises its limit for giving memory back at once to the largest block ever freed, 32 MiB at
    most: the buffers of one takeover would stay for good (12 MiB of 100 000 messages; benchmarks/
    long_queue.py, 2026-11). Naming the limit keeps it where it is.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_OCTETS)
    except (AttributeError, OSError):
        pass  # another C library, which gives back as it sees fit


def tune_enums() -> None:
    """Members of enumerations are read as plain attributes, as they are from CPython 3.12 on.

    In 3.11 the metaclass has a `__getattr__` that no member needs any more, and whose being there
    makes each `State.IDLE` five times as dear (93 ns for 18; 5 % of the instructions of a relayed
    message, benchmarks/instructions.py, 2026-11).
    """
    meta: Any = enum.EnumType
    if "__getattr__" in vars(meta):
        del meta.__getattr__


def _refuse(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    raise SystemExit(code)
