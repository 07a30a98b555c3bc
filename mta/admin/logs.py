"""The observer that writes the log: takes events at no cost, formats and writes them in batches.

Law: raising an event costs one append. Formatting happens on a timer in bounded slices, writing on
a worker thread, one write at a time. A log that cannot keep up or cannot be written loses lines,
never mail; each loss is counted and written down as soon as writing works again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mta.admin.lines import SEVERITIES, Formatter, JSONLines, PostfixLines
from mta.admin.settings import LogSettings
from mta.admin.sinks import Sink, sink_for
from mta.interfaces import IClock, IExecutor
from mta.telemetry import Notice, Telemetry

FLUSH_SECONDS = 0.1
"""How old a line may get before it is written: unseen by people, hundreds of lines to a write."""
SLICE = 400
"""Events formatted at a time: about 2 ms of the reactor."""


RETRY_SECONDS = 1.0
"""Between two tries to write to a target that fails."""
LAST_WORDS_SECONDS = 2.0
"""How long the end of the process waits for a log that hangs."""


class _Batch(NamedTuple):
    lines: list[str]
    events: int
    reported: int
    """Losses that one of the lines tells of."""


class LogObserver:
    """Attach it: `telemetry.attach(log)`. `epoch` is what the next lines are marked with.

    Events raised before `start` (before twistd forks) wait and come first.
    """

    def __init__(
        self,
        settings: LogSettings,
        clock: IClock,
        executor: IExecutor,
        telemetry: Telemetry,
        *,
        host: str,
        environment: Mapping[str, str],
        make_sink: Callable[[str, Mapping[str, str]], Sink] = sink_for,
    ) -> None:
        self.epoch = 0
        self._settings = settings
        self._clock = clock
        self._wall = clock.wall
        self._executor = executor
        self._host = host
        self._environment = environment
        self._make_sink = make_sink
        self._limit = settings.buffer
        self._pending: list[tuple[float, int, Any]] = []
        self._armed = True  # until start: nothing is written before the fork
        self._writing: Deferred[Any] | None = None
        self._dropped = 0
        self._trouble = ""
        self._sink: Sink | None = None
        self._reopen = False
        self._formatter: Formatter | None = None
        self._lock = threading.Lock()
        self._lines_total = telemetry.counter("mta_log_lines_total", "Log lines written.")
        self._dropped_total = telemetry.counter(
            "mta_log_dropped_total", "Log events lost because the log was slow or failed."
        )

    def __call__(self, event: Any) -> None:
        """The hot path."""
        pending = self._pending
        if len(pending) < self._limit:
            pending.append((self._wall(), self.epoch, event))
        else:
            self._dropped += 1
            self._dropped_total.inc()
        if not self._armed:
            self._armed = True
            self._clock.call_later(FLUSH_SECONDS, self._flush)

    def start(self) -> None:
        """The process has forked and has its final standard error: choose the target, write."""
        self._sink, self._formatter = self._open()
        self._flush()

    def reopen(self) -> None:
        """SIGUSR1: the file was renamed; open its name anew."""
        self._reopen = True

    def stop(self) -> None:
        """Write everything that waits before returning: the process is about to end."""
        self._armed = True
        if self._formatter is None:
            self._sink, self._formatter = self._open()
        while self._pending or self._dropped:
            batch = self._next_slice()
            try:
                self._write(batch.lines, LAST_WORDS_SECONDS)
            except OSError as error:
                self._lost(batch, error)
                break
        if self._lock.acquire(timeout=LAST_WORDS_SECONDS):
            try:
                if self._sink is not None:
                    self._sink.close()
            finally:
                self._lock.release()

    @property
    def trouble(self) -> str:
        """Why lines were lost last, for `mta status`; "" when all is well."""
        return self._trouble

    def _open(self) -> tuple[Sink, Formatter]:
        sink = self._make_sink(self._settings.to, self._environment)
        shape = PostfixLines if self._settings.format == "postfix" else JSONLines
        return sink, shape(
            self._settings.syslog_name,
            self._host,
            os.getpid(),
            least=SEVERITIES[self._settings.level],
            syslog=sink.wants_syslog,
        )

    def _flush(self) -> None:
        self._armed = True
        if self._writing is not None:
            return  # _written goes on
        if not self._pending and not self._dropped:
            self._armed = False
            return
        batch = self._next_slice()
        writing = self._writing = self._executor.submit(self._write, batch.lines)
        writing.addCallback(self._written, batch)
        writing.addErrback(self._failed, batch)

    def _next_slice(self) -> _Batch:
        """Up to SLICE events, taken and formatted."""
        assert self._formatter is not None
        events = self._pending[:SLICE]
        del self._pending[:SLICE]
        shape = self._formatter.lines
        lines: list[str] = []
        for wall, epoch, event in events:
            try:
                lines += shape(wall, epoch, event)
            except Exception as error:  # a defect in one event must not end the log
                text = f"{type(event).__name__} cannot be written: {error!r}"
                lines += shape(wall, epoch, Notice("error", "log", text))
        reported, self._dropped = self._dropped, 0
        if reported:
            reason = self._trouble or f"more than {self._limit} were waiting"
            text = f"{reported} log events were lost: {reason}"
            lines += shape(self._wall(), self.epoch, Notice("warning", "log", text))
        return _Batch(lines, len(events), reported)

    def _write(self, lines: list[str], patience: float = -1.0) -> None:
        """On a worker thread; `stop` comes from the reactor's and has little patience."""
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError("the write before this one does not end")
        try:
            if self._sink is not None and lines:
                if self._reopen:
                    self._reopen = False
                    self._sink.reopen()
                self._sink.write(lines)
        finally:
            self._lock.release()

    def _written(self, _result: None, batch: _Batch) -> None:
        self._trouble = ""
        self._lines_total.inc(len(batch.lines))
        self._go_on(0.0 if len(self._pending) >= SLICE else FLUSH_SECONDS)

    def _failed(self, failure: Failure, batch: _Batch) -> None:
        self._lost(batch, failure.value)
        self._go_on(RETRY_SECONDS)

    def _lost(self, batch: _Batch, error: BaseException | None) -> None:
        self._dropped += batch.events + batch.reported
        self._dropped_total.inc(batch.events)
        self._trouble = f"writing to {self._settings.to} failed: {error}"

    def _go_on(self, seconds: float) -> None:
        self._writing = None
        if self._pending or self._dropped:
            self._armed = True
            self._clock.call_later(seconds, self._flush)
        else:
            self._armed = False
