"""What is encoded comes back equal; what is damaged is seen; the columns keep their order."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import (
    NULL_ADDRESS,
    PRIORITIES,
    Address,
    AddressKind,
    BodyType,
    ContentForm,
    Envelope,
    EnvelopeKind,
    FourTuple,
    Intent,
    MessageState,
    Notify,
    Recipient,
    RecipientState,
    RecipientStatus,
    Remembered,
    Requires,
)
from mta.spool import records
from mta.spool.envelopes import decode_envelope, decode_state, encode_envelope, encode_state
from mta.spool.files import Files
from mta.spool.index import COLUMNS, HELD, NOWHERE, Index
from mta.spool.priorities import BEST_FIRST, LEVEL_OF
from mta.spool.segment import HEADER_OCTETS, Segment, batches
from mta.spool.sorted_keys import SortedKeys
from mta.testing.disk import ForgetfulDisk

quick = settings(max_examples=60, deadline=None, derandomize=True)
times = st.floats(0, 1e11, allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
addresses = st.builds(
    Address, st.binary(max_size=60), st.binary(max_size=30), st.sampled_from(AddressKind)
)
recipients = st.builds(Recipient, addresses, st.integers(0, 15).map(Notify), st.binary(max_size=40))
envelopes = st.builds(
    Envelope,
    sender=addresses,
    recipients=st.lists(recipients, max_size=4).map(tuple),
    kind=st.sampled_from(EnvelopeKind),
    body_type=st.sampled_from(BodyType),
    content_form=st.sampled_from(ContentForm),
    envelope_id=st.binary(max_size=20),
    ret_full=st.sampled_from([None, True, False]),
    priority=st.sampled_from(PRIORITIES),
    requires=st.integers(0, 7).map(Requires),
    received_at=times,
    deferred_until=st.none() | times,
    deliver_by=st.none() | times,
    trace_hops=st.integers(0, 1000),
    association=texts,
    ordinal=st.integers(0, 2**31),
    client=texts,
    message_id=st.binary(max_size=50),
)
states = st.builds(
    MessageState,
    recipients=st.lists(
        st.builds(RecipientState, st.sampled_from(RecipientStatus), texts, texts, texts),
        max_size=4,
    ).map(tuple),
    attempts=st.integers(0, 2**31),
    due=times,
    held=st.booleans(),
    delay_warned=st.booleans(),
    last_attempt=times,
)
damage = (ValueError, struct.error)


class PriorityCodecTests(SynchronousTestCase):
    def test_what_lies_there_already(self) -> None:
        """0 and X.400's grades are the octets that they always were: an older build reads them."""
        written = [encode_envelope(Envelope(NULL_ADDRESS, (), priority=p))[3] for p in (4, 0, -4)]
        self.assertEqual(written, [0, 1, 2])
        self.assertEqual([LEVEL_OF[p] for p in (4, 0, -4)], [0, 1, 2])

    def test_every_value(self) -> None:
        """Each has an octet of its own, and what is none is refused by name."""
        octets = {p: encode_envelope(Envelope(NULL_ADDRESS, (), priority=p)) for p in PRIORITIES}
        self.assertEqual(len(set(octets.values())), 19)
        for priority, encoded in octets.items():
            self.assertEqual(decode_envelope(encoded).priority, priority)
        damaged = bytearray(octets[0])
        damaged[3] = 19
        self.assertRaises(ValueError, decode_envelope, bytes(damaged))
        self.assertRaises(KeyError, encode_envelope, Envelope(NULL_ADDRESS, (), priority=10))

    def test_levels_keep_the_order(self) -> None:
        """No message is ranked before one of a higher priority, and six levels are told apart."""
        ranks = [BEST_FIRST.index(LEVEL_OF[p]) for p in sorted(PRIORITIES, reverse=True)]
        self.assertEqual(ranks, sorted(ranks))
        self.assertEqual(len({LEVEL_OF[p] for p in (-4, -2, 0, 2, 4, 6)}), 6)


