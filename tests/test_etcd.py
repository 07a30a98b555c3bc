"""etcd as the authority: it passes the one suite with and without plumbing, and what it promises beyond.

Long because each class is one side of one resource, upon one ground.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from pydantic import ValidationError
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.etcd import EtcdResource
from mta.cluster.etcd_settings import EtcdSettings
from mta.errors import ClusterNotInitialised, GrantLost, StartRefused, TransientFailure
from mta.interfaces import ILease, IPlumber
from mta.model import Grant, HealthLevel
from mta.testing.cluster_suite import IClusterResourceTests
from mta.testing.etcd import PaperEtcd, PaperWatchdog
from mta.testing.kernel import PaperNetlink
from mta.testing.surroundings import MemorySurroundings

KEY = b"/mta/bridgehead.example.org/owner"
MEMBERS = ("tcp:10.9.0.3:2379", "tcp:10.9.0.4:2379", "tcp:10.9.0.5:2379")
PLUMB = {"plumb": "true", "interface": "eth0"}


def settings(count: int = 1, **keys: Any) -> EtcdSettings:
    endpoints = [member.replace("tcp:", "http://") for member in MEMBERS[:count]]
    return EtcdSettings.model_validate({"endpoints": endpoints, **keys})


class Ground(IClusterResourceTests):
    """A resource, its etcd, its watchdog, and a kernel."""

    keys: dict[str, str] = {}
    members = 1

    def make_resource(self, surroundings: MemorySurroundings) -> EtcdResource:
        self.etcd = PaperEtcd(surroundings, MEMBERS[: self.members])
        self.kernel = PaperNetlink(surroundings.doors)
        self.kernel.link(2, "eth0")
        self.watchdog = PaperWatchdog(surroundings, self.kernel)
        self.other = self.etcd.hold(KEY, "b.example.org")
        return EtcdResource(
            settings(self.members, **self.keys),
            surroundings,
            open_socket=self.kernel.open,
            boot_id=lambda: "boot-a",
            spawn=self.watchdog.spawn,
            may_plumb=lambda: True,
        )

    def begin(self) -> None:
        super().begin()
        self.kernel.deliver()

    def settle(self) -> None:
        self.here.advance()
        self.kernel.deliver()
        self.here.advance()

    def become_owner(self) -> None:
        """Whoever holds the key loses it, and nobody else wants it."""
        held = self.etcd.keys.get(KEY)
        if held is not None:
            self.etcd.revoke(held.lease)

    def cease_to_be_owner(self) -> None:
        """Our lease is revoked, and another is quicker than we."""
        self.become_owner()
        self.other = self.etcd.hold(KEY, "b.example.org")

    def granted(self) -> Grant:
        """Owner, with the addresses not yet added."""
        return super().owned()

    def owned(self: Any) -> Grant:
        grant: Grant = self.granted()
        if self.keys:
            plumbed = self.resource.plumb(grant, 1, "/spool/epoch/1")
            self.settle()
            self.successResultOf(plumbed)
        return grant

    # for the tests below

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [said for _, at, said in self.etcd.asked if at == path]

    def after(self, seconds: float) -> None:
        """Time in small steps, as it goes by."""
        steps = round(seconds / 0.05)
        for _ in range(steps):
            self.here.advance(seconds / steps)


class LeaseOnlyTests(Ground, SynchronousTestCase):
    """plumb: false: the addresses come from elsewhere."""

    def begin(self) -> None:
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        super().begin()

    def test_provides(self) -> None:
        """It has a lease, and puts no address anywhere."""
        self.assertTrue(ILease.providedBy(self.resource))
        self.assertFalse(IPlumber.providedBy(self.resource))

    def test_address_first(self) -> None:
        """The lease is asked for only where the addresses are: else nobody could serve."""
        self.begin()
        self.kernel.remove("192.0.2.10")
        self.kernel.deliver()
        waiting = self.resource.acquire()
        self.become_owner()
        self.after(10)
        self.assertNoResult(waiting)
        self.assertEqual(self.asked("/v3/lease/grant"), [])
        self.assertIn("192.0.2.10: not on any interface", self.resource.explain())
        self.kernel.add("192.0.2.10")
        self.settle()
        self.assertEqual(self.successResultOf(waiting).instances, ())

    def test_confirm_needs_the_addresses(self) -> None:
        """A lease without the address is not confirmed."""
        grant = self.owned()
        self.kernel.remove("192.0.2.10")
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.failureResultOf(confirmed, GrantLost)

    def test_leaves_addresses_alone(self) -> None:
        """What somebody else put there is never removed, not when we begin, stop or stand by."""
        self.owned()
        self.cease_to_be_owner()
        self.after(10)
        self.resource.stop()
        self.settle()
        self.assertEqual(len(self.kernel.addresses), 2)

    def test_left_over_on_the_loser(self) -> None:
        """The key went to another node and somebody left the addresses here: they are named, until
        they go or the key is ours again.
        """
        self.owned()
        self.cease_to_be_owner()
        self.settle()
        self.assertEqual(self.resource.stale_addresses(), ())  # nothing was read since
        waiting = self.resource.acquire()
        self.settle()
        left = [str(address) for address in self.resource.stale_addresses()]
        self.assertEqual(left, ["192.0.2.10", "2001:db8::10"])
        self.assertIn("held by b.example.org", self.resource.explain().partition("; left over")[0])
        self.assertIn("left over on this node: 192.0.2.10, 2001:db8::10", self.resource.explain())
        self.kernel.remove("2001:db8::10")
        self.settle()
        left = [str(address) for address in self.resource.stale_addresses()]
        self.assertEqual(left, ["192.0.2.10"])
        self.kernel.remove("192.0.2.10")
        self.settle()
        self.assertEqual(self.resource.stale_addresses(), ())
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        self.settle()
        self.become_owner()
        self.after(2)
        self.successResultOf(waiting)
        self.assertEqual(self.resource.stale_addresses(), ())

    def test_not_left_over(self) -> None:
        """A key that is ours from a former process, or whose holder is unknown, tells nothing."""
        self.begin()
        for value in (b'{"node": "a.example.org"}', b"rubbish"):
            self.etcd.revoke(self.other)
            self.other = self.etcd.grant(None)
            self.etcd.put(KEY, value, self.other)
            waiting = self.resource.acquire()
            self.settle()
            self.assertEqual(self.resource.stale_addresses(), (), value)
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)


class ReportTests(Ground, SynchronousTestCase):
    """plumb: true, on-superseded: report: what is left over is shown, and stays."""

    keys = {**PLUMB, "on-superseded": "report"}

    def test_left_over_is_shown(self) -> None:
        """Addresses that somebody adds here while another node holds the key are named."""
        self.begin()
        waiting = self.resource.acquire()
        self.settle()
        self.kernel.add("192.0.2.10")
        self.settle()
        self.after(3)
        self.assertEqual(list(map(str, self.resource.stale_addresses())), ["192.0.2.10"])
        self.assertIn("left over on this node: 192.0.2.10", self.resource.explain())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)


class PlumbTests(Ground, SynchronousTestCase):
    """plumb: true: the watchdog adds and removes the addresses."""

    keys = PLUMB

    def here_now(self) -> list[str]:
        return sorted(text for _, text in self.kernel.addresses)

    def test_provides(self) -> None:
        """It plumbs, and says so."""
        self.assertTrue(IPlumber.providedBy(self.resource))

    def test_plumbs(self) -> None:
        """Addresses come when they are asked for, under the epoch's file, and go again."""
        self.owned()
        self.assertEqual(self.watchdog.commands, ["plumb 1 /spool/epoch/1"])
        self.assertEqual(self.here_now(), ["192.0.2.10", "2001:db8::10"])
        gone = self.resource.unplumb()
        self.assertEqual(self.here_now(), [])
        self.settle()
        self.successResultOf(gone)

    def test_usable_before_it_fires(self) -> None:
        """An address that was added, but whose link has no carrier, is waited for."""
        grant = self.granted()
        self.kernel.link(2, carrier=False)
        plumbed = self.resource.plumb(grant, 1, "")
        self.settle()
        self.assertNoResult(plumbed)
        self.kernel.link(2)
        self.settle()
        self.successResultOf(plumbed)
        plumbed = self.resource.plumb(grant, 1, "")
        self.kernel.link(2, carrier=False)
        self.settle()
        plumbed.addErrback(lambda failure: failure.trap(CancelledError))
        plumbed.cancel()
        self.kernel.link(2)
        self.settle()

    def test_taken_away_while_they_come(self) -> None:
        """Somebody removes one address while the other is waited for: it is added again."""
        grant = self.granted()
        self.kernel.link(2, carrier=False)
        plumbed = self.resource.plumb(grant, 1, "")
        self.settle()
        self.kernel.remove("192.0.2.10")
        self.kernel.link(2)
        self.settle()
        self.assertNoResult(plumbed)
        self.after(1)
        self.settle()
        self.assertEqual(self.here_now(), ["192.0.2.10", "2001:db8::10"])
        self.successResultOf(plumbed)

    def test_plumb_refused(self) -> None:
        """What the kernel said is what the operator reads."""
        grant = self.granted()
        self.watchdog.refuses = "192.0.2.10 on eth0: EPERM: Operation not permitted"
        plumbed = self.resource.plumb(grant, 1, "")
        self.settle()
        fault = self.failureResultOf(plumbed, ClusterNotInitialised).value
        self.assertIn("EPERM: Operation not permitted", str(fault))

    def test_plumb_without_grant(self) -> None:
        """Nothing is added for a grant that is gone."""
        grant = self.granted()
        self.resource.release(grant, "test")
        self.settle()
        self.failureResultOf(self.resource.plumb(grant, 1, ""), ClusterNotInitialised)
        self.assertEqual(self.here_now(), [])

    def test_left_over_at_start(self) -> None:
        """Addresses that a former process left on the interface are gone before we stand by."""
        self.kernel.add("192.0.2.10")
        self.begin()
        self.assertEqual(self.here_now(), [])

    def test_stale_addresses(self) -> None:
        """While another node holds the key, the addresses are removed here, whoever adds them."""
        self.begin()
        waiting = self.resource.acquire()
        self.after(1)
        self.kernel.add("192.0.2.10")
        self.settle()
        self.settle()
        self.assertEqual(self.here_now(), [])
        self.assertIn("held by b.example.org", self.here.notices("warning")[-1])
        self.kernel.add("192.0.2.10")
        self.settle()
        self.assertEqual(self.here_now(), ["192.0.2.10"])  # not more than once a second
        self.after(1.1)
        self.assertEqual(self.here_now(), [])
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    def test_not_stale(self) -> None:
        """An unknown holder, one without a lease, or we ourselves, is no reason to remove anything."""
        self.begin()
        for value, leased in (
            (b'{"node": "b.example.org"}', False),
            (b'{"node": "a.example.org"}', True),
            (b"rubbish", True),
            (b'{"node": "\\u001b[2J"}', True),
            (b'["node"]', True),
        ):
            self.etcd.revoke(self.other)
            self.other = self.etcd.grant(None)
            self.etcd.put(KEY, value, self.other if leased else 0)
            waiting = self.resource.acquire()
            self.settle()
            self.kernel.add("192.0.2.10")
            self.after(2)
            self.assertEqual(self.here_now(), ["192.0.2.10"], value)
            self.assertNotIn("\x1b", self.resource.explain())
            self.kernel.remove("192.0.2.10")
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            if not leased:
                self.assertIn("no lease: `etcdctl del` ends it", self.resource.explain())
                self.etcd.delete(KEY)

    def test_lost_unplumbs_first(self) -> None:
        """The deadline is kept until everything is closed; etcd is told when we ask anew."""
        self.owned()
        seen: list[Any] = []

        def lost(reason: str) -> None:
            self.resource.unplumb()
            seen.append((reason, self.watchdog.deadline_seconds, self.resource.seconds_left()))

        self.heard.lost = lost  # type: ignore[method-assign]
        self.etcd.deaf.update(MEMBERS)
        self.after(5)
        ((reason, deadline, left),) = seen
        self.assertIn("has not renewed the lease in time", reason)
        self.assertGreater(deadline, 0)
        self.assertLessEqual(left, 0)
        self.assertEqual(self.watchdog.deadline_seconds, 0)
        self.assertEqual(self.here_now(), [])

    def test_no_capability(self) -> None:
        """Without CAP_NET_ADMIN the start is refused, with what to do."""
        self.resource._may_plumb = lambda: False
        with self.assertRaises(StartRefused) as caught:
            self.resource.prepare(self.server)
        self.assertIn("AmbientCapabilities=CAP_NET_ADMIN", caught.exception.remedy)
        self.assertEqual(caught.exception.exit_code, 77)
        self.assertEqual(self.watchdog.spawned, 0)


