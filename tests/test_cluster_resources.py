"""standalone and interface pass the one suite; and what each promises beyond it."""

from __future__ import annotations

import errno
import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.addresses import read_boot_id
from mta.cluster.admission import refuse_unfenced
from mta.cluster.claims import check_identity
from mta.cluster.interface import InterfaceResource, InterfaceSettings
from mta.cluster.lock import OwnerLock, take_lock
from mta.cluster.netlink import (
    IFA_F_DADFAILED,
    IFA_F_OPTIMISTIC,
    IFA_F_TENTATIVE,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    RTM_NEWADDR,
    AddressNews,
    DumpEnded,
    KernelAddresses,
    LinkNews,
    parse,
)
from mta.cluster.standalone import Standalone, StandaloneSettings
from mta.errors import ConfigurationError, GrantLost, StartRefused
from mta.model import Guarantees, Sharing, VirtualAddress, VirtualServer
from mta.testing.cluster_suite import Heard, IClusterResourceTests
from mta.testing.kernel import PaperNetlink, address_body, link_body, message
from mta.testing.surroundings import MemorySurroundings, virtual_addresses

PERMANENT = 0x80


class StandaloneTests(IClusterResourceTests, SynchronousTestCase):
    def make_resource(self, surroundings: MemorySurroundings) -> Standalone:
        surroundings.disk.mkdir("/state")
        self.locked = True
        made = Standalone(StandaloneSettings(), surroundings, lock=lambda _descriptor: self.locked)
        return made

    def test_second_process(self) -> None:
        """A second MTA on the same spool is refused before it publishes, and the first is named."""
        grant = self.owned()
        self.successResultOf(self.resource.confirm(grant))
        second = Standalone(StandaloneSettings(), self.here, lock=lambda _descriptor: False)
        with self.assertRaises(StartRefused) as caught:
            second.prepare(self.server)
        self.assertIn(f"pid {os.getpid()} on a.example.org", caught.exception.why)
        refused = self.failureResultOf(
            second.confirm(self.successResultOf(second.acquire())), StartRefused
        )
        self.assertIn(f"pid {os.getpid()}", str(refused.value))

    def test_lock_directory(self) -> None:
        """The lock lies in the spool's directory; a directory that is missing is named."""
        self.resource.lock_in("/spool")
        self.resource.prepare(self.server)
        grant = self.successResultOf(self.resource.acquire())
        fault = self.failureResultOf(self.resource.confirm(grant), StartRefused).value
        self.assertIn("/spool/owner.lock cannot be opened", fault.what)
        self.assertEqual(fault.exit_code, os.EX_CANTCREAT)
        self.here.disk.mkdir("/spool")
        self.successResultOf(self.resource.confirm(grant))
        self.assertTrue(self.here.disk.exists("/spool/owner.lock"))

    def test_loopback(self) -> None:
        """Loopback is right when it is listed."""
        self.resource.prepare(
            VirtualServer("bridgehead.example.org", virtual_addresses("127.0.0.1", "::1"))
        )

    def test_real_lock(self) -> None:
        """The kernel's lock keeps a second descriptor out, names the holder, and dies with it."""
        from mta.spool.disk import Disk

        directory = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, directory)
        first, second = OwnerLock(Disk(), directory), OwnerLock(Disk(), directory, take_lock)
        self.addCleanup(os.unlink, first.path)
        first.take("pid 7 on a")
        first.take("pid 7 on a")
        with self.assertRaises(StartRefused) as caught:
            second.take("pid 8 on a")
        self.assertEqual(caught.exception.why, "pid 7 on a")
        self.assertRaises(StartRefused, second.refuse_beside_another)
        first.refuse_beside_another()
        # Opening and closing the file elsewhere does not lose it, as a POSIX lock would.
        os.close(os.open(first.path, os.O_RDWR))
        self.assertRaises(StartRefused, second.take, "pid 8 on a")
        first.give_back()
        second.take("pid 8 on a")
        self.assertTrue(second.is_held)
        second.give_back()


