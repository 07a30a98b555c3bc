"""What was answered 250 is delivered: after kill -9, after a full disk, through a dead next hop."""

from __future__ import annotations

import os
import signal
import time

from tests.rig.ground import NODE, PEER, VIRTUAL, expect, wait_until
from tests.rig.node import NETWORK_NAME, Rig, in_order
from tests.rig.peers import Client, Ledger, Sink, no_foreign_source, source, swaks

SLOTS = 20


def scenario_kill_under_load(rig: Rig) -> None:
    """After kill -9 under load, three times, every message that was promised arrives; few arrive twice."""
    sink = Sink(rig).start()
    rig.online()
    ledger = Ledger(rig, 10)
    ledger.start()
    rounds = 3
    for number in range(1, rounds + 1):
        wait_until(lambda n=number: len(ledger.promised) > n * 200, 30, "the load does not run")  # type: ignore[misc]
        rig.process().kill()
        begun = time.monotonic()
        rig.restart()
        rig.note(f"kill {number}: 220 again {time.monotonic() - begun:.2f} s after the restart")
    ledger.stop()
    arrived = ledger.settle(sink, 60)
    doubles = sum(number - 1 for number in arrived.values())
    rig.note(f"{len(ledger.promised)} promised, 0 lost, {doubles} arrived twice")
    expect(doubles <= SLOTS * rounds, f"{doubles} doubles: more than one for each slot and kill")
    no_foreign_source(sink, {VIRTUAL}, NETWORK_NAME)


def scenario_full_disk(rig: Rig) -> None:
    """A full disk is answered 452, loses nothing, and ends when there is room again."""
    where = rig.small_disk("disk", 192)
    sink = Sink(rig)
    rig.online(
        spool=os.path.join(where, "spool"),
        store="reserve: 32MiB\nsegment-size: 8MiB",
        queue="lifetime: 1h\nbackoff: [2s]\ndestination-retry: 1s",
    )
    promised, answer, client = 0, b"", None
    for number in range(400):
        if client is None:
            client = Client(rig)
            client.hello()
        answer = client.send(f"full{number}", 1_000_000)
        if not answer.startswith(b"250"):
            break
        promised += 1
    expect(answer.startswith(b"452"), f"after {promised} MB the answer was {answer[:80]!r}")
    expect(promised > 20, f"only {promised} messages of 1 MB fitted on 192 MiB")
    status = rig.status_text()
    expect(rig.process().is_running and status, "the MTA did not survive a full disk")
    sink.start()
    rig.command("queue", "retry", "--all", check=False)
    sink.wait(promised, 60)
    time.sleep(1.0)
    client = Client(rig)
    client.hello()
    wait_until(
        lambda: client.send("room", 1000).startswith(b"250"), 30, "it does not recover", step=0.5
    )
    sink.wait(promised + 1, 30)
    names = {message.header("Subject").strip() for message in sink.messages()}
    expect({f"full{n}" for n in range(promised)} <= names, "a promised message is missing")
    rig.note(f"{promised} MB were taken before 452; all arrived")


def scenario_dead_next_hop(rig: Rig) -> None:
    """While the next hop is dead the mail waits; it goes when the hop lives, without being asked."""
    rig.online(queue="lifetime: 1h\nbackoff: [1s, 2s]\ndestination-retry: 1s")
    source(rig, 50)
    rig.wait_log("status=deferred")
    queue = rig.command("queue", "list").stdout
    expect(
        queue.count("example.com") >= 50, f"the queue does not show the 50 messages: {queue[:300]}"
    )
    sink = Sink(rig).start()
    sink.wait(50, 30)
    wait_until(
        lambda: "example.com" not in rig.command("queue", "list").stdout,
        10,
        "the queue is not empty",
    )


def scenario_slow_next_hop(rig: Rig) -> None:
    """A slow next hop slows only its own mail, and accepting not at all."""
    slow = Sink(rig, port=2525, name="slow").start("-w", "2")
    quick = Sink(rig).start()
    rig.online(
        connectors=f"""
        - name: slow
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          concurrency: 4
          address-spaces: [{{domain: slow.example.com, cost: 10}}]
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: "*", cost: 10}}]
        """
    )
    source(rig, 20, "-t", "user@slow.example.com")
    begun = time.monotonic()
    source(rig, 200)
    quick.wait(200, 20)
    rig.note(f"200 quick messages passed 20 slow ones in {time.monotonic() - begun:.1f} s")
    expect(slow.count() < 20, "the slow hop was not slow")
    slow.wait(20, 60)