class OwnerTests(Ground, SynchronousTestCase):
    """What holds with one member, while the lease is held."""

    keys = PLUMB

    def test_token(self) -> None:
        """The token is the key's create_revision; the key lives by our lease and names our node."""
        grant = self.owned()
        held = self.etcd.keys[KEY]
        self.assertEqual(grant.token, held.revision)
        self.assertEqual(json.loads(held.value), {"node": "a.example.org"})
        self.assertIn(held.lease, self.etcd.leases)
        self.assertIn(f"token {grant.token}", self.resource.explain())

    def test_renewed(self) -> None:
        """The lease is renewed at 0.3 of its TTL, and what is left counts from the sending."""
        self.owned()
        self.assertAlmostEqual(self.resource.seconds_left(), 4.0)
        self.after(1.45)
        self.assertEqual(self.asked("/v3/lease/keepalive"), [])
        self.after(0.1)
        self.assertEqual(len(self.asked("/v3/lease/keepalive")), 1)
        self.assertAlmostEqual(self.resource.seconds_left(), 3.95, places=1)
        self.assertAlmostEqual(
            self.watchdog.deadline_seconds - self.here.clock.monotonic(), 4.45, places=1
        )
        self.after(60)
        self.assertEqual(self.heard.of("lost"), [])
        self.assertGreater(len(self.asked("/v3/lease/keepalive")), 35)

    def test_granted_ttl_counts(self) -> None:
        """etcd's floor is 2 s: what was granted counts, not what was asked for."""
        self.etcd.crooked["/v3/lease/grant"] = (
            200,
            json.dumps(
                {"header": self.etcd.header(), "ID": str(self.etcd.grant(3)), "TTL": "3"}
            ).encode(),
        )
        self.owned()
        self.assertAlmostEqual(self.resource.seconds_left(), 2.4)

    def test_silence(self) -> None:
        """An etcd that goes silent: nothing new from 0.7 of the TTL, given up at 0.8, before another can have it."""
        self.owned()
        self.etcd.deaf.update(MEMBERS)
        begun = self.here.clock.monotonic()
        while self.resource.may_accept():
            self.after(0.05)
        self.assertAlmostEqual(self.here.clock.monotonic() - begun, 3.5, places=1)
        self.assertEqual(self.heard.of("lost"), [])
        self.assertIs(self.successResultOf(self.resource.probe(0)).level, HealthLevel.DEGRADED)
        while not self.heard.of("lost"):
            self.after(0.05)
        self.assertAlmostEqual(self.here.clock.monotonic() - begun, 4.0, places=1)
        self.assertIn(KEY, self.etcd.keys)
        self.assertIn("no answer within 1 s", self.heard.of("lost")[0])

    def test_dead_lease_answers_200(self) -> None:
        """A keepalive that is answered 200 without a TTL is a lost lease, at once."""
        grant = self.owned()
        lease = self.etcd.keys[KEY].lease
        self.etcd.watches.clear()  # the watch would be quicker
        self.etcd.revoke(lease)
        self.after(1.6)
        (reason,) = self.heard.of("lost")
        self.assertIn("no longer knows the lease", reason)
        self.assertEqual(self.resource.seconds_left(), 0.0)
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.failureResultOf(confirmed, GrantLost)

    def test_revoked_by_hand(self) -> None:
        """A lease that is revoked by hand is lost at once, not at the next renewal."""
        self.owned()
        self.etcd.revoke(self.etcd.keys[KEY].lease)
        self.settle()
        self.assertEqual(len(self.heard.of("lost")), 1)

    def test_own_watch_that_etcd_ended(self) -> None:
        """The owner's watch ends: it looks at once whether the key is still its own, and watches
        again 0.05 of the TTL later, from a revision later than what was compacted.
        """
        self.owned()
        self.etcd.revision += 50
        reads = len(self.asked("/v3/kv/range"))
        self.etcd.end_watches(compact_revision="140")
        self.settle()
        self.assertEqual(len(self.asked("/v3/kv/range")), reads + 1)
        self.assertEqual(self.heard.of("lost"), [])
        self.after(0.2)
        self.assertEqual(self.etcd.watches, [])
        self.after(0.1)
        self.assertEqual(self.asked("/v3/lease/keepalive"), [])
        (watched,) = self.etcd.watches
        self.assertEqual(watched[1], self.etcd.revision)
        self.etcd.revoke(self.etcd.keys[KEY].lease)
        self.settle()
        self.assertEqual(len(self.heard.of("lost")), 1)

    def test_ended_watches_leave_nothing_open(self) -> None:
        """However often etcd ends the owner's watch: twenty times a TTL it is begun at most, and no
        stream of an ended one stays open.
        """
        self.owned()
        self.etcd.ends_watches = True
        self.etcd.end_watches(canceled=True)
        self.after(10)
        self.assertEqual(self.heard.of("lost"), [])
        self.assertIn(len(self.asked("/v3/watch")), range(25, 42))
        self.assertLess(len(self.resource._gateway._connections), 5)

    def test_key_taken_by_hand(self) -> None:
        """A key that was deleted and created by another is lost, though the lease lives on."""
        self.owned()
        self.etcd.watches.clear()
        self.etcd.delete(KEY)
        self.etcd.hold(KEY, "b.example.org")
        self.after(1.6)
        (reason,) = self.heard.of("lost")
        self.assertIn("held by b.example.org", reason)

    def test_rubbish_is_no_answer(self) -> None:
        """Rubbish means nothing: it neither renews nor loses the lease, until its time is over."""
        self.owned()
        for octets in (
            b"{}",
            b"hello",
            b'{"result": {}}',
            b'{"result": {"header": {}, "ID": "1"}}',
            b"[" * 60000,
        ):
            self.etcd.crooked["/v3/lease/keepalive"] = (200, octets)
            self.after(0.5)
            self.assertEqual(self.heard.of("lost"), [], octets[:40])
        self.after(1.6)
        (reason,) = self.heard.of("lost")
        self.assertIn("this is not how etcd answers", reason)

    def test_endless_answer(self) -> None:
        """An answer without an end is cut off, and counts as none."""
        self.owned()
        self.etcd.crooked["/v3/lease/keepalive"] = (200, b"x" * 200_000)
        self.after(1.6)
        self.assertIn("too large", self.resource._renewal.trouble)
        self.etcd.crooked["/v3/lease/keepalive"] = (200, b"x" * 2_000_000)
        self.after(1.0)
        self.assertEqual(self.heard.of("lost"), [])
        del self.etcd.crooked["/v3/lease/keepalive"]
        self.after(30)
        self.assertEqual(self.heard.of("lost"), [])

    def test_confirm_asks_anew(self) -> None:
        """Confirming is a round trip that begins after the question, never a serializable read."""
        grant = self.owned()
        before = len(self.asked("/v3/kv/range"))
        confirmed = self.resource.confirm(grant)
        self.settle()
        self.successResultOf(confirmed)
        reads = self.asked("/v3/kv/range")
        self.assertGreater(len(reads), before)
        self.assertFalse([read for read in reads if "serializable" in read])

    def test_confirm_unreachable(self) -> None:
        """An etcd that does not answer confirms nothing, and says so; it does not say that it is lost."""
        grant = self.owned()
        self.etcd.down.update(MEMBERS)
        self.etcd.deaf.update(MEMBERS)
        confirmed = self.resource.confirm(grant)
        self.after(1.1)
        fault = self.failureResultOf(confirmed, TransientFailure).value
        self.assertIn("etcd does not answer", str(fault))

    def test_head_and_body_have_one_time(self) -> None:
        """A member that sends a head just in time and then nothing is given up when the one
        attempt's time is over: head and body have it together.
        """
        grant = self.owned()
        self.etcd.dawdles = 0.9
        confirmed = self.resource.confirm(grant)
        self.after(0.95)
        self.assertNoResult(confirmed)
        self.after(0.2)
        fault = self.failureResultOf(confirmed, TransientFailure).value
        self.assertIn("no answer within 1 s", str(fault))

    def test_release_revokes(self) -> None:
        """Giving back ends the lease, so that the next node need not wait."""
        grant = self.owned()
        released = self.resource.release(grant, "test")
        self.settle()
        self.successResultOf(released)
        self.assertNotIn(KEY, self.etcd.keys)
        self.assertEqual(self.watchdog.deadline_seconds, 0)

    def test_release_unheard(self) -> None:
        """A release that etcd did not hear is said, and made good for when we ask again."""
        grant = self.owned()
        self.etcd.deaf.update(MEMBERS)
        released = self.resource.release(grant, "test")
        self.after(1.1)
        self.failureResultOf(released, TransientFailure)
        self.etcd.deaf.clear()
        waiting = self.resource.acquire()
        self.settle()
        self.assertGreater(self.successResultOf(waiting).token, grant.token)

    def test_after_lost(self) -> None:
        """After a loss the former lease is ended first: we do not wait for ourselves."""
        self.owned()
        lease = self.etcd.keys[KEY].lease
        self.etcd.deaf.update(MEMBERS)
        self.after(4.1)
        self.etcd.deaf.clear()
        self.assertEqual(len(self.heard.of("lost")), 1)
        self.assertIn(lease, self.etcd.leases)
        waiting = self.resource.acquire()
        self.settle()
        self.successResultOf(waiting)
        self.assertNotIn(lease, self.etcd.leases)

    def test_netlink_breaks(self) -> None:
        """Blind for addresses is lost."""
        self.owned()
        self.kernel.break_down()
        self.settle()
        self.assertEqual(len(self.heard.of("lost")), 1)


