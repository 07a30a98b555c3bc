"""Operators' commands and the control socket: who is heard, what is answered, what it may cost.

Long because commands and socket are asked through one stand-in for the house, which stands here.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.commands import PAGE, Commands, Facts, plain
from mta.admin.control import IDLE_SECONDS, LONGEST_COMMAND, MOST_CONNECTIONS, ControlServer
from mta.admin.peer import Credentials, credentials
from mta.admin.probe import Probed
from mta.errors import ClusterNotInitialised
from mta.model import (
    Address,
    Bridgehead,
    Candidate,
    Doubt,
    Envelope,
    MessageState,
    Notify,
    QueueAct,
    QueueEntry,
    QueueFilter,
    Recipient,
    RecipientState,
    RecipientStatus,
    Requires,
    Route,
    Unroutable,
    queue_id,
)
from mta.telemetry import Accepted, Command, Notice, Removed, Telemetry, Transferred
from mta.testing.clock import VirtualClock

ROOT = Credentials(9, 0, 0)


def address(text: str) -> Address:
    return Address(text.encode(), text.rpartition("@")[2].encode())


def entry(
    serial: int,
    *,
    sender: str = "a@b.example",
    to: tuple[str, ...] = ("x@example.com",),
    held: bool = False,
    reply: str = "",
    attempts: int = 0,
    active: bool = False,
) -> QueueEntry:
    envelope = Envelope(
        sender=address(sender),
        recipients=tuple(Recipient(address(t)) for t in to),
        received_at=1_795_420_800.0 + serial,
        client="192.0.2.1",
    )
    state = MessageState(
        tuple(RecipientState(reply=reply) for _ in to),
        attempts=attempts,
        due=1_795_420_900.0,
        held=held,
    )
    return QueueEntry(queue_id(1, serial), 1000 + serial, envelope, state, active)


class Content:
    def __init__(self, octets: bytes) -> None:
        self.size_octets = len(octets)
        self.resident = None
        self.octets = octets
        self.closed = False

    def read(self) -> Deferred[bytes]:
        return succeed(self.octets)

    def close(self) -> None:
        self.closed = True


class Queue:
    """scan and act as ISpool promises them, over a list."""

    def __init__(self, entries: list[QueueEntry]) -> None:
        self.entries = {e.queue_id: e for e in entries}
        self.acts: list[tuple[QueueAct, int]] = []
        self.scans = 0
        self.doubts: tuple[Doubt, ...] = ()
        self.opened = Content(b"Received: x\r\nSubject: \x1b[2Jhi\r\n\r\nbody")

    def scan(self, chosen: QueueFilter, after: str, limit: int) -> Deferred[list[QueueEntry]]:
        self.scans += 1
        found = [e for q, e in sorted(self.entries.items()) if q > after and self.means(chosen, e)]
        return succeed(found[:limit])

    def means(self, chosen: QueueFilter, e: QueueEntry) -> bool:
        recipients = [str(r.address) for r in e.envelope.recipients]
        return (
            (not chosen.queue_ids or e.queue_id in chosen.queue_ids)
            and (not chosen.sender or str(e.envelope.sender) == chosen.sender)
            and (not chosen.recipient or chosen.recipient in recipients)
            and (not chosen.domain or any(r.endswith("@" + chosen.domain) for r in recipients))
            and (chosen.held is None or e.state.held is chosen.held)
        )

    def act(self, queue_ids: list[str], act: QueueAct, now: float) -> Deferred[list[str]]:
        self.acts.append((act, len(queue_ids)))
        for name in queue_ids:
            if act is QueueAct.DELETE:
                del self.entries[name]
            elif act is not QueueAct.RETRY:
                old = self.entries[name]
                held = act is QueueAct.HOLD
                self.entries[name] = replace(old, state=replace(old.state, held=held))
        return succeed(list(queue_ids))

    def in_doubt(self) -> tuple[Doubt, ...]:
        return self.doubts

    def content(self, queue_id: str) -> Content:
        return self.opened


class Routing:
    def __init__(self) -> None:
        self.answer: Route | Unroutable = Unroutable("nobody takes it")
        self.terms: tuple[str, ...] = ()

    def route(self, recipient: Address, envelope: Envelope | None) -> Route | Unroutable:
        return self.answer


class House:
    """The commands over a list of messages, and what they told the rest of the house."""

    def __init__(self, entries: list[QueueEntry] | None = None) -> None:
        self.clock = VirtualClock()
        self.telemetry = Telemetry()
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)
        self.queue = Queue(entries or [])
        self.routing = Routing()
        self.told: list[tuple[str, list[str]]] = []
        self.standby = False
        self.health: Deferred[Probed] = Deferred()
        self.status: dict[str, Any] = {
            "role": "online",
            "epoch": 3,
            "by_domain": {b"e\x1b.com": 2},
        }
        self.probed: list[tuple[int, bool]] = []
        self.is_clock_suspect = True
        self.commands = Commands(
            Facts(
                status=lambda: self.status,
                spool=self.spool,
                routing=lambda: self.routing,
                terms=lambda route: self.routing.terms,
                parse_address=self.parse,
                retry_now=lambda ids: self.told.append(("retry", list(ids))),
                pump=lambda: self.told.append(("pump", [])),
                forget=lambda ids: self.told.append(("forget", list(ids))),
                probe=self.probe,
                accept_clock=self.accept_clock,
            ),
            self.clock,
            self.telemetry,
        )
        self.server = ControlServer(
            self.commands,
            self.telemetry,
            self.clock,
            own_uid=500,
            who=lambda t: t.who,
            group_id=lambda name: 77,
        )

    def spool(self) -> Queue:
        if self.standby:
            raise ClusterNotInitialised("this node is standby", "node b has the queue", "ask there")
        return self.queue

    def parse(self, text: bytes) -> Address:
        if b"@" not in text:
            raise ValueError("an address has a domain")
        return address(text.decode())

    def accept_clock(self) -> bool:
        was, self.is_clock_suspect = self.is_clock_suspect, False
        return was

    def probe(self, level: int, standby: bool) -> Deferred[Probed]:
        self.probed.append((level, standby))
        return self.health

    def connect(self, who: Credentials = ROOT) -> Connection:
        return Connection(self, who)


class Connection:
    """One operator at the control socket."""

    def __init__(self, house: House, who: Credentials) -> None:
        self.house = house
        self.transport = StringTransport()
        self.transport.who = who
        self.protocol = house.server.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def say(self, command: str, **arguments: Any) -> None:
        request = {"command": command, "arguments": arguments}
        self.protocol.dataReceived(json.dumps(request).encode() + b"\n")

    def heard(self) -> list[dict[str, Any]]:
        octets = self.transport.value()
        self.transport.clear()
        return [json.loads(line) for line in octets.splitlines()]

    def ask(self, command: str, **arguments: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Items, and done or error."""
        self.say(command, **arguments)
        for _ in range(1000):
            self.house.clock.advance(0)
            if b'{"done"' in self.transport.value() or b'{"error"' in self.transport.value():
                break
        *items, last = self.heard()
        return [i["item"] for i in items], last.get("done") or last


