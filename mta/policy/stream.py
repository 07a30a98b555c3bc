"""The headers and body hooks of one message, in order, however long a policy takes.

Law: one hook at a time. While a policy waits, later pieces queue here and the caller is asked to
pause, so that what queues is no more than was already on its way.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import CancelledError, Deferred

from mta.model import Reply
from mta.policy.chain import Chain
from mta.policy.transaction import Transaction


class Stream:
    """Made for a message only when some policy wants headers or body.

    `refusal` is the first negative reply; nothing is asked after it.
    """

    def __init__(self, chain: Chain, transaction: Transaction) -> None:
        self.refusal: Reply | None = None
        self._chain = chain
        self._transaction = transaction
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._running: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []

    def feed(self, hook: str, piece: bytes) -> Deferred[None] | None:
        """Ask `hook` about `piece`; a Deferred asks for a pause until the policies caught up."""
        if self.refusal is not None:
            return None
        if self._running is not None:
            self._backlog.append((hook, piece))
            return self.idle()
        self._transaction.chunk = piece
        answer = self._chain.ask(hook, self._transaction)
        if isinstance(answer, Deferred):
            running = Deferred.fromCoroutine(self._follow(answer))
            if not running.called:
                self._running = running
                running.addErrback(lambda failure: failure.trap(CancelledError))
                return self.idle()
        else:
            self.refusal = answer
        return None

    def idle(self) -> Deferred[None] | None:
        """None: nothing waits. Else fires when everything fed so far was answered."""
        if self._running is None:
            return None
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def cancel(self) -> None:
        """The association ended, or the transaction was reset. Nobody is left paused."""
        self._backlog.clear()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._resume()

    async def _follow(self, answer: Deferred[Reply | None]) -> None:
        self.refusal = await answer
        while self.refusal is None and self._backlog:
            hook, self._transaction.chunk = self._backlog.popleft()
            following = self._chain.ask(hook, self._transaction)
            self.refusal = await following if isinstance(following, Deferred) else following
        self._backlog.clear()
        self._running = None
        self._resume()

    def _resume(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)


def both(one: Deferred[None] | None, other: Deferred[None] | None) -> Deferred[None] | None:
    """Pause for both."""
    if one is None or other is None:
        return one or other
    first = one
    return other.addCallback(lambda _: first)
