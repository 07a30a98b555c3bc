"""What a start refuses before anything runs, in words that an operator can act upon."""

from __future__ import annotations

import enum
import gc
import os
import weakref
from contextlib import redirect_stderr
from io import StringIO
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from mta import process
from mta.admin.sinks import deaf_syslog
from mta.association.smtp_settings import SmtpListenerSettings
from mta.config.generate import default_text
from mta.config.load import load
from mta.errors import StartRefused
from mta.model import EnvelopeKind, OutcomeKind, Requires
from mta.plugins.find import Catalogue
from mta.process import refuse_privileged_ports, refuse_unwritable, why_not_anew
from mta.service import MTAService, _differs, _merged
from mta.tap import Options, makeService, tune_enums
from mta.telemetry import Telemetry, Transition
from mta.testing.clock import VirtualClock
from mta.wire.smtp.states import State


class Enumerations(SynchronousTestCase):
    def test_plain_attributes(self) -> None:
        """Members of every kind are there as before, what is none is refused as before, and with
        members as plain attributes a second time changes nothing.
        """
        meta = enum.EnumType
        if "__getattr__" in vars(meta):
            self.addCleanup(setattr, meta, "__getattr__", vars(meta)["__getattr__"])
        tune_enums()
        tune_enums()
        self.assertNotIn("__getattr__", vars(meta))
        for kind in (State, Requires, EnvelopeKind, OutcomeKind):
            for name, member in kind.__members__.items():
                self.assertIs(getattr(kind, name), member)
        with self.assertRaises(AttributeError):
            _ = State.NO_SUCH  # type: ignore[attr-defined]

        class Coloured(enum.Enum):
            name_of = "a member"
            value = "one whose name is a property's"  # type: ignore[assignment]

        self.assertEqual(Coloured.name_of.name, "name_of")
        self.assertIs(Coloured.value, Coloured["value"])


