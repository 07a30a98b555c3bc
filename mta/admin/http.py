"""The read-only pages for monitoring: /metrics, /livez, /readyz and /status.json.

Law: off unless configured, on loopback only (there is no TLS and no password yet), GET and HEAD
only, no request body, one request a connection. The Host header must name the address that was
configured: a page of another site that makes a browser ask us by DNS rebinding is refused
(RFC 9110 7.4).

/livez says that the process turns and depends on nothing else; /readyz is 503 on a standby node.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mta.admin.commands import Commands
from mta.admin.metrics import Exposition
from mta.admin.settings import http_endpoint
from mta.admin.text import neutral
from mta.interfaces import IClock, ITimer
from mta.telemetry import Telemetry

REQUEST_SECONDS = 10.0
"""A client that needs longer to ask, or to read the answer, is closed."""
LONGEST_REQUEST = 16 * 1024
"""Octets of request line and header fields; browsers stay under 8 KiB."""
Page = tuple[int, str, bytes]
"""Status, content type, body."""
PLAIN = "text/plain; charset=utf-8"


class Http(Factory):
    """Builds the pages. Open it with `doors.service_listen("admin", http.endpoint, http)`.

    `ready`: whether the virtual server is served here, and why (not).
    """

    noisy = False

    def __init__(
        self,
        configured: str,
        commands: Commands,
        exposition: Exposition,
        *,
        ready: Callable[[], tuple[bool, str]],
        clock: IClock,
        telemetry: Telemetry,
    ) -> None:
        """@raise ValueError: `configured` is not ADDRESS:PORT on loopback."""
        self.host, self.port = http_endpoint(configured)
        self._commands = commands
        self._exposition = exposition
        self._ready = ready
        self._clock = clock
        self._refused = telemetry.counter(
            "mta_http_refused_total", "HTTP requests with a wrong Host, method or body."
        )
        literal = f"[{self.host}]" if ":" in self.host else self.host
        names = {literal, "localhost", "127.0.0.1", "[::1]"}
        self._hosts = {f"{name}:{self.port}" for name in names}
        if self.port == 80:
            self._hosts |= names
        self._pages: dict[str, Callable[[], Page]] = {
            "/metrics": self._metrics,
            "/livez": lambda: (200, PLAIN, b"alive\n"),
            "/readyz": self._readyz,
            "/status.json": self._status,
        }

    @property
    def endpoint(self) -> str:
        return f"tcp:{self.host}:{self.port}"

    def answer(self, method: str, path: str, host: str) -> Page:
        """The whole behaviour, without a socket. `host` is the Host header's value."""
        if host.lower() not in self._hosts:
            return self.refuse(421, "this server does not answer for that Host")
        if method not in {"GET", "HEAD"}:
            return self.refuse(405, "read-only: GET and HEAD")
        page = self._pages.get(path)
        if page is None:
            return 404, PLAIN, b"/metrics /livez /readyz /status.json\n"
        return page()

    def refuse(self, status: int, why: str) -> Page:
        self._refused.inc()
        return status, PLAIN, f"{why}\n".encode()

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Exchange(self, self._clock)

    # pages
    def _metrics(self) -> Page:
        return 200, self._exposition.content_type, self._exposition.page()

    def _readyz(self) -> Page:
        is_ready, why = self._ready()
        return (200 if is_ready else 503), PLAIN, f"{neutral(why)}\n".encode()

    def _status(self) -> Page:
        body = json.dumps(self._commands.status(), indent=1).encode("ascii") + b"\n"
        return 200, "application/json", body


class _Exchange(Protocol):
    """One connection: one request (RFC 9112 2.1), one answer, closed."""

    transport: Any

    def __init__(self, http: Http, clock: IClock) -> None:
        self._http = http
        self._clock = clock
        self._octets = b""
        self._is_answered = False
        self._timer: ITimer | None = None

    def connectionMade(self) -> None:
        self._timer = self._clock.call_later(REQUEST_SECONDS, self._too_late)

    def _too_late(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def dataReceived(self, data: bytes) -> None:
        if self._is_answered:
            return
        self._octets += data
        head, end, _ = self._octets.partition(b"\r\n\r\n")
        if end:
            self._answer(*self._understood(head))
        elif len(self._octets) > LONGEST_REQUEST:
            self._answer("GET", self._http.refuse(431, "the request is too long"))

    def _understood(self, head: bytes) -> tuple[str, Page]:
        """The method and the page for a request line and header fields."""
        line, *fields = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "GET", self._http.refuse(400, "this is no HTTP/1.1 request")
        method, target, _ = words
        hosts = []
        for field in fields:
            name, colon, value = field.partition(":")
            if not colon or not name.strip() or name != name.strip():
                return method, self._http.refuse(400, "a header field is malformed")
            lowered, value = name.lower(), value.strip()
            if lowered == "host":
                hosts.append(value)
            elif lowered == "transfer-encoding" or (lowered == "content-length" and value != "0"):
                return method, self._http.refuse(413, "no request body is taken")
        if len(hosts) != 1:
            return method, self._http.refuse(400, "a request has exactly one Host")
        return method, self._http.answer(method, target.partition("?")[0], hosts[0])

    def _answer(self, method: str, page: Page) -> None:
        self._is_answered = True
        self._octets = b""
        status, kind, body = page
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        )
        if status == 405:
            head += "Allow: GET, HEAD\r\n"
        self.transport.write(head.encode("ascii") + b"\r\n" + (b"" if method == "HEAD" else body))
        self.transport.loseConnection()


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
