"""The lease: states and inputs, and that no order of answers ever stretches it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.lease import OVER_AT, TABLE, Action, Input, Lease, State
from mta.errors import LocalProtocolError


def held(sent: float = 100.0, ttl: float = 10.0) -> Lease:
    lease = Lease()
    lease.ask()
    lease.granted(sent, ttl, sent + 0.1)
    return lease


class TableTests(SynchronousTestCase):
    def test_walk(self) -> None:
        """Every state takes each input that its table has, and refuses the others by name."""
        for state in State:
            for heard in Input:
                lease = Lease()
                lease.state = state
                if (state, heard) in TABLE:
                    lease._receive(heard)
                    self.assertIs(lease.state, TABLE[state, heard][0])
                else:
                    with self.assertRaises(LocalProtocolError) as caught:
                        lease._receive(heard)
                    self.assertIn(
                        f"{heard.name} is unknown in state {state.name}", str(caught.exception)
                    )
                    self.assertIs(lease.state, state)

    def test_over_is_over(self) -> None:
        """Nothing but giving it back leads out of OVER, and nothing but time or the authority in."""
        ways = {
            heard
            for (state, heard), (after, _) in TABLE.items()
            if state is State.OVER and after is not State.OVER
        }
        self.assertEqual(ways, {Input.RELEASE})
        into = {
            heard
            for (state, heard), (after, _) in TABLE.items()
            if after is State.OVER and state is not State.OVER
        }
        self.assertEqual(into, {Input.DENIED, Input.ENDS})
        for (state, heard), (after, action) in TABLE.items():
            self.assertEqual(
                action is Action.END, after is State.OVER and state is not State.OVER, heard
            )


class TimeTests(SynchronousTestCase):
    def test_ratios(self) -> None:
        """A lease of 10 s is renewed at 3 s, accepts nothing from 7 s, and is over at 8 s."""
        lease = held()
        self.assertEqual(lease.renewal_due(), 103.0)
        self.assertTrue(lease.may_accept(106.999))
        self.assertIsNone(lease.pass_time(106.999))
        self.assertEqual(lease.next_moment(), 107.0)
        self.assertFalse(lease.may_accept(107.0))
        self.assertIs(lease.pass_time(107.0), Action.CLOSE)
        self.assertIs(lease.state, State.NARROW)
        self.assertEqual(lease.next_moment(), 108.0)
        self.assertAlmostEqual(lease.seconds_left(107.5), 0.5)
        self.assertIsNone(lease.pass_time(107.999))
        self.assertIs(lease.pass_time(108.0), Action.END)
        self.assertEqual(lease.seconds_left(108.0), 0.0)
        self.assertIsNone(lease.next_moment())

    def test_counts_from_sending(self) -> None:
        """An answer that took 2 s leaves 2 s less of the lease."""
        lease = held()
        self.assertIs(lease.renewed(103.0, 10.0, 105.0), Action.COUNT)
        self.assertEqual(lease.is_over_at, 111.0)
        self.assertEqual(lease.kill_at(), 112.0)

    def test_grant_answered_too_late(self) -> None:
        """A grant whose answer came after its time is over before it was held."""
        lease = Lease()
        lease.ask()
        self.assertIs(lease.granted(100.0, 10.0, 108.5), Action.END)
        self.assertEqual((lease.seconds_left(108.5), lease.kill_at()), (0.0, 0.0))

    def test_renewal_answered_too_late(self) -> None:
        """A renewal that was sent in time, but is answered after the end, brings nothing back."""
        lease = held()
        self.assertIs(lease.renewed(107.9, 10.0, 108.0), Action.END)
        self.assertIs(lease.state, State.OVER)
        self.assertIs(lease.renewed(107.9, 10.0, 108.1), Action.NOTHING)
        self.assertFalse(lease.may_accept(108.1))

    def test_answers_out_of_order(self) -> None:
        """The answer to an older renewal does not set the time back, nor forward."""
        lease = held()
        lease.renewed(104.0, 10.0, 104.1)
        lease.renewed(103.0, 10.0, 104.2)
        self.assertEqual(lease.is_over_at, 112.0)

    def test_ttl_only_shrinks(self) -> None:
        """An authority that suddenly answers another TTL can make the lease shorter, never longer."""
        lease = held()
        lease.renewed(103.0, 1000.0, 103.1)
        self.assertEqual(lease.is_over_at, 111.0)
        lease.renewed(104.0, 2.0, 104.1)
        self.assertEqual(lease.is_over_at, 105.6)

    def test_denied(self) -> None:
        """What the authority takes back is over at once."""
        lease = held()
        self.assertIs(lease.denied(), Action.END)
        self.assertEqual(lease.seconds_left(100.2), 0.0)
        lease.release()
        self.assertIs(lease.state, State.NONE)
        lease.ask()

    @settings(max_examples=300, deadline=None)
    @given(
        st.floats(2.0, 60.0),
        st.lists(
            st.tuples(
                st.floats(0.0, 30.0),  # how much later it was sent than the one before
                st.floats(0.0, 60.0),  # how long its answer took
                st.floats(1.0, 120.0),  # the TTL that it named
                st.sampled_from(["answered", "answered", "answered", "lost", "denied"]),
            ),
            max_size=12,
        ),
    )
    def test_never_stretched(
        self, ttl: float, renewals: list[tuple[float, float, float, str]]
    ) -> None:
        """Whatever the order of answers, there is never more left than 0.8 of the TTL after the
        sending of an answered request; and after an end there is never anything left.
        """
        lease = Lease()
        lease.ask()
        lease.granted(0.0, ttl, 0.0)
        sent = 0.0
        happening: list[tuple[float, float, float, str]] = []
        for later, took, named, outcome in renewals:
            sent += later
            if outcome != "lost":
                happening.append((sent + took, sent, named, outcome))
        answered = [0.0]
        ended = False
        for now, sent_at, named, outcome in sorted(happening):
            if outcome == "denied":
                lease.pass_time(now)
                lease.denied()
            else:
                lease.renewed(sent_at, named, now)
                answered.append(sent_at)
            ended = ended or lease.state is State.OVER
            left = lease.seconds_left(now)
            self.assertLessEqual(now + left, max(now, max(answered) + OVER_AT * ttl) + 1e-9)
            if ended:
                self.assertIs(lease.state, State.OVER)
                self.assertLessEqual(left, 0.0)
                self.assertFalse(lease.may_accept(now))
            else:
                self.assertGreater(left, 0.0)