class Admission(SynchronousTestCase):
    """Who may give commands."""

    def test_the_kernels_word(self) -> None:
        """uid, gid, pid and groups of a peer come from the kernel, not from the peer."""
        near, far = socket.socketpair()

        class Transport:
            socket = near

        found = credentials(Transport())
        self.assertEqual((os.getpid(), os.getuid(), os.getgid()), found[:3])
        self.assertEqual(set(os.getgroups()), set(found.groups))
        self.assertTrue(found.is_member(os.getgid()))
        self.assertTrue(all(found.is_member(gid) for gid in found.groups))
        near.close()
        far.close()

    def test_supplementary_groups(self) -> None:
        """A member of mta-admin by a supplementary group is one: the kernel is asked in a size that
        Python passes on."""
        near, far = socket.socketpair()

        class Peer:
            def getsockopt(self, level: int, option: int, octets: int) -> bytes:
                answer = near.getsockopt(level, option, octets)  # over 1024 octets: OSError
                return answer if option == socket.SO_PEERCRED else struct.pack("=II", 7, 1001)

        class Transport:
            socket = Peer()

        self.assertEqual(credentials(Transport()).groups, {7, 1001})
        near.close()
        far.close()

    def refused(self, connection: Connection) -> bool:
        return connection.transport.disconnecting

    def test_only_those_the_kernel_vouches_for(self) -> None:
        """Root, our own uid and the admin group are heard; nobody else, and that is logged."""
        house = House()
        for who in (
            ROOT,
            Credentials(1, 500, 500),
            Credentials(1, 1000, 77),
            Credentials(1, 1000, 1000, frozenset({5, 77})),
        ):
            self.assertFalse(self.refused(house.connect(who)), who)
        stranger = house.connect(Credentials(8, 1001, 1001, frozenset({4})))
        self.assertTrue(self.refused(stranger))
        self.assertEqual(os.EX_NOPERM, stranger.heard()[0]["error"]["exit_code"])
        self.assertIn("uid=1001", house.events[-1].text)
        stranger.say("queue-delete", all=True)
        self.assertEqual([], [e for e in house.events if isinstance(e, Command)])

    def test_mode(self) -> None:
        """The socket is 0660 when the admin group exists, else 0600."""
        house = House()
        self.assertEqual(0o660, house.server.mode)
        alone = ControlServer(
            house.commands, house.telemetry, house.clock, group_id=lambda name: None
        )
        self.assertEqual(0o600, alone.mode)
        self.assertFalse(alone.admits(Credentials(1, 12345, 12345)))

    def test_a_socket_that_cannot_be_given_away(self) -> None:
        """When the group cannot be set the socket is closed to everybody else, and that is said."""
        house = House()
        path = self.mktemp()
        os.close(os.open(path, os.O_CREAT, 0o660))

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", refuse)
        house.server.secure(path)
        self.assertEqual(0o600, os.stat(path).st_mode & 0o777)
        self.assertIn("add the service's user to the group", house.events[-1].text)

    def test_too_many(self) -> None:
        """A flood of connections is answered and closed; one that ends makes room."""
        house = House()
        open_ones = [house.connect() for _ in range(MOST_CONNECTIONS)]
        late = house.connect()
        self.assertEqual(os.EX_TEMPFAIL, late.heard()[0]["error"]["exit_code"])
        open_ones[0].protocol.connectionLost()
        self.assertFalse(self.refused(house.connect()))

    def test_idle(self) -> None:
        """A connection that asks nothing is closed after a minute, not before."""
        house = House()
        connection = house.connect()
        house.clock.advance(IDLE_SECONDS - 0.1)
        self.assertFalse(self.refused(connection))
        house.clock.advance(0.1)
        self.assertTrue(self.refused(connection))