class CodecTests(SynchronousTestCase):
    @quick
    @given(envelopes)
    def test_envelope(self, envelope: Envelope) -> None:
        """Every envelope that can be accepted is read back as it was."""
        assert decode_envelope(encode_envelope(envelope)) == envelope

    @quick
    @given(states)
    def test_state(self, state: MessageState) -> None:
        """Every state is read back as it was."""
        assert decode_state(encode_state(state)) == state

    @quick
    @given(st.binary(max_size=300))
    def test_rubbish(self, octets: bytes) -> None:
        """Rubbish is an error by name, never a crash and never a giant in memory."""
        for decode in (
            decode_envelope,
            decode_state,
            records.decode_message,
            records.decode_change,
            lambda o: records.decode_intent("X", o),
        ):
            try:
                decode(octets)
            except damage:
                pass

    @quick
    @given(envelopes, st.data())
    def test_cut_envelope(self, envelope: Envelope, data: st.DataObject) -> None:
        """An envelope that ends early is never taken for a whole one."""
        octets = encode_envelope(envelope)
        short = octets[: data.draw(st.integers(0, len(octets) - 1))]
        self.assertRaises(ValueError, decode_envelope, short)

    def test_fresh_state_is_small(self) -> None:
        """A state of a thousand untouched recipients costs no more than of one."""
        assert len(encode_state(MessageState((RecipientState(),) * 1000))) < 30

    @quick
    @given(texts, texts, texts, st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple))
    def test_intent(self, slot: str, peer: str, transaction: str, who: tuple[int, ...]) -> None:
        """An INTENT keeps slot, peer, transaction and recipients."""
        intent = Intent("00010000000001", slot, who, peer, transaction)
        assert records.decode_intent(intent.queue_id, records.encode_intent(intent)) == intent

    def test_small_payloads(self) -> None:
        """DONE, HOLD, TRANSACTION, ASSOCIATION and CONTINUES keep what they say."""
        assert records.decode_done(records.encode_done(3, "out/1")) == (3, "out/1")
        assert records.decode_hold(records.encode_hold(True, 7.5)) == (True, 7.5)
        known = Remembered("client", "<t@x>", "00010000000001", 1 << 40, 9.0)
        made = records.encode_transaction(known, "smtp/in/1")
        assert records.decode_transaction("00010000000001", made) == (known, "smtp/in/1")
        with self.assertRaises((ValueError, struct.error)):
            records.decode_transaction("00010000000001", made[:-1])
        ends = FourTuple("192.0.2.1", 25, "2001:db8::1", 65535)
        opened = records.encode_association("smtp/in/1", ends, True)
        assert records.decode_association(opened) == ("smtp/in/1", ends, True)
        closed = records.encode_association("smtp/in/1", None, False)
        assert records.decode_association(closed) == ("smtp/in/1", None, False)
        made = records.encode_continues(4, 3, 2, 1)
        assert records.decode_continues(made) == (4, 3, 2, 1)


TAG = 0x1234567890ABCDEF
record_values = st.tuples(
    st.integers(1, 11),
    st.text("0123456789ABCDEF", min_size=14, max_size=24).map(str.encode),
    st.binary(max_size=200),
    st.lists(st.binary(max_size=3000), max_size=3).map(tuple),
)


