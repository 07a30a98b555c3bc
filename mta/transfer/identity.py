"""Who an inbound client is, as it proves it by SASL: one exchange at a time, until one succeeds.

Law: nothing that a client says here reaches a log, and a refusal says nothing of its reason. It
comes late, so that guessing is slow. Success changes the association alone: from then on its client
may relay, under its name.

RFC 4954 4 (334, 235), 6 (535, 454), RFC 4422 3.
"""

from __future__ import annotations

from base64 import b64encode

from twisted.internet.defer import Deferred

from mta.errors import Failure, PermanentFailure
from mta.interfaces import IAuthenticator, IAuthExchange
from mta.model import Challenge, Reply
from mta.policy.transaction import Association, Transaction
from mta.transfer.desk import Desk
from mta.transfer.tasks import sleep

FAILURE_SECONDS = 2.0
"""Before a refusal is said. With three of them an association, who guesses has one try a second."""
CHALLENGE = 334
"""RFC 4954 4: the exchange goes on."""
_AWAY = Reply(454, "4.7.0", (b"Temporary authentication failure",))
_REFUSED = Reply(535, "5.7.8", (b"Authentication failed",))
_NO_RESPONSE = Reply(501, "5.5.2", (b"That is no response of this mechanism",))


class Identity:
    """Of one association. Its Deferreds answer as IAuthenticatingReception says."""

    def __init__(
        self,
        desk: Desk,
        association: Association,
        introduction: Transaction,
        authenticator: IAuthenticator,
    ) -> None:
        self._desk = desk
        self._association = association
        self._introduction = introduction
        self._authenticator = authenticator
        self._exchange: IAuthExchange | None = None
        self._mechanism = ""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return self._authenticator.mechanisms

    def begin(self, mechanism: str, initial: bytes | None) -> Deferred[Reply | None]:
        self.abandon()
        self._mechanism = mechanism
        self._exchange = self._authenticator.begin(mechanism, self._association.peer)
        return Deferred.fromCoroutine(self._step(self._exchange, initial))

    def respond(self, response: bytes | None) -> Reply | Deferred[Reply | None]:
        exchange = self._exchange
        if exchange is None or response is None:
            self.abandon()
            return _REFUSED
        return Deferred.fromCoroutine(self._step(exchange, response))

    def abandon(self) -> None:
        """The client gave up, has gone, or begins anew."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    async def _step(self, exchange: IAuthExchange, response: bytes | None) -> Reply | None:
        try:
            result = await exchange.step(response)
        except Failure as failure:
            self._exchange = None
            return await self._failed(failure)
        if isinstance(result, Challenge):
            return Reply(CHALLENGE, "", (b64encode(result.octets),))
        self._exchange = None
        self._association.identify(result.user, self._mechanism)
        refused = self._desk.chain.ask("auth", self._introduction)
        if isinstance(refused, Deferred):
            refused = await refused
        if refused is not None:
            self._association.forget()
        return refused

    async def _failed(self, failure: Failure) -> Reply:
        desk, client = self._desk, self._association.peer.label
        is_refused = isinstance(failure, PermanentFailure)
        # In Postfix's words, which tools that ban hosts look for. An operator reads why.
        why = "authentication failed" if is_refused else f"cannot be checked: {failure}"
        desk.telemetry.counter(
            "mta_auth_failures_total",
            "SASL exchanges that came to nothing.",
            reason="refused" if is_refused else "away",
        ).inc()
        text = f"{client}: SASL {self._mechanism} {why}"
        desk.telemetry.notice("warning", "smtpd", text)
        if not is_refused:
            return _AWAY
        await sleep(desk.clock, FAILURE_SECONDS)
        return _NO_RESPONSE if failure.code == 501 else _REFUSED
