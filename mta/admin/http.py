"""The read-only pages for monitoring: /metrics, /livez, /readyz, /standbyz and /status.json.

Law: off unless configured, on loopback only (there is no TLS and no password yet), GET and HEAD
only, no request body, one request a connection. The Host header must name the address that was
configured: a page of another site that makes a browser ask us by DNS rebinding is refused
(RFC 9110 7.4).

/livez says that the process turns and depends on nothing else. /readyz is 200 only where mail is
served, as a load balancer wants it; /standbyz is 200 besides where a takeover would succeed, as
monitoring wants it. Both say in two lines how the node stands and whether it could take over.
twisted.web reads the requests. Who imports this module imports it: only where pages are wanted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from mta.admin.commands import Commands
from mta.admin.metrics import Exposition
from mta.admin.settings import http_endpoint
from mta.admin.text import neutral
from mta.interfaces import IClock, ITimer
from mta.telemetry import Telemetry

REQUEST_SECONDS = 10.0
"""A client that needs longer to ask and to read the answer is closed."""
LONGEST_REQUEST = 16 * 1024
"""Octets of request line and header fields; browsers stay under 8 KiB."""
Page = tuple[int, str, bytes]
"""Status, content type, body."""
PLAIN = "text/plain; charset=utf-8"
_MISDIRECTED = b"Misdirected Request"
"""RFC 9110 15.5.20, which twisted.web has no name for."""


class _Asked(Request):
    """One request. A body is refused when its announcement is read: nothing of it is kept."""

    channel: Any

    def gotLength(self, length: int | None) -> None:
        """`length` is 0 without a body and None for one in chunks."""
        got: Any = super().gotLength
        got(0)
        if length == 0:
            return
        self.requestHeaders.removeHeader(b"expect")  # nothing is continued
        self.method, self.clientproto = b"GET", b"HTTP/1.1"
        http = self.channel.site
        answer: Any = self
        answer.write(_headed(self, http.refuse(413, "no request body is taken")))
        answer.finish()

    def handleContentChunk(self, data: bytes) -> None:
        """Of a body that was refused."""


class _Connection(HTTPChannel):
    """One connection: one request (RFC 9112 2.1), one answer, closed."""

    site: Any
    totalHeadersSize = LONGEST_REQUEST  # noqa: N815  # Twisted's name
    transport: Any
    _timer: ITimer | None = None

    def connectionMade(self) -> None:
        made: Any = super().connectionMade
        made()
        self._timer = self.site.clock.call_later(REQUEST_SECONDS, self._too_late)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        return False

    def _too_late(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        lost: Any = super().connectionLost
        lost(reason)


class _NoReactor:
    """What Site is given so that it does not take the process's reactor: it has no timers here."""

    def callLater(self, delay: float, call: Callable[..., object], *rest: object) -> NoReturn:
        raise RuntimeError("the pages keep time by their own clock")


class Http(Site):
    """Builds the pages. Open it with `doors.service_listen("admin", http.endpoint, http)`.

    `ready`: whether the virtual server is served here, and why (not); `standby_ready`: whether it
    is, or could be.
    """

    noisy = False
    protocol = _Connection  # type: ignore[assignment]  # Twisted's has another type

    def __init__(
        self,
        configured: str,
        commands: Commands,
        exposition: Exposition,
        *,
        ready: Callable[[], tuple[bool, str]],
        standby_ready: Callable[[], tuple[bool, str]],
        clock: IClock,
        telemetry: Telemetry,
    ) -> None:
        """@raise ValueError: `configured` is not ADDRESS:PORT on loopback."""
        self.host, self.port = http_endpoint(configured)
        self.clock = clock
        self._commands = commands
        self._exposition = exposition
        self._ready = ready
        self._standby_ready = standby_ready
        self._telemetry = telemetry
        self._refused = telemetry.counter(
            "mta_http_refused_total", "HTTP requests with a wrong Host, method or body."
        )
        literal = f"[{self.host}]" if ":" in self.host else self.host
        names = {literal, "localhost", "127.0.0.1", "[::1]"}
        self._hosts = {f"{name}:{self.port}" for name in names}
        if self.port == 80:
            self._hosts |= names
        root = _Page(self, self._missing)
        for name, page in (
            (b"metrics", self._metrics),
            (b"livez", self._livez),
            (b"readyz", self._readyz),
            (b"standbyz", self._standbyz),
            (b"status.json", self._status),
        ):
            root.putChild(name, _Page(self, page))
        site: Any = super()
        site.__init__(root, _Asked, reactor=_NoReactor(), parsePOSTFormSubmission=False)
        self.timeOut = None  # _Connection has one time for everything

    @property
    def endpoint(self) -> str:
        return f"tcp:{self.host}:{self.port}"

    def startFactory(self) -> None:
        """Twisted's would begin an access log, and a timer that fires each second for its dates."""

    def stopFactory(self) -> None:
        """There is nothing to stop."""

    def answer(self, request: Any, page: Callable[[], Page]) -> Page:
        """The rules for every page, then the page."""
        hosts = request.requestHeaders.getRawHeaders(b"host") or []
        if len(hosts) != 1:
            return self.refuse(400, "a request has exactly one Host")
        if hosts[0].decode("latin-1").lower() not in self._hosts:
            return self.refuse(421, "this server does not answer for that Host")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            return self.refuse(405, "read-only: GET and HEAD")
        try:
            return page()
        except Exception as fault:
            where = request.path.decode("latin-1")
            self._telemetry.notice("error", "http", f"{where}: {type(fault).__name__}: {fault}")
            return 500, PLAIN, b"this page cannot be made now; the log says why\n"

    def refuse(self, status: int, why: str) -> Page:
        self._refused.inc()
        return status, PLAIN, f"{why}\n".encode()

    # pages
    def _metrics(self) -> Page:
        return 200, self._exposition.content_type, self._exposition.page()

    def _livez(self) -> Page:
        return 200, PLAIN, b"alive\n"

    def _readyz(self) -> Page:
        return self._said(*self._ready())

    def _standbyz(self) -> Page:
        return self._said(*self._standby_ready())

    def _said(self, is_well: bool, why: str) -> Page:
        lines = "".join(f"{neutral(line)}\n" for line in why.split("\n"))
        return (200 if is_well else 503), PLAIN, lines.encode()

    def _status(self) -> Page:
        body = json.dumps(self._commands.status(), indent=1).encode("ascii") + b"\n"
        return 200, "application/json", body

    def _missing(self) -> Page:
        return 404, PLAIN, b"/metrics /livez /readyz /standbyz /status.json\n"


class _Page(Resource):
    """One path. What lies below it does not exist."""

    def __init__(self, http: Http, page: Callable[[], Page]) -> None:
        resource: Any = super()
        resource.__init__()
        self._http = http
        self._page = page

    def getChild(self, path: bytes, request: Request) -> Resource:
        return _Page(self._http, self._http._missing)

    def render(self, request: Any) -> bytes:
        return _headed(request, self._http.answer(request, self._page))


def _headed(request: Any, page: Page) -> bytes:
    """Put status and header fields into the answer; what is left is its body."""
    status, kind, body = page
    request.setResponseCode(status, _MISDIRECTED if status == 421 else None)
    put = request.setHeader
    put(b"content-type", kind.encode())
    put(b"content-length", b"%d" % len(body))
    put(b"cache-control", b"no-store")
    put(b"x-content-type-options", b"nosniff")
    put(b"connection", b"close")
    request.responseHeaders.removeHeader(b"server")
    return b"" if request.method == b"HEAD" else body
