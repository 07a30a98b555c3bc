"""Real TCP for the load and the catcher, on a reactor of their own.

Law: nothing of the MTA is here. These are the strangers that it speaks with, so they pass none of
its doors, and bind nothing: from where they speak is the kernel's choice. The tests of what runs on
it use the memory network instead.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.internet.protocol import ClientFactory, Factory
from twisted.python.failure import Failure

BACKLOG = 200


class RealNetwork:
    """`run` works until SIGTERM or SIGINT, or until `stop` is called."""

    def __init__(self) -> None:
        self.reactor = EPollReactor()

    def call_later(self, seconds: float, call: Callable[[], object]) -> IDelayedCall:
        made: IDelayedCall = self.reactor.callLater(seconds, call)
        return made

    def serve(self, host: str, port: int, build: Callable[[], IProtocol]) -> None:
        """@raise CannotListenError: the address is not here, or somebody listens there."""
        self.reactor.listenTCP(port, _Serving(build), backlog=BACKLOG, interface=host)

    def dial(
        self,
        host: str,
        port: int,
        build: Callable[[], IProtocol],
        failed: Callable[[], object],
        seconds: float,
    ) -> None:
        self.reactor.connectTCP(host, port, _Dialling(build, failed), timeout=seconds)

    def run(self, ending: Callable[[], object]) -> None:
        """`ending` is called at the first signal; the second stops at once."""

        def ended(number: int, frame: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self.reactor.callFromThread(ending)

        self.reactor.callWhenRunning(signal.signal, signal.SIGTERM, ended)
        self.reactor.callWhenRunning(signal.signal, signal.SIGINT, ended)
        self.reactor.run()

    def stop(self) -> None:
        if self.reactor.running:
            self.reactor.stop()


class _Serving(Factory):
    noisy = False

    def __init__(self, build: Callable[[], IProtocol]) -> None:
        self._build = build

    def buildProtocol(self, address: object) -> Any:
        return self._build()


class _Dialling(ClientFactory):
    noisy = False

    def __init__(self, build: Callable[[], IProtocol], failed: Callable[[], object]) -> None:
        self._build = build
        self._failed = failed

    def buildProtocol(self, address: object) -> Any:
        return self._build()

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._failed()