class WatchdogTests(Ground, SynchronousTestCase):
    """No watchdog, no tenure."""

    keys = PLUMB

    def test_dies(self) -> None:
        """A watchdog that dies ends the tenure at once; the next one cleans up before we bid."""
        self.owned()
        self.watchdog.die()
        self.here.advance()
        self.assertIn("the watchdog is gone: it has ended", self.heard.of("lost")[0])
        self.assertEqual(self.watchdog.spawned, 2)
        self.assertEqual(self.kernel.addresses, {})
        self.assertEqual(self.watchdog.killed, [])
        waiting = self.resource.acquire()
        self.settle()
        self.successResultOf(waiting)

    def test_silent(self) -> None:
        """A watchdog that is silent for a second is none; it is killed, and another begins."""
        self.owned()
        self.watchdog.freeze()
        self.after(0.95)
        self.assertEqual(self.heard.of("lost"), [])
        self.after(0.1)
        self.assertIn("silent for 1 s", self.heard.of("lost")[0])
        self.assertEqual(self.watchdog.killed, [1001])
        self.assertEqual(self.watchdog.spawned, 2)

    def test_we_were_stopped(self) -> None:
        """When it was we who did not listen for a while, what it said meanwhile counts."""
        self.owned()
        self.here.advance(3.0)
        self.assertEqual([r for r in self.heard.of("lost") if "watchdog" in r], [])

    def test_no_bid_without_it(self) -> None:
        """Nothing is asked for before the watchdog is ready; why is said."""
        self.begin()
        self.become_owner()
        self.watchdog.cannot_start = OSError(errno.EMFILE, "Too many open files")
        self.watchdog.die()
        self.here.advance()
        waiting = self.resource.acquire()
        self.after(5)
        self.assertNoResult(waiting)
        self.assertIn("another cannot be started: Too many open files", self.resource.explain())
        self.assertIs(self.successResultOf(self.resource.probe(0)).level, HealthLevel.FAILED)
        self.watchdog.cannot_start = None
        self.after(2)
        self.successResultOf(waiting)

    def test_start_refused(self) -> None:
        """A watchdog that cannot be started at all refuses the start."""
        self.watchdog.cannot_start = OSError(errno.ENOMEM, "Cannot allocate memory")
        self.resource.prepare(self.server)
        with self.assertRaises(StartRefused) as caught:
            self.resource.start()
        self.assertIn("Cannot allocate memory", caught.exception.why)

    def test_deadline_before_the_grant(self) -> None:
        """The watchdog knows the deadline before anybody hears that the lease is ours."""
        self.begin()
        self.assertEqual(self.watchdog.deadline_seconds, 0)
        self.become_owner()
        waiting = self.resource.acquire()
        waiting.addCallback(lambda _grant: self.watchdog.deadline_seconds)
        self.settle()
        self.assertAlmostEqual(self.successResultOf(waiting) - self.here.clock.monotonic(), 4.5)

    def test_stop_says_so(self) -> None:
        """When we end in order the watchdog is told, and holds no deadline against us."""
        self.owned()
        stopped = self.resource.stop()
        self.settle()
        self.successResultOf(stopped)
        self.assertEqual(self.watchdog.commands[-1], "quit")
        self.assertIs(self.watchdog.left_with, False)

    def test_left_over_without_it(self) -> None:
        """With no watchdog, what it added stays on the interface: it is named until the next one
        has removed it.
        """
        self.owned()
        self.assertEqual(self.resource.stale_addresses(), ())
        self.watchdog.cannot_start = OSError(errno.ENOMEM, "Cannot allocate memory")
        self.watchdog.die()
        self.settle()
        left = [str(address) for address in self.resource.stale_addresses()]
        self.assertEqual(left, ["192.0.2.10", "2001:db8::10"])
        self.watchdog.cannot_start = None
        self.after(1.1)
        self.settle()
        self.assertEqual(self.resource.stale_addresses(), ())
        self.assertEqual(self.kernel.addresses, {})

    def test_unplumb_without_it(self) -> None:
        """Removing never fails: it is done by the next watchdog when there is none."""
        self.owned()
        self.watchdog.cannot_start = OSError(errno.ENOMEM, "Cannot allocate memory")
        self.watchdog.die()
        self.here.advance()
        gone = self.resource.unplumb()
        self.assertNoResult(gone)
        self.watchdog.cannot_start = None
        self.after(1.1)
        self.successResultOf(gone)


