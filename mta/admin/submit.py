"""submit.sock: this machine's programs hand over mail, and nothing else.

Law: everybody on the machine may submit, so each user has limits of his own (connections, messages
a minute, size), by the uid that the kernel vouches for; the uid stands in the log. The dialogue is
SMTP, spoken by the association kind that `service` hands in; the promise of its 250 is the same.

On a standby node nothing is taken: the one reply is 421, with where the virtual server is to be
found (`relay-to=`), and sendmail goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.admin.peer import Credentials, credentials
from mta.admin.settings import AdminSettings
from mta.interfaces import IClock, IReception, IReceptionHost, ITenure
from mta.model import Address, PeerInfo, Reply
from mta.telemetry import Telemetry

LISTENER = "submit"
"""PeerInfo.listener of local submission; `client` in the log is uid=N."""
RATE_SECONDS = 60.0
MOST_CONNECTIONS = 500
"""Of all users together."""


class SubmitServer(Factory):
    """Builds the protocol of each connection. Open it with
    `doors.service_listen("admin", "unix:" + path, server, 0o666)`.

    `build`: the responder of SMTP for a PeerInfo (its `uid` is set) while a tenure lives; None
    means standby. `elsewhere`: where the virtual server listens, for those who come on standby.
    """

    noisy = False

    def __init__(
        self,
        settings: AdminSettings,
        build: Callable[[PeerInfo], IProtocol | None],
        elsewhere: Callable[[], Sequence[tuple[str, int]]],
        telemetry: Telemetry,
        *,
        network_name: str,
        who: Callable[[Any], Credentials] = credentials,
    ) -> None:
        self.build = build
        self.elsewhere = elsewhere
        self.network_name = network_name
        self.who = who
        self.connections: dict[int, int] = {}
        self._settings = settings
        self._telemetry = telemetry
        self._number = 0
        self._refused = telemetry.counter(
            "mta_submissions_refused_total", "Local submissions over a limit of their user."
        )

    def buildProtocol(self, addr: Any) -> _Submission:
        return _Submission(self)

    def begin(self, peer: Credentials) -> tuple[IProtocol | None, bytes]:
        """The protocol that serves `peer`, or None and the one reply it gets."""
        mine = self.connections.get(peer.uid, 0)
        if mine >= self._settings.submit_connections:
            return None, self._too_many(f"uid {peer.uid} has {mine} connections already")
        if sum(self.connections.values()) >= MOST_CONNECTIONS:
            return None, self._too_many("too many local submissions")
        self._number += 1
        name = f"{LISTENER}/in/{self._number}"
        protocol = self.build(
            PeerInfo(
                association=name,
                host="127.0.0.1",
                port=0,
                local_host="127.0.0.1",
                local_port=0,
                listener=LISTENER,
                uid=peer.uid,
            )
        )
        if protocol is None:
            return None, self._standby()
        self._telemetry.notice(
            "info", LISTENER, f"connect from uid={peer.uid} gid={peer.gid} pid={peer.pid} as {name}"
        )
        self.connections[peer.uid] = mine + 1
        return protocol, b""

    def ended(self, uid: int) -> None:
        left = self.connections.get(uid, 0) - 1
        if left > 0:
            self.connections[uid] = left
        else:
            self.connections.pop(uid, None)

    def _too_many(self, why: str) -> bytes:
        self._refused.inc()
        self._telemetry.notice("warning", LISTENER, f"refused: {why}")
        return b"421 4.7.0 %s %s\r\n" % (self.network_name.encode(), why.encode())

    def _standby(self) -> bytes:
        lines = [f"{self.network_name} is not on this node"]
        for host, port in self.elsewhere():
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines.append(f"relay-to={where}")
        marks = ["-"] * (len(lines) - 1) + [" "]
        return "".join(
            f"421{mark}4.3.2 {line}\r\n" for mark, line in zip(marks, lines, strict=True)
        ).encode()


class _Submission(Protocol):
    """Looks at who came, then steps aside: the transport goes to the SMTP protocol."""

    transport: Any

    def __init__(self, server: SubmitServer) -> None:
        self._server = server
        self._uid: int | None = None
        self._inner: Any = None

    def connectionMade(self) -> None:
        try:
            peer = self._server.who(self.transport)
        except OSError as error:
            self._end(f"421 4.7.0 the kernel does not say who you are: {error}\r\n".encode())
            return
        self._inner, refusal = self._server.begin(peer)
        if self._inner is None:
            self._end(refusal)
            return
        self._uid = peer.uid
        self._inner.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._uid is not None:
            self._server.ended(self._uid)
            self._uid = None
        if self._inner is not None:
            self._inner.connectionLost(reason)

    def _end(self, reply: bytes) -> None:
        self.transport.write(reply)
        self.transport.loseConnection()


@implementer(IReceptionHost)
class SubmissionHost:
    """Puts the limits of local users before the house's own reception. Hand it to the SMTP
    responder of submit.sock in place of the Intake that it wraps.
    """

    def __init__(self, host: IReceptionHost, settings: AdminSettings, clock: IClock) -> None:
        self._host = host
        self._clock = clock
        self._size = settings.submit_size
        self._rate = settings.submit_rate
        self._allowances: dict[int, _Allowance] = {}

    def reception(self, tenure: ITenure, peer: PeerInfo) -> IReception:
        inner = self._host.reception(tenure, peer)
        if peer.uid is None:
            return inner
        return _LimitedReception(inner, self, peer.uid)

    def may_submit(self, uid: int) -> bool:
        """Takes one message off the user's allowance, which refills over a minute."""
        now = self._clock.monotonic()
        allowance = self._allowances.get(uid)
        if allowance is None:
            if len(self._allowances) >= _MOST_ALLOWANCES:
                self._forget_idle(now)
            allowance = self._allowances[uid] = _Allowance(float(self._rate), now)
        return allowance.take(now, self._rate)

    def _forget_idle(self, now: float) -> None:
        self._allowances = {
            uid: a for uid, a in self._allowances.items() if now - a.at < RATE_SECONDS
        }

    @property
    def size_octets(self) -> int:
        return self._size

    @property
    def rate(self) -> int:
        return self._rate


