"""The ownership driver: online only when all is true at once, and never online after that ended.

Long because each step, loss and stop is tried on one scripted world, which stands here.
"""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides, implementer

from mta.cluster.driver import ClaimFacts, Ownership
from mta.cluster.herald import Herald
from mta.cluster.ownership import State
from mta.cluster.packets import tickle
from mta.cluster.settings import ClusterSettings
from mta.errors import (
    ConfigurationError,
    Fenced,
    GrantLost,
    StartRefused,
    TenureRevoked,
    Unavailable,
)
from mta.interfaces import IAssociationEnds, IRevocable, ISingleNode
from mta.model import (
    AddressInstance,
    EpochRecord,
    Fencing,
    FourTuple,
    Grant,
    Health,
    HealthLevel,
    Recovery,
    VirtualAddress,
    VirtualServer,
)
from mta.telemetry import Transition
from mta.testing.surroundings import MemorySurroundings, virtual_addresses
from tests.test_herald import Door

V4, V6 = virtual_addresses("192.0.2.10", "2001:db8::10")
WAYS_UP = ["acquire", "inspect", "confirm", "publish", "recover", "seal", "start"]
"""Every await between STANDBY and ONLINE, in its order."""


def instance(address: VirtualAddress, cstamp: int = 1, boot: str = "boot-a") -> AddressInstance:
    return AddressInstance(boot, 2, address.bind, cstamp)


class Held:
    """Calls that wait for the test: `held` names those that do not answer at once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hold: set[str] = set()
        self.fail: dict[str, Exception] = {}
        self.waiting: dict[str, Deferred] = {}
        self.cancelled: list[str] = []

    def answer(self, name: str, value: object):
        self.calls.append(name)
        if name in self.fail:
            return fail(self.fail[name])
        if name not in self.hold:
            return succeed(value)

        def cancelled(waiting: Deferred) -> None:
            self.cancelled.append(name)
            waiting._suppressAlreadyCalled = True  # as what a thread brings after all

        waiting: Deferred = Deferred(cancelled)
        self.waiting[name] = waiting
        waiting.value = value
        return waiting

    def go(self, name: str) -> None:
        waiting = self.waiting.pop(name)
        waiting.callback(waiting.value)


class Authority:
    """A cluster resource under the test's control."""

    fencing = Fencing.NONE

    def __init__(self, held: Held) -> None:
        self.held = held
        self.instances: tuple[AddressInstance, ...] = ()
        self.addresses = (V4, V6)
        self.network_name = "bridgehead.example.org"
        self.valid_until: float | None = None
        self.tokens = 0

    def grant(self) -> Grant:
        self.tokens += 1
        return Grant(
            self.tokens,
            self.network_name,
            self.addresses,
            Fencing.NONE,
            self.valid_until,
            self.instances,
        )

    def subscribe(self, listener) -> None:
        self.listener = listener

    def start(self) -> None:
        self.held.calls.append("watch")

    def acquire(self):
        return self.held.answer("acquire", self.grant())

    def confirm(self, grant):
        return self.held.answer("confirm", grant)

    def release(self, grant, reason):
        return self.held.answer("return", None)

    def stop(self):
        return self.held.answer("unwatch", None)

    def explain(self) -> str:
        return "waiting for the test"


