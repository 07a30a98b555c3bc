"""What may be doubled after a takeover is known, named, and sent once more in the right order."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.model import FourTuple
from mta.testing.lab import FRIEND, HUB, VIRTUAL_ADDRESS, Lab
from mta.testing.sink import SILENCE


class EndsTests(SynchronousTestCase):
    """The new owner can reset what the former one left open."""

    def left_open(self, lab: Lab) -> tuple[FourTuple, ...]:
        lab.fail("a", to="b")
        found: Any = lab.owner.tenant.recovery()
        return found.open_associations

    def test_both_directions(self) -> None:
        """Both ends, with their ports, of every connection in and out are known to who takes over;
        those that were closed long ago are not.
        """
        lab = Lab("ab", spool="log")
        lab.send()
        lab.advance(60)
        client = lab.client()
        lab.hub.answer(".", SILENCE)
        lab.send()
        port: int = client.peer.transport.getHost().port
        ours = {FourTuple(VIRTUAL_ADDRESS, port, HUB, 25) for port in lab.hub.ports}
        left = self.left_open(lab)
        self.assertIn(FourTuple(VIRTUAL_ADDRESS, 25, FRIEND, port), left)
        self.assertEqual(len(ours), 2)
        self.assertEqual(ours & set(left), {FourTuple(VIRTUAL_ADDRESS, lab.hub.ports[1], HUB, 25)})
