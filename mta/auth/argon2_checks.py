"""Whether a password is that of an Argon2id digest: on workers, two at a time, and remembered.

Law: no more than MOST_AT_ONCE checks run, whoever gives up meanwhile, for a check that has begun
cannot be stopped and holds its memory (64 MiB) until it ends. Who waits beyond MOST_WAITING is told
so at once. No password is kept: a success is remembered by a digest under a key of this process.

RFC 9106 (Argon2). argon2-cffi does the work; it is brought in when first needed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict, deque

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from mta.errors import TransientFailure
from mta.interfaces import IClock, IExecutor

MOST_AT_ONCE = 2
"""Of the executor's workers, which the spool needs too; and 64 MiB each."""
MOST_WAITING = 64
"""At 50 to 250 ms a check the last of them waits 2 to 8 seconds."""
MOST_REMEMBERED = 4096
"""Successes; about 200 octets each."""


class _Waiting:
    __slots__ = ("argon2", "done", "password")

    def __init__(self, argon2: str, password: bytes, done: Deferred[bool]) -> None:
        self.argon2 = argon2
        self.password = password
        self.done = done


class Argon2Checks:
    """One for an authenticator. `remember` is in seconds; 0: nothing is remembered."""

    def __init__(self, clock: IClock, executor: IExecutor, remember: float) -> None:
        self._clock = clock
        self._executor = executor
        self._remember = remember
        self._key = os.urandom(32)
        self._known: OrderedDict[bytes, float] = OrderedDict()
        """A success, and when it is forgotten (monotonic); the oldest first."""
        self._waiting: deque[_Waiting] = deque()
        self._running = 0

    def check(self, argon2: str, password: str) -> Deferred[bool]:
        """Whether `password` (prepared) is that of `argon2`, in the encoded form. Fails with
        TransientFailure 454 4.7.0: too many wait, or there is no memory for it.
        """
        octets = password.encode()
        mark = self._mark(argon2, octets)
        if self._is_known(mark):
            return succeed(True)
        if len(self._waiting) >= MOST_WAITING:
            return fail(_not_now(f"{MOST_WAITING} checks of passwords wait already"))
        done: Deferred[bool] = Deferred(self._given_up)
        self._waiting.append(_Waiting(argon2, octets, done))
        done.addCallback(self._remembered, mark)
        self._go_on()
        return done

    # --- workers ---

    def _go_on(self) -> None:
        while self._waiting and self._running < MOST_AT_ONCE:
            one = self._waiting.popleft()
            self._running += 1
            # Never cancelled: the slot is free when the worker is.
            work = self._executor.submit(_is_that_of, one.argon2, one.password)
            work.addBoth(self._ran, one.done)

    def _ran(self, result: bool | Failure, done: Deferred[bool]) -> None:
        self._running -= 1
        if not done.called:
            if not isinstance(result, Failure) or result.check(TransientFailure):
                done.callback(result)
            else:
                done.errback(_not_now(str(result.value)))
        self._go_on()

    def _given_up(self, done: Deferred[bool]) -> None:
        for one in self._waiting:
            if one.done is done:
                self._waiting.remove(one)
                return

    # --- successes ---

    def _mark(self, argon2: str, password: bytes) -> bytes:
        """Of a digest and a password: a changed line is not known. (No NUL is in either.)"""
        return hmac.new(self._key, argon2.encode() + b"\0" + password, hashlib.sha256).digest()

    def _is_known(self, mark: bytes) -> bool:
        now = self._clock.monotonic()
        while self._known and next(iter(self._known.values())) <= now:
            self._known.popitem(last=False)
        return mark in self._known

    def _remembered(self, is_right: bool, mark: bytes) -> bool:
        if is_right and self._remember > 0.0:
            self._known.pop(mark, None)
            self._known[mark] = self._clock.monotonic() + self._remember
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        return is_right


def _is_that_of(argon2: str, password: bytes) -> bool:
    """On a worker: 50 to 250 ms. @raise TransientFailure: not for the password's sake."""
    from argon2.exceptions import VerificationError, VerifyMismatchError
    from argon2.low_level import Type, verify_secret

    try:
        return verify_secret(argon2.encode("ascii"), password, Type.ID)
    except VerifyMismatchError:
        return False
    except VerificationError as fault:
        raise _not_now(f"Argon2: {fault}") from None


def _not_now(why: str) -> TransientFailure:
    return TransientFailure(
        "a password cannot be checked now", why, "it may work later", code=454, enhanced="4.7.0"
    )
