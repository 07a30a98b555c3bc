"""The scheduler: concurrency, turns, priorities, and a dead destination left alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import PRIORITIES
from mta.transfer.schedule import (
    LAST_GRADE,
    REACH_TABLE,
    Reach,
    ReachInput,
    Schedule,
    grade_of,
)


def schedule(limit=100, first=30.0, longest=3600.0):
    return Schedule(limit, first, longest)


class OrderTests(SynchronousTestCase):
    def test_priority_then_age(self):
        """All 19 priorities are told apart, the highest first, and resends go last; within each
        the oldest first.
        """
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        grades = [*map(grade_of, PRIORITIES), LAST_GRADE, *map(grade_of, (4, 0, 9))]
        self.assertEqual(len(set(grades)), 20)
        for number, grade in enumerate(grades):
            plan.push(lane, (grade, number), grade)
        order = [plan.pop(lane) for _ in grades]
        self.assertEqual(order, sorted(order))
        self.assertIsNone(plan.pop(lane))

    def test_strict(self):
        """Better mail that comes later goes first, however long the other has waited."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        plan.push(lane, "low", grade_of(-4))
        for number in range(100):
            plan.push(lane, number, grade_of(1))
            self.assertEqual(plan.pop(lane), number)
        self.assertEqual(plan.pop(lane), "low")

    def test_making_room(self):
        """What gives way is the newest of the worst, and only to what is better."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        for job, grade in (("a", 9), ("b", 13), ("c", 13), ("d", 9)):
            plan.push(lane, job, grade)
        self.assertIsNone(plan.pop_lesser(lane, 13))
        self.assertEqual([plan.pop_lesser(lane, 8) for _ in range(5)], ["c", "b", "d", "a", None])
        self.assertEqual((lane.queued, plan.queued), (0, 0))

    def test_not_attempted_goes_first(self):
        """A job that was taken and not attempted is the next of its grade."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        plan.push(lane, "a", 1)
        plan.push(lane, "b", 1)
        plan.push_back(lane, plan.pop(lane), 1)
        self.assertEqual(plan.pop(lane), "a")

    def test_turns(self):
        """A long queue does not shut out a short one: lanes take turns."""
        plan = schedule(limit=4)
        long, short = plan.lane("long", "x", 10), plan.lane("short", "x", 10)
        for number in range(50):
            plan.push(long, number, 1)
        plan.push(short, "only", 1)
        turns = [plan.next_lane() for _ in range(4)]
        self.assertIn(short, turns[:2])
        self.assertIsNone(plan.next_lane())
        self.assertTrue(plan.is_crowded)

    def test_no_more_associations_than_jobs(self):
        """One waiting job opens one association, however many are allowed."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 20)
        plan.push(lane, "a", 1)
        self.assertIs(plan.next_lane(), lane)
        self.assertIsNone(plan.next_lane())
        plan.push(lane, "b", 1)
        self.assertIs(plan.next_lane(), lane)


class ReachTests(SynchronousTestCase):
    def test_every_state_and_input(self):
        """Every state answers every input, or refuses it by name."""
        for state in Reach:
            for what in ReachInput:
                if (state, what) in REACH_TABLE:
                    self.assertIsInstance(REACH_TABLE[state, what], Reach)
                else:
                    self.assertEqual(what, ReachInput.PAUSE_OVER)
                    self.assertIsNot(state, Reach.RESTING)

    def test_pauses_double(self):
        """A dead destination is probed after 30 s, 60 s, 120 s ..., at most once an hour."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        now, pauses = 0.0, []
        for _ in range(10):
            pauses.append(plan.failed(lane, now, "refused") - now)
            self.assertTrue(plan.is_resting(lane, lane.retry_at - 0.1))
            now = lane.retry_at
            self.assertFalse(plan.is_resting(lane, now))
        self.assertEqual(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600])

    def test_failures_at_the_same_time_count_once(self):
        """Twenty associations that fail together do not make the pause an hour."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 20)
        for _ in range(20):
            plan.failed(lane, 5.0, "refused")
        self.assertEqual(lane.retry_at, 35.0)

    def test_one_probe(self):
        """After the pause one association probes; with success all may go."""
        plan = schedule()
        lane = plan.lane("hub", "hub", 5)
        plan.failed(lane, 0.0, "refused")
        self.assertFalse(plan.is_resting(lane, 30.0))
        for number in range(5):
            plan.push(lane, number, 1)
        self.assertIs(plan.next_lane(), lane)
        self.assertIsNone(plan.next_lane())
        plan.pop(lane)
        plan.began(lane)
        self.assertIsNone(plan.next_lane())
        plan.reached(lane)
        self.assertEqual([plan.next_lane() for _ in range(4)], [lane] * 4)
        self.assertIsNone(plan.next_lane())

    def test_forgotten(self):
        """Lanes without work are forgotten, those that rest only after a long time."""
        plan = schedule()
        lane, dead = plan.lane("a", "x", 1), plan.lane("b", "x", 1)
        plan.failed(dead, 0.0, "refused")
        plan.forget_idle(lane)
        plan.forget_idle(dead)
        self.assertEqual(list(plan.lanes), ["b"])
        self.assertEqual(plan.resting(10.0), [dead])
        self.assertEqual(plan.resting(60.0), [])
        self.assertEqual(list(plan.lanes), ["b"])
        plan.resting(30.0 + 3600.0)
        self.assertEqual(list(plan.lanes), [])
        self.assertIsNone(plan.next_probe(9e9))


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["push", "open", "take", "end", "fail", "reach", "pass"]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=120,
)


class PropertyTests(SynchronousTestCase):
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(ACTIONS)
    def test_bounds_always_hold(self, actions):
        """Whatever happens: no lane over its concurrency, all under the limit, no job lost or
        doubled, the best grade first, and a resting lane opens nothing."""
        plan = schedule(limit=5)
        lanes = [plan.lane(f"d{i}", "c", i + 1) for i in range(4)]
        now, serial = 0.0, 0
        inside, opening, working = [], {x.key: 0 for x in lanes}, {x.key: 0 for x in lanes}
        for action, which, grade in actions:
            lane = lanes[which]
            if action == "push" and not plan.is_resting(lane, now):
                serial += 1
                plan.push(lane, (grade, serial), grade)
                inside.append((lane.key, grade, serial))
            elif action == "open":
                found = plan.next_lane()
                if found is not None:
                    self.assertIsNot(found.reach, Reach.RESTING)
                    opening[found.key] += 1
            elif action == "take" and opening[lane.key]:
                opening[lane.key] -= 1
                working[lane.key] += 1
                job = plan.pop(lane)
                plan.began(lane)
                mine = [(g, s) for key, g, s in inside if key == lane.key]
                self.assertEqual(job, min(mine, default=None))
                if job is not None:
                    inside.remove((lane.key, *job))
            elif action == "end" and working[lane.key]:
                working[lane.key] -= 1
                plan.ended(lane)
            elif action == "fail" and working[lane.key]:
                plan.failed(lane, now, "x")
                for job in plan.empty(lane):
                    inside.remove((lane.key, *job))
            elif action == "reach" and working[lane.key]:
                plan.reached(lane)
            elif action == "pass":
                now += 40.0
                plan.resting(now)
            for each in lanes:
                self.assertLessEqual(each.associations, each.concurrency)
                self.assertEqual(each.associations, opening[each.key] + working[each.key])
                self.assertEqual(each.queued, sum(1 for key, _, _ in inside if key == each.key))
            self.assertLessEqual(plan.associations, 5)
            self.assertEqual(plan.queued, len(inside))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 6))
    def test_nobody_starves(self, sizes, limit):
        """However long the other queues are, everything is served, and no lane waits longer than
        the others take one turn each."""
        plan = schedule(limit=limit)
        lanes = [plan.lane(f"d{i}", "c", 3) for i in range(len(sizes))]
        for lane, size in zip(lanes, sizes, strict=True):
            for number in range(size):
                plan.push(lane, number, 1)
        opened, served = [], []
        while plan.queued:
            while (lane := plan.next_lane()) is not None:
                opened.append(lane)
            lane = opened.pop(0)
            plan.pop(lane)
            plan.began(lane)
            plan.ended(lane)
            served.append(lane.key)
        self.assertEqual(len(served), sum(sizes))
        self.assertEqual(set(served[: len(sizes) * limit]), {x.key for x in lanes})
