"""The tenure: minted by the driver alone, and dead for ever once revoked."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.cluster import tenure as module
from mta.cluster.tenure import Tenure
from mta.errors import Fenced, TenureRevoked, TransientFailure
from mta.interfaces import IAssociationEnds, IRevocable, ITenure
from mta.model import FourTuple
from mta.testing.surroundings import virtual_addresses


@implementer(IRevocable)
class Opened:
    def __init__(self, on_revoke=None) -> None:
        self.closed = 0
        self.on_revoke = on_revoke

    def revoke(self) -> None:
        self.closed += 1
        if self.on_revoke is not None:
            self.on_revoke()


@implementer(IRevocable, IAssociationEnds)
class Association(Opened):
    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def ends(self) -> FourTuple | None:
        if not self.port or self.closed:
            return None
        return FourTuple("192.0.2.10", 25, "203.0.113.5", self.port)


class TheCapability(SynchronousTestCase):
    def make(self, *texts: str, authority: object = module._MINT, epoch: int = 3) -> Tenure:
        self.fault: Exception | None = None
        self.admits = True
        self.seen: list[str] = []
        self.complaints: list[str] = []

        def check() -> None:
            if self.fault is not None:
                raise self.fault

        return Tenure(
            authority,
            epoch=epoch,
            network_name="bridgehead.example.org",
            addresses=virtual_addresses(*texts),
            check=check,
            admit=self.admit,
            fenced=self.seen.append,
            complain=self.complaints.append,
        )

    def admit(self) -> None:
        if not self.admits:
            raise TransientFailure("the authority is silent")

    def test_nothing_new(self) -> None:
        """An authority that is late stops what is new, and nothing that is open."""
        tenure = self.make("192.0.2.10")
        tenure.admit()
        self.admits = False
        self.assertRaises(TransientFailure, tenure.admit)
        tenure.check()
        self.fault = Fenced("superseded")
        self.assertRaises(Fenced, tenure.admit)

    def test_contract(self) -> None:
        """It is what the contract says."""
        verifyObject(ITenure, self.make("192.0.2.10"))

    def test_whom_it_cut_off(self) -> None:
        """Its end says whose associations it closed: they may never see the reset."""
        tenure = self.make("192.0.2.10")
        for opened in (Opened(), Association(4711), Association(0)):
            tenure.adopt(opened)
        self.assertEqual([ends.peer_port for ends in tenure.revoke()], [4711])
        self.assertEqual(tenure.revoke(), ())

    def test_only_the_mint(self) -> None:
        """Nobody makes himself a tenure; none exists without an address, a name or an epoch."""
        self.assertRaises(TypeError, self.make, "192.0.2.10", authority=object())
        self.assertRaises(ValueError, self.make)
        self.assertRaises(ValueError, self.make, "192.0.2.10", epoch=0)

    def test_families(self) -> None:
        """The first address of a family is taken; a family without one is refused by its name."""
        tenure = self.make("192.0.2.10", "192.0.2.11")
        self.assertEqual(str(tenure.address_for(socket.AF_INET)), "192.0.2.10")
        with self.assertRaises(TransientFailure) as caught:
            tenure.address_for(socket.AF_INET6)
        self.assertIn("no usable IPv6 address", caught.exception.what)

    def test_revoke(self) -> None:
        """Everything adopted is closed once; what closed by itself before is left alone."""
        tenure = self.make("192.0.2.10")
        stays, leaves = Opened(), Opened()
        tenure.adopt(stays)
        tenure.adopt(leaves)
        tenure.disown(leaves)
        tenure.disown(leaves)
        tenure.revoke()
        tenure.revoke()
        self.assertEqual((stays.closed, leaves.closed, tenure.is_live), (1, 0, False))
        for use in (
            tenure.check,
            lambda: tenure.adopt(stays),
            lambda: tenure.address_for(socket.AF_INET),
        ):
            self.assertRaises(TenureRevoked, use)

    def test_disowned_while_revoking(self) -> None:
        """What one closing takes along may disown itself in the midst of it."""
        tenure = self.make("192.0.2.10")
        second = Opened()
        first = Opened(lambda: tenure.disown(second))
        tenure.adopt(first)
        tenure.adopt(second)
        tenure.revoke()
        self.assertEqual((first.closed, second.closed), (1, 1))
        self.assertEqual(tenure.adopted_count, 0)

    def test_fenced(self) -> None:
        """Who finds a newer epoch makes it known before he hears of it himself."""
        tenure = self.make("192.0.2.10")
        tenure.check()
        self.fault = Fenced("epoch 4 exists")
        self.assertRaises(Fenced, tenure.check)
        self.assertEqual(self.seen, ["epoch 4 exists"])
