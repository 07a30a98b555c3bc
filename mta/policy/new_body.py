"""A body that a policy puts in the place of the one that came, on its way into the store.

Law: it is held to what its client could have sent by the same listener, by the same reader; what
cannot be taken leaves the message as it was. Nothing of it stays in memory.

RFC 5321 4.5.2 (transparency), 4.5.3.1.6 (lines), 2.3.8 (bare CR and LF); RFC 3030 (BINARYMIME).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.errors import PermanentFailure
from mta.interfaces import INewBody, IStaging
from mta.model import ContentForm
from mta.wire.mime.texts import TextScan
from mta.wire.smtp.content import ContentReader, Fault, LineEnds, Stuffer


class Bounds(NamedTuple):
    """Of one message: octets in all, and of one line without CRLF. 0: no limit."""

    size_octets: int = 0
    line_octets: int = 0


NO_BOUNDS = Bounds()


@implementer(INewBody)
class NewBody:
    """`taken` is called with it once it is whole. `text` looks at what is to lie as it is, header
    and all; None: it lies in wire form. `size_octets` is of the whole message.
    """

    def __init__(  # noqa: PLR0917 - what it is made of, and whom it is for
        self,
        staging: IStaging,
        form: ContentForm,
        header: bytes,
        bounds: Bounds,
        is_binary: bool,
        taken: Callable[[NewBody], None],
    ) -> None:
        self.staging = staging
        self.has_eight_bits = False
        self.size_octets = len(header) + 2
        self.text: TextScan | None = None
        self._limit = bounds.size_octets
        self._taken = taken
        self._is_over = False
        self._lines: LineEnds | None = None if is_binary else LineEnds()
        self._reader: ContentReader | None = None
        if form is ContentForm.DOT_STUFFED:
            self._lines = Stuffer()
            self._reader = ContentReader(0, bounds.line_octets, False)
        else:
            self.text = TextScan()
            self.text.feed(header + b"\r\n")

    def write(self, octets: bytes) -> Deferred[None] | None:
        piece = octets if self._lines is None else self._lines.take(octets)
        if self._reader is not None:
            piece = self._reader.take(piece)[0]
        return self._keep(piece)

    def take(self) -> None:
        piece = b"" if self._lines is None else self._lines.finish()
        if self._reader is not None:
            piece = self._reader.take(piece + b".\r\n")[0]
        self._keep(piece)
        self._is_over = True
        self._taken(self)

    def abandon(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.staging.abort()

    def _keep(self, piece: bytes) -> Deferred[None] | None:
        """@raise PermanentFailure."""
        fault = None if self._reader is None else self._reader.fault
        self.size_octets += len(piece)
        if fault is None and 0 < self._limit < self.size_octets:
            fault = Fault.TOO_BIG
        if fault is not None:
            raise PermanentFailure("the new body cannot be taken", fault.value)
        if not piece:
            return None
        if not self.has_eight_bits and not piece.isascii():
            self.has_eight_bits = True
        if self.text is not None:
            self.text.feed(piece)
        return self.staging.write(piece)