class Store:
    """A spool of which only the epochs exist."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.records: tuple[EpochRecord, ...] = ()
        self.epoch = 0
        self.fault: Exception | None = None
        self.beats = 0
        self.stuck = 0.0

    def inspect(self):
        return self.held.answer("inspect", self.records)

    def publish(self, claim, above):
        self.claim, self.above = claim, above

        def published(epoch):
            self.epoch = epoch
            self.records = (
                *self.records,
                EpochRecord(
                    epoch, claim.node, claim.boot_id, False, False, 0, claim.grant.instances
                ),
            )
            return epoch

        return self.held.answer("publish", above + 1).addCallback(published)

    def recover(self):
        return self.held.answer(
            "recover", Recovery(self.above, 3, 1, ("log/7",), "a day ahead", 0.1)
        )

    def seal(self):
        return self.held.answer("seal", None)

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def heartbeat(self) -> None:
        self.beats += 1

    def release(self, reason):
        self.epoch = 0
        return self.held.answer("release", None)

    def abandon(self) -> None:
        self.held.calls.append("abandon")

    def stuck_seconds(self) -> float:
        return self.stuck


@implementer(IRevocable)
class Opened:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def revoke(self) -> None:
        self.calls.append("closed")


class Tenant:
    def __init__(self, held: Held) -> None:
        self.held = held
        self.tenures: list = []
        self.refuses: Exception | None = None

    def start(self, tenure):
        self.tenures.append(tenure)
        tenure.adopt(Opened(self.held.calls))
        if self.refuses is not None:
            raise self.refuses
        return self.held.answer("start", None)

    def suspend(self, reason) -> None:
        self.held.calls.append("suspend")

    def drain(self, deadline):
        self.deadline = deadline
        return self.held.answer("drain", None)

    def stop(self, reason) -> None:
        self.held.calls.append("stop")


@implementer(IRevocable, IAssociationEnds)
class OpenAssociation:
    def __init__(self, ends: FourTuple) -> None:
        self._ends = ends

    def revoke(self) -> None:
        pass

    def ends(self) -> FourTuple:
        return self._ends


class DriverCase(SynchronousTestCase):
    single = False

    def setUp(self) -> None:
        self.here = MemorySurroundings()
        self.held = Held()
        self.authority = Authority(self.held)
        if self.single:
            alsoProvides(self.authority, ISingleNode)
        self.store = Store(self.held)
        self.tenant = Tenant(self.held)
        self.fatal: list[tuple[int, str]] = []
        self.server = VirtualServer("bridgehead.example.org", (V4, V6))
        self.ownership = self.driver()

    def driver(self, node: str = "a.example.org") -> Ownership:
        made = Ownership(
            self.authority,
            self.store,
            self.tenant,
            self.here.doors,
            self.here.clock,
            self.here.telemetry,
            self.server,
            ClaimFacts(node, "boot-a", 1.0, "0", "digest"),
            ClusterSettings(),
            jitter=lambda: 0.5,
        )
        made.on_fatal(lambda code, reason: self.fatal.append((code, reason)))
        return made

    def here_now(self, *instances: AddressInstance) -> None:
        self.authority.instances = instances
        self.ownership.addressesChanged(instances)

    def assert_state(self, state: State) -> None:
        self.assertIs(self.ownership.state, state)

    def online(self) -> None:
        self.ownership.start()
        self.assert_state(State.ONLINE)
        self.held.calls.clear()

    @property
    def calls(self) -> list[str]:
        calls, self.held.calls[:] = list(self.held.calls), []
        return calls


class TheWayUp(DriverCase):
    def test_order(self) -> None:
        """Everything that can refuse comes before the epoch; listening comes last."""
        self.ownership.start()
        self.assertEqual(self.calls, ["watch", *WAYS_UP])
        self.assert_state(State.ONLINE)
        tenure = self.ownership.tenure
        self.assertEqual(
            (tenure.epoch, tenure.network_name, tenure.addresses),
            (1, "bridgehead.example.org", (V4, V6)),
        )
        self.assertEqual(self.store.claim.node, "a.example.org")
        self.assertEqual(
            self.ownership.explain(),
            "online as bridgehead.example.org at 192.0.2.10, 2001:db8::10, epoch 1",
        )
        self.assertEqual(self.ownership.snapshot()["epoch"], 1)
        states = [e.after for e in self.here.events if isinstance(e, Transition)]
        self.assertEqual(
            states,
            ["STANDBY", "CLAIMED", "FENCED_OTHERS", "PUBLISHED", "RECOVERED", "SEALED", "ONLINE"],
        )

    def test_recovery_is_told(self) -> None:
        """What was set aside and a suspicious clock are said at takeover."""
        self.ownership.start()
        self.assertIn("set aside: log/7", self.here.notices("error"))
        self.assertTrue(any("clock-suspect" in text for text in self.here.notices("warning")))

    def test_no_tenure_before_the_end(self) -> None:
        """At each await on the way up there is no tenure, and nothing is open."""
        for name in WAYS_UP[:-1]:
            self.setUp()
            self.held.hold = {name}
            self.ownership.start()
            self.assertEqual(self.held.calls[-1], name)
            self.assertIsNone(self.ownership.tenure)
            self.assertEqual(self.tenant.tenures, [])
            self.held.go(name)
            self.assert_state(State.ONLINE)

    def test_no_time_is_lost(self) -> None:
        """From the grant to listening nothing waits for a timer."""
        self.held.hold = {"acquire"}
        self.ownership.start()
        before = self.here.clock.monotonic()
        self.held.go("acquire")
        self.assert_state(State.ONLINE)
        self.assertEqual(self.here.clock.monotonic(), before)

    def test_each_failure(self) -> None:
        """A step that fails is named, undone, and tried again after a back-off; never a hang."""
        for name in WAYS_UP:
            self.setUp()
            self.held.fail = {name: Unavailable(f"{name} is broken")}
            self.ownership.start()
            self.assert_state(State.STANDBY)
            self.assertIsNone(self.ownership.tenure)
            self.assertIn(f"{name} is broken", self.ownership.explain())
            if name in {"recover", "seal", "start"}:
                self.assertIn("release", self.held.calls)  # the epoch is marked released
            if name != "acquire":
                self.assertIn("return", self.held.calls)
            self.held.fail.clear()
            self.here.advance(0.9)
            self.assert_state(State.STANDBY)
            self.here.advance(0.1)
            self.assert_state(State.ONLINE)
            self.assertEqual(self.ownership.snapshot()["failures"], 0)

    def test_unexpected_exceptions(self) -> None:
        """A defect in a plugin is a failed step like any other, with its name."""
        self.held.fail = {"acquire": ZeroDivisionError("oops")}
        self.ownership.start()
        self.assertIn("waiting for ownership failed: ZeroDivisionError", self.ownership.explain())
        self.assert_state(State.STANDBY)

    def test_foreign_cancel(self) -> None:
        """A step that somebody else cancelled has failed; it is not waited for."""
        self.held.fail = {"confirm": CancelledError()}
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.held.fail.clear()
        self.here.advance(1)
        self.assert_state(State.ONLINE)

    def test_back_off(self) -> None:
        """Tries become rarer while another node is the owner: 1 s, 2 s, 4 s ... 5 min."""
        self.store.records = (EpochRecord(4, "b.example.org", "boot-b", False, False, 9),)
        self.held.fail = {"confirm": Unavailable("no")}
        self.ownership.start()
        waits = []
        for beat in range(11):
            self.store.records = (EpochRecord(4, "b.example.org", "boot-b", False, False, beat),)
            waits.append(self.ownership.snapshot()["next_try_seconds"])
            self.here.advance(waits[-1])
        self.assertEqual(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300])

    def test_back_off_alone(self) -> None:
        """When no other node's heart beats, tries are never further apart than 5 s."""
        self.store.records = (EpochRecord(4, "b.example.org", "boot-b", False, True, 9),)
        self.held.fail = {"seal": Unavailable("no")}
        self.ownership.start()
        for _ in range(6):
            self.here.advance(self.ownership.snapshot()["next_try_seconds"])
        self.assertEqual(self.ownership.snapshot()["next_try_seconds"], 5)

    def test_the_same_failure_is_said_once(self) -> None:
        """A failure that repeats does not fill the log."""
        self.held.fail = {"seal": Unavailable("no room")}
        self.ownership.start()
        for _ in range(4):
            self.here.advance(5)
        self.assertEqual(len([t for t in self.here.notices("error") if "no room" in t]), 1)

    def test_authority_silent(self) -> None:
        """An authority that does not answer the confirmation in 10 s is a named failure."""
        self.held.hold = {"confirm"}
        self.ownership.start()
        self.here.advance(9.9)
        self.assert_state(State.FENCED_OTHERS)
        self.here.advance(0.1)
        self.assert_state(State.STANDBY)
        self.assertIn("confirming the grant took too long", self.ownership.explain())

    def test_required_address(self) -> None:
        """A required address that cannot be bound keeps the epoch from being published."""
        self.here.network.usable = {"192.0.2.10"}
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.assertNotIn("publish", self.held.calls)
        self.assertIn("2001:db8::10 cannot be bound", self.ownership.explain())

    def test_optional_address(self) -> None:
        """An address marked `required: false` that cannot be bound is left out of the tenure."""
        optional = VirtualAddress(V6.external, V6.bind, required=False)
        self.authority.addresses = (V4, optional)
        self.here.network.usable = {"192.0.2.10"}
        self.ownership.start()
        self.assertEqual(self.ownership.tenure.addresses, (V4,))

    def test_names(self) -> None:
        """Without a proper name of its own the virtual server does not come online."""
        for name in (
            "bridgehead",
            "localhost.localdomain",
            "a.example.org",
            "bad_name.example.org",
            "1.2.3.4",
        ):
            self.setUp()
            self.authority.network_name = name
            self.ownership.start()
            self.assert_state(State.STANDBY)
            self.assertNotIn("publish", self.held.calls)
            self.assertIn(name, self.ownership.explain())

    def test_expired_grant(self) -> None:
        """A grant that ran out while we took over mints nothing."""
        self.authority.valid_until = 5.0
        self.held.hold = {"recover"}
        self.ownership.start()
        self.here.advance(5)
        self.held.go("recover")
        self.assertIsNone(self.ownership.tenure)
        self.assertEqual(self.tenant.tenures, [])
        self.assertIn("release", self.held.calls)

    def test_higher_epoch_exists(self) -> None:
        """When somebody else published first we stand by, and never try the next number at once."""
        self.held.fail = {"publish": Fenced("epoch 1 exists already")}
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.assertEqual(self.held.calls.count("publish"), 1)
        self.assertIn("return", self.held.calls)

    def test_superseded_before_the_tenure(self) -> None:
        """The epoch is read once more before a tenure is minted."""
        self.held.hold = {"seal"}
        self.ownership.start()
        self.store.fault = Fenced("epoch 2 exists")
        self.held.go("seal")
        self.assertEqual(self.tenant.tenures, [])
        self.assertIsNone(self.ownership.tenure)


