"""Bad input over real sockets: a named error or the right reply, bounded memory, nothing lost."""

from __future__ import annotations

import os
import random
import socket
import time

from tests.rig.ground import PEER, VIRTUAL, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, CrookedServer, NameServer, Sink, source, swaks

GROWTH_MIB = 48
"""How much an attack may add to the peak of the process: buffers, Python's arenas, and no body."""


def _serves(rig: Rig, sink: Sink) -> None:
    before = sink.count()
    source(rig, 5)
    sink.wait(before + 5, 20)


def scenario_rubbish(rig: Rig) -> None:
    """Rubbish bytes are refused or hung up on; the next peer is served."""
    sink = Sink(rig).start()
    mta = rig.online()
    source(rig, 50)
    base = mta.resident_mib()
    chance = random.Random(1)
    for _ in range(60):
        with rig.connect("peer", VIRTUAL, 25) as made:
            try:
                made.recv(500)
                for _ in range(chance.randrange(1, 6)):
                    made.sendall(chance.randbytes(chance.randrange(1, 60_000)))
                made.shutdown(socket.SHUT_WR)
                while made.recv(65536):
                    pass
            except OSError:
                pass  # hung up on: allowed
    _serves(rig, sink)
    grown = mta.peak_mib() - base
    rig.note(f"peak grew by {grown:.1f} MiB")
    expect(grown < GROWTH_MIB, f"rubbish made the process grow by {grown:.0f} MiB")


def scenario_no_newline(rig: Rig) -> None:
    """1 GiB without a newline, as a command and as a body, never lies in memory."""
    sink = Sink(rig).start()
    mta = rig.online(listener="limits: {size: 20MiB}")
    source(rig, 50)
    base, block = mta.resident_mib(), b"x" * 1_048_576
    for in_data in (False, True):
        client = Client(rig)
        client.hello()
        if in_data:
            client.say(b"MAIL FROM:<a@example.net>")
            client.say(b"RCPT TO:<b@example.com>")
            client.say(b"DATA")
        answer = b""
        try:
            for _ in range(1024):
                client.socket.sendall(block)
            client.socket.sendall(b"\r\n.\r\n")
            answer = client.reply()
        except OSError:
            answer = b"hung up"
        client.close()
        expect(
            answer[:1] == b"5" or answer in (b"", b"hung up"), f"it was answered {answer[:60]!r}"
        )
    _serves(rig, sink)
    grown = mta.peak_mib() - base
    rig.note(f"peak grew by {grown:.1f} MiB over 2 GiB without a newline")
    expect(grown < GROWTH_MIB, f"lines without end made the process grow by {grown:.0f} MiB")


def scenario_many_recipients(rig: Rig) -> None:
    """100 000 RCPTs in one transaction: the limit answers 452, and memory stays bounded."""
    sink = Sink(rig).start()
    mta = rig.online()
    source(rig, 50)
    base = mta.resident_mib()
    client = Client(rig, timeout=60)
    client.hello()
    client.say(b"MAIL FROM:<a@example.net>")
    taken, refused, sent, total = 0, 0, 0, 100_000
    while sent < total:
        lines = b"".join(b"RCPT TO:<u%d@example.com>\r\n" % n for n in range(sent, sent + 500))
        client.socket.sendall(lines)
        sent += 500
        try:
            for _ in range(500):
                answer = client.reply()
                if answer.startswith(b"250"):
                    taken += 1
                elif answer.startswith((b"452", b"421", b"550")):
                    refused += 1
                else:
                    raise OSError(f"answered {answer[:60]!r}")
        except OSError:
            break
    expect(100 <= taken < 20_000, f"{taken} recipients were taken in one transaction")
    expect(refused > 0, "no recipient was refused")
    client.close()
    grown = mta.peak_mib() - base
    rig.note(f"{taken} of {sent} taken, {refused} refused, peak grew by {grown:.1f} MiB")
    expect(grown < GROWTH_MIB, f"recipients made the process grow by {grown:.0f} MiB")
    _serves(rig, sink)


