"""Could this standby take over? What can be proved of it without owning anything, every 30 s.

Law: a proof disturbs nobody: it holds no address, publishes nothing, and of what hangs there is
never a second one. It says "ready" only when every part was seen to be well, "would fail" with each
reason, and nothing is guessed from an older look. What a takeover would survive is a warning.

`judge` is pure; `Readiness` asks, keeps the answer, and says each change once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from mta.cluster.claimant import ClaimFacts
from mta.cluster.claims import Sightings
from mta.errors import MTAError, Unavailable
from mta.interfaces import IClock, ITimer
from mta.model import EpochRecord
from mta.telemetry import Telemetry

PROOF_SECONDS = 30.0
"""Between two looks: two writes of a file to the shared disk a minute."""
FIRST_SECONDS = 2.0
"""After standby was reached. A takeover that can begin then begins at once, and needs the disk."""
PATIENCE_SECONDS = 10.0
"""As long as a disk may be stuck before an owner gives up its ownership for it."""


class Verdict(enum.Enum):
    """Values are what `mta status` says."""

    OWNER = "owner"
    READY = "ready"
    WOULD_FAIL = "would fail"
    UNKNOWN = "not known yet"
    NOT_NOW = "not standing by"
    SINGLE = "single node"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a look at this process and this node found."""

    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one look saw. "" means: nothing is wrong."""

    spool: str = ""
    """Why the spool refuses."""
    records: tuple[EpochRecord, ...] = ()
    quiet_seconds: float = 0.0
    """How long the newest epoch's heartbeat has stood still while we looked."""
    resource: str = ""
    """What the cluster resource itself lacks."""
    last_try: str = ""
    """Why the last bid failed, while another is awaited."""
    node: Findings = Findings()
    room: tuple[int, int] | None = None
    """Free octets on the spool's file system, and its reserve."""


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    because: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    owner: EpochRecord | None = None
    """The newest epoch, when it is another node's."""
    owner_text: str = ""
    checked_at: float | None = None
    """By our monotonic clock; None when it is no look's."""

    @property
    def text(self) -> str:
        """One line: ready, or would fail because of what."""
        if self.verdict is Verdict.WOULD_FAIL:
            return f"would fail because {'; '.join(self.because)}"
        said = f" (but {'; '.join(self.warnings)})" if self.warnings else ""
        return f"{self.verdict.value}{said}"


def judge(seen: Seen, ours: ClaimFacts) -> Judgement:
    """Pure. The order of the reasons is that in which a takeover would meet them."""
    because = [*seen.node.failures]
    for reason in (seen.resource, seen.spool):
        if reason:
            because.append(reason)
    if seen.last_try and seen.last_try not in because:
        because.append(f"the last try failed: {seen.last_try}")
    warnings = [*seen.node.warnings]
    if seen.room is not None and seen.room[0] < seen.room[1]:
        warnings.append(
            "no mail would be accepted: the spool's file system has less free than the reserve of "
            f"{seen.room[1]} octets"
        )
    newest = seen.records[-1] if seen.records else None
    owner = newest if newest is not None and newest.node != ours.node else None
    if owner is not None and not owner.released:
        warnings += differences(owner, ours)
    return Judgement(
        Verdict.WOULD_FAIL if because else Verdict.READY,
        tuple(because),
        tuple(warnings),
        owner,
        "" if owner is None else describe(owner, seen.quiet_seconds),
    )


def differences(owner: EpochRecord, ours: ClaimFacts) -> list[str]:
    """What would be another after a takeover. Epoch files of an older program say neither."""
    found = []
    if owner.version and owner.version != ours.version:
        found.append(f"{owner.node} runs version {owner.version}, this node {ours.version}")
    if owner.configuration_digest and owner.configuration_digest != ours.configuration_digest:
        found.append(
            f"the configuration of {owner.node} is another: {owner.configuration_digest[:12]} "
            f"there, {ours.configuration_digest[:12]} here"
        )
    return found


def describe(owner: EpochRecord, quiet_seconds: float) -> str:
    """`node b holds epoch 7 and is suspended`."""
    if owner.released:
        return f"node {owner.node} has released epoch {owner.epoch}"
    text = f"node {owner.node} holds epoch {owner.epoch}"
    if owner.suspended:
        text += " and is suspended"
    if quiet_seconds > 0:
        text += f", without a heartbeat for {quiet_seconds:.0f} s"
    return text


class Patient:
    """One kind of question that may hang: it is never asked twice at a time, and who asks waits
    no longer than PATIENCE_SECONDS.
    """

    def __init__(self, clock: IClock, what: str, ask: Callable[[], Deferred[Any]]) -> None:
        self._clock = clock
        self._what = what
        self._ask = ask
        self._since: float | None = None

    async def answer(self) -> Any:
        """@raise Unavailable: no answer in time, or an older question still hangs."""
        if self._since is not None:
            raise Unavailable(f"{self._what} has not answered an earlier question yet")
        self._since = self._clock.monotonic()
        waiter: Deferred[Any] = Deferred()
        timer = self._clock.call_later(PATIENCE_SECONDS, self._give_up, waiter)

        def answered(result: Any) -> None:
            self._since = None
            timer.cancel()
            if not waiter.called:
                waiter.callback(result)

        self._ask().addBoth(answered)
        return await waiter

    def _give_up(self, waiter: Deferred[Any]) -> None:
        if not waiter.called:
            waiter.errback(Unavailable(f"{self._what} has not answered for {PATIENCE_SECONDS:g} s"))


