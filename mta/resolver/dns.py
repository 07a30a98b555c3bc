"""DNS as mail needs it: addresses of hosts, and the hosts that take a domain's mail.

Law: answers are never guessed. "There is no such name" and "this domain takes no mail" come from a
server that says so and are permanent; silence and server failures are transient and named. What is
known is kept as long as its TTL says, and a question that is on its way is not asked twice. A host
is proven only where every answer on the way to its addresses was validated, by a server that may
say so.

RFC 5321 5.1 (MX, implicit MX), RFC 7505 (null MX), RFC 2308 (negative caching), RFC 1123 5.3.4, RFC
7672 2 (what DANE needs), RFC 6698 3 (the name of TLSA records).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Coroutine, MutableSequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer

from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IClock, IDoors, IResolver, ISecureResolver, ITextResolver
from mta.model import Bridgehead, IPAddress, MailHost, Proven, Tlsa, TlsaRecords
from mta.resolver.cache import Cache
from mta.resolver.exchange import Exchange
from mta.resolver.packets import Answer, Status, checked_name
from mta.resolver.settings import ResolverSettings, parse_name_server
from mta.telemetry import Telemetry

_CHAIN = 8
"""CNAMEs followed from server to server."""
_MOST_HOSTS = 20
"""Mail exchangers of one domain that are looked up; more are an attack or a slip."""
_MOST_ADDRESSES = 12
"""Addresses of one host that are used."""
SYSTEM_CONFIGURATION = "/etc/resolv.conf"

Shuffle = Callable[[MutableSequence[Any]], None]


def read_system_configuration() -> str:
    """The text of /etc/resolv.conf, "" when there is none."""
    try:
        with open(SYSTEM_CONFIGURATION, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def name_servers(text: str) -> tuple[Bridgehead, ...]:
    """The `nameserver` lines of resolv.conf; without one the local host is asked, as libc does."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(parse_name_server(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found[:3]) or (Bridgehead("127.0.0.1", 53),)


class _Host(NamedTuple):
    """Addresses of a host, and its TLSA base domains: () unless they were validated."""

    addresses: tuple[IPAddress, ...]
    bases: tuple[str, ...]


