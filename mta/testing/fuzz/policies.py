"""Policies of MTA-STS: as their hosts and the DNS say them, and as they are kept."""

from __future__ import annotations

from hashlib import sha256
from random import Random

from mta.association.sts_book import Book
from mta.model import StsMode, StsPolicy
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.testing.fuzz.trees import other_values
from mta.wire.sts import LARGEST_OCTETS, LONGEST_AGE, announced, names, parse_policy


class Sts(Target):
    """Any octets are a policy or a ValueError with words of ours; a record has an id or none. A
    policy holds what the grammar allows, whichever newlines it has, and names exactly the servers
    that stand in it, `*.` for one label.
    """

    name = "sts"
    spices = (
        *(
            b"version: STSv1\n",
            b"mode: enforce\r\n",
            b"mx: ",
            b"*.",
            b"*",
            b"max_age: ",
            b":",
            b"=",
        ),
        *(
            b"v=STSv1;",
            b"id=",
            b"\r",
            b"\n",
            b"\r\n",
            b"\0",
            b" ",
            b"\t",
            b".",
            b"\xc3\xbc",
            b"\xff",
        ),
        *(b"99999999999", b"x" * 300, b"mx: a.example\n" * 5000),
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng, 2 * LARGEST_OCTETS)
        found = announced(octets.splitlines())
        ensure(not found or (found.isascii() and found.isalnum()), f"the id is {found!r}")
        ensure(len(found) <= 32, "the id is longer than it may be")
        policy = either(lambda: parse_policy(octets), ValueError)
        if len(octets) < LARGEST_OCTETS and b"\r\r" not in octets:
            plain = octets.replace(b"\r\n", b"\n")
            same(policy, either(lambda: parse_policy(plain), ValueError), "newlines change it")
        if isinstance(policy, StsPolicy):
            ensure(len(octets) <= LARGEST_OCTETS, "it is larger than a policy may be")
            _inspect(policy)
        else:
            ensure(str(policy).isprintable() and len(str(policy)) < 100, f"the words: {policy}")


def _inspect(policy: StsPolicy) -> None:
    ensure(0 <= policy.max_age <= LONGEST_AGE, f"its age is {policy.max_age}")
    ensure(policy.mx or policy.mode is StsMode.NONE, "it names nobody")
    for mx in policy.mx[:50]:
        ensure(mx.isascii() and mx == mx.lower() and 0 < len(mx) <= 255, f"a name is {mx!r}")
        above = mx.removeprefix("*.")
        ensure("*" not in above, f"a name is {mx!r}")
        if above == mx:
            ensure(names(policy, f"{mx.upper()}."), f"{mx} is not named")
            continue
        ensure(names(policy, f"a.{above}"), f"{mx} does not stand for a label")
        deeper = f"a.b.{above}"
        is_told = deeper in policy.mx or f"*.b.{above}" in policy.mx
        ensure(names(policy, deeper) is is_told, f"{mx} stands for two labels")


class StsBook(Target):
    """What was kept comes back whole, or is a ValueError that leaves the book as it was: also where
    the check sum is right. What comes back is written and read again as the same.
    """

    name = "sts-book"
    spices = (
        *(b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 400, b'"x"', b"[" * 2000),
        *(b"\n", b",", b"\\ud800", b"Infinity", b"31557601"),
    )

    def hold(self, rng: Random, number: int) -> None:
        body = self.octets(rng)
        if rng.random() < 0.5:
            body = b"".join(other_values(rng, line) + b"\n" for line in body.splitlines())
        head = b"mta-sts 1 %b\n" % sha256(body).hexdigest().encode("ascii")
        book, again = Book(), Book()
        fault = either(lambda: book.read(head + body), ValueError)
        if fault is not None:
            ensure(not len(book), "a part of what is damaged was taken")
            return
        again.read(book.octets())
        same(again.octets(), book.octets(), "what is written is read as another")
