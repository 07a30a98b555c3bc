"""The in-doubt list by itself: never too short, and bounded."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Doubt, FourTuple, Intent
from mta.spool.doubts import EPOCHS, MOST_FORMER, DoubtList

ENDS = FourTuple("192.0.2.10", 25, "192.0.2.99", 40000)


class DoubtListTests(SynchronousTestCase):
    def test_one_transaction_is_one_doubt(self) -> None:
        """A transaction that was tried twice is listed once: the receiver tells the tries apart.
        Without a transaction both may have arrived.
        """
        doubts = DoubtList()
        for slot, transaction in (("1", "<t@x>"), ("2", "<t@x>"), ("3", ""), ("4", "")):
            doubts.unanswered("Q", slot, Intent("Q", slot, (0,), "hub:25", transaction), 5)
        self.assertEqual([d.slot for d in doubts], ["2", "3", "4"])
        self.assertEqual(len(doubts), 3)

    def test_changed_recipients_are_another_transaction(self) -> None:
        """What is left of an INTENT whose recipients are partly settled is no resend of it."""
        doubts = DoubtList()
        doubts.unanswered("Q", "1", Intent("Q", "1", (0, 2), "hub:25", "<t@x>"), 5)
        doubts.pending("Q", (0, 1, 2))
        self.assertEqual([d.transaction for d in doubts], ["<t@x>"])
        doubts.pending("Q", (1, 2))
        self.assertEqual([(d.recipients, d.transaction) for d in doubts], [((2,), "")])
        doubts.pending("Q", (1,))
        self.assertEqual(list(doubts), [])
        self.assertNotIn("Q", doubts)

    def test_unknown_recipients(self) -> None:
        """When it is not known to whom it went, only the end of the message settles it."""
        doubts = DoubtList()
        doubts.unanswered("Q", "1", None, 5)
        doubts.pending("Q", ())
        self.assertEqual(list(doubts), [Doubt("outbound", "Q", "1", "", (), 5)])
        doubts.gone("Q")
        self.assertEqual(len(doubts), 0)

    def test_inbound_is_bounded(self) -> None:
        """Everything of the last takeover stays, a thousand of former ones, none of epochs whose
        files are gone; the outbound side is not touched.
        """
        doubts = DoubtList()
        doubts.unanswered("Q", "1", Intent("Q", "1", (0,), "hub:25"), 1)
        newest = 40
        for number in range(2 * MOST_FORMER):
            doubts.unread(f"L{number}", "smtp/in/1", ENDS, newest, 1)
            doubts.unread(f"F{number}", "smtp/in/1", ENDS, newest - 1 - number % 2, 1)
        doubts.unread("OLD", "smtp/in/1", ENDS, newest - EPOCHS, 1)
        doubts.trim(newest)
        left = list(doubts)
        self.assertEqual(sum(d.epoch == newest for d in left), 2 * MOST_FORMER)
        self.assertEqual(sum(d.epoch == newest - 1 for d in left), MOST_FORMER)
        self.assertEqual(sum(d.epoch == newest - 2 for d in left), 0)
        self.assertNotIn("OLD", [d.queue_id for d in left])
        self.assertEqual([d.queue_id for d in left if d.side == "outbound"], ["Q"])