class InterfaceTests(IClusterResourceTests, SynchronousTestCase):
    def make_resource(self, surroundings: MemorySurroundings) -> InterfaceResource:
        self.kernel = PaperNetlink(surroundings.doors)
        self.kernel.link(2, "eth0")
        self.kernel.add("192.0.2.1")
        return InterfaceResource(
            InterfaceSettings(),
            surroundings,
            open_socket=self.kernel.open,
            boot_id=lambda: "boot-a",
        )

    def begin(self) -> None:
        super().begin()
        self.kernel.deliver()

    def settle(self) -> None:
        self.kernel.deliver()
        self.here.advance()

    def become_owner(self) -> None:
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        self.kernel.deliver()

    def cease_to_be_owner(self) -> None:
        self.kernel.remove("192.0.2.10")
        self.kernel.deliver()

    def usable(self) -> list[str]:
        """What the listener was last told."""
        return [str(i.address) for i in self.heard.of("addresses")[-1]]

    def test_present_at_start(self) -> None:
        """Addresses that are there when we start are found by asking."""
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10")
        self.begin()
        self.assertEqual(self.usable(), ["192.0.2.10", "2001:db8::10"])
        self.assertEqual(self.resource.explain(), "192.0.2.10, 2001:db8::10 on this node")
        (first, _) = self.successResultOf(self.resource.acquire()).instances
        self.assertEqual((first.boot_id, first.ifindex), ("boot-a", 2))
        self.assertGreater(first.cstamp, 0)

    def test_why_waiting(self) -> None:
        """While we wait, status says for which address and why."""
        self.assertIn("not known yet", self.resource.explain())
        self.begin()
        for change, words in (
            (lambda: None, "192.0.2.10: not on any interface"),
            (lambda: self.kernel.add("192.0.2.10"), "2001:db8::10: not on any interface"),
            (
                lambda: self.kernel.add("2001:db8::10", flags=PERMANENT | IFA_F_TENTATIVE),
                "detection is still running",
            ),
            (lambda: self.kernel.add("2001:db8::10", flags=0xC8), "another machine has it"),
            (lambda: self.kernel.add("2001:db8::10"), "on this node"),
            (lambda: self.kernel.link(2, carrier=False), "eth0 has no carrier"),
            (lambda: self.kernel.link(2, up=False), "eth0 is down"),
            (lambda: self.kernel.unlink(2), "interface 2 is not known"),
        ):
            change()
            self.kernel.deliver()
            self.assertIn(words, self.resource.explain())

    def test_duplicate_address_detection(self) -> None:
        """An IPv6 address counts when detection is over, and never when it found another machine."""
        self.begin()
        waiting = self.resource.acquire()
        self.kernel.add("192.0.2.10")
        self.kernel.add("2001:db8::10", flags=PERMANENT | IFA_F_TENTATIVE)
        self.kernel.deliver()
        self.assertNoResult(waiting)
        self.kernel.add("2001:db8::10", flags=PERMANENT | IFA_F_TENTATIVE | IFA_F_DADFAILED)
        self.kernel.deliver()
        self.assertNoResult(waiting)
        self.kernel.add("2001:db8::10", flags=PERMANENT | IFA_F_TENTATIVE | IFA_F_OPTIMISTIC)
        self.kernel.deliver()
        self.successResultOf(waiting)

    def test_link_and_carrier(self) -> None:
        """Addresses on a link that is down or has no carrier are not usable, though they are listed."""
        self.owned()
        for change in ({"carrier": False}, {"up": False}):
            self.kernel.link(2, **change)
            self.kernel.deliver()
            self.assertEqual(self.usable(), [])
            self.kernel.link(2)
            self.kernel.deliver()
            self.assertEqual(self.usable(), ["192.0.2.10", "2001:db8::10"])

    def test_one_breath(self) -> None:
        """An address that goes and comes back in one breath is told as two changes, a new life."""
        self.owned()
        (before,) = [i for i in self.heard.of("addresses")[-1] if i.address.version == 4]
        told = len(self.heard.events)
        self.kernel.remove("192.0.2.10")
        self.kernel.add("192.0.2.10")
        self.kernel.deliver()
        self.assertEqual([len(v) for _, v in self.heard.events[told:]], [1, 2])
        (after,) = [i for i in self.heard.of("addresses")[-1] if i.address.version == 4]
        self.assertNotEqual(before, after)

    def test_replace(self) -> None:
        """`ip address replace` is the same instance: nobody hears anything."""
        self.owned()
        told = len(self.heard.events)
        self.kernel.add("192.0.2.10")
        self.kernel.deliver()
        self.assertEqual(len(self.heard.events), told)

    def test_strangers(self) -> None:
        """Addresses that are not the virtual server's concern nobody."""
        self.owned()
        told = len(self.heard.events)
        for number in range(20, 40):
            self.kernel.add(f"192.0.2.{number}")
        self.kernel.deliver()
        self.assertEqual(len(self.heard.events), told)

    def test_overflow(self) -> None:
        """When the kernel drops events everything is asked for again, and what was missed is found."""
        self.owned()
        self.kernel.deaf = True
        self.kernel.remove("192.0.2.10")
        self.kernel.overflow()
        self.kernel.deliver()
        self.assertEqual(self.usable(), ["2001:db8::10"])

    def test_missed_for_other_reasons(self) -> None:
        """Every 10 s everything is compared with what the kernel has."""
        self.owned()
        self.kernel.deaf = True
        self.kernel.remove("192.0.2.10")
        self.kernel.add("192.0.2.10")
        self.kernel.deliver()
        told = self.heard.of("addresses")[-1]
        self.here.advance(10)
        self.kernel.deliver()
        again = self.heard.of("addresses")[-1]
        self.assertNotEqual(again, told)
        self.assertEqual([i.address for i in again], [i.address for i in told])

    def test_dump_refused(self) -> None:
        """A dump that the kernel cannot give now is asked for again soon, and proves no absence."""
        self.owned()
        self.kernel.dump_fails = 2
        self.here.advance(10)
        self.kernel.deliver()
        self.assertEqual(self.usable(), ["192.0.2.10", "2001:db8::10"])
        dumps = self.kernel.dumps
        for _ in range(3):
            self.here.advance(0.1)
            self.kernel.deliver()
        self.assertEqual(self.kernel.dumps, dumps + 2)

    def test_confirm_sees_a_new_life(self) -> None:
        """A grant whose address was made anew meanwhile is not confirmed."""
        grant = self.owned()
        self.kernel.deaf = True
        self.kernel.remove("192.0.2.10")
        self.kernel.add("192.0.2.10")
        confirmed = self.resource.confirm(grant)
        self.kernel.deliver()
        self.assertIn("made anew", str(self.failureResultOf(confirmed, GrantLost).value))

    def test_blind(self) -> None:
        """When netlink breaks the ownership is lost, and watched for again after a second."""
        self.owned()
        self.kernel.break_down()
        self.kernel.deliver()
        self.assertEqual(len(self.heard.of("lost")), 1)
        self.assertIn("Input/output error", self.heard.of("lost")[0])
        waiting = self.resource.acquire()
        self.assertNoResult(waiting)
        self.kernel.refuses = OSError(errno.EMFILE, "Too many open files")
        self.here.advance(1)
        self.kernel.refuses = None
        self.here.advance(1)
        self.kernel.deliver()
        self.successResultOf(waiting)

    def test_no_netlink(self) -> None:
        """Where netlink is not allowed the start is refused, and says what to allow."""
        self.kernel.refuses = OSError(
            errno.EAFNOSUPPORT, "Address family not supported by protocol"
        )
        self.resource.prepare(self.server)
        with self.assertRaises(StartRefused) as caught:
            self.resource.start()
        self.assertIn("AF_NETLINK", caught.exception.remedy)

    def test_optional(self) -> None:
        """Required addresses decide; an optional one is listed when it is there."""
        optional = VirtualAddress(*(virtual_addresses("2001:db8::10")[0].bind,) * 2, required=False)
        self.server = VirtualServer("bridgehead.example.org", (self.server.addresses[0], optional))
        self.begin()
        waiting = self.resource.acquire()
        self.kernel.add("192.0.2.10")
        self.kernel.deliver()
        self.successResultOf(waiting)
        self.kernel.add("2001:db8::10")
        self.kernel.deliver()
        self.assertEqual(self.usable(), ["192.0.2.10", "2001:db8::10"])

    def test_behind_nat(self) -> None:
        """Behind NAT the bind address is what must be here."""
        mapped = VirtualAddress(
            virtual_addresses("203.0.113.7")[0].bind, virtual_addresses("192.0.2.10")[0].bind
        )
        self.server = VirtualServer("bridgehead.example.org", (mapped,))
        self.begin()
        self.kernel.add("192.0.2.10")
        self.kernel.deliver()
        self.assertEqual(self.successResultOf(self.resource.acquire()).addresses, (mapped,))

    def test_boot_id(self) -> None:
        """The boot's name is the kernel's."""
        self.assertRegex(read_boot_id(), r"^[0-9a-f-]{36}$")


