"""Mail that has a time (RFC 2852): two of ours one behind the other, and smtp-sink, which lacks it.

The first is the one under test; the second, in the peer's namespace, has mailboxes for one domain,
an end that does not answer for another, and gives all reports to smtp-sink.
"""

from __future__ import annotations

import os
import time

from tests.rig.behind import NAME
from tests.rig.ground import PEER, PEER6, expect, wait_until
from tests.rig.node import Mta, Rig
from tests.rig.peers import Arrived, Client, Sink

REPORTS, NOBODY, LACKS = 2525, 2526, 2527
QUEUED = 300
PROMPT = 2.0
"""Seconds after its time in which a message is back."""


class Station(Mta):
    """The second: takes everything of the virtual addresses and offers DELIVERBY."""

    def __init__(self, rig: Rig) -> None:
        directory = os.path.join(rig.directory, "behind")
        os.makedirs(directory)
        super().__init__(rig, "peer", directory, "behind")
        self.log_prefix = "behind-"
        self.control, self.submit = "/run/behind.control", "/run/behind.submit"
        self.mailboxes = os.path.join(directory, "mail")
        self.configure(
            name=NAME,
            addresses=f'[{PEER}, "{PEER6}"]',
            resource="standalone",
            cluster="grace: 1s",
            listener="deliver-by-least: 2s",
            connectors=f"""
            - {{name: home, kind: maildir, directory: {self.mailboxes}, address-spaces: [{{domain: home.example}}]}}
            - name: nobody
              kind: smtp
              bridgeheads: ["{PEER}:{NOBODY}"]
              address-spaces: [{{domain: nobody.example}}]
            - name: reports
              kind: smtp
              bridgeheads: ["{PEER}:{REPORTS}"]
              address-spaces: [{{domain: "*"}}]
            """,
            spool=os.path.join(directory, "spool"),
            store="reserve: 32MiB\nsegment-size: 8MiB\ninitialise: true",
        )
        self.start_mta(wait=False)
        wait_until(lambda: self.greeting(PEER).startswith(b"220"), 20, "the second is silent")

    def kept(self) -> int:
        """Messages in its mailboxes."""
        return sum(len(files) for path, _, files in os.walk(self.mailboxes) if path.endswith("new"))


def scenario_two_of_ours(rig: Rig) -> None:
    """R in time is in its mailbox, and who wants to trace it hears of the server between; R that
    the second cannot deliver comes back once, within moments of its end, with 5.4.7.
    """
    sink, station = Sink(rig, port=REPORTS).start(), Station(rig)
    rig.online(connectors=connectors())
    offered = hello(rig)[1]
    expect(b"250-DELIVERBY\r\n" in offered, f"we offer {offered!r}")
    give(rig, "BY=60;RT", "t@home.example")
    wait_until(lambda: station.kept() == 1, 10, "it is not in the mailbox")
    traced = report(sink, "relayed t")
    expect("You asked to be told" in traced.text, f"the words are {traced.text}")
    began = give(rig, "BY=6;R", "r@nobody.example")
    returned = report(sink, "failed r")
    took = time.monotonic() - began
    expect(5.0 <= took <= 6.0 + PROMPT, f"it came back after {took:.1f} s of 6")
    expect("Status: 5.4.7" in returned.text, "the report does not say 5.4.7")
    expect(f"Reporting-MTA: dns; {NAME}" in returned.text, "the report is not the second's")
    less = give(rig, "BY=1;R", "less@home.example")
    returned = report(sink, "failed less")
    expect("asks for 2" in returned.text, f"the words are {returned.text}")
    expect(time.monotonic() - less <= PROMPT, "what cannot be in time came back late")
    time.sleep(2)
    expect(sink.count() == 3, f"{sink.count()} reports came")
    expect(station.kept() == 1, "what came too late is in the mailbox")
    station.end()
    rig.note(f"returned {took - 6.0:+.1f} s after its end")


