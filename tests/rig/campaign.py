"""`make campaign FAULTS=500 SEED=1`: faults from a seed upon two nodes under load, each judged.

Real processes in namespaces, mail in both directions all the time. After each fault: lost 0, wrong
source 0, no more doubles than associations stood open, each of them named in doubt, epochs
strictly increasing, peers of the former owner released. Law: the fault of a number is drawn from
seed, class and number alone, so `--only NUMBER` does that one again; its times are real and differ.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TextIO

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.rig.behind import LAST_HOP, Behind, connector  # noqa: E402
from tests.rig.doubts import Doubts  # noqa: E402
from tests.rig.faults import Cluster, Endurance, Fault, Interface, World  # noqa: E402
from tests.rig.faults_etcd import Leased  # noqa: E402
from tests.rig.faults_keepalived import Keepalived  # noqa: E402
from tests.rig.ground import RIG, Broken, expect  # noqa: E402
from tests.rig.judge import Judge  # noqa: E402
from tests.rig.pair import Pair  # noqa: E402
from tests.rig.run import INSIDE, enter, prepare  # noqa: E402
from tests.rig.traffic import Traffic  # noqa: E402

CLASSES: dict[str, Callable[[Pair], Cluster]] = {
    "interface": Interface,
    "keepalived": Keepalived,
    "etcd": Leased,
    "endurance": Endurance,
}
MODES = ("checkpoint",)
"""`checkpoint`: another bridgehead of our own kind takes the pair's mail, and each transaction has a
name (RFC 1845). It is killed as well, and nothing may be sent twice any more.
"""
USUAL = ("interface", "keepalived", "etcd")
"""Those that are meant when none is named."""
DISK_MIB = 256
RATE = 100.0
"""Messages a second: the sums of an hour fit into memory, and every fault meets mail in flight."""
MOST_KIB = {60: 1536, 200: 512}
"""Growth of an MTA in 100 takeovers, for a life of so many readings. One that kept its ledgers, with
nothing queued, grew by 5400, one that left them to the collector by 2700; one that is flat by 300 to 700
while its pools and its memory of the last 4096 events fill, and by 120 after 200 takeovers."""
MOST_DESCRIPTORS = 10
"""In 100 takeovers, of which each node has half. An owner has 18 more than a standby has."""


class Result(NamedTuple):
    number: int
    kind: str
    detail: str
    seconds: float
    takeovers: int
    greets: float | None
    still: float
    """The longest time without a 250 for anybody."""
    outbound: int
    inbound: int
    failed: str


class Reading(NamedTuple):
    """Of one process, at one time."""

    takeovers: int
    resident_kib: int
    descriptors: int


class Census:
    """Memory and descriptors of every process that lives long, by process and life."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, int, int], list[Reading]] = {}

    def read(self, pair: Pair, prefixes: Sequence[str], takeovers: int) -> None:
        for process in list(pair.processes):
            if process.is_running and process.name.startswith(tuple(prefixes)):
                self._read(process.name, process.pid, takeovers)

    def _read(self, name: str, pid: int, takeovers: int) -> None:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            # A process that began anew (execv) has the same pid and start, and another image:
            # where its stack begins is drawn anew by the kernel.
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                image = int(file.read().rpartition(")")[2].split()[25])
        except (OSError, ValueError):
            return  # it ended meanwhile
        self._lives.setdefault((name, pid, image), []).append(
            Reading(takeovers, resident, descriptors)
        )

    def grown(self, prefix: str) -> list[str]:
        """Lives that are long enough to judge, and are not flat."""
        found = []
        for (name, _, _), readings in self._lives.items():
            limits = [kib for least, kib in MOST_KIB.items() if len(readings) >= least]
            kib, descriptors = _slope(readings, 1) * 100, _slope(readings, 2) * 100
            if not (name.startswith(prefix) and limits):
                continue
            if kib > min(limits) or descriptors > MOST_DESCRIPTORS:
                found.append(
                    f"{name} of {len(readings)} readings grows by {kib:.0f} KiB and "
                    f"{descriptors:.1f} descriptors in 100 takeovers"
                )
        return found

    def lines(self, at_least: int = 10) -> list[str]:
        """First, last and slope for each life of so many readings, the longest lives first."""
        lives = [(len(readings), name, readings) for (name, _, _), readings in self._lives.items()]
        lives = sorted((life for life in lives if life[0] >= at_least), reverse=True)
        return [
            f"{name:12} {count:4} readings: resident {r[0].resident_kib / 1024:.1f} -> "
            f"{r[-1].resident_kib / 1024:.1f} MiB ({_slope(r, 1) * 100:+.1f} KiB in 100 takeovers), "
            f"descriptors {r[0].descriptors} -> {r[-1].descriptors} ({_slope(r, 2) * 100:+.2f})"
            for count, name, r in lives[:8]
        ]