@implementer(IResolver, ISecureResolver, ITextResolver)
class DnsResolver:
    """Asks recursive name servers over sockets of its own."""

    def __init__(
        self,
        settings: ResolverSettings,
        doors: IDoors,
        clock: IClock,
        telemetry: Telemetry,
        *,
        system_configuration: Callable[[], str] = read_system_configuration,
        shuffle: Shuffle = random.shuffle,
        chance: Callable[[], int] = lambda: secrets.randbits(16),
    ) -> None:
        self._configured = tuple(settings.servers)
        self._system_configuration = system_configuration
        self._servers = self._configured or name_servers(system_configuration())
        self._attempts = settings.attempts
        self._clock = clock
        self._telemetry = telemetry
        self._shuffle = shuffle
        self.validates = settings.dnssec
        self._exchange = Exchange(doors, clock, settings.timeout, chance, dnssec=settings.dnssec)
        self._cache: Cache[tuple[str, str], Answer] = Cache(clock.monotonic)
        self._flying: dict[tuple[str, str], list[Deferred[Answer]]] = {}
        self._asked = telemetry.counter("mta_dns_questions_total", "Questions to name servers.")
        self._unanswered = telemetry.counter(
            "mta_dns_failures_total", "Questions that no name server answered."
        )

    # --- the contract ---

    def addresses(self, name: str) -> Deferred[tuple[IPAddress, ...]]:
        return Deferred.fromCoroutine(self._addresses(name))

    def mail_hosts(self, domain: bytes) -> Deferred[tuple[MailHost, ...]]:
        return Deferred.fromCoroutine(self._mail_hosts(domain))

    def mail_host(self, name: str) -> Deferred[MailHost]:
        return Deferred.fromCoroutine(self._mail_host(name))

    def tlsa(self, base: str, port: int) -> Deferred[TlsaRecords]:
        return Deferred.fromCoroutine(self._tlsa(base, port))

    def texts(self, name: str) -> Deferred[tuple[bytes, ...]]:
        return Deferred.fromCoroutine(self._texts(name))

    # --- what mail means by it ---

    async def _addresses(self, name: str) -> tuple[IPAddress, ...]:
        return (await self._host(name)).addresses

    async def _mail_host(self, name: str) -> MailHost:
        host = await self._host(name)
        return MailHost(name, 0, host.addresses, _proven(host, name))

    async def _tlsa(self, base: str, port: int) -> TlsaRecords:
        name = f"_{port}._tcp.{base}"
        try:
            checked_name(name)
        except PermanentFailure:
            return TlsaRecords((), False)  # too long: there cannot be any
        said = await self._lookup(name, "TLSA")
        found = tuple(record for record in said.records if isinstance(record, Tlsa))
        return TlsaRecords(found, said.is_secure)

    async def _texts(self, name: str) -> tuple[bytes, ...]:
        try:
            checked_name(name)
        except PermanentFailure:
            return ()  # too long: there cannot be any
        said = await self._lookup(name, "TXT")
        return tuple(record for record in said.records if isinstance(record, bytes))

    async def _bases(self, name: str, found: list[Answer]) -> tuple[str, ...]:
        """Where the TLSA records of a host with these addresses are looked up (RFC 7672 2.2.2)."""
        if not self.validates:
            return ()
        canonical = found[0].canonical
        if all(answer.is_secure for answer in found):
            return tuple(dict.fromkeys((canonical, _plain(name))))
        if canonical == _plain(name):
            return ()
        # Its alias leads to where nobody signs, but the alias itself may be signed.
        alias = await self._lookup(name, "CNAME")
        return (_plain(name),) if alias.records and alias.is_secure else ()

    async def _host(self, name: str) -> _Host:
        checked_name(name)
        six, four = await _together(self._lookup(name, "AAAA"), self._lookup(name, "A"))
        found: list[list[IPAddress]] = []
        answers: list[Answer] = []
        for part in (six, four):
            if isinstance(part, Answer) and part.status is Status.FOUND:
                answers.append(part)
                family = [ip_address(str(record)) for record in part.records]
                self._shuffle(family)
                found.append(family)
        if found:
            # Families take turns: a dead family costs one attempt, not all of them.
            longest = max(len(family) for family in found)
            mixed = [family[i] for i in range(longest) for family in found if i < len(family)]
            return _Host(tuple(mixed[:_MOST_ADDRESSES]), await self._bases(name, answers))
        for part in (six, four):
            if isinstance(part, Exception):
                raise part
        if any(isinstance(p, Answer) and p.status is Status.NO_NAME for p in (six, four)):
            raise PermanentFailure(f"there is no host {name}", code=550, enhanced="5.1.2")
        raise PermanentFailure(f"host {name} has no address", code=550, enhanced="5.4.4")

    async def _mail_hosts(self, domain: bytes) -> tuple[MailHost, ...]:
        shown = domain.decode("ascii", "backslashreplace")
        checked_name(domain)
        said = await self._lookup(shown, "MX")
        if said.status is Status.NO_NAME:
            raise PermanentFailure(f"there is no domain {shown}", code=550, enhanced="5.1.2")
        if said.status is Status.NO_DATA:
            only = await self._host(shown)
            proven = _proven(only, shown) if said.is_secure else None
            return (MailHost(shown, 0, _usable(only.addresses, shown), proven),)
        offered = [record for record in said.records if isinstance(record, tuple)]
        targets = [(preference, host) for preference, host in offered if host != "."]
        if not targets:
            raise PermanentFailure(
                f"domain {shown} takes no mail",
                "it says so by a null MX",
                code=556,
                enhanced="5.1.10",
            )
        targets = [target for target in targets if _is_host(target[1])]
        if not targets:
            raise PermanentFailure(
                f"domain {shown} has no usable mail exchanger",
                "its MX records name addresses or the local host",
                code=550,
                enhanced="5.4.4",
            )
        self._shuffle(targets)
        targets.sort(key=lambda target: target[0])
        del targets[_MOST_HOSTS:]
        answers = await _together(*(self._host(host) for _, host in targets))
        hosts: list[MailHost] = []
        transient: TransientFailure | None = None
        for (preference, host), part in zip(targets, answers, strict=True):
            if isinstance(part, _Host):
                proven = _proven(part, shown, said.canonical) if said.is_secure else None
                try:
                    hosts.append(MailHost(host, preference, _usable(part.addresses, shown), proven))
                except PermanentFailure:
                    continue
            elif isinstance(part, TransientFailure):
                transient = part
        if hosts:
            return tuple(hosts)
        if transient is not None:
            raise transient
        raise PermanentFailure(
            f"no mail exchanger of {shown} has a usable address", code=550, enhanced="5.4.4"
        )

    # --- asking ---

    def _lookup(self, name: str, rdtype: str) -> Coroutine[Any, Any, Answer]:
        return self._known(_plain(name), rdtype)

    async def _known(self, name: str, rdtype: str) -> Answer:
        """@raise TransientFailure: no server has an answer."""
        key = (name, rdtype)
        known = self._cache.get(key)
        if known is not None:
            return known
        waiting: Deferred[Answer] = Deferred()
        flight = self._flying.get(key)
        if flight is not None:
            flight.append(waiting)
            return await waiting
        flight = self._flying[key] = [waiting]
        asking = Deferred.fromCoroutine(self._follow(name, rdtype))
        asking.addBoth(self._landed, key, flight)
        return await waiting

    def _landed(self, result: Any, key: tuple[str, str], flight: list[Deferred[Answer]]) -> None:
        del self._flying[key]
        if isinstance(result, Answer):
            self._cache.put(key, result, result.ttl)
        for waiting in flight:
            if not waiting.called:
                if isinstance(result, TwistedFailure):
                    waiting.errback(result)
                else:
                    waiting.callback(result)

    async def _follow(self, name: str, rdtype: str) -> Answer:
        """The answer, over CNAMEs that lead from one server's knowledge to another's."""
        asked, is_secure = name, True
        for _ in range(_CHAIN):
            found = await self._ask(asked, rdtype)
            is_secure = is_secure and found.is_secure
            if not found.more:
                return replace(found, is_secure=is_secure)
            asked = found.more
        raise TransientFailure(f"{name} is an alias that leads nowhere", enhanced="4.4.3")

    async def _ask(self, name: str, rdtype: str) -> Answer:
        parsed = checked_name(name)
        said = "no answer"
        for _ in range(self._attempts):
            for server in self._servers:
                self._asked.inc()
                found = await self._exchange.ask(server, parsed, rdtype)
                if found is not None and found.status is not Status.FAILED:
                    return found
                if found is not None:
                    said = found.detail or said
        self._unanswered.inc()
        if not self._configured:
            # The network may have changed under us; the next question asks who serves now.
            self._servers = name_servers(self._system_configuration())
        raise TransientFailure(
            f"the look-up of {name} ({rdtype}) failed",
            said,
            "are the name servers of `resolver:` or /etc/resolv.conf up?",
            enhanced="4.4.3",
        )