@dataclass(frozen=True, slots=True)
class Questions:
    """Whom a look asks."""

    standing: Callable[[], Verdict | None]
    """None on a standby; else why there is nothing to prove now."""
    inspect: Callable[[], Deferred[tuple[EpochRecord, ...]]]
    """ISpool.inspect."""
    node: Callable[[], Deferred[tuple[Findings, tuple[int, int] | None]]]
    """This process and node, looked at by a worker; and the room on the spool's file system."""
    resource: Callable[[], str]
    """IReadiness.would_fail."""
    last_try: Callable[[], str]
    ours: ClaimFacts
    changed: Callable[[str], object]
    """Hears each change, as one line."""


class Readiness:
    """`start()`, then `present` is what `mta status` says. One instance a process."""

    def __init__(self, questions: Questions, clock: IClock, telemetry: Telemetry) -> None:
        self._questions = questions
        self._clock = clock
        self._telemetry = telemetry
        self._spool = Patient(clock, "the spool", questions.inspect)
        self._node = Patient(clock, "a worker thread", questions.node)
        self._sightings = Sightings()
        self._timer: ITimer | None = None
        self._looking: Deferred[None] | None = None
        self._judged = Judgement(Verdict.UNKNOWN)
        self._said = ""
        """The last verdict that was logged."""
        telemetry.gauge(
            "mta_takeover_ready", "1: this node is the owner, or could take over."
        ).read = lambda: float(self.is_ready)
        telemetry.gauge(
            "mta_takeover_warnings",
            "What would differ, or be short, after a takeover by this node.",
        ).read = lambda: float(len(self.present.warnings))

    # --- what others see ------------------------------------------------------------------------

    @property
    def present(self) -> Judgement:
        standing = self._questions.standing()
        return self._judged if standing is None else Judgement(standing)

    @property
    def is_ready(self) -> bool:
        return self.present.verdict in {Verdict.OWNER, Verdict.READY, Verdict.SINGLE}

    def snapshot(self) -> dict[str, Any]:
        """For `mta status`."""
        found = self.present
        owner = found.owner
        age = None if found.checked_at is None else self._clock.monotonic() - found.checked_at
        return {
            "verdict": found.verdict.value,
            "text": found.text,
            "because": list(found.because),
            "warnings": list(found.warnings),
            "checked_seconds_ago": None if age is None else round(age, 1),
            "owner": None
            if owner is None
            else {
                "node": owner.node,
                "epoch": owner.epoch,
                "released": owner.released,
                "suspended": owner.suspended,
                "version": owner.version,
                "configuration_digest": owner.configuration_digest,
                "text": found.owner_text,
            },
        }

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        self.look_soon()

    def look_soon(self) -> None:
        """Standby was reached: look, but not while a takeover may begin at once."""
        self._again_in(FIRST_SECONDS)

    def _again_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(seconds, self.look)

    def stop(self) -> None:
        timer, self._timer = self._timer, None
        looking, self._looking = self._looking, None
        if timer is not None:
            timer.cancel()
        if looking is not None:
            looking.cancel()

    def look(self) -> None:
        """Now, and again in PROOF_SECONDS."""
        self._again_in(PROOF_SECONDS)
        if self._looking is None and self._questions.standing() is None:
            self._looking = looking = Deferred.fromCoroutine(self._look())
            looking.addErrback(self._defect)
            looking.addBoth(self._looked)

    def _looked(self, _result: object) -> None:
        self._looking = None

    def _defect(self, failure: Any) -> None:
        if failure.check(CancelledError):
            return  # the process ends
        text = f"readiness: {failure.type.__name__}: {failure.value}"
        self._telemetry.notice("error", "cluster", text)

    async def _look(self) -> None:
        spool, records, quiet = "", (), 0.0
        try:
            records = await self._spool.answer()
        except MTAError as fault:
            spool = str(fault)
        if records:
            quiet = self._sightings.quiet_seconds(records[-1], self._clock.monotonic())
        node, room = await self._of_node()
        seen = Seen(
            spool=spool,
            records=records,
            quiet_seconds=quiet,
            resource=self._questions.resource(),
            last_try=self._questions.last_try(),
            node=node,
            room=room,
        )
        if self._questions.standing() is None:
            self._keep(judge(seen, self._questions.ours))

    async def _of_node(self) -> tuple[Findings, tuple[int, int] | None]:
        try:
            found: tuple[Findings, tuple[int, int] | None] = await self._node.answer()
        except MTAError as fault:
            return Findings((str(fault),)), None
        return found

    def _keep(self, found: Judgement) -> None:
        self._judged = Judgement(
            found.verdict,
            found.because,
            found.warnings,
            found.owner,
            found.owner_text,
            self._clock.monotonic(),
        )
        if found.text != self._said:
            self._said = found.text
            level = "info" if found.verdict is Verdict.READY and not found.warnings else "warning"
            self._telemetry.notice(level, "cluster", f"takeover: {found.text}")
            self._questions.changed(found.text)
