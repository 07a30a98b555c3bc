"""A target of the fuzzer: one parser, the law it is held to, and samples of what it reads.

Law: a case is a function of seed, target and number, whatever was held before it; what it feeds is
never longer than `LONGEST`. Any exception that leaves `hold` is a failure: `Broken` says which
promise was not kept, everything else escaped from the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Self, TypeVar

from mta.testing.fuzz.octets import mutated

T = TypeVar("T")


class Broken(Exception):
    """A promise was not kept; the text says which."""


class Target:
    """Its docstring is its law. `spices` are octets that mean something to the parser."""

    name = ""
    spices: Sequence[bytes] = ()

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self.seeds = seeds

    @classmethod
    def at(cls, tests: Path) -> Self:
        """With its samples, which lie below `tests`/fuzz under its name."""
        return cls(read_seeds(tests / "fuzz" / cls.name))

    def hold(self, rng: Random, number: int) -> None:
        """One case. @raise: whatever is wrong."""
        raise AssertionError("a target says what a case of it is")

    def octets(self, rng: Random, most: int = 64 * 1024) -> bytes:
        """A sample, changed here and there."""
        return mutated(rng, self.seeds, self.spices, most)


def either(call: Callable[[], T], *declared: type[BaseException]) -> T | BaseException:
    """What `call` answers, or the error that it may raise."""
    try:
        return call()
    except declared as error:
        return error


def same(one: object, other: object, what: str) -> None:
    """Compares answers and errors (these by their kind and words). @raise Broken."""
    if isinstance(one, BaseException) and isinstance(other, BaseException):
        if type(one) is type(other) and str(one) == str(other):
            return
    elif one == other:
        return
    raise Broken(f"{what}:\n{one!r}\n{other!r}")


def ensure(fact: object, what: str) -> None:
    """@raise Broken."""
    if not fact:
        raise Broken(what)


# --- samples ------------------------------------------------------------------------------------


def read_seeds(folder: Path) -> list[bytes]:
    """The samples in a folder's files, in the order of their names.

    `.txt`: the octets as they stand. `.crlf`: the same, each line ended by CRLF. `.hex`: octets as
    pairs of digits, with comments behind #. A line of `%%` stands between two samples of a file.
    """
    found: list[bytes] = []
    for path in sorted(folder.iterdir()):
        octets = path.read_bytes()
        samples = octets.split(b"\n%%\n")
        match path.suffix:
            case ".txt":
                found += samples
            case ".crlf":
                found += [sample.replace(b"\n", b"\r\n") for sample in samples]
            case ".hex":
                found += [_unhexed(sample) for sample in samples]
            case _:
                raise ValueError(f"{path}: samples are .txt, .crlf or .hex")
    return found


def _unhexed(text: bytes) -> bytes:
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in text.decode().splitlines()))
