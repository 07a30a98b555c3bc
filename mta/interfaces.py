"""Every contract of the house, and nothing else. A plugin author starts here.

Long because a plugin author finds every contract in one place.

Conventions that hold for all of them:

- `Deferred[X]` is awaited by whoever called; nobody is called upstream. Cancelling is normal.
- `X | Deferred[X]` ("at once or later") is answered at once wherever that is possible: the hot path
  pays for a Deferred only when something really waits.
- Times: `monotonic` is seconds of CLOCK_BOOTTIME (it counts while the machine sleeps), `wall` is
  seconds since 1970. Sizes are octets.
- A contract grows by an add-on interface found with `providedBy`, never by an optional argument.
- Each contract has a conformance suite in `mta.testing` that every implementation passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IReadDescriptor
from zope.interface import Attribute, Interface

from mta.model import (
    Address,
    AddressFact,
    AddressInstance,
    Authenticated,
    BodyType,
    Challenge,
    Claim,
    ClientCertificate,
    Connector,
    ContentForm,
    Doubt,
    DueWork,
    Envelope,
    EpochRecord,
    FourTuple,
    Grant,
    Guarantees,
    Health,
    Intent,
    IPAddress,
    MailHost,
    MessageState,
    NextHop,
    Outcome,
    PeerInfo,
    QueueAct,
    QueueEntry,
    QueueFilter,
    Recipient,
    Recovery,
    Remembered,
    Reply,
    Result,
    Route,
    Segment,
    SpoolStats,
    StsPolicy,
    TlsaRecords,
    TlsManner,
    Unroutable,
    VirtualAddress,
    VirtualServer,
)
from mta.telemetry import Telemetry, Transferred

# --- time, disk, threads ----------------------------------------------------------------------


class ITimer(Interface):
    """A call that lies ahead."""

    def cancel() -> None:
        """Forget it. Harmless when it has run or was cancelled."""


class IClock(Interface):
    """The only source of time. The reactor's in the product, a virtual one in tests."""

    def call_later(seconds: float, call: Callable[..., object], *arguments: object) -> ITimer:
        """Run `call(*arguments)` on the reactor thread after `seconds` of CLOCK_BOOTTIME."""

    def monotonic() -> float:
        """CLOCK_BOOTTIME, seconds."""

    def wall() -> float:
        """CLOCK_REALTIME, seconds since 1970. Orders nothing and fences nothing."""


