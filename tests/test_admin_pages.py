"""Monitoring: the HTTP pages, the metrics on them, and what systemd is told."""

from __future__ import annotations

import ast
import json
import os
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.commands import Commands, Facts
from mta.admin.http import LONGEST_REQUEST, REQUEST_SECONDS, Http
from mta.admin.metrics import Exposition, QueueGauges
from mta.admin.sdnotify import Notifier
from mta.admin.settings import AdminSettings
from mta.admin.unixgram import UnixDatagram
from mta.errors import ClusterNotInitialised
from mta.model import Doubt, SpoolStats
from mta.telemetry import Notice, Telemetry
from mta.testing.clock import VirtualClock
from tests.test_house import imports, module_of, sources


def away(*_: object) -> Any:
    raise AssertionError("no page asks for this")


class Pages(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.telemetry = Telemetry()
        self.events: list[object] = []
        self.telemetry.attach(self.events.append)
        self.is_ready = (True, "online, epoch 3")
        self.could_take_over = True
        self.facts_fail = False
        facts = Facts(self.status, *[away] * 9)
        self.http = Http(
            "127.0.0.1:8025",
            Commands(facts, self.clock, self.telemetry),
            Exposition(self.telemetry, "0.1", "node", process=False),
            ready=lambda: self.is_ready,
            standby_ready=lambda: (self.could_take_over, self.is_ready[1]),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def status(self) -> dict[str, Any]:
        if self.facts_fail:
            raise RuntimeError("secret")
        return {"role": "online"}

    def send(self, octets: bytes) -> StringTransport:
        transport = StringTransport()
        protocol = self.http.buildProtocol(None)
        protocol.makeConnection(transport)
        for at in range(0, len(octets), 11):
            if not transport.disconnecting:  # as the kernel's: then nothing more is read
                protocol.dataReceived(octets[at : at + 11])
        self.protocol = protocol
        return transport

    def get(
        self, path: str, host: str = "127.0.0.1:8025", method: str = "GET", more: str = ""
    ) -> tuple[int, bytes, bytes]:
        """Status, head, body."""
        request = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()
        transport = self.send(request)
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertTrue(transport.disconnecting)
        self.assertIn(b"Connection: close", head)
        return int(head.split()[1]), head, body

    def test_live_and_ready(self) -> None:
        """/livez depends on nothing; /readyz is 503 with the reason on a standby node."""
        self.assertEqual((200, b"alive\n"), self.get("/livez")[::2])
        self.assertEqual((200, b"online, epoch 3\n"), self.get("/readyz?x=1")[::2])
        self.is_ready = (False, "standby: no address\x1b\ntakeover: ready")
        body = b"standby: no address\\x1b\ntakeover: ready\n"
        self.assertEqual((503, body), self.get("/readyz")[::2])
        self.assertEqual(200, self.get("/livez")[0])

    def test_a_standby_that_could_take_over(self) -> None:
        """/standbyz is 200 on the owner and on a standby that could take over, else 503; the same
        two lines as /readyz.
        """
        self.is_ready = (False, "standby: no address\ntakeover: ready")
        body = b"standby: no address\ntakeover: ready\n"
        self.assertEqual((200, body), self.get("/standbyz")[::2])
        self.could_take_over = False
        self.assertEqual((503, body), self.get("/standbyz")[::2])

    def test_status(self) -> None:
        """/status.json is what mta status --json prints."""
        status, head, body = self.get("/status.json", host="localhost:8025")
        self.assertEqual((200, {"role": "online"}), (status, json.loads(body)))
        self.assertIn(b"Content-Type: application/json\r\n", head)

    def test_metrics(self) -> None:
        """/metrics has the counters under their names."""
        self.telemetry.counter("mta_messages_accepted_total", "Accepted.").inc(7)
        status, head, body = self.get("/metrics")
        self.assertEqual(200, status)
        self.assertIn(b"\nmta_messages_accepted_total 7.0\n", body)
        self.assertIn(b"text/plain; version=", head)

    def test_foreign_host(self) -> None:
        """A page of another site that has its name lead to us learns nothing."""
        for host in ("evil.example:8025", "evil.example", "127.0.0.1", "127.0.0.1:8026", ""):
            status, _, body = self.get("/status.json", host=host)
            self.assertEqual(
                (421, b"this server does not answer for that Host\n"), (status, body), host
            )
        _, head, _ = self.get("/livez", host="evil.example")
        self.assertTrue(head.startswith(b"HTTP/1.1 421 Misdirected Request\r\n"))
        twice = self.send(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:8025\r\nHost: evil\r\n\r\n")
        self.assertIn(b" 400 ", twice.value())
        none = self.send(b"GET /livez HTTP/1.1\r\n\r\n")
        self.assertIn(b" 400 ", none.value())

    def test_read_only(self) -> None:
        """Nothing can be changed, and no body is taken."""
        for method in ("POST", "PUT", "DELETE", "TRACE", "nonsense"):
            self.assertEqual(405, self.get("/status.json", method=method)[0])
        self.assertEqual(413, self.get("/livez", more="Content-Length: 5\r\n")[0])
        self.assertEqual(413, self.get("/livez", more="Transfer-Encoding: chunked\r\n")[0])
        self.assertEqual((200, b""), self.get("/livez", method="HEAD")[::2])
        self.assertEqual(404, self.get("/../../etc/passwd")[0])

    def test_rubbish(self) -> None:
        """What is no HTTP, or has no end, is answered or closed."""
        self.assertIn(b" 400 ", self.send(b"EHLO x\r\n\r\n").value())
        self.assertIn(b" 400 ", self.send(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n").value())
        endless = self.send(b"GET /" + b"x" * LONGEST_REQUEST)
        self.assertTrue(endless.disconnecting)
        fields = self.send(b"GET / HTTP/1.1\r\n" + b"X-A: yyyyyyyyyyyyyyyyyyyyyyy\r\n" * 700)
        self.assertIn(b" 400 ", fields.value())
        self.assertTrue(fields.disconnecting)
        slow = self.send(b"GET / HT")
        self.clock.advance(REQUEST_SECONDS)
        self.assertTrue(slow.disconnected)
        self.assertEqual(b"", slow.value())

    def test_a_body_is_not_kept(self) -> None:
        """A body is refused when it is announced: nothing is continued, kept or asked again."""
        head = b"POST /livez HTTP/1.1\r\nHost: 127.0.0.1:8025\r\nExpect: 100-continue\r\n"
        for more in (b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"):
            transport = StringTransport()
            protocol = self.http.buildProtocol(None)
            protocol.makeConnection(transport)
            protocol.dataReceived(head + more + b"\r\n" + b"1\r\nx\r\n0\r\n\r\n" * 100)
            answer = transport.value()
            self.assertTrue(answer.startswith(b"HTTP/1.1 413 "))
            self.assertEqual(1, answer.count(b"HTTP/1.1"))
            self.assertTrue(transport.disconnecting)
            protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual([], self.clock.reactor.getDelayedCalls())

    def test_one_answer_a_connection(self) -> None:
        """Requests behind the first get none, and who does not read the answer is closed."""
        request = b"GET /livez HTTP/1.1\r\nHost: localhost:8025\r\n\r\n"
        transport = self.send(request * 3)
        self.assertEqual(1, transport.value().count(b"HTTP/1.1 200"))
        self.assertFalse(transport.disconnected)
        self.clock.advance(REQUEST_SECONDS)
        self.assertTrue(transport.disconnected)

    def test_fields_of_every_answer(self) -> None:
        """No answer is stored, guessed at, or says which software this is."""
        for path, host in (("/livez", "localhost:8025"), ("/x", "localhost:8025"), ("/", "evil")):
            _, head, _ = self.get(path, host=host)
            lower = head.lower()
            self.assertIn(b"\r\ncache-control: no-store", lower)
            self.assertIn(b"\r\nx-content-type-options: nosniff", lower)
            self.assertNotIn(b"server:", lower)
        self.assertIn(b"Allow: GET, HEAD", self.get("/livez", method="POST")[1])

    def test_a_page_that_fails(self) -> None:
        """A page that cannot be made is 500 without a word about our insides; it is logged."""
        self.facts_fail = True
        status, _, body = self.get("/status.json")
        self.assertEqual((500, b"this page cannot be made now; the log says why\n"), (status, body))
        notices = [event for event in self.events if isinstance(event, Notice)]
        self.assertEqual(["/status.json: RuntimeError: secret"], [n.text for n in notices])

    @given(st.binary(max_size=200))
    @settings(max_examples=80, deadline=None, derandomize=True)
    def test_any_octets(self, octets: bytes) -> None:
        """Any request head gets one answer that begins as HTTP and shows nothing of the inside."""
        transport = self.send(octets.replace(b"\r\n\r\n", b"") + b"\r\n\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 4"))

    def test_only_on_loopback(self) -> None:
        """An address that others reach, or none, is refused with the configuration."""
        for wrong in (
            "0.0.0.0:8025",
            "192.0.2.1:80",
            "[::]:1",
            "8025",
            "127.0.0.1",
            "127.0.0.1:0",
            "::1:80",
            "localhost:80",
        ):
            self.assertRaises(ValueError, AdminSettings, http=wrong)
        for right in ("127.0.0.1:8025", "[::1]:8025", "127.0.0.5:1"):
            self.assertEqual(right, AdminSettings(http=right).http)

    def test_a_path_that_no_socket_can_have(self) -> None:
        """A socket path over the kernel's 107 octets is refused with the configuration."""
        self.assertRaises(ValueError, AdminSettings, socket="/" + "x" * 107)
        self.assertEqual("/" + "x" * 106, AdminSettings(socket="/" + "x" * 106).socket)


class Lazy(SynchronousTestCase):
    def test_without_pages(self) -> None:
        """A daemon without `http:`, etcd and `mta-sts` never loads twisted.web: the modules that
        import it are imported by nobody before the configuration was read, or do so when they need it.
        """
        direct: list[str] = []
        early: list[str] = []
        fetch = "mta/association/sts_fetch.py"
        etcd = {"mta/cluster/etcd.py", "mta/cluster/renewal.py"}
        """Loaded by their dotted name alone, when the configuration says `resource: etcd`."""
        gateway = {"mta.cluster.etcd", "mta.cluster.renewal", "mta.cluster.gateway"}
        for path, text in sources().items():
            is_package = path.endswith("__init__.py")
            for imported in imports(ast.parse(text), module_of(path), is_package):
                if imported.module.startswith("twisted.web"):
                    direct.append(path)
                    if path == fetch and not imported.is_lazy:
                        early.append(path)
                if imported.module.startswith("mta.admin.http") and not imported.is_lazy:
                    early.append(path)
                if imported.module in gateway and path not in etcd:
                    early.append(path)
        self.assertEqual({"mta/admin/http.py", "mta/cluster/gateway.py", fetch}, set(direct))
        self.assertEqual([], early)


class Numbers(SynchronousTestCase):
    def test_all_kinds(self) -> None:
        """Counters, gauges and histograms with their labels, and the build."""
        telemetry = Telemetry()
        telemetry.counter("mta_deliveries_total", "Outcomes.", connector="hub", result="sent").inc(
            2
        )
        telemetry.counter("mta_deliveries_total", connector="hub", result="deferred").inc()
        telemetry.gauge("mta_cluster_epoch", "Epoch.").set(3)
        telemetry.gauge("mta_queue_oldest_seconds").read = lambda: 12.5
        histogram = telemetry.histogram("mta_spool_commit_seconds", "Commits.", (0.1, 1.0))
        for value in (0.05, 0.5, 5.0):
            histogram.observe(value)
        page = Exposition(telemetry, "0.1", "node").page().decode()
        for line in (
            'mta_build_info{node="node",version="0.1"} 1.0',
            "# TYPE mta_deliveries_total counter",
            "# HELP mta_deliveries_total Outcomes.",
            'mta_deliveries_total{connector="hub",result="sent"} 2.0',
            'mta_deliveries_total{connector="hub",result="deferred"} 1.0',
            "mta_cluster_epoch 3.0",
            "mta_queue_oldest_seconds 12.5",
            'mta_spool_commit_seconds_bucket{le="0.1"} 1.0',
            'mta_spool_commit_seconds_bucket{le="1"} 2.0',
            'mta_spool_commit_seconds_bucket{le="+Inf"} 3.0',
            "mta_spool_commit_seconds_count 3.0",
            "mta_spool_commit_seconds_sum 5.55",
        ):
            self.assertIn(line + "\n", page)
        self.assertIn("process_resident_memory_bytes", page)

    def test_foreign_labels(self) -> None:
        """A label that a peer wrote cannot begin a line or close its quotes."""
        telemetry = Telemetry()
        telemetry.counter("mta_x_total", domain='a"} 1\nmta_up 0\x1b[2J').inc()
        page = Exposition(telemetry, "0.1", "node", process=False).page().decode()
        self.assertIn('mta_x_total{domain="a\\"} 1\\\\x0amta_up 0\\\\x1b[2J"} 1.0\n', page)
        self.assertNotIn("\nmta_up", page)

    def test_one_bad_gauge(self) -> None:
        """A gauge that cannot be read is left out; the page goes on."""
        telemetry = Telemetry()
        telemetry.gauge("mta_bad").read = lambda: 1 / 0
        telemetry.gauge("mta_good").set(1)
        page = Exposition(telemetry, "0.1", "node", process=False).page().decode()
        self.assertIn("\nmta_good 1.0\n", page)
        self.assertNotIn("\nmta_bad", page)


class Spooled:
    """A spool's numbers."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_owned = True

    def __call__(self) -> Spooled:
        if not self.is_owned:
            raise ClusterNotInitialised("standby")
        return self

    def stats(self) -> SpoolStats:
        self.asked += 1
        return SpoolStats(5, 2, 5000, VirtualClock().wall() - 60, 10**9, 10**6)

    def in_doubt(self) -> tuple[Doubt, ...]:
        return (Doubt("outbound", "Q", "hub/1", "192.0.2.20", (0,), 1),)


class QueueNumbers(SynchronousTestCase):
    def test_the_queue(self) -> None:
        """Messages waiting and held, the oldest one's age, room, doubt: from one look."""
        telemetry, clock, spool = Telemetry(), VirtualClock(), Spooled()
        QueueGauges(telemetry, clock, spool)
        page = Exposition(telemetry, "0.1", "node", process=False).page().decode()
        for line in (
            'mta_queue_messages{state="waiting"} 3.0',
            'mta_queue_messages{state="held"} 2.0',
            "mta_queue_octets 5000.0",
            "mta_queue_oldest_seconds 60.0",
            "mta_spool_free_octets 1e+09",
            'mta_in_doubt_messages{side="outbound"} 1.0',
            'mta_in_doubt_messages{side="inbound"} 0.0',
        ):
            self.assertIn(line + "\n", page)
        self.assertEqual(1, spool.asked)

    def test_standby(self) -> None:
        """A standby node shows no queue, rather than an empty one."""
        telemetry, spool = Telemetry(), Spooled()
        QueueGauges(telemetry, VirtualClock(), spool)
        spool.is_owned = False
        page = Exposition(telemetry, "0.1", "node", process=False).page().decode()
        self.assertNotIn("\nmta_queue_messages", page)


class Systemd(SynchronousTestCase):
    """sd_notify: what systemd hears, and that its absence disturbs nobody."""

    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.sent: list[bytes] = []
        self.fault: OSError | None = None

    def notifier(self, **environment: str) -> Notifier:
        test = self

        class Socket:
            def __init__(self, path: str) -> None:
                self.path = path

            def send(self, octets: bytes) -> None:
                if test.fault is not None:
                    raise test.fault
                test.sent.append(octets)

            def close(self) -> None:
                self.path = ""

        return Notifier(environment, self.clock, pid=42, open_socket=Socket)

    def test_states(self) -> None:
        """READY, STATUS and STOPPING, each with one line of status."""
        notifier = self.notifier(NOTIFY_SOCKET="/run/systemd/notify")
        notifier.ready("standby")
        notifier.status("online\nREADY=0")
        notifier.stopping()
        self.assertEqual(
            [
                b"READY=1\nSTATUS=standby",
                b"STATUS=online\\x0aREADY=0",
                b"STOPPING=1\nSTATUS=draining",
            ],
            self.sent,
        )

    def test_watchdog(self) -> None:
        """Twice in each WatchdogSec the reactor says that it turns, until the end."""
        notifier = self.notifier(NOTIFY_SOCKET="@x", WATCHDOG_USEC="30000000", WATCHDOG_PID="42")
        notifier.start_watchdog()
        self.clock.advance(14.9)
        self.assertEqual([b"WATCHDOG=1"], self.sent)
        self.clock.advance(0.1)
        self.clock.advance(15)
        self.assertEqual([b"WATCHDOG=1"] * 3, self.sent)
        notifier.stop()
        self.clock.advance(100)
        self.assertEqual(3, len(self.sent))

    def test_without_systemd(self) -> None:
        """Not run by systemd, or with a deaf one, nothing happens."""
        notifier = self.notifier()
        notifier.ready("x")
        notifier.start_watchdog()
        self.assertEqual([], self.clock.reactor.getDelayedCalls())
        other = self.notifier(NOTIFY_SOCKET="/x", WATCHDOG_USEC="30000000", WATCHDOG_PID="41")
        other.start_watchdog()
        self.assertEqual([], self.sent)
        self.fault = BlockingIOError(11, "busy")
        other.ready("x")

    def test_a_datagram_arrives(self) -> None:
        """The real socket reaches a receiver, finds a restarted one, and says when there is none."""
        path = self.mktemp()
        sender = UnixDatagram(path)
        self.assertRaises(FileNotFoundError, sender.send, b"x")
        for octets in (b"one", b"two"):
            receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            receiver.bind(path)
            sender.send(octets)
            self.assertEqual(octets, receiver.recv(100))
            receiver.close()
            os.unlink(path)
        sender.close()
