"""What this MTA puts before a content: its Received, what policies added, what a client left out.

Law: Date and Message-ID are completed where mail is handed in, by a program of this node or at a
submission listener, and nowhere else; mail that is passed on keeps what it has.

RFC 5321 4.4 (Received), RFC 6409 8.1 and 8.2 (Date, Message-ID), RFC 3848 (with).
"""

from __future__ import annotations

from mta.policy.transaction import Association, Transaction
from mta.transfer.desk import Desk
from mta.transfer.header_block import has_field, needs_separator
from mta.transfer.trace import received_field, received_from, utf8_protocol


class Stamp:
    """Of one association. What its messages share is made once, until `forget`."""

    __slots__ = ("_association", "_desk", "_name", "_shared")

    def __init__(self, desk: Desk, association: Association, network_name: str) -> None:
        self._desk = desk
        self._association = association
        self._name = network_name
        self._shared = b""

    def forget(self) -> None:
        """The client is another now: a new name, TLS, a user."""
        self._shared = b""

    def completion(self, transaction: Transaction, lowered: bytes) -> bytes:
        """Date and Message-ID, where they are to be added; made before the last hook, so that a
        policy which signs sees them. `lowered` is the content's header block in lower case.
        """
        text, association = b"", self._association
        if association.peer.uid is not None or association.submission is not None:
            if not has_field(lowered, b"message-id:"):
                name = self._name.encode()
                text += b"Message-ID: <%b@%b>\r\n" % (transaction.queue_id.encode(), name)
            if not has_field(lowered, b"date:"):
                desk = self._desk
                text += b"Date: %b\r\n" % desk.dates.at(desk.clock.wall())
        return text

    def before(self, transaction: Transaction, block: bytes, wall: float) -> bytes:
        """All of it. `block` is the content's header block."""
        desk, association = self._desk, self._association
        parameters = transaction.parameters
        if parameters and b"SMTPUTF8" in parameters:
            shared = self._received(utf8_protocol(association.protocol))
        else:
            shared = self._shared
            if not shared:
                shared = self._shared = self._received(association.protocol)
        kept = transaction.kept
        date = desk.dates.at(wall)
        only = kept[0].address.text if len(kept) == 1 else b""
        text = received_field(shared, transaction.queue_id, only, date, transaction.priority)
        text += transaction.stands_before
        return text + b"\r\n" if needs_separator(block) else text

    def _received(self, protocol: str) -> bytes:
        association = self._association
        return received_from(
            association.peer,
            association.helo,
            protocol,
            self._name,
            self._desk.settings.received_client or not association.admitted,
        )
