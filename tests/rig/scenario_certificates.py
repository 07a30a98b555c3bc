"""Certificates of clients with Debian's Postfix on both sides of us: it asks us, and we ask it."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from mta.testing.certificates import Authority, Pair
from tests.rig.ground import PEER, VIRTUAL, expect, wait_until
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Client
from tests.rig.postfix import Postfix

PORT = 2526
"""Of our listener that asks."""
POSTFIX = "postfix.example.net"
TLS_FROM = r"TLS connection established from"


def scenario_postfix_asks_us(rig: Rig) -> None:
    """Postfix requires a certificate and lets one alone relay: with ours mail is delivered, without
    one, and with a foreign one, it waits and the log has Postfix's word for it.
    """
    ground = Grounds(rig)
    foreign = Authority("Another").issue(ground.directory, "another.example", file="another")
    postfix = Postfix(
        rig,
        f"{PEER}:2525",
        **ground.of_postfix(),
        transport_maps="static:discard:",
        smtpd_tls_security_level="encrypt",
        smtpd_tls_req_ccert="yes",
        smtpd_tls_CAfile=ground.trust,
        smtpd_relay_restrictions="permit_tls_clientcerts, reject",
        relay_clientcerts=f"inline:{{ {fingerprint(ground.ours)}=ours }}",
    ).start()

    def connector(name: str, certificate: str) -> str:
        return f"""
        - name: {name}
          kind: smtp
          tls: verify
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: {name}.example.com}}]
          {certificate}
        """

    shown = f"certificate: {{chain: {foreign.chain}, key-file: {foreign.key}}}"
    rig.online(
        connectors=connector("own", "certificate: own")
        + connector("none", "")
        + connector("foreign", shown)
        + """
        - name: rest
          kind: discard
          address-spaces: [{domain: "*"}]
        """,
        extra=ground.tls,
    )
    client = Client(rig)
    client.hello()
    for name in ("own", "none", "foreign"):
        answer = client.send(name, recipients=(f"somebody@{name}.example.com",))
        expect(answer.startswith(b"250"), f"we say {answer!r}")
    postfix.wait_log(r"to=<somebody@own\.example\.com>.*status=sent")
    postfix.wait_log(rf"subject_CN={NETWORK_NAME}, issuer.*fingerprint={fingerprint(ground.ours)}")
    postfix.wait_log(rf"Trusted {TLS_FROM}")
    for name, why in (
        ("none", "No client certificate presented"),
        ("foreign", "Client certificate not trusted"),
    ):
        rig.wait_log_like(
            rf"to=<somebody@{name}\.example\.com>.*dsn=4\.7\.1, status=deferred.*{why}",
            f"the mail by {name} does not wait for {why!r}",
        )
        postfix.wait_log(why)
    expect("@none.example.com" not in postfix.log(), "Postfix heard of mail without a certificate")


def scenario_we_ask_postfix(rig: Rig) -> None:
    """Where we require a certificate Postfix relays by the one that is listed, and the log and
    Received name it; whoever has none, an expired or a foreign one is told 421 4.7.1, and
    no session is taken up again.
    """
    ground = Grounds(rig)
    postfix = Postfix(
        rig,
        f"{PEER}:2525",
        **ground.of_postfix(),
        mynetworks="10.9.0.0/24",
        transport_maps=f"static:relay:[{VIRTUAL}]:{PORT}",
        smtp_tls_security_level="encrypt",
        smtp_tls_cert_file=ground.theirs.chain,
        smtp_tls_key_file=ground.theirs.key,
        smtp_tls_CAfile=ground.trust,
        smtp_tls_loglevel="1",
    ).start()
    listed = fingerprint(ground.theirs)
    rig.online(
        connectors=f"""
        - name: here
          kind: maildir
          directory: {os.path.join(rig.directory, "mail")}
          address-spaces: [{{domain: "*"}}]
        """,
        listeners=f"""
        - kind: smtp
          port: {PORT}
          relay-from: []
          tls: require
          client-certificates: require
          relay-certificates: ["{listed}"]
        """,
        extra=ground.tls,
    )
    client = Client(rig, PEER, 2525)
    client.hello()
    answer = client.send("first", recipients=("first@ours.example.com",))
    expect(answer.startswith(b"250"), f"Postfix says {answer!r}")
    postfix.wait_log(r"to=<first@ours\.example\.com>.*status=sent")
    rig.wait_log_like(
        rf"Verified {TLS_FROM} unknown\[{PEER}\]: TLSv1\.3 .* fingerprint={listed}",
        "the log does not name Postfix's certificate",
    )
    text = delivered(rig)
    expect(f'(Client CN "{POSTFIX}", Issuer "Test Authority" (verified OK))' in text, text[:600])
    now = datetime.now(UTC)
    stale = ground.authority.issue(
        ground.directory, "stale.example", file="stale", ends=now - timedelta(days=1)
    )
    foreign = Authority("Another").issue(ground.directory, "another.example", file="another")
    good = ground.authority.issue(ground.directory, "good.example", file="good")
    for pair, words in (
        (None, b"421 4.7.1 No client certificate was shown"),
        (stale, b"421 4.7.1 The client certificate is not trusted"),
        (foreign, b"421 4.7.1 The client certificate is not trusted"),
        (good, b"250"),
    ):
        answer = introduced(rig, ground.trust, pair)
        expect(answer.startswith(words), f"with {pair} we say {answer!r}")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        resumed(rig, ground.trust, good, version)


class Grounds:
    """An authority, what it signed for us and for Postfix, and what our configuration says of it."""

    def __init__(self, rig: Rig) -> None:
        self.directory = os.path.join(rig.directory, "certificates")
        os.makedirs(self.directory)
        self.authority = Authority()
        self.trust = self.authority.write(self.directory)
        self.ours = self.authority.issue(self.directory, NETWORK_NAME)
        self.theirs = self.authority.issue(self.directory, POSTFIX, PEER, file="postfix")
        pair = f"{{chain: {self.ours.chain}, key-file: {self.ours.key}}}"
        self.tls = f"tls: {{trust: {self.trust}, certificates: [{pair}]}}"

    def of_postfix(self) -> dict[str, str]:
        return {
            "myhostname": POSTFIX,
            "inet_interfaces": PEER,
            "inet_protocols": "ipv4",
            "smtpd_tls_cert_file": self.theirs.chain,
            "smtpd_tls_key_file": self.theirs.key,
            "smtpd_tls_fingerprint_digest": "sha256",
            "smtpd_tls_loglevel": "summary,peercert",
        }


def fingerprint(pair: Pair) -> str:
    """As Postfix writes it."""
    with open(pair.chain, "rb") as file:
        found = x509.load_pem_x509_certificate(file.read())
    return found.fingerprint(SHA256()).hex(":").upper()


def delivered(rig: Rig) -> str:
    """The one message in the Maildir."""
    new = os.path.join(rig.directory, "mail", "new")
    wait_until(lambda: os.path.isdir(new) and bool(os.listdir(new)), 15, "nothing was delivered")
    (name,) = os.listdir(new)
    with open(os.path.join(new, name), encoding="ascii") as file:
        return " ".join(file.read().split())


def trusting(trust: str, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=trust)
    if pair is not None:
        context.load_cert_chain(pair.chain, pair.key)
    return context


def secured(
    rig: Rig, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[Client, ssl.SSLSocket]:
    """A client of Python's own TLS that has said EHLO and STARTTLS."""
    client = Client(rig, port=PORT)
    client.hello()
    answer = client.say(b"STARTTLS")
    expect(answer.startswith(b"220"), f"to STARTTLS we say {answer!r}")
    wrapped = context.wrap_socket(client.socket, server_hostname=NETWORK_NAME, session=session)
    client.socket = wrapped
    return client, wrapped


def introduced(rig: Rig, trust: str, pair: Pair | None) -> bytes:
    """What is said to EHLO under TLS."""
    client, wrapped = secured(rig, trusting(trust, pair))
    answer = client.say(b"EHLO client.example.net")
    if answer.startswith(b"421"):
        expect(client.reply() == b"", "a client that was turned away is still connected")
    wrapped.close()
    return answer


def resumed(rig: Rig, trust: str, pair: Pair, version: ssl.TLSVersion) -> None:
    """A session that began with a certificate is not taken up again."""
    context = trusting(trust, pair)
    context.maximum_version = version
    client, wrapped = secured(rig, context)
    answer = client.say(b"EHLO client.example.net")
    expect(answer.startswith(b"250"), f"we say {answer!r}")
    session = wrapped.session
    wrapped.close()
    _, again = secured(rig, context, session)
    expect(not again.session_reused, f"under {version} a session was resumed")
    again.close()
