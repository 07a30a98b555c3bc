"""TLS with Debian's Postfix on both sides of us: it verifies us, and we verify it."""

from __future__ import annotations

import os

from mta.testing.certificates import Authority
from tests.rig.ground import PEER, VIRTUAL, expect
from tests.rig.node import NETWORK_NAME, Rig
from tests.rig.peers import Client
from tests.rig.postfix import Postfix

POSTFIX = "postfix.example.net"


def scenario_we_verify_postfix(rig: Rig) -> None:
    """Mail goes to Postfix under TLS, after its certificate was found to be for its address."""
    postfix = between(rig)
    client = Client(rig)
    client.hello()
    answer = client.send("first", recipients=("first@discarded.example.net",))
    expect(answer.startswith(b"250"), f"we say {answer!r}")
    postfix.wait_log(r"to=<first@discarded\.example\.net>.*status=sent")
    rig.wait_log(f"Verified TLS connection established to {PEER}[{PEER}]:2525: TLSv1.3")
    line = postfix.wait_log(r"TLS connection established from .*")[0]
    expect("TLSv1.3" in line, f"Postfix says {line}")


def scenario_postfix_verifies_us(rig: Rig) -> None:
    """Postfix finds the network name in our certificate; without TLS we take no mail from anybody."""
    postfix = between(rig, required=True)
    client = Client(rig)
    client.hello()
    answer = client.say(b"MAIL FROM:<s@example.net>")
    expect(answer.startswith(b"530"), f"without TLS we say {answer!r}")
    client = Client(rig, PEER, 2525)
    client.hello()
    answer = client.send("second", recipients=("second@ours.example.com",))
    expect(answer.startswith(b"250"), f"Postfix says {answer!r}")
    postfix.wait_log(rf"Verified TLS connection established to {VIRTUAL}\[{VIRTUAL}\]:25: TLSv1\.3")
    postfix.wait_log(r"to=<second@ours\.example\.com>.*status=sent")
    rig.wait_log("Anonymous TLS connection established from")
    rig.wait_log("proto=ESMTPS")


def between(rig: Rig, *, required: bool = False) -> Postfix:
    """Postfix at port 2525 of the peer, which relays to us; we, who relay to it, both verifying."""
    certificates = os.path.join(rig.directory, "certificates")
    os.makedirs(certificates)
    authority = Authority()
    trust = authority.write(certificates)
    ours = authority.issue(certificates, NETWORK_NAME)
    theirs = authority.issue(certificates, POSTFIX, PEER, file="postfix")
    postfix = Postfix(
        rig,
        f"{PEER}:2525",
        myhostname=POSTFIX,
        inet_interfaces=PEER,
        inet_protocols="ipv4",
        mynetworks="10.9.0.0/24",
        transport_maps=(
            f"inline:{{ discarded.example.net=discard:, ours.example.com=relay:[{VIRTUAL}]:25 }}"
        ),
        smtpd_tls_cert_file=theirs.chain,
        smtpd_tls_key_file=theirs.key,
        smtpd_tls_security_level="may",
        smtpd_tls_loglevel="1",
        smtp_tls_security_level="verify",
        smtp_tls_verify_cert_match=NETWORK_NAME,
        smtp_tls_CAfile=trust,
        smtp_tls_loglevel="1",
    ).start()
    rig.online(
        connectors=f"""
        - name: postfix
          kind: smtp
          tls: verify
          bridgeheads: ["{PEER}:2525"]
          address-spaces: [{{domain: "*", cost: 10}}]
        - name: here
          kind: discard
          address-spaces: [{{domain: ours.example.com}}]
        """,
        listener="tls: require" if required else "",
        extra=f"tls: {{trust: {trust}, certificates: [{{chain: {ours.chain}, key-file: {ours.key}}}]}}",
    )
    return postfix
