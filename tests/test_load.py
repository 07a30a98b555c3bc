"""The load and the catcher, which say how much was lost: they must not err themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.testing.catcher import Catcher
from mta.testing.clock import VirtualClock
from mta.testing.load import AGAIN_SECONDS, SILENCE_SECONDS, Load
from mta.testing.network import MemoryNetwork
from mta.testing.sink import DROP, SILENCE, Sink

HOST, PORT = "192.0.2.10", 25
SOURCE = "198.51.100.7"


class Dials:
    """What a load needs of the world, in memory."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.network = MemoryNetwork(self.clock)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Any:
        return self.clock.reactor.callLater(seconds, call)

    def dial(
        self, host: str, port: int, build: Callable[[], Any], failed: Any, seconds: float
    ) -> None:
        if self.network.connect_ends(SOURCE, host, port, build()) is None:
            failed()


class Bench:
    """A load before a sink; `told` holds its events."""

    def __init__(
        self, listens: bool = True, first: tuple[str, bytes, int] | None = None, **load: Any
    ) -> None:
        self.world = Dials()
        self.sink = Sink()
        if first:
            self.sink.answer(*first)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.done = 0
        if listens:
            self.listen()
        self.load = Load(self.world, HOST, PORT, self.tell, done=self._done, **load)
        self.load.start()
        self.run(0)

    def listen(self) -> None:
        self.world.network.serve(HOST, PORT, self.sink.build)

    def _done(self) -> None:
        self.done += 1

    def tell(self, what: str, **besides: Any) -> None:
        self.told.append((what, besides))

    def run(self, seconds: float) -> None:
        """Time passes in steps of the network, none of which takes time."""
        self.world.clock.advance(seconds)
        for _ in range(200):
            self.world.clock.advance(0)

    def of(self, what: str) -> list[dict[str, Any]]:
        return [besides for name, besides in self.told if name == what]

    def arrived(self) -> list[str]:
        """The names of what the sink took, in order of their numbers."""
        heads = [sunk.content.split(b"\r\n")[0].decode() for sunk in self.sink.messages]
        return sorted((head.partition(": ")[2] for head in heads), key=lambda name: int(name[1:]))


