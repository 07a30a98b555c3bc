"""What is read of contents: headers, parts and their conversion, authors, signatures; and reports,
which repeat what peers said.
"""

from __future__ import annotations

import email
import email.policy
from email.message import Message
from hashlib import sha256
from random import Random

from mta.model import BodyType
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Target, either, ensure, same
from mta.transfer.header_block import (
    HeaderScan,
    has_field,
    message_id,
    needs_separator,
    received_count,
)
from mta.wire import dkim, dsn, text
from mta.wire.fields import FIELD_NAME, changed_fields, field_text
from mta.wire.milter.header import split_header
from mta.wire.mime.author import author_domain
from mta.wire.mime.convert import Converter, Survey, Unconvertible
from mta.wire.mime.encodings import Base64, QuotedPrintable
from mta.wire.mime.texts import TextScan
from mta.wire.smtp.content import Stuffer, unstuffed

_MARKS = (
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff",
    b".",
    b"\r\n.",
    b" ",
    b"\t",
    b":",
    b";",
)


class Mime(Target):
    """A content is converted, or it is said why not. What comes out is text in SMTP wire form, and
    ASCII for a server without 8BITMIME; decoded, each part is what it was, octet by octet; cutting
    changes nothing.
    """

    name = "mime"
    spices = (
        *_MARKS,
        *(
            b"--b\r\n",
            b"--b--\r\n",
            b"--c\r\n",
            b"--",
            b'boundary="b"',
            b"boundary*0=b",
            b"(",
            b")",
        ),
        *(b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: message/rfc822\r\n"),
        *(b"Content-Transfer-Encoding: binary\r\n", b"Content-Transfer-Encoding: base64\r\n"),
        *(b'"', b"\\", b";" * 2000, b"multipart/signed", b"x" * 1000, b"=\r\n", b"\x80" * 50),
    )

    def hold(self, rng: Random, number: int) -> None:
        plain = self.octets(rng)
        takes = rng.choice((BodyType.SEVEN_BIT, BodyType.EIGHT_BIT_MIME))
        is_stuffed = rng.random() < 0.3
        content = _wire(plain) if is_stuffed else plain
        whole = either(lambda: _converted([content], takes, is_stuffed), Unconvertible)
        cut = either(lambda: _converted(pieces_of(rng, content), takes, is_stuffed), Unconvertible)
        # Which of several reasons is found first depends on the pieces.
        same(isinstance(whole, bytes), isinstance(cut, bytes), "pieces change what is converted")
        if not isinstance(whole, bytes):
            ensure(str(whole).isprintable(), "a reason that cannot be printed")
            return
        same(whole, cut, "pieces change the content")
        _ensure_text(whole, takes)
        if is_stuffed:
            plain = unstuffed(content)
        _ensure_equal(plain, unstuffed(whole))
        kind = rng.choice((Base64, QuotedPrintable))
        self._encoded(rng, kind(), plain)

    def _encoded(self, rng: Random, encoder: Base64 | QuotedPrintable, plain: bytes) -> None:
        said = b"".join(map(encoder.feed, pieces_of(rng, plain))) + encoder.finish()
        ensure(said.isascii(), "an encoding that is not ASCII")
        ensure(max(map(len, said.split(b"\r\n"))) <= 76, "an encoding with a long line")
        head = b"Content-Transfer-Encoding: " + encoder.name + b"\r\n\r\n"
        same(email.message_from_bytes(head + said).get_payload(decode=True), plain, "decoded")


def _converted(pieces: list[bytes], takes: BodyType, is_stuffed: bool) -> bytes:
    survey = Survey(takes, is_stuffed=is_stuffed)
    for piece in pieces:
        survey.take(piece)
    converter = Converter(survey.plan())
    return b"".join(map(converter.take, pieces)) + converter.end()


def _wire(plain: bytes) -> bytes:
    stuffer = Stuffer()
    return stuffer.take(plain) + stuffer.finish()


def _ensure_text(said: bytes, takes: BodyType) -> None:
    scan = TextScan()
    scan.feed(said)
    scan.finish()
    ensure(scan.is_text and scan.is_whole, "what is converted is no text")
    ensure(scan.is_ascii or takes is not BodyType.SEVEN_BIT, "8-bit for a server that takes 7")
    ensure(b"\r\n.\r\n" not in b"\r\n" + said, "an end within the content")


def _ensure_equal(before: bytes, after: bytes) -> None:
    """By another reader: the standard library's. It takes bare CR and LF for line ends, and no
    blank between a field's name and its colon (RFC 5322 4.5 does): without them contents are
    compared.
    """
    bare = before.replace(b"\r\n", b"")
    if b"\r" in bare or b"\n" in bare or b" :" in before or b"\t:" in before:
        return
    one, other = (_leaves(email.message_from_bytes(c)) for c in (before, after))
    if len(one) != len(other):
        ensure(False, f"{len(one)} parts have become {len(other)}")
    for at, (was, is_now) in enumerate(zip(one, other, strict=True)):
        if was != is_now and not (at == len(one) - 1 and was + b"\r\n" == is_now):
            ensure(False, f"part {at} is another:\n{was!r}\n{is_now!r}")


def _leaves(message: Message) -> list[bytes]:
    if message.is_multipart():
        return [leaf for part in message.get_payload() for leaf in _leaves(part)]  # type: ignore[arg-type]
    payload = message.get_payload(decode=True)
    return [payload if isinstance(payload, bytes) else b""]


class Header(Target):
    """A header block is found however it is cut, and what is asked of it comes to an answer. Fields
    and what is no field are together what came; what is not changed stays, octet by octet, and what
    we write cannot break out of its lines.
    """

    name = "header"
    spices = (
        *_MARKS,
        *(b"Received: x\r\n", b"Message-ID: <a@b>\r\n", b"Message-ID:\r\n <a@b>\r\n", b"Subject"),
        *(b"\r\n ", b"\r\n\t", b"\x7f", b"X" * 300),
    )

    def hold(self, rng: Random, number: int) -> None:
        content = self.octets(rng)
        limit = rng.choice((64, 300, 256 * 1024))
        one = _scanned([content], limit)
        same(one, _scanned(pieces_of(rng, content), limit), "pieces change the header")
        block, body = one[0], one[1]
        gap = b"" if one[3] is False else b"\r\n"
        same(block + gap + body, content, "what was fed is not there")
        lowered = block.lower()
        received_count(lowered)
        has_field(lowered, b"subject:")
        needs_separator(content)
        ensure(len(message_id(block, lowered)) <= 250, "a long Message-ID is kept")
        self._fields(rng, block)

    def _fields(self, rng: Random, block: bytes) -> None:
        fields, rest = split_header(block, leading_space=True)
        whole = b"".join(
            b"%b:%b\r\n" % (name, value.replace(b"\n", b"\r\n")) for name, value in fields
        )
        if b" :" not in block and b"\t:" not in block:
            same(whole + rest, block, "fields and rest are another block")
        name = rng.choice((*(name for name, _ in fields[:9]), b"Subject", self.octets(rng, 9)))
        value = self.octets(rng, 2000)
        written = either(lambda: field_text(name, value), ValueError)
        if isinstance(written, bytes):
            _ensure_field(written)
        changes = [(name, rng.choice((0, 1, 1, 2, 9)), rng.choice((value, b"")))]
        changed = either(lambda: changed_fields(block, changes), ValueError)
        if isinstance(changed, BaseException):
            ensure(not FIELD_NAME.fullmatch(name), f"{name!r} is refused: {changed}")
        else:
            new, added = changed
            # A filter does not hear a field with NUL in it; everybody else does.
            ensure(new.endswith(rest) or b"\0" in block, "what is no field has changed")
            if added:
                same(new, block, "a field was added, and another has changed")
                _ensure_field(added)


def _scanned(pieces: list[bytes], limit: int) -> tuple[bytes, bytes, bool, bool]:
    scan = HeaderScan(limit)
    body: list[bytes] = []
    for piece in pieces:
        body.append(piece if scan.complete else piece[scan.feed(piece) :])
    scan.finish()
    return scan.block, b"".join(body), scan.is_cut, scan.is_separated


def _ensure_field(written: bytes) -> None:
    ensure(written.endswith(b"\r\n"), "a field without its end")
    lines = written[:-2].split(b"\r\n")
    ensure(all(line[:1] in (b" ", b"\t") for line in lines[1:]), f"two fields: {written!r}")
    for line in lines:
        ensure(not set(line) & (set(range(32)) - {9}), f"a control octet: {line!r}")
    ensure(all(line.strip() for line in lines[1:]), f"an empty line: {written!r}")


class Author(Target):
    """A From field names one address, whose domain is that of a host, or the reason is told; in
    time that grows with its length.
    """

    name = "author"
    spices = (
        *(b"<", b">", b"@", b"(", b")", b'"', b"\\", b",", b";", b":", b"a@x.org", b"\r\n "),
        *("é@bücher.example".encode(), b"\xff", b"[192.0.2.1]", b"(" * 500, b'"' * 501, b" ", b"."),
    )

    def hold(self, rng: Random, number: int) -> None:
        value = self.octets(rng, 16_384)
        found = either(lambda: author_domain(value), ValueError)
        if isinstance(found, bytes):
            ensure(found and found.isascii() and found == found.lower(), f"a domain is {found!r}")
            ensure(not set(found) & set(b' @<>()[]\\,;:"\r\n\0'), f"a domain is {found!r}")
        else:
            ensure(str(found).isprintable(), "a reason that cannot be printed")


class Dkim(Target):
    """A body's hash does not depend on its pieces, and is the hash of its relaxed form; fields are
    all that was there, and a signature's field is folded into lines of its own.
    """

    name = "dkim"
    spices = (
        *_MARKS,
        b"  \t ",
        b"\r\n" * 40,
        b" \r\n",
        b"From: a@x.org\r\n",
        b"DKIM-Signature: v=1\r\n",
    )

    def hold(self, rng: Random, number: int) -> None:
        content = self.octets(rng)
        block, _, body = content.partition(b"\r\n\r\n")
        fields = either(lambda: dkim.parse_fields(block + b"\r\n"), ValueError)
        is_stuffed = rng.random() < 0.3
        said = _wire(body) if is_stuffed else body
        whole, cut = dkim.BodyHash(is_stuffed), dkim.BodyHash(is_stuffed)
        whole.take(said)
        for piece in pieces_of(rng, said):
            cut.take(piece)
        digest = whole.finish()
        same(digest, cut.finish(), "pieces change the hash of a body")
        plain = unstuffed(said) if is_stuffed else body
        same(digest, sha256(_relaxed(plain)).digest(), "a hash is not that of the relaxed form")
        if isinstance(fields, tuple):
            draft = dkim.draft(
                algorithm=b"rsa-sha256",
                domain=b"x.org",
                selector=b"s1",
                moment=1_800_000_000,
                fields=fields,
                body_hash=digest,
            )
            _ensure_field(b"DKIM-Signature: %b\r\n" % draft.finished(bytes(256)))
            ensure(b"\r\n\r\n" not in draft.signed, "an empty line is signed as a header")


def _relaxed(body: bytes) -> bytes:
    """RFC 6376 3.4.4, as it says it: line by line."""
    lines = body.split(b"\r\n")
    lines = [b" ".join(_words(line)) for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return b"".join(line + b"\r\n" for line in lines)


def _words(line: bytes) -> list[bytes]:
    """Divided at runs of blanks; none at the end."""
    line = line.replace(b"\t", b" ").rstrip(b" ")
    words = line.split(b" ")
    return words[:1] + [word for word in words[1:] if word]


class Dsn(Target):
    """Whatever peers and senders wrote, a report is its parts and no others, of short lines without
    control octets, ASCII but for the To field and encoded parts, and has no end inside; the same
    facts make the same report.
    """

    name = "dsn"
    spices = (
        *_MARKS,
        *(
            b"\r\nX-Forged: yes",
            b"\r\n.\r\n",
            b"x" * 1500,
            b"\x1b[2J",
            "é".encode(),
            b"\xe2\x80\xae",
        ),
        *(
            b"+41",
            b"+4",
            b"rfc822;",
            b"utf-8;",
            b"\\x{e9}",
            b"--",
            b"5.1.1 ",
            "ü@bücher.example".encode(),
        ),
    )

    def hold(self, rng: Random, number: int) -> None:
        recipients = [self._recipient(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
        facts = {
            "reporting_mta": "mx.example.org",
            "report_id": "Q1",
            "to": self.octets(rng, 400),
            "recipients": recipients,
            "date": 1.8e9,
            "arrival": 1.8e9,
            "postmaster": rng.choice((b"", self.octets(rng, 400))),
            "envelope_id": rng.choice((b"", self.octets(rng, 100))),
            "original": rng.choice((b"", self.octets(rng, 8000))),
            "is_stuffed": rng.random() < 0.5,
            "is_full": rng.random() < 0.5,
            "sender": rng.choice((None, self.octets(rng, 400))),
            "is_utf8": rng.random() < 0.5,
        }
        wire = dsn.build_report(**facts)  # type: ignore[arg-type]  # as named above
        same(wire, dsn.build_report(**facts), "the same facts make two reports")  # type: ignore[arg-type]
        _ensure_text(wire, BodyType.EIGHT_BIT_MIME)
        ensure(not set(wire) & (set(range(32)) - set(b"\r\n\t")), "a control octet")
        lines = wire.split(b"\r\n")
        ensure(max(map(len, lines)) <= 998, f"a line of {max(map(len, lines))} octets")
        strange = [line for line in lines if not line.isascii() and not line.startswith(b"To: <")]
        ensure(not strange, f"a line with 8-bit octets: {strange[:1]!r}")
        message = email.message_from_bytes(unstuffed(wire))
        parts = message.get_payload()
        assert isinstance(parts, list), "a report without parts"
        ensure(len(parts) == (3 if _original(facts) else 2), f"a report of {len(parts)} parts")
        ensure("X-Forged" not in message, "a field was forged")

    def _recipient(self, rng: Random) -> dsn.RecipientStatus:
        said = text.printable(self.octets(rng, 4000))
        return dsn.RecipientStatus(
            self.octets(rng, 400),
            rng.choice(list(dsn.Action)),
            rng.choice(("", "5.1.1", "4.4.1")),
            rng.choice((b"", self.octets(rng, 500))),
            rng.choice(("", "mx.example.com", "192.0.2.1", text.printable(self.octets(rng, 300)))),
            said,
            rng.random() < 0.3,
            rng.choice((None, 1.8e9)),
            rng.choice((None, 1.8e9)),
        )


def _original(facts: dict[str, object]) -> bytes:
    original = facts["original"]
    assert isinstance(original, bytes)
    return unstuffed(original) if facts["is_stuffed"] else original