class BatchTests(SynchronousTestCase):
    def write(self, *groups: list[records.Record]) -> tuple[Files, int, Segment, list[int]]:
        disk = ForgetfulDisk()
        fd = disk.open("/spool-root/s", 0o102)
        disk.pwritev(fd, [bytes(1 << 18)], 0)
        at, starts = HEADER_OCTETS, []
        for number, group in enumerate(groups):
            pieces, _, octets = records.encode_batch(group, TAG, 5, number + 1, at, wall=77.0)
            disk.pwritev(fd, pieces, at)
            starts.append(at)
            at += octets
        self.disk = disk
        return disk, fd, Segment(5, 1, 1, TAG, 1 << 18), starts  # type: ignore[return-value]

    def read(self, disk: Files, fd: int, segment: Segment) -> list:
        return list(batches(disk, fd, segment, HEADER_OCTETS, segment.size))

    def record(self, n: int, body: bytes = b"body" * 700) -> records.Record:
        return (records.MSG, b"%014X" % n, b"payload %d" % n, (body,), len(body))

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.lists(record_values, min_size=1, max_size=4), min_size=1, max_size=4))
    def test_round_trip(self, groups: list) -> None:
        """Batches of any records are read back, each record in its place, bodies apart."""
        made = [
            [(k, n, p, body, sum(map(len, body))) for k, n, p, body in group] for group in groups
        ]
        disk, fd, segment, starts = self.write(*made)
        found = self.read(disk, fd, segment)
        assert [b.offset for b in found] == starts
        for batch, group in zip(found, made, strict=True):
            assert batch.is_whole and batch.wall == 77.0
            for view, (kind, name, payload, body, octets) in zip(batch.records, group, strict=True):
                assert (view.kind, view.queue_id.encode(), view.payload) == (kind, name, payload)
                assert (view.epoch, view.body_octets) == (5, octets)
                assert disk.pread(fd, octets, view.body_offset) == b"".join(body)

    def test_batches_start_at_pages(self) -> None:
        """No write ever touches a page that holds acknowledged data."""
        _, _, _, starts = self.write([self.record(1)], [self.record(2)], [self.record(3)])
        assert all(start % 4096 == 0 for start in starts)

    def test_a_flipped_bit_costs_one_record(self) -> None:
        """Wherever one bit of a record's head flips, the other records of its batch are read."""
        group = [self.record(n) for n in range(3)]
        disk, fd, segment, _ = self.write(group, [self.record(9)])
        place = self.read(disk, fd, segment)[0].records[1].place
        for offset in range(place.offset, place.offset + 28 + 14 + 9):
            self.disk.flip("/spool-root/s", offset, offset % 8)
            first, second = self.read(disk, fd, segment)
            assert [v.queue_id for v in first.records] == [f"{0:014X}", f"{2:014X}"], offset
            assert first.damaged == [place.offset] and not first.is_whole
            assert second.is_whole
            self.disk.flip("/spool-root/s", offset, offset % 8)

    def test_a_damaged_batch_head_is_passed(self) -> None:
        """Behind a batch whose head is gone reading goes on at the next batch."""
        disk, fd, segment, starts = self.write([self.record(1)], [self.record(2)], [self.record(3)])
        self.disk.flip("/spool-root/s", starts[1] + 3)
        assert [b.offset for b in self.read(disk, fd, segment)] == [starts[0], starts[2]]

    def test_a_body_cannot_forge(self) -> None:
        """A body that holds a batch of its own, made without knowing the tag, is only a body."""
        forged, _, _ = records.encode_batch(
            [(records.DONE, b"00000000000001", records.encode_done(0, ""), (), 0)],
            TAG ^ 1,
            5,
            9,
            0,
            wall=1.0,
        )
        body = b"".join([bytes(4096 - 200), *forged]) * 3
        disk, fd, segment, starts = self.write([self.record(1, body)], [self.record(2)])
        self.disk.flip("/spool-root/s", starts[0] + 1)
        assert [b.offset for b in self.read(disk, fd, segment)] == [starts[1]]

    def test_stale_batches_of_an_earlier_use(self) -> None:
        """What another generation left behind in a recycled segment is never read."""
        disk, fd, _, starts = self.write([self.record(1)], [self.record(2)])
        fresh = Segment(5, 1, 2, TAG ^ 0xFF, 1 << 18)
        pieces, _, _ = records.encode_batch([self.record(7)], fresh.tag, 5, 1, starts[0], wall=1.0)
        disk.pwritev(fd, pieces, starts[0])
        assert [b.offset for b in self.read(disk, fd, fresh)] == [starts[0]]


