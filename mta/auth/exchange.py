"""What every exchange of this room has in common: one step at a time, and an end.

Law: behind the end nothing moves, and an exchange that is over has let go of what it held. Steps
overlap only by a defect of ours, which is said so and changes nothing.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.errors import LocalProtocolError
from mta.interfaces import IAuthExchange
from mta.model import Authenticated, Challenge


@implementer(IAuthExchange)
class Exchange:
    """A kind's own gives `_answer`, and `_end` when it holds something."""

    def __init__(self) -> None:
        self._step: Deferred[Challenge | Authenticated] | None = None
        self._is_over = False

    def step(self, response: bytes | None) -> Deferred[Challenge | Authenticated]:
        """See IAuthExchange."""
        if self._is_over or self._step is not None:
            return fail(LocalProtocolError("an exchange is asked out of turn, or after its end"))
        step = Deferred.fromCoroutine(self._answer(response))
        if not step.called:
            self._step = step
        return step.addBoth(self._answered)

    def abandon(self) -> None:
        """See IAuthExchange. A step that is under way is cancelled."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        self._over()

    def _answered(
        self, answer: Challenge | Authenticated | Failure
    ) -> Challenge | Authenticated | Failure:
        self._step = None
        if not isinstance(answer, Challenge):
            self._over()
        return answer

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._end()

    async def _answer(self, response: bytes | None) -> Challenge | Authenticated:
        raise AssertionError("each kind of exchange answers in its own way")

    def _end(self) -> None:
        """Let go of what is held."""