class LoadTests(SynchronousTestCase):
    """A client that keeps what became of each message."""

    def test_each_message_goes_once(self) -> None:
        """So many messages were asked for, so many arrive, each answered 250 once; then it is done."""
        bench = Bench(sessions=3, limit=20)
        bench.run(0)
        names = [f"m{n}" for n in range(1, 21)]
        self.assertEqual(bench.arrived(), names)
        self.assertEqual(sorted(told["id"] for told in bench.of("promised")), sorted(names))
        self.assertEqual(len(bench.of("greeted")), 3)
        self.assertEqual(bench.of("lost") + bench.of("unread"), [])
        self.assertEqual(bench.done, 1)

    def test_an_unread_message_is_sent_again(self) -> None:
        """Content that went and was never answered is unread, and goes again under its name."""
        bench = Bench(sessions=1, limit=3, first=(".", DROP, 1))
        self.assertEqual(bench.of("unread"), [{"id": "m1", "how": "closed"}])
        self.assertEqual(bench.done, 0)
        bench.run(AGAIN_SECONDS)
        self.assertEqual(bench.arrived(), ["m1", "m2", "m3"])
        self.assertEqual([told["id"] for told in bench.of("offered")], ["m1", "m1", "m2", "m3"])
        self.assertEqual(bench.done, 1)

    def test_a_message_that_never_went_is_not_unread(self) -> None:
        """An association lost before the content leaves nothing in doubt; the message goes again."""
        bench = Bench(sessions=1, limit=1, first=("RCPT", DROP, 1))
        self.assertEqual(bench.of("unread"), [])
        self.assertEqual(bench.of("lost"), [{"session": 0, "how": "closed"}])
        bench.run(AGAIN_SECONDS)
        self.assertEqual(bench.arrived(), ["m1"])

    def test_a_silent_peer_is_left(self) -> None:
        """A reply that does not come ends the association at its time, not before."""
        bench = Bench(sessions=1, limit=1, first=(".", SILENCE, 1))
        bench.run(SILENCE_SECONDS - 0.1)
        self.assertEqual(bench.of("lost"), [])
        bench.run(0.1)
        self.assertEqual(bench.of("lost"), [{"session": 0, "how": "silent"}])
        self.assertEqual(bench.of("unread"), [{"id": "m1", "how": "silent"}])

    def test_refused_for_a_time_goes_again(self) -> None:
        """452 is no fate: the message is offered again until it is answered 250."""
        bench = Bench(sessions=1, limit=1, first=("MAIL", b"452 4.3.1 Full", 2))
        for _ in range(3):
            bench.run(AGAIN_SECONDS)
        self.assertEqual([told["reply"] for told in bench.of("refused")], ["452 4.3.1 Full"] * 2)
        self.assertEqual([told["id"] for told in bench.of("promised")], ["m1"])

    def test_refused_for_good_is_a_fate(self) -> None:
        """550 is final: the message is not sent again, and the load is done."""
        bench = Bench(sessions=1, limit=1, first=("RCPT", b"550 5.1.1 No", 1))
        self.assertEqual(bench.arrived(), [])
        bench.load.end()
        self.assertEqual(bench.done, 1)

    def test_the_pace_is_kept(self) -> None:
        """Ten a second are ten a second, whatever the number of sessions."""
        bench = Bench(sessions=5, rate=10)
        for _ in range(20):
            bench.run(0.1)
        self.assertEqual(len(bench.arrived()), 20)

    def test_it_waits_for_a_server(self) -> None:
        """Where nobody listens it tries again, and begins when somebody does."""
        bench = Bench(listens=False, sessions=2, limit=4)
        bench.run(AGAIN_SECONDS)
        self.assertEqual(bench.told, [])
        bench.listen()
        bench.run(AGAIN_SECONDS)
        self.assertEqual(len(bench.arrived()), 4)

    def test_the_end_leaves_nothing_open(self) -> None:
        """Told to end, it makes nothing new, and is done when the last message has its fate."""
        bench = Bench(sessions=1, rate=10, first=(".", DROP, 1))
        bench.run(0.1)
        bench.load.end()
        self.assertEqual(bench.done, 0)
        for _ in range(3):
            bench.run(0.1)
        self.assertEqual(bench.done, 1)
        self.assertEqual(bench.arrived(), ["m1"])


class CatcherTests(SynchronousTestCase):
    """A server that tells what arrived."""

    def test_it_tells_who_brought_what(self) -> None:
        """Source, HELO, name and the queue id of the server that relayed it."""
        world = Dials()
        told: list[tuple[str, dict[str, Any]]] = []
        catcher = Catcher(lambda what, **besides: told.append((what, besides)))
        world.network.serve(HOST, PORT, catcher.build)
        peer = world.network.dial(HOST, PORT, SOURCE)
        for line in (
            b"EHLO bridgehead.example.org\r\nMAIL FROM:<a@example.net>\r\n",
            b"RCPT TO:<b@example.com>\r\nDATA\r\n",
            b"Received: from x (x [192.0.2.1])\r\n\tby bridgehead.example.org with ESMTP\r\n",
            b"\tid 00020000000A; Tue, 24 Nov 2026 04:00:00 +0000\r\n",
            b"Received: from y by z with SMTP id 99; Tue, 24 Nov 2026 04:00:00 +0000\r\n",
            b"Subject: m7\r\n\r\nSubject: no\r\n.\r\n",
        ):
            peer.say(line)
            world.clock.advance(0)
        self.assertEqual(told[0], ("connected", {"source": SOURCE}))
        self.assertEqual(
            told[1],
            (
                "caught",
                {
                    "id": "m7",
                    "queue_id": "00020000000A",
                    "source": SOURCE,
                    "helo": "bridgehead.example.org",
                },
            ),
        )
        self.assertEqual((catcher.messages, catcher.commands), ([], []))