class WhoMayClaim(DriverCase):
    def other(self, heartbeat: int = 1, released: bool = False) -> None:
        """b took over from us at this address; our own instance is left over."""
        self.store.records = (
            EpochRecord(1, "a.example.org", "boot-a", True, False, 9, (instance(V4), instance(V6))),
            EpochRecord(
                2,
                "b.example.org",
                "boot-b",
                False,
                released,
                heartbeat,
                (instance(V4, 1, "boot-b"),),
            ),
        )

    def test_new_instance(self) -> None:
        """An address that just came to this node may be claimed at once, whoever is alive."""
        self.other()
        self.authority.instances = (instance(V4, 7), instance(V6, 7))
        self.ownership.start()
        self.assert_state(State.ONLINE)
        self.assertEqual(self.ownership.tenure.epoch, 3)

    def test_own_restart(self) -> None:
        """A restart of the owner on the same address comes online at once."""
        self.store.records = (
            EpochRecord(
                1, "a.example.org", "boot-a", False, False, 9, (instance(V4), instance(V6))
            ),
        )
        self.authority.instances = (instance(V4), instance(V6))
        self.ownership.start()
        self.assertEqual(self.ownership.tenure.epoch, 2)

    def test_left_over(self) -> None:
        """A left-over address does not take the queue from a living owner, who is named."""
        self.other()
        self.authority.instances = (instance(V4), instance(V6))
        self.ownership.start()
        for beat in range(2, 40):
            self.here.advance(1)
            self.store.records = (
                self.store.records[0],
                EpochRecord(2, "b.example.org", "boot-b", False, False, beat),
            )
        self.assert_state(State.STANDBY)
        self.assertIn("node b.example.org holds epoch 2 and is alive", self.ownership.explain())

    def test_silent_owner(self) -> None:
        """When the owner's heartbeat has not moved for takeover-after, the left-over serves again."""
        self.other()
        self.authority.instances = (instance(V4), instance(V6))
        self.ownership.start()
        self.here.clock.advance(0)
        for _ in range(9):
            self.here.advance(1)
        self.assert_state(State.STANDBY)
        for _ in range(2):
            self.here.advance(1)
        self.assert_state(State.ONLINE)
        self.assertEqual(self.ownership.tenure.epoch, 3)

    def test_released(self) -> None:
        """A released epoch is taken over after a short random delay, which spreads two standbys."""
        self.other(released=True)
        self.authority.instances = (instance(V4), instance(V6))
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.here.advance(0.5)
        self.assert_state(State.ONLINE)

    def test_address_event_wakes(self) -> None:
        """When the address comes anew while we wait, it is claimed without waiting for the look."""
        self.other()
        self.authority.instances = (instance(V4), instance(V6))
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.here_now(instance(V4, 8), instance(V6, 8))
        self.assert_state(State.ONLINE)


