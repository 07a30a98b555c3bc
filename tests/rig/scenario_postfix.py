"""Debian's Postfix behind us: what senders ask of reports, and addresses beyond ASCII, reach it."""

from __future__ import annotations

from tests.rig.ground import PEER, expect
from tests.rig.node import Rig
from tests.rig.peers import Client
from tests.rig.postfix import Keeper, Kept

_BY_PREFERENCE = f"""
- name: hub
  kind: smtp
  bridgeheads: ["{PEER}:2525", {{host: {PEER}, port: 25, preference: 20}}]
  address-spaces: [{{domain: "*"}}]
"""
_SENDER, _USER = "josé@bücher.example", "用户@例え.jp"


def scenario_asked(rig: Rig) -> None:
    """A sender's DSN parameters and a message beyond ASCII lie in Postfix's queue as they came; the
    server without SMTPUTF8 is passed over, and for the one without DSN we say `relayed` ourselves.
    """
    postfix = Keeper(rig)
    postfix.start()
    rig.online(connectors=_BY_PREFERENCE)
    client = Client(rig)
    client.hello()
    _send(
        client,
        f"MAIL FROM:<{_SENDER}> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=QQ+2B1",
        f"RCPT TO:<{_USER}> NOTIFY=SUCCESS,DELAY ORCPT=utf-8;{_USER}",
    )
    _send(
        client,
        "MAIL FROM:<a@example.net> RET=FULL ENVID=plain",
        "RCPT TO:<b@example.com> NOTIFY=SUCCESS ORCPT=rfc822;B+2Bb@example.com",
    )
    client.close()
    beyond, plain, report = _sorted(postfix.wait(3))

    expect(beyond.records("sender") == [_SENDER], f"the sender is {beyond.records('sender')}")
    expect(beyond.records("recipient") == [_USER], f"it is for {beyond.records('recipient')}")
    said = beyond.records("named_attribute")
    # Postfix's flags: RET HDRS is 2, NOTIFY SUCCESS 2 and DELAY 8.
    for wanted in (
        *("envelope_id=QQ+1", "ret_flags=2", "notify_flags=10"),
        f"dsn_orig_rcpt=utf-8;{_USER}",
    ):
        expect(wanted in said, f"{wanted} is not among {said}")
    expect("with UTF8SMTP" in beyond.text, "its Received does not say how it came")

    # By the first server, which was told nothing of DSN.
    expect(plain.records("recipient") == ["b@example.com"], "the plain one is for somebody else")
    expect("envelope_id=" not in plain.text, "ENVID was said where DSN is not offered")
    expect(
        report.records("recipient") == ["a@example.net"],
        f"the report is for {report.records('recipient')}",
    )
    for wanted in (
        "Action: relayed",
        "Original-Envelope-Id: plain",
        "Original-Recipient: rfc822;B+b@example.com",
    ):
        expect(wanted in report.text, f"the report lacks {wanted!r}")


def _send(client: Client, *envelope: str) -> None:
    for line in (*envelope, "DATA"):
        answer = client.say(line.encode())
        expect(answer[:1] in b"23", f"{line} was answered {answer!r}")
    client.socket.sendall("Subject: grüße\r\n\r\nx\r\n.\r\n".encode())
    answer = client.reply()
    expect(answer.startswith(b"250"), f"the content was answered {answer!r}")


def _sorted(kept: list[Kept]) -> list[Kept]:
    """The message beyond ASCII, the plain one, and the report."""
    return sorted(
        kept, key=lambda one: ([_SENDER], ["a@example.net"], [""]).index(one.records("sender"))
    )
