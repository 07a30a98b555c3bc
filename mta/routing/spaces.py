"""Which address spaces match an address, the most specific first.

Law: pure lookup by dictionaries, no scan of patterns: as many steps as the domain has labels.
Domains are compared as lower-case A-labels. The local part of a `user@domain` pattern is compared
without ASCII case: the pattern is the operator's own wish, not another host's mailbox name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mta.model import Address, AddressKind, AddressSpace, Connector


@dataclass(frozen=True, slots=True)
class Match:
    """One connector's address space that takes the address. `rank` 0 is the most specific."""

    connector: Connector
    space: AddressSpace
    rank: int


Entry = tuple[Connector, AddressSpace]


class SpaceTable:
    """The address spaces of all connectors of one kind of address, ready to be asked."""

    def __init__(self, connectors: Sequence[Connector], kind: AddressKind) -> None:
        self._addresses: dict[bytes, list[Entry]] = {}
        self._domains: dict[bytes, list[Entry]] = {}
        self._below: dict[bytes, list[Entry]] = {}
        self._all: list[Entry] = []
        for connector in connectors:
            for space in connector.address_spaces:
                if space.kind is kind:
                    self._shelf(space.pattern).append((connector, space))
        self.domains_with_users = frozenset(
            pattern.rpartition(b"@")[2] for pattern in self._addresses
        )
        """Domains for which the local part matters: all others may be cached by domain alone."""

    def _shelf(self, pattern: bytes) -> list[Entry]:
        pattern = pattern.lower()
        if pattern == b"*":
            return self._all
        if b"@" in pattern:
            return self._addresses.setdefault(pattern, [])
        if pattern.startswith(b"*."):
            return self._below.setdefault(pattern[2:], [])
        return self._domains.setdefault(pattern, [])

    def matches(self, address: Address) -> list[Match]:
        """Every address space that takes it, the most specific patterns first."""
        found: list[list[Entry]] = []
        domain = address.domain
        if domain in self.domains_with_users:
            found.append(self._addresses.get(address.local.lower() + b"@" + domain, []))
        found.append(self._domains.get(domain, []))
        if not domain.startswith(b"["):  # an address literal has no names above it
            above = domain
            while b"." in above:
                above = above.partition(b".")[2]
                found.append(self._below.get(above, []))
        found.append(self._all)
        return [
            Match(connector, space, rank)
            for rank, entries in enumerate(entry for entry in found if entry)
            for connector, space in entries
        ]
