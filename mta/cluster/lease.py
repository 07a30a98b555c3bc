"""A lease that ends by itself unless it is renewed in time: its states, and what is due when. Pure.

Law (spool.md section 9): every moment of a lease counts from when the last renewal that was
*answered* was *sent*, never from when its answer came: renewed at 0.3 of the TTL, nothing new from
0.7, everything aborted at 0.8. A lease that is over never comes back; a new one is asked for. The
TTL is the one that was granted, and an answer can shorten it and never lengthen it.

Time comes in as a number of seconds, of CLOCK_BOOTTIME in the product.
"""

from __future__ import annotations

import enum

from mta.errors import LocalProtocolError

RENEW_AT = 0.3
NARROW_AT = 0.7
OVER_AT = 0.8
KILL_AT = 0.9
"""What has not ended by itself at 0.8 is ended from outside by the watchdog (watchdog.py)."""


class State(enum.Enum):
    NONE = "no lease"
    """Nothing is held, and nothing was asked for."""
    ASKED = "asked for"
    """The authority was asked for a lease; its time runs from that moment."""
    HELD = "held"
    """The last answered renewal was sent less than 0.7 of the TTL ago."""
    NARROW = "narrow"
    """From 0.7 on: what is open goes on, nothing new begins."""
    OVER = "over"
    """From 0.8 on, or the authority said so: everything of the tenure is aborted. For good."""


class Input(enum.Enum):
    ASK = "a lease is asked for"
    GRANTED = "the authority granted one"
    REFUSED = "none was granted, or no answer came"
    RENEWED = "a renewal was answered"
    DENIED = "the authority no longer knows the lease"
    NARROWS = "0.7 of the TTL went by"
    ENDS = "0.8 of the TTL went by"
    RELEASE = "it is given back, or forgotten"


class Action(enum.Enum):
    NOTHING = "nothing"
    COUNT = "count anew from the moment of sending"
    CLOSE = "let nothing new begin"
    END = "say that it is lost"


def _table() -> dict[tuple[State, Input], tuple[State, Action]]:
    s, i, a = State, Input, Action
    table = {
        (s.NONE, i.ASK): (s.ASKED, a.NOTHING),
        (s.ASKED, i.GRANTED): (s.HELD, a.COUNT),
        (s.ASKED, i.REFUSED): (s.NONE, a.NOTHING),
        (s.HELD, i.RENEWED): (s.HELD, a.COUNT),
        (s.HELD, i.NARROWS): (s.NARROW, a.CLOSE),
        (s.NARROW, i.RENEWED): (s.HELD, a.COUNT),
        (s.NARROW, i.ENDS): (s.OVER, a.END),
        # Too late: others may have acted on its end already.
        (s.OVER, i.RENEWED): (s.OVER, a.NOTHING),
        (s.OVER, i.DENIED): (s.OVER, a.NOTHING),
        # Answers to what was sent for a lease that is no more.
        (s.NONE, i.RENEWED): (s.NONE, a.NOTHING),
        (s.NONE, i.DENIED): (s.NONE, a.NOTHING),
        (s.ASKED, i.RENEWED): (s.ASKED, a.NOTHING),
        (s.ASKED, i.DENIED): (s.ASKED, a.NOTHING),
    }
    for state in (s.HELD, s.NARROW):
        table[state, i.DENIED] = (s.OVER, a.END)
    for state in State:
        table[state, i.RELEASE] = (s.NONE, a.NOTHING)
    return table


TABLE: dict[tuple[State, Input], tuple[State, Action]] = _table()


class Lease:
    """One lease at a time. Whoever sends a request notes the time before, and brings it with the
    answer; `pass_time` is called at `next_moment` and before the state is relied upon.
    """

    __slots__ = ("_counted_from", "is_over_at", "narrow_at", "state", "ttl")

    def __init__(self) -> None:
        self.state = State.NONE
        self.ttl = 0.0
        self._counted_from = 0.0
        self.narrow_at = 0.0
        """Nothing new from this moment on; 0 while nothing is held."""
        self.is_over_at = 0.0
        """Everything is aborted by this moment; 0 while nothing is held."""

    # --- what happens

    def ask(self) -> None:
        self._receive(Input.ASK)

    def refused(self) -> None:
        self._receive(Input.REFUSED)

    def granted(self, sent: float, ttl: float, now: float) -> Action:
        """The answer to the request that was sent at `sent`."""
        action = self._receive(Input.GRANTED)
        self.ttl = ttl
        self._count(sent)
        return self.pass_time(now) or action

    def renewed(self, sent: float, ttl: float, now: float) -> Action:
        """Answers may come in any order: what was sent earlier than the last changes nothing."""
        passed = self.pass_time(now)  # it may be over already: then this came too late
        action = self._receive(Input.RENEWED)
        if action is Action.COUNT:
            self.ttl = min(self.ttl, ttl)
            self._count(max(sent, self._counted_from))
            return self.pass_time(now) or action
        return passed or action

    def denied(self) -> Action:
        action = self._receive(Input.DENIED)
        self._forget_if_over()
        return action

    def release(self) -> None:
        self._receive(Input.RELEASE)
        self._forget_if_over()

    def pass_time(self, now: float) -> Action | None:
        """What the passing of time does; the last of it when it is more than one thing."""
        done = None
        if self.state is State.HELD and now >= self.narrow_at:
            done = self._receive(Input.NARROWS)
        if self.state is State.NARROW and now >= self.is_over_at:
            done = self._receive(Input.ENDS)
            self._forget_if_over()
        return done

    # --- what is asked

    def seconds_left(self, now: float) -> float:
        """Until all must be aborted; 0 or less when that is past or nothing is held."""
        return self.is_over_at - now if self.is_over_at else 0.0

    def may_accept(self, now: float) -> bool:
        return now < self.narrow_at

    def renewal_due(self) -> float:
        """When the next renewal is to be sent, if the last one was answered."""
        return self._counted_from + RENEW_AT * self.ttl

    def kill_at(self) -> float:
        """For the watchdog; 0 while nothing is held."""
        return self._counted_from + KILL_AT * self.ttl if self.is_over_at else 0.0

    def next_moment(self) -> float | None:
        """When time itself changes the state; None when it does not."""
        if self.state is State.HELD:
            return self.narrow_at
        return self.is_over_at if self.state is State.NARROW else None

    # --- inside

    def _count(self, sent: float) -> None:
        self._counted_from = sent
        self.narrow_at = sent + NARROW_AT * self.ttl
        self.is_over_at = sent + OVER_AT * self.ttl

    def _forget_if_over(self) -> None:
        if self.state in {State.OVER, State.NONE}:
            self.narrow_at = self.is_over_at = 0.0

    def _receive(self, heard: Input) -> Action:
        try:
            self.state, action = TABLE[self.state, heard]
        except KeyError:
            raise LocalProtocolError(
                f"lease: {heard.name} is unknown in state {self.state.name}",
                f"known there: {', '.join(i.name for s, i in TABLE if s is self.state)}",
            ) from None
        return action
