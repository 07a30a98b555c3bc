"""Replies as octets: rendering ours, reading a peer's.

Law: whatever a peer sends, reading ends in a `Reply` of bounded size or in a RemoteProtocolError;
no text of a peer leaves this module with a control octet in it.

RFC 5321 4.2 (replies), 4.5.3.1.5 (512 octets a line), RFC 2034 and RFC 3463 (enhanced codes).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mta.errors import RemoteProtocolError
from mta.model import Reply
from mta.wire.text import neutralise

LINE_LIMIT = 4096
"""Octets of one reply line. RFC 5321 says 512; real peers put URLs and whole policies into it."""
LINES_LIMIT = 256
"""Lines of one reply. An EHLO reply has about 20; a peer that needs more means no good."""
REPLY_LIMIT = 32768
"""Octets of one whole reply."""
_TEXT_LINE = 900
"""Octets of text that we put into one line: with the codes well under 998."""
_KNOWN = 32
"""Replies remembered by their octets: "250 2.1.0 Ok" comes with every message."""
_ENHANCED = re.compile(rb"(\d\.\d{1,3}\.\d{1,3})(?: |\Z)")
"""RFC 3463 section 2: the class has one digit."""
_KNOWN_OCTETS = 1024
"""Of replies that came together and are remembered together: MAIL's, RCPT's and DATA's."""


def render(reply: Reply) -> bytes:
    """The wire form. Over-long texts are cut; CR and LF cannot occur (model.Reply)."""
    head = b"%d" % reply.code
    enhanced = reply.enhanced.encode() + b" " if reply.enhanced else b""
    lines = reply.lines or (b"",)
    if len(lines) == 1:
        return b"%b %b%b\r\n" % (head, enhanced, lines[0][:_TEXT_LINE])
    pieces = [b"%b-%b%b\r\n" % (head, enhanced, line[:_TEXT_LINE]) for line in lines[:-1]]
    pieces.append(b"%b %b%b\r\n" % (head, enhanced, lines[-1][:_TEXT_LINE]))
    return b"".join(pieces)


def make_reply(code: int, enhanced: str, text: bytes | str) -> Reply:
    """A reply of our own with foreign words in it: they are neutralised and cut."""
    raw = text.encode() if isinstance(text, str) else text
    return Reply(code, enhanced, (neutralise(raw, _TEXT_LINE),))


class Replies(NamedTuple):
    """Replies that came together."""

    replies: tuple[Reply, ...]
    invites: bool
    """Each is 2yz but the last, which is 3yz: so a peer answers a transaction that it takes."""


class ReplyReader:
    """Reads replies out of a stream, whatever its pieces are.

    `receive` takes octets, `next_reply` answers one whole reply at a time, so that whoever reads
    can act on a reply before the next is looked at. A bare LF ends a line here: being generous
    with a peer's replies cannot smuggle anything, since we asked the questions.
    """

    def __init__(self) -> None:
        self.line_limit = LINE_LIMIT
        """Octets of one line; a challenge of AUTH may have more."""
        self._buffer = b""
        self._at = 0
        self._last_line = b""
        self._lines: list[bytes] = []
        self._code = b""
        self._octets = 0
        self._known: dict[bytes, Reply] = {}
        self._groups: dict[bytes, Replies] = {}
        self._group: list[Reply] | None = None
        """The known replies of what was received last, as long as it holds nothing else."""

    def recall(self, data: bytes) -> Replies | None:
        """All replies in `data` when octets like these came before, which need no reading then;
        None: they are to be received.
        """
        return None if self._lines or self._at < len(self._buffer) else self._groups.get(data)

    def receive(self, data: bytes) -> None:
        self._group = None if self._lines or self._at < len(self._buffer) else []
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    @property
    def is_clean(self) -> bool:
        """Nothing is left over: no part of a reply, and none that nobody asked for."""
        return self._at >= len(self._buffer) and not self._lines

    @property
    def last_text(self) -> bytes:
        """The last line of the last reply as it came, behind its code: not neutralised."""
        return self._last_line.rstrip(b"\r")[4:]

    def next_reply(self) -> Reply | None:
        """The next whole reply; None when more octets are needed.

        @raise RemoteProtocolError: what came is no reply. The association cannot go on.
        """
        while True:
            end = self._buffer.find(b"\n", self._at)
            if end < 0:
                if len(self._buffer) - self._at > self.line_limit + 1:  # its CR may be here
                    raise RemoteProtocolError("the peer's reply has an over-long line")
                is_whole = self._at == len(self._buffer) <= _KNOWN_OCTETS
                if is_whole and self._group and len(self._groups) < _KNOWN:
                    self._groups[self._buffer] = _together(self._group)
                return None
            line = self._buffer[self._at : end]
            self._at = end + 1
            self._last_line = line
            if not self._lines:
                known = self._known.get(line)
                if known is not None:
                    if self._group is not None:
                        self._group.append(known)
                    return known
            self._group = None
            reply = self._line(line)
            if reply is not None:
                return reply

    def _line(self, raw: bytes) -> Reply | None:
        line = raw.rstrip(b"\r")
        if len(line) > self.line_limit:
            raise RemoteProtocolError("the peer's reply has an over-long line")
        code, mark = line[:3], line[3:4]
        if not (len(code) == 3 and code.isdigit() and b"200" <= code < b"600") or (
            mark not in (b" ", b"-", b"")
        ):
            raise RemoteProtocolError(
                "the peer sent something that is no reply", neutralise(line, 100).decode()
            )
        self._octets += len(line)
        if self._lines and code != self._code:
            raise RemoteProtocolError(
                "the peer's reply changes its code from line to line",
                f"{self._code.decode()} and {code.decode()}",
            )
        if len(self._lines) >= LINES_LIMIT or self._octets > REPLY_LIMIT:
            raise RemoteProtocolError("the peer's reply does not end")
        self._code = code
        self._lines.append(line[4:])
        if mark == b"-":
            return None
        reply = parse_lines(int(code), self._lines)
        if len(self._lines) == 1 and len(raw) <= 80 and len(self._known) < _KNOWN:
            self._known[raw] = reply
        self._lines = []
        self._octets = 0
        return reply


def _together(replies: list[Reply]) -> Replies:
    *others, last = [reply.code // 100 for reply in replies]
    return Replies(tuple(replies), last == 3 and others.count(2) == len(others))


def parse_lines(code: int, lines: list[bytes]) -> Reply:
    """Split the enhanced code off (each line may repeat it) and neutralise the text."""
    enhanced, text = _split_enhanced(code, lines[0])
    texts = [neutralise(text)]
    for line in lines[1:]:
        own, text = _split_enhanced(code, line)
        texts.append(neutralise(text if own == enhanced else line))
    return Reply(code, enhanced, tuple(texts))


def _split_enhanced(code: int, line: bytes) -> tuple[str, bytes]:
    found = _ENHANCED.match(line)
    if found is None or line[0] != 48 + code // 100:
        return "", line
    return found[1].decode(), line[found.end() :]