async def _together(*parts: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run them side by side; the results, or the failures as values. Cancelled as one."""
    running = [Deferred.fromCoroutine(part) for part in parts]
    results: list[Any] = []
    try:
        for each in running:
            try:
                results.append(await each)
            except (TransientFailure, PermanentFailure) as failure:
                results.append(failure)
    except CancelledError:
        for each in running:
            each.addErrback(lambda _: None)
            each.cancel()
        raise
    return results


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _proven(host: _Host, *domains: str) -> Proven | None:
    """`domains` are those that mail was for."""
    return Proven(host.bases, tuple(dict.fromkeys(map(_plain, domains)))) if host.bases else None


def _is_host(name: str) -> bool:
    """An MX must name a host: not an address, not this machine."""
    if name in ("localhost", "localhost.localdomain") or name.endswith(".localhost"):
        return False
    try:
        ip_address(name)
    except ValueError:
        return True
    return False


def _usable(addresses: tuple[IPAddress, ...], domain: str) -> tuple[IPAddress, ...]:
    """Without addresses at which no other host can be: a stranger's MX must not point inside.

    @raise PermanentFailure: nothing is left.
    """
    found = tuple(a for a in addresses if not (a.is_loopback or a.is_unspecified or a.is_multicast))
    if not found:
        raise PermanentFailure(
            f"the mail exchangers of {domain} have no address in the network",
            code=550,
            enhanced="5.4.4",
        )
    return found
