"""Reports of TLS (RFC 8460): what is counted, in which form, and that no count is lost."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.admin import tls_tally
from mta.admin.settings import TlsReportSettings
from mta.admin.tls_reports import FLUSH_SECONDS, TlsReports, day_of, is_day
from mta.admin.tls_tally import (
    MOST_DETAILS,
    MOST_POLICIES,
    OTHERS,
    Report,
    Sender,
    Tally,
    add,
    as_document,
    of_document,
)
from mta.config.errors import ConfigErrors
from mta.model import Tlsa
from mta.resolver.memory import MemoryResolver
from mta.telemetry import Notice, Telemetry, TlsAttempt
from mta.testing.certificates import Authority, Pair
from mta.testing.clock import VirtualClock
from mta.testing.executors import InlineExecutor
from mta.testing.lab import HUB, VIRTUAL_ADDRESS, Lab
from tests.test_admin_control import House
from tests.test_cli import CommandTestCase
from tests.test_dane import BACK, RECORD, UNUSABLE, record, say, shown
from tests.test_tls import TlsTestCase

DAY = "2026-11-24"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
SENDER = Sender("vs1.example.org", "postmaster@example.org", "a")
ALL = settings(max_examples=200, deadline=None, derandomize=True)


def attempt(
    domain: str = "example.com", result: str = "", mx: str = "mx.example.com", **keys: Any
) -> TlsAttempt:
    given: dict[str, Any] = {
        "policy": "no-policy-found",
        "policy_strings": (),
        "policy_hosts": (),
        "receiving": "192.0.2.1",
        "sending": "192.0.2.10",
        "reason": "",
        **keys,
    }
    return TlsAttempt(domain=domain, result=result, mx=mx, **given)


ATTEMPT = st.builds(
    attempt,
    st.sampled_from(["a.example", "b.example", "../etc/passwd", "", "x" * 300, "[192.0.2.1]", "."]),
    st.sampled_from(["", "certificate-expired", "validation-failure"]),
    st.text(max_size=5),
    policy=st.sampled_from(["tlsa", "no-policy-found"]),
    policy_strings=st.sampled_from([(), ("3 1 1 AB",)]),
    reason=st.text(max_size=300),
)


def totals(document: dict[str, Any]) -> tuple[int, int]:
    """Sessions that were good and that failed; the details have to come to the same."""
    good = failed = 0
    for each in document["policies"]:
        details = each.get("failure-details", [])
        summary = each["summary"]
        assert summary["total-failure-session-count"] == sum(
            detail["failed-session-count"] for detail in details
        )
        good += summary["total-successful-session-count"]
        failed += summary["total-failure-session-count"]
    return good, failed


class TallyTests(SynchronousTestCase):
    @ALL
    @given(st.lists(ATTEMPT, max_size=30), st.integers(0, 30))
    def test_nothing_is_lost(self, attempts: list[TlsAttempt], cut: int) -> None:
        """Whatever is counted, in one go or in two that are added through their files: as many
        sessions, under names that are names of files and inside the directory.
        """
        tally, whole = Tally(), dict[str, Report]()
        for part in (attempts[:cut], attempts[cut:]):
            for each in part:
                tally.count(each, DAY)
            for (day, domain), report in tally.take().items():
                self.assertEqual(day, DAY)
                self.assertEqual(os.path.basename(domain), domain)
                self.assertNotIn(domain, ("", ".", ".."))
                text = json.dumps(as_document(whole.get(domain, {}), domain, day, SENDER))
                before = of_document(json.loads(text))
                add(before, report)
                whole[domain] = before
        found = [totals(as_document(r, d, DAY, SENDER)) for d, r in whole.items()]
        failed = sum(bool(each.result) for each in attempts)
        self.assertEqual(sum(good for good, _ in found), len(attempts) - failed)
        self.assertEqual(sum(bad for _, bad in found), failed)

    @ALL
    @given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["policies", "policy", "summary", "policy-type"]), inner)
    ), max_leaves=12))  # fmt: skip
    def test_any_document(self, document: Any) -> None:
        """Of what lies in a file something is made, or it is said that it is none of ours."""
        try:
            of_document(document)
        except ValueError as fault:
            self.assertTrue(str(fault))

    def test_the_form(self) -> None:
        """What RFC 8460 4.4 prescribes, key by key."""
        tally = Tally()
        records = ("3 1 1 AB",)
        keys: dict[str, Any] = {"policy": "tlsa", "policy_strings": records}
        keys["policy_hosts"] = ("mx.example.com",)
        for result in ("", "", "certificate-host-mismatch"):
            tally.count(attempt(result=result, reason="is for other.example", **keys), DAY)
        ((key, report),) = tally.take().items()
        self.assertEqual(key, (DAY, "example.com"))
        self.assertEqual(
            as_document(report, "example.com", DAY, SENDER),
            {
                "organization-name": "vs1.example.org",
                "date-range": {
                    "start-datetime": "2026-11-24T00:00:00Z",
                    "end-datetime": "2026-11-24T23:59:59Z",
                },
                "contact-info": "postmaster@example.org",
                "report-id": "2026-11-24_example.com_a@vs1.example.org",
                "policies": [
                    {
                        "policy": {
                            "policy-type": "tlsa",
                            "policy-string": ["3 1 1 AB"],
                            "policy-domain": "example.com",
                            "mx-host": ["mx.example.com"],
                        },
                        "summary": {
                            "total-successful-session-count": 2,
                            "total-failure-session-count": 1,
                        },
                        "failure-details": [
                            {
                                "result-type": "certificate-host-mismatch",
                                "sending-mta-ip": "192.0.2.10",
                                "receiving-mx-hostname": "mx.example.com",
                                "receiving-ip": "192.0.2.1",
                                "failed-session-count": 1,
                                "failure-reason-code": "is for other.example",
                            }
                        ],
                    }
                ],
            },
        )

    def test_bounds(self) -> None:
        """Very many servers, policies and domains come to one more each, the others."""
        tally = Tally()
        for number in range(MOST_DETAILS + 9):
            tally.count(attempt(result="validation-failure", mx=f"mx{number}.example"), DAY)
        for number in range(MOST_POLICIES + 9):
            tally.count(attempt("p.example", policy="tlsa", policy_hosts=(f"h{number}",)), DAY)
        reports = tally.take()
        (count,) = reports[DAY, "example.com"].values()
        self.assertEqual(len(count.failures), MOST_DETAILS + 1)
        self.assertEqual(sum(n for n, _ in count.failures.values()), MOST_DETAILS + 9)
        self.assertEqual(len(reports[DAY, "p.example"]), MOST_POLICIES + 1)
        self.patch(tls_tally, "MOST_DOMAINS", 3)
        for number in range(9):
            tally.count(attempt(f"d{number}.example"), DAY)
        taken = tally.take()
        self.assertEqual(len(taken), 4)
        (count,) = taken[DAY, OTHERS].values()
        self.assertEqual(count.successes, 6)
        for number in range(3):
            tally.count(attempt(f"e{number}.example"), DAY)
        tally.give_back(taken)
        again = tally.take()
        self.assertEqual(len(again), 4)
        self.assertEqual(sum(c.successes for r in again.values() for c in r.values()), 12)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.join(os.path.abspath(self.mktemp()), "reports")
        self.clock = VirtualClock(NOON)
        self.telemetry = Telemetry()
        self.notices: list[Notice] = []
        self.telemetry.attach(lambda e: self.notices.append(e) if type(e) is Notice else None)

    def reports(self, **keys: Any) -> TlsReports:
        """Of a process that was just started."""
        configured = TlsReportSettings(directory=self.directory, **keys)
        return TlsReports(configured, SENDER, self.clock, InlineExecutor(), self.telemetry)

    def document(self, domain: str = "example.com", day: str = DAY) -> dict[str, Any]:
        with open(os.path.join(self.directory, day, f"{domain}.json"), encoding="ascii") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def test_written(self) -> None:
        """Within five minutes what was counted is in the file, and the next is added to it; also by
        the process that comes after; nothing runs while nothing is counted.
        """
        reports = self.reports()
        for number in range(2):
            reports.observe(attempt())
            self.clock.advance(FLUSH_SECONDS - 1)
            self.assertEqual(os.path.exists(self.directory), bool(number))
            reports.observe(attempt())
            self.clock.advance(1)
            self.assertEqual(totals(self.document()), (2 * number + 2, 0))
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_added(self) -> None:
        """Restarts add up, and so do days that are begun twice."""
        for _ in range(3):
            reports = self.reports()
            reports.observe(attempt())
            reports.observe(attempt(result="certificate-expired"))
            self.successResultOf(reports.stop())
            self.assertEqual(self.clock.reactor.getDelayedCalls(), [])
        self.assertEqual(totals(self.document()), (3, 3))

    def test_days(self) -> None:
        """A day is UTC's, and each has files of its own; after `keep` it goes, and nothing else."""
        reports = self.reports(keep=2 * 86400.0)
        os.makedirs(os.path.join(self.directory, "2026-11-01"))
        foreign = os.path.join(self.directory, "2026-11-01", "notes.txt")
        with open(foreign, "w", encoding="ascii") as file:
            file.write("not ours\n")
        for number in range(5):
            reports.observe(attempt())
            self.successResultOf(reports.flush())
            self.assertIn(f"2026-11-{24 + number}", os.listdir(self.directory))
            self.clock.advance(86400)
        self.assertEqual(
            sorted(os.listdir(self.directory)),
            ["2026-11-01", "2026-11-26", "2026-11-27", "2026-11-28"],
        )
        self.assertTrue(os.path.exists(foreign))
        self.assertEqual(totals(self.document(day="2026-11-27")), (1, 0))
        self.assertEqual(day_of(NOON + 43199.9), DAY)
        self.assertEqual(day_of(NOON + 43200.0), "2026-11-25")
        self.assertEqual((is_day(DAY), is_day("2026-11-24/.."), is_day("")), (True, False, False))

    def test_no_room(self) -> None:
        """What cannot be written is kept and tried again; the log says it once."""
        os.makedirs(os.path.dirname(self.directory))
        with open(self.directory, "w", encoding="ascii"):
            pass  # a file in the place of the directory
        reports = self.reports()
        for _ in range(3):
            reports.observe(attempt())
            self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(len(self.notices), 1)
        self.assertIn("cannot be written", self.notices[0].text)
        os.unlink(self.directory)
        self.clock.advance(FLUSH_SECONDS)
        self.assertEqual(totals(self.document()), (3, 0))

    def test_damaged(self) -> None:
        """A file that is none of ours is set aside and named, and counting goes on in a new one."""
        where = os.path.join(self.directory, DAY)
        os.makedirs(where)
        for text in ("torn", "{}", '{"policies": [{"policy": {}}]}', "[" * 5000):
            path = os.path.join(where, "example.com.json")
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            reports = self.reports()
            self.assertEqual(self.successResultOf(reports.read(DAY, ["example.com"])), [])
            self.assertEqual(self.successResultOf(reports.domains(DAY)), ["example.com"])
            reports.observe(attempt())
            self.successResultOf(reports.flush())
            self.assertEqual(totals(self.document()), (1, 0))
            self.assertIn("was set aside", self.notices[-1].text)
            self.assertTrue(os.path.exists(f"{path}.damaged"))

    def test_read(self) -> None:
        """One domain or all of a day; what was never counted is not there, and no other file is."""
        reports = self.reports()
        for domain in ("b.example", "a.example", "../x"):
            reports.observe(attempt(domain))
        self.successResultOf(reports.flush())
        domains = self.successResultOf(reports.domains(DAY))
        self.assertEqual(domains, ["a.example", "b.example", OTHERS])
        found = self.successResultOf(reports.read(DAY, [*domains, "c.example", "../2026/x", ""]))
        self.assertEqual([d["policies"][0]["policy"]["policy-domain"] for d in found], domains)
        self.assertEqual(self.successResultOf(reports.domains("2026-01-01")), [])


