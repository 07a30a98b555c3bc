"""Two MTAs that send a domain to each other: the message goes round until one of them has had enough."""

from __future__ import annotations

import time

from tests.rig.ground import PEER, VIRTUAL, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink
from tests.rig.postfix import Postfix

FEW = 20
"""Hops that the one which is to stop it allows."""


def scenario_we_stop_it(rig: Rig) -> None:
    """We refuse it with 5.4.6, and Postfix's one report reaches its sender."""
    goes_round(rig, "5.4.6", ours=FEW, theirs=100)


def scenario_postfix_stops_it(rig: Rig) -> None:
    """Postfix refuses it (its own code is 5.4.0), and our one report reaches its sender."""
    goes_round(rig, "5.4.0", ours=100, theirs=FEW)


def goes_round(rig: Rig, code: str, *, ours: int, theirs: int) -> None:
    sink = Sink(rig, port=2526).start()  # Postfix takes port 25 of its own address for itself
    postfix = Postfix(
        rig,
        f"{PEER}:2525",
        myhostname="postfix.example.net",
        inet_interfaces=PEER,
        inet_protocols="ipv4",
        mynetworks="10.9.0.0/24",
        hopcount_limit=str(theirs),
        transport_maps=(
            f"inline:{{ loop.example.com=relay:[{VIRTUAL}]:25, example.net=relay:[{PEER}]:2526 }}"
        ),
    ).start()
    rig.online(
        connectors=f"""
        - name: postfix
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: loop.example.com}}]
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:2526"]
          address-spaces: [{{domain: "*"}}]
        """,
        extra=f"intake: {{hop-limit: {ours}}}",
    )
    client = Client(rig)
    client.hello()
    answer = client.send("round", sender="s@example.net", recipients=["x@loop.example.com"])
    expect(answer.startswith(b"250"), f"we say {answer!r}")
    sink.wait(1)
    wait_until(
        lambda: "loop.example.com" not in rig.command("queue", "list").stdout,
        20,
        "it is still here",
    )
    time.sleep(2)
    (report,) = sink.messages()
    expect(report.recipients == ("<s@example.net>",), f"a report went to {report.recipients}")
    expect(report.sender == "<>", f"the report comes from {report.sender}")
    expect(code in report.text, "the report does not say why")
    arrivals = rig.log().count("to=<x@loop.example.com>")
    expect(FEW // 2 - 2 <= arrivals <= FEW, f"it was sent {arrivals} times")
    if ours == FEW:
        postfix.wait_log(r"dsn=5\.4\.6, status=bounced")
    else:
        rig.wait_log("status=bounced (554 5.4.0 Error: too many hops)")