class UnwritablePlaces(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = self.mktemp()
        os.makedirs(self.place)

    def refused(self, path: str, **others: bool) -> StartRefused:
        def refuse() -> None:
            refuse_unwritable(path, "the log", "name another file", uid=None, **others)

        return self.assertRaises(StartRefused, refuse)

    def test_missing_directory(self) -> None:
        """A log below a directory that is not there is refused with 73, with the way out."""
        error = self.refused(f"{self.place}/no/mta.log")
        self.assertEqual(error.exit_code, os.EX_CANTCREAT)
        self.assertIn("cannot be written by uid", str(error))
        self.assertIn("No such file or directory (name another file)", str(error))

    def test_directory_in_its_place(self) -> None:
        """A log that is a directory is refused."""
        self.assertIn("Is a directory", str(self.refused(self.place)))

    def test_file_above_it(self) -> None:
        """A socket whose directory is a file is refused, however far above."""
        with open(f"{self.place}/file", "wb"):
            pass
        path = f"{self.place}/file/run/control.sock"
        self.assertIn("Not a directory", str(self.refused(path, makes_directories=True)))

    def test_what_can_be_made(self) -> None:
        """A new file, an existing one, directories that will be made, and a device are welcome."""
        refuse_unwritable(f"{self.place}/mta.log", "the log", "", uid=None)
        refuse_unwritable("/dev/null", "the log", "", uid=None)
        path = f"{self.place}/a/b/control.sock"
        refuse_unwritable(path, "the socket", "", uid=None, makes_directories=True)

    def test_somebody_else(self) -> None:
        """What another user may write is not guessed."""
        refuse_unwritable(f"{self.place}/no/mta.log", "the log", "", uid=os.geteuid() + 1)


class PrivilegedPorts(SynchronousTestCase):
    def stand(self, uid: int, capable: bool) -> None:
        self.patch(process, "_first_unprivileged_port", lambda: 1024)
        self.patch(process, "_has_capability", lambda bit: capable)
        self.patch(os, "geteuid", lambda: uid)

    def test_without_the_capability(self) -> None:
        """A port that could not be bound at the takeover is refused at the start with 77; of root
        too, who may be without the capability in a container.
        """
        for uid in (500, 0):
            self.stand(uid, capable=False)
            error = self.assertRaises(StartRefused, refuse_privileged_ports, [2525, 25], None)
            self.assertEqual(os.EX_NOPERM, error.exit_code)
            self.assertIn(f"port 25 cannot be bound by uid {uid}", str(error))
            refuse_privileged_ports([2525], None)

    def test_with_it(self) -> None:
        """Whoever has the capability may, unless twistd changes to another user, who has not."""
        for uid in (500, 0):
            self.stand(uid, capable=True)
            refuse_privileged_ports([25], None)
            refuse_privileged_ports([25], uid)
            self.assertRaises(StartRefused, refuse_privileged_ports, [25], 501)


class LogsThatNobodyHears(SynchronousTestCase):
    def test_no_syslog(self) -> None:
        """A daemon whose log would go to a syslog that is not there says so on the terminal."""
        missing = self.mktemp()
        self.assertIn("is missing", deaf_syslog("auto", is_daemon=True, path=missing))
        self.assertIn("is missing", deaf_syslog("syslog", is_daemon=False, path=missing))

    def test_somebody_hears(self) -> None:
        """A terminal, a file and a syslog that is there need no warning."""
        missing = self.mktemp()
        self.assertEqual(deaf_syslog("auto", is_daemon=False, path=missing), "")
        self.assertEqual(deaf_syslog("/var/log/mta", is_daemon=True, path=missing), "")
        self.assertEqual(deaf_syslog("auto", is_daemon=True, path="/dev/null"), "")


class BeginningAnew(SynchronousTestCase):
    def why_not(self, **facts: object) -> str:
        usual: dict[str, object] = {
            "is_daemon": False,
            "changes_uid": False,
            "is_supervised": False,
            "stuck_seconds": 0.0,
            "ran_seconds": 60.0,
        }
        return why_not_anew(**(usual | facts))  # type: ignore[arg-type]

    def test_a_lost_tenure(self) -> None:
        """A process in the foreground that lost its tenure becomes a standby by itself."""
        self.assertEqual(self.why_not(), "")

    def test_hindrances(self) -> None:
        """It ends instead where it could not, or where somebody has to see it end."""
        for facts, word in (
            ({"is_daemon": True}, "daemon"),
            ({"changes_uid": True}, "--uid"),
            ({"is_supervised": True}, "manager"),
            ({"stuck_seconds": 0.1}, "disk"),
            ({"ran_seconds": 0.9}, "just begun"),
        ):
            self.assertIn(word, self.why_not(**facts))


class Circle:
    """Knows itself, as the parts of a tenure know each other."""

    def __init__(self) -> None:
        self.me = self


class WhatATenureLeaves(SynchronousTestCase):
    def service(self) -> tuple[MTAService, VirtualClock]:
        clock = VirtualClock()
        service = MTAService.__new__(MTAService)
        service.clock = clock
        service.ownership = SimpleNamespace(epoch=7)
        service._log = SimpleNamespace(epoch=0)
        service._file = "mta.yaml"
        service._tell_systemd = lambda: None
        readiness = SimpleNamespace(look_soon=lambda: None)
        service.overview = SimpleNamespace(readiness=readiness)
        return service, clock

    def test_it_is_given_back_when_the_tenure_ends(self) -> None:
        """A node that owns again and again does not grow: what a tenure leaves goes in the turn
        after its end, however seldom the collector comes by itself; an owner is not disturbed.
        """
        gc.disable()
        self.addCleanup(gc.enable)
        service, clock = self.service()
        for after, stays in (("STANDBY", False), ("SUSPENDED", False), ("ONLINE", True)):
            gc.collect()
            left = weakref.ref(Circle())
            service._on_event(Transition("ownership", "", "", after, ""))
            self.assertIsNotNone(left(), f"{after}: it went within the turn")
            clock.advance(0)
            self.assertIs(left() is not None, stays, after)


class FirstRun(SynchronousTestCase):
    def test_ports_that_are_none(self) -> None:
        """`make run PORT=0` is refused with 64; it never becomes another port in silence."""
        for port in ("0", "-1", "65536", "abc", "", "\u0662525"):
            options = Options()
            options.parseOptions([f"--port={port}", f"--directory={self.mktemp()}"])
            said = StringIO()
            with redirect_stderr(said):
                end = self.assertRaises(SystemExit, makeService, options)
            self.assertEqual(end.code, os.EX_USAGE, port)
            self.assertIn("is not a port: 1 to 65535", said.getvalue())


class Block:
    name = "smtp:25"
    factory = None

    def __init__(self, **settings: object) -> None:
        self.settings = SmtpListenerSettings(**settings)


class ReloadedListeners(SynchronousTestCase):
    def test_relay_from(self) -> None:
        """Only what a reload cannot apply is reported as waiting for a restart."""
        was = (Block(relay_from=["127.0.0.1"]),)
        self.assertFalse(_differs(was, (Block(relay_from=["10.0.0.0/8"]),)))
        self.assertTrue(_differs(was, (Block(relay_from=["127.0.0.1"], port=26),)))

    def test_what_stays(self) -> None:
        """A reload takes over routing and relay-from; ports, addresses and the spool stay, so that
        a listener that runs goes on admitting its clients.
        """
        text = default_text("/var/tmp/mta-test", 2525)
        old = load(text, "old", Catalogue().find)
        changed = text.replace("port: 2525", "port: 2526").replace(
            '{domain: "*"}', '{domain: "*", cost: 60}'
        )
        new = load(
            changed.replace("/var/tmp/mta-test/spool", "/elsewhere"), "new", Catalogue().find
        )
        merged = _merged(old, new)
        self.assertEqual(merged.listeners, old.listeners)
        self.assertEqual(merged.spool.settings, old.spool.settings)
        self.assertEqual(merged.digest, new.digest)
        self.assertEqual(merged.connectors, new.connectors)

    def test_relay_from_is_taken_over(self) -> None:
        """The networks that may relay change under a listener that is open."""
        text = default_text("/var/tmp/mta-test", 2525)
        old = load(text, "old", Catalogue().find)
        new = load(
            text.replace("port: 2525", "port: 2525, relay-from: [10.0.0.0/8]"),
            "new",
            Catalogue().find,
        )
        (block,) = _merged(old, new).listeners
        self.assertEqual([str(n) for n in block.settings.relay_from], ["10.0.0.0/8"])
        self.assertEqual(block.settings.port, 2525)


class StartOfADaemon(SynchronousTestCase):
    def test_refused_after_the_fork(self) -> None:
        """A daemon that cannot open a socket says so to its waiting parent, which would else wait
        for ever; the log has it before.
        """
        service = MTAService.__new__(MTAService)
        service.telemetry = Telemetry()
        said: list[str] = []
        service.telemetry.attach(lambda event: said.append(event.text))
        service._log = SimpleNamespace(stop=lambda: said.append("flushed"), trouble="")
        service._is_awaited = True
        error = self.assertRaises(StartRefused, service._fatal, 69, "submit.sock is busy")
        self.assertEqual((error.exit_code, str(error)), (69, "submit.sock is busy"))
        self.assertEqual(said, ["leaving with 69: submit.sock is busy", "flushed"])
