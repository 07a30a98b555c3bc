"""An etcd and a watchdog of memory, in virtual time.

Law: the etcd speaks the v3 JSON gateway in octets, as etcd 3.4 does (what is false or zero is left
out, 64-bit numbers are strings, a keepalive of a dead lease has no TTL); the watchdog reads the
shared deadline and obeys the commands of the real one, on a kernel of paper. What the real ones do
is tried in the rig.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mta.cluster.watchdog import BEAT_SECONDS, MEMORY_OCTETS, read_deadline, write_deadline
from mta.interfaces import ITimer
from mta.model import VirtualAddress
from mta.testing.kernel import PaperNetlink
from mta.testing.surroundings import MemorySurroundings

FLOOR_SECONDS = 2
"""The shortest TTL that etcd grants."""


@dataclass
class _Key:
    value: bytes
    revision: int
    lease: int


@dataclass
class PaperEtcd:
    """Serves `endpoints` of a memory network. Everything that was asked is in `asked`.

    `down` endpoints refuse, `deaf` ones accept and never answer, `crooked` ones answer what is put
    there for a path (status, octets).
    """

    surroundings: MemorySurroundings
    endpoints: tuple[str, ...] = ("tcp:10.9.0.3:2379",)
    cluster: str = "14841639068965178418"
    down: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    crooked: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    keys: dict[bytes, _Key] = field(default_factory=dict)
    leases: dict[int, tuple[float, ITimer | None]] = field(default_factory=dict)
    """Lease -> its TTL and the timer of its end."""
    dawdles: float = 0.0
    """Not 0: seconds to the head of an answer, whose body never comes."""
    ends_watches: bool = False
    """Each watch is cancelled as soon as it was created."""
    revision: int = 100
    next_lease: int = 7587870000000000001
    watches: list[tuple[bytes, int, _Server]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for endpoint in self.endpoints:
            self.surroundings.network.serve_service(endpoint, _Port(self, endpoint))

    # --- what an operator, or another node, does

    def hold(self, key: bytes, node: str, *, leased: bool = True) -> int:
        """Another node creates the key; answers its lease."""
        lease = self.grant(None) if leased else 0
        self.put(key, json.dumps({"node": node}).encode(), lease)
        return lease

    def put(self, key: bytes, value: bytes, lease: int) -> int:
        self.revision += 1
        known = self.keys.get(key)
        self.keys[key] = _Key(value, known.revision if known else self.revision, lease)
        return self.revision

    def delete(self, key: bytes) -> None:
        if self.keys.pop(key, None) is None:
            return
        self.revision += 1
        for watched, after, server in tuple(self.watches):
            if watched == key and self.revision > after:
                event = {"type": "DELETE", "kv": {"key": _b64(key)}}
                server.stream({"result": {"header": self.header(), "events": [event]}})

    def end_watches(self, **why: object) -> None:
        """Every watch ends: `canceled=True, cancel_reason=...`, or `compact_revision=...`."""
        ended, self.watches = self.watches, []
        for _key, _after, server in ended:
            server.stream({"result": {"header": self.header(), **why}})

    def grant(self, ttl: int | None) -> int:
        """None: somebody renews it for ever."""
        self.next_lease += 1
        if ttl is None:
            self.leases[self.next_lease] = (60.0, None)
        else:
            self._renew(self.next_lease, max(ttl, FLOOR_SECONDS))
        return self.next_lease

    def revoke(self, lease: int) -> None:
        """The lease ends, and the keys that lived by it."""
        _ttl, timer = self.leases.pop(lease)
        if timer is not None:
            timer.cancel()
        for key in [key for key, held in self.keys.items() if held.lease == lease]:
            self.delete(key)

    def _renew(self, lease: int, ttl: float) -> None:
        _ttl, timer = self.leases.get(lease, (ttl, None))
        if timer is not None:
            timer.cancel()
        ends = self.surroundings.clock.call_later(ttl, self.revoke, lease)
        self.leases[lease] = (ttl, ends)

    def header(self) -> dict[str, str]:
        return {"cluster_id": self.cluster, "revision": str(self.revision)}

    # --- the gateway

    def answer(self, path: str, said: dict[str, Any], server: _Server) -> None:
        header = self.header()
        if path == "/v3/lease/grant":
            lease = self.grant(int(said["TTL"]))
            ttl = self.leases[lease][0]
            server.reply(200, {"header": header, "ID": str(lease), "TTL": str(int(ttl))})
        elif path == "/v3/lease/keepalive":
            lease = int(said["ID"])
            result: dict[str, Any] = {"header": header, "ID": str(lease)}
            if lease in self.leases:
                ttl = self.leases[lease][0]
                self._renew(lease, ttl)
                result["TTL"] = str(int(ttl))
            server.reply(200, {"result": result})
        elif path == "/v3/lease/revoke":
            if int(said["ID"]) in self.leases:
                self.revoke(int(said["ID"]))
                server.reply(200, {"header": self.header()})
            else:
                server.reply(404, _NO_LEASE)
        elif path == "/v3/kv/range":
            key = base64.b64decode(said["key"])
            server.reply(200, {"header": header, **self._found(key)})
        elif path == "/v3/kv/txn":
            self._transact(said, server)
        elif path == "/v3/watch":
            create = said["create_request"]
            key, after = base64.b64decode(create["key"]), int(create["start_revision"]) - 1
            self.watches.append((key, after, server))
            server.begin_stream()
            server.stream({"result": {"header": header, "created": True}})
            if self.ends_watches:
                self.end_watches(canceled=True, cancel_reason="etcdserver: no leader")
        else:
            server.reply(404, {"error": "Not Found", "code": 5})

    def _found(self, key: bytes) -> dict[str, Any]:
        held = self.keys.get(key)
        if held is None:
            return {}
        found = {"key": _b64(key), "value": _b64(held.value), "version": "1"}
        found |= {"create_revision": str(held.revision), "mod_revision": str(held.revision)}
        if held.lease:
            found["lease"] = str(held.lease)
        return {"kvs": [found], "count": "1"}

    def _transact(self, said: dict[str, Any], server: _Server) -> None:
        (compare,), (success,) = said["compare"], said["success"]
        assert (compare["target"], compare["create_revision"]) == ("CREATE", "0"), compare
        put = success["request_put"]
        key, lease = base64.b64decode(put["key"]), int(put["lease"])
        if key in self.keys:
            server.reply(200, {"header": self.header()})
        elif lease not in self.leases:
            server.reply(404, _NO_LEASE)
        else:
            self.put(key, base64.b64decode(put["value"]), lease)
            server.reply(200, {"header": self.header(), "succeeded": True})


_NO_LEASE = {"error": "etcdserver: requested lease not found", "code": 5}


def _b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


class _Port:
    def __init__(self, etcd: PaperEtcd, endpoint: str) -> None:
        self._etcd = etcd
        self._endpoint = endpoint

    def buildProtocol(self, _address: object) -> _Server:
        return _Server(self._etcd, self._endpoint)


class _Server(Protocol):
    """One connection of an HTTP/1.1 client to the gateway."""

    def __init__(self, etcd: PaperEtcd, endpoint: str) -> None:
        self._etcd = etcd
        self._endpoint = endpoint
        self._unread = b""

    def connectionMade(self) -> None:
        if self._endpoint in self._etcd.down:
            self._transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._unread += data
        while b"\r\n\r\n" in self._unread:
            head, _, rest = self._unread.partition(b"\r\n\r\n")
            lines = head.decode("ascii").split("\r\n")
            fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(fields["content-length"])
            if len(rest) < length:
                return
            body, self._unread = rest[:length], rest[length:]
            method, path, _version = lines[0].split(" ")
            assert method == "POST", lines
            self._ask(path, json.loads(body))

    def _ask(self, path: str, said: dict[str, Any]) -> None:
        etcd = self._etcd
        etcd.asked.append((self._endpoint, path, said))
        if self._endpoint in etcd.deaf:
            return
        if path in etcd.crooked:
            status, octets = etcd.crooked[path]
            self._send(status, octets)
        else:
            etcd.answer(path, said, self)

    def reply(self, status: int, fields: dict[str, Any]) -> None:
        self._send(status, json.dumps(fields).encode())

    def _send(self, status: int, octets: bytes) -> None:
        head = f"HTTP/1.1 {status} Answer\r\nContent-Length: {len(octets)}\r\n\r\n".encode()
        etcd = self._etcd
        if etcd.dawdles:
            etcd.surroundings.clock.call_later(etcd.dawdles, self._transport.write, head)
        else:
            self._transport.write(head + octets)

    def begin_stream(self) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def stream(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields).encode() + b"\n"
        self._transport.write(b"%x\r\n%s\r\n" % (len(line), line))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        watches = self._etcd.watches
        watches[:] = [watch for watch in watches if watch[2] is not self]

    @property
    def _transport(self) -> Any:
        assert ITCPTransport.providedBy(self.transport)
        return self.transport


# --- the watchdog -----------------------------------------------------------------------------


class PaperWatchdog:
    """Hand `spawn` to EtcdResource. `kernel` is where it adds and removes addresses.

    `die()` and `freeze()` are what can happen to it; `refuses` says why no address can be added.
    `spawned` counts, `killed` tells who was killed for silence.
    """

    def __init__(self, surroundings: MemorySurroundings, kernel: PaperNetlink) -> None:
        self.surroundings = surroundings
        self.kernel = kernel
        self.memory: Any = bytearray(MEMORY_OCTETS)
        self.commands: list[str] = []
        self.refuses = ""
        self.cannot_start: OSError | None = None
        self.spawned = 0
        self.killed: list[int] = []
        self.left_with: bool | None = None
        self._addresses: Sequence[VirtualAddress] = ()
        self._interface = ""
        self._said: list[bytes] = []
        self._number = 0
        self._is_open = False
        self._is_frozen = False
        self._timer: ITimer | None = None

    def spawn(self, interface: str, addresses: Sequence[VirtualAddress]) -> PaperWatchdog:
        if self.cannot_start is not None:
            raise self.cannot_start
        self.spawned += 1
        self._interface, self._addresses = interface, addresses
        self.memory = bytearray(MEMORY_OCTETS)
        self._number = 0
        self._said = []
        self._is_open, self._is_frozen = True, False
        self.deadline(0)
        self._remove()
        self._say(f"ready {1000 + self.spawned} 1 ")
        self._beat()
        return self

    @property
    def deadline_seconds(self) -> float:
        """What the real one would kill at; 0 for no lease."""
        return (read_deadline(bytes(self.memory)) or 0) / 1e9

    def die(self) -> None:
        self._is_open = False
        self._stop_beating()
        self._tell()

    def freeze(self) -> None:
        self._is_frozen = True
        self._stop_beating()

    # --- Spawned

    def fileno(self) -> int:
        return 78

    def read(self) -> bytes:
        if self._said:
            said, self._said = b"".join(self._said), []
            return said
        if self._is_open:
            raise BlockingIOError
        return b""

    def write(self, octets: bytes) -> None:
        if not self._is_open:
            raise BrokenPipeError
        line = octets.decode().rstrip("\n")
        self.commands.append(line)
        if not self._is_frozen:
            self._obey(line)

    def deadline(self, deadline_ns: int) -> None:
        self._number += 1
        write_deadline(self.memory, self._number, deadline_ns)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)
        self._is_open = False

    def close(self) -> None:
        self._stop_beating()
        self._is_open = False

    # --- what it does

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        number = rest.partition(" ")[0]
        if word == "plumb":
            if self.refuses:
                self._say(f"failed {number} {self.refuses}")
                return
            for address in self._addresses:
                if (2, str(address.bind)) not in self.kernel.addresses:
                    self.kernel.add(str(address.bind))
            self._say(f"done {number} ")
        elif word == "unplumb":
            self._remove()
            self._say(f"done {number} ")
        elif word == "quit":
            self.left_with = self.deadline_seconds > 0
            self._remove()
            self.die()

    def _remove(self) -> None:
        for address in self._addresses if self._interface else ():
            if (2, str(address.bind)) in self.kernel.addresses:
                self.kernel.remove(str(address.bind))

    def _beat(self) -> None:
        self._timer = self.surroundings.clock.call_later(BEAT_SECONDS, self._beat)
        self._say("beat")

    def _say(self, text: str) -> None:
        self._said.append(text.encode() + b"\n")
        self._tell()

    def _tell(self) -> None:
        """As the reactor would when the pipe is readable."""
        self.surroundings.clock.call_later(0.0, self._readable)

    def _readable(self) -> None:
        for reader in list(self.surroundings.doors.watched):
            if reader.fileno() == self.fileno():
                reader.doRead()

    def _stop_beating(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
