"""Two bridgeheads of our own kind: exactly once, whoever is killed (RFC 1845); without it, doubles.

The pair `a` and `b` sends to a third MTA, which gives the mail to the catcher. kill -9 under load
meets associations in every state: content half sent, dot sent, committed and not answered,
answered and not recorded.
"""

from __future__ import annotations

import time

from tests.rig.behind import LAST_HOP, Behind, connector
from tests.rig.ground import PEER, expect, wait_until
from tests.rig.judge import Judge
from tests.rig.pair import Pair
from tests.rig.scenario_failover import GRACE, moved
from tests.rig.traffic import Traffic

UNHEARD = f"chain in {{ type filter hook input priority -5; ip saddr {PEER} tcp sport 25 drop; }}"
"""Replies of the bridgehead behind."""


def scenario_exactly_once(pair: Pair) -> None:
    """Sender and receiver are killed in turn, twice each: nothing is lost and nothing sent twice."""
    behind, traffic, judge = under_load(pair, checkpoint=True)
    for owner, to in (("a", "b"), ("b", "a")):
        pair.kill(owner)
        moved(pair, judge, to)
        traffic.wait_promised(100)
        behind.kill()
        traffic.wait_promised(100)
    verdict = judge.check()
    sums = traffic.finish()
    repeats = behind.repeats()
    expect(verdict.outbound_doubles == 0, f"{verdict.outbound_doubles} messages were sent twice")
    expect(repeats > 0, "no transaction came again: the kills met nothing in its gap")
    behind.check_order()
    pair.note(
        f"{len(sums.promised)} promised, lost 0, sent twice 0; {repeats} transactions came again "
        f"and were taken once"
    )


def scenario_large_messages(pair: Pair) -> None:
    """Killed in the midst of large contents: each arrives whole, once."""
    # As many as go would hold the resends up for a minute: new mail passes first.
    behind, traffic, judge = under_load(pair, checkpoint=True, size=400_000, rate=40, messages=20)
    pair.kill("a")
    moved(pair, judge, "b")
    traffic.wait_promised(20)
    behind.kill()
    verdict = judge.check()
    sums = traffic.finish()
    expect(verdict.outbound_doubles == 0, f"{verdict.outbound_doubles} messages were sent twice")
    behind.check_order()
    pair.note(f"{len(sums.promised)} of 400 kB promised, lost 0, sent twice 0")


def scenario_without_it(pair: Pair) -> None:
    """The same without CHECKPOINT: what was committed behind while its reply was lost on the way is
    sent twice, and each of it is named.
    """
    behind, traffic, judge = under_load(pair, checkpoint=False)
    with pair.one_way("a", UNHEARD):
        time.sleep(0.3)
        pair.kill("a")
    moved(pair, judge, "b")
    # What is in doubt goes last, behind the mail that came meanwhile.
    wait_until(lambda: traffic.look().outbound_doubles(), 30, "nothing was sent twice: no proof")
    verdict = judge.check()
    sums = traffic.finish()
    expect(behind.repeats() == 0, "a transaction was told apart that had no name")
    behind.check_order()
    pair.note(f"{len(sums.promised)} promised, lost 0, {verdict.outbound_doubles} sent twice")


def under_load(
    pair: Pair, *, checkpoint: bool, size: int = 2000, rate: float = 0, messages: int = 100
) -> tuple[Behind, Traffic, Judge]:
    """Node a owns, the bridgehead behind takes, and so many messages were promised."""
    traffic = Traffic(pair, size=size, rate=rate, behind=LAST_HOP).catch()
    behind = Behind(pair)
    behind.online()
    pair.online(cluster=GRACE, connectors=connector(checkpoint))
    traffic.start().wait_promised(messages)
    return behind, traffic, Judge(pair, traffic)
