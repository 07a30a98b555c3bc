"""What people and programs of this node say: configurations, and commands on the control socket."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport

from mta.admin.commands import Commands, Facts
from mta.admin.control import ControlServer
from mta.admin.lines import JSONLines, PostfixLines
from mta.admin.peer import Credentials
from mta.admin.probe import Probed
from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.config.names import mailbox
from mta.config.schema import Config
from mta.errors import ClusterNotInitialised
from mta.model import fresh_state
from mta.plugins.find import Catalogue
from mta.spool.memory import MemorySpool, MemorySpoolSettings
from mta.telemetry import Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Target, either, ensure
from mta.testing.fuzz.trees import other_values
from mta.testing.spool_suite import claim, envelope


class ConfigText(Target):
    """Any text is a configuration, or mistakes, each on a printable line with a place in the text
    that is there. Nothing else is raised.
    """

    name = "config"
    spices = (
        *(
            b"\n",
            b" ",
            b": ",
            b"- ",
            b"[",
            b"]",
            b"{",
            b"}",
            b"'",
            b'"',
            b"#",
            b"\t",
            b"|",
            b">",
            b"&a ",
        ),
        *(
            b"*a",
            b"!!",
            b"!x ",
            b"%YAML 9.9\n",
            b"---\n",
            b"...\n",
            b"? ",
            b"<<: ",
            b"~",
            b"\\ud800",
        ),
        *(
            b'"\\UFFFFFFFF"',
            b"\xff",
            "é".encode(),
            "\u2028".encode(),
            "\u0661".encode(),
            b"\0",
            b"@",
        ),
        *(
            b"9" * 30,
            b"-1",
            b"5d",
            b"1e9999",
            b"10M",
            b"::1",
            b"[" * 40,
            b"tls: dane\n",
            b"\r",
            b"%",
        ),
        *(
            b"plain: {",
            b"192.0.2.0/33",
            b"*.",
            b"nan",
            b"inf",
            b"\xef\xbb\xbf",
            b"\x85",
            b"/etc/passwd",
        ),
    )

    def __init__(self, seeds: Any) -> None:
        super().__init__(seeds)
        self._find = Catalogue().find

    def hold(self, rng: Random, number: int) -> None:
        text = self.octets(rng).decode("utf-8", rng.choice(("replace", "surrogateescape")))
        found = either(lambda: load(text, "mta.yaml", self._find), ConfigErrors)
        if not isinstance(found, ConfigErrors):
            ensure(isinstance(found, Config), "neither a configuration nor mistakes")
            return
        ensure(found.mistakes, "mistakes that are none")
        lines = len(text.splitlines()) + 2
        for mistake in found.mistakes:
            ensure(1 <= mistake.line <= lines and mistake.column >= 1, f"no such place: {mistake}")
            ensure(str(mistake).isprintable(), "a mistake that cannot be printed")


_COMMANDS = (
    b'{"command":"%b","arguments":{}}\n' % name for name in (b"status", b"queue-list", b"trace")
)


class Control(Target):
    """Each line on the control socket has one answer in one line of printable ASCII, and so has the
    log; how lines are cut changes nothing that is answered, and too long a one ends the connection.
    """

    name = "control"
    spices = (
        *_COMMANDS,
        *(
            b"\n",
            b"{",
            b"}",
            b'"',
            b"[" * 1000,
            b"null",
            b"true",
            b"1e999",
            b"9" * 5000,
            b'"\\ud800"',
        ),
        *(
            b'"\\u001b[2J"',
            b"\xff",
            b'"id":',
            b'"domain":',
            b"-1",
            b'"*"',
            "\u202e".encode(),
            b"x" * 70_000,
        ),
        *(b'"a":%b%b' % (b"[" * n, b"]" * n) for n in (400, 700, 900, 960, 980)),
    )

    def __init__(self, seeds: Any) -> None:
        super().__init__(seeds)
        self._clock = VirtualClock()

    def hold(self, rng: Random, number: int) -> None:
        said = self.octets(rng, 100_000)
        if rng.random() < 0.5:
            line = rng.choice(self.seeds).splitlines()[0]
            said = other_values(rng, line) + b"\n" + said
        if rng.random() < 0.8 and not said.endswith(b"\n"):
            said += b"\n"
        server, lines = self._server()
        protocol: Any = server.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        for piece in pieces_of(rng, said):
            protocol.dataReceived(piece)
            if not protocol._is_open:
                break
            transport.producerState = "producing"
        for _ in range(20):
            self._clock.advance(1.0)
        answers = transport.value().split(b"\n")
        ensure(answers.pop() == b"", "an answer without its end")
        ended = 0
        for answer in answers:
            ensure(answer.isascii() and answer.decode().isprintable(), f"an answer is {answer!r}")
            told = json.loads(answer)
            ensure(len(told) == 1 and set(told) <= {"item", "done", "error"}, f"no answer: {told}")
            ended += "item" not in told
        ensure(ended <= said.count(b"\n") + 1, "more answers than commands")
        server.stop()
        for said_of_it in lines:
            ensure(said_of_it.isprintable(), f"a line of the log is {said_of_it!r}")
            said_of_it.encode()

    def _server(self) -> tuple[ControlServer, list[str]]:
        clock, telemetry = self._clock, Telemetry()
        lines: list[str] = []
        shapes = (PostfixLines("mta", "host", 1), JSONLines("mta", "host", 1))

        def write(event: object) -> None:
            for shape in shapes:
                lines.extend(shape.lines(clock.wall(), 1, event))

        telemetry.attach(write)
        surroundings: Any = SimpleNamespace(clock=clock, telemetry=telemetry)
        spool = MemorySpool(MemorySpoolSettings(), surroundings)
        spool.publish(claim(), 0)
        spool.recover()
        spool.seal()
        for _ in range(3):
            staging = spool.stage("smtp/in/1")
            staging.write(b"Subject: x\r\n\r\nbody\r\n")
            message = envelope()
            staging.commit(message, fresh_state(message), b"", None)
        healthy: Deferred[Probed] = Deferred()
        facts = Facts(
            status=lambda: {"role": "online", "epoch": 1},
            spool=lambda: spool,
            routing=_nobody,
            terms=lambda route: (),
            parse_address=lambda octets: mailbox(octets.decode("utf-8", "replace")),
            retry_now=lambda ids: None,
            pump=lambda: None,
            forget=lambda ids: None,
            probe=lambda level, standby: healthy,
            accept_clock=lambda: False,
        )
        commands = Commands(facts, clock, telemetry)
        root = Credentials(9, 0, 0)
        return ControlServer(
            commands, telemetry, clock, own_uid=0, who=lambda t: root, group_id=lambda name: 77
        ), lines


def _nobody() -> NoReturn:
    raise ClusterNotInitialised("this node is standby", "another has the queue", "ask there")
