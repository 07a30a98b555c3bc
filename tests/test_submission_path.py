"""Submission from end to end: a password file, a listener, the queue, and who may not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from argon2 import PasswordHasher
from twisted.trial.unittest import SynchronousTestCase

from mta.telemetry import Accepted
from mta.testing.lab import STRANGER, Lab, LabClient
from mta.transfer.identity import FAILURE_SECONDS

LISTENERS = """
listeners:
  - {kind: smtp, port: 25, relay-from: [192.0.2.0/24]}
  - {kind: submission, port: 587, auth: clear, tls: none, senders: login}
auth: {kind: passwords, password-file: PATH}
"""
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
SALT, ROUNDS = b"0123456789abcdef", 4096
CONTENT = b"From: <alice@example.net>\r\nSubject: x\r\n\r\nHello.\r\n"


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets)


def plain(user: str, password: str) -> bytes:
    return b"AUTH PLAIN " + b64(f"\0{user}\0{password}".encode())


FRONT = """
connectors:
  - name: smarthost
    kind: smtp
    bridgeheads: ["203.0.113.21:587"]
    auth: {{user: alice@example.net, password-file: {secret}, mechanisms: [{by}], plaintext: allow}}
    address-spaces: [{{domain: "*"}}]
"""
BACK = "virtual-server: {network-name: back.example.org, addresses: [203.0.113.21]}\n"
BEHIND = "203.0.113.30"
HUB_OF_BACK = """
connectors:
  - {name: hub, kind: smtp, bridgeheads: ["203.0.113.30:25"], address-spaces: [{domain: "*"}]}
