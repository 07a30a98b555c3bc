"""`mailq`: the queue as Postfix's mailq prints it; `-j` as postqueue -j does."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mta.cli.client import Daemon, find
from mta.cli.output import CommandFailed, as_json, fail, neutral, say

HEADING = "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------"
_MARKS = {"active": "*", "hold": "!"}


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """The program. Answers its exit code."""
    parser = argparse.ArgumentParser(prog="mailq", description="List the mail queue.")
    parser.add_argument("-j", action="store_true", help="one JSON object a message")
    parser.add_argument("-v", action="count", help=argparse.SUPPRESS)
    parser.add_argument("--socket", help="the control socket of the MTA")
    parser.add_argument("--config", help="the configuration file of the MTA")
    try:
        given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        return os.EX_USAGE if end.code else os.EX_OK
    return run(given.j, given.socket, given.config, environ)


def run(json: bool, given: str | None, config: str | None, environ: Mapping[str, str]) -> int:
    try:
        daemon = Daemon.at(find("control", given=given, config=config, environ=environ))
        entries = daemon.items("queue-list")
        if json:
            for entry in entries:
                as_json(entry)
        else:
            listing(entries)
    except CommandFailed as error:
        return fail("mailq", error)
    except BrokenPipeError:
        _devour_output()
    return os.EX_OK


def listing(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print `entries` (as the daemon sends them) while they come."""
    count = octets = 0
    for entry in entries:
        if not count:
            say(HEADING)
        count += 1
        octets += entry["message_size"]
        for line in lines_of(entry):
            say(line)
        say("")
    if count:
        plural = "s" if count != 1 else ""
        say(f"-- {(octets + 1023) // 1024} Kbytes in {count} Request{plural}.")
    else:
        say("Mail queue is empty")


def lines_of(entry: Mapping[str, Any]) -> list[str]:
    """Queue id with its mark, size, arrival, sender; then each recipient behind its reason."""
    name = neutral(entry["queue_id"]) + _MARKS.get(entry["queue_name"], " ")
    arrival = _ctime(entry["arrival_time"])
    sender = neutral(entry["sender"]) or "MAILER-DAEMON"
    lines = [f"{name:<15} {entry['message_size']:>8} {arrival} {sender}"]
    reason = None
    for recipient in entry["recipients"]:
        why = neutral(recipient.get("delay_reason", ""))
        if why != reason and why:
            lines.append(f"({why})".rjust(80))
        reason = why
        lines.append(" " * 46 + neutral(recipient["address"]))
    return lines


def _ctime(wall: float) -> str:
    """`Mon Nov 23 08:00:00`, as time.asctime without the year: English whatever the locale."""
    return time.asctime(time.localtime(wall))[:19]


def _devour_output() -> None:
    """Whoever read us has enough; keep the interpreter from complaining at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    raise SystemExit(main())
