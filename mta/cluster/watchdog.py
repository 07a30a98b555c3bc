"""The watchdog: a program of its own that ends a stopped MTA in time and takes its addresses away.

Law (cluster.md section 4): only this program plumbs. At the deadline of the lease, at the MTA's end
or when its pipe closes while a lease is held, the MTA is killed and the addresses are removed, in
this order and at once; then its death is awaited, not for ever, and they are removed again. After
each address that is added the lease and the epoch are read once more, and it is taken back when
either is gone.

It is run as `python -I -S watchdog.py`, imports nothing but the standard library and nothing of
ours, and leaves the MTA's session and its process tree, so that what stops or kills those does not
reach it. It listens to no signal that can be ignored: it ends with the MTA, or when told to.

What is pure (the deadline in shared memory, netlink's octets, the verdict) stands first and is
imported by the MTA's side, guard.py. RFC 3549; rtnetlink(7), timerfd_create(2), pidfd_open(2).
"""

from __future__ import annotations

import _thread
import ctypes
import enum
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from binascii import crc32
from collections.abc import Iterator

BEAT_SECONDS = 0.25
SILENT_SECONDS = 1.0
"""A watchdog that was not heard for this long is none: the MTA gives its tenure up."""
EPOCH_READ_SECONDS = 0.5
"""A spool that does not answer for this long counts as lost; the beat must go on."""
DEATH_SECONDS = 10.0
"""A process in the kernel's hands may not die for long; its addresses are gone meanwhile."""
MEMORY_OCTETS = 64
LONGEST_COMMAND = 8192
STACK_OCTETS = 256 * 1024

CLOCK_BOOTTIME = 7
TFD_CLOEXEC_NONBLOCK = 0o2000000 | 0o4000
TFD_TIMER_ABSTIME = 1
MCL_CURRENT, MCL_FUTURE = 1, 2
CAP_NET_ADMIN = 12

RTM_NEWADDR, RTM_DELADDR = 20, 21
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
IFA_F_NODAD = 0x02
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO = 1, 2, 6
INFINITE = 0xFFFFFFFF

# --- the deadline in shared memory ------------------------------------------------------------

_SLOT = struct.Struct("=QQI12x")
"""A number that only grows, the deadline in nanoseconds (0: no lease is held), their crc."""


def write_deadline(memory: mmap.mmap, number: int, deadline_ns: int) -> None:
    """`number` grows by 1 each time. The slot with the older one is overwritten, so that a reader
    who sees a half of it still finds the former deadline whole.
    """
    head = struct.pack("=QQ", number, deadline_ns)
    at = number % 2 * _SLOT.size
    memory[at : at + _SLOT.size] = _SLOT.pack(number, deadline_ns, crc32(head))


def read_deadline(memory: bytes | mmap.mmap) -> int | None:
    """The newest whole deadline, in nanoseconds of CLOCK_BOOTTIME; None when there is none."""
    newest: tuple[int, int] | None = None
    for at in (0, _SLOT.size):
        octets = bytes(memory[at : at + _SLOT.size])
        number, deadline_ns, crc = _SLOT.unpack(octets)
        if crc32(octets[:16]) == crc and (newest is None or number > newest[0]):
            newest = number, deadline_ns
    return None if newest is None else newest[1]


# --- the verdict ------------------------------------------------------------------------------


class Verdict(enum.Enum):
    WATCH = "all is well"
    LEAVE = "nobody is left to guard"
    KILL = "the MTA must not go on"


def judge(
    now_ns: int, deadline_ns: int, *, has_ended: bool, is_closed: bool, may_leave: bool
) -> Verdict:
    """`is_closed`: its end of the pipe is; `may_leave`: it said so before. Without a lease nothing
    can be spoiled, and a process that begins anew under the same pid is left alone.
    """
    if has_ended:
        return Verdict.LEAVE
    if deadline_ns and now_ns >= deadline_ns:
        return Verdict.KILL
    if is_closed:
        return Verdict.KILL if deadline_ns and not may_leave else Verdict.LEAVE
    return Verdict.WATCH


# --- netlink ----------------------------------------------------------------------------------


