"""One message on its way in, as the policies see it, and the changes they may make.

Law: a transaction is a view with verbs. It decides nothing, does no I/O, and what a peer said stays
bytes; header fields that a policy adds cannot break out of their own lines (RFC 5322 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zope.interface import implementer

from mta.interfaces import (
    ICommandLine,
    IEditableBody,
    IEditableHeader,
    IEditableReturn,
    INewBody,
    IRefusedRecipient,
    ISaslMechanism,
    IStoredForm,
)
from mta.model import NULL_ADDRESS, Address, ContentForm, PeerInfo, Recipient, Reply
from mta.policy.priority import PriorityRule
from mta.policy.revision import Revision
from mta.policy.submission import SubmissionRule
from mta.wire.fields import FieldChange, changed_fields, field_text, must_be_editable


class Association:
    """What is known of the peer for as long as it is connected; shared by its transactions.

    `client` is how logs name it; `vip` the virtual address that it came to, as peers know it;
    `submission` the rule of a submission listener, `priorities` that of one that takes any; `user`
    and `mechanism` are "" until it has said who it is; `line` is the last unknown command.
    """

    __slots__ = (
        "_by_itself",
        "admitted",
        "client",
        "helo",
        "line",
        "mechanism",
        "notes",
        "peer",
        "priorities",
        "protocol",
        "submission",
        "user",
        "vip",
    )

    def __init__(
        self,
        peer: PeerInfo,
        admitted: bool,
        vip: str = "",
        submission: SubmissionRule | None = None,
        priorities: PriorityRule | None = None,
    ) -> None:
        self.peer = peer
        self.client = peer.client
        self.vip = vip or peer.local_host
        self.admitted = self._by_itself = admitted
        self.submission = submission
        self.priorities = priorities
        self.user = self.mechanism = ""
        self.helo = self.line = b""
        self.protocol = peer.protocol
        self.notes: dict[str, Any] = {}

    def admit(self) -> None:
        """It may relay by what it is, whatever it says."""
        self.admitted = self._by_itself = True

    def identify(self, user: str, mechanism: str) -> None:
        """It has said who it is, and may relay (RFC 3848: with ESMTPSA)."""
        self.user, self.mechanism = user, mechanism
        self.admitted = True
        self.protocol += "A"

    def forget(self) -> None:
        """That counts no more (RFC 3207 4.2), or a policy did not want it."""
        if self.user:
            self.protocol = self.protocol.removesuffix("A")
        self.user = self.mechanism = ""
        self.admitted = self._by_itself


@implementer(
    IStoredForm,
    ISaslMechanism,
    IEditableHeader,
    IEditableBody,
    IEditableReturn,
    IRefusedRecipient,
    ICommandLine,
)
class Transaction:
    """See IStoredForm. `kept` is the list of recipients accepted so far, each once.

    `held` and `discarded` are the reasons given, "" for neither; `added` is the finished text of
    the header fields that policies put before all others; `completed` that of those which a client
    left out where mail is handed in. `is_spared`: a policy asked the later ones to be passed over.
    `deliver_by` is what BY comes to, counted from MAIL.
    """

    __slots__ = (
        "_known",
        "_notes",
        "added",
        "association",
        "chunk",
        "completed",
        "content_form",
        "deliver_by",
        "discarded",
        "header_can_change",
        "header_is_whole",
        "headers",
        "held",
        "is_spared",
        "kept",
        "parameters",
        "priority",
        "queue_id",
        "recipient",
        "refusal",
        "revision",
        "sender",
        "size_octets",
    )

    def __init__(
        self,
        association: Association,
        sender: Address = NULL_ADDRESS,
        parameters: dict[bytes, bytes | None] | None = None,
    ) -> None:
        self.association = association
        self.sender = sender
        self.parameters: dict[bytes, bytes | None] = {} if parameters is None else parameters
        self.kept: list[Recipient] = []
        self._known: set[bytes] = set()
        self.recipient: Recipient | None = None
        self.priority = 0
        self.refusal: Reply | None = None
        self.queue_id = ""
        self.headers = b""
        self.content_form = ContentForm.DOT_STUFFED
        self.header_is_whole = True
        self.header_can_change = False
        self.chunk = b""
        self.size_octets = 0
        self.added = b""
        self.completed = b""
        self.held = ""
        self.discarded = ""
        self.is_spared = False
        self.revision: Revision | None = None
        self.deliver_by: float | None = None
        self._notes: dict[str, Any] | None = None

    @property
    def peer(self) -> PeerInfo:
        return self.association.peer

    @property
    def helo(self) -> bytes:
        return self.association.helo

    @property
    def protocol(self) -> str:
        return self.association.protocol

    @property
    def user(self) -> str:
        return self.association.user

    @property
    def mechanism(self) -> str:
        return self.association.mechanism

    @property
    def line(self) -> bytes:
        return self.association.line

    @property
    def admitted(self) -> bool:
        return self.association.admitted

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        return tuple(self.kept)

    @property
    def header_is_ascii(self) -> bool:
        """All of it, with what policies put before it."""
        return self.headers.isascii() and self.added.isascii()

    @property
    def stands_before(self) -> bytes:
        return self.added + self.completed

    @property
    def notes(self) -> dict[str, Any]:
        if self._notes is None:
            self._notes = {}
        return self._notes

    @property
    def association_notes(self) -> dict[str, Any]:
        return self.association.notes

    def keep(self, recipient: Recipient) -> None:
        """Accepted. One message, one copy a recipient, however often it was named."""
        self.recipient = None
        kept, known = self.kept, self._known
        if kept:
            if not known:
                known.update(r.address.text for r in kept)
            if recipient.address.text in known:
                return
            known.add(recipient.address.text)
        kept.append(recipient)

    def add_header(self, name: bytes, value: bytes) -> None:
        self.added += field_text(name, value)

    def change_fields(self, changes: Sequence[FieldChange]) -> None:
        must_be_editable(self.header_can_change)
        self.headers, added = changed_fields(self.headers, changes)
        self.added += added

    @property
    def body_can_change(self) -> bool:
        revision = self.revision
        if revision is None or revision.revisable is None:
            return False
        return self.header_can_change and self.header_is_whole

    def replace_body(self) -> INewBody:
        revision = self.revision
        must_be_editable(self.body_can_change)
        assert revision is not None, "without one a body cannot change"
        return revision.begin()

    def replace_sender(self, sender: Address) -> None:
        self.sender = sender

    def replace_return(self, ret: bytes | None, envelope_id: bytes | None) -> None:
        others = {k: v for k, v in self.parameters.items() if k not in (b"RET", b"ENVID")}
        given = {b"RET": ret, b"ENVID": envelope_id}
        self.parameters = others | {key: value for key, value in given.items() if value}

    def replace_recipient(self, recipient: Address) -> None:
        present = self.recipient
        if present is None:
            raise ValueError("replace_recipient is for the rcpt hook; later, set_recipients")
        self.recipient = Recipient(recipient, present.notify, present.original)

    def set_recipients(self, recipients: Sequence[Recipient]) -> None:
        if not recipients:
            raise ValueError("a message needs a recipient; to drop it, say discard(reason)")
        self.kept = list(recipients)

    def hold(self, reason: str) -> None:
        self.held = reason or "held by policy"

    def discard(self, reason: str) -> None:
        self.discarded = reason or "discarded by policy"
