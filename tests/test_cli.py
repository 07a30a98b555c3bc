"""mta and mailq: what they ask, what they print, and the codes they end with."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.admin.probe import LEVELS, Probed
from mta.cli import client, mailq, main, output, send, smtp
from mta.cli.client import Daemon, Place, find
from mta.model import Bridgehead, Candidate, Doubt, Route, queue_id
from tests.test_admin_control import House, entry

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


STATUS: dict[str, Any] = {
    "network_name": "bridgehead.example.org",
    "role": "owner",
    "state": "online",
    "since_at": 1_795_420_800.0,
    "seconds_in_state": 3.0,
    "why": "online",
    "takeover": {"verdict": "owner"},
    "authority": {
        "resource": "etcd",
        "text": "",
        "fencing": "none",
        "health": "",
        "lease_seconds_left": 3.21,
    },
    "addresses": [],
    "last_takeover": None,
    "wrong_source": {"in": 0, "out": 0},
}


class Run:
    """What a program did: exit code, output, and the requests that the daemon saw."""

    def __init__(self, code: int, out: str, err: str, requests: list[dict[str, Any]]) -> None:
        self.code, self.out, self.err, self.requests = code, out, err, requests

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class CommandTestCase(SynchronousTestCase):
    """The programs against the real commands; the answers lie ready in a socket pair."""

    def run_with(
        self,
        house: House,
        asked: list[tuple[str, dict[str, Any]]],
        *words: str,
        program: Any = main.main,
    ) -> Run:
        near, far = socket.socketpair()
        for command, arguments in asked:
            connection = house.connect()
            connection.say(command, **arguments)
            for _ in range(20):
                house.clock.advance(0)
            far.sendall(connection.transport.value())
        self.patch(client, "connect_unix", lambda place: near)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = program(list(words), {})
        near.close()
        far.settimeout(1)
        octets = b""
        while piece := far.recv(65536):
            octets += piece
        far.close()
        requests = [json.loads(line) for line in octets.splitlines()]
        self.assertEqual([{"command": c, "arguments": a} for c, a in asked], requests)
        return Run(code, out.getvalue(), err.getvalue(), requests)


class Commanding(CommandTestCase):
    def test_status(self) -> None:
        """mta status is readable, --json is the facts; both before or after the command."""
        house = House()
        house.status |= STATUS
        shown = self.run_with(house, [("status", {})], "status")
        self.assertEqual(0, shown.code)
        self.assertEqual("owner of bridgehead.example.org", shown.lines[0].partition(" since ")[0])
        self.assertIn("by domain:", shown.out)
        for words in (("status", "--json"), ("--json", "status")):
            facts = json.loads(self.run_with(house, [("status", {})], *words).out)
            self.assertEqual(3, facts["epoch"])

    def test_another_version(self) -> None:
        """A daemon that says something else than this command knows is named as such."""
        run = self.run_with(House(), [("status", {})], "status")
        self.assertEqual(os.EX_PROTOCOL, run.code)
        self.assertIn("another version than this command; see --json", run.err)

    def test_queue_list(self) -> None:
        """One line a message with its reason; the filters are passed on."""
        house = House(
            [
                entry(1, reply="451 busy\x1b", to=("x@example.com", "y@example.com")),
                entry(2, sender="", held=True),
            ]
        )
        run = self.run_with(house, [("queue-list", {})], "queue", "list")
        self.assertIn("a@b.example -> x@example.com and 1 more", run.lines[1])
        self.assertIn("(451 busy\\x1b)", run.lines[2])
        self.assertIn("<> -> x@example.com", run.lines[3])
        self.assertEqual("2 messages, 2003 octets", run.lines[-1])
        run = self.run_with(
            house,
            [("queue-list", {"limit": 5, "domain": "nowhere.example", "held": False})],
            "queue",
            "list",
            "--domain",
            "nowhere.example",
            "--not-held",
            "--limit",
            "5",
        )
        self.assertEqual("no messages\n", run.out)

    def test_queue_acts(self) -> None:
        """hold, release, retry and delete say how many; an id that is not queued is exit 66."""
        house = House([entry(1), entry(2)])
        ids = [queue_id(1, 1), "GONE"]
        run = self.run_with(house, [("queue-hold", {"ids": ids})], "queue", "hold", *ids)
        self.assertEqual(
            (os.EX_NOINPUT, "hold: 1 message\n", "mta: GONE is not queued\n"),
            (run.code, run.out, run.err),
        )
        run = self.run_with(house, [("queue-delete", {"all": True})], "queue", "delete", "--all")
        self.assertEqual((0, "delete: 2 messages\n", {}), (run.code, run.out, house.queue.entries))

    def test_ids_from_standard_input(self) -> None:
        """A list of ids can be piped in, in portions that the daemon takes."""
        house = House([entry(1)])
        self.patch(client, "MOST_IDS", 1)
        self.patch(sys.modules["mta.cli.queue"], "MOST_IDS", 1)
        self.patch(sys, "stdin", io.StringIO(f"{queue_id(1, 1)}\nX\n"))
        run = self.run_with(
            house,
            [("queue-retry", {"ids": [queue_id(1, 1)]}), ("queue-retry", {"ids": ["X"]})],
            "queue",
            "retry",
            "-",
        )
        self.assertEqual("retry: 1 message\n", run.out)
        self.patch(sys, "stdin", io.StringIO(""))
        empty = self.run_with(house, [], "queue", "delete", "-")
        self.assertEqual((os.EX_NOINPUT, 1), (empty.code, len(house.queue.entries)))

    def test_nothing_by_accident(self) -> None:
        """mta queue delete without a selector deletes nothing and says what to name."""
        house = House([entry(1)])
        run = self.run_with(house, [("queue-delete", {})], "queue", "delete")
        self.assertEqual((os.EX_USAGE, ""), (run.code, run.out))
        self.assertIn("say --all", run.err)

    def test_queue_show(self) -> None:
        """One message in full, for people."""
        run = self.run_with(
            House([entry(1, reply="451 later")]),
            [("queue-show", {"id": queue_id(1, 1), "headers": True})],
            "queue",
            "show",
            queue_id(1, 1),
            "--headers",
        )
        self.assertIn("  x@example.com: pending", run.lines)
        self.assertIn("    451 later", run.lines)
        self.assertIn("  Subject: \\x1b[2Jhi", run.lines)

    def test_queue_show_in_doubt(self) -> None:
        """A message that may have been delivered already says so, and what will be done."""
        house = House([entry(1)])
        house.queue.doubts = (Doubt("outbound", queue_id(1, 1), "smtp/out/3", "h:25", (0,), 2),)
        run = self.run_with(
            house, [("queue-show", {"id": queue_id(1, 1)})], "queue", "show", queue_id(1, 1)
        )
        self.assertIn(
            "in doubt (outbound): by smtp/out/3 of epoch 2, peer h:25; resend last, to h:25 first",
            run.lines,
        )

    def test_in_doubt(self) -> None:
        """The in-doubt list is a table, or says that it is empty."""
        house = House()
        self.assertEqual(
            "nothing is in doubt\n",
            self.run_with(house, [("queue-in-doubt", {})], "queue", "in-doubt").out,
        )
        house.queue.doubts = (Doubt("inbound", "Q1", "smtp/in/3", "192.0.2.1", (0, 1), 2),)
        run = self.run_with(house, [("queue-in-doubt", {})], "queue", "in-doubt")
        self.assertRegex(
            run.lines[1], r"^inbound +Q1 +smtp/in/3 +192.0.2.1 +2 +- +its client may send it again$"
        )
        house.queue.doubts = (
            Doubt("inbound", "Q1", "smtp/in/3", "192.0.2.5:4711", (), 2, client="198.51.100.77"),
        )
        run = self.run_with(house, [("queue-in-doubt", {})], "queue", "in-doubt")
        self.assertIn(" 198.51.100.77 via 192.0.2.5:4711 ", run.lines[1])

    def test_route_explain(self) -> None:
        """A table of every candidate with the reason why it lost; exit 68 when none takes it."""
        house = House()
        house.routing.answer = Route(
            "hub",
            "hub",
            (Bridgehead("192.0.2.20"),),
            10,
            "the lowest cost",
            candidates=(
                Candidate("hub", b"*", 10, True, "chosen"),
                Candidate("net", b"*", 50, True, "cost 50 is higher"),
            ),
        )
        house.routing.terms = ("tls: require (tls-exceptions y.example)",)
        run = self.run_with(
            house,
            [("route-explain", {"address": "x@y.example"})],
            "route",
            "explain",
            "x@y.example",
        )
        self.assertRegex(run.lines[2], r"^net +\* +50 +yes +cost 50 is higher$")
        self.assertEqual("x@y.example: hub to 192.0.2.20:25: the lowest cost", run.lines[3])
        self.assertEqual("tls: require (tls-exceptions y.example)", run.lines[4])
        house = House()
        run = self.run_with(
            house,
            [("route-explain", {"address": "x@y.example"})],
            "route",
            "explain",
            "x@y.example",
        )
        self.assertEqual(
            (os.EX_NOHOST, "x@y.example: no route (550 5.1.2): nobody takes it\n"),
            (run.code, run.out),
        )

    def test_probe(self) -> None:
        """mta probe ends with 0 when mail is served here, 69 when it should be and is not, 75 when
        this node is not the owner: made for cluster scripts. Every level has its word.
        """
        found = (("ok", 0), ("degraded", 0), ("failed", 69), ("failed", 75), ("away", 75))
        for level in LEVELS:
            for health, code in found:
                house = House()
                house.health.callback(Probed(health, "so it is", code))
                words = "probe", "--level", str(level)
                run = self.run_with(house, [("probe", {"level": level})], *words)
                self.assertEqual((code, f"{health}: so it is\n"), (run.code, run.out))

    def test_accept_clock(self) -> None:
        """mta cluster accept-clock says whether there was anything to accept."""
        asked = [("cluster-accept-clock", {})]
        house = House()
        run = self.run_with(house, asked, "cluster", "accept-clock")
        self.assertEqual((0, "the clock is accepted\n"), (run.code, run.out))
        run = self.run_with(house, asked, "cluster", "accept-clock")
        self.assertEqual((0, "the clock was not suspect\n"), (run.code, run.out))

    def test_mailq(self) -> None:
        """mailq prints what scripts around Postfix read: heading, marks, reasons, the sum."""
        house = House(
            [
                replace(entry(1, active=True), size_octets=1500),
                entry(2, held=True, sender=""),
                entry(3, reply="451 busy", attempts=1),
            ]
        )
        run = self.run_with(house, [("queue-list", {})], program=mailq.main)
        self.assertEqual(
            "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------", run.lines[0]
        )
        self.assertRegex(
            run.lines[1], r"^[0-9A-F]+\* +1500 \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d a@b\.example$"
        )
        self.assertRegex(run.lines[2], r"^ {46}x@example\.com$")
        self.assertRegex(run.lines[4], r"^[0-9A-F]+! .* MAILER-DAEMON$")
        self.assertEqual("(451 busy)", run.lines[8].strip())
        self.assertEqual("-- 4 Kbytes in 3 Requests.", run.lines[-1])
        self.assertEqual(
            "Mail queue is empty\n",
            self.run_with(House(), [("queue-list", {})], program=mailq.main).out,
        )
        one = self.run_with(House([entry(1)]), [("queue-list", {})], program=mailq.main)
        self.assertEqual("-- 1 Kbytes in 1 Request.", one.lines[-1])

    def test_mailq_json(self) -> None:
        """mailq -j prints one object a message."""
        run = self.run_with(
            House([entry(1), entry(2)]), [("queue-list", {})], "-j", program=mailq.main
        )
        self.assertEqual(
            [queue_id(1, 1), queue_id(1, 2)], [json.loads(line)["queue_id"] for line in run.lines]
        )

    def test_the_daemons_reason(self) -> None:
        """An error of the daemon is one line, with its exit code."""
        house = House()
        house.standby = True
        run = self.run_with(house, [("queue-list", {})], "queue", "list")
        self.assertEqual(
            (os.EX_TEMPFAIL, "mta: this node is standby: node b has the queue (ask there)\n"),
            (run.code, run.err),
        )

    def test_wrong_calls(self) -> None:
        """A wrong call is exit 64, help is 0."""
        for words, code in (
            (["nonsense"], 64),
            ([], 64),
            (["queue"], 64),
            (["send"], 64),
            (["probe", "--level", "9"], 64),
            (["--help"], 0),
            (["queue", "hold", "--help"], 0),
        ):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                self.assertEqual(code, main.main(words, {}), words)


class Finding(SynchronousTestCase):
    """Which daemon is meant."""

    def test_order(self) -> None:
        """--socket, then --config, then $MTA_SOCKET, then the default path."""
        self.config = self.mktemp()
        self.write("admin: {socket: /c/control.sock}\n")
        environ = {"MTA_SOCKET": "/e/control.sock"}
        self.assertEqual(
            "/s", find("control", given="/s", config=self.config, environ=environ).path
        )
        self.assertEqual(
            "/c/control.sock", find("control", config=self.config, environ=environ).path
        )
        self.assertEqual(Place("/e/control.sock", "$MTA_SOCKET"), find("control", environ=environ))
        self.assertEqual("/e/submit.sock", find("submit", environ=environ).path)

    def write(self, text: str) -> None:
        with open(self.config, "w") as file:
            file.write(text)

    def test_configurations(self) -> None:
        """The socket is found in a configuration however it is written."""
        self.config = self.mktemp()
        for text, control, submit in (
            (
                "admin:\n  socket: /a/c.sock  # here\n  submit-socket: '/a/s.sock'\nlog: {format: json}\n",
                "/a/c.sock",
                "/a/s.sock",
            ),
            (
                'log: {}\nadmin: {submit-socket: "/a/s.sock", socket: "/a/c.sock", http: "127.0.0.1:1"}\n',
                "/a/c.sock",
                "/a/s.sock",
            ),
            ("admin: {\n  socket: /a/c.sock,\n}\n", "/a/c.sock", client.SUBMIT),
            ("# admin: {socket: /no}\nspool: {socket: /no}\n", client.CONTROL, client.SUBMIT),
            (
                "admin:\n  # socket: /no\n\n  submit-socket: /a/s.sock\nspool:\n  socket: /no\n",
                client.CONTROL,
                "/a/s.sock",
            ),
        ):
            self.write(text)
            self.assertEqual(control, find("control", config=self.config, environ={}).path, text)
            self.assertEqual(submit, find("submit", config=self.config, environ={}).path, text)
        self.assertRaises(output.CommandFailed, find, "control", config="/nowhere", environ={})

    def test_a_run_in_this_directory(self) -> None:
        """Last, the sockets of a make run here, if they are ours; and the reason is said."""
        folder = self.mktemp()
        os.makedirs(os.path.join(folder, "var/run"))
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(folder)
        self.patch(client, "CONTROL", "/nowhere/control.sock")
        self.assertEqual("the default path", find("control", environ={}).because)
        with open("var/run/control.sock", "w"):
            pass
        found = find("control", environ={})
        self.assertEqual(
            (os.path.abspath("var/run/control.sock"), "the working directory"),
            (found.path, found.because),
        )
        self.patch(os, "geteuid", lambda: 12345)
        self.assertEqual("the default path", find("control", environ={}).because)

    def test_nobody_there(self) -> None:
        """A daemon that is away is named with its path and what to do, exit 69."""
        with redirect_stderr(io.StringIO()) as err:
            code = main.main(["--socket", "/nowhere/control.sock", "status"], {})
        self.assertEqual(os.EX_UNAVAILABLE, code)
        self.assertIn("no MTA answers at /nowhere/control.sock (from --socket)", err.getvalue())

    def test_a_daemon_that_speaks_nonsense(self) -> None:
        """An answer that is none ends the command with a reason, not with a traceback."""
        for octets, code in (
            (b"", 75),
            (b"{}\n", 76),
            (b"nonsense\n", 76),
            (b'{"item":{}}', 75),
            (b"[]\n", 76),
            (b'{"error":{"what":"x\\u001b","exit_code":"y"}}\n', 70),
        ):
            near, far = socket.socketpair()
            far.sendall(octets)
            far.shutdown(socket.SHUT_WR)
            daemon = Daemon(near, "there")
            failed = self.assertRaises(output.CommandFailed, daemon.ask, "status")
            self.assertEqual(code, failed.exit_code, octets)
            daemon.close()
            far.close()


class Printing(SynchronousTestCase):
    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
            max_leaves=8,
        ),
        st.binary(max_size=30),
    )
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_a_terminal_is_safe(self, value: Any, octets: bytes) -> None:
        """Whatever the facts hold, what is printed holds no control character but line ends."""
        with redirect_stdout(io.StringIO()) as out:
            output.tree({"a": value, "b": [{"c": value}], octets.decode("latin-1"): value})
            output.table(["x", "y"], [[value, octets.decode("latin-1")]])
            output.as_json({"v": octets.decode("latin-1")})
        for line in out.getvalue().split("\n"):
            self.assertTrue(line.isprintable(), repr(line))

    def test_tables(self) -> None:
        """Columns line up, and nothing is said as Python says it."""
        with redirect_stdout(io.StringIO()) as out:
            output.table(["A", "B"], [["long value", None], ["x", [1, True]]])
        self.assertEqual("A           B\nlong value  -\nx           1, yes\n", out.getvalue())

    def test_priority(self) -> None:
        """mta send --priority writes the field that whoever takes the message knows (RFC 6758)."""
        field = b"\nMT-Priority: -4\n"
        self.assertIn(field, send.text(["a@b.example"], None, "s", "x", -4))
        self.assertNotIn(b"MT-Priority", send.text(["a@b.example"], None, "s", "x"))

    def test_the_story_of_a_message(self) -> None:
        """mta send says where each copy lies or what keeps it."""
        receipt = smtp.Receipt("Q1", "250 2.0.0 Ok: queued as Q1")
        self.assertEqual(["queued: 250 2.0.0 Ok: queued as Q1"], send.story(receipt, []))
        events = [
            {"event": "accepted"},
            {
                "event": "transferred",
                "recipient": "a@b",
                "connector": "local",
                "status": "sent",
                "reply": "250 2.0.0 delivered to /m/new/x",
            },
            {
                "event": "transferred",
                "recipient": "c@d",
                "connector": "hub",
                "status": "deferred",
                "reply": "451 busy",
                "retry_in_seconds": 300.0,
            },
            {
                "event": "transferred",
                "recipient": "e@f",
                "connector": "hub",
                "status": "bounced",
                "reply": "550 no",
            },
        ]
        self.assertEqual(
            [
                "sent: Q1 to <a@b> by connector local: 250 2.0.0 delivered to /m/new/x",
                "queued: Q1 to <c@d> is deferred: 451 busy; tried again in 300 s",
                "bounced: Q1 to <e@f>: 550 no",
            ],
            send.story(receipt, events),
        )


class Starting(SynchronousTestCase):
    def test_the_programs_import_little(self) -> None:
        """mta, mailq and sendmail start without Twisted, pydantic or zope: in hundredths of a second."""
        code = (
            "import sys, mta.cli.main, mta.cli.mailq, mta.cli.sendmail, mta.cli.send\n"
            "heavy = ('twisted', 'pydantic', 'zope', 'yaml', 'email', 'asyncio', 'ssl')\n"
            "ours = [m for m in sys.modules if m.startswith('mta.') and m[:7] != 'mta.cli']\n"
            "print(ours + [m for m in sys.modules if m.split('.')[0] in heavy])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        self.assertEqual("[]\n", done.stdout)