def _slope(readings: list[Reading], column: int) -> float:
    """A takeover, by least squares over the second half: what was warmed up does not count."""
    half = readings[len(readings) // 2 :]
    if len({reading.takeovers for reading in half}) < 2:
        return 0.0
    return statistics.linear_regression(
        [r.takeovers for r in half], [r[column] for r in half]
    ).slope


class Campaign:
    """Faults upon one pair of one class."""

    def __init__(
        self,
        pair: Pair,
        cluster: Cluster,
        seed: int,
        say: Callable[[str], object],
        mode: str = "",
    ) -> None:
        self._pair = pair
        self._cluster = cluster
        self._seed = seed
        self._say = say
        self._doubts = Doubts(pair)
        self._behind = Behind(pair) if mode == "checkpoint" else None
        self._traffic = Traffic(pair, rate=RATE, behind=LAST_HOP if self._behind else None)
        self._census = Census()
        self._epoch_at_first = 0
        self.results: list[Result] = []

    def begin(self) -> None:
        """One owner, one standby, mail in both directions."""
        pair = self._pair
        disk = pair.small_disk("disk", DISK_MIB)
        self._traffic.catch()
        more = {}
        if self._behind is not None:
            self._behind.online()
            more["connectors"] = connector(checkpoint=True)
        self._cluster.online(spool=os.path.join(disk, "spool"), **more)
        self._traffic.start().wait_promised(50)
        judge = Judge(pair, self._traffic, self._doubts)
        self._cluster.world = World(pair, self._traffic, judge, disk)
        self._cluster.wait_well()
        self._epoch_at_first = pair.epoch

    def wait_promised(self, messages: int) -> None:
        """So many more are answered 250."""
        self._traffic.wait_promised(messages, 2 * messages / RATE)

    def draw(self, number: int) -> tuple[Fault, Random]:
        """The fault of a number, and the generator of its details."""
        rng = Random(f"{self._seed} {self._cluster.name} {number}")
        faults = self._cluster.faults()
        return rng.choices(faults, [fault.weight for fault in faults])[0], rng

    def do(self, number: int) -> Result:
        """One fault, mended and judged."""
        pair, judge = self._pair, self._cluster.world.judge
        fault, rng = self.draw(number)
        judge.begin()
        begun = time.monotonic()
        takeovers = outbound = inbound = 0
        detail, greets, failed = "", None, ""
        try:
            detail, greets = fault.do(rng)
            if self._behind is not None and rng.random() < 0.5:
                self._behind.kill()
                detail = f"{detail}, and behind it" if detail else "and behind it"
            self._cluster.mend()
            self._cluster.wait_well()
            verdict = judge.check()
            takeovers, outbound, inbound, _ = verdict
            if self._behind is not None:
                self._behind.check_order()
                expect(outbound == 0, f"{outbound} messages were sent twice, in spite of names")
        except Broken as broken:
            failed = str(broken)
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            failed = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begun
        result = Result(
            number, fault.kind, detail, seconds, takeovers, greets, self._still(begun),
            outbound, inbound, " ".join(failed.split()),
        )  # fmt: skip
        self.results.append(result)
        self._census.read(
            pair, ("mta-", "load", "catcher", *self._cluster.processes),
            pair.epoch - self._epoch_at_first,
        )  # fmt: skip
        self._say(line(self._cluster.name, result))
        return result

    def _still(self, begun: float) -> float:
        with self._traffic.lock:
            promised = self._traffic.sums.promised
            recent: list[float] = []
            for at in reversed(promised.values()):  # in the order of the client's reading
                recent.append(at)
                if at < begun:
                    break
        return max((a - b for a, b in itertools.pairwise(recent)), default=0.0)

    def end(self) -> None:
        """The load ends, and nothing is missing. @raise Broken."""
        self._cluster.wait_well()
        self._traffic.finish()
        for mta in self._pair.mtas.values():
            mta.hold()
            breaches = mta.breaches()
            expect(not breaches, f"a socket was opened past the doors: {breaches[:400]}")
        if self._behind is not None:
            self._behind.end()
        if self._cluster.is_steady:
            grown = self._census.grown("mta-")
            expect(not grown, "; ".join(grown))

    def sums(self) -> str:
        sums = self._traffic.look()
        return (
            f"{len(sums.promised)} promised, {len(sums.pending)} on the way, wrong source "
            f"{len(self._pair.wrong_packets())}, {len(sums.outbound_doubles())} sent twice, "
            f"{len(sums.inbound_doubles())} taken twice, {len(self._doubts.unnamed(sums))} of them "
            f"not named, {self._pair.epoch - self._epoch_at_first} takeovers"
            + (f", {self._behind.repeats()} known again" if self._behind is not None else "")
        )

    def memory(self) -> list[str]:
        return self._census.lines()


# --- words ------------------------------------------------------------------------------------


def line(name: str, result: Result) -> str:
    """One fault in one line."""
    parts = [f"{result.kind}{f' ({result.detail})' if result.detail else ''}"]
    if result.greets is not None:
        parts.append(f"220 after {result.greets * 1000:.0f} ms")
    parts.append(f"no 250 for {result.still:.2f} s")
    parts.append(f"{result.takeovers} takeovers")
    if result.outbound or result.inbound:
        parts.append(f"doubled {result.outbound} out, {result.inbound} in")
    mark = "FAIL" if result.failed else "ok  "
    text = f"{mark} {name} {result.number:4} {'; '.join(parts)} ({result.seconds:.1f} s)"
    return f"{text}: {result.failed}" if result.failed else text


def table(results: Sequence[Result]) -> list[str]:
    """One line a kind of fault."""
    rows = [
        f"{'fault':32}{'times':>6}{'failed':>7}{'takeovers':>10}{'220 p50':>9}{'max':>8}"
        f"{'no 250 p50':>11}{'max':>8}{'out':>5}{'in':>4}{'s each':>7}"
    ]
    for kind in dict.fromkeys(sorted(result.kind for result in results)):
        of = [result for result in results if result.kind == kind]
        greets = sorted(result.greets for result in of if result.greets is not None)
        still = sorted(result.still for result in of)
        shown = (
            f"{_p(greets, 50):7.0f} ms{greets[-1] * 1000:6.0f}" if greets else f"{'-':>9}{'-':>6}"
        )
        rows.append(
            f"{kind:32}{len(of):6}{sum(bool(r.failed) for r in of):7}"
            f"{sum(r.takeovers for r in of):10}{shown}  {_p(still, 50) / 1000:9.2f} s"
            f"{still[-1]:6.2f} s{sum(r.outbound for r in of):5}{sum(r.inbound for r in of):4}"
            f"{statistics.mean(r.seconds for r in of):7.1f}"
        )
    greets = sorted(result.greets for result in results if result.greets is not None)
    if greets:
        rows.append(
            f"takeover, cause to 220: p50 {_p(greets, 50):.0f} ms, p99 {_p(greets, 99):.0f} ms, "
            f"max {greets[-1] * 1000:.0f} ms of {len(greets)}"
        )
    return rows


def _p(sorted_seconds: Sequence[float], percent: int) -> float:
    """A percentile, in milliseconds."""
    at = min(len(sorted_seconds) - 1, round(percent / 100 * (len(sorted_seconds) - 1)))
    return sorted_seconds[at] * 1000


# --- a campaign by itself -----------------------------------------------------------------------


class Run:
    """One class after the other; a pair that failed is kept, and a new one goes on."""

    def __init__(self, seed: int, keep: bool, out: TextIO, mode: str = "") -> None:
        self._seed = seed
        self._mode = mode
        self._keep = keep
        self._out = out
        self.results: list[Result] = []
        self.closing: list[str] = []
        self.failures: list[str] = []

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def run(self, name: str, numbers: Sequence[int]) -> None:
        left = list(numbers)
        while left:
            left = self._pair(name, left)

    def _pair(self, name: str, numbers: list[int]) -> list[int]:
        """Do these on one pair, up to the first that fails; answers what is left."""
        directory = os.path.join(RIG, "run", f"campaign-{name}-{numbers[0]}")
        pair = Pair(directory)
        campaign = Campaign(pair, CLASSES[name](pair), self._seed, self.say, self._mode)
        failed, at, left = "", numbers[0], numbers
        try:
            pair.build()
            campaign.begin()
            while left and not failed:
                at, left = left[0], left[1:]
                failed = campaign.do(at).failed
            if not failed:
                campaign.end()
        except Broken as broken:
            failed = str(broken)
        except Exception as error:
            traceback.print_exc(file=self._out)
            failed = f"{type(error).__name__}: {error}"
        self.results += campaign.results
        try:
            self.closing.append(f"{name}: {campaign.sums()}")
            self.closing += [f"  {text}" for text in campaign.memory()]
        except (Broken, OSError) as error:
            failed = failed or str(error)
        try:
            pair.clear()
        except Broken as broken:  # on what it left nothing more can be built
            failed, left = f"{failed}; {broken}" if failed else str(broken), []
        if failed:
            mode = f" MODE={self._mode}" if self._mode else ""
            replay = f"make campaign CLASSES={name} SEED={self._seed} ONLY={at}{mode}"
            self.failures.append(f"{name} fault {at}: {failed}; logs: {directory}; again: {replay}")
            self.say(f"FAIL {self.failures[-1]}")
            return left if campaign.results else []
        if not self._keep:
            shutil.rmtree(directory, ignore_errors=True)
        return left


def shares(faults: int, names: Sequence[str]) -> dict[str, int]:
    """As equal as can be, the first ones get what is over."""
    return {
        name: faults // len(names) + (at < faults % len(names)) for at, name in enumerate(names)
    }


def numbered(text: str) -> list[int]:
    """`7` or `5-7`, or several of these: `3,5-7`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=500, help="how many, over all classes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--classes", default=" ".join(USUAL), help=f"of {', '.join(CLASSES)}")
    parser.add_argument("--only", type=numbered, default=(), help="these alone: NUMBER,FIRST-LAST")
    parser.add_argument("--mode", default="", choices=("", *MODES), help="what is different")
    parser.add_argument("--keep", action="store_true", help="keep the files below .rig/run")
    given = parser.parse_args()
    names = given.classes.split()
    unknown = [name for name in names if name not in CLASSES]
    if unknown or not names:
        parser.error(f"--classes: {' '.join(unknown) or 'none'}; there are {' '.join(CLASSES)}")
    if INSIDE not in os.environ:
        return enter()
    prepare()
    begun = time.monotonic()
    run = Run(given.seed, given.keep, sys.stdout, given.mode)
    mode = f", mode {given.mode}" if given.mode else ""
    run.say(f"campaign: seed {given.seed}, {given.faults} faults, classes {' '.join(names)}{mode}")
    for name, share in shares(given.faults, names).items():
        run.run(name, given.only or range(1, share + 1))
    run.say("")
    for text in (*table(run.results), "", *run.closing, *(f"FAIL {f}" for f in run.failures)):
        run.say(text)
    seconds = time.monotonic() - begun
    held = len([result for result in run.results if not result.failed])
    run.say(
        f"campaign: {held} of {len(run.results)} faults survived, seed {given.seed}, "
        f"{seconds:.0f} s, {seconds / max(1, len(run.results)):.1f} s each"
    )
    return 1 if run.failures or not run.results else 0


if __name__ == "__main__":
    sys.exit(main())
