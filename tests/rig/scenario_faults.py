"""A next hop that refuses, hangs up or says 421 at each command in turn: what becomes of each recipient.

The next hops are Debian's smtp-sink with its fault options, one for each pair of a fault and a
command; later they are well again.
"""

from __future__ import annotations

import re
from collections import Counter

from tests.rig.ground import PEER, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink

FAULTS = {"hard": "-f", "soft": "-r", "drop": "-q", "closing": "-Q"}
"""5yz, 4yz, the connection ends without a word, 421 and the end."""
COMMANDS = ("connect", "ehlo", "mail", "rcpt", "data", ".")
RETURNED = {("hard", command) for command in ("mail", "rcpt", "data", ".")}
"""A server that refuses the message itself; one that does not greet may do so later."""
UNKNOWN = {("drop", ".")}
"""Whether it was taken cannot be known: it goes again (RFC 1047), and may be there twice."""
REFUSED = {(fault, ".") for fault in FAULTS if fault != "drop"}
WELL = (("well", ""),)
USERS = ("one", "two")


def scenario_every_fault(rig: Rig) -> None:
    """Each recipient has one copy once his server is well, or his sender one report; two copies only
    where a server was silent upon the final dot.
    """
    cases = [(fault, command) for fault in FAULTS for command in COMMANDS]
    reports = Sink(rig, port=2999, name="reports").start()
    faulty = [
        sink(rig, i, case, "faulty").start(FAULTS[case[0]], case[1]) for i, case in enumerate(cases)
    ]
    rig.online(
        connectors="".join(connector(i) for i in range(len(cases))) + REPORTS,
        queue="lifetime: 1h\nbackoff: [1s]\ndestination-retry: 1s",
    )
    client = Client(rig)
    client.hello()
    for i in range(len(cases)):
        to = [f"{user}@{domain(i)}" for user in USERS]
        answer = client.send(f"m{i}", sender=f"s{i}@example.net", recipients=to)
        expect(answer.startswith(b"250"), f"we say {answer!r}")
    for i, case in enumerate(cases):
        rig.wait_log_like(rf"to=<two@{domain(i)}>.* status=\w+", f"{case} has no outcome")
    for one in faulty:
        one.stop()
    well = [sink(rig, i, case, "well").start() for i, case in enumerate(cases)]
    wait_until(
        lambda: "@d" not in rig.command("queue", "list").stdout, 60, "the queue is not empty"
    )
    copies: Counter[str] = Counter()
    for one, case in zip((*faulty, *well), (*cases, *WELL * len(cases)), strict=True):
        # What was refused at the dot lies there too; nobody was told that it was taken.
        for message in one.messages() if case not in REFUSED else ():
            copies.update(address.strip("<>") for address in message.recipients)
    told = Counter(r.strip("<>") for report in reports.messages() for r in report.recipients)
    twice = 0
    for i, case in enumerate(cases):
        found = [copies[f"{user}@{domain(i)}"] for user in USERS]
        if case in RETURNED:
            expect(found == [0, 0], f"{case}: returned, and there are {found} copies")
            expect(told[f"s{i}@example.net"] == 1, f"{case}: {told[f's{i}@example.net']} reports")
            continue
        expect(told[f"s{i}@example.net"] == 0, f"{case}: its sender was told that it failed")
        most = 2 if case in UNKNOWN else 1
        expect(all(1 <= n <= most for n in found), f"{case}: {found} copies")
        twice += sum(n - 1 for n in found)
    rig.note(
        f"{len(cases)} faults, {len(USERS) * len(cases)} recipients: {len(RETURNED)} messages returned"
        f" with one report each, the others delivered, {twice} twice (no reply to the dot)"
    )


def domain(number: int) -> str:
    return f"d{number}.example.com"


def sink(rig: Rig, number: int, case: tuple[str, str], state: str) -> Sink:
    name = re.sub(r"\W", "dot", f"{case[0]}-{case[1]}".replace("-", "_"))
    return Sink(rig, port=3000 + number, name=f"{state}_{name}")


def connector(number: int) -> str:
    return f"""
- name: c{number}
  kind: smtp
  bridgeheads: ["{PEER}:{3000 + number}"]
  address-spaces: [{{domain: {domain(number)}}}]
"""


REPORTS = f"""
- name: reports
  kind: smtp
  bridgeheads: ["{PEER}:2999"]
  address-spaces: [{{domain: "*"}}]
"""
