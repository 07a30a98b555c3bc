"""`mta status` for people: who owns the virtual server, since when, why, and what a takeover met.

Law: the first two lines answer what is asked on a bad night; everything behind them is detail. What
the daemon says is shown as it is: nothing is worked out here but words for times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from mta.cli.output import moment, say, shown, tree

FIRST = (
    *("network_name", "role", "state", "since_at", "seconds_in_state", "why", "epoch"),
    *("authority", "addresses", "takeover", "last_takeover", "in_doubt", "wrong_source"),
)
"""What `_headlines` shows; the rest follows as a tree."""
SAID = frozenset(
    (
        *("state", "seconds_in_state", "epoch", "fencing", "authority", "health"),
        *("lease_seconds_left", "last_takeover", "meaning"),
    )
)
"""Keys of the daemon's `cluster` that stand in the first lines already."""
WIDTH = 14
STANDS = {
    "online": "owner",
    "standby": "standby",
    "suspended": "suspended owner",
    "draining": "draining owner",
    "releasing": "releasing owner",
    "lost": "former owner (lost it)",
    "down": "stopped node",
}
"""The state in an operator's words; every other is one of the way up."""


def show(status: Mapping[str, Any]) -> None:
    for line in _headlines(status):
        say(line)
    say("")
    rest = {key: value for key, value in status.items() if key not in FIRST}
    cluster = rest.pop("cluster", None)
    if isinstance(cluster, Mapping):
        rest["cluster"] = {key: value for key, value in cluster.items() if key not in SAID}
    tree(_with_moments(rest))


def _headlines(status: Mapping[str, Any]) -> Iterator[str]:
    state = shown(status["state"])
    name = shown(status["network_name"])
    if state in STANDS:
        stands = f"{STANDS[state]} of {name}"
    else:
        stands = f"taking over {name} ({state.replace('_', ' ')})"
    held = f", epoch {status['epoch']}" if status["epoch"] else ""
    lasting = f"since {moment(status['since_at'])} ({duration(status['seconds_in_state'])})"
    yield f"{stands} {lasting}{held}"
    yield f"  {shown(status['why'])}"
    yield ""
    yield from _takeover(status["takeover"])
    authority = status["authority"]
    yield _fact(
        "authority", f"{shown(authority['resource'])}, fencing: {shown(authority['fencing'])}"
    )
    if authority["text"] not in status["why"]:
        yield _fact("", shown(authority["text"]))
    if authority["health"]:
        yield _fact("", shown(authority["health"]))
    if authority["lease_seconds_left"] is not None:
        yield _fact("lease", f"{authority['lease_seconds_left']:.1f} s left")
    yield from _addresses(status["addresses"])
    last = status["last_takeover"]
    if last is not None:
        when = f"{last['seconds']:.3f} s, epoch {last['epoch']}, {moment(last['ended_at'])}"
        yield _fact("last takeover", when)
        phases = (f"{shown(name)} {took:.3f}" for name, took in last["phases"].items())
        yield _fact("", ", ".join(phases))
    doubts = status.get("in_doubt")
    if doubts is not None:
        yield _fact("in doubt", ", ".join(f"{n} {shown(side)}" for side, n in doubts.items()))
    wrong = sum(status["wrong_source"].values())
    yield _fact("wrong source", f"{wrong}: see the log" if wrong else "0")


def _takeover(found: Mapping[str, Any]) -> Iterator[str]:
    if found["verdict"] in {"owner", "not standing by"}:
        return
    if found["because"]:
        yield _fact("takeover", "would fail because")
        for reason in found["because"]:
            yield _fact("", f"- {shown(reason)}")
    else:
        yield _fact("takeover", shown(found["verdict"]))
    for warning in found["warnings"]:
        yield _fact("", f"but {shown(warning)}")
    if found["owner"] is not None:
        yield _fact("owner", shown(found["owner"]["text"]))
    if found["checked_seconds_ago"] is not None:
        yield _fact("", f"as seen {duration(found['checked_seconds_ago'])} ago")


def _addresses(addresses: list[Mapping[str, Any]]) -> Iterator[str]:
    width = max((len(shown(fact["address"])) for fact in addresses), default=0)
    name = "addresses"
    for fact in addresses:
        text = shown(fact["address"]).ljust(width)
        if "usable" in fact:
            text += f"  {'usable' if fact['usable'] else shown(fact['why_not'])}"
            if fact["link"]:
                carrier = "carrier" if fact["carrier"] else "no carrier"
                link = f"{shown(fact['link'])} {'up' if fact['up'] else 'down'}, {carrier}"
                text += f"  ({link}; {' '.join(map(shown, fact['flags'])) or 'no flags'})"
        yield _fact(name, text if fact["required"] else f"{text}  (not required)")
        name = ""


def _fact(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`: the two largest units."""
    left = int(seconds)
    for (unit, size), (smaller, part) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"


_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def _with_moments(facts: Any) -> Any:
    """Keys that end in _at hold wall-clock seconds: show them as people read time."""
    if isinstance(facts, dict):
        return {
            key: moment(part) if key.endswith("_at") and part else _with_moments(part)
            for key, part in facts.items()
        }
    return [_with_moments(part) for part in facts] if isinstance(facts, list) else facts
