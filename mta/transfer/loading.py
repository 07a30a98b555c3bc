"""Messages that are being read from the spool.

Law: they begin in the order in which they were asked for, the most urgent and then the oldest
first, whichever of them is read first: a spool reads with more hands than one. What was not begun
when the dispatch ends goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

from mta.errors import Fenced, SpoolError
from mta.model import Envelope, MessageState
from mta.transfer.tasks import Tasks


class _Reading:
    __slots__ = ("found", "is_over", "queue_id")

    def __init__(self, queue_id: str) -> None:
        self.queue_id = queue_id
        self.found: tuple[Envelope, MessageState] | None = None
        self.is_over = False


class Loading:
    """Those of one dispatch. Its length is the number that has not begun."""

    def __init__(
        self,
        tasks: Tasks,
        begin: Callable[[str, Envelope, MessageState], None],
        give_back: Callable[[str, float | None], None],
        unreadable: Callable[[str, SpoolError], None],
    ) -> None:
        self._tasks = tasks
        self._begin = begin
        self._give_back = give_back
        self._unreadable = unreadable
        self._readings: deque[_Reading] = deque()
        """The first of them is not over yet, so its task lives: who cancels that ends them all."""

    def __len__(self) -> int:
        return len(self._readings)

    def expect(self, queue_id: str, loaded: Deferred[tuple[Envelope, MessageState]]) -> None:
        """A message that was taken, and what the spool will say of it."""
        reading = _Reading(queue_id)
        self._readings.append(reading)
        self._tasks.start(self._wait(reading, loaded))

    async def _wait(
        self, reading: _Reading, loaded: Deferred[tuple[Envelope, MessageState]]
    ) -> None:
        try:
            reading.found = await loaded
        except KeyError:
            pass
        except CancelledError:
            # Taken, and in nobody's hands yet: the next dispatch of this epoch must find it due.
            self._give_back(reading.queue_id, None)
            raise
        except Fenced:
            raise
        except SpoolError as problem:
            self._unreadable(reading.queue_id, problem)
        finally:
            reading.is_over = True
            self._go_on()

    def _go_on(self) -> None:
        while self._readings and self._readings[0].is_over:
            reading = self._readings.popleft()
            if reading.found is not None:
                self._begin(reading.queue_id, *reading.found)
