"""Behind Debian's haproxy: it names the client, and the client is who counts; its socket is who is reset."""

from __future__ import annotations

import os
import time

from tests.rig.ground import (
    PEER,
    UNPACKED,
    VIRTUAL,
    Ground,
    Process,
    expect,
    peer_environment,
    wait_until,
)
from tests.rig.node import Rig
from tests.rig.pair import Pair
from tests.rig.peers import Client, Sink

BALANCER = "10.9.0.5"
"""What haproxy speaks to us from; it lies in `relay-from`, as the whole net of the rig does."""
FRIEND, STRANGER = "10.9.0.77", "198.51.100.77"
BEHIND = f"proxy-from: [{BALANCER}/32, {VIRTUAL}/32]"
_ONE, _TWO, _NONE = 2501, 2502, 2503
"""The ports where haproxy sends on with a header of version 1, of version 2, and with none."""


def scenario_client_is_named(rig: Rig) -> None:
    """Behind send-proxy and send-proxy-v2 log, Received and the relay rule go by the client; checks pass."""
    rig.online(listener=BEHIND)
    haproxy(rig)
    sink = Sink(rig).start()
    for port in (_ONE, _TWO):
        friend = Client(rig, PEER, port, source=FRIEND)
        expect(friend.hello().startswith(b"220"), f"port {port}: a friend is not greeted")
        answer = friend.send(f"friend-{port}")
        expect(answer.startswith(b"250"), f"port {port}: a friend hears {answer!r}")
        rig.wait_log(f"connect from unknown[{FRIEND}] vip={VIRTUAL}")
        stranger = Client(rig, "198.51.100.1", port, source=STRANGER)
        stranger.hello()
        answer = stranger.send(f"stranger-{port}")
        expect(answer.startswith(b"554"), f"port {port}: a stranger hears {answer!r}")
        rig.wait_log(f"reject: RCPT from unknown[{STRANGER}]: 554")
        friend.close()
        stranger.close()
    wait_until(lambda: sink.count() == 2, 10, "the friends' messages did not arrive")
    for message in sink.messages():
        ours = f"Received: from client.example.net ([{FRIEND}])"
        expect(ours in message.text, f"no {ours!r} in {message.text[:600]!r}")
    expect(f" proxy={BALANCER}:" in rig.log(), "the log does not say by which balancer")
    # Its checks connect, say that they stand for themselves, and are served: haproxy sees us up.
    rig.wait_log(f"connect from unknown[{BALANCER}]")
    expect("is in proxy-from, but" not in rig.log(), "the log complains about a good header")
    probe = rig.command("probe", "--level", "10")
    expect(f"{VIRTUAL} port 25 greets" in probe.stdout, f"the probe says {probe.stdout!r}")


def scenario_no_header(rig: Rig) -> None:
    """A balancer without a header is reset and named once; a header from elsewhere is a wrong command."""
    rig.online(listener=BEHIND)
    haproxy(rig, checks=False)
    for _ in range(3):
        client = Client(rig, PEER, _NONE, source=FRIEND)
        try:
            said = client.say(b"EHLO evil.example.net")
        except ConnectionResetError:
            said = b""
        expect(not said, f"without a header we say {said!r}")
    rig.wait_log(f"{BALANCER} is in proxy-from, but did not begin with a PROXY header")
    lines = [line for line in rig.log().splitlines() if "is in proxy-from" in line]
    expect(len(lines) == 1, f"the log has {len(lines)} lines of one flood")
    expect("evil" not in rig.log(), "the log has what was said without a header")
    forger = Client(rig)
    forger.reply()
    answer = forger.say(b"PROXY TCP4 127.0.0.1 10.9.0.100 4711 25")
    expect(answer.startswith(b"500"), f"a header from elsewhere hears {answer!r}")
    expect("unknown[127.0.0.1]" not in rig.log(), "somebody was taken for loopback")


def scenario_takeover_releases(pair: Pair) -> None:
    """A new owner resets the balancer's socket, the client behind it hears so within seconds, and is the one
    whom the in-doubt list names.
    """
    pair.online(cluster="drain: 1s", listener=BEHIND)
    haproxy(pair, checks=False)
    waiting = Client(pair, PEER, _TWO, timeout=30, source=FRIEND)
    waiting.hello()
    name = waiting.send("unread").split()[-1].decode()
    waiting.say(b"MAIL FROM:<sender@example.net>")
    pair["a"].wait_log(f"connect from unknown[{FRIEND}]")
    time.sleep(1.5)  # the journal rides on the next heartbeat
    stopped = pair.freeze("a")
    pair.take("a")
    begun = time.monotonic()
    pair.add_virtual(node="b")
    try:
        said = waiting.socket.recv(1000)
    except ConnectionResetError:
        said = b""
    took = time.monotonic() - begun
    expect(not said, f"the client was told {said!r}")
    expect(took < 3, f"the client waited {took:.1f} s")
    pair.note(
        f"the client behind haproxy was released {took * 1000:.0f} ms after the address moved"
    )
    pair.wait_owner("b")
    listed = pair["b"].command("queue", "in-doubt").stdout
    row = next((line for line in listed.splitlines() if name in line), "")
    expect(f" {FRIEND} via {BALANCER}:" in row, f"the in-doubt list says {listed}")
    log = pair["b"].log()
    told = next((line for line in log.splitlines() if f"{name}: in doubt: " in line), "")
    expect(f" peer={FRIEND}," in told and f" via={BALANCER}:" in told, f"the log says {told!r}")
    again = Client(pair, PEER, _TWO, source=FRIEND)
    expect(again.hello().startswith(b"220"), "the new owner does not greet behind the balancer")
    pair.thaw(stopped)
    wait_until(lambda: pair["a"].state() == "standby", 10, "the former owner is no standby")


def haproxy(ground: Ground, *, checks: bool = True) -> Process:
    """In the peer's namespace, with clients of both kinds there, too."""
    for address in (f"{BALANCER}/24", f"{FRIEND}/24", "198.51.100.1/24", f"{STRANGER}/24"):
        ground.ip("peer", "addr", "add", address, "dev", "eth0")
    lines = [
        "global",
        "  maxconn 100",
        "defaults",
        "  mode tcp",
        "  timeout connect 5s",
        "  timeout client 60s",
        "  timeout server 60s",
    ]
    for port, how in ((_ONE, "send-proxy"), (_TWO, "send-proxy-v2"), (_NONE, "")):
        check = " check inter 500 check-send-proxy" if checks and how else ""
        lines += [
            f"listen at-{port}",
            f"  bind :{port}",
            *(["  option smtpchk EHLO check.example.net"] if check else []),
            f"  server mta {VIRTUAL}:25 source {BALANCER} {how}{check}",
        ]
    path = os.path.join(ground.directory, "haproxy.cfg")
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    argv = [os.path.join(UNPACKED, "usr/sbin/haproxy"), "-db", "-f", path]
    started = ground.start("haproxy", "peer", argv, env=peer_environment())
    wait_until(
        lambda: any(f":{_NONE} " in line for line in ground.sockets("peer", "state", "listening")),
        5, "haproxy does not listen",
    )  # fmt: skip
    return started
