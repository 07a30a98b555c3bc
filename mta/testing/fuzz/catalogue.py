"""Every target, how much of a run it gets, and how many of its cases `make check` holds.

Law: what reads octets of others has a line here, or stands in LEFT_OUT with the reason.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from mta.testing.fuzz.target import Target

SMTP_IN_CHECK = 200_000


@dataclass(frozen=True, slots=True)
class Entry:
    """`place` is its module and class; `in_check` cases take about two seconds."""

    name: str
    place: str
    in_check: int

    def kind(self) -> type[Target]:
        module, _, name = self.place.rpartition(".")
        found: type[Target] = getattr(importlib.import_module(f"mta.testing.fuzz.{module}"), name)
        return found


TARGETS = (
    Entry("smtp", "smtp.Smtp", SMTP_IN_CHECK),
    Entry("proxy", "network.Proxy", 20_000),
    Entry("dns", "network.Dns", 5_000),
    Entry("tlsa", "network.Tlsa", 10_000),
    Entry("sts", "policies.Sts", 10_000),
    Entry("sts-book", "policies.StsBook", 10_000),
    Entry("milter", "filters.Milter", 3_000),
    Entry("milter-answers", "filters.Answers", 20_000),
    Entry("dovecot", "authentication.Dovecot", 5_000),
    Entry("sasl-server", "authentication.SaslServer", 5_000),
    Entry("sasl-client", "authentication.SaslClient", 5_000),
    Entry("saslprep", "authentication.Saslprep", 6_000),
    Entry("passwords", "authentication.Passwords", 4_000),
    Entry("mime", "content.Mime", 4_000),
    Entry("header", "content.Header", 10_000),
    Entry("author", "content.Author", 20_000),
    Entry("dkim", "content.Dkim", 10_000),
    Entry("dsn", "content.Dsn", 2_000),
    Entry("grammar", "grammar.Grammar", 20_000),
    Entry("records", "store.Records", 5_000),
    Entry("envelopes", "store.Envelopes", 20_000),
    Entry("epoch", "store.Epoch", 10_000),
    Entry("checkpoint", "store.CheckpointFile", 5_000),
    Entry("spool", "store.Spool", 300),
    Entry("netlink", "cluster.Netlink", 10_000),
    Entry("etcd", "cluster.Etcd", 5_000),
    Entry("keepalived", "cluster.Keepalived", 20_000),
    Entry("segments", "cluster.Segments", 20_000),
    Entry("config", "local.ConfigText", 1_000),
    Entry("control", "local.Control", 3_000),
)

LEFT_OUT = {
    "mta/cli": "it runs with the rights of who calls it, and may be imported by nobody; its parsers"
    " have property tests",
    "mta/admin/http.py": "twisted.web reads the requests, and is fuzzed where it is made",
    "mta/admin/submit.py": "what is said there is SMTP, and read by the same machine",
    "mta/cluster/gateway.py": "twisted.web reads HTTP; what is in it is the target etcd",
    "mta/policy/dkim_keys.py": "OpenSSL reads the keys, which are the operator's own files",
    "mta/association/dane.py": "OpenSSL reads the certificates; their records are the target tlsa",
    "mta/auth/new_line.py": "it reads what an operator types",
    "mta/plugins": "what is installed is trusted: it is imported",
}
"""Modules that read octets of others and have no target, and why."""
