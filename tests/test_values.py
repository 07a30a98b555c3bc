"""The values that every room shares are frozen, equal by their fields, and cheap to make.

mypy reads this file with the product: an `ignore` below that nothing needs any more is an error of
its own, so a field that could be assigned to fails `make check`.
"""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from mta.model import Address, QueueFilter, Recipient, SpoolStats


def refused(address: Address) -> None:
    """Read by mypy, never run."""
    address.text = b""  # type: ignore[misc]
    address.name = b""  # type: ignore[attr-defined]
    Address(text="")  # type: ignore[arg-type]
    replace(address, name=b"")  # type: ignore[call-arg]


class Values(SynchronousTestCase):
    def test_equal_fields_make_equal_values_of_one_hash(self) -> None:
        one, other = Recipient(Address(b"a@b", b"b")), Recipient(Address(b"a@b", b"b"))
        assert one == other
        assert {one: 1} == {other: 1}
        assert one != replace(one, original=b"rfc822;a@c")

    def test_a_copy_leaves_the_original_as_it_was(self) -> None:
        address = Address(b"a@b", b"b")
        assert replace(address, text=b"c@b") == Address(b"c@b", b"b")
        assert address == Address(b"a@b", b"b")

    def test_a_value_has_room_for_its_fields_only(self) -> None:
        assert not hasattr(QueueFilter(), "__dict__")

    def test_what_a_default_makes_is_made_for_each(self) -> None:
        one, other = (SpoolStats(0, 0, 0, None, 0, 0) for _ in range(2))
        assert one.by_domain is not other.by_domain
