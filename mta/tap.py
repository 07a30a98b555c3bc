"""`twistd mta`: options in, a service out. The only module that touches the global reactor.

Everything that can be refused without waiting is refused here, before twistd forks: one line on
standard error for each fact, and the sysexits code that fits (measured: a failure after the fork
either prints a traceback or hangs the daemon's parent).
"""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn, cast

from twisted.application.service import IService
from twisted.python import usage

from mta.errors import MTAError


class Options(usage.Options):  # type: ignore[misc]  # usage.Options is untyped
    """What follows `twistd mta`."""

    synopsis = "[--config FILE | --port PORT --directory DIR]"
    longdesc = (
        "Runs the message transfer agent. Without --config it runs on an embedded default "
        "configuration: SMTP on 127.0.0.1, the spool and a Maildir below --directory."
    )
    optParameters = [
        ["config", "c", None, "The configuration file."],
        ["port", "p", None, "SMTP port of the embedded default configuration.", int],
        ["directory", "d", None, "Where the embedded default configuration keeps its files."],
    ]

    def postOptions(self) -> None:
        if self["config"] and (self["port"] or self["directory"]):
            raise usage.UsageError("--port and --directory belong to the default configuration")


def makeService(options: Options) -> IService:
    """Build the service, or end the process with a sysexits code and the reason on one line."""
    from twisted.internet import reactor

    from mta.config.errors import ConfigErrors
    from mta.config.load import default_text, load
    from mta.service import MTAService

    # callLater follows time.time (measured); it has to follow a clock that never jumps and that
    # counts while the machine sleeps (spool.md section 9).
    reactor.seconds = _boottime  # type: ignore[attr-defined]

    try:
        path = options["config"]
        if path:
            text = _read(path)
            config = load(text, path)
        else:
            text = default_text(os.path.abspath(options["directory"] or "var"), options["port"])
            config = load(text, "embedded default")
        made = MTAService(
            config,
            reactor,
            configuration_file=path,
            uid=options.parent["uid"] if options.parent else None,
        )
    except ConfigErrors as errors:
        _refuse(str(errors), os.EX_CONFIG)
    except MTAError as error:
        _refuse(f"mta: {error}", error.exit_code)
    return cast(IService, made)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"mta: {path}: {error}", os.EX_CONFIG)


def _refuse(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    raise SystemExit(code)
