"""The tenure: the capability to act as the virtual server, and the list of all it must close.

Law (house.md law 1): only the ownership driver mints one, when everything that law 2 asks is true
together. It opens no socket. When `revoke` returns, every listener and association that was opened
under it is closed, and it never comes to life again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from zope.interface import implementer

from mta.errors import Fenced, TenureRevoked, TransientFailure
from mta.interfaces import IAssociationEnds, IRevocable, ITenure
from mta.model import FourTuple, VirtualAddress

_MINT = object()
"""Held by this module; `mint` is called by mta.cluster.driver alone (a test reads the imports)."""


@implementer(ITenure)
class Tenure:
    """See ITenure. Cannot be made but by `mint`."""

    __slots__ = (
        "_admit",
        "_adopted",
        "_by_family",
        "_check",
        "_complain",
        "_fenced",
        "addresses",
        "epoch",
        "is_live",
        "network_name",
    )

    def __init__(
        self,
        authority: object,
        *,
        epoch: int,
        network_name: str,
        addresses: tuple[VirtualAddress, ...],
        check: Callable[[], None],
        admit: Callable[[], None],
        fenced: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        if authority is not _MINT:
            raise TypeError("a tenure is minted by the ownership driver and by nobody else")
        if not addresses or not network_name or epoch < 1:
            raise ValueError("a tenure without an address, a name or an epoch cannot exist")
        self.epoch = epoch
        self.network_name = network_name
        self.addresses = addresses
        self.is_live = True
        self._check = check
        self._admit = admit
        self._fenced = fenced
        self._complain = complain
        self._adopted: dict[IRevocable, None] = {}
        self._by_family: dict[int, VirtualAddress] = {}
        for address in addresses:
            family = socket.AF_INET6 if address.bind.version == 6 else socket.AF_INET
            self._by_family.setdefault(family, address)

    def adopt(self, revocable: IRevocable) -> None:
        if not self.is_live:
            raise self._ended()
        self._adopted[revocable] = None

    def disown(self, revocable: IRevocable) -> None:
        self._adopted.pop(revocable, None)

    def check(self) -> None:
        if not self.is_live:
            raise self._ended()
        try:
            self._check()
        except Fenced as fault:
            # The owner's machine hears of it from whoever saw it first, and revokes us.
            self._fenced(str(fault))
            raise

    def admit(self) -> None:
        self.check()
        self._admit()

    def address_for(self, family: int) -> VirtualAddress:
        if not self.is_live:
            raise self._ended()
        try:
            return self._by_family[family]
        except KeyError:
            version = "IPv6" if family == socket.AF_INET6 else "IPv4"
            raise TransientFailure(
                f"{self.network_name} has no usable {version} address",
                f"it has {', '.join(str(a) for a in self.addresses)}",
                "see virtual-server.addresses; no other address is ever used instead",
                enhanced="4.4.4",
            ) from None

    @property
    def adopted_count(self) -> int:
        """How many listeners and associations are open under it."""
        return len(self._adopted)

    def open_ends(self) -> list[FourTuple]:
        """The ends of the associations that are open under it."""
        known = [a.ends() for a in self._adopted if IAssociationEnds.providedBy(a)]
        return [ends for ends in known if ends is not None]

    def revoke(self) -> tuple[FourTuple, ...]:
        """End it: close everything adopted, listeners first. Never raises; harmless when done.
        Answers the ends of the associations that it closed: their peers may not have heard of it.
        """
        self.is_live = False
        cut_off = []
        while self._adopted:
            adopted, self._adopted = self._adopted, {}
            for revocable in adopted:
                ends = revocable.ends() if IAssociationEnds.providedBy(revocable) else None
                if ends is not None:
                    cut_off.append(ends)
                try:
                    revocable.revoke()
                except Exception as fault:
                    self._complain(f"{revocable!r} did not close when revoked: {fault!r}")
        return tuple(cut_off)

    def _ended(self) -> TenureRevoked:
        return TenureRevoked(
            f"the tenure of epoch {self.epoch} has ended",
            f"this process no longer acts as {self.network_name}",
        )


def mint(
    *,
    epoch: int,
    network_name: str,
    addresses: tuple[VirtualAddress, ...],
    check: Callable[[], None],
    admit: Callable[[], None],
    fenced: Callable[[str], None],
    complain: Callable[[str], None],
) -> Tenure:
    """Make a tenure. Called by the ownership driver when the facts of law 2 hold together.

    `check` asks the spool and the lease, `admit` whether anything new may begin; `fenced(why)`
    hears of a superseded epoch before the caller does.
    """
    return Tenure(
        _MINT,
        epoch=epoch,
        network_name=network_name,
        addresses=addresses,
        check=check,
        admit=admit,
        fenced=fenced,
        complain=complain,
    )
