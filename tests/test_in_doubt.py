"""What may be doubled after a takeover is known, named, and sent once more in the right order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mta.model import AddressSpace, Connector, Doubt, FourTuple, InDoubt
from mta.telemetry import Doubted, Notice, Telemetry
from mta.testing.lab import FRIEND, HUB, MESSAGE, VIRTUAL_ADDRESS, Lab, LabNode
from mta.testing.sink import SILENCE
from mta.transfer.doubts import MOST_TOLD, PATIENCE, DoubtLog
from tests.transfer_bench import HUB as HUB_CONNECTOR
from tests.transfer_bench import Bench


def outbound(node: LabNode) -> list[Doubt]:
    return [doubt for doubt in node.spool.in_doubt() if doubt.side == "outbound"]


def inbound(node: LabNode) -> list[Doubt]:
    return [doubt for doubt in node.spool.in_doubt() if doubt.side == "inbound"]


def taken_and_forgotten(lab: Lab) -> str:
    """The hub has taken a message, and its sender dies before it can note so. Its queue id."""
    node = lab.owner

    def taken(_content: bytes) -> bytes:
        node.is_frozen = True
        return b"250 2.0.0 Ok"

    lab.hub.answer(".", taken, times=1)
    lab.send()
    content = lab.hub.messages[-1].content
    return content.partition(b"\tid ")[2].partition(b"\r\n")[0].decode()


class EndsTests(SynchronousTestCase):
    """The new owner can reset what the former one left open."""

    def left_open(self, lab: Lab) -> tuple[FourTuple, ...]:
        lab.fail("a", to="b")
        found: Any = lab.owner.tenant.recovery()
        return found.open_associations

    def test_both_directions(self) -> None:
        """Both ends, with their ports, of every connection in and out are known to who takes over;
        those that were closed long ago are not.
        """
        lab = Lab("ab", spool="log")
        lab.send()
        lab.advance(60)
        client = lab.client()
        lab.hub.answer(".", SILENCE)
        lab.send()
        port: int = client.peer.transport.getHost().port
        ours = {FourTuple(VIRTUAL_ADDRESS, port, HUB, 25) for port in lab.hub.ports}
        left = self.left_open(lab)
        self.assertIn(FourTuple(VIRTUAL_ADDRESS, 25, FRIEND, port), left)
        self.assertEqual(len(ours), 2)
        self.assertEqual(ours & set(left), {FourTuple(VIRTUAL_ADDRESS, lab.hub.ports[1], HUB, 25)})


class OutboundTests(SynchronousTestCase):
    def test_every_double_is_named(self) -> None:
        """A message that the hub took before its sender died is sent once more, and the log of the
        new owner names it with slot and server, although the resend has settled it.
        """
        lab = Lab("ab", spool="log")
        queue_id = taken_and_forgotten(lab)
        lab.fail("a", to="b")
        lab.advance(5)
        self.assertEqual(len(lab.hub.messages), 2)
        self.assertEqual(outbound(lab.owner), [])
        (told,) = [d for d in lab.owner.kinds(Doubted) if d.side == "outbound"]
        self.assertEqual(told, Doubted(queue_id, "outbound", "smtp/out/1", f"{HUB}:25", 1, (0,)))

    def test_two_takeovers(self) -> None:
        """A doubt of the first epoch is known under the third until the resend was answered."""
        lab = Lab("abc", spool="log")
        queue_id = taken_and_forgotten(lab)
        listening = lab.network.listening.pop((HUB, 25))
        lab.fail("a", to="b")
        lab.fail("b", to="c")
        (doubt,) = outbound(lab.owner)
        self.assertEqual((doubt.queue_id, doubt.epoch), (queue_id, 1))
        self.assertIn(queue_id, [d.queue_id for d in lab.owner.kinds(Doubted)])
        lab.network.listening[HUB, 25] = listening
        lab.advance(400)
        self.assertEqual((len(lab.hub.messages), outbound(lab.owner)), (2, []))

    def test_resends_go_last(self) -> None:
        """A message in doubt waits until what is certain to be new has passed, although it is the
        first of the queue.
        """
        bench = Bench(connectors=(replace(HUB_CONNECTOR, concurrency=1),), start=False)
        doubtful = bench.queue()
        bench.spool.doubts = (Doubt("outbound", doubtful, "smtp/out/9", "192.0.2.20:25", (0,), 1),)
        new = [bench.queue() for _ in range(5)]
        bench.dispatch.start()
        self.assertEqual(bench.kind.delivered, new)
        bench.clock.advance(1.1)
        self.assertEqual(bench.kind.delivered, [*new, doubtful])

    def test_under_endless_load(self) -> None:
        """New mail that never ends holds a resend up for a minute, and no longer."""
        bench = Bench(connectors=(replace(HUB_CONNECTOR, concurrency=1),), start=False)
        doubtful = bench.queue()
        bench.spool.doubts = (Doubt("outbound", doubtful, "smtp/out/9", "192.0.2.20:25", (0,), 1),)
        bench.queue()
        bench.queue()
        busy: list[Any] = []
        bench.kind.on_commit = lambda *a: busy.append(a) or Deferred()
        bench.dispatch.start()
        seconds = 0.0
        while not any(name == doubtful for _, name, _, _ in busy):
            bench.clock.advance(1.0)
            seconds += 1.0
            self.assertLess(seconds, PATIENCE + 3)
        self.assertGreater(seconds, PATIENCE - 3)

    def test_only_what_is_in_doubt_waits(self) -> None:
        """Of a message for two destinations one may have arrived: with `in-doubt: hold` at that
        connector alone the other recipient's mail is not asked about, and goes at once.
        """
        other = Connector(
            "other", "smtp", (AddressSpace(b"example.org"),), HUB_CONNECTOR.bridgeheads
        )
        for policy in InDoubt:
            bench = Bench(connectors=(replace(HUB_CONNECTOR, in_doubt=policy), other), start=False)
            name = bench.queue("a@example.com", "b@example.org")
            bench.spool.doubts = (Doubt("outbound", name, "smtp/out/9", "192.0.2.20:25", (1,), 1),)
            seen: list[tuple[int, ...]] = []
            bench.kind.on_prepare = lambda s, n, e, r, seen=seen: seen.append(r) or succeed(())
            bench.dispatch.start()
            bench.clock.advance(2)
            self.assertEqual(sorted(seen), [(0,), (1,)])

    def test_deferred_resend_stays_in_doubt(self) -> None:
        """The server says "later" to the resend: what it may have already is still in doubt, and
        still its own to be asked first.
        """
        lab = Lab("ab", spool="log")
        queue_id = taken_and_forgotten(lab)
        lab.hub.answer("RCPT", b"450 4.2.1 Later", times=1)
        lab.fail("a", to="b")
        (doubt,) = outbound(lab.owner)
        self.assertEqual((doubt.queue_id, doubt.recipients), (queue_id, (0,)))
        lab.advance(400)
        self.assertEqual((len(lab.hub.messages), outbound(lab.owner)), (2, []))

    def test_lost_under_our_own_epoch(self) -> None:
        """A reply that is lost without any takeover is in the log too, once."""
        lab = Lab(spool="log")
        lab.hub.answer(".", b"(drop the connection)", times=1)
        lab.send()
        (told,) = lab.owner.kinds(Doubted)
        self.assertEqual((told.side, told.peer, told.of_epoch), ("outbound", f"{HUB}:25", 1))
        lab.owner.tenant.reconfigure(lab.config)
        lab.owner.revoke()
        lab.owner.restore()
        self.assertEqual(lab.owner.kinds(Doubted), [told])


class InboundTests(SynchronousTestCase):
    def lab(self) -> Lab:
        lab = Lab("ab", spool="log")
        lab.hub.answer("MAIL", b"451 4.3.0 Later")
        return lab

    def test_unread_reply(self) -> None:
        """A client whose association was open may send its last message again: it is named, with
        the client and its place on the association; one that said QUIT is not.
        """
        lab = self.lab()
        staying = lab.client()
        staying.send()
        last = staying.send().split()[-1].decode()
        lab.send()
        lab.send()  # takes the journal of the former client's end along
        lab.fail("a", to="b")
        doubts = {d.queue_id: d for d in inbound(lab.owner)}
        self.assertEqual(len(doubts), 2)  # the last client's end was on no disk yet
        port = staying.peer.transport.getHost().port
        self.assertEqual((doubts[last].peer, doubts[last].ordinal), (f"{FRIEND}:{port}", 2))
        self.assertIn(
            Doubted(last, "inbound", doubts[last].slot, f"{FRIEND}:{port}", 1, ()),
            lab.owner.kinds(Doubted),
        )

    def test_behind_a_balancer(self) -> None:
        """Log and list name the client that PROXY or XCLIENT named, of the very message that is in
        doubt, and by whom it came.
        """
        for header, more, whom in (
            (
                b"PROXY TCP4 198.51.100.77 192.0.2.10 40001 25",
                f"proxy-from: [{FRIEND}/32]",
                "198.51.100.77",
            ),
            (b"", f"xclient-from: [{FRIEND}/32, 198.51.100.77/32]", "a.example[198.51.100.78]"),
        ):
            lab = Lab(
                "ab",
                spool="log",
                more="listeners:\n  - {kind: smtp, port: 25, relay-from: [198.51.100.0/24],"
                f" {more}}}\n",
            )
            lab.hub.answer("MAIL", b"451 4.3.0 Later")
            client = lab.client()
            if header:
                client.say(header, b"EHLO a.example")
            else:
                client.say(b"XCLIENT ADDR=198.51.100.77 NAME=b.example HELO=b.example")
                client.send()
                client.say(b"XCLIENT ADDR=198.51.100.78 NAME=a.example HELO=a.example")
            last = client.send().split()[-1].decode()
            lab.fail("a", to="b")
            (doubt,) = inbound(lab.owner)
            via = f"{FRIEND}:{client.peer.transport.getHost().port}"
            self.assertEqual((doubt.queue_id, doubt.whom, doubt.via), (last, whom, via))
            self.assertIn(
                Doubted(last, "inbound", doubt.slot, whom, 1, (), via), lab.owner.kinds(Doubted)
            )

    def test_content_of_the_next_message(self) -> None:
        """A client that is in the midst of the next message's content has read the last reply."""
        lab = self.lab()
        client = lab.client()
        first = client.send().split()[-1].decode()
        client.begin(["you@example.com"])
        client.pour(MESSAGE)
        client.pour(b"more\r\n")
        lab.send()
        lab.fail("a", to="b")
        self.assertNotIn(first, [d.queue_id for d in inbound(lab.owner)])

    def test_commands_prove_nothing(self) -> None:
        """MAIL and RSET may have been sent together with the final dot: their client may not have
        read the reply, and its message stays on the list.
        """
        lab = self.lab()
        client = lab.client()
        first = client.send().split()[-1].decode()
        client.say(b"MAIL FROM:<me@example.net>", b"RSET")
        lab.send()
        lab.fail("a", to="b")
        self.assertIn(first, [d.queue_id for d in inbound(lab.owner)])

    def test_chunks_prove_nothing(self) -> None:
        """BDAT waits for no reply: chunks of the next message may have been sent with the last one,
        and that stays on the list.
        """
        lab = self.lab()
        client = lab.client()
        first = client.send().split()[-1].decode()
        client.say(b"MAIL FROM:<me@example.net>", b"RCPT TO:<you@example.com>")
        client.pour(b"BDAT 9\r\nA: b\r\n\r\nxBDAT 5\r\nxx\r\nx")
        lab.send()
        lab.fail("a", to="b")
        self.assertIn(first, [d.queue_id for d in inbound(lab.owner)])

    def test_the_address_goes(self) -> None:
        """The address flaps under the same epoch: the reply that was cut off is in doubt at once,
        and said so when the address is back; and it still is after a takeover.
        """
        lab = self.lab()
        client = lab.client()
        last = client.send().split()[-1].decode()
        lab.owner.revoke()
        lab.settle()
        self.assertEqual([d.queue_id for d in inbound(lab.owner)], [last])
        lab.owner.restore()
        self.assertEqual([d.queue_id for d in lab.owner.kinds(Doubted)], [last])
        lab.fail("a", to="b")
        self.assertEqual([d.queue_id for d in inbound(lab.owner)], [last])

    def test_two_takeovers_in_a_row(self) -> None:
        """The second takeover, a moment later, forgets nothing: the client has not come yet."""
        lab = Lab("abc", spool="log")
        client = lab.client()
        last = client.send().split()[-1].decode()
        lab.fail("a", to="b")
        lab.fail("b", to="c")
        self.assertEqual([d.queue_id for d in inbound(lab.owner)], [last])


class LogTests(SynchronousTestCase):
    def test_bounded(self) -> None:
        """A thousand lines a side, then a count; and nothing is said twice."""
        events: list[Any] = []
        telemetry = Telemetry()
        telemetry.attach(events.append)
        log = DoubtLog(telemetry)
        doubts = [
            Doubt(side, f"Q{number}", "slot", "peer:25", (0,), 3)
            for number in range(MOST_TOLD + 5)
            for side in ("outbound", "inbound")
        ]
        log.tell(doubts)
        log.tell(doubts)
        told = [event for event in events if isinstance(event, Doubted)]
        self.assertEqual(len(told), 2 * MOST_TOLD)
        notices = [event.text for event in events if isinstance(event, Notice)]
        self.assertEqual(
            notices,
            [
                "in doubt: 5 more outbound, see mta queue in-doubt",
                "in doubt: 5 more inbound, see mta queue in-doubt",
            ],
        )
