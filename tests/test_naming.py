"""Names of transactions: unique, legal, made once, and used again only for the very same INTENT."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.transfer.naming import NAME_OCTETS, new_name
from mta.transfer.repeats import Repeats
from mta.wire.smtp.grammar import check_transid

quick = settings(max_examples=200, deadline=None, derandomize=True)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=5).map(".".join)
KEY = ("client.example.net", "<1@x>")


class NameTests(SynchronousTestCase):
    @quick
    @given(st.integers(1, 2**31), st.integers(1, 2**40), names, st.booleans())
    def test_legal_whatever_the_name(
        self, epoch: int, serial: int, network_name: str, is_report: bool
    ) -> None:
        """However long the network name is, a name is one that RFC 1845 allows."""
        queue_id = "0000050000001A" + ("89ABCDEF" if is_report else "")
        made = new_name(queue_id, epoch, serial, network_name).encode()
        self.assertLessEqual(len(made), NAME_OCTETS)
        self.assertEqual(check_transid(made), made)

    def test_readable(self) -> None:
        """Queue id, epoch and serial stand in it, and of a long name the end that is a domain."""
        self.assertEqual(new_name("A1", 5, 17, "mx.example"), "<A1.5.17@mx.example>")
        long = "a" * 63 + ".corp.example"
        self.assertEqual(new_name("A1", 5, 17, long), "<A1.5.17@corp.example>")
        self.assertEqual(new_name("A1", 5, 17, "a" * 63 + "." + "b" * 63), f"<A1.5.17@{'b' * 63}>")
        self.assertEqual(new_name("A" * 22, 5, 17, "b" * 63), f"<{'A' * 22}.5.17@x>")


class RepeatsTests(SynchronousTestCase):
    def test_the_newer_one_goes_on(self) -> None:
        """A transaction that is brought again while the first is being received: the first may not
        commit any more, and its end takes nothing from the second.
        """
        repeats = Repeats()
        self.assertIsNone(repeats.claim(KEY, "old"))
        self.assertIsNone(repeats.claim(KEY, "new"))
        self.assertFalse(repeats.may_commit(KEY, "old"))
        repeats.give_up(KEY, "old")
        self.assertTrue(repeats.may_commit(KEY, "new"))

    def test_a_commit_is_waited_for(self) -> None:
        """While the first commits the second waits; then it may claim in its turn."""
        repeats = Repeats()
        repeats.claim(KEY, "old")
        self.assertTrue(repeats.may_commit(KEY, "old"))
        repeats.give_up(KEY, "old")
        waiting = repeats.claim(KEY, "new")
        assert waiting is not None
        self.assertNoResult(waiting)
        self.assertIsNone(repeats.claim((KEY[0], "<2@x>"), "another"))
        repeats.settled(None, KEY)
        self.assertIsNone(self.successResultOf(waiting))
        self.assertIsNone(repeats.claim(KEY, "new"))

    def test_who_waits_may_leave(self) -> None:
        """A client that goes while it waits is forgotten, also when others are told just then."""
        repeats = Repeats()
        repeats.claim(KEY, "old")
        repeats.may_commit(KEY, "old")
        first, second, third = (repeats.claim(KEY, name) for name in "xyz")
        assert first is not None and second is not None and third is not None
        second.addErrback(lambda _: None)
        third.cancel()
        self.failureResultOf(third)
        first.addCallback(lambda _: second.cancel())
        repeats.settled(None, KEY)
        self.successResultOf(first)
        repeats.settled(None, KEY)

    def test_given_up(self) -> None:
        """What came to nothing leaves nothing behind."""
        repeats = Repeats()
        repeats.claim(KEY, "one")
        repeats.give_up(KEY, "one")
        self.assertFalse(repeats.may_commit(KEY, "one"))
