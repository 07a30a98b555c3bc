"""A new owner makes itself known: neighbours learn where the address is, and waiting peers begin anew.

Nobody but the MTA announces anything here: the rig only moves the address.
"""

from __future__ import annotations

import socket
import threading
import time

from tests.rig.ground import VIRTUAL, VIRTUAL6, expect, wait_until
from tests.rig.pair import Pair
from tests.rig.peers import Client, CrookedServer


def scenario_neighbours_learn(pair: Pair) -> None:
    """A peer that knew the former owner's hardware address finds the new owner at once, both families."""
    pair.online()
    for host in (VIRTUAL, VIRTUAL6):
        expect(pair["a"].greeting(host).startswith(b"220"), f"no 220 from {host}")
    before = {host: _neighbour(pair, host) for host in (VIRTUAL, VIRTUAL6)}
    pair.freeze("a")
    pair.take("a")
    pair.add_virtual(node="b")
    for host in (VIRTUAL, VIRTUAL6):
        seconds = wait_until(
            lambda host=host: _greets(pair, host),  # type: ignore[misc]
            5, f"{host} is not found at the new owner", step=0.01,
        )  # fmt: skip
        pair.note(f"{host}: 220 by the new owner after {seconds * 1000:.0f} ms")
        expect(_neighbour(pair, host) != before[host], f"{host} is still known at the old node")
    pair.thaw(pair.process("a"))


def _greets(pair: Pair, host: str) -> bool:
    """A new connection each time, given up before its SYN would be sent again."""
    try:
        with pair.connect("peer", host, 25, 0.2) as made:
            return made.recv(100).startswith(b"220")
    except OSError:
        return False


def _neighbour(pair: Pair, host: str) -> str:
    """The hardware address that the peer knows for `host`."""
    words = pair.inside("peer", ["ip", "neigh", "show", host]).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def scenario_waiting_peers_are_released(pair: Pair) -> None:
    """Peers that wait for a reply of the former owner, or for its next octet, are reset in a second."""
    silent = CrookedServer(pair, _silent_after_the_dot)
    pair.online(queue="destination-retry: 1s\nlifetime: 1h", cluster="drain: 1s")
    sending = Client(pair)
    sending.hello()
    expect(sending.send("one").startswith(b"250"), "the first message was not taken")
    wait_until(lambda: _WAITING, 10, "nothing waits for the far end's reply")
    waiting = Client(pair, timeout=60)
    waiting.hello()
    for line in (b"MAIL FROM:<a@example.net>", b"RCPT TO:<b@example.com>", b"DATA"):
        waiting.say(line)
    stopped = pair.freeze("a")
    waiting.socket.sendall(b"Subject: two\r\n\r\nno reply\r\n.\r\n")
    ends: dict[str, float] = {}
    threads = [
        threading.Thread(target=_until_reset, args=(name, sock, ends), daemon=True)
        for name, sock in (("inbound", waiting.socket), ("outbound", _WAITING[0]))
    ]
    for thread in threads:
        thread.start()
    pair.take("a")
    pair.add_virtual(node="b")
    pair.wait_owner("b")
    begun = time.monotonic()
    for thread in threads:
        thread.join(5)
    expect(len(ends) == 2, f"only {sorted(ends)} were released within 5 s")
    for name, at in sorted(ends.items()):
        pair.note(f"{name} peer reset {max(0.0, at - begun) * 1000:.0f} ms after the new 220")
        expect(at - begun < 1.5, f"the {name} peer waited for {at - begun:.1f} s")
    pair.thaw(stopped)
    wait_until(lambda: pair["a"].state() == "standby", 10, "the former owner is no standby")
    expect(pair.process("a").pid == stopped.pid, "the former owner did not begin anew by itself")
    expect(silent.connections >= 1, "the far end was never reached")
    expect(pair["b"].status()["in_doubt"], "the message without a reply is not in doubt")


_WAITING: list[socket.socket] = []


def _silent_after_the_dot(connection: socket.socket) -> None:
    """Takes a message whole and never answers its final dot."""
    connection.sendall(b"220 silent.example.net ESMTP\r\n")
    received = b""
    answered = 0
    while b"\r\n.\r\n" not in received:
        received += connection.recv(65536)
        for line in received.split(b"\r\n")[answered:-1]:
            answered += 1
            if line[:4].upper() in {b"EHLO", b"MAIL", b"RCPT"}:
                connection.sendall(b"250 Ok\r\n")
            elif line.upper() == b"DATA":
                connection.sendall(b"354 Go on\r\n")
    _WAITING.append(connection)
    threading.Event().wait(60)


def _until_reset(name: str, waits: socket.socket, ends: dict[str, float]) -> None:
    waits.settimeout(30)
    try:
        if waits.recv(1000) == b"":
            return  # an orderly end would be a reply of a kind; this is none
    except ConnectionResetError:
        ends[name] = time.monotonic()
    except OSError:
        pass