class IExecutor(Interface):
    """Hands work to threads. In tests every step is under the test's control."""

    def submit(call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        """Run `call(*arguments)` on a worker thread; its result or failure arrives on the
        reactor thread. A call that has begun cannot be cancelled: cancelling only forgets it.
        """

    def loop(step: Callable[[], Callable[[], None] | None], name: str) -> ILoop:
        """A thread of its own which calls `step` whenever it was woken.

        `step` does one unit of blocking work and answers a callable to run on the reactor thread
        (or None), and is called again until it answers None with nothing to do.
        """

    def stop() -> None:
        """Let running calls end; accept no more."""


class ILoop(Interface):
    """One dedicated thread: the spool's committer."""

    def wake() -> None:
        """There is work. Cheap, from any thread, any number of times."""

    def stop() -> None:
        """End after the present step and wait for it."""


class IDisk(Interface):
    """Every file call of the spool and of Maildir. In tests: a disk that forgets what was not
    synced, tears the last write, and fails on demand. Blocking; called on worker threads.

    Paths are absolute `str`. Errors are OSError with the kernel's errno, nothing else.
    """

    def open(path: str, flags: int, mode: int = 0o600) -> int:
        """os.open with O_CLOEXEC added."""

    def close(fd: int) -> None: ...

    def pread(fd: int, octets: int, offset: int) -> bytes:
        """Up to `octets`; fewer only at the end of the file."""

    def pwritev(fd: int, pieces: Sequence[bytes], offset: int) -> None:
        """Write all `pieces` behind one another from `offset`; short writes are continued."""

    def fdatasync(fd: int) -> None: ...

    def fsync(fd: int) -> None: ...

    def drop_cache(fd: int) -> None:
        """What is synced is read from the medium from now on. After a failed sync the kernel calls
        its pages clean and shows what was never written, also to who opens the file later and whose
        own sync says "done" (Linux, fsync(2)).
        """

    def sync_directory(path: str) -> None:
        """fsync the directory, so that names made or removed in it are durable."""

    def link(source: str, target: str) -> None:
        """link(2); FileExistsError when `target` exists."""

    def unlink(path: str) -> None: ...

    def mkdir(path: str, mode: int = 0o700) -> None: ...

    def listdir(path: str) -> list[str]: ...

    def exists(path: str) -> bool: ...

    def size(fd: int) -> int: ...

    def truncate(fd: int, octets: int) -> None: ...

    def free_octets(path: str) -> int:
        """What an unprivileged writer can still use on that file system."""

    def filesystem(path: str) -> str:
        """The type's name as /proc/mounts has it: ext4, xfs, tmpfs, nfs4 ..."""


# --- tenure, doors ----------------------------------------------------------------------------


class IRevocable(Interface):
    """Something that must not outlive a tenure: a listening port, an association."""

    def revoke() -> None:
        """Close the descriptor now (abortively), before returning. Never raises."""


class IAssociationEnds(Interface):
    """Add-on of IRevocable: an association, whose peer may wait for ever once it was revoked."""

    def ends() -> FourTuple | None:
        """Its two ends while it is open; None while it is being opened, and when it has closed."""


class ITenure(Interface):
    """The capability to act as the virtual server. Minted in mta.cluster.tenure only."""

    epoch: int = Attribute("The published epoch.")
    network_name: str = Attribute("EHLO name, Received by, Reporting-MTA, TLS name.")
    addresses: tuple[VirtualAddress, ...] = Attribute("The usable addresses, never empty.")
    is_live: bool = Attribute("False for ever once revoked.")

    def adopt(revocable: IRevocable) -> None:
        """It will be revoked with this tenure. @raise TenureRevoked: too late."""

    def disown(revocable: IRevocable) -> None:
        """It has closed by itself. Harmless when unknown."""

    def check() -> None:
        """Re-read the epoch, and the lease's deadline where there is one (under 1.5 us).
        @raise Fenced: a newer epoch exists, or the lease is over.
        @raise TenureRevoked: this tenure has ended.
        """

    def admit() -> None:
        """As `check`, before an association is opened or accepted. @raise TransientFailure: the
        authority has not renewed its grant in time; nothing new begins until it does.
        """

    def address_for(family: int) -> VirtualAddress:
        """The first usable address of AF_INET or AF_INET6.
        @raise TransientFailure: none; the kernel's choice is never taken instead.
        """


class IDoors(Interface):
    """The two doors of law 1. Everything that reaches the network goes through one of them."""

    def connect(
        tenure: ITenure, host: str, port: int, protocol: IProtocol, timeout: float
    ) -> Deferred[IProtocol]:
        """Open an association to an IP address, bound to the tenure's address of its family.

        The transport is adopted by the tenure; getsockname() was verified before it fires.
        @raise TransientFailure: not reachable, or no address of that family.
        @raise WrongSourceAddress: the kernel bound another address; it was aborted.
        """

    def listen(
        tenure: ITenure,
        address: VirtualAddress,
        port: int,
        build: Callable[[PeerInfo], IProtocol | None],
        *,
        name: str,
        backlog: int,
    ) -> IRevocable:
        """Accept associations on one virtual address. `build` answers None to refuse at once.
        @raise StartRefused: busy (names the holder), or not permitted.
        @raise AddressAway: the address is not on this node.
        """

    def service_connect(purpose: str, endpoint: str, protocol: IProtocol) -> Deferred[IProtocol]:
        """Connect for something that carries no mail. `purpose` is one of authority, resolver,
        filter, auth, policy-fetch, store, admin, probe. `endpoint` is `tcp:HOST:PORT` or
        `unix:PATH`. @raise MTAError: the purpose was not granted to the caller.
        """

    def service_listen(
        purpose: str, endpoint: str, factory: object, mode: int = 0o600
    ) -> IRevocable:
        """Listen for something that carries no mail (control, submission and HTTP sockets)."""

    def service_datagram(purpose: str, protocol: object, *, ipv6: bool = False) -> IRevocable:
        """A UDP socket for something that carries no mail (the resolver)."""

    def try_bind(address: VirtualAddress) -> None:
        """A real bind() of (address, 0), closed at once (law 2d). @raise OSError."""


class IDescriptorDoor(Interface):
    """Add-on of IDoors: watch a descriptor that is neither TCP, UDP nor UNIX (netlink, a FIFO)."""

    def watch_descriptor(purpose: str, descriptor: IReadDescriptor) -> IRevocable:
        """Call `descriptor.doRead` whenever it is readable; whoever opened it also closes it.
        Revoking only ends the watching. @raise MTAError: the purpose was not granted.
        """


class IPacketDoor(Interface):
    """Add-on of IDoors: single packets that belong to no socket and carry no mail. They need
    CAP_NET_RAW; "why" answers in words what hindered, "" when all went. Nothing is raised for it.
    """

    def send_frames(purpose: str, ifindex: int, build: Callable[[bytes], Sequence[bytes]]) -> str:
        """Send the Ethernet frames that `build(hardware address)` answers. Answers why not.
        @raise MTAError: the purpose was not granted.
        """

    def open_segments(purpose: str) -> ISegments:
        """For one burst of TCP segments from our own addresses, and what comes back.
        @raise MTAError: the purpose was not granted.
        """


class ISegments(Interface):
    """TCP segments beside the kernel's own. Whoever opened it closes it, within a second: it gets a
    copy of all that arrives."""

    def send(segments: Sequence[Segment]) -> tuple[int, str]:
        """Send each. Answers how many went, and why not: nothing is raised for it."""

    def receive() -> Sequence[Segment]:
        """The TCP segments that arrived since the first was sent; not all, where they are many."""

    def close() -> None:
        """Once is enough, twice does no harm."""


class ITls(Interface):
    """TLS as this process has it: the certificates of the virtual server, and trust in others."""

    has_certificate: bool = Attribute("A peer can be offered TLS.")

    def accepting() -> Any:
        """What Twisted's startTLS wants of the responder; chooses a certificate by SNI."""

    def opening(name: str, verify: bool) -> Any:
        """The same of the initiator, which asks for `name` (a host name; not an address literal).
        With `verify` a chain that leads to no trusted authority ends the handshake.
        """

    def check_name(handle: Any, name: str) -> None:
        """After a handshake with `verify`: its certificate is for this host name or IP address.
        @raise PermanentFailure: it is not.
        """

    def describe(handle: Any) -> str:
        """Version, cipher and bits, in Postfix's words."""


class ITlsManners(ITls):
    """Add-on of ITls: an initiator can say more of how it begins, and of whom it means."""

    def opening_in(name: str, manner: TlsManner) -> Any:
        """What `opening` gives, in this manner."""

    def check_names(handle: Any, names: tuple[str, ...]) -> None:
        """After a handshake with `verify`: its certificate is for one of these: host names,
        IP addresses, or `*.example.com`, any name below that. @raise PermanentFailure: it is not.
        """


class ITlsAsking(ITls):
    """Add-on of ITls: a responder can ask who its clients are."""

    def asking() -> Any:
        """What `accepting` gives; a certificate is asked for. A handshake fails for none of its
        faults, nor for its absence, and nothing is resumed. @raise StartRefused: the authorities
        that clients' certificates may be from cannot be read.
        """

    def shown(handle: Any) -> ClientCertificate | None:
        """After such a handshake: what the client showed."""


class ITlsNoted(ITlsManners):
    """Add-on of ITlsManners: a chain can be looked at without ending the handshake."""

    def noted_in(name: str, manner: TlsManner) -> Any:
        """What `opening_in` gives; a chain that leads to no trusted authority is only noted."""

    def check_chain(handle: Any) -> None:
        """After such a handshake: its chain leads to a trusted authority. @raise PermanentFailure:
        it does not, or is not good today.
        """


class ISurroundings(Interface):
    """All that a plugin gets of the process: never the reactor, never another room."""

    clock: IClock = Attribute("")
    doors: IDoors = Attribute("Grants only the purposes that the plugin's factory names.")
    telemetry: Telemetry = Attribute("")
    disk: IDisk = Attribute("")
    executor: IExecutor = Attribute("")
    resolver: IResolver = Attribute("")
    node: str = Attribute("This node's name.")
    state_directory: str = Attribute("Node-local; survives restarts.")
    virtual_server: VirtualServer = Attribute("As configured.")
    tls: ITls = Attribute("")


class IStsSurroundings(ISurroundings):
    """Add-on of ISurroundings: policies of the domains that mail goes to."""

    sts: IStsPolicies = Attribute("")


# --- the cluster ------------------------------------------------------------------------------


class IResourceListener(Interface):
    """Who hears a cluster resource. Events come in order, on the reactor thread."""

    def addressesChanged(instances: tuple[AddressInstance, ...]) -> None:
        """The usable configured addresses are now exactly these."""

    def losing(deadline: float) -> None:
        """Polite: drain until that monotonic time."""

    def lost(reason: str) -> None:
        """Final: the authority is gone. When this returns nothing of the tenure is open."""

    def health(health: Health) -> None: ...


class IClusterResource(Interface):
    """Who says that this node owns the virtual server, and which addresses are usable here."""

    fencing = Attribute("Fencing: what stops a former owner from writing.")

    def prepare(server: VirtualServer) -> None:
        """Look at everything that can be refused without waiting. No side effect.
        @raise StartRefused, ConfigurationError: nonsense; said before the fork.
        """

    def start() -> None:
        """Begin to watch (netlink, FIFO, lease). Called once, before `acquire`."""

    def acquire() -> Deferred[Grant]:
        """Fires only when the authority says that we own it; waits as long as it takes.
        Cancellable; never fires with None.
        """

    def confirm(grant: Grant) -> Deferred[Grant]:
        """Ask the authority again, by a round trip sent after this call.
        @raise GrantLost: no longer ours.
        """

    def release(grant: Grant, reason: str) -> Deferred[None]:
        """Give it back; idempotent."""

    def probe(level: int) -> Deferred[Health]:
        """0: looks alive (no I/O, 5 ms at most); 1: is alive (bind, lease); 2: deep."""

    def subscribe(listener: IResourceListener) -> None: ...

    def stop() -> Deferred[None]:
        """End watching; nothing is called afterwards. What a process of the resource's own must
        hear is said before this returns: on a loss nobody waits for the Deferred.
        """

    def explain() -> str:
        """Why there is no grant yet, or what is held: one line for `mta status`."""


class ISingleNode(Interface):
    """Add-on marker of IClusterResource: there is no other node. The node's own name is right for
    the virtual server then, and a start that is refused is refused for good.
    """


class ISupervised(Interface):
    """Add-on marker of IClusterResource: a cluster manager started this process and restarts it,
    and has to see it end. Without it a process that lost its tenure begins anew by itself.
    """


class ILease(Interface):
    """Add-on of IClusterResource: its grant ends by itself unless it is renewed in time.

    The deadline counts from the moment the last renewal that was answered was *sent*, in ratios of
    the lease's TTL (spool.md section 9): renew at 0.3, accept nothing new from 0.7, abort at 0.8.
    The resource says `lost` by itself at 0.8; what is asked here is compared besides whenever an
    event is handled, since a process that was stopped handles events before its timers.
    """

    def seconds_left() -> float:
        """Until everything of the tenure must be aborted, by CLOCK_BOOTTIME; 0 or less when that
        moment is past or no grant is held. Under 1 us, no I/O: asked before each act.
        """

    def may_accept() -> bool:
        """False from 0.7 of the TTL on: no association is opened or accepted until it is renewed.
        Under 1 us, no I/O.
        """


class IPlumber(Interface):
    """Add-on of IClusterResource: it puts the virtual addresses on this node and takes them away.

    Nothing of an epoch exists before it is published (spool.md section 3), so the addresses come
    last: the driver asks for them in SEALED, before it binds, and takes them away while every
    socket is closed and before the grant is given back.
    """

    def plumb(grant: Grant, epoch: int, epoch_file: str) -> Deferred[None]:
        """Add each address of `grant`; fires when the required ones are usable. Harmless for an
        address that is here. `epoch_file` is the file whose first octet is "-" while `epoch` is the
        newest ("" when the store has none). Cancellable.
        @raise ClusterNotInitialised: an address could not be added, or the lease or epoch has gone.
        """

    def unplumb() -> Deferred[None]:
        """Take them away. The removal is under way when this returns; fires when they are gone.
        Idempotent, never fails, also without `plumb` before it.
        """


class IAddressFacts(Interface):
    """Add-on of IClusterResource: shows each virtual address with what the kernel says of it."""

    def address_facts() -> tuple[AddressFact, ...]:
        """In the configuration's order; one for each interface that has the address, one for an
        address that is nowhere here. By what was last heard: no I/O, never raises.
        """


class IReadiness(Interface):
    """Add-on of IClusterResource: says on a standby what would keep it from taking over."""

    def would_fail() -> str:
        """What this resource lacks for a takeover by this node (a right, a device, its authority's
        ear), as one line; "" when nothing. That another node is the owner is no lack. By what is
        known already: no I/O that blocks, under 5 ms, never raises; asked every 30 s on a standby.
        """


class ISpoolLocker(Interface):
    """Add-on of IClusterResource: keeps a second process out of the spool by a lock."""

    def lock_in(directory: str) -> None:
        """The lock is to lie in this directory (the spool's). Called before `prepare`."""


class IStaleAddresses(Interface):
    """Add-on of IClusterResource: it can tell when addresses are left over on a node that is not
    the owner any more: the program that moves them is dead or stopped, or the authority names
    another owner while they are still here.
    """

    def stale_addresses() -> tuple[IPAddress, ...]:
        """Configured addresses that are usable here while nobody would take them away. No I/O."""


class ITenant(Interface):
    """What lives only while a tenure does: listeners, scheduler, agents. `service` builds one for
    the ownership driver, which knows nothing of mail.
    """

    def start(tenure: ITenure) -> Deferred[None]:
        """ONLINE: listen, then let the queue move. @raise MTAError: cannot; the tenure ends."""

    def suspend(reason: str) -> None:
        """The address went, the epoch is still ours: every association is gone already."""

    def drain(deadline: float) -> Deferred[None]:
        """Accept nothing new, finish what is open; fires when idle or at the deadline."""

    def stop(reason: str) -> None:
        """The tenure has ended (its sockets are closed): cancel everything. Never raises."""


# --- the spool --------------------------------------------------------------------------------


class IContent(Interface):
    """A stored content as the wire form to send: prepend block, headers, body.

    DOT_STUFFED contents end in CRLF and lack the final dot line.
    """

    size_octets: int = Attribute("")
    resident: tuple[bytes, ...] | None = Attribute("All of it, when it lies in memory.")

    def read() -> Deferred[bytes]:
        """The next piece (256 KiB at most), b"" at the end. @raise Corrupt, Unavailable."""

    def close() -> None:
        """Give the descriptor back. Harmless when done before."""


class IStaging(Interface):
    """A message being received: nothing of it is promised until `commit` fires."""

    queue_id: str = Attribute("Made when staging began; unique for ever.")
    size_octets: int = Attribute("What was written so far.")

    def write(chunk: bytes) -> Deferred[None] | None:
        """Take a chunk. A Deferred asks the caller to pause until it fires (back-pressure).
        Errors (no room, bad disk) are kept for `commit`.
        """

    def commit(
        envelope: Envelope, state: MessageState, prepend: bytes, intent: Intent | None
    ) -> Deferred[None]:
        """Make it durable in a group, re-read the epoch, then fire: the only durability point.

        The message counts as taken (see ISpool.due) by whoever commits it. `prepend` goes before
        all that was written. @raise Unavailable, Full, Fenced, Unknown.
        """

    def remember(client: str, transaction: str, expires: float) -> None:
        """Before `commit`: its batch also says that the client named the transaction so, until wall
        time `expires`, for `ISpool.recall`. The last one of the same association is forgotten.
        """

    def abort() -> None:
        """Forget it. Harmless after commit."""


class IRevisable(IStaging):
    """Add-on of IStaging: policies may put other content in the place of what was written, and hear
    what there is once more. Without it a body stays as it came, and no policy can stand behind one
    that provides IContentEditor: such messages are answered 451, with a line that says so.
    """

    def another() -> IStaging:
        """An empty one under the same queue id. Who makes it commits one of the two at most, and
        aborts the other.
        """

    def read(offset: int) -> Deferred[bytes]:
        """What was written, from `offset` on: 256 KiB at most, b"" behind its end. One at a time,
        and not beside a `write`. @raise Unavailable, Full.
        """


class ISpool(Interface):
    """The durable store of messages, under one epoch at a time. Law: justify durably, re-read the
    epoch, then act; publish, then read.
    """

    guarantees: Guarantees = Attribute("")
    epoch: int = Attribute("The published epoch, 0 before.")

    # life of a tenure
    def inspect() -> Deferred[tuple[EpochRecord, ...]]:
        """Everything that can refuse, without a trace; answers the epochs known, oldest first.
        @raise Unavailable, Full, Corrupt, StartRefused.
        """

    def publish(claim: Claim, above: int) -> Deferred[int]:
        """Publish exactly `above + 1` (spool.md section 3). @raise Fenced: it exists already."""

    def recover() -> Deferred[Recovery]:
        """Read the predecessor (spool.md section 5)."""

    def seal() -> Deferred[None]:
        """Own checkpoint durable, epoch re-read: from here on it may act. @raise Fenced."""

    def check() -> None:
        """Re-read the epoch. @raise Fenced. Under 1 us."""

    def heartbeat() -> None:
        """Bump the counter in the epoch file; never blocks for long, never raises."""

    def release(reason: str) -> Deferred[None]:
        """Finish the last commit, checkpoint, mark the epoch released, close."""

    def abandon() -> None:
        """Lost: accept and act no more; open commits fail with Fenced. Returns at once."""

    def stuck_seconds() -> float:
        """How long the committer has been in its present disk call; 0 when idle."""

    # accept
    def stage(association: str) -> IStaging:
        """Begin to receive. @raise Full, Unavailable, Fenced."""

    def open_association(slot: str, ends: FourTuple, inbound: bool) -> None:
        """Journal it (not synced by itself)."""

    def close_association(slot: str) -> None: ...

    # send
    def journal(results: Sequence[Result], intents: Sequence[Intent]) -> Deferred[None]:
        """RESULTs (with their reports) and INTENTs in one batch: durable, epoch re-read, fired.
        @raise Unavailable, Fenced, Unknown.
        """

    def in_doubt() -> tuple[Doubt, ...]: ...

    def load(
        queue_id: str,
    ) -> tuple[Envelope, MessageState] | Deferred[tuple[Envelope, MessageState]]:
        """@raise KeyError: not queued. @raise Corrupt: set aside and reported."""

    def content(queue_id: str) -> IContent | Deferred[IContent]: ...

    # due work: what is due is taken by asking, and comes back by journal or give_back
    def due(now: float, limit: int, avoid: Collection[bytes]) -> list[DueWork]:
        """Take up to `limit` messages that are due at wall time `now`, fair over domains, none
        whose domain is in `avoid`; within a domain strictly by priority (six levels at least),
        then oldest due first. Bounded work, no scan of the queue. What has a time
        (`Envelope.deliver_by`) is a domain of its own, which nobody can avoid.
        """

    def next_due(avoid: Collection[bytes]) -> float | None:
        """Wall time of the earliest message not taken; None when there is none."""

    def give_back(queue_id: str, due: float | None) -> None:
        """Not attempted after all; due again at `due` or as before."""

    # named transactions (RFC 1845); IStaging.remember adds one
    def recall(client: str, transaction: str) -> Remembered | None:
        """One that became ours under this or an older epoch, until it expires. What is answered is
        durable; whoever tells its client so re-reads the epoch first.
        """

    def forget_last(association: str) -> None:
        """Its client knows what became of its last transaction there. Harmless when unknown."""

    # operators
    def scan(chosen: QueueFilter, after: str, limit: int) -> Deferred[list[QueueEntry]]:
        """Entries in order of queue id, those behind `after`. Never blocks the hot path."""

    def act(queue_ids: Sequence[str], act: QueueAct, now: float) -> Deferred[list[str]]:
        """Durable before it fires; answers the ids that it applied to."""

    def stats() -> SpoolStats: ...


class IEpochFile(Interface):
    """Add-on of ISpool: an epoch has a file that another process can look at."""

    def epoch_file() -> str:
        """Its path while an epoch is held, else "". Octet 0 is "-" while no newer one exists."""


class ISuspension(Interface):
    """Add-on of ISpool: the heartbeat tells the other nodes whether anything is open."""

    def suspended(is_away: bool) -> None:
        """From the next heartbeat on: a required address of the owner is away, or back."""


class IUsedInstances(Interface):
    """Add-on of ISpool: the other nodes learn which address instances an epoch has used."""

    def used(instances: Sequence[AddressInstance]) -> None:
        """From the next heartbeat on: all of them, those that it was claimed with too. A heartbeat
        that is lost, or finds no room, costs a claim without need, and no mail.
        """


class IAssociations(Interface):
    """Add-on of ISpool: an association that we reset is no association that was closed."""

    def leave_association(slot: str) -> None:
        """It was cut off by us: whether its client has read the last reply nobody knows. What was
        last accepted on it is in doubt from now on, and so is what is being committed. Harmless
        when unknown.
        """


class IDoubts(Interface):
    """Add-on of ISpool: finds one message's doubts without looking through the list."""

    def doubts_of(queue_id: str) -> tuple[Doubt, ...]:
        """The outbound ones, the newest last. Under 1 us."""


class IRoom(Interface):
    """Add-on of ISpool: says before a message is received whether there is room for it."""

    def check_room(octets: int) -> None:
        """`octets` is what the client declared, 0 when it did not. Under 2 us: no system call.
        @raise Full, Unavailable.
        """


# --- inbound: association kind -> transfer ----------------------------------------------------


class IReception(Interface):
    """One inbound association as the inner house sees it. The adapter awaits every answer in
    order. Built by IReceptionHost; kind-independent: offer, then acknowledge.

    A positive reply to `end` is given only after the message is durable and the epoch re-read.
    `None` as answer: this method has no objection, the adapter gives the protocol's usual reply.
    """

    def connected() -> Reply | None | Deferred[Reply | None]:
        """A negative reply ends the association (421 or 554 greeting)."""

    def helo(name: bytes, protocol: str) -> Reply | None | Deferred[Reply | None]: ...

    def mail(
        sender: Address, parameters: dict[bytes, bytes | None]
    ) -> Reply | None | Deferred[Reply | None]:
        """Parameters are syntactically checked; keys in upper case (SIZE, BODY)."""

    def rcpt(
        recipient: Address, parameters: dict[bytes, bytes | None]
    ) -> Reply | None | Deferred[Reply | None]: ...

    def data() -> Reply | None | Deferred[Reply | None]:
        """DATA was said with at least one accepted recipient; None: go ahead (354)."""

    def chunk(chunk: bytes) -> Deferred[None] | None:
        """Wire form. A Deferred asks for a pause."""

    def end(fault: Reply | None) -> Deferred[Reply]:
        """End of data. `fault`: the machine saw something that must refuse the message (bare LF,
        line too long, too big); it is discarded and that reply given.
        """

    def acknowledged() -> None:
        """The reply to `end` was handed to the kernel. Commands of the next transaction that came
        in the same piece may have been asked before; its `end` never is.
        """

    def reset() -> None:
        """RSET, EHLO again: forget the transaction."""

    def closed(stage: str, commands: str) -> None:
        """The association ended. `stage` is "" for an orderly QUIT, else where it was lost."""


class ISecured(Interface):
    """Add-on of IReception: TLS is part of what it says of an association."""

    def secured(session: str) -> None:
        """TLS was established (version, cipher, bits); what the peer said before is void."""


class IPresentedReception(Interface):
    """Add-on of IReception: its association may come to speak for another client (XCLIENT)."""

    def presented(
        peer: PeerInfo, helo: bytes, protocol: str, user: str
    ) -> Reply | None | Deferred[Reply | None]:
        """From now on the client is `peer`, who is not at the far end of the socket; no transaction
        is open. Everything begins anew as with `connected`, and is answered like it; but one
        association it stays, for the journal and for its end. `helo` and `user` are what it has
        said and who it has proved to be, b"" and "" for nothing yet.
        """


class ICertifies(Interface):
    """Add-on of IReception: a certificate is part of who a client is."""

    def certified(certificate: ClientCertificate | None) -> str:
        """After `secured`, where clients are asked: what this one showed. Answers how far that is
        trusted, in Postfix's words: Anonymous, Untrusted, Trusted, Verified. Whom it refuses for it
        hears so by the answer of `connected` or `helo`, whichever comes next.
        """


class IChunkedReception(Interface):
    """Add-on of IReception: takes content as it is, whatever octets it has (RFC 3030)."""

    def bdat() -> Reply | None | Deferred[Reply | None]:
        """In the place of `data`: what `chunk` brings from now on is no wire form, and no line. Who
        sends it need not have read any reply: the first octets may have come with MAIL.
        """


class IAuthenticatingReception(Interface):
    """Add-on of IReception: clients may say who they are (RFC 4954)."""

    admitted: bool = Attribute("The client may relay, by its network or under its name.")
    mechanisms: tuple[str, ...] = Attribute("Offered to this client, in the order of EHLO's line.")

    def auth(mechanism: str, initial: bytes | None) -> Reply | None | Deferred[Reply | None]:
        """One of `mechanisms`, and the initial response, if any. 334 with the challenge in base64:
        `auth_response` follows. None: authenticated, from now on this is another client.
        """

    def auth_response(response: bytes | None) -> Reply | None | Deferred[Reply | None]:
        """To the last 334, answered as `auth` is. None: the client gave up; that is refused."""


class IUnknownCommands(Interface):
    """Add-on of IReception: somebody may want to hear of commands that we do not know."""

    wants_unknown: bool = Attribute("Somebody does. It stays so as long as the association.")

    def unknown(line: bytes) -> Reply | None | Deferred[Reply | None]:
        """The client said `line`, without its CRLF: printable ASCII, TAB and blanks, and nothing
        that comes between chunks of content. It is an error whatever is answered; None: 500.
        """


class IReceptionHost(Interface):
    """Gives every inbound association its reception."""

    def reception(tenure: ITenure, peer: PeerInfo) -> IReception: ...


class IListenerKind(Interface):
    """An association kind in the responder's role: what a `listeners:` block is."""

    def listen(tenure: ITenure, host: IReceptionHost) -> Sequence[IRevocable]:
        """Open the ports on every usable address of the tenure."""


class IDrains(Interface):
    """Add-on of a listener kind that can end its open associations politely."""

    def drain() -> Deferred[None]:
        """Each association ends when no transaction is open on it; fires when all have. Call it
        after the ports were revoked.
        """


# --- outbound: transfer -> association kind ---------------------------------------------------


class ISender(Interface):
    """An open association that may send. One transfer at a time up to its commit point.

    The agent, not the kind, journals INTENT before `commit` and RESULT after it.
    """

    slot: str = Attribute("Names this association in INTENT and RESULT; unique in the epoch.")
    source: str = Attribute("The local address that the peer sees, from getsockname().")
    relay: str = Attribute("name[address]:port for the log.")
    is_open: bool = Attribute("False once it ended; then ask for another.")
    can_overlap: bool = Attribute("`prepare` may be called while `commit` of the last is pending.")

    def prepare(
        queue_id: str, envelope: Envelope, recipients: tuple[int, ...], size_octets: int
    ) -> Deferred[tuple[Outcome, ...]]:
        """Everything before the commit point (MAIL, RCPT, DATA). Fires with the outcomes of the
        recipients that are settled already; when some are left, `commit` is next.
        @raise TransientFailure: the association ended; nothing was sent of this message.
        @raise Unfit: this far end cannot take it as it is. The association is as it was before.
        """

    def commit(content: IContent) -> Deferred[tuple[Outcome, ...]]:
        """Content and commit point. Fires with the outcomes of the remaining recipients. A reply
        that did not come is OutcomeKind.UNKNOWN, never an exception.
        """

    def withdraw() -> Deferred[None]:
        """Do not commit what was prepared: RSET or an end; the association may be used again."""

    def close() -> Deferred[None]:
        """Orderly (QUIT)."""


class IEnds(Interface):
    """Add-on of ISender: the association is a connection between two IP addresses."""

    ends: FourTuple | None = Attribute(
        "Both ends as the kernel has them (getsockname, getpeername); None: no IP addresses."
    )


class INotifies(Interface):
    """Add-on of ISender: the far end may take over what senders ask of reports (RFC 3461)."""

    notifies: bool = Attribute("It does: who asked to be told of success is told by the far end.")


class IDeliversBy(Interface):
    """Add-on of ISender: the far end may keep to the time that a sender gave (RFC 2852)."""

    delivers_by: bool = Attribute("It does, and returns what is late, or tells its sender.")

    def keep_time(clock: IClock) -> None:
        """What is left of a message's time is counted by this clock: the queue's, which may not
        believe the machine's.
        """


class IPriorities(Interface):
    """Add-on of ISender: the far end may not be told how urgent a message is (RFC 6710)."""

    tunnels: bool = Attribute("It cannot, and a header field is to tell it (RFC 6758).")


class ILimits(Interface):
    """Add-on of ISender: the far end may say how much it takes of one association (RFC 9422)."""

    is_spent: bool = Attribute("It takes no further transaction on this one: close it, ask anew.")


class IBodyTypes(Interface):
    """Add-on of ISender: the far end does not take every content as it is (RFC 6152, RFC 3030)."""

    takes: BodyType = Attribute("The most that it takes; what needs more is converted before.")


class ICheckpoints(Interface):
    """Add-on of ISender: the far end can tell a transaction that it completed from a new one, by a
    name that we give it (RFC 1845).
    """

    can_checkpoint: bool = Attribute("It can, and we are to make use of it.")
    transaction: str = Attribute(
        'What names the transaction that was prepared last. "": none, for what the far end has '
        "under that name is something else."
    )

    def prepare_named(
        queue_id: str,
        envelope: Envelope,
        recipients: tuple[int, ...],
        size_octets: int,
        *,
        transaction: str,
        is_resend: bool,
    ) -> Deferred[tuple[Outcome, ...]]:
        """As ISender.prepare. With `is_resend` the transaction was let go before, to this far end,
        for these recipients: if it is complete there `commit` ends it and sends no content.
        """

    def cut() -> None:
        """End without QUIT: that would say that every result on this association is durable."""


class IAssociationKind(Interface):
    """How one kind of association is opened towards a far end, and where its commit point is."""

    name: str = Attribute("smtp, lmtp, maildir, discard ...")
    commit_point: str = Attribute("Its name: final dot, link(2), S-ACTIVITY-END.")
    may_send: bool = Attribute("")
    may_receive: bool = Attribute("")

    def open(tenure: ITenure, hop: NextHop) -> Deferred[ISender]:
        """@raise TransientFailure: not now (unreachable, 421/4yz greeting): try the next hop.
        @raise PermanentFailure: this hop refuses us for good (5yz greeting): try the next hop.
        """


class IExplains(Interface):
    """Add-on of IAssociationKind: on which terms it speaks depends on whom with."""

    def explain(domain: str) -> str:
        """In words, with who decided, for `mta route explain`. `domain` as in NextHop."""


# --- routing, resolving -----------------------------------------------------------------------


class IRouting(Interface):
    """Pure and deterministic: the same on every node, with the reason in words."""

    def route(recipient: Address, envelope: Envelope | None) -> Route | Unroutable: ...

    def accepts_anyone(recipient: Address) -> bool:
        """The most specific address space for it says `accept: anyone`."""

    def connector_up(name: str) -> None: ...

    def connector_down(name: str) -> None: ...


class IRoutingBuilder(Interface):
    """What a routing plugin's factory creates: it is told the connectors once they are known."""

    def build(connectors: tuple[Connector, ...]) -> IRouting: ...


class IResolver(Interface):
    """DNS as mail needs it. Answers are never guessed: a failure is transient and named."""

    def addresses(name: str) -> Deferred[tuple[IPAddress, ...]]:
        """A and AAAA. @raise TransientFailure, PermanentFailure (no such name)."""

    def mail_hosts(domain: bytes) -> Deferred[tuple[MailHost, ...]]:
        """MX targets sorted by preference, shuffled within; implicit A/AAAA when no MX exists.
        @raise PermanentFailure: null MX (5.1.10), no such domain (5.1.2), or nothing usable.
        @raise TransientFailure: no answer.
        """


class ISecureResolver(Interface):
    """Add-on of a resolver: says which answers were validated by DNSSEC (RFC 4035), for DANE.

    Its `mail_hosts` fills `MailHost.proven` where MX, addresses and every alias between them were.
    What it cannot know for certain is a failure: an answer that is bogus is never an insecure one.
    """

    validates: bool = Attribute("False: nothing is ever proven here, for nobody validates.")

    def mail_host(name: str) -> Deferred[MailHost]:
        """A host that no MX led to, preference 0. @raise TransientFailure, PermanentFailure."""

    def tlsa(base: str, port: int) -> Deferred[TlsaRecords]:
        """The TLSA records of TCP port `port` of `base` (RFC 6698 3). No such name: no records.
        @raise TransientFailure: no answer, or one that is bogus.
        """


class ITextResolver(Interface):
    """Add-on of a resolver: what names say of themselves in TXT records."""

    def texts(name: str) -> Deferred[tuple[bytes, ...]]:
        """Each record's strings put together, aliases followed. No such name: no records.
        @raise TransientFailure: no answer.
        """


class IStsPolicies(Interface):
    """What domains demand of those who send them mail: MTA-STS (RFC 8461). Found out and kept for
    the whole process.
    """

    def policy(domain: str) -> Deferred[StsPolicy | None]:
        """Of this domain (A-labels, lower case), as it stands after looking for a newer one, or
        after waiting a while for it. None: it has none that is known. Never fails.
        """

    def known(domain: str) -> str:
        """What is known of its policy, in words, asking nobody."""


# --- policy -----------------------------------------------------------------------------------


class ITransaction(Interface):
    """One message on its way in, as the policies see it. Lives from MAIL to the reply to the
    content (for connect, helo, auth and disconnect: as long as the association, without a sender).

    What is changed here is what is stored and sent on; nothing else of a policy's is.
    """

    peer: PeerInfo = Attribute("Who offers it, and where it arrived.")
    helo: bytes = Attribute("What the peer called itself; untrusted. b'' before HELO.")
    protocol: str = Attribute("RFC 3848 keyword: SMTP, ESMTP, LMTP ...")
    user: str = Attribute("Who the peer has proved to be; '' for nobody (RFC 4954).")
    admitted: bool = Attribute("The peer may send to any routable recipient (relay-from, or AUTH).")
    sender: Address = Attribute("The reverse-path; NULL_ADDRESS for reports, and before MAIL.")
    parameters: dict[bytes, bytes | None] = Attribute("Of MAIL; keys in upper case.")
    recipients: tuple[Recipient, ...] = Attribute("Those accepted so far.")
    recipient: Recipient | None = Attribute("In the rcpt hook: the one that is asked about.")
    queue_id: str = Attribute("From the data hook on; '' before.")
    headers: bytes = Attribute(
        "From the headers hook on: the header block, each line with its CRLF, as IStoredForm says,"
        " without the empty line behind it; at most header-limit octets."
    )
    chunk: bytes = Attribute("In the body hook: the next piece of the body, as IStoredForm says.")
    size_octets: int = Attribute("Content received so far.")
    notes: dict[str, Any] = Attribute("A policy's own remarks; gone with the transaction.")
    association_notes: dict[str, Any] = Attribute("The same, kept as long as the association.")

    def add_header(name: bytes, value: bytes) -> None:
        """Put a header field before all others (behind our Received). A value over several lines
        is folded; control bytes become "?". @raise ValueError: no field name.
        """

    def replace_sender(sender: Address) -> None: ...

    def replace_recipient(recipient: Address) -> None:
        """In the rcpt hook: it goes there instead; the original is kept for reports."""

    def set_recipients(recipients: Sequence[Recipient]) -> None:
        """In the end hook: these and no others. @raise ValueError: none (use `discard`)."""

    def hold(reason: str) -> None:
        """Accept it, and keep it in the queue until an operator releases it."""

    def discard(reason: str) -> None:
        """Answer as if it was accepted, and drop it. Logged with the reason."""


class IStoredForm(ITransaction):
    """Add-on of ITransaction: how its content came, and what will stand before it."""

    content_form: ContentForm = Attribute(
        "From the data hook on, of headers and chunks: DOT_STUFFED when they come by DATA, OPAQUE"
        " by BDAT (RFC 3030)."
    )
    header_is_whole: bool = Attribute(
        "From the headers hook on: `headers` is all of the header; False: header-limit cut it."
    )
    stands_before: bytes = Attribute(
        "In the end hook: the fields between our Received and `headers`, never dot-stuffed: those"
        " that policies put there so far, and Date and Message-ID where we complete a message."
    )


class IEditableHeader(ITransaction):
    """Add-on of ITransaction: fields that are there may be changed."""

    header_can_change: bool = Attribute(
        "In the end hook: they may. False: no policy in the list provides IContentEditor, or the"
        " client named the transaction (RFC 1845), whose octets must stay what they are."
    )

    def change_fields(changes: Sequence[tuple[bytes, int, bytes]]) -> None:
        """In the end hook: each a field's name, the how manieth of that name from 1 on as they
        stand now, and a new value; b"": it goes. Where there is none of that number it is added.
        `headers` is the new block then. @raise ValueError: no field name.
        """


class IEditableBody(ITransaction):
    """Add-on of ITransaction: another body may take the place of the one that came."""

    body_can_change: bool = Attribute(
        "In the end hook: it may. False where `header_can_change` is, for a header that is not"
        " whole, and in a store that cannot do it (IRevisable)."
    )

    def replace_body() -> INewBody:
        """In the end hook: begin one. What is not header by RFC 5322 is body, and goes with it."""


class INewBody(Interface):
    """A body on its way into the store, as it is: no dot is stuffed. A lone CR or LF becomes CRLF
    (not in BINARYMIME). For the rest it must be what the client could have sent: no NUL, no line
    and no message longer than its listener allows.
    """

    def write(octets: bytes) -> Deferred[None] | None:
        """Take a piece. A Deferred asks for a pause. @raise PermanentFailure: none can be taken."""

    def take() -> None:
        """It is whole: from now on it is the message's. @raise PermanentFailure: as `write`."""

    def abandon() -> None:
        """The message keeps what it has. Harmless when it was taken."""


class IEditableReturn(ITransaction):
    """Add-on of ITransaction: how its sender wants reports to be (RFC 3461 4.3, 4.4)."""

    def replace_return(ret: bytes | None, envelope_id: bytes | None) -> None:
        """In the end hook: RET (FULL or HDRS) and ENVID (xtext) are these, None for neither."""


class IRefusedRecipient(ITransaction):
    """Add-on of ITransaction: a recipient that is not taken."""

    refusal: Reply | None = Attribute("In the refused hook: what `recipient` is answered.")


class ICommandLine(ITransaction):
    """Add-on of ITransaction: a line that is no command we know."""

    line: bytes = Attribute(
        "In the unknown hook: all of it, without CRLF; printable ASCII and TAB."
    )


class ISaslMechanism(ITransaction):
    """Add-on of ITransaction: how the peer has proved who it is."""

    mechanism: str = Attribute("The SASL mechanism, in upper case; '' for nobody (RFC 4422).")


class IPolicy(Interface):
    """Checks and changes on the way in. A policy pays only for the hooks it names in `hooks`.

    Hooks may run twice and on a superseded node: side effects must be idempotent by queue id.
    In order: connect, helo, auth (the peer has proved who it is), mail, rcpt (once a recipient,
    after the relay rule had no objection), data, headers, body (once a piece), end. These may
    refuse. Waited for, the answer is ignored: refused (a recipient that the relay rule or a policy
    did not take, IRefusedRecipient). Whenever one comes, but not between chunks of content: unknown
    (a line that is no command we know, ICommandLine; with the transaction that is open, or the
    association's). It is refused whatever is answered: a negative Reply says with which words, None
    and a positive one leave it at 500. Told only: queued (durable and answered), abort (a
    transaction that came to nothing), disconnect.
    """

    hooks: frozenset[str] = Attribute("Of those above.")

    def on(hook: str, transaction: ITransaction) -> Reply | None | Deferred[Reply | None]:
        """Called for each hook in `hooks`. None: go on, the next policy is asked. A negative Reply
        refuses the command (headers, body: the message, at its end); 421 ends the association. A
        positive Reply: go on, and ask no later policy. What it raises is answered 451 4.3.0.
        """


class IContentEditor(IPolicy):
    """Add-on marker of IPolicy: it may change content that is there (IEditableHeader,
    IEditableBody).

    With one in the list headers wait in memory for the end hook, and the store gets the body first.
    Policies behind it hear headers, body and end when it has ended, and what it made of the message
    with the fields that stand before it; MAIL, RCPT and DATA they hear when they come.
    """


class ISigner(IPolicy):
    """Add-on marker of IPolicy: in the end hook it vouches for the content as it stands there. No
    IContentEditor may stand behind it: where the factories name these two as what they provide,
    that is refused when the configuration is read, otherwise at the start.
    """


class IDeliveryPolicy(IPolicy):
    """Add-on of IPolicy: wants to hear what became of messages."""

    def delivered(event: Transferred) -> None:
        """One recipient's outcome of one transfer. Must be quick; what it raises is logged."""


# --- plugins ----------------------------------------------------------------------------------


class IAuthenticator(Interface):
    """Knows who may bear which name: what the `auth:` block chooses."""

    mechanisms: tuple[str, ...] = Attribute(
        "SASL names in upper case (RFC 4422 3.1), the strongest first."
    )

    def begin(mechanism: str, peer: PeerInfo) -> IAuthExchange:
        """An exchange by one of `mechanisms`; no I/O yet."""


class IAuthExchange(Interface):
    """One exchange: `step` until its Deferred has Authenticated or a failure, or `abandon`."""

    def step(response: bytes | None) -> Deferred[Challenge | Authenticated]:
        """The client's next response, without base64; None only at first: it gave no initial one.

        Fails with PermanentFailure 535 5.7.8 (refused; never says whether the user exists), or 501
        5.5.2 (that is no response of this mechanism); TransientFailure 454 4.7.0: it cannot be
        checked now. Cancelling it abandons the exchange.
        """

    def abandon() -> None:
        """The client gave up, or has gone. Harmless behind the end."""


class IPluginFactory(Interface):
    """One dropin of `mta.plugins`: small, cheap to import, verified when found."""

    name: str = Attribute("As the configuration names it.")
    provides: type[Interface] = Attribute("The contract of what `create` answers.")
    version: int = Attribute("The contract's version it was written for; 1 today.")
    purposes: frozenset[str] = Attribute("Service-door purposes it needs; usually empty.")
    schema: type[Any] = Attribute("A pydantic model of the plugin's own configuration block.")

    def create(configuration: Any, surroundings: ISurroundings) -> Any:
        """Build it. `configuration` is an instance of `schema`. Synchronous, no I/O."""


class IConnectorFactory(IPluginFactory):
    """Add-on for a factory of association kinds: how a connector of this kind names its far end.

    Without it a connector may have `bridgeheads:` or `delivery: mx` or neither.
    """

    far_end_keys: tuple[str, ...] = Attribute(
        "Keys of the connector's block of which exactly one is given: bridgeheads, delivery (mx),"
        " or a key of the kind's own schema; () for a kind that has no far end address."
    )