class StandbyTests(Ground, SynchronousTestCase):
    """Waiting for a key that another holds."""

    keys = PLUMB

    def test_told_by_the_watch(self) -> None:
        """A standby hears of the key's end at once, without asking again."""
        self.begin()
        waiting = self.resource.acquire()
        self.here.advance()
        self.assertIn("held by b.example.org", self.resource.explain())
        reads = len(self.asked("/v3/kv/range"))
        self.etcd.revoke(self.other)
        self.here.advance()
        self.successResultOf(waiting)
        self.assertLessEqual(len(self.asked("/v3/kv/range")) - reads, 2)

    def test_deaf_watch(self) -> None:
        """A watch that was lost is made good by looking again."""
        self.begin()
        waiting = self.resource.acquire()
        self.here.advance()
        self.etcd.watches.clear()
        self.etcd.revoke(self.other)
        self.after(1.55)
        self.successResultOf(waiting)

    def test_watch_that_etcd_ended(self) -> None:
        """A watch that etcd cancels, or whose revision was compacted, is begun anew from the newest
        revision, soon and not without a pause: what comes then is heard at once.
        """
        for why in (
            {"canceled": True, "cancel_reason": "etcdserver: no leader"},
            {"compact_revision": "100"},
        ):
            self.setUp()
            self.begin()
            waiting = self.resource.acquire()
            self.here.advance()
            self.etcd.revision += 50
            for _ in range(3):
                (watched,) = self.etcd.watches
                self.etcd.end_watches(**why)
                self.here.advance()
                self.assertEqual(self.etcd.watches, [])
                self.after(0.3)
            (watched,) = self.etcd.watches
            self.assertEqual(watched[1], self.etcd.revision)
            self.etcd.revoke(self.other)
            self.here.advance()
            self.successResultOf(waiting)

    def test_watches_ended_for_ever(self) -> None:
        """An etcd that ends every watch is asked for another twenty times a TTL at most; the key's
        end is found all the same.
        """
        self.etcd.ends_watches = True
        self.begin()
        waiting = self.resource.acquire()
        self.after(10)
        self.assertNoResult(waiting)
        self.assertIn(len(self.asked("/v3/watch")), range(25, 42))
        self.etcd.revoke(self.other)
        self.after(0.3)
        self.successResultOf(waiting)

    def test_watch_broken_off(self) -> None:
        """A member that dies takes the watch with it: another is begun soon, without a poll."""
        self.begin()
        waiting = self.resource.acquire()
        self.here.advance()
        ((_key, _after, server),) = self.etcd.watches
        server.transport.abortConnection()
        self.after(0.3)
        self.etcd.revoke(self.other)
        self.here.advance()
        self.successResultOf(waiting)

    def test_other_is_quicker(self) -> None:
        """Two that see the key free: one has it, the other ends its lease and waits on."""
        self.begin()
        self.become_owner()
        self.etcd.crooked["/v3/kv/txn"] = (200, json.dumps({"header": self.etcd.header()}).encode())
        waiting = self.resource.acquire()
        self.etcd.deaf.update(MEMBERS)
        self.here.advance()
        self.etcd.deaf.clear()
        self.after(2)
        self.assertNoResult(waiting)
        self.assertEqual(self.watchdog.deadline_seconds, 0)
        self.assertEqual(len(self.etcd.leases), 0)
        del self.etcd.crooked["/v3/kv/txn"]
        self.after(2)
        self.successResultOf(waiting)

    def test_unknown_outcome(self) -> None:
        """A claim whose answer was lost is found by reading the key: it is ours by its lease."""
        self.begin()
        self.become_owner()
        real, lost = self.etcd.answer, []

        def answer(path: str, said: dict[str, Any], server: Any) -> None:
            if path == "/v3/kv/txn" and not lost:
                lost.append(path)

                class Nobody:
                    def reply(self, status: int, fields: Any) -> None:
                        """Lost on the way."""

                server = Nobody()
            real(path, said, server)

        self.etcd.answer = answer  # type: ignore[method-assign]
        waiting = self.resource.acquire()
        self.after(1.1)
        self.assertEqual(self.successResultOf(waiting).token, self.etcd.keys[KEY].revision)
        self.assertEqual(len(self.etcd.leases), 1)

    def test_grant_without_ttl(self) -> None:
        """A lease that is granted without a TTL is refused by name, and asked for again later."""
        self.begin()
        self.become_owner()
        self.etcd.crooked["/v3/lease/grant"] = (
            200,
            json.dumps({"header": self.etcd.header(), "ID": "5"}).encode(),
        )
        waiting = self.resource.acquire()
        self.after(3)
        self.assertNoResult(waiting)
        self.assertIn("granted without an ID or a TTL", self.resource.explain())
        self.assertIs(self.heard.of("health")[-1].level, HealthLevel.FAILED)
        self.etcd.crooked.clear()
        self.after(2)
        self.successResultOf(waiting)
        self.assertIs(self.successResultOf(self.resource.probe(0)).level, HealthLevel.OK)

    def test_unreachable_at_start(self) -> None:
        """An etcd that is away at start is waited for, and status says so."""
        self.etcd.down.update(MEMBERS)
        self.begin()
        waiting = self.resource.acquire()
        self.after(3)
        self.assertNoResult(waiting)
        self.assertIn("etcd does not answer: http://10.9.0.3:2379", self.resource.explain())
        self.etcd.down.clear()
        self.become_owner()
        self.after(2)
        self.successResultOf(waiting)

    def test_given_up_in_the_midst(self) -> None:
        """Waiting that is given up while the lease is being asked for leaves no lease behind."""
        for deaf_path in ("/v3/kv/range", "/v3/lease/grant", "/v3/kv/txn"):
            self.setUp()
            self.begin()
            self.become_owner()
            real = self.etcd.answer

            def answer(
                path: str,
                said: dict[str, Any],
                server: Any,
                deaf: str = deaf_path,
                real: Any = real,
            ) -> None:
                if path != deaf:
                    real(path, said, server)

            self.etcd.answer = answer  # type: ignore[method-assign]
            waiting = self.resource.acquire()
            self.here.advance()
            self.assertTrue(self.asked(deaf_path), deaf_path)
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
            self.here.advance()
            self.assertEqual(self.watchdog.deadline_seconds, 0)
            self.assertEqual(self.etcd.leases, {}, deaf_path)
            self.etcd.answer = real  # type: ignore[method-assign]
            waiting = self.resource.acquire()
            self.after(2)
            self.successResultOf(waiting)