def scenario_connection_flood(rig: Rig) -> None:
    """Beyond the limit a connection is answered 421; those within it are served throughout."""
    sink = Sink(rig).start()
    mta = rig.online(listener="limits: {connections: 200}")
    source(rig, 50)
    base = mta.resident_mib()
    held = [Client(rig) for _ in range(100)]
    for client in held:
        expect(client.hello().startswith(b"220"), "a connection within the limit was refused")
    refused, flood = 0, []
    for _ in range(10_000):
        made = rig.connect("peer", VIRTUAL, 25)
        flood.append(made)
        if len(flood) > 400:
            flood.pop(0).close()
    time.sleep(1.0)
    for made in flood:
        made.settimeout(3)
        try:
            if made.recv(200).startswith(b"421"):
                refused += 1
        except OSError:
            pass
        made.close()
    expect(refused >= 100, f"only {refused} of the last 400 connections were answered 421")
    for client in held:
        expect(client.say(b"NOOP").startswith(b"250"), "an old association was cut by the flood")
        client.close()
    wait_until(lambda: rig.greeting(VIRTUAL).startswith(b"220"), 10, "no 220 after the flood")
    _serves(rig, sink)
    grown = mta.peak_mib() - base
    rig.note(
        f"10 100 connections, {refused} of the last 400 answered 421, peak grew by {grown:.1f} MiB"
    )
    expect(grown < GROWTH_MIB, f"the flood made the process grow by {grown:.0f} MiB")


def scenario_half_open(rig: Rig) -> None:
    """Peers that stop talking in any stage are ended by a timeout and leave nothing behind."""
    sink = Sink(rig).start()
    mta = rig.online(listener="timeouts: {command: 3s, block: 3s}")
    stages: list[Client] = []
    for stage in range(5):
        client = Client(rig)
        stages.append(client)
        if stage == 0:
            continue
        client.hello()
        for line in (b"MAIL FROM:<a@example.net>", b"RCPT TO:<b@example.com>", b"DATA")[
            : stage - 1
        ]:
            client.say(line)
        if stage == 4:
            client.socket.sendall(b"Subject: half a mess")
    wait_until(lambda: _established(rig) == 0, 20, "half-open associations are kept")
    for client in stages:
        client.close()
    expect(sink.count() == 0, "half a message was delivered")
    _serves(rig, sink)
    expect(mta.is_running, "it ended")


def _established(rig: Rig) -> int:
    return len(rig.sockets("node", "state", "established", "sport", "=", ":25"))


