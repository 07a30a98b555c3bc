"""One connection to a filter: the protocol's machine on a transport of the service door.

Law: a question has one answer, or one failure with its reason, whoever ends the connection. What
the filter does not read is not heaped up here: a question that needs no answer waits for it too.
Nor is the body that it sends: while the store lags behind, nothing more is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import MTAError, TransientFailure
from mta.interfaces import IClock, ITimer
from mta.wire.milter.dialogue import BodyPiece, Dialogue, Event, Question, Verdict

QUIT_SECONDS = 5.0
"""For the filter to read what was said last; then the connection is cut."""


@implementer(IPushProducer)
class FilterConnection(Protocol):
    """`progressed` is called when the filter asks for more time, and `replace` with each piece of a
    new body: it may answer a Deferred until which it wants no more, and what it raises ends the
    connection.
    """

    def __init__(
        self,
        clock: IClock,
        progressed: Callable[[], None],
        replace: Callable[[bytes], Deferred[None] | None],
    ) -> None:
        self.dialogue = Dialogue()
        self.is_open = False
        self._clock = clock
        self._progressed = progressed
        self._replace = replace
        self._waiting: Deferred[Verdict] | None = None
        self._verdict: Verdict | None = None
        self._is_paused = False
        self._cut: ITimer | None = None

    def ask(self, questions: Iterable[Question]) -> Deferred[Verdict]:
        """Cancelling it cuts the connection. @raise RemoteProtocolError, TransientFailure."""
        verdict = self.dialogue.ask(questions)
        self._flush()
        if verdict is not None and not self._is_paused:
            return succeed(verdict)
        self._verdict = verdict
        self._waiting = Deferred(self._cancelled)
        return self._waiting

    def abort(self) -> None:
        """The message came to nothing."""
        if self._waiting is not None:
            self.drop()  # the late answer would be taken for one to the next question
        elif self.is_open:
            self.dialogue.abort()
            self._flush()

    def leave(self) -> None:
        """End it: politely where the filter listens."""
        if self._waiting is not None or not self.is_open:
            self.drop()
            return
        self.is_open = False
        self.dialogue.abort()
        self.dialogue.quit()
        self._flush()
        self._end().loseConnection()
        self._cut = self._clock.call_later(QUIT_SECONDS, self.drop)

    def drop(self) -> None:
        """End it now; a question that waits is cancelled. Harmless when it has ended."""
        self.is_open = False
        waiting, self._waiting = self._waiting, None
        if self.transport is not None:
            self._end().abortConnection()
        if waiting is not None:
            waiting.cancel()

    # --- Twisted's side

    def connectionMade(self) -> None:
        self.is_open = True
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        if not self.is_open:
            return
        try:
            for event in self.dialogue.receive(data):
                self._take(event)
        except MTAError as error:
            waiting, self._waiting = self._waiting, None
            self.drop()
            if waiting is not None:
                waiting.errback(error)
            return
        self._flush()
        self._answer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_open = False
        self.transport = None
        cut, self._cut = self._cut, None
        if cut is not None:
            cut.cancel()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(self._closed(str(reason.value)))

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._answer()

    def stopProducing(self) -> None:
        """The transport has ended; connectionLost says so."""

    # --- inside

    def _take(self, event: Event) -> None:
        if isinstance(event, Verdict):
            self._verdict = event
            return
        self._progressed()
        if isinstance(event, BodyPiece):
            lagging = self._replace(event.octets)
            transport: Any = self.transport
            if lagging is not None and transport is not None:
                transport.pauseProducing()
                lagging.addCallback(self._read_on)

    def _read_on(self, _: None) -> None:
        transport: Any = self.transport
        if transport is not None and self.is_open:
            transport.resumeProducing()

    def _flush(self) -> None:
        output = self.dialogue.take_output()
        if output and self.transport is not None:
            self.transport.write(output)

    def _answer(self) -> None:
        verdict, waiting = self._verdict, self._waiting
        if verdict is not None and waiting is not None and not self._is_paused:
            self._verdict = self._waiting = None
            waiting.callback(verdict)

    def _cancelled(self, _: Deferred[Verdict]) -> None:
        self._waiting = None
        self.drop()

    def _closed(self, why: str) -> TransientFailure:
        if self.dialogue.is_agreed:
            return TransientFailure("the filter closed its connection", why)
        return TransientFailure(
            "the filter closed its connection when it was told what it may do",
            "perhaps it needs more than that",
            "see the filter's own log, and configure it to do without",
        )

    def _end(self) -> Any:
        """The transport, about to close: it would wait for its producer to end first."""
        transport: Any = self.transport
        transport.unregisterProducer()
        return transport
