"""What every store promises: one test for each promise of ISpool.

A store's own tests mix `ISpoolTests` with a `SynchronousTestCase` and provide `make_spool`:

    class MyStoreTests(ISpoolTests, SynchronousTestCase):
        def make_spool(self, node: str) -> ISpool: ...   # every call: another node, one storage

`pump` lets a store work that is not inline.

Long because one contract is one mixin, and ISpool is the widest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from mta.errors import Fenced
from mta.interfaces import IAssociations, IContent, IRevisable, ISpool, IStaging
from mta.model import (
    Address,
    Claim,
    DueWork,
    Envelope,
    EnvelopeKind,
    Fencing,
    FourTuple,
    Grant,
    Intent,
    MessageState,
    Notify,
    QueueAct,
    QueueFilter,
    Recipient,
    RecipientState,
    RecipientStatus,
    Remembered,
    Report,
    Result,
    VirtualAddress,
    derived_queue_id,
    fresh_state,
)
from mta.testing.clock import VirtualClock

NOW = 1_800_000_000.0
ENDS = FourTuple("192.0.2.10", 25, "192.0.2.99", 40000)


def claim(node: str = "a", fencing: Fencing = Fencing.NONE) -> Claim:
    """What a node would publish."""
    address = ip_address("192.0.2.10")
    grant = Grant(7, "vs.example.org", (VirtualAddress(address, address),), fencing)
    return Claim(node, f"boot-{node}", 12.5, "0.1", "digest", grant)


def envelope(*recipients: str, **fields: Any) -> Envelope:
    """From sender@example.org to `recipients` (default: one at example.com)."""
    made = []
    for text in recipients or ("rcpt@example.com",):
        domain = text.rpartition("@")[2].encode()
        made.append(Recipient(Address(text.encode(), domain)))
    fields.setdefault("received_at", NOW)
    sender = Address(b"sender@example.org", b"example.org")
    return Envelope(sender, tuple(made), **fields)


def deferred_state(message: Envelope, due: float, attempts: int = 1) -> MessageState:
    """Every recipient pending after an attempt."""
    one = RecipientState(RecipientStatus.PENDING, "451 4.3.0 later", "4.3.0", "hub[192.0.2.20]:25")
    return MessageState((one,) * len(message.recipients), attempts, due, last_attempt=due - 300)


class ISpoolTests:
    """Mix in before SynchronousTestCase."""

    clock: VirtualClock

    # what a store's tests provide or override

    def make_spool(self, node: str) -> ISpool:
        raise AssertionError("a store's tests say how a node opens the common storage")

    def pump(self) -> None:
        """Let everything happen that can."""

    # helpers

    def setUp(self) -> None:
        self.clock = VirtualClock(NOW)
        self.spool = self.own("a")

    def result(self, deferred: Any) -> Any:
        """The value at hand, or what the Deferred fired with; its failure is raised."""
        if not isinstance(deferred, Deferred):
            return deferred
        found: list[Any] = []
        deferred.addBoth(found.append)
        self.pump()
        assert found, "it has not fired"
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]

    def refused(self, error: type[Exception], call: Any, *arguments: Any) -> Exception:
        """`call` must fail with `error`, at once or later."""
        try:
            self.result(call(*arguments))
        except error as found:
            return found
        raise AssertionError(f"{error.__name__} was not raised")

    def own(self, node: str) -> Any:
        """A node that has taken the spool over."""
        spool = self.make_spool(node)
        known = self.result(spool.inspect())
        self.result(spool.publish(claim(node), known[-1].epoch if known else 0))
        self.recovery = self.result(spool.recover())
        self.result(spool.seal())
        return spool

    def accept(
        self,
        message: Envelope | None = None,
        *chunks: bytes,
        state: MessageState | None = None,
        association: str = "smtp/in/1",
        prepend: bytes = b"Received: by us\r\n",
        intent: Intent | None = None,
    ) -> str:
        """A message accepted by the present owner; its queue id."""
        message = message or envelope()
        staging = self.spool.stage(association)
        for chunk in chunks or (b"Subject: x\r\n\r\nbody\r\n",):
            self.result(staging.write(chunk))
        committing = staging.commit(message, state or fresh_state(message), prepend, intent)
        self.result(committing)
        name: str = staging.queue_id
        return name

    def read(self, queue_id: str) -> bytes:
        content = self.result(self.spool.content(queue_id))
        pieces = []
        while piece := self.result(content.read()):
            pieces.append(piece)
        content.close()
        assert content.size_octets == sum(map(len, pieces))
        return b"".join(pieces)

    def due(self, now: float = NOW, limit: int = 100, avoid: Any = ()) -> list[str]:
        return [work.queue_id for work in self.spool.due(now, limit, avoid)]

    def queued(self) -> list[str]:
        return [e.queue_id for e in self.result(self.spool.scan(QueueFilter(), "", 1000))]

    # the contract itself

    def test_contract(self) -> None:
        """A store, its stagings and its contents have every member that the contracts name."""
        verifyObject(ISpool, self.spool)
        verifyObject(IStaging, self.spool.stage("smtp/in/1"))
        verifyObject(IContent, self.result(self.spool.content(self.accept())))

    # life of a tenure

    def test_epochs_ascend_by_one(self) -> None:
        """Each owner's epoch is exactly one above the last."""
        assert self.spool.epoch == 1
        assert self.own("b").epoch == 2

    def test_publish_only_the_next(self) -> None:
        """Who read the epochs before another published is refused and changes nothing."""
        late = self.make_spool("b")
        self.result(late.inspect())
        self.refused(Fenced, late.publish, claim("b"), 0)
        self.spool.check()

    def test_inspect_says_who_owns(self) -> None:
        """The epochs are listed oldest first, with node, marks and the heartbeat's counter."""
        self.spool.heartbeat()
        self.spool.heartbeat()
        self.pump()
        taker = self.own("b")
        first, second = self.result(taker.inspect())
        assert (first.epoch, first.node, first.superseded, first.heartbeat) == (1, "a", True, 2)
        assert (second.epoch, second.node, second.superseded) == (2, "b", False)

    def test_superseded_is_fenced(self) -> None:
        """Once a newer epoch is published the old owner's check, commit and journal fail."""
        name = self.accept()
        old = self.spool
        staging = old.stage("smtp/in/9")
        staging.write(b"late\r\n")
        taker = self.own("b")
        self.refused(Fenced, old.check)
        message = envelope()
        self.refused(Fenced, staging.commit, message, fresh_state(message), b"", None)
        self.refused(Fenced, old.journal, [Result(name, "", None)], [])
        self.spool = taker
        assert self.queued() == [name]

    def test_nothing_before_the_seal(self) -> None:
        """A node that has published but not sealed accepts nothing and offers nothing."""
        taker = self.make_spool("b")
        self.result(taker.publish(claim("b"), 1))
        self.refused(Fenced, taker.stage, "smtp/in/1")
        self.refused(Fenced, taker.journal, [], [])
        self.result(taker.recover())
        self.refused(Fenced, taker.stage, "smtp/in/1")

    def test_seal_needs_a_recovery(self) -> None:
        """The steps of a takeover cannot be skipped."""
        taker = self.make_spool("b")
        self.refused(Fenced, taker.recover)
        self.result(taker.publish(claim("b"), 1))
        self.refused(Fenced, taker.seal)

    def test_superseded_before_the_seal(self) -> None:
        """A taker that was overtaken between publish and seal never acts."""
        slow = self.make_spool("b")
        self.result(slow.publish(claim("b"), 1))
        self.result(slow.recover())
        quick = self.make_spool("c")
        self.result(quick.publish(claim("c"), 2))
        self.refused(Fenced, slow.seal)
        self.result(quick.recover())
        self.result(quick.seal())

    def test_release_is_marked(self) -> None:
        """After a release the epoch says so, and the node acts no more."""
        self.result(self.spool.release("stop"))
        self.refused(Fenced, self.spool.stage, "smtp/in/1")
        self.refused(Fenced, self.spool.check)
        other = self.make_spool("b")
        assert self.result(other.inspect())[-1].released

    def test_abandon_ends_at_once(self) -> None:
        """After LOST nothing is accepted any more, and the same object can serve a later tenure."""
        name = self.accept()
        staging = self.spool.stage("smtp/in/1")
        self.spool.abandon()
        message = envelope()
        self.refused(Fenced, staging.commit, message, fresh_state(message), b"", None)
        self.refused(Fenced, self.spool.stage, "smtp/in/1")
        self.result(self.spool.publish(claim("a"), 1))
        self.result(self.spool.recover())
        self.result(self.spool.seal())
        assert self.queued() == [name]

    def test_not_stuck(self) -> None:
        """An idle committer is not reported as stuck, nor is one without a tenure."""
        self.accept()
        self.clock.advance(100)
        assert self.spool.stuck_seconds() == 0.0
        assert self.make_spool("b").stuck_seconds() == 0.0

    # accept

    def test_content_as_written(self) -> None:
        """What is sent is the prepend block and then every chunk, octet by octet."""
        name = self.accept(None, b"A: 1\r\n", b"\r\n", b"..dot\r\n", prepend=b"Received: us\r\n")
        assert self.read(name) == b"Received: us\r\nA: 1\r\n\r\n..dot\r\n"

    def test_content_without_prepend(self) -> None:
        """An empty prepend block and a content in many chunks change nothing."""
        chunks = [b"%d\r\n" % n for n in range(200)]
        name = self.accept(None, *chunks, prepend=b"")
        assert self.read(name) == b"".join(chunks)

    def test_large_content(self) -> None:
        """A content of several MiB comes back as it was, also after a takeover."""
        chunks = [bytes([n % 251]) * 65536 for n in range(50)]
        name = self.accept(None, *chunks)
        assert self.read(name) == b"Received: by us\r\n" + b"".join(chunks)
        self.spool = self.own("b")
        assert self.read(name) == b"Received: by us\r\n" + b"".join(chunks)

    def test_middling_content(self) -> None:
        """A content of half a MiB comes back as it was, also after a takeover."""
        chunks = [bytes([n]) * 65536 for n in range(9)]
        name = self.accept(None, *chunks)
        expected = b"Received: by us\r\n" + b"".join(chunks)
        assert self.read(name) == expected
        self.spool = self.own("b")
        assert self.read(name) == expected

    def test_size_while_staging(self) -> None:
        """A staging knows how much was written to it."""
        staging = self.spool.stage("smtp/in/1")
        staging.write(b"12345")
        staging.write(b"678")
        assert staging.size_octets == 8

    def test_envelope_as_committed(self) -> None:
        """Envelope and state come back equal, every field of them, at once and after a takeover."""
        message = Envelope(
            sender=Address(b"", b""),
            recipients=(
                Recipient(
                    Address(b"\xc3\xbc@example.com", b"example.com"),
                    Notify.SUCCESS | Notify.DELAY,
                    b"rfc822;u@x",
                ),
                Recipient(Address(b"b@example.net", b"example.net"), Notify.NEVER),
            ),
            kind=EnvelopeKind.REPORT,
            envelope_id=b"QQ314159",
            ret_full=False,
            priority=-9,
            received_at=NOW - 5,
            deliver_by=NOW + 500,
            trace_hops=3,
            association="smtp/in/1",
            ordinal=2,
            client="peer[192.0.2.99]",
            message_id=b"<1@x>",
        )
        delivered = RecipientState(RecipientStatus.DELIVERED, "250 ok", "2.0.0", "x")
        state = MessageState((delivered, RecipientState()), 3, NOW + 60, False, True, NOW - 9)
        name = self.accept(message, state=state)
        assert self.result(self.spool.load(name)) == (message, state)
        self.spool = self.own("b")
        assert self.result(self.spool.load(name)) == (message, state)

    def test_aborted_is_forgotten(self) -> None:
        """A staging that was aborted leaves nothing, and abort after commit is harmless."""
        staging = self.spool.stage("smtp/in/1")
        staging.write(b"x" * 100)
        staging.abort()
        message = envelope()
        kept = self.spool.stage("smtp/in/1")
        self.result(kept.commit(message, fresh_state(message), b"", None))
        kept.abort()
        assert self.queued() == [kept.queue_id]

    def test_another_content(self) -> None:
        """A content may take the place of another under one queue id: the other leaves nothing,
        whichever of the two is committed, however large they are.
        """
        staging = self.spool.stage("smtp/in/1")
        if not IRevisable.providedBy(staging):
            return
        verifyObject(IRevisable, staging)
        for octets in (10, 300_000, 2_000_000):
            for keeps_first in (False, True):
                first = self.spool.stage("smtp/in/1")
                other = first.another()
                assert other.queue_id == first.queue_id
                for _ in range(10):
                    self.result(first.write(b"1" * (octets // 10)))
                    self.result(other.write(b"2" * (octets // 5)))
                kept, dropped = (first, other) if keeps_first else (other, first)
                dropped.abort()
                message, letter = envelope(), b"1" if keeps_first else b"2"
                self.result(kept.commit(message, fresh_state(message), b"R: x\r\n", None))
                expected = b"R: x\r\n" + letter * (octets if keeps_first else 2 * octets)
                assert self.read(first.queue_id) == expected
                self.spool = self.own("b")
                assert self.read(first.queue_id) == expected
        assert len(self.queued()) == 6

    def test_staging_is_read_back(self) -> None:
        """What is being received can be read from any place, and goes on from there."""
        for octets in (0, 10, 300_000, 2_000_000):
            staging = self.spool.stage("smtp/in/1")
            if not IRevisable.providedBy(staging):
                return
            written = b""
            for number in range(10):
                piece = bytes([65 + number]) * (octets // 10)
                self.result(staging.write(piece))
                written += piece
            for begin in (0, 1, octets // 2, octets, octets + 1):
                found = b""
                while piece := self.result(staging.read(begin + len(found))):
                    assert len(piece) <= 256 << 10
                    found += piece
                assert found == written[begin:]
            self.result(staging.write(b"more"))
            message = envelope()
            self.result(staging.commit(message, fresh_state(message), b"R: x\r\n", None))
            assert self.read(staging.queue_id) == b"R: x\r\n" + written + b"more"

    def test_aborted_while_read_back(self) -> None:
        """A client that goes while its message is read back leaves nothing."""
        staging = self.spool.stage("smtp/in/1")
        if IRevisable.providedBy(staging):
            self.result(staging.write(b"x" * 600_000))
            reading = staging.read(0)
            staging.abort()
            self.result(reading.addErrback(lambda failure: None))
            assert self.queued() == []

    def test_ids_are_unique_over_epochs(self) -> None:
        """No queue id is ever given twice, not even by the next owner, in upper-case hex only."""
        names = [self.accept() for _ in range(3)]
        self.spool = self.own("b")
        names += [self.accept() for _ in range(3)]
        assert len(set(names)) == 6
        assert set("".join(names)) <= set("0123456789ABCDEF")

    def test_committed_counts_as_taken(self) -> None:
        """Whoever commits a message has it: it is not offered again until given back."""
        name = self.accept()
        assert self.due() == []
        self.spool.give_back(name, None)
        assert self.due() == [name]

    # due work

    def test_due_takes(self) -> None:
        """What is due is offered once."""
        names = [self.accept() for _ in range(3)]
        for name in names:
            self.spool.give_back(name, None)
        assert sorted(self.due()) == names
        assert self.due() == []

    def test_due_describes(self) -> None:
        """Work comes with domain, priority and due time."""
        name = self.accept(envelope("x@example.net", priority=4))
        self.spool.give_back(name, NOW - 10)
        assert self.spool.due(NOW, 1, ()) == [DueWork(name, b"example.net", 4, NOW - 10)]

    def test_due_not_before_its_time(self) -> None:
        """A message is offered at its due time and not a moment before."""
        name = self.accept()
        self.spool.give_back(name, NOW + 300)
        assert self.due(NOW + 299.9) == []
        assert self.due(NOW + 300) == [name]

    def test_due_oldest_first(self) -> None:
        """Within a domain the oldest due time goes first."""
        names = [self.accept() for _ in range(4)]
        for name, wait in zip(names, (40, 10, 30, 20), strict=True):
            self.spool.give_back(name, NOW + wait)
        a, b, c, d = names
        assert self.due(NOW + 100) == [b, d, c, a]

    def test_due_by_priority(self) -> None:
        """Within a domain six levels at least are served strictly, whatever is older, and within a
        level the oldest first; after a takeover too (RFC 6710 section 5).
        """
        levels = (-4, 2, 0, 6, -2, 4)
        names = {
            (level, age): self.accept(envelope(priority=level))
            for age in (1, 2)
            for level in levels
        }
        best_first = [names[level, age] for level in sorted(levels, reverse=True) for age in (2, 1)]
        for (_, age), name in names.items():
            self.spool.give_back(name, NOW - age)
        taken = self.due(NOW, 5)
        assert taken == best_first[:5]
        for name in taken:
            self.spool.give_back(name, None)
        assert self.due(NOW, 7) == best_first[:7]
        assert self.due(NOW, 100) == best_first[7:]
        self.spool = self.own("b")
        works = [*self.spool.due(NOW, 5, ()), *self.spool.due(NOW, 100, ())]
        assert [work.priority for work in works] == sorted([*levels] * 2, reverse=True)
        assert sorted(work.queue_id for work in works) == sorted(best_first)

    def test_due_by_priority_when_it_is_due(self) -> None:
        """What is not due yet keeps nothing of a lower level waiting, nor is it forgotten."""
        low, high = self.accept(envelope(priority=-4)), self.accept(envelope(priority=9))
        self.spool.give_back(high, NOW + 60)
        self.spool.give_back(low, NOW + 30)
        assert self.spool.next_due(()) == NOW + 30
        assert self.due(NOW + 30) == [low]
        assert self.spool.next_due(()) == NOW + 60
        assert self.due(NOW + 59.9) == []
        assert self.due(NOW + 60) == [high]

    def test_due_by_priority_is_fair_over_domains(self) -> None:
        """Urgent mail for one domain does not keep another domain's waiting."""
        for n in range(20):
            name = self.accept(envelope(f"r{n}@slow.example", priority=9))
            self.spool.give_back(name, NOW - 100)
        other = self.accept(envelope("r@quick.example", priority=-9))
        self.spool.give_back(other, NOW - 1)
        assert other in self.due(NOW, 2)

    def test_due_is_fair_over_domains(self) -> None:
        """Many messages for one domain do not keep another domain's waiting."""
        slow = [self.accept(envelope(f"r{n}@slow.example")) for n in range(50)]
        for name in slow:
            self.spool.give_back(name, NOW - 100)
        quick = self.accept(envelope("r@quick.example"))
        self.spool.give_back(quick, NOW - 1)
        assert quick in self.due(NOW, 2)

    def test_due_avoids(self) -> None:
        """A domain that rests is passed over, and offered when it rests no more."""
        one = self.accept(envelope("r@one.example"))
        two = self.accept(envelope("r@two.example"))
        for name in (one, two):
            self.spool.give_back(name, NOW)
        assert self.due(avoid={b"one.example"}) == [two]
        assert self.due() == [one]

    def test_due_limit(self) -> None:
        """No more than asked for; the rest stays due."""
        for _ in range(5):
            self.spool.give_back(self.accept(), NOW)
        assert len(self.due(limit=2)) == 2
        assert len(self.due(limit=10)) == 3

    def test_next_due(self) -> None:
        """The earliest due time outside the avoided domains, None when there is none."""
        assert self.spool.next_due(()) is None
        one = self.accept(envelope("r@one.example"))
        assert self.spool.next_due(()) is None
        two = self.accept(envelope("r@two.example"))
        self.spool.give_back(one, NOW + 100)
        self.spool.give_back(two, NOW + 200)
        assert self.spool.next_due(()) == NOW + 100
        assert self.spool.next_due({b"one.example"}) == NOW + 200
        assert self.spool.next_due({b"one.example", b"two.example"}) is None
        assert self.spool.next_due(()) == NOW + 100

    def test_next_due_of_what_waits_for_its_turn(self) -> None:
        """What was left over by a limit is due now."""
        for _ in range(3):
            self.spool.give_back(self.accept(), NOW - 5)
        self.due(limit=1)
        assert self.spool.next_due(()) == NOW - 5

    def test_everything_is_due_after_takeover(self) -> None:
        """What the old owner had taken is offered again by the new one, at its due time."""
        names = [self.accept() for _ in range(3)]
        self.spool = self.own("b")
        assert sorted(self.due()) == names

    # journal

    def test_settled_leaves(self) -> None:
        """A message that is settled for all is gone, now and after a takeover."""
        name, other = self.accept(), self.accept()
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25")]))
        self.result(self.spool.journal([Result(name, "out/1", None)], []))
        self.refused(KeyError, self.spool.load, name)
        self.spool = self.own("b")
        assert self.queued() == [other]
        assert self.spool.in_doubt() == ()

    def test_deferred_comes_back(self) -> None:
        """A deferred message keeps its new state and is due when that says."""
        message = envelope()
        name = self.accept(message)
        state = deferred_state(message, NOW + 300)
        self.result(self.spool.journal([Result(name, "out/1", state)], []))
        assert self.due(NOW + 299) == []
        assert self.spool.next_due(()) == NOW + 300
        assert self.due(NOW + 300) == [name]
        assert self.result(self.spool.load(name)) == (message, state)
        self.spool = self.own("b")
        assert self.due(NOW + 299) == []
        assert self.result(self.spool.load(name)) == (message, state)

    def test_domain_of_the_first_pending(self) -> None:
        """Once a recipient is settled the message waits under the next one's domain."""
        message = envelope("a@one.example", "b@two.example")
        name = self.accept(message)
        states = (RecipientState(RecipientStatus.DELIVERED), RecipientState())
        state = MessageState(states, 1, NOW + 60)
        self.result(self.spool.journal([Result(name, "out/1", state)], []))
        assert self.spool.due(NOW + 60, 1, ())[0].domain == b"two.example"
        self.spool = self.own("b")
        assert self.spool.due(NOW + 60, 1, ())[0].domain == b"two.example"

    def test_in_time_though_avoided(self) -> None:
        """What has a time is offered when it is due though its domain be avoided, under the
        domain's name, and counted there; after an attempt and after a takeover too."""
        message = envelope("a@one.example", deliver_by=NOW + 500)
        name, other = self.accept(message), self.accept(envelope("b@one.example"))
        self.spool.give_back(other, None)
        self.result(
            self.spool.journal([Result(name, "out/1", deferred_state(message, NOW + 60))], [])
        )
        assert dict(self.spool.stats().by_domain) == {b"one.example": 2}
        for node in "bc":
            assert self.spool.next_due({b"one.example"}) == NOW + 60
            assert self.spool.due(NOW + 59, 9, {b"one.example"}) == []
            [work] = self.spool.due(NOW + 60, 9, {b"one.example"})
            assert (work.queue_id, work.domain) == (name, b"one.example")
            self.spool = self.own(node)

    def test_report_comes_with_its_result(self) -> None:
        """The report is queued and due when its outcome is durable, under the id it was given."""
        name = self.accept()
        report = self.report(name)
        self.result(self.spool.journal([Result(name, "out/1", None, (report,))], []))
        assert self.queued() == [report.queue_id]
        assert self.due() == [report.queue_id]
        assert self.result(self.spool.load(report.queue_id))[0] == report.envelope
        assert self.read(report.queue_id) == report.content
        self.spool = self.own("b")
        assert self.queued() == [report.queue_id]
        assert self.read(report.queue_id) == report.content

    def test_report_once(self) -> None:
        """The same report handed in twice is one report."""
        message = envelope()
        name = self.accept(message)
        report = self.report(name)
        for wait in (1, 2):
            state = deferred_state(message, NOW + wait)
            self.result(self.spool.journal([Result(name, "out/1", state, (report,))], []))
        assert self.queued() == [name, report.queue_id]

    def report(self, name: str) -> Report:
        content = b"From: MAILER-DAEMON\r\n\r\nfailed\r\n"
        made = replace(
            envelope("sender@example.org"), sender=Address(b""), kind=EnvelopeKind.REPORT
        )
        return Report(derived_queue_id(name, "failed", (0,)), made, content)

    def test_held_is_never_due(self) -> None:
        """A held message is not offered, before and after a takeover, until it is released."""
        name = self.accept()
        assert self.result(self.spool.act([name], QueueAct.HOLD, NOW)) == [name]
        self.spool.give_back(name, None)
        assert self.due(NOW + 1e6) == []
        self.spool = self.own("b")
        assert self.due(NOW + 1e6) == []
        assert self.spool.stats().held == 1
        assert self.result(self.spool.act([name], QueueAct.RELEASE, NOW + 5)) == [name]
        assert self.due(NOW + 5) == [name]
        assert not self.result(self.spool.load(name))[1].held

    # in doubt

    def test_intent_without_result_is_in_doubt(self) -> None:
        """After a takeover every INTENT without RESULT is listed, with peer and recipients."""
        name = self.accept()
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "hub[192.0.2.20]:25")]))
        assert self.spool.in_doubt() == ()
        self.spool = self.own("b")
        (doubt,) = self.spool.in_doubt()
        assert (doubt.side, doubt.queue_id, doubt.slot, doubt.peer) == (
            "outbound",
            name,
            "out/1",
            "hub[192.0.2.20]:25",
        )
        assert (doubt.recipients, doubt.epoch) == ((0,), 1)
        assert self.recovery.in_doubt == 1

    def test_intent_rides_on_the_accept(self) -> None:
        """An INTENT given with the commit is durable with it."""
        staging = self.spool.stage("smtp/in/1")
        staging.write(b"x\r\n")
        message = envelope()
        intent = Intent(staging.queue_id, "out/3", (0,), "hub:25")
        self.result(staging.commit(message, fresh_state(message), b"", intent))
        self.spool = self.own("b")
        assert [d.slot for d in self.spool.in_doubt()] == ["out/3"]

    def test_not_sent_is_not_in_doubt(self) -> None:
        """A reservation that was given back leaves the message as it was and no doubt."""
        name = self.accept()
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25")]))
        self.result(self.spool.journal([Result(name, "out/1", None, not_sent=True)], []))
        assert self.queued() == [name]
        self.spool = self.own("b")
        assert self.spool.in_doubt() == ()
        assert self.queued() == [name]

    def test_lost_reply_stays_in_doubt(self) -> None:
        """RESULT(unknown) keeps the message on the list until a later result settles it."""
        message = envelope()
        name = self.accept(message)
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25")]))
        lost = Result(name, "out/1", deferred_state(message, NOW + 60), unknown=True)
        self.result(self.spool.journal([lost], []))
        assert [d.queue_id for d in self.spool.in_doubt()] == [name]
        self.spool = self.own("b")
        assert [d.queue_id for d in self.spool.in_doubt()] == [name]
        self.due(NOW + 60)
        self.result(self.spool.journal([Result(name, "out/1", None)], []))
        assert self.spool.in_doubt() == ()

    def test_result_and_next_intent_in_one_batch(self) -> None:
        """RESULT(n) and INTENT(n+1) of a slot may share a batch: only n+1 is open then."""
        one, two = self.accept(), self.accept()
        self.result(self.spool.journal([], [Intent(one, "out/1", (0,), "hub:25")]))
        nexts = [Intent(two, "out/1", (0,), "hub:25")]
        self.result(self.spool.journal([Result(one, "out/1", None)], nexts))
        self.spool = self.own("b")
        assert [d.queue_id for d in self.spool.in_doubt()] == [two]

    def test_ends_are_known_within_a_heartbeat(self) -> None:
        """A new owner can release a peer that the former one had only greeted."""
        self.spool.open_association("smtp/in/1", ENDS, True)
        self.spool.heartbeat()
        self.own("b")
        assert self.recovery.open_associations == (ENDS,)

    def test_inbound_doubt(self) -> None:
        """The last message of each inbound association that was open is listed; others are not."""
        self.spool.open_association("smtp/in/1", ENDS, True)
        self.spool.open_association("smtp/in/2", ENDS, True)
        self.spool.open_association("out/1", ENDS, False)
        self.accept(association="smtp/in/1")
        last = self.accept(association="smtp/in/1")
        self.accept(association="smtp/in/2")
        self.spool.close_association("smtp/in/2")
        self.accept(association="smtp/in/7")
        self.spool = self.own("b")
        assert [(d.side, d.queue_id) for d in self.spool.in_doubt()] == [("inbound", last)]
        assert "192.0.2.99" in self.spool.in_doubt()[0].peer

    def test_inbound_doubt_is_named(self) -> None:
        """An inbound entry says which message of its association it was, from whom, under which
        epoch.
        """
        self.spool.open_association("smtp/in/1", ENDS, True)
        epoch = self.spool.epoch
        self.accept(envelope(ordinal=1), association="smtp/in/1")
        self.accept(envelope(ordinal=2), association="smtp/in/1")
        self.spool = self.own("b")
        (doubt,) = self.spool.in_doubt()
        assert (doubt.slot, doubt.ordinal, doubt.epoch) == ("smtp/in/1", 2, epoch)
        assert doubt.peer == "192.0.2.99:40000"

    def test_inbound_doubt_names_the_client(self) -> None:
        """Behind a balancer or a proxy it is the client of that very message that is named, and by
        whom it came; also under the owners that follow, and on an association that we reset.
        """
        self.spool.open_association("smtp/in/1", ENDS, True)
        for number, client in enumerate(("198.51.100.7", "a.example[198.51.100.8]"), 1):
            self.accept(envelope(ordinal=number, client=client), association="smtp/in/1")
        associations = IAssociations(self.spool, None)
        self.spool.open_association("smtp/in/2", ENDS, True)
        self.accept(envelope(ordinal=1, client="198.51.100.9"), association="smtp/in/2")
        if associations is not None:
            associations.leave_association("smtp/in/2")
            assert [d.whom for d in self.spool.in_doubt()] == ["198.51.100.9"]
        for node in "bc":
            self.spool = self.own(node)
            found = {(d.slot, d.whom, d.via) for d in self.spool.in_doubt()}
            assert found == {
                ("smtp/in/1", "a.example[198.51.100.8]", "192.0.2.99:40000"),
                ("smtp/in/2", "198.51.100.9", "192.0.2.99:40000"),
            }

    def test_client_has_gone_on(self) -> None:
        """An association that is journalled anew has read what was accepted on it before."""
        self.spool.open_association("smtp/in/1", ENDS, True)
        self.accept(association="smtp/in/1")
        self.spool.open_association("smtp/in/1", ENDS, True)
        self.accept(association="smtp/in/7")  # the journal of an association waits for company
        self.spool = self.own("b")
        assert self.spool.in_doubt() == ()

    def test_doubts_outlive_takeovers(self) -> None:
        """Two takeovers in a row: what was in doubt under the first epoch still is under the third,
        both sides; settled, the outbound one is gone.
        """
        self.spool.open_association("smtp/in/1", ENDS, True)
        name = self.accept(association="smtp/in/1")
        self.result(
            self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25", transaction="<t@x>")])
        )
        first = self.spool.epoch
        self.own("b")
        self.spool = self.own("c")
        doubts = {d.side: d for d in self.spool.in_doubt()}
        assert doubts["outbound"].epoch == doubts["inbound"].epoch == first
        assert doubts["outbound"].transaction == "<t@x>"
        self.due(NOW)
        self.result(self.spool.journal([Result(name, "out/7", None)], []))
        assert [d.side for d in self.spool.in_doubt()] == ["inbound"]

    def test_partial_reply_set(self) -> None:
        """Of several recipients those that were answered are settled, the rest is in doubt."""
        message = envelope("a@example.com", "b@example.com", "c@example.com")
        name = self.accept(message)
        self.result(self.spool.journal([], [Intent(name, "out/1", (0, 1, 2), "store:24")]))
        given = (
            RecipientState(RecipientStatus.DELIVERED),
            RecipientState(),
            RecipientState(RecipientStatus.FAILED),
        )
        state = replace(fresh_state(message), recipients=given, due=NOW + 60)
        self.result(self.spool.journal([Result(name, "out/1", state, unknown=True)], []))
        assert [d.recipients for d in self.spool.in_doubt()] == [(1,)]
        self.spool = self.own("b")
        assert [d.recipients for d in self.spool.in_doubt()] == [(1,)]

    def test_another_destination_settles_nothing(self) -> None:
        """The result of other recipients of the same message leaves a doubt as it is; so does a
        deferral of the resend: the first copy may be there.
        """
        message = envelope("a@example.com", "b@example.net")
        name = self.accept(message)
        waiting = replace(fresh_state(message), due=NOW + 60)
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "one:25")]))
        self.result(self.spool.journal([Result(name, "out/1", waiting, unknown=True)], []))
        other = (RecipientState(), RecipientState(RecipientStatus.DELIVERED))
        given = replace(waiting, recipients=other)
        self.result(self.spool.journal([], [Intent(name, "out/2", (1,), "two:25")]))
        self.result(self.spool.journal([Result(name, "out/2", given)], []))
        assert [d.recipients for d in self.spool.in_doubt()] == [(0,)]
        self.result(self.spool.journal([], [Intent(name, "out/3", (0,), "one:25")]))
        self.result(self.spool.journal([Result(name, "out/3", given)], []))
        assert [d.recipients for d in self.spool.in_doubt()] == [(0,)]
        self.spool = self.own("b")
        assert [d.recipients for d in self.spool.in_doubt()] == [(0,)]

    # named transactions

    def named(self, name: str, association: str = "smtp/in/1", expires: float = NOW + 100) -> str:
        """A message whose transaction has a name; its queue id."""
        staging = self.spool.stage(association)
        staging.write(b"Subject: x\r\n\r\n")
        staging.remember("client", name, expires)
        message = envelope()
        self.result(staging.commit(message, fresh_state(message), b"Received: by us\r\n", None))
        return str(staging.queue_id)

    def test_named_transaction_is_recalled(self) -> None:
        """A transaction is recalled by client and name until it expires, with its queue id and the
        octets that the client sent, also after takeovers and when the message has left long since.
        """
        queued = self.named("<1@x>")
        assert self.spool.recall("client", "<1@x>") == Remembered(
            "client", "<1@x>", queued, 14, NOW + 100
        )
        assert self.spool.recall("other", "<1@x>") is None
        assert self.spool.recall("client", "<2@x>") is None
        self.result(self.spool.journal([Result(queued, "", None)], []))
        for node in ("b", "a"):
            self.spool = self.own(node)
            found = self.spool.recall("client", "<1@x>")
            assert (found.queue_id, found.octets) == (queued, 14)
        self.clock.advance(100)
        assert self.spool.recall("client", "<1@x>") is None

    def test_named_transaction_needs_its_commit(self) -> None:
        """A message that was given up is not recalled, nor is one that was not committed."""
        staging = self.spool.stage("smtp/in/1")
        staging.remember("client", "<1@x>", NOW + 100)
        assert self.spool.recall("client", "<1@x>") is None
        staging.abort()
        self.spool = self.own("b")
        assert self.spool.recall("client", "<1@x>") is None

    def test_next_transaction_ends_the_last(self) -> None:
        """The next one on the same association shows that its client has recorded the last: that
        is forgotten, and no other.
        """
        self.named("<1@x>", "smtp/in/1")
        self.named("<2@x>", "smtp/in/2")
        self.named("<3@x>", "smtp/in/1")
        for _ in range(2):
            known = [n for n in "123" if self.spool.recall("client", f"<{n}@x>") is not None]
            assert known == ["2", "3"]
            self.spool = self.own("b")

    def test_association_of_another_epoch(self) -> None:
        """After a takeover an association of the same name is another one: nothing is forgotten."""
        self.named("<1@x>", "smtp/in/1")
        self.spool = self.own("b")
        self.named("<2@x>", "smtp/in/1")
        assert self.spool.recall("client", "<1@x>") is not None
        assert self.spool.recall("client", "<2@x>") is not None

    def test_forget_last(self) -> None:
        """Told that the client knows, the last of that association goes; the others stay."""
        self.named("<1@x>", "smtp/in/1")
        self.named("<2@x>", "smtp/in/2")
        self.spool.forget_last("smtp/in/1")
        self.spool.forget_last("smtp/in/9")
        assert self.spool.recall("client", "<1@x>") is None
        assert self.spool.recall("client", "<2@x>") is not None

    # operators

    def test_scan_in_order(self) -> None:
        """Entries come in the order of queue ids, those behind `after`, as many as asked for."""
        names = [self.accept() for _ in range(5)]
        found = self.result(self.spool.scan(QueueFilter(), names[1], 2))
        assert [e.queue_id for e in found] == names[2:4]

    def test_scan_entries(self) -> None:
        """An entry shows envelope, state, size, and whether it is in somebody's hands."""
        message = envelope()
        name = self.accept(message, b"12345", prepend=b"67")
        (entry,) = self.result(self.spool.scan(QueueFilter(), "", 10))
        assert (entry.queue_id, entry.size_octets, entry.active) == (name, 7, True)
        assert (entry.envelope, entry.state) == (message, fresh_state(message))
        self.spool.give_back(name, NOW + 1)
        (entry,) = self.result(self.spool.scan(QueueFilter(), "", 10))
        assert not entry.active

    def test_scan_filters(self) -> None:
        """By sender, recipient, domain (also `*.x`), id and hold; fields not given do not count."""
        one = self.accept(envelope("a@mail.example.com"))
        two = self.accept(envelope("b@example.net", "c@example.com"))
        three = self.accept(replace(envelope("d@example.org"), sender=Address(b"")))
        self.result(self.spool.act([three], QueueAct.HOLD, NOW))

        def ids(**fields: Any) -> list[str]:
            chosen = QueueFilter(**fields)
            return [e.queue_id for e in self.result(self.spool.scan(chosen, "", 100))]

        assert ids(sender="Sender@example.org") == [one, two]
        assert ids(sender="<>") == [three]
        assert ids(recipient="c@example.com") == [two]
        assert ids(domain="*.example.com") == [one]
        assert ids(domain="example.com") == [two]
        assert ids(queue_ids=(two, "FFFFFFFFFFFFFF")) == [two]
        assert ids(held=True) == [three]
        assert ids(held=False, domain="example.org") == []

    def test_act_delete(self) -> None:
        """Deleted mail is gone for good; unknown ids are left out of the answer."""
        one, two = self.accept(), self.accept()
        assert self.result(self.spool.act([one, "00000000000999"], QueueAct.DELETE, NOW)) == [one]
        self.spool = self.own("b")
        assert self.queued() == [two]

    def test_delete_while_active(self) -> None:
        """A message deleted in mid-transfer stays deleted whatever its transfer brings."""
        message = envelope()
        name = self.accept(message)
        self.result(self.spool.journal([], [Intent(name, "out/1", (0,), "hub:25")]))
        self.result(self.spool.act([name], QueueAct.DELETE, NOW))
        state = deferred_state(message, NOW + 60)
        late = Result(name, "out/1", state, (self.report(name),))
        self.result(self.spool.journal([late], []))
        assert self.queued() == []
        self.spool = self.own("b")
        assert self.queued() == []
        assert self.spool.in_doubt() == ()

    def test_hold_while_active(self) -> None:
        """A message put on hold in mid-transfer is held when its transfer did not settle it."""
        message = envelope()
        name = self.accept(message)
        self.result(self.spool.act([name], QueueAct.HOLD, NOW))
        state = deferred_state(message, NOW + 60)
        self.result(self.spool.journal([Result(name, "out/1", state)], []))
        assert self.due(NOW + 1e6) == []
        assert self.result(self.spool.load(name))[1].held

    def test_retry(self) -> None:
        """A retried message is due now, also for the next owner; held ones are not touched."""
        message = envelope()
        one, held = self.accept(message), self.accept()
        state = deferred_state(message, NOW + 3600)
        self.result(self.spool.journal([Result(one, "out/1", state)], []))
        self.result(self.spool.act([held], QueueAct.HOLD, NOW))
        assert self.result(self.spool.act([one, held], QueueAct.RETRY, NOW + 1)) == [one]
        assert self.spool.next_due(()) == NOW + 1
        self.spool = self.own("b")
        assert self.due(NOW + 1) == [one]

    def test_stats(self) -> None:
        """Counts of messages, held, octets and domains, and the oldest arrival."""
        assert self.spool.stats().messages == 0
        assert self.spool.stats().oldest_received_at is None
        self.accept(envelope("a@one.example", received_at=NOW - 50), b"12345", prepend=b"")
        two = self.accept(envelope("b@two.example"), b"123", prepend=b"")
        self.result(self.spool.act([two], QueueAct.HOLD, NOW))
        stats = self.spool.stats()
        assert (stats.messages, stats.held, stats.octets) == (2, 1, 8)
        assert stats.oldest_received_at == NOW - 50
        assert dict(stats.by_domain) == {b"one.example": 1, b"two.example": 1}
        assert stats.free_octets > 0

    def test_load_of_the_unknown(self) -> None:
        """Asking for what is not queued is a KeyError."""
        self.refused(KeyError, self.spool.load, "0000FFFFFFFFFF")
        self.refused(KeyError, self.spool.content, "nonsense")


class IAssociationsTests:
    """For stores that have this add-on: mix in beside ISpoolTests."""

    spool: Any
    accept: Callable[..., str]
    own: Callable[[str], Any]

    def test_cut_off_by_us(self) -> None:
        """What was last accepted on an association that we reset is in doubt at once; so is what
        was being committed then; and so they are for the next owner.
        """
        spool = IAssociations(self.spool)
        self.spool.open_association("smtp/in/1", ENDS, True)
        self.spool.open_association("smtp/in/2", ENDS, True)
        first = self.accept(association="smtp/in/1")
        spool.leave_association("smtp/in/1")
        spool.leave_association("smtp/in/2")
        spool.leave_association("smtp/in/3")
        assert [d.queue_id for d in self.spool.in_doubt()] == [first]
        late = self.accept(association="smtp/in/2")
        assert {d.queue_id for d in self.spool.in_doubt()} == {first, late}
        self.spool = self.own("b")
        assert {d.queue_id for d in self.spool.in_doubt()} == {first, late}