class ClusterTests(Ground, SynchronousTestCase):
    """Three members."""

    keys = PLUMB
    members = 3

    def test_next_member(self) -> None:
        """When one member is away, refuses or hangs, the next is asked, and asked first from then on."""
        self.owned()
        first = self.etcd.asked[-1][0]
        self.etcd.deaf.add(first)
        self.after(60)
        self.assertEqual(self.heard.of("lost"), [])
        self.assertNotIn(first, {at for at, _, _ in self.etcd.asked[-10:]})
        second = self.etcd.asked[-1][0]
        self.etcd.down.add(second)
        self.etcd.deaf.add(second)
        self.after(60)
        self.assertEqual(self.heard.of("lost"), [])

    def test_silent_ones_do_not_add_up(self) -> None:
        """While the members elect a leader all of them are silent. One that is does not hold up the
        next, so that who answers again in time is asked in time: 0.72 of the TTL after the last renewal.
        """
        self.owned()
        self.after(0.5)
        renewals = len(self.asked("/v3/lease/keepalive"))
        self.etcd.deaf.update(MEMBERS)
        self.after(2.0)
        self.assertEqual(len(self.asked("/v3/lease/keepalive")), renewals + 3)
        self.after(1.1)
        self.etcd.deaf.clear()
        self.after(10)
        self.assertEqual(self.heard.of("lost"), [])

    def test_one_claim(self) -> None:
        """A lease and the key are never asked for twice at a time, however silent a member is."""
        self.begin()
        waiting = self.resource.acquire()
        self.become_owner()
        self.etcd.deaf.update(MEMBERS)
        self.after(0.9)
        self.assertLessEqual(len(self.asked("/v3/lease/grant")), 1)
        self.etcd.deaf.clear()
        self.after(10)
        self.successResultOf(waiting)
        self.assertEqual(len(self.asked("/v3/kv/txn")), 1)

    def test_none_left(self) -> None:
        """When all of them hang, those that were asked in time are named."""
        self.owned()
        self.etcd.deaf.update(MEMBERS)
        self.after(4.1)
        self.assertEqual(len(self.heard.of("lost")), 1)
        for member in MEMBERS[:2]:
            self.assertIn(member.replace("tcp:", "http://"), self.heard.of("lost")[0])

    def test_an_endpoint_of_another_cluster(self) -> None:
        """It would name an owner of its own: no answer of it counts, and it is named."""
        self.begin()
        grant = self.granted()
        self.etcd.down.add(MEMBERS[0])
        PaperEtcd(self.etcd.surroundings, MEMBERS[1:], cluster="999")  # in place of the others
        self.after(5)
        self.assertIn("is of another etcd cluster", self.resource.explain())
        self.assertEqual(len(self.heard.of("lost")), 1)
        self.resource.release(grant, "test")


