"""Which destination gets the next association, and which job goes over it next.

Law: pure; no clock, no I/O, no reactor: time comes in as monotonic seconds. A destination never
has more associations than its concurrency, all of them together never more than the whole limit.
A destination that cannot be reached is left alone for a pause that doubles, then one association
probes it while all its other work waits. Every operation costs the same however much is queued.

A lane is one destination's work: a connector, or a connector and a domain with MX delivery. Within
a lane the order is strict, the best grade first and in it the oldest: as long as better mail waits
for a destination, lesser mail for it does not move (RFC 6710). Lanes keep nothing of one another.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Job = TypeVar("Job")

LAST_GRADE = 19
"""Resends of messages in doubt: behind all 19 priorities of RFC 6710."""


def grade_of(priority: int) -> int:
    """The lower the sooner."""
    return 9 - priority


class Reach(enum.Enum):
    """What is known of a destination.

    Open may become Resting; Resting becomes Probing when its pause is over; Probing becomes Open
    on success and Resting again on failure.
    """

    OPEN = "open"
    RESTING = "resting"
    PROBING = "probing"


class ReachInput(enum.Enum):
    """What happens to a destination."""

    REACHED = "reached"
    FAILED = "failed"
    PAUSE_OVER = "pause over"


REACH_TABLE: dict[tuple[Reach, ReachInput], Reach] = {
    (Reach.OPEN, ReachInput.REACHED): Reach.OPEN,
    (Reach.OPEN, ReachInput.FAILED): Reach.RESTING,
    (Reach.RESTING, ReachInput.REACHED): Reach.OPEN,  # an association opened before the failure
    (Reach.RESTING, ReachInput.FAILED): Reach.RESTING,
    (Reach.RESTING, ReachInput.PAUSE_OVER): Reach.PROBING,
    (Reach.PROBING, ReachInput.REACHED): Reach.OPEN,
    (Reach.PROBING, ReachInput.FAILED): Reach.RESTING,
}
"""All that can happen. A pause is over only for a destination that rests."""


class Lane(Generic[Job]):
    """One destination: its queue, its associations, and whether it can be reached."""

    __slots__ = (
        "associations",
        "concurrency",
        "connector",
        "failures",
        "grades",
        "grades_used",
        "idle",
        "key",
        "last_reply",
        "opening",
        "queued",
        "reach",
        "retry_at",
    )

    def __init__(self, key: str, connector: str, concurrency: int) -> None:
        self.key = key
        self.connector = connector
        self.concurrency = concurrency
        self.grades: dict[int, deque[Job]] = {}
        self.grades_used: tuple[int, ...] = ()
        """Those in `grades`, the best first."""
        self.queued = 0
        self.idle: list[object] = []
        """Open associations without work, the latest last: whoever serves them keeps this."""
        self.associations = 0
        """Open or being opened."""
        self.opening = 0
        """Of these, without work yet: each will take one job."""
        self.reach = Reach.OPEN
        self.failures = 0
        self.retry_at = 0.0
        """Monotonic time at which it may be probed, while it rests."""
        self.last_reply = ""

    def of_grade(self, grade: int) -> deque[Job]:
        """Its jobs. A place once made stays: most lanes have one."""
        jobs = self.grades.get(grade)
        if jobs is None:
            jobs = self.grades[grade] = deque()
            self.grades_used = tuple(sorted(self.grades))
        return jobs

    @property
    def is_idle(self) -> bool:
        return not self.queued and not self.associations


class Schedule(Generic[Job]):
    """All lanes, and the turn of those that want one more association."""

    def __init__(self, associations: int, first_pause: float, longest_pause: float) -> None:
        self._limit = associations
        self._first_pause = first_pause
        self._longest_pause = max(first_pause, longest_pause)
        self.lanes: dict[str, Lane[Job]] = {}
        self.associations = 0
        self.queued = 0
        self._turn: OrderedDict[str, Lane[Job]] = OrderedDict()
        self._resting: dict[str, Lane[Job]] = {}

    # --- lanes ---

    def lane(self, key: str, connector: str, concurrency: int) -> Lane[Job]:
        found = self.lanes.get(key)
        if found is None:
            found = self.lanes[key] = Lane(key, connector, concurrency)
        return found

    def forget_idle(self, lane: Lane[Job]) -> None:
        """Drop a lane without work or association, unless its failures must be remembered."""
        if lane.is_idle and lane.reach is not Reach.RESTING:
            self._drop(lane)

    def _drop(self, lane: Lane[Job]) -> None:
        self.lanes.pop(lane.key, None)
        self._turn.pop(lane.key, None)
        self._resting.pop(lane.key, None)

    # --- work ---

    def push(self, lane: Lane[Job], job: Job, grade: int) -> None:
        """Behind all jobs of the same grade."""
        lane.of_grade(grade).append(job)
        lane.queued += 1
        self.queued += 1
        self._consider(lane)

    def push_back(self, lane: Lane[Job], job: Job, grade: int) -> None:
        """Before all jobs of the same grade: it was taken and not attempted."""
        lane.of_grade(grade).appendleft(job)
        lane.queued += 1
        self.queued += 1
        self._consider(lane)

    def pop(self, lane: Lane[Job]) -> Job | None:
        """The oldest job of the best grade."""
        if lane.queued:
            for grade in lane.grades_used:
                jobs = lane.grades[grade]
                if jobs:
                    lane.queued -= 1
                    self.queued -= 1
                    return jobs.popleft()
        return None

    def pop_lesser(self, lane: Lane[Job], grade: int) -> Job | None:
        """The newest job of the worst grade, if that is worse than `grade`: what makes room."""
        for worst in reversed(lane.grades_used):
            if worst <= grade:
                return None
            jobs = lane.grades[worst]
            if jobs:
                lane.queued -= 1
                self.queued -= 1
                return jobs.pop()
        return None

    def has_work(self, key: str) -> bool:
        """Jobs wait for that destination."""
        lane = self.lanes.get(key)
        return lane is not None and lane.queued > 0

    def empty(self, lane: Lane[Job]) -> list[Job]:
        """Take everything out of it, best grade first."""
        jobs = [job for grade in lane.grades_used for job in lane.grades[grade]]
        lane.grades.clear()
        lane.grades_used = ()
        self.queued -= lane.queued
        lane.queued = 0
        self._turn.pop(lane.key, None)
        return jobs

    # --- associations ---

    def _wants(self, lane: Lane[Job]) -> bool:
        if lane.reach is not Reach.OPEN:
            return bool(lane.queued) and lane.reach is Reach.PROBING and not lane.associations
        return lane.queued > lane.opening and lane.associations < lane.concurrency

    def _consider(self, lane: Lane[Job]) -> None:
        if lane.key not in self._turn and self._wants(lane):
            self._turn[lane.key] = lane

    def next_lane(self) -> Lane[Job] | None:
        """The lane that opens one more association now: counted already; None: nobody may.

        Lanes take turns, one association each, so that a long queue does not shut out a short one.
        """
        while self._turn and self.associations < self._limit:
            _, lane = self._turn.popitem(last=False)
            if not self._wants(lane):
                continue
            lane.associations += 1
            lane.opening += 1
            self.associations += 1
            self._consider(lane)  # at the end of the line again
            return lane
        return None

    @property
    def is_crowded(self) -> bool:
        """Some lane waits for an association, and the whole limit is in use."""
        return bool(self._turn) and self.associations >= self._limit

    def began(self, lane: Lane[Job]) -> None:
        """An association that was counted as opening has taken its first job (or gave up)."""
        lane.opening -= 1

    def ended(self, lane: Lane[Job]) -> None:
        """An association of this lane is gone."""
        lane.associations -= 1
        self.associations -= 1
        self._consider(lane)

    # --- reach ---

    def reached(self, lane: Lane[Job]) -> None:
        """An association to it was opened, or brought a reply."""
        if lane.reach is Reach.OPEN and not lane.failures:
            return
        lane.reach = REACH_TABLE[lane.reach, ReachInput.REACHED]
        lane.failures = 0
        self._resting.pop(lane.key, None)
        self._consider(lane)

    def failed(self, lane: Lane[Job], now: float, reply: str, spread: float = 0.0) -> float:
        """No association could be opened. Answers when it may be probed (monotonic).

        Failures of associations that were opened at the same time count once: the pause grows
        only after a probe. `spread` (-1.0 to 1.0, by chance) moves the pause by a tenth.
        """
        lane.last_reply = reply
        if lane.reach is not Reach.RESTING:
            pause = min(self._first_pause * 2.0 ** min(lane.failures, 30), self._longest_pause)
            lane.failures += 1
            lane.retry_at = now + pause * (1.0 + 0.1 * spread)
        lane.reach = REACH_TABLE[lane.reach, ReachInput.FAILED]
        self._resting[lane.key] = lane
        self._turn.pop(lane.key, None)
        return lane.retry_at

    def is_resting(self, lane: Lane[Job], now: float) -> bool:
        """True while it is to be left alone; the first question after the pause begins a probe."""
        if lane.reach is Reach.RESTING and now >= lane.retry_at:
            lane.reach = REACH_TABLE[lane.reach, ReachInput.PAUSE_OVER]
            self._resting.pop(lane.key, None)
            self._consider(lane)
        return lane.reach is Reach.RESTING

    def resting(self, now: float) -> list[Lane[Job]]:
        """The lanes to be left alone now. Those with work whose pause is over become probes; those
        without work are forgotten when nobody has asked for them for the longest pause.
        """
        found = []
        for lane in list(self._resting.values()):
            if now < lane.retry_at:
                found.append(lane)
            elif not lane.is_idle:
                self.is_resting(lane, now)
            elif now >= lane.retry_at + self._longest_pause:
                self._drop(lane)
        return found

    def lift(self, lane: Lane[Job], now: float) -> None:
        """An operator wants it tried at once: its pause is over."""
        if lane.reach is Reach.RESTING:
            lane.retry_at = now
            self.is_resting(lane, now)

    def next_probe(self, now: float) -> float | None:
        """When the next pause ends (monotonic, after `now`); None when nobody rests."""
        return min((x.retry_at for x in self._resting.values() if x.retry_at > now), default=None)

    def snapshot(self, now: float) -> list[dict[str, object]]:
        """Every lane for people's eyes, in order of names."""
        return [
            {
                "destination": lane.key,
                "connector": lane.connector,
                "state": lane.reach.value,
                "queued": lane.queued,
                "associations": lane.associations,
                "idle": len(lane.idle),
                "failures": lane.failures,
                "retry_in_seconds": (
                    round(max(0.0, lane.retry_at - now), 1) if lane.reach is Reach.RESTING else None
                ),
                "last_reply": lane.last_reply,
            }
            for lane in sorted(self.lanes.values(), key=lambda lane: lane.key)
        ]
