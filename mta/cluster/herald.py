"""The new owner makes itself known: announces its addresses, and releases peers that wait.

Law: only while a tenure lives, and only for its addresses. Without CAP_NET_RAW, or with doors that
send no packets, it does nothing and says so; whoever moves the address announces it then, and a
peer notices a takeover when it sends next. Nothing here is needed for safety.

Measured: without an announcement a new connection took 11 s, and a peer that had something to send
heard nothing for 30 s; an idle peer waits for its own time-out without the tickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from mta.cluster.packets import announcement, answering, reset, tickle
from mta.cluster.tenure import Tenure
from mta.interfaces import IClock, IDoors, IPacketDoor, ISegments, ITimer
from mta.model import AddressInstance, FourTuple, Segment
from mta.telemetry import Telemetry

ANNOUNCE_SECONDS = 5.0
"""How often the owner repeats it: a switch or a peer that restarted, a split that healed."""
FIRST_SECONDS = (0.0, 0.2, 1.0)
"""After going online: the first may be lost while a bridge learns its ports."""
TICKLE_SECONDS = (0.0, 0.3, 1.0)
"""A peer's answer may go astray while its neighbour entry is stale."""
ANSWER_SECONDS = 0.2
"""From a tickle to the look at what came back: less than the time to the next one."""
MOST_TICKLES = 10_000
"""Associations that one takeover releases; more than a bridgehead has."""


class Herald:
    """`online(...)` when a tenure listens, `offline()` before its addresses go."""

    def __init__(
        self, doors: IDoors, clock: IClock, telemetry: Telemetry, *, is_wanted: bool
    ) -> None:
        self._door: IPacketDoor | None = doors if IPacketDoor.providedBy(doors) else None
        self._clock = clock
        self._telemetry = telemetry
        self._is_wanted = is_wanted
        self._timers: list[ITimer] = []
        self._repeating: ITimer | None = None
        self._segments: ISegments | None = None
        self._why_not = ""
        self.cut_off: tuple[FourTuple, ...] = ()
        """What our last tenure's end closed; with the address away no reset got through."""
        self._announced = telemetry.counter(
            "mta_address_announcements_total", "Gratuitous ARP and unsolicited neighbour news sent."
        )
        self._tickled = telemetry.counter(
            "mta_tickles_total", "Acknowledgements sent to peers of a former owner's associations."
        )

    def explain(self) -> str:
        """One line for `mta status`."""
        if not self._is_wanted:
            return "off (cluster.announce)"
        if self._door is None:
            return "not possible here"
        if self._why_not:
            return f"not sent: {self._why_not}"
        return f"every {ANNOUNCE_SECONDS:g} s" if self._repeating else "while online"

    def online(
        self,
        tenure: Tenure,
        instances: Iterable[AddressInstance],
        left_open: Iterable[FourTuple],
    ) -> None:
        """`left_open`: what a former owner had open; none when a tenure is only resumed, which
        has what the last one closed instead. What is open under this tenure is left alone.
        """
        self.offline()
        left_open, self.cut_off = (*left_open, *self.cut_off), ()
        if self._door is None or not self._is_wanted:
            return
        bound = {str(address.bind) for address in tenure.addresses}
        ours = [i for i in instances if str(i.address) in bound]
        to_release = (ends for ends in left_open if ends.local_host in bound and ends.local_port)
        stuck = dict.fromkeys(islice(to_release, MOST_TICKLES))
        self._why_not = ""
        for seconds in FIRST_SECONDS:
            self._at(seconds, self._announce, ours)
        if ours:
            self._repeat(ours)
        if stuck:
            for seconds in TICKLE_SECONDS:
                self._at(seconds, self._tickle, tenure, stuck)

    def offline(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            timer.cancel()
        if self._repeating is not None:
            self._repeating.cancel()
            self._repeating = None
        self._close_segments()

    def _at(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        if seconds <= 0.0:
            call(*arguments)
        else:
            self._timers.append(self._clock.call_later(seconds, call, *arguments))

    def _announce_again(self, instances: list[AddressInstance]) -> None:
        self._announce(instances)
        self._repeat(instances)

    def _repeat(self, instances: list[AddressInstance]) -> None:
        again = self._announce_again
        self._repeating = self._clock.call_later(ANNOUNCE_SECONDS, again, instances)

    def _announce(self, instances: list[AddressInstance]) -> None:
        door = self._door
        assert door is not None
        for instance in instances:
            address = instance.address
            why = door.send_frames(
                "authority",
                instance.ifindex,
                lambda hardware, address=address: announcement(address, hardware),  # type: ignore[misc]
            )
            if why:
                self._complain(f"{address} is not announced: {why}", why)
            else:
                self._announced.inc()

    def _tickle(self, tenure: Tenure, stuck: dict[FourTuple, None]) -> None:
        """Those that have not answered. A port may be in use again: nobody else's is touched."""
        for ends in tenure.open_ends():
            stuck.pop(ends, None)
        if not stuck:
            return
        assert self._door is not None
        self._close_segments()
        self._segments = segments = self._door.open_segments("authority")
        sent, why = segments.send([tickle(ends) for ends in stuck])
        self._tickled.inc(sent)
        if why:
            self._complain(f"peers of {len(stuck)} associations are not released: {why}", why)
            self._close_segments()
        else:
            self._at(ANSWER_SECONDS, self._hear, segments, tenure, stuck)

    def _hear(self, segments: ISegments, tenure: Tenure, stuck: dict[FourTuple, None]) -> None:
        """Reset who answered. Only the first segment of a peer belongs to the old association for
        certain: after it, it may have begun a new one from the same port.
        """
        if segments is not self._segments:
            return  # late: the next burst has begun
        for ends in tenure.open_ends():
            stuck.pop(ends, None)
        resets: list[Segment] = []
        for answer in segments.receive():
            whose = answering(answer)
            if whose is not None and whose in stuck:
                del stuck[whose]
                resets += reset(answer)
        if resets:
            segments.send(resets)
        self._close_segments()

    def _close_segments(self) -> None:
        segments, self._segments = self._segments, None
        if segments is not None:
            segments.close()

    def _complain(self, text: str, why: str) -> None:
        """Once for each reason: an announcement that fails fails every 5 s."""
        if why != self._why_not:
            self._why_not = why
            self._telemetry.notice("warning", "cluster", text)
