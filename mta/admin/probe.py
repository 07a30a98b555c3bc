"""`mta probe`: is the virtual server served here? Asked by cluster managers and by people.

Law: only what was seen in this very probe is said to be well. A node that is not the owner, or is
on its way there, answers AWAY (75); an owner that does not serve answers 69; nothing is repaired,
and nothing but a probe file is written. Every step has its own time, so that the answer comes.

Levels 0, 1 and 2 are the cluster resource's; 10 and 20 are the depths of an OCF monitor.
RFC 5321 3.1, 4.2 and 4.3.1: the greeting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mta.admin.text import neutral
from mta.errors import MTAError, Unavailable
from mta.interfaces import IClock, IDoors
from mta.model import EpochRecord, Health, HealthLevel
from mta.settings import is_within

LEVELS = (0, 1, 2, 10, 20)
"""0: looks alive, no I/O. 1: is alive, each address bound, the lease asked. 10: as 1, and each of
our listeners greets a connection to its virtual address. 20, and 2 which means the same: as 10, and
the spool takes a probe file and holds our epoch as its newest.
"""
GREETING_SECONDS = 5.0
"""From our own node; a greeting that takes longer is an outage for peers."""
SPOOL_SECONDS = 10.0
"""As long as a disk may be stuck before ownership is given up for it."""
FOR_ITSELF = b"PROXY UNKNOWN\r\n"
"""The connection stands for itself (haproxy's proxy-protocol.txt, 2.1)."""
LONGEST_GREETING = 4096
"""Octets; RFC 5321 4.5.3.1.5 allows 512 a line."""

T = TypeVar("T")


class NotServed(MTAError):
    """This node is the owner, and a client would find nothing, or another."""

    exit_code = os.EX_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Place:
    """Where a listener of ours must greet."""

    address: str
    port: int
    balancers: tuple[IPv4Network | IPv6Network, ...] = ()
    """Its `proxy-from`: it waits for a header when this node is in it."""

    @property
    def endpoint(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp:{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.address} port {self.port}"


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found: one word, one line, and the code that `mta probe` ends with."""

    health: str
    """ok | degraded | failed | away."""
    text: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed: how this node stands, and what its owner must be able to show."""

    resource: Callable[[int], Deferred[Health]]
    """IClusterResource.probe."""
    absence: Callable[[], tuple[int, str]]
    """(0, "") while a tenure listens; else the exit code and why not."""
    places: Callable[[], Sequence[Place]]
    inspect: Callable[[], Deferred[tuple[EpochRecord, ...]]]
    """ISpool.inspect: everything that can refuse, a probe file written and synced."""
    epoch: Callable[[], int]
    check: Callable[[], None]
    """The tenure's. @raise MTAError."""
    network_name: str


class Prober:
    """`probe(level)`; one instance a process."""

    def __init__(self, subject: Subject, doors: IDoors, clock: IClock) -> None:
        self._subject = subject
        self._doors = doors
        self._clock = clock

    def probe(self, level: int) -> Deferred[Probed]:
        """Fires within about half a minute, whatever hangs; never fails."""
        return Deferred.fromCoroutine(self._probe(level))

    async def _probe(self, level: int) -> Probed:
        absent = self._absent()
        if absent is not None:
            return absent
        try:
            health = await self._look(level)
        except MTAError as fault:
            health = Health(HealthLevel.FAILED, str(fault))
        # What ended the tenure meanwhile says more than what it did to the probe.
        absent = self._absent()
        if absent is not None:
            return absent
        is_well = health.level is not HealthLevel.FAILED
        code = os.EX_OK if is_well else os.EX_UNAVAILABLE
        return Probed(health.level.value, neutral(health.text), code)

    def _absent(self) -> Probed | None:
        code, why = self._subject.absence()
        if not code:
            return None
        return Probed("away" if code == os.EX_TEMPFAIL else "failed", neutral(why), code)

    async def _look(self, level: int) -> Health:
        depth = {2: 20}.get(level, level)
        health = await self._resource(2 if depth == 20 else min(depth, 1))
        if health.level is HealthLevel.FAILED or depth < 10:
            return health
        said = [] if health.level is HealthLevel.OK else [health.text]
        for place in self._subject.places():
            busy = await self._greeted(place)
            said.append(busy or f"{place} greets")
            health = Health(HealthLevel.DEGRADED, busy) if busy else health
        if depth == 20:
            said.append(await self._spool())
        return Health(health.level, "; ".join(said) or "no listener is configured")

    async def _resource(self, level: int) -> Health:
        try:
            return await self._within(SPOOL_SECONDS, self._subject.resource(level))
        except CancelledError:
            return Health(
                HealthLevel.FAILED, f"the cluster resource did not answer in {SPOOL_SECONDS:g} s"
            )

    async def _greeted(self, place: Place) -> str:
        """ "" for our greeting; what it said when we are too busy for this client.
        @raise MTAError: nobody accepts there, it is not ours, or it refuses for good.
        """
        greeting = Greeting(place.balancers)
        opening = self._doors.service_connect("probe", place.endpoint, greeting)
        opening.addErrback(greeting.failed)
        try:
            line = await self._within(GREETING_SECONDS, greeting.line)
        except CancelledError:
            opening.cancel()
            greeting.close()
            raise NotServed(
                f"{place} does not greet", f"nothing came within {GREETING_SECONDS:g} s"
            ) from None
        words = line.split()
        if line[:1] == b"4":
            # A flood of clients is no reason to move the virtual server: they would follow it.
            return f"{place} is busy: {neutral(line)}"
        if words[:1] != [b"220"]:
            raise NotServed(f"{place} refuses", neutral(line))
        name = words[1] if len(words) > 1 else b""
        if name.lower() != self._subject.network_name.lower().encode():
            raise NotServed(
                f"{place} is answered by {neutral(name) or 'nobody known'}",
                f"our network name is {self._subject.network_name}",
                "another server listens there, or the address is on another machine too",
            )
        return ""

    async def _spool(self) -> str:
        """@raise MTAError: it cannot be written, or our epoch is not its newest."""
        try:
            records = await self._within(SPOOL_SECONDS, self._subject.inspect())
        except CancelledError:
            raise Unavailable("the spool does not answer", f"for {SPOOL_SECONDS:g} s") from None
        self._subject.check()
        ours = self._subject.epoch()
        newest = records[-1].epoch if records else 0
        if newest != ours:
            raise NotServed(
                f"the spool's newest epoch is {newest}", f"this node holds epoch {ours}"
            )
        return f"the spool takes a file, epoch {ours} is its newest"

    def _within(self, seconds: float, waiting: Deferred[T]) -> Deferred[T]:
        """`waiting`, cancelled when it takes longer."""
        timer = self._clock.call_later(seconds, waiting.cancel)

        def settled(result: T | Failure) -> T | Failure:
            timer.cancel()
            return result

        waiting.addBoth(settled)
        return waiting


class Greeting(Protocol):
    """Reads one greeting, says QUIT and leaves. `line` fires with its last line."""

    def __init__(self, balancers: Collection[IPv4Network | IPv6Network] = ()) -> None:
        self.line: Deferred[bytes] = Deferred()
        self._balancers = balancers
        self._octets = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        # A balancer on this very node bears the same address as we do.
        if self._balancers and is_within(transport.getHost().host, self._balancers):
            transport.write(FOR_ITSELF)

    def dataReceived(self, data: bytes) -> None:
        if self.line.called:
            return
        self._octets += data
        *lines, _rest = self._octets.split(b"\r\n")
        for line in lines:
            if line[3:4] != b"-":  # RFC 5321 4.2.1: the last line of a reply
                if self.transport is not None:
                    self.transport.write(b"QUIT\r\n")
                self.close()
                self.line.callback(line)
                return
        if len(self._octets) > LONGEST_GREETING:
            self.close()
            self.line.errback(NotServed("the greeting does not end"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.line.called:
            self.line.errback(NotServed("the connection was closed before the greeting"))

    def failed(self, failure: Failure) -> None:
        """It could not be opened."""
        if not self.line.called:
            self.line.errback(failure)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
