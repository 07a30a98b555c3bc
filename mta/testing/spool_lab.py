"""A log spool on the forgetful disk, for tests: small segments, everything inline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mta.spool.log import LogSpool, LogSpoolSettings
from mta.telemetry import Notice, Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.executors import InlineExecutor, StepExecutor

DIRECTORY = "/spool-root/spool"


class LogLab:
    """Mix in: `make_spool(node)` opens the common disk under another node's name."""

    clock: VirtualClock
    settings: dict[str, Any] = {}
    disk: ForgetfulDisk
    notices: list[Notice]

    def make_spool(self, node: str, **settings: Any) -> LogSpool:
        if not hasattr(self, "disk"):
            self.disk = ForgetfulDisk()
        if not hasattr(self, "notices"):
            self.notices = []
        return LogSpool(
            log_settings(**{**self.settings, **settings}),
            self.surroundings(node, self.disk),  # type: ignore[arg-type]  # a part of them
        )

    def surroundings(self, node: str, disk: ForgetfulDisk) -> SimpleNamespace:
        telemetry = Telemetry()

        def keep(event: object) -> None:
            if isinstance(event, Notice):
                self.notices.append(event)

        telemetry.attach(keep)
        return SimpleNamespace(
            clock=self.clock,
            disk=disk,
            executor=self.make_executor(),
            telemetry=telemetry,
            node=node,
        )

    stepping = False
    """Threads move only when `pump` says so, and not by themselves."""
    executors: list[StepExecutor]

    def make_executor(self) -> Any:
        if not self.stepping:
            return InlineExecutor()
        self.executors = [*getattr(self, "executors", ()), StepExecutor()]
        return self.executors[-1]

    def pump(self) -> None:
        for executor in getattr(self, "executors", ()):
            executor.run()


def log_settings(**settings: Any) -> LogSpoolSettings:
    """Small: 64 KiB segments, 256 KiB reserve."""
    given: dict[str, Any] = {
        "directory": DIRECTORY,
        "initialise": True,
        "segment_size": 64 << 10,
        "first_segment_size": 64 << 10,
        "reserve": 256 << 10,
    }
    return LogSpoolSettings(**{**given, **settings})