"""


class SubmissionPathTests(SynchronousTestCase):
    def setUp(self) -> None:
        path = os.path.abspath(self.mktemp())
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, ROUNDS)
        stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        server = hmac.digest(salted, b"Server Key", "sha256")
        verifier = f"SCRAM-SHA-256${ROUNDS}:{b64(SALT).decode()}${b64(stored).decode()}:{b64(server).decode()}"
        with open(path, "w", encoding="ascii") as file:
            file.write(f"alice@example.net {CHEAP.hash('pencil')} {verifier}\n")
        os.chmod(path, 0o600)
        self.listeners = LISTENERS.replace("PATH", path)
        self.lab = Lab(more=self.listeners)

    def client(self) -> LabClient:
        return self.lab.client(STRANGER, 587)

    def test_plain(self) -> None:
        """A user's message is taken, completed, and delivered."""
        client = self.client()
        self.assertEqual(client.say(b"MAIL FROM:<alice@example.net>")[:9], b"530 5.7.0")
        self.assertEqual(client.say(plain("alice@example.net", "pencil"))[:9], b"235 2.7.0")
        answer = client.send(["you@x.example.net"], sender="alice@example.net", content=CONTENT)
        self.assertEqual(answer[:9], b"250 2.0.0")
        self.lab.advance(1)
        (message,) = self.lab.hub.messages
        self.assertIn(b" with ESMTPA\r\n", message.content)
        self.assertIn(b"\r\nMessage-ID: <", message.content)
        (accepted,) = [e for e in self.lab.owner.events if isinstance(e, Accepted)]
        self.assertEqual(accepted.sasl_username, "alice@example.net")

    def test_login(self) -> None:
        """LOGIN's two questions."""
        client = self.client()
        self.assertEqual(client.say(b"AUTH LOGIN"), b"334 " + b64(b"Username:") + b"\r\n")
        self.assertEqual(
            client.say(b64(b"alice@example.net")), b"334 " + b64(b"Password:") + b"\r\n"
        )
        self.assertEqual(client.say(b64(b"pencil"))[:9], b"235 2.7.0")

    def test_scram(self) -> None:
        """SCRAM-SHA-256: the password never travels, and the server proves itself as well."""
        client = self.client()
        bare = b"n=alice@example.net,r=fyko"
        first = client.say(b"AUTH SCRAM-SHA-256 " + b64(b"n,," + bare))
        self.assertEqual(first[:4], b"334 ")
        challenge = base64.b64decode(first[4:])
        nonce = dict(part.split(b"=", 1) for part in challenge.split(b","))[b"r"]
        final = b"c=biws,r=" + nonce
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", SALT, ROUNDS)
        key = hmac.digest(salted, b"Client Key", "sha256")
        said = bare + b"," + challenge + b"," + final
        signature = hmac.digest(hashlib.sha256(key).digest(), said, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        last = client.say(b64(final + b",p=" + b64(proof)))
        expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
        self.assertEqual(base64.b64decode(last[4:]), b"v=" + b64(expected))
        self.assertEqual(client.say(b"")[:9], b"235 2.7.0")

    def test_wrong_password(self) -> None:
        """It is refused late, without a reason, and the third time the association ends."""
        client = self.client()
        for last in (b"535 5.7.8", b"535 5.7.8", b"421 4.7.0"):
            self.assertEqual(client.say(plain("alice@example.net", "pen")), b"")
            self.lab.advance(FAILURE_SECONDS)
            self.assertEqual(client.peer.take()[:9], last)
        self.assertFalse(client.is_open)

    def test_another_sender(self) -> None:
        """With `senders: login` nobody writes under another's address."""
        client = self.client()
        client.say(plain("alice@example.net", "pencil"))
        self.assertEqual(client.say(b"MAIL FROM:<boss@example.net>")[:9], b"553 5.7.1")

    def test_port_25(self) -> None:
        """Where it is not offered nobody can say who he is."""
        client = self.lab.client(STRANGER)
        self.assertNotIn(b"AUTH", client.say(b"EHLO x"))
        self.assertEqual(client.say(plain("alice@example.net", "pencil"))[:3], b"502")

    def test_a_takeover_between(self) -> None:
        """Another node knows the same users."""
        self.lab.owner.revoke()
        self.lab.owner.restore()
        client = self.client()
        self.assertEqual(client.say(plain("alice@example.net", "pencil"))[:3], b"235")

    def smarthost(self, mechanism: str, password: str) -> tuple[Lab, Lab]:
        """Two bridgeheads: the first hands all its mail in at the second's submission listener."""
        secret = os.path.abspath(self.mktemp())
        with open(secret, "w", encoding="ascii") as file:
            file.write(password)
        os.chmod(secret, 0o600)
        front = Lab(more=FRONT.format(secret=secret, by=mechanism))
        more = BACK + self.listeners + HUB_OF_BACK
        return front, Lab(beside=front, hub=BEHIND, more=more)

    def test_our_own_initiator(self) -> None:
        """A connector with `auth` hands mail in here by each mechanism, under its user's name."""
        for mechanism in ("SCRAM-SHA-256", "PLAIN", "LOGIN"):
            front, back = self.smarthost(mechanism, "pencil")
            front.send(["you@example.com"], sender="alice@example.net", content=CONTENT)
            front.advance(1)
            (accepted,) = [e for e in back.owner.events if isinstance(e, Accepted)]
            self.assertEqual(
                (accepted.sasl_method, accepted.sasl_username), (mechanism, "alice@example.net")
            )
            self.assertEqual(len(back.hub.messages), 1)
            self.assertEqual(front.queue(), [])

    def test_our_own_initiator_with_a_wrong_password(self) -> None:
        """The mail waits, nothing is returned, and a line says whose password it is."""
        front, back = self.smarthost("PLAIN", "pen")
        front.send(["you@example.com"], sender="alice@example.net", content=CONTENT)
        front.advance(FAILURE_SECONDS + 1)
        (waiting,) = front.queue()
        self.assertEqual(str(waiting.envelope.sender), "alice@example.net")
        self.assertEqual(back.hub.messages, [])
        warned = [str(e) for e in front.owner.events if "smarthost" in str(e) and "535" in str(e)]
        self.assertNotEqual(warned, [])
        self.assertNotIn("pen'", str(warned))
