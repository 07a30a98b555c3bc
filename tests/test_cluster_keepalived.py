"""keepalived passes the one suite; each of its traps is a test.

Long because every trap is set on one stand-in for keepalived and the kernel, which stands here.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.fifo import DRAIN_READS, LOOK_AGAIN_SECONDS, Fifo
from mta.cluster.keepalived import RECORD, Keepalived, KeepalivedSettings
from mta.cluster.processes import Family, find_family, parse_stat
from mta.cluster.role import SETTLE_SECONDS
from mta.cluster.vrrp import (
    LONGEST_LINE,
    Life,
    Notification,
    Notifications,
    Record,
    Role,
    parse,
    parse_record,
)
from mta.errors import GrantLost
from mta.interfaces import IStaleAddresses
from mta.model import Grant, HealthLevel
from mta.testing.cluster_suite import Heard, IClusterResourceTests
from mta.testing.keepalived import CAPACITY, PaperKeepalived
from mta.testing.kernel import PaperNetlink
from mta.testing.surroundings import MemorySurroundings


class KeepalivedTests(IClusterResourceTests, SynchronousTestCase):
    def make_resource(self, surroundings: MemorySurroundings) -> Keepalived:
        self.kernel = PaperNetlink(surroundings.doors)
        self.kernel.link(2, "eth0")
        self.kernel.add("192.0.2.1")
        self.keepalived = PaperKeepalived(surroundings.doors)
        self.keepalived.start("BACKUP")
        return self.build()

    def build(self) -> Keepalived:
        return Keepalived(
            KeepalivedSettings(instance="MAIL"),
            self.here,
            open_socket=self.kernel.open,
            boot_id=lambda: self.keepalived.boot_id,
            open_fifo=self.keepalived.open_fifo,
            read=self.keepalived.read,
        )

    def begin(self) -> None:
        super().begin()
        self.kernel.deliver()

    def settle(self) -> None:
        self.kernel.deliver()
        self.here.advance()

    def addresses_come(self) -> None:
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        self.kernel.deliver()

    def become_owner(self) -> None:
        self.addresses_come()
        self.keepalived.say("MASTER")
        self.keepalived.deliver()

    def cease_to_be_owner(self) -> None:
        self.keepalived.say("BACKUP")
        self.keepalived.deliver()

    def restart(self) -> None:
        """This process ends (without a word) and another begins; keepalived hears nothing of it."""
        self.successResultOf(self.resource.stop())
        self.resource = self.build()
        self.heard = Heard()
        self.begin()

    def is_granted(self) -> bool:
        """Would it be granted now?"""
        waiting = self.resource.acquire()
        self.settle()
        granted: list[Grant] = []
        waiting.addCallbacks(granted.append, lambda _failure: None)
        waiting.cancel()
        return bool(granted)

    def fill(self, line: bytes) -> None:
        """The FIFO, until nothing fits any more."""
        for _ in range(CAPACITY // len(line)):
            self.keepalived.write(line)

    def owned_is_lost(self) -> str:
        """The one reason for which what was owned is lost."""
        (why,) = self.heard.of("lost")
        self.assertFalse(self.is_granted())
        return str(why)

    # --- neither alone

    def test_role_without_address(self) -> None:
        """MASTER without the address here is no ownership."""
        self.begin()
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.assertFalse(self.is_granted())
        self.assertIn("192.0.2.10: not on any interface", self.resource.explain())

    def test_address_without_role(self) -> None:
        """The address here without MASTER is no ownership."""
        self.begin()
        self.addresses_come()
        self.assertFalse(self.is_granted())
        self.assertIn("keepalived says BACKUP, not MASTER", self.resource.explain())
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.assertTrue(self.is_granted())
        self.assertIn("keepalived says MASTER for MAIL; 192.0.2.10", self.resource.explain())

    def test_claim_rules(self) -> None:
        """The grant carries the addresses' instances, by which the claim rules judge."""
        grant = self.owned()
        self.assertEqual([str(i.address) for i in grant.instances], ["192.0.2.10", "2001:db8::10"])
        self.assertEqual({i.boot_id for i in grant.instances}, {self.keepalived.boot_id})

    def test_every_other_role_is_a_loss(self) -> None:
        """BACKUP, FAULT, STOP, DELETED and words we do not know end the ownership at once."""
        self.begin()
        self.addresses_come()
        for number, word in enumerate(("BACKUP", "FAULT", "STOP", "DELETED", "MERRY"), 1):
            self.keepalived.say("MASTER")
            self.keepalived.deliver()
            self.assertTrue(self.is_granted(), word)
            self.keepalived.say(word)
            self.keepalived.deliver()
            self.assertEqual(len(self.heard.of("lost")), number, word)
            self.assertFalse(self.is_granted(), word)

    def test_words_that_keep_the_role(self) -> None:
        """A changed priority and a lower priority's advert are told, and change no role."""
        self.owned()
        for word in ("MASTER_PRIORITY", "MASTER_RX_LOWER_PRI"):
            self.keepalived.say(word)
            self.keepalived.deliver()
        self.assertEqual(self.heard.of("lost"), [])
        self.assertTrue(self.is_granted())

    # --- the FIFO

    def test_last_line_wins(self) -> None:
        """What waited in the FIFO is read to its end, and only the last line counts."""
        for word in ("MASTER", "BACKUP", "MASTER", "BACKUP"):
            self.keepalived.say(word)
        self.addresses_come()
        waiting = self.resource.acquire()
        self.begin()
        self.assertNoResult(waiting)
        self.keepalived.say("BACKUP")
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.successResultOf(waiting)

    def test_lost_and_regained_in_one_breath(self) -> None:
        """BACKUP and MASTER read at once are a loss: another node may have owned in between."""
        grant = self.owned()
        self.keepalived.say("BACKUP")
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.assertEqual(self.heard.of("lost"), ["keepalived said BACKUP for MAIL"])
        self.assertTrue(self.is_granted())
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.failureResultOf(confirmed, GrantLost)

    def test_unread_line_when_confirming(self) -> None:
        """A grant is not confirmed while an unread line takes it away."""
        grant = self.owned()
        self.keepalived.say("BACKUP")
        confirmed = self.resource.confirm(grant)
        for reader in self.here.doors.watched:
            if reader.logPrefix() == "netlink":
                reader.doRead()
        self.failureResultOf(confirmed, GrantLost)

    def test_hang_up(self) -> None:
        """kill -9 of keepalived is a loss at once, though the address stays: it makes no owner."""
        self.owned()
        self.keepalived.kill_all()
        self.keepalived.deliver()
        self.assertIn("nobody writes to /run/mta-keepalived/fifo", self.owned_is_lost())
        self.assertIn("192.0.2.10, 2001:db8::10", self.resource.explain())
        self.assertIn("left over on this node", self.resource.explain())
        self.assertTrue(IStaleAddresses.providedBy(self.resource))
        self.assertEqual(len(self.resource.stale_addresses()), 2)
        self.here.advance(3600)
        self.assertFalse(self.is_granted())

    def test_hang_up_told_by_the_reactor(self) -> None:
        """The reactor's word that the FIFO hung up is a loss, once."""
        self.owned()
        (reader,) = [r for r in self.here.doors.watched if r.logPrefix() == "notify FIFO"]
        self.keepalived.kill_all()
        reader.connectionLost(None)
        reader.connectionLost(None)
        self.assertEqual(len(self.heard.of("lost")), 1)

    def test_last_words(self) -> None:
        """MASTER from a keepalived that died right after it is no role."""
        self.begin()
        self.addresses_come()
        self.keepalived.say("MASTER")
        self.keepalived.kill_all()
        self.keepalived.deliver()
        self.assertFalse(self.is_granted())

    def test_no_busy_loop(self) -> None:
        """Without a writer a FIFO is readable for ever: it is looked at by a timer, not watched."""
        self.owned()
        self.keepalived.kill_all()
        self.keepalived.deliver()
        self.assertEqual([r.logPrefix() for r in self.here.doors.watched], ["netlink"])
        before = self.keepalived.opens
        for _ in range(40):
            self.here.advance(LOOK_AGAIN_SECONDS)
        self.assertEqual(self.keepalived.opens - before, 40)

    def test_restarted_keepalived(self) -> None:
        """A keepalived that comes back is heard without a restart of ours."""
        self.owned()
        self.keepalived.kill_all()
        self.keepalived.deliver()
        self.keepalived.start("BACKUP")
        self.here.advance(LOOK_AGAIN_SECONDS)
        self.assertIn("keepalived says BACKUP", self.resource.explain())
        self.assertEqual(self.resource.stale_addresses(), ())
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.assertTrue(self.is_granted())

    def test_missing(self) -> None:
        """A FIFO that is not there yet is named, and used as soon as it is made."""
        self.keepalived.refuses = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.begin()
        self.addresses_come()
        self.assertIn(
            "keepalived is not heard: /run/mta-keepalived/fifo: No such file or directory",
            self.resource.explain(),
        )
        self.assertIs(self.heard.of("health")[-1].level, HealthLevel.FAILED)
        self.keepalived.refuses = None
        self.keepalived.say("MASTER")
        self.here.advance(LOOK_AGAIN_SECONDS)
        self.assertTrue(self.is_granted())

    def test_rubbish(self) -> None:
        """Lines that are not keepalived's change nothing, and are shown."""
        self.owned()
        self.keepalived.write(b"\x00\xff\x1b[2J\nINSTANCE MAIL BACKUP\n" + b"x" * 3000 + b"\n")
        self.keepalived.deliver()
        self.assertEqual(self.heard.of("lost"), [])
        self.assertIn("3 lines of the FIFO are not keepalived's", self.resource.explain())
        self.assertNotIn("\x1b", self.resource.explain())
        self.assertIs(self.successResultOf(self.resource.probe(0)).level, HealthLevel.DEGRADED)
        self.keepalived.say("BACKUP")
        self.keepalived.deliver()
        self.assertEqual(len(self.heard.of("lost")), 1)

    def test_full_of_rubbish(self) -> None:
        """A FIFO that was full may have lost keepalived's last word: no role is taken from it."""
        self.keepalived.say("MASTER")
        self.fill(b"rubbish\n")
        self.keepalived.say("BACKUP")  # does not fit
        self.addresses_come()
        self.begin()
        self.assertFalse(self.is_granted())
        self.assertIn("the FIFO was full", self.resource.explain())
        self.assertIn("not keepalived's", self.resource.explain())
        self.keepalived.say("MASTER")
        self.keepalived.deliver()
        self.assertTrue(self.is_granted())

    def test_full_but_written_down(self) -> None:
        """When the FIFO was full, the notify script's record of the last word decides."""
        self.fill(b'INSTANCE "MAIL" BACKUP 150\n')
        self.keepalived.note("MASTER", 0.0)
        self.addresses_come()
        self.begin()
        self.assertTrue(self.is_granted())

    def test_endless_writer(self) -> None:
        """A writer that never stops does not keep this process in one read."""
        self.begin()
        before = len(self.heard.events)
        reads = []

        def read() -> bytes:
            reads.append(1)
            return b"y\n" * 2048

        (reader,) = [r for r in self.here.doors.watched if r.logPrefix() == "notify FIFO"]
        reader._fifo.read = read
        reader.doRead()
        self.assertEqual(len(reads), DRAIN_READS)
        self.assertLessEqual(len(self.heard.events) - before, 1)

    def test_other_instances(self) -> None:
        """A FIFO that speaks of other instances only is named: there is no role of ours."""
        self.keepalived.kill_all()
        self.keepalived.start()
        self.keepalived.say("MASTER", name="WEB")
        self.keepalived.say("MASTER", name="MAIL", kind="GROUP")
        self.begin()
        self.addresses_come()
        self.assertFalse(self.is_granted())
        self.keepalived.kill_all()
        self.keepalived.start()
        self.restart()
        self.keepalived.say("MASTER", name="WEB")
        self.keepalived.deliver()
        self.assertFalse(self.is_granted())
        self.assertIn("the FIFO speaks of WEB, not of MAIL", self.resource.explain())

    def test_two_readers(self) -> None:
        """A line that another program read is found by the notify script's record, and said."""
        self.owned()
        self.here.advance(10)
        self.keepalived.note("BACKUP", self.here.clock.monotonic())
        self.here.advance(1)
        self.assertEqual(self.heard.of("lost"), [])  # the FIFO may yet say it
        self.here.advance(SETTLE_SECONDS)
        self.assertEqual(len(self.heard.of("lost")), 1)
        self.assertIn("does another program read it?", self.resource.explain())

    def test_late_script(self) -> None:
        """A script that is slower than the FIFO takes nothing back."""
        self.begin()
        self.here.advance(5)
        self.keepalived.note("BACKUP", self.here.clock.monotonic())
        self.here.advance(0.1)
        self.become_owner()
        for _ in range(10):
            self.here.advance(1)
        self.assertEqual(self.heard.of("lost"), [])
        self.assertTrue(self.is_granted())

    # --- restarts

    def test_restart_on_a_stable_master(self) -> None:
        """A restart of the MTA while keepalived stays MASTER, and says nothing, comes online."""
        self.owned()
        self.assertTrue(self.here.disk.exists(f"/state/{RECORD}"))
        self.here.advance(1000)
        self.restart()
        self.assertTrue(self.is_granted())

    def test_restart_while_backup(self) -> None:
        """A leftover address and a restart make no owner of a BACKUP."""
        self.owned()
        self.cease_to_be_owner()
        self.restart()
        self.assertFalse(self.is_granted())
        self.assertIn("keepalived says BACKUP", self.resource.explain())

    def test_changed_while_we_were_away(self) -> None:
        """What keepalived said while no MTA ran waits in the FIFO, and is newer than the record."""
        self.owned()
        self.successResultOf(self.resource.stop())
        self.keepalived.say("BACKUP")
        self.resource = self.build()
        self.begin()
        self.assertFalse(self.is_granted())

    def test_keepalived_died_while_we_were_away(self) -> None:
        """The record of a keepalived that has died is void, also when its pid is used again."""
        self.owned()
        self.successResultOf(self.resource.stop())
        self.keepalived.kill_all()
        self.resource = self.build()
        self.begin()
        self.assertFalse(self.is_granted())

    def test_pid_reuse(self) -> None:
        """The same pids with other start times are another keepalived: its role is not known."""
        self.owned()
        self.successResultOf(self.resource.stop())
        lives = dict(self.keepalived.stats)
        for pid, stat in lives.items():
            self.keepalived.stats[pid] = type(stat)(
                Life(pid, stat.life.start + 1), stat.state, stat.parent
            )
        self.resource = self.build()
        self.begin()
        self.assertFalse(self.is_granted())
        self.assertIn("the role is not known", self.resource.explain())
        self.keepalived.stats = lives
        self.restart()
        self.assertTrue(self.is_granted())

    def test_vrrp_child_respawned_while_we_were_away(self) -> None:
        """keepalived's parent is the same, its VRRP child another one: the record is void."""
        self.owned()
        self.successResultOf(self.resource.stop())
        self.keepalived.kill(self.keepalived.children[0])
        self.keepalived.start_child()
        self.resource = self.build()
        self.begin()
        self.assertFalse(self.is_granted())

    def test_another_boot(self) -> None:
        """A record of another boot is void: pids and start times begin anew there."""
        self.owned()
        self.keepalived.boot_id = "00000000-0000-4000-8000-00000000000b"
        self.restart()
        self.assertFalse(self.is_granted())

    def test_state_file(self) -> None:
        """Without a record of our own the notify script's decides; rubbish in it does not."""
        self.addresses_come()
        self.keepalived.kill_all()
        self.keepalived.start()
        self.begin()
        self.assertFalse(self.is_granted())
        self.assertIn("the role is not known", self.resource.explain())
        self.keepalived.files[self.keepalived.state_file] = b"MASTER\n"
        self.here.advance(1)
        self.assertFalse(self.is_granted())
        self.assertIn("is not the notify script's", self.resource.explain())
        self.keepalived.note("MASTER", 1.0)
        self.here.advance(1)
        self.assertTrue(self.is_granted())

    def test_state_file_is_newer(self) -> None:
        """Of our record and the script's the newer one decides."""
        self.owned()
        self.here.advance(10)
        self.keepalived.note("BACKUP", self.here.clock.monotonic() - 1)
        self.restart()
        self.assertFalse(self.is_granted())

    def test_spoilt_record(self) -> None:
        """A record that was spoilt is none."""
        self.owned()
        descriptor = self.here.disk.open(f"/state/{RECORD}", os.O_WRONLY)
        self.here.disk.pwritev(descriptor, [b'INSTANCE "MAIL" MASTER 150 at 12'], 0)
        self.here.disk.close(descriptor)
        self.restart()
        self.assertFalse(self.is_granted())

    def test_record_cannot_be_written(self) -> None:
        """Where the role cannot be kept, the ownership stands and the fault is named."""
        self.here.state_directory = "/missing/state"
        self.owned()
        self.assertIn("the role cannot be kept for a restart: /missing/", self.resource.explain())
        self.assertTrue(self.is_granted())

    # --- keepalived's processes

    def test_vrrp_child_killed(self) -> None:
        """kill -9 of the VRRP child is a loss; the respawned one is heard."""
        self.owned()
        self.keepalived.kill(self.keepalived.children[0])
        self.keepalived.deliver()
        self.assertIn("nobody writes", self.owned_is_lost())
        self.keepalived.start_child("BACKUP")
        self.here.advance(LOOK_AGAIN_SECONDS)
        self.assertIn("keepalived says BACKUP", self.resource.explain())

    def test_vrrp_child_killed_behind_another_writer(self) -> None:
        """When another program holds the FIFO open its end says nothing; /proc does."""
        self.owned()
        self.keepalived.kill(self.keepalived.children[0])
        self.keepalived.start_child()
        self.here.advance(1)
        self.assertIn("the keepalived that spoke has ended", self.owned_is_lost())

    def test_parent_killed(self) -> None:
        """kill -9 of keepalived's parent is a loss, whatever its child does."""
        self.owned()
        self.keepalived.kill(self.keepalived.pid)
        self.here.advance(1)
        self.assertIn("which does not live", self.owned_is_lost())

    def test_stopped(self) -> None:
        """A keepalived that is stopped (SIGSTOP) owns nothing; when it goes on its role counts again."""
        for whom in ("parent", "child"):
            self.setUp()
            self.owned()
            one = self.keepalived
            pid = one.pid if whom == "parent" else one.children[0]
            one.signal(pid, "T")
            self.here.advance(1)
            self.assertIn(f"is stopped (process {pid})", self.owned_is_lost())
            self.assertEqual(len(self.resource.stale_addresses()), 2)
            one.signal(pid, "S")
            self.here.advance(1)
            self.assertTrue(self.is_granted())

    def test_would_fail(self) -> None:
        """A standby whose role is not known could not take over, and says why; FAULT is a role."""
        self.begin()
        self.settle()
        self.assertEqual(self.resource.would_fail(), "")
        self.keepalived.say("FAULT")
        self.keepalived.deliver()
        self.assertEqual(self.resource.would_fail(), "")
        self.assertIs(self.heard.of("health")[-1].level, HealthLevel.DEGRADED)
        self.keepalived.say("BACKUP")
        self.keepalived.deliver()
        self.assertIs(self.heard.of("health")[-1].level, HealthLevel.OK)
        self.keepalived.kill_all()
        self.keepalived.deliver()
        self.assertIn("keepalived is not heard", self.resource.would_fail())

    def test_address_facts(self) -> None:
        """The addresses are shown as the kernel has them, whatever keepalived says."""
        self.begin()
        self.addresses_come()
        self.assertEqual([fact.usable for fact in self.resource.address_facts()], [True, True])

    def test_no_pidfile(self) -> None:
        """Without a pid file nobody knows who speaks: named, and waited for."""
        pid = self.keepalived.files.pop(self.keepalived.pidfile)
        self.begin()
        self.become_owner()
        self.assertFalse(self.is_granted())
        self.assertIn("/run/keepalived.pid: No such file", self.resource.explain())
        self.keepalived.files[self.keepalived.pidfile] = b"-7"
        self.here.advance(1)
        self.assertIn("holds no process id", self.resource.explain())
        self.keepalived.files[self.keepalived.pidfile] = pid
        self.here.advance(1)
        self.assertTrue(self.is_granted())

    def test_blind(self) -> None:
        """When netlink breaks the ownership is lost, and watched for again after a second."""
        grant = self.owned()
        self.kernel.break_down()
        self.kernel.deliver()
        self.assertIn("Input/output error", self.heard.of("lost")[0])
        self.here.advance(1)
        self.kernel.deliver()
        self.assertTrue(self.is_granted())
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.failureResultOf(confirmed, GrantLost)

    def test_settings(self) -> None:
        """Paths are absolute, the instance is a name."""
        for wrong in (
            {"instance": ""},
            {"instance": 'a"b'},
            {"instance": "a b"},
            {"instance": "MAIL", "fifo": "run/fifo"},
            {"fifo": "/run/fifo"},
        ):
            self.assertRaises(ValidationError, KeepalivedSettings.model_validate, wrong)


