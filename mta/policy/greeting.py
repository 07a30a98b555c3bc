"""The built-in policy `greet-delay`: strangers wait for the greeting.

Law: nobody is refused here. What sends spam seldom waits: it hangs up, or it talks first, and for
that there is `early-talkers` at the listener. Who may relay, and programs of this node, do not
wait.

RFC 5321 4.3.1 (a client waits for the greeting), 4.5.3.2.1 (it does so for five minutes).
"""

from __future__ import annotations

from pydantic import Field
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.interfaces import IPolicy, ISurroundings, ITransaction
from mta.model import Reply
from mta.settings import Duration, Settings


class GreetDelaySettings(Settings):
    """The keys of a `greet-delay` policy."""

    delay: Duration = Field(
        default=3.0,
        gt=0.0,
        le=30.0,
        description="Before a stranger's greeting, at most 30s. Its connection counts meanwhile.",
    )


@implementer(IPolicy)
class GreetDelay:
    """An answer that comes late."""

    name = "greet-delay"
    hooks = frozenset({"connect"})

    def __init__(self, settings: GreetDelaySettings, surroundings: ISurroundings) -> None:
        self._delay_seconds = settings.delay
        self._clock = surroundings.clock

    def on(self, hook: str, transaction: ITransaction) -> Deferred[Reply | None] | None:
        if transaction.admitted:
            return None
        over: Deferred[Reply | None] = Deferred(lambda _: timer.cancel())
        timer = self._clock.call_later(self._delay_seconds, over.callback, None)
        return over