class AddressesComeAndGo(DriverCase):
    def setUp(self) -> None:
        super().setUp()
        self.here_both = (instance(V4), instance(V6))
        self.authority.instances = self.here_both
        self.ownership._instances = self.here_both
        self.online()

    def test_suspend_and_resume(self) -> None:
        """When an address goes everything is closed at once; when it returns service resumes."""
        former = self.ownership.tenure
        self.here_now(instance(V6))
        self.assertEqual(self.calls, ["closed", "suspend"])
        self.assert_state(State.SUSPENDED)
        self.assertIsNone(self.ownership.tenure)
        kept = "192.0.2.10 is not usable here; epoch 1 is kept for"
        self.assertIn(f"{kept} 10 s more", self.ownership.explain())
        self.here.advance(6.0)
        self.assertIn(f"{kept} 4 s more", self.ownership.explain())
        self.assertRaises(TenureRevoked, former.check)
        self.here.advance(3.9)
        self.here_now(instance(V4, 2), instance(V6))
        self.assert_state(State.ONLINE)
        self.assertEqual(self.ownership.tenure.epoch, 1)
        self.assertIsNot(self.ownership.tenure, former)
        self.here.advance(20)
        self.assert_state(State.ONLINE)

    def test_two_taken_one_after_the_other(self) -> None:
        """Somebody takes away both addresses; the first is back before the news of the second come:
        listening fails, and the epoch waits for it as for the first.
        """
        self.here_now(instance(V6))
        self.here.network.usable = {str(V4.bind)}  # the kernel's truth; the news are on their way
        self.here_now(instance(V4, 2), instance(V6))
        self.assert_state(State.SUSPENDED)
        self.assertIn("2001:db8::10 cannot be bound", self.ownership.explain())
        self.here_now(instance(V4, 2))
        self.assert_state(State.SUSPENDED)
        self.here.network.usable = None
        self.here_now(instance(V4, 2), instance(V6, 2))
        self.assert_state(State.ONLINE)
        self.assertEqual(self.ownership.tenure.epoch, 1)
        self.assertEqual(self.ownership.snapshot()["failures"], 0)

    def test_who_was_cut_off_first(self) -> None:
        """A peer that the first of two losses cut off is released too, when both are over."""
        door = Door()
        self.ownership._herald = Herald(door, self.here.clock, self.here.telemetry, is_wanted=True)
        ends = FourTuple(str(V4.bind), 25, "203.0.113.5", 4711)
        self.ownership.tenure.adopt(OpenAssociation(ends))
        self.here_now(instance(V6))
        self.held.hold = {"start"}
        self.here_now(instance(V4, 2), instance(V6))
        self.assert_state(State.SEALED)
        self.here_now(instance(V4, 2))
        self.assert_state(State.SUSPENDED)
        self.held.hold = set()
        self.here_now(instance(V4, 2), instance(V6, 2))
        self.assert_state(State.ONLINE)
        self.assertEqual(door.segments, [tickle(ends)])

    def test_one_never_to_be_bound(self) -> None:
        """An address that is listed and cannot be bound keeps no epoch for longer than `grace`."""
        self.here_now(instance(V6))
        self.here.network.usable = {str(V4.bind)}
        for stamp in range(2, 5):
            self.here_now(instance(V4, stamp), instance(V6))
            self.assert_state(State.SUSPENDED)
            self.here.advance(4)
        self.held.hold = {"acquire"}
        self.here_now(instance(V4, 9), instance(V6))
        self.assert_state(State.STANDBY)
        self.assertIn("release", self.held.calls)
        self.assertIn("2001:db8::10 cannot be bound", self.ownership.snapshot()["last_failure"])

    def test_grace_over(self) -> None:
        """An address that stays away costs the ownership after `grace`; its return wins it again."""
        self.here_now(instance(V6))
        self.held.hold = {"acquire"}
        self.here.advance(10)
        self.assert_state(State.STANDBY)
        self.assertIn("release", self.held.calls)
        self.assertIn("return", self.held.calls)
        self.here_now(instance(V4, 5), instance(V6))
        self.held.waiting["acquire"].value = self.authority.grant()
        self.held.go("acquire")
        self.assertEqual(self.ownership.tenure.epoch, 2)

    def test_made_anew(self) -> None:
        """An address deleted and added in one breath: sockets of its former life are closed."""
        self.here_now(instance(V4, 99), instance(V6))
        self.assertEqual(self.calls, ["closed", "suspend", "start"])
        self.assert_state(State.ONLINE)

    def test_unchanged(self) -> None:
        """News that changes nothing about our addresses interrupts nobody."""
        self.here_now(*self.here_both, instance(virtual_addresses("192.0.2.77")[0]))
        self.here_now(*reversed(self.here_both))
        self.assertEqual(self.calls, [])
        self.assert_state(State.ONLINE)

    def test_gone_while_taking_over(self) -> None:
        """An address that goes during recovery: nothing listens until it is back."""
        self.setUp_held("recover")
        self.here_now(instance(V6))
        self.held.go("recover")
        self.assert_state(State.SUSPENDED)
        self.assertEqual(self.tenant.tenures, [])
        self.here_now(*self.here_both)
        self.assert_state(State.ONLINE)

    def test_gone_while_starting(self) -> None:
        """An address that goes while listeners open: they close, and the late answer is dropped."""
        self.setUp_held("start")
        self.here_now(instance(V6))
        self.assert_state(State.SUSPENDED)
        self.assertIn("start", self.held.cancelled)
        self.assertEqual(self.held.calls[-2:], ["closed", "suspend"])

    def setUp_held(self, name: str) -> None:
        DriverCase.setUp(self)
        self.authority.instances = self.here_both
        self.ownership._instances = self.here_both
        self.held.hold = {name}
        self.ownership.start()