names = st.text("AZaz09_-.", min_size=1, max_size=20)
roles = st.sampled_from([r for r in Role if r is not Role.UNKNOWN])


class TheFifosOctets(SynchronousTestCase):
    def test_lines(self) -> None:
        """keepalived's lines are read, sync groups' too."""
        self.assertEqual(
            parse(b'INSTANCE "VI_1" MASTER 100'), Notification("VI_1", Role.MASTER, 100)
        )
        self.assertEqual(
            parse(b'GROUP "VG" FAULT 0'), Notification("VG", Role.FAULT, 0, is_group=True)
        )
        for line in (
            b"",
            b'INSTANCE "VI_1" MASTER',
            b'INSTANCE "VI 1" MASTER 100',
            b'instance "VI_1" MASTER 100',
            b' INSTANCE "VI_1" MASTER 100',
            b'INSTANCE "VI_1" MASTER 100 ',
            b'INSTANCE "VI_1" MASTER 100\r',
            b'INSTANCE "" MASTER 100',
            b"VS [10.0.0.1]:tcp:80 UP",
        ):
            self.assertIsNone(parse(line), line)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.lists(st.binary(max_size=1200), max_size=8))
    def test_any_octets(self, pieces: list[bytes]) -> None:
        """Any octets, cut anywhere, are read without an error, and little of them is kept."""
        notifications = Notifications()
        for piece in pieces:
            notifications.receive(piece)
        self.assertLessEqual(len(notifications._rest), LONGEST_LINE)
        self.assertTrue(notifications.last_rubbish.isprintable())

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.booleans(), names, roles, st.integers(0, 255)),
                st.binary(max_size=700).map(lambda octets: octets.replace(b"\n", b"?")),
            ),
            max_size=12,
        ),
        st.lists(st.integers(1, 90), min_size=1, max_size=5),
    )
    def test_cut_anywhere(self, lines: list[Any], cuts: list[int]) -> None:
        """However the octets are cut, the same lines are found, and rubbish between takes none."""
        expected, octets = [], b""
        for line in lines:
            if isinstance(line, bytes):
                octets += line + b"\n"
                continue
            is_group, name, role, priority = line
            expected.append(Notification(name, role, priority, is_group))
            kind = b"GROUP" if is_group else b"INSTANCE"
            octets += b'%s "%s" %s %d\n' % (
                kind, name.encode(), role.value.encode(), priority,
            )  # fmt: skip
        notifications, found, at, number = Notifications(), [], 0, 0
        while at < len(octets):
            step = cuts[number % len(cuts)]
            found += notifications.receive(octets[at : at + step])
            at, number = at + step, number + 1
        self.assertEqual(found, expected)
        self.assertEqual(notifications.rubbish, len(lines) - len(expected))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        names, roles, st.integers(0, 255), st.integers(0, 10**9),
        st.lists(st.tuples(st.integers(1, 2**22), st.integers(1, 2**62)), min_size=2, max_size=4,
                 unique_by=lambda pair: pair[0]),
    )  # fmt: skip
    def test_records(self, name, role, priority, milliseconds, lives) -> None:
        """A record that was written is read again, whatever stands behind it; half of it is none."""
        first, *rest = (Life(*pair) for pair in lives)
        record = Record(
            Notification(name, role, priority),
            milliseconds / 1000,
            "00000000-0000-4000-8000-00000000000a",
            first,
            frozenset(rest),
        )
        self.assertEqual(parse_record(record.octets()), record)
        self.assertEqual(parse_record(record.octets() + b"older octets\n"), record)
        for cut in range(len(record.octets())):
            self.assertIsNone(parse_record(record.octets()[:cut]))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.binary(max_size=300))
    def test_any_record_and_stat(self, octets: bytes) -> None:
        """Any octets in place of a record, a pid file or a stat file are read without an error."""
        self.assertIsNone(parse_record(octets))
        parse_stat(octets)
        found = find_family("/pid", lambda path: octets if path == "/pid" else b"")
        self.assertIsInstance(found, str)


