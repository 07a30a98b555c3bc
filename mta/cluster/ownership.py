"""The ownership machine: which state follows which, and what is to be done. Pure.

Law: this table is the one list of states (docs/states/ownership.md is drawn from it). An input that
a state does not know is refused by name. LOST beats everything. Every bid for ownership has a
number, and what arrives for an older bid is dropped: numbers are compared, never booleans.

`python -m mta.cluster.ownership --draw` prints the drawing.
"""

from __future__ import annotations

import enum
import sys

from mta.errors import LocalProtocolError


class State(enum.Enum):
    """From DOWN to ONLINE each step needs the one before it; every other way ends in STANDBY."""

    DOWN = "not started, or stopped"
    STANDBY = "healthy, not the owner; waits for the authority's grant and for the right to claim"
    CLAIMED = "the authority granted it and the spool lets us claim"
    FENCED_OTHERS = "no former owner can write any more, as far as the authority sees to that"
    PUBLISHED = "our epoch is durable and above all others; what fails now marks it released"
    RECOVERED = "the predecessor's queue and in-doubt list are read"
    SEALED = "our own checkpoint is durable and the epoch re-read; a tenure is being started"
    ONLINE = "a tenure exists: listening, sending"
    SUSPENDED = "a required address went; nothing is open, the epoch is still ours"
    DRAINING = "asked to stop: nothing new, what is open may end"
    RELEASING = "everything is closed; the epoch is being marked released, the grant given back"
    LOST = "the tenure was taken: aborted without a reply"


class Input(enum.Enum):
    """What happens. The driver says so; nothing else does."""

    START = "the process starts"
    GRANTED = "the authority grants it and the claim rules allow it"
    FENCED = "the external fence is acknowledged, or there is none"
    PUBLISHED = "the epoch was published"
    RECOVERED = "older epochs were read"
    SEALED = "the checkpoint is durable, the epoch re-read"
    STARTED = "the tenant listens"
    REFUSED = "a step failed, with its reason"
    ADDRESS_LOST = "a required address is no longer usable here"
    ADDRESS_BACK = "every required address is usable"
    GRACE_OVER = "an address stayed away for longer than `grace`"
    STOP = "the operator stops the process"
    LOSING = "the authority asks us to leave by a deadline"
    DRAINED = "all associations ended, or the drain time did"
    RELEASED = "the epoch is marked released and the grant given back"
    LOST = "superseded, authority lost, or the spool's disk is stuck"
    ENDED = "all that ran for the lost tenure has ended"


class Action(enum.Enum):
    """What the driver does on a transition."""

    NOTHING = "nothing"
    REST = "back off if there was a failure, then ask the authority; or go down when stopping"
    FENCE = "see that others are fenced"
    PUBLISH = "bind, confirm the grant, publish"
    RECOVER = "read older epochs"
    SEAL = "make the own checkpoint durable"
    START = "mint a tenure, start the tenant"
    ANNOUNCE = "say that we are online"
    SUSPEND = "revoke the tenure, start the grace timer"
    DRAIN = "ask the tenant to end within the drain time"
    RELEASE = "revoke the tenure, mark the epoch released, give the grant back"
    WITHDRAW = "give the grant back; nothing was published"
    END = "revoke, abandon the spool, stop the tenant: at once"
    SHUT = "stop watching the authority"