class Losing(DriverCase):
    def test_at_every_await(self) -> None:
        """Losing the authority at any await: nothing is open when it returns, then standby again."""
        for name in WAYS_UP[2:]:
            self.setUp()
            self.held.hold = {name}
            self.ownership.start()
            self.assertEqual(self.held.calls[-1], name)
            self.held.calls.clear()
            self.held.hold = {"acquire"}
            self.ownership.lost("the lease expired")
            self.assertIsNone(self.ownership.tenure)
            self.assertIn("abandon", self.held.calls)
            if name == "start":
                self.assertEqual(self.held.calls[:3], ["closed", "abandon", "stop"])
            self.assert_state(State.STANDBY)
            self.assertIn(name, self.held.cancelled)
            self.assertEqual(self.fatal, [])
            self.here.advance(1)
            self.assertIn("acquire", self.held.calls)

    def test_online(self) -> None:
        """Sockets are closed first, then the spool let go, then all told: before lost() returns."""
        self.online()
        self.held.hold = {"release"}
        self.ownership.lost("the lease expired")
        self.assertEqual(self.calls, ["closed", "abandon", "stop", "release"])
        self.assert_state(State.LOST)
        self.held.go("release")
        self.assert_state(State.STANDBY)
        self.here.advance(1)
        self.assert_state(State.ONLINE)
        self.assertEqual(self.ownership.tenure.epoch, 2)

    def test_late_success(self) -> None:
        """A publish that succeeds after the loss does not bring anything back."""
        self.held.hold = {"publish"}
        self.ownership.start()
        late = self.held.waiting["publish"]
        self.held.hold = {"acquire"}
        self.ownership.lost("gone")
        late.callback(1)
        self.assert_state(State.STANDBY)
        self.assertIsNone(self.ownership.tenure)

    def test_lost_inside_a_step(self) -> None:
        """A loss that is told from within the very call that we make is handled all the same."""

        def confirm(grant):
            self.ownership.lost("in the midst")
            return succeed(grant)

        self.authority.confirm = confirm
        self.ownership.start()
        self.here.advance(0)
        self.assertIsNone(self.ownership.tenure)
        self.assertNotIn("publish", self.held.calls)
        self.assertEqual([t for t in self.here.notices("critical") if "Assertion" in t], [])

    def test_not_ours(self) -> None:
        """A loss that comes while nothing is held changes nothing."""
        self.held.hold = {"acquire"}
        self.ownership.start()
        self.ownership.lost("old news")
        self.ownership.losing(5.0)
        self.assert_state(State.STANDBY)
        self.held.go("acquire")
        self.assert_state(State.ONLINE)

    def test_superseded(self) -> None:
        """A superseded owner is noticed within 250 ms and leaves: sockets closed, exit 75."""
        self.online()
        self.store.fault = Fenced("epoch 2 exists")
        self.here.advance(0.25)
        self.assertEqual(self.calls, ["closed", "abandon", "stop", "unwatch"])
        self.assert_state(State.LOST)
        self.assertEqual(self.fatal, [(75, "epoch 2 exists")])
        self.here.advance(600)
        self.assert_state(State.LOST)

    def test_superseded_seen_by_an_association(self) -> None:
        """Whoever first reads the newer epoch closes everything there and then."""
        self.online()
        self.store.fault = Fenced("epoch 2 exists")
        self.assertRaises(Fenced, self.ownership.tenure.check)
        self.assertEqual(self.calls, ["closed", "abandon"])
        self.assertEqual(self.fatal, [])
        self.here.advance(0)
        self.assertEqual(self.calls, ["abandon", "stop", "unwatch"])
        self.assertEqual(self.fatal, [(75, "epoch 2 exists")])

    def test_superseded_while_it_was_stopped(self) -> None:
        """A process that slept says why it lost, whichever of its late events comes first."""
        self.online()
        self.store.fault = Fenced("epoch 2 exists")
        self.here.clock.sleep(60)
        self.ownership.addressesChanged(())
        self.store.fault = Fenced("no epoch is held")  # as a store says that was abandoned
        self.here.advance(0)
        self.assertEqual(self.fatal, [(75, "epoch 2 exists")])

    def test_unreadable_epoch(self) -> None:
        """An epoch that cannot be read is not ours to act under."""
        self.online()
        self.store.fault = Unavailable("EIO")
        self.here.advance(0.25)
        self.assertEqual(self.fatal[0][0], 75)

    def test_stuck_disk(self) -> None:
        """A spool whose disk does not answer for 5 s ends the tenure and the process."""
        self.online()
        self.store.stuck = 5.0
        self.here.advance(0.25)
        self.assert_state(State.ONLINE)
        self.store.stuck = 5.1
        self.here.advance(0.25)
        self.assertIn("has not answered for 5.1 s", self.fatal[0][1])
        self.assertIsNone(self.ownership.tenure)

    def test_stuck_while_ending(self) -> None:
        """When the threads of a lost tenure do not end, the process does."""
        self.online()
        self.held.hold = {"release"}
        self.ownership.lost("the lease expired")
        self.store.stuck = 6.0
        self.here.advance(0.25)
        self.assertEqual(self.fatal[0][0], 75)

    def test_heartbeat(self) -> None:
        """An owner beats once a second, from the publishing on; a standby does not."""
        self.held.hold = {"recover"}
        self.ownership.start()
        self.assertEqual(self.store.beats, 1)
        self.here.clock.reactor.pump([0.25] * 12)
        self.assertEqual(self.store.beats, 4)
        self.held.go("recover")
        self.here.clock.reactor.pump([0.25] * 4)
        self.assertEqual(self.store.beats, 5)

    def test_no_false_alarm_while_releasing(self) -> None:
        """Between closing the epoch's file and giving the grant back nothing is taken for a loss."""
        self.online()
        self.held.hold = {"return"}
        stopped = self.ownership.stop("bye")
        self.store.fault = Fenced("its file is closed")
        self.here.advance(1)
        self.assertEqual(self.fatal, [])
        self.held.go("return")
        self.successResultOf(stopped)


