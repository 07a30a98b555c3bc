"""Policies of MTA-STS as they are kept: in a book of bounded size, and in its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.association.sts_book import (
    AGAIN_SECONDS,
    MOST,
    REFRESH_SECONDS,
    UNUSED_SECONDS,
    Book,
    Kept,
)
from mta.association.sts_file import PolicyFile
from mta.model import StsMode, StsPolicy
from mta.testing.disk import ForgetfulDisk
from mta.testing.executors import InlineExecutor
from tests.test_sts import POLICY


class FileTests(SynchronousTestCase):
    def test_power_cut_at_every_step(self) -> None:
        """Wherever the power goes while the file is written anew, the former or the new content is
        there, whole; and the next one is written over what was left.
        """
        for cut in range(200):
            disk = ForgetfulDisk()
            file = PolicyFile(disk, InlineExecutor(), "/state")
            self.successResultOf(file.save(b"former" * 2000))
            left = [cut]

            def counted(call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def step(*arguments: Any, **keys: Any) -> Any:
                    if left[0] == 0:
                        raise KeyboardInterrupt
                    left[0] -= 1
                    return call(*arguments, **keys)

                return step

            for name in ("open", "pwritev", "fdatasync", "unlink", "link", "sync_directory"):
                setattr(disk, name, counted(getattr(disk, name)))
            is_whole = False
            try:
                file._save(b"new" * 5000)
                is_whole = True
            except KeyboardInterrupt:
                pass
            for name in ("open", "pwritev", "fdatasync", "unlink", "link", "sync_directory"):
                delattr(disk, name)
            disk.power_cut()
            found = self.successResultOf(file.load())
            self.assertTrue(found == b"new" * 5000 or (found == b"former" * 2000 and not is_whole))
            self.successResultOf(file.save(b"third"))
            self.assertEqual(self.successResultOf(file.load()), b"third")
            if is_whole:
                self.assertGreater(cut, 6)
                return
        self.fail("it has no end")


KEPT = st.builds(
    Kept,
    st.from_regex(r"[A-Za-z0-9]{1,32}", fullmatch=True),
    st.builds(
        StsPolicy,
        st.sampled_from(StsMode),
        st.lists(st.sampled_from(["mx.example.com", "*.example.net"]), max_size=3).map(tuple),
        st.integers(1, 31557600),
    ),
    st.floats(0, 2e9),
    st.floats(0, 2e9),
)
DOMAINS = st.from_regex(r"[a-z]{1,3}\.example", fullmatch=True)


class BookTests(SynchronousTestCase):
    def test_too_many(self) -> None:
        """Of too many the one that was not used for longest goes, by number and by octets."""
        book = Book(3)
        for name in "abc":
            book.put(name, Kept("1", POLICY, 0.0, 0.0))
        book.use("a", 1.0)
        book.put("d", Kept("1", POLICY, 0.0, 0.0))
        self.assertEqual([bool(book.get(name, 1.0)) for name in "abcd"], [True, False, True, True])
        large = StsPolicy(StsMode.ENFORCE, tuple(f"mx{n}.example.com" for n in range(3000)), 99)
        book = Book(most_octets=1_000_000)
        for number in range(20):
            book.put(str(number), Kept("1", large, 0.0, 0.0))
        self.assertEqual(len(book), 4)
        book.put("19", Kept("2", large, 0.0, 0.0))
        self.assertEqual(len(book), 4)
        self.assertEqual(MOST, 10_000)

    def test_clock_that_was_wrong(self) -> None:
        """What was fetched in the future holds for its life from now, and no longer."""
        book = Book()
        book.put("a", Kept("1", POLICY, 2e9, 2e9))
        kept = book.get("a", 1e9)
        assert kept is not None
        self.assertEqual(kept.expires(1e9), 1e9 + 604800)

    def test_due(self) -> None:
        """After a day or half of its life, an hour after an attempt, while it is used."""
        for max_age, fetched, tried, used, expected in (
            (604800, -REFRESH_SECONDS, -1e9, -1, True),
            (604800, -REFRESH_SECONDS + 1, -1e9, -1, False),
            (604800, -REFRESH_SECONDS, -AGAIN_SECONDS + 1, -1, False),
            (604800, -REFRESH_SECONDS, -1e9, -UNUSED_SECONDS - 1, False),
            (7200, -3600, -1e9, -1, True),
            (7200, -3599, -1e9, -1, False),
            (600, -300, -300, -1, True),
            (600, -300, -299, -1, False),
        ):
            policy = StsPolicy(StsMode.ENFORCE, ("a",), max_age)
            kept = Kept("1", policy, 1e9 + fetched, 1e9 + used, 1e9 + tried)
            self.assertEqual(kept.is_due(1e9), expected, (max_age, fetched, tried, used))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.dictionaries(DOMAINS, KEPT, max_size=6))
    def test_octets(self, entries: dict[str, Kept]) -> None:
        """What is kept is read again as it was."""
        book, again = Book(), Book()
        for domain, kept in entries.items():
            book.put(domain, kept)
        again.read(book.octets())
        self.assertEqual(again._kept, entries)
        self.assertEqual(list(again._kept), list(entries))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """One octet that is another, or a piece that is missing, is found."""
        book = Book()
        book.put("example.com", Kept("1", POLICY, 1.0, 1.0))
        whole = book.octets()
        at = data.draw(st.integers(0, len(whole) - 1))
        octet = data.draw(st.integers(0, 255).filter(lambda n: n != whole[at]))
        changed = whole[:at] + bytes([octet]) + whole[at + 1 :]
        for wrong in (changed, whole[:at], b""):
            self.assertRaises(ValueError, Book().read, wrong)

    def test_another_program(self) -> None:
        """A whole file with other things in it is no book either."""
        for entry in ({}, [], ["a"], ["a", "1", "enforced", 1, 2, 3], ["a", "1", "none", "1", 2, 3],
                      ["a", "1", "none", 1, 2, 3, 4]):  # fmt: skip
            body = json.dumps(entry).encode() + b"\n"
            octets = b"mta-sts 1 " + sha256(body).hexdigest().encode() + b"\n" + body
            self.assertRaises(ValueError, Book().read, octets)

    def test_senseless_under_a_right_sum(self) -> None:
        """A line that makes no sense is told as damage, whatever its sum says, and nothing of the
        file is taken: not what stands before it either.
        """
        kept = '["a.example", "1", "enforce", 60, 1.0, 1.0, "mx.a.example"]'
        for wrong in (
            "[" * 100_000,
            kept.replace("60", "1e999"),
            kept.replace("60", "-1"),
            kept.replace("60", "31557601"),
            kept.replace("1.0", "NaN"),
            kept.replace("1.0", "9" * 400),
            kept.replace("enforce", "always"),
            "{}",
        ):
            body = f"{kept}\n{wrong}\n".encode()
            octets = b"mta-sts 1 %b\n%b" % (sha256(body).hexdigest().encode(), body)
            book = Book()
            with self.assertRaises(ValueError, msg=wrong[:40]):
                book.read(octets)
            self.assertEqual(len(book), 0, wrong[:40])
