"""`mta tls-report`: what came of TLS with the servers of each domain."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mta.cli.client import Daemon
from mta.cli.output import as_json, say, shown, table


def tls_report(given: argparse.Namespace, daemon: Daemon) -> int:
    """With --json the reports themselves, one a line."""
    items = daemon.items("tls-report", domain=given.domain, day=given.day)
    if given.json:
        for report in items:
            as_json(report)
        return os.EX_OK
    reports = list(items)
    if not reports:
        whose = f" of {shown(given.domain)}" if given.domain else ""
        say(f"no report{whose} of {shown(daemon.done['day'])}")
        return os.EX_OK
    rows = [row for report in reports for row in _rows(report)]
    table(("DOMAIN", "POLICY", "GOOD", "FAILED", "RESULT", "SERVER", "ADDRESS", "FROM"), rows)
    return os.EX_OK


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """One for each policy, and one below it for each kind of failure."""
    for each in report["policies"]:
        policy, summary = each["policy"], each["summary"]
        yield (
            policy["policy-domain"],
            policy["policy-type"],
            summary["total-successful-session-count"],
            summary["total-failure-session-count"],
            *[""] * 4,
        )
        for failure in each.get("failure-details", ()):
            yield (
                *[""] * 3,
                failure["failed-session-count"],
                failure["result-type"],
                failure.get("receiving-mx-hostname", ""),
                failure.get("receiving-ip", ""),
                failure.get("sending-mta-ip", ""),
            )
