"""TLS by destination: one Postfix for many domains, each on terms of its own."""

from __future__ import annotations

import os

from mta.testing.certificates import Authority
from tests.rig.dnssec import VALIDATOR, Validator, Zones
from tests.rig.ground import PEER, expect
from tests.rig.node import Rig
from tests.rig.peers import Client
from tests.rig.postfix import Postfix
from tests.rig.scenario_dane import delivered, waits

MX = "mx.provider.example"


def scenario_each_domain_its_own(rig: Rig) -> None:
    """Mail for five domains goes to the same server under one certificate: where a name that this
    bears is wanted it is verified, where another is it waits, and elsewhere nobody asks. The terms
    are those that `mta route explain` prints.
    """
    directory = os.path.join(rig.directory, "certificates")
    os.makedirs(directory)
    authority = Authority()
    trust = authority.write(directory)
    pair = authority.issue(directory, MX, "mail.right.example")
    postfix = Postfix.discarding(rig, MX, pair, smtpd_tls_protocols="TLSv1.2")
    rig.postfix = postfix.start()  # type: ignore[attr-defined]
    domains = ("right.example", "wrong.example", "server.example", "young.example", "none.example")
    records = dict.fromkeys((*domains, "other.example"), f"@ MX 10 {MX}.\n")
    Validator(rig, Zones(rig, {}, {**records, "provider.example": f"mx A {PEER}\n"}))
    rig.online(
        connectors="""
        - name: out
          kind: smtp
          delivery: mx
          tls-exceptions:
            - {domain: right.example, tls: verify, names: ["*.right.example"]}
            - {domain: wrong.example, tls: verify, names: [mail.wrong.example, wrong.example]}
            - {domain: server.example, tls: verify}
            - {domain: young.example, tls: require, minimum: "1.3"}
            - {domain: none.example, tls: none}
          address-spaces: [{domain: "*"}]
        """,
        extra=f"tls: {{trust: {trust}}}\nresolver: {{servers: [{VALIDATOR}]}}",
    )
    client = Client(rig)
    client.hello()
    for domain in ("right.example", "server.example", "other.example", "none.example"):
        answer = client.send(domain, recipients=(f"somebody@{domain}",))
        expect(answer.startswith(b"250"), f"we say {answer!r}")
        delivered(rig, domain)
        rig.wait_log(f"to=<somebody@{domain}>")
    lines = [e for e in rig.log().splitlines() if "TLS connection established to" in e]
    said = [line.partition(" TLS connection")[0].split()[-1] for line in lines]
    expect(said == ["Verified", "Verified", "Untrusted"], f"the log says {lines}")
    for line in lines:
        expect(f"to {MX}[{PEER}]:25: TLSv1.2 with" in line, f"the log says {line}")
    for domain in ("wrong.example", "young.example"):
        answer = client.send(domain, recipients=(f"somebody@{domain}",))
        expect(answer.startswith(b"250"), f"we say {answer!r}")
    waits(rig, "wrong.example", "4.7.5", "is not for mail.wrong.example or wrong.example")
    waits(rig, "young.example", "4.4.2", "TLS handshake failed")
    rig.wait_log("tls: require, TLS 1.3 at least (tls-exceptions young.example): ")
    for domain, terms in (
        ("wrong.example", "verify for mail.wrong.example or wrong.example (tls-exceptions wrong."),
        ("other.example", "tls: opportunistic (tls)"),
    ):
        explained = rig.command("route", "explain", f"somebody@{domain}").stdout
        expect(terms in explained, f"of {domain} mta route explain says {explained}")