class IndexTests(SynchronousTestCase):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=400))
    def test_sorted_keys(self, steps: list[tuple[bool, int]]) -> None:
        """Any order of adding and removing answers as a plain dictionary does."""
        keys, plain = SortedKeys(), {}
        for add, key in steps:
            if add and key not in plain:
                keys.add(key, key * 2)
                plain[key] = key * 2
            elif not add and key in plain:
                assert keys.remove(key) == plain.pop(key)
        assert len(keys) == len(plain)
        assert list(keys.after(0)) == sorted(plain.items())
        assert all(keys.find(k) == plain.get(k, -1) for k in range(3001))

    def test_sorted_keys_over_many_blocks(self) -> None:
        """Thousands of keys, added out of order and removed from the middle, stay in order."""
        keys = SortedKeys()
        for n in range(4000):
            keys.add((n * 2654435761) % (1 << 32), n)
        every = [key for key, _ in keys.after(0)]
        assert every == sorted(every)
        for key in every[500:3500]:
            keys.remove(key)
        assert [key for key, _ in keys.after(0)] == every[:500] + every[3500:]
        self.assertRaises(KeyError, keys.remove, every[1000])
        again = SortedKeys.load(*keys.dump())
        assert list(again.after(0)) == list(keys.after(0)) and len(again) == len(keys) == 1000
        assert again.find(every[0]) == keys.find(every[0]) and again.find(every[1000]) == -1
        self.assertRaises(ValueError, SortedKeys.load, keys.dump()[0], b"")

    def index(self, *domains: bytes) -> Index:
        index = Index()
        for n, domain in enumerate(domains):
            index.insert(
                f"{(1 << 40) + n:014X}",
                1,
                NOWHERE,
                due=100.0 + n,
                received=50.0,
                size=10,
                domain=domain,
            )
        return index

    def test_inserted_twice(self) -> None:
        """A message that is there already stays as it is, whichever sort of queue id it has."""
        index = self.index(b"a")
        for name in ("00010000000007", "0001000000000712345678"):
            there = index.insert(name, 1, NOWHERE, due=1.0, received=1.0, size=3, domain=b"a")
            again = index.insert(name, 2, NOWHERE, due=9.0, received=1.0, size=5, domain=b"b")
            assert (again, index.find(name), index.due[there]) == (-1, there, 1.0)
        assert len(index) == 3 and index.octets == 16
        assert index.domains.numbers.keys() == {b"a"}

    def test_dump_and_load(self) -> None:
        """The columns that a checkpoint holds make the same queue again."""
        index = self.index(b"a", b"b", b"a", b"c")
        index.insert(
            "0001000000000012345678", 1, NOWHERE, due=5.0, received=1.0, size=3, domain=b"a"
        )
        index.remove(index.find("00010000000001"))
        index.take_due(100.0, 1, ())
        again = Index.load(index.dump(), index.domains.names, dict(index.derived))
        assert [again.queue_id(s) for s in again.after("")] == [
            index.queue_id(s) for s in index.after("")
        ]
        assert again.octets == index.octets == 33
        assert again.domains.numbers.keys() == {b"a", b"c"}
        taken = [again.queue_id(s) for s in again.take_due(1000.0, 10, ())]
        assert sorted(taken) == sorted(again.queue_id(s) for s in again.after(""))

    def test_what_was_long_once(self) -> None:
        """A queue that drained costs a takeover what it holds, not what it once held."""
        index = self.index(*[b"a"] * 1000)
        for slot in range(1, 1000):
            index.remove(slot)
        again = Index.load(index.dump(), index.domains.names, {})
        assert len(again.key) == 1 and again.take_due(1e6, 10, ()) == [0]
        assert again.due_times.next_due(()) is None

    def test_a_dump_that_does_not_fit(self) -> None:
        """Columns, keys and heaps of different queues make no queue."""
        one, other = self.index(b"a", b"b"), self.index(b"a", b"b", b"b")
        for at in range(len(one.dump())):
            mixed = one.dump()
            mixed[at] = other.dump()[at]
            if mixed[at] != one.dump()[at] and at != len(COLUMNS):  # the sums fit any queue
                self.assertRaises(ValueError, Index.load, mixed, one.domains.names, {})

    @quick
    @given(
        acts=st.lists(
            st.tuples(
                st.sampled_from(["insert", "remove", "take", "defer", "hold", "move"]),
                st.integers(0, 39),
                st.sampled_from([b"a", b"b", b"c"]),
                st.sampled_from([0, 0, *PRIORITIES]),
            ),
            max_size=120,
        )
    )
    def test_any_queue_survives_its_checkpoint(
        self, acts: list[tuple[str, int, bytes, int]]
    ) -> None:
        """Whatever happened, the queue read back offers the same messages, the taken ones too."""
        index = Index()
        for time, (act, number, domain, priority) in enumerate(acts):
            name = f"{number + 1:014X}"
            slot = index.find(name)
            if act == "insert" and slot < 0:
                index.insert(
                    name, 1, NOWHERE, due=10.0, received=1.0, size=number, domain=domain,
                    priority=priority,
                )  # fmt: skip
            elif act == "take":
                index.take_due(12.0 + number, 2, ())
            elif slot < 0:
                continue
            elif act == "remove":
                index.remove(slot)
            else:
                moved = domain if act == "move" else None
                index.schedule(slot, 12.0 + time, held=act == "hold", domain=moved)
        again = Index.load(index.dump(), index.domains.names, {})
        assert list(again.after("")) == list(index.after(""))
        assert (again.held, again.octets, len(again)) == (index.held, index.octets, len(index))
        live = [slot for slot in range(len(index.key)) if index.flags[slot]]
        assert [again.domain[s] for s in live] == [index.domain[s] for s in live]
        waiting = [s for s in live if not index.flags[s] & HELD]
        assert [again.priority(s) for s in live] == [index.priority(s) for s in live]
        taken = again.take_due(1e6, 100, ())
        assert sorted(taken) == waiting
        for domain in (b"a", b"b", b"c"):
            order = [
                (-again.priority(s), int(again.due[s] * 2), s)
                for s in taken
                if again.domains.names[again.domain[s]] == domain
            ]
            assert [o[:2] for o in order] == sorted(o[:2] for o in order)
        fresh = again.insert(
            "00010000000000", 1, NOWHERE, due=1.0, received=1.0, size=1, domain=b"z"
        )
        assert fresh not in live and again.find("00010000000000") == fresh

    def test_domains_are_forgotten(self) -> None:
        """A domain costs memory only while something is queued for it."""
        index = Index()
        for n in range(1000):
            name = f"{n + 1:014X}"
            domain = b"d%d.example" % n
            index.insert(name, 1, NOWHERE, due=1.0, received=1.0, size=1, domain=domain)
            index.remove(index.find(name))
        assert len(index.domains.names) == 1 and not index.domains.numbers
        assert len(index.key) == 1 and len(index) == 0

    def test_acts_do_not_pile_up(self) -> None:
        """A message rescheduled ten thousand times leaves a bounded number of entries."""
        index = self.index(b"a")
        for n in range(10_000):
            index.schedule(0, 100.0 + n, held=False)
        assert len(index.domains.heaps[0]) < 200
        assert index.due_times.next_due(()) == 100.0 + 9999
        assert index.take_due(1e6, 10, ()) == [0]

    def test_ids_of_other_shapes(self) -> None:
        """What is no queue id is not found, whatever it looks like."""
        index = self.index(b"a")
        for name in ("", "xyz", "-1", "FFFFFFFFFFFFFFFF", "F" * 15, "Z" * 22, "F" * 300):
            assert index.find(name) == -1
