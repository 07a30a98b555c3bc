"""How urgent a message is, on the wire: through Debian's Postfix, which has no ear for it, between two
MTAs of ours and one by one; and the order in which a slow destination gets its mail.
"""

from __future__ import annotations

import os
import re

from tests.rig.behind import Behind
from tests.rig.ground import PEER, PEER6, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink
from tests.rig.postfix import Postfix

POSTFIX, OURS, LAST = 2525, 2526, 2527
"""Ports at the peer's address: Postfix takes port 25 of its own address for itself."""
_CHAIN = f"""
- name: postfix
  kind: smtp
  bridgeheads: ["{PEER}:{POSTFIX}"]
  address-spaces: [{{domain: through.example.com}}]
- name: ours
  kind: smtp
  priority-field: false
  bridgeheads: ["{PEER}:{OURS}"]
  address-spaces: [{{domain: "*"}}]
"""
_SLOW = f"""
- name: hub
  kind: smtp
  concurrency: 1
  bridgeheads: ["{PEER}:25"]
  address-spaces: [{{domain: "*"}}]
"""
LEVELS = (-9, -4, -2, 0, 2, 4, 6, 9)


def scenario_handed_on(rig: Rig) -> None:
    """A priority passes from one of ours to the other with MAIL, and through Postfix in the header
    field; behind both the message has one field, of the value that its client said. What a client
    writes into the field himself counts where MAIL says nothing.
    """
    sink = Sink(rig, port=LAST).start()
    behind = Behind(rig)
    behind.configure(
        name="behind.example.org",
        addresses=f'[{PEER}, "{PEER6}"]',
        resource="standalone",
        cluster="grace: 1s",
        listeners=f"""
        - kind: smtp
          port: {OURS}
          relay-from: [10.9.0.0/24]
          mt-priority: {{limit: 6}}
        """,
        connectors=f"""
        - name: last
          kind: smtp
          bridgeheads: ["{PEER}:{LAST}"]
          address-spaces: [{{domain: "*"}}]
        """,
        spool=os.path.join(behind.home, "spool"),
        store="reserve: 32MiB\nsegment-size: 8MiB\ninitialise: true",
    )
    behind.start()
    postfix = Postfix(
        rig,
        f"{PEER}:{POSTFIX}",
        myhostname="postfix.example.net",
        inet_interfaces=PEER,
        inet_protocols="ipv4",
        mynetworks="10.9.0.0/24",
        transport_maps=f"inline:{{ through.example.com=relay:[{PEER}]:{OURS} }}",
    ).start()
    rig.online(connectors=_CHAIN)
    client = Client(rig)
    client.hello()
    for way in ("through", "direct"):
        for said in LEVELS:
            _send(client, f" MT-PRIORITY={said}", f"p{said}@{way}.example.com")
        _send(client, "", f"none@{way}.example.com")
        _send(client, "", f"field@{way}.example.com", "MT-Priority: 5\r\n")
    client.close()
    count = 2 * len(LEVELS) + 4
    wait_until(
        lambda: len({message.recipients for message in sink.messages()}) == count,
        30,
        f"fewer than {count} messages arrived",
    )
    for message in sink.messages():
        (recipient,) = message.recipients
        name, _, way = recipient.strip("<>").partition("@")
        asked = {"none": 0, "field": 5}.get(name)
        if asked is None:
            asked = int(name[1:])
        kept = min(asked, 6)
        fields = re.findall(r"^MT-Priority: *(.*)$", message.text, re.MULTILINE)
        expect(fields == ([str(kept)] if kept else []), f"{recipient} came with {fields}")
        clauses = re.findall(r"PRIORITY (-?\d)", message.text)
        expect(clauses == [str(kept), str(asked)][2 * (not asked) :], f"{recipient}: {clauses}")
        expect(("postfix" in message.text) is way.startswith("through"), f"{recipient} went wrong")
    wait_until(
        lambda: behind.log().count("priority=6") == 4,
        10,
        "not all above the limit were lowered to it",
    )
    expect("status=bounced" not in postfix.log(), "Postfix returned something")
    behind.check_order()
    behind.end()


def scenario_order(rig: Rig) -> None:
    """Behind a server that takes a second for each message, the most urgent goes next, the oldest
    of the same first, whenever it came.
    """
    Sink(rig).start("-w", "1")
    rig.online(connectors=_SLOW)
    client = Client(rig)
    client.hello()
    sent = _mixed(client)
    client.close()
    order = _order(rig, len(sent))
    under_way = order[:2]  # one was being sent, and one was spoken for behind it
    rest = [one for one in _by_urgency(sent) if one not in under_way]
    expect(order[2:] == rest, f"the order is {order}, not {under_way + rest}")
    rig.note(f"{len(sent)} messages, one a second: {' '.join(order)}")


def scenario_order_after_a_crash(rig: Rig) -> None:
    """What was queued when the process was killed is served in the same order by the next one."""
    rig.online(connectors=_SLOW, queue="backoff: [2s]\ndestination-retry: 1s")
    client = Client(rig)
    client.hello()
    sent = _mixed(client)
    client.close()
    rig.wait_log("status=deferred")
    rig.process().kill()
    Sink(rig).start()
    rig.restart()
    order = _order(rig, len(sent))
    tried = sent[0]  # nobody was there: it waits for its own time
    order.remove(tried)
    expect(order == _by_urgency(sent[1:]), f"the order is {order}")


def _mixed(client: Client) -> list[str]:
    """Three messages of each level, the least urgent first, and then once more from the top."""
    sent = []
    for number, said in enumerate((*LEVELS, *reversed(LEVELS), *LEVELS)):
        sent.append(f"{said}.{number}")
        _send(client, f" MT-PRIORITY={said}", f"{said}.{number}@example.com")
    return sent


def _by_urgency(sent: list[str]) -> list[str]:
    return sorted(sent, key=lambda one: (-int(one.partition(".")[0]), sent.index(one)))


def _order(rig: Rig, count: int) -> list[str]:
    """The messages in the order in which they were delivered."""

    def found() -> list[str]:
        return re.findall(r"to=<(-?\d\.\d+)@example\.com>.* status=sent", rig.log())

    wait_until(lambda: len(found()) >= count, 60, f"fewer than {count} messages were delivered")
    return found()


def _send(client: Client, parameters: str, recipient: str, fields: str = "") -> None:
    for line in (f"MAIL FROM:<s@example.net>{parameters}", f"RCPT TO:<{recipient}>", "DATA"):
        answer = client.say(line.encode())
        expect(answer[:1] in b"23", f"{line} was answered {answer!r}")
    client.socket.sendall(f"{fields}Subject: {recipient}\r\n\r\nx\r\n.\r\n".encode())
    answer = client.reply()
    expect(answer.startswith(b"250"), f"the content was answered {answer!r}")
