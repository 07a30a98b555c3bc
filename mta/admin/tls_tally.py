"""What came of TLS with the servers of each domain, counted, in the form of RFC 8460.

Law: pure. Counts only grow, and are bounded whatever the mail is for: what is beyond a bound is
counted as others, never dropped. Adding to a report that was written before is adding numbers.

RFC 8460 4.3 (result types), 4.4 (the report).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mta.telemetry import TlsAttempt

OTHERS = "others"
"""Domains beyond MOST_DOMAINS, and those whose names make no name of a file."""
MOST_DOMAINS = 10_000
MOST_POLICIES = 20
"""Of one domain and day: each mail exchanger with TLSA records has one of its own."""
MOST_DETAILS = 100
"""Kinds of failure of one policy: result, server and addresses."""
LONGEST_REASON = 200
"""Characters."""
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Policy(NamedTuple):
    """What a domain demanded: `tlsa`, `sts` or `no-policy-found`."""

    type: str
    strings: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


class Detail(NamedTuple):
    """What failed, between whom."""

    result: str
    sending: str = ""
    mx: str = ""
    receiving: str = ""


class Count:
    """Under one policy. `failures` holds, for each detail, how often and the first reason."""

    __slots__ = ("failures", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures: dict[Detail, tuple[int, str]] = {}

    def fail(self, detail: Detail, number: int, reason: str) -> None:
        if detail not in self.failures and len(self.failures) >= MOST_DETAILS:
            detail = Detail(detail.result)
        before, first = self.failures.get(detail, (0, reason[:LONGEST_REASON]))
        self.failures[detail] = (before + number, first)


Report = dict[Policy, Count]
"""Of one domain and day."""


def count_of(report: Report, policy: Policy) -> Count:
    """The count under that policy; of too many the last ones stand together."""
    if policy not in report and len(report) >= MOST_POLICIES:
        policy = Policy(policy.type)
    return report.setdefault(policy, Count())


def add(to: Report, more: Report) -> None:
    for policy, count in more.items():
        mine = count_of(to, policy)
        mine.successes += count.successes
        for detail, (number, reason) in count.failures.items():
            mine.fail(detail, number, reason)


def may_be_a_file(domain: str) -> bool:
    return len(domain) <= 240 and _NAME.fullmatch(domain) is not None


class Tally:
    """What was counted since it was last taken, by day and domain."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], Report] = {}

    def __bool__(self) -> bool:
        return bool(self._reports)

    def count(self, attempt: TlsAttempt, day: str) -> None:
        """`day`: as in 2026-11-24, UTC."""
        domain = attempt.domain if may_be_a_file(attempt.domain) else OTHERS
        report = self._reports.get((day, domain))
        if report is None:
            if len(self._reports) >= MOST_DOMAINS:
                domain = OTHERS
            report = self._reports.setdefault((day, domain), {})
        policy = Policy(attempt.policy, attempt.policy_strings, attempt.policy_hosts)
        count = count_of(report, policy)
        if not attempt.result:
            count.successes += 1
            return
        detail = Detail(attempt.result, attempt.sending, attempt.mx, attempt.receiving)
        count.fail(detail, 1, attempt.reason)

    def take(self) -> dict[tuple[str, str], Report]:
        """All of it; counting begins anew."""
        taken, self._reports = self._reports, {}
        return taken

    def give_back(self, taken: Mapping[tuple[str, str], Report]) -> None:
        """It could not be written."""
        for (day, domain), report in taken.items():
            name = domain if (day, domain) in self._reports else OTHERS
            if len(self._reports) < MOST_DOMAINS:
                name = domain
            add(self._reports.setdefault((day, name), {}), report)


# --- the form of RFC 8460 4.4 -------------------------------------------------------------------


class Sender(NamedTuple):
    """Who reports. `node` makes a report's id differ from the other node's of the same day."""

    organization: str
    contact: str
    node: str


def as_document(report: Report, domain: str, day: str, sender: Sender) -> dict[str, Any]:
    return {
        "organization-name": sender.organization,
        "date-range": {
            "start-datetime": f"{day}T00:00:00Z",
            "end-datetime": f"{day}T23:59:59Z",
        },
        "contact-info": sender.contact,
        "report-id": f"{day}_{domain}_{sender.node}@{sender.organization}",
        "policies": [_policy(policy, count, domain) for policy, count in report.items()],
    }


def _policy(policy: Policy, count: Count, domain: str) -> dict[str, Any]:
    said: dict[str, Any] = {"policy-type": policy.type}
    if policy.strings:
        said["policy-string"] = list(policy.strings)
    said["policy-domain"] = domain
    if policy.hosts:
        said["mx-host"] = list(policy.hosts)
    written: dict[str, Any] = {
        "policy": said,
        "summary": {
            "total-successful-session-count": count.successes,
            "total-failure-session-count": sum(number for number, _ in count.failures.values()),
        },
    }
    if count.failures:
        written["failure-details"] = [
            _detail(detail, number, reason) for detail, (number, reason) in count.failures.items()
        ]
    return written


_OF_DETAIL = (
    ("result", "result-type"),
    ("sending", "sending-mta-ip"),
    ("mx", "receiving-mx-hostname"),
    ("receiving", "receiving-ip"),
)


def _detail(detail: Detail, number: int, reason: str) -> dict[str, Any]:
    written: dict[str, Any] = {
        key: getattr(detail, field) for field, key in _OF_DETAIL if getattr(detail, field)
    }
    written["failed-session-count"] = number
    if reason:
        written["failure-reason-code"] = reason
    return written


def of_document(document: Any) -> Report:
    """What `as_document` wrote. @raise ValueError: it is none of ours."""
    try:
        report: Report = {}
        for each in document["policies"]:
            said = each["policy"]
            policy = Policy(
                _text(said["policy-type"]),
                tuple(_texts(said.get("policy-string", []))),
                tuple(_texts(said.get("mx-host", []))),
            )
            count = count_of(report, policy)
            count.successes += _number(each["summary"]["total-successful-session-count"])
            for failure in each.get("failure-details", []):
                detail = Detail(*(_text(failure.get(key, "")) for _, key in _OF_DETAIL))
                reason = _text(failure.get("failure-reason-code", ""))
                count.fail(detail, _number(failure["failed-session-count"]), reason)
        return report
    except (KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"it is no report of ours: {fault!r}") from None


def _texts(value: Any) -> Iterator[str]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return map(_text, value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text is missing")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a number is missing")
    return value
