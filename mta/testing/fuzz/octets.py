"""Octets of samples, changed here and there and cut into pieces: what all targets share.

Law: all is a function of the random numbers that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    64,
    127,
    128,
    255,
    256,
    4095,
    4096,
    32767,
    65535,
    2**31,
    2**32 - 1,
)


def mutated(rng: Random, samples: Sequence[bytes], spices: Sequence[bytes], most: int) -> bytes:
    """One sample or two in one, with some changes; sometimes none, sometimes nothing but chance."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.choice((0, 1, 8, 40, 300)))
    data = rng.choice(samples)
    if rng.random() < 0.15:
        other = rng.choice(samples)
        data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 4, 9))):
        data = changed(rng, data, spices)
    return data[:most]


def changed(rng: Random, data: bytes, spices: Sequence[bytes]) -> bytes:
    """One change."""
    at = rng.randint(0, len(data))
    behind = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 100)))
    match rng.randrange(9):
        case 0 | 1:
            put = rng.choice(spices) if spices else rng.randbytes(2)
            return data[:at] + put + data[at:]
        case 2:
            return data[:at] + data[behind:]
        case 3:
            return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
        case 4:
            return data[:at]
        case 5:
            return data[:behind] + data[at:behind] * rng.choice((1, 1, 2, 50)) + data[behind:]
        case 6 if at < len(data):
            return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        case 7:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) % (1 << 8 * width)
            put = number.to_bytes(width, "little")
            return data[:at] + rng.choice((put, put[::-1])) + data[at + width :]
        case _:
            start = rng.randint(0, at)
            return data[:start] + data[at:behind] + data[start:at] + data[behind:]


def pieces_of(rng: Random, data: bytes) -> list[bytes]:
    """As a network might cut it: whole, octet by octet at first, or here and there."""
    if rng.random() < 0.2:
        return [data]
    pieces: list[bytes] = []
    at = 0
    usual = rng.choice((1, 2, 7, 40, 400, 5000))
    while at < len(data):
        many = usual if len(pieces) > 400 else 1 + int(2 * usual * rng.random())
        many = max(many, len(data) // 800)
        pieces.append(data[at : at + many])
        at += many
    return pieces