class TheKernelsOctets(SynchronousTestCase):
    def test_messages(self) -> None:
        """Links and addresses of both families are read with their flags and creation stamps."""
        octets = (
            message(16, link_body(3, "eth1", 0x11043), sequence=5, port=8)
            + message(20, address_body(3, "192.0.2.10", 0x80, 1234))
            + message(21, address_body(3, "2001:db8::10", 0xC8, 99))
            + message(NLMSG_DONE, bytes(4), sequence=5, port=8)
        )
        v4, v6 = (a.bind for a in virtual_addresses("192.0.2.10", "2001:db8::10"))
        self.assertEqual(
            list(parse(octets)),
            [
                (8, 5, LinkNews(3, "eth1", True, True)),
                (99, 0, AddressNews(3, v4, 0x80, 1234)),
                (99, 0, AddressNews(3, v6, 0xC8, 99, gone=True)),
                (8, 5, DumpEnded(5)),
            ],
        )

    def test_wide_flags(self) -> None:
        """Flags beyond eight bits come in their own attribute and count."""
        ((_, _, news),) = parse(message(RTM_NEWADDR, address_body(2, "2001:db8::1", 0x340, 1)))
        self.assertEqual(news.flags, 0x340)
        self.assertFalse(news.is_usable)

    def test_interrupted_dump(self) -> None:
        """A dump under which the tables changed proves nothing."""
        body = address_body(2, "192.0.2.10", 0x80, 1)
        ((_, _, news),) = parse(message(RTM_NEWADDR, body, sequence=4, flags=NLM_F_DUMP_INTR))
        self.assertEqual(news, DumpEnded(4, errno.EINTR))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.binary(max_size=300))
    def test_rubbish(self, octets: bytes) -> None:
        """Any octets are read without an error."""
        table = KernelAddresses()
        for _port, sequence, news in parse(octets):
            table.take(sequence, news)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.integers(0, 400), st.binary(max_size=8), st.integers(0, 400))
    def test_truncated_and_spoilt(self, cut: int, junk: bytes, at: int) -> None:
        """Messages cut off or spoilt anywhere give what is whole, and no error."""
        whole = message(16, link_body(3, "eth1", 0x10043)) + message(
            20, address_body(3, "2001:db8::10", 0x80, 7)
        )
        spoilt = (whole[:at] + junk + whole[at + len(junk) :])[:cut]
        for _port, sequence, news in parse(spoilt):
            KernelAddresses().take(sequence, news)
        if cut < len(whole):
            self.assertLess(len(list(parse(whole[:cut]))), 2)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "remove", "link", "deaf"]), st.integers(1, 4), st.booleans()
            ),
            max_size=30,
        )
    )
    def test_follows_the_kernel(self, changes) -> None:
        """Whatever happens, and whatever was missed, after the next look we see what the kernel has."""
        here = MemorySurroundings()
        kernel = PaperNetlink(here.doors)
        server = VirtualServer(
            "bridgehead.example.org", virtual_addresses(*(f"192.0.2.{n}" for n in range(1, 5)))
        )
        here.virtual_server = server
        resource = InterfaceResource(
            InterfaceSettings(), here, open_socket=kernel.open, boot_id=lambda: "b"
        )
        heard = Heard()
        resource.prepare(server)
        resource.subscribe(heard)
        kernel.link(2)
        resource.start()
        for what, number, flag in changes:
            text = f"192.0.2.{number}"
            if what == "add":
                kernel.add(text, flags=PERMANENT if flag else PERMANENT | IFA_F_TENTATIVE)
            elif what == "remove" and (2, text) in kernel.addresses:
                kernel.remove(text)
            elif what == "link":
                kernel.link(2, carrier=flag)
            elif what == "deaf":
                kernel.deaf = flag
            kernel.deliver()
        here.advance(10)
        kernel.deliver()
        up = kernel.links[2][1] & 0x10000
        expected = {
            t
            for (_, t), (flags, _) in kernel.addresses.items()
            if up and not flags & IFA_F_TENTATIVE
        }
        self.assertEqual({str(i.address) for i in heard.of("addresses")[-1]}, expected)
        self.successResultOf(resource.stop())