class SettingsTests(SynchronousTestCase):
    def refusal(self, **keys: Any) -> str:
        with self.assertRaises(ValidationError) as caught:
            settings(**keys)
        return str(caught.exception)

    def test_endpoints(self) -> None:
        """Endpoints are http and an address; what is not spoken is refused by name."""
        for given, normal in (
            (["http://10.9.0.3"], ["http://10.9.0.3:2379"]),
            (["http://[fd09::3]:2380/"], ["http://[fd09::3]:2380"]),
            (["http://localhost:1"], ["http://127.0.0.1:1"]),
        ):
            self.assertEqual(settings(endpoints=given).endpoints, normal)
        for given, words in (
            (["https://10.9.0.3:2379"], "https is not spoken"),
            (["http://etcd.example.org:2379"], "is not an IP address"),
            (["10.9.0.3:2379"], "is not an endpoint such as"),
            (["http://10.9.0.3:2379/v3"], "is not an endpoint such as"),
            (["http://10.9.0.3:99999"], "is not an endpoint such as"),
            (["http://root:secret@10.9.0.3"], "without a user's name"),
            ([], "at least 1 item"),
            (["http://10.9.0.3", "http://10.9.0.3:2379"], "stands twice"),
        ):
            self.assertIn(words, self.refusal(endpoints=given))

    def test_ttl(self) -> None:
        """etcd counts whole seconds, from 2."""
        self.assertEqual(settings(ttl="2s").ttl, 2.0)
        for text in ("1s", "2500ms", "10m", "0s"):
            self.assertIn("is no TTL for a lease", self.refusal(ttl=text))

    def test_together(self) -> None:
        """Keys that need each other say so."""
        self.assertIn("plumb: true needs interface", self.refusal(plumb="true"))
        self.assertIn("interface is of no use", self.refusal(interface="eth0"))
        self.assertIn("on-superseded is of no use", self.refusal(**{"on-superseded": "remove"}))
        self.assertIn("neither remove nor report", self.refusal(**PLUMB, **{"on-superseded": "no"}))
        self.assertIn("no name of an interface", self.refusal(plumb="true", interface="eth0:1"))
        self.assertIn("is no prefix", self.refusal(prefix="mta"))
        self.assertTrue(settings(**PLUMB).removes_superseded)
        self.assertFalse(settings(**PLUMB, **{"on-superseded": "report"}).removes_superseded)
