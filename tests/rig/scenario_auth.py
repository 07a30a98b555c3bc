"""Submission as users meet it: Python's own mail client says who it is, under TLS, on 587 and 465."""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import time
from typing import Any

from mta.testing.certificates import Authority
from tests.rig.ground import VENV_BIN, VIRTUAL, expect, wait_until
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Sink

USER, PASSWORD = "alice@example.net", "correct horse"
MESSAGE = "From: <alice@example.net>\r\nSubject: handed in\r\n\r\nHello.\r\n"


def scenario_submission(rig: Rig) -> None:
    """PLAIN and LOGIN on 587 and 465; nothing without TLS, nothing without a name, and a wrong
    password is refused late and told in the log.
    """
    sink = Sink(rig).start()
    trust = online(rig)
    for mechanism in ("PLAIN", "LOGIN"):
        for port in (587, 465):
            client = Program(rig, port, trust)
            client.login_by(mechanism, PASSWORD)
            client.sendmail(USER, ["you@example.com"], MESSAGE)
            client.quit()
    wait_until(lambda: sink.count() == 4, 10, f"{sink.count()} of 4 messages arrived")
    rig.wait_log(f"sasl_method=LOGIN, sasl_username={USER}")
    rig.wait_log("proto=ESMTPSA")
    plainly = Program(rig, 587, None)
    expect(plainly.mail(USER)[0] == 530, "without TLS a sender is taken")
    expect("auth" not in plainly.esmtp_features, "AUTH is offered without TLS")
    nobody = Program(rig, 587, trust)
    expect(nobody.mail(USER)[0] == 530, "without a name a sender is taken")
    begun = time.monotonic()
    try:
        nobody.login_by("PLAIN", "wrong")
    except smtplib.SMTPAuthenticationError as refused:
        expect(refused.smtp_code == 535, f"a wrong password hears {refused.smtp_code}")
    else:
        expect(False, "a wrong password is taken")
    expect(time.monotonic() - begun >= 2.0, "a wrong password is answered at once")
    rig.wait_log("SASL PLAIN authentication failed")
    nobody.login_by("PLAIN", PASSWORD)
    expect(nobody.mail("boss@example.net")[0] == 553, "a user writes under another's address")


class Program(smtplib.SMTP):
    """Python's client, on a socket of the peer's namespace; under TLS it verifies, if `trust` is
    given: on 465 from the beginning, else by STARTTLS.
    """

    def __init__(self, rig: Rig, port: int, trust: str | None) -> None:
        self._rig = rig
        context = ssl.create_default_context(cafile=trust) if trust else None
        self._implicit = context if port == 465 else None
        super().__init__(VIRTUAL, port, local_hostname="laptop.example.net", timeout=20)
        self._host = NETWORK_NAME  # what the certificate has to be for
        self.ehlo()
        if context is not None and port != 465:
            self.starttls(context=context)
            self.ehlo()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        made = self._rig.connect("peer", host, port, timeout)
        if self._implicit is not None:
            return self._implicit.wrap_socket(made, server_hostname=NETWORK_NAME)
        return made

    def login_by(self, mechanism: str, password: str) -> None:
        self.user, self.password = USER, password
        method: Any = {"PLAIN": self.auth_plain, "LOGIN": self.auth_login}[mechanism]
        self.auth(mechanism, method)


def online(rig: Rig) -> str:
    """With a file of one user, and listeners on 25, 587 and 465; answers whom to trust."""
    certificates = os.path.join(rig.directory, "certificates")
    os.makedirs(certificates)
    authority = Authority()
    ours = authority.issue(certificates, NETWORK_NAME)
    passwords = os.path.join(rig.directory, "passwords")
    argv = [os.path.join(VENV_BIN, "mta"), "password", "--user", USER]
    made = rig.inside("node", argv, text=PASSWORD)
    with open(passwords, "w", encoding="utf-8", opener=private) as file:
        file.write(made.stdout)
    rig.online(
        listeners="""
        - {kind: submission, port: 587, senders: login}
        - {kind: submission, name: submissions, port: 465, tls: implicit}
        """,
        extra=f"""
auth: {{kind: passwords, password-file: {passwords}}}
tls: {{certificates: [{{chain: {ours.chain}, key-file: {ours.key}}}]}}
""",
    )
    return authority.write(certificates)


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
