"""A short campaign (campaign.py) of each cluster class: fifty faults, from the seed of every change."""

from __future__ import annotations

from tests.rig.campaign import CLASSES, Campaign, table
from tests.rig.ground import Broken
from tests.rig.pair import Pair

SEED = 1


def scenario_interface(pair: Pair) -> None:
    """24 faults upon two nodes whose address the rig moves: lost 0, wrong source 0, doubles named."""
    survives(pair, "interface", 24)


def scenario_keepalived(pair: Pair) -> None:
    """14 faults upon two nodes whose addresses keepalived moves, and upon keepalived."""
    survives(pair, "keepalived", 14)


def scenario_etcd(pair: Pair) -> None:
    """12 faults upon two nodes that etcd decides about, upon their watchdogs and upon etcd."""
    survives(pair, "etcd", 12)


def survives(pair: Pair, name: str, faults: int) -> None:
    """@raise Broken: with the number that does the fault again."""
    campaign = Campaign(pair, CLASSES[name](pair), SEED, lambda _text: None)
    campaign.begin()
    for number in range(1, faults + 1):
        result = campaign.do(number)
        if result.failed:
            raise Broken(
                f"fault {number}, {result.kind}: {result.failed}; again: "
                f"make campaign CLASSES={name} SEED={SEED} ONLY={number}"
            )
    campaign.end()
    for text in (*table(campaign.results), campaign.sums(), *campaign.memory()):
        pair.note(text)
