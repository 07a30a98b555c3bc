"""The audit net: a socket that does not pass the doors is seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from mta.association.endpoints import Doors
from mta.telemetry import Telemetry
from mta.testing.audit import install, install_from
from mta.testing.clock import VirtualClock
from mta.testing.surroundings import virtual_addresses

LOOPBACK = virtual_addresses("127.0.0.1")[0]


class TheNet(SynchronousTestCase):
    def setUp(self) -> None:
        self.audit = install()
        self.addCleanup(self.audit.stop)

    def datagram(self, family: int = socket.AF_INET) -> socket.socket:
        """A datagram socket: connecting it sends nothing."""
        made = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        return made

    def test_bare_connect(self) -> None:
        """A bare socket.connect is recorded with its address and its place in the source."""
        self.datagram().connect(("127.0.0.1", 9))
        (line,) = self.audit
        self.assertTrue(line.startswith("socket.connect ('127.0.0.1', 9): "), line)
        self.assertIn("test_audit.py:", line)

    def test_bare_bind(self) -> None:
        """A bare bind is recorded too, IPv6 as well."""
        self.datagram().bind(("127.0.0.1", 0))
        self.datagram(socket.AF_INET6).connect(("::1", 9))
        self.assertEqual(
            [line.split(" ")[0] for line in self.audit], ["socket.bind", "socket.connect"]
        )

    def test_swallowed(self) -> None:
        """A connect whose error nobody looks at is recorded all the same."""
        try:
            self.datagram().connect(("240.0.0.1", 9))
        except OSError:
            pass
        self.assertEqual(len(self.audit), 1)

    def test_doors(self) -> None:
        """What passes the doors is not recorded."""
        Doors(None, VirtualClock(), Telemetry()).try_bind(LOOPBACK)
        self.assertEqual(self.audit, [])

    def test_other_families(self) -> None:
        """UNIX sockets are no associations with the network."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        with self.assertRaises(OSError):
            made.connect("/nowhere/at/all")
        self.assertEqual(self.audit, [])

    def test_file(self) -> None:
        """In a process of the rig breaches are written to the file that the environment names."""
        handle, path = tempfile.mkstemp()
        os.close(handle)
        self.addCleanup(os.unlink, path)
        code = (
            "import os, socket\n"
            "from mta.testing.audit import install_from\n"
            "install_from(os.environ)\n"
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        )
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MTA_AUDIT_SOCKETS": path},
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            check=True,
        )
        with open(path) as record:
            (line,) = record.read().splitlines()
        self.assertIn("socket.connect ('127.0.0.1', 9)", line)
        self.assertIsNone(install_from({}))
