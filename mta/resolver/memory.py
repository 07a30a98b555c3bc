"""A resolver that knows what it was told: for tests, and for a site without DNS.

Law: the same contract and the same failures as the real one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, MutableSequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from mta.errors import Failure, PermanentFailure
from mta.interfaces import IResolver
from mta.model import IPAddress, MailHost


@implementer(IResolver)
class MemoryResolver:
    """`add_host`, `add_mail`, `add_null_mail`, `break_name`; everything else does not exist."""

    def __init__(self, shuffle: Callable[[MutableSequence[Any]], None] = random.shuffle) -> None:
        self._shuffle = shuffle
        self._hosts: dict[str, tuple[IPAddress, ...]] = {}
        self._mail: dict[str, tuple[tuple[int, str], ...]] = {}
        self._broken: dict[str, Failure] = {}

    def add_host(self, name: str, *addresses: str) -> None:
        self._hosts[_key(name)] = tuple(ip_address(address) for address in addresses)

    def add_mail(self, domain: str, exchangers: Iterable[tuple[int, str]]) -> None:
        """MX records: (preference, host name); the hosts are added by `add_host`."""
        self._mail[_key(domain)] = tuple(exchangers)

    def add_null_mail(self, domain: str) -> None:
        self._mail[_key(domain)] = ()

    def break_name(self, name: str, failure: Failure) -> None:
        """Every question about `name` ends with this failure."""
        self._broken[_key(name)] = failure

    def addresses(self, name: str) -> Deferred[tuple[IPAddress, ...]]:
        broken = self._broken.get(_key(name))
        if broken is not None:
            return fail(broken)
        found = self._hosts.get(_key(name))
        if not found:
            return fail(PermanentFailure(f"there is no host {name}", code=550, enhanced="5.1.2"))
        return succeed(found)

    def mail_hosts(self, domain: bytes) -> Deferred[tuple[MailHost, ...]]:
        name = _key(domain.decode("ascii", "backslashreplace"))
        broken = self._broken.get(name)
        if broken is not None:
            return fail(broken)
        records = self._mail.get(name)
        if records is None:
            if name in self._hosts:
                return succeed((MailHost(name, 0, self._hosts[name]),))
            return fail(PermanentFailure(f"there is no domain {name}", code=550, enhanced="5.1.2"))
        if not records:
            return fail(
                PermanentFailure(f"domain {name} takes no mail", code=556, enhanced="5.1.10")
            )
        ordered = list(records)
        self._shuffle(ordered)
        ordered.sort(key=lambda record: record[0])
        hosts = tuple(
            MailHost(host, preference, self._hosts[_key(host)])
            for preference, host in ordered
            if self._hosts.get(_key(host))
        )
        if not hosts:
            return fail(
                PermanentFailure(
                    f"no mail exchanger of {name} has an address", code=550, enhanced="5.4.4"
                )
            )
        return succeed(hosts)


def _key(name: str) -> str:
    return name.rstrip(".").lower()
