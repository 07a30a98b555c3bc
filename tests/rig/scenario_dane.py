"""DANE with a zone that was really signed, a resolver that really validates, and Debian's Postfix."""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta.testing.certificates import Authority
from tests.rig.dnssec import VALIDATOR, Forger, Validator, Zones, spoiled
from tests.rig.ground import (
    PEER,
    UNPACKED,
    VIRTUAL,
    expect,
    peer_environment,
    run,
    wait_until,
)
from tests.rig.node import Rig
from tests.rig.peers import Client
from tests.rig.postfix import Postfix

ANOTHER = "3 1 1 " + "ab" * 32
"""A record for a key that nobody here has."""


def scenario_records_decide(rig: Rig) -> None:
    """Signed records that are right deliver verified, by key and by authority; wrong and bogus ones
    keep the mail, and a zone that is not signed goes on as ever. Postfix judges the same.
    """
    zones = between(rig)
    judged_by_postfix(rig, zones)
    Validator(rig, zones)
    send(rig, "key.example", "authority.example", "wrong.example", "bogus.example", "plain.example")
    rig.wait_log(f"Verified TLS connection established to mx.key.example[{PEER}]:25")
    rig.wait_log(f"Verified TLS connection established to mx.authority.example[{PEER}]:25")
    rig.wait_log(f"Untrusted TLS connection established to mx.plain.example[{PEER}]:25")
    delivered(rig, "key.example", "authority.example", "plain.example")
    waits(rig, "wrong.example", "4.7.5", "no TLSA record is for the certificate")
    waits(rig, "bogus.example", "4.7.0", "DANE: the look-up of _25._tcp.mx.bogus.example (TLSA)")


def scenario_forged_word(rig: Rig) -> None:
    """Answers that say they were validated, but come from another address or port than the resolver
    that the configuration names, are not believed, whatever they would have us do.
    """
    Validator(rig, between(rig), port=5353)
    forger = Forger(rig, 5353, forged)
    send(rig, "key.example", "wrong.example", "plain.example")
    rig.wait_log(f"Verified TLS connection established to mx.key.example[{PEER}]:25")
    rig.wait_log(f"Untrusted TLS connection established to mx.plain.example[{PEER}]:25")
    delivered(rig, "key.example", "plain.example")
    waits(rig, "wrong.example", "4.7.5", "no TLSA record is for the certificate")
    expect(forger.forged > 20, f"only {forger.forged} answers were forged")


def scenario_dane_is_refused_elsewhere(rig: Rig) -> None:
    """A validating resolver that is not on loopback is refused before anything starts, and why."""
    rig.configure(connectors=CONNECTORS, extra=f"resolver: {{servers: [{PEER}], dnssec: true}}")
    mta = rig.start_mta(wait=False)
    status = mta.popen.wait(20)
    expect(status == os.EX_CONFIG, f"the MTA ended with status {status}")
    expect(f"{PEER} is not on loopback" in mta.log(), f"the log says {mta.log()[-300:]}")
    rig.configure(connectors=CONNECTORS, extra="resolver: {servers: [127.0.0.1], dnssec: true}")
    rig.add_virtual()
    rig.start_mta(wait=False)
    rig.wait_online()


def scenario_reports(rig: Rig) -> None:
    """What came of each domain's mail is in its report of the day, also after a restart: who met its
    records, who did not, whose could not be looked up, and from which address we came.
    """
    Validator(rig, between(rig))
    directory = os.path.join(rig.directory, "reports")
    names = ("key.example", "authority.example", "wrong.example", "bogus.example", "plain.example")
    send(rig, *names, extra=f"tls-reports: {{directory: {directory}}}")
    delivered(rig, "key.example", "authority.example", "plain.example")
    waits(rig, "wrong.example", "4.7.5", "no TLSA record is for the certificate")
    waits(rig, "bogus.example", "4.7.0", "DANE: the look-up of _25._tcp.mx.bogus.example (TLSA)")
    reported(rig, directory)
    rig.end()
    rig.restart()
    reported(rig, directory)


def reported(rig: Rig, directory: str) -> None:
    said = rig.command("--json", "tls-report").stdout.splitlines()
    reports = {}
    for report in map(json.loads, said):
        for each in report["policies"]:
            policy, summary = each["policy"], each["summary"]
            details = each.get("failure-details", [])
            reports[policy["policy-domain"]] = (
                policy["policy-type"],
                summary["total-successful-session-count"] > 0,
                sorted({detail["result-type"] for detail in details}),
            )
            for detail in details:
                expect(detail["sending-mta-ip"] == VIRTUAL, f"we came from {detail}")
                expect(detail["receiving-ip"] == PEER, f"we spoke with {detail}")
    expected = {
        "key.example": ("tlsa", True, []),
        "authority.example": ("tlsa", True, []),
        "wrong.example": ("tlsa", False, ["certificate-not-trusted"]),
        "bogus.example": ("tlsa", False, ["dnssec-invalid"]),
        "plain.example": ("no-policy-found", True, []),
    }
    expect(reports == expected, f"the reports are {reports}")
    (day,) = os.listdir(directory)
    expect(
        sorted(os.listdir(os.path.join(directory, day))) == sorted(f"{d}.json" for d in expected),
        "the files are others than the reports",
    )


