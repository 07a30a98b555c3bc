"""MTA-STS with a real HTTPS server, real name servers, and Debian's Postfix as the exchanger."""

from __future__ import annotations

import os
import re
import sys

from mta.testing.certificates import Authority, Pair
from tests.rig.dnssec import VALIDATOR, Validator, Zones
from tests.rig.ground import NODE, PEER, ROOT, Process, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client
from tests.rig.postfix import Postfix
from tests.rig.scenario_dane import delivered, waits

GOOD, OTHER = "mx.provider.example", "other.provider.example"
DOMAINS = {
    "right.example": GOOD,
    "wrong.example": OTHER,
    "unnamed.example": GOOD,
    "testing.example": OTHER,
    "none.example": OTHER,
    "moved.example": OTHER,
    "late.example": OTHER,
    "plain.example": OTHER,
}
"""By domain, its mail exchanger; both are one Postfix, whose certificate is for the first alone."""


def scenario_policies_decide(rig: Rig) -> None:
    """Enforced and right: verified. Enforced, and the certificate for another name or the server not
    named: the mail waits and says why. In testing: delivered, and the log says what was wrong. `none`, a
    policy host that leads elsewhere, and one that is away: as without a policy. Only the node itself asks.
    """
    ground = Published(rig)
    online(rig, ground)
    send(rig, "late.example")
    delivered(rig, "late.example")
    rig.wait_log("mta-sts: late.example: no policy (sts-policy-fetch-error)")
    host = ground.serve()
    send(rig, *(name for name in DOMAINS if name != "late.example"))
    rig.wait_log(f"Verified TLS connection established to {GOOD}[{PEER}]:25")
    delivered(
        rig, "right.example", "testing.example", "none.example", "moved.example", "plain.example"
    )
    waits(
        rig,
        "wrong.example",
        "4.7.5",
        f"mta-sts: TLS handshake failed: the certificate is not for {OTHER}",
    )
    waits(rig, "unnamed.example", "4.7.0", "mta-sts: the policy of unnamed.example does not name")
    verified = rig.log().count("Verified TLS connection established")
    expect(verified == 1, f"{verified} servers were verified")
    rig.wait_log(f"mta-sts (testing) of testing.example: the certificate is not for {OTHER}")
    rig.wait_log(
        "mta-sts: moved.example: no policy (sts-policy-fetch-error): mta-sts.moved.example answers 301"
    )
    explained = rig.command("route", "explain", "somebody@wrong.example").stdout
    expect(f"mta-sts: enforce for {OTHER}, until 20" in explained, f"explained: {explained}")
    asked = re.findall(r"^(\S+) asks (\S+) for (\S+)$", host.log(), re.MULTILINE)
    hosts = {f"mta-sts.{name}" for name in DOMAINS} - {
        "mta-sts.late.example",
        "mta-sts.plain.example",
    }
    expect({name for _, name, _ in asked} == hosts, f"these were asked: {asked}")
    expect(len(asked) == len(hosts), f"some were asked twice: {asked}")
    expect({path for _, _, path in asked} == {"/.well-known/mta-sts.txt"}, f"for this: {asked}")
    expect({client for client, _, _ in asked} == {NODE}, f"these ask: {asked}")
    services = {s["purpose"]: s for s in rig.status()["services"]["services"]}
    expect(services["policy-fetch"]["open"] == 0, f"mta status has {services}")


def scenario_policy_outlives(rig: Rig) -> None:
    """A policy that was fetched holds though its host has gone, and after a restart of the MTA, from its
    file; when the certificate is mended the mail that waited is delivered, verified.
    """
    ground = Published(rig)
    online(rig, ground)
    host = ground.serve()
    send(rig, "wrong.example")
    waits(rig, "wrong.example", "4.7.5", f"the certificate is not for {OTHER}")
    host.stop()
    file = os.path.join(rig.home, "state", "mta-sts")
    wait_until(lambda: os.path.exists(file), 10, "the policy is not on the disk")
    rig.process().stop()
    rig.restart()
    before = rig.log().count("status=deferred")
    rig.command("queue", "retry", "--all")
    wait_until(lambda: rig.log().count("status=deferred") > before, 20, "it is not tried again")
    waits(rig, "wrong.example", "4.7.5", f"the certificate is not for {OTHER}")
    ground.mend()
    rig.command("queue", "retry", "--all")
    delivered(rig, "wrong.example")
    rig.wait_log(f"Verified TLS connection established to {OTHER}[{PEER}]:25")


class Published:
    """Postfix, the zones, and the policies of all the domains."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._directory = os.path.join(rig.directory, "certificates")
        self._policies = os.path.join(rig.directory, "policies")
        os.makedirs(self._directory)
        os.makedirs(self._policies)
        self._authority = Authority()
        self.trust = self._authority.write(self._directory)
        self._listen(GOOD)
        records = {
            name: f'@ MX 10 {mx}.\n_mta-sts TXT "v=STSv1;" " id=1;"\nmta-sts A {PEER}\n'
            for name, mx in DOMAINS.items()
        }
        records["plain.example"] = f"@ MX 10 {OTHER}.\n"
        records["provider.example"] = f"mx A {PEER}\nother A {PEER}\n"
        Validator(rig, Zones(rig, {}, records))
        for name, mx in DOMAINS.items():
            self._publish(name, "enforce", mx)
        self._publish("unnamed.example", "enforce", "*.elsewhere.example")
        self._publish("testing.example", "testing", OTHER)
        self._publish("none.example", "none", OTHER)
        with open(os.path.join(self._policies, "mta-sts.moved.example"), "w") as file:
            file.write("301\nhttps://mta-sts.wrong.example/.well-known/mta-sts.txt\n")

    def _publish(self, name: str, mode: str, mx: str) -> None:
        with open(os.path.join(self._policies, f"mta-sts.{name}"), "w") as file:
            file.write(f"200\nversion: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: 86400\n")

    def _issue(self, file: str, *names: str) -> Pair:
        return self._authority.issue(self._directory, *names, file=file)

    def _listen(self, *names: str) -> None:
        pair = self._issue("postfix", *names)
        postfix = Postfix.discarding(self._rig, GOOD, pair)
        self._rig.postfix = postfix.start()  # type: ignore[attr-defined]

    def mend(self) -> None:
        """Postfix has a certificate for both names from now on."""
        self._rig.postfix.process.stop()  # type: ignore[attr-defined]
        self._listen(GOOD, OTHER)

    def serve(self) -> Process:
        """The policy hosts, under one certificate."""
        pair = self._issue("policies", *(f"mta-sts.{name}" for name in DOMAINS))
        argv = [sys.executable, "-m", "tests.rig.policy_host", PEER, *pair, self._policies]
        host = self._rig.start("policies", "peer", argv, cwd=ROOT)
        wait_until(
            lambda: host.is_running and self._rig.listens("peer", PEER, 443),
            10,
            "the policy host does not listen",
        )
        return host


def online(rig: Rig, ground: Published) -> None:
    rig.online(
        connectors="""
        - name: out
          kind: smtp
          delivery: mx
          mta-sts: true
          address-spaces: [{domain: "*"}]
        """,
        extra=f"tls: {{trust: {ground.trust}}}\nresolver: {{servers: [{VALIDATOR}]}}",
    )


def send(rig: Rig, *domains: str) -> None:
    client = Client(rig)
    client.hello()
    for domain in domains:
        answer = client.send(domain, recipients=(f"somebody@{domain}",))
        expect(answer.startswith(b"250"), f"we say {answer!r}")