class Stopping(DriverCase):
    def test_online(self) -> None:
        """SIGTERM: drain, abort the rest, mark the epoch released, give the grant back, end."""
        self.online()
        self.held.hold = {"drain"}
        stopped = self.ownership.stop("SIGTERM")
        self.assert_state(State.DRAINING)
        self.assertEqual(self.tenant.deadline, self.here.clock.monotonic() + 10)
        self.assertIsNotNone(self.ownership.tenure)
        self.held.go("drain")
        self.assertEqual(self.calls, ["drain", "closed", "stop", "release", "return", "unwatch"])
        self.assertIsNone(self.successResultOf(stopped))
        self.assert_state(State.DOWN)
        self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])

    def test_drain_time(self) -> None:
        """A tenant that does not end its drain is ended."""
        self.online()
        self.held.hold = {"drain"}
        stopped = self.ownership.stop("SIGTERM")
        self.here.advance(10.4)
        self.assert_state(State.DRAINING)
        self.here.advance(0.1)
        self.successResultOf(stopped)
        self.assertIn("closed", self.held.calls)

    def test_at_every_await(self) -> None:
        """A stop at any await on the way up ends in DOWN, the epoch released if there is one."""
        for name in WAYS_UP:
            self.setUp()
            self.held.hold = {name}
            self.ownership.start()
            stopped = self.ownership.stop("SIGTERM")
            if name in self.held.waiting and name not in self.held.cancelled:
                self.assertNoResult(stopped)
                self.held.go(name)
            self.successResultOf(stopped)
            self.assert_state(State.DOWN)
            self.assertIsNone(self.ownership.tenure)
            self.assertEqual(
                "release" in self.held.calls, name in {"publish", "recover", "seal", "start"}, name
            )
            self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])

    def test_step_that_never_ends(self) -> None:
        """A step that hangs is waited for no longer than the drain time."""
        self.held.hold = {"publish"}
        self.ownership.start()
        stopped = self.ownership.stop("SIGTERM")
        self.here.advance(10)
        self.successResultOf(stopped)

    def test_suspended_and_resting(self) -> None:
        """A stop while suspended, and while backing off, ends at once."""
        self.ownership._instances = self.authority.instances = (instance(V4), instance(V6))
        self.online()
        self.here_now(instance(V6))
        self.successResultOf(self.ownership.stop("SIGTERM"))
        self.setUp()
        self.held.fail = {"seal": Unavailable("no")}
        self.ownership.start()
        self.successResultOf(self.ownership.stop("SIGTERM"))
        self.assertEqual(self.here.clock.reactor.getDelayedCalls(), [])

    def test_never_started(self) -> None:
        """Stopping what never started is done at once; so is stopping twice."""
        self.successResultOf(self.ownership.stop("x"))
        self.online()
        first, second = self.ownership.stop("x"), self.ownership.stop("y")
        self.successResultOf(first)
        self.successResultOf(second)

    def test_lost_while_draining(self) -> None:
        """Losing the authority while draining aborts at once, and the stop still ends."""
        self.online()
        self.held.hold = {"drain"}
        stopped = self.ownership.stop("SIGTERM")
        self.ownership.lost("gone")
        self.successResultOf(stopped)
        self.assert_state(State.DOWN)

    def test_superseded_while_draining(self) -> None:
        """A process that must leave leaves; the stop does not wait."""
        self.online()
        self.held.hold = {"drain"}
        stopped = self.ownership.stop("SIGTERM")
        self.store.fault = Fenced("epoch 2 exists")
        self.here.advance(0.25)
        self.successResultOf(stopped)
        self.assertEqual(self.fatal, [(75, "epoch 2 exists")])

    def test_release_fails(self) -> None:
        """A spool that cannot mark the release is named; the rest still happens."""
        self.online()
        self.held.fail = {"release": Unavailable("EIO")}
        self.successResultOf(self.ownership.stop("SIGTERM"))
        self.assertTrue(any("releasing epoch 1" in text for text in self.here.notices("error")))
        self.assertIn("return", self.held.calls)

    def test_release_hangs(self) -> None:
        """A disk that swallows the release keeps neither a stop nor a standby waiting for ever: it
        is named, the spool is let go, and the others' takeover-after does the rest.
        """
        for lost in (False, True):
            self.setUp()
            self.online()
            self.held.hold = {"release"}
            if lost:
                self.ownership.lost("the lease expired")
            else:
                stopped = self.ownership.stop("SIGTERM")
            self.here.advance(29.9)
            self.assert_state(State.LOST if lost else State.RELEASING)
            self.held.calls.clear()
            self.here.advance(0.2)
            self.assertIn("abandon", self.held.calls)
            self.assertTrue(any("no answer within" in t for t in self.here.notices("error")))
            if lost:
                self.assert_state(State.STANDBY)
            else:
                self.successResultOf(stopped)
                self.assert_state(State.DOWN)

    def test_losing(self) -> None:
        """Asked to leave by the authority: drain until its deadline, release, stand by."""
        self.online()
        self.held.hold = {"drain", "acquire"}
        self.ownership.losing(self.here.clock.monotonic() + 3)
        self.assertEqual(self.tenant.deadline, self.here.clock.monotonic() + 3)
        self.here.advance(3.5)
        self.assert_state(State.STANDBY)
        self.assertEqual(self.ownership.snapshot()["failures"], 0)

    def test_tenant_that_raises(self) -> None:
        """A tenant that raises where it must not cannot keep the ownership."""
        self.online()

        def broken(reason):
            raise RuntimeError("broken")

        self.tenant.stop = broken
        self.successResultOf(self.ownership.stop("SIGTERM"))
        self.assertTrue(any("raised in stop" in text for text in self.here.notices("critical")))

    def test_revocable_that_raises(self) -> None:
        """A socket that cannot be closed is named, and the others are closed."""
        self.online()

        @implementer(IRevocable)
        class Broken:
            def revoke(self) -> None:
                raise OSError(errno.EIO, "broken")

        self.ownership.tenure.adopt(Broken())
        self.ownership.tenure.adopt(Opened(self.held.calls))
        self.ownership.lost("gone")
        self.assertEqual(self.held.calls.count("closed"), 2)
        self.assertTrue(any("did not close" in text for text in self.here.notices("critical")))

    def test_health(self) -> None:
        """What the authority says of itself is shown, and said when it changes."""
        self.online()
        for level in (HealthLevel.OK, HealthLevel.OK, HealthLevel.FAILED):
            self.ownership.health(Health(level, "words"))
        self.assertEqual(len([t for t in self.here.notices("info") if "words" in t]), 2)
        self.assertEqual(self.ownership.snapshot()["health"], "words")


