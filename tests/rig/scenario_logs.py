"""Programs that read Postfix's log read ours: Debian's pflogsumm and postfix_exporter, and the
counters that they come to.
"""

from __future__ import annotations

import os
import re
import sys

from tests.rig.ground import PEER, UNPACKED, Broken, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink


def scenario_pflogsumm(rig: Rig) -> None:
    """It counts what was received, delivered, deferred, bounced and refused, and knows by whom."""
    mail_of_every_fate(rig)
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


COUNTED = {
    'postfix_smtpd_messages_processed_total{sasl_method=""}': 9,
    'postfix_smtpd_messages_rejected_total{code="501"}': 1,
    "postfix_cleanup_messages_processed_total": 9,
    "postfix_qmgr_messages_inserted_receipients_count": 10,
    "postfix_qmgr_messages_inserted_size_bytes_count": 10,
    "postfix_qmgr_messages_removed_total": 9,
    'postfix_smtp_delivery_delay_seconds_count{stage=""}': 4 * 10,
    "postfix_smtp_status_deferred": 1,
}
"""What postfix_exporter 0.3.0 makes of the mail above: nine came in, and one report was made; all
but the one that waits are gone. "receipients" is its spelling, and it loses the names of the four
stages of a delay.
"""
CONNECTIONS = ("postfix_smtpd_connects_total", "postfix_smtpd_disconnects_total")


def scenario_exporter(rig: Rig) -> None:
    """Prometheus' exporter for Postfix counts our connections, messages, refusals and deliveries."""
    mail_of_every_fate(rig, extra="log: {syslog-name: postfix}")
    path = os.path.join(rig.directory, "followed.log")
    open(path, "w", encoding="utf-8").close()
    exporter = rig.ground.start(
        "exporter",
        "peer",
        [
            os.path.join(UNPACKED, "usr/bin/prometheus-postfix-exporter"),
            "--web.listen-address=127.0.0.1:9154",
            f"--postfix.logfile_path={path}",
            "--log.unsupported",
        ],
    )
    try:
        wait_until(lambda: exported(rig), 10, f"the exporter says nothing: {exporter.log()[:600]}")
        with open(path, "a", encoding="utf-8") as file:  # it reads what is added
            file.write(rig.log())
        told: dict[str, float] = {}

        def wrong() -> dict[str, float | None]:
            told.update(exported(rig))
            return {name: told.get(name) for name in COUNTED if told.get(name) != COUNTED[name]}

        try:
            wait_until(lambda: not wrong(), 10, "the exporter does not count as far")
        except Broken as fault:
            raise Broken(f"{fault}: {wrong()}; it said {exporter.log()[-600:]}") from None
        log = rig.log()
        for name, words in zip(CONNECTIONS, (": connect from", ": disconnect from"), strict=True):
            expect(told.get(name) == log.count(words), f"{name} is {told.get(name)}")
    finally:
        exporter.stop()


def exported(rig: Rig) -> dict[str, float]:
    """What the exporter tells Prometheus; nothing as long as it does not listen."""
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9154/metrics').read().decode())"
    done = rig.inside("peer", [sys.executable, "-c", fetch], check=False)
    lines = (
        line.rpartition(" ") for line in done.stdout.splitlines() if line.startswith("postfix_")
    )
    return {name: float(value) for name, _, value in lines}


def mail_of_every_fate(rig: Rig, extra: str = "") -> None:
    """Seven delivered, one returned, one waiting, a recipient refused; one association."""
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
        extra=extra,
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


def summed(rig: Rig) -> str:
    """What pflogsumm makes of the log of every process of ours."""
    path = whole_log(rig)
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


def whole_log(rig: Rig) -> str:
    """The path of a file that holds the log of every process of ours."""
    path = os.path.join(rig.directory, "whole.log")
    with open(path, "w", encoding="utf-8") as file:
        file.write(rig.log())
    return path
