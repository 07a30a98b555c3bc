"""XCLIENT: Debian's nginx and swaks name clients to us, and a private Postfix is asked the same."""

from __future__ import annotations

from base64 import b64encode

from tests.rig.ground import PEER, VIRTUAL, expect, wait_until
from tests.rig.nginx import OPEN, WITH_LOGIN, nginx
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink, swaks
from tests.rig.postfix import Postfix

FRIEND, STRANGER = "10.9.0.77", "198.51.100.77"
NAME = "spike.example.net"
OFFERED = f"xclient-from: [{PEER}/32]"
_PORT = 2600

DIALOGUES: tuple[tuple[str, ...], ...] = (
    ("XCLIENT NAME=spike.example.net ADDR=168.100.189.2", "EHLO spike", "MAIL FROM:<a@x.net>"),
    ("EHLO proxy", "XCLIENT ADDR=168.100.189.2", "XCLIENT ADDR=168.100.189.3"),
    ("EHLO proxy", "XCLIENT HELO=spike PROTO=ESMTP", "MAIL FROM:<a@x.net>", "XCLIENT PORT=1"),
    ("xclient name=[tempunavail] addr=ipv6:2001:db8::2 port=65535", "EHLO spike"),
    ("XCLIENT NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE]", "EHLO x"),
    ("XCLIENT DESTADDR=192.0.2.9 DESTPORT=2525", "EHLO spike", "MAIL FROM:<a@x.net>", "RSET"),
    ("XCLIENT PORT=40001", "XCLIENT HELO=spike", "XCLIENT LOGIN=[UNAVAILABLE]", "EHLO x"),
    ("EHLO proxy", "MAIL FROM:<a@x.net>", "XCLIENT ADDR=168.100.189.2", "RSET"),
    ("XCLIENT", "XCLIENT ADDR", "XCLIENT ADDR=", "XCLIENT =1", "EHLO x"),
    ("XCLIENT ADDR=192.0.2.256", "XCLIENT ADDR=2001:db8::1", "XCLIENT ADDR=[192.0.2.1]", "EHLO x"),
    ("XCLIENT NAME=192.0.2.1", "XCLIENT NAME=-bad-.example", "XCLIENT PORT=smtp", "EHLO x"),
    ("XCLIENT NAME=a_b.c LOGIN=anna PROTO=esmtp HELO=we+2Bird", "MAIL FROM:<a@x.net>"),
    ("XCLIENT LOGIN=anna+b@example.net HELO=a=b", "MAIL FROM:<a@x.net>", "RSET"),
    ("XCLIENT PORT=000025", "XCLIENT HELO=a b", "XCLIENT DESTADDR=mx", "XCLIENT DESTPORT=-1"),
    ("XCLIENT PROTO=LMTP", "XCLIENT FOO=bar", f"XCLIENT HELO={'x' * 256}", "EHLO x"),
)  # fmt: skip
"""What a proxy says, line by line."""


def scenario_swaks(rig: Rig) -> None:
    """A client that swaks names is who counts: for the relay rule, the log and Received; with a login it may relay."""
    rig.online(listener=OFFERED)
    sink = Sink(rig).start()
    to = ("--server", VIRTUAL, "--from", "sender@example.net", "--to", "user@example.com")
    who = ("--xclient-name", NAME, "--xclient-port", "4711", "--xclient-destaddr", "192.0.2.9")
    said = swaks(rig, *to, *who, "--xclient-addr", FRIEND)
    expect("XCLIENT NAME=" in said and "queued as" in said, f"a friend: {said}")
    named = f"{NAME}[{FRIEND}]"
    line = f"XCLIENT from unknown[{PEER}]: client={named}:4711, destination=192.0.2.9"
    rig.wait_log(line)
    rig.wait_log(f": client={named}, vip={VIRTUAL}")
    rig.wait_log(f"disconnect from {named} ehlo=2 xclient=1 mail=1 rcpt=1 data=1 quit=1 commands=7")

    said = swaks(rig, *to, *who, "--xclient-addr", STRANGER, check=False)
    expect("554 5.7.1" in said and "queued as" not in said, f"a stranger: {said}")
    rig.wait_log(f"reject: RCPT from {NAME}[{STRANGER}]: 554")

    said = swaks(rig, *to, "--xclient-addr", STRANGER, "--xclient-login", "anna+b@example.net")
    expect("queued as" in said, f"a stranger with a login: {said}")
    rig.wait_log("sasl_method=XCLIENT, sasl_username=anna+b@example.net")

    split = ("--xclient-helo", "far.example.net", "--xclient-proto", "ESMTP", "--xclient-delim")
    said = swaks(rig, *to, *split, "--xclient-addr", "IPV6:2001:db8::77", check=False)
    expect(said.count("XCLIENT ") >= 2 and "554 5.7.1" in said, f"in two commands: {said}")
    rig.wait_log("from unknown[2001:db8::77]")

    wait_until(lambda: sink.count() == 2, 10, "the messages did not arrive")
    texts = "".join(message.text for message in sink.messages())
    expect(f"from swaks.example.net ({NAME} [{FRIEND}])" in texts, f"Received says {texts[:900]}")
    expect("with ESMTPA" in texts, "Received does not say that somebody was known")
    expect("192.0.2.9" not in texts, "an address of somebody else's came into a message")


