"""Transactions that a client gave a name to (RFC 1845) and that became ours.

Law: a transaction is forgotten when its client cannot ask for it any more, never before, unless
there are too many: the next transaction that is accepted on the same association follows a final
dot, before which the client's own record of the last one was durable (spool.md section 6). So what
is kept is the last one of each open association, and that of each association that ended without
a word. Plain values; no disk, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator

from mta.model import Remembered

MOST_OF_CLIENT = 10_000
"""Of one client name; of more the oldest are forgotten. 2 MB: as many associations that broke."""
MOST = 100_000
"""Of all clients: a host that may name transactions can make up names of clients."""


class Transactions:
    """All that are remembered, by client and name."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[str, Remembered]] = {}
        """Client -> name -> transaction, the oldest first."""
        self._last: dict[str, Remembered] = {}
        """Association of the running epoch -> the last one that was accepted on it."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Remembered, str]]:
        """Each with its association, "" when that may be open no longer."""
        slots = {id(kept): association for association, kept in self._last.items()}
        for kept in self._clients.values():
            for remembered in kept.values():
                yield remembered, slots.get(id(remembered), "")

    def add(self, remembered: Remembered, association: str) -> None:
        """It is durable. What was accepted before it on that association is known to be read."""
        self.forget_last(association)
        self._remove(remembered.client, remembered.transaction)
        of_client = self._clients.setdefault(remembered.client, {})
        of_client[remembered.transaction] = remembered
        self._count += 1
        if association:
            self._last[association] = remembered
        if len(of_client) > MOST_OF_CLIENT:
            self._remove_oldest(of_client)
        elif self._count > MOST:
            self._remove_oldest(max(self._clients.values(), key=len))

    def find(self, client: str, transaction: str) -> Remembered | None:
        of_client = self._clients.get(client)
        return None if of_client is None else of_client.get(transaction)

    def forget_last(self, association: str) -> None:
        """Its client has said that it knows what became of its last transaction there."""
        last = self._last.pop(association, None)
        if last is not None and self.find(last.client, last.transaction) is last:
            self._remove(last.client, last.transaction)

    def forget_expired(self, now: float) -> None:
        """Those whose time (wall seconds) is over."""
        for remembered, _ in list(self):
            if remembered.expires <= now:
                self._remove(remembered.client, remembered.transaction)

    def conclude(self) -> None:
        """The epoch has ended: none of its associations will bring a further transaction."""
        self._last.clear()

    def _remove_oldest(self, of_client: dict[str, Remembered]) -> None:
        oldest = next(iter(of_client.values()))
        self._remove(oldest.client, oldest.transaction)

    def _remove(self, client: str, transaction: str) -> None:
        of_client = self._clients.get(client)
        if of_client is not None and of_client.pop(transaction, None) is not None:
            self._count -= 1
            if not of_client:
                del self._clients[client]
