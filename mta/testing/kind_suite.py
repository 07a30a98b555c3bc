"""What every IAssociationKind promises to the agent. Mix into a SynchronousTestCase.

The case says how its kind and the far end are made, and how time and network move on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.interfaces import IAssociationKind, IContent, ISender, ITenure
from mta.model import Address, Envelope, NextHop, OutcomeKind, Recipient, queue_id

WIRE = (
    b"Received: from x by y\r\nSubject: suite\r\n\r\nfirst\r\n..dot at the start\r\n"
    b"a line\r\nlast\r\n"
)
"""A content in SMTP wire form: one dot is stuffed."""


@implementer(IContent)
class PieceContent:
    """A content in pieces; with `is_resident` it lies in memory."""

    def __init__(self, pieces: Sequence[bytes], *, is_resident: bool) -> None:
        self._pieces = list(pieces)
        self.size_octets = sum(len(piece) for piece in pieces)
        self.resident = tuple(pieces) if is_resident else None
        self.is_closed = False

    def read(self) -> Deferred[bytes]:
        return succeed(self._pieces.pop(0) if self._pieces else b"")

    def close(self) -> None:
        self.is_closed = True


def mailbox(text: str) -> Address:
    return Address(text.encode(), text.partition("@")[2].encode())


def envelope_to(*recipients: str, sender: str = "alice@example.org") -> Envelope:
    return Envelope(mailbox(sender), tuple(Recipient(mailbox(text)) for text in recipients))


class IAssociationKindTests:
    """Implement `kind()`, `tenure()`, `hop()`, `received(recipient)` and, where things take their
    time, `settle()`. `received` answers the bodies (dots unstuffed, LF or CRLF) at the far end.
    """

    kind: Callable[[], IAssociationKind]
    tenure: Callable[[], ITenure]

    def hop(self) -> NextHop:
        return NextHop("suite", "suite", "suite", 0)

    def received(self, recipient: str) -> list[bytes] | None:
        """None: this far end keeps nothing."""
        return None

    def settle(self) -> None:
        """Let the network, threads and time move until nothing does."""

    # what the suite needs

    def _result(self, waiting: Deferred[Any]) -> Any:
        self.settle()
        return self.successResultOf(waiting)  # type: ignore[attr-defined]

    def _open(self) -> ISender:
        return self._result(self.kind().open(self.tenure(), self.hop()))  # type: ignore[no-any-return]

    def _carry(
        self, sender: ISender, name: str, envelope: Envelope, content: PieceContent
    ) -> list[OutcomeKind]:
        recipients = tuple(range(len(envelope.recipients)))
        first = self._result(sender.prepare(name, envelope, recipients, content.size_octets))
        settled = {outcome.recipient for outcome in first}
        second = () if len(settled) == len(recipients) else self._result(sender.commit(content))
        found = {o.recipient: o.kind for o in (*first, *second)}
        assert sorted(found) == list(recipients), "an outcome for each recipient, once"
        return [found[index] for index in recipients]

    def _bodies(self, recipient: str) -> list[bytes] | None:
        bodies = self.received(recipient)
        if bodies is None:
            return None
        return [body.replace(b"\r\n", b"\n") for body in bodies]

    # promises

    def test_interfaces(self) -> None:
        """A kind and its sender have every method of their contracts, and say what they are."""
        kind = self.kind()
        verifyObject(IAssociationKind, kind)
        assert kind.name
        assert kind.commit_point
        assert kind.may_send
        verifyObject(ISender, self._result(kind.open(self.tenure(), self.hop())))

    def test_slots_differ(self) -> None:
        """Every association has a slot of its own: the journal knows it by that name."""
        kind, tenure = self.kind(), self.tenure()
        senders = [self._result(kind.open(tenure, self.hop())) for _ in range(3)]
        assert len({sender.slot for sender in senders}) == 3
        assert all(sender.is_open for sender in senders)

    def test_nothing_before_commit(self) -> None:
        """What was prepared and withdrawn reached nobody, and the association goes on."""
        sender = self._open()
        envelope = envelope_to("bob@example.com")
        self._result(sender.prepare(queue_id(1, 1), envelope, (0,), len(WIRE)))
        self._result(sender.withdraw())
        assert self._bodies("bob@example.com") in (None, [])
        if sender.is_open:
            content = PieceContent([WIRE], is_resident=True)
            assert self._carry(sender, queue_id(1, 2), envelope, content) == [OutcomeKind.DELIVERED]

    def test_delivered(self) -> None:
        """Every recipient has it once, whole, with the dots as they were meant."""
        sender = self._open()
        envelope = envelope_to("bob@example.com", "carol@example.com")
        content = PieceContent([WIRE], is_resident=True)
        found = self._carry(sender, queue_id(1, 3), envelope, content)
        assert found == [OutcomeKind.DELIVERED] * 2
        for recipient in ("bob@example.com", "carol@example.com"):
            bodies = self._bodies(recipient)
            if bodies is not None:
                assert len(bodies) == 1
                assert bodies[0].endswith(
                    b"Subject: suite\n\nfirst\n.dot at the start\na line\nlast\n"
                )

    def test_pieces_change_nothing(self) -> None:
        """However the content is cut, resident or read piece by piece, the same arrives."""
        sender = self._open()
        envelope = envelope_to("bob@example.com")
        for at in range(1, len(WIRE)):
            content = PieceContent([WIRE[:at], WIRE[at:]], is_resident=at % 2 == 0)
            found = self._carry(sender, queue_id(1, 100 + at), envelope, content)
            assert found == [OutcomeKind.DELIVERED]
        bodies = self._bodies("bob@example.com")
        if bodies is not None:
            assert len(bodies) == len(WIRE) - 1
            ends = {body[body.index(b"Subject: suite") :] for body in bodies}
            assert ends == {b"Subject: suite\n\nfirst\n.dot at the start\na line\nlast\n"}

    def test_many_over_one(self) -> None:
        """One message after the other over the same association."""
        sender = self._open()
        for serial in range(10, 15):
            content = PieceContent([WIRE], is_resident=True)
            found = self._carry(
                sender, queue_id(1, serial), envelope_to("bob@example.com"), content
            )
            assert found == [OutcomeKind.DELIVERED]
        bodies = self._bodies("bob@example.com")
        assert bodies is None or len(bodies) == 5

    def test_closed(self) -> None:
        """A closed association says so."""
        sender = self._open()
        self._result(sender.close())
        assert not sender.is_open
