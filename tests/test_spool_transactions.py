"""Remembered transactions by themselves: kept as long as their client may ask, and bounded."""

from __future__ import annotations

from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Remembered
from mta.spool import transactions
from mta.spool.transactions import Transactions


def known(serial: int, client: str = "hub.example", expires: float = 100.0) -> Remembered:
    return Remembered(client, f"<{serial}@x>", f"{serial:014X}", 10, expires)


def names(kept: Transactions) -> list[str]:
    return [remembered.transaction for remembered, _ in kept]


class TransactionsTests(SynchronousTestCase):
    def test_the_oldest_of_a_client_make_room(self) -> None:
        """A client that names ever more associations loses its own oldest, nobody else's."""
        with patch.object(transactions, "MOST_OF_CLIENT", 3):
            kept = Transactions()
            kept.add(known(1, "other.example"), "a")
            for serial in range(2, 9):
                kept.add(known(serial), f"b{serial}")
            self.assertEqual(names(kept), ["<1@x>", "<6@x>", "<7@x>", "<8@x>"])
            self.assertEqual(len(kept), 4)

    def test_made_up_clients(self) -> None:
        """However many names a host gives itself, all of them together stay under the bound."""
        with patch.object(transactions, "MOST", 5):
            kept = Transactions()
            for serial in range(20):
                kept.add(known(serial, f"{serial}.example"), "")
                self.assertLessEqual(len(kept), 5)
            self.assertIsNotNone(kept.find("19.example", "<19@x>"))

    def test_the_greediest_client_pays(self) -> None:
        """When all together are too many, the one with the most gives way."""
        with patch.object(transactions, "MOST", 4):
            kept = Transactions()
            for serial in range(4):
                kept.add(known(serial, "greedy.example"), "")
            kept.add(known(9, "modest.example"), "")
            self.assertEqual(names(kept), ["<1@x>", "<2@x>", "<3@x>", "<9@x>"])

    def test_one_that_comes_twice(self) -> None:
        """A name that comes again (a replayed record) is one, with its newest facts."""
        kept = Transactions()
        kept.add(known(1), "a")
        kept.add(known(1, expires=200.0), "b")
        self.assertEqual([(r.expires, slot) for r, slot in kept], [(200.0, "b")])
        kept.add(known(2), "a")
        self.assertEqual(names(kept), ["<1@x>", "<2@x>"])
        self.assertEqual(len(kept), 2)

    def test_expiry(self) -> None:
        """What has expired goes, and its client with its last one."""
        kept = Transactions()
        kept.add(known(1, expires=50.0), "a")
        kept.add(known(2, expires=51.0), "b")
        kept.forget_expired(50.0)
        self.assertEqual(names(kept), ["<2@x>"])
        kept.forget_expired(51.0)
        self.assertEqual((names(kept), len(kept)), ([], 0))

    def test_conclude(self) -> None:
        """What an ended epoch leaves is tied to no association any more."""
        kept = Transactions()
        kept.add(known(1), "a")
        kept.conclude()
        self.assertEqual([slot for _, slot in kept], [""])
        kept.add(known(2), "a")
        kept.forget_last("a")
        self.assertEqual(names(kept), ["<1@x>"])
