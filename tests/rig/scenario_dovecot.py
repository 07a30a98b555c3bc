"""Debian's Dovecot says who a client is: by each of its mechanisms, and not while it is away."""

from __future__ import annotations

from base64 import b64decode, b64encode

from mta.testing.auth_suite import CLIENTS
from tests.rig.dovecot import Dovecot
from tests.rig.ground import expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink

PASSWORD = "correct horse battery"


def _authenticate(
    rig: Rig, mechanism: str, password: str, *, at_once: bool
) -> tuple[bytes, Client]:
    """The last reply of an exchange on port 587, and the association."""
    client = Client(rig, port=587)
    client.hello()
    words = CLIENTS[mechanism]("anna", password, at_once=at_once)
    first = next(words)
    line = f"AUTH {mechanism}".encode()
    said = client.say(line if first is None else line + b" " + b64encode(first))
    while said.startswith(b"334"):
        response = words.send(b64decode(said[4:]))
        said = client.say(b64encode(response or b""))
    return said, client


def scenario_dovecot_lets_in(rig: Rig) -> None:
    """PLAIN, LOGIN and SCRAM-SHA-256: who has the password may send, who has not may not; a client
    that leaves in the middle is no error in Dovecot's log; away is 454, and back is back.
    """
    sink = Sink(rig).start()
    dovecot = Dovecot(rig, {"anna": PASSWORD}).start()
    rig.online(
        listeners="- {kind: submission, port: 587, tls: none, auth: clear}",
        extra=f"auth: {{kind: dovecot, socket: {dovecot.socket},"
        " mechanisms: [SCRAM-SHA-256, PLAIN, LOGIN]}",
    )
    sent = 0
    for mechanism in CLIENTS:
        for at_once in (True, False):
            said, client = _authenticate(rig, mechanism, PASSWORD, at_once=at_once)
            expect(said.startswith(b"235"), f"{mechanism}, {at_once}: {said!r}")
            said = client.send(f"{mechanism.lower()}-{at_once}")
            expect(said.startswith(b"250"), f"{mechanism}: the message was answered {said!r}")
            sent += 1
            client.close()
        said, client = _authenticate(rig, mechanism, "wrong", at_once=True)
        expect(said.startswith(b"535 5.7.8"), f"{mechanism} with a wrong password: {said!r}")
        said = client.say(b"MAIL FROM:<sender@example.net>")
        expect(said.startswith(b"530"), f"who was refused may send: {said!r}")
        client.close()
    sink.wait(sent)

    client = Client(rig, port=587)
    client.hello()
    client.say(b"AUTH LOGIN")
    client.close()
    wait_until(lambda: not rig.sockets("node", "state", "established"), 10, "it is not closed")
    expect("Error" not in dovecot.log(), f"Dovecot complains: {dovecot.log()[-300:]}")

    dovecot.stop()
    said, client = _authenticate(rig, "PLAIN", PASSWORD, at_once=True)
    expect(said.startswith(b"454 4.7.0"), f"with Dovecot away: {said!r}")
    client.close()
    dovecot.start()
    said, client = _authenticate(rig, "PLAIN", PASSWORD, at_once=True)
    expect(said.startswith(b"235"), f"with Dovecot back: {said!r}")
    client.close()
