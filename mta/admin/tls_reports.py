"""Reports of TLS as data: one file for each domain and day, for whoever sends them (RFC 8460).

Law: what was counted is added to its file within FLUSH_SECONDS and at the end of the process, under
one of two names at every moment; it is not lost with a full disk, but tried again. A file that
cannot be read is set aside and named. No day is kept longer than it is said.

We mail no reports: that is for a program of the operator, which reads the files.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from mta.admin.settings import TlsReportSettings
from mta.admin.tls_tally import (
    MOST_DOMAINS,
    OTHERS,
    Report,
    Sender,
    Tally,
    add,
    as_document,
    may_be_a_file,
    of_document,
)
from mta.interfaces import IClock, IExecutor, ITimer
from mta.telemetry import Event, Telemetry, TlsAttempt

FLUSH_SECONDS = 300.0
LARGEST_OCTETS = 4 * 2**20
"""Of a file: MOST_POLICIES with MOST_DETAILS each come to less than 1 MiB."""
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_SUFFIX = ".json"


class TlsReports:
    """An observer of telemetry."""

    def __init__(
        self,
        settings: TlsReportSettings,
        sender: Sender,
        clock: IClock,
        executor: IExecutor,
        telemetry: Telemetry,
    ) -> None:
        assert settings.directory is not None, "only where reports are kept"
        self._files = ReportFiles(settings.directory, sender)
        self._keep_seconds = settings.keep
        self._clock = clock
        self._executor = executor
        self._telemetry = telemetry
        self._tally = Tally()
        self._timer: ITimer | None = None
        self._has_failed = False

    def observe(self, event: Event) -> None:
        if type(event) is not TlsAttempt:
            return
        self._tally.count(event, day_of(self._clock.wall()))
        if self._timer is None:
            self._timer = self._clock.call_later(FLUSH_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> Deferred[None]:
        """Fires when what was counted until now is in the files, or it was said why not."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if not self._tally:
            return succeed(None)
        taken = self._tally.take()
        oldest = day_of(self._clock.wall() - self._keep_seconds)
        done: Deferred[None] = self._executor.submit(self._files.write, taken, oldest)
        return done.addCallbacks(self._written, self._unwritten, errbackArgs=(taken,))

    def _written(self, damaged: Sequence[str]) -> None:
        self._has_failed = False
        for path in damaged:
            text = f"{path} was no report of TLS: it was set aside as {path}.damaged"
            self._telemetry.notice("warning", "tls", text)

    def _unwritten(self, failure: Any, taken: Mapping[tuple[str, str], Report]) -> None:
        self._tally.give_back(taken)
        if self._timer is None:
            self._timer = self._clock.call_later(FLUSH_SECONDS, self._due)
        if not self._has_failed:
            self._has_failed = True
            text = f"reports of TLS cannot be written to {self._files.directory}: {failure.value}"
            self._telemetry.notice("error", "tls", f"{text}; they are kept in memory until then")

    def stop(self) -> Deferred[None]:
        """Write what there is; nothing is tried again."""

        def ended(_: object) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return self.flush().addCallback(ended)

    def today(self) -> str:
        return day_of(self._clock.wall())

    def domains(self, day: str) -> Deferred[list[str]]:
        """Those that have a report of that day. @raise OSError."""
        return self._executor.submit(self._files.domains, day)

    def read(self, day: str, domains: Sequence[str]) -> Deferred[list[dict[str, Any]]]:
        """What is in their files; one without is left out. @raise OSError."""
        return self._executor.submit(self._files.read, day, domains)


def day_of(wall: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(wall))


def is_day(text: str) -> bool:
    return _DAY.fullmatch(text) is not None


class ReportFiles:
    """directory/2026-11-24/example.com.json. Everything here runs on a thread of the executor."""

    def __init__(self, directory: str, sender: Sender) -> None:
        self.directory = directory
        self._sender = sender

    def write(self, taken: Mapping[tuple[str, str], Report], oldest: str) -> list[str]:
        """Add to the files; answers which were damaged. Days before `oldest` go. @raise OSError."""
        damaged: list[str] = []
        number: dict[str, int] = {}
        for (day, name), report in taken.items():
            domain, where = name, os.path.join(self.directory, day)
            if day not in number:
                os.makedirs(where, 0o750, exist_ok=True)
                number[day] = len(os.listdir(where))
            path = self._path(day, domain)
            is_new = not os.path.exists(path)
            if is_new and number[day] >= MOST_DOMAINS:
                domain, path = OTHERS, self._path(day, OTHERS)
            number[day] += is_new
            whole: Report = {}
            try:
                document = _read(path)
                if document is not None:
                    whole = of_document(document)
            except ValueError:
                os.replace(path, f"{path}.damaged")
                damaged.append(path)
            add(whole, report)
            _write(path, as_document(whole, domain, day, self._sender))
        self._forget(oldest)
        return damaged

    def _forget(self, oldest: str) -> None:
        """Days that are over, and of which nothing but our own kind of files lies there."""
        for day in os.listdir(self.directory):
            if not is_day(day) or day >= oldest:
                continue
            where = os.path.join(self.directory, day)
            names = os.listdir(where)
            if all(_is_ours(name) for name in names):
                for name in names:
                    os.unlink(os.path.join(where, name))
                os.rmdir(where)

    def domains(self, day: str) -> list[str]:
        try:
            names = os.listdir(os.path.join(self.directory, day))
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))

    def read(self, day: str, domains: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for domain in filter(may_be_a_file, domains):
            try:
                document = _read(self._path(day, domain))
                if document is None:
                    continue
                of_document(document)
            except ValueError:
                continue  # whoever writes to it next sets it aside
            found.append(document)
        return found

    def _path(self, day: str, domain: str) -> str:
        return os.path.join(self.directory, day, domain + _SUFFIX)


def _is_ours(name: str) -> bool:
    return name.endswith((_SUFFIX, f"{_SUFFIX}.new", f"{_SUFFIX}.damaged"))


def _read(path: str) -> Any:
    """None: there is none. @raise ValueError: it is damaged."""
    try:
        with open(path, "rb") as file:
            octets = file.read(LARGEST_OCTETS + 1)
    except FileNotFoundError:
        return None
    if len(octets) > LARGEST_OCTETS:
        raise ValueError("it is too big")
    try:
        return json.loads(octets)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _write(path: str, document: Mapping[str, Any]) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(json.dumps(document, indent=1).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
