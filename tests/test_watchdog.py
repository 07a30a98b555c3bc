"""What of the watchdog is pure: the shared deadline, its verdict, its words to the kernel.

The program itself, with real processes and addresses, is tried in tests/rig/scenario_etcd.py.
"""

from __future__ import annotations

import ast
import errno
import mmap
import struct
import sys
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster import netlink, watchdog
from mta.cluster.watchdog import (
    MEMORY_OCTETS,
    RTM_DELADDR,
    RTM_NEWADDR,
    Verdict,
    acknowledgement,
    address_request,
    judge,
    read_deadline,
    write_deadline,
)
from mta.testing.kernel import message

NANOSECONDS = st.integers(0, 2**63)


def shared(octets: bytearray) -> mmap.mmap:
    """A memory that is written like one, without a kernel's page."""
    return cast(mmap.mmap, octets)


class DeadlineTests(SynchronousTestCase):
    def test_nothing_yet(self) -> None:
        """Memory that nobody wrote holds no deadline, not one of 0."""
        self.assertIsNone(read_deadline(bytes(MEMORY_OCTETS)))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(NANOSECONDS, min_size=1, max_size=6), st.integers(0, 31), st.booleans())
    def test_torn(self, deadlines: list[int], written: int, from_behind: bool) -> None:
        """Whatever part of a write a reader sees, it reads the new deadline or the former one."""
        memory = bytearray(MEMORY_OCTETS)
        for number, deadline in enumerate(deadlines, 1):
            before = bytes(memory)
            former = read_deadline(before)
            write_deadline(shared(memory), number, deadline)
            after = bytes(memory)
            self.assertEqual(read_deadline(after), deadline)
            at = number % 2 * 32
            cut = at + written
            torn = (
                before[:cut] + after[cut : at + 32] + before[at + 32 :]
                if from_behind
                else before[:at] + after[at:cut] + before[cut:]
            )
            self.assertIn(read_deadline(torn), {former, deadline})

    @settings(max_examples=300, deadline=None)
    @given(st.binary(min_size=MEMORY_OCTETS, max_size=MEMORY_OCTETS))
    def test_any_octets(self, octets: bytes) -> None:
        """Other octets are no deadline."""
        self.assertIsNone(read_deadline(octets))


class VerdictTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Killed is who lives past its deadline, or whose pipe closes under a lease unannounced."""
        for now, deadline, ended, closed, leave, verdict in (
            (10, 0, False, False, False, Verdict.WATCH),
            (10, 11, False, False, False, Verdict.WATCH),
            (10, 10, False, False, False, Verdict.KILL),
            (10, 10, False, True, True, Verdict.KILL),
            (10, 10, True, False, False, Verdict.LEAVE),
            (10, 11, True, True, False, Verdict.LEAVE),
            (10, 11, False, True, False, Verdict.KILL),
            (10, 11, False, True, True, Verdict.LEAVE),
            (10, 0, False, True, False, Verdict.LEAVE),
        ):
            found = judge(now, deadline, has_ended=ended, is_closed=closed, may_leave=leave)
            self.assertIs(found, verdict, (now, deadline, ended, closed, leave))


class NetlinkTests(SynchronousTestCase):
    def read(self, kind: int, address: str) -> netlink.AddressNews:
        """What the kernel would make of our request, by the parser of the other module."""
        octets = address_request(kind, 7, 2, address)
        ((_port, sequence, news),) = netlink.parse(octets)
        self.assertEqual(sequence, 7)
        assert isinstance(news, netlink.AddressNews)
        return news

    def test_requests(self) -> None:
        """An address is added as the whole of its own subnet, IPv6 without duplicate detection."""
        for address, prefix, flags in (("192.0.2.10", 32, 0), ("2001:db8::10", 128, 0x02)):
            for kind in (RTM_NEWADDR, RTM_DELADDR):
                news = self.read(kind, address)
                self.assertEqual((str(news.address), news.ifindex), (address, 2))
                self.assertIs(news.gone, kind == RTM_DELADDR)
            octets = address_request(RTM_NEWADDR, 7, 2, address)
            length, kind, asked = struct.unpack_from("=IHH", octets)
            self.assertEqual((length, kind, asked), (len(octets), RTM_NEWADDR, 0x605))
            self.assertEqual((octets[17], octets[18]), (prefix, flags))
            self.assertEqual(
                struct.unpack_from("=IHH", address_request(RTM_DELADDR, 7, 2, address))[2], 0x5
            )

    def test_not_preferred(self) -> None:
        """An IPv6 address is added so that no program of the node speaks from it by chance."""
        octets = address_request(RTM_NEWADDR, 7, 2, "2001:db8::10")
        self.assertTrue(octets.endswith(struct.pack("=HHIIII", 20, 6, 0, 0xFFFFFFFF, 0, 0)))

    def test_no_address(self) -> None:
        self.assertRaises(OSError, address_request, RTM_NEWADDR, 1, 2, "not an address")

    def test_acknowledgement(self) -> None:
        """The kernel's answer to our request is found among others', with its errno."""
        done = message(watchdog.NLMSG_ERROR, struct.pack("=i", 0) + bytes(16), sequence=3)
        exists = message(
            watchdog.NLMSG_ERROR, struct.pack("=i", -errno.EEXIST) + bytes(16), sequence=4
        )
        self.assertEqual(acknowledgement(done + exists, 4), errno.EEXIST)
        self.assertEqual(acknowledgement(done + exists, 3), 0)
        self.assertIsNone(acknowledgement(done + exists, 5))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=80), st.integers(0, 9))
    def test_any_answer(self, octets: bytes, sequence: int) -> None:
        """Any octets are an errno, or none."""
        self.assertIsInstance(acknowledgement(octets, sequence), int | None)

    def test_no_interface(self) -> None:
        """Where there is no such interface nothing can be added, and nothing is left to remove."""
        plumbing = watchdog.Plumbing("no such thing", ["192.0.2.10"])
        self.assertIn("there is no such interface", plumbing.add("192.0.2.10"))
        self.assertEqual(plumbing.remove_all(), "")


class ProgramTests(SynchronousTestCase):
    def test_standard_library(self) -> None:
        """It imports the standard library and nothing of ours: nothing of ours can stop it."""
        with open(watchdog.__file__, encoding="utf-8") as file:
            tree: Any = ast.parse(file.read())
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.assertEqual(node.level, 0)
                found.add(node.module)
        self.assertEqual(
            {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}, set()
        )
