"""The play that `make demo` shows: the owner is killed, stopped, cut off and handed over in turn.

Law: it runs inside the namespaces that demo.py made and draws nothing: what happens is told as
events, one line of JSON each on the standard output. What it claims is judged as the rig's scenarios
are (judge.py). It ends when its standard input does, and everything in its namespaces with it.

| what | besides |
|---|---|
| say | `text`: what is being done, or was seen |
| now | the figures and both nodes, ten times a second |
| takeover | one of them is over: `fault`, `old`, `new`, `epoch`, times, doubles |
| over | the sum, and `reason`, "" when every promise held |
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from tests.rig.doubts import Doubts
from tests.rig.ground import PEER, RIG, VIRTUAL, Broken, expect, wait_until
from tests.rig.judge import Judge
from tests.rig.node import in_order
from tests.rig.pair import Pair
from tests.rig.traffic import Traffic

DIRECTORY = os.path.join(RIG, "run", "demo")
CLUSTER = "grace: 2s\ntakeover-after: 3s"
RATE = 150.0
"""Messages a second: brisk, and a small machine keeps up."""
LOOK_SECONDS = 0.1
CALM_SECONDS = 4.0
"""Of undisturbed service between two acts, so that a visitor sees it."""
STOPPED_SECONDS = 4.0
ANSWER_SECONDS = 0.25
"""A node that is asked how it is answers in milliseconds, or is stopped."""


class Play:
    def __init__(self) -> None:
        self._pair = Pair(DIRECTORY)
        self._traffic = Traffic(self._pair, rate=RATE)
        self._doubts = Doubts(self._pair)
        self._judge: Judge
        self._begun = time.monotonic()
        self._fate = dict.fromkeys(self._pair.nodes, "")
        """What was done to a node, in words; "" while it simply runs."""
        self._holders: set[str] = set()
        """Nodes that have the address."""
        self._nodes: dict[str, dict[str, Any]] = {name: {} for name in self._pair.nodes}
        self._is_over = threading.Event()
        self._telling = threading.Lock()
        self._unnamed = 0

    def run(self) -> str:
        """The reason why a promise did not hold; "" when all did."""
        threads = [threading.Thread(target=self._show, daemon=True)]
        threads += [
            threading.Thread(target=self._ask, args=(name,), daemon=True)
            for name in self._pair.nodes
        ]
        reason = ""
        try:
            self._pair.build(counters=False)
            self._prove_the_witness()
            for thread in threads:
                thread.start()
            self._acts()
            self._pair.at_the_end()
        except Broken as broken:
            reason = str(broken)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
        self._is_over.set()
        for thread in threads:
            if thread.is_alive():
                thread.join(5)
        try:
            reason = self._sum(reason)
        finally:
            self._pair.clear()
        return reason

    # --- the acts

    def _acts(self) -> None:
        pair, traffic = self._pair, self._traffic
        self._say("node a and node b start; they share one spool, and the address is on node a")
        traffic.catch()
        pair.configure(cluster=CLUSTER)
        self._give("a")
        for mta in pair.mtas.values():
            mta.supervise()
        pair["a"].wait_online()
        pair["b"].wait_answering()
        self._say("node a owns; a load sends mail to the address, a catcher takes what comes out")
        traffic.start().wait_promised(100)
        self._judge = Judge(pair, traffic)
        self._calm()
        self._killed("a", "b")
        self._stopped("b", "a")
        self._cut_off("a", "b")
        self._two_at_once("b", "a")
        self._handed_over("b", "a")
        self._say("the load ends; every message that was answered 250 must have arrived")
        traffic.finish()

    def _killed(self, old: str, new: str) -> None:
        self._say(f"kill -9 for the owner, node {old}; the address moves to node {new}")
        begun = self._begin()
        self._fate[old] = "killed"
        self._pair.kill(old)
        self._move(old, new)
        self._greeted("killed (kill -9)", old, new, begun)
        self._pair[old].wait_answering()
        self._fate[old] = ""
        self._say(f"node {old} was started again, and stands by")
        self._calm()

    def _stopped(self, old: str, new: str) -> None:
        self._say(f"SIGSTOP for the owner, node {old}, in the midst of its work")
        begun = self._begin()
        process = self._pair.freeze(old)
        self._fate[old] = "stopped"
        self._move(old, new)
        self._greeted("stopped (SIGSTOP)", old, new, begun)
        time.sleep(STOPPED_SECONDS)
        self._say(f"SIGCONT: node {old} goes on where it stood, and believes to be the owner")
        self._fate[old] = ""
        self._pair.thaw(process)
        wait_until(
            lambda: self._pair[old].state() == "standby", 15, f"node {old} does not stand by"
        )
        expect("is superseded" in self._pair[old].log(), f"node {old} does not say why it lost")
        self._say(f"node {old} found its epoch superseded, sent nothing, and stands by")
        self._calm()

    def _cut_off(self, old: str, new: str) -> None:
        self._say(f"the owner, node {old}, is cut off: link up, address there, nobody hears it")
        begun = self._begin()
        self._pair.part(old)
        self._fate[old] = "cut off"
        self._give(new)
        self._greeted("cut off (partition)", old, new, begun)
        wait_until(lambda: not self._pair[old].owns(), 5, f"node {old} still owns")
        self._say(f"node {old} read the newer epoch in the spool, and stands by")
        self._take(old)
        self._pair.join(old)
        self._fate[old] = ""
        self._say(f"node {old} is back on the network")
        self._calm()

    def _two_at_once(self, old: str, new: str) -> None:
        """Back to `old`, whose new process serves."""
        self._say(
            f"kill -9 for node {old}, and for node {new} as soon as that has begun to take over"
        )
        begun = self._begin()
        self._fate[old] = "killed"
        epoch = self._pair.epoch
        self._pair.kill(old)
        self._move(old, new)
        wait_until(lambda: self._pair.epoch > epoch, 10, f"node {new} began nothing", step=0.002)
        self._fate[new] = "killed"
        self._pair.kill(new)
        self._move(new, old)
        self._fate[old] = ""
        self._greeted("both killed at once", new, old, begun)
        self._pair[new].wait_answering()
        self._fate[new] = ""
        self._say(f"node {new} was started again, and stands by")
        self._calm()

    def _handed_over(self, old: str, new: str) -> None:
        self._say(f"SIGTERM for the owner, node {old}: an orderly hand-over, as for an update")
        begun = self._begin()
        mta = self._pair[old]
        mta.hold()
        self._fate[old] = "told to end"
        status = mta.process().stop(20)
        expect(in_order(status), f"SIGTERM ended node {old} with status {status}")
        self._fate[old] = "ended"
        self._move(old, new)
        doubled = self._greeted("handed over (SIGTERM)", old, new, begun)
        expect(doubled == 0, f"an orderly hand-over doubled {doubled} messages")
        mta.supervise()
        mta.wait_answering()
        self._fate[old] = ""
        self._calm()

    # --- their parts

    def _prove_the_witness(self) -> None:
        """A witness that saw nothing is worth something only if it can see."""
        wire = self._pair.wire
        assert wire is not None
        try:
            self._pair.connect("a", PEER, 2525, 1).close()  # nobody listens there
        except OSError:
            pass
        wait_until(wire.look, 2, "the witness on the cable does not see a wrong source")
        wire.reset()

    def _begin(self) -> float:
        self._judge.begin()
        return time.monotonic()

    def _greeted(self, fault: str, old: str, new: str, begun: float) -> int:
        """Until the new owner serves; the sum is judged. Answers how many were doubled."""
        pair, traffic = self._pair, self._traffic
        moved = time.monotonic()
        pair.wait_owner(new)
        greeted = time.monotonic()
        released = self._judge.peers_are_released(greeted)
        verdict = self._judge.check()
        with traffic.lock:
            times = sorted(at for at in traffic.sums.promised.values() if at > begun - 1)
            self._doubts.look()
            unnamed = len(self._doubts.unnamed(traffic.sums))
        still = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
        doubled = verdict.outbound_doubles + verdict.inbound_doubles
        self._tell(
            "takeover",
            fault=fault,
            old=old,
            new=new,
            epoch=pair.epoch,
            greets_ms=round((greeted - moved) * 1000),
            still_ms=round(still * 1000),
            released_ms=round(released * 1000),
            doubled=doubled,
            unnamed=unnamed - self._unnamed,
        )
        self._unnamed = unnamed
        return doubled

    def _calm(self) -> None:
        time.sleep(CALM_SECONDS)

    def _give(self, name: str) -> None:
        self._pair.give(name)
        self._holders.add(name)

    def _take(self, name: str) -> None:
        self._pair.take(name)
        self._holders.discard(name)

    def _move(self, old: str, new: str) -> None:
        self._take(old)
        self._give(new)

    # --- what is told

    def _tell(self, what: str, **besides: Any) -> None:
        seconds = round(time.monotonic() - self._begun, 2)
        line = json.dumps({"what": what, "seconds": seconds, **besides})
        with self._telling:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def _say(self, text: str) -> None:
        self._tell("say", text=text)

    def _ask(self, name: str) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self._nodes[name] = self._pair[name].asked(ANSWER_SECONDS)

    def _show(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self._now()

    def _now(self) -> None:
        self._tell(
            "now",
            epoch=self._pair.epoch,
            nodes={name: self._node(name) for name in self._pair.nodes},
            **self._figures(),
        )

    def _node(self, name: str) -> dict[str, Any]:
        found = self._nodes[name]
        return {
            "fate": self._fate[name],
            "has_address": name in self._holders,
            "state": found.get("state", ""),
            "epoch": found.get("epoch", 0),
            "why": found.get("why", "").removeprefix("standby: "),
        }

    def _figures(self) -> dict[str, Any]:
        traffic, wire = self._traffic, self._pair.wire
        with traffic.lock:
            sums = traffic.look()
            self._doubts.look()
            doubles = len(sums.outbound_doubles()) + len(sums.inbound_doubles())
            unnamed = len(self._doubts.unnamed(sums))
            sources = [source for source in sums.sources if source != VIRTUAL]
            return {
                "sent": len(sums.promised),
                "arrived": len(sums.promised) - len(sums.pending),
                "waiting": len(sums.pending),
                "doubled": doubles,
                "unnamed": unnamed,
                "wrong_source": (len(wire.look()) if wire else 0) + len(sources),
            }

    def _sum(self, reason: str) -> str:
        figures = self._figures()
        if not reason and self._doubts.complaints:
            reason = f"a node's log holds {self._doubts.complaints[0]!r}"
        waiting = figures.pop("waiting")
        if figures["unnamed"] and not reason:
            reason = (
                f"not named in doubt: {', '.join(self._doubts.unnamed(self._traffic.sums)[:5])}"
            )
        self._tell("over", lost=waiting, reason=reason, epoch=self._pair.epoch, **figures)
        return reason


def watch_input() -> None:
    """Whoever started the play is gone: so is the play, and the kernel ends what it started."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    watch_input()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.makedirs("/run/netns")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return 1 if Play().run() else 0


if __name__ == "__main__":
    sys.exit(main())