def packed(address: str) -> tuple[int, bytes]:
    """Family and octets. @raise OSError: it is no address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def address_request(kind: int, sequence: int, ifindex: int, address: str) -> bytes:
    """RTM_NEWADDR or RTM_DELADDR for one address, as /32 or /128. A longer prefix than the whole
    address would make it the first of a subnet, with which the kernel removes the others.
    """
    family, octets = packed(address)
    is_new = kind == RTM_NEWADDR
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_EXCL if is_new else 0)
    with_flags = IFA_F_NODAD if is_new and family == socket.AF_INET6 else 0
    body = struct.pack("=BBBBI", family, 8 * len(octets), with_flags, 0, ifindex)
    for attribute in (IFA_LOCAL, IFA_ADDRESS):
        body += struct.pack("=HH", 4 + len(octets), attribute) + octets
    if is_new and family == socket.AF_INET6:
        # Preferred for 0 s: no program of this node that binds nothing speaks from it.
        body += struct.pack("=HHIIII", 20, IFA_CACHEINFO, 0, INFINITE, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def acknowledgement(octets: bytes, sequence: int) -> int | None:
    """The errno (0: done) that answers `sequence`; None when it is not among these octets."""
    at = 0
    while at + 16 <= len(octets):
        length, kind, _flags, number, _port = struct.unpack_from("=IHHII", octets, at)
        if length < 16:
            return None
        if kind == NLMSG_ERROR and number == sequence and at + 20 <= len(octets):
            (negative,) = struct.unpack_from("=i", octets, at + 16)
            return -int(negative)
        at += (length + 3) & ~3
    return None


class Plumbing:
    """The addresses of one interface, by a netlink socket of our own. Nothing here raises."""

    def __init__(self, interface: str, addresses: list[str]) -> None:
        self.interface = interface
        self.addresses = addresses
        self._sequence = 0

    def add(self, address: str) -> str:
        """ "" when it is there now, else why it is not."""
        return self._change(RTM_NEWADDR, address, {errno.EEXIST})

    def remove(self, address: str) -> str:
        """ "" when it is not there now, else why it is."""
        return self._change(RTM_DELADDR, address, {errno.EADDRNOTAVAIL, errno.ENODEV})

    def remove_all(self) -> str:
        faults = [self.remove(address) for address in self.addresses]
        return "; ".join(fault for fault in faults if fault)

    def _change(self, kind: int, address: str, fine: set[int]) -> str:
        what = f"{address} on {self.interface}"
        try:
            ifindex = socket.if_nametoindex(self.interface)
        except OSError:
            return "" if errno.ENODEV in fine else f"{what}: there is no such interface"
        self._sequence += 1
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as made:
                made.settimeout(1.0)
                made.sendto(address_request(kind, self._sequence, ifindex, address), (0, 0))
                answer = None
                while answer is None:
                    answer = acknowledgement(made.recv(65536), self._sequence)
        except OSError as fault:
            return f"{what}: netlink: {fault.strerror or fault}"
        if answer == 0 or answer in fine:
            return ""
        return f"{what}: {errno.errorcode.get(answer, answer)}: {os.strerror(answer)}"


# --- the program ------------------------------------------------------------------------------


class _ITimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("again_s", "again_ns", "at_s", "at_ns")]


def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def boottime_ns() -> int:
    return time.clock_gettime_ns(CLOCK_BOOTTIME)


class Watchdog:
    """`descriptors`: commands in, reports out, shared memory, pidfd of the MTA."""

    def __init__(self, descriptors: list[int], interface: str, addresses: list[str]) -> None:
        self._commands, self._reports, memory, self._process = descriptors
        self._memory = mmap.mmap(memory, MEMORY_OCTETS, mmap.MAP_SHARED, mmap.PROT_READ)
        self._required = {address for address in addresses if not address.startswith("?")}
        bare = [address.removeprefix("?") for address in addresses]
        self._plumbing = Plumbing(interface, bare) if interface else None
        self._system = _system()
        self._deadline_ns = 0
        self._unread = b""
        self._is_closed = False
        self._may_leave = False
        os.set_blocking(self._commands, False)
        os.set_blocking(self._reports, False)
        self._timer = int(self._system.timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC_NONBLOCK))
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def run(self) -> str:
        """Until nobody is left to guard; answers what it ended with."""
        locked = self._system.mlockall(MCL_CURRENT | MCL_FUTURE) == 0
        left_over = self._plumbing.remove_all() if self._plumbing else ""
        self._say(f"ready {os.getpid()} {int(locked)} {left_over}")
        poll = select.poll()
        poll.register(self._commands, select.POLLIN)
        poll.register(self._process, select.POLLIN)
        poll.register(self._timer, select.POLLIN)
        beat_at = 0
        while True:
            now = boottime_ns()
            if now >= beat_at:
                self._say("beat")
                beat_at = now + int(BEAT_SECONDS * 1e9)
            verdict = self._judge()
            if verdict is not Verdict.WATCH:
                return self._end(verdict)
            self._arm(min(beat_at, self._deadline_ns or beat_at))
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._timer in ready:
                _read(self._timer, 8)
            if self._commands in ready and not self._is_closed:
                self._listen(poll)

    def _judge(self) -> Verdict:
        self._look()
        return judge(
            boottime_ns(),
            self._deadline_ns,
            has_ended=_is_readable(self._process),
            is_closed=self._is_closed,
            may_leave=self._may_leave,
        )

    def _look(self) -> None:
        """A deadline that cannot be read leaves the former one, which is the earlier."""
        found = read_deadline(self._memory)
        if found is not None:
            self._deadline_ns = found

    def _arm(self, at_ns: int) -> None:
        at = _ITimerSpec(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        self._system.timerfd_settime(self._timer, TFD_TIMER_ABSTIME, ctypes.byref(at), None)

    def _end(self, verdict: Verdict) -> str:
        text = verdict.value
        if verdict is Verdict.KILL:
            over = "its lease is over" if not self._is_closed else "its pipe closed under a lease"
            text = f"{text}: {over}"
            try:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself meanwhile
            except OSError as fault:
                text = f"{text}; killing it failed: {fault.strerror}"
        if self._plumbing:
            self._plumbing.remove_all()
            if verdict is Verdict.KILL:
                _is_readable(self._process, DEATH_SECONDS)
            fault_text = self._plumbing.remove_all()
            text = f"{text}; addresses removed {fault_text}".rstrip()
        return text

    # --- commands

    def _listen(self, poll: select.poll) -> None:
        octets = _read(self._commands, 65536)
        if octets is None:
            return
        self._unread += octets
        if not octets or len(self._unread) > LONGEST_COMMAND:
            self._is_closed = True
            poll.unregister(self._commands)
            return
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._obey(line.decode("utf-8", "surrogateescape"))

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        number, _, path = rest.partition(" ")
        if word == "plumb":
            fault, note = self._plumb(path)
            self._say(f"failed {number} {fault}" if fault else f"done {number} {note}")
        elif word == "unplumb":
            self._say(f"done {number} {self._plumbing.remove_all() if self._plumbing else ''}")
        elif word == "quit":
            self._may_leave = self._is_closed = True

    def _plumb(self, epoch_file: str) -> tuple[str, str]:
        """(why it failed, what is amiss with addresses that are not required)."""
        if self._plumbing is None:
            return "this watchdog was given no interface", ""
        notes = []
        for address in self._plumbing.addresses:
            fault = self._gone("") or self._plumbing.add(address)
            if fault and address not in self._required:
                notes.append(fault)
                continue
            # After the adding, not before: between a look and an act everything can happen.
            fault = fault or self._gone(epoch_file)
            if fault:
                self._plumbing.remove_all()
                return fault, ""
        return "", "; ".join(notes)

    def _gone(self, epoch_file: str) -> str:
        """Why nothing may be plumbed; "" when the lease and the epoch are ours."""
        if epoch_file and not _is_newest(epoch_file):
            return "the epoch is superseded, or its file cannot be read"
        self._look()
        if not self._deadline_ns or boottime_ns() >= self._deadline_ns:
            return "the lease is over"
        return ""

    def _say(self, text: str) -> None:
        line = text.replace("\n", " ")[:1000].encode("utf-8", "backslashreplace") + b"\n"
        try:
            os.write(self._reports, line)
        except OSError:
            pass  # full: it is stopped; broken: it is gone. Both are seen elsewhere.


def _read(descriptor: int, octets: int) -> bytes | None:
    """None when there is nothing, b"" at the end."""
    try:
        return os.read(descriptor, octets)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _is_readable(descriptor: int, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _is_newest(epoch_file: str) -> bool:
    """Octet 0 of the epoch's file is "-". Read by a thread: a disk may never answer."""
    reader, writer = os.pipe()

    def read() -> None:
        mark = b"?"
        try:
            descriptor = os.open(epoch_file, os.O_RDONLY | os.O_CLOEXEC)
            mark = os.read(descriptor, 1)
            os.close(descriptor)
        except OSError:
            pass  # not to be read is superseded
        os.write(writer, mark or b"?")
        os.close(writer)

    _thread.stack_size(STACK_OCTETS)  # all of it is locked in memory
    _thread.start_new_thread(read, ())
    try:
        return _is_readable(reader, EPOCH_READ_SECONDS) and os.read(reader, 1) == b"-"
    finally:
        os.close(reader)


def may_plumb() -> bool:
    """Whether this process has CAP_NET_ADMIN in effect."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    except (OSError, ValueError):
        pass
    return False


def _ignored() -> Iterator[signal.Signals]:
    """Whoever stops a service signals its processes; this one outlives the MTA by a moment."""
    yield from (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    yield from (signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP, signal.SIGPIPE)


def main(argv: list[str]) -> int:
    """COMMANDS REPORTS MEMORY PIDFD (descriptors), the MTA's pid (for people), INTERFACE or "-",
    ADDRESS ... ("?ADDRESS" when it is not required).
    """
    for number in _ignored():
        signal.signal(number, signal.SIG_IGN)
    descriptors = [int(word) for word in argv[1:5]]
    interface = "" if argv[6] == "-" else argv[6]
    if os.fork():
        os._exit(0)  # no child of the MTA: it is not reaped, waited for or killed with it
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    os.chdir("/")
    try:
        ending = Watchdog(descriptors, interface, argv[7:]).run()
    except OSError as fault:
        ending = f"cannot watch: {fault}"
    if not ending.startswith(Verdict.LEAVE.value):
        os.write(2, f"mta watchdog of pid {argv[5]}: {ending}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