class Dialogue(SynchronousTestCase):
    """JSON lines."""

    def test_every_command_is_logged_before_it_is_done(self) -> None:
        """Who asked what, with the arguments, stands in the log even when it fails."""
        house = House()
        house.connect(Credentials(77, 500, 501)).ask("queue-hold", ids=["A"], sender="x@y")
        self.assertEqual(
            Command(500, 501, 77, "queue-hold", 'ids=["A"] sender="x@y"'), house.events[0]
        )

    def test_in_order(self) -> None:
        """Commands of one connection are done one after the other."""
        house = House()
        connection = house.connect()
        connection.protocol.dataReceived(
            b'{"command":"probe","arguments":{"level":1}}\n{"command":"status"}\n'
        )
        self.assertEqual([], connection.heard())
        self.assertEqual("paused", connection.transport.producerState)
        house.health.callback(Probed("ok", "fine", 0))
        first, second = connection.heard()
        self.assertEqual(
            {"level": 1, "health": "ok", "text": "fine", "exit_code": 0}, first["done"]
        )
        self.assertEqual("online", second["done"]["role"])
        self.assertEqual("producing", connection.transport.producerState)

    def test_a_thousand_at_once(self) -> None:
        """Many commands in one chunk are answered without recursion."""
        house = House()
        connection = house.connect()
        connection.protocol.dataReceived(b'{"command":"status"}\n' * 2000)
        self.assertEqual(2000, len(connection.heard()))

    def test_rubbish_is_named(self) -> None:
        """What is no command gets one error line and the connection goes on."""
        house = House()
        connection = house.connect()
        for line in (
            b"",
            b"\xff\xfe",
            b"{",
            b"[]",
            b'"x"',
            b"{}",
            b'{"command":1}',
            b'{"command":"status","x":1}',
            b'{"command":"status","arguments":[]}',
            b'{"command":"nonsense"}',
            b'{"command":"status","arguments":{"x":1}}',
            b"[" * 5000,
        ):
            connection.protocol.dataReceived(line + b"\n")
            [answer] = connection.heard()
            self.assertEqual(os.EX_USAGE, answer["error"]["exit_code"], line)
        connection.say("status")
        self.assertIn("done", connection.heard()[0])

    def test_an_endless_line(self) -> None:
        """A line without an end costs no more than its limit, and ends the connection."""
        house = House()
        connection = house.connect()
        connection.protocol.dataReceived(b"x" * (LONGEST_COMMAND + 2))
        self.assertIn("longer than", connection.heard()[0]["error"]["what"])
        self.assertTrue(connection.transport.disconnecting)

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=60),
                st.sampled_from(
                    [
                        b'{"command":"queue-list","arguments":{"ids":[1]}}',
                        b'{"command":"queue-delete"}',
                        b'{"command":"trace","arguments":{"id":"A"}}',
                    ]
                ),
            ),
            max_size=8,
        )
    )
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_any_octets(self, lines: list[bytes]) -> None:
        """Whatever is sent, each line gets one answer of printable ASCII and nothing is deleted."""
        house = House([entry(1)])
        connection = house.connect()
        octets = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
        for at in range(0, len(octets), 7):
            connection.protocol.dataReceived(octets[at : at + 7])
        house.clock.advance(0)
        value = connection.transport.value()
        self.assertTrue(all(0x20 <= o < 0x7F or o == 0x0A for o in value))
        self.assertEqual(len(lines), len(connection.heard()))
        self.assertEqual(1, len(house.queue.entries))

    def test_a_defect(self) -> None:
        """A command that breaks inside us says so and is logged; the connection goes on."""
        house = House()
        connection = house.connect()
        connection.say("probe", level=1)
        house.health.errback(ZeroDivisionError("1/0"))
        [answer] = connection.heard()
        self.assertEqual(os.EX_SOFTWARE, answer["error"]["exit_code"])
        self.assertEqual("error", [e for e in house.events if isinstance(e, Notice)][-1].level)
        connection.say("status")
        self.assertIn("done", connection.heard()[0])

    def test_stop(self) -> None:
        """When the process ends connections end and what runs is cancelled."""
        house = House()
        cancelled: list[object] = []
        house.health = Deferred(cancelled.append)
        connection = house.connect()
        connection.say("probe", level=2)
        house.server.stop()
        self.assertTrue(connection.transport.disconnecting)
        self.assertEqual([house.health], cancelled)


