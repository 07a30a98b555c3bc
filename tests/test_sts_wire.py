"""MTA-STS on the wire: the record, the policy, the names of servers, whatever octets come."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import StsMode, StsPolicy
from mta.wire.sts import (
    LARGEST_OCTETS,
    LONGEST_AGE,
    announced,
    is_plain_text,
    names,
    parse_policy,
    policy_host,
    record_name,
)

ALL = settings(max_examples=200, deadline=None, derandomize=True)
POLICY = (
    b"version: STSv1\r\nmode: enforce\r\nmx: mx1.example.com\r\nmx: *.Example.net\r\n"
    b"max_age: 604800\r\n"
)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PATTERN = st.builds(lambda host, below: f"*.{host}" if below else host, HOST, st.booleans())


class RecordTests(SynchronousTestCase):
    def test_where(self) -> None:
        """The names that RFC 8461 gives record and host."""
        self.assertEqual(record_name("example.com"), "_mta-sts.example.com")
        self.assertEqual(policy_host("example.com"), "mta-sts.example.com")

    def test_announced(self) -> None:
        """One record says which policy there is; others beside it say nothing of it."""
        for records in (
            [b"v=STSv1; id=20160831085700Z;"],
            [b"v=STSv1; id=20160831085700Z"],
            [b"v=STSv1;id=20160831085700Z"],
            [b"v=STSv1 \t;\tid=20160831085700Z ;"],
            [b"v=STSv1; x-new.one=a/b+c:d; id=20160831085700Z; y=z"],
            [b"v=STSv1; id=20160831085700Z; id=another"],
            [b"v=spf1 -all", b"v=STSv1; id=20160831085700Z;", b"", b"v=STSv2; id=3"],
        ):
            self.assertEqual(announced(records), "20160831085700Z", records)

    def test_nothing_announced(self) -> None:
        """None, two, or one that the grammar does not allow: then there is no policy."""
        for records in (
            [],
            [b""],
            [b"v=STSv1"],
            [b"v=STSv1;"],
            [b"v=STSv1; id="],
            [b"v=STSv1; id=a-b"],
            [b"v=STSv1; id=" + b"1" * 33],
            [b"v=STSv1; id=1; ; x=y"],
            [b"v=STSv1; id=1; x"],
            [b"v=STSv1; id=1; x="],
            [b"v=STSv1; id=1; x=a=b"],
            [b"v=STSv1; id=1; -x=a"],
            [b"v=STSv1; id=1; x=\xc3\xa4"],
            [b"v=STSv1; ID=1"],
            [b"V=STSv1; id=1"],
            [b" v=STSv1; id=1"],
            [b"v=STSv10; id=1"],
            [b"v=STSv1; id=1\0"],
            [b"v=STSv1; id=1\r\n"],
            [b"v=STSv1; id=1", b"v=STSv1; id=1"],
            [b"v=STSv1; id=1", b"v=STSv1; broken"],
        ):
            self.assertEqual(announced(records), "", records)

    @ALL
    @given(st.lists(st.binary(max_size=60) | st.binary(max_size=30).map(b"v=STSv1; ".__add__)))
    def test_any_octets(self, records: list[bytes]) -> None:
        """Whatever records there are: an id, or none."""
        self.assertRegex(announced(records), r"\A[A-Za-z0-9]{0,32}\Z")


class PolicyTests(SynchronousTestCase):
    def test_policy(self) -> None:
        """CRLF or LF, in any order, with white space and an empty line at the end."""
        expected = StsPolicy(StsMode.ENFORCE, ("mx1.example.com", "*.example.net"), 604800)
        lines = POLICY.split(b"\r\n")[:-1]
        for octets in (
            POLICY,
            POLICY[:-2],
            POLICY.replace(b"\r\n", b"\n"),
            POLICY + b"\r\n\n",
            POLICY.replace(b"\r\n", b" \t\r\n"),
            POLICY.replace(b": ", b":\t  "),
            POLICY.replace(b": ", b":"),
            b"\n".join([lines[4], lines[2], lines[1], lines[3], lines[0]]),
            POLICY + b"mx: MX1.example.com\n",
        ):
            self.assertEqual(parse_policy(octets), expected, octets)

    def test_what_nobody_knows(self) -> None:
        """Further fields are passed over, in UTF-8 too; of one that stands twice the first counts."""
        further = (
            POLICY
            + "x-neu.1: Grüße aus ☃ : und mehr\n".encode()
            + b"mode: none\nversion: STSv2\nmax_age: 1\n"
        )
        self.assertEqual(parse_policy(further), parse_policy(POLICY))

    def test_modes(self) -> None:
        """A policy that says `none` needs no server; it still says for how long."""
        none = parse_policy(b"version: STSv1\nmode: none\nmax_age: 0\n")
        self.assertEqual(none, StsPolicy(StsMode.NONE, (), 0))
        testing = parse_policy(POLICY.replace(b"enforce", b"testing"))
        self.assertIs(testing.mode, StsMode.TESTING)
        longest = parse_policy(POLICY.replace(b"604800", b"%d" % LONGEST_AGE))
        self.assertEqual(longest.max_age, LONGEST_AGE)

    def test_mistakes(self) -> None:
        """What the grammar does not allow is no policy, and it is said why."""
        for octets, why in (
            (b"", "version is not STSv1"),
            (b"\0" * 100, "no field"),
            (POLICY.replace(b"STSv1", b"STSv2"), "version is not STSv1"),
            (POLICY.replace(b"version", b"Version"), "version is not STSv1"),
            (POLICY.replace(b"enforce", b"Enforce"), "mode is none of"),
            (POLICY.replace(b"mode: enforce\r\n", b""), "mode is none of"),
            (POLICY.replace(b"mx: ", b"x: "), "names no mx"),
            (POLICY.replace(b"mx: ", b"x: ").replace(b"enforce", b"testing"), "names no mx"),
            (POLICY.replace(b"604800", b"-1"), "max_age is no number up to 31557600"),
            (POLICY.replace(b"604800", b"31557601"), "max_age is no number up to 31557600"),
            (POLICY.replace(b"604800", b"99999999999"), "max_age is no number"),
            (POLICY.replace(b"604800", b"60s"), "max_age is no number"),
            (POLICY.replace(b"max_age: 604800\r\n", b""), "max_age is no number"),
            (POLICY.replace(b"604800", "٦٠".encode()), "max_age is no number"),
            (POLICY + b"mx: *\n", "no name of a host"),
            (POLICY + b"mx: *.*.example.com\n", "no name of a host"),
            (POLICY + b"mx: mx.*.example.com\n", "no name of a host"),
            (POLICY + b"mx: .example.com\n", "no name of a host"),
            (POLICY + b"mx: -a.example.com\n", "no name of a host"),
            (POLICY + b"mx: [192.0.2.1]\n", "no name of a host"),
            (POLICY + b"mx: " + b"a." * 150 + b"b\n", "no name of a host"),
            (POLICY + "mx: mx.bücher.example\n".encode(), "no name of a host"),
            (POLICY + b"mx:\n", "no field"),
            (POLICY + b"nothing\n", "no field"),
            (POLICY + b" mx: a.example\n", "no field"),
            (POLICY + b"x: a\x07b\n", "no field"),
            (POLICY + b"x: a\tb\n", "no field"),
            (POLICY.replace(b"\r\n", b"\r"), "no field"),
            (POLICY + b"x: \xff\n", "not UTF-8"),
            (POLICY + b"x" * LARGEST_OCTETS, "more than 65536 octets"),
            (b"<html><body>version: STSv1</body></html>", "no field"),
        ):
            fault = self.assertRaises(ValueError, parse_policy, octets)
            self.assertIn(why, str(fault), octets[:200])

    def test_full(self) -> None:
        """A policy as large as one may be is read whole."""
        many = b"".join(b"mx: mx%d.example.com\n" % n for n in range(3000))[: LARGEST_OCTETS - 200]
        policy = parse_policy(POLICY + many.rpartition(b"\n")[0])
        self.assertGreater(len(policy.mx), 2000)

    @ALL
    @given(
        st.binary(max_size=200)
        | st.lists(
            st.sampled_from([*POLICY.split(b"\r\n"), b"mode: none", b"mx: *.a", b"\0", b"x: \xff"])
        ).map(b"\n".join)
    )
    def test_any_octets(self, octets: bytes) -> None:
        """Whatever octets there are: a policy that can be meant, or a ValueError in our words."""
        try:
            policy = parse_policy(octets)
        except ValueError as fault:
            self.assertRegex(str(fault), r"\A[ -~]+\Z")
            return
        self.assertIn(b"STSv1", octets)
        self.assertTrue(0 <= policy.max_age <= LONGEST_AGE)
        self.assertTrue(policy.mx or policy.mode is StsMode.NONE)
        for name in policy.mx:
            self.assertRegex(name, r"\A(\*\.)?[a-z0-9.-]+\Z")


class NameTests(SynchronousTestCase):
    def test_names(self) -> None:
        """A name is itself, without case; a wildcard is one label and neither none nor two."""
        policy = StsPolicy(StsMode.ENFORCE, ("mx.example.com", "*.example.net"), 1)
        for host, expected in (
            ("mx.example.com", True),
            ("MX.Example.COM.", True),
            ("a.example.net", True),
            ("example.net", False),
            (".example.net", False),
            ("a.b.example.net", False),
            ("aexample.net", False),
            ("a.mx.example.com", False),
            ("example.com", False),
            ("*.example.net", True),
            ("", False),
            (".", False),
        ):
            self.assertEqual(names(policy, host), expected, host)

    @ALL
    @given(st.lists(PATTERN, max_size=4), HOST)
    def test_any(self, patterns: list[str], host: str) -> None:
        """The same as by regular expressions."""
        policy = StsPolicy(StsMode.ENFORCE, tuple(patterns), 1)
        expected = any(
            re.fullmatch(re.escape(p).replace(r"\*", "[^.]+", 1), host) for p in patterns
        )
        self.assertEqual(names(policy, host), expected)

    def test_media_types(self) -> None:
        """Plain text, whatever its parameters."""
        for value, expected in (
            ("text/plain", True),
            ("Text/Plain; charset=utf-8", True),
            (" text/plain ;x=y", True),
            ("text/html", False),
            ("text/plainly", False),
            ("", False),
        ):
            self.assertEqual(is_plain_text(value), expected, value)