class Admission(SynchronousTestCase):
    def refuse(self, sharing: Sharing, shared: bool = True, fenced: bool = False) -> None:
        class Spool:
            guarantees = Guarantees("fsync", shared, fenced)

        class Block:
            directory = "/spool"

        Block.sharing = sharing
        here = MemorySurroundings()
        refuse_unfenced(InterfaceResource(InterfaceSettings(), here), Spool(), Block())

    def test_unfenced(self) -> None:
        """A shared spool that neither the resource nor the store can fence is refused at start."""
        with self.assertRaises(ConfigurationError) as caught:
            self.refuse(Sharing.NFS)
        self.assertIn("no fence", caught.exception.what)
        self.refuse(Sharing.NFS, fenced=True)
        self.refuse(Sharing.NONE)

    def test_failover_mount(self) -> None:
        """A file system that only one node may mount needs fencing before it is mounted."""
        with self.assertRaises(ConfigurationError) as caught:
            self.refuse(Sharing.FAILOVER_MOUNT, fenced=True)
        self.assertIn("nobody fences", caught.exception.what)

    def test_cannot_be_shared(self) -> None:
        """A store that lives in one process cannot be shared."""
        self.assertRaises(ConfigurationError, self.refuse, Sharing.CLUSTER_FS, False, True)

    def test_lock_directory(self) -> None:
        """A resource that locks is told the spool's directory."""
        here = MemorySurroundings()
        resource = Standalone(StandaloneSettings(), here, lock=lambda _descriptor: True)

        class Block:
            directory = "/spool"

        refuse_unfenced(resource, None, Block())
        here.disk.mkdir("/spool")
        self.successResultOf(resource.confirm(self.successResultOf(resource.acquire())))
        self.assertTrue(here.disk.exists("/spool/owner.lock"))

    def test_nothing_required(self) -> None:
        """A virtual server none of whose addresses is required is refused."""
        (address,) = virtual_addresses("192.0.2.10")
        optional = VirtualAddress(address.bind, address.bind, required=False)
        self.assertRaises(
            ConfigurationError,
            check_identity,
            VirtualServer("bridgehead.example.org", (optional,)),
            "a",
            own_name_is_right=False,
        )