def scenario_behind_a_dead_one(rig: Rig) -> None:
    """A server does not answer and hundreds of messages wait for it: R comes back within moments of
    its end, once, also when the process was killed meanwhile; N has its delay notice then, and is
    delivered when the server is there.
    """
    sink = Sink(rig, port=REPORTS).start()
    rig.online(connectors=connectors(NOBODY), queue="destination-retry: 1h\nbackoff: [5s]")
    client, _ = hello(rig)
    for number in range(QUEUED):
        client.send(f"m{number}", recipients=(f"m{number}@nobody.example",))
    ends = {}
    for seconds in (4, 6, 8):
        ends[f"r{seconds}"] = give(rig, f"BY={seconds};R", f"r{seconds}@nobody.example") + seconds
    late = give(rig, "BY=5;N", "n@nobody.example") + 5
    seen: dict[str, float] = {}
    watch(sink, seen, until=late + PROMPT)
    killed = give(rig, "BY=9;R", "killed@nobody.example") + 9
    rig.process().kill()
    rig.restart()
    watch(sink, seen, until=killed + PROMPT + 1)
    ends["killed"] = killed
    for name, end in ends.items():
        at = seen.pop(f"failed {name}", 0.0)
        expect(-0.5 <= at - end <= PROMPT, f"{name} came back {at - end:+.1f} s after its end")
    at = seen.pop("delayed n", 0.0)
    expect(-0.5 <= at - late <= PROMPT, f"of n was told {at - late:+.1f} s after its time")
    expect(not seen, f"these were told too: {seen}")
    server = Sink(rig, port=NOBODY, name="late").start()
    rig.command("queue", "retry", "--all")
    wait_until(lambda: server.count() == QUEUED + 1, 30, "the others were not delivered")
    wait_until(lambda: "relayed n" in told(sink), 10, "it was not said who took n")
    expect(len(told(sink)) == len(ends) + 2, f"the reports are {told(sink)}")
    rig.note(f"{QUEUED} waited, {len(ends)} returned, one over a kill")


def scenario_who_lacks_it(rig: Rig) -> None:
    """R to a server without DELIVERBY comes back at once with 5.4.7; N goes there, and its sender
    hears that nobody keeps to the time there.
    """
    sink = Sink(rig, port=REPORTS).start()
    server = Sink(rig, port=LACKS, name="lacks").start()
    rig.online(connectors=connectors())
    began = give(rig, "BY=60;R", "r@lacks.example")
    returned = report(sink, "failed r")
    expect(time.monotonic() - began <= PROMPT, "it came back late")
    expect("Status: 5.4.7" in returned.text, "the report does not say 5.4.7")
    expect("does not offer DELIVERBY" in returned.text, f"the words are {returned.text}")
    give(rig, "BY=60;N", "n@lacks.example")
    relayed = report(sink, "relayed n")
    expect("do not keep to the time" in relayed.text, f"the words are {relayed.text}")
    (message,) = server.messages()
    expect(message.recipients == ("<n@lacks.example>",), f"it went to {message.recipients}")


def connectors(rest: int = 25) -> str:
    """The first's: two ends, and a server for all the rest."""
    return "".join(
        f"""
        - name: {name}
          kind: smtp
          bridgeheads: ["{PEER}:{port}"]
          address-spaces: [{{domain: {domain}}}]
        """
        for name, port, domain in (
            ("reports", REPORTS, "example.net"),
            ("lacks", LACKS, "lacks.example"),
            ("rest", rest, '"*"'),
        )
    )


def hello(rig: Rig) -> tuple[Client, bytes]:
    client = Client(rig)
    client.reply()
    return client, client.say(b"EHLO client.example.net") + b"\r\n"


def give(rig: Rig, by: str, recipient: str) -> float:
    """One message with a time; when (monotonic) MAIL was said."""
    client, _ = hello(rig)
    began = time.monotonic()
    said = client.say(f"MAIL FROM:<sender@example.net> {by}".encode())
    expect(said.startswith(b"250"), f"MAIL with {by} is answered {said!r}")
    for line in (f"RCPT TO:<{recipient}>".encode(), b"DATA", b"Subject: x\r\n\r\nx\r\n."):
        said = client.say(line)
        expect(said[:1] in b"23", f"{line!r} is answered {said!r}")
    client.close()
    return began


def report(sink: Sink, what: str) -> Arrived:
    """The one that says `what` of whom; once it is there."""
    wait_until(lambda: what in told(sink), 30, f"nobody was told {what!r}")
    return next(message for message in sink.messages() if _said(message) == what)


def told(sink: Sink) -> list[str]:
    """Of each report, what is said of whom."""
    return [_said(message) for message in sink.messages()]


def _said(message: Arrived) -> str:
    action = message.text.partition("\nAction: ")[2].split("\n")[0].strip()
    whom = message.text.partition("\nFinal-Recipient: rfc822; ")[2].partition("@")[0]
    return f"{action} {whom}"


def watch(sink: Sink, seen: dict[str, float], until: float) -> None:
    """When (monotonic) each report came, until then."""
    while time.monotonic() < until:
        for each in told(sink):
            seen.setdefault(each, time.monotonic())
        time.sleep(0.1)
    expect(len(told(sink)) == len(set(told(sink))), f"something was told twice: {told(sink)}")