class HardDetail16ReportTests(TlsTestCase):
    """A bridgehead that delivers by MX, and one behind it, each as its configuration makes it."""

    def told(
        self, tls: str = "opportunistic", back: str = "offer", pair: Pair | None = None,
        far: str = "delivery: mx", tlsa: tuple[Tlsa, ...] = (), bogus: bool = False,
        trust: str = "",
    ) -> list[TlsAttempt]:  # fmt: skip
        """What is told of one message for example.com by mx.example.com."""
        pair = pair or self.issue(BACK, file="back")
        front = Lab(
            "a",
            hub="203.0.113.40",
            more=f"""
tls: {{trust: {trust or self.trust}}}
resolver: {{servers: [127.0.0.1], dnssec: true}}
connectors:
  - name: out
    kind: smtp
    tls: {tls}
    {far}
    address-spaces: [{{domain: example.com, accept: anyone}}]
""",
        )
        self.behind(front, pair, back, name=BACK)
        resolver = front.owner.surroundings.resolver
        assert isinstance(resolver, MemoryResolver)
        state = "bogus" if bogus else "signed" if tlsa else "none"
        say(resolver, "signed", "signed", state, *tlsa)
        front.send()
        return front.owner.kinds(TlsAttempt)

    def one(self, *expected: str, **keys: Any) -> TlsAttempt:
        """The results of what is told, and the last of it."""
        told = self.told(**keys)
        self.assertEqual([each.result for each in told], list(expected), keys)
        return told[-1] if told else attempt()

    def test_good(self) -> None:
        """A session under TLS, between whom; the sending address is the virtual server's."""
        told = self.one("")
        self.assertEqual(
            told,
            TlsAttempt(
                domain="example.com",
                policy="no-policy-found",
                policy_strings=(),
                policy_hosts=(),
                mx=BACK,
                receiving=HUB,
                sending=VIRTUAL_ADDRESS,
                result="",
                reason="",
            ),
        )

    def test_failures(self) -> None:
        """Each by its name, also where the mail goes without TLS then."""
        self.one("starttls-not-supported", back="none")
        self.one("starttls-not-supported", back="none", tls="require")

    def test_certificates(self) -> None:
        """Of another name, expired, and from another authority."""
        exception = "tls-exceptions: [{domain: example.com, tls: verify, names: [x.example]}]"
        told = self.one("certificate-host-mismatch", far=f"{exception}\n    delivery: mx")
        self.assertIn("is not for x.example", told.reason)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.one("certificate-expired", tls="verify", pair=self.issue(BACK, ends=yesterday))
        elsewhere = os.path.abspath(self.mktemp())
        os.mkdir(elsewhere)
        trust = Authority("Another").write(elsewhere)
        told = self.one("certificate-not-trusted", tls="verify", trust=trust)
        self.assertIn("certificate verify failed", told.reason)

    def test_dane(self) -> None:
        """Records that are met, that are not, that nobody can use, and that cannot be looked up."""
        pair = self.issue(BACK, file="back")
        good = record(3, 1, 1, shown(pair))
        told = self.one("", tls="dane", pair=pair, tlsa=(good,))
        self.assertEqual((told.policy, told.policy_hosts), ("tlsa", (BACK,)))
        self.assertEqual(told.policy_strings, (f"3 1 1 {good.data.hex().upper()}",))
        told = self.one("certificate-not-trusted", tls="dane", pair=pair, tlsa=(RECORD,))
        self.assertIn("no TLSA record is for the certificate", told.reason)
        self.assertEqual(told.policy, "tlsa")
        self.one("starttls-not-supported", tls="dane", back="none", tlsa=(RECORD,))
        self.one("tlsa-invalid", tls="dane", tlsa=(UNUSABLE,))
        told = self.one("dnssec-invalid", tls="dane", tlsa=(RECORD,), bogus=True)
        self.assertEqual((told.policy, told.sending), ("tlsa", VIRTUAL_ADDRESS))
        self.one("", tls="dane")

    def test_not_told(self) -> None:
        """Where TLS is not wanted, and of bridgeheads, there is nobody to report to."""
        self.one(tls="none")
        self.one(far=f'bridgeheads: ["{HUB}:25"]')

    def test_a_failed_handshake(self) -> None:
        """It is told once; the message that goes without TLS, and those within the hour, are not."""
        front = Lab(
            "a",
            hub="203.0.113.40",
            more="""
connectors:
  - {name: out, kind: smtp, delivery: mx, address-spaces: [{domain: example.com, accept: anyone}]}
""",
        )
        front.network.serve(HUB, 25, front.hub.build)
        sink = self.incapable(front)
        resolver = front.owner.surroundings.resolver
        assert isinstance(resolver, MemoryResolver)
        say(resolver, "signed", "signed", "none")
        for _ in range(2):
            front.send()
            front.advance(300)
        self.assertEqual(len(sink.messages), 2)
        self.assertEqual([e.result for e in front.owner.kinds(TlsAttempt)], ["validation-failure"])


