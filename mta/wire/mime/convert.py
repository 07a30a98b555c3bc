"""Makes of a content one that a server takes which lacks BINARYMIME, or 8BITMIME as well.

Law: decoded, every part is what it was, octet by octet; what need not change does not. Only leaves
get another encoding, never what is inside of it; nothing within something signed changes, no octet
outside of parts, and no header but for its encoding. Whatever that does not allow is Unconvertible.
The answer is text (lines of at most 998 octets, CRLF only, no NUL) in SMTP wire form, and ASCII for
a server without 8BITMIME.

Two passes: a Survey reads all and says what to do, a Converter does it. Memory is that of one
header and one octet a part. RFC 6152 section 3, RFC 3030 section 3, RFC 2045 6.4, RFC 1428,
RFC 1847.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mta.model import BodyType
from mta.wire.mime.encodings import Base64, QuotedPrintable
from mta.wire.mime.header import Malformed, PartHeader
from mta.wire.mime.parts import PartReader
from mta.wire.mime.texts import TextScan
from mta.wire.smtp.content import Stuffer, Unstuffer

_NO_ENCODING = ("multipart/", "message/")
_ENCODABLE_MESSAGES = frozenset(
    ("message/global", "message/global-headers", "message/global-delivery-status")
)
"""RFC 6532 3.7, RFC 6533: these may be encoded; of all other message/* RFC 2045 6.4 forbids it."""


class Unconvertible(ValueError):
    """Why this content cannot be converted, in words for its sender."""


class Act(enum.IntEnum):
    """What becomes of a leaf."""

    KEEP = 0
    LABEL = 1
    """Its octets pass as they are, but not the label that it has."""
    QUOTE = 2
    BASE64 = 3
    QUOTE_UNKNOWN = 4
    """As QUOTE, and it does not say in which character set (RFC 1428)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a Survey found out."""

    takes: BodyType
    is_stuffed: bool
    acts: bytes
    """An Act for each leaf, in their order."""


class Survey(PartReader):
    """Feed it the content, then `finish`. @raise Unconvertible: at any time."""

    def __init__(self, takes: BodyType, *, is_stuffed: bool) -> None:
        """`takes` is what the server takes at most, of BodyType's first two."""
        super().__init__()
        self._takes = takes
        self._acts = bytearray()
        self._unstuffer = Unstuffer() if is_stuffed else None
        self._leaf = PartHeader(b"")
        self._type = ""
        self._body = TextScan()
        self._between = TextScan()

    def take(self, piece: bytes) -> None:
        try:
            self.feed(piece if self._unstuffer is None else self._unstuffer.take(piece))
        except Malformed as why:
            raise Unconvertible(str(why)) from None

    def plan(self) -> Plan:
        try:
            if self._unstuffer is not None:
                self.feed(self._unstuffer.finish())
            self.finish()
            self._judge_between()
        except Malformed as why:
            raise Unconvertible(str(why)) from None
        return Plan(self._takes, self._unstuffer is not None, bytes(self._acts))

    def on_header(
        self, header: PartHeader, content_type: str, *, is_leaf: bool, starts_message: bool
    ) -> None:
        self._judge_between()
        scan = TextScan()
        scan.feed(header.block)
        if not self._is_clean(scan):
            raise Unconvertible("a header has 8-bit octets or an over-long line")
        if is_leaf:
            self._leaf, self._type, self._body = header, content_type, TextScan()

    def on_body(self, octets: bytes) -> None:
        self._body.feed(octets)

    def on_between(self, octets: bytes) -> None:
        self._between.feed(octets)

    def on_leaf_end(self, is_last: bool) -> None:
        body = self._body
        body.finish()
        act = self._act(is_alone=is_last and not self.is_in_multipart)
        if self.is_signed and act is Act.LABEL:
            act = Act.KEEP  # a wrong word about octets that pass
        if self.is_signed and act is not Act.KEEP:
            raise Unconvertible("what is signed cannot be converted")
        self._acts.append(act)

    def _act(self, *, is_alone: bool) -> Act:
        header, body, content_type = self._leaf, self._body, self._type
        is_exact = body.is_whole or not is_alone or header.encoding != b"binary"
        if self._is_clean(body) and is_exact:
            return Act.KEEP if _label(header, self._takes) is None else Act.LABEL
        if not header.is_identity:
            raise Unconvertible(f"a part is in {header.encoding.decode('latin-1')} and is not")
        if content_type.startswith(_NO_ENCODING) and content_type not in _ENCODABLE_MESSAGES:
            raise Unconvertible(f"{content_type} may not be encoded")
        if not content_type.startswith("text/"):
            return Act.BASE64
        if header.content_type or body.is_ascii:
            return Act.QUOTE
        return Act.QUOTE_UNKNOWN

    def _is_clean(self, scan: TextScan) -> bool:
        return scan.is_text and (scan.is_ascii or self._takes is not BodyType.SEVEN_BIT)

    def _judge_between(self) -> None:
        self._between.finish()
        if not self._is_clean(self._between):
            raise Unconvertible("there are 8-bit or binary octets outside of the parts")
        self._between = TextScan()


class Converter(PartReader):
    """Takes the same content again and answers the converted one, in SMTP wire form."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._unstuffer = Unstuffer() if plan.is_stuffed else None
        self._stuffer = Stuffer()
        self._said: list[bytes] = []
        self._leaf = 0
        self._encoder: Base64 | QuotedPrintable | None = None
        self._ends_line = True

    def take(self, piece: bytes) -> bytes:
        self.feed(piece if self._unstuffer is None else self._unstuffer.take(piece))
        return self._wire()

    def end(self) -> bytes:
        if self._unstuffer is not None:
            self.feed(self._unstuffer.finish())
        self.finish()
        return self._wire() + self._stuffer.finish()

    def _wire(self) -> bytes:
        said, self._said = self._said, []
        return self._stuffer.take(b"".join(said))

    def on_header(
        self, header: PartHeader, content_type: str, *, is_leaf: bool, starts_message: bool
    ) -> None:
        act = Act.KEEP if is_leaf or self.is_signed else Act.LABEL
        if is_leaf and self._leaf < len(self._plan.acts):
            act = Act(self._plan.acts[self._leaf])
            self._leaf += 1
        self._encoder = None
        if act is Act.BASE64:
            self._encoder = Base64()
        elif act in (Act.QUOTE, Act.QUOTE_UNKNOWN):
            self._encoder = QuotedPrintable()
        label = _label(header, self._plan.takes) if act is Act.LABEL else None
        if self._encoder is not None:
            label = self._encoder.name
        block = header.block if label is None else header.with_encoding(label)
        if act is Act.QUOTE_UNKNOWN:
            block += b"Content-Type: text/plain; charset=unknown-8bit\r\n"
        if block != header.block and starts_message and not header.has_version:
            block += b"MIME-Version: 1.0\r\n"
        self._said.append(block)

    def on_empty_line(self) -> None:
        self._said.append(b"\r\n")

    def on_body(self, octets: bytes) -> None:
        if self._encoder is None:
            self._said.append(octets)
        else:
            if octets:
                self._ends_line = octets.endswith(b"\n")
            self._said.append(self._encoder.feed(octets))

    def on_leaf_end(self, is_last: bool) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        self._said.append(encoder.finish())
        if is_last and isinstance(encoder, QuotedPrintable) and not self._ends_line:
            self._said.append(b"=\r\n")  # no line end was here, and one must be

    def on_between(self, octets: bytes) -> None:
        self._said.append(octets)


def _label(header: PartHeader, takes: BodyType) -> bytes | None:
    """What a part is to be called whose octets pass as they are; None: its label may stay. A
    multipart or message is called after what is in it, and the server takes that by then.
    """
    if header.encoding == b"binary" or (header.encoding == b"8bit" and takes is BodyType.SEVEN_BIT):
        return b"7bit" if takes is BodyType.SEVEN_BIT else b"8bit"
    return None