class TheRealKernel(SynchronousTestCase):
    def test_own_life(self) -> None:
        """/proc tells this process's life and its parent's child."""
        with open("/proc/self/stat", "rb") as file:
            stat = parse_stat(file.read())
        assert stat is not None
        self.assertEqual((stat.life.pid, stat.parent), (os.getpid(), os.getppid()))
        directory = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, directory)
        path = os.path.join(directory, "pid")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getppid()}\n")
        self.addCleanup(os.unlink, path)
        family = find_family(path)
        assert isinstance(family, Family), family
        self.assertIn(stat.life, family.children)

    def test_fifo(self) -> None:
        """A real FIFO: no writer is an end, one reader only, what is no FIFO is refused."""
        directory = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, directory)
        path = os.path.join(directory, "fifo")
        self.assertRaises(FileNotFoundError, Fifo, path)
        os.mkfifo(path)
        self.addCleanup(os.unlink, path)
        fifo = Fifo(path)
        self.assertEqual(fifo.read(), b"")
        writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.assertIsNone(fifo.read())
        os.write(writer, b"a line\n")
        self.assertEqual(fifo.read(), b"a line\n")
        with self.assertRaises(OSError) as caught:
            Fifo(path)
        self.assertIn("another process", str(caught.exception))
        os.close(writer)
        self.assertEqual(fifo.read(), b"")
        fifo.close()
        fifo.close()
        Fifo(path).close()
        plain = os.path.join(directory, "plain")
        with open(plain, "wb"):
            pass
        self.addCleanup(os.unlink, plain)
        with self.assertRaises(OSError) as caught:
            Fifo(plain)
        self.assertIn("not a FIFO", str(caught.exception))
