"""Mail in both directions, and the sum of it: what was promised, what arrived, what came twice.

Load and catcher (mta.testing) run as processes in the peer's namespace; their events are folded in
as they come. Law: nothing here asks the MTA. What counts as promised is what the client read, what
counts as arrived is what the catcher read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.rig.ground import PEER, ROOT, VIRTUAL, Broken, Ground, Process, wait_until
from tests.rig.node import NETWORK_NAME


class Catch(NamedTuple):
    at: float
    queue_id: str
    source: str
    helo: str
    via: str = ""
    """The queue id of a bridgehead behind ours, which may send one message twice by itself."""


class Loss(NamedTuple):
    """An association of the load that ended without its will."""

    at: float
    session: int
    how: str


@dataclass(slots=True)
class Sums:
    """Events folded. Times are CLOCK_MONOTONIC."""

    offered: set[str] = field(default_factory=set)
    promised: dict[str, float] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    caught: dict[str, list[Catch]] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """Promised and not yet arrived."""
    doubled: dict[str, list[Catch]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    """What the catcher was greeted by."""
    open_since: dict[int, float] = field(default_factory=dict)
    """The load's sessions that are greeted."""
    greeted: list[float] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    def fold(self, event: dict[str, Any]) -> None:
        at, what = float(event["t"]), event["what"]
        if what == "caught":
            catch = Catch(
                at, event["queue_id"], event["source"], event["helo"], event.get("via", "")
            )
            catches = self.caught.setdefault(event["id"], [])
            catches.append(catch)
            if len(catches) > 1:
                self.doubled[event["id"]] = catches
            self.pending.discard(event["id"])
            self.names[catch.helo] += 1
        elif what == "promised":
            self.promised[event["id"]] = at
            if event["id"] not in self.caught:
                self.pending.add(event["id"])
        elif what == "offered":
            self.offered.add(event["id"])
        elif what == "unread":
            self.unread[event["id"]] += 1
        elif what == "refused":
            self.refused[event["reply"][:60]] += 1
        elif what == "connected":
            self.sources[event["source"]] += 1
        elif what == "greeted":
            self.open_since[event["session"]] = at
            self.greeted.append(at)
        elif what == "lost":
            self.open_since.pop(event["session"], None)
            self.losses.append(Loss(at, event["session"], event["how"]))

    def outbound_doubles(self) -> list[str]:
        """Queue ids that arrived more than once: we sent one message twice. As often as it did."""
        found = []
        for catches in self.doubled.values():
            ways = {(c.queue_id, c.via or str(n)) for n, c in enumerate(catches)}
            for queue_id, times in Counter(queue_id for queue_id, _ in sorted(ways)).items():
                found += [queue_id] * (times - 1)
        return found

    def inbound_doubles(self) -> list[str]:
        """Queue ids besides the last that was given to their name: the client sent it again."""
        found: list[str] = []
        for catches in self.doubled.values():
            given = {catch.queue_id for catch in catches}
            found += sorted(given, key=lambda queue_id: (len(queue_id), queue_id))[:-1]
        return found


class Tail:
    """Whole lines of a growing file, each once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = 0

    def lines(self) -> list[bytes]:
        with open(self._path, "rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.splitlines()


class Traffic:
    """`rate` messages a second in `sessions` associations to the virtual address; 0 is as many as go."""

    def __init__(
        self,
        ground: Ground,
        *,
        sessions: int = 8,
        rate: float = 0,
        size: int = 2000,
        behind: tuple[str, str] | None = None,
    ) -> None:
        """`behind`: address and name of another bridgehead, which sends to the catcher in our
        stead; then that listens on port 2525.
        """
        self._ground = ground
        self.last_hop = behind or (VIRTUAL, NETWORK_NAME)
        self._port = 25 if behind is None else 2525
        self.sessions, self._rate, self._size = sessions, rate, size
        self.sums = Sums()
        self._tails: list[Tail] = []
        self.lock = threading.RLock()
        """Held while events are folded; hold it to read what another thread folds."""
        self.load: Process | None = None
        self.catcher: Process | None = None

    def catch(self) -> Traffic:
        """Start the catcher alone."""
        by = ["--by", NETWORK_NAME] if self._port != 25 else []
        at = f"{PEER}:{self._port}"
        self.catcher = self._start("catcher", "mta.testing.catcher", at, *by)
        wait_until(
            lambda: any(f"{at} " in line for line in self._ground.sockets("peer", "state", "listening")),
            10, "the catcher does not listen",
        )  # fmt: skip
        return self

    def start(self) -> Traffic:
        """Start the load; the catcher too, unless it runs."""
        if self.catcher is None:
            self.catch()
        self.load = self._start(
            "load", "mta.testing.load", f"{VIRTUAL}:25", "--sessions", str(self.sessions),
            "--rate", str(self._rate), "--size", str(self._size),
        )  # fmt: skip
        return self

    def _start(self, name: str, module: str, *arguments: str) -> Process:
        argv = [sys.executable, "-m", module, *arguments]
        process = self._ground.start(name, "peer", argv, cwd=ROOT)
        self._tails.append(Tail(process.log_path))
        return process

    def look(self) -> Sums:
        """Fold what has come since."""
        with self.lock:
            for tail in self._tails:
                for line in tail.lines():
                    if not line.startswith(b"{"):
                        raise Broken(f"load or catcher said {line[:200]!r}")
                    self.sums.fold(json.loads(line))
        return self.sums

    def wait_promised(self, more: int, seconds: float = 30) -> None:
        """Until so many further messages were answered 250."""
        before = len(self.look().promised)
        wait_until(
            lambda: len(self.look().promised) >= before + more, seconds,
            f"service did not resume: fewer than {more} further messages were answered 250",
        )  # fmt: skip

    def wait_arrived(self, seconds: float = 60) -> None:
        """Until every message that is promised by now has arrived. @raise Broken: one is lost."""
        awaited = set(self.look().pending)
        ends = time.monotonic() + seconds
        while awaited:
            awaited &= self.look().pending
            if time.monotonic() > ends:
                some = ", ".join(sorted(awaited)[:5])
                raise Broken(
                    f"{len(awaited)} of {len(self.sums.promised)} promised messages never came: {some}"
                )
            time.sleep(0.05)

    def finish(self, seconds: float = 60) -> Sums:
        """End the load, which sees every message to its fate, and wait for the last to arrive."""
        if self.load is not None and self.load.is_running:
            self.load.stop(seconds)
        self.wait_arrived(seconds)
        return self.sums
