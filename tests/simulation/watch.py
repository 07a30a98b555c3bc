"""The invariants of cluster.md section 4, seen from outside.

Law: nothing of the code under test is believed. What is durable is what the real recovery reads from
a copy of the disk whose power was cut; what was sent is what sinks took; who is owner is what lies in
epoch files; what is open is what the network holds open.

I1 acknowledged: in the durable visible log with its content, or delivered, or reported.
I2 no acknowledgement under a superseded epoch unless the taker's checkpoint covers it; nobody acts
before the own checkpoint is there.
I3 epochs strictly increase; one writer a segment, and every name of an epoch is its owner's.
I4 of a superseded epoch at most one send an association.
I5 a message whose end is visible is never sent by the present owner.
I6 an association exists: a tenure of the same epoch does, and the local address is one of its own.
I7 once all is healed: a node comes online, everything is delivered or reported, and every double
was named in an in-doubt list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mta.errors import Corrupt, MTAError
from mta.spool import checkpoint, epoch
from mta.spool.directory import Directory
from mta.spool.index import HELD
from mta.spool.ledger import Ledger
from mta.spool.reading import Wanted, read_message
from mta.spool.recovery import recover
from mta.spool.segment import Reader
from mta.testing.disk import ForgetfulDisk
from tests.simulation.network import End
from tests.simulation.node import SPOOL, Process
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from tests.simulation.load import Load, Message

_QUEUED = re.compile(rb"250 2\.0\.0 Ok: queued as ([0-9A-F]{14})\r\n")
_OWNED = re.compile(rf"{SPOOL}/(seg|big|part|ckpt)/(\d+)\.(\d+)$")
_EPOCH = re.compile(rf"{SPOOL}/epoch/(\d+)$")


class Picture:
    """What the next owner would find, were it to begin now."""

    def __init__(self, disk: ForgetfulDisk) -> None:
        self.directory = Directory(disk, SPOOL)  # type: ignore[arg-type]
        self.epochs = epoch.epochs(self.directory)
        self.newest = self.epochs[-1] if self.epochs else 0
        found = recover(self.directory, self.newest + 1, sync=False)
        self.predecessor = found.predecessor
        self.ledger: Ledger = found.ledger
        index = found.ledger.index
        self.queued = {index.queue_id(slot): slot for slot in index.live_slots()}
        self.set_aside = found.set_aside

    @property
    def is_settled(self) -> bool:
        """The newest epoch has its checkpoint: no other reading of the log is possible."""
        return self.predecessor == self.newest

    def why_unreadable(self, queue_id: str, reader: Reader) -> str:
        """ "" when the message's records and content are whole."""
        ledger, slot = self.ledger, self.queued[queue_id]
        index, segments = ledger.index, ledger.segments
        segment = segments.get(index.message_segment[slot])
        if segment is None:
            return "its segment is not known"
        state = segments.get(index.state_segment[slot]) if index.state_segment[slot] else None
        big = ledger.bigs.get(slot)
        held = bool(index.flags[slot] & HELD)
        place, state_place = index.message_place(slot), index.state_place(slot)
        wanted = Wanted(queue_id, segment, place, state, state_place, big, index.due[slot], held)
        try:
            read_message(reader, wanted, with_body=True, most=1 << 20)
            if big is not None:
                disk: Any = self.directory.disk
                path = self.directory.join("big", big.name)
                if len(disk.octets(path)) != big.octets:
                    return f"{path} has another size"
        except (Corrupt, OSError) as fault:
            return str(fault)
        return ""