class ASingleNode(DriverCase):
    single = True

    def test_refused_for_good(self) -> None:
        """On a single node a busy port ends the process with its reason, the epoch released."""
        self.tenant.refuses = StartRefused("smtp cannot listen on 127.0.0.1:2525", "taken by pid 7")
        self.ownership.start()
        self.assertEqual(self.fatal, [(69, "smtp cannot listen on 127.0.0.1:2525: taken by pid 7")])
        self.assertIn("release", self.held.calls)
        self.assertIn("closed", self.held.calls)

    def test_configuration(self) -> None:
        """Nonsense that is only found now ends it with 78."""
        self.held.fail = {"inspect": ConfigurationError("no such spool")}
        self.ownership.start()
        self.assertEqual(self.fatal, [(78, "no such spool")])

    def test_own_name(self) -> None:
        """Standalone, the node's own name is right."""
        self.authority.network_name = "a.example.org"
        self.ownership.start()
        self.assert_state(State.ONLINE)

    def test_transient(self) -> None:
        """What may pass is tried again."""
        self.held.fail = {"inspect": Unavailable("not mounted yet")}
        self.ownership.start()
        self.assertEqual(self.fatal, [])
        self.held.fail.clear()
        self.here.advance(1)
        self.assert_state(State.ONLINE)

    def test_lost_grant(self) -> None:
        """A grant that is not confirmed is given up."""
        self.held.fail = {"confirm": GrantLost("no longer ours")}
        self.ownership.start()
        self.assert_state(State.STANDBY)
        self.assertNotIn("publish", self.held.calls)
