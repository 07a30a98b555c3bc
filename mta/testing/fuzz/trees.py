"""JSON with other values in it: a chance change of octets hardly ever leaves it well-formed.

Law: a function of the random numbers that are given.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

_NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
)
_TEXTS = (
    "",
    "x",
    "0",
    "-1",
    "9" * 30,
    "é",
    "\ud800",
    "\u202e",
    "\x1b[2J",
    "::1",
    "/w==",
    "x" * 5000,
)
_DEPTHS = (1, 3, 300, 480, 700, 900, 950, 960, 965, 970, 975, 980, 985, 990)


def other_values(rng: Random, octets: bytes) -> bytes:
    """The same JSON with one to three of its values changed; as it is where it is none."""
    try:
        tree = json.loads(octets)
    except (ValueError, RecursionError):
        return octets
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _other(rng, tree)
    said = json.dumps(tree, separators=(",", ":")).encode()
    if rng.random() < 0.5:  # too deep for the encoder, not for a peer
        deep = rng.choice(_DEPTHS)
        begin, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        said = said.replace(b"null", begin * deep + b"1" + end * deep, 1)
    return said


def _other(rng: Random, tree: Any) -> Any:
    """One value, anywhere in it."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        if rng.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: _other(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        if rng.random() < 0.1:
            return tree[:at] + tree[at:] * 2
        return [*tree[:at], _other(rng, tree[at]), *tree[at + 1 :]]
    match rng.randrange(6):
        case 0:
            return rng.choice(_NUMBERS)
        case 1:
            return rng.choice(_TEXTS)
        case 2:
            return rng.choice((None, True, False))
        case 3:
            return rng.choice(([], {}, [tree], {"a": tree}, [[]]))
        case 4:
            return str(tree)[:100]
        case _:
            return None
