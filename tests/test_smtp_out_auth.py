"""A connector that says who it is: its file, its settings, its warnings, and mail under TLS."""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from typing import Any

from pydantic import ValidationError
from twisted.internet.protocol import Protocol

from mta.association.secret import LONGEST_PASSWORD
from mta.association.smtp_initiator import SmtpInitiator
from mta.association.smtp_settings import AuthSettings, SmtpConnectorSettings
from mta.config.errors import ConfigErrors
from mta.errors import TransientFailure
from mta.testing.executors import StepExecutor
from mta.testing.lab import HUB, Lab
from tests.test_smtp_out import GOOD, MAIL, SenderTestCase, envelope
from tests.test_tls import BACK, NAME, TlsTestCase

WHO = "connector 'hub' to mx.example.org[198.51.100.25]:25"
PLAIN = b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n"
ROUNDS = 4096


def secret(directory: str, text: str | bytes = "pencil\n", mode: int = 0o600) -> str:
    """The path of a file with a password."""
    path = os.path.join(directory, "secret")
    with open(path, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    os.chmod(path, mode)
    return path


class AuthTestCase(SenderTestCase):
    """A connector with credentials that may go without TLS, and a peer that the test speaks for."""

    hello = b"250-mx\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 AUTH PLAIN\r\n"

    def setUp(self) -> None:
        super().setUp()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.directory = directory
        self.path = secret(directory)
        self.connect()

    def connect(self, **keys: Any) -> None:
        auth = AuthSettings(user="user", password_file=self.path, plaintext="allow", **keys)
        settings = SmtpConnectorSettings(auth=auth, tls="none")
        self.kind = SmtpInitiator(settings, self.surroundings)

    def refused(self, opening: Any) -> TransientFailure:
        return self.failureResultOf(opening, TransientFailure).value

    def warning(self) -> str:
        (text,) = self.surroundings.notices("warning")
        self.assertNotIn("pencil", text)
        return text


class LettingInTests(AuthTestCase):
    def test_let_in(self) -> None:
        """Name and password first, then mail as always, without AUTH= in MAIL; nothing is logged."""
        opening = self.opening()
        self.reply(b"220 mx ESMTP\r\n")
        self.assertEqual(self.reply(self.hello), PLAIN)
        self.assertNoResult(opening)
        self.reply(b"235 2.7.0 In\r\n")
        sender = self.successResultOf(opening)
        preparing = sender.prepare("1", envelope(), (0,), 3)
        self.move()
        self.assertEqual(self.peer.take(), MAIL)
        self.reply(GOOD)
        self.assertEqual(self.successResultOf(preparing), ())
        self.assertEqual(self.surroundings.notices(), [])

    def test_wrong_credentials(self) -> None:
        """Mail waits (4.7.8), and one warning names connector and server, never the password."""
        opening = self.opening()
        self.reply(b"220 mx ESMTP\r\n")
        self.reply(self.hello)
        self.reply(b"535 5.7.8 pencil is wrong\r\n")
        failure = self.refused(opening)
        self.assertEqual((failure.code, failure.enhanced), (450, "4.7.8"))
        self.assertNotIn("pencil", str(failure))
        text = self.warning()
        self.assertTrue(text.startswith(f"{WHO}: not authenticated: 450 4.7.8 "), text)
        self.assertFalse(self.peer.is_open)

    def test_other_refusals(self) -> None:
        """Later is later, without a warning; a server without AUTH is one that an operator sees."""
        for hello, said, code, enhanced, warnings in (
            (self.hello, b"454 4.7.0 Later\r\n", 454, "4.7.0", 0),
            (self.hello, b"421 4.3.2 Bye\r\n", 421, "4.3.2", 0),
            (self.hello, b"538 5.7.11 Not without TLS\r\n", 450, "4.7.8", 1),
            (self.hello, b"334 !\r\n", 451, "4.7.0", 1),
            (b"250 mx\r\n", b"", 450, "4.7.0", 1),
            (b"250-mx\r\n250 AUTH NTLM\r\n", b"", 450, "4.7.0", 1),
        ):
            before = len(self.surroundings.notices("warning"))
            opening = self.opening()
            self.reply(b"220 mx ESMTP\r\n")
            self.reply(hello)
            if said:
                self.reply(said)
            failure = self.refused(opening)
            self.assertEqual((failure.code, failure.enhanced), (code, enhanced), said)
            self.assertEqual(len(self.surroundings.notices("warning")) - before, warnings, said)

    def test_never_without_tls(self) -> None:
        """Where plaintext is refused nothing of it leaves, though TLS was lost behind our back."""
        auth = AuthSettings(user="user", password_file=self.path)
        settings = SmtpConnectorSettings.model_construct(
            **SmtpConnectorSettings(tls="none").__dict__ | {"auth": auth}
        )
        self.kind = SmtpInitiator(settings, self.surroundings)
        opening = self.opening()
        self.reply(b"220 mx ESMTP\r\n")
        self.assertEqual(self.reply(self.hello), b"")
        self.assertEqual(self.refused(opening).enhanced, "4.7.11")


class FileTests(AuthTestCase):
    def test_read_for_each_association(self) -> None:
        """A new password holds for the next association, without a restart."""
        secret(self.directory, "crayon")
        opening = self.opening()
        self.reply(b"220 mx ESMTP\r\n")
        said = self.reply(self.hello)
        self.assertEqual(b64decode(said.split()[2]), b"\0user\0crayon")
        self.peer.say(b"421 Bye\r\n")
        self.move()
        self.refused(opening)

    def test_unusable(self) -> None:
        """A file that is gone, open to others or no single line of text is said by name; nobody is
        called, and mail waits until it is mended.
        """
        for text, mode, why in (
            (None, 0, "No such file"),
            ("pencil", 0o604, "can be read or written by others"),
            ("", 0o600, "is empty"),
            ("\n", 0o600, "is empty"),
            ("pencil\nuser\n", 0o600, "more than a password"),
            ("pen\0cil", 0o600, "more than a password"),
            (b"pencil\xff", 0o600, "is no UTF-8"),
            ("pencil" * LONGEST_PASSWORD, 0o600, "has more than"),
        ):
            self.setUp()
            if text is None:
                os.unlink(self.path)
            else:
                secret(self.directory, text, mode)
            failure = self.refused(self.opening())
            self.assertEqual(failure.enhanced, "4.3.5")
            self.assertNotIn(self.path, str(failure))
            self.assertEqual(self.peers, [])
            said = self.warning()
            self.assertTrue(said.startswith(WHO), said)
            self.assertIn(self.path, said)
            self.assertIn(why, said)
            secret(self.directory)
            opening = self.opening()
            self.reply(b"220 mx ESMTP\r\n")
            self.assertEqual(self.reply(self.hello), PLAIN)
            self.reply(b"235 In\r\n")
            self.successResultOf(opening)


class ScramTests(AuthTestCase):
    hello = b"250-mx\r\n250 AUTH PLAIN SCRAM-SHA-256\r\n"

    def setUp(self) -> None:
        super().setUp()
        self.executor = self.surroundings.executor = StepExecutor()
        self.connect()

    def begun(self) -> tuple[Any, bytes]:
        """An opening whose peer has heard who we are, and client-first-message-bare."""
        opening = self.opening()
        self.executor.run()  # the file
        self.move()
        self.reply(b"220 mx ESMTP\r\n")
        said = self.reply(self.hello)
        verb, name, first = said.split()
        self.assertEqual((verb, name), (b"AUTH", b"SCRAM-SHA-256"))
        return opening, b64decode(first).removeprefix(b"n,,")

    def challenge(self, bare: bytes) -> bytes:
        """server-first-message."""
        nonce = bare.partition(b"r=")[2]
        return b"r=%bSERVER,s=%b,i=%d" % (nonce, b64encode(b"salt"), ROUNDS)

    def test_both_prove_themselves(self) -> None:
        """The key is derived by a thread; the server finds our proof right, and gives its own."""
        opening, bare = self.begun()
        first = self.challenge(bare)
        self.assertEqual(self.reply(b"334 " + b64encode(first) + b"\r\n"), b"")
        self.executor.run()
        self.move()
        final = b64decode(self.peer.take())
        without_proof, _, proof = final.rpartition(b",p=")
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", b"salt", ROUNDS)
        signed = b",".join((bare, first, without_proof))
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        expected = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        self.assertEqual(b64decode(proof), expected)
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        verifier = b"v=" + b64encode(hmac.digest(server_key, signed, "sha256"))
        self.assertEqual(self.reply(b"334 " + b64encode(verifier) + b"\r\n"), b"\r\n")
        self.reply(b"235 2.7.0 In\r\n")
        self.successResultOf(opening)

    def test_a_nonce_for_each(self) -> None:
        """No two associations have the same nonce."""
        begun = [self.begun() for _ in range(3)]
        self.assertEqual(len({bare for _, bare in begun}), 3)
        for peer in self.peers:
            peer.transport.loseConnection()
        self.move()
        for opening, _ in begun:
            self.refused(opening)

    def test_an_end_while_a_key_is_derived(self) -> None:
        """Cancelled, cut off, revoked or late: the key that comes then is said to nobody."""
        ends: list[Any] = [
            lambda opening: opening.cancel(),
            lambda opening: self.peer.transport.loseConnection(),
            lambda opening: self.tenure.revoke(),
            lambda opening: self.clock.advance(300),
        ]
        for end in ends:
            self.setUp()
            opening, bare = self.begun()
            self.reply(b"334 " + b64encode(self.challenge(bare)) + b"\r\n")
            end(opening)
            self.move()
            self.failureResultOf(opening)
            self.executor.run()
            self.move()
            self.assertEqual(self.peer.take(), b"")
            self.assertFalse(self.peer.is_open)

    def test_no_thread(self) -> None:
        """Where no key can be derived the association ends, and mail waits."""
        opening, bare = self.begun()
        self.executor.stop()
        self.reply(b"334 " + b64encode(self.challenge(bare)) + b"\r\n")
        self.assertIn("no key could be derived", self.refused(opening).why)


class SettingsTests(AuthTestCase):
    def test_no_password_in_the_clear(self) -> None:
        """With TLS as a wish, or none, it has to be said that the password may go in the clear."""
        block = {"user": "user", "password-file": self.path}
        for tls in ("none", "opportunistic", "dane"):
            wrong = {"tls": tls, "auth": block}
            error = self.assertRaises(ValidationError, SmtpConnectorSettings.model_validate, wrong)
            for words in (f"tls: {tls}", "could go out without TLS", "tls: verify", "plaintext"):
                self.assertIn(words, str(error))
            allowed = {"tls": tls, "auth": block | {"plaintext": "allow"}}
            SmtpConnectorSettings.model_validate(allowed)
        for tls in ("require", "verify"):
            settings = SmtpConnectorSettings.model_validate({"tls": tls, "auth": block})
            assert settings.auth is not None
            self.assertEqual(settings.auth.plaintext, "refuse")
        self.assertRaises(ValidationError, SmtpConnectorSettings.model_validate, {"auth": block})

    def test_refused(self) -> None:
        """No name, no file, no mechanism or one that we have not: refused with its place."""
        good = {"user": "user", "password-file": self.path}
        for wrong in (
            {"user": ""}, {"user": "a\nb"}, {"password-file": "/nowhere/secret"},
            {"password-file": "secret"}, {"mechanisms": []}, {"mechanisms": ["CRAM-MD5"]},
            {"plaintext": "maybe"}, {"password": "pencil"},
        ):  # fmt: skip
            self.assertRaises(ValidationError, AuthSettings.model_validate, good | wrong)
        chosen = AuthSettings.model_validate(good | {"mechanisms": ["LOGIN"]})
        self.assertEqual(chosen.mechanisms, ("LOGIN",))

    def test_in_a_file(self) -> None:
        """The whole configuration says it with line and column."""
        text = f"""
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["{HUB}:25"]
    auth: {{user: user, password-file: {self.path}}}
    address-spaces: [{{domain: example.com}}]
"""
        error = self.assertRaises(ConfigErrors, Lab, more=text)
        self.assertRegex(str(error), r"lab\.yaml:\d+:\d+: connectors\[0\]: auth with")


class Smarthost(Protocol):
    """Takes STARTTLS, then AUTH PLAIN, then mail, and keeps what it hears, in the clear and under
    TLS.
    """

    def __init__(self, tls: Any, verdict: bytes) -> None:
        self.tls, self.verdict = tls, verdict
        self.clear: list[bytes] = []
        self.heard: list[bytes] = []
        self.is_secure = False
        self.is_content = False
        self.rest = b""

    def connectionMade(self) -> None:
        self.say(b"220 back ESMTP")

    def say(self, *lines: bytes) -> None:
        self.transport.write(b"".join(line + b"\r\n" for line in lines))  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\r\n")
        for line in lines:
            (self.heard if self.is_secure else self.clear).append(line)
            self.answer(line)

    def answer(self, line: bytes) -> None:
        if self.is_content:
            self.is_content = line != b"."
            if not self.is_content:
                self.say(b"250 2.0.0 Taken")
            return
        verb = line[:4].upper()
        if verb == b"EHLO":
            self.say(b"250-back", b"250 AUTH PLAIN" if self.is_secure else b"250 STARTTLS")
        elif verb == b"STAR":
            self.say(b"220 2.0.0 Ready")
            self.is_secure = True
            self.transport.startTLS(self.tls.accepting())  # type: ignore[union-attr]
        elif verb == b"AUTH":
            self.say(self.verdict)
        elif verb == b"DATA":
            self.is_content = True
            self.say(b"354 Go on")
        else:
            self.say(b"250 Ok")


class SmarthostTests(TlsTestCase):
    def setUp(self) -> None:
        super().setUp()
        pair = self.issue(NAME, BACK, HUB)
        self.server_tls = self.tls(pair)
        self.verdict = b"235 2.7.0 In"
        self.hosts: list[Smarthost] = []
        self.lab = Lab(
            "a",
            hub="203.0.113.40",
            more=f"""
tls: {{trust: {self.trust}}}
connectors:
  - name: smarthost
    kind: smtp
    tls: verify
    bridgeheads: ["{HUB}:25"]
    auth: {{user: user, password-file: {secret(self.directory)}}}
    address-spaces: [{{domain: example.com, accept: anyone}}]
""",
        )
        self.lab.network.serve(HUB, 25, self.build)

    def build(self) -> Smarthost:
        self.hosts.append(Smarthost(self.server_tls, self.verdict))
        return self.hosts[-1]

    def test_under_tls(self) -> None:
        """A message goes through a smarthost: TLS, who we are, then mail; not an octet before TLS."""
        self.lab.send()
        (host,) = self.hosts
        self.assertEqual([line[:4] for line in host.clear], [b"EHLO", b"STAR"])
        self.assertEqual(host.heard[1], PLAIN.strip())
        self.assertEqual([line[:5] for line in host.heard[:3]], [b"EHLO ", b"AUTH ", b"MAIL "])
        self.assertNotIn(b"AUTH=", host.heard[2])
        self.assertIn(b".", host.heard)
        self.assertEqual(self.lab.queue(), [])

    def test_mail_waits_for_the_operator(self) -> None:
        """Wrong credentials: no mail is lost or returned; once they are right it goes."""
        self.verdict = b"535 5.7.8 No"
        self.lab.send()
        (entry,) = self.lab.queue()
        self.assertIn("4.7.8", entry.state.recipients[0].reply)
        self.assertNotIn(b"MAIL ", [line[:5] for line in self.hosts[-1].heard])
        self.verdict = b"235 2.7.0 In"
        self.lab.advance(3600)
        self.assertEqual(self.lab.queue(), [])
        self.assertIn(b".", self.hosts[-1].heard)
