"""The registry of telemetry as a page that Prometheus reads.

Law: rendering reads numbers and changes nothing; label values are foreign text and neutralised.
prometheus_client is imported by the first page, not by the start of the MTA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from mta.admin.text import neutral
from mta.interfaces import IClock, ISpool
from mta.model import SpoolStats
from mta.telemetry import Gauge, Histogram, Telemetry

LABEL_LIMIT = 200


class Exposition:
    """`page()` is the body of /metrics, `content_type` its type."""

    def __init__(
        self, telemetry: Telemetry, version: str, node: str, *, process: bool = True
    ) -> None:
        self._telemetry = telemetry
        self._build = {"version": version, "node": node}
        self._process = process
        self._registry: Any = None

    @property
    def content_type(self) -> str:
        from prometheus_client import CONTENT_TYPE_LATEST

        return CONTENT_TYPE_LATEST

    def page(self) -> bytes:
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
            if self._process:
                ProcessCollector(registry=self._registry)
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Any]:
        """prometheus_client asks this in place of `collect` when a collector is registered."""
        return ()

    def collect(self) -> Iterator[Any]:
        """One metric family a name, as prometheus_client's collectors give them."""
        from prometheus_client.metrics_core import Metric

        telemetry = self._telemetry
        families: dict[str, Any] = {}

        def family(name: str, kind: str) -> Any:
            base = name.removesuffix("_total") if kind == "counter" else name
            found = families.get(base)
            if found is None:
                text = telemetry.help.get(name) or name.replace("_", " ")
                found = families[base] = Metric(base, text, kind)
            return found

        for (name, labels), counter in telemetry.counters.items():
            base = name.removesuffix("_total")
            family(name, "counter").add_sample(f"{base}_total", _clean(labels), counter.value)
        for (name, labels), gauge in telemetry.gauges.items():
            value = _current(gauge)
            if value is not None:
                family(name, "gauge").add_sample(name, _clean(labels), value)
        for (name, labels), histogram in telemetry.histograms.items():
            _add(family(name, "histogram"), name, _clean(labels), histogram)
        build = Metric("mta_build_info", "The version that runs, and where.", "gauge")
        build.add_sample("mta_build_info", self._build, 1.0)
        yield build
        yield from families.values()


class QueueGauges:
    """What the spool knows of the queue, as gauges: read when a page is rendered, and then once for
    all of them. On a standby node (`spool` raises) they are left out: somebody else has the queue.
    """

    def __init__(self, telemetry: Telemetry, clock: IClock, spool: Callable[[], ISpool]) -> None:
        self._clock = clock
        self._spool = spool
        self._stats: tuple[float, SpoolStats] | None = None

        def gauge(name: str, help: str, read: Callable[[], float], **labels: str) -> None:
            telemetry.gauge(name, help, **labels).read = read

        messages = "mta_queue_messages", "Messages queued, and those of them that are held."
        gauge(*messages, lambda: self._now().messages - self._now().held, state="waiting")
        gauge(*messages, lambda: self._now().held, state="held")
        gauge("mta_queue_octets", "Content of the queue, octets.", lambda: self._now().octets)
        gauge("mta_queue_oldest_seconds", "Age of the oldest message queued.", self._oldest)
        gauge(
            "mta_spool_free_octets",
            "Room on the spool's file system.",
            lambda: self._now().free_octets,
        )
        gauge(
            "mta_spool_reserve_octets",
            "Room under which no mail is accepted.",
            lambda: self._now().reserve_octets,
        )
        for side in ("inbound", "outbound"):
            gauge(
                "mta_in_doubt_messages",
                "Messages whose acknowledgement was lost.",
                partial(self._in_doubt, side),
                side=side,
            )

    def _now(self) -> SpoolStats:
        now = self._clock.monotonic()
        if self._stats is None or now - self._stats[0] > STATS_SECONDS:
            self._stats = now, self._spool().stats()
        return self._stats[1]

    def _in_doubt(self, side: str) -> float:
        return sum(doubt.side == side for doubt in self._spool().in_doubt())

    def _oldest(self) -> float:
        oldest = self._now().oldest_received_at
        return 0.0 if oldest is None else max(0.0, self._clock.wall() - oldest)


STATS_SECONDS = 0.5
"""So long the numbers of one look at the spool serve: for one page."""


def _clean(labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {key: neutral(str(value), LABEL_LIMIT) for key, value in labels}


def _current(gauge: Gauge) -> float | None:
    """None when whoever is asked for the value cannot say: one gauge must not cost the page."""
    try:
        return float(gauge.current())
    except Exception:
        return None


def _add(metric: Any, name: str, labels: dict[str, str], histogram: Histogram) -> None:
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        below += count
        metric.add_sample(f"{name}_bucket", labels | {"le": f"{bound:g}"}, below)
    metric.add_sample(f"{name}_bucket", labels | {"le": "+Inf"}, histogram.number)
    metric.add_sample(f"{name}_count", labels, histogram.number)
    metric.add_sample(f"{name}_sum", labels, histogram.total)
