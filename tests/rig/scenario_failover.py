"""Two nodes, one spool: whatever happens to the owner, what was answered 250 is delivered once.

Every scenario runs under load in both directions, and ends with the same sum: lost 0, wrong source
0, and no more doubles than associations stood open when an owner was lost.
"""

from __future__ import annotations

from tests.rig.ground import VIRTUAL, expect, wait_until
from tests.rig.node import NETWORK_NAME
from tests.rig.pair import Pair
from tests.rig.peers import Ledger, Sink, no_foreign_source

SLOTS = 20
"""Outbound associations of the rig's connector, each of which may double one message."""
SESSIONS = 8
"""Sessions of the load, each of which may leave one reply unread."""


def scenario_owner_killed(pair: Pair) -> None:
    """The owner is killed by kill -9 and the address moved: the other node goes on with its queue."""
    sink = Sink(pair).start()
    pair.online()
    ledger = loaded(pair)
    pair.kill("a")
    pair.move("b")
    pair.note(f"address moved -> 220 by the other node: {pair.wait_owner('b') * 1000:.0f} ms")
    settled(pair, ledger, sink, takeovers=1)


def loaded(pair: Pair, count: int = 100) -> Ledger:
    """A load that has run for `count` messages."""
    ledger = Ledger(pair, SESSIONS).start()
    wait_until(lambda: len(ledger.promised) > count, 20, "the load does not run")
    return ledger


def settled(pair: Pair, ledger: Ledger, sink: Sink, takeovers: int, more: int = 100) -> None:
    """Service goes on; then every promise is kept, and the doubles stay within the law."""
    before = len(ledger.promised)
    wait_until(lambda: len(ledger.promised) > before + more, 30, "service did not resume")
    ledger.stop()
    arrived = ledger.settle(sink, 60)
    doubles = sum(number - 1 for number in arrived.values())
    pair.note(f"{len(ledger.promised)} promised, 0 lost, {doubles} twice, epoch {pair.epoch}")
    expect(doubles <= SLOTS * takeovers, f"{doubles} doubles: more than one for each slot")
    no_foreign_source(sink, {VIRTUAL}, NETWORK_NAME)
