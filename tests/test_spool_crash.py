"""The power is cut at every write, sync, link and unlink of a busy day; nothing promised is lost.

One script runs a spool through all that it can do, on the forgetful disk. Before every call that
changes something the whole disk is copied, together with what had been promised by then. Each copy
then loses what a machine without power may lose, is taken over under a new epoch, and must hold
what was promised.
"""

from __future__ import annotations

import errno
import zlib
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Fenced, Full, MTAError, Unavailable
from mta.model import (
    PRIORITIES,
    Intent,
    QueueAct,
    QueueFilter,
    Report,
    Result,
    derived_queue_id,
    fresh_state,
)
from mta.testing.clock import VirtualClock
from mta.testing.disk import ForgetfulDisk
from mta.testing.spool_lab import LogLab
from mta.testing.spool_suite import NOW, claim, deferred_state, envelope


@dataclass
class Promises:
    """What the script's clients, bridgeheads and operator were told so far."""

    accepted: dict[str, bytes] = field(default_factory=dict)
    """Acknowledged with 250: queue id -> content."""
    priorities: dict[str, int] = field(default_factory=dict)
    """Of each of these."""
    settled: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    """Told to leave, not yet acknowledged: may be there or not."""
    deferred: dict[str, float] = field(default_factory=dict)
    moving: set[str] = field(default_factory=set)
    """A state change under way: either state is right."""
    held: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Answered 451 or 452."""
    reports: dict[str, str] = field(default_factory=dict)
    """Origin -> its report, from the moment the batch was handed in."""


class Ended(Exception):
    """The tenure ended: the script stops here, as the process would."""


class Script(LogLab):
    """A busy day in few steps."""

    def __init__(self, disk: ForgetfulDisk, clock: VirtualClock) -> None:
        self.disk = disk
        self.clock = clock
        self.notices = []
        self.promises = Promises()
        self.spool: Any = None

    def value(self, deferred: Any) -> Any:
        if not isinstance(deferred, Deferred):
            return deferred
        found: list[Any] = []
        deferred.addBoth(found.append)
        assert found, "it has not fired"
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]

    def own(self, node: str) -> Any:
        """Take over. An error of the store ends the script; anything else is a defect."""
        spool = self.make_spool(node)
        try:
            known = self.value(spool.inspect())
            self.value(spool.publish(claim(node), known[-1].epoch if known else 0))
            self.recovery = self.value(spool.recover())
            self.value(spool.seal())
        except MTAError as error:
            raise Ended from error
        self.spool = spool
        return spool

    def run(self) -> None:
        self.own("a")
        first = [self.accept(b"%d" % n * 3000) for n in range(12)]
        self.defer(first[0], NOW + 300)
        self.settle(first[1:6])
        self.bounce(first[6])
        big = self.accept(b"B" * 30_000)
        self.act(first[7], QueueAct.HOLD)
        more = [self.accept(b"%d" % (n % 10) * 5000) for n in range(18)]
        self.settle(more[:16])
        self.settle([big])
        self.act(first[8], QueueAct.DELETE)
        self.defer(first[0], NOW + 900)
        self.settle(first[9:12])
        kept = self.accept(b"K" * 30_000)
        for n in range(3):
            self.settle([self.accept(b"%d" % n * 9000) for _ in range(4)])
        self.own("b")
        self.bounce(more[16])
        self.settle([self.accept(b"z" * 4000) for _ in range(6)])
        self.defer(kept, NOW + 60)
        self.end()

    def end(self) -> None:
        try:
            self.value(self.spool.release("done"))
        except MTAError as error:
            raise Ended from error

    def accept(self, body: bytes) -> str:
        promises = self.promises
        message = envelope(priority=self.next_priority())
        try:
            # Each on an association of its own: the next on the same would let it be forgotten.
            staging = self.spool.stage(f"smtp/in/{len(promises.accepted)}")
        except (Full, Unavailable):
            return ""
        except Fenced as error:
            raise Ended from error
        if len(promises.accepted) % 3 == 1:  # a policy puts another body in the place of the first
            first = staging
            self.value(first.write(b"first" * (1 + len(body) // 5)))
            staging = first.another()
            self.value(first.read(7).addErrback(lambda failure: None))
            first.abort()
        staging.remember("client", transaction_of(staging.queue_id), NOW + 1e6)
        for at in range(0, len(body), 2000):
            self.value(staging.write(body[at : at + 2000]))
        try:
            self.value(staging.commit(message, fresh_state(message), b"R: x\r\n", None))
        except (Full, Unavailable):
            promises.refused.add(staging.queue_id)
            return ""
        except Fenced as error:
            raise Ended from error
        promises.accepted[staging.queue_id] = b"R: x\r\n" + body
        promises.priorities[staging.queue_id] = message.priority
        return str(staging.queue_id)

    def next_priority(self) -> int:
        """Every one has its turn; each other message has none, as nearly all have in life."""
        number = len(self.promises.accepted)
        return 0 if number % 2 else PRIORITIES[number // 2 % len(PRIORITIES)]

    def told(self, deferred: Any) -> bool:
        """True: acknowledged; False: refused by name, nothing has changed."""
        try:
            self.value(deferred)
        except Fenced as error:
            raise Ended from error
        except (Full, Unavailable):
            return False
        return True

    def settle(self, names: list[str]) -> None:
        for name in filter(None, names):
            self.told(self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25")]))
            self.promises.leaving.add(name)
            if self.told(self.spool.journal([Result(name, "out/1", None)], [])):
                self.promises.settled.add(name)

    def bounce(self, name: str) -> None:
        if not name:
            return
        made = envelope("sender@example.org")
        report = Report(derived_queue_id(name, "failed", (0,)), made, b"failed\r\n" * 50)
        self.promises.leaving.add(name)
        self.promises.reports[name] = report.queue_id
        if self.told(self.spool.journal([Result(name, "out/1", None, (report,))], [])):
            self.promises.settled.add(name)

    def defer(self, name: str, due: float) -> None:
        if not name:
            return
        self.promises.moving.add(name)
        state = deferred_state(envelope(), due)
        if self.told(self.spool.journal([Result(name, "out/1", state)], [])):
            self.promises.deferred[name] = due
            self.promises.moving.discard(name)

    def act(self, name: str, act: QueueAct) -> None:
        if not name:
            return
        if act is QueueAct.DELETE:
            self.promises.leaving.add(name)
        if self.told(self.spool.act([name], act, NOW)):
            if act is QueueAct.DELETE:
                self.promises.settled.add(name)
            else:
                self.promises.held.add(name)


def transaction_of(queue_id: str) -> str:
    return f"<{queue_id}@client>"


def verify(disk: ForgetfulDisk, promises: Promises, clock: VirtualClock) -> Script:
    """Take over what is left and hold it against what was promised."""
    taker = Script(disk, clock)
    taker.own("z")
    assert not taker.recovery.set_aside, taker.recovery.set_aside
    entries = {e.queue_id: e for e in taker.value(taker.spool.scan(QueueFilter(), "", 10_000))}
    assert len(entries) == taker.spool.stats().messages, "a message cannot be read"
    contents = {name: read(taker, name) for name in entries}  # what is queued can be sent
    for name, content in promises.accepted.items():
        if name in promises.settled:
            assert name not in entries, f"{name} was settled and has returned"
        elif name not in promises.leaving:
            assert name in entries, f"{name} was accepted and is lost"
        if name in entries:
            assert contents[name] == content, f"{name} has another content"
            assert entries[name].envelope.priority == promises.priorities[name]
        known = taker.spool.recall("client", transaction_of(name))
        assert known is not None, f"the transaction of {name} would be taken twice"
        assert known.queue_id == name
    for name in entries.keys() - promises.accepted.keys():
        # Durable and not answered: told from a new one as well, or its client brings it twice.
        if len(name) == 14:
            known = taker.spool.recall("client", transaction_of(name))
            assert known is not None, f"{name} came without its transaction"
    for name in promises.refused:
        assert name not in entries, f"{name} was refused and has returned"
        known = taker.spool.recall("client", transaction_of(name))
        assert known is None, f"{name} was refused and would be answered as known"
    for name, due in promises.deferred.items():
        if name in entries and name not in promises.moving and name not in promises.leaving:
            assert entries[name].state.due == due, f"{name} is due at {entries[name].state.due}"
            assert entries[name].state.attempts == 1
    for name in promises.held:
        if name in entries:
            assert entries[name].state.held, f"{name} is not held any more"
    for origin, report in promises.reports.items():
        assert (origin in entries) != (report in entries), f"{origin} without its report, or both"
    works = taker.spool.due(NOW + 1e6, 10_000, ())
    offered = {work.queue_id for work in works}
    assert offered == {name for name, e in entries.items() if not e.state.held}
    for domain in {work.domain for work in works}:
        order = [work.priority for work in works if work.domain == domain]
        assert order == sorted(order, reverse=True), f"not by priority: {order}"
    return taker


def read(script: Script, name: str) -> bytes:
    content = script.value(script.spool.content(name))
    pieces = []
    while piece := script.value(content.read()):
        pieces.append(piece)
    content.close()
    return b"".join(pieces)


class PowerCutTests(SynchronousTestCase):
    """Script once, then a cut before every step of it."""

    def cuts(self) -> list[tuple[str, ForgetfulDisk, Promises]]:
        disk, clock = ForgetfulDisk(), VirtualClock(NOW)
        script = Script(disk, clock)
        script.settings = {"big_message": 16 << 10}
        taken: list[tuple[str, ForgetfulDisk, Promises]] = []

        def step(kind: str, path: str) -> None:
            label = f"step {len(taken)}: {kind} {path}"
            taken.append((label, disk.snapshot(), deepcopy(script.promises)))

        disk.on_step = step
        script.run()
        disk.on_step = None
        taken.append(("the end", disk.snapshot(), deepcopy(script.promises)))
        promises = script.promises
        assert len(promises.accepted) >= 50 and len(promises.settled) > 40
        assert not promises.refused
        for part in ("seg/1.4", "ckpt/1.2", "ckpt/2.0", "big/"):
            assert any(f"/{part}" in label for label, _, _ in taken), part
        return taken

    def survive(self, keep: str, seeds: int = 1) -> None:
        for label, disk, promises in self.cuts():
            for seed in range(seeds):
                twin = disk.snapshot()
                twin.power_cut(keep, seed * 7919 + zlib.crc32(label.encode()))
                try:
                    verify(twin, promises, VirtualClock(NOW + 30))
                except Exception as error:
                    raise AssertionError(f"{label}, keep={keep}, seed={seed}: {error}") from error

    def test_unsynced_writes_lost(self) -> None:
        """Cut anywhere, everything that was not synced is gone: every promise holds."""
        self.survive("none")

    def test_unsynced_writes_kept(self) -> None:
        """Cut anywhere, everything that was written had reached the disk: every promise holds."""
        self.survive("all")

    def test_last_write_torn(self) -> None:
        """Cut anywhere, the last write of each file ends at any byte: every promise holds."""
        self.survive("torn")

    def test_any_part_kept(self) -> None:
        """Cut anywhere, any pages and any names survived: every promise holds."""
        self.survive("random")

    def test_cut_again_in_the_takeover(self) -> None:
        """The power fails, and again at each step of the takeover that follows."""
        _, disk, promises = self.cuts()[-40]
        disk.power_cut("none")
        snapshots: list[ForgetfulDisk] = []
        first = disk.snapshot()
        first.on_step = lambda kind, path: snapshots.append(first.snapshot())
        verify(first, promises, VirtualClock(NOW + 30))
        assert len(snapshots) > 20
        for number, twin in enumerate(snapshots):
            for keep in ("none", "random"):
                again = twin.snapshot()
                again.power_cut(keep, number)
                verify(again, promises, VirtualClock(NOW + 60))


class DiskErrorTests(SynchronousTestCase):
    """The same script on a disk that fails."""

    def fails(
        self, number: int, every: int, kind: str = "any", times: int = 1, *, is_cut: bool = True
    ) -> None:
        steps = 1
        survived = ended = 0
        while True:
            disk, clock = ForgetfulDisk(), VirtualClock(NOW)
            script = Script(disk, clock)
            script.settings = {"big_message": 16 << 10}
            disk.fail(kind, steps, number, times)
            try:
                script.run()
                survived += 1
            except Ended:
                ended += 1
            reached = not disk._faults[0][1] > 0
            disk.heal()
            keep = ("none", "all", "random")[steps // every % 3]
            try:
                if not is_cut:
                    verify(disk, script.promises, VirtualClock(NOW + 20))
                disk.power_cut(keep, steps)
                verify(disk, script.promises, VirtualClock(NOW + 30))
            except Exception as error:
                where = f"{errno.errorcode[number]} at {kind} {steps}, keep={keep}"
                raise AssertionError(f"{where}: {error!r}") from error
            if not reached:
                break
            steps += every
        assert survived > 5, (survived, ended)

    def test_eio_at_each_call(self) -> None:
        """Whichever call fails with EIO: what was acknowledged is there, what was refused is not."""
        self.fails(errno.EIO, 4)

    def test_enospc_at_each_call(self) -> None:
        """Whichever call finds no space: what was acknowledged is there, what was refused is not."""
        self.fails(errno.ENOSPC, 4)

    def test_each_sync(self) -> None:
        """Whichever sync fails, its pages are lost: nothing acknowledged was among them."""
        self.fails(errno.EIO, 2, "sync")

    def test_two_failures_in_a_row(self) -> None:
        """When the next segment fails too the tenure ends without a reply, and nothing is lost."""
        self.fails(errno.EIO, 3, "sync", 2)

    def test_a_successor_under_the_same_kernel(self) -> None:
        """The kernel still shows what it could not write: a successor on the same node relies upon
        none of it.
        """
        self.fails(errno.EIO, 2, "sync", 2, is_cut=False)
