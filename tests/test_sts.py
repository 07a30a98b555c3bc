"""MTA-STS: how a policy is got over HTTPS, kept, refreshed and found again after a restart."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from zope.interface.verify import verifyObject

from mta.association.sts import LOOK_SECONDS, PAUSE_SECONDS, SAVE_SECONDS, WAIT_SECONDS
from mta.association.sts_book import (
    AGAIN_SECONDS,
    REFRESH_SECONDS,
    UNUSED_SECONDS,
)
from mta.association.sts_fetch import FETCH_SECONDS, PolicyFetch, Unfetched
from mta.association.tls import Tls
from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.errors import TransientFailure
from mta.interfaces import IStsPolicies
from mta.model import StsMode, StsPolicy
from mta.resolver.memory import MemoryResolver
from mta.telemetry import TlsAttempt
from mta.testing.disk import ForgetfulDisk
from mta.testing.executors import InlineExecutor
from mta.testing.network import MemoryNetwork
from mta.testing.surroundings import MemorySurroundings
from tests.test_tls import TlsTestCase

HOST = "mta-sts.example.com"
TEXT = b"version: STSv1\nmode: enforce\nmx: mx.example.com\nmax_age: 604800\n"
POLICY = StsPolicy(StsMode.ENFORCE, ("mx.example.com",), 604800)
RECORD = "_mta-sts.example.com"
DAY = 86400.0


def answer(
    body: bytes, head: bytes = b"HTTP/1.1 200 OK", kind: bytes = b"text/plain; charset=utf-8"
) -> bytes:
    fields = b"\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
    return head + fields + body


class PolicyHost:
    """An HTTPS server of the memory network that says what a test wants, and then closes."""

    def __init__(
        self, case: TlsTestCase, network: MemoryNetwork, address: str, *names: str, file: str = ""
    ) -> None:
        self.says: bytes | None = answer(TEXT)
        """None: it says nothing."""
        self.closes = True
        self.asked: list[bytes] = []
        self.lost = 0
        self.ends: list[Any] = []
        host = self
        names = names or (HOST,)
        pair = case.issue(*names, file=file or "policy")
        chosen = CertificateSettings(chain=pair.chain, key_file=pair.key)
        tls = Tls(TlsSettings(certificates=(chosen,)), names[0], case.clock, case.telemetry)

        class Server(Protocol):
            def connectionMade(self) -> None:
                self.transport.startTLS(tls.accepting())  # type: ignore[union-attr]
                self.heard = b""
                host.ends.append(self.transport)

            def dataReceived(self, data: bytes) -> None:
                self.heard += data
                if self.heard.endswith(b"\r\n\r\n"):
                    host.asked.append(self.heard)
                    if host.says is not None:
                        self.transport.write(host.says)  # type: ignore[union-attr]
                        if host.closes:
                            self.transport.loseConnection()  # type: ignore[union-attr]

            def connectionLost(self, reason: Any = None) -> None:
                host.lost += 1

        bracketed = f"[{address}]" if ":" in address else address
        network.serve_service(f"tcp:{bracketed}:443", Factory.forProtocol(Server))


class StsTestCase(TlsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.around = MemorySurroundings(clock=self.clock, tls=self.tls(trust=self.trust))
        resolver = self.around.resolver
        assert isinstance(resolver, MemoryResolver)
        self.resolver = resolver
        resolver.add_host(HOST, "198.51.100.5")

    def host(self, *names: str, address: str = "198.51.100.5", file: str = "") -> PolicyHost:
        return PolicyHost(self, self.around.network, address, *names, file=file)

    def turn(self) -> None:
        for _ in range(20):
            self.around.advance(0)

    def policies(self, **changes: Any) -> Any:
        """The policies of another process with the same clock, disk and network."""
        around = MemorySurroundings(
            network=self.around.network,
            telemetry=self.around.telemetry,
            disk=changes.get("disk", self.around.disk),
            resolver=self.resolver,
            tls=self.around.tls,
        )
        around.events = self.around.events
        return around.sts


class FetchTests(StsTestCase):
    def fetch(self) -> Deferred[StsPolicy | Unfetched]:
        around = self.around
        fetch = PolicyFetch(around.doors, around.resolver, around.tls, around.clock)
        asked = Deferred.fromCoroutine(fetch.policy("example.com"))
        self.turn()
        return asked

    def got(self) -> StsPolicy | Unfetched:
        return self.successResultOf(self.fetch())

    def test_fetched(self) -> None:
        """One GET for the well-known path at the policy's host, and the connection is closed."""
        host = self.host()
        self.assertEqual(self.got(), POLICY)
        (asked,) = host.asked
        self.assertTrue(asked.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n"), asked)
        self.assertIn(b"\r\nHost: mta-sts.example.com\r\n", asked)
        self.assertIn(b"\r\nConnection: close\r\n", asked)
        self.assertEqual(host.lost, 1)

    def test_every_framing(self) -> None:
        """By length, in chunks, or up to the end; the server need not close."""
        host = self.host()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
        chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, TEXT[:10], len(TEXT) - 10, TEXT[10:])
        for says, closes in (
            (answer(TEXT), False),
            (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, False),
            (head + b"\r\n" + TEXT, True),
            (b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n" + TEXT, True),
        ):
            host.says, host.closes = says, closes
            found = self.got()
            self.assertEqual(found, POLICY, (says, found))
        self.assertEqual(host.lost, 4)

    def test_cut_off(self) -> None:
        """An answer without a length that ends otherwise than by TLS's own word is not whole."""
        host = self.host()
        host.says = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + TEXT
        host.closes = False
        asked = self.fetch()
        self.assertNoResult(asked)
        host.ends[0].lose_plainly()
        self.turn()
        found = self.successResultOf(asked)
        assert isinstance(found, Unfetched)
        self.assertIn("does not answer in HTTP (PartialDownloadError)", found.why)

    def test_ipv6_and_the_next_address(self) -> None:
        """An address where nobody answers costs an attempt; so does one with a wrong certificate."""
        self.resolver.add_host(HOST, "198.51.100.9", "198.51.100.6", "2001:db8::5")
        self.host("other.example", address="198.51.100.6", file="other")
        self.host(address="2001:db8::5")
        self.assertEqual(self.got(), POLICY)

    def refused(self, result: str, why: str) -> None:
        found = self.got()
        self.assertIsInstance(found, Unfetched)
        assert isinstance(found, Unfetched)
        self.assertEqual(found.result, result)
        self.assertIn(why, found.why)

    def test_answers(self) -> None:
        """200 with plain text and a policy, or there is none; nothing is followed elsewhere."""
        host = self.host()
        elsewhere = b"HTTP/1.1 %d Found\r\nLocation: https://mta-sts.example.com/other"
        for says, result, why in (
            (answer(TEXT, elsewhere % 301), "sts-policy-fetch-error", f"{HOST} answers 301"),
            (answer(TEXT, elsewhere % 302), "sts-policy-fetch-error", f"{HOST} answers 302"),
            (answer(TEXT, b"HTTP/1.1 404 No"), "sts-policy-fetch-error", "answers 404"),
            (answer(TEXT, b"HTTP/1.1 206 Part"), "sts-policy-fetch-error", "answers 206"),
            (answer(TEXT, kind=b"text/html"), "sts-policy-invalid", "is not text/plain"),
            (answer(b"version: STSv1\n"), "sts-policy-invalid", "the policy is damaged: its mode"),
            (answer(b"\0" * 65_537), "sts-policy-invalid", "more than 65536 octets"),
            (answer(b"x" * 500_000), "sts-policy-invalid", "sends more than 131072 octets"),
            (b"x: y\r\n" * 60_000, "sts-policy-fetch-error", "does not answer in HTTP"),
            (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60_000, "sts-policy-invalid", "sends more"),
            (b"220 mx.example.com ESMTP\r\n", "sts-policy-fetch-error", "does not answer in HTTP"),
            (b"", "sts-policy-fetch-error", "does not answer in HTTP"),
            (answer(TEXT)[:-9], "sts-policy-fetch-error", "does not answer in HTTP"),
        ):
            host.says, before = says, len(host.asked)
            self.refused(result, why)
            self.assertEqual(len(host.asked), before + 1, says[:99])
        self.assertEqual(host.lost, len(host.asked))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        st.binary(max_size=300)
        | st.lists(st.sampled_from([
            b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 304 No\r\n",
            b"Content-Type: text/plain\r\n", b"Content-Length: 9\r\n", b"Content-Length: x\r\n",
            b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"x\r\n", b"\r\n", b"\0",
            b"ffffffffffff\r\n", b"0\r\n", TEXT, TEXT[:40],
        ]), max_size=9).map(b"".join),
        st.booleans(),
    )  # fmt: skip
    def test_any_answer(self, says: bytes, closes: bool) -> None:
        """Whatever a host says, it is a policy or none, in bounded time, and nothing stays open."""
        host = self.host(address=f"198.51.100.{5 + closes}", file=f"any{closes}")
        self.resolver.add_host(HOST, f"198.51.100.{5 + closes}")
        host.says, host.closes = says, closes
        asked = self.fetch()
        self.around.advance(FETCH_SECONDS)
        found = self.successResultOf(asked)
        self.assertTrue(found == POLICY or isinstance(found, Unfetched), found)
        self.turn()
        self.assertEqual(host.lost, len(host.ends))
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_certificates(self) -> None:
        """For another name, for the domain itself, from nobody known: not one octet is asked of it."""
        for names, result, why in (
            (("example.com", "www.example.com"), "sts-webpki-invalid", "is not for mta-sts.exam"),
            (("*.example.com",), "", ""),
        ):
            host = self.host(*names, file=names[0].replace("*", "w"))
            if result:
                self.refused(result, why)
                self.assertEqual(host.asked, [])
            else:
                self.assertEqual(self.got(), POLICY)
        self.around.tls = self.tls()
        host = self.host()
        self.refused("sts-webpki-invalid", "TLS handshake failed: certificate verify failed")
        self.assertEqual(host.asked, [])

    def test_nobody(self) -> None:
        """No address, nobody there, no name server, or an address of this node itself."""
        self.refused("sts-policy-fetch-error", "198.51.100.5: policy-fetch service at tcp:198.51")
        self.resolver.add_host(HOST, "127.0.0.1", "::1", "0.0.0.0")
        self.host(address="127.0.0.1")
        self.refused("sts-policy-fetch-error", f"{HOST} has no address in the network")
        self.resolver.break_name(HOST, TransientFailure("the look-up failed", "SERVFAIL"))
        self.refused("sts-policy-fetch-error", "SERVFAIL")
        self.resolver = self.around.resolver = MemoryResolver()
        self.refused("sts-policy-fetch-error", f"there is no host {HOST}")

    def test_too_slow(self) -> None:
        """A host that says nothing is left after a minute, and not before."""
        host = self.host()
        host.says = None
        asked = self.fetch()
        self.around.advance(FETCH_SECONDS - 0.1)
        self.assertNoResult(asked)
        self.around.advance(0.1)
        found = self.successResultOf(asked)
        self.assertEqual(found, Unfetched("sts-policy-fetch-error", "it took more than 60 s"))
        self.turn()
        self.assertEqual(host.lost, 1)

    def test_cancelled(self) -> None:
        """Given up at any moment it leaves no connection and no timer."""
        host = self.host()
        host.says = None
        for _ in range(2):
            asked = self.fetch()
            asked.cancel()
            self.failureResultOf(asked)
            self.turn()
        self.assertEqual(host.lost, 2)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])