def _table() -> dict[tuple[State, Input], tuple[State, Action]]:
    s, i, a = State, Input, Action
    table = {
        (s.DOWN, i.START): (s.STANDBY, a.REST),
        (s.DOWN, i.STOP): (s.DOWN, a.NOTHING),
        (s.STANDBY, i.GRANTED): (s.CLAIMED, a.FENCE),
        (s.STANDBY, i.REFUSED): (s.STANDBY, a.WITHDRAW),
        (s.STANDBY, i.STOP): (s.DOWN, a.SHUT),
        # The way up. Until PUBLISHED nothing was promised, so failing is only a withdrawal.
        (s.CLAIMED, i.FENCED): (s.FENCED_OTHERS, a.PUBLISH),
        (s.CLAIMED, i.REFUSED): (s.STANDBY, a.WITHDRAW),
        (s.FENCED_OTHERS, i.PUBLISHED): (s.PUBLISHED, a.RECOVER),
        (s.FENCED_OTHERS, i.REFUSED): (s.STANDBY, a.WITHDRAW),
        (s.PUBLISHED, i.RECOVERED): (s.RECOVERED, a.SEAL),
        (s.PUBLISHED, i.REFUSED): (s.RELEASING, a.RELEASE),
        (s.RECOVERED, i.SEALED): (s.SEALED, a.START),
        (s.RECOVERED, i.REFUSED): (s.RELEASING, a.RELEASE),
        (s.SEALED, i.STARTED): (s.ONLINE, a.ANNOUNCE),
        (s.SEALED, i.REFUSED): (s.RELEASING, a.RELEASE),
        (s.SEALED, i.ADDRESS_LOST): (s.SUSPENDED, a.SUSPEND),
        # At the top.
        (s.ONLINE, i.ADDRESS_LOST): (s.SUSPENDED, a.SUSPEND),
        (s.ONLINE, i.STOP): (s.DRAINING, a.DRAIN),
        (s.ONLINE, i.LOSING): (s.DRAINING, a.DRAIN),
        (s.SUSPENDED, i.ADDRESS_BACK): (s.SEALED, a.START),
        (s.SUSPENDED, i.GRACE_OVER): (s.RELEASING, a.RELEASE),
        # The way down.
        (s.DRAINING, i.DRAINED): (s.RELEASING, a.RELEASE),
        (s.DRAINING, i.ADDRESS_LOST): (s.RELEASING, a.RELEASE),
        (s.RELEASING, i.RELEASED): (s.STANDBY, a.REST),
        (s.LOST, i.ENDED): (s.STANDBY, a.REST),
    }
    # Stopping, or being asked to leave, on the way up: give back what is held.
    for state in (s.CLAIMED, s.FENCED_OTHERS, s.PUBLISHED, s.RECOVERED, s.SEALED, s.SUSPENDED):
        for wish in (i.STOP, i.LOSING):
            table[state, wish] = (s.RELEASING, a.RELEASE)
    # LOST beats everything that holds a grant.
    holding = (s.CLAIMED, s.FENCED_OTHERS, s.PUBLISHED, s.RECOVERED, s.SEALED)
    for state in (*holding, s.ONLINE, s.SUSPENDED, s.DRAINING, s.RELEASING):
        table[state, i.LOST] = (s.LOST, a.END)
    # What changes nothing where it arrives: the state asks for the address itself when it needs it,
    # or is on its way down already.
    idle = {
        s.STANDBY: (i.ADDRESS_LOST, i.ADDRESS_BACK, i.LOSING, i.LOST),
        s.CLAIMED: (i.ADDRESS_LOST, i.ADDRESS_BACK),
        s.FENCED_OTHERS: (i.ADDRESS_LOST, i.ADDRESS_BACK),
        s.PUBLISHED: (i.ADDRESS_LOST, i.ADDRESS_BACK),
        s.RECOVERED: (i.ADDRESS_LOST, i.ADDRESS_BACK),
        s.SEALED: (i.ADDRESS_BACK,),
        s.ONLINE: (i.ADDRESS_BACK,),
        s.SUSPENDED: (i.ADDRESS_LOST,),
        s.DRAINING: (i.ADDRESS_BACK, i.STOP, i.LOSING),
        s.RELEASING: (i.ADDRESS_LOST, i.ADDRESS_BACK, i.STOP, i.LOSING),
        s.LOST: (i.ADDRESS_LOST, i.ADDRESS_BACK, i.STOP, i.LOSING, i.LOST),
    }
    for state, inputs in idle.items():
        for heard in inputs:
            table[state, heard] = (state, a.NOTHING)
    return table


TABLE: dict[tuple[State, Input], tuple[State, Action]] = _table()


class OwnershipMachine:
    """Where one node stands. `bid` numbers the bids for ownership from 1; 0 before the first."""

    def __init__(self) -> None:
        self.state = State.DOWN
        self.bid = 0

    def next_bid(self) -> int:
        """A new bid begins: what still comes for older ones is dropped from now on."""
        self.bid += 1
        return self.bid

    def receive(self, heard: Input, bid: int | None = None) -> Action | None:
        """Take an input; answer what to do, or None when it came for an older bid.

        @raise LocalProtocolError: the present state knows no such input.
        """
        if bid is not None and bid != self.bid:
            return None
        try:
            self.state, action = TABLE[self.state, heard]
        except KeyError:
            raise LocalProtocolError(
                f"ownership: {heard.name} is unknown in state {self.state.name}",
                f"known there: {', '.join(i.name for s, i in TABLE if s is self.state)}",
            ) from None
        return action


# --- the drawing ------------------------------------------------------------------------------


def draw() -> str:
    """The machine as a Mermaid diagram with its words: the text of docs/states/ownership.md."""
    lines = [
        "# Ownership of the virtual server",
        "",
        "Drawn from the table in `mta/cluster/ownership.py` by "
        "`python -m mta.cluster.ownership --draw`; a test says when it is stale.",
        "Inputs that change nothing are not drawn.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> DOWN",
    ]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (before, heard), (after, action) in TABLE.items():
        if before is after and action is Action.NOTHING:
            continue
        label = heard.name.lower().replace("_", " ")
        arrows.setdefault((before, after), []).append(label)
    for (before, after), labels in arrows.items():
        lines.append(f"    {before.name} --> {after.name}: {', '.join(labels)}")
    lines += ["```", "", "| state | meaning |", "|---|---|"]
    lines += [f"| {state.name} | {state.value} |" for state in State]
    lines += ["", "| input | what happened |", "|---|---|"]
    lines += [f"| {heard.name.lower().replace('_', ' ')} | {heard.value} |" for heard in Input]
    lines += ["", "| state | input | next | to do |", "|---|---|---|---|"]
    for (before, heard), (after, action) in TABLE.items():
        if action is not Action.NOTHING:
            lines.append(
                f"| {before.name} | {heard.name.lower().replace('_', ' ')} "
                f"| {after.name} | {action.value} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--draw"]:
        sys.exit("usage: python -m mta.cluster.ownership --draw")
    sys.stdout.write(draw())
