"""What must hold after every fault, whatever it was: the sum of the mail, the sources, the epochs.

Law: the judge looks from outside. The sums are the load's and the catcher's, the sources the
catcher's and the packet counters', the epochs the names of files; the MTA's own word is asked only
for what it must name, the messages in doubt: each double is named by its own side.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.rig.doubts import Doubts
from tests.rig.ground import expect, wait_until
from tests.rig.node import no_wrong_source
from tests.rig.pacemaker import Cluster
from tests.rig.pair import Pair
from tests.rig.traffic import Traffic

SLOTS = 20
"""Outbound associations of the rig's connector, each of which may double one message."""
RELEASE_SECONDS = 1.0
"""Peers of the former owner's associations are free so soon after the new owner greets."""
RESUME = 20
"""Messages that show that service goes on."""


class Verdict(NamedTuple):
    """What came of one fault. Lost and wrong source are 0, or there was no verdict."""

    takeovers: int
    outbound_doubles: int
    inbound_doubles: int
    unread: int


class Judge:
    """`begin` before a fault, `check` after it."""

    def __init__(
        self, pair: Pair | Cluster, traffic: Traffic, doubts: Doubts | None = None
    ) -> None:
        self._pair = pair
        self._traffic = traffic
        self._doubts = doubts or Doubts(pair)
        self.begin()

    def begin(self) -> None:
        sums = self._traffic.look()
        self._began = time.monotonic()
        self._outbound = len(sums.outbound_doubles())
        self._inbound = len(sums.inbound_doubles())
        self._unread = sum(sums.unread.values())
        self._epochs = self._pair.epochs()
        self._refused = sum(sums.refused.values())

    def check(self, resume_seconds: float = 30, settle_seconds: float = 30) -> Verdict:
        """@raise Broken: what does not hold."""
        pair, traffic = self._pair, self._traffic
        traffic.wait_promised(RESUME, resume_seconds)
        traffic.wait_arrived(settle_seconds)
        sums = traffic.look()
        no_wrong_source(pair)
        source, name = traffic.last_hop
        expect(
            set(sums.sources) <= {source},
            f"mail came from {sorted(set(sums.sources) - {source})}",
        )
        expect(
            set(sums.names) <= {name},
            f"the catcher was greeted by {sorted(set(sums.names) - {name})}",
        )
        epochs = pair.epochs()
        kept = [epoch for epoch in self._epochs if epoch >= epochs[0]]
        expect(epochs[: len(kept)] == kept, f"epochs went from {self._epochs} to {epochs}")
        takeovers = epochs[-1] - self._epochs[-1]
        outbound = len(sums.outbound_doubles()) - self._outbound
        inbound = len(sums.inbound_doubles()) - self._inbound
        unread = sum(sums.unread.values()) - self._unread
        expect(
            outbound <= SLOTS * max(1, takeovers),
            f"{outbound} messages were sent twice in {takeovers} takeovers of {SLOTS} slots",
        )
        self._doubts.look()
        complaints, unnamed = self._doubts.complaints, self._doubts.unnamed(sums)
        expect(not complaints, f"a node's log holds {' | '.join(complaints[:2])}")
        expect(not unnamed, f"doubled and not named in doubt: {', '.join(unnamed[:5])}")
        expect(inbound <= unread, f"{inbound} were taken twice, and {unread} replies unread")
        return Verdict(takeovers, outbound, inbound, unread)

    def epochs_stay(self) -> None:
        """No epoch was published since `begin`."""
        epoch = self._pair.epoch
        expect(epoch == self._epochs[-1], f"epoch {self._epochs[-1]} became {epoch}")

    def peers_are_released(self, since: float) -> float:
        """Every association of the load that was open before `since`, when the new owner greeted,
        ends within RELEASE_SECONDS of it: nobody waits for a node that is gone. How late the last.
        """

        def held() -> list[int]:
            sums = self._traffic.look()
            return [n for n, opened in sums.open_since.items() if opened < self._began]

        late = max(0.0, since + RELEASE_SECONDS - time.monotonic())
        wait_until(
            lambda: not held(), late + 0.2, f"sessions {held()} still wait for the former owner"
        )
        after = [loss.at - since for loss in self._traffic.sums.losses if loss.at >= self._began]
        return max([0.0, *after])
