"""A resolver that knows what it was told: for tests, and for a site without DNS.

Law: the same contract and the same failures as the real one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, MutableSequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.errors import Failure, PermanentFailure
from mta.interfaces import IResolver, ISecureResolver, ITextResolver
from mta.model import IPAddress, MailHost, Proven, Tlsa, TlsaRecords


@implementer(IResolver, ISecureResolver, ITextResolver)
class MemoryResolver:
    """`add_host`, `add_mail`, `add_null_mail`, `add_alias`, `add_tlsa`, `add_texts`, `sign`,
    `break_name`; everything else does not exist.
    """

    validates = True

    def __init__(self, shuffle: Callable[[MutableSequence[Any]], None] = random.shuffle) -> None:
        self._shuffle = shuffle
        self._hosts: dict[str, tuple[IPAddress, ...]] = {}
        self._mail: dict[str, tuple[tuple[int, str], ...]] = {}
        self._aliases: dict[str, str] = {}
        self._tlsa: dict[str, tuple[Tlsa, ...]] = {}
        self._texts: dict[str, tuple[bytes, ...]] = {}
        self._signed: set[str] = set()
        self._broken: dict[str, Failure] = {}

    def add_host(self, name: str, *addresses: str) -> None:
        self._hosts[_key(name)] = tuple(ip_address(address) for address in addresses)

    def add_mail(self, domain: str, exchangers: Iterable[tuple[int, str]]) -> None:
        """MX records: (preference, host name); the hosts are added by `add_host`."""
        self._mail[_key(domain)] = tuple(exchangers)

    def add_null_mail(self, domain: str) -> None:
        self._mail[_key(domain)] = ()

    def add_alias(self, name: str, target: str) -> None:
        """A CNAME of a host, and the only one on the way."""
        self._aliases[_key(name)] = _key(target)

    def add_tlsa(self, base: str, port: int, *records: Tlsa) -> None:
        self._tlsa[f"_{port}._tcp.{_key(base)}"] = records

    def add_texts(self, name: str, *records: bytes) -> None:
        """TXT records, in place of those that were there."""
        self._texts[_key(name)] = records

    def sign(self, *names: str) -> None:
        """What is said of these names, exactly, counts as validated; also that there is nothing."""
        self._signed.update(map(_key, names))

    def break_name(self, name: str, failure: Failure) -> None:
        """Every question about `name` ends with this failure."""
        self._broken[_key(name)] = failure

    def addresses(self, name: str) -> Deferred[tuple[IPAddress, ...]]:
        try:
            return succeed(self._host(name).addresses)
        except Failure as failure:
            return fail(failure)

    def mail_host(self, name: str) -> Deferred[MailHost]:
        try:
            return succeed(self._host(name, name))
        except Failure as failure:
            return fail(failure)

    def tlsa(self, base: str, port: int) -> Deferred[TlsaRecords]:
        name = f"_{port}._tcp.{_key(base)}"
        broken = self._broken.get(name)
        if broken is not None:
            return fail(broken)
        return succeed(TlsaRecords(self._tlsa.get(name, ()), name in self._signed))

    def texts(self, name: str) -> Deferred[tuple[bytes, ...]]:
        key = _key(name)
        for each in (key, self._aliases.get(key, key)):
            if each in self._broken:
                return fail(self._broken[each])
        return succeed(self._texts.get(self._aliases.get(key, key), ()))

    def mail_hosts(self, domain: bytes) -> Deferred[tuple[MailHost, ...]]:
        try:
            return succeed(self._mail_hosts(_key(domain.decode("ascii", "backslashreplace"))))
        except Failure as failure:
            return fail(failure)

    def _host(self, name: str, *domains: str) -> MailHost:
        """@raise Failure. `domains`: as of Proven; () where the way to the host is not signed."""
        key = _key(name)
        target = self._aliases.get(key, key)
        for each in (key, target):
            if each in self._broken:
                raise self._broken[each]
        found = self._hosts.get(target)
        if not found:
            raise PermanentFailure(f"there is no host {name}", code=550, enhanced="5.1.2")
        bases: tuple[str, ...] = ()
        if key in self._signed:
            bases = tuple(dict.fromkeys((target, key))) if target in self._signed else (key,)
        proven = Proven(bases, tuple(map(_key, domains))) if bases and domains else None
        return MailHost(name, 0, found, proven)

    def _mail_hosts(self, name: str) -> tuple[MailHost, ...]:
        broken = self._broken.get(name)
        if broken is not None:
            raise broken
        records = self._mail.get(name)
        domains = (name,) if name in self._signed else ()
        if records is None:
            if name in self._hosts or name in self._aliases:
                return (self._host(name, *domains),)
            raise PermanentFailure(f"there is no domain {name}", code=550, enhanced="5.1.2")
        if not records:
            raise PermanentFailure(f"domain {name} takes no mail", code=556, enhanced="5.1.10")
        ordered = list(records)
        self._shuffle(ordered)
        ordered.sort(key=lambda record: record[0])
        hosts: list[MailHost] = []
        transient: Failure | None = None
        for preference, host in ordered:
            try:
                hosts.append(replace(self._host(host, *domains), preference=preference))
            except PermanentFailure:
                continue
            except Failure as failure:
                transient = failure
        if hosts:
            return tuple(hosts)
        raise transient or PermanentFailure(
            f"no mail exchanger of {name} has an address", code=550, enhanced="5.4.4"
        )


def _key(name: str) -> str:
    return name.rstrip(".").lower()