VERDICTS = {
    "key.example": "Verified TLS connection established",
    "authority.example": "Verified TLS connection established",
    "wrong.example": "no matching DANE TLSA records",
    "bogus.example": "TLSA lookup error for mx.bogus.example",
    "plain.example": "Untrusted TLS connection established",
}
"""Of posttls-finger."""
CONNECTORS = """
- name: out
  kind: smtp
  tls: dane
  delivery: mx
  address-spaces: [{domain: "*"}]
"""


def between(rig: Rig) -> Zones:
    """Postfix at port 25 of the peer, under one certificate for all its names, and its zones."""
    certificates = os.path.join(rig.directory, "certificates")
    os.makedirs(certificates)
    authority = Authority()
    pair = authority.issue(certificates, "mx.authority.example", file="postfix")
    with open(pair.chain, "rb") as file:
        own, above = x509.load_pem_x509_certificates(file.read())
    key = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    right = f"3 1 1 {sha256(key).hexdigest()}"
    anchor = f"2 0 1 {sha256(above.public_bytes(Encoding.DER)).hexdigest()}"

    def records(tlsa: str) -> str:
        return f"@ MX 10 mx\nmx A {PEER}\n_25._tcp.mx TLSA {tlsa}\n"

    zones = Zones(
        rig,
        {
            "key.example": records(right),
            "authority.example": records(anchor),
            "wrong.example": records(ANOTHER),
            "bogus.example": records(right),
        },
        {"plain.example": records(ANOTHER)},
        lambda name, text: spoiled(text, "mx.bogus.example") if name == "bogus.example" else text,
    )
    postfix = Postfix.discarding(rig, "postfix.example.net", pair, disable_dns_lookups="no")
    rig.postfix = postfix.start()  # type: ignore[attr-defined]
    return zones


def send(rig: Rig, *domains: str, extra: str = "") -> None:
    """One message to somebody at each."""
    resolver = "resolver: {servers: [127.0.0.1], dnssec: true}"
    rig.online(connectors=CONNECTORS, extra=f"{resolver}\n{extra}")
    client = Client(rig)
    client.hello()
    for domain in domains:
        answer = client.send(domain, recipients=(f"somebody@{domain}",))
        expect(answer.startswith(b"250"), f"we say {answer!r}")


def delivered(rig: Rig, *domains: str) -> None:
    postfix: Postfix = rig.postfix  # type: ignore[attr-defined]
    for domain in domains:
        postfix.wait_log(rf"to=<somebody@{domain}>.*status=sent")


def waits(rig: Rig, domain: str, enhanced: str, why: str) -> None:
    """The log says why, the queue has it, and Postfix never heard of it."""
    postfix: Postfix = rig.postfix  # type: ignore[attr-defined]
    begun = rf"to=<somebody@{domain}>.*"

    def said() -> list[str]:
        return [line for line in rig.log().splitlines() if re.search(begun, line)]

    wait_until(said, 15, f"the log says nothing of {domain}")
    for line in said():
        expect(f"dsn={enhanced}, status=deferred" in line and why in line, f"the log says {line}")
    expect(f"somebody@{domain}" in rig.command("queue", "list").stdout, f"{domain} does not wait")
    expect(f"@{domain}" not in postfix.log(), f"Postfix heard of {domain}")


def judged_by_postfix(rig: Rig, zones: Zones) -> None:
    """Debian's posttls-finger, which shares nothing with us but the zones, finds the same of each."""
    Validator(rig, zones, namespace="peer")
    postfix: Postfix = rig.postfix  # type: ignore[attr-defined]
    chosen = os.path.join(rig.directory, "resolv.conf")
    with open(chosen, "w", encoding="ascii") as file:
        file.write(f"nameserver {VALIDATOR}\noptions edns0 trust-ad\n")
    run(["mount", "--bind", chosen, "/etc/resolv.conf"])
    try:
        for domain, words in VERDICTS.items():
            argv = [
                os.path.join(UNPACKED, "usr/sbin/posttls-finger"),
                *("-l", "dane", "-L", "summary,certmatch", "-t", "5", domain),
            ]
            environment = {
                **peer_environment(),
                "MAIL_CONFIG": os.path.join(postfix.directory, "conf"),
            }
            done = rig.inside("peer", argv, env=environment, check=False)
            said = done.stdout + done.stderr
            expect(words in said, f"of {domain} Postfix says {said[-1500:]}")
    finally:
        run(["umount", "/etc/resolv.conf"])


def forged(question: bytes) -> bytes:
    """Validated, it says: of TLSA records another's for plain.example, none for all others."""
    query = dns.message.from_wire(question)
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.AD
    asked = query.question[0]
    name = asked.name.to_text()
    if asked.rdtype == dns.rdatatype.TLSA and "plain" in name:
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "TLSA", ANOTHER))
    elif asked.rdtype == dns.rdatatype.MX:
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", f"10 mx.{name}"))
    elif asked.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", PEER))
    else:
        soa = f"ns.{name} root.{name} 1 60 60 60 60"
        response.authority.append(dns.rrset.from_text(name, 60, "IN", "SOA", soa))
    return response.to_wire()
