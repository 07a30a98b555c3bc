"""Dialogues for the fuzzer: what peers said in transcripts, with some of it changed.

Law: a dialogue is a function of the random numbers it is given, and never longer than `LONGEST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mta.model import Address, Envelope, Notify, Recipient, Requires
from mta.testing.fuzz.octets import changed
from mta.testing.transcript import lines_of_far_end, parse

Lines = list[bytes]
LONGEST = 64 * 1024
"""Octets of one side of a conversation."""

_SPICES = (
    b"\r",
    b"\n",
    b"\0",
    b".",
    b"\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\xff\xfe",
    b"\x1b[2J",
    b" ",
    b"<",
    b">",
    b"x" * 600,
    b"y" * 3000,
    b"QUIT\r\n",
    b"RSET\r\n",
    b"DATA\r\n",
    b"BDAT 0\r\n",
    b"BDAT 7 LAST\r\n",
    b"BDAT 30\r\n",
    b"MAIL FROM:<a@x.org>\r\n",
    b"RCPT TO:<b@x.org>\r\n",
    b"EHLO x\r\n",
    b"NOOP " + b"n" * 2040 + b"\r\n",
    b"250 Ok\r\n",
    b"250-",
    b"354 Go on\r\n",
    b"421 4.3.2 Bye\r\n",
    b"452 4.5.3 Too many\r\n",
    b"550 5.1.1 No\r\n",
    b"250-PIPELINING\r\n",
    b"250-CHUNKING\r\n",
)


@dataclass(slots=True)
class Corpus:
    """What peers said in the transcripts: dialogues of clients, and of servers."""

    clients: list[Lines] = field(default_factory=list)
    servers: list[Lines] = field(default_factory=list)

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Corpus:
        corpus = cls()
        for folder in folders:
            for path in sorted(folder.glob("*.txt")):
                transcript = parse(path.read_text(encoding="utf-8"))
                lines = lines_of_far_end(transcript)
                if lines:
                    (corpus.clients if transcript.is_responder else corpus.servers).append(lines)
        return corpus


def mutated(rng: Random, dialogues: Sequence[Lines]) -> bytes:
    """One dialogue, or two in one, with some lines and octets changed."""
    lines = list(rng.choice(dialogues))
    if rng.random() < 0.3:
        at = rng.randrange(len(lines) + 1)
        lines[at:at] = rng.choice(dialogues)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines.insert(at, rng.choice(_SPICES))
            case 3:
                lines[at] = changed(rng, lines[at], _SPICES)
            case 4:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 5:
                lines[at] = lines[at].replace(b"\r\n", rng.choice((b"\n", b"\r", b"", b"\r\r\n")))
            case _:
                lines[at : at + 1] = [lines[at]] * rng.choice((2, 3, 30))
        if not lines:
            lines = [rng.choice(_SPICES)]
    return b"".join(lines)[:LONGEST]


def wishes(rng: Random, sender: Address, recipients: Sequence[Address]) -> Envelope:
    """An envelope whose sender asks something of reports, or gives a time, now and then."""
    return Envelope(
        sender,
        tuple(
            Recipient(
                address,
                rng.choice((Notify.UNSET, Notify.NEVER, Notify.SUCCESS | Notify.DELAY)),
                rng.choice((b"", b"rfc822;a+2Bb@example.org")),
            )
            for address in recipients
        ),
        envelope_id=rng.choice((b"", b"QQ+3D1")),
        ret_full=rng.choice((None, True, False)),
        requires=rng.choice((Requires.NOTHING, Requires.IN_TIME, Requires.TRACE)),
        deliver_by=rng.choice((None, None, 0.0)),
    )