def scenario_bounce(rig: Rig) -> None:
    """A refused recipient is reported to the sender: a DSN with null sender, from the virtual server."""
    refusing = Sink(rig, port=2525, name="refusing").start("-f", "RCPT")
    sink = Sink(rig).start()
    rig.online(
        connectors=f"""
        - name: refusing
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: refused.example.com, cost: 10}}]
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: "*", cost: 10}}]
        """
    )
    swaks(rig, "--server", VIRTUAL, "--from", "sender@example.net", "--to", "nobody@refused.example.com",
          "--header", "Subject: will bounce")  # fmt: skip
    sink.wait(1, 30)
    report = sink.messages()[0]
    expect(report.sender == "<>", f"the report's sender is {report.sender}")
    expect(report.recipients == ("<sender@example.net>",), f"it went to {report.recipients}")
    for words in (
        "multipart/report", "report-type=delivery-status", "message/delivery-status",
        f"Reporting-MTA: dns; {NETWORK_NAME}", "Final-Recipient: rfc822; nobody@refused.example.com",
        "Action: failed", "Status: 5.", "Subject: will bounce",
    ):  # fmt: skip
        expect(words.lower() in report.text.lower(), f"the report lacks {words!r}")
    expect(refusing.count() == 0, "the refusing sink took it")
    # A bounce of a bounce goes to the postmaster, not in circles.
    swaks(rig, "--server", VIRTUAL, "--from", "<>", "--to", "nobody@refused.example.com")
    sink.wait(2, 30)
    double = next(
        m for m in sink.messages() if m is not report and m.recipients != report.recipients
    )
    expect(double.recipients == ("<postmaster@example.org>",), f"it went to {double.recipients}")


def scenario_expiry(rig: Rig) -> None:
    """What cannot be delivered within its lifetime is returned to its sender."""
    sink = Sink(rig).start()
    rig.online(
        connectors=f"""
        - name: dead
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: dead.example.com, cost: 10}}]
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: "*", cost: 10}}]
        """,
        queue="lifetime: 4s\nbackoff: [1s]\ndestination-retry: 1s",
    )
    swaks(rig, "--server", VIRTUAL, "--from", "sender@example.net", "--to", "x@dead.example.com")
    sink.wait(1, 30)
    text = sink.messages()[0].text
    expect(
        "Status: 4.4.7" in text or "Status: 5.4.7" in text,
        "the report does not say expired (x.4.7)",
    )


def scenario_reload_and_drain(rig: Rig) -> None:
    """SIGHUP with an invalid file keeps the old one and says why; SIGTERM finishes what is open."""
    sink = Sink(rig).start()
    mta = rig.online()
    with open(rig.configuration, encoding="utf-8") as file:
        good = file.read()
    with open(rig.configuration, "w", encoding="utf-8") as file:
        file.write(good.replace("postmaster: ", "postmastre: "))
    mta.send_signal(signal.SIGHUP)
    rig.wait_log("postmastre", 10)
    expect(mta.is_running, "an invalid file ended the MTA")
    source(rig, 20)
    sink.wait(20)
    with open(rig.configuration, "w", encoding="utf-8") as file:
        file.write(good)
    mta.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    expect(mta.is_running, "a valid file ended the MTA")
    # An open transaction is finished after SIGTERM; a new association is not taken.
    client = Client(rig)
    client.hello()
    client.say(b"MAIL FROM:<sender@example.net>")
    client.say(b"RCPT TO:<last@example.com>")
    expect(client.say(b"DATA").startswith(b"354"), "no 354")
    client.socket.sendall(b"Subject: last\r\n\r\n")
    mta.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    expect(
        not rig.greeting(VIRTUAL).startswith(b"220"), "it takes new associations while it drains"
    )
    client.socket.sendall(b"finished\r\n.\r\n")
    answer = client.reply()
    expect(answer.startswith(b"250"), f"the open transaction was answered {answer[:60]!r}")
    wait_until(lambda: not mta.is_running, 20, "it does not end after SIGTERM")
    expect(in_order(mta.popen.returncode), f"it ended with status {mta.popen.returncode}")
    if sink.count() < 21:
        rig.restart()
    sink.wait(21)


def scenario_restart_keeps_the_queue(rig: Rig) -> None:
    """Queued mail survives an orderly restart, and `mta spool check` reads the spool of a stopped MTA."""
    rig.online(queue="lifetime: 1h\nbackoff: [1h]")
    source(rig, 200)
    status = rig.process().stop(30)
    expect(in_order(status), f"SIGTERM ended it with status {status}")
    said = rig.command("spool", "check", rig.spool).stdout
    expect("200" in said, f"the offline check does not see 200 messages: {said[:300]}")
    sink = Sink(rig).start()
    rig.restart()
    queue = rig.command("queue", "list").stdout
    expect(
        queue.count("example.com") >= 200 or sink.count() > 0,
        "the queue is not there after the restart",
    )
    rig.command("queue", "retry", "--all")
    sink.wait(200, 30)
    expect(not rig.listens("peer", NODE, 25), "it listens on the node's address")
