"""Threads that are none: calls run at once, or one by one when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.interfaces import IExecutor, ILoop

Step = Callable[[], Callable[[], None] | None]


@implementer(ILoop)
class _InlineLoop:
    def __init__(self, step: Step) -> None:
        self._step = step
        self._running = False
        self._again = False
        self._stopped = False

    def wake(self) -> None:
        if self._running:
            self._again = True
            return
        if self._stopped:
            return
        self._running = True
        try:
            self._again = True
            while self._again and not self._stopped:
                self._again = False
                while (deliver := self._step()) is not None:
                    deliver()
        finally:
            self._running = False

    def stop(self) -> None:
        self._stopped = True


@implementer(IExecutor)
class InlineExecutor:
    """Runs everything at once on the caller's stack: results are there when `submit` returns."""

    def submit(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        try:
            return succeed(call(*arguments))
        except Exception:
            return fail(Failure())

    def loop(self, step: Step, name: str) -> ILoop:
        return _InlineLoop(step)

    def stop(self) -> None:
        pass


@implementer(ILoop)
class _SteppedLoop:
    def __init__(self, executor: StepExecutor, step: Step, name: str) -> None:
        self._executor = executor
        self._step = step
        self.name = name
        self.woken = False
        self.stopped = False

    def wake(self) -> None:
        self.woken = True

    def stop(self) -> None:
        self.stopped = True

    def once(self) -> None:
        deliver = self._step()
        if deliver is None:
            self.woken = False
        else:
            self._executor.ready.append(deliver)


@implementer(IExecutor)
class StepExecutor:
    """Nothing moves until the test says so.

    `work()` does one unit of thread work (the oldest submitted call, else one step of a woken
    loop); its result waits in `ready` until `deliver()` hands it to the reactor's side. `run()`
    does both until nothing is left. A thread that stalls is a test that does not call `work`.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[object, ...], Deferred[Any]]] = []
        self.loops: list[_SteppedLoop] = []
        self.ready: list[Callable[[], None]] = []
        self.stopped = False

    def submit(self, call: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        forgotten: list[bool] = []
        deferred: Deferred[Any] = Deferred(lambda _: forgotten.append(True))
        if self.stopped:
            deferred.errback(RuntimeError("the executor has stopped"))
        else:
            self.calls.append((call, arguments, deferred))
        return deferred

    def loop(self, step: Step, name: str) -> ILoop:
        loop = _SteppedLoop(self, step, name)
        self.loops.append(loop)
        return loop

    def stop(self) -> None:
        self.stopped = True
        for loop in self.loops:
            loop.stop()

    def work_call(self) -> bool:
        """Run the oldest submitted call. False: there is none."""
        if not self.calls:
            return False
        call, arguments, deferred = self.calls.pop(0)
        try:
            result = call(*arguments)
        except Exception:
            result = Failure()

        def deliver() -> None:
            if not deferred.called:
                deferred.callback(result)

        self.ready.append(deliver)
        return True

    def work_loop(self) -> bool:
        """Let the first woken loop do one step. False: none is awake."""
        for loop in self.loops:
            if loop.woken and not loop.stopped:
                loop.once()
                return True
        return False

    def work(self) -> bool:
        return self.work_call() or self.work_loop()

    def deliver(self) -> bool:
        """Hand the oldest finished result to the reactor's side. False: there is none."""
        if not self.ready:
            return False
        self.ready.pop(0)()
        return True

    def run(self) -> None:
        while self.deliver() or self.work():
            pass