class CommandTests(CommandTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        self.house = House()
        self.clock = VirtualClock(NOON)
        configured = TlsReportSettings(directory=self.directory)
        self.reports = TlsReports(
            configured, SENDER, self.clock, InlineExecutor(), self.house.telemetry
        )

    def ask(self, **given: str) -> tuple[list[Any], dict[str, Any]]:
        commands = self.house.commands
        commands._facts = replace(commands._facts, tls_reports=self.reports)
        items, done = self.house.connect().ask("tls-report", **given)
        return items, done

    def test_answer(self) -> None:
        """What was counted until now, of a domain or of all, of today or of another day."""
        self.reports.observe(attempt("a.example"))
        self.reports.observe(attempt("b.example", "certificate-expired"))
        items, done = self.ask()
        self.assertEqual([totals(item) for item in items], [(1, 0), (0, 1)])
        self.assertEqual(done, {"day": DAY, "reports": 2})
        items, done = self.ask(domain="b.example")
        self.assertEqual([totals(item) for item in items], [(0, 1)])
        for asked, number in (
            ({"domain": "c.example"}, 0),
            ({"domain": "../a.example"}, 0),
            ({"day": "2026-11-23"}, 0),
            ({"day": DAY}, 2),
        ):
            items, done = self.ask(**asked)
            self.assertEqual(len(items), number, asked)
            self.assertEqual(done["reports"], number)

    def test_usage(self) -> None:
        """What is no day is refused, and so is the question where nothing is kept."""
        _, wrong = self.ask(day="../../etc")
        self.assertEqual(wrong["error"]["exit_code"], os.EX_USAGE)
        _, wrong = House().connect().ask("tls-report")
        self.assertIn("no reports of TLS are kept here", wrong["error"]["what"])
        self.assertIn("tls-reports", wrong["error"]["remedy"])

    def test_on_the_terminal(self) -> None:
        """A table for people, one line a report for programs; what a peer said is made harmless."""
        self.reports.observe(attempt())
        self.reports.observe(attempt(result="certificate-expired", mx="mx\x1b[2J.example.com"))
        self.ask()

        def run(*words: str, **given: str) -> str:
            done = self.run_with(
                self.house, [("tls-report", given)], *words, "tls-report", *given.values()
            )
            self.assertEqual(done.code, 0)
            return done.out

        lines = run().splitlines()
        self.assertRegex(lines[1], r"^example\.com +no-policy-found +1 +1 +-")
        self.assertRegex(
            lines[2], r"^- +- +- +1 +certificate-expired +mx\\x1b\[2J\.example\.com +192"
        )
        self.assertEqual(totals(json.loads(run("--json", domain="example.com"))), (1, 1))
        self.assertEqual(run(domain="x.example"), f"no report of x.example of {DAY}\n")


class ConfigurationTests(SynchronousTestCase):
    def test_mistakes(self) -> None:
        """A directory is a whole path, and less than a day cannot be kept."""
        for block, place, words in (
            ("{directory: reports}", "13:25: tls-reports.directory", "form"),
            ("{directory: /reports, keep: 1h}", "13:41: tls-reports.keep", "too small"),
            ("{directry: /reports}", "13:15: tls-reports.directry", "directory?"),
        ):
            wrong = self.assertRaises(ConfigErrors, Lab, more=f"tls-reports: {block}\n")
            self.assertEqual(len(wrong.mistakes), 1, str(wrong))
            self.assertIn(words, str(wrong))
            self.assertIn(place.partition(" ")[2], str(wrong))