def scenario_nginx(rig: Rig) -> None:
    """Behind nginx the client is who counts: log, Received and relay rule go by it, and its login by nginx's word."""
    rig.online(listener=OFFERED)
    sink = Sink(rig).start()
    for address in (FRIEND, "198.51.100.1", STRANGER):
        rig.ip("peer", "addr", "add", f"{address}/24", "dev", "eth0")
    nginx(rig)
    friend = Client(rig, PEER, OPEN, source=FRIEND)
    friend.hello()
    said = friend.send("friend")
    expect(said.startswith(b"250"), f"a friend hears {said!r}")
    rig.wait_log(f": client=unknown[{FRIEND}], vip={VIRTUAL}")
    stranger = Client(rig, PEER, OPEN, source=STRANGER)
    stranger.hello()
    said = stranger.send("stranger")
    expect(said.startswith(b"554 5.7.1"), f"a stranger hears {said!r}")
    rig.wait_log(f"reject: RCPT from unknown[{STRANGER}]: 554")
    known = Client(rig, PEER, WITH_LOGIN, source=STRANGER)
    known.hello()
    said = known.say(b"AUTH PLAIN " + b64encode(b"\0anna+b@example.net\0secret"))
    expect(said.startswith(b"235"), f"nginx answers {said!r}")
    said = known.send("known")
    expect(said.startswith(b"250"), f"a stranger with a login hears {said!r}")
    rig.wait_log("sasl_method=XCLIENT, sasl_username=anna+b@example.net")
    wait_until(lambda: sink.count() == 2, 10, "the messages did not arrive")
    helo = f"Received: from client.example.net ([{FRIEND}])"
    expect(any(helo in message.text for message in sink.messages()), f"no {helo!r} arrived")


def scenario_not_offered(rig: Rig) -> None:
    """From anywhere else it is 550, and EHLO does not name it."""
    rig.online(listener="xclient-from: [10.9.0.5/32]")
    client = Client(rig)
    client.reply()
    expect(b"XCLIENT" not in client.say(b"EHLO x"), "XCLIENT is offered to anybody")
    said = client.say(b"XCLIENT ADDR=127.0.0.1")
    expect(said.startswith(b"550 5.7.0"), f"anybody hears {said!r}")


def scenario_as_postfix(rig: Rig) -> None:
    """Whatever a proxy says, it hears the same codes from us as from Postfix."""
    rig.online(listener=OFFERED)
    Postfix(
        rig,
        f"{PEER}:{_PORT}",
        myhostname="postfix.example.net",
        inet_interfaces=PEER,
        inet_protocols="all",
        mynetworks="10.9.0.0/24",
        smtpd_tls_security_level="none",
        smtpd_authorized_xclient_hosts=PEER,
        smtpd_helo_required="yes",
    ).start()
    for dialogue in DIALOGUES:
        ours = _codes(Client(rig, VIRTUAL, 25, source=PEER), dialogue)
        theirs = _codes(Client(rig, PEER, _PORT, source=PEER), dialogue)
        expect(ours == theirs, f"{dialogue}: we say {ours}, Postfix {theirs}")
    rig.note(f"{sum(map(len, DIALOGUES))} lines were answered as Postfix does")


def _codes(client: Client, dialogue: tuple[str, ...]) -> list[bytes]:
    """The greeting's, and one for each line."""
    codes = [client.reply()[:3]]
    codes += [client.say(line.encode())[:3] for line in dialogue]
    client.close()
    return codes
