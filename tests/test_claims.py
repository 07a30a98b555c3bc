"""Who may claim with an address, decided from epoch files alone (cluster.md section 4)."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address
from zlib import crc32

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.claims import judge
from mta.model import (
    REMEMBERED,
    AddressInstance,
    Claim,
    EpochRecord,
    Fencing,
    Grant,
    former_instances,
)
from mta.spool.directory import Directory
from mta.spool.epoch import (
    KEPT,
    OwnEpoch,
    decode_epoch,
    encode_claim,
    make_slot,
    path_of,
    publish,
    read_epochs,
    slots,
)
from mta.testing.disk import ForgetfulDisk
from mta.testing.surroundings import virtual_addresses

ADDRESS = IPv4Address("192.0.2.10")


def of(node: str, cstamp: int, boot: str = "", ifindex: int = 2) -> AddressInstance:
    return AddressInstance(boot or f"boot-{node}", ifindex, ADDRESS, cstamp)


def record(
    epoch: int, node: str, *used: AddressInstance, former: tuple[AddressInstance, ...] = ()
) -> EpochRecord:
    return EpochRecord(epoch, node, f"boot-{node}", False, False, 5, used, former)


class WhoMayClaim(SynchronousTestCase):
    def test_a_new_instance(self) -> None:
        """An address that just came to this node may be claimed with, whoever is alive."""
        self.assertTrue(judge([of("a", 7)], [record(1, "b", of("b", 3))], "a", 0.0, 10.0).may)

    def test_a_used_one(self) -> None:
        """One that served before, and was superseded, may not, while the owner's heart beats."""
        records = [record(1, "a", of("a", 7)), record(2, "b", of("b", 3))]
        for quiet, life in ((2.9, "is alive"), (9.4, "has been silent for 9 of 10 s")):
            waiting = judge([of("a", 7)], records, "a", quiet, 10.0)
            self.assertFalse(waiting.may)
            self.assertIn(f"node b holds epoch 2 and {life}", waiting.why)
        self.assertTrue(judge([of("a", 7)], records, "a", 10.0, 10.0).may)

    def test_a_used_one_is_known_when_its_file_is_gone(self) -> None:
        """However often the owner restarts, the stale address of the other node stays stale."""
        records = [record(1, "a", of("a", 7))]
        for epoch in range(2, 60):
            former = former_instances(records)
            records = [*records, record(epoch, "b", of("b", 3), former=former)][-KEPT:]
        self.assertNotIn("a", {r.node for r in records})
        self.assertFalse(judge([of("a", 7)], records, "a", 0.0, 10.0).may)

    def test_a_damaged_epoch_file(self) -> None:
        """Nobody knows who holds an epoch whose file is empty: even a new address waits until it is
        silent, by the counter if there is one, and the reason names the epoch.
        """
        for octets in (b"", b"-" * 2, b"-" * 2 + bytes(14) + b'{"node": "a"}'):
            records = [record(6, "b", of("b", 3)), decode_epoch(7, octets)]
            self.assertTrue(records[-1].is_damaged)
            waiting = judge([of("a", 7)], records, "a", 9.9, 10.0)
            self.assertEqual(
                (
                    False,
                    "the file of epoch 7 is damaged or empty, so nobody knows who holds it: "
                    "waiting until it is silent for 10 s",
                ),
                (waiting.may, waiting.why),
            )
            late = judge([of("a", 7)], records, "a", 10.0, 10.0)
            self.assertEqual((True, True), (late.may, late.contested))
        released = judge([of("a", 7)], [decode_epoch(7, b"-R")], "a", 0.0, 10.0)
        self.assertTrue(released.may)
        self.assertTrue(judge([], records, "a", 0.0, 10.0).may)  # a grant that stands by itself

    def test_an_epoch_file_that_nobody_wrote(self) -> None:
        """What has the right crc and makes no sense all the same is damaged too."""
        for text in (
            b"[" * 2000,
            b'{"node": "a", "boot_id": "x", "instances": [["x", Infinity, "::", 1]]}',
        ):
            line = text + b" %08x\n" % crc32(text)
            self.assertTrue(decode_epoch(7, b"--" + bytes(14) + line).is_damaged)

    def test_a_damaged_epoch_file_of_old(self) -> None:
        """A damaged file below a whole one hinders nobody."""
        records = [decode_epoch(6, b""), record(7, "b", of("b", 3))]
        self.assertTrue(judge([of("a", 7)], records, "a", 0.0, 10.0).may)

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(
                st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99)
            ),
            max_size=150,
        )
    )
    def test_what_is_remembered(self, uses: list[tuple[str, int, int, int]]) -> None:
        """Newest first, one for each address on each interface of each boot, bounded."""
        records: list[EpochRecord] = []
        for epoch, (node, boot, ifindex, cstamp) in enumerate(uses, 1):
            instance = of(node, cstamp, f"boot-{node}{boot}", ifindex)
            records.append(record(epoch, node, instance, former=former_instances(records)))
            records = records[-KEPT:]
        found = former_instances(records)
        keys = [(i.boot_id, i.ifindex) for i in found]
        self.assertEqual(len(keys), len(set(keys)))
        expected = list(dict.fromkeys((f"boot-{n}{b}", i) for n, b, i, _ in reversed(uses)))
        self.assertEqual(keys, expected[:REMEMBERED])


