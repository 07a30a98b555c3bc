"""A watch of etcd's: tells when the key was deleted, and when the watch itself has ended.

Law: `gone` may be told as often as it happens; `ended` once, and nothing after it. Neither is told
after `cancel`. A watch only makes quicker what asking again would find: nobody relies upon it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mta.cluster.etcd_json import parse_watch, watch_request
from mta.cluster.gateway import Gateway
from mta.errors import MTAError, TransientFailure


class KeyWatch:
    """Of changes later than the revision `after`. `ended` is told why: etcd cancelled it, its
    revision was compacted, the connection broke.
    """

    def __init__(
        self,
        gateway: Gateway,
        key: bytes,
        after: int,
        *,
        gone: Callable[[], object],
        ended: Callable[[str], object],
        complain: Callable[[str], object],
    ) -> None:
        self._key = key
        self._gone = gone
        self._ended = ended
        self._complain = complain
        self._is_over = False
        self._watching: Deferred[None] = Deferred.fromCoroutine(
            gateway.watch(watch_request(key, after), self._heard)
        )
        self._watching.addCallbacks(lambda _: self._end("the stream ended"), self._broken)

    def cancel(self) -> None:
        self._is_over = True
        self._watching.cancel()

    def _heard(self, line: bytes) -> None:
        if self._is_over:
            return
        news = parse_watch(line)
        if news.has_ended:  # etcd leaves the stream open, on which nothing more comes: it is closed
            raise TransientFailure("etcd ended the watch", news.has_ended)
        if news.is_gone:
            self._gone()

    def _broken(self, failure: Failure) -> None:
        if not failure.check(CancelledError, MTAError):
            self._complain(f"watching {self._key.decode()}: {failure.value!r}")
        self._end(str(failure.value))

    def _end(self, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._ended(why)