class PoliciesTests(StsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sts = self.around.sts
        self.announce("1")

    def announce(self, name: str) -> None:
        self.resolver.add_texts(RECORD, b"v=STSv1; id=%s" % name.encode())

    def policy(self, sts: Any = None) -> StsPolicy | None:
        asked = (sts or self.sts).policy("example.com")
        self.turn()
        found: StsPolicy | None = self.successResultOf(asked)
        return found

    def fetches(self, result: str) -> int:
        return int(self.around.telemetry.counter("mta_sts_fetches_total", result=result).value)

    def test_interface(self) -> None:
        """It is what connectors are promised."""
        verifyObject(IStsPolicies, self.sts)

    def test_asked_once(self) -> None:
        """Fetched when mail first needs it, then kept as long as the record has the same id."""
        host = self.host()
        self.assertEqual(self.sts.known("example.com"), "no policy is known")
        for _ in range(3):
            self.assertEqual(self.policy(), POLICY)
        self.assertEqual(len(host.asked), 1)
        self.assertRegex(
            self.sts.known("example.com"), r"^enforce for mx\.example\.com, until 20\d\d-\d\d-\d\d "
        )
        (said,) = self.around.notices("info")
        self.assertRegex(said, r"^mta-sts: example\.com: its policy is enforce for mx\..*\(id 1\)$")
        self.assertEqual(self.around.telemetry.gauge("mta_sts_policies").value, 1)

    def test_no_record(self) -> None:
        """A domain that announces nothing costs one question to DNS and is answered at once."""
        host = self.host()
        for records in ((), (b"v=spf1 -all",), (b"v=STSv1; id=1", b"v=STSv1; id=2")):
            self.resolver.add_texts(RECORD, *records)
            self.assertIsNone(self.successResultOf(self.sts.policy("example.com")))
        self.assertEqual(host.asked, [])
        self.assertEqual(self.around.events, [])

    def test_new_id(self) -> None:
        """Another id in the record brings the new policy before the next mail goes."""
        host = self.host()
        self.policy()
        host.says = answer(TEXT.replace(b"mx.", b"new."))
        self.assertEqual(self.policy(), POLICY)
        self.announce("2")
        found = self.policy()
        assert found is not None
        self.assertEqual(found.mx, ("new.example.com",))

    def test_known_one_holds(self) -> None:
        """Whatever fails, the policy that is known holds until it expires: host away, record gone,
        name servers away, a broken new policy.
        """
        host = self.host()
        self.policy()
        self.resolver.add_texts(RECORD)
        self.assertEqual(self.policy(), POLICY)
        self.announce("2")
        host.says = answer(b"nonsense")
        self.assertEqual(self.policy(), POLICY)
        self.assertEqual(self.fetches("sts-policy-invalid"), 1)
        (told,) = [e for e in self.around.events if isinstance(e, TlsAttempt)]
        self.assertEqual((told.domain, told.policy), ("example.com", "sts"))
        self.assertEqual((told.policy_hosts, told.mx), (POLICY.mx, ""))
        self.assertEqual(told.result, "sts-policy-invalid")
        self.assertIn("the policy is damaged", told.reason)
        (said,) = self.around.notices("warning")
        self.assertIn("(sts-policy-invalid): the policy is damaged", said)
        self.assertIn("the one that is known holds", said)
        self.around.advance(PAUSE_SECONDS)
        self.resolver.break_name(RECORD, TransientFailure("the look-up failed", "SERVFAIL"))
        self.assertEqual(self.policy(), POLICY)
        self.around.network.services.clear()
        self.around.advance(604800 - PAUSE_SECONDS - 1)
        self.assertEqual(self.policy(), POLICY)
        self.around.advance(1.5)
        self.assertIsNone(self.policy())

    def test_not_too_often(self) -> None:
        """After a failure nothing is tried for five minutes; mail goes as without a policy."""
        host = self.host()
        host.says = answer(b"", b"HTTP/1.1 503 No")
        self.assertIsNone(self.policy())
        host.says = answer(TEXT)
        self.around.advance(PAUSE_SECONDS - 0.1)
        self.assertIsNone(self.policy())
        self.assertEqual(len(host.asked), 1)
        self.around.advance(0.1)
        self.assertEqual(self.policy(), POLICY)
        (said,) = self.around.notices("warning")
        self.assertIn(f"{HOST} answers 503; mail goes as without one", said)

    def test_only_its_own_mail_waits(self) -> None:
        """Mail for a domain whose host is slow waits twenty seconds, other domains' not at all; the
        fetch goes on, and all who wait share it.
        """
        host = self.host()
        host.says = None
        waiting = [self.sts.policy("example.com") for _ in range(3)]
        self.turn()
        self.assertIsNone(self.successResultOf(self.sts.policy("example.net")))
        self.around.advance(WAIT_SECONDS - 0.1)
        for each in waiting:
            self.assertNoResult(each)
        self.around.advance(0.1)
        for each in waiting:
            self.assertIsNone(self.successResultOf(each))
        self.assertEqual(len(host.asked), 1)
        self.around.advance(FETCH_SECONDS - WAIT_SECONDS)
        self.assertEqual(self.fetches("sts-policy-fetch-error"), 1)

    def test_one_gives_up(self) -> None:
        """Who stops waiting stops nobody else: neither the fetch, nor the reading of the file."""
        host = self.host()
        first, second = (self.sts.policy("example.com") for _ in range(2))
        first.cancel()
        self.failureResultOf(first)
        self.turn()
        self.assertEqual(self.successResultOf(second), POLICY)
        self.assertEqual(len(host.asked), 1)

        class Slow(InlineExecutor):
            later: Deferred[None] = Deferred()

            def submit(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
                return self.later.addCallback(lambda _: call(*arguments))

        self.successResultOf(Deferred.fromCoroutine(self.sts.stop()))
        sts = self.policies()
        sts._file._executor = Slow()
        first, second = (sts.policy("example.com") for _ in range(2))
        first.cancel()
        self.failureResultOf(first)
        Slow.later.callback(None)
        self.turn()
        self.assertEqual(self.successResultOf(second), POLICY)
        self.assertEqual(len(host.asked), 1)

    def test_none_and_no_age(self) -> None:
        """`none` is kept like any other; a policy that ends at once is no policy."""
        host = self.host()
        host.says = answer(b"version: STSv1\nmode: none\nmax_age: 600\n")
        found = self.policy()
        assert found is not None
        self.assertIs(found.mode, StsMode.NONE)
        self.announce("2")
        host.says = answer(TEXT.replace(b"604800", b"0"))
        self.assertIsNone(self.policy())

    # --- unasked ---

    def test_refreshed(self) -> None:
        """A policy that mail needs is fetched anew each day without waiting for mail, and again an
        hour after it failed; then it holds for its whole life from there.
        """
        host = self.host()
        self.policy()
        self.around.advance(REFRESH_SECONDS - 1)
        self.turn()
        self.assertEqual(len(host.asked), 1)
        self.announce("2")
        for _ in range(2):  # it is looked every ten minutes
            self.around.advance(LOOK_SECONDS)
            self.turn()
        self.assertEqual(len(host.asked), 2)
        host.says = answer(b"", b"HTTP/1.1 500 Oh")
        self.around.advance(REFRESH_SECONDS)
        self.turn()
        self.assertEqual(len(host.asked), 3)
        host.says = answer(TEXT)
        for passed in (AGAIN_SECONDS - LOOK_SECONDS, LOOK_SECONDS):
            self.around.advance(passed)
            self.turn()
        self.assertEqual(len(host.asked), 4)
        self.around.network.services.clear()
        self.around.advance(604800 - LOOK_SECONDS)
        self.turn()
        self.assertEqual(self.policy(), POLICY)

    def test_unused(self) -> None:
        """A policy that no mail needed for a month is left to expire."""
        host = self.host()
        host.says = answer(TEXT.replace(b"604800", b"31557600"))
        self.policy()
        days = int(UNUSED_SECONDS / DAY)
        for _ in range(days + 1):
            self.around.advance(DAY)
            self.turn()
        fetched = len(host.asked)
        self.assertLessEqual(abs(fetched - days), 1)
        self.around.advance(10 * DAY)
        self.turn()
        self.assertEqual(len(host.asked), fetched)
        self.assertIsNotNone(self.policy())

    # --- over restarts ---

    def test_restart(self) -> None:
        """A policy outlives the process, and a power cut some seconds after it was learnt."""
        host = self.host()
        self.policy()
        self.around.advance(SAVE_SECONDS)
        disk = self.around.disk
        assert isinstance(disk, ForgetfulDisk)
        disk.power_cut()
        self.resolver.break_name(RECORD, TransientFailure("the look-up failed", "SERVFAIL"))
        self.assertEqual(self.policy(self.policies()), POLICY)
        self.assertEqual(len(host.asked), 1)

    def test_stop(self) -> None:
        """A process that is told to stop writes what it has learnt, gives up what is under way, and
        leaves no timer.
        """
        host = self.host()
        self.policy()
        self.announce("2")
        host.says = None
        asked = self.sts.policy("example.com")
        self.turn()
        stopped = Deferred.fromCoroutine(self.sts.stop())
        self.turn()
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(asked), POLICY)
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])
        host.says = answer(TEXT)
        self.announce("1")
        self.assertEqual(self.policy(self.policies()), POLICY)
        self.assertEqual(len(host.asked), 2)

    def test_nothing_wanted(self) -> None:
        """A process of which nobody wants a policy reads nothing, writes nothing, arms nothing."""
        self.successResultOf(Deferred.fromCoroutine(self.sts.stop()))
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])
        self.assertFalse(self.around.disk.exists("/state"))

    def test_damaged(self) -> None:
        """A file that is not whole is named and set aside; the process goes on and fetches anew."""
        host = self.host()
        self.policy()
        self.around.advance(SAVE_SECONDS)
        self.write("/state/mta-sts", self.read("/state/mta-sts")[:-5])
        self.assertEqual(self.policy(self.policies()), POLICY)
        self.assertEqual(len(host.asked), 2)
        (said,) = self.around.notices("error")
        self.assertIn("/state/mta-sts is damaged: its check sum", said)
        self.assertIn("set aside as /state/mta-sts.damaged", said)
        self.assertTrue(self.around.disk.exists("/state/mta-sts.damaged"))

    def test_disk_that_fails(self) -> None:
        """A state directory that cannot be written is named; policies hold as long as the process."""

        class Full(ForgetfulDisk):
            def pwritev(self, fd: int, pieces: Any, offset: int) -> None:
                raise OSError(28, "No space left on device")

        self.host()
        sts = self.policies(disk=Full())
        self.assertEqual(self.policy(sts), POLICY)
        self.around.advance(SAVE_SECONDS)
        (said,) = self.around.notices("error")
        self.assertIn("/state/mta-sts cannot be written: [Errno 28]", said)
        self.assertEqual(self.policy(sts), POLICY)

    def read(self, path: str) -> bytes:
        disk = self.around.disk
        descriptor = disk.open(path, os.O_RDONLY)
        found = disk.pread(descriptor, disk.size(descriptor), 0)
        disk.close(descriptor)
        return found

    def write(self, path: str, octets: bytes) -> None:
        disk = self.around.disk
        descriptor = disk.open(path, os.O_RDWR)
        disk.truncate(descriptor, 0)
        disk.pwritev(descriptor, [octets], 0)
        disk.close(descriptor)
