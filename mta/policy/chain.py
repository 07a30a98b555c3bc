"""The policies in their configured order, resolved at start to one flat tuple for each hook.

Whoever stands behind a policy that changes content hears headers, body and end on a leg of its own,
when that one has ended: `Leg.behind`.

Law: a policy that answers at once costs a call and nothing else; a Deferred exists only while a
policy really waits, and its time is bounded. A policy's exception never passes beyond this module:
it becomes 451 4.3.0 for that command and a line that names the plugin (RFC 5321 4.2.4.1).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from mta.errors import PluginError
from mta.interfaces import IClock, IContentEditor, IDeliveryPolicy, IPolicy, ISigner
from mta.model import Reply
from mta.policy.transaction import Transaction
from mta.telemetry import Event, Telemetry, Transferred

ASKED = (
    *("connect", "helo", "auth", "unknown"),
    *("mail", "rcpt", "refused", "data", "headers", "body", "end"),
)
TOLD = ("queued", "abort", "disconnect")
HOOKS = frozenset(ASKED + TOLD)
OF_CONTENT = ("headers", "body", "end")
"""What is asked leg by leg."""

FAULT = Reply(451, "4.3.0", (b"Internal error in a policy, try again later",))
POLICY_TIMEOUT_SECONDS = 60.0
"""Well under the five minutes that a client waits for a reply (RFC 5321 4.5.3.2)."""

_CONTROLS = bytes(range(32)) + b"\x7f"
_VISIBLE = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))

Answer = Reply | None | Deferred[Reply | None]
_Entry = tuple[str, Callable[[str, Any], Answer]]


def policy_name(policy: object) -> str:
    """How logs call it: its own `name`, else its class."""
    name = getattr(policy, "name", "")
    return name if isinstance(name, str) and name else type(policy).__name__


class Leg:
    """Asks each policy that named the hook, in order, until one refuses: the policies up to the
    first that changes content, and those of `behind` when that one has ended.

    `timeout_seconds` bounds each single answer that is not given at once.
    """

    def __init__(
        self,
        policies: Sequence[IPolicy],
        clock: IClock,
        telemetry: Telemetry,
        timeout_seconds: float,
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._timeout_seconds = timeout_seconds
        here, later = _divided(policies)
        self._flat = _flattened(OF_CONTENT, here)
        self.behind: Leg | None = None
        if any(policy.hooks.intersection(OF_CONTENT) for policy in later):
            self.behind = Leg(later, clock, telemetry, timeout_seconds)

    def wants(self, *hooks: str) -> bool:
        """Some policy named one of `hooks`."""
        return any(self._flat[hook] for hook in hooks)

    def ask(self, hook: str, transaction: Transaction) -> Answer:
        """None: no objection. A Reply is negative. A Deferred only when a policy waits."""
        for index, (name, on) in enumerate(self._flat[hook]):
            try:
                answer = on(hook, transaction)
            except Exception as error:
                return self._fault(name, hook, transaction, error)
            if answer is None:
                continue
            if isinstance(answer, Deferred):
                return Deferred.fromCoroutine(self._wait(hook, transaction, index, answer))
            return self._judged(name, hook, transaction, answer)
        return None

    async def _wait(
        self, hook: str, transaction: Transaction, index: int, answer: Deferred[Reply | None]
    ) -> Reply | None:
        """One policy waits, and perhaps others behind it: still in order, one at a time."""
        policies = self._flat[hook]
        while True:
            name = policies[index][0]
            try:
                reply = await self._bounded(answer)
            except CancelledError:
                raise  # the association ended; nobody wants the answer
            except Exception as error:
                return self._fault(name, hook, transaction, error)
            if reply is not None:
                return self._judged(name, hook, transaction, reply)
            while True:
                index += 1
                if index == len(policies):
                    return None
                name, on = policies[index]
                try:
                    following = on(hook, transaction)
                except Exception as error:
                    return self._fault(name, hook, transaction, error)
                if isinstance(following, Deferred):
                    answer = following
                    break
                if following is not None:
                    return self._judged(name, hook, transaction, following)

    async def _bounded(self, answer: Deferred[Reply | None]) -> Reply | None:
        """@raise PluginError: no answer within the time allowed."""
        if answer.called:
            return await answer
        overdue = False

        def expire() -> None:
            nonlocal overdue
            overdue = True
            answer.cancel()

        timer = self._clock.call_later(self._timeout_seconds, expire)
        try:
            return await answer
        except CancelledError:
            if overdue:
                raise PluginError(
                    "it did not answer", f"{self._timeout_seconds:g} s have passed"
                ) from None
            raise
        finally:
            timer.cancel()

    def _judged(self, name: str, hook: str, transaction: Transaction, answer: Any) -> Reply | None:
        """What a policy said, as the peer may hear it: None, or a well-formed refusal."""
        if not isinstance(answer, Reply):
            error = PluginError(
                f"answered {answer!r}", "a hook answers None, a Reply or a Deferred of these"
            )
            return self._fault(name, hook, transaction, error)
        if answer.is_positive:
            transaction.is_spared = hook == "end"
            return None
        if not 400 <= answer.code <= 599:
            error = PluginError(f"answered code {answer.code}", "a refusal is 400 to 599")
            return self._fault(name, hook, transaction, error)
        if any(line.translate(_VISIBLE) != line for line in answer.lines):
            lines = tuple(line.translate(_VISIBLE) for line in answer.lines)
            return Reply(answer.code, answer.enhanced, lines)
        return answer

    def _fault(self, name: str, hook: str, transaction: Transaction, error: Exception) -> Reply:
        """Wrap what a plugin raised with its name, say it once, and answer 451."""
        reason = str(error) if isinstance(error, PluginError) else repr(error)
        wrapped = PluginError(f"policy {name}, hook {hook}", reason)
        self._telemetry.counter(
            "mta_policy_errors_total", "Policy hooks that raised or did not answer.", policy=name
        ).inc()
        self._telemetry.notice("error", "policy", str(wrapped), transaction.queue_id)
        return FAULT


class Chain(Leg):
    """All of them: the first leg, and every hook that is not about content."""

    def __init__(
        self,
        policies: Sequence[IPolicy],
        clock: IClock,
        telemetry: Telemetry,
        timeout_seconds: float = POLICY_TIMEOUT_SECONDS,
    ) -> None:
        adapted = [IPolicy(policy) for policy in policies]
        for policy in adapted:
            _check_hooks(policy)
        super().__init__(adapted, clock, telemetry, timeout_seconds)
        others = [hook for hook in (*ASKED, *TOLD) if hook not in OF_CONTENT]
        self._flat.update(_flattened(others, adapted))
        self._told: set[Deferred[Any]] = set()
        self._delivery: tuple[tuple[str, Callable[[Transferred], None]], ...] = tuple(
            (policy_name(p), p.delivered) for p in adapted if IDeliveryPolicy.providedBy(p)
        )
        if self._delivery:
            telemetry.attach(self._observe)

    def ask_all(self, hooks: Sequence[str], transaction: Transaction) -> Answer:
        """One hook after the other, until one is refused; answered as `ask` is."""
        for index, hook in enumerate(hooks):
            answer = self.ask(hook, transaction)
            if isinstance(answer, Deferred):
                rest = self._ask_rest(answer, hooks[index + 1 :], transaction)
                return Deferred.fromCoroutine(rest)
            if answer is not None:
                return answer
        return None

    async def _ask_rest(
        self, first: Deferred[Reply | None], hooks: Sequence[str], transaction: Transaction
    ) -> Reply | None:
        reply = await first
        if reply is not None:
            return reply
        answer = self.ask_all(hooks, transaction)
        return await answer if isinstance(answer, Deferred) else answer

    def tell(self, hook: str, transaction: Transaction) -> None:
        """Every policy that named `hook` hears of it; what they answer changes nothing."""
        for name, on in self._flat[hook]:
            try:
                answer = on(hook, transaction)
            except Exception as error:
                self._fault(name, hook, transaction, error)
                continue
            if isinstance(answer, Deferred):
                task = Deferred.fromCoroutine(self._hear(hook, transaction, name, answer))
                self._told.add(task)
                task.addBoth(self._heard, task)

    def stop(self) -> None:
        """The tenure ended: cancel what policies still do for messages gone by."""
        for task in tuple(self._told):
            task.cancel()
        self._telemetry.detach(self._observe)

    async def _hear(
        self, hook: str, transaction: Transaction, name: str, answer: Deferred[Any]
    ) -> None:
        try:
            await self._bounded(answer)
        except CancelledError:
            pass  # stop() said so
        except Exception as error:
            self._fault(name, hook, transaction, error)

    def _heard(self, _: object, task: Deferred[Any]) -> None:
        self._told.discard(task)

    def _observe(self, event: Event) -> None:
        if type(event) is not Transferred:
            return
        for name, delivered in self._delivery:
            try:
                delivered(event)
            except Exception as error:
                self._telemetry.notice(
                    "error",
                    "policy",
                    str(PluginError(f"policy {name}, delivered", repr(error))),
                    event.queue_id,
                )


def check_order(policies: Sequence[IPolicy]) -> None:
    """@raise PluginError: one vouches for content that a later one may change."""
    signer = ""
    for policy in policies:
        if signer and IContentEditor.providedBy(policy):
            raise PluginError(
                f"policy {policy_name(policy)} may change what {signer} has signed before it",
                "what is changed no signature holds for",
                f"put {signer} behind it in `policies`",
            )
        if ISigner.providedBy(policy):
            signer = policy_name(policy)


def _divided(policies: Sequence[IPolicy]) -> tuple[Sequence[IPolicy], Sequence[IPolicy]]:
    """Up to the first that changes content, and those behind it."""
    for index, policy in enumerate(policies):
        if IContentEditor.providedBy(policy):
            return policies[: index + 1], policies[index + 1 :]
    return policies, ()


def _flattened(hooks: Iterable[str], policies: Sequence[IPolicy]) -> dict[str, tuple[_Entry, ...]]:
    return {
        hook: tuple((policy_name(p), p.on) for p in policies if hook in p.hooks) for hook in hooks
    }


def _check_hooks(policy: IPolicy) -> None:
    """@raise PluginError: a hook that does not exist would never be called."""
    for hook in sorted(policy.hooks):
        if hook not in HOOKS:
            near = difflib.get_close_matches(hook, HOOKS, 1)
            raise PluginError(
                f"policy {policy_name(policy)} wants the hook {hook!r}",
                "there is no such hook",
                f"did it mean {near[0]}?" if near else f"there are {', '.join(sorted(HOOKS))}",
            )
