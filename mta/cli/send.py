"""`mta send`: submit one message, then say where it lies or what keeps it."""

from __future__ import annotations

import argparse
import os
import sys
from io import BytesIO
from typing import Any

from mta.cli import smtp
from mta.cli.client import Daemon, connect_unix, find
from mta.cli.message import Message, encoded
from mta.cli.output import CommandFailed, as_json, say, shown
from mta.cli.sendmail import addresses, who


def run(given: argparse.Namespace) -> int:
    """0 when it was delivered or is queued; the refusal's code when it was not taken."""
    body = given.body if given.body is not None else sys.stdin.read()
    recipients = [address for word in given.to for address in addresses(word)]
    if not recipients:
        raise CommandFailed(os.EX_USAGE, "--to names nobody")
    sender = None
    if given.sender is not None:
        sender = addresses(given.sender)[0] if given.sender not in {"", "<>"} else b""
    user, full_name = who(given.environ)
    order = smtp.Order(
        message=Message(BytesIO(text(given.to, given.sender, given.subject, body, given.priority))),
        sender=sender,
        user=user,
        full_name=full_name if sender is None else "",
        recipients=recipients,
    )
    place = find("submit", given=given.socket, config=given.config, environ=given.environ)
    receipt = smtp.hand_over(order, connect_unix(place), smtp.dial_tcp)
    for address, answer in receipt.refused:
        print(f"mta: <{shown(address)}> was refused: {answer.text}", file=sys.stderr)
    events = _outcome(given, receipt.queue_id)
    if given.json:
        as_json({"queue_id": receipt.queue_id, "reply": receipt.text, "events": events})
    else:
        for line in story(receipt, events):
            say(line)
    return receipt.exit_code


def text(
    to: list[str], sender: str | None, subject: str, body: str, priority: int | None = None
) -> bytes:
    """The message: what is missing here (Date, Message-ID, From) is added on the way."""
    head = b"To: " + _field(", ".join(to)) + b"\n"
    if sender:
        head += b"From: " + _field(sender) + b"\n"
    if priority is not None:  # a field whoever takes the message knows, or passes on (RFC 6758)
        head += b"MT-Priority: %d\n" % priority
    head += b"Subject: " + encoded(_one_line(subject)) + b"\n"
    head += b"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
    head += b"Content-Transfer-Encoding: " + (b"7bit" if body.isascii() else b"8bit") + b"\n"
    return head + b"\n" + body.encode("utf-8", "surrogateescape")


def _one_line(value: str) -> str:
    return " ".join(value.split("\n")).replace("\r", " ")


def _field(value: str) -> bytes:
    return _one_line(value).encode("utf-8", "surrogateescape")


def _outcome(given: argparse.Namespace, queue_id: str) -> list[dict[str, Any]]:
    """What happened to the message until each recipient was tried or the time was over. Empty when
    there is nobody to ask: the control socket may be closed to us, or the message went elsewhere.
    """
    if not queue_id or given.wait <= 0:
        return []
    try:
        place = find("control", given=given.socket, config=given.config, environ=given.environ)
        daemon = Daemon.at(place)
    except CommandFailed:
        return []
    try:
        events, _ = daemon.ask("trace", id=queue_id, wait=given.wait)
        return events
    except CommandFailed:
        return []
    finally:
        daemon.close()


def story(receipt: smtp.Receipt, events: list[dict[str, Any]]) -> list[str]:
    """What happened, one line a recipient; the last line answers "where is it now?"."""
    name = receipt.queue_id or "the message"
    lines = []
    for event in events:
        if event.get("event") != "transferred":
            continue
        to, by = shown(event["recipient"]), shown(event["connector"])
        reply = shown(event["reply"])
        if event["status"] == "sent":
            lines.append(f"sent: {name} to <{to}> by connector {by}: {reply}")
        elif event["status"] == "deferred":
            retry = event.get("retry_in_seconds")
            when = f"; tried again in {retry:.0f} s" if isinstance(retry, int | float) else ""
            lines.append(f"queued: {name} to <{to}> is deferred: {reply}{when}")
        else:
            lines.append(f"{shown(event['status'])}: {name} to <{to}>: {reply}")
    if not lines:
        lines.append(f"queued: {shown(receipt.text)}")
    return lines
