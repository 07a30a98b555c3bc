"""`sendmail`: what programs call to send mail (Postfix's sendmail(1) is the precedent).

Law: exit 0 only after the MTA has taken the message durably. 75 when it cannot be reached or says
later, and then nothing was sent; 64, 65, 67, 68, 69, 77 as sysexits.h means them.
"""

from __future__ import annotations

import getopt
import os
import pwd
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from mta.cli import mailq, smtp
from mta.cli.addresses import mailboxes
from mta.cli.client import Place, connect_unix, find
from mta.cli.message import read
from mta.cli.output import CommandFailed, fail, neutral

OPTIONS = "A:B:C:F:GL:N:O:R:UV:X:b:cd:e:f:h:imno:p:r:stv"
"""getopt's letters; `q` is taken out before, for its value is optional and never separate."""
_RETURNS = {"full": "FULL", "hdrs": "HDRS"}
_NOTIFICATIONS = frozenset(("SUCCESS", "FAILURE", "DELAY"))


@dataclass(slots=True)
class Call:
    """What the options said."""

    mode: str = "m"
    take_recipients: bool = False
    dot_ends: bool = True
    sender: bytes | None = None
    full_name: str = ""
    notify: str = ""
    ret: str = ""
    envelope_id: str = ""
    flush: bool = False
    recipients: list[bytes] = field(default_factory=list)


def main(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    stdin: IO[bytes] | None = None,
) -> int:
    """The program. Answers its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        call = parse(given)
        if call.mode == "p":
            return mailq.run(False, None, None, environ)
        if call.mode in "iIdDl" or (call.flush and not call.recipients and call.mode == "m"):
            return os.EX_OK  # aliases and queue runs are the daemon's own affair
        place = find("submit", environ=environ)
        if call.mode == "s":
            connected = _connect(place)
            connected.settimeout(None)
            smtp.pump(connected, 0, 1)
            return os.EX_OK
        return send(call, place, stdin or sys.stdin.buffer, environ)
    except CommandFailed as error:
        return fail("sendmail", error)
    except (OSError, EOFError) as error:
        return fail("sendmail", CommandFailed(os.EX_IOERR, str(error)))


def parse(arguments: Sequence[str]) -> Call:
    """@raise CommandFailed: 64, an option that we do not know or that makes no sense."""
    call = Call()
    kept = list(arguments)
    try:
        end = kept.index("--")
    except ValueError:
        end = len(kept)
    for word in kept[:end]:
        if word.startswith("-q"):
            call.flush = True
    kept = [word for i, word in enumerate(kept) if i >= end or not word.startswith("-q")]
    try:
        options, operands = getopt.gnu_getopt(kept, OPTIONS)
    except getopt.GetoptError as error:
        raise CommandFailed(os.EX_USAGE, str(error)) from None
    for option, value in options:
        _take(call, option, value)
    for operand in operands:
        call.recipients += addresses(operand)
    if call.mode not in "mpsiIdDl":
        raise CommandFailed(os.EX_USAGE, f"-b{neutral(call.mode)} is not supported")
    return call


def _take(call: Call, option: str, value: str) -> None:
    match option:
        case "-t":
            call.take_recipients = True
        case "-i":
            call.dot_ends = False
        case "-o" if value == "i":
            call.dot_ends = False
        case "-f" | "-r":
            call.sender = _sender(value)
        case "-F":
            call.full_name = neutral(value)
        case "-b":
            call.mode = value[:1]
        case "-s":
            call.mode = "s"
        case "-N":
            call.notify = _notify(value)
        case "-R":
            ret = _RETURNS.get(value.lower())
            if ret is None:
                raise CommandFailed(os.EX_USAGE, f"-R {neutral(value)}: write full or hdrs")
            call.ret = ret
        case "-V":
            call.envelope_id = value
        case _:
            pass  # -B -o? -O -h -p -v ...: nothing of them is ours to decide, as with Postfix


def _notify(value: str) -> str:
    words = [word.strip().upper() for word in value.split(",")]
    if words != ["NEVER"] and not (words and _NOTIFICATIONS.issuperset(words)):
        raise CommandFailed(
            os.EX_USAGE, f"-N {neutral(value)}: write never, or some of success, failure, delay"
        )
    return ",".join(dict.fromkeys(words))


def _sender(value: str) -> bytes:
    """b"" is the null sender, written as an empty argument or <>."""
    if value.strip() in {"", "<>"}:
        return b""
    found = addresses(value)
    if len(found) != 1:
        raise CommandFailed(os.EX_USAGE, f"-f {neutral(value)}: one address")
    return found[0]


def addresses(text: str) -> list[bytes]:
    """Those of a command line's word, which unlike a header field has no folded lines.

    @raise CommandFailed: 64.
    """
    if any(character < " " or character == "\x7f" for character in text):
        raise CommandFailed(os.EX_USAGE, f"{neutral(text)!r} holds a control character")
    try:
        return mailboxes(os.fsencode(text))
    except ValueError as error:
        raise CommandFailed(os.EX_USAGE, str(error)) from None


def send(call: Call, place: Place, stdin: IO[bytes], environ: Mapping[str, str]) -> int:
    """Read the message, hand it over. Refused recipients are told on standard error."""
    if not call.recipients and not call.take_recipients:
        raise CommandFailed(os.EX_USAGE, "no recipients: name them, or say -t")
    message = read(stdin, dot_ends=call.dot_ends)
    recipients = list(call.recipients)
    if call.take_recipients:
        recipients += message.recipients()
    if not recipients:
        raise CommandFailed(os.EX_DATAERR, "the message names no recipients in To, Cc or Bcc")
    user, full_name = who(environ)
    order = smtp.Order(
        message=message,
        sender=call.sender,
        user=user,
        full_name=call.full_name or (full_name if call.sender is None else ""),
        recipients=recipients,
        notify=call.notify,
        ret=call.ret,
        envelope_id=call.envelope_id,
    )
    receipt = smtp.hand_over(order, _connect(place), smtp.dial_tcp)
    for address, answer in receipt.refused:
        print(f"sendmail: <{neutral(address)}> was refused: {answer.text}", file=sys.stderr)
    return receipt.exit_code


def _connect(place: Place) -> socket.socket:
    """A daemon that is away is for later: whoever calls sendmail tries again after 75."""
    try:
        return connect_unix(place)
    except CommandFailed as error:
        raise CommandFailed(os.EX_TEMPFAIL, str(error)) from None


def who(environ: Mapping[str, str]) -> tuple[str, str]:
    """The user's login name and full name, by the uid: $LOGNAME can be anything."""
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return f"uid{uid}", ""
    full_name = entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())
    return entry.pw_name, environ.get("NAME") or full_name


if __name__ == "__main__":
    raise SystemExit(main())