class Reading(SynchronousTestCase):
    def test_status(self) -> None:
        """mta status shows what the service says, domains of peers neutralised."""
        _, done = House().connect().ask("status")
        self.assertEqual({"role": "online", "epoch": 3, "by_domain": {"e\\x1b.com": 2}}, done)

    def test_list_has_postqueues_fields(self) -> None:
        """One item a message with postqueue -j's names; delivered recipients are not listed."""
        one = entry(
            1, to=("x@example.com", "y@example.com"), reply="451 4.3.0 busy\r\n", attempts=2
        )
        states = (RecipientState(RecipientStatus.DELIVERED), one.state.recipients[1])
        one = replace(one, state=replace(one.state, recipients=states))
        items, done = (
            House([one, entry(2, held=True), entry(3, active=True), entry(4)])
            .connect()
            .ask("queue-list")
        )
        self.assertEqual(
            ["deferred", "hold", "active", "incoming"], [i["queue_name"] for i in items]
        )
        self.assertEqual(
            [{"address": "y@example.com", "delay_reason": "451 4.3.0 busy\\x0d\\x0a"}],
            items[0]["recipients"],
        )
        self.assertEqual(
            (queue_id(1, 1), 1001, 1_795_420_801, "a@b.example"),
            tuple(items[0][k] for k in ("queue_id", "message_size", "arrival_time", "sender")),
        )
        self.assertEqual({"messages": 4, "octets": 4010}, done)

    def test_filters(self) -> None:
        """Ids, sender, recipient, domain and held narrow the list; a limit ends it."""
        house = House(
            [entry(1), entry(2, sender="c@d.example"), entry(3, to=("z@other.example",), held=True)]
        )

        def ids(**arguments: Any) -> list[int]:
            items, _ = house.connect().ask("queue-list", **arguments)
            return [int(i["queue_id"], 16) & 0xFF for i in items]

        self.assertEqual([2], ids(sender="c@d.example"))
        self.assertEqual([3], ids(domain="other.example"))
        self.assertEqual([1, 2], ids(recipient="x@example.com"))
        self.assertEqual([3], ids(held=True))
        self.assertEqual([1, 2], ids(held=False))
        self.assertEqual([2], ids(ids=[queue_id(1, 2), "nothing"]))
        self.assertEqual([1, 2], ids(limit=2))

    def test_a_long_list_lets_the_mail_through(self) -> None:
        """Between two pages the reactor turns: a million messages do not stop the mail."""
        house = House([entry(n) for n in range(1, 2 * PAGE + 2)])
        connection = house.connect()
        connection.say("queue-list")
        self.assertEqual(PAGE, len(connection.heard()))
        house.clock.advance(0)
        house.clock.advance(0)
        self.assertGreater(len(connection.heard()), PAGE)

    def test_a_reader_that_does_not_read(self) -> None:
        """Who asks and does not read gets what his socket holds, and no more is looked up."""
        house = House([entry(n) for n in range(1, 3 * PAGE)])
        connection = house.connect()
        connection.transport.producer.pauseProducing()
        connection.say("queue-list")
        for _ in range(10):
            house.clock.advance(0)
        self.assertEqual((1, 1), (len(connection.heard()), house.queue.scans))
        connection.transport.producer.resumeProducing()
        for _ in range(10):
            house.clock.advance(0)
        self.assertEqual(3 * PAGE - 1, len(connection.heard()))

    def test_a_reader_that_leaves(self) -> None:
        """Who hangs up in the middle of a list ends it with the page at hand."""
        house = House([entry(n) for n in range(1, 5 * PAGE)])
        connection = house.connect()
        connection.transport.producer.pauseProducing()
        connection.say("queue-list")
        connection.protocol.connectionLost()
        for _ in range(10):
            house.clock.advance(0)
        self.assertEqual(1, house.queue.scans)

    def test_show(self) -> None:
        """One message in full, with its header lines safe for a terminal."""
        house = House([entry(1, reply="451 later")])
        _, done = house.connect().ask("queue-show", id=queue_id(1, 1), headers=True)
        self.assertEqual("pending", done["recipients"][0]["status"])
        self.assertEqual((done["priority"], done["grade"]), (0, "normal"))
        self.assertEqual(["Received: x", "Subject: \\x1b[2Jhi"], done["headers"])
        self.assertTrue(house.queue.opened.closed)
        _, missing = house.connect().ask("queue-show", id="nothing")
        self.assertEqual(os.EX_NOINPUT, missing["error"]["exit_code"])

    def test_standby(self) -> None:
        """On a standby node the queue is elsewhere, and the answer says where."""
        house = House()
        house.standby = True
        _, answer = house.connect().ask("queue-list")
        self.assertEqual(
            ("this node is standby", "node b has the queue", os.EX_TEMPFAIL),
            tuple(answer["error"][k] for k in ("what", "why", "exit_code")),
        )

    def test_route(self) -> None:
        """route explain shows every candidate and why it lost, and the winner."""
        house = House()
        house.routing.answer = Route(
            "hub",
            "hub",
            (Bridgehead("192.0.2.20"),),
            10,
            "best match",
            candidates=(
                Candidate("hub", b"*.example.com", 10, True, "chosen"),
                Candidate("net", b"*", 50, False, "less specific"),
            ),
        )
        house.routing.terms = ("tls: verify (tls)",)
        items, done = house.connect().ask("route-explain", address="x@mail.example.com")
        self.assertEqual(["chosen", "less specific"], [i["verdict"] for i in items])
        self.assertEqual(
            ("hub", ["192.0.2.20:25"], True, ["tls: verify (tls)"]),
            (done["connector"], done["bridgeheads"], done["routable"], done["terms"]),
        )
        house.routing.answer = Unroutable("no connector takes it")
        _, done = house.connect().ask("route-explain", address="x@y")
        self.assertEqual((False, "550 5.1.2"), (done["routable"], done["reply"]))
        _, wrong = house.connect().ask("route-explain", address="nonsense")
        self.assertEqual(os.EX_USAGE, wrong["error"]["exit_code"])

    def test_in_doubt(self) -> None:
        """The in-doubt list names side, message, association and peer."""
        house = House()
        house.queue.doubts = (Doubt("outbound", "A", "hub/1", "192.0.2.20", (0,), 3),)
        items, done = house.connect().ask("queue-in-doubt")
        self.assertEqual(
            [
                {
                    "side": "outbound",
                    "queue_id": "A",
                    "slot": "hub/1",
                    "peer": "192.0.2.20",
                    "via": "",
                    "epoch": 3,
                    "recipients": [],
                    "recipient_indexes": [0],
                    "transaction": "",
                    "ordinal": 0,
                    "then": "resend last, to 192.0.2.20 first",
                }
            ],
            items,
        )
        self.assertEqual({"in_doubt": 1}, done)

    def test_in_doubt_says_what_will_be_done(self) -> None:
        """For each entry: resent last and to whom first, held, or its client's matter; and which
        recipients are meant. The message itself says so too.
        """
        doubted = entry(1, to=("a@example.com", "b@example.com"))
        held = entry(2, held=True)
        house = House([doubted, held])
        house.queue.doubts = (
            Doubt(
                "outbound", queue_id(1, 1), "hub/1", "192.0.2.20:25", (1,), 3, transaction="<t@x>"
            ),
            Doubt("outbound", queue_id(1, 2), "hub/2", "192.0.2.20:25", (0,), 3),
            Doubt("inbound", queue_id(1, 1), "smtp/in/4", "192.0.2.9:4711", (), 3, ordinal=7),
        )
        items, _ = house.connect().ask("queue-in-doubt")
        self.assertEqual(
            [
                (["b@example.com"], "<t@x>", 0, "resend last, to 192.0.2.20:25 first"),
                (["x@example.com"], "", 0, "held until it is released"),
                (["a@example.com", "b@example.com"], "", 7, "its client may send it again"),
            ],
            [(i["recipients"], i["transaction"], i["ordinal"], i["then"]) for i in items],
        )
        _, shown = house.connect().ask("queue-show", id=queue_id(1, 1))
        self.assertEqual([items[0], items[2]], shown["in_doubt"])

    def test_probe_levels(self) -> None:
        """The levels are 0, 1, 2 and an OCF monitor's 10 and 20; another is refused by name."""
        house = House()
        for level in (3, 11):
            [refused] = [house.connect().ask("probe", level=level)[1]["error"]]
            self.assertEqual("one of 0, 1, 2, 10, 20", refused["remedy"])
        house.health.callback(Probed("failed", "no lease", 69))
        self.assertEqual("failed", house.connect().ask("probe", level=1)[1]["health"])
        house.connect().ask("probe", level=10, standby=True)
        self.assertEqual([(1, False), (10, True)], house.probed)

    def test_accept_clock(self) -> None:
        """A suspect clock is accepted once; on a standby node there is nothing to accept."""
        house = House()
        self.assertEqual({"changed": True}, house.connect().ask("cluster-accept-clock")[1])
        self.assertEqual({"changed": False}, house.connect().ask("cluster-accept-clock")[1])
        house.standby = True
        self.assertIn("error", house.connect().ask("cluster-accept-clock")[1])

    def test_trace(self) -> None:
        """What lately happened to one message is remembered for mta send, and no other's."""
        house = House()
        house.telemetry.event(Removed("A"))
        house.telemetry.event(Removed("B"))
        items, done = house.connect().ask("trace", id="B")
        self.assertEqual([{"event": "removed", "queue_id": "B"}], items)
        self.assertEqual({"id": "B", "through": True}, done)
        self.assertIn("error", house.connect().ask("trace", id="")[1])

    def test_trace_waits(self) -> None:
        """mta send waits until each recipient was tried, or until its time is over."""
        house = House()
        observers = len(house.telemetry._observers)
        accepted = Accepted("A", "a", "c", b"h", "SMTP", b"s", 1, 2, b"m", "v")
        tried = Transferred(
            "A", b"r", b"", "hub", "smtp", "", 0.0, (0.0,) * 4, "2.0.0", "sent", "250 ok", "v", "v"
        )
        house.telemetry.event(accepted)
        connection = house.connect()
        connection.say("trace", id="A", wait=5)
        house.telemetry.event(tried)
        house.telemetry.event(Removed("B"))
        self.assertEqual([], connection.heard())
        house.telemetry.event(tried)
        *items, last = connection.heard()
        self.assertEqual(
            ["accepted", "transferred", "transferred"], [i["item"]["event"] for i in items]
        )
        self.assertTrue(last["done"]["through"])
        connection.say("trace", id="C", wait=5)
        house.clock.advance(4.9)
        self.assertEqual([], connection.heard())
        house.clock.advance(0.1)
        self.assertEqual([{"done": {"id": "C", "through": False}}], connection.heard())
        connection.say("trace", id="C", wait=5)
        house.server.stop()
        house.clock.advance(10)
        self.assertEqual(
            (observers, []),
            (len(house.telemetry._observers), house.clock.reactor.getDelayedCalls()),
        )

    def test_plain(self) -> None:
        """Values of the model become JSON without losing their words."""
        self.assertEqual("SUCCESS|DELAY", plain(Notify.SUCCESS | Notify.DELAY))
        self.assertEqual("nothing", plain(Requires.NOTHING).lower())
        self.assertEqual(
            [None, "hold", {"a": [1, True]}], plain((float("nan"), QueueAct.HOLD, {"a": (1, True)}))
        )