def scenario_crooked_servers(rig: Rig) -> None:
    """A next hop that answers nonsense, terminal escapes, or nothing: mail is kept or returned, logs stay clean."""

    def nonsense(made: socket.socket) -> None:
        made.sendall(b"220 \x1b[2J\x1b]0;owned\x07 hello\r\n")
        made.recv(4096)
        made.sendall(b"250 \x1b[2J\r\n")
        while made.recv(4096):
            made.sendall(b"550 5.7.1 \x1b[31mred\x9b alert\rforged: line\x00\r\n")

    def garbage(made: socket.socket) -> None:
        made.sendall(os.urandom(3000))
        made.recv(100)

    def endless(made: socket.socket) -> None:
        made.sendall(b"220 ok\r\n")
        made.recv(4096)
        for _ in range(600):
            made.sendall(b"250-" + b"x" * 100_000)

    def closing(made: socket.socket) -> None:
        made.sendall(b"220 ok\r\n")
        made.recv(4096)
        made.sendall(b"250 ok\r\n")
        made.recv(4096)

    sink = Sink(rig).start()
    servers = [
        CrookedServer(rig, manners, 3001 + n)
        for n, manners in enumerate((nonsense, garbage, endless, closing))
    ]
    crooked = "".join(
        f"""
        - name: crooked{n}
          kind: smtp
          bridgeheads: ["{PEER}:{3001 + n}"]
          address-spaces: [{{domain: crooked{n}.example.com, cost: 10}}]"""
        for n in range(4)
    )
    mta = rig.online(
        connectors=crooked
        + f"""
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: "*", cost: 10}}]
        """,
        queue="lifetime: 1h\nbackoff: [30s]",
    )
    source(rig, 50)
    sink.wait(50)
    base = mta.resident_mib()
    for n in range(4):
        swaks(
            rig,
            "--server",
            VIRTUAL,
            "--from",
            "sender@example.net",
            "--to",
            f"x@crooked{n}.example.com",
        )
    wait_until(
        lambda: all(server.connections for server in servers),
        20,
        "a crooked server was never tried",
    )
    sink.wait(51, 20)  # the report of what `nonsense` refused for good
    rig.wait_log("crooked3.example.com")
    time.sleep(1.0)
    log = rig.log()
    bad = [c for c in log if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    expect(not bad, f"the log holds control characters: {bad[:5]!r}")
    expect("\nforged: line" not in log, "a peer forged a line of the log")
    listed = rig.command("queue", "list").stdout
    expect("\x1b" not in listed and "\x9b" not in listed, "the queue listing holds escapes")
    expect(
        sum(f"crooked{n}" in listed for n in (1, 2, 3)) == 3, f"mail was given up: {listed[:400]}"
    )
    report = next(m for m in sink.messages() if m.sender == "<>")
    expect("\x1b" not in report.text and "\x00" not in report.text, "the report holds escapes")
    grown = mta.peak_mib() - base
    rig.note(f"peak grew by {grown:.1f} MiB")
    expect(grown < GROWTH_MIB, f"crooked servers made the process grow by {grown:.0f} MiB")


def scenario_forged_log_line(rig: Rig) -> None:
    """An address or a greeting cannot write a line of its own into the log."""
    sink = Sink(rig).start()
    rig.online()
    with rig.connect("peer", VIRTUAL, 25) as made:
        made.recv(500)
        made.sendall(b"EHLO a\rmta/smtp[1]: FORGED: removed\r\n")
        made.recv(1000)
        made.sendall(b'MAIL FROM:<"a\nmta/smtp[1]: FORGED: removed"@example.net>\r\n')
        made.recv(1000)
        made.sendall(b"RCPT TO:<\x1b]0;FORGED\x07@example.com>\r\nQUIT\r\n")
        time.sleep(0.3)
    _serves(rig, sink)
    lines = [line for line in rig.log().splitlines() if "FORGED" in line]
    for line in lines:
        expect(not line.startswith("mta/smtp[1]"), f"a forged line stands in the log: {line[:120]}")
        expect("\x1b" not in line, "the log holds an escape")


def scenario_mx(rig: Rig) -> None:
    """delivery: mx asks a real name server: preference, null MX, implicit MX, and never to itself."""
    NameServer(
        rig,
        "example.com.",
        f"""
two MX 10 mx1
two MX 20 mx2
mx1 A {PEER}
mx2 A 10.9.0.4
fallback MX 10 mx2
fallback MX 20 mx1
null MX 0 .
implicit A {PEER}
self MX 10 me
self MX 20 mx1
me A {VIRTUAL}
below MX 5 mx1
below MX 10 me
""",
    )
    sink = Sink(rig).start()
    report_sink = Sink(rig, port=2525, name="reports").start()
    rig.online(
        connectors=f"""
        - name: world
          kind: smtp
          delivery: mx
          address-spaces: [{{domain: "*.example.com", cost: 10}}]
        - name: reports
          kind: smtp
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: "*", cost: 10}}]
        """,
        extra=f'resolver: {{servers: ["{PEER}:53"]}}',
        queue="lifetime: 1h\nbackoff: [30s]",
    )
    for name in ("two", "fallback", "implicit", "below"):
        swaks(
            rig,
            "--server",
            VIRTUAL,
            "--from",
            "sender@example.net",
            "--to",
            f"{name}@{name}.example.com",
        )
    sink.wait(4, 60)
    reached = sorted(message.recipients[0] for message in sink.messages())
    expect(len(reached) == 4, f"reached {reached}")
    for name in ("null", "self", "missing"):
        swaks(
            rig,
            "--server",
            VIRTUAL,
            "--from",
            "sender@example.net",
            "--to",
            f"{name}@{name}.example.com",
        )
    report_sink.wait(3, 30)
    reports = {}
    for message in report_sink.messages():
        for name in ("null", "self", "missing"):
            if f"{name}@{name}.example.com" in message.text:
                reports[name] = message.text
    expect(set(reports) == {"null", "self", "missing"}, f"reports came for {sorted(reports)}")
    expect("5.1.10" in reports["null"], "a null MX is not reported as 5.1.10 (RFC 7505)")
    expect(
        "5.4.6" in reports["self"] or "5.4.4" in reports["self"] or "5.3.5" in reports["self"],
        "a loop to ourselves has no code of its own",
    )
    expect(sink.count() == 4, "something went to ourselves or past a null MX")
    expect(sink.clients() == {VIRTUAL}, f"the sink saw {sink.clients()}")
