"""What a filter changes at a message's end, carried out on the transaction.

Law: all of it or nothing. What cannot be done is found out before anything is, and ends the
connection.

Sendmail's mail filter protocol, version 6; RFC 3461 4 (NOTIFY, ORCPT, RET, ENVID).
"""

from __future__ import annotations

from collections.abc import Sequence

from mta.errors import RemoteProtocolError
from mta.interfaces import IEditableHeader, IEditableReturn, INewBody, ITransaction
from mta.model import NULL_ADDRESS, Address, Notify, Recipient
from mta.wire.fields import FieldChange
from mta.wire.milter.answers import (
    AddField,
    AddRecipient,
    Change,
    ChangeField,
    ChangeSender,
    DeleteRecipient,
    Quarantine,
)
from mta.wire.smtp.grammar import (
    MAIL_PARAMETERS,
    Checks,
    Parameters,
    parse_mailbox,
    parse_parameters,
)
from mta.wire.smtp.notification import NOTIFICATION_MAIL, NOTIFICATION_RCPT, notify_of
from mta.wire.text import printable


class Changes:
    """Of one message. `who` names the filter to operators.

    @raise RemoteProtocolError: one of them cannot be made.
    """

    def __init__(self, changes: Sequence[Change], transaction: ITransaction, who: str) -> None:
        self._transaction = transaction
        self._who = who
        self._is_utf8 = b"SMTPUTF8" in transaction.parameters
        self._sender: Address | None = None
        self._return: Parameters | None = None
        self._recipients = list(transaction.recipients)
        self._added: list[AddField] = []
        self._fields: list[FieldChange] = []
        self._held = ""
        for change in changes:
            self._gather(change)
        if self._fields and not IEditableHeader(transaction).header_can_change:
            why = "the client named the transaction (RFC 1845)"
            raise RemoteProtocolError("the filter changes a header that must stay", why)

    def make(self, body: INewBody | None, has_leading_space: bool) -> None:
        """`body` is the new one, whole. @raise PermanentFailure: it cannot be taken; then nothing
        was done.
        """
        transaction, recipients = self._transaction, self._recipients
        if body is not None:
            body.take()
        if self._fields:
            IEditableHeader(transaction).change_fields(self._fields)
        for field in self._added:
            value = field.value.removeprefix(b" ") if has_leading_space else field.value
            transaction.add_header(field.name, value)
        if self._sender is not None:
            transaction.replace_sender(self._sender)
        if self._return is not None:
            IEditableReturn(transaction).replace_return(
                self._return.get(b"RET"), self._return.get(b"ENVID")
            )
        if not recipients:
            transaction.discard(f"{self._who} left no recipient")
        elif tuple(recipients) != transaction.recipients:
            transaction.set_recipients(recipients)
        if self._held:
            transaction.hold(f"{self._who}: {self._held}")

    def _gather(self, change: Change) -> None:
        if isinstance(change, AddField):
            at = len(self._added) if change.index is None else change.index
            self._added.insert(at, change)
        elif isinstance(change, ChangeField):
            self._fields.append((change.name, change.number, change.value))
        elif isinstance(change, ChangeSender):
            self._sender = self._address(change.address) if change.address else NULL_ADDRESS
            if change.parameters:
                # What is said of the content counts for nothing: that is looked at.
                checks = {**MAIL_PARAMETERS, **NOTIFICATION_MAIL}
                self._return = self._parameters(change.parameters, checks)
        elif isinstance(change, AddRecipient):
            self._add(self._address(change.address), change.parameters)
        elif isinstance(change, DeleteRecipient):
            gone = _key(self._address(change.address))
            self._recipients = [r for r in self._recipients if _key(r.address) != gone]
        elif isinstance(change, Quarantine):
            self._held = change.reason or "the filter said so"

    def _add(self, address: Address, text: bytes) -> None:
        said = self._parameters(text, NOTIFICATION_RCPT)
        notify = notify_of(said[b"NOTIFY"]) if b"NOTIFY" in said else Notify.UNSET
        if all(_key(r.address) != _key(address) for r in self._recipients):
            self._recipients.append(Recipient(address, notify, said.get(b"ORCPT") or b""))

    def _address(self, text: bytes) -> Address:
        try:
            return parse_mailbox(text, utf8=self._is_utf8)
        except ValueError as error:
            why = f"{printable(text[:80])}: {error}"
            raise RemoteProtocolError("the filter gave an address that is none", why) from None

    def _parameters(self, text: bytes, checks: Checks) -> Parameters:
        try:
            return parse_parameters(text, checks, utf8=self._is_utf8)
        except RemoteProtocolError as error:
            why = f"{printable(text[:80])}: {error}"
            raise RemoteProtocolError("the filter gave parameters that are none", why) from None


def _key(address: Address) -> tuple[bytes, bytes]:
    """Who counts as the same recipient: a local part's case matters, a domain's does not."""
    return address.local, address.domain