class InTheSpool(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = ForgetfulDisk(1 << 30)
        self.directory = Directory(self.disk, "/spool")
        self.directory.initialise()

    def claim(self, former: tuple[AddressInstance, ...] = ()) -> Claim:
        grant = Grant(1, "vs.example.org", virtual_addresses("192.0.2.10"), Fencing.NONE)
        return Claim("a", "boot-a", 12.5, "1.2", "digest", grant, former)

    def own(self, claim: Claim) -> OwnEpoch:
        own = OwnEpoch(self.directory, publish(self.directory, claim, 0), False)
        own.open()
        self.addCleanup(own.close)
        return own

    def test_all_of_a_claim_is_read_back(self) -> None:
        """The other node learns who, with which version and configuration, and what was used."""
        publish(self.directory, self.claim((of("b", 3), of("a", 1))), 0)
        (found,) = read_epochs(self.directory)
        self.assertEqual(
            (found.node, found.version, found.configuration_digest, found.process_started),
            ("a", "1.2", "digest", 12.5),
        )
        self.assertEqual(found.former_instances, (of("b", 3), of("a", 1)))
        self.assertFalse(found.suspended)

    def test_a_suspended_owner_says_so(self) -> None:
        """The heartbeat of an owner whose address is away tells it, and takes it back."""
        own = self.own(self.claim())
        for is_away in (True, False):
            own.is_away = is_away
            own.beat()
            (found,) = read_epochs(self.directory)
            self.assertEqual(found.suspended, is_away)
            self.assertTrue(own.is_current())
        self.assertEqual(found.heartbeat, 2)

    def test_what_was_served_with_since_is_read_back(self) -> None:
        """An address that went and came back, as often as it likes, is used by the same epoch; of one
        address on one interface only the newest counts, and what was claimed with otherwise stays.
        """
        two = replace(self.claim().grant, instances=(of("a", 1), of("a", 2, ifindex=3)))
        own = self.own(replace(self.claim(), grant=two))
        own.beat()
        (found,) = read_epochs(self.directory)
        self.assertEqual(found.instances, two.instances)
        for cstamp in (123456789, 7):  # the second line is shorter
            own.used = (of("a", cstamp), two.instances[1])
            own.beat()
            (found,) = read_epochs(self.directory)
            self.assertEqual(found.instances, own.used)
            self.assertFalse(found.is_damaged)
        used = [found, record(2, "b", of("b", 3), former=former_instances([found]))]
        self.assertFalse(judge([of("a", 7)], used, "a", 0.0, 10.0).may)

    def test_what_was_served_with_is_torn(self) -> None:
        """Octets of the second line that are lost cost that line and nothing else."""
        own = self.own(self.claim())
        path = path_of(self.directory, own.epoch)
        octets = len(self.disk.octets(path))
        own.used = (of("a", 7),)
        own.beat()
        whole = self.disk.octets(path)
        self.assertEqual(decode_epoch(1, whole).instances, own.used)
        for size in range(octets, len(whole) - 1):
            for torn in (whole[:size], whole[:size].ljust(len(whole), b"\0")):
                found = decode_epoch(1, torn)
                self.assertEqual((found.node, found.is_damaged, found.instances), ("a", False, ()))

    def test_what_was_served_with_finds_no_room(self) -> None:
        """On a full disk the heart goes on beating, and the line is written when there is room."""
        own = self.own(self.claim())
        own.used = (of("a", 7),)
        for beat, known in ((1, ()), (2, own.used)):
            if not known:
                self.disk.fail("write", nth=2, error=errno.ENOSPC)
            own.beat()
            (found,) = read_epochs(self.directory)
            self.assertEqual((found.heartbeat, found.instances), (beat, known))

    def test_served_with_under_a_claim_in_a_slot(self) -> None:
        """A claim that was written into a slot on a full disk takes the second line like any other."""
        make_slot(self.directory, 0)
        self.disk.fail("write", error=errno.ENOSPC)
        own = self.own(self.claim())
        self.assertEqual(slots(self.directory), [])
        own.used = (of("a", 7),)
        own.beat()
        (found,) = read_epochs(self.directory)
        self.assertEqual((found.node, found.instances), ("a", own.used))

    def test_a_claim_without_memory(self) -> None:
        """An epoch file that knows no former instances is whole all the same."""
        line = encode_claim(self.claim()).replace(b'"former_instances": []', b'"other": 1')
        text, _, _ = line.rpartition(b" ")
        from zlib import crc32

        found = decode_epoch(1, b"-" * 2 + bytes(14) + text + b" %08x\n" % crc32(text))
        self.assertEqual((found.node, found.former_instances), ("a", ()))
