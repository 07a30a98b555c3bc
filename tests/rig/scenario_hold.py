"""`in-doubt: hold`: what may have arrived is sent again when an operator says so, and not before."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections import Counter
from typing import Any

from tests.rig.ground import PEER, VENV_BIN, expect, wait_until
from tests.rig.pair import Pair, Supervised
from tests.rig.peers import Client, CrookedServer
from tests.rig.scenario_failover import GRACE

HUB = f"""
    - name: hub
      kind: smtp
      bridgeheads: ["{PEER}:25"]
      address-spaces: [{{domain: "*", cost: 10}}]
      in-doubt: hold
"""
NOTHING_SECONDS = 3.0
"""Three times what a message waits for its next try in the rig."""


class Swallowing:
    """Takes every message whole. While `swallows`, no final dot is answered."""

    def __init__(self, pair: Pair) -> None:
        self.swallows = True
        self.taken: Counter[str] = Counter()
        """By the message's own id."""
        self._server = CrookedServer(pair, self._serve)

    @property
    def connections(self) -> int:
        return self._server.connections

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(b"220 swallowing.example.net ESMTP\r\n")
        unread = b""
        while True:
            line, unread = _until(connection, unread, b"\r\n")
            verb = line[:4].upper()
            if verb == b"DATA":
                connection.sendall(b"354 Go on\r\n")
                content, unread = _until(connection, unread, b"\r\n.\r\n")
                self._take(content)
                if self.swallows:
                    threading.Event().wait(60)
            connection.sendall(b"221 Bye\r\n" if verb == b"QUIT" else b"250 Ok\r\n")

    def _take(self, content: bytes) -> None:
        found = re.search(rb"(?im)^Message-ID: <(\w+)@", content)
        self.taken[found[1].decode() if found else repr(content[:200])] += 1


def _until(connection: socket.socket, unread: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """What stands before the mark, and what was read behind it. @raise OSError: it never came."""
    while mark not in unread:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed by the MTA")
        unread += more
    found, _, rest = unread.partition(mark)
    return found, rest


def scenario_released_by_an_operator(pair: Pair) -> None:
    """After two kills the message whose reply was lost lies held, named, and is sent once more on release."""
    far = Swallowing(pair)
    pair.online(cluster=GRACE, connectors=HUB)
    client = Client(pair)
    client.hello()
    accepted = client.send("doubtful")
    expect(accepted.startswith(b"250"), f"the message was not taken: {accepted!r}")
    wait_until(lambda: far.taken["doubtful"], 10, "the far end never had the message")
    pair.kill("a")  # after the final dot; the far end has it whole, and its reply never came
    client.close()
    far.swallows = False
    moved(pair, "b")
    b = pair["b"]
    queue_id = held(b)
    expect(queue_id.encode() in accepted, f"{queue_id} is held, and {accepted!r} was accepted")
    b.wait_log(f"{queue_id}: in doubt: side=outbound")
    b.wait_log(f"{queue_id}: held: it may have been delivered already")

    # New mail passes it: it is held, not stuck behind anything.
    fresh = Client(pair)
    fresh.hello()
    expect(fresh.send("fresh").startswith(b"250"), "the new owner takes no mail")
    fresh.say(b"QUIT")
    fresh.close()
    wait_until(lambda: far.taken["fresh"], 10, "new mail does not pass a message that is held")
    nothing_is_sent(far, b, queue_id)

    # A further takeover leaves the decision to the operator, too.
    pair.kill("b")
    moved(pair, "a")
    a = pair["a"]
    expect(held(a) == queue_id, "another message is held after the second takeover")
    nothing_is_sent(far, a, queue_id)

    said = a.command("queue", "release", queue_id).stdout
    expect("release: 1 message" in said, f"releasing says {said!r}")
    begun = time.monotonic()
    wait_until(lambda: far.taken["doubtful"] == 2, 10, "the released message is not sent")
    took = time.monotonic() - begun
    wait_until(lambda: not doubts(a), 5, "it is still in doubt")
    wait_until(
        lambda: "Mail queue is empty" in mailq(a), 5, "the queue is not empty after the release"
    )
    time.sleep(2.0)
    expect(far.taken == {"doubtful": 2, "fresh": 1}, f"the far end took {dict(far.taken)}")
    shown = a.command("queue", "show", queue_id, check=False)
    expect(shown.returncode != 0, f"it is still queued: {shown.stdout[:300]}")
    pair.note(f"held over two takeovers, sent once {took * 1000:.0f} ms after its release")


def moved(pair: Pair, to: str) -> None:
    pair.move(to)
    pair.wait_owner(to)


def held(node: Supervised) -> str:
    """The queue id of the one message that is in doubt and held, by each of the operator's lists."""
    wait_until(
        lambda: any(doubt["then"] == "held until it is released" for doubt in doubts(node)),
        10,
        "nothing in doubt is held",
        step=0.2,
    )
    (doubt,) = doubts(node)
    queue_id = str(doubt["queue_id"])
    expect(f"{PEER}" in doubt["peer"], f"the list names another peer: {doubt}")
    expect(doubt["recipients"] == ["doubtful@example.com"], f"other recipients: {doubt}")
    lines = node.command("queue", "in-doubt").stdout.splitlines()
    expect(
        any(queue_id in line and "held until it is released" in line for line in lines),
        f"`mta queue in-doubt` says {lines}",
    )
    expect(f"{queue_id}!" in mailq(node), f"`mta-mailq` marks no hold: {mailq(node)!r}")
    return queue_id


def nothing_is_sent(far: Swallowing, node: Supervised, queue_id: str) -> None:
    """For some time the far end is left alone, and the message stays where it is."""
    before = far.taken.copy(), far.connections
    expect(far.taken["doubtful"] == 1, f"the far end took it {far.taken['doubtful']} times")
    time.sleep(NOTHING_SECONDS)
    after = far.taken.copy(), far.connections
    expect(before == after, f"held, and yet {before} became {after}")
    expect(f"{queue_id}!" in mailq(node), "it left the queue by itself")


def doubts(node: Supervised) -> list[dict[str, Any]]:
    """The outbound side of `mta queue in-doubt`."""
    asked = node.command("--json", "queue", "in-doubt", check=False)
    found = [json.loads(line) for line in asked.stdout.splitlines()]
    expect(asked.returncode == 0, f"`mta queue in-doubt` fails: {asked.stdout} {asked.stderr}")
    return [doubt for doubt in found if doubt["side"] == "outbound"]


def mailq(node: Supervised) -> str:
    argv = [os.path.join(VENV_BIN, "mta-mailq"), "--socket", node.control]
    return str(node.ground.inside(node.namespace, argv).stdout)
