"""One content that policies may change, and what of it lies in the store.

Law: there is one staging whose commit is the message, and at most one more, which takes its place
whole or is aborted. The header of such a content is in the transaction and not in the staging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mta.errors import LocalProtocolError
from mta.interfaces import INewBody, IRevisable, IStaging
from mta.policy.new_body import Bounds, NewBody
from mta.wire.fields import fields_of

if TYPE_CHECKING:
    from mta.policy.transaction import Transaction


class Revision:
    """`exchange` is told of a new body that is whole, once it is the transaction's."""

    __slots__ = ("_bounds", "_exchange", "_open", "_transaction", "revisable", "staging")

    def __init__(
        self,
        transaction: Transaction,
        staging: IStaging,
        bounds: Bounds,
        exchange: Callable[[NewBody], None],
    ) -> None:
        self.staging = staging
        self.revisable: IRevisable | None = IRevisable(staging, None)
        self._transaction = transaction
        self._bounds = bounds
        self._exchange = exchange
        self._open: NewBody | None = None

    def begin(self) -> INewBody:
        """The transaction's `replace_body`."""
        if self.revisable is None:
            raise LocalProtocolError("the store cannot replace a body")
        self.abort()
        transaction = self._transaction
        is_binary = (transaction.parameters.get(b"BODY") or b"").upper() == b"BINARYMIME"
        self._open = NewBody(
            self.revisable.another(),
            transaction.content_form,
            fields_of(transaction.headers),
            self._bounds,
            is_binary,
            self._take,
        )
        return self._open

    def abort(self) -> None:
        """A body that was begun comes to nothing."""
        begun, self._open = self._open, None
        if begun is not None:
            begun.abandon()

    def _take(self, body: NewBody) -> None:
        if body is not self._open:
            body.staging.abort()  # another was begun since, or the transaction has ended
            return
        self._open = None
        self.staging.abort()
        self.staging, self.revisable = body.staging, IRevisable(body.staging, None)
        transaction = self._transaction
        transaction.headers = fields_of(transaction.headers)
        transaction.size_octets = body.size_octets
        self._exchange(body)
