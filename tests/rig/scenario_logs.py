"""Programs that read Postfix's log read ours: Debian's pflogsumm, and the counters that it comes to."""

from __future__ import annotations

import os
import re

from tests.rig.ground import PEER, UNPACKED, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink


def scenario_pflogsumm(rig: Rig) -> None:
    """It counts what was received, delivered, deferred, bounced and refused, and knows by whom."""
    sink = Sink(rig).start()
    Sink(rig, port=2525, name="refusing").start("-f", "RCPT")
    rig.online(
        connectors=f"""
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: "*"}}]
        - name: refusing
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: refused.example.com}}]
        - name: away
          kind: smtp
          bridgeheads: ["{PEER}:2626"]
          address-spaces: [{{domain: away.example.com}}]
        """,
        queue="lifetime: 1h\nbackoff: [1h]\ndestination-retry: 1s",
    )
    client = Client(rig)
    client.hello()
    for number in range(7):
        answer = client.send(f"good{number}")
        expect(answer.startswith(b"250"), f"a message was answered {answer!r}")
    client.send("bad", recipients=("nobody@refused.example.com",))
    client.send("later", recipients=("somebody@away.example.com",))
    answer = client.say(b"MAIL FROM:<sender@example.net>")
    answer = client.say(b"RCPT TO:<nobody@[192.0.2.99")
    expect(answer.startswith(b"5"), f"a malformed address was answered {answer!r}")
    client.say(b"QUIT")
    sink.wait(8, 20)  # seven, and the report
    rig.wait_log("status=deferred")
    wait_until(lambda: rig.log().count("status=sent") >= 8, 10, "the report is not told as sent")
    told = summed(rig)
    for words, count in (
        ("received", 9),
        ("delivered", 8),
        ("deferred", 1),
        ("bounced", 1),
        ("rejected", 1),
    ):
        found = re.search(rf"^ *(\d+) +{words}\b", told, re.MULTILINE)
        expect(found, f"pflogsumm does not say what was {words}: {told[:600]}")
        assert found is not None
        expect(int(found[1]) == count, f"{found[1]} {words}, not {count}: {told[:600]}")
    log = rig.log()
    sizes = dict(re.findall(r" (\w+): from=<[^>]*>, size=(\d+)", log))
    octets = sum(int(sizes[name]) for name in re.findall(r" (\w+): to=.*status=sent", log))
    found = re.search(r"^ *(\d+) +bytes delivered", told, re.MULTILINE)
    expect(found and int(found[1]) == octets, f"{octets} octets were delivered: {told[:600]}")
    expect("sender@example.net" in told, "pflogsumm does not know the sender")
    expect("good3@example.com" in told, "pflogsumm does not know a recipient")
    expect(re.search(r"^ *\d+ +sender", told, re.MULTILINE), "pflogsumm counts no senders")


def summed(rig: Rig) -> str:
    """What pflogsumm makes of the log of every process of ours."""
    path = os.path.join(rig.directory, "whole.log")
    with open(path, "w", encoding="utf-8") as file:
        file.write(rig.log())
    share = os.path.join(UNPACKED, "usr/share/perl5")
    machine = os.path.join(UNPACKED, f"usr/lib/{os.uname().machine}-linux-gnu/perl5")
    folders = [share, *(os.path.join(machine, name) for name in sorted(os.listdir(machine)))]
    done = rig.inside(
        "peer",
        ["perl", os.path.join(UNPACKED, "usr/sbin/pflogsumm"), "--syslog_name=mta", path],
        env={**os.environ, "PERL5LIB": ":".join(folders)},
    )
    expect(not done.stderr.strip(), f"pflogsumm complains: {done.stderr[:300]}")
    assert isinstance(done.stdout, str)
    return done.stdout
