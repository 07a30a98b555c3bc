"""The registry of telemetry as a page that Prometheus reads.

Law: rendering reads numbers and changes nothing; label values are foreign text and neutralised.
prometheus_client is imported by the first page, not by the start of the MTA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from mta.admin.text import neutral
from mta.telemetry import Gauge, Histogram, Telemetry

LABEL_LIMIT = 200


class _Numbers(Protocol):
    value: float


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
