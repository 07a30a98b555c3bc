"""The words of etcd's gateway: what is asked, what is believed, and that nothing else is."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.cluster.etcd_json import (
    Claimed,
    NoSuchLease,
    WatchNews,
    claim_request,
    parse_claim,
    parse_grant,
    parse_keepalive,
    parse_range,
    parse_revoke,
    parse_watch,
    range_request,
    refusal,
    watch_request,
)
from mta.errors import MTAError, RemoteProtocolError, TransientFailure

HEADER = {"cluster_id": "14841639068965178418", "member_id": "1", "revision": "7", "raft_term": "2"}
LEASE = 7587870000000000001
KEY = base64.b64encode(b"/mta/x/owner").decode()


def octets(**fields: Any) -> bytes:
    return json.dumps({"header": HEADER, **fields}).encode()


def result(**fields: Any) -> bytes:
    return json.dumps({"result": {"header": HEADER, **fields}}).encode()


class RequestTests(SynchronousTestCase):
    def test_requests(self) -> None:
        """Keys are base64, numbers strings; a read is never serializable."""
        self.assertEqual(json.loads(range_request(b"/mta/x/owner")), {"key": KEY})
        said = json.loads(claim_request(b"/mta/x/owner", b"v", LEASE))
        (compare,), (success,) = said["compare"], said["success"]
        self.assertEqual(compare["create_revision"], "0")
        self.assertEqual(success["request_put"]["lease"], str(LEASE))
        self.assertEqual(
            json.loads(watch_request(b"k", 7))["create_request"]["start_revision"], "8"
        )


class AnswerTests(SynchronousTestCase):
    def test_value_beyond_ascii(self) -> None:
        """A value with letters that base64 has not is refused by name, as any other that is none."""
        found = {"key": KEY, "create_revision": "5", "value": "\u00e9"}
        self.assertRaises(RemoteProtocolError, parse_range, octets(kvs=[found]))

    """As etcd 3.4.23 answers (measured), and as it does not."""

    def test_keepalive(self) -> None:
        """A keepalive with a TTL renews; one that is whole but has none says that the lease is gone."""
        self.assertEqual(parse_keepalive(result(ID=str(LEASE), TTL="5"), LEASE), 5)
        self.assertEqual(parse_keepalive(result(ID=str(LEASE)), LEASE), 0)

    def test_grant(self) -> None:
        self.assertEqual(parse_grant(octets(ID=str(LEASE), TTL="2")), (LEASE, 2))

    def test_range(self) -> None:
        """Who holds the key, by which lease; an absent key has no list of keys."""
        self.assertEqual(parse_range(octets()), (None, 7))
        found = {
            "key": KEY,
            "create_revision": "5",
            "mod_revision": "5",
            "version": "1",
            "value": "dg==",
        }
        holding, _ = parse_range(octets(kvs=[{**found, "lease": str(LEASE)}], count="1"))
        assert holding is not None
        self.assertEqual((holding.value, holding.token, holding.lease), (b"v", 5, LEASE))
        holding, _ = parse_range(octets(kvs=[found], count="1"))
        assert holding is not None
        self.assertEqual(holding.lease, 0)

    def test_claim(self) -> None:
        """`succeeded` that is left out is false."""
        self.assertEqual(parse_claim(octets(succeeded=True)), Claimed(True, 7))
        self.assertEqual(parse_claim(octets()), Claimed(False, 7))

    def test_watch(self) -> None:
        """Only a deletion is told; a watch that was canceled or compacted has ended."""
        self.assertEqual(parse_watch(result(created=True)), WatchNews())
        self.assertEqual(parse_watch(result(events=[{"kv": {"key": KEY}}])), WatchNews())
        self.assertTrue(
            parse_watch(result(events=[{"type": "DELETE", "kv": {"key": KEY}}])).is_gone
        )
        self.assertIn("auth", parse_watch(result(canceled=True, cancel_reason="auth")).has_ended)
        self.assertIn("compacted", parse_watch(result(compact_revision="9")).has_ended)

    def test_refusals(self) -> None:
        """An unknown lease is told from other refusals; what etcd says is quoted, shortened."""
        said = {"error": "etcdserver: requested lease not found", "code": 5}
        self.assertIsInstance(refusal(404, json.dumps(said).encode()), NoSuchLease)
        self.assertRaises(NoSuchLease, parse_revoke, json.dumps(said).encode())
        for answer in (
            b"\x1b[2J",
            b"[]",
            b"{}",
            b'{"error": {"message": "no leader"}}',
            b"[" * 100_000,
        ):
            fault = refusal(503, answer)
            self.assertNotIsInstance(fault, NoSuchLease)
            self.assertNotIn("\x1b", str(fault))
        stream = b'{"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}'
        with self.assertRaises(TransientFailure) as caught:
            parse_keepalive(stream, LEASE)
        self.assertIn("no leader", str(caught.exception))

    def test_not_etcd(self) -> None:
        """What etcd would not say is refused by name, and is neither a lease nor the loss of one."""
        for wrong in (
            b"",
            b"{}",
            b"null",
            b"hello",
            b'{"result": 5}',
            b'{"header": {}}',
            b'{"header": {"cluster_id": "1", "revision": 7}}',
            octets(ID=LEASE, TTL=5),
            octets(ID=str(LEASE), TTL="-5"),
            octets(ID=str(LEASE), TTL="5.0"),
            octets(ID=str(LEASE), TTL="9" * 30),
            octets(ID=str(LEASE), TTL=True),
            octets(ID=str(LEASE)),
            octets(TTL="5"),
        ):
            self.assertRaises(RemoteProtocolError, parse_grant, wrong)
        for wrong in (
            octets(),
            result(ID="5"),
            result(ID=str(LEASE), TTL=5),
            result(),
            b'{"result": {"ID": "5"}}',
        ):
            self.assertRaises(RemoteProtocolError, parse_keepalive, wrong, LEASE)
        for wrong in (
            octets(kvs=[1]),
            octets(kvs={}),
            octets(kvs=[{"value": "="}]),
            octets(kvs=[{}, {}]),
        ):
            self.assertRaises(RemoteProtocolError, parse_range, wrong)
        self.assertRaises(RemoteProtocolError, parse_claim, octets(succeeded="true"))
        self.assertRaises(RemoteProtocolError, parse_watch, result(events={}))

    @settings(max_examples=500, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=9),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(
                            [
                                "header",
                                "result",
                                "ID",
                                "TTL",
                                "kvs",
                                "error",
                                "events",
                                "cluster_id",
                                "value",
                                "create_revision",
                                "succeeded",
                                "message",
                            ]
                        ),
                        inner,
                        max_size=5,
                    )
                ),
                max_leaves=12,
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    def test_any_answer(self, answer: bytes) -> None:
        """Whatever is answered, it is understood or refused by a named error."""
        parsers: Any = (parse_grant, parse_range, parse_claim, parse_revoke, parse_watch)
        for parse in (*parsers, lambda said: parse_keepalive(said, LEASE)):
            try:
                parse(answer)
            except MTAError as fault:
                self.assertTrue(fault.what)
        self.assertTrue(refusal(500, answer).what)