_MOST_ALLOWANCES = 1000


class _Allowance:
    """A token bucket: `left` messages at monotonic time `at`."""

    __slots__ = ("at", "left")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at

    def take(self, now: float, rate: int) -> bool:
        self.left = min(float(rate), self.left + (now - self.at) * rate / RATE_SECONDS)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@implementer(IReception)
class _LimitedReception:
    """IReception with a user's limits in front; everything else is the inner one's."""

    def __init__(self, inner: IReception, host: SubmissionHost, uid: int) -> None:
        self._inner = inner
        self._host = host
        self._uid = uid
        self._octets = 0
        self.connected = inner.connected
        self.helo = inner.helo
        self.rcpt = inner.rcpt
        self.acknowledged = inner.acknowledged
        self.reset = inner.reset
        self.closed = inner.closed

    def mail(
        self, sender: Address, parameters: dict[bytes, bytes | None]
    ) -> Reply | None | Deferred[Reply | None]:
        declared = parameters.get(b"SIZE") or b"0"
        if declared.isdigit() and int(declared[:20]) > self._host.size_octets:
            return self._too_big()
        if not self._host.may_submit(self._uid):
            text = b"uid %d submitted %d messages in a minute: try later" % (
                self._uid,
                self._host.rate,
            )
            return Reply(450, "4.7.1", (text,))
        return self._inner.mail(sender, parameters)

    def data(self) -> Reply | None | Deferred[Reply | None]:
        self._octets = 0
        return self._inner.data()

    def chunk(self, chunk: bytes) -> Deferred[None] | None:
        self._octets += len(chunk)
        if self._octets > self._host.size_octets:
            return None  # not stored: `end` refuses it
        return self._inner.chunk(chunk)

    def end(self, fault: Reply | None) -> Deferred[Reply]:
        if self._octets > self._host.size_octets:
            fault = fault or self._too_big()
        return self._inner.end(fault)

    def _too_big(self) -> Reply:
        text = b"more than %d octets may not be submitted here" % self._host.size_octets
        return Reply(552, "5.3.4", (text,))
