"""A short campaign (campaign.py) of each class: the faults from the seed of every change."""

from __future__ import annotations

from tests.rig.campaign import CLASSES, Campaign, table
from tests.rig.ground import Broken
from tests.rig.pair import Pair

SEED = 1
FILLING = 1500
"""Messages by which a node's memory of the last 4096 events is full: three each."""


def scenario_interface(pair: Pair) -> None:
    """24 faults upon two nodes whose address the rig moves: lost 0, wrong source 0, doubles named."""
    survives(pair, "interface", 24)


def scenario_keepalived(pair: Pair) -> None:
    """14 faults upon two nodes whose addresses keepalived moves, and upon keepalived."""
    survives(pair, "keepalived", 14)


def scenario_etcd(pair: Pair) -> None:
    """12 faults upon two nodes that etcd decides about, upon their watchdogs and upon etcd."""
    survives(pair, "etcd", 12)


def scenario_endurance(pair: Pair) -> None:
    """The same two processes hand the address on 70 times: neither grows, nor its descriptors."""
    survives(pair, "endurance", 70, messages=FILLING)


def survives(pair: Pair, name: str, faults: int, messages: int = 0) -> None:
    """`messages` pass before each of the first two. @raise Broken: with the number that does the
    fault again.
    """
    campaign = Campaign(pair, CLASSES[name](pair), SEED, lambda _text: None)
    campaign.begin()
    for number in range(1, faults + 1):
        if number <= len(pair.nodes) and messages:
            campaign.wait_promised(messages)
        result = campaign.do(number)
        if result.failed:
            raise Broken(
                f"fault {number}, {result.kind}: {result.failed}; again: "
                f"make campaign CLASSES={name} SEED={SEED} ONLY={number}"
            )
    campaign.end()
    for text in (*table(campaign.results), campaign.sums(), *campaign.memory()):
        pair.note(text)
