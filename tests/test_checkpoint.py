"""Two bridgeheads of our own kind, one behind the other: whatever crashes, each message arrives
once. Everything between them is the product's own code (RFC 1845, spool.md section 6).
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.association.smtp_out import SmtpSender
from mta.model import Doubt
from mta.telemetry import Accepted, Doubted
from mta.testing.lab import FRIEND, HUB, VIRTUAL_ADDRESS, Lab

BEHIND = "203.0.113.30"
"""Where what the second bridgehead sends on ends."""


class Pair:
    """`front` relays to `back`, which relays to a sink. Names are offered and used unless told."""

    def __init__(self, *, offered: bool = True, named: bool = True, backs: str = "xy") -> None:
        self.front = Lab(
            "ab",
            spool="log",
            hub="203.0.113.40",
            more=f"""
connectors:
  - name: hub
    kind: smtp
    checkpoint: {str(named).lower()}
    bridgeheads: ["{HUB}:25"]
    address-spaces: [{{domain: example.com, accept: anyone}}]
""",
        )
        self.back = Lab(
            backs,
            spool="log",
            beside=self.front,
            hub=BEHIND,
            more=f"""
virtual-server: {{network-name: back.example.com, addresses: [{HUB}]}}
listeners:
  - kind: smtp
    port: 25
    relay-from: [192.0.2.0/24]
    checkpoint-from: [{VIRTUAL_ADDRESS if offered else "198.51.100.1"}/32]
connectors:
  - name: mailboxes
    kind: smtp
    bridgeheads: ["{BEHIND}:25"]
    address-spaces: [{{domain: example.com}}]
""",
        )

    @property
    def copies(self) -> list[tuple[bytes, ...]]:
        return [message.recipients for message in self.back.hub.messages]

    def doubts(self) -> list[Doubt]:
        return [d for d in self.front.owner.spool.in_doubt() if d.side == "outbound"]

    def named_in_log(self) -> list[str]:
        found: list[Any] = self.front.owner.kinds(Doubted)
        return [event.queue_id for event in found if event.side == "outbound"]

    @property
    def repeated(self) -> float:
        """What came again to the present receiver and was not taken twice."""
        telemetry = self.back.owner.surroundings.telemetry
        return telemetry.counter("mta_transactions_repeated_total").value

    def freeze_when_taken(self) -> None:
        """The front stands still as soon as the back has taken something."""
        front = self.front.owner

        def heard(event: Any) -> None:
            if type(event) is Accepted:
                front.is_frozen = True

        self.back.owner.surroundings.telemetry.attach(heard)

    def keep_the_reply(self) -> None:
        """The receiver's disk works on, its reactor hears nothing of it."""
        self.back.owner.executor.deliver = lambda: False  # type: ignore[method-assign]

    def lose_the_reply(self) -> None:
        """The front dies when the back has taken the message and before it can note so."""
        self.freeze_when_taken()
        self.front.send()
        assert self.front.owner.is_frozen
        self.front.fail("a", to="b")
        self.front.advance(10)


class TwoBridgeheadsTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """Many messages go over one association, each with its name, each once; the receiver keeps
        one name for an open association and none for one that ended politely.
        """
        pair = Pair()
        for _ in range(5):
            pair.front.send(["one@example.com", "two@example.com"])
        self.assertEqual(len(pair.copies), 5)
        self.assertEqual(pair.doubts(), [])
        back: Any = pair.back.owner.spool
        self.assertEqual(len(back._log.ledger.transactions), 1)
        pair.front.advance(60)
        self.assertEqual(len(back._log.ledger.transactions), 0)

    def test_sender_dies_in_the_gap(self) -> None:
        """The sender is killed between the receiver's commit and its own record: its successor asks
        by name, sends a lone dot, and the message is there once. It was in doubt, and named so.
        """
        pair = Pair()
        pair.lose_the_reply()
        self.assertEqual(len(pair.copies), 1)
        self.assertEqual(pair.doubts(), [])
        self.assertEqual(len(pair.named_in_log()), 1)
        self.assertEqual(pair.front.queue(), [])
        self.assertEqual(pair.repeated, 1)

    def test_without_names_it_is_doubled(self) -> None:
        """The same where names are not offered, or not used: the message is there twice, and the
        log of the new owner names it.
        """
        for keys in ({"offered": False}, {"named": False}):
            pair = Pair(**keys)
            pair.lose_the_reply()
            self.assertEqual(len(pair.copies), 2, keys)
            self.assertEqual(len(pair.named_in_log()), 1, keys)

    def test_receiver_dies_before_its_reply(self) -> None:
        """The receiver is killed when its commit is durable and before it answers: its successor
        knows the transaction, and takes it once.
        """
        for is_power_cut in (False, True):
            pair = Pair()
            pair.keep_the_reply()
            pair.front.send()
            self.assertEqual(pair.copies, [])
            pair.back.fail("x", to="y", power_cut=is_power_cut)
            self.assertEqual(len(pair.doubts()), 1)
            self.assertEqual(len(pair.copies), 1)
            pair.front.advance(600)
            self.assertEqual((len(pair.copies), pair.repeated), (1, 1))
            self.assertEqual((pair.doubts(), pair.front.queue()), ([], []))

    def test_both_die(self) -> None:
        """Both die, each in its gap: once all the same."""
        pair = Pair()
        pair.keep_the_reply()
        pair.front.send()
        pair.front.owner.is_frozen = True
        pair.front.fail("a", to="b")
        pair.back.fail("x", to="y", power_cut=True)
        pair.front.advance(600)
        self.assertEqual((len(pair.copies), pair.repeated), (1, 1))
        self.assertEqual(pair.doubts(), [])

    def test_after_many_takeovers(self) -> None:
        """The receiver fails over again and again before the sender comes back: it knows it still,
        although the message was delivered long since.
        """
        pair = Pair(backs="xyzuv")
        pair.freeze_when_taken()
        pair.front.send()
        former = "x"
        for name in "yzuv":
            pair.back.fail(former, to=name, power_cut=True)
            former = name
        self.assertEqual(len(pair.copies), 1)
        pair.front.fail("a", to="b")
        pair.front.advance(600)
        self.assertEqual((len(pair.copies), pair.repeated), (1, 1))
        self.assertEqual((pair.front.queue(), pair.doubts()), ([], []))

    def test_cut_in_the_content(self) -> None:
        """The sender is cut off in the midst of the content: nothing was taken, and its successor
        sends it whole under the same name.
        """
        pair = Pair()
        names: list[str] = []

        def half(sender: Any, content: Any) -> Deferred[Any]:
            names.append(sender.transaction)
            sender._machine.content(content.resident[0][:20])
            sender.flush()
            return Deferred()

        with patch.object(SmtpSender, "commit", half):
            pair.front.send()
        pair.front.fail("a", to="b")
        self.assertEqual((len(pair.copies), pair.repeated), (1, 0))
        self.assertEqual(pair.doubts(), [])
        self.assertIsNotNone(pair.back.owner.spool.recall("vs1.example.org", names[0]))

    def test_too_old(self) -> None:
        """What a receiver remembers it forgets when it has expired: then it is taken again."""
        pair = Pair()
        pair.freeze_when_taken()
        pair.front.send()
        back: Any = pair.back.owner
        pair.front.nodes["a"].die()
        pair.front.advance(11 * 86400)
        (remembered,) = [t for t, _ in back.spool._log.ledger.transactions]
        self.assertIsNone(back.spool.recall(remembered.client, remembered.transaction))

    def test_strangers_cannot_name(self) -> None:
        """Whoever is not in checkpoint-from sees no offer, and a name is refused, not overlooked."""
        pair = Pair()
        peer = pair.front.network.dial(HUB, 25, FRIEND)
        pair.front.settle()
        peer.take()
        peer.say(b"EHLO stranger\r\nMAIL FROM:<a@example.com> TRANSID=<1@x>\r\n")
        pair.front.settle()
        said = peer.take()
        self.assertNotIn(b"CHECKPOINT", said)
        self.assertIn(b"555 5.5.4 The parameter TRANSID is not offered", said)