class Watch:
    """Hears of everything and says what must not be. `figures` counts what happened."""

    def __init__(self, world: World, disk: ForgetfulDisk) -> None:
        self.world = world
        self.disk = disk
        self.load: Load | None = None
        self.processes: list[Process] = []
        self.acks: dict[str, tuple[int, int]] = {}
        """Queue id of each 250 -> (message, epoch)."""
        self.owners: dict[int, Process] = {}
        """Epoch -> the process that published it."""
        self.highest = 0
        self._published = 0
        """The highest whose name has been synced."""
        self._has_checkpoint: set[int] = set()
        """Epochs whose own first checkpoint has its name."""
        self.sealed: dict[int, frozenset[str]] = {}
        self.finished: set[str] = set()
        self._seen: set[str] = set()
        self.doubts: dict[str, set[str]] = {"outbound": set(), "inbound": set()}
        self._last: dict[End, str] = {}
        """Open association -> what was acknowledged on it last."""
        self._left_open: dict[str, None] = {}
        """The same for associations that dead processes left open, until the next takeover."""
        self._stale: dict[int, int] = {}
        """Association -> sends since it was superseded."""
        self.figures: dict[str, int] = {}
        self._hosts: tuple[Any, frozenset[str]] = (None, frozenset())
        self._network: Any = None
        self._ends: Any = {}

    def attach(self, network: Any) -> None:
        self._network = network
        self._ends = network.ends
        network.on_write = self.wrote

    def count(self, what: str, by: int = 1) -> None:
        self.figures[what] = self.figures.get(what, 0) + by

    def violated(self, name: str, what: str) -> None:
        self.world.found(Violation(name, what))

    # --- after each step (I6)

    def after_step(self) -> None:
        for end in self._ends:
            process = end.owner
            tenure = process.ownership.tenure
            if (
                tenure is None
                or tenure is not end.tenure
                or process.spool.epoch != tenure.epoch
                or end.host not in self._hosts_of(tenure)
            ):
                raise Violation(
                    "I6",
                    f"{process.name} has an association of epoch {end.tenure.epoch} at {end.host}"
                    f" in state {process.state.name} without a tenure that bears it",
                )

    def _hosts_of(self, tenure: Any) -> frozenset[str]:
        if self._hosts[0] is not tenure:
            self._hosts = (tenure, frozenset(str(a.bind) for a in tenure.addresses))
        return self._hosts[1]

    # --- the disk (I3)

    def disk_changed(self, process: Process, kind: str, path: str) -> None:
        owned = _OWNED.match(path)
        if owned is not None:
            self._owned_changed(process, kind, path, owned)
            return
        if kind == "directory" and path == f"{SPOOL}/epoch":
            self._published = self.highest
        published = _EPOCH.match(path)
        if published is not None and kind == "link":
            number = int(published[1])
            # A name that was linked and not synced may go with the power, and come again.
            if number <= self._published:
                self.violated("I3", f"epoch {number} is published after {self._published}")
            self.highest = number
            self.owners[number] = process
            self.count("takeovers")
            self.world.note(f"{process.name} publishes epoch {number}")

    def _owned_changed(self, process: Process, kind: str, path: str, owned: re.Match[str]) -> None:
        part, number = owned[1], int(owned[2])
        if kind == "unlink":
            self.world.note(f"{process.name} unlinks {path}")
            self.world.soon(self.look)
            return
        owner = self.owners.get(number)
        if owner is not process:
            name = owner.name if owner is not None else "nobody"
            self.violated("I3", f"{process.name} changes {path} ({kind}), which is {name}'s")
        if part == "ckpt" and kind == "link":
            self.world.note(f"{process.name} links {path}")
            if owned[3] == "0":
                self._has_checkpoint.add(number)
                self.world.soon(self._sealing, number)

    def is_superseded(self, number: int) -> bool:
        """Whether its file says so, or is gone. One that is published and has not marked the older
        ones yet has not begun to read.
        """
        path = f"{SPOOL}/epoch/{number}"
        return not self.disk.exists(path) or self.disk.octets(path)[:1] == b"S"

    def died(self, process: Process) -> None:
        """Before its associations go: what it leaves open is in doubt from now on."""
        for end in self._ends:
            if end.owner is process and end in self._last and not self._is_sealed_above(end):
                self._left_open[self._last[end]] = None

    def _is_sealed_above(self, end: End) -> bool:
        """Whether a takeover has named already what this association left in doubt."""
        assert end.tenure is not None
        return max(self.sealed, default=0) > end.tenure.epoch

    # --- acknowledgements (I1, I2)

    def wrote(self, end: End, data: bytes) -> None:
        """A process hands octets to its kernel."""
        for found in _QUEUED.finditer(data):
            self._acked(end, found[1].decode())

    def _acked(self, end: End, queue_id: str) -> None:
        assert end.tenure is not None and end.owner is not None and self.load is not None
        under = end.tenure.epoch
        self._acts(end.owner, under, "acknowledges")
        number = self.load.number_of(end.far)
        message = self.load.messages[number]
        message.queue_ids.append(queue_id)
        self.acks[queue_id] = (number, under)
        self._last[end] = queue_id
        self.count("acknowledged")
        is_stale = self.is_superseded(under)
        self.world.note(
            f"{end.owner.name} 250 {queue_id} for m{number}{', superseded' if is_stale else ''}"
        )
        if is_stale:
            self.count("acknowledged while superseded")
        for taker, covered in self.sealed.items():
            if taker > under and queue_id not in covered and not message.is_settled:
                self.violated(
                    "I2",
                    f"{end.owner.name} acknowledged {queue_id} under epoch {under}, which the"
                    f" checkpoint of epoch {taker} does not cover",
                )
                return
        if not is_stale:
            picture = self.picture(durable=True)
            if queue_id not in picture.queued:
                self.violated("I1", f"{queue_id} is acknowledged, and not durable in the log")

    def _acts(self, process: Process, under: int, does: str) -> None:
        if under not in self._has_checkpoint:
            self.violated(
                "I2", f"{process.name} {does} under epoch {under} before ckpt/{under}.0 is there"
            )

    def read_ack(self, message: Message, queue_id: str) -> None:
        """The client has read it."""
        message.read.add(queue_id)
        self.count("acknowledgements read")

    # --- what the next owner would find (I1, I2)

    def picture(self, *, durable: bool) -> Picture:
        disk = self.disk
        if durable:
            disk = disk.snapshot()
            disk.power_cut("none")
        self.count("pictures")
        return Picture(disk)

    def look(self, *, durable: bool = False) -> None:
        """Is everything that was acknowledged there, and readable?"""
        if self.world.violation is not None:
            return
        try:
            picture = self.picture(durable=durable)
        except (MTAError, OSError) as fault:
            self.violated("I1", f"the log cannot be read: {fault}")
            return
        reader = Reader(picture.directory)
        try:
            for queue_id in picture.queued:
                why = picture.why_unreadable(queue_id, reader)
                if why:
                    self.violated("I1", f"{queue_id} is queued and cannot be read: {why}")
        finally:
            reader.close()
        if picture.set_aside:
            self.violated("I1", f"the log is damaged: {picture.set_aside[0]}")
        for queue_id, message in self._unsettled():
            if queue_id not in picture.queued and not self._is_reported(queue_id, picture):
                self.violated(
                    "I1",
                    f"{queue_id} (m{message.number}) is acknowledged, not delivered, and not in "
                    f"the log that epoch {picture.newest + 1} would find",
                )
        if picture.is_settled and durable:
            self.finished |= self._seen - picture.queued.keys()
            self._seen |= picture.queued.keys()

    def _is_reported(self, queue_id: str, picture: Picture) -> bool:
        """A report that is queued bears its origin's id and 8 digits more."""
        return any(name.startswith(queue_id) for name in picture.ledger.index.derived)

    def _unsettled(self) -> Iterator[tuple[str, Message]]:
        assert self.load is not None
        for queue_id, (number, _) in self.acks.items():
            message = self.load.messages[number]
            if not message.is_settled:
                yield queue_id, message

    def _sealing(self, number: int) -> None:
        """The checkpoint of a takeover is linked: read it as anybody could."""
        directory = Directory(self.disk, SPOOL)  # type: ignore[arg-type]
        try:
            made = checkpoint.read(directory, number, 0)
        except (ValueError, OSError):
            return  # its machine has lost it meanwhile
        index = made.ledger.index
        covered = frozenset(index.queue_id(slot) for slot in index.live_slots())
        for doubt in made.ledger.doubts:
            self.doubts[doubt.side].add(doubt.queue_id)
        self._find_unread(number)
        self.sealed[number] = covered
        names = tuple(index.derived)
        for queue_id, message in self._unsettled():
            _, under = self.acks[queue_id]
            if under >= number or queue_id in covered:
                continue
            if not any(name.startswith(queue_id) for name in names):
                self.violated(
                    "I2",
                    f"{queue_id} (m{message.number}) was acknowledged under epoch {under}; the "
                    f"checkpoint of epoch {number} does not cover it",
                )

    def _find_unread(self, number: int) -> None:
        """Of each association that is open when its epoch ends the last message is in doubt, unless
        the client has read the reply.
        """
        assert self.load is not None
        unread = [self._last[e] for e in self._ends if e in self._last]
        unread = [q for q in (*self._left_open, *unread) if self.acks[q][1] < number]
        for queue_id in unread:
            self._left_open.pop(queue_id, None)
            message = self.load.messages[self.acks[queue_id][0]]
            if queue_id not in message.read and queue_id not in self.doubts["inbound"]:
                self.violated(
                    "I7",
                    f"the reply to {queue_id} (m{message.number}) was not read when its epoch "
                    f"ended, and it is not in the in-doubt list of epoch {number}",
                )

    # --- sends (I4, I5)

    def taken(
        self,
        near: End,
        number: int,
        queue_id: str,
        recipients: tuple[bytes, ...],
        final: frozenset[bytes] | None,
    ) -> None:
        """A sink took a message, or a report about one (`final`: whom it names)."""
        assert near.tenure is not None and near.owner is not None and self.load is not None
        message = self.load.messages.get(number)
        if message is None:
            self.violated("defect", f"a sink took m{number}, which nobody sent")
            return
        under = near.tenure.epoch
        self._acts(near.owner, under, "sends")
        is_stale = self.is_superseded(under)
        what = "a report of" if final is not None else queue_id
        stale = ", superseded" if is_stale else ""
        self.world.note(f"{near.owner.name} sends {what} m{number} under epoch {under}{stale}")
        self.count("sends")
        if is_stale:
            self.count("stale sends")
            self._stale[near.number] = self._stale.get(near.number, 0) + 1
            if self._stale[near.number] > 1:
                self.violated(
                    "I4",
                    f"{near.owner.name} sent {self._stale[near.number]} messages over one "
                    f"association of epoch {under} after it was marked superseded",
                )
        elif queue_id in self.finished:
            self.violated("I5", f"{near.owner.name} sends {queue_id}, whose end is in the log")
        if final is not None:
            message.reported |= final
            self.count("reports")
            return
        for recipient in recipients:
            copies = message.delivered.setdefault(recipient, [])
            copies.append(queue_id)
            if len(copies) > 1:
                self._doubled(message, copies)

    def _doubled(self, message: Message, copies: list[str]) -> None:
        """A recipient has it twice: was that named before?"""
        self.count("doubles")
        queue_id = copies[-1]
        if queue_id in copies[:-1]:
            known = queue_id in self.doubts["outbound"]
            if not known:
                # One is the INTENT of this very send, which has no RESULT yet.
                known = len(self.picture(durable=False).ledger.doubts.of(queue_id)) > 1
            if not known:
                self.violated("I7", f"{queue_id} is sent twice and was never in doubt")
        elif len(set(copies)) > message.tries:
            self.violated("I7", f"m{message.number} has more copies than tries: {copies}")

    # --- the end (I7)

    def conclude(self, online: list[str]) -> None:
        """All faults are healed and time enough has passed."""
        assert self.load is not None
        if len(online) != 1:
            states = ", ".join(
                f"{p.name} {p.state.name} ({p.ownership.explain()})"
                for p in self.processes
                if not p.is_dead
            )
            self.violated("I7", f"{len(online)} nodes are online: {states}")
        for message in self.load.messages.values():
            if message.queue_ids and not message.is_settled:
                left = [
                    r.decode()
                    for r in message.recipients
                    if r not in message.delivered and r not in message.reported
                ]
                self.violated("I7", f"m{message.number} {message.queue_ids}: lost for {left}")
        self.look(durable=True)
