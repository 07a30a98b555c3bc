"""One question to one name server: over UDP, and over TCP when the answer was cut off.

Law: a socket of its own with a port of the kernel's choice and a random id for each question, so
that an answer must be seen to be forged. Packets from elsewhere, and packets that do not fit the
question, are passed over and the waiting goes on. Sockets come through the service door only. That
an answer was validated is believed of a server on loopback alone.

RFC 5452 (forged answers), RFC 7766 (TCP).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import dns.name
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import DatagramProtocol, Protocol, connectionDone
from twisted.python.failure import Failure

from mta.errors import MTAError
from mta.interfaces import IClock, IDoors
from mta.model import Bridgehead
from mta.resolver.packets import Answer, Status, answer, question
from mta.resolver.settings import is_loopback

_LONGEST = 65_535


class _Datagrams(DatagramProtocol):
    """Hears what comes to the socket of one question."""

    def __init__(self, heard: Callable[[bytes, Any], None]) -> None:
        self._heard = heard

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._heard(datagram, addr)


class _Stream(Protocol):
    """One question, one answer, each behind two octets of length."""

    def __init__(self, packet: bytes, heard: Callable[[bytes | None], None]) -> None:
        self._packet = packet
        self._heard = heard
        self._buffer = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(len(self._packet).to_bytes(2, "big") + self._packet)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < 2:
            return
        size = int.from_bytes(self._buffer[:2], "big")
        if len(self._buffer) >= size + 2:
            packet, self._buffer = self._buffer[2 : size + 2], b""
            self._heard(packet)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._heard(None)


class Exchange:
    """Asks one server. Holds no state between questions."""

    def __init__(
        self,
        doors: IDoors,
        clock: IClock,
        timeout: float,
        chance: Callable[[], int],
        *,
        dnssec: bool = False,
    ) -> None:
        """`dnssec`: servers on loopback are asked whether they validated, and believed."""
        self._doors = doors
        self._dnssec = dnssec
        self._clock = clock
        self._timeout = timeout
        self._chance = chance
        """Answers 16 random bits that a stranger cannot guess."""

    async def ask(self, server: Bridgehead, name: dns.name.Name, rdtype: str) -> Answer | None:
        """What the server says; None when it says nothing in time, or cannot be reached."""
        edns = True
        found = await self._by_udp(server, name, rdtype, edns=edns)
        if found is not None and found.status is Status.NO_EDNS:
            edns = False
            found = await self._by_udp(server, name, rdtype, edns=edns)
        if found is not None and found.status is Status.TRUNCATED:
            found = await self._by_tcp(server, name, rdtype, edns=edns)
        if found is not None and found.status in (Status.NO_EDNS, Status.TRUNCATED):
            return Answer(Status.FAILED, detail=found.detail or "truncated")
        return found

    def _believes(self, server: Bridgehead) -> bool:
        """The configuration refuses other servers; what is at stake is asked for once more."""
        return self._dnssec and is_loopback(server)

    async def _by_udp(
        self, server: Bridgehead, name: dns.name.Name, rdtype: str, *, edns: bool
    ) -> Answer | None:
        number = self._chance() & 0xFFFF
        dnssec = self._believes(server)
        host = ip_address(server.host)
        done: Deferred[Answer | None] = Deferred()

        def heard(packet: bytes, addr: Any) -> None:
            if done.called or int(addr[1]) != server.port:
                return
            try:
                if ip_address(str(addr[0]).partition("%")[0]) != host:
                    return
            except ValueError:
                return
            found = answer(packet, name, rdtype, number, dnssec=dnssec)
            if found is not None:
                done.callback(found)

        protocol = _Datagrams(heard)
        try:
            port = self._doors.service_datagram("resolver", protocol, ipv6=host.version == 6)
        except MTAError:
            return None
        try:
            try:
                assert protocol.transport is not None
                packet = question(name, rdtype, number, edns=edns, dnssec=dnssec)
                protocol.transport.write(packet, (server.host, server.port))
            except OSError:
                return None  # no route to it, for instance
            found: Answer | None = await self._in_time(done)
            return found
        finally:
            port.revoke()

    async def _by_tcp(
        self, server: Bridgehead, name: dns.name.Name, rdtype: str, *, edns: bool
    ) -> Answer | None:
        number = self._chance() & 0xFFFF
        dnssec = self._believes(server)
        done: Deferred[Answer | None] = Deferred()

        def heard(packet: bytes | None) -> None:
            if done.called:
                return
            if packet is None:
                done.callback(None)
            else:
                done.callback(answer(packet, name, rdtype, number, dnssec=dnssec))

        stream = _Stream(question(name, rdtype, number, edns=edns, dnssec=dnssec), heard)
        host = f"[{server.host}]" if ":" in server.host else server.host
        opening = self._doors.service_connect("resolver", f"tcp:{host}:{server.port}", stream)
        try:
            opened = await self._in_time(opening)
            return None if opened is None else await self._in_time(done)
        except CancelledError:
            raise
        except Exception:
            return None
        finally:
            transport: Any = stream.transport
            if transport is not None:
                transport.abortConnection()

    async def _in_time(self, waiting: Deferred[Any]) -> Any:
        """None when it takes longer than the timeout."""
        is_late = False

        def late() -> None:
            nonlocal is_late
            is_late = True
            waiting.cancel()

        timer = self._clock.call_later(self._timeout, late)
        try:
            return await waiting
        except CancelledError:
            if is_late:
                return None
            raise
        finally:
            timer.cancel()
