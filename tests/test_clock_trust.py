"""A clock that disagrees with the log: mail goes on, and none expires (spool.md section 9)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.interfaces import IClock
from mta.model import CLOCK_AHEAD_SECONDS, CLOCK_BEHIND_SECONDS
from mta.testing.clock import VirtualClock
from mta.testing.lab import Lab
from mta.transfer.trust import TrustedClock

DAY = 86_400.0
QUEUE = "queue: {lifetime: 1d, backoff: [10m], jitter: 0.0, destination-retry: 10s}\n"


class Trust(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock(wall=1_000_000.0)
        self.returns = 0
        self.doubts: list[str] = []
        self.trusted = TrustedClock(self.clock, self.trust, self.doubts.append)

    def trust(self) -> None:
        self.returns += 1

    def test_believed(self) -> None:
        """Without suspicion it is the clock itself."""
        verifyObject(IClock, self.trusted)
        for seconds in (1.0, 3 * DAY):
            self.clock.advance(seconds)
            self.assertEqual(self.trusted.wall(), self.clock.wall())
        self.assertFalse(self.trusted.accept())
        self.assertEqual(self.doubts, [])

    def test_jumps(self) -> None:
        """A clock that jumps while we run is doubted by name, at the bounds and not before."""
        for off, is_believed in (
            (-CLOCK_BEHIND_SECONDS, True),
            (-CLOCK_BEHIND_SECONDS - 1, False),
            (CLOCK_AHEAD_SECONDS, True),
            (CLOCK_AHEAD_SECONDS + 1, False),
        ):
            self.doubts.clear()
            trusted = TrustedClock(self.clock, self.trust, self.doubts.append)
            before = self.clock.wall()
            self.clock.jump_wall(off)
            self.clock.advance(10)
            expected = self.clock.wall() if is_believed else before + 10
            self.assertEqual((trusted.wall(), not self.doubts), (expected, is_believed), off)

    def test_jumps_and_returns(self) -> None:
        """Set back and then right again, it is believed by itself, and told once each."""
        self.trusted.wall()
        self.clock.jump_wall(-3600)
        self.assertEqual(self.trusted.wall(), self.clock.wall() + 3600)
        self.clock.advance(60)
        self.assertEqual(self.trusted.wall(), self.clock.wall() + 3600)
        self.clock.jump_wall(3600)
        self.assertEqual(self.trusted.wall(), self.clock.wall())
        self.assertEqual((len(self.doubts), self.returns), (1, 1))
        self.assertIn("3600 s back", self.doubts[0])

    def test_elapsed_time(self) -> None:
        """A suspect clock is replaced by elapsed time since the log's last batch."""
        self.trusted.suspect("a year ahead", 500_000.0)
        self.clock.advance(60)
        self.assertEqual(self.trusted.wall(), 500_060.0)

    def test_accepted(self) -> None:
        """The operator's word ends it, once."""
        self.trusted.suspect("a year ahead", 500_000.0)
        self.assertTrue(self.trusted.accept())
        self.assertEqual((self.trusted.wall(), self.returns), (1_000_000.0, 1))
        self.assertFalse(self.trusted.accept())

    def test_agrees(self) -> None:
        """A clock that was set right is believed by itself, at the bounds and not before."""
        for off, is_believed in (
            (-CLOCK_BEHIND_SECONDS, True),
            (-CLOCK_BEHIND_SECONDS - 1, False),
            (CLOCK_AHEAD_SECONDS, True),
            (CLOCK_AHEAD_SECONDS + 1, False),
        ):
            self.trusted.suspect("it jumped", self.clock.wall() - off)
            self.trusted.wall()
            self.assertEqual(self.trusted.suspicion == "", is_believed, off)


class TakeoverWithAWrongClock(SynchronousTestCase):
    def lab(self, jump: float) -> Lab:
        """A message deferred by node a, whose successor's clock is `jump` seconds off."""
        lab = Lab("ab", spool="log", more=QUEUE)
        lab.hub.answer(".", b"451 4.3.0 Later")
        lab.send()
        lab.clock.jump_wall(jump)
        lab.fail("a", "b")
        return lab

    def test_ahead(self) -> None:
        """A clock a year ahead expires nothing; the message is tried at its time and delivered."""
        lab = self.lab(365 * DAY)
        self.assertIn("ahead", lab.owner.tenant.clock_suspicion)
        lab.advance(2 * DAY)
        self.assertEqual(len(lab.queue()), 1)
        lab.hub.mend()
        lab.advance(600)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_behind(self) -> None:
        """A clock a year behind keeps no mail waiting for a year."""
        lab = self.lab(-365 * DAY)
        self.assertIn("behind", lab.owner.tenant.clock_suspicion)
        lab.hub.mend()
        lab.advance(600)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_jumps_while_we_run(self) -> None:
        """A clock that jumps a year ahead under a running owner expires nothing either."""
        lab = Lab(spool="log", more=QUEUE)
        lab.hub.answer(".", b"451 4.3.0 Later")
        lab.send()
        lab.clock.jump_wall(365 * DAY)
        lab.advance(1200)
        self.assertIn("jumped", lab.owner.tenant.clock_suspicion)
        self.assertEqual([e.envelope.sender.is_null for e in lab.queue()], [False])
        lab.hub.mend()
        lab.advance(1200)
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_accepted(self) -> None:
        """Once an operator accepts the clock, what is too old goes back to its sender."""
        lab = self.lab(365 * DAY)
        lab.advance(1200)
        self.assertEqual(len(lab.queue()), 1)
        lab.hub.mend()
        lab.hub.answer(".", b"451 4.3.0 Later")
        self.assertTrue(lab.owner.tenant.accept_clock())
        lab.advance(1200)
        self.assertEqual([e.envelope.sender.is_null for e in lab.queue()], [True])
        self.assertEqual(lab.owner.tenant.clock_suspicion, "")