class Acting(SynchronousTestCase):
    def test_what_is_not_said_is_not_done(self) -> None:
        """Without a selector and without --all nothing is deleted."""
        house = House([entry(1)])
        _, answer = house.connect().ask("queue-delete")
        self.assertEqual(os.EX_USAGE, answer["error"]["exit_code"])
        self.assertEqual(1, len(house.queue.entries))

    def test_delete(self) -> None:
        """Deleting by sender deletes those, tells the dispatcher, and stands in the log."""
        house = House([entry(1), entry(2, sender="c@d.example")])
        items, done = house.connect().ask("queue-delete", sender="c@d.example")
        self.assertEqual([{"id": queue_id(1, 2), "act": "delete"}], items)
        self.assertEqual({"act": "delete", "messages": 1, "not_queued": []}, done)
        self.assertEqual([("forget", [queue_id(1, 2)])], house.told)
        self.assertEqual(
            [queue_id(1, 2)], [e.queue_id for e in house.events if isinstance(e, Removed)]
        )

    def test_hold_release_retry(self) -> None:
        """Held messages are forgotten, released ones looked for, retried ones tried at once."""
        house = House([entry(1)])
        name = queue_id(1, 1)
        house.connect().ask("queue-hold", ids=[name])
        self.assertTrue(house.queue.entries[name].state.held)
        house.connect().ask("queue-release", all=True, held=True)
        self.assertFalse(house.queue.entries[name].state.held)
        house.connect().ask("queue-retry", all=True)
        self.assertEqual([("forget", [name]), ("pump", []), ("retry", [name])], house.told)

    def test_ids_that_are_not_there(self) -> None:
        """Of several ids the unknown ones are named, the others done."""
        house = House([entry(1)])
        _, done = house.connect().ask("queue-hold", ids=[queue_id(1, 1), "gone"])
        self.assertEqual((1, ["gone"]), (done["messages"], done["not_queued"]))

    def test_pages(self) -> None:
        """All of a long queue is done, in pages."""
        house = House([entry(n) for n in range(1, 2 * PAGE + 2)])
        items, done = house.connect().ask("queue-delete", all=True)
        self.assertEqual([PAGE, PAGE, 1], [count for _, count in house.queue.acts])
        self.assertEqual(
            (2 * PAGE + 1, 2 * PAGE + 1, {}), (len(items), done["messages"], house.queue.entries)
        )

    def test_wrong_types(self) -> None:
        """Arguments of a wrong type are refused by name, not guessed."""
        house = House([entry(1)])
        for arguments in (
            {"ids": "A"},
            {"ids": [1]},
            {"ids": [""]},
            {"all": 1},
            {"sender": 5},
            {"held": "yes"},
            {"limit": 3},
        ):
            _, answer = house.connect().ask("queue-delete", **arguments)
            self.assertEqual(os.EX_USAGE, answer["error"]["exit_code"], arguments)
        self.assertEqual([], house.queue.acts)
