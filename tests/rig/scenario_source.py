"""The defect that founded this project: mail from the node's address instead of the virtual one."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

from tests.rig.borrow import borrowed
from tests.rig.ground import NODE, NODE6, PEER, PEER6, VIRTUAL, VIRTUAL6, expect, wait_until
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Client, Ledger, Sink, no_foreign_source, source, swaks


def scenario_every_association_is_the_virtual_servers(rig: Rig) -> None:
    """With node and virtual addresses side by side, hundreds of messages come and go as the virtual server."""
    sink = Sink(rig).start()
    sink6 = Sink(rig, PEER6, 2525, "sink6").start()
    rig.online(
        connectors=f"""
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          concurrency: 20
          address-spaces: [{{domain: "*", cost: 10}}]
        - name: six
          kind: smtp
          bridgeheads: ["[{PEER6}]:2525"]
          address-spaces: [{{domain: six.example.com, cost: 10}}]
        """
    )
    rig.reset_counters()
    source(rig, 300, sessions=10)
    source(rig, 100, "-d", sessions=20)
    source(rig, 100, "-t", "user@six.example.com", host=VIRTUAL6, sessions=5)
    letter = (
        "--from",
        "a@example.net",
        "--to",
        "b@six.example.com",
        "--header",
        "Subject: by swaks",
    )
    said = swaks(rig, "--server", VIRTUAL, *letter)
    expect(f"220 {NETWORK_NAME}" in said, "swaks was not greeted with the network name")
    sink.wait(400)
    sink6.wait(101)
    no_foreign_source(sink, {VIRTUAL}, NETWORK_NAME)
    no_foreign_source(sink6, {VIRTUAL6}, NETWORK_NAME)
    for message in (*sink.messages(), *sink6.messages()):
        trace = message.header("Received").split("by ", 1)
        expect(
            f"by {NETWORK_NAME}" in message.text,
            f"a Received header lacks the network name: {trace}",
        )
    expect(rig.counted("right") > 1000, "the counter for the virtual addresses did not count")
    expect(
        rig.counted("wrong") == 0,
        f"{rig.counted('wrong')} packets of mail left from the node's address",
    )
    # Control: the counter can count. A program that binds nothing speaks from the node's address.
    with rig.connect("node", PEER, 25) as plain:
        expect(plain.getsockname()[0] == NODE, "the kernel's own choice is not the node's address")
        _quit(plain)
    v4 = rig.counted("wrong")
    expect(v4 > 0, "the counter that must stay 0 cannot count")
    with rig.connect("node", PEER6, 2525, source=NODE6) as plain:
        _quit(plain)
    expect(rig.counted("wrong") > v4, "the counter that must stay 0 cannot count IPv6")
    assert rig.wire is not None
    seen = {wrong.source for wrong in rig.wire.look()}
    expect(seen == {NODE, NODE6}, f"the witness on the cable saw {sorted(seen)}")
    rig.reset_counters()


def _quit(made: socket.socket) -> None:
    """End it in order, the peer first: what the kernel would answer to a late greeting of the sink
    would be counted behind the counters' new beginning.
    """
    made.sendall(b"QUIT\r\n")
    while made.recv(1000):
        pass


def scenario_lmtp_and_maildir(rig: Rig) -> None:
    """An LMTP peer is spoken to by LHLO from the virtual address, a Maildir is written beside it."""
    sink = Sink(rig, port=2424, name="lmtp").start("-L")
    mail = os.path.join(rig.directory, "mail")
    rig.online(
        connectors=f"""
        - name: store
          kind: lmtp
          bridgeheads: ["{PEER}:2424"]
          address-spaces: [{{domain: "*", cost: 10}}]
        - name: local
          kind: maildir
          directory: {mail}
          address-spaces: [{{domain: local.example.com, cost: 10}}]
        """
    )
    source(rig, 50)
    source(rig, 20, "-t", "user@local.example.com")
    both = ("--from", "a@example.net", "--to", "b@example.com,c@local.example.com")
    swaks(rig, "--server", VIRTUAL, *both, "--header", "Subject: to both")
    sink.wait(51)
    wait_until(
        lambda: os.path.isdir(f"{mail}/new") and len(os.listdir(f"{mail}/new")) == 21,
        20,
        "the Maildir does not hold 21 messages",
    )
    no_foreign_source(sink, {VIRTUAL}, NETWORK_NAME)


def scenario_nothing_without_the_address(rig: Rig) -> None:
    """Without its virtual addresses the MTA listens on nothing, sends nothing, and says why."""
    Sink(rig).start()
    rig.configure()
    rig.start_mta()
    time.sleep(1.0)
    listening = rig.sockets("node", "state", "listening")
    expect(not listening, f"something listens: {listening}")
    for host in (NODE, NODE6):
        expect(not rig.listens("peer", host, 25), f"{host} accepts mail")
    text = rig.status_text()
    expect("standby" in text.lower(), f"the status does not say standby: {text[:200]}")
    expect(VIRTUAL in text, f"the status does not name the missing address: {text[:300]}")
    expect(rig.counted("wrong") + rig.counted("right") == 0, "mail left the node")


def scenario_online_when_the_address_arrives(rig: Rig) -> None:
    """It comes online when the last required address is usable, IPv6 after its duplicate detection."""
    Sink(rig).start()
    rig.configure()
    rig.start_mta()
    rig.add_virtual(v6=False)
    time.sleep(0.5)
    expect(not rig.listens("peer", VIRTUAL, 25), "it listens though an address is missing")
    rig.add_virtual(v4=False, dad=True)
    time.sleep(0.2)
    expect(not rig.listens("peer", VIRTUAL, 25), "it listens though the IPv6 address is tentative")
    wait_until(lambda: not _tentative(rig), 5, "duplicate detection does not end", step=0.001)
    usable = time.monotonic()
    wait_until(lambda: rig.greeting(VIRTUAL).startswith(b"220"), 5, "no 220 over IPv4", step=0.001)
    v4 = time.monotonic() - usable
    wait_until(lambda: rig.greeting(VIRTUAL6).startswith(b"220"), 5, "no 220 over IPv6", step=0.001)
    v6 = time.monotonic() - usable
    rig.note(f"address usable -> first 220: IPv4 {v4 * 1000:.0f} ms, both {v6 * 1000:.0f} ms")
    source(rig, 20)
    rig.wait_log("status=sent")


def _tentative(rig: Rig) -> bool:
    return "tentative" in rig.inside("node", ["ip", "-6", "addr", "show", "dev", "eth0"]).stdout


def scenario_address_leaves_and_returns(rig: Rig) -> None:
    """When an address disappears every association ends at once; when it returns nothing was lost."""
    sink = Sink(rig).start("-w", "1")
    rig.online(cluster="grace: 20s")
    ledger = Ledger(rig, 8).start()
    wait_until(lambda: len(ledger.promised) > 60, 20, "the load does not run")
    idle = Client(rig)
    idle.hello()
    idle.say(b"MAIL FROM:<half@example.net>")
    rig.remove_virtual(v6=False)
    gone = time.monotonic()
    wait_until(lambda: not _mail_sockets(rig), 3, "associations outlive their address", step=0.002)
    rig.note(
        f"address removed -> every association closed: {(time.monotonic() - gone) * 1000:.0f} ms"
    )
    expect(not rig.sockets("node", "state", "listening"), "it still listens")
    time.sleep(1.0)
    expect(not _mail_sockets(rig), "an association was opened without the address")
    idle.close()
    rig.add_virtual(v6=False)
    back = time.monotonic()
    rig.wait_online()
    rig.note(f"address back -> 220 on both: {(time.monotonic() - back) * 1000:.0f} ms")
    before = len(ledger.promised)
    wait_until(lambda: len(ledger.promised) > before + 30, 20, "service did not resume")
    ledger.stop()
    arrived = ledger.settle(sink, 60)
    doubles = sum(number - 1 for number in arrived.values())
    rig.note(f"{len(ledger.promised)} promised, all arrived, {doubles} twice")
    expect(doubles <= 40, f"{doubles} doubles: more than two takings of 20 slots")
    no_foreign_source(sink, {VIRTUAL}, NETWORK_NAME)


def scenario_the_audit_net_holds(rig: Rig) -> None:
    """The net under every MTA of the rig sees a socket that is opened past the doors."""
    rig.online()
    past_the_doors = "import socket; socket.create_connection(('10.9.0.3', 2526), 1)"
    rig.inside("node", [sys.executable, "-c", past_the_doors], env=rig.environment(), check=False)
    seen = rig.breaches()
    expect("socket.connect ('10.9.0.3', 2526)" in seen, f"the net saw only {seen!r}")
    expect(len(seen.splitlines()) == 1, f"the MTA itself fell into the net: {seen}")
    os.unlink(rig.audit)


def _mail_sockets(rig: Rig) -> list[str]:
    lines = rig.sockets("node", "( sport = :25 or dport = :25 )")
    return [line for line in lines if not line.startswith(("TIME-WAIT", "SYN-RECV"))]


def scenario_sockets_are_armed(rig: Rig) -> None:
    """Each socket of mail that the running process has carries the options that were configured, and none may be bound to an address that is not here."""
    rig.online(
        cluster="tcp-timeout: 61s\ntcp-keepalive: 31s\ntcp-keepalive-interval: 11s\n"
        "tcp-keepalive-count: 4"
    )
    mute = rig.raw_socket("peer", socket.AF_INET)
    mute.bind((PEER, 25))
    mute.listen(5)
    with rig.connect("peer", VIRTUAL, 25) as client:
        expect(client.recv(200).startswith(b"220"), "no greeting")
        source(rig, 1)
        wait_until(
            lambda: rig.sockets("node", "state", "established", "dport", "= :25"),
            10,
            "nothing is sent to the mute bridgehead",
        )
        found = {"listening": 0, "accepted": 0, "connected": 0}
        for one in borrowed(rig.process().pid):
            with one:
                if one.family not in {socket.AF_INET, socket.AF_INET6} or (
                    one.type != socket.SOCK_STREAM
                ):
                    continue
                kind = _kind(one)
                found[kind] += 1
                _armed(one, kind)
    rig.note(f"sockets looked at: {found}")
    expect(all(found.values()), f"not every kind was seen: {found}")


def _kind(one: socket.socket) -> str:
    if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "listening"
    return "accepted" if one.getsockname()[1] == 25 else "connected"


def _armed(one: socket.socket, kind: str) -> None:
    where = f"{kind} {one.getsockname()[:2]}"
    expect(one.getsockname()[0] in {VIRTUAL, VIRTUAL6}, f"{where} is not the virtual server's")
    tcp, of = socket.IPPROTO_TCP, one.getsockopt
    wanted = {
        "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        "TCP_USER_TIMEOUT": (tcp, socket.TCP_USER_TIMEOUT, 61_000),
        "TCP_KEEPIDLE": (tcp, socket.TCP_KEEPIDLE, 31),
        "TCP_KEEPINTVL": (tcp, socket.TCP_KEEPINTVL, 11),
        "TCP_KEEPCNT": (tcp, socket.TCP_KEEPCNT, 4),
        "IP_BIND_ADDRESS_NO_PORT": (socket.IPPROTO_IP, 24, int(kind == "connected")),
        "IP_FREEBIND": (socket.IPPROTO_IP, 15, 0),
        "IP_TRANSPARENT": (socket.IPPROTO_IP, 19, 0),
    }
    if one.family == socket.AF_INET6:
        wanted["IPV6_FREEBIND"] = (socket.IPPROTO_IPV6, 78, 0)
        wanted["IPV6_TRANSPARENT"] = (socket.IPPROTO_IPV6, 75, 0)
    for name, (level, option, value) in wanted.items():
        expect(of(level, option) == value, f"{where}: {name} is {of(level, option)}, not {value}")
    linger = struct.unpack("ii", of(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    expect(linger == (1, 0), f"{where}: SO_LINGER is {linger}")
