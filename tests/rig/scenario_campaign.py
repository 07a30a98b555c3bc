"""A short campaign (campaign.py) of each cluster class, from the seed that every change is tried with."""

from __future__ import annotations

from tests.rig.campaign import Campaign, table
from tests.rig.faults import Interface
from tests.rig.ground import Broken
from tests.rig.pair import Pair

SEED = 1


def scenario_interface(pair: Pair) -> None:
    """Fifty faults from a seed upon two nodes under load, each judged: lost 0, wrong source 0."""
    campaign = Campaign(pair, Interface(pair), SEED, lambda _text: None)
    campaign.begin()
    for number in range(1, 51):
        result = campaign.do(number)
        if result.failed:
            raise Broken(
                f"fault {number}, {result.kind}: {result.failed}; again: "
                f"make campaign CLASSES=interface SEED={SEED} ONLY={number}"
            )
    campaign.end()
    for text in (*table(campaign.results), campaign.sums(), *campaign.memory()):
        pair.note(text)
