"""What is said to etcd's v3 JSON gateway, and what its answers mean. Pure.

Law: an answer is untrusted. What is not shaped as etcd shapes it is refused by name and means
nothing: neither that the lease lives nor that it is lost. What etcd leaves out is false or zero
(protobuf's JSON mapping), and 64-bit numbers are strings.

A keepalive of a dead lease answers 200 and leaves out TTL (measured): only that, in an answer that
is otherwise whole, says that the lease is gone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from mta.errors import RemoteProtocolError, TransientFailure

LARGEST_NUMBER = 2**63 - 1
LONGEST_TTL = 9_000_000_000
"""Seconds; etcd's own limit."""


class NoSuchLease(TransientFailure):
    """etcd does not know the lease that a request named."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds the key: its value, token (create_revision) and the lease it lives by (0: none).

    `revision` is that of the whole store when it was read.
    """

    value: bytes
    token: int
    lease: int
    revision: int

    @property
    def node(self) -> str:
        """The node that the value names; "" when it is not of our making."""
        try:
            node = json.loads(self.value)["node"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return ""
        if not isinstance(node, str) or len(node) > 255 or not node.isprintable():
            return ""
        return node

    @property
    def who(self) -> str:
        """For people."""
        node = self.node or "somebody who does not say its node"
        how = f"lease {self.lease:x}" if self.lease else "no lease: `etcdctl del` ends it"
        return f"held by {node} (token {self.token}, {how})"


@dataclass(frozen=True, slots=True)
class Claimed:
    """`is_ours`: the key was free and is ours now, with `token` for its create_revision."""

    is_ours: bool
    token: int


@dataclass(frozen=True, slots=True)
class WatchNews:
    """One line of a watch. `is_gone`: the key was deleted. `has_ended`: the watch was, and why."""

    is_gone: bool = False
    has_ended: str = ""


# --- requests ---------------------------------------------------------------------------------


def _b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _body(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def grant_request(ttl_seconds: int) -> bytes:
    """POST /v3/lease/grant."""
    return _body({"TTL": str(ttl_seconds)})


def lease_request(lease: int) -> bytes:
    """POST /v3/lease/keepalive and /v3/lease/revoke."""
    return _body({"ID": str(lease)})


def range_request(key: bytes) -> bytes:
    """POST /v3/kv/range. Never `serializable`: a member that is cut off would answer it."""
    return _body({"key": _b64(key)})


def claim_request(key: bytes, value: bytes, lease: int) -> bytes:
    """POST /v3/kv/txn: put the key with our lease if it does not exist."""
    free = {"target": "CREATE", "result": "EQUAL", "key": _b64(key), "create_revision": "0"}
    put = {"key": _b64(key), "value": _b64(value), "lease": str(lease)}
    return _body({"compare": [free], "success": [{"request_put": put}]})


def watch_request(key: bytes, after_revision: int) -> bytes:
    """POST /v3/watch: every change of the key later than `after_revision`."""
    create = {"key": _b64(key), "start_revision": str(after_revision + 1), "filters": ["NOPUT"]}
    return _body({"create_request": create})


# --- answers ----------------------------------------------------------------------------------


def parse_grant(answer: bytes) -> tuple[int, int]:
    """(lease, TTL in seconds). etcd's floor is 2 s, whatever was asked for."""
    fields = _answer(answer)
    _header(fields)
    lease, ttl = _number(fields, "ID"), _number(fields, "TTL")
    if lease < 1 or not 1 <= ttl <= LONGEST_TTL:
        raise _strange("a lease was granted without an ID or a TTL", answer)
    return lease, ttl


def parse_keepalive(answer: bytes, lease: int) -> int:
    """The TTL from now on, 0 when etcd no longer knows the lease."""
    fields = _answer(answer).get("result")
    if not isinstance(fields, dict):
        raise _strange("a keepalive has no result", answer)
    _header(fields)
    if _number(fields, "ID") != lease:
        raise _strange("a keepalive answers for another lease", answer)
    ttl = _number(fields, "TTL")
    if not 0 <= ttl <= LONGEST_TTL:
        raise _strange("a keepalive names an impossible TTL", answer)
    return ttl


def parse_revoke(answer: bytes) -> None:
    _header(_answer(answer))


def parse_range(answer: bytes) -> tuple[Holding | None, int]:
    """Who holds the key, and the store's revision."""
    fields = _answer(answer)
    revision = _header(fields)
    found = fields.get("kvs", [])
    if not isinstance(found, list) or len(found) > 1:
        raise _strange("a range of one key answers several", answer)
    if not found:
        return None, revision
    return _holding(found[0], revision, answer), revision


def parse_claim(answer: bytes) -> Claimed:
    fields = _answer(answer)
    revision = _header(fields)
    succeeded = fields.get("succeeded", False)
    if not isinstance(succeeded, bool):
        raise _strange("a transaction says neither true nor false", answer)
    return Claimed(succeeded, revision)


def parse_watch(line: bytes) -> WatchNews:
    fields = _answer(line).get("result")
    if not isinstance(fields, dict):
        raise _strange("a watch has no result", line)
    _header(fields)
    if fields.get("canceled"):
        return WatchNews(has_ended=f"canceled: {str(fields.get('cancel_reason', ''))[:200]!r}")
    if "compact_revision" in fields:
        return WatchNews(has_ended="its revision was compacted")
    events = fields.get("events", [])
    if not isinstance(events, list):
        raise _strange("a watch names no list of events", line)
    gone = any(isinstance(event, dict) and event.get("type") == "DELETE" for event in events)
    return WatchNews(is_gone=gone)


def refusal(status: int, answer: bytes) -> TransientFailure:
    """The error that an answer with another status than 200 stands for."""
    try:
        fields = json.loads(answer)
        said = fields.get("message") or fields.get("error") or ""
    except (ValueError, AttributeError, RecursionError):
        said = answer[:100].decode("ascii", "backslashreplace")
    text = str(said)[:200]
    kind = NoSuchLease if "lease not found" in text else TransientFailure
    return kind(f"etcd answered {status}", repr(text), "see etcd's own log")


# --- shapes -----------------------------------------------------------------------------------


def _strange(what: str, answer: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(
        "this is not how etcd answers",
        f"{what}: {answer[:120]!r}",
        "does the endpoint in cluster.endpoints lead to etcd 3.4 or newer?",
    )


def _answer(octets: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(octets)
    except (ValueError, RecursionError):
        raise _strange("it is no JSON", octets) from None
    if not isinstance(fields, dict):
        raise _strange("it is no object", octets)
    error = fields.get("error")
    if error:  # a stream that fails after its headers says so under 200
        said = error.get("message", error) if isinstance(error, dict) else error
        kind = NoSuchLease if "lease not found" in str(said) else TransientFailure
        raise kind("etcd answered an error", repr(str(said)[:200]), "see etcd's own log")
    return fields


def cluster_of(octets: bytes) -> str:
    """The id of the cluster that gave this answer; "" when it says none."""
    try:
        fields = json.loads(octets)
        return str(fields.get("result", fields)["header"]["cluster_id"])
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return ""


def _header(fields: dict[str, Any]) -> int:
    """The revision in the header that every answer bears."""
    header = fields.get("header")
    if not isinstance(header, dict) or "cluster_id" not in header:
        raise _strange("it has no header of a cluster", json.dumps(fields)[:200].encode())
    return _number(header, "revision")


def _number(fields: dict[str, Any], key: str) -> int:
    """An int64: a string of digits; 0 when it is left out."""
    text = fields.get(key, "0")
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 20:
        raise _strange(f"{key} is not a number", json.dumps(fields)[:200].encode())
    number = int(text)
    if number > LARGEST_NUMBER:
        raise _strange(f"{key} is too large", json.dumps(fields)[:200].encode())
    return number


def _holding(found: Any, revision: int, answer: bytes) -> Holding:
    if not isinstance(found, dict):
        raise _strange("a key is no object", answer)
    try:
        value = base64.b64decode(str(found.get("value", "")), validate=True)
    except ValueError:
        raise _strange("a value is not base64", answer) from None
    token = _number(found, "create_revision")
    if token < 1:
        raise _strange("a key has no create_revision", answer)
    return Holding(value, token, _number(found, "lease"), revision)
