"""`mta`: the operator's command.

Law: it starts in a few hundredths of a second, so it imports the standard library and its own room
only; what needs the MTA's code (a configuration, a spool, plugins) runs in a child process. Exit
codes are those of sysexits.h, and each error is one line on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from mta.cli import queue
from mta.cli.client import Daemon, find
from mta.cli.output import CommandFailed, as_json, fail, say, shown, table
from mta.cli.status import show as show_status
from mta.cli.tls_report import tls_report


class _Parser(argparse.ArgumentParser):
    """argparse, with sysexits' code for a wrong call."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(os.EX_USAGE)


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """The program. Answers its exit code."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        given = _parser().parse_args(
            words, argparse.Namespace(socket=None, config=None, json=False)
        )
    except SystemExit as end:
        return int(end.code or 0)
    given.environ = environ
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    except AttributeError:
        pass  # a test's output takes every character
    try:
        return int(given.run(given))
    except CommandFailed as error:
        return fail("mta", error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return os.EX_OK
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    # SUPPRESS: given before the command they must survive the defaults of the one behind it.
    common.add_argument("--socket", default=argparse.SUPPRESS, help="the MTA's control socket")
    common.add_argument("--config", default=argparse.SUPPRESS, help="the MTA's configuration file")
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable output"
    )
    parser = _Parser(prog="mta", parents=[common], description="Operate the MTA of this machine.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    add("status", _asking(_status), "owner or standby, and why; queue, connectors, listeners")
    _nested(commands, common, "queue", "look at the queue and act on it", queue.add_parsers)
    _nested(commands, common, "route", "where mail goes", _add_route)
    _nested(commands, common, "cluster", "this node's part in the cluster", _add_cluster)
    plugins = add("plugins", _plugins, "the plugins installed here, and the broken ones with why")
    plugins.add_argument("name", nargs="?", metavar="NAME", help="one plugin with its keys")
    check = add("check-config", _check_config, "every mistake in a configuration; exit 0 or 78")
    check.add_argument("file", metavar="FILE")
    password = add("password", _password, "a line for the file that `auth:` names; asks for it")
    password.add_argument("--user", required=True, metavar="NAME")
    password.add_argument(
        "--scram", action="store_true", help="with a verifier, so that SCRAM-SHA-256 is offered"
    )
    spool = add("spool", _spool, "a spool directory, without a running MTA")
    spool.add_argument("action", choices=["init", "check", "recover"])
    spool.add_argument("directory", metavar="DIR")
    probe = add(
        "probe",
        _asking(_probe),
        "is the virtual server served here? exit 0: yes; 75: this node is not the owner, or is "
        "only on its way there; 69: it should be and is not, or no MTA answers",
    )
    probe.add_argument(
        "--level",
        type=int,
        choices=[0, 1, 2, 10, 20],
        default=1,
        help="0: looks alive; 1: addresses bound, lease asked; 10: and our listeners greet a "
        "connection to the virtual addresses; 20 (or 2): and the spool takes a file and holds "
        "our epoch as its newest",
    )
    probe.add_argument(
        "--standby",
        action="store_true",
        help="exit 0 also on a standby node that could take over, 69 on one that could not",
    )
    report = add(
        "tls-report",
        _asking(tls_report),
        "what came of TLS with the servers of each domain, as it would be reported (RFC 8460)",
    )
    report.add_argument("domain", nargs="?", default="", metavar="DOMAIN")
    report.add_argument("--day", default="", metavar="DATE", help="2026-11-24, UTC; default: today")
    send = add("send", _send, "submit one message and say what became of it")
    send.add_argument("--to", action="append", required=True, metavar="ADDRESS")
    send.add_argument("--from", dest="sender", metavar="ADDRESS", help="default: you")
    send.add_argument("--subject", default="")
    send.add_argument("--body", help="the text; default: standard input")
    send.add_argument(
        "--priority", type=int, choices=range(-9, 10), metavar="N", help="-9 to 9 (RFC 6710)"
    )
    send.add_argument(
        "--wait", type=int, default=5, metavar="SECONDS", help="for the outcome; 60 at most"
    )
    return parser


def _nested(
    commands: Any, common: Any, name: str, text: str, fill: Callable[[Callable[..., Any]], None]
) -> None:
    group = commands.add_parser(name, parents=[common], help=text, description=text)
    verbs = group.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    def add(verb: str, run: Callable[[argparse.Namespace, Daemon], int], help: str) -> Any:
        made = verbs.add_parser(verb, parents=[common], help=help, description=help)
        made.set_defaults(run=_asking(run))
        return made

    fill(add)


def _asking(
    run: Callable[[argparse.Namespace, Daemon], int],
) -> Callable[[argparse.Namespace], int]:
    """A command that asks the daemon."""

    def asked(given: argparse.Namespace) -> int:
        place = find("control", given=given.socket, config=given.config, environ=given.environ)
        daemon = Daemon.at(place)
        try:
            return run(given, daemon)
        finally:
            daemon.close()

    return asked


def _status(given: argparse.Namespace, daemon: Daemon) -> int:
    _, status = daemon.ask("status")
    if given.json:
        as_json(status)
    else:
        try:
            show_status(status)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise CommandFailed(
                os.EX_PROTOCOL,
                "the MTA that runs is of another version than this command; see --json",
            ) from None
    return os.EX_OK


def _add_route(add: Callable[..., argparse.ArgumentParser]) -> None:
    explain = add("explain", _route, "every connector looked at for an address, and why it lost")
    explain.add_argument("address", metavar="ADDRESS")


def _route(given: argparse.Namespace, daemon: Daemon) -> int:
    candidates, found = daemon.ask("route-explain", address=given.address)
    if given.json:
        as_json({**found, "candidates": candidates})
        return os.EX_OK if found["routable"] else os.EX_NOHOST
    if candidates:
        table(
            ("CONNECTOR", "PATTERN", "COST", "UP", "VERDICT"),
            ([c["connector"], c["pattern"], c["cost"], c["up"], c["verdict"]] for c in candidates),
        )
    address = shown(found["address"])
    if not found["routable"]:
        say(f"{address}: no route ({shown(found['reply'])}): {shown(found['why'])}")
        return os.EX_NOHOST
    hops = found["bridgeheads"] or ([f"MX of {found['mx_domain']}"] if found["mx_domain"] else [])
    by = f" to {shown(hops)}" if hops else ""
    say(f"{address}: {shown(found['connector'])}{by}: {shown(found['why'])}")
    for terms in found["terms"]:
        say(shown(terms))
    if found["alternatives"]:
        say(f"then, when no bridgehead answers: {shown(found['alternatives'])}")
    return os.EX_OK


def _add_cluster(add: Callable[..., argparse.ArgumentParser]) -> None:
    add(
        "accept-clock",
        _accept_clock,
        "a takeover found the clock suspect (see mta status): it is right, let mail expire again",
    )


def _accept_clock(given: argparse.Namespace, daemon: Daemon) -> int:
    _, answer = daemon.ask("cluster-accept-clock")
    if given.json:
        as_json(answer)
    else:
        say("the clock is accepted" if answer["changed"] else "the clock was not suspect")
    return os.EX_OK


def _probe(given: argparse.Namespace, daemon: Daemon) -> int:
    _, health = daemon.ask("probe", level=given.level, standby=given.standby or None)
    if given.json:
        as_json(health)
    else:
        say(f"{shown(health['health'])}: {shown(health['text'])}")
    return int(health["exit_code"])


def _plugins(given: argparse.Namespace) -> int:
    import json

    words = [given.name] if given.name else []
    code, text = _child_output("mta.config.inventory", *words)
    if code:
        return code
    facts = [json.loads(line) for line in text.splitlines()]
    if given.json:
        for fact in facts:
            as_json(fact)
        return os.EX_OK
    sound = [fact for fact in facts if "reason" not in fact]
    columns = ("kind", "name", "distribution", "version", "module")
    table([c.upper() for c in columns], ([fact[c] for c in columns] for fact in sound))
    for fact in sound:
        if fact.get("keys"):
            say(f"\n{shown(fact['kind'])} {shown(fact['name'])}:")
            for key in fact["keys"]:
                say(f"  {shown(key['key'])}: {shown(key['default'])}")
                say(f"      {shown(key['help'])}")
    for fact in facts:
        if "reason" in fact:
            name = f" ({shown(fact['name'])})" if fact["name"] else ""
            say(f"broken: {shown(fact['module'])}{name}: {shown(fact['reason'])}")
    return os.EX_OK


def _check_config(given: argparse.Namespace) -> int:
    return _child("mta.config", given.file)


def _password(given: argparse.Namespace) -> int:
    return _child("mta.auth.new_line", f"--user={given.user}", *["--scram"] * given.scram)


def _spool(given: argparse.Namespace) -> int:
    return _child("mta.spool.offline", given.action, given.directory)


def _child(module: str, *arguments: str) -> int:
    """Run a module of the MTA with our own input and output; its exit code."""
    import subprocess

    done = subprocess.run(_call(module, arguments), check=False, env=_child_environment())
    return done.returncode


def _child_output(module: str, *arguments: str) -> tuple[int, str]:
    import subprocess

    done = subprocess.run(
        _call(module, arguments), check=False, env=_child_environment(), stdout=subprocess.PIPE
    )
    return done.returncode, done.stdout.decode("utf-8", "backslashreplace")


def _call(module: str, arguments: Sequence[str]) -> list[str]:
    """-P: nothing is imported from the directory in which an operator happens to stand."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _child_environment() -> dict[str, str]:
    """A child of a checkout that is not installed has to be told where its parent came from."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(root) in {"site-packages", "dist-packages"}:
        return dict(os.environ)
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def _send(given: argparse.Namespace) -> int:
    from mta.cli import send

    return send.run(given)


if __name__ == "__main__":
    raise SystemExit(main())
