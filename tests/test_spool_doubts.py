"""The in-doubt list by itself: never too short, and bounded."""

from __future__ import annotations

import json
import struct
from typing import Any
from zlib import crc32

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Doubt, FourTuple, Intent
from mta.spool import checkpoint
from mta.spool.doubts import EPOCHS, MOST_FORMER, DoubtList, OpenAssociation
from mta.spool.ledger import Ledger

ENDS = FourTuple("192.0.2.10", 25, "192.0.2.99", 40000)


def opened(last: str, **keys: Any) -> OpenAssociation:
    return OpenAssociation(ENDS, keys.pop("inbound", True), last, 1, **keys)


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
            doubts.unread("smtp/in/1", opened(f"L{number}"), newest)
            doubts.unread("smtp/in/1", opened(f"F{number}"), newest - 1 - number % 2)
        doubts.unread("smtp/in/1", opened("OLD"), newest - EPOCHS)
        doubts.trim(newest)
        left = list(doubts)
        self.assertEqual(sum(d.epoch == newest for d in left), 2 * MOST_FORMER)
        self.assertEqual(sum(d.epoch == newest - 1 for d in left), MOST_FORMER)
        self.assertEqual(sum(d.epoch == newest - 2 for d in left), 0)
        self.assertNotIn("OLD", [d.queue_id for d in left])
        self.assertEqual([d.queue_id for d in left if d.side == "outbound"], ["Q"])

    def test_whom_it_names(self) -> None:
        """Whoever sent it is asked: the socket's far end, or who stood behind it by the envelope;
        then the far end is named besides.
        """
        for client, whom, via in (
            (b"192.0.2.99", "192.0.2.99:40000", ""),
            (b"", "192.0.2.99:40000", ""),
            (b"198.51.100.77", "198.51.100.77", "192.0.2.99:40000"),
            (b"a.example[198.51.100.77]", "a.example[198.51.100.77]", "192.0.2.99:40000"),
        ):
            doubts = DoubtList()
            doubts.unread("smtp/in/1", opened("Q", client=client), 5)
            (doubt,) = doubts
            self.assertEqual((doubt.whom, doubt.via, doubt.peer), (whom, via, ENDS.peer))

    def test_nothing_unread(self) -> None:
        """What we sent, and what was read, is no doubt of a client."""
        doubts = DoubtList()
        doubts.unread("smtp/out/1", opened("Q", inbound=False), 5)
        doubts.unread("smtp/in/1", opened(""), 5)
        self.assertEqual(len(doubts), 0)


class CheckpointTests(SynchronousTestCase):
    def test_two_builds(self) -> None:
        """Whom a message came from lies beside the rows that an older build knows: it reads ours,
        and we read its.
        """
        ledger = Ledger()
        left = ledger.associations["smtp/in/1"] = opened("Q", client=b"a.example[198.51.100.7]")
        ledger.doubts.unread("smtp/in/2", left, 4)
        pieces = checkpoint.encode(ledger, 5, 1, 0.0, [])
        facts = json.loads(pieces[1])
        # Both are taken apart by their places there, and one place more is a damaged checkpoint.
        self.assertEqual([len(row) for row in facts["doubts"] + facts["associations"]], [8, 8])
        made = checkpoint.decode(whole(pieces)).ledger
        self.assertEqual(made.associations, ledger.associations)
        self.assertEqual(list(made.doubts), list(ledger.doubts))
        del facts["doubt_clients"], facts["association_clients"]
        pieces[1] = json.dumps(facts).encode()
        pieces[0] = struct.pack("<Q", len(pieces[1]))
        made = checkpoint.decode(whole(pieces)).ledger
        self.assertEqual([doubt.whom for doubt in made.doubts], [ENDS.peer])
        self.assertEqual(made.associations["smtp/in/1"].client, b"")


def whole(pieces: list[bytes]) -> bytes:
    """As it lies on disk: spool.md section 5."""
    body = b"".join(pieces)
    return struct.pack("<8sIIQI", b"MTA\x00CKP\x00", 2, 0, len(body), crc32(body)) + body
