"""`mta queue list|show|hold|release|retry|delete|in-doubt`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mta.cli.client import MOST_IDS, Daemon
from mta.cli.output import CommandFailed, as_json, moment, say, shown, table, tree

ACTS = {
    "hold": "keep messages from being sent until they are released",
    "release": "let held messages go",
    "retry": "try again now, whatever the back-off",
    "delete": "destroy messages; nobody is told",
}


def add_parsers(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add(name, run, help)` makes the parser of one subcommand of `mta queue`."""
    listing = add("list", run_list, "one line a message")
    _selectors(listing)
    listing.add_argument("--limit", type=int, default=0, metavar="N", help="at most N messages")
    show = add("show", run_show, "one message in full")
    show.add_argument("id", metavar="ID")
    show.add_argument("--headers", action="store_true", help="and its header lines")
    for act, text in ACTS.items():
        parser = add(act, run_act, text)
        _selectors(parser)
        parser.add_argument("--all", action="store_true", help="every message of the queue")
        parser.set_defaults(act=act)
    add("in-doubt", run_in_doubt, "messages whose acknowledgement was lost")


def _selectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="queue ids; - reads them from stdin")
    parser.add_argument("--sender", metavar="ADDRESS", help="from it; <> is the null sender")
    parser.add_argument("--recipient", metavar="ADDRESS", help="with this recipient")
    parser.add_argument("--domain", metavar="DOMAIN", help="with a recipient there; *.x for below")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--held", action="store_const", const=True, help="only held messages")
    held.add_argument("--not-held", dest="held", action="store_const", const=False)


def _chosen(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The selectors as arguments of one or more commands: ids go in bounded portions."""
    filters = {
        key: getattr(given, key)
        for key in ("sender", "recipient", "domain", "held")
        if getattr(given, key) is not None
    }
    ids: list[str] = []
    for word in given.ids:
        ids += sys.stdin.read().split() if word == "-" else [word]
    if given.ids and not ids:
        raise CommandFailed(os.EX_NOINPUT, "standard input named no queue ids")
    if not ids:
        yield filters
    for start in range(0, len(ids), MOST_IDS):
        yield {**filters, "ids": ids[start : start + MOST_IDS]}


def run_list(given: argparse.Namespace, daemon: Daemon) -> int:
    count = octets = 0
    for arguments in _chosen(given):
        for entry in daemon.items("queue-list", limit=given.limit or None, **arguments):
            if given.json:
                as_json(entry)
                continue
            if not count:
                say(_LINE.format("QUEUE ID", "STATE", "SIZE", "ARRIVED", "NEXT", "SENDER -> TO"))
            count += 1
            octets += entry["message_size"]
            _print_entry(entry)
    if not given.json:
        plural = "s" if count != 1 else ""
        say(f"{count} message{plural}, {octets} octets" if count else "no messages")
    return os.EX_OK


_LINE = "{:<15} {:<8} {:>9} {:<19} {:<19} {}"


def _print_entry(entry: dict[str, Any]) -> None:
    recipients = [shown(r["address"]) for r in entry["recipients"]]
    to = recipients[0] if recipients else "-"
    if len(recipients) > 1:
        to += f" and {len(recipients) - 1} more"
    sender = shown(entry["sender"] or "<>")
    say(
        _LINE.format(
            shown(entry["queue_id"]),
            shown(entry["queue_name"]),
            entry["message_size"],
            moment(entry["arrival_time"]),
            moment(entry["next_attempt"]),
            f"{sender} -> {to}",
        )
    )
    for why in dict.fromkeys(r.get("delay_reason") for r in entry["recipients"]):
        if why:
            say(f"{'':15} ({shown(why)})")


def run_show(given: argparse.Namespace, daemon: Daemon) -> int:
    _, entry = daemon.ask("queue-show", id=given.id, headers=given.headers or None)
    if given.json:
        as_json(entry)
        return os.EX_OK
    headers, recipients = entry.pop("headers", []), entry.pop("recipients", [])
    doubts = entry.pop("in_doubt", [])
    for hidden in ("arrival_time", "next_attempt", "forced_expire"):
        entry.pop(hidden, None)
    entry["sender"] = entry["sender"] or "<>"
    tree(entry)
    for doubt in doubts:
        say(
            f"in doubt ({shown(doubt['side'])}): by {shown(doubt['slot'])} of epoch"
            f" {shown(doubt['epoch'])}, peer {shown(_whom(doubt))}; {shown(doubt['then'])}"
        )
    say("recipients:")
    for recipient in recipients:
        reason = recipient.get("delay_reason")
        remote = recipient.get("remote")
        at = f" by {shown(remote)}" if remote and remote != "none" else ""
        say(f"  {shown(recipient['address'])}: {shown(recipient['status'])}{at}")
        if reason:
            say(f"    {shown(reason)}")
    if headers:
        say("headers:")
        for line in headers:
            say(f"  {shown(line)}")
    return os.EX_OK


def run_act(given: argparse.Namespace, daemon: Daemon) -> int:
    count, missing = 0, []
    for arguments in _chosen(given):
        for item in daemon.items(f"queue-{given.act}", all=given.all or None, **arguments):
            if given.json:
                as_json(item)
        count += daemon.done["messages"]
        missing += daemon.done["not_queued"]
    if given.json:
        as_json({"act": given.act, "messages": count, "not_queued": missing})
    else:
        say(f"{given.act}: {count} message{'s' if count != 1 else ''}")
    for queue_id in missing:
        print(f"mta: {shown(queue_id)} is not queued", file=sys.stderr)
    return os.EX_NOINPUT if missing else os.EX_OK


def run_in_doubt(given: argparse.Namespace, daemon: Daemon) -> int:
    doubts, _ = daemon.ask("queue-in-doubt")
    if given.json:
        for doubt in doubts:
            as_json(doubt)
    elif doubts:
        columns = ("side", "queue_id", "slot", "peer", "epoch", "recipients", "then")
        table(
            [name.replace("_", " ").upper() for name in columns],
            ([{**doubt, "peer": _whom(doubt)}.get(name) for name in columns] for doubt in doubts),
        )
    else:
        say("nothing is in doubt")
    return os.EX_OK


def _whom(doubt: dict[str, Any]) -> str:
    """Where it came from or went to, and by whom, if somebody stands between."""
    via = doubt.get("via")
    return f"{doubt['peer']} via {via}" if via else str(doubt["peer"])
