"""The count at the end of CI: nothing that failed or did not run is ever counted as passed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.tally import count_lines, count_trial

TRIAL = """\
-------------------------------------------------------------------------------
Ran 12 tests in 0.100s

{}
"""


class TrialCountTests(SynchronousTestCase):
    def test_every_test_counts_once(self) -> None:
        """Twelve successes are twelve passed and none failed."""
        tally = count_trial(TRIAL.format("PASSED (successes=12)"), 0)
        self.assertEqual(tally, (12, ()))

    def test_a_skip_is_a_failure(self) -> None:
        """A test that was skipped did not pass."""
        tally = count_trial(TRIAL.format("PASSED (skips=2, successes=10)"), 0)
        self.assertEqual(tally, (10, ("test: skips=2",) * 2))

    def test_failures_and_errors_add_up(self) -> None:
        """Failures and errors are counted one by one."""
        tally = count_trial(TRIAL.format("FAILED (failures=1, errors=3, successes=8)"), 1)
        self.assertEqual(tally.passed, 8)
        self.assertEqual(len(tally.failures), 4)

    def test_errors_beyond_the_tests_are_not_lost(self) -> None:
        """An error while tidying up, after all twelve passed, still fails the run."""
        tally = count_trial(TRIAL.format("FAILED (errors=1, successes=12)"), 1)
        self.assertEqual((tally.passed, len(tally.failures)), (12, 1))

    def test_no_summary_is_a_failure(self) -> None:
        """A suite that died before its summary passed nothing."""
        tally = count_trial("make: *** [test] Killed", 137)
        self.assertEqual((tally.passed, len(tally.failures)), (0, 1))

    def test_a_time_limit_is_a_failure(self) -> None:
        """A suite that hung after its summary is named."""
        output = TRIAL.format("PASSED (successes=12)") + "FAIL test: stopped after its limit\n"
        self.assertEqual(len(count_trial(output, 124).failures), 1)

    def test_a_bad_status_is_a_failure(self) -> None:
        """Success in words and failure in the exit status is a failure."""
        tally = count_trial(TRIAL.format("PASSED (successes=12)"), 1)
        self.assertEqual((tally.passed, len(tally.failures)), (12, 1))


class LineCountTests(SynchronousTestCase):
    def test_lines_are_counted(self) -> None:
        """One PASS line is one passed, one FAIL line one failed with its reason."""
        tally = count_lines("rig", "PASS a (1 s)\nnoise PASS b\nFAIL c: it broke\n", 1)
        self.assertEqual(tally, (1, ("rig: c: it broke",)))

    def test_a_part_that_ran_nothing_failed(self) -> None:
        """A part which printed no line is one failure."""
        self.assertEqual(len(count_lines("rig", "rig: needs root", 77).failures), 1)

    def test_a_bad_status_without_a_reason_failed(self) -> None:
        """A part which passed everything and ended badly is one failure."""
        self.assertEqual(len(count_lines("check", "PASS ruff", 2).failures), 1)
