"""Submission as users meet it: swaks says who it is, under TLS, against a file of passwords."""

from __future__ import annotations

import os
import time

from mta.testing.certificates import Authority
from tests.rig.ground import VENV_BIN, VIRTUAL, expect, wait_until
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Sink, swaks

USER, PASSWORD = "alice@example.net", "correct horse"
TO = ("--from", USER, "--to", "you@example.com")


def scenario_submission(rig: Rig) -> None:
    """PLAIN and LOGIN on 587 and on 465; nothing without TLS, nothing without a name, and a wrong
    password is refused late and told in the log.
    """
    sink = Sink(rig).start()
    online(rig)
    for mechanism in ("PLAIN", "LOGIN"):
        for port in (("--port", "587", "--tls"), ("--port", "465", "--tls-on-connect")):
            said = swaks(rig, "--server", VIRTUAL, *port, *TO, *who(mechanism, PASSWORD))
            expect("235 2.7.0" in said and "250 2.0.0 Ok: queued" in said, f"swaks heard {said}")
    rig.wait_log(f"sasl_method=LOGIN, sasl_username={USER}")
    rig.wait_log("proto=ESMTPSA")
    plainly = swaks(rig, "--server", VIRTUAL, "--port", "587", *TO, check=False)
    expect("530 5.7.0" in plainly, f"without TLS swaks heard {plainly}")
    nobody = swaks(rig, "--server", VIRTUAL, "--port", "587", "--tls", *TO, check=False)
    expect("530 5.7.0 Authentication required" in nobody, f"without a name swaks heard {nobody}")
    begun = time.monotonic()
    wrong = swaks(
        rig, "--server", VIRTUAL, "--port", "587", "--tls", *TO, *who("PLAIN", "wrong"), check=False
    )
    expect("535 5.7.8" in wrong, f"with a wrong password swaks heard {wrong}")
    expect(time.monotonic() - begun >= 2.0, "a wrong password is answered at once")
    rig.wait_log("SASL PLAIN authentication failed")
    wait_until(lambda: sink.count() == 4, 10, f"{sink.count()} of 4 messages arrived")


def who(mechanism: str, password: str) -> tuple[str, ...]:
    return ("--auth", mechanism, "--auth-user", USER, "--auth-password", password)


def online(rig: Rig) -> None:
    """With a certificate, a file of one user, and listeners on 25, 587 and 465."""
    certificates = os.path.join(rig.directory, "certificates")
    os.makedirs(certificates)
    ours = Authority().issue(certificates, NETWORK_NAME)
    passwords = os.path.join(rig.directory, "passwords")
    argv = [os.path.join(VENV_BIN, "mta"), "password", "--user", USER]
    made = rig.inside("node", argv, text=PASSWORD)
    with open(passwords, "w", encoding="utf-8", opener=private) as file:
        file.write(made.stdout)
    rig.online(
        listeners="""
        - {kind: submission, port: 587}
        - {kind: submission, name: submissions, port: 465, tls: implicit}
        """,
        extra=f"""
auth: {{kind: passwords, password-file: {passwords}}}
tls: {{certificates: [{{chain: {ours.chain}, key-file: {ours.key}}}]}}
""",
    )


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
